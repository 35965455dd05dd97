//! Hosts with many keepers: the production elections, and what a daemon does for them. Guards answer, and nothing else goes wrong there.

use super::wire::Link;
use super::{Ev, NODES, Scale};
use crate::clock::{MS, NEVER, Nanos, SEC, US};
use crate::core::election::{Action, Election, GuardReport, Retry, Settings};
use crate::core::event::{ElectionOutcome, Event, Role};
use crate::core::lease::Quorum;
use crate::core::preference::Preference;
use crate::core::request::FromNode;
use crate::core::restart::RestartRules;
use crate::core::rng::Seed;
use crate::core::spread::Spread;
use crate::core::time::{Instant, Now, WallTime};
use crate::dice::Dice;
use crate::host::WALL_BASE_US;
use crate::node::name;

/// From the election to a guard that is armed, and from there to its child's first instruction (benches/README.md).
const ARMS: Nanos = 4 * MS;
const EXECS: Nanos = 2 * MS;
const UP_FOR_MAX: Nanos = 86_400 * SEC;
const ANSWERS: Nanos = 50 * US;

#[derive(Debug)]
pub struct Host {
    pub alive: bool,
    wall_off_us: i64,
    /// At the beginning: what the daemons of two hosts do by their clocks they do not do together.
    up_for: Nanos,
    spread: Spread,
    pub links: [Link; NODES],
    pub keepers: Vec<Option<Box<Keeper>>>,
    /// Keepers held: with one, a node that is late costs the connection.
    pub held: u32,
}

#[derive(Debug)]
pub struct Keeper {
    election: Election,
    timer_at: Nanos,
    holding: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Says {
    Armed,
    Acked,
    Started,
    TreeDead,
}

impl Host {
    pub fn new(host: usize, keepers: usize, dice: &mut Dice) -> Host {
        Host {
            alive: true,
            wall_off_us: dice.around(1000),
            up_for: dice.below(UP_FOR_MAX),
            spread: Spread::new(&name(u16::try_from(host).expect("few hosts"))),
            links: std::array::from_fn(|_| Link::new(keepers)),
            keepers: (0..keepers).map(|_| None).collect(),
            held: 0,
        }
    }
}

impl Scale {
    /// What the host's boot clock shows.
    pub fn boot(&self, h: u16) -> Instant {
        Instant::from_nanos(self.now + self.hosts[usize::from(h)].up_for)
    }

    fn clocks(&self, h: u16) -> Now {
        let wall =
            (WALL_BASE_US + self.now / US).saturating_add_signed(self.hosts[usize::from(h)].wall_off_us);
        Now { boot: self.boot(h), wall: WallTime::from_micros(wall) }
    }

    /// A daemon begins to look after a keeper.
    pub fn joins(&mut self, h: u16, k: u16) {
        let seed = Seed(u128::from(self.dice.next()) << 64 | u128::from(self.dice.next()));
        let settings = Settings {
            timing: self.timing,
            quorum: Quorum::of(3),
            restart: RestartRules::default(),
            retry: Retry { count: Some(3), delay: std::time::Duration::from_millis(200) },
            preference: Preference::none(),
            fit_to_stand: false,
        };
        let election = Election::new(settings, seed, self.boot(h));
        let host = &mut self.hosts[usize::from(h)];
        host.spread.join(k.into(), &format!("k{k}"));
        host.keepers[usize::from(k)] = Some(Box::new(Keeper { election, timer_at: NEVER, holding: false }));
        for node in 0..NODES {
            if self.hosts[usize::from(h)].links[node].is_serving() {
                self.hear(h, k, super::wire::serving(node));
            }
        }
        self.turn(h, k, |_, _| {});
    }

    pub fn hear(&mut self, h: u16, k: u16, from: FromNode) {
        self.weigh(h, k);
        self.turn(h, k, |election, now| election.handle_node(now, from));
    }

    pub fn hear_all(&mut self, h: u16, from: &FromNode) {
        for k in 0..self.keepers {
            self.hear(h, k, from.clone());
        }
    }

    pub fn says(&mut self, h: u16, k: u16, says: Says) {
        let report = match says {
            Says::Armed => GuardReport::Armed,
            Says::Acked => GuardReport::Acked { accepted: true },
            Says::Started => GuardReport::Started { pid: 1 },
            Says::TreeDead => GuardReport::TreeDead { killed: 1, last: true },
        };
        self.turn(h, k, |election, now| election.handle_guard(now, report));
    }

    pub fn timer(&mut self, h: u16, k: u16) {
        let now = self.now;
        let Some(keeper) = &mut self.hosts[usize::from(h)].keepers[usize::from(k)] else { return };
        if keeper.timer_at > now {
            return;
        }
        keeper.timer_at = NEVER;
        self.weigh(h, k);
        self.turn(h, k, |_, _| {});
    }

    fn weigh(&mut self, h: u16, k: u16) {
        let host = &mut self.hosts[usize::from(h)];
        if let Some(keeper) = &mut host.keepers[usize::from(k)]
            && !keeper.holding
        {
            keeper.election.handle_load(host.spread.load(k.into()));
        }
    }

    /// One turn of the keeper's loop.
    fn turn(&mut self, h: u16, k: u16, input: impl FnOnce(&mut Election, Now)) {
        let now = self.clocks(h);
        let Some(keeper) = &mut self.hosts[usize::from(h)].keepers[usize::from(k)] else { return };
        input(&mut keeper.election, now);
        self.carry_out(h, k);
        if let Some(keeper) = &mut self.hosts[usize::from(h)].keepers[usize::from(k)] {
            keeper.election.handle_timeout(now);
        }
        self.carry_out(h, k);
        let host = &mut self.hosts[usize::from(h)];
        let Some(keeper) = &mut host.keepers[usize::from(k)] else { return };
        host.spread.seat(k.into(), keeper.election.seat());
        let holding = keeper.election.is_holding();
        if holding != keeper.holding {
            keeper.holding = holding;
            host.held = if holding { host.held + 1 } else { host.held - 1 };
            if holding {
                self.hurry(h);
            }
        }
        let host = &mut self.hosts[usize::from(h)];
        let Some(keeper) = &mut host.keepers[usize::from(k)] else { return };
        let at = keeper.election.poll_timeout().map_or(NEVER, |at| at.as_nanos() - host.up_for);
        // One that fires too early does nothing and is set anew.
        if at < keeper.timer_at {
            keeper.timer_at = at;
            self.push(at, Ev::Timer { host: h, keeper: k });
        }
    }

    fn carry_out(&mut self, h: u16, k: u16) {
        let next = |scale: &mut Scale| {
            scale.hosts[usize::from(h)].keepers[usize::from(k)].as_mut()?.election.poll_action()
        };
        while let Some(action) = next(self) {
            let mut says = |after: Nanos, says: Says| {
                let at = self.now + after;
                self.push(at, Ev::Says { host: h, keeper: k, says });
            };
            match action {
                Action::Ask { node, ticket, request } => self.ask(h, k, usize::from(node.0), ticket, request),
                Action::Launch { .. } => {
                    says(ARMS, Says::Armed);
                    says(ARMS, Says::Acked);
                    says(ARMS, Says::Acked);
                    says(ARMS + EXECS, Says::Started);
                }
                Action::Prolong { .. } | Action::Spawn { .. } | Action::Restart { .. } => {
                    says(ANSWERS, Says::Acked)
                }
                Action::Stop { .. } | Action::Kill => {
                    says(ANSWERS, Says::Acked);
                    says(MS, Says::TreeDead);
                }
                Action::KillGuard => says(MS, Says::TreeDead),
                Action::QuitGuard => {}
                Action::Emit(event) => self.noted(h, k, &event),
            }
        }
    }

    fn noted(&mut self, h: u16, k: u16, event: &Event) {
        match event {
            Event::Elected { outcome: ElectionOutcome::Won, .. } => self.won(h, k),
            Event::RoleChanged { from: Role::Leader, to: Role::SteppingDown, reason, .. } => {
                self.tally.lost += 1;
                if self.tally.why_lost.len() < 3 {
                    self.tally.why_lost.push(format!("{:.3} s h{h} k{k} {reason:?}", self.now as f64 / 1e9));
                }
                self.holders[usize::from(k)] = None;
            }
            _ => {}
        }
    }

    fn won(&mut self, h: u16, k: u16) {
        let keeper = usize::from(k);
        if let Some(other) = self.holders[keeper].filter(|other| self.hosts[usize::from(*other)].alive) {
            self.tally.doubles.push(format!("k{k}: h{other} and h{h}"));
        }
        self.holders[keeper] = Some(h);
        if let Some(free_at) = self.orphans[keeper].take() {
            self.tally.takeovers.push(self.now.saturating_sub(free_at));
            self.tally.last_at = self.now;
        }
    }
}
