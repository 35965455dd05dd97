//! The lock engines: how the core's requests reach the nodes.

use crate::core::request::{FromNode, Request, Ticket};
use std::time::Duration;
use tokio::sync::mpsc;

mod engine;
pub mod local;
pub mod redis;

pub use engine::Engine;
pub use redis::{NodeState, NodeStatus};

/// A keeper registered with an engine, by its place in registration order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeeperId(pub u32);

impl KeeperId {
    /// Its place in the daemon's [`Spread`](crate::core::spread::Spread).
    pub fn place(self) -> usize {
        self.0 as usize
    }
}

/// Where a keeper hears of its nodes. In boxes: the queue itself has room for dozens of messages, and seldom one in it.
pub type Inbox = mpsc::Sender<Box<FromNode>>;

/// What an engine must know of a keeper, fixed for the keeper's life.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The whole lock key: prefix + lock name.
    pub key: String,
    pub ttl: Duration,
    pub node_timeout: Duration,
}

/// This daemon, as it shows itself to other hosts in the fence.
#[derive(Clone, Debug)]
pub struct Identity {
    pub host: String,
    pub pid: u32,
}

/// One request on its way to one node.
#[derive(Clone, Debug)]
pub struct Ask {
    pub ticket: Ticket,
    pub request: Request,
}
