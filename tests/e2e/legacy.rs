//! Keepers without keeperd: `tests/interop/keeper.js` takes the lock with the npm package `redlock`, as the keepers do that
//! keeperd replaces.

use crate::clock::{boot_ns, ms};
use crate::procs::MARKER;
use crate::step::{Step, check, failure, skipped};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/keeper.js");
/// Where `tests/run` installs the packages of tests/interop/package-lock.json.
const MODULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache/interop/node_modules");

/// Which packages, and how they are used.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub redlock: &'static str,
    pub ioredis: &'static str,
    /// `retryCount: -1` instead of a loop of its own, which keeperd's README advises.
    pub naive: bool,
}

pub const V4: Client = Client { redlock: "4", ioredis: "5", naive: false };
pub const V5: Client = Client { redlock: "5", ioredis: "5", naive: false };

/// Skips the trial where Node or the packages are missing.
pub fn available() -> Step {
    // npm writes that file last.
    if !Path::new(MODULES).join(".package-lock.json").is_file() {
        return Err(skipped(format!("no npm packages in {MODULES}: tests/run installs them")));
    }
    let node = Command::new("node").arg("--version").stdout(Stdio::null()).status();
    node.map(drop).map_err(|e| skipped(format!("node: {e}; apt-get install nodejs")))
}

/// What every `keeper.js` started in this folder needs to know.
pub fn prepare(dir: &Path, ports: &[u16], keeper: &str, record_as: &str, log: &Path) -> Step {
    let setup = serde_json::json!({
        "modules": MODULES, "ports": ports, "keeper": keeper, "record_as": record_as, "log": log,
        "ttl_ms": crate::trial::TTL.as_millis(), "boot_minus_monotonic_ns": boot_minus_monotonic(),
    });
    Ok(std::fs::write(dir.join("legacy.json"), setup.to_string())?)
}

/// Constant as long as the machine is not suspended. The least of several readings: between the two clocks, time may pass.
fn boot_minus_monotonic() -> u64 {
    let reading = || {
        let t = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has CLOCK_MONOTONIC");
        boot_ns() - (t.tv_sec().unsigned_abs() * 1_000_000_000 + t.tv_nsec().unsigned_abs())
    };
    (0..1000).map(|_| reading()).min().unwrap_or(0)
}

#[derive(Debug)]
pub struct Legacy {
    pub name: String,
    process: Child,
    exited: Option<ExitStatus>,
    /// What it says, and where in it this generation begins.
    log: PathBuf,
    log_from: usize,
}

impl Legacy {
    /// Stands for the lock until it is told to stop.
    pub fn start(id: &str, dir: &Path, name: &str, generation: u32, client: Client) -> Step<Self> {
        let log = dir.join(format!("legacy-{name}.log"));
        let stderr = OpenOptions::new().append(true).create(true).open(&log)?;
        let log_from = usize::try_from(stderr.metadata()?.len())?;
        let retries = if client.naive { "forever" } else { "own" };
        let process = Command::new("node")
            .args([SCRIPT, "hold", client.redlock, client.ioredis, retries])
            .current_dir(dir)
            .env(MARKER, id)
            .env("E2E_HOST", format!("{name}.{generation}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()?;
        Ok(Self { name: name.into(), process, exited: None, log, log_from })
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).expect("pids are below 2^22")
    }

    pub fn is_running(&mut self) -> bool {
        if self.exited.is_none() {
            self.exited = self.process.try_wait().ok().flatten();
        }
        self.exited.is_none()
    }

    /// Waits until the script itself heeds SIGTERM, or is gone: until then Node has a handler of its own, which ends it.
    pub fn grow_up(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.is_running() && !self.is_up() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_up(&self) -> bool {
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        said.get(self.log_from..).is_some_and(|said| said.contains(" up after "))
    }

    pub fn signal(&self, signal: Signal) -> u64 {
        let at = boot_ns();
        if self.exited.is_none() {
            kill(Pid::from_raw(self.pid()), signal).ok();
        }
        at
    }

    pub fn await_exit(&mut self, within: Duration) -> Step<ExitStatus> {
        let since = boot_ns();
        let deadline = Instant::now() + within;
        while self.is_running() {
            let late =
                || format!("{} still runs {} after it was told to stop", self.name, ms(boot_ns() - since));
            check(Instant::now() < deadline, late())?;
            std::thread::sleep(Duration::from_millis(1));
        }
        self.exited.ok_or_else(|| failure("exited without a status"))
    }
}

/// Has the package extend or release the lock with this value, whoever took it: true when it could.
pub fn once(dir: &Path, what: &str, client: Client, value: &str) -> Step<bool> {
    let output = Command::new("node")
        .args([SCRIPT, what, client.redlock, client.ioredis, value])
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let problem = || format!("{what}: {}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    check(output.status.success() && (said == "yes" || said.starts_with("no: ")), problem())?;
    Ok(said == "yes")
}
