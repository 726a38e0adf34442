//! Virtqueues: how a guest's driver hands descriptor chains to a device and gets them back.
//!
//! ```text
//!            guest memory                          |  this process
//!  driver -> descriptor table   <--- walked -------|  Virtqueue::pop -> DescChain -> ... I/O ...
//!         -> avail ring         <--- read ---------|     ^                              |
//!         <- used ring          ---- written ----->|     `-- recycle    push_used <-----'
//!                                                  |                    publish -> Notify
//! ```
//!
//! Specification: VIRTIO 1.3, section 2.7 (split virtqueues). The packed ring of section 2.8 will be a second variant of
//! [`Virtqueue`].
//!
//! Everything in guest memory is hostile and may change between two reads. So:
//!
//! - each field is read once, into a local; only the copy is checked and used;
//! - a walk makes at most as many steps as the table has entries, whatever the `next` fields say;
//! - a head is in flight at most once, so at most `size` chains are;
//! - a chain that breaks the rules of the ring is a [`BadRing`]: the queue is broken from then on and yields no more chains. A chain
//!   whose only fault is where its data lies keeps the ring alive and says so in [`DescChain::flaw`].
//!
//! The [`driver`] module is the other side, for tests, the simulation and benchmarks.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)
)]

mod bad_ring;
mod chain;
pub mod driver;
mod in_flight;
mod layout;
mod split;

pub use bad_ring::{Area, BadRing};
pub use chain::{DescChain, Flaw, INDIRECT_ENTRIES_MAX};
pub use layout::SIZE_MAX;
pub use split::SplitQueue;

use guest_mem::{GuestAddr, MemHandle, SegStorage};

/// Where a virtqueue lies and what was negotiated for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// Entries of the ring: a power of two up to [`SIZE_MAX`].
    pub size: u16,
    /// The descriptor table, on a multiple of 16.
    pub desc: GuestAddr,
    /// The avail ring ("driver area"), on a multiple of 2.
    pub avail: GuestAddr,
    /// The used ring ("device area"), on a multiple of 4.
    pub used: GuestAddr,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
}

/// Whether the driver wants to hear of what was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a driver that is owed a notification waits for it for ever"]
pub enum Notify {
    /// It sleeps until it is notified.
    Needed,
    /// It looks by itself, or asked to be left alone until more is used.
    Suppressed,
}

/// The device side of a virtqueue, in the ring format that was negotiated.
#[derive(Debug)]
pub enum Virtqueue {
    /// The format of VIRTIO 1.3 section 2.7.
    Split(SplitQueue),
}

impl Virtqueue {
    /// Sets a queue up that goes on at avail index `next_avail` (0 for a new one). The used index is the one in memory.
    ///
    /// # Errors
    ///
    /// [`BadRing`] if the size is not a power of two up to [`SIZE_MAX`], or an area is misaligned (for the guest or on the host),
    /// not within one region of memory, or overlaps another.
    pub fn new(
        mem: &MemHandle,
        config: &QueueConfig,
        next_avail: u16,
    ) -> Result<Virtqueue, BadRing> {
        SplitQueue::new(mem, config, next_avail).map(Virtqueue::Split)
    }

    /// Takes the next available chain, if there is one.
    ///
    /// # Errors
    ///
    /// [`BadRing`] if the driver broke the rules of the ring; from then on it is the answer to every call.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<DescChain>, BadRing> {
        match self {
            Virtqueue::Split(queue) => queue.pop(),
        }
    }

    /// Takes the chain at `head` without the avail ring: one that was popped before this queue was set up and never answered.
    ///
    /// # Errors
    ///
    /// As [`Virtqueue::pop`].
    pub fn resubmit(&mut self, head: u16) -> Result<DescChain, BadRing> {
        match self {
            Virtqueue::Split(queue) => queue.resubmit(head),
        }
    }

    /// Whether [`Virtqueue::pop`] would find a chain. Only looks at memory: what a polling loop asks. False for a broken queue.
    #[inline]
    pub fn has_avail(&self) -> bool {
        match self {
            Virtqueue::Split(queue) => queue.has_avail(),
        }
    }

    /// Hands the chain at `head` back, with `written` bytes written. The driver sees it after [`Virtqueue::publish`].
    ///
    /// # Panics
    ///
    /// If `head` is not in flight: a chain was answered twice, which is our own bug.
    #[inline]
    pub fn push_used(&mut self, head: u16, written: u32) {
        match self {
            Virtqueue::Split(queue) => queue.push_used(head, written),
        }
    }

    /// Shows the driver everything pushed so far, and says whether to notify it.
    #[inline]
    pub fn publish(&mut self) -> Notify {
        match self {
            Virtqueue::Split(queue) => queue.publish(),
        }
    }

    /// Asks the driver not to kick: the device polls. A hint, kicks may still come.
    #[inline]
    pub fn disable_kicks(&mut self) {
        match self {
            Virtqueue::Split(queue) => queue.disable_kicks(),
        }
    }

    /// Asks for a kick with the next chain. True if chains arrived before the driver could see that: pop them before sleeping.
    #[inline]
    #[must_use = "chains that are there already come without a kick"]
    pub fn enable_kicks(&mut self) -> bool {
        match self {
            Virtqueue::Split(queue) => queue.enable_kicks(),
        }
    }

    /// The avail index of the next chain: what to go on from when the queue is set up again.
    #[inline]
    pub fn next_avail(&self) -> u16 {
        match self {
            Virtqueue::Split(queue) => queue.next_avail(),
        }
    }

    /// The used index of the next chain to be pushed.
    #[inline]
    pub fn next_used(&self) -> u16 {
        match self {
            Virtqueue::Split(queue) => queue.next_used(),
        }
    }

    /// Chains popped and not yet pushed.
    #[inline]
    pub fn in_flight(&self) -> u16 {
        match self {
            Virtqueue::Split(queue) => queue.in_flight(),
        }
    }

    /// Why the queue is broken, if it is.
    pub fn broken(&self) -> Option<BadRing> {
        match self {
            Virtqueue::Split(queue) => queue.broken(),
        }
    }

    /// Takes a finished request's storage back (`IoVecs::into_storage`), so that the next chain needs no allocation.
    #[inline]
    pub fn recycle(&mut self, storage: SegStorage) {
        match self {
            Virtqueue::Split(queue) => queue.recycle(storage),
        }
    }
}

#[cfg(test)]
mod tests;
