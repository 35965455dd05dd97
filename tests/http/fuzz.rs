//! Hostile clients: whatever they send, the daemon answers the next one, and nothing has changed.

use crate::client::{connect, exchange, exchange_at_once, get, parse};
use crate::daemon::{Daemon, SLEEPS, keeper, top};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use std::io::{Read, Write};
use std::time::Duration;

const METHODS: &[&str] =
    &["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PRI", "get", "G\0T", ""];
const PATHS: &[&str] = &[
    "/",
    "/metrics",
    "/v1/status",
    "/v1/leader/k",
    "/v1/leader/",
    "/v1/leader/%6b",
    "/v1/leader/../../etc/passwd",
    "/v1/leader/<script>",
    "/v1/keepers/k/step-down",
    "/v1/drain",
    "/../../../etc/passwd",
    "//",
    "/%00",
    "/%zz",
    "http://elsewhere/v1/status",
    "*",
    "",
];
const HEADERS: &[&str] = &[
    "Host: x",
    "Host:",
    "Content-Length: 5",
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: x",
    "Expect: 100-continue",
    "Upgrade: h2c",
    "Connection: Upgrade, HTTP2-Settings",
    "Range: bytes=0-",
    "Accept: application/openmetrics-text; version=1.0.0",
    ": nothing",
    "no colon",
    " folded",
    "X-\u{e9}: \u{1}",
];

fn request() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => select(PATHS).prop_map(str::to_owned),
        2 => "/[ -~]{0,40}",
        1 => "\\PC{0,40}",
    ];
    let header = prop_oneof![4 => select(HEADERS).prop_map(str::to_owned), 1 => "[ -~]{0,60}"];
    let version = select(&["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", ""][..]);
    let end = select(&["\r\n", "\n", "\r"][..]);
    let well_formed_or_not =
        (select(METHODS), piece, version, vec(header, 0..6), end, vec(any::<u8>(), 0..20)).prop_map(
            |(method, path, version, headers, end, body)| {
                let mut text = format!("{method} {path} {version}{end}");
                for header in headers {
                    text.push_str(&header);
                    text.push_str(end);
                }
                text.push_str(end);
                [text.into_bytes(), body].concat()
            },
        );
    prop_oneof![6 => well_formed_or_not, 1 => vec(any::<u8>(), 0..300)]
}

#[test]
fn hostile_requests_do_no_harm() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut daemon = Daemon::start(folder.path(), "one", &(top(folder.path(), "one") + &keeper("k", SLEEPS)));
    let before = daemon.await_child("k");
    let address = daemon.address();
    let mut runner = TestRunner::new(Config::default());
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400);
    let requests = request();
    let mut answered = 0;
    for _ in 0..cases {
        let bytes = requests.new_tree(&mut runner).expect("no filters").current();
        let answer = exchange_at_once(address, &bytes);
        let shown = String::from_utf8_lossy(&bytes);
        if let Some(reply) = parse(&answer) {
            assert!((200..500).contains(&reply.code), "{} to {shown:?}", reply.code);
            answered += 1;
        } else {
            assert!(answer.is_empty(), "{:?} to {shown:?}", String::from_utf8_lossy(&answer));
        }
    }
    assert!(answered > cases / 10, "{answered} of {cases} were answered");
    // Too much of everything.
    let long = "a".repeat(100_000);
    let many: String = (0..300).map(|number| format!("X-{number}: y\r\n")).collect();
    for (request, codes) in [
        (format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"), &[414, 431][..]),
        (format!("GET / HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n"), &[431]),
        (format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"), &[431]),
    ] {
        let answer = exchange(address, request.as_bytes());
        // The refusal may be lost when the daemon closes with bytes unread.
        if let Some(reply) = parse(&answer) {
            assert!(codes.contains(&reply.code), "{}", reply.code);
        } else {
            assert!(answer.is_empty());
        }
    }
    assert!(daemon.is_running());
    assert_eq!(get(address, "/healthz").code, 200);
    let after = daemon.await_child("k");
    for key in ["token", "pid", "role", "since", "restarts", "last_change", "history"] {
        assert_eq!(before[key], after[key], "{key}");
    }
    assert!(!daemon.log().contains("panicked"));
}

#[test]
fn clients_that_never_finish_do_not_keep_the_others_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path(), "one", &(top(folder.path(), "one") + &keeper("k", SLEEPS)));
    daemon.await_child("k");
    let address = daemon.address();
    let mut slow: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = connect(address);
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX: ").expect("it has room");
            stream
        })
        .collect();
    // Behind them all, and answered once they have been sent away.
    assert_eq!(get(address, "/v1/leader/k").code, 200);
    let first = &mut slow[0];
    first.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).expect("it was closed, not left open");
}
