//! The world: true time, the queue of what will happen, and all parties. One seed, one run.

use crate::clock::{NEVER, Nanos, SEC, US};
use crate::core::event::Command;
use crate::core::restart::Exit;
use crate::core::time::Instant;
use crate::coverage::{Coverage, Mark};
use crate::dice::Dice;
use crate::guard::{Frame, Guard, Says};
use crate::host::Host;
use crate::legacy::{Legacy, LegacyEvent};
use crate::link::{Letter, Link};
use crate::mutants::Mutant;
use crate::nemesis::{Fault, Nemesis};
use crate::node::Node;
use crate::oracle::{Oracle, Violation};
use crate::post::Post;
use crate::say;
use crate::setup::{Mode, Setup};
use crate::trace::{Telling, Trace};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// What happens next, and to whom. `life`, `epoch` and `birth` tell the addressee from his successors.
#[derive(Clone, Copy, Debug)]
pub enum Ev {
    // to a daemon: waits while it is frozen
    Timer {
        host: u8,
        life: u32,
    },
    Says {
        guard: u32,
        says: Says,
    },
    Ordered {
        host: u8,
        life: u32,
        command: Command,
    },
    /// Asked of a node that does not serve: silent at once.
    Unsent {
        link: u8,
        life: u32,
        round: u64,
        sent: Instant,
    },
    /// A mutant's own answer to a raise.
    Pretend {
        link: u8,
        life: u32,
        round: u64,
        sent: Instant,
    },
    ToHost {
        letter: u32,
    },
    FlightsDue {
        link: u8,
        epoch: u32,
    },
    Open {
        link: u8,
        life: u32,
    },
    OpenDue {
        link: u8,
        epoch: u32,
    },
    Broken {
        link: u8,
        epoch: u32,
    },
    QuarantineOver {
        link: u8,
        epoch: u32,
    },
    Tick {
        link: u8,
        epoch: u32,
    },
    LastResort {
        host: u8,
        life: u32,
    },
    /// A probe of that number is over.
    Probed {
        host: u8,
        life: u32,
        number: u64,
    },
    // to others
    ToNode {
        letter: u32,
    },
    Frame {
        guard: u32,
        frame: Frame,
    },
    GuardTimer {
        guard: u32,
    },
    ReleaserEnds {
        guard: u32,
    },
    Exec {
        guard: u32,
        birth: u32,
    },
    MainEnds {
        guard: u32,
        birth: u32,
        exit: Exit,
        by_itself: bool,
    },
    RestEnds {
        guard: u32,
        birth: u32,
    },
    DaemonStarts {
        host: u8,
    },
    DaemonEnds {
        host: u8,
        life: u32,
    },
    NodeStarts {
        node: u8,
        run: u32,
        data: Kept,
    },
    ClockRuns {
        node: u8,
    },
    HandDel {
        node: u8,
    },
    Legacy {
        client: u8,
        what: LegacyEvent,
    },
    Nemesis,
    Again {
        fault: Fault,
        tries: u8,
    },
    Heal,
    Judge,
}

/// What a node finds on its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    All,
    Nothing,
    /// An older state.
    Stale,
}

#[derive(Debug)]
struct Entry {
    at: Nanos,
    seq: u64,
    ev: Ev,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The earliest is the largest: the heap gives the largest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}

/// What a run amounted to.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    pub mode: Mode,
    pub restless: bool,
    pub hours: f64,
    pub events: u64,
    pub terms: u64,
    pub faults: u64,
    /// Share of time with a child running, in 1000.
    pub served: u64,
    pub coverage: Coverage,
    pub violation: Option<Violation>,
}

#[derive(Debug)]
pub struct World {
    pub setup: Setup,
    pub mutant: Option<Mutant>,
    pub now: Nanos,
    pub dice: Dice,
    pub hosts: Vec<Host>,
    pub nodes: Vec<Node>,
    pub links: Vec<Link>,
    pub guards: Vec<Guard>,
    /// Guards whose process or tree is still there.
    pub active: Vec<u32>,
    pub legacy: Vec<Legacy>,
    pub nemesis: Nemesis,
    pub oracle: Oracle,
    pub marks: Coverage,
    pub trace: Trace,
    pub healed: bool,
    pub events: u64,
    pub post: Post<Letter>,
    heap: BinaryHeap<Entry>,
    seq: u64,
}

impl World {
    pub fn new(setup: Setup, mutant: Option<Mutant>, telling: Telling) -> World {
        let mut dice = Dice::new(setup.seed);
        let rate = Self::rate_max_ppm(mutant);
        let hosts = (0..setup.hosts).map(|_| Host::new(&setup, rate, &mut dice)).collect();
        let nodes = (0..setup.nodes).map(|_| Self::new_node(&setup, mutant, &mut dice)).collect();
        let links = (0..setup.hosts * setup.nodes).map(|_| Link::default()).collect();
        let mut world = World {
            mutant,
            now: SEC,
            dice,
            hosts,
            nodes,
            links,
            guards: Vec::new(),
            active: Vec::new(),
            legacy: Vec::new(),
            nemesis: Nemesis::default(),
            oracle: Oracle::default(),
            marks: Coverage::default(),
            trace: Trace::new(telling),
            healed: false,
            events: 0,
            post: Post::default(),
            heap: BinaryHeap::with_capacity(256),
            seq: 0,
            setup,
        };
        world.begin();
        world
    }

    fn rate_max_ppm(mutant: Option<Mutant>) -> i64 {
        if mutant == Some(Mutant::ClocksApart) { 30_000 } else { crate::clock::RATE_MAX_PPM }
    }

    fn new_node(setup: &Setup, mutant: Option<Mutant>, dice: &mut Dice) -> Node {
        let off = dice.around(setup.wall_spread_us.min(2_000_000));
        let shown = crate::host::WALL_BASE_US.saturating_add_signed(off);
        let ppm = dice.around(Self::rate_max_ppm(mutant));
        Node::new(crate::clock::NodeClock::new(shown, ppm), mutant)
    }

    fn begin(&mut self) {
        for host in 0..self.hosts.len() {
            let at = self.now + self.dice.below(2 * SEC);
            self.push(at, Ev::DaemonStarts { host: id(host) });
        }
        self.begin_legacy();
        self.push(self.now + self.setup.quarantine, Ev::Nemesis);
        if self.setup.heals() != NEVER {
            self.push(self.setup.heals(), Ev::Heal);
        }
    }

    pub fn push(&mut self, at: Nanos, ev: Ev) {
        if at == NEVER {
            return;
        }
        self.seq += 1;
        self.heap.push(Entry { at: at.max(self.now), seq: self.seq, ev });
    }

    /// Until the end of the run, or the first violation.
    pub fn run(&mut self) -> Outcome {
        let mut ends = self.setup.ends;
        while let Some(Entry { at, ev, .. }) = self.heap.pop() {
            if self.healed {
                ends = NEVER;
            }
            if at > ends || self.oracle.is_over() {
                break;
            }
            self.now = at;
            self.events += 1;
            self.happen(ev);
            self.watch();
        }
        Outcome {
            seed: self.setup.seed,
            mode: self.setup.mode,
            restless: self.setup.restless,
            hours: self.now as f64 / (3600 * SEC) as f64,
            events: self.events,
            terms: self.guards.len() as u64,
            faults: self.nemesis.faults,
            served: self.oracle.served(self.now) / (self.now / 1000),
            coverage: self.marks.clone(),
            violation: self.oracle.violation.take(),
        }
    }

    // ── who waits ──

    /// Later, if its daemon is frozen; then in the order of a daemon's `select!`.
    fn put_off(&mut self, host: usize, rank: Nanos, ev: Ev) -> bool {
        let until = self.hosts[host].frozen_until;
        if self.now >= until {
            return false;
        }
        self.push(until + rank, ev);
        true
    }

    fn happen(&mut self, ev: Ev) {
        match ev {
            Ev::Timer { .. }
            | Ev::Says { .. }
            | Ev::Ordered { .. }
            | Ev::Unsent { .. }
            | Ev::Pretend { .. }
            | Ev::ToHost { .. }
            | Ev::FlightsDue { .. }
            | Ev::Open { .. }
            | Ev::OpenDue { .. }
            | Ev::Broken { .. }
            | Ev::QuarantineOver { .. }
            | Ev::Tick { .. }
            | Ev::LastResort { .. }
            | Ev::Probed { .. } => self.happen_to_daemon(ev),
            Ev::ToNode { letter } => self.arrive_at_node(letter),
            Ev::Frame { guard, frame } => self.frame_arrives(guard as usize, frame),
            Ev::GuardTimer { guard } => self.guard_timer(guard as usize),
            Ev::ReleaserEnds { guard } => self.releaser_ends(guard as usize),
            Ev::Exec { guard, birth } => self.exec(guard as usize, birth),
            Ev::MainEnds { guard, birth, exit, by_itself } => {
                self.main_ends(guard as usize, birth, exit, by_itself);
            }
            Ev::RestEnds { guard, birth } => self.rest_ends(guard as usize, birth),
            Ev::DaemonStarts { host } => self.daemon_starts(host as usize),
            Ev::DaemonEnds { host, life } => self.daemon_ends(host as usize, life),
            Ev::NodeStarts { node, run, data } => self.node_starts(node as usize, run, data),
            Ev::ClockRuns { node } => self.clock_runs(node as usize),
            Ev::HandDel { node } => self.hand_del(node as usize),
            Ev::Legacy { client, what } => self.legacy_happens(client as usize, what),
            Ev::Nemesis => self.nemesis_strikes(),
            Ev::Again { fault, tries } => self.strike(fault, tries),
            Ev::Heal => self.heal(),
            Ev::Judge => self.judge_liveness(),
        }
    }

    fn happen_to_daemon(&mut self, ev: Ev) {
        let per_host = self.setup.nodes;
        let of_link = |link: u8| link as usize / per_host;
        let (host, rank) = match ev {
            Ev::Says { guard, .. } => (self.guards[guard as usize].host, 0),
            Ev::Ordered { host, .. } => (host as usize, 1),
            Ev::ToHost { letter } => (self.post.peek(letter).host(per_host), 4),
            Ev::FlightsDue { link, .. } | Ev::OpenDue { link, .. } => {
                // On a thaw both the reply and its time-out are ready; which comes first is anybody's guess.
                let host = of_link(link);
                (host, if self.hosts[host].timeouts_first { 3 } else { 5 })
            }
            Ev::Unsent { link, .. }
            | Ev::Pretend { link, .. }
            | Ev::Open { link, .. }
            | Ev::Broken { link, .. }
            | Ev::QuarantineOver { link, .. }
            | Ev::Tick { link, .. } => (of_link(link), 6),
            Ev::LastResort { host, .. } => (host as usize, 0),
            Ev::Probed { host, .. } => (host as usize, 2),
            Ev::Timer { host, .. } => (host as usize, 8),
            _ => unreachable!("{ev:?} is no event of a daemon"),
        };
        if self.put_off(host, rank, ev) {
            self.hosts[host].says_waiting += u32::from(rank == 0);
            return;
        }
        if rank == 0 {
            self.hosts[host].says_waiting = self.hosts[host].says_waiting.saturating_sub(1);
        }
        match ev {
            Ev::Timer { life, .. } => self.timer(host, life),
            Ev::Says { guard, says } => self.guard_said(guard as usize, says),
            Ev::Ordered { life, command, .. } => self.ordered(host, life, command),
            Ev::Unsent { link, life, round, sent } => self.unsent(link as usize, life, round, sent),
            Ev::Pretend { link, life, round, sent } => self.pretend(link as usize, life, round, sent),
            Ev::ToHost { letter } => self.arrive_at_host(letter),
            Ev::FlightsDue { link, epoch } => self.flights_due(link as usize, epoch),
            Ev::Open { link, life } => self.open(link as usize, life),
            Ev::OpenDue { link, epoch } => self.open_due(link as usize, epoch),
            Ev::Broken { link, epoch } => self.broken(link as usize, epoch),
            Ev::QuarantineOver { link, epoch } => self.quarantine_over(link as usize, epoch),
            Ev::Tick { link, epoch } => self.tick(link as usize, epoch),
            Ev::LastResort { life, .. } => self.last_resort(host, life),
            Ev::Probed { life, number, .. } => self.probed(host, life, number),
            _ => unreachable!("{ev:?} is no event of a daemon"),
        }
    }

    /// Letters to or from one node.
    pub fn letters_of(&self, node: usize) -> usize {
        let of = |letter: &&Letter| letter.node(self.setup.nodes) == Some(node);
        self.post.under_way().filter(of).count()
    }

    // ── small things ──

    pub fn local(&self, host: usize) -> Instant {
        self.hosts[host].clock.read(self.now)
    }

    pub fn when(&self, host: usize, at: Instant) -> Nanos {
        self.hosts[host].clock.when(at)
    }

    pub fn mark(&mut self, mark: Mark) {
        self.marks.mark(mark);
    }

    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// A way between a host and a node: usually short, sometimes long, rarely longer than anybody waits.
    pub fn way(&mut self) -> Nanos {
        let way = self.setup.way;
        let usual = way + self.dice.below(way);
        match self.dice.below(4096) {
            0 if !self.healed => usual + self.dice.below(self.setup.node_timeout() * 3),
            1..16 if !self.healed => usual + self.dice.below(self.setup.node_timeout() / 2),
            16..200 => usual + self.dice.below(20 * way),
            _ => usual + self.dice.below(10 * US),
        }
    }

    pub fn describe(&mut self) {
        let setup = format!("{:?}", self.setup);
        say!(self, "world", "{setup}");
    }
}

/// Index as it travels in events.
pub fn id(index: usize) -> u8 {
    u8::try_from(index).expect("a handful of parties")
}
