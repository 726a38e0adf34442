//! Where commands print: results and complaints, shared by the shell and the requests in its background.

use crate::escape;
use block::Error;
use std::cell::{Cell, RefCell};
use std::error::Error as _;
use std::fmt;
use std::io::{ErrorKind, Write};

/// Two outputs.
pub struct Printer {
    out: RefCell<Box<dyn Write>>,
    err: RefCell<Box<dyn Write>>,
    /// Something could not be printed.
    failed: Cell<Option<ErrorKind>>,
}

impl fmt::Debug for Printer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Printer").field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl Printer {
    /// Results go to `out`, complaints to `err`.
    pub fn new(out: impl Write + 'static, err: impl Write + 'static) -> Printer {
        Printer {
            out: RefCell::new(Box::new(out)),
            err: RefCell::new(Box::new(err)),
            failed: Cell::new(None),
        }
    }

    /// Prints text as it is. That it could not be is told in the end.
    pub(super) fn say(&self, text: &str) {
        let mut out = self.out.borrow_mut();
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            self.failed.set(Some(error.kind()));
        }
    }

    /// Prints one line for the user; there is nobody to tell if it cannot be.
    pub(super) fn complain(&self, line: &str) {
        let _ = writeln!(self.err.borrow_mut(), "{}", escape(line));
    }

    /// What kept something from being printed.
    pub(super) fn failed(&self) -> Option<ErrorKind> {
        self.failed.get()
    }
}

/// All that an error has to tell, in a line.
pub(super) fn story(error: &Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
