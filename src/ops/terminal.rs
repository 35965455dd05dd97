//! Where people look: a terminal with its size and colours, or a pipe that takes every line as it is.

use crate::config::Env;
use anstyle::AnsiColor;
use std::io::{self, IsTerminal, Write};

/// What standard output is like.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// In columns; `None`: it is no terminal.
    pub width: Option<usize>,
    /// In lines; `None`: it is no terminal.
    pub height: Option<usize>,
    pub colour: bool,
}

impl View {
    pub fn of_stdout(env: &Env) -> View {
        let stdout = io::stdout();
        if !stdout.is_terminal() {
            return View { width: None, height: None, colour: false };
        }
        let size = terminal_size::terminal_size_of(stdout);
        let (width, height) = size.map_or((80, 24), |(width, height)| (width.0, height.0));
        let unwanted = env.get("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colour = !unwanted && env.get("TERM") != Some("dumb");
        View { width: Some(width.into()), height: Some(height.into()), colour }
    }

    pub fn painted(self, text: &str, colour: Option<AnsiColor>) -> String {
        match colour.filter(|_| self.colour) {
            Some(colour) => {
                let style = colour.on_default();
                format!("{style}{text}{style:#}")
            }
            None => text.to_owned(),
        }
    }
}

/// Breaks a text at spaces; `indents` stand before the first and the other lines. A word longer than a line stays whole, for it is a
/// path to copy.
///
/// # Errors
/// When it cannot be written.
pub fn paragraph(out: &mut dyn Write, text: &str, indents: [&str; 2], width: usize) -> io::Result<()> {
    let [first, other] = indents;
    write!(out, "{first}")?;
    let (mut column, mut begun) = (first.chars().count(), false);
    for word in text.split(' ') {
        let length = word.chars().count();
        if begun && column + 1 + length > width {
            write!(out, "\n{other}")?;
            column = other.chars().count();
        } else if begun {
            write!(out, " ")?;
            column += 1;
        }
        write!(out, "{word}")?;
        column += length;
        begun = true;
    }
    writeln!(out)
}

/// Pictures that replace each other on a terminal, and follow each other in a pipe.
#[derive(Debug)]
pub struct Screen {
    height: Option<usize>,
    /// In a pipe.
    between: &'static str,
    begun: bool,
}

impl Screen {
    pub fn new(height: Option<usize>, between: &'static str) -> Screen {
        Screen { height, between, begun: false }
    }

    pub fn is_terminal(&self) -> bool {
        self.height.is_some()
    }

    /// Shows one picture. What does not fit a terminal is counted.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn show(&mut self, picture: &str, out: &mut dyn Write) -> io::Result<()> {
        let begun = std::mem::replace(&mut self.begun, true);
        let Some(height) = self.height else {
            write!(out, "{}{picture}", if begun { self.between } else { "" })?;
            return out.flush();
        };
        let lines: Vec<&str> = picture.lines().collect();
        // The cursor needs a line, and so does the rest.
        let fits = if lines.len() < height { lines.len() } else { height.saturating_sub(2) };
        // Cursor home, and no line that flows into the next; the first time nothing else is on the screen.
        let mut frame = format!("{}\x1b[H\x1b[?7l", if begun { "" } else { "\x1b[2J" });
        for line in &lines[..fits] {
            frame += &format!("{line}\x1b[K\r\n");
        }
        if fits < lines.len() {
            frame += &format!("… and {} more lines\x1b[K\r\n", lines.len() - fits);
        }
        frame += "\x1b[J\x1b[?7h";
        out.write_all(frame.as_bytes())?;
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_larger_than_the_terminal_does_not_scroll_it() {
        let mut screen = Screen::new(Some(5), "");
        let mut show = |picture| {
            let mut out = Vec::new();
            screen.show(picture, &mut out).expect("a vector takes all");
            String::from_utf8(out).expect("text")
        };
        let first = show("1\n2\n3\n4\n");
        assert_eq!(first, "\x1b[2J\x1b[H\x1b[?7l1\x1b[K\r\n2\x1b[K\r\n3\x1b[K\r\n4\x1b[K\r\n\x1b[J\x1b[?7h");
        let second = show("1\n2\n3\n4\n5\n");
        let ends = "\x1b[?7l1\x1b[K\r\n2\x1b[K\r\n3\x1b[K\r\n… and 2 more lines\x1b[K\r\n\x1b[J\x1b[?7h";
        assert_eq!(second, format!("\x1b[H{ends}"));
    }
}
