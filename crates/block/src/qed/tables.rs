//! The two levels of tables as RAM holds them: the L1 table, slices of L2 tables, and what no commit has written yet.
//!
//! ```text
//!   cluster number --> slice (512 entries, 4 KiB) --> entry: 0 unallocated, 1 zero, else the cluster's offset in the file
//! ```
//!
//! Specification: QEMU `docs/interop/qed_spec.rst`, "Tables". Everything here is RAM: no I/O, no waiting.

use super::header::Header;
use crate::mapped::{Lookup, WriteTo};
use crate::slices::{ByteOrder, Slices};
use crate::{DiskOffset, Extent, ExtentKind, FileOffset};

/// Entries of a slice. Tables are whole slices, as a cluster has at least 4 KiB.
pub(super) const SLICE_ENTRIES: u64 = 512;
const SLICE_LEN: usize = 512;
/// Bytes of a slice.
pub(super) const SLICE_BYTES: u64 = SLICE_ENTRIES * 8;

pub(super) const UNALLOCATED: u64 = 0;
pub(super) const ZERO: u64 = 1;
/// Stands for an L1 entry that cannot be right.
pub(super) const BAD_TABLE: u64 = u64::MAX;

/// The tables of one image.
#[derive(Debug)]
pub(super) struct Tables {
    cluster_bits: u32,
    /// Binary logarithm of the slices of a table.
    table_slice_bits: u32,
    /// Valid offsets of data clusters: from here ...
    first: u64,
    /// ... up to here.
    end: u64,
    l1: Vec<u64>,
    pub slices: Slices,
}

impl Tables {
    /// At most `cache_bytes` of slices stay in RAM, unless more than that have changes.
    pub fn new(header: &Header, cache_bytes: u64) -> Tables {
        let capacity = usize::try_from(cache_bytes / SLICE_BYTES).unwrap_or(usize::MAX);
        Tables {
            cluster_bits: header.cluster_bits(),
            table_slice_bits: (header.table_entries() / SLICE_ENTRIES).ilog2(),
            first: header.first_cluster(),
            end: 0,
            l1: Vec::new(),
            slices: Slices::new(ByteOrder::Little, SLICE_LEN, capacity),
        }
    }

    /// The L1 entries that the disk needs, and the end of the clusters in use, when they are known.
    pub fn open(&mut self, l1: Vec<u64>, end: u64) {
        (self.l1, self.end) = (l1, end);
    }

    /// The disk needs so many L1 entries now. What was read of the tables is dropped; nothing may have changed.
    pub fn resize(&mut self, l1_entries: usize) {
        self.l1.resize(l1_entries, UNALLOCATED);
        self.slices.forget();
    }

    /// The file has grown: clusters up to here are valid.
    pub fn set_end(&mut self, end: u64) {
        self.end = end;
    }

    pub fn l1(&self) -> &[u64] {
        &self.l1
    }

    /// Whether one of these clusters has changes that no commit has written. They are in one slice.
    pub fn is_changed(&self, first: u64, last: u64) -> bool {
        let id = first / SLICE_ENTRIES;
        let end = if last / SLICE_ENTRIES == id { index_of(last) } else { SLICE_LEN - 1 };
        self.slices.is_changed(id, index_of(first), end)
    }

    /// Which table a slice belongs to, and which slice of it it is.
    pub fn place(&self, slice: u64) -> (usize, u64) {
        let table = usize::try_from(slice >> self.table_slice_bits).expect("slices are in the L1");
        (table, slice & ((1 << self.table_slice_bits) - 1))
    }

    /// Where a slice lies in the file; `None` if its table is not allocated.
    pub fn slice_at(&self, slice: u64) -> Option<u64> {
        let (table, part) = self.place(slice);
        let at = *self.l1.get(table)?;
        (at != UNALLOCATED).then(|| at + part * SLICE_BYTES)
    }

    /// The slice that a place on the disk needs.
    pub fn slice_of(&self, at: DiskOffset) -> u64 {
        (at.0 >> self.cluster_bits) / SLICE_ENTRIES
    }

    /// What `len` bytes from `at` on are, as far as they are alike and adjacent. The extent ends with the slice, or before.
    #[inline]
    pub fn lookup(&mut self, at: DiskOffset, len: u64) -> Lookup {
        let cluster = at.0 >> self.cluster_bits;
        let within = at.0 & ((1 << self.cluster_bits) - 1);
        let (slice, entry) = (cluster / SLICE_ENTRIES, cluster % SLICE_ENTRIES);
        let Some(entries) = self.slices.get(slice) else {
            let (table, _) = self.place(slice);
            return match self.l1.get(table) {
                Some(&UNALLOCATED) => {
                    let rest = ((SLICE_ENTRIES - entry) << self.cluster_bits) - within;
                    let kind = ExtentKind::Unallocated;
                    Lookup::Found(Extent { kind, len: len.min(rest) }, WriteTo::New)
                }
                Some(&BAD_TABLE) | None => Lookup::Corrupt(BAD_TABLE),
                Some(_) => Lookup::Absent,
            };
        };
        let valid = Valid { bits: self.cluster_bits, first: self.first, end: self.end };
        let entries = &entries[index_of(cluster)..];
        let value = entries[0];
        let (kind, step) = match value {
            UNALLOCATED => (ExtentKind::Unallocated, 0),
            ZERO => (ExtentKind::Zero, 0),
            _ if !valid.is_cluster(value) => return Lookup::Corrupt(value),
            _ => (ExtentKind::Data(FileOffset(value + within)), 1 << self.cluster_bits),
        };
        let mut covered = (1 << self.cluster_bits) - within;
        let mut expected = value;
        for next in &entries[1..] {
            expected += step;
            if covered >= len || *next != expected || (step > 0 && !valid.is_cluster(*next)) {
                break;
            }
            covered += 1 << self.cluster_bits;
        }
        let write = match kind {
            ExtentKind::Data(_) => WriteTo::Place,
            _ => WriteTo::New,
        };
        Lookup::Found(Extent { kind, len: len.min(covered) }, write)
    }

    /// Maps a cluster: `value` is its offset, or [`ZERO`]. Its slice must be in RAM, or its table not allocated. Gives the value before.
    pub fn set(&mut self, cluster: u64, value: u64) -> u64 {
        let id = cluster / SLICE_ENTRIES;
        if self.slice_at(id).is_none() {
            self.slices.insert_new(id);
        }
        self.slices.set(id, index_of(cluster), value)
    }

    /// See [`Slices::begin_commit`]; the second tells whether a cluster is referred to that was not before.
    pub fn begin_commit(&mut self) -> (Vec<u64>, bool) {
        self.slices.begin_commit(|entry| entry > ZERO)
    }

    /// A table is linked durably.
    pub fn set_l1(&mut self, table: usize, at: u64) {
        self.l1[table] = at;
    }
}

/// Which offsets are clusters.
#[derive(Clone, Copy)]
struct Valid {
    bits: u32,
    first: u64,
    end: u64,
}

impl Valid {
    fn is_cluster(self, value: u64) -> bool {
        value & ((1 << self.bits) - 1) == 0 && value >= self.first && value < self.end
    }
}

/// Where a cluster's entry is in its slice.
#[inline]
fn index_of(cluster: u64) -> usize {
    usize::try_from(cluster % SLICE_ENTRIES).expect("below 512")
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
mod tests {
    use super::*;

    const K64: u64 = 65536;

    fn tables() -> Tables {
        let header = Header::create(1 << 40, K64, 4, None).unwrap();
        let mut l1 = vec![0; header.l1_entries() as usize];
        l1[0] = 0x50000;
        let mut tables = Tables::new(&header, 4 * SLICE_BYTES);
        tables.open(l1, 1 << 30);
        tables
    }

    fn slice(values: &[(usize, u64)]) -> Vec<u8> {
        let mut entries = [0; SLICE_LEN];
        values.iter().for_each(|(at, value)| entries[*at] = *value);
        entries.iter().flat_map(|entry: &u64| entry.to_le_bytes()).collect()
    }

    fn extent(kind: ExtentKind, len: u64) -> Lookup {
        let write = match kind {
            ExtentKind::Data(_) => WriteTo::Place,
            _ => WriteTo::New,
        };
        Lookup::Found(Extent { kind, len }, write)
    }

    #[test]
    fn adjacent_clusters_are_one_extent() {
        let mut tables = tables();
        let max = u64::MAX;
        assert_eq!(tables.lookup(DiskOffset(0), 512), Lookup::Absent);
        let values = [(1, 0x100000), (2, 0x110000), (3, 0x130000), (4, ZERO), (5, ZERO)];
        tables.slices.insert(0, &slice(&values));
        let data = |at| ExtentKind::Data(FileOffset(at));
        assert_eq!(tables.lookup(DiskOffset(0), max), extent(ExtentKind::Unallocated, K64));
        assert_eq!(
            tables.lookup(DiskOffset(K64 + 512), max),
            extent(data(0x100200), 2 * K64 - 512)
        );
        assert_eq!(tables.lookup(DiskOffset(K64), 4096), extent(data(0x100000), 4096));
        assert_eq!(tables.lookup(DiskOffset(4 * K64), max), extent(ExtentKind::Zero, 2 * K64));
        let hole = DiskOffset(40000 * K64 + 512);
        let rest = (512 - 40000 % 512) * K64 - 512;
        assert_eq!(tables.lookup(hole, max), extent(ExtentKind::Unallocated, rest));
    }

    #[test]
    fn an_entry_that_cannot_be_is_corrupt_and_ends_an_extent() {
        let mut tables = tables();
        tables.slices.insert(0, &slice(&[(0, 2), (1, 0x100200), (2, 1 << 40), (3, 0), (4, 4096)]));
        for cluster in [0, 1, 2, 4] {
            let found = tables.lookup(DiskOffset(cluster * K64), 512);
            assert!(matches!(found, Lookup::Corrupt(_)), "{cluster} {found:?}");
        }
        tables.slices.insert(1, &slice(&[(0, (1 << 30) - K64), (1, 1 << 30)]));
        let last = ExtentKind::Data(FileOffset((1 << 30) - K64));
        assert_eq!(tables.lookup(DiskOffset(512 * K64), 1 << 20), extent(last, K64));
    }
}
