//! What is answered, and to which request.

use crate::client::{ask, get};
use crate::daemon::{Daemon, SLEEPS, await_some, keeper, own_address, top, top_without_nodes};
use std::net::TcpListener;

#[test]
fn every_route_answers_and_head_is_the_same_without_a_body() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path(), "one", &(top(folder.path(), "one") + &keeper("k", SLEEPS)));
    daemon.await_child("k");
    let address = daemon.address();
    let routes = [
        ("/", 200, "text/html; charset=utf-8"),
        ("/metrics", 200, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("/healthz", 200, "application/json"),
        ("/readyz", 200, "application/json"),
        ("/v1/status", 200, "application/json"),
        ("/v1/leader/k", 200, "application/json"),
        ("/v1/leader/other", 404, "application/json"),
        ("/nothing", 404, "application/json"),
        ("/healthz/", 404, "application/json"),
        // What a child writes may be secret, and is for those who may open the control socket.
        ("/v1/keepers/k/logs", 404, "application/json"),
    ];
    for (path, code, kind) in routes {
        let reply = get(address, path);
        assert_eq!((reply.code, reply.header("content-type")), (code, Some(kind)), "{path}");
        assert_eq!(reply.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert!(!reply.body.is_empty(), "{path}");
        let head = ask(address, "HEAD", path);
        assert_eq!(
            (head.code, head.header("content-type"), head.body.as_str()),
            (code, Some(kind), ""),
            "{path}"
        );
        let query = get(address, &format!("{path}?a=b"));
        assert_eq!(query.code, code, "{path}?a=b");
    }
}

#[test]
fn nothing_that_changes_something_is_served() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut daemon = Daemon::start(folder.path(), "one", &(top(folder.path(), "one") + &keeper("k", SLEEPS)));
    let before = daemon.await_child("k");
    let address = daemon.address();
    let paths = [
        "/v1/keepers/k/step-down",
        "/v1/keepers/k/pause",
        "/v1/keepers/k/resume",
        "/v1/keepers/k/restart",
        "/v1/drain",
        "/v1/resume",
        "/v1/reload",
        "/v1/status",
        "/",
    ];
    for path in paths {
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            let reply = ask(address, method, path);
            assert_eq!((reply.code, reply.header("allow")), (405, Some("GET, HEAD")), "{method} {path}");
        }
    }
    for path in &paths[..7] {
        assert_eq!(get(address, path).code, 404, "GET {path}");
    }
    let after = daemon.await_child("k");
    for key in ["token", "pid", "role", "since", "restarts", "last_change"] {
        assert_eq!(before[key], after[key], "{key}");
    }
    assert!(daemon.stop().success());
}

#[test]
fn a_load_balancer_finds_the_leader_and_follows_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let start = |host| Daemon::start(folder.path(), host, &(top(folder.path(), host) + &keeper("k", SLEEPS)));
    let mut first = start("one");
    first.await_child("k");
    let second = start("two");
    second.await_keeper("k", "standing by", |keeper| keeper["holder"]["host"] == "one");
    let led = first.await_reply("/v1/leader/k", 200).json();
    assert_eq!((&led["leader"], &led["holder"]), (&true.into(), &"one".into()));
    let stands_by = second.await_reply("/v1/leader/k", 503).json();
    assert_eq!(
        (&stands_by["leader"], &stands_by["role"], &stands_by["holder"]),
        (&false.into(), &"standby".into(), &"one".into())
    );
    assert_eq!(ask(second.address(), "HEAD", "/v1/leader/k").code, 503);
    assert!(first.stop().success());
    second.await_reply("/v1/leader/k", 200);
}

#[test]
fn a_port_that_is_taken_costs_the_page_and_not_the_keepers() {
    let folder = tempfile::tempdir().expect("a folder");
    let taken = TcpListener::bind(own_address(9470)).expect("a free port");
    let address = own_address(9470);
    let config =
        top(folder.path(), "one").replace("127.0.0.1:0", &address.to_string()) + &keeper("k", SLEEPS);
    let daemon = Daemon::start(folder.path(), "one", &config);
    await_some("child", || daemon.log().contains("child runs").then_some(()));
    await_some("warning", || daemon.log().contains("[http] listen cannot be had").then_some(()));
    drop(taken);
    assert_eq!(daemon.address(), address);
    assert_eq!(get(address, "/healthz").code, 200);
    assert_eq!(daemon.log().matches("cannot be had").count(), 1, "one warning, however long it takes");
}

#[test]
fn a_host_without_a_quorum_is_healthy_and_not_ready() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = top_without_nodes(folder.path(), "one") + &keeper("k", SLEEPS);
    let daemon = Daemon::start(folder.path(), "one", &config);
    assert_eq!(daemon.await_reply("/healthz", 200).json()["healthy"], true);
    let reason = await_some("verdict", || {
        let reply = daemon.await_reply("/readyz", 503);
        Some(reply.json()["reason"].as_str()?.to_owned()).filter(|reason| reason.contains("nodes"))
    });
    assert_eq!(reason, "0 of 3 nodes serve and vote, 2 are needed");
}
