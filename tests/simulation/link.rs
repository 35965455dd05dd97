//! The way between a daemon and a node: `src/lock/redis/{node,link}.rs` without sockets. TCP keeps order and loses nothing within a
//! connection; what breaks is the connection. A command that left may arrive long after its sender has given up.

use crate::clock::{MS, NEVER, Nanos, SEC, US};
use crate::core::lease::{FencingToken, NodeId, Value};
use crate::core::request::{
    AcquireAnswer, Answer, ExtendAnswer, FromNode, LookAnswer, NodeChange, RaiseAnswer, RepairAnswer,
    Request, RoundId, Ticket,
};
use crate::core::time::Instant;
use crate::coverage::Mark;
use crate::host::{Cause, Heard};
use crate::legacy::LegacyOp;
use crate::mutants::Mutant;
use crate::node::{MarkerSeen, Reply, Terms};
use crate::offset::Offset;
use crate::say;
use crate::setup::{Kind, nanos};
use crate::world::{Ev, World, id};
use std::collections::VecDeque;
use std::time::Duration;

/// Unacknowledged bytes end a connection after this (`DEAD_PEER`).
const DEAD_PEER: Nanos = 5 * SEC;
const BACKOFF_FIRST: Nanos = 10 * MS;
const BACKOFF_LAST: Nanos = 2 * SEC;
const STEADY: Nanos = SEC;
const TIMEOUTS: u32 = 3;
const KEY: &str = "k";

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Phase {
    #[default]
    Down,
    Opening,
    Serving,
}

/// A request under way, oldest first; replies come in the same order.
#[derive(Clone, Copy, Debug)]
struct Flight {
    what: What,
    ticket: Ticket,
    sent: Instant,
    due: Nanos,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Look,
    Acquire(u128, FencingToken),
    Raise,
    Extend,
    Check,
    Repair,
    Release(Value),
    Bid,
    /// A mutant's repair in place of an answer to an extension.
    RepairInstead,
    Adopt,
    Settle,
    Watch(u128),
    Ping,
}

#[derive(Debug, Default)]
pub struct Link {
    phase: Phase,
    epoch: u32,
    /// The node's run this connection leads to.
    run: u32,
    offset: Option<Offset>,
    until_us: u64,
    flights: VecDeque<Flight>,
    timeouts: u32,
    due_set: bool,
    tick_set: bool,
    quarantined: bool,
    /// Bytes were lost for good: nothing passes any more, and the kernels find out in a while.
    broken: bool,
    backoff: Nanos,
    since: Nanos,
    heard: Nanos,
    last_there: Nanos,
    last_back: Nanos,
    held_there: Nanos,
    pub cut_there: Nanos,
    pub cut_back: Nanos,
    pub slow_until: Nanos,
    pub slow_by: Nanos,
}

impl Link {
    pub fn is_down(&self) -> bool {
        self.phase == Phase::Down
    }

    /// Something is under way here that makes or prolongs a lease.
    pub fn asks_for_time(&self) -> bool {
        self.flights
            .iter()
            .any(|flight| matches!(flight.what, What::Acquire(..) | What::Extend | What::Repair))
    }

    pub fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }
}

#[derive(Debug)]
pub enum Letter {
    ToNode {
        link: u8,
        epoch: u32,
        run: u32,
        errand: Errand,
    },
    /// The same request once more, on a way of its own: something between has sent it twice.
    Echo {
        link: u8,
        run: u32,
        request: Request,
        deadline_us: u64,
    },
    Releaser {
        guard: u32,
        node: u8,
        value: Value,
    },
    Legacy {
        client: u8,
        node: u8,
        round: u32,
        op: LegacyOp,
    },
    ToHost {
        link: u8,
        epoch: u32,
        news: News,
    },
}

#[derive(Debug)]
pub enum Errand {
    /// Connect, identify, adopt.
    Hello,
    /// Release what is not wanted, then ask for invalidations.
    Settle(Vec<Value>),
    Ask(Request, u64),
    Watch,
    Adopt,
    Ping,
}

#[derive(Debug)]
pub enum News {
    Welcome { us: u64, until: u64, run: u32 },
    Adopted { us: u64, until: u64 },
    Settled { us: u64, values: Vec<Value> },
    Answer(Reply),
    Watched(Option<u128>),
    Pong { us: u64 },
    Touched { everything: bool },
    Reset,
}

impl Letter {
    pub fn host(&self, nodes: usize) -> usize {
        match self {
            Letter::ToNode { link, .. } | Letter::ToHost { link, .. } => *link as usize / nodes,
            _ => unreachable!("no letter of a daemon"),
        }
    }

    pub fn node(&self, nodes: usize) -> Option<usize> {
        match self {
            Letter::ToNode { link, .. } | Letter::Echo { link, .. } | Letter::ToHost { link, .. } => {
                Some(*link as usize % nodes)
            }
            Letter::Releaser { node, .. } | Letter::Legacy { node, .. } => Some(*node as usize),
        }
    }
}

impl World {
    fn ends(&self, link: usize) -> (usize, usize) {
        (link / self.setup.nodes, link % self.setup.nodes)
    }

    fn terms(&self, link: usize) -> Terms {
        Terms {
            host: id(link / self.setup.nodes).into(),
            run: self.links[link].run,
            ttl_ms: self.setup.ttl() / MS,
            quarantine_us: self.setup.quarantine / US,
        }
    }

    // ── the wire ──

    fn send_there(&mut self, l: usize, errand: Errand) {
        let way = self.way();
        let now = self.now;
        let link = &mut self.links[l];
        let slow = if now < link.slow_until { link.slow_by } else { 0 };
        let (letter, epoch, run) = (id(l), link.epoch, link.run);
        let leaves = now.max(link.cut_there);
        if link.broken || leaves - now > DEAD_PEER {
            if matches!(errand, Errand::Ask(..)) {
                self.mark(Mark::RequestLost);
            }
            return self.breaks(l); // never acknowledged: the kernel gives up before the wire comes back
        }
        let at = (leaves + way + slow).max(link.last_there + 1);
        link.last_there = at;
        if leaves > now || slow > 0 {
            self.strain(l);
        }
        if let Errand::Ask(request, deadline_us) = &errand
            && !self.healed
            && self.dice.chance(1)
        {
            let again = self.dice.scale(MS, self.setup.ttl() * 2);
            let echo =
                Letter::Echo { link: letter, run, request: request.clone(), deadline_us: *deadline_us };
            let echo = self.post.put(echo);
            self.push(at + again, Ev::ToNode { letter: echo });
        }
        let letter = self.post.put(Letter::ToNode { link: letter, epoch, run, errand });
        self.push(at, Ev::ToNode { letter });
    }

    fn send_back(&mut self, l: usize, epoch: u32, news: News) {
        let way = self.way();
        let now = self.now;
        let link = &mut self.links[l];
        let effective = matches!(&news, News::Answer(reply) if reply.has_effect());
        if link.epoch != epoch {
            self.marks.mark_if(effective, Mark::ReplyLost);
            return; // nobody is on that connection any more
        }
        let leaves = now.max(link.cut_back);
        if link.broken || leaves - now > DEAD_PEER {
            self.marks.mark_if(effective, Mark::ReplyLost);
            return self.breaks(l);
        }
        let at = (leaves + way).max(link.last_back + 1);
        link.last_back = at;
        let letter = self.post.put(Letter::ToHost { link: id(l), epoch, news });
        self.push(at, Ev::ToHost { letter });
    }

    fn breaks(&mut self, l: usize) {
        let link = &mut self.links[l];
        if !link.broken {
            link.broken = true;
            let (at, epoch) = (self.now + DEAD_PEER, link.epoch);
            self.push(at, Ev::Broken { link: id(l), epoch });
        }
    }

    pub fn broken(&mut self, l: usize, epoch: u32) {
        if self.links[l].epoch == epoch {
            self.give_up(l, "nothing is acknowledged any more");
        }
    }

    /// Something is wrong with this link: from now on it is pinged, until it has been quiet and well.
    pub fn strain(&mut self, l: usize) {
        let link = &mut self.links[l];
        if !link.tick_set && link.phase == Phase::Serving {
            link.tick_set = true;
            let (at, epoch) = (self.now + 5 * SEC, link.epoch);
            self.push(at, Ev::Tick { link: id(l), epoch });
        }
    }

    // ── life of a connection ──

    pub fn open(&mut self, l: usize, life: u32) {
        let (h, n) = self.ends(l);
        if self.life(h) != Some(life) || self.links[l].phase != Phase::Down {
            return;
        }
        let limit = self.connect_limit();
        let link = &mut self.links[l];
        link.epoch += 1;
        link.phase = Phase::Opening;
        link.flights.clear();
        link.timeouts = 0;
        link.offset = None;
        link.due_set = false;
        link.tick_set = false;
        link.broken = false;
        (link.last_there, link.last_back, link.held_there) = (self.now, self.now, 0);
        let epoch = link.epoch;
        let sent = self.local(h);
        self.links[l].flights.push_back(Flight {
            what: What::Adopt,
            ticket: Ticket { round: RoundId(0), sent },
            sent,
            due: NEVER,
        });
        self.push(self.now + limit, Ev::OpenDue { link: id(l), epoch });
        let _ = n;
        self.send_there(l, Errand::Hello);
    }

    fn connect_limit(&self) -> Nanos {
        (self.setup.node_timeout() * 2).min(SEC)
    }

    pub fn open_due(&mut self, l: usize, epoch: u32) {
        if self.links[l].epoch == epoch && self.links[l].phase == Phase::Opening {
            self.give_up(l, "no connection in time");
        }
    }

    /// The connection is over: what is under way on it is silent, and a new one is tried after a pause.
    pub fn give_up(&mut self, l: usize, why: &str) {
        let (h, n) = self.ends(l);
        if self.links[l].phase == Phase::Down {
            return;
        }
        say!(self, format!("h{h}"), "connection to n{n} is over: {why}");
        let flights = std::mem::take(&mut self.links[l].flights);
        let served = self.links[l].phase == Phase::Serving;
        let steady = self.now - self.links[l].since >= STEADY;
        self.hang_up(l);
        let link = &mut self.links[l];
        if served && steady || link.backoff == 0 {
            link.backoff = BACKOFF_FIRST;
        }
        let next = link.backoff;
        link.backoff = (link.backoff * 2).min(BACKOFF_LAST);
        let cap = if self.is_holding(h) { self.setup.ttl() / 20 } else { BACKOFF_LAST };
        let pause = next.min(cap);
        let pause = pause - self.dice.below(pause / 2);
        let life = self.life(h).unwrap_or(0);
        self.push(self.now + pause, Ev::Open { link: id(l), life });
        for flight in flights {
            self.silent(l, flight);
        }
        if served {
            let lost = FromNode::Change { node: NodeId(id(n)), change: NodeChange::Lost };
            self.hear(h, Heard::Node(lost), Cause::Other);
        }
    }

    /// The other side closes it, or something between does.
    pub fn reset_link(&mut self, l: usize) {
        if self.links[l].phase != Phase::Down {
            let epoch = self.links[l].epoch;
            self.send_back(l, epoch, News::Reset);
        }
    }

    /// Without telling anybody here; the node forgets what was tracked.
    pub fn hang_up(&mut self, l: usize) {
        let (h, n) = self.ends(l);
        let link = &mut self.links[l];
        link.phase = Phase::Down;
        link.epoch += 1;
        link.flights.clear();
        self.nodes[n].track_lock.remove(id(h).into());
        self.nodes[n].track_fence.remove(id(h).into());
    }

    pub fn tick(&mut self, l: usize, epoch: u32) {
        let (h, n) = self.ends(l);
        if self.links[l].epoch != epoch || self.links[l].phase != Phase::Serving {
            return;
        }
        self.links[l].tick_set = false;
        let now = self.local(h);
        let values = self.outstanding(h, n, now);
        if !values.is_empty() {
            self.strain(l);
            self.send_flight(l, What::Settle, Errand::Settle(values), self.connect_limit());
        } else if self.now - self.links[l].heard >= 5 * SEC {
            self.strain(l);
            self.send_flight(l, What::Ping, Errand::Ping, self.connect_limit());
        }
    }

    fn outstanding(&mut self, h: usize, n: usize, now: Instant) -> Vec<Value> {
        let Some(daemon) = self.daemon(h) else { return Vec::new() };
        daemon.unwanted[n].outstanding(now).into_iter().map(|(_, value)| value).collect()
    }

    // ── asking ──

    pub fn ask(&mut self, h: usize, n: usize, ticket: Ticket, request: Request) {
        let l = h * self.setup.nodes + n;
        let life = self.life(h).unwrap_or(0);
        let sent = ticket.sent;
        if self.links[l].phase != Phase::Serving {
            if let Request::Release { value } = request {
                self.remember(h, n, value);
            }
            self.mark(Mark::NotServing);
            let round = ticket.round.0;
            return self.push(self.now + 1, Ev::Unsent { link: id(l), life, round, sent });
        }
        let now = self.local(h);
        let (what, deadline) = match &request {
            Request::Look => (What::Look, None),
            Request::Acquire { value, proposal, deadline } => {
                (What::Acquire(value.0, *proposal), Some(*deadline))
            }
            Request::Raise { .. } if self.is(Mutant::NoRaise) => {
                let round = ticket.round.0;
                return self.push(self.now + 1, Ev::Pretend { link: id(l), life, round, sent });
            }
            Request::Raise { deadline, .. } => (What::Raise, Some(*deadline)),
            Request::Extend { deadline, .. } => (What::Extend, Some(*deadline)),
            Request::Check { .. } => (What::Check, None),
            Request::Repair { deadline, .. } => (What::Repair, Some(*deadline)),
            Request::Release { value } => (What::Release(*value), None),
            Request::Bid { .. } => (What::Bid, None),
        };
        let offset = self.links[l].offset;
        let deadline_us = deadline.zip(offset).map_or(0, |(at, offset)| offset.deadline(at, now));
        if matches!(what, What::Look | What::Check) {
            say!(self, format!("h{h}"), "asks n{n} {what:?} (round {})", ticket.round.0);
        } else {
            say!(self, format!("h{h}"), "asks n{n} {request:?} (round {})", ticket.round.0);
        }
        self.fly(l, what, ticket, Errand::Ask(request, deadline_us), self.setup.node_timeout());
    }

    pub fn unsent(&mut self, l: usize, life: u32, round: u64, sent: Instant) {
        let (h, n) = self.ends(l);
        if self.life(h) != Some(life) {
            return;
        }
        let ticket = Ticket { round: RoundId(round), sent };
        let answer = FromNode::Answer { node: NodeId(id(n)), ticket, answer: Answer::Silent };
        self.hear(h, Heard::Node(answer), Cause::Other);
    }

    pub fn pretend(&mut self, l: usize, life: u32, round: u64, sent: Instant) {
        let (h, n) = self.ends(l);
        if self.life(h) == Some(life) {
            let ticket = Ticket { round: RoundId(round), sent };
            let answer = Answer::Raise(RaiseAnswer::Accepted);
            self.hear(h, Heard::Node(FromNode::Answer { node: NodeId(id(n)), ticket, answer }), Cause::Other);
        }
    }

    fn send_flight(&mut self, l: usize, what: What, errand: Errand, limit: Nanos) {
        let sent = self.local(l / self.setup.nodes);
        self.fly(l, what, Ticket { round: RoundId(0), sent }, errand, limit);
    }

    fn fly(&mut self, l: usize, what: What, ticket: Ticket, errand: Errand, limit: Nanos) {
        let sent = self.local(l / self.setup.nodes);
        let due = self.now + limit;
        let link = &mut self.links[l];
        link.flights.push_back(Flight { what, ticket, sent, due });
        if link.flights.len() > 4096 {
            self.violated("queues are bounded", || format!("link {l} has 4096 requests in flight"));
            return;
        }
        if !link.due_set && due != NEVER {
            link.due_set = true;
            let epoch = link.epoch;
            self.push(due, Ev::FlightsDue { link: id(l), epoch });
        }
        self.send_there(l, errand);
    }

    /// Whoever is not answered in time is silent; the connection goes with it while anything is at stake.
    pub fn flights_due(&mut self, l: usize, epoch: u32) {
        let (h, _) = self.ends(l);
        if self.links[l].epoch != epoch {
            return;
        }
        self.links[l].due_set = false;
        let overdue = self.links[l].flights.iter().any(|flight| flight.due <= self.now);
        if overdue && self.links[l].phase == Phase::Serving {
            self.links[l].timeouts += 1;
            if self.is_holding(h) {
                self.mark(Mark::F7);
            }
            if self.is_holding(h) || self.links[l].timeouts >= TIMEOUTS {
                return self.give_up(l, "no answer in time");
            }
            self.strain(l);
            let now = self.now;
            let expired: Vec<Flight> =
                self.links[l].flights.iter().filter(|f| f.due <= now).copied().collect();
            // Their replies may still come; the place in line stays.
            for flight in self.links[l].flights.iter_mut().filter(|f| f.due <= now) {
                flight.due = NEVER;
                flight.what = What::Ping;
            }
            for flight in expired {
                self.silent(l, flight);
            }
        }
        let link = &mut self.links[l];
        let next = link.flights.iter().map(|flight| flight.due).min().unwrap_or(NEVER);
        if link.epoch == epoch && next != NEVER {
            link.due_set = true;
            self.push(next, Ev::FlightsDue { link: id(l), epoch });
        }
    }

    fn silent(&mut self, l: usize, flight: Flight) {
        let (h, n) = self.ends(l);
        match flight.what {
            What::Release(value) => self.remember(h, n, value),
            What::Adopt | What::Settle | What::Watch(_) | What::Ping | What::RepairInstead => return,
            What::Look
            | What::Acquire(..)
            | What::Raise
            | What::Extend
            | What::Check
            | What::Repair
            | What::Bid => {}
        }
        self.mark(Mark::Silent);
        say!(self, format!("h{h}"), "n{n} is silent (round {})", flight.ticket.round.0);
        let answer = match flight.what {
            What::Extend if self.is(Mutant::SilenceIsYes) => Answer::Extend(ExtendAnswer::Ok),
            What::Acquire(_, token) if self.is(Mutant::SilenceIsYes) => {
                Answer::Acquire(AcquireAnswer::Granted { token })
            }
            _ => Answer::Silent,
        };
        let node = NodeId(id(n));
        self.hear(h, Heard::Node(FromNode::Answer { node, ticket: flight.ticket, answer }), Cause::Other);
    }

    fn remember(&mut self, h: usize, n: usize, value: Value) {
        let (ttl, now) = (Duration::from_nanos(self.setup.ttl()), self.local(h));
        if let Some(daemon) = self.daemon(h) {
            daemon.unwanted[n].remember(KEY, value, ttl, now);
        }
        self.strain(h * self.setup.nodes + n);
    }

    // ── at the node ──

    pub fn arrive_at_node(&mut self, slot: u32) {
        let nodes = self.setup.nodes;
        let n = self.post.peek(slot).node(nodes).expect("a letter to a node");
        if self.nodes[n].up && self.now < self.nodes[n].frozen_until {
            return self.wait_at_node(slot, n);
        }
        if let Letter::ToNode { link, .. } = self.post.peek(slot) {
            // Behind what waited out a freeze on the same connection.
            let (link, held) = (*link as usize, self.links[*link as usize].held_there);
            if self.now < held && self.nodes[n].up {
                let _ = link;
                return self.push(held, Ev::ToNode { letter: slot });
            }
        }
        match self.post.take(slot) {
            Letter::ToNode { link, epoch, run, errand } => {
                self.deliver(link as usize, n, epoch, run, errand);
            }
            Letter::Echo { link, run, request, deadline_us } => {
                self.echoes(link as usize, n, run, &request, deadline_us);
            }
            Letter::Releaser { guard, value, .. } => {
                if self.nodes[n].up {
                    self.nodes[n].release(value.0);
                    self.pushes(n, None);
                    self.oracle.dirty = true;
                    let way = self.way();
                    self.push(self.now + way, Ev::Frame { guard, frame: crate::guard::Frame::Freed });
                }
            }
            Letter::Legacy { client, round, op, .. } => self.legacy_at_node(client, n, round, op),
            Letter::ToHost { .. } => unreachable!("no letter to a node"),
        }
    }

    /// Order holds within a connection only: when the node thaws, connections are served in any order (R15).
    fn wait_at_node(&mut self, slot: u32, n: usize) {
        let thaw = self.nodes[n].frozen_until + self.dice.below(MS);
        let link =
            if let Letter::ToNode { link, .. } = self.post.peek(slot) { Some(*link as usize) } else { None };
        let at = link.map_or(thaw, |link| {
            let link = &mut self.links[link];
            link.held_there = link.held_there.max(thaw);
            link.held_there
        });
        self.push(at, Ev::ToNode { letter: slot });
    }

    /// Nobody waits for the answer, and it is tracked for nobody.
    fn echoes(&mut self, l: usize, n: usize, run: u32, request: &Request, deadline_us: u64) {
        if !self.nodes[n].up {
            return;
        }
        let terms = Terms { run, ..self.terms(l) };
        let tracked = (self.nodes[n].track_lock, self.nodes[n].track_fence);
        let reply = self.carry_out_there(l, n, request, deadline_us, &terms);
        (self.nodes[n].track_lock, self.nodes[n].track_fence) = tracked;
        self.marks.mark_if(reply.has_effect(), Mark::Echo);
        self.oracle.dirty = true;
        self.pushes(n, None);
    }

    fn deliver(&mut self, l: usize, n: usize, epoch: u32, run: u32, errand: Errand) {
        let hello = matches!(errand, Errand::Hello);
        if !self.nodes[n].up || (!hello && self.nodes[n].run != run) {
            return self.send_back(l, epoch, News::Reset);
        }
        let live = self.links[l].epoch == epoch;
        if hello && !live {
            return; // a handshake nobody finishes
        }
        self.oracle.dirty = true;
        let mut terms = self.terms(l);
        terms.run = self.nodes[n].run;
        let node = &mut self.nodes[n];
        let us = node.clock.us(self.now);
        let news = match errand {
            Errand::Hello | Errand::Adopt => {
                let (us, until) = node.adopt(&terms, self.now);
                let run = node.run;
                if hello { News::Welcome { us, until, run } } else { News::Adopted { us, until } }
            }
            Errand::Settle(values) => {
                for value in &values {
                    node.release(value.0);
                }
                News::Settled { us, values }
            }
            Errand::Ask(request, deadline_us) => {
                if !live {
                    self.marks.mark(Mark::LateCommand);
                }
                News::Answer(self.carry_out_there(l, n, &request, deadline_us, &terms))
            }
            Errand::Watch => {
                node.track_lock.insert(terms.host);
                News::Watched(node.data.lock.map(|key| key.value))
            }
            Errand::Ping => News::Pong { us },
        };
        self.pushes(n, Some(terms.host));
        self.send_back(l, epoch, news);
    }

    fn carry_out_there(
        &mut self,
        l: usize,
        n: usize,
        request: &Request,
        deadline_us: u64,
        terms: &Terms,
    ) -> Reply {
        if let (Request::Acquire { value, .. }, true) = (request, self.is(Mutant::Steal)) {
            let there = self.nodes[n].values(self.now)[0].filter(|there| *there != value.0);
            let votes = there.map_or(0, |there| {
                self.nodes.iter().filter(|node| node.values(self.now)[0] == Some(there)).count()
            });
            if there.is_some() && votes < self.setup.quorum() {
                self.nodes[n].steal();
            }
        }
        let reply = self.nodes[n].carry_out(self.now, request, deadline_us, terms);
        self.oracle_carried_out(l, n, request, &reply.answer);
        // Mostly on a connection that is over: nobody hears these two.
        match reply.answer {
            Answer::Silent => self.mark(Mark::ExtendLate),
            Answer::Acquire(AcquireAnswer::Released) => self.mark(Mark::AcquireReleased),
            _ => {}
        }
        say!(self, format!("n{n}"), "{}: {:?}", crate::trace::asked(request), reply.answer);
        reply
    }

    /// Invalidations to everybody who tracks what was touched, but to the one who touched it.
    pub fn pushes(&mut self, n: usize, by: Option<u16>) {
        for h in self.nodes[n].told(by).iter() {
            self.push_to(h.into(), n, false);
        }
    }

    pub fn push_to(&mut self, h: usize, n: usize, everything: bool) {
        let l = h * self.setup.nodes + n;
        // A push that is lost stands for all the reasons a hint may not come.
        if self.setup.tracking && self.links[l].phase == Phase::Serving && !self.dice.chance(20) {
            let epoch = self.links[l].epoch;
            self.send_back(l, epoch, News::Touched { everything });
        }
    }

    // ── back at the host ──

    pub fn arrive_at_host(&mut self, slot: u32) {
        let Letter::ToHost { link, epoch, news } = self.post.take(slot) else {
            unreachable!("no letter to a daemon")
        };
        let l = link as usize;
        if self.links[l].epoch != epoch {
            return;
        }
        let (h, n) = self.ends(l);
        match news {
            News::Reset => return self.give_up(l, "closed by the other side"),
            News::Touched { everything } => {
                say!(self, format!("h{h}"), "n{n} pushes: touched");
                if everything {
                    self.adopt_again(l);
                }
                let touched = FromNode::Touched { node: NodeId(id(n)) };
                return self.hear(h, Heard::Node(touched), Cause::Hint);
            }
            _ => {}
        }
        let Some(flight) = self.links[l].flights.pop_front() else { return };
        self.links[l].timeouts = 0;
        self.links[l].heard = self.now;
        match news {
            News::Welcome { us, until, run } => self.welcome(l, flight, us, until, run),
            News::Adopted { us, until } => {
                self.observe(l, us, flight.sent);
                self.links[l].until_us = until;
                self.note_quarantine(l);
            }
            News::Settled { us, values } => self.settled(l, flight, us, &values),
            News::Answer(reply) => self.answered(l, flight, reply),
            News::Watched(found) => {
                if let What::Watch(expected) = flight.what
                    && found != Some(expected)
                {
                    let touched = FromNode::Touched { node: NodeId(id(n)) };
                    self.hear(h, Heard::Node(touched), Cause::Hint);
                }
            }
            News::Pong { us } => self.observe(l, us, flight.sent),
            News::Touched { .. } | News::Reset => unreachable!("handled above"),
        }
    }

    fn observe(&mut self, l: usize, us: u64, sent: Instant) {
        let now = self.local(l / self.setup.nodes);
        match &mut self.links[l].offset {
            Some(offset) => offset.observe(us, sent, now),
            none => *none = Some(Offset::first(us, sent, now)),
        }
    }

    fn welcome(&mut self, l: usize, flight: Flight, us: u64, until: u64, run: u32) {
        let (h, n) = self.ends(l);
        self.observe(l, us, flight.sent);
        self.links[l].run = run;
        self.links[l].until_us = until;
        let now = self.local(h);
        let values = self.outstanding(h, n, now);
        self.send_flight(l, What::Settle, Errand::Settle(values), NEVER - self.now);
    }

    fn settled(&mut self, l: usize, flight: Flight, us: u64, values: &[Value]) {
        let (h, n) = self.ends(l);
        self.observe(l, us, flight.sent);
        for value in values {
            self.mark(Mark::Unwanted);
            if let Some(daemon) = self.daemon(h) {
                daemon.unwanted[n].released(KEY, *value);
            }
        }
        if self.links[l].phase != Phase::Opening {
            return;
        }
        self.links[l].phase = Phase::Serving;
        self.links[l].since = self.now;
        self.links[l].heard = self.now;
        self.note_quarantine(l);
        if self.is_holding(h) {
            self.mark(Mark::ExtendsOnReturn);
        }
        say!(self, format!("h{h}"), "n{n} serves");
        let serving = FromNode::Change { node: NodeId(id(n)), change: NodeChange::Serving };
        self.hear(h, Heard::Node(serving), Cause::Other);
        let now = self.local(h);
        if !self.outstanding(h, n, now).is_empty() {
            self.strain(l);
        }
    }

    fn adopt_again(&mut self, l: usize) {
        let under_way = self.links[l].flights.iter().any(|flight| flight.what == What::Adopt);
        if !under_way && self.links[l].phase == Phase::Serving {
            self.send_flight(l, What::Adopt, Errand::Adopt, self.connect_limit());
        }
    }

    fn note_quarantine(&mut self, l: usize) {
        let now = self.local(l / self.setup.nodes);
        let link = &mut self.links[l];
        let Some(offset) = link.offset else { return };
        let left = link.until_us.saturating_sub(offset.node_now(now));
        link.quarantined = left > 0;
        if left > 0 {
            let epoch = link.epoch;
            self.push(self.now + left * US + 2 * MS, Ev::QuarantineOver { link: id(l), epoch });
        }
    }

    pub fn quarantine_over(&mut self, l: usize, epoch: u32) {
        let link = &self.links[l];
        if link.epoch != epoch || link.phase != Phase::Serving || !link.quarantined {
            return;
        }
        self.note_quarantine(l);
        if !self.links[l].quarantined {
            self.mark(Mark::QuarantineOver);
        }
    }

    fn answered(&mut self, l: usize, flight: Flight, reply: Reply) {
        let (h, n) = self.ends(l);
        self.observe(l, reply.us, flight.sent);
        match reply.marker {
            MarkerSeen::Unsaid => {}
            MarkerSeen::Lost => self.adopt_again(l),
            MarkerSeen::Until(until) => {
                if self.links[l].until_us != until {
                    self.links[l].until_us = until;
                    self.note_quarantine(l);
                }
            }
        }
        if let What::Release(value) = flight.what
            && let Some(daemon) = self.daemon(h)
        {
            daemon.unwanted[n].released(KEY, value);
        }
        let watch = match (&flight.what, &reply.answer) {
            (What::Ping, _) => return, // answered too late: silence was assumed
            (
                What::Acquire(value, _),
                Answer::Acquire(AcquireAnswer::Granted { .. } | AcquireAnswer::Mine { .. }),
            ) => Some(*value),
            (
                What::Look,
                Answer::Look(LookAnswer::Held(held) | LookAnswer::Paused { held: Some(held), .. }),
            ) if held.holder.is_none() => crate::node::parse(&held.value),
            _ => None,
        };
        self.mark_answer(&reply.answer, h, flight.sent);
        if let Some(bid) = reply.bid {
            let bid = FromNode::Bid { node: NodeId(id(n)), ticket: flight.ticket, bid };
            self.hear(h, Heard::Node(bid), Cause::Other);
        }
        if let Some(pause) = reply.pause {
            let pause = FromNode::Paused { node: NodeId(id(n)), ticket: flight.ticket, pause };
            self.hear(h, Heard::Node(pause), Cause::Other);
        }
        self.tell_answer(l, flight, reply.answer);
        if let Some(value) = watch.filter(|_| self.setup.tracking && self.links[l].is_serving()) {
            self.send_flight(l, What::Watch(value), Errand::Watch, self.setup.node_timeout());
        }
    }

    /// Hands an answer to the election, as it came or as a mutant would have it.
    fn tell_answer(&mut self, l: usize, flight: Flight, mut answer: Answer) {
        let (h, n) = self.ends(l);
        let mut ticket = flight.ticket;
        match (&answer, self.mutant) {
            (
                Answer::Acquire(AcquireAnswer::Granted { .. })
                | Answer::Extend(ExtendAnswer::Ok)
                | Answer::Repair(RepairAnswer::Repaired),
                Some(Mutant::ValidityFromReply),
            ) => ticket.sent = self.local(h),
            (
                Answer::Acquire(AcquireAnswer::Mine { token, token_is_mine: true }),
                Some(Mutant::MineFromResend),
            ) => answer = Answer::Acquire(AcquireAnswer::Granted { token: *token }),
            (
                Answer::Extend(ExtendAnswer::Kept | ExtendAnswer::Empty | ExtendAnswer::Gone),
                Some(mutant @ (Mutant::RepairWithoutQuorum | Mutant::RepairOnPush)),
            ) if mutant == Mutant::RepairWithoutQuorum || flight.what == What::Check => {
                return self.repair_at_once(l, ticket);
            }
            (Answer::Repair(RepairAnswer::Repaired), Some(_)) if flight.what == What::RepairInstead => {
                answer = Answer::Extend(ExtendAnswer::Ok);
            }
            (Answer::Repair(_), Some(_)) if flight.what == What::RepairInstead => answer = Answer::Silent,
            _ => {}
        }
        let node = NodeId(id(n));
        self.hear(h, Heard::Node(FromNode::Answer { node, ticket, answer }), Cause::Other);
    }

    fn repair_at_once(&mut self, l: usize, ticket: Ticket) {
        let (h, _) = self.ends(l);
        let now = self.local(h);
        let Some(election) = self.daemon(h).map(|d| &d.election) else { return };
        let (Some(value), Some(token)) = (election.value(), election.token()) else { return };
        let deadline = now + election.timing().ttl();
        let offset = self.links[l].offset.expect("a serving link has one");
        let deadline_us = offset.deadline(deadline, now);
        let errand = Errand::Ask(Request::Repair { value, token, deadline }, deadline_us);
        self.fly(l, What::RepairInstead, ticket, errand, self.setup.node_timeout());
    }

    fn mark_answer(&mut self, answer: &Answer, h: usize, sent: Instant) {
        let mark = match answer {
            Answer::Look(LookAnswer::Free { .. }) => Mark::LookFree,
            Answer::Look(LookAnswer::Held(_)) => Mark::LookHeld,
            Answer::Look(LookAnswer::Quarantined { .. }) => Mark::LookQuarantined,
            Answer::Look(LookAnswer::Paused { .. }) => Mark::LookPaused,
            Answer::Acquire(AcquireAnswer::Granted { .. }) => Mark::AcquireGranted,
            Answer::Acquire(AcquireAnswer::Mine { .. }) => Mark::AcquireMine,
            Answer::Acquire(AcquireAnswer::Held(_)) => Mark::AcquireHeld,
            Answer::Acquire(AcquireAnswer::Quarantined { .. }) => Mark::AcquireQuarantined,
            Answer::Acquire(AcquireAnswer::Paused(_)) => Mark::AcquirePaused,
            Answer::Acquire(AcquireAnswer::Late) => Mark::AcquireLate,
            Answer::Acquire(AcquireAnswer::Clock { .. }) => Mark::AcquireClock,
            Answer::Raise(RaiseAnswer::Accepted) => Mark::RaiseAccepted,
            Answer::Raise(RaiseAnswer::Outrun { .. }) => Mark::RaiseOutrun,
            Answer::Raise(RaiseAnswer::Refused) => Mark::RaiseRefused,
            Answer::Extend(ExtendAnswer::Ok) => Mark::ExtendOk,
            Answer::Extend(ExtendAnswer::Kept) => Mark::ExtendKept,
            Answer::Extend(ExtendAnswer::Empty) => Mark::ExtendEmpty,
            Answer::Extend(ExtendAnswer::Gone) => Mark::ExtendGone,
            Answer::Extend(ExtendAnswer::Foreign(_)) => Mark::ExtendForeign,
            Answer::Repair(RepairAnswer::Repaired) => Mark::RepairOk,
            Answer::Repair(RepairAnswer::Foreign(_)) => Mark::RepairForeign,
            Answer::Repair(RepairAnswer::Refused) => Mark::RepairRefused,
            Answer::Noted => Mark::Noted,
            Answer::Acquire(AcquireAnswer::Released) | Answer::Released | Answer::Silent => return,
        };
        self.mark(mark);
        if matches!(mark, Mark::AcquireGranted | Mark::ExtendOk) {
            let took = nanos(self.local(h).since(sent));
            if took > nanos(self.setup.timing.drift()) && self.setup.kind != Kind::Fenced {
                self.mark(Mark::F1);
            }
        }
    }
}
