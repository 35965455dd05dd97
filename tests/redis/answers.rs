//! What a node answers to each request.

use super::host::*;
use super::server::{Server, Version};
use keeperd::clock;
use keeperd::core::lease::{FencingToken, Value};
use keeperd::core::request::*;
use std::time::Duration;

fn granted(token: u64) -> Answer {
    Answer::Acquire(AcquireAnswer::Granted { token: FencingToken(token) })
}

fn mine(token: u64, token_is_mine: bool) -> Answer {
    Answer::Acquire(AcquireAnswer::Mine { token: FencingToken(token), token_is_mine })
}

fn extended(answer: ExtendAnswer) -> Answer {
    Answer::Extend(answer)
}

/// The holder an answer names, of whichever request.
fn held(answer: Answer) -> Held {
    let (Answer::Look(LookAnswer::Held(held))
    | Answer::Acquire(AcquireAnswer::Held(held))
    | Answer::Extend(ExtendAnswer::Foreign(held))
    | Answer::Repair(RepairAnswer::Foreign(held))) = answer
    else {
        panic!("nobody is named: {answer:?}")
    };
    held
}

fn is_quarantined(answer: &Answer) -> bool {
    matches!(
        answer,
        Answer::Acquire(AcquireAnswer::Quarantined { .. }) | Answer::Look(LookAnswer::Quarantined { .. })
    )
}

sentence! {
    async fn a_free_lock_is_granted_with_the_proposal_as_token(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        assert_eq!(a.look().await, Answer::Look(LookAnswer::Free { token: FencingToken(0) }));
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        for key in [KEY, SHADOW] {
            assert_eq!(server.run::<String>(&["GET", key]), Value(1).to_string());
            assert!((5_000..=10_000).contains(&server.run::<i64>(&["PTTL", key])));
        }
        let seen = held(Host::serving(&server, "host-b").await.look().await);
        assert_eq!(seen.holder, Some(Holder { host: "host-a".to_owned(), pid: 4711 }));
        assert_eq!((seen.value, seen.token), (Value(1).to_string().into_bytes(), FencingToken(1000)));
        assert_eq!(a.release(1).await, Answer::Released);
        assert_eq!(a.acquire(2, 17).await, granted(1001));
    }
}

sentence! {
    async fn a_resent_acquire_is_mine_and_says_whose_the_token_is(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        assert_eq!(a.acquire(1, 1000).await, mine(1000, true));
        assert_eq!(a.raise(9, 2000).await, Answer::Raise(RaiseAnswer::Accepted));
        assert_eq!(a.acquire(1, 1000).await, mine(2000, false));
        let _: i64 = server.run(&["DEL", SHADOW]);
        assert_eq!(a.acquire(1, 1000).await, mine(2000, false));
        assert!(server.run::<i64>(&["PTTL", SHADOW]) > 5_000);
    }
}

sentence! {
    async fn a_legacy_holder_refuses_us_and_reports_its_pttl_and_so_does_any_other_type(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let _: String = server.run(&["SET", KEY, "legacy", "NX", "PX", "70000"]);
        for answer in [a.acquire(1, 1000).await, a.look().await, a.extend(1, 1000).await, a.repair(1, 1000).await] {
            let held = held(answer);
            assert_eq!((held.value, held.holder), (b"legacy".to_vec(), None));
            let left = held.remaining.expect("it expires");
            assert!(left > Duration::from_secs(40) && left <= Duration::from_secs(70));
        }
        let _: i64 = server.run(&["DEL", KEY]);
        let _: i64 = server.run(&["HSET", KEY, "redisson", "1"]);
        for answer in [a.acquire(1, 1000).await, a.look().await, a.extend(1, 1000).await, a.repair(1, 1000).await] {
            assert_eq!(held(answer).remaining, None);
        }
        assert_eq!(a.release(1).await, Answer::Released);
        assert_eq!(server.run::<i64>(&["EXISTS", KEY]), 1);
    }
}

sentence! {
    async fn a_released_value_never_lives_again_on_that_node(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        assert_eq!(a.release(1).await, Answer::Released);
        assert_eq!(a.acquire(1, 1000).await, Answer::Acquire(AcquireAnswer::Released));
        assert_eq!(a.raise(1, 1000).await, Answer::Raise(RaiseAnswer::Refused));
        assert_eq!(a.repair(1, 1000).await, Answer::Repair(RepairAnswer::Refused));
        assert_eq!(a.extend(1, 1000).await, extended(ExtendAnswer::Gone));
        assert_eq!(server.run::<i64>(&["EXISTS", KEY, SHADOW]), 0);
        assert_eq!(a.acquire(2, 1000).await, granted(1000));
    }
}

sentence! {
    async fn a_flush_under_a_standing_connection_quarantines_the_node(server: Server) {
        let quarantine = Duration::from_millis(1500);
        let mut a = Host::with(&server, Options { quarantine, ..Options::default() }).await;
        let mut b = Host::with(&server, Options { quarantine, name: "host-b", ..Options::default() }).await;
        a.until_state(keeperd::lock::redis::NodeState::Serving).await;
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        let _: String = server.run(&["FLUSHALL"]);
        let flushed = clock::boot();
        assert!(is_quarantined(&b.acquire(2, 2000).await));
        assert_eq!(b.raise(2, 2000).await, Answer::Raise(RaiseAnswer::Refused));
        assert_eq!(a.check(1).await, extended(ExtendAnswer::Empty));
        b.until_touched().await;
        while is_quarantined(&b.look().await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(clock::boot().since(flushed) >= quarantine);
        assert_eq!(b.acquire(2, 2000).await, granted(2000));
        assert_eq!((a.changes.len(), b.changes.len()), (1, 1), "the connections stood");
    }
}

sentence! {
    async fn a_node_whose_clock_is_set_forward_waits_all_the_same(server: Server) {
        let quarantine = Duration::from_millis(1500);
        let began = clock::boot();
        let mut a = Host::on(&[server.url()], &Options { quarantine, ..Options::default() });
        a.until_serving().await;
        // To the script it is the same whether its time has come or the marker's end has gone.
        let _: i64 = server.run(&["HSET", "keeperd:node", "until", "1"]);
        assert!(is_quarantined(&a.look().await));
        assert!(is_quarantined(&a.acquire(1, 1000).await));
        assert_eq!(a.raise(1, 1000).await, Answer::Raise(RaiseAnswer::Refused));
        while is_quarantined(&a.look().await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(clock::boot().since(began) >= quarantine);
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
    }
}

sentence! {
    async fn a_restarted_empty_node_does_not_vote_but_keeps_what_is_repaired(server: Server) {
        let quarantine = Duration::from_secs(60);
        let options = || Options { quarantine, ..Options::default() };
        let mut a = Host::with(&server, options()).await;
        assert!(is_quarantined(&a.acquire(1, 1000).await), "the very first start waits as well");
        assert_eq!(a.extend(1, 1000).await, extended(ExtendAnswer::Empty));
        server.kill();
        a.until_lost().await;
        server.start_again();
        a.until_serving().await;
        assert!(is_quarantined(&a.look().await));
        assert!(is_quarantined(&a.acquire(1, 1000).await));
        assert_eq!(a.repair(1, 1000).await, Answer::Repair(RepairAnswer::Repaired));
        assert_eq!(a.extend(1, 1000).await, extended(ExtendAnswer::Ok));
        let status = a.nodes.status();
        assert_eq!(status[0].state, keeperd::lock::redis::NodeState::Quarantined);
        assert!(status[0].quarantine_remaining.expect("it waits") > Duration::from_secs(50));
    }
}

sentence! {
    async fn a_node_restarted_with_old_data_does_not_vote_either(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::with(&server, Options { quarantine: Duration::from_millis(1500), ..Options::default() }).await;
        b.until_state(keeperd::lock::redis::NodeState::Serving).await;
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        assert_eq!(a.release(1).await, Answer::Released);
        let _: String = server.run(&["SAVE"]);
        assert_eq!(b.acquire(2, 2000).await, granted(2000), "which the saved data do not know");
        server.kill();
        b.until_lost().await;
        server.start_again();
        b.until_serving().await;
        assert_eq!(server.run::<String>(&["HGET", FENCE, "t"]), "1000");
        assert!(is_quarantined(&b.acquire(3, 3000).await));
        b.until_state(keeperd::lock::redis::NodeState::Serving).await;
        assert_eq!(b.acquire(3, 3000).await, granted(3000));
    }
}

sentence! {
    async fn a_marker_of_another_run_is_no_marker(server: Server) {
        // Long enough to be seen on a machine that stalls.
        let quarantine = Duration::from_millis(2000);
        let mut a = Host::with(&server, Options { quarantine, ..Options::default() }).await;
        a.until_state(keeperd::lock::redis::NodeState::Serving).await;
        let _: i64 = server.run(&["HSET", "keeperd:node", "run_id", "another"]);
        assert!(is_quarantined(&a.look().await));
        let _: i64 = server.run(&["HSET", "keeperd:node", "run_id", "another"]);
        assert!(is_quarantined(&a.acquire(1, 1000).await));
        a.until_state(keeperd::lock::redis::NodeState::Quarantined).await;
        a.until_state(keeperd::lock::redis::NodeState::Serving).await;
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
    }
}

sentence! {
    async fn connections_that_come_and_go_do_not_begin_the_quarantine_anew(server: Server) {
        let quarantine = Duration::from_secs(60);
        let first = Host::with(&server, Options { quarantine, ..Options::default() }).await;
        let until: String = server.run(&["HGET", "keeperd:node", "until"]);
        drop(first);
        let _second = Host::with(&server, Options { quarantine, ..Options::default() }).await;
        assert_eq!(server.run::<String>(&["HGET", "keeperd:node", "until"]), until);
        // A host with longer leases joins: the same start, the longer wait.
        let quarantine = Duration::from_secs(90);
        let _third = Host::with(&server, Options { quarantine, ..Options::default() }).await;
        let (before, after): (u64, u64) =
            (until.parse().expect("a number"), server.run::<u64>(&["HGET", "keeperd:node", "until"]));
        assert_eq!(after - before, 30_000_000);
    }
}

sentence! {
    async fn a_quarantine_written_before_the_clock_stepped_back_is_cut(server: Server) {
        let quarantine = Duration::from_millis(1000);
        let mut a = Host::with(&server, Options { quarantine, ..Options::default() }).await;
        a.until_state(keeperd::lock::redis::NodeState::Serving).await;
        let _: i64 = server.run(&["HSET", "keeperd:node", "until", "9000000000000000"]);
        let Answer::Acquire(AcquireAnswer::Quarantined { remaining }) = a.acquire(1, 1000).await else {
            panic!("quarantined")
        };
        assert!(remaining <= quarantine);
        let until: u64 = server.run(&["HGET", "keeperd:node", "until"]);
        assert!(until < clock::wall().as_micros() + 2_000_000);
    }
}

sentence! {
    async fn an_extension_tells_apart_kept_gone_and_foreign(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        assert_eq!(a.extend(1, 1000).await, extended(ExtendAnswer::Gone));
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        assert_eq!(a.extend(1, 1500).await, extended(ExtendAnswer::Ok));
        assert_eq!(server.run::<String>(&["HGET", FENCE, "t"]), "1500");
        let _: i64 = server.run(&["PEXPIRE", KEY, "5000"]);
        assert_eq!(a.check(1).await, extended(ExtendAnswer::Ok));
        assert!(server.run::<i64>(&["PTTL", KEY]) <= 5_000, "a check writes nothing");
        assert_eq!(a.extend(1, 1500).await, extended(ExtendAnswer::Ok));
        assert!(server.run::<i64>(&["PTTL", KEY]) > 5_000);

        let _: i64 = server.run(&["DEL", KEY]);
        assert_eq!(a.extend(1, 1500).await, extended(ExtendAnswer::Kept));
        assert_eq!(a.check(1).await, extended(ExtendAnswer::Kept));
        assert_eq!(server.run::<i64>(&["EXISTS", KEY]), 0, "an extension never creates");
        let _: i64 = server.run(&["DEL", SHADOW]);
        assert_eq!(a.extend(1, 1500).await, extended(ExtendAnswer::Gone));

        assert_eq!(b.acquire(2, 2000).await, granted(2000));
        assert_eq!(held(a.extend(1, 1500).await).holder.expect("a keeperd").host, "host-b");
        let _: i64 = server.run(&["DEL", KEY]);
        assert_eq!(held(a.check(1).await).value, Value(2).to_string().into_bytes(), "his lease lives on");
    }
}

sentence! {
    async fn without_its_marker_a_node_is_empty_unless_quarantine_is_off(server: Server) {
        let quarantine = Duration::from_secs(60);
        let mut careful = Host::with(&server, Options { quarantine, ..Options::default() }).await;
        assert_eq!(careful.extend(1, 1000).await, extended(ExtendAnswer::Empty));
        drop(careful);
        // The first request of a connection, so that it is not told that the marker is gone.
        let mut careful = Host::with(&server, Options { quarantine, ..Options::default() }).await;
        let _: i64 = server.run(&["DEL", "keeperd:node"]);
        assert_eq!(careful.check(1).await, extended(ExtendAnswer::Empty));
        let _: String = server.run(&["FLUSHALL"]);
        drop(careful);
        let mut careless = Host::serving(&server, "host-a").await;
        assert_eq!(careless.extend(1, 1000).await, extended(ExtendAnswer::Gone));
    }
}

sentence! {
    async fn repair_sets_again_what_is_lost_and_never_what_is_foreign(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        assert_eq!(a.repair(1, 1000).await, Answer::Repair(RepairAnswer::Repaired));
        assert_eq!(a.extend(1, 1000).await, extended(ExtendAnswer::Ok));
        let seen = held(b.look().await);
        assert_eq!((seen.holder.expect("a keeperd").host.as_str(), seen.token), ("host-a", FencingToken(1000)));
        assert_eq!(held(b.repair(2, 3000).await).value, Value(1).to_string().into_bytes());
        let _: i64 = server.run(&["DEL", KEY]);
        assert_eq!(held(b.repair(2, 3000).await).value, Value(1).to_string().into_bytes(), "nor over a shadow");
        assert_eq!(server.run::<String>(&["HGET", FENCE, "t"]), "1000");
    }
}

sentence! {
    async fn release_of_an_old_term_does_not_touch_the_successor(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        assert_eq!(a.release(1).await, Answer::Released);
        assert_eq!(b.acquire(2, 2000).await, granted(2000));
        assert_eq!(a.release(1).await, Answer::Released);
        assert_eq!(server.run::<String>(&["GET", SHADOW]), Value(2).to_string());
        assert_eq!(b.extend(2, 2000).await, extended(ExtendAnswer::Ok));
    }
}

sentence! {
    async fn a_token_is_raised_by_one_owner_and_never_lowered(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let accepted = Answer::Raise(RaiseAnswer::Accepted);
        let outrun = |token| Answer::Raise(RaiseAnswer::Outrun { token: FencingToken(token) });
        assert_eq!(a.raise(1, 1000).await, accepted);
        assert_eq!(a.raise(1, 1000).await, accepted, "again by the same owner");
        assert_eq!(a.raise(2, 1000).await, outrun(1000));
        assert_eq!(a.raise(2, 999).await, outrun(1000));
        assert_eq!(a.raise(2, 1001).await, accepted);
        assert_eq!(a.raise(1, 1000).await, outrun(1001));
        assert_eq!(a.acquire(3, 5).await, granted(1002));
        assert_eq!(server.run::<i64>(&["EXISTS", KEY]), 1);
    }
}

sentence! {
    async fn a_foreign_raise_does_not_make_a_holder_look_legacy(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        assert_eq!(b.raise(2, 2000).await, Answer::Raise(RaiseAnswer::Accepted));
        assert_eq!(held(b.look().await).holder.expect("a keeperd").host, "host-a");
        assert_eq!(held(b.acquire(2, 2000).await).holder.expect("a keeperd").host, "host-a");
    }
}

sentence! {
    async fn a_proposal_far_ahead_of_the_node_is_refused(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let hour = 3_600_000_000;
        let wall = clock::wall().as_micros();
        let Answer::Acquire(AcquireAnswer::Clock { node_wall, token }) = a.acquire(1, wall + 2 * hour).await
        else {
            panic!("too far ahead")
        };
        assert_eq!(token, FencingToken(0));
        assert!(node_wall.as_micros() >= wall && node_wall.as_micros() < wall + 60_000_000);
        assert_eq!(server.run::<i64>(&["EXISTS", KEY, FENCE]), 0);
        assert_eq!(a.acquire(1, wall + hour / 2).await, granted(wall + hour / 2));
    }
}

sentence! {
    async fn beyond_53_bits_no_token_is_granted_twice(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let _: i64 = server.run(&["HSET", FENCE, "t", &FencingToken::MAX.to_string()]);
        let answer = a.acquire(1, 1000).await;
        assert!(matches!(answer, Answer::Acquire(AcquireAnswer::Clock { token: FencingToken::MAX, .. })), "{answer:?}");
        assert_eq!(server.run::<i64>(&["EXISTS", KEY]), 0);
    }
}

sentence! {
    async fn what_comes_late_is_refused(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let (value, token) = (Value(1), FencingToken(1000));
        let late = Request::Acquire { value, proposal: token, deadline: past() };
        assert_eq!(a.ask(late).await, Answer::Acquire(AcquireAnswer::Late));
        let late = Request::Raise { value, token, deadline: past() };
        assert_eq!(a.ask(late).await, Answer::Raise(RaiseAnswer::Refused));
        let late = Request::Repair { value, token, deadline: past() };
        assert_eq!(a.ask(late).await, Answer::Repair(RepairAnswer::Refused));
        assert_eq!(server.run::<i64>(&["EXISTS", KEY, SHADOW, FENCE]), 0);
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        let late = Request::Extend { value, token, deadline: past() };
        assert_eq!(a.ask(late).await, Answer::Silent, "not renewed, and not lost either");
    }
}

sentence! {
    async fn a_lock_deleted_under_a_live_holder_is_grantable_to_nobody_else(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        let _: i64 = server.run(&["DEL", KEY]);
        for answer in [b.acquire(2, 2000).await, b.look().await] {
            let held = held(answer);
            assert_eq!(held.value, Value(1).to_string().into_bytes());
            assert!(held.remaining.expect("it expires") > Duration::from_secs(5));
        }
        assert_eq!(a.release(1).await, Answer::Released);
        assert_eq!(b.acquire(2, 2000).await, granted(2000), "a clean hand-over");
    }
}

sentence! {
    async fn scripts_survive_a_script_flush(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let _: String = server.run(&["SCRIPT", "FLUSH"]);
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        assert_eq!(a.extend(1, 1000).await, extended(ExtendAnswer::Ok));
    }
}

sentence! {
    async fn a_node_out_of_memory_still_extends(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        let _: String = server.run(&["CONFIG", "SET", "maxmemory", "1"]);
        assert_eq!(a.extend(1, 1000).await, extended(ExtendAnswer::Ok));
        assert_eq!(a.repair(1, 1000).await, Answer::Silent);
    }
}

sentence! {
    async fn a_longer_quarantine_counts_from_the_next_restart_and_a_shorter_one_never(server: Server) {
        let mut a = Host::with(&server, Options::default()).await;
        a.nodes.lengthen_quarantine(Duration::from_secs(60));
        a.nodes.lengthen_quarantine(Duration::from_secs(1));
        assert!(!is_quarantined(&a.look().await), "it votes already");
        server.kill();
        a.until_lost().await;
        server.start_again();
        a.until_serving().await;
        assert!(is_quarantined(&a.acquire(1, 1000).await));
        let remaining = a.nodes.status()[0].quarantine_remaining.expect("it waits");
        assert!(remaining > Duration::from_secs(50), "{remaining:?}");
    }
}
