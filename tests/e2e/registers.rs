//! Two tiny stores that every tick of every child writes its token to: one takes anything, one refuses what is older than the
//! newest it has seen. The second is what DESIGN promises where no lease can help.

use crate::checker::{Fault, Judge, Record, Violation, parse_record};
use crate::clock::boot_ns;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Beside the probes' log, so that they find it.
pub const SOCKET: &str = "registers.sock";

/// An older term wrote after a newer one.
#[derive(Clone, Debug)]
pub struct Stale {
    pub at: u64,
    /// When its child said that it wrote: before `at`, and on a busy machine long before.
    pub written: u64,
    pub keeper: String,
    pub instance: String,
    pub token: u64,
    pub newest: u64,
}

/// Writes that the fenced register took in a row, all of one child and its grandchildren.
#[derive(Clone, Debug)]
pub struct Taken {
    pub at: u64,
    pub token: u64,
    pub instance: String,
}

impl Taken {
    /// Which start of which host's daemon: no two of them share a term.
    fn host(&self) -> &str {
        self.instance.split(':').next().unwrap_or_default()
    }
}

/// Whether the fenced register takes a token, given the newest it has taken.
type Fence = fn(newest: u64, token: u64) -> bool;

#[derive(Debug)]
pub struct Registers {
    plain: BTreeMap<String, u64>,
    fenced: BTreeMap<String, u64>,
    fence: Fence,
    /// What the fenced one took, by keeper and in order: judged by who may write after whom, and not by the fence.
    pub taken: BTreeMap<String, Vec<Taken>>,
    pub writes: u64,
    pub rejected: u64,
    /// A few of them for people; `stale_count` has all.
    pub stale: Vec<Stale>,
    pub stale_count: u64,
}

const STALE_KEPT: usize = 10_000;

impl Default for Registers {
    fn default() -> Self {
        Self::fenced_by(|newest, token| token >= newest)
    }
}

impl Registers {
    pub fn fenced_by(fence: Fence) -> Self {
        Self {
            plain: BTreeMap::new(),
            fenced: BTreeMap::new(),
            fence,
            taken: BTreeMap::new(),
            writes: 0,
            rejected: 0,
            stale: Vec::new(),
            stale_count: 0,
        }
    }

    pub fn write(&mut self, at: u64, r: &Record) {
        self.writes += 1;
        let before = self.plain.insert(r.keeper.clone(), r.token).unwrap_or(0);
        if r.token < before {
            self.stale_count += 1;
            if self.stale.len() < STALE_KEPT {
                self.stale.push(Stale {
                    at,
                    written: r.at,
                    keeper: r.keeper.clone(),
                    instance: r.instance.clone(),
                    token: r.token,
                    newest: before,
                });
            }
        }
        let newest = self.fenced.entry(r.keeper.clone()).or_insert(0);
        if !(self.fence)(*newest, r.token) {
            self.rejected += 1;
            return;
        }
        *newest = r.token.max(*newest);
        let taken = self.taken.entry(r.keeper.clone()).or_default();
        if taken.last().is_none_or(|last| last.token != r.token || last.instance != r.instance) {
            taken.push(Taken { at, token: r.token, instance: r.instance.clone() });
        }
    }

    /// An older term may write to the plain register after a newer one where a whole host was frozen; what the fenced one takes
    /// never goes back, whatever was frozen.
    pub fn verdict(&self, judge: &Judge) -> Vec<Violation> {
        let excused =
            |s: &&Stale| [s.at, s.written].iter().any(|at| judge.excuses_instance(&s.instance, *at));
        let stale = self.stale.iter().filter(|s| !excused(s)).take(10).map(|s| Violation {
            fault: Fault::Stale,
            at: s.at,
            text: format!("{}: {} wrote token {} after {}", s.keeper, s.instance, s.token, s.newest),
        });
        stale.chain(self.taken.iter().flat_map(|(keeper, taken)| broken_fence(keeper, taken))).collect()
    }

    /// Listens from now on. One queue for all writers: the order of arrival is the order in which they wrote.
    pub fn open(dir: &Path) -> std::io::Result<Arc<Mutex<Self>>> {
        let socket = UnixDatagram::bind(dir.join(SOCKET))?;
        let shared = Arc::new(Mutex::new(Self::default()));
        let registers = Arc::clone(&shared);
        std::thread::Builder::new().name("registers".into()).spawn(move || {
            let mut buffer = [0; 512];
            while let Ok(n) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..n]);
                let Some(record) = parse_record(text.trim_end()) else { continue };
                registers.lock().expect("no thread panics with it").write(boot_ns(), &record);
            }
        })?;
        Ok(shared)
    }
}

/// After a write no smaller token is taken, the same token from the same host only, and not from a child whose successor in that
/// term has written.
fn broken_fence(keeper: &str, taken: &[Taken]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut current: Option<&Taken> = None;
    let mut replaced: BTreeSet<&str> = BTreeSet::new();
    for new in taken {
        let Some(old) = current else {
            current = Some(new);
            continue;
        };
        let what = if new.token < old.token {
            "an older token"
        } else if new.token == old.token && new.host() != old.host() {
            "one token of two hosts"
        } else if replaced.contains(new.instance.as_str()) {
            "a child that had been replaced"
        } else {
            if new.token > old.token {
                replaced.clear();
            } else if new.instance != old.instance {
                replaced.insert(&old.instance);
            }
            current = Some(new);
            continue;
        };
        let text = format!(
            "{keeper}: the fenced register took {what}: {} of {} after {} of {}",
            new.token, new.instance, old.token, old.instance
        );
        found.push(Violation { fault: Fault::Fence, at: new.at, text });
    }
    found
}

/// What the probe does with a tick: never waits, and what the queue does not take is lost.
#[derive(Debug)]
pub struct Writer(Option<UnixDatagram>);

impl Writer {
    pub fn beside(log: &Path) -> Self {
        let connect = || {
            let socket = UnixDatagram::unbound().ok()?;
            socket.set_nonblocking(true).ok()?;
            socket.connect(log.parent()?.join(SOCKET)).ok()?;
            Some(socket)
        };
        Self(connect())
    }

    pub fn write(&self, record: &[u8]) {
        if let Some(socket) = &self.0 {
            socket.send(record).ok();
        }
    }
}

/// Whether this event is a write of the child's.
pub fn is_write(event: &str) -> bool {
    event == "tick" || event == "gtick"
}
