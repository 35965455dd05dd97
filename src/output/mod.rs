//! What children write: read at once, kept for a while, and passed on to where the configuration says.
//!
//! ```text
//! pipes of a term ─► follow ─► split ─► Line ─┬─► recent (last lines, followers)
//!                    edge thread, one task     └─► Waiting ─► Sink: log · journal · file (a thread each)
//! ```
//! The pipes are always emptied, so a child never waits for keeperd; what a sink cannot take is dropped, oldest first, and counted.
//! Lines are bytes: nothing is lost of what is not UTF-8 where the sink can take it. Nobody waits for the end of a pipe, which a
//! grandchild may hold.

mod file;
pub mod journal;
mod line;
mod outlet;
mod recent;
mod sink;
mod split;

pub use journal::{Journal, LogEntries};
pub use line::{Line, Render, Stream, escaped, render_journald, render_json, render_text, timestamp};
pub use outlet::{LastWrite, Outlet, Sinks};
pub use recent::{Follower, Heard, LINES_KEPT};
pub use split::LINE_MAX;

use crate::clock;
use crate::core::lease::FencingToken;
use crate::core::restart::Exit;
use crate::core::time::WallTime;
use crate::observe::events::say_exit;
use sink::Waiting;
use split::Splitter;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// One read; a child that shouts is read in pieces of this size, turn by turn with all others.
const READ_SIZE: usize = 64 * 1024;
/// A line without its end is shown after this long.
const PARTIAL_AFTER: Duration = Duration::from_millis(500);
/// The sink was full: how long to wait before trying again.
const RETRY_AFTER: Duration = Duration::from_millis(5);
/// When the child has ended, what it left in a pipe is read first: as much as the pipe holds. A grandchild may go on writing for ever.
const LEFT_MAX: usize = 256 * 1024;
/// Of a child that failed, in the log: the last lines, of each the beginning, and no more of them than one line of a log may hold.
const LAST_WORDS: usize = 200;
const LAST_WORDS_BYTES: usize = 200;
const LAST_WORDS_BYTES_ALL: usize = 16 * 1024;
/// After the end of the streams, for what still waits for its sink.
const DELIVERY_MAX: Duration = Duration::from_secs(2);

/// The output of one term, for the edge to read.
#[derive(Debug)]
pub struct TermOutput {
    pub outlet: Arc<Outlet>,
    pub token: FencingToken,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    /// The ends of its main processes, one after the other.
    pub ended: mpsc::Receiver<Ended>,
}

/// The main process ended by itself or was ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    pub exit: Exit,
    /// By itself, and not as a success: its last lines may say why.
    pub failed: bool,
}

/// Reads the streams of one term until their ends.
///
/// # Errors
/// When a pipe cannot be read at all.
pub async fn follow(output: TermOutput) -> io::Result<()> {
    let TermOutput { outlet, token, stdout, stderr, mut ended } = output;
    let mut first = Source::new(Stream::Stdout, stdout)?;
    let mut second = Source::new(Stream::Stderr, stderr)?;
    let mut lines = Lines { outlet, token, waiting: Waiting::default(), last: VecDeque::new() };
    while first.is_open() || second.is_open() {
        let retry_at = (!lines.waiting.is_empty()).then(|| Instant::now() + RETRY_AFTER);
        let wake_at = [first.flush_at, second.flush_at, retry_at].into_iter().flatten().min();
        tokio::select! {
            () = first.ready() => first.read(&mut lines),
            () = second.ready() => second.read(&mut lines),
            Some(end) = ended.recv() => {
                first.read_what_is_left(&mut lines);
                second.read_what_is_left(&mut lines);
                lines.waiting.pass_on(&lines.outlet, lines.token);
                lines.run_ended(end);
            }
            () = tokio::time::sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {
                first.flush_if_due(&mut lines);
                second.flush_if_due(&mut lines);
            }
        }
        lines.waiting.pass_on(&lines.outlet, lines.token);
        // Others get their turn between two reads of a child that never stops.
        tokio::task::yield_now().await;
    }
    while let Ok(end) = ended.try_recv() {
        lines.run_ended(end);
    }
    lines.deliver_the_rest().await;
    Ok(())
}

/// Where the lines of one term go.
struct Lines {
    outlet: Arc<Outlet>,
    token: FencingToken,
    waiting: Waiting,
    /// The last lines of this run.
    last: VecDeque<Arc<Line>>,
}

impl Lines {
    fn push(&mut self, at: WallTime, stream: Stream, bytes: &[u8], continues: bool) {
        let line = Arc::new(Line { at, token: self.token, stream, bytes: bytes.into(), continues });
        self.outlet.recent().push(&line);
        if self.last.len() == LAST_WORDS {
            self.last.pop_front();
        }
        self.last.push_back(Arc::clone(&line));
        self.waiting.push(line);
    }

    fn run_ended(&mut self, end: Ended) {
        let mut room = LAST_WORDS_BYTES_ALL;
        let newest = self.last.drain(..).rev().map(|line| beginning(&line.bytes));
        let mut last: Vec<String> = newest
            .take_while(|line| {
                let fits = line.len() <= room;
                room = room.saturating_sub(line.len());
                fits
            })
            .collect();
        last.reverse();
        if end.failed && !last.is_empty() {
            let (keeper, token) = (&*self.outlet.name, self.token.0);
            let (how, last) = (say_exit(end.exit), last.join(" | "));
            tracing::warn!(keeper, token, "child failed ({how}), it wrote last: {last}");
        }
    }

    /// The sink may be busy; it is not waited for without end.
    async fn deliver_the_rest(&mut self) {
        let patience = Instant::now() + DELIVERY_MAX;
        loop {
            self.waiting.pass_on(&self.outlet, self.token);
            if self.waiting.is_empty() || Instant::now() >= patience {
                break;
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
        self.waiting.give_up(&self.outlet);
    }
}

fn beginning(bytes: &[u8]) -> String {
    match bytes.get(..LAST_WORDS_BYTES) {
        Some(cut) => escaped(cut) + "…",
        None => escaped(bytes),
    }
}

/// One stream.
struct Source {
    stream: Stream,
    /// `None` after its end.
    pipe: Option<Receiver>,
    splitter: Splitter,
    /// A line has begun and is shown then, complete or not.
    flush_at: Option<Instant>,
}

impl Source {
    fn new(stream: Stream, fd: OwnedFd) -> io::Result<Source> {
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        let pipe = Some(Receiver::from_owned_fd(fd)?);
        Ok(Source { stream, pipe, splitter: Splitter::default(), flush_at: None })
    }

    fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    async fn ready(&self) {
        match &self.pipe {
            // What is wrong with it, the read will say.
            Some(pipe) => drop(pipe.readable().await),
            None => std::future::pending().await,
        }
    }

    /// One piece. On the stack: a buffer of its own for each term would be most of the daemon's memory.
    fn read(&mut self, lines: &mut Lines) {
        let mut buffer = [0; READ_SIZE];
        let Some(pipe) = &self.pipe else { return };
        let read = pipe.try_read(&mut buffer);
        self.take(read, &buffer, lines);
    }

    /// Past the runtime, which may not have seen yet that there is something.
    fn read_what_is_left(&mut self, lines: &mut Lines) {
        let mut buffer = [0; READ_SIZE];
        let mut left = LEFT_MAX;
        while left > 0
            && let Some(pipe) = &self.pipe
        {
            let read = nix::unistd::read(pipe, &mut buffer).map_err(io::Error::from);
            match self.take(read, &buffer, lines) {
                0 => break,
                length => left = left.saturating_sub(length),
            }
        }
        self.flush(lines);
    }

    /// What a read has brought; the number of bytes.
    fn take(&mut self, read: io::Result<usize>, buffer: &[u8], lines: &mut Lines) -> usize {
        match read {
            Ok(length @ 1..) => {
                lines.outlet.last_write.note(lines.token, clock::boot());
                let (at, stream) = (clock::wall(), self.stream);
                self.splitter
                    .feed(&buffer[..length], |line, continues| lines.push(at, stream, line, continues));
                self.flush_at = match (self.splitter.is_empty(), self.flush_at) {
                    (true, _) => None,
                    (false, Some(at)) => Some(at),
                    (false, None) => Some(Instant::now() + PARTIAL_AFTER),
                };
                length
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Ok(_) | Err(_) => {
                self.pipe = None;
                self.flush(lines);
                0
            }
        }
    }

    fn flush_if_due(&mut self, lines: &mut Lines) {
        if self.flush_at.is_some_and(|at| at <= Instant::now()) {
            self.flush(lines);
        }
    }

    fn flush(&mut self, lines: &mut Lines) {
        self.flush_at = None;
        let (at, stream) = (clock::wall(), self.stream);
        self.splitter.flush(|line, continues| lines.push(at, stream, line, continues));
    }
}
