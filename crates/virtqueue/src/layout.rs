//! The bytes of a split virtqueue.
//!
//! ```text
//! descriptor table         avail ring                        used ring
//! 16 bytes each            0    flags                        0    flags
//!  0  addr   u64           2    idx                          2    idx
//!  8  len    u32           4    ring[size]: head, u16        4    ring[size]: id u32, len u32
//! 12  flags  u16           4+2s used_event                   4+8s avail_event
//! 14  next   u16
//! ```
//!
//! All fields are little-endian. Specification: VIRTIO 1.3, sections 2.7.5, 2.7.6 and 2.7.8.

use guest_mem::GuestSlice;

/// The largest ring the specification allows.
pub const SIZE_MAX: u16 = 32768;

pub(crate) const DESC_BYTES: u64 = 16;
pub(crate) const DESC_ALIGN: usize = 16;
pub(crate) const AVAIL_ALIGN: usize = 2;
pub(crate) const USED_ALIGN: usize = 4;

/// Offset of `flags` in the avail and in the used ring.
pub(crate) const RING_FLAGS: usize = 0;
/// Offset of `idx` in the avail and in the used ring.
pub(crate) const RING_IDX: usize = 2;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` and `VIRTQ_USED_F_NO_NOTIFY`: the other side need not call.
pub(crate) const RING_F_NO_CALL: u16 = 1;

pub(crate) const DESC_F_NEXT: u16 = 1;
pub(crate) const DESC_F_WRITE: u16 = 2;
pub(crate) const DESC_F_INDIRECT: u16 = 4;

/// Length in bytes of a descriptor table of `entries` entries.
pub(crate) fn desc_len(entries: u16) -> u64 {
    u64::from(entries).wrapping_mul(DESC_BYTES)
}

/// Length in bytes of an avail ring, `used_event` included.
pub(crate) fn avail_len(size: u16) -> u64 {
    u64::from(size).wrapping_mul(2).wrapping_add(6)
}

/// Length in bytes of a used ring, `avail_event` included.
pub(crate) fn used_len(size: u16) -> u64 {
    u64::from(size).wrapping_mul(8).wrapping_add(6)
}

/// Offset of entry `slot` of the avail ring; of `used_event` for `slot == size`.
#[inline]
pub(crate) fn avail_entry(slot: u16) -> usize {
    usize::from(slot).wrapping_mul(2).wrapping_add(4)
}

/// Offset of entry `slot` of the used ring; of `avail_event` for `slot == size`.
#[inline]
pub(crate) fn used_entry(slot: u16) -> usize {
    usize::from(slot).wrapping_mul(8).wrapping_add(4)
}

/// Whether moving an index from `old` to `new` passes the point at which the other side wants to be called
/// (VIRTIO 1.3 section 2.7.10: `vring_need_event`).
#[inline]
pub(crate) fn passes_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// One descriptor, as it was at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Desc {
    /// Reads entry `index` of `table` in two loads, each of them made once.
    #[inline]
    pub fn read(table: &GuestSlice, index: u16) -> Desc {
        let at = usize::from(index).wrapping_mul(16);
        Desc::from_words(table.read_u64(at), table.read_u64(at.wrapping_add(8)))
    }

    /// Writes entry `index` of `table`.
    #[inline]
    pub fn write<M>(self, table: &GuestSlice<M>, index: usize) {
        let at = index.wrapping_mul(16);
        table.write_u64(at, self.addr);
        let [a, b, c, d] = self.len.to_le_bytes();
        let [e, f] = self.flags.to_le_bytes();
        let [g, h] = self.next.to_le_bytes();
        table.write_u64(at.wrapping_add(8), u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }

    #[inline]
    pub fn from_words(addr: u64, rest: u64) -> Desc {
        let [a, b, c, d, e, f, g, h] = rest.to_le_bytes();
        Desc {
            addr,
            len: u32::from_le_bytes([a, b, c, d]),
            flags: u16::from_le_bytes([e, f]),
            next: u16::from_le_bytes([g, h]),
        }
    }

    #[inline]
    pub fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}
