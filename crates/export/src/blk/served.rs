//! What a disk's guest has asked for, counted by each queue and added up when somebody wants to know.
//!
//! Each queue has counters of its own, written by the one I/O thread that serves it: nothing is shared between threads until somebody reads.

use super::queue::Kind;
use super::trace::Trace;
use super::{BlkQueue, DiskState};
use iothread::IoThread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Requests of one kind, and the bytes that they were for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests that were begun.
    pub requests: u64,
    /// Bytes of the disk.
    pub bytes: u64,
}

/// What a disk has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Reads.
    pub reads: Count,
    /// Writes of data.
    pub writes: Count,
    /// Flushes.
    pub flushes: Count,
    /// Writes of zeroes, asked for or found in data.
    pub zeroes: Count,
    /// Discards.
    pub discards: Count,
    /// Requests that failed at the host.
    pub failed: u64,
    /// RAM that the tables of the image and those under it take now; `None` if it has none.
    pub table_bytes: Option<u64>,
}

#[derive(Debug, Default)]
struct Counter {
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// The counters of one queue, in cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Counters {
    reads: Counter,
    writes: Counter,
    flushes: Counter,
    zeroes: Counter,
    discards: Counter,
}

impl Counters {
    /// A request of the queue whose counters these are.
    #[inline]
    pub fn count(&self, kind: Kind, bytes: u64) {
        let counter = match kind {
            Kind::Read => &self.reads,
            Kind::Write { .. } => &self.writes,
            Kind::Flush => &self.flushes,
            Kind::Zeroes { .. } => &self.zeroes,
            Kind::Discard => &self.discards,
        };
        // Not `fetch_add`: nobody else writes, and this is on every request's way.
        let add = |to: &AtomicU64, by| {
            to.store(to.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        };
        add(&counter.requests, 1);
        add(&counter.bytes, bytes);
    }
}

/// Reads a disk's statistics, from the control thread.
#[derive(Clone, Debug)]
pub struct Meter {
    state: Arc<DiskState>,
    home: Arc<IoThread<BlkQueue>>,
}

impl Meter {
    pub(super) fn new(state: Arc<DiskState>, home: Arc<IoThread<BlkQueue>>) -> Meter {
        Meter { state, home }
    }

    /// What was traced so far, if the disk is traced. Requests that end meanwhile may be there by half.
    pub fn trace(&self) -> Option<Trace> {
        self.state.trace.as_ref().map(|recorders| recorders.read())
    }

    /// What the disk has done so far. Requests that are under way may be missing.
    pub fn read(&self) -> Statistics {
        let id = self.state.id;
        let table_bytes = self
            .home
            .call(move |io_loop| io_loop.local.get(id).and_then(|node| node.table_bytes()));
        let sum = |of: fn(&Counters) -> &Counter| {
            let mut count = Count::default();
            for counters in &self.state.served {
                count.requests += of(counters).requests.load(Ordering::Relaxed);
                count.bytes += of(counters).bytes.load(Ordering::Relaxed);
            }
            count
        };
        Statistics {
            reads: sum(|of| &of.reads),
            writes: sum(|of| &of.writes),
            flushes: sum(|of| &of.flushes),
            zeroes: sum(|of| &of.zeroes),
            discards: sum(|of| &of.discards),
            failed: self.state.errors.load(Ordering::Relaxed),
            table_bytes,
        }
    }
}
