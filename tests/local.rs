//! The local engine on a disk that is slow, or refuses.
use keeperd::core::lease::{FencingToken, Value};
use keeperd::core::request::{
    AcquireAnswer, Answer, ExtendAnswer, FromNode, LookAnswer, Request, RoundId, Ticket,
};
use keeperd::core::time::Instant;
use keeperd::lock::local::{Local, NODE};
use keeperd::lock::{Ask, Claim, Identity, KeeperId};
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc::Receiver;

/// An attempt that gives up while its grant is being synced: what is released must be free, and the next look must not panic.
#[test]
fn a_release_during_the_sync_of_its_acquire_releases() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let tasks = tokio::task::LocalSet::new();
    let folder = tempfile::tempdir().expect("folder");
    tasks.block_on(&runtime, async {
        let me = Identity { host: "h".into(), pid: 1 };
        let local = Local::start(folder.path(), me).expect("starts");
        let (sender, mut inbox) = tokio::sync::mpsc::channel(64);
        let claim =
            Claim { key: "k".into(), ttl: Duration::from_secs(2), node_timeout: Duration::from_millis(100) };
        let keeper = local.register(&claim, sender);
        let ask = |round, request| {
            local.ask(
                keeper,
                Ask { ticket: Ticket { round: RoundId(round), sent: Instant::default() }, request },
            );
        };
        // Both are under way before the sync can have ended, as after a time-out on a slow disk.
        let deadline = Instant::from_nanos(u64::MAX);
        ask(1, Request::Acquire { value: Value(1), proposal: FencingToken(1), deadline });
        ask(2, Request::Release { value: Value(1) });
        let mut answer = async || loop {
            let message = inbox.recv().await.expect("the engine lives");
            println!("{message:?}");
            if let FromNode::Answer { answer, .. } = *message {
                break answer;
            }
        };
        let mut both = [answer().await, answer().await];
        both.sort_by_key(|answer| *answer == Answer::Released);
        assert!(matches!(both, [Answer::Acquire(_), Answer::Released]), "{both:?}");
        ask(3, Request::Look);
        let looked = answer().await;
        assert!(
            matches!(looked, Answer::Look(LookAnswer::Free { .. })),
            "the released lock is held by nobody's value: {looked:?}"
        );
    });
}

/// The status says what the log says once, and forgets it when it has passed.
#[test]
fn a_lock_file_that_cannot_be_used_is_shown_until_it_can() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let tasks = tokio::task::LocalSet::new();
    let folder = tempfile::tempdir().expect("folder");
    let in_the_way = folder.path().join("k.lock");
    std::fs::create_dir(&in_the_way).expect("our folder");
    tasks.block_on(&runtime, async {
        let local = Local::start(folder.path(), Identity { host: "h".into(), pid: 1 }).expect("starts");
        let (sender, mut inbox) = tokio::sync::mpsc::channel(64);
        let claim =
            Claim { key: "k".into(), ttl: Duration::from_secs(2), node_timeout: Duration::from_millis(100) };
        let keeper = local.register(&claim, sender);
        let mut look = async || {
            local.ask(
                keeper,
                Ask {
                    ticket: Ticket { round: RoundId(1), sent: Instant::default() },
                    request: Request::Look,
                },
            );
            loop {
                if let FromNode::Answer { answer, .. } = *inbox.recv().await.expect("the engine lives") {
                    return answer;
                }
            }
        };
        assert_eq!(look().await, Answer::Silent);
        let trouble = local.trouble().expect("a directory is no lock file");
        assert!(trouble.contains("k.lock cannot be used: Is a directory"), "{trouble}");
        std::fs::remove_dir(&in_the_way).expect("our folder");
        assert!(matches!(look().await, Answer::Look(LookAnswer::Free { .. })));
        assert_eq!(local.trouble(), None);
    });
}

// ── daemons played by engines of their own: each has an open file of its own, as two processes have ──

/// One daemon's side of the lock `k`.
struct Side {
    local: Local,
    keeper: KeeperId,
    inbox: Receiver<Box<FromNode>>,
}

impl Side {
    fn start(folder: &Path) -> Side {
        let local = Local::start(folder, Identity { host: "h".into(), pid: 1 }).expect("starts");
        let (sender, inbox) = tokio::sync::mpsc::channel(64);
        let claim =
            Claim { key: "k".into(), ttl: Duration::from_secs(2), node_timeout: Duration::from_millis(100) };
        let keeper = local.register(&claim, sender);
        Side { local, keeper, inbox }
    }

    fn ask(&self, request: Request) {
        let ticket = Ticket { round: RoundId(1), sent: Instant::default() };
        self.local.ask(self.keeper, Ask { ticket, request });
    }

    async fn answer(&mut self, request: Request) -> Answer {
        self.ask(request);
        loop {
            if let FromNode::Answer { node: NODE, answer, .. } =
                *self.inbox.recv().await.expect("the engine lives")
            {
                return answer;
            }
        }
    }

    async fn takes_it(&mut self) {
        let granted = self.answer(acquire()).await;
        assert!(matches!(granted, Answer::Acquire(AcquireAnswer::Granted { .. })), "{granted:?}");
    }

    async fn is_free(&mut self) -> bool {
        let answer = self.answer(Request::Look).await;
        assert!(matches!(answer, Answer::Look(_)), "{answer:?}");
        matches!(answer, Answer::Look(LookAnswer::Free { .. }))
    }
}

fn acquire() -> Request {
    let deadline = Instant::from_nanos(u64::MAX);
    Request::Acquire { value: Value(1), proposal: FencingToken(1), deadline }
}

/// A story in a runtime that ends with it, as a daemon's does: its files are closed then.
fn run<T>(story: impl AsyncFnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    tokio::task::LocalSet::new().block_on(&runtime, story())
}

/// Its guard and its main process are gone, the tree is not proven dead: only the daemon's own copy keeps the others out.
#[test]
fn the_lock_outlives_guard_and_child_until_the_daemon_releases() {
    let folder = tempfile::tempdir().expect("folder");
    run(async || {
        let (mut holder, mut other) = (Side::start(folder.path()), Side::start(folder.path()));
        holder.takes_it().await;
        let copies = [(), ()].map(|()| holder.local.descriptor(holder.keeper).expect("a copy"));
        drop(copies);
        assert!(!other.is_free().await, "guard and child are gone, the daemon is not");
        assert_eq!(holder.answer(Request::Release { value: Value(1) }).await, Answer::Released);
        assert!(other.is_free().await);
    });
}

#[test]
fn the_lock_outlives_its_daemon_as_long_as_the_child_has_a_copy() {
    let folder = tempfile::tempdir().expect("folder");
    let child = run(async || {
        let mut holder = Side::start(folder.path());
        holder.takes_it().await;
        holder.local.descriptor(holder.keeper).expect("a copy")
    });
    run(async || {
        let mut other = Side::start(folder.path());
        assert!(!other.is_free().await, "the daemon is gone, the child lives");
        drop(child);
        assert!(other.is_free().await);
    });
}

/// A keeper that a reload has removed: its daemon runs on, and must not keep the file open.
#[test]
fn a_keeper_that_unregisters_has_what_it_asked_and_then_no_lock() {
    let folder = tempfile::tempdir().expect("folder");
    run(async || {
        let (mut holder, mut other) = (Side::start(folder.path()), Side::start(folder.path()));
        holder.takes_it().await;
        holder.ask(Request::Check { value: Value(1) });
        holder.local.unregister(holder.keeper);
        let mut heard = Vec::new();
        while let Some(message) = holder.inbox.recv().await {
            heard.push(message);
        }
        let answered = Answer::Extend(ExtendAnswer::Ok);
        assert!(
            heard
                .iter()
                .any(|from| matches!(&**from, FromNode::Answer { answer, .. } if *answer == answered))
        );
        assert!(other.is_free().await);
        assert!(holder.local.descriptor(holder.keeper).is_err());
    });
}
