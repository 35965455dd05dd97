//! One line of a child, and how it looks as text, for the journal's reader on stderr, and as JSON.

use crate::core::lease::FencingToken;
use crate::core::time::WallTime;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a line costs in memory besides its bytes: an endless row of empty lines must be bounded, too.
const OVERHEAD: usize = 128;
/// `info` of syslog(3), for lines that do not say.
const INFO: u8 = 6;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }

    /// Between the keeper's name and the line.
    pub fn mark(self) -> char {
        match self {
            Stream::Stdout => '|',
            Stream::Stderr => '!',
        }
    }
}

/// A line as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    pub at: WallTime,
    pub token: FencingToken,
    pub stream: Stream,
    /// Any bytes, without the line's end.
    pub bytes: Box<[u8]>,
    /// It was longer than the limit: the rest is the next line of this stream.
    pub continues: bool,
}

impl Line {
    /// Bytes of memory it stands for, in every bound on lines.
    pub fn weight(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }

    /// Priority and rest: lines may begin with `<N>`, as under systemd (sd-daemon(3)).
    pub fn priority(&self) -> (u8, &[u8]) {
        match &*self.bytes {
            [b'<', digit @ b'0'..=b'7', b'>', rest @ ..] => (digit - b'0', rest),
            all => (INFO, all),
        }
    }

    fn text(&self) -> String {
        self.marked(escaped(&self.bytes))
    }

    fn marked(&self, mut text: String) -> String {
        if self.continues {
            text.push_str(" [line continues]");
        }
        text
    }
}

/// Formats a line of `keeper` for the daemon's own log.
pub type Render = fn(keeper: &str, line: &Line) -> Vec<u8>;

/// `keeper | line`, as a terminal shows it.
pub fn render_text(keeper: &str, line: &Line) -> Vec<u8> {
    let (time, mark, text) = (timestamp(line.at), line.stream.mark(), line.text());
    format!("{time}  INFO {keeper} {mark} {text}\n").into_bytes()
}

/// The same with a priority, and without a time, which the journal adds.
pub fn render_journald(keeper: &str, line: &Line) -> Vec<u8> {
    let (priority, rest) = line.priority();
    let (mark, text) = (line.stream.mark(), line.marked(escaped(rest)));
    format!("<{priority}>{keeper} {mark} {text}\n").into_bytes()
}

/// One JSON object a line.
pub fn render_json(keeper: &str, line: &Line) -> Vec<u8> {
    let message = line.marked(String::from_utf8_lossy(&line.bytes).into_owned());
    let object = serde_json::json!({
        "timestamp": timestamp(line.at), "level": "INFO", "keeper": keeper, "stream": line.stream.name(),
        "token": line.token.0, "message": message,
    });
    format!("{object}\n").into_bytes()
}

/// RFC 3339, UTC, in microseconds.
pub fn timestamp(at: WallTime) -> String {
    let at: SystemTime = UNIX_EPOCH + Duration::from_micros(at.as_micros());
    humantime::format_rfc3339_micros(at).to_string()
}

/// Text that a terminal cannot take for a command: what is not UTF-8, and every control character but the tab, in hexadecimal.
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if !character.is_control() || character == '\t' {
                text.push(character);
            } else if character.is_ascii() {
                push_hex(&mut text, character as u8);
            } else {
                text.extend(character.escape_unicode());
            }
        }
        chunk.invalid().iter().for_each(|byte| push_hex(&mut text, *byte));
    }
    text
}

fn push_hex(text: &mut String, byte: u8) {
    // Writing to a String cannot fail.
    let _ = write!(text, "\\x{byte:02x}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bytes: &[u8]) -> Line {
        let (at, token) = (WallTime::from_micros(1_000_000), FencingToken(7));
        Line { at, token, stream: Stream::Stderr, bytes: bytes.into(), continues: false }
    }

    #[test]
    fn what_is_no_text_is_shown_in_hexadecimal() {
        assert_eq!(escaped(b"a\xff\xfe\tb\x1b[31m\r\0"), "a\\xff\\xfe\tb\\x1b[31m\\x0d\\x00");
        assert_eq!(escaped("\u{9b}31m größer".as_bytes()), "\\u{9b}31m größer");
    }

    #[test]
    fn a_priority_is_taken_off_the_line_only_where_it_has_its_own_place() {
        let said = line(b"<3>disk on fire");
        assert_eq!(said.priority(), (3, &b"disk on fire"[..]));
        assert_eq!(render_journald("k", &said), b"<3>k ! disk on fire\n");
        assert_eq!(render_text("k", &said), b"1970-01-01T00:00:01.000000Z  INFO k ! <3>disk on fire\n");
        for plain in [&b"<8>x"[..], b"<>x", b"<33>x", b"x<3>", b"<3"] {
            assert_eq!(line(plain).priority(), (6, plain));
        }
    }

    #[test]
    fn a_piece_of_a_long_line_says_so_in_every_form() {
        let piece = Line { continues: true, ..line(b"x") };
        for render in [render_text, render_journald, render_json] {
            let text = String::from_utf8(render("k", &piece)).expect("text");
            assert!(text.contains("x [line continues]"), "{text}");
        }
    }
}
