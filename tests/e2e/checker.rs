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
    /// A child lived longer than the keys in Redis allowed.
    Validity,
    /// A lock was released before its child's last sign of life.
    Release,
    /// A register without a fence was written by an older term after a newer.
    Stale,
    /// The register with a fence took a write that none may take.
    Fence,
    /// The history is not that of a mutex with growing fences.
    History,
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

/// A host that was frozen whole, guard and children included. What its children do in that time and until the guard is
/// awake again is not promised away by anybody: there only the token helps.
#[derive(Clone, Debug)]
pub struct Freeze {
    pub host: String,
    pub from: u64,
    /// Of the thaw, and what a guard may need to wake up.
    pub until: u64,
}

/// Takes records one by one and forgets them: what is kept grows with the children, not with their ticks.
#[derive(Debug, Default)]
pub struct Judge {
    lives: BTreeMap<String, BTreeMap<String, Life>>,
    /// The next number of each process of an instance.
    next: BTreeMap<String, BTreeMap<i32, u64>>,
    last_of: BTreeMap<String, u64>,
    malformed: Vec<Violation>,
    pub freezes: Vec<Freeze>,
}

impl Judge {
    pub fn observe(&mut self, r: &Record) {
        self.form(r);
        if !self.lives.contains_key(&r.keeper) {
            self.lives.insert(r.keeper.clone(), BTreeMap::new());
        }
        let lives = self.lives.get_mut(&r.keeper).expect("just made");
        if !lives.contains_key(&r.instance) {
            lives.insert(r.instance.clone(), Life::beginning(r));
        }
        let life = lives.get_mut(&r.instance).expect("just made");
        life.start = life.start.min(r.at);
        life.end = life.end.max(r.at);
        life.asked_to_stop |= matches!(r.event, Event::Term | Event::Stop);
        life.stopped |= r.event == Event::Stop;
        match self.last_of.get_mut(&r.keeper) {
            Some(last) => *last = r.at.max(*last),
            None => drop(self.last_of.insert(r.keeper.clone(), r.at)),
        }
    }

    /// Each process counts its records without a gap; each instance begins with `start` and keeps its token.
    fn form(&mut self, r: &Record) {
        let known = self.lives.get(&r.keeper).and_then(|lives| lives.get(&r.instance)).map(|life| life.token);
        if !self.next.contains_key(&r.instance) {
            self.next.insert(r.instance.clone(), BTreeMap::new());
        }
        let expected = self.next.get_mut(&r.instance).expect("just made").entry(r.pid).or_insert(0);
        let wanted = *expected;
        *expected = r.n + 1;
        if r.n != wanted {
            let text = format!("{} pid {} wrote record {} instead of {wanted}", r.instance, r.pid, r.n);
            self.malformed.push(Violation { fault: Fault::Gap, at: r.at, text });
        }
        match known {
            None if r.event != Event::Start => {
                let text = format!("{} begins with {:?}", r.instance, r.event);
                self.malformed.push(Violation { fault: Fault::Malformed, at: r.at, text });
            }
            Some(token) if token != r.token => {
                let text = format!("{} changed its token from {token} to {}", r.instance, r.token);
                self.malformed.push(Violation { fault: Fault::Token, at: r.at, text });
            }
            None | Some(_) => {}
        }
    }

    /// The last evidence of each keeper.
    pub fn last_of(&self, keeper: &str) -> Option<u64> {
        self.last_of.get(keeper).copied()
    }

    pub fn lives(&self) -> Vec<Life> {
        sorted(self.lives.values().flat_map(BTreeMap::values).cloned().collect())
    }

    pub fn lives_of(&self, keeper: &str) -> Vec<Life> {
        sorted(self.lives.get(keeper).into_iter().flat_map(BTreeMap::values).cloned().collect())
    }

    /// True for what a child did while its whole host was frozen and thawed.
    pub fn excuses(&self, life: &Life, at: u64) -> bool {
        self.excuses_instance(&life.instance, at)
    }

    pub fn excuses_instance(&self, instance: &str, at: u64) -> bool {
        let host = instance.split(['.', ':']).next();
        self.freezes.iter().any(|f| Some(f.host.as_str()) == host && (f.from..=f.until).contains(&at))
    }

    pub fn verdict(&self) -> Vec<Violation> {
        let mut found = self.malformed.clone();
        for keeper in self.lives.keys() {
            let lives = self.lives_of(keeper);
            let lives: Vec<&Life> = lives.iter().collect();
            found.extend(self.exclusion(&lives).0);
            found.extend(self.token_order(&lives));
        }
        found
    }

    /// Overlaps of children whose whole host was frozen, each with its length.
    pub fn excused_overlaps(&self) -> Vec<u64> {
        let of_keeper = |keeper: &String| {
            let lives = self.lives_of(keeper);
            self.exclusion(&lives.iter().collect::<Vec<_>>()).1
        };
        self.lives.keys().flat_map(of_keeper).collect()
    }

    /// Compares each life with the one that lasted longest before it, so that a zombie spanning several terms is seen in
    /// each of them.
    fn exclusion(&self, lives: &[&Life]) -> (Vec<Violation>, Vec<u64>) {
        let mut found = Vec::new();
        let mut excused = Vec::new();
        let mut longest: Option<&Life> = None;
        for life in lives {
            if let Some(old) = longest
                && old.end >= life.start
            {
                if self.excuses(old, old.end) || self.excuses(life, life.start) {
                    excused.push(overlap(old, life));
                } else {
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
            }
            if longest.is_none_or(|old| old.end < life.end) {
                longest = Some(life);
            }
        }
        (found, excused)
    }

    /// Strictly increasing from term to term, whoever ran without a token in between. The same token twice in a row is a local
    /// restart within one term and so must come from the same host, with nobody in between.
    fn token_order(&self, lives: &[&Life]) -> Vec<Violation> {
        let fenced: Vec<(usize, &Life)> =
            lives.iter().enumerate().filter(|(_, l)| !l.is_legacy()).map(|(i, l)| (i, *l)).collect();
        let pairs = fenced.windows(2).filter_map(|pair| {
            let ((before, old), (after, new)) = (pair[0], pair[1]);
            let restart = new.token == old.token && new.host == old.host && after == before + 1;
            let sound = new.token > old.token || restart || self.excuses(new, new.start);
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
}

impl Life {
    fn beginning(r: &Record) -> Self {
        Self {
            keeper: r.keeper.clone(),
            token: r.token,
            instance: r.instance.clone(),
            host: r.instance.split(':').next().unwrap_or_default().into(),
            pid: r.pid,
            start: r.at,
            end: r.at,
            asked_to_stop: false,
            stopped: false,
        }
    }
}

fn sorted(mut lives: Vec<Life>) -> Vec<Life> {
    lives.sort_by_key(|l| l.start);
    lives
}

/// The longest overlap of two lives of one keeper, in nanoseconds: 0 in a sound run.
pub fn worst_overlap(lives: &[Life]) -> u64 {
    let pairs = lives.iter().enumerate().flat_map(|(i, a)| lives[i + 1..].iter().map(move |b| (a, b)));
    pairs.filter(|(a, b)| a.keeper == b.keeper).map(|(a, b)| overlap(a, b)).max().unwrap_or(0)
}

fn overlap(a: &Life, b: &Life) -> u64 {
    a.end.min(b.end).saturating_sub(a.start.max(b.start))
}
