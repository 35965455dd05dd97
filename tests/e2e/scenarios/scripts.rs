//! Scripts as people have them, unchanged: each one's crash, hang and hand-over.
//!
//! Each script appends to one log, whichever host runs it; see [`Account`].

use super::{Scenario, scenario};
use crate::account::Account;
use crate::clock::{boot_ns, ms, nanos};
use crate::daemon::binary;
use crate::step::{Step, check, failure, skipped};
use crate::trial::{KEEPER, Setup, Trial, millis, secs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::time::Duration;

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

const RULES: &str = "stop_timeout = \"500ms\"\nrestart_delay = \"50ms\"\nrestart_delay_max = \"100ms\"\ngive_up_window = \"1h\"\ncooldown = \"1s\"";
const PATIENT: &str = "give_up_after = 100";
/// A script that says nothing for so long hangs. Python and Node may take half of it to start on a busy machine.
const SPEAKS: &str = "health = { max_silence = \"2s\" }";

fn script(name: &str) -> String {
    format!("{}/tests/e2e/scripts/{name}", env!("CARGO_MANIFEST_DIR"))
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
        Account::parse(&std::fs::read_to_string(&self.log).unwrap_or_default()).map_err(failure)
    }

    /// Waits until that run has said the word so many times.
    fn says(&mut self, run: usize, word: &str, times: usize, within: Duration) -> Step {
        let since = boot_ns();
        loop {
            let account = self.account()?;
            if account.said(run, word) >= times {
                return Ok(());
            }
            let over = boot_ns() > since + nanos(within);
            let seen = account.runs.len();
            check(
                !over,
                format!("run {run} did not say {word:?} within {}; {seen} runs", ms(nanos(within))),
            )?;
            self.trial.pause(millis(2));
        }
    }

    fn runs(&self) -> Step<usize> {
        Ok(self.account()?.runs.len())
    }

    /// The host that runs it, and the main process.
    fn holder(&mut self) -> Step<(&'static str, i32)> {
        let since = boot_ns();
        loop {
            for host in ["a", "b"] {
                if let Ok(status) = self.trial.daemon(host)?.keeper_status(KEEPER)
                    && let Some(pid) = status["pid"].as_i64()
                {
                    return Ok((host, i32::try_from(pid)?));
                }
            }
            check(boot_ns() < since + nanos(secs(3)), "no host says that it runs the script")?;
            self.trial.pause(millis(10));
        }
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
        self.says(run, "tick", 2, secs(4))?;
        self.trial.figure(format!("running {} after a crash", ms(boot_ns() - at)));
        let (after, _) = self.holder()?;
        check(host == after, format!("a crash moved it from {host} to {after}"))
    }

    /// Hangs, and is found out: killed, and started again on the same host.
    fn found_hanging(&mut self) -> Step {
        let (host, _) = self.holder()?;
        self.hang_now()?;
        let run = self.runs()?;
        self.says(run - 1, "hangs", 1, secs(2))?;
        let at = boot_ns();
        self.says(run, "tick", 2, secs(8))?;
        self.trial.figure(format!("running {} after it hung", ms(boot_ns() - at)));
        let (after, _) = self.holder()?;
        check(host == after, format!("a script that hung was moved from {host} to {after}"))
    }

    /// SIGTERM to the holder's daemon: the other host runs it. Returns the run that was ended.
    fn hand_over(&mut self, within: Duration) -> Step<usize> {
        let (host, _) = self.holder()?;
        let run = self.runs()?;
        let at = self.trial.signal(host, Signal::SIGTERM)?;
        self.says(run, "start", 1, within)?;
        self.trial.figure(format!("handed over in {}", ms(boot_ns() - at)));
        self.says(run, "tick", 3, secs(4))?;
        self.trial.daemon(host)?.await_exit(secs(4))?;
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
    stage.says(0, "tick", 3, secs(5))?;
    stage.found_hanging()?;
    stage.hand_over(secs(5)).map(drop)
}

/// It says nothing, so a command asks whether its log is fresh.
fn silent_daemon(t: &mut Trial) -> Step {
    can_ask_for_health(t)?;
    let log = t.dir().join("script.log").display().to_string();
    let fresh = format!("test $(( $(date +%s) - $(stat -c %Y {log}) )) -lt 2");
    let health = format!("{{ command = [\"sh\", \"-c\", {fresh:?}], interval = \"200ms\", failures = 2 }}");
    let mut stage = Stage::begin(t, &watched, &format!("{PATIENT}\nhealth = {health}"))?;
    stage.says(0, "tick", 3, secs(5))?;
    stage.found_hanging()?;
    stage.hand_over(secs(5)).map(drop)
}

/// The crash is the first of three failures: found out once, it is started again, the next time handed over.
fn hanging_for_good(t: &mut Trial) -> Step {
    can_ask_for_health(t)?;
    let command = |log: &str| ["bash".to_owned(), script("hang.sh"), log.to_owned()].to_vec();
    let mut stage = Stage::begin(t, &command, &format!("give_up_after = 3\n{SPEAKS}"))?;
    stage.says(0, "tick", 2, secs(5))?;
    stage.crash()?;
    let (first, _) = stage.holder()?;
    stage.says(2, "tick", 1, secs(8))?;
    check(stage.holder()?.0 == first, "the first hang moved it")?;
    stage.says(3, "tick", 1, secs(8))?;
    check(stage.holder()?.0 != first, "a script that hangs every time was not given up")
}

fn obedient(t: &mut Trial, interpreter: &str, name: &str) -> Step {
    has(interpreter)?;
    let command = |log: &str| [interpreter, &script(name), log].map(str::to_owned).to_vec();
    let mut stage = Stage::begin(t, &command, PATIENT)?;
    stage.says(0, "tick", 3, secs(5))?;
    stage.crash()?;
    let ended = stage.hand_over(secs(5))?;
    check(stage.account()?.said(ended, "stop") == 1, "it was not asked politely")?;
    stage.hang_now()?;
    let hung = stage.runs()? - 1;
    stage.says(hung, "hangs", 1, secs(2))?;
    stage.hand_over(secs(5))?;
    check(stage.account()?.said(hung, "stop") == 0, "a script that hangs cannot have stopped politely")
}

/// The main process is the shell: it ends when the worker has, and hands SIGTERM on.
fn watched(log: &str) -> Vec<String> {
    let watch = "\"$0\" \"$1\" && trap 'kill $(cat \"$1.pid\")' TERM && \
                 while kill -0 $(cat \"$1.pid\") 2>/dev/null; do sleep 0.05; done";
    ["bash", "-c", watch, &script("daemon.sh"), log].map(str::to_owned).to_vec()
}

fn daemon(t: &mut Trial) -> Step {
    let mut stage = Stage::begin(t, &watched, PATIENT)?;
    stage.says(0, "tick", 3, secs(5))?;
    // The worker's crash, which only the shell can see; then the shell's, which takes the worker with it.
    let worker: i32 = std::fs::read_to_string(stage.log.with_extension("log.pid"))?.trim().parse()?;
    kill(Pid::from_raw(worker), Signal::SIGKILL)?;
    stage.says(1, "tick", 3, secs(4))?;
    stage.crash()?;
    let ended = stage.hand_over(secs(5))?;
    check(stage.account()?.said(ended, "stop") == 1, "the worker was not asked politely")?;
    stage.hang_now()?;
    let hung = stage.runs()? - 1;
    stage.says(hung, "hangs", 1, secs(2))?;
    stage.hand_over(secs(5)).map(drop)
}

fn daemon_unwatched(t: &mut Trial) -> Step {
    let command = |log: &str| [script("daemon.sh"), log.to_owned()].to_vec();
    let mut stage = Stage::begin(t, &command, PATIENT)?;
    stage.says(4, "start", 1, secs(5))?;
    let host = if stage.trial.log_of("a")?.contains("won the election") { "a" } else { "b" };
    let run = stage.runs()?;
    stage.trial.signal(host, Signal::SIGTERM)?;
    stage.says(run + 2, "start", 1, secs(4))?;
    stage.trial.log_says(host, "left processes behind")?;
    stage.trial.figure(format!("{} runs, none beside another", stage.runs()?));
    Ok(())
}

fn hanging(t: &mut Trial) -> Step {
    let command = |log: &str| ["bash".to_owned(), script("hang.sh"), log.to_owned()].to_vec();
    let mut stage = Stage::begin(t, &command, PATIENT)?;
    stage.says(0, "tick", 2, secs(5))?;
    stage.crash()?;
    let run = stage.runs()? - 1;
    stage.says(run, "hangs", 1, secs(3))?;
    stage.hand_over(secs(5)).map(drop)
}
