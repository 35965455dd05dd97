//! The unit of systemd: by systemd's own judgement where it is installed, and as far as keeperd itself has to keep what it says.
//!
//! How it lives under a real manager is tests/fleet's.

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const UNIT: &str = include_str!("../systemd/keeperd.service");
/// Of `systemd-analyze security`, in tenths.
const EXPOSURE_MAX: &str = "35";
/// Nothing that is slower than this will ever happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// The values of a setting, in the order of the file.
fn settings(name: &str) -> Vec<&'static str> {
    UNIT.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

#[track_caller]
fn setting(name: &str) -> &'static str {
    let [value] = settings(name)[..] else { panic!("{name} stands there once") };
    value
}

/// What systemd-analyze says of the unit, with the built program in the place of the installed one; `None` where it is not installed.
fn analyze(arguments: &[&str]) -> Option<Output> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let unit = folder.path().join("keeperd.service");
    let program = env!("CARGO_BIN_EXE_keeperd");
    let text = UNIT
        .replace("ExecStart=keeperd", &format!("ExecStart={program}"))
        .replace("ExecStop=-keeperd", &format!("ExecStop=-{program}"));
    assert_eq!(text.matches(program).count(), 2);
    fs::write(&unit, text).expect("our folder");
    match Command::new("systemd-analyze").args(arguments).arg(unit).stdin(Stdio::null()).output() {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("skip: systemd-analyze cannot be run: {error}");
            None
        }
    }
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let Some(said) = analyze(&["verify", "--man=no", "--recursive-errors=no"]) else { return };
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && !text.contains("keeperd.service"), "{text}");
}

#[test]
fn the_unit_is_open_no_further_than_it_says_why() {
    let arguments = ["security", "--offline=true", "--threshold", EXPOSURE_MAX, "--json=short"];
    let Some(said) = analyze(&arguments) else { return };
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success(), "{text}{}", String::from_utf8_lossy(&said.stderr));
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).expect("a list");
    let open = rows.iter().filter(|row| row["exposure"].as_str().is_some_and(|cost| cost != "0"));
    let names: Vec<&str> = open.map(|row| row["name"].as_str().expect("a name")).collect();
    assert!(names.contains(&"PrivateNetwork="), "{names:?}");
    for name in names {
        let name = name.split('=').next().expect("there is always a first");
        assert!(UNIT.contains(name), "{name} is open, and the unit does not say why");
    }
}

#[test]
fn the_unit_and_the_program_agree() {
    let seconds = keeperd::systemd::STOP_TIMEOUT.as_secs();
    assert_eq!(setting("TimeoutStopSec"), format!("{seconds}s"));
    let never_again = [keeperd::cli::EXIT_USAGE, keeperd::ops::check::EXIT_CONFIG];
    assert_eq!(setting("RestartPreventExitStatus"), never_again.map(|code| code.to_string()).join(" "));
    assert_eq!(setting("LoadCredential").split(':').next(), Some("redis-password"));
}

/// A daemon with a local lock and a keeper that takes its time to end, and what the daemon says to systemd.
struct Service {
    process: Child,
    heard: UnixDatagram,
    folder: TempDir,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A wait with a limit is interrupted when the machine is frozen and goes on, and then the message is still to come.
fn receive(socket: &UnixDatagram, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}

impl Service {
    fn start() -> Service {
        Service::start_with(|daemon, _| {
            daemon.stderr(Stdio::null());
        })
    }

    fn start_with(more: impl FnOnce(&mut Command, &Path)) -> Service {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("keepers.toml"), configuration(folder.path())).expect("our folder");
        let heard = UnixDatagram::bind(folder.path().join("notify")).expect("our folder");
        heard.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut daemon = keeperd(folder.path());
        daemon.env("NOTIFY_SOCKET", folder.path().join("notify"));
        more(&mut daemon, folder.path());
        let process = daemon.spawn().expect("it is built");
        let service = Service { process, heard, folder };
        service.hear("1 running here");
        // Its trap is set.
        let since = Instant::now();
        while !service.path("began").exists() {
            assert!(since.elapsed() < PATIENCE, "the child never began");
            std::thread::sleep(Duration::from_millis(20));
        }
        service
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Everything up to the first message that contains `wanted`.
    #[track_caller]
    fn hear(&self, wanted: &str) -> Vec<String> {
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let length =
                receive(&self.heard, &mut buffer).unwrap_or_else(|e| panic!("{wanted:?}: {e}, {heard:?}"));
            heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            if heard.last().is_some_and(|last| last.contains(wanted)) {
                return heard;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        signal::kill(self.pid(), signal).expect("it is our child");
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().cast_signed())
    }

    /// The child and its guard.
    fn others(&self) -> [Pid; 2] {
        let text = fs::read_to_string(self.path("began")).expect("it began");
        let pids: Vec<i32> = text.split_whitespace().map(|pid| pid.parse().expect("a number")).collect();
        [Pid::from_raw(pids[0]), Pid::from_raw(pids[1])]
    }

    /// What systemd does with a signal of the unit: to every process, and SIGCONT after it.
    fn signal_all(&self, signal: Signal) {
        for pid in [self.pid()].into_iter().chain(self.others()) {
            // Some may be gone, as under systemd.
            let _ = signal::kill(pid, signal);
            let _ = signal::kill(pid, Signal::SIGCONT);
        }
    }

    /// Once the child is gone.
    #[track_caller]
    fn heard_by_the_child(&self) -> String {
        let [child, _] = self.others();
        let since = Instant::now();
        while signal::kill(child, None).is_ok() {
            assert!(since.elapsed() < PATIENCE, "the child goes on");
            std::thread::sleep(Duration::from_millis(20));
        }
        fs::read_to_string(self.path("heard")).unwrap_or_default()
    }
}

/// The longest stop is 25 s + 2 % of 60 s + 4 s; the child, asked to stop, is gone in two.
fn configuration(folder: &Path) -> String {
    format!(
        r#"
[lock]
engine = "local"
directory = "{0}/locks"
[control]
socket = "{0}/control.sock"
[[keeper]]
name = "oracle"
ttl = "60s"
stop_timeout = "25s"
stop_signal = "SIGINT"
command = ["bash", "-c", '''
trap 'echo INT >> {0}/heard; ending=1' INT
trap 'echo TERM >> {0}/heard' TERM
echo hello
echo $$ $PPID > {0}/new
mv {0}/new {0}/began
while [ -z "$ending" ]; do sleep 0.05 & wait; done
sleep 2
''']
"#,
        folder.display()
    )
}

fn keeperd(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keeperd"));
    for name in ["KEEPERD_CONFIG", "REDIS_NODES", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command.arg("--config").arg(folder.join("keepers.toml"));
    command.env("KEEPERD_CGROUP", "off").stdin(Stdio::null());
    command
}

#[test]
fn a_stop_longer_than_the_unit_allows_for_is_announced_to_systemd_once() {
    let mut service = Service::start();
    service.signal(Signal::SIGTERM);
    let mut heard = service.hear("EXTEND_TIMEOUT_USEC");
    assert!(service.process.wait().expect("it is our child").success());
    service.heard.set_nonblocking(true).expect("a socket");
    let mut buffer = [0; 4096];
    while let Ok(length) = service.heard.recv(&mut buffer) {
        heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    let asked: Vec<&str> =
        heard.iter().map(|text| text.trim_end()).filter(|t| t.contains("EXTEND")).collect();
    assert_eq!(asked, ["EXTEND_TIMEOUT_USEC=30200000"]);
}

/// Its standard error is the journal's stream, as far as it can tell.
fn under_the_journal(daemon: &mut Command, folder: &Path) {
    let stream = fs::File::create(folder.join("stderr")).expect("our folder");
    let status = stream.metadata().expect("our file");
    daemon.env("JOURNAL_STREAM", format!("{}:{}", status.dev(), status.ino()));
    daemon.env("KEEPERD_JOURNAL_SOCKET", folder.join("journal")).stderr(stream);
}

#[test]
fn what_the_journal_is_told_of_a_keeper_stands_under_its_name() {
    let mut journal = None;
    let service = Service::start_with(|daemon, folder| {
        let socket = UnixDatagram::bind(folder.join("journal")).expect("our folder");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        journal = Some(socket);
        under_the_journal(daemon, folder);
    });
    let journal = journal.expect("it is bound");
    let mut buffer = [0; 64 * 1024];
    // The first entry that begins so, in whatever order they come.
    let mut seen: Vec<String> = Vec::new();
    let mut entry = |wanted: &str| loop {
        if let Some(entry) = seen.iter().find(|entry| entry.starts_with(wanted)) {
            return entry.clone();
        }
        let length =
            receive(&journal, &mut buffer).unwrap_or_else(|error| panic!("{wanted}: {error}, {seen:?}"));
        seen.push(String::from_utf8(buffer[..length].to_vec()).expect("text"));
    };
    for about in ["MESSAGE=leader: ", "MESSAGE=child runs ", "MESSAGE=oracle | hello\n"] {
        let entry = entry(about);
        let fields = "PRIORITY=6\nSYSLOG_IDENTIFIER=keeperd\nKEEPERD_KEEPER=oracle\n";
        assert!(entry.ends_with(fields), "{entry}");
    }
    service.signal(Signal::SIGTERM);
    let general = entry("MESSAGE=stopping all keepers");
    assert!(general.contains("PRIORITY=6") && !general.contains("KEEPERD_KEEPER"), "{general}");
}

#[test]
fn a_journal_that_takes_no_entries_is_told_by_the_stream() {
    let service = Service::start_with(under_the_journal);
    let text = || fs::read_to_string(service.path("stderr")).expect("our file");
    let since = Instant::now();
    while !text().contains("<6>leader: ") {
        assert!(since.elapsed() < PATIENCE, "{}", text());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn check_says_what_the_unit_needs_for_a_long_stop_timeout() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = configuration(folder.path());
    let check = |text: &str| {
        fs::write(folder.path().join("keepers.toml"), text).expect("our folder");
        let said = keeperd(folder.path()).arg("check").output().expect("it is built");
        String::from_utf8(said.stdout).expect("people read it")
    };
    assert!(check(&text).contains("TimeoutStopSec=31"), "{}", check(&text));
    assert!(!check(&text.replace("25s", "5s")).contains("TimeoutStopSec"));
}

#[test]
fn what_the_unit_calls_to_stop_leaves_keepers_with_their_own_signal_alone() {
    let service = Service::start();
    let command = setting("ExecStop").strip_prefix("-keeperd ").expect("a failure is not the end of a stop");
    let said = keeperd(service.folder.path()).args(command.split(' ')).output().expect("it is built");
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success() && out.contains("oracle: paused; nobody has it now"), "{out}{err}");
    // What systemd does next.
    service.signal(signal_of_the_unit("KillSignal"));
    service.hear("STOPPING=1");
    assert_eq!(service.heard_by_the_child(), "INT\n");
}

fn signal_of_the_unit(name: &str) -> Signal {
    setting(name).parse().expect("a signal")
}

#[test]
fn the_signal_of_a_stop_is_heard_by_the_daemon_alone() {
    let mut service = Service::start();
    service.signal_all(signal_of_the_unit("KillSignal"));
    assert!(service.process.wait().expect("it is our child").success());
    assert_eq!(service.heard_by_the_child(), "INT\n");
}

#[test]
fn after_a_crash_the_signal_that_systemd_sends_to_what_is_left_does_not_reach_keepers() {
    let mut service = Service::start();
    service.signal(Signal::SIGKILL);
    service.signal_all(signal_of_the_unit("KillSignal"));
    service.process.wait().expect("it is our child");
    assert_eq!(service.heard_by_the_child(), "INT\n");
}

#[test]
fn the_signal_of_the_watchdog_ends_a_stopped_daemon_and_its_keepers_are_asked_to_end() {
    let mut service = Service::start_with(|daemon, _| {
        daemon.env("WATCHDOG_USEC", "3600000000").stderr(Stdio::null());
    });
    service.signal(Signal::SIGSTOP);
    service.signal_all(signal_of_the_unit("WatchdogSignal"));
    let ended = service.process.wait().expect("it is our child");
    assert_eq!(ended.signal(), Some(libc::SIGABRT), "{ended}");
    assert_eq!(service.heard_by_the_child(), "INT\n");
}

#[test]
fn a_terminal_that_changes_its_size_is_not_the_watchdog() {
    let mut service = Service::start();
    service.signal(signal_of_the_unit("WatchdogSignal"));
    service.signal(Signal::SIGTERM);
    assert!(service.process.wait().expect("it is our child").success());
}

#[test]
fn a_stop_that_comes_before_the_daemon_is_ready_is_not_lost() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // A configuration that takes its time: reading it waits for us.
    let file = folder.path().join("keepers.toml");
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).expect("our folder");
    let mut daemon = keeperd(folder.path()).stderr(Stdio::null()).spawn().expect("it is built");
    let mut fifo = fs::OpenOptions::new().write(true).open(&file).expect("the daemon reads it");
    let pid = Pid::from_raw(daemon.id().cast_signed());
    signal::kill(pid, signal_of_the_unit("KillSignal")).expect("it is our child");
    fifo.write_all(configuration(folder.path()).as_bytes()).expect("the daemon reads it");
    drop(fifo);
    let since = Instant::now();
    let ended = loop {
        if let Some(ended) = daemon.try_wait().expect("it is our child") {
            break ended;
        }
        if since.elapsed() > PATIENCE {
            let _ = daemon.kill();
            let _ = daemon.wait();
            panic!("it runs on");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(ended.success(), "{ended}");
}
