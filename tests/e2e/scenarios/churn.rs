//! Daemons and keepers with the npm package redlock on one lock, stopped and killed for as long as one likes.

use super::figures::summary;
use super::interop::{free_of, next_of, prepare, value_on_quorum};
use super::{Scenario, seconds};
use crate::checker::Record;
use crate::clock::{boot_ns, ms, nanos};
use crate::cluster::Node;
use crate::legacy::Client;
use crate::step::{Step, check, failure};
use crate::trial::{KEEPER, Setup, TTL, Trial, millis, secs};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::time::Duration;

const fn churn_of(name: &'static str, shows: &'static str, story: fn(&mut Trial) -> Step) -> Scenario {
    Scenario { name, shows, story, limit: secs(75), alone: false }
}

pub const ALL: &[Scenario] = &[
    churn_of(
        "interop_churn_4",
        "three daemons and three keepers with redlock 4.2.0, stopped and killed for 20 s (E2E_SECONDS)",
        |t| churn(t, "4"),
    ),
    churn_of("interop_churn_5", "the same with redlock 5.0.0-beta.2", |t| churn(t, "5")),
];

const DAEMONS: [&str; 3] = ["a", "b", "c"];
const LEGACIES: [&str; 3] = ["x", "y", NAIVE];
/// A process that was told to stop, or killed.
const ENDS: Duration = secs(15);
/// The one with `retryCount: -1`, which keeperd's README advises against.
const NAIVE: &str = "z";

/// One for each major version of ioredis.
fn client_of(name: &str, redlock: &'static str) -> Client {
    let ioredis = match name {
        "x" => "5",
        "y" => "4",
        _ => "6",
    };
    Client { redlock, ioredis, naive: name == NAIVE }
}

fn name_of(start: &Record) -> String {
    start.instance.split(['.', ':']).next().unwrap_or_default().into()
}

struct Churn {
    redlock: &'static str,
    /// Hand-over times by who gave, how, and who took.
    spans: BTreeMap<String, Vec<u64>>,
    signals: u32,
    /// Times at which nobody got the lock before the naive waiter was removed.
    blocked: u32,
}

fn churn(t: &mut Trial, redlock: &'static str) -> Step {
    prepare(t, Setup { hosts: DAEMONS.to_vec(), ..Setup::default() }, KEEPER)?;
    let mut c = Churn { redlock, spans: BTreeMap::new(), signals: 0, blocked: 0 };
    let end = boot_ns() + nanos(seconds().unwrap_or(secs(20)));
    let mut since = boot_ns();
    DAEMONS.iter().chain(&LEGACIES).try_for_each(|name| c.start(t, name))?;
    while boot_ns() < end || (boot_ns() < end + nanos(secs(20)) && !says_something(t)) {
        let holder = c.holder(t, since)?;
        since = holder.at - 1;
        let pause = t.chance.span_below(millis(900));
        t.pause(pause);
        if t.chance.below(4) == 0 {
            c.restart_a_bystander(t, &holder)?;
        } else {
            c.change(t, &holder)?;
        }
    }
    let last = c.holder(t, since)?;
    let last = t.life(&last.instance)?;
    t.runs_on(&last, secs(1))?;
    c.report(t)
}

/// Two terms of each kind.
fn says_something(t: &Trial) -> bool {
    let lives = t.witness.lives(KEEPER);
    let npm = lives.iter().filter(|l| l.is_legacy()).count();
    npm >= 2 && lives.len() >= npm + 2
}

fn is_daemon(name: &str) -> bool {
    DAEMONS.contains(&name)
}

fn kind(name: &str) -> &'static str {
    if is_daemon(name) { "keeperd" } else { "npm" }
}

impl Churn {
    fn start(&mut self, t: &mut Trial, name: &str) -> Step {
        if is_daemon(name) { t.start(name) } else { t.start_legacy(name, client_of(name, self.redlock)) }
    }

    /// Sends one of the two signals, by chance, and waits until the process is gone.
    fn strike(&mut self, t: &mut Trial, name: &str) -> Step<(u64, Signal)> {
        let signal = if t.chance.below(2) == 0 { Signal::SIGTERM } else { Signal::SIGKILL };
        self.signals += 1;
        let at = if is_daemon(name) { t.signal(name, signal)? } else { t.signal_legacy(name, signal)? };
        if is_daemon(name) {
            t.daemon(name)?.await_exit(ENDS)?;
        } else {
            t.legacy(name)?.await_exit(ENDS)?;
        }
        Ok((at, signal))
    }

    /// Who has the lock now, or gets it next: the youngest start after `since`, if it still shows signs of life.
    fn holder(&mut self, t: &mut Trial, since: u64) -> Step<Record> {
        let mut holder = self.next(t, since)?;
        loop {
            let later = next_of(t, KEEPER, holder.at, Duration::ZERO)?;
            match later {
                Some(later) => holder = later,
                None if stays_silent(t, &holder)? => holder = self.next(t, holder.at)?,
                None => return Ok(holder),
            }
        }
    }

    /// The next start. If there is none although processes of both kinds stand for it, the naive waiter is in everybody's
    /// way, itself included: a person would have to end it, so we do.
    fn next(&mut self, t: &mut Trial, since: u64) -> Step<Record> {
        for _ in 0..5 {
            if let Some(start) = next_of(t, KEEPER, since, secs(1))? {
                return Ok(start);
            }
            let votes = votes(t);
            t.note(format!("nobody yet: {votes}"));
        }
        self.blocked += 1;
        t.note("nobody gets the lock: end the naive waiter");
        t.signal_legacy(NAIVE, Signal::SIGKILL)?;
        t.legacy(NAIVE)?.await_exit(ENDS)?;
        let start = next_of(t, KEEPER, since, 2 * TTL + secs(10))?;
        self.start(t, NAIVE)?;
        start.ok_or_else(|| failure("nobody gets the lock, although nobody is in the way"))
    }

    /// Ends the holder; or, so that the slower kind gets its turn, all daemons.
    fn change(&mut self, t: &mut Trial, holder: &Record) -> Step {
        let from = name_of(holder);
        let mut ended = vec![from.clone()];
        if is_daemon(&from) && t.chance.below(3) > 0 {
            for other in DAEMONS.into_iter().filter(|d| *d != from) {
                self.strike(t, other)?;
                ended.push(other.into());
            }
        }
        let value = value_on_quorum(t);
        let (at, signal) = self.strike(t, &from)?;
        // Nobody releases the lock of a killed legacy keeper: what counts is the time after it expired.
        let crashed = signal == Signal::SIGKILL && !is_daemon(&from);
        let free = if crashed { at.max(free_of(t, value.as_deref())) } else { at };
        let blocked = self.blocked;
        let to = self.next(t, holder.at)?;
        // On a busy machine a holder may have lost its lock by itself before the signal.
        let by_signal = to.at >= at;
        check(
            !by_signal || to.at + 2_000_000 >= free,
            format!("{} began before the lock of {from} expired", to.instance),
        )?;
        if by_signal && blocked == self.blocked {
            let how = if crashed { "expiry after SIGKILL" } else { signal.as_str() };
            let what = format!("{} → {} on {how}", kind(&from), kind(&name_of(&to)));
            self.spans.entry(what).or_default().push(to.at.saturating_sub(free));
        }
        for name in ended {
            let pause = t.chance.span_below(millis(200));
            t.pause(pause);
            self.start(t, &name)?;
        }
        Ok(())
    }

    fn restart_a_bystander(&mut self, t: &mut Trial, holder: &Record) -> Step {
        let holder = name_of(holder);
        let others: Vec<&str> =
            DAEMONS.iter().chain(&LEGACIES).copied().filter(|name| *name != holder).collect();
        let index = t.chance.below(others.len() as u64);
        let name = others[usize::try_from(index).expect("a small index")];
        self.strike(t, name)?;
        self.start(t, name)
    }

    fn report(&mut self, t: &mut Trial) -> Step {
        check(says_something(t), format!("{} terms say nothing", t.witness.lives(KEEPER).len()))?;
        t.figure(format!("{} signals", self.signals));
        t.figure(format!("{} times blocked by the naive waiter", self.blocked));
        for (what, spans) in &mut self.spans {
            t.figure(format!("{what}: {}", summary(spans)));
        }
        Ok(())
    }
}

/// Whose key stands where, for the log of a slow hand-over.
fn votes(t: &Trial) -> String {
    let lock = Trial::lock_key();
    let of_node = |node: &Node| -> Step<String> {
        let value = node.get(&lock)?;
        let shadow = node.get(&format!("keeperd:lease:{{{lock}}}"))?;
        let left = node.expires_at(&lock)?.map_or(0, |at| at.saturating_sub(boot_ns()));
        Ok(match value {
            None => "free".into(),
            Some(v) if shadow.as_ref() == Some(&v) => format!("keeperd {v} for {}", ms(left)),
            Some(v) => format!("npm {v} for {}", ms(left)),
        })
    };
    let said = t.nodes.iter().map(|n| format!("{}: {}", n.name, of_node(n).unwrap_or_else(|f| f.why)));
    said.collect::<Vec<_>>().join(", ")
}

/// For half a second, and for another in which nobody else begins: a child that was only not scheduled is no reason to end anybody.
fn stays_silent(t: &mut Trial, start: &Record) -> Step<bool> {
    Ok(is_silent(t, start) && next_of(t, KEEPER, start.at, millis(500))?.is_none() && is_silent(t, start))
}

fn is_silent(t: &Trial, start: &Record) -> bool {
    let records = t.witness.records().iter().rev().take(500);
    let last = records.filter(|r| r.instance == start.instance).map(|r| r.at).max();
    boot_ns().saturating_sub(last.unwrap_or(start.at)) > nanos(millis(500))
}
