//! The fenced mutex as a sequential object (Hazelcast's model): if every keeper's history is one of it, the lock behaved
//! as one lock, and each holder's fence exceeded those of all before it.

use crate::checker::{Fault, Judge, Life, Violation};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Release(u64),
    Acquire(u64),
}

#[derive(Debug, Default)]
struct FencedMutex {
    holder: Option<u64>,
    fence: u64,
}

impl FencedMutex {
    fn apply(&mut self, op: Op) -> bool {
        match op {
            Op::Acquire(token) if self.holder.is_none() && token > self.fence => {
                *self = Self { holder: Some(token), fence: token };
                true
            }
            Op::Release(token) if self.holder == Some(token) => {
                self.holder = None;
                true
            }
            Op::Acquire(_) | Op::Release(_) => false,
        }
    }
}

/// Feeds every keeper's terms to the model; says how many operations it took.
pub fn verdict(judge: &Judge) -> (Vec<Violation>, usize) {
    // A term is from the first start to the last sign of life of what ran under its token.
    let mut terms: BTreeMap<(String, u64), (u64, u64)> = BTreeMap::new();
    let excused = |l: &Life| judge.excuses(l, l.end) || judge.excuses(l, l.start);
    for life in judge.lives().iter().filter(|l| !l.is_legacy() && !excused(l)) {
        let term = terms.entry((life.keeper.clone(), life.token)).or_insert((life.start, life.end));
        *term = (term.0.min(life.start), term.1.max(life.end));
    }
    let mut history: BTreeMap<&str, Vec<(u64, Op)>> = BTreeMap::new();
    for ((keeper, token), (start, end)) in &terms {
        let of_keeper = history.entry(keeper).or_default();
        of_keeper.extend([(*start, Op::Acquire(*token)), (*end, Op::Release(*token))]);
    }
    let (mut found, mut ops) = (Vec::new(), 0);
    for (keeper, mut of_keeper) in history {
        // An instance of a single record acquires and releases in one instant, in this order.
        of_keeper.sort_by_key(|(at, op)| (*at, matches!(op, Op::Release(_))));
        let mut mutex = FencedMutex::default();
        for (at, op) in of_keeper {
            ops += 1;
            if !mutex.apply(op) {
                let text = format!("{keeper}: {op:?} is no step of a fenced mutex in {mutex:?}");
                found.push(Violation { fault: Fault::History, at, text });
                break;
            }
        }
    }
    (found, ops)
}
