//! `keeperd man`: the manual page (section 1), made of the same description of the command line as the help.

use crate::cli::Cli;
use clap::{Arg, Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use std::io::{self, Write};

/// What the page says beside the commands: a heading, a paragraph, and terms with what they mean.
struct Section {
    title: &'static str,
    text: &'static str,
    terms: &'static [(&'static str, &'static str)],
}

const SECTIONS: &[Section] = &[
    Section {
        title: "EXIT STATUS",
        text: "Of the daemon: 0 after a clean stop, 1 after a failure. Of the other commands, unless theirs say more:",
        terms: &[
            ("0", "Done."),
            ("1", "Refused, or not done within --timeout. The reason is on standard error."),
            ("3", "No daemon answers on the control socket."),
            ("4", "This host has no keeper of that name."),
            ("64", "A mistake in the command line."),
            ("78", "A mistake in the configuration, each with its file, line and column."),
            ("2", "doctor: no quorum of nodes can be used."),
            ("69", "run: no quorum of nodes, so nothing was started."),
            ("75", "run: another has the lock, or it is paused everywhere; nothing was started."),
            ("76", "run: the lock was lost, or paused everywhere, and the command ended for it."),
            (
                "126, 127",
                "run: the command cannot be executed, or is not there. Else its own code, or 128 + its signal.",
            ),
        ],
    },
    Section {
        title: "SIGNALS",
        text: "",
        terms: &[
            (
                "SIGTERM, SIGINT, SIGURG",
                "The daemon hands over every keeper and ends. A second one kills their processes at once. systemd sends SIGURG, to keepers, too, which ignore it.",
            ),
            ("SIGHUP", "The configuration is read again."),
        ],
    },
    Section {
        title: "ENVIRONMENT",
        text: "Variables that stand in for keys of the configuration win over [lock] in the file.",
        terms: &[
            ("KEEPERD_CONFIG", "The configuration file, unless --config names one."),
            ("REDIS_NODES", "Addresses of the Redis nodes, separated by commas."),
            ("REDIS_LOCK_TTL_MS", "The lease in ms of keepers that have no ttl of their own."),
            ("REDIS_RETRY_COUNT, REDIS_RETRY_DELAY_MS", "As retry_count and retry_delay, in ms."),
            ("NO_COLOR", "Not empty: no colours, not even on a terminal."),
            (
                "RUNTIME_DIRECTORY, XDG_RUNTIME_DIR",
                "Where the control socket is, unless the configuration says.",
            ),
            (
                "STATE_DIRECTORY, XDG_STATE_HOME",
                "Where the lock files of engine \"local\" are, unless it says.",
            ),
        ],
    },
    Section {
        title: "FILES",
        text: "",
        terms: &[
            ("/etc/keeperd/keepers.toml", "The configuration."),
            (
                "/run/keeperd/keeperd.sock",
                "The control socket of the service. Its user and group may give commands.",
            ),
            ("/var/lib/keeperd", "Lock files of engine \"local\"."),
        ],
    },
    Section {
        title: "EXAMPLES",
        text: "",
        terms: &[
            ("keeperd status oracle", "Who holds it, since when, and why it moved last."),
            ("keeperd step-down oracle", "Give it to another host."),
            ("keeperd pause oracle", "Stop it here, for a deploy; keeperd resume oracle ends that."),
            (
                "keeperd drain && apt upgrade && keeperd resume --all",
                "Free this host of everything for a while.",
            ),
            ("keeperd logs oracle -f", "What it writes here."),
        ],
    },
    Section { title: "SEE ALSO", text: "systemctl(1), journalctl(1), redis-server(1)", terms: &[] },
];

/// Prints the page.
///
/// # Errors
/// When it cannot be written.
pub fn print(out: &mut dyn Write) -> io::Result<()> {
    let mut command = Cli::command();
    command.build();
    let man = Man::new(command.clone()).manual("keeperd");
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    let mut page = Roff::new();
    page.control("SH", ["COMMANDS"]);
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        describe(&mut page, sub);
    }
    for section in SECTIONS {
        page.control("SH", [section.title]);
        paragraphs(&mut page, section.text);
        for (term, meaning) in section.terms {
            page.control("TP", []);
            page.text([bold(*term)]);
            page.text([roman(*meaning)]);
        }
    }
    page.to_writer(out)
}

fn describe(page: &mut Roff, command: &Command) {
    let usage = command.clone().render_usage().to_string();
    page.control("SS", [usage.trim_start_matches("Usage: ")]);
    let about = command.get_long_about().or_else(|| command.get_about());
    paragraphs(page, &about.map(ToString::to_string).unwrap_or_default());
    let aliases: Vec<_> = command.get_visible_aliases().collect();
    if !aliases.is_empty() {
        page.text([roman(format!("Also called {}.", aliases.join(", ")))]);
    }
    for arg in command.get_arguments().filter(|arg| !arg.is_global_set() && arg.get_id() != "help") {
        page.control("TP", []);
        let value = arg.get_value_names().filter(|_| takes_values(arg)).map(|names| names.join(" "));
        let option = match (arg.get_short(), arg.get_long()) {
            (_, None) => None,
            (None, Some(long)) => Some(format!("--{long} ")),
            (Some(short), Some(long)) => Some(format!("-{short}, --{long} ")),
        };
        page.text(option.map(bold).into_iter().chain(value.map(italic)).collect::<Vec<_>>());
        page.text([roman(arg.get_help().map(ToString::to_string).unwrap_or_default())]);
    }
    if let Some(more) = command.get_after_help() {
        page.control("PP", []);
        for line in more.to_string().lines() {
            page.text([roman(line.trim_start())]);
            page.control("br", []);
        }
    }
}

fn paragraphs(page: &mut Roff, text: &str) {
    for line in text.lines() {
        if line.is_empty() {
            page.control("PP", []);
        } else {
            page.text([roman(line)]);
        }
    }
}

fn takes_values(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|count| count.takes_values())
}
