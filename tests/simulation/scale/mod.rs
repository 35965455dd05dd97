//! Many hosts and many keepers on one set of three nodes: every election is the production one, every node does one thing after the other
//! and takes as long for each as a real one was measured to take.
//!
//! ```text
//! cargo test --release --test simulation -- --scale [HOSTSxKEEPERS]… [--check]
//! ```
//! One run is: all keepers held and all other hosts standing by; the steady state; one node restarts with its data; a third of the hosts
//! is gone at once.

mod costs;
mod hosts;
mod wire;

use crate::clock::{MS, NEVER, Nanos, SEC};
use crate::core::lease::NodeId;
use crate::core::request::{Answer, FromNode, RoundId, Ticket};
use crate::core::time::Instant;
use crate::core::timing::Timing;
use crate::dice::Dice;
use crate::node::Hosts;
use crate::post::Post;
use hosts::{Host, Says};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::process::ExitCode;
use std::time::Duration;
use wire::{Letter, Server};

const NODES: usize = 3;
const TTL: Duration = Duration::from_secs(30);
/// Of `restart_quarantine = "auto"` with that ttl.
const QUARANTINE: Nanos = 32_300 * MS;

const RESTART_TAKES: Nanos = 300 * MS;
/// The node that restarts.
const RESTARTS: usize = 1;
/// One host of so many dies.
const DIES: usize = 3;

/// When what happens.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// All other hosts begin to stand by, each keeper at some time within the span.
    others_from: Nanos,
    others_within: Nanos,
    steady_from: Nanos,
    restart_at: Nanos,
    death_at: Nanos,
    /// No later.
    ends: Nanos,
}

impl Plan {
    /// Nobody sets up a million standbys at once: not so fast that it takes a third of a node.
    fn of(hosts: usize, keepers: u16) -> Plan {
        let looks = hosts as u64 * u64::from(keepers) * 2;
        let others_within = (looks * costs::LOOK.core * 3).max(15 * SEC) / SEC * SEC;
        let others_from = 20 * SEC;
        let steady_from = others_from + others_within + 16 * SEC;
        let restart_at = steady_from + 30 * SEC;
        let death_at = restart_at + 60 * SEC;
        Plan { others_from, others_within, steady_from, restart_at, death_at, ends: death_at + 150 * SEC }
    }
}

#[derive(Clone, Copy, Debug)]
enum Ev {
    Timer { host: u16, keeper: u16 },
    Says { host: u16, keeper: u16, says: Says },
    Joins { host: u16, keeper: u16 },
    Letter(u32),
    Touched { host: u16, keeper: u16, node: u8, epoch: u32, fence: bool },
    Unsent { host: u16, keeper: u16, node: u8, round: u64, sent: Instant },
    Due { host: u16, node: u8, epoch: u32 },
    Open { host: u16, node: u8, epoch: u32 },
    OpenDue { host: u16, node: u8, epoch: u32 },
    NodeStops,
    NodeStarts,
    Death,
}

/// The earliest first, and of equals the one that was pushed first.
type Entry = Reverse<(Nanos, u64, Event)>;

#[derive(Clone, Copy, Debug)]
struct Event(Ev);

impl PartialEq for Event {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

/// What was counted since it was last asked for.
#[derive(Clone, Default, Debug)]
struct Tally {
    /// Requests that were given up.
    timeouts: u64,
    /// Connections given up.
    broken: u64,
    /// Terms that ended though nobody asked for it.
    lost: u64,
    why_lost: Vec<String>,
    /// From the instant at which a quorum was free.
    takeovers: Vec<Nanos>,
    last_at: Nanos,
    /// Elected while another host led.
    doubles: Vec<String>,
}

#[derive(Debug)]
struct Scale {
    plan: Plan,
    keepers: u16,
    timing: Timing,
    node_timeout: Nanos,
    quarantine: Nanos,
    now: Nanos,
    dice: Dice,
    hosts: Vec<Host>,
    servers: Vec<Server>,
    holders: Vec<Option<u16>>,
    /// When a quorum of the nodes was free again of a holder that is gone.
    orphans: Vec<Option<Nanos>>,
    tally: Tally,
    post: Post<Letter>,
    flown: u32,
    heap: BinaryHeap<Entry>,
    seq: u64,
    events: u64,
}

impl Scale {
    fn new(hosts: usize, keepers: u16) -> Scale {
        let timing = Timing::new(TTL, Timing::default_stop_timeout(TTL)).expect("the default fits");
        let mut dice = Dice::new(u64::from(keepers) << 16 | hosts as u64);
        let all = (0..hosts).map(|host| Host::new(host, keepers.into(), &mut dice)).collect();
        let mut scale = Scale {
            plan: Plan::of(hosts, keepers),
            keepers,
            timing,
            node_timeout: wire::nanos_of(timing.node_timeout()),
            quarantine: QUARANTINE,
            now: 0,
            dice,
            hosts: all,
            servers: (0..NODES).map(|_| Server::new(keepers.into())).collect(),
            holders: vec![None; keepers.into()],
            orphans: vec![None; keepers.into()],
            tally: Tally::default(),
            post: Post::default(),
            flown: 0,
            heap: BinaryHeap::new(),
            seq: 0,
            events: 0,
        };
        scale.begin();
        scale
    }

    /// Each keeper is held by the host whose turn it is; then the others come, as if one host after the other were set up.
    fn begin(&mut self) {
        let hosts = u16::try_from(self.hosts.len()).expect("few hosts");
        for host in 0..hosts {
            for node in 0..NODES {
                let at = SEC + self.dice.below(SEC);
                self.push(at, Ev::Open { host, node: u8::try_from(node).expect("three"), epoch: 0 });
            }
            for keeper in 0..self.keepers {
                let (from, within) = match keeper % hosts == host {
                    true => (3 * SEC, 15 * SEC),
                    false => (self.plan.others_from, self.plan.others_within),
                };
                let at = from + self.dice.below(within);
                self.push(at, Ev::Joins { host, keeper });
            }
        }
        self.push(self.plan.restart_at, Ev::NodeStops);
        self.push(self.plan.restart_at + RESTART_TAKES, Ev::NodeStarts);
        self.push(self.plan.death_at, Ev::Death);
    }

    fn push(&mut self, at: Nanos, ev: Ev) {
        if at != NEVER {
            self.seq += 1;
            self.heap.push(Reverse((at.max(self.now), self.seq, Event(ev))));
        }
    }

    fn post(&mut self, at: Nanos, letter: Letter) {
        let slot = self.post.put(letter);
        self.push(at, Ev::Letter(slot));
    }

    fn run_until(&mut self, end: Nanos) -> Tally {
        while let Some(Reverse((at, _, _))) = self.heap.peek()
            && *at < end
        {
            let Some(Reverse((at, _, Event(ev)))) = self.heap.pop() else { break };
            self.now = at;
            self.events += 1;
            self.happen(ev);
        }
        std::mem::take(&mut self.tally)
    }

    fn happen(&mut self, ev: Ev) {
        let host = match ev {
            Ev::Timer { host, .. }
            | Ev::Says { host, .. }
            | Ev::Joins { host, .. }
            | Ev::Touched { host, .. }
            | Ev::Unsent { host, .. }
            | Ev::Due { host, .. }
            | Ev::Open { host, .. }
            | Ev::OpenDue { host, .. } => Some(host),
            Ev::Letter(_) | Ev::NodeStops | Ev::NodeStarts | Ev::Death => None,
        };
        if host.is_some_and(|host| !self.hosts[usize::from(host)].alive) {
            return;
        }
        match ev {
            Ev::Timer { host, keeper } => self.timer(host, keeper),
            Ev::Says { host, keeper, says } => self.says(host, keeper, says),
            Ev::Joins { host, keeper } => self.joins(host, keeper),
            Ev::Letter(slot) => {
                let letter = self.post.take(slot);
                self.delivered(letter);
            }
            Ev::Touched { host, keeper, node, epoch, fence } => {
                self.touched(host, keeper, node.into(), epoch, fence);
            }
            Ev::Unsent { host, keeper, node, round, sent } => {
                let ticket = Ticket { round: RoundId(round), sent };
                let answer = FromNode::Answer { node: NodeId(node), ticket, answer: Answer::Silent };
                self.hear(host, keeper, answer);
            }
            Ev::Due { host, node, epoch } => self.due(host, node.into(), epoch),
            Ev::Open { host, node, epoch } => self.open(host, node.into(), epoch),
            Ev::OpenDue { host, node, epoch } => self.open_due(host, node.into(), epoch),
            Ev::NodeStops => self.node_stops(RESTARTS),
            Ev::NodeStarts => self.node_starts(RESTARTS),
            Ev::Death => self.death(),
        }
    }

    fn death(&mut self) {
        for host in self.hosts.iter_mut().step_by(DIES) {
            host.alive = false;
        }
        for keeper in 0..usize::from(self.keepers) {
            let orphan = self.holders[keeper].is_some_and(|host| !self.hosts[usize::from(host)].alive);
            if orphan {
                let mut ends: Vec<Nanos> =
                    self.servers.iter().map(|server| server.held_until(keeper)).collect();
                ends.sort_unstable();
                self.orphans[keeper] = Some(ends[NODES / 2]);
            }
        }
    }
}

/// What one node does in a span of time, and the busiest second of any.
#[derive(Clone, Copy, Debug)]
struct Load {
    commands: u64,
    /// Of a core.
    busy: f64,
    commands_peak: u64,
    busy_peak: f64,
    /// The longest that a request had to wait.
    queue: Nanos,
}

fn load(servers: &[Server], from: Nanos, to: Nanos) -> Load {
    let (from, to) = (usize::try_from(from / SEC).unwrap_or(0), usize::try_from(to / SEC).unwrap_or(0));
    let each = || servers.iter().flat_map(move |server| server.seconds.iter().take(to).skip(from));
    let count = ((to - from) * servers.len()) as u64;
    Load {
        commands: each().map(|second| second.commands).sum::<u64>() / count,
        busy: each().map(|second| second.busy).sum::<u64>() as f64 / count as f64 / SEC as f64,
        commands_peak: each().map(|second| second.commands).max().unwrap_or(0),
        busy_peak: each().map(|second| second.busy).max().unwrap_or(0) as f64 / SEC as f64,
        queue: each().map(|second| second.queue).max().unwrap_or(0),
    }
}

/// A span of a run.
struct Part {
    load: Load,
    tally: Tally,
}

struct Report {
    hosts: usize,
    keepers: u16,
    steady: Part,
    restart: Part,
    death: Part,
    /// Keepers whose holder died, and which nobody has taken over.
    orphans: usize,
    /// From the death to the last election.
    last: Nanos,
    events: u64,
    doubles: Vec<String>,
}

fn play(hosts: usize, keepers: u16) -> Report {
    let mut scale = Scale::new(hosts, keepers);
    let plan = scale.plan;
    let mut doubles = scale.run_until(plan.steady_from).doubles;
    let mut part = |scale: &mut Scale, from: Nanos, to: Nanos| {
        let tally = scale.run_until(to);
        doubles.extend(tally.doubles.iter().cloned());
        Part { load: load(&scale.servers, from, to), tally }
    };
    let steady = part(&mut scale, plan.steady_from, plan.restart_at);
    let restart = part(&mut scale, plan.restart_at, plan.death_at);
    let mut death = part(&mut scale, plan.death_at, plan.death_at + 40 * SEC);
    let mut last = death.tally.last_at;
    while scale.orphans.iter().any(Option::is_some) && scale.now < plan.ends {
        let more = scale.run_until(scale.now + SEC);
        last = last.max(more.last_at);
        death.tally.takeovers.extend(more.takeovers);
        death.tally.lost += more.lost;
    }
    death.tally.takeovers.sort_unstable();
    Report {
        hosts,
        keepers,
        steady,
        restart,
        death,
        orphans: scale.orphans.iter().flatten().count(),
        last: last.saturating_sub(plan.death_at),
        events: scale.events,
        doubles,
    }
}

impl Report {
    fn takeover(&self, percent: usize) -> f64 {
        let all = &self.death.tally.takeovers;
        let at = (all.len() * percent / 100).min(all.len().saturating_sub(1));
        all.get(at).map_or(f64::NAN, |nanos| *nanos as f64 / 1e6)
    }

    fn row(&self) -> String {
        let peak = |part: &Part| {
            let Load { commands_peak, busy_peak, queue, .. } = part.load;
            let Tally { timeouts, broken, lost, .. } = part.tally;
            format!(
                "{commands_peak}/s, {:.0} %, {:.1} ms; {timeouts}, {broken}, {lost}",
                busy_peak * 100.0,
                queue as f64 / 1e6,
            )
        };
        format!(
            "| {} × {} | {}/s, {:.1} % | {} | {} | {} of {} | {:.0} ms, {:.0} ms | {:.1} s |",
            self.hosts,
            self.keepers,
            self.steady.load.commands,
            self.steady.load.busy * 100.0,
            peak(&self.restart),
            peak(&self.death),
            self.death.tally.takeovers.len(),
            self.death.tally.takeovers.len() + self.orphans,
            self.takeover(50),
            self.takeover(99),
            self.last as f64 / 1e9,
        )
    }

    /// What must hold at a size that is small for three nodes.
    fn faults(&self) -> Vec<String> {
        let Report { hosts, keepers, steady, restart, death, .. } = self;
        let paper = u64::from(*keepers) * (10 + 2 * (*hosts as u64 - 1)) / 15;
        let commands = steady.load.commands;
        let rules = [
            (self.doubles.is_empty(), format!("two lead at once: {:?}", self.doubles)),
            (self.orphans == 0, format!("{} keepers are taken over by nobody", self.orphans)),
            (commands.abs_diff(paper) * 50 < paper, format!("{commands} commands/s, on paper {paper}")),
            (
                restart.tally.lost + death.tally.lost == 0,
                format!("terms are lost: {:?} {:?}", restart.tally.why_lost, death.tally.why_lost),
            ),
            (restart.tally.timeouts + death.tally.timeouts == 0, "requests go unanswered".to_owned()),
            (
                restart.load.queue < 25 * MS,
                format!("a node that comes back is busy for {} µs", restart.load.queue / 1000),
            ),
            (
                death.load.queue < 25 * MS,
                format!("after the death a node is busy for {} µs", death.load.queue / 1000),
            ),
            (self.takeover(99) < 300.0, format!("taken over {} ms after the expiry", self.takeover(99))),
        ];
        rules.into_iter().filter(|(holds, _)| !holds).map(|(_, fault)| fault).collect()
    }
}

const HEAD: &str = "\
| hosts × keepers | steady: commands, core | a node restarts: busiest second, longest wait; requests unanswered, connections and terms lost | a third of the hosts dies: the same | taken over | expiry → elected, p50, p99 | death → last elected |
|---|---|---|---|---|---|---|";
const SIZES: [&str; 5] = ["3x1000", "20x1000", "100x1000", "300x1000", "1000x1000"];

pub fn run(args: &[String]) -> ExitCode {
    let check = args.iter().any(|arg| arg == "--check");
    let named: Vec<&str> = args.iter().map(String::as_str).filter(|arg| *arg != "--check").collect();
    let mut failed = 0;
    let sizes = if named.is_empty() { SIZES.to_vec() } else { named };
    println!("{HEAD}");
    for size in &sizes {
        let parsed = size
            .split_once('x')
            .and_then(|(hosts, keepers)| Some((hosts.parse().ok()?, keepers.parse().ok()?)));
        let Some((hosts @ 3..=Hosts::MAX, keepers @ 1..)) = parsed else {
            eprintln!("simulation: {size} is no size such as 100x1000, of at most {} hosts", Hosts::MAX);
            return ExitCode::from(64);
        };
        let report = play(hosts, keepers);
        println!("{}", report.row());
        eprintln!("{} events", report.events);
        let faults = if check { report.faults() } else { Vec::new() };
        faults.iter().for_each(|fault| println!("{size}: {fault}"));
        failed += usize::from(!faults.is_empty());
    }
    if check {
        println!("{} passed, {failed} failed", sizes.len() - failed);
    }
    ExitCode::from(u8::from(failed > 0))
}
