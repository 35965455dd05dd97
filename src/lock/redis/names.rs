//! Looking up a node's address, without depending on the name service for longer than necessary.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A name service that takes longer is asked in the background.
const PATIENCE: Duration = Duration::from_millis(200);

/// The addresses that one node's name last stood for. When the name service fails or hangs they are tried again: a lease must not end with it.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    last: Vec<SocketAddr>,
    /// A lookup blocks a thread until the system gives up: one at a time.
    asking: bool,
}

impl Names {
    fn with<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn look_up(self, host: String, port: u16) {
        let found = tokio::net::lookup_host((host, port)).await;
        self.with(|known| {
            known.asking = false;
            if let Ok(addresses) = found {
                known.last = addresses.collect();
            }
        });
    }

    pub(super) async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if !self.with(|known| std::mem::replace(&mut known.asking, true)) {
            let lookup = tokio::spawn(self.clone().look_up(host.to_owned(), port));
            let _ = tokio::time::timeout(PATIENCE, lookup).await;
        }
        let last = self.with(|known| known.last.clone());
        if last.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no address for {host}")));
        }
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_known_address_outlives_the_name_service() {
        let names = Names::default();
        let local: SocketAddr = "127.0.0.1:6379".parse().expect("an address");
        assert_eq!(names.addresses("127.0.0.1", 6379).await.expect("no lookup needed"), [local]);
        // A name that cannot exist, and one whose lookup never ends.
        assert_eq!(names.addresses("no-such-host.invalid", 6379).await.expect("known"), [local]);
        names.with(|known| known.asking = true);
        assert_eq!(names.addresses("redis1", 6379).await.expect("known"), [local]);
        assert!(Names::default().addresses("no-such-host.invalid", 1).await.is_err());
    }
}
