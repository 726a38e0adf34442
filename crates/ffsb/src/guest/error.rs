//! Why something about a guest did not work, in one line.

use crate::run::RunErrorKind;
use std::{error, fmt};

/// What went wrong, as far as a caller may act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestErrorKind {
    /// A program or a kernel is not there.
    Missing,
    /// No guest can be as it was asked for.
    Refused,
    /// It did not become ready.
    Boot,
    /// It is gone, or does not answer.
    Lost,
    /// The run in it failed; the guest can do another one.
    Run(RunErrorKind),
    /// The stop flag was set.
    Interrupted,
}

/// A failure about a guest. The message names the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestError {
    kind: GuestErrorKind,
    message: String,
}

impl GuestError {
    pub(super) fn new(kind: GuestErrorKind, message: impl Into<String>) -> GuestError {
        GuestError { kind, message: message.into() }
    }

    pub(super) fn missing(message: impl Into<String>) -> GuestError {
        GuestError::new(GuestErrorKind::Missing, message)
    }

    /// The classification to branch on.
    pub fn kind(&self) -> GuestErrorKind {
        self.kind
    }
}

impl fmt::Display for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl error::Error for GuestError {}
