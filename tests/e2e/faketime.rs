//! A wall clock of its own for one node: libfaketime under a server that is built on libc's malloc. Debian's redis-server
//! is built on jemalloc, which the library does not get along with; the servers from PyPI wheels do (tests/run fetches them).

use crate::step::{Step, skipped};
use std::path::{Path, PathBuf};
use std::process::Command;

const SERVERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache/servers");

/// A server whose clock can be set, and the file that sets it.
#[derive(Clone, Debug)]
pub struct Clock {
    library: PathBuf,
    pub server: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// Skips the trial where it cannot be had.
    pub fn available() -> Step<(PathBuf, PathBuf)> {
        let servers =
            ["valkey-9.1/valkey-server", "redis-6.2/redis-server"].map(|s| Path::new(SERVERS).join(s));
        let server = servers.into_iter().find(|s| s.is_file());
        let server =
            server.ok_or_else(|| skipped(format!("no server in {SERVERS}: tests/run fetches them")))?;
        let folders = [
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/aarch64-linux-gnu",
            "/usr/lib64",
            "/usr/lib",
            "/usr/local/lib",
        ];
        let library =
            folders.into_iter().map(|f| Path::new(f).join("faketime/libfaketime.so.1")).find(|l| l.is_file());
        let library = library.ok_or_else(|| skipped("no libfaketime: apt-get install libfaketime"))?;
        Ok((library, server))
    }

    pub fn of(dir: &Path) -> Step<Self> {
        let (library, server) = Self::available()?;
        let clock = Self { library, server, file: dir.join("clock") };
        clock.set(0)?;
        Ok(clock)
    }

    /// How far ahead of this machine's the node's clock is from now on.
    pub fn set(&self, ahead_ms: i64) -> Step {
        // Renamed into its place: the server reads the file with every look at the clock.
        let new = self.file.with_extension("new");
        let (sign, ahead_ms) = (if ahead_ms < 0 { '-' } else { '+' }, ahead_ms.abs());
        std::fs::write(&new, format!("{sign}{}.{:03}\n", ahead_ms / 1000, ahead_ms % 1000))?;
        Ok(std::fs::rename(new, &self.file)?)
    }

    pub fn put_on(&self, server: &mut Command) {
        server
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("DONT_FAKE_MONOTONIC", "1");
    }
}
