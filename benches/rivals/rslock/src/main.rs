//! The crate rslock as a rival, with the words of `redlock.js`: `rslock-rival PORT…`, then lines `N BUDGET_MS`.

use rslock::{Lock, LockManager};
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

const TTL: Duration = Duration::from_secs(30);
const NAME: &str = "bench:rslock";

#[derive(Default)]
struct Taken {
    acquire: Vec<u64>,
    extend: Vec<u64>,
    release: Vec<u64>,
    failed: u32,
}

fn main() {
    let urls: Vec<String> = std::env::args().skip(1).map(|port| format!("redis://127.0.0.1:{port}/")).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut manager = LockManager::new(urls);
    manager.set_retry(1, Duration::ZERO);
    // It connects with the first operation.
    runtime.block_on(cycles(&manager, 1, Duration::from_secs(5)));
    say("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("stdin");
        let mut words = line.split(' ').map(|word| word.parse::<u64>().unwrap_or(0));
        let (n, budget) = (words.next().unwrap_or(0), Duration::from_millis(words.next().unwrap_or(0)));
        let (taken, hung) = runtime.block_on(cycles(&manager, n, budget));
        let Taken { acquire, extend, release, failed } = taken;
        let answer = serde_json::json!({
            "acquire": acquire, "extend": extend, "release": release, "failed": failed, "hung": hung,
        });
        say(&answer.to_string());
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").expect("stdout");
    out.flush().expect("stdout");
}

fn ns(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

async fn cycles(manager: &LockManager, n: u64, budget: Duration) -> (Taken, bool) {
    let mut taken = Taken::default();
    let whole = async {
        let end = Instant::now() + budget;
        for _ in 0..n {
            if Instant::now() > end {
                return;
            }
            let began = Instant::now();
            let lock: Option<Lock> = manager.lock(NAME, TTL).await.ok();
            taken.acquire.push(ns(began));
            let Some(lock) = lock else {
                taken.failed += 1;
                return;
            };
            let began = Instant::now();
            let extended = manager.extend(&lock, TTL).await.ok();
            taken.extend.push(ns(began));
            taken.failed += u32::from(extended.is_none());
            let began = Instant::now();
            manager.unlock(&lock).await;
            taken.release.push(ns(began));
        }
    };
    let hung = tokio::time::timeout(budget, whole).await.is_err();
    (taken, hung)
}
