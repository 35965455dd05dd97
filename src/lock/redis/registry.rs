//! The keepers that use the nodes, and the way to their inboxes.

use crate::core::request::FromNode;
use crate::lock::redis::scripts::Keys;
use crate::lock::{Claim, Inbox, KeeperId};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;

/// What a request needs of its keeper.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) claim: Claim,
    pub(super) keys: Keys,
}

#[derive(Debug)]
struct Entry {
    client: Rc<Client>,
    inbox: Inbox,
    held: bool,
}

/// Shared by all nodes of a daemon, on one thread.
#[derive(Debug, Default)]
pub(super) struct Registry {
    keepers: BTreeMap<KeeperId, Entry>,
    /// Lock keys and fence keys, as invalidations name them.
    by_key: BTreeMap<Vec<u8>, Vec<KeeperId>>,
    registered: u32,
    dropped: u64,
}

impl Registry {
    pub(super) fn add(&mut self, claim: Claim, inbox: Inbox) -> KeeperId {
        let id = KeeperId(self.registered);
        self.registered += 1;
        let client = Rc::new(Client { keys: Keys::of(&claim.key), claim });
        for key in [&client.keys.lock, &client.keys.fence] {
            self.by_key.entry(key.clone().into_bytes()).or_default().push(id);
        }
        self.keepers.insert(id, Entry { client, inbox, held: false });
        id
    }

    pub(super) fn remove(&mut self, keeper: KeeperId) {
        self.keepers.remove(&keeper);
        for keepers in self.by_key.values_mut() {
            keepers.retain(|k| *k != keeper);
        }
        self.by_key.retain(|_, keepers| !keepers.is_empty());
    }

    pub(super) fn client(&self, keeper: KeeperId) -> Option<Rc<Client>> {
        self.keepers.get(&keeper).map(|entry| Rc::clone(&entry.client))
    }

    pub(super) fn hold(&mut self, keeper: KeeperId, held: bool) {
        if let Some(entry) = self.keepers.get_mut(&keeper) {
            entry.held = held;
        }
    }

    /// The shortest lease that somebody lives on now.
    pub(super) fn smallest_held_ttl(&self) -> Option<Duration> {
        self.keepers.values().filter(|entry| entry.held).map(|entry| entry.client.claim.ttl).min()
    }

    pub(super) fn smallest_node_timeout(&self) -> Option<Duration> {
        self.keepers.values().map(|entry| entry.client.claim.node_timeout).min()
    }

    /// Never waits: a keeper that does not empty its inbox loses messages, which it must survive anyway, as nodes do lose them.
    pub(super) fn post(&mut self, keeper: KeeperId, message: FromNode) {
        let Some(entry) = self.keepers.get(&keeper) else { return };
        match entry.inbox.try_send(Box::new(message)) {
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => self.dropped += 1,
        }
    }

    pub(super) fn post_all(&mut self, message: &FromNode) {
        let keepers: Vec<KeeperId> = self.keepers.keys().copied().collect();
        for keeper in keepers {
            self.post(keeper, message.clone());
        }
    }

    /// To everybody who watches `key`, except the one who touched it himself.
    pub(super) fn post_watchers(&mut self, key: &[u8], except: Option<KeeperId>, message: &FromNode) {
        let keepers = self.by_key.get(key).cloned().unwrap_or_default();
        for keeper in keepers.into_iter().filter(|keeper| Some(*keeper) != except) {
            self.post(keeper, message.clone());
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}
