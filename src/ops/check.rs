//! `keeperd check`: is the configuration right, and what will happen when.

use super::terminal::paragraph;
use crate::config::{
    Config, Env, FileOutput, Health, KeeperConfig, LockConfig, OutputConfig, Probe, RedisConfig, RetryCount,
    load,
};
use crate::core::restart::{RestartPolicy, RestartRules};
use crate::core::time::Instant;
use crate::systemd;
use bytesize::ByteSize;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// Of a paragraph.
const WIDTH: usize = 80;
/// The exit code of a wrong configuration, `EX_CONFIG` of sysexits.h.
pub const EXIT_CONFIG: i32 = 78;

/// Prints the time line of every keeper to `out`, or every error to `err`; returns the exit code. Lines are cut at the `width` of a
/// terminal, and whole without one.
pub fn run(path: &Path, env: &Env, width: Option<usize>, out: &mut dyn Write, err: &mut dyn Write) -> i32 {
    let written = match load(path, env) {
        Ok(config) => print(path, &config, &mut Page { out, width }).map(|()| 0),
        Err(errors) => writeln!(err, "{errors}").map(|()| EXIT_CONFIG),
    };
    written.unwrap_or(1)
}

/// Where it is printed, and how wide that is.
struct Page<'a> {
    out: &'a mut dyn Write,
    width: Option<usize>,
}

fn print(path: &Path, config: &Config, page: &mut Page<'_>) -> io::Result<()> {
    let count = match config.keepers.len() {
        1 => "1 keeper".to_owned(),
        count => format!("{count} keepers"),
    };
    line(page, &format!("{}: valid, {count}", path.display()))?;
    line(page, &format!("host     {}", config.host))?;
    match &config.lock {
        LockConfig::Redis(redis) => print_redis(redis, page)?,
        LockConfig::Local(local) => line(page, &format!("lock     local, in {}", local.directory.display()))?,
    }
    line(page, &format!("control  {}", config.control.socket.display()))?;
    for keeper in &config.keepers {
        print_keeper(keeper, &config.lock, page)?;
    }
    let slow = config.keepers.iter().map(|keeper| systemd::stop_takes(&keeper.timing)).max();
    let slow = slow.filter(|takes| *takes > systemd::STOP_TIMEOUT).map(|takes| {
        format!(
            "keepers may need {} to stop; for systemd to wait that long also after a crash of the daemon, say systemctl edit keeperd, \
             and there [Service] TimeoutStopSec={}",
            span(takes),
            takes.as_secs() + 1
        )
    });
    for warning in config.warnings.iter().chain(&slow) {
        writeln!(page.out)?;
        wrapped(page.out, &format!("warning: {warning}"))?;
    }
    Ok(())
}

fn print_redis(redis: &RedisConfig, page: &mut Page<'_>) -> io::Result<()> {
    let count = redis.nodes.len();
    line(page, &format!("lock     redis, quorum {} of {count}", count / 2 + 1))?;
    for node in &redis.nodes {
        line(page, &format!("         {node}"))?;
    }
    let retries = match redis.retry_count {
        RetryCount::Forever => "retries for ever".to_owned(),
        RetryCount::Times(times) => format!("{times} retries"),
    };
    let quarantine =
        if redis.restart_quarantine.is_zero() { "off".to_owned() } else { span(redis.restart_quarantine) };
    line(page, &format!("         {retries}, {} apart, plus jitter", span(redis.retry_delay)))?;
    line(page, &format!("         restart quarantine {quarantine}"))
}

fn print_keeper(keeper: &KeeperConfig, lock: &LockConfig, page: &mut Page<'_>) -> io::Result<()> {
    let timing = &keeper.timing;
    let t0 = Instant::default();
    let end = timing.vote_ends(t0);
    let after = |instant: Instant| span(instant.since(t0));
    let key = match lock {
        LockConfig::Redis(redis) => format!("{}{}", redis.key_prefix, keeper.lock),
        LockConfig::Local(_) => keeper.lock.clone(),
    };
    writeln!(page.out)?;
    line(page, &format!("keeper {}", keeper.name))?;
    line(page, &format!("  lock       {key}"))?;
    line(
        page,
        &format!(
            "  time line  extend {}, stop {}, kill {}, end {} after t0",
            span(timing.extend_every()),
            after(timing.stop_at(end)),
            after(timing.kill_at(end)),
            after(end),
        ),
    )?;
    line(
        page,
        &format!(
            "  ttl {}, stop timeout {} ({}), node timeout {}",
            span(timing.ttl()),
            span(timing.stop_timeout()),
            keeper.process.stop_signal,
            span(timing.node_timeout())
        ),
    )?;
    print_restart(&keeper.restart, page)?;
    print_probes(keeper, page)?;
    line(page, &format!("  output     {}", say_output(&keeper.output)))
}

fn print_probes(keeper: &KeeperConfig, page: &mut Page<'_>) -> io::Result<()> {
    let probe = |Probe { question, interval, timeout, failures }: &Probe| {
        format!("{question}, every {}, timeout {}, {failures} failures", span(*interval), span(*timeout))
    };
    if let Some(ready) = &keeper.ready {
        line(page, &format!("  ready      {}", probe(ready)))?;
    }
    match &keeper.health {
        Some(Health::Probe { probe: asked, standby: false }) => {
            line(page, &format!("  health     {}", probe(asked)))
        }
        Some(Health::Probe { probe: asked, standby: true }) => {
            line(page, &format!("  health     {}", probe(asked)))?;
            line(page, "             asked before this host stands, too")
        }
        Some(Health::MaxSilence(most)) => {
            line(page, &format!("  health     unhealthy when silent for {}", span(*most)))
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

fn print_restart(rules: &RestartRules, page: &mut Page<'_>) -> io::Result<()> {
    let policy = match rules.policy {
        RestartPolicy::Always => "always",
        RestartPolicy::OnFailure => "on failure",
        RestartPolicy::Never => return line(page, "  restart    never"),
    };
    line(page, &format!("  restart    {policy}, after {} to {}", span(rules.delay), span(rules.delay_max)))?;
    let failures = if rules.give_up_after == 1 { "failure" } else { "failures" };
    line(
        page,
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
fn line(page: &mut Page<'_>, text: &str) -> io::Result<()> {
    match page.width {
        Some(width) if text.chars().count() > width => {
            let cut: String = text.chars().take(width.saturating_sub(1)).collect();
            writeln!(page.out, "{cut}…")
        }
        Some(_) | None => writeln!(page.out, "{text}"),
    }
}

/// A paragraph that follows the tables.
pub fn wrapped(out: &mut dyn Write, text: &str) -> io::Result<()> {
    paragraph(out, text, ["", "  "], WIDTH)
}
