//! What is counted of one keeper, made of the core's events and of nothing else. The core thread adds, the edge thread reads whenever it
//! is scraped, and neither waits for the other.

use super::history::EndReason;
use crate::core::event::{ElectionOutcome, Event, Reason, Role};
use crate::core::restart::{Ending, Exit};
use crate::core::round::ExtensionOutcome;
use crate::core::time::{Instant, Now};
use nix::sys::signal::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub const ELECTIONS: [ElectionOutcome; 4] =
    [ElectionOutcome::Won, ElectionOutcome::Conflict, ElectionOutcome::NoQuorum, ElectionOutcome::Late];
pub const EXTENSIONS: [ExtensionOutcome; 4] = [
    ExtensionOutcome::Renewed,
    ExtensionOutcome::Foreign,
    ExtensionOutcome::Evicted,
    ExtensionOutcome::Unknown,
];
pub const ENDINGS: [Ending; 3] = [Ending::ByItself, Ending::Asked, Ending::Unhealthy];
/// Why a child that runs, or what it left behind, is ended.
pub const KILL_REASONS: [EndReason; 11] = [
    EndReason::LeaseLost,
    EndReason::Stop,
    EndReason::StepDown,
    EndReason::Outbid,
    EndReason::Pause,
    EndReason::Reload,
    EndReason::Restart,
    EndReason::Health,
    EndReason::GiveUp,
    EndReason::GuardLost,
    EndReason::NeverStarted,
];

/// Upper bounds in seconds. A round is over within a node's time-out of at most half a second.
const EXTENSION_BOUNDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5];
const TAKEOVER_BOUNDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const HOLD_BOUNDS: &[f64] = &[1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0, 604_800.0];

/// Counts by the place of a value in one of the lists above.
#[derive(Debug)]
pub struct Counts<T: 'static, const N: usize> {
    values: &'static [T; N],
    counts: [AtomicU64; N],
}

impl<T: Copy + PartialEq, const N: usize> Counts<T, N> {
    fn of(values: &'static [T; N]) -> Self {
        Counts { values, counts: [const { AtomicU64::new(0) }; N] }
    }

    /// One more of `value`; of one that is not in the list there is nothing to count.
    fn add(&self, value: T) {
        if let Some(place) = self.values.iter().position(|known| *known == value) {
            self.counts[place].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (T, u64)> {
        self.values.iter().zip(&self.counts).map(|(value, count)| (*value, count.load(Ordering::Relaxed)))
    }
}

/// A histogram whose writer never waits, as that of prometheus-client would.
#[derive(Debug)]
pub struct Histogram {
    /// Ascending; what is above the last has a bucket of its own.
    bounds: &'static [f64],
    buckets: Box<[AtomicU64]>,
    sum_us: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, buckets, sum_us: AtomicU64::new(0) }
    }

    fn observe(&self, span: Duration) {
        let seconds = span.as_secs_f64();
        let place = self.bounds.iter().take_while(|bound| seconds > **bound).count();
        self.buckets[place].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Each upper bound, with how many were in its bucket.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(self.buckets.iter().map(|count| count.load(Ordering::Relaxed))).collect()
    }

    pub fn sum_seconds(&self) -> f64 {
        Duration::from_micros(self.sum_us.load(Ordering::Relaxed)).as_secs_f64()
    }
}

/// Everything counted of one keeper since keeperd started.
#[derive(Debug)]
pub struct Series {
    /// As a child is asked to stop.
    pub stop_signal: Signal,
    pub elections: Counts<ElectionOutcome, 4>,
    pub extensions: Counts<ExtensionOutcome, 4>,
    pub restarts: Counts<Ending, 3>,
    /// By the stop signal, and by SIGKILL.
    pub stopped: Counts<EndReason, 11>,
    pub killed: Counts<EndReason, 11>,
    pub extension: Histogram,
    pub takeover: Histogram,
    pub hold: Histogram,
    term_start_us: AtomicU64,
}

impl Series {
    pub fn new(stop_signal: Signal) -> Series {
        Series {
            stop_signal,
            elections: Counts::of(&ELECTIONS),
            extensions: Counts::of(&EXTENSIONS),
            restarts: Counts::of(&ENDINGS),
            stopped: Counts::of(&KILL_REASONS),
            killed: Counts::of(&KILL_REASONS),
            extension: Histogram::new(EXTENSION_BOUNDS),
            takeover: Histogram::new(TAKEOVER_BOUNDS),
            hold: Histogram::new(HOLD_BOUNDS),
            term_start_us: AtomicU64::new(0),
        }
    }

    /// When the term began, in seconds of Unix time; 0 without one.
    pub fn term_start_seconds(&self) -> f64 {
        Duration::from_micros(self.term_start_us.load(Ordering::Relaxed)).as_secs_f64()
    }
}

/// Turns the events of one keeper into its series, on the core thread.
#[derive(Debug)]
pub struct Recorder {
    series: Arc<Series>,
    /// Since when the keeper looks free, while nobody has it.
    free_since: Option<Instant>,
    held_since: Option<Instant>,
    child_runs: bool,
    /// A signal whose reason the next event tells; whether it was the polite one.
    sent: Option<bool>,
    /// Why the child is being ended.
    ending: Option<EndReason>,
    /// SIGKILL is counted once for each end.
    kill_counted: bool,
}

impl Recorder {
    pub fn new(series: Arc<Series>) -> Recorder {
        Recorder {
            series,
            free_since: None,
            held_since: None,
            child_runs: false,
            sent: None,
            ending: None,
            kill_counted: false,
        }
    }

    pub fn note(&mut self, event: &Event, now: Now) {
        match event {
            Event::RoleChanged { from, to, reason, .. } => self.role_changed(*from, *to, reason, now),
            Event::Elected { outcome, .. } => self.series.elections.add(*outcome),
            Event::Extended { outcome, took, .. } => {
                self.series.extensions.add(*outcome);
                self.series.extension.observe(*took);
            }
            Event::ChildStarted { .. } => {
                self.child_runs = true;
                if let Some(free_since) = self.free_since.take() {
                    self.series.takeover.observe(now.boot.since(free_since));
                }
            }
            Event::StopSent { polite } => self.sent = Some(*polite),
            Event::RestartBegins { reason: Reason::Unhealthy(_) } => self.stopped(EndReason::Health),
            Event::RestartBegins { .. } => self.stopped(EndReason::Restart),
            Event::ChildExited { exit, ending, .. } => {
                // The guard's own SIGKILL, after a restart's stop signal.
                if *exit == Exit::Signal(Signal::SIGKILL as i32) && *ending != Ending::ByItself {
                    self.killed();
                }
                self.child_runs = false;
            }
            Event::ChildRestarts { ending, .. } => {
                self.series.restarts.add(*ending);
                (self.ending, self.kill_counted) = (None, false);
            }
            Event::TreeDead { killed } => {
                if *killed > 0 {
                    self.killed();
                }
                self.child_runs = false;
            }
            Event::Released { .. } => {
                if let Some(held_since) = self.held_since.take() {
                    self.series.hold.observe(now.boot.since(held_since));
                }
                self.series.term_start_us.store(0, Ordering::Relaxed);
                (self.ending, self.kill_counted) = (None, false);
            }
            Event::HostFit
            | Event::HostUnfit { .. }
            | Event::TreeOutlivesLease
            | Event::ClockAhead { .. }
            | Event::HolderSeen { .. }
            | Event::Bids { .. } => {}
        }
    }

    fn role_changed(&mut self, from: Role, to: Role, reason: &Reason, now: Now) {
        match (from, to, reason) {
            (_, Role::Candidate, _) => {
                self.free_since.get_or_insert(now.boot);
            }
            (Role::Candidate, Role::Leader, _) => {
                self.held_since = Some(now.boot);
                self.series.term_start_us.store(now.wall.as_micros(), Ordering::Relaxed);
            }
            // Nobody has it yet: the next attempt goes on with the same vacancy.
            (_, Role::Standby, Reason::NotElected(ElectionOutcome::NoQuorum | ElectionOutcome::Late)) => {}
            (_, Role::SteppingDown, reason) => self.stepping_down(EndReason::of(reason)),
            (Role::Finished, Role::Leader, _) => self.series.restarts.add(Ending::Asked),
            (_, Role::Standby | Role::Leader | Role::Paused | Role::Cooldown | Role::Finished, _) => {
                self.free_since = None;
            }
        }
    }

    fn stepping_down(&mut self, reason: Option<EndReason>) {
        let sent = self.sent.take();
        let Some(reason) = reason else { return };
        match sent {
            Some(true) => self.stopped(reason),
            Some(false) => {
                self.ending = Some(reason);
                if self.child_runs {
                    self.killed();
                }
            }
            // The guard latched by itself.
            None => self.ending = Some(reason),
        }
    }

    /// The stop signal went out.
    fn stopped(&mut self, reason: EndReason) {
        self.ending = Some(reason);
        if self.child_runs {
            self.series.stopped.add(reason);
        }
    }

    /// SIGKILL did.
    fn killed(&mut self) {
        if let Some(reason) = self.ending
            && !std::mem::replace(&mut self.kill_counted, true)
        {
            self.series.killed.add(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::Command;
    use crate::core::lease::FencingToken;
    use crate::core::time::WallTime;

    fn role(from: Role, to: Role, reason: Reason) -> Event {
        Event::RoleChanged {
            from,
            to,
            reason,
            token: None,
            votes: Vec::new(),
            lease_age: None,
            lease_left: None,
        }
    }

    fn stands() -> Event {
        role(Role::Standby, Role::Candidate, Reason::LooksFree)
    }

    fn not_elected(outcome: ElectionOutcome) -> Event {
        role(Role::Candidate, Role::Standby, Reason::NotElected(outcome))
    }

    fn wins() -> Event {
        role(Role::Candidate, Role::Leader, Reason::Won)
    }

    fn steps_down(reason: Reason) -> Event {
        role(Role::Leader, Role::SteppingDown, reason)
    }

    fn started() -> Event {
        Event::ChildStarted { pid: 1, token: FencingToken(1) }
    }

    fn exited(exit: Exit, ending: Ending) -> Event {
        Event::ChildExited { exit, ran: Duration::ZERO, ending }
    }

    const RELEASED: Event = Event::Released { confirmed: 2, token: FencingToken(1) };
    const KILLED: Exit = Exit::Signal(9);

    /// The series after these events, one second apart.
    fn after(events: &[Event]) -> Arc<Series> {
        let series = Arc::new(Series::new(Signal::SIGTERM));
        let mut recorder = Recorder::new(Arc::clone(&series));
        for (second, event) in (1..).zip(events) {
            let boot = Instant::from_nanos(second * 1_000_000_000);
            recorder.note(event, Now { boot, wall: WallTime::from_micros(second * 1_000_000) });
        }
        series
    }

    /// Those that are not 0.
    fn told<T: Copy + PartialEq, const N: usize>(counts: &Counts<T, N>) -> Vec<(T, u64)> {
        counts.iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Not 0: by the stop signal, by SIGKILL.
    type Kills = (Vec<(EndReason, u64)>, Vec<(EndReason, u64)>);

    fn kills(events: &[Event]) -> Kills {
        let series = after(events);
        (told(&series.stopped), told(&series.killed))
    }

    fn spans(histogram: &Histogram) -> (u64, f64) {
        (histogram.buckets().iter().map(|(_, count)| count).sum(), histogram.sum_seconds())
    }

    #[test]
    fn a_term_is_measured_from_its_election_to_its_release() {
        let running = after(&[stands(), wins(), started()]);
        assert_eq!((running.term_start_seconds(), spans(&running.hold)), (2.0, (0, 0.0)));
        let stop = Reason::Command(Command::StepDown);
        let over = after(&[
            stands(),
            wins(),
            started(),
            Event::StopSent { polite: true },
            steps_down(stop),
            RELEASED,
        ]);
        assert_eq!((over.term_start_seconds(), spans(&over.hold)), (0.0, (1, 4.0)));
    }

    #[test]
    fn a_take_over_counts_from_when_it_looked_free_through_failed_attempts_but_not_through_others_terms() {
        let late = after(&[stands(), not_elected(ElectionOutcome::NoQuorum), stands(), wins(), started()]);
        assert_eq!(spans(&late.takeover), (1, 4.0));
        let lost = after(&[stands(), not_elected(ElectionOutcome::Conflict), stands(), wins(), started()]);
        assert_eq!(spans(&lost.takeover), (1, 2.0));
        let again = [exited(Exit::Code(1), Ending::ByItself), started()];
        let restarted = after(&[&[stands(), wins(), started()], &again[..]].concat());
        assert_eq!(spans(&restarted.takeover), (1, 2.0), "a restart is no take-over");
    }

    #[test]
    fn the_stop_signal_and_a_sigkill_after_it_are_counted_with_their_reason() {
        let stop = [started(), Event::StopSent { polite: true }, steps_down(Reason::Command(Command::Drain))];
        let obeys = [exited(Exit::Code(0), Ending::ByItself), Event::TreeDead { killed: 0 }, RELEASED];
        assert_eq!(kills(&[&stop[..], &obeys].concat()), (vec![(EndReason::Stop, 1)], vec![]));
        let resists = [exited(KILLED, Ending::ByItself), Event::TreeDead { killed: 3 }, RELEASED];
        assert_eq!(
            kills(&[&stop[..], &resists].concat()),
            (vec![(EndReason::Stop, 1)], vec![(EndReason::Stop, 1)])
        );
        let at_once = [started(), Event::StopSent { polite: false }, steps_down(Reason::Foreign)];
        let dies = [exited(KILLED, Ending::ByItself), Event::TreeDead { killed: 1 }, RELEASED];
        assert_eq!(kills(&[&at_once[..], &dies].concat()), (vec![], vec![(EndReason::LeaseLost, 1)]));
        assert_eq!(kills(&[started(), exited(KILLED, Ending::ByItself)]), (vec![], vec![]), "a stranger's");
    }

    #[test]
    fn a_restart_within_the_term_is_counted_with_its_signals_and_each_anew() {
        let sick = Event::RestartBegins { reason: Reason::Unhealthy("it says no".into()) };
        let restarts = Event::ChildRestarts { after: Duration::ZERO, ending: Ending::Unhealthy };
        let once = [started(), sick, exited(KILLED, Ending::Unhealthy), restarts];
        let twice = after(&[once.clone(), once].concat());
        assert_eq!(told(&twice.restarts), [(Ending::Unhealthy, 2)]);
        assert_eq!(told(&twice.stopped), [(EndReason::Health, 2)]);
        assert_eq!(told(&twice.killed), [(EndReason::Health, 2)]);
    }

    #[test]
    fn a_child_that_was_given_up_had_ended_by_itself() {
        let gives_up = steps_down(Reason::GaveUp { failures: 5 });
        let failed = exited(Exit::Code(1), Ending::ByItself);
        let events =
            [started(), failed, Event::StopSent { polite: true }, gives_up, Event::TreeDead { killed: 0 }];
        assert_eq!(kills(&events), (vec![], vec![]));
    }

    #[test]
    fn a_bucket_holds_what_is_no_longer_than_its_bound() {
        let histogram = Histogram::new(&[0.1, 1.0]);
        for ms in [0, 100, 101, 1000, 5000] {
            histogram.observe(Duration::from_millis(ms));
        }
        assert_eq!(histogram.buckets(), [(0.1, 2), (1.0, 2), (f64::INFINITY, 1)]);
        assert_eq!(spans(&histogram), (5, 6.201));
    }
}
