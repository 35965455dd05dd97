//! What a node keeps of one lock, as anybody could read it, so that two nodes can be compared.

use super::checked;
use super::simulated::{Key, Node, hex, name};
use super::wire::mark;
use keeperd::core::lease::Value;

/// What is left of a lease, in milliseconds. Leases differ by 20 s, and reading takes time: two are the same within 8 s.
#[derive(Clone, Copy, Debug)]
pub struct Left(pub i64);

impl Left {
    pub const NEARLY_MS: i64 = 8_000;
}

impl PartialEq for Left {
    fn eq(&self, other: &Self) -> bool {
        (self.0 - other.0).abs() < Self::NEARLY_MS
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    pub run: String,
    pub until: Option<String>,
    pub span: Option<String>,
    pub nodes: Option<String>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Kept {
    pub lock: Option<(String, Left)>,
    pub shadow: Option<(String, Left)>,
    pub token: String,
    pub owner: Option<String>,
    pub released: Option<String>,
    pub leased: Option<String>,
    pub holder: Option<(String, String)>,
    pub is_paused: bool,
    pub marker: Option<Mark>,
    pub bid: Option<(String, Left)>,
}

fn text(value: u128) -> String {
    String::from_utf8(hex(value)).expect("digits")
}

fn unless_zero(value: u128) -> Option<String> {
    (value != 0).then(|| text(value))
}

impl Kept {
    /// As the simulated node would show it at this time of its own.
    pub fn of_simulated(node: &Node, now_us: u64) -> Kept {
        let now_ms = now_us / 1000;
        let left = |expires_ms: u64| {
            (now_ms <= expires_ms).then(|| Left((expires_ms - now_ms).try_into().expect("not for ever")))
        };
        let key = |key: Option<Key>| key.and_then(|key| Some((text(key.value), left(key.expires_ms)?)));
        let (data, fence) = (&node.data, &node.data.fence);
        let bid = data
            .bid
            .and_then(|bid| Some((format!("{} {}", bid.priority.0, name(bid.host)), left(bid.expires_ms)?)));
        Kept {
            lock: key(data.lock),
            shadow: key(data.shadow),
            token: fence.t.to_string(),
            owner: unless_zero(fence.o),
            released: unless_zero(fence.x),
            leased: unless_zero(fence.l),
            holder: (fence.l != 0).then(|| (name(fence.host), fence.host.to_string())),
            is_paused: data.paused_until > 0,
            marker: data.marker.map(|marker| mark(marker.run, marker.until, marker.span)),
            bid,
        }
    }

    /// As much of it as the model's node has: no ends, no hosts, no bids, and of the marker only when it votes.
    pub fn is_like(&self, model: &checked::Node) -> bool {
        let (keys, token, fence) = model.kept();
        let name = |value: &Option<Value>| value.as_ref().map(Value::to_string);
        let value = |key: &Option<(String, Left)>| key.as_ref().map(|(value, _)| value.clone());
        keys.iter().map(name).eq([value(&self.lock), value(&self.shadow)])
            && token.to_string() == self.token
            && fence.iter().map(name).eq([self.owner.clone(), self.leased.clone(), self.released.clone()])
    }
}
