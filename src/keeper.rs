//! The shell of one keeper: carries out what its [`Election`] wants, and tells it what happened. No decision is made here.

use crate::child::term_variables;
use crate::clock;
use crate::core::election::{Action, Election, GuardReport, HealthReport};
use crate::core::event::{Command, Event, Reason, Role};
use crate::core::lease::{FencingToken, Value};
use crate::core::request::FromNode;
use crate::core::spread::Spread;
use crate::core::time::{Instant, WallTime};
use crate::core::timing::{Deadlines, Timing};
use crate::core_thread::Told;
use crate::guard::{self, ChildSpec, Duty, Guard, LastResort, Launch, Lost, Newborn, Wiring};
use crate::health;
use crate::hooks::Caller;
use crate::lock::{Ask, Engine, KeeperId};
use crate::observe::board::{Board, HolderView, KeeperView, LastChange, Panel};
use crate::observe::events;
use crate::observe::history::{EndReason, History};
use crate::observe::series::Recorder;
use crate::output::{Ended, Outlet, TermOutput};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Leases this short want a guard that is never kept waiting for a processor.
const REALTIME_WANTED_BELOW: Duration = Duration::from_secs(5);
/// Pace of the last resort: the tree of a lost guard is looked for and killed until none is left.
const LAST_RESORT_FIRST: Duration = Duration::from_millis(1);
const LAST_RESORT_MAX: Duration = Duration::from_millis(10);
/// Frames of a guard taken before the timers get their turn: more than it ever has to say at once.
const FRAMES_PER_TURN: usize = 64;
/// Ends of main processes that the edge may not have heard of yet.
const ENDS: usize = 16;
/// When the edge was reading the view just then.
const VIEW_AGAIN: Duration = Duration::from_millis(10);
/// A loop that is this late has stopped turning, as far as the watchdog is concerned.
const TURN_SLACK: Duration = Duration::from_secs(1);

/// What all keepers of the daemon share, on the core thread.
#[derive(Debug)]
pub struct Shared {
    pub engine: Engine,
    /// Names of the nodes, for log lines.
    pub nodes: Vec<String>,
    pub board: Arc<Board>,
    pub outputs: mpsc::Sender<TermOutput>,
    pub last_resort: RefCell<LastResort>,
    /// Guards that live: every other child of the daemon is an orphan of a lost one.
    pub guards: RefCell<BTreeSet<u32>>,
    /// Guards that are being started: they may be children of the daemon already, and are not in `guards` yet.
    pub births: Cell<u32>,
    /// Use cgroups where there are any.
    pub cgroup: bool,
    /// Who has which keeper, for the order in which hosts stand.
    pub spread: RefCell<Spread>,
}

/// The guard of the current term.
#[derive(Debug)]
enum Slot {
    Empty,
    /// Being started on another thread; what it is to be told meanwhile.
    Launching {
        birth: JoinHandle<io::Result<Newborn>>,
        token: FencingToken,
        waiting: Vec<guard::Command>,
        /// Given up before it was born.
        unwanted: bool,
    },
    Guard(Guard),
    /// It died or was killed; its tree is being killed from here.
    Mourning {
        lost: Lost,
        again: Duration,
    },
}

/// What a keeper knows of the one with other settings that it replaces.
#[derive(Debug)]
pub struct Past {
    /// Why there is a keeper now, as `status` shows it.
    pub why: &'static str,
    pub history: History,
    pub paused: bool,
}

/// One keeper on this host.
#[derive(Debug)]
pub struct Keeper {
    pub name: Arc<str>,
    pub panel: Arc<Panel>,
    pub past: Past,
    pub recorder: Recorder,
    pub id: KeeperId,
    /// The lock key, as the child is told.
    pub lock_key: String,
    /// The child but for its token; or why there cannot be one here.
    pub child: Result<ChildSpec, String>,
    pub outlet: Arc<Outlet>,
    pub hooks: Caller,
    pub election: Election,
    pub inbox: mpsc::Receiver<FromNode>,
    pub commands: mpsc::Receiver<Told>,
    /// `None`: nothing of it is probed.
    pub probes: Option<health::Link>,
    /// `None`: a daemon's keeper.
    pub foreground: Option<Foreground>,
    pub shared: Rc<Shared>,
}

/// What `keeperd run` has to do with its keeper: it stands in front of it, with the caller's terminal.
#[derive(Debug)]
pub struct Foreground {
    /// The caller's; the child gets it.
    pub stdin: Option<OwnedFd>,
    /// For the child, once it has started.
    pub signals: mpsc::Receiver<i32>,
    /// Everything that happens; what finds no room is lost.
    pub events: mpsc::Sender<Event>,
}

/// Something that happened, to be told to the election.
enum Input {
    Node(FromNode),
    Command(Told),
    Health(HealthReport),
    Signal(i32),
    Born(io::Result<Newborn>),
    Guard(Result<guard::Event, Lost>),
    LastResort,
    Time,
}

/// Runs a keeper until its election has stopped; what the next of its name is to know.
pub async fn run(keeper: Keeper) -> Past {
    let mut shell = Shell::new(keeper);
    shell.run().await;
    let Shell { keeper, history, .. } = shell;
    keeper.shared.engine.unregister(keeper.id);
    keeper.shared.spread.borrow_mut().leave(keeper.id.place());
    Past { why: "it has other settings since a reload", history, paused: keeper.election.is_paused() }
}

struct Shell {
    keeper: Keeper,
    slot: Slot,
    view: KeeperView,
    history: History,
    /// The other keeperd that had it last: host and pid.
    predecessor: Option<(String, u32)>,
    /// How the main process ended last.
    ended: Option<guard::Exit>,
    /// Tells the edge how the main processes of this term end.
    ends: Option<mpsc::Sender<Ended>>,
    stale_view: bool,
    holding: bool,
}

impl Shell {
    fn new(mut keeper: Keeper) -> Self {
        let mut view = first_view(&keeper.name, *keeper.election.timing(), clock::wall(), keeper.past.why);
        let history = std::mem::take(&mut keeper.past.history);
        view.history = history.runs().cloned().collect();
        if keeper.past.paused {
            keeper.election.handle_command(clock::now(), Command::Pause);
        }
        Shell {
            keeper,
            slot: Slot::Empty,
            view,
            history,
            predecessor: None,
            ended: None,
            ends: None,
            stale_view: true,
            holding: false,
        }
    }

    async fn run(&mut self) {
        loop {
            self.carry_out();
            if self.keeper.election.is_stopped() {
                break;
            }
            let input = self.next_input().await;
            self.weigh();
            self.take(input);
            // After a freeze the guard's word is older than our timers, and explains them.
            for _ in 0..FRAMES_PER_TURN {
                let Some(said) = waiting_frame(&mut self.slot).await else { break };
                self.carry_out();
                self.guard_said(said);
            }
            self.carry_out();
            self.weigh();
            self.keeper.election.handle_timeout(clock::now());
        }
        self.keeper.panel.promise_turn(None);
    }

    /// What the daemon's other keepers are at matters while this one stands by.
    fn weigh(&mut self) {
        if !self.keeper.election.is_holding() {
            let load = self.keeper.shared.spread.borrow().load(self.keeper.id.place());
            self.keeper.election.handle_load(load);
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Node(from) => self.keeper.election.handle_node(clock::now(), from),
            Input::Command(Told { command, answer }) => {
                let refusal = self.keeper.election.refuses(command);
                self.keeper.election.handle_command(clock::now(), command);
                // Nobody waits for it any more: it is done all the same.
                let _ = answer.map(|answer| answer.send(refusal.map_or(Ok(()), Err)));
            }
            Input::Health(report) => self.keeper.election.handle_health(clock::now(), report),
            Input::Signal(signal) => self.tell(guard::Command::Signal(signal)),
            Input::Born(newborn) => self.born(newborn),
            Input::Guard(said) => self.guard_said(said),
            Input::LastResort => self.last_resort(),
            Input::Time => {}
        }
    }

    async fn next_input(&mut self) -> Input {
        let now = clock::boot();
        let timeout = self.keeper.election.poll_timeout();
        let held = self.keeper.election.is_holding();
        let turn_by = timeout.filter(|_| held).map(|at| at.max(now) + TURN_SLACK);
        self.keeper.panel.promise_turn(turn_by);
        let mut pause = timeout.map_or(Duration::from_secs(3600), |at| at.since(now));
        if self.stale_view {
            pause = pause.min(VIEW_AGAIN);
        }
        tokio::select! {
            // The guard's word first: its deadlines matter most.
            biased;
            input = from_guard(&mut self.slot) => input,
            Some(command) = self.keeper.commands.recv() => Input::Command(command),
            report = health::Link::next(&mut self.keeper.probes) => Input::Health(report),
            Some(signal) = next_signal(&mut self.keeper.foreground) => Input::Signal(signal),
            Some(from) = self.keeper.inbox.recv() => Input::Node(from),
            () = tokio::time::sleep(pause) => Input::Time,
        }
    }

    // ── what the election wants ──

    fn carry_out(&mut self) {
        while let Some(action) = self.keeper.election.poll_action() {
            match action {
                Action::Ask { node, ticket, request } => {
                    self.keeper.shared.engine.ask(self.keeper.id, node, Ask { ticket, request });
                }
                Action::Launch { value, token, deadlines, start_by } => {
                    self.launch(value, token, deadlines, start_by);
                }
                Action::Spawn { start_by } => self.tell(guard::Command::Spawn { start_by }),
                Action::Restart { kill_by } => self.tell(guard::Command::Restart { kill_by }),
                Action::Prolong { deadlines } => self.tell(guard::Command::Deadlines(deadlines)),
                Action::Stop { kill_by } => self.tell(guard::Command::Stop { kill_by }),
                Action::Kill => self.tell(guard::Command::Kill),
                Action::KillGuard => match &mut self.slot {
                    Slot::Guard(guard) => guard.kill(),
                    Slot::Launching { unwanted, .. } => *unwanted = true,
                    Slot::Empty | Slot::Mourning { .. } => {}
                },
                Action::QuitGuard => self.dismiss(),
                Action::Emit(event) => self.note(&event),
            }
        }
        let place = self.keeper.id.place();
        self.keeper.shared.spread.borrow_mut().seat(place, self.keeper.election.seat());
        let holding = self.keeper.election.is_holding();
        if holding != self.holding {
            self.holding = holding;
            self.keeper.shared.engine.hold(self.keeper.id, holding);
        }
        if let Some(probes) = &self.keeper.probes {
            probes.subject.set(self.keeper.election.probed());
        }
        self.show();
    }

    /// Starts the guard on another thread: forking may be held up by the kernel, and leases may not.
    fn launch(&mut self, value: Value, token: FencingToken, deadlines: Deadlines, start_by: Instant) {
        assert!(matches!(self.slot, Slot::Empty), "one guard per term, and terms do not overlap");
        match self.prepare(value, token, deadlines) {
            Ok(birth) => {
                self.keeper.shared.births.update(|births| births + 1);
                // Not after ARMED: the frames keep their order, and the round trip would only cost time.
                let waiting = vec![guard::Command::Spawn { start_by }];
                self.slot = Slot::Launching { birth, token, waiting, unwanted: false };
            }
            Err(error) => {
                self.keeper.election.handle_guard(clock::now(), GuardReport::LaunchFailed(error));
            }
        }
    }

    fn prepare(
        &self,
        value: Value,
        token: FencingToken,
        deadlines: Deadlines,
    ) -> Result<JoinHandle<io::Result<Newborn>>, String> {
        let keeper = &self.keeper;
        let shared = &keeper.shared;
        let mut spec = keeper.child.clone()?;
        let ttl = keeper.election.timing().ttl();
        spec.env_over.extend(term_variables(&keeper.name, &keeper.lock_key, token, ttl));
        let lock = shared.engine.descriptor(keeper.id).transpose().map_err(|error| error.to_string())?;
        let releaser = shared.engine.releaser(&keeper.lock_key, value);
        let stop_timeout = keeper.election.timing().stop_timeout();
        let cgroup = shared.cgroup;
        let output = keeper.outlet.wiring;
        let duty = if keeper.foreground.is_some() { Duty::Foreground } else { Duty::Term };
        let stdin = keeper.foreground.as_ref().and_then(|front| front.stdin.as_ref());
        let stdin = stdin.map(OwnedFd::try_clone).transpose().map_err(|error| error.to_string())?;
        // The thread may end when it likes: a guard asks for no signal on its parent's death (supervisors.md 2).
        Ok(tokio::task::spawn_blocking(move || {
            Newborn::start(&Launch {
                duty,
                executable: Path::new(guard::OWN_EXECUTABLE),
                spec: &spec,
                output,
                token: token.0,
                deadlines,
                stop_timeout,
                releaser: releaser.as_deref(),
                lock: lock.as_ref().map(AsFd::as_fd),
                stdin: stdin.as_ref().map(AsFd::as_fd),
                cgroup,
            })
        }))
    }

    /// The guard exists: it is told what has come up since.
    fn born(&mut self, newborn: io::Result<Newborn>) {
        let slot = std::mem::replace(&mut self.slot, Slot::Empty);
        let Slot::Launching { token, waiting, unwanted, .. } = slot else { return };
        self.keeper.shared.births.update(|births| births - 1);
        match newborn.and_then(Guard::adopt) {
            Ok((mut guard, output)) => {
                self.keeper.shared.guards.borrow_mut().insert(guard.pid());
                for command in waiting {
                    guard.send(command);
                }
                if unwanted {
                    guard.kill();
                }
                self.slot = Slot::Guard(guard);
                self.hand_on(token, output);
            }
            Err(error) => {
                let report = GuardReport::LaunchFailed(error.to_string());
                self.keeper.election.handle_guard(clock::now(), report);
            }
        }
    }

    /// The child's output is the edge's to read.
    fn hand_on(&mut self, token: FencingToken, output: guard::Output) {
        if self.keeper.outlet.wiring != Wiring::Pipes {
            return;
        }
        let outlet = Arc::clone(&self.keeper.outlet);
        let guard::Output { stdout, stderr } = output;
        let (tell, ended) = mpsc::channel(ENDS);
        self.ends = Some(tell);
        if self.keeper.shared.outputs.try_send(TermOutput { outlet, token, stdout, stderr, ended }).is_err() {
            let keeper = &*self.keeper.name;
            tracing::error!(keeper, "output of the child is lost: the edge thread does not take it");
        }
    }

    fn tell(&mut self, command: guard::Command) {
        match &mut self.slot {
            Slot::Guard(guard) => {
                guard.send(command);
            }
            Slot::Launching { waiting, .. } => waiting.push(command),
            Slot::Empty | Slot::Mourning { .. } => {}
        }
    }

    /// The tree is dead and the lock is free: the guard goes without releasing anything itself.
    fn dismiss(&mut self) {
        let mut guard = match std::mem::replace(&mut self.slot, Slot::Empty) {
            Slot::Guard(guard) => guard,
            Slot::Launching { .. } => {
                unreachable!("nothing is released before the guard is born and its tree is dead")
            }
            Slot::Empty | Slot::Mourning { .. } => return,
        };
        guard.send(guard::Command::Quit);
        let shared = Rc::clone(&self.keeper.shared);
        tokio::task::spawn_local(async move {
            guard.gone().await;
            shared.guards.borrow_mut().remove(&guard.pid());
        });
    }

    // ── what the guard says ──

    fn guard_said(&mut self, said: Result<guard::Event, Lost>) {
        let report = match said {
            Ok(event) => {
                self.look_for_leftovers(event);
                match self.report(event) {
                    Some(report) => report,
                    None => return,
                }
            }
            Err(lost) => {
                let keeper = &*self.keeper.name;
                tracing::debug!(keeper, %lost, "guard lost");
                self.keeper.shared.guards.borrow_mut().remove(&lost.pid);
                self.slot = Slot::Mourning { lost, again: LAST_RESORT_FIRST };
                GuardReport::Lost("died")
            }
        };
        self.keeper.election.handle_guard(clock::now(), report);
    }

    /// Somebody whose script seems to do nothing wants to know that it went into the background and was killed there.
    fn look_for_leftovers(&mut self, event: guard::Event) {
        match event {
            guard::Event::Exited(exit) => self.ended = Some(exit),
            guard::Event::TreeDead { killed, last: false } if killed > 0 => {
                if let Some(guard::Exit::Code(code)) = self.ended {
                    tracing::info!(
                        keeper = &*self.keeper.name,
                        code,
                        killed,
                        "the child ended and left processes behind, which were killed; a script that puts itself into the \
                         background must be told to stay in the foreground"
                    );
                }
            }
            guard::Event::Armed(_)
            | guard::Event::Ack(_)
            | guard::Event::Started { .. }
            | guard::Event::ExecFailed { .. }
            | guard::Event::Stopping(_)
            | guard::Event::TreeDead { .. } => {}
        }
    }

    /// One pass over what a lost guard has left behind.
    fn last_resort(&mut self) {
        let Slot::Mourning { lost, again } = &mut self.slot else { return };
        let shared = &self.keeper.shared;
        if shared.births.get() > 0 {
            // A guard that is just being born would be taken for an orphan.
            return;
        }
        let proven = shared.last_resort.borrow_mut().pass(lost, &shared.guards.borrow());
        *again = (*again * 2).min(LAST_RESORT_MAX);
        if proven {
            self.slot = Slot::Empty;
            self.keeper.election.handle_guard(clock::now(), GuardReport::TreeDead { killed: 0, last: true });
        }
    }

    /// The guard's frames in the election's words.
    fn report(&self, event: guard::Event) -> Option<GuardReport> {
        Some(match event {
            guard::Event::Armed(report) => {
                // The kill margin of 250 ms covers a starved guard only just (review.md B).
                if !report.realtime && self.keeper.election.timing().ttl() < REALTIME_WANTED_BELOW {
                    let keeper = &*self.keeper.name;
                    tracing::warn!(
                        keeper,
                        "the guard has no real-time priority and the lease is short: on a busy host a kill may come late. \
                         Allow it (LimitRTPRIO=1) or use a ttl of 5 s or more"
                    );
                }
                GuardReport::Armed
            }
            guard::Event::Ack(ack) => GuardReport::Acked { accepted: ack.accepted },
            guard::Event::Started { pid, .. } => GuardReport::Started { pid },
            guard::Event::ExecFailed { stage: guard::Stage::Late, .. } => GuardReport::TooLate,
            guard::Event::ExecFailed { stage, errno } => {
                GuardReport::ExecFailed { stage: self.say_stage(stage), errno }
            }
            guard::Event::Exited(exit) => GuardReport::Exited(exit),
            guard::Event::Stopping(guard::Why::Deadline) => GuardReport::Stopping,
            guard::Event::Stopping(guard::Why::Command | guard::Why::Orphaned) => return None,
            guard::Event::TreeDead { killed, last } => GuardReport::TreeDead { killed, last },
        })
    }

    /// The stage of a failed start, with the name that failed where it has one.
    fn say_stage(&self, stage: guard::Stage) -> String {
        let Ok(child) = &self.keeper.child else { return stage.as_str().to_owned() };
        let text = stage.as_str();
        if matches!(stage, guard::Stage::Namespace | guard::Stage::Proc) {
            return format!("{text} (isolate = \"pid\" needs root or CAP_SYS_ADMIN)");
        }
        let named: [(guard::Stage, Option<&OsStr>); 3] = [
            (guard::Stage::Exec, child.argv.first().map(OsString::as_os_str)),
            (guard::Stage::WorkingDir, child.working_dir.as_deref().map(Path::as_os_str)),
            (guard::Stage::EnvFile, child.env_file.as_ref().map(|file| file.path.as_os_str())),
        ];
        match named.into_iter().find(|(named, _)| *named == stage) {
            Some((_, Some(name))) => format!("{text} of {}", name.display()),
            Some((_, None)) | None => text.to_owned(),
        }
    }

    // ── what people see ──

    fn note(&mut self, event: &Event) {
        events::log(&self.keeper.name, &self.keeper.shared.nodes, event);
        self.keeper.hooks.note(event);
        let now = clock::now();
        self.keeper.recorder.note(event, now);
        if let Some(front) = &self.keeper.foreground {
            let _ = front.events.try_send(event.clone());
        }
        let at = now.wall;
        // The end of a child that was told to stop is no news.
        let stopped =
            matches!(event, Event::ChildExited { .. }) && self.keeper.election.role() == Role::SteppingDown;
        if let Some(mut reason) = events::news(event).filter(|_| !stopped) {
            if let (Event::RoleChanged { to: Role::Cooldown, .. }, Some(last)) =
                (event, &self.view.last_change)
            {
                // That the lock is free by now is not why this host stays out.
                let cooldown = humantime::format_duration(self.keeper.election.cooldown());
                reason = format!("{}; this host stays out of it for {cooldown}", last.reason);
            } else if let (Event::RoleChanged { reason: Reason::Released, .. }, Some(last)) =
                (event, &self.view.last_change)
            {
                // Why it moved is what people ask afterwards.
                reason = format!("{}; {reason}", last.reason);
            } else if let (Event::RoleChanged { reason: Reason::Won, .. }, Some((host, pid))) =
                (event, self.predecessor.take())
            {
                reason = format!("{reason}; before, {host} had it (keeperd's pid {pid})");
            }
            self.view.last_change = Some(LastChange { at, reason });
            self.stale_view = true;
        }
        if let Event::RoleChanged { .. } = event {
            self.view.since = at;
        }
        if self.history.note(event, at) {
            self.view.history = self.history.runs().cloned().collect();
            self.stale_view = true;
        }
        if let (Event::ChildExited { exit, .. }, Some(ends)) = (event, &self.ends) {
            let failed = match self.history.last_end().map(|end| end.reason) {
                Some(EndReason::Exited) => !self.keeper.election.is_success(*exit),
                Some(EndReason::Health) => true,
                Some(_) | None => false,
            };
            // With so many waiting, one line less in the log is no loss.
            let _ = ends.try_send(Ended { exit: *exit, failed });
        }
        self.view.role = self.keeper.election.role();
    }

    fn show(&mut self) {
        let election = &self.keeper.election;
        let before = self.view.clone();
        self.view.role = election.role();
        self.view.paused_everywhere = election.is_paused_everywhere();
        self.view.token = election.token();
        self.view.pid = election.child_pid();
        self.view.valid_until = election.valid_until();
        self.view.restarts = election.restarts();
        self.view.holder = match election.value() {
            Some(value) => Some(HolderView {
                host: Some(self.keeper.shared.engine.identity().host.clone()),
                pid: Some(self.keeper.shared.engine.identity().pid),
                value: value.to_string(),
            }),
            None => election.holder().map(|held| HolderView {
                host: held.holder.as_ref().map(|holder| holder.host.clone()),
                pid: held.holder.as_ref().map(|holder| holder.pid),
                value: String::from_utf8_lossy(&held.value).into_owned(),
            }),
        };
        if let (None, Some(HolderView { host: Some(host), pid: Some(pid), .. })) =
            (election.value(), &self.view.holder)
        {
            self.predecessor = Some((host.clone(), *pid));
        }
        if self.stale_view || self.view != before {
            self.stale_view = !self.keeper.shared.board.try_put(&self.keeper.panel, &self.view);
        }
    }
}

/// What the guard has said already, without waiting.
async fn waiting_frame(slot: &mut Slot) -> Option<Result<guard::Event, Lost>> {
    let Slot::Guard(guard) = slot else { return None };
    tokio::select! {
        biased;
        said = guard.recv() => Some(said),
        () = std::future::ready(()) => None,
    }
}

async fn next_signal(foreground: &mut Option<Foreground>) -> Option<i32> {
    match foreground {
        Some(front) => front.signals.recv().await,
        None => std::future::pending().await,
    }
}

/// Cancel-safe: nothing is lost when another input comes first.
async fn from_guard(slot: &mut Slot) -> Input {
    match slot {
        Slot::Empty => std::future::pending().await,
        Slot::Launching { birth, .. } => {
            Input::Born(birth.await.unwrap_or_else(|error| Err(io::Error::other(error))))
        }
        Slot::Guard(guard) => Input::Guard(guard.recv().await),
        Slot::Mourning { again, .. } => {
            tokio::time::sleep(*again).await;
            Input::LastResort
        }
    }
}

/// The view of a keeper before it has run; `why` there is one now.
pub fn first_view(name: &str, timing: Timing, since: WallTime, why: &str) -> KeeperView {
    KeeperView {
        name: name.to_owned(),
        role: crate::core::event::Role::Standby,
        timing,
        paused_everywhere: false,
        token: None,
        pid: None,
        valid_until: None,
        since,
        restarts: 0,
        history: Arc::new([]),
        last_change: Some(LastChange { at: since, reason: why.to_owned() }),
        holder: None,
    }
}
