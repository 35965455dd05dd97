//! A new configuration for a daemon that runs: what is touched, and what is not.

use super::commands::{Said, say};
use super::{Scenario, scenario};
use crate::clock::{boot_ns, nanos};
use crate::step::{Step, check, failure};
use crate::trial::{KEEPER, Setup, TTL, Trial, millis, secs};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const ALL: &[Scenario] = &[
    scenario(
        "local_reload_fifty",
        "of fifty keepers one is removed, one changed, one is new: the others keep process and token",
        fifty,
    ),
    scenario(
        "local_reload_refused",
        "a file with mistakes, or with another lock directory, changes nothing and is told of line by line",
        refused,
    ),
    scenario(
        "local_reload_signal",
        "twenty SIGHUPs: systemd hears RELOADING and READY in turn, nothing is touched; none after the stop",
        signal,
    ),
    scenario(
        "local_reload_handover",
        "removed on one host, a stubborn child dies before another host starts; back again, it stands by",
        handover,
    ),
    scenario(
        "local_reload_drained",
        "what comes with a reload to a drained host is paused, and a pause outlives new settings",
        drained,
    ),
    scenario(
        "reload_moves",
        "on three nodes: with new settings the old term ends before the next begins, here or there",
        moves,
    ),
];

impl Said {
    fn has(&self, code: i32, stdout: &[&str], stderr: &[&str]) -> Step {
        let Said { code: was, stdout: out, stderr: err } = self;
        let all = |text: &str, parts: &[&str]| parts.iter().all(|part| text.contains(part));
        check(
            *was == Some(code) && all(out, stdout) && all(err, stderr),
            format!("exit {was:?}, wanted {code}, {stdout:?}, {stderr:?}\nstdout: {out}\nstderr: {err}"),
        )
    }
}

fn file(t: &Trial, host: &str) -> PathBuf {
    t.dir().join(format!("{host}.toml"))
}

fn read(t: &Trial, host: &str) -> Step<String> {
    Ok(std::fs::read_to_string(file(t, host))?)
}

fn write(t: &mut Trial, host: &str, text: &str) -> Step {
    t.note(format!("another configuration for {host}"));
    Ok(std::fs::write(file(t, host), text)?)
}

/// Whatever stands before the first keeper.
fn without_keepers(text: &str) -> &str {
    text.split("[[keeper]]").next().unwrap_or(text)
}

fn keepers(t: &mut Trial, host: &str) -> Step<BTreeMap<String, Value>> {
    let status = t.daemon(host)?.status()?;
    let keepers = status["keepers"].as_array().ok_or_else(|| failure("status has no keepers"))?;
    Ok(keepers
        .iter()
        .map(|keeper| (keeper["name"].as_str().unwrap_or("").to_owned(), keeper.clone()))
        .collect())
}

/// Waits until the keepers of the host are as they should be.
fn until(
    t: &mut Trial,
    host: &str,
    within: Duration,
    what: &str,
    good: impl Fn(&BTreeMap<String, Value>) -> bool,
) -> Step<BTreeMap<String, Value>> {
    let end = boot_ns() + nanos(within);
    loop {
        // Before it listens it does not answer.
        if let Ok(keepers) = keepers(t, host)
            && good(&keepers)
        {
            return Ok(keepers);
        }
        check(boot_ns() < end, format!("{what}: not within {within:?} on {host}"))?;
        t.pause(millis(20));
    }
}

fn reload_state(t: &mut Trial, host: &str) -> Step<(bool, String)> {
    let status = t.daemon(host)?.status()?;
    let at = status["reload"]["at"].as_str().unwrap_or_default().to_owned();
    Ok((status["reload"]["ok"] == true, at))
}

fn process(keeper: &Value) -> (Option<u64>, Option<u64>) {
    (keeper["pid"].as_u64(), keeper["token"].as_u64())
}

// ── the stories ──

const FIFTY: [&str; 50] = [
    "k00", "k01", "k02", "k03", "k04", "k05", "k06", "k07", "k08", "k09", "k10", "k11", "k12", "k13", "k14",
    "k15", "k16", "k17", "k18", "k19", "k20", "k21", "k22", "k23", "k24", "k25", "k26", "k27", "k28", "k29",
    "k30", "k31", "k32", "k33", "k34", "k35", "k36", "k37", "k38", "k39", "k40", "k41", "k42", "k43", "k44",
    "k45", "k46", "k47", "k48", "k49",
];

fn fifty(t: &mut Trial) -> Step {
    t.prepare(Setup {
        hosts: vec!["a"],
        nodes: 0,
        keepers: FIFTY.to_vec(),
        ttl: "10s",
        command_of: vec![("a", vec!["sleep", "1000"]), ("b", vec!["sleep", "1000"])],
        ..Setup::default()
    })?;
    t.start_all()?;
    let all_run = |keepers: &BTreeMap<String, Value>| keepers.values().all(|k| k["pid"].is_u64());
    let before = until(t, "a", secs(20), "fifty children", |k| k.len() == 50 && all_run(k))?;
    let started = reload_state(t, "a")?;
    let text = read(t, "a")?
        .replace("name = \"k07\"\n", "name = \"new\"\n")
        .replace("name = \"k21\"\n", "name = \"k21\"\nnice = 1\n");
    write(t, "a", &text)?;

    let told = say(t, "a", &["reload", "--dry-run"])?;
    told.has(0, &["+ new\n", "- k07\n", "~ k21: nice\n", "1 would be removed", "48 unchanged"], &[])?;
    let same = keepers(t, "a")?;
    check(
        same.len() == 50 && same.iter().all(|(k, v)| process(v) == process(&before[k])),
        "a dry run changed something",
    )?;
    check(reload_state(t, "a")? == started, "a dry run counted as a reload")?;

    say(t, "a", &["reload"])?.has(0, &["+ new\n", "- k07\n", "~ k21: nice\n", "1 added, 1 removed"], &[])?;
    let after = until(t, "a", secs(10), "the new set", |keepers| {
        all_run(keepers)
            && keepers.contains_key("new")
            && !keepers.contains_key("k07")
            && process(&keepers["k21"]) != process(&before["k21"])
    })?;
    for (name, keeper) in after.iter().filter(|(name, _)| !["new", "k21"].contains(&name.as_str())) {
        check(process(keeper) == process(&before[name]), format!("{name} was touched"))?;
    }
    check(after.len() == 50, "not fifty keepers")?;
    t.until("one guard for each keeper", |t| Ok(t.daemon("a")?.guards().len() == 50))?;
    let changed = &after["k21"];
    check(changed["token"].as_u64() > before["k21"]["token"].as_u64(), "the same token for another term")?;
    check(
        changed["history"][0]["reason"] == "reload" && changed["history"][1]["ended"].is_null(),
        "its history does not tell",
    )?;
    check(reload_state(t, "a")?.0, "a good reload is not shown as one")?;
    let order: Vec<_> = t.daemon("a")?.status()?["keepers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|k| k["name"].clone())
        .collect();
    check(order[7] == "new" && order[8] == "k08", "status does not follow the order of the file")?;
    // A removed keeper's lock is free: whoever has it in his file takes it at once.
    t.setup.keepers = vec!["k07"];
    t.start("b")?;
    until(t, "b", secs(10), "the removed keeper elsewhere", |keepers| {
        all_run(keepers) && keepers.len() == 1
    })?;
    Ok(())
}

fn refused(t: &mut Trial) -> Step {
    let child = t.begin(Setup { hosts: vec!["a"], nodes: 0, ..Setup::default() })?;
    let good = read(t, "a")?;
    let included = t.dir().join("more.toml");
    let include = format!("include = [\"more.toml\"]\n{good}")
        .replace("name = \"oracle\"\n", "name = \"oracle\"\nttll = \"2s\"\n");
    std::fs::write(&included, "[[keeper]]\nname = \"x\"\ncommand = \"no array\"\n")?;
    write(t, "a", &include)?;
    let line = include.lines().position(|line| line.starts_with("ttll")).unwrap_or(0) + 1;
    let places = [format!("a.toml:{line}:1: "), "more.toml:3:11: ".to_owned()];
    let [first, second] = places.each_ref().map(String::as_str);
    say(t, "a", &["reload", "--dry-run"])?.has(78, &[], &[first, second])?;
    check(reload_state(t, "a")?.0, "a dry run counted as a refused reload")?;
    say(t, "a", &["reload"])?.has(78, &[], &[first, second, "goes on with the one it has"])?;
    check(!reload_state(t, "a")?.0, "a refused reload is not shown as one")?;
    for part in [first, second, "ERROR"] {
        t.log_says("a", part)?;
    }

    // Nothing that can be read: the daemon is reached all the same.
    write(t, "a", &format!("{good}]]] = 1\n"))?;
    say(t, "a", &["reload"])?.has(78, &[], &["not TOML"])?;
    write(t, "a", &good.replacen("/locks\"", "/other\"", 1))?;
    say(t, "a", &["reload"])?.has(
        78,
        &[],
        &["[lock] directory cannot change while keeperd runs", "needs a restart"],
    )?;
    write(t, "a", &good.replacen("host = \"a\"", "host = \"z\"", 1))?;
    say(t, "a", &["reload", "--dry-run"])?.has(78, &[], &["host cannot change while keeperd runs"])?;
    t.runs_on(&child, millis(300))?;

    write(t, "a", &good)?;
    say(t, "a", &["reload", "--json"])?.has(0, &["\"unchanged\": 1", "\"added\": []"], &[])?;
    check(reload_state(t, "a")?.0, "a good reload does not make up for a bad one")?;
    t.runs_on(&child, millis(300))?;
    t.signal("a", Signal::SIGTERM)?;
    t.daemon("a")?.await_exit(secs(10))?;
    say(t, "a", &["reload"])?.has(3, &[], &["is it running?"])
}

fn signal(t: &mut Trial) -> Step {
    let systemd = Systemd::listen(t.dir().join("notify.sock"))?;
    let setup =
        Setup { hosts: vec!["a"], nodes: 0, child: vec!["--ignore-term"], notify: true, ..Setup::default() };
    let child = t.begin(setup)?;
    systemd.hears(|heard| heard == ["READY=1"])?;
    for _ in 0..20 {
        t.signal("a", Signal::SIGHUP)?;
        t.pause(millis(3));
    }
    // The last signal may have come during a reload: then one more follows.
    systemd.hears(|heard| heard.len() >= 3)?;
    t.runs_on(&child, millis(500))?;
    say(t, "a", &["reload"])?.has(0, &["1 unchanged"], &[])?;
    t.signal("a", Signal::SIGTERM)?;
    systemd.hears(|heard| heard.contains(&"STOPPING=1"))?;
    t.signal("a", Signal::SIGHUP)?;
    say(t, "a", &["reload"])?.has(3, &[], &[])?;
    t.daemon("a")?.await_exit(secs(10))?;
    let heard = systemd.heard_all(&t.dir().join("notify.sock"))?;
    let states: Vec<&str> = words(&heard);
    let end = states.iter().position(|state| *state == "STOPPING=1").unwrap_or(states.len());
    let (reloads, rest) = (&states[1..end], &states[end..]);
    check(
        reloads.len() >= 4 && reloads.chunks(2).all(|pair| pair == ["RELOADING=1", "READY=1"]),
        format!("systemd heard {states:?}"),
    )?;
    // How long the end may take is said with it.
    let patience = |said: &str| said.starts_with("EXTEND_TIMEOUT_USEC=");
    check(
        matches!(rest, ["STOPPING=1", more @ ..] if !more.is_empty() && more.iter().all(|said| patience(said))),
        format!("the last words to systemd: {rest:?}"),
    )?;
    let timed = |said: &&String| said.starts_with("RELOADING=1\nMONOTONIC_USEC=");
    check(heard.iter().filter(timed).count() == reloads.len() / 2, "a reload without its time")?;
    t.figure(format!("{} reloads", reloads.len() / 2));
    Ok(())
}

/// Reads all the time, as systemd does: a daemon waits while the socket's queue is full.
struct Systemd(Arc<Mutex<Vec<String>>>);

/// Of each datagram the first line; STATUS is none of them.
fn words(heard: &[String]) -> Vec<&str> {
    heard.iter().filter_map(|said| said.lines().next()).filter(|word| !word.starts_with("STATUS=")).collect()
}

impl Systemd {
    fn listen(at: PathBuf) -> Step<Systemd> {
        let socket = UnixDatagram::bind(at)?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
                told.lock().expect("no thread panics with it").push(said);
            }
        });
        Ok(Systemd(heard))
    }

    fn heard(&self) -> Vec<String> {
        self.0.lock().expect("no thread panics with it").clone()
    }

    /// What the daemon, which has ended, said before somebody else says a last word.
    fn heard_all(&self, socket: &Path) -> Step<Vec<String>> {
        const LAST_WORD: &str = "the end";
        UnixDatagram::unbound()?.send_to(LAST_WORD.as_bytes(), socket)?;
        self.hears(|heard| heard.contains(&LAST_WORD))?;
        let mut heard = self.heard();
        heard.retain(|said| said != LAST_WORD);
        Ok(heard)
    }

    fn hears(&self, enough: impl Fn(&[&str]) -> bool) -> Step {
        let end = boot_ns() + nanos(secs(15));
        while !enough(&words(&self.heard())) {
            check(boot_ns() < end, format!("systemd heard {:?}", self.heard()))?;
            std::thread::sleep(millis(2));
        }
        Ok(())
    }
}

fn other(host: &str) -> &'static str {
    if host == "a" { "b" } else { "a" }
}

fn handover(t: &mut Trial) -> Step {
    let child = vec!["--ignore-term", "--grandchild"];
    // With a ttl of 5 s a child has 0.8 s from the stop signal to SIGKILL.
    let old = t.begin(Setup { nodes: 0, child, ttl: "5s", ..Setup::default() })?;
    let (holder, peer) = (Trial::holder_of(&old), other(&Trial::holder_of(&old)));
    let whole = read(t, &holder)?;
    write(t, &holder, without_keepers(&whole))?;
    let at = boot_ns();
    say(t, &holder, &["reload"])?.has(0, &["- oracle\n"], &[])?;
    // The checker sees whether the old tree was dead by then.
    let new = t.successor(&old, at, secs(10))?;
    check(t.life(&old.instance)?.asked_to_stop, "the child was not asked to stop")?;
    until(t, &holder, secs(10), "the removed keeper is gone", BTreeMap::is_empty)?;
    t.until("its guard is gone", |t| Ok(t.daemon(&holder)?.guards().is_empty()))?;
    say(t, &holder, &["pause", KEEPER])?.has(4, &[], &["there is no keeper"])?;

    write(t, &holder, &whole)?;
    say(t, &holder, &["reload"])?.has(0, &["+ oracle\n"], &[])?;
    t.runs_on(&new, millis(500))?;
    until(t, &holder, secs(10), "it stands by again", |k| {
        k.get(KEEPER).is_some_and(|k| k["role"] == "standby")
    })?;
    // Removed and back before it has ended: the file has the last word.
    let whole = read(t, peer)?;
    write(t, peer, without_keepers(&whole))?;
    let at = boot_ns();
    say(t, peer, &["reload"])?.has(0, &["- oracle\n"], &[])?;
    write(t, peer, &whole)?;
    say(t, peer, &["reload"])?.has(0, &["+ oracle\n"], &[])?;
    // On a machine that stands still for as long as a child takes to be killed, it has ended, and its last run is forgotten.
    let in_time = boot_ns() < at + nanos(millis(700));
    let last = t.next_child(at, secs(10))?;
    until(t, peer, secs(10), "the keeper is back", |k| {
        let knows = |k: &Value| k["last_exit"]["reason"] == "reload" || !in_time;
        k.get(KEEPER).is_some_and(|k| knows(k) && k["role"] != "stepping_down")
    })?;
    t.runs_on(&last, secs(1))
}

fn drained(t: &mut Trial) -> Step {
    t.begin(Setup { hosts: vec!["a"], nodes: 0, ..Setup::default() })?;
    say(t, "a", &["drain"])?.has(0, &["oracle: paused"], &[])?;
    let text = read(t, "a")?;
    let (head, keeper) = text.split_once("[[keeper]]").ok_or_else(|| failure("no keeper"))?;
    let second = keeper.replace("\"oracle\"", "\"second\"");
    write(t, "a", &format!("{head}[[keeper]]{keeper}nice = 1\n[[keeper]]{second}"))?;
    say(t, "a", &["reload"])?.has(0, &["+ second\n", "~ oracle: nice\n"], &[])?;
    let paused = |keepers: &BTreeMap<String, Value>| {
        keepers.len() == 2 && keepers.values().all(|keeper| keeper["role"] == "paused")
    };
    until(t, "a", secs(10), "both are paused", paused)?;
    t.pause(millis(500));
    check(paused(&keepers(t, "a")?), "a drained host takes a keeper")?;
    let at = boot_ns();
    say(t, "a", &["resume", "--all"])?.has(0, &[], &[])?;
    let child = t.next_child(at, secs(10))?;
    t.runs_on(&child, millis(500))?;
    // A stop while a changed keeper hands over: nothing is started anew.
    write(t, "a", &read(t, "a")?.replace("nice = 1\n", "nice = 2\n"))?;
    say(t, "a", &["reload"])?.has(0, &["~ oracle: nice\n"], &[])?;
    t.signal("a", Signal::SIGTERM)?;
    let status = t.daemon("a")?.await_exit(secs(10))?;
    check(status.code() == Some(0), format!("a stop during a reload ended with {status}"))
}

/// Whoever is first has it next, this host or the other.
fn moves(t: &mut Trial) -> Step {
    let old = t.begin(Setup { child: vec!["--grandchild"], ..Setup::default() })?;
    let (holder, peer) = (Trial::holder_of(&old), other(&Trial::holder_of(&old)));
    t.held_by_all()?;
    let mut child = old;
    for host in [&*holder, peer] {
        let changed = "name = \"oracle\"\nttl = \"3s\"\nrestart_delay = \"500ms\"\n";
        let text = read(t, host)?.replace("name = \"oracle\"\n", changed);
        write(t, host, &text)?;
        t.random_moment();
        let at = boot_ns();
        say(t, host, &["reload"])?.has(0, &["~ oracle: ttl, stop_timeout, restart_delay\n"], &[])?;
        if Trial::holder_of(&child) == host {
            child = t.next_child(at, secs(10))?;
            t.status_shows(host, "why it ended here", |k| k["history"][0]["reason"] == "reload")?;
        }
        t.runs_on(&child, secs(1))?;
    }
    let idle = other(&Trial::holder_of(&child));
    let text = read(t, idle)?;
    write(t, idle, without_keepers(&text))?;
    say(t, idle, &["reload"])?.has(0, &["- oracle\n"], &[])?;
    until(t, idle, secs(10), "a standby is gone", BTreeMap::is_empty)?;
    t.runs_on(&child, TTL)
}
