//! What a person needs after a failure: every log of the trial in one order of time.

use crate::checker::{Event, parse_log};
use crate::clock::boot_ns;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

const RECORDS_AROUND: usize = 20;
const LINES_MAX: usize = 250;

/// All daemons' logs, the nemesis and the probes: starts, stops and the 20 records around the centre of interest.
pub fn timeline(dir: &Path) -> String {
    let mut lines = logs(dir);
    let probe = tail(&dir.join("probe.log")).unwrap_or_default();
    let (records, _) = parse_log(&probe);
    let mentioned = fs::read_to_string(dir.join("centre")).ok().and_then(|c| c.parse().ok());
    let centre = mentioned.or_else(|| records.last().map(|r| r.at)).unwrap_or_else(boot_ns);
    let middle = records.partition_point(|r| r.at < centre);
    let around = middle.saturating_sub(RECORDS_AROUND / 2)..middle + RECORDS_AROUND / 2;
    let mut previous_end: Option<u64> = None;
    for (i, r) in records.iter().enumerate() {
        let tells = !matches!(r.event, Event::Tick | Event::Gtick);
        let resumes = previous_end.is_some_and(|at| r.at.saturating_sub(at) > 200_000_000);
        if tells || resumes || around.contains(&i) || i + 1 == records.len() {
            let text = format!(
                "{} {:?} n={} pid={} token={} {}",
                r.instance, r.event, r.n, r.pid, r.token, r.keeper
            );
            lines.push((r.at, "probe", text));
        }
        previous_end = Some(r.at);
    }
    lines.sort();
    let first = lines.first().map_or(0, |l| l.0);
    let skip = lines.len().saturating_sub(LINES_MAX);
    let mut text = String::new();
    if skip > 0 {
        text += &format!("    … {skip} earlier lines are in the folder\n");
    }
    for (at, who, what) in &lines[skip..] {
        let mark = if *at == centre { ">>" } else { "  " };
        let short: String = what.chars().take(300).collect();
        text += &format!("  {mark} {:>10.3} ms  {who:<10} {short}\n", (*at - first) as f64 / 1e6);
    }
    text
}

/// Whole lines of the end of a file: after an hour of records the beginning is history.
fn tail(path: &Path) -> std::io::Result<String> {
    const MAX_BYTES: u64 = 32 << 20;
    let mut file = fs::File::open(path)?;
    let skip = file.metadata()?.len().saturating_sub(MAX_BYTES);
    file.seek(SeekFrom::Start(skip))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let whole = if skip > 0 { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
    Ok(whole.to_owned())
}

type Line = (u64, &'static str, String);

fn logs(dir: &Path) -> Vec<Line> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let (who, tag) = match name.strip_suffix(".log") {
            Some("nemesis") => ("nemesis", String::new()),
            Some(n) if n.starts_with("daemon-") => ("daemon", format!("{}: ", &n["daemon-".len()..])),
            Some(n) if n.starts_with("legacy-") => ("legacy", format!("{}: ", &n["legacy-".len()..])),
            _ => continue,
        };
        let bytes = fs::read(entry.path()).unwrap_or_default();
        for line in String::from_utf8_lossy(&bytes).lines() {
            let Some((at, what)) = line.split_once(' ') else { continue };
            let Ok(at) = at.parse() else { continue };
            lines.push((at, who, format!("{tag}{what}")));
        }
    }
    lines
}
