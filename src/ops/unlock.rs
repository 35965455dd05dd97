//! `keeperd unlock`: frees a lock that nobody looks after. Not even forced does it let a second keeperd start a copy beside a living one: who
//! has the lock hears that it is gone, and nobody else is granted it before the lease he may believe in is over (R25).

use super::client::EXIT_REFUSED;
use super::hand::{self, Hand, say_holder};
use crate::config::{Config, LockConfig};
use crate::core::request::Held;
use crate::lock::redis::{ByNode, Evicted, LEASE_UNKNOWN, Sight};
use crate::observe::plain::plain;
use std::io::Write;
use std::time::{Duration, Instant};

/// How often the nodes are asked.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// On top of half a lease, by when a keeperd has extended it.
const MARGIN: Duration = Duration::from_secs(1);
/// A key that outlives this is not watched to its end.
const WATCH_MAX: Duration = Duration::from_secs(60);
/// How a key of another type reads.
const NOT_A_STRING: &[u8] = b"(not a string)";

/// Frees the lock of the keeper of that name, or the lock of that name; the exit code.
pub fn run(config: &Config, name: &str, force: bool, out: &mut dyn Write) -> i32 {
    hand::finish(try_run(config, name, force, out))
}

type Failure = Box<dyn std::error::Error>;

fn try_run(config: &Config, name: &str, force: bool, out: &mut dyn Write) -> Result<i32, Failure> {
    if let LockConfig::Local(_) = config.lock {
        return Err("with engine = \"local\" a lock ends with its holder: there is nothing to unlock".into());
    }
    let mut hand = Hand::open(config, hand::configured_lock(config, name).unwrap_or(name))?;
    let sights = hand.look();
    if !hand.is_heard(&sights, "nothing was changed") {
        return Ok(EXIT_REFUSED);
    }
    let mut held = values(&sights);
    let mut reasons = foreign_reasons(&mut held, force);
    if !force {
        reasons.extend(watch(&mut hand, &sights, &mut held));
    }
    reasons.dedup();
    for why in &reasons {
        eprintln!("keeperd: {name}: {why}");
    }
    if held.iter().any(Option::is_some) {
        return evict(&mut hand, name, &held, !reasons.is_empty(), out);
    }
    if !reasons.is_empty() {
        return Ok(EXIT_REFUSED);
    }
    writeln!(out, "{name}: nobody has it; nothing to unlock")?;
    Ok(0)
}

/// By node.
fn values(sights: &ByNode<Sight>) -> Vec<Option<Held>> {
    sights.iter().map(|sight| sight.as_ref().ok()?.held.clone()).collect()
}

/// What cannot be taken from other clients is dropped from `held`; why.
fn foreign_reasons(held: &mut [Option<Held>], force: bool) -> Vec<String> {
    let mut reasons = Vec::new();
    for place in held {
        let Some(other) = place.as_ref().filter(|held| held.holder.is_none()) else { continue };
        let why = if other.value == NOT_A_STRING && !force {
            "its key holds no string, so it is another library's; --force removes it".to_owned()
        } else if let Some(left) = other.remaining.filter(|left| !force && *left > WATCH_MAX) {
            let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
            format!(
                "a client that is not keeperd has it for {left} more unless it extends it; --force takes it away"
            )
        } else {
            continue;
        };
        reasons.push(why);
        *place = None;
    }
    reasons
}

/// How long a holder may take until he extends it. Other clients may do so at the last moment, and tell nobody their lease.
fn patience(sight: &Sight) -> Duration {
    let by_lease = sight.lease.unwrap_or(LEASE_UNKNOWN) / 2 + MARGIN;
    match &sight.held {
        Some(Held { holder: None, remaining: Some(left), .. }) => (*left + MARGIN).min(WATCH_MAX + MARGIN),
        Some(_) => by_lease,
        None => Duration::ZERO,
    }
}

/// Watches the nodes until it is known who extends what he has, and drops that from `held`, with what is gone by itself; why.
fn watch(hand: &mut Hand, sights: &ByNode<Sight>, held: &mut [Option<Held>]) -> Vec<String> {
    let longest = sights.iter().flatten().map(patience).max().unwrap_or_default();
    if held.iter().any(Option::is_some) {
        eprintln!(
            "keeperd: watching for up to {:.0} s whether somebody extends it",
            longest.as_secs_f64().ceil()
        );
    }
    let began = Instant::now();
    let mut alive: Vec<Held> = Vec::new();
    while held.iter().any(Option::is_some) && began.elapsed() < longest {
        std::thread::sleep(LOOK_EVERY);
        for (place, now) in held.iter_mut().zip(hand.look()) {
            // A node that does not answer has shown nothing.
            let (Some(old), Ok(now)) = (place.as_ref(), now) else { continue };
            if let Some(new) = &now.held
                && (new.value != old.value || is_extended(old, new))
            {
                alive.push(new.clone());
            }
            *place = now.held.filter(|new| new.value == old.value);
        }
        for place in held.iter_mut() {
            place.take_if(|held| alive.iter().any(|living| living.value == held.value));
        }
    }
    alive.iter().map(why_alive).collect()
}

fn why_alive(held: &Held) -> String {
    let elsewhere = if held.holder.is_some() { "`keeperd step-down` on that host moves it, " } else { "" };
    format!("{} has it and extends it; {elsewhere}--force takes it away", say_holder(held))
}

/// An end came nearer in the meantime unless somebody moved it.
fn is_extended(old: &Held, new: &Held) -> bool {
    match (old.remaining, new.remaining) {
        (Some(old), Some(new)) => new > old,
        (None, Some(_)) => true,
        (_, None) => false,
    }
}

/// Takes the lock from those who have it, and waits until nobody can believe any more that he has. `refused`: not from all.
fn evict(
    hand: &mut Hand,
    name: &str,
    held: &[Option<Held>],
    refused: bool,
    out: &mut dyn Write,
) -> Result<i32, Failure> {
    let values: Vec<_> = held.iter().map(|held| held.as_ref().map(|held| held.value.clone())).collect();
    let done = hand.runtime.block_on(hand.operator.evict(&values));
    let mut longest = Duration::ZERO;
    for ((address, done), held) in hand.by_address(&done).zip(held) {
        let Some(held) = held else {
            writeln!(out, "{address}: nothing to take away")?;
            continue;
        };
        let who = say_holder(held);
        match done {
            Ok(Some(Evicted::Gone { waits })) => {
                longest = longest.max(*waits);
                let waits = waits.as_secs_f64();
                writeln!(
                    out,
                    "{address}: taken from {who}; granted to nobody else for {waits:.1} s unless released"
                )?;
            }
            Ok(Some(Evicted::Changed) | None) => writeln!(out, "{address}: changed meanwhile; left alone")?,
            Err(why) => writeln!(out, "{address}: {}", plain(why))?,
        }
    }
    if held.iter().flatten().any(|held| held.holder.is_none()) {
        writeln!(
            out,
            "{name}: clients that are not keeperd know of no eviction: make sure that the old one has ended"
        )?;
    }
    let is_evicted = |sight: &Sight| {
        sight.held.as_ref().is_some_and(|held| values.iter().flatten().any(|value| *value == held.value))
    };
    let give_up = Instant::now() + longest + MARGIN * 2;
    loop {
        let sights = hand.look();
        if sights.iter().flatten().filter(|sight| !is_evicted(sight)).count() >= hand.quorum() {
            let who = hand::holder(&sights, hand.quorum());
            let who =
                who.map_or("nobody has it now".to_owned(), |held| format!("held by {}", say_holder(held)));
            let done = if refused { "what nobody looks after is removed" } else { "unlocked" };
            writeln!(out, "{name}: {done}; {who}")?;
            return Ok(if refused { EXIT_REFUSED } else { 0 });
        }
        if Instant::now() >= give_up {
            eprintln!(
                "keeperd: {name}: a quorum of nodes still has what was taken away; do this again once all answer"
            );
            return Ok(EXIT_REFUSED);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
