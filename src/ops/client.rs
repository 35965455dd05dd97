//! A client of the control socket of the daemon on this host.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::io;
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

/// The exit code of a command that asks the daemon; what went wrong is said on stderr.
pub fn finish(outcome: Result<i32, Box<dyn std::error::Error>>) -> i32 {
    outcome.unwrap_or_else(|error| {
        eprintln!("keeperd: {error}");
        EXIT_NOT_RUNNING
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
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| ClientError::NotRunning { path: socket.to_owned(), error })?;
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

/// Of an answer that is no.
async fn reason(response: Response<Incoming>) -> String {
    let body = Limited::new(response.into_body(), REASON_MAX).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let why: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    why["error"].as_str().unwrap_or("no reason given").to_owned()
}
