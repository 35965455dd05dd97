//! The guard of a term: how it is started, what it is told, what it says, and what is done when it is lost.

use super::reserve::Reserve;
use super::{Shell, Slot};
use crate::child::term_variables;
use crate::core::election::GuardReport;
use crate::core::lease::{FencingToken, Value};
use crate::core::time::Instant;
use crate::core::timing::Deadlines;
use crate::guard::{Duty, Guard, Launch, Lost, Newborn, Wiring};
use crate::output::TermOutput;
use crate::{clock, guard};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Leases this short want a guard that is never kept waiting for a processor.
const REALTIME_WANTED_BELOW: Duration = Duration::from_secs(5);
/// Pace of the last resort: the tree of a lost guard is looked for and killed until none is left.
const LAST_RESORT_FIRST: Duration = Duration::from_millis(1);
const LAST_RESORT_MAX: Duration = Duration::from_millis(10);
/// Ends of main processes that the edge may not have heard of yet.
const ENDS: usize = 16;

impl Shell {
    /// Starts the guard on another thread: forking may be held up by the kernel, and leases may not.
    pub(super) fn launch(
        &mut self,
        value: Value,
        token: FencingToken,
        deadlines: Deadlines,
        start_by: Instant,
    ) {
        match self.prepare(value, token, deadlines) {
            Ok(birth) => {
                self.keeper.shared.births.update(|births| births + 1);
                // Not after ARMED: the frames keep their order, and the round trip would only cost time.
                let waiting = vec![guard::Command::Spawn { start_by }];
                self.slot = Slot::Launching { birth, token, waiting, unwanted: false };
            }
            Err(error) => {
                self.keeper.election.handle_guard(clock::now(), GuardReport::LaunchFailed(error));
            }
        }
    }

    fn prepare(
        &mut self,
        value: Value,
        token: FencingToken,
        deadlines: Deadlines,
    ) -> Result<JoinHandle<io::Result<Newborn>>, String> {
        let keeper = &self.keeper;
        let shared = &keeper.shared;
        let mut spec = keeper.child.clone()?;
        let ttl = keeper.election.timing().ttl();
        spec.env_over.extend(term_variables(&keeper.name, &keeper.lock_key, token, ttl));
        let lock = shared.engine.descriptor(keeper.id).transpose().map_err(|error| error.to_string())?;
        let releaser = shared.engine.releaser(&keeper.lock_key, value);
        let stop_timeout = keeper.election.timing().stop_timeout();
        let cgroup = shared.cgroup;
        let output = keeper.outlet.wiring;
        let duty = if keeper.foreground.is_some() { Duty::Foreground } else { Duty::Term };
        let stdin = keeper.foreground.as_ref().and_then(|front| front.stdin.as_ref());
        let stdin = stdin.map(OwnedFd::try_clone).transpose().map_err(|error| error.to_string())?;
        let Slot::Empty(reserve) = &mut self.slot else {
            unreachable!("one guard per term, and terms do not overlap")
        };
        let reserve = std::mem::replace(reserve, Reserve::Never).take(shared);
        // The thread may end when it likes: a guard asks for no signal on its parent's death (supervisors.md 2).
        Ok(tokio::task::spawn_blocking(move || {
            let launch = Launch {
                duty,
                executable: Path::new(guard::OWN_EXECUTABLE),
                spec: &spec,
                output,
                token: token.0,
                deadlines,
                stop_timeout,
                releaser: releaser.as_deref(),
                lock: lock.as_ref().map(AsFd::as_fd),
                stdin: stdin.as_ref().map(AsFd::as_fd),
                cgroup,
            };
            Newborn::start(&launch, reserve)
        }))
    }

    /// The guard exists: it is told what has come up since.
    pub(super) fn born(&mut self, newborn: io::Result<Newborn>) {
        let Slot::Launching { token, waiting, unwanted, .. } = self.vacate() else { return };
        self.keeper.shared.births.update(|births| births - 1);
        match newborn.and_then(Guard::adopt) {
            Ok((mut guard, output)) => {
                self.keeper.shared.guards.borrow_mut().insert(guard.pid());
                for command in waiting {
                    guard.send(command);
                }
                if unwanted {
                    guard.kill();
                }
                self.slot = Slot::Guard(guard);
                self.hand_on(token, output);
            }
            Err(error) => {
                let report = GuardReport::LaunchFailed(error.to_string());
                self.keeper.election.handle_guard(clock::now(), report);
            }
        }
    }

    /// Whoever was there. A guard in reserve stays.
    fn vacate(&mut self) -> Slot {
        if matches!(self.slot, Slot::Empty(_)) {
            return Slot::Empty(Reserve::Never);
        }
        std::mem::replace(&mut self.slot, Slot::Empty(Reserve::of(&self.keeper)))
    }

    /// The child's output is the edge's to read.
    fn hand_on(&mut self, token: FencingToken, output: guard::Output) {
        if self.keeper.outlet.wiring != Wiring::Pipes {
            return;
        }
        let outlet = Arc::clone(&self.keeper.outlet);
        let guard::Output { stdout, stderr } = output;
        let (tell, ended) = mpsc::channel(ENDS);
        self.ends = Some(tell);
        if self.keeper.shared.outputs.try_send(TermOutput { outlet, token, stdout, stderr, ended }).is_err() {
            let keeper = &*self.keeper.name;
            tracing::error!(keeper, "output of the child is lost: the edge thread does not take it");
        }
    }

    pub(super) fn tell(&mut self, command: guard::Command) {
        match &mut self.slot {
            Slot::Guard(guard) => {
                guard.send(command);
            }
            Slot::Launching { waiting, .. } => waiting.push(command),
            Slot::Empty(_) | Slot::Mourning { .. } => {}
        }
    }

    /// The tree is dead and the lock is free: the guard goes without releasing anything itself.
    pub(super) fn dismiss(&mut self) {
        assert!(
            !matches!(self.slot, Slot::Launching { .. }),
            "nothing is released before the guard is born and its tree is dead"
        );
        let Slot::Guard(mut guard) = self.vacate() else { return };
        guard.send(guard::Command::Quit);
        let shared = Rc::clone(&self.keeper.shared);
        tokio::task::spawn_local(async move {
            guard.gone().await;
            shared.guards.borrow_mut().remove(&guard.pid());
        });
    }

    // ── what the guard says ──

    pub(super) fn guard_said(&mut self, said: Result<guard::Event, Lost>) {
        let report = match said {
            Ok(event) => {
                self.look_for_leftovers(event);
                match self.report(event) {
                    Some(report) => report,
                    None => return,
                }
            }
            Err(lost) => {
                let keeper = &*self.keeper.name;
                tracing::debug!(keeper, %lost, "guard lost");
                self.keeper.shared.guards.borrow_mut().remove(&lost.pid);
                self.slot = Slot::Mourning { lost, again: LAST_RESORT_FIRST };
                GuardReport::Lost("died")
            }
        };
        self.keeper.election.handle_guard(clock::now(), report);
    }

    /// Somebody whose script seems to do nothing wants to know that it went into the background and was killed there.
    fn look_for_leftovers(&mut self, event: guard::Event) {
        match event {
            guard::Event::Exited(exit) => self.ended = Some(exit),
            guard::Event::TreeDead { killed, last: false } if killed > 0 => {
                if let Some(guard::Exit::Code(code)) = self.ended {
                    tracing::info!(
                        keeper = &*self.keeper.name,
                        code,
                        killed,
                        "the child ended and left processes behind, which were killed; a script that puts itself into the \
                         background must be told to stay in the foreground"
                    );
                }
            }
            guard::Event::Armed(_)
            | guard::Event::Ack(_)
            | guard::Event::Started { .. }
            | guard::Event::ExecFailed { .. }
            | guard::Event::Stopping(_)
            | guard::Event::TreeDead { .. } => {}
        }
    }

    /// One pass over what a lost guard has left behind.
    pub(super) fn last_resort(&mut self) {
        let Slot::Mourning { lost, again } = &mut self.slot else { return };
        let shared = &self.keeper.shared;
        if shared.births.get() > 0 {
            // A guard that is just being born would be taken for an orphan.
            return;
        }
        let proven = shared.last_resort.borrow_mut().pass(lost, &shared.guards.borrow());
        *again = (*again * 2).min(LAST_RESORT_MAX);
        if proven {
            self.vacate();
            self.keeper.election.handle_guard(clock::now(), GuardReport::TreeDead { killed: 0, last: true });
        }
    }

    /// The guard's frames in the election's words.
    fn report(&self, event: guard::Event) -> Option<GuardReport> {
        Some(match event {
            guard::Event::Armed(report) => {
                // The kill margin of 250 ms covers a starved guard only just (review.md B).
                if !report.realtime && self.keeper.election.timing().ttl() < REALTIME_WANTED_BELOW {
                    let keeper = &*self.keeper.name;
                    tracing::warn!(
                        keeper,
                        "the guard has no real-time priority and the lease is short: on a busy host a kill may come late. \
                         Allow it (LimitRTPRIO=1) or use a ttl of 5 s or more"
                    );
                }
                GuardReport::Armed
            }
            guard::Event::Ack(ack) => GuardReport::Acked { accepted: ack.accepted },
            guard::Event::Started { pid, .. } => GuardReport::Started { pid },
            guard::Event::ExecFailed { stage: guard::Stage::Late, .. } => GuardReport::TooLate,
            guard::Event::ExecFailed { stage, errno } => {
                GuardReport::ExecFailed { stage: self.say_stage(stage), errno }
            }
            guard::Event::Exited(exit) => GuardReport::Exited(exit),
            guard::Event::Stopping(guard::Why::Deadline) => GuardReport::Stopping,
            guard::Event::Stopping(guard::Why::Command | guard::Why::Orphaned) => return None,
            guard::Event::TreeDead { killed, last } => GuardReport::TreeDead { killed, last },
        })
    }

    /// The stage of a failed start, with the name that failed where it has one.
    fn say_stage(&self, stage: guard::Stage) -> String {
        let Ok(child) = &self.keeper.child else { return stage.as_str().to_owned() };
        let text = stage.as_str();
        if matches!(stage, guard::Stage::Namespace | guard::Stage::Proc) {
            return format!("{text} (isolate = \"pid\" needs root or CAP_SYS_ADMIN)");
        }
        let named: [(guard::Stage, Option<&OsStr>); 3] = [
            (guard::Stage::Exec, child.argv.first().map(OsString::as_os_str)),
            (guard::Stage::WorkingDir, child.working_dir.as_deref().map(Path::as_os_str)),
            (guard::Stage::EnvFile, child.env_file.as_ref().map(|file| file.path.as_os_str())),
        ];
        match named.into_iter().find(|(named, _)| *named == stage) {
            Some((_, Some(name))) => format!("{text} of {}", name.display()),
            Some((_, None)) | None => text.to_owned(),
        }
    }

    // ── what people see ──
}
