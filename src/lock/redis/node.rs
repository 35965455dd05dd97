//! The actor of one node: keeps it connected, carries requests there, and tells the keepers what becomes of it.

use super::backoff::Backoff;
use super::endpoint::Endpoint;
use super::link::{Link, Pushes, Terms, Touched, Trouble};
use super::registry::{Client, Registry};
use super::reply::{Marker, Reply};
use super::scripts::{Batch, Context, Invocation, Keys, MARKER};
use super::unwanted::Unwanted;
use super::{NodeState, NodeStatus};
use crate::clock;
use crate::core::lease::NodeId;
use crate::core::request::{AcquireAnswer, Answer, FromNode, LookAnswer, NodeChange, RaiseAnswer, Request};
use crate::core::time::Instant;
use crate::lock::{Ask, KeeperId};
use redis::{ErrorKind, RedisError, ServerErrorKind};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tracing::{debug, info, warn};

/// Requests under way at once; more than a daemon with hundreds of keepers has.
const IN_FLIGHT: usize = 4096;
/// A link that lived this long starts the back-off anew.
const STEADY: Duration = Duration::from_secs(1);
/// A node is asked for a word this often, so that a dead one is known before it is needed.
const QUIET: Duration = Duration::from_secs(5);
/// In a row, while nothing is held.
const TIMEOUTS: u32 = 3;
/// Time limit of everything while no keeper is registered.
const LIMIT: Duration = Duration::from_millis(500);
/// Releases in one write.
const SETTLE: usize = 64;

/// What all nodes of a daemon share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) terms: Terms,
    pub(super) registry: RefCell<Registry>,
    /// Run ids by node, kept for good: one server under two addresses must not vote twice.
    pub(super) runs: RefCell<Vec<Option<String>>>,
}

#[derive(Debug)]
pub(super) struct Node {
    id: NodeId,
    address: String,
    shared: Rc<Shared>,
    endpoint: Result<Endpoint, String>,
    link: RefCell<Option<Rc<Link>>>,
    state: Cell<NodeState>,
    reason: RefCell<Option<String>>,
    unwanted: RefCell<Unwanted>,
    in_flight: Cell<usize>,
    refused: Cell<u64>,
    /// End of the wait by our own clock: a node whose clock is set forward, as after a boot without one, waits all the same (R2).
    votes_from: Cell<Instant>,
    /// Something is held now: do not sleep out a long back-off.
    pub(super) hurry: Notify,
}

impl Node {
    pub(super) fn new(
        id: NodeId,
        address: &str,
        endpoint: Result<Endpoint, String>,
        shared: Rc<Shared>,
    ) -> Rc<Self> {
        Rc::new(Node {
            id,
            address: address.to_owned(),
            shared,
            endpoint,
            link: RefCell::default(),
            state: Cell::new(NodeState::Connecting),
            reason: RefCell::default(),
            unwanted: RefCell::default(),
            in_flight: Cell::new(0),
            refused: Cell::new(0),
            votes_from: Cell::new(Instant::default()),
            hurry: Notify::new(),
        })
    }

    // ── life of the connection ──

    /// Never ends by itself.
    pub(super) async fn run(self: Rc<Self>) {
        let endpoint = match &self.endpoint {
            Ok(endpoint) => endpoint,
            Err(why) => {
                self.set_state(NodeState::Denied, Some(why.clone()));
                return std::future::pending().await;
            }
        };
        let mut backoff = Backoff::new();
        loop {
            let trouble = match self.open(endpoint).await {
                Ok((link, pushes)) => {
                    let since = clock::boot();
                    let trouble = self.serve(Rc::new(link), pushes).await;
                    if clock::boot().since(since) >= STEADY {
                        backoff.reset();
                    }
                    trouble
                }
                Err(trouble) => trouble,
            };
            let pause = backoff.pause(pause_max(&trouble, self.shared.registry.borrow().smallest_held_ttl()));
            self.set_trouble(trouble);
            debug!(node = %self.address, ?pause, "reconnecting");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.hurry.notified() => {}
            }
        }
    }

    async fn open(&self, endpoint: &Endpoint) -> Result<(Link, Pushes), Trouble> {
        // A handshake is two more round trips, and some arithmetic.
        let limit = self.connect_limit() * if endpoint.is_tls() { 2 } else { 1 };
        let opened = tokio::time::timeout(limit, Link::open(endpoint, &self.shared.terms, limit)).await;
        let (link, pushes) =
            opened.unwrap_or_else(|_| Err(Trouble::Down(format!("no connection within {limit:?}"))))?;
        self.claim_run(&link.run_id)?;
        self.settle(&link, limit).await?;
        link.track(limit).await?;
        Ok((link, pushes))
    }

    /// Twice the shortest time limit of an operation, at most one second.
    fn connect_limit(&self) -> Duration {
        let shortest = self.shared.registry.borrow().smallest_node_timeout().unwrap_or(LIMIT);
        (shortest * 2).min(Duration::from_secs(1))
    }

    fn claim_run(&self, run_id: &str) -> Result<(), Trouble> {
        let mut runs = self.shared.runs.borrow_mut();
        let mine = usize::from(self.id.0);
        let twin = runs.iter().enumerate().find(|(i, run)| *i != mine && run.as_deref() == Some(run_id));
        if let Some((other, _)) = twin {
            return Err(Trouble::Denied(format!(
                "it is the same server as node {}: list each once",
                other + 1
            )));
        }
        runs[mine] = Some(run_id.to_owned());
        Ok(())
    }

    /// Releases what could not be released when it was asked for.
    async fn settle(&self, link: &Link, limit: Duration) -> Result<(), Trouble> {
        let outstanding = self.unwanted.borrow_mut().outstanding(clock::boot());
        let releases: Vec<_> = outstanding
            .into_iter()
            .map(|(key, value)| {
                let release = Invocation::release(&Keys::of(&key), &value.to_string());
                ((key, value), release)
            })
            .collect();
        for some in releases.chunks(SETTLE) {
            for (key, value) in link.settle(some, limit).await? {
                self.unwanted.borrow_mut().released(&key, value);
            }
        }
        Ok(())
    }

    /// Until the connection ends; says why it did.
    async fn serve(self: &Rc<Self>, link: Rc<Link>, mut pushes: Pushes) -> Trouble {
        *self.link.borrow_mut() = Some(Rc::clone(&link));
        self.note_quarantine(&link);
        self.post_all(FromNode::Change { node: self.id, change: NodeChange::Serving });
        let mut quiet = tokio::time::interval(QUIET);
        quiet.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = link.lost.cancelled() => break,
                touched = pushes.next() => self.handle_touched(&link, touched),
                () = link.marker_lost.notified() => {
                    if let Err(trouble) = link.adopt_again(&self.shared.terms, self.connect_limit()).await {
                        link.give_up(trouble);
                    } else {
                        self.note_quarantine(&link);
                    }
                }
                // Who waits for its vote was told how long that takes.
                () = self.quarantine_over(&link) => self.note_quarantine(&link),
                _ = quiet.tick() => self.handle_tick(&link),
            }
        }
        self.link.borrow_mut().take();
        self.post_all(FromNode::Change { node: self.id, change: NodeChange::Lost });
        link.why_lost()
    }

    fn handle_touched(&self, link: &Link, touched: Touched) {
        match touched {
            Touched::Everything => {
                link.forget(None);
                self.post_all(FromNode::Touched { node: self.id });
                link.marker_lost.notify_one();
            }
            Touched::Keys(keys) => {
                for key in keys {
                    link.forget(Some(&key));
                    if key == MARKER.as_bytes() {
                        link.marker_lost.notify_one();
                    }
                    let touched = FromNode::Touched { node: self.id };
                    self.shared.registry.borrow_mut().post_watchers(&key, None, &touched);
                }
            }
        }
    }

    /// The first tick comes at once: for what was asked to be released while the link was being set up.
    fn handle_tick(self: &Rc<Self>, link: &Rc<Link>) {
        let (node, link) = (Rc::clone(self), Rc::clone(link));
        let limit = self.connect_limit();
        if !self.unwanted.borrow_mut().outstanding(clock::boot()).is_empty() {
            tokio::task::spawn_local(async move {
                if let Err(trouble) = node.settle(&link, limit).await {
                    link.give_up(trouble);
                }
            });
        } else if !self.is_at_stake() || clock::boot().since(link.heard.get()) >= QUIET {
            // Beside an extension a sign of life could only do harm: the first timeout then costs the connection.
            tokio::task::spawn_local(async move {
                match link.ping(node.shared.terms.nodes, limit).await {
                    Ok(marker) => node.note_marker(&link, marker),
                    Err(error) => node.note_error(&link, "time", &error, limit),
                }
            });
        }
    }

    // ── quarantine and state ──

    /// The state follows the marker: a node that serves may still abstain.
    fn note_quarantine(&self, link: &Link) {
        // At most a whole wait: the clock may have been set back since the marker was written.
        let wait = Self::left_by_marker(link).min(self.shared.terms.quarantine.get());
        self.votes_from.set(self.votes_from.get().max(clock::boot() + wait));
        match self.quarantine_left(link) {
            None => self.set_state(NodeState::Serving, link.lacks()),
            Some(left) => {
                let why = format!(
                    "new to us, flushed or restarted: it keeps what it has and votes in {:.1} s (restart_quarantine)",
                    left.as_secs_f64()
                );
                self.set_state(NodeState::Quarantined, Some(why));
            }
        }
    }

    fn quarantine_left(&self, link: &Link) -> Option<Duration> {
        let left = Self::left_by_marker(link).max(self.left_by_our_clock().unwrap_or_default());
        (!left.is_zero()).then_some(left)
    }

    fn left_by_marker(link: &Link) -> Duration {
        Duration::from_micros(link.until_us.get().saturating_sub(link.offset.get().node_now(clock::boot())))
    }

    fn left_by_our_clock(&self) -> Option<Duration> {
        let left = self.votes_from.get().since(clock::boot());
        (!left.is_zero()).then_some(left)
    }

    /// The answer of a node that does not vote yet by our clock, whatever it would say.
    fn refusal(&self, request: &Request) -> Option<Answer> {
        let remaining = self.left_by_our_clock()?;
        match request {
            Request::Acquire { .. } => Some(Answer::Acquire(AcquireAnswer::Quarantined { remaining })),
            Request::Raise { .. } => Some(Answer::Raise(RaiseAnswer::Refused)),
            Request::Look
            | Request::Extend { .. }
            | Request::Check { .. }
            | Request::Repair { .. }
            | Request::Release { .. }
            | Request::Bid { .. } => None,
        }
    }

    /// A lock that looks free there is not to be had.
    fn unless_waiting(&self, answer: Answer) -> Answer {
        match (answer, self.left_by_our_clock()) {
            (Answer::Look(LookAnswer::Free { .. }), Some(remaining)) => {
                Answer::Look(LookAnswer::Quarantined { remaining })
            }
            (answer, _) => answer,
        }
    }

    async fn quarantine_over(&self, link: &Link) {
        if self.state.get() != NodeState::Quarantined {
            return std::future::pending().await;
        }
        // A little late rather than twice.
        let left = self.quarantine_left(link).unwrap_or_default() + Duration::from_millis(2);
        tokio::time::sleep(left).await;
    }

    fn set_trouble(&self, trouble: Trouble) {
        match trouble {
            Trouble::Down(why) => self.set_state(NodeState::Down, Some(why)),
            Trouble::Denied(why) => self.set_state(NodeState::Denied, Some(why)),
        }
    }

    /// One line per change, however often it is tried.
    fn set_state(&self, state: NodeState, reason: Option<String>) {
        let before = self.state.replace(state);
        let why = reason.clone().unwrap_or_default();
        *self.reason.borrow_mut() = reason;
        let node = &self.address;
        if before == state {
            debug!(%node, ?state, %why, "node unchanged");
            return;
        }
        match state {
            NodeState::Connecting => {}
            NodeState::Serving if why.is_empty() => info!(%node, "node serves"),
            NodeState::Serving => warn!(%node, %why, "node serves, but not all is allowed there"),
            NodeState::Quarantined => warn!(%node, %why, "node does not vote yet"),
            NodeState::Down => warn!(%node, %why, "node is down; tried again until it answers"),
            NodeState::Denied => warn!(%node, %why, "node cannot be used; see to it"),
        }
    }

    pub(super) fn status(&self) -> NodeStatus {
        let link = self.link.borrow();
        let left = link.as_deref().and_then(|link| self.quarantine_left(link));
        NodeStatus {
            address: self.address.clone(),
            state: self.state.get(),
            reason: self.reason.borrow().clone(),
            rtt: link.as_deref().and_then(|link| link.rtt.get()),
            quarantine_remaining: left,
            tracking: link.as_deref().is_some_and(|link| link.tracking.get()),
            dropped: self.refused.get() + self.unwanted.borrow().dropped(),
        }
    }

    pub(super) fn is_serving(&self) -> bool {
        self.link.borrow().is_some()
    }

    // ── requests ──

    /// Nothing is under way there; it takes no longer than a node timeout until that is so.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.get() == 0
    }

    /// Carried out in a task of its own, or answered `Silent` at once: nothing waits for a node that does not serve (R29).
    pub(super) fn ask(self: &Rc<Self>, keeper: KeeperId, ask: Ask) {
        let Some(client) = self.shared.registry.borrow().client(keeper) else { return };
        let link = self.link.borrow().clone();
        if let Some(refusal) = link.as_ref().and_then(|_| self.refusal(&ask.request)) {
            return self.answer(keeper, &client, &ask, refusal);
        }
        let room = self.in_flight.get() < IN_FLIGHT;
        match link {
            Some(link) if room => {
                self.in_flight.set(self.in_flight.get() + 1);
                let node = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    node.carry_out(&link, keeper, &client, ask).await;
                    node.in_flight.set(node.in_flight.get() - 1);
                });
            }
            link => {
                self.refused.set(self.refused.get() + u64::from(link.is_some()));
                self.answer(keeper, &client, &ask, Answer::Silent);
            }
        }
    }

    async fn carry_out(self: &Rc<Self>, link: &Rc<Link>, keeper: KeeperId, client: &Client, ask: Ask) {
        let limit = client.claim.node_timeout;
        let terms = &self.shared.terms;
        let context = Context {
            keys: &client.keys,
            ttl: client.claim.ttl,
            run_id: &link.run_id,
            nodes: terms.nodes,
            quarantine: terms.quarantine.get(),
            identity: &terms.identity,
        };
        let batch =
            Batch::of(&ask.request, &context, |local| link.offset.get().deadline(local, clock::boot()));
        let outcome = tokio::select! {
            biased;
            outcome = tokio::time::timeout(limit, link.exchange(&batch, &context)) => {
                outcome.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
            }
            () = link.lost.cancelled() => Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()),
        };
        match outcome {
            Ok(Reply { answer, marker, bid, pause, .. }) => {
                self.note_marker(link, marker);
                let answer = self.unless_waiting(answer);
                if let Some(bid) = bid {
                    let bid = FromNode::Bid { node: self.id, ticket: ask.ticket, bid };
                    self.shared.registry.borrow_mut().post(keeper, bid);
                }
                if let Some(pause) = pause {
                    let pause = FromNode::Paused { node: self.id, ticket: ask.ticket, pause };
                    self.shared.registry.borrow_mut().post(keeper, pause);
                }
                let watch = needs_watching(&ask.request, &answer);
                self.answer(keeper, client, &ask, answer);
                if let Some(expected) = watch {
                    self.watch(link, keeper, client, &expected).await;
                }
            }
            Err(error) => {
                let doing = format!("{} of {}", batch.name(), client.claim.key);
                self.note_error(link, &doing, &error, limit);
                self.answer(keeper, client, &ask, Answer::Silent);
            }
        }
    }

    fn answer(&self, keeper: KeeperId, client: &Client, ask: &Ask, answer: Answer) {
        let mut registry = self.shared.registry.borrow_mut();
        if let Request::Release { value } = ask.request {
            if answer == Answer::Released {
                self.unwanted.borrow_mut().released(&client.claim.key, value);
                // NOLOOP hides our own release from other keepers of this daemon on the same lock.
                let touched = FromNode::Touched { node: self.id };
                registry.post_watchers(client.keys.fence.as_bytes(), Some(keeper), &touched);
            } else {
                let now = clock::boot();
                self.unwanted.borrow_mut().remember(&client.claim.key, value, client.claim.ttl, now);
            }
        }
        registry.post(keeper, FromNode::Answer { node: self.id, ticket: ask.ticket, answer });
    }

    /// Tracks the lock key for the one who holds it, or who waits for a legacy client. A change since the answer counts as a touch.
    async fn watch(&self, link: &Link, keeper: KeeperId, client: &Client, expected: &[u8]) {
        if !link.tracking.get() {
            return;
        }
        let found = link.watch(&client.keys, client.claim.node_timeout).await;
        if found.is_some_and(|found| found != expected) {
            self.shared.registry.borrow_mut().post(keeper, FromNode::Touched { node: self.id });
        }
    }

    fn note_marker(&self, link: &Link, marker: Marker) {
        match marker {
            Marker::Unsaid => {}
            Marker::Lost => link.marker_lost.notify_one(),
            Marker::Until(until_us) => {
                if link.until_us.replace(until_us) != until_us {
                    self.note_quarantine(link);
                }
            }
        }
    }

    /// A keeper of this daemon holds its lock.
    fn is_at_stake(&self) -> bool {
        self.shared.registry.borrow().smallest_held_ttl().is_some()
    }

    /// Decides whether an error is the request's or the connection's.
    fn note_error(&self, link: &Link, doing: &str, error: &RedisError, limit: Duration) {
        if link.lost.is_cancelled() {
            return;
        }
        if error.is_timeout() {
            let row = link.timeouts.get() + 1;
            link.timeouts.set(row);
            // A retry over the same connection would queue behind what is stuck (R27).
            if self.is_at_stake() || row >= TIMEOUTS {
                link.give_up(Trouble::Down(format!("no answer within {limit:?}, {row} in a row")));
            }
            return;
        }
        let trouble = Trouble::of(&format!("last refused request, {doing}"), error);
        let refused = matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension);
        let elsewhere =
            [ServerErrorKind::ReadOnly, ServerErrorKind::BusyLoading, ServerErrorKind::MasterDown];
        let elsewhere = elsewhere.into_iter().any(|kind| error.kind() == ErrorKind::Server(kind))
            // Before Redis 7 the code of an error within a script is part of its text.
            || error.detail().is_some_and(|text| text.contains("-READONLY"));
        if refused && !elsewhere {
            self.note_refusal(error, trouble);
        } else {
            link.give_up(trouble);
        }
    }

    /// A script that fails on a serving node (no permission for the prefix, out of memory): shown, and said once.
    fn note_refusal(&self, error: &RedisError, trouble: Trouble) {
        let (Trouble::Down(why) | Trouble::Denied(why)) = trouble;
        let known = self.reason.borrow().as_deref() == Some(why.as_str());
        if !known {
            warn!(node = %self.address, %error, "node refuses a request; it counts as silent");
            *self.reason.borrow_mut() = Some(why);
        }
    }

    fn post_all(&self, message: FromNode) {
        self.shared.registry.borrow_mut().post_all(&message);
    }
}

/// While a lease is at stake a node that is down is tried fast (R27). One that refuses us waits for a person, and would have ten
/// failed logins a second in its log.
fn pause_max(trouble: &Trouble, held: Option<Duration>) -> Option<Duration> {
    match trouble {
        Trouble::Down(_) => held.map(|ttl| ttl / 20),
        Trouble::Denied(_) => None,
    }
}

/// The value that should stand under the lock key, when its keeper has to know of every change.
fn needs_watching(request: &Request, answer: &Answer) -> Option<Vec<u8>> {
    match (request, answer) {
        (
            Request::Acquire { value, .. },
            Answer::Acquire(AcquireAnswer::Granted { .. } | AcquireAnswer::Mine { .. }),
        ) => Some(value.to_string().into_bytes()),
        // A legacy client writes no fence, by which a keeperd's release is noticed.
        (
            Request::Look,
            Answer::Look(LookAnswer::Held(held) | LookAnswer::Paused { held: Some(held), .. }),
        ) if held.holder.is_none() => Some(held.value.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_node_that_is_down_is_hurried_for_a_lease() {
        let ttl = Some(Duration::from_secs(2));
        let down = Trouble::Down("refused".to_owned());
        assert_eq!(pause_max(&down, ttl), Some(Duration::from_millis(100)));
        assert_eq!(pause_max(&down, None), None);
        assert_eq!(pause_max(&Trouble::Denied("WRONGPASS".to_owned()), ttl), None);
    }
}
