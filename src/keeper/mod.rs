//! The shell of one keeper: carries out what its [`Election`] wants, and tells it what happened. No decision is made here.

mod guarding;
mod reserve;
mod view;

pub use view::first_view;

use crate::clock;
use crate::core::election::{Action, Election, HealthReport};
use crate::core::event::{Command, Event};
use crate::core::lease::FencingToken;
use crate::core::request::FromNode;
use crate::core::spread::Spread;
use crate::core_thread::Told;
use crate::guard::{self, ChildSpec, Guard, LastResort, Lost, Newborn, Unarmed};
use crate::health;
use crate::hooks::Caller;
use crate::lock::{Ask, Engine, KeeperId};
use crate::observe::board::{Board, KeeperView, Panel};
use crate::observe::history::History;
use crate::observe::series::Recorder;
use crate::output::{Ended, Outlet, TermOutput};
use reserve::Reserve;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Frames of a guard taken before the timers get their turn: more than it ever has to say at once.
const FRAMES_PER_TURN: usize = 64;
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
    /// Guards without a term.
    pub reserves: Cell<u32>,
    /// Use cgroups where there are any.
    pub cgroup: bool,
    /// Who has which keeper, for the order in which hosts stand.
    pub spread: RefCell<Spread>,
}

/// The guard of the current term.
#[derive(Debug)]
enum Slot {
    Empty(Reserve),
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
    pub inbox: mpsc::Receiver<Box<FromNode>>,
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
    Node(Box<FromNode>),
    Command(Told),
    Health(HealthReport),
    Signal(i32),
    ReserveDue,
    Reserve(io::Result<Unarmed>),
    Born(io::Result<Newborn>),
    Guard(Result<guard::Event, Lost>),
    LastResort,
    Time,
}

/// Runs a keeper until its election has stopped; its name, and what the next of that name is to know.
pub fn run(keeper: Keeper) -> impl Future<Output = (Arc<str>, Past)> {
    // Not an argument of the future, which would hold the keeper twice for all its life.
    let mut shell = Shell::new(keeper);
    async move {
        shell.run().await;
        let Shell { keeper, history, slot, .. } = shell;
        if let Slot::Empty(reserve) = slot {
            reserve.dismiss(&keeper.shared);
        }
        keeper.shared.engine.unregister(keeper.id);
        keeper.shared.spread.borrow_mut().leave(keeper.id.place());
        let why = "it has other settings since a reload";
        (keeper.name, Past { why, history, paused: keeper.election.is_paused() })
    }
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
            slot: Slot::Empty(Reserve::of(&keeper)),
            keeper,
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
            Input::Node(from) => self.keeper.election.handle_node(clock::now(), *from),
            Input::Command(Told { command, answer }) => {
                let refusal = self.keeper.election.refuses(command);
                self.keeper.election.handle_command(clock::now(), command);
                // Nobody waits for it any more: it is done all the same.
                let _ = answer.map(|answer| answer.send(refusal.map_or(Ok(()), Err)));
            }
            Input::Health(report) => self.keeper.election.handle_health(clock::now(), report),
            Input::Signal(signal) => self.tell(guard::Command::Signal(signal)),
            Input::ReserveDue => {
                if let Slot::Empty(reserve) = &mut self.slot {
                    reserve.start(&self.keeper);
                }
            }
            Input::Reserve(born) => {
                if let Slot::Empty(reserve) = &mut self.slot {
                    reserve.born(born, &self.keeper);
                }
            }
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
                    Slot::Empty(_) | Slot::Mourning { .. } => {}
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
        Slot::Empty(reserve) => reserve.next().await,
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
