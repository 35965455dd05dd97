//! Votes that a term gets besides its extensions: lost ones that are set again, and grants that came after the election.

use super::Change;
use super::context::Context;
use super::extension::Care;
use super::term::Term;
use crate::core::lease::{Lease, NodeId, NodeMap};
use crate::core::request::{AcquireAnswer, RepairAnswer, Request, Ticket};
use crate::core::time::Instant;
use std::time::Duration;

/// A contender's minority vote is gone in milliseconds; a repair it refused is tried again (R22).
pub(super) const REPAIR_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// After an election the contenders' votes are on their way out already.
const REPAIR_FIRST_AFTER: Duration = Duration::from_millis(5);
const REPAIR_TRIES: u8 = 4;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Repair {
    pub tries: u8,
    /// When to ask; absent while an answer is awaited.
    pub at: Option<Instant>,
}

impl Repair {
    /// The first try, shortly.
    pub fn soon(now: Instant) -> Self {
        Repair { tries: 0, at: Some(now + REPAIR_FIRST_AFTER) }
    }
}

/// Repairs of what an election left open: it was a strict quorum, so what a contender lets go of meanwhile may be set.
pub(super) fn after_election(cx: &Context, now: Instant, lease: &Lease) -> NodeMap<Repair> {
    let mut repairs = NodeMap::default();
    for (node, ()) in cx.serving.iter().filter(|(node, ())| !lease.has_time_left(*node, now)) {
        repairs.insert(node, Repair::soon(now));
    }
    repairs
}

impl Term {
    pub fn begin_repair(&mut self, cx: &mut Context, now: Instant, node: NodeId, later: Option<Instant>) {
        self.repairs.insert(node, Repair { tries: 0, at: later });
        if later.is_none() {
            self.repair(cx, now, node);
        }
    }

    /// Sets the lock again on a node that lost it: only after a strict quorum, in this round or, for a node that has just come, in one of
    /// the last extension period; only before the old validity ends.
    pub fn repair(&mut self, cx: &mut Context, now: Instant, node: NodeId) -> Option<Change> {
        let deadline = self.extension.repair_before;
        let usable = self.extension.care == Care::Extend && now < deadline && cx.serving.contains(node);
        let repair = self.repairs.get_mut(node)?;
        if !usable || repair.tries >= REPAIR_TRIES {
            self.repairs.remove(node);
            return None;
        }
        let ticket = cx.ticket(now);
        repair.tries += 1;
        repair.at = None;
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
    ) -> Option<Change> {
        if ticket.round < self.first_round {
            return None;
        }
        match answer {
            RepairAnswer::Repaired => {
                self.repairs.remove(node);
                self.lease.add_vote(node, ticket.sent, &cx.settings.timing);
            }
            RepairAnswer::Foreign(held) => {
                cx.learn_token(held.token);
                if let Some(repair) = self.repairs.get_mut(node) {
                    repair.at = Some(now + REPAIR_AGAIN_AFTER);
                }
                self.lease.drop_vote(node, ticket.sent);
            }
            RepairAnswer::Refused => {
                self.repairs.remove(node);
            }
        }
        self.offer(cx);
        self.check_votes(cx, now)
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
            | AcquireAnswer::Paused(_)
            | AcquireAnswer::Clock { .. } => {}
        }
        self.offer(cx);
    }

    fn add_grant(&mut self, cx: &Context, node: NodeId, sent: Instant) {
        self.lease.add_vote(node, sent, &cx.settings.timing);
        self.repairs.remove(node);
    }
}
