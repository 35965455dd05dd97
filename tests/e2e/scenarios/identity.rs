//! What a child is on its host: a user that does not exist, a file of variables that is missing, a PID namespace.

use super::{Scenario, scenario};
use crate::clock::{boot_ns, ms, nanos};
use crate::step::{Step, check, failure, skipped};
use crate::trial::{CALM, KEEPER, LONG, Setup, Trial, millis, secs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub const ALL: &[Scenario] = &[
    scenario(
        "no_such_user",
        "a user that one host does not have: it says so, the other takes over and keeps it",
        |t| one_host_cannot(t, "user = \"no-such-user\"", "no user \\\"no-such-user\\\""),
    ),
    scenario(
        "no_such_env_file",
        "a file of variables that one host does not have: it says so, the other takes over and keeps it",
        |t| one_host_cannot(t, "env_file = \"missing.env\"", "missing.env: No such file"),
    ),
    scenario(
        "no_such_folder",
        "a working folder that one host does not have: it says so, the other takes over and keeps it",
        |t| one_host_cannot(t, "working_dir = \"missing\"", "missing: No such file"),
    ),
    scenario(
        "isolated_both_sigkill",
        "in a PID namespace nothing outlives SIGKILL to guard and daemon, a setsid grandchild included",
        isolated,
    ),
];

fn one_host_cannot(t: &mut Trial, line: &'static str, why: &str) -> Step {
    let lines_of = vec![("a", line)];
    let keeper_lines = "cooldown = \"2s\"";
    t.prepare(Setup { keeper_lines, lines_of, ttl: CALM, ..Setup::default() })?;
    t.start_nodes()?;
    t.start("a")?;
    t.status_shows("a", "its cooldown", |keeper| keeper["role"] == "cooldown")?;
    let at = boot_ns();
    t.start("b")?;
    let healthy = t.successor_of_host("a", at, LONG)?;
    t.runs_on(&healthy, secs(3))?;
    check(t.is_running("a"), "the daemon is gone for one keeper's sake")?;
    t.log_says("a", &why.replace('\\', ""))
}

fn isolated(t: &mut Trial) -> Step {
    let permitted =
        std::process::Command::new("unshare").args(["--pid", "--mount", "--fork", "true"]).output();
    if !permitted.is_ok_and(|output| output.status.success()) {
        return Err(skipped("PID namespaces are not permitted here"));
    }
    let keeper_lines = "isolate = \"pid\"";
    let child = vec!["--grandchild"];
    let old = t.begin(Setup { keeper_lines, child, cgroup: false, ..Setup::default() })?;
    t.runs_on(&old, millis(500))?;
    let host = Trial::holder_of(&old);
    let main = t.daemon(&host)?.keeper_status(KEEPER)?["pid"].as_i64().ok_or_else(|| failure("no pid"))?;
    let status = std::fs::read_to_string(format!("/proc/{main}/status"))?;
    check(
        status.contains(&format!("NSpid:\t{main}\t2")),
        "status shows the main process as the host numbers it",
    )?;
    let guard = t.daemon(&host)?.guard(KEEPER)?;
    t.random_moment();
    t.locks_may_linger = true;
    kill(Pid::from_raw(guard.pid), Signal::SIGSTOP)?; // so that it cannot see the daemon's end before its own
    let at = t.signal(&host, Signal::SIGKILL)?;
    kill(Pid::from_raw(guard.pid), Signal::SIGKILL)?;
    let killed = boot_ns();
    let new = t.successor(&old, at, LONG)?;
    let old = t.life(&old.instance)?;
    t.figure(format!("the last sign of the old tree {} after the kill", ms(old.end.saturating_sub(killed))));
    // The kernel's work, once the guard has had its turn to die; what outlives that, outlives the lease.
    check(old.end < killed + nanos(secs(1)), "the tree outlived guard and daemon")?;
    t.runs_on(&new, secs(1))
}
