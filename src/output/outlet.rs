//! What is shared about one keeper's output: the edge thread reads and writes it, the core thread hands it out.

use crate::core::lease::FencingToken;
use crate::core::time::Instant;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The output of one keeper on this host, over all its terms.
#[derive(Debug)]
pub struct Outlet {
    pub name: Arc<str>,
    pub last_write: LastWrite,
}

impl Outlet {
    pub fn new(name: &str) -> Arc<Outlet> {
        Arc::new(Outlet { name: name.into(), last_write: LastWrite::default() })
    }
}

/// When the child last wrote a byte, for `max_silence`. Written by the edge thread only; any thread may ask, and nobody waits.
#[derive(Debug, Default)]
pub struct LastWrite {
    token: AtomicU64,
    boot_ns: AtomicU64,
}

impl LastWrite {
    /// The child of term `token` wrote something, on either stream. A pipe of an earlier term may still hold bytes: they count for
    /// nothing.
    pub fn note(&self, token: FencingToken, now: Instant) {
        let known = self.token.load(Ordering::Relaxed);
        if token.0 < known {
            return;
        }
        if token.0 > known {
            // A reader that sees the new token must not see the old term's instant.
            self.boot_ns.store(0, Ordering::Release);
            self.token.store(token.0, Ordering::Release);
        }
        self.boot_ns.store(now.as_nanos(), Ordering::Release);
    }

    /// The instant of the last byte read of that term; `None` before the first. A restart within the term does not reset it: silence
    /// of a child begins with its start or with this, whichever is later.
    pub fn of_term(&self, token: FencingToken) -> Option<Instant> {
        if self.token.load(Ordering::Acquire) != token.0 {
            return None;
        }
        match self.boot_ns.load(Ordering::Acquire) {
            0 => None,
            boot_ns => Some(Instant::from_nanos(boot_ns)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_left_over_from_an_earlier_term_breaks_no_silence() {
        let (old, new) = (FencingToken(7), FencingToken(8));
        let (first, second) = (Instant::from_nanos(10), Instant::from_nanos(20));
        let last = LastWrite::default();
        assert_eq!(last.of_term(old), None);
        last.note(old, first);
        assert_eq!((last.of_term(old), last.of_term(new)), (Some(first), None));
        last.note(new, first);
        last.note(old, second);
        assert_eq!((last.of_term(old), last.of_term(new)), (None, Some(first)));
        last.note(new, second);
        assert_eq!(last.of_term(new), Some(second));
    }
}
