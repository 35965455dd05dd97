//! Probes: what is to be probed just now, and what follows from a result.
//!
//! While a child runs its health counts; while this host holds nothing, and its keeper asks for it, whether the host is fit to stand.

use super::context::Context;
use super::standby::Bar;
use super::term::Term;
use super::{Action, Change, Child, Election, State};
use crate::core::event::{Event, Reason};
use crate::core::restart::Ending;
use crate::core::time::{Instant, Now};

/// Number of one thing to be probed: one child, or one stretch of standing by. They grow, so that a late result hurts nobody else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProbeNumber(pub u64);

/// What is to be probed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Probed {
    Nothing,
    /// Whether this host may stand.
    Host(ProbeNumber),
    Child(ProbeNumber),
}

/// What probing has come to: several failures in a row are one report.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HealthReport {
    pub of: ProbeNumber,
    /// Which probe failed, and what it answered; `None`: all is well.
    pub failing: Option<String>,
}

/// Whether this host may stand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Fitness {
    /// The keeper does not ask for it.
    Any,
    Probed {
        number: ProbeNumber,
        /// `None` until the first result.
        fit: Option<bool>,
    },
}

impl Fitness {
    pub fn may_stand(self) -> bool {
        match self {
            Fitness::Any => true,
            Fitness::Probed { fit, .. } => fit == Some(true),
        }
    }
}

impl Context {
    /// What was found out before the last term may not be true any more.
    pub fn probe_host_anew(&mut self) {
        if let Fitness::Probed { .. } = self.fitness {
            self.fitness = Fitness::Probed { number: self.probe_number(), fit: None };
        }
    }

    pub fn probe_number(&mut self) -> ProbeNumber {
        self.probes += 1;
        ProbeNumber(self.probes)
    }

    /// True when it is news.
    fn learn_fitness(&mut self, report: &HealthReport) -> bool {
        let Fitness::Probed { number, fit } = &mut self.fitness else { return false };
        let now_fit = Some(report.failing.is_none());
        if *number != report.of || *fit == now_fit {
            return false;
        }
        *fit = now_fit;
        self.emit(match &report.failing {
            Some(why) => Event::HostUnfit { why: why.clone() },
            None => Event::HostFit,
        });
        true
    }
}

impl Election {
    /// What the edge is to probe from now on.
    pub fn probed(&self) -> Probed {
        match (&self.state, self.cx.fitness) {
            (State::Standby(_) | State::Candidate(_), Fitness::Probed { number, .. }) => Probed::Host(number),
            (State::Leader(term), _) => match term.child {
                Child::Running { number, .. } if term.is_serving() => Probed::Child(number),
                Child::Running { .. }
                | Child::Starting { .. }
                | Child::Restarting { .. }
                | Child::Ended { .. }
                | Child::Waiting { .. }
                | Child::Finished { .. } => Probed::Nothing,
            },
            (State::Standby(_) | State::Candidate(_), Fitness::Any)
            | (State::Releasing(_) | State::Stopped, _) => Probed::Nothing,
        }
    }

    /// Takes what probing has come to. A result about something that is over changes nothing.
    pub fn handle_health(&mut self, now: Now, report: HealthReport) {
        let (cx, boot) = (&mut self.cx, now.boot);
        let change = match &mut self.state {
            State::Leader(term) => {
                term.probed(cx, boot, report);
                None
            }
            State::Standby(standby) => {
                if cx.learn_fitness(&report) && cx.fitness.may_stand() {
                    standby.look_soon(boot);
                }
                None
            }
            State::Candidate(attempt) => {
                let unfit = cx.learn_fitness(&report) && !cx.fitness.may_stand();
                unfit.then(|| {
                    attempt.withdraw(cx, boot);
                    let look_at = boot + cx.poll_every();
                    let reason = Reason::Unfit(report.failing.unwrap_or_default());
                    Change::to(State::standing_by(Bar::None, look_at), reason)
                })
            }
            State::Releasing(_) | State::Stopped => None,
        };
        self.apply(now, change);
    }
}

impl Term {
    fn probed(&mut self, cx: &mut Context, now: Instant, report: HealthReport) {
        if let (Child::Running { number, .. }, Some(why)) = (&self.child, report.failing)
            && *number == report.of
            && self.is_serving()
        {
            self.stop_for_restart(cx, now, Ending::Unhealthy, Reason::Unhealthy(why));
        }
    }

    /// An operator's wish: not a failure, and no reason to wait.
    pub fn restart_asked(&mut self, cx: &mut Context, now: Instant, reason: Reason) {
        if !self.is_serving() {
            return;
        }
        match &mut self.child {
            Child::Running { .. } => self.stop_for_restart(cx, now, Ending::Asked, reason),
            Child::Ended { ending, .. } => *ending = Ending::Asked,
            Child::Waiting { restart_at } => *restart_at = now,
            Child::Finished { .. } => {
                let from = self.role();
                cx.restarts.asked();
                self.child = Child::Waiting { restart_at: now };
                self.say_role(cx, now, from, reason);
            }
            // It is about to be as new as can be.
            Child::Starting { .. } | Child::Restarting { .. } => {}
        }
    }

    fn stop_for_restart(&mut self, cx: &mut Context, now: Instant, ending: Ending, reason: Reason) {
        let Child::Running { pid, since, .. } = self.child else { return };
        self.child = Child::Restarting { pid, since, ending };
        cx.emit(Event::RestartBegins { reason });
        cx.act(Action::Restart { kill_by: now + cx.settings.timing.stop_timeout() });
        self.guard.expect_ack();
    }
}
