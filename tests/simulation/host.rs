//! A host: its clocks and its daemon, the shell around the production `Election` (`src/keeper/` without sockets).

use crate::clock::{BootClock, MS, NEVER, Nanos, SEC, US};
use crate::core::election::{
    Action, Election, GuardReport, HealthReport, ProbeNumber, Probed, Retry, Settings,
};
use crate::core::event::{Command, ElectionOutcome, Event, Reason, Role};
use crate::core::lease::{FencingToken, NodeId, Quorum, Value};
use crate::core::request::{FromNode, Request, Ticket};
use crate::core::rng::Seed;
use crate::core::round::ExtensionOutcome;
use crate::core::spread::{Load, Seat};
use crate::core::time::{Instant, Now, WallTime};
use crate::core::timing::Deadlines;
use crate::coverage::Mark;
use crate::dice::Dice;
use crate::guard::Frame;
use crate::mutants::Mutant;
use crate::nemesis::Fault;
use crate::say;
use crate::setup::{Kind, Setup};
use crate::unwanted::Unwanted;
use crate::world::{Ev, World, id};
use std::time::Duration;

pub const WALL_BASE_US: u64 = 1_700_000_000_000_000;
/// Messages that may wait for a keeper (`INBOX` in core_thread.rs): more than this wait nowhere.
pub const INBOX: usize = 256;
/// A graceful end waits this long for releases under way (`LAST_RELEASES`).
const LAST_RELEASES: Nanos = 20 * MS;

#[derive(Debug)]
pub struct Host {
    pub clock: BootClock,
    pub wall_off_us: i64,
    pub daemon: Option<Box<Daemon>>,
    pub frozen_until: Nanos,
    pub timeouts_first: bool,
    /// What the guard said meanwhile is heard before any timer fires.
    pub says_waiting: u32,
    /// The whole host stands still, its children too.
    pub suspended_until: Nanos,
    /// Daemon and guard of a host are not both impaired at once: nobody promises that. Until then, one of them is.
    pub impaired_until: Nanos,
    /// The next fork finds a starved machine.
    pub starve_spawn: bool,
    pub lives: u32,
    pub restarting: bool,
}

#[derive(Debug)]
pub struct Daemon {
    pub life: u32,
    pub election: Election,
    pub slot: Slot,
    pub holding: bool,
    pub unwanted: Vec<Unwanted>,
    timer_at: Nanos,
    /// What the attempt has come to, for marks.
    asked_value: Option<Value>,
    raised: bool,
    probed: Probed,
    /// The latest probe of this host said so.
    fit: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    Empty,
    Guard(u32),
    Mourning { guard: u32, again: Nanos },
}

pub enum Heard {
    Node(FromNode),
    Guard(GuardReport),
    Command(Command),
    Health(HealthReport),
    Time,
}

/// Why the election is talking just now; only for marks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    Timer,
    Hint,
    Other,
}

impl Host {
    pub fn new(setup: &Setup, rate_max_ppm: i64, dice: &mut Dice) -> Host {
        let base = dice.between(SEC, 1_000_000 * SEC);
        let spread = setup.wall_spread_us / 2;
        Host {
            clock: BootClock::new(base, dice.around(rate_max_ppm)),
            wall_off_us: dice.around(spread),
            daemon: None,
            frozen_until: 0,
            timeouts_first: false,
            says_waiting: 0,
            suspended_until: 0,
            impaired_until: 0,
            starve_spawn: false,
            lives: 0,
            restarting: false,
        }
    }

    pub fn now(&self, t: Nanos) -> Now {
        let wall = (WALL_BASE_US + t / US).saturating_add_signed(self.wall_off_us);
        Now { boot: self.clock.read(t), wall: WallTime::from_micros(wall) }
    }
}

impl World {
    // ── life of a daemon ──

    pub fn daemon_starts(&mut self, h: usize) {
        let guards_left = self.active.iter().any(|g| self.guards[*g as usize].host == h);
        if self.setup.waits_for_guards && guards_left {
            let at = self.now + 20 * MS;
            return self.push(at, Ev::DaemonStarts { host: id(h) });
        }
        let seed = Seed(u128::from(self.dice.next()) << 64 | u128::from(self.dice.next()));
        let hold = if self.is(Mutant::HoldIgnored) { Duration::ZERO } else { self.setup.hold };
        let settings = Settings {
            timing: self.setup.timing,
            quorum: Quorum::of(id(self.setup.nodes)),
            restart: self.setup.restart.clone(),
            retry: Retry { count: Some(3), delay: Duration::from_millis(200) },
            preference: self.setup.preference(h, hold),
            fit_to_stand: self.setup.probes.is_some_and(|probes| probes.fit_to_stand),
        };
        let now = self.now;
        let host = &mut self.hosts[h];
        host.lives += 1;
        host.restarting = false;
        host.daemon = Some(Box::new(Daemon {
            life: host.lives,
            election: Election::new(settings, seed, host.clock.read(now)),
            slot: Slot::Empty,
            holding: false,
            unwanted: (0..self.setup.nodes).map(|_| Unwanted::default()).collect(),
            timer_at: NEVER,
            asked_value: None,
            raised: false,
            probed: Probed::Nothing,
            fit: false,
        }));
        let life = host.lives;
        say!(self, format!("h{h}"), "daemon starts");
        self.weigh(h);
        for node in 0..self.setup.nodes {
            self.push(now, Ev::Open { link: id(h * self.setup.nodes + node), life });
        }
        self.hear(h, Heard::Time, Cause::Timer);
    }

    /// What the daemon's other keepers are at: anything.
    fn weigh(&mut self, h: usize) {
        let count = |n: u64| u32::try_from(n).unwrap_or(0);
        let dice = &mut self.dice;
        let keepers = count([1, 10, 1000][dice.pick(3)]);
        let load = Load {
            keepers,
            own: count(dice.below(keepers.into())),
            least_elsewhere: dice.coin().then(|| count(dice.below(20))),
            hosts: count(1 + dice.below(4)),
            line: count(dice.below(keepers.into())),
            shift: count(dice.below(1000)),
        };
        if let Some(daemon) = self.daemon(h) {
            daemon.election.handle_load(load);
        }
    }

    /// Drained, or killed as the second signal asks: its links end with it.
    pub fn daemon_ends(&mut self, h: usize, life: u32) {
        if self.life(h) != Some(life) {
            return;
        }
        say!(self, format!("h{h}"), "daemon ends");
        self.daemon_gone(h);
        let after = self.dice.between(100 * MS, 5 * SEC);
        self.hosts[h].restarting = true;
        self.push(self.now + after, Ev::DaemonStarts { host: id(h) });
    }

    /// No more daemon: connections break, the guard finds the end of its socket.
    pub fn daemon_gone(&mut self, h: usize) {
        let Some(daemon) = self.hosts[h].daemon.take() else { return };
        if let Slot::Guard(g) = daemon.slot {
            self.send_guard(g as usize, Frame::End);
        }
        for node in 0..self.setup.nodes {
            self.hang_up(h * self.setup.nodes + node);
        }
    }

    pub fn life(&self, h: usize) -> Option<u32> {
        self.hosts[h].daemon.as_ref().map(|daemon| daemon.life)
    }

    pub fn daemon(&mut self, h: usize) -> Option<&mut Daemon> {
        self.hosts[h].daemon.as_deref_mut()
    }

    // ── inputs ──

    pub fn timer(&mut self, h: usize, life: u32) {
        let now = self.now;
        let Some(daemon) = self.daemon(h).filter(|d| d.life == life && d.timer_at <= now) else { return };
        daemon.timer_at = NEVER;
        self.hear(h, Heard::Time, Cause::Timer);
    }

    pub fn ordered(&mut self, h: usize, life: u32, command: Command) {
        if self.life(h) == Some(life) {
            say!(self, format!("h{h}"), "command {command:?}");
            self.hear(h, Heard::Command(command), Cause::Other);
        }
    }

    /// The edge's word about what it was told to probe; by now that may be over.
    pub fn probed(&mut self, h: usize, life: u32, number: u64) {
        let Some(probes) = self.setup.probes.filter(|_| self.life(h) == Some(life)) else { return };
        let of = ProbeNumber(number);
        let now = self.hosts[h].daemon.as_ref().map_or(Probed::Nothing, |daemon| daemon.probed);
        let fails = match now {
            Probed::Host(_) => probes.host_fails,
            Probed::Child(_) | Probed::Nothing => probes.child_fails,
        };
        let fails = !self.healed && self.dice.chance(fails);
        if now == Probed::Host(of) || now == Probed::Child(of) {
            self.push(self.now + probes.every, Ev::Probed { host: id(h), life, number });
        } else {
            self.mark(Mark::LateHealth);
        }
        if let Some(daemon) = self.daemon(h)
            && daemon.probed == Probed::Host(of)
        {
            daemon.fit = !fails;
        }
        let failing = fails.then(|| "its probe failed".to_owned());
        self.hear(h, Heard::Health(HealthReport { of, failing }), Cause::Other);
    }

    fn begin_probing(&mut self, h: usize) {
        let Some(probes) = self.setup.probes else { return };
        let Some(daemon) = self.daemon(h) else { return };
        let probed = daemon.election.probed();
        if probed == std::mem::replace(&mut daemon.probed, probed) {
            return;
        }
        daemon.fit = false;
        let life = daemon.life;
        if let Probed::Host(number) | Probed::Child(number) = probed {
            let at = self.now + self.dice.lateness() + self.dice.below(probes.every);
            self.push(at, Ev::Probed { host: id(h), life, number: number.0 });
        }
    }

    /// One input, as the shell does it: tell, fire what is due, carry out.
    pub fn hear(&mut self, h: usize, heard: Heard, cause: Cause) {
        let now = self.hosts[h].now(self.now);
        let more = self.hosts[h].says_waiting > 0;
        let Some(daemon) = self.daemon(h) else { return };
        match heard {
            Heard::Node(from) => daemon.election.handle_node(now, from),
            Heard::Guard(report) => daemon.election.handle_guard(now, report),
            Heard::Command(command) => daemon.election.handle_command(now, command),
            Heard::Health(report) => daemon.election.handle_health(now, report),
            Heard::Time => {}
        }
        if more {
            return self.carry_out(h, cause);
        }
        daemon.election.handle_timeout(now);
        if daemon.election.poll_timeout().is_some_and(|at| at <= now.boot) {
            self.violated("the next timer is never in the past", || format!("h{h}"));
            return;
        }
        self.carry_out(h, cause);
        self.set_timer(h);
    }

    fn set_timer(&mut self, h: usize) {
        let clock = self.hosts[h].clock;
        let Some(daemon) = self.hosts[h].daemon.as_mut() else { return };
        let Some(at) = daemon.election.poll_timeout().map(|at| clock.when(at)) else { return };
        // A timer that fires too early does nothing and is set anew: cheaper than one entry for every change.
        if at < daemon.timer_at {
            daemon.timer_at = at.max(self.now + 1);
            let (at, life) = (daemon.timer_at, daemon.life);
            self.push(at, Ev::Timer { host: id(h), life });
        }
    }

    // ── actions ──

    fn carry_out(&mut self, h: usize, cause: Cause) {
        let mut actions = 0;
        while let Some(action) = self.daemon(h).and_then(|d| d.election.poll_action()) {
            actions += 1;
            self.act(h, action, cause);
        }
        if actions > INBOX {
            self.violated("queues are bounded", || format!("h{h} has {actions} actions at once"));
        }
        self.begin_probing(h);
        let Some(daemon) = self.daemon(h) else { return };
        let (holding, stopped, life) =
            (daemon.election.is_holding(), daemon.election.is_stopped(), daemon.life);
        let waits = daemon.election.seat() == Seat::Waiting;
        if holding != daemon.holding {
            daemon.holding = holding;
            if holding {
                self.hurry(h);
            }
        }
        if waits {
            self.mark(Mark::LetsOthersFirst);
        }
        if stopped && !self.hosts[h].restarting {
            self.hosts[h].restarting = true;
            self.mark(Mark::Drained);
            self.push(self.now + LAST_RELEASES, Ev::DaemonEnds { host: id(h), life });
        }
    }

    fn act(&mut self, h: usize, action: Action, cause: Cause) {
        match action {
            Action::Ask { node, ticket, request } => self.asked(h, node, ticket, request, cause),
            Action::Launch { value, token, deadlines, start_by } => {
                self.launch(h, value, token, deadlines, start_by);
            }
            Action::Spawn { start_by } => self.tell(h, Frame::Spawn { start_by }),
            Action::Restart { kill_by } => self.tell(h, Frame::Restart { kill_by }),
            Action::Prolong { deadlines } => {
                self.mark(Mark::Prolongs);
                self.tell(h, Frame::Deadlines(deadlines));
            }
            Action::Stop { kill_by } => {
                if self.is(Mutant::ReleaseBeforeDeath) {
                    self.release_too_early(h);
                }
                self.tell(h, Frame::Stop { kill_by });
            }
            Action::Kill => self.tell(h, Frame::Kill),
            Action::KillGuard => {
                if let Some(Slot::Guard(g)) = self.daemon(h).map(|d| d.slot)
                    && !self.is(Mutant::NoGuardWatch)
                {
                    if self.guards[g as usize].stopped_at.is_some() {
                        self.mark(Mark::KillsGuardLate);
                    }
                    self.kill_guard(g as usize);
                }
            }
            Action::QuitGuard => self.dismiss(h),
            Action::Emit(event) => self.noted(h, &event),
        }
    }

    fn asked(&mut self, h: usize, node: NodeId, ticket: Ticket, request: Request, cause: Cause) {
        let mark = match (&request, cause) {
            (Request::Look, Cause::Timer) => Some(Mark::LookTimer),
            (Request::Look, Cause::Hint) => Some(Mark::LookHint),
            (Request::Raise { .. }, _) => Some(Mark::Raises),
            (Request::Extend { .. }, Cause::Timer) => Some(Mark::Extends),
            (Request::Check { .. }, Cause::Hint) => Some(Mark::ChecksOnHint),
            (Request::Repair { .. }, _) => Some(Mark::Repairs),
            _ => None,
        };
        if let Some(mark) = mark {
            self.mark(mark);
        }
        if node.0 == 0 || ticket.round.0 == 0 {
            self.note_attempt(h, &request);
        }
        let fit = self.daemon(h).is_none_or(|daemon| daemon.fit);
        if matches!(request, Request::Acquire { .. })
            && self.setup.probes.is_some_and(|probes| probes.fit_to_stand)
            && !fit
        {
            self.violated("an unfit host does not stand", || format!("h{h}"));
        }
        self.oracle_asked(h, &request);
        self.may_be_overtaken(h, node, &request);
        self.ask(h, usize::from(node.0), ticket, request);
    }

    /// Now and then a request arrives when it is too late for it.
    fn may_be_overtaken(&mut self, h: usize, node: NodeId, request: &Request) {
        let (deadline, deaf, chance) = match request {
            Request::Repair { deadline, .. } => (*deadline, true, 10),
            Request::Extend { deadline, .. } => (*deadline, false, 1),
            _ => return,
        };
        if !self.healed && self.dice.chance(chance) {
            let until = self.when(h, deadline) + self.setup.ttl() / 50;
            let fault = Fault::Overtaken { host: id(h), node: node.0, until, deaf };
            self.push(self.now, Ev::Again { fault, tries: 1 });
        }
    }

    fn note_attempt(&mut self, h: usize, request: &Request) {
        let Some(daemon) = self.daemon(h) else { return };
        match request {
            Request::Acquire { value, .. } => {
                let again = daemon.asked_value == Some(*value);
                daemon.asked_value = Some(*value);
                daemon.raised = false;
                if again {
                    self.mark(Mark::AsksAgain);
                }
            }
            Request::Raise { .. } => daemon.raised = true,
            _ => {}
        }
    }

    fn release_too_early(&mut self, h: usize) {
        let Some(value) = self.daemon(h).and_then(|d| d.election.value()) else { return };
        let sent = self.local(h);
        for node in 0..self.setup.nodes {
            let ticket = Ticket { round: crate::core::request::RoundId(0), sent };
            self.asked(h, NodeId(id(node)), ticket, Request::Release { value }, Cause::Other);
        }
    }

    fn launch(&mut self, h: usize, value: Value, token: FencingToken, deadlines: Deadlines, by: Instant) {
        let slot = self.daemon(h).map(|d| d.slot);
        assert_eq!(slot, Some(Slot::Empty), "one guard per term, and terms do not overlap");
        if !self.healed && self.dice.chance(self.setup.child.exec_fails) {
            let report = GuardReport::LaunchFailed("out of descriptors".to_owned());
            let now = self.hosts[h].now(self.now);
            if let Some(daemon) = self.daemon(h) {
                daemon.election.handle_guard(now, report);
            }
            return;
        }
        let guard = self.start_guard(h, value, token, deadlines, by);
        if let Some(daemon) = self.daemon(h) {
            daemon.slot = Slot::Guard(guard);
        }
    }

    fn tell(&mut self, h: usize, frame: Frame) {
        if let Some(Slot::Guard(g)) = self.daemon(h).map(|d| d.slot) {
            self.send_guard(g as usize, frame);
        }
    }

    fn dismiss(&mut self, h: usize) {
        let Some(daemon) = self.daemon(h) else { return };
        let slot = std::mem::replace(&mut daemon.slot, Slot::Empty);
        if let Slot::Guard(g) = slot {
            self.send_guard(g as usize, Frame::Quit);
        }
    }

    // ── what the election says of itself ──

    fn noted(&mut self, h: usize, event: &Event) {
        if self.trace.is_on() {
            self.trace.line(self.now, &format!("h{h}"), &crate::trace::told(event));
        }
        match event {
            Event::RoleChanged { from, to, reason, .. } => self.role_changed(h, *from, *to, reason),
            Event::Elected { outcome, .. } => {
                let raised = self.daemon(h).is_some_and(|daemon| daemon.raised);
                self.mark(match outcome {
                    ElectionOutcome::Won if raised => Mark::RaiseWins,
                    ElectionOutcome::Won => Mark::Wins,
                    ElectionOutcome::Conflict => Mark::FailsConflict,
                    ElectionOutcome::NoQuorum => Mark::FailsNoQuorum,
                    ElectionOutcome::Late => Mark::FailsLate,
                });
            }
            Event::Extended { outcome, .. } => self.mark(match outcome {
                ExtensionOutcome::Renewed => Mark::Renewed,
                ExtensionOutcome::Unknown => Mark::Unknown,
                ExtensionOutcome::Evicted => Mark::Evicted,
                ExtensionOutcome::Foreign => Mark::Foreign,
            }),
            Event::ChildRestarts { .. } => self.mark(Mark::RestartsChild),
            Event::Bids { .. } => self.mark(Mark::Bids),
            Event::RestartBegins { reason: Reason::Unhealthy(_) } => self.mark(Mark::RestartsUnhealthy),
            Event::RestartBegins { .. } => self.mark(Mark::RestartsAsked),
            Event::HostFit => self.mark(Mark::HostFit),
            Event::HostUnfit { .. } => self.mark(Mark::HostUnfit),
            Event::TreeDead { .. } => self.mark(Mark::Releases),
            Event::Released { confirmed, .. } => {
                let enough = *confirmed >= self.setup.quorum();
                self.mark(if enough { Mark::ReleasedByQuorum } else { Mark::ReleasedByTime });
            }
            Event::TreeOutlivesLease if self.setup.kind != Kind::Fenced => {
                self.violated("no tree outlives its lease", || format!("h{h} says so itself"));
            }
            Event::TreeOutlivesLease
            | Event::ChildStarted { .. }
            | Event::ChildExited { .. }
            | Event::StopSent { .. }
            | Event::ClockAhead { .. }
            | Event::HolderSeen { .. } => {}
        }
    }

    fn role_changed(&mut self, h: usize, from: Role, to: Role, reason: &Reason) {
        if to == Role::Candidate && self.dice.chance(5) && !self.healed {
            let at = self.now + self.way() + self.setup.way;
            self.push(at, Ev::Again { fault: Fault::Hang { host: id(h), guard: false }, tries: 0 });
        }
        self.weigh(h);
        self.oracle.preferred_gave_up |= to == Role::Cooldown && self.setup.preferred == Some(h);
        let mark = match reason {
            Reason::Outbid(_) => {
                self.oracle_outbid(h);
                Mark::StopsOutbid
            }
            Reason::LooksFree => Mark::Stands,
            Reason::Evicted => Mark::StopsEvicted,
            Reason::Foreign => Mark::KillsForeign,
            Reason::LeaseEnding => Mark::StopsAtStopAt,
            Reason::GuardStopped => Mark::StopsGuardStopped,
            Reason::GuardLost("died") => Mark::KillsGuardDied,
            Reason::GuardLost(_) => Mark::KillsGuardMute,
            Reason::LaunchFailed(_) => Mark::StopsLaunchFailed,
            Reason::ExecFailed { .. } => Mark::StopsExecFailed,
            Reason::TooLate => Mark::StopsTooLate,
            Reason::NeverStarted => Mark::StopsNeverStarted,
            Reason::GaveUp { .. } => Mark::StopsGaveUp,
            Reason::PolicyFinished { .. } => Mark::Finishes,
            Reason::PausedEverywhere(_) if to == Role::SteppingDown => Mark::StopsPausedEverywhere,
            Reason::PausedEverywhere(_) => Mark::PausedEverywhere,
            Reason::ResumedEverywhere => Mark::ResumedEverywhere,
            Reason::CooldownOver => Mark::CooldownOver,
            Reason::Resumed => Mark::Resumed,
            Reason::Command(command) if matches!(from, Role::Leader | Role::Finished) => match command {
                Command::StepDown => Mark::StopsOnStepDown,
                Command::Pause => Mark::StopsOnPause,
                Command::Drain | Command::Retire => Mark::StopsOnDrain,
                Command::Kill => Mark::KillsOnCommand,
                Command::Restart => Mark::RestartsAsked,
                Command::Resume => return,
            },
            Reason::Unfit(_) => Mark::UnfitWithdraws,
            Reason::Command(_)
            | Reason::Unhealthy(_)
            | Reason::Won
            | Reason::NotElected(_)
            | Reason::Released => {
                if to == Role::Standby && from == Role::SteppingDown {
                    self.mark(Mark::StayOut);
                }
                return;
            }
        };
        self.mark(mark);
        if *reason == Reason::LeaseEnding && from == Role::SteppingDown {
            self.mark(Mark::KillsAtKillAt);
        }
    }

    /// Somebody has something to lose now: nobody sleeps out a long back-off.
    fn hurry(&mut self, h: usize) {
        let Some(life) = self.life(h) else { return };
        for node in 0..self.setup.nodes {
            let link = h * self.setup.nodes + node;
            if self.links[link].is_down() {
                self.push(self.now, Ev::Open { link: id(link), life });
            }
        }
    }

    pub fn is_holding(&self, h: usize) -> bool {
        self.hosts[h].daemon.as_ref().is_some_and(|daemon| daemon.holding)
    }
}
