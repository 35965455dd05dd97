//! What happens when the child ends: restart within the term, give the keeper up to another host, or be finished.

use super::backoff::Backoff;
use super::rng::Rng;
use super::time::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// A child that ran this long was healthy: the delay starts again at `restart_delay`.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

/// The restart keys of a keeper, validated by the configuration.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RestartRules {
    pub policy: RestartPolicy,
    pub success_exit_codes: Vec<i32>,
    pub delay: Duration,
    pub delay_max: Duration,
    pub give_up_after: u32,
    pub give_up_window: Duration,
    pub cooldown: Duration,
}

impl Default for RestartRules {
    fn default() -> Self {
        RestartRules {
            policy: RestartPolicy::Always,
            success_exit_codes: vec![0],
            delay: Duration::from_secs(1),
            delay_max: Duration::from_secs(60),
            give_up_after: 5,
            give_up_window: Duration::from_secs(300),
            cooldown: Duration::from_secs(60),
        }
    }
}

impl RestartRules {
    /// How long a child that fails at once takes to fail `give_up_after` times: what must fall into the window.
    pub fn crash_loop_lasts(&self) -> Duration {
        let mut backoff = self.backoff();
        (1..self.give_up_after).fold(Duration::ZERO, |sum, _| sum.saturating_add(backoff.next_delay()))
    }

    fn backoff(&self) -> Backoff {
        let first = self.delay.max(Duration::from_millis(1));
        Backoff::new(first, self.delay_max.max(first))
    }
}

/// How a main process ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

/// Why a main process ends within its term.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ending {
    /// Of its own accord, or by a stranger's signal.
    ByItself,
    /// An operator asked for a restart.
    Asked,
    /// Its probes failed.
    Unhealthy,
}

/// What follows from an exit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// Start it again, within the term.
    Restart { at: Instant },
    /// Too many failures in the window: another host shall try, this one stays away for the cooldown.
    GiveUp { failures: u32 },
    /// The policy wants no restart: hold the lock without a child, so that no other host runs it once more.
    Finished,
}

/// Counts failures of one keeper on this host, over terms.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Restarts {
    rules: RestartRules,
    backoff: Backoff,
    failures: VecDeque<Instant>,
    total: u64,
}

impl Restarts {
    pub fn new(rules: RestartRules) -> Self {
        let backoff = rules.backoff();
        Restarts { rules, backoff, failures: VecDeque::new(), total: 0 }
    }

    pub fn rules(&self) -> &RestartRules {
        &self.rules
    }

    /// Restarts granted since the daemon started.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// One more, by an operator's wish.
    pub fn asked(&mut self) {
        self.total += 1;
    }

    pub fn is_success(&self, exit: Exit) -> bool {
        match exit {
            Exit::Code(code) => self.rules.success_exit_codes.contains(&code),
            Exit::Signal(_) => false,
        }
    }

    /// Decides after the main process, which ran for `ran`, ended at `now`. Only failures count towards giving up: a script that
    /// does its work and exits 0 is restarted for ever at `restart_delay`. How it ends counts only if it ends by itself: one that was
    /// stopped as unhealthy has failed.
    pub fn decide(
        &mut self,
        now: Instant,
        ending: Ending,
        exit: Exit,
        ran: Duration,
        rng: &mut Rng,
    ) -> Verdict {
        let success = match ending {
            Ending::ByItself => self.is_success(exit),
            Ending::Unhealthy => false,
            Ending::Asked => {
                self.asked();
                return Verdict::Restart { at: now };
            }
        };
        let wanted = match self.rules.policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => !success,
            RestartPolicy::Never => false,
        };
        if !wanted && ending == Ending::Unhealthy {
            // It was not done: held without a child, it would be done nowhere.
            return Verdict::GiveUp { failures: 1 };
        }
        if !wanted {
            return Verdict::Finished;
        }
        if success || ran >= HEALTHY_AFTER {
            self.backoff.reset();
        }
        if !success && self.count_failure(now) {
            let failures = u32::try_from(self.failures.len()).unwrap_or(u32::MAX);
            self.failures.clear();
            self.backoff.reset();
            return Verdict::GiveUp { failures };
        }
        self.total += 1;
        Verdict::Restart { at: now + self.backoff.next_slight(rng) }
    }

    /// Counts a failure that is not the child's: its guard died. The number of failures, when it is time to give up.
    pub fn guard_lost(&mut self, now: Instant) -> Option<u32> {
        let failures =
            self.count_failure(now).then(|| u32::try_from(self.failures.len()).unwrap_or(u32::MAX));
        if failures.is_some() {
            self.failures.clear();
        }
        failures
    }

    /// Counts one failure; true when the limit within the window is reached.
    fn count_failure(&mut self, now: Instant) -> bool {
        self.failures.push_back(now);
        let window = self.rules.give_up_window;
        while self.failures.front().is_some_and(|first| now.since(*first) > window) {
            self.failures.pop_front();
        }
        self.failures.len() >= usize::try_from(self.rules.give_up_after.max(1)).unwrap_or(usize::MAX)
    }
}
