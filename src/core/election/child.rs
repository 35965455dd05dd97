//! The guard and the child of a term: what was reported of them, and what follows.

use super::context::Context;
use super::health::ProbeNumber;
use super::release::After;
use super::term::{Phase, Term};
use super::{Action, Change, GuardReport, Timer};
use crate::core::event::{Event, Reason};
use crate::core::restart::{Ending, Exit, Verdict};
use crate::core::time::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// The main process of the keeper.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Child {
    Starting {
        /// Exec is refused or done long before; the file system may hang.
        until: Instant,
    },
    Running {
        pid: u32,
        since: Instant,
        number: ProbeNumber,
    },
    /// It was told to stop, to be started again.
    Restarting {
        pid: u32,
        since: Instant,
        ending: Ending,
    },
    /// It ended; what it left behind is being killed.
    Ended {
        exit: Exit,
        ran_from: Instant,
        ending: Ending,
    },
    /// Waits for its restart, within the term.
    Waiting {
        restart_at: Instant,
    },
    /// The policy wants no more of it; the lock is held so that no other host runs it.
    Finished {
        exit: Exit,
    },
}

/// Longer than any sane exec takes.
const START_MAX: Duration = Duration::from_secs(10);

impl Child {
    pub fn starting(now: Instant) -> Child {
        Child::Starting { until: now + START_MAX }
    }
}

/// What we know of the guard process.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum GuardLink {
    Launching {
        until: Instant,
        /// Commands sent before it was armed; it acknowledges them all.
        unacknowledged: u32,
    },
    /// Commands it has not acknowledged, oldest first; each entry is filled in when the clock is next known.
    Armed { acks_due: VecDeque<Option<Instant>> },
    /// Gone or not answering: the daemon kills the tree itself.
    Lost,
}

impl GuardLink {
    pub fn launching(until: Instant) -> Self {
        // The launch itself is two commands: arm and spawn.
        GuardLink::Launching { until, unacknowledged: 2 }
    }

    /// One more command is out.
    pub fn expect_ack(&mut self) {
        match self {
            GuardLink::Launching { unacknowledged, .. } => *unacknowledged += 1,
            GuardLink::Armed { acks_due } => acks_due.push_back(None),
            GuardLink::Lost => {}
        }
    }

    fn acknowledged(&mut self) {
        match self {
            GuardLink::Launching { unacknowledged, .. } => *unacknowledged = unacknowledged.saturating_sub(1),
            GuardLink::Armed { acks_due } => {
                acks_due.pop_front();
            }
            GuardLink::Lost => {}
        }
    }

    /// Stamps commands sent since the last call; the core is handed the time only at its edges.
    fn stamp(&mut self, due: Instant) {
        if let GuardLink::Armed { acks_due } = self {
            for ack in acks_due.iter_mut().filter(|ack| ack.is_none()) {
                *ack = Some(due);
            }
        }
    }

    pub fn is_lost(&self) -> bool {
        matches!(self, GuardLink::Lost)
    }
}

impl Term {
    pub fn guard_timer(&self, cx: &Context) -> Option<(Instant, Timer)> {
        let restart = match &self.child {
            Child::Waiting { restart_at } if self.is_serving() => Some((*restart_at, Timer::RestartChild)),
            Child::Starting { until } if self.is_serving() => Some((*until, Timer::StartEnds)),
            Child::Waiting { .. }
            | Child::Starting { .. }
            | Child::Running { .. }
            | Child::Restarting { .. }
            | Child::Ended { .. }
            | Child::Finished { .. } => None,
        };
        let link = match &self.guard {
            GuardLink::Launching { until, .. } => Some((*until, Timer::AckDue)),
            GuardLink::Armed { acks_due } => {
                acks_due.front().copied().flatten().map(|due| (due, Timer::AckDue))
            }
            GuardLink::Lost => None,
        };
        // The guard kills at kill_at; half a margin later the daemon stops trusting it.
        let backstop = match self.phase {
            Phase::Killing { .. } | Phase::Stopping { .. } if !self.guard.is_lost() => {
                let timing = cx.settings.timing;
                let half = timing.kill_margin() / 2;
                Some(((timing.kill_at(self.offered) + half).max(self.dead_by(half)), Timer::Backstop))
            }
            Phase::Killing { .. } | Phase::Stopping { .. } | Phase::Serving => None,
        };
        [restart, link, backstop].into_iter().flatten().min()
    }

    /// Gives every command sent during this call its time-out.
    pub fn stamp_acks(&mut self, cx: &Context, now: Instant) {
        self.guard.stamp(now + cx.settings.timing.ack_timeout());
    }

    pub fn handle_guard(&mut self, cx: &mut Context, now: Instant, report: GuardReport) -> Option<Change> {
        match report {
            GuardReport::Armed => {
                if let GuardLink::Launching { unacknowledged, .. } = self.guard {
                    let acks_due = (0..unacknowledged).map(|_| None).collect();
                    self.guard = GuardLink::Armed { acks_due };
                }
                None
            }
            GuardReport::Acked { accepted } => {
                self.guard.acknowledged();
                // It latched before we knew: it is stopping at its own deadline.
                if accepted { None } else { self.stop(cx, now, Reason::GuardStopped, After::GiveWay) }
            }
            GuardReport::Stopping => self.stop(cx, now, Reason::LeaseEnding, After::GiveWay),
            GuardReport::Started { pid } => {
                self.child = Child::Running { pid, since: now, number: cx.probe_number() };
                cx.emit(Event::ChildStarted { pid, token: self.lease.token });
                None
            }
            GuardReport::TooLate => self.stop(cx, now, Reason::TooLate, After::Stand),
            GuardReport::ExecFailed { stage, errno } => {
                let after = self.cooldown(cx, now);
                self.stop(cx, now, Reason::ExecFailed { stage, errno }, after)
            }
            GuardReport::Exited(exit) => {
                let (ran_from, ending) = match self.child {
                    Child::Running { since, .. } => (since, Ending::ByItself),
                    Child::Restarting { since, ending, .. } => (since, ending),
                    Child::Starting { .. }
                    | Child::Ended { .. }
                    | Child::Waiting { .. }
                    | Child::Finished { .. } => (now, Ending::ByItself),
                };
                self.child = Child::Ended { exit, ran_from, ending };
                cx.emit(Event::ChildExited { exit, ran: now.since(ran_from), ending });
                None
            }
            GuardReport::TreeDead { killed, last } => self.tree_dead(cx, now, killed, last),
            GuardReport::Lost(why) => self.lose_guard(cx, now, why),
            GuardReport::LaunchFailed(error) => {
                let after = self.cooldown(cx, now);
                self.guard = GuardLink::Lost;
                self.stop(cx, now, Reason::LaunchFailed(error), after);
                self.release(cx, now)
            }
        }
    }

    fn cooldown(&self, cx: &Context, now: Instant) -> After {
        After::Cooldown { until: now + cx.restarts.rules().cooldown }
    }

    fn tree_dead(&mut self, cx: &mut Context, now: Instant, killed: u32, last: bool) -> Option<Change> {
        match (&self.phase, &self.child) {
            (Phase::Stopping { .. } | Phase::Killing { .. }, _) if last => {
                cx.emit(Event::TreeDead { killed });
                self.release(cx, now)
            }
            // The child ended as we told it to stop: the answer to that is still to come.
            (Phase::Stopping { .. } | Phase::Killing { .. }, _) => None,
            // It latched at its own deadline and has finished, while nobody listened: nothing starts in it any more.
            (Phase::Serving, _) if last => {
                let from = self.role();
                self.phase = Phase::Stopping { after: After::GiveWay };
                self.say_role(cx, now, from, Reason::GuardStopped);
                cx.emit(Event::TreeDead { killed });
                self.release(cx, now)
            }
            (Phase::Serving, Child::Ended { exit, ran_from, ending }) => {
                let (exit, ran, ending) = (*exit, now.since(*ran_from), *ending);
                self.child_ended(cx, now, ending, exit, ran)
            }
            // Nothing ran: the guard repeats itself.
            (
                Phase::Serving,
                Child::Starting { .. }
                | Child::Running { .. }
                | Child::Restarting { .. }
                | Child::Waiting { .. }
                | Child::Finished { .. },
            ) => None,
        }
    }

    fn child_ended(
        &mut self,
        cx: &mut Context,
        now: Instant,
        ending: Ending,
        exit: Exit,
        ran: Duration,
    ) -> Option<Change> {
        match cx.restarts.decide(now, ending, exit, ran, &mut cx.rng) {
            Verdict::Restart { at } => {
                cx.emit(Event::ChildRestarts { after: at.since(now), ending });
                self.child = Child::Waiting { restart_at: at };
                None
            }
            Verdict::GiveUp { failures } => {
                let after = self.cooldown(cx, now);
                self.stop(cx, now, Reason::GaveUp { failures }, after)
            }
            Verdict::Finished => {
                let from = self.role();
                self.child = Child::Finished { exit };
                self.say_role(cx, now, from, Reason::PolicyFinished { exit });
                None
            }
        }
    }

    pub fn never_started(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        let after = self.cooldown(cx, now);
        self.stop(cx, now, Reason::NeverStarted, after)
    }

    pub fn restart_child(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        let start_by = self.deadlines(cx).stop_at;
        self.child = Child::starting(now);
        cx.act(Action::Spawn { start_by });
        self.guard.expect_ack();
        None
    }

    /// The guard is gone or does not answer: it is killed, and the daemon, its subreaper, kills the tree. The lease is extended until
    /// the proof (R3).
    pub fn lose_guard(&mut self, cx: &mut Context, now: Instant, why: &'static str) -> Option<Change> {
        if self.guard.is_lost() {
            return None;
        }
        let never_armed = matches!(self.guard, GuardLink::Launching { .. });
        let away = never_armed || cx.restarts.guard_lost(now).is_some();
        let after = if away { self.cooldown(cx, now) } else { After::Stand };
        self.guard = GuardLink::Lost;
        self.kill(cx, now, Reason::GuardLost(why), after);
        cx.act(Action::KillGuard);
        None
    }

    pub fn stop_at(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        self.stop(cx, now, Reason::LeaseEnding, After::GiveWay)
    }

    pub fn kill_at(&mut self, cx: &mut Context, now: Instant) -> Option<Change> {
        self.kill(cx, now, Reason::LeaseEnding, After::GiveWay)
    }
}
