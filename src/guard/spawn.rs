//! From fork to exec. Everything here runs in the child; the guard only forks and reads the pipe.

use super::cgroup::Leaf;
use super::frame::Stage;
use super::spec::{ChildSpec, limit_by_name};
use super::sys::{self, Forked};
use crate::clock;
use crate::core::time::Instant;
use nix::errno::Errno;
use nix::fcntl::{F_SETFD, FdFlag, OFlag, fcntl};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{self, Gid, Pid, Uid, getppid, pipe2, write};
use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// Why there is no program: travels from the child through the pipe, and on to the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub stage: Stage,
    pub errno: i32,
}

impl Failure {
    pub(super) const SIZE: usize = 5;

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let [a, b, c, d] = self.errno.to_le_bytes();
        [self.stage as u8, a, b, c, d]
    }

    pub(super) fn from_bytes([stage, a, b, c, d]: [u8; Self::SIZE]) -> Option<Self> {
        let stage = Stage::from_number(u64::from(stage))?;
        Some(Failure { stage, errno: i32::from_le_bytes([a, b, c, d]) })
    }
}

fn at(stage: Stage) -> impl Fn(Errno) -> Failure {
    move |errno| Failure { stage, errno: errno as i32 }
}

/// A [`ChildSpec`] in the form the system calls want, made when the guard is armed.
#[derive(Debug)]
pub(super) struct Job {
    programs: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    working_dir: Option<CString>,
    limits: Vec<(Resource, u64, u64)>,
    uid: Option<Uid>,
    gid: Option<Gid>,
    groups: Option<Vec<Gid>>,
    umask: Option<Mode>,
    nice: Option<i32>,
    no_new_privileges: bool,
}

impl Job {
    pub(super) fn new(spec: ChildSpec) -> Result<Job, Failure> {
        let invalid = at(Stage::Spec);
        let text = |s: OsString| CString::new(s.into_vec()).map_err(|_| invalid(Errno::EINVAL));
        let program =
            spec.argv.first().filter(|name| !name.is_empty()).ok_or_else(|| invalid(Errno::EINVAL))?;
        if !(1..=64).contains(&spec.stop_signal) {
            return Err(invalid(Errno::EINVAL));
        }
        let limit = |l: &super::spec::Limit| Some((limit_by_name(&l.resource)?, l.soft, l.hard));
        let groups_dropped = spec.uid.is_some().then(Vec::new);
        Ok(Job {
            programs: candidates(program, &spec.env).into_iter().map(text).collect::<Result<_, _>>()?,
            argv: spec.argv.into_iter().map(text).collect::<Result<_, _>>()?,
            env: spec.env.into_iter().map(assignment).map(text).collect::<Result<_, _>>()?,
            working_dir: spec.working_dir.map(|path| text(path.into_os_string())).transpose()?,
            limits: spec
                .limits
                .iter()
                .map(limit)
                .collect::<Option<_>>()
                .ok_or_else(|| invalid(Errno::EINVAL))?,
            uid: spec.uid.map(Uid::from_raw),
            gid: spec.gid.map(Gid::from_raw),
            groups: spec.groups.or(groups_dropped).map(|g| g.into_iter().map(Gid::from_raw).collect()),
            umask: spec.umask.map(Mode::from_bits_truncate),
            nice: spec.nice,
            no_new_privileges: spec.no_new_privileges,
        })
    }
}

fn assignment((mut name, value): (OsString, OsString)) -> OsString {
    name.push("=");
    name.push(value);
    name
}

/// Where the program may be, in order. An empty entry of PATH, which would mean the current directory, is left out.
fn candidates(program: &OsStr, env: &[(OsString, OsString)]) -> Vec<OsString> {
    if program.as_bytes().contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path =
        env.iter().rev().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value.as_bytes());
    let directories = path.split(|b| *b == b':').filter(|directory| !directory.is_empty());
    directories.map(|directory| OsString::from_vec([directory, b"/", program.as_bytes()].concat())).collect()
}

/// What the guard gives the child on its way.
#[derive(Debug)]
pub(super) struct Start<'a> {
    pub guard: Pid,
    pub null: BorrowedFd<'a>,
    pub lock: Option<BorrowedFd<'a>>,
    pub leaf: Option<&'a Leaf>,
    /// The daemon's values, which the guard has changed for itself.
    pub oom_score: Option<&'a str>,
    pub nice: i32,
    /// No exec from here on: the smaller of `start_by` and `stop_at`, as known now.
    pub before: Instant,
}

/// Forks. The pipe ends without a byte when exec has succeeded, and with a [`Failure`] when it has not.
pub(super) fn start(job: &Job, start: &Start<'_>) -> Result<(Pid, OwnedFd), Failure> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(at(Stage::Fork))?;
    let placed = match sys::fork(start.leaf.and_then(Leaf::birthplace)).map_err(at(Stage::Fork))? {
        Forked::Parent { child } => return Ok((child, reader)),
        Forked::Child { placed } => placed,
    };
    let Err(failure) = run(job, start, placed);
    let _ = write(&writer, &failure.to_bytes()); // if the guard is gone, nobody wants to know
    sys::exit_now(127)
}

fn run(job: &Job, start: &Start<'_>, placed: bool) -> Result<Infallible, Failure> {
    unistd::setsid().map_err(at(Stage::Session))?;
    if let Some(leaf) = start.leaf.filter(|_| !placed) {
        let _ = write(leaf.procs(), b"0"); // the walk works without it; the guard tells the daemon
    }
    leave_guard_behind(start);
    apply_limits(job)?;
    take_identity(job)?;
    // A change of user clears the death signal, so it comes after; the guard may have died before it was set.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(at(Stage::ParentDeath))?;
    if getppid() != start.guard {
        return Err(at(Stage::ParentDeath)(Errno::ESRCH));
    }
    arrange_descriptors(start).map_err(at(Stage::Descriptors))?;
    sys::default_signals();
    SigSet::empty().thread_set_mask().map_err(at(Stage::Signals))?;
    exec(job, start.before)
}

/// Scheduling class and memory lock are not inherited; this is.
fn leave_guard_behind(start: &Start<'_>) {
    if let Some(score) = start.oom_score {
        let _ = std::fs::write("/proc/self/oom_score_adj", score);
    }
    let _ = sys::set_nice(start.nice); // reset-on-fork also forgot the daemon's niceness
}

fn apply_limits(job: &Job) -> Result<(), Failure> {
    for (resource, soft, hard) in &job.limits {
        setrlimit(*resource, *soft, *hard).map_err(at(Stage::Limits))?;
    }
    if let Some(mask) = job.umask {
        umask(mask);
    }
    if let Some(nice) = job.nice {
        sys::set_nice(nice).map_err(at(Stage::Nice))?;
    }
    match &job.working_dir {
        Some(directory) => unistd::chdir(directory.as_c_str()).map_err(at(Stage::WorkingDir)),
        None => Ok(()),
    }
}

fn take_identity(job: &Job) -> Result<(), Failure> {
    if let Some(groups) = &job.groups
        && Uid::effective().is_root()
    {
        unistd::setgroups(groups).map_err(at(Stage::Groups))?;
    }
    if let Some(gid) = job.gid {
        unistd::setresgid(gid, gid, gid).map_err(at(Stage::Gid))?;
    }
    if let Some(uid) = job.uid {
        unistd::setresuid(uid, uid, uid).map_err(at(Stage::Uid))?;
    }
    if job.no_new_privileges {
        prctl::set_no_new_privs().map_err(at(Stage::NoNewPrivileges))?;
    }
    Ok(())
}

/// Null, the two output pipes, and the lock file (R4). All of the guard's own are close-on-exec already; the sweep is a belt.
fn arrange_descriptors(start: &Start<'_>) -> nix::Result<()> {
    unistd::dup2_stdin(start.null.as_fd())?;
    let _ = sys::cloexec_from(3); // ENOSYS before Linux 5.11
    match start.lock {
        Some(lock) => fcntl(lock, F_SETFD(FdFlag::empty())).map(drop),
        None => Ok(()),
    }
}

/// As `execvp` looks, but with the child's own PATH, and the clock immediately before (R9).
fn exec(job: &Job, before: Instant) -> Result<Infallible, Failure> {
    let mut worst = Errno::ENOENT;
    for program in &job.programs {
        if clock::boot() >= before {
            return Err(at(Stage::Late)(Errno::ETIMEDOUT));
        }
        let Err(errno) = unistd::execve(program, &job.argv, &job.env);
        if errno == Errno::EACCES {
            worst = errno; // says more than a later "not found"
        } else if errno != Errno::ENOENT && errno != Errno::ENOTDIR {
            return Err(at(Stage::Exec)(errno));
        }
    }
    Err(at(Stage::Exec)(worst))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_looked_up_in_the_childs_path() {
        let env = [("PATH".into(), "/a::/b".into())];
        assert_eq!(candidates(OsStr::new("node"), &env), ["/a/node", "/b/node"]);
        assert_eq!(candidates(OsStr::new("./node"), &env), ["./node"]);
        assert_eq!(candidates(OsStr::new("node"), &[])[0], "/usr/local/bin/node");
    }

    /// R9, the forked half: were the clock not read, this test would become `false` and fail.
    #[test]
    fn nothing_is_executed_after_the_deadline() {
        let spec = ChildSpec {
            keeper: "k".into(),
            argv: vec!["false".into()],
            env: vec![],
            working_dir: None,
            uid: None,
            gid: None,
            groups: None,
            umask: None,
            limits: vec![],
            nice: None,
            no_new_privileges: true,
            stop_signal: 15,
        };
        let job = Job::new(spec).expect("a valid specification");
        let Err(failure) = exec(&job, clock::boot());
        assert_eq!(failure, Failure { stage: Stage::Late, errno: libc::ETIMEDOUT });
    }

    #[test]
    fn a_failure_survives_the_pipe() {
        let failure = Failure { stage: Stage::Uid, errno: libc::EPERM };
        assert_eq!(Failure::from_bytes(failure.to_bytes()), Some(failure));
        assert_eq!(Failure::from_bytes([0; Failure::SIZE]), None);
    }
}
