//! Two tiny stores that every tick of every child writes its token to: one takes anything, one refuses what is older than the
//! newest it has seen. The second is what DESIGN promises where no lease can help.

use crate::checker::{Fault, Judge, Record, Violation, parse_record};
use crate::clock::boot_ns;
use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Beside the probes' log, so that they find it.
pub const SOCKET: &str = "registers.sock";

/// An older term wrote after a newer one.
#[derive(Clone, Debug)]
pub struct Stale {
    pub at: u64,
    pub keeper: String,
    pub instance: String,
    pub token: u64,
    pub newest: u64,
}

#[derive(Debug, Default)]
pub struct Registers {
    plain: BTreeMap<String, u64>,
    fenced: BTreeMap<String, u64>,
    /// What the fenced one took, each token once: a history of its own, judged by the model and not by the fence.
    pub accepted: Vec<(String, u64)>,
    pub writes: u64,
    pub rejected: u64,
    /// A few of them for people; `stale_count` has all.
    pub stale: Vec<Stale>,
    pub stale_count: u64,
}

const STALE_KEPT: usize = 10_000;

impl Registers {
    pub fn write(&mut self, at: u64, r: &Record) {
        self.writes += 1;
        let before = self.plain.insert(r.keeper.clone(), r.token).unwrap_or(0);
        if r.token < before {
            self.stale_count += 1;
            if self.stale.len() < STALE_KEPT {
                self.stale.push(Stale {
                    at,
                    keeper: r.keeper.clone(),
                    instance: r.instance.clone(),
                    token: r.token,
                    newest: before,
                });
            }
        }
        let fence = self.fenced.entry(r.keeper.clone()).or_insert(0);
        if r.token < *fence {
            self.rejected += 1;
        } else if r.token > *fence {
            *fence = r.token;
            self.accepted.push((r.keeper.clone(), r.token));
        }
    }

    /// An older term may write after a newer one where a whole host was frozen; what the fenced register took never goes back.
    pub fn verdict(&self, judge: &Judge) -> Vec<Violation> {
        let excused = |s: &&Stale| judge.excuses_instance(&s.instance, s.at);
        let stale = self.stale.iter().filter(|s| !excused(s)).take(10).map(|s| Violation {
            fault: Fault::Stale,
            at: s.at,
            text: format!("{}: {} wrote token {} after {}", s.keeper, s.instance, s.token, s.newest),
        });
        let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
        let broken = self.accepted.iter().filter_map(move |(keeper, token)| {
            let before = newest.insert(keeper, *token).unwrap_or(0);
            let text = format!("{keeper}: the fenced register took token {token} after {before}");
            (*token < before).then_some(Violation { fault: Fault::Stale, at: 0, text })
        });
        stale.chain(broken).collect()
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
