//! Measurements; run alone. `E2E_N` sets how many samples.

use super::Scenario;
use crate::checker::Life;
use crate::clock::{boot_ns, ms, nanos};
use crate::quorum::{Floor, Lock};
use crate::step::{Step, check};
use crate::trial::{KEEPER, Setup, TTL, Trial, millis, secs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

const fn figure(name: &'static str, shows: &'static str, story: fn(&mut Trial) -> Step) -> Scenario {
    Scenario { name, shows, story, limit: Duration::from_secs(300), alone: true }
}

pub const ALL: &[Scenario] = &[
    figure("figure_sigterm", "SIGTERM to the daemon → the standby's child runs", sigterm),
    figure("figure_sigkill", "SIGKILL to the daemon → the standby's child runs", sigkill),
    figure(
        "figure_machine_lost",
        "daemon, guard and child gone at once: key expiry → the standby's child runs",
        machine_lost,
    ),
    figure(
        "figure_extend",
        "acquire, extend and release beside a bare PING, with three nodes and with one of them frozen",
        extend,
    ),
];

fn samples(usual: usize) -> usize {
    std::env::var("E2E_N").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// p50, p99 and the number of samples; a p99 of fewer than 100 is the largest.
pub(super) fn summary(spans: &mut [u64]) -> String {
    spans.sort_unstable();
    let at = |percent: usize| spans[(spans.len() * percent / 100).min(spans.len() - 1)];
    format!("p50 {}, p99 {}, n {}", ms(at(50)), ms(at(99)), spans.len())
}

fn sigterm(t: &mut Trial) -> Step {
    let mut spans = Vec::new();
    let mut child = t.begin(Setup::default())?;
    for _ in 0..samples(20) {
        settle(t);
        let at = t.signal(&Trial::holder_of(&child), Signal::SIGTERM)?;
        child = replace(t, &child, at, &mut spans)?;
    }
    t.figure(format!("hand-over on SIGTERM: {} (bar: p50 ≤ 10 ms)", summary(&mut spans)));
    Ok(())
}

fn sigkill(t: &mut Trial) -> Step {
    let mut spans = Vec::new();
    let mut child = t.begin(Setup::default())?;
    for _ in 0..samples(20) {
        settle(t);
        let at = t.signal(&Trial::holder_of(&child), Signal::SIGKILL)?;
        child = replace(t, &child, at, &mut spans)?;
    }
    t.figure(format!("hand-over on SIGKILL: {} (bar: p50 ≤ 100 ms)", summary(&mut spans)));
    Ok(())
}

/// The standby has had time to become one, and the moment is random within the extension period.
fn settle(t: &mut Trial) {
    t.pause(millis(250));
    t.random_moment();
}

/// Waits for the successor and starts the daemon that ended again.
fn replace(t: &mut Trial, old: &Life, at: u64, spans: &mut Vec<u64>) -> Step<Life> {
    let new = t.successor(old, at, TTL + secs(4))?;
    spans.push(new.start - at);
    let host = Trial::holder_of(old);
    t.daemon(&host)?.await_exit(secs(6))?;
    t.start(&host)?;
    Ok(new)
}

/// The daemon is frozen first, so that nobody is left to release: what remains is what a lost machine leaves, its keys.
fn machine_lost(t: &mut Trial) -> Step {
    let mut spans = Vec::new();
    let mut child = t.begin(Setup::default())?;
    for _ in 0..samples(10) {
        settle(t);
        let host = Trial::holder_of(&child);
        let guard = t.daemon(&host)?.guard(KEEPER)?.pid;
        t.signal(&host, Signal::SIGSTOP)?;
        for pid in [guard, child.pid] {
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        }
        t.signal(&host, Signal::SIGKILL)?;
        let free = t.quorum_free_at()?;
        let new = t.successor(&child, free.min(boot_ns()), TTL + secs(4))?;
        check(new.start + nanos(millis(2)) >= free, "a child started before the keys expired")?;
        spans.push(new.start.saturating_sub(free));
        t.daemon(&host)?.await_exit(secs(6))?;
        t.start(&host)?;
        child = new;
    }
    t.figure(format!("machine lost, after key expiry: {} (bar: ≤ 50 ms)", summary(&mut spans)));
    Ok(())
}

/// Terms in a row, and how often. In turns, so that a machine that gets busier or quieter meanwhile moves all medians alike.
const TERMS: usize = 20;
const TURNS: usize = 12;

/// keeperd's side of the lock beside a bare PING to the same nodes. Ratios only: they hold on a busy machine, too.
fn extend(t: &mut Trial) -> Step {
    t.prepare(Setup { hosts: Vec::new(), ..Setup::default() })?;
    t.start_nodes()?;
    let ports: Vec<u16> = t.nodes.iter().map(|node| node.port).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let (mut all, mut one_frozen, mut changes) = (Medians::default(), Medians::default(), Vec::new());
    local.block_on(&runtime, async {
        let floor = Floor::connect(&ports).await;
        let mut lock = Lock::connect(&ports).await;
        for _ in 0..TURNS {
            all.terms(&mut lock, &floor, 3).await;
            t.node('C').freeze();
            // The first requests to a frozen node run into their time limit; then it is not asked any more.
            lock.term(&floor, 2, &mut Vec::new()).await;
            tokio::time::sleep(millis(700)).await;
            one_frozen.terms(&mut lock, &floor, 2).await;
            t.node('C').thaw();
            lock.until_all_serve().await;
            let of_turn = |medians: &Medians| {
                median(&mut medians.extend[medians.extend.len() - TERMS..].to_vec()) as f64
            };
            changes.push(of_turn(&one_frozen) / of_turn(&all) * 100.0 - 100.0);
        }
    });
    // Compared within each turn: what the machine does from one to the next is not the node's doing.
    changes.sort_unstable_by(f64::total_cmp);
    let change = changes[TURNS / 2];
    t.figure(format!(
        "extension with one node frozen: {change:+.0} %, the median of {TURNS} turns (bar: < 20 %)"
    ));
    // A node that is waited for costs its whole time limit, a hundred times as much. On a busy machine the slower of two nodes is
    // noticeably slower than the second of three.
    check(change < 100.0, format!("one frozen node makes extensions slower: {change:+.0} %"))?;
    for (which, medians) in [("", &mut all), ("one node frozen: ", &mut one_frozen)] {
        let ping = median(&mut medians.pings);
        let times = |spans: &mut Vec<u64>| median(spans) as f64 / ping as f64;
        let (acquire, extend, release) =
            (times(&mut medians.acquire), times(&mut medians.extend), times(&mut medians.release));
        t.figure(format!(
            "{which}quorum PING {} µs, acquire {acquire:.2} ×, extend {extend:.2} ×, release {release:.2} × (bar: < 8 ×)",
            ping / 1000
        ));
        check(
            acquire < 8.0 && extend < 8.0 && release < 8.0,
            "a lock operation is much more than a round trip",
        )?;
    }
    Ok(())
}

#[derive(Default)]
struct Medians {
    pings: Vec<u64>,
    acquire: Vec<u64>,
    extend: Vec<u64>,
    release: Vec<u64>,
}

impl Medians {
    async fn terms(&mut self, lock: &mut Lock, floor: &Floor, serving: usize) {
        for _ in 0..TERMS {
            let taken = lock.term(floor, serving, &mut self.pings).await;
            self.acquire.push(taken.acquire);
            self.extend.push(taken.extend);
            self.release.push(taken.release);
        }
    }
}

fn median(spans: &mut [u64]) -> u64 {
    spans.sort_unstable();
    spans[spans.len() / 2]
}
