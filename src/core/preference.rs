//! Which host should have a keeper when several could: by this host's own file. Only ever order, never a safety matter.

use std::collections::BTreeMap;
use std::time::Duration;

/// A host's claim to a keeper; the larger one goes first. A host that nobody names has 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Priority(pub i32);

/// What the configuration says of priorities.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Priorities {
    /// This host's own; what other hosts have is theirs to say.
    Own(Priority),
    ByHost(BTreeMap<String, Priority>),
}

impl Default for Priorities {
    fn default() -> Self {
        Priorities::Own(Priority::default())
    }
}

/// A host asks the holder to hand a lock over, under a key beside it in Redis. Advice: no safety rule depends on it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Bid {
    pub host: String,
    /// As the bidder's own file has it.
    pub priority: Priority,
}

/// How much longer each rank below the first waits.
const RANK_WAIT: Duration = Duration::from_millis(100);
/// More ranks than this make a keeper wait no longer.
const RANKS_MAX: u32 = 5;
/// Where hosts have ranks, load decides only between those of one rank: it must stay below [`RANK_WAIT`].
const LOAD_WAIT_MAX_RANKED: Duration = Duration::from_millis(50);

/// The preference for one keeper on one host.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Preference {
    host: String,
    priorities: Priorities,
    hold: Duration,
}

impl Preference {
    /// How long a host is to be well before it takes a keeper back, when nobody says otherwise.
    pub const HOLD_DEFAULT: Duration = Duration::from_secs(60);

    pub fn new(host: &str, priorities: Priorities, hold: Duration) -> Self {
        Preference { host: host.to_owned(), priorities, hold }
    }

    /// All hosts are equal.
    pub fn none() -> Self {
        Preference::new("", Priorities::default(), Preference::HOLD_DEFAULT)
    }

    /// A host takes back only after it was well for this long, and from a term that has lasted for this long: so at most once in it.
    pub fn hold(&self) -> Duration {
        self.hold
    }

    pub fn own(&self) -> Priority {
        match &self.priorities {
            Priorities::Own(own) => *own,
            Priorities::ByHost(_) => self.of(&self.host),
        }
    }

    fn of(&self, host: &str) -> Priority {
        match &self.priorities {
            Priorities::Own(_) => Priority::default(),
            Priorities::ByHost(hosts) => hosts.get(host).copied().unwrap_or_default(),
        }
    }

    /// A standby asks: should this host have the keeper instead of `holder`?
    pub fn outranks(&self, holder: &str) -> bool {
        holder != self.host && self.own() > self.of(holder)
    }

    /// The holder asks: should the bidder have it instead of this host? A number in the bid counts only where this host's file
    /// knows nothing of others.
    pub fn yields_to(&self, bid: &Bid) -> bool {
        let theirs = match &self.priorities {
            Priorities::Own(_) => bid.priority,
            Priorities::ByHost(_) => self.of(&bid.host),
        };
        bid.host != self.host && theirs > self.own()
    }

    /// Priorities known to be above this host's, bounded.
    fn rank(&self) -> u32 {
        let own = self.own();
        let named = match &self.priorities {
            Priorities::Own(_) => None,
            Priorities::ByHost(hosts) => Some(hosts.values().copied()),
        };
        let mut above: Vec<Priority> =
            named.into_iter().flatten().chain([Priority::default()]).filter(|p| *p > own).collect();
        above.sort_unstable();
        above.dedup();
        u32::try_from(above.len()).unwrap_or(RANKS_MAX).min(RANKS_MAX)
    }

    fn is_ranked(&self) -> bool {
        let zero = Priority::default();
        match &self.priorities {
            Priorities::Own(own) => *own != zero,
            Priorities::ByHost(hosts) => hosts.values().any(|priority| *priority != zero),
        }
    }

    /// How long a lock must have been free before this host stands: rank first, then load. `cold_span`: longest wait for load at a
    /// cold start, where that is awaited.
    pub fn wait(&self, load_wait: Duration, cold_span: Option<Duration>) -> Duration {
        let (load_wait, rank_wait) = match cold_span {
            Some(span) => (load_wait.min(span), RANK_WAIT + span),
            None if self.is_ranked() => (load_wait.min(LOAD_WAIT_MAX_RANKED), RANK_WAIT),
            None => (load_wait, RANK_WAIT),
        };
        rank_wait * self.rank() + load_wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_host(host: &str, hosts: &[(&str, i32)]) -> Preference {
        let hosts = hosts.iter().map(|(host, priority)| ((*host).to_owned(), Priority(*priority))).collect();
        Preference::new(host, Priorities::ByHost(hosts), Preference::HOLD_DEFAULT)
    }

    fn own(host: &str, priority: i32) -> Preference {
        Preference::new(host, Priorities::Own(Priority(priority)), Preference::HOLD_DEFAULT)
    }

    fn bid(host: &str, priority: i32) -> Bid {
        Bid { host: host.into(), priority: Priority(priority) }
    }

    #[test]
    fn equal_hosts_wait_for_load_alone_and_ask_nothing_of_each_other() {
        let equal = own("a", 0);
        let load = Duration::from_millis(200);
        assert_eq!(equal.wait(Duration::ZERO, None), Duration::ZERO);
        assert_eq!(equal.wait(load, None), load);
        assert!(!equal.outranks("b") && !equal.yields_to(&bid("b", 0)));
    }

    #[test]
    fn rank_goes_before_any_load() {
        let named = [("a", 10), ("b", 5), ("spare", -5)];
        let waits = |load_ms, cold: Option<u64>| {
            ["a", "b", "c", "spare"].map(|host| {
                let cold = cold.map(Duration::from_millis);
                by_host(host, &named).wait(Duration::from_millis(load_ms), cold)
            })
        };
        for cold in [None, Some(0), Some(300)] {
            let (idle, busy) = (waits(0, cold), waits(10_000, cold));
            assert_eq!(idle[0], Duration::ZERO, "the first one waits for nobody");
            for (better, worse) in busy.iter().zip(&idle[1..]) {
                assert!(better < worse, "{busy:?} {idle:?}");
            }
        }
        let crowd: Vec<(String, i32)> = (0..200).map(|n| (format!("h{n}"), n)).collect();
        let crowd: Vec<(&str, i32)> = crowd.iter().map(|(host, n)| (host.as_str(), *n)).collect();
        assert!(by_host("last", &crowd).wait(Duration::ZERO, None) <= Duration::from_millis(500));
    }

    #[test]
    fn two_hosts_with_files_of_their_own_never_take_from_each_other_in_turn() {
        let tables: Vec<Vec<(&str, i32)>> =
            [(0, 0), (0, 10), (10, 0), (10, 10), (10, 20), (20, 10), (-5, 0), (0, -5)]
                .map(|(a, b)| vec![("a", a), ("b", b)])
                .into();
        let files = |host: &'static str| -> Vec<Preference> {
            let numbers = [-5, 0, 10, 20].map(|number| own(host, number));
            tables.iter().map(|table| by_host(host, table)).chain(numbers).collect()
        };
        let takes = |taker: &Preference, holder: &Preference| {
            taker.outranks(&holder.host)
                && holder.yields_to(&Bid { host: taker.host.clone(), priority: taker.own() })
        };
        let mut taken = 0;
        for a in files("a") {
            for b in files("b") {
                assert!(!(takes(&a, &b) && takes(&b, &a)), "{a:?} {b:?}");
                taken += u32::from(takes(&a, &b)) + u32::from(takes(&b, &a));
            }
        }
        assert!(taken > 10, "they do take back at all: {taken}");
    }

    #[test]
    fn a_host_asks_nothing_of_itself() {
        let me = by_host("a", &[("a", 10)]);
        assert!(!me.outranks("a") && !me.yields_to(&bid("a", 99)));
        assert!(me.outranks("b"));
        assert!(by_host("b", &[("a", 10)]).yields_to(&bid("a", 0)), "by the holder's own file");
        assert!(!by_host("b", &[("a", 0)]).yields_to(&bid("a", 99)));
        assert!(own("b", 5).yields_to(&bid("a", 6)) && !own("b", 5).yields_to(&bid("a", 5)));
    }
}
