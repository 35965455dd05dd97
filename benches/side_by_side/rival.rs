//! Other people's clients, each in a process of its own that measures itself and speaks in lines (benches/rivals).

use crate::table::Spans;
use serde::Deserialize;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Where benches/run puts what is compared with.
pub fn cache(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache").join(path)
}

#[derive(Debug)]
pub struct Rival {
    pub name: &'static str,
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pub acquire: Spans,
    pub extend: Spans,
    pub release: Spans,
    pub failed: u32,
    pub hung: bool,
}

#[derive(Deserialize)]
struct Taken {
    acquire: Vec<u64>,
    extend: Vec<u64>,
    release: Vec<u64>,
    failed: u32,
    hung: bool,
}

impl Rival {
    /// The npm package in its major version "4" or "5".
    pub fn npm(name: &'static str, version: &str, ports: &[u16]) -> io::Result<Rival> {
        let mut command = Command::new("node");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/rivals/redlock.js"));
        command.arg(cache("interop/node_modules")).arg(version);
        Rival::start(name, &mut command, ports)
    }

    pub fn rslock(ports: &[u16]) -> io::Result<Rival> {
        Rival::start("rslock 0.10", &mut Command::new(cache("rslock/release/rslock-rival")), ports)
    }

    fn start(name: &'static str, command: &mut Command, ports: &[u16]) -> io::Result<Rival> {
        command.args(ports.iter().map(u16::to_string));
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let (acquire, extend, release) = Default::default();
        let mut rival =
            Rival { name, process, input, output, acquire, extend, release, failed: 0, hung: false };
        let first = rival.line()?;
        if first != "ready" {
            return Err(io::Error::other(format!("{name} says {first:?}")));
        }
        Ok(rival)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Sends a line and reads one.
    pub fn say(&mut self, words: &str) -> io::Result<String> {
        writeln!(self.input, "{words}")?;
        self.line()
    }

    /// So many terms, or as many as fit into the budget.
    pub fn terms(&mut self, n: usize, budget: Duration, serving: &[u16]) -> io::Result<()> {
        let serving: Vec<String> = serving.iter().map(u16::to_string).collect();
        let answer = self.say(&format!("{n} {} {}", budget.as_millis(), serving.join(",")))?;
        let taken: Taken = serde_json::from_str(&answer)?;
        self.acquire.extend(taken.acquire);
        self.extend.extend(taken.extend);
        self.release.extend(taken.release);
        self.failed += taken.failed;
        self.hung |= taken.hung;
        Ok(())
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
