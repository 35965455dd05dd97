//! `keeperd status`: this daemon's keepers and nodes, for people or as JSON.

use super::client::{self, ClientError};
use super::terminal::{Screen, View};
use super::{logs, view};
use crate::observe::status::{Keeper, Status};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Exit code: no keeper of that name.
pub const EXIT_UNKNOWN_NAME: i32 = 4;
/// Between two pictures of `--watch`.
const REFRESH: Duration = Duration::from_secs(1);

/// What is asked for.
#[derive(Debug)]
pub struct Question {
    /// Only this keeper.
    pub name: Option<String>,
    pub json: bool,
    /// Again and again.
    pub watch: bool,
    /// The keeper's last lines, too.
    pub lines: bool,
}

/// Prints the status; the exit code.
pub fn run(socket: &Path, question: &Question, view: View, out: &mut dyn Write) -> i32 {
    client::finish(try_run(socket, question, view, out))
}

type Outcome = Result<i32, Box<dyn std::error::Error>>;

fn try_run(socket: &Path, question: &Question, view: View, out: &mut dyn Write) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = |out: &mut dyn Write| print(&runtime, socket, question, view, out);
    if !question.watch {
        return answer(out);
    }
    // A program that reads wants every document, on a terminal too.
    let (height, between) = if question.json { (None, "") } else { (view.height, "\n") };
    watch(answer, Screen::new(height, between), out)
}

/// Ends when there is no such keeper, or no daemon; on a terminal the next one is waited for.
fn watch(answer: impl Fn(&mut dyn Write) -> Outcome, mut screen: Screen, out: &mut dyn Write) -> Outcome {
    let mut answered = false;
    loop {
        let mut picture = Vec::new();
        match answer(&mut picture) {
            Ok(0) => answered = true,
            Ok(code) => return Ok(code),
            Err(error) if answered && screen.is_terminal() => writeln!(picture, "keeperd: {error}")?,
            Err(error) => return Err(error),
        }
        screen.show(&String::from_utf8_lossy(&picture), out)?;
        std::thread::sleep(REFRESH);
    }
}

fn print(runtime: &Runtime, socket: &Path, question: &Question, view: View, out: &mut dyn Write) -> Outcome {
    let mut status = fetch(runtime, socket)?;
    let Some(name) = &question.name else {
        if question.json {
            write_json(&status, question, out)?;
        } else {
            view::print(&status, view, out)?;
        }
        return Ok(0);
    };
    status.keepers.retain(|keeper| keeper.name == *name);
    let Some(keeper) = status.keepers.first() else {
        say_unknown(name);
        return Ok(EXIT_UNKNOWN_NAME);
    };
    let lines = if question.lines { Some(logs::lines(runtime, socket, name)?) } else { None };
    if question.json {
        if let Some(lines) = lines {
            let mut document = serde_json::to_value(&status)?;
            document["keepers"][0]["lines"] = serde_json::to_value(lines)?;
            write_json(&document, question, out)?;
        } else {
            write_json(&status, question, out)?;
        }
        return Ok(0);
    }
    view::print(&status, view, out)?;
    view::print_history(keeper, view, out)?;
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

/// Documents that follow each other have a line each.
fn write_json(document: &impl serde::Serialize, question: &Question, out: &mut dyn Write) -> io::Result<()> {
    if question.watch {
        serde_json::to_writer(&mut *out, document)?;
    } else {
        serde_json::to_writer_pretty(&mut *out, document)?;
    }
    writeln!(out)
}
