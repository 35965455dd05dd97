//! One child writes 100 MB in a second, and forty others must not notice.

use crate::clock::{boot_ns, nanos};
use crate::cluster::Node;
use crate::daemon::{Daemon, Start};
use crate::hand_over::logged_at;
use crate::procs;
use crate::step::{Step, failure};
use crate::table::{Row, Spans, Table, time};
use crate::trial::secs;
use nix::sys::signal::Signal;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const OTHERS: usize = 40;
/// With silence first, and then as long with noise.
const PHASE: Duration = secs(12);
const RATE: u64 = 100_000_000;
/// A hundredth of a second of it.
const CHUNK: usize = 1_000_000;

/// `side_by_side write SECONDS_OF_SILENCE SECONDS`: what the child is.
pub fn write(args: &[String]) -> ! {
    let number = |i: usize| args.get(i).and_then(|word| word.parse().ok()).unwrap_or(0);
    std::thread::sleep(secs(number(0)));
    let line = [[b'x'; 999].as_slice(), b"\n"].concat();
    let chunk = line.repeat(CHUNK / line.len());
    let (began, mut sent) = (boot_ns(), 0_u64);
    let end = began + nanos(secs(number(1)));
    let mut out = std::io::stdout().lock();
    while boot_ns() < end {
        if out.write_all(&chunk).is_err() {
            break;
        }
        sent += CHUNK as u64;
        let due = began + sent * 1_000_000_000 / RATE;
        std::thread::sleep(Duration::from_nanos(due.saturating_sub(boot_ns())));
    }
    // What came through is its own account, too: stderr is the log.
    eprintln!("wrote {sent} bytes");
    std::thread::sleep(secs(3600));
    std::process::exit(0)
}

pub fn measure(id: &str, dir: &Path, nodes: &[Node], table: &mut Table) -> Step {
    let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let socket = dir.join("a.sock");
    let sink = dir.join("keeper.out");
    let own = std::env::current_exe()?;
    let seconds = PHASE.as_secs().to_string();
    let noisy = [own.display().to_string(), "write".into(), seconds.clone(), seconds];
    let mut config = format!(
        "host = \"a\"\n[lock]\nnodes = {addresses:?}\nttl = \"2s\"\nrestart_quarantine = \"0s\"\n[control]\nsocket = {socket:?}\n\
         [[keeper]]\nname = \"noisy\"\ncommand = {noisy:?}\noutput = {{ file = {sink:?}, max_size = \"4GiB\", keep = 1 }}\n"
    );
    for keeper in 0..OTHERS {
        config += &format!("[[keeper]]\nname = \"k{keeper}\"\ncommand = [\"sleep\", \"infinity\"]\n");
    }
    let start = Start {
        host: "a".into(),
        generation: 1,
        config,
        cgroup: true,
        naive: None,
        deaf_stderr: false,
        log_level: "debug",
        env: Vec::new(),
    };
    let mut daemon = Daemon::start(id, dir, &start)?;
    std::thread::sleep(secs(1));
    let silent_from = boot_ns();
    std::thread::sleep(PHASE - secs(2));
    let silent_to = boot_ns();
    let rss = |pid| procs::rss_kib(pid).ok_or_else(|| failure("no VmRSS"));
    let before = rss(daemon.pid())?;
    std::thread::sleep(secs(2));
    let noisy_from = boot_ns();
    let mut most = before;
    while boot_ns() < noisy_from + nanos(PHASE - secs(2)) {
        std::thread::sleep(Duration::from_millis(100));
        most = most.max(rss(daemon.pid())?);
    }
    let noisy_to = boot_ns();
    std::thread::sleep(secs(3));
    let dropped = dropped_lines(&daemon)?;
    let written = fs::metadata(&sink)?.len();
    daemon.signal(Signal::SIGTERM);
    daemon.await_exit(secs(10))?;
    let log = fs::read_to_string(dir.join("daemon-a.log"))?;
    let spans = |from: u64, to: u64| {
        let mut spans = Spans::default();
        for line in log.lines().filter(|line| line.contains(" extension ") && line.contains("renewed")) {
            let took =
                line.split("took_us=").nth(1).and_then(|t| t.split_whitespace().next()?.parse::<u64>().ok());
            if let (Some(at), Some(took)) = (logged_at(line), took)
                && (from..to).contains(&at)
            {
                spans.push(took * 1000);
            }
        }
        spans
    };
    let (quiet, loud) = (spans(silent_from, silent_to), spans(noisy_from, noisy_to));
    let moved = loud.p99() - quiet.p99();
    let note = format!(
        "p99 {} without: {}{}",
        time(quiet.p99()),
        if moved < 0.0 { "−" } else { "+" },
        time(moved.abs())
    );
    table.times(
        "an extension while one child writes 100 MB/s",
        &loud,
        &note,
        "p99 moves < 5 ms",
        Some(moved < 5e6),
    );
    let growth = most.saturating_sub(before);
    let row = |measure: &str, goal: &str, measured: String, met| Row {
        measure: measure.into(),
        goal: goal.into(),
        measured,
        samples: "1".into(),
        met: Some(met),
    };
    table.row(row(
        "the daemon grows meanwhile by (RSS)",
        "≤ 8 MiB",
        format!("{:.1} MiB", growth as f64 / 1024.0),
        growth <= 8 * 1024,
    ));
    let cat = through_cat(&own, dir)?;
    let share = written as f64 / cat as f64 * 100.0;
    let rate = |bytes: u64| bytes as f64 / 1e6 / PHASE.as_secs_f64();
    let said = format!(
        "{:.0} MB/s, {share:.0} % of {:.0} MB/s by cat; {dropped} lines dropped and said",
        rate(written),
        rate(cat)
    );
    table.row(row(
        "what arrives in its file",
        "≥ 90 % of cat to the same place, or the drops are counted",
        said,
        share >= 90.0 || dropped > 0,
    ));
    Ok(())
}

/// `keeperd_output_dropped_lines_total` has the same number.
fn dropped_lines(daemon: &Daemon) -> Step<u64> {
    let status = daemon.keeper_status("noisy")?;
    Ok(status["output"]["dropped_lines"].as_u64().unwrap_or(0))
}

/// The same child into a pipe to `cat`, which writes into a file beside the other.
fn through_cat(own: &Path, dir: &Path) -> Step<u64> {
    let sink = dir.join("cat.out");
    let seconds = PHASE.as_secs().to_string();
    let mut writer = Command::new(own)
        .args(["write", "0", &seconds])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let pipe = writer.stdout.take().ok_or_else(|| failure("piped"))?;
    let mut cat = Command::new("cat").stdin(pipe).stdout(File::create(&sink)?).spawn()?;
    std::thread::sleep(PHASE + secs(1));
    writer.kill()?;
    writer.wait()?;
    cat.wait()?;
    Ok(fs::metadata(&sink)?.len())
}
