//! One attempt to be elected: a value, a proposal, at most three asks, and a bound on it all.

use super::context::{Context, votes};
use super::standby::Bar;
use super::term::{Elected, Term};
use super::{Change, State, Timer};
use crate::core::event::{ElectionOutcome, Event, Reason, Said};
use crate::core::lease::{FencingToken, Lease, NodeId, NodeMap, Value};
use crate::core::request::{AcquireAnswer, Held, RaiseAnswer, Request, RoundId, Ticket};
use crate::core::round::{Heard, Round};
use crate::core::time::{Instant, Now, WallTime};
use std::time::Duration;

/// Asks within one attempt while the vote is split (R28).
const ASKS_MAX: u32 = 3;
/// The other contenders need about a round trip to let go.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(2);
/// A raise refused by a quorum is repeated once with a larger token.
const RAISES_MAX: u32 = 2;

/// A vote for the lock: when its request was sent, and which token came with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Grant {
    sent: Instant,
    token: FencingToken,
    token_is_mine: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Phase {
    Acquire(Round<AcquireAnswer>),
    /// Votes are split and ours is the smallest value: kept, to be asked again.
    Split {
        last: Round<AcquireAnswer>,
        again_at: Instant,
    },
    Raise {
        round: Round<RaiseAnswer>,
        token: FencingToken,
        outrun: FencingToken,
    },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Attempt {
    pub value: Value,
    proposal: FencingToken,
    started: Instant,
    ends: Instant,
    asks: u32,
    raises: u32,
    /// The first round of this attempt: answers to older ones are about another value.
    first_round: RoundId,
    /// The first request ever sent for this value to each node (R8).
    first_sent: NodeMap<Instant>,
    grants: NodeMap<Grant>,
    /// Clocks of the nodes that refused the proposal as absurd.
    clocks: NodeMap<WallTime>,
    phase: Phase,
}

impl Attempt {
    pub fn start(cx: &mut Context, now: Now) -> Self {
        let value = cx.rng.value();
        let proposal = cx.proposal(now);
        let started = now.boot;
        let ends = started + cx.settings.timing.attempt_max();
        let round = cx.open_round(
            started,
            started + cx.settings.timing.node_timeout(),
            &Request::Acquire { value, proposal, deadline: ends },
        );
        let mut first_sent = NodeMap::default();
        for (node, ()) in cx.serving.iter() {
            first_sent.insert(node, started);
        }
        Attempt {
            value,
            proposal,
            started,
            ends,
            asks: 1,
            raises: 0,
            first_round: round.ticket.round,
            first_sent,
            grants: NodeMap::default(),
            clocks: NodeMap::default(),
            phase: Phase::Acquire(round),
        }
    }

    pub fn next_timer(&self) -> (Instant, Timer) {
        let phase = match &self.phase {
            Phase::Acquire(round) => (round.ends, Timer::RoundEnds),
            Phase::Split { again_at, .. } => (*again_at, Timer::AskAgain),
            Phase::Raise { round, .. } => (round.ends, Timer::RoundEnds),
        };
        phase.min((self.ends, Timer::AttemptEnds))
    }

    pub fn handle_acquire(
        &mut self,
        cx: &mut Context,
        now: Now,
        node: NodeId,
        ticket: Ticket,
        answer: AcquireAnswer,
    ) -> Option<Change> {
        if ticket.round < self.first_round {
            return None;
        }
        self.take_grant(cx, now.boot, node, ticket.sent, &answer);
        let (Phase::Acquire(round) | Phase::Split { last: round, .. }) = &mut self.phase else {
            return None;
        };
        if round.ticket.round == ticket.round {
            round.record(node, answer);
        }
        self.judge(cx, now)
    }

    fn take_grant(
        &mut self,
        cx: &mut Context,
        now: Instant,
        node: NodeId,
        sent: Instant,
        answer: &AcquireAnswer,
    ) {
        match answer {
            AcquireAnswer::Granted { token } => {
                cx.learn_token(*token);
                self.grants.insert(node, Grant { sent, token: *token, token_is_mine: true });
            }
            AcquireAnswer::Mine { token, token_is_mine } => {
                cx.learn_token(*token);
                let sent = self.first_sent.get(node).copied().unwrap_or(self.started);
                self.grants.insert(node, Grant { sent, token: *token, token_is_mine: *token_is_mine });
            }
            AcquireAnswer::Held(held) => cx.learn(now, node, held),
            AcquireAnswer::Clock { node_wall, token } => {
                cx.learn_token(*token);
                let ahead_us = self.proposal.0.saturating_sub(node_wall.as_micros());
                cx.emit(Event::ClockAhead { node, ahead_us });
                self.clocks.insert(node, *node_wall);
            }
            AcquireAnswer::Quarantined { .. }
            | AcquireAnswer::Paused(_)
            | AcquireAnswer::Late
            | AcquireAnswer::Released => {}
        }
    }

    pub fn handle_raise(
        &mut self,
        cx: &mut Context,
        now: Now,
        node: NodeId,
        id: RoundId,
        answer: RaiseAnswer,
    ) -> Option<Change> {
        let Phase::Raise { round, outrun, .. } = &mut self.phase else { return None };
        if round.ticket.round != id {
            return None;
        }
        if let RaiseAnswer::Outrun { token } = &answer {
            *outrun = (*outrun).max(*token);
            cx.learn_token(*token);
        }
        round.record(node, answer);
        self.judge(cx, now)
    }

    /// Nothing came from a node: unknown. It counts as a refusal here, and is released like a grant.
    pub fn handle_silence(
        &mut self,
        cx: &mut Context,
        now: Now,
        node: NodeId,
        id: Option<RoundId>,
    ) -> Option<Change> {
        match &mut self.phase {
            Phase::Acquire(round) if id.is_none_or(|id| id == round.ticket.round) => round.silence(node),
            Phase::Raise { round, .. } if id.is_none_or(|id| id == round.ticket.round) => {
                round.silence(node);
            }
            Phase::Acquire(_) | Phase::Raise { .. } | Phase::Split { .. } => return None,
        }
        self.judge(cx, now)
    }

    pub fn round_ends(&mut self, cx: &mut Context, now: Now) -> Option<Change> {
        match &mut self.phase {
            Phase::Acquire(round) => round.close(),
            Phase::Raise { round, .. } => round.close(),
            Phase::Split { .. } => {}
        }
        self.judge(cx, now)
    }

    pub fn attempt_ends(&mut self, cx: &mut Context, now: Now) -> Option<Change> {
        let enough = self.grants.len() >= cx.settings.quorum.size();
        let outcome = if enough { ElectionOutcome::Late } else { ElectionOutcome::NoQuorum };
        Some(self.fail(cx, now.boot, outcome))
    }

    pub fn ask_again(&mut self, cx: &mut Context, now: Now) -> Option<Change> {
        let request = Request::Acquire { value: self.value, proposal: self.proposal, deadline: self.ends };
        let ends = now.boot + cx.settings.timing.node_timeout();
        self.asks += 1;
        for (node, ()) in cx.serving.iter() {
            if !self.first_sent.contains(node) {
                self.first_sent.insert(node, now.boot);
            }
        }
        self.phase = Phase::Acquire(cx.open_round(now.boot, ends, &request));
        self.judge(cx, now)
    }

    /// With no node serving the round is over before it began.
    pub fn round_opened(&mut self, cx: &mut Context, now: Now) -> Option<Change> {
        self.judge(cx, now)
    }

    /// The one place where an attempt is decided.
    fn judge(&mut self, cx: &mut Context, now: Now) -> Option<Change> {
        let quorum = cx.settings.quorum.size();
        match &self.phase {
            Phase::Raise { round, token, .. } => {
                let token = *token;
                let accepted = round.count(|answer| matches!(answer, RaiseAnswer::Accepted));
                if accepted >= quorum {
                    return Some(self.win(cx, now, token));
                }
                if accepted + round.pending() < quorum {
                    return self.raise_refused(cx, now);
                }
                None
            }
            Phase::Acquire(round) => {
                if self.grants.len() >= quorum {
                    return self.has_lock(cx, now);
                }
                if self.grants.len() + self.still_open(round) < quorum {
                    return self.refused(cx, now);
                }
                None
            }
            // A late grant may complete a split vote.
            Phase::Split { .. } if self.grants.len() >= quorum => self.has_lock(cx, now),
            Phase::Split { .. } => None,
        }
    }

    /// Nodes that may still grant in this round.
    fn still_open(&self, round: &Round<AcquireAnswer>) -> usize {
        round
            .heard()
            .filter(|(node, heard)| matches!(heard, Heard::Pending) && !self.grants.contains(*node))
            .count()
    }

    /// A quorum voted for the lock: the token needs a quorum for one number, too.
    fn has_lock(&mut self, cx: &mut Context, now: Now) -> Option<Change> {
        let own = self.grants.iter().filter(|(_, grant)| grant.token_is_mine).map(|(_, grant)| grant.token);
        let largest = own.max().unwrap_or(self.proposal);
        let others = self.grants.iter().filter(|(_, grant)| !grant.token_is_mine);
        // A number that belongs to somebody else cannot be ours.
        let token = others.map(|(_, grant)| grant.token.next()).max().map_or(largest, |t| t.max(largest));
        let same =
            self.grants.iter().filter(|(_, grant)| grant.token_is_mine && grant.token == token).count();
        if same >= cx.settings.quorum.size() {
            return Some(self.win(cx, now, token));
        }
        self.raise(cx, now, token)
    }

    fn raise(&mut self, cx: &mut Context, now: Now, token: FencingToken) -> Option<Change> {
        self.raises += 1;
        let ends = now.boot + cx.settings.timing.node_timeout();
        let request = Request::Raise { value: self.value, token, deadline: self.ends };
        let round = cx.open_round(now.boot, ends, &request);
        self.phase = Phase::Raise { round, token, outrun: token };
        // With no node serving any more the round is over before it began.
        self.judge(cx, now)
    }

    fn raise_refused(&mut self, cx: &mut Context, now: Now) -> Option<Change> {
        let Phase::Raise { outrun, .. } = &self.phase else { return None };
        let larger = outrun.next();
        if self.raises < RAISES_MAX {
            return self.raise(cx, now, larger);
        }
        Some(self.fail(cx, now.boot, ElectionOutcome::Conflict))
    }

    /// A quorum has become impossible in this round: split vote, somebody else's lock, or too few nodes.
    fn refused(&mut self, cx: &mut Context, now: Now) -> Option<Change> {
        let Phase::Acquire(round) = &self.phase else { return None };
        if !self.clocks.is_empty() && round.pending() > 0 {
            // Whether it is our clock or a node's, the others know.
            return None;
        }
        let held: Vec<&Held> = round
            .said()
            .filter_map(|(_, answer)| match answer {
                AcquireAnswer::Held(held) => Some(held),
                AcquireAnswer::Granted { .. }
                | AcquireAnswer::Mine { .. }
                | AcquireAnswer::Quarantined { .. }
                | AcquireAnswer::Paused(_)
                | AcquireAnswer::Late
                | AcquireAnswer::Released
                | AcquireAnswer::Clock { .. } => None,
            })
            .collect();
        let quorum = cx.settings.quorum.size();
        let elected = held.iter().any(|one| held.iter().filter(|h| h.value == one.value).count() >= quorum);
        if held.is_empty() {
            return Some(self.fail(cx, now.boot, ElectionOutcome::NoQuorum));
        }
        let mine = self.value.to_string();
        let smallest =
            held.iter().all(|held| held.holder.is_some() && held.value.as_slice() > mine.as_bytes());
        let split = !elected && smallest && !self.grants.is_empty();
        // Keeping votes is worth it only where the others' nodes plus ours can make a quorum.
        if split && self.asks < ASKS_MAX && self.grants.len() + held.len() >= quorum {
            let again_at = now.boot + ASK_AGAIN_AFTER * self.asks;
            self.phase = Phase::Split { last: round.clone(), again_at };
            return None;
        }
        Some(self.fail(cx, now.boot, ElectionOutcome::Conflict))
    }

    fn win(&mut self, cx: &mut Context, now: Now, token: FencingToken) -> Change {
        let mut lease = Lease::new(self.value, token, cx.settings.quorum);
        for (node, grant) in self.grants.iter() {
            lease.add_vote(node, grant.sent, &cx.settings.timing);
        }
        cx.learn_token(token);
        let start_by = self.started + cx.settings.timing.start_within();
        // A guard that has less than this to arm would be given up before it could.
        let in_time = now.boot + cx.settings.timing.ack_timeout() <= start_by;
        let valid_until = lease.valid_until().filter(|_| in_time);
        let Some(valid_until) = valid_until else {
            return self.fail(cx, now.boot, ElectionOutcome::Late);
        };
        cx.split.reset();
        cx.retries = 0;
        let votes = self.votes();
        cx.emit(Event::Elected { outcome: ElectionOutcome::Won, votes: votes.clone() });
        let elected =
            Elected { lease, t0: self.started, first_round: self.first_round, valid_until, start_by };
        let mut term = Term::begin(cx, now.boot, elected);
        term.extension.last_votes.clone_from(&votes);
        Change::to(State::Leader(Box::new(term)), Reason::Won).with_votes(votes)
    }

    /// Gives up: releases wherever the request may have arrived, and backs off.
    pub fn fail(&mut self, cx: &mut Context, now: Instant, outcome: ElectionOutcome) -> Change {
        let votes = self.votes();
        cx.emit(Event::Elected { outcome, votes: votes.clone() });
        self.withdraw(cx, now);
        cx.wall_cap = self.clock_of_a_quorum(cx.settings.quorum.size());
        let delay = match outcome {
            ElectionOutcome::Won => unreachable!("a won attempt does not fail"),
            ElectionOutcome::Conflict if !self.met_legacy() => cx.split.next_full(&mut cx.rng),
            ElectionOutcome::Conflict | ElectionOutcome::NoQuorum | ElectionOutcome::Late => cx.retry_pause(),
        };
        Change::to(State::standing_by(Bar::None, now + delay), Reason::NotElected(outcome)).with_votes(votes)
    }

    /// Releases the value on every node that may have it; a refusal proves that it has not.
    pub fn withdraw(&self, cx: &mut Context, now: Instant) {
        cx.abandon(self.value);
        let refused = |node: NodeId| {
            let (Phase::Acquire(round) | Phase::Split { last: round, .. }) = &self.phase else {
                return false;
            };
            self.asks == 1 && round.said().any(|(n, _)| n == node)
        };
        let nodes: Vec<NodeId> = self
            .first_sent
            .iter()
            .map(|(node, _)| node)
            .filter(|node| self.grants.contains(*node) || !refused(*node))
            .collect();
        cx.release_at(now, self.value, nodes.into_iter());
    }

    /// Only a quorum can call our proposal absurd (R14): by the clock of a single node that is hours behind, a token would fall behind
    /// those of earlier terms as soon as the others have lost their data.
    fn clock_of_a_quorum(&self, quorum: usize) -> Option<WallTime> {
        let mut clocks: Vec<WallTime> = self.clocks.iter().map(|(_, wall)| *wall).collect();
        clocks.sort_unstable_by(|a, b| b.cmp(a));
        clocks.get(quorum - 1).copied()
    }

    /// A value without a keeperd behind it stood in the way: its owner polls.
    fn met_legacy(&self) -> bool {
        let (Phase::Acquire(round) | Phase::Split { last: round, .. }) = &self.phase else { return false };
        round.count(|answer| matches!(answer, AcquireAnswer::Held(held) if held.holder.is_none())) > 0
    }

    fn votes(&self) -> Vec<(NodeId, Said)> {
        let (Phase::Acquire(round) | Phase::Split { last: round, .. }) = &self.phase else {
            return self.grants.iter().map(|(node, _)| (node, Said::Granted)).collect();
        };
        votes(round, |answer| match answer {
            AcquireAnswer::Granted { .. } | AcquireAnswer::Mine { .. } => Said::Granted,
            AcquireAnswer::Held(_) => Said::Held,
            AcquireAnswer::Quarantined { .. } => Said::Quarantined,
            AcquireAnswer::Paused(_) => Said::Paused,
            AcquireAnswer::Late => Said::Late,
            AcquireAnswer::Released | AcquireAnswer::Clock { .. } => Said::Refused,
        })
    }
}
