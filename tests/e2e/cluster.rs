//! Real redis-server processes, and as much of the protocol as a hand with redis-cli needs.

use crate::clock::boot_ns;
use crate::faketime::Clock;
use crate::procs::MARKER;
use crate::proxy::Port;
use crate::step::{Step, check, failure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Node {
    pub name: char,
    pub port: u16,
    _reserved: Port,
    dir: PathBuf,
    id: String,
    server: Option<Child>,
    frozen: bool,
    /// A wall clock of its own.
    pub clock: Option<Clock>,
}

/// `E2E_REDIS_SERVER` runs the suite against another server, such as those `tests/run` fetches.
pub fn server_binary() -> String {
    std::env::var("E2E_REDIS_SERVER").unwrap_or_else(|_| "redis-server".into())
}

impl Node {
    /// A port and a folder; nothing runs yet.
    pub fn plan(name: char, id: &str, dir: &Path) -> Step<Self> {
        let (reserved, _) = Port::reserve()?;
        let dir = dir.join(format!("redis-{name}"));
        std::fs::create_dir_all(&dir)?;
        Ok(Self {
            name,
            port: reserved.number,
            _reserved: reserved,
            dir,
            id: id.into(),
            server: None,
            frozen: false,
            clock: None,
        })
    }

    /// From its next start on, the node has a clock that can be set.
    pub fn give_clock(&mut self) -> Step {
        self.clock = Some(Clock::of(&self.dir)?);
        Ok(())
    }

    /// Starts empty, always: nothing is ever saved.
    pub fn start(&mut self) -> Step {
        let binary = match &self.clock {
            Some(clock) => clock.server.display().to_string(),
            None => server_binary(),
        };
        let port = self.port.to_string();
        let mut command = Command::new(&binary);
        if let Some(clock) = &self.clock {
            clock.put_on(&mut command);
        }
        let server = command
            .args([
                "--port",
                &port,
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--logfile",
                "redis.log",
                // The title is written over the environment, and with it over our marker.
                "--set-proc-title",
                "no",
            ])
            .arg("--dir")
            .arg(&self.dir)
            .current_dir(&self.dir)
            .env(MARKER, &self.id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| failure(format!("{binary} does not start: {e}; apt-get install redis-server")))?;
        self.server = Some(server);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !matches!(self.ask(&["PING"]), Ok(Reply::Text(t)) if t == "PONG") {
            check(Instant::now() < deadline, format!("redis-{} on port {port} is silent", self.name))?;
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    pub fn pid(&self) -> Option<i32> {
        self.server.as_ref().and_then(|c| i32::try_from(c.id()).ok())
    }

    pub fn serves(&self) -> bool {
        self.server.is_some() && !self.frozen
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            kill(Pid::from_raw(pid), signal).ok();
        }
    }

    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        if let Some(mut server) = self.server.take() {
            server.wait().ok();
        }
        self.frozen = false;
    }

    pub fn freeze(&mut self) {
        self.signal(Signal::SIGSTOP);
        self.frozen = true;
    }

    pub fn thaw(&mut self) {
        self.signal(Signal::SIGCONT);
        self.frozen = false;
    }

    pub fn ask(&self, words: &[&str]) -> Step<Reply> {
        ask(self.port, words)
    }

    pub fn keys(&self, pattern: &str) -> Step<Vec<String>> {
        let reply = self.ask(&["KEYS", pattern])?;
        let Reply::List(items) = reply else { return Err(failure(format!("KEYS answered {reply:?}"))) };
        Ok(items.into_iter().filter_map(Reply::text).collect())
    }

    pub fn get(&self, key: &str) -> Step<Option<String>> {
        Ok(self.ask(&["GET", key])?.text())
    }

    /// The instant at which the key ends, on this machine's clock, or a little before; `None` when it is not there.
    pub fn expires_at(&self, key: &str) -> Step<Option<u64>> {
        let asked = boot_ns();
        let reply = self.ask(&["PTTL", key])?;
        if let Reply::Number(left @ 0..) = reply {
            return Ok(Some(asked + left.unsigned_abs() * 1_000_000));
        }
        let is_absent = reply == Reply::Number(-2);
        check(is_absent, format!("{key} on redis-{} has no expiry: {reply:?}", self.name))?;
        Ok(None)
    }
}

/// A node that is alive answers within this, however busy the machine is.
const ANSWERS: Duration = Duration::from_secs(3);

/// One command on a connection of its own.
pub fn ask(port: u16, words: &[&str]) -> Step<Reply> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(ANSWERS))?;
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request += &format!("${}\r\n{word}\r\n", word.len());
    }
    socket.write_all(request.as_bytes())?;
    read_reply(&mut BufReader::new(socket))
}

#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Text(String),
    Error(String),
    Number(i64),
    Nothing,
    List(Vec<Reply>),
}

impl Reply {
    pub fn text(self) -> Option<String> {
        match self {
            Reply::Text(t) => Some(t),
            Reply::Error(_) | Reply::Number(_) | Reply::Nothing | Reply::List(_) => None,
        }
    }
}

fn read_reply(from: &mut impl BufRead) -> Step<Reply> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let line = line.trim_end();
    let (kind, rest) = line.split_at_checked(1).ok_or_else(|| failure("the server hung up"))?;
    Ok(match kind {
        "+" => Reply::Text(rest.into()),
        "-" => Reply::Error(rest.into()),
        ":" => Reply::Number(rest.parse()?),
        "$" => match rest.parse::<i64>()? {
            length @ 0.. => {
                let mut text = vec![0; usize::try_from(length)? + 2];
                from.read_exact(&mut text)?;
                text.truncate(text.len() - 2);
                Reply::Text(String::from_utf8_lossy(&text).into())
            }
            _ => Reply::Nothing,
        },
        "*" => {
            let length = rest.parse::<i64>()?;
            Reply::List((0..length).map(|_| read_reply(from)).collect::<Step<_>>()?)
        }
        other => return Err(failure(format!("not RESP2: {other}{rest}"))),
    })
}
