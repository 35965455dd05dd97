//! The daemon that keeperd is not: Redlock as in the textbook, supervision as in most scripts. The controls run it where
//! keeperd would run, and the checker must object.
//!
//! Its faults, on purpose: nobody kills the child while the daemon is frozen or dead; a node that lost its data votes at
//! once; grandchildren are not looked for; each counts its own terms as tokens.

use crate::cluster::{Reply, ask};
use std::process::{Child, Command, Stdio, exit};
use std::thread::sleep;
use std::time::{Duration, Instant};

const EXTEND: &str =
    "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('pexpire',KEYS[1],ARGV[2]) end return 0";
const RELEASE: &str =
    "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) end return 0";

/// Which textbook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naive {
    /// Nobody kills the child while the daemon is frozen, dead or cut off.
    Careless,
    /// It kills the child when the lease is over, on time, but counts the lease from the last answer and not from before the request.
    FromReply,
}

impl Naive {
    pub fn name(self) -> &'static str {
        match self {
            Naive::Careless => "careless",
            Naive::FromReply => "from-reply",
        }
    }
}

struct Host {
    kind: Naive,
    ports: Vec<u16>,
    keeper: String,
    key: String,
    command: Vec<String>,
    ttl: Duration,
    attempts: u64,
    value: String,
    token: u64,
}

/// `e2e naive KIND --config FILE`
pub fn main(args: &[String]) -> ! {
    let text = args.get(2).and_then(|path| std::fs::read_to_string(path).ok());
    let config: Option<toml::Table> = text.and_then(|t| t.parse().ok());
    let Some(mut naive) = config.as_ref().and_then(Host::of) else { exit(78) };
    if args.first().is_some_and(|kind| kind == Naive::FromReply.name()) {
        naive.kind = Naive::FromReply;
    }
    loop {
        naive.attempts += 1;
        naive.value = format!("{}-{}", std::process::id(), naive.attempts);
        if naive.quorum(&["SET", &naive.key, &naive.value, "NX", "PX", &naive.ttl_ms()]) {
            naive.token += 1;
            eprintln!("elected, token {}", naive.token);
            naive.lead();
        }
        naive.quorum(&["EVAL", RELEASE, "1", &naive.key, &naive.value]);
        sleep(Duration::from_millis(20));
    }
}

impl Host {
    fn of(config: &toml::Table) -> Option<Self> {
        let nodes = config.get("lock")?.get("nodes")?.as_array()?;
        let keeper = config.get("keeper")?.get(0)?;
        let command = keeper.get("command")?.as_array()?;
        let ttl = config.get("lock")?.get("ttl")?.as_str()?.strip_suffix('s')?.parse().ok()?;
        let name = keeper.get("name")?.as_str()?;
        Some(Self {
            kind: Naive::Careless,
            ports: nodes.iter().filter_map(|n| n.as_str()?.rsplit(':').next()?.parse().ok()).collect(),
            keeper: name.into(),
            key: format!("redlock:{name}"),
            command: command.iter().filter_map(|w| w.as_str().map(str::to_owned)).collect(),
            ttl: Duration::from_secs(ttl),
            attempts: 0,
            value: String::new(),
            token: 0,
        })
    }

    fn ttl_ms(&self) -> String {
        self.ttl.as_millis().to_string()
    }

    fn quorum(&self, words: &[&str]) -> bool {
        let yes = |port: &&u16| match ask(**port, words) {
            Ok(Reply::Text(text)) => text == "OK",
            Ok(Reply::Number(n)) => n == 1,
            Ok(Reply::Error(_) | Reply::Nothing | Reply::List(_)) | Err(_) => false,
        };
        self.ports.iter().filter(yes).count() > self.ports.len() / 2
    }

    fn lead(&self) {
        let Ok(mut child) = self.spawn() else { return };
        let mut extend_at = Instant::now() + self.ttl / 2;
        let mut valid_until = Instant::now() + self.ttl;
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() >= extend_at {
                extend_at = Instant::now() + self.ttl / 2;
                match (self.quorum(&["EVAL", EXTEND, "1", &self.key, &self.value, &self.ttl_ms()]), self.kind)
                {
                    (true, _) => valid_until = Instant::now() + self.ttl,
                    (false, Naive::FromReply) => {}
                    (false, Naive::Careless) => break,
                }
            }
            if self.kind == Naive::FromReply && Instant::now() >= valid_until {
                break;
            }
            sleep(Duration::from_millis(5));
        }
        child.kill().ok();
        child.wait().ok();
    }

    fn spawn(&self) -> std::io::Result<Child> {
        Command::new(&self.command[0])
            .args(&self.command[1..])
            .env("KEEPERD_KEEPER", &self.keeper)
            .env("KEEPERD_FENCING_TOKEN", self.token.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    }
}
