//! The command line (DESIGN.md 2.1): usage errors end with 64, configuration errors with 78.

use crate::observe::log::Format;
use crate::ops::steer::Manner;
use clap::error::ErrorKind;
use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use tracing::level_filters::LevelFilter;

/// The configuration of the service.
pub const CONFIG_DEFAULT: &str = "/etc/keeperd/keepers.toml";

/// Exit code of a usage error, for every command.
pub const EXIT_USAGE: i32 = 64;

/// Leader-elected process supervisor: each keeper runs on exactly one host, or on none.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Without a command it runs the daemon.\n\nExamples:\n  keeperd --config keepers.toml     run it\n  keeperd status oracle             who has it, why it moved last, how it ended before\n  keeperd locks                     who has what, on all hosts\n  keeperd step-down oracle          move it to another host\n  keeperd pause oracle              stop it on this host, until: keeperd resume oracle\n  keeperd pause oracle --everywhere for a deploy: on all hosts\n  keeperd logs oracle -f            what it writes here"
)]
pub struct Cli {
    /// Configuration file.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "KEEPERD_CONFIG",
        default_value = CONFIG_DEFAULT
    )]
    pub config: PathBuf,

    /// Control socket of the daemon to talk to [default: as the configuration says, else the usual places].
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// text, json or journald [default: journald when stderr is the journal, else text]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<Format>,

    /// error, warn, info, debug or off [default: info; of `run`: warn]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<LevelFilter>,

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
        /// Again every second, until it is interrupted; in a pipe one picture after the other.
        #[arg(long)]
        watch: bool,
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
    /// Ask every Redis node whether it is fit, and say what to do about what is wrong.
    ///
    /// Exit code 0: healthy. 1: something to do, and a quorum. 2: no quorum.
    #[command(after_help = "Example: keeperd doctor")]
    Doctor {
        #[arg(long)]
        json: bool,
    },
    /// Show every lock, over all nodes: who holds it, with how many votes, for how long, and what is odd about it.
    #[command(
        after_help = "Example: keeperd locks\n\nOf another library's lock (redlock) the holder is not known, only its value."
    )]
    Locks {
        #[arg(long)]
        json: bool,
    },
    /// Hand a keeper over to another host.
    ///
    /// This host stays out until another has it or 10 s have passed. Returns when the child is dead and the lock released, and says
    /// who has it then.
    #[command(after_help = "Example: keeperd step-down pricing-oracle-keeper")]
    StepDown(Named),
    /// Stop a keeper here, and let another host take it, until it is resumed or keeperd restarted.
    #[command(
        visible_alias = "stop",
        after_help = "Examples: keeperd pause pricing-oracle-keeper\n          keeperd pause pricing-oracle-keeper --everywhere && ./deploy"
    )]
    Pause {
        #[command(flatten)]
        named: Named,
        /// On no host, until `resume --everywhere`: the Redis nodes know, whichever daemons run and restart.
        #[arg(long)]
        everywhere: bool,
    },
    /// End a pause: this host stands for the keeper again.
    #[command(
        visible_alias = "start",
        after_help = "Examples: keeperd resume pricing-oracle-keeper\n          keeperd resume --all     after keeperd drain\n          keeperd resume pricing-oracle-keeper --everywhere",
        group = ArgGroup::new("which").args(["name", "all"]).required(true)
    )]
    Resume {
        /// The keeper.
        name: Option<String>,
        /// Every keeper of this host: the end of a drain.
        #[arg(long)]
        all: bool,
        /// End its pause on all hosts.
        #[arg(long, conflicts_with = "all")]
        everywhere: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Free a lock that nobody looks after: one that never expires, or whose holder is gone.
    ///
    /// Watches it for half its lease, and refuses if somebody extends it. Forced, it takes the lock from who has it, who stops what he runs,
    /// and waits until nobody can believe that he still has it: never does a second copy start beside the first.
    #[command(after_help = "Example: keeperd unlock pricing-oracle-keeper")]
    Unlock {
        /// The keeper, or the name of the lock.
        name: String,
        /// Also from a holder that is alive.
        #[arg(long)]
        force: bool,
    },
    /// Start a keeper's child anew, without giving its lock away.
    #[command(after_help = "Example: keeperd restart pricing-oracle-keeper")]
    Restart(Named),
    /// Hand over every keeper of this host, and stand for none, until keeperd resume --all or a restart of keeperd.
    ///
    /// Returns when all children are dead and all locks released, and says who has them then.
    #[command(after_help = "Example: keeperd drain && apt upgrade && keeperd resume --all")]
    Drain {
        /// Do not wait to see who has them then.
        #[arg(long)]
        here: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Run one command while holding one lock, here and now: no daemon and no keeper is needed.
    #[command(
        after_help = "Example: REDIS_NODES=redis1,redis2,redis3 keeperd run nightly-report --wait 10m -- ./report.sh\n\n\
        Ends with the command's own exit code (128+n for a signal), 75 when another holds the lock, 69 without a quorum of nodes, 76 \
        when the lock was lost and the command ended for it, 126 or 127 when it cannot be executed or found."
    )]
    Run {
        /// The lock; where a keeper has this name, its lock and ttl.
        name: String,
        /// How long to wait for the lock, as in 30s or 10m [default: not at all]
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        wait: Option<Duration>,
        /// Length of the lease, as in 30s [default: as configured]
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        ttl: Option<Duration>,
        /// The command and its arguments; no shell.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Print the script that lets a shell complete commands and options.
    #[command(after_help = "Example: keeperd completions bash > /etc/bash_completion.d/keeperd")]
    Completions { shell: Shell },
    /// Print the manual page.
    #[command(after_help = "Example: keeperd man > /usr/local/share/man/man1/keeperd.1")]
    Man,
    /// Read the configuration again, and put in force what differs.
    ///
    /// Keepers that the file has unchanged run on. One that is removed or changed is handed over as in a drain; one that is changed
    /// is stood for anew. A file with mistakes changes nothing (exit 78).
    #[command(after_help = "Example: keeperd reload --dry-run && keeperd reload")]
    Reload {
        /// Only say what would change.
        #[arg(long)]
        dry_run: bool,
        /// The difference as the control socket gives it.
        #[arg(long)]
        json: bool,
    },
}

/// A command to one keeper.
#[derive(Debug, Args)]
pub struct Named {
    /// The keeper.
    pub name: String,
    #[command(flatten)]
    pub wait: Wait,
}

/// How long a command waits until it is done, and how it tells.
#[derive(Debug, Args)]
pub struct Wait {
    /// Give up waiting after this long, with exit code 1; what was asked goes on.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// The keepers afterwards, as `status --json` shows them.
    #[arg(long)]
    pub json: bool,
}

impl From<Wait> for Manner {
    fn from(Wait { timeout, json }: Wait) -> Manner {
        Manner { timeout, json }
    }
}

impl Cli {
    /// Parses the arguments; prints help, version or the mistake, and gives the exit code instead.
    ///
    /// # Errors
    /// The exit code of a process that has nothing more to do.
    pub fn from_arguments() -> Result<Cli, i32> {
        Cli::try_parse().and_then(Cli::checked).map_err(|error| {
            // Nowhere to complain when the terminal is gone.
            let _ = error.print();
            if error.use_stderr() { EXIT_USAGE } else { 0 }
        })
    }

    fn checked(self) -> Result<Cli, clap::Error> {
        if self.command.is_none() && self.socket.is_some() {
            let why = "--socket is for commands to a running daemon; a daemon's own is [control] socket in the configuration";
            return Err(Cli::command().error(ErrorKind::ArgumentConflict, why));
        }
        Ok(self)
    }
}
