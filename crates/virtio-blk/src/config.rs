//! The configuration space: what a driver reads to learn about the disk.
//!
//! ```text
//!  0 capacity u64            | 20 blk_size u32              | 36 max_discard_sectors u32
//!  8 size_max u32            | 24 physical_block_exp u8     | 40 max_discard_seg u32
//! 12 seg_max u32             | 25 alignment_offset u8       | 44 discard_sector_alignment u32
//! 16 geometry, 4 bytes of 0  | 26 min_io_size u16           | 48 max_write_zeroes_sectors u32
//!                            | 28 opt_io_size u32           | 52 max_write_zeroes_seg u32
//!                            | 32 writeback u8, 33 unused   | 56 write_zeroes_may_unmap u8, 57 unused
//!                            | 34 num_queues u16            | 60 secure erase and zones: 0 to the end at 96
//! ```
//!
//! All fields are little-endian. Specification: VIRTIO 1.3, section 5.2.4.

use crate::{Features, RANGES_MAX};
use std::fmt;

/// What may be discarded at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardInfo {
    /// Most sectors in one range.
    pub max_sectors: u32,
    /// Most ranges in one request, from 1 to [`RANGES_MAX`].
    pub max_seg: u32,
    /// The alignment in sectors that discards work best with.
    pub sector_alignment: u32,
}

/// What may be zeroed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteZeroesInfo {
    /// Most sectors in one range.
    pub max_sectors: u32,
    /// Most ranges in one request, from 1 to [`RANGES_MAX`].
    pub max_seg: u32,
    /// The device may unmap what it is asked to zero, if the driver allows it too.
    pub may_unmap: bool,
}

/// A disk, as a driver is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Size in sectors of 512 bytes.
    pub capacity_sectors: u64,
    /// Logical block size in bytes: what requests are a multiple of. A power of two from 512 on.
    pub blk_size: u32,
    /// A physical block is `2^physical_block_exp` logical ones.
    pub physical_block_exp: u8,
    /// Logical blocks before the first aligned physical one.
    pub alignment_offset: u8,
    /// The smallest I/O without a penalty, in logical blocks.
    pub min_io_size: u16,
    /// The best I/O size, in logical blocks; 0 for none.
    pub opt_io_size: u32,
    /// Request queues.
    pub num_queues: u16,
    /// Most data segments in one request.
    pub seg_max: u32,
    /// Most bytes in one data segment; `None` for no limit.
    pub size_max: Option<u32>,
    /// Limits of discard; `None` if the disk has no such command.
    pub discard: Option<DiscardInfo>,
    /// Limits of write zeroes; `None` if the disk has no such command.
    pub write_zeroes: Option<WriteZeroesInfo>,
    /// The disk has a volatile write cache at first: a completed write is durable only after a flush.
    pub wce: bool,
    /// Nothing can be written.
    pub read_only: bool,
}

impl DiskInfo {
    /// The block features that a device with this disk offers. Those of the ring and the transport are not the disk's to decide.
    pub fn features(&self) -> Features {
        let mut offered = Features::VERSION_1
            | Features::SEG_MAX
            | Features::BLK_SIZE
            | Features::TOPOLOGY
            | Features::FLUSH
            | Features::CONFIG_WCE;
        offered.set(Features::SIZE_MAX, self.size_max.is_some());
        offered.set(Features::MQ, self.num_queues > 1);
        offered.set(Features::RO, self.read_only);
        offered.set(Features::DISCARD, self.discard.is_some());
        offered.set(Features::WRITE_ZEROES, self.write_zeroes.is_some());
        offered
    }
}

/// The driver wrote what it may not, or where it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadConfigWrite {
    /// Where it wrote, in bytes.
    pub offset: u32,
    /// How many bytes.
    pub len: usize,
}

impl fmt::Display for BadConfigWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "write of {} bytes at {:#x} of the configuration space", self.len, self.offset)
    }
}

impl std::error::Error for BadConfigWrite {}

/// The configuration space of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    capacity_sectors: u64,
    writeback: bool,
    bytes: [u8; ConfigSpace::LEN],
}

/// Offset of the one byte that a driver may write.
const WRITEBACK: u32 = 32;

impl ConfigSpace {
    /// Length in bytes of all fields that the specification knows.
    pub const LEN: usize = 96;

    /// The space of `disk`.
    pub fn new(disk: &DiskInfo) -> ConfigSpace {
        let mut config = ConfigSpace {
            capacity_sectors: disk.capacity_sectors,
            writeback: disk.wce,
            bytes: [0; ConfigSpace::LEN],
        };
        config.encode(disk);
        config
    }

    /// Fills `into` with what lies at `offset`; zeroes beyond the end.
    pub fn read(&self, offset: u32, into: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let from = self.bytes.get(start..).unwrap_or_default();
        for (i, byte) in into.iter_mut().enumerate() {
            *byte = from.get(i).copied().unwrap_or(0);
        }
    }

    /// The driver writes `data` at `offset`. Only the write cache can be switched, by writing 0 or 1 to its byte.
    ///
    /// # Errors
    ///
    /// [`BadConfigWrite`] for anything else; nothing changes.
    pub fn write(&mut self, offset: u32, data: &[u8]) -> Result<(), BadConfigWrite> {
        match (offset, data) {
            (WRITEBACK, [value @ (0 | 1)]) => {
                self.set_writeback(*value == 1);
                Ok(())
            }
            _ => Err(BadConfigWrite { offset, len: data.len() }),
        }
    }

    /// Whether the write cache is on: if not, a write completes only once it is durable.
    pub fn writeback(&self) -> bool {
        self.writeback
    }

    /// Switches the write cache, as when the driver could not negotiate [`Features::CONFIG_WCE`].
    pub fn set_writeback(&mut self, on: bool) {
        self.writeback = on;
        if let Some(byte) = self.bytes.get_mut(32) {
            *byte = u8::from(on);
        }
    }

    /// Size of the disk in sectors.
    pub fn capacity_sectors(&self) -> u64 {
        self.capacity_sectors
    }

    /// The disk was resized. The driver must be told (a configuration change), and the queues' [`crate::Limits`] as well.
    pub fn set_capacity(&mut self, sectors: u64) {
        self.capacity_sectors = sectors;
        if let Some(field) = self.bytes.first_chunk_mut() {
            *field = sectors.to_le_bytes();
        }
    }

    fn encode(&mut self, disk: &DiskInfo) {
        let discard =
            disk.discard.unwrap_or(DiscardInfo { max_sectors: 0, max_seg: 0, sector_alignment: 0 });
        let zeroes = disk.write_zeroes.unwrap_or(WriteZeroesInfo {
            max_sectors: 0,
            max_seg: 0,
            may_unmap: false,
        });
        let mut left = &mut self.bytes[..];
        let mut put = |field: &[u8]| {
            if let Some((here, rest)) = std::mem::take(&mut left).split_at_mut_checked(field.len())
            {
                here.copy_from_slice(field);
                left = rest;
            }
        };
        put(&disk.capacity_sectors.to_le_bytes());
        put(&disk.size_max.unwrap_or(0).to_le_bytes());
        put(&disk.seg_max.to_le_bytes());
        put(&[0; 4]);
        put(&disk.blk_size.to_le_bytes());
        put(&[disk.physical_block_exp, disk.alignment_offset]);
        put(&disk.min_io_size.to_le_bytes());
        put(&disk.opt_io_size.to_le_bytes());
        put(&[u8::from(disk.wce), 0]);
        put(&disk.num_queues.to_le_bytes());
        put(&discard.max_sectors.to_le_bytes());
        put(&discard.max_seg.min(RANGES_MAX).to_le_bytes());
        put(&discard.sector_alignment.to_le_bytes());
        put(&zeroes.max_sectors.to_le_bytes());
        put(&zeroes.max_seg.min(RANGES_MAX).to_le_bytes());
        put(&[u8::from(zeroes.may_unmap)]);
    }
}
