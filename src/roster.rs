//! The keepers of the core thread: who runs, and who takes whose place after a reload.
//!
//! A keeper with other settings is another keeper: the old one hands over as in a drain, and only when it has ended, its tree dead and
//! its lock released, the new one stands by.

use crate::clock;
use crate::config::{Config, Health, KeeperConfig, LockConfig, RetryCount};
use crate::core::election::{Election, Retry, Settings};
use crate::core::event::Command;
use crate::core::preference::Preference;
use crate::core::rng::Seed;
use crate::core_thread::{Order, Told};
use crate::guard::ChildSpec;
use crate::health;
use crate::hooks::Caller;
use crate::keeper::{self, Foreground, Keeper, Past, Shared};
use crate::lock::Claim;
use crate::observe::board::Panel;
use crate::observe::history::History;
use crate::observe::series::{Recorder, Series};
use crate::output::Outlet;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;

/// Messages of nodes that may wait for a keeper: several rounds of the largest quorum.
const INBOX: usize = 256;
/// Commands that may wait for one keeper.
const COMMANDS: usize = 16;
/// A local lock answers in microseconds.
const RETRY_DELAY_LOCAL: Duration = Duration::from_millis(200);

/// A keeper, and all that the edge has made ready for it.
#[derive(Debug)]
pub struct Enlistment {
    pub settings: KeeperConfig,
    pub lock_key: String,
    /// An error keeps it away from this host.
    pub child: Result<ChildSpec, String>,
    pub hooks: Caller,
    pub outlet: Arc<Outlet>,
    /// `None`: nothing of it is probed.
    pub probes: Option<health::Link>,
    pub panel: Arc<Panel>,
    pub series: Arc<Series>,
    /// `None`: a daemon's keeper.
    pub foreground: Option<Foreground>,
    /// Why there is one, should none be replaced.
    pub why: &'static str,
}

/// What a reload changes.
#[derive(Debug)]
pub struct Revision {
    /// Those that hand over and end.
    pub retire: Vec<Arc<str>>,
    /// Those that begin, each once the one of its name has ended.
    pub enlist: Vec<Enlistment>,
    /// For nodes that restart from now on; a shorter one changes nothing.
    pub restart_quarantine: Option<Duration>,
}

#[derive(Debug)]
struct Running {
    commands: mpsc::Sender<Told>,
    panel: Arc<Panel>,
    /// Takes its place.
    next: Option<Box<Enlistment>>,
}

/// All keepers of the daemon. Lives within a `LocalSet`.
#[derive(Debug)]
pub struct Roster {
    host: String,
    retry: Retry,
    /// With a local lock there is no other host to prefer, or to let go first.
    has_other_hosts: bool,
    seed: u128,
    shared: Rc<Shared>,
    running: BTreeMap<Arc<str>, Running>,
    lives: JoinSet<(Arc<str>, Past)>,
    /// Who is new is paused, as all others are.
    drained: bool,
    ending: bool,
}

impl Roster {
    pub fn new(config: &Config, seed: u128, shared: Rc<Shared>) -> Roster {
        let (retry, has_other_hosts) = match &config.lock {
            LockConfig::Redis(redis) => {
                let count = match redis.retry_count {
                    RetryCount::Forever => None,
                    RetryCount::Times(times) => Some(times),
                };
                (Retry { count, delay: redis.retry_delay }, true)
            }
            LockConfig::Local(_) => (Retry { count: None, delay: RETRY_DELAY_LOCAL }, false),
        };
        Roster {
            host: config.host.clone(),
            retry,
            has_other_hosts,
            seed,
            shared,
            running: BTreeMap::new(),
            lives: JoinSet::new(),
            drained: false,
            ending: false,
        }
    }

    /// All have ended, and none will come.
    pub fn is_over(&self) -> bool {
        self.ending && self.lives.is_empty()
    }

    pub fn take(&mut self, order: Order) {
        match order {
            Order::All(command) => {
                self.ending |= matches!(command, Command::Drain | Command::Kill);
                match command {
                    Command::Pause => self.drained = true,
                    Command::Resume => self.drained = false,
                    Command::StepDown
                    | Command::Restart
                    | Command::Drain
                    | Command::Retire
                    | Command::Kill => {}
                }
                self.running.values().for_each(|running| running.tell(command));
            }
            // Who waits for an answer sees that there will be none.
            Order::One { keeper, told } => {
                let _ = self.running.get(&*keeper).map(|running| running.commands.try_send(told));
            }
            Order::Reload(revision) => self.revise(*revision),
        }
    }

    fn revise(&mut self, Revision { retire, enlist, restart_quarantine }: Revision) {
        if self.ending {
            return;
        }
        if let Some(quarantine) = restart_quarantine {
            self.shared.engine.lengthen_quarantine(quarantine);
        }
        for name in retire {
            if let Some(running) = self.running.get_mut(&name) {
                running.next = None;
                running.tell(Command::Retire);
            }
        }
        for enlistment in enlist {
            match self.running.get_mut(&enlistment.panel.name) {
                Some(running) => running.next = Some(Box::new(enlistment)),
                None => self.enlist(enlistment, None),
            }
        }
    }

    /// Waits for the end of one of them; `None` at once when there is none.
    pub async fn next_end(&mut self) -> Option<(Arc<str>, Past)> {
        // A keeper that panics ends the daemon before anybody could join it.
        self.lives.join_next().await.and_then(Result::ok)
    }

    pub fn handle_end(&mut self, (name, past): (Arc<str>, Past)) {
        let Some(Running { panel, next, .. }) = self.running.remove(&name) else { return };
        match next.filter(|_| !self.ending) {
            Some(next) => self.enlist(*next, Some(past)),
            // Of a daemon that ends, what its keepers were is shown to the end.
            None if self.ending => {}
            None => panel.set_gone(true),
        }
        self.shared.board.changed.notify_one();
    }

    pub fn enlist(&mut self, enlistment: Enlistment, past: Option<Past>) {
        let Enlistment { settings, lock_key, child, hooks, outlet, probes, panel, series, foreground, why } =
            enlistment;
        let past = past.unwrap_or(Past { why, history: History::default(), paused: self.drained });
        let (sender, inbox) = mpsc::channel(INBOX);
        let claim = Claim {
            key: lock_key.clone(),
            ttl: settings.timing.ttl(),
            node_timeout: settings.timing.node_timeout(),
        };
        let id = self.shared.engine.register(claim, sender);
        let mut preference = Preference::none();
        if self.has_other_hosts {
            preference = Preference::new(&self.host, settings.priorities, settings.hold);
            self.shared.spread.borrow_mut().join(id.place(), &panel.name);
        }
        let election = Election::new(
            Settings {
                timing: settings.timing,
                quorum: self.shared.engine.quorum(),
                restart: settings.restart,
                retry: self.retry,
                preference,
                fit_to_stand: settings.health.as_ref().is_some_and(Health::is_for_standby),
            },
            Seed(self.seed.wrapping_add(apart(id.place()))),
            clock::boot(),
        );
        let (commands, told) = mpsc::channel(COMMANDS);
        let name = Arc::clone(&panel.name);
        panel.set_gone(false);
        self.running.insert(Arc::clone(&name), Running { commands, panel: Arc::clone(&panel), next: None });
        let keeper = Keeper {
            name,
            panel,
            past,
            recorder: Recorder::new(series),
            id,
            lock_key,
            child,
            outlet,
            hooks,
            probes,
            foreground,
            election,
            inbox,
            commands: told,
            shared: Rc::clone(&self.shared),
        };
        self.lives.spawn_local(keeper::run(keeper));
    }
}

impl Running {
    /// A keeper that has too much to hear hears this later: an end must not be missed.
    fn tell(&self, command: Command) {
        if let Err(TrySendError::Full(told)) = self.commands.try_send(Told { command, answer: None }) {
            let commands = self.commands.clone();
            tokio::task::spawn_local(async move { commands.send(told).await });
        }
    }
}

/// Seeds far apart, so that the streams of two keepers do not meet.
fn apart(place: usize) -> u128 {
    (place as u128).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
}
