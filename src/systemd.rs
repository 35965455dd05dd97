//! What systemd is told: READY, STATUS, STOPPING, and a watchdog that is fed only while every keeper's loop turns.

use crate::clock;
use crate::core::event::Role;
use crate::core::timing::Timing;
use crate::observe::board::{Board, KeeperView};
use sd_notify::NotifyState;
use std::sync::Arc;
use std::time::Duration;

/// STATUS changes with the roles; never more often than this.
const STATUS_EVERY: Duration = Duration::from_millis(200);
/// `TimeoutStopSec` of the unit.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Beside the keepers themselves: hooks, releases, the last lines.
const LAST_THINGS: Duration = Duration::from_secs(4);

/// The longest a keeper that can be killed takes from the wish to stop it until nothing of it is left.
pub fn stop_takes(timing: &Timing) -> Duration {
    timing.stop_timeout() + timing.kill_margin() + LAST_THINGS
}

/// Configuration and control socket stand. Not Redis: a store that is down must not fail the start.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// systemd 253 and later want the time with it.
pub fn reloading() {
    let mut states = vec![NotifyState::Reloading];
    states.extend(NotifyState::monotonic_usec_now());
    notify(&states);
}

pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(states: &[NotifyState<'_>]) {
    // Without systemd there is no socket, and a lost notification has no remedy.
    let _ = sd_notify::notify(states);
}

/// Whether systemd waits for signs of life.
pub fn has_watchdog() -> bool {
    sd_notify::watchdog_enabled().is_some()
}

/// Keeps STATUS and WATCHDOG up to date for as long as the daemon runs.
pub async fn report(board: Arc<Board>) {
    let watchdog = sd_notify::watchdog_enabled().map(|interval| interval / 2);
    let mut stopping = false;
    let mut feed = tokio::time::interval(watchdog.unwrap_or(Duration::from_secs(3600)));
    loop {
        tokio::select! {
            () = board.changed.notified() => {
                let keepers = board.keepers();
                let longest = keepers.iter().filter(|view| view.role == Role::SteppingDown).map(|view| stop_takes(&view.timing)).max();
                // Once for each stop, be it systemd's or not: a tree that cannot be killed must not hold up a shutdown for ever.
                if let (false, Some(longest)) = (stopping, longest) {
                    notify(&[NotifyState::ExtendTimeoutUsec(u32::try_from(longest.as_micros()).unwrap_or(u32::MAX))]);
                }
                stopping = longest.is_some();
                notify(&[NotifyState::Status(&summary(&keepers, board.reload().ok))]);
                tokio::time::sleep(STATUS_EVERY).await;
            }
            _ = feed.tick() => {
                if watchdog.is_some() && board.late(clock::boot()).is_empty() {
                    notify(&[NotifyState::Watchdog]);
                }
            }
        }
    }
}

fn summary(keepers: &[KeeperView], reload_ok: bool) -> String {
    let count = |roles: &[Role]| keepers.iter().filter(|view| roles.contains(&view.role)).count();
    let leading = count(&[Role::Leader, Role::Finished]);
    let standing_by = count(&[Role::Standby, Role::Candidate]);
    let rest = keepers.len() - leading - standing_by;
    let refused = if reload_ok { "" } else { "; the last reload was refused: see the log" };
    format!("{leading} running here, {standing_by} standing by, {rest} otherwise{refused}")
}
