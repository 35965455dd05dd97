//! What is shared about one keeper's output: the edge thread reads and writes it, the core thread hands it out.

use super::file::FileSink;
use super::journal::Journal;
use super::line::Render;
use super::recent::Recent;
use super::sink::Sink;
use crate::config::OutputConfig;
use crate::core::lease::FencingToken;
use crate::core::time::Instant;
use crate::guard::Wiring;
use crate::observe::log::LogQueue;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The sinks that keepers share.
#[derive(Debug)]
pub struct Sinks {
    pub log: LogQueue,
    pub render: Render,
    pub journal: Arc<Journal>,
}

/// The output of one keeper on this host, over all its terms.
#[derive(Debug)]
pub struct Outlet {
    pub name: Arc<str>,
    /// As the configuration names it.
    pub kind: &'static str,
    /// What the guard gives the child.
    pub wiring: Wiring,
    pub last_write: LastWrite,
    /// Lines that no sink has taken, since the daemon started.
    pub dropped: Arc<AtomicU64>,
    pub(super) sink: Sink,
    recent: Mutex<Recent>,
}

impl Outlet {
    /// # Errors
    /// When a file's thread cannot be started.
    pub fn new(name: &str, output: &OutputConfig, sinks: &Sinks) -> io::Result<Arc<Outlet>> {
        let name: Arc<str> = name.into();
        let dropped = Arc::new(AtomicU64::new(0));
        let sink = match output {
            OutputConfig::Log => Sink::Log { queue: sinks.log.clone(), render: sinks.render },
            OutputConfig::Journal => Sink::Journal(Arc::clone(&sinks.journal)),
            OutputConfig::File(file) => {
                Sink::File(FileSink::start(Arc::clone(&name), file.clone(), Arc::clone(&dropped))?)
            }
            OutputConfig::Inherit | OutputConfig::Null => Sink::Elsewhere,
        };
        let wiring = match output {
            OutputConfig::Log | OutputConfig::Journal | OutputConfig::File(_) => Wiring::Pipes,
            OutputConfig::Inherit => Wiring::Inherit,
            OutputConfig::Null => Wiring::Null,
        };
        let (last_write, recent) = (LastWrite::default(), Mutex::default());
        Ok(Arc::new(Outlet { name, kind: output.name(), wiring, last_write, dropped, sink, recent }))
    }

    /// Locked for moments only, and never by the core thread.
    pub fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a file has what was written so far, at most for `limit`.
    pub fn flush(&self, limit: Duration) {
        match &self.sink {
            Sink::File(file) => file.flush(limit),
            Sink::Log { .. } | Sink::Journal(_) | Sink::Elsewhere => {}
        }
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

    /// Another after every byte that was read.
    pub fn latest(&self) -> u64 {
        self.boot_ns.load(Ordering::Relaxed)
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
