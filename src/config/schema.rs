//! The keys of each table, and the configuration as it was written: typed, but with nothing filled in.

use super::address::NodeAddress;
use super::decode::{Field, Item, Located, Shape, Table};
use super::report::{Place, Report, Source};
use super::secrets::{self, RawTls};
use super::values::{self, command, key_prefix, name, number, positive, ttl};
use super::{Health, Isolation, KEEPERS_MAX, Limit, OutputConfig, Probe, RetryCount, health};
use crate::core::preference::Priorities;
use crate::core::restart::RestartPolicy;
use crate::env_file::EnvFile;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use toml::de::DeTable;

static TOP: Shape = Shape {
    title: "the top level",
    keys: &["host", "include", "lock", "control", "http", "defaults", "keeper"],
};
static LOCK: Shape = Shape {
    title: "[lock]",
    keys: &[
        "engine",
        "nodes",
        "ttl",
        "retry_count",
        "retry_delay",
        "key_prefix",
        "restart_quarantine",
        "username",
        "password_file",
        "tls",
        "directory",
    ],
};
pub static TLS: Shape = Shape { title: "tls", keys: &["ca", "cert", "key"] };
static CONTROL: Shape = Shape { title: "[control]", keys: &["socket"] };
static HTTP: Shape = Shape { title: "[http]", keys: &["listen"] };
macro_rules! keeper_keys {
    ($($own:literal),*) => {
        &[
            $($own,)*
            "ttl",
            "stop_signal",
            "stop_timeout",
            "working_dir",
            "env",
            "env_file",
            "clear_env",
            "user",
            "group",
            "groups",
            "umask",
            "limits",
            "nice",
            "no_new_privileges",
            "isolate",
            "restart",
            "success_exit_codes",
            "restart_delay",
            "restart_delay_max",
            "give_up_after",
            "give_up_window",
            "cooldown",
            "on_acquired",
            "on_lost",
            "hook_timeout",
            "output",
            "priority",
            "hold",
            "health",
            "ready",
        ]
    };
}
static DEFAULTS: Shape = Shape { title: "[defaults]", keys: keeper_keys!() };
static KEEPER: Shape = Shape { title: "[[keeper]]", keys: keeper_keys!("name", "lock", "command") };
pub static LIMIT: Shape = Shape { title: "a limit", keys: &["soft", "hard"] };
pub static OUTPUT: Shape = Shape { title: "output", keys: &["file", "max_size", "keep"] };
static INCLUDED: Shape =
    Shape { title: "an included file (it holds [[keeper]] tables only)", keys: &["keeper"] };
static SHAPES: &[&Shape] = &[&TOP, &LOCK, &CONTROL, &HTTP, &DEFAULTS, &KEEPER];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    Redis,
    Local,
}

#[derive(Clone, Copy, Debug)]
pub enum Quarantine {
    Auto,
    For(Duration),
}

/// The file as written.
#[derive(Debug, Default)]
pub struct RawConfig {
    pub host: Field<String>,
    pub include: Vec<Located<String>>,
    pub lock: RawLock,
    pub socket: Field<PathBuf>,
    pub listen: Field<SocketAddr>,
    pub defaults: RawKeeper,
    pub keepers: Vec<RawKeeper>,
}

#[derive(Debug, Default)]
pub struct RawLock {
    pub engine: Field<Engine>,
    pub nodes: Field<RawNodes>,
    pub ttl: Field<Duration>,
    pub retry_count: Field<RetryCount>,
    pub retry_delay: Field<Duration>,
    pub key_prefix: Field<String>,
    pub restart_quarantine: Field<Quarantine>,
    pub username: Field<String>,
    pub password_file: Field<PathBuf>,
    pub tls: Field<RawTls>,
    pub directory: Field<PathBuf>,
}

/// The addresses that could be read, and how many were written: the number is judged even when one is bad.
#[derive(Clone, Debug, Default)]
pub struct RawNodes {
    pub written: usize,
    pub addresses: Vec<Located<NodeAddress>>,
}

impl RawNodes {
    pub fn add(&mut self, text: &str, place: &Place, label: &str, report: &mut Report) {
        self.written += 1;
        match NodeAddress::parse(text) {
            Ok(value) => self.addresses.push(Located { value, place: place.clone() }),
            Err(why) => report.error(place, format!("{label} {why}")),
        }
    }
}

/// `[[keeper]]`, or `[defaults]` with its first fields absent.
#[derive(Clone, Debug, Default)]
pub struct RawKeeper {
    pub name: Field<String>,
    pub lock: Field<String>,
    pub command: Field<Vec<String>>,
    pub ttl: Field<Duration>,
    pub stop_signal: Field<Signal>,
    pub stop_timeout: Field<Duration>,
    pub working_dir: Field<PathBuf>,
    pub env: Field<BTreeMap<String, String>>,
    pub env_file: Field<EnvFile>,
    pub clear_env: Field<bool>,
    pub user: Field<String>,
    pub group: Field<String>,
    pub groups: Field<Vec<String>>,
    pub umask: Field<u32>,
    pub limits: Field<BTreeMap<String, Limit>>,
    pub nice: Field<i32>,
    pub no_new_privileges: Field<bool>,
    pub isolate: Field<Isolation>,
    pub restart: Field<RestartPolicy>,
    pub success_exit_codes: Field<Vec<i32>>,
    pub restart_delay: Field<Duration>,
    pub restart_delay_max: Field<Duration>,
    pub give_up_after: Field<u32>,
    pub give_up_window: Field<Duration>,
    pub cooldown: Field<Duration>,
    pub on_acquired: Field<Vec<String>>,
    pub on_lost: Field<Vec<String>>,
    pub hook_timeout: Field<Duration>,
    pub output: Field<OutputConfig>,
    pub priority: Field<Priorities>,
    pub hold: Field<Duration>,
    pub health: Field<Health>,
    pub ready: Field<Probe>,
}

/// The main file.
pub fn decode_main(root: &DeTable<'_>, source: &Arc<Source>, report: &mut Report) -> RawConfig {
    let top = Table::open(root, source.place(0), source, &TOP, SHAPES, report);
    let include = top.item("include").and_then(|item| {
        item.list("an array of file names", report, |item, report| {
            Some(Located { value: item.word(report)?, place: item.place() })
        })
    });
    RawConfig {
        host: top.field("host", report, values::host),
        include: include.unwrap_or_default(),
        lock: sub_table(&top, "lock", &LOCK, report).map(|t| lock(&t, report)).unwrap_or_default(),
        socket: match sub_table(&top, "control", &CONTROL, report) {
            Some(control) => control.field("socket", report, Item::path),
            None => Field::Absent,
        },
        listen: match sub_table(&top, "http", &HTTP, report) {
            Some(http) => http.field("listen", report, values::listen),
            None => Field::Absent,
        },
        defaults: sub_table(&top, "defaults", &DEFAULTS, report)
            .map(|t| keeper_settings(&t, report))
            .unwrap_or_default(),
        keepers: keepers(&top, report),
    }
}

/// An included file: keepers and nothing else.
pub fn decode_included(root: &DeTable<'_>, source: &Arc<Source>, report: &mut Report) -> Vec<RawKeeper> {
    let top = Table::open(root, source.place(0), source, &INCLUDED, SHAPES, report);
    keepers(&top, report)
}

fn sub_table<'a>(
    top: &Table<'a>,
    key: &'static str,
    shape: &'static Shape,
    report: &mut Report,
) -> Option<Table<'a>> {
    let item = top.item(key)?;
    match item.value().as_table() {
        Some(entries) => Some(Table::open(entries, item.place(), item.source(), shape, SHAPES, report)),
        None => item.wrong_type(report, &format!("a table, {}", shape.title)),
    }
}

fn keepers(top: &Table<'_>, report: &mut Report) -> Vec<RawKeeper> {
    const EXPECTED: &str = "an array of tables, each under the line [[keeper]]";
    let Some(item) = top.item("keeper") else { return Vec::new() };
    let Some(elements) = item.elements(EXPECTED, report) else { return Vec::new() };
    let mut keepers = Vec::new();
    for element in &elements {
        let Some(entries) = element.value().as_table() else {
            let _: Option<()> = element.wrong_type(report, "a table under the line [[keeper]]");
            continue;
        };
        if keepers.len() == KEEPERS_MAX {
            report.error(
                &element.place(),
                format!("more than {KEEPERS_MAX} keepers; split them between hosts"),
            );
            break;
        }
        let table = Table::open(entries, element.place(), element.source(), &KEEPER, SHAPES, report);
        keepers.push(keeper(&table, report));
    }
    keepers
}

fn keeper(table: &Table<'_>, report: &mut Report) -> RawKeeper {
    for key in ["name", "command"] {
        if table.item(key).is_none() {
            report.error(&table.place, format!("this [[keeper]] has no {key}"));
        }
    }
    RawKeeper {
        name: table.field("name", report, name),
        lock: table.field("lock", report, name),
        command: table.field("command", report, command),
        ..keeper_settings(table, report)
    }
}

fn keeper_settings(table: &Table<'_>, report: &mut Report) -> RawKeeper {
    RawKeeper {
        name: Field::Absent,
        lock: Field::Absent,
        command: Field::Absent,
        ttl: table.field("ttl", report, ttl),
        stop_signal: table.field("stop_signal", report, values::signal),
        stop_timeout: table.field("stop_timeout", report, Item::duration),
        working_dir: table.field("working_dir", report, Item::path),
        env: table.field("env", report, values::environment),
        env_file: table.field("env_file", report, values::env_file),
        clear_env: table.field("clear_env", report, Item::boolean),
        user: table.field("user", report, Item::word),
        group: table.field("group", report, Item::word),
        groups: table
            .field("groups", report, |item, report| item.list("an array of group names", report, Item::word)),
        umask: table.field("umask", report, values::umask),
        limits: table.field("limits", report, values::limits),
        nice: table.field("nice", report, |item, report| number(item, -20, 19, report)),
        no_new_privileges: table.field("no_new_privileges", report, Item::boolean),
        isolate: table.field("isolate", report, |item, report| {
            item.choice(&[("none", Isolation::None), ("pid", Isolation::Pid)], report)
        }),
        restart: table.field("restart", report, values::restart_policy),
        success_exit_codes: table.field("success_exit_codes", report, |item, report| {
            item.list("an array of exit codes", report, |item, report| number(item, 0, 255, report))
        }),
        restart_delay: table.field("restart_delay", report, positive),
        restart_delay_max: table.field("restart_delay_max", report, positive),
        give_up_after: table
            .field("give_up_after", report, |item, report| number(item, 1, u32::MAX.into(), report)),
        give_up_window: table.field("give_up_window", report, positive),
        cooldown: table.field("cooldown", report, values::a_second_or_more),
        on_acquired: table.field("on_acquired", report, command),
        on_lost: table.field("on_lost", report, command),
        hook_timeout: table.field("hook_timeout", report, positive),
        output: table.field("output", report, values::output),
        priority: table.field("priority", report, values::priority),
        hold: table.field("hold", report, values::a_second_or_more),
        health: table.field("health", report, health::health),
        ready: table.field("ready", report, health::ready),
    }
}

fn lock(table: &Table<'_>, report: &mut Report) -> RawLock {
    RawLock {
        engine: table.field("engine", report, |item, report| {
            item.choice(&[("redis", Engine::Redis), ("local", Engine::Local)], report)
        }),
        nodes: table.field("nodes", report, values::nodes),
        ttl: table.field("ttl", report, ttl),
        retry_count: table.field("retry_count", report, |item, report| {
            let count = item.integer(-1..=u32::MAX.into(), report)?;
            Some(u32::try_from(count).map_or(RetryCount::Forever, RetryCount::Times))
        }),
        retry_delay: table.field("retry_delay", report, Item::duration),
        key_prefix: table.field("key_prefix", report, key_prefix),
        restart_quarantine: table.field("restart_quarantine", report, |item, report| {
            if item.value().as_str() == Some("auto") {
                return Some(Quarantine::Auto);
            }
            item.duration(report).map(Quarantine::For)
        }),
        username: table.field("username", report, Item::word),
        password_file: table.field("password_file", report, Item::path),
        tls: table.field("tls", report, secrets::tls),
        directory: table.field("directory", report, Item::path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The manual has a row, the example a line for each.
    #[test]
    fn every_known_key_is_in_the_manual_and_in_the_example() {
        let (manual, example) =
            (include_str!("../../config/README.md"), include_str!("../../config/keepers.toml"));
        let titles = [TOP.title, LOCK.title, CONTROL.title, HTTP.title, DEFAULTS.title, KEEPER.title];
        for key in [&TOP, &LOCK, &CONTROL, &HTTP, &KEEPER].iter().flat_map(|shape| shape.keys) {
            let is_table = titles.iter().any(|title| title.trim_matches(['[', ']']) == *key);
            if !is_table {
                assert!(manual.contains(&format!("\n| `{key}` |")), "config/README.md has no row for {key}");
                let written = example
                    .lines()
                    .any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
                assert!(written, "config/keepers.toml has no line for {key}");
            }
        }
    }

    /// A key that is in a shape but never decoded would be accepted and ignored.
    #[test]
    fn every_known_key_is_decoded() {
        let keys =
            |shape: &'static Shape, header: &'static str| shape.keys.iter().map(move |key| (header, *key));
        let all = keys(&TOP, "")
            .chain(keys(&LOCK, "[lock]\n"))
            .chain(keys(&CONTROL, "[control]\n"))
            .chain(keys(&HTTP, "[http]\n"))
            .chain(keys(&DEFAULTS, "[defaults]\n"))
            .chain(keys(&KEEPER, "[[keeper]]\n"));
        for (header, key) in all {
            let source = Source::new(Path::new("t.toml"), format!("{header}{key} = 1979-05-27"), 0);
            let root = DeTable::parse(source.text()).expect("the test's text is TOML");
            let mut report = Report::default();
            decode_main(root.get_ref(), &source, &mut report);
            let errors = report.into_errors().to_string();
            assert!(errors.contains(&format!("{key} must be")), "{header}{key}: {errors}");
        }
    }
}
