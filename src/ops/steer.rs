//! Commands that change what the daemon on this host does. Each returns when it is done, and says who has the keeper then.

use super::client::{self, ClientError, EXIT_REFUSED, Verdict};
use super::status::{self, EXIT_UNKNOWN_NAME};
use crate::observe::plain::plain;
use crate::observe::status::{Keeper, Status};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How often the daemon is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long somebody is waited for who has what was handed over: as long as this host stays out after a step-down (DESIGN.md 2.1).
const SUCCESSOR: Duration = Duration::from_secs(10);
/// After a pause nobody may be meant to have it.
const SUCCESSOR_OF_PAUSED: Duration = Duration::from_secs(3);

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deed {
    StepDown,
    Pause,
    Resume,
    Restart,
}

impl Deed {
    /// As the path of the control API names it.
    fn verb(self) -> &'static str {
        match self {
            Deed::StepDown => "step-down",
            Deed::Pause => "pause",
            Deed::Resume => "resume",
            Deed::Restart => "restart",
        }
    }
}

/// How it is done and told.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// How long it may take.
    pub timeout: Duration,
    pub json: bool,
}

/// What a drain waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// Nothing runs here any more.
    Left,
    /// Somebody else has it.
    Taken,
}

/// Does `deed` to one keeper; the exit code.
pub fn one(socket: &Path, name: &str, deed: Deed, manner: Manner, out: &mut dyn Write) -> i32 {
    client::finish(Talk::open(socket, manner).and_then(|talk| talk.one(name, deed, out)))
}

/// Hands over everything, and stands for nothing until it is resumed; the exit code.
pub fn drain(socket: &Path, until: Until, manner: Manner, out: &mut dyn Write) -> i32 {
    let wait = match until {
        Until::Left => Duration::ZERO,
        Until::Taken => SUCCESSOR_OF_PAUSED,
    };
    client::finish(Talk::open(socket, manner).and_then(|talk| talk.all("/v1/drain", is_paused, wait, out)))
}

/// Ends a drain, and every pause on this host; the exit code.
pub fn resume_all(socket: &Path, manner: Manner, out: &mut dyn Write) -> i32 {
    client::finish(
        Talk::open(socket, manner)
            .and_then(|talk| talk.all("/v1/resume", is_resumed, SUCCESSOR_OF_PAUSED, out)),
    )
}

fn is_paused(keeper: &Keeper) -> bool {
    keeper.role == "paused"
}

/// What keeps it paused is no command to this host.
fn is_resumed(keeper: &Keeper) -> bool {
    !is_paused(keeper) || keeper.paused_everywhere
}

fn is_held(keeper: &Keeper) -> bool {
    matches!(keeper.role.as_str(), "leader" | "stepping_down" | "finished")
}

/// A start of the child, also one that has ended since.
fn last_run(keeper: &Keeper) -> Option<(Option<u32>, &str)> {
    keeper.history.last().map(|run| (run.pid, run.started.as_str()))
}

type Outcome = Result<i32, Box<dyn std::error::Error>>;

struct Talk<'a> {
    runtime: Runtime,
    socket: &'a Path,
    manner: Manner,
    give_up: Instant,
}

impl<'a> Talk<'a> {
    fn open(socket: &'a Path, manner: Manner) -> Result<Self, Box<dyn std::error::Error>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Talk { runtime, socket, manner, give_up: Instant::now() + manner.timeout })
    }

    fn one(&self, name: &str, deed: Deed, out: &mut dyn Write) -> Outcome {
        let Some(before) = status::keeper(&self.runtime, self.socket, name)? else {
            return Ok(EXIT_UNKNOWN_NAME);
        };
        let path = format!("/v1/keepers/{name}/{}", deed.verb());
        if let Verdict::Refused(why) = self.runtime.block_on(client::post(self.socket, &path))? {
            eprintln!(
                "keeperd: {name}: {why}{}",
                holder(&before).map_or(String::new(), |who| format!("; {who}"))
            );
            return Ok(EXIT_REFUSED);
        }
        let done = self.wait(name, |keeper| match deed {
            Deed::StepDown => !is_held(keeper),
            Deed::Pause => is_paused(keeper),
            Deed::Resume => is_resumed(keeper),
            Deed::Restart => !is_held(keeper) || last_run(keeper) != last_run(&before),
        })?;
        let keeper = match done {
            Ok(keeper) => keeper,
            Err(keeper) => return Ok(self.late(&[keeper])),
        };
        if deed == Deed::Restart && !is_held(&keeper) {
            eprintln!("keeperd: {name} was not restarted: {}", why(&keeper));
            return Ok(EXIT_REFUSED);
        }
        let wait = match deed {
            Deed::StepDown => SUCCESSOR,
            Deed::Pause if is_held(&before) => SUCCESSOR_OF_PAUSED,
            Deed::Pause | Deed::Resume | Deed::Restart => Duration::ZERO,
        };
        let keepers = self.successors(vec![keeper], |_| true, wait)?;
        self.tell(&keepers, out)?;
        let others = keepers.iter().all(|keeper| !is_held(keeper) && keeper.holder.is_some());
        if deed == Deed::StepDown && is_held(&before) && !others {
            eprintln!("keeperd: {name} was given up here, and no other host took it");
            return Ok(EXIT_REFUSED);
        }
        Ok(0)
    }

    fn all(
        &self,
        path: &str,
        done: impl Fn(&Keeper) -> bool,
        wait: Duration,
        out: &mut dyn Write,
    ) -> Outcome {
        let held: Vec<String> =
            self.status()?.keepers.into_iter().filter(is_held).map(|keeper| keeper.name).collect();
        if let Verdict::Refused(why) = self.runtime.block_on(client::post(self.socket, path))? {
            eprintln!("keeperd: {why}");
            return Ok(EXIT_REFUSED);
        }
        loop {
            let mut keepers = self.status()?.keepers;
            if keepers.iter().all(&done) {
                self.tell(&self.successors(keepers, |k| held.contains(&k.name), wait)?, out)?;
                return Ok(0);
            }
            if Instant::now() >= self.give_up {
                keepers.retain(|keeper| !done(keeper));
                return Ok(self.late(&keepers));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The keeper once it is `done`, or as it is when the time is up.
    fn wait(
        &self,
        name: &str,
        done: impl Fn(&Keeper) -> bool,
    ) -> Result<Result<Keeper, Keeper>, ClientError> {
        loop {
            let keeper = self.keeper(name)?;
            if done(&keeper) {
                return Ok(Ok(keeper));
            }
            if Instant::now() >= self.give_up {
                return Ok(Err(keeper));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The same keepers, once those `handed_over` are seen in other hands, or here again.
    fn successors(
        &self,
        mut keepers: Vec<Keeper>,
        handed_over: impl Fn(&Keeper) -> bool,
        wait: Duration,
    ) -> Result<Vec<Keeper>, ClientError> {
        let until = self.give_up.min(Instant::now() + wait);
        let open = |keeper: &Keeper| handed_over(keeper) && keeper.holder.is_none() && !is_held(keeper);
        while keepers.iter().any(open) && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
            let now = self.status()?.keepers;
            keepers = now.into_iter().filter(|new| keepers.iter().any(|old| old.name == new.name)).collect();
        }
        Ok(keepers)
    }

    fn status(&self) -> Result<Status, ClientError> {
        status::fetch(&self.runtime, self.socket)
    }

    fn keeper(&self, name: &str) -> Result<Keeper, ClientError> {
        let found = self.status()?.keepers.into_iter().find(|keeper| keeper.name == name);
        found.ok_or_else(|| ClientError::BadAnswer {
            path: self.socket.to_owned(),
            what: format!("there is no keeper {name:?} any more"),
        })
    }

    fn late(&self, keepers: &[Keeper]) -> i32 {
        let waited = humantime::format_duration(self.manner.timeout);
        for keeper in keepers {
            eprintln!(
                "keeperd: {}: asked, and not done after {waited}: {}, {}; it goes on, see keeperd status {}",
                keeper.name,
                keeper.role,
                why(keeper),
                keeper.name
            );
        }
        EXIT_REFUSED
    }

    fn tell(&self, keepers: &[Keeper], out: &mut dyn Write) -> std::io::Result<()> {
        if self.manner.json {
            serde_json::to_writer_pretty(&mut *out, &serde_json::json!({ "keepers": keepers }))?;
            return writeln!(out);
        }
        for keeper in keepers {
            let who = holder(keeper).unwrap_or_else(|| "nobody has it now".into());
            let where_else = if keeper.paused_everywhere { " on all hosts" } else { "" };
            writeln!(out, "{}: {}{where_else}; {who}", keeper.name, keeper.role)?;
        }
        Ok(())
    }
}

fn holder(keeper: &Keeper) -> Option<String> {
    if is_held(keeper) {
        return Some(keeper.pid.map_or("it is held here".into(), |pid| format!("it runs here (pid {pid})")));
    }
    keeper.holder.as_ref().map(|holder| match (&holder.host, holder.pid) {
        (Some(host), Some(pid)) => format!("it runs on {} (keeperd's pid {pid})", plain(host)),
        _ => "it is held by a client that is not keeperd".into(),
    })
}

fn why(keeper: &Keeper) -> String {
    keeper.last_change.as_ref().map_or("since the start".into(), |change| plain(&change.reason).to_string())
}
