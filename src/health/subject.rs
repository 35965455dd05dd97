//! What is to be probed just now: written by the core thread, which never waits, and read by the edge.

use crate::core::election::{HealthReport, ProbeNumber, Probed};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Notify, mpsc};

/// Only the latest counts.
#[derive(Debug, Default)]
pub struct Subject {
    word: AtomicU64,
    changed: Notify,
}

/// The core thread's end.
#[derive(Debug)]
pub struct Link {
    pub subject: Arc<Subject>,
    pub reports: mpsc::Receiver<HealthReport>,
}

impl Link {
    /// The next report, if anybody probes at all. Cancel-safe.
    pub async fn next(link: &mut Option<Link>) -> HealthReport {
        if let Some(link) = link
            && let Some(report) = link.reports.recv().await
        {
            return report;
        }
        std::future::pending().await
    }
}

impl Subject {
    pub fn set(&self, probed: Probed) {
        let word = encode(probed);
        if self.word.swap(word, Ordering::Relaxed) != word {
            self.changed.notify_one();
        }
    }

    /// Waits until it is another than `seen`. For one waiter.
    pub async fn other_than(&self, seen: Probed) -> Probed {
        loop {
            let now = decode(self.word.load(Ordering::Relaxed));
            if now != seen {
                return now;
            }
            // A change since the look has left its mark here, and is not slept through.
            self.changed.notified().await;
        }
    }
}

fn encode(probed: Probed) -> u64 {
    match probed {
        Probed::Nothing => 0,
        Probed::Host(number) => number.0 << 2 | 1,
        Probed::Child(number) => number.0 << 2 | 2,
    }
}

fn decode(word: u64) -> Probed {
    let number = ProbeNumber(word >> 2);
    match word & 3 {
        1 => Probed::Host(number),
        2 => Probed::Child(number),
        _ => Probed::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_survives_the_word() {
        for probed in [Probed::Nothing, Probed::Host(ProbeNumber(1)), Probed::Child(ProbeNumber(1 << 60))] {
            assert_eq!(decode(encode(probed)), probed);
        }
    }

    #[tokio::test]
    async fn no_change_is_slept_through() {
        let subject = Subject::default();
        let child = Probed::Child(ProbeNumber(3));
        subject.set(child);
        assert_eq!(subject.other_than(Probed::Nothing).await, child);
        subject.set(Probed::Nothing);
        assert_eq!(subject.other_than(child).await, Probed::Nothing);
    }
}
