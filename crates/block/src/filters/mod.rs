//! What can stand between a format and its host file.
//!
//! ```text
//!   format (raw, QED, qcow2)
//!      |  events: "an L2 table is about to be written"
//!      v
//!   HostNode ---> Filter ---> the engine      no filter: the engine at once
//!                   |  faults: the I/O fails, as the rules say        QEMU's blkdebug
//!                   `  null:   there is no file; all is taken         QEMU's null-co
//! ```
//!
//! Without a filter the data path does not know of it: a node with one says of no request that it is aligned, so none goes past
//! it, and the paths that aligned data takes do not ask.

mod event;
mod faults;

pub use event::{Event, NEVER, UnknownEvent};
pub use faults::{Action, Faults, IoKind, Rule};

use io_engine::{Buf, OpKind};
use iothread::IoContext;
use std::io;
use std::sync::Arc;

/// An alignment of memory that no memory has: half of the address space.
pub(crate) const NEVER_ALIGNED: usize = 1 << (usize::BITS - 1);

/// A disk without a file: QEMU's `null-co`. What is written is gone; it reads as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullDisk {
    /// Its size.
    pub bytes: u64,
    /// What each I/O takes at least.
    pub latency_ns: u64,
}

/// What stands between an image's format and its file.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    /// Which I/O fails.
    pub faults: Option<Arc<Faults>>,
    /// There is no file.
    pub null: Option<NullDisk>,
    /// What offsets and lengths must be multiples of at least, in bytes: a power of two, or 0.
    pub align: u64,
}

impl Filters {
    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.faults.is_none() && self.null.is_none() && self.align == 0
    }

    /// I/O that does not pass through a [`HostNode`](crate::HostNode): the header's, and a last sync.
    pub(crate) fn check(&self, kind: IoKind, at: u64, len: u64) -> io::Result<()> {
        match &self.faults {
            Some(faults) => faults.check(kind, at, len),
            None => Ok(()),
        }
    }

    pub(crate) fn event(&self, event: Event) {
        if let Some(faults) = &self.faults {
            faults.event(event);
        }
    }
}

/// What became of an op.
pub(crate) enum Passed {
    /// The engine is to do it.
    On(Buf),
    /// It has ended.
    Ended(io::Result<()>, Buf),
}

impl Filters {
    /// An op is on its way to the host.
    pub(crate) async fn pass(
        &self,
        context: &IoContext,
        kind: OpKind,
        at: u64,
        mut buf: Buf,
    ) -> Passed {
        let (event, asked, len) = match kind {
            OpKind::Read => (None, Some(IoKind::Read), buf.bytes()),
            OpKind::Write { .. } => (Some(Event::Pwritev), Some(IoKind::Write), buf.bytes()),
            OpKind::WriteZeroes { len, .. } => {
                (Some(Event::PwritevZero), Some(IoKind::WriteZeroes), len)
            }
            OpKind::Discard { len } => (None, Some(IoKind::Discard), len),
            OpKind::Flush => (None, Some(IoKind::Flush), 0),
            OpKind::Truncate => (None, None, 0),
        };
        event.into_iter().for_each(|event| self.event(event));
        if let Some(Err(error)) = asked.map(|kind| self.check(kind, at, len)) {
            return Passed::Ended(Err(error), buf);
        }
        let Some(null) = &self.null else { return Passed::On(buf) };
        if null.latency_ns > 0 {
            context.sleep_until(context.now_ns().saturating_add(null.latency_ns)).await;
        }
        match (kind, &mut buf) {
            (OpKind::Truncate, _) => Passed::Ended(Err(io::ErrorKind::Unsupported.into()), buf),
            (OpKind::Read, Buf::Owned(bytes)) => {
                bytes.as_mut_slice().fill(0);
                Passed::Ended(Ok(()), buf)
            }
            (OpKind::Read, Buf::Guest(bytes)) => {
                bytes.zero_from(0);
                Passed::Ended(Ok(()), buf)
            }
            _ => Passed::Ended(Ok(()), buf),
        }
    }
}

#[cfg(test)]
mod tests;
