//! One process per term that runs the keeper's child and ends it in time, whatever happens to the daemon.
//!
//! The guard is this binary, executed again under another name, with a socket to the daemon and nothing else. It may be started before
//! there is a term for it ([`Unarmed`]), so that a standby's child runs sooner. Once armed, it knows two
//! absolute deadlines on `CLOCK_BOOTTIME` and needs no frame to act on them: *silence is death*. The daemon prolongs them, starts
//! the child (again) by command, and learns from [`Event::TreeDead`] that nothing of the keeper lives any more.
//!
//! * `frame`: what they say to each other. `spec`: what is to be run.
//! * `daemon`: the daemon's handle. `process`: the guard's loop. `setup`: what it does to itself before.
//! * `spawn`: from fork to exec. `init`: between the two with `isolate = "pid"`. `tree`, `cgroup`: finding and killing everything. `sys`: the only unsafe code.

pub mod cgroup;
mod daemon;
mod frame;
mod init;
mod process;
mod setup;
mod spawn;
mod spec;
mod sys;
mod tree;

pub use crate::core::restart::Exit;
pub use daemon::{Guard, Launch, Lost, Newborn, OWN_EXECUTABLE, Output, Unarmed, Wiring};
pub use frame::{Ack, Command, Deadlines, Event, Report, Seq, Stage, Why};
pub use spec::{ChildSpec, LIMITS, Limit, limit_by_name};
pub use sys::become_realtime;
pub use tree::LastResort;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

const GUARD_TITLE: &str = "keeperd: guard ";
const FOREGROUND_TITLE: &str = "keeperd: run "; // of the guard, not of `keeperd run`
const ERRAND_TITLE: &str = "keeperd: errand ";
const RELEASER_TITLE: &str = "keeperd: releaser ";

/// What a guard is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Duty {
    /// A keeper's term: it must be on time whatever the host is going through.
    #[default]
    Term,
    /// A term whose child stands in the place of the daemon itself, `keeperd run`: in its session and process group, so that it has the
    /// terminal, and Ctrl-C and Ctrl-Z mean what they always do. The guard has a group of its own, which neither reaches.
    Foreground,
    /// One short command of the daemon itself ([`crate::errand`]). It stays in the daemon's session, where [`LastResort`] leaves it and
    /// all below it alone.
    Errand,
}

impl Duty {
    /// A lease depends on it.
    fn is_term(self) -> bool {
        match self {
            Duty::Term | Duty::Foreground => true,
            Duty::Errand => false,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Duty::Term => GUARD_TITLE,
            Duty::Foreground => FOREGROUND_TITLE,
            Duty::Errand => ERRAND_TITLE,
        }
    }
}

/// The first call in `main`, before arguments are parsed or a thread is started: plays the part that `argv[0]` names, and returns only
/// when it names none. `releaser` is run in a process of its own, with the bytes of [`Launch::releaser`] to read from; what it
/// returns is the exit code.
pub fn main_if_guard(releaser: fn(OwnedFd) -> i32) {
    let title = std::env::args_os().next().unwrap_or_default();
    let plays = |role: &str| title.as_bytes().starts_with(role.as_bytes());
    for duty in [Duty::Term, Duty::Foreground, Duty::Errand] {
        if plays(duty.title()) {
            std::process::exit(guard_main(duty));
        }
    }
    if plays(RELEASER_TITLE) {
        let _ = prctl::set_dumpable(false); // exec has made it readable again, and the bytes may hold a password
        setup::name_process("keeperd-release");
        std::process::exit(releaser(sys::inherited(3)));
    }
}

fn guard_main(duty: Duty) -> i32 {
    std::panic::set_hook(Box::new(|panic| last_cry(&format!("keeperd guard: {panic}\n"))));
    let guard = match process::Guard::arm(sys::inherited(0), duty) {
        Ok(Some(guard)) => guard,
        Ok(None) => return 0,
        Err(error) => {
            last_cry(&format!("keeperd guard: cannot be armed: {error}\n"));
            return 1;
        }
    };
    let ending = guard.run();
    match &ending.releaser {
        None => 0,
        Some(releaser) => {
            process::become_releaser(&ending, releaser, RELEASER_TITLE);
            1
        }
    }
}

/// Into the child's stderr, which is the only place there is; not if that would mean waiting for a reader.
fn last_cry(text: &str) {
    let stderr = std::io::stderr();
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut fds, PollTimeout::ZERO) == Ok(1) {
        let _ = (&stderr).write_all(text.as_bytes());
    }
}
