//! What the core says happened. Log, metrics and status are made of these; nothing else is.

use super::lease::{FencingToken, NodeId};
use super::preference::Bid;
use super::request::{Holder, Pause};
use super::restart::{Ending, Exit};
use super::round::ExtensionOutcome;
use std::time::Duration;

/// The role of this host for one keeper, as `status` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    Standby,
    Candidate,
    Leader,
    SteppingDown,
    Paused,
    Cooldown,
    Finished,
}

/// Why a role changed. The log line of the change is made of this and the votes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// A quorum of nodes looked free.
    LooksFree,
    Won,
    NotElected(ElectionOutcome),
    /// The command's own name.
    Command(Command),
    /// The lock was deleted under us and nobody else can have it yet.
    Evicted,
    /// Somebody else has the lock, or may have it.
    Foreign,
    /// The lease could not be renewed until its stop_at.
    LeaseEnding,
    /// The guard reached its own deadline first.
    GuardStopped,
    GuardLost(&'static str),
    LaunchFailed(String),
    ExecFailed {
        stage: String,
        errno: i32,
    },
    /// Neither started nor refused: a program on a file system that does not answer.
    NeverStarted,
    /// Elected, but too late in the lease to start a child.
    TooLate,
    GaveUp {
        failures: u32,
    },
    PolicyFinished {
        exit: Exit,
    },
    /// A quorum of nodes has the bid of a host that this host's file prefers.
    Outbid(Bid),
    /// A quorum of nodes says that no host may run it.
    PausedEverywhere(Pause),
    /// And so many say otherwise that none can any more.
    ResumedEverywhere,
    /// Tree dead and lock released.
    Released,
    CooldownOver,
    Resumed,
    /// Probes of the child failed: which, and what it answered.
    Unhealthy(String),
    /// Probes of this host failed before it was elected.
    Unfit(String),
}

/// Commands of an operator, or of the daemon on its way out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Command {
    StepDown,
    Pause,
    Resume,
    /// Start the child anew, within the term.
    Restart,
    /// Hand over and end.
    Drain,
    /// The same, because the file has other settings for this keeper, or none.
    Retire,
    /// End at once: SIGKILL instead of the stop signal.
    Kill,
}

/// Why a command has nothing to act on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// This host holds nothing that could be handed over.
    NotHeld,
    /// No child runs here that could be started anew.
    NothingRuns,
    /// It ends, and takes no more commands.
    Ending,
    /// Not this host alone is paused.
    PausedEverywhere,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ElectionOutcome {
    Won,
    /// Somebody else has it.
    Conflict,
    /// Too few nodes answered or vote.
    NoQuorum,
    /// Won too late in the lease, or not within the attempt's bound.
    Late,
}

/// One node's part in a decision, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Said {
    Free,
    Granted,
    Ok,
    Kept,
    Empty,
    Gone,
    Foreign,
    Held,
    Quarantined,
    Paused,
    Late,
    Refused,
    /// Nothing yet: it was decided without this node.
    Pending,
    Silent,
}

impl Refusal {
    /// As an operator reads it.
    pub fn why(self) -> &'static str {
        match self {
            Refusal::NotHeld => "this host does not hold it, so there is nothing to hand over",
            Refusal::NothingRuns => "it does not run on this host, so there is nothing to restart",
            Refusal::Ending => "keeperd is ending",
            Refusal::PausedEverywhere => "it is paused on all hosts: keeperd resume --everywhere ends that",
        }
    }
}

impl ElectionOutcome {
    /// As metrics and log lines name it.
    pub fn name(self) -> &'static str {
        match self {
            ElectionOutcome::Won => "won",
            ElectionOutcome::Conflict => "conflict",
            ElectionOutcome::NoQuorum => "no_quorum",
            ElectionOutcome::Late => "late",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// One per change; every line an operator reads about a role comes from here.
    RoleChanged {
        from: Role,
        to: Role,
        reason: Reason,
        token: Option<FencingToken>,
        votes: Vec<(NodeId, Said)>,
        /// How long ago the lease was last renewed; absent without one.
        lease_age: Option<Duration>,
        lease_left: Option<Duration>,
    },
    /// An attempt ended.
    Elected {
        outcome: ElectionOutcome,
        votes: Vec<(NodeId, Said)>,
    },
    /// An extension round was judged, `took` after it was sent.
    Extended {
        outcome: ExtensionOutcome,
        took: Duration,
        votes: Vec<(NodeId, Said)>,
    },
    ChildStarted {
        pid: u32,
        token: FencingToken,
    },
    ChildExited {
        exit: Exit,
        ran: Duration,
        ending: Ending,
    },
    /// The child is being stopped, and will be started again.
    RestartBegins {
        reason: Reason,
    },
    ChildRestarts {
        after: Duration,
        ending: Ending,
    },
    /// This host may stand.
    HostFit,
    /// It may not, though the lock may be free.
    HostUnfit {
        why: String,
    },
    /// The stop signal or SIGKILL went to the tree.
    StopSent {
        polite: bool,
    },
    TreeDead {
        killed: u32,
    },
    /// The lease is over and the tree not proven dead: a person must act.
    TreeOutlivesLease,
    /// A node's clock is more than an hour behind this host's.
    ClockAhead {
        node: NodeId,
        ahead_us: u64,
    },
    /// A quorum of nodes names another holder than before; a keeperd if it is known.
    HolderSeen {
        holder: Option<Holder>,
    },
    /// This host asks the holder, less preferred, to hand over.
    Bids {
        holder: Holder,
    },
    /// Released; `confirmed` nodes have said so.
    Released {
        confirmed: usize,
        token: FencingToken,
    },
}
