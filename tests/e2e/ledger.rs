//! What the nodes themselves did with the locks, as `MONITOR` on each of them shows it: who was granted what until when,
//! and when it was released. Knows nothing of what daemons believe.

use crate::checker::{Fault, Judge, Life, Violation};
use crate::clock::{boot_ns, ms, nanos};
use crate::step::{Step, check};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a script of keeperd's did on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// The lock key was written: granted, or repaired.
    Granted {
        value: String,
        px_ms: u64,
    },
    /// The lock key lives on for this long.
    Extended {
        px_ms: u64,
    },
    Token {
        value: String,
        token: u64,
    },
    Released {
        value: String,
    },
}

/// `+1795499429.603171 [0 lua] "SET" "redlock:oracle" "value" "PX" "2000"`: the keeper and the deed. Names differ in case
/// between versions.
pub fn parse_deed(line: &str) -> Option<(String, Deed)> {
    let (_, rest) = line.split_once(" lua] ")?;
    let words: Vec<&str> = rest.trim_end().trim_matches('"').split("\" \"").collect();
    let verb = words.first()?.to_ascii_lowercase();
    if let Some(name) = words.get(1)?.strip_prefix("redlock:") {
        let deed = match (verb.as_str(), &words[2..]) {
            ("set", [value, px, span, ..]) if px.eq_ignore_ascii_case("px") => {
                Deed::Granted { value: (*value).into(), px_ms: span.parse().ok()? }
            }
            ("pexpire", [span, ..]) => Deed::Extended { px_ms: span.parse().ok()? },
            _ => return None,
        };
        return Some((name.into(), deed));
    }
    let name = words.get(1)?.strip_prefix("keeperd:fence:{redlock:")?.strip_suffix('}')?;
    let deed = match (verb.as_str(), &words[2..]) {
        ("hset", ["t", token, "o", value, ..]) => {
            Deed::Token { value: (*value).into(), token: token.parse().ok()? }
        }
        ("hset", ["x", value, ..]) => Deed::Released { value: (*value).into() },
        _ => return None,
    };
    Some((name.into(), deed))
}

/// One value on all nodes: one attempt or one term.
#[derive(Debug, Default)]
struct Lease {
    until: BTreeMap<char, u64>,
    /// When each grant and extension was seen, and for how long it was.
    deeds: Vec<(u64, u64)>,
    released: Option<u64>,
}

impl Lease {
    fn lives_on(&mut self, at: u64, node: char, px_ms: u64) {
        let span = px_ms * 1_000_000;
        let until = self.until.entry(node).or_default();
        *until = (*until).max(at + span);
        self.deeds.push((at, span));
    }
}

#[derive(Debug)]
pub struct Ledger {
    quorum: usize,
    leases: BTreeMap<String, BTreeMap<String, Lease>>,
    /// Values by keeper and token.
    values: BTreeMap<String, BTreeMap<u64, BTreeSet<String>>>,
    /// Whose the lock key is, by node and keeper.
    current: BTreeMap<(char, String), String>,
    /// A node served before it was watched: it may have granted what is not written here.
    pub gaps: bool,
    /// When a node fell silent: what it did in its last moments may not be written here.
    deaths: Vec<(char, u64)>,
}

/// A server that is killed takes the last of its `MONITOR` output with it. What it answered then was part of a round in which other
/// nodes were seen to do the same, this long before or after.
const BLIND: Duration = Duration::from_millis(50);

/// What a child may still do when its lease, as the nodes gave it, is over: nothing. Ours is later than the daemon's by what the
/// request and `MONITOR` took; the drift allowance is the daemon's own (DESIGN 3).
const DRIFT: Duration = Duration::from_millis(22);

/// How close it was.
#[derive(Debug, Default)]
pub struct Margins {
    pub checked: usize,
    pub unknown: usize,
    /// The least that was left of a lease at its child's last sign of life.
    pub least_left: Option<u64>,
    pub releases: usize,
    /// The least time between the last sign of life and the release.
    pub least_before_release: Option<u64>,
}

impl Ledger {
    pub fn new(nodes: usize) -> Self {
        Self {
            quorum: nodes / 2 + 1,
            leases: BTreeMap::new(),
            values: BTreeMap::new(),
            current: BTreeMap::new(),
            gaps: false,
            deaths: Vec::new(),
        }
    }

    /// Nothing more is heard of the node, until it begins anew.
    pub fn died(&mut self, at: u64, node: char) {
        self.deaths.push((node, at));
    }

    /// The node has begun anew.
    pub fn forget(&mut self, node: char) {
        self.current.retain(|(n, _), _| *n != node);
    }

    pub fn saw(&mut self, at: u64, node: char, keeper: &str, deed: Deed) {
        let leases = self.leases.entry(keeper.into()).or_default();
        let place = (node, keeper.to_owned());
        match deed {
            Deed::Granted { value, px_ms } => {
                leases.entry(value.clone()).or_default().lives_on(at, node, px_ms);
                self.current.insert(place, value);
            }
            Deed::Extended { px_ms } => {
                let Some(value) = self.current.get(&place) else { return };
                leases.entry(value.clone()).or_default().lives_on(at, node, px_ms);
            }
            Deed::Token { value, token } => {
                let values = self.values.entry(keeper.into()).or_default().entry(token).or_default();
                if !values.contains(&value) {
                    values.insert(value);
                }
            }
            Deed::Released { value } => {
                let lease = leases.entry(value).or_default();
                lease.released = Some(lease.released.map_or(at, |before| before.min(at)));
            }
        }
    }

    fn of(&self, life: &Life) -> Vec<&Lease> {
        let values = self.values.get(&life.keeper).and_then(|tokens| tokens.get(&life.token));
        let leases = self.leases.get(&life.keeper);
        values.into_iter().flatten().filter_map(|value| leases?.get(value)).collect()
    }

    /// The instant after which that many nodes no longer held it for this value, as far as they were seen to.
    fn valid_until(&self, lease: &Lease) -> u64 {
        self.quorum_end(&lease.until)
    }

    /// The same, if every node that died did at that moment what the others were seen to do.
    fn possibly_until(&self, lease: &Lease) -> u64 {
        let mut until = lease.until.clone();
        for (node, died) in &self.deaths {
            let near = lease.deeds.iter().filter(|(at, _)| at.abs_diff(*died) <= nanos(BLIND));
            if let Some(end) = near.map(|(_, span)| died + span).max() {
                let until = until.entry(*node).or_default();
                *until = (*until).max(end);
            }
        }
        self.quorum_end(&until)
    }

    fn quorum_end(&self, until: &BTreeMap<char, u64>) -> u64 {
        let mut ends: Vec<u64> = until.values().copied().collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        let end = ends.get(self.quorum - 1).copied().unwrap_or(0);
        end.saturating_sub(DRIFT.as_nanos() as u64)
    }

    /// No sign of life after the lease, and none after the release.
    pub fn verdict(&self, judge: &Judge) -> (Vec<Violation>, Margins) {
        let (mut found, mut margins) = (Vec::new(), Margins::default());
        let least = |old: Option<u64>, new: u64| Some(old.map_or(new, |old| old.min(new)));
        for life in judge.lives().iter().filter(|l| !l.is_legacy()) {
            // A number can have been granted to another attempt on another node: the later of their ends counts.
            let leases = self.of(life);
            if leases.is_empty() {
                margins.unknown += 1;
                continue;
            }
            if judge.excuses(life, life.end) {
                continue;
            }
            let until = leases.iter().map(|l| self.valid_until(l)).max().unwrap_or(0);
            if !self.gaps {
                let possibly = leases.iter().map(|l| self.possibly_until(l)).max().unwrap_or(0);
                if life.end <= until {
                    margins.checked += 1;
                    margins.least_left = least(margins.least_left, until - life.end);
                } else if life.end <= possibly {
                    margins.unknown += 1;
                } else {
                    margins.checked += 1;
                    found.push(Violation {
                        fault: Fault::Validity,
                        at: life.end,
                        text: format!(
                            "{}: {} (token {}) lived {} longer than a quorum of nodes had granted",
                            life.keeper,
                            life.instance,
                            life.token,
                            ms(life.end - until),
                        ),
                    });
                }
            }
            let Some(released) = leases.iter().map(|l| l.released).max().flatten() else { continue };
            if leases.iter().any(|l| l.released.is_none()) {
                continue;
            }
            margins.releases += 1;
            if life.end > released {
                found.push(Violation {
                    fault: Fault::Release,
                    at: released,
                    text: format!(
                        "{}: {} (token {}) lived for {} after its lock was released",
                        life.keeper,
                        life.instance,
                        life.token,
                        ms(life.end - released),
                    ),
                });
            } else {
                margins.least_before_release = least(margins.least_before_release, released - life.end);
            }
        }
        (found, margins)
    }
}

/// Writes down from now on, until the node ends.
pub fn watch(node: char, port: u16, ledger: &Arc<Mutex<Ledger>>) -> Step {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.write_all(b"*1\r\n$7\r\nMONITOR\r\n")?;
    let mut reader = BufReader::new(socket.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    check(line.starts_with("+OK"), format!("MONITOR on redis-{node} answered {line:?}"))?;
    socket.set_read_timeout(None)?;
    ledger.lock().expect("no thread panics with it").forget(node);
    let ledger = Arc::clone(ledger);
    std::thread::Builder::new().name(format!("monitor-{node}")).spawn(move || {
        let mut bytes = Vec::new();
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(1..)) {
            let at = boot_ns();
            if let Some((keeper, deed)) = parse_deed(&String::from_utf8_lossy(&bytes)) {
                ledger.lock().expect("no thread panics with it").saw(at, node, &keeper, deed);
            }
            bytes.clear();
        }
        ledger.lock().expect("no thread panics with it").died(boot_ns(), node);
    })?;
    Ok(())
}
