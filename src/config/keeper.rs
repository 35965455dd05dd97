//! One `[[keeper]]` over `[defaults]` to what is run, and no two of them in each other's way.

use super::decode::Field;
use super::report::{Place, Report, Source};
use super::schema::RawKeeper;
use super::{
    HOOK_TIMEOUT_DEFAULT, Health, HooksConfig, KeeperConfig, OutputConfig, Probe, ProcessConfig, TTL_DEFAULT,
};
use crate::core::preference::Preference;
use crate::core::restart::{RestartPolicy, RestartRules};
use crate::core::timing::Timing;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// No name twice, no lock twice: two keepers on one lock would starve each other.
pub fn unique(keepers: &[RawKeeper], report: &mut Report) {
    let (mut names, mut locks) = (BTreeMap::new(), BTreeMap::new());
    for keeper in keepers {
        let mut name_taken = false;
        if let Field::Given(name) = &keeper.name {
            match names.get(&name.value) {
                None => drop(names.insert(&name.value, &name.place)),
                Some(first) => {
                    name_taken = true;
                    let first = name.place_of(first);
                    report.error(&name.place, format!("keeper name \"{}\" is taken by {first}", name.value));
                }
            }
        }
        let lock = keeper.lock.clone().or(keeper.name.clone());
        let Field::Given(lock) = lock else { continue };
        match locks.get(&lock.value) {
            None => drop(locks.insert(lock.value, lock.place)),
            // A name given twice without lock keys is one mistake, not two.
            Some(_) if name_taken && keeper.lock.place().is_none() => {}
            Some(first) => {
                let first = lock.place_of(first);
                report.error(&lock.place, format!("lock \"{}\" is taken by {first}", lock.value));
            }
        }
    }
}

/// No file for two keepers, nor one that another rotates its own to: lines would be lost. `defaults` counts for every keeper that has
/// no output of its own.
pub fn own_files(keepers: &[RawKeeper], defaults: &RawKeeper, report: &mut Report) {
    let mut files: BTreeMap<PathBuf, (&str, u32)> = BTreeMap::new();
    for keeper in keepers {
        let name = keeper.name.given_value().map_or("?", String::as_str);
        let Field::Given(output) = keeper.output.clone().or(defaults.output.clone()) else { continue };
        let OutputConfig::File(file) = output.value else { continue };
        let path = plain_path(&file.path);
        let taken = files.iter().find(|(other, (_, keep))| {
            path == **other
                || rotated_from(&path).is_some_and(|(from, n)| from == **other && n <= *keep)
                || rotated_from(other).is_some_and(|(from, n)| from == path && n <= file.keep)
        });
        match taken {
            None => drop(files.insert(path, (name, file.keep))),
            Some((other, (first, _))) if *other == path => {
                let path = file.path.display();
                let why = format!("output file {path} of keeper \"{name}\" is taken by keeper \"{first}\"");
                report.error(&output.place, why);
            }
            Some((other, (first, _))) => {
                let why = format!(
                    "output file {} of keeper \"{name}\" and {} of keeper \"{first}\": one is what the other is rotated to",
                    path.display(),
                    other.display()
                );
                report.error(&output.place, why);
            }
        }
    }
}

/// Without `.` and `..`, as far as that can be known without looking at the disk.
fn plain_path(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(plain.pop()),
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => plain.push(part),
        }
    }
    plain
}

/// `FILE.3` is FILE and 3.
fn rotated_from(path: &Path) -> Option<(PathBuf, u32)> {
    Some((path.with_extension(""), path.extension()?.to_str()?.parse().ok()?))
}

/// `None` when something has been reported. `lock_ttl` is what counts when neither the keeper nor `[defaults]` has one.
pub fn resolve(
    raw: RawKeeper,
    defaults: &RawKeeper,
    lock_ttl: &Field<Duration>,
    source: &Arc<Source>,
    report: &mut Report,
) -> Option<KeeperConfig> {
    // An impossible time line is told where this keeper can repair it, else where it comes from.
    let own = raw.stop_timeout.place().or(raw.ttl.place()).cloned();
    let raw = raw.over(defaults, lock_ttl);
    let at = own.as_ref().or(raw.stop_timeout.place()).or(raw.ttl.place()).or(raw.name.place());
    let at = at.cloned().unwrap_or_else(|| source.place(0));
    let timing = timing(&raw, &at, report);
    let restart = restart(&raw, report);
    if let Some(rules) = &restart {
        warn_of_endless_illness(&raw, rules, report);
    }
    let lock = raw.lock.clone().or(raw.name.clone());
    if raw.output.is_bad() {
        return None;
    }
    let output = raw.output.clone().value().unwrap_or(OutputConfig::Log);
    let priorities =
        if raw.priority.is_bad() { None } else { Some(raw.priority.clone().value().unwrap_or_default()) };
    let hold = raw.hold.clone().value().unwrap_or(Preference::HOLD_DEFAULT);
    if let (OutputConfig::Inherit | OutputConfig::Null, Field::Given(health)) = (&output, &raw.health)
        && matches!(health.value, Health::MaxSilence(_))
    {
        let why = format!(
            "max_silence cannot be known with output = \"{}\": keeperd does not read it; use another probe or output",
            output.name()
        );
        report.error(&health.place, why);
    }
    Some(KeeperConfig {
        name: raw.name.clone().value()?,
        lock: lock.value()?,
        health: raw.health.clone().value(),
        ready: raw.ready.clone().value(),
        timing: timing?,
        hooks: hooks(&raw),
        process: process(raw)?,
        restart: restart?,
        output,
        priorities: priorities?,
        hold,
    })
}

impl RawKeeper {
    /// Written keys win one by one, variables and limits name by name.
    fn over(self, below: &RawKeeper, lock_ttl: &Field<Duration>) -> RawKeeper {
        RawKeeper {
            name: self.name,
            lock: self.lock,
            command: self.command,
            ttl: self.ttl.or(below.ttl.clone()).or(lock_ttl.clone()),
            stop_signal: self.stop_signal.or(below.stop_signal.clone()),
            stop_timeout: self.stop_timeout.or(below.stop_timeout.clone()),
            working_dir: self.working_dir.or(below.working_dir.clone()),
            env: merged(self.env, &below.env),
            env_file: self.env_file.or(below.env_file.clone()),
            clear_env: self.clear_env.or(below.clear_env.clone()),
            user: self.user.or(below.user.clone()),
            group: self.group.or(below.group.clone()),
            groups: self.groups.or(below.groups.clone()),
            umask: self.umask.or(below.umask.clone()),
            limits: merged(self.limits, &below.limits),
            nice: self.nice.or(below.nice.clone()),
            no_new_privileges: self.no_new_privileges.or(below.no_new_privileges.clone()),
            isolate: self.isolate.or(below.isolate.clone()),
            restart: self.restart.or(below.restart.clone()),
            success_exit_codes: self.success_exit_codes.or(below.success_exit_codes.clone()),
            restart_delay: self.restart_delay.or(below.restart_delay.clone()),
            restart_delay_max: self.restart_delay_max.or(below.restart_delay_max.clone()),
            give_up_after: self.give_up_after.or(below.give_up_after.clone()),
            give_up_window: self.give_up_window.or(below.give_up_window.clone()),
            cooldown: self.cooldown.or(below.cooldown.clone()),
            on_acquired: self.on_acquired.or(below.on_acquired.clone()),
            on_lost: self.on_lost.or(below.on_lost.clone()),
            hook_timeout: self.hook_timeout.or(below.hook_timeout.clone()),
            output: self.output.or(below.output.clone()),
            priority: self.priority.or(below.priority.clone()),
            hold: self.hold.or(below.hold.clone()),
            health: self.health.or(below.health.clone()),
            ready: self.ready.or(below.ready.clone()),
        }
    }
}

fn merged<V: Clone>(
    own: Field<BTreeMap<String, V>>,
    below: &Field<BTreeMap<String, V>>,
) -> Field<BTreeMap<String, V>> {
    match (own, below) {
        (Field::Given(mut own), Field::Given(below)) => {
            for (name, value) in &below.value {
                own.value.entry(name.clone()).or_insert_with(|| value.clone());
            }
            Field::Given(own)
        }
        (own, below) => own.or(below.clone()),
    }
}

fn timing(raw: &RawKeeper, at: &Place, report: &mut Report) -> Option<Timing> {
    if raw.ttl.is_bad() || raw.stop_timeout.is_bad() {
        return None;
    }
    let ttl = raw.ttl.clone().value().unwrap_or(TTL_DEFAULT);
    let stop_timeout = raw.stop_timeout.clone().value().unwrap_or_else(|| Timing::default_stop_timeout(ttl));
    Timing::new(ttl, stop_timeout).map_err(|why| report.error(at, why.to_string())).ok()
}

fn process(raw: RawKeeper) -> Option<ProcessConfig> {
    Some(ProcessConfig {
        command: raw.command.value()?,
        working_dir: raw.working_dir.value(),
        env: raw.env.value().unwrap_or_default(),
        env_file: raw.env_file.value(),
        clear_env: raw.clear_env.value().unwrap_or(false),
        user: raw.user.value(),
        group: raw.group.value(),
        groups: raw.groups.value(),
        umask: raw.umask.value(),
        limits: raw.limits.value().unwrap_or_default(),
        nice: raw.nice.value(),
        no_new_privileges: raw.no_new_privileges.value().unwrap_or(true),
        isolate: raw.isolate.value().unwrap_or_default(),
        stop_signal: raw.stop_signal.value().unwrap_or(Signal::SIGTERM),
    })
}

fn hooks(raw: &RawKeeper) -> HooksConfig {
    HooksConfig {
        on_acquired: raw.on_acquired.clone().value(),
        on_lost: raw.on_lost.clone().value(),
        timeout: raw.hook_timeout.clone().value().unwrap_or(HOOK_TIMEOUT_DEFAULT),
    }
}

/// A child that never gets healthy must fail often enough within the window, or a sick host keeps it for ever.
fn warn_of_endless_illness(raw: &RawKeeper, rules: &RestartRules, report: &mut Report) {
    let ready = raw.ready.given_value().map(Probe::patience);
    let health = raw.health.given_value().map(Health::patience);
    let Some(place) = raw.health.place().or(raw.ready.place()) else { return };
    // One that gets ready only just in time, and then is never healthy.
    let patience = ready.unwrap_or_default() + health.unwrap_or_default();
    let failures_take =
        patience.saturating_mul(rules.give_up_after - 1).saturating_add(rules.crash_loop_lasts());
    if rules.policy != RestartPolicy::Never && failures_take >= rules.give_up_window {
        let why = format!(
            "an unhealthy child is noticed after {patience:?}, so {} failures take {failures_take:?} and do not fall into \
             give_up_window {:?}: a host on which it never gets healthy would not hand it over; use a longer window, or a \
             shorter interval",
            rules.give_up_after, rules.give_up_window
        );
        report.warn_at(place, why);
    }
}

fn restart(raw: &RawKeeper, report: &mut Report) -> Option<RestartRules> {
    let of = |field: &Field<Duration>, built_in| field.clone().value().unwrap_or(built_in);
    let built_in = RestartRules::default();
    let rules = RestartRules {
        policy: raw.restart.clone().value().unwrap_or(built_in.policy),
        success_exit_codes: raw.success_exit_codes.clone().value().unwrap_or(built_in.success_exit_codes),
        delay: of(&raw.restart_delay, built_in.delay),
        delay_max: of(&raw.restart_delay_max, built_in.delay_max),
        give_up_after: raw.give_up_after.clone().value().unwrap_or(built_in.give_up_after),
        give_up_window: of(&raw.give_up_window, built_in.give_up_window),
        cooldown: of(&raw.cooldown, built_in.cooldown),
    };
    let doubtful = raw.restart_delay.is_bad()
        || raw.restart_delay_max.is_bad()
        || raw.give_up_after.is_bad()
        || raw.give_up_window.is_bad();
    if doubtful {
        return None;
    }
    if rules.delay > rules.delay_max {
        let at = raw.restart_delay.place().or(raw.restart_delay_max.place())?; // the built-in ones agree
        let (delay, max) = (rules.delay, rules.delay_max);
        let why =
            format!("restart_delay {delay:?} is longer than restart_delay_max {max:?}; shorten or raise it");
        report.error(at, why);
        return None;
    }
    let failures_take = rules.crash_loop_lasts();
    if rules.policy != RestartPolicy::Never && failures_take >= rules.give_up_window {
        let keys = [raw.give_up_window.place(), raw.give_up_after.place(), raw.restart_delay.place()];
        let at = keys.into_iter().flatten().next()?; // the built-in ones agree
        let why = format!(
            "give_up_window {:?} is too short: {} failures, restart_delay {:?} apart and doubling up to {:?}, take \
             {failures_take:?}, so the keeper would never be given up; use a longer window, fewer failures, or a smaller \
             restart_delay_max",
            rules.give_up_window, rules.give_up_after, rules.delay, rules.delay_max
        );
        report.error(at, why);
        return None;
    }
    Some(rules)
}
