use crate::world::*;
use keeperd::core::event::{Command, Role};
use keeperd::core::lease::{FencingToken, NodeId};
use keeperd::core::request::{Answer, FromNode, LookAnswer, NodeChange};
use keeperd::core::restart::RestartRules;
use keeperd::core::spread::Load;
use std::time::Duration;

fn standby() -> World {
    World::new(RestartRules::default())
}

fn free() -> Answer {
    Answer::Look(LookAnswer::Free { token: FencingToken(0) })
}

fn held_for(remaining: Duration) -> Answer {
    Answer::Look(LookAnswer::Held(held(1, remaining)))
}

fn looks(world: &World) -> usize {
    world.asked_kinds().iter().filter(|(_, kind)| *kind == "look").count()
}

/// Answers every look that is out with `held`.
fn answer_looks(world: &mut World, answers: [Answer; 3]) {
    for (node, answer) in NODES.into_iter().zip(answers) {
        while let Some(place) = world.asked.iter().position(|asked| asked.node == node) {
            let asked = world.asked.remove(place).expect("just found");
            world.answer(&asked, answer.clone());
        }
    }
}

#[test]
fn a_standby_looks_before_it_acquires() {
    let mut world = standby();
    assert!(looks(&world) >= 3 && world.asked_kinds().iter().all(|(_, kind)| *kind == "look"));
    world.asked.clear();
    world.pass(ms(200));
    assert_eq!(world.role(), Role::Standby);
}

#[test]
fn two_free_nodes_of_three_are_enough_to_stand() {
    let mut world = standby();
    world.reply(A, free());
    assert_eq!(world.role(), Role::Standby);
    world.reply(B, free());
    assert_eq!(world.role(), Role::Candidate);
}

#[test]
fn a_standby_sleeps_until_a_quorum_may_have_expired() {
    let mut world = standby();
    answer_looks(&mut world, [held_for(ms(700)), held_for(ms(300)), held_for(ms(400))]);
    assert_eq!(world.asked.len(), 0);
    // The second smallest decides: two nodes can be free after 400 ms.
    world.pass(ms(400));
    assert_eq!(looks(&world), 0);
    world.pass(ms(5));
    assert_eq!(looks(&world), 3);
}

#[test]
fn a_standby_polls_when_hints_fail_it() {
    let mut world = standby();
    answer_looks(&mut world, [held_for(ms(60_000)), held_for(ms(60_000)), held_for(ms(60_000))]);
    world.pass(ms(1_010));
    assert_eq!(looks(&world), 3);
}

#[test]
fn a_hint_leads_to_a_look_at_once_and_no_flood_of_hints_to_a_flood_of_looks() {
    let mut world = standby();
    answer_looks(&mut world, [held_for(ms(900)), held_for(ms(900)), held_for(ms(900))]);
    for _ in 0..100 {
        world.node(FromNode::Touched { node: A });
        answer_looks(&mut world, [held_for(ms(900)), held_for(ms(900)), held_for(ms(900))]);
        world.pass(Duration::from_micros(100));
    }
    let mut world_looks = 0;
    world.node(FromNode::Touched { node: A });
    world_looks += looks(&world);
    assert!(world_looks <= 3, "paced");
    world.pass(ms(6));
    assert!(looks(&world) >= 3, "a hint is never lost");
}

fn comes_back(world: &mut World, node: NodeId) {
    world.node(FromNode::Change { node, change: NodeChange::Lost });
    world.node(FromNode::Change { node, change: NodeChange::Serving });
}

#[test]
fn nobody_looks_for_a_node_that_comes_back_while_a_quorum_tells_of_a_lock_that_is_held() {
    let mut world = standby();
    answer_looks(&mut world, [held_for(ms(900)), held_for(ms(900)), held_for(ms(900))]);
    comes_back(&mut world, C);
    world.pass(ms(890));
    assert_eq!(looks(&world), 0);
    world.pass(ms(15));
    assert_eq!(looks(&world), 3, "of those that serve then");
}

#[test]
fn a_node_that_comes_back_is_looked_at_soon_when_too_few_tell_of_changes() {
    let mut world = standby();
    answer_looks(&mut world, [held_for(ms(900)), held_for(ms(900)), held_for(ms(900))]);
    comes_back(&mut world, B);
    comes_back(&mut world, C);
    world.pass(ms(200));
    assert_eq!(looks(&world), 3);
}

#[test]
fn a_node_that_comes_back_is_looked_at_at_once_while_nobody_is_seen_to_hold() {
    let mut world = standby();
    let quarantined = || Answer::Look(LookAnswer::Quarantined { remaining: ms(500) });
    answer_looks(&mut world, [held_for(ms(900)), quarantined(), quarantined()]);
    comes_back(&mut world, C);
    assert_eq!(looks(&world), 3);
}

#[test]
fn looks_for_nodes_that_come_back_are_spread_ever_wider_while_no_quorum_answers() {
    let mut world = standby();
    let mut waits = Vec::new();
    for _ in 0..20 {
        answer_looks(&mut world, [Answer::Silent, Answer::Silent, Answer::Silent]);
        let before = world.at();
        comes_back(&mut world, C);
        while looks(&world) == 0 {
            world.pass(ms(1));
        }
        waits.push(world.at().since(before));
    }
    assert!(waits[0] <= ms(200), "{waits:?}");
    assert!(waits[4..].iter().max().is_some_and(|most| *most > ms(500)), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= ms(1_010)), "no longer than a poll: {waits:?}");
}

#[test]
fn the_more_hosts_may_stand_by_the_further_apart_they_wake_at_an_expiry() {
    let woke_after = |hosts| {
        let mut world = standby();
        world.election.handle_load(Load { hosts, ..Load::default() });
        let mut waits: Vec<Duration> = (0..20)
            .map(|_| {
                answer_looks(&mut world, [held_for(ms(100)), held_for(ms(100)), held_for(ms(100))]);
                let looked = world.at();
                while looks(&world) == 0 {
                    world.pass(ms(1));
                }
                world.at().since(looked)
            })
            .collect();
        waits.sort_unstable();
        (waits[0], waits[19])
    };
    let (first, last) = woke_after(2);
    assert!(first >= ms(101) && last <= ms(105), "{first:?} to {last:?}");
    let (first, last) = woke_after(100);
    assert!(first < ms(130) && last > ms(150) && last <= ms(202), "{first:?} to {last:?}");
}

#[test]
fn quarantined_nodes_are_waited_for() {
    let mut world = standby();
    let quarantined = || Answer::Look(LookAnswer::Quarantined { remaining: ms(500) });
    answer_looks(&mut world, [quarantined(), quarantined(), free()]);
    assert_eq!(world.role(), Role::Standby);
    world.pass(ms(505));
    assert_eq!(looks(&world), 3);
}

#[test]
fn a_paused_standby_looks_but_does_not_stand() {
    let mut world = standby();
    world.command(Command::Pause);
    assert_eq!(world.role(), Role::Paused);
    answer_looks(&mut world, [free(), free(), free()]);
    assert_eq!(world.role(), Role::Paused);
    world.command(Command::Resume);
    answer_looks(&mut world, [free(), free(), free()]);
    assert_eq!(world.role(), Role::Candidate);
}

#[test]
fn a_standby_that_drains_is_stopped_at_once() {
    let mut world = standby();
    world.command(Command::Drain);
    assert!(world.election.is_stopped());
    assert_eq!(world.election.poll_timeout(), None);
}

#[test]
fn the_holder_is_named_when_a_quorum_names_it() {
    let mut world = standby();
    answer_looks(&mut world, [held_for(ms(900)), held_for(ms(900)), free()]);
    let holder = world.election.holder().and_then(|held| held.holder.clone());
    assert_eq!(holder.map(|holder| holder.host), Some("other".into()));
}
