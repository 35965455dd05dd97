//! `/metrics`: names, and that they count what happens.

use crate::client::get;
use crate::daemon::{Daemon, SLEEPS, await_some, keeper, top, top_without_nodes};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Family, type, and each series: name with labels, without the keeper's or node's.
const FAMILIES: &[(&str, &str)] = &[
    ("keeperd_leader", "gauge"),
    ("keeperd_fencing_token", "gauge"),
    ("keeperd_elections", "counter"),
    ("keeperd_lease_hold_seconds", "histogram"),
    ("keeperd_term_start_timestamp_seconds", "gauge"),
    ("keeperd_extensions", "counter"),
    ("keeperd_extension_seconds", "histogram"),
    ("keeperd_lease_remaining_seconds", "gauge"),
    ("keeperd_takeover_seconds", "histogram"),
    ("keeperd_node_up", "gauge"),
    ("keeperd_node_ping_seconds", "gauge"),
    ("keeperd_child_restarts", "counter"),
    ("keeperd_child_kills", "counter"),
    ("keeperd_output_dropped_lines", "counter"),
    ("keeperd_config_last_reload_successful", "gauge"),
    ("keeperd_build", "info"),
    ("process_cpu_seconds", "counter"),
    ("process_resident_memory_bytes", "gauge"),
    ("process_virtual_memory_bytes", "gauge"),
    ("process_open_fds", "gauge"),
    ("process_max_fds", "gauge"),
    ("process_start_time_seconds", "gauge"),
];

/// Each series with its value.
pub fn scrape(address: SocketAddr) -> BTreeMap<String, f64> {
    let reply = get(address, "/metrics");
    assert!(reply.body.ends_with("# EOF\n"));
    let samples = reply.body.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a series and a value");
            (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line}")))
        })
        .collect()
}

#[test]
fn every_series_of_what_is_configured_is_there_from_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = top_without_nodes(folder.path(), "one")
        + &keeper("a", SLEEPS)
        + &keeper(
            "b.c-d_e",
            &format!(
                "{SLEEPS}
stop_signal = \"SIGINT\""
            ),
        );
    let daemon = Daemon::start(folder.path(), "one", &config);
    let document = get(daemon.address(), "/metrics").body;
    for (family, kind) in FAMILIES {
        assert!(
            document.contains(&format!("# TYPE {family} {kind}\n")),
            "{family} has no type in\n{document}"
        );
        let help = document.lines().find_map(|line| line.strip_prefix(&format!("# HELP {family} ")));
        assert!(help.is_some_and(|help| help.len() > 10), "{family} has no help");
    }
    assert_eq!(document.matches("# TYPE ").count(), FAMILIES.len(), "{document}");
    let found = scrape(daemon.address());
    let keepers = [("a", "SIGTERM"), ("b.c-d_e", "SIGINT")];
    let mut expected = Vec::new();
    for (keeper, signal) in keepers {
        let mut series =
            |name: &str, labels: &str| expected.push(format!("{name}{{keeper=\"{keeper}\"{labels}}}"));
        for name in [
            "keeperd_leader",
            "keeperd_fencing_token",
            "keeperd_term_start_timestamp_seconds",
            "keeperd_lease_remaining_seconds",
            "keeperd_output_dropped_lines_total",
            "keeperd_lease_hold_seconds_count",
            "keeperd_extension_seconds_count",
            "keeperd_takeover_seconds_sum",
        ] {
            series(name, "");
        }
        for outcome in ["won", "conflict", "no_quorum", "late"] {
            series("keeperd_elections_total", &format!(",outcome=\"{outcome}\""));
        }
        for outcome in ["renewed", "foreign", "evicted", "unknown"] {
            series("keeperd_extensions_total", &format!(",outcome=\"{outcome}\""));
        }
        for reason in ["exited", "restart", "health"] {
            series("keeperd_child_restarts_total", &format!(",reason=\"{reason}\""));
        }
        for reason in [
            "lease_lost",
            "stop",
            "step_down",
            "outbid",
            "reload",
            "pause",
            "restart",
            "health",
            "give_up",
            "guard_lost",
        ] {
            for signal in [signal, "SIGKILL"] {
                series("keeperd_child_kills_total", &format!(",reason=\"{reason}\",signal=\"{signal}\""));
            }
        }
    }
    for node in 1..=3 {
        let node = format!("unix://{}/r{node}.sock", folder.path().display());
        expected.push(format!("keeperd_node_up{{node=\"{node}\"}}"));
        expected.push(format!("keeperd_node_ping_seconds{{node=\"{node}\"}}"));
    }
    for series in expected {
        assert_eq!(found.get(&series), Some(&0.0), "{series} in\n{document}");
    }
    assert!(found.contains_key("keeperd_lease_hold_seconds_bucket{le=\"+Inf\",keeper=\"a\"}"), "{document}");
    assert_eq!(found["keeperd_config_last_reload_successful"], 1.0);
    assert_eq!(found[concat!("keeperd_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}")], 1.0);
}

#[test]
fn what_happens_is_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let stubborn = "command = [\"sh\", \"-c\", \"trap '' TERM; while :; do sleep 1; done\"]\nstop_timeout = \"100ms\"\n\
                    health = { command = [\"false\"], interval = \"200ms\", failures = 1 }\nrestart_delay = \"10ms\"\n\
                    restart_delay_max = \"10ms\"\ngive_up_after = 1000";
    let crashes = "command = [\"sh\", \"-c\", \"sleep 0.2; exit 3\"]\nrestart_delay = \"10ms\"\n\
                   restart_delay_max = \"10ms\"\ngive_up_after = 1000";
    let config = top(folder.path(), "one")
        // Two extensions of it are waited for.
        + &keeper("k", &format!("{SLEEPS}\nttl = \"5s\""))
        + &keeper("crashes", crashes)
        + &keeper("stubborn", stubborn);
    let mut first = Daemon::start(folder.path(), "one", &config);
    let status = first.await_child("k");
    let address = first.address();
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs_f64();
    let led = await_some("extension", || {
        let found = scrape(address);
        let extended = found["keeperd_extensions_total{keeper=\"k\",outcome=\"renewed\"}"];
        // Counters go on while they are read: these two are of one moment in most scrapes.
        let of_one_moment = found["keeperd_extension_seconds_count{keeper=\"k\"}"] == extended;
        let enough = extended >= 2.0
            && of_one_moment
            && found["keeperd_child_restarts_total{keeper=\"crashes\",reason=\"exited\"}"] >= 2.0
            && found["keeperd_child_kills_total{keeper=\"stubborn\",reason=\"health\",signal=\"SIGKILL\"}"]
                >= 1.0
            && found["keeperd_child_kills_total{keeper=\"stubborn\",reason=\"health\",signal=\"SIGTERM\"}"]
                >= 1.0
            && found["keeperd_child_restarts_total{keeper=\"stubborn\",reason=\"health\"}"] >= 1.0;
        enough.then_some(found)
    });
    assert_eq!(led["keeperd_leader{keeper=\"k\"}"], 1.0);
    assert_eq!(Some(led["keeperd_fencing_token{keeper=\"k\"}"]), status["token"].as_f64());
    assert_eq!(led["keeperd_elections_total{keeper=\"k\",outcome=\"won\"}"], 1.0);
    assert_eq!(led["keeperd_takeover_seconds_count{keeper=\"k\"}"], 1.0);
    assert_eq!(led["keeperd_lease_hold_seconds_count{keeper=\"k\"}"], 0.0, "the term is not over");
    let extended = led["keeperd_extensions_total{keeper=\"k\",outcome=\"renewed\"}"];
    assert_eq!(led["keeperd_extension_seconds_bucket{le=\"+Inf\",keeper=\"k\"}"], extended);
    assert!((0.0..=5.0).contains(&led["keeperd_lease_remaining_seconds{keeper=\"k\"}"]));
    assert!((led["keeperd_term_start_timestamp_seconds{keeper=\"k\"}"] - now).abs() < 60.0);
    assert_eq!(led[&format!("keeperd_node_up{{node=\"{}\"}}", folder.path().display())], 1.0);
    let of_the_kernel = [
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
    ];
    for name in of_the_kernel {
        assert!(led[name] > 0.0, "{name}");
    }
    assert!((led["process_start_time_seconds"] - now).abs() < 60.0);
    let second = Daemon::start(folder.path(), "two", &(top(folder.path(), "two") + &keeper("k", SLEEPS)));
    second.await_keeper("k", "standing by", |keeper| keeper["holder"]["host"] == "one");
    assert_eq!(scrape(second.address())["keeperd_leader{keeper=\"k\"}"], 0.0);
    // Its guard sees an end that nobody asked for.
    let child = i32::try_from(status["pid"].as_i64().expect("it runs")).expect("a pid");
    kill(Pid::from_raw(child), Signal::SIGKILL).expect("a child of the guard");
    await_some("restart", || {
        let found = scrape(address);
        (found["keeperd_child_restarts_total{keeper=\"k\",reason=\"exited\"}"] == 1.0).then_some(())
    });
    let killed = "keeperd_child_kills_total{keeper=\"k\",reason=\"stop\",signal=\"SIGTERM\"}";
    assert_eq!(scrape(address)[killed], 0.0, "a stranger's signal is not ours");
    assert!(first.stop().success());
    second.await_child("k");
    let taken = scrape(second.address());
    assert_eq!(taken["keeperd_takeover_seconds_count{keeper=\"k\"}"], 1.0);
    assert!(taken["keeperd_takeover_seconds_sum{keeper=\"k\"}"] > 0.0);
}
