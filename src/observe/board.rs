//! Where the core thread leaves what the edge thread shows. Neither waits for the other: the core tries, and tries again later.

use crate::core::event::Role;
use crate::core::lease::FencingToken;
use crate::core::time::{Instant, WallTime};
use crate::lock::NodeStatus;
use crate::observe::history::Run;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// One keeper on this host, as the core last saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeeperView {
    pub name: String,
    pub role: Role,
    pub token: Option<FencingToken>,
    pub pid: Option<u32>,
    pub valid_until: Option<Instant>,
    pub since: WallTime,
    pub restarts: u64,
    /// Oldest first; as a whole, because it changes seldom and is compared often.
    pub history: Arc<[Run]>,
    pub last_change: Option<LastChange>,
    pub holder: Option<HolderView>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LastChange {
    pub at: WallTime,
    pub reason: String,
}

/// Who holds the lock; host and pid are known of keeperds only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HolderView {
    pub host: Option<String>,
    pub pid: Option<u32>,
    pub value: String,
}

/// One slot per keeper, one for the nodes.
#[derive(Debug)]
pub struct Board {
    keepers: Vec<Mutex<KeeperView>>,
    nodes: Mutex<Vec<NodeStatus>>,
    /// Until when each keeper's loop must have turned again, in boot-time ns; the systemd watchdog is fed only while all have.
    turns_by: Vec<AtomicU64>,
    /// Woken when something worth a new STATUS line changed.
    pub changed: Notify,
}

impl Board {
    pub fn new(views: Vec<KeeperView>) -> Arc<Board> {
        let turns_by = views.iter().map(|_| AtomicU64::new(u64::MAX)).collect();
        Arc::new(Board {
            keepers: views.into_iter().map(Mutex::new).collect(),
            nodes: Mutex::new(Vec::new()),
            turns_by,
            changed: Notify::new(),
        })
    }

    /// False when the edge is reading just now: to be tried again.
    pub fn try_put(&self, place: usize, view: &KeeperView) -> bool {
        let Ok(mut slot) = self.keepers[place].try_lock() else { return false };
        let worth_saying = slot.role != view.role;
        slot.clone_from(view);
        drop(slot);
        if worth_saying {
            self.changed.notify_one();
        }
        true
    }

    pub fn try_put_nodes(&self, nodes: Vec<NodeStatus>) {
        if let Ok(mut slot) = self.nodes.try_lock() {
            *slot = nodes;
        }
    }

    pub fn keepers(&self) -> Vec<KeeperView> {
        self.keepers.iter().map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).clone()).collect()
    }

    pub fn nodes(&self) -> Vec<NodeStatus> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The keeper's loop promises to turn again by this instant.
    pub fn promise_turn(&self, place: usize, by: Option<Instant>) {
        let by = by.map_or(u64::MAX, Instant::as_nanos);
        self.turns_by[place].store(by, Ordering::Relaxed);
    }

    /// Every keeper's loop has turned in time.
    pub fn all_turn(&self, now: Instant) -> bool {
        self.turns_by.iter().all(|by| by.load(Ordering::Relaxed) >= now.as_nanos())
    }
}
