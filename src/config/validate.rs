//! The configuration as written to the one that is run: precedence, defaults, and what must hold between keys.

use super::decode::Field;
use super::environment::{Overrides, journal_socket};
use super::report::{Place, Report, Source};
use super::schema::{Engine, Quarantine, RawConfig, RawLock, RawNodes};
use super::values::check_host;
use super::{
    Config, ControlConfig, Env, HttpConfig, LocalConfig, LockConfig, NODES_MAX, NodeAddress, RedisConfig,
    RetryCount, address, keeper, places, secrets,
};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The configuration to run. Of use only when nothing has been reported: what is wrong is replaced by something that fits the type.
pub fn validate(raw: RawConfig, env: &Env, source: &Arc<Source>, report: &mut Report) -> Config {
    let RawConfig { host: host_field, include: _, lock, socket, listen, defaults, keepers: written } = raw;
    let local = lock.engine.given_value() == Some(&Engine::Local);
    let overrides = Overrides::read(env, local, report);
    let ttl = overrides.ttl.clone().or(lock.ttl.clone());
    if written.is_empty() {
        report.warn_at(&source.place(0), "no [[keeper]]: this daemon has nothing to do");
    }
    keeper::unique(&written, report);
    keeper::own_files(&written, &defaults, report);
    let keepers: Vec<_> =
        written.into_iter().filter_map(|raw| keeper::resolve(raw, &defaults, &ttl, source, report)).collect();
    let other_ttl = defaults.ttl.clone().or(ttl).value().unwrap_or(super::TTL_DEFAULT);
    let ttl_max = keepers.iter().map(|keeper| keeper.timing.ttl()).max().unwrap_or_default();
    Config {
        host: host(host_field, source, report),
        lock: if local {
            LockConfig::Local(local_lock(lock, env, source, report))
        } else {
            LockConfig::Redis(redis_lock(lock, overrides, ttl_max, env, source, report))
        },
        journal_socket: journal_socket(env, report),
        control: ControlConfig { socket: socket_path(socket, env, source, report) },
        http: listen.value().map(|listen| HttpConfig { listen }),
        keepers,
        ttl: other_ttl,
        warnings: Vec::new(),
    }
}

fn host(field: Field<String>, source: &Arc<Source>, report: &mut Report) -> String {
    if let Field::Absent = field {
        let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        return match name {
            Some(name) if check_host(&name).is_ok() => name,
            Some(_) | None => {
                report.error(
                    &source.place(0),
                    "the hostname cannot be shown; name this host with host = \"...\"",
                );
                String::new()
            }
        };
    }
    field.value().unwrap_or_default()
}

fn socket_path(field: Field<PathBuf>, env: &Env, source: &Arc<Source>, report: &mut Report) -> PathBuf {
    let place = field.place().cloned().unwrap_or_else(|| source.place(0));
    let path = field.value().unwrap_or_else(|| places::control_socket(env));
    let length = path.as_os_str().as_bytes().len();
    if length > address::SOCKET_PATH_MAX {
        let most = address::SOCKET_PATH_MAX;
        let message = format!(
            "the control socket's path {} has {length} bytes; sockets take {most}: set a shorter [control] socket",
            path.display()
        );
        report.error(&place, message);
    }
    path
}

fn local_lock(lock: RawLock, env: &Env, source: &Arc<Source>, report: &mut Report) -> LocalConfig {
    for (key, place) in [
        ("nodes", lock.nodes.place()),
        ("retry_count", lock.retry_count.place()),
        ("retry_delay", lock.retry_delay.place()),
        ("key_prefix", lock.key_prefix.place()),
        ("restart_quarantine", lock.restart_quarantine.place()),
        ("username", lock.username.place()),
        ("password_file", lock.password_file.place()),
        ("tls", lock.tls.place()),
    ] {
        if let Some(place) = place {
            report.warn_at(place, format!("{key} has no effect with engine \"local\""));
        }
    }
    let directory = match lock.directory {
        Field::Given(located) => Some(located.value),
        Field::Bad => Some(PathBuf::new()),
        Field::Absent => places::lock_directory(env),
    };
    if directory.is_none() {
        report
            .error(&source.place(0), "no directory for lock files is known; set [lock] directory = \"...\"");
    }
    LocalConfig { directory: directory.unwrap_or_default() }
}

fn redis_lock(
    lock: RawLock,
    overrides: Overrides,
    ttl_max: Duration,
    env: &Env,
    source: &Arc<Source>,
    report: &mut Report,
) -> RedisConfig {
    if let Some(place) = lock.directory.place() {
        report.warn_at(place, "directory has no effect with engine \"redis\"");
    }
    let engine_known = !lock.engine.is_bad();
    let login = secrets::login(&lock, env, report);
    let from_env = matches!(overrides.nodes, Field::Given(_) | Field::Bad);
    let nodes_field = overrides.nodes.or(lock.nodes);
    let nodes = match nodes_field {
        Field::Given(nodes) => {
            warn_of_logins(&nodes.value, login.password.is_some(), from_env, report);
            check_nodes(nodes.value, &nodes.place, from_env, report)
        }
        Field::Bad => Vec::new(),
        Field::Absent => {
            if engine_known {
                let place = lock.engine.place().cloned().unwrap_or_else(|| source.place(0));
                report.error(
                    &place,
                    "no Redis nodes: set nodes = [\"redis1:6379\", \"redis2:6379\", \"redis3:6379\"] in [lock], or \
                     REDIS_NODES; for a single host without Redis set engine = \"local\"",
                );
            }
            Vec::new()
        }
    };
    let pem = secrets::pem(&lock.tls, nodes.iter().any(NodeAddress::is_tls), source, report);
    RedisConfig {
        nodes,
        login,
        pem,
        key_prefix: lock.key_prefix.value().unwrap_or_else(|| "redlock:".to_owned()),
        retry_count: overrides.retry_count.or(lock.retry_count).value().unwrap_or(RetryCount::Times(3)),
        retry_delay: overrides.retry_delay.or(lock.retry_delay).value().unwrap_or(Duration::from_millis(200)),
        restart_quarantine: quarantine(lock.restart_quarantine, ttl_max, report),
    }
}

/// The lease a restarted node may have forgotten, seen by clocks that differ by 1 % (review.md 2).
fn quarantine(field: Field<Quarantine>, ttl_max: Duration, report: &mut Report) -> Duration {
    let longest = ttl_max.max(Duration::from_secs(30));
    let auto = longest + longest / 100 + Duration::from_secs(2);
    let Field::Given(written) = field else { return auto };
    match written.value {
        Quarantine::Auto => auto,
        Quarantine::For(span) => {
            if span < ttl_max + ttl_max / 100 + Duration::from_secs(2) {
                let what = if span.is_zero() { "off".to_owned() } else { format!("only {span:?}") };
                report.warn_at(
                    &written.place,
                    format!(
                        "restart_quarantine is {what}: a Redis node that restarts empty can help to start a second \
                         copy; \"auto\" is {auto:?}"
                    ),
                );
            }
            span
        }
    }
}

/// The password that is configured goes with every user name, also with one in an address.
fn warn_of_logins(nodes: &RawNodes, has_password: bool, from_env: bool, report: &mut Report) {
    for node in &nodes.addresses {
        if node.value.lacks_password() && !has_password {
            let message = format!(
                "{} has a login without a password; write redis://user:password@host:port, or give it with password_file, the \
                 credential or {}",
                node.value,
                secrets::PASSWORD_VARIABLE
            );
            report.warn_at(&node.place, message);
        }
    }
    if from_env && nodes.addresses.iter().any(|node| node.value.has_password()) {
        report.warn(format!(
            "REDIS_NODES holds a password, which every keeper finds in its environment; {} is kept from them",
            secrets::PASSWORD_VARIABLE
        ));
    }
}

fn check_nodes(nodes: RawNodes, place: &Place, from_env: bool, report: &mut Report) -> Vec<NodeAddress> {
    let mut seen: Vec<(&NodeAddress, &Place)> = Vec::new();
    for node in &nodes.addresses {
        match seen.iter().find(|(other, _)| other.same_server(&node.value)) {
            // Within a variable there is no line to point to.
            Some((first, at)) => {
                let at = if from_env { String::new() } else { format!(" on {}", at.seen_from(&node.place)) };
                let message = format!(
                    "{} is the same server as {first}{at}; every node must be a server of its own",
                    node.value
                );
                report.error(&node.place, message);
            }
            None => seen.push((&node.value, &node.place)),
        }
    }
    match nodes.written {
        0 => report.error(place, "no Redis nodes; three are usual"),
        1 => report.warn("one Redis node: while it is down no keeper runs; three are usual"),
        2 => report.error(place, "2 nodes survive no failure and fail more often than one; use 1 or 3"),
        count if count > NODES_MAX => {
            report.error(place, format!("{count} nodes; at most {NODES_MAX} are allowed, 3 or 5 are usual"));
        }
        count if count % 2 == 0 => {
            let (fewer, more, quorum) = (count - 1, count + 1, count / 2 + 1);
            let message = format!(
                "{count} nodes need {quorum} to agree, so they survive no more failures than {fewer}; \
                 use {fewer} or {more}"
            );
            report.error(place, message);
        }
        _ => {}
    }
    nodes.addresses.into_iter().map(|node| node.value).collect()
}
