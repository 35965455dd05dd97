//! Values that may stand on a node that cannot be told to release them just now.

use crate::core::lease::Value;
use crate::core::time::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

/// More keepers than this are not expected on one host; beyond it the oldest is left to expire on the node.
const MAX: usize = 4096;

/// Remembered until the node has confirmed the release, or until the value has expired there anyway.
#[derive(Debug, Default)]
pub(super) struct Unwanted {
    values: BTreeMap<(String, Value), Instant>,
    dropped: u64,
}

impl Unwanted {
    /// `ttl` is doubled: an acquire still on its way is executed within a sixth of a ttl and then lives for a whole one.
    pub(super) fn remember(&mut self, key: &str, value: Value, ttl: Duration, now: Instant) {
        self.forget_expired(now);
        if self.values.len() >= MAX {
            let first = self.values.iter().min_by_key(|(_, expires)| **expires).map(|(k, _)| k.clone());
            self.dropped += 1;
            first.map(|first| self.values.remove(&first));
        }
        self.values.insert((key.to_owned(), value), now + ttl * 2);
    }

    pub(super) fn released(&mut self, key: &str, value: Value) {
        self.values.remove(&(key.to_owned(), value));
    }

    /// What has to be released now. Of one lock the newest comes last: a node remembers only the last released value (`x`), and the newest
    /// is the one whose acquire may still be on its way in time.
    pub(super) fn outstanding(&mut self, now: Instant) -> Vec<(String, Value)> {
        self.forget_expired(now);
        let mut values: Vec<_> = self.values.iter().collect();
        values.sort_by_key(|(_, expires)| **expires);
        values.into_iter().map(|(value, _)| value.clone()).collect()
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    fn forget_expired(&mut self, now: Instant) {
        self.values.retain(|_, expires| *expires > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_released_last() {
        let mut unwanted = Unwanted::default();
        for (i, value) in [7, 3, 5].into_iter().enumerate() {
            unwanted.remember("k", Value(value), Duration::from_secs(1), Instant::from_nanos(i as u64));
        }
        let order: Vec<u128> =
            unwanted.outstanding(Instant::from_nanos(9)).into_iter().map(|(_, v)| v.0).collect();
        assert_eq!(order, [7, 3, 5]);
    }

    #[test]
    fn it_is_bounded_counts_what_it_drops_and_forgets_what_has_expired() {
        let mut unwanted = Unwanted::default();
        let ttl = Duration::from_secs(1);
        for i in 0..MAX + 3 {
            unwanted.remember("k", Value(i as u128), ttl, Instant::from_nanos(i as u64));
        }
        assert_eq!(unwanted.dropped(), 3);
        assert_eq!(unwanted.outstanding(Instant::from_nanos(0)).len(), MAX);
        unwanted.released("k", Value(7));
        assert_eq!(unwanted.outstanding(Instant::from_nanos(0)).len(), MAX - 1);
        assert!(unwanted.outstanding(Instant::from_nanos(3_000_000_000)).is_empty());
    }
}
