//! A term: one unbroken reign, from being elected to the proof that the tree is dead. This file keeps the lease; `child.rs` keeps
//! the guard and the child.

use super::child::{Child, GuardLink};
use super::context::{Context, extension_votes};
use super::release::{After, Release};
use super::{Action, Change, State, Timer};
use crate::core::event::{Event, Reason, Role, Said};
use crate::core::lease::{Lease, NodeId, NodeMap};
use crate::core::request::{AcquireAnswer, ExtendAnswer, RepairAnswer, Request, RoundId, Ticket};
use crate::core::round::{ExtensionOutcome, Round, judge};
use crate::core::time::Instant;
use crate::core::timing::Deadlines;
use std::time::Duration;

/// An evicted holder asks again at this pace whether somebody else has come (R6).
const RECHECK_EVERY: Duration = Duration::from_millis(20);
/// A contender's minority vote is gone in milliseconds; a repair it refused is tried again (R22).
const REPAIR_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// After an election the contenders' votes are on their way out already.
const REPAIR_FIRST_AFTER: Duration = Duration::from_millis(5);
const REPAIR_TRIES: u8 = 4;
/// Extension rounds whose late answers still count.
const ROUNDS_KEPT: usize = 4;

/// Why and how the tree is being ended.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Phase {
    Serving,
    /// The stop signal is out.
    Stopping {
        after: After,
    },
    /// SIGKILL is out.
    Killing {
        after: After,
    },
}

/// What extension rounds are for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Purpose {
    Extend,
    /// Classify and change nothing: after a push (R23), and while evicted.
    Check,
}

/// How the lease is looked after.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Care {
    /// Extended, also while the tree is being killed: the lock must outlive it (R3).
    Extend,
    /// Evicted: only watched.
    Watch,
    /// Somebody else has it: nothing left to ask.
    Lost,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Extension {
    care: Care,
    next: Instant,
    purpose: Purpose,
    round: Option<Round<ExtendAnswer>>,
    judged: bool,
    /// A node came back during the round: follow it with another.
    again: bool,
    /// Validity before the round: a repair may not arrive later.
    repair_before: Instant,
    /// The last extension rounds, for answers that come after their round.
    recent: [RoundId; ROUNDS_KEPT],
    renewed_at: Instant,
    last_votes: Vec<(NodeId, Said)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Repair {
    tries: u8,
    /// When to ask; absent while an answer is awaited.
    at: Option<Instant>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Term {
    pub lease: Lease,
    pub since: Instant,
    /// The winning attempt's first round and when it was sent: answers to older rounds are about other values.
    first_round: RoundId,
    elected_from: Instant,
    /// Validity the guard was last told about; its deadlines follow from it.
    pub offered: Instant,
    pub phase: Phase,
    pub guard: GuardLink,
    pub child: Child,
    extension: Extension,
    repairs: NodeMap<Repair>,
    overdue_said: bool,
}

impl Term {
    /// Begins a term that is valid until `valid_until`: the guard is launched with its deadlines and starts the child. `first` is the
    /// winning attempt's first round.
    pub fn begin(
        cx: &mut Context,
        now: Instant,
        lease: Lease,
        first: (RoundId, Instant),
        valid_until: Instant,
        start_by: Instant,
    ) -> Term {
        let (first_round, t0) = first;
        let timing = cx.settings.timing;
        let deadlines = timing.deadlines(valid_until);
        assert!(now < start_by && start_by < deadlines.stop_at, "a child starts early in its lease");
        // A term that begins with a minority missing is one failure from its end. The election was a strict quorum, so what a
        // contender let go of meanwhile may be repaired.
        let mut repairs = NodeMap::default();
        for (node, ()) in cx.serving.iter().filter(|(node, ())| !lease.has_time_left(*node, now)) {
            repairs.insert(node, Repair { tries: 0, at: Some(now + REPAIR_FIRST_AFTER) });
        }
        cx.act(Action::Launch { value: lease.value, token: lease.token, deadlines, start_by });
        Term {
            lease,
            since: now,
            first_round,
            elected_from: t0,
            offered: valid_until,
            phase: Phase::Serving,
            guard: GuardLink::launching(start_by),
            child: Child::Starting,
            extension: Extension {
                care: Care::Extend,
                next: t0 + timing.extend_every(),
                purpose: Purpose::Extend,
                round: None,
                judged: false,
                again: false,
                repair_before: valid_until,
                recent: [RoundId::default(); ROUNDS_KEPT],
                renewed_at: t0,
                last_votes: Vec::new(),
            },
            repairs,
            overdue_said: false,
        }
    }

    pub fn role(&self) -> Role {
        match (&self.phase, &self.child) {
            (Phase::Stopping { .. } | Phase::Killing { .. }, _) => Role::SteppingDown,
            (Phase::Serving, Child::Finished { .. }) => Role::Finished,
            (
                Phase::Serving,
                Child::Starting | Child::Running { .. } | Child::Ended { .. } | Child::Waiting { .. },
            ) => Role::Leader,
        }
    }

    pub fn lease_age(&self, now: Instant) -> Duration {
        now.since(self.extension.renewed_at)
    }

    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving)
    }

    pub fn deadlines(&self, cx: &Context) -> Deadlines {
        cx.settings.timing.deadlines(self.offered)
    }

    pub fn next_timer(&self, cx: &Context) -> (Instant, Timer) {
        let deadlines = self.deadlines(cx);
        let mut first = match self.phase {
            Phase::Serving => (deadlines.stop_at, Timer::StopAt),
            Phase::Stopping { .. } => (deadlines.kill_at, Timer::KillAt),
            Phase::Killing { .. } if !self.overdue_said => (self.offered, Timer::LeaseEnds),
            Phase::Killing { .. } => (Instant::from_nanos(u64::MAX), Timer::LeaseEnds),
        };
        let mut at = |instant: Instant, timer: Timer| first = first.min((instant, timer));
        match &self.extension.round {
            Some(round) if !self.extension.judged => at(round.ends, Timer::RoundEnds),
            Some(_) | None if self.extension.care != Care::Lost => at(self.extension.next, Timer::Extend),
            Some(_) | None => {}
        }
        for (node, repair) in self.repairs.iter() {
            if let Some(again_at) = repair.at {
                at(again_at, Timer::Repair(node));
            }
        }
        if let Some((instant, timer)) = self.guard_timer(cx) {
            at(instant, timer);
        }
        first
    }

    // ── extension ──

    /// Starts the next round: an extension, or a check while evicted.
    pub fn extend(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        let purpose = match self.extension.care {
            Care::Extend => Purpose::Extend,
            Care::Watch => Purpose::Check,
            Care::Lost => return None,
        };
        self.start_round(cx, now, purpose)
    }

    fn start_round(&mut self, cx: &mut Context, now: Instant, purpose: Purpose) -> Option<Change> {
        let timing = cx.settings.timing;
        let value = self.lease.value;
        let request = match purpose {
            Purpose::Extend => {
                Request::Extend { value, token: self.lease.token, deadline: timing.vote_ends(now) }
            }
            Purpose::Check => Request::Check { value },
        };
        let round = cx.open_round(now, now + timing.node_timeout(), &request);
        if purpose == Purpose::Extend {
            self.extension.recent.rotate_right(1);
            self.extension.recent[0] = round.ticket.round;
            self.extension.repair_before = self.lease.valid_until().unwrap_or(now);
        }
        self.extension.purpose = purpose;
        self.extension.judged = false;
        self.extension.again = false;
        self.extension.round = Some(round);
        self.judge_round(cx, now)
    }

    pub fn round_ends(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        if let Some(round) = &mut self.extension.round {
            round.close();
        }
        self.judge_round(cx, now)
    }

    pub fn handle_extend(
        &mut self,
        cx: &mut Context,
        now: Instant,
        node: NodeId,
        ticket: Ticket,
        answer: Option<ExtendAnswer>,
    ) -> Option<Change> {
        let current = self.extension.round.as_ref().is_some_and(|round| round.ticket.round == ticket.round);
        let extended = self.extension.recent.contains(&ticket.round);
        match &answer {
            Some(ExtendAnswer::Ok) if extended => self.lease.add_vote(node, ticket.sent, &cx.settings.timing),
            Some(ExtendAnswer::Gone | ExtendAnswer::Foreign(_)) if current => self.lease.drop_vote(node),
            Some(
                ExtendAnswer::Ok
                | ExtendAnswer::Kept
                | ExtendAnswer::Empty
                | ExtendAnswer::Gone
                | ExtendAnswer::Foreign(_),
            )
            | None => {}
        }
        if let Some(ExtendAnswer::Foreign(held)) = &answer {
            cx.learn_token(held.token);
        }
        self.offer(cx);
        if !current {
            return None;
        }
        let judged = self.extension.judged;
        let round = self.extension.round.as_mut()?;
        match answer {
            Some(answer) => round.record(node, answer),
            None => round.silence(node),
        }
        if judged {
            return self.judged_late_answer(cx, now, node);
        }
        self.judge_round(cx, now)
    }

    pub fn node_lost(&mut self, cx: &mut Context, now: Instant, node: NodeId) -> Option<Change> {
        self.repairs.remove(node);
        let round = self.extension.round.as_mut().filter(|_| !self.extension.judged)?;
        round.silence(node);
        self.judge_round(cx, now)
    }

    /// A node came (back): extend and repair there at once, or a rolling restart faster than ttl/2 would take the lease (R26).
    pub fn node_serves(&mut self, cx: &Context, now: Instant) {
        let sent = self.extension.round.as_ref().map(|round| round.ticket.sent);
        let earliest = sent.map_or(now, |sent| now.max(sent + cx.settings.timing.retry_gap()));
        self.extension.next = self.extension.next.min(earliest);
        // A round under way did not ask this node: one more must follow it.
        self.extension.again = sent.is_some() && !self.extension.judged;
    }

    /// Somebody touched a key of ours: classify now, change nothing.
    pub fn handle_hint(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        let idle = self.extension.judged || self.extension.round.is_none();
        if idle && self.extension.care == Care::Extend {
            return self.start_round(cx, now, Purpose::Check);
        }
        None
    }

    fn judge_round(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        let round = self.extension.round.as_ref().filter(|_| !self.extension.judged)?;
        let outcome = judge(round, &self.lease, cx.settings.quorum, now)?;
        let took = now.since(round.ticket.sent);
        let votes = extension_votes(round);
        let purpose = self.extension.purpose;
        self.extension.judged = true;
        self.extension.last_votes.clone_from(&votes);
        if purpose == Purpose::Extend {
            cx.emit(Event::Extended { outcome, took, votes });
        }
        self.offer(cx);
        match outcome {
            ExtensionOutcome::Renewed => self.renewed(cx, now, purpose),
            ExtensionOutcome::Unknown => self.unknown(cx, now),
            ExtensionOutcome::Evicted => return self.evicted(cx, now),
            ExtensionOutcome::Foreign => return self.foreign(cx, now),
        }
        None
    }

    fn renewed(&mut self, cx: &mut Context, now: Instant, purpose: Purpose) {
        let timing = cx.settings.timing;
        match (self.extension.care, purpose) {
            (Care::Watch, _) => self.extension.next = now + RECHECK_EVERY,
            (Care::Extend, Purpose::Check) | (Care::Lost, _) => {}
            (Care::Extend, Purpose::Extend) => {
                let Some(round) = &self.extension.round else { return };
                self.extension.renewed_at = round.ticket.sent;
                let every = if self.extension.again { timing.retry_gap() } else { timing.extend_every() };
                self.extension.next = round.ticket.sent + every;
                let missing: Vec<(NodeId, Option<Instant>)> = round
                    .said()
                    .filter_map(|(node, answer)| match answer {
                        ExtendAnswer::Ok => None,
                        ExtendAnswer::Kept | ExtendAnswer::Empty | ExtendAnswer::Gone => Some((node, None)),
                        ExtendAnswer::Foreign(_) => Some((node, Some(now + REPAIR_AGAIN_AFTER))),
                    })
                    .collect();
                self.repairs = NodeMap::default();
                for (node, later) in missing {
                    self.begin_repair(cx, now, node, later);
                }
            }
        }
    }

    /// The slower nodes' answers to a round that is already renewed.
    fn judged_late_answer(&mut self, cx: &mut Context, now: Instant, node: NodeId) -> Option<Change> {
        let round = self.extension.round.as_ref()?;
        let strict = round.count(|answer| matches!(answer, ExtendAnswer::Ok)) >= cx.settings.quorum.size();
        let answer = round.said().find(|(n, _)| *n == node).map(|(_, answer)| answer.clone())?;
        let extend = self.extension.purpose == Purpose::Extend && self.extension.care == Care::Extend;
        if strict && extend {
            match answer {
                ExtendAnswer::Ok => {}
                ExtendAnswer::Kept | ExtendAnswer::Empty | ExtendAnswer::Gone => {
                    self.begin_repair(cx, now, node, None);
                }
                ExtendAnswer::Foreign(_) => {
                    self.begin_repair(cx, now, node, Some(now + REPAIR_AGAIN_AFTER));
                }
            }
            return None;
        }
        // A late answer may be the bad news that silence was not.
        match judge(round, &self.lease, cx.settings.quorum, now) {
            Some(ExtensionOutcome::Foreign) if self.extension.care != Care::Lost => self.foreign(cx, now),
            Some(ExtensionOutcome::Evicted) if self.extension.care == Care::Extend => self.evicted(cx, now),
            Some(
                ExtensionOutcome::Renewed
                | ExtensionOutcome::Unknown
                | ExtensionOutcome::Evicted
                | ExtensionOutcome::Foreign,
            )
            | None => None,
        }
    }

    fn unknown(&mut self, cx: &Context, now: Instant) {
        let gap = match self.extension.care {
            Care::Watch => RECHECK_EVERY,
            Care::Extend | Care::Lost => cx.settings.timing.retry_gap(),
        };
        self.extension.next = now + gap;
    }

    fn evicted(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        self.extension.care = Care::Watch;
        self.extension.next = now + RECHECK_EVERY;
        self.stop(cx, now, Reason::Evicted, After::StayOut)
    }

    fn foreign(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        self.extension.care = Care::Lost;
        self.kill(cx, now, Reason::Foreign, After::GiveWay)
    }

    /// Tells the guard a new validity, larger or smaller, before anybody relies on it.
    fn offer(&mut self, cx: &mut Context) {
        if !self.is_serving() {
            return;
        }
        let Some(until) = self.lease.valid_until() else { return };
        if until == self.offered {
            return;
        }
        self.offered = until;
        let deadlines = cx.settings.timing.deadlines(until);
        cx.act(Action::Prolong { deadlines });
        self.guard.expect_ack();
    }

    // ── repair ──

    fn begin_repair(&mut self, cx: &mut Context, now: Instant, node: NodeId, later: Option<Instant>) {
        self.repairs.insert(node, Repair { tries: 0, at: later });
        if later.is_none() {
            self.repair(cx, now, node);
        }
    }

    /// Sets the lock again on a node that lost it: only after a strict quorum in this round, only before the old validity ends.
    pub fn repair(&mut self, cx: &mut Context, now: Instant, node: NodeId) -> Option<Change> {
        let deadline = self.extension.repair_before;
        let usable = self.extension.care == Care::Extend && now < deadline && cx.serving.contains(node);
        let repair = self.repairs.get_mut(node)?;
        if !usable || repair.tries >= REPAIR_TRIES {
            self.repairs.remove(node);
            return None;
        }
        repair.tries += 1;
        repair.at = None;
        let ticket = cx.ticket(now);
        let request = Request::Repair { value: self.lease.value, token: self.lease.token, deadline };
        cx.ask(node, ticket, request);
        None
    }

    pub fn handle_repair(
        &mut self,
        cx: &mut Context,
        now: Instant,
        node: NodeId,
        ticket: Ticket,
        answer: RepairAnswer,
    ) {
        if ticket.round < self.first_round {
            return;
        }
        match answer {
            RepairAnswer::Repaired => {
                self.repairs.remove(node);
                self.lease.add_vote(node, ticket.sent, &cx.settings.timing);
                self.offer(cx);
            }
            RepairAnswer::Foreign(held) => {
                cx.learn_token(held.token);
                if let Some(repair) = self.repairs.get_mut(node) {
                    repair.at = Some(now + REPAIR_AGAIN_AFTER);
                }
            }
            RepairAnswer::Refused => {
                self.repairs.remove(node);
            }
        }
    }

    /// A grant that came after the election was decided is one more vote.
    pub fn handle_late_grant(
        &mut self,
        cx: &mut Context,
        node: NodeId,
        ticket: Ticket,
        answer: &AcquireAnswer,
    ) {
        if ticket.round < self.first_round {
            return;
        }
        match answer {
            AcquireAnswer::Granted { .. } => self.add_grant(cx, node, ticket.sent),
            AcquireAnswer::Mine { .. } => self.add_grant(cx, node, self.elected_from),
            AcquireAnswer::Held(_)
            | AcquireAnswer::Quarantined { .. }
            | AcquireAnswer::Late
            | AcquireAnswer::Released
            | AcquireAnswer::Clock { .. } => {}
        }
        self.offer(cx);
    }

    fn add_grant(&mut self, cx: &Context, node: NodeId, sent: Instant) {
        self.lease.add_vote(node, sent, &cx.settings.timing);
        self.repairs.remove(node);
    }

    // ── the end ──

    /// Asks the tree to end, politely, and says why. A second reason changes nothing but a harsher `after`.
    pub fn stop(&mut self, cx: &mut Context, now: Instant, reason: Reason, after: After) -> Option<Change> {
        match &mut self.phase {
            Phase::Serving => {}
            Phase::Stopping { after: old } | Phase::Killing { after: old } => {
                *old = old.stronger(after);
                return None;
            }
        }
        let from = self.role();
        let kill_by = now + cx.settings.timing.stop_timeout();
        self.phase = Phase::Stopping { after };
        cx.act(Action::Stop { kill_by });
        self.guard.expect_ack();
        cx.emit(Event::StopSent { polite: true });
        self.say_role(cx, now, from, reason);
        None
    }

    /// Kills the tree now.
    pub fn kill(&mut self, cx: &mut Context, now: Instant, reason: Reason, after: After) -> Option<Change> {
        let from = self.role();
        let after = match &self.phase {
            Phase::Serving => after,
            Phase::Stopping { after: old } => old.stronger(after),
            Phase::Killing { .. } => return None,
        };
        self.phase = Phase::Killing { after };
        cx.act(Action::Kill);
        self.guard.expect_ack();
        cx.emit(Event::StopSent { polite: false });
        self.say_role(cx, now, from, reason);
        None
    }

    pub fn say_role(&self, cx: &mut Context, now: Instant, from: Role, reason: Reason) {
        cx.emit(Event::RoleChanged {
            from,
            to: self.role(),
            reason,
            token: Some(self.lease.token),
            votes: self.extension.last_votes.clone(),
            lease_age: Some(self.lease_age(now)),
            lease_left: Some(self.offered.since(now)),
        });
    }

    /// The lease is over and the proof of death is missing: nothing is released, a person is called.
    pub fn lease_ends(&mut self, cx: &mut Context) -> Option<Change> {
        self.overdue_said = true;
        cx.emit(Event::TreeOutlivesLease);
        None
    }

    /// The tree is proven dead: the lock may go.
    pub fn release(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        let after = match &self.phase {
            Phase::Serving => After::Stand,
            Phase::Stopping { after } | Phase::Killing { after } => *after,
        };
        let release = Release::begin(cx, now, self.lease.value, self.lease.token, after);
        Some(Change::quietly(State::Releasing(Box::new(release))))
    }
}
