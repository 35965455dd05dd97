//! The small parts of the core against what the design's tables say.

use super::cases;
use keeperd::core::backoff::Backoff;
use keeperd::core::lease::{FencingToken, Lease, NodeId, Quorum, Value};
use keeperd::core::request::{ExtendAnswer, Held, RoundId, Ticket};
use keeperd::core::restart::{Ending, Exit, RestartPolicy, RestartRules, Restarts, Verdict};
use keeperd::core::rng::{Rng, Seed};
use keeperd::core::round::{ExtensionOutcome, Round, judge};
use keeperd::core::time::Instant;
use keeperd::core::timing::{TTL_MAX, TTL_MIN, Timing};
use proptest::prelude::*;
use std::time::Duration;

const BEGIN: Instant = Instant::from_nanos(1_000_000_000_000);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// DESIGN.md 3, in milliseconds and without the production type.
fn fits(ttl: u64, stop: u64) -> bool {
    let (ttl, stop) = (ttl as f64, stop as f64);
    let node_timeout = (ttl / 20.0).min(500.0);
    let margin = (ttl / 50.0).max(250.0);
    let drift = ttl / 100.0 + 2.0;
    ttl / 2.0 + 2.0 * node_timeout + stop + margin + drift < ttl - 1e-6
}

fn timing() -> Timing {
    Timing::new(ms(7_000), ms(900)).expect("fits")
}

/// What a node has said, and how long its vote had run before the round.
#[derive(Clone, Debug)]
struct Heard {
    answer: Option<ExtendAnswer>,
    pending: bool,
    sent_ms: Option<u64>,
}

fn heard() -> impl Strategy<Value = Heard> {
    let held = || Held { value: vec![1], remaining: None, token: FencingToken(0), holder: None };
    let answer = prop_oneof![
        Just(None),
        Just(Some(ExtendAnswer::Ok)),
        Just(Some(ExtendAnswer::Kept)),
        Just(Some(ExtendAnswer::Empty)),
        Just(Some(ExtendAnswer::Gone)),
        Just(Some(ExtendAnswer::Foreign(held()))),
    ];
    (answer, any::<bool>(), prop::option::of(0_u64..8_000)).prop_map(|(answer, pending, sent_ms)| Heard {
        answer,
        pending,
        sent_ms,
    })
}

fn lease_of(nodes: &[Heard], quorum: Quorum) -> Lease {
    let mut lease = Lease::new(Value(1), FencingToken(1), quorum);
    for (id, node) in (0..).zip(nodes) {
        let gone = matches!(node.answer, Some(ExtendAnswer::Gone | ExtendAnswer::Foreign(_)));
        if let Some(sent) = node.sent_ms.filter(|_| node.pending || !gone) {
            lease.add_vote(NodeId(id), BEGIN + ms(sent), &timing());
        }
    }
    lease
}

fn round_of(nodes: &[Heard], quorum: Quorum) -> Round<ExtendAnswer> {
    let ticket = Ticket { round: RoundId(1), sent: BEGIN };
    let mut round = Round::open(ticket, BEGIN + ms(500), quorum, |_| true);
    for (id, node) in (0..).zip(nodes).filter(|(_, node)| !node.pending) {
        match &node.answer {
            Some(answer) => round.record(NodeId(id), answer.clone()),
            None => round.silence(NodeId(id)),
        }
    }
    round
}

/// The table of DESIGN.md 3, read from the top, on counted classes. Everybody has spoken or is silent.
fn reference(nodes: &[Heard], now_ms: u64) -> ExtensionOutcome {
    let quorum = nodes.len() / 2 + 1;
    let count = |class: fn(&ExtendAnswer) -> bool| {
        nodes.iter().filter(|node| node.answer.as_ref().is_some_and(class)).count()
    };
    let ok = count(|a| matches!(a, ExtendAnswer::Ok));
    let soft = count(|a| matches!(a, ExtendAnswer::Kept | ExtendAnswer::Empty));
    let foreign = count(|a| matches!(a, ExtendAnswer::Foreign(_)));
    let silent = nodes.iter().filter(|node| node.answer.is_none()).count();
    let end = |sent: u64| sent + 7_000 - 72;
    let lives = |node: &&Heard| node.sent_ms.is_some_and(|sent| end(sent) > now_ms);
    let silent_in_time = nodes.iter().filter(|node| node.answer.is_none()).filter(lives).count();
    let gone = |node: &Heard| matches!(node.answer, Some(ExtendAnswer::Gone | ExtendAnswer::Foreign(_)));
    let votes_in_time = nodes.iter().filter(|node| !gone(node)).filter(lives).count();
    if ok >= quorum {
        ExtensionOutcome::Renewed
    } else if votes_in_time < quorum {
        ExtensionOutcome::Foreign
    } else if ok + silent >= quorum {
        ExtensionOutcome::Unknown
    } else if foreign == 0 && ok + soft + silent_in_time >= quorum {
        ExtensionOutcome::Evicted
    } else {
        ExtensionOutcome::Foreign
    }
}

fn nodes() -> impl Strategy<Value = Vec<Heard>> {
    prop_oneof![Just(1_usize), Just(3), Just(5), Just(9)].prop_flat_map(|n| prop::collection::vec(heard(), n))
}

fn quorum_of(nodes: &[Heard]) -> Quorum {
    Quorum::of(u8::try_from(nodes.len()).expect("at most nine"))
}

proptest! {
    #![proptest_config(cases("tests/properties/parts.txt"))]

    #[test]
    fn a_time_line_is_accepted_exactly_when_it_fits(ttl in 1_u64..4_000_000, stop in 0_u64..2_000_000, part in 0_u64..=100) {
        let (ttl, stop) = (ttl.min(3_700_000), if part < 60 { ttl * part / 100 } else { stop });
        let made = Timing::new(ms(ttl), ms(stop));
        let in_range = ms(ttl) >= TTL_MIN && ms(ttl) <= TTL_MAX;
        prop_assert_eq!(made.is_ok(), in_range && fits(ttl, stop), "{:?}", made);
        let Ok(timing) = made else { return Ok(()) };
        let until = timing.vote_ends(BEGIN);
        let deadlines = timing.deadlines(until);
        prop_assert!(until < BEGIN + timing.ttl());
        prop_assert!(BEGIN + timing.start_within() < deadlines.stop_at);
        prop_assert!(BEGIN + timing.extend_every() + timing.ack_timeout() < deadlines.stop_at);
        prop_assert!(deadlines.stop_at <= deadlines.kill_at && deadlines.kill_at + ms(250) <= until);
        prop_assert!(timing.attempt_max() < timing.start_within());
    }

    #[test]
    fn a_finished_round_is_judged_as_the_table_says(mut nodes in nodes(), now_ms in 0_u64..16_000) {
        nodes.iter_mut().for_each(|node| node.pending = false);
        let quorum = quorum_of(&nodes);
        let outcome = judge(&round_of(&nodes, quorum), &lease_of(&nodes, quorum), quorum, BEGIN + ms(now_ms));
        prop_assert_eq!(outcome, Some(reference(&nodes, now_ms)));
    }

    /// An early judgement may be harsher later, never milder.
    #[test]
    fn an_early_judgement_is_not_overtaken(nodes in nodes(), now_ms in 0_u64..16_000) {
        let quorum = quorum_of(&nodes);
        let early = judge(&round_of(&nodes, quorum), &lease_of(&nodes, quorum), quorum, BEGIN + ms(now_ms));
        let late = reference(&nodes, now_ms);
        let pending = nodes.iter().any(|node| node.pending);
        match early {
            None => prop_assert!(pending),
            Some(ExtensionOutcome::Renewed) => prop_assert_eq!(late, ExtensionOutcome::Renewed),
            Some(ExtensionOutcome::Unknown) => prop_assert!(!pending),
            Some(ExtensionOutcome::Evicted) => {
                prop_assert!(matches!(late, ExtensionOutcome::Evicted | ExtensionOutcome::Foreign));
            }
            // Too late for anything but a quorum of late yeses.
            Some(ExtensionOutcome::Foreign) => prop_assert!(late != ExtensionOutcome::Unknown && late != ExtensionOutcome::Evicted),
        }
    }

    #[test]
    fn a_lease_ends_with_the_qth_largest_vote(sent in prop::collection::vec(prop::option::of(0_u64..10_000), 5)) {
        let mut lease = Lease::new(Value(1), FencingToken(1), Quorum::of(5));
        let mut ends = Vec::new();
        for (id, sent) in (0..).zip(&sent) {
            if let Some(sent) = sent {
                lease.add_vote(NodeId(id), BEGIN + ms(*sent), &timing());
                lease.add_vote(NodeId(id), BEGIN + ms(*sent / 2), &timing());
                ends.push(BEGIN + ms(*sent + 7_000 - 72));
            }
        }
        ends.sort_unstable();
        ends.reverse();
        prop_assert_eq!(lease.valid_until(), ends.get(2).copied());
    }

    #[test]
    fn a_delay_doubles_up_to_its_limit(first in 1_u64..5_000, factor in 1_u64..200, calls in 1_usize..80, seed in any::<u128>()) {
        let (first, max) = (ms(first), ms(first * factor));
        let (mut plain, mut full, mut slight) = (Backoff::new(first, max), Backoff::new(first, max), Backoff::new(first, max));
        let mut rng = Rng::new(Seed(seed));
        let mut expected = first;
        for _ in 0..calls {
            let delay = plain.next_delay();
            prop_assert_eq!(delay, expected.min(max));
            prop_assert!(full.next_full(&mut rng) < delay);
            let jittered = slight.next_slight(&mut rng);
            prop_assert!(jittered <= delay && jittered >= delay / 4 * 3);
            expected = (expected * 2).min(max);
        }
        plain.reset();
        prop_assert_eq!(plain.next_delay(), first);
    }

    #[test]
    fn a_keeper_is_given_up_at_the_limit_and_not_before(
        exits in prop::collection::vec((0_i32..3, 0_u64..200_000, 0_u64..120_000, 0_u8..8), 1..60), policy in 0_u8..3, limit in 1_u32..6,
    ) {
        let policy = [RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never][usize::from(policy)];
        let rules = RestartRules { policy, give_up_after: limit, ..RestartRules::default() };
        let (delay, delay_max, window) = (rules.delay, rules.delay_max, rules.give_up_window);
        let mut restarts = Restarts::new(rules);
        let (mut now, mut rng, mut failures) = (BEGIN, Rng::new(Seed(1)), Vec::new());
        for (code, pause, ran, why) in exits {
            now = now + ms(pause);
            let ending = [Ending::Asked, Ending::Unhealthy].get(usize::from(why)).copied().unwrap_or(Ending::ByItself);
            let verdict = restarts.decide(now, ending, Exit::Code(code), ms(ran), &mut rng);
            if ending == Ending::Asked {
                prop_assert_eq!(verdict, Verdict::Restart { at: now });
                continue;
            }
            if policy == RestartPolicy::Never && ending == Ending::Unhealthy {
                prop_assert_eq!(verdict, Verdict::GiveUp { failures: 1 }, "it was not done, and is done elsewhere");
                continue;
            }
            let (success, before) = (code == 0 && ending == Ending::ByItself, now);
            let wanted = policy == RestartPolicy::Always || (policy == RestartPolicy::OnFailure && !success);
            if wanted && !success {
                failures.push(before);
            }
            let recent = failures.iter().filter(|at| now.since(**at) <= window).count();
            match verdict {
                Verdict::Finished => prop_assert!(!wanted),
                Verdict::GiveUp { failures: counted } => {
                    prop_assert!(!success && wanted && counted == limit && recent == limit as usize);
                    failures.clear();
                }
                Verdict::Restart { at } => {
                    prop_assert!(wanted && (success || recent < limit as usize));
                    prop_assert!(at >= now + delay / 4 * 3 && at <= now + delay_max);
                }
            }
        }
    }
}
