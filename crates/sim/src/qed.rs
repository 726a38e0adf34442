//! An independent checker and reader of QED images, written from the specification alone.
//!
//! ```text
//!   header (header_size clusters) | L1 table (table_size clusters) | L2 tables and data clusters, in any order
//!
//!   L1 entry:  0 = no L2 table | offset of an L2 table
//!   L2 entry:  0 = unallocated | 1 = zeroes | offset of a data cluster          (8 bytes each, little-endian)
//! ```
//!
//! Specification: QEMU `docs/interop/qed_spec.rst`. What it says of offsets, and what a [`Report`] counts as damage:
//!
//! - the low 12 bits are reserved and zero, and so are those below the cluster size;
//! - an offset lies within the file, and a whole table does;
//! - each cluster is referenced once and only once: not by two entries, and neither header nor L1 table by any.
//!
//! Not damage, and counted apart: leaked clusters (no references), entries for disk offsets beyond `image_size`, and a data cluster
//! that begins within the file and ends beyond it, of which the specification says nothing (QEMU takes it for one that is out of the file).
//!
//! Nothing here panics on any bytes. The time is bounded by the file's length, since no cluster is read as a table twice; the memory by
//! the number of clusters referenced.

use crate::ImageFile;
use std::collections::BTreeMap;
use std::ops::Range;

#[cfg(test)]
mod tests;

const MAGIC: [u8; 4] = *b"QED\0";
const HEADER_LEN: usize = 64;
const BACKING_FILE: u64 = 1;
const NEED_CHECK: u64 = 2;
const NO_PROBE: u64 = 4;
/// Bits of every offset that future extensions may use.
const RESERVED: u64 = 0xfff;
/// An L2 entry for a cluster of zeroes.
const ZERO_CLUSTER: u64 = 1;

/// What makes a header unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// The file ends within it.
    Short,
    /// Not a QED image.
    Magic,
    /// Not a power of two from 4 KiB to 64 MiB.
    ClusterSize(u32),
    /// Not a power of two from 1 to 16.
    TableSize(u32),
    /// No cluster, or more than the file has.
    HeaderSize(u32),
    /// Features that the specification does not know.
    Features(u64),
    /// Unaligned, in the header, or not within the file.
    L1Table(u64),
    /// Not whole sectors, or more than two levels of tables reach.
    ImageSize(u64),
    /// The backing file's name is not within the header.
    BackingName,
}

/// What is wrong with a table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DamageKind {
    /// One of the low 12 bits is set.
    ReservedBits,
    /// Not at a cluster boundary.
    Unaligned,
    /// It points into the header.
    InHeader,
    /// It points at or beyond the end of the file.
    BeyondFile,
    /// It points at a table that begins in the file and ends beyond it.
    TablePastEnd,
    /// It points into the L1 table.
    InL1Table,
    /// It points at something that another entry points at.
    Shared,
}

impl DamageKind {
    /// Whether the entry leads nowhere, so that an image marked NEED_CHECK may have it until it is repaired. All others mean that
    /// somebody's data or table has been, or will be, overwritten.
    pub fn is_dangling(self) -> bool {
        matches!(self, DamageKind::BeyondFile | DamageKind::TablePastEnd)
    }
}

/// Where a table entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// In the L1 table.
    L1(u64),
    /// In an L2 table: the L1 index that leads there, and its own.
    L2(u64, u64),
}

/// A wrong table entry.
pub type Damage = crate::Damage<Entry, DamageKind>;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// If there are any, nothing else was looked at.
    pub header: Vec<HeaderFault>,
    /// The first few damaged entries, by place.
    pub damage: Vec<Damage>,
    /// How many there are.
    pub damage_count: u64,
    /// Damaged entries that lead somewhere: see [`DamageKind::is_dangling`].
    pub harmful_count: u64,
    /// Whole clusters of the file that nothing references.
    pub leaked_clusters: u64,
    /// Clusters that tables and data take up, besides header and L1 table.
    pub referenced_clusters: u64,
    /// Data clusters that the file ends within.
    pub partial_clusters: u64,
    /// Entries, of both levels, for what lies beyond the end of the disk.
    pub beyond_image_size: u64,
    /// The header says that a check is needed before use.
    pub need_check: bool,
}

impl Report {
    /// Whether there is no error; leaks are none.
    pub fn is_sound(&self) -> bool {
        self.header.is_empty() && self.damage_count == 0
    }

    /// Judges what a crash left: it opens, an image not marked NEED_CHECK has no error (I3), and a marked one has none that dropping
    /// the entry would not mend (I2).
    pub fn judge_crash(&self) -> Result<(), String> {
        if !self.header.is_empty() {
            return Err(format!("I1: the image does not open: {:?}", self.header));
        }
        let listed = || Damage::words(&self.damage);
        match (self.need_check, self.damage_count, self.harmful_count) {
            (false, 1.., _) => Err(format!("I3: an image that says it is clean{}", listed())),
            (true, _, 1..) => Err(format!("I2: beyond repair{}", listed())),
            _ => Ok(()),
        }
    }
}

/// Checks an image.
pub fn check(file: &(impl ImageFile + ?Sized)) -> Report {
    match Qed::open(file) {
        Ok(qed) => qed.check(),
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
}

/// What a reader makes of a damaged entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDamage {
    /// Gives the damage as the error.
    Fail,
    /// Takes it for unallocated: what a repair makes of it.
    Unallocated,
}

/// An image with a usable header.
#[derive(Debug)]
pub struct Qed<'a, F: ?Sized> {
    file: &'a F,
    file_len: u64,
    cluster: u64,
    table_clusters: u64,
    header_clusters: u64,
    l1_at: u64,
    image_size: u64,
    features: u64,
}

impl<'a, F: ImageFile + ?Sized> Qed<'a, F> {
    /// Reads the header. Gives all that is wrong with it, as far as one fault does not hide another.
    pub fn open(file: &'a F) -> Result<Qed<'a, F>, Vec<HeaderFault>> {
        let mut raw = [0; HEADER_LEN];
        let file_len = file.len();
        file.read_at(0, &mut raw);
        if file_len < HEADER_LEN as u64 {
            return Err(vec![HeaderFault::Short]);
        }
        if raw[..4] != MAGIC {
            return Err(vec![HeaderFault::Magic]);
        }
        let word = |at: usize| u32::from_le_bytes(*raw[at..].first_chunk().expect("in the header"));
        let long = |at: usize| u64::from_le_bytes(*raw[at..].first_chunk().expect("in the header"));
        let (cluster, table, header, features) = (word(4), word(8), word(12), long(16));

        let mut faults = Vec::new();
        let mut demand = |holds: bool, fault| {
            if !holds {
                faults.push(fault);
            }
        };
        let known = BACKING_FILE | NEED_CHECK | NO_PROBE;
        demand(features & !known == 0, HeaderFault::Features(features));
        let cluster_fits = cluster.is_power_of_two() && (1 << 12..=1 << 26).contains(&cluster);
        demand(cluster_fits, HeaderFault::ClusterSize(cluster));
        let table_fits = table.is_power_of_two() && (1..=16).contains(&table);
        demand(table_fits, HeaderFault::TableSize(table));
        if !faults.is_empty() {
            return Err(faults);
        }

        let qed = Qed {
            file,
            file_len,
            cluster: u64::from(cluster),
            table_clusters: u64::from(table),
            header_clusters: u64::from(header),
            l1_at: long(40),
            image_size: long(48),
            features,
        };
        let mut demand = |holds: bool, fault| {
            if !holds {
                faults.push(fault);
            }
        };
        let header_fits = header > 0 && qed.header_len() <= file_len;
        demand(header_fits, HeaderFault::HeaderSize(header));
        let l1_fits = qed.l1_at.is_multiple_of(qed.cluster)
            && qed.l1_at >= qed.header_len()
            && qed.table_fits(qed.l1_at);
        demand(l1_fits, HeaderFault::L1Table(qed.l1_at));
        let reach = u128::from(qed.entries()).pow(2) * u128::from(qed.cluster);
        let size_fits = qed.image_size.is_multiple_of(512) && u128::from(qed.image_size) <= reach;
        demand(size_fits, HeaderFault::ImageSize(qed.image_size));
        let name_end = u64::from(word(56)) + u64::from(word(60));
        let name_fits = features & BACKING_FILE == 0 || name_end <= qed.header_len();
        demand(name_fits, HeaderFault::BackingName);
        if faults.is_empty() { Ok(qed) } else { Err(faults) }
    }

    /// The disk's size in bytes.
    pub fn image_size(&self) -> u64 {
        self.image_size
    }

    /// Whether the header says that a check is needed before use.
    pub fn needs_check(&self) -> bool {
        self.features & NEED_CHECK != 0
    }

    /// Whether it has a backing file.
    pub fn has_backing(&self) -> bool {
        self.features & BACKING_FILE != 0
    }

    fn header_len(&self) -> u64 {
        self.header_clusters * self.cluster
    }

    fn table_len(&self) -> u64 {
        self.table_clusters * self.cluster
    }

    /// Entries in a table.
    fn entries(&self) -> u64 {
        self.table_len() / 8
    }

    fn table_fits(&self, at: u64) -> bool {
        at.checked_add(self.table_len()).is_some_and(|end| end <= self.file_len)
    }

    /// What is wrong with an entry by itself, whatever else there is.
    fn fault_of(&self, value: u64, is_table: bool) -> Option<DamageKind> {
        let len = if is_table { self.table_len() } else { self.cluster };
        let l1 = self.l1_at..self.l1_at + self.table_len();
        if value & RESERVED != 0 {
            Some(DamageKind::ReservedBits)
        } else if !value.is_multiple_of(self.cluster) {
            Some(DamageKind::Unaligned)
        } else if value < self.header_len() {
            Some(DamageKind::InHeader)
        } else if value >= self.file_len {
            Some(DamageKind::BeyondFile)
        } else if is_table && !self.table_fits(value) {
            Some(DamageKind::TablePastEnd)
        } else if value < l1.end && l1.start < value.saturating_add(len) {
            Some(DamageKind::InL1Table)
        } else {
            None
        }
    }

    /// Goes through all tables.
    pub fn check(&self) -> Report {
        let mut check = Check { qed: self, used: BTreeMap::new(), report: Report::default() };
        check.report.need_check = self.needs_check();
        let span = u128::from(self.entries()) * u128::from(self.cluster);
        self.each_entry(self.l1_at, |index, value| {
            check.count_beyond(u128::from(index) * span);
            if let Some(l2_at) = check.table(index, value) {
                self.each_entry(l2_at, |l2_index, value| {
                    check.cluster(index, l2_index, value);
                });
            }
        });
        let full = self.file_len / self.cluster;
        let tail_used = u64::from(check.is_used(full));
        let referenced: u64 = check.used.values().map(|bits| u64::from(bits.count_ones())).sum();
        let accounted = self.header_clusters + self.table_clusters + referenced - tail_used;
        let mut report = check.report;
        report.referenced_clusters = referenced;
        report.leaked_clusters = full.saturating_sub(accounted);
        report
    }

    /// The parts of the file that hold header and tables; tables that damaged entries point at are not among them.
    pub fn metadata(&self) -> Vec<Range<u64>> {
        let table_at = |at: u64| at..at + self.table_len();
        let mut ranges = vec![0..self.header_len(), table_at(self.l1_at)];
        self.each_entry(self.l1_at, |_, value| {
            if self.fault_of(value, true).is_none() {
                ranges.push(table_at(value));
            }
        });
        ranges
    }

    /// Calls `visit` for each entry of a table that is not 0.
    fn each_entry(&self, at: u64, mut visit: impl FnMut(u64, u64)) {
        let mut page = [0; 4096];
        for offset in (0..self.table_len()).step_by(page.len()) {
            self.file.read_at(at + offset, &mut page);
            for (index, value) in (offset / 8..).zip(page.as_chunks().0) {
                if *value != [0; 8] {
                    visit(index, u64::from_le_bytes(*value));
                }
            }
        }
    }

    fn entry(&self, table_at: u64, index: u64) -> u64 {
        let mut raw = [0; 8];
        self.file.read_at(table_at + 8 * index, &mut raw);
        u64::from_le_bytes(raw)
    }

    /// Where the byte at a disk offset is. What lies beyond the tables' reach is unallocated.
    pub fn lookup(&self, offset: u64) -> Result<Mapping, Damage> {
        let cluster_index = offset / self.cluster;
        let (l1, l2) = (cluster_index / self.entries(), cluster_index % self.entries());
        if l1 >= self.entries() {
            return Ok(Mapping::Unallocated);
        }
        let value = self.entry(self.l1_at, l1);
        if value == 0 {
            return Ok(Mapping::Unallocated);
        }
        if let Some(kind) = self.fault_of(value, true) {
            return Err(Damage { place: Entry::L1(l1), value, kind });
        }
        match self.entry(value, l2) {
            0 => Ok(Mapping::Unallocated),
            ZERO_CLUSTER => Ok(Mapping::Zero),
            value => match self.fault_of(value, false) {
                Some(kind) => Err(Damage { place: Entry::L2(l1, l2), value, kind }),
                None => Ok(Mapping::Data(value + offset % self.cluster)),
            },
        }
    }

    /// Reads the disk. `backing` fills a buffer with what the backing file has at a disk offset; zeroes if there is none.
    pub fn read_disk(
        &self,
        offset: u64,
        into: &mut [u8],
        on_damage: OnDamage,
        mut backing: impl FnMut(u64, &mut [u8]),
    ) -> Result<(), Damage> {
        let (mut offset, mut into) = (offset, into);
        while !into.is_empty() {
            let left = self.cluster - offset % self.cluster;
            let take = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let (here, rest) = into.split_at_mut(take);
            match self.lookup(offset) {
                Ok(Mapping::Data(at)) => self.file.read_at(at, here),
                Ok(Mapping::Zero) => here.fill(0),
                Err(damage) if on_damage == OnDamage::Fail => return Err(damage),
                Ok(Mapping::Unallocated) | Err(_) => backing(offset, here),
            }
            (offset, into) = (offset.saturating_add(left), rest);
        }
        Ok(())
    }
}

struct Check<'a, F: ?Sized> {
    qed: &'a Qed<'a, F>,
    /// A bit for each cluster that an entry leads to, 64 to a word.
    used: BTreeMap<u64, u64>,
    report: Report,
}

impl<F: ImageFile + ?Sized> Check<'_, F> {
    /// An L1 entry: gives the table's offset if it is to be read.
    fn table(&mut self, index: u64, value: u64) -> Option<u64> {
        let fault = self.qed.fault_of(value, true).or_else(|| {
            let first = value / self.qed.cluster;
            // All are marked, also behind one that was already: the next table to overlap must be noticed.
            let shared = (first..first + self.qed.table_clusters).filter(|at| !self.mark(*at));
            (shared.count() > 0).then_some(DamageKind::Shared)
        });
        match fault {
            Some(kind) => {
                self.damage(Damage { place: Entry::L1(index), value, kind });
                None
            }
            None => Some(value),
        }
    }

    fn cluster(&mut self, l1: u64, l2: u64, value: u64) {
        let index = u128::from(l1) * u128::from(self.qed.entries()) + u128::from(l2);
        self.count_beyond(index * u128::from(self.qed.cluster));
        if value == ZERO_CLUSTER {
            return;
        }
        let fault = self.qed.fault_of(value, false).or_else(|| {
            let is_new = self.mark(value / self.qed.cluster);
            (!is_new).then_some(DamageKind::Shared)
        });
        match fault {
            Some(kind) => self.damage(Damage { place: Entry::L2(l1, l2), value, kind }),
            None if value > self.qed.file_len - self.qed.cluster => {
                self.report.partial_clusters += 1;
            }
            None => {}
        }
    }

    fn count_beyond(&mut self, disk_offset: u128) {
        let is_beyond = disk_offset >= u128::from(self.qed.image_size);
        self.report.beyond_image_size += u64::from(is_beyond);
    }

    fn damage(&mut self, damage: Damage) {
        self.report.damage_count += 1;
        self.report.harmful_count += u64::from(!damage.kind.is_dangling());
        damage.list(&mut self.report.damage);
    }

    /// Marks a cluster; whether it was free.
    fn mark(&mut self, cluster: u64) -> bool {
        let word = self.used.entry(cluster / 64).or_default();
        let bit = 1 << (cluster % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    fn is_used(&self, cluster: u64) -> bool {
        self.used.get(&(cluster / 64)).is_some_and(|word| word >> (cluster % 64) & 1 == 1)
    }
}
