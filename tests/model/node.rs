//! A lock node as its scripts make it (src/lock/redis/*.lua), in one struct: keys with their ends, the fence, and when it votes.

use super::variant::{Broken, Variant, ms};
use keeperd::core::lease::{FencingToken, Value};
use keeperd::core::request::{
    AcquireAnswer, Answer, ExtendAnswer, Held, Holder, LookAnswer, RaiseAnswer, RepairAnswer, Request,
};
use keeperd::core::time::Instant;
use std::time::Duration;

/// A key with PX: read as absent from its end on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    value: Value,
    ends: Instant,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Node {
    lock: Option<Key>,
    shadow: Option<Key>,
    /// Fence: `t`, `o`, `l` and `x`.
    token: FencingToken,
    owner: Option<Value>,
    leased: Option<Value>,
    released: Option<Value>,
    /// The marker's `until`.
    votes_from: Instant,
}

impl Node {
    /// What has expired is gone; without this, equal nodes would differ by what nobody can read.
    pub fn expire(&mut self, now: Instant) {
        self.lock = self.lock.filter(|key| key.ends > now);
        self.shadow = self.shadow.filter(|key| key.ends > now);
        if self.votes_from <= now {
            self.votes_from = Instant::default();
        }
    }

    /// FLUSHALL, or a restart without data: the marker goes with the rest, and is adopted anew.
    pub fn lose_data(&mut self, now: Instant, variant: &Variant) {
        let votes_from =
            if variant.broken == Broken::NoQuarantine { now } else { now + variant.quarantine() };
        *self = Node { votes_from, ..Node::default() };
    }

    /// Somebody's DEL with redis-cli: the lock key, not the side keys he does not know of.
    pub fn delete(&mut self) {
        self.lock = None;
    }

    pub fn is_held(&self) -> bool {
        self.lock.is_some()
    }

    pub fn was_released(&self, value: Value) -> bool {
        self.released == Some(value)
    }

    /// A lock nobody will release: its owner has done so already (R15).
    pub fn has_ghost(&self) -> bool {
        self.lock.is_some_and(|key| self.released == Some(key.value))
    }

    /// Lock and shadow, the token, and of the fence `o`, `l` and `x`.
    #[allow(dead_code, reason = "tests/redis compares it with a real node")]
    pub fn kept(&self) -> ([Option<Value>; 2], FencingToken, [Option<Value>; 3]) {
        let (lock, shadow) = self.value();
        ([lock, shadow], self.token, [self.owner, self.leased, self.released])
    }

    /// Carries out one script. The answer is what the decoder makes of its reply.
    pub fn carry_out(&mut self, variant: &Variant, now: Instant, request: &Request) -> Answer {
        self.expire(now);
        match *request {
            Request::Look => Answer::Look(self.look(now)),
            Request::Acquire { value, proposal, deadline } => {
                Answer::Acquire(self.acquire(variant, now, value, proposal, deadline))
            }
            Request::Raise { value, token, deadline } => {
                Answer::Raise(self.raise(variant, now, value, token, deadline))
            }
            Request::Extend { value, token, deadline } => {
                self.extend(variant, now, value, Some((token, deadline)))
            }
            Request::Check { value } => self.extend(variant, now, value, None),
            Request::Repair { value, token, deadline } => {
                Answer::Repair(self.repair(variant, now, value, token, deadline))
            }
            Request::Release { value } => {
                self.release(value);
                Answer::Released
            }
            Request::Bid { .. } => Answer::Noted,
        }
    }

    fn value(&self) -> (Option<Value>, Option<Value>) {
        (self.lock.map(|key| key.value), self.shadow.map(|key| key.value))
    }

    fn held(&self, now: Instant) -> Option<Held> {
        let key = self.lock.or(self.shadow)?;
        let left = [self.lock, self.shadow].into_iter().flatten().map(|key| key.ends.since(now)).max();
        let keeperd = self.shadow.is_some_and(|shadow| shadow.value == key.value);
        let known = || Holder { host: "h".to_owned(), pid: 1 };
        Some(Held {
            value: key.value.to_string().into_bytes(),
            remaining: left,
            token: self.token,
            holder: keeperd.then(known),
        })
    }

    fn abstains(&self, now: Instant) -> Option<Duration> {
        (now < self.votes_from).then(|| self.votes_from.since(now))
    }

    fn look(&self, now: Instant) -> LookAnswer {
        if let Some(held) = self.held(now) {
            return LookAnswer::Held(held);
        }
        match self.abstains(now) {
            Some(remaining) => LookAnswer::Quarantined { remaining },
            None => LookAnswer::Free { token: self.token },
        }
    }

    fn write(&mut self, variant: &Variant, now: Instant, value: Value) {
        let key = Key { value, ends: now + variant.timing().ttl() };
        self.lock = Some(key);
        self.shadow = (variant.broken != Broken::NoShadow).then_some(key);
    }

    fn acquire(
        &mut self,
        variant: &Variant,
        now: Instant,
        value: Value,
        proposal: FencingToken,
        deadline: Instant,
    ) -> AcquireAnswer {
        if now > deadline {
            return AcquireAnswer::Late;
        }
        if let Some(remaining) = self.abstains(now) {
            return AcquireAnswer::Quarantined { remaining };
        }
        if self.released == Some(value) {
            return AcquireAnswer::Released;
        }
        let (there, shade) = self.value();
        if there == Some(value) {
            return AcquireAnswer::Mine { token: self.token, token_is_mine: self.owner == Some(value) };
        }
        if (there.is_some() || shade.is_some_and(|shade| shade != value))
            && let Some(held) = self.held(now)
        {
            return AcquireAnswer::Held(held);
        }
        self.token = self.token.next().max(proposal);
        (self.owner, self.leased) = (Some(value), Some(value));
        self.write(variant, now, value);
        AcquireAnswer::Granted { token: self.token }
    }

    fn raise(
        &mut self,
        variant: &Variant,
        now: Instant,
        value: Value,
        token: FencingToken,
        deadline: Instant,
    ) -> RaiseAnswer {
        if variant.broken == Broken::NoWriteBack {
            return RaiseAnswer::Accepted;
        }
        if now > deadline || self.abstains(now).is_some() || self.released == Some(value) {
            return RaiseAnswer::Refused;
        }
        if self.token > token || (self.token == token && self.owner != Some(value)) {
            return RaiseAnswer::Outrun { token: self.token };
        }
        self.write_back(variant, value, token);
        RaiseAnswer::Accepted
    }

    fn write_back(&mut self, variant: &Variant, value: Value, token: FencingToken) {
        if self.token < token && variant.broken != Broken::NoWriteBack {
            (self.token, self.owner) = (token, Some(value));
        }
    }

    /// `renew` absent: classify and change nothing.
    fn extend(
        &mut self,
        variant: &Variant,
        now: Instant,
        value: Value,
        renew: Option<(FencingToken, Instant)>,
    ) -> Answer {
        let (there, shade) = self.value();
        let create = variant.broken == Broken::ExtendCreates && there.is_none() && renew.is_some();
        if (there == Some(value) && self.released != Some(value)) || create {
            if let Some((token, deadline)) = renew {
                if now > deadline {
                    return Answer::Silent;
                }
                self.write(variant, now, value);
                self.write_back(variant, value, token);
                self.leased = Some(value);
            }
            return Answer::Extend(ExtendAnswer::Ok);
        }
        let foreign = there.is_some_and(|there| there != value) || shade.is_some_and(|shade| shade != value);
        Answer::Extend(match self.held(now) {
            Some(held) if foreign => ExtendAnswer::Foreign(held),
            Some(_) => ExtendAnswer::Kept,
            None if self.abstains(now).is_some() => ExtendAnswer::Empty,
            None => ExtendAnswer::Gone,
        })
    }

    fn repair(
        &mut self,
        variant: &Variant,
        now: Instant,
        value: Value,
        token: FencingToken,
        deadline: Instant,
    ) -> RepairAnswer {
        if now > deadline || self.released == Some(value) {
            return RepairAnswer::Refused;
        }
        let (there, shade) = self.value();
        let foreign = [there, shade].into_iter().flatten().any(|other| other != value);
        if foreign && let Some(held) = self.held(now) {
            return RepairAnswer::Foreign(held);
        }
        self.write(variant, now, value);
        self.write_back(variant, value, token);
        self.leased = Some(value);
        RepairAnswer::Repaired
    }

    fn release(&mut self, value: Value) {
        self.lock = self.lock.filter(|key| key.value != value);
        self.shadow = self.shadow.filter(|key| key.value != value);
        self.released = Some(value);
    }
}

#[test]
fn expiry_is_at_the_instant() {
    let variant = Variant::default();
    let mut node = Node::default();
    let request = Request::Acquire {
        value: Value(1),
        proposal: FencingToken(3),
        deadline: Instant::default() + ms(1000),
    };
    node.carry_out(&variant, Instant::default(), &request);
    let end = Instant::default() + variant.timing().ttl();
    node.expire(end - ms(1));
    assert!(node.is_held());
    node.expire(end);
    assert!(!node.is_held());
}
