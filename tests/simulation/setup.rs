//! What a run is made of, drawn from its seed.

use crate::clock::{MS, Nanos, SEC, US};
use crate::core::preference::{Preference, Priorities, Priority};
use crate::core::restart::{RestartPolicy, RestartRules};
use crate::core::timing::Timing;
use crate::dice::Dice;
use crate::node::name;
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Faults for ever: nothing bad may happen.
    Safety,
    /// Faults stop and all heals: something good must happen.
    Liveness,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// keeperds among themselves, with everything that DESIGN 1 promises to survive.
    Plain,
    /// With clients of the npm package on the same key; then no hand DEL and no node that loses data.
    Legacy,
    /// Whole hosts are frozen together with their children: only the tokens hold.
    Fenced,
}

#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub mode: Mode,
    pub kind: Kind,
    pub hosts: usize,
    pub nodes: usize,
    pub timing: Timing,
    pub quarantine: Nanos,
    pub tracking: bool,
    /// Largest difference between wall clocks of hosts.
    pub wall_spread_us: i64,
    /// Shortest way between a host and a node.
    pub way: Nanos,
    /// Faults never cease for long: one every half to three ttl.
    pub restless: bool,
    /// Mean time between faults.
    pub fault_every: Nanos,
    pub ends: Nanos,
    pub restart: RestartRules,
    /// The init system starts a daemon only when the old guards are gone.
    pub waits_for_guards: bool,
    pub child: ChildHabits,
    /// Chances in 1000 that a probe fails, where there are probes.
    pub probes: Option<Probes>,
    /// One per host: the same file for all, or each its own.
    pub priorities: Vec<Priorities>,
    pub hold: Duration,
    /// Who is preferred, where all agree.
    pub preferred: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
pub struct Probes {
    pub every: Nanos,
    pub child_fails: u64,
    pub host_fails: u64,
    pub fit_to_stand: bool,
}

/// Chances in 1000.
#[derive(Clone, Copy, Debug)]
pub struct ChildHabits {
    pub ignores_term: u64,
    pub forks: u64,
    pub crashes: u64,
    pub exec_fails: u64,
    pub lives: Nanos,
}

impl Setup {
    pub fn of(seed: u64, mode: Option<Mode>) -> Setup {
        let mut dice = Dice::new(seed ^ 0xA5A5);
        let drawn = if dice.chance(250) { Mode::Liveness } else { Mode::Safety };
        let mode = mode.unwrap_or(drawn);
        let (ttl, hours_of_ttl) = match dice.below(10) {
            0..3 => (Duration::from_secs(2), 400),
            3..5 => (Duration::from_secs(10), 600),
            _ => (Duration::from_secs(30), 2400),
        };
        let timing = Timing::new(ttl, Timing::default_stop_timeout(ttl)).expect("the default fits");
        let kind = match dice.below(12) {
            0..2 => Kind::Legacy,
            2 => Kind::Fenced,
            _ => Kind::Plain,
        };
        let ttl = nanos(ttl);
        let quarantine = (ttl.max(30 * SEC) + ttl.max(30 * SEC) / 100) + 2 * SEC;
        // Half of the runs; the other half are hours of peace with a fault now and then.
        let restless = dice.coin();
        let ttls = if restless { dice.between(40, 100) } else { hours_of_ttl };
        let fault_every = ttl * if restless { dice.between(1, 6) } else { dice.between(10, 60) } / 2;
        let spread_us = match dice.below(8) {
            0 => 7_200_000_000,
            1 => (quarantine / US).cast_signed() * 8 / 10,
            2..4 => 1_000_000,
            _ => 2_000,
        };
        let mut setup = Setup {
            seed,
            mode,
            kind,
            hosts: 2 + dice.pick(3),
            nodes: if dice.chance(250) { 5 } else { 3 },
            timing,
            quarantine,
            tracking: !dice.chance(100),
            wall_spread_us: spread_us,
            way: dice.scale(50 * US, 2 * MS),
            restless,
            fault_every,
            ends: ttl * ttls,
            restart: Self::rules(&mut dice, mode, ttl),
            waits_for_guards: dice.coin(),
            child: ChildHabits {
                ignores_term: [0, 100, 500][dice.pick(3)],
                forks: [0, 200, 700][dice.pick(3)],
                crashes: [0, 300, 900][dice.pick(3)],
                exec_fails: [0, 0, 20][dice.pick(3)],
                lives: ttl * dice.between(1, 40),
            },
            probes: dice.chance(300).then(|| Probes {
                every: ttl / 4,
                child_fails: [10, 100][dice.pick(2)],
                host_fails: [0, 300][dice.pick(2)],
                fit_to_stand: dice.coin(),
            }),
            priorities: Vec::new(),
            hold: Preference::HOLD_DEFAULT,
            preferred: None,
        };
        setup.prefer(&mut dice);
        setup
    }

    fn prefer(&mut self, dice: &mut Dice) {
        self.hold = Duration::from_nanos(self.ttl() * dice.between(1, 6));
        let hosts = self.hosts;
        let one_file = dice.coin();
        let first = dice.pick(hosts);
        let second = dice.pick(hosts);
        let priorities = |host: usize, dice: &mut Dice| {
            let table = |named: &[(usize, i32)]| {
                let named =
                    named.iter().map(|(host, n)| (name(crate::world::id(*host).into()), Priority(*n)));
                Priorities::ByHost(named.collect())
            };
            match (one_file, dice.below(4)) {
                (true, _) => table(&[(second, 5), (first, 10)]),
                // Everybody for himself, in a circle, or without a word.
                (false, 0) => table(&[(host, 10)]),
                (false, 1) => table(&[((host + 1) % hosts, 10), ((host + 2) % hosts, -10)]),
                (false, 2) => Priorities::Own(Priority(i32::try_from(dice.below(20)).unwrap_or(0) - 5)),
                (false, _) => Priorities::default(),
            }
        };
        if dice.below(3) == 0 {
            self.priorities = vec![Priorities::default(); hosts];
            return;
        }
        self.priorities = (0..hosts).map(|host| priorities(host, dice)).collect();
        self.preferred = one_file.then_some(first);
    }

    pub fn preference(&self, host: usize, hold: Duration) -> Preference {
        Preference::new(&name(crate::world::id(host).into()), self.priorities[host].clone(), hold)
    }

    fn rules(dice: &mut Dice, mode: Mode, ttl: Nanos) -> RestartRules {
        let policy = match dice.below(10) {
            0 if mode == Mode::Safety => RestartPolicy::Never,
            1 if mode == Mode::Safety => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        };
        RestartRules {
            policy,
            delay: Duration::from_nanos(ttl / 30),
            delay_max: Duration::from_nanos(ttl),
            give_up_after: 3,
            give_up_window: Duration::from_nanos(ttl * 10),
            cooldown: Duration::from_nanos(ttl / 2),
            ..RestartRules::default()
        }
    }

    pub fn ttl(&self) -> Nanos {
        nanos(self.timing.ttl())
    }

    pub fn quorum(&self) -> usize {
        self.nodes / 2 + 1
    }

    pub fn node_timeout(&self) -> Nanos {
        nanos(self.timing.node_timeout())
    }

    /// In liveness mode faults stop here.
    pub fn heals(&self) -> Nanos {
        match self.mode {
            Mode::Safety => crate::clock::NEVER,
            Mode::Liveness => self.ends,
        }
    }

    pub fn hours(&self) -> f64 {
        self.ends as f64 / (3600 * SEC) as f64
    }
}

pub fn nanos(span: Duration) -> Nanos {
    u64::try_from(span.as_nanos()).expect("a span of a run")
}
