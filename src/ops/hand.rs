//! One lock on all nodes, for commands that reach past the daemon of this host.

use super::client::EXIT_REFUSED;
use crate::config::{Config, LockConfig};
use crate::core::request::Held;
use crate::lock::redis::{ByNode, Operator, Sight};
use crate::observe::plain::plain;
use tokio::runtime::Runtime;

/// The nodes, and a lock on them.
#[derive(Debug)]
pub struct Hand {
    pub runtime: Runtime,
    pub operator: Operator,
    addresses: Vec<String>,
}

/// The exit code of a command on a lock; what went wrong is said on stderr.
pub fn finish(outcome: Result<i32, Box<dyn std::error::Error>>) -> i32 {
    outcome.unwrap_or_else(|error| {
        eprintln!("keeperd: {error}");
        EXIT_REFUSED
    })
}

/// The lock of the keeper of that name, or the lock of that name that a keeper has.
pub fn configured_lock<'a>(config: &'a Config, name: &str) -> Option<&'a str> {
    let keepers = || config.keepers.iter();
    let found =
        keepers().find(|keeper| keeper.name == name).or_else(|| keepers().find(|keeper| keeper.lock == name));
    found.map(|keeper| keeper.lock.as_str())
}

impl Hand {
    /// `lock` is its name without the key prefix.
    ///
    /// # Errors
    /// With the local engine, where there are no nodes.
    pub fn open(config: &Config, lock: &str) -> Result<Hand, Box<dyn std::error::Error>> {
        let LockConfig::Redis(redis) = &config.lock else {
            return Err("engine = \"local\" has no other hosts: the commands without --everywhere do all there is to do".into());
        };
        let access = redis.access();
        Ok(Hand {
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            addresses: access.nodes.iter().map(|node| node.display.clone()).collect(),
            operator: Operator::new(&access, &format!("{}{lock}", redis.key_prefix)),
        })
    }

    pub fn look(&mut self) -> ByNode<Sight> {
        self.runtime.block_on(self.operator.look())
    }

    pub fn quorum(&self) -> usize {
        self.addresses.len() / 2 + 1
    }

    /// What each node said, with its address as people see it.
    pub fn by_address<'a, T>(
        &'a self,
        answers: &'a ByNode<T>,
    ) -> impl Iterator<Item = (&'a str, Result<&'a T, &'a str>)> {
        let answers = answers.iter().map(|answer| answer.as_ref().map_err(String::as_str));
        self.addresses.iter().map(String::as_str).zip(answers)
    }

    /// Says on stderr which nodes could not be asked, and whether the others are enough.
    pub fn is_heard<T>(&self, answers: &ByNode<T>, so: &str) -> bool {
        for (address, answer) in self.by_address(answers) {
            if let Err(why) = answer {
                eprintln!("keeperd: {address}: {}", plain(why));
            }
        }
        let (heard, nodes) = (answers.iter().flatten().count(), answers.len());
        if heard < self.quorum() {
            eprintln!("keeperd: {heard} of {nodes} nodes answer, and {} are needed: {so}", self.quorum());
        }
        heard >= self.quorum()
    }
}

/// Nobody has the lock, on so many nodes that others could be elected.
pub fn is_free(sights: &ByNode<Sight>, quorum: usize) -> bool {
    sights.iter().flatten().filter(|sight| sight.held.is_none()).count() >= quorum
}

/// Who a quorum of nodes says it is.
pub fn holder(sights: &ByNode<Sight>, quorum: usize) -> Option<&Held> {
    let held = || sights.iter().flatten().filter_map(|sight| sight.held.as_ref());
    held().find(|one| held().filter(|other| other.value == one.value).count() >= quorum)
}

/// As an operator reads it.
pub fn say_holder(held: &Held) -> String {
    match &held.holder {
        Some(holder) if !holder.host.is_empty() => {
            format!("{} (keeperd's pid {})", plain(&holder.host), holder.pid)
        }
        Some(_) => "a keeperd".to_owned(),
        None => "a client that is not keeperd".to_owned(),
    }
}
