//! How many keepers each host has, as one daemon sees it, and how long it therefore lets others stand first.
//!
//! Every daemon learns the holder's host of every keeper when it looks; nothing else is exchanged. While this daemon has seen a keeper
//! held before, it waits a little for each keeper it has more than the host with the fewest. At a cold start nothing is known of
//! others: then all daemons take their keepers at one pace, in an order of their own, so that none has them all by being first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// For each keeper more than the host with the fewest has.
const STEP: Duration = Duration::from_millis(5);
const WAIT_MAX: Duration = Duration::from_millis(250);
/// At a cold start: one keeper after the other at this pace, and all of them within the span.
const COLD_STEP_MAX: Duration = Duration::from_millis(25);
const COLD_SPAN_MAX: Duration = Duration::from_millis(750);
/// And so many steps more for each keeper ahead of the slowest host, so that daemons that begin later catch up.
const COLD_STEPS_AHEAD: u32 = 4;
/// Parts of one step by which a host's order of keepers differs from the others'.
const SHIFTS: u32 = 1000;

/// What one keeper's election has to know of the others of its daemon. The default makes nobody wait.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Load {
    /// Keepers of this daemon.
    pub keepers: u32,
    /// Those it holds or stands for.
    pub own: u32,
    /// The fewest any other host holds, of those seen holding one. The host that just let go of this keeper does not count.
    pub least_elsewhere: Option<u32>,
    /// Hosts seen holding one, and this one.
    pub hosts: u32,
    /// Free keepers of this daemon whose turn is before this one's.
    pub line: u32,
    /// Where this keeper stands in this host's own order, from 0 to 999.
    pub shift: u32,
}

impl Load {
    fn ahead(&self) -> u32 {
        self.own.saturating_sub(self.least_elsewhere.unwrap_or(self.own))
    }

    /// How long a lock that was held before must have been free.
    pub fn wait(&self) -> Duration {
        (STEP * self.ahead()).min(WAIT_MAX)
    }

    fn cold_step(&self) -> Duration {
        (COLD_SPAN_MAX / self.keepers.max(1)).min(COLD_STEP_MAX)
    }

    /// The longest [`Load::cold_wait`]. A daemon with one keeper does not wait.
    pub fn cold_span(&self) -> Duration {
        (self.cold_step() * self.keepers.saturating_sub(1)).min(COLD_SPAN_MAX)
    }

    /// How long a lock that nobody was seen to hold must have been free.
    pub fn cold_wait(&self) -> Duration {
        let step = self.cold_step();
        let shift = step * self.shift.min(SHIFTS) / SHIFTS;
        let steps = self.own.saturating_add(self.ahead().saturating_mul(COLD_STEPS_AHEAD));
        (step * steps.min(self.keepers) + shift).min(self.cold_span())
    }

    /// How much later than its turn a keeper need look whether that has come: others of this daemon are before it.
    pub fn cold_apart(&self) -> Duration {
        self.cold_step() * self.line / self.hosts.max(1)
    }
}

/// Where one keeper is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seat<'a> {
    Nowhere,
    /// Looks free, and this daemon waits to stand.
    Waiting,
    /// Held or stood for here.
    Here,
    Elsewhere(&'a str),
}

/// The keepers of one daemon, by place, and who has them.
#[derive(Clone, Debug)]
pub struct Spread {
    host: String,
    keepers: BTreeMap<usize, Kept>,
    here: u32,
    elsewhere: BTreeMap<String, u32>,
    /// How many other hosts hold so many.
    hosts_by_count: BTreeMap<u32, u32>,
    waiting: BTreeSet<(u32, usize)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Kept {
    shift: u32,
    at: At,
    /// The other host that held it last.
    last: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum At {
    Nowhere,
    Waiting,
    Here,
    Elsewhere(String),
}

impl At {
    fn is(&self, seat: Seat<'_>) -> bool {
        match (self, seat) {
            (At::Nowhere, Seat::Nowhere) | (At::Waiting, Seat::Waiting) | (At::Here, Seat::Here) => true,
            (At::Elsewhere(host), Seat::Elsewhere(other)) => host == other,
            (At::Nowhere | At::Waiting | At::Here | At::Elsewhere(_), _) => false,
        }
    }
}

impl Spread {
    /// Of a daemon without keepers.
    pub fn new(host: &str) -> Self {
        Spread {
            host: host.to_owned(),
            keepers: BTreeMap::new(),
            here: 0,
            elsewhere: BTreeMap::new(),
            hosts_by_count: BTreeMap::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// A keeper more, at a place that none has.
    pub fn join(&mut self, place: usize, name: &str) {
        let kept = Kept { shift: shift(&self.host, name), at: At::Nowhere, last: None };
        self.keepers.insert(place, kept);
    }

    /// A keeper less.
    pub fn leave(&mut self, place: usize) {
        self.seat(place, Seat::Nowhere);
        self.keepers.remove(&place);
    }

    /// Takes note of where a keeper is now.
    pub fn seat(&mut self, place: usize, seat: Seat<'_>) {
        let Some(kept) = self.keepers.get_mut(&place).filter(|kept| !kept.at.is(seat)) else { return };
        let shift = kept.shift;
        let at = match seat {
            Seat::Nowhere => At::Nowhere,
            Seat::Waiting => At::Waiting,
            Seat::Here => At::Here,
            Seat::Elsewhere(host) => {
                kept.last = Some(host.to_owned());
                At::Elsewhere(host.to_owned())
            }
        };
        let before = std::mem::replace(&mut kept.at, at);
        match before {
            At::Nowhere => {}
            At::Waiting => drop(self.waiting.remove(&(shift, place))),
            At::Here => self.here -= 1,
            At::Elsewhere(host) => self.holds(&host, |count| count - 1),
        }
        match seat {
            Seat::Nowhere => {}
            Seat::Waiting => drop(self.waiting.insert((shift, place))),
            Seat::Here => self.here += 1,
            Seat::Elsewhere(host) => self.holds(host, |count| count + 1),
        }
    }

    fn holds(&mut self, host: &str, change: impl Fn(u32) -> u32) {
        if host == self.host {
            return;
        }
        let before = self.elsewhere.get(host).copied().unwrap_or(0);
        let after = change(before);
        if let Some(hosts) = self.hosts_by_count.get_mut(&before) {
            *hosts -= 1;
            if *hosts == 0 {
                self.hosts_by_count.remove(&before);
            }
        }
        if after == 0 {
            self.elsewhere.remove(host);
        } else {
            self.elsewhere.insert(host.to_owned(), after);
            *self.hosts_by_count.entry(after).or_default() += 1;
        }
    }

    pub fn load(&self, place: usize) -> Load {
        let Some(kept) = self.keepers.get(&place) else { return Load::default() };
        let last = kept.last.as_ref().and_then(|host| self.elsewhere.get(host));
        let besides_last = |(count, hosts): (&u32, &u32)| {
            let others = if last == Some(count) { hosts - 1 } else { *hosts };
            (others > 0).then_some(*count)
        };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Load {
            keepers: count(self.keepers.len()),
            own: self.here,
            least_elsewhere: self.hosts_by_count.iter().find_map(besides_last),
            hosts: count(self.elsewhere.len()).saturating_add(1),
            line: count(self.waiting.range(..(kept.shift, place)).count()),
            shift: kept.shift,
        }
    }
}

/// The same on every run, and unlike that of another host (FNV-1a, mixed).
fn shift(host: &str, keeper: &str) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in host.bytes().chain([0]).chain(keeper.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    u32::try_from((hash >> 32) % u64::from(SHIFTS)).unwrap_or(0)
}
