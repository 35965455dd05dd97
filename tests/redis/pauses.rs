//! What an operator does to one lock: a pause for all hosts, and a lock taken away.

use super::host::*;
use super::server::{Server, Version};
use keeperd::core::request::{AcquireAnswer, Answer, ExtendAnswer, Held, LookAnswer, Pause, RepairAnswer};
use keeperd::core::time::WallTime;
use keeperd::lock::redis::{Evicted, Operator, Sight};
use std::time::Duration;

fn operator(server: &Server) -> Operator {
    Operator::new(&plain(&[server.url()]), KEY)
}

fn by(host: &str) -> Pause {
    Pause { host: host.to_owned(), since: WallTime::from_micros(1_700_000_000_000_001) }
}

async fn pause(server: &Server, pause: Option<Pause>) -> Option<Pause> {
    operator(server).pause(pause.as_ref()).await.remove(0).expect("a running server")
}

async fn sight(server: &Server) -> Sight {
    operator(server).look().await.remove(0).expect("a running server")
}

async fn evict(server: &Server, value: &[u8]) -> Evicted {
    let done = operator(server).evict(&[Some(value.to_vec())]).await.remove(0);
    done.expect("a running server").expect("asked for")
}

fn value(number: u128) -> Vec<u8> {
    format!("{number:032x}").into_bytes()
}

fn extended() -> Answer {
    Answer::Extend(ExtendAnswer::Ok)
}

fn waits(evicted: &Evicted) -> Duration {
    match evicted {
        Evicted::Gone { waits } => *waits,
        Evicted::Changed => panic!("the value stood there"),
    }
}

sentence! {
    async fn a_paused_lock_is_granted_to_nobody_and_says_who_paused_it(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        assert_eq!(pause(&server, Some(by("deploy"))).await, Some(by("deploy")));
        assert_eq!(a.look().await, Answer::Look(LookAnswer::Paused { pause: by("deploy"), held: None }));
        assert_eq!(a.acquire(1, 1000).await, Answer::Acquire(AcquireAnswer::Paused(by("deploy"))));
        assert_eq!(server.run::<Option<String>>(&["GET", KEY]), None);
        assert_eq!(pause(&server, None).await, Some(by("deploy")));
        assert!(matches!(a.acquire(1, 1000).await, Answer::Acquire(AcquireAnswer::Granted { .. })));
    }
}

sentence! {
    async fn an_older_pause_stays_and_what_cannot_be_read_is_one_too(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        pause(&server, Some(by("first"))).await;
        assert_eq!(pause(&server, Some(by("second"))).await, Some(by("first")));
        let _: i64 = server.run(&["HSET", FENCE, "p", "by hand"]);
        let by_hand = Pause { host: "hand".into(), since: WallTime::from_micros(0) };
        assert_eq!(a.acquire(1, 1000).await, Answer::Acquire(AcquireAnswer::Paused(by_hand)));
        let _: i64 = server.run(&["HSET", FENCE, "p", &format!("{} x", u64::MAX)]);
        let Answer::Look(LookAnswer::Paused { pause, .. }) = a.look().await else { panic!("it is paused") };
        assert!(pause.since.as_micros() < 253_402_300_800_000_000, "what is shown must be a date");
        let _: i64 = server.run(&["HSET", FENCE, "p", &"x".repeat(5_000)]);
        let Answer::Look(LookAnswer::Paused { pause, .. }) = a.look().await else { panic!("it is paused") };
        assert_eq!(pause.host.len(), 255);
    }
}

sentence! {
    async fn the_holder_is_told_at_once_keeps_its_lease_and_hears_it_with_each_answer(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        a.acquire(1, 1000).await;
        assert_eq!((a.check(1).await, a.pause.take()), (extended(), None));
        let left: i64 = server.run(&["PTTL", KEY]);
        pause(&server, Some(by("deploy"))).await;
        a.until_touched().await;
        let still: i64 = server.run(&["PTTL", KEY]);
        assert!(still > 0 && still <= left, "{still} of {left} ms: the pause has moved its end");
        assert_eq!((a.check(1).await, a.pause.take()), (extended(), Some(by("deploy"))));
        assert_eq!((a.extend(1, 1000).await, a.pause.take()), (extended(), Some(by("deploy"))));
        pause(&server, None).await;
        assert_eq!((a.extend(1, 1000).await, a.pause.take()), (extended(), None));
    }
}

sentence! {
    async fn a_holder_that_has_not_yet_extended_is_told_too(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        a.acquire(1, 1000).await;
        assert!(!a.touched_meanwhile().await);
        pause(&server, Some(by("deploy"))).await;
        a.until_touched().await;
    }
}

sentence! {
    async fn a_standby_is_told_when_the_pause_begins_and_when_it_ends(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        a.acquire(1, 1000).await;
        b.look().await;
        pause(&server, Some(by("deploy"))).await;
        b.until_touched().await;
        let Answer::Look(LookAnswer::Paused { held: Some(Held { holder: Some(who), .. }), .. }) = b.look().await else {
            panic!("paused, and still held");
        };
        assert_eq!(who.host, "host-a");
        a.release(1).await;
        b.until_touched().await;
        b.look().await;
        pause(&server, None).await;
        b.until_touched().await;
        assert!(matches!(b.look().await, Answer::Look(LookAnswer::Free { .. })));
    }
}

sentence! {
    async fn a_holder_whose_lock_is_taken_hears_kept_and_nobody_else_is_granted_it_meanwhile(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        a.acquire(1, 1000).await;
        let token: String = server.run(&["HGET", FENCE, "t"]);
        let left: u64 = server.run(&["PTTL", SHADOW]);
        let gone = evict(&server, &value(1)).await;
        assert!(waits(&gone) > Duration::ZERO && waits(&gone) <= Duration::from_millis(left));
        a.until_touched().await;
        assert_eq!(a.extend(1, 1000).await, Answer::Extend(ExtendAnswer::Kept));
        assert_eq!(a.repair(1, 1000).await, Answer::Repair(RepairAnswer::Refused));
        assert!(matches!(b.acquire(2, 2000).await, Answer::Acquire(AcquireAnswer::Held(_))));
        assert_eq!(server.run::<String>(&["HGET", FENCE, "t"]), token, "tokens go on from here");
        a.release(1).await;
        assert!(matches!(b.acquire(2, 2000).await, Answer::Acquire(AcquireAnswer::Granted { .. })));
    }
}

sentence! {
    async fn only_the_value_that_was_seen_is_taken(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        assert_eq!(evict(&server, &value(1)).await, Evicted::Changed);
        a.acquire(2, 1000).await;
        assert_eq!(evict(&server, &value(1)).await, Evicted::Changed);
        assert_eq!(a.extend(2, 1000).await, extended());
    }
}

sentence! {
    async fn a_key_that_never_expires_is_freed_at_once_if_no_keeperd_set_it(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let _: String = server.run(&["SET", KEY, "by hand"]);
        let held = sight(&server).await.held.expect("it is there");
        assert_eq!((held.remaining, held.holder), (None, None));
        assert_eq!(waits(&evict(&server, b"by hand").await), Duration::ZERO);
        assert!(matches!(a.acquire(1, 1000).await, Answer::Acquire(AcquireAnswer::Granted { .. })));
    }
}

sentence! {
    async fn a_lease_outlives_its_key_also_when_somebody_took_its_end_or_its_shadow(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        for by_hand in [&["PERSIST", SHADOW][..], &["DEL", SHADOW]] {
            a.acquire(1, 1000).await;
            let _: i64 = server.run(&["PERSIST", KEY]);
            let _: i64 = server.run(by_hand);
            let gone = evict(&server, &value(1)).await;
            assert!(waits(&gone) > Duration::from_secs(1) && waits(&gone) <= Duration::from_secs(30), "{gone:?}");
            assert!(matches!(b.acquire(2, 2000).await, Answer::Acquire(AcquireAnswer::Held(_))));
            let _: i64 = server.run(&["DEL", SHADOW, FENCE]);
        }
    }
}

sentence! {
    async fn a_value_that_only_a_keeperd_writes_is_its_lease_also_when_nothing_else_is_left_of_it(server: Server) {
        let mut b = Host::serving(&server, "host-b").await;
        let _: String = server.run(&["SET", KEY, &format!("{:032x}", 1)]);
        assert!(waits(&evict(&server, &value(1)).await) > Duration::from_secs(20));
        assert!(matches!(b.acquire(2, 2000).await, Answer::Acquire(AcquireAnswer::Held(_))));
    }
}

sentence! {
    async fn a_key_of_another_type_is_removed_like_a_value(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let _: i64 = server.run(&["HSET", KEY, "another", "library"]);
        let held = sight(&server).await.held.expect("it is there");
        assert_eq!(waits(&evict(&server, &held.value).await), Duration::ZERO);
        assert!(matches!(a.acquire(1, 1000).await, Answer::Acquire(AcquireAnswer::Granted { .. })));
    }
}

sentence! {
    async fn what_another_client_believes_in_keeps_keeperds_away_as_long(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let _: String = server.run(&["SET", KEY, "npm", "PX", "60000"]);
        let gone = evict(&server, b"npm").await;
        assert!(waits(&gone) > Duration::from_secs(30), "{gone:?}");
        assert!(matches!(a.acquire(1, 1000).await, Answer::Acquire(AcquireAnswer::Held(_))));
    }
}
