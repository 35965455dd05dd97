//! What the machine took: a limit of time is one for the guard, not for a host that gives nobody a processor.

use super::MS;
use keeperd::{clock, guard};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::Duration;

const ITSELF: Pid = Pid::from_raw(0);
/// A processor that is this late with a thread that wants it for microseconds stood still.
const USUAL: Duration = Duration::from_millis(5);

/// A thread on each processor, in the guard's class, that looks at the clock all the time.
pub struct Machine {
    over: Arc<AtomicBool>,
    watchers: Vec<JoinHandle<Duration>>,
}

impl Machine {
    pub fn watch() -> Machine {
        let ours = sched_getaffinity(ITSELF).expect("our own");
        let processors: Vec<usize> =
            (0..CpuSet::count()).filter(|cpu| ours.is_set(*cpu).unwrap_or(false)).collect();
        let over = Arc::new(AtomicBool::new(false));
        let began = Arc::new(Barrier::new(processors.len() + 1));
        let watcher = |cpu| {
            let (over, began) = (Arc::clone(&over), Arc::clone(&began));
            std::thread::spawn(move || watch(cpu, &over, &began))
        };
        let watchers = processors.into_iter().map(watcher).collect();
        began.wait();
        Machine { over, watchers }
    }

    /// How long each of its processors stood still since, added up.
    pub fn stood_still(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        let stood = self.watchers.into_iter().map(|watcher| watcher.join().expect("no panic")).sum();
        if stood > Duration::ZERO {
            println!("    the machine stood still for {stood:?}");
        }
        stood
    }
}

fn watch(cpu: usize, over: &AtomicBool, began: &Barrier) -> Duration {
    // Where it may not, the guard may not either.
    let _ = guard::become_realtime();
    let mut here = CpuSet::new();
    here.set(cpu).expect("it is one of ours");
    sched_setaffinity(ITSELF, &here).expect("it is one of ours");
    began.wait();
    let mut stood = Duration::ZERO;
    while !over.load(Ordering::Relaxed) {
        let before = clock::boot();
        std::thread::sleep(MS);
        let late = clock::boot().since(before).saturating_sub(MS);
        if late > USUAL {
            stood += late;
        }
    }
    stood
}

/// Whether the guard has its real-time class here. Without, it shares the processors with all that it kills and with whoever else is there.
pub fn is_realtime() -> bool {
    guard::become_realtime().is_ok()
}
