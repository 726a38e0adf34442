//! An independent checker and reader of qcow2 images, written from the specification alone.
//!
//! ```text
//!   header --> L1 table ------> L2 tables --> data clusters, compressed clusters      (so has each snapshot: an L1 table of its own)
//!      |-----> refcount table -> refcount blocks: a count of references for each cluster of the file
//!      |-----> snapshot table -> L1 tables
//!      `-----> bitmap directory -> bitmap tables -> bitmap data
//!
//!   L1 entry:    COPIED 63 | reserved | offset of an L2 table 55..9 | reserved
//!   L2 entry:    COPIED 63 | 0 | reserved | offset of a cluster 55..9 | reserved | reads as zeroes 0
//!                0         | 1 | sectors - 1 | offset, in bytes                              compressed
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`. A check counts every reference to every cluster of the file anew, and compares:
//!
//! - more is stored than there are: a leak, and no error;
//! - less is stored: an error, a cluster that somebody uses will be given to somebody else;
//! - a cluster that serves two purposes (metadata of two kinds, metadata and data): an error, whatever is stored;
//! - an entry that leads out of the file, is unaligned or has reserved bits: an error, and a leading one is not followed;
//! - COPIED that does not say "the stored count is one": an error.
//!
//! Not damage, and counted apart: leaks, entries for what lies beyond the disk (that is where a VM's state lives), and clusters that two
//! entries of the active image share with a count of two, which the specification allows and no writer makes.
//!
//! Bitmaps count only if their autoclear bit says that they are consistent. Data in an external file are not counted.
//!
//! Nothing here panics on any bytes. The time is bounded by the file's length, since no L1, L2 or refcount block is read more than twice;
//! the memory by the number of clusters referenced.

use crate::ImageFile;
use header::{CORRUPT, DATA_FILE, DIRTY, EXTENDED_L2, Fields, Header};
use std::fmt;
use std::ops::Range;

mod check;
mod header;
#[cfg(test)]
mod tests;

pub use header::HeaderFault;

/// Bits 9 to 55: the offset in an entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// In an L2 entry of version 3 without subclusters.
const READS_ZERO: u64 = 1;
/// Bits of an L1 entry, or of a standard L2 entry, that are neither offset nor flag; bit 0 of the latter has rules of its own.
const L1_RESERVED: u64 = !(OFFSET | COPIED);
const L2_RESERVED: u64 = !(OFFSET | COPIED | COMPRESSED | READS_ZERO);
const SUBCLUSTERS: u64 = 32;
const SECTOR: u64 = 512;

/// What a cluster of the file is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The first cluster.
    Header,
    /// The active L1 table.
    L1Table,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// The snapshot table.
    SnapshotTable,
    /// A snapshot's L1 table.
    SnapshotL1Table,
    /// The bitmap directory.
    BitmapDirectory,
    /// A bitmap's table.
    BitmapTable,
    /// A cluster of a bitmap.
    BitmapData,
    /// The LUKS header.
    CryptHeader,
    /// An L2 table.
    L2Table,
    /// A cluster of the disk.
    Data,
    /// Compressed clusters of the disk, or parts of some.
    Compressed,
}

/// What is wrong with an entry or a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// A reserved bit is set, or a flag that must not be.
    ReservedBits,
    /// Not at a cluster boundary.
    Unaligned,
    /// It points at or beyond the end of the file.
    BeyondFile,
    /// It has fewer references stored than there are.
    Undercounted {
        /// What is stored.
        stored: u64,
        /// What there is.
        references: u64,
    },
    /// It serves two purposes.
    Overlap(Kind, Kind),
    /// Metadata of this kind twice.
    Twice(Kind),
    /// COPIED is set and the stored count is not one, or is not and it is.
    Copied {
        /// What is stored.
        stored: u64,
    },
    /// A subcluster is both allocated and zero, or allocated without a cluster.
    Subclusters,
    /// Its place in the external data file is not its place on the disk, or it is compressed.
    DataFile,
    /// A table of snapshots or bitmaps is not as the specification has it, or ends beyond the file.
    Malformed,
}

/// Where damage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An entry of the active L1 table.
    L1(u64),
    /// An entry of a snapshot's L1 table: which snapshot, its index.
    SnapshotL1(u32, u64),
    /// An entry of the L2 table at an offset.
    L2(u64, u64),
    /// An entry of the refcount table.
    RefcountTable(u64),
    /// An entry of the snapshot table.
    Snapshot(u32),
    /// An entry of the bitmap directory.
    Bitmap(u32),
    /// An entry of a bitmap's table.
    BitmapTable(u32, u64),
    /// The LUKS header.
    CryptHeader,
    /// The cluster of the file at an offset.
    Cluster,
}

/// Something wrong; the value of a cluster is its offset.
pub type Damage = crate::Damage<Place, DamageKind>;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// If there are any, nothing else was looked at.
    pub header: Vec<HeaderFault>,
    /// The first few damages.
    pub damage: Vec<Damage>,
    /// How many there are.
    pub damage_count: u64,
    /// Of these, counts that are too low.
    pub undercounted: u64,
    /// Of these, COPIED flags that disagree with the stored count.
    pub copied_wrong: u64,
    /// Entries of the active image with COPIED whose table or cluster has other references: a write would go into all of them.
    pub copied_shared: u64,
    /// Clusters or L2 tables that two entries of the active image lead to.
    pub doubly_used: u64,
    /// Clusters of the file with more references stored than there are.
    pub leaked_clusters: u64,
    /// References stored for clusters beyond the end of the file, and nobody there.
    pub leaked_beyond_file: u64,
    /// Clusters with a reference.
    pub referenced_clusters: u64,
    /// Entries for compressed clusters, in all L2 tables.
    pub compressed_clusters: u64,
    /// Entries of the active image, of both levels, for what lies beyond the end of the disk.
    pub beyond_disk: u64,
    /// The header says that references may be wrong.
    pub is_dirty: bool,
    /// The header says that anything may be wrong.
    pub is_corrupt: bool,
}

impl Report {
    /// Whether there is no error; leaks are none.
    pub fn is_sound(&self) -> bool {
        self.header.is_empty() && self.damage_count == 0
    }

    /// Judges what a crash left: it opens (I1), and all that is wrong is that more references are stored than there are (I2, I3). Then
    /// COPIED may disagree with what is stored, but must not be on what has another reference. An image marked dirty may have any
    /// references stored, for they are to be made anew: but not out of its entries if these lead out of the file or into each other.
    pub fn judge_crash(&self) -> Result<(), String> {
        if !self.header.is_empty() {
            return Err(format!("I1: the image does not open: {:?}", self.header));
        }
        let excused = if self.is_dirty { self.undercounted } else { 0 } + self.copied_wrong;
        let listed = || Damage::words(&self.damage);
        let says = if self.is_dirty { "a dirty image" } else { "an image that says it is clean" };
        if self.is_corrupt {
            Err(format!("I2: the image is marked corrupt{}", listed()))
        } else if self.damage_count > excused {
            Err(format!("I2: {} errors in {says}{}", self.damage_count - excused, listed()))
        } else if self.doubly_used > 0 {
            Err(format!("I2: {} clusters used twice in {says}{}", self.doubly_used, listed()))
        } else if self.copied_shared > 0 {
            Err(format!("I2: {} shared clusters with COPIED in {says}", self.copied_shared))
        } else {
            Ok(())
        }
    }
}

/// Checks an image.
pub fn check(file: &(impl ImageFile + ?Sized)) -> Report {
    match Qcow2::open(file) {
        Ok(image) => image.check(),
        Err(header) => Report { header, ..Report::default() },
    }
}

/// What the tables say of a disk offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// The backing file's, or zeroes.
    Unallocated,
    /// Zeroes.
    Zero,
    /// The byte at this offset of the file.
    Data(u64),
    /// The byte at this offset of the external data file.
    DataFile(u64),
    /// In a compressed cluster.
    Compressed {
        /// Its first byte.
        at: u64,
        /// The sectors that it is in.
        sectors: u64,
    },
}

/// Why the disk cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// A wrong entry.
    Damage(Damage),
    /// The cluster at this disk offset is compressed, and there is no decoder here.
    Compressed(u64),
    /// It is encrypted.
    Encrypted,
    /// It is in the external data file.
    DataFile(u64),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Damage(damage) => damage.fmt(f),
            other => write!(f, "{other:x?}"),
        }
    }
}

/// What an L2 entry leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Nothing,
    /// A cluster, with data or preallocated.
    Cluster(u64),
    /// First byte and number of sectors.
    Compressed(u64, u64),
}

/// An image with a usable header.
#[derive(Debug)]
pub struct Qcow2<'a, F: ?Sized> {
    file: &'a F,
    file_len: u64,
    header: Header,
}

impl<'a, F: ImageFile + ?Sized> Qcow2<'a, F> {
    /// Reads the header. Gives all that is wrong with it, as far as one fault does not hide another.
    pub fn open(file: &'a F) -> Result<Qcow2<'a, F>, Vec<HeaderFault>> {
        Header::parse(file).map(|header| Qcow2 { file, file_len: file.len(), header })
    }

    /// The disk's size in bytes.
    pub fn disk_size(&self) -> u64 {
        self.header.disk_size
    }

    /// Whether the header says that references may be wrong.
    pub fn is_dirty(&self) -> bool {
        self.header.has(DIRTY)
    }

    /// Whether it has a backing file.
    pub fn has_backing(&self) -> bool {
        self.header.has_backing
    }

    /// Goes through everything.
    pub fn check(&self) -> Report {
        check::Check::run(self).report
    }

    /// The parts of the file that hold metadata; what damaged entries point at is not among them.
    pub fn metadata(&self) -> Vec<Range<u64>> {
        let cluster = self.header.cluster();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for at in check::Check::run(self).metadata_clusters() {
            match ranges.last_mut() {
                Some(last) if last.end == at => last.end += cluster,
                _ => ranges.push(at..at + cluster),
            }
        }
        ranges
    }

    fn fields(&self) -> Fields<'a, F> {
        Fields(self.file)
    }

    /// What is wrong with where an entry points.
    fn fault_of_offset(&self, at: u64) -> Option<DamageKind> {
        if !at.is_multiple_of(self.header.cluster()) {
            Some(DamageKind::Unaligned)
        } else if at >= self.file_len {
            Some(DamageKind::BeyondFile)
        } else {
            None
        }
    }

    /// What is wrong with an entry of an L1 table that is not 0. Nothing is behind one with reserved bits and no offset.
    fn fault_of_l1(&self, value: u64) -> Option<DamageKind> {
        let at = value & OFFSET;
        if value & L1_RESERVED != 0 || at == 0 {
            Some(DamageKind::ReservedBits)
        } else {
            self.fault_of_offset(at)
        }
    }

    fn target(&self, value: u64) -> Target {
        if value & COMPRESSED == 0 {
            return match value & OFFSET {
                // At 0 is the header, or the first cluster of a data file.
                0 if !self.header.has(DATA_FILE) || value & COPIED == 0 => Target::Nothing,
                at => Target::Cluster(at),
            };
        }
        let offset_bits = 62 - (self.header.cluster_bits - 8);
        let descriptor = value & !(COPIED | COMPRESSED);
        let at = descriptor & ((1 << offset_bits) - 1);
        Target::Compressed(at, (descriptor >> offset_bits) + 1)
    }

    /// What is wrong with an L2 entry. `disk_offset` is that of its cluster, if it is known.
    fn fault_of_l2(
        &self,
        value: u64,
        subclusters: u64,
        disk_offset: Option<u128>,
    ) -> Option<DamageKind> {
        let is_extended = self.header.has(EXTENDED_L2);
        match self.target(value) {
            Target::Compressed(..) if self.header.has(DATA_FILE) => Some(DamageKind::DataFile),
            Target::Compressed(at, sectors) => {
                let end = (at & !(SECTOR - 1)) + sectors * SECTOR;
                let last_cluster = (end - 1) & !(self.header.cluster() - 1);
                if value & COPIED != 0 || at >> 56 != 0 || subclusters != 0 {
                    Some(DamageKind::ReservedBits)
                } else {
                    (last_cluster >= self.file_len).then_some(DamageKind::BeyondFile)
                }
            }
            target => {
                let (allocated, zero) = (subclusters & u64::from(u32::MAX), subclusters >> 32);
                let no_zero_bit = is_extended || self.header.version == 2;
                let is_stray = target == Target::Nothing && value & COPIED != 0;
                if value & L2_RESERVED != 0 || no_zero_bit && value & READS_ZERO != 0 || is_stray {
                    return Some(DamageKind::ReservedBits);
                }
                if allocated & zero != 0 || allocated != 0 && target == Target::Nothing {
                    return Some(DamageKind::Subclusters);
                }
                match target {
                    Target::Cluster(at) if self.header.has(DATA_FILE) => {
                        let is_there = disk_offset.is_none_or(|offset| offset == u128::from(at));
                        (!is_there).then_some(DamageKind::DataFile)
                    }
                    Target::Cluster(at) => self.fault_of_offset(at),
                    _ => None,
                }
            }
        }
    }

    /// Calls `visit` with the index, the value and the second word (0 if entries have but one) of each entry of a table that is not 0.
    fn each_entry(&self, at: u64, len: u64, entry_len: u64, mut visit: impl FnMut(u64, u64, u64)) {
        let mut page = [0; 4096];
        for offset in (0..len).step_by(page.len()) {
            let here = (len - offset).min(page.len() as u64);
            let here = &mut page[..usize::try_from(here).expect("no more than a page")];
            self.file.read_at(at.saturating_add(offset), here);
            if entry_len == 8 {
                for (index, raw) in (offset / 8..).zip(here.as_chunks::<8>().0) {
                    if *raw != [0; 8] {
                        visit(index, u64::from_be_bytes(*raw), 0);
                    }
                }
                continue;
            }
            for (index, raw) in (offset / 16..).zip(here.as_chunks::<16>().0) {
                if *raw != [0; 16] {
                    let [first, second] = [&raw[..8], &raw[8..]]
                        .map(|raw| u64::from_be_bytes(*raw.first_chunk().expect("8 of 16 bytes")));
                    visit(index, first, second);
                }
            }
        }
    }

    fn each_l1_entry(&self, at: u64, entries: u32, mut visit: impl FnMut(u64, u64)) {
        self.each_entry(at, 8 * u64::from(entries), 8, |index, value, _| visit(index, value));
    }

    fn each_l2_entry(&self, at: u64, visit: impl FnMut(u64, u64, u64)) {
        self.each_entry(at, self.header.cluster(), self.header.l2_entry_len(), visit);
    }

    /// Where the byte at a disk offset is. What lies beyond the tables' reach is unallocated.
    pub fn lookup(&self, offset: u64) -> Result<Mapping, Damage> {
        let (cluster, entries) = (self.header.cluster(), self.header.l2_entries());
        let (l1_index, l2_index) = (offset / cluster / entries, offset / cluster % entries);
        if l1_index >= u64::from(self.header.l1_size) {
            return Ok(Mapping::Unallocated);
        }
        let value = self.fields().long(self.header.l1_at + 8 * l1_index);
        if value == 0 {
            return Ok(Mapping::Unallocated);
        }
        if let Some(kind) = self.fault_of_l1(value) {
            return Err(Damage { place: Place::L1(l1_index), value, kind });
        }
        let l2_at = value & OFFSET;
        let at = l2_at + self.header.l2_entry_len() * l2_index;
        let value = self.fields().long(at);
        let is_extended = self.header.has(EXTENDED_L2);
        let subclusters = if is_extended { self.fields().long(at + 8) } else { 0 };
        let in_cluster = offset % cluster;
        let disk_offset = Some(u128::from(offset - in_cluster));
        if let Some(kind) = self.fault_of_l2(value, subclusters, disk_offset) {
            return Err(Damage { place: Place::L2(l2_at, l2_index), value, kind });
        }
        let target = self.target(value);
        let subcluster = in_cluster / (cluster / SUBCLUSTERS).max(1);
        let bit = |first: u64| subclusters >> (first + subcluster) & 1 == 1;
        Ok(match target {
            Target::Compressed(at, sectors) => Mapping::Compressed { at, sectors },
            _ if !is_extended && value & READS_ZERO != 0 => Mapping::Zero,
            _ if is_extended && bit(32) => Mapping::Zero,
            Target::Nothing => Mapping::Unallocated,
            _ if is_extended && !bit(0) => Mapping::Unallocated,
            Target::Cluster(at) if self.header.has(DATA_FILE) => Mapping::DataFile(at + in_cluster),
            Target::Cluster(at) => Mapping::Data(at + in_cluster),
        })
    }

    /// Reads the disk. `backing` fills a buffer with what the backing file has at a disk offset; zeroes if there is none.
    pub fn read_disk(
        &self,
        offset: u64,
        into: &mut [u8],
        mut backing: impl FnMut(u64, &mut [u8]),
    ) -> Result<(), Unreadable> {
        let is_extended = self.header.has(EXTENDED_L2);
        let unit = self.header.cluster() / if is_extended { SUBCLUSTERS } else { 1 };
        let (mut offset, mut into) = (offset, into);
        while !into.is_empty() {
            let left = unit - offset % unit;
            let take = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let (here, rest) = into.split_at_mut(take);
            match self.lookup(offset).map_err(Unreadable::Damage)? {
                Mapping::Data(_) if self.header.crypt != 0 => return Err(Unreadable::Encrypted),
                Mapping::Data(at) => self.file.read_at(at, here),
                Mapping::Zero => here.fill(0),
                Mapping::Unallocated => backing(offset, here),
                Mapping::DataFile(at) => return Err(Unreadable::DataFile(at)),
                Mapping::Compressed { .. } => return Err(Unreadable::Compressed(offset)),
            }
            (offset, into) = (offset.saturating_add(left), rest);
        }
        Ok(())
    }
}
