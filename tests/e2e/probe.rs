//! The child: leaves evidence of its life that no process has to be trusted for.
//!
//! `e2e probe LOG [VARIANT…]`. Every record is one `write` to a file opened with `O_APPEND`:
//! `boot_ns keeper token instance pid event n`. `instance` is `host:pid` of the main process; a grandchild writes under
//! the instance it came from and with its own pid. `n` counts the records of one pid, so a lost record shows.

use crate::clock::boot_ns;
use crate::registers::{Writer, is_write};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{getpid, setsid};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio, exit};
use std::time::Duration;

/// Between two records, unless `--tick MS` says otherwise.
const TICK: Duration = Duration::from_millis(5);

/// What the child does besides ticking.
#[derive(Debug, Default)]
struct Variant {
    ignore_term: bool,
    /// After SIGTERM, go on ticking this long.
    linger: Option<Duration>,
    /// Leave after this long, with this code and no `stop` record: a crash.
    crash: Option<(Duration, i32)>,
    grandchild: bool,
    shout: bool,
    tick: Option<Duration>,
    /// A shell command beside it, with the same streams.
    run: Option<String>,
    /// Set in the two processes of the double fork: the instance they belong to.
    middle_of: Option<String>,
    grandchild_of: Option<String>,
}

pub fn main(args: &[String]) -> ! {
    let log = args.first().expect("probe needs the path of its log").clone();
    let variant = parse(&args[1..]);
    if let Some(instance) = &variant.middle_of {
        become_middle(&log, instance, variant.tick);
    }
    let mut pen = Pen::open(&log, variant.grandchild_of.as_deref());
    // A grandchild keeps SIGTERM's default action: only the guard reaches it, and with SIGKILL. The child reads it from before its
    // first record on, after which it may come at once.
    let signals = variant.grandchild_of.is_none().then(stop_signals);
    let event = if variant.grandchild_of.is_some() { "gtick" } else { "start" };
    pen.write(event);
    if variant.grandchild {
        double_fork(&log, &pen.instance, variant.tick);
    }
    if variant.shout {
        std::thread::spawn(shout);
    }
    if let Some(script) = &variant.run {
        // Nobody waits for it: it ends with the tree.
        drop(Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().expect("start a shell"));
    }
    live(&mut pen, &variant, signals.as_ref())
}

fn parse(args: &[String]) -> Variant {
    let mut v = Variant::default();
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|w| w.parse::<u64>().ok()).expect("a number");
        match word.as_str() {
            "--ignore-term" => v.ignore_term = true,
            "--linger" => v.linger = Some(Duration::from_millis(number())),
            "--crash" => {
                let after = Duration::from_millis(number());
                v.crash = Some((after, i32::try_from(number()).expect("an exit code")));
            }
            "--grandchild" => v.grandchild = true,
            "--shout" => v.shout = true,
            "--tick" => v.tick = Some(Duration::from_millis(number())),
            "--run" => v.run = words.next().cloned(),
            "--middle-of" => v.middle_of = words.next().cloned(),
            "--grandchild-of" => v.grandchild_of = words.next().cloned(),
            other => panic!("probe: unknown argument {other}"),
        }
    }
    v
}

fn stop_signals() -> SignalFd {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.thread_block().expect("block SIGTERM");
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK).expect("signalfd")
}

fn live(pen: &mut Pen, variant: &Variant, signals: Option<&SignalFd>) -> ! {
    let is_grandchild = variant.grandchild_of.is_some();
    if is_grandchild {
        setsid().ok();
    }
    let event = if is_grandchild { "gtick" } else { "tick" };
    let born = boot_ns();
    let mut leave_at = variant.crash.map(|(after, code)| (born + nanos(after), code, false));
    loop {
        if let Some((at, code, said)) = leave_at
            && boot_ns() >= at
        {
            if said {
                pen.write("stop");
            }
            exit(code);
        }
        if wait_for_term(signals, variant.tick.unwrap_or(TICK)) {
            match (variant.ignore_term, variant.linger) {
                (true, _) => pen.write("term"),
                (false, None) => leave_at = Some((0, 0, true)),
                (false, Some(linger)) => {
                    pen.write("term");
                    leave_at = Some((boot_ns() + nanos(linger), 0, true));
                }
            }
            continue;
        }
        pen.write(event);
    }
}

/// True when SIGTERM came, false after one tick without.
fn wait_for_term(signals: Option<&SignalFd>, tick: Duration) -> bool {
    let Some(fd) = signals else {
        std::thread::sleep(tick);
        return false;
    };
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(tick).expect("a short time");
    poll(&mut fds, timeout).ok();
    matches!(fd.read_signal(), Ok(Some(_)))
}

fn nanos(span: Duration) -> u64 {
    crate::clock::nanos(span)
}

/// First fork: a session of its own, the second fork, and gone, so that the grandchild belongs to nobody it came from.
fn become_middle(log: &str, instance: &str, tick: Option<Duration>) -> ! {
    setsid().ok();
    probe_process(log, "--grandchild-of", instance, tick).spawn().expect("start the grandchild");
    exit(0)
}

fn double_fork(log: &str, instance: &str, tick: Option<Duration>) {
    let mut middle =
        probe_process(log, "--middle-of", instance, tick).spawn().expect("start the middle process");
    middle.wait().expect("reap the middle process");
}

/// Standard output stays inherited: a grandchild that holds the pipe is part of the test.
fn probe_process(log: &str, role: &str, instance: &str, tick: Option<Duration>) -> Command {
    let mut c = Command::new(std::env::current_exe().expect("own path"));
    c.args(["probe", log, role, instance]).stdin(Stdio::null());
    if let Some(tick) = tick {
        c.args(["--tick", &tick.as_millis().to_string()]);
    }
    c
}

/// As fast as possible: 1 MB lines, not UTF-8, on both streams.
fn shout() {
    let mut line = vec![b'x'; 1 << 20];
    for (i, byte) in line.iter_mut().enumerate().filter(|(i, _)| i % 7 == 0) {
        *byte = [0xff, 0xfe, 0xc0, 0x00, 0x1b][i % 5];
    }
    line.push(b'\n');
    loop {
        let out = std::io::stdout().lock().write_all(&line);
        let err = std::io::stderr().lock().write_all(&line);
        if out.is_err() && err.is_err() {
            return;
        }
    }
}

struct Pen {
    file: File,
    keeper: String,
    token: String,
    instance: String,
    n: u64,
    registers: Writer,
}

impl Pen {
    fn open(log: &str, grandchild_of: Option<&str>) -> Self {
        let file = OpenOptions::new().append(true).create(true).open(log).expect("open the probe's log");
        let env = |name| std::env::var(name).unwrap_or_else(|_| "-".into());
        let own = || format!("{}:{}", env("E2E_HOST"), getpid());
        Self {
            file,
            keeper: env("KEEPERD_KEEPER"),
            token: env("KEEPERD_FENCING_TOKEN"),
            instance: grandchild_of.map_or_else(own, str::to_owned),
            n: 0,
            registers: Writer::beside(Path::new(log)),
        }
    }

    fn write(&mut self, event: &str) {
        let Self { keeper, token, instance, n, .. } = &*self;
        let record = format!("{} {keeper} {token} {instance} {} {event} {n}\n", boot_ns(), getpid());
        self.n += 1;
        if self.file.write(record.as_bytes()).is_err() {
            exit(70); // no evidence, no life
        }
        if is_write(event) {
            self.registers.write(record.as_bytes());
        }
    }
}
