//! What a new configuration changes in the one that runs, by the names of the keys.

use super::{Config, HooksConfig, KeeperConfig, LockConfig, ProcessConfig, RedisConfig};
use crate::core::restart::RestartRules;
use std::collections::BTreeMap;

/// Keepers by name, in the order of the file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Difference {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    /// With the keys that differ after defaults and precedence; never empty.
    pub changed: Vec<(String, Vec<&'static str>)>,
    pub unchanged: usize,
}

impl Difference {
    pub fn of(old: &Config, new: &Config) -> Difference {
        let mut known: BTreeMap<&str, &KeeperConfig> =
            old.keepers.iter().map(|keeper| (&*keeper.name, keeper)).collect();
        let mut difference = Difference::default();
        for keeper in &new.keepers {
            match known.remove(&*keeper.name) {
                None => difference.added.push(keeper.name.clone()),
                Some(before) if before == keeper => difference.unchanged += 1,
                Some(before) => {
                    difference.changed.push((keeper.name.clone(), keeper_keys(before, keeper)));
                }
            }
        }
        let gone = old.keepers.iter().filter(|keeper| known.contains_key(&*keeper.name));
        difference.removed = gone.map(|keeper| keeper.name.clone()).collect();
        difference
    }
}

/// Keys that differ and are fixed while the daemon runs: leases, and other hosts, depend on them. `restart_quarantine` is not among
/// them: a longer one counts from now on, a shorter one from the next start.
pub fn fixed_keys(old: &Config, new: &Config) -> Vec<&'static str> {
    let Config { host, lock, control, http, journal_socket, keepers: _, ttl: _, warnings: _ } = old;
    let mut keys = differing([
        ("host", *host != new.host),
        ("[control] socket", *control != new.control),
        ("[http] listen", *http != new.http),
        ("KEEPERD_JOURNAL_SOCKET", *journal_socket != new.journal_socket),
    ]);
    keys.extend(match (lock, &new.lock) {
        (LockConfig::Redis(old), LockConfig::Redis(new)) => redis_keys(old, new),
        (LockConfig::Local(old), LockConfig::Local(new)) => {
            differing([("[lock] directory", old.directory != new.directory)])
        }
        (LockConfig::Redis(_), LockConfig::Local(_)) | (LockConfig::Local(_), LockConfig::Redis(_)) => {
            vec!["[lock] engine"]
        }
    });
    keys
}

fn redis_keys(old: &RedisConfig, new: &RedisConfig) -> Vec<&'static str> {
    let RedisConfig { nodes, key_prefix, retry_count, retry_delay, restart_quarantine: _, login, pem } = old;
    differing([
        ("[lock] nodes", *nodes != new.nodes),
        ("[lock] key_prefix", *key_prefix != new.key_prefix),
        ("[lock] retry_count", *retry_count != new.retry_count),
        ("[lock] retry_delay", *retry_delay != new.retry_delay),
        ("[lock] username or password", *login != new.login),
        ("[lock] tls", *pem != new.pem),
    ])
}

fn keeper_keys(old: &KeeperConfig, new: &KeeperConfig) -> Vec<&'static str> {
    let KeeperConfig {
        name: _,
        lock,
        timing,
        process,
        restart,
        hooks: HooksConfig { on_acquired, on_lost, timeout },
        output,
        priorities,
        hold,
        health,
        ready,
    } = old;
    let mut keys = differing([
        ("lock", *lock != new.lock),
        ("ttl", timing.ttl() != new.timing.ttl()),
        ("stop_timeout", timing.stop_timeout() != new.timing.stop_timeout()),
    ]);
    keys.extend(process_keys(process, &new.process));
    keys.extend(restart_keys(restart, &new.restart));
    keys.extend(differing([
        ("on_acquired", *on_acquired != new.hooks.on_acquired),
        ("on_lost", *on_lost != new.hooks.on_lost),
        ("hook_timeout", *timeout != new.hooks.timeout),
        ("output", *output != new.output),
        ("priority", *priorities != new.priorities),
        ("hold", *hold != new.hold),
        ("health", *health != new.health),
        ("ready", *ready != new.ready),
    ]));
    keys
}

fn process_keys(old: &ProcessConfig, new: &ProcessConfig) -> Vec<&'static str> {
    let ProcessConfig {
        command,
        working_dir,
        env,
        env_file,
        clear_env,
        user,
        group,
        groups,
        umask,
        limits,
        nice,
        no_new_privileges,
        isolate,
        stop_signal,
    } = old;
    differing([
        ("command", *command != new.command),
        ("stop_signal", *stop_signal != new.stop_signal),
        ("working_dir", *working_dir != new.working_dir),
        ("env", *env != new.env),
        ("env_file", *env_file != new.env_file),
        ("clear_env", *clear_env != new.clear_env),
        ("user", *user != new.user),
        ("group", *group != new.group),
        ("groups", *groups != new.groups),
        ("umask", *umask != new.umask),
        ("limits", *limits != new.limits),
        ("nice", *nice != new.nice),
        ("no_new_privileges", *no_new_privileges != new.no_new_privileges),
        ("isolate", *isolate != new.isolate),
    ])
}

fn restart_keys(old: &RestartRules, new: &RestartRules) -> Vec<&'static str> {
    let RestartRules {
        policy,
        success_exit_codes,
        delay,
        delay_max,
        give_up_after,
        give_up_window,
        cooldown,
    } = old;
    differing([
        ("restart", *policy != new.policy),
        ("success_exit_codes", *success_exit_codes != new.success_exit_codes),
        ("restart_delay", *delay != new.delay),
        ("restart_delay_max", *delay_max != new.delay_max),
        ("give_up_after", *give_up_after != new.give_up_after),
        ("give_up_window", *give_up_window != new.give_up_window),
        ("cooldown", *cooldown != new.cooldown),
    ])
}

fn differing<const N: usize>(keys: [(&'static str, bool); N]) -> Vec<&'static str> {
    keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}
