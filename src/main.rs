//! keeperd: the command line and the daemon.

use keeperd::cli::{Cli, Command, Named};
use keeperd::config::{self, Env};
use keeperd::observe::log::{self, Format, LogQueue};
use keeperd::ops::status::Question;
use keeperd::ops::steer::Deed;
use keeperd::{daemon, guard, lock, ops};
use std::io;
use std::process::exit;

fn main() {
    // A guard or a releaser is this binary again; it must not come near threads, arguments or logging.
    guard::main_if_guard(lock::redis::releaser_main);
    let cli = Cli::from_arguments().unwrap_or_else(|code| exit(code));
    let env = Env::from_process();
    if let Some(Command::Check) = cli.command {
        exit(ops::check::run(&cli.config, &env, &mut io::stdout(), &mut io::stderr()));
    }
    let config = config::load(&cli.config, &env).unwrap_or_else(|errors| {
        eprintln!("{errors}");
        exit(ops::check::EXIT_CONFIG);
    });
    let socket = &config.control.socket;
    let out = &mut io::stdout();
    match cli.command {
        Some(Command::Doctor { json }) => exit(ops::doctor::run(&config, json, out)),
        Some(Command::Locks { json }) => exit(ops::locks::run(&config, json, out)),
        Some(Command::StepDown(Named { name, wait })) => {
            exit(ops::steer::one(socket, &name, Deed::StepDown, wait.into(), out));
        }
        Some(Command::Pause(Named { name, wait })) => {
            exit(ops::steer::one(socket, &name, Deed::Pause, wait.into(), out));
        }
        Some(Command::Resume { name: Some(name), wait, .. }) => {
            exit(ops::steer::one(socket, &name, Deed::Resume, wait.into(), out));
        }
        Some(Command::Resume { name: None, wait, .. }) => {
            exit(ops::steer::resume_all(socket, wait.into(), out))
        }
        Some(Command::Restart(Named { name, wait })) => {
            exit(ops::steer::one(socket, &name, Deed::Restart, wait.into(), out));
        }
        Some(Command::Drain(wait)) => exit(ops::steer::drain(socket, wait.into(), out)),
        Some(Command::Status { name, json, lines }) => {
            let question = Question { name, json, lines };
            exit(ops::status::run(socket, &question, out));
        }
        Some(Command::Logs { name, follow }) => {
            exit(ops::logs::run(socket, &name, follow, out));
        }
        Some(Command::Check) | None => {}
    }
    let format = cli.log_format.unwrap_or_else(Format::detect);
    let queue = LogQueue::start().unwrap_or_else(|error| {
        eprintln!("keeperd: no thread for the log can be started: {error}");
        exit(1);
    });
    log::install(&queue, format, cli.log_level);
    exit(daemon::run(config, &queue, format));
}
