//! The system calls that have no safe wrapper: the only unsafe code of the crate.
#![allow(unsafe_code)]

use crate::core::restart::Exit;
use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which side of a fork this is.
#[derive(Debug)]
pub(super) enum Forked {
    Parent {
        child: Pid,
    },
    Child {
        /// It was born in the cgroup asked for.
        placed: bool,
    },
}

/// Forks, into a cgroup if the kernel can (5.7): moving a living process there waits for all processors, 4 to 25 ms.
///
/// # Panics
/// When another thread exists: its locks would stay locked for ever in the child.
pub(super) fn fork(cgroup: Option<BorrowedFd<'_>>) -> nix::Result<Forked> {
    assert_single_threaded()?;
    if let Some(Ok(forked)) = cgroup.map(|cgroup| clone3(0, Some(cgroup))) {
        return Ok(forked);
    }
    // SAFETY: the assertion above; with one thread the child is a complete copy, and may allocate.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Forked::Parent { child }),
        ForkResult::Child => Ok(Forked::Child { placed: false }),
    }
}

/// Forks the first process of a new PID namespace, with mounts of its own; its parent there is 0. Panics as [`fork`] does.
pub(super) fn fork_namespace(cgroup: Option<BorrowedFd<'_>>) -> nix::Result<Forked> {
    assert_single_threaded()?;
    let namespaces = (libc::CLONE_NEWPID | libc::CLONE_NEWNS).cast_unsigned().into();
    match cgroup.map(|cgroup| clone3(namespaces, Some(cgroup))) {
        Some(Ok(forked)) => Ok(forked),
        Some(Err(_)) | None => clone3(namespaces, None),
    }
}

fn assert_single_threaded() -> nix::Result<()> {
    let tasks = nix::sys::stat::stat("/proc/self/task")?;
    assert_eq!(tasks.st_nlink, 3, "only a single-threaded process may fork and go on running Rust");
    Ok(())
}

/// The constant of the libc crate is an int, in which this bit has no room.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> nix::Result<Forked> {
    // SAFETY: all zeros is a valid value: every field is an integer.
    let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
    how.flags = flags;
    how.exit_signal = libc::SIGCHLD.cast_unsigned().into();
    if let Some(cgroup) = cgroup {
        how.flags |= CLONE_INTO_CGROUP;
        how.cgroup = cgroup.as_raw_fd().cast_unsigned().into();
    }
    // SAFETY: no memory is shared, so this is a fork that the C library does not know of. It would have to know if there were
    // other threads, or if the child made some; it only makes system calls and allocates until it executes or exits.
    let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone3, &raw const how, size_of_val(&how)) })?;
    Ok(match i32::try_from(pid).expect("a pid is an int") {
        0 => Forked::Child { placed: cgroup.is_some() },
        child => Forked::Parent { child: Pid::from_raw(child) },
    })
}

/// Ends the process at once: no destructor of the parent's state may run in a forked child.
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes any number and touches no memory.
    unsafe { libc::_exit(code) }
}

/// The descriptor a process was started with. To be called once for each number.
pub(super) fn inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller names a descriptor that its parent put there and that nothing else in this process owns. Were it closed,
    // each use would fail with EBADF; nothing is opened before.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Takes possession of a descriptor that has just come by SCM_RIGHTS.
pub(super) fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed it for this process, and `recvmsg` handed out the number once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Makes `fd` known under the number `at` also after exec, whatever was there before.
pub(super) fn place(fd: BorrowedFd<'_>, at: RawFd) -> nix::Result<()> {
    if fd.as_raw_fd() == at {
        return nix::fcntl::fcntl(fd, nix::fcntl::F_SETFD(nix::fcntl::FdFlag::empty())).map(drop);
    }
    // SAFETY: plain descriptor numbers. What `at` was before is only replaced immediately before an exec, when no owner looks at it again.
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), at) }).map(drop)
}

/// Closes every descriptor from `first` on.
pub(super) fn close_from(first: u32) -> nix::Result<()> {
    // SAFETY: called before this process has opened anything itself, so no owner is left with a dead number.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Closes every descriptor from 3 on that is not `kept`, as far as the kernel can (5.9).
///
/// For a forked process that ends without looking back: whoever owns them here must neither be used nor dropped any more.
pub(super) fn close_all_but(kept: &mut [RawFd]) {
    kept.sort_unstable();
    let mut first = 3;
    let ends = kept.iter().map(|fd| fd.cast_unsigned()).chain([u32::MAX]);
    for end in ends.filter(|end| *end >= 3) {
        if end > first {
            // SAFETY: the caller promises that no owner of these numbers acts again.
            unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) };
        }
        first = end.saturating_add(1);
    }
}

/// Marks every descriptor from `first` on to be closed at exec.
pub(super) fn cloexec_from(first: u32) -> nix::Result<()> {
    // SAFETY: only sets a flag on descriptors.
    let r = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(r).map(drop)
}

/// Directory entries as the kernel writes them; 0 at the end.
pub(super) fn directory_entries(directory: &OwnedFd, buffer: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: the pointer and length are those of a live, exclusively borrowed buffer.
    let r = unsafe {
        libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
    };
    Errno::result(r).map(|n| usize::try_from(n).expect("errors were taken out before"))
}

/// Puts the calling thread into the lowest real-time class, so that busy programs do not keep it waiting. Threads and processes it
/// starts are normal ones; the kernel leaves 5 % of the processor to the others.
///
/// # Errors
/// EPERM without CAP_SYS_NICE or a limit RTPRIO of 1.
pub fn become_realtime() -> nix::Result<()> {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: a valid pointer to a parameter that lives for the call.
    let r =
        unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const lowest) };
    Errno::result(r).map(drop)
}

pub(super) fn nice() -> i32 {
    // SAFETY: no pointer. −1 may be a value or an error; this call cannot fail for the own process.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

pub(super) fn set_nice(value: i32) -> nix::Result<()> {
    // SAFETY: no pointer.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) }).map(drop)
}

/// `kill(2)`, with numbers, because nix has no name for real-time signals.
pub(super) fn kill(target: i32, signal: i32) -> nix::Result<()> {
    assert!(target != 0 && target != -1, "neither our own group nor everything is ever meant");
    // SAFETY: no pointer.
    Errno::result(unsafe { libc::kill(target, signal) }).map(drop)
}

/// Signals the process behind a pidfd, or behind an open directory /proc/PID; never one that got its number later.
pub(super) fn kill_exactly(process: impl AsFd, signal: i32) -> nix::Result<()> {
    let fd = process.as_fd().as_raw_fd();
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means: as kill(2) would fill it.
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, no_info, 0) }).map(drop)
}

/// Registers a descriptor with the running tokio reactor, for reading.
pub(super) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped, as is asked for.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

pub(super) fn pidfd(pid: u32) -> nix::Result<OwnedFd> {
    // SAFETY: no pointer; the result is a new descriptor (close-on-exec) or an error.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    Ok(received(i32::try_from(fd).expect("a descriptor is an int")))
}

/// Reaps one dead child without waiting: `target` is a pid, or −1 for any. `None` when none is dead; ECHILD when there is no child.
pub(super) fn reap(target: i32) -> nix::Result<Option<(i32, Exit)>> {
    waitpid(target, libc::WNOHANG)
}

/// Waits for a child that is known to end by itself.
pub(super) fn wait(child: Pid) -> nix::Result<Option<(i32, Exit)>> {
    waitpid(child.as_raw(), 0)
}

fn waitpid(target: i32, options: i32) -> nix::Result<Option<(i32, Exit)>> {
    let mut status = 0;
    // SAFETY: a valid pointer to an int that lives for the call.
    let pid = Errno::result(unsafe { libc::waitpid(target, &raw mut status, options) })?;
    if pid == 0 {
        return Ok(None);
    }
    let exit = if libc::WIFSIGNALED(status) {
        Exit::Signal(libc::WTERMSIG(status))
    } else {
        Exit::Code(libc::WEXITSTATUS(status))
    };
    Ok(Some((pid, exit)))
}

/// Every signal but those `kept` (bit n − 1 for signal n) back to its default. Exec does that for handlers but keeps *ignored*, and Rust ignores SIGPIPE. By system call, because
/// the C library hides two numbers that a parent may still have left ignored.
pub(super) fn default_signals(kept: u64) {
    let default = [0_u64; 4]; // the kernel's sigaction with SIG_DFL, no flags, an empty mask
    for signal in (1..=64).filter(|signal| kept >> (signal - 1) & 1 == 0) {
        let no_old = std::ptr::null::<u64>();
        // SAFETY: the kernel's structure is at most this large, and SIG_DFL runs no code. KILL and STOP refuse, which is as good.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), no_old, size_of::<u64>()) };
    }
}
