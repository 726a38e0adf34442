//! The kinds of byte offset in the stack, as types that do not mix.
//!
//! | type                                 | counts from                    | who makes one                          |
//! |--------------------------------------|--------------------------------|----------------------------------------|
//! | [`DiskOffset`]                       | start of the virtual disk      | an export, from a request it has parsed |
//! | [`FileOffset`]                       | start of an image file         | a format's mapping code, only          |
//! | [`GuestAddr`](guest_mem::GuestAddr)  | start of guest-physical memory | the virtqueue, from a descriptor       |
//!
//! Lengths stay plain `u64` bytes; a count of anything else says so in its name (`sectors`, `clusters`).

/// Bytes of a sector: the unit of virtio-blk and of the kernel, whatever the disk's own block size is.
pub const SECTOR: u64 = 512;

/// Byte offset into the virtual disk the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskOffset(pub u64);

/// Byte offset into an image file on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileOffset(pub u64);
