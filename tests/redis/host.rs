//! One host: nodes of its own and one keeper on them.

use super::server::Server;
use keeperd::clock;
use keeperd::core::lease::{FencingToken, NodeId, Value};
use keeperd::core::preference::{Bid, Priority};
use keeperd::core::request::{Answer, FromNode, NodeChange, Pause, Request, RoundId, Ticket};
use keeperd::core::time::Instant;
use keeperd::lock::redis::{Access, Address, Login, NodeState, Nodes, Pem, Settings};
use keeperd::lock::{Ask, Claim, Identity, KeeperId};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, channel};
use tokio_util::sync::{CancellationToken, DropGuard};

pub const KEY: &str = "redlock:oracle";
pub const SHADOW: &str = "keeperd:lease:{redlock:oracle}";
pub const FENCE: &str = "keeperd:fence:{redlock:oracle}";
pub const BID: &str = "keeperd:bid:{redlock:oracle}";
pub const TTL: Duration = Duration::from_secs(10);
/// Longer than anything takes, even on a busy machine.
pub const LONG: Duration = Duration::from_secs(30);

pub const ONE: NodeId = NodeId(0);

pub struct Host {
    pub nodes: Nodes,
    pub keeper: KeeperId,
    inbox: Receiver<Box<FromNode>>,
    touched: u32,
    /// What the last extension found.
    pub bid: Option<Bid>,
    pub pause: Option<Pause>,
    pub changes: Vec<(NodeId, NodeChange)>,
    round: u64,
    _end: DropGuard,
}

pub struct Options {
    pub quarantine: Duration,
    pub name: &'static str,
    pub node_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { quarantine: Duration::ZERO, name: "host-a", node_timeout: LONG }
    }
}

impl Host {
    /// Not yet connected.
    pub fn on(urls: &[String], options: &Options) -> Host {
        Host::through(plain(urls), options)
    }

    pub fn through(access: Access, options: &Options) -> Host {
        let cancel = CancellationToken::new();
        let identity = Identity { host: options.name.to_owned(), pid: 4711 };
        let settings = Settings { access, restart_quarantine: options.quarantine, identity };
        let nodes = Nodes::start(settings, &cancel);
        let (sender, inbox) = channel(64);
        let claim = Claim { key: KEY.to_owned(), ttl: TTL, node_timeout: options.node_timeout };
        let keeper = nodes.register(claim, sender);
        let _end = cancel.drop_guard();
        Host { nodes, keeper, inbox, touched: 0, bid: None, pause: None, changes: Vec::new(), round: 0, _end }
    }

    /// Connected, and voting without a quarantine.
    pub async fn serving(server: &Server, name: &'static str) -> Host {
        Host::with(server, Options { name, ..Options::default() }).await
    }

    pub async fn with(server: &Server, options: Options) -> Host {
        let mut host = Host::on(&[server.url()], &options);
        host.until_serving().await;
        host
    }

    fn note(&mut self, message: &FromNode) {
        match message {
            FromNode::Touched { .. } => self.touched += 1,
            FromNode::Change { node, change } => self.changes.push((*node, *change)),
            FromNode::Answer { .. } => {}
            FromNode::Paused { ticket, pause, .. } => {
                assert_eq!(ticket.round.0, self.round, "a pause comes before the answer it came with");
                self.pause = Some(pause.clone());
            }
            FromNode::Bid { ticket, bid, .. } => {
                assert_eq!(ticket.round.0, self.round, "a bid comes before the answer it came with");
                self.bid = Some(bid.clone());
            }
        }
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Host) -> bool) {
        let arrives = async {
            while !done(self) {
                let message = self.inbox.recv().await.expect("nodes live");
                self.note(&message);
            }
        };
        let outcome = tokio::time::timeout(LONG, arrives).await;
        assert!(outcome.is_ok(), "{what} does not happen: {:?}", self.nodes.status());
    }

    pub async fn until_serving(&mut self) {
        self.until("serving", |host| host.changes.last() == Some(&(ONE, NodeChange::Serving))).await;
    }

    pub async fn until_lost(&mut self) {
        self.until("loss", |host| host.changes.last() == Some(&(ONE, NodeChange::Lost))).await;
    }

    pub async fn until_touched(&mut self) {
        self.until("a touch", |host| host.touched > 0).await;
        self.touched = 0;
    }

    /// Whether anything was touched in a while.
    pub async fn touched_meanwhile(&mut self) -> bool {
        let _ = tokio::time::timeout(Duration::from_millis(150), async {
            while let Some(message) = self.inbox.recv().await {
                self.note(&message);
            }
        })
        .await;
        std::mem::take(&mut self.touched) > 0
    }

    pub async fn until_state(&mut self, state: NodeState) {
        let reached = async {
            while self.nodes.status()[0].state != state {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let outcome = tokio::time::timeout(LONG, reached).await;
        assert!(outcome.is_ok(), "never {state:?}: {:?}", self.nodes.status());
    }

    pub async fn ask(&mut self, request: Request) -> Answer {
        self.round += 1;
        self.bid = None;
        self.pause = None;
        let ticket = Ticket { round: RoundId(self.round), sent: clock::boot() };
        self.nodes.ask(self.keeper, ONE, Ask { ticket, request });
        let answered = async {
            loop {
                let message = self.inbox.recv().await.expect("nodes live");
                self.note(&message);
                if let FromNode::Answer { node, ticket: echoed, answer } = *message
                    && echoed.round == ticket.round
                {
                    assert_eq!((node, echoed), (ONE, ticket));
                    return answer;
                }
            }
        };
        tokio::time::timeout(LONG, answered).await.expect("every request is answered")
    }

    pub async fn look(&mut self) -> Answer {
        self.ask(Request::Look).await
    }

    pub async fn acquire(&mut self, value: u128, proposal: u64) -> Answer {
        self.ask(acquire(value, proposal)).await
    }

    pub async fn raise(&mut self, value: u128, token: u64) -> Answer {
        let (value, token) = (Value(value), FencingToken(token));
        self.ask(Request::Raise { value, token, deadline: soon() }).await
    }

    pub async fn extend(&mut self, value: u128, token: u64) -> Answer {
        let (value, token) = (Value(value), FencingToken(token));
        self.ask(Request::Extend { value, token, deadline: soon() }).await
    }

    pub async fn check(&mut self, value: u128) -> Answer {
        self.ask(Request::Check { value: Value(value) }).await
    }

    pub async fn repair(&mut self, value: u128, token: u64) -> Answer {
        let (value, token) = (Value(value), FencingToken(token));
        self.ask(Request::Repair { value, token, deadline: soon() }).await
    }

    pub async fn bid(&mut self, priority: i32) -> Answer {
        self.ask(Request::Bid { priority: Priority(priority) }).await
    }

    pub async fn release(&mut self, value: u128) -> Answer {
        self.ask(Request::Release { value: Value(value) }).await
    }
}

/// Nodes that need no more than their URL says.
pub fn plain(urls: &[String]) -> Access {
    let node = |url: &String| Address { display: url.clone(), url: url.clone(), tls: false };
    Access { nodes: urls.iter().map(node).collect(), login: Login::default(), pem: Pem::default() }
}

pub fn acquire(value: u128, proposal: u64) -> Request {
    Request::Acquire { value: Value(value), proposal: FencingToken(proposal), deadline: soon() }
}

pub fn soon() -> Instant {
    clock::boot() + LONG
}

pub fn past() -> Instant {
    // What a node's clock is, is known to the round trip in which it was read.
    clock::boot() - LONG
}
