//! Guest memory: the RAM of a virtual machine, mapped from the file descriptors its VMM hands over.
//!
//! ```text
//!  GuestMemory          immutable list of regions, sorted by guest address; shared by all threads
//!    `- Arc<Region>     one mmap of one fd; unmapped when the last user is gone
//!  MemHandle            one thread's reference to a GuestMemory: cloning it is not atomic
//!    |- GuestSlice      a contiguous, checked area: virtqueue rings live here
//!    |- IoVecs          checked host segments of a request's data: what a system call is given
//!    `- StatusByte      the one byte a request's answer goes to
//!  SharedSlice          a GuestSlice that any thread may have: a driver's rings and buffers
//! ```
//!
//! The guest reads and writes this memory at any time, from another CPU. So no Rust reference to it ever exists: rings are
//! reached by atomic and volatile accesses of [`GuestSlice`], data by the kernel through the pointers of [`IoVecs`] or by
//! the volatile copies there. Each field a guest wrote is to be read **once**: between two reads it may change.
//!
//! Invariants:
//!
//! - a [`GuestSlice`], [`IoVecs`] or [`StatusByte`] holds a [`MemHandle`], a [`SharedSlice`] a [`GuestMemory`], so what it points
//!   to stays mapped while it lives;
//! - each segment lies within one region: guest-adjacent regions are two segments, never one;
//! - a memory file that its owner shrinks does not kill us: see [`sigbus`].

mod access;
mod iovecs;
mod memory;
mod region;
pub mod sigbus;

pub use access::{GuestSlice, SharedSlice, StatusByte};
#[cfg(feature = "read-hook")]
pub use access::{ReadHook, clear_read_hook, set_read_hook};
pub use iovecs::{IoVecs, SegStorage};
pub use memory::{GuestMemory, MemHandle};
pub use region::{Region, RegionSpec};

/// Guest-physical byte address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestAddr(pub u64);

impl GuestAddr {
    /// The address `bytes` further on; `None` past the end of the address space.
    pub fn checked_add(self, bytes: u64) -> Option<GuestAddr> {
        self.0.checked_add(bytes).map(GuestAddr)
    }
}

/// Some bytes of the range are not in guest memory, or the range wraps round the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAddr {
    /// Start of the refused range.
    pub addr: GuestAddr,
    /// Length of the refused range, in bytes.
    pub len: u64,
}

impl std::fmt::Display for BadAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "guest addresses {:#x}+{:#x} are not all in guest memory", self.addr.0, self.len)
    }
}

impl std::error::Error for BadAddr {}

#[cfg(test)]
mod tests;
