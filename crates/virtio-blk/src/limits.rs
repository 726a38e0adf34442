//! The rules that a disk's requests must keep.

use crate::{DiskInfo, Features, SECTOR_BYTES};

/// Most ranges that a discard or write zeroes request can have, whatever a disk would like to announce.
pub const RANGES_MAX: u32 = 16;

/// What was announced of a disk, joined with what the driver negotiated. Each queue has a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of the disk in sectors.
    pub capacity_sectors: u64,
    /// Reads, writes and write zeroes start and end on a multiple of this, in bytes; a power of two from 512 on.
    pub blk_size: u32,
    /// Most data segments in one request.
    pub seg_max: u32,
    /// Most bytes in one data segment.
    pub size_max: u32,
    /// Most sectors and most ranges of a discard; `None` if the command is not there.
    pub discard: Option<RangeLimits>,
    /// The same of write zeroes.
    pub write_zeroes: Option<RangeLimits>,
    /// Nothing may be written.
    pub read_only: bool,
}

/// Limits of a request made of ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLimits {
    /// Most sectors in one range.
    pub max_sectors: u32,
    /// Most ranges in one request.
    pub max_seg: u32,
}

impl Limits {
    /// The rules of `disk` for a driver that negotiated `features`.
    pub fn new(disk: &DiskInfo, features: Features) -> Limits {
        let ranges = |max_sectors, max_seg: u32| RangeLimits {
            max_sectors,
            max_seg: max_seg.min(RANGES_MAX),
        };
        let discard = disk.discard.filter(|_| features.contains(Features::DISCARD));
        let zeroes = disk.write_zeroes.filter(|_| features.contains(Features::WRITE_ZEROES));
        Limits {
            capacity_sectors: disk.capacity_sectors,
            blk_size: disk.blk_size,
            seg_max: disk.seg_max,
            size_max: disk.size_max.unwrap_or(u32::MAX),
            discard: discard.map(|d| ranges(d.max_sectors, d.max_seg)),
            write_zeroes: zeroes.map(|z| ranges(z.max_sectors, z.max_seg)),
            read_only: disk.read_only,
        }
    }

    /// Whether `sectors` sectors from `sector` on are all on the disk.
    #[inline]
    pub(crate) fn on_disk(&self, sector: u64, sectors: u64) -> bool {
        sector.checked_add(sectors).is_some_and(|end| end <= self.capacity_sectors)
    }

    /// Whether a number of sectors is whole logical blocks.
    #[inline]
    pub(crate) fn whole_blocks(&self, sectors: u64) -> bool {
        let block = u64::from(self.blk_size) / SECTOR_BYTES;
        sectors & block.saturating_sub(1) == 0
    }
}
