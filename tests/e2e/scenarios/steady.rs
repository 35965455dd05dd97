//! Nothing happens, and nothing must.

use super::{Scenario, scenario};
use crate::checker::Life;
use crate::step::{Step, check};
use crate::trial::{KEEPER, Setup, Trial, VALID, secs};
use nix::sys::signal::Signal;

pub const ALL: &[Scenario] = &[
    scenario(
        "steady",
        "three hosts, three keepers, 10 s: one child each, status and Redis agree with it",
        steady,
    ),
    scenario(
        "late_nodes",
        "daemons started while all nodes are down wait, and run once the nodes come",
        late_nodes,
    ),
    scenario(
        "deaf_log",
        "nobody reads the daemon's log while it is stopped and goes on: no lease is lost",
        deaf_log,
    ),
];

fn steady(t: &mut Trial) -> Step {
    let keepers = vec![KEEPER, "second", "third"];
    let setup = Setup { hosts: vec!["a", "b", "c"], keepers: keepers.clone(), ..Setup::default() };
    let child = t.begin(setup)?;
    t.runs_on(&child, secs(10))?;
    status_agrees(t, &child)?;
    redis_agrees(t, &child)?;
    for keeper in keepers {
        let lives = t.witness.lives(keeper);
        check(lives.len() == 1, format!("{keeper} was started {} times", lives.len()))?;
    }
    Ok(())
}

fn status_agrees(t: &mut Trial, child: &Life) -> Step {
    let holder = Trial::holder_of(child);
    let status = t.daemon(&holder)?.keeper_status(KEEPER)?;
    let agrees = status["role"] == "leader" && status["token"] == child.token && status["pid"] == child.pid;
    check(agrees, format!("status of the holder says {status}, the child {child:?}"))?;
    for other in ["a", "b", "c"].into_iter().filter(|h| *h != holder) {
        let status = t.daemon(other)?.keeper_status(KEEPER)?;
        check(status["role"] == "standby", format!("status of {other} says {status}"))?;
    }
    Ok(())
}

/// `KEYS redlock:*` lists the locks and nothing else, all with one value on every node.
fn redis_agrees(t: &mut Trial, _child: &Life) -> Step {
    let mut values = Vec::new();
    for node in &t.nodes {
        let mut keys = node.keys("redlock:*")?;
        keys.sort();
        check(keys == ["redlock:oracle", "redlock:second", "redlock:third"], format!("keys: {keys:?}"))?;
        values.push(node.get(&Trial::lock_key())?);
    }
    check(values.iter().all(|v| v.is_some() && *v == values[0]), format!("values: {values:?}"))
}

fn late_nodes(t: &mut Trial) -> Step {
    t.prepare(Setup::default())?;
    t.start_all()?;
    t.pause(secs(2));
    check(t.is_running("a") && t.is_running("b"), "a daemon gave up because no node was there")?;
    let up = t.note("the nodes come");
    t.start_nodes()?;
    let child = t.next_child(up, secs(10))?;
    t.figure(format!("child {} after the nodes", crate::clock::ms(child.start - up)));
    t.runs_on(&child, secs(2))
}

/// The pipe of the log fills up and stays full; extensions go on. The daemon is told to shout through its child.
fn deaf_log(t: &mut Trial) -> Step {
    let setup = Setup { deaf_stderr: true, child: vec!["--shout"], ..Setup::default() };
    let child = t.begin(setup)?;
    t.runs_on(&child, secs(6))?;
    t.random_moment();
    let at = t.signal(&Trial::holder_of(&child), Signal::SIGTERM)?;
    let next = t.successor(&child, at, VALID + secs(3))?;
    t.runs_on(&next, secs(1))
}
