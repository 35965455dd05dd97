//! What may be asked of a lock node, and what it may answer. The nodes (`lock`) carry it out, the core decides by it.

use super::lease::{FencingToken, NodeId, Value};
use super::preference::{Bid, Priority};
use super::time::{Instant, WallTime};
use std::time::Duration;

/// Names a round, so that a reply to an older one is recognised.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RoundId(pub u64);

/// Goes out with a request and comes back with its answer: `sent` was read before the first byte left.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ticket {
    pub round: RoundId,
    pub sent: Instant,
}

/// One request to one node. Deadlines are local; the node's side turns them into the node's own time, fixed when the attempt starts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Request {
    /// Read only: is it free, who has it, for how long.
    Look,
    /// Take it if it is absent. One value and one proposal per attempt, however often it is asked (R8).
    Acquire { value: Value, proposal: FencingToken, deadline: Instant },
    /// Write back the largest granted token when the grants differ.
    Raise { value: Value, token: FencingToken, deadline: Instant },
    /// Renew if the value is mine; never creates.
    Extend { value: Value, token: FencingToken, deadline: Instant },
    /// Classify as an extension would, and change nothing (R23).
    Check { value: Value },
    /// Set again where it was lost; never over a foreign value.
    Repair { value: Value, token: FencingToken, deadline: Instant },
    /// Delete what is mine; the value never lives again there (R15).
    Release { value: Value },
    /// Ask the holder to hand over to this host. Touches nothing that a vote is made of.
    Bid { priority: Priority },
}

/// Answer of one node to one [`Request`]; the outer variant is the request's.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    Look(LookAnswer),
    Acquire(AcquireAnswer),
    Raise(RaiseAnswer),
    /// To `Extend` and `Check`.
    Extend(ExtendAnswer),
    Repair(RepairAnswer),
    Released,
    /// A bid stands, or a better one does.
    Noted,
    /// Not serving, timed out, or an error: *unknown*, never a no.
    Silent,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum LookAnswer {
    /// Lock and shadow are absent and the node votes. `token` is the largest it has seen, 0 for none.
    Free {
        token: FencingToken,
    },
    Held(Held),
    Quarantined {
        remaining: Duration,
    },
    /// It grants nobody this lock; who has it all the same.
    Paused {
        pause: Pause,
        held: Option<Held>,
    },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum AcquireAnswer {
    /// Written now, with this token.
    Granted {
        token: FencingToken,
    },
    /// My value stood there already: an earlier request of this attempt was carried out. It counts from the *first* request sent (R8);
    /// it is a vote for `token` only if the token is mine.
    Mine {
        token: FencingToken,
        token_is_mine: bool,
    },
    Held(Held),
    Quarantined {
        remaining: Duration,
    },
    /// It grants nobody this lock.
    Paused(Pause),
    /// The attempt's deadline has passed on the node.
    Late,
    /// This value was released there before (R15).
    Released,
    /// The proposal is more than an hour ahead of the node's clock (R14): this host's clock is wrong, or the node's.
    Clock {
        node_wall: WallTime,
        token: FencingToken,
    },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum RaiseAnswer {
    Accepted,
    /// A larger token, or the same with another owner, stands there.
    Outrun {
        token: FencingToken,
    },
    /// Late, quarantined, or released: nothing was written.
    Refused,
}

/// The five classes of DESIGN.md 3; `silent` is [`Answer::Silent`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ExtendAnswer {
    /// The value is mine (and renewed, if it was an `Extend`).
    Ok,
    /// Lock absent, shadow mine: nobody else can take it here before it expires.
    Kept,
    /// Lock absent and the node does not vote (no marker, or quarantine).
    Empty,
    /// Lock absent, anything else.
    Gone,
    /// Another value.
    Foreign(Held),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum RepairAnswer {
    Repaired,
    /// Somebody else's value stands there; asked again later.
    Foreign(Held),
    /// Late or released: nothing was written.
    Refused,
}

/// What a node says of a lock that is not ours.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Held {
    /// The bytes under the key (or under the shadow, when the key is gone).
    pub value: Vec<u8>,
    /// Largest of what is left of key and shadow; `None`: no expiry, which no lock should have.
    pub remaining: Option<Duration>,
    /// Largest token the node has seen, 0 for none.
    pub token: FencingToken,
    /// Set when the fence says that a keeperd owns this value; otherwise a legacy client holds it.
    pub holder: Option<Holder>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Holder {
    pub host: String,
    pub pid: u32,
}

/// An operator's wish that no host runs a keeper. It counts where a quorum of nodes has it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pause {
    /// From where it was asked.
    pub host: String,
    pub since: WallTime,
}

/// Whether a node can be asked at all.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NodeChange {
    Serving,
    Lost,
}

/// Everything a node tells the core.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum FromNode {
    Answer {
        node: NodeId,
        ticket: Ticket,
        answer: Answer,
    },
    Change {
        node: NodeId,
        change: NodeChange,
    },
    /// Somebody touched a key this keeper tracks there. Only a hint.
    Touched {
        node: NodeId,
    },
    /// An extension or a check found a pause there. It comes before the answer of that request.
    Paused {
        node: NodeId,
        ticket: Ticket,
        pause: Pause,
    },
    /// An extension found a bid there. It comes before the extension's own answer.
    Bid {
        node: NodeId,
        ticket: Ticket,
        bid: Bid,
    },
}
