//! The document a Prometheus scrapes (DESIGN.md 2.5): names and labels are a contract. Made from the board at each scrape, so that a
//! series exists exactly as long as its keeper or node does.

use super::board::{Board, KeeperView, Panel};
use super::events::extension_name;
use super::history::EndReason;
use super::process::Process;
use super::series::{Histogram, Series};
use crate::clock;
use crate::core::event::Role;
use crate::core::time::{Instant, WallTime};
use crate::lock::{NodeState, NodeStatus};
use nix::sys::signal::Signal;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything the daemon counts.
#[derive(Debug)]
pub struct Metrics(Registry);

impl Metrics {
    pub fn new(board: Arc<Board>) -> Metrics {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Daemon { board, started: clock::wall() }));
        Metrics(registry)
    }

    pub fn document(&self) -> String {
        let mut document = String::new();
        encode(&mut document, &self.0).expect("writing to a String cannot fail");
        document
    }
}

#[derive(Debug)]
struct Daemon {
    board: Arc<Board>,
    started: WallTime,
}

/// One keeper, as it is encoded.
struct Keeper {
    view: KeeperView,
    series: Arc<Series>,
    dropped_lines: u64,
}

/// This host has the lock and a lease that is not over, and does not give it up.
pub fn leads(view: &KeeperView, now: Instant) -> bool {
    let holds = matches!(view.role, Role::Leader | Role::Finished);
    holds && view.valid_until.is_some_and(|until| until > now)
}

impl Collector for Daemon {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = clock::boot();
        let keepers: Vec<Keeper> = self.board.panels().iter().map(|panel| Keeper::of(panel)).collect();
        let nodes = self.board.nodes();
        let mut page = Page { encoder: &mut encoder };
        page.state(&keepers, now)?;
        page.counts(&keepers)?;
        page.spans(&keepers)?;
        page.nodes(&nodes)?;
        page.daemon(Process::now(self.started), self.board.reload().ok)
    }
}

impl Keeper {
    fn of(panel: &Panel) -> Keeper {
        let dropped_lines = panel.outlet().dropped.load(Ordering::Relaxed);
        Keeper { view: panel.view(), series: panel.series(), dropped_lines }
    }

    fn label(&self) -> (&'static str, &str) {
        ("keeper", &self.view.name)
    }
}

/// The document while it is written.
struct Page<'p, 'e> {
    encoder: &'p mut DescriptorEncoder<'e>,
}

impl Page<'_, '_> {
    fn state(&mut self, keepers: &[Keeper], now: Instant) -> fmt::Result {
        let help = "1 while this host has the keeper's lock and does not give it up, else 0";
        self.gauge("keeperd_leader", help, keepers, |keeper| f64::from(u8::from(leads(&keeper.view, now))))?;
        let help = "Fencing token of this host's term, 0 without one";
        // Exact: tokens are below 2^53.
        self.gauge("keeperd_fencing_token", help, keepers, |keeper| {
            keeper.view.token.map_or(0.0, |token| token.0 as f64)
        })?;
        let help = "When this host's term began, in seconds of Unix time, 0 without one";
        self.gauge("keeperd_term_start_timestamp_seconds", help, keepers, |keeper| {
            keeper.series.term_start_seconds()
        })?;
        let help = "Time until this host's lease ends unless it is extended, 0 without one";
        self.gauge("keeperd_lease_remaining_seconds", help, keepers, |keeper| {
            keeper.view.valid_until.map_or(0.0, |until| until.since(now).as_secs_f64())
        })
    }

    fn counts(&mut self, keepers: &[Keeper]) -> fmt::Result {
        let help = "Elections this host stood in, by outcome";
        let mut family = self.family("keeperd_elections", help, MetricType::Counter)?;
        for keeper in keepers {
            for (outcome, count) in keeper.series.elections.iter() {
                counter(&mut family, &[keeper.label(), ("outcome", outcome.name())], count)?;
            }
        }
        let help = "Rounds of extending a lease, by outcome";
        let mut family = self.family("keeperd_extensions", help, MetricType::Counter)?;
        for keeper in keepers {
            for (outcome, count) in keeper.series.extensions.iter() {
                counter(&mut family, &[keeper.label(), ("outcome", extension_name(outcome))], count)?;
            }
        }
        let help = "Restarts of the child within a term, by why it had ended";
        let mut family = self.family("keeperd_child_restarts", help, MetricType::Counter)?;
        for keeper in keepers {
            for (ending, count) in keeper.series.restarts.iter() {
                let reason = EndReason::from(ending).name();
                counter(&mut family, &[keeper.label(), ("reason", reason)], count)?;
            }
        }
        let help = "Children told to end, by reason: with their stop signal, and with SIGKILL when something of them was left";
        let mut family = self.family("keeperd_child_kills", help, MetricType::Counter)?;
        for keeper in keepers {
            kills(&mut family, keeper)?;
        }
        let help = "Lines of the child that were lost because their destination did not take them in time";
        let mut family = self.family("keeperd_output_dropped_lines", help, MetricType::Counter)?;
        for keeper in keepers {
            counter(&mut family, &[keeper.label()], keeper.dropped_lines)?;
        }
        Ok(())
    }

    fn spans(&mut self, keepers: &[Keeper]) -> fmt::Result {
        let help = "Time from sending an extension to its outcome";
        self.histogram("keeperd_extension_seconds", help, keepers, |series| &series.extension)?;
        let help = "Time from when the keeper looked free to when its child ran here";
        self.histogram("keeperd_takeover_seconds", help, keepers, |series| &series.takeover)?;
        let help = "Length of this host's terms, from being elected to releasing the lock";
        self.histogram("keeperd_lease_hold_seconds", help, keepers, |series| &series.hold)
    }

    fn nodes(&mut self, nodes: &[NodeStatus]) -> fmt::Result {
        let help = "1 while the lock node answers this host (also in its restart quarantine), else 0";
        let mut family = self.family("keeperd_node_up", help, MetricType::Gauge)?;
        for node in nodes {
            let up = match node.state {
                NodeState::Serving | NodeState::Quarantined => 1.0,
                NodeState::Connecting | NodeState::Down | NodeState::Denied => 0.0,
            };
            family.encode_family(&[("node", node.address.as_str())])?.encode_gauge(&up)?;
        }
        let help = "Last round trip to the lock node, 0 when there is none";
        let mut family = self.family("keeperd_node_ping_seconds", help, MetricType::Gauge)?;
        for node in nodes {
            let seconds = node.rtt.map_or(0.0, |rtt| rtt.as_secs_f64());
            family.encode_family(&[("node", node.address.as_str())])?.encode_gauge(&seconds)?;
        }
        Ok(())
    }

    fn daemon(&mut self, process: Process, reloaded: bool) -> fmt::Result {
        let help = "1 when the configuration in force is the one that was last asked for, 0 after a reload that failed";
        self.value("keeperd_config_last_reload_successful", help, f64::from(u8::from(reloaded)))?;
        let help = "The version that runs";
        self.family("keeperd_build", help, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        let help = "User and system time of the daemon";
        self.family("process_cpu_seconds", help, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(&process.cpu_seconds, None)?;
        self.value("process_resident_memory_bytes", "Memory in use", process.resident_bytes as f64)?;
        self.value("process_virtual_memory_bytes", "Address space in use", process.virtual_bytes as f64)?;
        self.value("process_open_fds", "Open file descriptors", process.open_fds as f64)?;
        self.value("process_max_fds", "Limit of open file descriptors", process.max_fds as f64)?;
        let help = "When the daemon started, in seconds of Unix time";
        self.value("process_start_time_seconds", help, process.start_seconds)
    }

    fn family(
        &mut self,
        name: &'static str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'_>, fmt::Error> {
        self.encoder.encode_descriptor(name, help, None, kind)
    }

    fn value(&mut self, name: &'static str, help: &str, value: f64) -> fmt::Result {
        self.family(name, help, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn gauge(
        &mut self,
        name: &'static str,
        help: &str,
        keepers: &[Keeper],
        value: impl Fn(&Keeper) -> f64,
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Gauge)?;
        for keeper in keepers {
            family.encode_family(&[keeper.label()])?.encode_gauge(&value(keeper))?;
        }
        Ok(())
    }

    fn histogram(
        &mut self,
        name: &'static str,
        help: &str,
        keepers: &[Keeper],
        pick: impl Fn(&Series) -> &Histogram,
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Histogram)?;
        for keeper in keepers {
            let histogram = pick(&keeper.series);
            let buckets = histogram.buckets();
            // Of the same reading as the buckets, or a scrape would contradict itself.
            let count = buckets.iter().map(|(_, count)| count).sum();
            family.encode_family(&[keeper.label()])?.encode_histogram::<NoLabelSet>(
                histogram.sum_seconds(),
                count,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}

fn counter(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, count: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, _, f64>(&count, None)
}

fn kills(family: &mut MetricEncoder<'_>, keeper: &Keeper) -> fmt::Result {
    let Keeper { series, .. } = keeper;
    let (stop, kill) = (series.stop_signal, Signal::SIGKILL);
    for ((reason, stopped), (_, killed)) in series.stopped.iter().zip(series.killed.iter()) {
        let counts: &[(Signal, u64)] =
            if stop == kill { &[(kill, stopped + killed)] } else { &[(stop, stopped), (kill, killed)] };
        for (signal, count) in counts {
            let labels = [keeper.label(), ("reason", reason.name()), ("signal", signal.as_str())];
            counter(family, &labels, *count)?;
        }
    }
    Ok(())
}
