//! The checker must be able to complain.

use super::{Scenario, scenario};
use crate::step::Step;
use crate::trial::{Setup, Trial, secs};

pub const ALL: &[Scenario] = &[scenario(
    "control_disjoint_nodes",
    "two hosts told of different nodes both run: MUST be flagged",
    disjoint,
)];

fn disjoint(t: &mut Trial) -> Step {
    t.must_be_flagged = true;
    let first = t.begin(Setup { nodes: 2, disjoint: true, ..Setup::default() })?;
    t.successor(&first, first.start - 1_000_000_000, secs(4))?;
    t.pause(secs(2));
    Ok(())
}
