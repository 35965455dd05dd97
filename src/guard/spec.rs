//! What is to be run, complete: the guard decides nothing about it.

use crate::env_file::EnvFile;
use nix::errno::Errno;
use nix::fcntl::{F_ADD_SEALS, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::Resource;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// The main child of a keeper. It travels to the guard in a sealed memfd, because `env` may hold secrets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildSpec {
    /// Name of the keeper: `[A-Za-z0-9._-]{1,128}`, part of the guard's title and of the cgroup's name.
    pub keeper: String,
    /// No shell. The first is looked up in the child's PATH unless it has a slash; relative to `working_dir` if it has.
    pub argv: Vec<OsString>,
    /// The environment; nothing else is inherited. The daemon has it once for all keepers that do not change it.
    pub env: Arc<Vec<(OsString, OsString)>>,
    /// Read whenever the program is started, and laid over `env`.
    pub env_file: Option<EnvFile>,
    /// Laid over both.
    pub env_over: Vec<(OsString, OsString)>,
    pub working_dir: Option<PathBuf>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// `None`: as the daemon's, except that a change of user drops them all.
    pub groups: Option<Vec<u32>>,
    pub umask: Option<u32>,
    pub limits: Vec<Limit>,
    /// `None`: the daemon's.
    pub nice: Option<i32>,
    pub no_new_privileges: bool,
    /// The program runs in a PID namespace of its own, which the kernel empties when its init dies.
    pub pid_namespace: bool,
    /// A number, so that real-time signals can be named.
    pub stop_signal: i32,
}

impl std::fmt::Debug for ChildSpec {
    /// Arguments and environment may hold secrets and are only counted.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChildSpec")
            .field("keeper", &self.keeper)
            .field("arguments", &self.argv.len())
            .field("variables", &(self.env.len() + self.env_over.len()))
            .field("env_file", &self.env_file)
            .field("uid", &self.uid)
            .field("gid", &self.gid)
            .finish_non_exhaustive()
    }
}

/// A resource limit; `u64::MAX` is unlimited.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Limit {
    /// One of [`LIMITS`].
    pub resource: String,
    pub soft: u64,
    pub hard: u64,
}

/// The limits that can be set, by the names `prlimit` uses.
pub const LIMITS: [(&str, Resource); 16] = [
    ("as", Resource::RLIMIT_AS),
    ("core", Resource::RLIMIT_CORE),
    ("cpu", Resource::RLIMIT_CPU),
    ("data", Resource::RLIMIT_DATA),
    ("fsize", Resource::RLIMIT_FSIZE),
    ("locks", Resource::RLIMIT_LOCKS),
    ("memlock", Resource::RLIMIT_MEMLOCK),
    ("msgqueue", Resource::RLIMIT_MSGQUEUE),
    ("nice", Resource::RLIMIT_NICE),
    ("nofile", Resource::RLIMIT_NOFILE),
    ("nproc", Resource::RLIMIT_NPROC),
    ("rss", Resource::RLIMIT_RSS),
    ("rtprio", Resource::RLIMIT_RTPRIO),
    ("rttime", Resource::RLIMIT_RTTIME),
    ("sigpending", Resource::RLIMIT_SIGPENDING),
    ("stack", Resource::RLIMIT_STACK),
];

/// The resource of that name.
pub fn limit_by_name(name: &str) -> Option<Resource> {
    LIMITS.iter().find(|(known, _)| *known == name).map(|(_, resource)| *resource)
}

/// Bytes in memory that nobody can change any more, for one other process to read.
pub(super) fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create("keeperd", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    file.rewind()?;
    let all =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    match fcntl(&file, F_ADD_SEALS(all)) {
        Ok(_) | Err(Errno::EINVAL) => Ok(file.into()), // EINVAL: a kernel without seals for memfd; they are a belt
        Err(e) => Err(e.into()),
    }
}
