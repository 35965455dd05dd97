//! README's table of old commands and new ones, as an operator tries it.

use super::commands::{Said, other, say};
use super::{Scenario, scenario};
use crate::clock::boot_ns;
use crate::step::{Step, check, failure};
use crate::trial::{KEEPER, Setup, TTL, Trial, millis, secs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

pub const ALL: &[Scenario] = &[scenario(
    "quick_reference",
    "every row of README's table of old commands and new ones does on three nodes what it says",
    every_row,
)];

const README: &str = include_str!("../../../README.md");

/// The commands tried, as the table writes them.
#[derive(Default)]
struct Tried(BTreeSet<String>);

impl Tried {
    fn note(&mut self, arguments: &[&str]) {
        self.0.insert(format!("keeperd {}", arguments.join(" ").replace(KEEPER, "NAME")));
    }

    fn say(&mut self, t: &mut Trial, host: &str, arguments: &[&str]) -> Step<Said> {
        self.note(arguments);
        say(t, host, arguments)
    }

    /// No row of the table is left out.
    fn are_all(&self) -> Step {
        let table =
            README.split("| before | now |\n").nth(1).ok_or_else(|| failure("README has no table"))?;
        let rows: Vec<&str> = table.lines().take_while(|line| line.starts_with('|')).skip(1).collect();
        check(rows.len() >= 10, "the table is not read")?;
        let now = rows.iter().filter_map(|row| row.rsplit_once(" | ").map(|(_, now)| now));
        let commands = now.flat_map(|now| now.split('`').skip(1).step_by(2));
        let left: Vec<&str> =
            commands.filter(|it| it.starts_with("keeperd ") && !self.0.contains(*it)).collect();
        check(left.is_empty(), format!("not tried: {left:?}"))
    }
}

fn delete(t: &mut Trial, name: char) -> Step {
    t.node(name).ask(&["DEL", &Trial::lock_key()]).map(drop)
}

fn every_row(t: &mut Trial) -> Step {
    let mut tried = Tried::default();
    let child = t.begin(Setup { child: vec!["--run", "echo hello from $$"], ..Setup::default() })?;
    let (holder, key) = (Trial::holder_of(&child), Trial::lock_key());
    let peer = other(&holder);
    t.held_by_all()?;

    tried.say(t, peer, &["run", "test", "--", "true"])?.is(0, "", "")?;
    tried.say(t, peer, &["locks"])?.is(0, KEEPER, "")?;
    for name in t.node_names() {
        // `run` waits for a quorum of nodes to have released its lock, and the last of them may be busy.
        t.until(&format!("KEYS on {name} lists the one lock"), |t| {
            Ok(t.node(name).keys("redlock:*")? == [key.clone()])
        })?;
    }
    let pid = t.daemon(&holder)?.pid();
    let held = format!("held by {holder} (pid {pid})");
    t.status_shows(peer, "it stands by", |keeper| keeper["holder"]["pid"] == pid)?;
    let shown = tried.say(t, peer, &["status", KEEPER])?.stdout;
    let in_one_line = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    check(in_one_line.contains(&held), shown)?;
    t.status_shows(&holder, "it runs here", |keeper| {
        keeper["role"] == "leader" && keeper["lease_remaining_ms"].as_u64().is_some_and(|left| left > 0)
    })?;
    tried.say(t, &holder, &["status", KEEPER])?.is(0, "LEASE", "")?;
    tried.say(t, &holder, &["status"])?.is(0, "leader", "")?;
    follow(t, &mut tried, &holder)?;
    tried.say(t, peer, &["unlock", KEEPER])?.is(1, "", &format!("{holder} (keeperd's pid {pid})"))?;
    t.runs_on(&child, millis(200))?;

    let at = boot_ns();
    tried.say(t, &holder, &["restart", KEEPER])?.is(0, "it runs here", "")?;
    let restarted = t.next_child(at, secs(5))?;
    let at = t.note("SIGTERM to the child");
    kill(Pid::from_raw(restarted.pid), Signal::SIGTERM)?;
    let child = t.next_child(at, secs(8))?;
    check((child.host == restarted.host) && child.token == restarted.token, "killing the child moved it")?;

    let at = boot_ns();
    tried.say(t, &holder, &["step-down", KEEPER])?.is(0, &format!("it runs on {peer}"), "")?;
    let child = t.successor(&child, at, secs(5))?;
    t.held_by_all()?;
    let value = t.node('A').get(&key)?;
    delete(t, 'B')?;
    t.runs_on(&child, TTL)?;
    t.until("deleted on one node, it is put back", |t| {
        Ok(value.is_some() && t.node('B').get(&key)? == value)
    })?;
    let at = t.note("DEL on all nodes");
    t.node_names().into_iter().try_for_each(|name| delete(t, name))?;
    let moved = t.successor(&child, at, secs(6))?;
    check(t.life(&child.instance)?.stopped, "the old child was not stopped first")?;

    t.held_by_all()?;
    tried.say(t, peer, &["pause", KEEPER, "--everywhere"])?.is(0, "nobody has it", "")?;
    check(t.life(&moved.instance)?.asked_to_stop, "it was not stopped for the deploy")?;
    let at = boot_ns();
    tried.say(t, peer, &["resume", KEEPER, "--everywhere"])?.is(0, "held by ", "")?;
    let child = t.next_child(at, secs(6))?;
    reload(t, &mut tried, other(&Trial::holder_of(&child)))?;
    t.runs_on(&child, millis(200))?;

    let nodes = "127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003";
    let mut check_with = t.daemon(peer)?.command(&["check"]);
    check_with.envs([("REDIS_NODES", nodes), ("REDIS_LOCK_TTL_MS", "45000")]);
    let shown = check_with.envs([("REDIS_RETRY_COUNT", "7"), ("REDIS_RETRY_DELAY_MS", "321")]).output()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    check(["127.0.0.1:7002", "321ms"].iter().all(|part| shown.contains(part)), shown)?;

    let doctor = tried.say(t, peer, &["doctor"])?;
    let ports: Vec<u16> = t.node_names().into_iter().map(|name| t.node(name).port).collect();
    let named = |port: &u16| doctor.stdout.contains(&format!("127.0.0.1:{port}"));
    check(matches!(doctor.code, Some(0 | 1)) && ports.iter().all(named), doctor.stdout.clone())?;
    t.note("A and B are frozen");
    t.node('A').freeze();
    t.node('B').freeze();
    let wrong = format!("127.0.0.1:{}", ports[0]);
    tried.say(t, peer, &["doctor"])?.is(2, &wrong, "")?;
    tried.say(t, peer, &["run", "test", "--", "true"])?.is(69, "", &wrong)?;
    let at = t.note("and thawed");
    t.node('A').thaw();
    t.node('B').thaw();
    let last = t.somebody_runs(at, secs(6))?;
    t.runs_on(&last, millis(200))?;
    tried.are_all()
}

/// What it says comes as it is said, and what it has said before.
fn follow(t: &mut Trial, tried: &mut Tried, holder: &str) -> Step {
    let arguments = ["logs", KEEPER, "-f"];
    tried.note(&arguments);
    let mut logs = t.daemon(holder)?.command(&arguments).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let read = logs.stdout.take().map(|out| BufReader::new(out).read_line(&mut line));
    logs.kill()?;
    logs.wait()?;
    check(matches!(read, Some(Ok(_))) && line.contains("hello from"), format!("logs -f: {line:?}"))
}

/// On the host that stands by.
fn reload(t: &mut Trial, tried: &mut Tried, host: &str) -> Step {
    let file = t.dir().join(format!("{host}.toml"));
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replace("[[keeper]]\n", "[[keeper]]\nenv = { MODE = \"new\" }\n"))?;
    tried.say(t, host, &["check"])?.is(0, "valid, 1 keeper", "")?;
    tried.say(t, host, &["reload", "--dry-run"])?.is(0, "~ oracle: env", "")?;
    tried.say(t, host, &["reload"])?.is(0, "~ oracle: env", "")?;
    let stands_by = |keeper: &Value| keeper["holder"]["host"].is_string();
    t.status_shows(host, "what was reloaded stands by", stands_by).map(drop)
}
