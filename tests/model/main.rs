//! Model checking: every order of events of two hosts and three nodes, up to a horizon, with the production `Election` on both hosts.
//! What is modelled and what is not, with figures: tests/README.md.

// A model picks a few variants out of many; production code may not.
#![allow(clippy::wildcard_enum_match_arm)]

mod coverage;
mod host;
mod node;
mod trace;
mod variant;
mod world;

use coverage::{Coverage, Mark};
use stateright::{Checker, HasDiscoveries, Model};
use std::sync::Arc;
use std::time::Instant;
use variant::{Broken, Clocks, Faults, Start, Variant};
use world::World;

const THREADS: usize = 2;

/// A search, to its end or to its first violation.
struct Found {
    states: usize,
    violation: Option<Violation>,
    seen: Vec<Mark>,
}

/// How a search goes on from a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// Keeps one path: the memory of what was seen, eight bytes a state.
    Depth,
    /// Keeps every state at the edge of what was seen, kilobytes each; the first violation is then one in the fewest steps.
    Breadth,
}

fn search(variant: Variant, order: Order) -> Found {
    let coverage = Arc::new(Coverage::default());
    let began = Instant::now();
    let world = World { variant, coverage: Arc::clone(&coverage) };
    let checker = world.checker().finish_when(HasDiscoveries::AnyFailures);
    let (states, violation) = match order {
        Order::Depth => result(&checker.threads(THREADS).spawn_dfs().join()),
        Order::Breadth => result(&checker.spawn_bfs().join()),
    };
    let seconds = began.elapsed().as_secs_f64();
    let Variant { name, ticks, .. } = variant;
    println!("{name:<36} {ticks:>2} ticks {states:>10} states {seconds:>6.1} s  {:?}", coverage.seen());
    Found { states, violation, seen: coverage.seen() }
}

type Violation = (&'static str, Vec<String>);

fn result(checker: &impl Checker<World>) -> (usize, Option<Violation>) {
    let violation = checker
        .discoveries()
        .into_iter()
        .find(|(name, _)| *name != "a child runs")
        .map(|(name, path)| (name, trace::in_words(checker.model(), path)));
    (checker.unique_state_count(), violation)
}

/// How much is searched.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Effort {
    /// What a debug build does in seconds.
    Quick,
    /// `cargo test --release`.
    Usual,
    /// `KEEPERD_MODEL=full`.
    Full,
}

/// `KEEPERD_MODEL=full`, or a part of the names of the variants to search.
enum Asked {
    UpTo(Effort),
    Named(String),
}

impl Asked {
    fn of_environment() -> Asked {
        match std::env::var("KEEPERD_MODEL") {
            Ok(mode) if mode == "full" => Asked::UpTo(Effort::Full),
            Ok(name) => Asked::Named(name),
            Err(_) if cfg!(debug_assertions) => Asked::UpTo(Effort::Quick),
            Err(_) => Asked::UpTo(Effort::Usual),
        }
    }

    fn wants(&self, least: Effort, variant: &Variant) -> bool {
        match self {
            Asked::UpTo(effort) => least <= *effort,
            Asked::Named(part) => variant.name.contains(part),
        }
    }

    /// What so much searching must have met.
    fn reaches(&self, effort: Effort) -> bool {
        matches!(self, Asked::UpTo(asked) if *asked >= effort)
    }
}

const NONE: Faults =
    Faults { delays: 0, freezes: 0, flushes: 0, empties: 0, restarts: 0, deletes: 0, step_downs: 0 };

/// Rules as they are: must be searched to the end without a violation.
fn safe() -> Vec<(Effort, Variant)> {
    use {Clocks::Apart, Effort::*, Start::*};
    let variant = |name, start, ticks, faults| Variant {
        name,
        start,
        ticks,
        faults,
        clocks: Apart,
        ..Variant::default()
    };
    let agreeing = |variant| Variant { clocks: Clocks::Agree, ..variant };
    let only_first = |variant| Variant { only_first: true, ..variant };
    vec![
        (Quick, variant("contending, no faults", Contending, 32, NONE)),
        (Quick, variant("one key deleted by hand", Leading, 10, Faults { deletes: 1, ..NONE })),
        (Usual, variant("one lost node, then a hand-over", Recovered, 20, Faults { step_downs: 1, ..NONE })),
        (Usual, variant("contending, a late message", Contending, 10, Faults { delays: 1, ..NONE })),
        (Usual, variant("leading, two late messages", Leading, 8, Faults { delays: 2, ..NONE })),
        (Usual, variant("leading, a freeze", Leading, 18, Faults { freezes: 1, ..NONE })),
        (Usual, variant("step-down", Leading, 12, Faults { step_downs: 1, ..NONE })),
        (
            Usual,
            only_first(variant(
                "frozen holder, a key deleted",
                Leading,
                4,
                Faults { freezes: 1, deletes: 1, ..NONE },
            )),
        ),
        (Usual, agreeing(variant("a node restarts empty", Minority, 12, Faults { empties: 1, ..NONE }))),
        (Usual, agreeing(variant("FLUSHALL on a node", Minority, 8, Faults { flushes: 1, ..NONE }))),
        (Full, only_first(variant("leading, two freezes", Leading, 14, Faults { freezes: 2, ..NONE }))),
        (Full, variant("leading, a freeze, longer", Leading, 24, Faults { freezes: 1, ..NONE })),
        (Full, variant("leading, two late messages, longer", Leading, 10, Faults { delays: 2, ..NONE })),
        (Full, variant("two keys deleted by hand", Leading, 0, Faults { deletes: 2, ..NONE })),
        (Full, variant("step-down, a late message", Leading, 4, Faults { delays: 1, step_downs: 1, ..NONE })),
        (
            Full,
            agreeing(variant(
                "restart with data, FLUSHALL",
                Leading,
                8,
                Faults { flushes: 1, restarts: 1, ..NONE },
            )),
        ),
    ]
}

const TWO: &str = "never two live children";

/// One rule broken each: must be found, as a violation of this property.
fn broken() -> Vec<(Effort, &'static str, Variant)> {
    use {Clocks::Apart, Effort::*, Start::*};
    let variant = |name, broken, start, ticks, faults| Variant {
        name,
        broken,
        start,
        ticks,
        faults,
        clocks: Apart,
        only_first: true,
    };
    vec![
        (
            Quick,
            TWO,
            variant(
                "the daemon does the killing",
                Broken::DaemonKills,
                Leading,
                9,
                Faults { freezes: 1, ..NONE },
            ),
        ),
        (
            Quick,
            TWO,
            Variant {
                clocks: Clocks::Agree,
                ..variant("no quarantine", Broken::NoQuarantine, Minority, 2, Faults { empties: 1, ..NONE })
            },
        ),
        (
            Quick,
            "released only when dead",
            variant(
                "release before death",
                Broken::ReleaseBeforeDeath,
                Leading,
                4,
                Faults { step_downs: 1, ..NONE },
            ),
        ),
        (
            Quick,
            "a released value never lives again",
            variant(
                "extend creates",
                Broken::ExtendCreates,
                Leading,
                6,
                Faults { delays: 1, step_downs: 1, ..NONE },
            ),
        ),
        (Quick, TWO, variant("no shadow key", Broken::NoShadow, Leading, 2, Faults { deletes: 2, ..NONE })),
        (
            Quick,
            "tokens grow",
            variant(
                "tokens are not written back",
                Broken::NoWriteBack,
                Recovered,
                10,
                Faults { step_downs: 1, ..NONE },
            ),
        ),
        (
            Usual,
            TWO,
            variant(
                "validity from the reply",
                Broken::ValidityFromReply,
                Leading,
                11,
                Faults { freezes: 2, ..NONE },
            ),
        ),
    ]
}

#[test]
fn every_safe_variant_is_searched_to_the_end() {
    let (mut states, mut seen) = (0, Vec::new());
    let asked = Asked::of_environment();
    for (_, variant) in safe().into_iter().filter(|(least, variant)| asked.wants(*least, variant)) {
        let found = search(variant, Order::Depth);
        if let Some((property, trace)) = found.violation {
            let shortest = search(variant, Order::Breadth).violation.map_or(trace, |(_, trace)| trace);
            panic!("{}: {property}\n{}", variant.name, shortest.join("\n"));
        }
        states += found.states;
        seen.extend(found.seen);
    }
    println!("{:<45} {states:>10} states, at most {} MB of memory", "together", peak_memory_mb());
    let mut expected = Vec::new();
    if asked.reaches(Effort::Quick) {
        expected.extend([Mark::Elected, Mark::Extended, Mark::Repaired]);
    }
    if asked.reaches(Effort::Usual) {
        expected.extend([Mark::HandedOver, Mark::TakenOver, Mark::Unknown, Mark::Raised]);
        expected.extend([Mark::Mine, Mark::Evicted, Mark::Quarantined]);
        assert!(states >= 10_000_000, "{states} states");
    }
    for mark in expected {
        assert!(seen.contains(&mark), "{mark:?} never happened");
    }
}

#[test]
fn every_broken_rule_is_found() {
    let mut seen = Vec::new();
    let asked = Asked::of_environment();
    for (_, expected, variant) in
        broken().into_iter().filter(|(least, _, variant)| asked.wants(*least, variant))
    {
        let found = search(variant, Order::Breadth);
        let (property, trace) = found.violation.unwrap_or_else(|| panic!("{}: nothing found", variant.name));
        println!("    {property}, in {} steps:\n{}", trace.len(), trace.join("\n"));
        assert_eq!(property, expected, "{}", variant.name);
        seen.extend(found.seen);
    }
    let met = seen.contains(&Mark::Foreign) || !asked.reaches(Effort::Quick);
    assert!(met, "a foreign holder is met where a rule is broken");
}

/// Of the whole process so far; 0 where the kernel does not say.
fn peak_memory_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
