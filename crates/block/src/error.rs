//! The one error type of the block layer.
//!
//! Callers branch on [`ErrorKind`]; people read the message, which says what was being done. The cause stays in `source()`.

use std::{error, fmt, io};

/// What went wrong, as far as a caller may act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The host failed the I/O.
    Io,
    /// The image contradicts its format's specification. No further write is attempted.
    Corrupt,
    /// A valid image or request that this build does not implement.
    Unsupported,
    /// The request reaches outside the disk, or is not aligned to its block size, or the disk is read-only.
    BadRequest,
    /// The host has no space left. Kept apart from `Io` so that an export can pause the guest.
    NoSpace,
    /// Somebody else uses the image.
    Locked,
    /// An earlier sync failed: nothing is promised any more until the image is opened again.
    Poisoned,
}

/// A failed block operation.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    doing: String,
    source: Option<io::Error>,
}

/// What operations of the block layer return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error found by our own checks, with no cause underneath.
    pub fn new(kind: ErrorKind, doing: impl Into<String>) -> Error {
        Error { kind, doing: doing.into(), source: None }
    }

    /// Wraps a host error. `ENOSPC` and its kin are the only ones that change the kind.
    pub fn io(doing: impl Into<String>, source: io::Error) -> Error {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Error { kind, doing: doing.into(), source: Some(source) }
    }

    /// The classification to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The error as an I/O error, for callers that know no other: a task's end, a tool's exit.
    pub fn into_io(self) -> io::Error {
        let kind = match self.kind {
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::NoSpace => io::ErrorKind::StorageFull,
            ErrorKind::BadRequest => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}
