//! The network between one daemon and one node: a TCP proxy that can be cut.
//!
//! What a cut link held back is delivered when it heals, as TCP would: late commands are part of the test.

#[path = "port.rs"]
mod port;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

pub use port::Port;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Nothing is read any more; connections stay open, new ones are accepted and silent.
    BlackHole,
    /// One way: requests arrive, answers do not.
    RepliesHeld,
    /// One way: requests do not arrive.
    RequestsHeld,
    /// Standing connections are reset, new ones refused.
    Refuse,
    /// Each way. A chunk that arrives while another waits is delayed behind it.
    Delay(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Requests,
    Replies,
}

/// How soon a change of mode is seen by a thread that is waiting for data.
const GLANCE: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
struct Switch {
    mode: Mutex<Option<Mode>>,
    /// Set by the acceptor once it listens or not, as the mode asks.
    listening: Mutex<bool>,
    changed: Condvar,
}

impl Switch {
    fn mode(&self) -> Mode {
        self.mode.lock().expect("no thread panics with it").unwrap_or(Mode::Pass)
    }
}

#[derive(Debug)]
pub struct Proxy {
    port: Port,
    switch: Arc<Switch>,
}

impl Proxy {
    /// Listens on a free port and passes everything on to `target`.
    pub fn start(target: u16) -> std::io::Result<Self> {
        let (port, listener) = Port::reserve()?;
        let switch = Arc::new(Switch::default());
        let shared = Arc::clone(&switch);
        let number = port.number;
        thread::Builder::new()
            .name("proxy".into())
            .spawn(move || accept(number, listener, target, &shared))?;
        Ok(Self { port, switch })
    }

    pub fn port(&self) -> u16 {
        self.port.number
    }

    pub fn mode(&self) -> Mode {
        self.switch.mode()
    }

    /// Returns when new connections are treated as asked; standing ones follow within a glance.
    pub fn set(&self, mode: Mode) {
        *self.switch.mode.lock().expect("no thread panics with it") = Some(mode);
        let open = mode != Mode::Refuse;
        let listening = self.switch.listening.lock().expect("no thread panics with it");
        let waited =
            self.switch.changed.wait_timeout_while(listening, Duration::from_secs(30), |l| *l != open);
        let timed_out = waited.expect("no thread panics with it").1.timed_out();
        assert!(!timed_out, "proxy {} did not follow {mode:?}", self.port.number);
    }
}

fn accept(port: u16, listener: TcpListener, target: u16, switch: &Arc<Switch>) {
    let mut listener = Some(listener);
    loop {
        follow(port, &mut listener, switch);
        let Some(open) = &listener else {
            thread::sleep(GLANCE);
            continue;
        };
        let mut fds = [PollFd::new(open.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(GLANCE).expect("a short time");
        if poll(&mut fds, timeout).unwrap_or(0) == 0 {
            continue;
        }
        let Ok((client, _)) = open.accept() else { continue };
        let switch = Arc::clone(switch);
        thread::spawn(move || connect(client, target, &switch));
    }
}

/// Opens or closes the listener as the mode asks, and says so.
fn follow(port: u16, listener: &mut Option<TcpListener>, switch: &Switch) {
    let wanted = switch.mode() != Mode::Refuse;
    if wanted && listener.is_none() {
        *listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok();
    } else if !wanted {
        *listener = None;
    }
    let mut listening = switch.listening.lock().expect("no thread panics with it");
    if *listening != listener.is_some() {
        *listening = listener.is_some();
        switch.changed.notify_all();
    }
}

/// A silent link stays silent from the first byte: the node is not even asked until it heals.
fn connect(client: TcpStream, target: u16, switch: &Arc<Switch>) {
    while switch.mode() == Mode::BlackHole {
        thread::sleep(GLANCE);
    }
    let Ok(node) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) else {
        return reset(&client);
    };
    for end in [&client, &node] {
        end.set_nodelay(true).ok();
        end.set_read_timeout(Some(GLANCE)).ok();
    }
    let (Ok(client2), Ok(node2)) = (client.try_clone(), node.try_clone()) else { return };
    let other = Arc::clone(switch);
    thread::spawn(move || pump(node2, client2, Way::Replies, &other));
    pump(client, node, Way::Requests, switch);
}

fn pump(mut from: TcpStream, mut to: TcpStream, way: Way, switch: &Switch) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if !wait_until_open(way, switch) {
            reset(&from);
            reset(&to);
            return;
        }
        let n = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e)
                if [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::Interrupted]
                    .contains(&e.kind()) =>
            {
                continue;
            }
            Err(_) => break,
        };
        if let Mode::Delay(span) = switch.mode() {
            thread::sleep(span);
        }
        if !wait_until_open(way, switch) || to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    if switch.mode() == Mode::Refuse {
        reset(&from);
        reset(&to);
    }
    to.shutdown(Shutdown::Both).ok();
    from.shutdown(Shutdown::Both).ok();
}

/// False when the connection is to be reset.
fn wait_until_open(way: Way, switch: &Switch) -> bool {
    loop {
        let held = match switch.mode() {
            Mode::Refuse => return false,
            Mode::Pass | Mode::Delay(_) => false,
            Mode::BlackHole => true,
            Mode::RepliesHeld => way == Way::Replies,
            Mode::RequestsHeld => way == Way::Requests,
        };
        if !held {
            return true;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The last close of this socket sends RST instead of FIN.
fn reset(socket: &TcpStream) {
    setsockopt(socket, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).ok();
}
