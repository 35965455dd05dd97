//! The last runs of a keeper's child on this host, and why each ended: made of the core's events, and of nothing else.

use crate::core::event::{Command, Event, Reason, Role};
use crate::core::lease::FencingToken;
use crate::core::restart::{Ending, Exit};
use crate::core::time::WallTime;
use crate::observe::events::say_reason;
use std::collections::VecDeque;

/// Older ones are forgotten.
pub const RUNS_KEPT: usize = 20;

/// Why a run ended, or never began. The names are a contract: they stand in `last_exit` and `history` of the status document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndReason {
    /// By itself; code or signal say how.
    Exited,
    /// By itself, and it was one failure too many: the keeper was handed to another host.
    GiveUp,
    /// The lease could not be renewed, or was lost to somebody else.
    LeaseLost,
    /// keeperd was stopped.
    Stop,
    StepDown,
    /// A preferred host asked for the keeper.
    Outbid,
    Pause,
    /// A reload of the configuration changed or removed the keeper.
    Reload,
    /// Restarted within the term by an operator.
    Restart,
    /// Restarted within the term, because its probes failed.
    Health,
    /// The guard died or did not answer, so nobody saw how the child ended.
    GuardLost,
    /// No guard could be started.
    LaunchFailed,
    /// The command could not be started.
    ExecFailed,
    /// The command was neither started nor refused in time.
    NeverStarted,
    /// Elected too late in the lease to start it.
    TooLate,
}

impl EndReason {
    pub fn name(self) -> &'static str {
        match self {
            EndReason::Exited => "exited",
            EndReason::GiveUp => "give_up",
            EndReason::LeaseLost => "lease_lost",
            EndReason::Stop => "stop",
            EndReason::StepDown => "step_down",
            EndReason::Outbid => "outbid",
            EndReason::Pause => "pause",
            EndReason::Reload => "reload",
            EndReason::Restart => "restart",
            EndReason::Health => "health",
            EndReason::GuardLost => "guard_lost",
            EndReason::LaunchFailed => "launch_failed",
            EndReason::ExecFailed => "exec_failed",
            EndReason::NeverStarted => "never_started",
            EndReason::TooLate => "too_late",
        }
    }

    /// What a change of role means for the child; `None` when it is not why a child ends.
    pub fn of(reason: &Reason) -> Option<EndReason> {
        Some(match reason {
            Reason::Command(Command::StepDown) => EndReason::StepDown,
            Reason::Outbid(_) => EndReason::Outbid,
            Reason::Command(Command::Pause) | Reason::PausedEverywhere(_) => EndReason::Pause,
            Reason::Command(Command::Retire) => EndReason::Reload,
            Reason::Command(Command::Drain | Command::Kill) => EndReason::Stop,
            Reason::Evicted | Reason::Foreign | Reason::LeaseEnding | Reason::GuardStopped => {
                EndReason::LeaseLost
            }
            Reason::GuardLost(_) => EndReason::GuardLost,
            Reason::LaunchFailed(_) => EndReason::LaunchFailed,
            Reason::ExecFailed { .. } => EndReason::ExecFailed,
            Reason::NeverStarted => EndReason::NeverStarted,
            Reason::TooLate => EndReason::TooLate,
            Reason::GaveUp { .. } => EndReason::GiveUp,
            Reason::Command(Command::Resume | Command::Restart)
            | Reason::Unhealthy(_)
            | Reason::Unfit(_)
            | Reason::LooksFree
            | Reason::Won
            | Reason::NotElected(_)
            | Reason::PolicyFinished { .. }
            | Reason::ResumedEverywhere
            | Reason::Released
            | Reason::CooldownOver
            | Reason::Resumed => return None,
        })
    }

    /// No process ran.
    fn is_failed_start(self) -> bool {
        match self {
            EndReason::LaunchFailed
            | EndReason::ExecFailed
            | EndReason::NeverStarted
            | EndReason::TooLate => true,
            EndReason::Exited
            | EndReason::GiveUp
            | EndReason::LeaseLost
            | EndReason::Stop
            | EndReason::StepDown
            | EndReason::Outbid
            | EndReason::Pause
            | EndReason::Reload
            | EndReason::Restart
            | EndReason::Health
            | EndReason::GuardLost => false,
        }
    }
}

impl From<Ending> for EndReason {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::ByItself => EndReason::Exited,
            Ending::Asked => EndReason::Restart,
            Ending::Unhealthy => EndReason::Health,
        }
    }
}

/// One start of the child, or one that failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    pub token: Option<FencingToken>,
    /// Absent when nothing was started.
    pub pid: Option<u32>,
    pub started: WallTime,
    /// Absent while it runs.
    pub end: Option<End>,
    /// Of a start that failed: at which step, and why.
    pub detail: Option<Box<str>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    pub at: WallTime,
    /// Absent when nothing was started, or when nobody saw it.
    pub exit: Option<Exit>,
    pub reason: EndReason,
}

/// The last [`RUNS_KEPT`] runs of one keeper, oldest first.
#[derive(Debug, Default)]
pub struct History {
    runs: VecDeque<Run>,
    /// Why this term's child is being ended.
    ending: Option<EndReason>,
}

impl History {
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter()
    }

    /// How the last run that is over ended.
    pub fn last_end(&self) -> Option<End> {
        self.runs.iter().rev().find_map(|run| run.end)
    }

    /// Takes an event that happened at `now`; true when a run was added or changed.
    pub fn note(&mut self, event: &Event, now: WallTime) -> bool {
        match event {
            Event::ChildStarted { pid, token } => {
                self.push(Run {
                    token: Some(*token),
                    pid: Some(*pid),
                    started: now,
                    end: None,
                    detail: None,
                });
                true
            }
            Event::ChildExited { exit, ending, .. } => self.end(now, Some(*exit), (*ending).into()),
            // A child whose guard was lost is known to be dead, and no more.
            Event::TreeDead { .. } => self.end(now, None, EndReason::Exited),
            Event::RoleChanged { to: Role::Leader, .. } => {
                self.ending = None;
                false
            }
            Event::RoleChanged { to: Role::SteppingDown, reason, token, .. } => {
                let Some(end) = EndReason::of(reason) else { return false };
                self.ending = Some(end);
                self.stepping_down(end, *token, now, || say_reason(reason).into())
            }
            Event::RoleChanged { .. }
            | Event::Elected { .. }
            | Event::Extended { .. }
            | Event::RestartBegins { .. }
            | Event::ChildRestarts { .. }
            | Event::HostFit
            | Event::HostUnfit { .. }
            | Event::StopSent { .. }
            | Event::TreeOutlivesLease
            | Event::ClockAhead { .. }
            | Event::HolderSeen { .. }
            | Event::Bids { .. }
            | Event::Released { .. } => false,
        }
    }

    fn stepping_down(
        &mut self,
        reason: EndReason,
        token: Option<FencingToken>,
        now: WallTime,
        detail: impl FnOnce() -> Box<str>,
    ) -> bool {
        if reason.is_failed_start() {
            let end = Some(End { at: now, exit: None, reason });
            self.push(Run { token, pid: None, started: now, end, detail: Some(detail()) });
            return true;
        }
        // The failure that was one too many has ended already.
        let last = self.runs.back_mut().filter(|run| run.token == token);
        match last.and_then(|run| run.end.as_mut()) {
            Some(end) if reason == EndReason::GiveUp && end.reason == EndReason::Exited => {
                end.reason = reason;
                true
            }
            Some(_) | None => false,
        }
    }

    fn end(&mut self, now: WallTime, exit: Option<Exit>, within_term: EndReason) -> bool {
        let reason = self.ending.unwrap_or(within_term);
        let Some(run) = self.runs.back_mut().filter(|run| run.end.is_none()) else { return false };
        run.end = Some(End { at: now, exit, reason });
        true
    }

    fn push(&mut self, run: Run) {
        if self.runs.len() == RUNS_KEPT {
            self.runs.pop_front();
        }
        self.runs.push_back(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const TOKEN: FencingToken = FencingToken(7);

    fn at(second: u64) -> WallTime {
        WallTime::from_micros(second * 1_000_000)
    }

    fn role(to: Role, reason: Reason) -> Event {
        Event::RoleChanged {
            from: Role::Leader,
            to,
            reason,
            token: Some(TOKEN),
            votes: Vec::new(),
            lease_age: None,
            lease_left: None,
        }
    }

    fn started(pid: u32) -> Event {
        Event::ChildStarted { pid, token: TOKEN }
    }

    fn exited(exit: Exit) -> Event {
        ended(exit, Ending::ByItself)
    }

    fn ended(exit: Exit, ending: Ending) -> Event {
        Event::ChildExited { exit, ran: Duration::from_secs(1), ending }
    }

    /// The pid of a run, and how it ended if it has.
    type Told = (Option<u32>, Option<(Option<Exit>, &'static str)>);

    fn told(events: &[Event]) -> Vec<Told> {
        let mut history = History::default();
        for (second, event) in (0..).zip(events) {
            history.note(event, at(second));
        }
        let end = |end: End| (end.exit, end.reason.name());
        history.runs().map(|run| (run.pid, run.end.map(end))).collect()
    }

    #[test]
    fn a_child_that_ends_by_itself_has_exited_and_the_last_straw_is_named() {
        let code = Exit::Code(7);
        let seen = told(&[
            role(Role::Leader, Reason::Won),
            started(1),
            exited(code),
            started(2),
            exited(code),
            role(Role::SteppingDown, Reason::GaveUp { failures: 2 }),
            Event::TreeDead { killed: 0 },
        ]);
        assert_eq!(seen, [(Some(1), Some((Some(code), "exited"))), (Some(2), Some((Some(code), "give_up")))]);
    }

    #[test]
    fn a_child_that_is_ended_carries_the_reason_of_the_stop() {
        let reasons = [
            (Reason::Command(Command::Drain), "stop"),
            (Reason::Command(Command::Kill), "stop"),
            (Reason::Command(Command::StepDown), "step_down"),
            (Reason::Command(Command::Pause), "pause"),
            (Reason::Command(Command::Retire), "reload"),
            (Reason::LeaseEnding, "lease_lost"),
            (Reason::GuardStopped, "lease_lost"),
            (Reason::Evicted, "lease_lost"),
            (Reason::Foreign, "lease_lost"),
        ];
        for (reason, name) in reasons {
            let exit = Exit::Signal(15);
            let seen =
                told(&[started(1), role(Role::SteppingDown, reason), exited(exit), started(2), exited(exit)]);
            assert_eq!(seen[0], (Some(1), Some((Some(exit), name))));
            // Forgotten only with the next term.
            assert_eq!(seen[1], (Some(2), Some((Some(exit), name))));
        }
    }

    #[test]
    fn a_child_that_is_restarted_within_the_term_carries_the_reason() {
        let term = Exit::Signal(15);
        let seen = told(&[
            started(1),
            ended(term, Ending::Asked),
            started(2),
            ended(term, Ending::Unhealthy),
            role(Role::SteppingDown, Reason::GaveUp { failures: 1 }),
        ]);
        assert_eq!(seen, [(Some(1), Some((Some(term), "restart"))), (Some(2), Some((Some(term), "health")))]);
        // A lease that ends during a restart is the stronger reason.
        let seen =
            told(&[started(1), role(Role::SteppingDown, Reason::LeaseEnding), ended(term, Ending::Asked)]);
        assert_eq!(seen, [(Some(1), Some((Some(term), "lease_lost")))]);
    }

    #[test]
    fn a_lost_guard_leaves_a_run_without_an_exit() {
        let lost = role(Role::SteppingDown, Reason::GuardLost("died"));
        let seen = told(&[started(1), lost, Event::TreeDead { killed: 1 }]);
        assert_eq!(seen, [(Some(1), Some((None, "guard_lost")))]);
    }

    #[test]
    fn a_start_that_failed_is_a_run_without_a_process() {
        let failed = Reason::ExecFailed { stage: "exec".into(), errno: 2 };
        let seen = told(&[role(Role::SteppingDown, failed), Event::TreeDead { killed: 0 }]);
        assert_eq!(seen, [(None, Some((None, "exec_failed")))]);
    }

    #[test]
    fn a_new_term_begins_without_a_reason() {
        let seen = told(&[
            started(1),
            role(Role::SteppingDown, Reason::LeaseEnding),
            exited(Exit::Signal(15)),
            role(Role::Leader, Reason::Won),
            started(2),
            exited(Exit::Code(0)),
        ]);
        assert_eq!(seen[1], (Some(2), Some((Some(Exit::Code(0)), "exited"))));
    }

    #[test]
    fn only_the_last_runs_are_kept() {
        let events: Vec<Event> = (1..=50).flat_map(|pid| [started(pid), exited(Exit::Code(1))]).collect();
        let pids: Vec<_> = told(&events).into_iter().map(|(pid, _)| pid).collect();
        assert_eq!(pids, (31..=50).map(Some).collect::<Vec<_>>());
    }
}
