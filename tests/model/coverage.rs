//! What a search has seen. Kept beside the states and not in them: a mark in a state would double the states.

use keeperd::core::request::{AcquireAnswer, Answer, RaiseAnswer, RepairAnswer, Request};
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    Elected,
    Extended,
    Unknown,
    HandedOver,
    Evicted,
    Foreign,
    TakenOver,
    Raised,
    Outrun,
    Mine,
    Late,
    Quarantined,
    ReleasedValue,
    Repaired,
    GuardKilled,
    Outlived,
}

const ALL: [Mark; 16] = [
    Mark::Elected,
    Mark::Extended,
    Mark::Unknown,
    Mark::HandedOver,
    Mark::Evicted,
    Mark::Foreign,
    Mark::TakenOver,
    Mark::Raised,
    Mark::Outrun,
    Mark::Mine,
    Mark::Late,
    Mark::Quarantined,
    Mark::ReleasedValue,
    Mark::Repaired,
    Mark::GuardKilled,
    Mark::Outlived,
];

#[derive(Debug, Default)]
pub struct Coverage(AtomicU64);

impl Coverage {
    pub fn mark(&self, mark: Mark) {
        let bit = 1 << mark as u64;
        // A plain read first: the search is parallel and nearly every mark is set already.
        if self.0.load(Ordering::Relaxed) & bit == 0 {
            self.0.fetch_or(bit, Ordering::Relaxed);
        }
    }

    pub fn request(&self, request: &Request) {
        if matches!(request, Request::Raise { .. }) {
            self.mark(Mark::Raised);
        }
    }

    pub fn answer(&self, answer: &Answer) {
        match answer {
            Answer::Acquire(AcquireAnswer::Mine { .. }) => self.mark(Mark::Mine),
            Answer::Acquire(AcquireAnswer::Late) => self.mark(Mark::Late),
            Answer::Acquire(AcquireAnswer::Quarantined { .. }) => self.mark(Mark::Quarantined),
            Answer::Acquire(AcquireAnswer::Released) => self.mark(Mark::ReleasedValue),
            Answer::Raise(RaiseAnswer::Outrun { .. }) => self.mark(Mark::Outrun),
            Answer::Repair(RepairAnswer::Repaired) => self.mark(Mark::Repaired),
            _ => {}
        }
    }

    pub fn seen(&self) -> Vec<Mark> {
        let bits = self.0.load(Ordering::Relaxed);
        ALL.into_iter().filter(|mark| bits & (1 << *mark as u64) != 0).collect()
    }
}
