//! What an accepted configuration has to be, shared by properties and fuzzing.

use keeperd::config::{Config, Env, LockConfig, parse};
use std::collections::BTreeSet;
use std::path::Path;

/// Parses; an accepted file must keep every promise the rest of the program relies on.
pub fn load(text: &str, env: &Env) -> Result<Config, String> {
    match parse(Path::new("fuzz.toml"), text, env) {
        Ok(config) => {
            accepted(&config);
            Ok(config)
        }
        Err(errors) => {
            assert!(!errors.0.is_empty(), "refused without a reason");
            assert!(errors.0.len() < 10_000);
            Err(errors.to_string())
        }
    }
}

fn accepted(config: &Config) {
    let mut names = BTreeSet::new();
    for keeper in &config.keepers {
        let t = keeper.timing;
        let sum = t.ttl() / 2 + 2 * t.node_timeout() + t.stop_timeout() + t.kill_margin() + t.drift();
        assert!(sum < t.ttl(), "{keeper:?}");
        assert!(names.insert(&keeper.name), "twice: {}", keeper.name);
        let letters = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        assert!(
            (1..=128).contains(&keeper.name.len()) && keeper.name.chars().all(letters),
            "{}",
            keeper.name
        );
        assert!(!keeper.process.command.is_empty());
        assert!(keeper.restart.give_up_after > 0 && keeper.restart.delay <= keeper.restart.delay_max);
    }
    if let LockConfig::Redis(redis) = &config.lock {
        assert!(redis.nodes.len() % 2 == 1 && redis.nodes.len() <= 9, "{} nodes", redis.nodes.len());
    }
}
