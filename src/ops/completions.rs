//! `keeperd completions`: for the shell to complete commands and options.

use crate::cli::Cli;
use clap::CommandFactory;
use clap_complete::Shell;
use std::io::{self, Write};

/// Prints the shell's completion script.
///
/// # Errors
/// When it cannot be written.
pub fn print(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    // It panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "keeperd", &mut script);
    out.write_all(&script)
}
