//! What a search is run with: how much may go wrong, and which rule is broken on purpose.

use keeperd::core::timing::Timing;
use std::time::Duration;

pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Time moves in steps of this; seven of them are a lease. An attempt (ttl/6) must outlast one step, or split votes are never tried again.
pub const TICK: Duration = ms(1000);
const TTL_TICKS: u32 = 7;

/// A rule that is not kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Broken {
    #[default]
    Nothing,
    /// A vote counts from its reply.
    ValidityFromReply,
    /// The guard has no deadlines of its own.
    DaemonKills,
    /// A node that lost its data votes at once.
    NoQuarantine,
    /// Signalled counts as dead.
    ReleaseBeforeDeath,
    ExtendCreates,
    NoShadow,
    /// Tokens are written by acquire only.
    NoWriteBack,
}

/// The hosts' wall clocks, by which they propose tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Clocks {
    #[default]
    Agree,
    /// Both stand still, the first host's a minute ahead: the order of tokens rests on the nodes alone.
    Apart,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Start {
    /// Both hosts stand at once.
    #[default]
    Contending,
    /// The first host holds three votes, the second knows it.
    Leading,
    /// The first host holds two votes; the second had the third one, with its own smaller token, and has given it back.
    Minority,
    /// The same, later: node A has lost its data, its quarantine is over, and the second host's daemon is new.
    Recovered,
}

/// What may go wrong, and how often, in one run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Faults {
    /// Requests or replies that are late by any time, for ever included.
    pub delays: u8,
    pub freezes: u8,
    /// FLUSHALL on one node.
    pub flushes: u8,
    /// Restarts of one node without its data.
    pub empties: u8,
    /// Restarts with its data.
    pub restarts: u8,
    /// DEL of the lock key by hand, on one node.
    pub deletes: u8,
    /// `step-down` on a host.
    pub step_downs: u8,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Variant {
    pub name: &'static str,
    pub faults: Faults,
    pub start: Start,
    pub ticks: u8,
    /// Only the first host's daemon freezes.
    pub only_first: bool,
    pub clocks: Clocks,
    pub broken: Broken,
}

impl Variant {
    /// ttl 7 s: attempt 1.17, start within 1.75, extend 3.5, stop 5.78, kill 6.68, end 6.93.
    pub fn timing(&self) -> Timing {
        Timing::new(TICK * TTL_TICKS, ms(900)).expect("fits")
    }

    /// "auto" as far as one lease is concerned: ttl × 1.01, rounded up to a step.
    pub fn quarantine(&self) -> Duration {
        TICK * (TTL_TICKS + 1)
    }
}
