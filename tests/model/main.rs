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

/// A search, to its end or to its first violation.
struct Found {
    states: usize,
    violation: Option<(&'static str, Vec<String>)>,
    seen: Vec<Mark>,
}

fn search(variant: Variant, threads: usize) -> Found {
    let coverage = Arc::new(Coverage::default());
    let began = Instant::now();
    let world = World { variant, coverage: Arc::clone(&coverage) };
    let checker =
        world.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let states = checker.unique_state_count();
    let violation = checker
        .discoveries()
        .into_iter()
        .find(|(name, _)| *name != "a child runs")
        .map(|(name, path)| (name, trace::in_words(checker.model(), path)));
    let seconds = began.elapsed().as_secs_f64();
    println!("{:<36} {states:>10} states {seconds:>6.1} s  {:?}", variant.name, coverage.seen());
    Found { states, violation, seen: coverage.seen() }
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

fn effort() -> Effort {
    if std::env::var("KEEPERD_MODEL").is_ok_and(|mode| mode == "full") {
        Effort::Full
    } else if cfg!(debug_assertions) {
        Effort::Quick
    } else {
        Effort::Usual
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
    vec![
        (Quick, variant("contending, no faults", Contending, 16, NONE)),
        (Quick, variant("one lost node, then a hand-over", Recovered, 10, Faults { step_downs: 1, ..NONE })),
        (Quick, variant("one key deleted by hand", Leading, 4, Faults { deletes: 1, ..NONE })),
        (Usual, variant("contending, a late message", Contending, 4, Faults { delays: 1, ..NONE })),
        (Usual, variant("leading, two late messages", Leading, 8, Faults { delays: 2, ..NONE })),
        (Usual, variant("leading, a freeze", Leading, 12, Faults { freezes: 1, ..NONE })),
        (Usual, variant("step-down", Leading, 4, Faults { step_downs: 1, ..NONE })),
        (
            Usual,
            Variant {
                only_first: true,
                ..variant(
                    "frozen holder, a key deleted",
                    Leading,
                    4,
                    Faults { freezes: 1, deletes: 1, ..NONE },
                )
            },
        ),
        (Usual, agreeing(variant("a node restarts empty", Minority, 8, Faults { empties: 1, ..NONE }))),
        (Full, agreeing(variant("FLUSHALL on a node", Minority, 8, Faults { flushes: 1, ..NONE }))),
        (
            Full,
            Variant {
                only_first: true,
                ..variant("leading, two freezes", Leading, 11, Faults { freezes: 2, ..NONE })
            },
        ),
        (Full, variant("two keys deleted by hand", Leading, 0, Faults { deletes: 2, ..NONE })),
        (Full, variant("step-down, a late message", Leading, 4, Faults { delays: 1, step_downs: 1, ..NONE })),
        (Full, variant("leading, a freeze, longer", Leading, 18, Faults { freezes: 1, ..NONE })),
        (
            Full,
            agreeing(variant(
                "restart with data, FLUSHALL",
                Leading,
                6,
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
        (
            Full,
            TWO,
            variant(
                "a vote for an older value counts",
                Broken::OldVotes,
                Contending,
                2,
                Faults { delays: 2, ..NONE },
            ),
        ),
    ]
}

#[test]
fn every_safe_variant_is_searched_to_the_end() {
    let (mut states, mut seen) = (0, Vec::new());
    for (_, variant) in safe().into_iter().filter(|(least, _)| *least <= effort()) {
        let found = search(variant, 2);
        if let Some((property, trace)) = found.violation {
            panic!("{}: {property}\n{}", variant.name, trace.join("\n"));
        }
        states += found.states;
        seen.extend(found.seen);
    }
    println!("{:<36} {states:>10} states", "together");
    let mut expected = vec![Mark::Elected, Mark::Extended, Mark::HandedOver, Mark::Repaired];
    if effort() >= Effort::Usual {
        expected.extend([Mark::Unknown, Mark::Raised, Mark::Mine, Mark::Evicted, Mark::Quarantined]);
    }
    for mark in expected {
        assert!(seen.contains(&mark), "{mark:?} never happened");
    }
}

#[test]
fn every_broken_rule_is_found() {
    let mut seen = Vec::new();
    for (_, expected, variant) in broken().into_iter().filter(|(least, ..)| *least <= effort()) {
        // One thread: the first trace is then a shortest one.
        let found = search(variant, 1);
        let (property, trace) = found.violation.unwrap_or_else(|| panic!("{}: nothing found", variant.name));
        println!("    {property}, in {} steps:\n{}", trace.len(), trace.join("\n"));
        assert_eq!(property, expected, "{}", variant.name);
        seen.extend(found.seen);
    }
    assert!(seen.contains(&Mark::Foreign), "a foreign holder is met where a rule is broken");
}
