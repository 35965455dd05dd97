//! Connections, and nodes that do one thing after the other: `src/lock/redis/{node,link}.rs` and Redis' event loop, with what each visit costs.

use super::costs::{self, Cost};
use super::{Ev, NODES, Scale};
use crate::clock::{MS, NEVER, Nanos, NodeClock, SEC, US};
use crate::core::lease::{NodeId, Value};
use crate::core::request::{
    AcquireAnswer, Answer, FromNode, LookAnswer, NodeChange, Request, RoundId, Ticket,
};
use crate::core::time::Instant;
use crate::node::{FENCE, Hosts, Marker, Node, Reply, Terms, parse};
use crate::offset::Offset;
use crate::unwanted::Unwanted;
use std::collections::BTreeMap;

/// From a host to a node, and half as much at most on top.
const WAY: Nanos = 100 * US;
const BACKOFF_FIRST: Nanos = 10 * MS;
const BACKOFF_LAST: Nanos = 2 * SEC;
const STEADY: Nanos = SEC;
const TIMEOUTS: u32 = 3;
const IN_FLIGHT: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Down,
    Opening,
    Serving,
}

/// A request under way, by when it is given up.
type Key = (Nanos, u32);

#[derive(Clone, Debug)]
struct Flight {
    keeper: u16,
    ticket: Ticket,
    value: Option<Value>,
    sent: Instant,
    changes: u64,
}

#[derive(Debug)]
pub struct Link {
    phase: Phase,
    pub epoch: u32,
    offset: Option<Offset>,
    flights: BTreeMap<Key, Flight>,
    due_at: Nanos,
    timeouts: u32,
    backoff: Nanos,
    since: Nanos,
    last_there: Nanos,
    last_back: Nanos,
    /// The value that the last whole look found, while nothing is known to have changed (`Link::seen`); 0 for none.
    seen: Vec<u128>,
    changes: u64,
    unwanted: Unwanted,
}

/// One server.
#[derive(Debug)]
pub struct Server {
    /// One for each lock.
    locks: Vec<Node>,
    up: bool,
    run: u32,
    free_at: Nanos,
    pub seconds: Vec<Second>,
}

#[derive(Clone, Copy, Default, Debug)]
pub struct Second {
    pub commands: u64,
    pub busy: Nanos,
    /// The longest that anything had to wait.
    pub queue: Nanos,
}

#[derive(Debug)]
pub enum Letter {
    Visit { host: u16, keeper: u16, node: u8, epoch: u32, key: Key, errand: Errand },
    Back { host: u16, node: u8, epoch: u32, key: Key, news: News },
}

#[derive(Debug)]
pub enum Errand {
    /// One trip of opening a connection.
    Handshake(u8),
    /// Is it still this one's?
    Glance(u128),
    Ask(Request, u64),
    Watch,
    Settle(Vec<(String, Value)>),
}

#[derive(Debug)]
pub enum News {
    Shaken {
        trip: u8,
        us: u64,
    },
    Refused,
    /// A whole look is due.
    Changed,
    Answer(Request, Box<Reply>),
    Watched,
    Settled(Vec<(String, Value)>),
    Lost,
}

pub fn serving(node: usize) -> FromNode {
    FromNode::Change { node: id(node), change: NodeChange::Serving }
}

fn id(node: usize) -> NodeId {
    NodeId(u8::try_from(node).expect("three nodes"))
}

impl Link {
    pub fn new(keepers: usize) -> Link {
        Link {
            phase: Phase::Down,
            epoch: 0,
            offset: None,
            flights: BTreeMap::new(),
            due_at: NEVER,
            timeouts: 0,
            backoff: BACKOFF_FIRST,
            since: 0,
            last_there: 0,
            last_back: 0,
            seen: vec![0; keepers],
            changes: 0,
            unwanted: Unwanted::default(),
        }
    }

    pub fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    fn forget(&mut self, keeper: u16) {
        self.changes += 1;
        self.seen[usize::from(keeper)] = 0;
    }
}

impl Server {
    pub fn new(keepers: usize) -> Server {
        let clock = NodeClock::new(crate::host::WALL_BASE_US, 0);
        let mut lock = Node::new(clock, None);
        lock.data.marker = Some(Marker { run: 1, until: 0, span: 0 });
        Server { locks: vec![lock; keepers], up: true, run: 1, free_at: 0, seconds: Vec::new() }
    }

    /// Until when the lock of a keeper is held here.
    pub fn held_until(&self, keeper: usize) -> Nanos {
        let expires_ms = self.locks[keeper].data.lock.map_or(0, |key| key.expires_ms + 1);
        (expires_ms * 1000).saturating_sub(crate::host::WALL_BASE_US) * US
    }

    fn us(&self, t: Nanos) -> u64 {
        crate::host::WALL_BASE_US + t / US
    }

    fn note(&mut self, arrived: Nanos, began: Nanos, cost: Cost) {
        let of = self.second(began);
        of.commands += cost.commands;
        of.busy += cost.core;
        let of = self.second(arrived);
        of.queue = of.queue.max(began - arrived);
    }

    fn second(&mut self, at: Nanos) -> &mut Second {
        let index = usize::try_from(at / SEC).expect("minutes");
        if self.seconds.len() <= index {
            self.seconds.resize(index + 1, Second::default());
        }
        &mut self.seconds[index]
    }
}

impl Scale {
    fn link(&mut self, h: u16, n: usize) -> &mut Link {
        &mut self.hosts[usize::from(h)].links[n]
    }

    fn visit(&mut self, h: u16, k: u16, n: usize, key: Key, errand: Errand) {
        let at = self.now + WAY + self.dice.below(WAY / 2);
        let link = self.link(h, n);
        let at = at.max(link.last_there + 1);
        link.last_there = at;
        let node = id(n).0;
        let letter = Letter::Visit { host: h, keeper: k, node, epoch: link.epoch, key, errand };
        self.post(at, letter);
    }

    fn back(&mut self, leaves: Nanos, h: u16, n: usize, epoch: u32, key: Key, news: News) {
        let at = leaves + WAY + self.dice.below(WAY / 2);
        let link = self.link(h, n);
        if link.epoch != epoch {
            return;
        }
        let at = at.max(link.last_back + 1);
        link.last_back = at;
        self.post(at, Letter::Back { host: h, node: id(n).0, epoch, key, news });
    }

    // ── a host asks ──

    pub fn ask(&mut self, h: u16, k: u16, n: usize, ticket: Ticket, request: Request) {
        let (now, boot, timeout) = (self.now, self.boot(h), self.node_timeout);
        let link = self.link(h, n);
        let value = if let Request::Release { value } = request { Some(value) } else { None };
        if link.phase != Phase::Serving || link.flights.len() >= IN_FLIGHT {
            self.remember(h, k, n, value);
            let Ticket { round: RoundId(round), sent } = ticket;
            return self.push(now + 1, Ev::Unsent { host: h, keeper: k, node: id(n).0, round, sent });
        }
        let errand = if request == Request::Look {
            match std::mem::take(&mut link.seen[usize::from(k)]) {
                0 => Errand::Ask(request, 0),
                seen => Errand::Glance(seen),
            }
        } else {
            link.forget(k);
            let deadline = match request {
                Request::Acquire { deadline, .. }
                | Request::Raise { deadline, .. }
                | Request::Extend { deadline, .. }
                | Request::Repair { deadline, .. } => Some(deadline),
                Request::Look | Request::Check { .. } | Request::Release { .. } | Request::Bid { .. } => None,
            };
            let deadline_us = deadline.zip(link.offset).map_or(0, |(at, offset)| offset.deadline(at, boot));
            Errand::Ask(request, deadline_us)
        };
        let key = self.fly(h, k, n, now + timeout, ticket, value);
        self.visit(h, k, n, key, errand);
    }

    fn fly(&mut self, h: u16, k: u16, n: usize, due: Nanos, ticket: Ticket, value: Option<Value>) -> Key {
        self.flown = self.flown.wrapping_add(1);
        let (key, sent) = ((due, self.flown), self.boot(h));
        let link = self.link(h, n);
        let changes = link.changes;
        link.flights.insert(key, Flight { keeper: k, ticket, value, sent, changes });
        if due < link.due_at {
            link.due_at = due;
            let epoch = link.epoch;
            self.push(due, Ev::Due { host: h, node: id(n).0, epoch });
        }
        key
    }

    pub fn due(&mut self, h: u16, n: usize, epoch: u32) {
        let now = self.now;
        let held = self.hosts[usize::from(h)].held > 0;
        let link = self.link(h, n);
        if link.epoch != epoch {
            return;
        }
        link.due_at = NEVER;
        while let Some(entry) = self.link(h, n).flights.first_entry().filter(|entry| entry.key().0 <= now) {
            let flight = entry.remove();
            self.tally.timeouts += 1;
            let link = self.link(h, n);
            link.timeouts += 1;
            let gives_up = held || link.timeouts >= TIMEOUTS;
            self.silent(h, n, &flight);
            if gives_up {
                return self.give_up(h, n);
            }
        }
        let link = self.link(h, n);
        if let Some((due, _)) = link.flights.keys().next().copied().filter(|(due, _)| *due < link.due_at) {
            link.due_at = due;
            self.push(due, Ev::Due { host: h, node: id(n).0, epoch });
        }
    }

    fn silent(&mut self, h: u16, n: usize, flight: &Flight) {
        self.remember(h, flight.keeper, n, flight.value);
        let answer = FromNode::Answer { node: id(n), ticket: flight.ticket, answer: Answer::Silent };
        self.hear(h, flight.keeper, answer);
    }

    fn remember(&mut self, h: u16, k: u16, n: usize, value: Option<Value>) {
        let (now, ttl) = (self.boot(h), self.timing.ttl());
        if let Some(value) = value {
            self.link(h, n).unwanted.remember(&format!("{k}"), value, ttl, now);
        }
    }

    // ── life of a connection ──

    fn give_up(&mut self, h: u16, n: usize) {
        let now = self.now;
        let held = self.hosts[usize::from(h)].held > 0;
        let link = self.link(h, n);
        let was = std::mem::replace(&mut link.phase, Phase::Down);
        if was == Phase::Down {
            return;
        }
        link.epoch += 1;
        link.due_at = NEVER;
        let flights = std::mem::take(&mut link.flights);
        if was == Phase::Serving && now - link.since >= STEADY {
            link.backoff = BACKOFF_FIRST;
        }
        let cap = if held { nanos_of(self.timing.ttl()) / 20 } else { BACKOFF_LAST };
        let link = self.link(h, n);
        let pause = link.backoff.min(cap);
        link.backoff = (link.backoff * 2).min(BACKOFF_LAST);
        let epoch = link.epoch;
        let pause = pause - self.dice.below(pause / 2 + 1);
        self.push(now + pause, Ev::Open { host: h, node: id(n).0, epoch });
        if was == Phase::Serving {
            self.tally.broken += 1;
            for lock in &mut self.servers[n].locks {
                lock.track_lock.remove(h);
                lock.track_fence.remove(h);
            }
            for flight in flights.values() {
                self.silent(h, n, flight);
            }
            self.hear_all(h, &FromNode::Change { node: id(n), change: NodeChange::Lost });
        }
    }

    /// Something is held now: nobody sleeps out a long back-off.
    pub fn hurry(&mut self, h: u16) {
        for n in 0..NODES {
            let now = self.now;
            let link = self.link(h, n);
            if link.phase == Phase::Down && link.epoch > 0 {
                let epoch = link.epoch;
                self.push(now, Ev::Open { host: h, node: id(n).0, epoch });
            }
        }
    }

    pub fn open(&mut self, h: u16, n: usize, epoch: u32) {
        let limit = (self.node_timeout * 2).min(SEC);
        let now = self.now;
        let link = self.link(h, n);
        if link.epoch != epoch || link.phase != Phase::Down {
            return;
        }
        link.phase = Phase::Opening;
        link.epoch += 1;
        link.timeouts = 0;
        link.offset = None;
        link.seen.fill(0);
        let epoch = link.epoch;
        self.push(now + limit, Ev::OpenDue { host: h, node: id(n).0, epoch });
        self.visit(h, 0, n, (NEVER, 0), Errand::Handshake(1));
    }

    pub fn open_due(&mut self, h: u16, n: usize, epoch: u32) {
        let link = self.link(h, n);
        if link.epoch == epoch && link.phase == Phase::Opening {
            self.give_up(h, n);
        }
    }

    fn shaken(&mut self, h: u16, n: usize, trip: u8, us: u64) {
        if trip < costs::HANDSHAKE_TRIPS {
            return self.visit(h, 0, n, (NEVER, 0), Errand::Handshake(trip + 1));
        }
        let (since, now) = (self.now, self.boot(h));
        let link = self.link(h, n);
        let unwanted = link.unwanted.outstanding(now);
        link.phase = Phase::Serving;
        link.since = since;
        link.offset = Some(Offset::first(us, now, now));
        if !unwanted.is_empty() {
            self.visit(h, 0, n, (NEVER, 0), Errand::Settle(unwanted));
        }
        self.hear_all(h, &serving(n));
    }

    // ── at the node ──

    pub fn node_stops(&mut self, n: usize) {
        self.servers[n].up = false;
        for h in 0..self.hosts.len() {
            let h = u16::try_from(h).expect("few hosts");
            let epoch = self.link(h, n).epoch;
            self.back(self.now, h, n, epoch, (NEVER, 0), News::Lost);
        }
    }

    /// With what it had on disk.
    pub fn node_starts(&mut self, n: usize) {
        let server = &mut self.servers[n];
        server.up = true;
        server.run += 1;
        server.free_at = self.now;
    }

    fn arrives(&mut self, h: u16, k: u16, n: usize, epoch: u32, key: Key, errand: Errand) {
        let now = self.now;
        let live = self.link(h, n).epoch == epoch;
        if !self.servers[n].up {
            let news = if matches!(errand, Errand::Handshake(_)) { News::Refused } else { News::Lost };
            return self.back(now, h, n, epoch, key, news);
        }
        if matches!(errand, Errand::Handshake(_)) && !live {
            return; // nobody goes on with it
        }
        let began = self.servers[n].free_at.max(now);
        let terms = Terms {
            host: h,
            run: self.servers[n].run,
            ttl_ms: u64::try_from(self.timing.ttl().as_millis()).expect("a ttl"),
            quarantine_us: self.quarantine / US,
        };
        let us = self.servers[n].us(began);
        let lock = &mut self.servers[n].locks[usize::from(k)];
        let (mut cost, news) = match errand {
            Errand::Handshake(trip) => {
                self.adopt(n, &terms, began);
                (costs::HANDSHAKE, News::Shaken { trip, us })
            }
            Errand::Glance(seen) if lock.values(began)[0] != Some(seen) => (costs::GLANCE, News::Changed),
            Errand::Glance(_) => {
                let reply = lock.carry_out(began, &Request::Look, 0, &terms);
                (costs::GLANCE, News::Answer(Request::Look, Box::new(reply)))
            }
            Errand::Ask(request, deadline_us) => {
                let reply = lock.carry_out(began, &request, deadline_us, &terms);
                (costs::of(&request, &reply.answer), News::Answer(request, Box::new(reply)))
            }
            Errand::Watch => {
                lock.track_lock.insert(h);
                (costs::WATCH, News::Watched)
            }
            Errand::Settle(values) => {
                for (k, value) in &values {
                    let k: usize = k.parse().expect("a keeper's number");
                    self.servers[n].locks[k].release(value.0);
                    self.pushes(n, u16::try_from(k).expect("few keepers"), h, began);
                }
                let count = values.len() as u64;
                let Cost { core, commands } = costs::SETTLE;
                (Cost { core: core * count, commands: commands * count }, News::Settled(values))
            }
        };
        if !live {
            // Nobody is told of what changes on behalf of a connection that is over, nor tracks anything by it.
            let lock = &mut self.servers[n].locks[usize::from(k)];
            lock.track_lock.remove(h);
            lock.track_fence.remove(h);
        }
        cost.core += self.pushes(n, k, h, began + cost.core);
        let server = &mut self.servers[n];
        server.free_at = began + cost.core;
        server.note(now, began, cost);
        let leaves = server.free_at;
        self.back(leaves, h, n, epoch, key, news);
    }

    /// Once per run of the node.
    fn adopt(&mut self, n: usize, terms: &Terms, at: Nanos) {
        let server = &mut self.servers[n];
        if server.locks[0].data.marker.is_some_and(|marker| marker.run == terms.run) {
            return;
        }
        server.locks[0].adopt(terms, at);
        let marker = server.locks[0].data.marker;
        for lock in &mut server.locks {
            lock.data.marker = marker;
            lock.track_lock = Hosts::default();
            lock.track_fence = Hosts::default();
        }
    }

    /// What it takes to tell all who track the lock of a keeper.
    fn pushes(&mut self, n: usize, k: u16, by: u16, at: Nanos) -> Nanos {
        let touched = self.servers[n].locks[usize::from(k)].touched;
        if touched == 0 {
            return 0;
        }
        let fence = touched & FENCE != 0;
        let told = self.servers[n].locks[usize::from(k)].told(Some(by));
        let mut core = 0;
        for host in told.iter() {
            core += costs::PUSH;
            let link = self.link(host, n);
            if link.phase != Phase::Serving {
                continue;
            }
            let arrives = (at + core + WAY).max(link.last_back + 1);
            link.last_back = arrives;
            let epoch = link.epoch;
            self.push(arrives, Ev::Touched { host, keeper: k, node: id(n).0, epoch, fence });
        }
        core
    }

    // ── back at the host ──

    pub fn delivered(&mut self, letter: Letter) {
        match letter {
            Letter::Visit { host, keeper, node, epoch, key, errand } => {
                self.arrives(host, keeper, node.into(), epoch, key, errand);
            }
            Letter::Back { host, node, epoch, key, news } => {
                let n = usize::from(node);
                if self.link(host, n).epoch == epoch && self.hosts[usize::from(host)].alive {
                    self.heard(host, n, key, news);
                }
            }
        }
    }

    pub fn touched(&mut self, h: u16, k: u16, n: usize, epoch: u32, fence: bool) {
        let link = self.link(h, n);
        if link.epoch != epoch {
            return;
        }
        link.changes += 1;
        if fence {
            link.seen[usize::from(k)] = 0;
        }
        self.hear(h, k, FromNode::Touched { node: id(n) });
    }

    fn heard(&mut self, h: u16, n: usize, key: Key, news: News) {
        let now = self.boot(h);
        match news {
            News::Lost | News::Refused => self.give_up(h, n),
            News::Shaken { trip, us } => self.shaken(h, n, trip, us),
            News::Settled(values) => {
                for (k, value) in values {
                    self.link(h, n).unwanted.released(&k, value);
                }
            }
            News::Changed => {
                let link = self.link(h, n);
                let changes = link.changes;
                link.timeouts = 0;
                if let Some(flight) = link.flights.get_mut(&key) {
                    flight.changes = changes;
                    let k = flight.keeper;
                    self.visit(h, k, n, key, Errand::Ask(Request::Look, 0));
                }
            }
            News::Watched => {
                let link = self.link(h, n);
                link.timeouts = 0;
                link.flights.remove(&key);
            }
            News::Answer(request, reply) => {
                let link = self.link(h, n);
                link.timeouts = 0;
                if let Some(offset) = &mut link.offset
                    && request != Request::Look
                    && let Some(flight) = link.flights.get(&key)
                {
                    offset.observe(reply.us, flight.sent, now);
                }
                let Some(flight) = link.flights.remove(&key) else { return };
                self.answered(h, n, &flight, &request, *reply);
            }
        }
    }

    fn answered(&mut self, h: u16, n: usize, flight: &Flight, request: &Request, reply: Reply) {
        let (k, timeout) = (flight.keeper, self.node_timeout);
        let link = self.link(h, n);
        if let Request::Release { value } = request {
            link.unwanted.released(&format!("{k}"), *value);
        }
        if let Answer::Look(LookAnswer::Held(held)) = &reply.answer
            && held.holder.is_some()
            && link.changes == flight.changes
            && let Some(value) = parse(&held.value)
        {
            link.seen[usize::from(k)] = value;
        }
        let granted = matches!(
            &reply.answer,
            Answer::Acquire(AcquireAnswer::Granted { .. } | AcquireAnswer::Mine { .. })
        );
        let answer = FromNode::Answer { node: id(n), ticket: flight.ticket, answer: reply.answer };
        self.hear(h, k, answer);
        if granted && self.link(h, n).is_serving() {
            let ticket = Ticket { round: RoundId(0), sent: self.boot(h) };
            let key = self.fly(h, k, n, self.now + timeout, ticket, None);
            self.visit(h, k, n, key, Errand::Watch);
        }
    }
}

pub fn nanos_of(span: std::time::Duration) -> Nanos {
    crate::setup::nanos(span)
}
