//! A cgroup v2 leaf for each term: the kernel then knows the whole tree, however it forks, and kills it with one write.
//!
//! No controller is needed, so it also works in the v2 hierarchy of a hybrid host.

use super::sys::{self, Forked};
use crate::core::restart::Exit;
use nix::sys::uio::pread;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PREFIX: &str = "keeperd.";
/// Name that a living guard shows in /proc/PID/comm.
pub(super) const GUARD_COMM: &str = "keeperd-guard";
/// Before it has a term, and so a leaf.
pub(super) const RESERVE_COMM: &str = "keeperd-reserve";

/// The directory of this process's own cgroup in a mounted v2 hierarchy.
pub fn own() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mine = fs::read_to_string("/proc/self/cgroup").ok()?;
    locate(&mounts, &mine)
}

fn locate(mounts: &str, mine: &str) -> Option<PathBuf> {
    let mine = mine.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (fields, filesystem) = line.split_once(" - ")?;
        if filesystem.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = fields.split(' ').skip(3);
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        let below = Path::new(mine).strip_prefix(&root).ok()?;
        Some(Path::new(&point).join(below))
    })
}

/// mountinfo writes blanks and backslashes of paths in octal.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |done, (from, to)| done.replace(from, to))
}

/// Name and token make it unique per term, so that the next term need not wait for the last one's rmdir (R20); the pid tells a sweep
/// whose it was.
pub(super) fn leaf_path(own: &Path, keeper: &str, token: u64, guard: u32) -> PathBuf {
    own.join(format!("{PREFIX}{keeper}.{token}.{guard}"))
}

/// A leaf with everything opened that killing it takes: no path is walked when it counts.
#[derive(Debug)]
pub(super) struct Leaf {
    path: PathBuf,
    directory: File,
    procs: File,
    kill: File,
    events: File,
    births: bool,
}

impl Leaf {
    pub(super) fn create(path: PathBuf) -> io::Result<Leaf> {
        fs::create_dir(&path)?;
        Leaf::open(&path).inspect_err(|_| {
            let _ = fs::remove_dir(&path); // before Linux 5.14 there is no cgroup.kill: the walk does it alone
        })
    }

    fn open(path: &Path) -> io::Result<Leaf> {
        let write = |file: &str| OpenOptions::new().write(true).open(path.join(file));
        Ok(Leaf {
            directory: File::open(path)?,
            procs: write("cgroup.procs")?,
            kill: write("cgroup.kill")?,
            events: File::open(path.join("cgroup.events"))?,
            path: path.to_owned(),
            births: false,
        })
    }

    /// For a child to be born in it, where that works.
    pub(super) fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        self.births.then(|| self.directory.as_fd())
    }

    /// Tries it once. Seen on Linux 6.18: after a write to a cgroup's cgroup.kill, every child born into it from another cgroup dies at
    /// once; it seems to compare kill counts of the two. So it is tried first, and not done any more once this one has been killed.
    pub(super) fn try_birth(&mut self) {
        self.births = match sys::fork(Some(self.directory.as_fd())) {
            Ok(Forked::Child { placed }) => sys::exit_now(i32::from(!placed)),
            Ok(Forked::Parent { child }) => {
                sys::wait(child).is_ok_and(|end| end.is_some_and(|(_, e)| e == Exit::Code(0)))
            }
            Err(_) => false,
        };
    }

    /// Writing "0" here moves the writer in. Opened by the guard, so that it also works after a change of user.
    pub(super) fn procs(&self) -> BorrowedFd<'_> {
        self.procs.as_fd()
    }

    pub(super) fn kill(&mut self) {
        self.births = false;
        let _ = nix::unistd::write(&self.kill, b"1"); // whether it worked is seen by `populated`
    }

    pub(super) fn populated(&self) -> bool {
        let mut text = [0; 128];
        let length = pread(&self.events, &mut text, 0).unwrap_or(0); // ENODEV: somebody removed it, so it was empty
        is_populated(&text[..length])
    }

    pub(super) fn remove(self) {
        let path = self.path.clone();
        drop(self);
        remove_tree(&path);
    }
}

fn is_populated(events: &[u8]) -> bool {
    events.windows(11).any(|w| w == b"populated 1")
}

/// A millisecond apart.
const REMOVE_TRIES: u32 = 20;

/// Removes an empty cgroup and those its processes made in it. The kernel says EBUSY until the last exit is fully done.
fn remove_tree(path: &Path) {
    for child in fs::read_dir(path).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&child.path());
        }
    }
    for _ in 0..REMOVE_TRIES {
        match fs::remove_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(Duration::from_millis(1)),
            Ok(()) | Err(_) => return,
        }
    }
}

/// Kills what is in a leaf; true when nothing is left, as the kernel says. Does not wait.
pub(super) fn empty_leaf(path: &Path) -> bool {
    match fs::read(path.join("cgroup.events")) {
        Ok(events) if is_populated(&events) => {
            kill_aside(path.join("cgroup.kill"));
            false
        }
        Ok(_) => true,
        // Out of descriptors, for one: that proves nothing.
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Removes an empty leaf, in a moment.
pub(super) fn remove_leaf(path: PathBuf) {
    aside(move || remove_tree(&path)); // at the latest the next daemon does it
}

/// Writes to cgroup.kill, one at a time; the pass that comes after writes again.
fn kill_aside(file: PathBuf) {
    static UNDER_WAY: AtomicBool = AtomicBool::new(false);
    if UNDER_WAY.swap(true, Ordering::AcqRel) {
        return;
    }
    let started = aside(move || {
        let _ = fs::write(file, "1"); // whether it worked is seen by the next pass
        UNDER_WAY.store(false, Ordering::Release);
    });
    if !started {
        UNDER_WAY.store(false, Ordering::Release);
    }
}

/// On a thread of its own: the kernel's cgroup lock may be held for seconds, and the caller is the thread that keeps all leases.
fn aside(work: impl FnOnce() + Send + 'static) -> bool {
    std::thread::Builder::new().name("cgroup".into()).spawn(work).is_ok()
}

/// A leaf that an earlier guard left behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leftover {
    pub path: PathBuf,
    /// Nothing lives in it any more.
    pub emptied: bool,
}

/// To be called at the daemon's start, before it competes (R3): kills what lives in leaves whose guard is gone, and removes them.
/// Waits until they are empty, at most `patience`.
pub fn sweep_leftovers(patience: Duration) -> Vec<Leftover> {
    own().map(|own| sweep(&own, patience)).unwrap_or_default()
}

fn sweep(own: &Path, patience: Duration) -> Vec<Leftover> {
    let deadline = crate::clock::boot() + patience;
    let mut found: Vec<Leftover> = fs::read_dir(own)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_abandoned))
        .map(|entry| Leftover { path: entry.path(), emptied: false })
        .collect();
    loop {
        for leftover in &mut found {
            if !leftover.emptied && empty_leaf(&leftover.path) {
                leftover.emptied = true;
                remove_tree(&leftover.path);
            }
        }
        if found.iter().all(|leftover| leftover.emptied) || crate::clock::boot() >= deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// One of ours, whose guard no longer lives. A number alone proves nothing: it may belong to another process by now.
fn is_abandoned(name: &str) -> bool {
    let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.rsplit('.').next()) else { return false };
    let Ok(pid) = pid.parse::<u32>() else { return false };
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim_end() != GUARD_COMM
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_found_below_the_root_of_the_mount() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n41 31 0:41 / /sys/fs/cgroup/unified rw shared:3 - cgroup2 cgroup2 rw";
        let mine = "3:cpuset:/x\n0::/system.slice/keeperd.service\n";
        let at = PathBuf::from("/sys/fs/cgroup/unified/system.slice/keeperd.service");
        assert_eq!(locate(hybrid, mine), Some(at));
        let bound = "41 31 0:41 /system.slice /my\\040mount rw - cgroup2 cgroup2 rw";
        assert_eq!(locate(bound, mine), Some(PathBuf::from("/my mount/keeperd.service")));
        let elsewhere = "41 31 0:41 /user.slice /mnt rw - cgroup2 cgroup2 rw";
        assert_eq!(locate(elsewhere, mine), None);
        assert_eq!(locate(hybrid, "3:cpuset:/x\n"), None);
    }

    #[test]
    fn only_leaves_without_a_living_guard_are_abandoned() {
        assert!(is_abandoned(&format!("keeperd.oracle.v2.17.{}", i32::MAX)));
        assert!(is_abandoned(&format!("keeperd.oracle.17.{}", std::process::id()))); // alive, but no guard
        assert!(!is_abandoned("keeperd.oracle"));
        assert!(!is_abandoned("other.oracle.17.1"));
    }
}
