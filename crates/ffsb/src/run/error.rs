//! Why a run ended early, in one line.

use serde::{Deserialize, Serialize};
use std::{error, fmt, io};

/// What went wrong, as far as a caller may act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RunErrorKind {
    /// The stop flag of [`super::Control`] was set.
    Interrupted,
    /// The profile asks for what cannot be done.
    Profile,
    /// The place cannot be used: a directory that is missing, a disk that is too small.
    Place,
    /// An operation failed.
    Io,
    /// File system or disk are full.
    NoSpace,
    /// What was read is not what was written. The files are kept, to be looked at.
    Verify,
}

/// A run that ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunError {
    kind: RunErrorKind,
    message: String,
}

impl RunError {
    pub(crate) fn new(kind: RunErrorKind, message: impl Into<String>) -> RunError {
        RunError { kind, message: message.into() }
    }

    /// An operation that failed at a path.
    pub(crate) fn io(doing: &str, path: &str, error: &io::Error) -> RunError {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => RunErrorKind::NoSpace,
            _ => RunErrorKind::Io,
        };
        RunError::new(kind, format!("{doing} {path}: {error}"))
    }

    pub(crate) fn interrupted() -> RunError {
        RunError::new(RunErrorKind::Interrupted, "interrupted")
    }

    /// The classification to branch on.
    pub fn kind(&self) -> RunErrorKind {
        self.kind
    }
}

impl fmt::Display for RunError {
    /// One line: operation, file, why.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl error::Error for RunError {}
