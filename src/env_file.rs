//! Files of variables in the syntax of systemd's `EnvironmentFile=`, so that one file serves a unit and a keeper.
//!
//! | written | means |
//! |---|---|
//! | `# …`, `; …` | a comment, if it begins the line; a backslash at its end does not continue it (systemd from 254) |
//! | `NAME=value` | blanks around name and value are dropped, later lines win |
//! | `\` in plain text | the next character as it is; at the end of a line: the line goes on |
//! | `'…'` | everything as it is, over several lines too |
//! | `"…"` | the same, but `\` before `"` `\` `` ` `` `$` is dropped, and at the end of a line it joins the lines |
//! | `"a" 'b'c` | pieces that follow each other are one value; a quote inside plain text is a character like any other |
//!
//! Nothing is expanded. Names are `[A-Za-z_][A-Za-z0-9_]*`; other lines are skipped, as systemd skips them, and told.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

/// Larger than any sensible environment: the kernel refuses one of 6 MiB.
const SIZE_MAX: u64 = 1 << 20;
/// keeperd sets these itself.
const RESERVED: &str = "KEEPERD_";

/// Where variables are read from, each time the child is started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EnvFile {
    pub path: PathBuf,
    /// It need not exist (a `-` before the path, as in a unit).
    pub optional: bool,
}

/// What a file says.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Variables {
    pub values: BTreeMap<String, String>,
    /// Numbers of the lines that are not NAME=value. Not their text, which may be half a secret.
    pub skipped: Vec<usize>,
}

impl std::fmt::Debug for Variables {
    /// The values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Variables")
            .field("names", &self.values.keys())
            .field("skipped", &self.skipped)
            .finish()
    }
}

impl EnvFile {
    /// # Errors
    /// As the system says; `EINVAL` for what is no file (a FIFO would be waited for), `EFBIG` above 1 MiB, `EILSEQ` when it is not
    /// UTF-8 or has a NUL byte. A missing file is one only if it is not optional.
    pub fn read(&self) -> Result<Variables, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let fd = match open(&self.path, flags, Mode::empty()) {
            Err(Errno::ENOENT) if self.optional => return Ok(Variables::default()),
            opened => opened?,
        };
        if SFlag::from_bits_truncate(fstat(&fd)?.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(Errno::EINVAL);
        }
        let mut bytes = Vec::new();
        let read = File::from(fd).take(SIZE_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        if bytes.len() as u64 > SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        match String::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => Ok(parse(&text)),
            Ok(_) | Err(_) => Err(Errno::EILSEQ),
        }
    }
}

fn parse(text: &str) -> Variables {
    let mut reader = Reader { rest: text.chars().peekable(), line: 1 };
    let mut found = Variables::default();
    while let Some(first) = reader.next() {
        match first {
            '#' | ';' => {
                reader.skip_line();
            }
            blank if is_blank(blank) => {}
            first => {
                let line = reader.line;
                let mut name = first.to_string();
                // A line that begins with "=" has a name of that one character: as systemd reads it, and no name either.
                let assigned = reader.name(&mut name);
                let value = if assigned { reader.value() } else { String::new() };
                if assigned && is_name(name.trim_end_matches(is_blank)) {
                    found.values.insert(name.trim_end_matches(is_blank).to_owned(), value);
                } else {
                    found.skipped.push(line);
                }
            }
        }
    }
    found
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

fn is_end(c: char) -> bool {
    matches!(c, '\n' | '\r')
}

fn is_name(name: &str) -> bool {
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    letters
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.starts_with(RESERVED)
        && !name.is_empty()
}

struct Reader<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    fn skip_line(&mut self) {
        while self.next().is_some_and(|c| !is_end(c)) {}
    }

    /// Up to the sign of equality, which is taken; false when the line ends before.
    fn name(&mut self, name: &mut String) -> bool {
        loop {
            match self.next() {
                None => return false,
                Some(c) if is_end(c) => return false,
                Some('=') => return true,
                Some(c) => name.push(c),
            }
        }
    }

    /// Quoted pieces, with blanks between them dropped, and then plain text if there is any.
    fn value(&mut self) -> String {
        let mut value = String::new();
        while let Some(&next) = self.rest.peek() {
            if !matches!(next, '\'' | '"') && !is_blank(next) {
                self.plain(&mut value);
                break;
            }
            self.next();
            match next {
                '\'' => self.single_quoted(&mut value),
                '"' => self.double_quoted(&mut value),
                end if is_end(end) => break,
                _ => {}
            }
        }
        value
    }

    fn plain(&mut self, value: &mut String) {
        let mut kept = value.len(); // everything before is not blank, or was escaped
        while let Some(c) = self.next() {
            match c {
                end if is_end(end) => break,
                '\\' => {
                    value.extend(self.next().filter(|c| !is_end(*c)));
                    kept = value.len();
                }
                c => {
                    value.push(c);
                    kept = if is_blank(c) { kept } else { value.len() };
                }
            }
        }
        value.truncate(kept);
    }

    fn single_quoted(&mut self, value: &mut String) {
        while let Some(c) = self.next().filter(|c| *c != '\'') {
            value.push(c);
        }
    }

    fn double_quoted(&mut self, value: &mut String) {
        while let Some(c) = self.next().filter(|c| *c != '"') {
            if c != '\\' {
                value.push(c);
                continue;
            }
            match self.next() {
                Some(escaped @ ('"' | '\\' | '`' | '$')) => value.push(escaped),
                Some('\n') | None => {}
                Some(other) => value.extend(['\\', other]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<(String, String)> {
        let found = parse(text);
        assert_eq!(found.skipped, Vec::<usize>::new(), "{text:?}");
        found.values.into_iter().collect()
    }

    #[test]
    fn a_value_is_what_systemd_takes_it_for() {
        let table = [
            ("A=b", "b"),
            ("A=", ""),
            (" \tA \t = b c \t\n", "b c"),
            ("A=b\r\n", "b"),
            ("A=1\nA=2\n", "2"),
            ("A=b#c ; d", "b#c ; d"), // a comment only begins a line
            ("A=b=c", "b=c"),
            ("A=b\\\nc", "bc"),
            ("A= d\\\ne  \\\nf  \n", "de  f"),
            ("A=\\\n  b", "  b"),
            ("A=b\\ \n", "b "),
            ("A=b\\", "b"),
            ("A=C:\\\\dir\\n", "C:\\dirn"),
            ("A=\\\"b\\\"", "\"b\""),
            ("A=it's \"b\"", "it's \"b\""), // plain text has begun
            ("A='b  '", "b  "),
            ("A='b\\n \"c\" $D'", "b\\n \"c\" $D"),
            ("A='b\nc'", "b\nc"),
            ("A=\"b  \"  ", "b  "),
            ("A=\"b\nc\"", "b\nc"),
            ("A=\"b\\\nc\"", "bc"),
            (r#"A="\"b\" \\ \` \$C \n \t""#, r#""b" \ ` $C \n \t"#),
            ("A='b' \"c\" 'd'e f ", "bcde f"),
            ("A=\"$B ${C} `d`\"", "$B ${C} `d`"), // nothing is expanded
            ("A=ąęół\\ μ \n", "ąęół μ"),
            ("A='never closed\nB=c", "never closed\nB=c"),
            ("# x \\\nA=b", "b"), // a comment goes on to the end of its own line
            ("\n\n  ; x = y\nA=b\n#", "b"),
        ];
        for (text, value) in table {
            assert_eq!(read(text), [("A".to_owned(), value.to_owned())], "{text:?}");
        }
    }

    #[test]
    fn a_line_that_assigns_nothing_is_skipped_and_its_number_told() {
        let text =
            "A=1\n_b2=1\nexport B=2\n\nC\n4D=5\nKEEPERD_FENCING_TOKEN=9\n=x\nE-F=1\nG='\n\n'\nnot this\nH=1";
        let found = parse(text);
        assert_eq!(found.values.keys().collect::<Vec<_>>(), ["A", "G", "H", "_b2"]);
        assert_eq!(found.skipped, [3, 5, 6, 7, 8, 9, 13]);
    }

    #[test]
    fn what_is_no_text_file_is_refused_and_a_missing_one_only_if_it_must_be_there() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).expect("our own folder");
            EnvFile { path, optional: true }
        };
        assert_eq!(write("good", b"A=b").read().map(|v| v.values.len()), Ok(1));
        assert_eq!(write("nul", b"A=b\0").read(), Err(Errno::EILSEQ));
        assert_eq!(write("latin", b"A=\xe4").read(), Err(Errno::EILSEQ));
        assert_eq!(write("large", &vec![b'\n'; 1 + (1 << 20)]).read(), Err(Errno::EFBIG));
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).expect("our own folder");
        assert_eq!(EnvFile { path: fifo, optional: true }.read(), Err(Errno::EINVAL));
        let missing = |optional| EnvFile { path: folder.path().join("missing"), optional };
        assert_eq!(missing(true).read(), Ok(Variables::default()));
        assert_eq!(missing(false).read(), Err(Errno::ENOENT));
    }

    #[test]
    fn values_are_never_shown() {
        let shown = format!("{:?}", parse("PASSWORD=hunter2\nhunter2"));
        assert!(shown.contains("PASSWORD") && !shown.contains("hunter2"), "{shown}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_read_and_any_value_can_be_written(text in "[A-C=#;'\"\\\\ \n\r\t$x]{0,60}", value in "[^\\x00]{0,40}") {
            let found = parse(&text);
            prop_assert!(found.values.keys().all(|name| is_name(name)));
            prop_assert!(found.skipped.windows(2).all(|w| w[0] <= w[1]));
            let quoted: String = value.chars().flat_map(|c| "\"\\`$".contains(c).then_some('\\').into_iter().chain([c])).collect();
            prop_assert_eq!(read(&format!("A=\"{quoted}\"")), [("A".to_owned(), value)]);
        }
    }
}
