//! What the child writes, as log lines under the keeper's name.
//!
//! The pipe is always emptied, so a child never waits for keeperd; what the log cannot take is dropped, oldest first, and counted.
//! Lines are bytes: cut at 16 KiB, invalid UTF-8 shown as U+FFFD. Nobody waits for the end of the pipe, which a grandchild may hold.

mod outlet;

pub use outlet::{LastWrite, Outlet};

use crate::clock;
use crate::core::lease::FencingToken;
use crate::observe::log::{Full, LogQueue};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

/// Longer lines are split and the pieces marked.
pub const LINE_MAX: usize = 16 * 1024;
/// One read; a child that shouts is read in pieces of this size, turn by turn with all others.
const READ_SIZE: usize = 64 * 1024;
/// Lines of one stream that wait for room in the log.
const WAITING_BYTES_MAX: usize = 1024 * 1024;
/// A line without its end is shown after this long.
const PARTIAL_AFTER: Duration = Duration::from_millis(500);
/// The log was full: how long to wait before trying again.
const RETRY_AFTER: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// One stream of a term, for the edge to read.
#[derive(Debug)]
pub struct Pipe {
    pub outlet: Arc<Outlet>,
    pub token: FencingToken,
    pub stream: Stream,
    pub fd: OwnedFd,
}

/// Formats one line of a keeper for the sink.
pub type Render = fn(keeper: &str, stream: Stream, line: &[u8]) -> Vec<u8>;

/// Reads one stream of one term until its end.
///
/// # Errors
/// When the pipe cannot be read at all.
pub async fn follow(pipe: Pipe, log: LogQueue, render: Render) -> io::Result<()> {
    let Pipe { outlet, token, stream, fd } = pipe;
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    let mut pipe = Receiver::from_owned_fd(fd)?;
    let keeper = outlet.name.to_string();
    let mut splitter = Splitter::default();
    let mut waiting = Waiting { keeper, stream, render, lines: VecDeque::new(), bytes: 0, dropped: 0 };
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let pause = if waiting.is_empty() { PARTIAL_AFTER } else { RETRY_AFTER };
        let idle = waiting.is_empty() && splitter.is_empty();
        tokio::select! {
            read = pipe.read(&mut buffer) => {
                let read = read?;
                if read == 0 {
                    break;
                }
                outlet.last_write.note(token, clock::boot());
                splitter.feed(&buffer[..read], |line| waiting.push(line));
            }
            () = tokio::time::sleep(pause), if !idle => {
                if waiting.is_empty() {
                    splitter.flush(|line| waiting.push(line));
                }
            }
        }
        waiting.pass_on(&log);
        // Others get their turn between two reads of a child that never stops.
        tokio::task::yield_now().await;
    }
    splitter.flush(|line| waiting.push(line));
    waiting.pass_on(&log);
    Ok(())
}

/// Bytes to lines.
#[derive(Default)]
struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }

    fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let room = LINE_MAX - self.partial.len();
            let reach = &bytes[..bytes.len().min(room)];
            match reach.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.partial.extend_from_slice(&bytes[..end]);
                    line(self.partial.strip_suffix(b"\r").unwrap_or(&self.partial));
                    self.partial.clear();
                    bytes = &bytes[end + 1..];
                }
                None => {
                    self.partial.extend_from_slice(reach);
                    bytes = &bytes[reach.len()..];
                    if self.partial.len() == LINE_MAX {
                        self.partial.extend_from_slice(" [line continues]".as_bytes());
                        line(&self.partial);
                        self.partial.clear();
                    }
                }
            }
        }
    }

    fn flush(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            line(&self.partial);
            self.partial.clear();
        }
    }
}

/// Lines of one stream on their way to the log.
struct Waiting {
    keeper: String,
    stream: Stream,
    render: Render,
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: u64,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn push(&mut self, line: &[u8]) {
        let line = (self.render)(&self.keeper, self.stream, line);
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > WAITING_BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.len();
            self.dropped += 1;
        }
    }

    fn pass_on(&mut self, log: &LogQueue) {
        while let Some(line) = self.lines.pop_front() {
            let length = line.len();
            if let Err(Full(line)) = log.try_push(line) {
                self.lines.push_front(line);
                return;
            }
            self.bytes -= length;
        }
        if self.dropped > 0 {
            let (keeper, dropped) = (self.keeper.as_str(), self.dropped);
            tracing::warn!(
                keeper,
                dropped,
                "lines of the child were dropped: it writes faster than the log takes them"
            );
            self.dropped = 0;
        }
    }
}

/// `keeper | line`, as a terminal shows it.
pub fn render_text(keeper: &str, stream: Stream, line: &[u8]) -> Vec<u8> {
    let mark = match stream {
        Stream::Stdout => "|",
        Stream::Stderr => "!",
    };
    let time = humantime::format_rfc3339_micros(wall());
    format!("{time}  INFO {keeper} {mark} {}\n", String::from_utf8_lossy(line)).into_bytes()
}

/// The same with a priority, and without a time, which the journal adds.
pub fn render_journald(keeper: &str, stream: Stream, line: &[u8]) -> Vec<u8> {
    let mark = match stream {
        Stream::Stdout => "|",
        Stream::Stderr => "!",
    };
    format!("<6>{keeper} {mark} {}\n", String::from_utf8_lossy(line)).into_bytes()
}

/// One JSON object a line.
pub fn render_json(keeper: &str, stream: Stream, line: &[u8]) -> Vec<u8> {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    let timestamp = humantime::format_rfc3339_micros(wall()).to_string();
    let message = String::from_utf8_lossy(line);
    let object = serde_json::json!({
        "timestamp": timestamp, "level": "INFO", "keeper": keeper, "stream": stream, "message": message,
    });
    format!("{object}\n").into_bytes()
}

fn wall() -> std::time::SystemTime {
    std::time::UNIX_EPOCH + Duration::from_micros(clock::wall().as_micros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        for piece in pieces {
            splitter.feed(piece, |line| lines.push(line.to_vec()));
        }
        splitter.flush(|line| lines.push(line.to_vec()));
        lines
    }

    #[test]
    fn lines_are_put_together_from_any_pieces() {
        assert_eq!(lines(&[b"on", b"e\ntwo\r\n\nthr", b"ee"]), [&b"one"[..], b"two", b"", b"three"]);
    }

    #[test]
    fn a_line_longer_than_the_limit_is_split_and_marked() {
        let long = vec![b'x'; LINE_MAX * 2 + 5];
        let lines = lines(&[&long, b"\n"]);
        assert_eq!(lines.len(), 3);
        assert!(lines[0].ends_with(b"x [line continues]") && lines[2] == b"xxxxx");
    }

    #[test]
    fn what_the_log_does_not_take_is_dropped_oldest_first() {
        let render: Render = |_, _, line| line.to_vec();
        let mut waiting = Waiting {
            keeper: "k".into(),
            stream: Stream::Stdout,
            render,
            lines: VecDeque::new(),
            bytes: 0,
            dropped: 0,
        };
        for n in 0..200_u8 {
            waiting.push(&vec![n; LINE_MAX]);
        }
        assert_eq!(waiting.lines.len() as u64 + waiting.dropped, 200);
        assert!(waiting.bytes <= WAITING_BYTES_MAX);
        assert_eq!(waiting.lines.back().map(|line| line[0]), Some(199));
    }

    /// The rule without buffers: split at newlines, drop one carriage return, cut at the limit.
    fn reference(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        let mut parts: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        let last = parts.pop().unwrap_or_default();
        let mut cut = |mut line: &[u8], ended: bool| {
            while line.len() >= LINE_MAX {
                lines.push([&line[..LINE_MAX], b" [line continues]"].concat());
                line = &line[LINE_MAX..];
            }
            if ended {
                lines.push(line.strip_suffix(b"\r").unwrap_or(line).to_vec());
            } else if !line.is_empty() {
                lines.push(line.to_vec());
            }
        };
        parts.into_iter().for_each(|line| cut(line, true));
        cut(last, false);
        lines
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_byte_is_lost_however_it_is_cut(
            runs in prop::collection::vec((prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], prop_oneof![4 => 1_usize..4, 1 => 16_000_usize..17_000]), 0..12),
            cuts in prop::collection::vec(1_usize..40_000, 0..8),
        ) {
            let bytes: Vec<u8> = runs.iter().flat_map(|(byte, count)| std::iter::repeat_n(*byte, *count)).collect();
            let mut rest = bytes.as_slice();
            let mut pieces = Vec::new();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(lines(&pieces), reference(&bytes));
        }
    }
}
