//! A lock node: the keys of one lock, and the scripts of `src/lock/redis/*.lua` line by line.

use crate::clock::{NEVER, Nanos, NodeClock, US};
use crate::core::lease::{FencingToken, Value};
use crate::core::preference::{Bid, Priority};
use crate::core::request::{
    AcquireAnswer, Answer, ExtendAnswer, Held, Holder, LookAnswer, Pause, RaiseAnswer, RepairAnswer, Request,
};
use crate::core::time::WallTime;
use crate::mutants::Mutant;
use std::time::Duration;

/// A proposal further ahead of the node's clock than this is refused (R14).
const AHEAD_MAX_US: u64 = 3_600_000_000;

/// Which keys a command changed, for those who track them.
pub const LOCK: u8 = 1;
pub const FENCE: u8 = 2;

#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub value: u128,
    pub expires_ms: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Fence {
    pub t: u64,
    pub o: u128,
    pub x: u128,
    pub l: u128,
    pub host: u16,
}

#[derive(Clone, Copy, Debug)]
pub struct Marker {
    pub run: u32,
    pub until: u64,
    pub span: u64,
}

/// What a disk would hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Data {
    pub lock: Option<Key>,
    pub shadow: Option<Key>,
    pub fence: Fence,
    pub marker: Option<Marker>,
    pub bid: Option<Offer>,
    /// In true time: whoever resumes does so wherever it was paused, also on a node that was away.
    pub paused_until: Nanos,
}

/// A preferred host's bid.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    pub host: u16,
    pub priority: Priority,
    pub expires_ms: u64,
}

/// What a reply reveals of the marker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MarkerSeen {
    Unsaid,
    Lost,
    Until(u64),
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub us: u64,
    pub answer: Answer,
    pub marker: MarkerSeen,
    pub bid: Option<Bid>,
    pub pause: Option<Pause>,
}

impl Reply {
    /// The command has changed something.
    pub fn has_effect(&self) -> bool {
        matches!(
            self.answer,
            Answer::Acquire(AcquireAnswer::Granted { .. })
                | Answer::Raise(RaiseAnswer::Accepted)
                | Answer::Extend(ExtendAnswer::Ok)
                | Answer::Repair(RepairAnswer::Repaired)
                | Answer::Released
        )
    }
}

/// Arguments every script gets from the connection and the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub host: u16,
    pub run: u32,
    pub ttl_ms: u64,
    pub quarantine_us: u64,
}

/// A set of hosts.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Hosts([u64; Hosts::MAX / 64]);

impl Hosts {
    pub const MAX: usize = 1024;

    pub fn insert(&mut self, host: u16) {
        self.0[usize::from(host / 64)] |= 1 << (host % 64);
    }

    pub fn remove(&mut self, host: u16) {
        self.0[usize::from(host / 64)] &= !(1 << (host % 64));
    }

    pub fn contains(&self, host: u16) -> bool {
        self.0[usize::from(host / 64)] >> (host % 64) & 1 == 1
    }

    pub fn add(&mut self, others: Hosts) {
        for (mine, theirs) in self.0.iter_mut().zip(others.0) {
            *mine |= theirs;
        }
    }

    pub fn iter(self) -> impl Iterator<Item = u16> {
        (0_u16..).step_by(64).zip(self.0).flat_map(|(first, bits)| {
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| first + bit)
        })
    }
}

#[derive(Clone, Debug)]
pub struct Node {
    pub clock: NodeClock,
    pub up: bool,
    pub run: u32,
    pub frozen_until: Nanos,
    pub clock_stops_until: Nanos,
    /// How far ahead a strobing clock stands just now.
    pub strobe_us: u64,
    pub lost_data_at: Option<Nanos>,
    pub data: Data,
    pub saved: Data,
    /// Who tracks the lock key and the fence.
    pub track_lock: Hosts,
    pub track_fence: Hosts,
    pub touched: u8,
    /// Just now.
    paused: bool,
    pub mutant: Option<Mutant>,
}

impl Node {
    pub fn new(clock: NodeClock, mutant: Option<Mutant>) -> Self {
        Node {
            clock,
            up: true,
            run: 1,
            frozen_until: 0,
            clock_stops_until: 0,
            strobe_us: 0,
            lost_data_at: None,
            data: Data::default(),
            saved: Data::default(),
            track_lock: Hosts::default(),
            track_fence: Hosts::default(),
            touched: 0,
            paused: false,
            mutant,
        }
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// As Redis does on access. Its own pass over expired keys is late anyway, so nothing else deletes here.
    fn expire(&mut self, us: u64) {
        if self.data.lock.is_some_and(|key| us / 1000 > key.expires_ms) {
            self.data.lock = None;
            self.touched |= LOCK;
        }
        if self.data.shadow.is_some_and(|key| us / 1000 > key.expires_ms) {
            self.data.shadow = None;
        }
    }

    fn lock(&self) -> Option<u128> {
        self.data.lock.map(|key| key.value)
    }

    fn shadow(&self) -> Option<u128> {
        self.data.shadow.map(|key| key.value)
    }

    fn put(&mut self, value: u128, ttl_ms: u64, us: u64) {
        let key = Key { value, expires_ms: us / 1000 + ttl_ms };
        self.data.lock = Some(key);
        if !self.is(Mutant::NoShadow) {
            self.data.shadow = Some(key);
        }
        self.touched |= LOCK;
    }

    fn own(&mut self, value: u128, host: u16) {
        self.data.fence.l = value;
        self.data.fence.host = host;
        self.touched |= FENCE;
    }

    /// `abstains` of prelude.lua: the wait, and whether it is known to be ours.
    fn abstains(&mut self, terms: &Terms, us: u64) -> Option<(MarkerSeen, u64)> {
        if self.is(Mutant::NoQuarantine) || self.is(Mutant::MarkerOnConnectOnly) {
            return None;
        }
        let span = self.data.marker.map_or(0, |m| m.span).max(terms.quarantine_us);
        let Some(marker) = &mut self.data.marker else { return Some((MarkerSeen::Lost, span)) };
        if marker.run != terms.run && self.mutant != Some(Mutant::RunIdIgnored) {
            return Some((MarkerSeen::Lost, span));
        }
        marker.until = marker.until.min(us + span);
        (us < marker.until).then(|| (MarkerSeen::Until(marker.until), marker.until - us))
    }

    pub fn adopt(&mut self, terms: &Terms, t: Nanos) -> (u64, u64) {
        let us = self.clock.us(t);
        let span = match self.mutant {
            Some(Mutant::QuarantineByUptime) => (terms.ttl_ms * 1000).saturating_sub(900_000),
            _ => terms.quarantine_us,
        };
        let ends = match &mut self.data.marker {
            Some(marker) if marker.run == terms.run || self.mutant == Some(Mutant::RunIdIgnored) => {
                if marker.span < span {
                    marker.until += span - marker.span;
                    marker.span = span;
                }
                marker.until
            }
            _ => {
                let until = us + span;
                self.data.marker = Some(Marker { run: terms.run, until, span });
                until
            }
        };
        (us, ends)
    }

    fn held(&self, us: u64) -> Held {
        let owner = self.lock().or(self.shadow()).expect("something is there");
        let left = |key: Option<Key>| key.map_or(0, |key| key.expires_ms.saturating_sub(us / 1000));
        let remaining = left(self.data.lock).max(left(self.data.shadow));
        let known = owner == self.data.fence.l;
        Held {
            value: hex(owner),
            remaining: Some(Duration::from_millis(remaining)),
            token: FencingToken(self.data.fence.t),
            holder: (Some(owner) == self.shadow()).then(|| Holder {
                host: if known { name(self.data.fence.host) } else { String::new() },
                pid: if known { u32::from(self.data.fence.host) } else { 0 },
            }),
        }
    }

    /// One command, at one instant of its clock.
    pub fn carry_out(&mut self, t: Nanos, request: &Request, deadline_us: u64, terms: &Terms) -> Reply {
        let us = self.clock.us(t);
        self.expire(us);
        let mut marker = MarkerSeen::Unsaid;
        self.paused = t < self.data.paused_until;
        let answer = match request {
            Request::Look => Answer::Look(self.look(us, terms, &mut marker)),
            Request::Acquire { value, proposal, .. } => {
                Answer::Acquire(self.acquire(us, value.0, proposal.0, deadline_us, terms, &mut marker))
            }
            Request::Raise { value, token, .. } => {
                Answer::Raise(self.raise(us, value.0, token.0, deadline_us, terms, &mut marker))
            }
            Request::Extend { value, token, .. } => {
                self.extend(us, value.0, Some((token.0, deadline_us)), terms, &mut marker)
            }
            Request::Check { value } => self.extend(us, value.0, None, terms, &mut marker),
            Request::Repair { value, token, .. } => {
                Answer::Repair(self.repair(us, value.0, token.0, deadline_us, terms))
            }
            Request::Release { value } => {
                self.release(value.0);
                Answer::Released
            }
            Request::Bid { priority } => {
                self.take_bid(us, *priority, terms);
                Answer::Noted
            }
        };
        let renewed =
            matches!((request, &answer), (Request::Extend { .. }, Answer::Extend(ExtendAnswer::Ok)));
        let bid = self.data.bid.filter(|bid| renewed && us / 1000 <= bid.expires_ms);
        let bid = bid.map(|bid| Bid { host: name(bid.host), priority: bid.priority });
        let paused = self.paused && answer == Answer::Extend(ExtendAnswer::Ok);
        Reply { us, answer, marker, bid, pause: paused.then(pause) }
    }

    fn take_bid(&mut self, us: u64, priority: Priority, terms: &Terms) {
        let better = |bid: &Offer| {
            let higher = (bid.priority, terms.host) > (priority, bid.host);
            bid.host != terms.host && us / 1000 <= bid.expires_ms && higher
        };
        if !self.data.bid.as_ref().is_some_and(better) {
            let expires_ms = us / 1000 + terms.ttl_ms / 4 * 3;
            self.data.bid = Some(Offer { host: terms.host, priority, expires_ms });
        }
    }

    /// Plain reads; the fence is tracked from now on.
    fn look(&mut self, us: u64, terms: &Terms, seen: &mut MarkerSeen) -> LookAnswer {
        self.track_fence.insert(terms.host);
        let mine = self.data.marker.filter(|m| m.run == terms.run || self.is(Mutant::RunIdIgnored));
        let mut left = match mine {
            Some(marker) => {
                *seen = MarkerSeen::Until(marker.until);
                Some(marker.until.saturating_sub(us)).filter(|left| *left > 0)
            }
            None => {
                *seen = MarkerSeen::Lost;
                Some(terms.quarantine_us)
            }
        };
        if self.is(Mutant::NoQuarantine) || self.is(Mutant::MarkerOnConnectOnly) {
            left = None;
        }
        let held = self.lock().or(self.shadow()).map(|_| self.held(us));
        if self.paused {
            LookAnswer::Paused { pause: pause(), held }
        } else if let Some(held) = held {
            LookAnswer::Held(held)
        } else if let Some(left) = left {
            LookAnswer::Quarantined { remaining: Duration::from_micros(left) }
        } else {
            LookAnswer::Free { token: FencingToken(self.data.fence.t) }
        }
    }

    fn acquire(
        &mut self,
        us: u64,
        value: u128,
        proposal: u64,
        deadline: u64,
        terms: &Terms,
        seen: &mut MarkerSeen,
    ) -> AcquireAnswer {
        if us > deadline {
            return AcquireAnswer::Late;
        }
        if let Some((marker, left)) = self.abstains(terms, us) {
            *seen = marker;
            return AcquireAnswer::Quarantined { remaining: Duration::from_micros(left) };
        }
        let fence = self.data.fence;
        if fence.x == value && !self.is(Mutant::ReleasedLivesAgain) {
            return AcquireAnswer::Released;
        }
        if self.lock() == Some(value) {
            if self.shadow().is_none() && !self.is(Mutant::NoShadow) {
                self.data.shadow = self.data.lock;
            }
            return AcquireAnswer::Mine { token: FencingToken(fence.t), token_is_mine: fence.o == value };
        }
        let foreign = self.lock().is_some() || self.shadow().is_some_and(|shade| shade != value);
        if foreign {
            return AcquireAnswer::Held(self.held(us));
        }
        if self.paused {
            return AcquireAnswer::Paused(pause());
        }
        let next = fence.t + 1;
        let node_wall = WallTime::from_micros(us);
        if proposal > next.max(us + AHEAD_MAX_US) || next.max(proposal) > FencingToken::MAX.0 {
            return AcquireAnswer::Clock { node_wall, token: FencingToken(fence.t) };
        }
        let token = if self.is(Mutant::ProposalIgnored) { next } else { next.max(proposal) };
        self.put(value, terms.ttl_ms, us);
        self.data.fence.t = token;
        self.data.fence.o = value;
        self.own(value, terms.host);
        AcquireAnswer::Granted { token: FencingToken(token) }
    }

    /// A minority vote changes hands, as an over-clever lock would do it.
    pub fn steal(&mut self) {
        self.data.lock = None;
        self.data.shadow = None;
    }

    fn raise(
        &mut self,
        us: u64,
        value: u128,
        token: u64,
        deadline: u64,
        terms: &Terms,
        seen: &mut MarkerSeen,
    ) -> RaiseAnswer {
        if us > deadline {
            return RaiseAnswer::Refused;
        }
        if !self.is(Mutant::RaiseUnmarked)
            && let Some((marker, _)) = self.abstains(terms, us)
        {
            *seen = marker;
            return RaiseAnswer::Refused;
        }
        let fence = &mut self.data.fence;
        if fence.x == value {
            return RaiseAnswer::Refused;
        }
        if fence.t > token || (fence.t == token && fence.o != value) {
            return RaiseAnswer::Outrun { token: FencingToken(fence.t) };
        }
        if fence.t < token {
            fence.t = token;
            fence.o = value;
            self.touched |= FENCE;
        }
        RaiseAnswer::Accepted
    }

    /// Raises the token and names the owner, as extend and repair do it.
    fn write_back(&mut self, value: u128, token: u64, host: u16) {
        if self.is(Mutant::NoTokenWriteBack) {
            return;
        }
        if self.data.fence.t < token {
            self.data.fence.t = token;
            self.data.fence.o = value;
            self.touched |= FENCE;
        }
        if self.data.fence.l != value {
            self.own(value, host);
        }
    }

    /// `renew` absent: classify only.
    fn extend(
        &mut self,
        us: u64,
        value: u128,
        renew: Option<(u64, u64)>,
        terms: &Terms,
        seen: &mut MarkerSeen,
    ) -> Answer {
        self.track_lock.insert(terms.host);
        let released = self.data.fence.x == value;
        if self.lock().is_none() && self.is(Mutant::ExtendCreates) {
            self.put(value, terms.ttl_ms, us);
        }
        if self.lock() == Some(value) && !released {
            let Some((token, deadline)) = renew else { return Answer::Extend(ExtendAnswer::Ok) };
            if us > deadline {
                return Answer::Silent;
            }
            self.put(value, terms.ttl_ms, us);
            self.write_back(value, token, terms.host);
            return Answer::Extend(ExtendAnswer::Ok);
        }
        let foreign_lock = self.lock().is_some_and(|there| there != value);
        if foreign_lock || self.shadow().is_some_and(|shade| shade != value) {
            return Answer::Extend(ExtendAnswer::Foreign(self.held(us)));
        }
        if self.lock() == Some(value) || self.shadow() == Some(value) {
            return Answer::Extend(ExtendAnswer::Kept);
        }
        Answer::Extend(match self.data.marker {
            None if terms.quarantine_us > 0 => {
                *seen = MarkerSeen::Lost;
                ExtendAnswer::Empty
            }
            Some(marker) if us < marker.until => ExtendAnswer::Empty,
            None | Some(_) => ExtendAnswer::Gone,
        })
    }

    fn repair(&mut self, us: u64, value: u128, token: u64, deadline: u64, terms: &Terms) -> RepairAnswer {
        self.track_lock.insert(terms.host);
        if us > deadline || (self.data.fence.x == value && !self.is(Mutant::ReleasedLivesAgain)) {
            return RepairAnswer::Refused;
        }
        let foreign = |key: Option<u128>| key.is_some_and(|there| there != value);
        if foreign(self.lock()) || foreign(self.shadow()) {
            return RepairAnswer::Foreign(self.held(us));
        }
        self.put(value, terms.ttl_ms, us);
        self.write_back(value, token, terms.host);
        RepairAnswer::Repaired
    }

    pub fn release(&mut self, value: u128) {
        let whatever = self.is(Mutant::ReleaseUnconditional);
        if self.lock() == Some(value) {
            self.data.lock = None;
            self.touched |= LOCK;
        }
        if self.shadow() == Some(value) || whatever {
            self.data.shadow = None;
        }
        if self.data.fence.x != value {
            self.data.fence.x = value;
            self.touched |= FENCE;
        }
    }

    /// Who is told of what `by` has touched: everybody who tracks it, but himself.
    pub fn told(&mut self, by: Option<u16>) -> Hosts {
        let touched = std::mem::take(&mut self.touched);
        let mut told = Hosts::default();
        if touched & LOCK != 0 {
            told.add(std::mem::take(&mut self.track_lock));
        }
        if touched & FENCE != 0 {
            told.add(std::mem::take(&mut self.track_fence));
        }
        if let Some(by) = by {
            // NOLOOP; and a script's last access of the lock key is a read, which begins the tracking anew.
            if touched & LOCK != 0 && told.contains(by) {
                self.track_lock.insert(by);
            }
            told.remove(by);
        }
        told
    }

    // ── clients of the npm package ──

    pub fn legacy_set(&mut self, t: Nanos, value: u128, ttl_ms: u64) -> bool {
        let us = self.clock.us(t);
        self.expire(us);
        if self.lock().is_some() {
            return false;
        }
        self.data.lock = Some(Key { value, expires_ms: us / 1000 + ttl_ms });
        self.touched |= LOCK;
        true
    }

    pub fn legacy_extend(&mut self, t: Nanos, value: u128, ttl_ms: u64) -> bool {
        let us = self.clock.us(t);
        self.expire(us);
        let mine = self.lock() == Some(value);
        if mine {
            self.data.lock = Some(Key { value, expires_ms: us / 1000 + ttl_ms });
        }
        mine
    }

    pub fn legacy_delete(&mut self, t: Nanos, value: u128) {
        self.expire(self.clock.us(t));
        if self.lock() == Some(value) {
            self.data.lock = None;
            self.touched |= LOCK;
        }
    }

    // ── as the world sees it ──

    /// Whether somebody's value stands here at all.
    pub fn values(&self, t: Nanos) -> [Option<u128>; 2] {
        let us = self.clock.us(t);
        let live = |key: Option<Key>| key.filter(|key| us / 1000 <= key.expires_ms).map(|key| key.value);
        [live(self.data.lock), live(self.data.shadow)]
    }

    /// Until when, in true time, this node will give its vote to nobody but the owner of `value`, if its clock runs on as it does.
    pub fn refuses_until(&self, t: Nanos, value: u128, quarantine: Nanos) -> Nanos {
        if !self.up {
            return NEVER; // it comes back as another run
        }
        let us = self.clock.us(t);
        let waits = match self.data.marker {
            Some(marker) if marker.run == self.run => {
                if us < marker.until {
                    self.clock.when(marker.until, t)
                } else {
                    0
                }
            }
            _ => t + quarantine,
        };
        self.holds_until(t, value).max(waits)
    }

    /// Until when, in true time, it holds a key for the owner of `value`.
    pub fn holds_until(&self, t: Nanos, value: u128) -> Nanos {
        let us = self.clock.us(t);
        let key = |key: Option<Key>| {
            let mine = key.filter(|key| key.value == value && us / 1000 <= key.expires_ms);
            mine.map_or(0, |key| self.clock.when((key.expires_ms + 1) * 1000, t))
        };
        key(self.data.lock).max(key(self.data.shadow))
    }

    /// What is left of the quarantine.
    pub fn abstains_for(&self, t: Nanos, quarantine: Nanos) -> Nanos {
        let us = self.clock.us(t);
        match self.data.marker {
            Some(marker) if marker.run == self.run => marker.until.saturating_sub(us) * US,
            _ => quarantine,
        }
    }
}

fn pause() -> Pause {
    Pause { host: name(0), since: WallTime::default() }
}

/// Of a host.
pub fn name(host: u16) -> String {
    match ["h0", "h1", "h2", "h3"].get(usize::from(host)) {
        Some(name) => (*name).to_owned(),
        None => format!("h{host}"),
    }
}

/// A value as it stands on the node. Formatting would cost as much as the whole rest of a look.
pub fn hex(value: u128) -> Vec<u8> {
    let mut text = Vec::with_capacity(32);
    for shift in (0..32).rev() {
        let digit = usize::try_from((value >> (shift * 4)) & 15).expect("four bits");
        text.push(b"0123456789abcdef"[digit]);
    }
    text
}

/// The value without its text form, for comparisons.
pub fn parse(text: &[u8]) -> Option<u128> {
    Value::parse(text).map(|value| value.0)
}
