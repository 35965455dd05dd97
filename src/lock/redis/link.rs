//! One connection to one node, from the first byte to the last.

use super::endpoint::{Connected, Endpoint, tls_trouble};
use super::offset::Offset;
use super::reply::{self, Adopted, Marker, Reply};
use super::scripts::{Batch, Context, Digests, Invocation, Keys, MARKER, Script};
use crate::clock;
use crate::core::request::{Answer, Held, LookAnswer};
use crate::core::time::Instant;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, Pipeline, ProtocolVersion, PushInfo, PushKind};
use redis::{RedisError, ServerErrorKind, Value};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// Invalidations that may wait; what comes on top counts as "everything was touched".
const PUSHES: usize = 1024;
/// Requests that may wait for the socket inside redis-rs; they time out there like everywhere.
const PIPELINE: usize = 256;

/// What a user needs there, besides ~ the key prefix; tests grant exactly this, and take each away.
const RIGHTS: &str = "~keeperd:* +info +time +get +hget +hmget +pttl +set +hset +del +pexpire +eval +evalsha +script|load \
                      +client|tracking +client|caching";

/// Why a node does not serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    /// Tried again soon; may pass by itself.
    Down(String),
    /// Somebody has to do something.
    Denied(String),
}

impl Trouble {
    /// `doing` names the step that failed.
    pub(super) fn of(doing: &str, error: &RedisError) -> Self {
        if let Some(why) = tls_trouble(error) {
            return Trouble::Denied(format!("{doing}: {why}"));
        }
        let denied = matches!(
            error.kind(),
            ErrorKind::AuthenticationFailed
                | ErrorKind::InvalidClientConfig
                | ErrorKind::Server(ServerErrorKind::NoPerm)
        ) || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"));
        let text = format!("{doing}: {error}");
        if denied {
            Trouble::Denied(format!(
                "{text} (check user name, password and ACL: {RIGHTS} and the key prefix with ~)"
            ))
        } else {
            Trouble::Down(text)
        }
    }
}

/// A node's own account of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Identified {
    pub(super) run_id: String,
    pub(super) until_us: u64,
}

/// Invalidations on their way from the socket.
#[derive(Debug)]
pub(super) struct Pushes {
    queue: mpsc::Receiver<Vec<Value>>,
    flooded: Arc<AtomicBool>,
}

/// Which keys somebody else touched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Touched {
    Keys(Vec<Vec<u8>>),
    /// The node was flushed, or more was touched than fits the queue.
    Everything,
}

impl Pushes {
    /// Waits; never ends before the connection does.
    pub(super) async fn next(&mut self) -> Touched {
        match self.queue.recv().await {
            None => std::future::pending().await,
            Some(_) if self.flooded.swap(false, Ordering::Relaxed) => Touched::Everything,
            Some(data) => match data.into_iter().next() {
                Some(Value::Array(keys)) => Touched::Keys(keys.iter().filter_map(reply::text).collect()),
                Some(_) | None => Touched::Everything,
            },
        }
    }
}

/// What all nodes of a daemon agree on.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) nodes: u8,
    /// Grows when a reload brings longer leases.
    pub(super) quarantine: Cell<Duration>,
    pub(super) identity: crate::lock::Identity,
}

#[derive(Debug)]
pub(super) struct Link {
    connected: Connected,
    digests: Digests,
    pub(super) run_id: String,
    /// Node TIME in µs from which on it votes.
    pub(super) until_us: Cell<u64>,
    pub(super) offset: Cell<Offset>,
    pub(super) tracking: Cell<bool>,
    /// What is refused there and can be done without.
    lacks: RefCell<Option<String>>,
    pub(super) rtt: Cell<Option<Duration>>,
    pub(super) heard: Cell<Instant>,
    pub(super) timeouts: Cell<u32>,
    /// By fence key: what the last whole look found. As long as no change of the fence is pushed, and the same value stands under the lock
    /// key, the rest need not be read again.
    seen: RefCell<BTreeMap<Vec<u8>, Held>>,
    /// Changes that we know of: one that comes beside a look outdates it.
    changes: Cell<u64>,
    /// The marker has to be adopted again.
    pub(super) marker_lost: Notify,
    /// The end of it: closed by the peer, or given up by us.
    pub(super) lost: CancellationToken,
    given_up: RefCell<Option<Trouble>>,
}

/// redis-rs' defaults, each said: its timeouts are ours to keep, and it never reconnects by itself.
fn settings(lost: CancellationToken) -> (AsyncConnectionConfig, Pushes) {
    let (sender, queue) = mpsc::channel(PUSHES);
    let flooded = Arc::new(AtomicBool::new(false));
    let flood = Arc::clone(&flooded);
    let on_push = move |push: PushInfo| -> Result<(), redis::aio::SendError> {
        if push.kind == PushKind::Disconnection {
            lost.cancel();
        } else if push.kind == PushKind::Invalidate && sender.try_send(push.data).is_err() {
            flood.store(true, Ordering::Relaxed);
        }
        Ok(())
    };
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(None)
        .set_pipeline_buffer_size(PIPELINE)
        .set_push_sender(on_push);
    (config, Pushes { queue, flooded })
}

/// All replies in order; an error reply is a value among them.
pub(super) async fn all(
    con: &MultiplexedConnection,
    pipe: &Pipeline,
    limit: Duration,
) -> Result<Vec<Value>, RedisError> {
    let mut con = con.clone();
    match tokio::time::timeout(limit, con.send_packed_commands(pipe, 0, pipe.len())).await {
        Ok(replies) => replies,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

pub(super) fn error_in(reply: &Value) -> Option<RedisError> {
    if let Value::ServerError(error) = reply { Some(error.clone().into()) } else { None }
}

impl Link {
    /// Connect, authenticate, identify, adopt the marker, load the scripts.
    pub(super) async fn open(
        endpoint: &Endpoint,
        terms: &Terms,
        limit: Duration,
    ) -> Result<(Link, Pushes), Trouble> {
        let lost = CancellationToken::new();
        let (config, pushes) = settings(lost.clone());
        let connected = endpoint.connect(ProtocolVersion::RESP3, config, limit).await;
        let connected = connected.map_err(|e| Trouble::of("connect", &e))?;
        let con = &connected.con;
        let sent = clock::boot();
        let (identified, node_us) = identify(con, terms, limit).await?;
        let now = clock::boot();
        let (digests, refused) = load(con, limit).await?;
        let link = Link {
            digests,
            connected,
            run_id: identified.run_id,
            until_us: Cell::new(identified.until_us),
            offset: Cell::new(Offset::first(node_us, sent, now)),
            tracking: Cell::new(false),
            lacks: RefCell::new(refused.map(|e| format!("scripts are sent with every request: {e}"))),
            rtt: Cell::new(None),
            heard: Cell::new(now),
            timeouts: Cell::new(0),
            seen: RefCell::default(),
            changes: Cell::new(0),
            marker_lost: Notify::new(),
            lost,
            given_up: RefCell::new(None),
        };
        Ok((link, pushes))
    }

    /// Asks to be told when keys are touched. Refused, the node serves all the same and the keepers poll.
    pub(super) async fn track(&self, limit: Duration) -> Result<(), Trouble> {
        let mut pipe = Pipeline::new();
        pipe.cmd("CLIENT").arg("TRACKING").arg("ON").arg("OPTIN").arg("NOLOOP");
        // Tried now, because nobody looks at its answer later; TIME is what it is spent on.
        pipe.cmd("CLIENT").arg("CACHING").arg("YES").cmd("TIME");
        let replies = all(&self.connected.con, &pipe, limit).await.map_err(|e| Trouble::of("track", &e))?;
        let refused = replies.iter().take(2).find_map(error_in);
        self.tracking.set(refused.is_none());
        if let Some(error) = refused {
            *self.lacks.borrow_mut() = Some(format!("keepers poll, for changes are not pushed: {error}"));
        }
        Ok(())
    }

    /// What it cannot have there and can do without.
    pub(super) fn lacks(&self) -> Option<String> {
        self.lacks.borrow().clone()
    }

    /// Adopts the marker anew, as after a flush.
    pub(super) async fn adopt_again(&self, terms: &Terms, limit: Duration) -> Result<(), Trouble> {
        let (identified, _) = identify(&self.connected.con, terms, limit).await?;
        if identified.run_id != self.run_id {
            return Err(Trouble::Down("another server answers on the same connection".to_owned()));
        }
        self.until_us.set(identified.until_us);
        Ok(())
    }

    /// Sends one batch and reads what it means; the caller keeps the time limit.
    pub(super) async fn exchange(&self, batch: &Batch, context: &Context<'_>) -> Result<Reply, RedisError> {
        let fence = context.keys.fence.as_bytes();
        if !batch.is_look() {
            self.forget(Some(fence)); // NOLOOP says nothing of our own writes
        } else if let Some(seen) = self.taken(fence)
            && let Some(held) = self.glance(context.keys, &seen).await?
        {
            return Ok(Reply { answer: Answer::Look(LookAnswer::Held(held)), ..Reply::silent() });
        }
        let (sent, changes) = (clock::boot(), self.changes.get());
        let (pipe, at) = batch.pipeline(context.keys, Some(&self.digests), self.tracking.get());
        let mut replies = self.connected.con.clone().send_packed_commands(&pipe, 0, pipe.len()).await?;
        if matches!(replies.get(at), Some(Value::ServerError(e)) if e.kind() == Some(ServerErrorKind::NoScript))
        {
            let (pipe, _) = batch.pipeline(context.keys, None, self.tracking.get());
            replies = self.connected.con.clone().send_packed_commands(&pipe, 0, pipe.len()).await?;
        }
        let received = clock::boot();
        let deciding = replies.get(at..).unwrap_or_default();
        let reply = batch.decode(deciding, context);
        // An error under a key (a look at a Redisson lock) is understood; any other is the node's refusal.
        if reply.answer == Answer::Silent
            && let Some(error) = deciding.iter().find_map(error_in)
        {
            return Err(error);
        }
        self.note(reply.node_us, sent, received);
        if let Answer::Look(LookAnswer::Held(held)) = &reply.answer
            && reply::is_by_lock_key(deciding, held)
        {
            self.remember(context.keys, held, changes);
        }
        Ok(reply)
    }

    /// The same holder as before, or `None`: then a whole look is due.
    async fn glance(&self, keys: &Keys, seen: &Held) -> Result<Option<Held>, RedisError> {
        let (sent, changes) = (clock::boot(), self.changes.get());
        let mut pipe = Pipeline::new();
        pipe.cmd("GET").arg(&keys.lock).cmd("PTTL").arg(&keys.lock);
        let replies = self.connected.con.clone().send_packed_commands(&pipe, 0, pipe.len()).await?;
        self.note(None, sent, clock::boot());
        let held = reply::glance(&replies, seen);
        if let Some(held) = &held {
            self.remember(keys, held, changes);
        }
        Ok(held)
    }

    /// A keeperd only: a legacy client writes no fence, so nothing would be pushed.
    fn remember(&self, keys: &Keys, held: &Held, changes: u64) {
        if self.tracking.get() && held.holder.is_some() && self.changes.get() == changes {
            self.seen.borrow_mut().insert(keys.fence.clone().into_bytes(), held.clone());
        }
    }

    fn taken(&self, fence: &[u8]) -> Option<Held> {
        self.seen.borrow_mut().remove(fence)
    }

    /// This key was written, or all of them.
    pub(super) fn forget(&self, key: Option<&[u8]>) {
        self.changes.set(self.changes.get() + 1);
        let mut seen = self.seen.borrow_mut();
        match key {
            Some(key) => drop(seen.remove(key)),
            None => seen.clear(),
        }
    }

    fn note(&self, node_us: Option<u64>, sent: Instant, received: Instant) {
        self.timeouts.set(0);
        self.heard.set(received);
        self.rtt.set(Some(received.since(sent)));
        if let Some(node_us) = node_us {
            let mut offset = self.offset.get();
            offset.observe(node_us, sent, received);
            self.offset.set(offset);
        }
    }

    /// Tracks the lock key; its bytes as of now. For a key that a script's own reads must not track.
    pub(super) async fn watch(&self, keys: &Keys, limit: Duration) -> Option<Vec<u8>> {
        let mut pipe = Pipeline::new();
        pipe.cmd("CLIENT").arg("CACHING").arg("YES").cmd("GET").arg(&keys.lock);
        let replies = all(&self.connected.con, &pipe, limit).await.ok()?;
        Some(replies.get(1).and_then(reply::text).unwrap_or_default())
    }

    /// Releases values on a fresh connection; those that the node confirmed.
    pub(super) async fn settle<T: Clone>(
        &self,
        values: &[(T, Invocation)],
        limit: Duration,
    ) -> Result<Vec<T>, Trouble> {
        let mut pipe = Pipeline::new();
        for (_, release) in values {
            pipe.add_command(release.command(Some(&self.digests)));
        }
        let replies = all(&self.connected.con, &pipe, limit).await.map_err(|e| Trouble::of("release", &e))?;
        let done = values.iter().zip(&replies);
        Ok(done
            .filter(|(_, reply)| reply::release(std::slice::from_ref(*reply)).is_some())
            .map(|((value, _), _)| value.clone())
            .collect())
    }

    /// A sign of life, and of the marker, which most looks do not read.
    pub(super) async fn ping(&self, nodes: u8, limit: Duration) -> Result<Marker, RedisError> {
        let sent = clock::boot();
        let mut pipe = Pipeline::new();
        pipe.cmd("HMGET").arg(MARKER).arg(&["run_id", "until", "n"]).cmd("TIME");
        let replies = all(&self.connected.con, &pipe, limit).await?;
        self.note(replies.get(1).and_then(reply::time), sent, clock::boot());
        let marker = replies.first().and_then(|reply| reply::marker(reply, &self.run_id, nodes));
        Ok(marker.unwrap_or(Marker::Unsaid))
    }

    /// Ends the connection; everything in flight on it becomes silent at once.
    pub(super) fn give_up(&self, trouble: Trouble) {
        self.given_up.borrow_mut().get_or_insert(trouble);
        self.lost.cancel();
    }

    pub(super) fn why_lost(&self) -> Trouble {
        let closed = || Trouble::Down("the connection was closed by the other side".to_owned());
        self.given_up.borrow().clone().unwrap_or_else(closed)
    }
}

/// Run, role and marker of the node, with its TIME.
async fn identify(
    con: &MultiplexedConnection,
    terms: &Terms,
    limit: Duration,
) -> Result<(Identified, u64), Trouble> {
    let mut pipe = Pipeline::new();
    pipe.cmd("INFO").arg("server").cmd("INFO").arg("replication");
    pipe.cmd("EVAL").arg(include_str!("rights.lua")).arg(1).arg(MARKER);
    let mut replies = all(con, &pipe, limit).await.map_err(|e| Trouble::of("identify", &e))?;
    let rights = replies.pop();
    if let Some(error) = replies.iter().find_map(error_in) {
        // Nothing else tells one run from the next, and a node that restarted unnoticed could vote twice.
        return Err(Trouble::of("identify (INFO)", &error));
    }
    check_rights(rights.as_ref())?;
    let info: String =
        replies.iter().filter_map(reply::text).map(|t| String::from_utf8_lossy(&t).into_owned()).collect();
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let Some(run_id) = field("run_id:") else {
        return Err(Trouble::Denied("INFO names no run_id: this is not a Redis node".to_owned()));
    };
    match field("role:") {
        Some("master") => {}
        role => {
            let role = role.unwrap_or("unknown");
            return Err(Trouble::Denied(format!(
                "its role is {role}: every node must be a master of its own"
            )));
        }
    }
    let (node_us, until_us) = adopt(con, run_id, terms, limit).await?;
    Ok((Identified { run_id: run_id.to_owned(), until_us }, node_us))
}

/// Known before it votes, because a node that grants and cannot extend costs terms, and because the error of a script names no command.
fn check_rights(reply: Option<&Value>) -> Result<(), Trouble> {
    if let Some(error) = reply.and_then(error_in) {
        return Err(Trouble::of(&format!("check rights (EVAL on {MARKER})"), &error));
    }
    match reply.and_then(reply::text) {
        Some(missing) if !missing.is_empty() => Err(Trouble::Denied(format!(
            "this user has no permissions to run, or not on {MARKER}: {} (its ACL needs {RIGHTS} and the key prefix with ~)",
            String::from_utf8_lossy(&missing)
        ))),
        Some(_) | None => Ok(()),
    }
}

async fn adopt(
    con: &MultiplexedConnection,
    run_id: &str,
    terms: &Terms,
    limit: Duration,
) -> Result<(u64, u64), Trouble> {
    let mut pipe = Pipeline::new();
    pipe.add_command(Invocation::adopt(run_id, terms.nodes, terms.quarantine.get()).command(None));
    let replies = all(con, &pipe, limit).await.map_err(|e| Trouble::of("adopt", &e))?;
    let Some(first) = replies.first() else {
        return Err(Trouble::Down("no reply to adopt".to_owned()));
    };
    if let Some(error) = error_in(first) {
        return Err(Trouble::of(&format!("adopt the marker {MARKER}"), &error));
    }
    match reply::adopt(first) {
        Some(Adopted::Until { node_us, until_us }) => Ok((node_us, until_us)),
        Some(Adopted::Denied { nodes }) => Err(Trouble::Denied(format!(
            "it belongs to a quorum of {nodes} nodes and this configuration has {}: stop every keeperd, delete {MARKER} there, \
             start with one configuration everywhere",
            terms.nodes
        ))),
        None => Err(Trouble::Down("the reply to adopt makes no sense".to_owned())),
    }
}

/// A node that refuses to load scripts gets them with each call.
async fn load(
    con: &MultiplexedConnection,
    limit: Duration,
) -> Result<(Digests, Option<RedisError>), Trouble> {
    let mut pipe = Pipeline::new();
    for script in Script::DAEMON {
        pipe.cmd("SCRIPT").arg("LOAD").arg(script.source());
    }
    let replies = all(con, &pipe, limit).await.map_err(|e| Trouble::of("load scripts", &e))?;
    Ok((Digests::of(&replies), replies.iter().find_map(error_in)))
}
