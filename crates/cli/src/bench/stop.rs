//! SIGINT and SIGTERM end a measurement, not the process: so that it can put everything away.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What signals have asked for.
#[derive(Debug)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    number: Arc<AtomicUsize>,
}

impl Stop {
    /// From now on.
    pub fn catch() -> Result<Stop, String> {
        let stop = Stop { asked: Arc::default(), number: Arc::default() };
        for signal in [SIGINT, SIGTERM] {
            let value = usize::try_from(signal).unwrap_or(0);
            // The number before the flag: who sees the flag must find it set.
            flag::register_usize(signal, stop.number.clone(), value)
                .and_then(|_| flag::register(signal, stop.asked.clone()))
                .map_err(|error| format!("catching signals: {error}"))?;
        }
        Ok(stop)
    }

    /// Set by a signal.
    pub fn flag(&self) -> &AtomicBool {
        &self.asked
    }

    /// Number of the signal that came.
    pub fn signal(&self) -> u8 {
        u8::try_from(self.number.load(Ordering::Relaxed)).unwrap_or(0)
    }
}
