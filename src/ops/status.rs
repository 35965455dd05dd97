//! `keeperd status`: this daemon's keepers and nodes, for people or as JSON.

use super::client::{self, ClientError};
use super::logs;
use crate::observe::plain::plain;
use crate::observe::status::{Keeper, Run, Status};
use std::io::{self, Write};
use std::path::Path;
use tokio::runtime::Runtime;

/// Exit code: no keeper of that name.
pub const EXIT_UNKNOWN_NAME: i32 = 4;

/// What is asked for.
#[derive(Debug)]
pub struct Question {
    /// Only this keeper.
    pub name: Option<String>,
    pub json: bool,
    /// The keeper's last lines, too.
    pub lines: bool,
}

/// Prints the status; the exit code.
pub fn run(socket: &Path, question: &Question, out: &mut dyn Write) -> i32 {
    client::finish(try_run(socket, question, out))
}

fn try_run(
    socket: &Path,
    question: &Question,
    out: &mut dyn Write,
) -> Result<i32, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut status = fetch(&runtime, socket)?;
    let Some(name) = &question.name else {
        if question.json {
            write_json(&status, out)?;
        } else {
            print(&status, out)?;
        }
        return Ok(0);
    };
    status.keepers.retain(|keeper| keeper.name == *name);
    let Some(keeper) = status.keepers.first() else {
        say_unknown(name);
        return Ok(EXIT_UNKNOWN_NAME);
    };
    let lines = if question.lines { Some(logs::lines(&runtime, socket, name)?) } else { None };
    if question.json {
        if let Some(lines) = lines {
            let mut document = serde_json::to_value(&status)?;
            document["keepers"][0]["lines"] = serde_json::to_value(lines)?;
            write_json(&document, out)?;
        } else {
            write_json(&status, out)?;
        }
        return Ok(0);
    }
    print(&status, out)?;
    print_history(keeper, out)?;
    if let Some(lines) = lines {
        writeln!(out, "\nLAST LINES")?;
        lines.iter().try_for_each(|line| logs::print(line, out))?;
    }
    Ok(0)
}

/// The keeper of that name; without one, a word on stderr.
///
/// # Errors
/// When no daemon answers, or not properly.
pub fn keeper(runtime: &Runtime, socket: &Path, name: &str) -> Result<Option<Keeper>, ClientError> {
    let found = fetch(runtime, socket)?.keepers.into_iter().find(|keeper| keeper.name == name);
    if found.is_none() {
        say_unknown(name);
    }
    Ok(found)
}

fn say_unknown(name: &str) {
    eprintln!("keeperd: there is no keeper {name:?} here; keeperd status lists them");
}

/// All that the daemon says of itself.
///
/// # Errors
/// When no daemon answers, or not properly.
pub fn fetch(runtime: &Runtime, socket: &Path) -> Result<Status, ClientError> {
    let body = runtime.block_on(client::get(socket, "/v1/status"))?;
    serde_json::from_slice(&body)
        .map_err(|error| ClientError::BadAnswer { path: socket.to_owned(), what: error.to_string() })
}

fn write_json(document: &impl serde::Serialize, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, document)?;
    writeln!(out)
}

fn print(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let (host, version) = (plain(&status.host), plain(&status.version));
    writeln!(out, "{host} (pid {}), keeperd {version}", status.pid)?;
    writeln!(out, "\n{:<28} {:<13} {:>17} {:>8} {:>9}", "KEEPER", "ROLE", "TOKEN", "PID", "LEASE")?;
    for keeper in &status.keepers {
        let token = keeper.token.map_or("-".into(), |token| token.to_string());
        let pid = keeper.pid.map_or("-".into(), |pid| pid.to_string());
        let lease = keeper.lease_remaining_ms.map_or("-".into(), |ms| format!("{:.1} s", ms as f64 / 1000.0));
        writeln!(
            out,
            "{:<28} {:<13} {:>17} {:>8} {:>9}",
            plain(&keeper.name),
            plain(&keeper.role),
            token,
            pid,
            lease
        )?;
        writeln!(out, "    {}", plain(&say_why(keeper)))?;
    }
    writeln!(out, "\n{:<50} {:<12} {:>10}", "NODE", "STATE", "ROUND TRIP")?;
    for node in &status.nodes {
        let rtt = node.rtt_us.map_or("-".into(), |us| format!("{us} µs"));
        writeln!(out, "{:<50} {:<12} {:>10}", plain(&node.address), plain(&node.state), rtt)?;
        if let Some(ms) = node.quarantine_remaining_ms {
            writeln!(out, "    votes again in {:.1} s", ms as f64 / 1000.0)?;
        }
        if let Some(reason) = &node.reason {
            writeln!(out, "    {}", plain(reason))?;
        }
    }
    Ok(())
}

fn say_why(keeper: &Keeper) -> String {
    let why = keeper.last_change.as_ref().map_or("since the start", |change| change.reason.as_str());
    let holder = match (&keeper.holder, keeper.role.as_str()) {
        (_, "leader") | (None, _) => String::new(),
        (Some(holder), _) => match (&holder.host, holder.pid) {
            (Some(host), Some(pid)) => format!("; held by {host} (pid {pid})"),
            _ => "; held by a client that is not keeperd".to_owned(),
        },
    };
    let restarts = match keeper.restarts {
        0 => String::new(),
        1 => "; restarted once".to_owned(),
        many => format!("; restarted {many} times"),
    };
    format!("{why}{holder}{restarts}")
}

fn print_history(keeper: &Keeper, out: &mut dyn Write) -> io::Result<()> {
    if keeper.history.is_empty() {
        return writeln!(out, "\nno runs on this host since keeperd started");
    }
    writeln!(out, "\n{:<24} {:<24} {:>17} {:>8}  {:<11} REASON", "STARTED", "ENDED", "TOKEN", "PID", "EXIT")?;
    for run in &keeper.history {
        writeln!(
            out,
            "{:<24} {:<24} {:>17} {:>8}  {:<11} {}",
            run.started,
            run.ended.as_deref().unwrap_or("-"),
            run.token.map_or("-".into(), |token| token.to_string()),
            run.pid.map_or("-".into(), |pid| pid.to_string()),
            say_exit(run),
            run.reason.as_deref().unwrap_or("runs"),
        )?;
        if let Some(detail) = &run.detail {
            writeln!(out, "    {}", plain(detail))?;
        }
    }
    Ok(())
}

fn say_exit(run: &Run) -> String {
    let by_name = |signal| nix::sys::signal::Signal::try_from(signal).ok();
    match (run.code, run.signal) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(signal)) => by_name(signal).map_or_else(|| format!("signal {signal}"), |s| s.to_string()),
        (None, None) => "-".to_owned(),
    }
}
