//! `keeperd logs`: what a keeper has written lately on this host, and what it goes on to write.

use super::client::{self, ClientError};
use super::status::{self, EXIT_UNKNOWN_NAME};
use crate::observe::plain::plain;
use crate::observe::status::{HeardLine, Keeper};
use crate::output::escaped;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

/// Prints the lines; the exit code.
pub fn run(socket: &Path, name: &str, follow: bool, out: &mut dyn Write) -> i32 {
    client::finish(try_run(socket, name, follow, out))
}

fn try_run(
    socket: &Path,
    name: &str,
    follow: bool,
    out: &mut dyn Write,
) -> Result<i32, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let Some(keeper) = status::keeper(&runtime, socket, name)? else {
        return Ok(EXIT_UNKNOWN_NAME);
    };
    if let Some(hint) = hint(&keeper) {
        eprintln!("keeperd: {hint}");
    }
    if !follow {
        lines(&runtime, socket, name)?.iter().try_for_each(|line| print(line, out))?;
        return Ok(0);
    }
    let mut partial = Vec::new();
    let path = format!("/v1/keepers/{name}/logs?follow");
    let ended = runtime.block_on(client::listen(socket, &path, |piece| {
        if piece.is_empty() && !somebody_reads() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        partial.extend_from_slice(piece);
        while let Some(end) = partial.iter().position(|byte| *byte == b'\n') {
            let line = serde_json::from_slice(&partial[..end]).map_err(io::Error::from)?;
            partial.drain(..=end);
            print(&line, out)?;
        }
        out.flush()
    }))?;
    Err(ended.into())
}

/// Whether stdout leads anywhere still: a pipe that nobody reads any more would be noticed at the next line only.
fn somebody_reads() -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let stdout = io::stdout();
    let mut asked = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    poll(&mut asked, PollTimeout::ZERO).is_err() || !asked[0].any().unwrap_or(false)
}

/// The lines that the daemon has kept, oldest first.
///
/// # Errors
/// When no daemon answers, or not properly.
pub fn lines(
    runtime: &tokio::runtime::Runtime,
    socket: &Path,
    name: &str,
) -> Result<Vec<HeardLine>, ClientError> {
    let body = runtime.block_on(client::get(socket, &format!("/v1/keepers/{name}/logs")))?;
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(serde_json::from_slice).collect::<Result<_, _>>().map_err(|error: serde_json::Error| {
        ClientError::BadAnswer { path: socket.to_owned(), what: error.to_string() }
    })
}

/// One line for people.
///
/// # Errors
/// When it cannot be written.
pub fn print(line: &HeardLine, out: &mut dyn Write) -> io::Result<()> {
    match line {
        HeardLine::Line { at, stream, line, continues, .. } => {
            let mark = if stream == "stdout" { '|' } else { '!' };
            let continues = if *continues { " [line continues]" } else { "" };
            writeln!(out, "{at} {mark} {}{continues}", escaped(line.as_bytes()))
        }
        HeardLine::Lost { lost } => {
            writeln!(out, "keeperd: {lost} lines are missing here, they came too fast")
        }
    }
}

/// Why there may be nothing to see.
fn hint(keeper: &Keeper) -> Option<String> {
    let name = &keeper.name;
    if let Some(output) =
        keeper.output.as_ref().filter(|output| ["inherit", "null"].contains(&output.to.as_str()))
    {
        return Some(format!("output = {:?}: keeperd does not see what {name} writes", output.to));
    }
    let holder = keeper.holder.as_ref()?;
    match (keeper.role.as_str(), &holder.host) {
        ("leader" | "stepping_down" | "finished", _) => None,
        (_, Some(host)) => {
            Some(format!("{name} runs on {}; here are the lines it wrote on this host", plain(host)))
        }
        (_, None) => Some(format!(
            "{name} is held by a client that is not keeperd; here are the lines it wrote on this host"
        )),
    }
}
