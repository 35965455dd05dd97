//! The spanned TOML tree to typed values. Every mistake is reported at its place and decoding goes on.

use super::report::{Place, Report, Source};
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longer than any sensible setting; keeps sums of durations from overflowing.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Located<T> {
    pub value: T,
    pub place: Place,
}

impl<T> Located<T> {
    /// "line 7", as a reader of this value would look for it.
    pub fn place_of(&self, other: &Place) -> String {
        other.seen_from(&self.place)
    }
}

/// One key of a table. `Bad` has been reported: whoever depends on it must stay silent instead of complaining about a default.
#[derive(Clone, Debug, Default)]
pub enum Field<T> {
    #[default]
    Absent,
    Bad,
    Given(Located<T>),
}

impl<T> Field<T> {
    /// The next in precedence, unless this one is written.
    pub fn or(self, next: Field<T>) -> Field<T> {
        match self {
            Field::Absent => next,
            Field::Bad | Field::Given(_) => self,
        }
    }

    pub fn given(self) -> Option<Located<T>> {
        match self {
            Field::Absent | Field::Bad => None,
            Field::Given(located) => Some(located),
        }
    }

    pub fn value(self) -> Option<T> {
        self.given().map(|located| located.value)
    }

    pub fn given_value(&self) -> Option<&T> {
        match self {
            Field::Absent | Field::Bad => None,
            Field::Given(located) => Some(&located.value),
        }
    }

    pub fn is_bad(&self) -> bool {
        match self {
            Field::Bad => true,
            Field::Absent | Field::Given(_) => false,
        }
    }

    pub fn place(&self) -> Option<&Place> {
        match self {
            Field::Absent | Field::Bad => None,
            Field::Given(located) => Some(&located.place),
        }
    }
}

/// The keys a table may have.
#[derive(Debug)]
pub struct Shape {
    /// As an operator writes it: `[lock]`.
    pub title: &'static str,
    pub keys: &'static [&'static str],
}

/// A table whose unknown keys have been reported.
#[derive(Debug)]
pub struct Table<'a> {
    shape: &'static Shape,
    entries: &'a DeTable<'a>,
    source: &'a Arc<Source>,
    pub place: Place,
}

impl<'a> Table<'a> {
    /// Reports every key that is not in `shape`; `shapes` is where else such a key may belong.
    pub fn open(
        entries: &'a DeTable<'a>,
        place: Place,
        source: &'a Arc<Source>,
        shape: &'static Shape,
        shapes: &[&Shape],
        report: &mut Report,
    ) -> Self {
        for (key, _) in entries {
            if !shape.keys.contains(&key.get_ref().as_ref()) {
                report.error(&source.place(key.span().start), unknown_key(key.get_ref(), shape, shapes));
            }
        }
        Table { shape, entries, source, place }
    }

    pub fn item(&self, key: &'static str) -> Option<Item<'a>> {
        debug_assert!(self.shape.keys.contains(&key), "{key} is not in the shape of {}", self.shape.title);
        let value = self.entries.get(key)?;
        Some(Item { label: key.to_owned(), value, source: self.source })
    }

    /// The key's value as `decode` reads it.
    pub fn field<T>(
        &self,
        key: &'static str,
        report: &mut Report,
        decode: impl FnOnce(&Item<'a>, &mut Report) -> Option<T>,
    ) -> Field<T> {
        let Some(item) = self.item(key) else { return Field::Absent };
        match decode(&item, report) {
            Some(value) => Field::Given(Located { value, place: item.place() }),
            None => Field::Bad,
        }
    }
}

/// A value and the name to call it by in messages.
#[derive(Debug)]
pub struct Item<'a> {
    label: String,
    value: &'a Spanned<DeValue<'a>>,
    source: &'a Arc<Source>,
}

impl<'a> Item<'a> {
    pub fn label(&self) -> &str {
        &self.label
    }

    pub fn place(&self) -> Place {
        self.source.place(self.value.span().start)
    }

    pub fn source(&self) -> &'a Arc<Source> {
        self.source
    }

    pub fn value(&self) -> &'a DeValue<'a> {
        self.value.get_ref()
    }

    /// Reports `<label> <complaint>`; always `None`, for the end of a decoder.
    pub fn refuse<T>(&self, report: &mut Report, complaint: impl AsRef<str>) -> Option<T> {
        report.error(&self.place(), format!("{} {}", self.label, complaint.as_ref()));
        None
    }

    /// The value is never quoted: it may be a password in the wrong line.
    pub fn wrong_type<T>(&self, report: &mut Report, expected: &str) -> Option<T> {
        let kind = self.value().type_str();
        let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
        self.refuse(report, format!("must be {expected}, not {article} {kind}"))
    }

    pub fn string(&self, report: &mut Report) -> Option<String> {
        match self.value().as_str() {
            Some(text) if text.contains('\0') => self.refuse(report, "must not contain a NUL character"),
            Some(text) => Some(text.to_owned()),
            None => self.wrong_type(report, "a string"),
        }
    }

    pub fn word(&self, report: &mut Report) -> Option<String> {
        let text = self.string(report)?;
        if text.is_empty() { self.refuse(report, "must not be empty") } else { Some(text) }
    }

    pub fn boolean(&self, report: &mut Report) -> Option<bool> {
        self.value().as_bool().or_else(|| self.wrong_type(report, "true or false"))
    }

    pub fn integer(&self, range: RangeInclusive<i64>, report: &mut Report) -> Option<i64> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let Some(digits) = self.value().as_integer() else { return self.wrong_type(report, &expected) };
        match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(number) if range.contains(&number) => Some(number),
            Ok(_) | Err(_) => self.refuse(report, format!("must be {expected}")),
        }
    }

    pub fn duration(&self, report: &mut Report) -> Option<Duration> {
        if let Some(number) = self.value().as_integer() {
            let complaint = format!("must be a string with a unit such as \"30s\"; {number} has none");
            return self.refuse(report, complaint);
        }
        let Some(text) = self.value().as_str() else {
            return self.wrong_type(report, "a string with a unit such as \"30s\"");
        };
        // humantime 2.4 panics when the seconds are near 2^64 and the rest makes one more.
        let longest_number = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
        if text.len() > 64 || longest_number > 9 {
            return self.refuse(report, "is longer than a year");
        }
        match humantime::parse_duration(text) {
            Ok(span) if span <= DURATION_MAX => Some(span),
            Ok(_) => self.refuse(report, "is longer than a year"),
            Err(error) => self.refuse(
                report,
                format!("= {} is not a duration such as \"30s\" or \"1m 30s\": {error}", quoted(text)),
            ),
        }
    }

    /// A path; a relative one starts at the file it stands in.
    pub fn path(&self, report: &mut Report) -> Option<PathBuf> {
        Some(self.source.base().join(self.word(report)?))
    }

    pub fn choice<T: Copy>(&self, choices: &[(&str, T)], report: &mut Report) -> Option<T> {
        let mut expected = String::new();
        for (i, (name, _)) in choices.iter().enumerate() {
            let separator = match i {
                0 => "",
                i if i + 1 == choices.len() => " or ",
                _ => ", ",
            };
            write!(expected, "{separator}\"{name}\"").expect("writing to a String cannot fail");
        }
        let Some(text) = self.value().as_str() else { return self.wrong_type(report, &expected) };
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, choice)) => Some(*choice),
            None => self.refuse(report, format!("must be {expected}, not {}", quoted(text))),
        }
    }

    /// The elements of an array, called `label[0]` and so on; `expected` describes the array.
    pub fn elements(&self, expected: &str, report: &mut Report) -> Option<Vec<Item<'a>>> {
        let Some(array) = self.value().as_array() else { return self.wrong_type(report, expected) };
        let elements = array.iter().enumerate();
        Some(
            elements
                .map(|(i, value)| Item { label: format!("{}[{i}]", self.label), value, source: self.source })
                .collect(),
        )
    }

    /// An array; `None` when any element is bad, after all of them have been looked at.
    pub fn list<T>(
        &self,
        expected: &str,
        report: &mut Report,
        mut decode: impl FnMut(&Item<'a>, &mut Report) -> Option<T>,
    ) -> Option<Vec<T>> {
        let elements = self.elements(expected, report)?;
        let decoded: Vec<_> = elements.iter().map(|element| decode(element, report)).collect();
        decoded.into_iter().collect()
    }

    /// The entries of a table whose keys are the operator's, called `label.key`, each with the place of its key.
    pub fn entries(&self, expected: &str, report: &mut Report) -> Option<Vec<(&'a str, Place, Item<'a>)>> {
        let Some(table) = self.value().as_table() else { return self.wrong_type(report, expected) };
        let entry = |(key, value): (&'a Spanned<_>, _)| {
            let name: &'a std::borrow::Cow<'a, str> = key.get_ref();
            let item =
                Item { label: format!("{}.{}", self.label, clipped(name)), value, source: self.source };
            (name.as_ref(), self.source.place(key.span().start), item)
        };
        Some(table.iter().map(entry).collect())
    }
}

fn unknown_key(key: &str, shape: &Shape, shapes: &[&Shape]) -> String {
    let title = shape.title;
    let unknown = format!("unknown key {} in {title}", quoted(key));
    let homes: Vec<_> =
        shapes.iter().filter(|other| other.keys.contains(&key)).map(|other| other.title).collect();
    if !homes.is_empty() {
        return format!("{unknown}; it belongs in {}", homes.join(" or "));
    }
    let nearest = shape.keys.iter().map(|known| (distance(key, known), known)).min();
    match nearest {
        Some((steps, known)) if steps <= 2 && steps < known.len() => {
            format!("{unknown}; did you mean \"{known}\"?")
        }
        Some(_) | None => format!("{unknown}; it knows {}", shape.keys.join(", ")),
    }
}

/// Edits that turn one word into the other, swapping two neighbours counted as one; far-off lengths are not looked at.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > 2 {
        return usize::MAX;
    }
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let changed = usize::from(a[i - 1] != b[j - 1]);
                let mut best = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + changed);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

/// In quotes, on one line, of bearable length.
pub fn quoted(text: &str) -> String {
    format!("{:?}", clipped(text))
}

fn clipped(text: &str) -> String {
    const SHOWN: usize = 60;
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    text.chars().take(SHOWN - 1).chain(['…']).collect()
}
