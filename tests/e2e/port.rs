//! Ports for servers that cannot be asked which one they took.

use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// A port that is ours alone as long as this lives, also while nobody listens there: a node that is down and a link that refuses must
/// not come back as somebody else's.
#[derive(Debug)]
pub struct Port {
    pub number: u16,
    _reserved: Flock<File>,
}

impl Port {
    /// Below the ephemeral range, so that no outgoing connection can take it.
    pub fn reserve() -> std::io::Result<(Self, TcpListener)> {
        static TRIED: AtomicU32 = AtomicU32::new(0);
        let folder = std::env::temp_dir().join("keeperd-e2e-ports");
        std::fs::create_dir_all(&folder)?;
        for _ in 0..1000 {
            // Processes that follow each other, as those of tests do, begin far apart.
            let place =
                std::process::id().wrapping_mul(7919).wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed));
            let number = 10_000 + u16::try_from(place % 20_000).expect("below 20,000");
            let file = File::create(folder.join(number.to_string()))?;
            let Ok(reserved) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { continue };
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, number)) {
                return Ok((Port { number, _reserved: reserved }, listener));
            }
        }
        Err(std::io::Error::new(ErrorKind::AddrInUse, "no free port between 10000 and 30000"))
    }
}
