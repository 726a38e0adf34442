//! What others may ask of a verb under way: to stop, and to say how far it is. Both by flags, which a signal may set.

use block::{Error, ErrorKind, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
static TELL: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// A copy stops, and removes what it has made, when this is set. The first flag of a process counts.
pub fn stop_when(flag: Arc<AtomicBool>) {
    let _ = STOP.set(flag);
}

/// A verb says on stderr how far it is, and clears this, when it is set. The first flag of a process counts.
pub fn tell_when(flag: Arc<AtomicBool>) {
    let _ = TELL.set(flag);
}

/// Whether the verb is to stop.
pub(crate) fn is_asked() -> bool {
    STOP.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Fails if the verb is to stop.
pub(crate) fn check() -> Result<()> {
    match is_asked() {
        true => Err(Error::new(ErrorKind::Io, "interrupted")),
        false => Ok(()),
    }
}

/// Whether it is to be said how far it is: once for each time it is asked.
pub(crate) fn is_asked_how_far() -> bool {
    TELL.get().is_some_and(|flag| flag.swap(false, Ordering::Relaxed))
}
