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

    /// What has to be released now, in no particular order.
    pub(super) fn outstanding(&mut self, now: Instant) -> Vec<(String, Value)> {
        self.forget_expired(now);
        self.values.keys().cloned().collect()
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
