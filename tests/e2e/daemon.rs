//! A keeperd process, seen from outside: its configuration, its log, its signals, its `status`, its guards.

use crate::clock::{boot_ns, ms};
use crate::naive::Naive;
use crate::procs::{self, MARKER, Proc};
use crate::step::{Step, check, failure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a guard calls itself until it has a term.
const RESERVE: &str = "keeperd-reserve";

/// `KEEPERD_BIN`, else the one cargo built together with this suite, in the same profile.
pub fn binary() -> PathBuf {
    std::env::var_os("KEEPERD_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_keeperd").into()).into()
}

/// Enough for any trial whose children do not shout; what a shouting one says is not evidence.
const LOG_MAX_BYTES: u64 = 4 << 20;
const LINE_MAX_BYTES: usize = 600;

#[derive(Clone, Debug)]
pub struct Start {
    pub host: String,
    /// How often this host was started before, so that its terms can be told apart.
    pub generation: u32,
    pub config: String,
    pub cgroup: bool,
    /// The wrong daemon, for a control.
    pub naive: Option<Naive>,
    /// Nobody reads the daemon's log.
    pub deaf_stderr: bool,
    pub log_level: &'static str,
    /// More of its environment.
    pub env: Vec<(String, PathBuf)>,
}

#[derive(Debug)]
pub struct Daemon {
    pub host: String,
    config: PathBuf,
    process: Child,
    exited: Option<ExitStatus>,
    _unread: Option<ChildStderr>,
}

impl Daemon {
    pub fn start(id: &str, dir: &Path, start: &Start) -> Step<Self> {
        let Start { host, generation, .. } = start;
        let config = dir.join(format!("{host}.toml"));
        std::fs::write(&config, &start.config)?;
        let mut command = if let Some(naive) = start.naive {
            let mut own = Command::new(std::env::current_exe()?);
            own.args(["naive", naive.name()]);
            own
        } else {
            Command::new(binary())
        };
        let level = std::env::var("E2E_LOG_LEVEL").unwrap_or_else(|_| start.log_level.to_owned());
        command.arg("--config").arg(&config).args(["--log-level", &level]).current_dir(dir);
        for name in ["NOTIFY_SOCKET", "REDIS_NODES", "REDIS_LOCK_TTL_MS", "KEEPERD_CONFIG", "KEEPERD_CGROUP"]
        {
            command.env_remove(name);
        }
        if !start.cgroup {
            command.env("KEEPERD_CGROUP", "off");
        }
        command.envs(start.env.iter().map(|(name, value)| (name, value)));
        command.env(MARKER, id).env("E2E_HOST", format!("{host}.{generation}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().map_err(|e| failure(format!("{}: {e}", binary().display())))?;
        let stderr = process.stderr.take();
        let log =
            OpenOptions::new().append(true).create(true).open(dir.join(format!("daemon-{host}.log")))?;
        let unread = if start.deaf_stderr {
            stderr
        } else {
            std::thread::spawn(move || stamp_lines(stderr, log));
            None
        };
        Ok(Self { host: host.clone(), config, process, exited: None, _unread: unread })
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).expect("pids are below 2^22")
    }

    pub fn grow_up(&self) {
        procs::grow_up(self.pid());
    }

    pub fn is_running(&mut self) -> bool {
        if self.exited.is_none() {
            self.exited = self.process.try_wait().ok().flatten();
        }
        self.exited.is_none()
    }

    /// Sends a signal and says when.
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
            let late = || {
                format!("daemon {} still runs {} after it was told to stop", self.host, ms(boot_ns() - since))
            };
            check(Instant::now() < deadline, late())?;
            std::thread::sleep(Duration::from_millis(1));
        }
        self.exited.ok_or_else(|| failure("exited without a status"))
    }

    pub fn guards(&self) -> Vec<Proc> {
        let is_guard = |p: &Proc| {
            p.comm == "keeperd-guard" || (p.comm != RESERVE && p.cmdline.starts_with("keeperd: guard "))
        };
        procs::children(self.pid()).into_iter().filter(is_guard).collect()
    }

    /// Guards without a term.
    pub fn reserves(&self) -> Vec<Proc> {
        procs::children(self.pid()).into_iter().filter(|p| p.comm == RESERVE).collect()
    }

    pub fn guard(&self, keeper: &str) -> Step<Proc> {
        let guards = self.guards();
        let named = guards.iter().find(|g| g.cmdline == format!("keeperd: guard {keeper}"));
        named.or(guards.first().filter(|_| guards.len() == 1)).cloned().ok_or_else(|| {
            let seen: Vec<String> = procs::children(self.pid()).iter().map(Proc::describe).collect();
            failure(format!("daemon {} has no guard for {keeper}; its children: {seen:?}", self.host))
        })
    }

    /// A command of `keeperd` about this daemon, as anybody would give it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.arg("--config").arg(&self.config).args(arguments).stdin(Stdio::null());
        command
    }

    /// `keeperd status --json`, through the program as anybody would.
    pub fn status(&self) -> Step<serde_json::Value> {
        let output = self.command(&["status", "--json"]).output()?;
        let problem = || format!("status: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        check(output.status.success(), problem())?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// This keeper's object in `status --json`.
    pub fn keeper_status(&self, keeper: &str) -> Step<serde_json::Value> {
        let status = self.status()?;
        let keepers = status["keepers"].as_array().ok_or_else(|| failure("status has no keepers"))?;
        let found = keepers.iter().find(|k| k["name"] == keeper).cloned();
        found.ok_or_else(|| failure(format!("status does not know {keeper}")))
    }
}

/// Copies the log, each line with the instant it arrived, so that logs of several processes can be merged.
fn stamp_lines(stderr: Option<ChildStderr>, mut log: File) {
    let mut reader = BufReader::with_capacity(256 * 1024, stderr.expect("stderr is piped"));
    let (mut line, mut chunk, mut written) = (Vec::new(), vec![0; 64 * 1024], 0);
    while let Ok(n @ 1..) = reader.read(&mut chunk) {
        for byte in &chunk[..n] {
            if *byte != b'\n' {
                line.push(*byte);
                continue;
            }
            line.truncate(LINE_MAX_BYTES);
            if written < LOG_MAX_BYTES {
                let text = format!("{} {}\n", boot_ns(), String::from_utf8_lossy(&line));
                written += text.len() as u64;
                log.write_all(text.as_bytes()).ok();
            }
            line.clear();
        }
    }
}
