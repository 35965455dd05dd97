//! The two engines behind one face.

use super::local::Local;
use super::redis::{Access, NodeState, NodeStatus, Nodes, ReleaseSpec};
use super::{Ask, Claim, Identity, Inbox, KeeperId};
use crate::core::lease::{NodeId, Quorum, Value};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// How the core's requests reach the nodes. Lives on the core thread.
#[derive(Debug)]
pub enum Engine {
    Redis { nodes: Nodes, access: Access, identity: Identity },
    Local { lock: Local, identity: Identity },
}

impl Engine {
    pub fn register(&self, claim: Claim, inbox: Inbox) -> KeeperId {
        match self {
            Engine::Redis { nodes, .. } => nodes.register(claim, inbox),
            Engine::Local { lock, .. } => lock.register(&claim, inbox),
        }
    }

    /// Nothing more comes into its inbox; what it asked to be released is released.
    pub fn unregister(&self, keeper: KeeperId) {
        match self {
            Engine::Redis { nodes, .. } => nodes.unregister(keeper),
            Engine::Local { lock, .. } => lock.unregister(keeper),
        }
    }

    /// Never blocks; the answer comes into the keeper's inbox.
    pub fn ask(&self, keeper: KeeperId, node: NodeId, ask: Ask) {
        match self {
            Engine::Redis { nodes, .. } => nodes.ask(keeper, node, ask),
            Engine::Local { lock, .. } => lock.ask(keeper, ask),
        }
    }

    /// Whether a keeper has something to lose.
    pub fn hold(&self, keeper: KeeperId, held: bool) {
        match self {
            Engine::Redis { nodes, .. } => nodes.hold(keeper, held),
            Engine::Local { .. } => {}
        }
    }

    /// How long a node that restarts from now on does not vote; a shorter one changes nothing.
    pub fn lengthen_quarantine(&self, wanted: Duration) {
        match self {
            Engine::Redis { nodes, .. } => nodes.lengthen_quarantine(wanted),
            Engine::Local { .. } => {}
        }
    }

    pub fn quorum(&self) -> Quorum {
        match self {
            Engine::Redis { nodes, .. } => nodes.quorum(),
            Engine::Local { .. } => Quorum::of(1),
        }
    }

    pub fn identity(&self) -> &Identity {
        match self {
            Engine::Redis { identity, .. } | Engine::Local { identity, .. } => identity,
        }
    }

    pub fn status(&self) -> Vec<NodeStatus> {
        match self {
            Engine::Redis { nodes, .. } => nodes.status(),
            Engine::Local { lock, .. } => {
                let reason = lock.trouble();
                vec![NodeStatus {
                    address: lock.directory().display().to_string(),
                    state: if reason.is_some() { NodeState::Down } else { NodeState::Serving },
                    reason,
                    rtt: None,
                    quarantine_remaining: None,
                    tracking: true,
                    dropped: 0,
                }]
            }
        }
    }

    /// All that was asked is answered, or given up.
    pub fn is_idle(&self) -> bool {
        match self {
            Engine::Redis { nodes, .. } => nodes.is_idle(),
            Engine::Local { .. } => true,
        }
    }

    /// The lock's descriptor for guard and child, where the lock has one.
    pub fn descriptor(&self, keeper: KeeperId) -> Option<io::Result<OwnedFd>> {
        match self {
            Engine::Redis { .. } => None,
            Engine::Local { lock, .. } => Some(lock.descriptor(keeper)),
        }
    }

    /// What the guard's releaser needs when the daemon is gone. Holds secrets. With a local lock the guard's end is the release.
    pub fn releaser(&self, lock_key: &str, value: Value) -> Option<Vec<u8>> {
        match self {
            Engine::Redis { nodes, access, .. } => {
                let spec = ReleaseSpec {
                    access: access.clone(),
                    key: lock_key.to_owned(),
                    value: value.to_string(),
                    quorum: nodes.quorum().size(),
                };
                Some(serde_json::to_vec(&spec).expect("strings and a number"))
            }
            Engine::Local { .. } => None,
        }
    }

    /// Names of the nodes, in order, without secrets.
    pub fn node_names(&self) -> Vec<String> {
        self.status().into_iter().map(|node| node.address).collect()
    }
}
