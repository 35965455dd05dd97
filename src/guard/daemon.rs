//! The daemon's side of a guard.

use super::frame::{Arm, Command, Deadlines, Event, Order, SIZE, Seq};
use super::spec::{ChildSpec, sealed};
use super::{Duty, cgroup, sys, tree};
use nix::errno::Errno;
use nix::fcntl::{F_SETFL, F_SETPIPE_SZ, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, send, sendmsg, socketpair,
};
use nix::unistd::pipe2;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// This very binary, also when its file has been replaced meanwhile.
pub const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// Room for bursts of output, so that the child is not held up by a busy daemon.
const PIPE_SIZE: i32 = 256 * 1024;
/// A dismissed guard needs microseconds; one that takes this long is killed.
const GOODBYE_MAX: Duration = Duration::from_secs(5);

/// Where the child's standard output and error go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wiring {
    /// To the daemon.
    Pipes,
    /// Where the daemon's own go.
    Inherit,
    /// Nowhere.
    Null,
}

/// All that a term's guard must know.
#[derive(Debug)]
pub struct Launch<'a> {
    pub duty: Duty,
    /// [`OWN_EXECUTABLE`], except in tests.
    pub executable: &'a Path,
    pub spec: &'a ChildSpec,
    pub output: Wiring,
    /// Fencing token of the term; only a part of the cgroup's name here.
    pub token: u64,
    pub deadlines: Deadlines,
    /// How long the child may take to stop when the daemon is gone.
    pub stop_timeout: Duration,
    /// What the releaser gets when the daemon is gone and the tree is dead. Opaque here; may hold secrets.
    pub releaser: Option<&'a [u8]>,
    /// Lock file of the local engine: guard and main process hold it too (R4).
    pub lock: Option<BorrowedFd<'a>>,
    /// What the child reads; `None`: nothing.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Whether to use a cgroup if there is one.
    pub cgroup: bool,
}

/// Read ends of what the child writes. They end when the guard does, not when the child does; at once if it writes elsewhere.
#[derive(Debug)]
pub struct Output {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// The guard process is dead and reaped: its main child has been killed by the kernel, the rest of the tree may live.
/// Expected after `Quit`; otherwise what [`super::LastResort::pass`] wants.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the guard {pid} is gone: {}", status.map_or("not our child any more".to_owned(), |s| s.to_string()))]
pub struct Lost {
    pub pid: u32,
    pub status: Option<ExitStatus>,
    /// Cgroup of the tree, if one was used.
    pub leaf: Option<PathBuf>,
}

/// A guard as the daemon holds it. Dropping it ends the term: the guard takes the end of the socket as the daemon's death, and stays
/// a zombie when it is done; only [`Guard::recv`] reaps it.
#[derive(Debug)]
pub struct Guard {
    socket: AsyncFd<OwnedFd>,
    process: AsyncFd<OwnedFd>,
    child: Child,
    last: Seq,
    leaf: Option<PathBuf>,
    /// The guard has closed its end, so it is exiting. The socket stays readable for ever then, and would keep the runtime busy.
    ended: bool,
}

/// A guard that has no term yet: a process that has made itself ready and waits to be told. When it is dropped it goes away by itself,
/// but stays a zombie; [`Unarmed::dismiss`] leaves none.
#[derive(Debug)]
pub struct Unarmed {
    socket: OwnedFd,
    process: OwnedFd,
    child: Child,
    output: Output,
}

/// A guard that was started and told everything, on any thread; to be adopted by the one that will hold it.
#[derive(Debug)]
pub struct Newborn {
    guard: Unarmed,
    leaf: Option<PathBuf>,
}

impl Unarmed {
    /// Starts a guard for a later term of this keeper.
    ///
    /// May take long: on a busy host the kernel lets nobody fork while a process is moved between cgroups elsewhere. So it is not for
    /// the thread that keeps leases.
    pub fn start(duty: Duty, executable: &Path, keeper: &str, output: Wiring) -> io::Result<Unarmed> {
        let (socket, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        fcntl(&socket, F_SETFL(OFlag::O_NONBLOCK))?; // ours only: the two ends are separate
        let (stdout, child_stdout) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, child_stderr) = pipe2(OFlag::O_CLOEXEC)?;
        // No pre_exec, uid or groups here: std then uses posix_spawn, which is safe in a process with threads.
        let mut child = std::process::Command::new(executable)
            .arg0(format!("{}{keeper}", duty.title()))
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(output.stdio(child_stdout))
            .stderr(output.stdio(child_stderr))
            .spawn()?;
        let process = sys::pidfd(child.id()).map_err(io::Error::from).inspect_err(|_| bury(&mut child))?;
        Ok(Unarmed { socket, process, child, output: Output { stdout, stderr } })
    }

    /// The guard's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Hands it everything; forks no child. Not for the thread that keeps leases: if it fails the guard is killed, and waited for.
    ///
    /// # Errors
    /// Also when the guard has died meanwhile.
    fn arm(self, launch: &Launch<'_>) -> io::Result<Newborn> {
        if let Err(error) = self.tell(launch) {
            self.dismiss();
            return Err(error);
        }
        for pipe in [&self.output.stdout, &self.output.stderr] {
            let _ = fcntl(pipe, F_SETPIPE_SZ(PIPE_SIZE)); // refused when the user's quota of pipe memory is used up
        }
        let own = if launch.cgroup { cgroup::own() } else { None };
        let leaf = own.map(|own| cgroup::leaf_path(&own, &launch.spec.keeper, launch.token, self.pid()));
        Ok(Newborn { guard: self, leaf })
    }

    fn tell(&self, launch: &Launch<'_>) -> io::Result<()> {
        let spec = sealed(&serde_json::to_vec(launch.spec)?)?;
        let releaser = launch.releaser.map(sealed).transpose()?;
        let fds: Vec<RawFd> = [Some(spec.as_raw_fd()), releaser.as_ref().map(AsRawFd::as_raw_fd)]
            .into_iter()
            .chain([&launch.lock, &launch.stdin].map(|fd| fd.as_ref().map(AsRawFd::as_raw_fd)))
            .flatten()
            .collect();
        if transmit(self.socket.as_raw_fd(), Order::Arm(Arm::from(launch)), FIRST, &fds) {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::BrokenPipe, "the guard does not listen"))
        }
    }

    /// Ends it and reaps it. Not for the thread that keeps leases: it waits for the kernel.
    pub fn dismiss(mut self) {
        bury(&mut self.child);
    }
}

fn bury(child: &mut Child) {
    let _ = child.kill().and_then(|()| child.wait());
}

impl Newborn {
    /// Arms a guard: the one in reserve, or, where there is none that lives, one that is started now.
    ///
    /// Takes as long as [`Unarmed::start`].
    pub fn start(launch: &Launch<'_>, reserve: Option<Unarmed>) -> io::Result<Newborn> {
        match reserve.map(|reserve| reserve.arm(launch)) {
            Some(Ok(newborn)) => Ok(newborn),
            Some(Err(_)) | None => {
                Unarmed::start(launch.duty, launch.executable, &launch.spec.keeper, launch.output)?
                    .arm(launch)
            }
        }
    }
}

impl Wiring {
    fn stdio(self, pipe: OwnedFd) -> Stdio {
        match self {
            Wiring::Pipes => Stdio::from(pipe),
            Wiring::Inherit => Stdio::inherit(),
            Wiring::Null => Stdio::null(),
        }
    }
}

/// Number of the frame that arms.
const FIRST: Seq = Seq(1);

/// False when the guard does not read.
fn transmit(socket: RawFd, order: Order, seq: Seq, fds: &[RawFd]) -> bool {
    let bytes = order.encode(seq);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let sent = if fds.is_empty() {
        send(socket, &bytes, flags)
    } else {
        sendmsg::<()>(socket, &[IoSlice::new(&bytes)], &[ControlMessage::ScmRights(fds)], flags, None)
    };
    sent == Ok(SIZE)
}

impl Guard {
    /// Holds a guard, which says [`Event::Armed`] next; [`Command::Spawn`] need not wait for it.
    ///
    /// To be called inside a tokio runtime; for a term, on the thread that also calls [`super::LastResort::pass`].
    pub fn adopt(newborn: Newborn) -> io::Result<(Guard, Output)> {
        let Newborn { guard: Unarmed { socket, process, mut child, output }, leaf } = newborn;
        let watched = sys::watched(socket).and_then(|socket| Ok((socket, sys::watched(process)?)));
        // Out of descriptors: at least leave no zombie.
        let (socket, process) = watched.inspect_err(|_| bury(&mut child))?;
        Ok((Guard { socket, process, child, last: FIRST, leaf, ended: false }, output))
    }

    /// The guard's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of a guard that was told to quit, and reaps it.
    pub async fn gone(&mut self) {
        let gone = async { while self.recv().await.is_ok() {} };
        if tokio::time::timeout(GOODBYE_MAX, gone).await.is_err() {
            self.kill();
            while self.recv().await.is_ok() {}
        }
    }

    /// Never waits. A guard that does not read is killed, and [`Guard::recv`] says so.
    pub fn send(&mut self, command: Command) -> Seq {
        self.last = Seq(self.last.0 + 1);
        if !transmit(self.socket.get_ref().as_raw_fd(), Order::Command(command), self.last, &[]) {
            self.kill();
        }
        self.last
    }

    /// SIGKILL to the guard itself, for one that no longer acknowledges (R10). Its main child dies with it; the rest is for
    /// [`super::LastResort`].
    pub fn kill(&self) {
        tree::kill_guard(self.process.get_ref());
    }

    /// What the guard says next. May be dropped and called again without losing anything. After the guard's end every call says
    /// [`Lost`], once all it had said before has been handed out.
    pub async fn recv(&mut self) -> Result<Event, Lost> {
        loop {
            if let Some(event) = self.next_frame() {
                return Ok(event);
            }
            tokio::select! {
                // Tried again at the top of the loop; the kernel keeps frames of a dead guard for us.
                ready = self.socket.readable(), if !self.ended => if let Ok(mut ready) = ready { ready.clear_ready() },
                _ = self.process.readable() => return self.last_words(),
            }
        }
    }

    /// A frame sent between the look at the socket and the death must not be lost.
    fn last_words(&mut self) -> Result<Event, Lost> {
        match self.next_frame() {
            Some(event) => Ok(event),
            None => Err(Lost {
                pid: self.child.id(),
                status: self.child.try_wait().ok().flatten(),
                leaf: self.leaf.clone(),
            }),
        }
    }

    fn next_frame(&mut self) -> Option<Event> {
        let mut bytes = [0; SIZE + 1];
        match recv(self.socket.get_ref().as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN | Errno::EINTR) => None,
            Ok(length) if length > 0 => {
                let event = Event::decode(&bytes[..length]);
                if event.is_none() {
                    self.kill(); // another binary: nothing it says can be relied on
                }
                event
            }
            Ok(_) | Err(_) => {
                self.ended = true;
                None
            }
        }
    }
}

impl From<&Launch<'_>> for Arm {
    fn from(launch: &Launch<'_>) -> Self {
        Arm {
            token: launch.token,
            deadlines: launch.deadlines,
            stop_timeout: launch.stop_timeout,
            releaser: launch.releaser.is_some(),
            lock: launch.lock.is_some(),
            stdin: launch.stdin.is_some(),
            cgroup: launch.cgroup,
        }
    }
}
