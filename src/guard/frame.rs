//! What daemon and guard say to each other: fixed-size frames over a SEQPACKET socket, one frame a packet.
//!
//! Both ends are the same binary, so the version only catches a daemon that started something else.

use crate::core::restart::Exit;
use crate::core::time::Instant;
pub use crate::core::timing::Deadlines;
use std::time::Duration;

pub(super) const SIZE: usize = 64;
const VERSION: u8 = 1;

/// Number of a frame from the daemon; grows within a guard's life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Seq(pub u64);

/// The first frame. Its descriptors come with it: spec, then releaser, lock and stdin if they are announced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Arm {
    pub token: u64,
    pub deadlines: Deadlines,
    pub stop_timeout: Duration,
    pub releaser: bool,
    pub lock: bool,
    pub stdin: bool,
    pub cgroup: bool,
}

/// What the daemon may ask once the guard is launched. Each but [`Command::Signal`] is answered by an [`Ack`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Start the child, unless it is `start_by` or `stop_at` before it has reached its exec. Refused while anything of the last one lives.
    Spawn { start_by: Instant },
    /// End the child as [`Command::Stop`] does, but not for good: after [`Event::TreeDead`] it may be started again. Refused once stopping
    /// has begun; nothing to do when no child runs.
    Restart { kill_by: Instant },
    /// Smaller ones are always taken; larger ones only until stopping has begun.
    Deadlines(Deadlines),
    /// Stop politely now, and kill at `kill_by` or `kill_at`, whichever comes first. Final.
    Stop { kill_by: Instant },
    /// Kill everything now. Final.
    Kill,
    /// Go away without releasing. Refused while anything lives.
    Quit,
    /// Pass a signal on to the main process, if it runs.
    Signal(i32),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    Arm(Arm),
    Command(Command),
}

/// What the guard says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The deadlines are set; children may be started.
    Armed(Report),
    Ack(Ack),
    /// The program runs: exec has succeeded.
    Started {
        pid: u32,
        in_cgroup: bool,
    },
    /// It does not run; a [`Event::TreeDead`] follows.
    ExecFailed {
        stage: Stage,
        errno: i32,
    },
    /// The main process ended, for whatever reason. What it left behind is being killed; a [`Event::TreeDead`] follows.
    Exited(Exit),
    Stopping(Why),
    /// Proof that no process of the keeper is left. `killed` of them died by SIGKILL. Unless it is `last`, the child may be started again.
    /// Also said without a child, when a deadline or a [`Command::Stop`] comes.
    TreeDead {
        killed: u32,
        last: bool,
    },
}

/// Answer to one frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ack {
    pub seq: Seq,
    pub accepted: bool,
    /// The guard's own reading, taken when it woke up.
    pub clock: Instant,
    /// In force from now on.
    pub deadlines: Deadlines,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Why {
    /// `stop_at` has come: the daemon has not prolonged the lease.
    Deadline,
    Command,
    /// The end of the socket. Said into the void, unless it was a daemon that had only stopped reading.
    Orphaned,
}

/// How well this guard can do its work; what is missing costs a warning, not the keeper.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Report {
    /// Real-time scheduling: without it kills come late on a busy host.
    pub realtime: bool,
    /// Memory locked: without it kills come late on a host that swaps.
    pub locked: bool,
    /// Protected from the out-of-memory killer.
    pub oom: bool,
    /// Orphans of the tree come to the guard. Without this *and* without a cgroup nothing could be proven, so it is required.
    pub subreaper: bool,
    /// Other processes of the same user cannot read its memory.
    pub undumpable: bool,
    /// Has a cgroup of its own for the tree.
    pub cgroup: bool,
    /// The kernel lists children (CONFIG_PROC_CHILDREN).
    pub walk: bool,
}

impl Report {
    fn to_bits(self) -> u64 {
        let all =
            [self.realtime, self.locked, self.oom, self.subreaper, self.undumpable, self.cgroup, self.walk];
        all.iter().enumerate().fold(0, |bits, (i, on)| bits | u64::from(*on) << i)
    }

    fn from_bits(bits: u64) -> Self {
        let on = |i: u32| bits >> i & 1 == 1;
        Report {
            realtime: on(0),
            locked: on(1),
            oom: on(2),
            subreaper: on(3),
            undumpable: on(4),
            cgroup: on(5),
            walk: on(6),
        }
    }
}

macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident = $number:literal $text:literal,)*) => {
        /// Where the way from fork to exec ended.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Stage { $($(#[$doc])* $name = $number),* }

        impl Stage {
            /// For log lines.
            pub fn as_str(self) -> &'static str {
                match self { $(Stage::$name => $text),* }
            }

            pub(super) fn from_number(number: u64) -> Option<Self> {
                match number { $($number => Some(Stage::$name),)* _ => None }
            }
        }
    };
}

stages! {
    /// The specification itself: a NUL byte, no command, an unknown limit.
    Spec = 1 "specification",
    Fork = 2 "fork",
    Session = 3 "session",
    Limits = 4 "limits",
    Nice = 5 "nice",
    WorkingDir = 6 "working directory",
    Groups = 7 "groups",
    Gid = 8 "group",
    Uid = 9 "user",
    NoNewPrivileges = 10 "no new privileges",
    /// The guard died meanwhile.
    ParentDeath = 11 "parent death signal",
    Signals = 12 "signals",
    Descriptors = 13 "descriptors",
    /// `start_by` or `stop_at` came first (R9).
    Late = 14 "late",
    Exec = 15 "exec",
    /// `env_file` cannot be read.
    EnvFile = 16 "environment file",
    /// The PID namespace, or the mount namespace that goes with it, cannot be made.
    Namespace = 17 "PID namespace",
    /// Its own /proc cannot be mounted.
    Proc = 18 "/proc of the PID namespace",
}

type Words = [u64; 6];

fn pack(kind: u8, seq: u64, words: Words) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes[0] = VERSION;
    bytes[1] = kind;
    bytes[8..16].copy_from_slice(&seq.to_le_bytes());
    for (place, word) in bytes[16..].chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn unpack(bytes: &[u8]) -> Option<(u8, u64, Words)> {
    if bytes.len() != SIZE || bytes[0] != VERSION {
        return None;
    }
    let mut numbers =
        bytes[8..].chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("chunks of 8")));
    let seq = numbers.next()?;
    let mut words = [0; 6];
    words.iter_mut().zip(numbers).for_each(|(word, number)| *word = number);
    Some((bytes[1], seq, words))
}

fn instant(word: u64) -> Instant {
    Instant::from_nanos(word)
}

impl Order {
    pub(super) fn encode(self, seq: Seq) -> [u8; SIZE] {
        let (kind, words) = match self {
            Order::Arm(a) => {
                let flags = [a.releaser, a.lock, a.cgroup, a.stdin];
                let flags = flags.iter().enumerate().fold(0, |bits, (i, on)| bits | u64::from(*on) << i);
                let timeout = u64::try_from(a.stop_timeout.as_nanos()).unwrap_or(u64::MAX);
                let Deadlines { stop_at, kill_at } = a.deadlines;
                (1, [flags, a.token, stop_at.as_nanos(), kill_at.as_nanos(), timeout, 0])
            }
            Order::Command(Command::Spawn { start_by }) => (2, [start_by.as_nanos(), 0, 0, 0, 0, 0]),
            Order::Command(Command::Deadlines(d)) => {
                (3, [d.stop_at.as_nanos(), d.kill_at.as_nanos(), 0, 0, 0, 0])
            }
            Order::Command(Command::Stop { kill_by }) => (4, [kill_by.as_nanos(), 0, 0, 0, 0, 0]),
            Order::Command(Command::Kill) => (5, [0; 6]),
            Order::Command(Command::Quit) => (6, [0; 6]),
            Order::Command(Command::Restart { kill_by }) => (7, [kill_by.as_nanos(), 0, 0, 0, 0, 0]),
            Order::Command(Command::Signal(signal)) => (8, [int(signal), 0, 0, 0, 0, 0]),
        };
        pack(kind, seq.0, words)
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<(Seq, Order)> {
        let (kind, seq, w) = unpack(bytes)?;
        let order = match kind {
            1 => Order::Arm(Arm {
                releaser: w[0] & 1 != 0,
                lock: w[0] & 2 != 0,
                cgroup: w[0] & 4 != 0,
                stdin: w[0] & 8 != 0,
                token: w[1],
                deadlines: Deadlines { stop_at: instant(w[2]), kill_at: instant(w[3]) },
                stop_timeout: Duration::from_nanos(w[4]),
            }),
            2 => Order::Command(Command::Spawn { start_by: instant(w[0]) }),
            3 => Order::Command(Command::Deadlines(Deadlines {
                stop_at: instant(w[0]),
                kill_at: instant(w[1]),
            })),
            4 => Order::Command(Command::Stop { kill_by: instant(w[0]) }),
            5 => Order::Command(Command::Kill),
            6 => Order::Command(Command::Quit),
            7 => Order::Command(Command::Restart { kill_by: instant(w[0]) }),
            8 => Order::Command(Command::Signal(from_int(w[0])?)),
            _ => return None,
        };
        Some((Seq(seq), order))
    }
}

/// Errno, exit code and signal travel as the bits of an int.
fn int(number: i32) -> u64 {
    u64::from(number.cast_unsigned())
}

fn from_int(word: u64) -> Option<i32> {
    u32::try_from(word).ok().map(u32::cast_signed)
}

impl Event {
    pub(super) fn encode(self) -> [u8; SIZE] {
        let (kind, words) = match self {
            Event::Armed(report) => (1, [report.to_bits(), 0, 0, 0, 0, 0]),
            Event::Ack(a) => {
                let Deadlines { stop_at, kill_at } = a.deadlines;
                let times = [a.clock, stop_at, kill_at].map(Instant::as_nanos);
                (2, [a.seq.0, u64::from(a.accepted), times[0], times[1], times[2], 0])
            }
            Event::Started { pid, in_cgroup } => (3, [u64::from(pid), u64::from(in_cgroup), 0, 0, 0, 0]),
            Event::ExecFailed { stage, errno } => (4, [stage as u64, int(errno), 0, 0, 0, 0]),
            Event::Exited(Exit::Code(code)) => (5, [0, int(code), 0, 0, 0, 0]),
            Event::Exited(Exit::Signal(signal)) => (5, [1, int(signal), 0, 0, 0, 0]),
            Event::Stopping(why) => (6, [why as u64, 0, 0, 0, 0, 0]),
            Event::TreeDead { killed, last } => (7, [u64::from(killed), u64::from(last), 0, 0, 0, 0]),
        };
        pack(kind, 0, words)
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Event> {
        let (kind, _, w) = unpack(bytes)?;
        Some(match kind {
            1 => Event::Armed(Report::from_bits(w[0])),
            2 => Event::Ack(Ack {
                seq: Seq(w[0]),
                accepted: w[1] != 0,
                clock: instant(w[2]),
                deadlines: Deadlines { stop_at: instant(w[3]), kill_at: instant(w[4]) },
            }),
            3 => Event::Started { pid: u32::try_from(w[0]).ok()?, in_cgroup: w[1] != 0 },
            4 => Event::ExecFailed { stage: Stage::from_number(w[0])?, errno: from_int(w[1])? },
            5 if w[0] == 0 => Event::Exited(Exit::Code(from_int(w[1])?)),
            5 => Event::Exited(Exit::Signal(from_int(w[1])?)),
            6 => Event::Stopping(
                *[Why::Deadline, Why::Command, Why::Orphaned].get(usize::try_from(w[0]).ok()?)?,
            ),
            7 => Event::TreeDead { killed: u32::try_from(w[0]).ok()?, last: w[1] != 0 },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_order_and_event_survives_the_wire() {
        let at = |n| Instant::from_nanos(u64::MAX - n);
        let deadlines = Deadlines { stop_at: at(1), kill_at: at(2) };
        let arm = Arm {
            token: 7,
            deadlines,
            stop_timeout: Duration::from_millis(5),
            releaser: true,
            lock: false,
            stdin: true,
            cgroup: true,
        };
        let commands = [
            Command::Spawn { start_by: at(3) },
            Command::Deadlines(deadlines),
            Command::Stop { kill_by: at(4) },
            Command::Kill,
            Command::Quit,
            Command::Restart { kill_by: at(5) },
            Command::Signal(15),
        ];
        for order in commands.map(Order::Command).into_iter().chain([Order::Arm(arm)]) {
            assert_eq!(Order::decode(&order.encode(Seq(9))), Some((Seq(9), order)));
        }
        let report = Report { locked: true, walk: true, ..Report::default() };
        for event in [
            Event::Armed(report),
            Event::Ack(Ack { seq: Seq(3), accepted: true, clock: at(0), deadlines }),
            Event::Started { pid: 12, in_cgroup: true },
            Event::ExecFailed { stage: Stage::Exec, errno: 2 },
            Event::Exited(Exit::Code(255)),
            Event::Exited(Exit::Signal(9)),
            Event::Stopping(Why::Orphaned),
            Event::TreeDead { killed: 1000, last: true },
        ] {
            assert_eq!(Event::decode(&event.encode()), Some(event));
        }
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let good = Order::Command(Command::Kill).encode(Seq(1));
        assert_eq!(Order::decode(&good[1..]), None);
        let mut other = good;
        other[0] = VERSION + 1;
        assert_eq!(Order::decode(&other), None);
        other = good;
        other[1] = 99;
        assert_eq!(Order::decode(&other), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_a_frame_or_none(mut bytes in prop::collection::vec(any::<u8>(), 0..80), kind in 0_u8..9, small in any::<bool>()) {
            let _ = (Order::decode(&bytes), Event::decode(&bytes));
            bytes.resize(SIZE, 0);
            (bytes[0], bytes[1]) = (VERSION, kind);
            if small {
                // Words within the range of most fields.
                (1..8).for_each(|word| bytes[word * 8 + 1..word * 8 + 8].fill(0));
            }
            if let Some((seq, order)) = Order::decode(&bytes) {
                prop_assert_eq!(Order::decode(&order.encode(seq)), Some((seq, order)));
            }
            if let Some(event) = Event::decode(&bytes) {
                prop_assert_eq!(Event::decode(&event.encode()), Some(event));
            }
        }
    }
}
