//! One lock on all nodes in an operator's hands: looked at, paused, taken from its holder. For commands; the daemon has actors.

use super::scripts::{Invocation, Keys};
use super::survey::Visit;
use super::{Access, Endpoint, link, reply};
use crate::core::request::{Held, Pause};
use redis::{Pipeline, Value};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// A node that takes longer is out.
const LIMIT: Duration = Duration::from_secs(2);
/// The lease of a holder whose own is unknown: what keeperd and the npm package have when nobody says (R25).
pub const LEASE_UNKNOWN: Duration = Duration::from_secs(30);

/// The nodes, and the lock on them. Connections are kept from one deed to the next.
#[derive(Debug)]
pub struct Operator {
    nodes: Vec<Node>,
    keys: Keys,
}

#[derive(Clone, Debug)]
struct Node {
    endpoint: Result<Endpoint, String>,
    visit: Option<Arc<Visit>>,
}

/// What one node says of the lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sight {
    pub held: Option<Held>,
    /// The holder's own, if it is a keeperd that has said so.
    pub lease: Option<Duration>,
    pub pause: Option<Pause>,
}

/// What became of a value on one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Evicted {
    /// It is gone, and nobody else is granted the node for so long.
    Gone { waits: Duration },
    /// Another value stands there, or none.
    Changed,
}

/// By node, in the order of the configuration; the error says why a node could not be asked or refused.
pub type ByNode<T> = Vec<Result<T, String>>;

impl Operator {
    /// `key` is the whole lock key.
    pub fn new(access: &Access, key: &str) -> Self {
        let nodes = access.endpoints().into_iter().map(|endpoint| Node { endpoint, visit: None });
        Operator { nodes: nodes.collect(), keys: Keys::of(key) }
    }

    pub async fn look(&mut self) -> ByNode<Sight> {
        let mut pipe = Pipeline::new();
        let Keys { lock, shadow, fence, .. } = &self.keys;
        pipe.cmd("GET").arg(lock).cmd("PTTL").arg(lock).cmd("GET").arg(shadow).cmd("PTTL").arg(shadow);
        pipe.cmd("HMGET").arg(fence).arg(&["t", "l", "host", "pid", "p"]).cmd("HGET").arg(fence).arg("ttl");
        let pipes = self.nodes.iter().map(|_| Some(pipe.clone())).collect();
        self.on_each(pipes, |replies| {
            let [lock, lock_left, shadow, shadow_left, fence, ttl] = replies else { return None };
            let (held, pause) = reply::holding(fence, [lock, lock_left], [shadow, shadow_left])?;
            let known =
                held.as_ref().and_then(|held| held.holder.as_ref()).is_some_and(|h| !h.host.is_empty());
            let lease = reply::millis(ttl).filter(|_| known);
            Some(Sight { held, lease, pause })
        })
        .await
    }

    /// Pauses the keeper on all hosts, or ends that. What was there before: an older pause stays.
    pub async fn pause(&mut self, pause: Option<&Pause>) -> ByNode<Option<Pause>> {
        let mut pipe = Pipeline::new();
        pipe.add_command(Invocation::pause(&self.keys, pause).command(None));
        let pipes = self.nodes.iter().map(|_| Some(pipe.clone())).collect();
        self.on_each(pipes, reply::paused).await
    }

    /// Takes the lock from `values`, by node; a node without one is left alone.
    pub async fn evict(&mut self, values: &[Option<Vec<u8>>]) -> ByNode<Option<Evicted>> {
        let pipe = |value: &Vec<u8>| {
            let mut pipe = Pipeline::new();
            pipe.add_command(Invocation::evict(&self.keys, value, LEASE_UNKNOWN).command(None));
            pipe
        };
        let pipes = values.iter().map(|value| value.as_ref().map(pipe)).collect();
        let done = self.on_each(pipes, reply::evicted).await;
        values
            .iter()
            .zip(done)
            .map(|(value, done)| if value.is_some() { done.map(Some) } else { Ok(None) })
            .collect()
    }

    /// Nodes without commands are not asked, and their answer is an error that nobody reads.
    async fn on_each<T>(
        &mut self,
        pipes: Vec<Option<Pipeline>>,
        decode: impl Fn(&[Value]) -> Option<T>,
    ) -> ByNode<T> {
        let mut tasks = JoinSet::new();
        for (place, pipe) in pipes.into_iter().enumerate() {
            let (Some(pipe), Some(Node { endpoint, visit })) = (pipe, self.nodes.get(place).cloned()) else {
                continue;
            };
            tasks.spawn(async move {
                let asked = async {
                    let visit = match visit {
                        Some(visit) => visit,
                        None => Arc::new(Visit::open(&endpoint?, LIMIT).await?),
                    };
                    let replies = visit.all(&pipe).await?;
                    Ok::<_, String>((visit, replies))
                };
                (place, asked.await)
            });
        }
        let mut answers: ByNode<T> = self.nodes.iter().map(|_| Err("not asked".to_owned())).collect();
        while let Some(joined) = tasks.join_next().await {
            let Ok((place, done)) = joined else { continue };
            let (visit, answer) = match done {
                Ok((visit, replies)) => (Some(visit), understood(&replies, &decode)),
                Err(why) => (None, Err(why)),
            };
            self.nodes[place].visit = visit;
            answers[place] = answer;
        }
        answers
    }
}

fn understood<T>(replies: &[Value], decode: impl Fn(&[Value]) -> Option<T>) -> Result<T, String> {
    decode(replies).ok_or_else(|| {
        let refusal = replies.iter().find_map(link::error_in);
        refusal.map_or_else(|| "its answer makes no sense".to_owned(), |error| error.to_string())
    })
}
