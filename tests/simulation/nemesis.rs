//! What goes wrong, drawn from the seed, within what DESIGN 1 promises to survive.

use crate::clock::{MS, Nanos, SEC, US};
use crate::core::event::Command;
use crate::coverage::Mark;
use crate::guard::State;
use crate::host::Slot;
use crate::mutants::Mutant;
use crate::node::{Data, FENCE, Hosts, LOCK};
use crate::say;
use crate::setup::{Kind, Mode};
use crate::world::{Ev, Kept, World, id};

/// Jumps of a strobing clock, there and back.
const STROBE_LEGS: u8 = 40;

#[derive(Debug, Default)]
pub struct Nemesis {
    pub faults: u64,
    /// The last fault ends then.
    all_well_at: Nanos,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    FreezeDaemon {
        host: u8,
    },
    KillDaemon {
        host: u8,
    },
    Order {
        host: u8,
        command: Command,
    },
    FreezeGuard {
        host: u8,
    },
    KillGuard {
        host: u8,
    },
    /// At the worst moment, and for long: a candidate between two votes, a guard between stop signal and SIGKILL.
    Hang {
        host: u8,
        guard: bool,
    },
    /// Frozen until just before the guard's stop_at: its renewal and the guard's stop cross.
    WakeAtStop {
        host: u8,
    },
    StarveSpawn {
        host: u8,
    },
    Suspend {
        host: u8,
    },
    WallStep {
        host: u8,
    },
    NodeRestart {
        node: u8,
        kept: Kept,
    },
    RollingRestart {
        node: u8,
    },
    NodeFreeze {
        node: u8,
    },
    Flush {
        nodes: u8,
    },
    HandDel {
        nodes: u8,
    },
    /// Paused on all hosts for a while, by all nodes or some.
    PauseEverywhere {
        nodes: u8,
    },
    ClockAhead {
        node: u8,
    },
    ClockBack {
        node: u8,
    },
    ClockStop {
        node: u8,
    },
    /// To and fro, many times.
    ClockStrobe {
        node: u8,
    },
    /// What was just sent waits at a frozen node until it is too late, and with `deaf` the sender sleeps as long.
    Overtaken {
        host: u8,
        node: u8,
        until: Nanos,
        deaf: bool,
    },
    CutLink {
        link: u8,
        there: bool,
        back: bool,
    },
    Isolate {
        host: u8,
        there: bool,
        back: bool,
    },
    Slow {
        link: u8,
    },
    SlowNode {
        node: u8,
    },
    Reset {
        link: u8,
    },
}

impl World {
    pub fn nemesis_strikes(&mut self) {
        if self.now >= self.setup.heals() {
            return;
        }
        let fault = self.draw();
        self.strike(fault, 0);
        // What a disk would hold if the machine went down a while later.
        let saved = self.dice.pick(self.setup.nodes);
        self.nodes[saved].saved = self.nodes[saved].data;
        // Faults come in swarms: the interesting ones need two or three at once.
        let mean = if self.dice.chance(350) { self.setup.ttl() / 8 } else { self.setup.fault_every };
        let at = self.now + self.dice.exp(mean) + MS;
        self.push(at, Ev::Nemesis);
    }

    fn draw(&mut self) -> Fault {
        let leader = self.oracle.running.first().map(|g| self.guards[*g as usize].host);
        let host = id(match leader {
            Some(host) if self.dice.chance(700) => host,
            _ => self.dice.pick(self.setup.hosts),
        });
        let node = id(self.dice.pick(self.setup.nodes));
        let link = host * id(self.setup.nodes) + node;
        let (there, back) = [(true, true), (true, false), (false, true)][self.dice.pick(3)];
        let command = [
            Command::StepDown,
            Command::Pause,
            Command::Drain,
            Command::Kill,
            Command::Restart,
            Command::Restart,
        ][self.dice.pick(6)];
        match self.dice.below(100) {
            0..10 => Fault::FreezeDaemon { host },
            10..12 => Fault::WakeAtStop { host },
            12..17 => Fault::KillDaemon { host },
            17..19 => Fault::PauseEverywhere { nodes: self.some_nodes() },
            19..26 => Fault::Order { host, command },
            26..30 => Fault::FreezeGuard { host },
            30..33 => Fault::KillGuard { host },
            33..36 => Fault::StarveSpawn { host },
            36..38 => Fault::WallStep { host },
            38..44 => {
                Fault::NodeRestart { node, kept: [Kept::All, Kept::Nothing, Kept::Stale][self.dice.pick(3)] }
            }
            44..46 => Fault::RollingRestart { node },
            46..51 => Fault::NodeFreeze { node },
            51..54 => Fault::Flush { nodes: id(1 + self.dice.pick((1 << self.setup.nodes) - 1)) },
            54..58 => Fault::HandDel { nodes: self.some_nodes() },
            58..61 => Fault::ClockAhead { node },
            61..63 => Fault::ClockBack { node },
            63..64 => Fault::ClockStrobe { node },
            64..66 => Fault::ClockStop { node },
            66..76 => Fault::CutLink { link, there, back },
            76..84 => Fault::Isolate { host, there, back },
            84..91 => Fault::Slow { link },
            91..94 => Fault::SlowNode { node },
            94..97 => Fault::Reset { link },
            _ => Fault::Suspend { host },
        }
    }

    fn some_nodes(&mut self) -> u8 {
        let all = (1 << self.setup.nodes) - 1;
        if self.dice.coin() { id(all) } else { id(1 + self.dice.pick(all)) }
    }

    /// Which faults belong to this run: DESIGN 1, "not promised".
    fn is_promised(&self, fault: Fault) -> bool {
        let legacy = self.setup.kind == Kind::Legacy;
        let live = self.setup.mode == Mode::Liveness;
        match fault {
            Fault::Flush { .. } | Fault::HandDel { .. } | Fault::ClockAhead { .. } => !legacy,
            Fault::ClockStrobe { node } => !legacy && (!live || node == 0),
            Fault::NodeRestart { kept, .. } => kept == Kept::All || !legacy,
            Fault::Suspend { .. } => self.setup.kind == Kind::Fenced,
            // A key that lives for hours keeps a keeper away for hours: tolerable on a minority.
            Fault::ClockBack { node } | Fault::ClockStop { node } => !live || node == 0,
            _ => true,
        }
    }

    pub fn strike(&mut self, fault: Fault, tries: u8) {
        if !self.is_promised(fault) || (tries > 0 && self.healed) {
            return;
        }
        let done = match fault {
            Fault::FreezeDaemon { host } => {
                let spell = self.spell();
                self.freeze_daemon(host as usize, spell)
            }
            Fault::Hang { host, guard: false } => self.freeze_daemon(host as usize, self.setup.ttl() / 3),
            Fault::WakeAtStop { host } => self.wake_at_stop(host as usize),
            Fault::Hang { host, guard: true } => self.freeze_guard(host as usize, self.setup.ttl()),
            Fault::KillDaemon { host } => self.kill_daemon(host as usize),
            Fault::Order { host, command } => self.order(host as usize, command),
            Fault::FreezeGuard { host } => {
                let spell = self.spell();
                self.freeze_guard(host as usize, spell)
            }
            Fault::KillGuard { host } => self.shoot_guard(host as usize),
            Fault::StarveSpawn { host } => self.starve(host as usize),
            Fault::Suspend { host } if tries > 0 => self.thawed(host as usize),
            Fault::Suspend { host } => self.suspend(host as usize),
            Fault::WallStep { host } => self.wall_step(host as usize),
            Fault::NodeRestart { node, kept } => self.restart_node(node as usize, kept),
            Fault::RollingRestart { node } => self.rolling_restart(node, tries),
            Fault::NodeFreeze { node } => self.freeze_node(node as usize),
            Fault::Flush { nodes } => self.flush(nodes),
            Fault::HandDel { nodes } => self.delete_by_hand(nodes),
            Fault::PauseEverywhere { nodes } if tries > 0 => self.resume_everywhere(nodes),
            Fault::PauseEverywhere { nodes } => self.pause_everywhere(nodes),
            Fault::ClockAhead { node } => self.clock_ahead(node as usize, fault, tries),
            Fault::ClockBack { node } => self.clock_back(node as usize),
            Fault::ClockStop { node } => self.clock_stop(node as usize),
            Fault::ClockStrobe { node } => self.clock_strobe(node as usize, tries),
            Fault::Overtaken { host, node, until, deaf } => {
                self.overtaken(host as usize, node as usize, until, deaf)
            }
            Fault::CutLink { link, there, back } => self.cut(link as usize, there, back),
            Fault::Isolate { host, there, back } => self.isolate(host as usize, there, back),
            Fault::Slow { link } => self.slow(link as usize),
            Fault::SlowNode { node } => self.slow_node(node as usize),
            Fault::Reset { link } => self.reset(link as usize),
        };
        if done {
            self.nemesis.faults += 1;
            say!(self, "nemes", "{fault:?}");
        }
    }

    fn lasts(&mut self, until: Nanos) {
        self.nemesis.all_well_at = self.nemesis.all_well_at.max(until);
    }

    fn spell(&mut self) -> Nanos {
        self.dice.scale(10 * MS, self.setup.ttl() * 2)
    }

    // ── hosts ──

    fn guard_of(&self, h: usize) -> Option<usize> {
        match self.hosts[h].daemon.as_ref().map(|daemon| daemon.slot) {
            Some(Slot::Guard(g)) => Some(g as usize),
            Some(Slot::Empty | Slot::Mourning { .. }) | None => None,
        }
    }

    /// Daemon and guard are not both impaired: the one is there for the other.
    fn may_impair(&self, h: usize) -> bool {
        let mourning = matches!(
            self.hosts[h].daemon.as_ref().map(|daemon| daemon.slot),
            Some(Slot::Mourning { .. }) | None
        );
        !mourning && self.now >= self.hosts[h].impaired_until && self.now >= self.hosts[h].frozen_until
    }

    fn impair(&mut self, h: usize, until: Nanos) {
        self.hosts[h].impaired_until = until + SEC;
        self.lasts(until + SEC);
    }

    fn freeze_daemon(&mut self, h: usize, spell: Nanos) -> bool {
        if !self.may_impair(h) || self.hosts[h].starve_spawn {
            return false;
        }
        let until = self.now + spell;
        self.hosts[h].frozen_until = until;
        self.hosts[h].timeouts_first = self.dice.coin();
        self.impair(h, until);
        true
    }

    fn wake_at_stop(&mut self, h: usize) -> bool {
        let Some(g) = self.guard_of(h) else { return false };
        let stops = self.when(h, self.guards[g].deadlines.stop_at);
        let early = self.dice.below(6 * self.setup.way + MS);
        let spell = stops.saturating_sub(self.now + early);
        spell > 0 && self.freeze_daemon(h, spell)
    }

    fn kill_daemon(&mut self, h: usize) -> bool {
        let starving = self.guard_of(h).is_some_and(|g| self.guards[g].frozen_until > self.now)
            && self.guard_of(h).is_some_and(|g| !self.guards[g].tree_alive());
        if !starving && !self.may_impair(h) {
            return false;
        }
        self.daemon_gone(h);
        self.impair(h, self.now + self.setup.ttl());
        let back = self.now + self.dice.scale(50 * MS, 5 * SEC);
        self.lasts(back);
        self.push(back, Ev::DaemonStarts { host: id(h) });
        true
    }

    fn order(&mut self, h: usize, command: Command) -> bool {
        let Some(life) = self.life(h) else { return false };
        self.push(self.now, Ev::Ordered { host: id(h), life, command });
        if command == Command::Pause {
            let at = self.now + self.spell();
            self.lasts(at);
            self.push(at, Ev::Ordered { host: id(h), life, command: Command::Resume });
        }
        true
    }

    fn freeze_guard(&mut self, h: usize, spell: Nanos) -> bool {
        let Some(g) = self.guard_of(h) else { return false };
        if !self.may_impair(h) {
            return false;
        }
        let until = self.now + spell;
        self.guards[g].frozen_until = until;
        self.impair(h, until);
        true
    }

    fn shoot_guard(&mut self, h: usize) -> bool {
        let Some(g) = self.guard_of(h) else { return false };
        if !self.may_impair(h) {
            return false;
        }
        self.impair(h, self.now + SEC);
        self.kill_guard(g);
        true
    }

    fn starve(&mut self, h: usize) -> bool {
        self.hosts[h].starve_spawn = self.now >= self.hosts[h].impaired_until;
        true
    }

    /// The whole host stands still and comes back, child and all.
    fn suspend(&mut self, h: usize) -> bool {
        if !self.may_impair(h) {
            return false;
        }
        let until = self.now + self.setup.ttl() / 2 + self.spell();
        self.hosts[h].frozen_until = until;
        self.hosts[h].suspended_until = until;
        self.impair(h, until);
        let mine: Vec<u32> =
            self.active.iter().copied().filter(|g| self.guards[*g as usize].host == h).collect();
        for g in mine {
            self.guards[g as usize].frozen_until = until;
        }
        self.push(until, Ev::Again { fault: Fault::Suspend { host: id(h) }, tries: 1 });
        true
    }

    fn thawed(&mut self, h: usize) -> bool {
        let mine = self.active.iter().copied().find(|g| self.guards[*g as usize].host == h);
        if let Some(g) = mine {
            self.oracle_stale_write(g as usize);
        }
        false
    }

    fn wall_step(&mut self, h: usize) -> bool {
        let spread = self.setup.wall_spread_us / 2;
        self.hosts[h].wall_off_us = self.dice.around(spread);
        true
    }

    // ── nodes ──

    fn restart_node(&mut self, n: usize, kept: Kept) -> bool {
        if !self.nodes[n].up {
            return false;
        }
        let back = self.now + self.dice.scale(20 * MS, self.setup.ttl());
        self.node_ends(n, back, kept);
        true
    }

    fn node_ends(&mut self, n: usize, back: Nanos, kept: Kept) {
        let run = self.nodes[n].run;
        self.nodes[n].up = false;
        self.nodes[n].frozen_until = 0;
        self.lasts(back);
        self.push(back, Ev::NodeStarts { node: id(n), run: run + 1, data: kept });
        for h in 0..self.setup.hosts {
            self.reset(h * self.setup.nodes + n);
        }
    }

    pub fn node_starts(&mut self, n: usize, run: u32, kept: Kept) {
        say!(self, format!("n{n}"), "starts with {kept:?} of its data");
        let held = self.nodes[n].data.lock.map(|key| key.value);
        let node = &mut self.nodes[n];
        node.up = true;
        node.run = run;
        (node.track_lock, node.track_fence) = (Hosts::default(), Hosts::default());
        match kept {
            Kept::All => self.marks.mark(Mark::NodeWithData),
            Kept::Nothing => node.data = Data::default(),
            Kept::Stale => {
                node.data = node.saved;
                self.marks.mark(Mark::NodeWithOldData);
            }
        }
        if kept != Kept::All {
            node.lost_data_at = Some(self.now);
            self.oracle.data_lost = true;
        }
        self.oracle.dirty = true;
        let running = self.oracle.running.clone();
        for g in running {
            let guard = &mut self.guards[g as usize];
            guard.restarts_seen |= 1 << n;
            let all = guard.restarts_seen == (1 << self.setup.nodes) - 1;
            let had = held == Some(guard.value.0);
            if all {
                self.mark(Mark::F10);
            }
            if had && kept == Kept::Nothing {
                self.mark(Mark::F3);
            }
        }
    }

    /// One node after the other, each up again before the next goes.
    fn rolling_restart(&mut self, node: u8, tries: u8) -> bool {
        let n = (node as usize + tries as usize) % self.setup.nodes;
        if self.nodes[n].up {
            let kept = if self.setup.kind == Kind::Legacy { Kept::All } else { Kept::Nothing };
            self.node_ends(n, self.now + 100 * MS, kept);
        }
        if (tries as usize) + 1 < self.setup.nodes {
            let at = self.now + self.setup.ttl() / 4 + SEC;
            self.lasts(at + SEC);
            self.push(at, Ev::Again { fault: Fault::RollingRestart { node }, tries: tries + 1 });
        }
        true
    }

    fn freeze_node(&mut self, n: usize) -> bool {
        let until = self.now + self.spell();
        self.freeze_node_until(n, until)
    }

    fn overtaken(&mut self, h: usize, n: usize, until: Nanos, deaf: bool) -> bool {
        let wakes = until + 2 * MS;
        if until <= self.now || !self.freeze_node_until(n, until) {
            return false;
        }
        if deaf && self.freeze_daemon(h, wakes - self.now) {
            self.hosts[h].timeouts_first = false;
        }
        true
    }

    fn freeze_node_until(&mut self, n: usize, until: Nanos) -> bool {
        if !self.nodes[n].up {
            return false;
        }
        self.nodes[n].frozen_until = until;
        for h in 0..self.setup.hosts {
            self.strain(h * self.setup.nodes + n);
        }
        self.lasts(until);
        true
    }

    fn flush(&mut self, nodes: u8) -> bool {
        for n in 0..self.setup.nodes {
            if nodes & (1 << n) != 0 && self.nodes[n].up && self.now >= self.nodes[n].frozen_until {
                self.nodes[n].data = Data::default();
                self.nodes[n].lost_data_at = Some(self.now);
                self.oracle.data_lost = true;
                for h in 0..self.setup.hosts {
                    self.push_to(h, n, true);
                }
            }
        }
        self.oracle.dirty = true;
        true
    }

    fn delete_by_hand(&mut self, nodes: u8) -> bool {
        let all = nodes == id((1 << self.setup.nodes) - 1);
        let mut at = self.now;
        for n in 0..self.setup.nodes {
            if nodes & (1 << n) != 0 {
                at += self.dice.between(MS, 5 * MS);
                self.push(at, Ev::HandDel { node: id(n) });
            }
        }
        let reachable = self.nodes.iter().all(|node| node.up && self.now >= node.frozen_until);
        if all
            && reachable
            && !self.is_fenced()
            && let Some(g) = self.oracle.running.first()
        {
            let serving = self.guards[*g as usize].state == State::Running;
            if serving && self.oracle.deleted.is_none() {
                self.oracle.deleted = Some((*g, at + self.setup.ttl() + 2 * SEC));
            }
        }
        true
    }

    pub fn hand_del(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if !node.up || self.now < node.frozen_until {
            self.oracle.deleted = None; // an incomplete deed
            return;
        }
        say!(self, format!("n{n}"), "DEL of the lock key by hand");
        let node = &mut self.nodes[n];
        if node.data.lock.take().is_some() {
            node.touched |= LOCK;
        }
        self.pushes(n, None);
        self.oracle.dirty = true;
    }

    fn pause_everywhere(&mut self, nodes: u8) -> bool {
        let until = self.now + self.spell();
        for n in 0..self.setup.nodes {
            let node = &mut self.nodes[n];
            if nodes & (1 << n) != 0 && node.up && self.now >= node.frozen_until {
                node.data.paused_until = until;
                node.touched |= LOCK | FENCE;
                self.pushes(n, None);
            }
        }
        self.lasts(until);
        self.push(until, Ev::Again { fault: Fault::PauseEverywhere { nodes }, tries: 1 });
        true
    }

    fn resume_everywhere(&mut self, nodes: u8) -> bool {
        for n in 0..self.setup.nodes {
            let node = &mut self.nodes[n];
            if nodes & (1 << n) != 0 && node.up && self.now >= node.frozen_until {
                node.touched |= FENCE;
                self.pushes(n, None);
            }
        }
        true
    }

    // ── clocks of nodes ──

    /// A jump ahead ends leases. One node's is survived while a quorum of others holds for whoever believes in his lease; more
    /// than that nobody promises. Waits for such a moment.
    fn clock_ahead(&mut self, n: usize, fault: Fault, tries: u8) -> bool {
        if !self.can_lose(n) {
            if tries < 20 {
                let at = self.now + self.dice.between(5 * MS, 100 * MS);
                self.push(at, Ev::Again { fault, tries: tries + 1 });
            }
            return false;
        }
        if self.holds_running(n) {
            self.mark(Mark::F4);
        }
        let by = self.dice.scale(100 * MS, 300 * SEC) / US;
        self.nodes[n].clock.step(self.now, by.cast_signed());
        self.nodes[n].lost_data_at = None; // a quarantine is over at once, too
        self.oracle.dirty = true;
        true
    }

    fn can_lose(&self, n: usize) -> bool {
        // Where only the tokens hold, they hold whatever the clocks do.
        if self.is_fenced() || self.is(Mutant::ClocksAnywhere) {
            return true;
        }
        let candidates = self.hosts.iter().any(|host| {
            host.daemon
                .as_ref()
                .is_some_and(|daemon| daemon.election.role() == crate::core::event::Role::Candidate)
        });
        let others = self.nodes.iter().flat_map(|node| node.values(self.now)).flatten();
        let strangers = others
            .clone()
            .any(|value| !self.active.iter().any(|g| self.guards[*g as usize].value.0 == value));
        // A yes of this node that a round has counted and that others have not followed yet: with them it would be two nodes.
        let in_a_round = self.links.iter().any(crate::link::Link::asks_for_time);
        let busy = candidates || strangers || in_a_round || self.letters_of(n) > 0;
        if busy || self.is(Mutant::SilenceIsYes) {
            return false;
        }
        self.active.iter().all(|g| {
            let guard = &self.guards[*g as usize];
            let believed = self.hosts[guard.host].daemon.as_ref().and_then(|d| d.election.valid_until());
            let end = guard.lease_end.max(believed.unwrap_or_default());
            let supported = self.supported_until(guard.value, Some(n));
            // Its holder counts this vote until it ends, and if the next round reaches only some of the others, by this vote alone.
            let vote = self.nodes[n].holds_until(self.now, guard.value.0);
            guard.is_over() || supported >= self.when(guard.host, end).max(vote)
        })
    }

    fn holds_running(&self, n: usize) -> bool {
        let values = self.nodes[n].values(self.now);
        self.oracle.running.iter().any(|g| values.contains(&Some(self.guards[*g as usize].value.0)))
    }

    fn clock_back(&mut self, n: usize) -> bool {
        if self.holds_running(n) {
            self.mark(Mark::F5);
        }
        // A clock that is hours behind refuses every token; tolerable on a minority.
        let minority = n < self.setup.nodes - self.setup.quorum();
        let most = if minority && self.dice.chance(200) { 4 * 3600 * SEC } else { 60 * SEC };
        let by = self.dice.scale(100 * MS, most) / US;
        self.nodes[n].clock.step(self.now, -by.cast_signed());
        self.oracle.dirty = true;
        true
    }

    /// A jump ahead as often as it is survived, and back again each time.
    fn clock_strobe(&mut self, n: usize, legs: u8) -> bool {
        let first = legs == 0;
        let ahead = self.nodes[n].strobe_us;
        if ahead > 0 {
            self.nodes[n].clock.step(self.now, -ahead.cast_signed());
            self.nodes[n].strobe_us = 0;
            self.mark(Mark::ClockStrobes);
            say!(self, format!("n{n}"), "its clock jumps back");
        } else if self.can_lose(n) {
            let by = self.dice.scale(4 * MS, 262 * SEC) / US;
            self.nodes[n].clock.step(self.now, by.cast_signed());
            self.nodes[n].strobe_us = by;
            self.nodes[n].lost_data_at = None;
            say!(self, format!("n{n}"), "its clock jumps ahead by {by} µs");
        }
        self.oracle.dirty = true;
        let at = self.now + self.dice.scale(MS, SEC);
        if legs < STROBE_LEGS || self.nodes[n].strobe_us > 0 {
            let legs = (legs + 1).min(STROBE_LEGS);
            self.lasts(at);
            self.push(at, Ev::Again { fault: Fault::ClockStrobe { node: id(n) }, tries: legs });
        }
        first
    }

    fn clock_stop(&mut self, n: usize) -> bool {
        if self.nodes[n].clock_stops_until > self.now {
            return false;
        }
        if self.holds_running(n) {
            self.mark(Mark::F6);
        }
        let until = self.now + self.spell();
        self.nodes[n].clock_stops_until = until;
        self.nodes[n].clock.stop(self.now, true);
        self.lasts(until);
        self.push(until, Ev::ClockRuns { node: id(n) });
        self.oracle.dirty = true;
        true
    }

    pub fn clock_runs(&mut self, n: usize) {
        self.nodes[n].clock.stop(self.now, false);
        self.oracle.dirty = true;
    }

    // ── the network ──

    fn cut(&mut self, l: usize, there: bool, back: bool) -> bool {
        self.marks.mark_if(there != back, Mark::OneWay);
        let until = self.now + self.spell();
        let link = &mut self.links[l];
        if there {
            link.cut_there = link.cut_there.max(until);
        }
        if back {
            link.cut_back = link.cut_back.max(until);
        }
        self.strain(l);
        self.lasts(until);
        true
    }

    fn isolate(&mut self, h: usize, there: bool, back: bool) -> bool {
        for n in 0..self.setup.nodes {
            if !self.dice.chance(200) {
                self.cut(h * self.setup.nodes + n, there, back);
            }
        }
        true
    }

    /// Just under the time-out of a node, or just over it.
    fn slow(&mut self, l: usize) -> bool {
        let timeout = self.setup.node_timeout();
        let by = self.dice.between(timeout / 4, timeout * 5 / 4);
        let until = self.now + self.spell();
        self.links[l].slow_until = until;
        self.links[l].slow_by = by;
        self.strain(l);
        self.lasts(until + by);
        true
    }

    fn slow_node(&mut self, n: usize) -> bool {
        for h in 0..self.setup.hosts {
            self.slow(h * self.setup.nodes + n);
        }
        true
    }

    fn reset(&mut self, l: usize) -> bool {
        self.reset_link(l);
        true
    }

    // ── peace ──

    /// Ends when the last fault has run out; from then on everybody has what he needs.
    pub fn heal(&mut self) {
        let restarting = self.hosts.iter().any(|host| host.daemon.is_none() || host.restarting);
        if self.nemesis.all_well_at > self.now || restarting {
            let at = self.nemesis.all_well_at.max(self.now + SEC);
            return self.push(at, Ev::Heal);
        }
        say!(self, "nemes", "all is well from now on");
        self.healed = true;
        for h in 0..self.setup.hosts {
            self.hosts[h].starve_spawn = false;
            self.order(h, Command::Resume);
        }
        let bound = self.liveness_bound();
        self.push(self.now + bound, Ev::Judge);
    }
}
