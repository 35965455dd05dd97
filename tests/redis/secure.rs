//! TLS, AUTH and users, as an operator sets them up: real servers with certificates and an aclfile, the real keeperd.

use super::daemon::*;
use super::host::{KEY, LONG};
use super::server::{Server, Version};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const SECRET: &str = "geheim-4711";
const ADMIN: &str = "?user=admin&pass=admin";

/// A CA; what it signs goes into files `name.pem` and `name.key`.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new(folder: &Path, name: &str) -> Ca {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("a certificate");
        private(&folder.join(format!("{name}.pem")), &cert.pem());
        Ca { issuer: Issuer::new(params, key) }
    }

    fn sign(&self, folder: &Path, name: &str, hosts: &[&str], expired: bool) {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).expect("names");
        if expired {
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        private(&folder.join(format!("{name}.pem")), &cert.pem());
        private(&folder.join(format!("{name}.key")), &key.serialize_pem());
    }
}

/// A server that speaks TLS only, with a certificate of `folder`, and with the users of config/redis.acl.
fn server(folder: &Path, cert: &str, clients: &str) -> Server {
    let file = |name: String| folder.join(name).display().to_string();
    Server::start_as(Version::Redis70, ADMIN, |port, own| {
        let acl = include_str!("../../config/redis.acl").replace("CHANGE-ME", SECRET);
        let aclfile = own.join("users.acl");
        private(&aclfile, &format!("{acl}user admin on >admin ~* &* +@all\n"));
        let (cert, key) = (file(format!("{cert}.pem")), file(format!("{cert}.key")));
        let options = [
            ["--port", "0"],
            ["--tls-port", &port.to_string()],
            ["--tls-cert-file", &cert],
            ["--tls-key-file", &key],
            ["--tls-ca-cert-file", &file("ca.pem".to_owned())],
            ["--tls-auth-clients", clients],
            ["--aclfile", &aclfile.display().to_string()],
        ];
        options.concat().into_iter().map(str::to_owned).collect()
    })
}

fn lock(nodes: &[String], more: &str) -> String {
    format!("nodes = {nodes:?}\nrestart_quarantine = \"0s\"\n{more}")
}

/// The cooldown is that of a guard which a machine that stalls took for lost: shorter than what is waited for.
fn keeper(ttl: &str) -> String {
    format!(
        "[[keeper]]\nname = \"oracle\"\ncommand = [\"sleep\", \"600\"]\nttl = \"{ttl}\"\ncooldown = \"1s\"\n"
    )
}

const TLS: &str = "tls = { ca = \"ca.pem\", cert = \"client.pem\", key = \"client.key\" }\n";

/// No process of the tree has it in its arguments or environment.
fn assert_hidden(root: u32, except: &[u32]) {
    let pids = tree(root);
    assert!(pids.len() >= 3, "daemon, guard, child: {pids:?}");
    for pid in pids.iter().filter(|pid| !except.contains(pid)) {
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            assert!(!text.contains(SECRET), "{file} of {pid}: {text}");
        }
    }
}

#[test]
fn with_tls_and_a_user_everything_works_and_the_secret_is_nowhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let ca = Ca::new(folder, "ca");
    ca.sign(folder, "server", &["localhost", "127.0.0.1"], false);
    ca.sign(folder, "client", &[], false);
    let servers = [0; 3].map(|_| server(folder, "server", "yes"));
    private(&folder.join("password"), &format!("{SECRET}\n"));
    let nodes: Vec<String> = servers.iter().map(|s| format!("rediss://localhost:{}", s.port)).collect();
    let login = format!("username = \"keeperd\"\npassword_file = \"password\"\n{TLS}");
    let config = write_config(folder, "a", &lock(&nodes, &login), &keeper("120s"));
    let mut a = Daemon::start(&config, &[]);
    let child = a.until_leading();
    assert_hidden(a.pid(), &[]);

    // A standby whose address names the user, and whose password comes from the environment.
    let nodes: Vec<String> =
        servers.iter().map(|s| format!("rediss://keeperd@127.0.0.1:{}", s.port)).collect();
    let config = write_config(folder, "b", &lock(&nodes, TLS), &keeper("120s"));
    let credentials = folder.display().to_string();
    let variables = [("KEEPERD_REDIS_PASSWORD", SECRET), ("CREDENTIALS_DIRECTORY", credentials.as_str())];
    let mut b = Daemon::start(&config, &variables);
    until("standing by", || (b.status()["keepers"][0]["holder"]["host"] == "a").then_some(()));

    // Far less than the lease: the guard has released over TLS, and the standby was told.
    let killed = Instant::now();
    a.kill();
    let next = b.until_leading();
    assert!(killed.elapsed() < LONG, "{:?}", killed.elapsed());
    assert!(!lives(child));
    assert_hidden(b.pid(), &[b.pid()]);
    let variables = fs::read(format!("/proc/{next}/environ")).expect("our own process");
    assert!(!String::from_utf8_lossy(&variables).contains("CREDENTIALS_DIRECTORY"));

    until_or(
        || b.status_text(),
        || {
            let status = b.status();
            let mut nodes = status["nodes"].as_array()?.iter();
            nodes.all(|node| node["state"] == "serving" && node["reason"].is_null()).then_some(())
        },
    );
    let mut check = Command::new(KEEPERD);
    check.args(["check", "--config"]).arg(&config).env("KEEPERD_REDIS_PASSWORD", SECRET);
    let check = text(&check.output().expect("the built keeperd"));
    let mut said = Vec::new();
    for words in [
        &["pause", "oracle", "--everywhere"][..],
        &["resume", "oracle", "--everywhere"],
        &["unlock", "oracle", "--force"],
    ] {
        let mut command = Command::new(KEEPERD);
        command.args(words).arg("--config").arg(&config).env("KEEPERD_REDIS_PASSWORD", SECRET);
        let output = command.output().expect("the built keeperd");
        assert!(output.status.success(), "{words:?}: {}\n{}", text(&output), b.log());
        said.push(text(&output));
    }
    for shown in said.into_iter().chain([a.log(), b.log(), b.status_text(), check]) {
        assert!(!shown.contains(SECRET), "{shown}");
        assert!(!shown.contains("refused"), "nothing is refused: {shown}");
    }
    b.stop();
    for server in &servers {
        assert_eq!(server.run::<i64>(&["EXISTS", "redlock:oracle"]), 0);
    }
    // The guard of a killed daemon releases by itself, also when nobody stands by.
    let config = write_config(folder, "c", &lock(&nodes, &login), &keeper("120s"));
    let mut c = Daemon::start(&config, &[]);
    c.until_leading();
    c.kill();
    let free = |server: &&Server| server.run::<i64>(&["EXISTS", KEY]) == 0;
    until("the release of the guard", || (servers.iter().filter(free).count() >= 2).then_some(()));
}

#[test]
fn what_is_wrong_with_a_node_is_said_in_its_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let here = ["localhost"];
    let ca = Ca::new(folder, "ca");
    ca.sign(folder, "server", &here, false);
    ca.sign(folder, "expired", &here, true);
    ca.sign(folder, "elsewhere", &["elsewhere"], false);
    let stranger = Ca::new(folder, "stranger");
    stranger.sign(folder, "strange", &here, false);
    let [strange, expired, elsewhere, wrong] =
        ["strange", "expired", "elsewhere", "server"].map(|cert| server(folder, cert, "no"));
    let plain = Server::start(Version::Redis70);
    let url = |server: &Server| format!("rediss://localhost:{}", server.port);
    let nodes = [
        url(&strange),
        url(&expired),
        url(&elsewhere),
        format!("rediss://keeperd:wrong-one@localhost:{}", wrong.port),
        url(&plain),
    ];
    let more = format!("username = \"keeperd\"\n{}", "tls = { ca = \"ca.pem\" }");
    let config = write_config(folder, "a", &lock(&nodes, &more), &keeper("120s"));
    let a = Daemon::start(&config, &[("KEEPERD_REDIS_PASSWORD", SECRET)]);
    // A server without TLS waits for the end of a line, and so looks like one that is frozen.
    let clues = [
        ("denied", "UnknownIssuer"),
        ("denied", "certificate expired"),
        ("denied", "not valid for name"),
        ("denied", "WRONGPASS"),
        ("down", "connect"),
    ];
    for (i, (state, clue)) in clues.iter().enumerate() {
        let node = until_or(
            || format!("{clue}\n{}", a.log()),
            || {
                let node = a.status()["nodes"][i].clone();
                (node["state"] == *state).then_some(node)
            },
        );
        let reason = node["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(clue), "{clue}: {reason}");
    }
    assert!(!a.status_text().contains("wrong-one") && !a.log().contains("wrong-one"));

    // Those who ask for our certificate, and get none or a stranger's.
    stranger.sign(folder, "client", &[], false);
    let asks = server(folder, "server", "yes");
    for (name, tls, clue) in [
        ("none", "tls = { ca = \"ca.pem\" }\n", "wants a client certificate"),
        ("strange", TLS, "refuses our side of TLS (UnknownCA)"),
    ] {
        let login = format!("username = \"keeperd\"\n{tls}");
        let config = write_config(folder, name, &lock(&[url(&asks)], &login), &keeper("120s"));
        let a = Daemon::start(&config, &[("KEEPERD_REDIS_PASSWORD", SECRET)]);
        let reason = until_or(
            || format!("{clue}\n{}", a.log()),
            || {
                let node = a.status()["nodes"][0].clone();
                (node["state"] == "denied").then(|| node["reason"].as_str().unwrap_or_default().to_owned())
            },
        );
        assert!(reason.contains(clue), "{clue}: {reason}");
    }
}

/// Extensions are refused, elections are not: each term ends before its lease does, and nothing runs twice.
#[test]
fn a_right_that_is_taken_away_under_a_leader_costs_the_term_and_makes_no_second_copy() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let servers = [0; 3].map(|_| {
        Server::start_as(Version::Redis70, ADMIN, |_, own| {
            let acl = include_str!("../../config/redis.acl").replace("CHANGE-ME", SECRET);
            let file = own.join("users.acl");
            private(&file, &format!("{acl}user admin on >admin ~* &* +@all\n"));
            vec!["--aclfile".to_owned(), file.display().to_string()]
        })
    });
    let nodes: Vec<String> = servers.iter().map(Server::url).collect();
    let login = "username = \"keeperd\"\n";
    let daemons = ["a", "b"].map(|name| {
        let config = write_config(folder, name, &lock(&nodes, login), &keeper("2s"));
        Daemon::start(&config, &[("KEEPERD_REDIS_PASSWORD", SECRET)])
    });
    let logs = || daemons.each_ref().map(Daemon::log).join("\n");
    until_or(logs, || daemons.iter().find(|d| d.status()["keepers"][0]["role"] == "leader"));
    for server in &servers {
        let _: String = server.run(&["ACL", "SETUSER", "keeperd", "-pexpire"]);
    }
    until_or(logs, || daemons.iter().find(|d| d.status_text().contains("extend of redlock:oracle")));
    let sleeps = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep\x00600"))
    };
    let (began, mut terms) = (Instant::now(), std::collections::BTreeSet::new());
    while began.elapsed() < Duration::from_secs(3) || terms.is_empty() {
        let seen: Vec<u32> = daemons.iter().flat_map(|d| tree(d.pid())).filter(sleeps).collect();
        terms.extend(seen.iter().copied());
        // One may have ended before the next was seen: those that still run now ran all at one time.
        let running = seen.iter().filter(|pid| sleeps(pid)).count();
        assert!(running <= 1, "{running} copies at once");
        assert!(began.elapsed() < LONG, "nobody ran\n{}", logs());
        std::thread::sleep(Duration::from_millis(5));
    }
    // Connected anew, a node says which, and votes no more.
    let again = Daemon::start(
        &write_config(folder, "c", &lock(&nodes, login), &keeper("2s")),
        &[("KEEPERD_REDIS_PASSWORD", SECRET)],
    );
    let reason = until("denied", || {
        let node = again.status()["nodes"][0].clone();
        (node["state"] == "denied").then(|| node["reason"].as_str().unwrap_or_default().to_owned())
    });
    assert!(reason.contains("pexpire"), "{reason}");
}
