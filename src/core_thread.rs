//! The thread that holds the leases: nodes, elections and guards, and nothing else. What the edge thread does, and how slowly, cannot
//! delay an extension here: everything between the two is bounded and never waited for on this side.

use crate::clock;
use crate::config::{Config, LockConfig};
use crate::core::event::{Command, Refusal};
use crate::core::spread::Spread;
use crate::guard::{self, LastResort};
use crate::keeper::Shared;
use crate::lock::local::Local;
use crate::lock::redis::{self, Nodes};
use crate::lock::{Engine, Identity};
use crate::observe::board::Board;
use crate::output::TermOutput;
use crate::roster::{Enlistment, Revision, Roster};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

const NODES_SHOWN_EVERY: Duration = Duration::from_millis(250);
/// A release that a quorum has confirmed may still be on its way to a slow node, behind an extension: it is waited for a little, and
/// looked for this often.
const LAST_RELEASES: Duration = Duration::from_millis(500);
const LAST_RELEASES_LOOK: Duration = Duration::from_millis(10);
/// Guards that are being started, those in reserve that end, and a name being looked up for each node: as many threads at once. More
/// would only wait for a processor, and each has a stack.
const BLOCKING_MAX: usize = 64;

/// What the edge thread asks of this one.
#[derive(Debug)]
pub enum Order {
    All(Command),
    One { keeper: Arc<str>, told: Told },
    Reload(Box<Revision>),
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
    pub keepers: Vec<Enlistment>,
    pub board: Arc<Board>,
    pub outputs: mpsc::Sender<TermOutput>,
    pub orders: mpsc::Receiver<Order>,
    pub last_resort: LastResort,
    pub cgroup: bool,
    pub seed: u128,
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_MAX)
        .build()?;
    let tasks = LocalSet::new();
    let result = runtime.block_on(tasks.run_until(work));
    drop(tasks);
    // To drop it would wait for a name that is being looked up, which may take as long as the system's resolver tries.
    runtime.shutdown_background();
    Ok(result)
}

async fn hold_leases(start: Start) -> io::Result<()> {
    let Start { config, keepers, board, outputs, mut orders, last_resort, cgroup, seed } = start;
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
        reserves: Cell::new(0),
        cgroup,
        spread: RefCell::new(Spread::new(&config.host)),
    });
    let mut roster = Roster::new(&config, seed, Rc::clone(&shared));
    drop(config);
    for enlistment in keepers {
        roster.enlist(enlistment, None);
    }
    let mut show_nodes = tokio::time::interval(NODES_SHOWN_EVERY);
    show_nodes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Should the edge be gone, nobody could ever ask for a stop; a daemon without keepers waits for its signal all the same.
    while !roster.is_over() {
        tokio::select! {
            Some(order) = orders.recv() => roster.take(order),
            Some(end) = roster.next_end() => roster.handle_end(end),
            _ = show_nodes.tick() => shared.board.try_put_nodes(shared.engine.status(), clock::boot()),
        }
    }
    let no_longer = clock::boot() + LAST_RELEASES;
    tokio::time::sleep(LAST_RELEASES_LOOK).await;
    while !(shared.engine.is_idle() && shared.reserves.get() == 0) && clock::boot() < no_longer {
        tokio::time::sleep(LAST_RELEASES_LOOK).await;
    }
    cancel.cancel();
    Ok(())
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
