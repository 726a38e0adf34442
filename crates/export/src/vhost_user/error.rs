//! The one error type of the vhost-user layer.

use std::{error, fmt, io};

/// What a failure means for the connection it happened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The peer closed the connection between two messages: how every session normally ends.
    Disconnected,
    /// The peer broke the protocol in a way that leaves nothing to answer; the connection ends.
    Protocol,
    /// A whole message asked for something that we do not do. Acknowledged negatively if an acknowledgement was asked for.
    Refused,
    /// The peer took too long over a message, or did not read its replies; the connection ends.
    TimedOut,
    /// The host failed a system call.
    Io,
    /// The socket cannot be where it was asked for: the path is too long, in use, or somebody else's file.
    BadPath,
}

/// A failed operation of the vhost-user layer.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    doing: String,
    source: Option<io::Error>,
}

impl Error {
    /// An error found by our own checks.
    pub fn new(kind: ErrorKind, doing: impl Into<String>) -> Error {
        Error { kind, doing: doing.into(), source: None }
    }

    /// A refusal, see [`ErrorKind::Refused`].
    pub fn refused(doing: impl Into<String>) -> Error {
        Error::new(ErrorKind::Refused, doing)
    }

    /// A breach of the protocol, see [`ErrorKind::Protocol`].
    pub fn protocol(doing: impl Into<String>) -> Error {
        Error::new(ErrorKind::Protocol, doing)
    }

    /// A failed system call.
    pub fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::caused(ErrorKind::Io, doing, source)
    }

    /// A failed system call that has a meaning of its own.
    pub fn caused(
        kind: ErrorKind,
        doing: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Error {
        Error { kind, doing: doing.into(), source: Some(source.into()) }
    }

    /// The classification to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The same error with the message it came from in front.
    pub fn in_message(mut self, name: &str) -> Error {
        self.doing = format!("{name}: {}", self.doing);
        self
    }

    /// What was being done and its cause, on one line: for a log.
    pub fn line(&self) -> String {
        match &self.source {
            Some(source) => format!("{}: {source}", self.doing),
            None => self.doing.clone(),
        }
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
