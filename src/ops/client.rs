//! A client of the control socket of the daemon on this host.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// Exit code: no daemon answers.
pub const EXIT_NOT_RUNNING: i32 = 3;
const TIMEOUT: Duration = Duration::from_secs(10);
/// 5,000 keepers with 20 runs each need about 25 MiB.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no keeperd answers on {}: {error}; is it running? (systemctl status keeperd)", path.display())]
    NotRunning { path: PathBuf, error: io::Error },
    #[error("keeperd did not answer properly on {}: {what}", path.display())]
    BadAnswer { path: PathBuf, what: String },
}

/// `GET path` on the control socket.
///
/// # Errors
/// When no daemon answers, or not with a 200.
pub async fn get(socket: &Path, path: &str) -> Result<Bytes, ClientError> {
    let bad = |what: String| ClientError::BadAnswer { path: socket.to_owned(), what };
    let work = async {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|error| ClientError::NotRunning { path: socket.to_owned(), error })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| bad(error.to_string()))?;
        tokio::spawn(connection);
        let request = Request::get(path)
            .header(hyper::header::HOST, "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(|error| bad(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| bad(error.to_string()))?;
        let code = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|error| bad(error.to_string()))?.to_bytes();
        if code == StatusCode::OK { Ok(body) } else { Err(bad(format!("{code}"))) }
    };
    tokio::time::timeout(TIMEOUT, work).await.unwrap_or_else(|_| Err(bad("no answer in 10 s".into())))
}
