//! Scripts as people have them, unchanged: each one's crash, hang and hand-over.
//!
//! Each script appends to one log, whichever host runs it; see [`Account`].

use super::{Scenario, scenario};
use crate::account::Account;
use crate::clock::{boot_ns, ms};
use crate::daemon::binary;
use crate::procs;
use crate::step::{Step, check, failure, skipped};
use crate::trial::{KEEPER, Setup, Trial, secs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};

pub const ALL: &[Scenario] = &[
    scenario("script_bash", "a bash script: crash, hang, hand-over", |t| obedient(t, "bash", "oracle.sh")),
    scenario("script_python", "a Python script: crash, hang, hand-over", |t| {
        obedient(t, "python3", "oracle.py")
    }),
    scenario("script_node", "a Node script with a child process of its own: crash, hang, hand-over", |t| {
        obedient(t, "node", "oracle.js")
    }),
    scenario(
        "script_daemon",
        "a script that puts itself into the background, watched by a line of shell: crash, hang, hand-over",
        daemon,
    ),
    scenario(
        "script_daemon_unwatched",
        "the same without that line: what it leaves behind is killed, and no two ever run",
        daemon_unwatched,
    ),
    scenario(
        "script_hang",
        "a script that hangs every time and ignores SIGTERM: crash, hang, hand-over",
        hanging,
    ),
    scenario("script_bash_silent", "a bash script that hangs is found out by its silence", |t| {
        silent(t, "bash", "oracle.sh")
    }),
    scenario("script_python_silent", "a Python script that hangs is found out by its silence", |t| {
        silent(t, "python3", "oracle.py")
    }),
    scenario("script_node_silent", "a Node script in an endless loop is found out by its silence", |t| {
        silent(t, "node", "oracle.js")
    }),
    scenario(
        "script_daemon_silent",
        "one in the background that hangs is found out by a command",
        silent_daemon,
    ),
    scenario(
        "script_hang_silent",
        "one that hangs every time is found out, started again, and then handed to the other host",
        hanging_for_good,
    ),
];

/// Nobody obeys sooner than he gets his turn on a busy machine.
const RULES: &str = "stop_timeout = \"1s\"\nrestart_delay = \"50ms\"\nrestart_delay_max = \"100ms\"\ngive_up_window = \"1h\"\ncooldown = \"1s\"";
const PATIENT: &str = "give_up_after = 100";
/// A script that says nothing for so long hangs. Python and Node may take half of it to start on a busy machine.
const SPEAKS: &str = "health = { max_silence = \"2s\" }";

fn script(name: &str) -> String {
    format!("{}/tests/e2e/scripts/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn account_of(log: &Path) -> Step<Account> {
    Account::parse(&std::fs::read_to_string(log).unwrap_or_default()).map_err(failure)
}

struct Stage<'a> {
    trial: &'a mut Trial,
    log: PathBuf,
}

impl Stage<'_> {
    fn begin<'a>(
        trial: &'a mut Trial,
        command: &dyn Fn(&str) -> Vec<String>,
        rules: &str,
    ) -> Step<Stage<'a>> {
        let log = trial.dir().join("script.log");
        let words = command(&log.display().to_string());
        let words: Vec<&'static str> = words.into_iter().map(|word| &*word.leak()).collect();
        let command_of = vec![("a", words.clone()), ("b", words)];
        let keeper_lines = format!("{RULES}\n{rules}").leak();
        // Long enough that a guard is not given up for being slow on a busy machine: these stories are not about that.
        trial.prepare(Setup { command_of, keeper_lines, ttl: "10s", ..Setup::default() })?;
        trial.start_nodes()?;
        trial.start_all()?;
        Ok(Stage { trial, log })
    }

    fn account(&self) -> Step<Account> {
        account_of(&self.log)
    }

    /// Waits until that run has said the word so many times.
    fn says(&mut self, run: usize, word: &str, times: usize) -> Step {
        let log = self.log.clone();
        self.trial.until(&format!("run {run} says {word:?}, {times} times"), |_| {
            Ok(account_of(&log)?.said(run, word) >= times)
        })
    }

    fn runs(&self) -> Step<usize> {
        Ok(self.account()?.runs.len())
    }

    /// The host that runs it, and the main process: one that lives, for `status` is a moment behind.
    fn holder(&mut self) -> Step<(&'static str, i32)> {
        let mut found = None;
        self.trial.until("a host says that it runs the script", |t| {
            for host in ["a", "b"] {
                let status = t.daemon(host)?.keeper_status(KEEPER);
                let pid = status.ok().and_then(|status| i32::try_from(status["pid"].as_i64()?).ok());
                found = found.or(pid.filter(|pid| procs::lives(*pid)).map(|pid| (host, pid)));
            }
            Ok(found.is_some())
        })?;
        found.ok_or_else(|| failure("no host runs it"))
    }

    fn hang_now(&self) -> Step {
        Ok(std::fs::write(self.log.with_extension("log.hang"), "")?)
    }

    /// SIGKILL to the main process: it is started again on the same host.
    fn crash(&mut self) -> Step {
        let (host, pid) = self.holder()?;
        let run = self.runs()?;
        let at = self.trial.note(format!("SIGKILL to the script, pid {pid}"));
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        self.says(run, "tick", 2)?;
        self.trial.figure(format!("running {} after a crash", ms(boot_ns() - at)));
        let (after, _) = self.holder()?;
        check(host == after, format!("a crash moved it from {host} to {after}"))
    }

    /// Hangs, and is found out: killed, and started again on the same host.
    fn found_hanging(&mut self) -> Step {
        let (host, _) = self.holder()?;
        self.hang_now()?;
        let run = self.runs()?;
        self.says(run - 1, "hangs", 1)?;
        let at = boot_ns();
        self.says(run, "tick", 2)?;
        self.trial.figure(format!("running {} after it hung", ms(boot_ns() - at)));
        let (after, _) = self.holder()?;
        check(host == after, format!("a script that hung was moved from {host} to {after}"))
    }

    /// SIGTERM to the holder's daemon: the other host runs it. Returns the run that was ended.
    fn hand_over(&mut self) -> Step<usize> {
        let (host, _) = self.holder()?;
        let run = self.runs()?;
        let at = self.trial.signal(host, Signal::SIGTERM)?;
        self.says(run, "start", 1)?;
        self.trial.figure(format!("handed over in {}", ms(boot_ns() - at)));
        self.says(run, "tick", 3)?;
        self.trial.daemon(host)?.await_exit(secs(10))?;
        self.trial.start(host)?;
        Ok(run - 1)
    }
}

fn has(program: &str) -> Step {
    let found = std::process::Command::new(program).arg("--version").output();
    found.map(drop).map_err(|error| skipped(format!("{program}: {error}; tests/run installs it")))
}

/// `KEEPERD_BIN` may be a daemon that does not know the key.
fn can_ask_for_health(t: &Trial) -> Step {
    let file = t.dir().join("health.toml");
    let lock = "[lock]\nengine = \"local\"\ndirectory = \"/tmp\"\n";
    std::fs::write(&file, format!("{lock}[[keeper]]\nname = \"k\"\ncommand = [\"true\"]\n{SPEAKS}\n"))?;
    let answer = std::process::Command::new(binary()).arg("--config").arg(&file).arg("check").output()?;
    if answer.status.success() { Ok(()) } else { Err(skipped("this daemon does not know `health`")) }
}

fn silent(t: &mut Trial, interpreter: &str, name: &str) -> Step {
    has(interpreter)?;
    can_ask_for_health(t)?;
    let command = |log: &str| [interpreter, &script(name), log].map(str::to_owned).to_vec();
    let mut stage = Stage::begin(t, &command, &format!("{PATIENT}\n{SPEAKS}"))?;
    stage.says(0, "tick", 3)?;
    stage.found_hanging()?;
    stage.hand_over().map(drop)
}

/// It says nothing, so a command asks whether its log is fresh.
fn silent_daemon(t: &mut Trial) -> Step {
    can_ask_for_health(t)?;
    let log = t.dir().join("script.log").display().to_string();
    let fresh = format!("test $(( $(date +%s) - $(stat -c %Y {log}) )) -lt 2");
    let health = format!("{{ command = [\"sh\", \"-c\", {fresh:?}], interval = \"200ms\", failures = 8 }}");
    let mut stage = Stage::begin(t, &watched, &format!("{PATIENT}\nhealth = {health}"))?;
    stage.says(0, "tick", 3)?;
    stage.found_hanging()?;
    stage.hand_over().map(drop)
}

/// The crash is the first of three failures: found out once, it is started again, the next time handed over.
fn hanging_for_good(t: &mut Trial) -> Step {
    can_ask_for_health(t)?;
    let command = |log: &str| ["bash".to_owned(), script("hang.sh"), log.to_owned()].to_vec();
    let mut stage = Stage::begin(t, &command, &format!("give_up_after = 3\n{SPEAKS}"))?;
    stage.says(0, "tick", 2)?;
    stage.crash()?;
    let (first, _) = stage.holder()?;
    stage.says(2, "tick", 1)?;
    check(stage.holder()?.0 == first, "the first hang moved it")?;
    stage.says(3, "tick", 1)?;
    check(stage.holder()?.0 != first, "a script that hangs every time was not given up")
}

fn obedient(t: &mut Trial, interpreter: &str, name: &str) -> Step {
    has(interpreter)?;
    let command = |log: &str| [interpreter, &script(name), log].map(str::to_owned).to_vec();
    let mut stage = Stage::begin(t, &command, PATIENT)?;
    stage.says(0, "tick", 3)?;
    stage.crash()?;
    let ended = stage.hand_over()?;
    check(stage.account()?.said(ended, "stop") == 1, "it was not asked politely")?;
    stage.hang_now()?;
    let hung = stage.runs()? - 1;
    stage.says(hung, "hangs", 1)?;
    stage.hand_over()?;
    check(stage.account()?.said(hung, "stop") == 0, "a script that hangs cannot have stopped politely")
}

/// The main process is the shell: it ends when the worker has, and hands SIGTERM on.
fn watched(log: &str) -> Vec<String> {
    // Nothing but `sleep` is there to be hit by the SIGTERM that the whole group gets.
    let watch = "\"$0\" \"$1\" && pid=$(cat \"$1.pid\") && trap 'kill $pid' TERM && \
                 while kill -0 $pid 2>/dev/null; do sleep 0.05; done";
    ["bash", "-c", watch, &script("daemon.sh"), log].map(str::to_owned).to_vec()
}

fn daemon(t: &mut Trial) -> Step {
    let mut stage = Stage::begin(t, &watched, PATIENT)?;
    stage.says(0, "tick", 3)?;
    // The worker's crash, which only the shell can see; then the shell's, which takes the worker with it.
    // Its pid is written down by the process that started it, and that may be later than its first words.
    let file = stage.log.with_extension("log.pid");
    let mut worker: Option<i32> = None;
    stage.trial.until("the worker's pid is written down", |_| {
        worker = std::fs::read_to_string(&file).ok().and_then(|pid| pid.trim().parse().ok());
        Ok(worker.is_some())
    })?;
    kill(Pid::from_raw(worker.unwrap_or_default()), Signal::SIGKILL)?;
    stage.says(1, "tick", 3)?;
    stage.crash()?;
    // The shell hands SIGTERM on once it has seen the script go into the background.
    procs::grow_up(stage.holder()?.1);
    let ended = stage.hand_over()?;
    check(stage.account()?.said(ended, "stop") == 1, "the worker was not asked politely")?;
    stage.hang_now()?;
    let hung = stage.runs()? - 1;
    stage.says(hung, "hangs", 1)?;
    stage.hand_over().map(drop)
}

fn daemon_unwatched(t: &mut Trial) -> Step {
    let command = |log: &str| [script("daemon.sh"), log.to_owned()].to_vec();
    let mut stage = Stage::begin(t, &command, PATIENT)?;
    stage.says(4, "start", 1)?;
    let mut host = None;
    stage.trial.until("a host says that it won", |t| {
        for name in ["a", "b"] {
            host = host.or(t.log_of(name)?.contains("won the election").then_some(name));
        }
        Ok(host.is_some())
    })?;
    let host = host.ok_or_else(|| failure("nobody won"))?;
    let run = stage.runs()?;
    stage.trial.signal(host, Signal::SIGTERM)?;
    stage.says(run + 2, "start", 1)?;
    stage.trial.log_says(host, "left processes behind")?;
    stage.trial.figure(format!("{} runs, none beside another", stage.runs()?));
    Ok(())
}

fn hanging(t: &mut Trial) -> Step {
    let command = |log: &str| ["bash".to_owned(), script("hang.sh"), log.to_owned()].to_vec();
    let mut stage = Stage::begin(t, &command, PATIENT)?;
    stage.says(0, "tick", 2)?;
    stage.crash()?;
    let run = stage.runs()? - 1;
    stage.says(run, "hangs", 1)?;
    stage.hand_over().map(drop)
}
