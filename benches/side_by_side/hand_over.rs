//! From the end of one child to the first instruction of the next, on another host.

use crate::checker::Life;
use crate::clock::{boot_ns, nanos};
use crate::others::{Other, etcdctl, single_beat};
use crate::proxy::Mode;
use crate::step::{Step, check, failure};
use crate::table::{Row, Spans, Table};
use crate::trial::{Setup, TTL, Trial, millis, secs};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use std::time::SystemTime;

const HAND_OVERS: usize = 100;
const CUTS: usize = 20;
/// The standby is connected, and has looked.
const SETTLED: std::time::Duration = millis(200);

/// What happens in between, as the two daemons log it.
#[derive(Default)]
struct Parts {
    told: Spans,
    dead: Spans,
    released: Spans,
    elected: Spans,
    begun: Spans,
}

pub fn measure(t: &mut Trial, table: &mut Table) -> Step {
    let mut child = t.begin(Setup { log_level: "debug", ..Setup::default() })?;
    let ports: Vec<u16> = t.nodes.iter().map(|node| node.port).collect();
    let mut others: Vec<Other> = [etcdctl(t.dir()), single_beat(t.dir(), ports[0])]
        .into_iter()
        .filter_map(|other| other.inspect_err(|e| eprintln!("left out: {e:?}")).ok())
        .collect();
    let (mut term, mut kill, mut parts) = (Spans::default(), Spans::default(), Parts::default());
    // In turns, so that a machine that gets busier meanwhile moves all of them.
    for turn in 0..5 {
        for _ in 0..HAND_OVERS / 5 {
            child = one(t, &child, Signal::SIGTERM, &mut term, Some(&mut parts))?;
        }
        for _ in 0..HAND_OVERS / 5 {
            child = one(t, &child, Signal::SIGKILL, &mut kill, None)?;
        }
        for other in &mut others {
            // One that takes ten seconds has its turn less often.
            other.hand_over(if other.polls { turn % 2 } else { HAND_OVERS / 10 })?;
        }
    }
    let ok = Some(term.p50() <= 5e6 && term.p99() <= 15e6);
    table.times("SIGTERM to the daemon → the standby's child runs", &term, "", "p50 ≤ 5 ms, p99 ≤ 15 ms", ok);
    for (part, spans) in [
        ("of which: until the child is told", &parts.told),
        ("until its tree is dead", &parts.dead),
        ("until a quorum has released", &parts.released),
        ("until the standby is elected", &parts.elected),
    ] {
        table.times(part, spans, "", "", None);
    }
    let begun = &parts.begun;
    table.times("elected → the child's first instruction", begun, "", "p99 ≤ 3 ms", Some(begun.p99() <= 3e6));
    for other in &others {
        let times = other.spans.p50() / term.p50();
        table.times(
            &format!("that hand-over, {}", other.name),
            &other.spans,
            &format!("{times:.1} × keeperd"),
            "",
            None,
        );
    }
    let ok = Some(kill.p99() <= 50e6);
    table.times("SIGKILL to the daemon → the standby's child runs", &kill, "", "p99 ≤ 50 ms", ok);
    Ok(())
}

fn one(
    t: &mut Trial,
    old: &Life,
    signal: Signal,
    spans: &mut Spans,
    parts: Option<&mut Parts>,
) -> Step<Life> {
    t.pause(SETTLED);
    let jitter = t.chance.span_below(millis(100));
    t.pause(jitter);
    let host = Trial::holder_of(old);
    let at = t.signal(&host, signal)?;
    let new = t.successor(old, at, TTL + secs(1))?;
    spans.push(new.start - at);
    t.daemon(&host)?.await_exit(secs(2))?;
    if let Some(parts) = parts {
        parts.note(t, &host, &new, at)?;
    }
    t.start(&host)?;
    Ok(new)
}

impl Parts {
    fn note(&mut self, t: &Trial, from: &str, new: &Life, at: u64) -> Step {
        let find = |host: &str, what: &str| -> Step<u64> {
            let end = boot_ns() + nanos(secs(1));
            loop {
                // The log is copied by a thread of ours, which may be behind.
                let log = t.log_of(host)?;
                let stamps = log.lines().rev().filter(|line| line.contains(what)).filter_map(logged_at);
                if let Some(found) = stamps.take_while(|n| *n >= at).last() {
                    return Ok(found);
                }
                check(boot_ns() < end, format!("{host} has not logged {what:?}"))?;
                t.pause(millis(5));
            }
        };
        let told = find(from, "stop signal sent")?;
        let dead = find(from, "tree is dead")?;
        let released = find(from, "lock released")?;
        let elected = find(&Trial::holder_of(new), "won the election")?;
        self.told.push(told - at);
        self.dead.push(dead.saturating_sub(told));
        self.released.push(released.saturating_sub(dead));
        // The standby may win before the old daemon has heard that it released.
        self.elected.push(elected.saturating_sub(dead));
        self.begun.push(new.start.saturating_sub(elected));
        Ok(())
    }
}

/// When a line was written, on the boot-time clock.
pub fn logged_at(line: &str) -> Option<u64> {
    let stamp = line.split_whitespace().nth(1)?;
    let wall = humantime::parse_rfc3339(stamp).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let real = clock_gettime(ClockId::CLOCK_REALTIME).ok()?;
    let ahead = (real.tv_sec().unsigned_abs() * 1_000_000_000 + real.tv_nsec().unsigned_abs()) - boot_ns();
    Some(nanos(wall) - ahead)
}

/// The holder is cut off from all nodes: what the others wait for is the end of its keys.
pub fn cut(t: &mut Trial, table: &mut Table) -> Step {
    let mut spans = Spans::default();
    let mut child = t.begin(Setup { proxied: true, ..Setup::default() })?;
    for _ in 0..CUTS {
        t.held_by_all()?;
        t.pause(SETTLED);
        t.random_moment();
        let host = Trial::holder_of(&child);
        let at = t.set_links(&host, Mode::BlackHole);
        t.pause(millis(50));
        let free = t.quorum_free_at()?;
        let new = t.successor(&child, at, TTL + secs(1))?;
        check(new.start + nanos(millis(2)) >= free, "a child started before the keys expired")?;
        spans.push(new.start.saturating_sub(free));
        t.set_links(&host, Mode::Pass);
        child = new;
    }
    let ok = Some(spans.p99() <= 10e6);
    table.times(
        "the holder's network is cut: key expiry → the standby's child runs",
        &spans,
        "",
        "p99 ≤ 10 ms",
        ok,
    );
    Ok(())
}

const TEN: [&str; 11] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"];

/// Ten wait for one lock.
pub fn crowd(t: &mut Trial, table: &mut Table) -> Step {
    let (mut spans, mut rounds) = (Spans::default(), Vec::new());
    let mut child = t.begin(Setup { hosts: TEN.to_vec(), log_level: "debug", ..Setup::default() })?;
    t.pause(secs(1));
    for _ in 0..HAND_OVERS {
        t.pause(SETTLED);
        let host = Trial::holder_of(&child);
        let at = t.signal(&host, Signal::SIGTERM)?;
        let new = t.successor(&child, at, TTL + secs(1))?;
        t.pause(millis(50));
        let log = t.log_of(&host)?;
        // Dead: the release has not left before, and nobody can have it earlier.
        let dead =
            log.lines().rev().filter(|l| l.contains("tree is dead")).filter_map(logged_at).find(|n| *n >= at);
        let dead = dead.ok_or_else(|| failure("the holder does not log that its tree is dead"))?;
        spans.push(new.start.saturating_sub(dead));
        let starts = t.witness.starts(crate::trial::KEEPER).filter(|r| r.at >= at).count();
        check(starts == 1, format!("{starts} children after one release"))?;
        rounds.push(attempts(t, &Trial::holder_of(&new), at)?);
        t.daemon(&host)?.await_exit(secs(2))?;
        t.start(&host)?;
        child = new;
    }
    rounds.sort_unstable();
    let ok = Some(spans.p99() <= 15e6);
    table.times("ten daemons wait: release → exactly one new child", &spans, "", "p99 ≤ 15 ms", ok);
    let most = rounds.last().copied().unwrap_or(0);
    table.row(Row {
        measure: "attempts of the winner in that hand-over".into(),
        goal: "≤ 3".into(),
        measured: format!("p50 {}, most {most}", rounds[rounds.len() / 2]),
        samples: rounds.len().to_string(),
        met: Some(most <= 3),
    });
    Ok(())
}

/// How often the winner stood for the lock.
fn attempts(t: &Trial, host: &str, at: u64) -> Step<usize> {
    let log = t.log_of(host)?;
    let after = |line: &&str| logged_at(line).is_some_and(|n| n >= at);
    Ok(log.lines().filter(|line| line.contains("DEBUG election")).filter(after).count())
}
