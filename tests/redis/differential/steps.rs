//! What can be done to a node, and both nodes that it is done to.

use super::checked;
use super::kept::{Kept, Left};
use super::simulated::{Key, Node, Reply, Terms, hex};
use super::variant::{Broken, Variant};
use super::wire::Wire;
use crate::clock::{NEVER, NodeClock};
use keeperd::core::lease::{FencingToken, Value};
use keeperd::core::preference::Priority;
use keeperd::core::request::{
    AcquireAnswer, Answer, ExtendAnswer, Held, Holder, LookAnswer, RepairAnswer, Request,
};
use keeperd::core::time::Instant;
use proptest::prelude::*;
use proptest::strategy::Union;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

const HOUR_US: u64 = 3_600_000_000;
const QUARANTINE_US: u64 = 30_000_000;
/// Of a client of the npm package.
const LEGACY: u128 = 9;
const LEGACY_TTL_MS: u64 = 100_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alphabet {
    Whole,
    /// What the model's node has a notion of, with a rule that it breaks.
    OfTheModel(Broken),
}

impl Alphabet {
    fn is_whole(self) -> bool {
        self == Alphabet::Whole
    }
}

#[derive(Clone, Copy, Debug)]
pub enum What {
    Look,
    Acquire,
    Raise,
    Extend,
    Check,
    Repair,
    Release,
    Bid(i32),
}

/// A token, as far as it matters.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    /// Beside the one that stands there.
    Beside(i64),
    /// This host's clock.
    Clock,
    /// A clock that is wrong.
    Ahead,
    /// None is larger.
    Last,
}

#[derive(Clone, Copy, Debug)]
pub enum Hand {
    DeleteLock,
    DeleteShadow,
    ExpireLock,
    ExpireShadow,
    Legacy,
    Flush,
    /// FLUSHALL, and the marker is adopted anew.
    FlushAndAdopt,
    /// The quarantine is over.
    Votes,
    /// As after a step of its clock: its quarantine ends in hours.
    ClockStepsBack,
    /// Leases, bids and quarantine are over.
    Later,
    /// `keeperd pause --everywhere`, as far as one node is concerned, and `resume`.
    Pause,
    Resume,
    /// `keeperd unlock --force`.
    Evict,
}

#[derive(Clone, Copy, Debug)]
pub enum Step {
    Ask { what: What, value: u128, number: Number, late: bool, terms: Terms },
    Adopt(Terms),
    Hand(Hand),
}

fn terms(alphabet: Alphabet) -> impl Strategy<Value = Terms> {
    let (run, quarantine_us) = match alphabet {
        Alphabet::Whole => (
            prop_oneof![12 => Just(1), 1 => Just(2)].boxed(),
            prop_oneof![Just(0), Just(QUARANTINE_US)].boxed(),
        ),
        Alphabet::OfTheModel(_) => (Just(1).boxed(), Just(QUARANTINE_US).boxed()),
    };
    let part = (0..3_u16, run, 1..=4_u64, quarantine_us);
    part.prop_map(|(host, run, n, quarantine_us)| Terms { host, run, ttl_ms: n * 20_000, quarantine_us })
}

fn what(alphabet: Alphabet) -> impl Strategy<Value = What> {
    let bids = u32::from(alphabet.is_whole());
    prop_oneof![
        2 => Just(What::Look),
        6 => Just(What::Acquire),
        3 => Just(What::Raise),
        4 => Just(What::Extend),
        2 => Just(What::Check),
        3 => Just(What::Repair),
        3 => Just(What::Release),
        bids => (0..2).prop_map(What::Bid),
    ]
}

fn number(alphabet: Alphabet) -> impl Strategy<Value = Number> {
    let odd = u32::from(alphabet.is_whole());
    prop_oneof![
        16 => (-1..=2_i64).prop_map(Number::Beside),
        4 => Just(Number::Clock),
        odd => Just(Number::Ahead),
        odd => Just(Number::Last),
    ]
}

fn hand(alphabet: Alphabet) -> impl Strategy<Value = Hand> {
    let of_the_model = [(3, Hand::DeleteLock), (2, Hand::Later), (1, Hand::FlushAndAdopt)];
    let others = [
        (2, Hand::DeleteShadow),
        (2, Hand::ExpireLock),
        (2, Hand::ExpireShadow),
        (2, Hand::Legacy),
        (1, Hand::Flush),
        (2, Hand::Votes),
        (1, Hand::ClockStepsBack),
        (2, Hand::Pause),
        (4, Hand::Resume),
        (3, Hand::Evict),
    ];
    let others = others.into_iter().filter(|_| alphabet.is_whole());
    Union::new_weighted(of_the_model.into_iter().chain(others).map(|(n, hand)| (n, Just(hand))).collect())
}

pub fn any(alphabet: Alphabet) -> impl Strategy<Value = Step> {
    let late = prop_oneof![12 => Just(false), 1 => Just(true)];
    let ask = (what(alphabet), 1..=3_u128, number(alphabet), late, terms(alphabet))
        .prop_map(|(what, value, number, late, terms)| Step::Ask { what, value, number, late, terms });
    let adopts = u32::from(alphabet.is_whole());
    prop_oneof![
        24 => ask,
        adopts => terms(alphabet).prop_map(Step::Adopt),
        3 => hand(alphabet).prop_map(Step::Hand),
    ]
}

/// The real node, the simulated one, and the model's where it can follow.
pub struct Pair<'a> {
    real: &'a mut Wire,
    simulated: Node,
    model: Option<(checked::Node, Instant, Variant)>,
    /// Every kind there was.
    pub answers: BTreeSet<String>,
}

impl Pair<'_> {
    /// Empty, and voting from the start.
    pub fn new(real: &mut Wire, alphabet: Alphabet) -> Pair<'_> {
        let mut simulated = Node::new(NodeClock::new(0, 0), None);
        real.command(&["FLUSHALL"]);
        let terms = Terms { host: 0, run: 1, ttl_ms: 20_000, quarantine_us: 0 };
        let (us, _) = real.adopt(&terms).expect("an empty node is adopted");
        simulated.adopt(&terms, us * 1000);
        let now = Instant::from_nanos(us * 1000);
        let model = match alphabet {
            Alphabet::Whole => None,
            Alphabet::OfTheModel(broken) => {
                Some((checked::Node::default(), now, Variant { broken, ..Variant::default() }))
            }
        };
        Pair { real, simulated, model, answers: BTreeSet::new() }
    }

    /// # Errors
    /// In what the nodes differ.
    pub fn take(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Ask { what, value, number, late, terms } => {
                let deadline_us = if late { wall_us() - HOUR_US } else { wall_us() + HOUR_US };
                let request = self.request(what, Value(value), number, deadline_us);
                self.ask(&request, deadline_us, &terms)?;
            }
            Step::Adopt(terms) => self.adopt(&terms)?,
            Step::Hand(hand) => self.lay_on(hand)?,
        }
        let (real, simulated) = (self.real.kept(), Kept::of_simulated(&self.simulated, wall_us()));
        if real != simulated {
            return Err(format!("after {step:?}\n the node has {real:?}\nsimulated {simulated:?}"));
        }
        if let Some((model, now, _)) = &mut self.model {
            model.expire(*now);
            if !real.is_like(model) {
                return Err(format!("after {step:?}\n the node has {real:?}\n the model's {model:?}"));
            }
        }
        Ok(())
    }

    fn request(&self, what: What, value: Value, number: Number, deadline_us: u64) -> Request {
        let token = match number {
            Number::Beside(by) => self.simulated.data.fence.t.saturating_add_signed(by).max(1),
            Number::Clock => wall_us(),
            Number::Ahead => wall_us() + 2 * HOUR_US,
            Number::Last => FencingToken::MAX.0,
        };
        let token = FencingToken(token).min(FencingToken::MAX);
        let deadline = Instant::from_nanos(deadline_us * 1000);
        match what {
            What::Look => Request::Look,
            What::Acquire => Request::Acquire { value, proposal: token, deadline },
            What::Raise => Request::Raise { value, token, deadline },
            What::Extend => Request::Extend { value, token, deadline },
            What::Check => Request::Check { value },
            What::Repair => Request::Repair { value, token, deadline },
            What::Release => Request::Release { value },
            What::Bid(priority) => Request::Bid { priority: Priority(priority) },
        }
    }

    fn ask(&mut self, request: &Request, deadline_us: u64, terms: &Terms) -> Result<(), String> {
        let mut real = self.real.ask(request, deadline_us, terms)?;
        let mut simulated = self.simulated.carry_out(real.us * 1000, request, deadline_us, terms);
        let kind = format!("{:?}", real.answer);
        self.answers.insert(kind.split([' ', '{']).next().unwrap_or_default().to_owned());
        if let (Some(a), Some(b)) = (held(&mut real.answer), held(&mut simulated.answer))
            && left(a) == left(b)
        {
            (a.remaining, b.remaining) = (None, None);
        }
        let all = |r: &Reply| (r.us, r.answer.clone(), r.marker, r.bid.clone(), r.pause.clone());
        if all(&real) != all(&simulated) {
            return Err(format!("{request:?}\n the node says {real:?}\nsimulated {simulated:?}"));
        }
        if let Some((model, now, variant)) = &mut self.model {
            let said = model.carry_out(variant, *now, request);
            if plain(said.clone()) != plain(real.answer.clone()) {
                return Err(format!("{request:?}\n the node says {real:?}\n the model's {said:?}"));
            }
        }
        Ok(())
    }

    fn adopt(&mut self, terms: &Terms) -> Result<(), String> {
        let real = self.real.adopt(terms)?;
        let simulated = self.simulated.adopt(terms, real.0 * 1000);
        if real == simulated { Ok(()) } else { Err(format!("adopted {real:?}, simulated {simulated:?}")) }
    }

    fn lay_on(&mut self, hand: Hand) -> Result<(), String> {
        use super::super::host::{BID, KEY, SHADOW};
        let data = &mut self.simulated.data;
        match hand {
            Hand::DeleteLock => {
                self.real.command(&["DEL", KEY]);
                data.lock = None;
            }
            Hand::DeleteShadow => {
                self.real.command(&["DEL", SHADOW]);
                data.shadow = None;
            }
            Hand::ExpireLock => {
                self.real.expire(&[KEY]);
                data.lock.iter_mut().for_each(|key| key.expires_ms = 0);
            }
            Hand::ExpireShadow => {
                self.real.expire(&[SHADOW]);
                data.shadow.iter_mut().for_each(|key| key.expires_ms = 0);
            }
            Hand::Legacy => {
                let value = String::from_utf8(hex(LEGACY)).expect("digits");
                self.real.command(&["SET", KEY, &value, "NX", "PX", &LEGACY_TTL_MS.to_string()]);
                self.simulated.legacy_set(wall_us() * 1000, LEGACY, LEGACY_TTL_MS);
            }
            Hand::Flush | Hand::FlushAndAdopt => {
                self.real.command(&["FLUSHALL"]);
                *data = super::simulated::Data::default();
                if let Hand::FlushAndAdopt = hand {
                    self.adopt(&Terms { host: 0, run: 1, ttl_ms: 20_000, quarantine_us: QUARANTINE_US })?;
                }
            }
            Hand::Votes => self.votes_from(1),
            Hand::ClockStepsBack => self.votes_from(wall_us() + 2 * HOUR_US),
            Hand::Pause | Hand::Resume => {
                let on = matches!(hand, Hand::Pause);
                self.real.pause(on);
                data.paused_until = if on { NEVER } else { 0 };
            }
            Hand::Evict => self.evict(),
            Hand::Later => {
                self.real.expire(&[KEY, SHADOW, BID]);
                let keys = [&mut data.lock, &mut data.shadow].into_iter().flatten();
                keys.for_each(|key: &mut Key| key.expires_ms = 0);
                data.bid.iter_mut().for_each(|bid| bid.expires_ms = 0);
                self.votes_from(1);
            }
        }
        if let Some((model, now, variant)) = &mut self.model {
            match hand {
                Hand::DeleteLock => model.delete(),
                Hand::FlushAndAdopt => model.lose_data(*now, variant),
                Hand::Later => *now = *now + variant.quarantine(),
                Hand::DeleteShadow
                | Hand::ExpireLock
                | Hand::ExpireShadow
                | Hand::Legacy
                | Hand::Flush
                | Hand::Votes
                | Hand::ClockStepsBack
                | Hand::Pause
                | Hand::Resume
                | Hand::Evict => return Err(format!("{hand:?} means nothing to the model")),
            }
        }
        Ok(())
    }

    /// Whoever stands there. What is left of his lease keeps everybody else away, and he never gets it again (R25).
    fn evict(&mut self) {
        let [lock, shadow] = self.simulated.values(wall_us() * 1000);
        let Some(value) = lock.or(shadow) else { return };
        self.real.evict(&String::from_utf8(hex(value)).expect("digits"));
        let data = &mut self.simulated.data;
        if lock == Some(value) {
            data.shadow = if shadow.is_none() { data.lock } else { data.shadow };
            data.lock = None;
        }
        data.fence.x = value;
    }

    fn votes_from(&mut self, until_us: u64) {
        if let Some(marker) = &mut self.simulated.data.marker {
            self.real.command(&["HSET", "keeperd:node", "until", &until_us.to_string()]);
            marker.until = until_us;
        }
    }
}

/// The servers' clock: they run on this machine.
fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_micros()).expect("before the year 586,000")
}

fn left(held: &Held) -> Option<Left> {
    held.remaining.map(|left| Left(left.as_millis().try_into().expect("not for ever")))
}

fn held(answer: &mut Answer) -> Option<&mut Held> {
    if let Answer::Look(LookAnswer::Held(held) | LookAnswer::Paused { held: Some(held), .. })
    | Answer::Acquire(AcquireAnswer::Held(held))
    | Answer::Extend(ExtendAnswer::Foreign(held))
    | Answer::Repair(RepairAnswer::Foreign(held)) = answer
    {
        Some(held)
    } else {
        None
    }
}

/// Without what the model leaves out: how long it lasts, and which host it is.
fn plain(mut answer: Answer) -> Answer {
    if let Some(held) = held(&mut answer) {
        held.remaining = None;
        held.holder = held.holder.take().map(|_| Holder { host: String::new(), pid: 0 });
    }
    if let Answer::Look(LookAnswer::Quarantined { remaining })
    | Answer::Acquire(AcquireAnswer::Quarantined { remaining }) = &mut answer
    {
        *remaining = Duration::ZERO;
    }
    answer
}
