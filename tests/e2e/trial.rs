//! One trial of one scenario: its nodes, links and daemons, the hand that breaks them, and what must hold at the end.

use crate::cgroup::{self, Groups};
use crate::checker::{Event, Fault, Freeze, Life, Record, Violation, worst_overlap};
use crate::clock::{Chance, boot_ns, ms, nanos};
use crate::cluster::Node;
use crate::daemon::{Daemon, Start};
use crate::history;
use crate::ledger::{self, Ledger};
use crate::legacy::{self, Client, Legacy};
use crate::naive::Naive;
use crate::procs::{self, Proc};
use crate::proxy::{Mode, Proxy};
use crate::registers::Registers;
use crate::step::{Step, check, failure};
use crate::witness::Witness;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub const KEEPER: &str = "oracle";
pub const TTL: Duration = Duration::from_secs(2);
/// Where leases are not the story: none ends, and no guard is missed, because a process had no turn for some hundred milliseconds.
pub const CALM: &str = "6s";
/// `ttl − drift`: no evidence of a cut-off child may be younger (DESIGN 3).
pub const VALID: Duration = Duration::from_millis(1978);
/// One extension period: a fault at a random moment of it meets every phase of a term.
const PERIOD: Duration = Duration::from_secs(1);
const GLANCE: Duration = Duration::from_millis(2);
/// For what must happen, and not soon.
pub const LONG: Duration = Duration::from_secs(15);
/// A guard that thaws finds its deadline gone and kills at once; on a busy machine its turn takes a while to come.
const GUARD_WAKES: Duration = Duration::from_secs(1);
/// What a hand-over may take that somebody was told of. Every lock has more left, as it is extended when half of its ttl is over: who
/// waits for its end is later.
pub const AT_ONCE: Duration = Duration::from_millis(900);

pub const fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

pub const fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What a scenario stands on. The default: two hosts, three nodes asked directly, ttl 2 s, no quarantine.
#[derive(Clone, Debug)]
pub struct Setup {
    pub hosts: Vec<&'static str>,
    /// 0: engine "local".
    pub nodes: usize,
    pub keepers: Vec<&'static str>,
    pub ttl: &'static str,
    /// "0s" where nothing restarts or is flushed; else `WITH_QUARANTINE`.
    pub quarantine: &'static str,
    /// Arguments of the probe.
    pub child: Vec<&'static str>,
    /// Another command on that host.
    pub command_of: Vec<(&'static str, Vec<&'static str>)>,
    /// More lines of each `[[keeper]]`.
    pub keeper_lines: &'static str,
    /// And more of them on that host.
    pub lines_of: Vec<(&'static str, &'static str)>,
    pub proxied: bool,
    pub cgroup: bool,
    /// Each host is told of one node only, its own: the mistake that the checker must see.
    pub disjoint: bool,
    pub deaf_stderr: bool,
    pub log_level: &'static str,
    /// A wrong daemon in the place of keeperd, for a control.
    pub naive: Option<Naive>,
    /// The daemons take the trial's `journal.sock` for the journal.
    pub journal: bool,
    /// And its `notify.sock` for systemd.
    pub notify: bool,
}

/// The least that is safe with ttl 2 s: ttl × 1.01 + 2 s.
pub const WITH_QUARANTINE: &str = "4100ms";
pub const QUARANTINE: Duration = Duration::from_millis(4100);

impl Default for Setup {
    fn default() -> Self {
        Self {
            hosts: vec!["a", "b"],
            nodes: 3,
            keepers: vec![KEEPER],
            ttl: "2s",
            quarantine: "0s",
            child: Vec::new(),
            command_of: Vec::new(),
            keeper_lines: "",
            lines_of: Vec::new(),
            proxied: false,
            cgroup: true,
            disjoint: false,
            deaf_stderr: false,
            log_level: "info",
            naive: None,
            journal: false,
            notify: false,
        }
    }
}

/// Time as it was for those who are waited for: what the whole machine stood still, the one who looks included, does not count.
struct Waited {
    whole: Duration,
    last: u64,
}

impl Waited {
    /// The longest that counts from one look to the next, which come every few milliseconds.
    const TURN_MAX: Duration = Duration::from_millis(50);

    fn since(at: u64) -> Waited {
        let now = boot_ns();
        Waited { whole: Duration::from_nanos(now.saturating_sub(at)), last: now }
    }

    fn so_far(&mut self) -> Duration {
        let now = boot_ns();
        self.whole += Duration::from_nanos(now.saturating_sub(self.last)).min(Self::TURN_MAX);
        self.last = now;
        self.whole
    }
}

pub struct Trial {
    id: String,
    dir: PathBuf,
    pub chance: Chance,
    pub setup: Setup,
    pub nodes: Vec<Node>,
    links: BTreeMap<(String, char), Proxy>,
    daemons: BTreeMap<String, Daemon>,
    legacies: BTreeMap<String, Legacy>,
    generations: BTreeMap<String, u32>,
    pub witness: Witness,
    /// What the nodes did, and what the children wrote; `None` where times are measured and nothing may disturb.
    ledger: Option<Arc<Mutex<Ledger>>>,
    registers: Option<Arc<Mutex<Registers>>>,
    nemesis: File,
    figures: Vec<String>,
    /// A control group for each host, where that can be.
    groups: Option<Groups>,
    leaves: BTreeSet<String>,
    /// Processes of hosts that are frozen whole.
    frozen: BTreeMap<String, Vec<i32>>,
    /// A lock may stand for the rest of its ttl after the stop: its holder could not release it.
    pub locks_may_linger: bool,
    /// A daemon was killed: its guard released the lock on a quorum, and had no time for a node that was slow to answer.
    killed: bool,
    /// A control: this trial passes if and only if the checker finds each of these.
    pub must_be_flagged: &'static [Fault],
}

impl Trial {
    pub fn new(id: String, dir: &Path, chance: Chance, observed: bool) -> Step<Self> {
        let nemesis = OpenOptions::new().append(true).create(true).open(dir.join("nemesis.log"))?;
        Ok(Self {
            groups: Groups::of_trial(&id),
            id,
            dir: dir.into(),
            chance,
            setup: Setup::default(),
            nodes: Vec::new(),
            links: BTreeMap::new(),
            daemons: BTreeMap::new(),
            legacies: BTreeMap::new(),
            generations: BTreeMap::new(),
            witness: Witness::of(dir.join("probe.log")),
            ledger: None,
            registers: if observed { Some(Registers::open(dir)?) } else { None },
            nemesis,
            figures: Vec::new(),
            leaves: BTreeSet::new(),
            frozen: BTreeMap::new(),
            locks_may_linger: false,
            killed: false,
            must_be_flagged: &[],
        })
    }

    // === Setting the stage ===

    /// Nodes, links and daemons, all running; returns the first child.
    pub fn begin(&mut self, setup: Setup) -> Step<Life> {
        self.prepare(setup)?;
        self.start_nodes()?;
        self.start_all()?;
        let first = self.first_child()?;
        if self.setup.naive.is_none() {
            self.all_know_their_role()?;
        }
        Ok(first)
    }

    /// A child runs before its own daemon says so, and before the others have seen that, or have begun at all.
    fn all_know_their_role(&mut self) -> Step {
        for host in self.setup.hosts.clone() {
            self.status_shows(host, "what its role is", |keeper| match keeper["role"].as_str() {
                Some("leader") => !keeper["pid"].is_null(),
                Some("standby") => !keeper["holder"].is_null(),
                Some("candidate") | None => false,
                Some(_) => true,
            })?;
        }
        Ok(())
    }

    /// What a daemon has logged so far.
    pub fn log_of(&self, host: &str) -> Step<String> {
        Ok(std::fs::read_to_string(self.dir.join(format!("daemon-{host}.log")))?)
    }

    /// Waits until a daemon's log has these words: a log, too, is written after what it tells has happened.
    pub fn log_says(&mut self, host: &str, words: &str) -> Step {
        let until = boot_ns() + nanos(LONG);
        while !self.log_of(host)?.contains(words) {
            check(boot_ns() < until, format!("the log of {host} does not say {words:?}"))?;
            self.pause(millis(2));
        }
        Ok(())
    }

    pub fn prepare(&mut self, setup: Setup) -> Step {
        for name in ('A'..='Z').take(setup.nodes) {
            self.nodes.push(Node::plan(name, &self.id, &self.dir)?);
        }
        std::fs::create_dir_all(self.locks_dir())?;
        self.ledger = self.registers.as_ref().map(|_| Arc::new(Mutex::new(Ledger::new(setup.nodes))));
        self.setup = setup;
        Ok(())
    }

    pub fn start_nodes(&mut self) -> Step {
        for name in self.node_names() {
            self.start_node(name)?;
        }
        Ok(())
    }

    /// Empty, and watched from the first command on: where there are links, nobody reaches it before.
    pub fn start_node(&mut self, name: char) -> Step {
        self.note(format!("start redis-{name}"));
        let links: Vec<(&Proxy, Mode)> =
            self.links.iter().filter(|((_, n), _)| *n == name).map(|(_, link)| (link, link.mode())).collect();
        links.iter().for_each(|(link, _)| link.set(Mode::Refuse));
        let node = self.nodes.iter_mut().find(|n| n.name == name).expect("a node of this trial");
        node.start()?;
        if let Some(ledger) = &self.ledger {
            ledger::watch(name, node.port, ledger)?;
            ledger.lock().expect("no thread panics with it").gaps |=
                links.is_empty() && !self.daemons.is_empty();
        }
        links.iter().for_each(|(link, mode)| link.set(*mode));
        Ok(())
    }

    pub fn restart_node_empty(&mut self, name: char) -> Step {
        self.node(name).kill();
        self.start_node(name)
    }

    pub fn start_all(&mut self) -> Step {
        self.setup.hosts.clone().into_iter().try_for_each(|host| self.start(host))
    }

    /// Starts, or starts again, the daemon of a host.
    pub fn start(&mut self, host: &str) -> Step {
        if self.setup.proxied {
            for node in &self.nodes {
                if let std::collections::btree_map::Entry::Vacant(e) =
                    self.links.entry((host.into(), node.name))
                {
                    e.insert(Proxy::start(node.port)?);
                }
            }
        }
        let generation = self.generations.entry(host.into()).or_insert(0);
        *generation += 1;
        let start = Start {
            host: host.into(),
            generation: *generation,
            config: self.config_of(host),
            cgroup: self.setup.cgroup,
            deaf_stderr: self.setup.deaf_stderr,
            log_level: self.setup.log_level,
            env: self.sockets(),
            naive: self.setup.naive,
        };
        let spawn = || Daemon::start(&self.id, &self.dir, &start);
        let started = self.groups.as_ref().and_then(|groups| groups.inside(host, spawn));
        let daemon = started.unwrap_or_else(spawn)?;
        self.note(format!("start daemon {host}, pid {}", daemon.pid()));
        self.daemons.insert(host.into(), daemon);
        Ok(())
    }

    fn sockets(&self) -> Vec<(String, PathBuf)> {
        let sockets = [
            (self.setup.journal, "KEEPERD_JOURNAL_SOCKET", "journal.sock"),
            (self.setup.notify, "NOTIFY_SOCKET", "notify.sock"),
        ];
        let wanted = sockets.into_iter().filter(|(wanted, _, _)| *wanted);
        wanted.map(|(_, name, file)| (name.to_owned(), self.dir.join(file))).collect()
    }

    /// From now on keepers without keeperd can be started; they write under this name. Skips the trial where they cannot be had.
    pub fn prepare_legacies(&mut self, record_as: &str) -> Step {
        legacy::available()?;
        let ports: Vec<u16> = self.nodes.iter().map(|n| n.port).collect();
        legacy::prepare(&self.dir, &ports, KEEPER, record_as, &self.witness.path)
    }

    pub fn start_legacy(&mut self, name: &str, client: Client) -> Step {
        let generation = self.generations.entry(name.into()).or_insert(0);
        *generation += 1;
        let legacy = Legacy::start(&self.id, &self.dir, name, *generation, client)?;
        self.note(format!("start {name}, pid {}: {client:?}", legacy.pid()));
        self.legacies.insert(name.into(), legacy);
        Ok(())
    }

    pub fn legacy(&mut self, name: &str) -> Step<&mut Legacy> {
        self.legacies.get_mut(name).ok_or_else(|| failure(format!("no legacy keeper {name}")))
    }

    /// After SIGKILL nobody releases what it held.
    pub fn signal_legacy(&mut self, name: &str, signal: Signal) -> Step<u64> {
        self.locks_may_linger |= signal == Signal::SIGKILL;
        self.note(format!("{signal} to {name}"));
        Ok(self.legacy(name)?.signal(signal))
    }

    fn config_of(&self, host: &str) -> String {
        let lock = if self.setup.nodes == 0 {
            format!("engine = \"local\"\ndirectory = {:?}\nttl = \"{}\"\n", self.locks_dir(), self.setup.ttl)
        } else {
            let Setup { ttl, quarantine, .. } = &self.setup;
            let nodes = self.addresses(host);
            format!("nodes = {nodes:?}\nttl = \"{ttl}\"\nrestart_quarantine = \"{quarantine}\"\n")
        };
        let socket = self.dir.join(format!("{host}.sock"));
        let mut text = format!("host = \"{host}\"\n[lock]\n{lock}[control]\nsocket = {socket:?}\n");
        for keeper in &self.setup.keepers {
            let (command, lines) = (self.command_of(host), self.setup.keeper_lines);
            let own = self.setup.lines_of.iter().find(|(of, _)| *of == host).map_or("", |(_, lines)| lines);
            text += &format!("[[keeper]]\nname = \"{keeper}\"\ncommand = {command:?}\n{lines}\n{own}\n");
        }
        text
    }

    fn addresses(&self, host: &str) -> Vec<String> {
        let position = self.setup.hosts.iter().position(|h| *h == host);
        let told = |i: usize| !self.setup.disjoint || Some(i) == position;
        let nodes = self.nodes.iter().enumerate().filter(|(i, _)| told(*i)).map(|(_, n)| n);
        let port = |n: &Node| self.links.get(&(host.to_owned(), n.name)).map_or(n.port, Proxy::port);
        nodes.map(|n| format!("127.0.0.1:{}", port(n))).collect()
    }

    fn command_of(&self, host: &str) -> Vec<String> {
        if let Some((_, other)) = self.setup.command_of.iter().find(|(h, _)| *h == host)
            && other.first().is_some_and(|word| !word.starts_with("--"))
        {
            return other.iter().map(|w| (*w).to_owned()).collect();
        }
        let own = std::env::current_exe().expect("own path").display().to_string();
        let mut command = vec![own, "probe".into(), self.witness.path.display().to_string()];
        let other = self.setup.command_of.iter().find(|(h, _)| *h == host).map(|(_, words)| words);
        command.extend(other.unwrap_or(&self.setup.child).iter().map(|w| (*w).to_owned()));
        command
    }

    pub fn locks_dir(&self) -> PathBuf {
        self.dir.join("locks")
    }

    // === The nemesis ===

    /// One line of the trial's own log, with the instant.
    pub fn note(&mut self, text: impl AsRef<str>) -> u64 {
        let at = boot_ns();
        writeln!(self.nemesis, "{at} {}", text.as_ref()).ok();
        at
    }

    pub fn pause(&self, span: Duration) {
        std::thread::sleep(span);
    }

    /// A fault of one node is a minority only while the others have the lock: a term may begin on two of three, and contenders' votes
    /// are in the way of the third for some milliseconds.
    pub fn held_by_all(&mut self) -> Step {
        let end = boot_ns() + nanos(LONG);
        loop {
            let values: Vec<Option<String>> =
                self.nodes.iter().map(|node| node.get(&Self::lock_key()).ok().flatten()).collect();
            if values.iter().all(|value| value.is_some() && *value == values[0]) {
                return Ok(());
            }
            check(boot_ns() < end, format!("not all nodes vote alike long after the election: {values:?}"))?;
            self.pause(GLANCE);
        }
    }

    /// Waits for what must come to hold, and not soon.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Trial) -> Step<bool>) -> Step {
        let end = boot_ns() + nanos(LONG);
        while !holds(self)? {
            check(boot_ns() < end, format!("not within {LONG:?}: {what}"))?;
            self.pause(millis(10));
        }
        Ok(())
    }

    /// Waits until the keeper's object in a daemon's `status` is so: it is written after what it tells has happened, and before it
    /// listens a daemon does not answer.
    pub fn status_shows(&mut self, host: &str, what: &str, shows: impl Fn(&Value) -> bool) -> Step<Value> {
        let (mut status, mut seen) = (Value::Null, String::new());
        let shown = self.until(what, |t| {
            match t.daemon(host)?.keeper_status(KEEPER) {
                Ok(now) => status = now,
                Err(failure) => seen = failure.why,
            }
            Ok(shows(&status))
        });
        shown.map_err(|f| failure(format!("{}; status of {host}: {status} {seen}", f.why)))?;
        Ok(status)
    }

    /// Waits so that the next fault falls on a random phase of the term.
    pub fn random_moment(&mut self) {
        let span = self.chance.span_below(PERIOD);
        self.pause(span);
    }

    pub fn daemon(&mut self, host: &str) -> Step<&mut Daemon> {
        self.daemons.get_mut(host).ok_or_else(|| failure(format!("no daemon {host}")))
    }

    /// The daemon of the host that a life names (its generation left out).
    pub fn holder_of(life: &Life) -> String {
        life.host.split('.').next().unwrap_or_default().into()
    }

    pub fn signal(&mut self, host: &str, signal: Signal) -> Step<u64> {
        self.killed |= signal == Signal::SIGKILL;
        self.note(format!("{signal} to daemon {host}"));
        Ok(self.daemon(host)?.signal(signal))
    }

    pub fn node_names(&self) -> Vec<char> {
        self.nodes.iter().map(|n| n.name).collect()
    }

    pub fn node(&mut self, name: char) -> &mut Node {
        self.nodes.iter_mut().find(|n| n.name == name).expect("a node of this trial")
    }

    pub fn random_node(&mut self) -> char {
        let index = self.chance.below(self.nodes.len() as u64);
        self.nodes[usize::try_from(index).expect("a small index")].name
    }

    /// Changes the links between a host and all nodes.
    pub fn set_links(&mut self, host: &str, mode: Mode) -> u64 {
        let at = self.note(format!("links of {host}: {mode:?}"));
        for (_, link) in self.links.iter().filter(|((h, _), _)| h == host) {
            link.set(mode);
        }
        at
    }

    pub fn set_link(&mut self, host: &str, node: char, mode: Mode) -> u64 {
        let at = self.note(format!("link {host} to redis-{node}: {mode:?}"));
        if let Some(link) = self.links.get(&(host.to_owned(), node)) {
            link.set(mode);
        }
        at
    }

    /// Daemon, guards and children: all of the host's processes, as a machine that stands still.
    pub fn freeze_host(&mut self, host: &str, excused: bool) -> Step {
        let from = self.note(format!("freeze all of {host}"));
        if excused {
            self.witness.judge.freezes.push(Freeze { host: host.into(), from, until: u64::MAX });
        }
        let daemon = self.daemon(host)?.pid();
        let mut frozen = vec![daemon];
        kill(Pid::from_raw(daemon), Signal::SIGSTOP)?;
        // A process that was forked meanwhile is found by the next look.
        loop {
            let new: Vec<i32> = procs::descendants(daemon)
                .iter()
                .map(|p| p.pid)
                .filter(|pid| !frozen.contains(pid))
                .collect();
            if new.is_empty() {
                break;
            }
            for pid in &new {
                kill(Pid::from_raw(*pid), Signal::SIGSTOP).ok();
            }
            frozen.extend(new);
        }
        self.frozen.insert(host.into(), frozen);
        Ok(())
    }

    /// The children of a frozen host alone, until one has written beside its successor: the worst order there is.
    pub fn wake_children(&mut self, host: &str) -> Step {
        let stale = self.registers().map_or(0, |r| r.stale_count);
        let at = self.note(format!("thaw the children of {host}"));
        let guards = procs::children_of(self.daemon(host)?.pid());
        let frozen = self.frozen.get(host).into_iter().flatten();
        for pid in frozen.skip(1).filter(|pid| !guards.contains(pid)) {
            kill(Pid::from_raw(*pid), Signal::SIGCONT).ok();
        }
        let ticks =
            |r: &&Record| r.at > at && r.event == Event::Tick && r.instance.split('.').next() == Some(host);
        // A write that finds no room in the registers' queue is lost: the next one comes.
        while self.registers().is_some_and(|r| r.stale_count == stale)
            || !self.witness.records().iter().rev().take(5000).any(|r| ticks(&r))
        {
            check(boot_ns() < at + nanos(LONG), format!("no child of {host} woke up and wrote"))?;
            self.pause(GLANCE);
            self.witness.look()?;
        }
        Ok(())
    }

    /// The children first and the guards so much later.
    pub fn thaw_host(&mut self, host: &str, lead: Duration) {
        let Some(frozen) = self.frozen.remove(host) else { return };
        let guards = self.daemon(host).map(|d| procs::children_of(d.pid())).unwrap_or_default();
        let (first, last): (Vec<i32>, Vec<i32>) =
            frozen.iter().rev().partition(|pid| !guards.contains(pid) && Some(*pid) != frozen.first());
        for (pids, pause) in [(first, lead), (last, Duration::ZERO)] {
            for pid in pids {
                kill(Pid::from_raw(pid), Signal::SIGCONT).ok();
            }
            self.pause(pause);
        }
        let until = self.note(format!("thaw all of {host}")) + nanos(GUARD_WAKES);
        let open = |f: &&mut Freeze| f.host == host && f.until == u64::MAX;
        self.witness.judge.freezes.iter_mut().filter(open).for_each(|f| f.until = until);
    }

    pub fn lock_key() -> String {
        format!("redlock:{KEEPER}")
    }

    /// When the lock will have expired on a quorum.
    pub fn quorum_free_at(&self) -> Step<u64> {
        let key = Self::lock_key();
        let mut ends = Vec::new();
        for node in &self.nodes {
            ends.push(node.expires_at(&key)?.unwrap_or_else(boot_ns));
        }
        ends.sort_unstable();
        ends.get(self.nodes.len() / 2).copied().ok_or_else(|| failure("no nodes"))
    }

    // === The witness ===

    pub fn figure(&mut self, text: impl Into<String>) {
        self.figures.push(text.into());
    }

    pub fn figures(&self) -> String {
        self.figures.join(", ")
    }

    /// The first child, after the quarantine if there is one.
    pub fn first_child(&mut self) -> Step<Life> {
        let quarantine = if self.setup.quarantine == "0s" { Duration::ZERO } else { QUARANTINE };
        self.await_start("a first child", 0, quarantine + LONG, |_| true)
    }

    /// The next child on another host.
    pub fn successor(&mut self, old: &Life, since: u64, within: Duration) -> Step<Life> {
        self.successor_of_host(&Self::holder_of(old), since, within)
    }

    /// The next child on any host but this.
    pub fn successor_of_host(&mut self, old: &str, since: u64, within: Duration) -> Step<Life> {
        let elsewhere = |host: &str| host.split('.').next() != Some(old);
        self.await_start("a child on another host", since, within, elsewhere)
    }

    /// The next child, wherever.
    pub fn next_child(&mut self, since: u64, within: Duration) -> Step<Life> {
        self.await_start("another child", since, within, |_| true)
    }

    fn await_start(
        &mut self,
        what: &str,
        since: u64,
        within: Duration,
        on: impl Fn(&str) -> bool,
    ) -> Step<Life> {
        let from = since.max(1).min(boot_ns());
        let begun = if since == 0 { boot_ns() } else { from };
        let mut waited = Waited::since(begun);
        loop {
            self.witness.look()?;
            let fits = |r: &&Record| r.at >= from && on(r.instance.split(':').next().unwrap_or_default());
            let started = self.witness.starts(KEEPER).find(fits).map(|r| r.instance.clone());
            if let Some(instance) = started {
                return self.life(&instance);
            }
            check(waited.so_far() <= within, format!("no sign of {what} within {}", ms(nanos(within))))?;
            self.pause(GLANCE);
        }
    }

    /// What is known by now of that child.
    pub fn life(&mut self, instance: &str) -> Step<Life> {
        self.witness.look()?;
        let found = self.witness.lives(KEEPER).into_iter().find(|l| l.instance == instance);
        found.ok_or_else(|| failure(format!("no records of {instance}")))
    }

    /// For this long nothing may happen to the child: it ticks on, and nobody else starts.
    pub fn runs_on(&mut self, child: &Life, span: Duration) -> Step {
        let since = boot_ns();
        let (mut last, mut silence) = (0, Waited::since(since));
        while boot_ns() < since + nanos(span) {
            self.witness.look()?;
            let other = self.witness.starts(KEEPER).find(|r| r.at > since).map(|r| r.instance.clone());
            if let Some(other) = other {
                return Err(failure(format!("{other} started where {} should have run on", child.instance)));
            }
            let fresh = self.witness.records().iter().rev().take(2000).find(|r| r.instance == child.instance);
            let fresh = fresh.map_or(0, |r| r.at);
            if fresh != last {
                (last, silence) = (fresh, Waited::since(boot_ns()));
            }
            let dead = || {
                let silent = ms(boot_ns().saturating_sub(fresh));
                format!("{} is silent since {silent} and should have run on", child.instance)
            };
            check(silence.so_far() < millis(500), dead())?;
            self.pause(millis(10));
        }
        Ok(())
    }

    /// The child, cut off at `cut` at the latest, gave its last sign of life before its lease ran out; prints how soon.
    pub fn died_with_its_lease(&mut self, child: &Life, cut: u64) -> Step {
        let life = self.life(&child.instance)?;
        self.figure(format!("old tree dead after {}", ms(life.end.saturating_sub(cut))));
        let late =
            || format!("{} still lived {} after the fault", life.instance, ms(life.end.saturating_sub(cut)));
        check(life.end <= cut + nanos(VALID), late())
    }

    /// Somebody runs the keeper at the latest when `within` is over.
    pub fn somebody_runs(&mut self, since: u64, within: Duration) -> Step<Life> {
        loop {
            self.witness.look()?;
            let last =
                self.witness.records().iter().rev().find(|r| r.keeper == KEEPER && r.event == Event::Tick);
            let (at, instance) = last.map_or((0, String::new()), |r| (r.at, r.instance.clone()));
            let settled = at > since && boot_ns() - at < nanos(millis(100));
            let over = boot_ns() > since + nanos(within);
            if settled && (over || self.witness.starts(KEEPER).any(|r| r.at > since)) {
                let life = self.life(&instance)?;
                let how = if life.start > since { ms(life.start - since) } else { "never gone".into() };
                self.figure(format!("running again: {how}"));
                return Ok(life);
            }
            // A running child may just have paused.
            let late = boot_ns() > since + nanos(within + secs(1));
            check(!late, format!("nobody runs {KEEPER} {} later", ms(nanos(within))))?;
            self.pause(GLANCE);
        }
    }

    /// Whoever ticks next.
    pub fn anybody(&mut self, within: Duration) -> Step<Life> {
        let since = boot_ns();
        let mut waited = Waited::since(since);
        loop {
            self.witness.look()?;
            let ticks = |r: &&Record| r.keeper == KEEPER && r.event == Event::Tick && r.at > since;
            if let Some(r) = self.witness.records().iter().rev().take(5000).find(ticks) {
                let instance = r.instance.clone();
                return self.life(&instance);
            }
            check(waited.so_far() < within, format!("nobody runs {KEEPER} {} later", ms(nanos(within))))?;
            self.pause(GLANCE);
        }
    }

    // === The end ===

    /// Heals what is broken, stops everything politely and checks what must hold after every story.
    pub fn finish(&mut self) -> Step {
        if !self.must_be_flagged.is_empty() {
            return self.flagged();
        }
        self.heal();
        self.locks_have_an_expiry()?;
        self.no_vote_is_left_behind()?;
        self.stop_legacies()?;
        self.stop_daemons()?;
        self.locks_are_gone()?;
        self.nothing_remains()?;
        self.sound()
    }

    fn heal(&mut self) {
        self.note("heal and stop");
        self.setup.hosts.clone().into_iter().for_each(|host| self.thaw_host(host, Duration::ZERO));
        self.links.values().for_each(|l| l.set(Mode::Pass));
        self.nodes.iter_mut().for_each(Node::thaw);
        for daemon in self.daemons.values() {
            daemon.signal(Signal::SIGCONT);
        }
    }

    fn locks_have_an_expiry(&self) -> Step {
        for node in self.nodes.iter().filter(|n| n.serves()) {
            for key in node.keys("redlock:*")? {
                node.expires_at(&key)?;
            }
        }
        Ok(())
    }

    /// After a kill each lock is one holder's on all nodes, or nobody's, at the latest when a vote left behind has expired and is
    /// repaired. If not, what is left after the stop will be complained of.
    fn no_vote_is_left_behind(&mut self) -> Step {
        let end = boot_ns() + nanos(LONG);
        while self.killed && !self.locks_may_linger && boot_ns() < end {
            let mut holders: BTreeMap<String, BTreeSet<Option<String>>> = BTreeMap::new();
            let serving = || self.nodes.iter().filter(|n| n.serves());
            for asked in serving() {
                for key in asked.keys("redlock:*")? {
                    for node in serving() {
                        holders.entry(key.clone()).or_default().insert(node.get(&key)?);
                    }
                }
            }
            if holders.values().all(|values| values.len() == 1) {
                break;
            }
            self.pause(millis(20));
        }
        Ok(())
    }

    fn stop_legacies(&mut self) -> Step {
        let names: Vec<String> = self.legacies.keys().cloned().collect();
        for name in names {
            if self.legacy(&name)?.is_running() {
                self.legacy(&name)?.grow_up();
                self.signal_legacy(&name, Signal::SIGTERM)?;
                let status = self.legacy(&name)?.await_exit(LONG)?;
                check(status.code() == Some(0), format!("{name} was told to stop and ended with {status}"))?;
            }
        }
        Ok(())
    }

    fn stop_daemons(&mut self) -> Step {
        let hosts: Vec<String> = self.daemons.keys().cloned().collect();
        let mut running = Vec::new();
        for host in hosts {
            if self.daemon(&host)?.is_running() {
                self.daemon(&host)?.grow_up();
                self.signal(&host, Signal::SIGTERM)?;
                running.push(host);
            }
        }
        for host in running {
            let status = self.daemon(&host)?.await_exit(LONG)?;
            check(
                status.code() == Some(0),
                format!("daemon {host} was stopped politely and ended with {status}"),
            )?;
        }
        Ok(())
    }

    fn locks_are_gone(&mut self) -> Step {
        // A busy node may still have the release before it. No lease of ours ends by itself so soon.
        let patience = if self.locks_may_linger { TTL } else { TTL / 4 };
        let since = boot_ns();
        loop {
            let mut left = Vec::new();
            for node in self.nodes.iter().filter(|n| n.serves()) {
                for key in node.keys("redlock:*")?.into_iter().chain(node.keys("keeperd:lease:*")?) {
                    left.push(format!("{key} on redis-{}", node.name));
                }
            }
            if left.is_empty() {
                return Ok(());
            }
            let over = boot_ns() > since + nanos(patience);
            check(!over, format!("left in Redis after a polite stop: {left:?}"))?;
            self.pause(millis(20));
        }
    }

    /// Remember where the child's cgroup leaf is; true when it has one of its own.
    pub fn has_leaf(&mut self, child: &Life) -> Step<bool> {
        let daemon = self.daemon(&Self::holder_of(child))?.pid();
        let leaf = cgroup::of(child.pid);
        let own = leaf.is_some() && leaf != cgroup::of(daemon);
        self.leaves.extend(leaf.filter(|_| own));
        Ok(own)
    }

    fn nothing_remains(&mut self) -> Step {
        let servers: BTreeSet<i32> = self.nodes.iter().filter_map(Node::pid).collect();
        let since = boot_ns();
        loop {
            let left = procs::remains(&self.id, &servers);
            let exists = |l: &&String| cgroup::folder(l).is_some_and(|f| f.exists());
            let leaves: Vec<&String> = self.leaves.iter().filter(exists).collect();
            let members = self.groups.as_ref().map_or_else(Vec::new, Groups::members);
            if left.is_empty() && leaves.is_empty() && members.is_empty() {
                return Ok(());
            }
            let who: Vec<String> = left.iter().map(Proc::describe).collect();
            let over = boot_ns() > since + nanos(LONG);
            check(!over, format!("left behind: {who:?} {leaves:?} {members:?}"))?;
            self.pause(millis(10));
        }
    }

    /// Everything that any of the witnesses objects to.
    pub fn findings(&self) -> Vec<Violation> {
        let judge = &self.witness.judge;
        let mut found = self.witness.verdict();
        if let Some(ledger) = self.ledger() {
            found.extend(ledger.verdict(judge).0);
        }
        found.extend(history::verdict(judge).0);
        if let Some(registers) = self.registers() {
            found.extend(registers.verdict(judge));
        }
        found
    }

    pub fn ledger(&self) -> Option<MutexGuard<'_, Ledger>> {
        self.ledger.as_ref().map(|l| l.lock().expect("no thread panics with it"))
    }

    pub fn registers(&self) -> Option<MutexGuard<'_, Registers>> {
        self.registers.as_ref().map(|r| r.lock().expect("no thread panics with it"))
    }

    fn flagged(&mut self) -> Step {
        // The witnesses write down what they see when it is their turn.
        let end = boot_ns() + nanos(LONG);
        let mut found = Vec::new();
        while boot_ns() < end
            && !self.must_be_flagged.iter().all(|fault| found.iter().any(|v: &Violation| v.fault == *fault))
        {
            self.pause(GLANCE);
            self.witness.look()?;
            found = self.findings();
        }
        let overlap = worst_overlap(&self.witness.judge.lives());
        let mut kinds: Vec<String> = found.iter().map(|v| format!("{:?}", v.fault)).collect();
        kinds.dedup();
        self.figure(format!("flagged: {}, {} of overlap", kinds.join(" "), ms(overlap)));
        let missing = self.must_be_flagged.iter().find(|fault| !found.iter().any(|v| v.fault == **fault));
        check(missing.is_none(), format!("the checker did not see the {missing:?}, only {kinds:?}"))
    }

    fn sound(&mut self) -> Step {
        self.witness.look()?;
        let found = self.findings();
        if let Some(first) = found.first() {
            std::fs::write(self.dir.join("centre"), first.at.to_string())?;
            let all: Vec<String> = found.iter().take(10).map(ToString::to_string).collect();
            return Err(failure(all.join("\n")));
        }
        let keepers = self.setup.keepers.clone();
        let lives: Vec<Life> = keepers.iter().flat_map(|k| self.witness.lives(k)).collect();
        let terms: BTreeSet<u64> = lives.iter().filter(|l| !l.is_legacy()).map(|l| l.token).collect();
        let others = lives.iter().filter(|l| l.is_legacy()).count();
        let others = if others == 0 { String::new() } else { format!(" of keeperd and {others} of others") };
        self.figure(format!("{} terms{others}, overlap 0 ms", terms.len()));
        Ok(())
    }

    /// False on a machine where the cgroup path of the guard cannot be shown.
    pub fn has_groups(&self) -> bool {
        self.groups.is_some()
    }

    /// The last act of every trial, whatever came of it.
    pub fn remove_groups(&self) {
        if let Some(groups) = &self.groups {
            groups.remove();
        }
    }

    pub fn is_running(&mut self, host: &str) -> bool {
        self.daemon(host).is_ok_and(|d| d.is_running())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
