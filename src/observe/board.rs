//! Where the core thread leaves what the edge thread shows. Neither waits for the other: the core tries, and tries again later.

use crate::core::event::Role;
use crate::core::lease::FencingToken;
use crate::core::time::{Instant, WallTime};
use crate::core::timing::Timing;
use crate::lock::NodeStatus;
use crate::observe::history::Run;
use crate::observe::series::Series;
use crate::output::Outlet;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// One keeper on this host, as the core last saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeeperView {
    pub name: String,
    pub role: Role,
    pub timing: Timing,
    /// The role is that of all hosts, not asked of this one.
    pub paused_everywhere: bool,
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

/// What is shown of one keeper, for as long as there is one of its name.
#[derive(Debug)]
pub struct Panel {
    pub name: Arc<str>,
    view: Mutex<KeeperView>,
    /// Where its lines go; the edge's alone.
    outlet: Mutex<Arc<Outlet>>,
    /// What is counted of it; the edge's alone, too.
    series: Mutex<Arc<Series>>,
    /// Until when its loop must have turned again, in boot-time ns; the systemd watchdog is fed only while all have.
    turn_by: AtomicU64,
    /// Removed, and nothing of it is left.
    gone: AtomicBool,
}

impl Panel {
    pub fn new(view: KeeperView, outlet: Arc<Outlet>, series: Series) -> Arc<Panel> {
        Arc::new(Panel {
            name: Arc::clone(&outlet.name),
            view: Mutex::new(view),
            outlet: Mutex::new(outlet),
            series: Mutex::new(Arc::new(series)),
            turn_by: AtomicU64::new(u64::MAX),
            gone: AtomicBool::new(false),
        })
    }

    pub fn view(&self) -> KeeperView {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn outlet(&self) -> Arc<Outlet> {
        Arc::clone(&self.outlet.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set_outlet(&self, outlet: Arc<Outlet>) {
        *self.outlet.lock().unwrap_or_else(PoisonError::into_inner) = outlet;
    }

    pub fn series(&self) -> Arc<Series> {
        Arc::clone(&self.series.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set_series(&self, series: Series) {
        *self.series.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(series);
    }

    /// The keeper's loop promises to turn again by this instant.
    pub fn promise_turn(&self, by: Option<Instant>) {
        let by = by.map_or(u64::MAX, Instant::as_nanos);
        self.turn_by.store(by, Ordering::Relaxed);
    }

    /// Whether it is to be shown at all.
    pub fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::Relaxed);
    }

    fn is_there(&self) -> bool {
        !self.gone.load(Ordering::Relaxed)
    }
}

/// When the configuration was last read, and whether it could be put in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reload {
    pub at: WallTime,
    pub ok: bool,
}

/// One panel per keeper, one for the nodes.
#[derive(Debug)]
pub struct Board {
    /// In the order of the file. Locked by the edge only: a keeper has its panel.
    panels: Mutex<Vec<Arc<Panel>>>,
    nodes: Mutex<Vec<NodeStatus>>,
    /// When the core thread last showed the nodes, in boot-time ns; 0: not yet.
    nodes_shown_at: AtomicU64,
    reload: Mutex<Reload>,
    /// Woken when something worth a new STATUS line changed.
    pub changed: Notify,
}

impl Board {
    /// `started`: the configuration was read for the first time.
    pub fn new(nodes: Vec<NodeStatus>, started: WallTime) -> Arc<Board> {
        Arc::new(Board {
            panels: Mutex::default(),
            nodes: Mutex::new(nodes),
            nodes_shown_at: AtomicU64::new(0),
            reload: Mutex::new(Reload { at: started, ok: true }),
            changed: Notify::new(),
        })
    }

    /// False when the edge is reading just now: to be tried again.
    pub fn try_put(&self, panel: &Panel, view: &KeeperView) -> bool {
        let Ok(mut shown) = panel.view.try_lock() else { return false };
        let worth_saying = shown.role != view.role;
        shown.clone_from(view);
        drop(shown);
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

    /// Shows these, in this order, and after them what has not ended yet of the others.
    pub fn arrange(&self, mut panels: Vec<Arc<Panel>>) {
        let mut shown = self.panels.lock().unwrap_or_else(PoisonError::into_inner);
        let names: BTreeSet<Arc<str>> = panels.iter().map(|panel| Arc::clone(&panel.name)).collect();
        panels.extend(shown.drain(..).filter(|panel| panel.is_there() && !names.contains(&panel.name)));
        *shown = panels;
    }

    pub fn panels(&self) -> Vec<Arc<Panel>> {
        let panels = self.panels.lock().unwrap_or_else(PoisonError::into_inner);
        panels.iter().filter(|panel| panel.is_there()).cloned().collect()
    }

    pub fn panel(&self, name: &str) -> Option<Arc<Panel>> {
        self.panels().into_iter().find(|panel| &*panel.name == name)
    }

    pub fn keepers(&self) -> Vec<KeeperView> {
        self.panels().iter().map(|panel| panel.view()).collect()
    }

    pub fn nodes(&self) -> Vec<NodeStatus> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn reload(&self) -> Reload {
        *self.reload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn put_reload(&self, reload: Reload) {
        *self.reload.lock().unwrap_or_else(PoisonError::into_inner) = reload;
        self.changed.notify_one();
    }

    /// Keepers held here whose loop has not turned in time.
    pub fn late(&self, now: Instant) -> Vec<Arc<str>> {
        let is_late = |panel: &&Arc<Panel>| panel.turn_by.load(Ordering::Relaxed) < now.as_nanos();
        self.panels().iter().filter(is_late).map(|panel| Arc::clone(&panel.name)).collect()
    }

    /// How long ago the core thread last showed the nodes; `None` before the first time.
    pub fn nodes_age(&self, now: Instant) -> Option<Duration> {
        match self.nodes_shown_at.load(Ordering::Relaxed) {
            0 => None,
            shown_at => Some(now.since(Instant::from_nanos(shown_at))),
        }
    }
}
