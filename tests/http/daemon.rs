//! A daemon with the local engine in a folder of its own, or several that share one.

use crate::client::{Reply, get};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A bound for what takes milliseconds: only a fault takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Daemon {
    process: Child,
    log: Arc<Mutex<String>>,
}

/// Waits until `what` is there.
pub fn await_some<T>(name: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(Instant::now() < end, "still no {name} after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An address that only this process uses: all of 127.0.0.0/8 is this machine.
pub fn own_address(port: u16) -> SocketAddr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    SocketAddr::from(([127, 64 + high, middle, low], port))
}

/// The top of a configuration whose nodes are not there.
pub fn top_without_nodes(folder: &Path, host: &str) -> String {
    let nodes: Vec<String> =
        (1..=3).map(|node| format!("unix://{}/r{node}.sock", folder.display())).collect();
    let folder = folder.display();
    format!(
        "host = \"{host}\"\n[lock]\nnodes = {nodes:?}\n[control]\nsocket = \"{folder}/{host}.sock\"\n\
         [http]\nlisten = \"127.0.0.1:0\"\n"
    )
}

/// The top of a configuration: engine local in `folder`, a free port. A guard has a tenth of the lease to acknowledge, so that on a
/// machine that stalls a short one costs the term.
pub fn top(folder: &Path, host: &str) -> String {
    let folder = folder.display();
    format!(
        "host = \"{host}\"\n[lock]\nengine = \"local\"\ndirectory = \"{folder}\"\nttl = \"10s\"\n\
         [control]\nsocket = \"{folder}/{host}.sock\"\n[http]\nlisten = \"127.0.0.1:0\"\n"
    )
}

pub fn keeper(name: &str, more: &str) -> String {
    format!("[[keeper]]\nname = \"{name}\"\n{more}\n")
}

pub const SLEEPS: &str = "command = [\"sleep\", \"1000\"]";

impl Daemon {
    pub fn start(folder: &Path, host: &str, config: &str) -> Daemon {
        let path = folder.join(format!("{host}.toml"));
        std::fs::write(&path, config).expect("our folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_keeperd"));
        command.arg("--config").arg(&path).current_dir(folder).env("KEEPERD_CGROUP", "off");
        for name in ["NOTIFY_SOCKET", "REDIS_NODES", "REDIS_LOCK_TTL_MS", "KEEPERD_CONFIG"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the daemon is built");
        let stderr = process.stderr.take().expect("piped");
        let log = Arc::new(Mutex::new(String::new()));
        let writes = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = writes.lock().expect("no panic");
                log.push_str(&line);
                log.push('\n');
            }
        });
        Daemon { process, log }
    }

    pub fn log(&self) -> String {
        self.log.lock().expect("no panic").clone()
    }

    /// Where it serves, once it does.
    pub fn address(&self) -> SocketAddr {
        await_some("address in the log", || {
            let log = self.log();
            let line = log.lines().find(|line| line.contains("metrics and page are served"))?;
            let text = line.split("address=").nth(1)?;
            Some(text.trim().parse().expect("an address"))
        })
    }

    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("our child").is_none()
    }

    /// The keeper's entry in the status, once `is` says yes to it.
    pub fn await_keeper(
        &self,
        name: &str,
        what: &str,
        is: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let address = self.address();
        await_some(&format!("{name} that is {what}"), || {
            let status = get(address, "/v1/status").json();
            let keepers = status["keepers"].as_array().expect("a list").clone();
            keepers.into_iter().find(|keeper| keeper["name"] == name && is(keeper))
        })
    }

    /// Its child runs here.
    pub fn await_child(&self, name: &str) -> serde_json::Value {
        self.await_keeper(name, "running", |keeper| keeper["role"] == "leader" && keeper["pid"].is_u64())
    }

    pub fn await_reply(&self, path: &str, code: u16) -> Reply {
        let address = self.address();
        await_some(&format!("{code} of {path}"), || {
            Some(get(address, path)).filter(|reply| reply.code == code)
        })
    }

    pub fn stop(&mut self) -> ExitStatus {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).expect("a pid"));
        kill(pid, Signal::SIGTERM).expect("our child");
        await_some("end of the daemon", || self.process.try_wait().expect("our child"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the daemon:\n{}", self.log());
        }
        // Its guards end the children.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
