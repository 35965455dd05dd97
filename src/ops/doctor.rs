//! `keeperd doctor`: is every Redis node fit to be one of the quorum, and is there one.

use super::locks::visit_all;
use crate::config::{Config, LocalConfig, LockConfig, RedisConfig};
use crate::lock::redis::survey::{Facts, Info, Left, Locks, Quarantine};
use crate::observe::plain::plain;
use serde::Serialize;
use std::io::{self, Write};
use std::time::Duration;

/// Exit codes beside 0: something is to be done; no quorum.
const EXIT_WARNINGS: i32 = 1;
const EXIT_NO_QUORUM: i32 = 2;
/// Clocks further apart than this make tokens and quarantines differ from what people expect.
const CLOCK_APART_US: i64 = 100_000;
/// The oldest that is tested.
const VERSION_MIN: (u32, u32) = (6, 2);

#[derive(Debug, Serialize)]
struct Document {
    verdict: &'static str,
    /// How many can vote, now or when their quarantine is over.
    healthy: usize,
    /// How many of them do so now.
    voting: usize,
    quorum: usize,
    nodes: Vec<Node>,
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Node {
    address: String,
    /// It can vote, now or when its quarantine is over.
    usable: bool,
    error: Option<String>,
    round_trip_us: Option<u64>,
    version: Option<String>,
    role: Option<String>,
    uptime_s: Option<u64>,
    eviction: Option<String>,
    append_only: Option<bool>,
    clock_ahead_ms: Option<i64>,
    quarantine_remaining_ms: Option<u64>,
    denied: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Finding {
    /// Absent: it is about all of them.
    node: Option<String>,
    what: String,
    /// What to do.
    advice: String,
}

/// Prints what was found; the exit code.
pub fn run(config: &Config, json: bool, out: &mut dyn Write) -> i32 {
    let document = match &config.lock {
        LockConfig::Redis(redis) => match examine(redis) {
            Ok(document) => document,
            Err(error) => {
                eprintln!("keeperd: {error}");
                return EXIT_NO_QUORUM;
            }
        },
        LockConfig::Local(local) => examine_directory(local),
    };
    let written = if json {
        serde_json::to_writer_pretty(&mut *out, &document)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        print(&document, out)
    };
    match written {
        // Whoever read us has read enough; the exit code says it all the same.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => EXIT_WARNINGS,
        _ if document.healthy < document.quorum => EXIT_NO_QUORUM,
        _ if document.findings.is_empty() => 0,
        _ => EXIT_WARNINGS,
    }
}

fn examine(redis: &RedisConfig) -> io::Result<Document> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let visited = runtime.block_on(visit_all(redis, |visit, prefix| async move {
        let facts = visit.facts(&prefix).await?;
        let locks = visit.locks(&prefix).await.unwrap_or_default();
        Ok((facts, locks))
    }));
    runtime.shutdown_background();
    let quorum = redis.nodes.len() / 2 + 1;
    let mut findings = Vec::new();
    let mut nodes = Vec::new();
    for (address, facts) in &visited {
        nodes.push(match facts {
            Ok((facts, locks)) => judge(address, facts, locks, redis, &mut findings),
            Err(error) => unreachable_node(address, error, &mut findings),
        });
    }
    let answers: Vec<(&String, &Facts)> =
        visited.iter().filter_map(|(address, facts)| Some((address, &facts.as_ref().ok()?.0))).collect();
    judge_together(&answers, &mut findings);
    if redis.restart_quarantine.is_zero() {
        findings.push(Finding {
            node: None,
            what: "restart_quarantine is off: nodes that lose their data can elect a second leader".into(),
            advice: "leave the key out, except for trying things".into(),
        });
    }
    if redis.nodes.len() == 1 {
        findings.push(Finding {
            node: None,
            what: "there is one node: when it is down, nothing runs".into(),
            advice: "three nodes on three hosts survive the loss of one".into(),
        });
    }
    // Two addresses of one server are one vote.
    let mut runs: Vec<&str> = Vec::new();
    for ((_, facts), node) in visited.iter().zip(&mut nodes) {
        if let Ok((Facts { info: Some(info), .. }, _)) = facts {
            node.usable &= !runs.contains(&info.run_id.as_str());
            runs.push(&info.run_id);
        }
    }
    Ok(Document::of(nodes, quorum, findings))
}

impl Document {
    fn of(nodes: Vec<Node>, quorum: usize, findings: Vec<Finding>) -> Document {
        let healthy = nodes.iter().filter(|node| node.usable).count();
        let voting =
            nodes.iter().filter(|node| node.usable && node.quarantine_remaining_ms.is_none()).count();
        let verdict = if healthy < quorum {
            "no quorum: nothing can be elected, and what runs will stop"
        } else if voting < quorum {
            "no quorum yet: nothing can be elected before enough quarantines are over"
        } else if findings.is_empty() {
            "healthy"
        } else {
            "a quorum, and something to do"
        };
        Document { verdict, healthy, voting, quorum, nodes, findings }
    }
}

fn unreachable_node(address: &str, error: &str, findings: &mut Vec<Finding>) -> Node {
    let lower = error.to_lowercase();
    let advice = if lower.contains("noauth") {
        "it wants a password: name a file with it as password_file in [lock], or put it in the address"
    } else if ["wrongpass", "authentication"].iter().any(|w| lower.contains(w)) {
        "user name or password is wrong: set both as the server's ACL has them"
    } else if lower.contains("noperm") {
        "this user may not even ask: give it the rights in config/README.md"
    } else if lower.contains("refused") {
        "nothing listens there: start Redis, or correct address and port"
    } else if lower.contains("timed out") || lower.contains("timeout") {
        "host, firewall or a frozen Redis: try redis-cli -h … ping from here"
    } else {
        "try redis-cli with the same address from this host"
    };
    findings.push(Finding {
        node: Some(address.to_owned()),
        what: format!("cannot be used: {error}"),
        advice: advice.into(),
    });
    Node {
        address: address.to_owned(),
        usable: false,
        error: Some(error.to_owned()),
        round_trip_us: None,
        version: None,
        role: None,
        uptime_s: None,
        eviction: None,
        append_only: None,
        clock_ahead_ms: None,
        quarantine_remaining_ms: None,
        denied: Vec::new(),
    }
}

fn judge(
    address: &str,
    facts: &Facts,
    locks: &Locks,
    redis: &RedisConfig,
    findings: &mut Vec<Finding>,
) -> Node {
    let mut find = |what: String, advice: &str| {
        findings.push(Finding { node: Some(address.to_owned()), what, advice: advice.to_owned() });
    };
    for denied in &facts.denied {
        let allow = format!("ACL SETUSER … {}", allowing(&denied.right));
        match denied.costs {
            None => find(format!("denies {}: {}", denied.right, denied.words), &allow),
            Some(costs) => find(format!("denies {}: {costs}", denied.right), &allow),
        }
    }
    if let Some(info) = &facts.info {
        judge_server(info, facts, redis, &mut find);
    }
    if facts.ahead_us.abs() > CLOCK_APART_US {
        find(format!("its clock is {} this host's", apart(facts.ahead_us)), "let NTP set both");
    }
    if let Some(nodes) = facts.nodes.filter(|nodes| *nodes != redis.nodes.len() as u64) {
        find(
            format!("was last used as one of {nodes} nodes, not {}", redis.nodes.len()),
            "stop every keeperd, DEL keeperd:node there, start with one list of nodes everywhere",
        );
    }
    let quarantine = match facts.quarantine {
        _ if redis.restart_quarantine.is_zero() => None,
        Quarantine::Over => None,
        Quarantine::For(left) => Some(left),
        Quarantine::NotBegun => Some(redis.restart_quarantine),
    };
    match (facts.quarantine, quarantine) {
        (_, None) => {}
        (Quarantine::NotBegun, Some(span)) => find(
            "is new, flushed or restarted, and no keeperd has been there since".into(),
            &format!("it votes {} after one comes: wait", say(span)),
        ),
        (_, Some(left)) => find(
            format!("was restarted or flushed: it votes again in {}", say(left)),
            "wait: it is over by itself",
        ),
    }
    let ever: Vec<&str> =
        locks.seen.iter().filter(|(_, l)| l.left == Left::Ever).map(|(name, _)| &**name).collect();
    if let Some(first) = ever.first() {
        let what = match ever.len() {
            1 => format!("the lock {first} never expires"),
            more => format!("the lock {first} and {} more never expire", more - 1),
        };
        find(format!("{what}: it votes for nobody else"), "if no process holds it: keeperd unlock NAME");
    }
    let info = facts.info.as_ref();
    Node {
        address: address.to_owned(),
        usable: info.is_some_and(|info| info.role == "master")
            && facts.denied.iter().all(|denied| denied.costs.is_some())
            && facts.nodes.is_none_or(|nodes| nodes == redis.nodes.len() as u64),
        error: None,
        round_trip_us: Some(facts.round_trip.as_micros() as u64),
        version: info.map(|info| info.version.clone()),
        role: info.map(|info| info.role.clone()),
        uptime_s: info.map(|info| info.uptime.as_secs()),
        eviction: info.map(|info| info.eviction.clone()),
        append_only: info.map(|info| info.append_only),
        clock_ahead_ms: Some(facts.ahead_us / 1000),
        quarantine_remaining_ms: quarantine.map(|left| left.as_millis() as u64),
        denied: facts.denied.iter().map(|denied| denied.right.clone()).collect(),
    }
}

/// As a rule of an ACL.
fn allowing(right: &str) -> String {
    if right.starts_with('~') { right.to_owned() } else { format!("+{right}") }
}

fn judge_server(info: &Info, facts: &Facts, redis: &RedisConfig, find: &mut impl FnMut(String, &str)) {
    if info.role != "master" {
        find(
            format!("is a {}, not a master: what it is told may be lost", info.role),
            "name three independent masters; keeperd wants no replication",
        );
    }
    if version(&info.version).is_some_and(|version| version < VERSION_MIN) {
        find(format!("is Redis {}", info.version), "6.2 is the oldest that is tested: upgrade it");
    }
    if info.eviction != "noeviction" {
        find(
            format!("evicts keys when its memory is full ({})", info.eviction),
            "maxmemory-policy noeviction, or locks vanish under load",
        );
    }
    match (info.append_only, facts.snapshots, facts.fsync.as_deref()) {
        (false, Some(true), _) => find(
            "keeps snapshots only: a crash loses the last minutes".into(),
            "appendonly yes and appendfsync always",
        ),
        (false, ..) => find(
            "has no append-only file: a restart loses every lock and token".into(),
            "appendonly yes and appendfsync always",
        ),
        (true, _, Some(fsync)) if fsync != "always" => find(
            format!("has appendfsync {fsync}: a crash may lose the last second"),
            if redis.restart_quarantine.is_zero() {
                "appendfsync always: no restart quarantine covers it"
            } else {
                "appendfsync always; until then the restart quarantine covers it"
            },
        ),
        (true, ..) => {}
    }
}

fn judge_together(answers: &[(&String, &Facts)], findings: &mut Vec<Finding>) {
    for (place, (address, facts)) in answers.iter().enumerate() {
        let run = |facts: &Facts| facts.info.as_ref().map(|info| info.run_id.clone());
        let same = |other: &Facts| run(other).is_some() && run(other) == run(facts);
        if let Some((other, _)) = answers[..place].iter().find(|(_, other)| same(other)) {
            findings.push(Finding {
                node: Some((*address).clone()),
                what: format!("is the same server as {other}: together they have one vote"),
                advice: "name three different servers".into(),
            });
        }
    }
    let by_clock = |facts: &&(&String, &Facts)| facts.1.ahead_us;
    let (Some(ahead), Some(behind)) =
        (answers.iter().max_by_key(by_clock), answers.iter().min_by_key(by_clock))
    else {
        return;
    };
    let apart_us = ahead.1.ahead_us - behind.1.ahead_us;
    if apart_us > CLOCK_APART_US {
        findings.push(Finding {
            node: None,
            what: format!("the clock of {} is {} {}'s", ahead.0, apart(apart_us), behind.0),
            advice: "let NTP set all of them".into(),
        });
    }
}

fn examine_directory(local: &LocalConfig) -> Document {
    let shown = local.directory.display().to_string();
    let probe = local.directory.join(".keeperd-doctor");
    let usable = std::fs::create_dir_all(&local.directory).and_then(|()| std::fs::write(&probe, b""));
    // Left behind, it does no harm.
    let _ = std::fs::remove_file(&probe);
    let mut findings = Vec::new();
    let node = match &usable {
        Ok(()) => Node { usable: true, error: None, ..unreachable_node(&shown, "", &mut Vec::new()) },
        Err(error) => {
            findings.push(Finding {
                node: Some(shown.clone()),
                what: format!("locks cannot be written there: {error}"),
                advice: "name another with directory = \"…\" in [lock], or give the daemon's user the right"
                    .into(),
            });
            unreachable_node(&shown, &error.to_string(), &mut Vec::new())
        }
    };
    Document::of(vec![node], 1, findings)
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

fn apart(us: i64) -> String {
    let word = if us < 0 { "behind" } else { "ahead of" };
    format!("{} ms {word}", us.abs() / 1000)
}

fn say(span: Duration) -> String {
    format!("{:.1} s", span.as_secs_f64())
}

fn print(document: &Document, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "{:<34} {:<9} {:<7} {:>10} {:>8} {:>7}",
        "NODE", "STATE", "VERSION", "ROUND TRIP", "CLOCK", "UPTIME"
    )?;
    for node in &document.nodes {
        let state = match node {
            Node { error: Some(_), .. } => "down",
            Node { usable: false, .. } => "unfit",
            Node { quarantine_remaining_ms: Some(_), .. } => "waits",
            Node { .. } => "votes",
        };
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let name = plain(&node.address);
        if name.chars().count() > 34 {
            write!(out, "{name}\n{:<34}", "")?;
        } else {
            write!(out, "{name:<34}")?;
        }
        writeln!(
            out,
            " {:<9} {:<7} {:>10} {:>8} {:>7}",
            state,
            plain(node.version.as_deref().unwrap_or("-")),
            or_dash(node.round_trip_us.map(|us| format!("{us} µs"))),
            or_dash(node.clock_ahead_ms.map(|ms| format!("{ms:+} ms"))),
            or_dash(node.uptime_s.map(|s| format!("{} h", s / 3600))),
        )?;
    }
    if !document.findings.is_empty() {
        writeln!(out)?;
    }
    for Finding { node, what, advice } in &document.findings {
        let about = node.as_deref().map_or(String::new(), |node| format!("{node}: "));
        super::check::wrapped(out, &plain(&format!("! {about}{what}")))?;
        super::check::wrapped(out, &plain(&format!("→ {advice}")))?;
    }
    let Document { verdict, healthy, voting, quorum, nodes, .. } = document;
    let now = if voting < healthy { format!(", {voting} of them now") } else { String::new() };
    writeln!(out, "\n{healthy} of {} nodes can vote{now}, {quorum} are needed:\n{verdict}", nodes.len())
}
