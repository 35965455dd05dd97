//! A client of the npm package: SET NX PX, extend if equal, delete if equal, on the lock key and nothing else. Its holder stops in time.

use crate::clock::{MS, Nanos};
use crate::coverage::Mark;
use crate::link::Letter;
use crate::say;
use crate::setup::Kind;
use crate::world::{Ev, World, id};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LegacyOp {
    Set(u128),
    Extend(u128),
    Delete(u128),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LegacyEvent {
    Poll,
    Answer { round: u32 },
    Decide { round: u32 },
    Extend,
    Judge { round: u32 },
    MustStop,
}

#[derive(Debug)]
pub struct Legacy {
    value: u128,
    round: u32,
    yes: usize,
    sent: Nanos,
    valid_until: Nanos,
    pub holding: bool,
    wants_until: Nanos,
    /// Order within each connection.
    last_there: Vec<Nanos>,
}

impl World {
    pub fn begin_legacy(&mut self) {
        if self.setup.kind != Kind::Legacy {
            return;
        }
        for client in 0..1 + self.dice.pick(2) {
            self.legacy.push(Legacy {
                value: 0,
                round: 0,
                yes: 0,
                sent: 0,
                valid_until: 0,
                holding: false,
                wants_until: 0,
                last_there: vec![0; self.setup.nodes],
            });
            let at = self.now + self.dice.below(self.setup.ttl());
            self.push(at, Ev::Legacy { client: id(client), what: LegacyEvent::Poll });
        }
    }

    pub fn legacy_happens(&mut self, c: usize, what: LegacyEvent) {
        let current = self.legacy[c].round;
        match what {
            LegacyEvent::Poll => self.legacy_polls(c),
            LegacyEvent::Answer { round } if round == current => self.legacy[c].yes += 1,
            LegacyEvent::Decide { round } if round == current => self.legacy_decides(c),
            LegacyEvent::Extend if self.legacy[c].holding => self.legacy_extends(c),
            LegacyEvent::Judge { round } if round == current => self.legacy_judges(c),
            LegacyEvent::MustStop if self.legacy[c].holding && self.now >= self.legacy[c].valid_until => {
                self.legacy_stops(c);
            }
            LegacyEvent::Answer { .. }
            | LegacyEvent::Decide { .. }
            | LegacyEvent::Extend
            | LegacyEvent::Judge { .. }
            | LegacyEvent::MustStop => {}
        }
    }

    fn legacy_later(&mut self, c: usize, after: Nanos, what: LegacyEvent) {
        self.push(self.now + after, Ev::Legacy { client: id(c), what });
    }

    fn legacy_sends(&mut self, c: usize, op: LegacyOp) {
        for n in 0..self.setup.nodes {
            let way = self.way();
            let client = &mut self.legacy[c];
            let at = (self.now + way).max(client.last_there[n] + 1);
            client.last_there[n] = at;
            let round = client.round;
            let letter = self.post.put(Letter::Legacy { client: id(c), node: id(n), round, op });
            self.push(at, Ev::ToNode { letter });
        }
    }

    fn legacy_round(&mut self, c: usize) {
        let client = &mut self.legacy[c];
        client.round += 1;
        client.yes = 0;
        client.sent = self.now;
    }

    fn legacy_polls(&mut self, c: usize) {
        if self.healed {
            return;
        }
        self.legacy_round(c);
        // No value of keeperd has all these bits set.
        let value = u128::MAX << 96 | u128::from(self.dice.next());
        self.legacy[c].value = value;
        self.legacy_sends(c, LegacyOp::Set(value));
        let round = self.legacy[c].round;
        self.legacy_later(c, self.setup.node_timeout(), LegacyEvent::Decide { round });
    }

    /// Clocks of nodes may be fast, and the package allows for 1 % and 2 ms as well; it stops its work a little before.
    fn legacy_valid(&self, sent: Nanos) -> Nanos {
        sent + self.setup.ttl() * 98 / 100 - 20 * MS
    }

    fn legacy_decides(&mut self, c: usize) {
        let valid_until = self.legacy_valid(self.legacy[c].sent);
        if self.legacy[c].yes < self.setup.quorum() || self.now >= valid_until {
            let value = self.legacy[c].value;
            self.legacy_sends(c, LegacyOp::Delete(value));
            let pause = self.setup.ttl() / 10 + self.dice.below(self.setup.ttl() / 5);
            return self.legacy_later(c, pause, LegacyEvent::Poll);
        }
        say!(self, format!("l{c}"), "holds the lock");
        self.mark(Mark::LegacyHeld);
        let wants = self.dice.exp(self.setup.ttl());
        let client = &mut self.legacy[c];
        client.holding = true;
        client.valid_until = valid_until;
        client.wants_until = self.now + wants;
        self.oracle_legacy_starts(c);
        self.push(valid_until, Ev::Legacy { client: id(c), what: LegacyEvent::MustStop });
        self.legacy_later(c, self.setup.ttl() / 2, LegacyEvent::Extend);
    }

    fn legacy_extends(&mut self, c: usize) {
        if self.now >= self.legacy[c].wants_until || self.healed {
            return self.legacy_stops(c);
        }
        self.legacy_round(c);
        let client = &self.legacy[c];
        let (value, round) = (client.value, client.round);
        self.legacy_sends(c, LegacyOp::Extend(value));
        self.legacy_later(c, self.setup.node_timeout(), LegacyEvent::Judge { round });
    }

    fn legacy_judges(&mut self, c: usize) {
        if !self.legacy[c].holding {
            return;
        }
        if self.legacy[c].yes < self.setup.quorum() {
            return self.legacy_later(c, 50 * MS, LegacyEvent::Extend);
        }
        let valid_until = self.legacy_valid(self.legacy[c].sent);
        self.legacy[c].valid_until = valid_until;
        self.push(valid_until, Ev::Legacy { client: id(c), what: LegacyEvent::MustStop });
        self.legacy_later(c, self.setup.ttl() / 2, LegacyEvent::Extend);
    }

    fn legacy_stops(&mut self, c: usize) {
        say!(self, format!("l{c}"), "stops and lets go");
        let client = &mut self.legacy[c];
        client.holding = false;
        let value = client.value;
        self.legacy_round(c);
        self.legacy_sends(c, LegacyOp::Delete(value));
        let pause = self.dice.exp(self.setup.ttl() * 3);
        self.legacy_later(c, pause, LegacyEvent::Poll);
    }

    pub fn legacy_at_node(&mut self, client: u8, n: usize, round: u32, op: LegacyOp) {
        if !self.nodes[n].up {
            return;
        }
        let ttl_ms = self.setup.ttl() / MS;
        let now = self.now;
        self.oracle.dirty = true;
        let node = &mut self.nodes[n];
        let yes = match op {
            LegacyOp::Set(value) => {
                let refused = node.values(now)[0].is_some_and(|there| there >> 96 != u128::MAX >> 96);
                self.marks.mark_if(refused, Mark::LegacyBeside);
                node.legacy_set(now, value, ttl_ms)
            }
            LegacyOp::Extend(value) => node.legacy_extend(now, value, ttl_ms),
            LegacyOp::Delete(value) => {
                node.legacy_delete(now, value);
                false
            }
        };
        self.pushes(n, None);
        if yes {
            let way = self.way();
            self.push(now + way, Ev::Legacy { client, what: LegacyEvent::Answer { round } });
        }
    }
}
