//! One machine: the production election, a shell that does what it says, and a guard with the child. The guard's deadlines are its
//! own: they come whether or not the daemon is frozen.

use super::coverage::{Coverage, Mark};
use super::variant::{Broken, Clocks, Variant};
use keeperd::core::election::{Action, Election, GuardReport, Retry, Settings};
use keeperd::core::event::{Command, Event, Role};
use keeperd::core::lease::{FencingToken, NodeId, Quorum, Value};
use keeperd::core::preference::Preference;
use keeperd::core::request::{FromNode, NodeChange, Request, Ticket};
use keeperd::core::restart::RestartRules;
use keeperd::core::rng::Seed;
use keeperd::core::round::ExtensionOutcome;
use keeperd::core::time::{Instant, Now, WallTime};
use std::collections::VecDeque;

pub const NODES: [NodeId; 3] = [NodeId(0), NodeId(1), NodeId(2)];

/// What must never happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Violation {
    TwoChildren,
    TokenNotLarger,
    ReleasedAlive,
}

/// A guard and its child.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Life {
    value: Value,
    stop_at: Instant,
    kill_at: Instant,
    /// The stop signal is out; from here on no deadline moves out (R9).
    stopping: bool,
    /// SIGKILL is out: dead before the next step of time.
    killing: bool,
    pub alive: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Host {
    pub election: Election,
    pub life: Option<Life>,
    pub frozen: bool,
    /// Said while the daemon was frozen; it hears the guard first.
    reports: VecDeque<GuardReport>,
    inbox: VecDeque<FromNode>,
}

/// What one turn of a host needs, and what comes of it.
pub struct Turn<'a> {
    pub variant: &'a Variant,
    pub coverage: &'a Coverage,
    pub now: Now,
    pub asked: Vec<(NodeId, Ticket, Request)>,
    pub launched: Option<(FencingToken, Value)>,
    pub violation: Option<Violation>,
}

impl<'a> Turn<'a> {
    pub fn new(variant: &'a Variant, coverage: &'a Coverage, host: usize, now: Instant) -> Self {
        let us = match variant.clocks {
            Clocks::Agree => now.as_nanos() / 1000,
            Clocks::Apart => (1 - host as u64) * 60_000_000,
        };
        let now = Now { boot: now, wall: WallTime::from_micros(1_000_000 + us) };
        Turn { variant, coverage, now, asked: Vec::new(), launched: None, violation: None }
    }
}

impl Host {
    pub fn new(turn: &mut Turn<'_>, seed: u128) -> Host {
        let settings = Settings {
            timing: turn.variant.timing(),
            quorum: Quorum::of(3),
            restart: RestartRules::default(),
            retry: Retry { count: Some(3), delay: super::variant::ms(200) },
            preference: Preference::none(),
            fit_to_stand: false,
        };
        let election = Election::new(settings, Seed(seed), turn.now.boot);
        let mut host =
            Host { election, life: None, frozen: false, reports: VecDeque::new(), inbox: VecDeque::new() };
        for node in NODES {
            host.election.handle_node(turn.now, FromNode::Change { node, change: NodeChange::Serving });
        }
        host
    }

    pub fn is_alive(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.alive)
    }

    pub fn may_end(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.alive && (life.stopping || life.killing))
    }

    pub fn is_due(&self, now: Instant) -> bool {
        !self.frozen && self.election.poll_timeout().is_some_and(|at| at <= now)
    }

    // ── inputs ──

    /// A message of a node; a frozen daemon reads it later.
    pub fn hear(&mut self, turn: &mut Turn<'_>, from: FromNode) {
        if self.frozen {
            self.inbox.push_back(from);
            return;
        }
        self.election.handle_node(turn.now, from);
        self.turn(turn);
    }

    pub fn command(&mut self, turn: &mut Turn<'_>, command: Command) {
        self.election.handle_command(turn.now, command);
        self.turn(turn);
    }

    pub fn wake(&mut self, turn: &mut Turn<'_>) {
        self.turn(turn);
    }

    pub fn thaw(&mut self, turn: &mut Turn<'_>) {
        self.frozen = false;
        if !self.reports.is_empty() {
            self.turn(turn);
        }
        while let Some(from) = self.inbox.pop_front() {
            self.hear(turn, from);
        }
    }

    /// The child obeys the stop signal, or SIGKILL has done its work.
    pub fn child_ends(&mut self, turn: &mut Turn<'_>) {
        self.dies();
        if !self.frozen {
            self.turn(turn);
        }
    }

    fn dies(&mut self) {
        if let Some(life) = &mut self.life
            && life.alive
        {
            life.alive = false;
            self.reports.push_back(GuardReport::TreeDead { killed: 1, last: true });
        }
    }

    /// Time has passed: what the guard does of itself.
    pub fn time_passes(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now.boot;
        let own_deadlines = turn.variant.broken != Broken::DaemonKills;
        let Some(life) = self.life.as_mut().filter(|life| life.alive) else { return };
        if life.killing || (own_deadlines && life.kill_at <= now) {
            self.dies();
        } else if own_deadlines && life.stop_at <= now && !life.stopping {
            life.stopping = true;
            self.reports.push_back(GuardReport::Stopping);
        } else {
            return;
        }
        if !self.frozen {
            self.turn(turn);
        }
    }

    // ── the shell, as `keeper::Shell::run`: actions, the guard's word, timers ──

    fn turn(&mut self, turn: &mut Turn<'_>) {
        loop {
            while let Some(action) = self.election.poll_action() {
                self.carry_out(turn, action);
            }
            if let Some(report) = self.reports.pop_front() {
                self.election.handle_guard(turn.now, report);
            } else if self.is_due(turn.now.boot) {
                self.election.handle_timeout(turn.now);
            } else {
                return;
            }
        }
    }

    fn carry_out(&mut self, turn: &mut Turn<'_>, action: Action) {
        match action {
            Action::Ask { node, ticket, request } => {
                if let Request::Release { value } = &request
                    && self.life.as_ref().is_some_and(|life| life.alive && life.value == *value)
                {
                    turn.violation = Some(Violation::ReleasedAlive);
                }
                turn.coverage.request(&request);
                turn.asked.push((node, ticket, request));
            }
            Action::Launch { value, token, deadlines, start_by } => {
                if self.is_alive() {
                    turn.violation = Some(Violation::TwoChildren);
                }
                let in_time = turn.now.boot < start_by.min(deadlines.stop_at);
                self.life = Some(Life {
                    value,
                    stop_at: deadlines.stop_at,
                    kill_at: deadlines.kill_at,
                    stopping: false,
                    killing: false,
                    alive: in_time,
                });
                let end = if in_time { GuardReport::Started { pid: 1 } } else { GuardReport::TooLate };
                self.reports.extend([GuardReport::Armed, acked(true), acked(true), end]);
                turn.launched = in_time.then_some((token, value));
            }
            Action::Spawn { .. } | Action::Restart { .. } => {
                unreachable!("the child of this model never crashes")
            }
            Action::Prolong { deadlines } => {
                let Some(life) = &mut self.life else { return };
                let smaller = deadlines.kill_at <= life.kill_at;
                let accepted = !life.stopping || smaller;
                if accepted {
                    (life.stop_at, life.kill_at) = (deadlines.stop_at, deadlines.kill_at);
                }
                self.reports.push_back(acked(accepted));
            }
            Action::Stop { kill_by } => {
                let Some(life) = &mut self.life else { return };
                life.stopping = true;
                life.kill_at = life.kill_at.min(kill_by);
                self.reports.push_back(acked(true));
                if !life.alive || turn.variant.broken == Broken::ReleaseBeforeDeath {
                    self.reports.push_back(GuardReport::TreeDead { killed: 0, last: true });
                }
            }
            Action::Kill => {
                if let Some(life) = &mut self.life {
                    life.killing = true;
                }
                self.reports.push_back(acked(true));
            }
            // The guard is killed, and the daemon kills the tree in its place.
            Action::KillGuard => {
                turn.coverage.mark(Mark::GuardKilled);
                if let Some(life) = &mut self.life {
                    life.killing = true;
                }
            }
            Action::QuitGuard => self.life = self.life.take().filter(|life| life.alive),
            Action::Emit(event) => notice(turn.coverage, &event),
        }
    }
}

fn acked(accepted: bool) -> GuardReport {
    GuardReport::Acked { accepted }
}

fn notice(coverage: &Coverage, event: &Event) {
    match event {
        Event::Extended { outcome, .. } => coverage.mark(match outcome {
            ExtensionOutcome::Renewed => Mark::Extended,
            ExtensionOutcome::Unknown => Mark::Unknown,
            ExtensionOutcome::Evicted => Mark::Evicted,
            ExtensionOutcome::Foreign => Mark::Foreign,
        }),
        Event::RoleChanged { to: Role::Leader, .. } => coverage.mark(Mark::Elected),
        Event::TreeOutlivesLease => coverage.mark(Mark::Outlived),
        _ => {}
    }
}
