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
    println!("{:<44} {states:>10} states {seconds:>6.1} s  {:?}", variant.name, coverage.seen());
    Found { states, violation, seen: coverage.seen() }
}
#[test]
fn explore() {
    let text = std::env::var("V").unwrap_or_default();
    let n: Vec<u8> = text.split(',').map(|n| n.parse().expect("number")).collect();
    let faults = Faults {
        delays: n[1],
        freezes: n[2],
        flushes: n[3],
        empties: n[4],
        restarts: n[5],
        deletes: n[6],
        step_downs: n[7],
    };
    let clocks = if n[8] == 0 { Clocks::Agree } else { Clocks::Apart };
    let broken = [
        Broken::Nothing,
        Broken::ValidityFromReply,
        Broken::DaemonKills,
        Broken::NoQuarantine,
        Broken::ReleaseBeforeDeath,
        Broken::ExtendCreates,
        Broken::NoShadow,
        Broken::NoWriteBack,
    ][usize::from(n[9])];
    let found = search(
        Variant {
            name: "explore",
            faults,
            ticks: n[0],
            start: [Start::Contending, Start::Leading, Start::Minority, Start::Recovered][usize::from(n[10])],
            only_first: n[12] == 1,
            clocks,
            broken,
        },
        usize::from(n[11]),
    );
    println!("{} {:#?}", found.states, found.violation);
    let _ = found.seen;
}
