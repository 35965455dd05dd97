//! What commands cost a node: time on its core, and how many it counts (`total_commands_processed`, which counts those inside scripts).

use crate::clock::{Nanos, US};
use crate::core::request::{AcquireAnswer, Answer, ExtendAnswer, Request};

/// One visit to a node.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub core: Nanos,
    pub commands: u64,
}

const fn cost(core_us: u64, commands: u64) -> Cost {
    Cost { core: core_us * US, commands }
}

// What `benches/run costs` has measured, the commands too.
pub const GLANCE: Cost = cost(11, 2);
pub const LOOK: Cost = cost(14, 8);
pub const WATCH: Cost = GLANCE;
const GRANTED: Cost = cost(32, 9);
const REFUSED: Cost = cost(26, 11);
const EXTEND: Cost = cost(33, 10);
const CHECK: Cost = cost(25, 7);
const RELEASE: Cost = cost(25, 10);
const REPAIR: Cost = cost(28, 9);
const RAISE: Cost = cost(21, 4);
/// To tell one connection that a key has changed.
pub const PUSH: Nanos = 4 * US;
/// Of a connection, from the first byte until the node serves: 186 µs and 17 commands in so many trips.
pub const HANDSHAKE_TRIPS: u8 = 6;
pub const HANDSHAKE: Cost = cost(31, 3);
/// A release of a value that nobody waits for, on a fresh connection.
pub const SETTLE: Cost = RELEASE;

pub fn of(request: &Request, answer: &Answer) -> Cost {
    match (request, answer) {
        (Request::Look, _) => LOOK,
        (
            Request::Acquire { .. },
            Answer::Acquire(AcquireAnswer::Granted { .. } | AcquireAnswer::Mine { .. }),
        ) => GRANTED,
        (Request::Acquire { .. }, _) => REFUSED,
        (Request::Raise { .. }, _) => RAISE,
        (Request::Extend { .. }, Answer::Extend(ExtendAnswer::Ok)) => EXTEND,
        (Request::Extend { .. }, _) => CHECK,
        (Request::Check { .. }, _) => CHECK,
        (Request::Repair { .. }, _) => REPAIR,
        (Request::Release { .. }, _) => RELEASE,
        (Request::Bid { .. }, _) => CHECK,
    }
}
