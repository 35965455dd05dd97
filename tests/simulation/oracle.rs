//! What must hold at every event, judged from true time and from the nodes' own keys, never from what a daemon believes.

use crate::clock::{MS, Nanos, SEC};
use crate::core::lease::Value;
use crate::core::request::{AcquireAnswer, Answer, ExtendAnswer, RaiseAnswer, RepairAnswer, Request};
use crate::coverage::Mark;
use crate::guard::number;
use crate::say;
use crate::setup::nanos;
use crate::world::{Ev, World};

/// Hand-overs to preferred hosts that are followed after all has healed, where no host is preferred by all.
const HAND_OVERS_WATCHED: u32 = 5;

#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: &'static str,
    pub what: String,
    pub at: Nanos,
    pub event: u64,
}

#[derive(Debug, Default)]
pub struct Oracle {
    pub violation: Option<Violation>,
    over: bool,
    /// Something changed at a node: look again whether the running term is still supported.
    pub dirty: bool,
    supported_until: Nanos,
    /// Terms with living processes.
    pub running: Vec<u32>,
    last_token: u64,
    /// A node has lost data: tokens are ordered only if wall clocks agree.
    pub data_lost: bool,
    resource_token: u64,
    served: Nanos,
    served_from: Nanos,
    /// After this a child must be running, and stay.
    must_run: bool,
    /// Not judged before.
    judge_from: Nanos,
    /// To preferred hosts, since all has healed.
    hand_overs: u32,
    /// When a host was last outbid, and the value of its term.
    outbid: Option<(Nanos, Value)>,
    /// The preferred host has given a term up: it is well only after much longer.
    pub preferred_gave_up: bool,
    pub deleted: Option<(u32, Nanos)>,
}

impl Oracle {
    pub fn is_over(&self) -> bool {
        self.over || self.violation.is_some()
    }

    pub fn served(&self, now: Nanos) -> Nanos {
        self.served + if self.running.is_empty() { 0 } else { now - self.served_from }
    }
}

impl World {
    pub fn violated(&mut self, rule: &'static str, what: impl FnOnce() -> String) {
        if self.oracle.violation.is_some() {
            return;
        }
        let what = what();
        say!(self, "ORACLE", "VIOLATED: {rule}: {what}");
        self.oracle.violation = Some(Violation { rule, what, at: self.now, event: self.events });
    }

    // ── at every event ──

    pub fn watch(&mut self) {
        if let Some((g, due)) = self.oracle.deleted
            && self.now > due
        {
            self.oracle.deleted = None;
            let guard = &self.guards[g as usize];
            if guard.lives && !guard.latched && guard.frozen_until < self.now {
                self.violated("a lock deleted by hand is handed over", || format!("g{g} goes on"));
            }
        }
        if self.post.count() > 20_000 {
            self.violated("queues are bounded", || "20,000 letters under way".to_owned());
        }
        let Some(first) = self.oracle.running.first().copied() else { return };
        self.watch_the_living();
        if self.is_fenced() || (!self.oracle.dirty && self.now <= self.oracle.supported_until) {
            return;
        }
        self.oracle.dirty = false;
        let g = first as usize;
        self.oracle.supported_until = self.supported_until(self.guards[g].value, None);
        if self.oracle.supported_until < self.now {
            self.violated("while a child lives, a quorum of nodes refuses everybody else", || {
                format!("g{g} lives and too few nodes do")
            });
        }
    }

    fn watch_the_living(&mut self) {
        let overdue = |g: &u32| {
            let guard = &self.guards[*g as usize];
            self.local(guard.host) > guard.lease_end
        };
        if let Some(g) = self.oracle.running.iter().copied().find(overdue)
            && !self.is_fenced()
        {
            self.violated("nothing lives after valid_until", || format!("g{g} lives on"));
        }
    }

    /// Until then a quorum of nodes, not counting `without`, will vote for nobody else.
    pub fn supported_until(&self, value: Value, without: Option<usize>) -> Nanos {
        let mut ends = [0; 9];
        for (n, node) in self.nodes.iter().enumerate() {
            if Some(n) != without {
                ends[n] = node.refuses_until(self.now, value.0, self.setup.quarantine);
            }
        }
        ends.sort_unstable_by(|a, b| b.cmp(a));
        ends[self.setup.quorum() - 1]
    }

    // ── terms ──

    pub fn oracle_term_begins(&mut self, g: usize) {
        if self.is_fenced() {
            return;
        }
        let other = self.active.iter().copied().find(|o| {
            let o = *o as usize;
            let guard = &self.guards[o];
            o != g && !guard.is_over() && self.when(guard.host, guard.lease_end) > self.now
        });
        if let Some(other) = other {
            self.violated("leases are disjoint", || format!("g{g} begins while g{other} has not ended"));
        }
    }

    /// The guard has taken new deadlines: the lease behind them must be there, at the nodes.
    pub fn oracle_deadlines(&mut self, g: usize) {
        let guard = &self.guards[g];
        let end = guard.deadlines.kill_at + self.setup.timing.kill_margin();
        let (value, latched) = (guard.value, guard.latched);
        let ends = self.when(guard.host, end);
        if !latched {
            let guard = &mut self.guards[g];
            guard.lease_end = guard.lease_end.max(end);
        }
        if self.is_fenced() {
            return;
        }
        let supported = self.supported_until(value, None);
        if ends > supported && ends > self.now {
            let short = (ends - supported) / MS;
            self.violated("a quorum refuses everybody else until the lease ends", || {
                format!("g{g} believes in {short} ms more than the nodes do")
            });
        }
    }

    pub fn oracle_child_starts(&mut self, g: usize) {
        let token = self.guards[g].token.0;
        if self.oracle.running.is_empty() {
            self.oracle.served_from = self.now;
        }
        let other = self.oracle.running.iter().copied().find(|other| *other as usize != g);
        if !self.is_fenced() {
            if let Some(other) = other {
                self.violated("one at a time", || format!("g{g} starts beside g{other}"));
            }
            if self.legacy.iter().any(|client| client.holding) {
                self.violated("one at a time", || format!("g{g} starts beside a legacy holder"));
            }
            if self.local(self.guards[g].host) >= self.guards[g].lease_end {
                self.violated("nothing lives after valid_until", || {
                    format!("g{g} starts its child too late")
                });
            }
        }
        let spread = self.setup.wall_spread_us.unsigned_abs() * 1000;
        let ordered = !self.oracle.data_lost || spread <= self.setup.quarantine;
        if !self.guards[g].started {
            let knows = |node: &&crate::node::Node| {
                !node.up
                    || node.data.fence.t >= token
                    || node.abstains_for(self.now, self.setup.quarantine) > 0
            };
            if self.nodes.iter().filter(knows).count() < self.setup.quorum() {
                self.violated("a quorum knows a token before its child starts", || {
                    format!("g{g} has {token}")
                });
            }
            let last = self.oracle.last_token;
            if token <= last && ordered {
                self.violated("tokens grow strictly", || format!("g{g} has {token} after {last}"));
            }
            self.oracle.last_token = last.max(token);
        }
        self.guards[g].started = true;
        self.oracle.resource_token = self.oracle.resource_token.max(token);
        if !self.oracle.running.contains(&number(g)) {
            self.oracle.running.push(number(g));
        }
        self.oracle.dirty = true;
    }

    pub fn oracle_processes_ended(&mut self, g: usize) {
        if self.guards[g].tree_alive() {
            return;
        }
        let h = self.guards[g].host;
        let late = self.local(h) > self.guards[g].lease_end;
        if late && !self.is_fenced() {
            let by = self.local(h).since(self.guards[g].lease_end);
            self.violated("nothing lives after valid_until", || format!("g{g} dies {by:?} too late"));
        }
        if self.guards[g].latched && self.now < self.hosts[h].frozen_until {
            self.mark(Mark::F2);
        }
        self.oracle.running.retain(|running| *running as usize != g);
        if self.oracle.running.is_empty() {
            self.oracle.served += self.now - self.oracle.served_from;
        }
        if !self.oracle.must_run {
            return;
        }
        if self.oracle.outbid.is_some_and(|(_, value)| value == self.guards[g].value) {
            self.oracle.hand_overs += 1;
            // Files that contradict one another hand it round for ever, once in each `hold`.
            if self.oracle.hand_overs >= HAND_OVERS_WATCHED && self.setup.preferred.is_none() {
                self.oracle.over = true;
                return;
            }
            self.oracle.must_run = false;
            self.oracle.judge_from = self.now + self.hand_over_bound();
            self.push(self.oracle.judge_from, Ev::Judge);
            return;
        }
        self.violated("after all has healed a child stays", || format!("g{g} lost its child"));
    }

    /// A holder gives way to a bid.
    pub fn oracle_outbid(&mut self, h: usize) {
        let Some(value) = self.daemon(h).and_then(|daemon| daemon.election.value()) else { return };
        if self.setup.preferred == Some(h) {
            self.violated("the preferred host does not give way", || format!("h{h} does"));
        }
        let hold = crate::setup::nanos(self.setup.hold * 49 / 50); // clocks differ by less
        if let Some((last, _)) = self.oracle.outbid
            && self.now < last + hold
        {
            self.violated("a keeper is taken back at most once in `hold`", || format!("from h{h}"));
        }
        self.oracle.outbid = Some((self.now, value));
    }

    pub fn oracle_legacy_starts(&mut self, c: usize) {
        let other = self.legacy.iter().enumerate().any(|(o, client)| o != c && client.holding);
        if other || !self.oracle.running.is_empty() {
            self.violated("one at a time", || format!("l{c} starts beside somebody else"));
        }
    }

    /// A writer thawed with its host: the resource knows a larger token.
    pub fn oracle_stale_write(&mut self, g: usize) {
        self.mark(Mark::F13);
        if self.guards[g].tree_alive() && self.guards[g].token.0 < self.oracle.resource_token {
            self.mark(Mark::F16);
        }
    }

    // ── requests ──

    pub fn oracle_asked(&mut self, _h: usize, request: &Request) {
        if let Request::Release { value } = request {
            self.oracle_releases(*value, "a daemon");
        }
    }

    pub fn oracle_releases(&mut self, value: Value, who: &str) {
        let living = self.active.iter().copied().find(|g| {
            let guard = &self.guards[*g as usize];
            guard.value == value && !guard.is_over()
        });
        if let Some(g) = living {
            self.violated("released only when the tree is dead", || {
                format!("{who} releases the lock of g{g}")
            });
        }
    }

    pub fn oracle_carried_out(&mut self, l: usize, n: usize, request: &Request, answer: &Answer) {
        let h = l / self.setup.nodes;
        match (request, answer) {
            (Request::Extend { .. }, Answer::Extend(ExtendAnswer::Gone)) => self.mark(Mark::F9),
            (Request::Acquire { value, .. }, Answer::Acquire(AcquireAnswer::Granted { token })) => {
                if self.nodes[n].data.fence.x == value.0 {
                    self.violated("a released value never lives again on that node", || {
                        format!("n{n} grants it to h{h}")
                    });
                }
                let candidate = self
                    .daemon(h)
                    .is_some_and(|d| matches!(d.election.role(), crate::core::event::Role::Candidate));
                let leads = self.daemon(h).is_some_and(|d| d.election.value().is_some());
                if !candidate && !leads {
                    self.mark(Mark::F12);
                }
                // It could only take the proposal: the node itself knew nothing as large as the last token.
                if self.nodes[n].lost_data_at.is_some() && token.0 > self.oracle.last_token {
                    self.mark(Mark::F17);
                }
            }
            (Request::Acquire { .. }, Answer::Acquire(AcquireAnswer::Held(_))) => self.mark_split(),
            (Request::Extend { token, .. }, Answer::Extend(ExtendAnswer::Ok))
                if self.nodes[n].data.fence.t < token.0 =>
            {
                self.violated("a node that renews a lease knows its token", || {
                    format!("n{n} renews for h{h}")
                });
            }
            (Request::Repair { value, .. }, Answer::Repair(RepairAnswer::Repaired))
                if self.nodes[n].data.fence.x == value.0 =>
            {
                self.violated("a released value never lives again on that node", || {
                    format!("n{n} repairs it for h{h}")
                });
            }
            (Request::Raise { .. }, Answer::Raise(RaiseAnswer::Accepted)) => {
                let lost = self.nodes[n].lost_data_at.is_some_and(|at| self.now - at < self.setup.ttl());
                if lost {
                    self.violated("a node that has just lost its data vouches for no token", || {
                        format!("n{n} accepts a raise of h{h}")
                    });
                }
            }
            _ => {}
        }
        if !matches!(request, Request::Look | Request::Check { .. } | Request::Extend { .. }) {
            self.oracle.dirty = true;
        }
    }

    fn mark_split(&mut self) {
        let values: Vec<u128> = self.nodes.iter().filter_map(|node| node.values(self.now)[0]).collect();
        let most = values.iter().map(|v| values.iter().filter(|w| *w == v).count()).max().unwrap_or(0);
        if values.len() >= self.setup.quorum() && most < self.setup.quorum() {
            self.mark(Mark::F11);
        }
    }

    // ── liveness ──

    /// A lease to run out, a restart delayed by as much, a poll of half of it; then quarantines, a host that stays out, a cooldown.
    pub fn liveness_bound(&self) -> Nanos {
        let ttl = self.setup.ttl();
        let mut waits: Vec<Nanos> =
            self.nodes.iter().map(|node| node.abstains_for(self.now, self.setup.quarantine)).collect();
        waits.sort_unstable();
        let quarantine = waits[self.setup.quorum() - 1];
        ttl * 5 / 2 + ttl / 2 + quarantine + quarantine / 100 + 10 * SEC + 5 * SEC
    }

    /// From the stop signal on, for a preferred host; should that be gone, the others wait for it no longer than this.
    fn hand_over_bound(&self) -> Nanos {
        nanos(self.setup.timing.stop_timeout()) + self.setup.ttl() / 2 + 3 * SEC
    }

    pub fn judge_liveness(&mut self) {
        if self.now < self.oracle.judge_from {
            return;
        }
        if self.oracle.must_run {
            let first = self.oracle.running.first().map(|g| self.guards[*g as usize].host);
            match self.setup.preferred.filter(|_| !self.oracle.preferred_gave_up) {
                Some(preferred) if Some(preferred) == first => self.mark(Mark::PreferredHasIt),
                Some(_) => {
                    self.violated("after all has healed the preferred host has it", || {
                        format!("{first:?} does")
                    });
                }
                None => {}
            }
            self.oracle.over = true;
            return;
        }
        let runs = self.oracle.running.iter().any(|g| self.guards[*g as usize].child_runs());
        let handed_over = self.oracle.outbid.map_or(0, |(at, _)| at + self.hand_over_bound());
        if !runs && handed_over > self.now {
            self.oracle.judge_from = handed_over;
            return self.push(handed_over, Ev::Judge);
        }
        if !runs {
            let roles: Vec<_> = self
                .hosts
                .iter()
                .map(|host| host.daemon.as_ref().map(|daemon| daemon.election.role()))
                .collect();
            self.violated("after all has healed a child runs", || format!("roles: {roles:?}"));
        }
        self.oracle.must_run = true;
        let at = self.now + self.setup.ttl() * 10;
        self.oracle.judge_from = at;
        self.push(at, Ev::Judge);
    }
}
