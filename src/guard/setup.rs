//! What the guard does to itself, so that it is on time on a host in trouble. Each is best effort and reported.

use super::Duty;
use super::frame::Report;
use super::{cgroup, sys};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::prctl;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, setpgid, setsid};
use std::ffi::CString;
use std::fs;

/// Almost never chosen by the out-of-memory killer: the guard is small, and the child is what eats.
const OOM_SCORE: &str = "-900";

/// What the guard changed for itself and the child gets back.
#[derive(Debug)]
pub(super) struct Inherited {
    pub oom_score: Option<String>,
    pub nice: i32,
}

/// Before the first frame is read. A guard that can neither take signals by descriptor nor adopt orphans is of no use.
pub(super) fn harden(duty: Duty) -> nix::Result<(SignalFd, Inherited, Report)> {
    // The daemon's threads run with everything blocked and the mask is inherited, so that Ctrl-C cannot hit a newborn guard.
    SigSet::all().thread_set_mask()?;
    let _ = sys::close_from(3); // everything of the daemon is close-on-exec: a belt
    let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let _ = match duty {
        Duty::Term => setsid().map(drop), // fails only when it leads a session already
        Duty::Errand => setpgid(Pid::from_raw(0), Pid::from_raw(0)),
    };
    name_process(cgroup::GUARD_COMM);
    prctl::set_child_subreaper(true)?;
    let (oom_score, oom) = match duty {
        Duty::Term => protect_from_oom(), // before dumpable: the file belongs to root afterwards
        Duty::Errand => (None, false),
    };
    let inherited = Inherited { oom_score, nice: sys::nice() };
    let undumpable = prctl::set_dumpable(false).is_ok();
    let realtime = duty == Duty::Term && sys::become_realtime().is_ok();
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
