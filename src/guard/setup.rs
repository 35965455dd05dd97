//! What the guard does to itself, so that it is on time on a host in trouble. Each is best effort and reported.

use super::Duty;
use super::frame::Report;
use super::{cgroup, sys};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::prctl;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpgrp, setpgid, setsid};
use std::ffi::CString;
use std::fs;

/// Almost never chosen by the out-of-memory killer: the guard is small, and the child is what eats.
const OOM_SCORE: &str = "-900";

/// What the guard changed for itself and the child gets back.
#[derive(Debug)]
pub(super) struct Inherited {
    pub oom_score: Option<String>,
    pub nice: i32,
    /// Where the child belongs if it does not lead a session of its own.
    pub foreground: Option<Foreground>,
}

/// What a child in the daemon's own place keeps of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Foreground {
    pub group: Pid,
    /// Bit n − 1 for signal n: those that were ignored, as by `nohup` or a shell's `&`, and stay so.
    pub ignored: u64,
}

impl Foreground {
    fn inherited() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        // The Rust runtime ignores SIGPIPE on its own account.
        Foreground { group: getpgrp(), ignored: ignored & !(1 << (libc::SIGPIPE - 1)) }
    }
}

/// Before the first frame is read. A guard that can neither take signals by descriptor nor adopt orphans is of no use.
pub(super) fn harden(duty: Duty) -> nix::Result<(SignalFd, Inherited, Report)> {
    // The daemon's threads run with everything blocked and the mask is inherited, so that Ctrl-C cannot hit a newborn guard.
    SigSet::all().thread_set_mask()?;
    let _ = sys::close_from(3); // everything of the daemon is close-on-exec: a belt
    let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let foreground = (duty == Duty::Foreground).then(Foreground::inherited);
    let _ = match duty {
        Duty::Term => setsid().map(drop), // fails only when it leads a session already
        Duty::Foreground | Duty::Errand => setpgid(Pid::from_raw(0), Pid::from_raw(0)),
    };
    name_process(cgroup::RESERVE_COMM);
    prctl::set_child_subreaper(true)?;
    // Before dumpable: the file belongs to root afterwards.
    let (oom_score, oom) = if duty.is_term() { protect_from_oom() } else { (None, false) };
    let inherited = Inherited { oom_score, nice: sys::nice(), foreground };
    let undumpable = prctl::set_dumpable(false).is_ok();
    let realtime = duty.is_term() && sys::become_realtime().is_ok();
    Ok((signals, inherited, Report { realtime, oom, subreaper: true, undumpable, ..Report::default() }))
}

pub(super) fn name_process(name: &str) {
    let name = CString::new(name).expect("our names have no NUL");
    let _ = prctl::set_name(&name);
}

fn protect_from_oom() -> (Option<String>, bool) {
    let file = "/proc/self/oom_score_adj";
    let before = fs::read_to_string(file).ok().map(|text| text.trim_end().to_owned());
    let done = fs::write(file, OOM_SCORE).is_ok();
    (before.filter(|_| done), done)
}

/// After everything is allocated. On fault, because locking the whole binary at once costs each guard a private copy of pages it never
/// uses: 523 KiB PSS instead of 225, of fifty. The pages that killing takes are touched by a rehearsal instead.
pub(super) fn lock_memory() -> bool {
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault).is_ok()
}
