//! What a driver can do to break a ring.

use guest_mem::GuestAddr;
use std::fmt;

/// One of the three areas of a split virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The descriptor table.
    Desc,
    /// The avail ring.
    Avail,
    /// The used ring.
    Used,
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Area::Desc => "descriptor table",
            Area::Avail => "avail ring",
            Area::Used => "used ring",
        })
    }
}

/// The driver broke a rule of the ring. The queue cannot be used until it is set up again: the device needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadRing {
    /// The size is not a power of two up to [`crate::SIZE_MAX`].
    Size(u16),
    /// An area starts where it may not.
    Misaligned(Area, GuestAddr),
    /// An area is not within one region of guest memory.
    Unmapped(Area, GuestAddr),
    /// Two areas share bytes.
    Overlap(Area, Area),
    /// The avail index moved on by more than the size of the ring.
    AvailIndex {
        /// Its value.
        index: u16,
        /// The index of the next chain to be popped.
        next_avail: u16,
    },
    /// An entry of the avail ring names a descriptor that does not exist.
    Head(u16),
    /// A chain was made available again before it was used.
    HeadInFlight(u16),
    /// A descriptor's `next` names one that does not exist in its table.
    Next {
        /// Head of the chain.
        head: u16,
        /// The value.
        next: u16,
    },
    /// A chain is longer than its table, so it has a loop.
    Loop {
        /// Head of the chain.
        head: u16,
    },
    /// A readable descriptor follows a writable one.
    Order {
        /// Head of the chain.
        head: u16,
        /// Index of the readable one in its table.
        index: u16,
    },
    /// The lengths of a chain's descriptors sum up to more than 4 GiB.
    TooManyBytes {
        /// Head of the chain.
        head: u16,
    },
    /// An indirect descriptor, though the feature was not negotiated.
    IndirectRefused {
        /// Head of the chain.
        head: u16,
    },
    /// An indirect descriptor with a next one.
    IndirectNext {
        /// Head of the chain.
        head: u16,
    },
    /// An indirect descriptor inside an indirect table.
    IndirectNested {
        /// Head of the chain.
        head: u16,
    },
    /// The length of an indirect table is 0, not whole descriptors, or more of them than are allowed.
    IndirectLen {
        /// Head of the chain.
        head: u16,
        /// The length in bytes.
        len: u32,
    },
    /// An indirect table is not all in guest memory.
    IndirectUnmapped {
        /// Head of the chain.
        head: u16,
        /// Address of the table.
        addr: GuestAddr,
    },
}

impl fmt::Display for BadRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            BadRing::Size(size) => write!(f, "virtqueue size {size} is not allowed"),
            BadRing::Misaligned(area, addr) => write!(f, "{area} at {:#x} is misaligned", addr.0),
            BadRing::Unmapped(area, addr) => {
                write!(f, "{area} at {:#x} is not within one region of guest memory", addr.0)
            }
            BadRing::Overlap(a, b) => write!(f, "{a} and {b} overlap"),
            BadRing::AvailIndex { index, next_avail } => write!(
                f,
                "avail index {index} is more than the virtqueue's size ahead of {next_avail}"
            ),
            BadRing::Head(head) => write!(f, "avail ring names descriptor {head}, out of range"),
            BadRing::HeadInFlight(head) => {
                write!(f, "chain {head} was made available while in flight")
            }
            BadRing::Next { head, next } => {
                write!(f, "chain {head}: next descriptor {next} is out of range")
            }
            BadRing::Loop { head } => write!(f, "chain {head} is longer than its table"),
            BadRing::Order { head, index } => {
                write!(f, "chain {head}: readable descriptor {index} follows a writable one")
            }
            BadRing::TooManyBytes { head } => write!(f, "chain {head} is longer than 4 GiB"),
            BadRing::IndirectRefused { head } => {
                write!(f, "chain {head}: indirect descriptors were not negotiated")
            }
            BadRing::IndirectNext { head } => {
                write!(f, "chain {head}: an indirect descriptor has a next one")
            }
            BadRing::IndirectNested { head } => {
                write!(f, "chain {head}: an indirect table holds an indirect descriptor")
            }
            BadRing::IndirectLen { head, len } => {
                write!(f, "chain {head}: an indirect table of {len} bytes is not allowed")
            }
            BadRing::IndirectUnmapped { head, addr } => {
                write!(f, "chain {head}: indirect table at {:#x} is not in guest memory", addr.0)
            }
        }
    }
}

impl std::error::Error for BadRing {}
