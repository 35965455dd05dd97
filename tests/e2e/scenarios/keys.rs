//! Hands in Redis: FLUSHALL and DEL.

use super::nodes::quarantined;
use super::{Scenario, scenario};
use crate::clock::{boot_ns, ms};
use crate::step::{Step, check};
use crate::trial::{CALM, QUARANTINE, Setup, TTL, Trial, millis, secs};
use nix::sys::signal::Signal;

pub const ALL: &[Scenario] = &[
    scenario("flush_one", "FLUSHALL on one node, a further daemon at once: nothing happens", |t| flush(t, 1)),
    scenario(
        "flush_two",
        "FLUSHALL on two nodes, a further daemon at once: nobody starts beside the old tree",
        |t| flush(t, 2),
    ),
    scenario("flush_three", "FLUSHALL on all nodes, a further daemon at once", |t| flush(t, 3)),
    scenario(
        "flush_two_frozen_holder",
        "FLUSHALL on two nodes while the holder's daemon is frozen",
        flush_frozen_holder,
    ),
    scenario("delete_one", "the lock deleted on one node: nothing happens, and it is put back", delete_one),
    scenario("delete_all", "the lock deleted on all nodes: a clean hand-over", |t| {
        delete_all(t, Setup { ttl: CALM, ..Setup::default() })
    }),
    scenario("delete_all_lingering", "the same, and the child takes 200 ms to stop", |t| {
        delete_all(t, Setup { child: vec!["--linger", "200"], ttl: CALM, ..Setup::default() })
    }),
];

fn flush(t: &mut Trial, count: usize) -> Step {
    let old = t.begin(quarantined())?;
    t.held_by_all()?;
    let mut names = t.node_names();
    let turn = usize::try_from(t.chance.below(3)).unwrap_or(0);
    names.rotate_left(turn);
    t.random_moment();
    let at = t.note(format!("FLUSHALL on {:?}, start daemon c", &names[..count]));
    for name in &names[..count] {
        t.node(*name).ask(&["FLUSHALL"])?;
    }
    t.start("c")?;
    if count == 1 {
        return t.runs_on(&old, 3 * TTL);
    }
    let child = t.somebody_runs(at, QUARANTINE + secs(3))?;
    t.runs_on(&child, secs(2))
}

fn flush_frozen_holder(t: &mut Trial) -> Step {
    let old = t.begin(quarantined())?;
    let holder = Trial::holder_of(&old);
    t.random_moment();
    t.signal(&holder, Signal::SIGSTOP)?;
    let frozen = boot_ns();
    let at = t.note("FLUSHALL on A and B, start daemon c");
    t.node('A').ask(&["FLUSHALL"])?;
    t.node('B').ask(&["FLUSHALL"])?;
    t.start("c")?;
    let new = t.next_child(at, QUARANTINE + secs(3))?;
    t.died_with_its_lease(&old, frozen)?;
    t.signal(&holder, Signal::SIGCONT)?;
    t.runs_on(&new, secs(2))
}

fn delete(t: &mut Trial, name: char) -> Step {
    t.note(format!("DEL {} on redis-{name}", Trial::lock_key()));
    t.node(name).ask(&["DEL", &Trial::lock_key()]).map(drop)
}

fn delete_one(t: &mut Trial) -> Step {
    let child = t.begin(Setup::default())?;
    t.held_by_all()?;
    let name = t.random_node();
    t.random_moment();
    let before = t.node(name).get(&Trial::lock_key())?;
    delete(t, name)?;
    t.runs_on(&child, 3 * TTL)?;
    let after = t.node(name).get(&Trial::lock_key())?;
    check(before.is_some() && before == after, format!("the lock was {before:?} and is {after:?}"))
}

/// As a person does it: one node after the other, some milliseconds apart.
fn delete_all(t: &mut Trial, setup: Setup) -> Step {
    let old = t.begin(setup)?;
    t.random_moment();
    let at = t.note("delete the lock everywhere");
    for name in t.node_names() {
        delete(t, name)?;
        let pause = t.chance.span_below(millis(5));
        t.pause(pause);
    }
    let new = t.successor(&old, at, millis(1000))?;
    t.figure(format!("next child after {}", ms(new.start - at)));
    let old = t.life(&old.instance)?;
    check(old.stopped, "the old child was not given the time to stop")?;
    t.runs_on(&new, secs(2))
}
