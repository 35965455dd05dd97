//! keeperd: the command line and the daemon.

use keeperd::cli::{Cli, Command};
use keeperd::config::{self, Env};
use keeperd::observe::log::{self, Format, LogQueue};
use keeperd::ops::status::Question;
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
    match cli.command {
        Some(Command::Status { name, json, lines }) => {
            let question = Question { name, json, lines };
            exit(ops::status::run(&config.control.socket, &question, &mut io::stdout()));
        }
        Some(Command::Logs { name, follow }) => {
            exit(ops::logs::run(&config.control.socket, &name, follow, &mut io::stdout()));
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
