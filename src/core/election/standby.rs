//! Standing by: looking, sleeping until a quorum may be free, being barred from standing for a while.

use super::bid::Bidder;
use super::context::{Context, Start, look_votes};
use super::{Change, State, Timer};
use crate::core::event::{Event, Reason, Said};
use crate::core::lease::{NodeId, NodeMap};
use crate::core::request::{Held, LookAnswer, Request, RoundId};
use crate::core::round::Round;
use crate::core::time::Instant;
use std::time::Duration;

/// Expiry has a grain of 1 ms; then a little spread, so that standbys do not meet. It grows with the hosts that may stand by: the first of
/// them wakes as early all the same, and the others hear of its election instead of looking at the expiry themselves.
const EXPIRY_GRAIN: Duration = Duration::from_millis(1);
const EXPIRY_JITTER_MIN: Duration = Duration::from_millis(3);
const EXPIRY_JITTER_PER_HOST: Duration = Duration::from_millis(1);
const EXPIRY_JITTER_MAX: Duration = Duration::from_millis(200);
/// Hints are answered at once this often in a row, then at this pace: somebody may be writing the key all day.
const EAGER_LOOKS: u8 = 3;
const HINT_PACE: Duration = Duration::from_millis(5);
/// Each look for a returned node that no quorum answered makes the next one's spread so many times as long.
const RETURN_GROWTH: u32 = 4;
const RETURN_STEPS_MAX: u32 = 4;

/// Why this host does not stand, though the lock may be free.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Bar {
    /// It stands.
    None,
    /// It handed over: until another host has the lock, or this instant.
    StayOut {
        until: Instant,
    },
    Cooldown {
        until: Instant,
    },
    /// While a quorum of nodes says so.
    PausedEverywhere,
    /// Until resumed.
    Paused,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Standby {
    pub bar: Bar,
    look_at: Instant,
    pub look: Option<Round<LookAnswer>>,
    /// Decided already; what comes later may still wake it earlier.
    concluded: bool,
    /// A hint arrived while a look was under way.
    pub hinted: bool,
    eager: u8,
    /// Nodes that have answered a look and were not lost since: they tell of changes.
    told_by: NodeMap<()>,
    /// Nodes that came back since a quorum last answered.
    returns: u32,
    /// A quorum looks free since then, and this host lets others stand first.
    free_since: Option<Instant>,
    pub bidder: Bidder,
    last_votes: Vec<(NodeId, Said)>,
}

impl Standby {
    pub fn new(bar: Bar, look_at: Instant) -> Self {
        Standby {
            bar,
            look_at,
            look: None,
            concluded: false,
            hinted: false,
            eager: 0,
            told_by: NodeMap::default(),
            returns: 0,
            free_since: None,
            bidder: Bidder::default(),
            last_votes: Vec::new(),
        }
    }

    pub fn votes(&self) -> &[(NodeId, Said)] {
        &self.last_votes
    }

    pub fn waits_its_turn(&self) -> bool {
        self.free_since.is_some()
    }

    pub fn next_timer(&self) -> (Instant, Timer) {
        let look = match &self.look {
            Some(round) if !self.concluded => (round.ends, Timer::LookEnds),
            Some(_) | None => (self.look_at, Timer::Look),
        };
        match self.bar {
            Bar::StayOut { until } | Bar::Cooldown { until } => look.min((until, Timer::BarEnds)),
            Bar::None | Bar::PausedEverywhere | Bar::Paused => look,
        }
    }

    pub fn look_timer(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        if let Some(since) = self.free_since {
            // Others of this daemon may have come first; it costs no look to know.
            let (stands_at, again_at) = cx.stands_at(since, now);
            if now < stands_at {
                self.look_at = again_at;
                return None;
            }
        }
        self.look(cx, now)
    }

    /// Starts a look. Read only: a standby that asked with *acquire* would steal the holder's repair (R22).
    fn look(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        let ends = now + cx.settings.timing.node_timeout();
        self.hinted = false;
        self.concluded = false;
        self.look = Some(cx.open_round(now, ends, &Request::Look));
        self.conclude(cx, now)
    }

    pub fn look_ends(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        if let Some(round) = &mut self.look {
            round.close();
        }
        self.conclude(cx, now)
    }

    pub fn bar_ends(&mut self, now: Instant) -> Option<Change> {
        let reason = match self.bar {
            Bar::Cooldown { .. } => Reason::CooldownOver,
            Bar::StayOut { .. } | Bar::None | Bar::PausedEverywhere | Bar::Paused => Reason::Released,
        };
        self.lift_bar(now, reason)
    }

    /// Stands again from now on.
    pub fn lift_bar(&mut self, now: Instant, reason: Reason) -> Option<Change> {
        Some(Change::to(State::standing_by(Bar::None, now), reason))
    }

    fn is_looking(&self) -> bool {
        self.look.is_some() && !self.concluded
    }

    pub fn handle_hint(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        if self.is_looking() {
            self.hinted = true;
            return None;
        }
        if self.eager < EAGER_LOOKS {
            self.eager += 1;
            return self.look(cx, now);
        }
        self.look_at = self.look_at.min(now + HINT_PACE);
        None
    }

    pub fn handle_answer(
        &mut self,
        cx: &mut Context,
        now: Instant,
        node: NodeId,
        round: RoundId,
        answer: Option<LookAnswer>,
    ) -> Option<Change> {
        match &answer {
            Some(LookAnswer::Held(held) | LookAnswer::Paused { held: Some(held), .. }) => {
                cx.learn(now, node, held);
            }
            Some(LookAnswer::Free { token }) => cx.learn_token(*token),
            Some(LookAnswer::Quarantined { .. } | LookAnswer::Paused { held: None, .. }) | None => {}
        }
        let look = self.look.as_mut().filter(|look| look.ticket.round == round)?;
        match answer {
            Some(answer) => {
                look.record(node, answer);
                self.told_by.insert(node, ());
            }
            None => look.silence(node),
        }
        self.conclude(cx, now)
    }

    pub fn node_lost(&mut self, cx: &mut Context, now: Instant, node: NodeId) -> Option<Change> {
        self.bidder.node_lost(cx);
        self.told_by.remove(node);
        self.look.as_mut()?.silence(node);
        self.conclude(cx, now)
    }

    /// A node came back. With many hosts and keepers everybody's look at once is more than a node can answer in time, so that connections
    /// are given up, come back, and lead to looks again: nobody looks for its sake while a quorum tells of changes of a lock that is held,
    /// and looks that go unanswered are spread ever wider.
    pub fn node_serves(&mut self, cx: &mut Context, now: Instant) {
        let held = cx.seen.is_some();
        if held && self.told_by.len() >= cx.settings.quorum.size() {
            return;
        }
        let at_once = if held { 0 } else { cx.settings.quorum.nodes() };
        let step = usize::try_from(self.returns).unwrap_or(usize::MAX).checked_sub(at_once);
        self.returns = self.returns.saturating_add(1);
        let Some(step) = step else { return self.look_soon(now) };
        let factor = RETURN_GROWTH.pow(u32::try_from(step).unwrap_or(u32::MAX).min(RETURN_STEPS_MAX));
        let spread = (2 * cx.settings.timing.node_timeout() * factor).min(cx.poll_every());
        self.look_at = self.look_at.min(now + cx.jitter(spread));
    }

    /// What kept this host from standing may be gone: too few nodes served, or probes found it unfit.
    pub fn look_soon(&mut self, now: Instant) {
        self.look_at = self.look_at.min(now);
        self.hinted |= self.is_looking();
    }

    /// Decides as soon as the rest of the answers cannot make it free, or all are in; a later answer decides again.
    fn conclude(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        let quorum = cx.settings.quorum.size();
        let look = self.look.as_ref()?;
        let free = look.count(|answer| matches!(answer, LookAnswer::Free { .. }));
        if free < quorum && free + look.pending() >= quorum {
            return None;
        }
        let first = !self.concluded;
        self.concluded = true;
        if look.said().count() >= quorum {
            self.returns = 0;
        }
        self.last_votes = look_votes(look);
        let seen = holder(look, quorum);
        let news =
            seen.as_ref().is_some_and(|held| cx.seen.as_ref().is_none_or(|old| old.value != held.value));
        cx.seen = seen;
        if let Some(held) = cx.seen.clone() {
            // Somebody was elected: the contention is over.
            cx.split.reset();
            cx.wall_cap = None;
            cx.start = Start::Warm;
            if news {
                cx.emit(Event::HolderSeen { holder: held.holder });
            }
        }
        if let Some(change) = self.held_back(cx, now) {
            return Some(change);
        }
        if free >= quorum {
            return self.found_free(cx, now);
        }
        self.free_since = None;
        if matches!(self.bar, Bar::StayOut { .. }) && cx.seen.is_some() {
            self.bar = Bar::None;
        }
        let bids_at = self.bidder.judge(cx, now, self.bar == Bar::None && cx.fitness.may_stand(), first);
        let wake_at = self.wake_at(cx, now).min(bids_at.unwrap_or(Instant::NEVER));
        self.look_at = if first { wake_at } else { self.look_at.min(wake_at) };
        if std::mem::take(&mut self.hinted) {
            return self.handle_hint(cx, now);
        }
        if self.look_at > now + HINT_PACE {
            self.eager = 0;
        }
        None
    }

    fn found_free(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        match self.bar {
            Bar::None if cx.fitness.may_stand() => self.take_turn(cx, now),
            Bar::None | Bar::StayOut { .. } | Bar::Cooldown { .. } | Bar::PausedEverywhere | Bar::Paused => {
                self.look_at = now + cx.poll_every();
                None
            }
        }
    }

    /// Stands, or lets preferred hosts and those with fewer keepers go first and looks again.
    fn take_turn(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        let since = *self.free_since.get_or_insert(now);
        let (stands_at, again_at) = cx.stands_at(since, now);
        let asked = self.look.as_ref().map_or(since, |look| look.ticket.sent);
        if stands_at <= since || stands_at <= asked {
            cx.start = Start::Warm;
            return Some(Change::stand());
        }
        self.look_at = again_at;
        None
    }

    /// When a quorum may have expired: the Q-th smallest of what is left, after the look was sent.
    fn wake_at(&self, cx: &mut Context, now: Instant) -> Instant {
        let poll = cx.poll_every();
        let Some(look) = &self.look else { return now + poll };
        let mut left: Vec<Duration> = look
            .said()
            .filter_map(|(_, answer)| match answer {
                LookAnswer::Free { .. } => Some(Duration::ZERO),
                LookAnswer::Held(held) => held.remaining,
                LookAnswer::Paused { .. } => None,
                LookAnswer::Quarantined { remaining } => Some(*remaining),
            })
            .collect();
        left.sort_unstable();
        let until_free =
            left.get(cx.settings.quorum.size() - 1).map(|left| left.saturating_add(EXPIRY_GRAIN));
        let spread = EXPIRY_JITTER_PER_HOST.saturating_mul(cx.load.hosts);
        let jitter = cx.jitter(spread.clamp(EXPIRY_JITTER_MIN, EXPIRY_JITTER_MAX));
        now + until_free.map_or(poll, |left| left.min(poll)) + jitter
    }
}

/// The value a quorum of nodes is held by, if one is.
fn holder(look: &Round<LookAnswer>, quorum: usize) -> Option<Held> {
    let held = || {
        look.said().filter_map(|(_, answer)| match answer {
            LookAnswer::Held(held) => Some(held),
            LookAnswer::Paused { held, .. } => held.as_ref(),
            LookAnswer::Free { .. } | LookAnswer::Quarantined { .. } => None,
        })
    };
    held().find(|one| held().filter(|other| other.value == one.value).count() >= quorum).cloned()
}
