//! Many faults in one life.

use super::Scenario;
use super::nodes::quarantined;
use crate::clock::{boot_ns, nanos};
use crate::proxy::Mode;
use crate::step::Step;
use crate::trial::{QUARANTINE, Setup, TTL, Trial, millis, secs};
use nix::sys::signal::Signal;
use std::time::Duration;

pub const ALL: &[Scenario] = &[Scenario {
    name: "mix",
    shows: "three hosts, 20 s of random faults of daemons, links and single nodes; then one runs",
    story: mix,
    limit: Duration::from_secs(90),
    alone: false,
}];

const HOSTS: [&str; 3] = ["a", "b", "c"];

/// One fault at a time, each healed before the next: what must survive is exclusion and order, and life at the end.
fn mix(t: &mut Trial) -> Step {
    let child = vec!["--grandchild", "--linger", "50"];
    t.begin(Setup { hosts: HOSTS.to_vec(), child, proxied: true, ..quarantined() })?;
    let end = boot_ns() + nanos(secs(20));
    let mut faults = 0;
    while boot_ns() < end {
        let host = HOSTS[usize::try_from(t.chance.below(3)).unwrap_or(0)];
        one_fault(t, host)?;
        let rest = t.chance.span_below(millis(1200));
        t.pause(rest);
        faults += 1;
    }
    let child = t.somebody_runs(boot_ns(), QUARANTINE + TTL + secs(3))?;
    t.runs_on(&child, secs(2))?;
    t.figure(format!("{faults} faults"));
    Ok(())
}

fn one_fault(t: &mut Trial, host: &'static str) -> Step {
    let span = t.chance.span_below(TTL * 3 / 2);
    let node = t.random_node();
    match t.chance.below(8) {
        0 => restart(t, host, Signal::SIGTERM),
        1 => restart(t, host, Signal::SIGKILL),
        2 => {
            t.signal(host, Signal::SIGSTOP)?;
            t.pause(span);
            t.signal(host, Signal::SIGCONT).map(drop)
        }
        3 => cut(t, host, Mode::BlackHole, span),
        4 => cut(t, host, Mode::Refuse, span),
        5 => cut(t, host, Mode::RepliesHeld, span),
        6 => {
            t.note(format!("freeze redis-{node}"));
            t.node(node).freeze();
            t.pause(span);
            t.note(format!("thaw redis-{node}"));
            t.node(node).thaw();
            Ok(())
        }
        _ => {
            t.note(format!("restart redis-{node} empty"));
            t.restart_node_empty(node)
        }
    }
}

fn restart(t: &mut Trial, host: &str, signal: Signal) -> Step {
    t.signal(host, signal)?;
    t.daemon(host)?.await_exit(secs(6))?;
    t.start(host)
}

fn cut(t: &mut Trial, host: &str, mode: Mode, span: Duration) -> Step {
    t.set_links(host, mode);
    t.pause(span);
    t.set_links(host, Mode::Pass);
    Ok(())
}
