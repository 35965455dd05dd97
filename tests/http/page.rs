//! The page, in a real browser.

use crate::client::{exchange, get};
use crate::daemon::{Daemon, SLEEPS, keeper, top};
use crate::tools::find_or_skip;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const BROWSERS: &[&str] = &["chromium-headless-shell", "chromium", "chromium-browser"];

/// What the page has become after so much of its own time.
fn rendered(browser: &Path, address: SocketAddr) -> String {
    let profile = tempfile::tempdir().expect("a folder");
    // A browser that hangs must not hang the suite.
    let output = Command::new("timeout")
        .arg("120")
        .arg(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(["--enable-logging=stderr", "--virtual-time-budget=5500", "--dump-dom"])
        .arg(format!("http://{address}/"))
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(!said.contains("Content Security Policy"), "{said}");
    assert!(!said.contains("Uncaught"), "{said}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_page_is_self_contained_and_runs_nothing_but_its_own_script() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path(), "one", &top(folder.path(), "one"));
    let pages = [get(daemon.address(), "/"), get(daemon.address(), "/")];
    let nonces = pages.each_ref().map(|page| {
        let policy = page.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'nonce-"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
        let nonce = policy.split('\'').find_map(|word| word.strip_prefix("nonce-")).expect("a nonce");
        assert_eq!(nonce.len(), 32);
        assert_eq!(
            page.body.matches(&format!("nonce=\"{nonce}\"")).count(),
            2,
            "of its style and its script"
        );
        nonce.to_owned()
    });
    assert_ne!(nonces[0], nonces[1], "one for each answer");
    let page = &pages[0].body;
    for outside in [
        "http://",
        "https://",
        "url(",
        "@import",
        "innerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
    ] {
        assert!(!page.contains(outside), "the page has {outside}");
    }
}

/// Asked of this host before it stands, and never well: what it answers becomes the reason that is shown.
const UNFIT: &str = r#"
command = ["sleep", "1000"]
health = { command = ["sh", "-c", 'echo "$0"; exit 1', "<img src=x onerror=alert(1)>"], interval = "100ms", standby = true }
"#;

/// Between browser and daemon while `story` runs: `reply` is asked with the path of each request and how often the status was asked for
/// before it, and without a reply the browser gets none.
fn behind_relay<T>(
    reply: impl Fn(&str, usize) -> Option<Vec<u8>> + Sync,
    story: impl FnOnce(SocketAddr) -> T,
) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (asked, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (reply, asked, over) = (&reply, &asked, &over);
        scope.spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                // A browser opens connections that it may need later.
                scope.spawn(move || relay(&stream, reply, asked));
            }
        });
        let _ends = RelayEnds { over, address };
        story(address)
    })
}

struct RelayEnds<'a> {
    over: &'a AtomicBool,
    address: SocketAddr,
}

impl Drop for RelayEnds<'_> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // It waits for a connection.
        drop(TcpStream::connect(self.address));
    }
}

fn relay(mut stream: &TcpStream, reply: impl Fn(&str, usize) -> Option<Vec<u8>>, asked: &AtomicUsize) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(line) = lines.next() else { return };
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let Some(path) = line.split(' ').nth(1) else { return };
    let before = asked.fetch_add(usize::from(path == "/v1/status"), Ordering::SeqCst);
    if let Some(answer) = reply(path, before) {
        // It may have gone.
        let _ = stream.write_all(&answer);
    }
}

fn forward(to: SocketAddr, path: &str) -> Option<Vec<u8>> {
    Some(exchange(to, format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes()))
}

#[test]
fn a_browser_shows_keepers_and_nodes() {
    let Some(browser) = find_or_skip(BROWSERS) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let config = top(folder.path(), "one") + &keeper("k", SLEEPS) + &keeper("sick", UNFIT);
    let daemon = Daemon::start(folder.path(), "one", &config);
    let token = daemon.await_child("k")["token"].to_string();
    daemon.await_keeper("sick", "unfit", |keeper| {
        keeper["last_change"]["reason"].as_str().is_some_and(|why| why.contains("onerror"))
    });
    let page = rendered(&browser, daemon.address());
    for part in [
        "<h1 id=\"host\">one</h1>",
        "data-role=\"leader\"",
        "<span class=\"role good\">leader</span>",
        "data-role=\"standby\"",
        &format!(">{token}</td>"),
        "won the election",
        "aria-label=\"time left in the lease of k\" max=\"10000\"",
        "data-state=\"serving\"",
        &folder.path().display().to_string(),
        "role=\"status\">live</span>",
        "&lt;img src=x onerror=alert(1)&gt;",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    assert!(!page.contains("<img"), "a reason is text: {page}");
}

#[test]
fn an_open_page_follows_a_change_of_role_and_says_when_nobody_answers() {
    let Some(browser) = find_or_skip(BROWSERS) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let config = |host| top(folder.path(), host) + &keeper("k", SLEEPS);
    let first = Daemon::start(folder.path(), "one", &config("one"));
    first.await_child("k");
    let second = Daemon::start(folder.path(), "two", &config("two"));
    second.await_keeper("k", "standing by", |keeper| keeper["holder"]["host"] == "one");
    let (address, first) = (second.address(), Mutex::new(first));
    let before = rendered(&browser, address);
    assert!(before.contains("runs on one") && !before.contains("data-role=\"leader\""), "{before}");
    // The browser's clock stands still while an answer is on its way.
    let reply = |path: &str, asked| {
        if path == "/v1/status" && asked == 1 {
            assert!(first.lock().expect("no panic").stop().success());
            second.await_child("k");
        }
        forward(address, path).filter(|_| asked < 3)
    };
    let page = behind_relay(reply, |address| rendered(&browser, address));
    for part in [
        "data-role=\"leader\"",
        "k is now leader",
        "won the election",
        "<body class=\"stale\">",
        "keeperd does not answer. What is shown is from ",
        "role=\"status\">not reachable</span>",
        "<span>unknown</span>",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
}
