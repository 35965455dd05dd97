//! The one error type of a trial.

use std::fmt;

/// Why a trial did not pass. Deliberately not an `Error`, so that `?` takes any error.
pub struct Failure {
    pub why: String,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Failed,
    /// This machine cannot show it; said aloud, never counted as passed.
    Skipped,
}

pub type Step<T = ()> = Result<T, Failure>;

pub fn failure(why: impl Into<String>) -> Failure {
    Failure { why: why.into(), kind: Kind::Failed }
}

pub fn skipped(why: impl Into<String>) -> Failure {
    Failure { why: why.into(), kind: Kind::Skipped }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(e: E) -> Self {
        failure(e.to_string())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// `check(condition, "what should have been")?`
pub fn check(holds: bool, otherwise: impl Into<String>) -> Step {
    if holds { Ok(()) } else { Err(failure(otherwise)) }
}
