//! Keeping the lease of a term: extension rounds, what their answers do to the votes, and what the guard is told.

use super::context::{Context, extension_votes};
use super::release::After;
use super::repair::{REPAIR_AGAIN_AFTER, Repair};
use super::term::Term;
use super::{Action, Change, Timer};
use crate::core::event::{Event, Reason, Said};
use crate::core::lease::{NodeId, NodeMap};
use crate::core::preference::Bid;
use crate::core::request::{ExtendAnswer, Pause, Request, RoundId, Ticket};
use crate::core::round::{ExtensionOutcome, Round, judge};
use crate::core::time::Instant;
use std::time::Duration;

/// An evicted holder asks again at this pace whether somebody else has come (R6).
const RECHECK_EVERY: Duration = Duration::from_millis(20);
/// Moments in the time between two extensions: a first one is at most 3 % sooner than it need be, and leases still end apart.
const GRID: u32 = 32;
/// Extension rounds whose late answers still count.
const ROUNDS_KEPT: usize = 4;

/// Keepers of one host with one ttl extend at the same moments of its clock, so that they share their writes.
fn on_grid(at: Instant, cx: &Context) -> Instant {
    at.floor(cx.settings.timing.extend_every() / GRID)
}

/// What extension rounds are for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Purpose {
    Extend,
    /// Classify and change nothing: after a push (R23), and while evicted.
    Check,
}

/// How the lease is looked after.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Care {
    /// Extended, also while the tree is being killed: the lock must outlive it (R3).
    Extend,
    /// Evicted: only watched.
    Watch,
    /// Somebody else has it: nothing left to ask.
    Lost,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Extension {
    pub care: Care,
    pub next: Instant,
    pub purpose: Purpose,
    pub round: Option<Round<ExtendAnswer>>,
    pub judged: bool,
    /// A node came back, so the next one is sooner than it was to be.
    pub hastened: bool,
    /// A node came back during the round: follow it with another.
    pub again: bool,
    /// Validity before the round: a repair may not arrive later.
    pub repair_before: Instant,
    /// The last extension rounds, for answers that come after their round.
    pub recent: [RoundId; ROUNDS_KEPT],
    pub renewed_at: Instant,
    /// Of the last extension, at first of the election.
    pub last_votes: Vec<(NodeId, Said)>,
    /// Bids and pauses that came with this round's answers.
    pub bids: NodeMap<Bid>,
    pub pauses: NodeMap<Pause>,
}

impl Extension {
    /// The first extension of a lease that counts from `t0` and is valid until `valid_until`.
    pub fn of_lease(t0: Instant, valid_until: Instant, cx: &Context) -> Self {
        Extension {
            care: Care::Extend,
            next: on_grid(t0 + cx.settings.timing.extend_every(), cx),
            purpose: Purpose::Extend,
            round: None,
            judged: false,
            hastened: false,
            again: false,
            repair_before: valid_until,
            recent: [RoundId::default(); ROUNDS_KEPT],
            renewed_at: t0,
            last_votes: Vec::new(),
            bids: NodeMap::default(),
            pauses: NodeMap::default(),
        }
    }

    /// Whether it was the round that runs.
    pub fn asked(&self, ticket: Ticket) -> bool {
        self.round.as_ref().is_some_and(|round| round.ticket.round == ticket.round)
    }

    pub fn next_timer(&self) -> Option<(Instant, Timer)> {
        match &self.round {
            Some(round) if !self.judged => Some((round.ends, Timer::RoundEnds)),
            Some(_) | None => (self.care != Care::Lost).then_some((self.next, Timer::Extend)),
        }
    }
}

impl Term {
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
        self.extension.bids = NodeMap::default();
        self.extension.pauses = NodeMap::default();
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
        if ticket.round < self.first_round {
            return None;
        }
        let current = self.extension.asked(ticket);
        let extended = self.extension.recent.contains(&ticket.round);
        match &answer {
            Some(ExtendAnswer::Ok) if extended => self.lease.add_vote(node, ticket.sent, &cx.settings.timing),
            Some(ExtendAnswer::Gone | ExtendAnswer::Foreign(_)) => self.lease.drop_vote(node, ticket.sent),
            Some(ExtendAnswer::Ok | ExtendAnswer::Kept | ExtendAnswer::Empty) | None => {}
        }
        if let Some(ExtendAnswer::Foreign(held)) = &answer {
            cx.learn_token(held.token);
        }
        self.offer(cx);
        if !current {
            let foreign = matches!(answer, Some(ExtendAnswer::Foreign(_)));
            return if foreign && self.extension.care == Care::Watch {
                self.foreign(cx, now)
            } else {
                self.check_votes(cx, now)
            };
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
    pub fn node_serves(&mut self, cx: &Context, now: Instant, node: NodeId) {
        let sent = self.extension.round.as_ref().map(|round| round.ticket.sent);
        let earliest = sent.map_or(now, |sent| now.max(sent + cx.settings.timing.retry_gap()));
        self.extension.hastened |= earliest < self.extension.next;
        self.extension.next = self.extension.next.min(earliest);
        // A round under way did not ask this node: one more must follow it.
        self.extension.again = sent.is_some() && !self.extension.judged;
        // Its vote may be needed for that very round, when another node is lost at the same moment.
        let fresh = now.since(self.extension.renewed_at) <= cx.settings.timing.extend_every();
        if fresh && !self.lease.has_time_left(node, now) {
            self.repairs.insert(node, Repair::soon(now));
        }
    }

    /// Somebody touched a key of ours: classify now, change nothing.
    pub fn handle_hint(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        let idle = self.extension.judged || self.extension.round.is_none();
        if idle && self.extension.care == Care::Extend {
            return self.start_round(cx, now, Purpose::Check);
        }
        None
    }

    /// Bad news outside of a round: too few votes are left.
    pub fn check_votes(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        let over = self.lease.valid_until().is_none_or(|until| until <= now);
        if over && self.extension.care != Care::Lost { self.foreign(cx, now) } else { None }
    }

    fn judge_round(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        let round = self.extension.round.as_ref().filter(|_| !self.extension.judged)?;
        let outcome = self.judge(round, cx, now)?;
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

    /// The table of outcomes; while evicted any foreign value ends the politeness (R6).
    fn judge(&self, round: &Round<ExtendAnswer>, cx: &Context, now: Instant) -> Option<ExtensionOutcome> {
        let foreign = round.count(|answer| matches!(answer, ExtendAnswer::Foreign(_))) > 0;
        if self.extension.care == Care::Watch && foreign {
            return Some(ExtensionOutcome::Foreign);
        }
        judge(round, &self.lease, cx.settings.quorum, now)
    }

    fn renewed(&mut self, cx: &mut Context, now: Instant, purpose: Purpose) {
        let timing = cx.settings.timing;
        match (self.extension.care, purpose) {
            (Care::Watch, _) => self.extension.next = now + RECHECK_EVERY,
            (Care::Extend, Purpose::Check) | (Care::Lost, _) => {}
            (Care::Extend, Purpose::Extend) => {
                let Some(round) = &self.extension.round else { return };
                let sent = round.ticket.sent;
                self.extension.renewed_at = sent;
                self.extension.next = if self.extension.again {
                    sent + timing.retry_gap()
                } else {
                    let next = sent + timing.extend_every();
                    let hastened = std::mem::take(&mut self.extension.hastened);
                    // For all holders at once: they must not keep step from then on, or their leases would end together.
                    let sooner = if hastened { cx.jitter(timing.extend_every() / 2) } else { Duration::ZERO };
                    on_grid(next - sooner, cx)
                };
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
        match self.judge(round, cx, now) {
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

    /// Tells the guard a new validity, larger or smaller, before anybody relies on it. Once it stops, only smaller ones count.
    pub fn offer(&mut self, cx: &mut Context) {
        let Some(until) = self.lease.valid_until() else { return };
        let news = if self.is_serving() { until != self.offered } else { until < self.offered };
        if !news || self.guard.is_lost() {
            return;
        }
        self.offered = until;
        let deadlines = cx.settings.timing.deadlines(until);
        cx.act(Action::Prolong { deadlines });
        self.guard.expect_ack();
    }
}
