//! Random answers, reports, commands and time-outs against one election, with book-keeping of its own.
//! `KEEPERD_FUZZ=runs` and `KEEPERD_FUZZ_SEED=first` widen it.
use crate::world::{held, ms};
use keeperd::core::election::{Action, Election, GuardReport, Settings};
use keeperd::core::event::{Command, Role};
use keeperd::core::lease::{FencingToken, NodeId, Quorum, Value};
use keeperd::core::preference::{Bid, Preference, Priorities, Priority};
use keeperd::core::request::*;
use keeperd::core::restart::{Exit, RestartRules};
use keeperd::core::rng::Seed;
use keeperd::core::spread::Load;
use keeperd::core::time::{Instant, Now, WallTime};
use keeperd::core::timing::{Deadlines, Timing};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

struct Dice(u64);
impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Tree {
    None,
    Idle,
    Running,
    Restarting,
    Stopping,
    Killing,
    Dead,
    /// The guard died; the daemon looks for the rest.
    Orphans,
}

#[derive(Debug)]
enum Cmd {
    Arm,
    Spawn(Instant),
    Deadlines(Deadlines),
    Stop(Instant),
    Restart(Instant),
    Kill,
}

struct Guard {
    tree: Tree,
    latched: bool,
    deadlines: Deadlines,
    inbox: VecDeque<Cmd>,
    reports: VecDeque<GuardReport>,
    frozen_until: Instant,
    proof_at: Instant,
    restart_by: Instant,
}

struct Node {
    serving: bool,
    slow_until: Instant,
    queue: VecDeque<(Ticket, Request, Instant)>,
    holds: Option<(u128, Instant)>,
    token: FencingToken,
}

struct Sim {
    dice: Dice,
    now: Instant,
    wall: u64,
    timing: Timing,
    election: Election,
    nodes: Vec<Node>,
    guard: Guard,
    /// What nodes have told: value → node → when the newest yes was sent.
    book: BTreeMap<u128, [Option<Instant>; 5]>,
    term: Option<u128>,
    proven: bool,
    quorum: usize,
    calm: bool,
    stopped: bool,
    log: VecDeque<String>,
    last_token: FencingToken,
    violations: Vec<&'static str>,
    /// Of the newest extension.
    last: Ticket,
    launches: u64,
}

fn a_pause() -> Pause {
    Pause { host: "other".into(), since: WallTime::from_micros(1) }
}

fn rival_bid() -> Bid {
    Bid { host: "other".into(), priority: Priority(10) }
}

/// None, this host, another one.
fn preference(dice: &mut Dice) -> Preference {
    let table = |host: &str| Priorities::ByHost([(host.to_owned(), Priority(10))].into());
    match dice.roll(3) {
        0 => Preference::none(),
        1 => Preference::new("me", table("me"), ms(1_000)),
        _ => Preference::new("me", table("other"), ms(1_000)),
    }
}

const FAR: Instant = Instant::from_nanos(u64::MAX);

impl Sim {
    fn new(seed: u64) -> Sim {
        let mut dice = Dice(seed);
        let count = [1, 3, 3, 3, 5][dice.roll(5) as usize];
        let ttl = [ms(1_130), ms(2_000), ms(30_000)][dice.roll(3) as usize];
        let stop = Timing::default_stop_timeout(ttl).min(ttl / 12);
        let timing = Timing::new(ttl, stop).expect("fits");
        let now = Instant::from_nanos(1_000_000_000_000);
        let restart = RestartRules {
            delay: ms(1 + dice.roll(500)),
            delay_max: ms(2_000),
            cooldown: ms(3_000),
            ..RestartRules::default()
        };
        let settings = Settings {
            timing,
            quorum: Quorum::of(count),
            restart,
            retry: keeperd::core::election::Retry { count: Some(3), delay: ms(200) },
            preference: preference(&mut dice),
            fit_to_stand: seed.is_multiple_of(4),
        };
        let node = || Node {
            serving: false,
            slow_until: now,
            queue: VecDeque::new(),
            holds: None,
            token: FencingToken(0),
        };
        Sim {
            dice,
            now,
            wall: 1_700_000_000_000_000,
            timing,
            election: Election::new(settings, Seed(u128::from(seed) << 64 | 77), now),
            nodes: (0..count).map(|_| node()).collect(),
            guard: Guard {
                tree: Tree::None,
                latched: false,
                deadlines: Deadlines { stop_at: now, kill_at: now },
                inbox: VecDeque::new(),
                reports: VecDeque::new(),
                frozen_until: now,
                proof_at: FAR,
                restart_by: FAR,
            },
            book: BTreeMap::new(),
            term: None,
            proven: false,
            quorum: usize::from(count) / 2 + 1,
            calm: false,
            stopped: false,
            log: VecDeque::new(),
            last_token: FencingToken(0),
            violations: Vec::new(),
            last: Ticket { round: RoundId(0), sent: now },
            launches: 0,
        }
    }

    fn say(&mut self, text: String) {
        if self.log.len() > 120 {
            self.log.pop_front();
        }
        self.log.push_back(format!("{:?} {text}", self.now));
    }

    fn wrong(&mut self, what: &'static str) {
        if !self.violations.contains(&what) {
            self.say(format!("!!! {what}"));
            self.violations.push(what);
        }
    }

    fn now(&self) -> Now {
        Now { boot: self.now, wall: WallTime::from_micros(self.wall) }
    }

    /// The book's own Q-th largest end.
    fn truth(&self) -> Option<Instant> {
        let votes = self.book.get(&self.term?)?;
        let mut ends: Vec<Instant> =
            votes.iter().flatten().map(|sent| self.timing.vote_ends(*sent)).collect();
        ends.sort_by(|a, b| b.cmp(a));
        ends.get(self.quorum - 1).copied()
    }

    fn settle(&mut self) {
        loop {
            while let Some(action) = self.election.poll_action() {
                self.act(action);
            }
            if self.election.poll_timeout().is_some_and(|at| at <= self.now) {
                self.election.handle_timeout(self.now());
                if self.election.poll_timeout().is_some_and(|at| at <= self.now) {
                    self.wrong("a timer is due after handle_timeout");
                    return;
                }
            } else {
                break;
            }
        }
        // What the guard has been told and will have done, against what the votes say.
        if matches!(self.guard.tree, Tree::Idle | Tree::Running | Tree::Restarting | Tree::Stopping) {
            let mut kill_at = self.guard.deadlines.kill_at;
            let mut latched = self.guard.latched;
            for cmd in &self.guard.inbox {
                match cmd {
                    Cmd::Deadlines(d) if latched => kill_at = kill_at.min(d.kill_at),
                    Cmd::Deadlines(d) => kill_at = d.kill_at,
                    Cmd::Stop(by) => {
                        kill_at = kill_at.min(*by);
                        latched = true;
                    }
                    Cmd::Kill => kill_at = self.now,
                    _ => {}
                }
            }
            let may = self.truth().map(|t| self.timing.kill_at(t));
            if may.is_none_or(|may| kill_at > may) && kill_at > self.now {
                let stopping = self.guard.latched || latched;
                self.wrong(if stopping {
                    "STOPPING: the tree may outlive the votes"
                } else {
                    "SERVING: the tree may outlive the votes"
                });
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Emit(event) => self.say(format!("event {event:?}").chars().take(200).collect()),
            Action::Ask { node, ticket, request } => {
                self.say(format!("ask {node:?} {} {request:?}", ticket.round.0));
                if let Request::Release { value } = request
                    && self.term == Some(value.0)
                    && !self.proven
                {
                    self.wrong("released before the proof");
                }
                if matches!(request, Request::Extend { .. }) {
                    self.last = ticket;
                }
                if let Request::Acquire { value, .. } = request {
                    self.book.entry(value.0).or_default();
                }
                let node = &mut self.nodes[usize::from(node.0)];
                let late = if self.calm { 1 } else { 1 + self.dice.roll(20) };
                let at = self.now + ms(late);
                if node.serving {
                    node.queue.push_back((ticket, request, at.max(node.slow_until)));
                } else {
                    node.queue.push_back((ticket, request, self.now));
                }
            }
            Action::Launch { value, token, deadlines, .. } => {
                self.say(format!("launch {value:?} {token:?} {deadlines:?}"));
                self.launches += 1;
                if !matches!(self.guard.tree, Tree::None) {
                    self.wrong("a launch while a guard may live");
                }
                if token <= self.last_token {
                    self.wrong("token not larger than the last of this host");
                }
                self.last_token = token;
                self.term = Some(value.0);
                self.proven = false;
                self.guard = Guard {
                    tree: Tree::Idle,
                    latched: false,
                    deadlines,
                    inbox: VecDeque::from([Cmd::Arm, Cmd::Spawn(self.now + self.timing.start_within())]),
                    reports: VecDeque::new(),
                    frozen_until: self.now,
                    proof_at: FAR,
                    restart_by: FAR,
                };
                if !self.calm && self.dice.chance(3) {
                    self.guard.tree = Tree::None;
                    self.proven = true;
                    self.election.handle_guard(self.now(), GuardReport::LaunchFailed("x".into()));
                }
            }
            Action::Spawn { start_by } => self.guard.inbox.push_back(Cmd::Spawn(start_by)),
            Action::Prolong { deadlines } => self.guard.inbox.push_back(Cmd::Deadlines(deadlines)),
            Action::Stop { kill_by } => self.guard.inbox.push_back(Cmd::Stop(kill_by)),
            Action::Restart { kill_by } => self.guard.inbox.push_back(Cmd::Restart(kill_by)),
            Action::Kill => self.guard.inbox.push_back(Cmd::Kill),
            Action::KillGuard => {
                self.say("kill guard".into());
                self.guard_dies();
            }
            Action::QuitGuard => {
                if !self.proven {
                    self.wrong("guard dismissed before the proof");
                }
                self.guard.tree = Tree::None;
                self.guard.reports.clear();
                self.guard.inbox.clear();
            }
        }
    }

    fn guard_dies(&mut self) {
        if matches!(self.guard.tree, Tree::None | Tree::Orphans) {
            return;
        }
        self.guard.tree = Tree::Orphans;
        self.guard.inbox.clear();
        self.guard.reports.push_back(GuardReport::Lost("died"));
        self.guard.proof_at = self.now + ms(1 + self.dice.roll(40));
    }

    fn guard_turns(&mut self) {
        let now = self.now;
        if self.guard.frozen_until > now || matches!(self.guard.tree, Tree::None) {
            return;
        }
        if self.guard.tree == Tree::Orphans {
            if self.guard.reports.is_empty() && now >= self.guard.proof_at {
                self.guard.proof_at = FAR;
                self.guard.tree = Tree::Dead;
                self.proven = true;
                self.guard.reports.push_back(GuardReport::TreeDead { killed: 1, last: true });
            }
            return;
        }
        let proof = ms(if self.calm { 2 } else { 1 + self.dice.roll(60) });
        let g = &mut self.guard;
        let kill = |g: &mut Guard| {
            if matches!(g.tree, Tree::Running | Tree::Restarting | Tree::Stopping) {
                g.reports.push_back(GuardReport::Exited(Exit::Signal(9)));
            }
            if g.tree != Tree::Killing {
                g.tree = Tree::Killing;
                g.proof_at = now + proof;
            }
        };
        let on_time = |g: &mut Guard| {
            let alive = matches!(g.tree, Tree::Idle | Tree::Running | Tree::Restarting | Tree::Stopping);
            if alive && now >= g.deadlines.kill_at {
                kill(g);
            } else if alive && g.tree != Tree::Stopping && now >= g.deadlines.stop_at {
                g.latched = true;
                if g.tree == Tree::Running || g.tree == Tree::Restarting {
                    g.tree = Tree::Stopping;
                    g.reports.push_back(GuardReport::Stopping);
                } else {
                    kill(g);
                }
            } else if g.tree == Tree::Restarting && now >= g.restart_by {
                kill(g);
            }
        };
        on_time(g);
        while let Some(cmd) = g.inbox.pop_front() {
            let accepted = match cmd {
                Cmd::Arm => {
                    g.reports.push_back(GuardReport::Armed);
                    true
                }
                Cmd::Spawn(by) => {
                    if g.tree != Tree::Idle || g.latched || now >= by.min(g.deadlines.stop_at) {
                        false
                    } else {
                        g.tree = Tree::Running;
                        match self.dice.roll(if self.calm { 1 } else { 20 }) {
                            1 => {
                                g.tree = Tree::Killing;
                                g.proof_at = now + proof;
                                g.reports
                                    .push_back(GuardReport::ExecFailed { stage: "exec".into(), errno: 2 });
                            }
                            _ => g.reports.push_back(GuardReport::Started { pid: 1 }),
                        }
                        true
                    }
                }
                Cmd::Deadlines(d) => {
                    if g.latched {
                        g.deadlines.kill_at = g.deadlines.kill_at.min(d.kill_at);
                        false
                    } else {
                        g.deadlines = d;
                        true
                    }
                }
                Cmd::Stop(by) => {
                    g.latched = true;
                    g.deadlines.kill_at = g.deadlines.kill_at.min(by);
                    match g.tree {
                        Tree::Running | Tree::Restarting => g.tree = Tree::Stopping,
                        Tree::Idle | Tree::Dead => kill(g),
                        _ => {}
                    }
                    true
                }
                Cmd::Restart(by) => {
                    if g.tree == Tree::Running {
                        g.tree = Tree::Restarting;
                        g.restart_by = by;
                    }
                    !g.latched
                }
                Cmd::Kill => {
                    g.latched = true;
                    kill(g);
                    true
                }
            };
            g.reports.push_back(GuardReport::Acked { accepted });
            on_time(g);
        }
        if matches!(g.tree, Tree::Stopping | Tree::Restarting) && self.dice.chance(10)
            || g.tree == Tree::Running && !self.calm && self.dice.chance(1)
        {
            g.reports.push_back(GuardReport::Exited(Exit::Code(i32::from(self.dice.chance(50)))));
            g.tree = Tree::Killing;
            g.proof_at = now + proof;
        }
        if g.tree == Tree::Killing && now >= g.proof_at {
            g.proof_at = FAR;
            g.tree = if g.latched { Tree::Dead } else { Tree::Idle };
            g.reports.push_back(GuardReport::TreeDead { killed: 0, last: g.latched });
        }
    }

    fn report(&mut self) {
        let Some(report) = self.guard.reports.pop_front() else { return };
        self.say(format!("report {report:?}"));
        if matches!(report, GuardReport::TreeDead { last: true, .. }) {
            self.proven = true;
        }
        self.election.handle_guard(self.now(), report);
    }

    /// A node's reply; when not calm a quarter of it is arbitrary.
    fn reply(&mut self, at: usize) {
        let Some((ticket, request, due)) = self.nodes[at].queue.front().cloned() else { return };
        if due > self.now {
            return;
        }
        self.nodes[at].queue.pop_front();
        let wild = !self.calm && self.dice.chance(25);
        let ttl = self.timing.ttl();
        let now = self.now;
        let other = || held(9, ms(50));
        let node = &mut self.nodes[at];
        if node.holds.is_some_and(|(_, ends)| ends <= now) {
            node.holds = None;
        }
        let too_late = self.now > ticket.sent + self.timing.node_timeout();
        let answer = if !node.serving || too_late || wild && self.dice.chance(25) {
            Answer::Silent
        } else {
            match request {
                Request::Look => Answer::Look(match (wild, self.dice.roll(3)) {
                    (true, 0) => LookAnswer::Held(other()),
                    (true, 1) => LookAnswer::Quarantined { remaining: ms(30) },
                    (true, _) => {
                        LookAnswer::Paused { pause: a_pause(), held: self.dice.chance(50).then(other) }
                    }
                    (false, _) => match node.holds {
                        Some((v, ends)) => LookAnswer::Held(held(v, ends.since(now))),
                        None => LookAnswer::Free { token: node.token },
                    },
                }),
                Request::Acquire { value, proposal, .. } => {
                    Answer::Acquire(match (wild, self.dice.roll(7)) {
                        (true, 0) => AcquireAnswer::Held(other()),
                        (true, 1) => AcquireAnswer::Quarantined { remaining: ms(30) },
                        (true, 2) => AcquireAnswer::Late,
                        (true, 5) => AcquireAnswer::Paused(a_pause()),
                        (true, 3) => AcquireAnswer::Clock {
                            node_wall: WallTime::from_micros(self.wall - 9),
                            token: node.token,
                        },
                        (true, 4) => AcquireAnswer::Held(held(u128::MAX - 1, ms(5))),
                        _ => match node.holds {
                            Some((v, _)) if v == value.0 => {
                                AcquireAnswer::Mine { token: node.token, token_is_mine: self.dice.chance(50) }
                            }
                            Some((v, ends)) => AcquireAnswer::Held(held(v, ends.since(now))),
                            None => {
                                node.holds = Some((value.0, now + ttl));
                                node.token = node.token.next().max(proposal);
                                AcquireAnswer::Granted { token: node.token }
                            }
                        },
                    })
                }
                Request::Raise { token, .. } => Answer::Raise(match (wild, self.dice.roll(2)) {
                    (true, 0) => RaiseAnswer::Refused,
                    _ if node.token > token => RaiseAnswer::Outrun { token: node.token },
                    _ => {
                        node.token = token;
                        RaiseAnswer::Accepted
                    }
                }),
                Request::Extend { value, .. } | Request::Check { value } => {
                    Answer::Extend(match (wild, self.dice.roll(4)) {
                        // What was said once stays true: a key that is gone does not come back by itself.
                        (true, 0..=2)
                            if {
                                node.holds = None;
                                false
                            } =>
                        {
                            ExtendAnswer::Gone
                        }
                        (true, 3)
                            if {
                                node.holds = Some((9, now + ms(50)));
                                false
                            } =>
                        {
                            ExtendAnswer::Gone
                        }
                        (true, 0) => ExtendAnswer::Kept,
                        (true, 1) => ExtendAnswer::Empty,
                        (true, 2) => ExtendAnswer::Gone,
                        (true, _) => ExtendAnswer::Foreign(other()),
                        _ => match &mut node.holds {
                            Some((v, ends)) if *v == value.0 => {
                                *ends = now + ttl;
                                ExtendAnswer::Ok
                            }
                            Some((v, ends)) => ExtendAnswer::Foreign(held(*v, ends.since(now))),
                            None => ExtendAnswer::Gone,
                        },
                    })
                }
                Request::Repair { value, .. } => Answer::Repair(match (wild, self.dice.roll(2)) {
                    (true, 0) => RepairAnswer::Refused,
                    (true, _) => {
                        node.holds = Some((9, now + ms(50)));
                        RepairAnswer::Foreign(other())
                    }
                    _ => match node.holds {
                        Some((v, ends)) if v != value.0 => RepairAnswer::Foreign(held(v, ends.since(now))),
                        _ => {
                            node.holds = Some((value.0, now + ttl));
                            RepairAnswer::Repaired
                        }
                    },
                }),
                Request::Release { value } => {
                    if node.holds.is_some_and(|(v, _)| v == value.0) {
                        node.holds = None;
                    }
                    Answer::Released
                }
                Request::Bid { .. } => Answer::Noted,
            }
        };
        // The book: what this answer is worth, from what was asked.
        let value = match &request {
            Request::Acquire { value, .. }
            | Request::Extend { value, .. }
            | Request::Check { value }
            | Request::Repair { value, .. } => Some(value.0),
            _ => None,
        };
        if let Some(value) = value {
            let vote = &mut self.book.entry(value).or_default()[at];
            match &answer {
                Answer::Acquire(AcquireAnswer::Granted { .. }) | Answer::Repair(RepairAnswer::Repaired) => {
                    *vote = (*vote).max(Some(ticket.sent))
                }
                Answer::Acquire(AcquireAnswer::Mine { .. }) => *vote = (*vote).or(Some(ticket.sent)),
                Answer::Extend(ExtendAnswer::Ok) if matches!(request, Request::Extend { .. }) => {
                    *vote = (*vote).max(Some(ticket.sent))
                }
                Answer::Extend(ExtendAnswer::Gone | ExtendAnswer::Foreign(_))
                | Answer::Repair(RepairAnswer::Foreign(_))
                    if *vote <= Some(ticket.sent) =>
                {
                    *vote = None
                }
                _ => {}
            }
        }
        self.say(format!("answer n{at} {} {answer:?}", ticket.round.0));
        let node = NodeId(at as u8);
        self.election.handle_node(self.now(), FromNode::Answer { node, ticket, answer });
    }

    fn flap(&mut self, at: usize, up: bool) {
        let node = &mut self.nodes[at];
        if node.serving == up {
            return;
        }
        node.serving = up;
        let change = if up { NodeChange::Serving } else { NodeChange::Lost };
        for entry in &mut node.queue {
            entry.2 = self.now; // in flight: silent at once
        }
        self.say(format!("n{at} {change:?}"));
        if !up {
            self.election.handle_node(self.now(), FromNode::Change { node: NodeId(at as u8), change });
            while !self.nodes[at].queue.is_empty() {
                self.reply(at);
                self.settle();
            }
        } else {
            self.election.handle_node(self.now(), FromNode::Change { node: NodeId(at as u8), change });
        }
    }

    fn step(&mut self) {
        let pick = self.dice.roll(1000);
        let n = self.dice.roll(self.nodes.len() as u64) as usize;
        if !self.calm {
            match pick {
                0..=4 => self.flap(n, false),
                5..=30 => self.flap(n, true),
                31..=36 => self.nodes[n].slow_until = self.now + ms(self.dice.roll(400)),
                37 => self.nodes[n].holds = None,
                38 => {
                    let pause =
                        FromNode::Paused { node: NodeId(n as u8), ticket: self.last, pause: a_pause() };
                    self.say("pause".to_owned());
                    self.election.handle_node(self.now(), pause);
                }
                41..=42 => self.nodes[n].holds = Some((5, self.now + ms(self.dice.roll(500)))),
                39 => {
                    let bid = FromNode::Bid { node: NodeId(n as u8), ticket: self.last, bid: rival_bid() };
                    self.say("bid".to_owned());
                    self.election.handle_node(self.now(), bid);
                }
                40 => self.election.handle_load(Load {
                    keepers: 1 + self.dice.roll(50) as u32,
                    own: self.dice.roll(10) as u32,
                    least_elsewhere: [None, Some(1), Some(5)][self.dice.roll(3) as usize],
                    hosts: 1 + self.dice.roll(3) as u32,
                    line: self.dice.roll(20) as u32,
                    shift: self.dice.roll(1000) as u32,
                }),
                43..=60 => self.election.handle_node(self.now(), FromNode::Touched { node: NodeId(n as u8) }),
                61..=62 => self.guard.frozen_until = self.now + ms(self.dice.roll(600)),
                63 => self.guard_dies(),
                64..=66 => {
                    let command = [
                        Command::StepDown,
                        Command::Pause,
                        Command::Resume,
                        Command::Resume,
                        Command::Restart,
                        Command::Restart,
                    ][self.dice.roll(6) as usize];
                    self.say(format!("{command:?}"));
                    self.election.handle_command(self.now(), command);
                }
                67..=68 => {
                    let span = ms(self.dice.roll(4_000));
                    self.pass(span); // the daemon is frozen
                }
                69..=70 => self.probe(false),
                71..=78 => self.probe(true),
                _ => {}
            }
        } else if pick < 100 {
            self.probe(true);
        }
        self.settle();
        for at in 0..self.nodes.len() {
            if self.calm || self.dice.chance(60) {
                self.reply(at);
                self.settle();
            }
        }
        self.guard_turns();
        if self.calm || self.dice.chance(70) {
            self.report();
            self.settle();
        }
        let span = self.dice.roll(if self.calm { 2 } else { 4 });
        self.pass(ms(span));
        if self.election.poll_timeout().is_some_and(|at| at <= self.now) {
            self.settle();
        }
    }

    /// Often of what is probed now, sometimes of what was before.
    fn probe(&mut self, fine: bool) {
        use keeperd::core::election::{HealthReport, ProbeNumber, Probed};
        let (Probed::Host(of) | Probed::Child(of)) = self.election.probed() else { return };
        let of = ProbeNumber(of.0 - u64::from(!self.calm && self.dice.chance(20)));
        self.say(format!("{of:?} fine: {fine}"));
        let failing = (!fine).then(|| "sick".to_owned());
        self.election.handle_health(self.now(), HealthReport { of, failing });
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now + span;
        self.wall += span.as_micros() as u64;
    }

    fn run(&mut self) {
        for at in 0..self.nodes.len() {
            self.flap(at, true);
        }
        self.settle();
        for _ in 0..6_000 {
            self.step();
            if !self.violations.is_empty() {
                return;
            }
        }
        self.calm = true;
        self.guard.frozen_until = self.now;
        for at in 0..self.nodes.len() {
            self.flap(at, true);
            self.nodes[at].slow_until = self.now;
            for entry in &mut self.nodes[at].queue {
                entry.2 = self.now;
            }
        }
        self.election.handle_command(self.now(), Command::Resume);
        let patience = self.now + self.timing.ttl() * 3 + ms(20_000);
        while self.now < patience {
            self.step();
            if !self.violations.is_empty() {
                return;
            }
        }
        if self.election.role() != Role::Leader || self.election.child_pid().is_none() {
            self.wrong("LIVENESS: all is well and no child runs");
            return;
        }
        self.election.handle_command(self.now(), Command::Drain);
        let patience = self.now + ms(5_000);
        while self.now < patience && !self.election.is_stopped() {
            self.step();
        }
        self.stopped = self.election.is_stopped();
        if !self.stopped {
            self.wrong("LIVENESS: does not drain");
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn an_election_under_random_input_keeps_its_book() {
    let first = number("KEEPERD_FUZZ_SEED", 1);
    let mut found: BTreeMap<&'static str, (u64, u64, Vec<String>)> = BTreeMap::new();
    let mut launches = 0;
    for seed in first..first + number("KEEPERD_FUZZ", 100) {
        let mut sim = Sim::new(seed);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sim.run()));
        launches += sim.launches;
        if outcome.is_err() {
            sim.wrong("PANIC");
        }
        for what in &sim.violations {
            let entry = found.entry(what).or_insert((0, seed, sim.log.iter().cloned().collect()));
            entry.0 += 1;
        }
    }
    for (what, (times, seed, log)) in &found {
        println!("== {what}: {times} runs, first seed {seed}");
        for line in
            log.iter().rev().take(number("KEEPERD_FUZZ_LINES", 40) as usize).collect::<Vec<_>>().iter().rev()
        {
            println!("   {line}");
        }
    }
    println!("{launches} terms");
    assert!(found.is_empty());
    let _ = Value(0);
}
