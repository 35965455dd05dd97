//! The scripts: what goes to a node for each [`Request`], and what its reply means.

use super::reply::Reply;
use crate::core::lease::Value;
use crate::core::request::{Pause, Request};
use crate::core::time::Instant;
use crate::lock::Identity;
use redis::{Cmd, Pipeline};
use std::time::Duration;

/// The marker of a node: which run of it votes, from when on, in a quorum of how many.
pub(super) const MARKER: &str = "keeperd:node";

/// The keys of one lock. The braces give all of them the slot of the lock key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Keys {
    pub(super) lock: String,
    pub(super) shadow: String,
    pub(super) fence: String,
    /// Who asks the holder to hand over.
    pub(super) bid: String,
}

impl Keys {
    pub(super) fn of(lock: &str) -> Self {
        Keys {
            lock: lock.to_owned(),
            shadow: format!("keeperd:lease:{{{lock}}}"),
            fence: format!("keeperd:fence:{{{lock}}}"),
            bid: format!("keeperd:bid:{{{lock}}}"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Script {
    Acquire,
    Raise,
    Extend,
    Repair,
    Release,
    Bid,
    Adopt,
    /// An operator's, as the next.
    Pause,
    Evict,
}

macro_rules! source {
    ($file:literal) => {
        concat!(include_str!("prelude.lua"), include_str!($file))
    };
}

impl Script {
    /// What a daemon has loaded everywhere.
    pub(super) const DAEMON: [Script; 7] = [
        Script::Acquire,
        Script::Raise,
        Script::Extend,
        Script::Repair,
        Script::Release,
        Script::Bid,
        Script::Adopt,
    ];

    pub(super) fn source(self) -> &'static str {
        match self {
            Script::Acquire => source!("acquire.lua"),
            Script::Raise => source!("raise.lua"),
            Script::Extend => source!("extend.lua"),
            Script::Repair => source!("repair.lua"),
            Script::Release => source!("release.lua"),
            Script::Bid => source!("bid.lua"),
            Script::Adopt => source!("adopt.lua"),
            Script::Pause => source!("pause.lua"),
            Script::Evict => source!("evict.lua"),
        }
    }
}

/// The SHA1 of each script, as the node named it on loading; empty where loading was refused.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Digests([Option<String>; Script::DAEMON.len()]);

impl Digests {
    /// From the replies to one `SCRIPT LOAD` for each of [`Script::DAEMON`].
    pub(super) fn of(replies: &[redis::Value]) -> Self {
        let mut digests = Digests::default();
        for (slot, reply) in digests.0.iter_mut().zip(replies) {
            *slot = super::reply::text(reply).and_then(|sha| String::from_utf8(sha).ok());
        }
        digests
    }

    fn get(&self, script: Script) -> Option<&str> {
        self.0.get(script as usize)?.as_deref()
    }
}

/// One call of one script.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Invocation {
    pub(super) script: Script,
    pub(super) keys: Vec<String>,
    pub(super) args: Vec<Vec<u8>>,
}

impl Invocation {
    pub(super) fn release(keys: &Keys, value: &str) -> Self {
        let keys = vec![keys.lock.clone(), keys.shadow.clone(), keys.fence.clone()];
        Invocation { script: Script::Release, keys, args: bytes([value]) }
    }

    /// `None` ends a pause.
    pub(super) fn pause(keys: &Keys, pause: Option<&Pause>) -> Self {
        let text = pause.map_or(String::new(), |p| format!("{} {}", p.since.as_micros(), p.host));
        let keys = vec![keys.lock.clone(), keys.fence.clone()];
        Invocation { script: Script::Pause, keys, args: bytes([&text]) }
    }

    /// Takes the lock from `value`; from a lease that its key gives no end it is kept for `lease`.
    pub(super) fn evict(keys: &Keys, value: &[u8], lease: Duration) -> Self {
        let keys = vec![keys.lock.clone(), keys.shadow.clone(), keys.fence.clone()];
        let args = vec![value.to_owned(), lease.as_millis().to_string().into_bytes()];
        Invocation { script: Script::Evict, keys, args }
    }

    pub(super) fn adopt(run_id: &str, nodes: u8, quarantine: Duration) -> Self {
        Invocation {
            script: Script::Adopt,
            keys: vec![MARKER.to_owned()],
            args: bytes([run_id, &nodes.to_string(), &quarantine.as_micros().to_string()]),
        }
    }

    /// By digest where one is known. redis-rs has this as `Script`, which takes three trips after a NOSCRIPT.
    pub(super) fn command(&self, digests: Option<&Digests>) -> Cmd {
        let mut command = match digests.and_then(|digests| digests.get(self.script)) {
            Some(sha) => redis::cmd("EVALSHA").arg(sha).to_owned(),
            None => redis::cmd("EVAL").arg(self.script.source()).to_owned(),
        };
        command.arg(self.keys.len()).arg(&self.keys).arg(&self.args);
        command
    }
}

fn bytes<T: AsRef<str>>(args: impl IntoIterator<Item = T>) -> Vec<Vec<u8>> {
    args.into_iter().map(|arg| arg.as_ref().as_bytes().to_vec()).collect()
}

/// What the connection knows and the request does not.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) keys: &'a Keys,
    pub(super) ttl: Duration,
    pub(super) run_id: &'a str,
    pub(super) nodes: u8,
    pub(super) quarantine: Duration,
    pub(super) identity: &'a Identity,
}

/// Commands for one request, to be written together.
///
/// Keys are tracked by `CLIENT CACHING YES` directly in front of the read that shall be tracked (OPTIN), because before Redis 7.2 every
/// other read in a script tracks all keys of the script, and a standby that tracked the lock key would be woken by each extension.
#[derive(Debug)]
pub(super) struct Batch {
    request: Kind,
    main: Option<Invocation>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Look,
    Acquire,
    Raise,
    Extend,
    Repair,
    Release,
    Bid,
}

impl Batch {
    /// `deadline_us` turns a local instant into the node's time.
    pub(super) fn of(request: &Request, context: &Context<'_>, deadline_us: impl Fn(Instant) -> u64) -> Self {
        let keys = context.keys;
        let ttl = context.ttl.as_millis().to_string();
        let span = context.quarantine.as_micros().to_string();
        let run = [context.run_id.to_owned(), context.nodes.to_string(), span.clone()];
        let me = [context.identity.host.clone(), context.identity.pid.to_string()];
        let three = || vec![keys.lock.clone(), keys.shadow.clone(), keys.fence.clone()];
        let four = || [three(), vec![MARKER.to_owned()]].concat();
        let extend = |value: &Value, ttl: String, token: u64, deadline: u64| {
            let args = [
                vec![value.to_string(), ttl, token.to_string(), deadline.to_string(), span.clone()],
                me.to_vec(),
            ];
            let keys = [four(), vec![keys.bid.clone()]].concat();
            Invocation { script: Script::Extend, keys, args: bytes(args.concat()) }
        };
        let (request, main) = match request {
            Request::Look => (Kind::Look, None),
            Request::Acquire { value, proposal, deadline } => {
                let head =
                    vec![value.to_string(), ttl, proposal.to_string(), deadline_us(*deadline).to_string()];
                let args = [head, run.to_vec(), me.to_vec()].concat();
                (
                    Kind::Acquire,
                    Some(Invocation { script: Script::Acquire, keys: four(), args: bytes(&args) }),
                )
            }
            Request::Raise { value, token, deadline } => {
                let head = vec![value.to_string(), token.to_string(), deadline_us(*deadline).to_string()];
                let keys = vec![keys.fence.clone(), MARKER.to_owned()];
                (
                    Kind::Raise,
                    Some(Invocation {
                        script: Script::Raise,
                        keys,
                        args: bytes([head, run.to_vec()].concat()),
                    }),
                )
            }
            Request::Extend { value, token, deadline } => {
                (Kind::Extend, Some(extend(value, ttl, token.0, deadline_us(*deadline))))
            }
            Request::Check { value } => (Kind::Extend, Some(extend(value, "0".to_owned(), 0, 0))),
            Request::Repair { value, token, deadline } => {
                let head =
                    vec![value.to_string(), ttl, token.to_string(), deadline_us(*deadline).to_string()];
                let args = [head, me.to_vec()].concat();
                (Kind::Repair, Some(Invocation { script: Script::Repair, keys: three(), args: bytes(&args) }))
            }
            Request::Release { value } => {
                (Kind::Release, Some(Invocation::release(keys, &value.to_string())))
            }
            Request::Bid { priority } => {
                let lasts = (context.ttl / 4 * 3).as_millis().to_string();
                let args = vec![context.identity.host.clone(), priority.0.to_string(), lasts];
                (
                    Kind::Bid,
                    Some(Invocation {
                        script: Script::Bid,
                        keys: vec![keys.bid.clone()],
                        args: bytes(&args),
                    }),
                )
            }
        };
        Batch { request, main }
    }

    /// What it does, for people.
    pub(super) fn name(&self) -> String {
        format!("{:?}", self.request).to_lowercase()
    }

    pub(super) fn is_look(&self) -> bool {
        self.request == Kind::Look
    }

    /// The commands, and which of the replies decide.
    pub(super) fn pipeline(
        &self,
        keys: &Keys,
        digests: Option<&Digests>,
        tracking: bool,
    ) -> (Pipeline, usize) {
        let mut pipe = Pipeline::new();
        let track = |pipe: &mut Pipeline| {
            if tracking {
                pipe.cmd("CLIENT").arg("CACHING").arg("YES");
            }
        };
        let Some(main) = &self.main else {
            // The fence first: a release after this read is pushed, one before it is seen by the reads that follow.
            track(&mut pipe);
            let at = pipe.len();
            pipe.cmd("HMGET").arg(&keys.fence).arg(&["t", "l", "host", "pid", "p"]);
            pipe.cmd("GET").arg(&keys.lock).cmd("PTTL").arg(&keys.lock);
            pipe.cmd("GET").arg(&keys.shadow).cmd("PTTL").arg(&keys.shadow);
            pipe.cmd("HMGET").arg(MARKER).arg(&["run_id", "until", "n"]).cmd("TIME");
            return (pipe, at);
        };
        match self.request {
            // Their last access of the lock key is a read.
            Kind::Extend | Kind::Repair => track(&mut pipe),
            // Refused, it must not track; granted, `watch` follows.
            Kind::Acquire | Kind::Raise | Kind::Look | Kind::Release | Kind::Bid => {}
        }
        let at = pipe.len();
        pipe.add_command(main.command(digests));
        if self.request == Kind::Release && tracking {
            // The write above ended our tracking of the fence, and from now on we are a standby.
            track(&mut pipe);
            pipe.cmd("HGET").arg(&keys.fence).arg("t");
        }
        (pipe, at)
    }

    /// What the replies from the deciding one on mean. Anything unexpected is [`Answer::Silent`].
    pub(super) fn decode(&self, replies: &[redis::Value], context: &Context<'_>) -> Reply {
        let decoded = match self.request {
            Kind::Look => super::reply::look(replies, context),
            Kind::Acquire => super::reply::acquire(replies),
            Kind::Raise => super::reply::raise(replies),
            Kind::Extend => super::reply::extend(replies),
            Kind::Repair => super::reply::repair(replies),
            Kind::Release => super::reply::release(replies),
            Kind::Bid => super::reply::bid(replies),
        };
        decoded.unwrap_or(Reply::silent())
    }
}
