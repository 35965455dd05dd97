//! A real server of one version in a directory of its own, on a unix socket.

use super::host::LONG;
use super::port::Port;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

#[derive(Clone, Copy, Debug)]
pub enum Version {
    Redis62,
    Redis70,
    Valkey91,
}

impl Version {
    /// tests/run names the one that cannot be had in its sum.
    pub fn is_to_be_had(self) -> bool {
        let binary = self.binary();
        let is_there = binary.is_relative() || binary.exists();
        if !is_there {
            println!("skip: there is no {}", binary.display());
        }
        is_there
    }

    fn binary(self) -> PathBuf {
        let elsewhere = |path: &str| {
            let dir = std::env::var_os("KEEPERD_TEST_SERVERS")
                .expect("set KEEPERD_TEST_SERVERS to a directory with redis-6.2/redis-server and valkey-9.1/valkey-server");
            std::path::absolute(dir).expect("a folder").join(path)
        };
        match self {
            Version::Redis62 => elsewhere("redis-6.2/redis-server"),
            Version::Redis70 => PathBuf::from("redis-server"),
            Version::Valkey91 => elsewhere("valkey-9.1/valkey-server"),
        }
    }
}

#[derive(Debug)]
pub struct Server {
    version: Version,
    pub port: u16,
    _reserved: Port,
    pub dir: PathBuf,
    _folder: TempDir,
    child: Child,
    more: Vec<String>,
    /// Part of the URL with which tests look in.
    admin: &'static str,
}

impl Server {
    pub fn start(version: Version) -> Server {
        Server::start_as(version, "", |_, _| Vec::new())
    }

    /// `more` options, given its port and folder; the last of a kind counts. `admin` is how tests log in on the unix socket.
    pub fn start_as(
        version: Version,
        admin: &'static str,
        more: impl FnOnce(u16, &Path) -> Vec<String>,
    ) -> Server {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let dir = folder.path().to_owned();
        let (reserved, _) = Port::reserve().expect("a free port");
        let port = reserved.number;
        let more = more(port, &dir);
        let child = Server::spawn(version, &dir, port, &more);
        Server { version, port, _reserved: reserved, dir, _folder: folder, child, more, admin }
    }

    fn spawn(version: Version, dir: &Path, port: u16, more: &[String]) -> Child {
        let binary = version.binary();
        let socket = dir.join("s");
        let _ = std::fs::remove_file(&socket);
        let child = Command::new(&binary)
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--unixsocket",
            ])
            .arg(&socket)
            .arg("--dir")
            .arg(dir)
            .args(more)
            // A frozen one would be a stopped job of the test's own group, to all of which the kernel sends SIGHUP when the command of a
            // `keeperd run` ends meanwhile and nobody of the session is left to continue it.
            .process_group(0)
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not start: {e}; install it", binary.display()));
        let started = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(started.elapsed() < LONG, "{} does not listen", binary.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.dir.join("s").display())
    }

    pub fn tcp_url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// One command of somebody else.
    pub fn run<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(format!("{}{}", self.url(), self.admin)).expect("our own URL");
        let mut con = client.get_connection().expect("a running server");
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut con).unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    /// How often that command was carried out, in scripts too.
    pub fn calls(&self, command: &str) -> u64 {
        let info: String = self.run(&["INFO", "commandstats"]);
        let calls = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        calls.and_then(|rest| rest.split(',').next()).map_or(0, |n| n.parse().expect("a number"))
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// As after a crash: without its data.
    pub fn start_again(&mut self) {
        self.child = Server::spawn(self.version, &self.dir, self.port, &self.more);
    }

    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, signal).expect("our own child");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
