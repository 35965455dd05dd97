//! Measurements; run alone. `E2E_N` sets how many samples.

use super::Scenario;
use crate::checker::Life;
use crate::clock::{boot_ns, ms, nanos};
use crate::step::{Step, check, failure};
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
    figure("figure_extend", "time of an extension with three nodes, and with one of them frozen", extend),
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
    let new = t.successor(old, at, TTL + secs(1))?;
    spans.push(new.start - at);
    let host = Trial::holder_of(old);
    t.daemon(&host)?.await_exit(secs(2))?;
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
        let free = quorum_free_at(t)?;
        let new = t.successor(&child, free.min(boot_ns()), TTL + secs(1))?;
        check(new.start + nanos(millis(2)) >= free, "a child started before the keys expired")?;
        spans.push(new.start.saturating_sub(free));
        t.daemon(&host)?.await_exit(secs(2))?;
        t.start(&host)?;
        child = new;
    }
    t.figure(format!("machine lost, after key expiry: {} (bar: ≤ 50 ms)", summary(&mut spans)));
    Ok(())
}

/// When the lock will have expired on a quorum.
fn quorum_free_at(t: &Trial) -> Step<u64> {
    let key = Trial::lock_key();
    let mut ends = Vec::new();
    for node in &t.nodes {
        ends.push(node.expires_at(&key)?.unwrap_or_else(boot_ns));
    }
    ends.sort_unstable();
    ends.get(t.nodes.len() / 2).copied().ok_or_else(|| failure("no nodes"))
}

/// Keepers whose extensions are measured: more of them, more samples.
const EXTENDED: [&str; 8] = ["oracle", "k1", "k2", "k3", "k4", "k5", "k6", "k7"];

/// From the daemon's own log at level debug: the time from before sending to the quorum's answer.
fn extend(t: &mut Trial) -> Step {
    let setup = Setup {
        log_level: "debug",
        keepers: EXTENDED.to_vec(),
        hosts: vec!["a"],
        proxied: false,
        ..Setup::default()
    };
    let child = t.begin(setup)?;
    let host = Trial::holder_of(&child);
    // In turns, and compared within each: a machine that gets busier or quieter meanwhile moves both alike.
    let (mut all, mut one_frozen, mut changes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..samples(6) {
        t.node('C').thaw();
        t.pause(millis(1500));
        let before = median(&extensions(t, &host)?);
        t.node('C').freeze();
        t.pause(millis(1500));
        let frozen = median(&extensions(t, &host)?);
        changes.push(frozen / before * 100.0 - 100.0);
        all.push(before);
        one_frozen.push(frozen);
    }
    t.runs_on(&child, secs(1))?;
    let change = median(&changes);
    t.figure(format!(
        "median extension {:.0} µs, one node frozen {:.0} µs: {change:+.0} % (the median of {} turns; bar: < 20 %)",
        median(&all),
        median(&one_frozen),
        changes.len()
    ));
    check(change < 20.0, "one frozen node makes extensions slower")
}

/// How long each took, in µs.
fn extensions(t: &mut Trial, host: &str) -> Step<Vec<f64>> {
    let before = t.log_of(host)?.len();
    t.pause(secs(3));
    let log = t.log_of(host)?;
    let spans: Vec<f64> = log[before..]
        .lines()
        .filter(|line| line.contains("extension") && line.contains("outcome=\"renewed\""))
        .filter_map(|line| line.split("took_us=").nth(1)?.split_whitespace().next()?.parse().ok())
        .collect();
    check(spans.len() >= 16, format!("only {} extensions seen in 3 s", spans.len()))?;
    Ok(spans)
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    (values[values.len() / 2] + values[(values.len() - 1) / 2]) / 2.0
}
