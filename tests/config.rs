//! What an operator may write, and what keeperd answers when it is wrong.

use keeperd::config::{
    Config, Difference, Env, Health, HttpTarget, Limit, LockConfig, NodeAddress, OutputConfig, Probe,
    Question, RedisConfig, RetryCount, Socket, UNLIMITED, fixed_keys, load, parse,
};
use keeperd::core::preference::{Priorities, Priority};
use keeperd::core::restart::RestartPolicy;
use keeperd::core::timing::Timing;
use keeperd::env_file::EnvFile;
use keeperd::ops::check;
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const REDIS: &str = "[lock]\nnodes = [\"a\", \"b\", \"c\"]\n";
const KEEPER: &str = "[[keeper]]\nname = \"k\"\ncommand = [\"true\"]\n";

fn env<const N: usize>(variables: [(&str, &str); N]) -> Env {
    variables.into_iter().collect()
}

fn read(text: &str) -> Config {
    read_in(text, &env([]))
}

fn read_in(text: &str, env: &Env) -> Config {
    parse(Path::new("t.toml"), text, env).unwrap_or_else(|errors| panic!("{text}\n{errors}"))
}

fn errors(text: &str) -> String {
    errors_in(text, &env([]))
}

fn errors_in(text: &str, env: &Env) -> String {
    match parse(Path::new("t.toml"), text, env) {
        Ok(config) => panic!("accepted: {text}\n{config:#?}"),
        Err(errors) => errors.to_string(),
    }
}

fn redis(config: &Config) -> &RedisConfig {
    match &config.lock {
        LockConfig::Redis(redis) => redis,
        LockConfig::Local(local) => panic!("engine local: {local:?}"),
    }
}

/// A directory of its own for a test that needs files.
fn directory(test: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("config-{test}"));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(path.join("keepers.d")).expect("the target directory can be written");
    path
}

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

#[test]
fn a_minimal_file_gets_every_default() {
    let config = read(&format!("{REDIS}{KEEPER}"));
    let lock = redis(&config);
    assert_eq!(lock.nodes.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(lock.key_prefix, "redlock:");
    assert_eq!((lock.retry_count, lock.retry_delay), (RetryCount::Times(3), Duration::from_millis(200)));
    assert_eq!(lock.restart_quarantine, Duration::from_millis(32_300));
    let keeper = &config.keepers[0];
    assert_eq!((keeper.name.as_str(), keeper.lock.as_str()), ("k", "k"));
    assert_eq!(keeper.timing, Timing::new(Duration::from_secs(30), Duration::from_secs(5)).unwrap());
    assert_eq!(keeper.process.stop_signal, Signal::SIGTERM);
    assert!(keeper.process.no_new_privileges && !keeper.process.clear_env);
    assert_eq!(keeper.restart, keeperd::core::restart::RestartRules::default());
    assert_eq!((&keeper.priorities, keeper.hold), (&Priorities::default(), Duration::from_secs(60)));
    assert_eq!(config.warnings, Vec::<String>::new());
    assert!(!config.host.is_empty());
}

#[test]
fn a_wrong_value_is_told_with_what_would_be_right() {
    let table = [
        // What stands in [[keeper]], and the answer.
        ("comand = 1", "t.toml:6:1: unknown key \"comand\" in [[keeper]]; did you mean \"command\"?"),
        ("nodes = []", "t.toml:6:1: unknown key \"nodes\" in [[keeper]]; it belongs in [lock]"),
        ("health = {}", "t.toml:6:10: health needs one of command, http, tcp, max_silence"),
        ("ready = {}", "t.toml:6:9: ready needs one of command, http, tcp"),
        (
            "health = true",
            "t.toml:6:10: health must be a table such as { http = \"http://127.0.0.1:8080/healthz\" }, not a boolean",
        ),
        (
            "health = { tcp = \"a:1\", command = [\"true\"], interval = \"1s\" }",
            "t.toml:6:10: health can have only one of command, tcp",
        ),
        (
            "health = { tpc = \"a:1\", http = \"http://a/\" }",
            "t.toml:6:12: unknown key \"tpc\" in health; did you mean \"tcp\"?",
        ),
        (
            "ready = { tcp = \"a:1\", standby = true }",
            "t.toml:6:24: unknown key \"standby\" in ready; it belongs in health",
        ),
        (
            "ready = { max_silence = \"1s\" }",
            "t.toml:6:9: ready needs one of command, http, tcp\nt.toml:6:11: unknown key \"max_silence\" in ready; it belongs in health",
        ),
        ("health = { tcp = \"a:1\", timeout = \"0s\" }", "t.toml:6:35: timeout must be longer than 0s"),
        ("health = { tcp = \"a:1\", interval = \"99ms\" }", "t.toml:6:36: interval must be at least 100ms"),
        (
            "health = { tcp = \"a:1\", failures = 0 }",
            "t.toml:6:36: failures must be a whole number from 1 to 1000",
        ),
        ("health = { tcp = \"a\" }", "t.toml:6:18: tcp must be a host and a port such as \"127.0.0.1:5432\""),
        (
            "health = { tcp = \"a:0\" }",
            "t.toml:6:18: tcp must be a host and a port such as \"127.0.0.1:5432\"",
        ),
        (
            "health = { tcp = \"a:65536\" }",
            "t.toml:6:18: tcp must be a host and a port such as \"127.0.0.1:5432\"",
        ),
        (
            "health = { tcp = \"u@a:1\" }",
            "t.toml:6:18: tcp must be a host and a port such as \"127.0.0.1:5432\"",
        ),
        (
            "health = { http = \"https://a/\" }",
            "t.toml:6:19: http must begin with http://; for https use command, for example with curl",
        ),
        (
            "health = { http = \"a/healthz\" }",
            "t.toml:6:19: http must be an address such as \"http://127.0.0.1:8080/healthz\"",
        ),
        (
            "health = { http = \"http://u:secret@a/\" }",
            "t.toml:6:19: http must be an address such as \"http://127.0.0.1:8080/healthz\"",
        ),
        (
            "health = { max_silence = \"1m\", failures = 2 }",
            "t.toml:6:43: failures has no meaning with max_silence, which only listens to the child",
        ),
        (
            "health = { max_silence = \"1m\", standby = true }",
            "t.toml:6:42: standby has no meaning with max_silence, which only listens to the child",
        ),
        ("ttl = 30", "t.toml:6:7: ttl must be a string with a unit such as \"30s\"; 30 has none"),
        ("ttl = true", "t.toml:6:7: ttl must be a string with a unit such as \"30s\", not a boolean"),
        (
            "ttl = \"30\"",
            "t.toml:6:7: ttl = \"30\" is not a duration such as \"30s\" or \"1m 30s\": time unit needed, for example \
             30sec or 30ms",
        ),
        ("ttl = \"500ms\"", "t.toml:6:7: ttl 500ms is too short: at least 1s"),
        ("ttl = \"2h\"", "t.toml:6:7: ttl 7200s is too long: at most 3600s"),
        (
            "ttl = \"1500.5ms\"",
            "t.toml:6:7: ttl 1.5005s must be a whole number of milliseconds, as Redis counts",
        ),
        ("cooldown = \"9999999999s\"", "t.toml:6:12: cooldown is longer than a year"),
        ("cooldown = \"400d\"", "t.toml:6:12: cooldown is longer than a year"),
        ("restart_delay = \"0s\"", "t.toml:6:17: restart_delay must be longer than 0s"),
        (
            "lock = \"a b\"",
            "t.toml:6:8: lock \"a b\" must be 1 to 128 letters, digits, dots, underscores or dashes",
        ),
        ("clear_env = 1", "t.toml:6:13: clear_env must be true or false, not an integer"),
        ("hold = \"500ms\"", "t.toml:6:8: hold must be at least 1s"),
        (
            "priority = \"keeper-a\"",
            "t.toml:6:12: priority must be a whole number, or a table of hosts such as { keeper-a = 10 }, not a string",
        ),
        ("priority = 1001", "t.toml:6:12: priority must be a whole number from -1000 to 1000"),
        (
            "priority = { keeper-a = \"high\" }",
            "t.toml:6:25: priority.keeper-a must be a whole number from -1000 to 1000, not a string",
        ),
        (
            "priority = { \"keeper a\" = 1 }",
            "t.toml:6:14: the host priority.keeper a must be 1 to 253 printable ASCII characters without spaces",
        ),
        ("nice = 20", "t.toml:6:8: nice must be a whole number from -20 to 19"),
        ("nice = 1.5", "t.toml:6:8: nice must be a whole number from -20 to 19, not a float"),
        ("give_up_after = 0", "t.toml:6:17: give_up_after must be a whole number from 1 to 4294967295"),
        (
            "restart = \"maybe\"",
            "t.toml:6:11: restart must be \"always\", \"on-failure\" or \"never\", not \"maybe\"",
        ),
        (
            "stop_signal = \"SIGFOO\"",
            "t.toml:6:15: stop_signal = \"SIGFOO\" is no signal; write for example \"SIGTERM\"",
        ),
        (
            "stop_signal = \"STOP\"",
            "t.toml:6:15: stop_signal = \"STOP\" does not ask a process to end; use \"SIGTERM\"",
        ),
        (
            "umask = 22",
            "t.toml:6:9: umask must be a string of up to four octal digits such as \"022\", not an integer",
        ),
        (
            "umask = \"1777\"",
            "t.toml:6:9: umask must be a string of up to four octal digits such as \"022\", at most \"0777\"",
        ),
        ("env = { A = 1 }", "t.toml:6:13: env.A must be a string, not an integer"),
        (
            "env = { KEEPERD_TTL_MS = \"\" }",
            "t.toml:6:9: env.KEEPERD_TTL_MS is reserved: keeperd sets these variables itself",
        ),
        ("env_file = [\"a\"]", "t.toml:6:12: env_file must be a string, not an array"),
        ("env_file = \"-\"", "t.toml:6:12: env_file names no file after its \"-\""),
        (
            "on_lost = \"echo\"",
            "t.toml:6:11: on_lost must be an array with the program and its arguments; for a shell line write [\"sh\", \"-c\", \"...\"], not a string",
        ),
        ("on_acquired = []", "t.toml:6:15: on_acquired is empty; write the program and its arguments"),
        ("hook_timeout = \"0s\"", "t.toml:6:16: hook_timeout must be longer than 0s"),
        ("isolate = \"net\"", "t.toml:6:11: isolate must be \"none\" or \"pid\", not \"net\""),
        ("env = { \"A=B\" = \"\" }", "t.toml:6:9: env.A=B cannot be the name of a variable"),
        ("groups = \"g\"", "t.toml:6:10: groups must be an array of group names, not a string"),
        (
            "success_exit_codes = [0, 256]",
            "t.toml:6:26: success_exit_codes[1] must be a whole number from 0 to 255",
        ),
        (
            "limits = { files = 1 }",
            "t.toml:6:12: limits.files is no resource limit; there are as, core, cpu, data, fsize, locks, memlock, \
             msgqueue, nice, nofile, nproc, rss, rtprio, rttime, sigpending, stack",
        ),
        (
            "limits = { core = \"much\" }",
            "t.toml:6:19: limits.core must be a whole number from 0, or \"unlimited\", not \"much\"",
        ),
        (
            "limits = { core = { soft = 1 } }",
            "t.toml:6:19: limits.core needs both, as in { soft = 1024, hard = 4096 }",
        ),
        (
            "limits = { core = { soft = 2, hard = 1 } }",
            "t.toml:6:19: limits.core has a soft limit above its hard limit",
        ),
        (
            "output = \"syslog\"",
            "t.toml:6:10: output must be \"log\", \"journal\", \"inherit\", \"null\", or a table such as \
             { file = \"keeper.log\" }, not \"syslog\"",
        ),
        (
            "output = true",
            "t.toml:6:10: output must be \"log\", \"journal\", \"inherit\", \"null\", or a table such as \
             { file = \"keeper.log\" }, not a boolean",
        ),
        ("output = { keep = 3 }", "t.toml:6:10: output needs a file, as in { file = \"keeper.log\" }"),
        (
            "output = { file = \"k.log\", max_siz = \"1MiB\" }",
            "t.toml:6:28: unknown key \"max_siz\" in output; did you mean \"max_size\"?",
        ),
        (
            "output = { file = \"k.log\", max_size = 1000000 }",
            "t.toml:6:39: max_size must be a string with a unit such as \"10MiB\", not an integer",
        ),
        (
            "output = { file = \"k.log\", max_size = \"1000000\" }",
            "t.toml:6:39: max_size must be a string with a unit such as \"10MiB\"; 1000000 has none",
        ),
        (
            "output = { file = \"k.log\", max_size = \"big\" }",
            "t.toml:6:39: max_size must be a string with a unit such as \"10MiB\", not \"big\"",
        ),
        (
            "output = { file = \"k.log\", max_size = \"1KiB\" }",
            "t.toml:6:39: max_size must be at least \"64KiB\"",
        ),
        (
            "output = { file = \"k.log\", keep = -1 }",
            "t.toml:6:35: keep must be a whole number from 0 to 1000",
        ),
        (
            "restart_delay = \"2m\"",
            "t.toml:6:17: restart_delay 120s is longer than restart_delay_max 60s; shorten or raise it",
        ),
        (
            "give_up_window = \"4s\"",
            "t.toml:6:18: give_up_window 4s is too short: 5 failures, restart_delay 1s apart and doubling up to \
             60s, take 15s, so the keeper would never be given up; use a longer window, fewer failures, or a smaller restart_delay_max",
        ),
        (
            "give_up_after = 20",
            "t.toml:6:17: give_up_window 300s is too short: 20 failures, restart_delay 1s apart and doubling up to 60s, take \
             843s, so the keeper would never be given up; use a longer window, fewer failures, or a smaller restart_delay_max",
        ),
        ("cooldown = \"0s\"", "t.toml:6:12: cooldown must be at least 1s"),
    ];
    for (line, answer) in table {
        assert_eq!(errors(&format!("{REDIS}{KEEPER}{line}")), answer, "{line}");
    }
}

#[test]
fn a_wrong_lock_or_top_level_is_told_with_what_would_be_right() {
    let table = [
        ("hots = \"x\"", "t.toml:1:1: unknown key \"hots\" in the top level; did you mean \"host\"?"),
        (
            "ttl = \"30s\"",
            "t.toml:1:1: unknown key \"ttl\" in the top level; it belongs in [lock] or [defaults] or [[keeper]]",
        ),
        (
            "[defaults]\ncommand = [\"true\"]",
            "t.toml:2:1: unknown key \"command\" in [defaults]; it belongs in [[keeper]]",
        ),
        ("host = \"a b\"", "t.toml:1:8: host must be 1 to 253 printable ASCII characters without spaces"),
        (
            "http = { listen = \":1\" }",
            "t.toml:1:19: listen = \":1\" must be an IP address and a port such as \"127.0.0.1:9470\" or \"[::]:9470\"",
        ),
        ("[http]\nlisten = 9470", "t.toml:2:10: listen must be a string, not an integer"),
        (
            "[http]\nlisten = \"localhost:9470\"",
            "t.toml:2:10: listen = \"localhost:9470\" must be an IP address and a port such as \"127.0.0.1:9470\" or \"[::]:9470\"",
        ),
        ("[http]\nport = 9470", "t.toml:2:1: unknown key \"port\" in [http]; it knows listen"),
        ("[lock]\nttll = 1", "t.toml:2:1: unknown key \"ttll\" in [lock]; did you mean \"ttl\"?"),
        (
            "[lock]\nfrobnicate = 1",
            "t.toml:2:1: unknown key \"frobnicate\" in [lock]; it knows engine, nodes, ttl, retry_count, retry_delay, key_prefix, restart_quarantine, username, password_file, tls, directory",
        ),
        ("[lock]\nengine = \"etcd\"", "t.toml:2:10: engine must be \"redis\" or \"local\", not \"etcd\""),
        ("[lock]\nretry_count = -2", "t.toml:2:15: retry_count must be a whole number from -1 to 4294967295"),
        (
            "[lock]\nkey_prefix = \"keeperd:\"",
            "t.toml:2:14: key_prefix must not begin with \"keeperd:\", where keeperd keeps its side keys",
        ),
        ("lock = 5", "t.toml:1:8: lock must be a table, [lock], not an integer"),
        (
            "keeper = 5",
            "t.toml:1:10: keeper must be an array of tables, each under the line [[keeper]], not an integer",
        ),
        (
            "[keeper]",
            "t.toml:1:1: keeper must be an array of tables, each under the line [[keeper]], not a table",
        ),
        ("[[keeper]]", "t.toml:1:1: this [[keeper]] has no name\nt.toml:1:1: this [[keeper]] has no command"),
        ("include = \"x\"", "t.toml:1:11: include must be an array of file names, not a string"),
        ("host = ", "t.toml:1:8: not TOML: string values must be quoted, expected literal string"),
    ];
    for (text, answer) in table {
        assert_eq!(errors_in(text, &env([("REDIS_NODES", "a")])), answer, "{text}");
    }
}

#[test]
fn a_wrong_command_or_name_is_told_at_its_place() {
    let keeper =
        |name: &str, command: &str| format!("{REDIS}[[keeper]]\nname = {name}\ncommand = {command}\n");
    assert_eq!(
        errors(&keeper("\"k/1\"", "[\"true\"]")),
        "t.toml:4:8: name \"k/1\" must be 1 to 128 letters, digits, dots, underscores or dashes"
    );
    for empty in ["[]", "[\"\"]"] {
        assert_eq!(
            errors(&keeper("\"k\"", empty)),
            "t.toml:5:11: command is empty; write the program and its arguments"
        );
    }
    assert_eq!(
        errors(&keeper("\"k\"", "\"node oracle.js\"")),
        "t.toml:5:11: command must be an array with the program and its arguments; for a shell line write \
         [\"sh\", \"-c\", \"...\"], not a string"
    );
    assert_eq!(
        errors(&keeper("\"k\"", "[\"node\", 1]")),
        "t.toml:5:20: command[1] must be a string, not an integer"
    );
}

#[test]
fn a_name_or_lock_given_twice_is_told_with_the_line_of_the_first() {
    assert_eq!(
        errors(&format!("{REDIS}{KEEPER}{KEEPER}")),
        "t.toml:7:8: keeper name \"k\" is taken by line 4"
    );
    assert_eq!(
        errors(&format!("{REDIS}{KEEPER}[[keeper]]\nname = \"l\"\nlock = \"k\"\ncommand = [\"true\"]")),
        "t.toml:8:8: lock \"k\" is taken by line 4"
    );
}

#[test]
fn an_impossible_time_line_is_told_term_by_term_where_the_keeper_can_repair_it() {
    let answer = "impossible time line: ttl/2 15s + 2 × node_timeout 1s + stop_timeout 20s + kill_margin 600ms + drift \
                  302ms = 36.902s, which is not below ttl 30s; use a stop_timeout of at most 13.097s or a longer ttl";
    assert_eq!(errors(&format!("{REDIS}{KEEPER}stop_timeout = \"20s\"")), format!("t.toml:6:16: {answer}"));
    let in_defaults = format!(
        "{REDIS}[defaults]\nstop_timeout = \"20s\"\n{KEEPER}[[keeper]]\nname = \"l\"\ncommand = [\"true\"]"
    );
    assert_eq!(errors(&in_defaults), format!("t.toml:4:16: {answer}"), "told once for both keepers");
    let own_ttl = format!("{REDIS}[defaults]\nstop_timeout = \"20s\"\n{KEEPER}ttl = \"30s\"");
    assert_eq!(errors(&own_ttl), format!("t.toml:8:7: {answer}"));
}

#[test]
fn the_number_of_nodes_is_odd_and_at_most_nine() {
    let nodes = |count: usize| {
        let list: Vec<_> = (0..count).map(|i| format!("\"redis{i}\"")).collect();
        format!("[lock]\nnodes = [{}]\n{KEEPER}", list.join(","))
    };
    assert_eq!(errors(&nodes(0)), "t.toml:2:9: no Redis nodes; three are usual");
    assert_eq!(
        errors(&nodes(2)),
        "t.toml:2:9: 2 nodes survive no failure and fail more often than one; use 1 or 3"
    );
    assert_eq!(
        errors(&nodes(4)),
        "t.toml:2:9: 4 nodes need 3 to agree, so they survive no more failures than 3; use 3 or 5"
    );
    assert_eq!(errors(&nodes(11)), "t.toml:2:9: 11 nodes; at most 9 are allowed, 3 or 5 are usual");
    assert_eq!(
        read(&nodes(1)).warnings,
        ["one Redis node: while it is down no keeper runs; three are usual"]
    );
    for count in [3, 5, 7, 9] {
        assert_eq!(redis(&read(&nodes(count))).nodes.len(), count);
    }
    let none = "no Redis nodes: set nodes = [\"redis1:6379\", \"redis2:6379\", \"redis3:6379\"] in [lock], or \
                REDIS_NODES; for a single host without Redis set engine = \"local\"";
    assert_eq!(errors(KEEPER), format!("t.toml:1:1: {none}"));
    assert_eq!(errors(&format!("[lock]\nengine = \"redis\"\n{KEEPER}")), format!("t.toml:2:10: {none}"));
}

#[test]
fn one_server_is_one_node() {
    let text = "[lock]\nnodes = [\"a\", \"redis://u:secret@A:6379/3\", \"c\"]\n";
    assert_eq!(
        errors(text),
        "t.toml:2:15: redis://u:***@A:6379/3 is the same server as a on line 2; every node must be a server of its own"
    );
}

#[test]
fn several_mistakes_are_told_at_once_in_reading_order() {
    let text = "hots = \"x\"\n[lock]\nnodes = [\"a\", \"b\"]\nretry_delay = 5\n[[keeper]]\nname = \"k\"\n\
                ttl = \"1m 5x\"\nnice = \"low\"\n[[keeper]]\nname = \"k\"\ncommand = []\n";
    assert_eq!(
        errors(text),
        "t.toml:1:1: unknown key \"hots\" in the top level; did you mean \"host\"?\n\
         t.toml:3:9: 2 nodes survive no failure and fail more often than one; use 1 or 3\n\
         t.toml:4:15: retry_delay must be a string with a unit such as \"30s\"; 5 has none\n\
         t.toml:5:1: this [[keeper]] has no command\n\
         t.toml:7:7: ttl = \"1m 5x\" is not a duration such as \"30s\" or \"1m 30s\": unknown time unit \"x\", supported \
         units: ns, us/µs, ms, sec, min, hours, days, weeks, months, years (and few variations)\n\
         t.toml:8:8: nice must be a whole number from -20 to 19, not a string\n\
         t.toml:10:8: keeper name \"k\" is taken by line 6\n\
         t.toml:11:11: command is empty; write the program and its arguments"
    );
}

#[test]
fn broken_toml_is_told_alone_and_completely() {
    let text = "host = \n[lock\nnodes = [\"a\", \"b\"]\nhots = 1\n";
    let answer = errors(text);
    assert!(answer.lines().count() >= 2, "{answer}");
    assert!(answer.lines().all(|line| line.contains(": not TOML: ")), "{answer}");
    assert_eq!(errors("a = 1\na = 2"), "t.toml:2:1: not TOML: duplicate key");
}

#[test]
fn every_key_of_a_keeper_may_stand_in_defaults_and_the_keeper_wins() {
    let config = read(&format!(
        "{REDIS}[defaults]\nttl = \"10s\"\nenv = {{ A = \"1\", B = \"1\" }}\nlimits = {{ core = 0, nofile = 9 }}\n\
         user = \"u\"\nrestart = \"on-failure\"\nnice = 5\n{KEEPER}nice = -3\nenv = {{ B = \"2\" }}\nstop_signal = \"INT\"\n\
         limits = {{ nofile = \"unlimited\", stack = {{ soft = 1, hard = 2 }} }}\numask = \"027\"\n"
    ));
    let keeper = &config.keepers[0];
    assert_eq!(keeper.timing.ttl(), Duration::from_secs(10));
    let process = &keeper.process;
    assert_eq!(process.env, [("A", "1"), ("B", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    assert_eq!((process.nice, process.user.as_deref(), process.umask), (Some(-3), Some("u"), Some(0o27)));
    assert_eq!((process.stop_signal, keeper.restart.policy), (Signal::SIGINT, RestartPolicy::OnFailure));
    assert_eq!(process.limits["core"], Limit { soft: 0, hard: 0 });
    assert_eq!(process.limits["nofile"], Limit { soft: UNLIMITED, hard: UNLIMITED });
    assert_eq!(process.limits["stack"], Limit { soft: 1, hard: 2 });
}

#[test]
fn a_priority_is_this_hosts_own_or_a_table_and_the_keepers_replaces_the_one_in_defaults() {
    let text = |own: &str| {
        format!("{REDIS}[defaults]\npriority = {{ b = -5, a = 10 }}\nhold = \"9s\"\n{KEEPER}{own}\n")
    };
    let by_host = |hosts: &[(&str, i32)]| {
        Priorities::ByHost(hosts.iter().map(|(host, n)| ((*host).to_owned(), Priority(*n))).collect())
    };
    let of = |own: &str| {
        let keeper = read(&text(own)).keepers.remove(0);
        (keeper.priorities, keeper.hold.as_secs())
    };
    assert_eq!(of(""), (by_host(&[("a", 10), ("b", -5)]), 9));
    assert_eq!(of("priority = -7"), (Priorities::Own(Priority(-7)), 9));
    assert_eq!(of("priority = { \"c.example\" = 1 }\nhold = \"1h\""), (by_host(&[("c.example", 1)]), 3600));
}

#[test]
fn a_probe_has_one_question_and_defaults_for_the_rest() {
    let with = |lines: &str| read(&format!("{REDIS}{KEEPER}{lines}\n"));
    let config = with(
        "health = { http = \"http://[::1]/a?b\" }\nready = { tcp = \"db:5432\", failures = 30 }\ngive_up_window = \"1h\"",
    );
    let keeper = &config.keepers[0];
    let socket = Socket { host: "::1".into(), port: 80 };
    let question = Question::Http(HttpTarget { socket, path_and_query: "/a?b".into() });
    assert_eq!(question.to_string(), "http://[::1]:80/a", "what may be a secret is not shown");
    let second = Duration::from_secs(1);
    let probe = Probe { question, interval: 10 * second, timeout: 5 * second, failures: 3 };
    assert_eq!(keeper.health, Some(Health::Probe { probe, standby: false }));
    let question = Question::Tcp(Socket { host: "db".into(), port: 5432 });
    let ready = Probe { question, interval: 10 * second, timeout: 5 * second, failures: 30 };
    assert_eq!(keeper.ready, Some(ready));
    assert_eq!(config.warnings, Vec::<String>::new());
    let config = with("health = { max_silence = \"1m\" }");
    assert_eq!(config.keepers[0].health, Some(Health::MaxSilence(60 * second)));
    let config = with("health = { command = [\"true\"], standby = true }");
    assert!(config.keepers[0].health.as_ref().is_some_and(Health::is_for_standby));
}

#[test]
fn silence_is_not_listened_for_where_nothing_can_be_heard() {
    let lines = "health = { max_silence = \"1m\" }\noutput = \"null\"\n";
    let expected = "t.toml:6:10: max_silence cannot be known with output = \"null\": keeperd does not read it; use another \
                    probe or output";
    assert_eq!(errors(&format!("{REDIS}{KEEPER}{lines}")), expected);
}

#[test]
fn probes_too_slow_for_the_window_are_warned_of() {
    let config = read(&format!("{REDIS}{KEEPER}health = {{ tcp = \"a:1\", interval = \"30s\" }}\n"));
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].starts_with(
        "t.toml:6:10: an unhealthy child is noticed after 90s, so 5 failures take 375s and do not fall into give_up_window 300s"
    ));
    let config = read(&format!("{REDIS}{KEEPER}ready = {{ tcp = \"a:1\", timeout = \"25s\" }}\n"));
    assert!(config.warnings[0].starts_with("t.toml:6:9: an unhealthy child is noticed after 75s"));
}

#[test]
fn the_ttl_comes_from_keeper_then_defaults_then_environment_then_lock_then_thirty_seconds() {
    let (keeper, defaults, lock) = ("ttl = \"4s\"\n", "[defaults]\nttl = \"5s\"\n", "ttl = \"7s\"\n");
    let variable = env([("REDIS_LOCK_TTL_MS", "6000")]);
    let table = [
        (format!("{REDIS}{lock}{defaults}{KEEPER}{keeper}"), &variable, 4),
        (format!("{REDIS}{lock}{defaults}{KEEPER}"), &variable, 5),
        (format!("{REDIS}{lock}{KEEPER}"), &variable, 6),
        (format!("{REDIS}{lock}{KEEPER}"), &env([]), 7),
        (format!("{REDIS}{KEEPER}"), &env([]), 30),
    ];
    for (text, env, seconds) in table {
        assert_eq!(read_in(&text, env).keepers[0].timing.ttl(), Duration::from_secs(seconds), "{text}");
    }
}

#[test]
fn the_environment_beats_the_file() {
    let variables = env([
        ("REDIS_NODES", "x:1, [::1]:2 ,unix:///run/redis.sock"),
        ("REDIS_RETRY_COUNT", "-1"),
        ("REDIS_RETRY_DELAY_MS", "50"),
    ]);
    let text = format!("{REDIS}retry_count = 7\nretry_delay = \"1s\"\n{KEEPER}");
    let config = read_in(&text, &variables);
    let lock = redis(&config);
    let nodes: Vec<_> = lock.nodes.iter().map(ToString::to_string).collect();
    assert_eq!(nodes, ["x:1", "[::1]:2", "unix:///run/redis.sock"]);
    assert_eq!((lock.retry_count, lock.retry_delay), (RetryCount::Forever, Duration::from_millis(50)));
}

#[test]
fn a_wrong_variable_is_told_by_its_name() {
    let table = [
        ("REDIS_NODES", "", "REDIS_NODES:1:1: is empty; write host:port,host:port,host:port or unset it"),
        ("REDIS_NODES", "a,b:x,c", "REDIS_NODES:1:1: node 2 needs a port from 1 to 65535 after the colon"),
        (
            "REDIS_NODES",
            "a,b",
            "REDIS_NODES:1:1: 2 nodes survive no failure and fail more often than one; use 1 or 3",
        ),
        (
            "REDIS_NODES",
            "a,b,a",
            "REDIS_NODES:1:1: a is the same server as a; every node must be a server of its own",
        ),
        (
            "REDIS_RETRY_COUNT",
            "many",
            "REDIS_RETRY_COUNT:1:1: must be a whole number, -1 for ever, or not be set at all",
        ),
        (
            "REDIS_RETRY_DELAY_MS",
            "200ms",
            "REDIS_RETRY_DELAY_MS:1:1: must be a whole number of milliseconds, or not be set at all",
        ),
        (
            "REDIS_LOCK_TTL_MS",
            "",
            "REDIS_LOCK_TTL_MS:1:1: must be a whole number of milliseconds, or not be set at all",
        ),
        ("REDIS_LOCK_TTL_MS", "1", "REDIS_LOCK_TTL_MS:1:1: ttl 1ms is too short: at least 1s"),
    ];
    for (name, value, answer) in table {
        assert_eq!(errors_in(&format!("{REDIS}{KEEPER}"), &env([(name, value)])), answer);
    }
}

#[test]
fn engine_local_must_be_asked_for_and_ignores_what_is_about_redis_with_a_warning() {
    let variables = env([("REDIS_NODES", "nonsense::"), ("STATE_DIRECTORY", "/state:/other")]);
    let config = read_in(&format!("[lock]\nengine = \"local\"\nnodes = [\"a\"]\n{KEEPER}"), &variables);
    match &config.lock {
        LockConfig::Local(local) => assert_eq!(local.directory, Path::new("/state")),
        LockConfig::Redis(redis) => panic!("{redis:?}"),
    }
    assert_eq!(
        config.warnings,
        [
            "REDIS_NODES is set, but has no effect with engine \"local\"",
            "t.toml:3:9: nodes has no effect with engine \"local\""
        ]
    );
    let in_file = read("[lock]\nengine = \"local\"\ndirectory = \"locks\"\n");
    let expected = std::path::absolute("locks").unwrap();
    assert_eq!(in_file.lock, LockConfig::Local(keeperd::config::LocalConfig { directory: expected }));
    assert_eq!(in_file.warnings, ["t.toml:1:1: no [[keeper]]: this daemon has nothing to do"]);
}

#[test]
fn the_control_socket_stands_where_systemd_says_and_its_path_fits_a_socket() {
    let config = read_in(REDIS, &env([("RUNTIME_DIRECTORY", "/run/mine")]));
    assert_eq!(config.control.socket, Path::new("/run/mine/keeperd.sock"));
    let long = "x".repeat(120);
    let answer = errors(&format!("{REDIS}[control]\nsocket = \"/{long}\""));
    assert!(answer.starts_with("t.toml:4:10: the control socket's path /xxx"), "{answer}");
    assert!(answer.ends_with("has 121 bytes; sockets take 107: set a shorter [control] socket"), "{answer}");
}

#[test]
fn the_quarantine_covers_the_longest_lease_and_a_shorter_one_is_warned_of() {
    let with = |quarantine: &str, ttl: &str| {
        let config = read(&format!("{REDIS}restart_quarantine = \"{quarantine}\"\n{KEEPER}ttl = \"{ttl}\""));
        (redis(&config).restart_quarantine, config.warnings)
    };
    assert_eq!(with("auto", "2s"), (Duration::from_millis(32_300), vec![]));
    assert_eq!(with("auto", "100s"), (Duration::from_secs(103), vec![]));
    assert_eq!(with("40s", "30s"), (Duration::from_secs(40), vec![]));
    let risk = "a Redis node that restarts empty can help to start a second copy; \"auto\" is 32.3s";
    assert_eq!(with("0s", "2s").1, [format!("t.toml:3:22: restart_quarantine is off: {risk}")]);
    assert_eq!(with("20s", "30s").1, [format!("t.toml:3:22: restart_quarantine is only 20s: {risk}")]);
}

#[test]
fn an_address_becomes_a_url_for_the_connection_and_is_shown_as_written() {
    let table = [
        ("redis1", "redis1", "redis://redis1:6379/"),
        ("10.0.0.1:7000", "10.0.0.1:7000", "redis://10.0.0.1:7000/"),
        ("[fd00::1]:6380", "[fd00::1]:6380", "redis://[fd00::1]:6380/"),
        ("[::1]", "[::1]", "redis://[::1]:6379/"),
        ("redis://h", "redis://h", "redis://h:6379/"),
        ("redis://h:1/2", "redis://h:1/2", "redis://h:1/2"),
        ("redis://u:p@h/0", "redis://u:***@h/0", "redis://u:p@h:6379/0"),
        ("redis://:p%2F@h", "redis://:***@h", "redis://:p%2F@h:6379/"),
        ("redis://u@h", "redis://***@h", "redis://u@h:6379/"),
        ("rediss://h:6380", "rediss://h:6380", "redis://h:6380/"),
        ("rediss://u:p@h", "rediss://u:***@h", "redis://u:p@h:6379/"),
        ("redis://u:a@b@h", "redis://u:***@h", "redis://u:a@b@h:6379/"),
        ("unix:///run/r.sock", "unix:///run/r.sock", "unix:///run/r.sock"),
    ];
    for (text, shown, url) in table {
        let address = NodeAddress::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"));
        assert_eq!((address.to_string().as_str(), address.url()), (shown, url), "{text}");
    }
}

#[test]
fn the_client_library_reads_the_url_as_it_was_meant() {
    use redis::{ConnectionAddr, IntoConnectionInfo};
    let address = NodeAddress::parse("redis://user:a%2Fb@c@host:7/3").unwrap();
    let info = address.url().into_connection_info().unwrap();
    assert_eq!(info.addr(), &ConnectionAddr::Tcp("host".to_owned(), 7));
    assert_eq!(info.redis_settings().username(), Some("user"));
    assert_eq!(info.redis_settings().password(), Some("a/b@c"));
    assert_eq!(info.redis_settings().db(), 3);
    let socket = NodeAddress::parse("unix:///run/r.sock").unwrap().url().into_connection_info().unwrap();
    assert_eq!(socket.addr(), &ConnectionAddr::Unix("/run/r.sock".into()));
}

#[test]
fn what_is_no_address_is_refused_without_being_quoted() {
    let table = [
        ("", "is empty; write host:port"),
        ("a b", "must not contain spaces or control characters"),
        ("h:0", "needs a port from 1 to 65535 after the colon"),
        ("h:+1", "needs a port from 1 to 65535 after the colon"),
        ("h:", "needs a port from 1 to 65535 after the colon"),
        (":6379", "needs a host name or IP address, as in redis1:6379"),
        ("h/secret", "needs a host name or IP address, as in redis1:6379"),
        ("::1", "has more than one colon; write an IPv6 address in brackets, as in [::1]:6379"),
        ("[::1", "has more than one colon; write an IPv6 address in brackets, as in [::1]:6379"),
        ("[x]:1", "is not an IPv6 address in brackets, as in [::1]:6379"),
        ("[::1]6379", "has something other than :port after the bracket"),
        ("u:secret@h", "has a login; write it as redis://user:password@host:port"),
        ("http://h", "has an unknown scheme; use host:port, redis:// or rediss://host:port, or unix:///path"),
        ("redis://:se/cret@h", "has a / in its password; write it as %2F"),
        (
            "redis://:se#cret@h",
            "must be redis://user:password@host:port/db; write ? and # in a password as %3F and %23",
        ),
        ("redis://@h", "has an empty login; leave out the @"),
        ("redis://u:@h", "has an empty password; write redis://user:password@host:port"),
        ("redis://h/x", "must end in a database number, as in redis://host:6379/0"),
        (
            "redis://0.0.0.0",
            "cannot be used: Cannot connect to a wildcard address (0.0.0.0 or ::) - InvalidClientConfig",
        ),
        ("unix://relative", "must name an absolute path, as in unix:///run/redis/redis.sock"),
    ];
    for (text, why) in table {
        assert_eq!(NodeAddress::parse(text).expect_err(text).to_string(), why, "{text}");
    }
}

#[test]
fn a_secret_is_never_shown() {
    let shown = |config: &Config| {
        let mut text = format!("{config:?}{config:#?}");
        redis(config).nodes.iter().for_each(|node| text.push_str(&format!("{node}{node:?}")));
        text
    };
    let nodes = "\"redis://u:hunter2@a\", \"redis://:hunter2@b:1/2\", \"c\"";
    let text = format!("[lock]\nnodes = [{nodes}]\n{KEEPER}env = {{ TOKEN = \"hunter2\" }}\n");
    let config = read(&text);
    assert!(redis(&config).nodes[0].url().contains("hunter2"), "the connection needs it");
    assert!(!shown(&config).contains("hunter2"), "{}", shown(&config));

    let variables = env([("REDIS_NODES", "redis://u:hunter2@a")]);
    assert!(!format!("{variables:?}").contains("hunter2"));
    assert!(!shown(&read_in(KEEPER, &variables)).contains("hunter2"));

    for wrong in [
        "nodes = [\"u:hunter2@h\", \"redis://hunter2@h:x\", \"redis://:hunter2\", \"rediss://:hunter2@h\"]",
        "nodes = [\"redis://u:hunter2@a\", \"redis://u:hunter2@a\", \"b\"]",
        "nodes = \"redis://u:hunter2@a\"",
        "nodes = [\"redis://u:hunter2@a]",
        "engine = [\"redis://u:hunter2@a\"]",
    ] {
        let answer = errors(&format!("[lock]\n{wrong}\n"));
        assert!(!answer.contains("hunter2"), "{answer}");
    }
}

#[test]
fn a_file_with_a_password_that_everybody_can_read_is_warned_of() {
    let directory = directory("mode");
    let file = directory.join("k.toml");
    fs::write(&file, format!("[lock]\nnodes = [\"redis://:p@a\", \"b\", \"c\"]\n{KEEPER}")).unwrap();
    let warnings = |mode| {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        load(&file, &env([])).unwrap().warnings
    };
    let name = file.display();
    assert_eq!(
        warnings(0o644),
        [format!("{name} holds a password and every user can read it; chmod o-r {name}")]
    );
    assert_eq!(warnings(0o640), Vec::<String>::new());
}

/// The Redis password as it would be used, and the warnings.
fn password(text: &str, env: &Env) -> (Option<String>, Vec<String>) {
    let config = read_in(text, env);
    (redis(&config).login.password.clone(), config.warnings)
}

#[test]
fn the_password_comes_from_a_file_a_credential_or_the_environment_and_one_of_them_wins() {
    let folder = directory("password");
    let file = folder.join("password");
    let write = |text: &str| fs::write(&file, text).unwrap();
    write("from-file\r\n");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let credentials = folder.join("credentials");
    fs::create_dir_all(&credentials).unwrap();
    let directory = credentials.display().to_string();
    let text = format!("{REDIS}username = \"keeperd\"\npassword_file = \"{}\"\n{KEEPER}", file.display());
    let plain = format!("{REDIS}username = \"keeperd\"\n{KEEPER}");

    // A directory of credentials without ours is another service's business.
    let others = env([("CREDENTIALS_DIRECTORY", &directory)]);
    assert_eq!(password(&text, &others), (Some("from-file".to_owned()), vec![]));
    fs::write(credentials.join("redis-password"), "from-systemd").unwrap();
    fs::set_permissions(credentials.join("redis-password"), fs::Permissions::from_mode(0o400)).unwrap();
    assert_eq!(password(&plain, &others), (Some("from-systemd".to_owned()), vec![]));
    let all = env([("CREDENTIALS_DIRECTORY", &directory), ("KEEPERD_REDIS_PASSWORD", "from-variable")]);
    assert_eq!(password(&plain.replace("username", "#"), &all).0, Some("from-variable".to_owned()));
    let (used, warnings) = password(&text, &all);
    assert_eq!(used.as_deref(), Some("from-variable"));
    assert_eq!(
        warnings,
        [
            "the Redis password is in password_file and in KEEPERD_REDIS_PASSWORD: the latter counts",
            "the Redis password is in the credential redis-password and in KEEPERD_REDIS_PASSWORD: the latter counts"
        ]
    );
    assert_eq!(redis(&read_in(&text, &all)).login.username.as_deref(), Some("keeperd"));

    // As a person sees it who has not the daemon's credentials.
    let (none, warnings) = password(&plain, &env([]));
    assert!(none.is_none() && warnings[0].contains("no password is known for username"), "{warnings:?}");
    for (content, why) in [("", "is empty"), ("a\nb\n", "on one line")] {
        write(content);
        assert!(errors(&text).contains(why), "{}", errors(&text));
    }
    fs::remove_file(&file).unwrap();
    let missing = errors(&text);
    assert_eq!(missing.lines().count(), 1, "{missing}");
    assert!(missing.contains("t.toml:4:17") && missing.contains("cannot be read: No such file"), "{missing}");
}

#[test]
fn a_login_in_an_address_needs_a_password_from_somewhere_and_is_not_shown() {
    let text = format!("[lock]\nnodes = [\"redis://s3cret@a\", \"b\", \"rediss://u:p@c\"]\n{KEEPER}");
    let wrong = read(&text).warnings;
    assert_eq!(
        wrong,
        [
            "t.toml:2:10: redis://***@a has a login without a password; write redis://user:password@host:port, or give \
         it with password_file, the credential or KEEPERD_REDIS_PASSWORD"
        ]
    );
    let config = read_in(&text, &env([("KEEPERD_REDIS_PASSWORD", "pw")]));
    let access = redis(&config).access();
    assert_eq!(access.nodes.iter().map(|node| node.tls).collect::<Vec<_>>(), [false, false, true]);
    assert!(!format!("{config:?}{access:?}").contains("s3cret"));
    assert!(config.lock.holds_secrets() && !read(&format!("{REDIS}{KEEPER}")).lock.holds_secrets());
    let warnings = read_in(KEEPER, &env([("REDIS_NODES", "redis://:pw@a")])).warnings;
    assert!(warnings.iter().any(|w| w.contains("REDIS_NODES holds a password")), "{warnings:?}");
}

#[test]
fn certificates_are_read_and_tried_when_the_file_is() {
    let folder = directory("tls");
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
    let cert = params.self_signed(&key).unwrap().pem();
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    for (name, text) in
        [("ca", &cert), ("key", &key.serialize_pem()), ("other", &other), ("rubbish", &"x".to_owned())]
    {
        fs::write(folder.join(name), text).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let text = |nodes: &str, tls: &str| {
        format!(
            "[lock]\nnodes = [{nodes}]\ntls = {}\n{KEEPER}",
            tls.replace('@', &folder.display().to_string())
        )
    };
    const NODES: &str = "\"rediss://a\", \"rediss://b\", \"c\"";
    let good = read(&text(NODES, "{ ca = \"@/ca\", cert = \"@/ca\", key = \"@/key\" }"));
    assert!(redis(&good).pem.client.is_some() && good.warnings.is_empty(), "{:?}", good.warnings);
    assert!(!format!("{good:?}").contains("PRIVATE KEY"));
    for (tls, why) in [
        ("{ ca = \"@/rubbish\" }", "ca in [lock] tls holds no certificate in PEM"),
        ("{ ca = \"@/none\" }", "cannot be read"),
        ("{ cert = \"@/ca\" }", "tls has a cert without its key"),
        ("{ key = \"@/key\" }", "tls has a key without its cert"),
        ("{ ca = \"@/ca\", cert = \"@/ca\", key = \"@/other\" }", "key in [lock] tls does not go with cert"),
        ("{ ca = \"@/ca\", cert = \"@/ca\", key = \"@/ca\" }", "key in [lock] tls holds no private key"),
        ("{ cb = \"@/ca\" }", "unknown key"),
        ("\"@/ca\"", "tls must be a table"),
    ] {
        let found = errors(&text(NODES, tls));
        assert!(found.contains(why) && found.lines().count() == 1, "{tls}: {found}");
    }
    let unused = read(&text("\"a\", \"b\", \"c\"", "{ ca = \"@/rubbish\" }")).warnings;
    assert_eq!(unused, ["t.toml:3:7: tls has no effect: no node is rediss://"]);
}

#[test]
fn files_with_secrets_that_others_can_read_are_warned_of() {
    let folder = directory("readable");
    let file = folder.join("password");
    fs::write(&file, "pw\n").unwrap();
    let text = format!("{REDIS}password_file = \"{}\"\n{KEEPER}", file.display());
    let warnings = |mode| {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        read(&text).warnings
    };
    assert_eq!(warnings(0o600), Vec::<String>::new());
    let name = file.display();
    assert_eq!(
        warnings(0o604),
        [format!("{name} holds the Redis password and every user can read it; chmod o-r {name}")]
    );
    // Root's own group has no members; another has.
    if nix::unistd::Uid::effective().is_root() {
        assert_eq!(warnings(0o640), Vec::<String>::new());
        std::os::unix::fs::chown(&file, None, Some(12345)).unwrap();
        assert_eq!(
            warnings(0o640),
            [format!("{name} holds the Redis password and its group can read it; chmod g-r {name}")]
        );
    }
}

#[test]
fn included_files_bring_keepers_in_sorted_order_and_paths_relative_to_themselves() {
    let directory = directory("include");
    let main = directory.join("main.toml");
    let keeper = |name: &str| {
        format!(
            "[[keeper]]\nname = \"{name}\"\ncommand = [\"true\"]\nworking_dir = \"work\"\nenv_file = \"-k.env\"\n"
        )
    };
    fs::write(
        &main,
        format!("include = [\"keepers.d/*.toml\", \"?ther.toml\", \"none-*\"]\n{REDIS}{}", keeper("main")),
    )
    .unwrap();
    fs::write(directory.join("keepers.d/20.toml"), keeper("twenty")).unwrap();
    fs::write(directory.join("keepers.d/10.toml"), keeper("ten")).unwrap();
    fs::write(directory.join("keepers.d/.hidden.toml"), "not toml").unwrap();
    fs::write(directory.join("keepers.d/20.toml.bak"), "not toml").unwrap();
    fs::write(directory.join("other.toml"), keeper("other")).unwrap();
    let config = load(&main, &env([])).unwrap();
    let names: Vec<_> = config.keepers.iter().map(|keeper| keeper.name.as_str()).collect();
    assert_eq!(names, ["main", "ten", "twenty", "other"]);
    assert_eq!(config.keepers[0].process.working_dir, Some(directory.join("work")));
    let file = |path: PathBuf, optional| Some(EnvFile { path, optional });
    assert_eq!(config.keepers[0].process.env_file, file(directory.join("k.env"), true));
    assert_eq!(config.keepers[1].process.env_file, file(directory.join("keepers.d/k.env"), true));
    assert_eq!(config.keepers[1].process.working_dir, Some(directory.join("keepers.d/work")));
    assert_eq!(config.warnings, [format!("{}:1:46: include \"none-*\" matches no file", main.display())]);
}

#[test]
fn an_included_file_is_read_whatever_bytes_its_name_has() {
    let directory = directory("include-bytes");
    let name = std::ffi::OsStr::from_bytes(b"keepers.d/\xff.toml");
    fs::write(directory.join(name), KEEPER).unwrap();
    let main = directory.join("keepers.toml");
    fs::write(&main, format!("include = [\"keepers.d/*.toml\"]\n{REDIS}")).unwrap();
    let config = load(&main, &env([])).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.keepers.len(), 1);
}

#[test]
fn an_error_in_an_included_file_has_that_files_name() {
    let directory = directory("include-bad");
    let main = directory.join("main.toml");
    let part = directory.join("keepers.d/a.toml");
    let include = "include = [\"keepers.d/*.toml\"]\n";
    fs::write(&main, format!("{include}{REDIS}{KEEPER}")).unwrap();
    let answer = |text: &str| {
        fs::write(&part, text).unwrap();
        load(&main, &env([])).expect_err(text).to_string()
    };
    let (main_name, part_name) = (main.display(), part.display());
    assert_eq!(answer(KEEPER), format!("{part_name}:2:8: keeper name \"k\" is taken by {main_name}:5"));
    assert_eq!(
        answer("[lock]\nttl = \"1s\""),
        format!(
            "{part_name}:1:2: unknown key \"lock\" in an included file (it holds [[keeper]] tables only); it belongs in \
             the top level or [[keeper]]"
        )
    );
    assert_eq!(
        answer("[[keeper]"),
        format!("{part_name}:1:10: not TOML: unclosed array table, expected `]`")
    );
    fs::write(&part, [b'#', 0xff]).unwrap();
    assert_eq!(
        load(&main, &env([])).expect_err("not UTF-8").to_string(),
        format!("{part_name}:1:2: is not UTF-8 from here on")
    );
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_where_it_is_named() {
    let directory = directory("unreadable");
    let missing = directory.join("missing.toml");
    assert_eq!(
        load(&missing, &env([])).expect_err("missing").to_string(),
        format!("{}:1:1: cannot be read: No such file or directory (os error 2)", missing.display())
    );
    let main = directory.join("main.toml");
    let answer = |include: &str| {
        fs::write(&main, format!("include = [\n\"{include}\"]\n{REDIS}")).unwrap();
        load(&main, &env([])).expect_err(include).to_string()
    };
    let at = format!("{}:2:1", main.display());
    assert_eq!(
        answer("missing.toml"),
        format!("{at}: {}: cannot be read: No such file or directory (os error 2)", missing.display())
    );
    assert_eq!(answer("*.d/x.toml"), format!("{at}: include can have * and ? in its last part only"));
}

#[test]
fn at_most_five_thousand_keepers() {
    let keepers = |count: usize| {
        let tables: String =
            (0..count).map(|i| format!("[[keeper]]\nname = \"k{i}\"\ncommand = [\"true\"]\n")).collect();
        format!("{REDIS}{tables}")
    };
    assert_eq!(read(&keepers(5_000)).keepers.len(), 5_000);
    assert_eq!(errors(&keepers(5_001)), "t.toml:15003:1: more than 5000 keepers; split them between hosts");
}

#[test]
fn the_shipped_files_load_without_a_warning() {
    let example = load(&shipped("keepers.toml"), &env([])).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(example.warnings, Vec::<String>::new());
    assert_eq!((redis(&example).nodes.len(), example.keepers.len()), (3, 2));
    let quickstart = load(&shipped("quickstart.toml"), &env([("HOME", "/home/somebody")]))
        .unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(quickstart.warnings, Vec::<String>::new());
    assert_eq!(quickstart.keepers[0].name, "demo");
}

/// The commented-out lines are defaults or alternatives: taking them in must not be an error either.
#[test]
fn every_commented_key_of_the_example_is_a_key() {
    let text = fs::read_to_string(shipped("keepers.toml")).unwrap();
    let all: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") && !rest.starts_with("include") => format!("{rest}\n"),
            Some(_) | None => format!("{line}\n"),
        })
        .collect();
    let password = directory("example").join("password");
    fs::write(&password, "pw").unwrap();
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    let config = read(&all.replace("/etc/keeperd/redis-password", &password.display().to_string()));
    assert_eq!(
        config.warnings,
        [
            "t.toml:22:13: directory has no effect with engine \"redis\"",
            "t.toml:21:7: tls has no effect: no node is rediss://"
        ]
    );
    let readme = fs::read_to_string(shipped("README.md")).unwrap();
    for key in all.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key) {
        let plain = key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        assert!(!plain || readme.contains(&format!("`{key}`")), "{key} is not in config/README.md");
    }
}

#[test]
fn check_prints_the_time_line_within_eighty_columns() {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    assert_eq!(check::run(&shipped("keepers.toml"), &env([]), Some(80), &mut out, &mut err), 0);
    let out = String::from_utf8(out).unwrap();
    assert!(err.is_empty());
    assert!(out.lines().all(|line| line.chars().count() <= 80), "{out}");
    for expected in [
        "lock     redis, quorum 2 of 3\n         redis1:6379\n",
        "keeper pricing-oracle-keeper\n  lock       redlock:pricing-oracle-keeper\n",
        "  time line  extend 15s, stop 24.098s, kill 29.098s, end 29.698s after t0\n",
        "  time line  extend 5s, stop 8.148s, kill 9.648s, end 9.898s after t0\n",
        "  ttl 10s, stop timeout 1.5s (SIGINT), node timeout 500ms\n",
        "  restart    always, after 1s to 1m\n",
        "  give up    after 5 failures in 5m, then stay away for 1m\n",
        "  output     log\n",
        "  output     /var/log/keeperd/liquidation.log, up to 10.0 MiB, 5 older\n",
    ] {
        assert!(out.contains(expected), "{expected}\n{out}");
    }
}

#[test]
fn check_prints_what_is_probed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keepers.toml");
    let text = r#"
lock = { engine = "local" }
[[keeper]]
name = "asked"
command = ["true"]
health = { http = "http://127.0.0.1:8080/healthz?token=x", interval = "20s", standby = true }
ready = { tcp = "127.0.0.1:8080", timeout = "1s", failures = 9 }
[[keeper]]
name = "listened-to"
command = ["true"]
health = { max_silence = "2m" }
"#;
    fs::write(&file, text).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    assert_eq!(
        check::run(&file, &env([]), Some(80), &mut out, &mut err),
        0,
        "{}",
        String::from_utf8_lossy(&err)
    );
    let out = String::from_utf8(out).unwrap();
    for expected in [
        "  ready      tcp 127.0.0.1:8080, every 10s, timeout 1s, 9 failures\n",
        "  health     http://127.0.0.1:8080/healthz, every 20s, timeout 5s, 3 failures\n             asked before",
        "  health     unhealthy when silent for 2m\n",
    ] {
        assert!(out.contains(expected), "{expected}\n{out}");
    }
}

#[test]
fn check_prints_every_error_and_returns_78() {
    let directory = directory("check");
    let file = directory.join("bad.toml");
    fs::write(&file, format!("hots = 1\n{KEEPER}nice = 99")).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    assert_eq!(check::run(&file, &env([]), Some(80), &mut out, &mut err), 78);
    let err = String::from_utf8(err).unwrap();
    assert!(out.is_empty());
    assert_eq!(err.lines().count(), 3, "{err}");
    assert!(err.lines().all(|line| line.starts_with(&format!("{}:", file.display()))), "{err}");
}

/// xorshift64*: a failing case is found again by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }
}

fn mutate(text: &str, random: &mut Random) -> String {
    const PIECES: &[&str] = &[
        "\"",
        "[",
        "]",
        "[[",
        "{",
        "}",
        "=",
        "\n",
        ".",
        "''",
        "-1",
        "0",
        "9999999999999999999",
        "\"30s\"",
        "\"1s\"",
        "inf",
        "[lock]\n",
        "[[keeper]]\n",
        "ttl",
        "stop_timeout",
        "\u{feff}",
        "µ",
        "\0",
        "\\u0000",
        "redis://",
        "@",
        "\"0.1ms\"",
        "[lock.nodes]\n",
        "keeper.x",
        "18446744073709551615s 1000ms",
        "\r\n",
        "include",
    ];
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(12)).min(bytes.len());
        match random.below(4) {
            0 => drop(bytes.splice(at..end, PIECES[random.below(PIECES.len())].bytes())),
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..at, [random.below(256) as u8])),
            _ => {
                let from = random.below(bytes.len() + 1);
                let piece = bytes[from..(from + random.below(40)).min(bytes.len())].to_vec();
                drop(bytes.splice(at..end, piece));
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn no_text_makes_it_panic_and_what_is_accepted_has_a_possible_time_line() {
    let originals =
        ["keepers.toml", "quickstart.toml"].map(|name| fs::read_to_string(shipped(name)).unwrap());
    let mut accepted = 0;
    for seed in 1..=4_000 {
        let mut random = Random(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed));
        let text = match seed % 4 {
            0 => (0..random.below(300)).map(|_| char::from(random.below(256) as u8)).collect(),
            _ => mutate(&originals[random.below(originals.len())], &mut random),
        };
        let outcome = std::panic::catch_unwind(|| parse(Path::new("/nowhere/t.toml"), &text, &env([])));
        let outcome = outcome.unwrap_or_else(|_| panic!("seed {seed} panics:\n{text}"));
        match outcome {
            Err(errors) => assert!(!errors.0.is_empty() && !errors.to_string().is_empty(), "seed {seed}"),
            Ok(config) => {
                accepted += 1;
                for keeper in &config.keepers {
                    let timing = &keeper.timing;
                    let sum = timing.ttl() / 2
                        + 2 * timing.node_timeout()
                        + timing.stop_timeout()
                        + timing.kill_margin()
                        + timing.drift();
                    assert!(sum < timing.ttl(), "seed {seed}: {timing:?}");
                    assert!(!keeper.process.command.is_empty(), "seed {seed}");
                }
            }
        }
    }
    assert!(accepted > 300, "only {accepted} texts were accepted: the test tests little");
}

#[test]
fn hostile_texts_are_refused_without_a_panic() {
    for text in [
        "[".repeat(100_000),
        format!("a = {}", "[".repeat(100_000)),
        format!("a = {}", "{a=".repeat(50_000)),
        format!("{} = 1", "a.".repeat(50_000) + "a"),
        format!(
            "{}[[keeper]]\nname = \"k\"\ncommand = [\"x\"]\nttl = \"18446744073709551615s 1000ms\"",
            REDIS
        ),
        format!("{} = 1", "k".repeat(1 << 20)),
    ] {
        let answer = errors(&text);
        assert!(answer.lines().all(|line| line.chars().count() < 500), "{}", &answer[..2_000]);
    }
}

#[test]
fn output_goes_to_the_log_unless_the_keeper_or_the_defaults_say_otherwise() {
    let two = "[[keeper]]\nname = \"j\"\ncommand = [\"true\"]\noutput = \"journal\"\n";
    let outputs = |text: &str| -> Vec<OutputConfig> {
        read(text).keepers.into_iter().map(|keeper| keeper.output).collect()
    };
    assert_eq!(outputs(&format!("{REDIS}{KEEPER}{two}")), [OutputConfig::Log, OutputConfig::Journal]);
    let defaults = "[defaults]\noutput = \"inherit\"\n";
    let with_defaults = outputs(&format!("{REDIS}{defaults}{KEEPER}{two}"));
    assert_eq!(with_defaults, [OutputConfig::Inherit, OutputConfig::Journal]);
    assert_eq!(outputs(&format!("{REDIS}{KEEPER}output = \"null\"")), [OutputConfig::Null]);
}

#[test]
fn an_output_file_is_relative_to_the_file_it_stands_in_and_has_a_size() {
    let file = |text: &str| match &read(&format!("{REDIS}{KEEPER}output = {text}")).keepers[0].output {
        OutputConfig::File(file) => file.clone(),
        other @ (OutputConfig::Log | OutputConfig::Journal | OutputConfig::Inherit | OutputConfig::Null) => {
            panic!("{other:?}")
        }
    };
    let plain = file("{ file = \"logs/k.log\" }");
    assert!(plain.path.is_absolute() && plain.path.ends_with("logs/k.log"), "{plain:?}");
    assert_eq!((plain.max_size, plain.keep), (10 << 20, 5));
    let sized = |size: &str| file(&format!("{{ file = \"/k\", max_size = \"{size}\", keep = 0 }}")).max_size;
    assert_eq!(
        [sized("64KiB"), sized("1 MiB"), sized("100MB"), sized("2GiB")],
        [64 << 10, 1 << 20, 100_000_000, 2 << 30]
    );
}

#[test]
fn no_file_is_written_by_two_keepers() {
    let two = "[[keeper]]\nname = \"j\"\ncommand = [\"true\"]\noutput = { file = \"/x\" }\n";
    let own = format!("{REDIS}{KEEPER}output = {{ file = \"/x\" }}\n{two}");
    let answer = "output file /x of keeper \"j\" is taken by keeper \"k\"";
    assert_eq!(errors(&own), format!("t.toml:10:10: {answer}"));
    let shared = format!("{REDIS}[defaults]\noutput = {{ file = \"/x\" }}\n{KEEPER}{two}");
    assert_eq!(errors(&shared), format!("t.toml:11:10: {answer}"));
    assert_eq!(errors(&own.replacen("\"/x\"", "\"/a/../x\"", 1)), format!("t.toml:10:10: {answer}"));
}

#[test]
fn no_file_is_what_another_is_rotated_to() {
    let two = |a: &str, b: &str| {
        let second =
            format!("[[keeper]]\nname = \"j\"\ncommand = [\"true\"]\noutput = {{ file = \"{b}\" }}\n");
        format!("{REDIS}{KEEPER}output = {{ file = \"{a}\", keep = 2 }}\n{second}")
    };
    assert_eq!(
        errors(&two("/x.log", "/x.log.2")),
        "t.toml:10:10: output file /x.log.2 of keeper \"j\" and /x.log of keeper \"k\": one is what the other is rotated to"
    );
    assert!(errors(&two("/x.log.5", "/x.log")).contains("is rotated to"));
    assert_eq!(read(&two("/x.log", "/x.log.3")).keepers.len(), 2);
}

#[test]
fn the_journal_can_be_elsewhere() {
    let text = format!("{REDIS}{KEEPER}");
    assert_eq!(read(&text).journal_socket, Path::new("/run/systemd/journal/socket"));
    let there = read_in(&text, &env([("KEEPERD_JOURNAL_SOCKET", "/there")]));
    assert_eq!(there.journal_socket, Path::new("/there"));
    let wrong = errors_in(&text, &env([("KEEPERD_JOURNAL_SOCKET", "here")]));
    assert_eq!(wrong, "KEEPERD_JOURNAL_SOCKET:1:1: must be an absolute path, or not be set at all");
}

// ── what a reload changes ──

/// Every key of a keeper with a value that is not its default; one that a keeper has for itself only, first.
const OTHER_VALUES: [&str; 32] = [
    "lock = \"other\"",
    "command = [\"false\"]",
    "ttl = \"20s\"",
    "stop_timeout = \"2s\"",
    "stop_signal = \"SIGINT\"",
    "working_dir = \"/tmp\"",
    "env = { A = \"1\" }",
    "env_file = \"/f\"",
    "clear_env = true",
    "user = \"root\"",
    "group = \"root\"",
    "groups = [\"root\"]",
    "umask = \"077\"",
    "limits = { nofile = 64 }",
    "nice = 3",
    "no_new_privileges = false",
    "isolate = \"pid\"",
    "restart = \"never\"",
    "success_exit_codes = [3]",
    "restart_delay = \"2s\"",
    "restart_delay_max = \"50s\"",
    "give_up_after = 6",
    "give_up_window = \"6m\"",
    "cooldown = \"70s\"",
    "on_acquired = [\"true\"]",
    "on_lost = [\"true\"]",
    "hook_timeout = \"3s\"",
    "output = \"null\"",
    "priority = 1",
    "hold = \"70s\"",
    "health = { tcp = \"localhost:1\" }",
    "ready = { tcp = \"localhost:1\" }",
];

#[test]
fn a_changed_keeper_is_told_by_the_keys_that_differ() {
    let keeper = |lines: &str| {
        let (command, lines) =
            if lines.starts_with("command") { (lines, "") } else { ("command = [\"true\"]", lines) };
        read(&format!("{REDIS}[[keeper]]\nname = \"k\"\n{command}\nstop_timeout = \"1s\"\n{lines}\n"))
    };
    let plain = keeper("");
    for line in OTHER_VALUES.into_iter().filter(|line| !line.starts_with("stop_timeout")) {
        let key = line.split(' ').next().expect("a key");
        let changed = Difference::of(&plain, &keeper(line));
        assert_eq!(changed.changed, [("k".to_owned(), vec![key])], "{line}");
        assert_eq!((changed.added.len(), changed.removed.len(), changed.unchanged), (0, 0, 0));
        assert_eq!(Difference::of(&keeper(line), &keeper(line)).unchanged, 1, "{line}");
    }
    let default_timeout = read(&format!("{REDIS}{KEEPER}"));
    assert_eq!(Difference::of(&plain, &default_timeout).changed[0].1, ["stop_timeout"]);
}

#[test]
fn every_key_of_a_keeper_can_be_told_as_changed() {
    let example = fs::read_to_string(shipped("README.md")).expect("it is shipped");
    let table = example.split("## `[[keeper]]`").nth(1).and_then(|rest| rest.split("\n#").next());
    let keys = table.expect("a table of keys").lines().filter_map(|line| line.strip_prefix("| `"));
    for key in keys.filter_map(|line| line.split('`').next()).filter(|key| *key != "name") {
        let told = OTHER_VALUES.iter().any(|line| line.starts_with(&format!("{key} =")));
        assert!(told, "{key} is documented, and not among the keys whose change is told");
    }
}

#[test]
fn keepers_are_told_in_the_order_of_the_files() {
    let keepers = |names: &[&str]| {
        let keeper = |name: &&str| format!("[[keeper]]\nname = \"{name}\"\ncommand = [\"true\"]\n");
        read(&format!("{REDIS}{}", names.iter().map(keeper).collect::<String>()))
    };
    let difference = Difference::of(&keepers(&["d", "c", "b", "a"]), &keepers(&["z", "b", "y", "d"]));
    assert_eq!(difference.added, ["z", "y"]);
    assert_eq!(difference.removed, ["c", "a"]);
    assert_eq!((difference.changed.len(), difference.unchanged), (0, 2));
}

#[test]
fn a_longer_lease_changes_its_keeper_and_nothing_that_is_fixed() {
    let with = |ttl: &str| read(&format!("{REDIS}ttl = \"{ttl}\"\n{KEEPER}"));
    let (short, long) = (with("30s"), with("60s"));
    assert!(redis(&long).restart_quarantine > redis(&short).restart_quarantine);
    assert_eq!(fixed_keys(&short, &long), Vec::<&str>::new());
    assert_eq!(Difference::of(&short, &long).changed, [("k".to_owned(), vec!["ttl"])]);
}

#[test]
fn what_leases_and_other_hosts_rest_on_is_fixed_while_the_daemon_runs() {
    let local = "[lock]\nengine = \"local\"\ndirectory = \"/d\"\n";
    let plain = format!("host = \"h\"\n{REDIS}");
    for (old, new, key) in [
        (&*plain, format!("host = \"i\"\n{REDIS}"), "host"),
        (&plain, plain.replace("\"c\"", "\"d\""), "[lock] nodes"),
        (&plain, format!("{plain}key_prefix = \"p:\"\n"), "[lock] key_prefix"),
        (&plain, format!("{plain}retry_count = 9\n"), "[lock] retry_count"),
        (&plain, format!("{plain}retry_delay = \"1s\"\n"), "[lock] retry_delay"),
        (&plain, format!("host = \"h\"\n{local}"), "[lock] engine"),
        (local, local.replace("/d", "/e"), "[lock] directory"),
        (&plain, format!("{plain}[control]\nsocket = \"/s\"\n"), "[control] socket"),
        (&plain, format!("{plain}[http]\nlisten = \"127.0.0.1:9470\"\n"), "[http] listen"),
    ] {
        let [old, new] = [old, &new].map(|text| read(&format!("{text}{KEEPER}")));
        assert_eq!(fixed_keys(&old, &new), [key]);
    }
}
