//! A real server of one version in a directory of its own, on a unix socket.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub enum Version {
    Redis62,
    Redis70,
    Valkey91,
}

impl Version {
    fn binary(self) -> PathBuf {
        let elsewhere = |path: &str| {
            let dir = std::env::var_os("KEEPERD_TEST_SERVERS")
                .expect("set KEEPERD_TEST_SERVERS to a directory with redis-6.2/redis-server and valkey-9.1/valkey-server");
            let binary = PathBuf::from(dir).join(path);
            assert!(binary.exists(), "{} is missing: KEEPERD_TEST_SERVERS must contain it", binary.display());
            binary
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
    pub dir: PathBuf,
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
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("keeperd-redis-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary directory");
        // The system does not give a port that was just free to somebody else at once.
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("loopback").port();
        let more = more(port, &dir);
        let child = Server::spawn(version, &dir, port, &more);
        Server { version, port, dir, child, more, admin }
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
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not start: {e}; install it", binary.display()));
        let started = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(started.elapsed() < Duration::from_secs(10), "{} does not listen", binary.display());
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
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
