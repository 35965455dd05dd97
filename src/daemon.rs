//! The daemon as a story: prepare, start the core thread, open the control socket, be ready, wait for a signal, drain, end.
//!
//! This is the edge thread: signals, HTTP, the children's output, systemd. Whatever it does, the core thread goes on.

use crate::config::{Config, HttpConfig, LockConfig};
use crate::core::event::Command;
use crate::core_thread::{self, Order, Start};
use crate::guard::{ChildSpec, LastResort, cgroup};
use crate::health::{self, Watch};
use crate::hooks::{self, Runner, Runners};
use crate::keeper::first_view;
use crate::lock::NodeStatus;
use crate::observe::api::{Api, Outlets};
use crate::observe::board::Board;
use crate::observe::http::{self, Bound, OwnSocket};
use crate::observe::log::{Format, LogQueue};
use crate::observe::series::Series;
use crate::observe::web::Web;
use crate::output::{self, Journal, Outlet, Sinks, TermOutput};
use crate::{clock, systemd};
use nix::sys::signal::SigSet;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Terms whose output may wait to be read: the edge is never that far behind.
const OUTPUTS: usize = 8 * 1024;
const SIGNALS: usize = 16;
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

/// Runs the daemon; 0 after a clean stop, 1 after a failure.
pub fn run(config: Config, log: &LogQueue, format: Format) -> i32 {
    match try_run(config, log, format) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(%error, "keeperd cannot run");
            log.flush(LAST_WORDS);
            1
        }
    }
}

fn try_run(config: Config, log: &LogQueue, format: Format) -> io::Result<()> {
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
    let board = first_board(&config);
    let (orders, for_core) = mpsc::channel(ORDERS);
    let (outputs, new_outputs) = mpsc::channel(OUTPUTS);
    let outlets = open_outlets(&config, log, format)?;
    let mut seed = [0; 16];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    let children = core_thread::prepare_children(&config);
    for (keeper, child) in config.keepers.iter().zip(&children) {
        if let Err(why) = child {
            tracing::warn!(keeper = keeper.name, why, "this host cannot run it and hands over what it wins");
        }
    }
    let hooks = config.keepers.iter().zip(&children).map(|(keeper, child)| {
        let lock_key = core_thread::lock_key(&config, keeper);
        hooks::pair(&keeper.name, &keeper.hooks, child, lock_key, keeper.timing.ttl())
    });
    let (callers, runners): (Vec<_>, Vec<_>) = hooks.unzip();
    let (watches, probes) = probes(&config, &children, &outlets);
    let start = Start {
        hooks: callers,
        outlets: outlets.clone(),
        children,
        probes,
        config,
        board: Arc::clone(&board),
        outputs,
        orders: for_core,
        last_resort,
        cgroup: std::env::var_os("KEEPERD_CGROUP").is_none_or(|value| value != "off"),
        seed: u128::from_ne_bytes(seed),
        foreground: None,
    };
    let (ended, end) = oneshot::channel();
    let core = std::thread::Builder::new().name("core".into()).spawn(move || {
        // The receiver is gone only when the edge has failed.
        let _ = ended.send(core_thread::run(start));
    })?;
    let hooks = runners.into_iter().flatten().collect();
    let edge = Edge {
        hooks,
        watches,
        host,
        socket,
        http,
        board,
        orders,
        new_outputs,
        outlets,
        log: log.clone(),
        end,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(edge.run());
    if core.join().is_err() {
        // Its panic ends every lease: the guards see the end of their sockets with this process.
        std::process::abort();
    }
    runtime.shutdown_timeout(LAST_WORDS);
    result
}

/// All that is configured, before any of it has been heard of.
pub fn first_board(config: &Config) -> Arc<Board> {
    let keepers = config.keepers.iter().map(|keeper| {
        let view = first_view(&keeper.name, keeper.timing.ttl(), clock::wall());
        (view, Series::new(keeper.process.stop_signal))
    });
    let nodes: Vec<String> = match &config.lock {
        LockConfig::Redis(redis) => redis.nodes.iter().map(ToString::to_string).collect(),
        LockConfig::Local(local) => vec![local.directory.display().to_string()],
    };
    Board::new(keepers, nodes.into_iter().map(NodeStatus::unheard).collect())
}

/// The edge's end of the probes, and one for each keeper on the core thread.
fn probes(
    config: &Config,
    children: &[Result<ChildSpec, String>],
    outlets: &[Arc<Outlet>],
) -> (Vec<Watch>, Vec<Option<health::Link>>) {
    let places = health::Places::default();
    let (mut watches, mut links) = (Vec::new(), Vec::new());
    for ((keeper, child), outlet) in config.keepers.iter().zip(children).zip(outlets) {
        let (watch, link) = Watch::new(keeper, child, outlet, &places).unzip();
        watches.extend(watch);
        links.push(link);
    }
    (watches, links)
}

struct Edge {
    hooks: Vec<Runner>,
    watches: Vec<Watch>,
    host: Arc<str>,
    socket: PathBuf,
    http: Option<HttpConfig>,
    board: Arc<Board>,
    orders: mpsc::Sender<Order>,
    new_outputs: mpsc::Receiver<TermOutput>,
    outlets: Vec<Arc<Outlet>>,
    log: LogQueue,
    end: oneshot::Receiver<io::Result<()>>,
}

impl Edge {
    async fn run(self) -> io::Result<()> {
        let Edge { hooks, watches, host, socket, http, board, orders, new_outputs, outlets, log, mut end } =
            self;
        let mut signals = watch_signals()?;
        for watch in watches {
            tokio::spawn(watch.run());
        }
        let streams = tokio::spawn(read_output(new_outputs));
        let hooks = Runners::start(hooks);
        let by_name = |outlet: &Arc<Outlet>| (Arc::clone(&outlet.name), Arc::clone(outlet));
        let named: Arc<Outlets> = Arc::new(outlets.iter().map(by_name).collect());
        if let Some(HttpConfig { listen }) = http {
            let web = Web::new(Arc::clone(&board), Arc::clone(&host), Arc::clone(&named));
            tokio::spawn(http::listen_and_serve(listen, move |request| {
                std::future::ready(web.respond(&request))
            }));
        }
        let api = Api::new(Arc::clone(&board), Arc::clone(&host), named, orders.clone());
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
        let mut stopping = false;
        let result = loop {
            tokio::select! {
                () = tokio::time::sleep(CONTROL_AGAIN), if serving.is_waiting() => control.try_open(&mut serving).await,
                ended = &mut end => break ended.unwrap_or_else(|_| Err(io::Error::other("the core thread died"))),
                Some(signal) = signals.recv() => {
                    let command = match signal {
                        SIGHUP => {
                            tracing::warn!("SIGHUP: reload is not built yet; restart keeperd to change the configuration");
                            continue;
                        }
                        _ if stopping => Command::Kill,
                        _ => Command::Drain,
                    };
                    stopping = true;
                    systemd::stopping();
                    let word = if command == Command::Kill { "at once" } else { "politely" };
                    tracing::info!("stopping all keepers {word}");
                    let _ = orders.send(Order::All(command)).await;
                }
            }
        };
        hooks.finish(HOOKS_MAX).await;
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

/// SIGTERM, SIGINT and SIGHUP, taken by a thread of their own: the only one that does not block them.
fn watch_signals() -> io::Result<mpsc::Receiver<i32>> {
    let (sender, receiver) = mpsc::channel(SIGNALS);
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if let Err(error) = SigSet::all().thread_unblock() {
            tracing::error!(%error, "signals cannot be received: use SIGKILL to stop keeperd");
        }
        for signal in signals.forever() {
            // Sixteen signals waiting say what a seventeenth would.
            let _ = sender.try_send(signal);
        }
    })?;
    Ok(receiver)
}

/// Where each keeper's lines go.
fn open_outlets(config: &Config, log: &LogQueue, format: Format) -> io::Result<Vec<Arc<Outlet>>> {
    let render = match format {
        Format::Text => output::render_text,
        Format::Json => output::render_json,
        Format::Journald => output::render_journald,
    };
    let sinks = Sinks { log: log.clone(), render, journal: Arc::new(Journal::at(&config.journal_socket)) };
    config.keepers.iter().map(|keeper| Outlet::new(&keeper.name, &keeper.output, &sinks)).collect()
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
