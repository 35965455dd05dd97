//! One operation at a time on three nodes: keeperd's own node actors, and under them the floor, a bare PING. Also part of the
//! end-to-end suite, which checks the ratio of the two.

use keeperd::clock;
use keeperd::core::lease::{FencingToken, NodeId, Value};
use keeperd::core::request::{
    AcquireAnswer, Answer, ExtendAnswer, FromNode, NodeChange, Request, RoundId, Ticket,
};
use keeperd::lock::redis::{Access, Address, Connected, Login, Nodes, Pem, Settings};
use keeperd::lock::{Ask, Claim, Identity, KeeperId};
use redis::{AsyncConnectionConfig, ProtocolVersion};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Receiver, channel};
use tokio_util::sync::{CancellationToken, DropGuard};

const KEY: &str = "redlock:bench";
const TTL: Duration = Duration::from_secs(30);
/// What the daemon takes for this ttl.
const NODE_TIMEOUT: Duration = Duration::from_millis(500);

pub fn access(ports: &[u16]) -> Access {
    let node = |port: &u16| {
        let url = format!("redis://127.0.0.1:{port}/");
        Address { display: url.clone(), url, tls: false }
    };
    Access { nodes: ports.iter().map(node).collect(), login: Login::default(), pem: Pem::default() }
}

fn ns(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Connections made as the daemon makes its own, and nothing above them.
#[derive(Debug)]
pub struct Floor {
    connections: Vec<Connected>,
}

type Ping = Pin<Box<dyn Future<Output = ()>>>;

impl Floor {
    pub async fn connect(ports: &[u16]) -> Floor {
        let mut connections = Vec::new();
        for endpoint in access(ports).endpoints() {
            let endpoint = endpoint.expect("a plain address");
            let config =
                AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(256);
            let connected = endpoint.connect(ProtocolVersion::RESP3, config, Duration::from_secs(5)).await;
            connections.push(connected.expect("a node that serves"));
        }
        Floor { connections }
    }

    /// How long a quorum took, in ns. Returns when all of `serving` nodes, the first ones, have answered.
    pub async fn ping(&self, serving: usize) -> u64 {
        let ping = |connected: &Connected| -> Ping {
            let mut con = connected.con.clone();
            Box::pin(async move { redis::cmd("PING").exec_async(&mut con).await.expect("PONG") })
        };
        let began = Instant::now();
        let mut pings: Vec<Ping> = self.connections[..serving].iter().map(ping).collect();
        let quorum = self.connections.len() / 2 + 1;
        let mut taken = None;
        poll_fn(|context| {
            pings.retain_mut(|ping| ping.as_mut().poll(context).is_pending());
            if serving - pings.len() >= quorum {
                taken.get_or_insert_with(|| ns(began));
            }
            if pings.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        taken.expect("a quorum serves")
    }
}

/// The daemon's side of the lock, with the keeper's decisions left out.
#[derive(Debug)]
pub struct Lock {
    nodes: Nodes,
    keeper: KeeperId,
    inbox: Receiver<Box<FromNode>>,
    terms: u64,
    rounds: u64,
    _end: DropGuard,
}

/// How long the three operations of one term took, in ns.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    pub acquire: u64,
    pub extend: u64,
    pub release: u64,
}

impl Lock {
    /// Connected to all nodes, which vote at once.
    pub async fn connect(ports: &[u16]) -> Lock {
        let cancel = CancellationToken::new();
        let identity = Identity { host: "bench".to_owned(), pid: std::process::id() };
        let settings = Settings { access: access(ports), restart_quarantine: Duration::ZERO, identity };
        let nodes = Nodes::start(settings, &cancel);
        let (sender, inbox) = channel(64);
        let claim = Claim { key: KEY.to_owned(), ttl: TTL, node_timeout: NODE_TIMEOUT };
        let keeper = nodes.register(claim, sender);
        nodes.hold(keeper, true);
        let mut lock = Lock { nodes, keeper, inbox, terms: 0, rounds: 0, _end: cancel.drop_guard() };
        lock.until_serving(ports.len()).await;
        lock
    }

    /// Waits until so many nodes serve again.
    async fn until_serving(&mut self, mut missing: usize) {
        while missing > 0 {
            if let FromNode::Change { change: NodeChange::Serving, .. } =
                *self.inbox.recv().await.expect("nodes live")
            {
                missing -= 1;
            }
        }
    }

    pub async fn until_all_serve(&mut self) {
        while self.nodes.status().iter().any(|node| node.state.name() != "serving") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// One whole term. After each operation the first `serving` nodes are waited for, and then pinged, so that the next one begins on
    /// idle connections: those times go into `pings`.
    pub async fn term(&mut self, floor: &Floor, serving: usize, pings: &mut Vec<u64>) -> Taken {
        self.terms += 1;
        let value = Value((u128::from(std::process::id()) << 64) | u128::from(self.terms));
        let deadline = clock::boot() + Duration::from_secs(5);
        let proposal = FencingToken(self.terms);
        let mut token = proposal;
        let acquire = self.round(serving, Request::Acquire { value, proposal, deadline }, |answer| {
            let Answer::Acquire(AcquireAnswer::Granted { token: granted }) = answer else { return false };
            token = token.max(*granted);
            true
        });
        let acquire = acquire.await;
        pings.push(floor.ping(serving).await);
        let is_ok = |answer: &Answer| *answer == Answer::Extend(ExtendAnswer::Ok);
        let extend = self.round(serving, Request::Extend { value, token, deadline }, is_ok).await;
        pings.push(floor.ping(serving).await);
        let is_released = |answer: &Answer| *answer == Answer::Released;
        let release = self.round(serving, Request::Release { value }, is_released).await;
        pings.push(floor.ping(serving).await);
        Taken { acquire, extend, release }
    }

    /// From before the first byte is sent until a quorum has said yes.
    async fn round(&mut self, serving: usize, request: Request, mut yes: impl FnMut(&Answer) -> bool) -> u64 {
        self.rounds += 1;
        let began = Instant::now();
        let ticket = Ticket { round: RoundId(self.rounds), sent: clock::boot() };
        let quorum = self.nodes.quorum();
        for id in quorum.ids() {
            self.nodes.ask(self.keeper, id, Ask { ticket, request: request.clone() });
        }
        let (mut votes, mut answers, mut taken) = (0, 0, None);
        while answers < serving {
            let message = self.inbox.recv().await.expect("nodes live");
            let FromNode::Answer { node: NodeId(node), ticket: echoed, answer } = *message else { continue };
            if echoed != ticket || usize::from(node) >= serving {
                continue;
            }
            answers += 1;
            assert!(yes(&answer), "{request:?} is answered {answer:?}");
            votes += 1;
            if votes == quorum.size() {
                taken = Some(ns(began));
            }
        }
        taken.expect("a quorum serves")
    }
}
