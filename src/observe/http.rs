//! HTTP: binding the control socket and the port, and their connections. What is answered stands in `api` and `web`.

use super::api::Answer;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, listen, socket};
use std::fs::{File, Permissions, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Connections at a time; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 32;
const BACKLOG: i32 = 128;
/// Its owner and group may connect, which takes the right to write.
const MODE: u32 = 0o660;
/// A daemon that starts beside us needs the path for microseconds.
const TURN_TRIES: u32 = 200;
const TURN_EVERY: Duration = Duration::from_millis(10);
/// A client that does not finish its request in this time is sent away.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// For the answer that is on its way when a connection has lasted long enough.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a request line and its headers together; more is answered with 431.
const HEADERS_MAX_BYTES: usize = 16 * 1024;
/// While the port is taken, or its address is not there yet.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);

/// What a control socket can be: ours, or taken by a living daemon.
#[derive(Debug)]
pub enum Bound {
    Ours(UnixListener, OwnSocket),
    /// Another keeperd answers there; its pid, if it tells.
    Taken(Option<u32>),
}

/// The file of a control socket that this process has bound.
#[derive(Debug)]
pub struct OwnSocket {
    path: PathBuf,
    inode: (u64, u64),
}

impl OwnSocket {
    /// Takes the file away, unless somebody has put another in its place.
    pub fn remove(&self) {
        if inode(&self.path).is_ok_and(|now| now == self.inode) {
            // A leftover is replaced at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Binds the control socket, mode 0660, replacing one that nobody answers. Two daemons that start together do not take it from
/// each other.
///
/// # Errors
/// When the path cannot be used; a file there that is no socket is left alone.
pub async fn bind(path: &Path) -> io::Result<Bound> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)?;
    let folder = File::open(folder)?;
    for _ in 0..TURN_TRIES {
        match folder.try_lock() {
            Ok(()) => return bind_in_turn(path).await,
            Err(TryLockError::WouldBlock) => tokio::time::sleep(TURN_EVERY).await,
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "its folder is locked by another process (flock)"))
}

/// Nobody else that starts here looks at the path at the same time.
async fn bind_in_turn(path: &Path) -> io::Result<Bound> {
    match UnixStream::connect(path).await {
        Ok(stream) => {
            let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
            return Ok(Bound::Taken(pid.and_then(|pid| u32::try_from(pid).ok())));
        }
        // Its queue is full: busy, and alive.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Bound::Taken(None)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => remove_stale(path)?,
        Err(error) => return Err(error),
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    // Before anybody can connect. Not by umask, which belongs to all threads and to the guards.
    std::fs::set_permissions(path, Permissions::from_mode(MODE))?;
    let own = OwnSocket { path: path.to_owned(), inode: inode(path)? };
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(Bound::Ours(UnixListener::from_std(socket.into())?, own))
}

/// A refused connection is what a file of another kind gives, too.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "a file that is no socket stands there; name another path in [control] socket",
        ));
    }
    std::fs::remove_file(path)
}

/// Where connections come from.
pub trait Listener {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn connection(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn connection(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn connection(&self) -> io::Result<Self::Stream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Serves `address` until dropped. One that cannot be had costs what is shown there, not the keepers.
pub async fn listen_and_serve<R>(
    address: SocketAddr,
    respond: impl Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
) where
    R: Future<Output = Response<Answer>> + Send,
{
    let mut told = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if !told => {
                tracing::warn!(%address, %error, "no metrics and no page: [http] listen cannot be had; it is tried again");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    };
    let address = listener.local_addr().unwrap_or(address);
    tracing::info!(%address, "metrics and page are served");
    serve(listener, respond).await;
}

/// Serves until dropped.
pub async fn serve<R>(
    listener: impl Listener,
    respond: impl Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
) where
    R: Future<Output = Response<Answer>> + Send,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.connection().await {
            Ok(stream) => {
                let respond = respond.clone();
                tokio::spawn(async move {
                    let _place = place;
                    attend(stream, respond).await;
                });
            }
            Err(error) => {
                // Out of descriptors: wait for some to come back.
                tracing::warn!(%error, "no connection can be accepted");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// One connection, to its end.
async fn attend<R>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    respond: impl Fn(Request<Incoming>) -> R + Clone + Send + Sync,
) where
    R: Future<Output = Response<Answer>> + Send,
{
    let follows = AtomicBool::new(false);
    let service = service_fn(|request| {
        let response = respond(request);
        let follows = &follows;
        async move {
            let response = response.await;
            follows.fetch_or(response.body().is_endless(), Ordering::Relaxed);
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADERS_MAX_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // A client that goes away in the middle is its own affair; one that follows may stay.
    while tokio::time::timeout(CONNECTION_TIMEOUT, connection.as_mut()).await.is_err() {
        if follows.load(Ordering::Relaxed) {
            continue;
        }
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(LAST_ANSWER_TIMEOUT, connection.as_mut()).await;
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    }

    /// A socket file that nobody listens on any more.
    fn leave_stale(path: &Path) {
        // Never one that listens: a process that another test forks meanwhile would hold it open for a moment.
        let kind = SockFlag::SOCK_CLOEXEC;
        let stale = socket(AddressFamily::Unix, SockType::Stream, kind, None).expect("a socket");
        nix::sys::socket::bind(stale.as_raw_fd(), &UnixAddr::new(path).expect("a short path"))
            .expect("a free path");
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("precious");
        std::fs::write(&path, "data").expect("our folder");
        let error = runtime().block_on(bind(&path)).expect_err("it is taken");
        assert!(error.to_string().contains("no socket"), "{error}");
        assert_eq!(std::fs::read(&path).expect("still there"), b"data");
    }

    #[test]
    fn owner_and_group_may_connect_whatever_the_umask() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keeperd.sock");
        leave_stale(&path);
        let bound = runtime().block_on(bind(&path)).expect("it is free");
        assert!(matches!(bound, Bound::Ours(..)));
        let mode = std::fs::metadata(&path).expect("bound").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
    }

    #[test]
    fn a_daemon_too_busy_to_accept_keeps_its_socket() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keeperd.sock");
        let kind = SockFlag::SOCK_NONBLOCK;
        let busy = socket(AddressFamily::Unix, SockType::Stream, kind, None).expect("a socket");
        let address = UnixAddr::new(&path).expect("a short path");
        nix::sys::socket::bind(busy.as_raw_fd(), &address).expect("a free path");
        listen(&busy, Backlog::new(1).expect("a size")).expect("a bound socket");
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let client = socket(AddressFamily::Unix, SockType::Stream, kind, None).expect("a socket");
                (nix::sys::socket::connect(client.as_raw_fd(), &address), client)
            })
            .collect();
        assert!(waiting.iter().any(|(connected, _)| connected.is_err()), "its queue is full");
        let before = inode(&path).expect("there");
        assert!(matches!(runtime().block_on(bind(&path)), Ok(Bound::Taken(_))));
        assert_eq!(inode(&path).expect("still there"), before);
    }

    #[test]
    fn of_daemons_that_start_together_one_gets_the_socket() {
        const DAEMONS: usize = 8;
        for _ in 0..30 {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("keeperd.sock");
            leave_stale(&path);
            let together = std::sync::Barrier::new(DAEMONS);
            let one = || {
                let runtime = runtime();
                together.wait();
                let bound = runtime.block_on(bind(&path));
                // None ends before all have looked.
                together.wait();
                bound.map(|bound| matches!(bound, Bound::Ours(..))).map_err(|error| error.to_string())
            };
            let mut ours: Vec<_> = std::thread::scope(|scope| {
                let all: Vec<_> = (0..DAEMONS).map(|_| scope.spawn(one)).collect();
                all.into_iter().map(|daemon| daemon.join().expect("no panic")).collect()
            });
            ours.sort();
            let one_of_all = [vec![Ok(false); DAEMONS - 1], vec![Ok(true)]].concat();
            assert_eq!(ours, one_of_all);
        }
    }

    #[test]
    fn only_the_own_socket_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keeperd.sock");
        let runtime = runtime();
        let Ok(Bound::Ours(_listener, own)) = runtime.block_on(bind(&path)) else { panic!("it is free") };
        std::fs::rename(&path, folder.path().join("aside")).expect("our folder");
        leave_stale(&path);
        own.remove();
        assert!(path.exists(), "it belongs to somebody else");
        std::fs::rename(folder.path().join("aside"), &path).expect("our folder");
        own.remove();
        assert!(!path.exists());
    }
}
