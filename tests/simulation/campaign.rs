//! Many seeds, one report.

use crate::coverage::Coverage;
use crate::mutants::Mutant;
use crate::setup::{Mode, Setup};
use crate::trace::{LEGEND, Telling};
use crate::world::{Outcome, World};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

const HOURS: f64 = 20_000.0;
/// A long campaign says how far it got, so that one that is cut short still counts for that much.
const TOLD_EVERY_HOURS: f64 = 50_000.0;
const TOLD: usize = 60;
/// One seed of so many is played again, to see that a seed is a run.
const PLAYED_TWICE: usize = 100;
/// Fewer seeds than this prove nothing about what they did not reach.
const SEEDS_FOR_MARKS: usize = 500;
/// A mutant that lives through so many seeds is not caught.
const MUTANT_SEEDS: u64 = 4_000;

#[derive(Clone, Debug)]
pub struct Options {
    seed: Option<u64>,
    base: u64,
    seeds: Option<usize>,
    hours: f64,
    threads: usize,
    mode: Option<Mode>,
    trace: bool,
    mutant: Option<Mutant>,
    mutants: bool,
}

impl Options {
    pub fn parse(args: &[String]) -> Result<Options, String> {
        let fresh = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
        let mut options = Options {
            seed: None,
            base: fresh * 1_000_000,
            seeds: None,
            hours: HOURS,
            threads: 2,
            mode: None,
            trace: false,
            mutant: None,
            mutants: false,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            let number = |text: &String| text.parse::<u64>().map_err(|_| format!("{text} is no number"));
            match arg.as_str() {
                "--seed" => options.seed = Some(number(value()?)?),
                "--base" => options.base = number(value()?)?,
                "--seeds" => options.seeds = Some(usize::try_from(number(value()?)?).unwrap_or(usize::MAX)),
                "--hours" => options.hours = number(value()?)? as f64,
                "--threads" => options.threads = usize::try_from(number(value()?)?).unwrap_or(1).max(1),
                "--mode" => {
                    options.mode = Some(match value()?.as_str() {
                        "safety" => Mode::Safety,
                        "liveness" => Mode::Liveness,
                        other => return Err(format!("no mode {other}")),
                    });
                }
                "--trace" => options.trace = true,
                "--mutant" => {
                    let name = value()?;
                    options.mutant = Some(Mutant::named(name).ok_or(format!("no mutant {name}"))?);
                }
                "--mutants" => options.mutants = true,
                other => return Err(format!("unknown argument {other}")),
            }
        }
        Ok(options)
    }
}

pub fn run(options: &Options) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {})); // told with the seed, below
    if let Some(seed) = options.seed {
        return one(options, seed);
    }
    if options.mutants {
        return all_mutants(options);
    }
    if let Some(mutant) = options.mutant {
        return ExitCode::from(u8::from(!hunt(options, mutant)));
    }
    many(options)
}

/// One run to its end; a panic is a violation like any other.
fn play(setup: Setup, mutant: Option<Mutant>, telling: Telling) -> (Outcome, World) {
    let (seed, mode, restless, hours) = (setup.seed, setup.mode, setup.restless, setup.hours());
    let mut world = World::new(setup, mutant, telling);
    world.describe();
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let what = said.unwrap_or_default();
        let violation =
            crate::oracle::Violation { rule: "nothing panics", what, at: world.now, event: world.events };
        Outcome {
            seed,
            mode,
            restless,
            hours,
            events: world.events,
            terms: 0,
            faults: 0,
            served: 0,
            coverage: Coverage::default(),
            violation: Some(violation),
        }
    });
    (outcome, world)
}

fn one(options: &Options, seed: u64) -> ExitCode {
    let telling = if options.trace { Telling::Aloud } else { Telling::Last(TOLD) };
    if options.trace {
        println!("{LEGEND}");
    }
    let (outcome, world) = play(Setup::of(seed, options.mode), options.mutant, telling);
    let failed = outcome.violation.is_some();
    if failed {
        tell_failure(&outcome, &world, options.mutant);
    }
    println!(
        "seed {seed}: {:.2} hours, {} events, {} terms, {} faults, a child ran {:.1} % of the time",
        outcome.hours,
        outcome.events,
        outcome.terms,
        outcome.faults,
        outcome.served as f64 / 10.0
    );
    println!("{} passed, {} failed", u8::from(!failed), u8::from(failed));
    ExitCode::from(u8::from(failed))
}

fn tell_failure(outcome: &Outcome, world: &World, mutant: Option<Mutant>) {
    let Some(violation) = &outcome.violation else { return };
    let commit = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let commit =
        commit.map_or_else(|_| String::new(), |out| String::from_utf8_lossy(&out.stdout).into_owned());
    let with = mutant.map_or_else(String::new, |mutant| format!(" --mutant {}", mutant.name()));
    println!(
        "FAILED seed {} at {:.3} s, event {}, commit {}: {}: {}",
        outcome.seed,
        violation.at as f64 / 1e9,
        violation.event,
        commit.trim(),
        violation.rule,
        violation.what
    );
    println!("{LEGEND}");
    for line in &world.trace.lines {
        println!("{line}");
    }
    println!("again: cargo test --release --test simulation -- --seed {}{with} [--trace]", outcome.seed);
}

/// The same seed is the same run, told or not: line by line, and in what it came to.
fn replays(seed: u64, mode: Option<Mode>) -> bool {
    let told = |telling| {
        let (outcome, world) = play(Setup::of(seed, mode), None, telling);
        (format!("{outcome:?}"), world.trace.digest)
    };
    let first = told(Telling::Digest);
    first == told(Telling::Digest) && first.0 == told(Telling::Nothing).0
}

/// Most hours are peaceful, and most of what happens does not happen in them.
#[derive(Default)]
struct Restless {
    seeds: usize,
    hours: f64,
    faults: u64,
}

/// What was added up.
#[derive(Default)]
struct Sum {
    seeds: usize,
    hours: f64,
    restless: Restless,
    events: u64,
    terms: u64,
    faults: u64,
    served: f64,
    healed: usize,
    coverage: Coverage,
    failed: Vec<u64>,
    /// Played twice, and not the same both times.
    unlike: Vec<u64>,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.healed += usize::from(outcome.mode == Mode::Liveness);
        self.hours += outcome.hours;
        if outcome.restless {
            self.restless.seeds += 1;
            self.restless.hours += outcome.hours;
            self.restless.faults += outcome.faults;
        }
        self.events += outcome.events;
        self.terms += outcome.terms;
        self.faults += outcome.faults;
        self.served += outcome.hours * outcome.served as f64 / 1000.0;
        self.coverage.add(&outcome.coverage);
        if outcome.violation.is_some() {
            self.failed.push(outcome.seed);
        }
    }

    fn figures(&self, took: f64) -> String {
        format!(
            "{:.0} simulated hours in {took:.1} s ({:.0} h/s), {} seeds ({} of them healed in the end), {} events, {} terms, {} faults; a child ran {:.1} % of the time; of it restless: {:.0} hours, {} seeds, {} faults",
            self.hours,
            self.hours / took,
            self.seeds,
            self.healed,
            self.events,
            self.terms,
            self.faults,
            self.served / self.hours * 100.0,
            self.restless.hours,
            self.restless.seeds,
            self.restless.faults
        )
    }
}

/// As many seeds as were asked for, or as make the hours.
fn seeds(options: &Options) -> Vec<u64> {
    let mut hours = 0.0;
    let enough = |count: usize, hours: f64| match options.seeds {
        Some(seeds) => count >= seeds,
        None => hours >= options.hours,
    };
    let mut seeds = Vec::new();
    while !enough(seeds.len(), hours) {
        let seed = options.base + seeds.len() as u64;
        hours += Setup::of(seed, options.mode).hours();
        seeds.push(seed);
    }
    seeds
}

fn many(options: &Options) -> ExitCode {
    println!("base seed {}", options.base);
    let began = Instant::now();
    let seeds = seeds(options);
    let next = AtomicUsize::new(0);
    let sum = Mutex::new(Sum::default());
    let work = || {
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (outcome, _) = play(Setup::of(*seed, options.mode), None, Telling::Nothing);
            if let Some(violation) = &outcome.violation {
                println!("seed {seed} fails: {}: {}", violation.rule, violation.what);
            }
            let mut sum = sum.lock().expect("no panic holds it");
            let before = (sum.hours / TOLD_EVERY_HOURS).floor();
            sum.add(&outcome);
            if (sum.hours / TOLD_EVERY_HOURS).floor() > before {
                println!(
                    "so far: {}, {} failed",
                    sum.figures(began.elapsed().as_secs_f64()),
                    sum.failed.len()
                );
            }
        }
    };
    std::thread::scope(|scope| (0..options.threads).for_each(|_| drop(scope.spawn(work))));
    let mut sum = sum.into_inner().expect("no panic holds it");
    sum.failed.sort_unstable();
    let again = seeds.iter().step_by(PLAYED_TWICE);
    sum.unlike = again.copied().filter(|seed| !replays(*seed, options.mode)).collect();
    report(options, &sum, began.elapsed().as_secs_f64())
}

fn report(options: &Options, sum: &Sum, took: f64) -> ExitCode {
    for (text, count) in sum.coverage.all() {
        println!("{count:>12}  {text}");
    }
    for seed in sum.failed.iter().take(3) {
        let (outcome, world) = play(Setup::of(*seed, options.mode), None, Telling::Last(TOLD));
        tell_failure(&outcome, &world, None);
    }
    if sum.failed.len() > 3 {
        println!(
            "{} more seeds failed: {:?}",
            sum.failed.len() - 3,
            &sum.failed[3..sum.failed.len().min(30)]
        );
    }
    println!("{}", sum.figures(took));
    let missing = sum.coverage.missing();
    let judged = sum.seeds >= SEEDS_FOR_MARKS && options.mode.is_none();
    println!(
        "{} of {} marks reached",
        sum.coverage.all().count() - missing.len(),
        sum.coverage.all().count()
    );
    if judged && !missing.is_empty() {
        println!("never reached: {missing:?}");
    }
    if !sum.unlike.is_empty() {
        println!("not the same run twice: {:?}", sum.unlike);
    }
    let failed = sum.failed.len() + usize::from(judged && !missing.is_empty()) + sum.unlike.len();
    let passed = sum.seeds - sum.failed.len() + usize::from(judged && missing.is_empty());
    println!("{passed} passed, {failed} failed");
    ExitCode::from(u8::from(failed > 0))
}

// ── mutants ──

/// Plays seeds until the oracle catches it.
fn hunt(options: &Options, mutant: Mutant) -> bool {
    let most = options.seeds.map_or(MUTANT_SEEDS, |seeds| seeds as u64);
    let next = AtomicUsize::new(0);
    let found = Mutex::new(None::<(Outcome, u64)>);
    let work = || {
        loop {
            let tried = next.fetch_add(1, Ordering::Relaxed) as u64;
            let done = found.lock().expect("no panic holds it").as_ref().is_some_and(|(_, at)| *at < tried);
            if done || tried >= most {
                return;
            }
            let (outcome, _) =
                play(Setup::of(options.base + tried, options.mode), Some(mutant), Telling::Nothing);
            if outcome.violation.is_some() {
                let mut found = found.lock().expect("no panic holds it");
                // The smallest seed, whichever thread was faster.
                if found.as_ref().is_none_or(|(_, at)| tried < *at) {
                    *found = Some((outcome, tried));
                }
            }
        }
    };
    std::thread::scope(|scope| (0..options.threads).for_each(|_| drop(scope.spawn(work))));
    let found = found.into_inner().expect("no panic holds it");
    match &found {
        Some((outcome, tried)) => {
            let violation = outcome.violation.as_ref().expect("that is why it was found");
            println!(
                "| `{}` | {} | {} | {tried} | {} | {} |",
                mutant.name(),
                mutant.rule(),
                outcome.seed,
                violation.event,
                violation.rule,
            );
        }
        None => println!("| `{}` | {} | **LIVES** | {most} | – | – |", mutant.name(), mutant.rule()),
    }
    found.is_some()
}

/// A table as tests/README.md has it.
fn all_mutants(options: &Options) -> ExitCode {
    println!("base seed {}\n", options.base);
    println!("| mutant | breaks | caught by seed | runs before it | event | as |");
    println!("|---|---|---|---|---|---|");
    let caught = Mutant::ALL.iter().filter(|mutant| hunt(options, **mutant)).count();
    let failed = Mutant::ALL.len() - caught;
    println!("\n{caught} passed, {failed} failed");
    ExitCode::from(u8::from(failed > 0))
}
