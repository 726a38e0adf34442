//! The two levels of tables as RAM holds them: the L1 table, and slices of L2 tables.
//!
//! ```text
//!   cluster number --> L1 entry --> slice (4 KiB of an L2 table, or all of a smaller one) --> entry: see `entry`
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Cluster mapping". Everything here is RAM: no I/O, no waiting.
//!
//! Whether an entry leads to where no data can be is asked when it is looked up first: many are never.

use super::entry::{COPIED, Entry, Layout, OFFSET, Reads, Target};
use crate::mapped::{Lookup, WriteTo};
use crate::slices::{ByteOrder, Slices};
use crate::{DiskOffset, Extent, ExtentKind, FileOffset};
use std::collections::BTreeMap;

/// Most bytes of a slice.
const SLICE_BYTES_MAX: u64 = 4096;

/// Stands for an L1 entry that cannot be right.
const BAD_TABLE: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Tables {
    layout: Layout,
    /// Something shows through where nothing is mapped.
    has_backing: bool,
    /// Binary logarithms: entries of a slice, slices of a table.
    slice_bits: u32,
    table_bits: u32,
    /// As in the file, and 0 where an entry cannot be right.
    l1: Vec<u64>,
    /// These as they are in the file.
    bad_l1: BTreeMap<usize, u64>,
    pub slices: Slices,
}

/// A grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grain {
    reads: Reads,
    /// Where it is in the file, or would be.
    place: Option<u64>,
    write: Way,
}

/// [`WriteTo`] without places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Place,
    Reserved,
    New,
    Copy,
}

impl Tables {
    /// At most `cache_bytes` of slices stay in RAM, unless more than that have changes.
    pub fn new(layout: Layout, has_backing: bool, cache_bytes: u64) -> Tables {
        let slice_bytes = layout.cluster_bytes().min(SLICE_BYTES_MAX);
        let words = usize::try_from(slice_bytes / 8).expect("at most 512");
        let capacity = usize::try_from(cache_bytes / slice_bytes).unwrap_or(usize::MAX);
        Tables {
            layout,
            has_backing,
            slice_bits: (words / layout.entry_words()).ilog2(),
            table_bits: (layout.cluster_bytes() / slice_bytes).ilog2(),
            l1: Vec::new(),
            bad_l1: BTreeMap::new(),
            slices: Slices::new(ByteOrder::Big, words, capacity),
        }
    }

    /// The L1 table; entries that `is_bad` says cannot be right are followed by nobody.
    pub fn set_l1(&mut self, l1: Vec<u64>, mut is_bad: impl FnMut(usize, u64) -> bool) {
        self.l1 = l1;
        self.bad_l1.clear();
        for (table, entry) in self.l1.iter_mut().enumerate() {
            if *entry != 0 && is_bad(table, *entry) {
                self.bad_l1.insert(table, std::mem::take(entry));
            }
        }
    }

    /// Forgets what was read of L2 tables; nothing may have changed.
    pub fn forget(&mut self) {
        self.slices.forget();
    }

    /// The L1 entries, as the file is to have them.
    pub fn l1(&self) -> impl Iterator<Item = u64> {
        let entries = self.l1.iter().enumerate();
        entries.map(|(table, entry)| self.bad_l1.get(&table).copied().unwrap_or(*entry))
    }

    pub fn l1_entries(&self) -> usize {
        self.l1.len()
    }

    /// The L1 entry of a table; 0 if it cannot be right.
    pub fn l1_entry(&self, table: usize) -> u64 {
        self.l1.get(table).copied().unwrap_or(0)
    }

    pub fn is_bad_table(&self, table: usize) -> bool {
        self.bad_l1.contains_key(&table)
    }

    /// A table is linked durably.
    pub fn link(&mut self, table: usize, entry: u64) {
        self.l1[table] = entry;
    }

    /// Entries for so many tables, the new ones empty.
    pub fn set_l1_entries(&mut self, entries: usize) {
        self.l1.resize(entries, 0);
    }

    pub fn slice_bytes(&self) -> u64 {
        self.layout.cluster_bytes() >> self.table_bits
    }

    /// Which table a slice belongs to, and which slice of it it is.
    pub fn place(&self, slice: u64) -> (usize, u64) {
        let table = usize::try_from(slice >> self.table_bits).expect("slices are in the L1");
        (table, slice & ((1 << self.table_bits) - 1))
    }

    /// The slices of a table.
    pub fn slices_of(&self, table: usize) -> std::ops::Range<u64> {
        let table = table as u64;
        table << self.table_bits..(table + 1) << self.table_bits
    }

    /// Where a slice lies in the file; `None` if its table is not allocated.
    pub fn slice_at(&self, slice: u64) -> Option<u64> {
        let (table, part) = self.place(slice);
        let at = self.l1_entry(table) & OFFSET;
        (at != 0).then(|| at + part * self.slice_bytes())
    }

    /// The slice that a place on the disk needs.
    pub fn slice_of(&self, at: DiskOffset) -> u64 {
        at.0 >> self.layout.cluster_bits >> self.slice_bits
    }

    /// What `len` bytes from `at` on are, as far as they are alike and adjacent. The extent ends with the slice, or before. `may_be_data` tells of a
    /// cluster of the file whether data can be there.
    #[inline]
    pub fn lookup(
        &mut self,
        at: DiskOffset,
        len: u64,
        may_be_data: impl Fn(u64) -> bool,
    ) -> Lookup {
        let (layout, bits) = (self.layout, self.layout.cluster_bits);
        let cluster = at.0 >> bits;
        let within = at.0 & (layout.cluster_bytes() - 1);
        let number = index(cluster & ((1 << self.slice_bits) - 1));
        let step = layout.entry_words();
        let Some((words, marks)) = self.slices.get_with_marks(cluster >> self.slice_bits) else {
            return self.lookup_table(at, len);
        };
        let grain_bits = layout.grain_bits();
        let grain_bytes = 1u64 << grain_bits;
        // The grain number `n` from the start of the first cluster on.
        let per_cluster = 1u64 << (bits - grain_bits);
        let mut grain_of = |n: u64| {
            let (entry, sub) = (number + index(n / per_cluster), n % per_cluster);
            let words = words.get(entry * step..).filter(|words| !words.is_empty())?;
            let (word, bit) = (entry / 64, 1 << (entry % 64));
            if marks[word] & bit == 0 {
                if !is_good(layout, words, cluster + n / per_cluster, &may_be_data) {
                    return None;
                }
                marks[word] |= bit;
            }
            grain(layout, words, cluster + n / per_cluster, sub)
        };
        let mut n = within >> grain_bits;
        let Some(first) = grain_of(n) else { return Lookup::Corrupt(words[number * step]) };
        let within_grain = within & (grain_bytes - 1);
        let mut covered = grain_bytes - within_grain;
        // Compressed clusters have each a place of its own.
        while covered < len && first.reads != Reads::Compressed {
            n += 1;
            let expected = first.place.map(|at| at + covered + within_grain);
            if grain_of(n) != Some(Grain { place: expected, ..first }) {
                break;
            }
            covered += grain_bytes;
        }
        if first.reads == Reads::Compressed {
            covered = layout.cluster_bytes() - within;
        }
        let place = FileOffset(first.place.unwrap_or(0) + within_grain);
        let kind = match first.reads {
            Reads::Data => ExtentKind::Data(place),
            Reads::Zero => ExtentKind::Zero,
            Reads::Unallocated => ExtentKind::Unallocated,
            Reads::Compressed => ExtentKind::Compressed,
        };
        let write = match first.write {
            Way::Place => WriteTo::Place,
            Way::Reserved => WriteTo::Reserved(place),
            Way::New => WriteTo::New,
            Way::Copy => WriteTo::Copy,
        };
        Lookup::Found(Extent { kind, len: len.min(covered) }, write)
    }

    /// A place whose slice is not in RAM.
    fn lookup_table(&self, at: DiskOffset, len: u64) -> Lookup {
        let slice = self.slice_of(at);
        let (table, _) = self.place(slice);
        if table >= self.l1.len() || self.is_bad_table(table) {
            return Lookup::Corrupt(self.bad_l1.get(&table).copied().unwrap_or(BAD_TABLE));
        }
        if self.l1[table] & OFFSET != 0 {
            return Lookup::Absent;
        }
        let end = (slice + 1) << self.slice_bits << self.layout.cluster_bits;
        let mut extent = Extent { kind: ExtentKind::Unallocated, len: len.min(end - at.0) };
        match self.layout.is_external {
            false => Lookup::Found(extent, WriteTo::New),
            true => {
                let cluster = self.layout.cluster_bytes();
                extent.len = extent.len.min(cluster - at.0 % cluster);
                Lookup::Found(extent, WriteTo::Reserved(FileOffset(at.0)))
            }
        }
    }

    /// The entry of a cluster, whose slice must be in RAM, or its table not allocated.
    pub fn entry(&mut self, cluster: u64) -> Entry {
        let (id, at) = self.word_of(cluster);
        match self.slices.get(id) {
            None => Entry::default(),
            Some(words) => {
                let bits = if self.layout.is_extended { words[at + 1] } else { 0 };
                Entry { word: words[at], bits }
            }
        }
    }

    /// Sets the entry of a cluster, whose slice must be in RAM, or its table not allocated.
    pub fn set(&mut self, cluster: u64, entry: Entry) {
        let (id, at) = self.word_of(cluster);
        if self.slice_at(id).is_none() {
            self.slices.insert_new(id);
        }
        self.slices.set(id, at, entry.word);
        if self.layout.is_extended {
            self.slices.set(id, at + 1, entry.bits);
        }
    }

    fn word_of(&self, cluster: u64) -> (u64, usize) {
        let number = index(cluster & ((1 << self.slice_bits) - 1));
        (cluster >> self.slice_bits, number * self.layout.entry_words())
    }

    /// Whether one of these clusters has changes that no commit has written. Those beyond the first one's slice are not looked at.
    pub fn is_changed(&self, first: u64, last: u64) -> bool {
        let (id, from) = self.word_of(first);
        let (last_id, to) = self.word_of(last);
        let to = if last_id == id { to + self.layout.entry_words() - 1 } else { usize::MAX };
        self.slices.is_changed(id, from, to)
    }

    /// See [`Slices::begin_commit`]; the second tells whether something is referred to.
    pub fn begin_commit(&mut self) -> (Vec<u64>, bool) {
        // Words of subclusters count as well: what they say is there must be.
        self.slices.begin_commit(|word| word > 1)
    }

    /// Whether an entry that says nothing lets something show through, so that zeroes must be said.
    pub fn hides(&self) -> bool {
        self.has_backing
    }
}

/// Whether an entry leads to where data can be, or nowhere.
fn is_good(
    layout: Layout,
    words: &[u64],
    cluster: u64,
    may_be_data: &impl Fn(u64) -> bool,
) -> bool {
    let bits = layout.cluster_bits;
    let second = if layout.is_extended { words[1] } else { 0 };
    let entry = Entry { word: words[0], bits: second };
    match layout.target(entry, cluster << bits) {
        None => false,
        Some(Target::Nothing) => true,
        Some(Target::Cluster { .. }) if layout.is_external => true,
        Some(Target::Cluster { at, .. }) => may_be_data(at),
        Some(Target::Compressed { at, bytes }) => {
            (at >> bits..=(at + bytes - 1) >> bits).all(|cluster| may_be_data(cluster << bits))
        }
    }
}

/// A grain of a cluster whose entry is in the first of `words`.
#[inline]
fn grain(layout: Layout, words: &[u64], cluster: u64, number: u64) -> Option<Grain> {
    let bits = if layout.is_extended { words[1] } else { 0 };
    let entry = Entry { word: words[0], bits };
    let disk = cluster << layout.cluster_bits;
    let target = layout.target(entry, disk)?;
    let reads = layout.reads(entry, target, number);
    let within = number << layout.grain_bits();
    let (place, write) = match target {
        Target::Compressed { .. } => (None, Way::Copy),
        Target::Cluster { at, is_own: true } => {
            let write = if reads == Reads::Data { Way::Place } else { Way::Reserved };
            (Some(at + within), write)
        }
        Target::Cluster { at, is_own: false } => match layout.has_data(entry) {
            true => (Some(at + within).filter(|_| reads == Reads::Data), Way::Copy),
            false => (None, Way::New),
        },
        Target::Nothing if layout.is_external => (Some(disk + within), Way::Reserved),
        Target::Nothing => (None, Way::New),
    };
    Some(Grain { reads, place, write })
}

/// An L1 entry for a table that is used once.
pub(super) fn l1_entry(at: u64) -> u64 {
    at | COPIED
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("within a slice")
}
