//! Configuration: text to validated values, all errors at once.
//!
//! ```text
//! file, included files ─ load ─► schema, values (types, unknown keys) ─► as written ─┐
//! environment ───────────────────────────────────────────────────────────────────────┴─ validate, keeper ─► Config
//! ```
//! Serde stops at the first error, so the spanned TOML tree is walked by hand: an operator with five mistakes makes one round trip.

mod address;
mod decode;
mod difference;
mod environment;
mod health;
mod keeper;
mod load;
mod places;
mod report;
mod schema;
mod secrets;
mod validate;
mod values;

pub use address::{BadAddress, NodeAddress};
pub use difference::{Difference, fixed_keys};
pub use environment::Env;
pub use load::{load, parse, socket_named_in};
pub use places::control_sockets;
pub use values::check_name;

use crate::core::preference::Priorities;
use crate::core::restart::RestartRules;
use crate::core::timing::Timing;
use crate::env_file::EnvFile;
use crate::lock::redis::{Access, Address, Login, Pem};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// More keepers than this on one host are a generated mistake.
pub const KEEPERS_MAX: usize = 5_000;
/// More nodes than this only make every round slower.
pub const NODES_MAX: usize = 9;
/// How long a hook may take when nobody says.
pub const HOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// The lease when nobody names one.
pub const TTL_DEFAULT: Duration = Duration::from_secs(30);

/// A configuration that can be run as it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// Shown to other hosts as the holder.
    pub host: String,
    pub lock: LockConfig,
    pub control: ControlConfig,
    pub http: Option<HttpConfig>,
    /// Where the journal takes entries.
    pub journal_socket: PathBuf,
    pub keepers: Vec<KeeperConfig>,
    /// The lease of a lock that has no keeper here.
    pub ttl: Duration,
    /// Allowed, but to be told to the operator.
    pub warnings: Vec<String>,
}

impl Config {
    /// The key that a keeper's hosts compete for.
    pub fn lock_key(&self, keeper: &KeeperConfig) -> String {
        match &self.lock {
            LockConfig::Redis(redis) => format!("{}{}", redis.key_prefix, keeper.lock),
            LockConfig::Local(_) => keeper.lock.clone(),
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
pub enum LockConfig {
    Redis(RedisConfig),
    Local(LocalConfig),
}

impl LockConfig {
    /// A password or a private key.
    pub fn holds_secrets(&self) -> bool {
        match self {
            LockConfig::Redis(RedisConfig { nodes, login, pem, .. }) => {
                login.password.is_some()
                    || pem.client.is_some()
                    || nodes.iter().any(NodeAddress::has_password)
            }
            LockConfig::Local(_) => false,
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct RedisConfig {
    /// An odd number, no server twice.
    pub nodes: Vec<NodeAddress>,
    pub key_prefix: String,
    pub retry_count: RetryCount,
    pub retry_delay: Duration,
    /// How long a node with a new run does not vote; zero: off.
    pub restart_quarantine: Duration,
    /// For nodes whose address does not say it.
    pub login: Login,
    pub pem: Pem,
}

impl RedisConfig {
    /// What connections are made with; holds the secrets.
    pub fn access(&self) -> Access {
        let node = |node: &NodeAddress| Address {
            display: node.to_string(),
            url: node.url().to_owned(),
            tls: node.is_tls(),
        };
        Access {
            nodes: self.nodes.iter().map(node).collect(),
            login: self.login.clone(),
            pem: self.pem.clone(),
        }
    }
}

/// Retries after the first attempt, as in the npm package redlock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetryCount {
    Forever,
    Times(u32),
}

#[derive(Clone, PartialEq, Debug)]
pub struct LocalConfig {
    /// Where the lock files stand. Need not exist yet.
    pub directory: PathBuf,
}

#[derive(Clone, PartialEq, Debug)]
pub struct ControlConfig {
    /// Its directory need not exist yet.
    pub socket: PathBuf,
}

/// Metrics, health and the page, for reading only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpConfig {
    /// Port 0: any that is free.
    pub listen: SocketAddr,
}

#[derive(Clone, PartialEq, Debug)]
pub struct KeeperConfig {
    pub name: String,
    /// Without the key prefix.
    pub lock: String,
    pub timing: Timing,
    pub process: ProcessConfig,
    pub restart: RestartRules,
    pub hooks: HooksConfig,
    pub output: OutputConfig,
    pub priorities: Priorities,
    /// How long a preferred host is well before it takes the keeper back.
    pub hold: Duration,
    /// Asked from when the child runs, or is ready.
    pub health: Option<Health>,
    /// Asked from the child's start until it first succeeds.
    pub ready: Option<Probe>,
}

/// How a child's health is known.
#[derive(Clone, PartialEq, Debug)]
pub enum Health {
    Probe {
        probe: Probe,
        /// Asked of the host before it stands, too.
        standby: bool,
    },
    /// It must write something at least this often.
    MaxSilence(Duration),
}

impl Health {
    /// This host stands only while it is found fit.
    pub fn is_for_standby(&self) -> bool {
        match self {
            Health::Probe { standby, .. } => *standby,
            Health::MaxSilence(_) => false,
        }
    }

    /// How long a child that is unhealthy from the start is left running.
    fn patience(&self) -> Duration {
        match self {
            Health::Probe { probe, .. } => probe.patience(),
            Health::MaxSilence(most) => *most,
        }
    }
}

impl Probe {
    /// From the first question to the last of as many failures as it takes.
    fn patience(&self) -> Duration {
        self.interval.max(self.timeout).saturating_mul(self.failures)
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Probe {
    pub question: Question,
    /// From the beginning of one probe to that of the next, unless it takes longer.
    pub interval: Duration,
    pub timeout: Duration,
    /// As many in a row are one failure of the child.
    pub failures: u32,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Question {
    /// Never empty. Exit code 0 is yes.
    Command(Vec<String>),
    /// A status of 2xx or 3xx is yes.
    Http(HttpTarget),
    /// A connection is yes.
    Tcp(Socket),
}

#[derive(Clone, PartialEq, Debug)]
pub struct HttpTarget {
    pub socket: Socket,
    pub path_and_query: String,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Socket {
    /// A name or an address; of IPv6 without brackets.
    pub host: String,
    pub port: u16,
}

/// Where the lines of a keeper go (DESIGN.md 2.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OutputConfig {
    /// Lines of the daemon's own log.
    Log,
    /// Entries of the journal, under the keeper's name.
    Journal,
    /// The child writes where the daemon does.
    Inherit,
    Null,
    File(FileOutput),
}

impl OutputConfig {
    pub fn name(&self) -> &'static str {
        match self {
            OutputConfig::Log => "log",
            OutputConfig::Journal => "journal",
            OutputConfig::Inherit => "inherit",
            OutputConfig::Null => "null",
            OutputConfig::File(_) => "file",
        }
    }
}

/// A file that is rotated when it would grow above a size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileOutput {
    /// Absolute. Its folder need not exist, but nobody makes it.
    pub path: PathBuf,
    /// In bytes, at least [`FILE_SIZE_MIN`].
    pub max_size: u64,
    /// Older files, `path.1` to `path.keep`.
    pub keep: u32,
}

/// The longest line must fit a few times.
pub const FILE_SIZE_MIN: u64 = 64 * 1024;

/// What the guard does between fork and exec. Users, groups and the program are resolved there, not here.
#[derive(Clone, PartialEq)]
pub struct ProcessConfig {
    /// Never empty.
    pub command: Vec<String>,
    pub working_dir: Option<PathBuf>,
    pub env: BTreeMap<String, String>,
    pub env_file: Option<EnvFile>,
    pub clear_env: bool,
    pub user: Option<String>,
    pub group: Option<String>,
    pub groups: Option<Vec<String>>,
    pub umask: Option<u32>,
    /// By name: lower case, without `RLIMIT_`; one of [`LIMIT_NAMES`].
    pub limits: BTreeMap<String, Limit>,
    pub nice: Option<i32>,
    pub no_new_privileges: bool,
    pub isolate: Isolation,
    pub stop_signal: Signal,
}

impl fmt::Debug for ProcessConfig {
    /// The values of `env` may be secrets: only the names are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessConfig")
            .field("command", &self.command)
            .field("working_dir", &self.working_dir)
            .field("env", &self.env.keys())
            .field("env_file", &self.env_file)
            .field("clear_env", &self.clear_env)
            .field("user", &self.user)
            .field("group", &self.group)
            .field("groups", &self.groups)
            .field("umask", &self.umask)
            .field("limits", &self.limits)
            .field("nice", &self.nice)
            .field("no_new_privileges", &self.no_new_privileges)
            .field("isolate", &self.isolate)
            .field("stop_signal", &self.stop_signal)
            .finish()
    }
}

/// Commands beside a term.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HooksConfig {
    /// Never an empty array, as `command`.
    pub on_acquired: Option<Vec<String>>,
    pub on_lost: Option<Vec<String>>,
    /// For each run of either.
    pub timeout: Duration,
}

/// What separates the child from the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Isolation {
    #[default]
    None,
    /// A PID namespace of its own.
    Pid,
}

/// A resource limit in the kernel's unit; [`UNLIMITED`] for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

/// `RLIM_INFINITY` of Linux.
pub const UNLIMITED: u64 = u64::MAX;

/// Every resource limit of Linux.
pub const LIMIT_NAMES: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// What is wrong at one place, and what would be right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// The file as it was named, or the name of an environment variable.
    pub file: PathBuf,
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file.display(), self.line, self.column, self.message)
    }
}

impl std::error::Error for ConfigError {}

/// Every error of a configuration, in reading order. Never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
