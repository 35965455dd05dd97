//! Looking at a node for people: what it holds, and whether it is fit to be one of a quorum. Changes nothing a lock depends on.

use super::endpoint::{Connected, Endpoint, tls_trouble};
use super::scripts::{Keys, MARKER};
use super::{link, reply};
use crate::core::request::{Holder, Pause};
use redis::{AsyncConnectionConfig, Pipeline, ProtocolVersion, RedisError, Value};
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

/// Locks of one node that are looked at; beyond it the answer says that it is cut.
pub const LOCKS_MAX: usize = 10_000;
const SCAN_COUNT: usize = 1000;
/// Keys asked about in one trip.
const CHUNK: usize = 500;
/// A key that no keeper has.
const NOBODY: &str = " keeperd doctor";

/// A connection that looks.
#[derive(Debug)]
pub struct Visit {
    connected: Connected,
    limit: Duration,
}

/// A lock as one node has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Absent: only its shadow is left, so that nobody else is granted this node.
    pub value: Option<String>,
    pub left: Left,
    /// The keeperd that has this value.
    pub holder: Option<Holder>,
    /// Of that holder.
    pub token: Option<u64>,
    /// It is granted to nobody.
    pub paused: Option<Pause>,
}

/// How long a key lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Left {
    For(Duration),
    Ever,
}

/// What one node holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Locks {
    /// By name: the key without the prefix.
    pub seen: BTreeMap<String, Seen>,
    /// There are more.
    pub cut: bool,
}

/// How a node is, and what it lets this user do.
#[derive(Clone, PartialEq, Debug)]
pub struct Facts {
    pub round_trip: Duration,
    /// Absent: this user may not ask.
    pub info: Option<Info>,
    /// What `CONFIG` says of it, where this user may ask.
    pub fsync: Option<String>,
    pub snapshots: Option<bool>,
    /// Node time less host time, in µs, to half a round trip.
    pub ahead_us: i64,
    pub quarantine: Quarantine,
    /// The number of nodes it was last used with; absent when it is new.
    pub nodes: Option<u64>,
    /// Commands and keys that were refused, as the ACL names them.
    pub denied: Vec<Denied>,
}

/// What a node says of itself.
#[derive(Clone, PartialEq, Debug)]
pub struct Info {
    pub version: String,
    pub run_id: String,
    pub role: String,
    pub uptime: Duration,
    /// `noeviction`, or what it throws away when its memory is full.
    pub eviction: String,
    pub append_only: bool,
}

/// A right that this user has not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Denied {
    /// `set`, `script|load`, `~redlock:*`.
    pub right: String,
    /// The node's own.
    pub words: String,
    /// What is slower or unknown for want of it; absent: without it the node is no vote.
    pub costs: Option<&'static str>,
}

/// Whether a node votes in elections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quarantine {
    Over,
    For(Duration),
    /// It was restarted or flushed, or is new, and no daemon has been there since: it begins when one comes.
    NotBegun,
}

impl Visit {
    /// # Errors
    /// Why it cannot be looked at, in the words of the node or the system; never with a secret.
    pub async fn open(endpoint: &Endpoint, limit: Duration) -> Result<Visit, String> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(limit));
        match endpoint.connect(ProtocolVersion::RESP2, config, limit).await {
            Ok(connected) => Ok(Visit { connected, limit }),
            Err(error) => Err(tls_trouble(&error).unwrap_or_else(|| error.to_string())),
        }
    }

    pub(super) async fn all(&self, pipe: &Pipeline) -> Result<Vec<Value>, String> {
        link::all(&self.connected.con, pipe, self.limit).await.map_err(|error| error.to_string())
    }

    /// Every lock under `prefix` that is held or paused, at most [`LOCKS_MAX`] each.
    ///
    /// # Errors
    /// When the node refuses, or falls silent.
    pub async fn locks(&self, prefix: &str) -> Result<Locks, String> {
        let (mut keys, mut cut) = self.keys(prefix).await?;
        // Under no prefix these would be found, too.
        keys.retain(|key| !key.starts_with("keeperd:"));
        // A paused lock that nobody has is known by its fence alone.
        let Keys { fence, .. } = Keys::of(prefix);
        let before = fence.strip_suffix('}').unwrap_or(&fence);
        let (fences, more) = self.keys(before).await?;
        let locks = fences.iter().filter_map(|fence| fence.strip_prefix(before)?.strip_suffix('}'));
        keys.extend(locks.map(|name| format!("{prefix}{name}")));
        keys.sort();
        keys.dedup();
        cut |= more;
        let mut locks = Locks { cut, ..Locks::default() };
        for chunk in keys.chunks(CHUNK) {
            let mut pipe = Pipeline::new();
            for key in chunk {
                let keys = Keys::of(key);
                pipe.cmd("GET").arg(&keys.lock).cmd("PTTL").arg(&keys.lock);
                pipe.cmd("GET").arg(&keys.shadow);
                pipe.cmd("HMGET").arg(&keys.fence).arg(&["t", "l", "host", "pid", "p"]);
            }
            let replies = self.all(&pipe).await?;
            for (key, replies) in chunk.iter().zip(replies.chunks_exact(4)) {
                if let Some(seen) = seen(replies)? {
                    locks.seen.insert(key[prefix.len()..].to_owned(), seen);
                }
            }
        }
        Ok(locks)
    }

    /// `SCAN`, never `KEYS`: the node serves others meanwhile.
    async fn keys(&self, prefix: &str) -> Result<(Vec<String>, bool), String> {
        let pattern = format!("{}*", glob_escaped(prefix));
        let (mut keys, mut cursor) = (Vec::new(), b"0".to_vec());
        loop {
            let mut pipe = Pipeline::new();
            pipe.cmd("SCAN").arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(SCAN_COUNT);
            let replies = self.all(&pipe).await?;
            let reply = replies.first().ok_or("no answer to SCAN")?;
            if let Some(error) = link::error_in(reply) {
                return Err(error.to_string());
            }
            let Value::Array(parts) = reply else { return Err("not an answer to SCAN".into()) };
            let [next, Value::Array(found)] = parts.as_slice() else {
                return Err("not an answer to SCAN".into());
            };
            // A key that is no text is no lock of ours or of redlock's.
            let found = found.iter().filter_map(|key| String::from_utf8(reply::text(key)?).ok());
            keys.extend(found);
            cursor = reply::text(next).ok_or("not an answer to SCAN")?;
            if cursor == b"0" || keys.len() > LOCKS_MAX {
                break;
            }
        }
        keys.sort();
        keys.dedup();
        let cut = keys.len() > LOCKS_MAX || cursor != b"0";
        keys.truncate(LOCKS_MAX);
        Ok((keys, cut))
    }

    /// What the node says of itself, and which commands this user may not use there under `prefix`.
    ///
    /// # Errors
    /// When the node falls silent, or says nothing that can be understood.
    pub async fn facts(&self, prefix: &str) -> Result<Facts, String> {
        let sent = Instant::now();
        let mut pipe = Pipeline::new();
        pipe.cmd("TIME");
        let replies = self.all(&pipe).await?;
        let round_trip = sent.elapsed();
        if let Some(error) = replies.first().and_then(link::error_in)
            && error.code() == Some("NOAUTH")
        {
            return Err(error.to_string());
        }
        let here = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let node_us = replies.first().and_then(reply::time);
        let ahead_us = node_us.map_or(0, |us| us as i64 - (here - round_trip / 2).as_micros() as i64);
        let denied = self.denied(prefix).await?;
        let mut pipe = Pipeline::new();
        pipe.cmd("INFO").cmd("HMGET").arg(MARKER).arg(&["run_id", "until", "n"]);
        pipe.cmd("CONFIG").arg("GET").arg("appendfsync").cmd("CONFIG").arg("GET").arg("save");
        let replies = self.all(&pipe).await?;
        let [info, marker, fsync, save] = replies.as_slice() else { return Err("too few answers".into()) };
        let info = reply::text(info).and_then(|text| Info::read(&String::from_utf8(text).ok()?));
        let marker = texts(marker);
        let until_us = marker.get(1).and_then(|text| text.as_ref()?.parse::<u64>().ok());
        let quarantine = match (marker.first(), until_us, node_us) {
            (Some(Some(run)), Some(until), Some(now))
                if info.as_ref().is_none_or(|info| *run == info.run_id) =>
            {
                match until.checked_sub(now) {
                    Some(0) | None => Quarantine::Over,
                    Some(left) => Quarantine::For(Duration::from_micros(left)),
                }
            }
            _ => Quarantine::NotBegun,
        };
        let second = |value: &Value| texts(value).into_iter().nth(1).flatten();
        Ok(Facts {
            round_trip,
            info,
            fsync: second(fsync),
            snapshots: second(save).map(|save| !save.is_empty()),
            ahead_us,
            quarantine,
            nodes: marker.get(2).and_then(|text| text.as_ref()?.parse().ok()),
            denied,
        })
    }

    /// Tries every command that keeperd needs, in a way that changes no lock.
    async fn denied(&self, prefix: &str) -> Result<Vec<Denied>, String> {
        let lock = format!("{prefix}{NOBODY}");
        let side = format!("keeperd:{NOBODY}");
        let tries = [
            (&["INFO", "server"][..], None),
            (&["TIME"], None),
            (&["GET", &lock], None),
            (&["PTTL", &lock], None),
            (&["SET", &lock, "x", "XX", "PX", "1"], None),
            (&["PEXPIRE", &lock, "1"], None),
            (&["DEL", &lock], None),
            (&["GET", &side], None),
            (&["HSET", &side, "x", "x"], None),
            (&["HGET", &side, "x"], None),
            (&["HMGET", &side, "x", "y"], None),
            (&["DEL", &side], None),
            (&["EVAL", "return 1", "0"], None),
            // Of "return 1"; that it is not loaded, or is, is all one.
            (&["EVALSHA", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "0"], None),
            (&["SCRIPT", "LOAD", "return 1"], Some("scripts are sent with every request")),
            (
                &["CLIENT", "TRACKING", "OFF"],
                Some("standbys poll, so that a hand-over takes up to half a ttl"),
            ),
            // Refused for another reason where tracking is off.
            (
                &["CLIENT", "CACHING", "YES"],
                Some("standbys poll, so that a hand-over takes up to half a ttl"),
            ),
            (
                &["SCAN", "0", "COUNT", "1"],
                Some("locks cannot be listed, and one that never expires is not found here"),
            ),
        ];
        let mut pipe = Pipeline::new();
        for (words, _) in &tries {
            pipe.cmd(words[0]).arg(&words[1..]);
        }
        let replies = self.all(&pipe).await?;
        let mut refused: Vec<Denied> = Vec::new();
        for ((words, costs), reply) in tries.into_iter().zip(&replies) {
            let Some(error) = link::error_in(reply).filter(is_refusal) else { continue };
            let said = error.to_string();
            // Of Redis 7 and of 6.2.
            let right = match words.get(1) {
                Some(key) if said.contains("access a key") || said.contains("of the keys") => {
                    format!("~{}*", if *key == side { "keeperd:" } else { prefix })
                }
                Some(which) if matches!(words[0], "SCRIPT" | "CLIENT") => {
                    format!("{}|{which}", words[0]).to_lowercase()
                }
                Some(_) | None => words[0].to_lowercase(),
            };
            if !refused.iter().any(|denied| denied.right == right) {
                refused.push(Denied { right, words: said, costs });
            }
        }
        Ok(refused)
    }
}

impl Info {
    fn read(text: &str) -> Option<Info> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Some(Info {
            // Valkey names itself so, and in the other field the Redis it is compatible with.
            version: field("valkey_version").or(field("redis_version"))?.to_owned(),
            run_id: field("run_id")?.to_owned(),
            role: field("role")?.to_owned(),
            uptime: Duration::from_secs(field("uptime_in_seconds")?.parse().ok()?),
            eviction: field("maxmemory_policy")?.to_owned(),
            append_only: field("aof_enabled")? == "1",
        })
    }
}

fn is_refusal(error: &RedisError) -> bool {
    matches!(error.code(), Some("NOPERM" | "NOAUTH" | "WRONGPASS"))
}

/// From `GET`, `PTTL` of the lock, `GET` of its shadow, and the fence. Nothing: it has just gone.
fn seen(replies: &[Value]) -> Result<Option<Seen>, String> {
    let [lock, pttl, shadow, fence] = replies else { return Err("too few answers".into()) };
    if let Some(error) = link::error_in(lock) {
        if is_refusal(&error) {
            return Err(error.to_string());
        }
        let seen = Seen {
            value: Some("(not a string)".into()),
            left: left(pttl),
            holder: None,
            token: None,
            paused: None,
        };
        return Ok(Some(seen));
    }
    let text = |value: &Value| reply::text(value).map(|text| String::from_utf8_lossy(&text).into_owned());
    let fence = texts(fence);
    let paused = fence
        .get(4)
        .cloned()
        .flatten()
        .filter(|text| !text.is_empty())
        .map(|text| reply::parse_pause(text.as_bytes()));
    let Some(value) = text(lock) else {
        let seen =
            |paused| Seen { value: None, left: left(pttl), holder: None, token: None, paused: Some(paused) };
        return Ok(paused.map(seen));
    };
    let of_fence = |place: usize| fence.get(place).cloned().flatten();
    let ours = text(shadow).as_ref() == Some(&value);
    let known = ours && of_fence(1).as_ref() == Some(&value);
    let holder =
        known.then(|| Some(Holder { host: of_fence(2)?, pid: of_fence(3)?.parse().ok()? })).flatten();
    let token = of_fence(0).filter(|_| known).and_then(|token| token.parse().ok());
    Ok(Some(Seen { value: Some(value), left: left(pttl), holder, token, paused }))
}

fn left(pttl: &Value) -> Left {
    match reply::text(pttl).and_then(|text| String::from_utf8(text).ok()?.parse::<i64>().ok()) {
        Some(-1) => Left::Ever,
        Some(ms) => Left::For(Duration::from_millis(u64::try_from(ms).unwrap_or(0))),
        None => Left::For(Duration::ZERO),
    }
}

fn texts(reply: &Value) -> Vec<Option<String>> {
    let Value::Array(items) = reply else { return Vec::new() };
    items.iter().map(|item| String::from_utf8(reply::text(item)?).ok()).collect()
}

/// A prefix may hold what `MATCH` takes for a pattern.
fn glob_escaped(prefix: &str) -> String {
    prefix.chars().fold(String::new(), |mut escaped, c| {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            escaped.push('\\');
        }
        escaped.push(c);
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(glob_escaped("a[b]*:"), "a\\[b\\]\\*:");
    }
}
