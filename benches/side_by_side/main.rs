//! keeperd beside what one would pick instead, and beside the floor, in one run. See benches/README.md.

#![allow(
    dead_code,
    reason = "half of the modules are the end-to-end suite's; only part of them is used here"
)]

#[path = "../../tests/e2e/account.rs"]
mod account;
#[path = "../../tests/e2e/cgroup.rs"]
mod cgroup;
#[path = "../../tests/e2e/checker.rs"]
mod checker;
#[path = "../../tests/e2e/clock.rs"]
mod clock;
#[path = "../../tests/e2e/cluster.rs"]
mod cluster;
mod costs;
#[path = "../../tests/e2e/daemon.rs"]
mod daemon;
#[path = "../../tests/e2e/faketime.rs"]
mod faketime;
mod hand_over;
#[path = "../../tests/e2e/history.rs"]
mod history;
#[path = "../../tests/e2e/ledger.rs"]
mod ledger;
#[path = "../../tests/e2e/legacy.rs"]
mod legacy;
mod locks;
mod loops;
mod many;
#[path = "../../tests/e2e/naive.rs"]
mod naive;
mod others;
mod output;
#[path = "../../tests/e2e/probe.rs"]
mod probe;
#[path = "../../tests/e2e/procs.rs"]
mod procs;
#[path = "../../tests/e2e/proxy.rs"]
mod proxy;
mod quorum;
#[path = "../../tests/e2e/registers.rs"]
mod registers;
mod rival;
#[path = "../../tests/e2e/step.rs"]
mod step;
mod table;
#[path = "../../tests/e2e/trial.rs"]
mod trial;
#[path = "../../tests/e2e/witness.rs"]
mod witness;

use clock::Chance;
use cluster::Node;
// As files of the nodes' side name them.
use keeperd::{core, lock};
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::path::Path;
use std::process::{ExitCode, exit};
use step::Step;
use table::Table;
use trial::Trial;

type Section = (&'static str, fn(&str, &Path, &mut Table) -> Step);

const SECTIONS: &[Section] = &[
    ("locks", locks),
    ("hand-over", |id, dir, table| trial(id, dir, table, hand_over::measure)),
    ("cut", |id, dir, table| trial(id, dir, table, hand_over::cut)),
    ("crowd", |id, dir, table| trial(id, dir, table, hand_over::crowd)),
    ("many", |id, dir, table| many::measure(id, dir, &servers(id, dir)?, table)),
    ("costs", |id, dir, table| costs::measure(&servers(id, dir)?, table)),
    ("output", |id, dir, table| output::measure(id, dir, &servers(id, dir)?, table)),
    (LOOPS, |id, dir, table| trial(id, dir, table, loops::measure)),
];

/// Takes ten minutes: only when it is asked for.
const LOOPS: &str = "loops";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.first().map(String::as_str) {
        Some("probe") => probe::main(&args[1..]),
        Some("write") => output::write(&args[1..]),
        _ => {}
    }
    let unknown = args.iter().find(|arg| !SECTIONS.iter().any(|(name, _)| name == arg));
    if let Some(unknown) = unknown {
        let names: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
        eprintln!("no section {unknown}; there are {}", names.join(", "));
        exit(64);
    }
    let wanted =
        |name: &str| if args.is_empty() { name != LOOPS } else { args.iter().any(|arg| arg == name) };
    nix::sys::prctl::set_child_subreaper(true).expect("Linux has subreapers");
    let mut table = Table::default();
    let mut failed = 0;
    for (name, section) in SECTIONS.iter().filter(|(name, _)| wanted(name)) {
        eprintln!("== {name}");
        let _turn = turn();
        let folder = tempfile::tempdir().expect("a folder");
        let id = format!("bench-{}-{name}", std::process::id());
        if let Err(failure) = section(&id, folder.path(), &mut table) {
            eprintln!("{name}: {failure:?}");
            failed += 1;
        }
        procs::sweep(&id);
    }
    println!("{}", table.markdown());
    println!("{} goals missed, {failed} sections failed", table.missed());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `BENCH_LOCK`: a file that other measurements on this machine lock, too. Each section waits for it.
fn turn() -> Option<Flock<File>> {
    let path = std::env::var_os("BENCH_LOCK")?;
    let file = File::create(&path).expect("BENCH_LOCK can be opened");
    Some(Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).expect("flock"))
}

fn servers(id: &str, folder: &Path) -> Step<Vec<Node>> {
    ['A', 'B', 'C']
        .into_iter()
        .map(|name| {
            let mut node = Node::plan(name, id, folder)?;
            node.start()?;
            Ok(node)
        })
        .collect()
}

fn locks(id: &str, folder: &Path, table: &mut Table) -> Step {
    locks::measure(&mut servers(id, folder)?, table)
}

/// A story of the end-to-end suite, with nobody watching but the probes.
fn trial(id: &str, folder: &Path, table: &mut Table, story: fn(&mut Trial, &mut Table) -> Step) -> Step {
    let mut trial = Trial::new(id.into(), folder, Chance::named(1, id), false)?;
    let told = story(&mut trial, table).and_then(|()| trial.finish());
    trial.remove_groups();
    told
}
