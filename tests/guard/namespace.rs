//! `isolate = "pid"`: the kernel kills the tree.

use super::*;

/// `None`, with a word, where they are not permitted.
fn isolated(mut plan: Plan) -> Option<Plan> {
    let probe = std::process::Command::new("unshare").args(["--pid", "--mount", "--fork", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        println!("    skipped: PID namespaces are not permitted here");
        return None;
    }
    plan.spec.pid_namespace = true;
    Some(plan)
}

fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    status_field(&status, "PPid").parse().expect("a number")
}

fn mounts_of_proc() -> usize {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("procfs");
    mounts.lines().filter(|line| line.split(' ').nth(1) == Some("/proc")).count()
}

impl Term {
    /// Without the daemon's help.
    async fn dies_by_itself(&self) {
        until_marked(&self.mark, 0).await;
    }
}

pub async fn namespace_shows_the_program_itself_and_the_host_its_pid() {
    let script = "echo me $$; echo self $(readlink /proc/self); cat /proc/1/comm; ls -d /proc/[0-9]* | wc -l; \
                  touch $KEEPERD_TEST_MARK/ready; exec sleep 100";
    let Some(plan) = isolated(shell(script)) else { return };
    let before = mounts_of_proc();
    let mut term = plan.start();
    let pid = term.ready().await;
    let said = term.said();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.contains(&"me 2") && lines.contains(&"keeperd-init"), "{said}");
    assert!(
        lines.last().and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count < 6),
        "{said}"
    );
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the host's number of the program");
    assert_eq!(status_field(&status, "NSpid"), format!("{pid} 2"));
    assert_eq!(parent(parent(pid)), term.guard.pid());
    assert_eq!(mounts_of_proc(), before, "its /proc is its own affair");
    term.guard.send(Command::Kill);
    assert_eq!(term.exited().await, Exit::Signal(9));
    term.tree_dead().await;
    term.quit().await;
}

pub async fn namespace_reports_exit_codes_and_signals_exactly() {
    for code in [0, 1, 126, 137, 255] {
        let Some(plan) = isolated(shell(&format!("exit {code}"))) else { return };
        let mut term = plan.start();
        assert_eq!(term.exited().await, Exit::Code(code));
        term.tree_dead().await;
        term.quit().await;
    }
    for signal in [libc::SIGKILL, libc::SIGSEGV, libc::SIGTERM, libc::SIGABRT, 40] {
        let Some(plan) = isolated(shell(&format!("ulimit -c 0; kill -{signal} $$; sleep 10"))) else {
            return;
        };
        let mut term = plan.start();
        assert_eq!(term.exited().await, Exit::Signal(signal));
        term.tree_dead().await;
        term.quit().await;
    }
}

pub async fn namespace_hands_on_the_stop_signal() {
    let script =
        "trap 'echo told; exit 7' USR1; touch $KEEPERD_TEST_MARK/ready; while :; do sleep 0.01; done";
    let Some(mut plan) = isolated(shell(script)) else { return };
    plan.spec.stop_signal = libc::SIGUSR1;
    let mut term = plan.start();
    term.ready().await;
    term.guard.send(Command::Stop { kill_by: clock::boot() + LONG });
    assert_eq!(term.exited().await, Exit::Code(7));
    term.tree_dead().await;
    assert!(term.said().contains("told"));
    term.quit().await;
}

pub async fn namespace_child_ignoring_sigterm_dies_at_kill_by() {
    let script = "trap '' TERM; touch $KEEPERD_TEST_MARK/ready; while :; do sleep 1; done";
    let Some(plan) = isolated(shell(script)) else { return };
    let mut term = plan.start();
    term.ready().await;
    let kill_by = clock::boot() + 200 * MS;
    term.guard.send(Command::Stop { kill_by });
    assert_eq!(term.exited().await, Exit::Signal(9));
    assert!(clock::boot() >= kill_by);
    term.tree_dead().await;
    term.quit().await;
}

pub async fn namespace_dies_with_its_init() {
    for cgroup in [true, false] {
        let Some(mut plan) = isolated(adversary("adversary:spread", "100")) else { return };
        plan.cgroup = cgroup;
        let mut term = plan.start();
        let pid = term.ready().await;
        term.lives(101).await;
        signal(parent(pid), nix::sys::signal::SIGKILL);
        assert_eq!(term.exited().await, Exit::Signal(9), "nothing else is known of the program's end");
        term.tree_dead().await;
        term.quit().await;
    }
}

/// The kernel alone: nobody here is a subreaper, and nobody sweeps.
pub async fn namespace_dies_with_the_guard_and_needs_no_daemon() {
    for (role, count) in [("adversary:spread", "100"), ("adversary:hop", "8")] {
        let Some(mut plan) = isolated(adversary(role, count)) else { return };
        plan.cgroup = false;
        let mut term = plan.start();
        term.ready().await;
        let killed = clock::boot();
        term.guard.kill();
        term.dies_by_itself().await;
        println!("    {count} of {role} dead {:?} after the guard", clock::boot().since(killed));
        term.gone().await;
    }
}

pub async fn namespace_leaves_nothing_when_the_program_ends() {
    let script = "setsid sleep 100 & setsid sh -c 'trap \"\" TERM; sleep 100' & exit 3";
    let Some(plan) = isolated(shell(script)) else { return };
    let mut term = plan.start();
    assert_eq!(term.exited().await, Exit::Code(3));
    term.tree_dead().await;
    term.quit().await;
}

pub async fn namespace_holds_the_lock_file_and_little_else() {
    let script = "ls -l /proc/$$/fd; cat /proc/self/status; touch $KEEPERD_TEST_MARK/ready; exec sleep 100";
    let Some(mut plan) = isolated(shell(script)) else { return };
    plan.lock = true;
    let mut term = plan.start();
    let init = parent(term.ready().await);
    let said = term.said();
    assert_eq!(said.matches(" -> ").count(), 4, "null, two pipes and the lock: {said}");
    assert_eq!(status_field(&said, "SigBlk"), "0000000000000000");
    assert_eq!(status_field(&said, "SigIgn"), "0000000000000000");
    let descriptors = fs::read_dir(format!("/proc/{init}/fd")).expect("we are root here").flatten();
    let targets: Vec<PathBuf> = descriptors.filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
    assert_eq!(targets.len(), 6, "stdio, the lock, its signals and its verdict: {targets:?}");
    assert!(targets.contains(&term.folder.join("lock")), "{targets:?}");
    term.guard.send(Command::Kill);
    term.tree_dead().await;
    term.quit().await;
}

pub async fn namespace_child_is_started_again_in_the_same_guard() {
    let Some(plan) = isolated(shell("echo run $$; setsid sleep 100 & exit 1")) else { return };
    let mut term = plan.start();
    for run in 1..=3 {
        assert_eq!(term.exited().await, Exit::Code(1));
        term.tree_dead().await;
        assert_eq!(term.survivors(), 0);
        assert_eq!(term.said(), "run 2\n", "run {run}");
        assert!(term.ack(spawn()).await.accepted);
    }
    term.tree_dead().await;
    term.quit().await;
}

pub async fn namespace_with_a_failed_exec_reports_stage_and_errno() {
    let Some(missing) = isolated(plan(&["no-such-program"])) else { return };
    assert_eq!(failed(missing).await, (Stage::Exec, libc::ENOENT));
    let Some(mut nowhere) = isolated(plan(&["sh"])) else { return };
    nowhere.spec.working_dir = Some("/no/such/folder".into());
    assert_eq!(failed(nowhere).await, (Stage::WorkingDir, libc::ENOENT));
}
