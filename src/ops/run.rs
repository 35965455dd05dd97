//! `keeperd run`: one command under one lock, with the caller's terminal. The election, the guard and the nodes are the daemon's; here
//! is only what stands in front of them: how long to wait, which signals to pass on, and which exit code it all comes to.

use crate::child;
use crate::cli;
use crate::clock;
use crate::config::{
    Config, HooksConfig, Isolation, KeeperConfig, LockConfig, OutputConfig, ProcessConfig, RetryCount,
};
use crate::config::{HOOK_TIMEOUT_DEFAULT, check_name};
use crate::core::event::{Command, Event, Reason, Role};
use crate::core::preference::{Preference, Priorities};
use crate::core::restart::{Exit, RestartPolicy, RestartRules};
use crate::core::timing::Timing;
use crate::core_thread::{self, Order, Start};
use crate::daemon::unheard_nodes;
use crate::guard::LastResort;
use crate::hooks;
use crate::keeper::{Foreground, first_view};
use crate::lock::NodeState;
use crate::observe::board::{Board, Panel};
use crate::observe::events::say_reason;
use crate::observe::history::EndReason;
use crate::observe::log::{self, Format, LogQueue};
use crate::observe::series::Series;
use crate::output::{self, Journal, Outlet, Sinks};
use crate::roster::Enlistment;
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::level_filters::LevelFilter;

/// Held by another, without `--wait` or after it.
pub const EXIT_HELD: i32 = 75;
/// Too few nodes to decide.
pub const EXIT_NO_QUORUM: i32 = 69;
/// The lease was lost while the command ran, and the command was ended for it.
pub const EXIT_LEASE_LOST: i32 = 76;
/// As in a shell.
pub const EXIT_CANNOT_EXECUTE: i32 = 126;
pub const EXIT_NOT_FOUND: i32 = 127;

/// Passed on to the command, unless the terminal has sent them to it already.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];
/// They stop this process together with the command, whose lease then runs out unless it is continued in time.
const STOPPING: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];
/// What nodes take to be connected, at the longest.
const CONNECT: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const EVENTS: usize = 1024;
const SIGNALS: usize = 16;
const LAST_WORDS: Duration = Duration::from_millis(300);

/// What was asked for.
#[derive(Debug)]
pub struct Request {
    pub name: String,
    pub wait: Option<Duration>,
    pub ttl: Option<Duration>,
    /// Never empty.
    pub command: Vec<OsString>,
}

/// Runs it and gives the exit code.
pub fn run(config: Config, request: Request, level: LevelFilter, format: Format) -> i32 {
    let (config, request) = match prepare(config, request) {
        Ok(prepared) => prepared,
        Err(why) => {
            eprintln!("keeperd run: {why}");
            return cli::EXIT_USAGE;
        }
    };
    let mut mask = SigSet::all();
    STOPPING.into_iter().for_each(|signal| mask.remove(signal));
    // Before any thread is started, so that all inherit it.
    let started = mask.thread_block().map_err(io::Error::from);
    let started = started.and_then(|()| LogQueue::start(format, &config.journal_socket));
    let result = started.and_then(|queue| {
        log::install(&queue, format, level);
        let code = in_front(config, request, &queue);
        queue.flush(LAST_WORDS);
        code
    });
    result.unwrap_or_else(|error| {
        eprintln!("keeperd run: {error}");
        EXIT_NO_QUORUM
    })
}

/// The configuration with one keeper: this one.
fn prepare(config: Config, request: Request) -> Result<(Config, Request), String> {
    check_name(&request.name)?;
    let known = config.keepers.iter().find(|keeper| keeper.name == request.name);
    let timing = match (request.ttl, known) {
        (None, Some(keeper)) => keeper.timing,
        (ttl, _) => {
            let ttl = ttl.unwrap_or(config.ttl);
            Timing::new(ttl, Timing::default_stop_timeout(ttl)).map_err(|why| format!("ttl: {why}"))?
        }
    };
    let keeper = KeeperConfig {
        name: request.name.clone(),
        lock: known.map_or(&request.name, |keeper| &keeper.lock).clone(),
        timing,
        process: process(),
        restart: RestartRules { policy: RestartPolicy::Never, ..RestartRules::default() },
        hooks: HooksConfig { on_acquired: None, on_lost: None, timeout: HOOK_TIMEOUT_DEFAULT },
        output: OutputConfig::Inherit,
        priorities: Priorities::default(),
        hold: Preference::HOLD_DEFAULT,
        health: None,
        ready: None,
    };
    let mut lock = config.lock;
    if let LockConfig::Redis(redis) = &mut lock
        && !redis.restart_quarantine.is_zero()
    {
        // A node that forgets this lease must wait for as long as it lasts.
        let ttl = timing.ttl();
        redis.restart_quarantine = redis.restart_quarantine.max(ttl + ttl / 100 + Duration::from_secs(2));
    }
    Ok((Config { keepers: vec![keeper], lock, ..config }, request))
}

/// As the caller is: nothing of it is changed.
fn process() -> ProcessConfig {
    ProcessConfig {
        command: vec![String::new()],
        working_dir: None,
        env: BTreeMap::new(),
        env_file: None,
        clear_env: false,
        user: None,
        group: None,
        groups: None,
        umask: None,
        limits: BTreeMap::new(),
        nice: None,
        no_new_privileges: false,
        isolate: Isolation::None,
        stop_signal: Signal::SIGTERM,
    }
}

fn in_front(config: Config, request: Request, log: &LogQueue) -> io::Result<i32> {
    let keeper = &config.keepers[0];
    let name = keeper.name.clone();
    let child = child::prepare(&name, &keeper.process, &child::inherited_environment(), None);
    let child = child.map(|mut spec| {
        spec.argv = request.command;
        spec
    });
    let lock_key = config.lock_key(keeper);
    let hooks = hooks::pair(&name, &keeper.hooks, &child, lock_key.clone(), keeper.timing.ttl()).0;
    let journal = Arc::new(Journal::at(&config.journal_socket));
    let sinks = Sinks { log: log.clone(), render: output::render_text, journal };
    let outlet = Outlet::new(&name, &keeper.output, &sinks)?;
    let board = Board::new(unheard_nodes(&config), clock::wall());
    let why = "keeperd run has started";
    let view = first_view(&name, keeper.timing, clock::wall(), why);
    let panel = Panel::new(view, Arc::clone(&outlet), Series::new(keeper.process.stop_signal));
    board.arrange(vec![Arc::clone(&panel)]);
    let (orders, for_core) = mpsc::channel(SIGNALS);
    let (outputs, _) = mpsc::channel(1);
    let (to_child, for_child) = mpsc::channel(SIGNALS);
    let (events, happened) = mpsc::channel(EVENTS);
    let mut seed = [0; 16];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    let patience = patience(&config);
    let enlistment = Enlistment {
        settings: keeper.clone(),
        lock_key,
        child,
        hooks,
        outlet,
        probes: None,
        series: panel.series(),
        panel,
        foreground: Some(Foreground {
            // Closed by the caller: then the command reads nothing.
            stdin: io::stdin().as_fd().try_clone_to_owned().ok(),
            signals: for_child,
            events,
        }),
        why,
    };
    let start = Start {
        config,
        keepers: vec![enlistment],
        board: Arc::clone(&board),
        outputs,
        orders: for_core,
        last_resort: LastResort::install_in_front()?,
        cgroup: std::env::var_os("KEEPERD_CGROUP").is_none_or(|value| value != "off"),
        seed: u128::from_ne_bytes(seed),
    };
    let signals = watch_signals()?;
    let (ended, end) = oneshot::channel();
    let core = std::thread::Builder::new().name("core".into()).spawn(move || {
        // The receiver is there until this is said.
        let _ = ended.send(core_thread::run(start));
    })?;
    let now = Instant::now();
    let attendant = Attendant {
        name,
        board,
        orders,
        to_child,
        give_up_at: request.wait.or(patience).map(|span| now + span),
        waits: request.wait.is_some(),
        stage: Stage::Waiting,
        early: Vec::new(),
        code: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(attendant.attend(happened, signals, end));
    if core.join().is_err() {
        // Its panic ends the lease: the guard sees the end of its socket with this process.
        std::process::abort();
    }
    code
}

/// Without `--wait`: for nodes to be connected, and the retries of one candidate's round. `None`: for ever.
fn patience(config: &Config) -> Option<Duration> {
    match &config.lock {
        LockConfig::Local(_) => Some(CONNECT),
        LockConfig::Redis(redis) => match redis.retry_count {
            RetryCount::Forever => None,
            RetryCount::Times(times) => {
                Some(CONNECT + redis.retry_delay.saturating_mul(times.saturating_mul(3)) / 2)
            }
        },
    }
}

/// A signal, and whether the terminal has sent it to the whole process group.
type Arrived = (i32, bool);

fn watch_signals() -> io::Result<mpsc::Receiver<Arrived>> {
    let (sender, receiver) = mpsc::channel(SIGNALS);
    let mut mask = SigSet::empty();
    // Blocked, an ignored one would be read all the same.
    PASSED_ON.into_iter().filter(|signal| !is_ignored(*signal)).for_each(|signal| mask.add(signal));
    let arrivals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        while let Ok(Some(info)) = arrivals.read_signal() {
            let by_terminal = info.ssi_code == libc::SI_KERNEL;
            // Sixteen signals waiting say what a seventeenth would.
            let _ = sender.try_send((info.ssi_signo.cast_signed(), by_terminal));
        }
    })?;
    Ok(receiver)
}

fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal as i32 - 1) & 1 == 1
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// For the lock.
    Waiting,
    /// The lock is ours, the command not started yet.
    Elected,
    Running,
}

/// Follows the one keeper and decides nothing but the exit code and the end.
struct Attendant {
    name: String,
    board: Arc<Board>,
    orders: mpsc::Sender<Order>,
    to_child: mpsc::Sender<i32>,
    give_up_at: Option<Instant>,
    /// `--wait` was given.
    waits: bool,
    stage: Stage,
    /// Signals for a command that has not started.
    early: Vec<i32>,
    code: Option<i32>,
}

impl Attendant {
    async fn attend(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut signals: mpsc::Receiver<Arrived>,
        mut end: oneshot::Receiver<io::Result<()>>,
    ) -> io::Result<i32> {
        loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => self.on_event(event),
                Some((signal, by_terminal)) = signals.recv() => self.on_signal(signal, by_terminal),
                ended = &mut end => {
                    ended.unwrap_or_else(|_| Err(io::Error::other("the core thread died")))?;
                    while let Ok(event) = events.try_recv() {
                        self.on_event(event);
                    }
                    return Ok(self.code.unwrap_or(EXIT_NO_QUORUM));
                }
                () = tokio::time::sleep(LOOK_EVERY), if self.stage == Stage::Waiting => self.look_at_nodes(),
            }
        }
    }

    /// The first verdict counts; everything is ended in order.
    fn finish(&mut self, code: i32, why: Option<String>) {
        if self.code.is_some() {
            return;
        }
        self.code = Some(code);
        if let Some(why) = why {
            eprintln!("keeperd run: {why}");
        }
        // With sixteen commands waiting it has been told.
        let _ = self.orders.try_send(Order::All(Command::Drain));
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::RoleChanged { to: Role::Leader, reason: Reason::Won, .. } => self.stage = Stage::Elected,
            Event::RoleChanged { reason, .. } => self.on_reason(&reason),
            Event::ChildStarted { .. } => {
                self.stage = Stage::Running;
                // Elected at the very end of the wait: it did begin, and 75 would say that it had not.
                if matches!(self.code, Some(EXIT_HELD | EXIT_NO_QUORUM)) {
                    self.code = Some(EXIT_LEASE_LOST);
                }
                for signal in self.early.drain(..) {
                    let _ = self.to_child.try_send(signal);
                }
            }
            Event::ChildExited { exit, .. } => self.finish(
                match exit {
                    Exit::Code(code) => code,
                    Exit::Signal(signal) => 128 + signal,
                },
                None,
            ),
            Event::HolderSeen { holder } if self.stage == Stage::Waiting && !self.waits => {
                let by = holder.map_or("a client that is not keeperd".to_owned(), |holder| {
                    format!("{} (pid {})", holder.host, holder.pid)
                });
                self.finish(
                    EXIT_HELD,
                    Some(format!("{} is held by {by}; --wait 1m waits for it", self.name)),
                );
            }
            Event::HolderSeen { .. }
            | Event::Elected { .. }
            | Event::Extended { .. }
            | Event::RestartBegins { .. }
            | Event::ChildRestarts { .. }
            | Event::HostFit
            | Event::HostUnfit { .. }
            | Event::StopSent { .. }
            | Event::TreeDead { .. }
            | Event::TreeOutlivesLease
            | Event::ClockAhead { .. }
            | Event::Bids { .. }
            | Event::Released { .. } => {}
        }
    }

    fn on_reason(&mut self, reason: &Reason) {
        let why = say_reason(reason);
        match EndReason::of(reason) {
            Some(EndReason::LeaseLost | EndReason::GuardLost) if self.stage == Stage::Running => {
                self.finish(EXIT_LEASE_LOST, Some(format!("the lock is lost, the command was ended: {why}")));
            }
            Some(EndReason::Pause) => self.on_pause(&why),
            // It was not started, and may be yet.
            Some(EndReason::LeaseLost | EndReason::GuardLost | EndReason::TooLate) => {
                self.stage = Stage::Waiting
            }
            Some(EndReason::ExecFailed | EndReason::LaunchFailed | EndReason::NeverStarted) => {
                let absent = matches!(reason, Reason::ExecFailed { errno: libc::ENOENT, .. });
                let code = if absent { EXIT_NOT_FOUND } else { EXIT_CANNOT_EXECUTE };
                self.finish(code, Some(why));
            }
            Some(
                EndReason::Exited
                | EndReason::GiveUp
                | EndReason::Stop
                | EndReason::StepDown
                | EndReason::Outbid
                | EndReason::Reload
                | EndReason::Restart
                | EndReason::Health,
            )
            | None => {}
        }
    }

    /// On all hosts, for there is no other here.
    fn on_pause(&mut self, why: &str) {
        let name = &self.name;
        let end = format!("keeperd resume {name} --everywhere ends that");
        match self.stage {
            Stage::Running => {
                self.finish(EXIT_LEASE_LOST, Some(format!("the command was ended: {why}; {end}")));
            }
            Stage::Waiting if !self.waits => {
                self.finish(EXIT_HELD, Some(format!("{name} is {why}; {end}; --wait 1m waits for it")));
            }
            Stage::Waiting | Stage::Elected => self.stage = Stage::Waiting,
        }
    }

    fn on_signal(&mut self, signal: i32, by_terminal: bool) {
        match self.stage {
            Stage::Waiting => self.finish(128 + signal, None),
            Stage::Elected => self.early.push(signal),
            Stage::Running if by_terminal => {}
            Stage::Running => drop(self.to_child.try_send(signal)),
        }
    }

    /// Gives up when the time is over, or when waiting is of no use.
    fn look_at_nodes(&mut self) {
        let nodes = self.board.nodes();
        let quorum = nodes.len() / 2 + 1;
        let serving = nodes.iter().filter(|node| node.state == NodeState::Serving).count();
        let hopeless = |state| matches!(state, NodeState::Denied | NodeState::Quarantined);
        let usable = nodes.iter().filter(|node| !hopeless(node.state)).count();
        let in_vain = !self.waits && !nodes.is_empty() && usable < quorum;
        if !in_vain && self.give_up_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        if serving >= quorum {
            let why = format!("{} is held by another or contended; --wait waits longer", self.name);
            return self.finish(EXIT_HELD, Some(why));
        }
        let mut why =
            format!("no quorum: {serving} of {} nodes can be used, {quorum} are needed", nodes.len());
        for node in nodes.iter().filter(|node| node.state != NodeState::Serving) {
            let reason = node.reason.as_deref().unwrap_or("no answer yet");
            why.push_str(&format!("\n  {} {}: {reason}", node.address, node.state.name()));
        }
        self.finish(EXIT_NO_QUORUM, Some(why));
    }
}
