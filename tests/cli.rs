//! The command line by the program itself: exit codes, and what people read who know nothing but `keeperd --help`.
//!
//! Commands that move keepers between hosts are in tests/e2e/scenarios/commands.rs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Nothing that is slower than this will ever happen.
const PATIENCE: Duration = Duration::from_secs(30);
const NOBODY: u32 = 65534;

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    #[track_caller]
    fn is(&self, code: i32, out: &str, err: &str) {
        let Said { code: was, out: was_out, err: was_err } = self;
        let unlike = format!("exit {was:?}, wanted {code}\nstdout: {was_out}\nstderr: {was_err}");
        assert!(
            *was == Some(code) && was_out.contains(out) && was_err.contains(err),
            "{out:?} {err:?} {unlike}"
        );
    }
}

fn keeperd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keeperd"));
    for name in ["KEEPERD_CONFIG", "REDIS_NODES", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command.env("KEEPERD_CGROUP", "off").stdin(Stdio::null());
    command
}

fn said(command: &mut Command) -> Said {
    let output = command.output().expect("it is built");
    let text = |bytes| String::from_utf8(bytes).expect("people read it");
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn say(arguments: &[&str]) -> Said {
    said(keeperd().args(arguments))
}

/// A daemon with a local lock and one keeper, `oracle`.
struct Daemon {
    process: Child,
    folder: TempDir,
}

impl Daemon {
    /// `control`: where its socket is to be, in its folder; `None`: where it likes, with XDG_RUNTIME_DIR in its folder.
    fn start() -> Daemon {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // For another user, who is to be refused by the socket and not by the folder.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("our folder");
        let text = format!(
            "[lock]\nengine = \"local\"\ndirectory = \"{0}/locks\"\n[control]\nsocket = \"{0}/control.sock\"\n\
             [[keeper]]\nname = \"oracle\"\ncommand = [\"sleep\", \"1000\"]\n",
            folder.path().display()
        );
        fs::write(folder.path().join("keepers.toml"), text).expect("our folder");
        let process = keeperd()
            .arg("--config")
            .arg(folder.path().join("keepers.toml"))
            .stderr(Stdio::null())
            .spawn()
            .expect("it is built");
        let daemon = Daemon { process, folder };
        daemon.wait_for(&["status", "oracle"], "leader");
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = keeperd();
        command.arg("--config").arg(self.path("keepers.toml")).args(arguments);
        command
    }

    fn say(&self, arguments: &[&str]) -> Said {
        said(&mut self.command(arguments))
    }

    #[track_caller]
    fn wait_for(&self, arguments: &[&str], out: &str) {
        let since = Instant::now();
        let mut said = self.say(arguments);
        while !(said.code == Some(0) && said.out.contains(out)) {
            assert!(since.elapsed() < PATIENCE, "{arguments:?}: {out:?} never: {}{}", said.out, said.err);
            std::thread::sleep(Duration::from_millis(20));
            said = self.say(arguments);
        }
    }

    /// The keeper's process, once it runs: elected comes first.
    fn child(&self, keeper: &str) -> u64 {
        let since = Instant::now();
        loop {
            let status = self.say(&["status", keeper, "--json"]).out;
            let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
            if let Some(pid) = status["keepers"][0]["pid"].as_u64() {
                return pid;
            }
            assert!(since.elapsed() < PATIENCE, "{keeper} never ran: {status:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(mut self) -> TempDir {
        let pid = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it is our child");
        assert!(self.process.wait().expect("it is our child").success());
        std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a temporary folder"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.process.try_wait().ok().flatten().is_none() {
            let pid = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _ = self.process.wait();
        }
    }
}

// ── finding the daemon ──

#[test]
fn a_configuration_that_is_wrong_elsewhere_still_names_the_socket() {
    let daemon = Daemon::start();
    let text = fs::read_to_string(daemon.path("keepers.toml")).expect("our file");
    fs::write(daemon.path("keepers.toml"), format!("hots = 1\n{text}umask = ")).expect("ours");
    daemon.say(&["check"]).is(78, "", "keepers.toml:10:9: not TOML");
    daemon.say(&["status"]).is(0, "oracle", "");
}

#[test]
fn the_socket_can_be_named_without_any_configuration() {
    let daemon = Daemon::start();
    let socket = daemon.path("control.sock").display().to_string();
    let missing = daemon.path("nothing.toml").display().to_string();
    say(&["--config", &missing, "status", "--socket", &socket]).is(0, "oracle", "");
    say(&["--config", &missing, "status"]).is(
        78,
        "",
        "No such file or directory (os error 2); the socket itself",
    );
    let other = daemon.path("other.sock").display().to_string();
    say(&["--socket", &other, "status"]).is(3, "", "is it running?");
    say(&["--socket", &socket]).is(64, "", "--socket is for commands");
}

#[test]
fn the_usual_places_are_tried_and_named() {
    let daemon = Daemon::start();
    let runtime = daemon.path("runtime");
    let said_there = || said(keeperd().arg("status").env("XDG_RUNTIME_DIR", &runtime));
    let tried = said_there();
    tried.is(3, "", "no keeperd answers here; is it running?");
    for place in [Path::new("/run/keeperd/keeperd.sock"), &runtime.join("keeperd/keeperd.sock")] {
        assert!(tried.err.contains(&format!("\n  {}: ", place.display())), "{}", tried.err);
    }
    fs::create_dir_all(runtime.join("keeperd")).expect("our folder");
    fs::rename(daemon.path("control.sock"), runtime.join("keeperd/keeperd.sock")).expect("our folder");
    said_there().is(0, "oracle", "");
}

/// Only root can become somebody else.
#[test]
fn another_user_is_refused_and_told_who_may() {
    if !nix::unistd::Uid::effective().is_root() {
        println!("SKIPPED: only root can become another user");
        return;
    }
    let daemon = Daemon::start();
    // Where anybody may execute it.
    let binary = daemon.path("keeperd");
    // Not by this process: another test may fork while it is open for writing, and then it is busy for a moment.
    let copied =
        Command::new("cp").arg(env!("CARGO_BIN_EXE_keeperd")).arg(&binary).status().expect("coreutils");
    assert!(copied.success());
    let socket = daemon.path("control.sock");
    assert_eq!(fs::metadata(&socket).expect("it is there").permissions().mode() & 0o777, 0o660);
    let other = |group: u32, arguments: &[&str]| {
        said(Command::new(&binary).arg("--socket").arg(&socket).args(arguments).uid(NOBODY).gid(group))
    };
    for arguments in [&["status"][..], &["pause", "oracle"], &["drain"], &["logs", "oracle"]] {
        other(NOBODY, arguments).is(
            1,
            "",
            "you may not talk to keeperd; root, user root and members of group root may",
        );
    }
    daemon.say(&["status", "oracle"]).is(0, "leader", "");
    other(0, &["status"]).is(0, "oracle", "");
}

// ── exit codes ──

#[test]
fn a_mistake_in_the_command_line_is_64_for_every_command() {
    for arguments in [
        &["--no-such-option"][..],
        &["no-such-command"],
        &["check", "more"],
        &["status", "a", "b"],
        &["status", "--lines"],
        &["logs"],
        &["step-down"],
        &["pause"],
        &["pause", "a", "b"],
        &["resume"],
        &["resume", "a", "--all"],
        &["restart"],
        &["drain", "a"],
        &["resume", "--all", "--everywhere"],
        &["unlock"],
        &["unlock", "a", "b"],
        &["completions"],
        &["completions", "tcsh"],
        &["man", "more"],
    ] {
        say(arguments).is(64, "", "try '--help'");
    }
    say(&["drain", "--timeout", "1"]).is(64, "", "time unit needed, for example 1sec");
}

#[test]
fn a_daemon_that_is_not_running_is_3_for_every_command_that_needs_one() {
    let folder = Daemon::start().stop();
    let file = folder.path().join("keepers.toml");
    for arguments in [
        &["status"][..],
        &["status", "oracle", "--json"],
        &["logs", "oracle"],
        &["logs", "oracle", "-f"],
        &["step-down", "oracle"],
        &["pause", "oracle"],
        &["resume", "oracle"],
        &["resume", "--all"],
        &["restart", "oracle"],
        &["drain"],
    ] {
        said(keeperd().arg("--config").arg(&file).args(arguments)).is(3, "", "is it running?");
    }
}

#[test]
fn an_unknown_name_is_4_for_every_command_that_takes_one() {
    let daemon = Daemon::start();
    for command in ["status", "logs", "step-down", "pause", "resume", "restart"] {
        daemon.say(&[command, "oracel"]).is(
            4,
            "",
            "there is no keeper \"oracel\" here; keeperd status lists them",
        );
    }
}

// ── printing ──

#[test]
fn completions_name_every_command_in_a_script_its_shell_can_read() {
    let help = say(&["--help"]);
    let commands = help.out.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.take_while(|line| !line.is_empty()).filter_map(|line| line.strip_prefix("  "));
    let commands: Vec<&str> =
        commands.filter_map(|line| line.split(' ').next().filter(|c| !c.is_empty())).collect();
    assert!(commands.len() > 10, "{commands:?}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = say(&["completions", shell]);
        script.is(0, "keeperd", "");
        for command in &commands {
            assert!(script.out.contains(command), "{command} is not in the script for {shell}");
        }
    }
    let mut bash = Command::new("bash");
    let script = "source <(\"$0\" completions bash); COMP_WORDS=(keeperd st); COMP_CWORD=1; _keeperd keeperd st keeperd; echo ${COMPREPLY[@]}";
    said(bash.args(["-c", script, env!("CARGO_BIN_EXE_keeperd")])).is(0, "status step-down stop start", "");
}

#[test]
fn the_manual_page_has_every_command_with_its_options_and_every_exit_code() {
    let page = say(&["man"]);
    page.is(0, ".TH keeperd 1", "");
    for expected in [
        ".SH \"EXIT STATUS\"",
        ".SH FILES",
        ".SH ENVIRONMENT",
        ".SH EXAMPLES",
        ".SS \"keeperd step-down [OPTIONS] <NAME>\"",
        "\\fB\\-\\-timeout \\fR\\fIDURATION\\fR",
        "\\fB\\-f, \\-\\-follow",
        "Also called stop.",
        "Example: keeperd restart pricing\\-oracle\\-keeper",
        "\\fB78\\fR",
        "\\fB69\\fR",
        "\\fB76\\fR",
        "\\fB126, 127\\fR",
        ".SS \"keeperd unlock [OPTIONS] <NAME>\"",
    ] {
        assert!(page.out.contains(expected), "{expected:?} is not in\n{}", page.out);
    }
}

#[test]
fn check_cuts_nothing_in_a_pipe() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join(format!("{}.toml", "k".repeat(100)));
    fs::write(&file, "lock = { engine = \"local\" }\n").expect("our folder");
    let checked = said(keeperd().arg("--config").arg(&file).arg("check"));
    checked.is(0, &format!("{}: valid, 0 keepers\n", file.display()), "");
}

// ── watching ──

/// What `script` shows of a command on a terminal of 60 columns until it has shown `until`.
fn on_terminal(daemon: &Daemon, env: &[(&str, &str)], arguments: &str, until: &str) -> String {
    let command = format!(
        "stty cols 60 rows 20; exec '{}' --config '{}' {arguments}",
        env!("CARGO_BIN_EXE_keeperd"),
        daemon.path("keepers.toml").display()
    );
    let mut script = Command::new("script");
    script.args(["--quiet", "--flush", "--return", "--command", &command, "/dev/null"]);
    script.env("TERM", "xterm").env_remove("NO_COLOR").envs(env.iter().copied());
    shown_by(&mut script, until)
}

/// Reads until it has seen `until`, then closes the other end and waits.
fn shown_by(command: &mut Command, until: &str) -> String {
    use std::io::Read as _;
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it is there");
    let mut stdout = process.stdout.take().expect("a pipe");
    let (sender, chunks) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = stdout.read(&mut chunk) {
            if sender.send(chunk[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    let (since, mut shown) = (Instant::now(), String::new());
    while !shown.contains(until) {
        let left =
            PATIENCE.checked_sub(since.elapsed()).unwrap_or_else(|| panic!("{until:?} never: {shown:?}"));
        match chunks.recv_timeout(left) {
            Ok(chunk) => shown += &String::from_utf8_lossy(&chunk),
            Err(error) => panic!("{until:?} never, {error}: {shown:?}"),
        }
    }
    drop(chunks);
    let _ = process.kill();
    let _ = process.wait();
    let _ = reader.join();
    shown
}

#[test]
fn a_watched_status_in_a_pipe_is_one_picture_after_the_other() {
    let daemon = Daemon::start();
    let shown = shown_by(&mut daemon.command(&["status", "--watch"]), " -\n\n");
    assert!(shown.contains("KEEPER") && !shown.contains('\x1b'), "{shown:?}");
    let shown = shown_by(&mut daemon.command(&["status", "oracle", "--watch", "--json"]), "}\n{");
    let first = shown.lines().next().expect("a line");
    let first: serde_json::Value = serde_json::from_str(first).expect("a document a line");
    assert_eq!(first["keepers"][0]["role"], "leader");
    daemon.say(&["status", "oracel", "--watch"]).is(4, "", "keeperd status lists them");
}

#[test]
fn a_watched_status_on_a_terminal_is_drawn_anew_in_its_place() {
    let daemon = Daemon::start();
    let shown = on_terminal(&daemon, &[], "status --watch", "\x1b[J\x1b[?7h\x1b[H\x1b[?7l");
    assert!(shown.contains("\x1b[2J\x1b[H"), "{shown:?}");
    assert!(shown.contains("\x1b[32mleader"), "{shown:?}");
}

#[test]
fn colours_are_for_terminals_and_for_those_who_want_them() {
    let daemon = Daemon::start();
    assert!(on_terminal(&daemon, &[], "status", "serving").contains("\x1b[32mleader       \x1b[0m "));
    for env in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let shown = on_terminal(&daemon, &[env], "status", "serving");
        assert!(shown.contains("leader") && !shown.contains('\x1b'), "{shown:?}");
    }
    assert!(!daemon.say(&["status"]).out.contains('\x1b'));
}

#[test]
fn a_terminal_narrower_than_a_line_of_check_cuts_it() {
    let daemon = Daemon::start();
    let shown = on_terminal(&daemon, &[], "check", "output");
    let widest = shown.lines().map(|line| line.trim_end().chars().count()).max();
    assert_eq!(widest, Some(60), "{shown}");
}

// ── who knows only --help ──

#[test]
fn the_status_says_why_a_keeper_was_stopped_also_after_its_lock_is_free() {
    let daemon = Daemon::start();
    daemon.say(&["pause", "oracle"]).is(0, "oracle: paused", "");
    daemon.say(&["status", "oracle"]).is(0, "asked to pause; the lock is released", "");
    daemon.say(&["resume", "oracle"]).is(0, "oracle", "");
    daemon.wait_for(&["status", "oracle"], "won the election");
}

/// Every command named there has help with an example.
#[test]
fn help_leads_to_an_example_of_every_command() {
    let help = say(&["--help"]).out;
    for wanted in
        ["who has it", "why it moved", "move it to another host", "stop it on this host", "for a deploy"]
    {
        assert!(help.contains(wanted), "{help}");
    }
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.take_while(|line| !line.is_empty()).filter_map(|line| line.strip_prefix("  "));
    for command in
        commands.filter_map(|line| line.split(' ').next().filter(|c| !c.is_empty() && *c != "help"))
    {
        let said = say(&[command, "--help"]);
        said.is(0, "Usage: keeperd", "");
        assert!(said.out.contains("Example"), "{}", said.out);
        assert!(said.out.contains(&format!("keeperd {command}")), "{}", said.out);
    }
}

// ── the control socket without this program ──

/// The status line and the body that a request gets.
fn request(daemon: &Daemon, text: &str) -> (u16, serde_json::Value) {
    use std::io::{Read as _, Write as _};
    let mut socket =
        std::os::unix::net::UnixStream::connect(daemon.path("control.sock")).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    socket.write_all(text.as_bytes()).expect("it reads");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("it answers, and closes");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    (code, serde_json::from_str(body).expect("a document"))
}

#[test]
fn a_request_that_makes_no_sense_gets_a_code_and_a_reason_and_changes_nothing() {
    let daemon = Daemon::start();
    for (code, line, why) in [
        (404, "POST /v1/keepers/oracel/pause", "there is no such keeper"),
        (404, "POST /v1/keepers/oracle/eat", "there are step-down, pause, resume and restart"),
        (404, "POST /v1/keepers/oracle/pause/", "there are"),
        (404, "POST /v1/keepers/../drain", "there are"),
        (404, "POST /v1", "there are"),
        (404, "GET /", "there are"),
        (405, "GET /v1/keepers/oracle/pause", "use POST"),
        (405, "DELETE /v1/drain", "use POST"),
        (405, "POST /v1/status", "use GET"),
    ] {
        let body = "Host: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
        let (answered, document) = request(&daemon, &format!("{line} HTTP/1.1\r\n{body}"));
        let error = document["error"].as_str().expect("a reason");
        assert!(answered == code && error.contains(why), "{line}: {answered} {error}");
    }
    daemon.say(&["status", "oracle"]).is(0, "leader", "");
}

/// A user database that comes late, as over the network: one of its own for the daemon, in a mount namespace.
#[test]
fn a_user_that_is_made_later_is_found_without_a_restart() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: needs root for a user database of its own");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    let known = fs::read_to_string("/etc/passwd").expect("there is one");
    fs::write(path("passwd"), &known).expect("our folder");
    let text = format!(
        "[lock]\nengine = \"local\"\ndirectory = \"{0}/locks\"\n[control]\nsocket = \"{0}/control.sock\"\n\
         [[keeper]]\nname = \"oracle\"\ncommand = [\"sleep\", \"1000\"]\nuser = \"newcomer\"\ncooldown = \"1s\"\n",
        folder.path().display()
    );
    fs::write(path("keepers.toml"), text).expect("our folder");
    let script = "mount --bind \"$1\" /etc/passwd && exec \"$2\" --config \"$3\"";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", script, "sh"]).args([
        path("passwd").as_os_str(),
        env!("CARGO_BIN_EXE_keeperd").as_ref(),
        path("keepers.toml").as_os_str(),
    ]);
    unshare.env("KEEPERD_CGROUP", "off").stdin(Stdio::null()).stderr(Stdio::null());
    let daemon = Daemon { process: unshare.spawn().expect("util-linux"), folder };
    daemon.wait_for(&["status", "oracle"], "there is no user \"newcomer\" on this host");
    let path = daemon.path("passwd");
    fs::write(path, known + "newcomer:x:54321:54321::/:/bin/sh\n").expect("our folder");
    let child = daemon.child("oracle");
    let of_child = fs::read_to_string(format!("/proc/{child}/status")).expect("it runs");
    assert!(of_child.contains("Uid:\t54321\t54321"), "{of_child}");
    daemon.stop();
}
