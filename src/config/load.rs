//! Files to text to the configuration as written: reading, including, and TOML's own errors.

use super::decode::{Field, Located};
use super::report::{Place, Report, Source};
use super::schema::{self, RawConfig, RawKeeper};
use super::{Config, ConfigErrors, Env, KEEPERS_MAX, secrets, validate};
use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toml::de::DeTable;

/// Far above 5,000 keepers; a device or a log file named by mistake ends here.
const FILE_MAX: u64 = 16 << 20;

/// Reads `path` and what it includes.
///
/// # Errors
/// Every mistake in the files and in the variables that stand in for keys, in reading order.
pub fn load(path: &Path, env: &Env) -> Result<Config, ConfigErrors> {
    match read(path) {
        Ok(text) => build(&Source::new(path, text, 0), path, env),
        Err(unreadable) => {
            let source = Source::new(path, unreadable.good, 0);
            let mut report = Report::default();
            report.error(&source.place(source.text().len()), unreadable.why);
            Err(report.into_errors())
        }
    }
}

/// As [`load`], from a text that stands for the file `path`.
///
/// # Errors
/// As [`load`].
pub fn parse(path: &Path, text: &str, env: &Env) -> Result<Config, ConfigErrors> {
    build(&Source::new(path, text.to_owned(), 0), path, env)
}

/// The control socket that the file names, whatever else is wrong in it.
///
/// # Errors
/// Why the file cannot be read.
pub fn socket_named_in(path: &Path) -> Result<Option<PathBuf>, String> {
    let text = read(path).map_err(|unreadable| unreadable.why)?;
    let source = Source::new(path, text, 0);
    let (root, _) = DeTable::parse_recoverable(source.text());
    let raw = schema::decode_main(root.get_ref(), &source, &mut Report::default());
    Ok(raw.socket.value())
}

fn build(source: &Arc<Source>, path: &Path, env: &Env) -> Result<Config, ConfigErrors> {
    let mut report = Report::default();
    let main = tree(source, &mut report).map(|root| schema::decode_main(&root, source, &mut report));
    let mut whole = main.is_some();
    let mut raw = main.unwrap_or_default();
    whole &= include(&mut raw, path, source, &mut report);
    if !whole {
        // What is missing may stand in the text that could not be read: complaints about it would mislead.
        return Err(report.into_errors());
    }
    warn_if_secret_is_readable(path, &raw, &mut report);
    let config = validate::validate(raw, env, source, &mut report);
    let warnings = report.into_warnings()?;
    Ok(Config { warnings, ..config })
}

/// The tree of a text, or `None` with every syntax error reported.
fn tree<'a>(source: &'a Arc<Source>, report: &mut Report) -> Option<DeTable<'a>> {
    let (root, errors) = DeTable::parse_recoverable(source.text());
    for error in &errors {
        let offset = error.span().map_or(0, |span| span.start);
        report.error(&source.place(offset), format!("not TOML: {}", error.message().replace('\n', " ")));
    }
    errors.is_empty().then(|| root.into_inner())
}

/// Appends the keepers of every included file; whether all of them could be read.
fn include(raw: &mut RawConfig, main: &Path, source: &Arc<Source>, report: &mut Report) -> bool {
    let mut whole = true;
    let mut seen = BTreeSet::from([absolute(main)]);
    for pattern in std::mem::take(&mut raw.include) {
        let Some(files) = matching(source.base(), &pattern, report) else {
            whole = false;
            continue;
        };
        for file in files {
            if !seen.insert(file.clone()) {
                continue;
            }
            match included(&file, seen.len(), &pattern.place, report) {
                Some(keepers) => raw.keepers.extend(keepers),
                None => whole = false,
            }
            if raw.keepers.len() > KEEPERS_MAX {
                let why = format!("more than {KEEPERS_MAX} keepers; split them between hosts");
                report.error(&pattern.place, why);
                return false;
            }
        }
    }
    whole
}

fn included(file: &Path, order: usize, place: &Place, report: &mut Report) -> Option<Vec<RawKeeper>> {
    let text = match read(file) {
        Ok(text) => text,
        Err(unreadable) if unreadable.good.is_empty() => {
            report.error(place, format!("{}: {}", file.display(), unreadable.why));
            return None;
        }
        Err(unreadable) => {
            let source = Source::new(file, unreadable.good, order);
            report.error(&source.place(source.text().len()), unreadable.why);
            return None;
        }
    };
    let source = Source::new(file, text, order);
    let root = tree(&source, report)?;
    Some(schema::decode_included(&root, &source, report))
}

struct Unreadable {
    /// What stands before the first byte that is no text.
    good: String,
    why: String,
}

fn read(path: &Path) -> Result<String, Unreadable> {
    let refuse = |why: String| Unreadable { good: String::new(), why };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| refuse(format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(refuse(format!("is larger than {} MiB, so hardly a configuration", FILE_MAX >> 20)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good =
            String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
        Unreadable { good, why: "is not UTF-8 from here on".to_owned() }
    })
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The files of one entry of `include`, sorted; `None` when that has been reported as an error.
fn matching(base: &Path, pattern: &Located<String>, report: &mut Report) -> Option<Vec<PathBuf>> {
    let path = base.join(&pattern.value);
    let (directory, last) = match (path.parent(), path.file_name().and_then(|name| name.to_str())) {
        (Some(directory), Some(last)) => (directory, last),
        (_, _) => {
            report.error(&pattern.place, "include must name files, as in \"keepers.d/*.toml\"");
            return None;
        }
    };
    let above = Path::new(&pattern.value).parent().unwrap_or(Path::new(""));
    if is_pattern(&above.to_string_lossy()) {
        report.error(&pattern.place, "include can have * and ? in its last part only");
        return None;
    }
    if !is_pattern(last) {
        return Some(vec![path]);
    }
    match listed(directory, last) {
        Ok(files) => {
            if files.is_empty() {
                report.warn_at(&pattern.place, format!("include \"{}\" matches no file", pattern.value));
            }
            Some(files)
        }
        Err(error) => {
            report.error(&pattern.place, format!("{} cannot be read: {error}", directory.display()));
            None
        }
    }
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// A directory that does not exist has no files; names with a leading dot are hidden, as in a shell.
fn listed(directory: &Path, pattern: &str) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let bytes = name.as_bytes();
        if bytes.starts_with(b".") == pattern.starts_with('.') && glob(pattern.as_bytes(), bytes) {
            files.push(directory.join(name));
        }
    }
    files.sort();
    Ok(files)
}

/// `*` is any run of bytes, `?` one byte. Linear in practice: on a mismatch only the last `*` grows.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            Some(_) | None => {
                let Some((star_p, star_n)) = star else { return false };
                star = Some((star_p, star_n + 1));
                p = star_p + 1;
                n = star_n + 1;
            }
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

fn warn_if_secret_is_readable(path: &Path, raw: &RawConfig, report: &mut Report) {
    let Field::Given(nodes) = &raw.lock.nodes else { return };
    if !nodes.value.addresses.iter().any(|address| address.value.has_password()) {
        return;
    }
    secrets::warn_if_readable(path, "a password", report);
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn a_star_is_any_run_and_a_question_mark_one_byte() {
        for (pattern, name, fits) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.toml.bak", false),
            ("a?c*e", "abcde", true),
            ("a?c*e", "ace", false),
            ("*a*b", "aab", true),
            ("*a*b", "aba", false),
            ("", "", true),
            ("?", "", false),
            ("**", "x", true),
        ] {
            assert_eq!(glob(pattern.as_bytes(), name.as_bytes()), fits, "{pattern} {name}");
        }
    }
}
