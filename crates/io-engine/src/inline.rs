//! Transfers that are no more than a copy, done at once on the submitting thread.
//!
//! Handing a copy from the page cache to another thread, or to the ring and back, costs more than the copy. So for files
//! that live in the page cache:
//!
//! | file                         | reads                                      | writes              | the rest                |
//! |------------------------------|--------------------------------------------|---------------------|-------------------------|
//! | in RAM (tmpfs)               | at once, unless large                      | at once             | small ones at once      |
//! | other, not O_DIRECT          | at once if all cached (`RWF_NOWAIT`)       | the same, if the file system can; not with fua | by the engine |
//! | O_DIRECT                     | by the engine                              | by the engine       | by the engine           |
//!
//! Large transfers are different: several of them are faster side by side, see [`may_copy`]. But not writes to a file in RAM: the kernel lets one at a time into a
//! file, and who waits for another spins. A second thread would cost its CPU time and gain nothing.
//!
//! A try that finds nothing cached costs a system call for nothing. After a miss the next tries are left out, twice as many after
//! each further miss, up to [`SKIP_MAX`]; a hit forgives.

use crate::file::{Entry, MissHistory};
use crate::sys::{self, SysOp};

/// Transfers up to this are copied at once whatever else is going on.
const COPY_SMALL: u64 = 64 << 10;
/// Ranges up to this are freed or zeroed at once in a file in RAM.
const FALLOCATE_SMALL: u64 = 256 << 10;
/// Tries left out at most after a miss.
const SKIP_MAX: u32 = 64;

/// Whether a transfer that others could go on beside is to be copied at once.
///
/// A small one always. A large one only if it is `alone`, nothing else having been submitted since all before was reaped: its
/// submitter then waits for it in any case, if it does not say otherwise. The second of a batch goes to the engine, and is copied beside the first.
fn may_copy(op: &SysOp, alone: bool) -> bool {
    match op {
        SysOp::Preadv { segs, .. } | SysOp::Pwritev { segs, .. } => {
            alone || segs.bytes() <= COPY_SMALL
        }
        _ => false,
    }
}

/// Whether a call that was not made at once is a copy, for which a thread of ours is the best place.
pub(crate) fn is_copy(entry: &Entry, op: &SysOp) -> bool {
    let large = match op {
        SysOp::Preadv { segs, .. } | SysOp::Pwritev { segs, dsync: false, .. } => {
            segs.bytes() > COPY_SMALL
        }
        _ => false,
    };
    large && entry.page_cached()
}

/// Makes the call at once, if that is right for the file; `None` hands it to the engine.
///
/// # Safety
///
/// As for [`sys::run`], of which `entry` gives the descriptor.
pub(crate) unsafe fn attempt(entry: &Entry, op: &SysOp, alone: bool) -> Option<i32> {
    if !entry.page_cached() {
        return None;
    }
    if entry.facts.ram_backed {
        let at_once = match op {
            SysOp::Fdatasync => true,
            SysOp::Fallocate { len, .. } => *len <= FALLOCATE_SMALL,
            SysOp::Ftruncate { .. } => false,
            SysOp::Preadv { .. } => may_copy(op, alone),
            SysOp::Pwritev { .. } => true,
        };
        // SAFETY: passed on from the caller.
        return at_once.then(|| unsafe { sys::run(entry.raw_fd(), op, 0) });
    }
    let lacks = match op {
        SysOp::Preadv { .. } => &entry.lacks.nowait_read,
        // A durable write waits for the device; no such thing as not waiting.
        SysOp::Pwritev { dsync: false, .. } => &entry.lacks.nowait_write,
        _ => return None,
    };
    if lacks.get() || !may_copy(op, alone) || entry.misses.skips() {
        return None;
    }
    // SAFETY: passed on from the caller.
    let result = unsafe { sys::run(entry.raw_fd(), op, libc::RWF_NOWAIT) };
    match -result {
        libc::EAGAIN => {
            entry.misses.missed();
            None
        }
        libc::EOPNOTSUPP | libc::ENOSYS => {
            lacks.set(true);
            None
        }
        _ => {
            entry.misses.hit();
            Some(result)
        }
    }
}

impl MissHistory {
    /// Whether this try is to be left out.
    fn skips(&self) -> bool {
        let skip = self.skip.get();
        self.skip.set(skip.saturating_sub(1));
        skip > 0
    }

    fn missed(&self) {
        let backoff = (self.backoff.get() * 2).clamp(1, SKIP_MAX);
        self.backoff.set(backoff);
        self.skip.set(backoff);
    }

    fn hit(&self) {
        self.backoff.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_make_tries_rarer_up_to_a_bound_and_a_hit_forgives() {
        let history = MissHistory::default();
        let tries = |rounds: u32| (0..rounds).filter(|_| !history.skips()).count();
        assert_eq!(tries(10), 10);
        for _ in 0..20 {
            history.missed();
        }
        assert_eq!(tries(SKIP_MAX), 0);
        assert_eq!(tries(10), 10);
        history.hit();
        history.missed();
        assert_eq!(tries(10), 9);
    }
}
