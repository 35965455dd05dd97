//! Options, the queue of trials, one line for each, and the sum.

use crate::clock::boot_ns;
use crate::scenarios::{self, Scenario};
use crate::{cgroup, cluster, daemon, procs, report};
use std::collections::{BTreeSet, VecDeque};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub const FAILED: i32 = 1;
pub const SKIPPED: i32 = 2;
pub const ABANDONED: i32 = 3;

#[derive(Debug, Default)]
struct Options {
    filters: Vec<String>,
    seed: Option<u64>,
    repeat: u64,
    jobs: usize,
    keep: bool,
    list: bool,
    exact: bool,
}

const USAGE: &str = "usage: e2e [NAME…] [--exact] [--list] [--seed N] [--repeat N] [--jobs N] [--keep]
environment: KEEPERD_BIN (the daemon), E2E_REDIS_SERVER (the server), E2E_N (samples of a figure),
E2E_SECONDS (length of a churn)";

/// Libtest's own options may come with `cargo test`; the ones that mean nothing here are passed over.
fn parse(args: &[String]) -> Result<Options, String> {
    let mut o = Options { repeat: 1, jobs: 1, ..Options::default() };
    let mut words = args.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        let (name, mut inline) = word.split_once('=').map_or((word, None), |(n, v)| (n, Some(v)));
        let mut number = || {
            let value = inline.take().or_else(|| words.next());
            value.and_then(|v| v.parse::<u64>().ok()).ok_or_else(|| format!("{name} needs a number\n{USAGE}"))
        };
        match name {
            "--seed" => o.seed = Some(number()?),
            "--repeat" => o.repeat = number()?.max(1),
            "--jobs" => o.jobs = usize::try_from(number()?.max(1)).map_err(|e| e.to_string())?,
            "--keep" => o.keep = true,
            "--list" => o.list = true,
            "--exact" => o.exact = true,
            "--help" | "-h" => return Err(USAGE.into()),
            "--test-threads" | "--format" | "--color" | "--skip" | "-Z" | "--logfile" if inline.is_none() => {
                words.next();
            }
            _ if name.starts_with('-') => eprintln!("e2e: {word} means nothing here"),
            _ => o.filters.push(word.into()),
        }
    }
    Ok(o)
}

struct Job {
    scenario: Scenario,
    seed: u64,
}

struct Session {
    options: Options,
    root: PathBuf,
    passed: AtomicUsize,
    failed: AtomicUsize,
    /// A line for each, said once more at the end: who reads only the end of a long log sees them.
    not_passed: Mutex<Vec<String>>,
}

pub fn main(args: &[String]) -> i32 {
    let options = match parse(args) {
        Ok(options) => options,
        Err(text) => {
            eprintln!("{text}");
            return 64;
        }
    };
    let scenarios = chosen(&options);
    if options.list {
        scenarios.iter().for_each(|s| println!("{:<34} {}", s.name, s.shows));
        return 0;
    }
    if scenarios.is_empty() {
        eprintln!("e2e: no scenario matches {:?}; --list shows them", options.filters);
        return 64;
    }
    if let Err(why) = can_run() {
        eprintln!("e2e: {why}");
        println!("0 passed, {} failed", scenarios.len());
        return FAILED;
    }
    run(options, scenarios)
}

fn chosen(o: &Options) -> Vec<Scenario> {
    let fits = |name: &str, filter: &str| if o.exact { name == filter } else { name.contains(filter) };
    let asked = |s: &Scenario| o.filters.is_empty() || o.filters.iter().any(|f| fits(s.name, f));
    scenarios::all().into_iter().filter(asked).collect()
}

/// A missing server is a failure, not a silent skip.
fn can_run() -> Result<(), String> {
    let server = cluster::server_binary();
    let version = Command::new(&server).arg("--version").output();
    let version = version
        .map_err(|e| format!("{server}: {e}; tests/run installs it (apt-get install redis-server)"))?;
    println!("server: {}", String::from_utf8_lossy(&version.stdout).trim());
    let daemon = daemon::binary();
    println!("daemon: {}", daemon.display());
    if daemon.is_file() { Ok(()) } else { Err(format!("{} is not there", daemon.display())) }
}

fn run(options: Options, scenarios: Vec<Scenario>) -> i32 {
    nix::sys::prctl::set_child_subreaper(true).ok();
    let seed = options.seed.unwrap_or_else(|| boot_ns() % 1_000_000);
    println!("seed {seed}, {} scenarios × {}", scenarios.len(), options.repeat);
    let root = std::env::temp_dir().join(format!("ke2e-{}", std::process::id()));
    let jobs =
        (0..options.repeat).flat_map(|r| scenarios.iter().map(move |s| Job { scenario: *s, seed: seed + r }));
    let (alone, together): (VecDeque<Job>, VecDeque<Job>) = jobs.partition(|j| j.scenario.alone);
    let session = Session {
        root,
        options,
        passed: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        not_passed: Mutex::new(Vec::new()),
    };
    session.work(together, session.options.jobs);
    session.work(alone, 1);
    std::fs::remove_dir(&session.root).ok();
    let (passed, failed) = (session.passed.into_inner(), session.failed.into_inner());
    for line in session.not_passed.into_inner().expect("no worker panics with it") {
        println!("{line}");
    }
    println!("{passed} passed, {failed} failed");
    i32::from(failed > 0)
}

impl Session {
    fn work(&self, queue: VecDeque<Job>, workers: usize) {
        let queue = Mutex::new(queue);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().expect("no worker panics with it").pop_front();
                        let Some(job) = next else { return };
                        self.trial(&job);
                    }
                });
            }
        });
    }

    fn trial(&self, job: &Job) {
        let (name, seed) = (job.scenario.name, job.seed);
        let dir = self.root.join(format!("{name}-{seed}"));
        let id = format!("{}-{name}-{seed}", std::process::id());
        let begun = Instant::now();
        let (code, said) = play(job, &dir, &id).unwrap_or_else(|e| (FAILED, e.to_string()));
        let mut not_passed = self.not_passed.lock().expect("no worker panics with it");
        let line = |verdict: &str| {
            format!("{verdict} {name:<34} seed {seed:<7} {:>5.1} s  {said}", begun.elapsed().as_secs_f64())
        };
        match code {
            0 => {
                self.passed.fetch_add(1, Ordering::Relaxed);
                println!("{}", line("ok  "));
            }
            SKIPPED => {
                not_passed.push(line("skip, not counted"));
                println!("{}", line("skip"));
            }
            _ => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                not_passed.push(line("FAIL"));
                println!("{}", not_passed[not_passed.len() - 1]);
                print!("{}", report::timeline(&dir));
                println!("  rerun: cargo test --release --test e2e -- --exact {name} --seed {seed}");
            }
        }
        if self.options.keep || (code != 0 && code != SKIPPED) {
            println!("  kept: {}", dir.display());
        } else {
            std::fs::remove_dir_all(&dir).ok();
        }
    }
}

/// Runs the trial's process to its end, or to the end of our patience.
fn play(job: &Job, dir: &Path, id: &str) -> std::io::Result<(i32, String)> {
    std::fs::create_dir_all(dir)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["trial", job.scenario.name, &job.seed.to_string()])
        .arg(dir)
        .arg(id)
        .env(procs::MARKER, id)
        .process_group(0) // Ctrl-C ends the runner; the trial sees its input end and cleans up
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let in_time = wait(&mut child, job.scenario.limit + scenarios::longer())?;
    drop(child.stdin.take());
    wait(&mut child, Duration::from_secs(8))?;
    let mut said = String::new();
    if let Some(mut out) = child.stdout.take().filter(|_| in_time) {
        out.read_to_string(&mut said)?;
    }
    child.kill().ok();
    let status = child.wait()?;
    sweep_marked(id);
    cgroup::Groups::remove_of(id);
    if !in_time {
        said = format!("not done within {:?}", job.scenario.limit);
    }
    let died = || (FAILED, format!("the trial itself died ({:?}) {said}", status.signal()));
    Ok(status.code().map_or_else(died, |code| (code, said.trim_end().to_owned())))
}

fn wait(child: &mut Child, patience: Duration) -> std::io::Result<bool> {
    let deadline = Instant::now() + patience;
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}

/// Only if the trial could not clean up itself.
fn sweep_marked(id: &str) {
    for p in procs::marked(id, &BTreeSet::new()) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(p.pid), nix::sys::signal::Signal::SIGKILL).ok();
    }
}
