//! The npm package redlock on the same keys: keepers of both kinds exclude each other and hand over to each other.

use super::{Scenario, scenario};
use crate::checker::{Event, Fault, Life, Record};
use crate::clock::{boot_ns, ms, nanos};
use crate::cluster::{Node, Reply};
use crate::legacy::{self, Client, SCRIPT, V4, V5};
use crate::step::{Step, check, failure};
use crate::trial::{KEEPER, Setup, TTL, Trial, VALID, millis, secs};
use nix::sys::signal::Signal;
use std::time::Duration;

pub const ALL: &[Scenario] = &[
    scenario(
        "interop_hand_over_4",
        "keeperd waits for redlock 4.2.0 and follows its release and its crash; the reverse",
        |t| hand_over(t, V4),
    ),
    scenario("interop_hand_over_5", "the same with redlock 5.0.0-beta.2", |t| hand_over(t, V5)),
    scenario(
        "interop_values",
        "the scripts of both packages and of keeperd on each other's values, right and wrong",
        values,
    ),
    scenario(
        "interop_inside",
        "keeperd runs a script that takes the old lock itself (using), beside a host without keeperd",
        inside,
    ),
    scenario(
        "interop_self_blocking",
        "a waiter of redlock 5 with retryCount -1 blocks itself: nobody runs, and never two",
        self_blocking,
    ),
    scenario(
        "control_interop_deleted",
        "the lock of a keeper without keeperd is deleted by hand: MUST be flagged",
        deleted,
    ),
];

/// Node takes 0.2 s to start, and on a machine with other things to do much longer.
const NODE_STARTS: Duration = secs(20);

pub(super) fn prepare(t: &mut Trial, setup: Setup, record_as: &str) -> Step {
    t.prepare(setup)?;
    t.prepare_legacies(record_as)?;
    t.start_nodes()
}

/// The first start of this keeper after an instant.
pub(super) fn next_of(t: &mut Trial, keeper: &str, since: u64, within: Duration) -> Step<Option<Record>> {
    let end = boot_ns() + nanos(within);
    loop {
        t.witness.look()?;
        // From the end: in minutes of churn the log grows long. Its order of time is that of the writes, almost.
        let recent = t.witness.records().iter().rev().take_while(|r| r.at + 1_000_000_000 > since);
        let starts = recent.filter(|r| r.at > since && r.keeper == keeper && r.event == Event::Start);
        let first = starts.min_by_key(|r| r.at).cloned();
        if first.is_some() || boot_ns() > end {
            return Ok(first);
        }
        t.pause(millis(1));
    }
}

/// The value that two nodes have.
pub(super) fn value_on_quorum(t: &Trial) -> Option<String> {
    let values: Vec<String> = t.nodes.iter().filter_map(|n| n.get(&Trial::lock_key()).ok()?).collect();
    values.iter().find(|v| values.iter().filter(|w| w == v).count() >= 2).cloned()
}

/// When two nodes will be rid of this value; 0 if they are by now, or cannot be asked. The value is read after the time:
/// then the time was its own, and not that of a successor on this busy machine.
pub(super) fn free_of(t: &Trial, value: Option<&str>) -> u64 {
    let key = Trial::lock_key();
    let end_on = |node: &Node| -> Step<u64> {
        let end = node.expires_at(&key)?.unwrap_or(0);
        Ok(if value.is_some() && node.get(&key)?.as_deref() == value { end } else { 0 })
    };
    let mut ends: Vec<u64> = t.nodes.iter().map(|n| end_on(n).unwrap_or(0)).collect();
    ends.sort_unstable();
    ends[t.nodes.len() / 2]
}

// === One after the other ===

fn hand_over(t: &mut Trial, client: Client) -> Step {
    prepare(t, Setup::default(), KEEPER)?;
    let begun = boot_ns();
    t.start_legacy("x", client)?;
    let first = t.next_child(begun, NODE_STARTS)?;
    t.start_all()?;
    t.runs_on(&first, 2 * TTL + millis(500))?;
    sees_a_stranger(t, "a")?;

    let at = t.signal_legacy("x", Signal::SIGTERM)?;
    let second = t.successor_of_host("x", at, millis(800))?;
    t.figure(format!("npm released, keeperd runs after {}", ms(second.start - at)));
    t.start_legacy("y", client)?;
    let log = t.dir().join("legacy-y.log");
    t.until("y stands for the lock", |_| {
        Ok(std::fs::read_to_string(&log)?.contains("clients: ready, ready, ready"))
    })?;
    t.runs_on(&second, 2 * TTL + millis(500))?;

    let holder = Trial::holder_of(&second);
    let other = if holder == "a" { "b" } else { "a" };
    t.signal(other, Signal::SIGTERM)?;
    t.daemon(other)?.await_exit(secs(6))?;
    let at = t.signal(&holder, Signal::SIGTERM)?;
    let third = t.successor(&second, at, secs(5))?;
    check(third.is_legacy(), format!("{} and not y took over", third.instance))?;
    t.figure(format!("keeperd released, npm runs after {}", ms(third.start - at)));
    t.daemon(&holder)?.await_exit(secs(6))?;
    t.start_all()?;
    t.runs_on(&third, secs(1))?;

    t.random_moment();
    let value = value_on_quorum(t);
    let at = t.signal_legacy("y", Signal::SIGKILL)?;
    let free = free_of(t, value.as_deref());
    check(free > at, format!("no quorum has the lock that y held, {value:?}"))?;
    let fourth = t.successor_of_host("y", at, TTL + secs(4))?;
    check(fourth.start + 2_000_000 >= free, "keeperd began before the lock expired")?;
    t.figure(format!("npm killed, keeperd runs {} after expiry", ms(fourth.start.saturating_sub(free))));
    t.runs_on(&fourth, secs(1))
}

/// The standby names the value it waits for, and no host.
fn sees_a_stranger(t: &mut Trial, host: &str) -> Step {
    let value = t.node('A').get(&Trial::lock_key())?;
    let status = t.status_shows(host, &format!("it stands by, and the lock is {value:?}"), |keeper| {
        keeper["role"] == "standby" && keeper["holder"]["value"].as_str() == value.as_deref()
    })?;
    check(status["holder"]["host"].is_null(), format!("status says {status}"))
}

// === Values ===

fn values(t: &mut Trial) -> Step {
    prepare(t, Setup::default(), KEEPER)?;
    let begun = boot_ns();
    t.start_all()?;
    let mut child = t.next_child(begun, secs(10))?;
    for client in [V4, V5] {
        t.held_by_all()?;
        let value = value_everywhere(t)?;
        let wrong = value.chars().rev().collect::<String>();
        for what in ["extend", "release"] {
            check(!legacy::once(t.dir(), what, client, &wrong)?, format!("{what} of a wrong value passed"))?;
        }
        check(legacy::once(t.dir(), "extend", client, &value)?, "the package cannot extend keeperd's value")?;
        t.runs_on(&child, millis(500))?;
        check(value_everywhere(t)? == value, "the package changed the value")?;
        let at = t.note("the package releases keeperd's lock");
        check(legacy::once(t.dir(), "release", client, &value)?, "the package cannot release it")?;
        let next = t.next_child(at, secs(10))?;
        check(t.life(&child.instance)?.stopped, "the child of a deleted lock was not stopped politely")?;
        child = next;
    }
    stop_all_daemons(t)?;
    keeperds_scripts(t)
}

fn stop_all_daemons(t: &mut Trial) -> Step {
    for host in ["a", "b"] {
        t.daemon(host)?.grow_up();
        t.signal(host, Signal::SIGTERM)?;
        t.daemon(host)?.await_exit(secs(10))?;
    }
    Ok(())
}

/// 32 lower-case hex digits as the package's own, the same on all nodes.
fn value_everywhere(t: &Trial) -> Step<String> {
    let key = Trial::lock_key();
    let mut values = Vec::new();
    for node in &t.nodes {
        let is = node.ask(&["TYPE", &key])?;
        check(is == Reply::Text("string".into()), format!("{key} on redis-{}: {is:?}", node.name))?;
        node.expires_at(&key)?;
        values.extend(node.get(&key)?);
    }
    let value = values.first().cloned().unwrap_or_default();
    let looks_like_one = value.len() == 32 && value.bytes().all(|b| b"0123456789abcdef".contains(&b));
    let same = values.len() == t.nodes.len() && values.iter().all(|v| *v == value);
    check(looks_like_one && same, format!("values {values:?}"))?;
    Ok(value)
}

macro_rules! script {
    ($name:literal) => {
        concat!(
            include_str!("../../../src/lock/redis/prelude.lua"),
            include_str!(concat!("../../../src/lock/redis/", $name))
        )
    };
}

/// keeperd's scripts on the package's value: told apart, left alone, deleted on equality.
fn keeperds_scripts(t: &mut Trial) -> Step {
    let begun = boot_ns();
    t.start_legacy("x", V5)?;
    let child = t.next_child(begun, NODE_STARTS)?;
    t.held_by_all()?;
    let value = value_everywhere(t)?;
    check(classify(t, &value)? == "ok", "extend does not know the package's value")?;
    check(classify(t, "wrong")? == "foreign", "extend takes the package's value for another")?;
    release(t, "wrong")?;
    t.runs_on(&child, TTL)?;
    check(value_everywhere(t)? == value, "a release of another value touched the lock")?;
    t.signal_legacy("x", Signal::SIGKILL)?;
    release(t, &value)?;
    let left = t.node('A').get(&Trial::lock_key())?;
    check(left.is_none(), format!("released, and still there: {left:?}"))?;
    let at = boot_ns();
    t.start_all()?;
    let next = t.next_child(at, secs(10))?;
    t.runs_on(&next, millis(500))
}

fn keys() -> [String; 4] {
    let lock = Trial::lock_key();
    [
        lock.clone(),
        format!("keeperd:lease:{{{lock}}}"),
        format!("keeperd:fence:{{{lock}}}"),
        "keeperd:node".into(),
    ]
}

/// What `extend` with ttl 0 says: it only looks.
fn classify(t: &Trial, value: &str) -> Step<String> {
    let [lock, shadow, fence, marker] = keys();
    let words = [
        "EVAL",
        script!("extend.lua"),
        "4",
        &lock,
        &shadow,
        &fence,
        &marker,
        value,
        "0",
        "0",
        "0",
        "0",
        "-",
        "0",
    ];
    let Reply::List(mut reply) = t.nodes[0].ask(&words)? else { return Err(failure("no list")) };
    reply.swap_remove(1).text().ok_or_else(|| failure("no tag"))
}

pub fn release(t: &Trial, value: &str) -> Step {
    let [lock, shadow, fence, _] = keys();
    for node in &t.nodes {
        let reply = node.ask(&["EVAL", script!("release.lua"), "3", &lock, &shadow, &fence, value])?;
        check(matches!(reply, Reply::List(_)), format!("a release was answered with {reply:?}"))?;
    }
    Ok(())
}

// === A script that locks for itself ===

const INSIDE: &str = "oracle-inside";

fn inside(t: &mut Trial) -> Step {
    let script = vec!["node", SCRIPT, "using", "5", "5"];
    let setup = Setup {
        command_of: vec![("a", script.clone()), ("b", script)],
        keeper_lines: "lock = \"keeperd-oracle\"",
        ..Setup::default()
    };
    prepare(t, setup, INSIDE)?;
    let begun = boot_ns();
    t.start_legacy("x", V5)?;
    let old_host = inner(t, begun, NODE_STARTS)?;
    let begun = boot_ns();
    t.start_all()?;
    let child = t.next_child(begun, NODE_STARTS)?;
    t.runs_on(&child, TTL)?;
    check(
        newest_inner(t)?.instance == old_host.instance,
        "the script inside keeperd did not wait for the old host",
    )?;

    let at = t.signal_legacy("x", Signal::SIGTERM)?;
    let first = inner(t, at, secs(10))?;
    t.figure(format!("old host stopped: script works after {}", ms(first.start - at)));
    t.runs_on(&child, TTL)?;

    for (signal, name) in [(Signal::SIGTERM, "SIGTERM"), (Signal::SIGKILL, "SIGKILL")] {
        t.random_moment();
        let child = newest_inner(t)?;
        let host = Trial::holder_of(&child);
        let at = t.signal(&host, signal)?;
        let next = inner(t, at, TTL + NODE_STARTS)?;
        check(Trial::holder_of(&next) != host, format!("{} works, on the same host", next.instance))?;
        t.figure(format!("{name} to keeperd: script works elsewhere after {}", ms(next.start - at)));
        t.daemon(&host)?.await_exit(secs(6))?;
        t.start(&host)?;
    }
    t.locks_may_linger = true; // a script that did not get out of `using` within stop_timeout leaves its own lock
    t.pause(secs(1));
    let lives = t.witness.lives(INSIDE);
    let mut scripts: Vec<&str> = lives.iter().filter_map(|l| l.instance.split('/').next()).collect();
    // `using` of 5.0.0-beta.2 aborts at once if it waited longer than the lock lasts; the same process then tries again.
    scripts.dedup();
    check(scripts.len() == 4, format!("{scripts:?} had the lock, and not four processes one after the other"))
}

fn inner(t: &mut Trial, since: u64, within: Duration) -> Step<Life> {
    let start = next_of(t, INSIDE, since, within)?;
    let start = start.ok_or_else(|| failure("no script has the inner lock"))?;
    let lives = t.witness.lives(INSIDE);
    lives.into_iter().find(|l| l.instance == start.instance).ok_or_else(|| failure("no such life"))
}

fn newest_inner(t: &mut Trial) -> Step<Life> {
    t.witness.look()?;
    let newest = t.witness.lives(INSIDE).pop();
    newest.ok_or_else(|| failure("the script never worked"))
}

// === The trap ===

/// Node C is dead, B is taken for a second: the waiter takes A, later B, refuses itself on each, and never gets both at once.
fn self_blocking(t: &mut Trial) -> Step {
    prepare(t, Setup::default(), KEEPER)?;
    t.note("kill redis-C; redis-B is taken for 1 s");
    t.node('C').kill();
    t.node('B').ask(&["SET", &Trial::lock_key(), "somebody", "PX", "1000"])?;
    t.start_legacy("x", Client { naive: true, ..V5 })?;
    t.pause(millis(1500));
    t.start_all()?;
    let (mut blocked, mut free) = (0, 0);
    for _ in 0..160 {
        t.pause(millis(50));
        let key = Trial::lock_key();
        let (a, b) = (t.node('A').get(&key)?, t.node('B').get(&key)?);
        t.witness.look()?;
        let runs = t.witness.starts(KEEPER).next().is_some();
        blocked += u32::from(!runs && a.is_some() && a == b);
        free += u32::from(!runs && a != b);
    }
    t.figure(format!("8 s: blocked in {blocked} samples, one node free in {free} of 160"));
    let at = t.signal_legacy("x", Signal::SIGKILL)?;
    let child = t.somebody_runs(at, VALID + secs(4))?;
    t.runs_on(&child, secs(1))
}

// === What nothing helps against ===

/// It works on until its next extension, and nobody else can know.
fn deleted(t: &mut Trial) -> Step {
    prepare(t, Setup::default(), KEEPER)?;
    t.must_be_flagged = &[Fault::Overlap];
    let begun = boot_ns();
    t.start_legacy("x", V4)?;
    let old = t.next_child(begun, NODE_STARTS)?;
    t.start_all()?;
    for host in ["a", "b"] {
        t.status_shows(host, "it stands by", |keeper| keeper["holder"]["value"].is_string())?;
    }
    // It extends every second: well after one and long before the next, so that it cannot notice in time by luck.
    let mut moment = old.start + 100_000_000 + t.chance.below(200_000_000);
    while moment < boot_ns() {
        moment += 1_000_000_000;
    }
    t.pause(Duration::from_nanos(moment.saturating_sub(boot_ns())));
    let at = t.note("delete the lock everywhere");
    for node in &t.nodes {
        node.ask(&["DEL", &Trial::lock_key()])?;
    }
    t.successor_of_host("x", at, secs(5))?;
    t.pause(secs(1));
    Ok(())
}
