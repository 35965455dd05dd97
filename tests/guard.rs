//! The guard with real processes. This binary is run again as guard, as releaser, and as misbehaving child, so it has a `main` of its
//! own; one test at a time, because they measure.

use keeperd::clock;
use keeperd::errand::{Errand, GRACE, Outcome};
use keeperd::guard::{
    self, Ack, ChildSpec, Command, Deadlines, Duty, Event, Exit, Guard, LastResort, Launch, Limit, Lost,
    Newborn, Output, Stage, Unarmed, Why, Wiring,
};
use libtest_mimic::{Arguments, Trial};
use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[path = "guard/adversaries.rs"]
mod adversaries;
#[path = "guard/identity.rs"]
mod identity;
#[path = "guard/machine.rs"]
mod machine;
#[path = "guard/namespace.rs"]
mod namespace;

use identity::*;
use machine::{Machine, is_realtime};
use namespace::*;

fn main() {
    guard::main_if_guard(release);
    adversaries::main_if_adversary();
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials()).exit();
}

macro_rules! sentences {
    ($($test:ident,)*) => {
        fn trials() -> Vec<Trial> {
            vec![$(Trial::test(stringify!($test), || {
                // As the daemon's core thread, whose part it plays; where it may not, it is slower on a busy machine.
                let _ = guard::become_realtime();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on($test());
                Ok(())
            })),*]
        }
    };
}

sentences! {
    arms_before_it_forks,
    runs_the_child_with_the_environment_and_identity_given,
    child_is_clean_stdin_null_mask_empty_sigpipe_default_no_extra_descriptors,
    child_holds_the_lock_file_and_so_does_the_guard,
    exec_failure_reports_stage_and_errno,
    command_is_looked_up_in_the_childs_path,
    environment_file_lies_between_what_is_inherited_and_what_is_the_keepers_own,
    environment_file_is_read_at_each_start,
    environment_file_that_cannot_be_read_is_a_failed_start,
    lines_of_the_environment_file_that_make_no_sense_are_told_by_number,
    working_folder_is_entered_as_the_user,
    what_an_ordinary_user_may_not_do_is_a_failed_start,
    ordinary_user_keeps_the_groups_it_has,
    child_ignoring_sigterm_dies_at_kill_by,
    child_that_obeys_stops_at_once,
    stopped_child_is_killed,
    stop_at_fires_by_itself_with_a_silent_daemon,
    deadline_after_stop_at_is_refused_and_a_smaller_one_taken,
    prolonged_deadlines_keep_the_child_alive,
    stop_without_a_child_is_dead_at_once_and_final,
    late_spawn_is_refused,
    repeated_sequence_number_ends_everything,
    end_of_socket_kills_and_releases,
    end_of_socket_without_a_child_releases_at_once,
    quit_does_not_release,
    quit_is_refused_while_the_child_lives,
    main_exit_kills_what_it_left_behind,
    double_forked_grandchild_dies_with_a_cgroup,
    double_forked_grandchild_dies_without_a_cgroup,
    a_thousand_sessions_die_with_a_cgroup,
    a_thousand_sessions_die_without_a_cgroup,
    fork_hoppers_die_with_a_cgroup,
    fork_hoppers_die_without_a_cgroup,
    child_is_started_again_in_the_same_guard,
    a_restart_leaves_nothing_of_the_last_child_and_a_guard_that_starts_the_next,
    a_restart_does_not_outlive_stop_at,
    a_daemon_that_dies_during_a_restart_is_obeyed_no_more,
    a_restart_is_refused_once_stopping_has_begun_and_idle_is_no_reason_to_refuse,
    frozen_guard_never_execs_the_child,
    signals_do_not_touch_the_guard,
    killed_guard_takes_the_main_process_and_the_daemon_kills_the_rest,
    leaf_of_a_dead_guard_is_swept_and_of_a_living_one_is_not,
    an_errand_tells_how_its_command_ended_and_what_it_said,
    an_errand_whose_time_is_up_is_dead_with_all_it_started,
    an_errand_that_nobody_waits_for_any_more_is_killed,
    an_errand_is_none_of_the_last_resorts_business,
    a_guard_in_reserve_is_deaf_to_signals_and_obeys_like_any_other_once_it_is_armed,
    a_guard_in_reserve_that_has_died_is_replaced,
    a_guard_in_reserve_goes_with_the_daemon_and_when_it_is_not_wanted,
    fifty_guards_are_small,
    namespace_shows_the_program_itself_and_the_host_its_pid,
    namespace_reports_exit_codes_and_signals_exactly,
    namespace_hands_on_the_stop_signal,
    namespace_child_ignoring_sigterm_dies_at_kill_by,
    namespace_dies_with_its_init,
    namespace_dies_with_the_guard_and_needs_no_daemon,
    namespace_leaves_nothing_when_the_program_ends,
    namespace_holds_the_lock_file_and_little_else,
    namespace_child_is_started_again_in_the_same_guard,
    namespace_with_a_failed_exec_reports_stage_and_errno,
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// Longer than anything takes, however busy the machine.
const LONG: Duration = Duration::from_secs(30);
/// What a lease leaves at least between kill_at and its end: until then a tree must be dead.
const KILL_MARGIN: Duration = Duration::from_millis(250);

/// Releaser of these tests: what it was handed is the path of a file to write.
fn release(bytes: OwnedFd) -> i32 {
    let mut path = String::new();
    File::from(bytes).read_to_string(&mut path).expect("the bytes are readable from the start");
    let fds = fs::read_dir("/proc/self/fd").expect("procfs").count();
    fs::write(&path, format!("released {fds}")).map_or(1, |()| 0)
}

struct Term {
    guard: Guard,
    output: Output,
    /// What came before an acknowledgement and is not yet asked for: a tree may be dead before the next answer is out.
    heard: VecDeque<Event>,
    /// In the environment of every process of the tree, and of no other.
    mark: String,
    _folder: tempfile::TempDir,
    folder: PathBuf,
}

#[derive(Clone)]
struct Plan {
    spec: ChildSpec,
    deadlines: Deadlines,
    stop_timeout: Duration,
    release: bool,
    lock: bool,
    cgroup: bool,
    executable: PathBuf,
}

fn plan(argv: &[&str]) -> Plan {
    let now = clock::boot();
    Plan {
        spec: ChildSpec {
            keeper: "test.keeper".into(),
            argv: argv.iter().map(Into::into).collect(),
            env: Arc::new(vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())]),
            env_file: None,
            env_over: vec![],
            working_dir: None,
            uid: None,
            gid: None,
            groups: None,
            umask: None,
            limits: vec![],
            nice: None,
            no_new_privileges: true,
            pid_namespace: false,
            stop_signal: 15,
        },
        deadlines: Deadlines { stop_at: now + 60 * SECOND, kill_at: now + 65 * SECOND },
        stop_timeout: 2 * SECOND,
        release: false,
        lock: false,
        cgroup: true,
        executable: guard::OWN_EXECUTABLE.into(),
    }
}

fn shell(script: &str) -> Plan {
    plan(&["sh", "-c", script])
}

fn adversary(role: &str, count: &str) -> Plan {
    let me = std::env::current_exe().expect("procfs");
    plan(&[me.to_str().expect("a plain path"), role, count])
}

/// Not too late.
fn spawn() -> Command {
    Command::Spawn { start_by: clock::boot() + LONG }
}

impl Plan {
    fn launch(self) -> Term {
        self.launch_from(None)
    }

    fn launch_from(mut self, reserve: Option<Unarmed>) -> Term {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().to_owned();
        let mark = format!("KEEPERD_TEST_MARK={}", path.display());
        Arc::make_mut(&mut self.spec.env).push(("KEEPERD_TEST_MARK".into(), path.clone().into()));
        let released = path.join("released").into_os_string().into_encoded_bytes();
        let lock = self.lock.then(|| File::create(path.join("lock")).expect("our folder"));
        let launch = Launch {
            duty: Duty::Term,
            executable: &self.executable,
            spec: &self.spec,
            output: Wiring::Pipes,
            token: 4711,
            deadlines: self.deadlines,
            stop_timeout: self.stop_timeout,
            releaser: self.release.then_some(&released),
            stdin: None,
            lock: lock.as_ref().map(AsFd::as_fd),
            cgroup: self.cgroup,
        };
        let newborn = Newborn::start(&launch, reserve).expect("a guard starts");
        let (guard, output) = Guard::adopt(newborn).expect("a guard starts");
        Term { guard, output, heard: VecDeque::new(), mark, _folder: folder, folder: path }
    }

    /// Launches and spawns without waiting for anything, as the daemon may.
    fn start(self) -> Term {
        self.start_from(None)
    }

    fn start_from(self, reserve: Option<Unarmed>) -> Term {
        let mut term = self.launch_from(reserve);
        term.guard.send(spawn());
        term
    }
}

impl Term {
    async fn next(&mut self) -> Result<Event, Lost> {
        if let Some(event) = self.heard.pop_front() {
            return Ok(event);
        }
        let event = tokio::time::timeout(LONG, self.guard.recv()).await;
        event.expect("the guard says something")
    }

    /// Skips what the test is not about.
    async fn until<T>(&mut self, wanted: impl Fn(Event) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(self.next().await.expect("the guard lives")) {
                return found;
            }
        }
    }

    async fn started_in_cgroup(&mut self) -> bool {
        self.until(|e| if let Event::Started { in_cgroup, .. } = e { Some(in_cgroup) } else { None }).await
    }

    async fn started(&mut self) -> u32 {
        self.until(|e| if let Event::Started { pid, .. } = e { Some(pid) } else { None }).await
    }

    async fn exited(&mut self) -> Exit {
        self.until(|e| if let Event::Exited(exit) = e { Some(exit) } else { None }).await
    }

    async fn tree_dead(&mut self) -> u32 {
        self.until(|e| if let Event::TreeDead { killed, .. } = e { Some(killed) } else { None }).await
    }

    async fn ack(&mut self, command: Command) -> Ack {
        let seq = self.guard.send(command);
        let mut meanwhile = VecDeque::new();
        let ack = loop {
            let event = self.next().await.expect("the guard lives");
            if let Event::Ack(ack) = event
                && ack.seq == seq
            {
                break ack;
            }
            meanwhile.push_back(event);
        };
        self.heard = meanwhile;
        ack
    }

    async fn ready(&mut self) -> u32 {
        let pid = self.started().await;
        until("the child gets ready", || self.folder.join("ready").exists()).await;
        pid
    }

    /// From now on, once everything is in place: a start takes its time.
    async fn ends(&mut self, stop_after: Duration, kill_after: Duration) -> Deadlines {
        let now = clock::boot();
        let deadlines = Deadlines { stop_at: now + stop_after, kill_at: now + kill_after };
        assert!(self.ack(Command::Deadlines(deadlines)).await.accepted);
        deadlines
    }

    async fn gone(&mut self) -> Lost {
        loop {
            if let Err(lost) = self.next().await {
                return lost;
            }
        }
    }

    /// All that the child has written so far.
    fn said(&self) -> String {
        read_now(&self.output.stdout) + &read_now(&self.output.stderr)
    }

    fn survivors(&self) -> usize {
        marked(&self.mark)
    }

    /// Waits a little, because a process shows no environment while it changes its program.
    async fn lives(&self, processes: usize) {
        until_marked(&self.mark, processes).await;
    }

    async fn quit(mut self) {
        assert_eq!(self.survivors(), 0);
        assert!(self.ack(Command::Quit).await.accepted);
        let lost = self.gone().await;
        assert!(lost.status.is_some_and(|status| status.success()), "{lost}");
        assert!(lost.leaf.is_none_or(|leaf| !leaf.exists()), "the cgroup was left behind");
        assert!(!self.folder.join("released").exists());
    }
}

fn read_now(pipe: &OwnedFd) -> String {
    use nix::fcntl::{F_SETFL, OFlag, fcntl};
    fcntl(pipe, F_SETFL(OFlag::O_NONBLOCK)).expect("our own end");
    let mut text = Vec::new();
    let _ = File::from(pipe.try_clone().expect("a descriptor")).read_to_end(&mut text); // ends with EAGAIN
    String::from_utf8(text).expect("the children write text")
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let all = fs::read_dir("/proc").expect("procfs").flatten().map(|entry| entry.path());
    all.filter(|path| path.file_name().is_some_and(|n| n.as_encoded_bytes()[0].is_ascii_digit()))
}

/// Empty for zombies, which have none.
fn environment(process: &Path) -> String {
    String::from_utf8_lossy(&fs::read(process.join("environ")).unwrap_or_default()).into_owned()
}

fn status_field(status: &str, name: &str) -> String {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_else(|| panic!("{name} in {status}"));
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    nix::sys::signal::kill(pid, signal).expect("it lives");
}

async fn arms_before_it_forks() {
    let mut term = shell("exec sleep 100").launch();
    let report = term.until(|e| if let Event::Armed(report) = e { Some(report) } else { None }).await;
    assert!(report.subreaper && report.walk && report.undumpable, "{report:?}");
    println!("    {report:?}");
    tokio::time::sleep(50 * MS).await;
    assert_eq!(term.survivors(), 0, "arming must not start the child");
    let ack = term.ack(spawn()).await;
    assert!(ack.accepted);
    assert_eq!(term.started_in_cgroup().await, report.cgroup);
    term.lives(1).await;
    term.guard.send(Command::Kill);
    assert_eq!(term.exited().await, Exit::Signal(9));
    term.tree_dead().await;
    term.quit().await;
}

async fn runs_the_child_with_the_environment_and_identity_given() {
    let mut plan = shell(
        "env; id -u; id -g; id -G; umask; pwd; nice; ulimit -Sn; ulimit -Hn; cat /proc/self/status; \
         cat /proc/$$/oom_score_adj; cut -d' ' -f6,5 /proc/$$/stat; echo me $$",
    );
    Arc::make_mut(&mut plan.spec.env).push(("GREETING".into(), "hello world".into()));
    plan.spec.working_dir = Some("/usr".into());
    plan.spec.umask = Some(0o027);
    plan.spec.nice = Some(7);
    plan.spec.limits = vec![Limit { resource: "nofile".into(), soft: 123, hard: 456 }];
    let root = nix::unistd::Uid::effective().is_root();
    if root {
        (plan.spec.uid, plan.spec.gid, plan.spec.groups) = (Some(4242), Some(4243), Some(vec![4244, 4245]));
    }
    let mut term = plan.start();
    let pid = term.started().await;
    assert_eq!(term.exited().await, Exit::Code(0));
    term.tree_dead().await;
    let said = term.said();
    let lines: Vec<&str> = said.lines().collect();
    for line in [
        "GREETING=hello world",
        "0027",
        "/usr",
        "7",
        "123",
        "456",
        &format!("{pid} {pid}"),
        &format!("me {pid}"),
    ] {
        assert!(lines.contains(&line), "{line} in {said}");
    }
    assert!(!said.contains("HOME="), "nothing is inherited");
    assert_eq!(status_field(&said, "NoNewPrivs"), "1");
    if root {
        assert_eq!(status_field(&said, "Uid"), "4242 4242 4242 4242");
        assert_eq!(status_field(&said, "Gid"), "4243 4243 4243 4243");
        assert_eq!(status_field(&said, "Groups"), "4244 4245");
        assert_eq!(status_field(&said, "CapEff"), "0000000000000000");
        let mine = fs::read_to_string("/proc/self/oom_score_adj").expect("procfs");
        assert!(lines.contains(&mine.trim()), "the guard's protection is not for the child: {said}");
    }
    term.quit().await;
}

async fn child_is_clean_stdin_null_mask_empty_sigpipe_default_no_extra_descriptors() {
    let mut term = shell("cat /proc/self/status; ls -l /proc/$$/fd; cut -d' ' -f41 /proc/$$/stat").start();
    assert_eq!(term.exited().await, Exit::Code(0));
    let said = term.said();
    assert_eq!(status_field(&said, "SigBlk"), "0000000000000000");
    assert_eq!(status_field(&said, "SigIgn"), "0000000000000000");
    assert_eq!(status_field(&said, "VmLck"), "0 kB");
    let fds: Vec<&str> = said.lines().filter(|line| line.contains(" -> ")).collect();
    assert_eq!(fds.len(), 3, "{said}");
    assert!(fds[0].ends_with("0 -> /dev/null"), "{said}");
    assert!(fds[1].contains("1 -> pipe:") && fds[2].contains("2 -> pipe:"), "{said}");
    assert_eq!(said.lines().last(), Some("0"), "normal scheduling class");
    term.tree_dead().await;
    term.quit().await;
}

async fn child_holds_the_lock_file_and_so_does_the_guard() {
    let mut plan = shell("ls -l /proc/$$/fd; touch $KEEPERD_TEST_MARK/ready; sleep 100");
    plan.lock = true;
    let mut term = plan.start();
    let main = term.ready().await;
    let lock = term.folder.join("lock");
    let holds = |pid: u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"))?;
        std::io::Result::Ok(
            fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == lock)),
        )
    };
    assert!(holds(main).expect("our own user"));
    match holds(term.guard.pid()) {
        Ok(held) => assert!(held),
        Err(_) => assert!(!nix::unistd::Uid::effective().is_root(), "only root may look into the guard"),
    }
    term.guard.send(Command::Kill);
    term.tree_dead().await;
    assert_eq!(term.said().matches(" -> ").count(), 4, "{}", term.said());
    term.quit().await;
}

/// Why a start failed; nothing ran.
async fn failed(plan: Plan) -> (Stage, i32) {
    let mut term = plan.start();
    let failed = term
        .until(|e| if let Event::ExecFailed { stage, errno } = e { Some((stage, errno)) } else { None })
        .await;
    term.tree_dead().await;
    assert_eq!(term.said(), "");
    term.quit().await;
    failed
}

async fn exec_failure_reports_stage_and_errno() {
    assert_eq!(failed(plan(&["no-such-program"])).await, (Stage::Exec, libc::ENOENT));
    assert_eq!(failed(plan(&["/etc/passwd"])).await, (Stage::Exec, libc::EACCES));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = folder.path().join("script");
    fs::write(&script, "echo a script without its first line\n").expect("our folder");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("our file");
    assert_eq!(failed(plan(&[script.to_str().expect("text")])).await, (Stage::Exec, libc::ENOEXEC));
    let mut nowhere = plan(&["sh"]);
    nowhere.spec.working_dir = Some("/no/such/folder".into());
    assert_eq!(failed(nowhere).await, (Stage::WorkingDir, libc::ENOENT));
    let mut file = plan(&["sh"]);
    file.spec.working_dir = Some(script);
    assert_eq!(failed(file).await, (Stage::WorkingDir, libc::ENOTDIR));
    let mut odd = plan(&["sh"]);
    odd.spec.limits = vec![Limit { resource: "nofile".into(), soft: 2, hard: 1 }];
    assert_eq!(failed(odd).await, (Stage::Limits, libc::EINVAL));
    assert_eq!(failed(plan(&["sh", "a\0b"])).await, (Stage::Spec, libc::EINVAL));
}

async fn command_is_looked_up_in_the_childs_path() {
    let mut plan = plan(&["only-here"]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = folder.path().join("only-here");
    fs::write(&program, "#!/bin/sh\necho found\n").expect("our folder");
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("our file");
    plan.spec.env = Arc::new(vec![("PATH".into(), folder.path().into())]);
    let mut term = plan.start();
    assert_eq!(term.exited().await, Exit::Code(0));
    assert_eq!(term.said(), "found\n");
    term.tree_dead().await;
    term.quit().await;
}

async fn child_ignoring_sigterm_dies_at_kill_by() {
    let mut term = shell("trap '' TERM; touch $KEEPERD_TEST_MARK/ready; while :; do sleep 1; done").start();
    term.ready().await;
    let machine = Machine::watch();
    let asked = clock::boot();
    term.guard.send(Command::Stop { kill_by: asked + 150 * MS });
    term.until(|e| (e == Event::Stopping(Why::Command)).then_some(())).await;
    assert_eq!(term.exited().await, Exit::Signal(9));
    term.tree_dead().await;
    let took = clock::boot().since(asked);
    println!("    dead {took:?} after a stop with 150 ms");
    assert!(took >= 150 * MS && took < 150 * MS + KILL_MARGIN + machine.stood_still(), "{took:?}");
    term.quit().await;
}

async fn child_that_obeys_stops_at_once() {
    let mut plan = shell("trap 'exit 3' USR1; touch $KEEPERD_TEST_MARK/ready; while :; do sleep 0.01; done");
    plan.spec.stop_signal = libc::SIGUSR1;
    let mut term = plan.start();
    term.ready().await;
    term.guard.send(Command::Stop { kill_by: clock::boot() + LONG });
    assert_eq!(term.exited().await, Exit::Code(3));
    term.tree_dead().await;
    let spawn = term.ack(spawn()).await;
    assert!(!spawn.accepted, "stopping is final");
    term.quit().await;
}

async fn stopped_child_is_killed() {
    for command in [Command::Kill, Command::Stop { kill_by: clock::boot() + 60 * SECOND }] {
        let mut term = shell("exec sleep 100").start();
        let main = term.started().await;
        signal(main, nix::sys::signal::SIGSTOP);
        term.guard.send(command);
        term.tree_dead().await;
        term.quit().await;
    }
}

async fn stop_at_fires_by_itself_with_a_silent_daemon() {
    let mut term = shell("trap '' TERM; touch $KEEPERD_TEST_MARK/ready; while :; do sleep 1; done").start();
    term.ready().await;
    let machine = Machine::watch();
    let Deadlines { stop_at, kill_at } = term.ends(200 * MS, 300 * MS).await;
    term.until(|e| (e == Event::Stopping(Why::Deadline)).then_some(())).await;
    assert!(clock::boot() >= stop_at);
    let late = clock::boot().since(stop_at);
    assert_eq!(term.exited().await, Exit::Signal(9));
    term.tree_dead().await;
    let dead = clock::boot();
    println!("    stop signal {late:?} late, tree dead {:?} after kill_at", dead.since(kill_at));
    assert!(dead >= kill_at, "killed before its time");
    let allowed = KILL_MARGIN + machine.stood_still();
    assert!(late < allowed && dead.since(kill_at) < allowed, "{late:?} {:?}", dead.since(kill_at));
    term.quit().await;
}

async fn deadline_after_stop_at_is_refused_and_a_smaller_one_taken() {
    let mut term = shell("trap '' TERM; touch $KEEPERD_TEST_MARK/ready; while :; do sleep 1; done").start();
    term.ready().await;
    let old = term.ends(100 * MS, 2 * LONG).await;
    term.until(|e| (e == Event::Stopping(Why::Deadline)).then_some(())).await;
    let later = Deadlines { stop_at: old.stop_at + LONG, kill_at: old.kill_at + LONG };
    let ack = term.ack(Command::Deadlines(later)).await;
    assert!(!ack.accepted);
    assert_eq!(ack.deadlines, old);
    let machine = Machine::watch();
    let sooner = Deadlines { stop_at: old.stop_at, kill_at: clock::boot() + 50 * MS };
    let ack = term.ack(Command::Deadlines(sooner)).await;
    assert!(ack.accepted);
    assert_eq!(ack.deadlines.kill_at, sooner.kill_at);
    term.tree_dead().await;
    let late = clock::boot().since(sooner.kill_at);
    assert!(late < KILL_MARGIN + machine.stood_still(), "{late:?}");
    term.quit().await;
}

async fn prolonged_deadlines_keep_the_child_alive() {
    let mut term = shell("exec sleep 100").start();
    term.started().await;
    let lease = 2 * SECOND;
    let first = term.ends(lease, lease + SECOND).await;
    while clock::boot() < first.kill_at + 100 * MS {
        let now = clock::boot();
        let next = Deadlines { stop_at: now + lease, kill_at: now + lease + SECOND };
        let ack = term.ack(Command::Deadlines(next)).await;
        assert!(ack.accepted && ack.deadlines == next);
        tokio::time::sleep(50 * MS).await;
    }
    term.lives(1).await;
    term.ends(Duration::ZERO, LONG).await;
    term.until(|e| (e == Event::Stopping(Why::Deadline)).then_some(())).await;
    assert_eq!(term.exited().await, Exit::Signal(15));
    term.tree_dead().await;
    term.quit().await;
}

async fn stop_without_a_child_is_dead_at_once_and_final() {
    let mut term = shell("exec sleep 100").launch();
    term.guard.send(Command::Stop { kill_by: clock::boot() + 60 * SECOND });
    assert_eq!(term.tree_dead().await, 0);
    assert!(!term.ack(spawn()).await.accepted);
    term.quit().await;
}

async fn late_spawn_is_refused() {
    let mut term = shell("touch $KEEPERD_TEST_MARK/ran").launch();
    assert!(!term.ack(Command::Spawn { start_by: clock::boot() }).await.accepted);
    tokio::time::sleep(50 * MS).await;
    assert!(!term.folder.join("ran").exists());
    term.quit().await;
}

async fn repeated_sequence_number_ends_everything() {
    let mut term = shell("exec sleep 100").start();
    term.started().await;
    // The handle never repeats a number, so a copy of its own frame is put into its socket.
    let socket = sockets_of_this_process().pop().expect("the guard's socket is the newest");
    let mut frame = [0u8; 64];
    (frame[0], frame[1], frame[8]) = (1, 2, 1);
    nix::sys::socket::send(socket, &frame, nix::sys::socket::MsgFlags::empty()).expect("the guard listens");
    assert_eq!(term.exited().await, Exit::Signal(9));
    term.tree_dead().await;
    term.quit().await;
}

fn sockets_of_this_process() -> Vec<i32> {
    use nix::sys::socket::{SockType, getsockopt, sockopt};
    let is_seqpacket =
        |fd: &i32| getsockopt(&adversaries::borrow(*fd), sockopt::SockType) == Ok(SockType::SeqPacket);
    let names = fs::read_dir("/proc/self/fd").expect("procfs").flatten();
    let mut fds: Vec<i32> = names.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    fds.sort_unstable();
    fds.retain(is_seqpacket);
    fds
}

async fn end_of_socket_kills_and_releases() {
    for cgroup in [true, false] {
        let mut plan = shell(
            "trap '' TERM; setsid sleep 100 & touch $KEEPERD_TEST_MARK/ready; while :; do sleep 1; done",
        );
        (plan.stop_timeout, plan.release, plan.cgroup) = (100 * MS, true, cgroup);
        let mut term = plan.start();
        term.ready().await;
        let Term { guard, folder, mark, output, _folder, .. } = term;
        let machine = Machine::watch();
        let gone = clock::boot();
        drop(guard);
        let released = folder.join("released");
        until("the release", || released.exists()).await;
        let took = clock::boot().since(gone);
        println!("    released {took:?} after the daemon's end, with a stop timeout of 100 ms");
        let allowed = 100 * MS + KILL_MARGIN + machine.stood_still();
        assert!(took >= 100 * MS && took < allowed, "{took:?}");
        assert_eq!(marked(&mark), 0);
        // stdin, stdout, stderr, and the directory it reads; it has closed the bytes
        until("what it has to say", || {
            let said = fs::read_to_string(&released).expect("it exists");
            assert!("released 4".starts_with(&said), "{said}");
            said.len() == 10
        })
        .await;
        drop(output);
    }
}

async fn end_of_socket_without_a_child_releases_at_once() {
    let mut plan = shell("exec sleep 100");
    (plan.stop_timeout, plan.release) = (2 * LONG, true);
    let mut term = plan.start();
    term.started().await;
    term.guard.send(Command::Kill);
    term.tree_dead().await;
    let Term { guard, folder, _folder, .. } = term;
    drop(guard);
    until("the release", || folder.join("released").exists()).await;
}

async fn quit_does_not_release() {
    let mut plan = shell("exit 0");
    plan.release = true;
    let mut term = plan.start();
    term.tree_dead().await;
    term.quit().await;
}

async fn quit_is_refused_while_the_child_lives() {
    let mut term = shell("exec sleep 100").start();
    term.started().await;
    assert!(!term.ack(Command::Quit).await.accepted);
    term.guard.send(Command::Stop { kill_by: clock::boot() + LONG });
    assert_eq!(term.exited().await, Exit::Signal(15));
    term.tree_dead().await;
    term.quit().await;
}

async fn main_exit_kills_what_it_left_behind() {
    let mut term = shell("setsid sleep 100 & sleep 101 & exit 4").start();
    assert_eq!(term.exited().await, Exit::Code(4));
    let killed = term.tree_dead().await;
    assert!((1..=2).contains(&killed), "{killed}"); // the setsid may not have run yet
    term.quit().await;
}

async fn grandchild(cgroup: bool) {
    let mut plan = adversary("adversary:spread", "1");
    plan.cgroup = cgroup;
    let mut term = plan.start();
    term.ready().await;
    term.lives(2).await;
    term.guard.send(Command::Stop { kill_by: clock::boot() + LONG });
    assert_eq!(term.exited().await, Exit::Signal(15));
    assert_eq!(term.tree_dead().await, 1);
    term.quit().await;
}

async fn double_forked_grandchild_dies_with_a_cgroup() {
    grandchild(true).await;
}

async fn double_forked_grandchild_dies_without_a_cgroup() {
    grandchild(false).await;
}

async fn thousand(cgroup: bool) {
    let mut plan = adversary("adversary:spread", "1000");
    plan.cgroup = cgroup;
    let mut term = plan.start();
    term.ready().await;
    term.lives(1001).await;
    let machine = Machine::watch();
    let asked = clock::boot();
    term.guard.send(Command::Kill);
    let killed = term.tree_dead().await;
    let took = clock::boot().since(asked);
    println!("    1,000 sessions dead in {took:?}, cgroup: {cgroup}");
    assert_eq!(killed, 1001);
    let patience = if is_realtime() { 300 * MS } else { LONG / 3 };
    assert!(took < patience + machine.stood_still(), "{took:?}");
    term.quit().await;
}

async fn a_thousand_sessions_die_with_a_cgroup() {
    thousand(true).await;
}

async fn a_thousand_sessions_die_without_a_cgroup() {
    thousand(false).await;
}

/// Who is faster is a matter of luck, so the middle of some turns counts.
async fn hoppers(cgroup: bool) {
    let realtime = is_realtime();
    if !realtime {
        println!("    64 hoppers are for a guard with a real-time class, which is not permitted here");
    }
    for count in ["1", "8", "64"].into_iter().take(if realtime { 3 } else { 2 }) {
        let mut turns = Vec::new();
        for _ in 0..3 {
            let mut plan = adversary("adversary:hop", count);
            plan.cgroup = cgroup;
            let mut term = plan.start();
            term.ready().await;
            tokio::time::sleep(50 * MS).await;
            let asked = clock::boot();
            term.guard.send(Command::Kill);
            let killed = term.tree_dead().await;
            let took = clock::boot().since(asked);
            println!("    {count} hoppers dead in {took:?} after {killed} kills, cgroup: {cgroup}");
            turns.push(took);
            term.quit().await;
        }
        turns.sort_unstable();
        assert!(turns[1] < if realtime { SECOND } else { LONG / 3 }, "{turns:?}");
    }
}

async fn fork_hoppers_die_with_a_cgroup() {
    hoppers(true).await;
}

async fn fork_hoppers_die_without_a_cgroup() {
    hoppers(false).await;
}

async fn child_is_started_again_in_the_same_guard() {
    let mut term = shell("echo run; setsid sleep 100 & exit 1").start();
    for run in 1..=5 {
        assert_eq!(term.exited().await, Exit::Code(1));
        term.tree_dead().await;
        assert_eq!(term.survivors(), 0);
        assert_eq!(term.said(), "run\n", "run {run}");
        assert!(term.ack(spawn()).await.accepted);
    }
    term.tree_dead().await;
    term.quit().await;
}

/// R9: armed, frozen, asked to start, thawed when everything is over.
async fn a_restart_leaves_nothing_of_the_last_child_and_a_guard_that_starts_the_next() {
    for cgroup in [true, false] {
        let mut plan = shell(
            "trap '' TERM; setsid sh -c \"trap '' TERM; sleep 100\" & touch $KEEPERD_TEST_MARK/ready; \
             while :; do sleep 0.05; done",
        );
        plan.cgroup = cgroup;
        let mut term = plan.start();
        term.ready().await;
        let began = clock::boot();
        let kill_by = began + 300 * MS;
        assert!(term.ack(Command::Restart { kill_by }).await.accepted);
        tokio::time::sleep(100 * MS).await;
        // A look that comes too late shows nothing.
        assert!(term.survivors() >= 2 || clock::boot() >= kill_by, "it is asked first");
        assert_eq!(term.exited().await, Exit::Signal(9));
        let (killed, last) = term
            .until(|e| if let Event::TreeDead { killed, last } = e { Some((killed, last)) } else { None })
            .await;
        let took = clock::boot().since(began);
        assert!(took >= 300 * MS && took < LONG, "dead after {took:?}");
        assert!(killed >= 2 && !last, "{killed} killed, the last: {last}");
        assert_eq!(term.survivors(), 0);
        // The term goes on.
        term.ends(60 * SECOND, 65 * SECOND).await;
        assert!(term.ack(spawn()).await.accepted);
        term.started().await;
        term.guard.send(Command::Kill);
        term.tree_dead().await;
        term.quit().await;
    }
}

async fn a_restart_does_not_outlive_stop_at() {
    let mut term =
        shell("trap '' TERM; touch $KEEPERD_TEST_MARK/ready; while :; do sleep 0.05; done").start();
    term.ready().await;
    let now = clock::boot();
    let ends = term.ends(200 * MS, 500 * MS).await;
    // Refused where it comes too late: then it is stopping already.
    term.ack(Command::Restart { kill_by: now + 2 * LONG }).await;
    let why = term.until(|e| if let Event::Stopping(why) = e { Some(why) } else { None }).await;
    assert_eq!(why, Why::Deadline);
    let late = Deadlines { stop_at: now + 60 * SECOND, kill_at: now + 65 * SECOND };
    assert!(!term.ack(Command::Deadlines(late)).await.accepted, "it is stopping for good now");
    let last = term.until(|e| if let Event::TreeDead { last, .. } = e { Some(last) } else { None }).await;
    let dead = clock::boot();
    assert!(
        last && dead >= ends.kill_at && dead.since(now) < LONG,
        "dead after {:?}, for good: {last}",
        dead.since(now)
    );
    assert!(!term.ack(spawn()).await.accepted);
    term.quit().await;
}

async fn a_daemon_that_dies_during_a_restart_is_obeyed_no_more() {
    let mut plan = shell("trap '' TERM; touch $KEEPERD_TEST_MARK/ready; while :; do sleep 0.05; done");
    plan.stop_timeout = 100 * MS;
    let mut term = plan.start();
    term.ready().await;
    let Term { mut guard, mark, _folder, .. } = term;
    guard.send(Command::Restart { kill_by: clock::boot() + 100 * SECOND });
    drop(guard);
    until_marked(&mark, 0).await;
}

async fn a_restart_is_refused_once_stopping_has_begun_and_idle_is_no_reason_to_refuse() {
    let mut term = shell("exec sleep 100").launch();
    let kill_by = clock::boot() + LONG;
    assert!(term.ack(Command::Restart { kill_by }).await.accepted, "nothing runs, nothing to do");
    assert!(term.ack(spawn()).await.accepted);
    term.started().await;
    assert!(term.ack(Command::Stop { kill_by }).await.accepted);
    assert!(!term.ack(Command::Restart { kill_by: kill_by + SECOND }).await.accepted);
    term.tree_dead().await;
    assert!(!term.ack(Command::Restart { kill_by }).await.accepted);
    term.quit().await;
}

async fn frozen_guard_never_execs_the_child() {
    let mut term = shell("touch $KEEPERD_TEST_MARK/ran").launch();
    let ends = term.ends(200 * MS, 300 * MS).await;
    signal(term.guard.pid(), nix::sys::signal::SIGSTOP);
    let seq = term.guard.send(spawn());
    while clock::boot() <= ends.kill_at {
        tokio::time::sleep(10 * MS).await;
    }
    signal(term.guard.pid(), nix::sys::signal::SIGCONT);
    let ack =
        term.until(|e| if let Event::Ack(ack) = e { (ack.seq == seq).then_some(ack) } else { None }).await;
    assert!(!ack.accepted && ack.clock > ack.deadlines.kill_at);
    tokio::time::sleep(50 * MS).await;
    assert!(!term.folder.join("ran").exists());
    term.quit().await;
}

async fn signals_do_not_touch_the_guard() {
    use nix::sys::signal::{SIGCHLD, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1};
    let mut term = shell("exec sleep 100").start();
    term.started().await;
    for number in [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGPIPE, SIGCHLD] {
        signal(term.guard.pid(), number);
    }
    let now = clock::boot();
    let same = Deadlines { stop_at: now + 30 * SECOND, kill_at: now + 31 * SECOND };
    assert!(term.ack(Command::Deadlines(same)).await.accepted);
    term.lives(1).await;
    term.guard.send(Command::Kill);
    term.tree_dead().await;
    term.quit().await;
}

/// R3: the kernel kills the main process, the daemon as subreaper of last resort the rest; a second keeper's guard is not touched.
async fn killed_guard_takes_the_main_process_and_the_daemon_kills_the_rest() {
    let mut last_resort = LastResort::install().expect("every kernel since 3.4");
    for (cgroup, count) in [(true, "1"), (false, "1"), (false, "100")] {
        let mut other = shell("exec sleep 100").start();
        other.started().await;
        let mut plan = adversary("adversary:spread", count);
        plan.cgroup = cgroup;
        let mut term = plan.start();
        term.ready().await;
        let killed = clock::boot();
        term.guard.kill();
        let lost = term.gone().await;
        let guards = BTreeSet::from([other.guard.pid()]);
        while !last_resort.pass(&lost, &guards) {
            assert!(clock::boot().since(killed) < LONG, "the rest does not die");
            tokio::time::sleep(MS).await;
        }
        println!(
            "    {count} orphan(s) dead {:?} after the guard, cgroup: {cgroup}",
            clock::boot().since(killed)
        );
        assert_eq!(term.survivors(), 0);
        // Removed aside, so that no lease waits for the kernel's cgroup lock.
        until("the end of the cgroup", || lost.leaf.as_ref().is_none_or(|leaf| !leaf.exists())).await;
        other.lives(1).await;
        other.guard.send(Command::Kill);
        other.tree_dead().await;
        other.quit().await;
    }
    nix::sys::prctl::set_child_subreaper(false).expect("only these processes should come to us");
}

/// An errand, and the mark of its processes.
fn errand(script: &str, timeout: Duration) -> (Errand, tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut spec = shell(script).spec;
    Arc::make_mut(&mut spec.env).push(("KEEPERD_TEST_MARK".into(), folder.path().into()));
    let mark = format!("KEEPERD_TEST_MARK={}", folder.path().display());
    (Errand { spec, timeout }, folder, mark)
}

fn marked(mark: &str) -> usize {
    processes().filter(|pid| environment(pid).contains(mark)).count()
}

async fn until_marked(mark: &str, count: usize) {
    until(&format!("exactly {count} processes"), || marked(mark) == count).await;
}

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let limit = clock::boot() + LONG;
    while !so() {
        assert!(clock::boot() < limit, "this does not happen: {what}");
        tokio::time::sleep(MS).await;
    }
}

async fn an_errand_tells_how_its_command_ended_and_what_it_said() {
    let (tell, told) = tokio::sync::oneshot::channel();
    let (done, _folder, mark) = errand("echo fine; sleep 100 & exit 3", LONG);
    let began = clock::boot();
    let outcome = done.run(|output| tell.send(output).expect("somebody listens")).await;
    println!("    took {:?}", clock::boot().since(began));
    assert_eq!(outcome, Outcome::Ended(Exit::Code(3)));
    assert_eq!(marked(&mark), 0, "what it left behind is dead");
    assert_eq!(read_now(&told.await.expect("called once").stdout), "fine\n");
    let (mut missing, ..) = errand("", LONG);
    missing.spec.argv = vec!["/nonexistent".into()];
    let outcome = missing.run(drop).await;
    assert_eq!(outcome, Outcome::NotStarted("exec: No such file or directory (os error 2)".to_owned()));
}

async fn an_errand_whose_time_is_up_is_dead_with_all_it_started() {
    // By then it is deaf to SIGTERM.
    let timeout = 2 * SECOND;
    let (stubborn, _folder, mark) =
        errand("trap '' TERM; setsid sleep 100 & setsid sh -c \"trap '' TERM; sleep 100\" & wait", timeout);
    let began = clock::boot();
    assert_eq!(stubborn.run(drop).await, Outcome::TimedOut(timeout));
    let took = clock::boot().since(began);
    assert!(took >= timeout + GRACE && took < LONG, "{took:?}");
    assert_eq!(marked(&mark), 0);
}

async fn an_errand_that_nobody_waits_for_any_more_is_killed() {
    let (endless, _folder, mark) = errand("trap '' TERM; sleep 100 & wait; wait", 100 * SECOND);
    let running = tokio::spawn(endless.run(drop));
    until_marked(&mark, 2).await;
    running.abort();
    until_marked(&mark, 0).await;
    let title = |process: PathBuf| fs::read_to_string(process.join("cmdline")).unwrap_or_default();
    until("the end of its guard", || {
        !processes().any(|process| title(process).starts_with("keeperd: errand test.keeper"))
    })
    .await;
}

async fn an_errand_is_none_of_the_last_resorts_business() {
    let mut last_resort = LastResort::install().expect("every kernel since 3.4");
    let (working, _folder, mark) = errand("setsid sleep 100 & sleep 0.3; exit 7", LONG);
    let running = tokio::spawn(working.run(drop));
    let mut term = shell("exec sleep 100").start();
    term.started().await;
    term.guard.kill();
    let lost = term.gone().await;
    // From before it has forked until after it has ended: never is it taken for a part of the lost tree.
    while !running.is_finished() {
        last_resort.pass(&lost, &BTreeSet::new());
        tokio::time::sleep(MS).await;
    }
    assert_eq!(running.await.expect("it ran"), Outcome::Ended(Exit::Code(7)));
    assert_eq!(marked(&mark), 0);
    assert!(last_resort.pass(&lost, &BTreeSet::new()), "and nothing of it is left");
    nix::sys::prctl::set_child_subreaper(false).expect("only these processes should come to us");
}

async fn leaf_of_a_dead_guard_is_swept_and_of_a_living_one_is_not() {
    let Some(own) = guard::cgroup::own().filter(|own| fs::create_dir(own.join("keeperd.probe")).is_ok())
    else {
        println!("    no writable cgroup2 here");
        return;
    };
    fs::remove_dir(own.join("keeperd.probe")).expect("just made");
    let mut living = shell("exec sleep 100").start();
    living.started().await;
    let mut term = adversary("adversary:spread", "3").start();
    term.ready().await;
    term.guard.kill();
    let lost = term.gone().await;
    let leaf = lost.leaf.expect("a cgroup was asked for");
    assert!(leaf.exists());
    let swept = guard::cgroup::sweep_leftovers(LONG);
    assert!(swept.iter().any(|leftover| leftover.path == leaf && leftover.emptied), "{swept:?}");
    assert!(!leaf.exists());
    assert_eq!(term.survivors(), 0);
    living.lives(1).await;
    living.guard.send(Command::Kill);
    living.tree_dead().await;
    living.quit().await;
}

fn in_reserve(executable: &Path) -> Unarmed {
    let reserve = Unarmed::start(Duty::Term, executable, "test.keeper", Wiring::Pipes);
    let reserve = reserve.expect("a guard starts");
    named(reserve.pid(), "keeperd-reserve");
    reserve
}

/// Waits for it.
fn named(pid: u32, name: &str) {
    let limit = clock::boot() + LONG;
    while fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end() != name {
        assert!(clock::boot() < limit, "{pid} is never called {name}");
        std::thread::sleep(MS);
    }
}

/// Waits for it.
fn dead_and_ours_to_reap(pid: u32) {
    let limit = clock::boot() + LONG;
    while !fs::read_to_string(format!("/proc/{pid}/stat")).expect("ours to reap").contains(") Z ") {
        assert!(clock::boot() < limit, "{pid} does not die");
        std::thread::sleep(MS);
    }
}

async fn a_guard_in_reserve_is_deaf_to_signals_and_obeys_like_any_other_once_it_is_armed() {
    use nix::sys::signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
    let reserve = in_reserve(Path::new(guard::OWN_EXECUTABLE));
    let pid = reserve.pid();
    for number in [SIGTERM, SIGINT, SIGHUP, SIGUSR1] {
        signal(pid, number);
    }
    let mut term = shell("touch $KEEPERD_TEST_MARK/ready; exec sleep 60").launch_from(Some(reserve));
    assert_eq!(term.guard.pid(), pid);
    term.guard.send(spawn());
    term.ready().await;
    named(pid, "keeperd-guard");
    let ends = term.ends(100 * MS, LONG).await;
    assert_eq!(term.exited().await, Exit::Signal(libc::SIGTERM));
    assert!(clock::boot() >= ends.stop_at, "it stopped before its time");
    term.tree_dead().await;
    term.quit().await;
}

async fn a_guard_in_reserve_that_has_died_is_replaced() {
    let reserve = in_reserve(Path::new(guard::OWN_EXECUTABLE));
    let pid = reserve.pid();
    signal(pid, nix::sys::signal::SIGKILL);
    dead_and_ours_to_reap(pid);
    let mut term = shell("exec sleep 60").launch_from(Some(reserve));
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "a zombie was left");
    assert_ne!(term.guard.pid(), pid);
    term.guard.send(spawn());
    term.started().await;
    term.guard.send(Command::Kill);
    term.tree_dead().await;
    term.quit().await;
}

async fn a_guard_in_reserve_goes_with_the_daemon_and_when_it_is_not_wanted() {
    let reserve = in_reserve(Path::new(guard::OWN_EXECUTABLE));
    let pid = reserve.pid();
    drop(reserve);
    dead_and_ours_to_reap(pid);
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid.cast_signed()), None).expect("ours to reap");
    let reserve = in_reserve(Path::new(guard::OWN_EXECUTABLE));
    let pid = reserve.pid();
    reserve.dismiss();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

async fn fifty_guards_are_small() {
    let mut terms = Vec::new();
    let (mut at_once, mut from_reserve) = (Vec::new(), Vec::new());
    for number in 0..50 {
        let mut plan = shell("exec sleep 100");
        plan.executable = env!("CARGO_BIN_EXE_keeperd").into();
        let reserve = (number % 2 == 1).then(|| in_reserve(&plan.executable));
        let took = if reserve.is_some() { &mut from_reserve } else { &mut at_once };
        tokio::time::sleep(5 * MS).await; // until it has made itself ready
        let began = clock::boot();
        let mut term = plan.start_from(reserve);
        term.started().await;
        took.push(clock::boot().since(began));
        terms.push(term);
    }
    let (mut pss, mut private, mut rss) = (0, 0, 0);
    for term in &terms {
        let path = format!("/proc/{}/smaps_rollup", term.guard.pid());
        let Ok(rollup) = fs::read_to_string(path) else {
            println!("    only root may look");
            return;
        };
        let kib = |name: &str| {
            status_field(&rollup, name).trim_end_matches(" kB").parse::<u64>().expect("a number")
        };
        pss += kib("Pss:");
        private += kib("Private_Dirty");
        rss += kib("Rss");
    }
    println!(
        "    each of 50: PSS {} KiB, private dirty {} KiB, RSS {} KiB",
        pss / 50,
        private / 50,
        rss / 50
    );
    for (kind, mut took) in [("launch", at_once), ("reserve", from_reserve)] {
        took.sort();
        println!("    {kind} to exec: median {:?}, longest {:?}", took[12], took[24]);
    }
    if !cfg!(debug_assertions) {
        assert!(pss / 50 <= 400);
    }
    for mut term in terms {
        term.guard.send(Command::Kill);
        term.tree_dead().await;
        term.quit().await;
    }
}
