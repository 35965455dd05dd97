//! What every state of an election needs: the settings, the nodes that serve, the outbox.

use super::health::{Fitness, ProbeNumber};
use super::{Action, Retry, Settings};
use crate::core::backoff::Backoff;
use crate::core::event::{Event, Said};
use crate::core::lease::{FencingToken, NodeId, NodeMap, Value};
use crate::core::request::{ExtendAnswer, Held, LookAnswer, Request, RoundId, Ticket};
use crate::core::restart::Restarts;
use crate::core::rng::{Rng, Seed};
use crate::core::round::{Heard, Round};
use crate::core::spread::Load;
use crate::core::time::{Instant, Now, WallTime};
use std::collections::VecDeque;
use std::time::Duration;

/// Jitter of contenders that met: 25 ms doubling to 400 ms (R28).
const SPLIT_FIRST: Duration = Duration::from_millis(25);
const SPLIT_MAX: Duration = Duration::from_millis(400);
/// Values we gave up and may still find on a node that was silent then.
const ABANDONED_MAX: usize = 8;

/// Whether this keeper was held or stood for since this daemon began: until then every host may be at its cold start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Start {
    Cold { free_since: Option<Instant> },
    Warm,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Context {
    pub settings: Settings,
    pub serving: NodeMap<()>,
    pub rng: Rng,
    pub split: Backoff,
    /// Attempts that failed in a row against legacy holders or for want of a quorum.
    pub retries: u32,
    pub restarts: Restarts,
    /// Largest token any node has shown.
    pub token_seen: FencingToken,
    /// The clock of a quorum that refused our last proposal: this host's clock is ahead, propose by the nodes' (R14).
    pub wall_cap: Option<WallTime>,
    /// Who holds the lock, as the last look saw it.
    pub seen: Option<Held>,
    /// What this daemon has and others have; handed in.
    pub load: Load,
    pub start: Start,
    /// Terms in a row that this host gave up because the keeper does not run here.
    pub unfit: u32,
    pub fitness: Fitness,
    /// Numbers given to probed things so far.
    pub probes: u64,
    abandoned: VecDeque<Value>,
    next_round: u64,
    actions: VecDeque<Action>,
}

impl Context {
    pub fn new(settings: Settings, seed: Seed) -> Self {
        let restarts = Restarts::new(settings.restart.clone());
        let fitness = match settings.fit_to_stand {
            true => Fitness::Probed { number: ProbeNumber(1), fit: None },
            false => Fitness::Any,
        };
        Context {
            settings,
            serving: NodeMap::default(),
            rng: Rng::new(seed),
            split: Backoff::new(SPLIT_FIRST, SPLIT_MAX),
            retries: 0,
            restarts,
            token_seen: FencingToken(0),
            wall_cap: None,
            seen: None,
            load: Load::default(),
            start: Start::Cold { free_since: None },
            unfit: 0,
            fitness,
            probes: 1,
            abandoned: VecDeque::new(),
            next_round: 1,
            actions: VecDeque::new(),
        }
    }

    pub fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub fn emit(&mut self, event: Event) {
        self.act(Action::Emit(event));
    }

    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// A new round number, stamped with the time before anything is sent.
    pub fn ticket(&mut self, now: Instant) -> Ticket {
        let round = RoundId(self.next_round);
        self.next_round += 1;
        Ticket { round, sent: now }
    }

    pub fn ask(&mut self, node: NodeId, ticket: Ticket, request: Request) {
        self.act(Action::Ask { node, ticket, request });
    }

    fn ask_serving(&mut self, ticket: Ticket, request: &Request) {
        for node in self.settings.quorum.ids() {
            if self.serving.contains(node) {
                self.ask(node, ticket, request.clone());
            }
        }
    }

    /// Asks all serving nodes, and waits for no answer.
    pub fn ask_all(&mut self, now: Instant, request: &Request) {
        let ticket = self.ticket(now);
        self.ask_serving(ticket, request);
    }

    /// Asks all serving nodes the same; the others are silent from the start (R29).
    pub fn open_round<A>(&mut self, now: Instant, ends: Instant, request: &Request) -> Round<A> {
        let ticket = self.ticket(now);
        let serving = &self.serving;
        let round = Round::open(ticket, ends, self.settings.quorum, |node| serving.contains(node));
        self.ask_serving(ticket, request);
        round
    }

    /// Releases a value wherever it may have arrived; nodes that do not serve remember it until they do.
    pub fn release_at(&mut self, now: Instant, value: Value, nodes: impl Iterator<Item = NodeId>) {
        let ticket = self.ticket(now);
        for node in nodes {
            self.ask(node, ticket, Request::Release { value });
        }
    }

    /// Remembers that a value is no longer wanted.
    pub fn abandon(&mut self, value: Value) {
        if self.abandoned.len() == ABANDONED_MAX {
            self.abandoned.pop_front();
        }
        self.abandoned.push_back(value);
    }

    /// Takes note of a foreign holder's token, and releases a leftover of our own (R28).
    pub fn learn(&mut self, now: Instant, node: NodeId, held: &Held) {
        self.learn_token(held.token);
        if let Some(value) = Value::parse(&held.value)
            && self.abandoned.contains(&value)
        {
            self.release_at(now, value, std::iter::once(node));
        }
    }

    pub fn learn_token(&mut self, token: FencingToken) {
        self.token_seen = self.token_seen.max(token);
    }

    /// Larger than every token seen, and by the wall clock where that is larger still, so that contenders agree in one trip.
    ///
    /// After a quorum refused a proposal as absurd, its clock alone: what was seen may be the leftover of a broken clock on one node,
    /// which must not lock the keeper out on the others. Order does not rest on the proposal; a grant that is larger is raised to.
    pub fn proposal(&mut self, now: Now) -> FencingToken {
        let proposal = match self.wall_cap.take() {
            Some(node_wall) => FencingToken(node_wall.as_micros()),
            None => self.token_seen.next().max(FencingToken(now.wall.as_micros())),
        };
        proposal.min(FencingToken::MAX)
    }

    /// Hints may be lost; this is how long a standby can be wrong about a lock.
    pub fn poll_every(&self) -> Duration {
        self.settings.timing.ttl() / 2
    }

    /// The pause after an attempt that failed against a legacy holder or for want of a quorum.
    pub fn retry_pause(&mut self) -> Duration {
        let Retry { count, delay } = self.settings.retry;
        if count.is_some_and(|count| self.retries >= count) {
            self.retries = 0;
            return self.poll_every().max(delay);
        }
        self.retries = self.retries.saturating_add(1);
        delay + self.jitter(delay / 2)
    }

    /// When this host may stand for a lock that has looked free since `since`, and when to see whether that has come.
    pub fn stands_at(&mut self, since: Instant, now: Instant) -> (Instant, Instant) {
        let (load, preference) = (self.load, &self.settings.preference);
        match &mut self.start {
            Start::Warm => {
                let at = since + preference.wait(load.wait(), None);
                (at, at)
            }
            Start::Cold { free_since } => {
                let since = *free_since.get_or_insert(since);
                let span = load.cold_span();
                let at = since + preference.wait(load.cold_wait(), Some(span));
                let last = since + preference.wait(span, Some(span));
                (at, (at.max(now) + load.cold_apart()).min(last).max(at))
            }
        }
    }

    pub fn jitter(&mut self, span: Duration) -> Duration {
        self.rng.below(span)
    }
}

/// One word per node for log lines about an extension round.
pub(super) fn extension_votes(round: &Round<ExtendAnswer>) -> Vec<(NodeId, Said)> {
    votes(round, |answer| match answer {
        ExtendAnswer::Ok => Said::Ok,
        ExtendAnswer::Kept => Said::Kept,
        ExtendAnswer::Empty => Said::Empty,
        ExtendAnswer::Gone => Said::Gone,
        ExtendAnswer::Foreign(_) => Said::Foreign,
    })
}

/// One word per node for log lines about a look.
pub(super) fn look_votes(round: &Round<LookAnswer>) -> Vec<(NodeId, Said)> {
    votes(round, |answer| match answer {
        LookAnswer::Free { .. } => Said::Free,
        LookAnswer::Held(_) => Said::Held,
        LookAnswer::Quarantined { .. } => Said::Quarantined,
        LookAnswer::Paused { .. } => Said::Paused,
    })
}

pub(super) fn votes<A>(round: &Round<A>, word: impl Fn(&A) -> Said) -> Vec<(NodeId, Said)> {
    round
        .heard()
        .map(|(node, heard)| match heard {
            Heard::Said(answer) => (node, word(answer)),
            Heard::Pending => (node, Said::Pending),
            Heard::Silent => (node, Said::Silent),
        })
        .collect()
}
