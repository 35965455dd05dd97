//! The nodes that the simulation and the model believe in, beside a real one: the same requests, the same answers, the same keys.
//!
//! A sequence is drawn, and each of its steps is done to the real node by production's own commands and to the others at the instant
//! that the real one has named. Nothing in it depends on a few milliseconds: leases are 20 s or a multiple, and end by a hand that
//! ends them; deadlines are an hour away, or an hour ago. `KEEPERD_SCRIPTS_SEED` and `KEEPERD_SCRIPTS_CASES` draw others, or more.

mod breaks;
#[path = "../../model/node.rs"]
#[allow(dead_code, reason = "the model uses more of it")]
mod checked;
mod kept;
#[path = "../../simulation/node.rs"]
#[allow(dead_code, reason = "the simulation uses more of it")]
mod simulated;
mod steps;
#[path = "../../model/variant.rs"]
#[allow(dead_code, reason = "the model uses more of it")]
mod variant;
mod wire;

use super::server::{Server, Version};
use breaks::{BREAKS, Break};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestCaseError, TestRng, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeSet;
use steps::{Alphabet, Pair};
use variant::Broken;
use wire::Wire;

/// Every answer there is.
const ANSWERS: &[&str] = &[
    "Acquire(Clock",
    "Acquire(Granted",
    "Acquire(Held",
    "Acquire(Late",
    "Acquire(Mine",
    "Acquire(Paused",
    "Acquire(Quarantined",
    "Acquire(Released",
    "Extend(Empty",
    "Extend(Foreign",
    "Extend(Gone",
    "Extend(Kept",
    "Extend(Ok",
    "Look(Free",
    "Look(Held",
    "Look(Paused",
    "Look(Quarantined",
    "Noted",
    "Raise(Accepted",
    "Raise(Outrun",
    "Raise(Refused",
    "Released",
    "Repair(Foreign",
    "Repair(Refused",
    "Repair(Repaired",
    "Silent",
];

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Plays so many sequences. The first that differs, made as short as it goes where nothing is broken on purpose; and what was answered.
fn play(
    server: &Server,
    cases: u32,
    alphabet: Alphabet,
    broken: Option<&'static Break>,
) -> (Result<(), String>, BTreeSet<String>) {
    let wrong_on_purpose =
        broken.is_some() || matches!(alphabet, Alphabet::OfTheModel(rule) if rule != Broken::Nothing);
    let max_shrink_iters = if wrong_on_purpose { 0 } else { 2_000 };
    let config =
        ProptestConfig { cases, failure_persistence: None, max_shrink_iters, ..ProptestConfig::default() };
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number("KEEPERD_SCRIPTS_SEED", 1).to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let wire = RefCell::new(Wire::to(server, broken));
    let answers = RefCell::new(BTreeSet::new());
    let outcome = runner.run(&prop::collection::vec(steps::any(alphabet), 1..=80), |steps| {
        let mut wire = wire.borrow_mut();
        let mut pair = Pair::new(&mut wire, alphabet);
        for (i, step) in steps.iter().enumerate() {
            pair.take(step).map_err(|why| TestCaseError::fail(format!("step {i}: {why}")))?;
        }
        answers.borrow_mut().extend(pair.answers);
        Ok(())
    });
    if let Some(broken) = broken {
        assert!(wire.borrow().is_broken, "{}: its text is not in the scripts", broken.rule);
    }
    (outcome.map_err(|error| error.to_string()), answers.into_inner())
}

fn agrees(server: &Server, alphabet: Alphabet, usual: u64) -> BTreeSet<String> {
    let cases = u32::try_from(number("KEEPERD_SCRIPTS_CASES", usual)).expect("not that many");
    let (outcome, answers) = play(server, cases, alphabet, None);
    if let Err(why) = outcome {
        panic!("{why}");
    }
    answers
}

sentence! {
    async fn the_scripts_do_what_the_simulated_node_does(server: Server) {
        let answers = agrees(&server, Alphabet::Whole, 60);
        let missing: Vec<_> = ANSWERS.iter().filter(|kind| !answers.iter().any(|a| a.starts_with(**kind))).collect();
        assert!(missing.is_empty(), "never answered: {missing:?}");
    }
}

sentence! {
    async fn the_scripts_do_what_the_model_s_node_does_as_far_as_it_goes(server: Server) {
        assert!(agrees(&server, Alphabet::OfTheModel(Broken::Nothing), 40).len() > 15);
    }
}

sentence! {
    /// Each of these must be seen in a few sequences, or the two tests above could not fail.
    async fn a_script_or_a_model_that_breaks_a_rule_is_told_from_the_other(server: Server) {
        for broken in BREAKS {
            let (outcome, _) = play(&server, 100, Alphabet::Whole, Some(broken));
            assert!(outcome.is_err(), "nobody saw that this does not hold: {}", broken.rule);
        }
        for broken in [Broken::NoQuarantine, Broken::ExtendCreates, Broken::NoShadow, Broken::NoWriteBack] {
            let (outcome, _) = play(&server, 100, Alphabet::OfTheModel(broken), None);
            assert!(outcome.is_err(), "nobody saw the model's {broken:?}");
        }
    }
}
