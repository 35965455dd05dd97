//! `keeperd check`: is the configuration right, and what will happen when.

use crate::config::{
    Config, Env, FileOutput, Health, KeeperConfig, LockConfig, OutputConfig, Probe, RedisConfig, RetryCount,
    load,
};
use crate::core::restart::{RestartPolicy, RestartRules};
use crate::core::time::Instant;
use bytesize::ByteSize;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// The exit code of a wrong configuration, `EX_CONFIG` of sysexits.h.
pub const EXIT_CONFIG: i32 = 78;
const WIDTH: usize = 80;

/// Prints the time line of every keeper to `out`, or every error to `err`; returns the exit code.
pub fn run(path: &Path, env: &Env, out: &mut dyn Write, err: &mut dyn Write) -> i32 {
    let written = match load(path, env) {
        Ok(config) => print(path, &config, out).map(|()| 0),
        Err(errors) => writeln!(err, "{errors}").map(|()| EXIT_CONFIG),
    };
    written.unwrap_or(1)
}

fn print(path: &Path, config: &Config, out: &mut dyn Write) -> io::Result<()> {
    let count = match config.keepers.len() {
        1 => "1 keeper".to_owned(),
        count => format!("{count} keepers"),
    };
    line(out, &format!("{}: valid, {count}", path.display()))?;
    line(out, &format!("host     {}", config.host))?;
    match &config.lock {
        LockConfig::Redis(redis) => print_redis(redis, out)?,
        LockConfig::Local(local) => line(out, &format!("lock     local, in {}", local.directory.display()))?,
    }
    line(out, &format!("control  {}", config.control.socket.display()))?;
    for keeper in &config.keepers {
        print_keeper(keeper, &config.lock, out)?;
    }
    for warning in &config.warnings {
        writeln!(out)?;
        wrapped(out, &format!("warning: {warning}"))?;
    }
    Ok(())
}

fn print_redis(redis: &RedisConfig, out: &mut dyn Write) -> io::Result<()> {
    let count = redis.nodes.len();
    line(out, &format!("lock     redis, quorum {} of {count}", count / 2 + 1))?;
    for node in &redis.nodes {
        line(out, &format!("         {node}"))?;
    }
    let retries = match redis.retry_count {
        RetryCount::Forever => "retries for ever".to_owned(),
        RetryCount::Times(times) => format!("{times} retries"),
    };
    let quarantine =
        if redis.restart_quarantine.is_zero() { "off".to_owned() } else { span(redis.restart_quarantine) };
    line(out, &format!("         {retries}, {} apart, plus jitter", span(redis.retry_delay)))?;
    line(out, &format!("         restart quarantine {quarantine}"))
}

fn print_keeper(keeper: &KeeperConfig, lock: &LockConfig, out: &mut dyn Write) -> io::Result<()> {
    let timing = &keeper.timing;
    let t0 = Instant::default();
    let end = timing.vote_ends(t0);
    let after = |instant: Instant| span(instant.since(t0));
    let key = match lock {
        LockConfig::Redis(redis) => format!("{}{}", redis.key_prefix, keeper.lock),
        LockConfig::Local(_) => keeper.lock.clone(),
    };
    writeln!(out)?;
    line(out, &format!("keeper {}", keeper.name))?;
    line(out, &format!("  lock       {key}"))?;
    line(
        out,
        &format!(
            "  time line  extend {}, stop {}, kill {}, end {} after t0",
            span(timing.extend_every()),
            after(timing.stop_at(end)),
            after(timing.kill_at(end)),
            after(end),
        ),
    )?;
    line(
        out,
        &format!(
            "  ttl {}, stop timeout {} ({}), node timeout {}",
            span(timing.ttl()),
            span(timing.stop_timeout()),
            keeper.process.stop_signal,
            span(timing.node_timeout())
        ),
    )?;
    print_restart(&keeper.restart, out)?;
    print_probes(keeper, out)?;
    line(out, &format!("  output     {}", say_output(&keeper.output)))
}

fn print_probes(keeper: &KeeperConfig, out: &mut dyn Write) -> io::Result<()> {
    let probe = |Probe { question, interval, timeout, failures }: &Probe| {
        format!("{question}, every {}, timeout {}, {failures} failures", span(*interval), span(*timeout))
    };
    if let Some(ready) = &keeper.ready {
        line(out, &format!("  ready      {}", probe(ready)))?;
    }
    match &keeper.health {
        Some(Health::Probe { probe: asked, standby: false }) => {
            line(out, &format!("  health     {}", probe(asked)))
        }
        Some(Health::Probe { probe: asked, standby: true }) => {
            line(out, &format!("  health     {}", probe(asked)))?;
            line(out, "             asked before this host stands, too")
        }
        Some(Health::MaxSilence(most)) => {
            line(out, &format!("  health     unhealthy when silent for {}", span(*most)))
        }
        None => Ok(()),
    }
}

fn say_output(output: &OutputConfig) -> String {
    match output {
        OutputConfig::File(FileOutput { path, max_size, keep }) => {
            format!("{}, up to {}, {keep} older", path.display(), ByteSize(*max_size))
        }
        OutputConfig::Log | OutputConfig::Journal | OutputConfig::Inherit | OutputConfig::Null => {
            output.name().to_owned()
        }
    }
}

fn print_restart(rules: &RestartRules, out: &mut dyn Write) -> io::Result<()> {
    let policy = match rules.policy {
        RestartPolicy::Always => "always",
        RestartPolicy::OnFailure => "on failure",
        RestartPolicy::Never => return line(out, "  restart    never"),
    };
    line(out, &format!("  restart    {policy}, after {} to {}", span(rules.delay), span(rules.delay_max)))?;
    let failures = if rules.give_up_after == 1 { "failure" } else { "failures" };
    line(
        out,
        &format!(
            "  give up    after {} {failures} in {}, then stay away for {}",
            rules.give_up_after,
            span(rules.give_up_window),
            span(rules.cooldown)
        ),
    )
}

/// To the millisecond, without trailing noise: what the arithmetic leaves below that helps nobody.
fn span(span: Duration) -> String {
    let whole = Duration::from_millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
    if whole.as_secs() >= 60 && whole.subsec_nanos() == 0 {
        return humantime::format_duration(whole).to_string();
    }
    format!("{whole:?}")
}

/// One line, cut where a terminal would break it.
fn line(out: &mut dyn Write, text: &str) -> io::Result<()> {
    if text.chars().count() <= WIDTH {
        return writeln!(out, "{text}");
    }
    let cut: String = text.chars().take(WIDTH - 1).collect();
    writeln!(out, "{cut}…")
}

/// A paragraph broken at spaces; a word longer than a line stays whole, for it is a path to copy.
pub fn wrapped(out: &mut dyn Write, text: &str) -> io::Result<()> {
    let mut column = 0;
    for word in text.split(' ') {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > WIDTH {
            write!(out, "\n  ")?;
            column = 2;
        } else if column > 0 {
            write!(out, " ")?;
            column += 1;
        }
        write!(out, "{word}")?;
        column += width;
    }
    writeln!(out)
}
