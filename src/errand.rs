//! One short command of the daemon itself (a probe, a hook), with everything it starts, under a time limit.
//!
//! It is run by a guard of its own, so all that holds for a keeper's child holds here: the identity and limits of the specification, the
//! stage and errno of a failed start, SIGKILL to the whole tree, the end of it all when the daemon dies. For the edge thread.

use crate::clock;
use crate::guard::{
    self, ChildSpec, Command, Deadlines, Duty, Event, Exit, Guard, Launch, Lost, Newborn, Stage, Wiring,
};
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::sync::oneshot;

/// Between the stop signal and SIGKILL, once the time is up.
pub const GRACE: Duration = Duration::from_millis(500);
/// A guard that says nothing for this long after all should be over is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is to be done.
#[derive(Debug)]
pub struct Errand {
    /// The command with its identity and environment. Its keeper is part of the guard's title.
    pub spec: ChildSpec,
    /// From its start to the stop signal; [`GRACE`] later it is killed.
    pub timeout: Duration,
}

/// What became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Ended(Exit),
    /// It was stopped, and is dead with all it had started.
    TimedOut(Duration),
    NotStarted(String),
    /// Its guard was killed; what it had started besides the command itself may live.
    GuardLost(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Ended(Exit::Code(code)) => write!(f, "exit code {code}"),
            Outcome::Ended(Exit::Signal(signal)) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(signal) => write!(f, "ended by {signal}"),
                Err(_) => write!(f, "ended by signal {signal}"),
            },
            Outcome::TimedOut(timeout) => write!(f, "not done after {timeout:?}"),
            Outcome::NotStarted(why) => write!(f, "not started: {why}"),
            Outcome::GuardLost(why) => f.write_str(why),
        }
    }
}

impl Errand {
    /// Runs it to its end: returns when everything it started is dead, at the latest [`GRACE`] and a little after its timeout.
    ///
    /// `output` is called once with the pipes, which must be read or the command may wait for ever to write; they end with the guard.
    /// Dropped, it is killed and reaped all the same. To be called inside a tokio runtime.
    pub async fn run(self, output: impl FnOnce(guard::Output) + Send + 'static) -> Outcome {
        let (tell, told) = oneshot::channel();
        tokio::spawn(self.carry_out(output, tell));
        told.await.unwrap_or_else(|_| Outcome::GuardLost("the daemon is ending".to_owned()))
    }

    async fn carry_out(self, output: impl FnOnce(guard::Output), mut tell: oneshot::Sender<Outcome>) {
        let timeout = self.timeout;
        let started =
            tokio::task::spawn_blocking(move || self.start()).await.unwrap_or_else(|error| Err(error.into()));
        let mut guard = match started.and_then(Guard::adopt) {
            Ok((guard, pipes)) => {
                output(pipes);
                guard
            }
            Err(error) => {
                let _ = tell.send(Outcome::NotStarted(format!("no guard could be started: {error}")));
                return;
            }
        };
        guard.send(Command::Spawn { start_by: clock::boot() + timeout });
        let outcome = {
            let watched = watch(&mut guard, timeout);
            tokio::pin!(watched);
            tokio::select! {
                outcome = tokio::time::timeout(timeout + GRACE + PATIENCE, &mut watched) => outcome.ok(),
                () = tell.closed() => None,
            }
        };
        match outcome {
            Some(outcome) => {
                let _ = tell.send(outcome);
                guard.send(Command::Quit);
            }
            // Unwanted, or overdue: whichever comes first, its end or that of its guard.
            None => {
                guard.send(Command::Kill);
                let _ = tokio::time::timeout(PATIENCE, dead(&mut guard)).await;
                guard.send(Command::Quit);
                let _ = tell.send(Outcome::GuardLost("its guard did not finish in time".to_owned()));
            }
        }
        guard.gone().await;
    }

    fn start(&self) -> io::Result<Newborn> {
        let stop_at = clock::boot() + self.timeout;
        let launch = Launch {
            duty: Duty::Errand,
            executable: Path::new(guard::OWN_EXECUTABLE),
            spec: &self.spec,
            output: Wiring::Pipes,
            token: 0,
            deadlines: Deadlines { stop_at, kill_at: stop_at + GRACE },
            stop_timeout: GRACE,
            releaser: None,
            lock: None,
            stdin: None,
            cgroup: false,
        };
        Newborn::start(&launch, None)
    }
}

/// Until the tree is dead, or the guard is.
async fn watch(guard: &mut Guard, timeout: Duration) -> Outcome {
    let mut outcome = None;
    loop {
        match guard.recv().await {
            Ok(Event::ExecFailed { stage: Stage::Late, .. } | Event::Stopping(_)) => {
                outcome.get_or_insert(Outcome::TimedOut(timeout));
            }
            Ok(Event::ExecFailed { stage, errno }) => {
                let error = io::Error::from_raw_os_error(errno);
                outcome.get_or_insert(Outcome::NotStarted(format!("{}: {error}", stage.as_str())));
            }
            Ok(Event::Exited(exit)) => {
                outcome.get_or_insert(Outcome::Ended(exit));
            }
            // Without a word before, the time was over before anything had begun.
            Ok(Event::TreeDead { .. }) => return outcome.unwrap_or(Outcome::TimedOut(timeout)),
            Ok(Event::Armed(_) | Event::Ack(_) | Event::Started { .. }) => {}
            Err(lost) => return outcome.unwrap_or_else(|| Outcome::GuardLost(lost.to_string())),
        }
    }
}

async fn dead(guard: &mut Guard) -> Result<(), Lost> {
    while !matches!(guard.recv().await?, Event::TreeDead { .. }) {}
    Ok(())
}
