//! Instants that are handed in.
//!
//! Deadlines are `CLOCK_BOOTTIME`: it counts suspend, which `std::time::Instant` does not, and nobody can set it.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A reading of `CLOCK_BOOTTIME`, in nanoseconds. Comparable within one boot of one host only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// Later than everything else.
    pub const NEVER: Instant = Instant(u64::MAX);

    pub const fn from_nanos(boot_ns: u64) -> Self {
        Self(boot_ns)
    }

    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long before `self` `earlier` was; zero when it was not.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The last multiple of `grid` since boot; itself for a zero grid.
    pub fn floor(self, grid: Duration) -> Instant {
        let grid_ns = u64::try_from(grid.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0 - self.0.checked_rem(grid_ns).unwrap_or(0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, span: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, span: Duration) -> Instant {
        Instant(self.0.saturating_sub(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000_000, self.0 / 1_000 % 1_000_000)
    }
}

/// Wall-clock time in microseconds since 1970. Used for proposals of fencing tokens and for people, never for a deadline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct WallTime(u64);

impl WallTime {
    pub const fn from_micros(us: u64) -> Self {
        Self(us)
    }

    pub const fn as_micros(self) -> u64 {
        self.0
    }
}

/// Both clocks, read together by the shell immediately before the core is called.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Now {
    pub boot: Instant,
    pub wall: WallTime,
}
