//! Faults of the daemon.

use super::{Scenario, scenario};
use crate::clock::{boot_ns, ms, nanos};
use crate::step::{Step, check};
use crate::trial::{AT_ONCE, LONG, Setup, TTL, Trial, millis, secs};
use nix::sys::signal::Signal;
use std::time::Duration;

pub const ALL: &[Scenario] = &[
    scenario("sigterm", "a polite stop hands over at once", sigterm),
    scenario(
        "sigkill",
        "a killed daemon's guard stops the child and frees the lock, long before the ttl",
        sigkill,
    ),
    scenario(
        "sigkill_restart",
        "the same, and the daemon is started again at once beside its old guard",
        sigkill_restart,
    ),
    scenario(
        "sigstop",
        "a daemon frozen for 3 × ttl loses its lease, and changes nothing when it thaws",
        sigstop,
    ),
    scenario(
        "host_frozen",
        "daemon, guard and child frozen together past the lease: two may live for a moment, and the fence holds",
        host_frozen,
    ),
    scenario(
        "stubborn_sigterm",
        "a child that ignores SIGTERM is killed after stop_timeout; daemon stopped",
        stubborn_sigterm,
    ),
    scenario(
        "stubborn_sigkill",
        "a child that ignores SIGTERM is killed after stop_timeout; daemon killed",
        stubborn_sigkill,
    ),
    scenario(
        "stubborn_sigstop",
        "a child that ignores SIGTERM is killed at kill_at; daemon frozen",
        stubborn_sigstop,
    ),
    scenario(
        "grandchild_sigterm",
        "a double-forked setsid grandchild dies before the next term; daemon stopped",
        grandchild_sigterm,
    ),
    scenario(
        "grandchild_sigkill",
        "a double-forked setsid grandchild dies before the next term; daemon killed",
        grandchild_sigkill,
    ),
    scenario(
        "second_sigterm",
        "the second SIGTERM kills at once, without the rest of stop_timeout",
        second_sigterm,
    ),
];

fn sigterm(t: &mut Trial) -> Step {
    stop_politely(t, Setup::default(), Duration::ZERO)
}

fn sigkill(t: &mut Trial) -> Step {
    kill_daemon(t, Setup::default(), Duration::ZERO)
}

fn stubborn_sigterm(t: &mut Trial) -> Step {
    stop_politely(t, Setup { child: vec!["--ignore-term"], ..Setup::default() }, STOP_TIMEOUT)
}

fn stubborn_sigkill(t: &mut Trial) -> Step {
    kill_daemon(t, Setup { child: vec!["--ignore-term"], ..Setup::default() }, STOP_TIMEOUT)
}

fn grandchild_sigterm(t: &mut Trial) -> Step {
    stop_politely(t, Setup { child: vec!["--grandchild"], ..Setup::default() }, Duration::ZERO)
}

fn grandchild_sigkill(t: &mut Trial) -> Step {
    kill_daemon(t, Setup { child: vec!["--grandchild"], ..Setup::default() }, Duration::ZERO)
}

/// The default where the ttl is 2 s.
const STOP_TIMEOUT: Duration = millis(333);

/// `stops_after`: what the old child takes to be dead.
fn stop_politely(t: &mut Trial, setup: Setup, stops_after: Duration) -> Step {
    let old = t.begin(setup)?;
    let holder = Trial::holder_of(&old);
    t.random_moment();
    let at = t.signal(&holder, Signal::SIGTERM)?;
    let new = t.successor(&old, at, stops_after + AT_ONCE)?;
    t.figure(format!("next child after {}", ms(new.start - at)));
    let status = t.daemon(&holder)?.await_exit(LONG)?;
    check(status.code() == Some(0), format!("a polite stop ended with {status}"))?;
    let old = t.life(&old.instance)?;
    check(old.asked_to_stop, "the child was not asked to stop")?;
    t.runs_on(&new, secs(1))
}

fn kill_daemon(t: &mut Trial, setup: Setup, stops_after: Duration) -> Step {
    let old = t.begin(setup)?;
    t.random_moment();
    let at = t.signal(&Trial::holder_of(&old), Signal::SIGKILL)?;
    let new = t.successor(&old, at, stops_after + AT_ONCE)?;
    t.figure(format!("next child after {}", ms(new.start - at)));
    t.runs_on(&new, secs(3))
}

fn sigkill_restart(t: &mut Trial) -> Step {
    let old = t.begin(Setup { child: vec!["--ignore-term", "--grandchild"], ..Setup::default() })?;
    let holder = Trial::holder_of(&old);
    t.random_moment();
    let at = t.signal(&holder, Signal::SIGKILL)?;
    t.start(&holder)?;
    let new = t.next_child(at, STOP_TIMEOUT + AT_ONCE)?;
    t.figure(format!("next child after {}", ms(new.start - at)));
    t.runs_on(&new, secs(3))
}

fn sigstop(t: &mut Trial) -> Step {
    freeze_daemon(t, Setup::default())
}

fn stubborn_sigstop(t: &mut Trial) -> Step {
    freeze_daemon(t, Setup { child: vec!["--ignore-term", "--grandchild"], ..Setup::default() })
}

fn freeze_daemon(t: &mut Trial, setup: Setup) -> Step {
    let old = t.begin(setup)?;
    let holder = Trial::holder_of(&old);
    t.random_moment();
    let at = t.signal(&holder, Signal::SIGSTOP)?;
    let frozen = boot_ns();
    let new = t.successor(&old, at, TTL + secs(1))?;
    t.figure(format!("next child after {}", ms(new.start - at)));
    t.runs_on(&new, 2 * TTL)?;
    t.died_with_its_lease(&old, frozen)?;
    t.signal(&holder, Signal::SIGCONT)?;
    t.runs_on(&new, secs(2))?;
    check(t.is_running(&holder), "the thawed daemon is gone")
}

fn second_sigterm(t: &mut Trial) -> Step {
    let setup = Setup {
        ttl: "10s",
        keeper_lines: "stop_timeout = \"3s\"",
        child: vec!["--ignore-term", "--grandchild"],
        ..Setup::default()
    };
    let old = t.begin(setup)?;
    let holder = Trial::holder_of(&old);
    t.random_moment();
    t.signal(&holder, Signal::SIGTERM)?;
    let first = boot_ns();
    while !t.life(&old.instance)?.asked_to_stop {
        check(boot_ns() < first + nanos(LONG), "the child was not asked to stop")?;
        t.pause(millis(5));
    }
    t.pause(millis(300));
    check(t.is_running(&holder), "the first signal did not wait for the child")?;
    let at = t.signal(&holder, Signal::SIGTERM)?;
    t.daemon(&holder)?.await_exit(LONG)?;
    let old = t.life(&old.instance)?;
    let took = old.end.saturating_sub(at);
    t.figure(format!("old tree dead {} after the second signal", ms(took)));
    // Of stop_timeout much more is left.
    check(took < 1_500_000_000, "the second signal did not kill at once")?;
    t.successor(&old, at, LONG)?;
    Ok(())
}

/// No lease can exclude it: the child may wake before anybody can kill it. A register that checks tokens refuses what it writes.
fn host_frozen(t: &mut Trial) -> Step {
    let old = t.begin(Setup { child: vec!["--grandchild"], ..Setup::default() })?;
    let host = Trial::holder_of(&old);
    t.random_moment();
    let at = crate::clock::boot_ns();
    t.freeze_host(&host, true)?;
    let new = t.successor(&old, at, TTL + secs(1))?;
    t.figure(format!("next child after {}", ms(new.start - at)));
    t.runs_on(&new, TTL)?;
    t.wake_children(&host)?;
    t.thaw_host(&host, Duration::ZERO);
    t.runs_on(&new, secs(2))?;
    let refused = t.registers().map_or(0, |r| r.rejected);
    let overlaps = t.witness.judge.excused_overlaps();
    t.figure(format!("{} overlaps as expected, {refused} writes refused by the fence", overlaps.len()));
    check(
        refused > 0 && !overlaps.is_empty(),
        "the old child woke and wrote nothing: this trial showed nothing",
    )
}
