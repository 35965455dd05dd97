//! `keeperd pause --everywhere`: no host runs the keeper, until `resume --everywhere`. The nodes know, whichever daemons run.

use super::client::EXIT_REFUSED;
use super::hand::{self, Hand};
use super::status::EXIT_UNKNOWN_NAME;
use super::steer::Manner;
use crate::clock;
use crate::config::Config;
use crate::core::event::Reason;
use crate::core::request::Pause;
use crate::lock::redis::ByNode;
use crate::observe::events::say_reason;
use crate::observe::plain::plain;
use crate::observe::status::rfc3339;
use std::io::Write;
use std::time::{Duration, Instant};

/// How often the nodes are asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long somebody is waited for who runs what was resumed.
const SUCCESSOR: Duration = Duration::from_secs(5);

type Outcome = Result<i32, Box<dyn std::error::Error>>;

/// Returns when no host runs it any more; the exit code.
pub fn pause(config: &Config, name: &str, manner: Manner, out: &mut dyn Write) -> i32 {
    hand::finish(try_pause(config, name, manner, out))
}

/// Returns when a host runs it again, or nobody does for a while; the exit code.
pub fn resume(config: &Config, name: &str, manner: Manner, out: &mut dyn Write) -> i32 {
    hand::finish(try_resume(config, name, manner, out))
}

fn try_pause(config: &Config, name: &str, manner: Manner, out: &mut dyn Write) -> Outcome {
    let Some(lock) = hand::configured_lock(config, name) else {
        eprintln!("keeperd: no keeper {name:?} in this configuration");
        return Ok(EXIT_UNKNOWN_NAME);
    };
    let mut hand = Hand::open(config, lock)?;
    let pause = Pause { host: config.host.clone(), since: clock::wall() };
    let paused = hand.runtime.block_on(hand.operator.pause(Some(&pause)));
    if !hand.is_heard(&paused, "it is not paused; once they answer, do this again, or resume --everywhere") {
        return Ok(EXIT_REFUSED);
    }
    // Who was woken by the first node may have found the others without it.
    hand.runtime.block_on(hand.operator.pause(Some(&pause)));
    let give_up = Instant::now() + manner.timeout;
    loop {
        let sights = hand.look();
        if hand::is_free(&sights, hand.quorum()) {
            break;
        }
        let holder = hand::holder(&sights, hand.quorum());
        if let Some(held) = holder.filter(|held| held.holder.is_none()) {
            eprintln!(
                "keeperd: {name}: paused, but {} has its lock and heeds no pause",
                hand::say_holder(held)
            );
            return Ok(EXIT_REFUSED);
        }
        if Instant::now() >= give_up {
            let waited = humantime::format_duration(manner.timeout);
            let who = holder.map_or("somebody".to_owned(), hand::say_holder);
            eprintln!(
                "keeperd: {name}: paused, but after {waited} {who} still has it; it hands over within half its ttl"
            );
            return Ok(EXIT_REFUSED);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    tell(&hand, name, &paused, "nobody has it", manner, out)?;
    Ok(0)
}

fn try_resume(config: &Config, name: &str, manner: Manner, out: &mut dyn Write) -> Outcome {
    let lock = hand::configured_lock(config, name);
    let mut hand = Hand::open(config, lock.unwrap_or(name))?;
    let were = hand.runtime.block_on(hand.operator.pause(None));
    if !hand.is_heard(&were, "it may still be paused; once they answer, do this again") {
        return Ok(EXIT_REFUSED);
    }
    if were.iter().any(Result::is_err) {
        eprintln!(
            "keeperd: {name}: once all nodes answer, do this again: a node that still says paused has no vote for it"
        );
    }
    if lock.is_none() && were.iter().flatten().all(Option::is_none) {
        eprintln!("keeperd: no keeper {name:?} in this configuration, and none of that name is paused");
        return Ok(EXIT_UNKNOWN_NAME);
    }
    let now = were.into_iter().map(|was| was.map(|_| None)).collect();
    let give_up = Instant::now() + SUCCESSOR.min(manner.timeout);
    let who = loop {
        if let Some(held) = hand::holder(&hand.look(), hand.quorum()) {
            break format!("held by {}", hand::say_holder(held));
        }
        if Instant::now() >= give_up {
            break "nobody has it yet".to_owned();
        }
        std::thread::sleep(LOOK_EVERY);
    };
    tell(&hand, name, &now, &who, manner, out)?;
    Ok(0)
}

fn tell(
    hand: &Hand,
    name: &str,
    pauses: &ByNode<Option<Pause>>,
    who: &str,
    manner: Manner,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let pause = pauses.iter().flatten().flatten().next();
    if !manner.json {
        let pause = pause.map(|pause| say_reason(&Reason::PausedEverywhere(pause.clone())));
        let pause = pause.as_deref().unwrap_or("not paused everywhere");
        return writeln!(out, "{name}: {}; {who}", plain(pause));
    }
    let nodes = hand.by_address(pauses).map(|(address, pause)| {
        serde_json::json!({ "address": address, "paused": pause.ok().map(Option::is_some) })
    });
    let paused =
        pause.map(|Pause { host, since }| serde_json::json!({ "host": host, "since": rfc3339(*since) }));
    let nodes: Vec<_> = nodes.collect();
    let document = serde_json::json!({ "name": name, "paused_everywhere": paused, "nodes": nodes });
    serde_json::to_writer_pretty(&mut *out, &document)?;
    writeln!(out)
}
