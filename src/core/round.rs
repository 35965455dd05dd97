//! One request to all nodes, and what came back: a tally that decides at quorum and never waits for the slowest.

use super::lease::{Lease, NodeId, NodeMap, Quorum};
use super::request::{ExtendAnswer, Ticket};
use super::time::Instant;

/// What one node has said in a round so far.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Heard<A> {
    Pending,
    /// Not serving, an error, or too late for this round: unknown.
    Silent,
    Said(A),
}

/// The answers of all configured nodes to one request.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Round<A> {
    pub ticket: Ticket,
    /// From here on a missing answer is silence. It never moves.
    pub ends: Instant,
    heard: NodeMap<Heard<A>>,
}

impl<A> Round<A> {
    /// `asked` are the nodes a request goes to; the others are silent from the start.
    pub fn open(ticket: Ticket, ends: Instant, quorum: Quorum, asked: impl Fn(NodeId) -> bool) -> Self {
        let mut heard = NodeMap::default();
        for node in quorum.ids() {
            heard.insert(node, if asked(node) { Heard::Pending } else { Heard::Silent });
        }
        Round { ticket, ends, heard }
    }

    /// An answer that came after silence was assumed still counts in a round that is not replaced yet.
    pub fn record(&mut self, node: NodeId, answer: A) {
        if let Some(heard) = self.heard.get_mut(node) {
            *heard = Heard::Said(answer);
        }
    }

    pub fn silence(&mut self, node: NodeId) {
        if let Some(heard @ Heard::Pending) = self.heard.get_mut(node) {
            *heard = Heard::Silent;
        }
    }

    /// The round's time is up: who has not spoken is silent.
    pub fn close(&mut self) {
        for heard in self.heard.values_mut() {
            if matches!(heard, Heard::Pending) {
                *heard = Heard::Silent;
            }
        }
    }

    pub fn pending(&self) -> usize {
        self.heard.iter().filter(|(_, heard)| matches!(heard, Heard::Pending)).count()
    }

    pub fn silent(&self) -> usize {
        self.heard.iter().filter(|(_, heard)| matches!(heard, Heard::Silent)).count()
    }

    pub fn count(&self, yes: impl Fn(&A) -> bool) -> usize {
        self.said().filter(|(_, answer)| yes(answer)).count()
    }

    pub fn said(&self) -> impl Iterator<Item = (NodeId, &A)> {
        self.heard.iter().filter_map(|(node, heard)| match heard {
            Heard::Said(answer) => Some((node, answer)),
            Heard::Pending | Heard::Silent => None,
        })
    }

    pub fn heard(&self) -> impl Iterator<Item = (NodeId, &Heard<A>)> {
        self.heard.iter()
    }
}

/// Outcome of an extension round (DESIGN.md 3, review.md R7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ExtensionOutcome {
    /// A quorum said ok.
    Renewed,
    /// Not renewed, and nothing says that somebody else may start: ask again.
    Unknown,
    /// The lock is gone, but nobody can start yet: stop politely.
    Evicted,
    /// Somebody else has it, or may have it: kill now.
    Foreign,
}

/// Judges an extension round; `None` while an outstanding answer can still change the outcome.
///
/// `lease` must have dropped the votes of nodes that said gone or foreign.
pub fn judge(
    round: &Round<ExtendAnswer>,
    lease: &Lease,
    quorum: Quorum,
    now: Instant,
) -> Option<ExtensionOutcome> {
    let ok = round.count(|answer| matches!(answer, ExtendAnswer::Ok));
    if ok >= quorum.size() {
        return Some(ExtensionOutcome::Renewed);
    }
    if lease.valid_until().is_none_or(|until| until <= now) {
        return Some(ExtensionOutcome::Foreign);
    }
    if ok + round.silent() + round.pending() >= quorum.size() {
        return (round.pending() == 0).then_some(ExtensionOutcome::Unknown);
    }
    let nobody_else = round
        .heard()
        .filter(|(node, heard)| match heard {
            Heard::Said(ExtendAnswer::Ok | ExtendAnswer::Kept | ExtendAnswer::Empty) => true,
            Heard::Said(ExtendAnswer::Gone | ExtendAnswer::Foreign(_)) => false,
            Heard::Silent | Heard::Pending => lease.has_time_left(*node, now),
        })
        .count();
    let foreign = round.count(|answer| matches!(answer, ExtendAnswer::Foreign(_)));
    if foreign == 0 && nobody_else >= quorum.size() {
        Some(ExtensionOutcome::Evicted)
    } else {
        Some(ExtensionOutcome::Foreign)
    }
}
