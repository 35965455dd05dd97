//! `on_acquired` and `on_lost`: commands of the operator that run beside a term, and that nothing of a term waits for.
//!
//! ```text
//! events of the core ─► Caller ─ a bounded queue, try_send ─► Runner: one errand at a time, in order
//!          core thread                                        edge thread
//! ```

use crate::child::term_variables;
use crate::config::HooksConfig;
use crate::core::event::{Event, Reason, Role};
use crate::core::lease::FencingToken;
use crate::errand::{Errand, Outcome};
use crate::guard::{ChildSpec, Exit, Output};
use crate::observe::history::EndReason;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// Calls that may wait: eight terms of a keeper whose hooks all take their full time.
const QUEUE: usize = 16;
/// The pipes of a hook end with its guard, unless something outlived that: what it wrote is read this much longer.
const LAST_LINES: Duration = Duration::from_millis(500);
/// What is shown of a hook's output: so many lines of each stream, cut at this length.
const LINES_MAX: usize = 50;
const LINE_BYTES_MAX: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hook {
    Acquired,
    Lost { exit: Option<Exit> },
}

impl Hook {
    fn name(self) -> &'static str {
        match self {
            Hook::Acquired => "on_acquired",
            Hook::Lost { .. } => "on_lost",
        }
    }
}

/// One hook to be run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Call {
    hook: Hook,
    token: FencingToken,
    /// Why, in one word.
    reason: &'static str,
}

/// Which calls follow from the events of a keeper: one of each kind for each term, `Lost` when its tree is proven dead.
#[derive(Debug, Default)]
struct Ledger {
    term: Option<(FencingToken, Option<Exit>)>,
    reason: Option<EndReason>,
}

impl Ledger {
    fn note(&mut self, event: &Event) -> Option<Call> {
        match event {
            Event::RoleChanged { to: Role::Leader, reason: Reason::Won, token: Some(token), .. } => {
                *self = Ledger { term: Some((*token, None)), reason: None };
                Some(Call { hook: Hook::Acquired, token: *token, reason: "won" })
            }
            Event::RoleChanged { reason, .. } => {
                self.reason = EndReason::of(reason).or(self.reason);
                None
            }
            Event::ChildStarted { .. } => {
                self.term = self.term.map(|(token, _)| (token, None));
                None
            }
            Event::ChildExited { exit, .. } => {
                self.term = self.term.map(|(token, _)| (token, Some(*exit)));
                None
            }
            // A guard that could not be launched had no tree.
            Event::TreeDead { .. } | Event::Released { .. } => {
                let (token, exit) = self.term.take()?;
                let reason = self.reason.map_or("exited", EndReason::name);
                Some(Call { hook: Hook::Lost { exit }, token, reason })
            }
            Event::Elected { .. }
            | Event::Extended { .. }
            | Event::RestartBegins { .. }
            | Event::ChildRestarts { .. }
            | Event::HostFit
            | Event::HostUnfit { .. }
            | Event::StopSent { .. }
            | Event::TreeOutlivesLease
            | Event::ClockAhead { .. }
            | Event::HolderSeen { .. }
            | Event::Bids { .. } => None,
        }
    }
}

/// The core thread's end.
#[derive(Debug)]
pub struct Caller {
    keeper: Arc<str>,
    ledger: Ledger,
    calls: Option<mpsc::Sender<Call>>,
}

impl Caller {
    /// Takes an event of the keeper. Never waits.
    pub fn note(&mut self, event: &Event) {
        let (Some(call), Some(calls)) = (self.ledger.note(event), &self.calls) else { return };
        if calls.try_send(call).is_err() {
            let (keeper, hook, token) = (&*self.keeper, call.hook.name(), call.token.0);
            tracing::warn!(
                keeper,
                hook,
                token,
                "hook left out: too many wait already; shorten them or hook_timeout"
            );
        }
    }
}

/// The edge thread's end: ends when the [`Caller`] is gone and all it wanted is done.
#[derive(Debug)]
pub struct Runner {
    keeper: Arc<str>,
    hooks: HooksConfig,
    spec: Result<ChildSpec, String>,
    lock_key: String,
    ttl: Duration,
    calls: mpsc::Receiver<Call>,
}

/// The two ends for one keeper; no runner where there is no hook.
pub fn pair(
    keeper: &str,
    hooks: &HooksConfig,
    spec: &Result<ChildSpec, String>,
    lock_key: String,
    ttl: Duration,
) -> (Caller, Option<Runner>) {
    let keeper: Arc<str> = keeper.into();
    let mut caller = Caller { keeper: Arc::clone(&keeper), ledger: Ledger::default(), calls: None };
    if hooks.on_acquired.is_none() && hooks.on_lost.is_none() {
        return (caller, None);
    }
    let (sender, calls) = mpsc::channel(QUEUE);
    caller.calls = Some(sender);
    (caller, Some(Runner { keeper, hooks: hooks.clone(), spec: spec.clone(), lock_key, ttl, calls }))
}

impl Runner {
    async fn run(mut self) {
        while let Some(call) = self.calls.recv().await {
            let argv = match call.hook {
                Hook::Acquired => &self.hooks.on_acquired,
                Hook::Lost { .. } => &self.hooks.on_lost,
            };
            let Some(argv) = argv else { continue };
            let outcome = self.carry_out(call, argv).await;
            let (keeper, hook, token, reason) = (&*self.keeper, call.hook.name(), call.token.0, call.reason);
            match outcome {
                (Outcome::Ended(Exit::Code(0)), took) => {
                    tracing::debug!(
                        keeper,
                        hook,
                        token,
                        reason,
                        took_ms = took.as_millis() as u64,
                        "hook done"
                    );
                }
                (outcome, took) => {
                    tracing::warn!(
                        keeper,
                        hook,
                        token,
                        reason,
                        took_ms = took.as_millis() as u64,
                        "hook failed: {outcome}"
                    );
                }
            }
        }
    }

    async fn carry_out(&self, call: Call, argv: &[String]) -> (Outcome, Duration) {
        let began = Instant::now();
        let outcome = match &self.spec {
            Ok(child) => {
                let spec = self.specification(child, call, argv);
                let (keeper, hook) = (Arc::clone(&self.keeper), call.hook.name());
                let readers = TaskTracker::new();
                let shown = readers.clone();
                let outcome = Errand { spec, timeout: self.hooks.timeout }
                    .run(move |output| show(&shown, &keeper, hook, output))
                    .await;
                // Or a daemon that ends now would leave out the last of them.
                readers.close();
                let _ = tokio::time::timeout(LAST_LINES, readers.wait()).await;
                outcome
            }
            Err(why) => Outcome::NotStarted(why.clone()),
        };
        (outcome, began.elapsed())
    }

    /// The keeper's own identity, limits and environment.
    fn specification(&self, child: &ChildSpec, call: Call, argv: &[String]) -> ChildSpec {
        let mut spec = child.clone();
        spec.argv = argv.iter().map(Into::into).collect();
        spec.pid_namespace = false;
        spec.stop_signal = libc::SIGTERM;
        spec.env_over.extend(term_variables(&self.keeper, &self.lock_key, call.token, self.ttl));
        let mut set = |name: &str, value: String| spec.env_over.push((name.into(), OsString::from(value)));
        set("KEEPERD_REASON", call.reason.to_owned());
        match call.hook {
            Hook::Lost { exit: Some(Exit::Code(code)) } => set("KEEPERD_EXIT_CODE", code.to_string()),
            Hook::Lost { exit: Some(Exit::Signal(signal)) } => set("KEEPERD_EXIT_SIGNAL", signal.to_string()),
            Hook::Lost { exit: None } | Hook::Acquired => {}
        }
        spec
    }
}

/// Reads both streams to their ends; the errand's guard holds them no longer than the errand lasts.
fn show(readers: &TaskTracker, keeper: &Arc<str>, hook: &'static str, output: Output) {
    for (mark, fd) in [('|', output.stdout), ('!', output.stderr)] {
        readers.spawn(follow(Arc::clone(keeper), hook, mark, fd));
    }
}

async fn follow(keeper: Arc<str>, hook: &'static str, mark: char, fd: OwnedFd) {
    let nonblocking = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
    let _ = nix::fcntl::fcntl(&fd, nonblocking);
    let Ok(mut pipe) = Receiver::from_owned_fd(fd) else { return };
    let mut lines = Lines::default();
    let say = |line: &str| tracing::info!(keeper = &*keeper, "{hook} {mark} {line}");
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        lines.feed(&buffer[..length], say);
    }
    lines.end(say);
}

/// Bytes to lines, and no more of them than anybody wants to read.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
    shown: usize,
    left_out: usize,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], mut say: impl FnMut(&str)) {
        for byte in bytes {
            match byte {
                b'\n' => self.line(&mut say),
                _ if self.partial.len() < LINE_BYTES_MAX => self.partial.push(*byte),
                _ => {}
            }
        }
    }

    fn line(&mut self, mut say: impl FnMut(&str)) {
        if self.shown < LINES_MAX {
            self.shown += 1;
            say(&String::from_utf8_lossy(&self.partial));
        } else {
            self.left_out += 1;
        }
        self.partial.clear();
    }

    fn end(mut self, mut say: impl FnMut(&str)) {
        if !self.partial.is_empty() {
            self.line(&mut say);
        }
        if self.left_out > 0 {
            say(&format!("({} more lines left out)", self.left_out));
        }
    }
}

/// All runners of the daemon, on the edge thread.
#[derive(Clone, Debug, Default)]
pub struct Runners(TaskTracker);

impl Runners {
    /// Runs the hooks of a keeper, when `earlier` is done: those of one keeper run one at a time. To be called inside a tokio runtime.
    pub fn start(&self, runner: Runner, earlier: Option<JoinHandle<()>>) -> JoinHandle<()> {
        self.0.spawn(async move {
            if let Some(earlier) = earlier {
                // It ends with what it has to do; nothing aborts it.
                let _ = earlier.await;
            }
            runner.run().await;
        })
    }

    /// After the last term: what still runs has this long. Ended with the daemon otherwise, which is said.
    pub async fn finish(self, within: Duration) {
        self.0.close();
        if tokio::time::timeout(within, self.0.wait()).await.is_err() {
            let keepers = self.0.len();
            tracing::warn!(keepers, "hooks cut off: not done {within:?} after the last keeper had stopped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::Command;
    use crate::core::restart::Ending;

    const TOKEN: FencingToken = FencingToken(7);

    fn role(to: Role, reason: Reason) -> Event {
        Event::RoleChanged {
            from: Role::Standby,
            to,
            reason,
            token: Some(TOKEN),
            votes: vec![],
            lease_age: None,
            lease_left: None,
        }
    }

    fn calls(events: &[Event]) -> Vec<Call> {
        let mut ledger = Ledger::default();
        events.iter().filter_map(|event| ledger.note(event)).collect()
    }

    fn lost(reason: &'static str, exit: Option<Exit>) -> Call {
        Call { hook: Hook::Lost { exit }, token: TOKEN, reason }
    }

    const ACQUIRED: Call = Call { hook: Hook::Acquired, token: TOKEN, reason: "won" };

    #[test]
    fn each_term_has_one_call_of_each_kind_and_lost_waits_for_the_proof_of_death() {
        let exit = |exit| Event::ChildExited { exit, ran: Duration::ZERO, ending: Ending::ByItself };
        let before_the_proof = [
            role(Role::Candidate, Reason::LooksFree),
            role(Role::Leader, Reason::Won),
            Event::ChildStarted { pid: 1, token: TOKEN },
            exit(Exit::Code(1)),
            Event::ChildRestarts { after: Duration::ZERO, ending: Ending::ByItself },
            Event::ChildStarted { pid: 2, token: TOKEN },
            role(Role::SteppingDown, Reason::Command(Command::Drain)),
            exit(Exit::Signal(15)),
        ];
        assert_eq!(calls(&before_the_proof), [ACQUIRED]);
        let mut whole = before_the_proof.to_vec();
        whole.push(Event::TreeDead { killed: 0 });
        whole.push(Event::Released { confirmed: 3, token: TOKEN });
        whole.push(role(Role::Standby, Reason::Released));
        assert_eq!(calls(&whole), [ACQUIRED, lost("stop", Some(Exit::Signal(15)))]);
    }

    #[test]
    fn a_term_without_a_child_is_lost_with_its_release() {
        let events = [
            role(Role::Leader, Reason::Won),
            role(Role::SteppingDown, Reason::LaunchFailed("no user".to_owned())),
            Event::Released { confirmed: 3, token: TOKEN },
        ];
        assert_eq!(calls(&events), [ACQUIRED, lost("launch_failed", None)]);
    }

    #[test]
    fn the_end_of_a_run_that_nobody_saw_is_not_the_last_one_somebody_saw() {
        let events = [
            role(Role::Leader, Reason::Won),
            Event::ChildExited { exit: Exit::Code(1), ran: Duration::ZERO, ending: Ending::ByItself },
            Event::ChildStarted { pid: 2, token: TOKEN },
            role(Role::SteppingDown, Reason::GuardLost("died")),
            Event::TreeDead { killed: 0 },
        ];
        assert_eq!(calls(&events), [ACQUIRED, lost("guard_lost", None)]);
    }

    #[test]
    fn a_standby_calls_nothing() {
        let events = [
            role(Role::Candidate, Reason::LooksFree),
            role(Role::Standby, Reason::Released),
            Event::Released { confirmed: 0, token: TOKEN },
        ];
        assert_eq!(calls(&events), []);
    }

    #[test]
    fn a_hook_that_shouts_is_shown_in_part() {
        let mut lines = Lines::default();
        let mut shown = Vec::new();
        for _ in 0..60 {
            lines.feed(&[b'x'; 2000], |line| shown.push(line.len()));
            lines.feed(b"\n", |line| shown.push(line.len()));
        }
        let mut last = String::new();
        lines.feed(b"an end without", |_| {});
        lines.end(|line| last = line.to_owned());
        assert_eq!(shown, [LINE_BYTES_MAX; LINES_MAX]);
        assert_eq!(last, "(11 more lines left out)");
    }
}
