//! `keeperd run` in front of real servers: exit codes, exclusion, signals, the terminal.

use super::daemon::*;
use super::server::{Server, Version};
use nix::sys::signal::Signal;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Place {
    servers: [Server; 3],
    folder: tempfile::TempDir,
    config: PathBuf,
}

impl Place {
    fn new() -> Place {
        let servers = [0; 3].map(|_| Server::start(Version::Redis70));
        let folder = tempfile::tempdir().expect("a folder");
        let keeper =
            "[[keeper]]\nname = \"oracle\"\nlock = \"other\"\ncommand = [\"sleep\", \"600\"]\nttl = \"6s\"\n";
        let config = write_config(folder.path(), "a", &Place::lock(&servers), keeper);
        Place { servers, folder, config }
    }

    fn lock(servers: &[Server; 3]) -> String {
        let nodes: Vec<String> = servers.iter().map(Server::url).collect();
        // Half a minute of patience with a machine that is busy.
        format!("nodes = {nodes:?}\nrestart_quarantine = \"0s\"\nttl = \"10s\"\nretry_count = 100")
    }

    fn run(&self, options: &[&str], command: &[&str]) -> Command {
        // Whoever runs the tests in the background lets them ignore SIGINT, and what was ignored stays so.
        let mut run = Command::new("env");
        run.arg("--default-signal=INT,QUIT,HUP,TERM")
            .arg(KEEPERD)
            .arg("--config")
            .arg(&self.config)
            .arg("run")
            .args(options)
            .arg("--")
            .args(command);
        run.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .current_dir(self.folder.path());
        run
    }

    fn code(&self, options: &[&str], command: &[&str]) -> (Option<i32>, String) {
        let output = self.run(options, command).output().expect("the built keeperd");
        (output.status.code(), text(&output))
    }

    /// The exit code, and what the command wrote.
    fn heard(&self, options: &[&str], command: &[&str]) -> (Option<i32>, String) {
        let output = self.run(options, command).output().expect("the built keeperd");
        (output.status.code(), said(&output))
    }

    /// One that has its lock; the pid of its command.
    fn running(&self, options: &[&str], script: &str) -> (Child, u32) {
        self.prepared(options, "true", script)
    }

    /// What is `first` is done before the command counts as running.
    fn prepared(&self, options: &[&str], first: &str, script: &str) -> (Child, u32) {
        let file = self.folder.path().join("pid");
        let _ = fs::remove_file(&file);
        let script = format!("{first}; echo $$ > {}.new; mv {0}.new {0}; {script}", file.display());
        let run = self.run(options, &["sh", "-c", &script]).spawn().expect("the built keeperd");
        let pid = until("the command", || fs::read_to_string(&file).ok());
        (run, pid.trim().parse().expect("a pid"))
    }

    fn is_free(&self, lock: &str) -> bool {
        self.servers.iter().all(|server| server.run::<i64>(&["EXISTS", &format!("redlock:{lock}")]) == 0)
    }
}

/// By the command. keeperd itself may have had to warn of a machine that stalls.
fn said(output: &Output) -> String {
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One command of the keeperd of this place.
fn say(place: &Place, words: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(KEEPERD);
    let output = command.arg("--config").arg(&place.config).args(words).output().expect("the built keeperd");
    (output.status.code(), text(&output))
}

/// It reads that signal by itself.
fn blocks(pid: u32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("our own child");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).expect("procfs").trim();
    u64::from_str_radix(mask, 16).expect("a mask") >> (signal as i32 - 1) & 1 == 1
}

fn end(run: Child) -> Output {
    run.wait_with_output().expect("our own child")
}

#[test]
fn each_end_has_its_exit_code_and_leaves_the_lock_free() {
    let place = Place::new();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        let (found, text) = place.code(&["job"], &["sh", "-c", script]);
        assert_eq!(found, Some(code), "{script}: {text}");
        assert!(place.is_free("job"), "{script}");
    }
    let folder = place.folder.path().display().to_string();
    let plain = place.config.display().to_string();
    for (command, code) in [("no-such-command", 127), (folder.as_str(), 126), (plain.as_str(), 126)] {
        let (found, text) = place.code(&["job"], &[command]);
        assert_eq!(found, Some(code), "{command}: {text}");
        assert!(text.contains("exec"), "{text}");
        assert!(place.is_free("job"), "{command}");
    }
    for options in [&["a/b"][..], &["job", "--ttl", "10ms"], &["job", "--ttl", "x"]] {
        let (found, text) = place.code(options, &["true"]);
        assert_eq!(found, Some(64), "{text}");
    }
    assert_eq!(place.code(&["job"], &[]).0, Some(64));
    let tells =
        place.heard(&["job"], &["sh", "-c", "echo $KEEPERD_KEEPER $KEEPERD_LOCK_KEY $KEEPERD_TTL_MS"]);
    assert_eq!(tells, (Some(0), "job redlock:job 10000\n".to_owned()));
    let tells = place.heard(&["oracle"], &["sh", "-c", "echo $KEEPERD_LOCK_KEY $KEEPERD_TTL_MS"]);
    assert_eq!(tells, (Some(0), "redlock:other 6000\n".to_owned()));
}

#[test]
fn the_second_gets_75_or_waits_its_turn() {
    let place = Place::new();
    let (first, _) = place.running(&["job"], "while [ ! -e go ]; do sleep 0.05; done; echo first");
    let (found, text) = place.code(&["job"], &["echo", "second"]);
    assert_eq!(found, Some(75), "{text}");
    assert!(text.contains("job is held by a (pid "), "{text}");
    let began = Instant::now();
    let (found, text) = place.code(&["job", "--wait", "300ms"], &["echo", "second"]);
    assert_eq!(found, Some(75), "{text}");
    assert!(began.elapsed() >= Duration::from_millis(300));
    fs::write(place.folder.path().join("go"), "").expect("our folder");
    assert_eq!(place.heard(&["job", "--wait", "1m"], &["echo", "second"]), (Some(0), "second\n".to_owned()));
    assert_eq!(said(&end(first)), "first\n");
}

#[test]
fn without_a_quorum_it_says_which_nodes_and_ends_with_69() {
    let mut place = Place::new();
    place.servers[1].kill();
    assert_eq!(place.code(&["job"], &["true"]).0, Some(0), "a minority is nobody's problem");
    place.servers[2].kill();
    let text = fs::read_to_string(&place.config).expect("our file");
    private(&place.config, &text.replace("retry_count = 100", "retry_count = 5"));
    let began = Instant::now();
    let (found, text) = place.code(&["job"], &["touch", "/nowhere/at-all"]);
    assert_eq!(found, Some(69), "{text}");
    assert!(text.contains("no quorum: 1 of 3 nodes") && text.matches(" down: ").count() == 2, "{text}");
    assert!(began.elapsed() < super::host::LONG);
    // A node that has just begun does not vote: nothing to wait for.
    let text = fs::read_to_string(&place.config).expect("our file").replace("\"0s\"", "\"auto\"");
    private(&place.config, &text);
    place.servers[1].start_again();
    place.servers[2].start_again();
    let (found, text) = place.code(&["job"], &["true"]);
    assert_eq!(found, Some(69), "{text}");
    assert!(text.contains("restart_quarantine"), "{text}");
}

#[test]
fn a_lock_that_is_lost_ends_the_command_with_76() {
    let place = Place::new();
    let (run, pid) = place.running(&["job"], "sleep 600 & setsid sleep 600 & wait");
    let _: Vec<()> =
        place.servers.iter().map(|s| s.run(&["SET", "redlock:job", "somebody", "PX", "60000"])).collect();
    let output = end(run);
    assert_eq!(output.status.code(), Some(76), "{}", text(&output));
    assert!(text(&output).contains("the lock is lost"), "{}", text(&output));
    assert!(!lives(pid));
    let somebody: Vec<String> = place.servers.iter().map(|s| s.run(&["GET", "redlock:job"])).collect();
    assert_eq!(somebody, ["somebody"; 3], "it is theirs now");
}

#[test]
fn a_daemons_keeper_and_a_run_exclude_each_other() {
    let place = Place::new();
    let mut daemon = Daemon::start(&place.config, &[]);
    daemon.until_leading();
    let (found, text) = place.code(&["oracle"], &["echo", "two"]);
    assert_eq!(found, Some(75), "{text}");
    assert_eq!(place.code(&["other"], &["echo", "two"]).0, Some(75), "the same lock by its own name");
    daemon.stop();
    let (run, _) = place.running(&["oracle"], "sleep 600");
    let daemon = Daemon::start(&place.config, &[]);
    until("standing by", || {
        let keeper = daemon.status()["keepers"][0].clone();
        (keeper["role"] == "standby" && keeper["holder"]["host"] == "a").then_some(())
    });
    signal(run.id(), Signal::SIGTERM);
    assert_eq!(end(run).status.code(), Some(143));
    daemon.until_leading();
}

#[test]
fn sigkill_leaves_no_process_and_frees_the_lock_before_its_lease_ends() {
    let place = Place::new();
    let (mut run, pid) =
        place.prepared(&["job", "--ttl", "120s"], "trap '' TERM; (setsid sleep 600 &)", "sleep 600 & wait");
    let tree = tree(run.id());
    assert!(tree.len() >= 4, "{tree:?}");
    run.kill().expect("our own child");
    run.wait().expect("our own child");
    until("the end of the tree", || (!lives(pid) && tree.iter().all(|pid| !lives(*pid))).then_some(()));
    until("the release", || place.is_free("job").then_some(()));
    assert_eq!(place.code(&["job"], &["true"]).0, Some(0));
}

#[test]
fn signals_reach_the_command_and_its_answer_is_the_exit_code() {
    let place = Place::new();
    for (name, number) in [("TERM", Signal::SIGTERM), ("INT", Signal::SIGINT), ("HUP", Signal::SIGHUP)] {
        let (run, pid) =
            place.prepared(&["job"], &format!("trap 'echo got {name}; exit 5' {name}"), "sleep 600 & wait");
        signal(run.id(), number);
        let output = end(run);
        assert_eq!((output.status.code(), said(&output)), (Some(5), format!("got {name}\n")));
        assert!(!lives(pid) && place.is_free("job"));
    }
    // While it waits, it ends by itself.
    let (holder, _) = place.running(&["job"], "sleep 600");
    let waiter = place.run(&["job", "--wait", "1m"], &["true"]).spawn().expect("the built keeperd");
    // As soon as it has its own way with signals.
    until("a waiter that heeds signals", || blocks(waiter.id(), Signal::SIGTERM).then_some(()));
    signal(waiter.id(), Signal::SIGTERM);
    assert_eq!(end(waiter).status.code(), Some(143));
    signal(holder.id(), Signal::SIGTERM);
    assert_eq!(end(holder).status.code(), Some(143));
    // What was ignored stays so.
    let line = format!(
        "trap '' HUP; exec {KEEPERD} --config {} run job -- sh -c 'kill -HUP $$; echo on'",
        place.config.display()
    );
    let output = Command::new("sh").args(["-c", &line]).output().expect("a shell");
    assert_eq!(said(&output), "on\n");
}

#[test]
fn input_and_output_are_the_callers_whatever_their_size() {
    let place = Place::new();
    let bytes: Vec<u8> = (0..8_u32 << 20).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    let mut run = place.run(&["job"], &["cat"]).stdin(Stdio::piped()).spawn().expect("the built keeperd");
    let mut stdin = run.stdin.take().expect("piped");
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let output = end(run);
    writer.join().expect("no panic").expect("all of it is read");
    assert!(output.stdout == bytes && output.stderr.is_empty(), "{} bytes came", output.stdout.len());
    // Its folder and variables, too.
    let mut run = place.run(&["job"], &["sh", "-c", "pwd; echo $COLOUR"]);
    let output = run.current_dir("/usr").env("COLOUR", "green").output().expect("the built keeperd");
    assert_eq!(said(&output), "/usr\ngreen\n");
}

#[test]
fn nodes_from_the_environment_are_all_it_needs() {
    let place = Place::new();
    for server in &place.servers {
        // As if it had run for long.
        let info: String = server.run(&["INFO", "server"]);
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).expect("a run").trim();
        let _: i64 =
            server.run(&["HSET", "keeperd:node", "run_id", run_id, "until", "0", "n", "3", "q", "60000000"]);
    }
    let nodes: Vec<String> = place.servers.iter().map(Server::url).collect();
    let mut run = Command::new(KEEPERD);
    run.args(["run", "job", "--", "sh", "-c", "echo $KEEPERD_TTL_MS"]).env("REDIS_NODES", nodes.join(","));
    // Without it, two seconds: less than a machine may stall.
    run.env("REDIS_RETRY_COUNT", "100");
    let output = run.env_remove("KEEPERD_CONFIG").output().expect("the built keeperd");
    if Path::new("/etc/keeperd/keepers.toml").exists() {
        return;
    }
    assert_eq!(said(&output), "30000\n");
    let output =
        Command::new(KEEPERD).args(["run", "job", "--", "true"]).output().expect("the built keeperd");
    assert_eq!(output.status.code(), Some(78), "no nodes: {}", text(&output));
}

/// A terminal from `script`; what `typed` writes there is typed. The whole session's output.
fn in_terminal(place: &Place, script: &str, typed: impl FnOnce(&mut dyn FnMut(&str))) -> String {
    // The shell around it gets Ctrl-C too, and one that is no bash would end by it.
    let line = format!(
        "trap : INT; env --default-signal=INT,QUIT,HUP,TERM {KEEPERD} --config {} run job -- sh -c '{script}'; echo \"code $?\"",
        place.config.display()
    );
    let out = place.folder.path().join("typescript");
    let _ = fs::remove_file(&out);
    let mut session = Command::new("script");
    session.args(["-q", "-f", "-e", "-c", &line]).arg(&out).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut session = session.spawn().expect("script, of bsdutils");
    let mut keyboard = session.stdin.take().expect("piped");
    let shown = || String::from_utf8_lossy(&fs::read(&out).unwrap_or_default()).into_owned();
    // The command itself stands at the top of the typescript.
    until("the prompt", || shown().contains("ready\r\n").then_some(()));
    typed(&mut |text| keyboard.write_all(text.as_bytes()).expect("the terminal is there"));
    let ended = |text: &String| text.split_once("\ncode ").is_some_and(|(_, code)| code.contains('\n'));
    let all = until("the end of the session", || Some(shown()).filter(ended));
    drop(keyboard);
    let _ = session.wait();
    all
}

#[test]
fn in_a_terminal_the_command_can_ask_and_ctrl_c_reaches_it_once() {
    let place = Place::new();
    let session = in_terminal(&place, "echo ready; read answer < /dev/tty; echo you said $answer", |type_| {
        type_("yes\n")
    });
    assert!(session.contains("you said yes") && session.contains("code 0"), "{session}");
    let counts = "trap \"echo interrupted\" INT; echo ready; sleep 1; sleep 1; echo done; exit 3";
    let session = in_terminal(&place, counts, |type_| type_("\u{3}"));
    let shown = session.split_once("ready\r\n").map_or("", |(_, shown)| shown);
    assert_eq!(shown.matches("interrupted").count(), 1, "{session}");
    assert!(session.contains("code 3"), "{session}");
    assert!(place.is_free("job"));
}

#[test]
fn a_pause_on_all_hosts_ends_the_command_and_lets_no_other_begin() {
    let place = Place::new();
    let (first, pid) = place.running(&["oracle"], "exec sleep 600");
    let (found, text) = say(&place, &["pause", "oracle", "--everywhere"]);
    assert!(found == Some(0) && text.contains("oracle: paused everywhere by a at 20"), "{found:?} {text}");
    assert!(!lives(pid), "{text}");
    // It has waited for a quorum of them.
    until("a release on all nodes", || place.is_free("other").then_some(()));
    let first = end(first);
    assert_eq!(first.status.code(), Some(76), "{}", super::daemon::text(&first));
    let (found, text) = place.code(&["oracle"], &["true"]);
    assert!(found == Some(75) && text.contains("keeperd resume oracle --everywhere"), "{found:?} {text}");
    let mut waiting = place.run(&["oracle", "--wait", "1m"], &["true"]).spawn().expect("the built keeperd");
    std::thread::sleep(Duration::from_millis(300));
    assert!(waiting.try_wait().expect("our own child").is_none());
    let (found, text) = say(&place, &["resume", "oracle", "--everywhere", "--timeout", "50ms"]);
    assert!(found == Some(0) && text.contains("not paused everywhere"), "{found:?} {text}");
    let waiting = end(waiting);
    assert_eq!(waiting.status.code(), Some(0), "{}", super::daemon::text(&waiting));
}

#[test]
fn unlock_removes_what_nobody_looks_after_and_refuses_what_somebody_does() {
    let place = Place::new();
    let (key, gone) = ("redlock:other", "00000000000000000000000000000007");
    let [_, _, third] = &place.servers;
    let _: String = third.run(&["SET", key, gone]);
    let _: String = third.run(&["SET", "keeperd:lease:{redlock:other}", gone]);
    let fence =
        ["HSET", "keeperd:fence:{redlock:other}", "l", gone, "host", "gone", "pid", "1", "ttl", "2000"];
    let _: i64 = third.run(&fence);
    let (run, pid) = place.running(&["oracle"], "exec sleep 600");
    let (found, text) = say(&place, &["unlock", "oracle"]);
    let told = [
        "oracle: a (keeperd's pid ",
        "--force takes it away",
        "taken from gone (keeperd's pid 1)",
        "held by a",
    ];
    assert!(found == Some(1) && told.iter().all(|part| text.contains(part)), "{found:?} {text}");
    assert_eq!(text.matches(": nothing to take away").count(), 2, "{text}");
    assert!(lives(pid), "{text}");
    assert_ne!(third.run::<Option<String>>(&["GET", key]).as_deref(), Some(gone));

    for server in &place.servers {
        let _: i64 = server.run(&["HSET", "redlock:odd", "another", "library"]);
    }
    let (found, text) = say(&place, &["unlock", "odd"]);
    assert!(found == Some(1) && text.contains("--force removes it"), "{found:?} {text}");
    let (found, text) = say(&place, &["unlock", "odd", "--force"]);
    assert!(found == Some(0) && text.contains("odd: unlocked; nobody has it now"), "{found:?} {text}");
    assert!(place.is_free("odd"));

    let (found, text) = say(&place, &["unlock", "oracle", "--force"]);
    assert!(found == Some(0) && text.contains("oracle: unlocked"), "{found:?} {text}");
    assert!(!lives(pid), "{text}");
    assert_eq!(end(run).status.code(), Some(76));
}

#[test]
fn without_enough_nodes_or_over_another_client_nothing_is_paused_or_unlocked_in_silence() {
    let mut place = Place::new();
    for words in [&["pause", "nobody", "--everywhere"][..], &["resume", "nobody", "--everywhere"]] {
        let (found, text) = say(&place, words);
        assert!(found == Some(4) && text.contains("no keeper \"nobody\""), "{words:?}: {found:?} {text}");
    }
    for server in &place.servers {
        let _: String = server.run(&["SET", "redlock:other", "npm", "PX", "120000"]);
    }
    let (found, text) = say(&place, &["pause", "oracle", "--everywhere"]);
    assert!(found == Some(1) && text.contains("heeds no pause"), "{found:?} {text}");
    let (found, text) = say(&place, &["unlock", "oracle"]);
    assert!(
        found == Some(1) && text.contains("a client that is not keeperd has it for 1m"),
        "{found:?} {text}"
    );
    for server in &mut place.servers[1..] {
        server.kill();
    }
    for (words, so) in [
        (&["pause", "oracle", "--everywhere"][..], "1 of 3 nodes answer, and 2 are needed: it is not paused"),
        (
            &["resume", "oracle", "--everywhere"],
            "1 of 3 nodes answer, and 2 are needed: it may still be paused",
        ),
        (&["unlock", "oracle", "--force"], "1 of 3 nodes answer, and 2 are needed: nothing was changed"),
    ] {
        let (found, text) = say(&place, words);
        assert!(found == Some(1) && text.contains(so), "{words:?}: {found:?} {text}");
    }
    let local =
        "host = \"a\"\n[lock]\nengine = \"local\"\n[[keeper]]\nname = \"oracle\"\ncommand = [\"true\"]\n";
    private(&place.config, local);
    let (found, text) = say(&place, &["unlock", "oracle"]);
    assert!(found == Some(1) && text.contains("nothing to unlock"), "{found:?} {text}");
    let (found, text) = say(&place, &["pause", "oracle", "--everywhere"]);
    assert!(found == Some(1) && text.contains("has no other hosts"), "{found:?} {text}");
}
