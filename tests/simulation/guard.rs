//! The guard of a term and the child's tree under it: `src/guard/process.rs` without processes.

use crate::clock::{MS, NEVER, Nanos, US};
use crate::core::election::GuardReport;
use crate::core::lease::{FencingToken, Value};
use crate::core::restart::Exit;
use crate::core::time::Instant;
use crate::core::timing::Deadlines;
use crate::coverage::Mark;
use crate::host::{Cause, Heard, Slot};
use crate::link::Letter;
use crate::mutants::Mutant;
use crate::nemesis::Fault;
use crate::say;
use crate::setup::{Kind, nanos};
use crate::world::{Ev, World, id};

/// A releaser gives up after this (`LIMIT` in release.rs), and waits this long for the rest after a quorum.
const RELEASER: Nanos = 500 * MS;
const GRACE: Nanos = 10 * MS;

/// What reaches the guard: commands, and what wakes it otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame {
    Arm,
    Spawn {
        start_by: Instant,
    },
    Deadlines(Deadlines),
    Stop {
        kill_by: Instant,
    },
    Restart {
        kill_by: Instant,
    },
    Kill,
    Quit,
    /// End of the socket.
    End,
    /// A signal: some process of the tree has changed.
    Wake,
    /// To what became of it: a node has released.
    Freed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Says {
    Armed,
    Ack { accepted: bool },
    Started,
    ExecFailed { late: bool },
    Exited(Exit),
    Stopping,
    TreeDead { killed: u32, last: bool },
    Gone,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Idle,
    Running,
    Restarting { kill_by: Instant },
    Stopping,
    Killing,
    Dead,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Forked,
    Runs,
    Ended(Exit),
    Failed { late: bool },
}

#[derive(Clone, Copy, Debug)]
struct Main {
    phase: Phase,
    before: Instant,
    told: bool,
    dying: bool,
}

#[derive(Debug)]
pub struct Guard {
    pub host: usize,
    pub value: Value,
    pub token: FencingToken,
    /// The process is there.
    pub lives: bool,
    armed: bool,
    pub state: State,
    pub latched: bool,
    pub deadlines: Deadlines,
    pub frozen_until: Nanos,
    orphaned: bool,
    releasing: bool,
    freed: usize,
    killed: u32,
    main: Option<Main>,
    rest: bool,
    rest_dying: bool,
    birth: u32,
    timer_at: Nanos,
    frames_after: Nanos,
    says_after: Nanos,
    // what the oracle keeps of a term
    pub started: bool,
    pub lease_end: Instant,
    pub stopped_at: Option<Nanos>,
    pub restarts_seen: u32,
}

impl Guard {
    fn main_alive(&self) -> bool {
        self.main.is_some_and(|main| matches!(main.phase, Phase::Forked | Phase::Runs))
    }

    /// A process of the keeper lives. Between fork and exec it is still the guard's own code.
    pub fn tree_alive(&self) -> bool {
        self.rest || self.main.is_some_and(|main| main.phase == Phase::Runs)
    }

    /// No process of this term lives, nor can one be started.
    pub fn is_over(&self) -> bool {
        !self.main_alive() && !self.rest && (!self.lives || self.state == State::Dead)
    }

    pub fn is_gone(&self) -> bool {
        !self.main_alive() && !self.rest && !self.lives
    }

    pub fn child_runs(&self) -> bool {
        self.main.is_some_and(|main| main.phase == Phase::Runs)
    }
}

impl World {
    pub fn start_guard(
        &mut self,
        h: usize,
        value: Value,
        token: FencingToken,
        deadlines: Deadlines,
        start_by: Instant,
    ) -> u32 {
        let g = self.guards.len();
        let lease_end = deadlines.kill_at + self.setup.timing.kill_margin();
        self.guards.push(Guard {
            host: h,
            value,
            token,
            lives: true,
            armed: false,
            state: State::Idle,
            latched: false,
            deadlines,
            frozen_until: self.hosts[h].frozen_until,
            orphaned: false,
            releasing: false,
            freed: 0,
            killed: 0,
            main: None,
            rest: false,
            rest_dying: false,
            birth: 0,
            timer_at: NEVER,
            frames_after: 0,
            says_after: 0,
            started: false,
            lease_end,
            stopped_at: None,
            restarts_seen: 0,
        });
        let number = u32::try_from(g).expect("terms of a run fit");
        self.active.push(number);
        say!(self, format!("h{h}"), "launches g{g} for {value:?} {token:?} {deadlines:?}");
        self.oracle_term_begins(g);
        let starts = self.now + MS + self.dice.lateness() + if self.dice.chance(10) { 300 * MS } else { 0 };
        self.guards[g].frames_after = starts;
        self.send_guard(g, Frame::Arm);
        self.send_guard(g, Frame::Spawn { start_by });
        number
    }

    // ── the socket ──

    pub fn send_guard(&mut self, g: usize, frame: Frame) {
        let at = (self.now + self.dice.lateness()).max(self.guards[g].frames_after + 1);
        self.guards[g].frames_after = at;
        self.push(at, Ev::Frame { guard: number(g), frame });
    }

    fn says(&mut self, g: usize, says: Says) {
        say!(self, format!("g{g}"), "{says:?}");
        if self.guards[g].orphaned {
            return;
        }
        let at = (self.now + self.dice.lateness()).max(self.guards[g].says_after + 1);
        self.guards[g].says_after = at;
        self.push(at, Ev::Says { guard: number(g), says });
    }

    pub fn frame_arrives(&mut self, g: usize, frame: Frame) {
        let guard = &mut self.guards[g];
        if frame == Frame::Freed && guard.releasing {
            guard.freed += 1;
            if guard.freed == self.setup.quorum() {
                self.mark(Mark::ReleasedByGuard);
                self.push(self.now + GRACE, Ev::ReleaserEnds { guard: number(g) });
            }
            return;
        }
        if !guard.lives || guard.releasing {
            return;
        }
        if self.now < guard.frozen_until {
            let at = guard.frozen_until;
            return self.push(at, Ev::Frame { guard: number(g), frame });
        }
        self.wake(g, Some(frame));
    }

    pub fn guard_timer(&mut self, g: usize) {
        let now = self.now;
        let guard = &mut self.guards[g];
        if !guard.lives || guard.releasing || guard.timer_at > now {
            return;
        }
        if now < guard.frozen_until {
            guard.timer_at = guard.frozen_until;
            let at = guard.timer_at;
            return self.push(at, Ev::GuardTimer { guard: number(g) });
        }
        guard.timer_at = NEVER;
        self.wake(g, None);
    }

    // ── its loop ──

    /// The clock is read before any frame (R9).
    fn wake(&mut self, g: usize, frame: Option<Frame>) {
        let now = self.local(self.guards[g].host);
        self.on_exec(g);
        self.reap(g);
        self.on_time(g, now);
        if let Some(frame) = frame {
            self.on_frame(g, frame, now);
            self.on_time(g, now);
        }
        self.set_guard_timer(g);
    }

    fn on_time(&mut self, g: usize, now: Instant) {
        let guard = &self.guards[g];
        let Deadlines { stop_at, kill_at } = guard.deadlines;
        let heeds = guard.armed && !self.is(Mutant::NoGuard);
        match guard.state {
            State::Idle | State::Running | State::Restarting { .. } | State::Stopping
                if heeds && now >= kill_at =>
            {
                self.kill(g);
            }
            State::Idle | State::Running | State::Restarting { .. } if heeds && now >= stop_at => {
                self.stop(g, kill_at, true);
            }
            State::Restarting { kill_by } if now >= kill_by => {
                self.mark(Mark::RestartKills);
                self.begin_killing(g);
            }
            State::Idle
            | State::Running
            | State::Restarting { .. }
            | State::Stopping
            | State::Killing
            | State::Dead => {}
        }
        if self.guards[g].state == State::Killing {
            self.kill_more(g);
        }
    }

    fn on_frame(&mut self, g: usize, frame: Frame, now: Instant) {
        let accepted = match frame {
            Frame::Wake | Frame::Freed => return,
            Frame::End => return self.orphan(g, now),
            Frame::Arm => {
                self.guards[g].armed = true;
                self.says(g, Says::Armed);
                self.oracle_deadlines(g);
                true
            }
            Frame::Spawn { start_by } => self.spawn(g, start_by, now),
            Frame::Deadlines(new) => self.move_deadlines(g, new),
            Frame::Stop { kill_by } => {
                self.stop(g, kill_by, false);
                true
            }
            Frame::Restart { kill_by } => {
                if self.guards[g].state == State::Running {
                    self.guards[g].state = State::Restarting { kill_by };
                    self.terminate(g);
                }
                !self.guards[g].latched
            }
            Frame::Kill => {
                self.kill(g);
                true
            }
            Frame::Quit => {
                let quits = matches!(self.guards[g].state, State::Idle | State::Dead);
                if quits {
                    self.guards[g].lives = false;
                    self.bury(g);
                    return;
                }
                false
            }
        };
        self.says(g, Says::Ack { accepted });
    }

    fn orphan(&mut self, g: usize, now: Instant) {
        if self.is(Mutant::NoGuard) || self.guards[g].orphaned {
            return;
        }
        say!(self, format!("g{g}"), "end of socket: the daemon is gone");
        self.guards[g].orphaned = true;
        self.stop(g, now + self.setup.timing.stop_timeout(), false);
        if self.guards[g].state == State::Dead {
            self.become_releaser(g);
        }
    }

    fn move_deadlines(&mut self, g: usize, new: Deadlines) -> bool {
        let careless = self.is(Mutant::DeadlineAfterStop);
        let guard = &mut self.guards[g];
        let old = guard.deadlines;
        if guard.latched && !careless {
            guard.deadlines.kill_at = old.kill_at.min(new.kill_at);
            return new.kill_at <= old.kill_at && new.stop_at <= old.stop_at;
        }
        guard.deadlines = new;
        if guard.latched && new.kill_at > old.kill_at {
            self.violated("once it stops, SIGKILL is never put off", || format!("g{g}"));
        }
        self.oracle_deadlines(g);
        true
    }

    fn spawn(&mut self, g: usize, start_by: Instant, now: Instant) -> bool {
        let guard = &mut self.guards[g];
        let before = start_by.min(guard.deadlines.stop_at);
        if guard.state != State::Idle || guard.latched || now >= before {
            return false;
        }
        guard.birth += 1;
        guard.main = Some(Main { phase: Phase::Forked, before, told: false, dying: false });
        guard.state = State::Running;
        let birth = guard.birth;
        let mut exec = self.now + 500 * US + self.dice.lateness();
        let h = self.guards[g].host;
        if std::mem::take(&mut self.hosts[h].starve_spawn) {
            // Between the look at the clock and the fork; and then the daemon, too, is gone.
            let until = self.now + self.setup.ttl() * 6 / 5;
            self.guards[g].frozen_until = until;
            self.guards[g].says_after = until;
            exec = until + 200 * US + self.dice.below(MS);
            self.push(self.now + MS, Ev::Again { fault: Fault::KillDaemon { host: id(h) }, tries: 0 });
            say!(self, format!("g{g}"), "is starved while it forks");
        }
        if self.dice.chance(3) && !self.healed {
            exec += self.dice.below(self.setup.ttl() / 2); // the forked process is starved, the guard is not
        }
        self.push(exec, Ev::Exec { guard: number(g), birth });
        true
    }

    fn stop(&mut self, g: usize, kill_by: Instant, by_deadline: bool) {
        let guard = &mut self.guards[g];
        guard.latched = true;
        guard.deadlines.kill_at = guard.deadlines.kill_at.min(kill_by);
        match guard.state {
            State::Running => {
                guard.state = State::Stopping;
                guard.stopped_at = Some(self.now);
                self.terminate(g);
                if by_deadline {
                    self.says(g, Says::Stopping);
                }
            }
            State::Restarting { kill_by } => {
                guard.state = State::Stopping;
                guard.stopped_at = Some(self.now);
                guard.deadlines.kill_at = guard.deadlines.kill_at.min(kill_by);
                self.mark(Mark::StopsWhileRestarting);
                if by_deadline {
                    self.says(g, Says::Stopping);
                }
            }
            State::Idle | State::Dead => self.begin_killing(g),
            State::Stopping | State::Killing => {}
        }
    }

    fn kill(&mut self, g: usize) {
        self.guards[g].latched = true;
        self.begin_killing(g);
    }

    fn begin_killing(&mut self, g: usize) {
        let guard = &mut self.guards[g];
        if guard.state != State::Killing {
            guard.killed = 0;
            guard.state = State::Killing;
        }
    }

    fn kill_more(&mut self, g: usize) {
        self.kill_tree(g);
        self.reap(g);
        let careless = self.is(Mutant::RestartLeavesRest) && !self.guards[g].latched;
        if self.guards[g].main.is_some() || (self.guards[g].rest && !careless) {
            return;
        }
        let guard = &mut self.guards[g];
        let (killed, last) = (guard.killed, guard.latched);
        guard.state = if last { State::Dead } else { State::Idle };
        self.says(g, Says::TreeDead { killed, last });
        if last && self.guards[g].orphaned {
            self.become_releaser(g);
        }
    }

    fn set_guard_timer(&mut self, g: usize) {
        let guard = &self.guards[g];
        let Deadlines { stop_at, kill_at } = guard.deadlines;
        let next = match guard.state {
            _ if !guard.armed || !guard.lives || guard.releasing || self.is(Mutant::NoGuard) => return,
            State::Idle | State::Running => stop_at.min(kill_at),
            State::Restarting { kill_by } => stop_at.min(kill_at).min(kill_by),
            State::Stopping => kill_at,
            State::Killing | State::Dead => return,
        };
        let at = self.when(guard.host, next);
        // An entry that comes too early sets the timer anew.
        if at < self.guards[g].timer_at {
            let at = at.max(self.now) + self.dice.lateness();
            self.guards[g].timer_at = at;
            self.push(at, Ev::GuardTimer { guard: number(g) });
        }
    }

    // ── processes ──

    fn on_exec(&mut self, g: usize) {
        let Some(main) = &mut self.guards[g].main else { return };
        if main.phase == Phase::Runs && !main.told {
            main.told = true;
            self.says(g, Says::Started);
        }
    }

    fn reap(&mut self, g: usize) {
        let Some(main) = self.guards[g].main else { return };
        match main.phase {
            Phase::Forked | Phase::Runs => return,
            Phase::Failed { late } => self.says(g, Says::ExecFailed { late }),
            Phase::Ended(exit) => {
                if !main.told {
                    self.says(g, Says::Started);
                }
                self.says(g, Says::Exited(exit));
            }
        }
        if self.guards[g].rest {
            self.mark(Mark::F14);
        }
        self.guards[g].main = None;
        self.begin_killing(g);
    }

    /// The last look at the clock (R9), then the program.
    pub fn exec(&mut self, g: usize, birth: u32) {
        let h = self.guards[g].host;
        let now = self.local(h);
        let fails = !self.healed && self.dice.chance(self.setup.child.exec_fails);
        let careless = self.is(Mutant::NoLastLook);
        if self.now < self.hosts[h].suspended_until {
            let at = self.hosts[h].suspended_until + self.dice.lateness();
            return self.push(at, Ev::Exec { guard: number(g), birth });
        }
        let guard = &mut self.guards[g];
        let Some(main) = guard.main.as_mut().filter(|_| guard.birth == birth) else { return };
        if main.phase != Phase::Forked {
            return;
        }
        if (now >= main.before && !careless) || fails {
            main.phase = Phase::Failed { late: now >= main.before };
            return self.signal_child(g);
        }
        main.phase = Phase::Runs;
        if guard.rest {
            self.violated("one at a time", || format!("g{g} starts a child beside what the last one left"));
        }
        let guard = &mut self.guards[g];
        guard.rest = self.dice.chance(self.setup.child.forks);
        guard.rest_dying = false;
        say!(self, format!("g{g}"), "the child runs");
        self.oracle_child_starts(g);
        let crashes = self.dice.chance(self.setup.child.crashes);
        let exit = Exit::Code(if crashes { 1 } else { 0 });
        let lives = self.dice.exp(self.setup.child.lives) + MS;
        if self.setup.child.crashes > 0 {
            self.push(self.now + lives, Ev::MainEnds { guard: number(g), birth, exit, by_itself: true });
        }
        self.signal_child(g);
    }

    /// Exec, exit and death are noticed a little later.
    fn signal_child(&mut self, g: usize) {
        if self.guards[g].lives {
            let at = self.now + self.dice.lateness();
            self.push(at, Ev::Frame { guard: number(g), frame: Frame::Wake });
        }
    }

    fn terminate(&mut self, g: usize) {
        let ignores = self.dice.chance(self.setup.child.ignores_term);
        let patience = nanos(self.setup.timing.stop_timeout());
        let takes = if self.dice.coin() { self.dice.scale(MS, patience * 2) } else { self.dice.dying() };
        if (ignores || takes > patience) && self.dice.chance(40) && !self.healed {
            let host = id(self.guards[g].host);
            self.push(self.now + MS, Ev::Again { fault: Fault::Hang { host, guard: true }, tries: 0 });
        }
        let guard = &mut self.guards[g];
        let Some(main) = &mut guard.main else { return };
        if ignores && main.phase == Phase::Runs {
            return;
        }
        let exit = if main.phase == Phase::Forked { Exit::Signal(15) } else { Exit::Code(0) };
        let birth = guard.birth;
        self.push(self.now + takes, Ev::MainEnds { guard: number(g), birth, exit, by_itself: false });
    }

    /// SIGKILL to everything that lives.
    fn kill_tree(&mut self, g: usize) {
        let (a, b) = (self.dice.dying(), self.dice.dying());
        // A tree that forks is caught by one of the next passes.
        let b = if self.dice.chance(50) { b + 10 * MS } else { b };
        let alive = self.guards[g].main_alive();
        let guard = &mut self.guards[g];
        let birth = guard.birth;
        let mut main_dies = false;
        if let Some(main) = guard.main.as_mut().filter(|main| alive && !main.dying) {
            main.dying = true;
            main_dies = true;
            guard.killed += 1;
        }
        let rest_dies = guard.rest && !guard.rest_dying;
        guard.rest_dying |= rest_dies;
        guard.killed += u32::from(rest_dies);
        if main_dies {
            let exit = Exit::Signal(9);
            self.push(self.now + a, Ev::MainEnds { guard: number(g), birth, exit, by_itself: false });
        }
        if rest_dies {
            self.push(self.now + b, Ev::RestEnds { guard: number(g), birth });
        }
    }

    pub fn main_ends(&mut self, g: usize, birth: u32, exit: Exit, by_itself: bool) {
        if by_itself && self.healed {
            return;
        }
        let alive = self.guards[g].main_alive();
        let guard = &mut self.guards[g];
        let Some(main) = guard.main.as_mut().filter(|_| guard.birth == birth && alive) else { return };
        let ran = main.phase == Phase::Runs;
        main.phase = Phase::Ended(exit);
        say!(self, format!("g{g}"), "main process ends: {exit:?}");
        if ran {
            if exit == Exit::Signal(9) && guard.stopped_at.is_some() {
                self.mark(Mark::F15);
            }
            self.oracle_processes_ended(g);
        }
        self.signal_child(g);
        self.bury(g);
    }

    pub fn rest_ends(&mut self, g: usize, birth: u32) {
        let guard = &mut self.guards[g];
        if guard.birth != birth || !guard.rest {
            return;
        }
        guard.rest = false;
        guard.rest_dying = false;
        self.oracle_processes_ended(g);
        self.signal_child(g);
        self.bury(g);
    }

    // ── its own end ──

    /// SIGKILL to the guard itself: the kernel kills the main process with it, and tells the daemon.
    pub fn kill_guard(&mut self, g: usize) {
        if !self.guards[g].lives {
            return;
        }
        say!(self, format!("g{g}"), "guard is killed");
        let after = self.dice.lateness();
        self.guards[g].lives = false;
        let birth = self.guards[g].birth;
        let (dies, exit) = (self.now + self.dice.dying(), Exit::Signal(9));
        if let Some(main) = &mut self.guards[g].main {
            if main.phase == Phase::Forked {
                main.phase = Phase::Ended(exit);
            } else {
                self.push(dies, Ev::MainEnds { guard: number(g), birth, exit, by_itself: false });
            }
        }
        let at = (self.now + after).max(self.guards[g].says_after + 1);
        self.guards[g].says_after = at;
        self.push(at, Ev::Says { guard: number(g), says: Says::Gone });
        self.bury(g);
    }

    fn become_releaser(&mut self, g: usize) {
        let guard = &mut self.guards[g];
        guard.releasing = true;
        let (h, value) = (guard.host, guard.value);
        say!(self, format!("g{g}"), "becomes the releaser");
        self.oracle_releases(value, "the guard's releaser");
        for n in 0..self.setup.nodes {
            let link = &self.links[h * self.setup.nodes + n];
            let leaves = self.now.max(link.cut_there).max(link.cut_back);
            let at = leaves + 3 * self.way();
            if at < self.now + RELEASER {
                let letter = self.post.put(Letter::Releaser { guard: number(g), node: id(n), value });
                self.push(at, Ev::ToNode { letter });
            }
        }
        self.push(self.now + RELEASER, Ev::ReleaserEnds { guard: number(g) });
    }

    pub fn releaser_ends(&mut self, g: usize) {
        if self.guards[g].lives {
            self.guards[g].lives = false;
            self.bury(g);
        }
    }

    fn bury(&mut self, g: usize) {
        if self.guards[g].is_gone() {
            self.active.retain(|active| *active as usize != g);
        }
    }

    // ── at the daemon ──

    pub fn guard_said(&mut self, g: usize, says: Says) {
        let h = self.guards[g].host;
        if self.daemon(h).map(|daemon| daemon.slot) != Some(Slot::Guard(number(g))) {
            return;
        }
        let report = match says {
            Says::Armed => GuardReport::Armed,
            Says::Ack { accepted } => GuardReport::Acked { accepted },
            Says::Started => GuardReport::Started { pid: number(g) + 1 },
            Says::ExecFailed { late: true } => GuardReport::TooLate,
            Says::ExecFailed { late: false } => {
                GuardReport::ExecFailed { stage: "exec".to_owned(), errno: 2 }
            }
            Says::Exited(exit) => GuardReport::Exited(exit),
            Says::Stopping => GuardReport::Stopping,
            Says::TreeDead { killed, last } => {
                if self.guards[g].stopped_at.is_some_and(|at| self.now - at > MS) {
                    self.mark(Mark::F8);
                }
                GuardReport::TreeDead { killed, last }
            }
            Says::Gone => return self.guard_lost(h, g),
        };
        self.hear(h, Heard::Guard(report), Cause::Other);
    }

    fn guard_lost(&mut self, h: usize, g: usize) {
        if let Some(daemon) = self.daemon(h) {
            daemon.slot = Slot::Mourning { guard: number(g), again: MS };
        }
        let life = self.life(h).unwrap_or(0);
        self.push(self.now + MS, Ev::LastResort { host: id(h), life });
        self.hear(h, Heard::Guard(GuardReport::Lost("died")), Cause::Other);
        if self.is(Mutant::ProofSkipped) {
            let dead = GuardReport::TreeDead { killed: 0, last: true };
            self.hear(h, Heard::Guard(dead), Cause::Other);
        }
    }

    /// One pass over what a lost guard has left behind.
    pub fn last_resort(&mut self, h: usize, life: u32) {
        let Some(Slot::Mourning { guard, again }) =
            self.daemon(h).filter(|d| d.life == life).map(|daemon| daemon.slot)
        else {
            return;
        };
        let g = guard as usize;
        self.kill_tree(g);
        if !self.guards[g].is_over() {
            let again = (again * 2).min(10 * MS);
            if let Some(daemon) = self.daemon(h) {
                daemon.slot = Slot::Mourning { guard, again };
            }
            return self.push(self.now + again, Ev::LastResort { host: id(h), life });
        }
        if let Some(daemon) = self.daemon(h) {
            daemon.slot = Slot::Empty;
        }
        say!(self, format!("h{h}"), "last resort: the tree of g{g} is proven dead");
        let dead = GuardReport::TreeDead { killed: 0, last: true };
        self.hear(h, Heard::Guard(dead), Cause::Other);
    }

    pub fn is_fenced(&self) -> bool {
        self.setup.kind == Kind::Fenced
    }
}

pub fn number(g: usize) -> u32 {
    u32::try_from(g).expect("terms of a run fit")
}
