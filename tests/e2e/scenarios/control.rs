//! The checker must be able to complain: mistakes that it has to find, or the suite fails.
//!
//! One is a mistake of people with the real daemon; the others put the textbook's daemon (`naive.rs`) through faults that
//! keeperd survives elsewhere in this suite.

use super::{Scenario, interop, scenario};
use crate::checker::{Fault, Life};
use crate::clock::{boot_ns, nanos};
use crate::naive::Naive;
use crate::proxy::Mode;
use crate::step::{Step, check, failure};
use crate::trial::{KEEPER, LONG, Setup, TTL, Trial, millis, secs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

pub const ALL: &[Scenario] = &[
    scenario(
        "control_disjoint_nodes",
        "two hosts told of different nodes both run: MUST be flagged",
        disjoint,
    ),
    scenario("control_naive_sigstop", "a textbook Redlock daemon is frozen: MUST be flagged", sigstop),
    scenario("control_naive_sigkill", "it is killed: MUST be flagged", sigkill),
    scenario("control_naive_nodes_empty", "all its nodes restart empty: MUST be flagged", nodes_empty),
    scenario("control_naive_grandchild", "its child has a setsid grandchild: MUST be flagged", grandchild),
    scenario(
        "control_naive_from_reply",
        "a daemon that counts its lease from the answer, and kills on time, on slow links: MUST be flagged",
        from_reply,
    ),
    scenario(
        "control_no_guard",
        "keeperd frozen together with its guard, while the child runs on: MUST be flagged",
        no_guard,
    ),
    scenario(
        "control_outlives_lease",
        "the same on the only host there is: MUST be flagged by what the nodes had granted",
        outlives_lease,
    ),
    scenario(
        "control_released_early",
        "a lock released by keeperd's own script while the child runs on within its lease: MUST be flagged",
        released_early,
    ),
    scenario(
        "control_plain_register",
        "a host frozen whole: the register without a fence takes a stale write: MUST be flagged",
        plain_register,
    ),
    scenario("control_naive_token", "each host counts its terms for itself: MUST be flagged", token),
];

fn naive(t: &mut Trial, faults: &'static [Fault], child: &[&'static str]) -> Step<Life> {
    t.must_be_flagged = faults;
    t.begin(Setup { naive: Some(Naive::Careless), child: child.to_vec(), ..Setup::default() })
}

/// Two holders, for as long as it takes to be seen.
fn let_it_happen(t: &mut Trial, first: &Life) -> Step {
    t.successor(first, first.start.saturating_sub(1_000_000_000), LONG)?;
    t.pause(secs(1));
    Ok(())
}

fn disjoint(t: &mut Trial) -> Step {
    t.must_be_flagged = &[Fault::Overlap];
    let first = t.begin(Setup { nodes: 2, disjoint: true, ..Setup::default() })?;
    let_it_happen(t, &first)
}

fn sigstop(t: &mut Trial) -> Step {
    let first = naive(t, &[Fault::Overlap], &[])?;
    t.random_moment();
    t.signal(&Trial::holder_of(&first), Signal::SIGSTOP)?;
    let_it_happen(t, &first)
}

fn sigkill(t: &mut Trial) -> Step {
    let first = naive(t, &[Fault::Overlap], &[])?;
    t.random_moment();
    t.signal(&Trial::holder_of(&first), Signal::SIGKILL)?;
    let_it_happen(t, &first)
}

fn nodes_empty(t: &mut Trial) -> Step {
    t.must_be_flagged = &[Fault::Overlap];
    // It extends after three seconds: long after this, so that it cannot notice in time by luck.
    let first = t.begin(Setup { naive: Some(Naive::Careless), ttl: "6s", ..Setup::default() })?;
    t.random_moment();
    for name in t.node_names() {
        t.note(format!("restart redis-{name} empty"));
        t.restart_node_empty(name)?;
    }
    let_it_happen(t, &first)
}

/// The lock is lost, the child is killed and the next host starts; what the child left behind goes on.
fn grandchild(t: &mut Trial) -> Step {
    let first = naive(t, &[Fault::Overlap], &["--grandchild"])?;
    for node in &t.nodes {
        node.ask(&["SET", &Trial::lock_key(), "somebody else", "PX", "1500"])?;
    }
    let since = first.start + 1;
    t.next_child(since, LONG)?;
    t.pause(secs(1));
    Ok(())
}

fn token(t: &mut Trial) -> Step {
    let first = naive(t, &[Fault::Token], &[])?;
    t.signal(&Trial::holder_of(&first), Signal::SIGKILL)?;
    let_it_happen(t, &first)
}

/// Answers take a while, so the daemon's idea of its lease is later than the nodes'. Then its links are cut.
fn from_reply(t: &mut Trial) -> Step {
    t.must_be_flagged = &[Fault::Overlap];
    // Its rounds are three seconds apart and take 1.8: time enough to cut it off between two.
    let setup = Setup { naive: Some(Naive::FromReply), ttl: "6s", proxied: true, ..Setup::default() };
    t.prepare(setup)?;
    t.start_nodes()?;
    // Alone, or the other may take a node's vote and give it up: one that extends does not put it back.
    t.start("a")?;
    let first = t.first_child()?;
    t.start("b")?;
    let host = Trial::holder_of(&first);
    t.set_links(&host, Mode::Delay(millis(300)));
    // It asks one node after the other: cut off when the last has extended and has answered, it believes in the most.
    let last = t.node_names().into_iter().max().unwrap_or('A');
    let expires = |t: &mut Trial| -> Step<u64> {
        let expiry = t.node(last).expires_at(&Trial::lock_key())?;
        expiry.ok_or_else(|| failure("the last node has no vote"))
    };
    let old = expires(t)?;
    let end = boot_ns() + nanos(LONG);
    while expires(t)? < old + nanos(millis(500)) {
        check(boot_ns() < end, "the naive daemon does not extend")?;
        t.pause(millis(2));
    }
    t.pause(millis(350));
    let at = t.set_links(&host, Mode::Refuse);
    t.successor(&first, at, LONG)?;
    t.pause(secs(1));
    Ok(())
}

/// What the guard is for.
fn no_guard(t: &mut Trial) -> Step {
    t.must_be_flagged = &[Fault::Overlap, Fault::Validity];
    let first = t.begin(Setup::default())?;
    t.random_moment();
    leave_alone(t, &first)?;
    let_it_happen(t, &first)
}

/// Daemon and guard stand still; the child does not.
fn leave_alone(t: &mut Trial, child: &Life) -> Step {
    let host = Trial::holder_of(child);
    let guard = t.daemon(&host)?.guard(KEEPER)?;
    t.signal(&host, Signal::SIGSTOP)?;
    Ok(kill(Pid::from_raw(guard.pid), Signal::SIGSTOP)?)
}

/// Nobody else is there to overlap: only the nodes' own word says that it lived too long.
fn outlives_lease(t: &mut Trial) -> Step {
    t.must_be_flagged = &[Fault::Validity];
    let child = t.begin(Setup { hosts: vec!["a"], ..Setup::default() })?;
    leave_alone(t, &child)?;
    // What the nodes granted counts from when it was seen, which takes its time on a busy machine.
    t.pause(TTL + secs(2));
    t.anybody(secs(5)).map(drop)
}

/// Within its lease, and with nobody else: a release by keeperd's own script, as if its tree had been dead.
fn released_early(t: &mut Trial) -> Step {
    t.must_be_flagged = &[Fault::Release];
    let child = t.begin(Setup { hosts: vec!["a"], ..Setup::default() })?;
    t.held_by_all()?;
    leave_alone(t, &child)?;
    let value = t.node('A').get(&Trial::lock_key())?.ok_or_else(|| failure("nobody holds the lock"))?;
    interop::release(t, &value)?;
    t.anybody(secs(5)).map(drop)
}

/// What the fencing token is for.
fn plain_register(t: &mut Trial) -> Step {
    t.must_be_flagged = &[Fault::Stale];
    let first = t.begin(Setup::default())?;
    let host = Trial::holder_of(&first);
    t.random_moment();
    t.freeze_host(&host, false)?;
    let_it_happen(t, &first)?;
    t.wake_children(&host)?;
    t.thaw_host(&host, Duration::ZERO);
    Ok(())
}
