//! `keeperd locks`: every lock under the prefix, over all nodes.

use crate::config::{Config, LockConfig, RedisConfig};
use crate::core::event::Reason;
use crate::core::request::Holder;
use crate::lock::local;
use crate::lock::redis::survey::{LOCKS_MAX, Left, Locks, Visit};
use crate::observe::events::say_reason;
use crate::observe::plain::plain;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// For each node, and each of its answers.
const LIMIT: Duration = Duration::from_secs(3);
/// Exit code: too few nodes could be asked to know who holds what.
const EXIT_NO_QUORUM: i32 = 1;

#[derive(Debug, Serialize)]
struct Document {
    locks: Vec<Lock>,
    nodes: Vec<Node>,
}

#[derive(Debug, Serialize)]
struct Node {
    address: String,
    /// Why it could not be asked.
    error: Option<String>,
}

/// One lock, as the nodes together have it.
#[derive(Debug, Serialize)]
struct Lock {
    name: String,
    key: String,
    value: Option<String>,
    votes: usize,
    nodes: usize,
    /// Only of a keeperd's lock.
    holder: Option<By>,
    token: Option<u64>,
    /// Absent when it never expires.
    ttl_ms: Option<u64>,
    anomalies: Vec<String>,
}

#[derive(Debug, Serialize)]
struct By {
    host: String,
    pid: u32,
}

impl From<Holder> for By {
    fn from(Holder { host, pid }: Holder) -> By {
        By { host, pid }
    }
}

/// Prints the locks; the exit code.
pub fn run(config: &Config, json: bool, out: &mut dyn Write) -> i32 {
    match try_run(config, json, out) {
        Ok(code) => code,
        // Whoever read us has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            eprintln!("keeperd: {error}");
            EXIT_NO_QUORUM
        }
    }
}

fn try_run(config: &Config, json: bool, out: &mut dyn Write) -> io::Result<i32> {
    let (document, quorum) = match &config.lock {
        LockConfig::Redis(redis) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let asked =
                runtime.block_on(visit_all(redis, |visit, prefix| async move { visit.locks(&prefix).await }));
            runtime.shutdown_background();
            (of_nodes(&redis.key_prefix, asked), redis.nodes.len() / 2 + 1)
        }
        LockConfig::Local(directory) => {
            let nodes = vec![Node { address: directory.directory.display().to_string(), error: None }];
            (Document { locks: of_files(holders(&directory.directory)?), nodes }, 1)
        }
    };
    if json {
        serde_json::to_writer_pretty(&mut *out, &document)?;
        writeln!(out)?;
    } else {
        print(&document, out)?;
    }
    let silent = document.nodes.iter().filter_map(|node| Some((&node.address, node.error.as_ref()?)));
    for (address, error) in silent {
        eprintln!("keeperd: {address} could not be asked: {}", plain(error));
    }
    let answered = document.nodes.iter().filter(|node| node.error.is_none()).count();
    if answered < quorum {
        eprintln!("keeperd: {answered} of {} nodes answered; keeperd doctor says more", document.nodes.len());
        return Ok(EXIT_NO_QUORUM);
    }
    Ok(0)
}

/// For each node its address, and what `look` found there.
pub type Visited<T> = Vec<(String, Result<T, String>)>;

/// Looks at all nodes at once; a node that does not answer costs three seconds.
pub async fn visit_all<T: Send + 'static, F>(
    redis: &RedisConfig,
    look: impl Fn(Visit, String) -> F + Clone + Send + 'static,
) -> Visited<T>
where
    F: Future<Output = Result<T, String>> + Send + 'static,
{
    let mut visits = tokio::task::JoinSet::new();
    let access = redis.access();
    for (place, (address, endpoint)) in access.nodes.iter().zip(access.endpoints()).enumerate() {
        let address = address.display.clone();
        let prefix = redis.key_prefix.clone();
        let look = look.clone();
        visits.spawn(async move {
            let visit = match endpoint {
                Ok(endpoint) => Visit::open(&endpoint, LIMIT).await,
                Err(error) => Err(error),
            };
            let found = match visit {
                Ok(visit) => look(visit, prefix).await,
                Err(error) => Err(error),
            };
            (place, address, found)
        });
    }
    let mut found = visits.join_all().await;
    found.sort_by_key(|(place, ..)| *place);
    found.into_iter().map(|(_, address, found)| (address, found)).collect()
}

fn of_nodes(prefix: &str, asked: Visited<Locks>) -> Document {
    let count = asked.len();
    let mut seen: BTreeMap<&str, Vec<(&str, _)>> = BTreeMap::new();
    for (address, locks) in &asked {
        for (name, lock) in locks.iter().flat_map(|locks| &locks.seen) {
            seen.entry(name).or_default().push((address, lock));
        }
    }
    let locks = seen.into_iter().map(|(name, seen)| {
        let mut votes: BTreeMap<Option<&str>, usize> = BTreeMap::new();
        for (_, lock) in &seen {
            *votes.entry(lock.value.as_deref()).or_default() += 1;
        }
        let most = votes.iter().max_by_key(|(value, votes)| (value.is_some(), **votes, **value));
        let (value, votes_of_it) =
            most.map_or((None, 0), |(value, votes)| (*value, value.map_or(0, |_| *votes)));
        let of_it: Vec<_> = seen.iter().filter(|(_, lock)| lock.value.as_deref() == value).collect();
        let mut anomalies = Vec::new();
        let ever: Vec<&str> =
            seen.iter().filter(|(_, lock)| lock.left == Left::Ever).map(|(address, _)| *address).collect();
        if !ever.is_empty() {
            anomalies.push(format!("never expires on {}: keeperd unlock frees it", ever.join(", ")));
        }
        let values = votes.keys().flatten().count();
        if values > 1 {
            anomalies.push(format!("{values} different values"));
        }
        let pauses: Vec<_> = seen.iter().filter_map(|(_, lock)| lock.paused.clone()).collect();
        if let Some(pause) = pauses.first().cloned() {
            let (on, pause) = (pauses.len(), say_reason(&Reason::PausedEverywhere(pause)));
            anomalies.push(format!("{pause}, says {on} of {count} nodes"));
        }
        if value.is_some() && votes_of_it <= count / 2 {
            anomalies.push("only on a minority of the nodes: nobody holds it".into());
        }
        // What it has on a quorum, or on as many nodes as have it.
        let mut lefts: Vec<Left> = of_it.iter().map(|(_, lock)| lock.left).collect();
        lefts.sort();
        lefts.reverse();
        let ttl_ms = match lefts.get((count / 2).min(lefts.len().saturating_sub(1))) {
            Some(Left::For(left)) if value.is_some() => Some(left.as_millis() as u64),
            Some(Left::For(_) | Left::Ever) | None => None,
        };
        Lock {
            name: name.to_owned(),
            key: format!("{prefix}{name}"),
            value: value.map(str::to_owned),
            votes: votes_of_it,
            nodes: count,
            holder: of_it.iter().find_map(|(_, lock)| lock.holder.clone()).map(By::from),
            token: of_it.iter().filter_map(|(_, lock)| lock.token).max(),
            ttl_ms,
            anomalies,
        }
    });
    let locks = locks.collect();
    let nodes = asked.into_iter().map(|(address, locks)| {
        let cut =
            |locks: &Locks| locks.cut.then(|| format!("holds more than {LOCKS_MAX} locks: the list is cut"));
        Node { address, error: locks.as_ref().map_or_else(|error| Some(error.clone()), cut) }
    });
    Document { locks, nodes: nodes.collect() }
}

/// Nobody has ever held one where there is no directory yet.
fn holders(directory: &Path) -> io::Result<Vec<local::Holding>> {
    match local::holders(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        found => found,
    }
}

fn of_files(files: Vec<local::Holding>) -> Vec<Lock> {
    let lock = |local::Holding { name, value, token, holder }| Lock {
        key: name,
        name: String::new(),
        value: Some(value),
        votes: 1,
        nodes: 1,
        holder: Some(By::from(holder)),
        token: Some(token),
        ttl_ms: None,
        anomalies: Vec::new(),
    };
    let named = |lock: Lock| Lock { name: lock.key.clone(), ..lock };
    files.into_iter().map(lock).map(named).collect()
}

fn print(document: &Document, out: &mut dyn Write) -> io::Result<()> {
    let asked = document.nodes.iter().filter(|node| node.error.is_none()).count();
    // The local engine has no nodes to ask.
    if document.locks.is_empty() && (document.nodes.is_empty() || asked > document.nodes.len() / 2) {
        return writeln!(out, "nobody holds a lock");
    }
    if document.locks.is_empty() {
        return writeln!(out, "unknown: {asked} of {} nodes said what they hold", document.nodes.len());
    }
    writeln!(out, "{:<28} {:>5} {:>9} {:>17}  HOLDER", "LOCK", "VOTES", "LEFT", "TOKEN")?;
    for lock in &document.locks {
        let left = lock.ttl_ms.map_or("-".into(), |ms| format!("{:.1} s", ms as f64 / 1000.0));
        let token = lock.token.map_or("-".into(), |token| token.to_string());
        let votes = format!("{}/{}", lock.votes, lock.nodes);
        let name = plain(&lock.name);
        // A long name has a line of its own, and its columns stay where they are.
        if name.chars().count() > 28 {
            writeln!(out, "{name}")?;
            write!(out, "{:<28}", "")?;
        } else {
            write!(out, "{name:<28}")?;
        }
        match &lock.holder {
            Some(By { host, pid }) => {
                writeln!(out, " {votes:>5} {left:>9} {token:>17}  {}", plain(host))?;
                writeln!(out, "    keeperd's pid {pid} on that host")?;
            }
            None if lock.value.is_none() => writeln!(out, " {votes:>5} {left:>9} {token:>17}  nobody")?,
            None => {
                writeln!(out, " {votes:>5} {left:>9} {token:>17}  not a keeperd")?;
                let value = lock.value.as_deref().unwrap_or_default();
                writeln!(out, "    value {}", plain(value))?;
            }
        }
        for anomaly in &lock.anomalies {
            writeln!(out, "    ! {}", plain(anomaly))?;
        }
    }
    Ok(())
}
