//! Each host of a trial has a control group of its own, as it would have under systemd: what one daemon does with the
//! groups below it must not reach another. Where no group can be made, all daemons share the runner's.

use nix::unistd::getpid;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Path of a process in the unified hierarchy.
pub fn of(pid: i32) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    groups.lines().find_map(|l| l.strip_prefix("0::")).map(str::to_owned)
}

fn mount() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find(|l| l.contains(" - cgroup2 "))?.split(' ').nth(4).map(str::to_owned)
}

/// The folder of a path as `of` gives it.
pub fn folder(path: &str) -> Option<PathBuf> {
    Some(PathBuf::from(format!("{}{path}", mount()?)))
}

#[derive(Debug)]
pub struct Groups {
    own: PathBuf,
    /// Of the trial; a folder for each host below.
    root: PathBuf,
}

impl Groups {
    /// `None` where this user may not make groups.
    pub fn of_trial(id: &str) -> Option<Self> {
        let groups = Self::plan(id)?;
        fs::create_dir(&groups.root).ok()?;
        // Making a folder is not enough: moving into it must be allowed too.
        let usable = groups.inside("try", || ()).is_some();
        if !usable {
            groups.remove();
        }
        usable.then_some(groups)
    }

    fn plan(id: &str) -> Option<Self> {
        let own = folder(&of(getpid().as_raw())?)?;
        let root = own.join(format!("ke2e-{id}"));
        Some(Self { own, root })
    }

    /// For a trial that is not played to its end.
    pub fn remove_of(id: &str) {
        if let Some(groups) = Self::plan(id) {
            groups.remove();
        }
    }

    /// Does something, such as starting a process, as a member of a host's group.
    pub fn inside<T>(&self, host: &str, act: impl FnOnce() -> T) -> Option<T> {
        let group = self.root.join(host);
        fs::create_dir_all(&group).ok()?;
        fs::write(group.join("cgroup.procs"), "0").ok()?;
        let done = act();
        fs::write(self.own.join("cgroup.procs"), "0").ok();
        Some(done)
    }

    /// Members of all groups of the trial.
    pub fn members(&self) -> Vec<i32> {
        members_below(&self.root)
    }

    /// Kills what is left and removes the folders.
    pub fn remove(&self) {
        fs::write(self.root.join("cgroup.kill"), "1").ok();
        let deadline = Instant::now() + Duration::from_secs(1);
        while self.root.exists() && Instant::now() < deadline {
            remove_below(&self.root);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn members_below(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<i32> = text.lines().filter_map(|l| l.parse().ok()).collect();
    folders_in(group).iter().for_each(|f| found.extend(members_below(f)));
    found
}

fn remove_below(group: &Path) {
    folders_in(group).iter().for_each(|f| remove_below(f));
    fs::remove_dir(group).ok();
}

fn folders_in(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.is_dir()).collect()
}
