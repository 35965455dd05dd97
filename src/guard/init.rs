//! The first process of a keeper's PID namespace (`isolate = "pid"`). When it dies, for whatever reason, the kernel kills everything
//! in the namespace before it lets go of it; and it dies with the guard.
//!
//! It starts the program, hands on the signals it is sent, reaps, and ends with the program. It stays what the daemon is (root, as a
//! rule): nobody inside can kill it or take its place.

use super::cgroup::Leaf;
use super::frame::Stage;
use super::setup::name_process;
use super::spawn::{self, Failure, Job, Start, Word, at};
use super::sys::{self, Forked};
use crate::core::restart::Exit;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, readlinkat};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, setsid, write};
use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// The guard's pipes, this side.
#[derive(Debug)]
pub(super) struct Pipes {
    /// As without a namespace, but that the program's pid on the host comes first.
    pub exec: OwnedFd,
    /// How the program ended: an init cannot end by a signal as it did.
    pub verdict: OwnedFd,
}

/// Returns only when nothing was started.
pub(super) fn run(
    job: &Job,
    start: &Start<'_>,
    placed: bool,
    pipes: &mut Option<Pipes>,
) -> Result<Infallible, Failure> {
    let no_pipes = at(Stage::Fork)(Errno::EBADF);
    let exec = &pipes.as_ref().ok_or(no_pipes)?.exec;
    setsid().map_err(at(Stage::Session))?;
    if let Some(leaf) = start.leaf.filter(|_| !placed) {
        let _ = write(Leaf::procs(leaf), b"0");
    }
    name_process("keeperd-init");
    die_with_the_guard(exec)?;
    let host_proc = own_proc()?;
    let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC).map_err(at(Stage::Signals))?;
    let program = match sys::fork(None).map_err(at(Stage::Fork))? {
        Forked::Parent { child } => child,
        Forked::Child { .. } => {
            say_pid(exec, &host_proc);
            return spawn::run(job, &Start { parent: Pid::from_raw(1), leaf: None, ..*start }, true);
        }
    };
    let Pipes { exec, verdict } = pipes.take().ok_or(no_pipes)?;
    drop(exec); // its end tells the guard that the program runs
    let lock = start.lock.map_or(0, |lock| lock.as_raw_fd());
    sys::close_all_but(&mut [verdict.as_raw_fd(), signals.as_raw_fd(), lock]);
    tend(program, &signals, &verdict)
}

/// The parent of a namespace's first process is 0 inside, so a guard that died before the signal was set shows only in its pipe.
fn die_with_the_guard(exec: &OwnedFd) -> Result<(), Failure> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(at(Stage::ParentDeath))?;
    let mut pipe = [PollFd::new(exec.as_fd(), PollFlags::POLLOUT)];
    poll(&mut pipe, PollTimeout::ZERO).map_err(at(Stage::ParentDeath))?;
    match pipe[0].revents() {
        Some(seen) if !seen.contains(PollFlags::POLLERR) => Ok(()),
        Some(_) | None => Err(at(Stage::ParentDeath)(Errno::ESRCH)),
    }
}

/// Mounts a /proc that shows the namespace, for nobody but the namespace; returns the host's. What is mounted on the host later is
/// seen here too.
fn own_proc() -> Result<OwnedFd, Failure> {
    let path = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let host = open("/proc", path, Mode::empty()).map_err(at(Stage::Proc))?;
    let (no_text, no_flags) = (None::<&str>, MsFlags::empty());
    mount(no_text, "/", no_text, no_flags | MsFlags::MS_REC | MsFlags::MS_SLAVE, no_text)
        .map_err(at(Stage::Proc))?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), plain, no_text).map_err(at(Stage::Proc))?;
    Ok(host)
}

/// In the program's process: the host's /proc calls it by the number that people on the host know.
fn say_pid(exec: &OwnedFd, host_proc: &OwnedFd) {
    let own = readlinkat(host_proc, "self").ok().and_then(|name| name.to_str()?.parse().ok());
    if let Some(pid) = own {
        let _ = write(exec, &Word::Born(pid).to_bytes());
    }
}

fn tend(program: Pid, signals: &SignalFd, verdict: &OwnedFd) -> ! {
    loop {
        let signal = signals.read_signal().ok().flatten().map_or(0, |info| info.ssi_signo.cast_signed());
        while let Ok(Some((pid, exit))) = sys::reap(-1) {
            if pid == program.as_raw() {
                let _ = write(verdict, &Word::Ended(exit).to_bytes());
                sys::exit_now(match exit {
                    Exit::Code(code) => code,
                    Exit::Signal(signal) => 128 + signal,
                });
            }
        }
        let hands_on = signal != 0 && signal != libc::SIGCHLD;
        if hands_on && sys::kill(-program.as_raw(), signal) == Err(Errno::ESRCH) {
            let _ = sys::kill(program.as_raw(), signal); // it has not reached its setsid
        }
    }
}
