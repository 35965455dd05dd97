//! Reading replies. A node may say anything; what is not understood is no answer.

use super::operate::Evicted;
use super::scripts::Context;
use crate::core::lease::FencingToken;
use crate::core::preference::{Bid, Priority};
use crate::core::request::{
    AcquireAnswer, Answer, ExtendAnswer, Held, Holder, LookAnswer, Pause, RaiseAnswer, RepairAnswer,
};
use crate::core::time::WallTime;
use redis::Value;
use std::time::Duration;

/// Read in place of a value under a key of another type; `value_of` in prelude.lua says the same.
const NOT_A_STRING: &[u8] = b"(not a string)";

/// The last instant that can be written as a date.
const YEAR_9999_US: u64 = 253_402_300_799_999_999;

/// No host has a longer name.
const HOST_MAX: usize = 255;

/// An answer, and what else the node said of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Reply {
    pub(super) answer: Answer,
    /// Its TIME, in µs.
    pub(super) node_us: Option<u64>,
    pub(super) marker: Marker,
    pub(super) bid: Option<Bid>,
    /// With an extension or a check.
    pub(super) pause: Option<Pause>,
}

impl Reply {
    pub(super) fn silent() -> Self {
        Reply { answer: Answer::Silent, node_us: None, marker: Marker::Unsaid, bid: None, pause: None }
    }
}

/// What a reply reveals of the marker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Marker {
    Unsaid,
    /// Gone, or not the one this connection adopted: it has to be adopted again.
    Lost,
    /// The node votes from this TIME on, in µs.
    Until(u64),
}

/// The bytes of a string of whichever kind.
pub(super) fn text(value: &Value) -> Option<Vec<u8>> {
    if let Value::BulkString(bytes) = value {
        Some(bytes.clone())
    } else if let Value::SimpleString(text) | Value::VerbatimString { text, .. } = value {
        Some(text.clone().into_bytes())
    } else if let Value::Int(number) = value {
        Some(number.to_string().into_bytes())
    } else {
        None
    }
}

fn number<T: std::str::FromStr>(value: &Value) -> Option<T> {
    std::str::from_utf8(&text(value)?).ok()?.parse().ok()
}

/// One element after the other of a script's reply.
struct Fields<'a>(std::slice::Iter<'a, Value>);

impl Fields<'_> {
    fn bytes(&mut self) -> Option<Vec<u8>> {
        self.0.next().and_then(text)
    }

    fn string(&mut self) -> Option<String> {
        self.bytes().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn number<T: std::str::FromStr>(&mut self) -> Option<T> {
        self.0.next().and_then(number)
    }

    fn token(&mut self) -> Option<FencingToken> {
        self.number().map(FencingToken).filter(|token| *token <= FencingToken::MAX)
    }

    fn micros(&mut self) -> Option<Duration> {
        self.number().map(Duration::from_micros)
    }

    fn held(&mut self) -> Option<Held> {
        let (value, left, token) = (self.bytes()?, self.number::<i64>()?, self.token()?);
        let (ours, host, pid) = (self.number::<u8>()? == 1, self.string()?, self.string()?);
        let holder = ours.then(|| Holder { host, pid: pid.parse().unwrap_or(0) });
        Some(Held { value, remaining: remaining(left), token, holder })
    }
}

/// What `PTTL` says, with −1 for a key that never expires.
fn remaining(pttl: i64) -> Option<Duration> {
    (pttl != -1).then(|| Duration::from_millis(u64::try_from(pttl).unwrap_or(0)))
}

/// TIME and tag in front of every script's reply.
fn opened(replies: &[Value]) -> Option<(u64, String, Fields<'_>)> {
    let Some(Value::Array(items)) = replies.first() else { return None };
    let mut fields = Fields(items.iter());
    Some((fields.number()?, fields.string()?, fields))
}

fn said(node_us: u64, answer: Answer) -> Reply {
    Reply { answer, node_us: Some(node_us), marker: Marker::Unsaid, bid: None, pause: None }
}

/// Why a node abstains, and for how long.
fn quarantined(node_us: u64, mut fields: Fields<'_>) -> Option<(Marker, Duration)> {
    let (why, remaining) = (fields.string()?, fields.micros()?);
    let ends = node_us.saturating_add(u64::try_from(remaining.as_micros()).unwrap_or(u64::MAX));
    Some((if why == "waiting" { Marker::Until(ends) } else { Marker::Lost }, remaining))
}

pub(super) fn acquire(replies: &[Value]) -> Option<Reply> {
    let (us, tag, mut fields) = opened(replies)?;
    let mut marker = Marker::Unsaid;
    let answer = match tag.as_str() {
        "ok" => AcquireAnswer::Granted { token: fields.token()? },
        "mine" => AcquireAnswer::Mine { token: fields.token()?, token_is_mine: fields.number::<u8>()? == 1 },
        "held" => AcquireAnswer::Held(fields.held()?),
        "quarantined" => {
            let (seen, remaining) = quarantined(us, fields)?;
            marker = seen;
            AcquireAnswer::Quarantined { remaining }
        }
        "paused" => AcquireAnswer::Paused(parse_pause(&fields.bytes()?)),
        "late" => AcquireAnswer::Late,
        "released" => AcquireAnswer::Released,
        "clock" => AcquireAnswer::Clock { node_wall: WallTime::from_micros(us), token: fields.token()? },
        _ => return None,
    };
    Some(Reply { marker, ..said(us, Answer::Acquire(answer)) })
}

pub(super) fn raise(replies: &[Value]) -> Option<Reply> {
    let (us, tag, mut fields) = opened(replies)?;
    let mut marker = Marker::Unsaid;
    let answer = match tag.as_str() {
        "ok" => RaiseAnswer::Accepted,
        "outrun" => RaiseAnswer::Outrun { token: fields.token()? },
        "quarantined" => {
            marker = quarantined(us, fields)?.0;
            RaiseAnswer::Refused
        }
        "late" | "released" => RaiseAnswer::Refused,
        _ => return None,
    };
    Some(Reply { marker, ..said(us, Answer::Raise(answer)) })
}

pub(super) fn extend(replies: &[Value]) -> Option<Reply> {
    let (us, tag, mut fields) = opened(replies)?;
    let (mut marker, mut bid, mut pause) = (Marker::Unsaid, None, None);
    let answer = match tag.as_str() {
        "ok" => {
            bid = fields.bytes().and_then(|text| parse_bid(&text));
            pause = fields.bytes().filter(|text| !text.is_empty()).map(|text| parse_pause(&text));
            ExtendAnswer::Ok
        }
        "kept" => ExtendAnswer::Kept,
        "empty" => {
            if fields.string()? == "absent" {
                marker = Marker::Lost;
            }
            ExtendAnswer::Empty
        }
        "gone" => ExtendAnswer::Gone,
        "foreign" => ExtendAnswer::Foreign(fields.held()?),
        // Mine, but not renewed: unknown, never a no.
        "late" => return Some(said(us, Answer::Silent)),
        _ => return None,
    };
    Some(Reply { marker, bid, pause, ..said(us, Answer::Extend(answer)) })
}

pub(super) fn repair(replies: &[Value]) -> Option<Reply> {
    let (us, tag, mut fields) = opened(replies)?;
    let answer = match tag.as_str() {
        "ok" => RepairAnswer::Repaired,
        "foreign" => RepairAnswer::Foreign(fields.held()?),
        "late" | "released" => RepairAnswer::Refused,
        _ => return None,
    };
    Some(said(us, Answer::Repair(answer)))
}

pub(super) fn release(replies: &[Value]) -> Option<Reply> {
    let (us, tag, _) = opened(replies)?;
    (tag == "ok").then(|| said(us, Answer::Released))
}

pub(super) fn bid(replies: &[Value]) -> Option<Reply> {
    let (us, tag, _) = opened(replies)?;
    matches!(tag.as_str(), "ok" | "outbid").then(|| said(us, Answer::Noted))
}

/// `priority host`, as bid.lua writes it. Anything else is nobody's bid.
fn parse_bid(text: &[u8]) -> Option<Bid> {
    let (priority, host) = std::str::from_utf8(text).ok()?.split_once(' ')?;
    if host.is_empty() || host.len() > HOST_MAX {
        return None;
    }
    Some(Bid { host: host.to_owned(), priority: Priority(priority.parse().ok()?) })
}

/// `µs host`, as pause.lua is given it. Whatever stands there is a pause: nothing is granted under it.
pub(super) fn parse_pause(text: &[u8]) -> Pause {
    let text = String::from_utf8_lossy(text);
    let (since, host) = text.split_once(' ').unwrap_or(("", &text));
    let since = WallTime::from_micros(since.parse().unwrap_or(0).min(YEAR_9999_US));
    Pause { host: host.chars().take(HOST_MAX).collect(), since }
}

/// What `adopt` found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Adopted {
    Until {
        node_us: u64,
        until_us: u64,
    },
    /// The marker counts another number of nodes.
    Denied {
        nodes: String,
    },
}

pub(super) fn adopt(reply: &Value) -> Option<Adopted> {
    let (node_us, tag, mut fields) = opened(std::slice::from_ref(reply))?;
    match tag.as_str() {
        "adopted" | "kept" => Some(Adopted::Until { node_us, until_us: fields.number()? }),
        "denied" => Some(Adopted::Denied { nodes: fields.string()? }),
        _ => None,
    }
}

fn items(reply: &Value) -> Option<&[Value]> {
    if let Value::Array(items) = reply { Some(items) } else { None }
}

/// A value under a key; the outer `None`: not understood.
fn under_key(reply: &Value) -> Option<Option<Vec<u8>>> {
    if *reply == Value::Nil {
        return Some(None);
    }
    let other_type = matches!(reply, Value::ServerError(error) if error.code() == "WRONGTYPE");
    if other_type { Some(Some(NOT_A_STRING.to_vec())) } else { text(reply).map(Some) }
}

/// The reads of a look, in the order `Batch::pipeline` sends them.
pub(super) fn look(replies: &[Value], context: &Context<'_>) -> Option<Reply> {
    let [fence, lock, lock_left, shadow, shadow_left, marker, time, ..] = replies else { return None };
    let us = self::time(time)?;
    let (held, pause) = holding(fence, [lock, lock_left], [shadow, shadow_left])?;
    let marker = self::marker(marker, context.run_id, context.nodes)?;
    let left = match marker {
        Marker::Until(until) => Duration::from_micros(until.saturating_sub(us)),
        Marker::Lost | Marker::Unsaid => context.quarantine,
    };
    let votes = matches!(marker, Marker::Until(_)) && left.is_zero();
    let answer = match (pause, held) {
        (Some(pause), held) => LookAnswer::Paused { pause, held },
        (None, Some(held)) => LookAnswer::Held(held),
        (None, None) if votes => LookAnswer::Free { token: token_of(fence)? },
        (None, None) => LookAnswer::Quarantined { remaining: left },
    };
    Some(Reply { marker, ..said(us, Answer::Look(answer)) })
}

fn token_of(fence: &Value) -> Option<FencingToken> {
    Some(FencingToken(items(fence)?.first().and_then(number).unwrap_or(0)).min(FencingToken::MAX))
}

/// Who has a lock, and whether it is paused, from `t`, `l`, `host`, `pid` and `p` of the fence, and value and `PTTL` of lock and shadow. The
/// outer `None`: not understood.
pub(super) fn holding(
    fence: &Value,
    [lock, lock_left]: [&Value; 2],
    [shadow, shadow_left]: [&Value; 2],
) -> Option<(Option<Held>, Option<Pause>)> {
    let [_, owner, host, pid, pause] = items(fence)? else { return None };
    let pause = text(pause).filter(|text| !text.is_empty()).map(|text| parse_pause(&text));
    let (lock, shadow) = (under_key(lock)?, under_key(shadow)?);
    let Some(value) = lock.or_else(|| shadow.clone()) else { return Some((None, pause)) };
    let left = [number::<i64>(lock_left)?, number::<i64>(shadow_left)?];
    let left = if left.contains(&-1) { -1 } else { left[0].max(left[1]) };
    let known = text(owner).as_ref() == Some(&value);
    let host = text(host).filter(|_| known).unwrap_or_default();
    let holder = Holder {
        host: String::from_utf8_lossy(&host).into_owned(),
        pid: number(pid).filter(|_| known).unwrap_or(0),
    };
    let holder = (shadow.as_ref() == Some(&value)).then_some(holder);
    Some((Some(Held { value, remaining: remaining(left), token: token_of(fence)?, holder }), pause))
}

pub(super) fn millis(reply: &Value) -> Option<Duration> {
    number(reply).map(Duration::from_millis)
}

/// The pause that stands there now, or stood there.
pub(super) fn paused(replies: &[Value]) -> Option<Option<Pause>> {
    let (_, tag, mut fields) = opened(replies)?;
    let text = fields.bytes().filter(|_| tag == "ok")?;
    Some((!text.is_empty()).then(|| parse_pause(&text)))
}

pub(super) fn evicted(replies: &[Value]) -> Option<Evicted> {
    let (_, tag, mut fields) = opened(replies)?;
    match tag.as_str() {
        "ok" => Some(Evicted::Gone { waits: Duration::from_millis(fields.number()?) }),
        "changed" => Some(Evicted::Changed),
        _ => None,
    }
}

/// Whether the value that a look found stands under the lock key, and not only under the shadow.
pub(super) fn is_by_lock_key(look: &[Value], held: &Held) -> bool {
    look.get(1).and_then(text).as_ref() == Some(&held.value)
}

/// Whether the same holder has it still, for how long: the replies to `GET` and `PTTL` of the lock.
pub(super) fn glance(replies: &[Value], seen: &Held) -> Option<Held> {
    let [lock, left] = replies else { return None };
    let left = number::<i64>(left).filter(|left| *left > 0)?;
    (text(lock)? == seen.value).then(|| Held { remaining: remaining(left), ..seen.clone() })
}

/// `run_id`, `until` and `n` of the marker.
pub(super) fn marker(reply: &Value, run: &str, of_nodes: u8) -> Option<Marker> {
    let [run_id, until, nodes] = items(reply)? else { return None };
    let mine = text(run_id).is_some_and(|id| id == run.as_bytes()) && number::<u8>(nodes) == Some(of_nodes);
    Some(number(until).filter(|_| mine).map_or(Marker::Lost, Marker::Until))
}

/// The reply to `TIME`, in µs.
pub(super) fn time(reply: &Value) -> Option<u64> {
    let [seconds, micros] = items(reply)? else { return None };
    number::<u64>(seconds)?.checked_mul(1_000_000)?.checked_add(number(micros)?)
}

#[cfg(test)]
mod tests {
    use super::super::scripts::Keys;
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    /// What a node might say, at random: words and numbers of the protocol, in every shape.
    fn arbitrary(seed: &mut u64, depth: u32) -> Value {
        const WORDS: [&str; 16] = [
            "ok",
            "mine",
            "held",
            "quarantined",
            "late",
            "released",
            "clock",
            "outrun",
            "kept",
            "empty",
            "gone",
            "foreign",
            "adopted",
            "denied",
            "waiting",
            "absent",
        ];
        let mut next = |n: u64| {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*seed >> 33) % n
        };
        match next(if depth == 0 { 8 } else { 12 }) {
            0 => Value::Nil,
            1 => Value::Int(i64::MIN + i64::try_from(next(5)).expect("small")),
            2 => Value::BulkString(next(u64::MAX).to_string().into_bytes()),
            3 => Value::BulkString(vec![0xff, 0xfe]),
            4 => Value::Double(f64::NAN),
            5 => Value::SimpleString("-1".to_owned()),
            6 => Value::BulkString(b"18446744073709551615".to_vec()),
            7 => Value::BulkString(WORDS[usize::try_from(next(16)).expect("small")].into()),
            _ => Value::Array((0..next(9)).map(|_| arbitrary(seed, depth - 1)).collect()),
        }
    }

    #[test]
    fn whatever_a_node_says_is_an_answer_or_silence() {
        let identity = crate::lock::Identity { host: "h".to_owned(), pid: 1 };
        let keys = Keys::of("redlock:x");
        let (ttl, quarantine) = (Duration::from_secs(1), Duration::from_secs(1));
        let context = Context { keys: &keys, ttl, run_id: "r", nodes: 1, quarantine, identity: &identity };
        let mut seed = 1;
        let mut understood = 0;
        for _ in 0..100_000 {
            // A script's reply begins well more often than chance would have it.
            let mut items = vec![Value::Int(1), Value::BulkString(b"mine".to_vec())];
            items.extend((0..7).map(|_| arbitrary(&mut seed, 1)));
            items[1] = arbitrary(&mut seed, 0);
            let replies: Vec<Value> = (0..7).map(|_| arbitrary(&mut seed, 2)).collect();
            for replies in [vec![Value::Array(items)], replies] {
                understood += [acquire(&replies), raise(&replies), extend(&replies), repair(&replies)]
                    .iter()
                    .filter(|reply| reply.is_some())
                    .count();
                let _ = (
                    release(&replies),
                    bid(&replies),
                    adopt(&replies[0]),
                    time(&replies[0]),
                    look(&replies, &context),
                );
            }
        }
        assert!(understood > 1000, "the test must reach the inside of the decoders");
    }

    #[test]
    fn a_token_that_javascript_could_not_hold_is_not_understood() {
        let reply = |token: &str| {
            vec![Value::Array(vec![
                Value::Int(1),
                Value::SimpleString("ok".into()),
                Value::SimpleString(token.into()),
            ])]
        };
        assert!(acquire(&reply("9007199254740991")).is_some());
        assert!(acquire(&reply("9007199254740992")).is_none());
    }

    /// Every decoder on one reply. A vote must be a script's own words: TIME, tag, and a token where there is one.
    fn decode(reply: &Value) {
        let identity = crate::lock::Identity { host: "h".to_owned(), pid: 1 };
        let keys = Keys::of("redlock:x");
        let (ttl, quarantine) = (Duration::from_secs(1), Duration::from_secs(1));
        let context = Context { keys: &keys, ttl, run_id: "r", nodes: 3, quarantine, identity: &identity };
        let one = std::slice::from_ref(reply);
        let fields = items(reply).unwrap_or_default();
        let said_tag = |tag: &str| {
            let tagged = fields.get(1).and_then(text).is_some_and(|said| said == tag.as_bytes());
            assert!(tagged && fields.first().and_then(number::<u64>).is_some(), "a vote from {reply:?}");
        };
        for answer in
            [acquire(one), raise(one), extend(one), repair(one), release(one), bid(one)].into_iter().flatten()
        {
            match answer.answer {
                Answer::Acquire(AcquireAnswer::Granted { token } | AcquireAnswer::Mine { token, .. }) => {
                    assert!(
                        token <= FencingToken::MAX && fields.get(2).and_then(number::<u64>) == Some(token.0)
                    );
                    said_tag(if fields.len() > 3 && text(&fields[1]) == Some(b"mine".to_vec()) {
                        "mine"
                    } else {
                        "ok"
                    });
                }
                Answer::Raise(RaiseAnswer::Accepted)
                | Answer::Extend(ExtendAnswer::Ok)
                | Answer::Repair(RepairAnswer::Repaired)
                | Answer::Released => said_tag("ok"),
                Answer::Noted => {}
                Answer::Look(_)
                | Answer::Acquire(_)
                | Answer::Raise(_)
                | Answer::Extend(_)
                | Answer::Repair(_)
                | Answer::Silent => {}
            }
        }
        let _ = (adopt(reply), time(reply));
        if let Some(seen) = look(fields, &context)
            && let Answer::Look(LookAnswer::Free { .. }) = seen.answer
        {
            assert!(
                fields.len() >= 7 && fields[1] == Value::Nil && fields[3] == Value::Nil,
                "free? {reply:?}"
            );
        }
    }

    /// RESP text, as a node sends it, and what random bytes make of it.
    fn decode_bytes(bytes: &[u8]) {
        if let Ok(reply) = redis::parse_redis_value(bytes) {
            decode(&reply);
        }
    }

    fn corpus() -> Vec<Vec<u8>> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/corpus/reply");
        let mut files: Vec<_> =
            std::fs::read_dir(folder).expect("the corpus").map(|file| file.expect("a file").path()).collect();
        files.sort();
        files.iter().map(|file| std::fs::read(file).expect("readable")).collect()
    }

    #[test]
    fn the_corpus_of_replies_is_answered() {
        let corpus = corpus();
        assert!(corpus.len() >= 10);
        corpus.iter().for_each(|bytes| decode_bytes(bytes));
    }

    fn tree() -> impl Strategy<Value = Value> {
        let word = prop::sample::select(vec![
            "ok",
            "mine",
            "held",
            "quarantined",
            "late",
            "clock",
            "outrun",
            "empty",
            "foreign",
            "r",
            "3",
        ]);
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<i64>().prop_map(Value::Int),
            any::<u64>().prop_map(|n| Value::BulkString(n.to_string().into_bytes())),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::BulkString),
            word.prop_map(|word| Value::BulkString(word.into())),
            "\\PC{0,8}".prop_map(Value::SimpleString),
            any::<f64>().prop_map(Value::Double),
            any::<bool>().prop_map(Value::Boolean),
            Just(Value::Okay),
        ];
        leaf.prop_recursive(3, 24, 9, |inner| {
            prop_oneof![
                4 => prop::collection::vec(inner.clone(), 0..9).prop_map(Value::Array),
                1 => prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Set),
                1 => prop::collection::vec((inner.clone(), inner), 0..4).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_tree_of_values_makes_a_vote_of_garbage(reply in tree()) {
            decode(&reply);
        }

        #[test]
        fn no_bytes_make_a_vote_of_garbage(file in any::<prop::sample::Index>(), edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5)) {
            let corpus = corpus();
            let mut bytes = corpus[file.index(corpus.len())].clone();
            for (place, byte) in edits {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            decode_bytes(&bytes);
        }
    }
}
