//! Paused on all hosts, by a mark on the nodes.

use crate::world::*;
use keeperd::core::election::GuardReport;
use keeperd::core::event::{Command, Reason, Refusal, Role};
use keeperd::core::lease::{FencingToken, NodeId};
use keeperd::core::request::{AcquireAnswer, Answer, ExtendAnswer, FromNode, Held, LookAnswer, Pause};
use keeperd::core::restart::RestartRules;
use keeperd::core::time::WallTime;

fn pause() -> Pause {
    Pause { host: "deploy".into(), since: WallTime::from_micros(1) }
}

fn by_deploy() -> Option<Reason> {
    Some(Reason::PausedEverywhere(pause()))
}

fn paused() -> Answer {
    paused_and(None)
}

fn paused_and(held: Option<Held>) -> Answer {
    Answer::Look(LookAnswer::Paused { pause: pause(), held })
}

fn free() -> Answer {
    Answer::Look(LookAnswer::Free { token: FencingToken(0) })
}

/// Lets time pass until it looks, and answers.
fn look(world: &mut World, answers: [Answer; 3]) {
    while world.asked.is_empty() {
        world.pass(ms(10));
    }
    for (node, answer) in NODES.into_iter().zip(answers) {
        if let Some(place) = world.asked.iter().position(|asked| asked.node == node) {
            let asked = world.asked.remove(place).expect("just found");
            world.answer(&asked, answer);
        }
    }
}

fn paused_host() -> World {
    let mut world = World::new(RestartRules::default());
    look(&mut world, [paused(), paused(), free()]);
    assert_eq!(world.role(), Role::Paused);
    world
}

/// The next extension finds a pause at `nodes`.
fn extended_while_paused(world: &mut World, nodes: &[NodeId]) {
    while !world.asked_kinds().iter().any(|(_, kind)| *kind == "extend") {
        world.pass(ms(10));
    }
    for node in NODES {
        let asked = world.next_for(node);
        if nodes.contains(&node) {
            world.node(FromNode::Paused { node, ticket: asked.ticket, pause: pause() });
        }
        world.answer(&asked, Answer::Extend(ExtendAnswer::Ok));
    }
    if world.role() == Role::Leader && world.prolonged_to().is_some() {
        world.actions.clear();
        world.ack();
    }
}

#[test]
fn a_standby_is_paused_by_a_quorum_of_nodes_and_says_by_whom() {
    let mut world = World::new(RestartRules::default());
    world.reply(A, paused());
    assert_eq!(world.role(), Role::Standby);
    world.reply(B, paused());
    assert_eq!((world.role(), world.last_reason()), (Role::Paused, by_deploy().as_ref()));
    assert!(world.election.is_paused_everywhere());
}

#[test]
fn one_node_of_three_pauses_nobody() {
    let mut world = World::new(RestartRules::default());
    look(&mut world, [paused(), free(), free()]);
    assert_eq!(world.role(), Role::Candidate);
}

#[test]
fn who_has_the_lock_all_the_same_is_still_seen() {
    let mut world = World::new(RestartRules::default());
    let other = || paused_and(Some(held(1, ms(900))));
    look(&mut world, [other(), other(), other()]);
    assert_eq!(world.role(), Role::Paused);
    assert!(world.election.holder().is_some());
}

#[test]
fn silence_does_not_end_a_pause() {
    let mut world = paused_host();
    world.asked.clear();
    look(&mut world, [paused(), free(), Answer::Silent]);
    look(&mut world, [Answer::Silent, Answer::Silent, Answer::Silent]);
    world.pass(ms(3_000));
    assert_eq!(world.role(), Role::Paused);
}

#[test]
fn a_pause_ends_when_no_quorum_can_say_so_any_more_and_the_host_stands_at_once() {
    let mut world = paused_host();
    world.asked.clear();
    look(&mut world, [Answer::Silent, free(), free()]);
    assert_eq!((world.role(), world.last_reason()), (Role::Standby, Some(&Reason::ResumedEverywhere)));
    let before = world.at();
    look(&mut world, [free(), free(), free()]);
    assert_eq!((world.role(), world.at()), (Role::Candidate, before));
}

#[test]
fn a_hint_during_the_look_that_finds_a_pause_leads_to_another_look() {
    let mut world = World::new(RestartRules::default());
    world.asked.retain(|asked| asked.node != C);
    world.node(FromNode::Touched { node: C });
    world.reply(A, paused());
    world.reply(B, paused());
    assert_eq!((world.role(), world.asked.len()), (Role::Paused, 3));
}

#[test]
fn a_candidate_that_is_refused_for_a_pause_gives_up() {
    let mut world = World::new(RestartRules::default());
    for node in [A, B] {
        world.reply(node, free());
    }
    for node in [A, B] {
        let asked = world.acquire_for(node);
        world.answer(&asked, Answer::Acquire(AcquireAnswer::Paused(pause())));
    }
    assert_eq!(world.role(), Role::Standby);
    assert!(world.has_released(), "the third node may have granted it");
}

#[test]
fn a_holder_hands_over_when_a_quorum_of_nodes_says_so_and_is_paused_then() {
    let mut world = World::leading();
    extended_while_paused(&mut world, &[A, C]);
    assert_eq!((world.role(), world.last_reason()), (Role::SteppingDown, by_deploy().as_ref()));
    assert!(world.has_stopped_politely() && !world.has_killed() && !world.has_released());
    world.guard(GuardReport::TreeDead { killed: 0, last: true });
    assert!(world.has_released());
    for node in NODES {
        world.asked.retain(|asked| matches!(asked.request, keeperd::core::request::Request::Release { .. }));
        world.reply(node, Answer::Released);
        if world.role() != Role::SteppingDown {
            break;
        }
    }
    look(&mut world, [paused(), paused(), paused()]);
    assert_eq!((world.role(), world.last_reason()), (Role::Paused, by_deploy().as_ref()));
}

#[test]
fn a_holder_takes_no_notice_of_a_minority_nor_of_two_rounds_that_make_a_quorum_together() {
    let mut world = World::leading();
    extended_while_paused(&mut world, &[A]);
    extended_while_paused(&mut world, &[B]);
    extended_while_paused(&mut world, &[C]);
    assert_eq!(world.role(), Role::Leader);
}

#[test]
fn a_host_that_its_own_operator_has_paused_stays_so() {
    let mut world = paused_host();
    assert_eq!(world.election.refuses(Command::Resume), Some(Refusal::PausedEverywhere));
    world.command(Command::Pause);
    assert_eq!(world.election.refuses(Command::Resume), None);
    world.asked.clear();
    look(&mut world, [free(), free(), free()]);
    world.pass(ms(3_000));
    assert_eq!((world.role(), world.election.is_paused_everywhere()), (Role::Paused, false));
    world.command(Command::Resume);
    world.asked.clear();
    look(&mut world, [paused(), paused(), paused()]);
    assert_eq!((world.role(), world.last_reason()), (Role::Paused, by_deploy().as_ref()));
}
