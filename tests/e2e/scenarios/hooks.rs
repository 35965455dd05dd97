//! `on_acquired` and `on_lost`: told in order, and in nobody's way.

use super::{Scenario, scenario};
use crate::checker::Life;
use crate::clock::{boot_ns, ms, nanos};
use crate::step::{Step, check, failure};
use crate::trial::{AT_ONCE, CALM, KEEPER, LONG, Setup, Trial, millis, secs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

pub const ALL: &[Scenario] = &[
    scenario("hooks", "each term is told when it begins and, after its tree is dead, when it ends", told),
    scenario("hooks_crash", "on_lost knows how the child ended, and why the keeper was given up", crash),
    scenario(
        "hooks_that_hang",
        "hooks that hang delay neither the child nor a hand-over, and leave nothing",
        hang,
    ),
    scenario("hooks_that_fail", "a hook that fails or does not exist is a warning and no more", fail),
    scenario("hooks_cut_off", "a hook that hangs at the drain is cut off after two seconds", cut_off),
];

/// What a hook has seen: `e2e hook FILE NAME` writes one line.
#[derive(Clone, Debug)]
struct Told {
    at: u64,
    hook: String,
    keeper: String,
    token: u64,
    reason: String,
    code: String,
    signal: String,
}

impl Told {
    fn parse(line: &str) -> Option<Told> {
        let words: Vec<&str> = line.split(' ').collect();
        let [at, hook, keeper, token, reason, code, signal] = words[..] else { return None };
        let text = |word: &str| word.to_owned();
        Some(Told {
            at: at.parse().ok()?,
            hook: text(hook),
            keeper: text(keeper),
            token: token.parse().ok()?,
            reason: text(reason),
            code: text(code),
            signal: text(signal),
        })
    }
}

/// The role of a hook in this executable.
pub fn hook(args: &[String]) -> ! {
    let [file, name] = args else { panic!("usage: hook FILE NAME") };
    let env = |name: &str| std::env::var(name).unwrap_or_else(|_| "-".into());
    let [keeper, token, reason] = ["KEEPER", "FENCING_TOKEN", "REASON"].map(|n| env(&format!("KEEPERD_{n}")));
    let [code, signal] = ["CODE", "SIGNAL"].map(|n| env(&format!("KEEPERD_EXIT_{n}")));
    let line = format!("{} {name} {keeper} {token} {reason} {code} {signal}\n", boot_ns());
    let file = std::fs::OpenOptions::new().append(true).create(true).open(file);
    std::io::Write::write_all(&mut file.expect("the trial's folder"), line.as_bytes()).expect("a line");
    println!("told");
    std::process::exit(0)
}

fn lines(t: &Trial, more: &str) -> &'static str {
    let own = std::env::current_exe().expect("own path");
    let file = t.dir().join("hooks");
    let hook = |name: &str| format!("{name} = [{own:?}, \"hook\", {file:?}, \"{name}\"]");
    format!("{}\n{}\n{more}", hook("on_acquired"), hook("on_lost")).leak()
}

fn told_so_far(t: &Trial) -> Vec<Told> {
    let text = std::fs::read_to_string(t.dir().join("hooks")).unwrap_or_default();
    text.lines().filter_map(Told::parse).collect()
}

fn wait_for(t: &Trial, hook: &str, token: u64, within: Duration) -> Step<Told> {
    let since = boot_ns();
    loop {
        let found = told_so_far(t).into_iter().find(|told| told.hook == hook && told.token == token);
        if let Some(told) = found {
            return Ok(told);
        }
        let over = boot_ns() > since + nanos(within);
        check(!over, format!("{hook} of {token} was not run: {:?}", told_so_far(t)))?;
        t.pause(millis(2));
    }
}

fn log_says(t: &mut Trial, child: &Life, words: &str) -> Step {
    t.log_says(&Trial::holder_of(child), words)
}

fn told(t: &mut Trial) -> Step {
    let keeper_lines = lines(t, "");
    // It has a second to end by itself.
    let (ttl, child) = (CALM, vec!["--linger", "100"]);
    let old = t.begin(Setup { keeper_lines, child, ttl, ..Setup::default() })?;
    let acquired = wait_for(t, "on_acquired", old.token, LONG)?;
    check(acquired.keeper == KEEPER && acquired.reason == "won", format!("{acquired:?}"))?;
    t.random_moment();
    let at = t.signal(&Trial::holder_of(&old), Signal::SIGTERM)?;
    let new = t.successor(&old, at, LONG)?;
    let lost = wait_for(t, "on_lost", old.token, LONG)?;
    check(lost.reason == "stop" && lost.code == "0" && lost.signal == "-", format!("{lost:?}"))?;
    let old = t.life(&old.instance)?;
    check(
        lost.at > old.end,
        format!("on_lost ran {} before the child was dead", ms(old.end.saturating_sub(lost.at))),
    )?;
    wait_for(t, "on_acquired", new.token, LONG)?;
    log_says(t, &old, "on_lost | told")?;
    t.figure(format!("on_lost {} after the child's end", ms(lost.at - old.end)));
    t.runs_on(&new, secs(1))
}

fn crash(t: &mut Trial) -> Step {
    let rules = "restart_delay = \"50ms\"\ngive_up_after = 2\ngive_up_window = \"1m\"\ncooldown = \"1s\"";
    let keeper_lines = lines(t, rules);
    let old = t.begin(Setup { keeper_lines, ttl: CALM, ..Setup::default() })?;
    kill(Pid::from_raw(old.pid), Signal::SIGABRT)?;
    let again = t.next_child(old.end + 1, LONG)?;
    check(again.token == old.token, "a restart within the term")?;
    let early = told_so_far(t).iter().any(|told| told.hook == "on_lost");
    check(!early, "on_lost ran for a restart within the term")?;
    kill(Pid::from_raw(again.pid), Signal::SIGKILL)?;
    let lost = wait_for(t, "on_lost", old.token, LONG)?;
    check(lost.reason == "give_up" && lost.signal == "9" && lost.code == "-", format!("{lost:?}"))?;
    let new = t.successor(&old, lost.at.min(boot_ns()) - nanos(secs(1)), LONG)?;
    t.runs_on(&new, secs(1))
}

fn hang(t: &mut Trial) -> Step {
    const HANG: &str = "[\"sh\", \"-c\", \"trap '' TERM; setsid sleep 1000 & sleep 1000\"]";
    let keeper_lines = format!("on_acquired = {HANG}\non_lost = {HANG}\nhook_timeout = \"300ms\"").leak();
    let old = t.begin(Setup { keeper_lines, ttl: CALM, ..Setup::default() })?;
    t.runs_on(&old, secs(2))?;
    log_says(t, &old, "hook failed: not done after 300ms")?;
    let at = t.signal(&Trial::holder_of(&old), Signal::SIGTERM)?;
    let new = t.successor(&old, at, AT_ONCE)?;
    t.figure(format!("next child after {}", ms(new.start - at)));
    // Now both hooks of the new term hang while its lease is cut short.
    let at = t.signal(&Trial::holder_of(&new), Signal::SIGKILL)?;
    t.start(&Trial::holder_of(&old))?;
    let third = t.successor(&new, at, LONG)?;
    t.runs_on(&third, secs(1))
}

fn fail(t: &mut Trial) -> Step {
    let keeper_lines =
        "on_acquired = [\"sh\", \"-c\", \"echo oops >&2; exit 3\"]\non_lost = [\"/nonexistent/hook\"]";
    let old = t.begin(Setup { keeper_lines, ttl: CALM, ..Setup::default() })?;
    t.runs_on(&old, secs(1))?;
    log_says(t, &old, "hook failed: exit code 3")?;
    log_says(t, &old, "on_acquired ! oops")?;
    let at = t.signal(&Trial::holder_of(&old), Signal::SIGTERM)?;
    let new = t.successor(&old, at, AT_ONCE)?;
    t.runs_on(&new, secs(1))?;
    log_says(t, &old, "hook failed: not started: exec")
}

fn cut_off(t: &mut Trial) -> Step {
    let keeper_lines = "on_lost = [\"sh\", \"-c\", \"trap '' TERM; sleep 1000\"]";
    let old = t.begin(Setup { keeper_lines, hosts: vec!["a"], ttl: CALM, ..Setup::default() })?;
    let at = t.signal("a", Signal::SIGTERM)?;
    let status = t.daemon("a")?.await_exit(secs(4))?;
    let took = boot_ns() - at;
    t.figure(format!("drained in {}", ms(took)));
    check(status.code() == Some(0), format!("{status}"))?;
    check(took < nanos(millis(3500)), format!("the drain took {}", ms(took)))?;
    let freed = t.node('A').get(&Trial::lock_key())?;
    if freed.is_some() {
        return Err(failure("the lock waited for the hook"));
    }
    log_says(t, &old, "hooks cut off")
}
