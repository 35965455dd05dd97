//! Redlock over a quorum of independent Redis nodes.
//!
//! One actor per node (`node`) owns one connection (`link`); keepers reach all of them through [`Nodes`]. Every rule that must hold at
//! the node is decided there, by a script; every decision over several nodes is the core's. Here is only what lies between: who is connected,
//! what time it is there, who is told what.

mod access;
mod backoff;
mod endpoint;
mod link;
mod names;
mod node;
mod offset;
mod operate;
mod registry;
mod release;
mod reply;
mod scripts;
pub mod survey;
mod unwanted;

pub use access::{Access, Address, BadPem, ClientPem, Login, Part, Pem};
pub use endpoint::{Connected, Endpoint};
pub use operate::{ByNode, Evicted, LEASE_UNKNOWN, Operator, Sight};
pub use release::{RELEASE_LIMIT, ReleaseSpec, release_everywhere, releaser_main};

use crate::core::lease::{NodeId, Quorum};
use crate::core::request::{FromNode, NodeChange};
use crate::lock::{Ask, Claim, Identity, Inbox, KeeperId};
use link::Terms;
use node::{Node, Shared};
use registry::Registry;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Fixed for the life of the daemon.
#[derive(Clone, Debug)]
pub struct Settings {
    pub access: Access,
    /// How long a node that may have lost data does not vote; zero turns it off.
    pub restart_quarantine: Duration,
    pub identity: Identity,
}

/// Whether a node can be used, as `status` names it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NodeState {
    Connecting,
    Serving,
    /// Serves what is held, but takes no part in elections yet.
    Quarantined,
    /// Not reachable now.
    Down,
    /// Reachable, and not usable until somebody does something.
    Denied,
}

impl NodeState {
    pub fn name(self) -> &'static str {
        match self {
            NodeState::Connecting => "connecting",
            NodeState::Serving => "serving",
            NodeState::Quarantined => "quarantined",
            NodeState::Down => "down",
            NodeState::Denied => "denied",
        }
    }
}

/// One node, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeStatus {
    pub address: String,
    pub state: NodeState,
    pub reason: Option<String>,
    pub rtt: Option<Duration>,
    pub quarantine_remaining: Option<Duration>,
    /// Changes are pushed; without, keepers poll.
    pub tracking: bool,
    /// Requests and releases dropped for lack of room.
    pub dropped: u64,
}

impl NodeStatus {
    /// Of a node that has not been heard of.
    pub fn unheard(address: String) -> NodeStatus {
        NodeStatus {
            address,
            state: NodeState::Connecting,
            reason: None,
            rtt: None,
            quarantine_remaining: None,
            tracking: false,
            dropped: 0,
        }
    }
}

/// The nodes of a daemon. Lives on one thread, within a `LocalSet`; clones are handles to the same nodes.
#[derive(Clone, Debug)]
pub struct Nodes {
    nodes: Rc<[Rc<Node>]>,
    shared: Rc<Shared>,
    quorum: Quorum,
}

impl Nodes {
    /// Starts one task per node, which ends with `cancel`. Nothing that a node does or says ends it earlier.
    ///
    /// # Panics
    /// Outside of a `LocalSet`, without a node, or with more than 255: configuration refuses both.
    pub fn start(settings: Settings, cancel: &CancellationToken) -> Nodes {
        let quorum =
            Quorum::of(u8::try_from(settings.access.nodes.len()).expect("configuration allows 255 nodes"));
        let terms = Terms {
            nodes: u8::try_from(quorum.nodes()).expect("made of one"),
            quarantine: Cell::new(settings.restart_quarantine),
            identity: settings.identity,
        };
        let shared = Rc::new(Shared {
            terms,
            registry: RefCell::new(Registry::default()),
            runs: RefCell::new(vec![None; quorum.nodes()]),
        });
        let nodes: Rc<[Rc<Node>]> = quorum
            .ids()
            .zip(settings.access.nodes.iter().zip(settings.access.endpoints()))
            .map(|(id, (address, endpoint))| Node::new(id, &address.display, endpoint, Rc::clone(&shared)))
            .collect();
        for node in nodes.iter() {
            let run = Rc::clone(node).run();
            let cancel = cancel.clone();
            tokio::task::spawn_local(async move { cancel.run_until_cancelled(run).await });
        }
        Nodes { nodes, shared, quorum }
    }

    /// From now on `inbox` gets everything that concerns this keeper, beginning with the nodes that serve.
    ///
    /// Messages that do not fit are dropped and counted: give it room for a few messages per node.
    pub fn register(&self, claim: Claim, inbox: Inbox) -> KeeperId {
        let mut registry = self.shared.registry.borrow_mut();
        let keeper = registry.add(claim, inbox);
        for (id, _) in self.quorum.ids().zip(self.nodes.iter()).filter(|(_, node)| node.is_serving()) {
            registry.post(keeper, FromNode::Change { node: id, change: NodeChange::Serving });
        }
        keeper
    }

    /// Nothing more is sent to its inbox. Values that were asked to be released still are.
    pub fn unregister(&self, keeper: KeeperId) {
        self.shared.registry.borrow_mut().remove(keeper);
    }

    /// Sends one request to one node. Never blocks; the answer carries the ticket, and is `Silent` at once if the node does not serve.
    pub fn ask(&self, keeper: KeeperId, node: NodeId, ask: Ask) {
        if let Some(node) = self.nodes.get(usize::from(node.0)) {
            node.ask(keeper, ask);
        }
    }

    /// Whether this keeper holds a lease: while anybody does, nodes are reconnected without delay.
    pub fn hold(&self, keeper: KeeperId, held: bool) {
        self.shared.registry.borrow_mut().hold(keeper, held);
        if held {
            self.nodes.iter().for_each(|node| node.hurry.notify_waiters());
        }
    }

    /// For nodes that restart from now on. Never shorter: a lease that it was made for may still run, here or elsewhere.
    pub fn lengthen_quarantine(&self, wanted: Duration) {
        let quarantine = &self.shared.terms.quarantine;
        quarantine.set(quarantine.get().max(wanted));
    }

    pub fn quorum(&self) -> Quorum {
        self.quorum
    }

    pub fn status(&self) -> Vec<NodeStatus> {
        self.nodes.iter().map(|node| node.status()).collect()
    }

    /// All that was asked is answered, or given up.
    pub fn is_idle(&self) -> bool {
        self.nodes.iter().all(|node| node.is_idle())
    }

    /// Messages that found a keeper's inbox full.
    pub fn dropped_messages(&self) -> u64 {
        self.shared.registry.borrow().dropped()
    }
}
