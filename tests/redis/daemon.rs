//! The real keeperd in a folder of its own.

use super::host::LONG;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const KEEPERD: &str = env!("CARGO_BIN_EXE_keeperd");

/// A file that only its owner can read.
pub fn private(path: &Path, text: &str) {
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    std::io::Write::write_all(&mut file.expect("our folder"), text.as_bytes()).expect("room");
}

/// Looks until it is so, as long as anything may take on a busy machine.
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_or(|| what.to_owned(), look)
}

/// The same, with more to say when it does not happen.
pub fn until_or<T>(what: impl Fn() -> String, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < LONG, "this does not happen: {}", what());
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).expect("a process of ours");
}

pub fn lives(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

pub struct Daemon {
    child: Child,
    pub config: PathBuf,
    pub log: PathBuf,
}

/// Writes `name.toml` beside a socket and a log of its own. The daemon's environment is that of the test with `variables`.
pub fn write_config(folder: &Path, name: &str, lock: &str, keepers: &str) -> PathBuf {
    let config = folder.join(format!("{name}.toml"));
    let socket = folder.join(format!("{name}.sock"));
    let text = format!("host = \"{name}\"\n[lock]\n{lock}\n[control]\nsocket = {socket:?}\n{keepers}");
    private(&config, &text);
    config
}

impl Daemon {
    pub fn start(config: &Path, variables: &[(&str, &str)]) -> Daemon {
        let log = config.with_extension("log");
        let stderr = fs::File::create(&log).expect("our folder");
        let child = Command::new(KEEPERD)
            .args(["--log-level", "debug", "--log-format", "text", "--config"])
            .arg(config)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the built keeperd");
        Daemon { child, config: config.to_owned(), log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn status_text(&self) -> String {
        let status = Command::new(KEEPERD).args(["status", "--json", "--config"]).arg(&self.config).output();
        String::from_utf8_lossy(&status.expect("the built keeperd").stdout).into_owned()
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.status_text()).unwrap_or(Value::Null)
    }

    /// The pid of its child, when it leads.
    pub fn until_leading(&self) -> u32 {
        until_or(
            || format!("leading\n{}", self.log()),
            || {
                let status = self.status();
                let keeper = &status["keepers"][0];
                let pid = keeper["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
                pid.filter(|_| keeper["role"] == "leader")
            },
        )
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) {
        signal(self.pid(), Signal::SIGTERM);
        assert!(self.child.wait().expect("our own child").success(), "{}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ended or not, its output must not be waited for.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// All descendants of a process, itself included.
pub fn tree(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        at += 1;
        let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    found
}
