//! Looking at a node for people: what it holds, and whether it is fit to be one of a quorum. Changes nothing a lock depends on.

use super::endpoint::{Connected, Endpoint, tls_trouble};
use super::scripts::{Keys, MARKER};
use super::{link, reply};
use crate::core::request::{Holder, Pause};
use redis::{AsyncConnectionConfig, Cmd, Pipeline, ProtocolVersion, RedisError, Value};
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

/// What a node says of itself.
#[derive(Clone, PartialEq, Debug)]
pub struct Facts {
    pub round_trip: Duration,
    pub version: String,
    pub run_id: String,
    pub role: String,
    pub uptime: Duration,
    /// `noeviction`, or what it throws away when its memory is full.
    pub eviction: String,
    pub append_only: bool,
    /// What `CONFIG` says of it, where this user may ask.
    pub fsync: Option<String>,
    pub snapshots: Option<bool>,
    /// Node time less host time, in µs, to half a round trip.
    pub ahead_us: i64,
    pub quarantine: Quarantine,
    /// The number of nodes it was last used with; absent when it is new.
    pub nodes: Option<u64>,
    /// Commands that were refused, with the node's own words.
    pub denied: Vec<(String, String)>,
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
        let here = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let node_us = replies.first().and_then(reply::time);
        let ahead_us = node_us.map_or(0, |us| us as i64 - (here - round_trip / 2).as_micros() as i64);
        let denied = self.denied(prefix).await?;
        let mut pipe = Pipeline::new();
        pipe.cmd("INFO").cmd("HMGET").arg(MARKER).arg(&["run_id", "until", "n"]);
        pipe.cmd("CONFIG").arg("GET").arg("appendfsync").cmd("CONFIG").arg("GET").arg("save");
        let replies = self.all(&pipe).await?;
        let [info, marker, fsync, save] = replies.as_slice() else { return Err("too few answers".into()) };
        let info = reply::text(info).and_then(|text| String::from_utf8(text).ok()).unwrap_or_default();
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let run_id = field("run_id").unwrap_or_default().to_owned();
        let marker = texts(marker);
        let until_us = marker.get(1).and_then(|text| text.as_ref()?.parse::<u64>().ok());
        let quarantine = match (marker.first(), until_us, node_us) {
            (Some(Some(run)), Some(until), Some(now)) if *run == run_id => match until.checked_sub(now) {
                Some(0) | None => Quarantine::Over,
                Some(left) => Quarantine::For(Duration::from_micros(left)),
            },
            _ => Quarantine::NotBegun,
        };
        let second = |value: &Value| texts(value).into_iter().nth(1).flatten();
        Ok(Facts {
            round_trip,
            version: field("redis_version").unwrap_or("unknown").to_owned(),
            role: field("role").unwrap_or("unknown").to_owned(),
            uptime: Duration::from_secs(field("uptime_in_seconds").and_then(|s| s.parse().ok()).unwrap_or(0)),
            eviction: field("maxmemory_policy").unwrap_or("unknown").to_owned(),
            append_only: field("aof_enabled") == Some("1"),
            fsync: second(fsync),
            snapshots: second(save).map(|save| !save.is_empty()),
            run_id,
            ahead_us,
            quarantine,
            nodes: marker.get(2).and_then(|text| text.as_ref()?.parse().ok()),
            denied,
        })
    }

    /// Tries every command that keeperd needs, in a way that changes no lock.
    async fn denied(&self, prefix: &str) -> Result<Vec<(String, String)>, String> {
        let lock = format!("{prefix}{NOBODY}");
        let side = format!("keeperd:{NOBODY}");
        let tries: Vec<Cmd> = [
            &["INFO", "server"][..],
            &["TIME"],
            &["GET", &lock],
            &["PTTL", &lock],
            &["SET", &lock, "x", "XX", "PX", "1"],
            &["PEXPIRE", &lock, "1"],
            &["DEL", &lock],
            &["GET", &side],
            &["HSET", &side, "x", "x"],
            &["HGET", &side, "x"],
            &["HMGET", &side, "x", "y"],
            &["DEL", &side],
            &["EVAL", "return 1", "0"],
            // Of "return 1"; that it is not loaded, or is, is all one.
            &["EVALSHA", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "0"],
            &["SCRIPT", "LOAD", "return 1"],
        ]
        .iter()
        .map(|words| {
            let mut cmd = redis::cmd(words[0]);
            cmd.arg(&words[1..]);
            cmd
        })
        .collect();
        let mut pipe = Pipeline::new();
        for cmd in &tries {
            pipe.add_command(cmd.clone());
        }
        let replies = self.all(&pipe).await?;
        let refused = tries.iter().zip(&replies).filter_map(|(cmd, reply)| {
            let error = link::error_in(reply).filter(is_refusal)?;
            Some((name(cmd), error.to_string()))
        });
        let mut refused: Vec<(String, String)> = refused.collect();
        refused.dedup_by(|a, b| a.0 == b.0);
        Ok(refused)
    }
}

fn is_refusal(error: &RedisError) -> bool {
    matches!(error.code(), Some("NOPERM" | "NOAUTH" | "WRONGPASS"))
}

/// The command, and with `SCRIPT` which.
fn name(cmd: &Cmd) -> String {
    let words = cmd.args_iter().filter_map(|word| {
        if let redis::Arg::Simple(word) = word {
            Some(String::from_utf8_lossy(word).to_lowercase())
        } else {
            None
        }
    });
    let words: Vec<String> = words.take(2).collect();
    match words.as_slice() {
        [command, which] if command == "script" => format!("{command}|{which}"),
        [command, ..] => command.clone(),
        [] => String::new(),
    }
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
