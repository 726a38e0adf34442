//! The two levels of tables as RAM holds them: the L1 table, slices of L2 tables, and what no commit has written yet.
//!
//! ```text
//!   cluster number --> slice (512 entries, 4 KiB) --> entry: 0 unallocated, 1 zero, else the cluster's offset in the file
//!                        |
//!                        `- changed: what the file holds instead, and what a commit is writing
//! ```
//!
//! A slice shows what the guest must see. Where the file holds something else, the slice has a copy of that beside it, and stays in RAM until a
//! commit has written the difference: the uncommitted set is the changed slices. Specification: QEMU `docs/interop/qed_spec.rst`, "Tables".
//!
//! Everything here is RAM: no I/O, no waiting.

use super::header::Header;
use crate::mapped::Lookup;
use crate::{DiskOffset, Extent, ExtentKind, FileOffset};
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// Entries of a slice. Tables are whole slices, as a cluster has at least 4 KiB.
pub(super) const SLICE_ENTRIES: u64 = 512;
const SLICE_LEN: usize = 512;
/// Bytes of a slice.
pub(super) const SLICE_BYTES: u64 = SLICE_ENTRIES * 8;

pub(super) const UNALLOCATED: u64 = 0;
pub(super) const ZERO: u64 = 1;
/// Stands for an L1 entry that cannot be right.
pub(super) const BAD_TABLE: u64 = u64::MAX;

type Entries = Box<[u64; SLICE_LEN]>;

#[derive(Debug)]
struct Slice {
    id: u64,
    entries: Entries,
    changed: Option<Box<Changed>>,
    /// Looked at since the hand passed.
    recent: bool,
}

/// What the file holds of a slice that differs from it.
#[derive(Debug)]
struct Changed {
    file: Entries,
    /// One bit for each entry of which nobody knows what the file holds: a write of it failed.
    unsure: [u64; SLICE_LEN / 64],
    /// What the commit under way writes.
    committing: Option<Entries>,
}

impl Changed {
    /// Whether the file has to be written for it to hold `value` here.
    fn differs(&self, at: usize, value: u64) -> bool {
        self.file[at] != value || self.unsure[at / 64] >> (at % 64) & 1 == 1
    }

    fn count(&self, entries: &Entries) -> usize {
        (0..SLICE_LEN).filter(|at| self.differs(*at, entries[*at])).count()
    }
}

/// Slice numbers are small and dense: one multiplication spreads them.
#[derive(Debug, Default)]
struct SliceHasher(u64);

impl Hasher for SliceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32);
    }
}

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
    slices: Vec<Slice>,
    index: HashMap<u64, usize, BuildHasherDefault<SliceHasher>>,
    hand: usize,
    capacity: usize,
    /// Slices that differ from the file.
    changed: BTreeSet<u64>,
    /// Entries that do.
    changes: usize,
}

/// A run of entries that a commit writes: place of the first byte within the slice, and the bytes.
#[derive(Debug)]
pub(super) struct SliceWrite {
    pub from: usize,
    pub bytes: Vec<u8>,
}

impl Tables {
    /// `l1` are the entries that the disk needs; valid clusters lie from `first` up to `end` (bytes). At most `capacity` slices stay in RAM, unless
    /// more than that have changes.
    pub fn new(header: &Header, l1: Vec<u64>, end: u64, capacity: usize) -> Tables {
        Tables {
            cluster_bits: header.cluster_bits(),
            table_slice_bits: (header.table_entries() / SLICE_ENTRIES).ilog2(),
            first: header.first_cluster(),
            end,
            l1,
            slices: Vec::new(),
            index: HashMap::default(),
            hand: 0,
            capacity: capacity.max(1),
            changed: BTreeSet::new(),
            changes: 0,
        }
    }

    /// The L1 table and the end of the clusters in use, when they are known.
    pub fn open(&mut self, l1: Vec<u64>, end: u64) {
        (self.l1, self.end) = (l1, end);
    }

    /// Drops all slices; nothing may have changed.
    pub fn forget(&mut self) {
        self.slices.clear();
        self.index.clear();
        self.hand = 0;
    }

    /// The disk needs so many L1 entries now. What was read of the tables is dropped; nothing may have changed.
    pub fn resize(&mut self, l1_entries: usize, capacity: usize) {
        self.l1.resize(l1_entries, UNALLOCATED);
        self.capacity = capacity.max(1);
        self.forget();
    }

    /// The file has grown: clusters up to here are valid.
    pub fn set_end(&mut self, end: u64) {
        self.end = end;
    }

    pub fn l1(&self) -> &[u64] {
        &self.l1
    }

    /// Room for slices is left.
    pub fn has_room(&self) -> bool {
        self.slices.len() < self.capacity
    }

    /// Entries that the file does not hold yet.
    pub fn changes(&self) -> usize {
        self.changes
    }

    /// Slices that have such entries, or had.
    pub fn changed_slices(&self) -> usize {
        self.changed.len()
    }

    /// Whether one of these clusters has changes that no commit has written. They are in one slice.
    pub fn is_changed(&self, first: u64, last: u64) -> bool {
        let id = first / SLICE_ENTRIES;
        if self.changed.is_empty() || !self.changed.contains(&id) {
            return false;
        }
        let slice = &self.slices[self.index[&id]];
        let Some(changed) = &slice.changed else { return false };
        let end = if last / SLICE_ENTRIES == id { index_of(last) } else { SLICE_LEN - 1 };
        (index_of(first)..=end).any(|at| changed.differs(at, slice.entries[at]))
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
        let Some(&index) = self.index.get(&slice) else {
            let (table, _) = self.place(slice);
            return match self.l1.get(table) {
                Some(&UNALLOCATED) => {
                    let rest = ((SLICE_ENTRIES - entry) << self.cluster_bits) - within;
                    let kind = ExtentKind::Unallocated;
                    Lookup::Extent(Extent { kind, len: len.min(rest) })
                }
                Some(&BAD_TABLE) | None => Lookup::Corrupt(BAD_TABLE),
                Some(_) => Lookup::Absent,
            };
        };
        self.slices[index].recent = true;
        let entries = &self.slices[index].entries[index_of(cluster)..];
        let value = entries[0];
        let (kind, step) = match value {
            UNALLOCATED => (ExtentKind::Unallocated, 0),
            ZERO => (ExtentKind::Zero, 0),
            _ if !self.is_cluster(value) => return Lookup::Corrupt(value),
            _ => (ExtentKind::Data(FileOffset(value + within)), 1 << self.cluster_bits),
        };
        let mut covered = (1 << self.cluster_bits) - within;
        let mut expected = value;
        for next in &entries[1..] {
            expected += step;
            if covered >= len || *next != expected || (step > 0 && !self.is_cluster(*next)) {
                break;
            }
            covered += 1 << self.cluster_bits;
        }
        Lookup::Extent(Extent { kind, len: len.min(covered) })
    }

    fn is_cluster(&self, value: u64) -> bool {
        value & ((1 << self.cluster_bits) - 1) == 0 && value >= self.first && value < self.end
    }

    /// Takes a slice in that was read from the file, unless it is there already.
    pub fn insert(&mut self, slice: u64, bytes: &[u8]) {
        if self.index.contains_key(&slice) {
            return;
        }
        let mut entries = Box::new([UNALLOCATED; SLICE_LEN]);
        for (entry, raw) in entries.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *entry = u64::from_le_bytes(*raw);
        }
        self.put(Slice { id: slice, entries, changed: None, recent: true });
    }

    fn put(&mut self, slice: Slice) -> usize {
        let id = slice.id;
        let index = match self.victim() {
            Some(index) => {
                self.index.remove(&self.slices[index].id);
                self.slices[index] = slice;
                index
            }
            None => {
                self.slices.push(slice);
                self.slices.len() - 1
            }
        };
        self.index.insert(id, index);
        index
    }

    /// A slice to be replaced, if there is no room: one that the file has all of, and that was not looked at lately.
    fn victim(&mut self) -> Option<usize> {
        if self.has_room() {
            return None;
        }
        for _ in 0..2 * self.slices.len() {
            self.hand = (self.hand + 1) % self.slices.len();
            let slice = &mut self.slices[self.hand];
            if slice.changed.is_none() && !std::mem::take(&mut slice.recent) {
                return Some(self.hand);
            }
        }
        None
    }

    /// Maps a cluster: `value` is its offset, or [`ZERO`]. Its slice must be in RAM, or its table not allocated. Gives the value before.
    pub fn set(&mut self, cluster: u64, value: u64) -> u64 {
        let id = cluster / SLICE_ENTRIES;
        let index = match self.index.get(&id) {
            Some(&index) => index,
            None => {
                // Guessing what is in the file would lose it.
                assert_eq!(self.slice_at(id), None, "changed without having been looked up");
                let entries = Box::new([UNALLOCATED; SLICE_LEN]);
                self.put(Slice { id, entries, changed: None, recent: true })
            }
        };
        let slice = &mut self.slices[index];
        let at = index_of(cluster);
        let before = slice.entries[at];
        let changed = slice.changed.get_or_insert_with(|| {
            self.changed.insert(id);
            let file = slice.entries.clone();
            Box::new(Changed { file, unsure: [0; SLICE_LEN / 64], committing: None })
        });
        self.changes -= usize::from(changed.differs(at, before));
        self.changes += usize::from(changed.differs(at, value));
        slice.entries[at] = value;
        before
    }

    /// Begins a commit: everything that differs from the file now. Gives the slices to be written, and whether a cluster is referred to that was not
    /// before.
    pub fn begin_commit(&mut self) -> (Vec<u64>, bool) {
        let mut refers = false;
        let (slices, index) = (&mut self.slices, &self.index);
        self.changed.retain(|id| {
            let Slice { entries, changed, .. } = &mut slices[index[id]];
            let Some(change) = changed else { return false };
            let mut differs = (0..SLICE_LEN).filter(|at| change.differs(*at, entries[*at]));
            let Some(first) = differs.next() else {
                *changed = None;
                return false;
            };
            refers |= entries[first] > ZERO || differs.any(|at| entries[at] > ZERO);
            change.committing = Some(entries.clone());
            true
        });
        (self.changed.iter().copied().collect(), refers)
    }

    /// What the commit under way has to write of a slice: whole units of `unit` bytes, from the first change to the last. What changed after the commit
    /// began is as it was then: its data may not be durable.
    pub fn slice_write(&self, id: u64, unit: usize) -> SliceWrite {
        let slice = &self.slices[self.index[&id]];
        let none = SliceWrite { from: 0, bytes: Vec::new() };
        let Some(changed) = &slice.changed else { return none };
        let Some(committing) = &changed.committing else { return none };
        let differs = |at: &usize| changed.differs(*at, committing[*at]);
        let Some(first) = (0..SLICE_LEN).find(differs) else { return none };
        let last = (0..SLICE_LEN).rfind(differs).unwrap_or(first);
        let from = (first * 8) / unit * unit;
        let to = (last * 8 + 8).next_multiple_of(unit);
        let mut bytes = Vec::with_capacity(to - from);
        committing[from / 8..to / 8].iter().for_each(|e| bytes.extend_from_slice(&e.to_le_bytes()));
        SliceWrite { from, bytes }
    }

    /// Ends a commit. If it failed, nobody knows what the file holds of it.
    pub fn end_commit(&mut self, done: bool) {
        let (slices, index, changes) = (&mut self.slices, &self.index, &mut self.changes);
        self.changed.retain(|id| {
            let Slice { entries, changed, .. } = &mut slices[index[id]];
            let Some(change) = changed else { return false };
            let Some(written) = change.committing.take() else { return true };
            *changes -= change.count(entries);
            if done {
                (change.file, change.unsure) = (written, [0; SLICE_LEN / 64]);
            } else {
                let tried = (0..SLICE_LEN).filter(|at| change.file[*at] != written[*at]);
                for at in tried.collect::<Vec<_>>() {
                    change.unsure[at / 64] |= 1 << (at % 64);
                }
            }
            let left = change.count(entries);
            *changes += left;
            if left == 0 {
                *changed = None;
            }
            left > 0
        });
    }

    /// A table is linked durably.
    pub fn set_l1(&mut self, table: usize, at: u64) {
        self.l1[table] = at;
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

    fn tables(capacity: usize) -> Tables {
        let header = Header::create(1 << 40, K64, 4, None).unwrap();
        let mut l1 = vec![0; header.l1_entries() as usize];
        l1[0] = 0x50000;
        Tables::new(&header, l1, 1 << 30, capacity)
    }

    fn slice(values: &[(usize, u64)]) -> Vec<u8> {
        let mut entries = [0; SLICE_LEN];
        values.iter().for_each(|(at, value)| entries[*at] = *value);
        entries.iter().flat_map(|entry: &u64| entry.to_le_bytes()).collect()
    }

    fn extent(kind: ExtentKind, len: u64) -> Lookup {
        Lookup::Extent(Extent { kind, len })
    }

    #[test]
    fn adjacent_clusters_are_one_extent() {
        let mut tables = tables(4);
        let max = u64::MAX;
        assert_eq!(tables.lookup(DiskOffset(0), 512), Lookup::Absent);
        let values = [(1, 0x100000), (2, 0x110000), (3, 0x130000), (4, ZERO), (5, ZERO)];
        tables.insert(0, &slice(&values));
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
        let mut tables = tables(4);
        tables.insert(0, &slice(&[(0, 2), (1, 0x100200), (2, 1 << 40), (3, 0), (4, 4096)]));
        for cluster in [0, 1, 2, 4] {
            let found = tables.lookup(DiskOffset(cluster * K64), 512);
            assert!(matches!(found, Lookup::Corrupt(_)), "{cluster} {found:?}");
        }
        tables.insert(1, &slice(&[(0, (1 << 30) - K64), (1, 1 << 30)]));
        let last = ExtentKind::Data(FileOffset((1 << 30) - K64));
        assert_eq!(tables.lookup(DiskOffset(512 * K64), 1 << 20), extent(last, K64));
    }

    #[test]
    fn a_commit_writes_what_was_there_when_it_began() {
        let mut tables = tables(4);
        tables.insert(0, &slice(&[(7, 0x200000)]));
        assert_eq!(tables.set(3, 0x300000), UNALLOCATED);
        assert_eq!(tables.begin_commit(), (vec![0], true));
        assert_eq!(tables.set(5, 0x310000), UNALLOCATED);
        assert_eq!(tables.set(3, ZERO), 0x300000);
        let write = tables.slice_write(0, 512);
        assert_eq!(
            (write.from, &write.bytes[..]),
            (0, &slice(&[(3, 0x300000), (7, 0x200000)])[..512])
        );
        tables.end_commit(true);
        assert!(tables.is_changed(3, 3) && tables.is_changed(4, 5) && !tables.is_changed(6, 9));
        assert_eq!(tables.begin_commit(), (vec![0], true));
        let write = tables.slice_write(0, 512);
        let expected = slice(&[(3, ZERO), (5, 0x310000), (7, 0x200000)]);
        assert_eq!(write.bytes, expected[..512]);
        tables.end_commit(true);
        assert_eq!(tables.changes(), 0);
    }

    #[test]
    fn what_a_failed_commit_may_have_written_is_written_again() {
        let mut tables = tables(4);
        tables.insert(0, &slice(&[]));
        tables.set(3, 0x300000);
        tables.begin_commit();
        tables.end_commit(false);
        tables.set(3, UNALLOCATED);
        assert_eq!(tables.begin_commit(), (vec![0], false), "the file may hold the reference");
        tables.end_commit(true);
        assert_eq!(tables.changes(), 0);
    }

    #[test]
    fn slices_with_changes_stay_and_others_make_room() {
        let mut tables = tables(2);
        tables.insert(0, &slice(&[]));
        tables.set(0, 0x300000);
        for id in 1..4 {
            tables.insert(id, &slice(&[]));
        }
        assert_eq!(tables.slices.len(), 2);
        assert_ne!(tables.lookup(DiskOffset(0), 512), Lookup::Absent);
        assert_eq!(tables.lookup(DiskOffset(512 * K64), 512), Lookup::Absent);
    }
}
