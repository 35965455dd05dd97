use crate::child::{answer_releases, exits, hold};
use crate::world::*;
use keeperd::core::election::{Action, GuardReport, ProbeNumber, Probed};
use keeperd::core::event::{Command, Event, Reason, Role};
use keeperd::core::lease::FencingToken;
use keeperd::core::request::{Answer, LookAnswer};
use keeperd::core::restart::{Ending, Exit, RestartPolicy, RestartRules, Restarts, Verdict};
use keeperd::core::rng::{Rng, Seed};
use keeperd::core::time::Instant;
use std::time::Duration;

const TERM: Exit = Exit::Signal(15);

fn quick() -> RestartRules {
    RestartRules { delay: ms(10), delay_max: ms(10), ..RestartRules::default() }
}

fn restarts(world: &World) -> bool {
    world.actions.iter().any(|action| matches!(action, Action::Restart { .. }))
}

fn spawns(world: &World) -> bool {
    world.actions.iter().any(|action| matches!(action, Action::Spawn { .. }))
}

/// Its child is told to stop, and does.
fn falls_ill(world: &mut World) {
    world.health(world.child_probed(), Some("health: exit code 1"));
    assert!(restarts(world));
    exits(world, TERM);
}

fn free(world: &mut World) {
    for node in NODES {
        while let Some(place) = world.asked.iter().position(|asked| asked.node == node) {
            let asked = world.asked.remove(place).expect("just found");
            world.answer(&asked, Answer::Look(LookAnswer::Free { token: FencingToken(0) }));
        }
    }
}

#[test]
fn an_unhealthy_child_is_restarted_within_the_term() {
    let mut world = World::leading_with(quick());
    let token = world.election.token();
    let since = world.at();
    world.health(world.child_probed(), Some("health: exit code 1"));
    let kill_by = since + world.election.timing().stop_timeout();
    assert!(world.actions.contains(&Action::Restart { kill_by }));
    assert_eq!(world.election.probed(), Probed::Nothing, "what is being stopped is not probed");
    assert_eq!(world.election.child_pid(), Some(4711), "it lives until it is reported dead");
    let reason = Reason::Unhealthy("health: exit code 1".into());
    assert!(world.events.contains(&Event::RestartBegins { reason }));
    world.guard(GuardReport::Exited(TERM));
    assert!(world.events.contains(&Event::ChildExited {
        exit: TERM,
        ran: Duration::ZERO,
        ending: Ending::Unhealthy
    }));
    hold(&mut world, ms(20));
    assert!(!spawns(&world), "nothing starts before the proof that all of it is dead");
    world.guard(GuardReport::TreeDead { killed: 1, last: false });
    world.pass(ms(10));
    assert!(spawns(&world));
    assert_eq!((world.role(), world.election.token()), (Role::Leader, token));
    assert_eq!(world.election.restarts(), 1);
    assert!(!world.has_released());
}

#[test]
fn a_child_that_stays_unhealthy_is_given_up_and_the_host_cools_down() {
    let mut world = World::leading_with(quick());
    for failure in 1..=5 {
        assert_eq!(world.role(), Role::Leader, "before failure {failure}");
        falls_ill(&mut world);
        if failure < 5 {
            hold(&mut world, ms(20));
            world.guard(GuardReport::Started { pid: 5000 + failure });
        }
    }
    assert_eq!(world.last_reason(), Some(&Reason::GaveUp { failures: 5 }));
    world.guard(GuardReport::TreeDead { killed: 0, last: true });
    answer_releases(&mut world);
    assert_eq!(world.role(), Role::Cooldown);
}

#[test]
fn a_child_that_is_never_restarted_goes_to_another_host_when_it_is_unhealthy() {
    let mut world = World::leading_with(RestartRules { policy: RestartPolicy::Never, ..quick() });
    falls_ill(&mut world);
    assert_eq!(world.last_reason(), Some(&Reason::GaveUp { failures: 1 }));
    world.guard(GuardReport::TreeDead { killed: 0, last: true });
    answer_releases(&mut world);
    assert_eq!(
        world.role(),
        Role::Cooldown,
        "it was not done, and must not be held without a child for ever"
    );
}

#[test]
fn what_the_configuration_counts_as_a_crash_loop_gives_up() {
    for (give_up_after, delay, delay_max) in [(5, 1000, 60_000), (20, 10, 40), (2, 500, 500), (1, 1000, 1000)]
    {
        let rules = RestartRules { give_up_after, delay: ms(delay), delay_max: ms(delay_max), ..quick() };
        let rules = RestartRules { give_up_window: rules.crash_loop_lasts() + ms(1), ..rules };
        let mut restarts = Restarts::new(rules);
        let (mut now, mut rng) = (Instant::default() + ms(1), Rng::new(Seed(1)));
        let verdicts = (1..=give_up_after).map(|_| {
            let verdict = restarts.decide(now, Ending::ByItself, Exit::Code(1), Duration::ZERO, &mut rng);
            if let Verdict::Restart { at } = verdict {
                now = at;
            }
            verdict
        });
        assert_eq!(verdicts.last(), Some(Verdict::GiveUp { failures: give_up_after }));
    }
}

#[test]
fn an_exit_code_of_success_does_not_make_an_unhealthy_child_a_success() {
    let mut world = World::leading_with(RestartRules { policy: RestartPolicy::OnFailure, ..quick() });
    world.health(world.child_probed(), Some("sick"));
    exits(&mut world, Exit::Code(0));
    assert_eq!(world.role(), Role::Leader, "it is started again");
    world.pass(ms(10));
    assert!(spawns(&world));
}

#[test]
fn a_result_about_an_older_child_does_not_hurt_the_next() {
    let mut world = World::leading_with(quick());
    let old = world.child_probed();
    exits(&mut world, Exit::Code(1));
    world.health(old, Some("sick"));
    hold(&mut world, ms(20));
    world.health(old, Some("sick"));
    world.guard(GuardReport::Started { pid: 4711 });
    assert_ne!(world.child_probed(), old, "the same pid is another child");
    world.health(old, Some("sick"));
    assert!(!restarts(&world));
    world.health(world.child_probed(), None);
    assert!(!restarts(&world));
}

#[test]
fn a_restart_that_is_asked_for_is_no_failure_and_does_not_wait() {
    let mut world = World::leading();
    for _ in 0..20 {
        world.command(Command::Restart);
        assert!(restarts(&world));
        world.ack();
        exits(&mut world, TERM);
        assert!(spawns(&world), "at once");
        world.ack();
        world.guard(GuardReport::Started { pid: 1 });
        world.actions.clear();
    }
    assert_eq!((world.role(), world.election.restarts()), (Role::Leader, 20));
}

#[test]
fn a_restart_that_is_asked_for_ends_a_back_off_and_revives_a_finished_keeper() {
    let mut world = World::leading();
    exits(&mut world, Exit::Code(1));
    assert!(!spawns(&world));
    world.command(Command::Restart);
    assert!(spawns(&world));
    let mut world =
        World::leading_with(RestartRules { policy: RestartPolicy::Never, ..RestartRules::default() });
    exits(&mut world, Exit::Code(0));
    assert_eq!(world.role(), Role::Finished);
    world.command(Command::Restart);
    assert_eq!(world.role(), Role::Leader);
    assert!(spawns(&world));
    assert_eq!(world.last_reason(), Some(&Reason::Command(Command::Restart)));
}

#[test]
fn a_restart_that_is_asked_for_elsewhere_changes_nothing() {
    let mut world = World::new(RestartRules::default());
    world.forget();
    world.command(Command::Restart);
    assert!(world.actions.is_empty() && world.events.is_empty());
    let mut world = World::leading();
    world.command(Command::StepDown);
    world.forget();
    world.command(Command::Restart);
    assert!(!restarts(&world), "it is stopping for good");
}

#[test]
fn a_lease_that_ends_during_a_restart_ends_the_term() {
    let mut world = World::leading();
    world.pass(ms(1_300));
    world.command(Command::Restart);
    world.ack();
    world.forget();
    world.pass(ms(100));
    assert!(world.has_stopped_politely());
    assert_eq!(world.role(), Role::SteppingDown);
    world.guard(GuardReport::Exited(TERM));
    world.guard(GuardReport::TreeDead { killed: 0, last: true });
    assert!(world.has_released());
}

#[test]
fn a_guard_that_latched_before_it_read_of_the_restart_ends_the_term() {
    let mut world = World::leading();
    world.command(Command::Restart);
    world.guard(GuardReport::Acked { accepted: false });
    assert_eq!(world.last_reason(), Some(&Reason::GuardStopped));
}

#[test]
fn a_host_that_must_be_fit_does_not_stand_before_its_first_probe_has_succeeded() {
    let mut world = World::cautious(RestartRules::default());
    free(&mut world);
    assert_eq!(world.role(), Role::Standby);
    let Probed::Host(number) = world.election.probed() else { panic!("the host is to be probed") };
    world.health(number, Some("health: exit code 1"));
    assert!(world.events.contains(&Event::HostUnfit { why: "health: exit code 1".into() }));
    world.pass(Duration::from_secs(10));
    free(&mut world);
    assert_eq!(world.role(), Role::Standby);
    world.health(ProbeNumber(number.0 + 1), None);
    free(&mut world);
    assert_eq!(world.role(), Role::Standby, "that was about something else");
    world.health(number, None);
    free(&mut world);
    assert_eq!(world.role(), Role::Candidate);
}

#[test]
fn a_candidate_that_is_found_unfit_gives_up_and_releases() {
    let mut world = World::cautious(RestartRules::default());
    let Probed::Host(number) = world.election.probed() else { panic!("the host is to be probed") };
    world.health(number, None);
    free(&mut world);
    assert_eq!(world.role(), Role::Candidate);
    world.health(number, Some("sick"));
    assert_eq!(world.role(), Role::Standby);
    assert_eq!(world.last_reason(), Some(&Reason::Unfit("sick".into())));
    assert!(world.has_released());
}

#[test]
fn after_a_term_the_host_has_to_be_found_fit_anew() {
    let mut world = World::cautious(RestartRules::default());
    let Probed::Host(number) = world.election.probed() else { panic!("the host is to be probed") };
    world.health(number, None);
    world.elect();
    world.child_runs();
    world.command(Command::Pause);
    world.guard(GuardReport::TreeDead { killed: 0, last: true });
    answer_releases(&mut world);
    world.command(Command::Resume);
    world.forget();
    world.pass(Duration::from_secs(2));
    free(&mut world);
    assert_eq!(world.role(), Role::Standby);
    let Probed::Host(anew) = world.election.probed() else { panic!("the host is to be probed") };
    assert!(anew > number);
    world.health(anew, None);
    free(&mut world);
    assert_eq!(world.role(), Role::Candidate);
}
