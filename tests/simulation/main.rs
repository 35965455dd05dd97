//! Deterministic simulation: the production `Election` in a world of simulated clocks, networks, nodes and processes.
//!
//! ```text
//! cargo test --release --test simulation -- [--seed N [--trace]] [--base N] [--seeds N] [--hours H] [--mode safety|liveness]
//!                                           [--threads N] [--mutant NAME] [--mutants]
//! ```
//! One seed is one run. `world` is the queue of events and the parties; `host`, `guard`, `link`, `node` and `legacy` are what they do;
//! `nemesis` is what goes wrong; `oracle` is what must hold all the same.

// Most matches here pick the one case a fault or a mark is about.
#![allow(clippy::wildcard_enum_match_arm)]

// Production files name `crate::core`.
use keeperd::core;

mod campaign;
mod clock;
mod coverage;
mod dice;
mod guard;
mod host;
mod legacy;
mod link;
mod mutants;
mod nemesis;
mod node;
mod oracle;
mod post;
mod scale;
mod setup;
mod trace;
mod world;

// Production code of the nodes' side that is as pure as the core.
#[allow(unused_imports, dead_code)]
#[path = "../../src/lock/redis/offset.rs"]
mod offset;
#[allow(unused_imports, dead_code)]
#[path = "../../src/lock/redis/unwanted.rs"]
mod unwanted;

use campaign::Options;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("--scale", sizes)) = args.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return scale::run(sizes);
    }
    match Options::parse(&args) {
        Ok(options) => campaign::run(&options),
        Err(why) => {
            eprintln!("simulation: {why}");
            ExitCode::from(64)
        }
    }
}
