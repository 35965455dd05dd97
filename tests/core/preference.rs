//! Who stands first when several hosts could, and who takes a keeper back.

use crate::world::*;
use keeperd::core::election::GuardReport;
use keeperd::core::event::{Command, Event, Reason, Role};
use keeperd::core::lease::{FencingToken, NodeId};
use keeperd::core::preference::{Bid, Preference, Priorities, Priority};
use keeperd::core::request::{
    AcquireAnswer, Answer, ExtendAnswer, FromNode, LookAnswer, NodeChange, Request,
};
use keeperd::core::restart::{Exit, RestartPolicy, RestartRules};
use keeperd::core::spread::{Load, Seat, Spread};
use std::time::Duration;

const HOLD: Duration = Duration::from_secs(10);

/// This host is "me"; looks find the lock with "other".
fn preferring(hosts: &[(&str, i32)], rules: RestartRules) -> World {
    let hosts = hosts.iter().map(|(host, priority)| ((*host).to_owned(), Priority(*priority))).collect();
    World::preferring(rules, Preference::new("me", Priorities::ByHost(hosts), HOLD))
}

fn preferred() -> World {
    preferring(&[("me", 10)], RestartRules::default())
}

fn less_preferred() -> World {
    preferring(&[("other", 10)], RestartRules::default())
}

fn free() -> Answer {
    Answer::Look(LookAnswer::Free { token: FencingToken(0) })
}

fn held_by_other() -> Answer {
    Answer::Look(LookAnswer::Held(held(1, ms(2_000))))
}

/// Answers what is out but acquires; true if a bid was among it.
fn answer_all(world: &mut World, look: &Answer, extend: &ExtendAnswer) -> bool {
    let mut bids = false;
    let acquires = |asked: &Asked| matches!(asked.request, Request::Acquire { .. });
    while let Some(at) = world.asked.iter().position(|asked| !acquires(asked)) {
        let asked = world.asked.remove(at).expect("just found");
        bids |= matches!(asked.request, Request::Bid { .. });
        let answer = match asked.request {
            Request::Look => look.clone(),
            Request::Extend { .. } | Request::Check { .. } => Answer::Extend(extend.clone()),
            Request::Bid { .. } => Answer::Noted,
            _ => Answer::Silent,
        };
        world.answer(&asked, answer);
    }
    bids
}

/// Lets time pass with every look and extension answered; when the first bid went out.
fn pass_until_bid(world: &mut World, span: Duration) -> Option<Duration> {
    let began = world.at();
    while world.at().since(began) < span {
        if answer_all(world, &held_by_other(), &ExtendAnswer::Ok) {
            return Some(world.at().since(began));
        }
        world.pass(ms(5));
    }
    None
}

/// A leader of a term so old, extended all the time.
fn leading_for(mut world: World, age: Duration) -> World {
    while world.role() == Role::Standby {
        answer_all(&mut world, &free(), &ExtendAnswer::Ok);
        if world.role() == Role::Standby {
            world.pass(ms(1));
        }
    }
    for node in NODES {
        let asked = world.acquire_for(node);
        let Request::Acquire { proposal, .. } = asked.request else { unreachable!() };
        let token = proposal;
        world.answer(&asked, Answer::Acquire(AcquireAnswer::Granted { token }));
    }
    world.child_runs();
    lead_on(&mut world, age);
    world.forget();
    world
}

fn lead_on(world: &mut World, span: Duration) {
    let until = world.at() + span;
    while world.at() < until {
        world.pass(ms(10));
        let prolonged = world.prolonged_to().is_some();
        answer_all(world, &free(), &ExtendAnswer::Ok);
        if prolonged || world.prolonged_to().is_some() {
            world.actions.clear();
            world.ack();
        }
    }
}

/// The next extension finds `bid` at `nodes`.
fn extended_with_bid(world: &mut World, bid: &Bid, nodes: &[NodeId]) {
    while !world.asked_kinds().iter().any(|(_, kind)| *kind == "extend") {
        world.pass(ms(10));
    }
    for node in NODES {
        let asked = world.next_for(node);
        if nodes.contains(&node) {
            world.node(FromNode::Bid { node, ticket: asked.ticket, bid: bid.clone() });
        }
        world.answer(&asked, Answer::Extend(ExtendAnswer::Ok));
    }
    if world.role() == Role::Leader && world.prolonged_to().is_some() {
        world.actions.clear();
        world.ack();
    }
}

fn bid(host: &str) -> Bid {
    Bid { host: host.into(), priority: Priority(10) }
}

// ── standing ──

#[test]
fn the_preferred_host_stands_at_once() {
    let mut world = preferred();
    answer_all(&mut world, &free(), &ExtendAnswer::Ok);
    assert_eq!(world.role(), Role::Candidate);
}

#[test]
fn a_less_preferred_host_waits_looks_again_and_then_stands() {
    let mut world = less_preferred();
    answer_all(&mut world, &free(), &ExtendAnswer::Ok);
    world.pass(ms(99));
    assert_eq!((world.role(), world.asked.len()), (Role::Standby, 0));
    world.pass(ms(1));
    assert!(world.asked_kinds().iter().all(|(_, kind)| *kind == "look"), "it looks before it stands");
    answer_all(&mut world, &free(), &ExtendAnswer::Ok);
    assert_eq!(world.role(), Role::Candidate);
}

#[test]
fn a_less_preferred_host_that_finds_the_lock_taken_after_its_wait_does_not_stand() {
    let mut world = less_preferred();
    answer_all(&mut world, &free(), &ExtendAnswer::Ok);
    world.pass(ms(100));
    answer_all(&mut world, &held_by_other(), &ExtendAnswer::Ok);
    assert_eq!(world.role(), Role::Standby);
    assert!(!world.asked_kinds().iter().any(|(_, kind)| *kind == "acquire"));
}

#[test]
fn an_old_look_that_is_answered_late_does_not_end_the_wait() {
    let mut world = less_preferred();
    for node in [A, B] {
        world.reply(node, free());
    }
    world.pass(ms(99));
    let late = world.next_for(C);
    world.pass(Duration::from_micros(900));
    world.answer(&late, free());
    assert_eq!(world.role(), Role::Standby);
}

#[test]
fn the_wait_begins_anew_only_when_the_lock_was_held_meanwhile() {
    let mut world = less_preferred();
    answer_all(&mut world, &free(), &ExtendAnswer::Ok);
    world.pass(ms(60));
    world.node(FromNode::Touched { node: A });
    answer_all(&mut world, &free(), &ExtendAnswer::Ok);
    world.pass(ms(40));
    answer_all(&mut world, &free(), &ExtendAnswer::Ok);
    assert_eq!(world.role(), Role::Candidate, "a hint changes nothing");

    let mut world = less_preferred();
    answer_all(&mut world, &free(), &ExtendAnswer::Ok);
    world.pass(ms(60));
    world.node(FromNode::Touched { node: A });
    answer_all(&mut world, &held_by_other(), &ExtendAnswer::Ok);
    world.node(FromNode::Touched { node: A });
    answer_all(&mut world, &free(), &ExtendAnswer::Ok);
    world.pass(ms(60));
    assert_eq!((world.role(), world.asked.len()), (Role::Standby, 0));
}

#[test]
fn a_host_with_more_keepers_than_another_waits_for_it_and_stands_in_the_end_all_the_same() {
    let mut world = World::new(RestartRules::default());
    answer_all(&mut world, &held_by_other(), &ExtendAnswer::Ok);
    let load = Load { keepers: 30, own: 14, least_elsewhere: Some(4), hosts: 3, line: 0, shift: 0 };
    world.election.handle_load(load);
    world.node(FromNode::Touched { node: A });
    answer_all(&mut world, &free(), &ExtendAnswer::Ok);
    world.pass(ms(49));
    assert_eq!((world.role(), world.asked.len()), (Role::Standby, 0));
    // It grows meanwhile, beyond all measure.
    world.election.handle_load(Load { own: 5_000, ..load });
    world.pass(ms(200));
    assert_eq!(world.asked.len(), 0);
    world.pass(ms(2));
    answer_all(&mut world, &free(), &ExtendAnswer::Ok);
    assert_eq!(world.role(), Role::Candidate, "bounded");
}

#[test]
fn a_single_keeper_stands_at_once_at_a_cold_start_and_later() {
    let mut world = World::new(RestartRules::default());
    world.election.handle_load(Load { keepers: 1, hosts: 1, shift: 999, ..Load::default() });
    answer_all(&mut world, &free(), &ExtendAnswer::Ok);
    assert_eq!(world.role(), Role::Candidate);
}

#[test]
fn at_a_cold_start_a_thousand_keepers_of_one_host_stand_within_a_second() {
    let names: Vec<String> = (0..1_000).map(|n| format!("keeper-{n}")).collect();
    let mut spread = spread_of("me", &names);
    let mut worlds: Vec<World> = names.iter().map(|_| World::new(RestartRules::default())).collect();
    let mut timers = 0;
    let mut stood = 0;
    for _ in 0..1_000 {
        for (place, world) in worlds.iter_mut().enumerate() {
            if world.role() != Role::Standby {
                continue;
            }
            if world.election.poll_timeout().is_some_and(|at| at <= world.at() + ms(1)) {
                world.election.handle_load(spread.load(place));
                timers += 1;
            }
            world.pass(ms(1));
            while let Some(asked) = world.asked.iter().position(|asked| asked.request == Request::Look) {
                world.election.handle_load(spread.load(place));
                let asked = world.asked.remove(asked).expect("just found");
                world.answer(&asked, free());
                spread.seat(place, world.election.seat());
            }
            stood += u32::from(world.role() == Role::Candidate);
            spread.seat(place, world.election.seat());
        }
    }
    assert_eq!(stood, 1_000);
    assert!(timers < 30_000, "{timers} times something had to be done");
}

// ── spread ──

/// With the keepers at places from 0 on.
fn spread_of(host: &str, keepers: &[impl AsRef<str>]) -> Spread {
    let mut spread = Spread::new(host);
    keepers.iter().enumerate().for_each(|(place, keeper)| spread.join(place, keeper.as_ref()));
    spread
}

/// Daemons that begin at `starts`, milliseconds apart, and see each other's elections a few milliseconds late.
fn cold_start(keepers: usize, starts: &[u64], run: u64) -> Vec<u32> {
    const LATE: u64 = 5;
    let names: Vec<String> = (0..keepers).map(|n| format!("keeper-{run}-{n}")).collect();
    let hosts: Vec<String> = (0..starts.len()).map(|n| format!("host-{run}-{n}")).collect();
    let mut spreads: Vec<Spread> = hosts.iter().map(|host| spread_of(host, &names)).collect();
    let mut due: Vec<Vec<u64>> = starts.iter().map(|start| vec![*start; keepers]).collect();
    let mut taken: Vec<Option<(u64, usize)>> = vec![None; keepers];
    for now in 0..2_000 {
        for (h, spread) in spreads.iter_mut().enumerate() {
            for k in 0..keepers {
                match taken[k] {
                    Some((_, owner)) if owner == h => continue,
                    Some((at, owner)) if at + LATE <= now => spread.seat(k, Seat::Elsewhere(&hosts[owner])),
                    Some(_) => continue,
                    None if now < due[h][k] => continue,
                    None => {
                        let load = spread.load(k);
                        let at = starts[h] + load.cold_wait().as_millis() as u64;
                        if now >= at {
                            taken[k] = Some((now, h));
                            spread.seat(k, Seat::Here);
                        } else {
                            let last = starts[h] + load.cold_span().as_millis() as u64;
                            due[h][k] = (at + load.cold_apart().as_millis() as u64).min(last).max(now + 1);
                            spread.seat(k, Seat::Waiting);
                        }
                    }
                }
            }
        }
    }
    let count = |h: usize| taken.iter().filter(|t| t.is_some_and(|(_, owner)| owner == h)).count() as u32;
    (0..starts.len()).map(count).collect()
}

#[test]
fn thirty_keepers_spread_over_three_hosts_that_start_at_about_the_same_time() {
    for run in 0..50 {
        for starts in [[0, 0, 0], [0, 0, 60], [0, 30, 120]] {
            let counts = cold_start(30, &starts, run);
            assert_eq!(counts.iter().sum::<u32>(), 30);
            assert!(counts.iter().all(|count| (7..=13).contains(count)), "run {run}, {starts:?}: {counts:?}");
        }
    }
}

#[test]
fn one_host_alone_takes_all_of_them() {
    assert_eq!(cold_start(30, &[0], 1), [30]);
    assert_eq!(cold_start(1, &[0, 100], 1), [1, 0]);
}

#[test]
fn the_host_that_let_go_of_a_keeper_makes_nobody_wait() {
    let mut spread = spread_of("me", &["a", "b", "c", "d"]);
    spread.seat(0, Seat::Here);
    spread.seat(1, Seat::Here);
    spread.seat(2, Seat::Elsewhere("x"));
    spread.seat(3, Seat::Elsewhere("x"));
    spread.seat(3, Seat::Nowhere);
    assert_eq!(spread.load(3).wait(), Duration::ZERO, "x gave it away and will not stand");
    spread.seat(2, Seat::Elsewhere("y"));
    assert_eq!(spread.load(3).wait(), ms(5), "y has one, we have two");
    spread.seat(2, Seat::Nowhere);
    assert_eq!(spread.load(3).wait(), Duration::ZERO, "nobody is known to hold one");
}

#[test]
fn a_keeper_that_leaves_counts_for_nobody() {
    let mut spread = spread_of("me", &["a", "b", "c"]);
    spread.seat(0, Seat::Here);
    spread.seat(1, Seat::Elsewhere("x"));
    spread.seat(2, Seat::Waiting);
    [0, 1, 2].into_iter().for_each(|place| spread.leave(place));
    spread.join(3, "d");
    let alone = spread_of("me", &["d"]).load(0);
    assert_eq!(spread.load(3), alone, "as if they had never been");
    assert_eq!(spread.load(0), Load::default());
}

// ── taking back ──

#[test]
fn a_preferred_host_bids_after_hold_and_not_before() {
    let mut world = preferred();
    let after = pass_until_bid(&mut world, HOLD * 2).expect("it bids");
    assert!(after >= HOLD && after < HOLD + ms(20), "{after:?}");
    let named =
        world.events.iter().any(|event| matches!(event, Event::Bids { holder } if holder.host == "other"));
    assert!(named, "the log says so");
    assert!(pass_until_bid(&mut world, ms(1_100)).is_some(), "and again with every look");
    let said = world.events.iter().filter(|event| matches!(event, Event::Bids { .. })).count();
    assert_eq!(said, 1, "the log says it once");
}

#[test]
fn a_host_that_is_not_preferred_never_bids() {
    for hosts in [vec![], vec![("other", 10)], vec![("me", 10), ("other", 10)], vec![("third", 10)]] {
        let mut world = preferring(&hosts, RestartRules::default());
        assert_eq!(pass_until_bid(&mut world, HOLD * 2), None, "{hosts:?}");
    }
}

#[test]
fn a_host_that_was_paused_or_cut_off_is_well_from_then_on_only() {
    let mut world = preferred();
    assert_eq!(pass_until_bid(&mut world, HOLD * 9 / 10), None);
    world.command(Command::Pause);
    assert_eq!(pass_until_bid(&mut world, HOLD), None, "paused");
    world.command(Command::Resume);
    assert!(pass_until_bid(&mut world, HOLD * 2).expect("it bids") >= HOLD);

    let mut world = preferred();
    assert_eq!(pass_until_bid(&mut world, HOLD * 9 / 10), None);
    for node in [A, B] {
        world.node(FromNode::Change { node, change: NodeChange::Lost });
    }
    for node in [A, B] {
        world.node(FromNode::Change { node, change: NodeChange::Serving });
    }
    assert!(pass_until_bid(&mut world, HOLD * 2).expect("it bids") >= HOLD);
}

#[test]
fn a_preferred_host_on_which_the_keeper_does_not_run_asks_for_it_less_and_less_often() {
    let rules = RestartRules { cooldown: ms(1_000), ..RestartRules::default() };
    let mut world = preferring(&[("me", 10)], rules);
    for twice in [1, 2] {
        while world.role() != Role::Candidate {
            answer_all(&mut world, &free(), &ExtendAnswer::Ok);
            world.pass(ms(1));
        }
        for node in NODES {
            let asked = world.acquire_for(node);
            let Request::Acquire { proposal, .. } = asked.request else { unreachable!() };
            world.answer(&asked, Answer::Acquire(AcquireAnswer::Granted { token: proposal }));
        }
        world.guard(GuardReport::LaunchFailed("no memory".into()));
        while world.role() != Role::Cooldown {
            world.asked.retain(|asked| matches!(asked.request, Request::Release { .. }));
            let asked = world.asked.pop_front().expect("it releases");
            world.answer(&asked, Answer::Released);
        }
        let after = pass_until_bid(&mut world, HOLD * 8).expect("it bids");
        let hold = HOLD * (1 << twice);
        assert!(after >= hold + ms(1_000) && after < hold + ms(1_100), "{after:?}");
        // The holder has let go.
        world.node(FromNode::Touched { node: A });
    }
}

#[test]
fn a_holder_gives_way_to_a_bid_of_a_quorum_and_stays_out_for_a_moment_only() {
    let mut world = leading_for(less_preferred(), HOLD);
    extended_with_bid(&mut world, &bid("other"), &[A, C]);
    assert_eq!(world.role(), Role::SteppingDown);
    assert!(world.has_stopped_politely() && !world.has_killed());
    assert_eq!(world.last_reason(), Some(&Reason::Outbid(bid("other"))));
    world.ack();
    world.guard(GuardReport::Exited(Exit::Code(0)));
    world.guard(GuardReport::TreeDead { killed: 0, last: true });
    for node in NODES {
        world.asked.retain(|asked| matches!(asked.request, Request::Release { .. }));
        world.reply(node, Answer::Released);
        if world.role() == Role::Standby {
            break;
        }
    }
    world.forget();
    // The bidder has died meanwhile.
    let mut waited = Duration::ZERO;
    while world.role() == Role::Standby && waited < ms(2_000) {
        answer_all(&mut world, &free(), &ExtendAnswer::Ok);
        world.pass(ms(10));
        waited += ms(10);
    }
    assert!(waited >= ms(600) && waited < ms(700), "{waited:?}");
}

#[test]
fn a_bid_that_is_no_quorums_or_not_preferred_by_the_holders_own_file_changes_nothing() {
    let mut world = leading_for(less_preferred(), HOLD);
    extended_with_bid(&mut world, &bid("other"), &[B]);
    extended_with_bid(&mut world, &bid("third"), &NODES);
    assert_eq!(world.role(), Role::Leader);
    // Two bids of different hosts are no quorum for either.
    while world.asked.is_empty() {
        world.pass(ms(10));
    }
    for (node, host) in [(A, "other"), (B, "third")] {
        let asked = world.next_for(node);
        world.node(FromNode::Bid { node, ticket: asked.ticket, bid: bid(host) });
        world.answer(&asked, Answer::Extend(ExtendAnswer::Ok));
    }
    assert_eq!(world.role(), Role::Leader);
}

#[test]
fn bids_of_different_rounds_do_not_add_up() {
    let mut world = leading_for(less_preferred(), HOLD);
    extended_with_bid(&mut world, &bid("other"), &[A]);
    extended_with_bid(&mut world, &bid("other"), &[B]);
    assert_eq!(world.role(), Role::Leader);
}

#[test]
fn a_term_younger_than_hold_does_not_give_way() {
    let mut world = leading_for(less_preferred(), HOLD - ms(1_900));
    extended_with_bid(&mut world, &bid("other"), &NODES);
    assert_eq!(world.role(), Role::Leader);
    lead_on(&mut world, ms(1_900));
    extended_with_bid(&mut world, &bid("other"), &NODES);
    assert_eq!(world.role(), Role::SteppingDown);
}

#[test]
fn a_keeper_that_has_finished_is_not_run_once_more_on_the_preferred_host() {
    let rules = RestartRules { policy: RestartPolicy::Never, ..RestartRules::default() };
    let mut world = leading_for(preferring(&[("other", 10)], rules), HOLD);
    world.guard(GuardReport::Exited(Exit::Code(0)));
    world.guard(GuardReport::TreeDead { killed: 0, last: false });
    assert_eq!(world.role(), Role::Finished);
    extended_with_bid(&mut world, &bid("other"), &NODES);
    assert_eq!(world.role(), Role::Finished);
}
