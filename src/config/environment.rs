//! The environment, handed in as a value, and the variables that stand in for keys of the file.

use super::RetryCount;
use super::decode::{Field, Located};
use super::report::{Report, Source};
use super::schema::RawNodes;
use super::values::check_ttl;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A copy of an environment, so that a configuration depends on nothing but its arguments.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// This process's. What is not UTF-8 is kept with replacement characters, which no variable read here allows.
    pub fn from_process() -> Self {
        std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect()
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Env(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl fmt::Debug for Env {
    /// Values may be secrets: only the names are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What the environment says instead of `[lock]`.
#[derive(Debug)]
pub struct Overrides {
    /// Beats `[lock]` only; a keeper's own ttl and `[defaults]` beat it.
    pub ttl: Field<Duration>,
    pub nodes: Field<RawNodes>,
    pub retry_count: Field<RetryCount>,
    pub retry_delay: Field<Duration>,
}

impl Overrides {
    /// With engine "local" the variables about Redis have no effect, and a stale one must not keep the daemon down.
    pub fn read(env: &Env, local: bool, report: &mut Report) -> Self {
        let ttl = variable(env, "REDIS_LOCK_TTL_MS", report, |text| {
            let ttl = milliseconds(text)?;
            check_ttl(ttl)?;
            Ok(ttl)
        });
        if local {
            for name in ["REDIS_NODES", "REDIS_RETRY_COUNT", "REDIS_RETRY_DELAY_MS"] {
                if env.get(name).is_some() {
                    report.warn(format!("{name} is set, but has no effect with engine \"local\""));
                }
            }
            return Overrides {
                ttl,
                nodes: Field::Absent,
                retry_count: Field::Absent,
                retry_delay: Field::Absent,
            };
        }
        Overrides {
            ttl,
            nodes: nodes(env, report),
            retry_count: variable(env, "REDIS_RETRY_COUNT", report, retry_count),
            retry_delay: variable(env, "REDIS_RETRY_DELAY_MS", report, milliseconds),
        }
    }
}

/// Where the journal takes entries: systemd's place, unless it is mounted elsewhere (a container, a test).
pub fn journal_socket(env: &Env, report: &mut Report) -> PathBuf {
    let written = variable(env, "KEEPERD_JOURNAL_SOCKET", report, |text| {
        Some(PathBuf::from(text))
            .filter(|path| path.is_absolute())
            .ok_or_else(|| "must be an absolute path, or not be set at all".to_owned())
    });
    written.value().unwrap_or_else(|| PathBuf::from("/run/systemd/journal/socket"))
}

fn variable<T>(
    env: &Env,
    name: &str,
    report: &mut Report,
    decode: impl FnOnce(&str) -> Result<T, String>,
) -> Field<T> {
    let Some(text) = env.get(name) else { return Field::Absent };
    let place = Source::variable(name).place(0);
    match decode(text.trim()) {
        Ok(value) => Field::Given(Located { value, place }),
        Err(why) => {
            report.error(&place, why);
            Field::Bad
        }
    }
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(count) => Ok(Duration::from_millis(count.into())),
        Err(_) => Err("must be a whole number of milliseconds, or not be set at all".to_owned()),
    }
}

fn retry_count(text: &str) -> Result<RetryCount, String> {
    match (text, text.parse()) {
        ("-1", _) => Ok(RetryCount::Forever),
        (_, Ok(times)) => Ok(RetryCount::Times(times)),
        (_, Err(_)) => Err("must be a whole number, -1 for ever, or not be set at all".to_owned()),
    }
}

fn nodes(env: &Env, report: &mut Report) -> Field<RawNodes> {
    const NAME: &str = "REDIS_NODES";
    let Some(text) = env.get(NAME) else { return Field::Absent };
    let place = Source::variable(NAME).place(0);
    if text.trim().is_empty() {
        report.error(&place, "is empty; write host:port,host:port,host:port or unset it");
        return Field::Bad;
    }
    let mut nodes = RawNodes::default();
    for (i, entry) in text.split(',').enumerate() {
        nodes.add(entry.trim(), &place, &format!("node {}", i + 1), report);
    }
    Field::Given(Located { value: nodes, place })
}
