//! Clocks of the parties. The world has one true time, in nanoseconds since it began; nobody can read it.

use crate::core::time::Instant;

pub type Nanos = u64;
pub const US: Nanos = 1_000;
pub const MS: Nanos = 1_000_000;
pub const SEC: Nanos = 1_000_000_000;
pub const NEVER: Nanos = u64::MAX;

/// Both clocks of a term may be off by this, in opposite directions: together just below the 1 % the lease allows for.
pub const RATE_MAX_PPM: i64 = 4_900;

/// `CLOCK_BOOTTIME` of a host.
#[derive(Clone, Copy, Debug)]
pub struct BootClock {
    base: Nanos,
    ppm: i64,
}

impl BootClock {
    pub fn new(base: Nanos, ppm: i64) -> Self {
        BootClock { base, ppm }
    }

    fn elapsed(&self, t: Nanos) -> Nanos {
        t.saturating_add_signed(t.cast_signed() / 1_000_000 * self.ppm)
    }

    pub fn read(&self, t: Nanos) -> Instant {
        Instant::from_nanos(self.base + self.elapsed(t))
    }

    /// The first true instant at which it shows at least `at`.
    pub fn when(&self, at: Instant) -> Nanos {
        let target = at.as_nanos().saturating_sub(self.base);
        if target > 1 << 60 {
            return NEVER;
        }
        let off = target.cast_signed() / (1_000_000 + self.ppm) * self.ppm;
        let mut t = target.saturating_add_signed(-off);
        while t > 0 && self.elapsed(t - 1) >= target {
            t -= (self.elapsed(t) - target).max(1).min(t);
        }
        while self.elapsed(t) < target {
            t += (target - self.elapsed(t)) * 99 / 100 + 1;
        }
        t
    }
}

/// Wall clock of a lock node, in µs. It can be stepped and stopped.
#[derive(Clone, Copy, Debug)]
pub struct NodeClock {
    shown_us: u64,
    since: Nanos,
    ppm: i64,
    stopped: bool,
}

impl NodeClock {
    pub fn new(shown_us: u64, ppm: i64) -> Self {
        NodeClock { shown_us, since: 0, ppm, stopped: false }
    }

    pub fn us(&self, t: Nanos) -> u64 {
        if self.stopped {
            return self.shown_us;
        }
        let us = (t - self.since) / US;
        self.shown_us + us.saturating_add_signed(us.cast_signed() * self.ppm / 1_000_000)
    }

    /// A true instant at which it shows at least `us`, to the µs; `NEVER` when it stands still.
    pub fn when(&self, us: u64, now: Nanos) -> Nanos {
        let shown = self.us(now);
        if us <= shown {
            return now;
        }
        if self.stopped {
            return NEVER;
        }
        let left = (us - shown).cast_signed();
        let left = left - left * self.ppm / (1_000_000 + self.ppm);
        now + left.unsigned_abs() * US
    }

    pub fn step(&mut self, now: Nanos, by_us: i64) {
        self.shown_us = self.us(now).saturating_add_signed(by_us);
        self.since = now;
    }

    pub fn stop(&mut self, now: Nanos, stopped: bool) {
        self.shown_us = self.us(now);
        self.since = now;
        self.stopped = stopped;
    }
}
