//! The way to one node: name, socket, TLS, login.

use super::access::{Access, Address, Login};
use super::names::Names;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    RedisConnectionInfo, RedisError, Value,
};
use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, AlertDescription, CertificateError, ClientConfig};
use tokio_util::task::AbortOnDropHandle;

/// Unacknowledged bytes and silent peers end a TCP connection after this.
const DEAD_PEER: Duration = Duration::from_secs(5);
/// No answer to AUTH is longer.
const LOGIN_REPLY_MAX: u64 = 1024;

/// A node as it is connected to. Holds secrets and shows none.
#[derive(Clone)]
pub struct Endpoint {
    place: Place,
    /// With the login, and the database.
    redis: RedisConnectionInfo,
}

#[derive(Clone)]
enum Place {
    Tcp { host: String, port: u16, names: Names, tls: Option<Tls> },
    Unix(PathBuf),
}

#[derive(Clone)]
struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp { host, port, tls, .. } => write!(f, "{host}:{port}, tls {}", tls.is_some()),
            Place::Unix(path) => path.fmt(f),
        }
    }
}

/// A connection; dropped, it is closed whatever is under way.
#[derive(Debug)]
pub struct Connected {
    pub con: MultiplexedConnection,
    _driver: AbortOnDropHandle<()>,
}

impl Access {
    /// One for each node, in order; an error is for people and holds no secret.
    pub fn endpoints(&self) -> Vec<Result<Endpoint, String>> {
        let wanted = self.nodes.iter().any(|node| node.tls);
        let config = wanted
            .then(|| self.pem.client_config().map_err(|error| format!("TLS: {:?} {error}", error.part)));
        self.nodes.iter().map(|node| Endpoint::new(node, &self.login, config.as_ref())).collect()
    }
}

impl Endpoint {
    fn new(
        address: &Address,
        login: &Login,
        tls: Option<&Result<Arc<ClientConfig>, String>>,
    ) -> Result<Endpoint, String> {
        let info = address
            .url
            .as_str()
            .into_connection_info()
            .map_err(|error| format!("not a usable Redis address: {error}"))?;
        let mut redis = info.redis_settings().clone().set_skip_set_lib_name();
        // A URL with a password is complete: without a user it means the default one.
        if redis.password().is_none() {
            if let Some(username) = login.username.as_ref().filter(|_| redis.username().is_none()) {
                redis = redis.set_username(username);
            }
            if let Some(password) = &login.password {
                redis = redis.set_password(password);
            }
        }
        let place = match info.addr() {
            ConnectionAddr::Unix(path) => Place::Unix(path.clone()),
            ConnectionAddr::Tcp(host, port) => {
                let tls = match tls.filter(|_| address.tls) {
                    None => None,
                    Some(config) => {
                        let name = ServerName::try_from(host.clone())
                            .map_err(|_| "its host cannot be in a certificate".to_owned())?;
                        Some(Tls { config: config.clone()?, name })
                    }
                };
                Place::Tcp { host: host.clone(), port: *port, names: Names::default(), tls }
            }
            ConnectionAddr::TcpTls { .. } | _ => return Err("not a usable Redis address".to_owned()),
        };
        Ok(Endpoint { place, redis })
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self.place, Place::Tcp { tls: Some(_), .. })
    }

    /// Connects and logs in, within `limit` in all. Of `config`, what concerns an open connection.
    pub async fn connect(
        &self,
        protocol: ProtocolVersion,
        config: AsyncConnectionConfig,
        limit: Duration,
    ) -> Result<Connected, RedisError> {
        let connect = async {
            match &self.place {
                Place::Unix(path) => self.greet(UnixStream::connect(path).await?, protocol, config).await,
                Place::Tcp { host, port, names, tls } => {
                    let stream = dial(names.addresses(host, *port).await?).await?;
                    match tls {
                        None => self.greet(stream, protocol, config).await,
                        Some(Tls { config: tls, name }) => {
                            let connector = TlsConnector::from(Arc::clone(tls));
                            let stream = connector.connect(name.clone(), stream).await?;
                            self.greet(stream, protocol, config).await
                        }
                    }
                }
            }
        };
        match tokio::time::timeout(limit, connect).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        }
    }

    async fn greet<S>(
        &self,
        mut stream: S,
        protocol: ProtocolVersion,
        config: AsyncConnectionConfig,
    ) -> Result<Connected, RedisError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if let Some(password) = self.redis.password() {
            log_in(&mut stream, self.redis.username(), password).await?;
        }
        let known = RedisConnectionInfo::default().set_db(self.redis.db()).set_protocol(protocol);
        let known = known.set_skip_set_lib_name();
        let (con, driver) = MultiplexedConnection::new_with_config(&known, stream, config).await?;
        Ok(Connected { con, _driver: AbortOnDropHandle::new(tokio::spawn(driver)) })
    }
}

/// The first of all its addresses that answers.
async fn dial(addresses: Vec<SocketAddr>) -> Result<TcpStream, io::Error> {
    let mut calls: JoinSet<_> = addresses.into_iter().map(TcpStream::connect).collect();
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    while let Some(call) = calls.join_next().await {
        match call.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(stream) => {
                let socket = SockRef::from(&stream);
                let probes = TcpKeepalive::new().with_time(DEAD_PEER).with_interval(Duration::from_secs(2));
                socket.set_tcp_keepalive(&probes.with_retries(3))?;
                socket.set_tcp_user_timeout(Some(DEAD_PEER))?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// By hand, because redis-rs does not tell what the server had against it.
async fn log_in<S>(stream: &mut S, username: Option<&str>, password: &str) -> Result<(), RedisError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut auth = redis::cmd("AUTH");
    stream.write_all(&auth.arg(username).arg(password).get_packed_command()).await?;
    stream.flush().await?;
    let mut reply = Vec::new();
    // Nothing else was asked, so nothing comes after the line.
    let mut bytes = stream.take(LOGIN_REPLY_MAX);
    while reply.last() != Some(&b'\n') {
        if bytes.read_buf(&mut reply).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
    if let Value::ServerError(error) = redis::parse_redis_value(&reply)? {
        let error = RedisError::from(error);
        let said = [error.code().unwrap_or_default(), error.detail().unwrap_or_default()].join(" ");
        return Err((ErrorKind::AuthenticationFailed, "AUTH refused", said).into());
    }
    Ok(())
}

/// What TLS has against it, where it is that: only a person can do something then.
pub(super) fn tls_trouble(error: &RedisError) -> Option<String> {
    use rustls::Error as Tls;
    // redis-rs hands its own Arc on as the source.
    let source = error.source()?.downcast_ref::<Arc<dyn Error + Send + Sync>>()?;
    let cause = source.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref::<Tls>()?;
    Some(if let Tls::InvalidCertificate(CertificateError::UnknownIssuer) = cause {
        "its certificate is signed by a CA that is not trusted (UnknownIssuer): name it with ca in [lock] tls"
            .to_owned()
    } else if let Tls::AlertReceived(AlertDescription::CertificateRequired) = cause {
        "it wants a client certificate: set cert and key in [lock] tls".to_owned()
    } else if let Tls::AlertReceived(alert) = cause {
        format!("it refuses our side of TLS ({alert:?}): check cert and key in [lock] tls")
    } else if let Tls::InvalidMessage(_) = cause {
        "it does not speak TLS: write redis://, or the port that does".to_owned()
    } else {
        cause.to_string()
    })
}
