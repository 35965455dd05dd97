//! What is known of a node's clock.

use crate::core::time::Instant;

/// Clock rates may differ by this much (1/100): an estimate widens as it ages.
const DRIFT: i64 = 100;
/// Grain of TIME on servers that freeze it while a script runs.
const GRAIN_US: i64 = 1_000;

/// The node's TIME minus local boot time, in µs, as the interval that all recent replies allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Offset {
    low: i64,
    high: i64,
    /// Local µs of the last observation.
    at: i64,
}

impl Offset {
    /// From the first reply, which said `node_us`.
    pub(super) fn first(node_us: u64, sent: Instant, received: Instant) -> Self {
        let (node, sent, received) = (signed(node_us), micros(sent), micros(received));
        Offset { low: node - received, high: node - sent + GRAIN_US, at: received }
    }

    /// Narrows the estimate, or replaces it when a clock was set (R17).
    pub(super) fn observe(&mut self, node_us: u64, sent: Instant, received: Instant) {
        let new = Offset::first(node_us, sent, received);
        let old = self.aged(received);
        let (low, high) = (old.low.max(new.low), old.high.min(new.high));
        *self = if low <= high { Offset { low, high, ..new } } else { new };
    }

    /// A local deadline in the node's own time. The upper end: a deadline may be kept a little too well, never found late falsely.
    pub(super) fn deadline(&self, local: Instant, now: Instant) -> u64 {
        u64::try_from(micros(local).saturating_add(self.aged(now).high)).unwrap_or(0)
    }

    /// The node's TIME now, at the earliest.
    pub(super) fn node_now(&self, now: Instant) -> u64 {
        u64::try_from(micros(now).saturating_add(self.aged(now).low)).unwrap_or(0)
    }

    fn aged(self, now: Instant) -> Offset {
        let slack = micros(now).saturating_sub(self.at).max(0) / DRIFT;
        Offset { low: self.low.saturating_sub(slack), high: self.high.saturating_add(slack), at: self.at }
    }
}

fn micros(at: Instant) -> i64 {
    signed(at.as_nanos() / 1_000)
}

/// Bounded so that the sums above stay in range whatever a node says.
fn signed(us: u64) -> i64 {
    i64::try_from(us).unwrap_or(i64::MAX).min(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn a_deadline_is_never_earlier_on_the_node_than_here() {
        // The node is 5 s ahead; its reply took 4 ms, of which 1 ms on the way there.
        let offset = Offset::first(5_001_000, at(0), at(4));
        assert!(offset.deadline(at(100), at(4)) >= 5_100_000);
        assert!(offset.deadline(at(100), at(4)) <= 5_103_000);
    }

    #[test]
    fn replies_narrow_the_estimate_and_a_step_of_the_clock_replaces_it() {
        let mut offset = Offset::first(5_050_000, at(0), at(100));
        offset.observe(5_110_500, at(110), at(111));
        assert!(offset.high - offset.low <= 2_000);
        offset.observe(9_120_000, at(120), at(121));
        assert!(offset.deadline(at(200), at(121)) >= 9_200_000);
        offset.observe(130_000, at(130), at(131));
        assert!(offset.deadline(at(200), at(131)) <= 203_000);
    }

    #[test]
    fn an_old_estimate_gives_way_to_clock_rates() {
        let offset = Offset::first(1_000, at(0), at(1));
        let later = at(0) + Duration::from_secs(100);
        assert!(offset.deadline(later, later) >= 100_000_000 + 900_000);
    }

    #[test]
    fn absurd_times_do_not_overflow() {
        let mut offset = Offset::first(u64::MAX, at(0), at(1));
        offset.observe(0, at(2), at(3));
        offset.observe(u64::MAX, at(2), Instant::from_nanos(u64::MAX));
        let _ = offset.deadline(Instant::from_nanos(u64::MAX), at(3));
    }
}
