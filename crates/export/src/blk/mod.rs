//! The virtio block device over an image: what a guest's requests become.
//!
//! ```text
//!   BlkDevice   control thread: configuration space, start and stop of queues, resize
//!      |  messages
//!   BlkQueue    on its I/O thread: pop -> virtio_blk::Request -> fast path or task -> used ring
//!      |
//!   BlockNode   one per disk and I/O thread
//! ```
//!
//! Neutral as to the transport: vhost-user drives it through [`crate::vhost_user::Device`].

mod device;
mod queue;
mod served;
pub mod trace;

pub use device::{BlkDevice, BlkOptions, QUEUE_SIZE_MAX, QUEUES_MAX};
pub use queue::BlkQueue;
pub use served::{Count, Meter, Statistics};

use block::{BlockNode, CacheMode, DetectZeroes, Health, OpenOptions};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The disks an I/O thread serves, each by a number of its own. Clones are the same set.
#[derive(Clone, Debug, Default)]
pub struct Disks(Rc<RefCell<BTreeMap<u64, Rc<BlockNode>>>>);

impl Disks {
    pub(crate) fn get(&self, id: u64) -> Option<Rc<BlockNode>> {
        self.0.borrow().get(&id).cloned()
    }

    pub(crate) fn insert(&self, id: u64, node: BlockNode) {
        self.0.borrow_mut().insert(id, Rc::new(node));
    }

    fn remove(&self, id: u64) -> Option<Rc<BlockNode>> {
        self.0.borrow_mut().remove(&id)
    }
}

/// What the control thread and all queues of a disk share.
#[derive(Debug)]
pub(crate) struct DiskState {
    id: u64,
    cache: CacheMode,
    detect_zeroes: DetectZeroes,
    may_unmap: bool,
    serial: [u8; virtio_blk::ID_BYTES],
    health: Arc<Health>,
    /// The guest's write cache is on: completed writes may be volatile.
    write_cache: AtomicBool,
    /// A queue broke.
    needs_reset: AtomicBool,
    /// I/O errors so far: the first few are logged one by one.
    errors: AtomicU64,
    /// What each queue has counted.
    served: Box<[served::Counters]>,
    /// What each queue has traced, if it was asked to.
    trace: Option<trace::Recorders>,
}

impl DiskState {
    fn new(
        options: &OpenOptions,
        health: Arc<Health>,
        serial: [u8; virtio_blk::ID_BYTES],
        queues: u16,
        trace_one_in: Option<NonZeroU32>,
    ) -> DiskState {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let may_unmap = options.discard == block::DiscardMode::Unmap;
        DiskState {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            cache: options.cache,
            detect_zeroes: options.detect_zeroes,
            may_unmap,
            serial,
            health,
            write_cache: AtomicBool::new(options.cache.has_write_cache()),
            needs_reset: AtomicBool::new(false),
            errors: AtomicU64::new(0),
            served: (0..queues).map(|_| served::Counters::default()).collect(),
            trace: trace_one_in.map(|one_in| trace::Recorders::new(one_in, queues)),
        }
    }
}

#[cfg(test)]
mod tests;
