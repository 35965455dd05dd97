//! The stories. Each begins with a running keeper, breaks one thing at a random moment of the term, says what must follow,
//! and ends with what must hold after every story (`Trial::finish`): a polite stop with exit code 0, no lock in Redis, no
//! process and no cgroup leaf left, no overlap, tokens in order.

use crate::step::Step;
use crate::trial::Trial;
use std::time::Duration;

mod children;
mod churn;
mod commands;
mod control;
mod daemons;
mod everywhere;
mod figures;
mod guards;
mod health;
pub mod hooks;
mod identity;
mod interop;
mod keys;
mod links;
mod local;
mod migration;
mod mix;
mod nemesis;
mod nodes;
mod output;
mod preference;
mod reload;
mod scripts;
mod steady;

#[derive(Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    /// One sentence for `--list` and for people.
    pub shows: &'static str,
    pub story: fn(&mut Trial) -> Step,
    /// The runner's patience.
    pub limit: Duration,
    /// Measures time: nothing else runs beside it.
    pub alone: bool,
}

const fn scenario(name: &'static str, shows: &'static str, story: fn(&mut Trial) -> Step) -> Scenario {
    Scenario { name, shows, story, limit: Duration::from_secs(60), alone: false }
}

/// `E2E_SECONDS`: how long a story that can last as long as one likes is asked to last.
fn seconds() -> Option<Duration> {
    std::env::var("E2E_SECONDS").ok()?.parse().ok().map(Duration::from_secs)
}

/// More patience for the same reason.
pub fn longer() -> Duration {
    seconds().unwrap_or_default()
}

pub fn all() -> Vec<Scenario> {
    let groups = [
        nemesis::ALL,
        steady::ALL,
        daemons::ALL,
        commands::ALL,
        reload::ALL,
        everywhere::ALL,
        migration::ALL,
        guards::ALL,
        children::ALL,
        hooks::ALL,
        identity::ALL,
        scripts::ALL,
        health::ALL,
        links::ALL,
        nodes::ALL,
        keys::ALL,
        preference::ALL,
        local::ALL,
        output::ALL,
        mix::ALL,
        interop::ALL,
        churn::ALL,
        control::ALL,
        figures::ALL,
    ];
    groups.into_iter().flatten().copied().collect()
}
