//! Faults of the guard, with a cgroup leaf to kill by and without.

use super::{Scenario, scenario};
use crate::clock::ms;
use crate::step::{Step, check, skipped};
use crate::trial::{KEEPER, Setup, TTL, Trial, secs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub const ALL: &[Scenario] = &[
    scenario(
        "guard_sigkill_cgroup",
        "the guard is killed: its child dies, the daemon frees the lock after proof",
        |t| kill_guard(t, &[], true),
    ),
    scenario("guard_sigkill_plain", "the same without a cgroup", |t| kill_guard(t, &[], false)),
    scenario("guard_sigkill_grandchild_cgroup", "the guard is killed with a setsid grandchild alive", |t| {
        kill_guard(t, &["--grandchild"], true)
    }),
    scenario(
        "guard_sigkill_grandchild_plain",
        "the same without a cgroup: the daemon is the last subreaper",
        |t| kill_guard(t, &["--grandchild"], false),
    ),
    scenario(
        "guard_sigstop",
        "the guard is frozen: the daemon misses its acknowledgement and kills the tree",
        |t| freeze_guard(t, false),
    ),
    scenario("guard_sigstop_cgroup", "the same with a cgroup", |t| freeze_guard(t, true)),
    scenario(
        "grandchild_cgroup",
        "without a cgroup and with one: a polite stop leaves no leaf behind",
        leaf_is_removed,
    ),
];

fn needs_cgroup(t: &Trial, wanted: bool) -> Step {
    let missing = wanted && !t.has_groups();
    if missing { Err(skipped("no cgroup2 mount in which this user may make a leaf")) } else { Ok(()) }
}

fn kill_guard(t: &mut Trial, child: &[&'static str], cgroup: bool) -> Step {
    needs_cgroup(t, cgroup)?;
    let old = t.begin(Setup { child: child.to_vec(), cgroup, ..Setup::default() })?;
    let leaf = t.has_leaf(&old)?;
    check(leaf == cgroup, format!("the child is {}in a leaf of its own", if leaf { "" } else { "not " }))?;
    let holder = Trial::holder_of(&old);
    let guard = t.daemon(&holder)?.guard(KEEPER)?;
    t.random_moment();
    let at = t.note(format!("SIGKILL to guard {}", guard.pid));
    kill(Pid::from_raw(guard.pid), Signal::SIGKILL)?;
    let new = t.next_child(at, TTL + secs(1))?;
    t.figure(format!("next child after {}", ms(new.start - at)));
    t.runs_on(&new, secs(3))?;
    t.died_with_its_lease(&old, at)?;
    check(t.is_running(&holder), "the daemon went with its guard")
}

fn freeze_guard(t: &mut Trial, cgroup: bool) -> Step {
    needs_cgroup(t, cgroup)?;
    let old = t.begin(Setup { child: vec!["--grandchild"], cgroup, ..Setup::default() })?;
    let guard = t.daemon(&Trial::holder_of(&old))?.guard(KEEPER)?;
    t.random_moment();
    let at = t.note(format!("SIGSTOP to guard {}", guard.pid));
    kill(Pid::from_raw(guard.pid), Signal::SIGSTOP)?;
    let new = t.next_child(at, TTL + secs(1))?;
    t.figure(format!("next child after {}", ms(new.start - at)));
    t.runs_on(&new, secs(2))?;
    t.died_with_its_lease(&old, at)
}

fn leaf_is_removed(t: &mut Trial) -> Step {
    needs_cgroup(t, true)?;
    let old = t.begin(Setup { child: vec!["--grandchild"], ..Setup::default() })?;
    check(t.has_leaf(&old)?, "the child is not in a leaf of its own")?;
    t.random_moment();
    let at = t.signal(&Trial::holder_of(&old), Signal::SIGTERM)?;
    let new = t.successor(&old, at, secs(1))?;
    check(t.has_leaf(&new)?, "the next child is not in a leaf of its own")
}
