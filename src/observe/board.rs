//! Where the core thread leaves what the edge thread shows. Neither waits for the other: the core tries, and tries again later.

use crate::core::event::Role;
use crate::core::lease::FencingToken;
use crate::core::time::{Instant, WallTime};
use crate::lock::NodeStatus;
use crate::observe::history::Run;
use crate::observe::series::Series;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// One keeper on this host, as the core last saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeeperView {
    pub name: String,
    pub role: Role,
    /// Length of the lease.
    pub ttl: Duration,
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

/// One keeper's place.
#[derive(Debug)]
struct Slot {
    name: Arc<str>,
    view: Mutex<KeeperView>,
    series: Arc<Series>,
    /// Until when the keeper's loop must have turned again, in boot-time ns; the systemd watchdog is fed only while all have.
    turns_by: AtomicU64,
}

/// One slot per keeper, one for the nodes.
#[derive(Debug)]
pub struct Board {
    keepers: Vec<Slot>,
    nodes: Mutex<Vec<NodeStatus>>,
    /// When the core thread last showed the nodes, in boot-time ns; 0: not yet.
    nodes_shown_at: AtomicU64,
    /// Woken when something worth a new STATUS line changed.
    pub changed: Notify,
}

impl Board {
    pub fn new(
        keepers: impl IntoIterator<Item = (KeeperView, Series)>,
        nodes: Vec<NodeStatus>,
    ) -> Arc<Board> {
        let slot = |(view, series): (KeeperView, Series)| Slot {
            name: view.name.as_str().into(),
            view: Mutex::new(view),
            series: Arc::new(series),
            turns_by: AtomicU64::new(u64::MAX),
        };
        Arc::new(Board {
            keepers: keepers.into_iter().map(slot).collect(),
            nodes: Mutex::new(nodes),
            nodes_shown_at: AtomicU64::new(0),
            changed: Notify::new(),
        })
    }

    /// False when the edge is reading just now: to be tried again.
    pub fn try_put(&self, place: usize, view: &KeeperView) -> bool {
        let Ok(mut slot) = self.keepers[place].view.try_lock() else { return false };
        let worth_saying = slot.role != view.role;
        slot.clone_from(view);
        drop(slot);
        if worth_saying {
            self.changed.notify_one();
        }
        true
    }

    pub fn try_put_nodes(&self, nodes: Vec<NodeStatus>, now: Instant) {
        self.nodes_shown_at.store(now.as_nanos(), Ordering::Relaxed);
        if let Ok(mut slot) = self.nodes.try_lock() {
            *slot = nodes;
        }
    }

    pub fn keepers(&self) -> Vec<KeeperView> {
        self.keepers.iter().map(Slot::view).collect()
    }

    /// The keeper of that name, if there is one.
    pub fn keeper(&self, name: &str) -> Option<KeeperView> {
        self.keepers.iter().find(|slot| *slot.name == *name).map(Slot::view)
    }

    /// What is counted of each keeper, with its view.
    pub fn counted(&self) -> Vec<(KeeperView, Arc<Series>)> {
        self.keepers.iter().map(|slot| (slot.view(), Arc::clone(&slot.series))).collect()
    }

    pub fn series(&self, place: usize) -> Arc<Series> {
        Arc::clone(&self.keepers[place].series)
    }

    pub fn nodes(&self) -> Vec<NodeStatus> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The keeper's loop promises to turn again by this instant.
    pub fn promise_turn(&self, place: usize, by: Option<Instant>) {
        let by = by.map_or(u64::MAX, Instant::as_nanos);
        self.keepers[place].turns_by.store(by, Ordering::Relaxed);
    }

    /// Keepers held here whose loop has not turned in time.
    pub fn late(&self, now: Instant) -> impl Iterator<Item = &str> {
        let is_late = move |slot: &&Slot| slot.turns_by.load(Ordering::Relaxed) < now.as_nanos();
        self.keepers.iter().filter(is_late).map(|slot| &*slot.name)
    }

    /// How long ago the core thread last showed the nodes; `None` before the first time.
    pub fn nodes_age(&self, now: Instant) -> Option<Duration> {
        match self.nodes_shown_at.load(Ordering::Relaxed) {
            0 => None,
            shown_at => Some(now.since(Instant::from_nanos(shown_at))),
        }
    }
}

impl Slot {
    fn view(&self) -> KeeperView {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
