//! What each request costs a node, when every one comes from another host: time of its main thread, and commands as it counts them. The
//! simulation of many hosts counts with these (`tests/simulation/scale/costs.rs`).

#[path = "../../src/lock/redis/reply.rs"]
#[allow(dead_code, reason = "the daemon uses more of it")]
mod reply;
#[path = "../../src/lock/redis/scripts.rs"]
#[allow(dead_code, reason = "the daemon uses more of it")]
mod scripts;

use crate::cluster::Node;
use crate::many::{counter, thread_ns};
use crate::step::{Step, check, failure};
use crate::table::{Row, Table};
use keeperd::core::lease::{FencingToken, Value};
use keeperd::core::request::Request;
use keeperd::core::time::Instant;
use keeperd::lock::Identity;
// As reply.rs names it.
use keeperd::lock::redis as operate;
use redis::{Cmd, Connection, ConnectionLike, Pipeline};
use scripts::{Batch, Context, Digests, Invocation, Keys, MARKER, Script};
use std::time::Duration;

const HOSTS: usize = 300;
const TURNS: usize = 20;
const RUN: &str = "0123456789012345678901234567890123456789";
const TTL: Duration = Duration::from_secs(30);

struct Host {
    connection: Connection,
    identity: Identity,
}

fn connect(node: &Node) -> Step<Connection> {
    let url = format!("redis://127.0.0.1:{}/?protocol=resp3", node.port);
    let client = redis::Client::open(url).map_err(|error| failure(error.to_string()))?;
    client.get_connection().map_err(|error| failure(error.to_string()))
}

fn send(connection: &mut Connection, pipeline: &Pipeline) -> Step<Vec<redis::Value>> {
    let commands = pipeline.cmd_iter().count();
    let replies = connection.req_packed_commands(&pipeline.get_packed_pipeline(), 0, commands);
    let replies = replies.map_err(|error| failure(error.to_string()))?;
    let error = replies.iter().find(|reply| matches!(reply, redis::Value::ServerError(_)));
    check(error.is_none(), format!("{error:?}"))?;
    Ok(replies)
}

fn of(commands: &[&[&str]]) -> Pipeline {
    let mut pipeline = Pipeline::new();
    for words in commands {
        let mut command = Cmd::new();
        command.arg(words);
        pipeline.add_command(command);
    }
    pipeline
}

/// As `link.rs` opens a connection, in as many trips.
fn open(node: &Node) -> Step<(Connection, Digests)> {
    let mut connection = connect(node)?;
    let rights = include_str!("../../src/lock/redis/rights.lua");
    let identify: [&[&str]; 3] =
        [&["INFO", "server"], &["INFO", "replication"], &["EVAL", rights, "1", MARKER]];
    send(&mut connection, &of(&identify))?;
    let mut adopt = Pipeline::new();
    adopt.add_command(Invocation::adopt(RUN, 3, Duration::ZERO).command(None));
    send(&mut connection, &adopt)?;
    let load: Vec<[&str; 3]> =
        Script::DAEMON.iter().map(|script| ["SCRIPT", "LOAD", script.source()]).collect();
    let load: Vec<&[&str]> = load.iter().map(<[&str; 3]>::as_slice).collect();
    let digests = Digests::of(&send(&mut connection, &of(&load))?);
    let track: [&[&str]; 3] =
        [&["CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP"], &["CLIENT", "CACHING", "YES"], &["TIME"]];
    send(&mut connection, &of(&track))?;
    Ok((connection, digests))
}

/// Of the node, while `deed` is done `times` times.
fn row(node: &Node, table: &mut Table, what: &str, times: usize, deed: impl FnOnce() -> Step) -> Step {
    let pid = node.pid().ok_or_else(|| failure("the node does not run"))?;
    let (ns, commands) = (thread_ns(pid), counter(node, "total_commands_processed")?);
    deed()?;
    let (ns, commands) = (thread_ns(pid) - ns, counter(node, "total_commands_processed")? - commands);
    let each = ns as f64 / times as f64 / 1e3;
    table.row(Row {
        measure: format!("a node's core for {what}"),
        goal: String::new(),
        measured: format!("{each:.1} µs, {:.1} commands", commands as f64 / times as f64),
        samples: times.to_string(),
        met: None,
    });
    Ok(())
}

pub fn measure(nodes: &[Node], table: &mut Table) -> Step {
    let node = &nodes[0];
    let mut hosts = Vec::new();
    let mut digests = Digests::default();
    row(node, table, "a connection, until it serves", HOSTS, || {
        for host in 0..HOSTS {
            let (connection, loaded) = open(node)?;
            digests = loaded;
            hosts.push(Host { connection, identity: Identity { host: format!("host-{host}"), pid: 1 } });
        }
        Ok(())
    })?;
    let times = HOSTS * TURNS;
    let value = |host: usize, turn: usize| Value((host * TURNS + turn + 1) as u128);
    let mut ask =
        |what: &str, request: &dyn Fn(usize, usize) -> Request, keys: &dyn Fn(usize, usize) -> Keys| {
            row(node, table, what, times, || {
                for turn in 0..TURNS {
                    for (at, host) in hosts.iter_mut().enumerate() {
                        let keys = keys(at, turn);
                        let context = Context {
                            keys: &keys,
                            ttl: TTL,
                            run_id: RUN,
                            nodes: 3,
                            quarantine: Duration::ZERO,
                            identity: &host.identity,
                        };
                        let batch = Batch::of(&request(at, turn), &context, |_| u64::MAX >> 12);
                        send(&mut host.connection, &batch.pipeline(&keys, Some(&digests), true).0)?;
                    }
                }
                Ok(())
            })
        };
    let fresh = |host: usize, turn: usize| Keys::of(&format!("redlock:fresh-{host}-{turn}"));
    let shared = |_: usize, turn: usize| Keys::of(&format!("redlock:fresh-0-{turn}"));
    let deadline = Instant::NEVER;
    let token = FencingToken(1);
    ask(
        "an acquire that is granted",
        &|host, turn| Request::Acquire { value: value(host, turn), proposal: token, deadline },
        &fresh,
    )?;
    ask(
        "an acquire that is refused",
        &|host, turn| Request::Acquire { value: value(HOSTS + host, turn), proposal: token, deadline },
        &fresh,
    )?;
    ask("an extension", &|host, turn| Request::Extend { value: value(host, turn), token, deadline }, &fresh)?;
    ask("a check", &|host, turn| Request::Check { value: value(host, turn) }, &fresh)?;
    ask("a repair", &|host, turn| Request::Repair { value: value(host, turn), token, deadline }, &fresh)?;
    ask("a raise", &|host, turn| Request::Raise { value: value(host, turn), token, deadline }, &fresh)?;
    ask("a release", &|host, turn| Request::Release { value: value(host, turn) }, &fresh)?;
    ask("a whole look", &|_, _| Request::Look, &shared)?;
    row(node, table, "a look at the same holder", times, || {
        for turn in 0..TURNS {
            for host in &mut hosts {
                let lock = format!("redlock:fresh-0-{turn}");
                send(&mut host.connection, &of(&[&["GET", &lock], &["PTTL", &lock]]))?;
            }
        }
        Ok(())
    })?;
    // All of them track the fences now.
    let mut other = connect(node)?;
    row(node, table, "telling one host of a change", times, || {
        for turn in 0..TURNS {
            let fence = Keys::of(&format!("redlock:fresh-0-{turn}")).fence;
            send(&mut other, &of(&[&["HSET", &fence, "x", "y"]]))?;
        }
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    })
}
