//! The verdict on a probe log. Knows nothing of the daemon: only what the children wrote themselves.
//!
//! A child lives *at least* from its `start` to its last record, its grandchildren's included. That is a lower bound, so
//! a reported overlap is real; what can be missed is one tick and a scheduling delay. A stopped and continued child ticks
//! again and so stretches its life: the zombie we want to see.

use std::collections::BTreeMap;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Start,
    Tick,
    /// A tick of a grandchild.
    Gtick,
    /// SIGTERM seen by a child that goes on.
    Term,
    Stop,
}

#[derive(Clone, Debug)]
pub struct Record {
    pub at: u64,
    pub keeper: String,
    /// `NO_TOKEN`: a keeper that takes its lock without keeperd.
    pub token: u64,
    pub instance: String,
    pub pid: i32,
    pub event: Event,
    pub n: u64,
}

/// What the word `none` in a record stands for. A child of keeperd cannot come to it: its own word would be a number, and a
/// literal 0 is refused.
pub const NO_TOKEN: u64 = 0;

/// One run of a child, grandchildren included.
#[derive(Clone, Debug)]
pub struct Life {
    pub keeper: String,
    pub token: u64,
    pub instance: String,
    pub host: String,
    pub pid: i32,
    pub start: u64,
    /// The last evidence.
    pub end: u64,
    pub asked_to_stop: bool,
    pub stopped: bool,
}

impl Life {
    /// Not a child of keeperd: it excludes and is excluded, but has no place in the order of tokens.
    pub fn is_legacy(&self) -> bool {
        self.token == NO_TOKEN
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    Malformed,
    /// Two children of one keeper lived at once.
    Overlap,
    /// A later child had a smaller token, or another host had the same.
    Token,
    /// A record is missing in the numbering of its process.
    Gap,
}

#[derive(Clone, Debug)]
pub struct Violation {
    pub fault: Fault,
    pub at: u64,
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {}: {}", self.fault, self.at, self.text)
    }
}

pub fn parse_record(line: &str) -> Option<Record> {
    let words: Vec<&str> = line.split(' ').collect();
    let [at, keeper, token, instance, pid, event, n] = words[..] else { return None };
    let event = match event {
        "start" => Event::Start,
        "tick" => Event::Tick,
        "gtick" => Event::Gtick,
        "term" => Event::Term,
        "stop" => Event::Stop,
        _ => return None,
    };
    instance.split_once(':')?;
    let token = match token {
        "none" => NO_TOKEN,
        number => number.parse().ok().filter(|t| *t != NO_TOKEN)?,
    };
    Some(Record {
        at: at.parse().ok()?,
        keeper: keeper.into(),
        token,
        instance: instance.into(),
        pid: pid.parse().ok()?,
        event,
        n: n.parse().ok()?,
    })
}

/// Every complete line; a line that is no record is a violation.
pub fn parse_log(text: &str) -> (Vec<Record>, Vec<Violation>) {
    let mut records: Vec<Record> = Vec::new();
    let mut bad = Vec::new();
    for line in text.lines() {
        match parse_record(line) {
            Some(r) => records.push(r),
            None => bad.push(Violation {
                fault: Fault::Malformed,
                at: records.last().map_or(0, |r| r.at),
                text: format!("not a record: {line:?}"),
            }),
        }
    }
    (records, bad)
}

/// Lives in the order of their starts.
pub fn lives(records: &[Record]) -> Vec<Life> {
    let mut all: BTreeMap<(&str, &str), Life> = BTreeMap::new();
    for r in records {
        let life = all.entry((&r.keeper, &r.instance)).or_insert_with(|| Life {
            keeper: r.keeper.clone(),
            token: r.token,
            instance: r.instance.clone(),
            host: r.instance.split(':').next().unwrap_or_default().into(),
            pid: r.pid,
            start: r.at,
            end: r.at,
            asked_to_stop: false,
            stopped: false,
        });
        life.start = life.start.min(r.at);
        life.end = life.end.max(r.at);
        life.asked_to_stop |= matches!(r.event, Event::Term | Event::Stop);
        life.stopped |= r.event == Event::Stop;
    }
    let mut lives: Vec<Life> = all.into_values().collect();
    lives.sort_by_key(|l| l.start);
    lives
}

/// Everything wrong with the log.
pub fn verdict(records: &[Record]) -> Vec<Violation> {
    let lives = lives(records);
    let mut keepers: Vec<&str> = lives.iter().map(|l| l.keeper.as_str()).collect();
    keepers.sort_unstable();
    keepers.dedup();
    let mut found = form(records);
    for keeper in keepers {
        let of_keeper: Vec<&Life> = lives.iter().filter(|l| l.keeper == keeper).collect();
        found.extend(exclusion(&of_keeper));
        found.extend(token_order(&of_keeper));
    }
    found
}

/// The longest overlap of two lives of one keeper, in nanoseconds: 0 in a sound run.
pub fn worst_overlap(records: &[Record]) -> u64 {
    let lives = lives(records);
    let pairs = lives.iter().enumerate().flat_map(|(i, a)| lives[i + 1..].iter().map(move |b| (a, b)));
    pairs.filter(|(a, b)| a.keeper == b.keeper).map(|(a, b)| overlap(a, b)).max().unwrap_or(0)
}

fn overlap(a: &Life, b: &Life) -> u64 {
    a.end.min(b.end).saturating_sub(a.start.max(b.start))
}

/// Compares each life with the one that lasted longest before it, so that a zombie spanning several terms is seen in
/// each of them.
fn exclusion(lives: &[&Life]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut longest: Option<&Life> = None;
    for life in lives {
        if let Some(old) = longest
            && old.end >= life.start
        {
            found.push(Violation {
                fault: Fault::Overlap,
                at: life.start,
                text: format!(
                    "{}: {} (token {}) and {} (token {}) lived together for at least {}",
                    life.keeper,
                    old.instance,
                    old.token,
                    life.instance,
                    life.token,
                    crate::clock::ms(overlap(old, life)),
                ),
            });
        }
        if longest.is_none_or(|old| old.end < life.end) {
            longest = Some(life);
        }
    }
    found
}

/// Strictly increasing from term to term, whoever ran without a token in between. The same token twice in a row is a local
/// restart within one term and so must come from the same host, with nobody in between.
fn token_order(lives: &[&Life]) -> Vec<Violation> {
    let fenced: Vec<(usize, &Life)> =
        lives.iter().enumerate().filter(|(_, l)| !l.is_legacy()).map(|(i, l)| (i, *l)).collect();
    let pairs = fenced.windows(2).filter_map(|pair| {
        let ((before, old), (after, new)) = (pair[0], pair[1]);
        let restart = new.token == old.token && new.host == old.host && after == before + 1;
        let sound = new.token > old.token || restart;
        (!sound).then(|| Violation {
            fault: Fault::Token,
            at: new.start,
            text: format!(
                "{}: token {} of {} is followed by {} of {}",
                new.keeper, old.token, old.instance, new.token, new.instance
            ),
        })
    });
    let range = lives.iter().filter(|l| l.token >= 1 << 53).map(|l| Violation {
        fault: Fault::Token,
        at: l.start,
        text: format!("{}: token {} of {} is out of range", l.keeper, l.token, l.instance),
    });
    pairs.chain(range).collect()
}

/// Each process counts its records without a gap; each instance begins with `start` and keeps its token.
fn form(records: &[Record]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut next: BTreeMap<(&str, i32), u64> = BTreeMap::new();
    let mut tokens: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for r in records {
        let expected = next.entry((&r.instance, r.pid)).or_insert(0);
        if r.n != *expected {
            let text = format!("{} pid {} wrote record {} instead of {expected}", r.instance, r.pid, r.n);
            found.push(Violation { fault: Fault::Gap, at: r.at, text });
        }
        *expected = r.n + 1;
        match tokens.get(&(r.keeper.as_str(), r.instance.as_str())) {
            None if r.event != Event::Start => {
                let text = format!("{} begins with {:?}", r.instance, r.event);
                found.push(Violation { fault: Fault::Malformed, at: r.at, text });
                tokens.insert((&r.keeper, &r.instance), r.token);
            }
            None => drop(tokens.insert((&r.keeper, &r.instance), r.token)),
            Some(token) if *token != r.token => {
                let text = format!("{} changed its token from {token} to {}", r.instance, r.token);
                found.push(Violation { fault: Fault::Token, at: r.at, text });
            }
            Some(_) => {}
        }
    }
    found
}
