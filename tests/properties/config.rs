//! The configuration: any text is an answer, and what is accepted can be run.

use super::cases;
use super::load::load;
use keeperd::config::Env;
use proptest::prelude::*;

const SHIPPED: [&str; 2] =
    [include_str!("../../config/keepers.toml"), include_str!("../../config/quickstart.toml")];

const KEYS: &[&str] = &[
    "ttl",
    "stop_timeout",
    "restart_quarantine",
    "nodes",
    "engine",
    "name",
    "lock",
    "command",
    "restart",
    "restart_delay",
    "restart_delay_max",
    "give_up_after",
    "success_exit_codes",
    "env",
    "limits",
    "umask",
    "key_prefix",
    "retry_count",
];

/// Lines as an operator writes them, right and wrong, in any order.
fn pieces() -> impl Strategy<Value = String> {
    let key = prop_oneof![9 => prop::sample::select(KEYS).prop_map(str::to_owned), 1 => "[a-z_]{1,8}"];
    let value = prop_oneof![
        "[0-9]{1,12}(ms|s|m|h|us|d| )".prop_map(|text| format!("\"{text}\"")),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        Just("[\"a\", \"b:1\", \"rediss://u:p@h:2\"]".to_owned()),
        Just("\"local\"".to_owned()),
        Just("{ nofile = \"unlimited\" }".to_owned()),
        "\\PC{0,12}".prop_map(|text| format!("{text:?}")),
        "\\PC{0,12}",
    ];
    let table =
        prop_oneof![Just("[lock]"), Just("[defaults]"), Just("[control]"), Just("[[keeper]]"), Just("")];
    let line = (table, key, value).prop_map(|(table, key, value)| format!("{table}\n{key} = {value}\n"));
    prop::collection::vec(line, 0..12).prop_map(|lines| lines.concat())
}

/// A shipped file with a few places overwritten.
fn mutated() -> impl Strategy<Value = String> {
    let edit = (any::<prop::sample::Index>(), 0_usize..6, "[ -~\n]{0,6}");
    (0..SHIPPED.len(), prop::collection::vec(edit, 0..6)).prop_map(|(file, edits)| {
        let mut text = SHIPPED[file].as_bytes().to_vec();
        for (place, remove, insert) in edits {
            let from = place.index(text.len());
            let to = (from + remove).min(text.len());
            text.splice(from..to, insert.into_bytes());
        }
        String::from_utf8_lossy(&text).into_owned()
    })
}

#[test]
fn the_shipped_files_are_accepted() {
    let nodes: Env = [("REDIS_NODES", "a,b,c")].into_iter().collect();
    for text in SHIPPED {
        assert!(load(text, &nodes).is_ok());
    }
}

proptest! {
    #![proptest_config(cases("tests/properties/config.txt"))]

    #[test]
    fn any_text_is_answered(text in prop_oneof!["\\PC{0,200}", any::<String>(), pieces(), mutated()]) {
        let _ = load(&text, &Env::default());
    }

    #[test]
    fn any_environment_is_answered(nodes in "\\PC{0,30}", ttl in "[0-9-]{0,8}|\\PC{0,8}", count in "-?[0-9]{0,11}|\\PC{0,4}", file in 0..SHIPPED.len()) {
        let env: Env = [("REDIS_NODES", nodes.as_str()), ("REDIS_LOCK_TTL_MS", &ttl), ("REDIS_RETRY_COUNT", &count), ("REDIS_RETRY_DELAY_MS", &ttl)]
            .into_iter()
            .collect();
        let _ = load(SHIPPED[file], &env);
    }
}
