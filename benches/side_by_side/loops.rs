//! A machine that is far too busy: 64 loops on its cores, and a lease of two seconds.

use crate::checker::Life;
use crate::clock::{boot_ns, nanos};
use crate::hand_over::logged_at;
use crate::proxy::Mode;
use crate::step::{Step, failure};
use crate::table::{Row, Spans, Table};
use crate::trial::{KEEPER, Setup, TTL, Trial, secs};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LOOPS: usize = 64;
const KILLS: usize = 10;
/// `ttl − drift − kill_margin` of a lease of two seconds: when the guard kills.
const KILL_AFTER: Duration = Duration::from_millis(2000 - 22 - 250);

struct Loops(Vec<Child>);

impl Loops {
    fn start() -> Step<Loops> {
        let one = || Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn();
        Ok(Loops((0..LOOPS).map(|_| one()).collect::<Result<_, _>>()?))
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for busy in &mut self.0 {
            busy.kill().ok();
            busy.wait().ok();
        }
    }
}

/// `BENCH_SECONDS` says how long nothing may happen.
pub fn measure(t: &mut Trial, table: &mut Table) -> Step {
    let span = std::env::var("BENCH_SECONDS").ok().and_then(|n| n.parse().ok()).map_or(secs(600), secs);
    let child = t.begin(Setup {
        child: vec!["--ignore-term"],
        proxied: true,
        log_level: "debug",
        ..Setup::default()
    })?;
    t.held_by_all()?;
    let loops = Loops::start()?;
    let since = boot_ns();
    let mut lost = 0;
    let mut holder = child;
    while boot_ns() < since + nanos(span) {
        t.pause(secs(1));
        let last = t
            .witness
            .look()
            .map(|()| t.witness.lives(KEEPER))?
            .pop()
            .ok_or_else(|| failure("nobody runs"))?;
        if last.instance != holder.instance {
            lost += 1;
            holder = last;
        }
    }
    table.row(Row {
        measure: format!("{LOOPS} busy loops, ttl 2 s: leases lost in {} s", span.as_secs()),
        goal: "0 in 10 min".into(),
        measured: lost.to_string(),
        samples: "1".into(),
        met: Some(lost == 0),
    });
    let mut late = Spans::default();
    for _ in 0..KILLS {
        t.pause(secs(3));
        late.push(killed_late(t, &holder)?);
        holder = t.anybody(2 * TTL + secs(2))?;
    }
    drop(loops);
    let (class, goal, most_ns) = match is_realtime(&holder) {
        true => ("with SCHED_RR", "≤ 5 ms with SCHED_RR", 5e6),
        false => ("without SCHED_RR", "≤ 250 ms without SCHED_RR", 250e6),
    };
    let measure = format!("a hard kill among them, {class}, comes late by at most");
    table.times(&measure, &late, "as logged by the daemon", goal, Some(late.p99() <= most_ns));
    Ok(())
}

/// Whether the child's guard, its parent, has a real-time priority.
fn is_realtime(child: &Life) -> bool {
    let field = |pid: i32, n: usize| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        rest.split_whitespace().nth(n - 3).and_then(|field| field.parse().ok()).unwrap_or(0)
    };
    field(field(child.pid, 4), 40) > 0
}

/// Cut off, the child ignores SIGTERM. From the end of its time to the daemon's line that its tree is dead, in ns.
fn killed_late(t: &mut Trial, child: &Life) -> Step<u64> {
    let host = Trial::holder_of(child);
    let cut = t.set_links(&host, Mode::BlackHole);
    t.pause(TTL + secs(1));
    let log = t.log_of(&host)?;
    let renewed = log.lines().rev().filter(|line| line.contains("renewed")).find_map(|line| {
        let took: u64 = line.split("took_us=").nth(1)?.split_whitespace().next()?.parse().ok()?;
        Some(logged_at(line)? - took * 1000)
    });
    let renewed = renewed.ok_or_else(|| failure("no extension is logged"))?;
    let dead = log.lines().rev().find(|line| line.contains("tree is dead")).and_then(logged_at);
    let dead = dead.filter(|at| *at > cut).ok_or_else(|| failure("the tree is not dead after its lease"))?;
    t.set_links(&host, Mode::Pass);
    Ok(dead.saturating_sub(renewed + nanos(KILL_AFTER)))
}
