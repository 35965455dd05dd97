//! A client of the control socket of the daemon on this host.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nix::unistd::{Gid, Group, Uid, User};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// Exit code: no daemon answers.
pub const EXIT_NOT_RUNNING: i32 = 3;
const TIMEOUT: Duration = Duration::from_secs(10);
/// Without a piece for this long, whoever listens may look whether anybody still listens to him.
const QUIET: Duration = Duration::from_secs(1);
/// 5,000 keepers with 20 runs each need about 25 MiB.
const ANSWER_MAX: usize = 64 * 1024 * 1024;
/// Of an answer that says no.
const REASON_MAX: usize = 64 * 1024;

/// Exit code: the daemon says no, or what it says makes no sense, or it was not done in time.
pub const EXIT_REFUSED: i32 = 1;

/// The exit code of a command that asks the daemon; what went wrong is said on stderr.
pub fn finish(outcome: Result<i32, Box<dyn std::error::Error>>) -> i32 {
    outcome.unwrap_or_else(|error| {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            // Whoever read us has read enough.
            return 0;
        }
        eprintln!("keeperd: {error}");
        match error.downcast_ref() {
            Some(ClientError::NotRunning { .. } | ClientError::Ended) => EXIT_NOT_RUNNING,
            Some(ClientError::Forbidden { .. } | ClientError::BadAnswer { .. }) | None => EXIT_REFUSED,
        }
    })
}

/// What the daemon said to a command.
#[derive(Debug)]
pub enum Verdict {
    Accepted,
    /// Nothing has changed; why.
    Refused(String),
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no keeperd answers on {}: {error}; is it running? (systemctl status keeperd)", path.display())]
    NotRunning { path: PathBuf, error: io::Error },
    #[error("{}: you may not talk to keeperd; {who} may", path.display())]
    Forbidden { path: PathBuf, who: String },
    #[error("keeperd did not answer properly on {}: {what}", path.display())]
    BadAnswer { path: PathBuf, what: String },
    #[error("keeperd has ended; once it runs again, the same command follows it")]
    Ended,
}

/// `GET path` on the control socket.
///
/// # Errors
/// When no daemon answers, or not with a 200.
pub async fn get(socket: &Path, path: &str) -> Result<Bytes, ClientError> {
    let bad = |what: String| ClientError::BadAnswer { path: socket.to_owned(), what };
    let work = async {
        let body = Limited::new(open(socket, path).await?, ANSWER_MAX).collect().await;
        Ok(body.map_err(|error| bad(error.to_string()))?.to_bytes())
    };
    tokio::time::timeout(TIMEOUT, work).await.unwrap_or_else(|_| Err(bad("no answer in 10 s".into())))
}

/// `POST path` on the control socket, for a command without a body.
///
/// # Errors
/// When no daemon answers, or it cannot take commands now.
pub async fn post(socket: &Path, path: &str) -> Result<Verdict, ClientError> {
    let bad = |what: String| ClientError::BadAnswer { path: socket.to_owned(), what };
    let work = async {
        let response = send(socket, Method::POST, path).await?;
        match response.status() {
            StatusCode::ACCEPTED => Ok(Verdict::Accepted),
            StatusCode::CONFLICT => Ok(Verdict::Refused(reason(response).await)),
            code => Err(bad(format!("{code}: {}", reason(response).await))),
        }
    };
    tokio::time::timeout(TIMEOUT, work).await.unwrap_or_else(|_| Err(bad("no answer in 10 s".into())))
}

/// `POST path` on the control socket: whatever is answered, within `timeout`.
///
/// # Errors
/// When no daemon answers, or not properly.
pub async fn ask(socket: &Path, path: &str, timeout: Duration) -> Result<(StatusCode, Bytes), ClientError> {
    let bad = |what: String| ClientError::BadAnswer { path: socket.to_owned(), what };
    let work = async {
        let response = send(socket, Method::POST, path).await?;
        let code = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        Ok((code, body.map_err(|error| bad(error.to_string()))?.to_bytes()))
    };
    tokio::time::timeout(timeout, work)
        .await
        .unwrap_or_else(|_| Err(bad(format!("no answer in {timeout:?}"))))
}

/// `GET path`, for an answer without end: `take` is given each piece, and an empty one now and then while there is none; it stops it by
/// an error.
///
/// # Errors
/// When no daemon answers, or not with a 200; [`ClientError::Ended`] when it ends. `Ok` holds the error of `take`.
pub async fn listen<E>(
    socket: &Path,
    path: &str,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<E, ClientError> {
    let bad = |what: &str| ClientError::BadAnswer { path: socket.to_owned(), what: what.to_owned() };
    let opened = tokio::time::timeout(TIMEOUT, open(socket, path)).await;
    let mut body = opened.unwrap_or_else(|_| Err(bad("no answer in 10 s")))?;
    loop {
        let piece = match tokio::time::timeout(QUIET, body.frame()).await {
            Err(_) => Bytes::new(),
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Ok(Some(Err(_)) | None) => return Err(ClientError::Ended),
        };
        if let Err(error) = take(&piece) {
            return Ok(error);
        }
    }
}

/// The body of an answer with 200.
async fn open(socket: &Path, path: &str) -> Result<Incoming, ClientError> {
    let response = send(socket, Method::GET, path).await?;
    let code = response.status();
    if code == StatusCode::OK {
        return Ok(response.into_body());
    }
    let what = format!("{code}: {}", reason(response).await);
    Err(ClientError::BadAnswer { path: socket.to_owned(), what })
}

async fn send(socket: &Path, method: Method, path: &str) -> Result<Response<Incoming>, ClientError> {
    let bad = |what: String| ClientError::BadAnswer { path: socket.to_owned(), what };
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        let path = socket.to_owned();
        if error.kind() == io::ErrorKind::PermissionDenied {
            ClientError::Forbidden { path, who: allowed(socket) }
        } else {
            ClientError::NotRunning { path, error }
        }
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| bad(error.to_string()))?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "localhost")
        .body(Empty::<Bytes>::new())
        .map_err(|error| bad(error.to_string()))?;
    sender.send_request(request).await.map_err(|error| bad(error.to_string()))
}

/// Who may connect to the socket.
fn allowed(socket: &Path) -> String {
    let Ok(owner) = std::fs::metadata(socket) else { return "root".to_owned() };
    let user = User::from_uid(Uid::from_raw(owner.uid())).ok().flatten();
    let group = Group::from_gid(Gid::from_raw(owner.gid())).ok().flatten();
    let user = user.map_or_else(|| owner.uid().to_string(), |user| user.name);
    let group = group.map_or_else(|| owner.gid().to_string(), |group| group.name);
    format!("root, user {user} and members of group {group}")
}

/// Of an answer that is no.
async fn reason(response: Response<Incoming>) -> String {
    let body = Limited::new(response.into_body(), REASON_MAX).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let why: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    why["error"].as_str().unwrap_or("no reason given").to_owned()
}
