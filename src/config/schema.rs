//! The keys of each table, and the configuration as it was written: typed, but with nothing filled in.

use super::address::NodeAddress;
use super::decode::{Field, Item, Located, Place, Report, Shape, Source, Table, quoted};
use super::{KEEPERS_MAX, LIMIT_NAMES, Limit, RetryCount, UNLIMITED};
use crate::core::restart::RestartPolicy;
use crate::core::timing::{Impossible, TTL_MAX, TTL_MIN};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use toml::de::DeTable;

static TOP: Shape = Shape {
    title: "the top level",
    keys: &["host", "include", "lock", "control", "defaults", "keeper"],
    not_built: &["http"],
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
        "directory",
    ],
    not_built: &["username", "password_file", "tls"],
};
static CONTROL: Shape = Shape { title: "[control]", keys: &["socket"], not_built: &[] };
const KEEPER_NOT_BUILT: &[&str] = &[
    "health",
    "ready",
    "on_acquired",
    "on_lost",
    "hooks",
    "output",
    "priority",
    "hold",
    "isolate",
    "env_file",
];
macro_rules! keeper_keys {
    ($($own:literal),*) => {
        &[
            $($own,)*
            "ttl",
            "stop_signal",
            "stop_timeout",
            "working_dir",
            "env",
            "clear_env",
            "user",
            "group",
            "groups",
            "umask",
            "limits",
            "nice",
            "no_new_privileges",
            "restart",
            "success_exit_codes",
            "restart_delay",
            "restart_delay_max",
            "give_up_after",
            "give_up_window",
            "cooldown",
        ]
    };
}
static DEFAULTS: Shape = Shape { title: "[defaults]", keys: keeper_keys!(), not_built: KEEPER_NOT_BUILT };
static KEEPER: Shape =
    Shape { title: "[[keeper]]", keys: keeper_keys!("name", "lock", "command"), not_built: KEEPER_NOT_BUILT };
static LIMIT: Shape = Shape { title: "a limit", keys: &["soft", "hard"], not_built: &[] };
static INCLUDED: Shape =
    Shape { title: "an included file (it holds [[keeper]] tables only)", keys: &["keeper"], not_built: &[] };
static SHAPES: &[&Shape] = &[&TOP, &LOCK, &CONTROL, &DEFAULTS, &KEEPER];

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
    pub clear_env: Field<bool>,
    pub user: Field<String>,
    pub group: Field<String>,
    pub groups: Field<Vec<String>>,
    pub umask: Field<u32>,
    pub limits: Field<BTreeMap<String, Limit>>,
    pub nice: Field<i32>,
    pub no_new_privileges: Field<bool>,
    pub restart: Field<RestartPolicy>,
    pub success_exit_codes: Field<Vec<i32>>,
    pub restart_delay: Field<Duration>,
    pub restart_delay_max: Field<Duration>,
    pub give_up_after: Field<u32>,
    pub give_up_window: Field<Duration>,
    pub cooldown: Field<Duration>,
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
        host: top.field("host", report, host),
        include: include.unwrap_or_default(),
        lock: sub_table(&top, "lock", &LOCK, report).map(|t| lock(&t, report)).unwrap_or_default(),
        socket: match sub_table(&top, "control", &CONTROL, report) {
            Some(control) => control.field("socket", report, Item::path),
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
        stop_signal: table.field("stop_signal", report, signal),
        stop_timeout: table.field("stop_timeout", report, Item::duration),
        working_dir: table.field("working_dir", report, Item::path),
        env: table.field("env", report, environment),
        clear_env: table.field("clear_env", report, Item::boolean),
        user: table.field("user", report, Item::word),
        group: table.field("group", report, Item::word),
        groups: table
            .field("groups", report, |item, report| item.list("an array of group names", report, Item::word)),
        umask: table.field("umask", report, umask),
        limits: table.field("limits", report, limits),
        nice: table.field("nice", report, |item, report| number(item, -20, 19, report)),
        no_new_privileges: table.field("no_new_privileges", report, Item::boolean),
        restart: table.field("restart", report, restart_policy),
        success_exit_codes: table.field("success_exit_codes", report, |item, report| {
            item.list("an array of exit codes", report, |item, report| number(item, 0, 255, report))
        }),
        restart_delay: table.field("restart_delay", report, positive),
        restart_delay_max: table.field("restart_delay_max", report, positive),
        give_up_after: table
            .field("give_up_after", report, |item, report| number(item, 1, u32::MAX.into(), report)),
        give_up_window: table.field("give_up_window", report, positive),
        cooldown: table.field("cooldown", report, Item::duration),
    }
}

fn lock(table: &Table<'_>, report: &mut Report) -> RawLock {
    RawLock {
        engine: table.field("engine", report, |item, report| {
            item.choice(&[("redis", Engine::Redis), ("local", Engine::Local)], report)
        }),
        nodes: table.field("nodes", report, nodes),
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
        directory: table.field("directory", report, Item::path),
    }
}

fn nodes(item: &Item<'_>, report: &mut Report) -> Option<RawNodes> {
    let mut nodes = RawNodes::default();
    for element in item.elements("an array of addresses such as \"redis1:6379\"", report)? {
        match element.value().as_str() {
            Some(text) => nodes.add(text, &element.place(), element.label(), report),
            None => {
                nodes.written += 1;
                let _: Option<()> = element.wrong_type(report, "a string such as \"redis1:6379\"");
            }
        }
    }
    Some(nodes)
}

fn host(item: &Item<'_>, report: &mut Report) -> Option<String> {
    let text = item.word(report)?;
    match check_host(&text) {
        Ok(()) => Some(text),
        Err(why) => item.refuse(report, why),
    }
}

/// The host name is shown in lines and tables.
pub fn check_host(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > 253 || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("must be 1 to 253 printable ASCII characters without spaces");
    }
    Ok(())
}

fn name(item: &Item<'_>, report: &mut Report) -> Option<String> {
    let text = item.string(report)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if (1..=128).contains(&text.len()) && text.bytes().all(allowed) {
        return Some(text);
    }
    let complaint =
        format!("{} must be 1 to 128 letters, digits, dots, underscores or dashes", quoted(&text));
    item.refuse(report, complaint)
}

fn command(item: &Item<'_>, report: &mut Report) -> Option<Vec<String>> {
    const EXPECTED: &str =
        "an array with the program and its arguments; for a shell line write [\"sh\", \"-c\", \"...\"]";
    let argv = item.list(EXPECTED, report, Item::string)?;
    match argv.first().map(String::as_str) {
        None | Some("") => item.refuse(report, "is empty; write the program and its arguments"),
        Some(_) => Some(argv),
    }
}

fn key_prefix(item: &Item<'_>, report: &mut Report) -> Option<String> {
    let text = item.string(report)?;
    if text.len() > 128 || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return item.refuse(report, "must be at most 128 printable ASCII characters without spaces");
    }
    if text.starts_with("keeperd:") {
        return item.refuse(report, "must not begin with \"keeperd:\", where keeperd keeps its side keys");
    }
    Some(text)
}

/// The lease's own bounds, whatever else has to fit into it.
pub fn check_ttl(ttl: Duration) -> Result<(), String> {
    if ttl < TTL_MIN {
        return Err(Impossible::TtlTooShort { ttl }.to_string());
    }
    if ttl > TTL_MAX {
        return Err(Impossible::TtlTooLong { ttl }.to_string());
    }
    if !ttl.subsec_nanos().is_multiple_of(1_000_000) {
        return Err(format!("ttl {ttl:?} must be a whole number of milliseconds, as Redis counts"));
    }
    Ok(())
}

fn ttl(item: &Item<'_>, report: &mut Report) -> Option<Duration> {
    let ttl = item.duration(report)?;
    match check_ttl(ttl) {
        Ok(()) => Some(ttl),
        Err(why) => {
            report.error(&item.place(), why);
            None
        }
    }
}

fn positive(item: &Item<'_>, report: &mut Report) -> Option<Duration> {
    let span = item.duration(report)?;
    if span.is_zero() { item.refuse(report, "must be longer than nothing") } else { Some(span) }
}

fn number<T: TryFrom<i64>>(item: &Item<'_>, from: i64, to: i64, report: &mut Report) -> Option<T> {
    T::try_from(item.integer(from..=to, report)?).ok()
}

fn restart_policy(item: &Item<'_>, report: &mut Report) -> Option<RestartPolicy> {
    let choices = [
        ("always", RestartPolicy::Always),
        ("on-failure", RestartPolicy::OnFailure),
        ("never", RestartPolicy::Never),
    ];
    item.choice(&choices, report)
}

fn signal(item: &Item<'_>, report: &mut Report) -> Option<Signal> {
    /// They pause or resume; the polite stop would never happen.
    const NO_END: &[Signal] = &[
        Signal::SIGSTOP,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGCONT,
        Signal::SIGCHLD,
    ];
    let Some(text) = item.value().as_str() else {
        return item.wrong_type(report, "a string such as \"SIGTERM\"");
    };
    let full = if text.starts_with("SIG") { text.to_owned() } else { format!("SIG{text}") };
    match full.parse::<Signal>() {
        Ok(signal) if NO_END.contains(&signal) => {
            item.refuse(report, format!("= {} does not ask a process to end; use \"SIGTERM\"", quoted(text)))
        }
        Ok(signal) => Some(signal),
        Err(_) => {
            item.refuse(report, format!("= {} is no signal; write for example \"SIGTERM\"", quoted(text)))
        }
    }
}

fn umask(item: &Item<'_>, report: &mut Report) -> Option<u32> {
    const EXPECTED: &str = "a string of up to four octal digits such as \"022\"";
    let Some(text) = item.value().as_str() else { return item.wrong_type(report, EXPECTED) };
    let octal = (1..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    match u32::from_str_radix(text, 8) {
        Ok(mask) if octal && mask <= 0o777 => Some(mask),
        Ok(_) | Err(_) => item.refuse(report, format!("must be {EXPECTED}, at most \"0777\"")),
    }
}

fn environment(item: &Item<'_>, report: &mut Report) -> Option<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    let mut good = true;
    for (name, place, value) in item.entries("a table of strings", report)? {
        let complaint = if name.is_empty() || name.contains(['=', '\0']) {
            "cannot be the name of a variable"
        } else if name.starts_with("KEEPERD_") {
            "is reserved: keeperd sets these variables itself"
        } else {
            ""
        };
        if !complaint.is_empty() {
            report.error(&place, format!("{} {complaint}", value.label()));
            good = false;
        }
        match value.string(report) {
            Some(text) => drop(variables.insert(name.to_owned(), text)),
            None => good = false,
        }
    }
    good.then_some(variables)
}

fn limits(item: &Item<'_>, report: &mut Report) -> Option<BTreeMap<String, Limit>> {
    let mut limits = BTreeMap::new();
    let mut good = true;
    for (name, place, value) in item.entries("a table such as { nofile = 4096 }", report)? {
        if !LIMIT_NAMES.contains(&name) {
            let known = LIMIT_NAMES.join(", ");
            report.error(&place, format!("{} is no resource limit; there are {known}", value.label()));
            good = false;
            continue;
        }
        match limit(&value, report) {
            Some(limit) => drop(limits.insert(name.to_owned(), limit)),
            None => good = false,
        }
    }
    good.then_some(limits)
}

fn limit(item: &Item<'_>, report: &mut Report) -> Option<Limit> {
    let Some(entries) = item.value().as_table() else {
        return limit_value(item, report).map(|both| Limit { soft: both, hard: both });
    };
    let table = Table::open(entries, item.place(), item.source(), &LIMIT, &[], report);
    let (soft, hard) = (table.field("soft", report, limit_value), table.field("hard", report, limit_value));
    if soft.is_bad() || hard.is_bad() {
        return None;
    }
    let (Some(soft), Some(hard)) = (soft.value(), hard.value()) else {
        return item.refuse(report, "needs both, as in { soft = 1024, hard = 4096 }");
    };
    if soft > hard {
        return item.refuse(report, "has a soft limit above its hard limit");
    }
    Some(Limit { soft, hard })
}

fn limit_value(item: &Item<'_>, report: &mut Report) -> Option<u64> {
    const EXPECTED: &str = "a whole number from 0, or \"unlimited\"";
    if let Some(text) = item.value().as_str() {
        return if text == "unlimited" {
            Some(UNLIMITED)
        } else {
            item.refuse(report, format!("must be {EXPECTED}, not {}", quoted(text)))
        };
    }
    let Some(digits) = item.value().as_integer() else { return item.wrong_type(report, EXPECTED) };
    match u64::from_str_radix(digits.as_str(), digits.radix()) {
        Ok(value) if i64::try_from(value).is_ok() => Some(value),
        Ok(_) | Err(_) => item.refuse(report, format!("must be {EXPECTED}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// A key that is in a shape but never decoded would be accepted and ignored.
    #[test]
    fn every_known_key_is_decoded() {
        let keys =
            |shape: &'static Shape, header: &'static str| shape.keys.iter().map(move |key| (header, *key));
        let all = keys(&TOP, "")
            .chain(keys(&LOCK, "[lock]\n"))
            .chain(keys(&CONTROL, "[control]\n"))
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
