use crate::world::ms;
use keeperd::core::time::Instant;
use keeperd::core::timing::{Impossible, Timing};
use std::time::Duration;

fn line(ttl: Duration) -> (u128, u128, u128, u128) {
    let timing = Timing::new(ttl, Timing::default_stop_timeout(ttl)).expect("fits");
    let t0 = Instant::from_nanos(0);
    let until = timing.vote_ends(t0);
    let at = |instant: Instant| instant.since(t0).as_millis();
    (timing.extend_every().as_millis(), at(timing.stop_at(until)), at(timing.kill_at(until)), at(until))
}

#[test]
fn the_time_lines_of_the_design_come_out() {
    assert_eq!(line(Duration::from_secs(30)), (15_000, 24_098, 29_098, 29_698));
    assert_eq!(line(Duration::from_secs(10)), (5_000, 7_981, 9_648, 9_898));
    assert_eq!(line(Duration::from_secs(2)), (1_000, 1_394, 1_728, 1_978));
}

#[test]
fn an_instant_falls_back_to_the_grid_it_is_on_or_after() {
    let at = |ns| Instant::from_nanos(ns);
    let grid = Duration::from_nanos(7);
    assert_eq!([0, 6, 7, 13].map(|ns| at(ns).floor(grid)), [0, 0, 7, 7].map(at));
    assert_eq!(at(13).floor(Duration::ZERO), at(13));
    assert_eq!(at(13).floor(Duration::MAX), at(0));
}

#[test]
fn a_stop_timeout_that_does_not_fit_is_refused_with_the_largest_that_does() {
    let ttl = Duration::from_secs(2);
    let Err(Impossible::DoesNotFit { stop_timeout_max: Some(max), .. }) = Timing::new(ttl, ms(600)) else {
        panic!("600 ms do not fit into 2 s");
    };
    assert!(Timing::new(ttl, max).is_ok() && Timing::new(ttl, max + ms(1)).is_err(), "{max:?}");
    assert_eq!(max.as_millis(), 527);
}

#[test]
fn every_accepted_time_line_keeps_its_order() {
    for ttl_ms in (1_000..60_000).step_by(137) {
        for stop_ms in [0, 1, 50, 200, 1_000, 5_000] {
            let ttl = ms(ttl_ms);
            let Ok(timing) = Timing::new(ttl, ms(stop_ms)) else { continue };
            let t0 = Instant::from_nanos(5);
            let until = timing.vote_ends(t0);
            assert!(t0 + timing.start_within() < timing.stop_at(until));
            assert!(t0 + timing.extend_every() + timing.ack_timeout() < timing.stop_at(until));
            assert!(timing.stop_at(until) <= timing.kill_at(until) && timing.kill_at(until) < until);
            assert!(until < t0 + ttl);
            assert!(timing.attempt_max() < timing.start_within());
        }
    }
}
