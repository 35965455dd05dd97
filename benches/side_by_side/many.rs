//! A thousand keepers in one daemon: how fast they start, what they cost, and what it costs to stand by for them.

use crate::clock::{boot_ns, nanos};
use crate::cluster::Node;
use crate::daemon::{Daemon, Start};
use crate::procs;
use crate::rival::Rival;
use crate::step::{Step, check, failure};
use crate::table::{Row, Spans, Table, time};
use crate::trial::secs;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

const KEEPERS: usize = 1000;
/// Two extensions of each.
const STEADY: Duration = secs(30);
const PERIOD: Duration = secs(15);

struct Host<'a> {
    name: &'static str,
    dir: &'a Path,
    daemon: Daemon,
}

fn start<'a>(
    name: &'static str,
    id: &'a str,
    dir: &'a Path,
    nodes: &[Node],
    log_level: &'static str,
) -> Step<Host<'a>> {
    let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let socket = dir.join(format!("{name}.sock"));
    let mut config = format!(
        "host = \"{name}\"\n[lock]\nnodes = {addresses:?}\nttl = \"30s\"\nrestart_quarantine = \"0s\"\n[control]\nsocket = {socket:?}\n"
    );
    for keeper in 0..KEEPERS {
        config += &format!("[[keeper]]\nname = \"k{keeper}\"\ncommand = [\"sleep\", \"infinity\"]\n");
    }
    let start = Start {
        host: name.into(),
        generation: 1,
        config,
        cgroup: true,
        naive: None,
        deaf_stderr: false,
        log_level,
        env: Vec::new(),
    };
    Ok(Host { name, dir, daemon: Daemon::start(id, dir, &start)? })
}

impl Host<'_> {
    fn log(&self) -> Step<String> {
        Ok(fs::read_to_string(self.dir.join(format!("daemon-{}.log", self.name)))?)
    }

    /// When the last of them ran, on the boot-time clock.
    fn until_all_run(&self) -> Step<u64> {
        let end = boot_ns() + nanos(secs(60));
        loop {
            let log = self.log()?;
            let runs: Vec<u64> = log
                .lines()
                .filter(|line| line.contains("child runs"))
                .filter_map(|line| line.split(' ').next()?.parse().ok())
                .collect();
            if let Some(last) = runs.get(KEEPERS - 1) {
                return Ok(*last);
            }
            check(boot_ns() < end, format!("only {} of {KEEPERS} run", runs.len()))?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn stop(mut self) -> Step {
        self.daemon.signal(Signal::SIGTERM);
        self.daemon.await_exit(secs(30))?;
        // The log of the next one with this name begins anew.
        fs::remove_file(self.dir.join(format!("daemon-{}.log", self.name))).ok();
        Ok(())
    }
}

/// Time on a core, in ns, of a process whose threads come and go; in steps of 10 ms.
fn cpu_ns(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10_000_000
}

/// The same of a process with one thread, exactly.
pub fn thread_ns(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

fn pss_kib(pid: i32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// A counter of `INFO stats`.
pub fn counter(node: &Node, name: &str) -> Step<u64> {
    let info = node.ask(&["INFO", "stats"])?.text().ok_or_else(|| failure("INFO has no text"))?;
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|n| n.trim().parse().ok()).ok_or_else(|| failure(format!("INFO has no {name}")))
}

/// What a node does in a second.
#[derive(Clone, Copy)]
struct Load {
    commands: f64,
    /// Of one core.
    percent: f64,
}

fn load(node: &Node, span: Duration) -> Step<Load> {
    let pid = node.pid().ok_or_else(|| failure("the node does not run"))?;
    let counts = || -> Step<(u64, u64)> { Ok((counter(node, "total_commands_processed")?, cpu_ns(pid))) };
    let (before, cpu) = counts()?;
    std::thread::sleep(span);
    let (after, later) = counts()?;
    let percent = (later - cpu) as f64 / nanos(span) as f64 * 100.0;
    Ok(Load { commands: (after - before) as f64 / span.as_secs_f64(), percent })
}

impl Load {
    fn minus(self, other: Load) -> Load {
        Load { commands: self.commands - other.commands, percent: self.percent - other.percent }
    }
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0}/s ({:.2} % of a core there)", self.commands, self.percent)
    }
}

pub fn measure(id: &str, dir: &Path, nodes: &[Node], table: &mut Table) -> Step {
    let began = boot_ns();
    let host = start("a", id, dir, nodes, "info")?;
    let took = host.until_all_run()? - began;
    let row = |measure: &str, goal: &str, measured: String, n: usize, met: bool| Row {
        measure: measure.into(),
        goal: goal.into(),
        measured,
        samples: n.to_string(),
        met: Some(met),
    };
    table.row(row(
        "1,000 keepers in one daemon: start → all children run",
        "≤ 3 s",
        time(took as f64),
        1,
        took <= 3_000_000_000,
    ));
    std::thread::sleep(secs(5));
    let pid = host.daemon.pid();
    let rss = procs::rss_kib(pid).ok_or_else(|| failure("no VmRSS"))?;
    table.row(row(
        "the daemon's memory then (RSS)",
        "≤ 40 MiB",
        format!("{:.1} MiB", rss as f64 / 1024.0),
        1,
        rss <= 40 * 1024,
    ));
    let guards: Vec<i32> = host.daemon.guards().iter().map(|guard| guard.pid).collect();
    let pss: Vec<u64> = guards.iter().filter_map(|guard| pss_kib(*guard)).collect();
    let mean = pss.iter().sum::<u64>() / u64::try_from(pss.len().max(1))?;
    table.row(row(
        "a guard's memory then (PSS, mean)",
        "≤ 410 KiB (0.4 MiB)",
        format!("{mean} KiB"),
        pss.len(),
        mean <= 410,
    ));

    let all_cpu = || -> (u64, u64) { (cpu_ns(pid), guards.iter().map(|guard| thread_ns(*guard)).sum()) };
    let before = all_cpu();
    let reads = counter(&nodes[0], "total_reads_processed")?;
    let holder = load(&nodes[0], STEADY)?;
    let reads = counter(&nodes[0], "total_reads_processed")? - reads;
    let after = all_cpu();
    let percent = |ns: u64| ns as f64 / nanos(STEADY) as f64 * 100.0;
    let (own, theirs) = (percent(after.0 - before.0), percent(after.1 - before.1));
    table.row(row(
        "steady state, ttl 30 s: of one core",
        "≤ 2 %",
        format!("{:.2} %: daemon {own:.2} %, 1,000 guards {theirs:.2} %", own + theirs),
        1,
        own + theirs <= 2.0,
    ));

    let standbys = [start("b", id, dir, nodes, "info")?, start("c", id, dir, nodes, "info")?];
    std::thread::sleep(secs(20));
    let ours = load(&nodes[0], STEADY)?.minus(holder);
    for standby in standbys {
        standby.stop()?;
    }
    let ports: Vec<u16> = nodes.iter().map(|node| node.port).collect();
    let pollers = [Rival::npm("npm redlock 5", "5", &ports), Rival::npm("npm redlock 5", "5", &ports)];
    let theirs = match pollers {
        [Ok(mut one), Ok(mut other)] => {
            for poller in [&mut one, &mut other] {
                poller.say(&format!("poll {KEEPERS} 200 redlock:k"))?;
            }
            std::thread::sleep(secs(2));
            Some(load(&nodes[0], secs(10))?.minus(holder))
        }
        _ => None,
    };
    let ratio = theirs.map(|theirs| theirs.commands / ours.commands);
    table.row(Row {
        measure: "two standbys for 1,000 keepers: commands per second and node, the holder's own taken off"
            .into(),
        goal: "≤ 1/60 of npm redlock 5 polling every 200 ms".into(),
        measured: match (theirs, ratio) {
            (Some(theirs), Some(ratio)) => {
                format!("{ours}; npm redlock 5: {theirs}, so 1/{ratio:.0}; the holder: {holder}")
            }
            _ => format!("{ours}; the holder: {holder}; npm redlock is not here"),
        },
        samples: "1".into(),
        met: ratio.map(|ratio| ratio >= 60.0),
    });
    host.stop()?;
    lateness(id, dir, nodes, reads, table)
}

/// From the log at level debug, in a second life of the daemon.
fn lateness(id: &str, dir: &Path, nodes: &[Node], reads: u64, table: &mut Table) -> Step {
    let host = start("a", id, dir, nodes, "debug")?;
    host.until_all_run()?;
    std::thread::sleep(STEADY + secs(3));
    let log = host.log()?;
    let mut began: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains(" extension ")) {
        let field = |name: &str| line.split(name).nth(1)?.split_whitespace().next();
        let (Some(keeper), Some(took)) = (field("keeper="), field("took_us=")) else { continue };
        let took: u64 = took.parse()?;
        let at = crate::hand_over::logged_at(line).ok_or_else(|| failure("a line without a time"))?;
        began.entry(keeper).or_default().push(at - took * 1000);
    }
    let mut late = Spans::default();
    for times in began.values() {
        late.extend(times.windows(2).map(|pair| (pair[1] - pair[0]).saturating_sub(nanos(PERIOD))));
    }
    check(late.len() >= KEEPERS / 2, format!("only {} extensions seen", late.len()))?;
    let ok = Some(late.p99() <= 50e6);
    table.times("an extension is late by", &late, "", "p99 ≤ 50 ms", ok);
    // Those that begin within one millisecond are of one tick of the timer.
    let end = boot_ns();
    let mut ticks: Vec<u64> =
        began.values().flatten().filter(|at| **at > end - nanos(STEADY)).map(|at| at / 1_000_000).collect();
    let extensions = ticks.len();
    ticks.sort_unstable();
    ticks.dedup();
    table.row(Row {
        measure: "writes to a node in the steady state".into(),
        goal: "one for each tick of the timer (a node reads 16 KiB at a time)".into(),
        measured: format!(
            "{reads} reads by the node in {} s; {extensions} extensions in {} ticks",
            STEADY.as_secs(),
            ticks.len()
        ),
        samples: "1".into(),
        met: None,
    });
    host.stop()
}
