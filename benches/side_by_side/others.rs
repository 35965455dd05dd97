//! What else runs a command under a lock: etcdctl lock, and single-beat. Two of each, and the lock goes to and fro.

use crate::clock::{boot_ns, nanos};
use crate::procs;
use crate::proxy::Port;
use crate::rival::cache;
use crate::step::{Step, check, failure};
use crate::table::Spans;
use crate::trial::{millis, secs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const HOSTS: [&str; 2] = ["x", "y"];

#[derive(Debug)]
pub struct Other {
    pub name: &'static str,
    /// It notices in seconds, not in milliseconds.
    pub polls: bool,
    pub spans: Spans,
    /// Whom SIGTERM is sent to: the program itself, or the child, where the program does not pass it on.
    to_child: bool,
    program: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    running: Vec<(&'static str, Child)>,
    server: Option<Child>,
}

/// Debian's etcd, one member, which is quicker than three.
pub fn etcdctl(dir: &Path) -> Step<Other> {
    let tool = |name: &str| cache("tools/usr/bin").join(name);
    let (client, peer) = (Port::reserve()?.0, Port::reserve()?.0);
    let url = format!("http://127.0.0.1:{}", client.number);
    let peers = format!("http://127.0.0.1:{}", peer.number);
    let server = Command::new(tool("etcd"))
        .args(["--name", "a", "--listen-client-urls", &url, "--advertise-client-urls", &url])
        .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("a={peers}"), "--log-level", "error", "--data-dir"])
        .arg(dir.join("etcd"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failure(format!("etcd: {e}; benches/run fetches it")))?;
    let program =
        [&tool("etcdctl").display().to_string(), "--endpoints", &url, "lock", "--ttl", "2", "bench"];
    let mut other = Other::new("etcdctl lock 3.4, SIGTERM to its child", dir.join("etcd.log"), program, true);
    other.server = Some(server);
    let end = boot_ns() + nanos(secs(10));
    while std::net::TcpStream::connect(("127.0.0.1", client.number)).is_err() {
        check(boot_ns() < end, "etcd does not listen")?;
        std::thread::sleep(millis(20));
    }
    other.environment.push(("ETCDCTL_API".into(), "3".into()));
    other.begin()?;
    Ok(other)
}

pub fn single_beat(dir: &Path, port: u16) -> Step<Other> {
    let program = cache("single-beat/bin/single-beat").display().to_string();
    let mut other = Other::new("single-beat 0.6", dir.join("single-beat.log"), [&program], false);
    other.polls = true;
    other.environment.push(("SINGLE_BEAT_REDIS_SERVER".into(), format!("redis://127.0.0.1:{port}")));
    other.environment.push(("SINGLE_BEAT_IDENTIFIER".into(), "bench".into()));
    other.begin()?;
    Ok(other)
}

impl Other {
    fn new<const N: usize>(name: &'static str, log: PathBuf, program: [&str; N], to_child: bool) -> Other {
        Other {
            name,
            polls: false,
            spans: Spans::default(),
            to_child,
            program: program.map(str::to_owned).to_vec(),
            environment: Vec::new(),
            log,
            running: Vec::new(),
            server: None,
        }
    }

    fn begin(&mut self) -> Step {
        for host in HOSTS {
            self.start(host)?;
            std::thread::sleep(millis(500));
        }
        self.start_after(0)?;
        Ok(())
    }

    fn start(&mut self, host: &'static str) -> Step {
        let own = std::env::current_exe()?;
        let process = Command::new(&self.program[0])
            .args(&self.program[1..])
            .arg(own)
            .arg("probe")
            .arg(&self.log)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("E2E_HOST", host)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| failure(format!("{}: {e}; benches/run fetches it", self.program[0])))?;
        self.running.push((host, process));
        Ok(())
    }

    /// The first child that began after that, with its host and pid.
    fn start_after(&self, since: u64) -> Step<(u64, String, i32)> {
        let end = boot_ns() + nanos(secs(20));
        loop {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let mut found = log.lines().filter_map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                let [at, _, _, instance, pid, "start", _] = words[..] else { return None };
                let at: u64 = at.parse().ok()?;
                (at > since).then(|| {
                    (at, instance.split(':').next().unwrap_or_default().to_owned(), pid.parse().ok())
                })
            });
            if let Some((at, host, Some(pid))) = found.next_back() {
                return Ok((at, host, pid));
            }
            check(boot_ns() < end, format!("{} starts no child", self.name))?;
            std::thread::sleep(millis(1));
        }
    }

    pub fn hand_over(&mut self, times: usize) -> Step {
        for _ in 0..times {
            std::thread::sleep(millis(300));
            let (_, host, child) = self.start_after(0)?;
            let place = self.running.iter().position(|(h, _)| *h == host).expect("it is one of the two");
            let (host, mut process) = self.running.remove(place);
            let own = i32::try_from(process.id()).expect("pids are below 2^22");
            let at = boot_ns();
            kill(Pid::from_raw(if self.to_child { child } else { own }), Signal::SIGTERM)?;
            let (start, ..) = self.start_after(at)?;
            self.spans.push(start - at);
            process.wait()?;
            self.start(host)?;
        }
        Ok(())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let servers = self.server.take();
        for mut process in self.running.drain(..).map(|(_, process)| process).chain(servers) {
            let pid = i32::try_from(process.id()).expect("pids are below 2^22");
            let below = procs::descendants(pid);
            process.kill().ok();
            process.wait().ok();
            for orphan in below {
                kill(Pid::from_raw(orphan.pid), Signal::SIGKILL).ok();
            }
        }
    }
}
