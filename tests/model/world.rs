//! Two hosts, three nodes and the mail between them, as a stateright model.
//!
//! Between two steps of time every order of events is tried. Mail that is not delayed arrives before time moves on; how much may be
//! delayed is the variant's. A request and its reply are one step unless the reply is delayed, the host is frozen, or both wait.

use super::coverage::{Coverage, Mark};
use super::host::{Host, NODES, Turn, Violation};
use super::node::Node;
use super::variant::{Broken, Faults, Start, TICK, Variant};
use keeperd::core::event::{Command, Role};
use keeperd::core::lease::{FencingToken, NodeId, Value};
use keeperd::core::request::{Answer, FromNode, NodeChange, Request, Ticket};
use keeperd::core::time::Instant;
use stateright::{Model, Property};
use std::sync::Arc;

/// Far from zero, so that no subtraction of a margin meets it.
const BEGIN: u64 = 1_000_000_000_000;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Content {
    Request(Request),
    Reply(Answer),
}

/// One message between a host and a node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Mail {
    pub host: u8,
    pub node: NodeId,
    pub ticket: Ticket,
    pub content: Content,
    /// Arrives whenever it likes, or never.
    pub delayed: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub ticks: u8,
    pub hosts: [Arc<Host>; 2],
    pub nodes: [Node; 3],
    pub mail: Vec<Mail>,
    pub left: Faults,
    /// Somebody touched a key on this node and the host has not been told yet. One hint stands for many.
    hints: [Option<NodeId>; 2],
    /// The last child started: its term and its host.
    newest: Option<(FencingToken, Value, u8)>,
    pub violation: Option<Violation>,
}

/// Indices of mail are into `State::mail`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    Tick,
    /// A request arrives and is answered at once.
    Trip(usize),
    /// A request arrives, its reply is delayed.
    ReplyDelayed(usize),
    Delay(usize),
    Deliver(usize),
    Wake(u8),
    Hint(u8),
    ChildEnds(u8),
    Freeze(u8),
    Thaw(u8),
    HandOver(u8),
    Flush(u8),
    Restart {
        node: u8,
        empty: bool,
    },
    Delete(u8),
}

#[derive(Debug)]
pub struct World {
    pub variant: Variant,
    pub coverage: Arc<Coverage>,
}

impl State {
    pub fn now(&self) -> Instant {
        Instant::from_nanos(BEGIN) + TICK * u32::from(self.ticks)
    }

    /// On one connection requests keep their order, unless delayed: that is another connection (R15).
    fn is_first(&self, at: usize) -> bool {
        let mail = &self.mail[at];
        let before = |other: &Mail| {
            !other.delayed
                && matches!(other.content, Content::Request(_))
                && (other.host, other.node) == (mail.host, mail.node)
        };
        mail.delayed || !self.mail[..at].iter().any(before)
    }

    /// Mail that can change nothing any more is dropped, or it would tell equal states apart for ever.
    fn drop_dead_mail(&mut self) {
        let now = self.now();
        let hosts = &self.hosts;
        self.mail.retain(|mail| {
            let host = &hosts[usize::from(mail.host)];
            let role = host.election.role();
            let held = host.election.is_holding();
            match &mail.content {
                // Answers to an earlier look are not heard in other roles.
                Content::Request(Request::Look) => !matches!(role, Role::Candidate) && !held,
                // The node would refuse it, and the round that asked is over.
                Content::Request(
                    Request::Acquire { deadline, .. }
                    | Request::Raise { deadline, .. }
                    | Request::Extend { deadline, .. }
                    | Request::Repair { deadline, .. },
                ) => now <= *deadline,
                Content::Request(Request::Check { .. }) => held,
                Content::Request(Request::Release { .. } | Request::Bid { .. }) => true,
                // A late one may meet a later attempt or term.
                Content::Reply(_) if mail.delayed => true,
                Content::Reply(Answer::Acquire(_)) => held || role == Role::Candidate,
                Content::Reply(Answer::Raise(_)) => role == Role::Candidate,
                Content::Reply(Answer::Extend(_) | Answer::Repair(_) | Answer::Released) => held,
                Content::Reply(Answer::Look(_) | Answer::Silent) => true,
                Content::Reply(Answer::Noted) => false,
            }
        });
        for (host, hint) in self.hosts.iter().zip(&mut self.hints) {
            // Candidates take no hints, and one of many nodes is enough for the others.
            if matches!(host.election.role(), Role::Candidate) {
                *hint = None;
            }
        }
    }

    fn sort(&mut self) {
        self.mail.sort_by_key(|mail| {
            (mail.host, mail.node, mail.ticket.round, matches!(mail.content, Content::Reply(_)), mail.delayed)
        });
    }

    fn may_tick(&self) -> bool {
        let waits = |mail: &Mail| {
            !mail.delayed
                && (matches!(mail.content, Content::Request(_)) || !self.hosts[usize::from(mail.host)].frozen)
        };
        let hinted = |(host, hint): (&Arc<Host>, &Option<NodeId>)| hint.is_some() && !host.frozen;
        !self.mail.iter().any(waits)
            && !self.hosts.iter().zip(&self.hints).any(hinted)
            && !self.hosts.iter().any(|host| host.is_due(self.now()))
    }
}

impl World {
    fn host(&self, state: &mut State, host: u8, act: impl FnOnce(&mut Host, &mut Turn<'_>)) {
        let mut turn = Turn::new(&self.variant, &self.coverage, usize::from(host), state.now());
        act(Arc::make_mut(&mut state.hosts[usize::from(host)]), &mut turn);
        let Turn { asked, launched, violation, .. } = turn;
        for (node, ticket, request) in asked {
            let content = Content::Request(request);
            state.mail.push(Mail { host, node, ticket, content, delayed: false });
        }
        state.violation = state.violation.or(violation);
        if let Some((token, value)) = launched {
            if state.hosts.iter().all(|host| host.is_alive()) {
                state.violation = Some(Violation::TwoChildren);
            }
            if let Some((before, its_value, its_host)) = state.newest {
                if token <= before {
                    state.violation = state.violation.or(Some(Violation::TokenNotLarger));
                }
                if its_host != host {
                    let released = state.nodes.iter().any(|node| node.was_released(its_value));
                    self.coverage.mark(if released { Mark::HandedOver } else { Mark::TakenOver });
                }
            }
            state.newest = Some((token, value, host));
        }
    }

    fn hint(&self, state: &mut State, node: NodeId, except: Option<u8>) {
        for host in 0..2 {
            if except != Some(host) {
                state.hints[usize::from(host)] = Some(node);
            }
        }
    }

    fn execute(&self, state: &mut State, at: usize) -> Mail {
        let mut mail = state.mail.remove(at);
        let Content::Request(request) = &mail.content else { unreachable!("only requests are executed") };
        let now = state.now();
        let answer = state.nodes[usize::from(mail.node.0)].carry_out(&self.variant, now, request);
        self.coverage.answer(&answer);
        // The fence is written by a release and by a grant; standbys track it.
        let released = matches!(request, Request::Release { .. });
        mail.content = Content::Reply(answer);
        mail.delayed = false;
        if released {
            self.hint(state, mail.node, Some(mail.host));
        }
        mail
    }

    fn deliver(&self, state: &mut State, mail: Mail) {
        let Content::Reply(answer) = mail.content else { unreachable!("only replies are delivered") };
        let mut ticket = mail.ticket;
        if self.variant.broken == Broken::ValidityFromReply {
            ticket.sent = state.now();
        }
        let from = FromNode::Answer { node: mail.node, ticket, answer };
        self.host(state, mail.host, |host, turn| host.hear(turn, from));
    }

    fn restart(&self, state: &mut State, node: u8, empty: bool) {
        let now = state.now();
        if empty {
            state.nodes[usize::from(node)].lose_data(now, &self.variant);
        }
        let node = NodeId(node);
        state.mail.retain(|mail| mail.node != node || mail.delayed);
        for host in 0..2 {
            for change in [NodeChange::Lost, NodeChange::Serving] {
                self.host(state, host, |host, turn| host.hear(turn, FromNode::Change { node, change }));
            }
        }
    }

    fn tick(&self, state: &mut State) {
        state.ticks += 1;
        let now = state.now();
        // The guards' own deadlines lie between the two steps, so they come before anything a host does at the second.
        for host in 0..2 {
            self.host(state, host, Host::time_passes);
        }
        for node in NODES {
            let stored = &mut state.nodes[usize::from(node.0)];
            let held = stored.is_held();
            stored.expire(now);
            if held && !stored.is_held() {
                self.hint(state, node, None);
            }
        }
    }

    /// One host alone, everything in order, until it has nothing more to say.
    fn settle(&self, state: &mut State, host: u8) {
        while let Some(step) = {
            let mut steps = Vec::new();
            self.mail_steps(state, &mut steps);
            steps.retain(|step| matches!(step, Step::Trip(at) if state.mail[*at].host == host));
            let wake = state.hosts[usize::from(host)].is_due(state.now()).then_some(Step::Wake(host));
            steps.first().copied().or(wake)
        } {
            self.step(state, step);
            state.drop_dead_mail();
            state.sort();
        }
    }

    fn settle_all(&self, state: &mut State) {
        while !state.may_tick() {
            state.hints = [None, None];
            self.settle(state, 0);
            self.settle(state, 1);
        }
    }

    /// Both stand; the third node's vote goes to the host that loses, which then gives it back.
    fn settle_minority(&self, state: &mut State) {
        self.step(state, Step::Wake(1));
        while state.hosts[1].election.role() == Role::Standby {
            self.step(state, Step::Trip(0));
            state.drop_dead_mail();
        }
        let last = state.mail.iter().position(|mail| mail.node == NODES[2]).expect("asked of all nodes");
        self.step(state, Step::Trip(last));
        self.settle(state, 0);
        assert!(state.hosts[0].is_alive() && !state.hosts[1].is_alive(), "two votes are enough");
        self.settle(state, 1);
    }

    fn mail_steps(&self, state: &State, steps: &mut Vec<Step>) {
        for (at, mail) in state.mail.iter().enumerate() {
            let frozen = state.hosts[usize::from(mail.host)].frozen;
            match &mail.content {
                Content::Request(request) => {
                    if !state.is_first(at) {
                        continue;
                    }
                    steps.push(Step::Trip(at));
                    let matters = *request != Request::Look;
                    if matters && !mail.delayed && state.left.delays > 0 {
                        steps.push(Step::Delay(at));
                        if !matches!(request, Request::Release { .. }) {
                            steps.push(Step::ReplyDelayed(at));
                        }
                    }
                }
                Content::Reply(_) if !frozen => steps.push(Step::Deliver(at)),
                Content::Reply(_) => {}
            }
        }
    }

    fn host_steps(&self, state: &State, steps: &mut Vec<Step>) {
        for (id, host) in (0..2).zip(&state.hosts) {
            if host.may_end() {
                steps.push(Step::ChildEnds(id));
            }
            if host.frozen {
                steps.push(Step::Thaw(id));
                continue;
            }
            if state.hints[usize::from(id)].is_some() {
                steps.push(Step::Hint(id));
            }
            if host.is_due(state.now()) {
                steps.push(Step::Wake(id));
            }
            let role = host.election.role();
            if state.left.freezes > 0 && role != Role::Standby && (id == 0 || !self.variant.only_first) {
                steps.push(Step::Freeze(id));
            }
            if state.left.step_downs > 0 && role == Role::Leader {
                steps.push(Step::HandOver(id));
            }
        }
    }

    fn node_steps(&self, state: &State, steps: &mut Vec<Step>) {
        for (id, node) in (0..3).zip(&state.nodes) {
            if state.left.deletes > 0 && node.is_held() {
                steps.push(Step::Delete(id));
            }
            if *node == Node::default() {
                continue;
            }
            if state.left.flushes > 0 {
                steps.push(Step::Flush(id));
            }
            if state.left.empties > 0 {
                steps.push(Step::Restart { node: id, empty: true });
            }
            if state.left.restarts > 0 {
                steps.push(Step::Restart { node: id, empty: false });
            }
        }
    }

    fn step(&self, state: &mut State, step: Step) {
        let now = state.now();
        match step {
            Step::Tick => self.tick(state),
            Step::Trip(at) => {
                let reply = self.execute(state, at);
                if state.hosts[usize::from(reply.host)].frozen {
                    state.mail.push(reply);
                } else {
                    self.deliver(state, reply);
                }
            }
            Step::ReplyDelayed(at) => {
                state.left.delays -= 1;
                let reply = self.execute(state, at);
                state.mail.push(Mail { delayed: true, ..reply });
            }
            Step::Delay(at) => {
                state.left.delays -= 1;
                state.mail[at].delayed = true;
            }
            Step::Deliver(at) => {
                let mail = state.mail.remove(at);
                self.deliver(state, mail);
            }
            Step::Hint(host) => {
                if let Some(node) = state.hints[usize::from(host)].take() {
                    self.host(state, host, |host, turn| host.hear(turn, FromNode::Touched { node }));
                }
            }
            Step::Wake(host) => self.host(state, host, Host::wake),
            Step::ChildEnds(host) => self.host(state, host, Host::child_ends),
            Step::Freeze(host) => {
                state.left.freezes -= 1;
                Arc::make_mut(&mut state.hosts[usize::from(host)]).frozen = true;
            }
            Step::Thaw(host) => self.host(state, host, Host::thaw),
            Step::HandOver(host) => {
                state.left.step_downs -= 1;
                self.host(state, host, |host, turn| host.command(turn, Command::StepDown));
            }
            Step::Flush(node) => {
                state.left.flushes -= 1;
                state.nodes[usize::from(node)].lose_data(now, &self.variant);
                self.hint(state, NodeId(node), None);
            }
            Step::Restart { node, empty } => {
                if empty {
                    state.left.empties -= 1;
                } else {
                    state.left.restarts -= 1;
                }
                self.restart(state, node, empty);
            }
            Step::Delete(node) => {
                state.left.deletes -= 1;
                state.nodes[usize::from(node)].delete();
                self.hint(state, NodeId(node), None);
            }
        }
    }
}

impl Model for World {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let start = Instant::from_nanos(BEGIN);
        let host = |id: usize| {
            Arc::new(Host::new(
                &mut Turn::new(&self.variant, &self.coverage, id, start),
                (id as u128 + 1) << 100 | 7,
            ))
        };
        let mut state = State {
            ticks: 0,
            hosts: [host(0), host(1)],
            nodes: std::array::from_fn(|_| Node::default()),
            mail: Vec::new(),
            left: self.variant.faults,
            hints: [None, None],
            newest: None,
            violation: None,
        };
        match self.variant.start {
            Start::Contending => {}
            Start::Leading => {
                self.settle(&mut state, 0);
                assert!(state.hosts[0].is_alive(), "alone it is elected");
                self.settle(&mut state, 1);
            }
            Start::Minority => self.settle_minority(&mut state),
            Start::Recovered => {
                self.settle_minority(&mut state);
                self.tick(&mut state);
                self.settle_all(&mut state);
                self.restart(&mut state, 0, true);
                while state.now() < start + TICK + self.variant.quarantine() {
                    self.settle_all(&mut state);
                    self.tick(&mut state);
                }
                self.settle_all(&mut state);
                assert!(state.hosts[0].is_alive(), "one lost node is not noticed");
                // A daemon that has seen no token yet.
                let now = state.now();
                state.hosts[1] =
                    Arc::new(Host::new(&mut Turn::new(&self.variant, &self.coverage, 1, now), 5 << 100));
            }
        }
        vec![state]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.violation.is_some() {
            return;
        }
        if state.ticks < self.variant.ticks && state.may_tick() {
            steps.push(Step::Tick);
        }
        self.mail_steps(state, steps);
        self.host_steps(state, steps);
        self.node_steps(state, steps);
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        self.step(&mut state, step);
        state.drop_dead_mail();
        state.sort();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two live children", |_, state: &State| {
                state.violation != Some(Violation::TwoChildren)
            }),
            Property::always("tokens grow", |_, state: &State| {
                state.violation != Some(Violation::TokenNotLarger)
            }),
            Property::always("released only when dead", |_, state: &State| {
                state.violation != Some(Violation::ReleasedAlive)
            }),
            Property::always("a released value never lives again", |_, state: &State| {
                !state.nodes.iter().any(Node::has_ghost)
            }),
            Property::sometimes("a child runs", |_, state: &State| {
                state.hosts.iter().any(|host| host.is_alive())
            }),
        ]
    }
}

/// The nodes' names in a trace.
pub fn name(node: NodeId) -> char {
    debug_assert!(NODES.contains(&node));
    char::from(b'A' + node.0)
}
