//! `keeperd reload`: what the file changes in the daemon on this host, before it does or as it does.

use super::check::EXIT_CONFIG;
use super::client::{self, ClientError, EXIT_NOT_RUNNING};
use crate::reload::{Changed, Report};
use hyper::StatusCode;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// The daemon asks the user database for new keepers.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Prints the difference; the exit code.
pub fn run(socket: &Path, dry_run: bool, json: bool, out: &mut dyn Write) -> i32 {
    client::finish(try_run(socket, dry_run, json, out))
}

fn try_run(
    socket: &Path,
    dry_run: bool,
    json: bool,
    out: &mut dyn Write,
) -> Result<i32, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let path = if dry_run { "/v1/reload?dry_run" } else { "/v1/reload" };
    let (code, body) = runtime.block_on(client::ask(socket, path, TIMEOUT))?;
    let bad = |what: String| ClientError::BadAnswer { path: socket.to_owned(), what };
    match code {
        StatusCode::OK if json => out.write_all(&body)?,
        StatusCode::OK => {
            let report = serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
            print(&report, out)?;
        }
        code => {
            let why: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let reason = why["error"].as_str().unwrap_or("no reason given").to_owned();
            if code == StatusCode::SERVICE_UNAVAILABLE {
                eprintln!("keeperd: {reason}");
                return Ok(EXIT_NOT_RUNNING);
            }
            if code != StatusCode::UNPROCESSABLE_ENTITY {
                return Err(bad(format!("{code}: {reason}")).into());
            }
            for mistake in why["errors"].as_array().into_iter().flatten().filter_map(|line| line.as_str()) {
                eprintln!("{mistake}");
            }
            eprintln!("keeperd: {reason}");
            return Ok(EXIT_CONFIG);
        }
    }
    Ok(0)
}

/// `+` added, `-` removed, `~` changed.
fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let Report { file, dry_run, added, removed, changed, unchanged, warnings } = report;
    for name in added {
        writeln!(out, "+ {name}")?;
    }
    for name in removed {
        writeln!(out, "- {name}")?;
    }
    for Changed { name, keys } in changed {
        writeln!(out, "~ {name}: {}", keys.join(", "))?;
    }
    let verb = if *dry_run { "would be " } else { "" };
    let (added, removed, changed) = (added.len(), removed.len(), changed.len());
    writeln!(
        out,
        "{file}: {added} {verb}added, {removed} {verb}removed, {changed} {verb}changed, {unchanged} unchanged"
    )?;
    warnings.iter().try_for_each(|warning| writeln!(out, "warning: {warning}"))
}
