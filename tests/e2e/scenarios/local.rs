//! Engine "local": two daemons on one directory, no Redis.

use super::{Scenario, scenario};
use crate::clock::{boot_ns, ms};
use crate::step::{Step, check};
use crate::trial::{KEEPER, Setup, TTL, Trial, millis, secs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub const ALL: &[Scenario] = &[
    scenario("local_sigterm", "a polite stop hands over at once", |t| end_daemon(t, Signal::SIGTERM, 900)),
    scenario("local_sigkill", "a killed daemon hands over as soon as its tree is dead", |t| {
        end_daemon(t, Signal::SIGKILL, 900)
    }),
    scenario(
        "local_sigstop",
        "a daemon frozen for 3 × ttl: never two, and one again after the thaw",
        sigstop,
    ),
    scenario("local_guard_sigkill", "the guard is killed with a setsid grandchild alive", guard_sigkill),
    scenario(
        "local_both_sigkill",
        "daemon and guard killed together: the child goes with them",
        both_sigkill,
    ),
    scenario(
        "local_file_deleted",
        "the lock file is deleted under the holder: nobody starts beside it",
        file_deleted,
    ),
];

fn local() -> Setup {
    Setup { nodes: 0, ..Setup::default() }
}

fn end_daemon(t: &mut Trial, signal: Signal, within_ms: u64) -> Step {
    let old = t.begin(Setup { child: vec!["--grandchild"], ..local() })?;
    t.random_moment();
    let at = t.signal(&Trial::holder_of(&old), signal)?;
    let new = t.successor(&old, at, millis(within_ms))?;
    t.figure(format!("next child after {}", ms(new.start - at)));
    t.runs_on(&new, secs(2))
}

fn sigstop(t: &mut Trial) -> Step {
    let old = t.begin(local())?;
    let holder = Trial::holder_of(&old);
    t.random_moment();
    t.signal(&holder, Signal::SIGSTOP)?;
    t.pause(3 * TTL);
    let before = t.life(&old.instance)?;
    let quiet = boot_ns() - before.end > 500_000_000;
    t.figure(if quiet { "old tree dead during the freeze" } else { "old tree ran on during the freeze" });
    let at = t.signal(&holder, Signal::SIGCONT)?;
    let child = t.somebody_runs(at, secs(3))?;
    t.runs_on(&child, secs(2))
}

fn guard_sigkill(t: &mut Trial) -> Step {
    let old = t.begin(Setup { child: vec!["--grandchild"], cgroup: false, ..local() })?;
    let guard = t.daemon(&Trial::holder_of(&old))?.guard(KEEPER)?;
    t.random_moment();
    let at = t.note(format!("SIGKILL to guard {}", guard.pid));
    kill(Pid::from_raw(guard.pid), Signal::SIGKILL)?;
    let new = t.next_child(at, secs(5))?;
    t.figure(format!("next child after {}", ms(new.start - at)));
    t.runs_on(&new, secs(2))
}

/// No grandchild here: "until daemon, guard and main process are gone" is the promise in this case.
fn both_sigkill(t: &mut Trial) -> Step {
    let old = t.begin(local())?;
    let holder = Trial::holder_of(&old);
    let guard = t.daemon(&holder)?.guard(KEEPER)?;
    t.random_moment();
    let at = t.signal(&holder, Signal::SIGKILL)?;
    kill(Pid::from_raw(guard.pid), Signal::SIGKILL)?;
    let new = t.successor(&old, at, secs(5))?;
    t.figure(format!("next child after {}", ms(new.start - at)));
    t.runs_on(&new, secs(2))
}

fn file_deleted(t: &mut Trial) -> Step {
    t.begin(local())?;
    t.random_moment();
    let at = t.note("delete the lock files, start daemon c");
    let mut deleted = 0;
    for entry in std::fs::read_dir(t.locks_dir())? {
        let path = entry?.path();
        if path.file_name().is_some_and(|n| n.to_string_lossy().contains(KEEPER)) {
            std::fs::remove_file(&path)?;
            deleted += 1;
        }
    }
    check(deleted > 0, format!("no file named after {KEEPER} in the directory"))?;
    t.start("c")?;
    t.pause(2 * TTL);
    let child = t.somebody_runs(at, 2 * TTL + secs(2))?;
    t.runs_on(&child, secs(1))
}
