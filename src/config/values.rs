//! Decoders of single values: what each key accepts, and what it says otherwise.

use super::decode::{Field, Item, Table, quoted};
use super::report::Report;
use super::schema::{LIMIT, OUTPUT, RawNodes};
use super::{FILE_SIZE_MIN, FileOutput, LIMIT_NAMES, Limit, OutputConfig, UNLIMITED};
use crate::core::preference::{Priorities, Priority};
use crate::core::restart::RestartPolicy;
use crate::core::timing::{Impossible, TTL_MAX, TTL_MIN};
use crate::env_file::EnvFile;
use bytesize::ByteSize;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

pub fn nodes(item: &Item<'_>, report: &mut Report) -> Option<RawNodes> {
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

pub fn host(item: &Item<'_>, report: &mut Report) -> Option<String> {
    let text = item.word(report)?;
    match check_host(&text) {
        Ok(()) => Some(text),
        Err(why) => item.refuse(report, why),
    }
}

/// Names are not looked up: a daemon must not wait for a resolver to be seen.
pub fn listen(item: &Item<'_>, report: &mut Report) -> Option<SocketAddr> {
    let text = item.string(report)?;
    match text.parse() {
        Ok(address) => Some(address),
        Err(_) => item.refuse(
            report,
            format!(
                "= {} must be an IP address and a port such as \"127.0.0.1:9470\" or \"[::]:9470\"",
                quoted(&text)
            ),
        ),
    }
}

/// The host name is shown in lines and tables.
pub fn check_host(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > 253 || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("must be 1 to 253 printable ASCII characters without spaces");
    }
    Ok(())
}

pub fn name(item: &Item<'_>, report: &mut Report) -> Option<String> {
    let text = item.string(report)?;
    match check_name(&text) {
        Ok(()) => Some(text),
        Err(complaint) => item.refuse(report, complaint),
    }
}

/// Of a keeper or a lock.
///
/// # Errors
/// Says what would be right.
pub fn check_name(text: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if (1..=128).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(());
    }
    Err(format!("{} must be 1 to 128 letters, digits, dots, underscores or dashes", quoted(text)))
}

pub fn command(item: &Item<'_>, report: &mut Report) -> Option<Vec<String>> {
    const EXPECTED: &str =
        "an array with the program and its arguments; for a shell line write [\"sh\", \"-c\", \"...\"]";
    let argv = item.list(EXPECTED, report, Item::string)?;
    match argv.first().map(String::as_str) {
        None | Some("") => item.refuse(report, "is empty; write the program and its arguments"),
        Some(_) => Some(argv),
    }
}

pub fn key_prefix(item: &Item<'_>, report: &mut Report) -> Option<String> {
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

pub fn ttl(item: &Item<'_>, report: &mut Report) -> Option<Duration> {
    let ttl = item.duration(report)?;
    match check_ttl(ttl) {
        Ok(()) => Some(ttl),
        Err(why) => {
            report.error(&item.place(), why);
            None
        }
    }
}

pub fn positive(item: &Item<'_>, report: &mut Report) -> Option<Duration> {
    let span = item.duration(report)?;
    if span.is_zero() { item.refuse(report, "must be longer than 0s") } else { Some(span) }
}

pub fn number<T: TryFrom<i64>>(item: &Item<'_>, from: i64, to: i64, report: &mut Report) -> Option<T> {
    T::try_from(item.integer(from..=to, report)?).ok()
}

pub fn output(item: &Item<'_>, report: &mut Report) -> Option<OutputConfig> {
    const SIZE_DEFAULT: u64 = 10 * 1024 * 1024;
    const KEEP_DEFAULT: u32 = 5;
    if let Some(entries) = item.value().as_table() {
        let table = Table::open(entries, item.place(), item.source(), &OUTPUT, &[], report);
        let path = table.field("file", report, Item::path);
        let max_size = table.field("max_size", report, size);
        let keep = table.field("keep", report, |item, report| number(item, 0, 1000, report));
        if let Field::Absent = path {
            return item.refuse(report, "needs a file, as in { file = \"keeper.log\" }");
        }
        if max_size.is_bad() || keep.is_bad() {
            return None;
        }
        return Some(OutputConfig::File(FileOutput {
            path: path.value()?,
            max_size: max_size.value().unwrap_or(SIZE_DEFAULT),
            keep: keep.value().unwrap_or(KEEP_DEFAULT),
        }));
    }
    const EXPECTED: &str =
        "\"log\", \"journal\", \"inherit\", \"null\", or a table such as { file = \"keeper.log\" }";
    match item.value().as_str() {
        Some("log") => Some(OutputConfig::Log),
        Some("journal") => Some(OutputConfig::Journal),
        Some("inherit") => Some(OutputConfig::Inherit),
        Some("null") => Some(OutputConfig::Null),
        Some(other) => item.refuse(report, format!("must be {EXPECTED}, not {}", quoted(other))),
        None => item.wrong_type(report, EXPECTED),
    }
}

fn size(item: &Item<'_>, report: &mut Report) -> Option<u64> {
    const EXPECTED: &str = "a string with a unit such as \"10MiB\"";
    let Some(text) = item.value().as_str() else { return item.wrong_type(report, EXPECTED) };
    match text.parse::<ByteSize>() {
        Ok(size) if text.ends_with(|last: char| last.is_ascii_digit()) => {
            item.refuse(report, format!("must be {EXPECTED}; {} has none", size.as_u64()))
        }
        Ok(size) if size.as_u64() < FILE_SIZE_MIN => item.refuse(report, "must be at least \"64KiB\""),
        Ok(size) => Some(size.as_u64()),
        Err(_) => item.refuse(report, format!("must be {EXPECTED}, not {}", quoted(text))),
    }
}

pub fn restart_policy(item: &Item<'_>, report: &mut Report) -> Option<RestartPolicy> {
    let choices = [
        ("always", RestartPolicy::Always),
        ("on-failure", RestartPolicy::OnFailure),
        ("never", RestartPolicy::Never),
    ];
    item.choice(&choices, report)
}

/// A number for this host, or a table of hosts.
pub fn priority(item: &Item<'_>, report: &mut Report) -> Option<Priorities> {
    const EXPECTED: &str = "a whole number, or a table of hosts such as { keeper-a = 10 }";
    const BOUND: i64 = 1000;
    let value = |item: &Item<'_>, report: &mut Report| number(item, -BOUND, BOUND, report).map(Priority);
    if item.value().as_integer().is_some() {
        return value(item, report).map(Priorities::Own);
    }
    let mut hosts = BTreeMap::new();
    let mut good = true;
    for (host, place, item) in item.entries(EXPECTED, report)? {
        if let Err(why) = check_host(host) {
            report.error(&place, format!("the host {} {why}", item.label()));
            good = false;
        }
        match value(&item, report) {
            Some(priority) => drop(hosts.insert(host.to_owned(), priority)),
            None => good = false,
        }
    }
    good.then_some(Priorities::ByHost(hosts))
}

/// For spans in which a keeper would be on the move more than it runs.
pub fn a_second_or_more(item: &Item<'_>, report: &mut Report) -> Option<Duration> {
    let span = item.duration(report)?;
    if span < Duration::from_secs(1) { item.refuse(report, "must be at least 1s") } else { Some(span) }
}

pub fn signal(item: &Item<'_>, report: &mut Report) -> Option<Signal> {
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

pub fn umask(item: &Item<'_>, report: &mut Report) -> Option<u32> {
    const EXPECTED: &str = "a string of up to four octal digits such as \"022\"";
    let Some(text) = item.value().as_str() else { return item.wrong_type(report, EXPECTED) };
    let octal = (1..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    match u32::from_str_radix(text, 8) {
        Ok(mask) if octal && mask <= 0o777 => Some(mask),
        Ok(_) | Err(_) => item.refuse(report, format!("must be {EXPECTED}, at most \"0777\"")),
    }
}

pub fn environment(item: &Item<'_>, report: &mut Report) -> Option<BTreeMap<String, String>> {
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

/// A path with systemd's mark for a file that need not exist.
pub fn env_file(item: &Item<'_>, report: &mut Report) -> Option<EnvFile> {
    let text = item.word(report)?;
    let (optional, path) = text.strip_prefix('-').map_or((false, text.as_str()), |path| (true, path));
    if path.is_empty() {
        return item.refuse(report, "names no file after its \"-\"");
    }
    Some(EnvFile { path: item.source().base().join(path), optional })
}

pub fn limits(item: &Item<'_>, report: &mut Report) -> Option<BTreeMap<String, Limit>> {
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
