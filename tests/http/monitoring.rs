//! The files for Prometheus and Grafana: right by themselves, and against a daemon that is really scraped.

use crate::client::get;
use crate::daemon::{Daemon, SLEEPS, await_some, keeper, own_address, top, top_without_nodes};
use crate::metrics::scrape;
use crate::tools::find_or_skip;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn the_alert_rules_fire_when_they_should() {
    let Some(promtool) = find_or_skip(&["promtool"]) else { return };
    for arguments in
        [["check", "rules", "config/alerts.yml"], ["test", "rules", "tests/http/alerts_test.yml"]]
    {
        let output = Command::new(&promtool).args(arguments).current_dir(ROOT).output().expect("it runs");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
    }
}

/// A daemon that leads, and what it shows of itself.
fn leading(folder: &Path) -> Daemon {
    let daemon = Daemon::start(folder, "one", &(top(folder, "one") + &keeper("k", SLEEPS)));
    daemon.await_child("k");
    daemon
}

#[test]
fn rules_and_dashboard_name_only_metrics_that_exist() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = leading(folder.path());
    let series = scrape(daemon.address());
    let known: BTreeSet<&str> =
        series.keys().map(|series| series.split('{').next().unwrap_or(series)).collect();
    let rules = std::fs::read_to_string(Path::new(ROOT).join("config/alerts.yml")).expect("the rules");
    let mut texts: Vec<String> = queries();
    texts.extend(variables());
    assert!(texts.len() > 20, "the dashboard has {} queries", texts.len());
    texts.extend(rules.lines().filter(|line| !line.contains("description:")).map(str::to_owned));
    let mut used = BTreeSet::new();
    for text in &texts {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        used.extend(words.filter(|word| word.starts_with("keeperd_") || word.starts_with("process_")));
    }
    let unknown: Vec<_> = used.difference(&known).collect();
    assert!(unknown.is_empty(), "not in a scrape: {unknown:?}");
    // Every metric of ours is shown somewhere, by its name or by its parts.
    let shown = |name: &str| {
        used.iter().any(|used| name.starts_with(used.trim_end_matches("_sum").trim_end_matches("_bucket")))
    };
    let unused: Vec<_> = known.iter().filter(|name| name.starts_with("keeperd_") && !shown(name)).collect();
    assert!(unused.is_empty(), "in no rule and no panel: {unused:?}");
}

fn dashboard() -> Value {
    let text = std::fs::read_to_string(Path::new(ROOT).join("config/dashboard.json")).expect("the dashboard");
    serde_json::from_str(&text).expect("JSON")
}

/// The query of every panel.
fn queries() -> Vec<String> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets").clone());
    targets.map(|target| target["expr"].as_str().expect("a query").to_owned()).collect()
}

fn variables() -> Vec<String> {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    variables.iter().filter_map(|variable| variable["definition"].as_str().map(str::to_owned)).collect()
}

/// As Grafana fills it in.
fn filled(query: &str) -> String {
    query.replace("$__rate_interval", "10s").replace("$keeper", ".*").replace("$instance", ".*")
}

/// A Prometheus of our own.
struct Prometheus {
    process: Child,
    address: SocketAddr,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Prometheus {
    /// The rules are those of the repository without their patience. A daemon that takes longer to answer than from one scrape to the
    /// next counts as down.
    fn start(binary: &Path, folder: &Path, targets: &[SocketAddr]) -> Prometheus {
        let rules = std::fs::read_to_string(Path::new(ROOT).join("config/alerts.yml")).expect("the rules");
        let hasty: Vec<&str> = rules.lines().filter(|line| !line.trim_start().starts_with("for:")).collect();
        std::fs::write(folder.join("alerts.yml"), hasty.join("\n")).expect("our folder");
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let config = format!(
            "global: {{ scrape_interval: 4s, scrape_timeout: 4s, evaluation_interval: 1s }}\nrule_files: [alerts.yml]\n\
             scrape_configs:\n  - job_name: keeperd\n    static_configs: [{{ targets: {targets:?} }}]\n"
        );
        std::fs::write(folder.join("prometheus.yml"), config).expect("our folder");
        let address = own_address(9090);
        let log = std::fs::File::create(folder.join("prometheus.log")).expect("our folder");
        let process = Command::new(binary)
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("it runs");
        let mut prometheus = Prometheus { process, address };
        await_some("Prometheus that is ready", || {
            let ended = prometheus.process.try_wait().expect("our child");
            let log = || std::fs::read_to_string(folder.join("prometheus.log")).unwrap_or_default();
            assert!(ended.is_none(), "it ended: {}", log());
            std::net::TcpStream::connect(address).ok()?;
            (get(address, "/-/ready").code == 200).then_some(())
        });
        prometheus
    }

    /// The result of a query; panics when it is refused.
    fn query(&self, query: &str) -> Vec<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let reply = get(self.address, &format!("/api/v1/query?query={encoded}"));
        assert_eq!(reply.code, 200, "{query}: {}", reply.body);
        let answer = reply.json();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().expect("a vector").clone()
    }

    fn fires(&self, alert: &str, labels: &str) -> bool {
        !self.query(&format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\",{labels}}}")).is_empty()
    }

    fn await_alert(&self, alert: &str, labels: &str) {
        await_some(&format!("alert {alert} {labels}"), || self.fires(alert, labels).then_some(()));
    }
}

#[test]
fn a_real_prometheus_scrapes_evaluates_and_alerts() {
    let Some(binary) = find_or_skip(&["prometheus"]) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let mut leads = leading(folder.path());
    let alone = top_without_nodes(folder.path(), "two") + &keeper("lost", SLEEPS);
    let cut_off = Daemon::start(folder.path(), "two", &alone);
    let (good, bad) = (leads.address(), cut_off.address());
    let prometheus = Prometheus::start(&binary, folder.path(), &[good, bad]);
    prometheus.await_alert("KeeperWithoutLeader", "keeper=\"lost\"");
    prometheus.await_alert("KeeperdNodeDown", &format!("instance=\"{bad}\""));
    prometheus.await_alert("KeeperdNoQuorum", &format!("instance=\"{bad}\""));
    for silent in
        ["KeeperOnTwoHosts", "KeeperdDown", "KeeperdReloadFailed", "KeeperCrashLoop", "KeeperFlapping"]
    {
        assert!(!prometheus.fires(silent, ""), "{silent}");
    }
    assert!(!prometheus.fires("KeeperWithoutLeader", "keeper=\"k\""));
    await_some("both scraped", || (prometheus.query("up{job=\"keeperd\"} == 1").len() == 2).then_some(()));
    // Two scrapes, so that rates have something to say.
    await_some("second scrape", || {
        (prometheus.query("count_over_time(keeperd_leader[1m]) > 1").len() == 2).then_some(())
    });
    for query in queries() {
        prometheus.query(&filled(&query));
    }
    for query in ["keeperd_leader{keeper=~\".*\",instance=~\".*\"} == 1", "keeperd_build_info"] {
        assert!(!prometheus.query(query).is_empty(), "{query}");
    }
    let rules = get(prometheus.address, "/api/v1/rules").json();
    let rules = rules["data"]["groups"][0]["rules"].as_array().expect("rules").clone();
    assert!(rules.len() >= 7, "{rules:?}");
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    let kinds = get(prometheus.address, "/api/v1/metadata?metric=keeperd_elections").json();
    assert_eq!(kinds["data"]["keeperd_elections"][0]["type"], "counter", "{kinds}");
    // The host that led is gone, and nobody takes over.
    assert!(leads.stop().success());
    prometheus.await_alert("KeeperdDown", &format!("instance=\"{good}\""));
}
