//! Where a mistake stands, and the collection of all of them.

use super::{ConfigError, ConfigErrors};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A text that errors point into.
#[derive(Debug)]
pub struct Source {
    file: PathBuf,
    /// Relative paths in the text start here.
    base: PathBuf,
    text: String,
    line_starts: Vec<usize>,
    /// Errors are shown in the order in which the texts were read.
    order: usize,
}

impl Source {
    pub fn new(file: &Path, text: String, order: usize) -> Arc<Self> {
        let line_starts =
            std::iter::once(0).chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
        let whole = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let base = whole.parent().unwrap_or(Path::new("/")).to_owned();
        Arc::new(Source { file: file.to_owned(), base, text, line_starts, order })
    }

    /// An environment variable: a text of its own, shown by its name.
    pub fn variable(name: &str) -> Arc<Self> {
        Source::new(Path::new(name), String::new(), usize::MAX)
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn base(&self) -> &Path {
        &self.base
    }

    pub fn place(self: &Arc<Self>, offset: usize) -> Place {
        Place { source: Arc::clone(self), offset }
    }

    /// Line and column from 1; columns are counted in characters, as editors do.
    fn line_and_column(&self, offset: usize) -> (usize, usize) {
        let offset = offset.min(self.text.len());
        let line = self.line_starts.partition_point(|&start| start <= offset);
        let start = self.line_starts[line - 1]; // 0 is the first start, so one is always <= offset
        let column = self.text[start..].char_indices().take_while(|(i, _)| start + i < offset).count();
        (line, column + 1)
    }
}

/// Where something stands; turned into line and column only when it is shown.
#[derive(Clone, Debug)]
pub struct Place {
    source: Arc<Source>,
    offset: usize,
}

impl Place {
    /// "line 7", with the file when it is another than that of `reader`.
    pub fn seen_from(&self, reader: &Place) -> String {
        let (line, _) = self.source.line_and_column(self.offset);
        if self.source.order == reader.source.order {
            format!("line {line}")
        } else {
            format!("{}:{line}", self.source.file.display())
        }
    }

    fn error(&self, message: String) -> ConfigError {
        let (line, column) = self.source.line_and_column(self.offset);
        ConfigError { file: self.source.file.clone(), line, column, message }
    }
}

/// What is wrong, and what is allowed but odd.
#[derive(Debug, Default)]
pub struct Report {
    errors: Vec<(Place, String)>,
    warnings: Vec<String>,
}

impl Report {
    pub fn error(&mut self, place: &Place, message: impl Into<String>) {
        self.errors.push((place.clone(), message.into()));
    }

    /// Of errors so far.
    pub fn count(&self) -> usize {
        self.errors.len()
    }

    pub fn warn(&mut self, message: impl Into<String>) {
        self.warnings.push(message.into());
    }

    pub fn warn_at(&mut self, place: &Place, message: impl Into<String>) {
        self.warn(place.error(message.into()).to_string());
    }

    /// The warnings, when nothing is wrong.
    pub fn into_warnings(self) -> Result<Vec<String>, ConfigErrors> {
        if self.errors.is_empty() { Ok(self.warnings) } else { Err(self.into_errors()) }
    }

    /// Every error in reading order.
    pub fn into_errors(mut self) -> ConfigErrors {
        self.errors.sort_by_key(|(place, _)| (place.source.order, place.offset));
        let mut errors: Vec<_> =
            self.errors.into_iter().map(|(place, message)| place.error(message)).collect();
        errors.dedup(); // one bad default would otherwise be told once per keeper
        ConfigErrors(errors)
    }
}
