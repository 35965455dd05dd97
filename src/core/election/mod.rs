//! The election of one keeper on one host, as a pure state machine.
//!
//! # How to drive it
//! Methods come in four kinds. *Getters* ([`Election::role`], [`Election::token`], …) look. *Inputs* (`handle_*`) tell it what
//! happened: a node's answer, a guard's report, an operator's command, time that passed. *Outputs* (`poll_*`) say what to do. After
//! each input drain [`Election::poll_action`] to the end, then take [`Election::poll_timeout`], and call [`Election::handle_timeout`]
//! when that instant has come. Both clocks are read by the caller immediately before the call, and an action's request is sent after
//! it: so the time a round is stamped with is never later than its first byte.
//!
//! # The transitions
//! ```text
//! state      input                          next        what goes out
//! Standby    look timer, hint               Standby     look at all serving nodes
//! Standby    a quorum looks free            Standby     nothing, while preferred or less loaded hosts go first, or while not fit
//! Standby    and still does after that      Candidate   acquire
//! Standby    a less preferred host holds    Standby     bid, after `hold`
//! Standby    a quorum says paused           Standby*    nothing, until enough nodes say otherwise (*role paused)
//! Candidate  quorum of votes and one token  Leader      launch guard (arms, then forks)
//! Candidate  quorum, tokens differ          Candidate   raise
//! Candidate  split, my value is smallest    Candidate   acquire again, at most three times
//! Candidate  quorum impossible, bound       Standby     release everywhere, back off
//! Candidate  this host is unfit             Standby     release everywhere
//! Leader     extend timer, node came back   Leader      extend
//! Leader     quorum of ok                   Leader      prolong the guard, then repair
//! Leader     unknown                        Leader      extend again after a gap, until stop_at
//! Leader     evicted, stop_at, bid, command Leader*     stop (*role stepping_down)
//! Leader     a quorum says paused           Leader*     stop
//! Leader     foreign, kill_at, guard lost   Leader*     kill
//! Leader     probes fail, restart asked     Leader      restart: stop the child, kill what is left
//! Leader     child ended, tree dead         Leader      spawn after a delay, or stop, or finished
//! Leader*    tree proven dead               Releasing   release
//! Releasing  a quorum released, time        Standby     dismiss the guard
//! Releasing  the same while draining        Stopped     dismiss the guard
//! ```
//! Everything not listed leaves the state as it is.

mod bid;
mod candidate;
mod child;
mod command;
mod context;
mod extension;
mod health;
mod pause;
mod release;
mod repair;
mod standby;
mod term;

use super::event::{Event, Reason, Role, Said};
use super::lease::{FencingToken, NodeId, Quorum, Value};
use super::preference::Preference;
use super::request::{Answer, FromNode, Held, NodeChange, Request, Ticket};
use super::restart::{Exit, RestartRules};
use super::rng::Seed;
use super::spread::{Load, Seat};
use super::time::{Instant, Now};
use super::timing::{Deadlines, Timing};
use candidate::Attempt;
use child::Child;
use context::Context;
pub use health::{HealthReport, ProbeNumber, Probed};
use release::Release;
use standby::{Bar, Standby};
use std::time::Duration;
use term::Term;

/// A handler may set the next timer to *now*, but not for ever.
const TIMERS_PER_CALL: usize = 64;

/// What an election is built from.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Settings {
    pub timing: Timing,
    pub quorum: Quorum,
    pub restart: RestartRules,
    /// Against legacy holders or a missing quorum, never between keeperds.
    pub retry: Retry,
    pub preference: Preference,
    /// Stand only while probes of this host succeed.
    pub fit_to_stand: bool,
}

/// Attempts after a failed one, as the npm package has them; afterwards a candidate waits for the next poll.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Retry {
    /// `None`: for ever.
    pub count: Option<u32>,
    /// Half of it is added as jitter.
    pub delay: Duration,
}

/// What is to be done. Order matters.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Send a request; for a node that does not serve only a release is remembered.
    Ask {
        node: NodeId,
        ticket: Ticket,
        request: Request,
    },
    /// Start a guard, arm it, and have it start the child. Two commands, two acknowledgements.
    Launch {
        value: Value,
        token: FencingToken,
        deadlines: Deadlines,
        start_by: Instant,
    },
    /// Start the child again in the same guard.
    Spawn {
        start_by: Instant,
    },
    /// Stop signal now, SIGKILL to what is left at `kill_by`; then the guard is as it was before its first child.
    Restart {
        kill_by: Instant,
    },
    /// New deadlines for the guard, larger or smaller.
    Prolong {
        deadlines: Deadlines,
    },
    /// Stop signal now, SIGKILL at `kill_by` or at the guard's own kill_at.
    Stop {
        kill_by: Instant,
    },
    /// SIGKILL now.
    Kill,
    /// The guard is lost: kill it, then the tree from here; report [`GuardReport::TreeDead`] when that is proven.
    KillGuard,
    /// Released: the guard may go without releasing itself.
    QuitGuard,
    Emit(Event),
}

/// What the guard, or the daemon in its place, reports.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum GuardReport {
    LaunchFailed(String),
    /// Its timer is set; it may fork now.
    Armed,
    /// One command was read; not accepted means that it is stopping already.
    Acked {
        accepted: bool,
    },
    Started {
        pid: u32,
    },
    ExecFailed {
        stage: String,
        errno: i32,
    },
    /// The last look at the clock before exec said no.
    TooLate,
    Exited(Exit),
    /// It reached its own stop_at.
    Stopping,
    /// No process of the tree is left. Only the last one means that none will be started any more.
    TreeDead {
        killed: u32,
        last: bool,
    },
    Lost(&'static str),
}

/// Every timer of an election, named for what happens when it fires.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Timer {
    /// Standby: look whether a quorum is free.
    Look,
    /// Standby: who has not answered the look is silent.
    LookEnds,
    /// Standby: stand again.
    BarEnds,
    /// A round's missing answers are silence.
    RoundEnds,
    /// Candidate: the attempt is over.
    AttemptEnds,
    /// Candidate: ask again in a split vote.
    AskAgain,
    /// Leader: the next extension round.
    Extend,
    /// Leader: try to repair this node again.
    Repair(NodeId),
    /// Leader: tell the child to stop.
    StopAt,
    /// Leader: kill what is left.
    KillAt,
    /// Leader: the guard should have finished; kill from here.
    Backstop,
    /// Leader: the lease is over and the tree is not proven dead.
    LeaseEnds,
    /// Leader: the guard owes an acknowledgement.
    AckDue,
    /// Leader: start the child again.
    RestartChild,
    /// Leader: the child was neither started nor refused.
    StartEnds,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum State {
    Standby(Box<Standby>),
    Candidate(Box<Attempt>),
    Leader(Box<Term>),
    Releasing(Box<Release>),
    /// Drained.
    Stopped,
}

impl State {
    fn standing_by(bar: Bar, look_at: Instant) -> State {
        State::Standby(Box::new(Standby::new(bar, look_at)))
    }
}

/// A change of state, with what there is to say about it.
#[derive(Debug)]
struct Change {
    next: Next,
    reason: Reason,
    votes: Vec<(NodeId, Said)>,
}

#[derive(Debug)]
enum Next {
    State(State),
    /// Begin an attempt; needs the wall clock for its proposal.
    Stand,
}

impl Change {
    fn to(state: State, reason: Reason) -> Self {
        Change { next: Next::State(state), reason, votes: Vec::new() }
    }

    /// The role stays what it is.
    fn quietly(state: State) -> Self {
        Change::to(state, Reason::Released)
    }

    fn stand() -> Self {
        Change { next: Next::Stand, reason: Reason::LooksFree, votes: Vec::new() }
    }

    fn with_votes(mut self, votes: Vec<(NodeId, Said)>) -> Self {
        self.votes = votes;
        self
    }
}

/// The election of one keeper on one host.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Election {
    cx: Context,
    state: State,
    /// An operator's pause outlives terms.
    paused: bool,
}

impl Election {
    /// Stands by from `now` on, before any node serves.
    pub fn new(settings: Settings, seed: Seed, now: Instant) -> Self {
        Election {
            cx: Context::new(settings, seed),
            state: State::standing_by(Bar::None, now),
            paused: false,
        }
    }

    // ── getters ──

    pub fn role(&self) -> Role {
        match &self.state {
            State::Standby(standby) => match standby.bar {
                Bar::None | Bar::StayOut { .. } => Role::Standby,
                Bar::Cooldown { .. } => Role::Cooldown,
                Bar::PausedEverywhere | Bar::Paused => Role::Paused,
            },
            State::Candidate(_) => Role::Candidate,
            State::Leader(term) => term.role(),
            State::Releasing(_) => Role::SteppingDown,
            State::Stopped => Role::Standby,
        }
    }

    pub fn token(&self) -> Option<FencingToken> {
        match &self.state {
            State::Leader(term) => Some(term.lease.token),
            State::Releasing(release) => Some(release.token),
            State::Standby(_) | State::Candidate(_) | State::Stopped => None,
        }
    }

    /// End of the lease: as the guard knows it, and while the tree is being ended, as the lock is kept.
    pub fn valid_until(&self) -> Option<Instant> {
        match &self.state {
            State::Leader(term) => Some(term.ends()),
            State::Standby(_) | State::Candidate(_) | State::Releasing(_) | State::Stopped => None,
        }
    }

    /// The child's main process, while it runs.
    pub fn child_pid(&self) -> Option<u32> {
        match &self.state {
            State::Leader(term) => match term.child {
                Child::Running { pid, .. } | Child::Restarting { pid, .. } => Some(pid),
                Child::Starting { .. }
                | Child::Ended { .. }
                | Child::Waiting { .. }
                | Child::Finished { .. } => None,
            },
            State::Standby(_) | State::Candidate(_) | State::Releasing(_) | State::Stopped => None,
        }
    }

    /// Our own value, while we hold the lock.
    pub fn value(&self) -> Option<Value> {
        match &self.state {
            State::Leader(term) => Some(term.lease.value),
            State::Standby(_) | State::Candidate(_) | State::Releasing(_) | State::Stopped => None,
        }
    }

    /// Who holds the lock, as far as the last look tells.
    pub fn holder(&self) -> Option<&Held> {
        self.cx.seen.as_ref()
    }

    pub fn restarts(&self) -> u64 {
        self.cx.restarts.total()
    }

    /// Not a failure, by the keeper's own rules.
    pub fn is_success(&self, exit: Exit) -> bool {
        self.cx.restarts.is_success(exit)
    }

    /// Nothing is held and nothing will be: the daemon may end.
    pub fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped)
    }

    /// An operator's pause, which outlives terms.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// It is no command of this host that keeps it from standing.
    pub fn is_paused_everywhere(&self) -> bool {
        matches!(&self.state, State::Standby(standby) if standby.bar == Bar::PausedEverywhere)
    }

    /// Something is at stake: reconnect fast.
    pub fn is_holding(&self) -> bool {
        matches!(self.state, State::Leader(_) | State::Releasing(_))
    }

    /// What this keeper counts for in its daemon's [`Spread`](super::spread::Spread).
    pub fn seat(&self) -> Seat<'_> {
        match &self.state {
            State::Candidate(_) | State::Leader(_) | State::Releasing(_) => Seat::Here,
            State::Standby(standby) if standby.waits_its_turn() => Seat::Waiting,
            State::Standby(_) => match self.holder().and_then(|held| held.holder.as_ref()) {
                Some(holder) if !holder.host.is_empty() => Seat::Elsewhere(&holder.host),
                Some(_) | None => Seat::Nowhere,
            },
            State::Stopped => Seat::Nowhere,
        }
    }

    /// How long this host stays out after it gave up.
    pub fn cooldown(&self) -> Duration {
        self.cx.restarts.rules().cooldown
    }

    pub fn timing(&self) -> &Timing {
        &self.cx.settings.timing
    }

    // ── outputs ──

    pub fn poll_action(&mut self) -> Option<Action> {
        self.cx.next_action()
    }

    /// When [`Election::handle_timeout`] must be called; `None` only when stopped.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_timer().map(|(at, _)| at)
    }

    fn next_timer(&self) -> Option<(Instant, Timer)> {
        match &self.state {
            State::Standby(standby) => Some(standby.next_timer()),
            State::Candidate(attempt) => Some(attempt.next_timer()),
            State::Leader(term) => Some(term.next_timer(&self.cx)),
            State::Releasing(release) => Some(release.next_timer()),
            State::Stopped => None,
        }
    }

    // ── inputs ──

    /// Takes what the daemon's other keepers and other hosts amount to. Counts from the next input on.
    pub fn handle_load(&mut self, load: Load) {
        self.cx.load = load;
    }

    /// Fires every timer that is due.
    ///
    /// # Panics
    /// When a timer fires again and again without time passing: an error in this module.
    pub fn handle_timeout(&mut self, now: Now) {
        for _ in 0..TIMERS_PER_CALL {
            let Some((at, timer)) = self.next_timer() else { return };
            if at > now.boot {
                return;
            }
            self.fire(now, timer);
        }
        let due = self.next_timer().filter(|(at, _)| *at <= now.boot);
        assert!(due.is_none(), "timer {due:?} does not advance at {now:?}");
    }

    fn fire(&mut self, now: Now, timer: Timer) {
        let (cx, boot) = (&mut self.cx, now.boot);
        let change = match (&mut self.state, timer) {
            (State::Standby(standby), Timer::Look) => standby.look_timer(cx, boot),
            (State::Standby(standby), Timer::LookEnds) => standby.look_ends(cx, boot),
            (State::Standby(standby), Timer::BarEnds) => standby.bar_ends(boot),
            (State::Candidate(attempt), Timer::RoundEnds) => attempt.round_ends(cx, now),
            (State::Candidate(attempt), Timer::AttemptEnds) => attempt.attempt_ends(cx, now),
            (State::Candidate(attempt), Timer::AskAgain) => attempt.ask_again(cx, now),
            (State::Leader(term), Timer::Extend) => term.extend(cx, boot),
            (State::Leader(term), Timer::RoundEnds) => term.round_ends(cx, boot),
            (State::Leader(term), Timer::Repair(node)) => term.repair(cx, boot, node),
            (State::Leader(term), Timer::StopAt) => term.stop_at(cx, boot),
            (State::Leader(term), Timer::KillAt) => term.kill_at(cx, boot),
            (State::Leader(term), Timer::Backstop) => term.lose_guard(cx, boot, "did not finish at kill_at"),
            (State::Leader(term), Timer::LeaseEnds) => term.lease_ends(cx),
            (State::Leader(term), Timer::AckDue) => term.lose_guard(cx, boot, "did not acknowledge in time"),
            (State::Leader(term), Timer::RestartChild) => term.restart_child(cx, boot),
            (State::Leader(term), Timer::StartEnds) => term.never_started(cx, boot),
            (State::Releasing(release), Timer::RoundEnds) => release.round_ends(cx, boot),
            (state, timer) => unreachable!("timer {timer:?} belongs to another state than {state:?}"),
        };
        self.apply(now, change);
    }

    /// Takes what a node said, or what became of it.
    pub fn handle_node(&mut self, now: Now, from: FromNode) {
        let cx = &mut self.cx;
        let boot = now.boot;
        let change = match from {
            FromNode::Answer { node, ticket, answer } => {
                return self.handle_answer(now, node, ticket, answer);
            }
            FromNode::Touched { .. } => match &mut self.state {
                State::Standby(standby) => standby.handle_hint(cx, boot),
                State::Leader(term) => term.handle_hint(cx, boot),
                State::Candidate(_) | State::Releasing(_) | State::Stopped => None,
            },
            FromNode::Paused { node, ticket, pause } => match &mut self.state {
                State::Leader(term) => term.handle_pause(cx, boot, node, ticket, pause),
                State::Standby(_) | State::Candidate(_) | State::Releasing(_) | State::Stopped => None,
            },
            FromNode::Bid { node, ticket, bid } => match &mut self.state {
                State::Leader(term) => term.handle_bid(cx, boot, node, ticket, bid),
                State::Standby(_) | State::Candidate(_) | State::Releasing(_) | State::Stopped => None,
            },
            FromNode::Change { node, change: NodeChange::Serving } => {
                cx.serving.insert(node, ());
                match &mut self.state {
                    State::Standby(standby) => standby.node_serves(cx, boot),
                    State::Leader(term) => term.node_serves(cx, boot, node),
                    State::Candidate(_) | State::Releasing(_) | State::Stopped => {}
                }
                None
            }
            FromNode::Change { node, change: NodeChange::Lost } => {
                cx.serving.remove(node);
                match &mut self.state {
                    State::Standby(standby) => standby.node_lost(cx, boot, node),
                    State::Candidate(attempt) => attempt.handle_silence(cx, now, node, None),
                    State::Leader(term) => term.node_lost(cx, boot, node),
                    State::Releasing(release) => release.node_lost(cx, boot, node),
                    State::Stopped => None,
                }
            }
        };
        self.apply(now, change);
    }

    fn handle_answer(&mut self, now: Now, node: NodeId, ticket: Ticket, answer: Answer) {
        let (cx, boot, round) = (&mut self.cx, now.boot, ticket.round);
        let change = match (&mut self.state, answer) {
            (State::Standby(standby), Answer::Look(look)) => {
                standby.handle_answer(cx, boot, node, round, Some(look))
            }
            (State::Standby(standby), Answer::Silent) => standby.handle_answer(cx, boot, node, round, None),
            (State::Candidate(attempt), Answer::Acquire(answer)) => {
                attempt.handle_acquire(cx, now, node, ticket, answer)
            }
            (State::Candidate(attempt), Answer::Raise(answer)) => {
                attempt.handle_raise(cx, now, node, round, answer)
            }
            (State::Candidate(attempt), Answer::Silent) => attempt.handle_silence(cx, now, node, Some(round)),
            (State::Leader(term), Answer::Extend(answer)) => {
                term.handle_extend(cx, boot, node, ticket, Some(answer))
            }
            (State::Leader(term), Answer::Repair(answer)) => {
                term.handle_repair(cx, boot, node, ticket, answer)
            }
            (State::Leader(term), Answer::Acquire(answer)) => {
                term.handle_late_grant(cx, node, ticket, &answer);
                None
            }
            (State::Leader(term), Answer::Silent) => term.handle_extend(cx, boot, node, ticket, None),
            (State::Releasing(release), Answer::Released) => {
                release.handle_answer(cx, boot, node, round, true)
            }
            (State::Releasing(release), Answer::Silent) => {
                release.handle_answer(cx, boot, node, round, false)
            }
            // Answers to a state that is over: its rounds are replaced, its value is released.
            (
                State::Standby(_)
                | State::Candidate(_)
                | State::Leader(_)
                | State::Releasing(_)
                | State::Stopped,
                _,
            ) => None,
        };
        self.apply(now, change);
    }

    /// Takes a report of the guard of this term; none may come of an earlier one.
    pub fn handle_guard(&mut self, now: Now, report: GuardReport) {
        let change = match &mut self.state {
            State::Leader(term) => term.handle_guard(&mut self.cx, now.boot, report),
            State::Standby(_) | State::Candidate(_) | State::Releasing(_) | State::Stopped => None,
        };
        self.apply(now, change);
    }

    // ── the one place where the state changes ──

    fn apply(&mut self, now: Now, change: Option<Change>) {
        if let State::Leader(term) = &mut self.state {
            term.stamp_acks(&self.cx, now.boot);
        }
        let Some(Change { next, reason, votes }) = change else { return };
        let from = self.role();
        let (lease_age, token) = match &self.state {
            State::Leader(term) => (Some(term.lease_age(now.boot)), Some(term.lease.token)),
            State::Releasing(release) => (None, Some(release.token)),
            State::Standby(_) | State::Candidate(_) | State::Stopped => (None, None),
        };
        let votes = match &self.state {
            State::Standby(standby) if votes.is_empty() => standby.votes().to_vec(),
            State::Standby(_)
            | State::Candidate(_)
            | State::Leader(_)
            | State::Releasing(_)
            | State::Stopped => votes,
        };
        self.state = match next {
            Next::State(state) => state,
            Next::Stand => State::Candidate(Box::new(Attempt::start(&mut self.cx, now))),
        };
        if let State::Standby(standby) = &mut self.state
            && self.paused
        {
            standby.bar = Bar::Paused;
        }
        let to = self.role();
        if from != to {
            let token = self.token().or(token);
            let lease_left = self.valid_until().map(|until| until.since(now.boot));
            self.cx.emit(Event::RoleChanged { from, to, reason, token, votes, lease_age, lease_left });
        }
        self.settle(now);
    }

    /// A state entered with nothing to wait for is over at once: an attempt with no node serving, a release nobody can hear.
    fn settle(&mut self, now: Now) {
        let change = match &mut self.state {
            State::Candidate(attempt) => attempt.round_opened(&mut self.cx, now),
            State::Releasing(release) => release.conclude(&mut self.cx, now.boot),
            State::Leader(term) => {
                term.stamp_acks(&self.cx, now.boot);
                None
            }
            State::Standby(_) | State::Stopped => None,
        };
        if change.is_some() {
            self.apply(now, change);
        }
    }
}
