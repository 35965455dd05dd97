//! Properties: what must hold for every input, drawn and shrunk by proptest. `PROPTEST_CASES=100000` asks for more; sequences that
//! once failed are kept in `tests/properties/*.txt` and tried first.

// Tests pick one variant out of many; production code may not.
#![allow(clippy::wildcard_enum_match_arm)]

mod config;
mod load;
#[path = "../model/node.rs"]
#[allow(dead_code, reason = "the model uses more of it")]
mod node;
mod oracle;
mod parts;
#[path = "../model/variant.rs"]
#[allow(dead_code, reason = "the model uses more of it")]
mod variant;

use oracle::{Driver, Nodes, Op};
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use std::cell::Cell;

/// Sequences of a run; `PROPTEST_CASES` says otherwise.
fn cases(file: &'static str) -> ProptestConfig {
    let mut config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = if cfg!(debug_assertions) { 1_000 } else { 20_000 };
    }
    config.failure_persistence = Some(Box::new(FileFailurePersistence::Direct(file)));
    config.max_shrink_iters = 200_000;
    config
}

fn sequences() -> impl Strategy<Value = (u8, Vec<Op>)> {
    (any::<u8>(), prop::collection::vec(any::<Op>(), 1..=120))
}

/// Runs the sequences, and notices a test of nothing: two sequences in three lead to a term, one in thirty to a prolongation.
fn run(nodes: Nodes, file: &'static str) {
    let (launches, prolongations) = (Cell::new(0), Cell::new(0));
    let config = cases(file);
    let sequences_run = u64::from(config.cases);
    let mut runner = TestRunner::new(config);
    let result = runner.run(&sequences(), |(shape, ops)| {
        let mut driver = Driver::new(nodes, shape);
        ops.into_iter().for_each(|op| driver.feed(op));
        launches.set(launches.get() + u64::from(driver.launches));
        prolongations.set(prolongations.get() + u64::from(driver.prolongations));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let (launches, prolongations) = (launches.get(), prolongations.get());
    println!("{launches} terms, {prolongations} prolongations");
    let enough = launches > sequences_run / 10 && prolongations > sequences_run / 200;
    assert!(enough, "the sequences must lead somewhere: {launches} terms, {prolongations} prolongations");
}

#[test]
fn an_election_keeps_its_rules_whatever_it_is_told() {
    run(Nodes::Absurd, "tests/properties/absurd.txt");
}

#[test]
fn with_behaving_nodes_tokens_grow_as_well() {
    run(Nodes::Behaving, "tests/properties/behaving.txt");
}
