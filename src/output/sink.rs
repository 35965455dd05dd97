//! Where lines go, and those that wait to go there.

use super::file::FileSink;
use super::journal::{self, Journal, Sent};
use super::line::{Line, Render, Stream};
use super::outlet::Outlet;
use crate::clock;
use crate::core::lease::FencingToken;
use crate::observe::log::LogQueue;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Memory that lines of one term may take while they wait for room in their sink.
const WAITING_MAX: usize = 1024 * 1024;
/// Dropped lines are reported at most this often.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Where a keeper's lines go.
#[derive(Clone, Debug)]
pub enum Sink {
    Log {
        queue: LogQueue,
        render: Render,
    },
    Journal(Arc<Journal>),
    File(FileSink),
    /// Past the daemon: it has no pipes to read.
    Elsewhere,
}

/// What became of a line.
enum Put {
    Taken,
    /// No room at the moment.
    Full,
    Refused,
}

impl Sink {
    fn try_put(&self, keeper: &str, line: &Arc<Line>) -> Put {
        let taken = match self {
            Sink::Log { queue, render } => queue.try_push(keeper, render(keeper, line)).is_ok(),
            Sink::Journal(journal) => match journal.send(&journal::entry(keeper, line)) {
                Sent::Yes => true,
                Sent::NotNow => false,
                Sent::Refused => return Put::Refused,
            },
            Sink::File(file) => file.try_put(line),
            Sink::Elsewhere => true,
        };
        if taken { Put::Taken } else { Put::Full }
    }

    /// The log says itself that lines are missing; elsewhere the gap is marked in its place.
    fn marks_gaps(&self) -> bool {
        match self {
            Sink::Journal(_) | Sink::File(_) => true,
            Sink::Log { .. } | Sink::Elsewhere => false,
        }
    }
}

/// Lines of one term on their way to the sink. What does not fit is dropped, oldest first, and counted.
#[derive(Debug, Default)]
pub struct Waiting {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
    /// Dropped before the first that waits.
    gap: u64,
    unreported: u64,
    reported_at: Option<Instant>,
}

impl Waiting {
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub fn push(&mut self, line: Arc<Line>) {
        self.bytes += line.weight();
        self.lines.push_back(line);
        while self.bytes > WAITING_MAX {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.weight();
            self.gap += 1;
            self.unreported += 1;
        }
    }

    /// Gives the sink what it takes at the moment.
    pub fn pass_on(&mut self, outlet: &Outlet, token: FencingToken) {
        while let Some(line) = self.lines.front() {
            if self.gap > 0 && outlet.sink.marks_gaps() {
                if let Put::Full = outlet.sink.try_put(&outlet.name, &gap(self.gap, token)) {
                    break;
                }
                self.gap = 0;
            }
            match outlet.sink.try_put(&outlet.name, line) {
                Put::Taken => {}
                Put::Full => break,
                Put::Refused => self.unreported += 1,
            }
            self.bytes -= line.weight();
            self.lines.pop_front();
        }
        let due = self.reported_at.is_none_or(|at| at.elapsed() >= REPORT_EVERY);
        if self.unreported > 0 && due {
            self.report(outlet);
        }
    }

    /// Nobody will try any more: what still waits is dropped, and said.
    pub fn give_up(&mut self, outlet: &Outlet) {
        self.unreported += self.lines.len() as u64;
        self.lines.clear();
        self.bytes = 0;
        self.report(outlet);
    }

    /// Says how many were dropped since the last time.
    fn report(&mut self, outlet: &Outlet) {
        let dropped = std::mem::take(&mut self.unreported);
        if dropped > 0 {
            let keeper = &*outlet.name;
            outlet.dropped.fetch_add(dropped, Ordering::Relaxed);
            self.reported_at = Some(Instant::now());
            tracing::warn!(
                keeper,
                dropped,
                "lines of the child were dropped: it writes faster than its output is taken"
            );
        }
    }
}

fn gap(lines: u64, token: FencingToken) -> Arc<Line> {
    let bytes = format!("keeperd: {lines} lines were dropped here").into_bytes().into();
    Arc::new(Line { at: clock::wall(), token, stream: Stream::Stderr, bytes, continues: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_taken_is_dropped_oldest_first() {
        let mut waiting = Waiting::default();
        let line = |n| {
            let bytes = vec![n; 16 * 1024].into();
            let (at, token) = (clock::wall(), FencingToken(1));
            Arc::new(Line { at, token, stream: Stream::Stdout, bytes, continues: false })
        };
        (0..200_u8).for_each(|n| waiting.push(line(n)));
        assert_eq!(waiting.lines.len() as u64 + waiting.gap, 200);
        assert!(waiting.bytes <= WAITING_MAX);
        assert_eq!(waiting.lines.back().map(|line| line.bytes[0]), Some(199));
    }
}
