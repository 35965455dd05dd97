//! The guard's own loop: one child tree, two deadlines, one daemon that may fall silent at any time.
//!
//! ```text
//!            Spawn           stop_at, Stop, end of socket
//!     Idle ─────────► Running ────────────────────► Stopping     so they do in Restarting
//!      ▲               │   │ Restart                  │
//!      │               │   ▼                          │
//!      │               │ Restarting                   │
//!      │     main exits│   │ main exits, kill_by      │ main exits, kill_at
//!      │               ▼   ▼                          ▼
//!      └──────────── Killing ◄────────────────────────┘           Kill and kill_at lead there from everywhere
//!      not latched       │ ECHILD and cgroup empty: TREE_DEAD
//!                        └─────────► Dead             latched: stopping had begun
//! ```
//!
//! Nothing here allocates, logs or waits for anybody once the guard is armed.

use super::Duty;
use super::cgroup::{self, Leaf};
use super::frame::{Ack, Arm, Command, Deadlines, Event, Order, Report, SIZE, Seq, Why};
use super::setup::{self, Inherited};
use super::spawn::{self, Failure, Job, Start, Started, Word};
use super::spec::ChildSpec;
use super::sys;
use super::tree::Walk;
use crate::clock;
use crate::core::restart::Exit;
use crate::core::time::Instant;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recv, recvmsg, send};
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::{Pid, getpid, read};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// Passes of the walk: close together at first, because a tree that forks is caught by being faster; then out of its way.
const HASTE: Duration = Duration::from_millis(50);
const HASTY_PASS: Duration = Duration::from_millis(1);
const PATIENT_PASS: Duration = Duration::from_millis(10);
/// A process with threads, such as Node, takes milliseconds to die.
const SIGNALS_ALONE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Idle,
    Running,
    /// The stop signal is out, but not for good.
    Restarting {
        kill_by: Instant,
    },
    Stopping,
    Killing {
        since: Instant,
        next_pass: Instant,
    },
    Dead,
}

/// The main process, from fork until it is reaped.
#[derive(Debug)]
struct Main {
    /// Our child: the program, or the init of its PID namespace.
    pid: Pid,
    /// The program as the host numbers it, where that is another process.
    program: Option<i32>,
    verdict: Option<OwnedFd>,
    /// Open until exec has succeeded or failed.
    exec: Option<OwnedFd>,
    failure: Option<Failure>,
}

impl Main {
    /// What the init saw, which cannot end as the program did; nothing if it was killed itself.
    fn verdict(&self) -> Option<Exit> {
        let mut bytes = [0; Word::SIZE];
        let length = read(self.verdict.as_ref()?, &mut bytes).ok()?;
        match Word::from_bytes(bytes).filter(|_| length == Word::SIZE)? {
            Word::Ended(exit) => Some(exit),
            Word::Born(_) | Word::Failed(_) => None,
        }
    }
}

/// What came with the first frame.
#[derive(Debug)]
struct Charge {
    keeper: String,
    job: Result<Job, Failure>,
    stop_signal: i32,
    stop_timeout: Duration,
    releaser: Option<OwnedFd>,
    lock: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    leaf: Option<Leaf>,
}

#[derive(Debug)]
pub(super) struct Guard {
    socket: OwnedFd,
    timer: TimerFd,
    signals: SignalFd,
    null: OwnedFd,
    inherited: Inherited,
    charge: Charge,
    state: State,
    /// Stopping has begun, for whatever reason: no child is started and no deadline moves out any more.
    latched: bool,
    deadlines: Deadlines,
    main: Option<Main>,
    killed: u32,
    walk: Walk,
    last: Seq,
    /// The daemon does not read: as good as gone.
    deaf: bool,
    orphaned: bool,
    quit: bool,
}

/// What is left to do when the guard's work is done.
#[derive(Debug)]
pub(super) struct Ending {
    pub keeper: String,
    pub null: OwnedFd,
    /// Set when the daemon is gone and left bytes for a releaser.
    pub releaser: Option<OwnedFd>,
}

impl Guard {
    /// Makes itself ready, waits for the first frame, and sets the deadlines. `None`: the daemon went away before.
    pub(super) fn arm(socket: OwnedFd, duty: Duty) -> io::Result<Option<Guard>> {
        let (signals, inherited, report) = setup::harden(duty)?;
        let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
        let timer =
            TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let mut walk = Walk::new();
        walk.kill_all(|_| true);
        let Some((seq, arm, fds)) = first_frame(&socket)? else { return Ok(None) };
        setup::name_process(cgroup::GUARD_COMM);
        let mut guard = Guard {
            socket,
            timer,
            signals,
            null,
            inherited,
            charge: Charge::new(&arm, fds)?,
            state: State::Idle,
            latched: false,
            deadlines: arm.deadlines,
            main: None,
            killed: 0,
            walk,
            last: seq,
            deaf: false,
            orphaned: false,
            quit: false,
        };
        guard.set_timer();
        guard.rehearse();
        let locked = duty.is_term() && setup::lock_memory();
        let (cgroup, walk) = (guard.charge.leaf.is_some(), guard.walk.works());
        guard.say(Event::Armed(Report { cgroup, walk, locked, ..report }));
        guard.acknowledge(seq, true, clock::boot());
        Ok(Some(guard))
    }

    /// Runs until the daemon lets it go, or is gone and nothing lives any more.
    pub(super) fn run(mut self) -> Ending {
        while !self.is_done() {
            self.wait();
            let now = clock::boot(); // before any frame (R9): one that comes after a deadline must find it handled
            self.on_exec();
            self.reap();
            self.on_time(now);
            self.on_frame(now);
            self.on_time(now); // the frame may have brought a deadline that is past
            self.set_timer();
        }
        if let Some(leaf) = self.charge.leaf.take() {
            leaf.remove(); // before the release: the next term may be faster than us (R20)
        }
        let releaser = if self.orphaned { self.charge.releaser.take() } else { None };
        Ending { keeper: self.charge.keeper, null: self.null, releaser }
    }

    fn is_done(&self) -> bool {
        self.quit || (self.orphaned && self.state == State::Dead)
    }

    fn on_time(&mut self, now: Instant) {
        let Deadlines { stop_at, kill_at } = self.deadlines;
        match self.state {
            State::Idle | State::Running | State::Restarting { .. } if now >= kill_at => self.kill(now),
            State::Idle | State::Running | State::Restarting { .. } if now >= stop_at => {
                self.stop(Why::Deadline, kill_at, now);
            }
            State::Restarting { kill_by } if now >= kill_by => self.begin_killing(now),
            State::Stopping if now >= kill_at => self.kill(now),
            State::Idle
            | State::Running
            | State::Restarting { .. }
            | State::Stopping
            | State::Killing { .. }
            | State::Dead => {}
        }
        if let State::Killing { since, next_pass } = self.state {
            self.kill_more(since, next_pass, now);
        }
    }

    /// One frame a wake-up, so that no flood of them can hold up the deadlines.
    fn on_frame(&mut self, now: Instant) {
        if self.orphaned {
            return;
        }
        let mut bytes = [0; SIZE + 1];
        match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN | Errno::EINTR) if !self.deaf => {}
            Ok(length) if length > 0 && !self.deaf => match Order::decode(&bytes[..length]) {
                Some((seq, Order::Command(command))) if seq > self.last => self.obey(seq, command, now),
                // A daemon that repeats itself or talks nonsense has lost its mind; its lease may have gone with it.
                Some((_, Order::Command(_) | Order::Arm(_))) | None => self.kill(now),
            },
            Ok(_) | Err(_) => {
                self.orphaned = true;
                self.stop(Why::Orphaned, now + self.charge.stop_timeout, now);
            }
        }
    }

    fn obey(&mut self, seq: Seq, command: Command, now: Instant) {
        self.last = seq;
        let accepted = match command {
            Command::Spawn { start_by } => self.spawn(start_by, now),
            Command::Restart { kill_by } => self.restart(kill_by),
            Command::Deadlines(new) => self.move_deadlines(new),
            Command::Stop { kill_by } => {
                self.stop(Why::Command, kill_by, now);
                true
            }
            Command::Kill => {
                self.kill(now);
                true
            }
            Command::Quit => {
                self.quit = matches!(self.state, State::Idle | State::Dead);
                self.quit
            }
            Command::Signal(signal) => {
                if let Some(Main { pid, exec: None, .. }) = &self.main {
                    let _ = sys::kill(pid.as_raw(), signal); // not reaped, so the number is still its own
                }
                return;
            }
        };
        self.acknowledge(seq, accepted, now);
    }

    /// Latched, only the smaller kill_at counts: stopping is not undone.
    fn move_deadlines(&mut self, new: Deadlines) -> bool {
        let old = self.deadlines;
        if self.latched {
            self.deadlines.kill_at = old.kill_at.min(new.kill_at);
            return new.kill_at <= old.kill_at && new.stop_at <= old.stop_at;
        }
        self.deadlines = new;
        true
    }

    fn spawn(&mut self, start_by: Instant, now: Instant) -> bool {
        let before = start_by.min(self.deadlines.stop_at);
        if self.state != State::Idle || self.latched || now >= before {
            return false;
        }
        let start = Start {
            parent: getpid(),
            stdin: self.charge.stdin.as_ref().unwrap_or(&self.null).as_fd(),
            foreground: self.inherited.foreground,
            lock: self.charge.lock.as_ref().map(AsFd::as_fd),
            leaf: self.charge.leaf.as_ref(),
            oom_score: self.inherited.oom_score.as_deref(),
            nice: self.inherited.nice,
            before,
        };
        match self.charge.job.as_ref().map_err(|failure| *failure).and_then(|job| spawn::start(job, &start)) {
            Ok(Started { pid, exec, verdict }) => {
                self.main = Some(Main { pid, program: None, verdict, exec: Some(exec), failure: None });
                self.state = State::Running;
            }
            Err(failure) => {
                self.say(Event::ExecFailed { stage: failure.stage, errno: failure.errno });
                self.begin_killing(now); // nothing is there, and that is proven in the usual way
            }
        }
        true
    }

    /// Politely, and to be started again.
    fn restart(&mut self, kill_by: Instant) -> bool {
        if self.state == State::Running {
            self.state = State::Restarting { kill_by };
            self.ask_to_stop();
        }
        !self.latched
    }

    fn ask_to_stop(&self) {
        self.signal_group(self.charge.stop_signal);
        self.signal_group(libc::SIGCONT); // a stopped process could not act on it
    }

    /// Politely, and for good.
    fn stop(&mut self, why: Why, kill_by: Instant, now: Instant) {
        self.latched = true;
        self.deadlines.kill_at = self.deadlines.kill_at.min(kill_by);
        match self.state {
            State::Running => {
                self.state = State::Stopping;
                self.ask_to_stop();
                self.say(Event::Stopping(why));
            }
            // Asked already; some take a second signal for impatience.
            State::Restarting { kill_by } => {
                self.state = State::Stopping;
                self.deadlines.kill_at = self.deadlines.kill_at.min(kill_by);
                self.say(Event::Stopping(why));
            }
            State::Idle | State::Dead => self.begin_killing(now),
            State::Stopping | State::Killing { .. } => {}
        }
    }

    fn kill(&mut self, now: Instant) {
        self.latched = true;
        self.begin_killing(now);
    }

    fn begin_killing(&mut self, now: Instant) {
        if !matches!(self.state, State::Killing { .. }) {
            self.killed = 0;
            self.state = State::Killing { since: now, next_pass: now };
        }
    }

    fn kill_more(&mut self, since: Instant, next_pass: Instant, now: Instant) {
        if now >= next_pass {
            self.signal_group(libc::SIGKILL); // all there is where the kernel neither has cgroups nor lists children
            self.walk.kill_all(|_| false);
            // Signals first, and alone for a while: writing to cgroup.kill takes the kernel's one cgroup lock, which a service starting
            // elsewhere on a busy host holds for seconds, and a guard that waits for it is given up. Most trees are dead without it.
            if now.since(since) >= SIGNALS_ALONE
                && let Some(leaf) = self.charge.leaf.as_mut().filter(|leaf| leaf.populated())
            {
                leaf.kill();
            }
            let pause = if now.since(since) < HASTE { HASTY_PASS } else { PATIENT_PASS };
            // From the end of the pass: what is dying needs the processor too, and ours is the real-time class.
            self.state = State::Killing { since, next_pass: clock::boot() + pause };
        }
        let populated = self.charge.leaf.as_ref().is_some_and(Leaf::populated);
        if self.reap() && !populated {
            self.say(Event::TreeDead { killed: self.killed, last: self.latched });
            self.state = if self.latched { State::Dead } else { State::Idle };
        }
    }

    /// The group may not exist yet, when the child has not reached its setsid.
    fn signal_group(&self, signal: i32) {
        if let Some(Main { pid, .. }) = &self.main
            && sys::kill(-pid.as_raw(), signal) == Err(Errno::ESRCH)
        {
            let _ = sys::kill(pid.as_raw(), signal);
        }
    }

    /// True when the kernel says that there is no child at all: as subreaper, that is no descendant.
    fn reap(&mut self) -> bool {
        loop {
            match sys::reap(-1) {
                Ok(Some((pid, exit))) => self.buried(pid, exit),
                Ok(None) => return false,
                Err(errno) => return errno == Errno::ECHILD,
            }
        }
    }

    fn buried(&mut self, pid: i32, exit: Exit) {
        if self.main.as_ref().is_none_or(|main| main.pid.as_raw() != pid) {
            self.killed += u32::from(exit == Exit::Signal(libc::SIGKILL));
            return;
        }
        self.on_exec(); // its last word may still be in the pipe
        let main = self.main.take();
        match main.as_ref().and_then(|main| main.failure) {
            Some(Failure { stage, errno }) => self.say(Event::ExecFailed { stage, errno }),
            None => self.say(Event::Exited(main.and_then(|main| main.verdict()).unwrap_or(exit))),
        }
        self.begin_killing(clock::boot()); // what it left behind
        self.killed += u32::from(exit == Exit::Signal(libc::SIGKILL));
    }

    fn on_exec(&mut self) {
        while let Some(main @ Main { exec: Some(_), .. }) = &mut self.main {
            let mut bytes = [0; Word::SIZE];
            match main.exec.as_ref().map(|pipe| read(pipe, &mut bytes)) {
                None | Some(Err(Errno::EAGAIN)) => return,
                Some(Ok(0)) => {
                    main.exec = None;
                    let in_cgroup = self.charge.leaf.as_ref().is_some_and(Leaf::populated);
                    let pid = main.program.unwrap_or(main.pid.as_raw()).cast_unsigned();
                    self.say(Event::Started { pid, in_cgroup });
                }
                Some(Ok(_) | Err(_)) => match Word::from_bytes(bytes) {
                    Some(Word::Born(pid)) => main.program = Some(pid),
                    Some(Word::Failed(failure)) => (main.exec, main.failure) = (None, Some(failure)),
                    Some(Word::Ended(_)) | None => main.exec = None,
                },
            }
        }
    }

    fn acknowledge(&mut self, seq: Seq, accepted: bool, clock: Instant) {
        self.say(Event::Ack(Ack { seq, accepted, clock, deadlines: self.deadlines }));
    }

    /// Never waits. A broken socket is noticed by the next read; a full one means that the daemon has stopped reading.
    fn say(&mut self, event: Event) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        self.deaf |= send(self.socket.as_raw_fd(), &event.encode(), flags) == Err(Errno::EAGAIN);
    }

    fn set_timer(&self) {
        let Deadlines { stop_at, kill_at } = self.deadlines;
        let next = match self.state {
            State::Idle | State::Running => stop_at.min(kill_at),
            State::Restarting { kill_by } => stop_at.min(kill_at).min(kill_by),
            State::Stopping => kill_at,
            State::Killing { next_pass, .. } => next_pass,
            State::Dead => Instant::from_nanos(u64::MAX),
        };
        let nanos = i64::try_from(next.as_nanos().max(1)).unwrap_or(i64::MAX); // zero would mean: never
        let at = TimeSpec::from_duration(Duration::from_nanos(nanos.cast_unsigned()));
        // Setting it also forgets that it has fired.
        let set = self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME);
        set.expect("a valid time on our own timer is always accepted");
    }

    fn wait(&self) {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let exec = self.main.as_ref().and_then(|main| main.exec.as_ref());
        let (timer, signals) = (self.timer.as_fd(), self.signals.as_fd());
        let exec = exec.map_or(timer, AsFd::as_fd);
        let socket = if self.orphaned { timer } else { self.socket.as_fd() };
        let mut fds = [timer, signals, exec, socket].map(readable);
        let patience = if self.deaf && !self.orphaned { PollTimeout::ZERO } else { PollTimeout::NONE };
        let _ = poll(&mut fds, patience); // EINTR is a wake-up like any other
        while let Ok(Some(_)) = self.signals.read_signal() {} // SIGCHLD is a hint to reap; TERM, INT, HUP are not for us
    }

    /// Uses what killing takes once, so that its pages are in memory; the walk was used before.
    fn rehearse(&mut self) {
        if let Some(leaf) = &mut self.charge.leaf {
            leaf.try_birth();
            leaf.populated();
        }
        self.reap();
    }
}

impl Charge {
    fn new(arm: &Arm, fds: Vec<OwnedFd>) -> io::Result<Charge> {
        let mut fds = fds.into_iter();
        let mut next = |wanted: bool| if wanted { fds.next() } else { None };
        let missing = || io::Error::new(io::ErrorKind::InvalidData, "descriptors are missing");
        let mut text = Vec::new();
        File::from(next(true).ok_or_else(missing)?).read_to_end(&mut text)?;
        let (releaser, lock, stdin) = (next(arm.releaser), next(arm.lock), next(arm.stdin));
        if [&releaser, &lock, &stdin].map(Option::is_some) != [arm.releaser, arm.lock, arm.stdin] {
            return Err(missing());
        }
        let spec: ChildSpec = serde_json::from_slice(&text)?;
        let own = if arm.cgroup { cgroup::own() } else { None };
        let leaf = own.map(|own| cgroup::leaf_path(&own, &spec.keeper, arm.token, std::process::id()));
        Ok(Charge {
            keeper: spec.keeper.clone(),
            stop_signal: spec.stop_signal,
            stop_timeout: arm.stop_timeout,
            releaser,
            lock,
            stdin,
            leaf: leaf.and_then(|path| Leaf::create(path).ok()),
            job: Job::new(spec),
        })
    }
}

/// The only frame that is waited for, and the only one with descriptors.
fn first_frame(socket: &OwnedFd) -> io::Result<Option<(Seq, Arm, Vec<OwnedFd>)>> {
    let mut bytes = [0; SIZE + 1];
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let length = message.bytes;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            fds.extend(numbers.into_iter().map(sys::received));
        }
    }
    match Order::decode(&bytes[..length]) {
        _ if length == 0 => Ok(None),
        Some((seq, Order::Arm(arm))) => Ok(Some((seq, arm, fds))),
        Some((_, Order::Command(_))) | None => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "not an ARM frame"))
        }
    }
}

/// Becomes the releaser: the same binary, with the opaque bytes as descriptor 3. Returns only when that fails.
pub(super) fn become_releaser(ending: &Ending, releaser: &OwnedFd, title: &str) -> Errno {
    let title = CString::new(format!("{title}{}", ending.keeper)).unwrap_or_default();
    let prepared = (|| {
        sys::place(releaser.as_fd(), 3)?; // last: the others may still have that number
        (0..3).try_for_each(|fd| sys::place(ending.null.as_fd(), fd)) // the readers of our output are gone
    })();
    match prepared.and_then(|()| nix::unistd::execve(c"/proc/self/exe", &[title], &[] as &[CString])) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}
