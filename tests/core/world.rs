//! A hand-driven world around one election: time stands still until a test moves it, nodes answer what the test says.

use keeperd::core::election::{
    Action, Election, GuardReport, HealthReport, ProbeNumber, Probed, Retry, Settings,
};
use keeperd::core::event::{Command, Event, Reason, Role};
use keeperd::core::lease::{FencingToken, NodeId, Quorum, Value};
use keeperd::core::preference::Preference;
use keeperd::core::request::{
    AcquireAnswer, Answer, ExtendAnswer, FromNode, Held, Holder, LookAnswer, NodeChange, Request, Ticket,
};
use keeperd::core::restart::RestartRules;
use keeperd::core::rng::Seed;
use keeperd::core::time::{Instant, Now, WallTime};
use keeperd::core::timing::{Deadlines, Timing};
use std::collections::VecDeque;
use std::time::Duration;

pub const A: NodeId = NodeId(0);
pub const B: NodeId = NodeId(1);
pub const C: NodeId = NodeId(2);
pub const NODES: [NodeId; 3] = [A, B, C];

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// One request on its way.
#[derive(Clone, Debug)]
pub struct Asked {
    pub node: NodeId,
    pub ticket: Ticket,
    pub request: Request,
}

pub struct World {
    pub election: Election,
    now: Instant,
    wall: WallTime,
    pub asked: VecDeque<Asked>,
    pub actions: Vec<Action>,
    pub events: Vec<Event>,
}

impl World {
    pub fn new(rules: RestartRules) -> World {
        World::with(rules, Preference::none(), false)
    }

    pub fn preferring(rules: RestartRules, preference: Preference) -> World {
        World::with(rules, preference, false)
    }

    /// Its host has to be found fit before it stands.
    pub fn cautious(rules: RestartRules) -> World {
        World::with(rules, Preference::none(), true)
    }

    /// ttl 2 s: extend at 1 s, stop at 1.395 s, kill at 1.728 s, end at 1.978 s.
    fn with(rules: RestartRules, preference: Preference, fit_to_stand: bool) -> World {
        let ttl = Duration::from_secs(2);
        let timing = Timing::new(ttl, Timing::default_stop_timeout(ttl)).expect("the default fits");
        let settings = Settings {
            timing,
            quorum: Quorum::of(3),
            restart: rules,
            retry: Retry { count: Some(3), delay: ms(200) },
            preference,
            fit_to_stand,
        };
        let now = Instant::from_nanos(1_000_000_000_000);
        let mut world = World {
            election: Election::new(settings, Seed(7), now),
            now,
            wall: WallTime::from_micros(1_700_000_000_000_000),
            asked: VecDeque::new(),
            actions: Vec::new(),
            events: Vec::new(),
        };
        for node in NODES {
            let serving = FromNode::Change { node, change: NodeChange::Serving };
            world.election.handle_node(world.now(), serving);
        }
        world.pass(Duration::ZERO);
        world
    }

    /// A leader with votes of all nodes, its child running.
    pub fn leading() -> World {
        Self::leading_with(RestartRules::default())
    }

    pub fn leading_with(rules: RestartRules) -> World {
        let mut world = World::new(rules);
        world.elect();
        world.child_runs();
        world.forget();
        world
    }

    pub fn now(&self) -> Now {
        Now { boot: self.now, wall: self.wall }
    }

    pub fn at(&self) -> Instant {
        self.now
    }

    fn drain(&mut self) {
        while let Some(action) = self.election.poll_action() {
            match action {
                Action::Ask { node, ticket, request } => {
                    self.asked.push_back(Asked { node, ticket, request });
                }
                Action::Emit(event) => self.events.push(event),
                other => self.actions.push(other),
            }
        }
    }

    pub fn node(&mut self, from: FromNode) {
        self.election.handle_node(self.now(), from);
        self.drain();
        self.fire();
    }

    pub fn guard(&mut self, report: GuardReport) {
        self.election.handle_guard(self.now(), report);
        self.drain();
        self.fire();
    }

    pub fn command(&mut self, command: Command) {
        self.election.handle_command(self.now(), command);
        self.drain();
        self.fire();
    }

    pub fn health(&mut self, of: ProbeNumber, failing: Option<&str>) {
        let report = HealthReport { of, failing: failing.map(str::to_owned) };
        self.election.handle_health(self.now(), report);
        self.drain();
        self.fire();
    }

    /// Number of the child that is to be probed; there must be one.
    pub fn child_probed(&self) -> ProbeNumber {
        match self.election.probed() {
            Probed::Child(number) => number,
            other => panic!("no child is to be probed: {other:?}"),
        }
    }

    fn fire(&mut self) {
        self.election.handle_timeout(self.now());
        self.drain();
    }

    /// Lets time pass, stopping at every timer on the way.
    pub fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(at) = self.election.poll_timeout().filter(|at| *at <= until) {
            let step = at.max(self.now);
            self.wall =
                WallTime::from_micros(self.wall.as_micros() + step.since(self.now).as_micros() as u64);
            self.now = step;
            self.fire();
        }
        self.wall = WallTime::from_micros(self.wall.as_micros() + until.since(self.now).as_micros() as u64);
        self.now = until;
    }

    /// The next request to `node`; there must be one.
    pub fn next_for(&mut self, node: NodeId) -> Asked {
        let place = self.asked.iter().position(|asked| asked.node == node);
        let place = place.unwrap_or_else(|| panic!("nothing was asked of {node:?}: {:?}", self.asked));
        self.asked.remove(place).expect("just found")
    }

    pub fn answer(&mut self, asked: &Asked, answer: Answer) {
        self.node(FromNode::Answer { node: asked.node, ticket: asked.ticket, answer });
    }

    /// Answers the next request to `node`.
    pub fn reply(&mut self, node: NodeId, answer: Answer) {
        let asked = self.next_for(node);
        self.answer(&asked, answer);
    }

    /// Answers the next extension (or check) of `node`.
    pub fn extend(&mut self, node: NodeId, answer: ExtendAnswer) {
        let asked = self.next_for(node);
        assert!(
            matches!(asked.request, Request::Extend { .. } | Request::Check { .. }),
            "{:?} is no extension",
            asked.request
        );
        self.answer(&asked, Answer::Extend(answer));
    }

    /// Looks free everywhere, granted everywhere with the proposal.
    pub fn elect(&mut self) -> FencingToken {
        for node in [A, B] {
            self.reply(node, Answer::Look(LookAnswer::Free { token: FencingToken(0) }));
        }
        let mut token = FencingToken(0);
        for node in NODES {
            let asked = self.acquire_for(node);
            let Request::Acquire { proposal, .. } = asked.request else { unreachable!() };
            token = proposal;
            self.answer(&asked, Answer::Acquire(AcquireAnswer::Granted { token }));
        }
        assert_eq!(self.election.role(), Role::Leader);
        token
    }

    /// The next acquire for `node`, skipping leftovers of looks.
    pub fn acquire_for(&mut self, node: NodeId) -> Asked {
        self.asked.retain(|asked| asked.request != Request::Look);
        let asked = self.next_for(node);
        assert!(matches!(asked.request, Request::Acquire { .. }), "{:?} is no acquire", asked.request);
        asked
    }

    pub fn child_runs(&mut self) {
        self.guard(GuardReport::Armed);
        self.ack();
        self.ack();
        self.guard(GuardReport::Started { pid: 4711 });
    }

    pub fn ack(&mut self) {
        self.guard(GuardReport::Acked { accepted: true });
    }

    /// Forgets what went out so far.
    pub fn forget(&mut self) {
        self.asked.clear();
        self.actions.clear();
        self.events.clear();
    }

    pub fn role(&self) -> Role {
        self.election.role()
    }

    /// Why the role changed last.
    pub fn last_reason(&self) -> Option<&Reason> {
        self.events.iter().rev().find_map(|event| match event {
            Event::RoleChanged { reason, .. } => Some(reason),
            _ => None,
        })
    }

    pub fn asked_kinds(&self) -> Vec<(NodeId, &'static str)> {
        self.asked.iter().map(|asked| (asked.node, kind(&asked.request))).collect()
    }

    pub fn has_released(&self) -> bool {
        self.asked.iter().any(|asked| matches!(asked.request, Request::Release { .. }))
    }

    pub fn has_killed(&self) -> bool {
        self.actions.contains(&Action::Kill)
    }

    pub fn has_stopped_politely(&self) -> bool {
        self.actions.iter().any(|action| matches!(action, Action::Stop { .. }))
    }

    pub fn prolonged_to(&self) -> Option<Deadlines> {
        self.actions.iter().rev().find_map(|action| match action {
            Action::Prolong { deadlines } => Some(*deadlines),
            _ => None,
        })
    }
}

pub fn kind(request: &Request) -> &'static str {
    match request {
        Request::Look => "look",
        Request::Acquire { .. } => "acquire",
        Request::Raise { .. } => "raise",
        Request::Extend { .. } => "extend",
        Request::Check { .. } => "check",
        Request::Repair { .. } => "repair",
        Request::Release { .. } => "release",
        Request::Bid { .. } => "bid",
    }
}

/// Held by another keeperd under `value`.
pub fn held(value: u128, remaining: Duration) -> Held {
    Held {
        value: Value(value).to_string().into_bytes(),
        remaining: Some(remaining),
        token: FencingToken(5),
        holder: Some(Holder { host: "other".into(), pid: 1 }),
    }
}

/// Held by a client of the npm package.
pub fn legacy(remaining: Duration) -> Held {
    Held {
        value: b"0123456789abcdef0123456789abcdef".to_vec(),
        remaining: Some(remaining),
        token: FencingToken(0),
        holder: None,
    }
}
