//! Children that misbehave.

use super::{Scenario, scenario};
use crate::checker::Life;
use crate::clock::{boot_ns, nanos};
use crate::step::{Step, check, failure};
use crate::trial::{CALM, KEEPER, Setup, Trial, millis, secs};
use std::collections::BTreeMap;

pub const ALL: &[Scenario] = &[
    scenario(
        "crash_restart",
        "a crashed child is started again within the term: same host, same token",
        crash_restart,
    ),
    scenario(
        "crash_loop",
        "a child that exits at once: give up, cool down, and the other host tries",
        crash_loop,
    ),
    scenario(
        "crash_loop_one_host",
        "it crashes on one host only: the other takes over and keeps it",
        crash_loop_one_host,
    ),
    scenario(
        "no_such_command",
        "a command that does not exist on one host: the other takes over and keeps it",
        no_such_command,
    ),
    scenario(
        "no_such_command_anywhere",
        "it exists nowhere: both daemons stay up and say so",
        no_such_command_anywhere,
    ),
    scenario(
        "shouting",
        "1 MB lines, not UTF-8, as fast as it can: no lease is lost, memory stays bounded",
        shouting,
    ),
];

const COOLDOWN: u64 = 1_000_000_000;
const QUICK_TO_GIVE_UP: &str = "restart_delay = \"50ms\"\nrestart_delay_max = \"100ms\"\n\
    give_up_after = 3\ngive_up_window = \"1m\"\ncooldown = \"1s\"";

fn crash_restart(t: &mut Trial) -> Step {
    let child = vec!["--crash", "300", "7"];
    let lines = "restart_delay = \"50ms\"\nrestart_delay_max = \"100ms\"\ngive_up_after = 100";
    let first = t.begin(Setup { child, keeper_lines: lines, ttl: CALM, ..Setup::default() })?;
    let began = boot_ns();
    let mut lives = t.witness.lives(KEEPER);
    while lives.len() < 9 {
        check(boot_ns() < began + nanos(secs(20)), format!("only {} starts", lives.len()))?;
        t.pause(millis(10));
        t.witness.look()?;
        lives = t.witness.lives(KEEPER);
    }
    check(lives.iter().all(|l| l.token == first.token), "a local restart changed the term")?;
    t.figure(format!("{} starts in one term", lives.len()));
    Ok(())
}

fn crash_loop(t: &mut Trial) -> Step {
    let child = vec!["--crash", "0", "7"];
    t.begin(Setup { child, keeper_lines: QUICK_TO_GIVE_UP, ttl: CALM, ..Setup::default() })?;
    t.pause(secs(5));
    let end = boot_ns() + nanos(secs(20));
    let mut lives;
    let mut starts_of_term: BTreeMap<u64, usize>;
    loop {
        t.witness.look()?;
        lives = t.witness.lives(KEEPER);
        starts_of_term = BTreeMap::new();
        lives.iter().for_each(|l| *starts_of_term.entry(l.token).or_default() += 1);
        if starts_of_term.len() > 4 {
            break;
        }
        check(boot_ns() < end, format!("only {} terms were begun", starts_of_term.len()))?;
        t.pause(millis(10));
    }
    t.figure(format!("starts per term {:?}", starts_of_term.values().collect::<Vec<_>>()));
    let last = starts_of_term.keys().next_back().copied();
    let complete: Vec<usize> =
        starts_of_term.iter().filter(|(k, _)| Some(**k) != last).map(|(_, n)| *n).collect();
    check(complete.iter().all(|n| *n == 3), "give_up_after = 3 means three starts")?;
    // The other may have been slow to take its turn: then it is open to both again.
    let cooled = |w: &[Life]| w[0].host != w[1].host || w[1].start >= w[0].end + COOLDOWN;
    let turns = lives.windows(2).all(|w| w[0].token == w[1].token || cooled(w));
    check(turns, "a host in cooldown stood again before the other had its turn")?;
    check(lives.iter().any(|l| l.host != lives[0].host), "the other host never had its turn")
}

fn crash_loop_one_host(t: &mut Trial) -> Step {
    let command_of = vec![("a", vec!["--crash", "0", "7"])];
    t.prepare(Setup { command_of, keeper_lines: QUICK_TO_GIVE_UP, ttl: CALM, ..Setup::default() })?;
    t.start_nodes()?;
    t.start("a")?;
    let first = t.first_child()?;
    t.start("b")?;
    let healthy = t.successor(&first, first.start, secs(10))?;
    t.runs_on(&healthy, secs(4))
}

fn no_such_command(t: &mut Trial) -> Step {
    let command_of = vec![("a", vec!["/nonexistent/keeper", "--really"])];
    t.prepare(Setup { command_of, keeper_lines: QUICK_TO_GIVE_UP, ttl: CALM, ..Setup::default() })?;
    t.start_nodes()?;
    t.start("a")?;
    t.log_says("a", "/nonexistent/keeper")?;
    t.random_moment();
    let at = boot_ns();
    t.start("b")?;
    let healthy = t.successor_of_host("a", at, secs(10))?;
    t.runs_on(&healthy, secs(4))
}

fn no_such_command_anywhere(t: &mut Trial) -> Step {
    let missing = vec!["/nonexistent/keeper"];
    let command_of = vec![("a", missing.clone()), ("b", missing)];
    t.prepare(Setup { command_of, keeper_lines: QUICK_TO_GIVE_UP, ttl: CALM, ..Setup::default() })?;
    t.start_nodes()?;
    t.start_all()?;
    let begun = boot_ns();
    let mut cooled = BTreeMap::from([("a", 0), ("b", 0)]);
    let waits = |cooled: &BTreeMap<&str, u32>| {
        cooled.values().any(|n| *n == 0) && boot_ns() < begun + nanos(secs(20))
    };
    while boot_ns() < begun + nanos(secs(5)) || waits(&cooled) {
        for host in ["a", "b"] {
            check(t.is_running(host), format!("daemon {host} is gone"))?;
            let cools = t.daemon(host)?.keeper_status(KEEPER).is_ok_and(|s| s["role"] == "cooldown");
            *cooled.entry(host).or_default() += u32::from(cools);
        }
        t.pause(millis(50));
    }
    check(cooled.values().all(|n| *n > 0), format!("looks at status that found a cooldown: {cooled:?}"))?;
    // The name of the command that is missing.
    t.log_says("a", "/nonexistent/keeper")?;
    t.log_says("b", "/nonexistent/keeper")
}

fn shouting(t: &mut Trial) -> Step {
    let child = t.begin(Setup { child: vec!["--shout"], ttl: CALM, ..Setup::default() })?;
    let daemon = t.daemon(&Trial::holder_of(&child))?.pid();
    let rss = || crate::procs::rss_kib(daemon).ok_or_else(|| failure("the daemon is gone"));
    t.runs_on(&child, millis(500))?;
    let before = rss()?;
    let mut most = before;
    for _ in 0..12 {
        t.runs_on(&child, millis(500))?;
        most = most.max(rss()?);
    }
    t.figure(format!("daemon's memory {before} KiB, at most {most} KiB"));
    check(most < before + 32 * 1024, "the daemon's memory grows with what its child says")
}
