//! The only place where clocks are read.

use crate::core::time::{Instant, Now, WallTime};
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// `CLOCK_BOOTTIME`.
///
/// # Panics
/// When the kernel has no such clock: keeperd needs Linux 2.6.39.
pub fn boot() -> Instant {
    let t = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME since 2.6.39");
    let (s, ns) = (t.tv_sec().unsigned_abs(), t.tv_nsec().unsigned_abs());
    Instant::from_nanos(s * 1_000_000_000 + ns)
}

/// Wall-clock time; never compared with a deadline.
pub fn wall() -> WallTime {
    let t = clock_gettime(ClockId::CLOCK_REALTIME).expect("every Unix has CLOCK_REALTIME");
    let (s, ns) = (t.tv_sec().unsigned_abs(), t.tv_nsec().unsigned_abs());
    WallTime::from_micros(s * 1_000_000 + ns / 1_000)
}

pub fn now() -> Now {
    Now { boot: boot(), wall: wall() }
}

/// Processor time of this process, all threads.
pub fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
