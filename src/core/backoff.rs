//! Delays that double, with the jitter drawn by the caller.

use super::rng::Rng;
use std::time::Duration;

/// Doubling delay between `first` and `max`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    step: u32,
}

impl Backoff {
    /// # Panics
    /// When `first` is zero or above `max`: both are constants or validated configuration.
    pub fn new(first: Duration, max: Duration) -> Self {
        assert!(!first.is_zero() && first <= max, "back-off needs 0 < first <= max");
        Backoff { first, max, step: 0 }
    }

    /// The next delay without jitter; each call doubles the following one.
    pub fn next_delay(&mut self) -> Duration {
        let factor = 1_u32.checked_shl(self.step).unwrap_or(u32::MAX);
        let delay = self.first.checked_mul(factor).map_or(self.max, |d| d.min(self.max));
        self.step = (self.step + 1).min(31);
        delay
    }

    /// Full jitter: uniform in `[0, delay)`. For contenders that must not meet again.
    pub fn next_full(&mut self, rng: &mut Rng) -> Duration {
        let delay = self.next_delay();
        rng.below(delay)
    }

    /// Slight jitter: the last quarter of the delay is random. For people who configured the delay and want to recognise it.
    pub fn next_slight(&mut self, rng: &mut Rng) -> Duration {
        let delay = self.next_delay();
        delay - delay / 4 + rng.below(delay / 4)
    }

    pub fn reset(&mut self) {
        self.step = 0;
    }
}
