//! Between the proof of death and standing by again: the lock is given back.

use super::context::Context;
use super::standby::Bar;
use super::{Action, Change, State, Timer};
use crate::core::event::{Event, Reason, Said};
use crate::core::lease::{FencingToken, NodeId, Value};
use crate::core::request::{Request, RoundId};
use crate::core::round::Round;
use crate::core::time::Instant;
use std::time::Duration;

/// How long a host that handed over stays out when nobody takes the lock.
pub(super) const STAY_OUT: Duration = Duration::from_secs(10);
/// A host that could not hold its lease lets the others try first; alone, it hardly notices.
pub(super) const HEAD_START: Duration = Duration::from_millis(500);

/// What follows the release, from the weakest to the strongest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum After {
    /// Stand again at once.
    Stand,
    /// Stand again soon: this host could not hold its lease.
    GiveWay,
    /// Let another host have it.
    StayOut,
    Cooldown {
        until: Instant,
    },
    Paused,
    /// The daemon drains: never again.
    Stopped,
}

impl After {
    /// Two reasons to stop: the one that keeps this host out longer counts.
    pub fn stronger(self, other: After) -> After {
        self.max(other)
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Release {
    pub token: FencingToken,
    pub after: After,
    round: Round<()>,
}

impl Release {
    pub fn begin(cx: &mut Context, now: Instant, value: Value, token: FencingToken, after: After) -> Self {
        cx.abandon(value);
        let ends = now + cx.settings.timing.node_timeout();
        let ticket = cx.ticket(now);
        let serving = &cx.serving;
        let round = Round::open(ticket, ends, cx.settings.quorum, |node| serving.contains(node));
        for node in cx.settings.quorum.ids() {
            cx.ask(node, ticket, Request::Release { value });
        }
        Release { token, after, round }
    }

    pub fn next_timer(&self) -> (Instant, Timer) {
        (self.round.ends, Timer::RoundEnds)
    }

    pub fn handle_answer(
        &mut self,
        cx: &mut Context,
        now: Instant,
        node: NodeId,
        id: RoundId,
        released: bool,
    ) -> Option<Change> {
        if self.round.ticket.round != id {
            return None;
        }
        if released {
            self.round.record(node, ());
        } else {
            self.round.silence(node);
        }
        self.conclude(cx, now)
    }

    pub fn node_lost(&mut self, cx: &mut Context, now: Instant, node: NodeId) -> Option<Change> {
        self.round.silence(node);
        self.conclude(cx, now)
    }

    pub fn round_ends(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        self.round.close();
        self.conclude(cx, now)
    }

    /// A quorum is free, or nobody answers in time: the nodes' own side goes on until each has heard it.
    pub fn conclude(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        let confirmed = self.round.count(|()| true);
        if confirmed < cx.settings.quorum.size() && self.round.pending() > 0 {
            return None;
        }
        // The guard was kept until here so that a crash of the daemon would still have released.
        cx.act(Action::QuitGuard);
        cx.probe_host_anew();
        cx.emit(Event::Released { confirmed, token: self.token });
        let votes = super::context::votes(&self.round, |()| Said::Ok);
        let bar = match self.after {
            After::Stand => Bar::None,
            After::GiveWay => Bar::StayOut { until: now + HEAD_START },
            After::StayOut => Bar::StayOut { until: now + STAY_OUT },
            After::Cooldown { until } => Bar::Cooldown { until },
            After::Paused => Bar::Paused,
            After::Stopped => return Some(Change::to(State::Stopped, Reason::Released).with_votes(votes)),
        };
        Some(Change::to(State::standing_by(bar, now), Reason::Released).with_votes(votes))
    }
}
