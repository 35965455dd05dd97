//! The status as people read it: tables that fit 80 columns, whatever the names are.

use super::terminal::{View, paragraph};
use crate::observe::plain::plain;
use crate::observe::status::{Keeper, Node, Reload, Run, Status};
use anstyle::AnsiColor;
use std::io::{self, Write};
use std::time::Duration;

/// Prints the daemon, its keepers and its nodes.
///
/// # Errors
/// When it cannot be written.
pub fn print(status: &Status, view: View, out: &mut dyn Write) -> io::Result<()> {
    let (host, version) = (plain(&status.host), plain(&status.version));
    writeln!(out, "{host} (pid {}), keeperd {version}", status.pid)?;
    if let Some(Reload { at, ok: false }) = &status.reload {
        let (seconds, _) = at.split_once('.').unwrap_or((at, ""));
        let what =
            format!("! the reload of {seconds}Z was refused, and changed nothing: keeperd reload says why");
        writeln!(out, "{}", view.painted(&plain(&what), Some(AnsiColor::Red)))?;
    }
    writeln!(out, "\n{:<28} {:<13} {:>17} {:>8} {:>9}", "KEEPER", "ROLE", "TOKEN", "PID", "LEASE")?;
    for keeper in &status.keepers {
        first_column(out, &keeper.name, 28)?;
        let lease = keeper.lease_remaining_ms.map(|ms| format!("{:.1} s", ms as f64 / 1000.0));
        writeln!(
            out,
            " {} {:>17} {:>8} {:>9}",
            view.painted(&format!("{:<13}", plain(&keeper.role)), colour_of(&keeper.role)),
            or_dash(keeper.token),
            or_dash(keeper.pid),
            or_dash(lease)
        )?;
        note(out, view, &say_why(keeper))?;
    }
    writeln!(out, "\n{:<50} {:<12} {:>10}", "NODE", "STATE", "ROUND TRIP")?;
    status.nodes.iter().try_for_each(|node| print_node(node, view, out))
}

fn print_node(node: &Node, view: View, out: &mut dyn Write) -> io::Result<()> {
    first_column(out, &node.address, 50)?;
    writeln!(
        out,
        " {} {:>10}",
        view.painted(&format!("{:<12}", plain(&node.state)), colour_of(&node.state)),
        or_dash(node.rtt_us.map(|us| format!("{us} µs")))
    )?;
    if let Some(ms) = node.quarantine_remaining_ms {
        note(out, view, &format!("votes again in {:.1} s", ms as f64 / 1000.0))?;
    }
    node.reason.iter().try_for_each(|reason| note(out, view, reason))
}

/// Prints a keeper's last runs on this host.
///
/// # Errors
/// When it cannot be written.
pub fn print_history(keeper: &Keeper, view: View, out: &mut dyn Write) -> io::Result<()> {
    if keeper.history.is_empty() {
        return writeln!(out, "\nno runs on this host since keeperd started");
    }
    writeln!(out, "\n{:<20} {:>7} {:>16} {:>8}  {:<9} REASON", "STARTED", "RAN", "TOKEN", "PID", "EXIT")?;
    for run in &keeper.history {
        let (seconds, _) = run.started.split_once('.').unwrap_or((&run.started, ""));
        writeln!(
            out,
            "{:<20} {:>7} {:>16} {:>8}  {:<9} {}",
            format!("{}Z", plain(seconds)),
            or_dash(ran(run).map(short)),
            or_dash(run.token),
            or_dash(run.pid),
            say_exit(run),
            plain(run.reason.as_deref().unwrap_or("runs")),
        )?;
        run.detail.iter().try_for_each(|detail| note(out, view, detail))?;
    }
    Ok(())
}

/// A name that is too long for its column has a line to itself: it is there to be copied.
fn first_column(out: &mut dyn Write, name: &str, width: usize) -> io::Result<()> {
    let name = plain(name);
    if name.chars().count() > width {
        write!(out, "{name}\n{:<width$}", "")
    } else {
        write!(out, "{name:<width$}")
    }
}

fn note(out: &mut dyn Write, view: View, text: &str) -> io::Result<()> {
    let indent = "    ";
    match view.width {
        Some(width) => paragraph(out, &plain(text), [indent, indent], width),
        None => writeln!(out, "{indent}{}", plain(text)),
    }
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or("-".into(), |value| value.to_string())
}

fn colour_of(state: &str) -> Option<AnsiColor> {
    match state {
        "leader" | "serving" => Some(AnsiColor::Green),
        "stepping_down" | "paused" | "cooldown" | "connecting" | "quarantined" => Some(AnsiColor::Yellow),
        "down" | "denied" => Some(AnsiColor::Red),
        _ => None,
    }
}

fn say_why(keeper: &Keeper) -> String {
    let why = keeper.last_change.as_ref().map_or("since the start".to_owned(), |change| {
        let (seconds, _) = change.at.split_once('.').unwrap_or((&change.at, ""));
        format!("{seconds}Z: {}", change.reason)
    });
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

/// How long it ran; a clock that was set meanwhile gives nothing.
fn ran(run: &Run) -> Option<Duration> {
    let ended = humantime::parse_rfc3339(run.ended.as_deref()?).ok()?;
    ended.duration_since(humantime::parse_rfc3339(&run.started).ok()?).ok()
}

/// Two units, which is seven columns.
fn short(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{:.1} s", span.as_secs_f64()),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

fn say_exit(run: &Run) -> String {
    let by_name = |signal| nix::sys::signal::Signal::try_from(signal).ok();
    match (run.code, run.signal) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(signal)) => by_name(signal).map_or_else(|| format!("signal {signal}"), |s| s.to_string()),
        (None, None) => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(status: &Status) -> String {
        let mut out = Vec::new();
        let view = View { width: Some(80), height: Some(24), colour: false };
        print(status, view, &mut out).expect("a vector takes all");
        print_history(&status.keepers[0], view, &mut out).expect("a vector takes all");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn tables_fit_eighty_columns_whatever_the_names_are() {
        let long = "k".repeat(79);
        let document = serde_json::json!({
            "version": "0.1.0", "host": "keeper-a", "pid": 4_194_304,
            "keepers": [{
                "name": long, "role": "stepping_down", "token": 1_795_513_873_189_067_u64, "pid": 4_194_304,
                "lease_remaining_ms": 86_399_000, "since": "2026-11-24T09:51:13.188Z", "restarts": 1000,
                "last_exit": null,
                "last_change": { "at": "2026-11-24T09:51:13.188Z", "reason": "a quorum of nodes looks free ".repeat(5) },
                "holder": { "host": "b".repeat(60), "pid": 1, "value": "" },
                "history": [{
                    "token": 1_795_513_873_189_067_u64, "pid": 4_194_304, "started": "2026-11-23T09:51:13.188Z",
                    "ended": "2026-11-24T09:51:12.188Z", "code": null, "signal": 27, "reason": "never_started"
                }],
                "output": null
            }],
            "nodes": [{
                "address": format!("unix:///{}", "n".repeat(70)), "state": "quarantined", "rtt_us": 999_999,
                "quarantine_remaining_ms": 32_000, "reason": null
            }]
        });
        let shown = shown(&serde_json::from_value(document).expect("a status"));
        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
        assert!(shown.contains(&format!("\n{long}\n  ")), "{shown}");
        assert!(
            shown.contains(
                "2026-11-23T09:51:13Z 23h 59m 1795513873189067  4194304  SIGPROF   never_started\n"
            ),
            "{shown}"
        );
    }

    #[test]
    fn spans_take_seven_columns() {
        let spans = [0.04, 59.94, 61.0, 3599.0, 86_399.0, 90_000.0, 86_400.0 * 999.0];
        let shown = spans.map(|span| short(Duration::from_secs_f64(span)));
        assert_eq!(shown, ["0.0 s", "59.9 s", "1m 1s", "59m 59s", "23h 59m", "1d 1h", "999d 0h"]);
    }
}
