//! The story of a run, one line an event. Nothing is formatted unless somebody reads it.

use crate::clock::{MS, Nanos, SEC, US};
use std::collections::VecDeque;

pub const LEGEND: &str = "     true time  party  what happened      (hN host, nN node, gN guard of a term, lN legacy client; values by their first 4 digits)";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Telling {
    Nothing,
    /// Keep nothing but a sum over all lines.
    Digest,
    /// Keep the last lines.
    Last(usize),
    /// Print as it goes.
    Aloud,
}

#[derive(Debug)]
pub struct Trace {
    telling: Telling,
    pub digest: u64,
    pub lines: VecDeque<String>,
}

impl Trace {
    pub fn new(telling: Telling) -> Self {
        Trace { telling, digest: 0, lines: VecDeque::new() }
    }

    pub fn is_on(&self) -> bool {
        self.telling != Telling::Nothing
    }

    pub fn line(&mut self, now: Nanos, party: &str, what: &str) {
        let line =
            format!("{:>6}.{:03}_{:03} s  {party:<5}  {what}", now / SEC, now % SEC / MS, now % MS / US);
        match self.telling {
            Telling::Nothing => {}
            Telling::Digest => {
                let sum = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                self.digest = line.bytes().fold(self.digest, sum);
            }
            Telling::Aloud => println!("{line}"),
            Telling::Last(most) => {
                if self.lines.len() == most {
                    self.lines.pop_front();
                }
                self.lines.push_back(line);
            }
        }
    }
}

/// `say!(world, "h1", "format", …)`: formatted only when the trace is on.
#[macro_export]
macro_rules! say {
    ($world:expr, $party:expr, $($what:tt)+) => {
        if $world.trace.is_on() {
            let (now, party) = ($world.now, $party.to_string());
            $world.trace.line(now, &party, &format!($($what)+));
        }
    };
}

/// An event of the core as a line of the story: the answers node by node, without the names of the fields.
pub fn told(event: &crate::core::event::Event) -> String {
    use crate::core::event::Event;
    match event {
        Event::RoleChanged { from, to, reason, token, lease_left, .. } => {
            format!("{from:?} -> {to:?}: {reason:?}, {token:?}, lease left {lease_left:?}")
        }
        Event::Elected { outcome, votes } => {
            let votes: Vec<_> = votes.iter().map(|(node, said)| format!("n{}:{said:?}", node.0)).collect();
            format!("election {outcome:?} {}", votes.join(" "))
        }
        Event::Extended { outcome, took, votes } => {
            let votes: Vec<_> = votes.iter().map(|(node, said)| format!("n{}:{said:?}", node.0)).collect();
            format!("extension {outcome:?} after {took:?} {}", votes.join(" "))
        }
        other => format!("{other:?}"),
    }
}

pub fn asked(request: &crate::core::request::Request) -> &'static str {
    use crate::core::request::Request;
    match request {
        Request::Look => "look",
        Request::Acquire { .. } => "acquire",
        Request::Raise { .. } => "raise",
        Request::Extend { .. } => "extend",
        Request::Check { .. } => "check",
        Request::Repair { .. } => "repair",
        Request::Release { .. } => "release",
        Request::Bid { .. } => "bid",
    }
}
