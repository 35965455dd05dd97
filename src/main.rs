//! keeperd: the command line and the daemon.

use keeperd::cli::{CONFIG_DEFAULT, Cli, Command, Named};
use keeperd::config::{self, Config, ConfigErrors, Env};
use keeperd::observe::log::{self, Format, LogQueue};
use keeperd::ops::run::Request;
use keeperd::ops::status::Question;
use keeperd::ops::steer::{Deed, Until};
use keeperd::ops::terminal::View;
use keeperd::reload::Origin;
use keeperd::{daemon, guard, lock, ops};
use std::io;
use std::path::Path;
use std::process::exit;
use tracing::level_filters::LevelFilter;

fn main() {
    // A guard or a releaser is this binary again; it must not come near threads, arguments or logging.
    guard::main_if_guard(|spec| lock::redis::releaser_main(spec, lock::redis::RELEASE_LIMIT));
    let cli = Cli::from_arguments().unwrap_or_else(|code| exit(code));
    let env = Env::from_process();
    let out = &mut io::stdout();
    let view = View::of_stdout(&env);
    let file = &cli.config;
    let socket = || {
        ops::socket::find(cli.socket.as_deref(), file, &env).unwrap_or_else(|error| {
            eprintln!("keeperd: {error}");
            exit(error.exit_code())
        })
    };
    let one = |Named { name, wait }, deed, out| ops::steer::one(&socket(), &name, deed, wait.into(), out);
    exit(match cli.command {
        Some(Command::Check) => ops::check::run(file, &env, view.width, out, &mut io::stderr()),
        Some(Command::Doctor { json }) => ops::doctor::run(&config(file, &env), json, out),
        Some(Command::Locks { json }) => ops::locks::run(&config(file, &env), json, out),
        Some(Command::StepDown(named)) => one(named, Deed::StepDown, out),
        Some(Command::Pause { named: Named { name, wait }, everywhere: true }) => {
            ops::everywhere::pause(&config(file, &env), &name, wait.into(), out)
        }
        Some(Command::Pause { named, everywhere: false }) => one(named, Deed::Pause, out),
        Some(Command::Resume { name: Some(name), wait, everywhere: true, .. }) => {
            ops::everywhere::resume(&config(file, &env), &name, wait.into(), out)
        }
        Some(Command::Unlock { name, force }) => ops::unlock::run(&config(file, &env), &name, force, out),
        Some(Command::Resume { name: Some(name), wait, .. }) => one(Named { name, wait }, Deed::Resume, out),
        Some(Command::Resume { name: None, wait, .. }) => ops::steer::resume_all(&socket(), wait.into(), out),
        Some(Command::Restart(named)) => one(named, Deed::Restart, out),
        Some(Command::Drain { here, wait }) => {
            let until = if here { Until::Left } else { Until::Taken };
            ops::steer::drain(&socket(), until, wait.into(), out)
        }
        Some(Command::Reload { dry_run, json }) => ops::reload::run(&socket(), dry_run, json, out),
        Some(Command::Status { name, json, watch, lines }) => {
            ops::status::run(&socket(), &Question { name, json, watch, lines }, view, out)
        }
        Some(Command::Logs { name, follow }) => ops::logs::run(&socket(), &name, follow, out),
        Some(Command::Run { name, wait, ttl, command }) => {
            // A host that only runs commands need not have a file.
            let config = if file == Path::new(CONFIG_DEFAULT) && !file.exists() {
                usable(config::parse(file, "", &env))
            } else {
                config(file, &env)
            };
            let request = Request { name, wait, ttl, command };
            let format = cli.log_format.unwrap_or_else(Format::detect);
            ops::run::run(config, request, cli.log_level.unwrap_or(LevelFilter::WARN), format)
        }
        Some(Command::Completions { shell }) => ops::printed(ops::completions::print(shell, out)),
        Some(Command::Man) => ops::printed(ops::man::print(out)),
        None => {
            daemon::hold_stops();
            let config = config(file, &env);
            let format = cli.log_format.unwrap_or_else(Format::detect);
            let queue = LogQueue::start(format, &config.journal_socket).unwrap_or_else(|error| {
                eprintln!("keeperd: no thread for the log can be started: {error}");
                exit(1);
            });
            log::install(&queue, format, cli.log_level.unwrap_or(LevelFilter::INFO));
            let origin = Origin { path: cli.config, env };
            daemon::run(config, origin, &queue, format)
        }
    });
}

/// The whole configuration, right and readable.
fn config(file: &Path, env: &Env) -> Config {
    usable(config::load(file, env))
}

fn usable(config: Result<Config, ConfigErrors>) -> Config {
    let config = config.unwrap_or_else(|errors| {
        eprintln!("{errors}");
        exit(ops::check::EXIT_CONFIG);
    });
    if config.lock.holds_secrets() {
        // Whoever may not read the files may not read them in memory or in a core dump either.
        let _ = nix::sys::prctl::set_dumpable(false);
    }
    config
}
