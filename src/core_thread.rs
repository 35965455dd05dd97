//! The thread that holds the leases: nodes, elections and guards, and nothing else. What the edge thread does, and how slowly, cannot
//! delay an extension here: everything between the two is bounded and never waited for on this side.

use crate::child;
use crate::clock;
use crate::config::{Config, Health, KeeperConfig, LockConfig, RetryCount};
use crate::core::election::{Election, Retry, Settings};
use crate::core::event::{Command, Refusal};
use crate::core::preference::Preference;
use crate::core::rng::Seed;
use crate::core::spread::Spread;
use crate::guard::{self, ChildSpec, LastResort};
use crate::health;
use crate::hooks::Caller;
use crate::keeper::{self, Foreground, Keeper, Shared};
use crate::lock::local::Local;
use crate::lock::redis::{self, Nodes};
use crate::lock::{Claim, Engine, Identity};
use crate::observe::board::Board;
use crate::output::{Outlet, TermOutput};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Messages of nodes that may wait for a keeper: several rounds of the largest quorum.
const INBOX: usize = 256;
/// Commands that may wait for one keeper.
const COMMANDS: usize = 16;
const NODES_SHOWN_EVERY: Duration = Duration::from_millis(250);
/// A release that a quorum has confirmed may still be on its way to a slow node, behind an extension: it is waited for a little, and
/// looked for this often.
const LAST_RELEASES: Duration = Duration::from_millis(500);
const LAST_RELEASES_LOOK: Duration = Duration::from_millis(10);

/// What the edge thread asks of this one.
#[derive(Debug)]
pub enum Order {
    All(Command),
    One { keeper: Arc<str>, told: Told },
}

/// A command, and where to say whether there is anything to act on. Nobody need be waiting there.
#[derive(Debug)]
pub struct Told {
    pub command: Command,
    pub answer: Option<oneshot::Sender<Result<(), Refusal>>>,
}

/// What the thread is started with.
#[derive(Debug)]
pub struct Start {
    pub config: Config,
    /// One per keeper; an error keeps that keeper away from this host.
    pub children: Vec<Result<ChildSpec, String>>,
    /// One per keeper.
    pub hooks: Vec<Caller>,
    /// One per keeper.
    pub outlets: Vec<Arc<Outlet>>,
    /// One per keeper that has probes.
    pub probes: Vec<Option<health::Link>>,
    pub board: Arc<Board>,
    pub outputs: mpsc::Sender<TermOutput>,
    pub orders: mpsc::Receiver<Order>,
    pub last_resort: LastResort,
    pub cgroup: bool,
    pub seed: u128,
    /// For the first keeper; `None` in a daemon.
    pub foreground: Option<Foreground>,
}

/// One child specification per keeper of the configuration.
pub fn prepare_children(config: &Config) -> Vec<Result<ChildSpec, String>> {
    let inherited = child::inherited_environment();
    let nofile = child::raise_open_files();
    let prepare = |keeper: &KeeperConfig| child::prepare(&keeper.name, &keeper.process, &inherited, nofile);
    config.keepers.iter().map(prepare).collect()
}

/// The key that a keeper's hosts compete for.
pub fn lock_key(config: &Config, keeper: &KeeperConfig) -> String {
    match &config.lock {
        LockConfig::Redis(redis) => format!("{}{}", redis.key_prefix, keeper.lock),
        LockConfig::Local(_) => keeper.lock.clone(),
    }
}

/// Runs until every keeper has stopped.
///
/// # Errors
/// When the runtime or the local lock directory cannot be had.
pub fn run(start: Start) -> io::Result<()> {
    // A lease of 2 s has 0.4 s between an extension and its stop_at, and a busy host keeps a normal thread waiting for longer.
    if let Err(error) = guard::become_realtime() {
        tracing::debug!(%error, "no real-time class: on a busy host extensions may come late");
    }
    run_to_its_end(hold_leases(start))?
}

/// Ends with `work`, whatever other threads still do for it.
fn run_to_its_end<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = LocalSet::new();
    let result = runtime.block_on(tasks.run_until(work));
    drop(tasks);
    // To drop it would wait for a name that is being looked up, which may take as long as the system's resolver tries.
    runtime.shutdown_background();
    Ok(result)
}

async fn hold_leases(start: Start) -> io::Result<()> {
    let Start {
        config,
        children,
        hooks,
        outlets,
        probes,
        board,
        outputs,
        mut orders,
        last_resort,
        cgroup,
        seed,
        mut foreground,
    } = start;
    let cancel = CancellationToken::new();
    let engine = start_engine(&config, &cancel)?;
    let shared = Rc::new(Shared {
        nodes: engine.node_names(),
        engine,
        board,
        outputs,
        last_resort: RefCell::new(last_resort),
        guards: RefCell::new(BTreeSet::new()),
        births: Cell::new(0),
        cgroup,
        spread: RefCell::new(spread_of(&config)),
    });
    let keepers = TaskTracker::new();
    let mut handles = BTreeMap::new();
    let given = children.into_iter().zip(outlets).zip(hooks).zip(probes);
    let given = given.map(|(((child, outlet), hooks), probes)| {
        let foreground = foreground.take();
        Given { child, outlet, hooks, probes, foreground }
    });
    for (place, (settings, given)) in config.keepers.iter().zip(given).enumerate() {
        let (handle, inbox) = mpsc::channel(COMMANDS);
        handles.insert(settings.name.clone(), handle);
        let seed = Seed(seed.wrapping_add(spread(place)));
        let keeper = enlist(&config, settings, given, place, seed, inbox, &shared);
        keepers.spawn_local(keeper::run(keeper));
    }
    keepers.close();
    let shown = Rc::clone(&shared);
    let show_nodes = async move {
        loop {
            shown.board.try_put_nodes(shown.engine.status(), clock::boot());
            tokio::time::sleep(NODES_SHOWN_EVERY).await;
        }
    };
    let pass_orders = async {
        while let Some(order) = orders.recv().await {
            match order {
                Order::All(Command::Drain | Command::Kill) if handles.is_empty() => return,
                Order::All(command) => {
                    for keeper in handles.values() {
                        // A keeper with sixteen commands waiting has been told.
                        let _ = keeper.try_send(Told { command, answer: None });
                    }
                }
                // Who waits for an answer sees that there will be none.
                Order::One { keeper, told } => {
                    let _ = handles.get(&*keeper).map(|handle| handle.try_send(told));
                }
            }
        }
        // The edge is gone: nobody could ever ask for a stop.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = all_stopped(&keepers, &config) => {}
        () = show_nodes => {}
        () = pass_orders => {}
    }
    let no_longer = clock::boot() + LAST_RELEASES;
    tokio::time::sleep(LAST_RELEASES_LOOK).await;
    while !shared.engine.is_idle() && clock::boot() < no_longer {
        tokio::time::sleep(LAST_RELEASES_LOOK).await;
    }
    cancel.cancel();
    Ok(())
}

/// A daemon without keepers waits for its signal all the same.
async fn all_stopped(keepers: &TaskTracker, config: &Config) {
    if config.keepers.is_empty() {
        std::future::pending::<()>().await;
    }
    keepers.wait().await;
}

/// Seeds far apart, so that the streams of two keepers do not meet.
fn spread(place: usize) -> u128 {
    (place as u128).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
}

fn start_engine(config: &Config, cancel: &CancellationToken) -> io::Result<Engine> {
    let identity = Identity { host: config.host.clone(), pid: std::process::id() };
    match &config.lock {
        LockConfig::Redis(redis) => {
            let access = redis.access();
            let settings = redis::Settings {
                access: access.clone(),
                restart_quarantine: redis.restart_quarantine,
                identity: identity.clone(),
            };
            Ok(Engine::Redis { nodes: Nodes::start(settings, cancel), access, identity })
        }
        LockConfig::Local(local) => {
            let lock = Local::start(&local.directory, identity.clone()).map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!(
                        "lock directory {} cannot be used: {error}; name another with directory = \"...\" in [lock]",
                        local.directory.display()
                    ),
                )
            })?;
            Ok(Engine::Local { lock, identity })
        }
    }
}

/// What a keeper is given besides its settings.
struct Given {
    child: Result<ChildSpec, String>,
    outlet: Arc<Outlet>,
    hooks: Caller,
    probes: Option<health::Link>,
    foreground: Option<Foreground>,
}

fn enlist(
    config: &Config,
    settings: &KeeperConfig,
    Given { child, outlet, hooks, probes, foreground }: Given,
    place: usize,
    seed: Seed,
    commands: mpsc::Receiver<Told>,
    shared: &Rc<Shared>,
) -> Keeper {
    let retry = match &config.lock {
        LockConfig::Redis(redis) => {
            let count = match redis.retry_count {
                RetryCount::Forever => None,
                RetryCount::Times(times) => Some(times),
            };
            Retry { count, delay: redis.retry_delay }
        }
        LockConfig::Local(_) => Retry { count: None, delay: RETRY_DELAY_LOCAL },
    };
    let lock_key = lock_key(config, settings);
    let (sender, inbox) = mpsc::channel(INBOX);
    let claim = Claim {
        key: lock_key.clone(),
        ttl: settings.timing.ttl(),
        node_timeout: settings.timing.node_timeout(),
    };
    let id = shared.engine.register(claim, sender);
    let election = Election::new(
        Settings {
            timing: settings.timing,
            quorum: shared.engine.quorum(),
            restart: settings.restart.clone(),
            retry,
            preference: preference(config, settings),
            fit_to_stand: settings.health.as_ref().is_some_and(Health::is_for_standby),
        },
        seed,
        clock::boot(),
    );
    Keeper {
        name: settings.name.as_str().into(),
        place,
        id,
        lock_key,
        child,
        outlet,
        hooks,
        probes,
        foreground,
        election,
        inbox,
        commands,
        shared: Rc::clone(shared),
    }
}

/// With a local lock there is no other host to let go first.
fn spread_of(config: &Config) -> Spread {
    let keepers: &[KeeperConfig] = match &config.lock {
        LockConfig::Redis(_) => &config.keepers,
        LockConfig::Local(_) => &[],
    };
    Spread::new(&config.host, keepers.iter().map(|keeper| &*keeper.name))
}

/// With a local lock there is no other host.
fn preference(config: &Config, keeper: &KeeperConfig) -> Preference {
    match &config.lock {
        LockConfig::Redis(_) => Preference::new(&config.host, keeper.priorities.clone(), keeper.hold),
        LockConfig::Local(_) => Preference::none(),
    }
}

/// A local lock answers in microseconds.
const RETRY_DELAY_LOCAL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lookup_that_hangs_does_not_hold_up_the_end() {
        let hangs = Duration::from_secs(20);
        let began = clock::boot();
        run_to_its_end(async { drop(tokio::task::spawn_blocking(move || std::thread::sleep(hangs))) })
            .expect("a runtime");
        assert!(clock::boot().since(began) < hangs / 2);
    }
}
