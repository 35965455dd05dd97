//! Finding and killing every descendant without a cgroup, and next to one.
//!
//! The kernel's lists of children are only a snapshot, so one pass proves nothing; passes are repeated until the kernel says that
//! no child is left. They converge because a process with SIGKILL pending cannot fork any more, and because orphans come to us.

use super::daemon::Lost;
use super::{cgroup, sys};
use crate::clock;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getpid, getsid, read};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Longest time between seeing a deeper descendant and killing it. Its parent, dying, may reap it and free its number; nobody gets
/// through the whole range of numbers in that time. Direct children need no such bound: only we reap them.
const FRESH: Duration = Duration::from_millis(50);

/// Buffers of a walk, allocated once.
pub(super) struct Walk {
    /// Processes whose children are still to be looked at. What does not fit is found in the next pass.
    work: Vec<i32>,
    entries: Box<[u8; 4096]>,
    text: Box<[u8; 4096]>,
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk").finish_non_exhaustive()
    }
}

impl Walk {
    pub(super) fn new() -> Self {
        Walk { work: Vec::with_capacity(1024), entries: Box::new([0; 4096]), text: Box::new([0; 4096]) }
    }

    /// Whether the kernel lists children at all.
    pub(super) fn works(&mut self) -> bool {
        each_child(getpid().as_raw(), &mut self.entries, &mut self.text, |_| {}).is_ok()
    }

    /// SIGKILL to every descendant that can be seen now, except those below a direct child that `spares`. Returns how many direct
    /// children were seen. Parents first: a child seen later cannot have had children since.
    pub(super) fn kill_all(&mut self, mut spares: impl FnMut(i32) -> bool) -> usize {
        let began = clock::boot();
        let Walk { work, entries, text } = self;
        let push = |work: &mut Vec<i32>, pid| {
            if work.len() < work.capacity() {
                work.push(pid);
            }
        };
        work.clear();
        let mut seen = 0;
        let listed = each_child(getpid().as_raw(), entries, text, |child| {
            if !spares(child) {
                seen += 1;
                let _ = sys::kill(child, libc::SIGKILL); // ours to reap, so the number is still its own
                push(work, child);
            }
        });
        let mut next = 0;
        while let Some(&parent) = work.get(next) {
            next += 1;
            // A parent that is gone by now has handed its children to us.
            let _ = each_child(parent, entries, text, |child| {
                if kill_child_of(parent, child, began).is_ok() {
                    push(work, child);
                }
            });
        }
        if listed.is_err() { seen.max(1) } else { seen }
    }
}

/// Kills `child` if it is a child of `parent`: the open directory stays with the process it was opened for, not with the number.
fn kill_child_of(parent: i32, child: i32, began: crate::core::time::Instant) -> nix::Result<()> {
    let process = open_directory(&Path::new(format_args!("/proc/{child}")))?;
    let stat = openat(&process, "stat", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = [0; 512];
    let length = read(&stat, &mut text)?;
    if parent_in_stat(&text[..length]) != Some(parent) || clock::boot().since(began) > FRESH {
        return Err(Errno::ESRCH);
    }
    sys::kill_exactly(process, libc::SIGKILL)
}

/// The fourth field; the second is a name in brackets that may hold anything.
fn parent_in_stat(stat: &[u8]) -> Option<i32> {
    let after_name = stat.iter().rposition(|b| *b == b')')? + 1;
    let mut fields = stat[after_name..].split(|b| *b == b' ').filter(|field| !field.is_empty());
    std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()
}

/// Calls `visit` with the pid of each child of each thread of `parent`.
///
/// # Errors
/// Also when a thread ended meanwhile, after all others were visited: its children may have gone to one that was listed before.
fn each_child(
    parent: i32,
    entries: &mut [u8; 4096],
    text: &mut [u8; 4096],
    mut visit: impl FnMut(i32),
) -> nix::Result<()> {
    let tasks = open_directory(&Path::new(format_args!("/proc/{parent}/task")))?;
    let mut complete = Ok(());
    loop {
        let length = sys::directory_entries(&tasks, entries)?;
        if length == 0 {
            return complete;
        }
        let mut rest = &entries[..length];
        // struct linux_dirent64: inode 8, offset 8, record length 2, type 1, then the name with a NUL
        while let [_, .., _] = rest {
            let record = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
            let name = rest[19..record].split(|b| *b == 0).next().unwrap_or_default();
            let thread = std::str::from_utf8(name).ok().and_then(|n| n.parse::<i32>().ok());
            let listed = thread.map_or(Ok(()), |thread| children_of_thread(&tasks, thread, text, &mut visit));
            complete = complete.and(listed);
            rest = &rest[record..];
        }
    }
}

fn children_of_thread(
    tasks: &OwnedFd,
    thread: i32,
    text: &mut [u8; 4096],
    visit: &mut impl FnMut(i32),
) -> nix::Result<()> {
    let path = Path::new(format_args!("{thread}/children"));
    let list = openat(tasks, path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut number = 0; // survives a border between two reads; every number is followed by a blank
    loop {
        let length = read(&list, text)?;
        if length == 0 {
            return Ok(());
        }
        for byte in &text[..length] {
            if byte.is_ascii_digit() {
                number = number * 10 + i32::from(byte - b'0');
            } else if number != 0 {
                visit(std::mem::take(&mut number));
            }
        }
    }
}

fn open_directory(path: &Path) -> nix::Result<OwnedFd> {
    open(path.as_str(), OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// A short path on the stack: the guard does not allocate once it is armed.
struct Path {
    bytes: [u8; 40],
    length: usize,
}

impl Path {
    fn new(text: std::fmt::Arguments<'_>) -> Self {
        let mut path = Path { bytes: [0; 40], length: 0 };
        path.write_fmt(text).expect("two pids and some words fit into 40 bytes");
        path
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).expect("written from strings")
    }
}

impl Write for Path {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.length + text.len();
        self.bytes.get_mut(self.length..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

/// The daemon as subreaper of last resort (R3): what a guard leaves behind when it is killed comes to the daemon, which kills it
/// here. PDEATHSIG has reached the main process by then, but nothing else.
#[derive(Debug)]
pub struct LastResort {
    walk: Walk,
    /// Whose children are not ours to kill.
    spared: Option<Pid>,
}

impl LastResort {
    /// Makes this process a subreaper. To be called at the daemon's start, before the first guard.
    pub fn install() -> io::Result<Self> {
        nix::sys::prctl::set_child_subreaper(true)?;
        Ok(LastResort { walk: Walk::new(), spared: Some(getsid(None)?) })
    }

    /// As [`LastResort::install`] for `keeperd run`, whose child is in its own session ([`super::Duty::Foreground`]) and which does
    /// nothing else: every child that is not a guard is an orphan.
    pub fn install_in_front() -> io::Result<Self> {
        Ok(LastResort { spared: None, ..LastResort::install()? })
    }

    /// One pass that does not wait: kills and reaps what a lost guard left. True when the proof is complete.
    ///
    /// `guards` are the pids of all guards that are not lost. Children in the daemon's own session (guards of errands) are never
    /// touched, nor is what is below them: no process of a keeper can be in it. Other children that make a session of their own must be named in `guards`.
    pub fn pass(&mut self, lost: &Lost, guards: &BTreeSet<u32>) -> bool {
        assert!(
            !guards.contains(&lost.pid),
            "a lost guard is no longer known, or its tree would be taken for a living one"
        );
        // Twice, because a list that changes while it is read may omit an entry.
        let none_left = self.kill_strangers(guards) == 0 && self.kill_strangers(guards) == 0;
        let proven = lost.leaf.as_deref().is_none_or(cgroup::empty_leaf) && none_left;
        if let Some(leaf) = lost.leaf.clone().filter(|_| proven) {
            cgroup::remove_leaf(leaf);
        }
        proven
    }

    fn kill_strangers(&mut self, guards: &BTreeSet<u32>) -> usize {
        let spared = self.spared;
        let seen = self.walk.kill_all(|child| {
            let known = u32::try_from(child).is_ok_and(|pid| guards.contains(&pid));
            known || spared.is_some_and(|own| getsid(Some(Pid::from_raw(child))) == Ok(own))
        });
        for at in 0..self.walk.work.len().min(seen) {
            // Deeper ones are not our children: ECHILD. Never waitpid(-1), which would steal the statuses tokio waits for.
            let _ = sys::reap(self.walk.work[at]);
        }
        seen
    }
}

/// SIGKILL to the guard behind a pidfd; nothing happens when it is dead already.
pub(super) fn kill_guard(process: impl AsFd) {
    let _ = sys::kill_exactly(process, libc::SIGKILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent_in_stat(b"17 (a) b) S 4 17 17 0"), Some(4));
        assert_eq!(parent_in_stat(b"17 (node) R 1"), Some(1));
        assert_eq!(parent_in_stat(b"17 (no"), None);
    }

    #[test]
    fn children_are_listed_across_reads() {
        let mut children: Vec<_> = (0..3)
            .map(|_| std::process::Command::new("sleep").arg("60").spawn().expect("sleep is everywhere"))
            .collect();
        let mut walk = Walk::new();
        let mut seen = BTreeSet::new();
        let me = getpid().as_raw();
        // Other tests' threads come and go; a list is complete when none did.
        while each_child(me, &mut walk.entries, &mut walk.text, |pid| {
            seen.insert(pid.cast_unsigned());
        })
        .is_err()
        {}
        for child in &mut children {
            assert!(seen.contains(&child.id()));
            child.kill().expect("it is ours");
            child.wait().expect("it is ours");
        }
    }
}
