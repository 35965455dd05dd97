//! What a review by fresh eyes found: each test states what must hold, and failed before it was mended.
use crate::world::*;
use keeperd::core::election::{Action, GuardReport};
use keeperd::core::event::{Command, Event, Role};
use keeperd::core::lease::FencingToken;
use keeperd::core::request::{
    AcquireAnswer, Answer, ExtendAnswer, FromNode, LookAnswer, NodeChange, RaiseAnswer, RepairAnswer, Request,
};
use keeperd::core::restart::RestartRules;
use keeperd::core::time::WallTime;
use std::time::Duration;

fn look_free(world: &mut World, nodes: [keeperd::core::lease::NodeId; 2]) {
    for node in nodes {
        world.reply(node, Answer::Look(LookAnswer::Free { token: FencingToken(0) }));
    }
    assert_eq!(world.role(), Role::Candidate);
}

/// A's yes to the first attempt arrives in the second: it was released meanwhile, so it is nobody's vote.
#[test]
fn a_grant_of_an_earlier_attempt_is_no_vote_of_this_one() {
    let mut world = World::new(RestartRules::default());
    look_free(&mut world, [A, B]);
    let late = world.acquire_for(A);
    for node in [B, C] {
        let asked = world.acquire_for(node);
        world.answer(&asked, Answer::Acquire(AcquireAnswer::Held(held(9, ms(1)))));
    }
    assert_eq!(world.role(), Role::Standby);
    world.asked.clear(); // the release to A among them
    world.pass(ms(26));
    look_free(&mut world, [B, C]);
    let Request::Acquire { proposal: first, .. } = late.request else { unreachable!() };
    world.answer(&late, Answer::Acquire(AcquireAnswer::Granted { token: first }));
    let b = world.acquire_for(B);
    let Request::Acquire { proposal, .. } = b.request else { unreachable!() };
    world.answer(&b, Answer::Acquire(AcquireAnswer::Granted { token: proposal }));
    // A and C meanwhile voted for somebody else; A's answer to the second attempt comes too late to be heard.
    for node in [B, C] {
        if let Some(place) =
            world.asked.iter().position(|a| a.node == node && matches!(a.request, Request::Raise { .. }))
        {
            let raise = world.asked.remove(place).expect("found");
            world.answer(&raise, Answer::Raise(RaiseAnswer::Accepted));
        }
    }
    let launched = world.actions.iter().any(|a| matches!(a, Action::Launch { .. }));
    assert!(!launched, "elected with one vote of three");
}

/// A repair of the last term, answered in this one, adds a vote that is not there.
#[test]
fn a_repair_of_an_earlier_term_is_no_vote_of_this_one() {
    let mut world = World::leading();
    world.pass(ms(1_000));
    world.extend(C, ExtendAnswer::Gone);
    world.extend(A, ExtendAnswer::Ok);
    world.extend(B, ExtendAnswer::Ok);
    let repair = world.next_for(C);
    assert!(matches!(repair.request, Request::Repair { .. }));
    world.guard(GuardReport::Lost("died"));
    world.guard(GuardReport::TreeDead { killed: 0, last: true });
    for node in [A, B] {
        let place = world.asked.iter().position(|a| a.node == node).expect("released");
        let asked = world.asked.remove(place).expect("found");
        world.answer(&asked, Answer::Released);
    }
    world.asked.retain(|asked| asked.request == Request::Look);
    look_free(&mut world, [A, B]);
    for node in [A, B] {
        let asked = world.acquire_for(node);
        let Request::Acquire { proposal, .. } = asked.request else { unreachable!() };
        world.answer(&asked, Answer::Acquire(AcquireAnswer::Granted { token: proposal }));
    }
    assert_eq!(world.role(), Role::Leader);
    world.answer(&repair, Answer::Repair(RepairAnswer::Repaired));
    world.forget();
    // A loses its key; C never voted: B alone is no quorum.
    world.node(FromNode::Touched { node: A });
    world.extend(A, ExtendAnswer::Gone);
    assert!(world.has_killed(), "the lease lives on B and on a vote of the last term");
}

/// DESIGN 3, "or any foreign value while being evicted" (R6): also when the others are silent.
#[test]
fn any_foreign_value_while_evicted_kills() {
    let mut world = World::leading();
    world.pass(ms(1_000));
    world.extend(A, ExtendAnswer::Kept);
    world.extend(B, ExtendAnswer::Kept);
    assert!(world.has_stopped_politely());
    world.forget();
    world.pass(ms(20));
    world.extend(A, ExtendAnswer::Foreign(legacy(ms(1_900))));
    world.reply(B, Answer::Silent);
    world.reply(C, Answer::Silent);
    assert!(world.has_killed());
}

/// A vote dropped after the stop signal shortens the time of the tree as it does before.
#[test]
fn a_smaller_validity_reaches_the_guard_while_stopping() {
    let mut world = World::leading();
    for node in [A, B] {
        world.pass(ms(0));
        let _ = node;
    }
    world.pass(ms(1_000));
    world.extend(A, ExtendAnswer::Ok);
    world.extend(B, ExtendAnswer::Ok); // C keeps its vote of the election: ends at 1.978
    world.ack();
    let c_ends = world.at() + ms(978);
    world.pass(ms(350));
    world.command(Command::StepDown); // stop_timeout 333 ms: kill by 1.683, guard's kill_at 2.728
    world.ack();
    world.forget();
    world.node(FromNode::Touched { node: B });
    world.extend(B, ExtendAnswer::Gone); // now A and C only: valid until 1.978, kill at 1.728
    let told = world.prolonged_to().map(|d| d.kill_at);
    let timer = world.election.valid_until().expect("leading");
    assert!(
        told.is_some_and(|at| at <= c_ends - ms(250)) || world.has_killed() || timer <= c_ends,
        "the daemon still believes {timer:?}, the votes say {c_ends:?}"
    );
}

/// One node that once saw a clock a year ahead must not lock the keeper out everywhere (promise 4).
#[test]
fn one_node_with_a_token_far_ahead_does_not_lock_the_keeper_out() {
    let mut world = World::new(RestartRules::default());
    let year_us = 365 * 24 * 3600 * 1_000_000_u64;
    let mut tokens = [FencingToken(1_700_000_000_000_000 + year_us), FencingToken(3), FencingToken(3)];
    for _ in 0..2_000 {
        world.pass(ms(5));
        while let Some(asked) = world.asked.pop_front() {
            let wall = world.now().wall.as_micros();
            let t = &mut tokens[usize::from(asked.node.0)];
            let answer = match asked.request {
                Request::Look => Answer::Look(LookAnswer::Free { token: *t }),
                Request::Acquire { proposal, .. } => {
                    if proposal.0 > (t.0 + 1).max(wall + 3_600_000_000) {
                        Answer::Acquire(AcquireAnswer::Clock {
                            node_wall: WallTime::from_micros(wall),
                            token: *t,
                        })
                    } else {
                        *t = (*t).next().max(proposal);
                        Answer::Acquire(AcquireAnswer::Granted { token: *t })
                    }
                }
                Request::Raise { token, .. } if *t <= token => {
                    *t = token;
                    Answer::Raise(RaiseAnswer::Accepted)
                }
                Request::Raise { .. } => Answer::Raise(RaiseAnswer::Outrun { token: *t }),
                _ => Answer::Released,
            };
            world.answer(&asked, answer);
            if world.role() == Role::Leader {
                return;
            }
        }
    }
    panic!("not elected in 10 s of attempts with three healthy nodes");
}

/// A guard that dies before it is armed is a launch that failed: another host shall try, not this one for ever.
#[test]
fn a_guard_that_never_arms_is_not_launched_again_at_once() {
    let mut world = World::new(RestartRules::default());
    let mut launches = 0;
    for _ in 0..200 {
        world.pass(ms(5));
        while let Some(asked) = world.asked.pop_front() {
            let answer = match asked.request {
                Request::Look => Answer::Look(LookAnswer::Free { token: FencingToken(0) }),
                Request::Acquire { proposal, .. } => {
                    Answer::Acquire(AcquireAnswer::Granted { token: proposal })
                }
                _ => Answer::Released,
            };
            world.answer(&asked, answer);
        }
        if world.actions.iter().any(|a| matches!(a, Action::Launch { .. })) {
            launches += 1;
            world.actions.clear();
            world.guard(GuardReport::Lost("died"));
            world.guard(GuardReport::TreeDead { killed: 0, last: true });
        }
    }
    assert!(launches <= 2, "{launches} terms in one second, each with a token and none with a child");
}

/// `gone` is news whenever it comes: the node's deadline goes, also when the next round has begun.
#[test]
fn gone_drops_the_vote_also_after_its_round() {
    let mut world = World::leading();
    world.node(FromNode::Change { node: C, change: NodeChange::Lost });
    world.pass(ms(1_000));
    let b = world.next_for(B);
    world.reply(A, Answer::Silent);
    world.pass(ms(100)); // the round ends: unknown
    world.pass(ms(25)); // the next is out
    let until = world.election.valid_until();
    world.answer(&b, Answer::Extend(ExtendAnswer::Gone)); // slower than the time-out by 25 ms
    // Votes of A and C are left, all of the election: unchanged. Then A's goes as well.
    assert_eq!(world.election.valid_until(), until);
    world.extend(A, ExtendAnswer::Gone);
    assert!(world.has_killed(), "only C's vote is left");
}

/// A repair that finds somebody else's value proves that our vote there is gone.
#[test]
fn a_repair_that_meets_a_foreign_value_drops_the_vote() {
    let mut world = World::leading();
    world.pass(ms(1_000));
    world.extend(C, ExtendAnswer::Kept);
    world.extend(A, ExtendAnswer::Ok);
    world.extend(B, ExtendAnswer::Ok);
    let repair = world.next_for(C);
    world.answer(&repair, Answer::Repair(RepairAnswer::Foreign(legacy(ms(1_900)))));
    world.forget();
    world.node(FromNode::Touched { node: A });
    world.extend(A, ExtendAnswer::Gone);
    assert!(world.has_killed(), "B alone is left, C said that it is somebody else's");
}

/// The lease of a tree without proof of death is extended (R3): no false alarm while it is.
#[test]
fn no_alarm_about_the_lease_while_it_is_being_extended() {
    let mut world = World::leading();
    world.guard(GuardReport::Lost("died"));
    for _ in 0..500 {
        world.pass(ms(10));
        while let Some(asked) = world.asked.pop_front() {
            if matches!(asked.request, Request::Extend { .. }) {
                world.answer(&asked, Answer::Extend(ExtendAnswer::Ok));
            }
        }
    }
    assert!(!world.events.contains(&Event::TreeOutlivesLease), "it is extended, and status says 0 ms left");
}

/// The strongest wish counts also when the tree is being killed already.
#[test]
fn kill_while_killing_still_ends_the_daemon() {
    let mut world = World::leading();
    world.guard(GuardReport::Lost("died"));
    world.command(Command::Kill);
    world.guard(GuardReport::TreeDead { killed: 0, last: true });
    while let Some(asked) = world.asked.pop_front() {
        if matches!(asked.request, Request::Release { .. }) {
            world.answer(&asked, Answer::Released);
        }
    }
    assert!(world.election.is_stopped());
}

/// A child that is neither started nor refused (exec on a dead mount) must not keep the lock for ever.
#[test]
fn a_child_that_never_starts_ends_the_term() {
    let mut world = World::new(RestartRules::default());
    world.elect();
    world.guard(GuardReport::Armed);
    world.ack();
    world.ack();
    let end = world.at() + Duration::from_secs(120);
    while world.at() < end {
        world.pass(ms(10));
        while let Some(asked) = world.asked.pop_front() {
            if matches!(asked.request, Request::Extend { .. }) {
                world.answer(&asked, Answer::Extend(ExtendAnswer::Ok));
            }
        }
        let owed = world.actions.iter().filter(|a| matches!(a, Action::Prolong { .. })).count();
        world.actions.retain(|a| !matches!(a, Action::Prolong { .. }));
        for _ in 0..owed {
            world.ack();
        }
    }
    assert_ne!(world.role(), Role::Leader, "two minutes leader without a child");
}
