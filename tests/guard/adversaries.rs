//! Children that do not want to die. Raw forks: going through exec, they would be too slow to be a nuisance.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;

/// Plays the part that the first argument names; returns when it names none.
pub fn main_if_adversary() {
    let mut arguments = std::env::args().skip(1);
    let (role, count) = (arguments.next().unwrap_or_default(), arguments.next().unwrap_or_default());
    match role.as_str() {
        "adversary:spread" => spread(count.parse().expect("a number")),
        "adversary:hop" => hop(count.parse().expect("a number")),
        _ => {}
    }
}

/// `count` grandchildren, each double-forked into a session of its own, deaf to SIGTERM.
fn spread(count: u32) {
    for _ in 0..count {
        if fork() == 0 {
            session();
            if fork() != 0 {
                exit();
            }
            session();
            // SAFETY: SIG_IGN runs no code.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
            pause();
        }
        // SAFETY: a null status is allowed.
        unsafe { libc::wait(std::ptr::null_mut()) };
    }
    ready();
    pause();
}

/// `count` processes that for ever fork a successor in a new session and go away.
fn hop(count: u32) {
    for _ in 0..count {
        if fork() == 0 {
            loop {
                session();
                if fork() != 0 {
                    exit();
                }
            }
        }
    }
    ready();
    pause();
}

fn ready() {
    let folder = std::env::var("KEEPERD_TEST_MARK").expect("set by the test");
    std::fs::write(format!("{folder}/ready"), "").expect("the test's folder");
}

fn fork() -> i32 {
    // SAFETY: this process has one thread.
    unsafe { libc::fork() }
}

fn session() {
    // SAFETY: no pointer.
    unsafe { libc::setsid() };
}

fn exit() -> ! {
    // SAFETY: no pointer.
    unsafe { libc::_exit(0) }
}

fn pause() -> ! {
    loop {
        // SAFETY: no pointer.
        unsafe { libc::pause() };
    }
}

pub fn borrow(fd: i32) -> BorrowedFd<'static> {
    // SAFETY: listed in /proc/self/fd a moment ago by the only thread of the test.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
