//! What `doctor` and `locks` say of real nodes, each of them wrong in its own way.

use crate::server::{Server, Version};
use keeperd::config::{self, Config, Env};
use keeperd::ops::{doctor, locks};
use serde_json::Value;
use std::path::Path;

fn three() -> [Server; 3] {
    [(); 3].map(|()| Server::start(Version::Redis70))
}

fn configured(nodes: &[String]) -> Config {
    let text = format!(
        "[lock]\nnodes = {nodes:?}\nttl = \"3s\"\nrestart_quarantine = \"5s\"\n[[keeper]]\nname = \"oracle\"\ncommand = [\"true\"]\n"
    );
    config::parse(Path::new("t.toml"), &text, &Env::from_iter::<[(&str, &str); 0]>([]))
        .unwrap_or_else(|errors| panic!("{text}\n{errors}"))
}

fn addresses(servers: &[Server]) -> Vec<String> {
    servers.iter().map(Server::url).collect()
}

fn ask(run: impl Fn(&Config, bool, &mut dyn std::io::Write) -> i32, config: &Config) -> (i32, Value, String) {
    let (mut json, mut text) = (Vec::new(), Vec::new());
    let code = run(config, true, &mut json);
    assert_eq!(run(config, false, &mut text), code, "people and programs are told the same");
    let text = String::from_utf8(text).expect("UTF-8");
    assert!(
        text.lines().filter(|line| !line.contains("unix:")).all(|line| line.chars().count() <= 80),
        "{text}"
    );
    (code, serde_json::from_slice(&json).expect("JSON"), text)
}

/// What all nodes have wrong in these tests does not count: no append-only file, and nobody was there yet.
fn usual(finding: &Value) -> bool {
    let what = finding["what"].as_str().unwrap_or_default();
    what.contains("append-only file") || what.contains("no keeperd has been there")
}

fn findings(document: &Value) -> Vec<String> {
    let all = document["findings"].as_array().expect("a list");
    all.iter()
        .filter(|finding| !usual(finding))
        .map(|f| f["what"].as_str().expect("text").to_owned())
        .collect()
}

/// The nodes as a careful operator runs them, with a daemon that was there long ago.
fn settle(servers: &[Server]) {
    for server in servers {
        let _: () = server.run(&["CONFIG", "SET", "appendonly", "yes"]);
        let _: () = server.run(&["CONFIG", "SET", "appendfsync", "always"]);
        let info: String = server.run(&["INFO", "server"]);
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:")).expect("it has one").trim();
        let nodes = servers.len().to_string();
        let _: i64 =
            server.run(&["HSET", "keeperd:node", "run_id", run, "until", "1", "n", &nodes, "q", "5000000"]);
    }
}

#[test]
fn nodes_in_order_are_healthy() {
    let servers = three();
    settle(&servers);
    let (code, document, text) = ask(doctor::run, &configured(&addresses(&servers)));
    assert_eq!((code, findings(&document)), (0, vec![]), "{text}");
    assert_eq!(document["findings"], Value::Array(vec![]));
    assert!(text.contains("3 of 3 nodes can vote, 2 are needed:\nhealthy"), "{text}");
}

#[test]
fn nodes_that_lose_what_they_are_told_are_named() {
    let servers = three();
    let config = configured(&addresses(&servers));
    let (code, document, text) = ask(doctor::run, &config);
    assert_eq!(code, 1, "{text}");
    let everything = document.to_string();
    assert!(everything.contains("no append-only file") && everything.contains("no keeperd has been there"));
    settle(&servers);
    let _: () = servers[0].run(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let _: () = servers[1].run(&["CONFIG", "SET", "appendfsync", "everysec"]);
    let _: () = servers[2].run(&["CONFIG", "SET", "appendonly", "no"]);
    let _: () = servers[2].run(&["CONFIG", "SET", "save", "900 1"]);
    let _: i64 = servers[2].run(&["HSET", "keeperd:node", "until", "9999999999999999", "n", "5"]);
    let _: () = servers[1].run(&["SET", "redlock:stuck", "x"]);
    let (code, after, _) = ask(doctor::run, &config);
    assert_eq!(code, 1);
    let found = findings(&after);
    for expected in [
        "evicts keys when its memory is full (allkeys-lru)",
        "appendfsync everysec",
        "keeps snapshots only",
        "votes again in",
        "one of 5 nodes, not 3",
        "the lock stuck never expires",
    ] {
        assert!(found.iter().any(|what| what.contains(expected)), "{expected}: {found:#?}");
    }
    assert!(findings(&document).is_empty(), "{document:#}");
}

#[test]
fn nodes_out_of_reach_cost_the_quorum_when_they_are_too_many() {
    let mut servers = three();
    settle(&servers);
    let config = configured(&addresses(&servers));
    servers[0].kill();
    let (code, document, text) = ask(doctor::run, &config);
    assert_eq!(code, 1, "{text}");
    assert_eq!(document["nodes"][0]["usable"], false);
    servers[1].freeze();
    let (code, _, text) = ask(doctor::run, &config);
    servers[1].thaw();
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("1 of 3 nodes can vote, 2 are needed:\nno quorum"), "{text}");
}

#[test]
fn replicas_and_second_addresses_are_no_votes() {
    let servers = three();
    settle(&servers);
    let port = servers[1].tcp_url().rsplit(':').next().expect("a port").to_owned();
    let _: () = servers[0].run(&["REPLICAOF", "127.0.0.1", &port]);
    let nodes = [servers[0].url(), servers[1].url(), servers[1].tcp_url()];
    let (code, document, text) = ask(doctor::run, &configured(&nodes));
    assert_eq!(code, 2, "{text}");
    let found = findings(&document);
    assert!(found.iter().any(|what| what.contains("is a slave, not a master")), "{found:#?}");
    assert!(found.iter().any(|what| what.contains("is the same server as")), "{found:#?}");
}

#[test]
fn passwords_and_rights_that_are_missing_are_named() {
    let servers = three();
    settle(&servers);
    let _: () =
        servers[0].run(&["ACL", "SETUSER", "half", "on", ">s3cret", "~*", "+@all", "-set", "-script|load"]);
    let _: () = servers[0].run(&["ACL", "SETUSER", "elsewhere", "on", ">s3cret", "~keeperd:*", "+@all"]);
    let port = servers[0].tcp_url().rsplit(':').next().expect("a port").to_owned();
    let with = |login: &str| {
        let node = format!("redis://{login}@127.0.0.1:{port}");
        let (code, document, text) =
            ask(doctor::run, &configured(&[node, servers[1].url(), servers[2].url()]));
        assert_eq!(code, 1, "{text}");
        assert!(!text.contains("s3cret") && !document.to_string().contains("s3cret"), "{text}");
        document
    };
    assert_eq!(with("half:s3cret")["nodes"][0]["denied"], serde_json::json!(["set", "script|load"]));
    let elsewhere = with("elsewhere:s3cret");
    assert_eq!(elsewhere["nodes"][0]["denied"], serde_json::json!(["~redlock:*"]));
    let wrong = with("half:wrong");
    let advice = wrong["findings"][0]["advice"].as_str().expect("text");
    assert!(advice.contains("password is wrong"), "{wrong:#}");
}

#[test]
fn a_node_that_wants_a_password_is_told_of_once_and_nothing_is_claimed_of_the_rest() {
    let servers = three();
    settle(&servers);
    let _: () = servers[0].run(&["CONFIG", "SET", "requirepass", "s3cret"]);
    let (code, document, text) = ask(doctor::run, &configured(&addresses(&servers)));
    assert_eq!((code, document["findings"].as_array().map(Vec::len)), (1, Some(1)), "{text}");
    assert!(text.contains("it wants a password"), "{text}");
}

#[test]
fn rights_that_can_be_done_without_are_named_and_cost_no_vote() {
    let servers = three();
    settle(&servers);
    let rights = ["-scan", "-client|tracking", "-script|load", "-info"];
    for server in &servers {
        for right in rights {
            let name = right.replace(['-', '|'], "");
            let _: () = server.run(&["ACL", "SETUSER", &name, "on", ">s3cret", "~*", "+@all", right]);
        }
    }
    let as_user = |name: &str| {
        let port = |server: &Server| server.tcp_url().rsplit(':').next().expect("a port").to_owned();
        let nodes =
            servers.each_ref().map(|server| format!("redis://{name}:s3cret@127.0.0.1:{}", port(server)));
        configured(&nodes)
    };
    for (name, right) in
        [("scan", "scan"), ("clienttracking", "client|tracking"), ("scriptload", "script|load")]
    {
        let (code, document, text) = ask(doctor::run, &as_user(name));
        assert_eq!((code, &document["voting"]), (1, &serde_json::json!(3)), "{text}");
        assert_eq!(document["nodes"][0]["denied"], serde_json::json!([right]), "{text}");
    }
    let (code, document, text) = ask(doctor::run, &as_user("info"));
    assert_eq!((code, findings(&document).len()), (2, 3), "one a node, for the right: {text}");
    let (code, _, text) = ask(locks::run, &as_user("scan"));
    assert_eq!((code, text.contains("unknown: 0 of 3")), (1, true), "{text}");
}

#[test]
fn nodes_that_do_not_vote_now_are_no_quorum() {
    let servers = three();
    let config = configured(&addresses(&servers));
    let (code, document, text) = ask(doctor::run, &config);
    assert_eq!((code, &document["voting"]), (1, &serde_json::json!(0)), "{text}");
    assert!(
        text.contains("3 of 3 nodes can vote, 0 of them now") && text.contains("no quorum yet"),
        "{text}"
    );
    settle(&servers);
    for server in &servers[..2] {
        let _: i64 = server.run(&["HSET", "keeperd:node", "n", "5"]);
    }
    let (code, _, text) = ask(doctor::run, &config);
    assert_eq!(code, 2, "they vote for nobody with another number: {text}");
}

#[test]
fn locks_of_keeperd_of_redlock_and_of_accidents_are_told_apart() {
    let servers = three();
    let config = configured(&addresses(&servers));
    let (code, document, text) = ask(locks::run, &config);
    assert_eq!(
        (code, &document["locks"], text.as_str()),
        (0, &serde_json::json!([]), "nobody holds a lock\n")
    );
    for server in &servers {
        let _: () = server.run(&["SET", "redlock:ours", "v1", "PX", "60000"]);
        let _: () = server.run(&["SET", "keeperd:lease:{redlock:ours}", "v1", "PX", "60000"]);
        let fence =
            ["HSET", "keeperd:fence:{redlock:ours}", "t", "42", "l", "v1", "host", "keeper-a", "pid", "77"];
        let _: i64 = server.run(&fence);
        let _: () = server.run(&["SET", "redlock:theirs", "other", "PX", "60000"]);
    }
    let _: () = servers[0].run(&["SET", "redlock:odd\n\u{1b}[2J", "a"]);
    let _: () = servers[1].run(&["SET", "redlock:odd\n\u{1b}[2J", "b", "PX", "60000"]);
    let _: i64 = servers[2].run(&["RPUSH", "redlock:list", "x"]);
    let _: () = servers[2].run(&["SET", "unrelated", "x"]);
    let (code, document, text) = ask(locks::run, &config);
    assert_eq!(code, 0);
    let all = document["locks"].as_array().expect("a list");
    let named = |name: &str| {
        all.iter().find(|lock| lock["name"] == name).unwrap_or_else(|| panic!("{name}: {all:#?}"))
    };
    assert_eq!(all.len(), 4);
    let ours = named("ours");
    assert_eq!((&ours["votes"], &ours["token"]), (&serde_json::json!(3), &serde_json::json!(42)));
    assert_eq!(ours["holder"], serde_json::json!({ "host": "keeper-a", "pid": 77 }));
    assert!(ours["ttl_ms"].as_u64().is_some_and(|left| left > 50_000 && left <= 60_000));
    assert_eq!(named("theirs")["holder"], Value::Null);
    let odd = named("odd\n\u{1b}[2J")["anomalies"].to_string();
    for word in ["never expires", "2 different values", "minority"] {
        assert!(odd.contains(word), "{odd}");
    }
    assert_eq!(named("list")["value"], "(not a string)");
    assert!(
        !text.contains('\u{1b}') && text.contains("keeper-a") && text.contains("not a keeperd"),
        "{text}"
    );
}

#[test]
fn without_a_quorum_of_answers_locks_says_so() {
    let mut servers = three();
    let config = configured(&addresses(&servers));
    servers[0].kill();
    assert_eq!(ask(locks::run, &config).0, 0);
    servers[1].kill();
    assert_eq!(ask(locks::run, &config).0, 1);
}
