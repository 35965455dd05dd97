//! Pauses between connection attempts.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(10);
const LAST: Duration = Duration::from_secs(2);

/// Doubles from 10 ms to 2 s; each pause is cut by up to half at random, so that hosts do not arrive together at a node that comes back.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    random: u64,
}

impl Backoff {
    pub(super) fn new() -> Self {
        // Without the kernel's random source hosts merely keep step.
        Backoff { next: FIRST, random: getrandom::u64().unwrap_or(1) | 1 }
    }

    pub(super) fn reset(&mut self) {
        self.next = FIRST;
    }

    /// `cap`: at most this, while a lease is at stake (R27).
    pub(super) fn pause(&mut self, cap: Option<Duration>) -> Duration {
        let pause = self.next.min(cap.unwrap_or(LAST));
        self.next = (self.next * 2).min(LAST);
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        pause - pause / 2 * u32::try_from(self.random % 1024).expect("below 1024") / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_to_two_seconds_and_respects_the_cap() {
        let mut backoff = Backoff::new();
        let pauses: Vec<Duration> = (0..12).map(|_| backoff.pause(None)).collect();
        assert!(pauses[0] <= FIRST && pauses[0] >= FIRST / 2);
        assert!(pauses[11] <= LAST && pauses[11] >= LAST / 2);
        assert!(backoff.pause(Some(Duration::from_millis(100))) <= Duration::from_millis(100));
        backoff.reset();
        assert!(backoff.pause(None) <= FIRST);
    }
}
