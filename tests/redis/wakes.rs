//! Who is told of what, and above all who is not.

use super::host::*;
use super::server::{Server, Version};
use keeperd::core::lease::FencingToken;
use keeperd::core::request::*;
use keeperd::lock::redis::NodeState;
use std::time::Duration;

fn granted(token: u64) -> Answer {
    Answer::Acquire(AcquireAnswer::Granted { token: FencingToken(token) })
}

sentence! {
    async fn a_standby_sleeps_through_extensions_and_wakes_on_release(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        assert!(matches!(b.look().await, Answer::Look(LookAnswer::Held(_))));
        for _ in 0..3 {
            assert_eq!(a.extend(1, 1000).await, Answer::Extend(ExtendAnswer::Ok));
        }
        assert!(!b.touched_meanwhile().await);
        assert_eq!(a.release(1).await, Answer::Released);
        b.until_touched().await;
        assert!(matches!(b.look().await, Answer::Look(LookAnswer::Free { .. })));
        assert_eq!(a.release(1).await, Answer::Released);
        assert!(!b.touched_meanwhile().await, "a repeated release is no news");
    }
}

sentence! {
    async fn a_standby_that_has_seen_the_holder_reads_little_and_misses_nothing(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        let first = b.look().await;
        let before = server.calls("pttl");
        for _ in 0..3 {
            assert_eq!(a.extend(1, 1000).await, Answer::Extend(ExtendAnswer::Ok));
            let (Answer::Look(LookAnswer::Held(seen)), Answer::Look(LookAnswer::Held(first))) = (b.look().await, &first) else {
                panic!("nobody has it")
            };
            assert_eq!((&seen.value, &seen.holder, seen.token), (&first.value, &first.holder, first.token));
        }
        assert_eq!(server.calls("pttl") - before, 3, "of the lock alone, and not of its shadow");
        // A larger token in the fence is seen although the holder is the same.
        assert_eq!(a.extend(1, 2000).await, Answer::Extend(ExtendAnswer::Ok));
        b.until_touched().await;
        assert!(matches!(b.look().await, Answer::Look(LookAnswer::Held(held)) if held.token == FencingToken(2000)));
        // So is a pause.
        let _: i64 = server.run(&["HSET", FENCE, "p", "1 host-c"]);
        b.until_touched().await;
        assert!(matches!(b.look().await, Answer::Look(LookAnswer::Paused { held: Some(_), .. })));
        let _: i64 = server.run(&["HDEL", FENCE, "p"]);
        b.until_touched().await;
        assert!(matches!(b.look().await, Answer::Look(LookAnswer::Held(_))));
        // Deleted by hand, the shadow keeps it.
        let _: i64 = server.run(&["DEL", KEY]);
        assert!(matches!(b.look().await, Answer::Look(LookAnswer::Held(held)) if held.holder.is_some()));
        assert_eq!(a.release(1).await, Answer::Released);
        b.until_touched().await;
        assert!(matches!(b.look().await, Answer::Look(LookAnswer::Free { .. })));
    }
}

sentence! {
    async fn a_marker_deleted_under_quiet_standbys_is_missed(server: Server) {
        // Long enough to be seen on a machine that stalls.
        let quarantine = Duration::from_secs(3);
        let mut a = Host::with(&server, Options { quarantine, ..Options::default() }).await;
        a.until_state(NodeState::Serving).await;
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        let _: i64 = server.run(&["DEL", "keeperd:node"]);
        a.until_state(NodeState::Quarantined).await;
    }
}

sentence! {
    async fn a_refused_contender_sleeps_through_extensions_too(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        assert!(matches!(b.look().await, Answer::Look(LookAnswer::Free { .. })));
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        b.until_touched().await;
        assert!(matches!(b.acquire(2, 2000).await, Answer::Acquire(AcquireAnswer::Held(_))));
        assert_eq!(b.release(2).await, Answer::Released);
        assert!(!b.touched_meanwhile().await);
        for _ in 0..3 {
            assert_eq!(a.extend(1, 1000).await, Answer::Extend(ExtendAnswer::Ok));
        }
        assert!(!b.touched_meanwhile().await);
        // Its own release wrote the fence; it watches it all the same.
        assert_eq!(a.release(1).await, Answer::Released);
        b.until_touched().await;
    }
}

sentence! {
    async fn a_standby_wakes_when_a_legacy_holder_deletes_or_loses_its_key(server: Server) {
        let mut b = Host::serving(&server, "host-b").await;
        let _: String = server.run(&["SET", KEY, "legacy", "NX", "PX", "70000"]);
        assert!(matches!(b.look().await, Answer::Look(LookAnswer::Held(_))));
        assert!(!b.touched_meanwhile().await);
        let _: i64 = server.run(&["DEL", KEY]);
        b.until_touched().await;
        let _: String = server.run(&["SET", KEY, "legacy", "NX", "PX", "1500"]);
        assert!(matches!(b.look().await, Answer::Look(LookAnswer::Held(_))));
        b.until_touched().await;
    }
}

sentence! {
    async fn a_holder_wakes_on_a_foreign_delete_and_not_on_its_own_writes(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        assert!(!a.touched_meanwhile().await);
        let _: i64 = server.run(&["DEL", KEY]);
        a.until_touched().await;
        assert_eq!(a.check(1).await, Answer::Extend(ExtendAnswer::Kept));

        assert_eq!(a.repair(1, 1000).await, Answer::Repair(RepairAnswer::Repaired));
        assert!(!a.touched_meanwhile().await);
        let _: i64 = server.run(&["DEL", KEY]);
        a.until_touched().await;
        assert_eq!(a.repair(1, 1000).await, Answer::Repair(RepairAnswer::Repaired));
        for _ in 0..3 {
            assert_eq!(a.extend(1, 1000).await, Answer::Extend(ExtendAnswer::Ok));
            assert!(!a.touched_meanwhile().await);
        }
        let _: i64 = server.run(&["DEL", KEY]);
        a.until_touched().await;

        // A check arms the watch again, too.
        assert_eq!(a.check(1).await, Answer::Extend(ExtendAnswer::Kept));
        let _: String = server.run(&["SET", KEY, "thief", "PX", "60000"]);
        a.until_touched().await;
    }
}

sentence! {
    async fn keepers_of_one_daemon_on_one_lock_wake_each_other(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let (sender, mut other) = tokio::sync::mpsc::channel(16);
        let claim = keeperd::lock::Claim {
            key: KEY.to_owned(),
            ttl: TTL,
            node_timeout: LONG,
        };
        a.nodes.register(claim, sender);
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
        let serving = FromNode::Change { node: ONE, change: NodeChange::Serving };
        assert_eq!(other.recv().await, Some(serving.into()));
        assert_eq!(a.release(1).await, Answer::Released);
        assert_eq!(other.recv().await, Some(FromNode::Touched { node: ONE }.into()));
    }
}

sentence! {
    async fn a_flush_wakes_everybody(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        let _: String = server.run(&["FLUSHALL"]);
        a.until_touched().await;
        b.until_touched().await;
        // The marker is written anew without a reconnection.
        while server.run::<i64>(&["EXISTS", "keeperd:node"]) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(a.acquire(1, 1000).await, granted(1000));
    }
}
