//! Acquire, extend and release on three nodes, beside others, and with one node frozen.

use crate::cluster::Node;
use crate::quorum::{Floor, Lock};
use crate::rival::Rival;
use crate::step::Step;
use crate::table::{Row, Spans, Table, time};
use std::time::Duration;

/// Terms in a row of each, and how often all have their turn.
const TERMS: usize = 50;
const TURNS: usize = 30;
/// With a frozen node some of the others take half a second for each operation.
const FROZEN_TERMS: usize = 2;
const BUDGET: Duration = Duration::from_secs(4);
/// Longer than keeperd takes to see that a node is frozen.
const SEEN: Duration = Duration::from_millis(700);

#[derive(Default)]
struct Ours {
    ping: Spans,
    acquire: Spans,
    extend: Spans,
    release: Spans,
}

impl Ours {
    async fn terms(&mut self, lock: &mut Lock, floor: &Floor, serving: usize) {
        let mut pings = Vec::new();
        for _ in 0..TERMS {
            let taken = lock.term(floor, serving, &mut pings).await;
            self.acquire.push(taken.acquire);
            self.extend.push(taken.extend);
            self.release.push(taken.release);
        }
        self.ping.extend(pings);
    }
}

fn rivals(ports: &[u16]) -> Vec<Rival> {
    let all = [
        Rival::npm("npm redlock 5", "5", ports),
        Rival::npm("npm redlock 4", "4", ports),
        Rival::rslock(ports),
    ];
    let report = |started: std::io::Result<Rival>| started.inspect_err(|e| eprintln!("left out: {e}")).ok();
    all.into_iter().filter_map(report).collect()
}

pub fn measure(nodes: &mut [Node], table: &mut Table) -> Step {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let ports: Vec<u16> = nodes.iter().map(|node| node.port).collect();
        let floor = Floor::connect(&ports).await;
        let mut lock = Lock::connect(&ports).await;
        let mut rivals = rivals(&ports);
        let (mut ours, mut frozen) = (Ours::default(), Ours::default());
        // Once for nothing: everybody's caches are cold.
        Ours::default().terms(&mut lock, &floor, 3).await;
        for _ in 0..TURNS {
            ours.terms(&mut lock, &floor, 3).await;
            for rival in &mut rivals {
                rival.terms(TERMS, BUDGET, &ports)?;
            }
        }
        let own_time = own_time(&nodes[0], &mut lock, &floor).await?;
        for row in [("acquire with token", 1.6), ("extend", 1.3), ("release", 1.3)] {
            compare(&ours, &rivals, row, table);
        }
        table.row(Row {
            measure: "of which in a node: its own time for a PING, and for one of keeperd's scripts".into(),
            measured: own_time,
            samples: TERMS.to_string(),
            ..Row::default()
        });
        // The same again, in turns with and without.
        let mut whole = Ours::default();
        let mut slow: Vec<Spans> = rivals.iter().map(|_| Spans::default()).collect();
        for _ in 0..TURNS / 5 {
            for _ in 0..5 {
                whole.terms(&mut lock, &floor, 3).await;
            }
            nodes[2].freeze();
            lock.term(&floor, 2, &mut Vec::new()).await;
            tokio::time::sleep(SEEN).await;
            for _ in 0..5 {
                frozen.terms(&mut lock, &floor, 2).await;
            }
            for (rival, slow) in rivals.iter_mut().zip(&mut slow) {
                let before = rival.extend.clone();
                rival.terms(FROZEN_TERMS, BUDGET, &ports[..2])?;
                slow.extend(rival.extend.since(&before));
            }
            nodes[2].thaw();
            lock.until_all_serve().await;
        }
        one_frozen(&whole, &frozen, table);
        for (rival, slow) in rivals.iter().zip(&slow) {
            table.times(&format!("extend, one node frozen, {}", rival.name), slow, "", "", None);
        }
        Ok(())
    })
}

/// As the node accounts for it; the three scripts of a term together.
async fn own_time(node: &Node, lock: &mut Lock, floor: &Floor) -> Step<String> {
    node.ask(&["CONFIG", "RESETSTAT"])?;
    Ours::default().terms(lock, floor, 3).await;
    let info = node.ask(&["INFO", "commandstats"])?.text().unwrap_or_default();
    let mean = |command: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:")));
        line.and_then(|line| line.split("usec_per_call=").nth(1)?.split(',').next()?.parse::<f64>().ok())
    };
    let (ping, script) = (mean("ping").unwrap_or(f64::NAN), mean("evalsha").unwrap_or(f64::NAN));
    Ok(format!("{ping:.2} µs and {script:.1} µs"))
}

fn compare(ours: &Ours, rivals: &[Rival], (name, times_most): (&str, f64), table: &mut Table) {
    let of = |acquire, extend, release| match name {
        "extend" => extend,
        "release" => release,
        _ => acquire,
    };
    let own: &Spans = of(&ours.acquire, &ours.extend, &ours.release);
    let others: Vec<(&str, &Spans)> =
        rivals.iter().map(|rival| (rival.name, of(&rival.acquire, &rival.extend, &rival.release))).collect();
    if name.starts_with("acquire") {
        table.times("quorum PING on three nodes", &ours.ping, "", "", None);
    }
    let times = own.p50() / ours.ping.p50();
    let below = others
        .iter()
        .filter(|(name, _)| *name != "npm redlock 4")
        .all(|(_, spans)| own.p50() <= spans.p50() && own.p99() <= spans.p99());
    table.times(
        name,
        own,
        &format!("{times:.2} × PING"),
        &format!("p50 ≤ {times_most} × PING; p50 and p99 below npm redlock 5 and rslock"),
        Some(times <= times_most && below),
    );
    for (other, spans) in others {
        table.times(
            &format!("{name}, {other}"),
            spans,
            &format!("{:.2} × PING", spans.p50() / ours.ping.p50()),
            "",
            None,
        );
    }
}

fn one_frozen(whole: &Ours, frozen: &Ours, table: &mut Table) {
    for (name, before, after) in [
        ("acquire", &whole.acquire, &frozen.acquire),
        ("extend", &whole.extend, &frozen.extend),
        ("release", &whole.release, &frozen.release),
    ] {
        let change = (after.p50() / before.p50() - 1.0) * 100.0;
        let ping = (frozen.ping.p50() / whole.ping.p50() - 1.0) * 100.0;
        table.times(
            &format!("{name}, one node frozen"),
            after,
            &format!("p50 {change:+.0} % of {}; PING {ping:+.0} %", time(before.p50())),
            "p50 at most 10 % more",
            Some(change <= 10.0),
        );
    }
}
