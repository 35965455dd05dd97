//! What a run amounts to.

use super::faults::{Faults, Hit};
use crate::checker::{Fault, Life};
use crate::clock::{boot_ns, ms, nanos};
use crate::history;
use crate::step::{Step, check};
use crate::trial::{TTL, Trial, millis, secs};
use std::collections::{BTreeMap, BTreeSet};

/// A keeper that left no sign of life for this long does not run.
const SILENT: u64 = 200_000_000;

#[derive(Debug)]
pub struct Watch {
    keepers: Vec<&'static str>,
    began: u64,
    fit_since: BTreeMap<&'static str, u64>,
    samples: u64,
    running: u64,
    eligible: u64,
    running_eligible: u64,
}

impl Watch {
    pub fn new(keepers: &[&'static str]) -> Self {
        Self {
            keepers: keepers.to_vec(),
            began: boot_ns(),
            fit_since: BTreeMap::new(),
            samples: 0,
            running: 0,
            eligible: 0,
            running_eligible: 0,
        }
    }

    /// Keepers that nobody runs.
    pub fn idle(&self, t: &Trial) -> Vec<&'static str> {
        let runs = |keeper: &str| t.witness.judge.last_of(keeper).is_some_and(|at| boot_ns() < at + SILENT);
        self.keepers.iter().copied().filter(|keeper| !runs(keeper)).collect()
    }

    /// Eligible: some host has been sound, and within reach of a quorum that votes, for longer than ttl and back-off.
    pub fn sample(&mut self, t: &Trial, faults: &Faults) {
        let (now, nodes) = (boot_ns(), t.node_names());
        let mut eligible = false;
        for (host, since) in &faults.hosts_since {
            if faults.is_fit(host, &nodes) {
                let fit_since = (*self.fit_since.entry(host).or_insert(now)).max(*since);
                eligible |= now > fit_since + nanos(TTL + secs(1));
            } else {
                self.fit_since.remove(host);
            }
        }
        let running = (self.keepers.len() - self.idle(t).len()) as u64;
        self.samples += self.keepers.len() as u64;
        self.running += running;
        if eligible {
            self.eligible += self.keepers.len() as u64;
            self.running_eligible += running;
        }
    }

    /// Enough to be called a test: every keeper has moved, on average.
    pub fn saw_much(&self, t: &Trial, faults: &Faults) -> bool {
        let lives = t.witness.judge.lives();
        let terms: BTreeSet<(&str, u64)> = lives.iter().map(|l| (l.keeper.as_str(), l.token)).collect();
        terms.len() >= 2 * self.keepers.len() && !faults.hits.is_empty()
    }

    pub fn report(&self, t: &mut Trial, faults: &Faults) -> Step {
        t.witness.look()?;
        let lives = t.witness.judge.lives();
        let terms: BTreeSet<(&str, u64)> = lives.iter().map(|l| (l.keeper.as_str(), l.token)).collect();
        let minutes = (boot_ns() - self.began) as f64 / 60e9;
        line(
            t,
            format!(
                "{minutes:.1} minutes, {} keepers, {} hosts, {} nodes: {} terms, {} children",
                self.keepers.len(),
                t.setup.hosts.len(),
                t.nodes.len(),
                terms.len(),
                lives.len()
            ),
        );
        let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
        faults.hits.iter().for_each(|h| *kinds.entry(h.kind).or_default() += 1);
        let list: Vec<String> = kinds.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
        line(t, format!("{} faults: {}", faults.hits.len(), list.join(", ")));
        let overlaps = t.findings().iter().filter(|v| v.fault == Fault::Overlap).count();
        let excused = t.witness.judge.excused_overlaps();
        let worst = excused.iter().max().copied().unwrap_or(0);
        line(
            t,
            format!(
                "overlaps: {overlaps}; of children on a host that was frozen whole, which only the token excludes: {}, at most {}",
                excused.len(),
                ms(worst)
            ),
        );
        let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        line(
            t,
            format!(
                "availability {:.1} % of all time, {:.1} % of the {:.0} % in which some host had reached a voting quorum for 3 s",
                percent(self.running, self.samples),
                percent(self.running_eligible, self.eligible),
                percent(self.eligible, self.samples),
            ),
        );
        self.report_witnesses(t)?;
        for (cause, mut spans) in take_overs(&lives, &faults.hits) {
            let text = format!("take-over, {cause}: {}", spread(&mut spans));
            line(t, text);
        }
        check(self.saw_much(t, faults), "hardly anything happened")
    }

    fn report_witnesses(&self, t: &mut Trial) -> Step {
        let (ledger, registers) = {
            let judge = &t.witness.judge;
            let ledger = t.ledger().map(|l| l.verdict(judge).1).unwrap_or_default();
            let registers = t.registers().map(|r| (r.writes, r.stale_count, r.rejected)).unwrap_or_default();
            (ledger, registers)
        };
        let span = |s: Option<u64>| s.map_or("-".into(), ms);
        line(
            t,
            format!(
                "validity: {} children within what a quorum of nodes had granted, least left at the last sign of life {}; {} unknown",
                ledger.checked,
                span(ledger.least_left),
                ledger.unknown,
            ),
        );
        line(
            t,
            format!(
                "releases: {} after the last sign of life, the soonest {} after it",
                ledger.releases,
                span(ledger.least_before_release)
            ),
        );
        let (writes, stale, rejected) = registers;
        line(
            t,
            format!(
                "registers: {writes} writes, the plain one took {stale} stale ones (frozen hosts), the fenced one refused {rejected}"
            ),
        );
        let ops = history::verdict(&t.witness.judge).1;
        line(t, format!("history: {ops} operations, those of one fenced mutex for each keeper"));
        check(ledger.checked > 0 && ledger.unknown * 10 < ledger.checked, "the nodes were not watched")?;
        check(writes > 0, "nothing reached the registers")
    }
}

fn line(t: &mut Trial, text: String) {
    t.figure(format!("\n       {text}"));
}

fn spread(spans: &mut [u64]) -> String {
    spans.sort_unstable();
    let at = |percent: usize| spans[(spans.len() * percent / 100).min(spans.len() - 1)];
    format!("p50 {}, p99 {}, largest {}, n {}", ms(at(50)), ms(at(99)), ms(at(100)), spans.len())
}

/// From the youngest fault that hit the old holder before its last sign of life to the next term's first.
fn take_overs(lives: &[Life], hits: &[Hit]) -> BTreeMap<&'static str, Vec<u64>> {
    let mut spans: BTreeMap<&'static str, Vec<u64>> = BTreeMap::new();
    let mut last: BTreeMap<&str, &Life> = BTreeMap::new();
    for life in lives {
        if let Some(old) = last.insert(&life.keeper, life).filter(|old| old.token < life.token) {
            let host = old.host.split('.').next();
            let concerns = |h: &&Hit| {
                h.host.is_none_or(|hit| Some(hit) == host)
                    && h.keeper.is_none_or(|k| k == life.keeper)
                    && h.at >= old.start.saturating_sub(nanos(millis(100)))
                    && h.at <= old.end.max(life.start.min(old.end + nanos(millis(20))))
            };
            let hit = hits.iter().rev().find(concerns);
            let (cause, from) = hit.map_or(("an earlier fault", old.end), |h| (h.kind, h.at));
            spans.entry(cause).or_default().push(life.start.saturating_sub(from));
        }
    }
    spans
}
