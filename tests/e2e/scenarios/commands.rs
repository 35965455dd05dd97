//! What operators ask of a running daemon, through the program as they would.

use super::{Scenario, scenario};
use crate::clock::boot_ns;
use crate::step::{Step, check};
use crate::trial::{CALM, KEEPER, Setup, Trial, millis, secs};
use nix::sys::signal::Signal;
use std::time::Duration;

pub const ALL: &[Scenario] = &[
    scenario(
        "step_down",
        "a keeper is moved by step-down, and is not moved by the host that stands by",
        step_down,
    ),
    scenario("pause", "a paused host does not stand, not even alone, until it is resumed", pause),
    scenario("restart", "a child is started anew within its term", restart),
    scenario(
        "drain",
        "a drained host has handed over everything, and takes nothing until it is resumed",
        drain,
    ),
    scenario("local_commands", "the same commands on one host with a local lock, and every exit code", local),
];

/// The command has returned: what it was for has happened, or is about to.
const SEEN: Duration = secs(10);

/// What a command of the program came to.
pub(super) struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Gives the command to the daemon of `host`.
pub(super) fn say(t: &mut Trial, host: &str, arguments: &[&str]) -> Step<Said> {
    t.note(format!("keeperd {} on {host}", arguments.join(" ")));
    let output = t.daemon(host)?.command(arguments).output()?;
    Ok(Said {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

impl Said {
    pub fn is(&self, code: i32, stdout: &str, stderr: &str) -> Step {
        let Said { code: was, stdout: out, stderr: err } = self;
        let unlike =
            || format!("exit {was:?}, wanted {code}, {stdout:?}, {stderr:?}\nstdout: {out}\nstderr: {err}");
        check(*was == Some(code) && out.contains(stdout) && err.contains(stderr), unlike())
    }
}

pub fn other(host: &str) -> &'static str {
    if host == "a" { "b" } else { "a" }
}

fn step_down(t: &mut Trial) -> Step {
    let old = t.begin(Setup { ttl: CALM, ..Setup::default() })?;
    let holder = Trial::holder_of(&old);
    t.held_by_all()?;
    say(t, other(&holder), &["step-down", KEEPER])?.is(1, "", &format!("it runs on {holder}"))?;
    t.runs_on(&old, millis(300))?;
    let at = boot_ns();
    let said = say(t, &holder, &["step-down", KEEPER])?;
    said.is(0, &format!("{KEEPER}: standby; it runs on {}", other(&holder)), "")?;
    let new = t.successor(&old, at, SEEN)?;
    t.runs_on(&new, secs(1))
}

fn pause(t: &mut Trial) -> Step {
    let old = t.begin(Setup { ttl: CALM, ..Setup::default() })?;
    let (holder, peer) = (Trial::holder_of(&old), other(&Trial::holder_of(&old)));
    let at = boot_ns();
    say(t, &holder, &["stop", KEEPER])?.is(0, &format!("{KEEPER}: paused; it runs on {peer}"), "")?;
    let new = t.successor(&old, at, SEEN)?;
    t.signal(peer, Signal::SIGTERM)?;
    t.daemon(peer)?.await_exit(SEEN)?;
    let alone = boot_ns();
    t.pause(secs(1));
    check(t.daemon(&holder)?.keeper_status(KEEPER)?["role"] == "paused", "a pause ended by itself")?;
    let resumed = say(t, &holder, &["start", KEEPER, "--json"])?;
    resumed.is(0, "\"keepers\"", "")?;
    let again = t.next_child(alone, SEEN)?;
    check(again.host == old.host && again.token > new.token, "who else could have it")?;
    t.runs_on(&again, millis(500))
}

fn restart(t: &mut Trial) -> Step {
    let old = t.begin(Setup { ttl: CALM, ..Setup::default() })?;
    let holder = Trial::holder_of(&old);
    say(t, other(&holder), &["restart", KEEPER])?.is(1, "", "nothing to restart")?;
    let at = boot_ns();
    say(t, &holder, &["restart", KEEPER])?.is(0, &format!("{KEEPER}: leader; it runs here (pid "), "")?;
    let new = t.next_child(at, SEEN)?;
    check(new.host == old.host && new.token == old.token, "the restart ended the term")?;
    t.runs_on(&new, millis(500))
}

const MANY: [&str; 20] = [
    "oracle", "k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8", "k9", "k10", "k11", "k12", "k13", "k14", "k15",
    "k16", "k17", "k18", "k19",
];

fn drain(t: &mut Trial) -> Step {
    // So many children and guards are a load of their own: leases must outlast it.
    let (ttl, child) = (CALM, vec!["--tick", "20"]);
    let old = t.begin(Setup { keepers: MANY.to_vec(), ttl, child, ..Setup::default() })?;
    let holder = Trial::holder_of(&old);
    let peer = other(&holder);
    let at = boot_ns();
    let said = say(t, &holder, &["drain"])?;
    said.is(0, &format!("{KEEPER}: paused; it runs on {peer}"), "")?;
    check(said.stdout.lines().count() == MANY.len(), format!("not all are told of: {}", said.stdout))?;
    // They have nothing left to guard, and end when it is their turn.
    t.until("no guard is left after the drain", |t| Ok(t.daemon(&holder)?.guards().is_empty()))?;
    let new = t.successor(&old, at, SEEN)?;
    t.runs_on(&new, secs(1))?;
    say(t, &holder, &["resume", "--all"])?.is(0, &format!("{KEEPER}: standby"), "")?;
    let at = t.signal(peer, Signal::SIGKILL)?;
    let back = t.successor(&new, at, SEEN)?;
    t.runs_on(&back, millis(500))
}

fn local(t: &mut Trial) -> Step {
    // So that a command's millisecond is over long before the child is killed.
    let (ttl, keeper_lines) = (CALM, "stop_timeout = \"800ms\"");
    let child = vec!["--ignore-term"];
    let setup = Setup { hosts: vec!["a"], nodes: 0, child, ttl, keeper_lines, ..Setup::default() };
    let first = t.begin(setup)?;
    say(t, "a", &["step-down", "nobody"])?.is(4, "", "keeperd status lists them")?;
    say(t, "a", &["step-down"])?.is(64, "", "Usage")?;
    say(t, "a", &["resume"])?.is(64, "", "<NAME|--all>")?;
    say(t, "a", &["pause", KEEPER, "--timeout", "1ms"])?.is(1, "", "not done after 1ms")?;
    say(t, "a", &["pause", KEEPER])?.is(0, &format!("{KEEPER}: paused; nobody has it now"), "")?;
    check(t.life(&first.instance)?.asked_to_stop, "the child was not asked to stop")?;
    say(t, "a", &["step-down", KEEPER])?.is(1, "", "nothing to hand over")?;
    let at = boot_ns();
    say(t, "a", &["resume", "--all"])?.is(0, KEEPER, "")?;
    let second = t.next_child(at, SEEN)?;
    let at = boot_ns();
    say(t, "a", &["restart", KEEPER])?.is(0, "leader", "")?;
    let third = t.next_child(at, SEEN)?;
    check(third.token == second.token, "the restart ended the term")?;
    say(t, "a", &["drain", "--timeout", "1ms"])?.is(1, "", "not done after 1ms")?;
    t.signal("a", Signal::SIGTERM)?;
    t.daemon("a")?.await_exit(SEEN)?;
    for command in [&["status"][..], &["drain"], &["restart", KEEPER], &["logs", KEEPER]] {
        say(t, "a", command)?.is(3, "", "is it running?")?;
    }
    Ok(())
}
