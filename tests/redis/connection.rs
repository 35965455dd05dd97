//! What a connection survives, and what is left of requests when it does not.

use super::daemon::until;
use super::host::*;
use super::server::{Server, Version};
use keeperd::core::lease::{FencingToken, Value};
use keeperd::core::request::*;
use keeperd::lock::redis::{
    NodeState, NodeStatus, RELEASE_LIMIT, ReleaseSpec, release_everywhere, releaser_main,
};
use std::time::Duration;

fn granted(token: u64) -> Answer {
    Answer::Acquire(AcquireAnswer::Granted { token: FencingToken(token) })
}

/// For a node that will not answer; one that does takes a hundredth of it.
fn quick() -> Options {
    Options { node_timeout: Duration::from_secs(1), ..Options::default() }
}

sentence! {
    async fn a_node_that_comes_back_serves_again(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        for _ in 0..2 {
            server.kill();
            a.until_lost().await;
            a.until_state(NodeState::Down).await;
            server.start_again();
            a.until_serving().await;
            assert_eq!(a.nodes.status()[0].state, NodeState::Serving);
            assert!(matches!(a.look().await, Answer::Look(LookAnswer::Free { .. })));
        }
    }
}

sentence! {
    async fn over_tcp_it_is_the_same(server: Server) {
        let mut a = Host::on(&[server.tcp_url()], &quick());
        a.until_serving().await;
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        let _: i64 = server.run(&["DEL", KEY]);
        a.until_touched().await;
        server.freeze();
        a.nodes.hold(a.keeper, true);
        assert_eq!(a.extend(1, 1000).await, Answer::Silent);
        a.until_lost().await;
        server.thaw();
        a.until_serving().await;
        assert_eq!(a.extend(1, 1000).await, Answer::Extend(ExtendAnswer::Kept));
    }
}

sentence! {
    async fn nothing_is_sent_to_a_node_that_does_not_serve(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        server.kill();
        a.until_lost().await;
        let asked = keeperd::clock::boot();
        assert_eq!(a.acquire(1, 1000).await, Answer::Silent);
        assert!(keeperd::clock::boot().since(asked) < LONG / 2, "it was waited for");
        server.start_again();
        a.until_serving().await;
        assert!(matches!(a.look().await, Answer::Look(LookAnswer::Free { .. })));
    }
}

sentence! {
    async fn a_frozen_node_is_silent_and_leaves_no_ghost_vote(server: Server) {
        let mut a = Host::with(&server, quick()).await;
        server.freeze();
        assert_eq!(a.acquire(1, 1000).await, Answer::Silent);
        assert_eq!(a.release(1).await, Answer::Silent);
        assert_eq!(a.look().await, Answer::Silent);
        a.until_lost().await;
        server.thaw();
        a.until_serving().await;
        // Whatever order the server reads its sockets in, the released value does not stay.
        let released = || server.run::<Option<String>>(&["HGET", FENCE, "x"]) == Some(Value(1).to_string());
        until("the release", || released().then_some(()));
        assert_eq!(server.run::<i64>(&["EXISTS", KEY, SHADOW]), 0);
        assert_eq!(a.acquire(1, 1000).await, Answer::Acquire(AcquireAnswer::Released));
        assert_eq!(a.acquire(2, 1000).await.clone(), granted(server.run::<u64>(&["HGET", FENCE, "t"])));
    }
}

sentence! {
    async fn a_release_asked_of_a_lost_node_is_made_up_for(server: Server) {
        let mut a = Host::with(&server, quick()).await;
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        server.freeze();
        a.nodes.hold(a.keeper, true);
        assert_eq!(a.check(1).await, Answer::Silent);
        a.until_lost().await;
        assert_eq!(a.release(1).await, Answer::Silent);
        a.nodes.unregister(a.keeper);
        server.thaw();
        a.until_state(NodeState::Serving).await;
        assert_eq!(server.run::<i64>(&["EXISTS", KEY, SHADOW]), 0);
    }
}

sentence! {
    async fn while_a_lease_is_held_the_first_timeout_remakes_the_connection(server: Server) {
        let node_timeout = Duration::from_millis(100);
        let mut a = Host::with(&server, Options { node_timeout, ..Options::default() }).await;
        server.freeze();
        assert_eq!(a.look().await, Answer::Silent);
        assert_eq!(a.changes.len(), 1, "nothing held: one timeout is none");
        a.nodes.hold(a.keeper, true);
        assert_eq!(a.look().await, Answer::Silent);
        a.until_lost().await;
        server.thaw();
        a.until_serving().await;
    }
}

sentence! {
    async fn a_marker_for_another_number_of_nodes_denies(server: Server) {
        let a = Host::serving(&server, "host-a").await;
        let urls = [server.url(), "unix:///nowhere/1".to_owned(), "unix:///nowhere/2".to_owned()];
        let mut b = Host::on(&urls, &Options::default());
        b.until_state(NodeState::Denied).await;
        let reason = b.nodes.status()[0].reason.clone().expect("a reason");
        assert!(reason.contains("a quorum of 1 nodes and this configuration has 3"), "{reason}");
        assert_eq!(b.acquire(1, 1000).await, Answer::Silent);
        // As the reason advises; the one that lives on would write its own number again.
        drop(a);
        let _: i64 = server.run(&["DEL", "keeperd:node"]);
        b.until_serving().await;
    }
}

sentence! {
    async fn another_number_of_nodes_after_a_flush_refuses_votes_at_once(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let _: i64 = server.run(&["HSET", "keeperd:node", "n", "5"]);
        let answer = a.acquire(1, 1000).await;
        assert!(matches!(answer, Answer::Acquire(AcquireAnswer::Quarantined { .. })), "{answer:?}");
        a.until_state(NodeState::Denied).await;
    }
}

sentence! {
    async fn one_server_under_two_addresses_votes_once(server: Server) {
        let alias = server.dir.join("alias");
        std::os::unix::fs::symlink(server.dir.join("s"), &alias).expect("a link");
        let urls = [server.url(), format!("unix://{}", alias.display()), "unix:///nowhere".to_owned()];
        let host = Host::on(&urls, &Options::default());
        let settled = async {
            loop {
                let states: Vec<_> = host.nodes.status()[..2].iter().map(|node| node.state).collect();
                if states.contains(&NodeState::Denied) && states.contains(&NodeState::Serving) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, settled).await.expect("one of them is denied");
    }
}

sentence! {
    async fn a_replica_is_denied_until_it_is_a_master(server: Server) {
        let _: String = server.run(&["REPLICAOF", "127.0.0.1", "1"]);
        let mut a = Host::on(&[server.url()], &Options::default());
        a.until_state(NodeState::Denied).await;
        let _: String = server.run(&["REPLICAOF", "NO", "ONE"]);
        a.until_serving().await;
    }
}

sentence! {
    async fn a_master_that_becomes_a_replica_is_given_up(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let _: String = server.run(&["REPLICAOF", "127.0.0.1", "1"]);
        assert_eq!(a.acquire(1, 1000).await, Answer::Silent);
        a.until_lost().await;
        a.until_state(NodeState::Denied).await;
    }
}

/// Logs in as a user with these rights.
fn url_with(server: &Server, rights: &[&str]) -> String {
    let words = [&["ACL", "SETUSER", "k", "on", ">geheim"][..], rights].concat();
    let _: String = server.run(&words);
    format!("{}?user=k&pass=geheim", server.url())
}

sentence! {
    async fn where_tracking_is_denied_the_node_serves_without(server: Server) {
        let url = url_with(&server, &["~*", "+@all", "-client"]);
        let mut a = Host::on(&[url], &Options::default());
        a.until_serving().await;
        assert!(!a.nodes.status()[0].tracking);
        assert!(matches!(a.look().await, Answer::Look(LookAnswer::Free { .. })));
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        assert_eq!(a.extend(1, 1000).await, Answer::Extend(ExtendAnswer::Ok));
        assert_eq!(a.release(1).await, Answer::Released);
    }
}

sentence! {
    async fn the_advised_rights_suffice(server: Server) {
        let mut denied = Host::on(&[url_with(&server, &["+@all", "-eval"])], &Options::default());
        denied.until_state(NodeState::Denied).await;
        let reason = denied.nodes.status()[0].reason.clone().expect("a reason");
        let file = include_str!("../../config/redis.acl");
        let line = file.lines().find(|line| line.starts_with("user keeperd ")).expect("a line for the user");
        let advice = reason.split("ACL: ").nth(1).and_then(|rest| rest.split(" and the").next()).expect("advice");
        assert!(line.ends_with(&format!("{advice} ~redlock:*")), "the file says {line}, the node {advice}");
        let rights: Vec<&str> = ["reset", "on", ">geheim"].into_iter().chain(advice.split(' ')).collect();
        let mut a = Host::on(&[url_with(&server, &[&rights[..], &["~redlock:*"]].concat())], &Options::default());
        a.until_serving().await;
        assert!(a.nodes.status()[0].tracking);
        assert!(matches!(a.look().await, Answer::Look(LookAnswer::Free { .. })));
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        assert_eq!(a.raise(1, 1001).await, Answer::Raise(RaiseAnswer::Accepted));
        assert_eq!(a.extend(1, 1001).await, Answer::Extend(ExtendAnswer::Ok));
        assert_eq!(a.repair(1, 1001).await, Answer::Repair(RepairAnswer::Repaired));
        let _: i64 = server.run(&["DEL", KEY]);
        a.until_touched().await;
        assert_eq!(a.release(1).await, Answer::Released);
        assert_eq!(a.nodes.status()[0].reason, None);
    }
}

sentence! {
    async fn without_rights_on_the_prefix_a_node_is_silent_and_says_why(server: Server) {
        let mut a = Host::on(&[url_with(&server, &["+@all", "~keeperd:*"])], &Options::default());
        a.until_serving().await;
        for request in [Request::Look, acquire(1, 1000)] {
            assert_eq!(a.ask(request).await, Answer::Silent);
            let reason = a.nodes.status()[0].reason.clone().expect("a reason");
            assert!(reason.starts_with("last refused request"), "{reason}");
        }
        assert_eq!(a.changes.len(), 1, "the connection stands");
    }
}

sentence! {
    async fn missing_rights_and_wrong_passwords_deny_and_say_so(server: Server) {
        let cases = [
            (url_with(&server, &["~redlock:*", "+@all"]), "keeperd:node"),
            (url_with(&server, &["~*", "+@all", "-info"]), "INFO"),
            (format!("{}?user=k&pass=falsch", server.url()), "WRONGPASS"),
            ("rubbish".to_owned(), "not a usable Redis address"),
        ];
        for (i, (url, clue)) in cases.iter().enumerate() {
            let _: i64 = server.run(&["ACL", "DELUSER", "k"]);
            let words = ["ACL", "SETUSER", "k", "on", ">geheim", if i == 0 { "~redlock:*" } else { "~*" }, "+@all"];
            let _: String = server.run(&words);
            if i == 1 {
                let _: String = server.run(&["ACL", "SETUSER", "k", "-info"]);
            }
            let mut a = Host::on(std::slice::from_ref(url), &Options::default());
            a.until_state(NodeState::Denied).await;
            let reason = a.nodes.status()[0].reason.clone().expect("a reason");
            assert!(reason.contains(clue), "{clue}: {reason}");
            assert!(!reason.contains("geheim") && !reason.contains("falsch"), "{reason}");
        }
    }
}

sentence! {
    async fn each_right_that_is_missing_is_named(server: Server) {
        let file = include_str!("../../config/redis.acl");
        let line = file.lines().find(|line| line.starts_with("user keeperd ")).expect("a line for the user");
        let rights = line.split(' ').filter(|word| word.starts_with(['+', '~']));
        // For `keeperd locks` only.
        let rights: Vec<&str> = rights.filter(|word| *word != "+scan").collect();
        assert!(rights.len() > 15, "{rights:?}");
        let names_commands = !server.run::<String>(&["INFO", "server"]).contains("redis_version:6.");
        for missing in &rights {
            let name = missing.trim_start_matches('+');
            let clue = match *missing {
                "~redlock:*" => "look of redlock:oracle",
                "~keeperd:*" => "keeperd:node",
                _ if names_commands => name,
                // Scripts do not say which command it was.
                _ => "",
            };
            let named = |reason: &String| {
                let refused = ["NOPERM", "can't run this command", "permission"];
                reason.to_lowercase().contains(clue) && refused.iter().any(|word| reason.contains(word))
            };
            let others = rights.iter().copied().filter(|right| right != missing);
            let url = url_with(&server, &["reset", "on", ">geheim"].into_iter().chain(others).collect::<Vec<_>>());
            let _: i64 = server.run(&["DEL", KEY, SHADOW, FENCE, "keeperd:node"]);
            let mut a = Host::on(&[url], &Options::default());
            let connected = async {
                // One that is down for another reason is tried again: the machine may have stalled.
                let is_open = |node: &NodeStatus| match node.state {
                    NodeState::Connecting => true,
                    NodeState::Down => !node.reason.as_ref().is_some_and(named),
                    NodeState::Serving | NodeState::Quarantined | NodeState::Denied => false,
                };
                while is_open(&a.nodes.status()[0]) {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            tokio::time::timeout(LONG, connected).await.expect("an end of connecting");
            let mut reasons: Vec<String> = a.nodes.status()[0].reason.iter().cloned().collect();
            if a.nodes.status()[0].state == NodeState::Serving {
                a.until_serving().await;
                let (value, token, deadline) = (Value(1), FencingToken(1001), soon());
                for request in [
                    Request::Look,
                    acquire(1, 1000),
                    Request::Look,
                    Request::Raise { value, token, deadline },
                    Request::Extend { value, token, deadline },
                    Request::Repair { value, token, deadline },
                    Request::Bid { priority: keeperd::core::preference::Priority(1) },
                    Request::Release { value },
                ] {
                    let _ = a.ask(request).await;
                    reasons.extend(a.nodes.status()[0].reason.clone());
                }
            }
            assert!(reasons.iter().any(named), "without {missing}: {reasons:#?}");
        }
    }
}

sentence! {
    async fn a_full_inbox_drops_and_counts(server: Server) {
        let a = Host::serving(&server, "host-a").await;
        for _ in 0..200 {
            let ticket = Ticket { round: RoundId(0), sent: keeperd::clock::boot() };
            a.nodes.ask(a.keeper, ONE, keeperd::lock::Ask { ticket, request: Request::Look });
        }
        while a.nodes.dropped_messages() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

sentence! {
    async fn the_releaser_needs_a_quorum_and_no_daemon(server: Server) {
        let second = Server::start(Version::Redis70);
        let third = Server::start(Version::Redis70);
        third.freeze();
        let mut a = Host::serving(&server, "host-a").await;
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        let urls = vec![server.url(), second.url(), third.url()];
        let spec = ReleaseSpec { access: plain(&urls), key: KEY.to_owned(), value: Value(1).to_string(), quorum: 2 };
        let started = keeperd::clock::boot();
        assert_eq!(release_everywhere(&spec, 2 * LONG).await, 2);
        assert!(keeperd::clock::boot().since(started) < LONG, "the frozen one was waited for");
        assert_eq!(server.run::<i64>(&["EXISTS", KEY, SHADOW]), 0);

        assert_eq!(a.acquire(2, 2000).await, granted(2000));
        let spec = ReleaseSpec { value: Value(2).to_string(), ..spec };
        let sealed = |spec: &ReleaseSpec| {
            use std::io::Write;
            let fd = nix::sys::memfd::memfd_create("spec", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("a memfd");
            let mut file = std::fs::File::from(fd);
            file.write_all(&serde_json::to_vec(spec).expect("json")).expect("memory");
            std::os::fd::OwnedFd::from(file)
        };
        let fd = sealed(&spec);
        // With more time than a guard has, so that it is not the machine's stalls that are judged.
        assert_eq!(std::thread::spawn(move || releaser_main(fd, LONG)).join().expect("no panic"), 0);
        assert_eq!(server.run::<i64>(&["EXISTS", KEY, SHADOW]), 0);
        drop(second);
        let fd = sealed(&spec);
        assert_eq!(std::thread::spawn(move || releaser_main(fd, RELEASE_LIMIT)).join().expect("no panic"), 1);
    }
}
