//! From fork to exec. Everything here runs in the child; the guard only forks and reads the pipe. What it may take time for, such as
//! reading a file, holds up nobody else: the deadlines are the guard's.

use super::cgroup::Leaf;
use super::frame::Stage;
use super::init::{self, Pipes};
use super::setup::Foreground;
use super::spec::{ChildSpec, limit_by_name};
use super::sys::{self, Forked};
use crate::clock;
use crate::core::restart::Exit;
use crate::core::time::Instant;
use crate::env_file::{EnvFile, Variables};
use nix::errno::Errno;
use nix::fcntl::{F_SETFD, FdFlag, OFlag, fcntl};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{self, Gid, Pid, Uid, getppid, pipe2, write};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// Why there is no program: travels from the child through the pipe, and on to the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub stage: Stage,
    pub errno: i32,
}

/// One thing said through a pipe to the guard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Word {
    /// The program's pid, where that is not the guard's child.
    Born(i32),
    Failed(Failure),
    Ended(Exit),
}

impl Word {
    pub(super) const SIZE: usize = 5;
    const BORN: u8 = 0; // the numbers of the stages begin at 1
    const CODE: u8 = 254;
    const SIGNAL: u8 = 255;

    pub(super) fn to_bytes(self) -> [u8; Self::SIZE] {
        let (kind, number) = match self {
            Word::Born(pid) => (Self::BORN, pid),
            Word::Failed(Failure { stage, errno }) => (stage as u8, errno),
            Word::Ended(Exit::Code(code)) => (Self::CODE, code),
            Word::Ended(Exit::Signal(signal)) => (Self::SIGNAL, signal),
        };
        let [a, b, c, d] = number.to_le_bytes();
        [kind, a, b, c, d]
    }

    pub(super) fn from_bytes([kind, a, b, c, d]: [u8; Self::SIZE]) -> Option<Self> {
        let number = i32::from_le_bytes([a, b, c, d]);
        Some(match kind {
            Self::BORN => Word::Born(number),
            Self::CODE => Word::Ended(Exit::Code(number)),
            Self::SIGNAL => Word::Ended(Exit::Signal(number)),
            stage => Word::Failed(Failure { stage: Stage::from_number(u64::from(stage))?, errno: number }),
        })
    }
}

pub(super) fn at(stage: Stage) -> impl Fn(Errno) -> Failure {
    move |errno| Failure { stage, errno: errno as i32 }
}

/// A [`ChildSpec`] in the form the system calls want, made when the guard is armed.
#[derive(Debug)]
pub(super) struct Job {
    program: Program,
    argv: Vec<CString>,
    layers: Option<Layers>,
    working_dir: Option<CString>,
    limits: Vec<(Resource, u64, u64)>,
    uid: Option<Uid>,
    gid: Option<Gid>,
    groups: Option<Vec<Gid>>,
    umask: Option<Mode>,
    nice: Option<i32>,
    no_new_privileges: bool,
    pid_namespace: bool,
}

/// Where the program may be, in order, and its environment.
#[derive(Debug)]
struct Program {
    paths: Vec<CString>,
    env: Vec<CString>,
}

/// What [`Program`] is made of anew at each start, because a file belongs to it.
#[derive(Debug)]
struct Layers {
    name: OsString,
    below: Arc<Vec<(OsString, OsString)>>,
    file: EnvFile,
    above: Vec<(OsString, OsString)>,
}

impl Program {
    fn new(name: &OsStr, env: impl Iterator<Item = (OsString, OsString)>) -> Result<Program, Failure> {
        let env: BTreeMap<OsString, OsString> = env.collect();
        let paths = candidates(name, env.get(OsStr::new("PATH")).map(OsString::as_os_str));
        Ok(Program {
            paths: paths.into_iter().map(text).collect::<Result<_, _>>()?,
            env: env.into_iter().map(assignment).map(text).collect::<Result<_, _>>()?,
        })
    }
}

impl Layers {
    fn read(&self) -> Result<Program, Failure> {
        let Variables { values, skipped } = self.file.read().map_err(at(Stage::EnvFile))?;
        if !skipped.is_empty() {
            let (path, lines) = (self.file.path.display(), &skipped[..skipped.len().min(SKIPPED_SHOWN)]);
            let more = if lines.len() < skipped.len() { " and more" } else { "" };
            super::last_cry(&format!(
                "keeperd: {path}: skipped lines {lines:?}{more}: not NAME=value, or KEEPERD_*\n"
            ));
        }
        let read = values.into_iter().map(|(name, value)| (name.into(), value.into()));
        Program::new(&self.name, self.below.iter().cloned().chain(read).chain(self.above.iter().cloned()))
    }
}

/// Lines of a file that are named when they make no sense.
const SKIPPED_SHOWN: usize = 10;

fn text(text: OsString) -> Result<CString, Failure> {
    CString::new(text.into_vec()).map_err(|_| at(Stage::Spec)(Errno::EINVAL))
}

impl Job {
    pub(super) fn new(spec: ChildSpec) -> Result<Job, Failure> {
        let invalid = at(Stage::Spec);
        let name = spec.argv.first().filter(|name| !name.is_empty()).ok_or_else(|| invalid(Errno::EINVAL))?;
        let program = Program::new(name, spec.env.iter().chain(&spec.env_over).cloned())?;
        let name = name.clone();
        let (below, above) = (spec.env, spec.env_over);
        if !(1..=64).contains(&spec.stop_signal) {
            return Err(invalid(Errno::EINVAL));
        }
        let limit = |l: &super::spec::Limit| Some((limit_by_name(&l.resource)?, l.soft, l.hard));
        let other_user = spec.uid.is_some_and(|uid| Uid::from_raw(uid) != Uid::effective());
        let groups_dropped = other_user.then(Vec::new);
        Ok(Job {
            program,
            argv: spec.argv.into_iter().map(text).collect::<Result<_, _>>()?,
            layers: spec.env_file.map(|file| Layers { name, below, file, above }),
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
            pid_namespace: spec.pid_namespace,
        })
    }
}

fn assignment((mut name, value): (OsString, OsString)) -> OsString {
    name.push("=");
    name.push(value);
    name
}

/// Where the program may be, in order. An empty entry of PATH, which would mean the current directory, is left out.
fn candidates(program: &OsStr, path: Option<&OsStr>) -> Vec<OsString> {
    if program.as_bytes().contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path = path.map_or(DEFAULT_PATH, OsStrExt::as_bytes);
    let directories = path.split(|b| *b == b':').filter(|directory| !directory.is_empty());
    directories.map(|directory| OsString::from_vec([directory, b"/", program.as_bytes()].concat())).collect()
}

/// What the guard gives the child on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start<'a> {
    /// As the child knows it: the guard, or 1 in a PID namespace.
    pub parent: Pid,
    pub stdin: BorrowedFd<'a>,
    /// `None`: it leads a session of its own.
    pub foreground: Option<Foreground>,
    pub lock: Option<BorrowedFd<'a>>,
    pub leaf: Option<&'a Leaf>,
    /// The daemon's values, which the guard has changed for itself.
    pub oom_score: Option<&'a str>,
    pub nice: i32,
    /// No exec from here on: the smaller of `start_by` and `stop_at`, as known now.
    pub before: Instant,
}

/// A child on its way.
#[derive(Debug)]
pub(super) struct Started {
    pub pid: Pid,
    /// Ends when exec has succeeded; a [`Failure`] comes before when it has not.
    pub exec: OwnedFd,
    /// In a PID namespace: how the program ended, before its init does.
    pub verdict: Option<OwnedFd>,
}

/// Forks.
pub(super) fn start(job: &Job, start: &Start<'_>) -> Result<Started, Failure> {
    let pipe = || pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(at(Stage::Fork));
    let place = start.leaf.and_then(Leaf::birthplace);
    let (reader, writer) = pipe()?;
    let failure = if job.pid_namespace {
        let (verdict, verdict_writer) = pipe()?;
        let placed = match sys::fork_namespace(place).map_err(at(Stage::Namespace))? {
            Forked::Parent { child } => {
                return Ok(Started { pid: child, exec: reader, verdict: Some(verdict) });
            }
            Forked::Child { placed } => placed,
        };
        drop(reader); // or we would never see that the guard is gone
        let mut pipes = Some(Pipes { exec: writer, verdict: verdict_writer });
        let Err(failure) = init::run(job, start, placed, &mut pipes);
        pipes.map(|pipes| (pipes.exec, failure))
    } else {
        let placed = match sys::fork(place).map_err(at(Stage::Fork))? {
            Forked::Parent { child } => return Ok(Started { pid: child, exec: reader, verdict: None }),
            Forked::Child { placed } => placed,
        };
        let Err(failure) = run(job, start, placed);
        Some((writer, failure))
    };
    if let Some((writer, failure)) = failure {
        let _ = write(&writer, &Word::Failed(failure).to_bytes()); // if the guard is gone, nobody wants to know
    }
    sys::exit_now(127)
}

pub(super) fn run(job: &Job, start: &Start<'_>, placed: bool) -> Result<Infallible, Failure> {
    match start.foreground {
        None => unistd::setsid().map(drop),
        Some(Foreground { group, .. }) => unistd::setpgid(Pid::from_raw(0), group),
    }
    .map_err(at(Stage::Session))?;
    if let Some(leaf) = start.leaf.filter(|_| !placed) {
        let _ = write(leaf.procs(), b"0"); // the walk works without it; the guard tells the daemon
    }
    leave_guard_behind(start);
    let fresh = job.layers.as_ref().map(Layers::read).transpose()?; // before it may no longer be readable
    apply_limits(job)?;
    take_identity(job)?;
    enter_working_dir(job)?;
    // A change of user clears the death signal, so it comes after; the guard may have died before it was set.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(at(Stage::ParentDeath))?;
    if getppid() != start.parent {
        return Err(at(Stage::ParentDeath)(Errno::ESRCH));
    }
    arrange_descriptors(start).map_err(at(Stage::Descriptors))?;
    sys::default_signals(start.foreground.map_or(0, |foreground| foreground.ignored));
    SigSet::empty().thread_set_mask().map_err(at(Stage::Signals))?;
    exec(fresh.as_ref().unwrap_or(&job.program), &job.argv, start.before)
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
    match job.nice {
        Some(nice) => sys::set_nice(nice).map_err(at(Stage::Nice)),
        None => Ok(()),
    }
}

fn take_identity(job: &Job) -> Result<(), Failure> {
    if let Some(groups) = &job.groups
        && !are_in_force(groups)
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

/// Then an ordinary user need not be allowed to set them.
fn are_in_force(groups: &[Gid]) -> bool {
    let set = |groups: &[Gid]| groups.iter().map(|gid| gid.as_raw()).collect::<BTreeSet<_>>();
    unistd::getgroups().is_ok_and(|current| set(&current) == set(groups))
}

/// As the user: root may be a stranger where the folder is mounted from, and the user may have no business in it.
fn enter_working_dir(job: &Job) -> Result<(), Failure> {
    match &job.working_dir {
        Some(directory) => unistd::chdir(directory.as_c_str()).map_err(at(Stage::WorkingDir)),
        None => Ok(()),
    }
}

/// Null or the caller's stdin, the two output pipes, and the lock file (R4). All of the guard's own are close-on-exec already; the sweep is a belt.
fn arrange_descriptors(start: &Start<'_>) -> nix::Result<()> {
    unistd::dup2_stdin(start.stdin.as_fd())?;
    let _ = sys::cloexec_from(3); // ENOSYS before Linux 5.11
    match start.lock {
        Some(lock) => fcntl(lock, F_SETFD(FdFlag::empty())).map(drop),
        None => Ok(()),
    }
}

/// As `execvp` looks, but with the child's own PATH, and the clock immediately before (R9).
fn exec(program: &Program, argv: &[CString], before: Instant) -> Result<Infallible, Failure> {
    let mut worst = Errno::ENOENT;
    for path in &program.paths {
        if clock::boot() >= before {
            return Err(at(Stage::Late)(Errno::ETIMEDOUT));
        }
        let Err(errno) = unistd::execve(path, argv, &program.env);
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
        let path = Some(OsStr::new("/a::/b"));
        assert_eq!(candidates(OsStr::new("node"), path), ["/a/node", "/b/node"]);
        assert_eq!(candidates(OsStr::new("./node"), path), ["./node"]);
        assert_eq!(candidates(OsStr::new("node"), None)[0], "/usr/local/bin/node");
    }

    /// R9, the forked half: were the clock not read, this test would become `false` and fail.
    #[test]
    fn nothing_is_executed_after_the_deadline() {
        let spec = ChildSpec {
            keeper: "k".into(),
            argv: vec!["false".into()],
            env: Arc::default(),
            env_file: None,
            env_over: vec![],
            working_dir: None,
            uid: None,
            gid: None,
            groups: None,
            umask: None,
            limits: vec![],
            nice: None,
            no_new_privileges: true,
            pid_namespace: false,
            stop_signal: 15,
        };
        let job = Job::new(spec).expect("a valid specification");
        let Err(failure) = exec(&job.program, &job.argv, clock::boot());
        assert_eq!(failure, Failure { stage: Stage::Late, errno: libc::ETIMEDOUT });
    }

    #[test]
    fn every_word_survives_the_pipe() {
        let failure = Failure { stage: Stage::Uid, errno: libc::EPERM };
        let ends = [Exit::Code(255), Exit::Signal(64)].map(Word::Ended);
        for word in [Word::Born(i32::MAX), Word::Failed(failure)].into_iter().chain(ends) {
            assert_eq!(Word::from_bytes(word.to_bytes()), Some(word));
        }
        assert_eq!(Word::from_bytes([200; Word::SIZE]), None);
    }
}
