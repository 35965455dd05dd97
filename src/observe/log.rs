//! Log lines to stderr, through a bounded queue and a thread of their own: a full disk or a stuck journal stops this thread and
//! nothing else. What does not fit is dropped and counted.
//!
//! # Levels
//! error: a person must act. warn: wake someone if it lasts. info: a change of role, a child that started or ended, a keeper's own
//! output. debug: every round.

use super::plain::plain;
use crate::output::LogEntries;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Lines that may wait for stderr, and their bytes. Output of children gets three quarters of it: keeperd's own lines tell why.
const QUEUE_LINES: usize = 4096;
const QUEUE_BYTES: usize = 4 * 1024 * 1024;
const QUEUE_BYTES_OUTPUT: usize = QUEUE_BYTES / 4 * 3;
/// A reader may come back; dropped lines are reported at most this often.
const REPORT_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Text,
    Json,
    /// Text without time stamps, with the priority prefix the journal understands; where stderr is the journal, entries with fields.
    Journald,
}

impl FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            "journald" => Ok(Format::Journald),
            other => Err(format!("{other:?} is none of text, json, journald")),
        }
    }
}

impl Format {
    /// journald when stderr is the journal, else text.
    pub fn detect() -> Format {
        if stderr_is_journal() { Format::Journald } else { Format::Text }
    }
}

fn stderr_is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let stderr = nix::sys::stat::fstat(io::stderr());
    stderr.is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

enum Job {
    Line {
        text: Vec<u8>,
        /// Whom it is about.
        keeper: Option<Box<str>>,
    },
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// The writing end: never waits.
#[derive(Clone)]
pub struct LogQueue {
    jobs: SyncSender<Job>,
    waiting_bytes: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
}

impl std::fmt::Debug for LogQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogQueue").field("dropped", &self.dropped).finish_non_exhaustive()
    }
}

/// There was no room.
#[derive(Debug)]
pub struct Full;

impl LogQueue {
    /// Starts the writing thread; `journal` is where the journal takes entries with fields.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(format: Format, journal: &Path) -> io::Result<LogQueue> {
        let journal = (format == Format::Journald && stderr_is_journal()).then(|| LogEntries::at(journal));
        let (jobs, queue) = sync_channel(QUEUE_LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let (lost, waiting) = (Arc::clone(&dropped), Arc::clone(&waiting_bytes));
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_lines(&queue, journal, &waiting, &lost))?;
        Ok(LogQueue { jobs, waiting_bytes, dropped })
    }

    /// Takes a line of a child's output.
    ///
    /// # Errors
    /// When the queue is full.
    pub fn try_push(&self, keeper: &str, line: Vec<u8>) -> Result<(), Full> {
        self.push_within(line, Some(keeper.into()), QUEUE_BYTES_OUTPUT)
    }

    /// An event; it is counted where there is no room.
    fn push(&self, line: Vec<u8>, keeper: Option<Box<str>>) {
        if self.push_within(line, keeper, QUEUE_BYTES).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn push_within(&self, text: Vec<u8>, keeper: Option<Box<str>>, limit: usize) -> Result<(), Full> {
        let length = text.len();
        if self.waiting_bytes.load(Ordering::Relaxed) + length > limit {
            return Err(Full);
        }
        self.waiting_bytes.fetch_add(length, Ordering::Relaxed);
        self.jobs.try_send(Job::Line { text, keeper }).map_err(|_| {
            self.waiting_bytes.fetch_sub(length, Ordering::Relaxed);
            Full
        })
    }

    /// Waits until what was pushed so far is written, at most for `limit`. Never called by the core thread.
    pub fn flush(&self, limit: Duration) {
        let (done, wait) = sync_channel(1);
        if self.jobs.try_send(Job::Flush(done)).is_ok() {
            // Late or not, the process ends now.
            let _ = wait.recv_timeout(limit);
        }
    }
}

fn write_lines(
    queue: &Receiver<Job>,
    mut journal: Option<LogEntries>,
    waiting_bytes: &AtomicUsize,
    dropped: &AtomicU64,
) {
    let mut stderr = io::stderr();
    loop {
        match queue.recv_timeout(REPORT_EVERY) {
            Ok(Job::Line { text, keeper }) => {
                if !journal.as_mut().is_some_and(|journal| journal.send(&text, keeper.as_deref())) {
                    // stderr may be closed; there is nowhere to complain.
                    let _ = stderr.write_all(&text);
                }
                waiting_bytes.fetch_sub(text.len(), Ordering::Relaxed);
            }
            Ok(Job::Flush(done)) => drop(done.try_send(())),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ =
                writeln!(stderr, "keeperd: {lost} log lines were dropped, stderr did not take them in time");
        }
    }
}

/// Makes a writer per event.
#[derive(Clone, Debug)]
struct Events(LogQueue);

/// One event of tracing, written into the queue as a whole.
#[derive(Debug)]
struct LineWriter<'a> {
    queue: &'a LogQueue,
    line: Vec<u8>,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter<'_> {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.queue.push(one_line(std::mem::take(&mut self.line)), None);
        }
    }
}

/// An event quotes what nodes say, which may hold anything.
fn one_line(mut line: Vec<u8>) -> Vec<u8> {
    let ended = line.pop_if(|byte| *byte == b'\n').is_some();
    if let Cow::Owned(clean) = plain(&String::from_utf8_lossy(&line)) {
        line = clean.into_bytes();
    }
    if ended {
        line.push(b'\n');
    }
    line
}

impl<'a> MakeWriter<'a> for Events {
    type Writer = LineWriter<'a>;
    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter { queue: &self.0, line: Vec::new() }
    }
}

/// Events for the journal: each line begins with its syslog priority, which `journalctl -p` filters by.
struct JournalEvents(LogQueue);

impl<S: Subscriber> Layer<S> for JournalEvents {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let mut words = Words { text: format!("<{priority}>"), keeper: None };
        event.record(&mut words);
        self.0.push(one_line((words.text + "\n").into_bytes()), words.keeper);
    }
}

/// The message, its fields, and whom it is about.
struct Words {
    text: String,
    keeper: Option<Box<str>>,
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "keeper" {
            self.keeper = Some(value.into());
        }
        self.record_debug(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // A String takes everything.
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?}"),
            name => write!(self.text, " {name}={value:?}"),
        };
    }
}

/// Makes `queue` the place where all events of the process go.
pub fn install(queue: &LogQueue, format: Format, level: LevelFilter) {
    let events = Events(queue.clone());
    let base = tracing_subscriber::fmt()
        .with_writer(events)
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false);
    match format {
        Format::Text => base.init(),
        Format::Json => base.json().flatten_event(true).init(),
        Format::Journald => {
            tracing_subscriber::registry().with(level).with(JournalEvents(queue.clone())).init();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn an_event_is_one_line_whatever_it_quotes() {
        let line = "WARN node is down why=Parse error\nUnexpected `33`\u{1b}[2J\n";
        assert_eq!(one_line(line.into()), b"WARN node is down why=Parse error Unexpected `33` [2J\n");
    }
}
