//! The daemon as a story: prepare, start the core thread, open the control socket, be ready, wait for a signal, drain, end.
//!
//! This is the edge thread: signals, HTTP, the children's output, systemd. Whatever it does, the core thread goes on.

use crate::config::{Config, HttpConfig, LockConfig};
use crate::core::event::Command;
use crate::core_thread::{self, Order, Start};
use crate::guard::{LastResort, cgroup};
use crate::health;
use crate::hooks::Runners;
use crate::lock::NodeStatus;
use crate::observe::api::Api;
use crate::observe::board::Board;
use crate::observe::http::{self, Bound, OwnSocket};
use crate::observe::log::{Format, LogQueue};
use crate::observe::web::Web;
use crate::outfit::Outfitter;
use crate::output::{self, Journal, Sinks, TermOutput};
use crate::reload::{Fleet, Origin};
use crate::{clock, systemd};
use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGURG, SIGWINCH};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};

/// Terms whose output may wait to be read: the edge is never that far behind.
const OUTPUTS: usize = 8 * 1024;
const SIGNALS: usize = 16;
/// Requests for a reload that wait for the one under way.
const RELOADS: usize = 4;
/// Requests of the control socket and signals that the core thread has not taken yet.
const ORDERS: usize = 64;
/// What an earlier daemon's guards may still need before their leaves count as leftovers.
const SWEEP_PATIENCE: Duration = Duration::from_secs(2);
/// While another daemon has the control socket.
const CONTROL_AGAIN: Duration = Duration::from_secs(1);
/// For hooks that still run when all keepers have stopped.
const HOOKS_MAX: Duration = Duration::from_secs(2);
/// For the last lines of children and log.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Lets a SIGURG that comes from now on wait until somebody takes it: it asks for a stop, as SIGTERM does, but would be lost.
pub fn hold_stops() {
    let _ = SigSet::from(Signal::SIGURG).thread_block();
}

/// Runs the daemon with the configuration that was read from `origin`; 0 after a clean stop, 1 after a failure.
pub fn run(config: Config, origin: Origin, log: &LogQueue, format: Format) -> i32 {
    match try_run(config, origin, log, format) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(%error, "keeperd cannot run");
            log.flush(LAST_WORDS);
            1
        }
    }
}

fn try_run(config: Config, origin: Origin, log: &LogQueue, format: Format) -> io::Result<()> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    // Before any thread is started, so that all inherit it: signals go to the thread that asks for them, and a guard is born deaf.
    SigSet::all().thread_block()?;
    let last_resort = LastResort::install()?;
    for leftover in cgroup::sweep_leftovers(SWEEP_PATIENCE) {
        tracing::warn!(?leftover, "killed what an earlier daemon's lost guard had left behind");
    }
    let host: Arc<str> = config.host.as_str().into();
    let socket = config.control.socket.clone();
    let http = config.http.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let board = Board::new(unheard_nodes(&config), clock::wall());
    let runners = Runners::default();
    let outfitter = Outfitter {
        sinks: sinks(&config, log, format),
        runners: runners.clone(),
        places: health::Places::default(),
    };
    let (fleet, keepers) = {
        let _inside = runtime.enter();
        Fleet::muster(origin, config.clone(), outfitter, Arc::clone(&board))?
    };
    let (orders, for_core) = mpsc::channel(ORDERS);
    let (outputs, new_outputs) = mpsc::channel(OUTPUTS);
    let mut seed = [0; 16];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    let start = Start {
        config,
        keepers,
        board: Arc::clone(&board),
        outputs,
        orders: for_core,
        last_resort,
        cgroup: std::env::var_os("KEEPERD_CGROUP").is_none_or(|value| value != "off"),
        seed: u128::from_ne_bytes(seed),
    };
    let (ended, end) = oneshot::channel();
    let core = std::thread::Builder::new().name("core".into()).spawn(move || {
        // The receiver is gone only when the edge has failed.
        let _ = ended.send(core_thread::run(start));
    })?;
    let edge = Edge { fleet, runners, host, socket, http, board, orders, new_outputs, log: log.clone(), end };
    let result = runtime.block_on(edge.run());
    if core.join().is_err() {
        // Its panic ends every lease: the guards see the end of their sockets with this process.
        std::process::abort();
    }
    runtime.shutdown_timeout(LAST_WORDS);
    result
}

/// The nodes of the configuration, before any has been heard of.
pub fn unheard_nodes(config: &Config) -> Vec<NodeStatus> {
    let nodes: Vec<String> = match &config.lock {
        LockConfig::Redis(redis) => redis.nodes.iter().map(ToString::to_string).collect(),
        LockConfig::Local(local) => vec![local.directory.display().to_string()],
    };
    nodes.into_iter().map(NodeStatus::unheard).collect()
}

struct Edge {
    fleet: Fleet,
    runners: Runners,
    host: Arc<str>,
    socket: PathBuf,
    http: Option<HttpConfig>,
    board: Arc<Board>,
    orders: mpsc::Sender<Order>,
    new_outputs: mpsc::Receiver<TermOutput>,
    log: LogQueue,
    end: oneshot::Receiver<io::Result<()>>,
}

impl Edge {
    async fn run(self) -> io::Result<()> {
        let Edge { fleet, runners, host, socket, http, board, orders, new_outputs, log, mut end } = self;
        let mut signals = watch_signals()?;
        let streams = tokio::spawn(read_output(new_outputs));
        let (reloads, requests) = mpsc::channel(RELOADS);
        let ending = Arc::new(AtomicBool::new(false));
        let hangup = Arc::new(Notify::new());
        tokio::spawn(fleet.serve(requests, Arc::clone(&hangup), orders.clone(), Arc::clone(&ending)));
        if let Some(HttpConfig { listen }) = http {
            let web = Web::new(Arc::clone(&board), Arc::clone(&host));
            tokio::spawn(http::listen_and_serve(listen, move |request| {
                std::future::ready(web.respond(&request))
            }));
        }
        let api = Api::new(Arc::clone(&board), Arc::clone(&host), orders.clone(), reloads);
        let control = Control { socket, api };
        let mut serving = Serving::default();
        control.try_open(&mut serving).await;
        tracing::info!(
            host = &*host,
            keepers = board.keepers().len(),
            "keeperd {} runs",
            env!("CARGO_PKG_VERSION")
        );
        systemd::ready();
        board.changed.notify_one();
        tokio::spawn(systemd::report(Arc::clone(&board)));
        let result = loop {
            tokio::select! {
                () = tokio::time::sleep(CONTROL_AGAIN), if serving.is_waiting() => control.try_open(&mut serving).await,
                ended = &mut end => break ended.unwrap_or_else(|_| Err(io::Error::other("the core thread died"))),
                Some(signal) = signals.recv() => {
                    if signal == SIGHUP {
                        // However many come during a reload, one more is due after it.
                        hangup.notify_one();
                        continue;
                    }
                    let again = ending.swap(true, Ordering::Relaxed);
                    systemd::stopping();
                    let (command, word) = if again { (Command::Kill, "at once") } else { (Command::Drain, "politely") };
                    tracing::info!("stopping all keepers {word}");
                    let _ = orders.send(Order::All(command)).await;
                }
            }
        };
        let outlets: Vec<_> = board.panels().iter().map(|panel| panel.outlet()).collect();
        runners.finish(HOOKS_MAX).await;
        // The children's pipes end with their guards; what is buffered is still to be shown.
        let _ = tokio::time::timeout(LAST_WORDS, streams).await;
        let patience = std::time::Instant::now() + LAST_WORDS;
        for outlet in &outlets {
            outlet.flush(patience.saturating_duration_since(std::time::Instant::now()));
        }
        if let Serving::Ours(socket) = serving {
            socket.remove();
        }
        if result.is_ok() {
            tracing::info!("all keepers stopped");
        }
        log.flush(LAST_WORDS);
        result
    }
}

/// The control socket. One that cannot be had costs the status, not the keepers.
struct Control {
    socket: PathBuf,
    api: Api,
}

#[derive(Default)]
enum Serving {
    #[default]
    NotYet,
    /// Another daemon has it, or its place cannot be used now; it is tried again.
    Waiting,
    Ours(OwnSocket),
}

impl Serving {
    fn is_waiting(&self) -> bool {
        matches!(self, Serving::Waiting)
    }
}

impl Control {
    async fn try_open(&self, serving: &mut Serving) {
        let path = self.socket.display();
        *serving = match http::bind(&self.socket).await {
            Ok(Bound::Ours(listener, socket)) => {
                if serving.is_waiting() {
                    tracing::info!(%path, "the control socket is ours now");
                }
                let api = self.api.clone();
                tokio::spawn(http::serve(listener, move |request| {
                    let api = api.clone();
                    async move { api.respond(&request).await }
                }));
                Serving::Ours(socket)
            }
            Ok(Bound::Taken(_)) if serving.is_waiting() => Serving::Waiting,
            Ok(Bound::Taken(pid)) => {
                tracing::warn!(%path, pid, "the control socket is taken by another keeperd; this one runs without until it is free");
                Serving::Waiting
            }
            Err(_) if serving.is_waiting() => Serving::Waiting,
            Err(error) => {
                tracing::warn!(%path, %error, "the control socket cannot be opened: no status from this daemon until it can");
                Serving::Waiting
            }
        };
    }
}

/// Taken by a thread of its own, the only one that does not block them.
///
/// SIGURG is SIGTERM, and SIGWINCH the verdict of the watchdog, that the unit of systemd can send to everybody: who does not ask for them ignores them.
fn watch_signals() -> io::Result<mpsc::Receiver<i32>> {
    let (sender, receiver) = mpsc::channel(SIGNALS);
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGURG])?;
    // Without a watchdog it is a terminal's, whose size has changed.
    if systemd::has_watchdog() {
        signals.add_signal(SIGWINCH)?;
    }
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if let Err(error) = SigSet::all().thread_unblock() {
            tracing::error!(%error, "signals cannot be received: use SIGKILL to stop keeperd");
        }
        for signal in signals.forever() {
            if signal == SIGWINCH {
                // No other thread may turn; the guards see the end of this process.
                std::process::abort();
            }
            // Sixteen signals waiting say what a seventeenth would.
            let _ = sender.try_send(signal);
        }
    })?;
    Ok(receiver)
}

/// Where lines of keepers can go.
fn sinks(config: &Config, log: &LogQueue, format: Format) -> Sinks {
    let render = match format {
        Format::Text => output::render_text,
        Format::Json => output::render_json,
        Format::Journald => output::render_journald,
    };
    Sinks { log: log.clone(), render, journal: Arc::new(Journal::at(&config.journal_socket)) }
}

/// Reads every term's streams until their end; ends when the core thread has ended and all streams have.
async fn read_output(mut new_outputs: mpsc::Receiver<TermOutput>) {
    let terms = tokio_util::task::TaskTracker::new();
    while let Some(output) = new_outputs.recv().await {
        terms.spawn(async move {
            let keeper = Arc::clone(&output.outlet.name);
            if let Err(error) = output::follow(output).await {
                tracing::warn!(keeper = &*keeper, %error, "output of the child cannot be read any more");
            }
        });
    }
    terms.close();
    terms.wait().await;
}
