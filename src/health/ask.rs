//! One question to a child or a host, and its answer: a command's exit code, an HTTP status, a connection.

use crate::config::{HttpTarget, Question, Socket};
use crate::errand::{Errand, Outcome};
use crate::guard::{ChildSpec, Exit, Output};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use nix::fcntl::{F_SETFL, OFlag, fcntl};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// As much of a command's last line is worth telling.
const LAST_LINE_MAX: usize = 200;
/// The pipes end with the errand's guard; a grandchild in state D may hold them.
const LAST_LINE_WAIT: Duration = Duration::from_millis(500);

/// Asks once, for at most `timeout` (a command: and the errand's grace). `place` is given back when nothing of it is left.
///
/// # Errors
/// What was answered instead, for people.
pub async fn ask(
    question: &Question,
    timeout: Duration,
    child: &Result<ChildSpec, String>,
    place: OwnedSemaphorePermit,
) -> Result<(), String> {
    let network = async {
        match question {
            Question::Command(argv) => run(argv, timeout, child.clone()?).await,
            Question::Tcp(socket) => connect(socket, place).await.map(drop),
            Question::Http(target) => get(target, place).await,
        }
    };
    match question {
        // It has its own limit, which is kept also for what it has started.
        Question::Command(_) => network.await,
        Question::Http(_) | Question::Tcp(_) => tokio::time::timeout(timeout, network)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {timeout:?}"))),
    }
}

async fn run(argv: &[String], timeout: Duration, mut spec: ChildSpec) -> Result<(), String> {
    // It may have to look at the child, and is no part of its tree.
    spec.pid_namespace = false;
    spec.argv = argv.iter().map(Into::into).collect();
    Arc::make_mut(&mut spec.env).push(("KEEPERD_KEEPER".into(), spec.keeper.clone().into()));
    let (tell, told) = oneshot::channel();
    let outcome = Errand { spec, timeout }
        .run(|Output { stdout, stderr }| {
            tokio::spawn(async move {
                let (out, err) = tokio::join!(last_line(stdout), last_line(stderr));
                let _ = tell.send(err.or(out));
            });
        })
        .await;
    if outcome == Outcome::Ended(Exit::Code(0)) {
        return Ok(());
    }
    let said = tokio::time::timeout(LAST_LINE_WAIT, told).await;
    match said.ok().and_then(Result::ok).flatten() {
        Some(line) => Err(format!("{outcome}: {line}")),
        None => Err(outcome.to_string()),
    }
}

/// Reads a pipe to its end and keeps the last line that says something.
async fn last_line(pipe: OwnedFd) -> Option<String> {
    fcntl(&pipe, F_SETFL(OFlag::O_NONBLOCK)).ok()?;
    let mut pipe = Receiver::from_owned_fd(pipe).ok()?;
    let mut tail = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        tail.extend_from_slice(&buffer[..read]);
        let surplus = tail.len().saturating_sub(LAST_LINE_MAX);
        tail.drain(..surplus);
    }
    let text = String::from_utf8_lossy(&tail);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

async fn connect(socket: &Socket, place: OwnedSemaphorePermit) -> Result<TcpStream, String> {
    let addresses = match socket.host.parse() {
        Ok(ip) => vec![SocketAddr::new(ip, socket.port)],
        // The resolver cannot be interrupted: it keeps the place until it has answered, so that a dead one does not fill the pool.
        Err(_) => {
            let (host, port) = (socket.host.clone(), socket.port);
            let found = tokio::spawn(async move {
                let _place = place;
                tokio::net::lookup_host((host, port)).await.map(Iterator::collect)
            });
            let found: io::Result<Vec<_>> = found.await.unwrap_or_else(|error| Err(error.into()));
            found.map_err(|error| error.to_string())?
        }
    };
    TcpStream::connect(addresses.as_slice()).await.map_err(|error| error.to_string())
}

async fn get(target: &HttpTarget, place: OwnedSemaphorePermit) -> Result<(), String> {
    let stream = connect(&target.socket, place).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let request = hyper::Request::get(&target.path_and_query)
        .header(hyper::header::HOST, target.socket.to_string())
        .header(hyper::header::USER_AGENT, concat!("keeperd/", env!("CARGO_PKG_VERSION")))
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = tokio::select! {
        answer = sender.send_request(request) => answer,
        // Ends without an answer only when the connection has.
        Err(error) = connection => Err(error),
    };
    let status = answer.map_err(|error| error.to_string())?.status();
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(format!("answered {status}")) }
}
