//! An election fed with any sequence of inputs, and a book kept beside it: what it may do at most, given what it was told.
//!
//! Four bytes are an input, so that proptest can shrink a sequence and a fuzzer can mutate it. The book knows the protocol's rules
//! and nothing of the election's inside.

use super::node::Node;
use super::variant::Variant;
use keeperd::core::election::{
    Action, Election, GuardReport, HealthReport, ProbeNumber, Probed, Retry, Settings,
};
use keeperd::core::event::Command;
use keeperd::core::lease::{FencingToken, NodeId, Quorum, Value};
use keeperd::core::preference::{Bid, Preference, Priorities, Priority};
use keeperd::core::request::{
    AcquireAnswer, Answer, ExtendAnswer, FromNode, Held, Holder, LookAnswer, NodeChange, Pause, RaiseAnswer,
    RepairAnswer, Request, RoundId, Ticket,
};
use keeperd::core::restart::{Exit, RestartRules};
use keeperd::core::rng::Seed;
use keeperd::core::spread::Load;
use keeperd::core::time::{Instant, Now, WallTime};
use keeperd::core::timing::{Deadlines, Timing};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One input: what, which, how.
pub type Op = (u8, u8, u16);

/// With this bit an absurd node says what was hoped for.
const HOPED: u16 = 0x8000;

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nodes {
    /// Nodes that follow their scripts and lose nothing (the model's).
    Behaving,
    /// Whatever the input says, but an answer's kind is its request's: the decoders see to that.
    Absurd,
}

#[derive(Clone, Debug)]
struct Asked {
    node: NodeId,
    ticket: Ticket,
    request: Request,
}

/// One term, as seen from outside.
#[derive(Debug)]
struct Term {
    value: Value,
    dead: bool,
}

/// What was said yes to: by value and node, the largest end of a vote, and the first acquire sent (R8).
#[derive(Debug, Default)]
struct Book {
    ends: BTreeMap<(u128, u8), Instant>,
    first_sent: BTreeMap<(u128, u8), Instant>,
    term: Option<Term>,
    newest: FencingToken,
    /// The latest probe of the host said so.
    fit: bool,
}

#[derive(Debug)]
pub struct Driver {
    election: Election,
    now: Instant,
    wall: u64,
    timing: Timing,
    quorum: Quorum,
    fit_to_stand: bool,
    nodes: Nodes,
    stores: Vec<Node>,
    variant: Variant,
    open: Vec<Asked>,
    old: Vec<Asked>,
    book: Book,
    /// Role and what was done in it: a fuzzer keeps inputs that reach new ones.
    pub features: BTreeSet<u32>,
    pub launches: u32,
    pub prolongations: u32,
}

impl Driver {
    pub fn new(nodes: Nodes, shape: u8) -> Driver {
        let timings = [(7_000, 900), (2_000, 333), (30_000, 5_000), (1_130, 1)];
        let (ttl, stop) = if nodes == Nodes::Behaving { timings[0] } else { timings[usize::from(shape % 4)] };
        let timing = Timing::new(Duration::from_millis(ttl), Duration::from_millis(stop)).expect("fits");
        let quorum = Quorum::of([3, 5, 1, 3][usize::from(shape / 4 % 4)]);
        let settings = Settings {
            timing,
            quorum,
            restart: RestartRules::default(),
            retry: Retry { count: Some(1), delay: Duration::from_millis(200) },
            preference: preference(shape),
            fit_to_stand: shape & 0xC0 == 0xC0,
        };
        let now = Instant::from_nanos(1_000_000_000_000);
        let mut driver = Driver {
            election: Election::new(settings, Seed(u128::from(shape) << 64 | 11), now),
            now,
            wall: 1_700_000_000_000_000,
            timing,
            quorum,
            fit_to_stand: shape & 0xC0 == 0xC0,
            nodes,
            stores: vec![Node::default(); quorum.nodes()],
            variant: Variant::default(),
            open: Vec::new(),
            old: Vec::new(),
            book: Book::default(),
            features: BTreeSet::new(),
            launches: 0,
            prolongations: 0,
        };
        for node in quorum.ids() {
            driver.node(FromNode::Change { node, change: NodeChange::Serving });
        }
        driver.after();
        driver
    }

    pub fn feed(&mut self, (kind, which, how): Op) {
        let before = self.election.role() as u32;
        match kind % 32 {
            0..=2 => self.answer(which, how, false),
            3..=8 => self.answer(which, how | HOPED, false),
            9..=12 => self.answer_all(),
            13 => self.answer(which, how, true),
            14..=17 => self.pass_to_timer(how),
            18 => self.pass(self.timing.ttl() * u32::from(how) / 0x8000),
            19 => self.pass(Duration::from_micros(u64::from(how))),
            20 => self.guard(report(which, how)),
            21..=27 => self.guard(helpful(which)),
            28 if which >= 200 => self.health(which, how),
            28 => self.command(which),
            29 => self.node_changes(which, how),
            30 => self.rival(which, how),
            _ => self.guard(GuardReport::TreeDead { killed: 1, last: which % 4 != 0 }),
        }
        self.after();
        self.features.insert(before << 24 | u32::from(kind % 32) << 16 | (self.election.role() as u32) << 8);
    }

    fn clocks(&self) -> Now {
        Now { boot: self.now, wall: WallTime::from_micros(self.wall) }
    }

    // ── inputs ──

    fn node(&mut self, from: FromNode) {
        self.election.handle_node(self.clocks(), from);
    }

    fn some_node(&self, which: u8) -> NodeId {
        NodeId(which % u8::try_from(self.quorum.nodes()).expect("at most 9"))
    }

    /// Answers a request that is out, or once more one that was answered or forgotten.
    fn answer(&mut self, which: u8, how: u16, again: bool) {
        let pool = if again { &self.old } else { &self.open };
        if pool.is_empty() {
            return;
        }
        let place = usize::from(which) % pool.len();
        let asked = if again { self.old[place].clone() } else { self.open.remove(place) };
        let answer = match self.nodes {
            Nodes::Behaving if again => return,
            Nodes::Behaving => {
                let store = &mut self.stores[usize::from(asked.node.0)];
                store.carry_out(&self.variant, self.now, &asked.request)
            }
            Nodes::Absurd => absurd(&asked.request, how),
        };
        self.book.note(&asked, &answer, &self.timing);
        self.old.push(asked.clone());
        if self.old.len() > 32 {
            self.old.remove(0);
        }
        self.node(FromNode::Answer { node: asked.node, ticket: asked.ticket, answer });
    }

    /// Every node answers what was hoped for.
    fn answer_all(&mut self) {
        for _ in 0..self.open.len() {
            self.answer(0, HOPED, false);
            self.drain();
        }
    }

    fn guard(&mut self, report: GuardReport) {
        let dead = matches!(report, GuardReport::TreeDead { last: true, .. } | GuardReport::LaunchFailed(_));
        if let Some(term) = &mut self.book.term {
            term.dead |= dead;
        }
        self.election.handle_guard(self.clocks(), report);
    }

    fn command(&mut self, which: u8) {
        // Draining ends the sequence, so it is rare.
        let command = match which {
            0 => Command::Drain,
            1 => Command::Kill,
            2..=80 => Command::StepDown,
            81..=120 => Command::Pause,
            121..=150 => Command::Restart,
            _ => Command::Resume,
        };
        self.election.handle_command(self.clocks(), command);
    }

    /// Of what is probed, or of what was before.
    fn health(&mut self, which: u8, how: u16) {
        let probed = self.election.probed();
        let (Probed::Host(now) | Probed::Child(now)) = probed else { return };
        let of = ProbeNumber(now.0.saturating_sub(u64::from(how % 8 == 7)));
        let failing = (which >= 230).then(|| "sick".to_owned());
        if probed == Probed::Host(of) {
            self.book.fit = failing.is_none();
        }
        self.election.handle_health(self.clocks(), HealthReport { of, failing });
    }

    fn node_changes(&mut self, which: u8, how: u16) {
        let node = self.some_node(which);
        self.node(match how % 4 {
            0 => FromNode::Change { node, change: NodeChange::Lost },
            1 | 2 => FromNode::Change { node, change: NodeChange::Serving },
            _ if how & 0x70 == 0x70 => FromNode::Paused { node, ticket: self.newest(), pause: pause(how) },
            _ if how & 0x30 == 0x30 => self.bid(node, how),
            _ => FromNode::Touched { node },
        });
    }

    /// One that may have come with the last extension.
    fn bid(&self, node: NodeId, how: u16) -> FromNode {
        let ticket = self.newest();
        let host = if how & 0x80 == 0 { "other" } else { "third" };
        let bid = Bid { host: host.to_owned(), priority: Priority(i32::from(how >> 8)) };
        FromNode::Bid { node, ticket, bid }
    }

    fn newest(&self) -> Ticket {
        let newest = self.open.iter().chain(&self.old).max_by_key(|asked| asked.ticket.round);
        newest.map_or(Ticket { round: RoundId(0), sent: self.now }, |asked| asked.ticket)
    }

    /// Another host takes a node, or gives it back.
    fn rival(&mut self, which: u8, how: u16) {
        let node = self.some_node(which);
        let value = Value(u128::from(how % 4) << 96 | 3);
        let request = if how & 0x100 == 0 {
            let deadline = self.now + Duration::from_secs(1);
            Request::Acquire { value, proposal: FencingToken(u64::from(how)), deadline }
        } else {
            Request::Release { value }
        };
        self.stores[usize::from(node.0)].carry_out(&self.variant, self.now, &request);
        let [own, elsewhere, line] = [how >> 2 & 7, how >> 5 & 7, how >> 10].map(u32::from);
        let least_elsewhere = (elsewhere > 0).then_some(elsewhere);
        self.election.handle_load(Load { keepers: 30, own, least_elsewhere, hosts: 3, line, shift: 500 });
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now + span;
        self.wall += u64::try_from(span.as_micros()).expect("short");
    }

    fn pass_to_timer(&mut self, how: u16) {
        let Some(at) = self.election.poll_timeout() else { return };
        // A timer that never fires is at the end of time.
        let span = at.since(self.now).min(self.timing.ttl() * 2);
        self.pass(span + Duration::from_micros(u64::from(how % 4) * 300));
    }

    // ── the oracle ──

    fn after(&mut self) {
        self.drain();
        self.election.handle_timeout(self.clocks());
        self.drain();
        match self.election.poll_timeout() {
            Some(at) => {
                assert!(at > self.now, "a timer that was due was not fired: {at:?} at {:?}", self.now)
            }
            None => assert!(self.election.is_stopped(), "no timer, and not stopped"),
        }
    }

    fn drain(&mut self) {
        let mut count = 0;
        while let Some(action) = self.election.poll_action() {
            count += 1;
            assert!(count < 1000, "one input, {count} actions");
            self.features.insert(1 << 31 | (self.election.role() as u32) << 8 | number(&action));
            self.check(action);
        }
    }

    fn check(&mut self, action: Action) {
        match action {
            Action::Ask { node, ticket, request } => {
                assert_eq!(ticket.sent, self.now, "stamped with another time");
                if let (Request::Release { value }, Some(term)) = (&request, &self.book.term) {
                    assert!(term.value != *value || term.dead, "released before the tree was proven dead");
                }
                if let Request::Acquire { value, .. } = request {
                    assert!(self.book.fit || !self.fit_to_stand, "an unfit host stands");
                    self.book.first_sent.entry((value.0, node.0)).or_insert(ticket.sent);
                }
                self.open.push(Asked { node, ticket, request });
                if self.open.len() > 64 {
                    let lost = self.open.remove(0);
                    self.old.push(lost);
                }
            }
            Action::Launch { value, token, deadlines, start_by } => {
                self.launches += 1;
                assert!(self.book.term.is_none(), "a second guard beside the first");
                assert!(self.now < start_by && start_by < deadlines.stop_at, "too late to start");
                if self.nodes == Nodes::Behaving {
                    assert!(token > self.book.newest, "{token} after {}", self.book.newest);
                }
                self.book.newest = token;
                self.book.term = Some(Term { value, dead: false });
                self.check_deadlines(deadlines);
            }
            Action::Prolong { deadlines } => {
                self.prolongations += 1;
                self.check_deadlines(deadlines);
            }
            Action::QuitGuard => {
                let term = self.book.term.take().expect("a guard to dismiss");
                assert!(term.dead, "the guard is dismissed over a living tree");
                self.book.fit = false;
            }
            Action::Spawn { start_by } => assert!(self.book.term.is_some() && start_by > Instant::default()),
            Action::Stop { .. } | Action::Restart { .. } | Action::Kill | Action::KillGuard => {
                assert!(self.book.term.is_some())
            }
            Action::Emit(_) => {}
        }
    }

    /// Never beyond what the yeses of this value allow.
    fn check_deadlines(&self, deadlines: Deadlines) {
        let value = self.book.term.as_ref().expect("deadlines are a term's").value;
        let of_value = self.book.ends.range((value.0, 0)..=(value.0, u8::MAX));
        let mut ends: Vec<Instant> = of_value.map(|(_, end)| *end).collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        let until = ends.get(self.quorum.size() - 1).expect("deadlines without a quorum of yeses");
        let allowed = self.timing.kill_at(*until);
        assert!(deadlines.kill_at <= allowed, "{:?} is beyond {allowed:?}", deadlines.kill_at);
        assert!(deadlines.stop_at <= deadlines.kill_at);
    }
}

impl Book {
    fn note(&mut self, asked: &Asked, answer: &Answer, timing: &Timing) {
        let (value, yes) = match (&asked.request, answer) {
            (Request::Acquire { value, .. }, Answer::Acquire(AcquireAnswer::Granted { .. }))
            | (Request::Extend { value, .. }, Answer::Extend(ExtendAnswer::Ok))
            | (Request::Repair { value, .. }, Answer::Repair(RepairAnswer::Repaired)) => {
                (value, Some(asked.ticket.sent))
            }
            (Request::Acquire { value, .. }, Answer::Acquire(AcquireAnswer::Mine { .. })) => {
                (value, self.first_sent.get(&(value.0, asked.node.0)).copied())
            }
            _ => return,
        };
        let Some(sent) = yes else { return };
        // Written out, and not `vote_ends`: this is the rule the production code is held to.
        let end = sent + (timing.ttl() - timing.ttl() / 100 - Duration::from_millis(2));
        let known = self.ends.entry((value.0, asked.node.0)).or_insert(end);
        *known = end.max(*known);
    }
}

/// Half of the shapes have one, for the host that `held` names, for this one, or for both.
fn preference(shape: u8) -> Preference {
    let hosts = [("me", i32::from(shape >> 4 & 1)), ("other", i32::from(shape >> 5 & 3)), ("third", 1)];
    let hosts = hosts.map(|(host, priority)| (host.to_owned(), Priority(priority)));
    let hold = Duration::from_secs(1);
    match shape >> 7 {
        0 => Preference::none(),
        _ => Preference::new("me", Priorities::ByHost(hosts.into()), hold),
    }
}

fn number(action: &Action) -> u32 {
    match action {
        Action::Ask { request, .. } => match request {
            Request::Look => 1,
            Request::Acquire { .. } => 2,
            Request::Raise { .. } => 3,
            Request::Extend { .. } => 4,
            Request::Check { .. } => 5,
            Request::Repair { .. } => 6,
            Request::Release { .. } => 7,
            Request::Bid { .. } => 16,
        },
        Action::Launch { .. } => 8,
        Action::Spawn { .. } => 9,
        Action::Prolong { .. } => 10,
        Action::Stop { .. } => 11,
        Action::Kill => 12,
        Action::KillGuard => 13,
        Action::QuitGuard => 14,
        Action::Emit(_) => 15,
        Action::Restart { .. } => 16,
    }
}

/// What a guard says when all is well.
fn helpful(which: u8) -> GuardReport {
    match which % 4 {
        0 => GuardReport::Armed,
        1 => GuardReport::Started { pid: 42 },
        _ => GuardReport::Acked { accepted: true },
    }
}

fn report(which: u8, how: u16) -> GuardReport {
    match which % 12 {
        0 => GuardReport::LaunchFailed("no memory".to_owned()),
        1 => GuardReport::Armed,
        2 => GuardReport::Acked { accepted: !how.is_multiple_of(4) },
        3 => GuardReport::Started { pid: u32::from(how) },
        4 => GuardReport::ExecFailed { stage: "exec".to_owned(), errno: i32::from(how) },
        5 => GuardReport::TooLate,
        6 | 7 => GuardReport::Exited(Exit::Code(i32::from(how % 2))),
        8 => GuardReport::Exited(Exit::Signal(9)),
        9 => GuardReport::Stopping,
        10 => GuardReport::TreeDead { killed: u32::from(how), last: how.is_multiple_of(2) },
        _ => GuardReport::Lost("test"),
    }
}

/// An answer of the request's kind with any content; with [`HOPED`], the one that was hoped for.
fn absurd(request: &Request, how: u16) -> Answer {
    let hoped = how & HOPED != 0;
    let pick = if hoped { 0 } else { how % 16 };
    let token = FencingToken(match how >> 4 & 7 {
        0 => 0,
        1 => FencingToken::MAX.0,
        2 => 1_700_000_000_000_000 + u64::from(how),
        _ => u64::from(how),
    });
    if pick == 15 {
        return Answer::Silent;
    }
    match request {
        Request::Look => Answer::Look(match pick {
            0..=6 => LookAnswer::Free { token },
            7..=12 => LookAnswer::Held(held(how, token)),
            13 => LookAnswer::Quarantined { remaining: Duration::from_millis(u64::from(how)) },
            _ => LookAnswer::Paused { pause: pause(how), held: (how & 0x400 != 0).then(|| held(how, token)) },
        }),
        Request::Acquire { proposal, .. } => Answer::Acquire(match pick {
            0..=3 => AcquireAnswer::Granted { token: if hoped { *proposal } else { token } },
            4 | 5 => AcquireAnswer::Mine { token, token_is_mine: how & 0x40 != 0 },
            6..=9 => AcquireAnswer::Held(held(how, token)),
            10 => AcquireAnswer::Quarantined { remaining: Duration::MAX },
            11 => AcquireAnswer::Late,
            12 => AcquireAnswer::Released,
            13 => AcquireAnswer::Paused(pause(how)),
            _ => AcquireAnswer::Clock { node_wall: WallTime::from_micros(u64::from(how)), token },
        }),
        Request::Raise { .. } => Answer::Raise(match pick {
            0..=7 => RaiseAnswer::Accepted,
            8..=11 => RaiseAnswer::Outrun { token },
            _ => RaiseAnswer::Refused,
        }),
        Request::Extend { .. } | Request::Check { .. } => Answer::Extend(match pick {
            0..=5 => ExtendAnswer::Ok,
            6 | 7 => ExtendAnswer::Kept,
            8 | 9 => ExtendAnswer::Empty,
            10 | 11 => ExtendAnswer::Gone,
            _ => ExtendAnswer::Foreign(held(how, token)),
        }),
        Request::Repair { .. } => Answer::Repair(match pick {
            0..=7 => RepairAnswer::Repaired,
            8..=11 => RepairAnswer::Foreign(held(how, token)),
            _ => RepairAnswer::Refused,
        }),
        Request::Release { .. } => Answer::Released,
        Request::Bid { .. } => Answer::Noted,
    }
}

fn pause(how: u16) -> Pause {
    Pause { host: "other".to_owned(), since: WallTime::from_micros(u64::from(how)) }
}

fn held(how: u16, token: FencingToken) -> Held {
    let value = match how >> 7 & 3 {
        0 => Vec::new(),
        1 => vec![0xff; 40],
        2 => Value(1).to_string().into_bytes(),
        _ => Value(u128::MAX).to_string().into_bytes(),
    };
    let remaining = match how >> 9 & 3 {
        0 => None,
        1 => Some(Duration::ZERO),
        2 => Some(Duration::MAX),
        _ => Some(Duration::from_millis(u64::from(how))),
    };
    let holder = (how & 0x800 != 0).then(|| Holder { host: "other".to_owned(), pid: 7 });
    Held { value, remaining, token, holder }
}
