//! L2 entries: what a cluster, or a subcluster, of the disk is.
//!
//! ```text
//!   standard    COPIED 63 | 0 62 | reserved | offset of a cluster 55..9 | reserved | reads as zeroes 0
//!   compressed       0 63 | 1 62 | further sectors | offset in bytes
//!   extended    a standard entry without bit 0, and then   reads as zeroes 63..32 | allocated 31..0      one bit for each subcluster
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "L2 table entry", "Extended L2 Entries".

use super::header::{EXTENDED_L2, EXTERNAL_DATA, Header};
use crate::SECTOR;

/// Used once, so that writes may go there.
pub(crate) const COPIED: u64 = 1 << 63;
/// Deflated data, and where.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// In an entry of version 3 without subclusters.
pub(crate) const READS_ZERO: u64 = 1;
/// Bits 9 to 55: an offset.
pub(crate) const OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;
/// Binary logarithm of the subclusters of a cluster.
const SUBCLUSTER_ORDER: u32 = 5;
const ALL_SUBCLUSTERS: u64 = 0xFFFF_FFFF;

/// The words of an entry; the second is 0 where entries are not extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    pub word: u64,
    pub bits: u64,
}

/// What of the header the meaning of entries depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub cluster_bits: u32,
    pub is_extended: bool,
    /// Entries can say "reads as zeroes".
    pub has_zero: bool,
    /// Data is in a file of its own, at its place on the disk.
    pub is_external: bool,
}

/// Where something in the file that an entry refers to is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Nothing,
    /// A cluster, and whether it is this entry's alone.
    Cluster {
        at: u64,
        is_own: bool,
    },
    /// Compressed data: whole sectors, from the one in which it begins.
    Compressed {
        at: u64,
        bytes: u64,
    },
}

/// Where the table is that an L1 entry refers to, or 0; `None` if it contradicts the specification.
pub(crate) fn table_of(entry: u64, cluster_bits: u32) -> Option<u64> {
    let at = entry & OFFSET;
    let good = entry & !(OFFSET | COPIED) == 0 && at & ((1 << cluster_bits) - 1) == 0;
    good.then_some(at)
}

/// What a grain reads as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    Data,
    Zero,
    Unallocated,
    Compressed,
}

impl Layout {
    pub fn new(header: &Header) -> Layout {
        Layout {
            cluster_bits: header.cluster_bits,
            is_extended: header.incompatible & EXTENDED_L2 != 0,
            has_zero: header.version >= 3,
            is_external: header.incompatible & EXTERNAL_DATA != 0,
        }
    }

    pub fn cluster_bytes(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Words of an entry.
    pub fn entry_words(self) -> usize {
        if self.is_extended { 2 } else { 1 }
    }

    /// Binary logarithm of the bytes that can be mapped for themselves.
    pub fn grain_bits(self) -> u32 {
        if self.is_extended { self.cluster_bits - SUBCLUSTER_ORDER } else { self.cluster_bits }
    }

    /// Bits, one for each grain, of a range within a cluster: whole grains.
    pub fn mask(self, from: u64, to: u64) -> u64 {
        let below = |n: u64| if n >= 64 { u64::MAX } else { (1u64 << n) - 1 };
        below(to >> self.grain_bits()) & !below(from >> self.grain_bits())
    }

    /// What the entry of the cluster at `disk` refers to; `None` if it contradicts the specification.
    pub fn target(self, entry: Entry, disk: u64) -> Option<Target> {
        let word = entry.word;
        if word & COMPRESSED != 0 {
            return self.compressed(entry);
        }
        let zero = if self.has_zero && !self.is_extended { READS_ZERO } else { 0 };
        let at = word & OFFSET;
        if word & !(OFFSET | COPIED | zero) != 0 || at & (self.cluster_bytes() - 1) != 0 {
            return None;
        }
        let (is_own, has_data) = (word & COPIED != 0, entry.bits & ALL_SUBCLUSTERS);
        if has_data & entry.bits >> 32 != 0 {
            return None;
        }
        match at {
            // The first cluster of a data file is at offset 0.
            0 if !(self.is_external && is_own) => {
                (has_data == 0 && !is_own).then_some(Target::Nothing)
            }
            at if self.is_external && at != disk => None,
            at => Some(Target::Cluster { at, is_own }),
        }
    }

    fn compressed(self, entry: Entry) -> Option<Target> {
        if self.is_external || entry.word & COPIED != 0 || entry.bits != 0 {
            return None;
        }
        let offset_bits = 62 - (self.cluster_bits - 8);
        let at = entry.word & ((1 << offset_bits) - 1);
        let further = (entry.word & !(COPIED | COMPRESSED)) >> offset_bits;
        // Offsets in a file end before bit 56.
        if at >> 56 != 0 {
            return None;
        }
        let start = at / SECTOR * SECTOR;
        Some(Target::Compressed { at, bytes: start + (further + 1) * SECTOR - at })
    }

    /// What the grain number `grain` of a cluster reads as, and whether the cluster that its entry refers to may hold data of it.
    pub fn reads(self, entry: Entry, target: Target, grain: u64) -> Reads {
        if let Target::Compressed { .. } = target {
            return Reads::Compressed;
        }
        let (is_zero, is_data) = match self.is_extended {
            true => (entry.bits >> (32 + grain) & 1 != 0, entry.bits >> grain & 1 != 0),
            false => (entry.word & READS_ZERO != 0, target != Target::Nothing),
        };
        match (is_zero, is_data) {
            (true, _) => Reads::Zero,
            (false, true) => Reads::Data,
            (false, false) => Reads::Unallocated,
        }
    }

    /// Whether some part of the entry's cluster holds data.
    pub fn has_data(self, entry: Entry) -> bool {
        match self.is_extended {
            true => entry.bits & ALL_SUBCLUSTERS != 0,
            false => entry.word & READS_ZERO == 0,
        }
    }

    /// The entry once the grains of `mask` have their data in the cluster at `at`, which is its own; others keep what they are if it was there before.
    pub fn mapped(self, before: Entry, at: u64, mask: u64) -> Entry {
        let word = at | COPIED;
        if !self.is_extended {
            return Entry { word, bits: 0 };
        }
        let stays = before.word & OFFSET == at && before.word & COPIED != 0;
        let data = if stays { before.bits & ALL_SUBCLUSTERS } else { 0 };
        let zero = before.bits >> 32 & !mask;
        Entry { word, bits: zero << 32 | data | mask }
    }

    /// The entry once the grains of `mask` read as zeroes. `hides`: they must say so, because something would show through. `keeps`: the cluster stays
    /// even if it holds nothing any more.
    pub fn zeroed(self, before: Entry, mask: u64, hides: bool, keeps: bool) -> Entry {
        let (flag, cluster) = (if hides { READS_ZERO } else { 0 }, before.word & (OFFSET | COPIED));
        let is_compressed = before.word & COMPRESSED != 0;
        let has_cluster = !is_compressed && before.word & OFFSET != 0;
        if !self.is_extended {
            return match keeps && has_cluster {
                true => Entry { word: cluster | READS_ZERO, bits: 0 },
                false => Entry { word: flag, bits: 0 },
            };
        }
        let data = before.bits & ALL_SUBCLUSTERS & !mask;
        let zero = before.bits >> 32 | mask;
        let bits = zero << 32 | data;
        match has_cluster && (data != 0 || keeps) {
            true => Entry { word: cluster, bits },
            false if hides => Entry { word: 0, bits },
            false => Entry { word: 0, bits: (before.bits >> 32 & !mask) << 32 },
        }
    }

    /// The entry of a compressed cluster: `bytes` bytes from byte `at` of the file on.
    pub fn compressed_at(self, at: u64, bytes: u64) -> Entry {
        let further = (at + bytes - 1) / SECTOR - at / SECTOR;
        let offset_bits = 62 - (self.cluster_bits - 8);
        Entry { word: COMPRESSED | further << offset_bits | at, bits: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K64: Layout =
        Layout { cluster_bits: 16, is_extended: false, has_zero: true, is_external: false };
    const SUB: Layout = Layout { is_extended: true, ..K64 };

    fn word(word: u64) -> Entry {
        Entry { word, bits: 0 }
    }

    #[test]
    fn what_contradicts_the_specification_has_no_target() {
        for bad in
            [1 << 56, 1 << 61, 2, 0x100, 0x50200, 0x50000 | 0x10, COPIED, COPIED | COMPRESSED]
        {
            assert_eq!(K64.target(word(bad), 0), None, "{bad:#x}");
        }
        let v2 = Layout { has_zero: false, ..K64 };
        assert_eq!(v2.target(word(1), 0), None, "no zero flag in version 2");
        assert_eq!(SUB.target(word(1), 0), None, "nor in extended entries");
        let both = Entry { word: 0x50000 | COPIED, bits: 1 << 32 | 1 };
        assert_eq!(SUB.target(both, 0), None);
        assert_eq!(SUB.target(Entry { word: 0, bits: 4 }, 0), None, "data, but nowhere");
        let external = Layout { is_external: true, ..K64 };
        assert_eq!(external.target(word(0x50000 | COPIED), 0x60000), None);
        let first = Target::Cluster { at: 0, is_own: true };
        assert_eq!(external.target(word(COPIED), 0), Some(first));
    }

    #[test]
    fn a_compressed_cluster_ends_with_a_sector() {
        let entry = K64.compressed_at(0x50123, 1000);
        assert_eq!(entry.word, COMPRESSED | 2 << 54 | 0x50123);
        let expected = Target::Compressed { at: 0x50123, bytes: 0x600 - 0x123 };
        assert_eq!(K64.target(entry, 0), Some(expected));
        let small = Layout { cluster_bits: 9, ..K64 };
        let entry = small.compressed_at(0x3FE, 3);
        assert_eq!(entry.word, COMPRESSED | 1 << 61 | 0x3FE);
    }

    #[test]
    fn grains_are_mapped_and_zeroed_one_by_one() {
        let mask = SUB.mask(2048, 3 * 2048);
        assert_eq!((mask, SUB.mask(0, 65536), K64.mask(0, 65536)), (6, ALL_SUBCLUSTERS, 1));
        let entry = SUB.mapped(Entry { word: 0, bits: 0xFF << 32 }, 0x50000, mask);
        assert_eq!(entry, Entry { word: 0x50000 | COPIED, bits: 0xF9 << 32 | 6 });
        let more = SUB.mapped(entry, 0x50000, 1 << 31);
        assert_eq!(more.bits, 0xF9 << 32 | 1 << 31 | 6);
        let moved = SUB.mapped(more, 0x70000, ALL_SUBCLUSTERS);
        assert_eq!(moved, Entry { word: 0x70000 | COPIED, bits: ALL_SUBCLUSTERS });
        let less = SUB.zeroed(entry, 2, true, false);
        assert_eq!(less, Entry { word: 0x50000 | COPIED, bits: 0xFB << 32 | 4 });
        assert_eq!(SUB.zeroed(less, 4, true, false), Entry { word: 0, bits: 0xFF << 32 });
        assert_eq!(SUB.zeroed(less, 4, true, true).word, 0x50000 | COPIED);
        assert_eq!(SUB.zeroed(less, 4, false, false), Entry { word: 0, bits: 0xFB << 32 });
    }

    #[test]
    fn a_zeroed_cluster_stays_or_goes() {
        let data = word(0x50000 | COPIED);
        assert_eq!(K64.zeroed(data, 1, true, true), word(0x50000 | COPIED | 1));
        assert_eq!(K64.zeroed(data, 1, true, false), word(1));
        assert_eq!(K64.zeroed(data, 1, false, false), word(0));
        assert_eq!(K64.zeroed(K64.compressed_at(0x50123, 9), 1, true, true), word(1));
    }
}
