//! The real node: production's commands for each request, what production makes of the replies, and the keys they leave.

#[path = "../../../src/lock/redis/reply.rs"]
#[allow(dead_code, reason = "the daemon uses more of it")]
mod reply;
#[path = "../../../src/lock/redis/scripts.rs"]
#[allow(dead_code, reason = "the daemon uses more of it")]
mod scripts;

use super::super::host::{BID, FENCE, KEY, SHADOW};
use super::super::server::Server;
use super::breaks::Break;
use super::kept::{Kept, Left, Mark};
use super::simulated::{MarkerSeen, Reply, Terms, name};
use keeperd::core::request::{Pause, Request};
use keeperd::core::time::WallTime;
// As reply.rs names it.
use keeperd::lock::Identity;
use keeperd::lock::redis as operate;
use redis::{Arg, Cmd, ConnectionLike, Pipeline, Value};
use scripts::{Batch, Context, Invocation, Keys};
use std::time::Duration;

/// Of how many nodes this is one.
const NODES: u8 = 3;

pub struct Wire {
    connection: redis::Connection,
    keys: Keys,
    broken: Option<&'static Break>,
    /// The rule that shall not hold was met in a script, and taken out.
    pub is_broken: bool,
}

impl Wire {
    pub fn to(server: &Server, broken: Option<&'static Break>) -> Wire {
        let client = redis::Client::open(server.url()).expect("our own URL");
        let connection = client.get_connection().expect("a running server");
        Wire { connection, keys: Keys::of(KEY), broken, is_broken: false }
    }

    pub fn ask(&mut self, request: &Request, deadline_us: u64, terms: &Terms) -> Result<Reply, String> {
        let identity = Identity { host: name(terms.host), pid: u32::from(terms.host) };
        let (keys, run) = (self.keys.clone(), run_id(terms.run));
        let context = Context {
            keys: &keys,
            ttl: Duration::from_millis(terms.ttl_ms),
            run_id: &run,
            nodes: NODES,
            quarantine: Duration::from_micros(terms.quarantine_us),
            identity: &identity,
        };
        let batch = Batch::of(request, &context, |_| deadline_us);
        let (pipeline, at) = batch.pipeline(&keys, None, false);
        let replies = self.send(&pipeline);
        let said = batch.decode(&replies[at..], &context);
        let us = said.node_us.ok_or_else(|| format!("{request:?} was answered with {replies:?}"))?;
        let marker = match said.marker {
            reply::Marker::Unsaid => MarkerSeen::Unsaid,
            reply::Marker::Lost => MarkerSeen::Lost,
            reply::Marker::Until(until) => MarkerSeen::Until(until),
        };
        Ok(Reply { us, answer: said.answer, marker, bid: said.bid, pause: said.pause })
    }

    /// The node's time, and from when on it votes.
    pub fn adopt(&mut self, terms: &Terms) -> Result<(u64, u64), String> {
        let quarantine = Duration::from_micros(terms.quarantine_us);
        let mut pipeline = Pipeline::new();
        pipeline.add_command(Invocation::adopt(&run_id(terms.run), NODES, quarantine).command(None));
        let replies = self.send(&pipeline);
        match replies.first().and_then(reply::adopt) {
            Some(reply::Adopted::Until { node_us, until_us }) => Ok((node_us, until_us)),
            Some(reply::Adopted::Denied { .. }) | None => Err(format!("adopt was answered with {replies:?}")),
        }
    }

    /// An operator's.
    pub fn pause(&mut self, on: bool) {
        let pause = Pause { host: name(0), since: WallTime::default() };
        self.deed(&Invocation::pause(&self.keys, on.then_some(&pause)));
    }

    pub fn evict(&mut self, value: &str) {
        self.deed(&Invocation::evict(&self.keys, value.as_bytes(), Duration::from_secs(20)));
    }

    fn deed(&mut self, invocation: &Invocation) {
        let mut pipeline = Pipeline::new();
        pipeline.add_command(invocation.command(None));
        self.send(&pipeline);
    }

    /// Somebody's hand.
    pub fn command(&mut self, words: &[&str]) {
        redis::cmd(words[0]).arg(&words[1..]).exec(&mut self.connection).expect("the node obeys");
    }

    /// Their time is over, and the node knows it.
    pub fn expire(&mut self, keys: &[&str]) {
        keys.iter().for_each(|key| self.command(&["PEXPIRE", key, "1"]));
        std::thread::sleep(Duration::from_millis(3));
    }

    fn send(&mut self, pipeline: &Pipeline) -> Vec<Value> {
        let broken = self.broken.map(|broken| self.with(broken, pipeline));
        let pipeline = broken.as_ref().unwrap_or(pipeline);
        let sent = self.connection.req_packed_commands(
            &pipeline.get_packed_pipeline(),
            0,
            pipeline.cmd_iter().count(),
        );
        sent.expect("the node answers")
    }

    /// The same commands, with another text in the scripts.
    fn with(&mut self, broken: &Break, pipeline: &Pipeline) -> Pipeline {
        let mut changed = Pipeline::new();
        for command in pipeline.cmd_iter() {
            let mut new = Cmd::new();
            for argument in command.args_iter() {
                let Arg::Simple(bytes) = argument else { continue };
                let text = std::str::from_utf8(bytes).expect("all of it is text");
                self.is_broken |= text.contains(broken.text);
                new.arg(text.replace(broken.text, broken.instead));
            }
            changed.add_command(new);
        }
        changed
    }

    pub fn kept(&mut self) -> Kept {
        type Text = Option<String>;
        type Read = (Text, i64, Text, i64, Vec<Text>, Vec<Text>, Text, i64);
        let mut pipeline = Pipeline::new();
        pipeline.cmd("GET").arg(KEY).cmd("PTTL").arg(KEY).cmd("GET").arg(SHADOW).cmd("PTTL").arg(SHADOW);
        pipeline.cmd("HMGET").arg(FENCE).arg(&["t", "o", "x", "l", "host", "pid", "p"]);
        pipeline.cmd("HMGET").arg(scripts::MARKER).arg(&["run_id", "until", "q", "n"]);
        pipeline.cmd("GET").arg(BID).cmd("PTTL").arg(BID);
        let (lock, lock_left, shadow, shadow_left, fence, marker, bid, bid_left): Read =
            pipeline.query(&mut self.connection).expect("the node answers");
        let key = |value: Text, left: i64| value.map(|value| (value, Left(left)));
        let [token, owner, released, leased, host, pid, pause] = fence.try_into().expect("seven fields");
        let [run, until, span, nodes] = marker.try_into().expect("four fields");
        Kept {
            lock: key(lock, lock_left),
            shadow: key(shadow, shadow_left),
            token: token.unwrap_or_else(|| "0".into()),
            owner,
            released,
            leased,
            holder: host.zip(pid),
            is_paused: pause.is_some_and(|pause| !pause.is_empty()),
            marker: run.map(|run| Mark { run, until, span, nodes }),
            bid: key(bid, bid_left),
        }
    }
}

pub fn run_id(run: u32) -> String {
    format!("run{run}")
}

pub fn mark(run: u32, until: u64, span: u64) -> Mark {
    let [until, span] = [until, span].map(|number| Some(number.to_string()));
    Mark { run: run_id(run), until, span, nodes: Some(NODES.to_string()) }
}
