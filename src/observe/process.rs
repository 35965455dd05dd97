//! What the kernel knows of this process, under the names all Prometheus clients use. Read when it is asked for, on the edge thread.

use crate::clock;
use crate::core::time::WallTime;
use nix::sys::resource::{Resource, getrlimit};
use std::fs;

/// The daemon alone: guards and children are processes of their own.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    pub open_fds: u64,
    /// The soft limit.
    pub max_fds: u64,
    /// Seconds of Unix time.
    pub start_seconds: f64,
}

impl Process {
    /// As of now; what cannot be read is 0.
    pub fn now(started: WallTime) -> Process {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let fds = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        Process {
            cpu_seconds: clock::cpu().as_secs_f64(),
            resident_bytes: bytes(&status, "VmRSS:"),
            virtual_bytes: bytes(&status, "VmSize:"),
            // One of them is the folder that is read.
            open_fds: fds.saturating_sub(1) as u64,
            max_fds: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
            start_seconds: started.as_micros() as f64 / 1e6,
        }
    }
}

/// A line such as `VmRSS:     5120 kB`.
fn bytes(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
