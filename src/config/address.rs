//! Where a Redis node is, and what to log in with. The secret leaves this type through [`NodeAddress::url`] only.

use redis::IntoConnectionInfo;
use std::fmt;
use std::net::Ipv6Addr;

const PORT: u16 = 6379;
/// `sun_path` of Linux, less its terminating NUL.
pub const SOCKET_PATH_MAX: usize = 107;

/// A Redis node as the operator wrote it.
///
/// `host`, `host:port`, `[v6]:port`, `redis[s]://[user[:password]@]host[:port][/db]`, or `unix:///path`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NodeAddress {
    shown: String,
    url: String,
    /// The server without login and database: two databases of one server are one node.
    server: String,
    has_password: bool,
    has_user: bool,
    tls: bool,
}

/// Why a text is no node address. Never quotes it, for it may hold a secret.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadAddress(String);

fn bad<T>(why: impl Into<String>) -> Result<T, BadAddress> {
    Err(BadAddress(why.into()))
}

impl NodeAddress {
    /// # Errors
    /// When it is in none of the forms above.
    pub fn parse(text: &str) -> Result<Self, BadAddress> {
        if text.is_empty() {
            return bad("is empty; write host:port");
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return bad("must not contain spaces or control characters");
        }
        let address = match text.split_once("://") {
            None => bare(text),
            Some((scheme @ ("redis" | "rediss"), rest)) => redis_url(scheme, rest),
            Some(("unix", path)) => unix(path),
            Some(_) => {
                bad("has an unknown scheme; use host:port, redis:// or rediss://host:port, or unix:///path")
            }
        }?;
        // What the client library refuses must be told now, not at the first connection.
        match address.url.as_str().into_connection_info() {
            Ok(_) => Ok(address),
            Err(error) => bad(format!("cannot be used: {error}")),
        }
    }

    /// For the connection, with the secret; `redis://` also where [`NodeAddress::is_tls`]. Never to be shown.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The password must come from elsewhere.
    pub fn lacks_password(&self) -> bool {
        self.has_user && !self.has_password
    }

    pub fn has_password(&self) -> bool {
        self.has_password
    }

    /// Whether both name the same server, whatever the login and the database.
    pub fn same_server(&self, other: &NodeAddress) -> bool {
        self.server == other.server
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeAddress({self})")
    }
}

fn bare(text: &str) -> Result<NodeAddress, BadAddress> {
    if text.contains('@') {
        return bad("has a login; write it as redis://user:password@host:port");
    }
    let (host, port) = host_and_port(text)?;
    Ok(NodeAddress {
        shown: text.to_owned(),
        url: format!("redis://{host}:{port}/"),
        server: format!("{}:{port}", host.to_ascii_lowercase()),
        has_password: false,
        has_user: false,
        tls: false,
    })
}

fn redis_url(scheme: &str, rest: &str) -> Result<NodeAddress, BadAddress> {
    if rest.contains(['?', '#']) {
        return bad("must be redis://user:password@host:port/db; write ? and # in a password as %3F and %23");
    }
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    if database.contains('@') {
        return bad("has a / in its password; write it as %2F");
    }
    if database.len() > 5 || !database.bytes().all(|b| b.is_ascii_digit()) {
        return bad("must end in a database number, as in redis://host:6379/0");
    }
    let (login, masked, target) = match authority.rsplit_once('@') {
        None => (String::new(), String::new(), authority),
        Some((login, target)) => match login.split_once(':') {
            Some((user, password)) if !password.is_empty() => {
                (format!("{login}@"), format!("{user}:***@"), target)
            }
            Some(_) => return bad("has an empty password; write redis://user:password@host:port"),
            None if login.is_empty() => return bad("has an empty login; leave out the @"),
            // Hidden, for it is often a password in the place of the user.
            None => (format!("{login}@"), "***@".to_owned(), target),
        },
    };
    let (host, port) = host_and_port(target)?;
    let path = if rest.contains('/') { format!("/{database}") } else { String::new() };
    Ok(NodeAddress {
        shown: format!("{scheme}://{masked}{target}{path}"),
        url: format!("redis://{login}{host}:{port}/{database}"),
        server: format!("{}:{port}", host.to_ascii_lowercase()),
        has_password: login.contains(':'),
        has_user: !login.is_empty(),
        tls: scheme == "rediss",
    })
}

fn unix(path: &str) -> Result<NodeAddress, BadAddress> {
    if !path.starts_with('/') || path.len() < 2 {
        return bad("must name an absolute path, as in unix:///run/redis/redis.sock");
    }
    if path.contains(['?', '#', '%']) {
        return bad("must be unix:///path, without ?, # or %");
    }
    if path.len() > SOCKET_PATH_MAX {
        return bad(format!("has a path of {} bytes; sockets take {SOCKET_PATH_MAX}", path.len()));
    }
    Ok(NodeAddress {
        shown: format!("unix://{path}"),
        url: format!("unix://{path}"),
        server: path.to_owned(),
        has_password: false,
        has_user: false,
        tls: false,
    })
}

/// The host as it stands in a URL (IPv6 in brackets) and the port.
fn host_and_port(text: &str) -> Result<(&str, u16), BadAddress> {
    let (host, port) = match text.find(']') {
        Some(end) => {
            let (host, rest) = text.split_at(end + 1);
            let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            if address.and_then(|address| address.parse::<Ipv6Addr>().ok()).is_none() {
                return bad("is not an IPv6 address in brackets, as in [::1]:6379");
            }
            match rest.strip_prefix(':') {
                None if rest.is_empty() => (host, None),
                None => return bad("has something other than :port after the bracket"),
                Some(port) => (host, Some(port)),
            }
        }
        None if text.matches(':').count() > 1 => {
            return bad("has more than one colon; write an IPv6 address in brackets, as in [::1]:6379");
        }
        None => {
            let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            if host.is_empty() || host.len() > 253 || !host.bytes().all(allowed) {
                return bad("needs a host name or IP address, as in redis1:6379");
            }
            (host, port)
        }
    };
    let Some(port) = port else { return Ok((host, PORT)) };
    match port.parse() {
        Ok(number @ 1..) if port.bytes().all(|b| b.is_ascii_digit()) => Ok((host, number)),
        Ok(_) | Err(_) => bad("needs a port from 1 to 65535 after the colon"),
    }
}
