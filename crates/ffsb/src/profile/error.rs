//! What is said about a profile's text: why it was refused, or what its author should know.

use super::Profile;
use std::{error, fmt};

/// What a profile's text came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The profile.
    pub profile: Profile,
    /// What was read differently from how it is written, in order of the lines.
    pub warnings: Vec<Warning>,
}

/// Why a text is no profile. Shown as `LINE: why`, so that a caller who puts `NAME:` before it has the usual form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileError {
    /// Line, the first is 1.
    pub line: usize,
    /// One sentence without a full stop.
    pub why: String,
}

/// What the author of a profile should know. Shown as `LINE: what`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Line, the first is 1.
    pub line: usize,
    /// One sentence without a full stop.
    pub what: String,
}

impl ProfileError {
    pub(super) fn new(line: usize, why: impl Into<String>) -> ProfileError {
        ProfileError { line, why: why.into() }
    }
}

impl Warning {
    pub(super) fn new(line: usize, what: impl Into<String>) -> Warning {
        Warning { line, what: what.into() }
    }
}

impl fmt::Display for ProfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.why)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.what)
    }
}

impl error::Error for ProfileError {}
