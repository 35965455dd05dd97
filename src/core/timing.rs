//! The time line of a term (DESIGN.md 3), computed once per keeper and checked when it is built.
//!
//! ```text
//! t0 ──── extend (ttl/2) ──── stop_at ──── kill_at ── valid_until ─ t0+ttl
//!         retried until ─────►│ polite ───►│ SIGKILL ─►│ proven dead
//! ```

use super::time::Instant;
use std::fmt;
use std::time::Duration;

/// Shortest lease: below it no time line fits the margins.
pub const TTL_MIN: Duration = Duration::from_secs(1);
/// Longest lease. A lost host keeps its keepers away for this long, so a day is a typing error.
pub const TTL_MAX: Duration = Duration::from_secs(3600);

/// The durations of a term. A value of this type satisfies the inequality of [`Timing::new`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Timing {
    ttl: Duration,
    stop_timeout: Duration,
}

/// When the child is told to stop, and when whatever is left is killed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Deadlines {
    pub stop_at: Instant,
    pub kill_at: Instant,
}

/// `ttl/2 + 2 × node_timeout + stop_timeout + kill_margin + drift < ttl` does not hold, or the lease is out of range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Impossible {
    TtlTooShort {
        ttl: Duration,
    },
    TtlTooLong {
        ttl: Duration,
    },
    /// The sum term by term; `stop_timeout_max` is what would be right.
    DoesNotFit {
        timing: Timing,
        sum: Duration,
        stop_timeout_max: Option<Duration>,
    },
}

impl Timing {
    /// # Errors
    /// When the polite stop, the kill and two full time-outs do not fit between the extension and the end of the lease.
    pub fn new(ttl: Duration, stop_timeout: Duration) -> Result<Self, Impossible> {
        if ttl < TTL_MIN {
            return Err(Impossible::TtlTooShort { ttl });
        }
        if ttl > TTL_MAX {
            return Err(Impossible::TtlTooLong { ttl });
        }
        let timing = Timing { ttl, stop_timeout };
        let fixed = timing.extend_every() + 2 * timing.node_timeout() + timing.kill_margin() + timing.drift();
        let sum = fixed.saturating_add(stop_timeout);
        if sum >= ttl {
            let stop_timeout_max = ttl.checked_sub(fixed + Duration::from_millis(1)).map(floor_to_ms);
            return Err(Impossible::DoesNotFit { timing, sum, stop_timeout_max });
        }
        Ok(timing)
    }

    /// The smaller of 5 s and ttl/6.
    pub fn default_stop_timeout(ttl: Duration) -> Duration {
        (ttl / 6).min(Duration::from_secs(5))
    }

    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    pub fn stop_timeout(&self) -> Duration {
        self.stop_timeout
    }

    /// Allowance for clock rates and for the 1 ms grain of expiry, as in the npm package: 1 % + 2 ms.
    pub fn drift(&self) -> Duration {
        self.ttl / 100 + Duration::from_millis(2)
    }

    /// From SIGKILL to the end of validity: what a starved guard and a large tree need.
    pub fn kill_margin(&self) -> Duration {
        (self.ttl / 50).max(Duration::from_millis(250))
    }

    /// A request unanswered for this long is *silent*, which is not a no.
    pub fn node_timeout(&self) -> Duration {
        (self.ttl / 20).min(Duration::from_millis(500))
    }

    /// The guard must acknowledge within this (review.md R10).
    pub fn ack_timeout(&self) -> Duration {
        2 * self.node_timeout()
    }

    pub fn extend_every(&self) -> Duration {
        self.ttl / 2
    }

    /// Pause between two extension rounds while they fail.
    pub fn retry_gap(&self) -> Duration {
        self.node_timeout() / 4
    }

    /// An election attempt is bounded by this, also on the nodes' own clocks.
    pub fn attempt_max(&self) -> Duration {
        (self.ttl / 6).min(Duration::from_secs(5))
    }

    /// A child starts only this early in its lease.
    pub fn start_within(&self) -> Duration {
        self.ttl / 4
    }

    /// End of one vote whose request was sent at `sent`.
    pub fn vote_ends(&self, sent: Instant) -> Instant {
        sent + (self.ttl - self.drift())
    }

    pub fn deadlines(&self, valid_until: Instant) -> Deadlines {
        Deadlines { stop_at: self.stop_at(valid_until), kill_at: self.kill_at(valid_until) }
    }

    pub fn kill_at(&self, valid_until: Instant) -> Instant {
        valid_until - self.kill_margin()
    }

    pub fn stop_at(&self, valid_until: Instant) -> Instant {
        self.kill_at(valid_until) - self.stop_timeout
    }
}

fn floor_to_ms(span: Duration) -> Duration {
    Duration::from_millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Impossible::TtlTooShort { ttl } => write!(f, "ttl {ttl:?} is too short: at least {TTL_MIN:?}"),
            Impossible::TtlTooLong { ttl } => write!(f, "ttl {ttl:?} is too long: at most {TTL_MAX:?}"),
            Impossible::DoesNotFit { timing, sum, stop_timeout_max } => {
                write!(
                    f,
                    "impossible time line: ttl/2 {:?} + 2 × node_timeout {:?} + stop_timeout {:?} + kill_margin {:?} \
                     + drift {:?} = {:?}, which is not below ttl {:?}; ",
                    timing.extend_every(),
                    2 * timing.node_timeout(),
                    timing.stop_timeout,
                    timing.kill_margin(),
                    timing.drift(),
                    sum,
                    timing.ttl,
                )?;
                match stop_timeout_max {
                    Some(max) => write!(f, "use a stop_timeout of at most {max:?} or a longer ttl"),
                    None => write!(f, "use a longer ttl"),
                }
            }
        }
    }
}

impl std::error::Error for Impossible {}
