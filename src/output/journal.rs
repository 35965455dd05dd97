//! Lines for the journal, as entries of their own: one datagram each, with the keeper and its token as fields.
//!
//! <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>. The socket never blocks: a journal that is stuck costs lines, which are counted. A line
//! has at most 16 KiB, so no entry needs the way around the datagram's limit.

use super::line::Line;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A journal that is not there is looked for again after this long.
const AGAIN: Duration = Duration::from_secs(1);

/// What became of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    Yes,
    /// Its queue is full, or it is not there at the moment: keep the line and try again.
    NotNow,
    /// It will never take this one.
    Refused,
}

/// The socket of the journal, shared by all keepers.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    link: Mutex<Link>,
}

#[derive(Debug)]
enum Link {
    Up(UnixDatagram),
    Down { again_at: Option<Instant>, said: bool },
}

impl Journal {
    /// Nothing is opened before the first line.
    pub fn at(path: &Path) -> Journal {
        Journal { path: path.to_owned(), link: Mutex::new(Link::Down { again_at: None, said: false }) }
    }

    /// Never waits.
    pub fn send(&self, entry: &[u8]) -> Sent {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if let Link::Down { again_at, said } = *link {
            if again_at.is_some_and(|at| Instant::now() < at) {
                return Sent::NotNow;
            }
            *link = match self.connect() {
                Ok(socket) => Link::Up(socket),
                Err(error) => self.down(said, &error),
            };
            if said && matches!(*link, Link::Up(_)) {
                tracing::info!(path = %self.path.display(), "the journal takes lines again");
            }
        }
        let Link::Up(socket) = &*link else { return Sent::NotNow };
        let Err(error) = socket.send(entry) else { return Sent::Yes };
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR) => Sent::NotNow,
            Some(libc::EMSGSIZE) => Sent::Refused,
            Some(_) | None => {
                *link = self.down(false, &error);
                Sent::NotNow
            }
        }
    }

    fn connect(&self) -> io::Result<UnixDatagram> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect(&self.path)?;
        Ok(socket)
    }

    fn down(&self, said: bool, error: &io::Error) -> Link {
        if !said {
            let path = self.path.display();
            tracing::warn!(%path, %error, "the journal cannot be reached: lines of keepers wait for it, and the oldest are dropped");
        }
        Link::Down { again_at: Some(Instant::now() + AGAIN), said: true }
    }
}

/// The entry of one line.
pub fn entry(keeper: &str, line: &Line) -> Vec<u8> {
    let (priority, message) = line.priority();
    let mut entry = Vec::with_capacity(message.len() + 256);
    field(&mut entry, "MESSAGE", message);
    field(&mut entry, "PRIORITY", priority.to_string().as_bytes());
    field(&mut entry, "SYSLOG_IDENTIFIER", keeper.as_bytes());
    field(&mut entry, "KEEPERD_KEEPER", keeper.as_bytes());
    field(&mut entry, "KEEPERD_FENCING_TOKEN", line.token.0.to_string().as_bytes());
    field(&mut entry, "KEEPERD_STREAM", line.stream.name().as_bytes());
    if line.continues {
        field(&mut entry, "KEEPERD_CONTINUES", b"1");
    }
    entry
}

/// keeperd's own log as entries with fields, by a thread that may wait for the journal.
#[derive(Debug)]
pub struct LogEntries {
    path: PathBuf,
    link: Option<UnixDatagram>,
}

impl LogEntries {
    pub fn at(path: &Path) -> LogEntries {
        LogEntries { path: path.to_owned(), link: None }
    }

    /// A line that begins with its priority, as in `<6>`. False when the journal does not take it, or is not there.
    pub fn send(&mut self, line: &[u8], keeper: Option<&str>) -> bool {
        let [b'<', priority, b'>', message @ ..] = line else { return false };
        let mut entry = Vec::with_capacity(line.len() + 128);
        field(&mut entry, "MESSAGE", message.strip_suffix(b"\n").unwrap_or(message));
        field(&mut entry, "PRIORITY", &[*priority]);
        field(&mut entry, "SYSLOG_IDENTIFIER", b"keeperd");
        if let Some(keeper) = keeper {
            field(&mut entry, "KEEPERD_KEEPER", keeper.as_bytes());
        }
        if self.link.is_none() {
            self.link = self.connect().ok();
        }
        let sent = self.link.as_ref().is_some_and(|socket| socket.send(&entry).is_ok());
        if !sent {
            // It may have been restarted.
            self.link = None;
        }
        sent
    }

    fn connect(&self) -> io::Result<UnixDatagram> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(&self.path)?;
        Ok(socket)
    }
}

/// `NAME=value`, or, for a value that is not plain text, the name, a length of 64 bits, and the bytes.
fn field(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    let plain = |text: &str| !text.chars().any(|c| c.is_control() && c != '\t');
    if std::str::from_utf8(value).is_ok_and(plain) {
        entry.push(b'=');
    } else {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::super::line::Stream;
    use super::*;
    use crate::core::lease::FencingToken;
    use crate::core::time::WallTime;

    fn line(bytes: &[u8]) -> Line {
        let (at, token) = (WallTime::default(), FencingToken(4711));
        Line { at, token, stream: Stream::Stderr, bytes: bytes.into(), continues: false }
    }

    #[test]
    fn text_goes_as_text_and_the_priority_in_its_own_field() {
        let expected = "MESSAGE=disk on fire\nPRIORITY=3\nSYSLOG_IDENTIFIER=k\nKEEPERD_KEEPER=k\n\
            KEEPERD_FENCING_TOKEN=4711\nKEEPERD_STREAM=stderr\n";
        assert_eq!(String::from_utf8_lossy(&entry("k", &line(b"<3>disk on fire"))), expected);
    }

    #[test]
    fn other_bytes_go_with_their_length_so_that_they_cannot_pass_for_fields() {
        let entry = entry("k", &line(b"a\nPRIORITY=0\xff"));
        assert!(
            entry.starts_with(b"MESSAGE\n\x0d\0\0\0\0\0\0\0a\nPRIORITY=0\xff\nPRIORITY=6\n"),
            "{entry:?}"
        );
    }

    #[test]
    fn a_journal_that_is_full_or_gone_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let journal = Journal::at(&path);
        assert_eq!(journal.send(b"MESSAGE=x\n"), Sent::NotNow, "it is not there");
        let server = UnixDatagram::bind(&path).expect("a free path");
        std::thread::sleep(AGAIN);
        let mut sent = 0;
        while journal.send(b"MESSAGE=x\n") == Sent::Yes {
            sent += 1;
            assert!(sent < 1_000_000, "nobody reads, so it must fill up");
        }
        assert!(sent > 0);
        let mut buffer = [0; 64];
        let length = server.recv(&mut buffer).expect("a datagram");
        assert_eq!(&buffer[..length], b"MESSAGE=x\n");
        assert_eq!(journal.send(b"MESSAGE=x\n"), Sent::Yes, "there is room again");
        drop(server);
        assert_eq!(journal.send(b"MESSAGE=x\n"), Sent::NotNow, "it is gone");
    }
}
