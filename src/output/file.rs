//! Lines into a file of the keeper's own, rotated by size. A thread for each file: a full disk, a folder that is not there, a network
//! file system that hangs cost lines, which are counted, and stop nobody else.
//!
//! A line in the file is `TIME STREAM TAG BYTES`, as container runtimes write it, so the common log shippers know it (CRI): the time in
//! RFC 3339, `stdout` or `stderr`, `F` or, for a line that continues in the next, `P`, and the bytes as the child wrote them.

use super::line::{Line, timestamp};
use crate::config::FileOutput;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// Lines that may wait for the disk, and the memory they may take.
const QUEUE_LINES: usize = 8192;
const QUEUE_BYTES: usize = 1024 * 1024;
/// Written at once.
const BATCH: usize = 64 * 1024;
/// After a failure the file is left alone for this long; so often it is looked whether somebody has moved it away.
const AGAIN: Duration = Duration::from_secs(1);
/// It only formats and writes.
const STACK: usize = 256 * 1024;
const MODE: u32 = 0o640;

enum Job {
    Line(Arc<Line>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// The queue of one file: never waits.
#[derive(Clone)]
pub struct FileSink {
    jobs: SyncSender<Job>,
    waiting_bytes: Arc<AtomicUsize>,
}

impl std::fmt::Debug for FileSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSink").field("waiting_bytes", &self.waiting_bytes).finish_non_exhaustive()
    }
}

impl FileSink {
    /// Starts the writing thread; `lost` counts the lines the disk does not take. Nothing is opened before the first line.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(keeper: Arc<str>, output: FileOutput, lost: Arc<AtomicU64>) -> io::Result<FileSink> {
        let (jobs, queue) = sync_channel(QUEUE_LINES);
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let waiting = Arc::clone(&waiting_bytes);
        std::thread::Builder::new().name("output".into()).stack_size(STACK).spawn(move || {
            let mut writer = Writer::new(keeper, output, lost);
            work(&mut writer, &queue, &waiting);
        })?;
        Ok(FileSink { jobs, waiting_bytes })
    }

    /// False when there is no room.
    pub fn try_put(&self, line: &Arc<Line>) -> bool {
        let weight = line.weight();
        if self.waiting_bytes.load(Ordering::Relaxed) + weight > QUEUE_BYTES {
            return false;
        }
        self.waiting_bytes.fetch_add(weight, Ordering::Relaxed);
        match self.jobs.try_send(Job::Line(Arc::clone(line))) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.waiting_bytes.fetch_sub(weight, Ordering::Relaxed);
                false
            }
        }
    }

    /// Waits until what was put so far is written or lost, at most for `limit`.
    pub fn flush(&self, limit: Duration) {
        let (done, wait) = sync_channel(1);
        if self.jobs.try_send(Job::Flush(done)).is_ok() {
            // Late or not, the process ends now.
            let _ = wait.recv_timeout(limit);
        }
    }
}

fn work(writer: &mut Writer, queue: &Receiver<Job>, waiting_bytes: &AtomicUsize) {
    let mut next = None;
    loop {
        let Ok(job) = next.take().map_or_else(|| queue.recv(), Ok) else { return };
        match job {
            Job::Flush(done) => drop(done.try_send(())),
            Job::Line(line) => {
                waiting_bytes.fetch_sub(line.weight(), Ordering::Relaxed);
                let mut batch = Batch::default();
                batch.add(&line);
                while batch.bytes.len() < writer.batch_max()
                    && let Ok(job) = queue.try_recv()
                {
                    match job {
                        Job::Line(line) => {
                            waiting_bytes.fetch_sub(line.weight(), Ordering::Relaxed);
                            batch.add(&line);
                        }
                        flush @ Job::Flush(_) => {
                            next = Some(flush);
                            break;
                        }
                    }
                }
                writer.write(&batch);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

impl Batch {
    fn add(&mut self, line: &Line) {
        let tag = if line.continues { 'P' } else { 'F' };
        // Writing to a Vec cannot fail.
        let _ = write!(self.bytes, "{} {} {tag} ", timestamp(line.at), line.stream.name());
        self.bytes.extend_from_slice(&line.bytes);
        self.bytes.push(b'\n');
        self.lines += 1;
    }
}

#[derive(Debug)]
struct Open {
    file: File,
    size: u64,
    inode: (u64, u64),
    checked_at: Instant,
}

#[derive(Debug)]
struct Writer {
    keeper: Arc<str>,
    output: FileOutput,
    open: Option<Open>,
    /// Since when, and not to be tried again before.
    failing: Option<Instant>,
    /// Lines lost since it began to fail.
    lost: u64,
    lost_in_all: Arc<AtomicU64>,
}

impl Writer {
    fn new(keeper: Arc<str>, output: FileOutput, lost_in_all: Arc<AtomicU64>) -> Writer {
        Writer { keeper, output, open: None, failing: None, lost: 0, lost_in_all }
    }

    /// So that no file outgrows its size by more than a line.
    fn batch_max(&self) -> usize {
        BATCH.min(usize::try_from(self.output.max_size / 2).unwrap_or(BATCH))
    }

    fn write(&mut self, batch: &Batch) {
        if self.failing.is_some_and(|again_at| Instant::now() < again_at) {
            self.lose(batch.lines);
            return;
        }
        match self.try_write(&batch.bytes) {
            Ok(()) => self.report(),
            Err(error) => {
                if self.failing.is_none() {
                    let (keeper, path) = (&*self.keeper, self.output.path.display());
                    tracing::warn!(keeper, %path, %error, "output cannot be written: lines are lost until it can");
                }
                self.failing = Some(Instant::now() + AGAIN);
                self.open = None;
                self.lose(batch.lines);
            }
        }
    }

    fn lose(&mut self, lines: u64) {
        self.lost += lines;
        self.lost_in_all.fetch_add(lines, Ordering::Relaxed);
    }

    /// After a time of failure: how much it cost. Said when it works again, for the warning stands until then.
    fn report(&mut self) {
        if self.open.is_some() && self.failing.take().is_some() {
            let (keeper, path, lost) = (&*self.keeper, self.output.path.display(), self.lost);
            tracing::info!(keeper, %path, lost, "output is written again");
            self.lost = 0;
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let gap = if self.lost > 0 { note(self.lost) } else { Vec::new() };
        let length = (gap.len() + bytes.len()) as u64;
        let mut open = self.current()?;
        if open.size > 0 && open.size + length > self.output.max_size {
            match rotate(&self.output.path, self.output.keep) {
                Ok(()) => open = Open::at(&self.output.path)?,
                Err(error) => {
                    // Something stands in the way of the older files: the latest lines are worth more than these.
                    let (keeper, path) = (&*self.keeper, self.output.path.display());
                    tracing::warn!(keeper, %path, error, "output cannot be rotated: the file begins anew without older ones");
                    open.file.set_len(0)?;
                    open.size = 0;
                }
            }
        }
        // In the file's own order: first what is missing, then what came after.
        let written = open.file.write_all(&gap).and_then(|()| open.file.write_all(bytes));
        if let Err(error) = written {
            // No torn line is left behind; the disk may be full, but there is always room for less.
            let _ = open.file.set_len(open.size);
            return Err(error);
        }
        open.size += length;
        self.open = Some(open);
        Ok(())
    }

    /// The open file, unless somebody (logrotate, a hand) has moved it away.
    fn current(&mut self) -> io::Result<Open> {
        match self.open.take() {
            Some(open) if open.checked_at.elapsed() < AGAIN => Ok(open),
            Some(open) if inode(&self.output.path).is_ok_and(|now| now == open.inode) => {
                Ok(Open { checked_at: Instant::now(), ..open })
            }
            Some(_) | None => Open::at(&self.output.path),
        }
    }
}

impl Open {
    /// Appends to a regular file, or creates it. No link is followed and no pipe waited for: the folder may belong to the keeper's user.
    fn at(path: &Path) -> io::Result<Open> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY; // std adds O_CLOEXEC
        let file = OpenOptions::new().append(true).create(true).mode(MODE).custom_flags(flags).open(path)?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        Ok(Open { file, size: found.len(), inode: (found.dev(), found.ino()), checked_at: Instant::now() })
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// In the form of a line, in the place of those that are missing.
fn note(lost: u64) -> Vec<u8> {
    let now = timestamp(crate::clock::wall());
    format!("{now} stderr F keeperd: {lost} lines could not be written here\n").into_bytes()
}

/// `path` becomes `path.1`, that one `path.2`, and so on; what would be number `keep` + 1 is gone.
fn rotate(path: &Path, keep: u32) -> Result<(), String> {
    let done = |moved: io::Result<()>, to: &Path| match moved {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("{}: {error}", to.display())),
        Ok(()) | Err(_) => Ok(()),
    };
    if keep == 0 {
        return done(std::fs::remove_file(path), path);
    }
    for n in (1..keep).rev() {
        let to = numbered(path, n + 1);
        done(std::fs::rename(numbered(path, n), &to), &to)?;
    }
    let to = numbered(path, 1);
    done(std::fs::rename(path, &to), &to)
}

fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::super::line::Stream;
    use super::*;
    use crate::core::lease::FencingToken;
    use crate::core::time::WallTime;

    fn line(text: &[u8]) -> Arc<Line> {
        let (at, token) = (WallTime::from_micros(1_000_000), FencingToken(1));
        Arc::new(Line { at, token, stream: Stream::Stdout, bytes: text.into(), continues: false })
    }

    fn batch(text: &[u8]) -> Batch {
        let mut batch = Batch::default();
        batch.add(&line(text));
        batch
    }

    fn writer(path: &Path, max_size: u64, keep: u32) -> Writer {
        Writer::new("k".into(), FileOutput { path: path.to_owned(), max_size, keep }, Arc::default())
    }

    /// What a line is in the file.
    fn written(text: &str) -> String {
        format!("1970-01-01T00:00:01.000000Z stdout F {text}\n")
    }

    fn read(path: &Path) -> String {
        String::from_utf8(std::fs::read(path).unwrap_or_default()).expect("text")
    }

    #[test]
    fn bytes_stay_as_they_are_and_a_piece_of_a_line_is_marked() {
        let mut batch = Batch::default();
        batch.add(&line(b"\xff\x1b[1m"));
        batch.add(&Line { continues: true, stream: Stream::Stderr, ..(*line(b"x")).clone() });
        let expected =
            b"1970-01-01T00:00:01.000000Z stdout F \xff\x1b[1m\n1970-01-01T00:00:01.000000Z stderr P x\n";
        assert_eq!(batch.bytes, expected);
        assert_eq!(batch.lines, 2);
    }

    #[test]
    fn files_are_rotated_by_size_and_the_oldest_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("k.log");
        let mut writer = writer(&path, 100, 2);
        for n in 0..8 {
            writer.write(&batch(format!("line {n}").as_bytes()));
        }
        assert_eq!(read(&path), written("line 6") + &written("line 7"));
        assert_eq!(read(&numbered(&path, 1)), written("line 4") + &written("line 5"));
        assert_eq!(read(&numbered(&path, 2)), written("line 2") + &written("line 3"));
        assert!(!numbered(&path, 3).exists());
    }

    #[test]
    fn what_cannot_be_rotated_begins_anew_with_the_latest_lines() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("k.log");
        std::fs::create_dir(numbered(&path, 1)).expect("ours");
        let mut writer = writer(&path, 100, 1);
        (0..5).for_each(|n| writer.write(&batch(format!("line {n}").as_bytes())));
        assert_eq!(read(&path), written("line 4"));
        assert_eq!(writer.lost_in_all.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn with_nothing_to_keep_only_the_file_itself_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("k.log");
        let mut writer = writer(&path, 100, 0);
        (0..5).for_each(|n| writer.write(&batch(format!("line {n}").as_bytes())));
        assert_eq!(read(&path), written("line 4"));
        assert_eq!(std::fs::read_dir(folder.path()).expect("ours").count(), 1);
    }

    #[test]
    fn what_was_there_before_is_continued() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("k.log");
        writer(&path, 1000, 1).write(&batch(b"one"));
        writer(&path, 1000, 1).write(&batch(b"two"));
        assert_eq!(read(&path), written("one") + &written("two"));
    }

    #[test]
    fn a_missing_folder_costs_lines_and_the_file_says_how_many() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("not there yet").join("k.log");
        let mut writer = writer(&path, 1000, 1);
        (0..3).for_each(|_| writer.write(&batch(b"lost")));
        assert_eq!((writer.lost, writer.lost_in_all.load(Ordering::Relaxed)), (3, 3));
        std::fs::create_dir(path.parent().expect("it has one")).expect("ours");
        writer.failing = Some(Instant::now());
        writer.write(&batch(b"kept"));
        let text = read(&path);
        assert!(text.contains("keeperd: 3 lines could not be written here\n"), "{text}");
        assert!(text.ends_with(&written("kept")), "{text}");
        assert_eq!((writer.lost, writer.lost_in_all.load(Ordering::Relaxed)), (0, 3));
    }

    #[test]
    fn a_file_that_was_moved_away_is_begun_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("k.log");
        let mut writer = writer(&path, 1000, 1);
        writer.write(&batch(b"one"));
        std::fs::rename(&path, folder.path().join("elsewhere")).expect("ours");
        if let Some(open) = &mut writer.open {
            open.checked_at -= AGAIN;
        }
        writer.write(&batch(b"two"));
        assert_eq!(read(&path), written("two"));
    }

    #[test]
    fn neither_a_link_nor_a_pipe_is_written_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let (link, pipe, target) =
            (folder.path().join("link"), folder.path().join("pipe"), folder.path().join("target"));
        std::fs::write(&target, "precious").expect("ours");
        std::os::unix::fs::symlink(&target, &link).expect("ours");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("ours");
        for path in [link, pipe] {
            let mut writer = writer(&path, 1000, 1);
            writer.write(&batch(b"x"));
            assert_eq!(writer.lost, 1, "{path:?}");
        }
        assert_eq!(read(&target), "precious");
    }

    #[test]
    fn a_disk_that_takes_nothing_leaves_no_torn_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("k.log");
        let mut writer = writer(&path, 1000, 1);
        writer.write(&batch(b"one"));
        // Every write to this descriptor fails from now on, as on a full disk.
        if let Some(open) = &mut writer.open {
            open.file = File::open(&path).expect("readable");
        }
        writer.write(&batch(b"lost"));
        assert_eq!((writer.lost, read(&path)), (1, written("one")));
    }

    #[test]
    fn the_queue_is_bounded_and_flushed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("k.log");
        let output = FileOutput { path: path.clone(), max_size: 1 << 30, keep: 1 };
        let sink = FileSink::start("k".into(), output, Arc::default()).expect("a thread");
        let long = line(&vec![b'x'; 16 * 1024]);
        let taken = (0..10_000).filter(|_| sink.try_put(&long)).count();
        assert!(sink.waiting_bytes.load(Ordering::Relaxed) <= QUEUE_BYTES);
        while !sink.try_put(&line(b"the last")) {
            std::thread::yield_now();
        }
        sink.flush(Duration::from_secs(30));
        let text = read(&path);
        assert_eq!(text.lines().count(), taken + 1);
        assert!(text.ends_with(&written("the last")));
    }
}
