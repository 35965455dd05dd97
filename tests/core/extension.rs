use crate::world::*;
use keeperd::core::election::{Action, GuardReport};
use keeperd::core::event::{Event, Reason, Role};
use keeperd::core::lease::FencingToken;
use keeperd::core::request::{
    AcquireAnswer, Answer, ExtendAnswer, FromNode, LookAnswer, NodeChange, RepairAnswer, Request,
};
use keeperd::core::restart::RestartRules;
use keeperd::core::time::Instant;
use std::time::Duration;

/// At the moment of the first extension, its requests out.
fn extending() -> World {
    let mut world = World::leading();
    world.pass(ms(1_000));
    let due = world.election.valid_until().expect("leading");
    assert_eq!(world.asked_kinds(), [(A, "extend"), (B, "extend"), (C, "extend")], "valid until {due:?}");
    world
}

fn foreign() -> ExtendAnswer {
    ExtendAnswer::Foreign(held(1, ms(1_900)))
}

#[test]
fn a_lease_is_extended_at_half_its_ttl_counted_from_before_sending() {
    let mut world = extending();
    let sent = world.at();
    world.pass(ms(40));
    world.extend(A, ExtendAnswer::Ok);
    assert_eq!(world.prolonged_to(), None, "one of three is no quorum");
    world.extend(B, ExtendAnswer::Ok);
    let deadlines = world.prolonged_to().expect("the guard is told first");
    assert_eq!(deadlines.kill_at.since(sent), ms(1_728));
}

#[test]
fn a_frozen_node_makes_no_round_slower_and_loses_nothing() {
    let mut world = World::leading();
    for _ in 0..20 {
        world.forget();
        world.pass(ms(1_000));
        for node in [A, B] {
            if world.asked.iter().any(|asked| asked.node == node) {
                world.extend(node, ExtendAnswer::Ok);
            }
        }
        assert!(world.prolonged_to().is_some());
        world.ack();
        assert_eq!(world.role(), Role::Leader);
    }
}

#[test]
fn an_unknown_round_is_repeated_until_stop_at_and_then_the_child_is_stopped() {
    let mut world = extending();
    let until = world.election.valid_until().expect("leading");
    world.pass(ms(390));
    assert!(world.asked.len() >= 9, "several rounds: {}", world.asked.len());
    assert_eq!(world.role(), Role::Leader);
    world.pass(ms(5));
    assert_eq!(world.role(), Role::SteppingDown);
    assert_eq!(world.last_reason(), Some(&Reason::LeaseEnding));
    assert!(world.has_stopped_politely() && !world.has_killed() && !world.has_released());
    world.ack();
    world.pass(ms(335));
    assert!(world.has_killed(), "at kill_at");
    assert!(world.at() < until);
}

#[test]
fn nothing_is_released_before_the_tree_is_dead() {
    let mut world = extending();
    world.pass(ms(395));
    world.ack();
    world.guard(GuardReport::Exited(keeperd::core::restart::Exit::Signal(15)));
    assert!(!world.has_released());
    world.guard(GuardReport::TreeDead { killed: 0, last: true });
    assert!(world.has_released());
}

#[test]
fn without_proof_of_death_nothing_is_ever_released_and_a_person_is_called() {
    let mut world = extending();
    world.pass(Duration::from_secs(60));
    assert!(!world.has_released());
    assert!(world.events.contains(&Event::TreeOutlivesLease));
    assert!(world.actions.contains(&Action::KillGuard), "the daemon does it itself");
}

#[test]
fn the_lock_is_extended_while_the_tree_is_being_killed() {
    let mut world = World::leading();
    world.guard(GuardReport::Lost("died"));
    assert_eq!(world.role(), Role::SteppingDown);
    world.forget();
    world.pass(ms(1_000));
    assert_eq!(world.asked_kinds(), [(A, "extend"), (B, "extend"), (C, "extend")]);
}

#[test]
fn a_lock_deleted_everywhere_is_a_polite_hand_over() {
    let mut world = extending();
    world.extend(A, ExtendAnswer::Kept);
    world.extend(B, ExtendAnswer::Kept);
    assert_eq!(world.last_reason(), Some(&Reason::Evicted));
    assert!(world.has_stopped_politely() && !world.has_killed());
    // It asks again every 20 ms, changing nothing.
    world.forget();
    world.pass(ms(20));
    assert_eq!(world.asked_kinds(), [(A, "check"), (B, "check"), (C, "check")]);
    // The first foreign value ends the politeness.
    world.extend(A, ExtendAnswer::Kept);
    world.extend(B, foreign());
    world.extend(C, ExtendAnswer::Kept);
    assert!(world.has_killed());
}

#[test]
fn an_evicted_holder_that_is_dead_releases_and_stays_out() {
    let mut world = extending();
    for node in NODES {
        world.extend(node, ExtendAnswer::Kept);
    }
    world.guard(GuardReport::TreeDead { killed: 0, last: true });
    assert!(world.has_released());
    for node in NODES {
        let place =
            world.asked.iter().position(|a| a.node == node && matches!(a.request, Request::Release { .. }));
        let asked = world.asked.remove(place.expect("released")).expect("found");
        world.answer(&asked, Answer::Released);
    }
    assert!(world.actions.contains(&Action::QuitGuard));
    assert_eq!(world.role(), Role::Standby);
    world.forget();
    world.pass(Duration::from_secs(5));
    assert!(world.asked_kinds().iter().all(|(_, kind)| *kind == "look"));
}

#[test]
fn a_foreign_majority_kills_at_once() {
    let mut world = extending();
    world.extend(A, foreign());
    world.extend(B, foreign());
    assert!(world.has_killed() && !world.has_released());
    assert_eq!(world.last_reason(), Some(&Reason::Foreign));
}

#[test]
fn gone_drops_that_nodes_deadline_at_once() {
    // Votes of A and B only; B's clock jumped, C is silent: C and B may be somebody else's.
    let mut world = World::leading();
    world.pass(ms(1_000));
    world.extend(A, ExtendAnswer::Ok);
    world.extend(B, ExtendAnswer::Ok);
    world.extend(C, ExtendAnswer::Gone);
    world.ack();
    world.forget();
    world.pass(ms(1_000));
    world.extend(A, ExtendAnswer::Ok);
    world.extend(B, ExtendAnswer::Gone);
    assert!(world.has_killed(), "the second largest deadline is gone with B's");
}

#[test]
fn a_smaller_validity_is_told_to_the_guard_as_well() {
    let mut world = extending();
    // Only A and B renew; C keeps its first vote.
    world.extend(A, ExtendAnswer::Ok);
    world.extend(B, ExtendAnswer::Ok);
    world.ack();
    let before = world.prolonged_to().expect("prolonged");
    world.forget();
    world.pass(ms(200));
    world.node(FromNode::Touched { node: A });
    world.extend(A, ExtendAnswer::Gone);
    let after = world.prolonged_to().expect("told at once");
    assert!(after.kill_at < before.kill_at, "B's and C's votes remain, and C's ends earlier");
    assert_eq!(world.role(), Role::Leader);
}

#[test]
fn what_a_minority_lost_is_repaired_after_a_quorum_said_ok() {
    let mut world = extending();
    world.extend(C, ExtendAnswer::Gone);
    world.extend(A, ExtendAnswer::Ok);
    assert!(world.asked_kinds().iter().all(|(_, kind)| *kind != "repair"));
    world.extend(B, ExtendAnswer::Ok);
    let repair = world.next_for(C);
    let Request::Repair { deadline, .. } = repair.request else {
        panic!("{:?} is no repair", repair.request)
    };
    assert!(deadline.since(world.at()) < ms(1_000), "before the old validity ends");
    world.answer(&repair, Answer::Repair(RepairAnswer::Repaired));
    assert_eq!(world.role(), Role::Leader);
}

#[test]
fn a_repair_refused_by_a_contender_is_tried_again_four_times_in_all() {
    let mut world = extending();
    world.extend(A, ExtendAnswer::Ok);
    world.extend(B, ExtendAnswer::Ok);
    world.extend(C, ExtendAnswer::Gone);
    let mut repairs = 0;
    while let Some(place) = world.asked.iter().position(|a| matches!(a.request, Request::Repair { .. })) {
        let asked = world.asked.remove(place).expect("found");
        repairs += 1;
        world.answer(&asked, Answer::Repair(RepairAnswer::Foreign(held(1, ms(5)))));
        world.pass(ms(51));
    }
    assert_eq!(repairs, 4);
}

#[test]
fn a_push_classifies_and_repairs_nothing() {
    let mut world = World::leading();
    world.node(FromNode::Touched { node: A });
    assert_eq!(world.asked_kinds(), [(A, "check"), (B, "check"), (C, "check")]);
    world.extend(A, ExtendAnswer::Kept);
    world.extend(B, ExtendAnswer::Ok);
    world.extend(C, ExtendAnswer::Ok);
    assert!(world.asked.is_empty() && world.actions.is_empty(), "{:?} {:?}", world.asked, world.actions);
}

#[test]
fn a_check_does_not_prolong_the_lease() {
    let mut world = World::leading();
    world.pass(ms(500));
    world.node(FromNode::Touched { node: A });
    let until = world.election.valid_until();
    for node in NODES {
        world.extend(node, ExtendAnswer::Ok);
    }
    assert_eq!(world.election.valid_until(), until);
}

/// With ttl 2 s.
const GRID: Duration = Duration::from_nanos(1_000_000_000 / 32);

/// A node is away for a tenth of a second.
fn comes_back(world: &mut World) {
    world.node(FromNode::Change { node: C, change: NodeChange::Lost });
    world.pass(ms(100));
    world.node(FromNode::Change { node: C, change: NodeChange::Serving });
}

/// The round that is asked for is renewed by all; when the next begins, to the millisecond.
fn next_round(world: &mut World) -> Instant {
    for node in NODES {
        world.extend(node, ExtendAnswer::Ok);
    }
    world.forget();
    while world.asked_kinds().is_empty() {
        world.pass(ms(1));
    }
    world.at()
}

fn is_on_the_grid(at: Instant) -> bool {
    at.since(at.floor(GRID)) <= ms(1)
}

#[test]
fn a_node_that_comes_back_is_extended_at_once() {
    let mut world = World::leading();
    comes_back(&mut world);
    assert_eq!(world.asked_kinds(), [(A, "extend"), (B, "extend"), (C, "extend")]);
}

#[test]
fn whenever_a_host_is_elected_it_extends_at_the_same_moments_of_its_clock() {
    for begins_ms in [1, 7, 20, 30] {
        let mut world = World::new(RestartRules::default());
        world.pass(ms(begins_ms));
        world.elect();
        let elected = world.at();
        world.child_runs();
        world.forget();
        while world.asked_kinds().is_empty() {
            world.pass(ms(1));
        }
        let first = world.at();
        let sooner = (elected + ms(1_001)).since(first);
        assert!(is_on_the_grid(first) && sooner <= GRID + ms(1), "{begins_ms} ms: {first:?}");
        let second = next_round(&mut world);
        assert!(is_on_the_grid(second) && second.since(first) >= ms(998), "{first:?} {second:?}");
    }
}

#[test]
fn holders_do_not_keep_step_after_a_node_has_come_back_for_all_of_them() {
    let mut world = World::leading();
    let mut pauses = Vec::new();
    for _ in 0..20 {
        comes_back(&mut world);
        let renewed = world.at();
        let next = next_round(&mut world);
        pauses.push(next.since(renewed));
        assert!(is_on_the_grid(next), "{next:?}");
        for node in NODES {
            world.extend(node, ExtendAnswer::Ok);
        }
        world.forget();
    }
    pauses.sort_unstable();
    assert!(pauses[0] >= ms(500) - GRID && pauses[19] <= ms(1_001), "{pauses:?}");
    assert!(pauses[19] - pauses[0] > ms(250), "{pauses:?}");
}

#[test]
fn a_node_that_comes_back_hastens_one_extension_and_no_later_one() {
    let mut world = World::leading();
    comes_back(&mut world);
    let at: Vec<Instant> = (0..5).map(|_| next_round(&mut world)).collect();
    for pair in at.windows(2) {
        let pause = pair[1].since(pair[0]);
        assert!(pause >= ms(998) && pause <= ms(1_001), "{at:?}");
    }
}

#[test]
fn a_node_that_comes_back_during_a_round_is_in_the_next() {
    let mut world = World::leading();
    world.node(FromNode::Change { node: C, change: NodeChange::Lost });
    world.pass(ms(1_000));
    world.node(FromNode::Change { node: C, change: NodeChange::Serving });
    world.extend(A, ExtendAnswer::Ok);
    world.extend(B, ExtendAnswer::Ok);
    world.forget();
    world.pass(ms(30));
    assert_eq!(world.asked_kinds(), [(A, "extend"), (B, "extend"), (C, "extend")]);
}

#[test]
fn a_term_won_with_a_minority_missing_repairs_it_at_once() {
    let mut world = World::new(RestartRules::default());
    for node in [A, B] {
        world.reply(node, Answer::Look(LookAnswer::Free { token: FencingToken(0) }));
    }
    for node in [A, B] {
        let asked = world.acquire_for(node);
        let Request::Acquire { proposal, .. } = asked.request else { unreachable!() };
        world.answer(&asked, Answer::Acquire(AcquireAnswer::Granted { token: proposal }));
    }
    assert_eq!(world.role(), Role::Leader);
    let late = world.acquire_for(C);
    world.answer(&late, Answer::Acquire(AcquireAnswer::Held(held(1, ms(1_900)))));
    world.forget();
    world.pass(ms(5));
    assert_eq!(world.asked_kinds(), [(C, "repair")]);
}

#[test]
fn a_late_grant_needs_no_repair() {
    let mut world = World::leading();
    world.pass(ms(999));
    assert!(world.asked.is_empty(), "{:?}", world.asked_kinds());
}

#[test]
fn an_answer_after_its_round_still_renews() {
    let mut world = extending();
    let first: Vec<Asked> = NODES.iter().map(|node| world.next_for(*node)).collect();
    world.pass(ms(150));
    for asked in &first[..2] {
        world.answer(asked, Answer::Extend(ExtendAnswer::Ok));
    }
    let sent = first[0].ticket.sent;
    assert_eq!(world.prolonged_to().expect("renewed").kill_at.since(sent), ms(1_728));
}

#[test]
fn a_node_that_comes_as_another_goes_keeps_the_lease() {
    let mut world = World::new(RestartRules::default());
    world.node(FromNode::Change { node: C, change: NodeChange::Lost });
    for node in [A, B] {
        world.reply(node, Answer::Look(LookAnswer::Free { token: FencingToken(0) }));
    }
    for node in [A, B] {
        let asked = world.acquire_for(node);
        let Request::Acquire { proposal, .. } = asked.request else { unreachable!() };
        world.answer(&asked, Answer::Acquire(AcquireAnswer::Granted { token: proposal }));
    }
    world.child_runs();
    world.forget();
    world.node(FromNode::Change { node: C, change: NodeChange::Serving });
    world.pass(ms(0));
    // Node A falls silent before it hears of the round that C's return began.
    world.extend(B, ExtendAnswer::Ok);
    world.extend(C, ExtendAnswer::Gone);
    world.forget();
    world.pass(ms(5));
    let repair = world.next_for(C);
    assert!(matches!(repair.request, Request::Repair { .. }), "{:?} is no repair", repair.request);
    world.answer(&repair, Answer::Repair(RepairAnswer::Repaired));
    world.node(FromNode::Change { node: A, change: NodeChange::Lost });
    world.forget();
    world.pass(ms(100));
    world.extend(B, ExtendAnswer::Ok);
    world.extend(C, ExtendAnswer::Ok);
    assert!(world.prolonged_to().is_some());
    assert_eq!(world.role(), Role::Leader);
}

#[test]
fn a_node_that_comes_while_a_quorum_is_silent_is_not_taken() {
    let mut world = World::leading();
    world.node(FromNode::Change { node: C, change: NodeChange::Lost });
    world.pass(ms(1_000));
    world.extend(A, ExtendAnswer::Ok);
    world.extend(B, ExtendAnswer::Ok);
    world.ack();
    for node in [A, B] {
        world.node(FromNode::Change { node, change: NodeChange::Lost });
    }
    world.pass(ms(1_010));
    world.forget();
    world.node(FromNode::Change { node: C, change: NodeChange::Serving });
    world.pass(ms(10));
    assert!(world.asked_kinds().iter().all(|(_, kind)| *kind != "repair"), "{:?}", world.asked_kinds());
}
