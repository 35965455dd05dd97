//! Faults of every kind, drawn by seed, one after the other and on top of each other, for as long as one likes, on several
//! hosts with several keepers; healed now and then, and then everything must run.

mod faults;
mod report;

use super::{Scenario, seconds};
use crate::checker::Violation;
use crate::clock::{boot_ns, nanos};
use crate::faketime::Clock;
use crate::step::{Step, check, failure};
use crate::trial::{QUARANTINE, Setup, TTL, Trial, WITH_QUARANTINE, millis, secs};
use faults::Faults;
use report::Watch;
use std::time::Duration;

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "nemesis",
        shows: "six keepers on three hosts under faults of every kind for 2 minutes (E2E_SECONDS), and a report",
        story: |t| rage(t, &FEW, secs(120), FEW_CHILD),
        limit: secs(200),
        alone: false,
    },
    Scenario {
        name: "killed_at_birth",
        shows: "daemon, guard or child killed at random within the first milliseconds of a term, twelve rounds",
        story: killed_at_birth,
        limit: secs(150),
        alone: false,
    },
    Scenario {
        name: "nemesis_many",
        shows: "the same with 30 keepers for 50 s",
        story: |t| rage(t, &MANY, secs(50), MANY_CHILD),
        limit: secs(140),
        alone: false,
    },
];

const HOSTS: [&str; 3] = ["a", "b", "c"];
const FEW: [&str; 6] = ["oracle", "k1", "k2", "k3", "k4", "k5"];
const FEW_CHILD: &[&str] = &["--grandchild", "--linger", "50", "--tick", "10"];
const MANY: [&str; 30] = [
    "oracle", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "m9", "m10", "m11", "m12", "m13", "m14", "m15",
    "m16", "m17", "m18", "m19", "m20", "m21", "m22", "m23", "m24", "m25", "m26", "m27", "m28", "m29",
];
const MANY_CHILD: &[&str] = &["--linger", "20", "--tick", "50"];

/// Children are killed often here: that must not look like a sick host.
const KEEPER_LINES: &str =
    "restart_delay = \"50ms\"\nrestart_delay_max = \"100ms\"\ngive_up_after = 1000\ncooldown = \"1s\"";

/// One round: faults for so long, then heal, and all must run.
const STORM: Duration = secs(30);
const CALM: Duration = secs(3);
const RECORDS_KEPT: usize = 20_000;
const STEP: Duration = millis(20);
/// Everything is healed: quarantine, a lease that nobody can release, an election, on a machine under load.
const RECOVERY: Duration = Duration::from_millis(4100 + 2000 + 4000);

fn rage(t: &mut Trial, keepers: &[&'static str], usual: Duration, child: &[&'static str]) -> Step {
    let setup = Setup {
        hosts: HOSTS.to_vec(),
        keepers: keepers.to_vec(),
        child: child.to_vec(),
        // One host's children do not listen: they are killed, when stop_timeout is over or at kill_at.
        command_of: vec![("c", [child, &["--ignore-term"]].concat())],
        keeper_lines: KEEPER_LINES,
        quarantine: WITH_QUARANTINE,
        proxied: true,
        log_level: "info",
        ..Setup::default()
    };
    t.witness.keep_max = Some(RECORDS_KEPT);
    t.locks_may_linger = true;
    t.prepare(setup)?;
    let clocks = Clock::available();
    match &clocks {
        Ok(_) => t.nodes.iter_mut().try_for_each(crate::cluster::Node::give_clock)?,
        Err(why) => t.figure(format!("no clock steps: {}", why.why)),
    }
    t.start_nodes()?;
    t.start_all()?;
    let mut rage = Rage { faults: Faults::new(&HOSTS), watch: Watch::new(keepers), judged_at: 0 };
    let raged = rage.rounds(t, seconds().unwrap_or(usual), clocks.is_ok());
    // After a failure, too: an hour's figures are not thrown away with the last minute's.
    let reported = rage.watch.report(t, &rage.faults);
    raged.map_err(|f| failure(format!("{}\nuntil then: {}", f.why, t.figures())))?;
    reported
}

fn killed_at_birth(t: &mut Trial) -> Step {
    t.locks_may_linger = true;
    let child = vec!["--grandchild"];
    t.begin(Setup { hosts: HOSTS.to_vec(), child, keeper_lines: KEEPER_LINES, ..Setup::default() })?;
    let mut faults = Faults::new(&HOSTS);
    let mut rounds = 0;
    // A term that begins on a host whose last fault is not yet mended is not met.
    while rounds < 12 || (faults.hits_of("killed at birth") == 0 && rounds < 40) {
        t.anybody(TTL + secs(5))?;
        // A child that just now got no turn for a while looks like none.
        t.until("there is a guard to begin with", |t| {
            let target = faults.target(t);
            faults.kill_at_birth(t, target)
        })?;
        faults.heal(t)?;
        rounds += 1;
    }
    let killed = faults.hits_of("killed at birth");
    t.figure(format!("{killed} of {rounds} killed at birth"));
    check(killed > 0, "no new term was met")?;
    t.pause(millis(500));
    let last = t.anybody(TTL + secs(5))?;
    t.runs_on(&last, secs(1))
}

struct Rage {
    faults: Faults,
    watch: Watch,
    judged_at: u64,
}

impl Rage {
    fn rounds(&mut self, t: &mut Trial, span: Duration, clocks: bool) -> Step {
        let mut end = boot_ns() + nanos(span);
        self.all_run(t)?;
        let mut longer = false;
        loop {
            // Dice can be unkind: then there is one storm more.
            if boot_ns() >= end && !longer && !self.watch.saw_much(t, &self.faults) {
                (longer, end) = (true, boot_ns() + nanos(STORM));
            }
            if boot_ns() >= end {
                return Ok(());
            }
            self.storm(t, end)?;
            self.faults.heal(t)?;
            self.all_run(t)?;
            self.calm(t, CALM)?;
            if clocks && boot_ns() < end {
                self.clock_of_one_node(t)?;
            }
            if clocks && boot_ns() < end {
                self.clock_beside_a_fault(t)?;
            }
        }
    }

    fn storm(&mut self, t: &mut Trial, end: u64) -> Step {
        let end = end.min(boot_ns() + nanos(STORM));
        let mut next = boot_ns();
        while boot_ns() < end {
            self.faults.undo_due(t)?;
            if boot_ns() >= next {
                self.faults.draw(t)?;
                next = boot_ns() + t.chance.below(nanos(millis(3000)));
            }
            self.look(t)?;
        }
        Ok(())
    }

    /// Nothing is broken any more: every keeper must run soon, or the fault is ours. Who runs at first may be at the end of a lease
    /// that the last faults have cost it, so that counts only after a ttl.
    fn all_run(&mut self, t: &mut Trial) -> Step {
        let since = boot_ns();
        loop {
            self.look(t)?;
            let idle = self.watch.idle(t);
            if idle.is_empty() && boot_ns() > since + nanos(TTL) {
                return Ok(());
            }
            let over = boot_ns() > since + nanos(RECOVERY.max(QUARANTINE + TTL));
            check(!over, format!("{RECOVERY:?} after everything was healed nobody runs {idle:?}"))?;
        }
    }

    /// One node's clock jumps or flickers to and fro, and nobody may notice. Nothing else is broken: a step forward makes a node
    /// forget its locks without a quarantine, which is survived only where the others hold them (tests/README.md).
    fn clock_of_one_node(&mut self, t: &mut Trial) -> Step {
        let node = t.random_node();
        self.stands_without(t, node)?;
        let ahead = bump(t);
        let strobe = t.chance.below(3) == 0;
        let period = 1 + t.chance.below(200);
        let kind = if strobe { "clock strobes" } else { "clock steps" };
        let fault = Faults::begin(t, kind, None, None);
        t.note(format!("{kind} on redis-{node}: {ahead} ms, period {period} ms"));
        if strobe {
            let end = boot_ns() + nanos(millis(1500));
            let mut on = false;
            while boot_ns() < end {
                on = !on;
                set_clock(t, node, if on { ahead } else { 0 })?;
                t.pause(millis(period));
                self.look(t)?;
            }
        } else {
            set_clock(t, node, ahead)?;
            self.calm(t, secs(2))?;
        }
        set_clock(t, node, 0)?;
        self.faults.done(fault);
        self.faults.has_forgotten(node);
        self.calm(t, secs(2))
    }

    /// The same step, and a fault of a host right after it. No vote and no link is away besides, so two nodes keep every lock while
    /// the third forgets it, and so they do again before its clock is set right, which is a step, too.
    fn clock_beside_a_fault(&mut self, t: &mut Trial) -> Step {
        let node = t.random_node();
        self.stands_without(t, node)?;
        let ahead = bump(t);
        let fault = Faults::begin(t, "clock steps beside a fault of a host", None, None);
        t.note(format!("clock of redis-{node}: {ahead} ms"));
        set_clock(t, node, ahead)?;
        self.faults.done(fault);
        self.faults.has_forgotten(node);
        // Before the lock is put back on the node, or after.
        let until = boot_ns() + t.chance.below(nanos(TTL / 2));
        while boot_ns() < until {
            self.look(t)?;
        }
        self.faults.draw_of_hosts(t)?;
        while !self.faults.all_mended() {
            self.faults.undo_due(t)?;
            self.look(t)?;
        }
        self.all_run(t)?;
        self.stands_without(t, node)?;
        t.note(format!("clock of redis-{node} is set right"));
        set_clock(t, node, 0)?;
        self.faults.has_forgotten(node);
        self.calm(t, secs(2))
    }

    /// Until the other nodes have every lock for one and the same holder.
    fn stands_without(&mut self, t: &mut Trial, without: char) -> Step {
        let since = boot_ns();
        loop {
            let keepers = t.setup.keepers.iter();
            let stands = |keeper: &&&str| {
                let key = format!("redlock:{keeper}");
                let mut others = t.nodes.iter().filter(|node| node.name != without);
                let first = others.next().and_then(|node| node.get(&key).ok().flatten());
                first.is_some() && others.all(|node| node.get(&key).ok().flatten() == first)
            };
            let Some(missing) = keepers.clone().find(|keeper| !stands(keeper)) else { return Ok(()) };
            let over = boot_ns() > since + nanos(RECOVERY);
            check(!over, format!("{missing} is not held alike by all nodes but redis-{without}"))?;
            self.look(t)?;
        }
    }

    /// Whoever runs goes on running.
    fn calm(&mut self, t: &mut Trial, span: Duration) -> Step {
        // What was killed a moment ago may still be on its way to a restart.
        t.pause(millis(300));
        let since = boot_ns();
        while boot_ns() < since + nanos(span) {
            self.look(t)?;
        }
        t.witness.look()?;
        for keeper in t.setup.keepers.clone() {
            if let Some(new) = t.witness.lives(keeper).iter().find(|l| l.start > since) {
                return Err(failure(format!(
                    "{keeper}: {} started although nothing was wrong",
                    new.instance
                )));
            }
            let silent = boot_ns().saturating_sub(t.witness.judge.last_of(keeper).unwrap_or(0));
            check(silent < nanos(millis(700)), format!("{keeper} ended although nothing was wrong"))?;
        }
        Ok(())
    }

    /// One turn of the witness: reads, counts, and once a second judges.
    fn look(&mut self, t: &mut Trial) -> Step {
        t.witness.look()?;
        self.watch.sample(t, &self.faults);
        if boot_ns() > self.judged_at + 1_000_000_000 {
            self.judged_at = boot_ns();
            let found = t.findings();
            let text: Vec<String> = found.iter().take(5).map(Violation::to_string).collect();
            check(found.is_empty(), text.join("\n"))?;
            self.faults.daemons_stand(t)?;
        }
        t.pause(STEP);
        Ok(())
    }
}

/// Jepsen's exponential bumps, both ways, in milliseconds.
fn bump(t: &mut Trial) -> i64 {
    let size = 100 << t.chance.below(10);
    if t.chance.below(2) == 0 { size } else { -size }
}

fn set_clock(t: &mut Trial, node: char, ahead_ms: i64) -> Step {
    t.node(node).clock.as_ref().map_or(Ok(()), |clock| clock.set(ahead_ms))
}
