//! A term: one unbroken reign, from being elected to the proof that the tree is dead. This file begins and ends it; `extension.rs`
//! and `repair.rs` keep its lease, `child.rs` the guard and the child.

use super::child::{Child, GuardLink};
use super::context::Context;
use super::extension::Extension;
use super::release::{After, Release};
use super::repair::{self, Repair};
use super::{Action, Change, State, Timer};
use crate::core::event::{Event, Reason, Role};
use crate::core::lease::{Lease, NodeMap};
use crate::core::request::RoundId;
use crate::core::time::Instant;
use crate::core::timing::Deadlines;
use std::time::Duration;

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

/// What an attempt hands to the term it has won.
pub(super) struct Elected {
    pub lease: Lease,
    pub t0: Instant,
    pub first_round: RoundId,
    pub valid_until: Instant,
    pub start_by: Instant,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Term {
    pub lease: Lease,
    pub since: Instant,
    /// When the winning attempt began, and its first round: answers to older ones are not this term's.
    pub elected_from: Instant,
    pub first_round: RoundId,
    /// Validity the guard was last told about; its deadlines follow from it.
    pub offered: Instant,
    pub phase: Phase,
    pub guard: GuardLink,
    pub child: Child,
    pub extension: Extension,
    pub repairs: NodeMap<Repair>,
    /// SIGKILL went out then.
    killed_at: Option<Instant>,
    overdue_said: bool,
}

impl Term {
    /// Begins a term: the guard is launched with its deadlines and starts the child.
    pub fn begin(cx: &mut Context, now: Instant, elected: Elected) -> Term {
        let Elected { lease, t0, first_round, valid_until, start_by } = elected;
        let timing = cx.settings.timing;
        let deadlines = timing.deadlines(valid_until);
        assert!(now < start_by && start_by < deadlines.stop_at, "a child starts early in its lease");
        // A term that begins with a minority missing is one failure from its end.
        let repairs = repair::after_election(cx, now, &lease);
        cx.act(Action::Launch { value: lease.value, token: lease.token, deadlines, start_by });
        Term {
            lease,
            since: now,
            elected_from: t0,
            first_round,
            offered: valid_until,
            phase: Phase::Serving,
            guard: GuardLink::launching(start_by),
            child: Child::starting(now),
            extension: Extension::of_lease(t0, valid_until, cx),
            repairs,
            killed_at: None,
            overdue_said: false,
        }
    }

    pub fn role(&self) -> Role {
        match (&self.phase, &self.child) {
            (Phase::Stopping { .. } | Phase::Killing { .. }, _) => Role::SteppingDown,
            (Phase::Serving, Child::Finished { .. }) => Role::Finished,
            (
                Phase::Serving,
                Child::Starting { .. }
                | Child::Running { .. }
                | Child::Restarting { .. }
                | Child::Ended { .. }
                | Child::Waiting { .. },
            ) => Role::Leader,
        }
    }

    pub fn lease_age(&self, now: Instant) -> Duration {
        now.since(self.extension.renewed_at)
    }

    /// End of the lease: while the tree is being ended the lock may be kept for longer than the child was given.
    pub fn ends(&self) -> Instant {
        match self.phase {
            Phase::Serving => self.offered,
            Phase::Stopping { .. } | Phase::Killing { .. } => {
                self.lease.valid_until().map_or(self.offered, |until| until.max(self.offered))
            }
        }
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
            Phase::Killing { .. } if !self.overdue_said => {
                (self.ends().max(self.dead_by(cx.settings.timing.kill_margin())), Timer::LeaseEnds)
            }
            Phase::Killing { .. } => (Instant::NEVER, Timer::LeaseEnds),
        };
        let mut at = |instant: Instant, timer: Timer| first = first.min((instant, timer));
        if let Some((instant, timer)) = self.extension.next_timer() {
            at(instant, timer);
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
            Phase::Killing { after: old } => {
                self.phase = Phase::Killing { after: old.stronger(after) };
                return None;
            }
        };
        self.phase = Phase::Killing { after };
        self.killed_at = Some(now);
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
            lease_left: Some(self.ends().since(now)),
        });
    }

    /// A lease that shrinks, or is found over after a freeze, leaves the guard as much time from SIGKILL on as any other end does.
    pub fn dead_by(&self, within: Duration) -> Instant {
        self.killed_at.map_or(Instant::default(), |killed_at| killed_at + within)
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
        if matches!(after, After::Cooldown { .. }) {
            cx.unfit = cx.unfit.saturating_add(1);
        } else if now.since(self.since) >= cx.settings.preference.hold() {
            cx.unfit = 0;
        }
        let release = Release::begin(cx, now, self.lease.value, self.lease.token, after);
        Some(Change::quietly(State::Releasing(Box::new(release))))
    }
}
