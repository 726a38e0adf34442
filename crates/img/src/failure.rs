//! How a verb ends: with a code that scripts know, and if it fails with one line that says why.

use block::{Error, ErrorKind};
use std::{error, fmt, io};

/// An exit code.
pub type Code = u8;

/// How a verb ended that could do its work: the exit code, which may well say that images differ or have errors.
pub type Verdict = std::result::Result<Code, Failure>;

/// Why a verb could not do its work, and its exit code.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: Code,
    error: Error,
}

impl Failure {
    /// A failure that is a fault of what was asked for.
    pub fn new(what: impl Into<String>) -> Failure {
        Error::new(ErrorKind::BadRequest, what).into()
    }

    /// The same with another exit code.
    pub fn with_code(self, code: Code) -> Failure {
        Failure { code, ..self }
    }

    /// The kind of error.
    pub fn kind(&self) -> ErrorKind {
        self.error.kind()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { code: 1, error }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Error::io("printing", error).into()
    }
}

impl fmt::Display for Failure {
    /// The whole story, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)?;
        let mut cause = error::Error::source(&self.error);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl error::Error for Failure {}
