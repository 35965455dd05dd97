//! What people see of a keeper.

use super::Shell;
use crate::clock;
use crate::core::event::{Event, Reason, Role};
use crate::core::time::WallTime;
use crate::core::timing::Timing;
use crate::observe::board::{HolderView, KeeperView, LastChange};
use crate::observe::events;
use crate::observe::history::EndReason;
use crate::output::Ended;
use std::sync::Arc;

impl Shell {
    pub(super) fn note(&mut self, event: &Event) {
        events::log(&self.keeper.name, &self.keeper.shared.nodes, event);
        self.keeper.hooks.note(event);
        let now = clock::now();
        self.keeper.recorder.note(event, now);
        if let Some(front) = &self.keeper.foreground {
            let _ = front.events.try_send(event.clone());
        }
        let at = now.wall;
        // The end of a child that was told to stop is no news.
        let stopped =
            matches!(event, Event::ChildExited { .. }) && self.keeper.election.role() == Role::SteppingDown;
        if let Some(mut reason) = events::news(event).filter(|_| !stopped) {
            if let (Event::RoleChanged { to: Role::Cooldown, .. }, Some(last)) =
                (event, &self.view.last_change)
            {
                // That the lock is free by now is not why this host stays out.
                let cooldown = humantime::format_duration(self.keeper.election.cooldown());
                reason = format!("{}; this host stays out of it for {cooldown}", last.reason);
            } else if let (Event::RoleChanged { reason: Reason::Released, .. }, Some(last)) =
                (event, &self.view.last_change)
            {
                // Why it moved is what people ask afterwards.
                reason = format!("{}; {reason}", last.reason);
            } else if let (Event::RoleChanged { reason: Reason::Won, .. }, Some((host, pid))) =
                (event, self.predecessor.take())
            {
                reason = format!("{reason}; before, {host} had it (keeperd's pid {pid})");
            }
            self.view.last_change = Some(LastChange { at, reason });
            self.stale_view = true;
        }
        if let Event::RoleChanged { .. } = event {
            self.view.since = at;
        }
        if self.history.note(event, at) {
            self.view.history = self.history.runs().cloned().collect();
            self.stale_view = true;
        }
        if let (Event::ChildExited { exit, .. }, Some(ends)) = (event, &self.ends) {
            let failed = match self.history.last_end().map(|end| end.reason) {
                Some(EndReason::Exited) => !self.keeper.election.is_success(*exit),
                Some(EndReason::Health) => true,
                Some(_) | None => false,
            };
            // With so many waiting, one line less in the log is no loss.
            let _ = ends.try_send(Ended { exit: *exit, failed });
        }
        self.view.role = self.keeper.election.role();
    }

    pub(super) fn show(&mut self) {
        let election = &self.keeper.election;
        let before = self.view.clone();
        self.view.role = election.role();
        self.view.paused_everywhere = election.is_paused_everywhere();
        self.view.token = election.token();
        self.view.pid = election.child_pid();
        self.view.valid_until = election.valid_until();
        self.view.restarts = election.restarts();
        self.view.holder = match election.value() {
            Some(value) => Some(HolderView {
                host: Some(self.keeper.shared.engine.identity().host.clone()),
                pid: Some(self.keeper.shared.engine.identity().pid),
                value: value.to_string(),
            }),
            None => election.holder().map(|held| HolderView {
                host: held.holder.as_ref().map(|holder| holder.host.clone()),
                pid: held.holder.as_ref().map(|holder| holder.pid),
                value: String::from_utf8_lossy(&held.value).into_owned(),
            }),
        };
        if let (None, Some(HolderView { host: Some(host), pid: Some(pid), .. })) =
            (election.value(), &self.view.holder)
        {
            self.predecessor = Some((host.clone(), *pid));
        }
        if self.stale_view || self.view != before {
            self.stale_view = !self.keeper.shared.board.try_put(&self.keeper.panel, &self.view);
        }
    }
}

/// The view of a keeper before it has run; `why` there is one now.
pub fn first_view(name: &str, timing: Timing, since: WallTime, why: &str) -> KeeperView {
    KeeperView {
        name: name.to_owned(),
        role: crate::core::event::Role::Standby,
        timing,
        paused_everywhere: false,
        token: None,
        pid: None,
        valid_until: None,
        since,
        restarts: 0,
        history: Arc::new([]),
        last_change: Some(LastChange { at: since, reason: why.to_owned() }),
        holder: None,
    }
}
