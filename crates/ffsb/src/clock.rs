//! The clock and the sleep of the crate: the one place that asks the host for either.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Now, for durations.
#[inline]
#[expect(clippy::disallowed_methods, reason = "a benchmark measures in the host's time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a report says when it was measured")]
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A number that no other run has: for the identity of file sets.
#[expect(clippy::disallowed_methods, reason = "file sets of different runs must differ")]
pub(crate) fn unique() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let nanos = u64::try_from(since.as_nanos() & u128::from(u64::MAX)).expect("masked");
    nanos ^ u64::from(std::process::id()) << 48
}

/// Waits: the thread of a workload, for `op_delay`, or who looks now and then for what comes without a signal.
#[expect(
    clippy::disallowed_methods,
    reason = "threads of a workload think, and others wait for processes"
)]
pub(crate) fn sleep(time: Duration) {
    std::thread::sleep(time);
}
