//! A preferred host's bid for a lock, and how the holder hears of it.

use super::host::*;
use super::server::{Server, Version};
use keeperd::core::preference::{Bid, Priority};
use keeperd::core::request::{Answer, ExtendAnswer};

fn bid(host: &str, priority: i32) -> Option<Bid> {
    Some(Bid { host: host.to_owned(), priority: Priority(priority) })
}

fn extended() -> Answer {
    Answer::Extend(ExtendAnswer::Ok)
}

sentence! {
    async fn the_holder_hears_of_a_bid_with_its_next_extension_and_of_none_without(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        a.acquire(1, 1000).await;
        assert_eq!((a.extend(1, 1000).await, a.bid.take()), (extended(), None));
        let began = keeperd::clock::boot();
        assert_eq!(b.bid(-7).await, Answer::Noted);
        assert_eq!((a.extend(1, 1000).await, a.bid.take()), (extended(), bid("host-b", -7)));
        // A bid expires unless it is renewed: between two looks of a standby, and before a third.
        let left = std::time::Duration::from_millis(server.run(&["PTTL", BID]));
        let whole = TTL * 3 / 4;
        let since = keeperd::clock::boot().since(began) + std::time::Duration::from_millis(1);
        assert!(left <= whole && left + since >= whole, "{left:?}");
        let _: i64 = server.run(&["DEL", BID]);
        assert_eq!((a.extend(1, 1000).await, a.bid.take()), (extended(), None));
    }
}

sentence! {
    async fn a_bid_touches_nothing_that_a_vote_is_made_of(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        let mut c = Host::serving(&server, "host-c").await;
        a.acquire(1, 1000).await;
        c.look().await;
        let dump = || [KEY, SHADOW, FENCE].map(|key| server.run::<Vec<u8>>(&["DUMP", key]));
        let before = dump();
        b.bid(10).await;
        assert_eq!(dump(), before);
        assert!(!a.touched_meanwhile().await && !c.touched_meanwhile().await, "it wakes nobody");
        assert_eq!(a.extend(1, 1000).await, extended());
        b.bid(11).await;
        assert!(!a.touched_meanwhile().await, "nor a holder that has seen one");
    }
}

sentence! {
    async fn the_highest_bid_stands_and_of_equals_the_first_by_name(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        let mut c = Host::serving(&server, "host-c").await;
        a.acquire(1, 1000).await;
        for (bidder, priority, stands) in [
            ("c", 5, ("host-c", 5)),
            ("b", 5, ("host-b", 5)),
            ("c", 5, ("host-b", 5)),
            ("c", 6, ("host-c", 6)),
            ("b", 5, ("host-c", 6)),
            ("c", 2, ("host-c", 2)),
        ] {
            let bidder = if bidder == "b" { &mut b } else { &mut c };
            assert_eq!(bidder.bid(priority).await, Answer::Noted);
            a.extend(1, 1000).await;
            assert_eq!(a.bid.take(), bid(stands.0, stands.1), "after {priority}");
        }
    }
}

sentence! {
    async fn what_is_no_bid_is_nobodys_and_can_be_outbid(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        a.acquire(1, 1000).await;
        let long = "9 ".to_owned() + &"h".repeat(300);
        for nonsense in ["", "10", "x host", "10 ", "99999999999999999999 host", &long, "1e3 host"] {
            let _: String = server.run(&["SET", BID, nonsense]);
            assert_eq!((a.extend(1, 1000).await, a.bid.take()), (extended(), None), "{nonsense:?}");
        }
        let _: i64 = server.run(&["DEL", BID]);
        let _: i64 = server.run(&["LPUSH", BID, "another library"]);
        assert_eq!((a.extend(1, 1000).await, a.bid.take()), (extended(), None));
        assert_eq!(b.bid(10).await, Answer::Noted);
        assert_eq!((a.extend(1, 1000).await, a.bid.take()), (extended(), bid("host-b", 10)));
    }
}

sentence! {
    async fn a_check_and_a_foreign_lock_say_nothing_of_bids(server: Server) {
        let mut a = Host::serving(&server, "host-a").await;
        let mut b = Host::serving(&server, "host-b").await;
        a.acquire(1, 1000).await;
        b.bid(10).await;
        assert_eq!((a.check(1).await, a.bid.take()), (extended(), None));
        assert!(matches!(b.extend(2, 1000).await, Answer::Extend(ExtendAnswer::Foreign(_))));
        assert_eq!(b.bid.take(), None);
    }
}
