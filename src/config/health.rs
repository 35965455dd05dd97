//! `health` and `ready`: one kind of probe each.

use super::decode::{Item, Shape, Table};
use super::report::Report;
use super::values::{command, number, positive};
use super::{Health, HttpTarget, Probe, Question, Socket};
use hyper::http::uri::{Authority, Scheme, Uri};
use std::fmt;
use std::time::Duration;

static HEALTH: Shape = Shape {
    title: "health",
    keys: &["command", "http", "tcp", "max_silence", "interval", "timeout", "failures", "standby"],
};
static READY: Shape =
    Shape { title: "ready", keys: &["command", "http", "tcp", "interval", "timeout", "failures"] };

const INTERVAL_DEFAULT: Duration = Duration::from_secs(10);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
const FAILURES_DEFAULT: u32 = 3;
/// Probes closer together than this are a load, not a question.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

pub fn health(item: &Item<'_>, report: &mut Report) -> Option<Health> {
    let table = open(item, &HEALTH, report)?;
    let kind = one_kind(item, &table, &["command", "http", "tcp", "max_silence"], report)?;
    if kind == "max_silence" {
        for key in ["interval", "timeout", "failures", "standby"] {
            if let Some(other) = table.item(key) {
                return other
                    .refuse(report, "has no meaning with max_silence, which only listens to the child");
            }
        }
        return table.field("max_silence", report, positive).value().map(Health::MaxSilence);
    }
    let standby = table.field("standby", report, Item::boolean);
    let probe = probe(&table, kind, report)?;
    if standby.is_bad() {
        return None;
    }
    Some(Health::Probe { probe, standby: standby.value().unwrap_or(false) })
}

pub fn ready(item: &Item<'_>, report: &mut Report) -> Option<Probe> {
    let table = open(item, &READY, report)?;
    let kind = one_kind(item, &table, &["command", "http", "tcp"], report)?;
    probe(&table, kind, report)
}

fn open<'a>(item: &Item<'a>, shape: &'static Shape, report: &mut Report) -> Option<Table<'a>> {
    match item.value().as_table() {
        Some(entries) => {
            Some(Table::open(entries, item.place(), item.source(), shape, &[&HEALTH, &READY], report))
        }
        None => item.wrong_type(report, "a table such as { http = \"http://127.0.0.1:8080/healthz\" }"),
    }
}

fn one_kind(
    item: &Item<'_>,
    table: &Table<'_>,
    kinds: &[&'static str],
    report: &mut Report,
) -> Option<&'static str> {
    let written: Vec<&'static str> =
        kinds.iter().copied().filter(|kind| table.item(kind).is_some()).collect();
    match written.as_slice() {
        [kind] => Some(kind),
        [] => item.refuse(report, format!("needs one of {}", kinds.join(", "))),
        several => item.refuse(report, format!("can have only one of {}", several.join(", "))),
    }
}

fn probe(table: &Table<'_>, kind: &'static str, report: &mut Report) -> Option<Probe> {
    let question = match kind {
        "command" => table.field("command", report, command).value().map(Question::Command),
        "http" => table.field("http", report, http).value().map(Question::Http),
        _ => table.field("tcp", report, tcp).value().map(Question::Tcp),
    };
    let interval = table.field("interval", report, interval);
    let timeout = table.field("timeout", report, positive);
    let failures = table.field("failures", report, |item, report| number(item, 1, 1_000, report));
    if interval.is_bad() || timeout.is_bad() || failures.is_bad() {
        return None;
    }
    Some(Probe {
        question: question?,
        interval: interval.value().unwrap_or(INTERVAL_DEFAULT),
        timeout: timeout.value().unwrap_or(TIMEOUT_DEFAULT),
        failures: failures.value().unwrap_or(FAILURES_DEFAULT),
    })
}

fn interval(item: &Item<'_>, report: &mut Report) -> Option<Duration> {
    let span = item.duration(report)?;
    if span < INTERVAL_MIN {
        return item.refuse(report, format!("must be at least {INTERVAL_MIN:?}"));
    }
    Some(span)
}

fn http(item: &Item<'_>, report: &mut Report) -> Option<HttpTarget> {
    const EXPECTED: &str = "must be an address such as \"http://127.0.0.1:8080/healthz\"";
    // Never quoted in what is said: it may hold a password.
    let Ok(uri) = item.word(report)?.parse::<Uri>() else { return item.refuse(report, EXPECTED) };
    match (uri.scheme(), uri.authority()) {
        (Some(scheme), _) if *scheme == Scheme::HTTPS => {
            item.refuse(report, "must begin with http://; for https use command, for example with curl")
        }
        (Some(scheme), Some(authority)) if *scheme == Scheme::HTTP => {
            let Some(socket) = socket(authority, Some(80)) else { return item.refuse(report, EXPECTED) };
            let path_and_query = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
            Some(HttpTarget { socket, path_and_query })
        }
        _ => item.refuse(report, EXPECTED),
    }
}

fn tcp(item: &Item<'_>, report: &mut Report) -> Option<Socket> {
    let authority = item.word(report)?.parse::<Authority>().ok();
    match authority.and_then(|authority| socket(&authority, None)) {
        Some(socket) => Some(socket),
        None => item.refuse(report, "must be a host and a port such as \"127.0.0.1:5432\""),
    }
}

fn socket(authority: &Authority, port: Option<u16>) -> Option<Socket> {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let bare = !authority.as_str().contains('@') && !host.is_empty();
    // A port that is no number would otherwise be taken for none.
    let port = match authority.port() {
        Some(port) => Some(port.as_u16()),
        None if authority.as_str().ends_with(authority.host()) => port,
        None => None,
    };
    let port = port.filter(|port| bare && *port != 0)?;
    Some(Socket { host: host.to_owned(), port })
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Socket { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// For people: without arguments and query, which may hold secrets.
impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Question::Command(argv) => f.write_str(argv.first().map_or("", String::as_str)),
            Question::Http(HttpTarget { socket, path_and_query }) => {
                let path = path_and_query.split('?').next().unwrap_or_default();
                write!(f, "http://{socket}{path}")
            }
            Question::Tcp(socket) => write!(f, "tcp {socket}"),
        }
    }
}
