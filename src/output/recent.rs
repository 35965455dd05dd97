//! The last lines of a keeper, and those who read on.

use super::line::Line;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

/// Lines kept of each keeper, and bytes of memory they may take.
pub const LINES_KEPT: usize = 200;
const BYTES_KEPT: usize = 128 * 1024;
/// Bytes of memory that may wait for one follower.
const WAITING_MAX: usize = 1024 * 1024;
/// Handed to a follower at once.
const BATCH: usize = 256;

/// Lines with a bound on their memory; the oldest go first.
#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
}

impl Lines {
    /// The number of lines that had to go.
    fn push(&mut self, line: Arc<Line>, lines_max: usize, bytes_max: usize) -> u64 {
        self.bytes += line.weight();
        self.lines.push_back(line);
        let mut gone = 0;
        while (self.lines.len() > lines_max || self.bytes > bytes_max) && self.lines.len() > 1 {
            self.pop();
            gone += 1;
        }
        gone
    }

    fn pop(&mut self) -> Option<Arc<Line>> {
        let line = self.lines.pop_front()?;
        self.bytes -= line.weight();
        Some(line)
    }
}

/// What one keeper has written lately, on this host.
#[derive(Debug, Default)]
pub struct Recent {
    kept: Lines,
    followers: Vec<Weak<Follower>>,
}

impl Recent {
    pub fn push(&mut self, line: &Arc<Line>) {
        self.kept.push(Arc::clone(line), LINES_KEPT, BYTES_KEPT);
        self.followers.retain(|follower| match follower.upgrade() {
            Some(follower) => {
                follower.push(Arc::clone(line));
                true
            }
            None => false,
        });
    }

    /// Oldest first.
    pub fn lines(&self) -> impl Iterator<Item = &Arc<Line>> {
        self.kept.lines.iter()
    }

    /// One that hears the kept lines and then every new one, without a gap between.
    pub fn follow(&mut self) -> Arc<Follower> {
        let mut queue = Queue::default();
        for line in &self.kept.lines {
            queue.lines.push(Arc::clone(line), usize::MAX, WAITING_MAX);
        }
        let follower = Arc::new(Follower(Mutex::new(queue)));
        self.followers.retain(|follower| follower.strong_count() > 0);
        self.followers.push(Arc::downgrade(&follower));
        follower
    }
}

/// What a follower hears.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heard {
    Line(Arc<Line>),
    /// So many lines came while it did not read.
    Lost(u64),
}

#[derive(Debug, Default)]
struct Queue {
    lines: Lines,
    lost: u64,
    waker: Option<Waker>,
}

/// A reader of one keeper's lines. A slow one loses the oldest of those that wait for it, and is told how many.
#[derive(Debug)]
pub struct Follower(Mutex<Queue>);

impl Follower {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: Arc<Line>) {
        let mut queue = self.queue();
        let gone = queue.lines.push(line, usize::MAX, WAITING_MAX);
        queue.lost += gone;
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }

    /// Some of what there is, in order; never nothing.
    pub fn poll_heard(&self, cx: &mut Context<'_>) -> Poll<Vec<Heard>> {
        let mut queue = self.queue();
        let mut heard = Vec::new();
        if queue.lost > 0 {
            heard.push(Heard::Lost(std::mem::take(&mut queue.lost)));
        }
        while heard.len() < BATCH
            && let Some(line) = queue.lines.pop()
        {
            heard.push(Heard::Line(line));
        }
        if heard.is_empty() {
            queue.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(heard)
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::Stream;
    use super::*;
    use crate::core::lease::FencingToken;
    use crate::core::time::WallTime;

    fn line(n: usize, length: usize) -> Arc<Line> {
        let mut bytes = format!("{n} ").into_bytes();
        bytes.resize(length.max(bytes.len()), b'x');
        Arc::new(Line {
            at: WallTime::default(),
            token: FencingToken(1),
            stream: Stream::Stdout,
            bytes: bytes.into(),
            continues: false,
        })
    }

    fn number(line: &Line) -> usize {
        let text = String::from_utf8_lossy(&line.bytes);
        text.split(' ').next().and_then(|n| n.parse().ok()).expect("a numbered line")
    }

    fn heard(follower: &Follower) -> Vec<Heard> {
        let mut all = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(some) = follower.poll_heard(&mut cx) {
            all.extend(some);
        }
        all
    }

    #[test]
    fn the_last_lines_are_kept_within_both_bounds() {
        let mut recent = Recent::default();
        (0..1000).for_each(|n| recent.push(&line(n, 10)));
        assert_eq!(recent.lines().map(|l| number(l)).collect::<Vec<_>>(), (800..1000).collect::<Vec<_>>());
        (0..100).for_each(|n| recent.push(&line(n, 16 * 1024)));
        assert!(recent.kept.bytes <= BYTES_KEPT);
        assert_eq!(recent.lines().last().map(|l| number(l)), Some(99));
    }

    #[test]
    fn empty_lines_take_memory_too() {
        let mut queue = Queue::default();
        let empty = Arc::new(Line { bytes: Box::default(), ..(*line(0, 0)).clone() });
        for _ in 0..100_000 {
            queue.lost += queue.lines.push(Arc::clone(&empty), usize::MAX, WAITING_MAX);
        }
        assert!(queue.lines.lines.len() <= WAITING_MAX / empty.weight());
    }

    #[test]
    fn a_follower_hears_old_and_new_lines_once_and_in_order() {
        let mut recent = Recent::default();
        (0..10).for_each(|n| recent.push(&line(n, 10)));
        let follower = recent.follow();
        (10..20).for_each(|n| recent.push(&line(n, 10)));
        let numbers: Vec<usize> = heard(&follower)
            .iter()
            .map(|heard| match heard {
                Heard::Line(line) => number(line),
                Heard::Lost(_) => panic!("nothing was lost"),
            })
            .collect();
        assert_eq!(numbers, (0..20).collect::<Vec<_>>());
        assert_eq!(heard(&follower), []);
    }

    #[test]
    fn a_follower_that_does_not_read_loses_the_oldest_and_is_told() {
        let mut recent = Recent::default();
        let follower = recent.follow();
        (0..200).for_each(|n| recent.push(&line(n, 16 * 1024)));
        let heard = heard(&follower);
        let Some(Heard::Lost(lost)) = heard.first() else { panic!("not told: {:?}", heard.first()) };
        assert_eq!(*lost as usize + heard.len() - 1, 200);
        let Some(Heard::Line(last)) = heard.last() else { panic!("no line") };
        assert_eq!(number(last), 199);
    }

    #[test]
    fn a_follower_that_went_away_is_forgotten() {
        let mut recent = Recent::default();
        drop(recent.follow());
        let _stays = recent.follow();
        recent.push(&line(0, 0));
        assert_eq!(recent.followers.len(), 1);
    }
}
