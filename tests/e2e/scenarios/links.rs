//! Faults of the network between daemons and nodes.

use super::{Scenario, scenario};
use crate::clock::{boot_ns, ms};
use crate::proxy::Mode;
use crate::step::{Step, check};
use crate::trial::{Setup, TTL, Trial, millis, secs};
use std::time::Duration;

pub const ALL: &[Scenario] = &[
    scenario(
        "black_hole",
        "the holder is cut off in silence: its tree is dead before the lease ends, the other runs",
        |t| cut_holder(t, Mode::BlackHole),
    ),
    scenario("refused", "the holder's connections are reset and refused", |t| cut_holder(t, Mode::Refuse)),
    scenario("replies_lost", "requests arrive, answers do not: extensions that are never confirmed", |t| {
        cut_holder(t, Mode::RepliesHeld)
    }),
    scenario("requests_lost", "answers would come, requests do not arrive", |t| {
        cut_holder(t, Mode::RequestsHeld)
    }),
    scenario("short_cut", "the holder is cut off for a tenth of the ttl: nothing happens", short_cut),
    scenario("one_link_down", "the holder loses one node, each in turn: nothing happens", one_link_down),
    scenario("slow_link", "one node answers just later than node_timeout, to all: nothing happens", |t| {
        slow_node(t, TOO_SLOW)
    }),
    scenario(
        "slow_link_in_time",
        "one node answers just within node_timeout, to all: nothing happens",
        |t| slow_node(t, SLOW),
    ),
    scenario(
        "slow_holder",
        "all nodes answer the holder slowly, within node_timeout: nothing happens",
        slow_holder,
    ),
    scenario(
        "too_slow_holder",
        "all nodes answer the holder just later than node_timeout: the other runs",
        |t| cut_holder(t, TOO_SLOW),
    ),
    scenario(
        "cut_each_link",
        "every link of both hosts broken in a way of its own, by seed, again and again: never two, then one",
        cut_each_link,
    ),
];

fn proxied() -> Setup {
    Setup { proxied: true, ..Setup::default() }
}

fn cut_holder(t: &mut Trial, mode: Mode) -> Step {
    let old = t.begin(proxied())?;
    let holder = Trial::holder_of(&old);
    t.random_moment();
    let at = t.set_links(&holder, mode);
    let cut = boot_ns();
    // Held replies: the last extension may have arrived after the cut, so the key may live that much longer.
    let new = t.successor(&old, at, 2 * TTL + secs(3))?;
    t.figure(format!("next child after {}", ms(new.start - at)));
    t.runs_on(&new, TTL)?;
    t.died_with_its_lease(&old, cut)?;
    t.set_links(&holder, Mode::Pass);
    t.runs_on(&new, secs(2))?;
    check(t.is_running(&holder), "the daemon that was cut off is gone")
}

/// From an extension that is due to the end of trying there are 1.3 s of 5: on a busy machine the cut may last much longer than asked.
fn short_cut(t: &mut Trial) -> Step {
    const TTL: Duration = secs(5);
    let child = t.begin(Setup { ttl: "5s", ..proxied() })?;
    let holder = Trial::holder_of(&child);
    t.held_by_all()?;
    for mode in [Mode::BlackHole, Mode::Refuse] {
        let moment = t.chance.span_below(TTL / 2);
        t.pause(moment);
        t.set_links(&holder, mode);
        t.pause(TTL / 10);
        t.set_links(&holder, Mode::Pass);
        t.runs_on(&child, TTL * 3 / 5)?;
    }
    Ok(())
}

fn one_link_down(t: &mut Trial) -> Step {
    let child = t.begin(proxied())?;
    let holder = Trial::holder_of(&child);
    for node in t.node_names() {
        t.held_by_all()?;
        let mode = if node == 'B' { Mode::Refuse } else { Mode::BlackHole };
        t.set_link(&holder, node, mode);
        t.runs_on(&child, TTL * 3 / 2)?;
        t.set_link(&holder, node, Mode::Pass);
        t.runs_on(&child, TTL)?;
    }
    Ok(())
}

/// Each way: 90 and 110 ms there and back, where node_timeout is 100 ms. The first counts on nothing: a busy machine makes it the second.
const SLOW: Mode = Mode::Delay(millis(45));
const TOO_SLOW: Mode = Mode::Delay(millis(55));

fn slow_node(t: &mut Trial, mode: Mode) -> Step {
    let child = t.begin(proxied())?;
    t.held_by_all()?;
    let node = t.random_node();
    for host in ["a", "b"] {
        t.set_link(host, node, mode);
    }
    t.runs_on(&child, 3 * TTL)
}

/// 340 ms there and back, where node_timeout is 500 ms: on a busy machine it is more. An extension that had to wait behind another request
/// would be too late.
fn slow_holder(t: &mut Trial) -> Step {
    let child = t.begin(Setup { ttl: "10s", ..proxied() })?;
    t.random_moment();
    t.set_links(&Trial::holder_of(&child), Mode::Delay(millis(170)));
    // Two extensions.
    t.runs_on(&child, secs(11))
}

fn cut_each_link(t: &mut Trial) -> Step {
    const WAYS: [Mode; 7] =
        [Mode::Pass, Mode::BlackHole, Mode::Refuse, Mode::RepliesHeld, Mode::RequestsHeld, SLOW, TOO_SLOW];
    t.begin(proxied())?;
    for _ in 0..3 {
        t.random_moment();
        for host in ["a", "b"] {
            for node in t.node_names() {
                let way = usize::try_from(t.chance.below(7)).unwrap_or(0);
                t.set_link(host, node, WAYS[way]);
            }
        }
        let span = t.chance.span_below(TTL * 3 / 2);
        t.pause(span);
        for host in ["a", "b"] {
            t.set_links(host, Mode::Pass);
        }
        // A lease that the cut has brought to its end is given the time to end.
        t.pause(TTL);
        let child = t.anybody(secs(5))?;
        t.runs_on(&child, millis(500))?;
    }
    Ok(())
}
