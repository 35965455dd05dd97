//! Probes: an unhealthy child is restarted within its term, a sick host hands over, an unfit one never stands.
//!
//! What a probe finds is a file in the trial's folder, where daemons, children and probes run, or a server in this process.

use super::{Scenario, scenario};
use crate::checker::Life;
use crate::clock::{boot_ns, ms, nanos};
use crate::procs;
use crate::proxy::Port;
use crate::step::{Step, check};
use crate::trial::{CALM, KEEPER, Setup, Trial, millis, secs};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub const ALL: &[Scenario] = &[
    scenario(
        "health_command",
        "its health command fails: the child is restarted within the term, with its setsid grandchild dead before",
        command,
    ),
    scenario(
        "health_gives_up",
        "it fails on one host for good: that host gives up, the other takes over and keeps it",
        gives_up,
    ),
    scenario("health_http", "HTTP 200 is fine, 503 is not: the child is restarted within the term", http),
    scenario("health_tcp", "nobody listens any more: the child is restarted within the term", tcp),
    scenario("health_silence", "a child that falls silent is restarted, one that speaks is not", silence),
    scenario("health_ready", "never ready on one host: the other takes over and keeps it", ready),
    scenario(
        "health_standby",
        "a host that is not fit never wins, and does when it is; one that falls ill hands over",
        standby,
    ),
    scenario(
        "health_hangs",
        "a health command that hangs, deaf to SIGTERM, with setsid children: killed each time, the lease kept",
        hangs,
    ),
];

const QUICK: &str = "restart_delay = \"50ms\"\nrestart_delay_max = \"100ms\"\n\
    give_up_after = 3\ngive_up_window = \"1m\"\ncooldown = \"1s\"\n";

/// A word of each host's own in a shell line.
const HOST: &str = "${E2E_HOST%%.*}";

fn lines(probes: &str) -> &'static str {
    format!("{QUICK}{probes}").leak()
}

fn create(t: &mut Trial, file: &str) -> Step<u64> {
    std::fs::write(t.dir().join(file), "")?;
    Ok(t.note(format!("create {file}")))
}

fn remove(t: &mut Trial, file: &str) -> Step<u64> {
    std::fs::remove_file(t.dir().join(file))?;
    Ok(t.note(format!("remove {file}")))
}

/// The next child is of the same term, and `status` says why the last one ended. `cure` comes before anybody asks the new one.
fn restarted(
    t: &mut Trial,
    old: &Life,
    since: u64,
    why: &str,
    cure: impl FnOnce(&mut Trial) -> Step,
) -> Step<Life> {
    let new = t.next_child(since, secs(10))?;
    cure(t)?;
    check(new.token == old.token && new.host == old.host, "the restart changed the term")?;
    let old = t.life(&old.instance)?;
    check(old.end < new.start, "the next child started beside the last one")?;
    t.figure(format!("next child after {}", ms(new.start - since)));
    let host = Trial::holder_of(&new);
    t.status_shows(&host, &format!("a restart, because of its health, {why:?}"), |status| {
        status["restarts"].as_u64() >= Some(1)
            && status["last_exit"]["reason"] == "health"
            && status["last_change"]["reason"].as_str().is_some_and(|reason| reason.contains(why))
    })?;
    Ok(new)
}

fn command(t: &mut Trial) -> Step {
    let health = "health = { command = [\"sh\", \"-c\", \"! test -e sick || { echo feverish; exit 4; }\"], \
                  interval = \"500ms\", failures = 2 }";
    let child = vec!["--ignore-term", "--grandchild"];
    let lines = lines(&format!("stop_timeout = \"200ms\"\n{health}"));
    let old = t.begin(Setup { child, keeper_lines: lines, ttl: CALM, ..Setup::default() })?;
    t.runs_on(&old, secs(2))?;
    t.random_moment();
    let at = create(t, "sick")?;
    let why = "health: sh: exit code 4: feverish (2 times in a row)";
    let new = restarted(t, &old, at, why, |t| remove(t, "sick").map(drop))?;
    t.runs_on(&new, secs(3))
}

fn gives_up(t: &mut Trial) -> Step {
    let sick = format!(
        "health = {{ command = [\"sh\", \"-c\", \"! test -e sick-{HOST}\"], interval = \"300ms\", failures = 2 }}"
    );
    let old = t.begin(Setup { keeper_lines: lines(&sick), ttl: CALM, ..Setup::default() })?;
    let host = Trial::holder_of(&old);
    t.runs_on(&old, secs(1))?;
    let at = create(t, &format!("sick-{host}"))?;
    let new = t.successor(&old, at, secs(10))?;
    let starts = t.witness.lives(KEEPER).iter().filter(|life| life.token == old.token).count();
    check(starts == 3, format!("give_up_after = 3, and {starts} starts in that term"))?;
    t.figure(format!("on the other host after {}", ms(new.start - at)));
    t.log_says(&host, "the child failed 3 times: another host may try")?;
    t.runs_on(&new, secs(4))
}

/// Answers every request with 200, or with 503 when told so.
fn serve(listener: TcpListener, sick: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let length = socket.read(&mut request).unwrap_or(0);
            let asked = request[..length].starts_with(b"GET /healthz?deep=1 HTTP/1.1\r\n");
            let status = if asked && !sick.load(Ordering::Relaxed) { "200 OK" } else { "503 Not Now" };
            let _ = write!(socket, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        }
    });
}

fn http(t: &mut Trial) -> Step {
    let (_port, listener) = Port::reserve()?;
    let sick = Arc::new(AtomicBool::new(false));
    let address = listener.local_addr()?;
    serve(listener, Arc::clone(&sick));
    let url = format!("http://{address}/healthz");
    let health = format!("health = {{ http = \"{url}?deep=1\", interval = \"500ms\", failures = 2 }}");
    let old = t.begin(Setup { keeper_lines: lines(&health), ttl: CALM, ..Setup::default() })?;
    t.runs_on(&old, secs(2))?;
    let at = t.note("503 from now on");
    sick.store(true, Ordering::Relaxed);
    let why = format!("health: {url}: answered 503 Service Unavailable (2 times in a row)");
    let new = restarted(t, &old, at, &why, |_| {
        sick.store(false, Ordering::Relaxed);
        Ok(())
    })?;
    t.runs_on(&new, secs(2))
}

fn tcp(t: &mut Trial) -> Step {
    let (_port, listener) = Port::reserve()?;
    let address = listener.local_addr()?;
    let health = format!("health = {{ tcp = \"{address}\", interval = \"500ms\", failures = 2 }}");
    let old = t.begin(Setup { keeper_lines: lines(&health), ttl: CALM, ..Setup::default() })?;
    t.runs_on(&old, secs(2))?;
    let at = t.note("nobody listens from now on");
    drop(listener);
    let mut again = None;
    let why = format!("health: tcp {address}: Connection refused");
    let new = restarted(t, &old, at, &why, |_| {
        again = Some(TcpListener::bind(address)?);
        Ok(())
    })?;
    t.runs_on(&new, secs(2))
}

fn silence(t: &mut Trial) -> Step {
    let keeper_lines = lines("health = { max_silence = \"1s\" }");
    let old = t.begin(Setup {
        child: vec!["--run", "for i in $(seq 15); do echo still at it; sleep 0.1; done"],
        keeper_lines,
        ttl: CALM,
        ..Setup::default()
    })?;
    let new = restarted(t, &old, old.start + 1, "health: no output for 1s", |_| Ok(()))?;
    let lived = t.life(&old.instance)?.end - old.start;
    let told = format!("it was heard for 1.5 s and had 1 s more, not {}", ms(lived));
    check(lived >= nanos(millis(2400)), told)?;
    t.runs_on(&new, secs(1))
}

fn ready(t: &mut Trial) -> Step {
    let test = format!("command = [\"sh\", \"-c\", \"test -e ready-{HOST}\"], interval = \"100ms\"");
    let probes = format!("ready = {{ {test}, failures = 2 }}\nhealth = {{ {test} }}");
    t.prepare(Setup { keeper_lines: lines(&probes), ttl: CALM, ..Setup::default() })?;
    create(t, "ready-b")?;
    t.start_nodes()?;
    t.start("a")?;
    let first = t.first_child()?;
    t.next_child(first.start + 1, secs(10))?;
    t.start("b")?;
    let new = t.successor(&first, first.start, secs(10))?;
    t.runs_on(&new, secs(4))?;
    t.log_says("a", "ready: sh: exit code 1 (2 times in a row)")?;
    check(!t.log_of("a")?.contains("health probe"), "it was asked for its health before it was ready")?;
    t.log_says("b", "child is ready")
}

fn standby(t: &mut Trial) -> Step {
    let fit = format!(
        "health = {{ command = [\"sh\", \"-c\", \"test -e fit-{HOST}\"], standby = true, interval = \"100ms\", \
         failures = 2 }}"
    );
    t.prepare(Setup { keeper_lines: lines(&fit), ttl: CALM, ..Setup::default() })?;
    t.start_nodes()?;
    t.start_all()?;
    t.pause(secs(2));
    t.witness.look()?;
    check(t.witness.lives(KEEPER).is_empty(), "an unfit host has won")?;
    for host in ["a", "b"] {
        t.status_shows(host, "why it stands by", |status| {
            let reason = status["last_change"]["reason"].as_str().unwrap_or_default();
            status["role"] == "standby" && reason.contains("not fit to run it: health: sh: exit code 1")
        })?;
    }
    let at = create(t, "fit-b")?;
    let first = t.next_child(at, secs(5))?;
    check(Trial::holder_of(&first) == "b", "the unfit host has won")?;
    t.figure(format!("a child {} after its host was fit", ms(first.start - at)));
    t.runs_on(&first, secs(1))?;
    create(t, "fit-a")?;
    let at = remove(t, "fit-b")?;
    let second = t.successor(&first, at, secs(10))?;
    t.runs_on(&second, secs(4))
}

fn hangs(t: &mut Trial) -> Step {
    let hang = "trap '' TERM; setsid sh -c \\\"trap '' TERM; sleep 4711\\\" & sleep 4711 & sleep 4711";
    let health = format!(
        "health = {{ command = [\"sh\", \"-c\", \"test ! -e sick || {{ {hang}; }}\"], interval = \"500ms\", \
         timeout = \"1s\", failures = 2 }}"
    );
    let old = t.begin(Setup { keeper_lines: lines(&health), ttl: CALM, ..Setup::default() })?;
    let host = Trial::holder_of(&old);
    let daemon = t.daemon(&host)?.pid();
    let hanging = || procs::descendants(daemon).iter().filter(|p| p.cmdline == "sleep 4711").count();
    t.runs_on(&old, secs(1))?;
    let at = create(t, "sick")?;
    let within = boot_ns() + nanos(secs(5));
    while hanging() < 3 {
        check(boot_ns() < within, "the health command did not hang")?;
        t.pause(millis(5));
    }
    t.runs_on(&old, millis(500))?;
    let why = "health: sh: not done after 1s (2 times in a row)";
    let new = restarted(t, &old, at, why, |t| remove(t, "sick").map(drop))?;
    t.runs_on(&new, secs(3))?;
    check(hanging() == 0, format!("{} processes of hung probes are left", hanging()))
}
