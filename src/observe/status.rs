//! The status document (DESIGN.md 2.5): names are a contract.

use super::board::{self, Board, HolderView, KeeperView};
use super::history;
use crate::clock;
use crate::core::event::Role;
use crate::core::restart::Exit;
use crate::core::time::{Instant, WallTime};
use crate::lock::NodeStatus;
use crate::output::{self, Heard, Line, Outlet};
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub host: String,
    pub pid: u32,
    pub keepers: Vec<Keeper>,
    pub nodes: Vec<Node>,
    /// Beyond the contract, which it leaves as it is.
    pub reload: Option<Reload>,
}

/// When the configuration was last read, at the start or since, and whether it is in force.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reload {
    pub at: String,
    pub ok: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Keeper {
    pub name: String,
    pub role: String,
    pub token: Option<u64>,
    pub pid: Option<u32>,
    pub lease_remaining_ms: Option<u64>,
    pub since: String,
    pub restarts: u64,
    pub last_exit: Option<LastExit>,
    pub last_change: Option<LastChange>,
    pub holder: Option<Holder>,
    /// Length of the lease; beyond the contract, which it leaves as it is.
    #[serde(default)]
    pub ttl_ms: u64,
    /// By `pause --everywhere`, and so not resumed here alone; beyond the contract, which it leaves as it is.
    #[serde(default)]
    pub paused_everywhere: bool,
    /// The last runs on this host, oldest first; beyond the contract, which it leaves as it is.
    #[serde(default)]
    pub history: Vec<Run>,
    /// Where its lines go, and how many could not; beyond the contract, too.
    pub output: Option<Output>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Output {
    /// As the configuration names it; `file` for a file.
    pub to: String,
    /// Since keeperd started.
    pub dropped_lines: u64,
}

/// What a reader of a keeper's lines is told, one JSON object a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HeardLine {
    Line {
        at: String,
        token: u64,
        stream: String,
        /// What is not UTF-8 is replaced by U+FFFD.
        line: String,
        /// The rest is the next line of this stream.
        #[serde(default)]
        continues: bool,
    },
    /// So many lines came while it did not read.
    Lost { lost: u64 },
}

impl From<&Line> for HeardLine {
    fn from(line: &Line) -> HeardLine {
        HeardLine::Line {
            at: output::timestamp(line.at),
            token: line.token.0,
            stream: line.stream.name().to_owned(),
            line: String::from_utf8_lossy(&line.bytes).into_owned(),
            continues: line.continues,
        }
    }
}

impl From<&Heard> for HeardLine {
    fn from(heard: &Heard) -> HeardLine {
        match heard {
            Heard::Line(line) => HeardLine::from(&**line),
            Heard::Lost(lost) => HeardLine::Lost { lost: *lost },
        }
    }
}

/// Appends it with its end of line.
pub fn write_line(document: &mut Vec<u8>, line: &HeardLine) {
    serde_json::to_writer(&mut *document, line).expect("documents are plain data");
    document.push(b'\n');
}

#[derive(Debug, Serialize, Deserialize)]
pub struct LastExit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub reason: String,
}

/// A start of the child: one that failed has no pid, one that still runs no end.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    pub token: Option<u64>,
    pub pid: Option<u32>,
    pub started: String,
    pub ended: Option<String>,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub reason: Option<String>,
    /// Of a start that failed: at which step, and why.
    #[serde(default)]
    pub detail: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct LastChange {
    pub at: String,
    pub reason: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Holder {
    pub host: Option<String>,
    pub pid: Option<u32>,
    pub value: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Node {
    pub address: String,
    pub state: String,
    pub rtt_us: Option<u64>,
    pub quarantine_remaining_ms: Option<u64>,
    /// Why it does not serve, and what to do; beyond the contract, which it leaves as it is.
    pub reason: Option<String>,
}

/// The document as of now.
pub fn document(board: &Board, host: &str) -> Status {
    let now = clock::boot();
    let board::Reload { at, ok } = board.reload();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: host.to_owned(),
        pid: std::process::id(),
        keepers: board
            .panels()
            .iter()
            .map(|panel| keeper(panel.view(), Some(output_of(&panel.outlet())), now))
            .collect(),
        nodes: board.nodes().into_iter().map(node).collect(),
        reload: Some(Reload { at: rfc3339(at), ok }),
    }
}

fn output_of(outlet: &Outlet) -> Output {
    Output { to: outlet.kind.to_owned(), dropped_lines: outlet.dropped.load(Ordering::Relaxed) }
}

fn keeper(view: KeeperView, output: Option<Output>, now: Instant) -> Keeper {
    Keeper {
        name: view.name,
        role: role_name(view.role).to_owned(),
        paused_everywhere: view.paused_everywhere,
        token: view.token.map(|token| token.0),
        pid: view.pid,
        lease_remaining_ms: view.valid_until.map(|until| millis(until.since(now))),
        since: rfc3339(view.since),
        restarts: view.restarts,
        last_exit: view.history.iter().rev().find_map(|run| run.end).map(last_exit),
        last_change: view
            .last_change
            .map(|change| LastChange { at: rfc3339(change.at), reason: change.reason }),
        holder: view.holder.map(|HolderView { host, pid, value }| Holder { host, pid, value }),
        ttl_ms: millis(view.timing.ttl()),
        history: view.history.iter().map(run).collect(),
        output,
    }
}

fn last_exit(end: history::End) -> LastExit {
    let (code, signal) = code_and_signal(end.exit);
    LastExit { code, signal, reason: end.reason.name().to_owned() }
}

fn run(run: &history::Run) -> Run {
    let (code, signal) = code_and_signal(run.end.and_then(|end| end.exit));
    Run {
        token: run.token.map(|token| token.0),
        pid: run.pid,
        started: rfc3339(run.started),
        ended: run.end.map(|end| rfc3339(end.at)),
        code,
        signal,
        reason: run.end.map(|end| end.reason.name().to_owned()),
        detail: run.detail.as_deref().map(str::to_owned),
    }
}

fn code_and_signal(exit: Option<Exit>) -> (Option<i32>, Option<i32>) {
    match exit {
        Some(Exit::Code(code)) => (Some(code), None),
        Some(Exit::Signal(signal)) => (None, Some(signal)),
        None => (None, None),
    }
}

fn node(node: NodeStatus) -> Node {
    Node {
        address: node.address,
        state: node.state.name().to_owned(),
        rtt_us: node.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        quarantine_remaining_ms: node.quarantine_remaining.map(millis),
        reason: node.reason,
    }
}

pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Standby => "standby",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
        Role::SteppingDown => "stepping_down",
        Role::Paused => "paused",
        Role::Cooldown => "cooldown",
        Role::Finished => "finished",
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

pub fn rfc3339(at: WallTime) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_micros(at.as_micros())).to_string()
}
