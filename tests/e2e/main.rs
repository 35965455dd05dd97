//! Real daemons, real Redis servers, real faults, and a witness that trusts none of them. See tests/README.md.
//!
//! One executable in several roles: the runner, which starts each trial as a process of its own (`e2e trial …`), so that a
//! trial can be its own subreaper and nothing of it can reach another; the trial; and the child (`e2e probe …`). For the
//! controls it can also play a daemon that does it wrong (`e2e naive …`), and it is the hook of a keeper (`e2e hook …`).

mod account;
mod cgroup;
mod checker;
mod clock;
mod cluster;
mod daemon;
mod faketime;
mod history;
mod ledger;
mod legacy;
mod naive;
mod probe;
mod procs;
mod proxy;
#[path = "../../benches/side_by_side/quorum.rs"]
mod quorum;
mod registers;
mod report;
mod runner;
mod scenarios;
mod step;
mod trial;
mod witness;

use std::io::Read;
use std::path::Path;
use std::process::exit;
use step::{Failure, Kind, Step};
use trial::Trial;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("probe") => probe::main(&args[2..]),
        Some("hook") => scenarios::hooks::hook(&args[2..]),
        Some("naive") => naive::main(&args[2..]),
        Some("trial") => run_trial(&args[2..]),
        _ => exit(runner::main(&args[1..])),
    }
}

/// `e2e trial NAME SEED DIR ID`: plays one scenario; the first line of output is the figures or the reason.
fn run_trial(args: &[String]) -> ! {
    let [name, seed, dir, id] = args else { panic!("usage: trial NAME SEED DIR ID") };
    nix::sys::prctl::set_child_subreaper(true).expect("subreaper");
    let lifeline = id.clone();
    std::thread::spawn(move || end_with_the_runner(&lifeline));
    let outcome = play(name, seed.parse().expect("a seed"), Path::new(dir), id);
    procs::sweep(id);
    match outcome {
        Ok(figures) => {
            println!("{figures}");
            exit(0)
        }
        Err(Failure { why, kind }) => {
            println!("{why}");
            exit(if kind == Kind::Skipped { runner::SKIPPED } else { runner::FAILED })
        }
    }
}

fn play(name: &str, seed: u64, dir: &Path, id: &str) -> Step<String> {
    let scenario = scenarios::all().into_iter().find(|s| s.name == name).expect("a known scenario");
    let mut trial = Trial::new(id.into(), dir, clock::Chance::named(seed, name), !scenario.alone)?;
    let told = (scenario.story)(&mut trial).and_then(|()| trial.finish());
    trial.remove_groups();
    if told.is_err() {
        // An overlap says more than the story's complaint that followed from it.
        trial.witness.look().ok();
        if let Some(first) = trial.witness.verdict().first().filter(|_| trial.must_be_flagged.is_empty()) {
            std::fs::write(trial.dir().join("centre"), first.at.to_string()).ok();
            return told
                .map_err(|f| step::failure(format!("{first}\nand the story: {}", f.why)))
                .map(|()| String::new());
        }
    }
    told.map(|()| trial.figures())
}

/// The runner holds the other end of our standard input. When it is gone, or out of patience, nothing may stay.
fn end_with_the_runner(id: &str) {
    std::io::stdin().read_to_end(&mut Vec::new()).ok();
    procs::sweep(id);
    cgroup::Groups::remove_of(id);
    exit(runner::ABANDONED)
}
