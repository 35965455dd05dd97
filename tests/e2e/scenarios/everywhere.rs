//! What operators ask of the nodes, past the daemons: a pause on all hosts, and a lock taken away.

use super::commands::{other, say};
use super::{Scenario, scenario};
use crate::clock::{boot_ns, nanos};
use crate::step::{Step, check};
use crate::trial::{KEEPER, LONG, Setup, TTL, Trial, millis, secs};
use nix::sys::signal::Signal;

pub const ALL: &[Scenario] = &[
    scenario(
        "pause_everywhere",
        "a keeper paused everywhere runs nowhere, whichever daemons and nodes restart, and at once when resumed",
        pause,
    ),
    scenario(
        "unlock_living",
        "a lock that is looked after is not unlocked; forced, its holder goes first, also a frozen one",
        unlock_living,
    ),
    scenario(
        "unlock_stuck",
        "a lock without end, or of a holder that is gone, is unlocked and then held by a host",
        unlock_stuck,
    ),
];

fn is_paused(t: &mut Trial, host: &str) -> Step<bool> {
    let keeper = t.daemon(host)?.keeper_status(KEEPER)?;
    let why = keeper["last_change"]["reason"].as_str().unwrap_or_default();
    Ok(keeper["role"] == "paused"
        && why.starts_with("paused everywhere by b at 20")
        && keeper["pid"].is_null())
}

fn all_are_paused(t: &mut Trial, hosts: &[&str]) -> Step {
    let end = boot_ns() + nanos(LONG);
    for host in hosts {
        // A daemon that has just begun has no control socket yet.
        while !is_paused(t, host).unwrap_or(false) {
            let now = t.daemon(host)?.keeper_status(KEEPER);
            check(boot_ns() < end, format!("{host} is not paused: {now:?}"))?;
            t.pause(millis(10));
        }
    }
    Ok(())
}

fn pause(t: &mut Trial) -> Step {
    const HOSTS: [&str; 3] = ["a", "b", "c"];
    let old = t.begin(Setup { hosts: HOSTS.to_vec(), ..Setup::default() })?;
    t.held_by_all()?;
    say(t, "b", &["pause", "nobody", "--everywhere"])?.is(4, "", "no keeper \"nobody\"")?;
    let said = say(t, "b", &["pause", KEEPER, "--everywhere"])?;
    said.is(0, &format!("{KEEPER}: paused everywhere by b at 20"), "")?;
    check(said.stdout.contains("nobody has it"), format!("who has it? {}", said.stdout))?;
    check(t.life(&old.instance)?.asked_to_stop, "the child was not asked to stop")?;
    all_are_paused(t, &HOSTS)?;
    say(t, "a", &["locks"])?.is(0, "paused everywhere by b at 20", "")?;
    say(t, "a", &["resume", KEEPER])?.is(1, "", "--everywhere")?;
    for (here, back) in
        [(&["pause", KEEPER], &["resume", KEEPER]), (&["drain", "--here"], &["resume", "--all"])]
    {
        say(t, "a", here)?.is(0, "paused", "")?;
        // It stands by for a moment, and hears of the pause of all hosts again.
        say(t, "a", back)?.is(0, KEEPER, "")?;
        all_are_paused(t, &["a"])?;
    }
    // Nobody holds anything: no quarantine is needed.
    t.restart_node_empty('B')?;
    for host in HOSTS {
        t.signal(host, Signal::SIGTERM)?;
        t.daemon(host)?.await_exit(LONG)?;
    }
    HOSTS.into_iter().try_for_each(|host| t.start(host))?;
    all_are_paused(t, &HOSTS)?;
    t.pause(TTL / 2);
    all_are_paused(t, &HOSTS)?;
    let at = boot_ns();
    say(t, "c", &["resume", KEEPER, "--everywhere"])?.is(0, "not paused everywhere; held by", "")?;
    let new = t.next_child(at, LONG)?;
    check(new.token > old.token, "the token did not grow")?;
    t.runs_on(&new, millis(500))
}

fn unlock_living(t: &mut Trial) -> Step {
    let first = t.begin(Setup::default())?;
    let (holder, peer) = (Trial::holder_of(&first), other(&Trial::holder_of(&first)));
    t.held_by_all()?;
    say(t, peer, &["unlock", KEEPER])?.is(1, "", &format!("{holder} (keeperd's pid "))?;
    t.runs_on(&first, millis(300))?;
    let at = boot_ns();
    say(t, peer, &["unlock", KEEPER, "--force"])?.is(0, &format!("{KEEPER}: unlocked"), "")?;
    let second = t.successor(&first, at, LONG)?;
    t.held_by_all()?;
    let at = t.signal(peer, Signal::SIGSTOP)?;
    say(t, &holder, &["unlock", KEEPER, "--force"])?.is(0, &format!("taken from {peer}"), "")?;
    let third = t.successor(&second, at, LONG)?;
    t.signal(peer, Signal::SIGCONT)?;
    t.runs_on(&third, secs(1))
}

fn unlock_stuck(t: &mut Trial) -> Step {
    let first = t.begin(Setup { hosts: vec!["a"], ..Setup::default() })?;
    t.held_by_all()?;
    t.signal("a", Signal::SIGTERM)?;
    t.daemon("a")?.await_exit(LONG)?;
    // As it was left by a holder that died, and by somebody who took away its end.
    let (lock, value) = (Trial::lock_key(), "00000000000000000000000000000007");
    let side = |what: &str| format!("keeperd:{what}:{{{lock}}}");
    for name in t.node_names() {
        let node = t.node(name);
        node.ask(&["SET", &lock, value])?;
        node.ask(&["SET", &side("lease"), value])?;
        node.ask(&["HSET", &side("fence"), "l", value, "host", "gone", "pid", "1", "ttl", "2000"])?;
    }
    t.start("a")?;
    t.status_shows("a", "the lock is seen", |keeper| keeper["holder"]["host"] == "gone")?;
    t.pause(secs(1));
    let at = boot_ns();
    let said = say(t, "a", &["unlock", KEEPER])?;
    said.is(0, "taken from gone (keeperd's pid 1)", "")?;
    check(said.stdout.lines().count() == 4, format!("not each node is told of: {}", said.stdout))?;
    let second = t.next_child(at, LONG)?;
    check(second.token > first.token, "the token did not grow")?;
    t.runs_on(&second, millis(500))?;
    say(t, "a", &["unlock", "nothing"])?.is(0, "nothing to unlock", "")
}
