//! Faults of the Redis nodes.

use super::{Scenario, scenario};
use crate::checker::Life;
use crate::clock::{boot_ns, nanos};
use crate::cluster::Node;
use crate::step::Step;
use crate::trial::{QUARANTINE, Setup, TTL, Trial, WITH_QUARANTINE, millis, secs};

pub const ALL: &[Scenario] = &[
    scenario("node_frozen", "one node frozen for 3 × ttl, and back: nothing happens", node_frozen),
    scenario("node_killed", "one node killed: nothing happens", node_killed),
    scenario("node_empty", "one node killed and started empty: nothing happens", node_empty),
    scenario(
        "nodes_rolling",
        "every node restarted empty, one after the other: nothing happens",
        nodes_rolling,
    ),
    scenario(
        "nodes_frozen",
        "all nodes frozen for 2 × ttl: the tree is dead before the lease ends; then back",
        nodes_frozen,
    ),
    scenario("nodes_empty", "all nodes restarted empty: nobody starts beside the old tree", nodes_empty),
    scenario(
        "clock_step",
        "one node's wall clock steps forward and back, by seed: nothing happens",
        clock_step,
    ),
    scenario("clock_strobe", "one node's wall clock jumps to and fro: nothing happens", clock_strobe),
    scenario(
        "deciding_vote",
        "held on two nodes, one of them restarts empty as the third comes back",
        deciding_vote,
    ),
    scenario(
        "deciding_vote_frozen_holder",
        "the same while the holder's daemon is frozen",
        deciding_vote_frozen_holder,
    ),
];

/// A node that restarts may not help to elect until every lease it forgot has ended.
pub fn quarantined() -> Setup {
    Setup { quarantine: WITH_QUARANTINE, ..Setup::default() }
}

fn node_frozen(t: &mut Trial) -> Step {
    let child = t.begin(Setup::default())?;
    t.held_by_all()?;
    let name = t.random_node();
    t.random_moment();
    t.note(format!("freeze redis-{name}"));
    t.node(name).freeze();
    t.runs_on(&child, 3 * TTL)?;
    t.note(format!("thaw redis-{name}"));
    t.node(name).thaw();
    t.runs_on(&child, secs(2))
}

fn node_killed(t: &mut Trial) -> Step {
    let child = t.begin(Setup::default())?;
    t.held_by_all()?;
    let name = t.random_node();
    t.random_moment();
    t.note(format!("kill redis-{name}"));
    t.node(name).kill();
    t.runs_on(&child, 3 * TTL)
}

fn node_empty(t: &mut Trial) -> Step {
    let child = t.begin(quarantined())?;
    t.held_by_all()?;
    let name = t.random_node();
    t.random_moment();
    t.note(format!("restart redis-{name} empty"));
    t.restart_node_empty(name)?;
    t.runs_on(&child, 3 * TTL)
}

/// Faster than extensions come: each node must have the lock again as soon as it is back (R26).
fn nodes_rolling(t: &mut Trial) -> Step {
    let child = t.begin(quarantined())?;
    t.held_by_all()?;
    t.random_moment();
    for name in t.node_names() {
        t.note(format!("restart redis-{name} empty"));
        t.restart_node_empty(name)?;
        t.runs_on(&child, TTL * 4 / 10)?;
    }
    t.runs_on(&child, 2 * TTL)
}

fn nodes_frozen(t: &mut Trial) -> Step {
    let old = t.begin(Setup::default())?;
    t.random_moment();
    t.note("freeze all nodes");
    for name in t.node_names() {
        t.node(name).freeze();
    }
    let at = boot_ns();
    t.pause(2 * TTL);
    t.died_with_its_lease(&old, at)?;
    let back = t.note("thaw all nodes");
    for name in t.node_names() {
        t.node(name).thaw();
    }
    let new = t.next_child(back, secs(10))?;
    t.runs_on(&new, secs(2))
}

fn nodes_empty(t: &mut Trial) -> Step {
    t.begin(quarantined())?;
    t.random_moment();
    let at = t.note("restart all nodes empty");
    for name in t.node_names() {
        t.node(name).kill();
    }
    for name in t.node_names() {
        t.start_node(name)?;
    }
    let child = t.somebody_runs(at, QUARANTINE + secs(8))?;
    t.runs_on(&child, secs(2))
}

fn deciding_vote(t: &mut Trial) -> Step {
    let at = lose_the_deciding_vote(t, |_, _| Ok(()))?;
    let child = t.somebody_runs(at, QUARANTINE + secs(3))?;
    t.runs_on(&child, secs(2))
}

fn deciding_vote_frozen_holder(t: &mut Trial) -> Step {
    use nix::sys::signal::Signal;
    let mut frozen = String::new();
    let at = lose_the_deciding_vote(t, |t, holder| {
        frozen = holder.into();
        t.signal(holder, Signal::SIGSTOP).map(drop)
    })?;
    let child = t.next_child(at, QUARANTINE + secs(8))?;
    t.signal(&frozen, Signal::SIGCONT)?;
    t.runs_on(&child, secs(2))
}

/// C is away, so the lock is held by A and B only. B forgets it, and C, which never knew it, comes back: two nodes that
/// would grant it to anybody.
fn lose_the_deciding_vote(t: &mut Trial, first: impl FnOnce(&mut Trial, &str) -> Step) -> Step<u64> {
    t.prepare(quarantined())?;
    t.start_node('A')?;
    t.start_node('B')?;
    t.note("redis-A and redis-B are up, redis-C is not");
    t.start_all()?;
    let old = t.first_child()?;
    t.runs_on(&old, secs(2))?;
    t.random_moment();
    first(t, &Trial::holder_of(&old))?;
    let at = t.note("restart redis-B empty, start redis-C");
    t.restart_node_empty('B')?;
    t.start_node('C')?;
    Ok(at)
}

fn with_clocks(t: &mut Trial) -> Step<Life> {
    t.prepare(quarantined())?;
    t.nodes.iter_mut().try_for_each(Node::give_clock)?;
    t.start_nodes()?;
    t.start_all()?;
    let child = t.first_child()?;
    t.held_by_all()?;
    t.runs_on(&child, secs(1))?;
    Ok(child)
}

fn set_clock(t: &mut Trial, name: char, ahead_ms: i64) -> Step {
    t.note(format!("clock of redis-{name}: {ahead_ms:+} ms"));
    t.node(name).clock.as_ref().map_or(Ok(()), |clock| clock.set(ahead_ms))
}

/// Jepsen's bumps: exponential, both ways; then back. Forward, the node forgets the lock; back, it keeps it too long.
fn clock_step(t: &mut Trial) -> Step {
    let child = with_clocks(t)?;
    for sign in [1, -1] {
        let name = t.random_node();
        let size = sign * (100 << t.chance.below(12));
        t.random_moment();
        t.held_by_all()?;
        set_clock(t, name, size)?;
        t.runs_on(&child, 3 * TTL / 2)?;
        set_clock(t, name, 0)?;
        t.runs_on(&child, 3 * TTL / 2)?;
        t.figure(format!("{size:+} ms"));
    }
    Ok(())
}

fn clock_strobe(t: &mut Trial) -> Step {
    let child = with_clocks(t)?;
    let name = t.random_node();
    let size = 4 << t.chance.below(15);
    let period = millis(1 + t.chance.below(300));
    let end = boot_ns() + nanos(2 * TTL);
    while boot_ns() < end {
        set_clock(t, name, size)?;
        t.pause(period);
        set_clock(t, name, 0)?;
        t.pause(period);
    }
    t.figure(format!("{size} ms every {period:?}"));
    t.runs_on(&child, 2 * TTL)
}
