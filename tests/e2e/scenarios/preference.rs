//! Which host gets a keeper when several could have it. Order only: that there is never more than one is checked as everywhere.

use super::Scenario;
use crate::clock::{boot_ns, ms, nanos};
use crate::step::{Step, check};
use crate::trial::{KEEPER, QUARANTINE, Setup, TTL, Trial, WITH_QUARANTINE, millis, secs};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A host's advantage is measured in milliseconds, so nothing else runs beside these.
const fn order(name: &'static str, shows: &'static str, story: fn(&mut Trial) -> Step) -> Scenario {
    Scenario { name, shows, story, limit: Duration::from_secs(60), alone: true }
}

pub const ALL: &[Scenario] = &[
    order(
        "preference_order",
        "the preferred host wins at a cold start, and as each ends the next best takes over at once",
        order_of_hosts,
    ),
    order(
        "preference_take_back",
        "a preferred host takes a keeper back once, after `hold` and not before",
        take_back,
    ),
    order(
        "preference_contradiction",
        "two hosts whose files each prefer themselves take nothing from each other",
        contradiction,
    ),
    order(
        "preference_spread",
        "30 keepers on 3 hosts end at 10 ± 3 each, those of a host that stops go to both others, and none moves for balance",
        spread,
    ),
];

/// Nodes that have just started vote for nobody yet: all hosts are there when the first vote is to be had.
fn cold(hosts: &[&'static str], keeper_lines: &'static str) -> Setup {
    Setup { hosts: hosts.to_vec(), quarantine: WITH_QUARANTINE, keeper_lines, ..Setup::default() }
}

/// Notices when the machine stands still: waits that end meanwhile end all at once, and which host is first after that is chance.
struct Stillness(Arc<AtomicU64>);

impl Stillness {
    const LOOK_EVERY: Duration = millis(5);
    /// Half of what a rank waits.
    const MUCH: Duration = millis(50);
    const RECENTLY: Duration = secs(1);

    fn watch() -> Stillness {
        let last = Arc::new(AtomicU64::new(0));
        let noted = Arc::clone(&last);
        std::thread::spawn(move || {
            loop {
                let since = boot_ns();
                std::thread::sleep(Self::LOOK_EVERY);
                if boot_ns() - since > nanos(Self::MUCH) {
                    noted.store(boot_ns(), Ordering::Relaxed);
                }
            }
        });
        Stillness(last)
    }

    /// Then an order that is not as it should be says nothing.
    fn was_now(&self, t: &mut Trial) -> bool {
        let was = boot_ns() < self.0.load(Ordering::Relaxed) + nanos(Self::RECENTLY);
        if was {
            t.figure("the machine stood still");
        }
        was
    }
}

fn order_of_hosts(t: &mut Trial) -> Step {
    let still = Stillness::watch();
    let first = t.begin(cold(&["a", "b", "c"], "priority = { c = 10, b = 5 }"))?;
    if Trial::holder_of(&first) != "c" {
        return check(still.was_now(t), format!("{} won the cold start", first.instance));
    }
    t.random_moment();
    let at = t.signal("c", Signal::SIGKILL)?;
    let second = t.successor(&first, at, millis(100 + 800))?;
    t.figure(format!("second best after {}", ms(second.start - at)));
    if Trial::holder_of(&second) != "b" {
        return check(still.was_now(t), format!("{} took over from c", second.instance));
    }
    t.random_moment();
    let at = t.signal("b", Signal::SIGTERM)?;
    let third = t.successor(&second, at, millis(200 + 500))?;
    t.figure(format!("last after {}", ms(third.start - at)));
    t.runs_on(&third, secs(1))
}

fn take_back(t: &mut Trial) -> Step {
    const HOLD: Duration = secs(3);
    t.prepare(Setup { keeper_lines: "priority = { a = 10 }\nhold = \"3s\"", ..Setup::default() })?;
    t.start_nodes()?;
    t.start("b")?;
    let mut old = t.first_child()?;
    for round in ["first", "second"] {
        t.random_moment();
        let from = boot_ns();
        t.start("a")?;
        // A look of the standby and an extension of the holder may each be half a ttl away.
        let new = t.successor_of_host("b", from, HOLD + TTL + secs(5))?;
        t.figure(format!("{round} taken back after {}", ms(new.start - from)));
        check(new.start - from >= nanos(HOLD), "taken back before a was well for long enough")?;
        old = t.life(&old.instance)?;
        check(new.start - old.start >= nanos(HOLD), "taken back twice within `hold`")?;
        t.figure(format!("between the two {}", ms(new.start.saturating_sub(old.end))));
        check(old.asked_to_stop, "b's child was not asked to stop")?;
        t.log_says("b", "a, preferred with priority 10, asks for it")?;
        t.runs_on(&new, HOLD + secs(1))?;
        let at = t.signal("a", Signal::SIGKILL)?;
        t.daemon("a")?.await_exit(secs(6))?;
        old = t.successor(&new, at, millis(100 + 800))?;
        check(Trial::holder_of(&old) == "b", "b did not take over")?;
    }
    t.runs_on(&old, secs(1))
}

fn contradiction(t: &mut Trial) -> Step {
    let own =
        vec![("a", "priority = { a = 10 }\nhold = \"1s\""), ("b", "priority = { b = 10 }\nhold = \"1s\"")];
    let child = t.begin(Setup { lines_of: own, ..Setup::default() })?;
    t.runs_on(&child, secs(7))?;
    let bidder = if Trial::holder_of(&child) == "a" { "b" } else { "a" };
    t.log_says(bidder, "asked to hand over")
}

const SPREAD: [&str; 3] = ["a", "b", "c"];

/// Nothing that costs a processor: 30 probes would be a load of their own.
const IDLE: [&str; 2] = ["sleep", "1000"];

fn spread(t: &mut Trial) -> Step {
    let names: Vec<&'static str> = (0..30).map(|n| &*format!("{KEEPER}-{n}").leak()).collect();
    let command_of = SPREAD.map(|host| (host, IDLE.to_vec())).to_vec();
    t.prepare(Setup { keepers: names, command_of, ..cold(&SPREAD, "") })?;
    t.start_nodes()?;
    t.start_all()?;
    let all = &SPREAD[..];
    let still = Stillness::watch();
    let counts = until_all_run(t, all, QUARANTINE + secs(10))?;
    t.figure(format!("at a cold start {counts:?}"));
    let even = counts.values().all(|n| (7..=13).contains(n));
    check(even || still.was_now(t), format!("at a cold start {counts:?}"))?;

    t.signal("c", Signal::SIGTERM)?;
    t.daemon("c")?.await_exit(secs(10))?;
    let counts = until_all_run(t, &all[..2], secs(10))?;
    t.figure(format!("without c {counts:?}"));
    let even = counts.values().all(|n| (12..=18).contains(n));
    check(even || still.was_now(t), format!("without c {counts:?}"))?;

    t.start("c")?;
    t.until("c listens", |t| Ok(t.daemon("c")?.status().is_ok()))?;
    t.pause(secs(2));
    let after = counts_of(t, all)?;
    check(after["c"] == 0, format!("a running keeper was moved: {after:?}"))
}

fn until_all_run(
    t: &mut Trial,
    hosts: &[&'static str],
    within: Duration,
) -> Step<BTreeMap<&'static str, usize>> {
    let begun = boot_ns();
    loop {
        // A daemon that has just been started has no control socket yet.
        let counts = counts_of(t, hosts);
        if let Ok(counts) = &counts
            && counts.values().sum::<usize>() == t.setup.keepers.len()
        {
            return Ok(counts.clone());
        }
        let told = counts.map_or_else(|failure| failure.why, |counts| format!("{counts:?}"));
        check(boot_ns() < begun + nanos(within), format!("not all run within {within:?}: {told}"))?;
        t.pause(millis(50));
    }
}

fn counts_of(t: &mut Trial, hosts: &[&'static str]) -> Step<BTreeMap<&'static str, usize>> {
    let mut counts = BTreeMap::new();
    for host in hosts {
        let status = t.daemon(host)?.status()?;
        let keepers = status["keepers"].as_array().map_or(&[][..], Vec::as_slice);
        counts.insert(*host, keepers.iter().filter(|keeper| keeper["role"] == "leader").count());
    }
    Ok(counts)
}
