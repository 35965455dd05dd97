//! Processes as `/proc` shows them: who descends from whom, who carries the trial's marker, and making them go.

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};
use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

/// Set to the trial's id in the environment of every process it starts, and so of all their descendants.
pub const MARKER: &str = "KEEPERD_E2E";

#[derive(Clone, Debug)]
pub struct Proc {
    pub pid: i32,
    pub ppid: i32,
    pub zombie: bool,
    pub comm: String,
    pub cmdline: String,
}

impl Proc {
    fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (comm, rest) = (stat.split_once('(')?.1.rsplit_once(')')?.0, stat.rsplit_once(')')?.1);
        let mut fields = rest.split_whitespace();
        let state = fields.next()?;
        let ppid = fields.next()?.parse().ok()?;
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        Some(Self { pid, ppid, zombie: state == "Z", comm: comm.into(), cmdline: cmdline.trim_end().into() })
    }

    fn carries(&self, id: &str) -> bool {
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default();
        let wanted = format!("{MARKER}={id}");
        environment.split(|b| *b == 0).any(|entry| entry == wanted.as_bytes())
    }

    pub fn describe(&self) -> String {
        format!("pid {} (parent {}) {}: {}", self.pid, self.ppid, self.comm, self.cmdline)
    }
}

fn all() -> Vec<Proc> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter_map(Proc::read).collect()
}

/// Living processes below `root`.
pub fn descendants(root: i32) -> Vec<Proc> {
    let all = all();
    let mut below = BTreeSet::from([root]);
    loop {
        let before = below.len();
        below.extend(all.iter().filter(|p| below.contains(&p.ppid)).map(|p| p.pid).collect::<Vec<_>>());
        if below.len() == before {
            break;
        }
    }
    all.into_iter().filter(|p| p.pid != root && below.contains(&p.pid) && !p.zombie).collect()
}

pub fn children(parent: i32) -> Vec<Proc> {
    all().into_iter().filter(|p| p.ppid == parent && !p.zombie).collect()
}

/// Children of all threads of a process; quicker than a look at every process there is.
pub fn children_of(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|l| l.split_whitespace().filter_map(|w| w.parse().ok()).collect::<Vec<i32>>()).collect()
}

/// It is there, and no zombie.
pub fn lives(pid: i32) -> bool {
    Proc::read(pid).is_some_and(|p| !p.zombie)
}

/// A process has no handlers before it has installed them: a story that started one just now lets it get there.
pub fn grow_up(pid: i32) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !heeds_sigterm(pid) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Or is gone.
fn heeds_sigterm(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    status.contains("State:\tZ") || caught.is_none_or(|mask| mask >> (Signal::SIGTERM as i32 - 1) & 1 == 1)
}

/// Guards with a term, as quickly.
pub fn armed_guards_of(daemon: i32) -> Vec<i32> {
    let is_armed =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "keeperd-guard\n");
    children_of(daemon).into_iter().filter(is_armed).collect()
}

/// What a trial left: below it, as it is a subreaper, or marked, wherever it went.
pub fn remains(id: &str, except: &BTreeSet<i32>) -> Vec<Proc> {
    reap_orphans(except);
    let own = getpid().as_raw();
    let mut found = descendants(own);
    let known: BTreeSet<i32> = found.iter().map(|p| p.pid).collect();
    found.extend(marked(id, &known));
    found.retain(|p| p.pid != own && !except.contains(&p.pid));
    found
}

/// Whoever carries the marker; a process that hides its environment is not seen here, only as a descendant.
pub fn marked(id: &str, except: &BTreeSet<i32>) -> Vec<Proc> {
    all().into_iter().filter(|p| !p.zombie && !except.contains(&p.pid) && p.carries(id)).collect()
}

/// Zombies that were handed up to us. Those in `except` are somebody's `Child` and are waited for there.
fn reap_orphans(except: &BTreeSet<i32>) {
    let own = getpid().as_raw();
    for zombie in all().into_iter().filter(|p| p.ppid == own && p.zombie && !except.contains(&p.pid)) {
        waitpid(Pid::from_raw(zombie.pid), Some(WaitPidFlag::WNOHANG)).ok();
    }
}

/// Kills whatever remains, until nothing does. For the end of a trial, never part of one.
pub fn sweep(id: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        let found = remains(id, &BTreeSet::new());
        if found.is_empty() {
            return;
        }
        for p in found {
            kill(Pid::from_raw(p.pid), Signal::SIGKILL).ok();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Resident memory in KiB.
pub fn rss_kib(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
