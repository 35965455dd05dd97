use crate::world::*;
use keeperd::core::election::Action;
use keeperd::core::event::{Command, ElectionOutcome, Reason, Role};
use keeperd::core::lease::FencingToken;
use keeperd::core::request::{AcquireAnswer, Answer, FromNode, LookAnswer, NodeChange, RaiseAnswer, Request};
use keeperd::core::restart::RestartRules;
use keeperd::core::time::WallTime;
use std::time::Duration;

/// Looks free; the acquires are out.
fn candidate() -> World {
    let mut world = World::new(RestartRules::default());
    for node in [A, B] {
        world.reply(node, Answer::Look(LookAnswer::Free { token: FencingToken(0) }));
    }
    world.asked.retain(|asked| asked.request != Request::Look);
    assert_eq!(world.role(), Role::Candidate);
    world
}

fn proposal(world: &World) -> FencingToken {
    world
        .asked
        .iter()
        .find_map(|asked| match asked.request {
            Request::Acquire { proposal, .. } => Some(proposal),
            _ => None,
        })
        .expect("an acquire is out")
}

fn grant(token: FencingToken) -> Answer {
    Answer::Acquire(AcquireAnswer::Granted { token })
}

fn refuse(value: u128) -> Answer {
    Answer::Acquire(AcquireAnswer::Held(held(value, ms(1_900))))
}

fn releases(world: &World) -> Vec<keeperd::core::lease::NodeId> {
    world.asked_kinds().into_iter().filter(|(_, kind)| *kind == "release").map(|(node, _)| node).collect()
}

#[test]
fn a_quorum_with_one_token_wins_in_one_round_trip() {
    let mut world = candidate();
    let token = proposal(&world);
    world.reply(A, grant(token));
    assert_eq!(world.role(), Role::Candidate);
    world.reply(B, grant(token));
    assert_eq!(world.role(), Role::Leader);
    assert_eq!(world.election.token(), Some(token));
    assert!(matches!(world.actions.as_slice(), [Action::Launch { token: t, .. }] if *t == token));
}

#[test]
fn the_lease_counts_from_before_the_request_and_not_from_the_reply() {
    let mut world = candidate();
    let sent = world.at();
    let token = proposal(&world);
    world.pass(ms(90));
    world.reply(A, grant(token));
    world.reply(B, grant(token));
    let until = world.election.valid_until().expect("leading");
    assert_eq!(until.since(sent), ms(1_978));
}

#[test]
fn grants_with_different_tokens_are_raised_to_the_largest_first() {
    let mut world = candidate();
    let token = proposal(&world);
    world.reply(A, grant(token));
    let larger = FencingToken(token.0 + 40);
    world.reply(B, grant(larger));
    assert_eq!(world.role(), Role::Candidate);
    world.asked.retain(|asked| matches!(asked.request, Request::Raise { .. }));
    for node in [A, B] {
        let asked = world.next_for(node);
        assert!(matches!(asked.request, Request::Raise { token, .. } if token == larger));
        world.answer(&asked, Answer::Raise(RaiseAnswer::Accepted));
    }
    assert_eq!((world.role(), world.election.token()), (Role::Leader, Some(larger)));
}

#[test]
fn a_raise_outrun_by_a_quorum_is_repeated_once_and_then_given_up() {
    let mut world = candidate();
    let token = proposal(&world);
    world.reply(A, grant(token));
    world.reply(B, grant(FencingToken(token.0 + 1)));
    for round in 0..2 {
        world.asked.retain(|asked| matches!(asked.request, Request::Raise { .. }));
        assert_eq!(world.asked.len(), 3, "round {round}");
        for node in [A, B] {
            world.reply(node, Answer::Raise(RaiseAnswer::Outrun { token: FencingToken(token.0 + 100) }));
        }
        world.asked.retain(|asked| asked.ticket.round.0 > 0);
        if round == 0 {
            let newest = world.asked.iter().map(|asked| asked.ticket.round).max().expect("asked again");
            world.asked.retain(|asked| asked.ticket.round == newest);
        }
    }
    assert_eq!(world.role(), Role::Standby);
    assert_eq!(releases(&world), NODES);
}

#[test]
fn a_vote_found_in_place_counts_from_the_first_request() {
    let mut world = candidate();
    let sent = world.at();
    let token = proposal(&world);
    // Split: ours is the smaller value or not, decided by the seed; make theirs the largest possible.
    world.reply(A, grant(token));
    world.reply(B, refuse(u128::MAX));
    let silent = world.next_for(C);
    world.answer(&silent, Answer::Silent);
    assert_eq!(world.role(), Role::Candidate, "the smallest value keeps its vote");
    world.pass(ms(3));
    let again = world.acquire_for(C);
    assert!(again.ticket.sent > sent);
    world.answer(&again, Answer::Acquire(AcquireAnswer::Mine { token, token_is_mine: true }));
    assert_eq!(world.role(), Role::Leader);
    assert_eq!(world.election.valid_until().expect("leading").since(sent), ms(1_978));
}

#[test]
fn a_vote_found_in_place_under_a_foreign_token_is_no_vote_for_the_token() {
    let mut world = candidate();
    let token = proposal(&world);
    world.reply(A, grant(token));
    let raised = FencingToken(token.0 + 7);
    world.reply(B, Answer::Acquire(AcquireAnswer::Mine { token: raised, token_is_mine: false }));
    let raise = world.asked.iter().find_map(|asked| match asked.request {
        Request::Raise { token, .. } => Some(token),
        _ => None,
    });
    assert_eq!(raise, Some(raised.next()));
}

#[test]
fn a_refused_candidate_releases_where_it_may_have_been_granted() {
    let mut world = candidate();
    let token = proposal(&world);
    world.reply(A, grant(token));
    world.reply(B, refuse(0));
    world.reply(C, Answer::Silent);
    assert_eq!(world.role(), Role::Standby);
    assert_eq!(releases(&world), [A, C], "B has refused and never had it");
}

#[test]
fn the_larger_value_lets_go_of_a_split_vote() {
    let mut world = candidate();
    let token = proposal(&world);
    world.reply(A, grant(token));
    world.reply(B, refuse(0));
    world.reply(C, refuse(1));
    assert_eq!(world.role(), Role::Standby);
    assert_eq!(releases(&world), [A]);
}

#[test]
fn a_split_vote_is_asked_for_three_times_at_the_most() {
    let mut world = candidate();
    let token = proposal(&world);
    world.reply(A, grant(token));
    let mut asks = 1;
    loop {
        world.reply(B, refuse(u128::MAX));
        world.reply(C, refuse(u128::MAX - 1));
        world.pass(ms(10));
        world.asked.retain(|asked| asked.node != A);
        if world.role() != Role::Candidate {
            break;
        }
        asks += 1;
    }
    assert_eq!(asks, 3);
}

#[test]
fn a_legacy_contender_makes_everybody_let_go() {
    let mut world = candidate();
    let token = proposal(&world);
    world.reply(A, grant(token));
    world.reply(B, Answer::Acquire(AcquireAnswer::Held(legacy(ms(900)))));
    world.reply(C, refuse(u128::MAX));
    assert_eq!(world.role(), Role::Standby);
}

#[test]
fn a_node_that_is_lost_counts_as_refused_at_once() {
    let mut world = candidate();
    world.node(FromNode::Change { node: A, change: NodeChange::Lost });
    assert_eq!(world.role(), Role::Candidate);
    world.node(FromNode::Change { node: B, change: NodeChange::Lost });
    assert_eq!(world.role(), Role::Standby);
    assert!(matches!(world.last_reason(), Some(Reason::NotElected(ElectionOutcome::NoQuorum))));
    assert_eq!(releases(&world), NODES, "what was sent may have been carried out");
}

#[test]
fn silence_ends_an_attempt_after_the_node_timeout() {
    let mut world = candidate();
    let token = proposal(&world);
    world.reply(A, grant(token));
    world.pass(ms(101));
    assert_eq!(world.role(), Role::Standby);
    assert_eq!(releases(&world), NODES);
}

#[test]
fn a_grant_after_the_election_is_one_more_vote() {
    let mut world = candidate();
    let token = proposal(&world);
    world.reply(A, grant(token));
    world.reply(B, grant(token));
    let late = world.next_for(C);
    world.answer(&late, grant(token));
    assert_eq!(world.role(), Role::Leader);
}

#[test]
fn a_proposal_far_ahead_of_a_node_is_replaced_by_the_nodes_clock() {
    let mut world = candidate();
    let node_wall = WallTime::from_micros(1_600_000_000_000_000);
    for node in NODES {
        world.reply(node, Answer::Acquire(AcquireAnswer::Clock { node_wall, token: FencingToken(3) }));
        if world.role() != Role::Candidate {
            break;
        }
    }
    assert_eq!(world.role(), Role::Standby);
    world.asked.clear();
    world.pass(Duration::from_secs(3));
    world.asked.clear();
    world.node(FromNode::Touched { node: A });
    for node in [A, B] {
        world.reply(node, Answer::Look(LookAnswer::Free { token: FencingToken(0) }));
    }
    assert_eq!(proposal(&world), FencingToken(node_wall.as_micros()));
}

#[test]
fn a_new_term_proposes_more_than_any_token_it_has_seen() {
    let mut world = World::new(RestartRules::default());
    let huge = FencingToken(FencingToken::MAX.0 - 10);
    for node in NODES {
        while let Some(place) = world.asked.iter().position(|asked| asked.node == node) {
            let asked = world.asked.remove(place).expect("found");
            if asked.request == Request::Look {
                world.answer(&asked, Answer::Look(LookAnswer::Free { token: huge }));
            } else {
                world.asked.push_back(asked);
                break;
            }
        }
    }
    assert_eq!(proposal(&world), huge.next());
}

#[test]
fn a_candidate_that_drains_releases_what_it_asked_for() {
    let mut world = candidate();
    world.command(Command::Drain);
    assert!(world.election.is_stopped());
    assert_eq!(releases(&world), NODES);
}

#[test]
fn nothing_is_asked_of_a_node_that_does_not_serve() {
    let mut world = World::new(RestartRules::default());
    world.node(FromNode::Change { node: C, change: NodeChange::Lost });
    world.asked.clear();
    world.pass(ms(1_100));
    assert!(world.asked_kinds().iter().all(|(node, _)| *node != C), "{:?}", world.asked_kinds());
}

#[test]
fn a_grant_of_an_earlier_attempt_is_no_vote_for_this_one() {
    let mut world = candidate();
    let token = proposal(&world);
    world.reply(A, refuse(9));
    let slow = world.acquire_for(C);
    world.reply(B, refuse(9));
    assert_eq!(world.role(), Role::Standby);
    world.forget();
    // The holder lets go; a second attempt begins while the first one's request to the slow node is still under way.
    world.pass(ms(26));
    for node in [A, B] {
        world.reply(node, Answer::Look(LookAnswer::Free { token }));
    }
    assert_eq!(world.role(), Role::Candidate);
    world.answer(&slow, grant(token));
    let asked = world.acquire_for(A);
    world.answer(&asked, grant(token));
    assert_eq!(world.role(), Role::Candidate, "one vote of three, and a value that is given up");
}
