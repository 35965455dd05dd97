//! Faults of the guard, with a cgroup leaf to kill by and without.

use super::{Scenario, scenario};
use crate::clock::ms;
use crate::step::{Step, check, failure, skipped};
use crate::trial::{KEEPER, LONG, Setup, TTL, Trial, secs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

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
        "reserve_taken",
        "a standby has a guard in reserve, and its term begins with that; without one there, with a new one",
        reserve_taken,
    ),
    scenario(
        "reserve_frozen",
        "the guard in reserve is frozen: it is missed as soon as there is a term, and the next is another",
        reserve_frozen,
    ),
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

/// Of the host that stands by, once there is one that the daemon knows of.
fn reserve(t: &mut Trial, standby: &str) -> Step<i32> {
    for _ in 0..1000 {
        if let [reserve] = &t.daemon(standby)?.reserves()[..] {
            t.pause(secs(1));
            return Ok(reserve.pid);
        }
        t.pause(Duration::from_millis(10));
    }
    Err(failure(format!("{standby} has no guard in reserve")))
}

fn reserve_taken(t: &mut Trial) -> Step {
    let mut old = t.begin(Setup::default())?;
    for killed in [false, true] {
        let holder = Trial::holder_of(&old);
        let standby = if holder == "a" { "b" } else { "a" };
        let reserve = reserve(t, standby)?;
        if killed {
            t.note(format!("SIGKILL to the guard in reserve {reserve}"));
            kill(Pid::from_raw(reserve), Signal::SIGKILL)?;
            while !t.daemon(standby)?.reserves().is_empty() {
                t.pause(Duration::from_millis(1));
            }
        }
        let at = t.signal(&holder, Signal::SIGTERM)?;
        let new = t.successor(&old, at, LONG)?;
        let guard = t.daemon(standby)?.guard(KEEPER)?.pid;
        check(
            killed != (guard == reserve),
            format!("in reserve {reserve}, killed: {killed}; guard {guard}"),
        )?;
        check(t.daemon(standby)?.reserves().is_empty(), "another in reserve")?;
        t.runs_on(&new, secs(1))?;
        t.daemon(&holder)?.await_exit(LONG)?;
        t.start(&holder)?;
        old = new;
    }
    Ok(())
}

fn reserve_frozen(t: &mut Trial) -> Step {
    let old = t.begin(Setup { keeper_lines: "cooldown = \"1s\"\n", ..Setup::default() })?;
    let holder = Trial::holder_of(&old);
    let standby = if holder == "a" { "b" } else { "a" };
    let reserve = reserve(t, standby)?;
    t.note(format!("SIGSTOP to the guard in reserve {reserve}"));
    kill(Pid::from_raw(reserve), Signal::SIGSTOP)?;
    let at = t.signal(&holder, Signal::SIGTERM)?;
    let new = t.successor(&old, at, LONG)?;
    t.figure(format!("next child after {}", ms(new.start - at)));
    check(t.daemon(standby)?.guard(KEEPER)?.pid != reserve, "a frozen guard is armed")?;
    t.runs_on(&new, secs(1))
}

fn leaf_is_removed(t: &mut Trial) -> Step {
    needs_cgroup(t, true)?;
    let old = t.begin(Setup { child: vec!["--grandchild"], ..Setup::default() })?;
    check(t.has_leaf(&old)?, "the child is not in a leaf of its own")?;
    t.random_moment();
    let at = t.signal(&Trial::holder_of(&old), Signal::SIGTERM)?;
    let new = t.successor(&old, at, LONG)?;
    check(t.has_leaf(&new)?, "the next child is not in a leaf of its own")
}
