//! What can be broken, what must be mended when, and what is broken now.

use crate::clock::{boot_ns, nanos};
use crate::cluster::Reply;
use crate::procs;
use crate::proxy::Mode;
use crate::step::{Step, check};
use crate::trial::{QUARANTINE, TTL, Trial, millis, secs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A fault, for the causes of take-overs.
#[derive(Clone, Debug)]
#[must_use = "it counts only once it is done"]
pub struct Hit {
    pub at: u64,
    pub kind: &'static str,
    /// `None`: every host.
    pub host: Option<&'static str>,
    /// `None`: every keeper.
    pub keeper: Option<&'static str>,
}

#[derive(Clone, Debug)]
enum Undo {
    /// The daemon has had the time to deal with its lost guard.
    Spare(&'static str),
    /// A daemon that was told to end has, and starts again.
    Start(&'static str),
    Thaw(&'static str),
    ThawAll(&'static str),
    Links(&'static str),
    ThawNode(char),
    StartNode(char),
    /// With the last restart of a fault that fault is done.
    RestartNode(char, Option<Hit>),
    Room(char),
}

#[derive(Debug)]
pub struct Faults {
    hosts: Vec<&'static str>,
    /// Those that were done, in the order of their beginning.
    pub hits: Vec<Hit>,
    undo: BTreeMap<(u64, u64), Undo>,
    scheduled: u64,
    /// One fault of its own at a time for each host, each host's links and each node.
    pub broken_hosts: BTreeSet<&'static str>,
    pub broken_links: BTreeSet<&'static str>,
    pub broken_nodes: BTreeSet<char>,
    /// A node that lost its data does not vote before.
    pub votes_from: BTreeMap<char, u64>,
    pub hosts_since: BTreeMap<&'static str, u64>,
}

type Act = fn(&mut Faults, &mut Trial, Target) -> Step<bool>;
type Kind = (&'static str, u64, Act);

/// What the dice chose; a fault takes what it needs.
#[derive(Clone, Copy)]
pub struct Target {
    host: &'static str,
    node: char,
    keeper: &'static str,
    span: Duration,
}

/// Every kind with its weight. `false`: cannot be done now, as what it needs is broken already.
const KINDS: &[Kind] = &[
    ("SIGTERM", 4, |f, t, g| f.end_daemon(t, g, "SIGTERM", Signal::SIGTERM)),
    ("SIGKILL", 4, |f, t, g| f.end_daemon(t, g, "SIGKILL", Signal::SIGKILL)),
    ("daemon frozen", 3, Faults::freeze_daemon),
    ("host frozen whole", 3, Faults::freeze_host),
    ("machine lost", 3, Faults::lose_machine),
    ("guard killed", 3, |f, t, g| f.hit_guard(t, g, "guard killed", Signal::SIGKILL)),
    ("guard frozen", 2, |f, t, g| f.hit_guard(t, g, "guard frozen", Signal::SIGSTOP)),
    ("child killed", 2, Faults::kill_child),
    ("killed at birth", 4, Faults::kill_at_birth),
    ("cut: silent", 2, |f, t, g| f.cut(t, g, "cut: silent", &[Mode::BlackHole])),
    ("cut: refused", 2, |f, t, g| f.cut(t, g, "cut: refused", &[Mode::Refuse])),
    ("cut: replies", 2, |f, t, g| f.cut(t, g, "cut: replies", &[Mode::RepliesHeld])),
    ("cut: requests", 2, |f, t, g| f.cut(t, g, "cut: requests", &[Mode::RequestsHeld])),
    ("cut: each link its own", 4, |f, t, g| {
        let modes = [
            Mode::Pass,
            Mode::BlackHole,
            Mode::Refuse,
            Mode::RepliesHeld,
            Mode::RequestsHeld,
            SLOW,
            TOO_SLOW,
        ];
        f.cut(t, g, "cut: each link its own", &modes)
    }),
    ("slow: under node_timeout", 2, |f, t, g| f.cut(t, g, "slow: under node_timeout", &[SLOW])),
    ("slow: over node_timeout", 2, |f, t, g| f.cut(t, g, "slow: over node_timeout", &[TOO_SLOW])),
    ("node frozen", 3, Faults::freeze_node),
    ("node killed", 3, Faults::kill_node),
    ("node restarted empty", 3, |f, t, g| f.restart_nodes(t, "node restarted empty", &[(g.node, 0)])),
    ("nodes rolling", 1, Faults::roll),
    ("nodes all restarted empty", 1, |f, t, _| {
        f.restart_nodes(t, "nodes all restarted empty", &[('A', 0), ('B', 0), ('C', 0)])
    }),
    ("nodes all frozen", 1, Faults::freeze_nodes),
    ("FLUSHALL", 2, Faults::flush),
    ("DEL on one", 2, |f, t, g| f.delete(t, g, "DEL on one", 1)),
    ("DEL on two", 1, |f, t, g| f.delete(t, g, "DEL on two", 2)),
    ("DEL on all", 2, |f, t, g| f.delete(t, g, "DEL on all", 3)),
    ("SCRIPT FLUSH", 1, Faults::forget_scripts),
    ("CLIENT PAUSE", 1, Faults::pause_clients),
    ("node out of memory", 1, Faults::fill_node),
];

/// Those of hosts alone: every node keeps its vote and every link passes.
const OF_HOSTS: &[&str] =
    &["SIGTERM", "SIGKILL", "daemon frozen", "machine lost", "guard killed", "guard frozen", "child killed"];

/// There and back: 90 and 110 ms with ttl 2 s, whose node_timeout is 100 ms.
const SLOW: Mode = Mode::Delay(millis(45));
const TOO_SLOW: Mode = Mode::Delay(millis(55));
const PATIENCE: Duration = secs(6);

impl Faults {
    pub fn new(hosts: &[&'static str]) -> Self {
        Self {
            hosts: hosts.to_vec(),
            hits: Vec::new(),
            undo: BTreeMap::new(),
            scheduled: 0,
            broken_hosts: BTreeSet::new(),
            broken_links: BTreeSet::new(),
            broken_nodes: BTreeSet::new(),
            votes_from: BTreeMap::new(),
            hosts_since: hosts.iter().map(|h| (*h, boot_ns())).collect(),
        }
    }

    pub fn draw(&mut self, t: &mut Trial) -> Step {
        self.draw_among(t, &KINDS.iter().collect::<Vec<_>>())
    }

    pub fn draw_of_hosts(&mut self, t: &mut Trial) -> Step {
        let kinds: Vec<&Kind> = KINDS.iter().filter(|k| OF_HOSTS.contains(&k.0)).collect();
        self.draw_among(t, &kinds)
    }

    fn draw_among(&mut self, t: &mut Trial, kinds: &[&Kind]) -> Step {
        for _ in 0..20 {
            let target = self.target(t);
            let mut ticket = t.chance.below(kinds.iter().map(|k| k.1).sum());
            let kind = kinds.iter().find(|k| {
                let chosen = ticket < k.1;
                ticket = ticket.saturating_sub(k.1);
                chosen
            });
            let (_, _, act) = kind.expect("the ticket is below the sum");
            if act(self, t, target)? {
                return Ok(());
            }
        }
        Ok(())
    }

    pub fn target(&self, t: &mut Trial) -> Target {
        let mut below = |n: usize| usize::try_from(t.chance.below(n as u64)).expect("a small index");
        let (host, keeper) = (self.hosts[below(self.hosts.len())], below(t.setup.keepers.len()));
        let keeper = t.setup.keepers[keeper];
        Target { host, node: t.random_node(), keeper, span: millis(100) + t.chance.span_below(TTL * 2) }
    }

    // === What mends it ===

    fn later(&mut self, after: Duration, undo: Undo) {
        self.scheduled += 1;
        self.undo.insert((boot_ns() + nanos(after), self.scheduled), undo);
    }

    pub fn undo_due(&mut self, t: &mut Trial) -> Step {
        while let Some(first) = self.undo.first_entry().filter(|e| e.key().0 <= boot_ns()) {
            let undo = first.remove();
            self.mend(t, undo)?;
        }
        Ok(())
    }

    pub fn all_mended(&self) -> bool {
        self.undo.is_empty()
    }

    /// Everything, now.
    pub fn heal(&mut self, t: &mut Trial) -> Step {
        t.note("heal");
        while let Some(((due, _), undo)) = self.undo.pop_first() {
            // A restart that is still to come is a fault itself: two at once would be two nodes without data.
            if matches!(undo, Undo::Spare(_) | Undo::RestartNode(..)) {
                t.pause(Duration::from_nanos(due.saturating_sub(boot_ns())));
            }
            self.mend(t, undo)?;
        }
        Ok(())
    }

    fn mend(&mut self, t: &mut Trial, undo: Undo) -> Step {
        match undo {
            Undo::Start(host) => {
                t.daemon(host)?.await_exit(PATIENCE)?;
                t.start(host)?;
                self.back(host);
            }
            Undo::Spare(host) => self.back(host),
            Undo::Thaw(host) => {
                t.signal(host, Signal::SIGCONT)?;
                self.back(host);
            }
            Undo::ThawAll(host) => {
                let lead = t.chance.span_below(millis(10));
                t.thaw_host(host, lead);
                self.back(host);
            }
            Undo::Links(host) => {
                t.set_links(host, Mode::Pass);
                self.broken_links.remove(host);
                self.hosts_since.insert(host, boot_ns());
            }
            Undo::ThawNode(node) => {
                t.note(format!("thaw redis-{node}"));
                t.node(node).thaw();
                self.broken_nodes.remove(&node);
            }
            Undo::StartNode(node) => {
                t.start_node(node)?;
                self.has_forgotten(node);
                self.broken_nodes.remove(&node);
            }
            Undo::RestartNode(node, fault) => {
                t.note(format!("restart redis-{node} empty"));
                t.restart_node_empty(node)?;
                self.has_forgotten(node);
                self.broken_nodes.remove(&node);
                if let Some(fault) = fault {
                    self.done(fault);
                }
            }
            Undo::Room(node) => {
                t.note(format!("redis-{node} is as it was"));
                tell(t, node, &["CONFIG", "SET", "maxmemory", "0"])?;
                self.broken_nodes.remove(&node);
            }
        }
        Ok(())
    }

    fn back(&mut self, host: &'static str) {
        self.broken_hosts.remove(host);
        self.hosts_since.insert(host, boot_ns());
    }

    /// The next vote of a node without data is this far away.
    pub fn has_forgotten(&mut self, node: char) {
        self.votes_from.insert(node, boot_ns() + nanos(QUARANTINE));
    }

    /// A quorum of nodes is within this host's reach and would vote.
    pub fn is_fit(&self, host: &str, nodes: &[char]) -> bool {
        let votes = |node: &&char| {
            !self.broken_nodes.contains(node)
                && self.votes_from.get(node).is_none_or(|from| *from <= boot_ns())
        };
        let quorum = nodes.iter().filter(votes).count() > nodes.len() / 2;
        quorum && !self.broken_hosts.contains(host) && !self.broken_links.contains(host)
    }

    /// A daemon that nothing was done to has not ended.
    pub fn daemons_stand(&self, t: &mut Trial) -> Step {
        let sound = self.hosts.iter().filter(|h| !self.broken_hosts.contains(*h));
        let ended = sound.copied().find(|h| !t.is_running(h));
        check(ended.is_none(), format!("daemon {ended:?} has ended by itself"))
    }

    pub fn begin(
        t: &mut Trial,
        kind: &'static str,
        host: Option<&'static str>,
        keeper: Option<&'static str>,
    ) -> Hit {
        let at = t.note(format!(
            "{kind}: {}{}",
            host.unwrap_or(""),
            keeper.map_or(String::new(), |k| format!(" {k}"))
        ));
        Hit { at, kind, host, keeper }
    }

    pub fn done(&mut self, hit: Hit) {
        let place = self.hits.partition_point(|before| before.at <= hit.at);
        self.hits.insert(place, hit);
    }

    // === Hosts ===

    fn end_daemon(&mut self, t: &mut Trial, g: Target, kind: &'static str, signal: Signal) -> Step<bool> {
        if !self.broken_hosts.insert(g.host) {
            return Ok(false);
        }
        t.daemon(g.host)?.grow_up();
        let hit = Self::begin(t, kind, Some(g.host), None);
        signal_daemon(t, g.host, signal)?;
        self.done(hit);
        // At once beside its old guards, or after a while.
        let at_once = t.chance.below(3) == 0;
        self.later(if at_once { Duration::ZERO } else { g.span / 2 }, Undo::Start(g.host));
        Ok(true)
    }

    fn freeze_daemon(&mut self, t: &mut Trial, g: Target) -> Step<bool> {
        if !self.broken_hosts.insert(g.host) {
            return Ok(false);
        }
        let hit = Self::begin(t, "daemon frozen", Some(g.host), None);
        signal_daemon(t, g.host, Signal::SIGSTOP)?;
        self.done(hit);
        self.later(g.span, Undo::Thaw(g.host));
        Ok(true)
    }

    fn freeze_host(&mut self, t: &mut Trial, g: Target) -> Step<bool> {
        if !self.broken_hosts.insert(g.host) {
            return Ok(false);
        }
        let hit = Self::begin(t, "host frozen whole", Some(g.host), None);
        t.freeze_host(g.host, true)?;
        self.done(hit);
        self.later(TTL / 2 + g.span, Undo::ThawAll(g.host));
        Ok(true)
    }

    /// Nobody is left to release anything.
    fn lose_machine(&mut self, t: &mut Trial, g: Target) -> Step<bool> {
        if !self.broken_hosts.insert(g.host) {
            return Ok(false);
        }
        let hit = Self::begin(t, "machine lost", Some(g.host), None);
        let daemon = t.daemon(g.host)?.pid();
        signal_daemon(t, g.host, Signal::SIGSTOP)?;
        loop {
            let left = procs::descendants(daemon);
            if left.is_empty() {
                break;
            }
            for p in left {
                kill(Pid::from_raw(p.pid), Signal::SIGKILL).ok();
            }
        }
        signal_daemon(t, g.host, Signal::SIGKILL)?;
        self.done(hit);
        self.later(g.span, Undo::Start(g.host));
        Ok(true)
    }

    /// The host that runs the keeper now, if its daemon is sound; with the child's pid.
    fn holder(&self, t: &mut Trial, keeper: &str) -> Step<Option<(&'static str, i32)>> {
        t.witness.look()?;
        let alive = |at: u64| boot_ns().saturating_sub(at) < nanos(millis(150));
        let last = t.witness.lives(keeper).into_iter().next_back().filter(|l| alive(l.end));
        Ok(last.and_then(|life| {
            let name = Trial::holder_of(&life);
            let host = self.hosts.iter().find(|h| **h == name && !self.broken_hosts.contains(*h))?;
            Some((*host, life.pid))
        }))
    }

    fn hit_guard(&mut self, t: &mut Trial, g: Target, kind: &'static str, signal: Signal) -> Step<bool> {
        let Some((host, _)) = self.holder(t, g.keeper)? else { return Ok(false) };
        let Ok(guard) = t.daemon(host)?.guard(g.keeper) else { return Ok(false) };
        let hit = Self::begin(t, kind, Some(host), Some(g.keeper));
        if kill(Pid::from_raw(guard.pid), signal).is_err() {
            return Ok(false);
        }
        self.done(hit);
        self.spare(host, signal);
        Ok(true)
    }

    /// Guard and daemon gone in the same milliseconds leave a setsid'ed grandchild to nobody (tests/README.md), so a host that lost a
    /// guard is left to itself until its daemon has killed the tree: at once, or once the guard's silence was noticed.
    fn spare(&mut self, host: &'static str, signal: Signal) {
        self.broken_hosts.insert(host);
        self.later(if signal == Signal::SIGSTOP { TTL } else { millis(500) }, Undo::Spare(host));
    }

    fn kill_child(&mut self, t: &mut Trial, g: Target) -> Step<bool> {
        let Some((host, pid)) = self.holder(t, g.keeper)? else { return Ok(false) };
        let hit = Self::begin(t, "child killed", Some(host), Some(g.keeper));
        let killed = kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok();
        if killed {
            self.done(hit);
        }
        Ok(killed)
    }

    pub fn hits_of(&self, kind: &str) -> usize {
        self.hits.iter().filter(|hit| hit.kind == kind).count()
    }

    /// Daemon, guard or child, at any moment of the first milliseconds of a term, as an out-of-memory killer would. A guard is killed
    /// for a term to begin, which is a fault of its own.
    pub fn kill_at_birth(&mut self, t: &mut Trial, g: Target) -> Step<bool> {
        let Some((old, _)) = self.holder(t, g.keeper)? else { return Ok(false) };
        let Ok(guard) = t.daemon(old)?.guard(g.keeper) else { return Ok(false) };
        let mut known = BTreeMap::new();
        for host in self.hosts.iter().filter(|h| !self.broken_hosts.contains(*h)) {
            let daemon = t.daemon(host)?.pid();
            // A guard that is killed leaves its orphans to the daemon: they are no newborns.
            if *host != old {
                known.insert(*host, (daemon, procs::armed_guards_of(daemon)));
            }
        }
        let hit = Self::begin(t, "guard killed", Some(old), Some(g.keeper));
        if kill(Pid::from_raw(guard.pid), Signal::SIGKILL).is_err() {
            return Ok(false);
        }
        self.done(hit);
        self.spare(old, Signal::SIGKILL);
        let deadline = Instant::now() + TTL;
        let newborn = loop {
            let born = known.iter().find_map(|(host, (daemon, before))| {
                let new = procs::armed_guards_of(*daemon).into_iter().find(|pid| !before.contains(pid));
                new.map(|guard| (*host, guard))
            });
            match born {
                Some(born) => break born,
                None if Instant::now() > deadline => return Ok(true),
                None => std::thread::sleep(Duration::from_micros(100)),
            }
        };
        let (host, guard) = newborn;
        let wait = t.chance.span_below(millis(8));
        t.pause(wait);
        self.broken_hosts.insert(host);
        let hit = Self::begin(t, "killed at birth", Some(host), Some(g.keeper));
        let killed = match t.chance.below(3) {
            0 => {
                signal_daemon(t, host, Signal::SIGKILL)?;
                self.later(g.span / 2, Undo::Start(host));
                true
            }
            1 => {
                t.note(format!("SIGKILL to newborn guard {guard}"));
                self.spare(host, Signal::SIGKILL);
                kill(Pid::from_raw(guard), Signal::SIGKILL).is_ok()
            }
            _ => {
                let child = procs::children_of(guard).into_iter().next();
                t.note(format!("SIGKILL to newborn child {child:?} of guard {guard}"));
                self.spare(host, Signal::SIGKILL);
                kill(Pid::from_raw(child.unwrap_or(guard)), Signal::SIGKILL).is_ok()
            }
        };
        if killed {
            self.done(hit);
        }
        Ok(true)
    }

    // === Links ===

    /// Each link of the host gets one of these.
    fn cut(&mut self, t: &mut Trial, g: Target, kind: &'static str, modes: &[Mode]) -> Step<bool> {
        let mut any = || modes[usize::try_from(t.chance.below(modes.len() as u64)).expect("a small index")];
        let chosen: Vec<Mode> = (0..t.nodes.len()).map(|_| any()).collect();
        if chosen.iter().all(|mode| *mode == Mode::Pass) || !self.broken_links.insert(g.host) {
            return Ok(false);
        }
        let hit = Self::begin(t, kind, Some(g.host), None);
        for (node, mode) in t.node_names().into_iter().zip(chosen) {
            t.set_link(g.host, node, mode);
        }
        self.done(hit);
        self.later(g.span, Undo::Links(g.host));
        Ok(true)
    }

    // === Nodes ===

    fn freeze_node(&mut self, t: &mut Trial, g: Target) -> Step<bool> {
        if !self.broken_nodes.insert(g.node) {
            return Ok(false);
        }
        let hit = Self::begin(t, "node frozen", None, None);
        t.note(format!("freeze redis-{}", g.node));
        t.node(g.node).freeze();
        self.done(hit);
        self.later(g.span, Undo::ThawNode(g.node));
        Ok(true)
    }

    fn freeze_nodes(&mut self, t: &mut Trial, g: Target) -> Step<bool> {
        if !self.broken_nodes.is_empty() {
            return Ok(false);
        }
        let hit = Self::begin(t, "nodes all frozen", None, None);
        for node in t.node_names() {
            self.broken_nodes.insert(node);
            t.node(node).freeze();
            self.later(g.span, Undo::ThawNode(node));
        }
        self.done(hit);
        Ok(true)
    }

    fn kill_node(&mut self, t: &mut Trial, g: Target) -> Step<bool> {
        if !self.broken_nodes.insert(g.node) {
            return Ok(false);
        }
        let hit = Self::begin(t, "node killed", None, None);
        t.note(format!("kill redis-{}", g.node));
        t.node(g.node).kill();
        self.done(hit);
        self.later(g.span, Undo::StartNode(g.node));
        Ok(true)
    }

    /// In the order of their times.
    fn restart_nodes(&mut self, t: &mut Trial, kind: &'static str, nodes: &[(char, u64)]) -> Step<bool> {
        if nodes.iter().any(|(node, _)| self.broken_nodes.contains(node)) {
            return Ok(false);
        }
        let mut hit = Some(Self::begin(t, kind, None, None));
        for (i, (node, after_ms)) in nodes.iter().enumerate() {
            self.broken_nodes.insert(*node);
            let done = hit.take_if(|_| i + 1 == nodes.len());
            self.later(millis(*after_ms), Undo::RestartNode(*node, done));
        }
        Ok(true)
    }

    fn roll(&mut self, t: &mut Trial, _: Target) -> Step<bool> {
        let mut at = 0;
        let nodes: Vec<(char, u64)> = t
            .node_names()
            .into_iter()
            .map(|node| {
                at += 200 + t.chance.below(900);
                (node, at)
            })
            .collect();
        self.restart_nodes(t, "nodes rolling", &nodes)
    }

    /// Sound nodes, at most that many, beginning with the chosen one.
    fn sound_nodes(&self, t: &Trial, g: Target, most: usize) -> Vec<char> {
        let mut names = t.node_names();
        let turn = names.iter().position(|n| *n == g.node).unwrap_or(0);
        names.rotate_left(turn);
        names.into_iter().filter(|n| !self.broken_nodes.contains(n)).take(most).collect()
    }

    fn flush(&mut self, t: &mut Trial, g: Target) -> Step<bool> {
        let most = 1 + usize::try_from(t.chance.below(3)).expect("a small number");
        let nodes = self.sound_nodes(t, g, most);
        if nodes.is_empty() {
            return Ok(false);
        }
        let hit = Self::begin(t, "FLUSHALL", None, None);
        for node in &nodes {
            t.note(format!("FLUSHALL on redis-{node}"));
            tell(t, *node, &["FLUSHALL"])?;
            self.has_forgotten(*node);
        }
        self.done(hit);
        Ok(true)
    }

    /// A fault only where there is something to delete.
    fn delete(&mut self, t: &mut Trial, g: Target, kind: &'static str, most: usize) -> Step<bool> {
        let key = format!("redlock:{}", g.keeper);
        let mut nodes = self.sound_nodes(t, g, 3);
        nodes.retain(|node| matches!(t.node(*node).get(&key), Ok(Some(_))));
        nodes.truncate(most);
        if nodes.len() < most {
            return Ok(false);
        }
        let hit = Self::begin(t, kind, None, Some(g.keeper));
        let mut deleted = 0;
        for node in nodes {
            deleted += usize::from(tell(t, node, &["DEL", &key])? == Reply::Number(1));
        }
        if deleted == most {
            self.done(hit);
        }
        Ok(true)
    }

    fn forget_scripts(&mut self, t: &mut Trial, g: Target) -> Step<bool> {
        let nodes = self.sound_nodes(t, g, 3);
        if nodes.is_empty() {
            return Ok(false);
        }
        let hit = Self::begin(t, "SCRIPT FLUSH", None, None);
        for node in nodes {
            tell(t, node, &["SCRIPT", "FLUSH"])?;
        }
        self.done(hit);
        Ok(true)
    }

    /// Takes connections and answers nothing, without being stopped.
    fn pause_clients(&mut self, t: &mut Trial, g: Target) -> Step<bool> {
        if !self.broken_nodes.insert(g.node) {
            return Ok(false);
        }
        let hit = Self::begin(t, "CLIENT PAUSE", None, None);
        // It cannot be taken back, so it is over before the calm after the storm is.
        let span = g.span.min(millis(1500));
        tell(t, g.node, &["CLIENT", "PAUSE", &span.as_millis().to_string()])?;
        self.done(hit);
        self.later(span + millis(200), Undo::ThawNode(g.node));
        Ok(true)
    }

    fn fill_node(&mut self, t: &mut Trial, g: Target) -> Step<bool> {
        if !self.broken_nodes.insert(g.node) {
            return Ok(false);
        }
        let hit = Self::begin(t, "node out of memory", None, None);
        tell(t, g.node, &["CONFIG", "SET", "maxmemory", "1"])?;
        self.done(hit);
        self.later(g.span, Undo::Room(g.node));
        Ok(true)
    }
}

/// To a daemon that is there to get it.
fn signal_daemon(t: &mut Trial, host: &str, signal: Signal) -> Step {
    check(t.is_running(host), format!("daemon {host} has ended by itself"))?;
    t.signal(host, signal).map(drop)
}

/// A command that the node carries out.
fn tell(t: &mut Trial, node: char, words: &[&str]) -> Step<Reply> {
    let reply = t.node(node).ask(words)?;
    check(!matches!(reply, Reply::Error(_)), format!("redis-{node} answered {words:?} with {reply:?}"))?;
    Ok(reply)
}
