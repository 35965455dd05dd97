//! What a person or a reload asks of an election, in whatever state it is.

use super::release::{self, After};
use super::standby::Bar;
use super::term::Phase;
use super::{Change, Election, State};
use crate::core::event::{Command, Reason, Refusal};
use crate::core::time::{Instant, Now};

impl Election {
    /// Why `command` would change nothing now.
    pub fn refuses(&self, command: Command) -> Option<Refusal> {
        let serving = match &self.state {
            State::Leader(term) => term.is_serving(),
            State::Standby(_) | State::Candidate(_) | State::Releasing(_) => false,
            State::Stopped => return Some(Refusal::Ending),
        };
        match command {
            Command::StepDown => (!self.is_holding()).then_some(Refusal::NotHeld),
            Command::Restart => (!serving).then_some(Refusal::NothingRuns),
            Command::Resume => self.is_paused_everywhere().then_some(Refusal::PausedEverywhere),
            Command::Pause | Command::Drain | Command::Retire | Command::Kill => None,
        }
    }

    pub fn handle_command(&mut self, now: Now, command: Command) {
        let (cx, boot) = (&mut self.cx, now.boot);
        let reason = Reason::Command(command);
        let after = match command {
            Command::StepDown => After::StayOut,
            Command::Pause => After::Paused,
            Command::Drain | Command::Retire | Command::Kill => After::Stopped,
            Command::Resume => {
                self.paused = false;
                return self.resume(now);
            }
            Command::Restart => {
                if let State::Leader(term) = &mut self.state {
                    term.restart_asked(cx, boot, reason);
                }
                return self.apply(now, None);
            }
        };
        self.paused |= command == Command::Pause;
        let change = match &mut self.state {
            State::Leader(term) if command == Command::Kill => term.kill(cx, boot, reason, after),
            State::Leader(term) => term.stop(cx, boot, reason, after),
            State::Releasing(release) => {
                release.after = release.after.stronger(after);
                None
            }
            State::Candidate(attempt) => {
                attempt.withdraw(cx, boot);
                Some(Change::to(Self::idle(boot, after), reason))
            }
            // Nothing to hand over: it already stands by.
            State::Standby(_) if command == Command::StepDown => None,
            State::Standby(_) => Some(Change::to(Self::idle(boot, after), reason)),
            State::Stopped => None,
        };
        self.apply(now, change);
    }

    /// The state of a host that holds nothing, after a command.
    fn idle(now: Instant, after: After) -> State {
        let bar = match after {
            After::Stand => Bar::None,
            After::GiveWay => Bar::StayOut { until: now + release::HEAD_START },
            After::StayOut => Bar::StayOut { until: now + release::STAY_OUT },
            After::Cooldown { until } => Bar::Cooldown { until },
            After::Paused => Bar::Paused,
            After::Stopped => return State::Stopped,
        };
        State::standing_by(bar, now)
    }

    fn resume(&mut self, now: Now) {
        let change = match &mut self.state {
            // Of that pause it is the nodes that know the end.
            State::Standby(standby) if standby.bar == Bar::PausedEverywhere => None,
            State::Standby(standby) => standby.lift_bar(now.boot, Reason::Resumed),
            State::Releasing(release) if release.after != After::Stopped => {
                release.after = After::Stand;
                None
            }
            State::Leader(term) => {
                if let Phase::Stopping { after } | Phase::Killing { after } = &mut term.phase
                    && *after != After::Stopped
                {
                    *after = After::Stand;
                }
                None
            }
            State::Candidate(_) | State::Releasing(_) | State::Stopped => None,
        };
        self.apply(now, change);
    }
}
