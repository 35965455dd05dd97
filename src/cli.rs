//! The command line (DESIGN.md 2.1): usage errors end with 64, configuration errors with 78.

use crate::observe::log::Format;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use tracing::level_filters::LevelFilter;

/// Exit code of a usage error, for every command.
pub const EXIT_USAGE: i32 = 64;

/// Leader-elected process supervisor: each keeper runs on exactly one host, or on none.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Without a command it runs the daemon.\n\nExample: keeperd --config keepers.toml"
)]
pub struct Cli {
    /// Configuration file.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "KEEPERD_CONFIG",
        default_value = "/etc/keeperd/keepers.toml"
    )]
    pub config: PathBuf,

    /// text, json or journald [default: journald when stderr is the journal, else text]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<Format>,

    /// error, warn, info, debug or off
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info")]
    pub log_level: LevelFilter,

    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Parse and validate the configuration, and print each keeper's time line.
    #[command(after_help = "Example: keeperd check --config keepers.toml")]
    Check,
    /// Show this daemon's keepers and nodes.
    #[command(after_help = "Example: keeperd status --json | jq '.keepers[] | select(.role == \"leader\")'")]
    Status {
        /// Only this keeper.
        name: Option<String>,
        /// The status document, as the control socket gives it.
        #[arg(long)]
        json: bool,
        /// The last lines it wrote on this host, too.
        #[arg(long, requires = "name")]
        lines: bool,
    },
    /// Show what a keeper wrote lately on this host.
    #[command(after_help = "Example: keeperd logs pricing-oracle-keeper -f")]
    Logs {
        /// The keeper.
        name: String,
        /// Go on with every new line, until keeperd ends.
        #[arg(short, long)]
        follow: bool,
    },
}

impl Cli {
    /// Parses the arguments; prints help, version or the mistake, and gives the exit code instead.
    ///
    /// # Errors
    /// The exit code of a process that has nothing more to do.
    pub fn from_arguments() -> Result<Cli, i32> {
        Cli::try_parse().map_err(|error| {
            // Nowhere to complain when the terminal is gone.
            let _ = error.print();
            if error.use_stderr() { EXIT_USAGE } else { 0 }
        })
    }
}
