//! What a vote is about: nodes, values, tokens, and the lease they add up to.

use super::time::Instant;
use super::timing::Timing;
use std::fmt;

/// More nodes than this buy no safety and cost every round; the configuration refuses them.
pub const NODES_MAX: usize = 9;

/// One lock node, by its place in the configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u8);

/// Majority of the *configured* nodes, reachable or not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Quorum {
    nodes: u8,
}

impl Quorum {
    /// # Panics
    /// With no node at all or more than [`NODES_MAX`]: configuration refuses that.
    pub fn of(nodes: u8) -> Self {
        assert!(nodes > 0 && usize::from(nodes) <= NODES_MAX, "a quorum is of 1 to {NODES_MAX} nodes");
        Quorum { nodes }
    }

    pub fn nodes(self) -> usize {
        usize::from(self.nodes)
    }

    pub fn size(self) -> usize {
        usize::from(self.nodes / 2 + 1)
    }

    pub fn ids(self) -> impl Iterator<Item = NodeId> {
        (0..self.nodes).map(NodeId)
    }
}

/// At most one thing per node, without allocation.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NodeMap<T>([Option<T>; NODES_MAX]);

impl<T> Default for NodeMap<T> {
    fn default() -> Self {
        NodeMap(std::array::from_fn(|_| None))
    }
}

impl<T> NodeMap<T> {
    pub fn get(&self, node: NodeId) -> Option<&T> {
        self.0[usize::from(node.0)].as_ref()
    }

    pub fn get_mut(&mut self, node: NodeId) -> Option<&mut T> {
        self.0[usize::from(node.0)].as_mut()
    }

    pub fn insert(&mut self, node: NodeId, thing: T) {
        self.0[usize::from(node.0)] = Some(thing);
    }

    pub fn remove(&mut self, node: NodeId) -> Option<T> {
        self.0[usize::from(node.0)].take()
    }

    pub fn contains(&self, node: NodeId) -> bool {
        self.get(node).is_some()
    }

    pub fn len(&self) -> usize {
        self.0.iter().flatten().count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &T)> {
        (0_u8..).zip(&self.0).filter_map(|(id, thing)| thing.as_ref().map(|thing| (NodeId(id), thing)))
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().flatten()
    }
}

/// Number of a term, larger than those of all earlier terms of the keeper. Below 2^53, so that Lua and JavaScript hold it exactly.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FencingToken(pub u64);

impl FencingToken {
    pub const MAX: FencingToken = FencingToken((1 << 53) - 1);

    pub fn next(self) -> FencingToken {
        FencingToken(self.0.saturating_add(1).min(Self::MAX.0))
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

/// Value of one election attempt and of the term it may win: 32 lower-case hex digits on the wire, as the npm package writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub u128);

impl Value {
    /// Ours if it has our form; anything else belongs to somebody with another habit.
    pub fn parse(text: &[u8]) -> Option<Value> {
        if text.len() != 32 || !text.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let text = std::str::from_utf8(text).ok()?;
        u128::from_str_radix(text, 16).ok().map(Value)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}…", self.0 >> 96)
    }
}

/// One node's yes: when it was asked for, and until when it holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Vote {
    sent: Instant,
    ends: Instant,
}

/// The right to run until an instant: one vote per node, each with its own end.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Lease {
    pub value: Value,
    pub token: FencingToken,
    quorum: Quorum,
    votes: NodeMap<Vote>,
    /// When the question was sent that a node answered with *gone* or *foreign*: no older yes counts any more.
    lost: NodeMap<Instant>,
}

impl Lease {
    pub fn new(value: Value, token: FencingToken, quorum: Quorum) -> Self {
        Lease { value, token, quorum, votes: NodeMap::default(), lost: NodeMap::default() }
    }

    /// Counts a yes of `node` to a request sent at `sent`. An older answer never shortens a newer one, and never revives a vote.
    pub fn add_vote(&mut self, node: NodeId, sent: Instant, timing: &Timing) {
        if self.lost.get(node).is_some_and(|lost| sent <= *lost) {
            return;
        }
        if self.votes.get(node).is_none_or(|vote| vote.sent < sent) {
            self.votes.insert(node, Vote { sent, ends: timing.vote_ends(sent) });
        }
    }

    /// Forgets the vote of a node that lost it or gave it to somebody else, as it answered to a request sent at `sent`. A yes to a
    /// newer request stands.
    pub fn drop_vote(&mut self, node: NodeId, sent: Instant) {
        if self.votes.get(node).is_some_and(|vote| vote.sent <= sent) {
            self.votes.remove(node);
        }
        let newest = self.lost.get(node).map_or(sent, |lost| sent.max(*lost));
        self.lost.insert(node, newest);
    }

    pub fn votes(&self) -> usize {
        self.votes.len()
    }

    pub fn has_time_left(&self, node: NodeId, now: Instant) -> bool {
        self.votes.get(node).is_some_and(|vote| vote.ends > now)
    }

    /// The Q-th largest end: until then at least Q nodes still hold the value. `None` with fewer than Q votes.
    pub fn valid_until(&self) -> Option<Instant> {
        let mut ends = [Instant::default(); NODES_MAX];
        let mut votes = 0;
        for (_, vote) in self.votes.iter() {
            ends[votes] = vote.ends;
            votes += 1;
        }
        ends[..votes].sort_unstable_by(|a, b| b.cmp(a));
        ends[..votes].get(self.quorum.size() - 1).copied()
    }
}
