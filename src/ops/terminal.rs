//! What people look at: a terminal with its width and colours, or a pipe that takes every line as it is.

use std::io::{self, IsTerminal};

/// Columns of the terminal that standard output is; `None`: it is none.
pub fn width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    terminal_size::terminal_size_of(stdout).map(|(width, _)| usize::from(width.0))
}
