//! The check: all references are counted, then compared with what is stored.
//!
//! ```text
//!   1 claim      header, L1, refcount table and blocks, snapshots, bitmaps, LUKS header: each once, or it is damage
//!   2 L1 tables  how often each L2 table is referenced, by whom
//!   3 L2 tables  each read once: its entries count as often as the table does
//!   4 stored     the refcount blocks, against what was counted
//!   5 COPIED     in the active tables, against what is stored
//! ```

use super::header::{Bitmaps, DATA_FILE};
use super::{
    COPIED, CORRUPT, DIRTY, Damage, DamageKind, Kind, L1_RESERVED, OFFSET, Place, Qcow2,
    READS_ZERO, Report, SECTOR, Target,
};
use crate::ImageFile;
use std::collections::BTreeMap;

const KINDS: [Kind; 13] = [
    Kind::Header,
    Kind::L1Table,
    Kind::RefcountTable,
    Kind::RefcountBlock,
    Kind::SnapshotTable,
    Kind::SnapshotL1Table,
    Kind::BitmapDirectory,
    Kind::BitmapTable,
    Kind::BitmapData,
    Kind::CryptHeader,
    Kind::L2Table,
    Kind::Data,
    Kind::Compressed,
];
/// Bits of a refcount table's entry below the offset, which goes up to bit 63.
const REFCOUNT_TABLE_RESERVED: u64 = 0x1ff;
/// Of a snapshot's entry: the fixed part, and the extra data that version 3 must have.
const SNAPSHOT_LEN: u64 = 40;
const SNAPSHOT_EXTRA_V3: u64 = 16;
/// Of a bitmap's entry, the fixed part; its flags, and the only type.
const BITMAP_LEN: u64 = 24;
const BITMAP_FLAGS: u32 = 7;
const BITMAP_DIRTY: u8 = 1;

/// What is known of a cluster of the file.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    /// A bit for each [`Kind`].
    kinds: u16,
    /// By whomever.
    references: u64,
    /// By the active image, as an L2 table or data.
    active: u64,
    stored: u64,
}

impl Use {
    fn kinds(&self) -> impl Iterator<Item = Kind> {
        let kinds = self.kinds;
        KINDS.into_iter().filter(move |kind| kinds & kind.bit() != 0)
    }

    fn is_metadata(&self) -> bool {
        self.kinds & !(Kind::Data.bit() | Kind::Compressed.bit()) != 0
    }

    /// What is wrong with it, if the number of references is not.
    fn overlap(&self) -> Option<DamageKind> {
        let mut kinds = self.kinds();
        let (first, second) = (kinds.next()?, kinds.next());
        match second {
            Some(second) => Some(DamageKind::Overlap(first, second)),
            None if first < Kind::L2Table && self.references > 1 => Some(DamageKind::Twice(first)),
            None => None,
        }
    }
}

impl Kind {
    fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// How often an L2 table is referenced.
#[derive(Clone, Copy, Debug, Default)]
struct Table {
    references: u64,
    active: u64,
    /// The disk offset that it begins at, if the active image has it.
    disk_offset: Option<u128>,
}

pub(super) struct Check<'a, F: ?Sized> {
    image: &'a Qcow2<'a, F>,
    /// By number of cluster.
    uses: BTreeMap<u64, Use>,
    /// By offset.
    tables: BTreeMap<u64, Table>,
    pub report: Report,
}

impl<'a, F: ImageFile + ?Sized> Check<'a, F> {
    pub fn run(image: &'a Qcow2<'a, F>) -> Check<'a, F> {
        let report = Report {
            is_dirty: image.header.has(DIRTY),
            is_corrupt: image.header.has(CORRUPT),
            ..Report::default()
        };
        let mut check = Check { image, uses: BTreeMap::new(), tables: BTreeMap::new(), report };
        let header = &image.header;
        check.claim(Kind::Header, 0, header.cluster());
        check.claim(Kind::L1Table, header.l1_at, 8 * u64::from(header.l1_size));
        let table_len = u64::from(header.refcount_table_clusters) << header.cluster_bits;
        check.claim(Kind::RefcountTable, header.refcount_table_at, table_len);
        let blocks = check.refcount_blocks(table_len);
        if let Some((at, len)) = header.crypt_header {
            check.crypt_header(at, len);
        }
        check.l1_table(None, header.l1_at, header.l1_size);
        check.snapshots();
        if let Some(bitmaps) = header.bitmaps {
            check.bitmaps(bitmaps);
        }
        for (at, table) in std::mem::take(&mut check.tables) {
            check.l2_table(at, table);
            check.tables.insert(at, table);
        }
        check.compare(&blocks);
        check.copied_flags();
        check
    }

    /// The offsets of clusters that hold metadata, those beyond the end of the file left out.
    pub fn metadata_clusters(&self) -> impl Iterator<Item = u64> {
        let used = self.uses.iter().filter(|(_, used)| used.is_metadata());
        used.map(|(number, _)| number * self.image.header.cluster())
    }

    fn damage(&mut self, place: Place, value: u64, kind: DamageKind) {
        let report = &mut self.report;
        report.damage_count += 1;
        report.undercounted += u64::from(matches!(kind, DamageKind::Undercounted { .. }));
        report.copied_wrong += u64::from(matches!(kind, DamageKind::Copied { .. }));
        Damage { place, value, kind }.list(&mut report.damage);
    }

    /// Counts a reference to each cluster of an area that is within the file, or ends in its last cluster. Whether all were free.
    /// Of metadata that are to be there once, nothing is counted behind the first cluster that was not: however many tables overlap, no
    /// cluster is gone through for each of them.
    fn claim(&mut self, kind: Kind, at: u64, len: u64) -> bool {
        self.claim_times(kind, at, len, Table { references: 1, ..Table::default() })
    }

    fn claim_times(&mut self, kind: Kind, at: u64, len: u64, times: Table) -> bool {
        let bits = self.image.header.cluster_bits;
        let mut were_free = true;
        if len == 0 {
            return were_free;
        }
        for number in at >> bits..at.saturating_add(len).div_ceil(1 << bits) {
            let used = self.uses.entry(number).or_default();
            were_free &= used.references == 0;
            used.kinds |= kind.bit();
            used.references = used.references.saturating_add(times.references);
            used.active = used.active.saturating_add(times.active);
            if !were_free && kind < Kind::L2Table {
                break;
            }
        }
        were_free
    }

    fn is_within(&self, at: u64, len: u64) -> bool {
        let is_aligned = at.is_multiple_of(self.image.header.cluster());
        is_aligned && at.checked_add(len).is_some_and(|end| end <= self.image.file_len)
    }

    /// Claims the refcount blocks; gives index and offset of those that can be read, each offset once.
    fn refcount_blocks(&mut self, table_len: u64) -> Vec<(u64, u64)> {
        let (image, mut blocks) = (self.image, Vec::new());
        let table_at = image.header.refcount_table_at;
        image.each_entry(table_at, table_len, 8, |index, value, _| {
            let place = Place::RefcountTable(index);
            let at = value & !REFCOUNT_TABLE_RESERVED;
            if value != at {
                self.damage(place, value, DamageKind::ReservedBits);
            }
            if let Some(kind) = image.fault_of_offset(at) {
                self.damage(place, value, kind);
            } else if at != 0 && self.claim(Kind::RefcountBlock, at, image.header.cluster()) {
                blocks.push((index, at));
            }
        });
        blocks
    }

    fn crypt_header(&mut self, at: u64, len: u64) {
        if self.is_within(at, len) {
            self.claim(Kind::CryptHeader, at, len);
        } else {
            self.damage(Place::CryptHeader, at, DamageKind::Malformed);
        }
    }

    /// Counts the references to L2 tables; of no `snapshot`, those of the active image.
    fn l1_table(&mut self, snapshot: Option<u32>, at: u64, entries: u32) {
        let (image, is_active) = (self.image, snapshot.is_none());
        image.each_l1_entry(at, entries, |index, value| {
            let place = snapshot.map_or(Place::L1(index), |of| Place::SnapshotL1(of, index));
            let disk_offset = u128::from(index) * image.header.l1_span();
            if is_active {
                self.count_beyond(disk_offset);
            }
            if let Some(kind) = image.fault_of_l1(value) {
                self.damage(place, value, kind);
                // Reserved bits hide nothing: what is behind them is in use.
                let is_followed = kind == DamageKind::ReservedBits
                    && value & OFFSET != 0
                    && image.fault_of_offset(value & OFFSET).is_none();
                if !is_followed {
                    return;
                }
            }
            let table = self.tables.entry(value & OFFSET).or_default();
            table.references += 1;
            if is_active {
                table.active += 1;
                table.disk_offset.get_or_insert(disk_offset);
            }
        });
    }

    fn count_beyond(&mut self, disk_offset: u128) {
        let is_beyond = disk_offset >= u128::from(self.image.header.disk_size);
        self.report.beyond_disk += u64::from(is_beyond);
    }

    fn snapshots(&mut self) {
        let (fields, start) = (self.image.fields(), self.image.header.snapshots_at);
        if self.image.header.snapshots > 0 && start >= self.image.file_len {
            return self.damage(Place::Snapshot(0), start, DamageKind::Malformed);
        }
        let mut at = start;
        for number in 0..self.image.header.snapshots {
            let place = Place::Snapshot(number);
            let extra = u64::from(fields.word(at + 36));
            let names = u64::from(fields.half(at + 12)) + u64::from(fields.half(at + 14));
            let end = (at + SNAPSHOT_LEN + extra + names).next_multiple_of(8);
            // Also what bounds this loop. The last entry's padding may be missing.
            if at + SNAPSHOT_LEN + extra + names > self.image.file_len {
                self.damage(place, at, DamageKind::Malformed);
                break;
            }
            if self.image.header.version > 2 && extra < SNAPSHOT_EXTRA_V3 {
                self.damage(place, at, DamageKind::Malformed);
            }
            let (l1_at, l1_size) = (fields.long(at), fields.word(at + 8));
            let l1_len = 8 * u64::from(l1_size);
            if !self.is_within(l1_at, l1_len) {
                self.damage(place, l1_at, DamageKind::Malformed);
            } else if self.claim(Kind::SnapshotL1Table, l1_at, l1_len) {
                self.l1_table(Some(number), l1_at, l1_size);
            }
            at = end;
        }
        self.claim(Kind::SnapshotTable, start, at - start);
    }

    fn bitmaps(&mut self, bitmaps: Bitmaps) {
        let Bitmaps { count, directory_len, directory_at } = bitmaps;
        if !self.is_within(directory_at, directory_len) {
            return self.damage(Place::Bitmap(0), directory_at, DamageKind::Malformed);
        }
        self.claim(Kind::BitmapDirectory, directory_at, directory_len);
        let (fields, end) = (self.image.fields(), directory_at + directory_len);
        let mut at = directory_at;
        for number in 0..count {
            let place = Place::Bitmap(number);
            let [kind, granularity] = fields.array(at + 16);
            let (name, extra) = (fields.half(at + 18), fields.word(at + 20));
            let next = at + BITMAP_LEN + u64::from(extra) + u64::from(name);
            let next = next.next_multiple_of(8);
            // Also what bounds this loop.
            if next > end {
                return self.damage(place, at, DamageKind::Malformed);
            }
            let is_legal = kind == BITMAP_DIRTY && granularity < 64 && name > 0;
            if !is_legal || fields.word(at + 12) & !BITMAP_FLAGS != 0 {
                self.damage(place, at, DamageKind::Malformed);
            }
            let (table_at, entries) = (fields.long(at), fields.word(at + 8));
            let table_len = 8 * u64::from(entries);
            if !self.is_within(table_at, table_len) {
                self.damage(place, table_at, DamageKind::Malformed);
            } else if self.claim(Kind::BitmapTable, table_at, table_len) {
                self.bitmap_table(number, table_at, table_len);
            }
            at = next;
        }
        if at != end {
            self.damage(Place::Bitmap(count), at, DamageKind::Malformed);
        }
    }

    fn bitmap_table(&mut self, number: u32, at: u64, len: u64) {
        let image = self.image;
        image.each_entry(at, len, 8, |index, value, _| {
            let (place, offset) = (Place::BitmapTable(number, index), value & OFFSET);
            // Without a cluster, bit 0 says what to read in its place.
            let allowed = if offset == 0 { READS_ZERO } else { OFFSET };
            if value & !allowed != 0 {
                self.damage(place, value, DamageKind::ReservedBits);
            } else if let Some(kind) = image.fault_of_offset(offset) {
                self.damage(place, value, kind);
            } else if offset != 0 {
                self.claim(Kind::BitmapData, offset, image.header.cluster());
            }
        });
    }

    fn l2_table(&mut self, at: u64, table: Table) {
        let (image, cluster) = (self.image, self.image.header.cluster());
        self.claim_times(Kind::L2Table, at, cluster, table);
        image.each_l2_entry(at, |index, value, subclusters| {
            let offset_in_table = u128::from(index) * u128::from(cluster);
            let disk_offset = table.disk_offset.map(|offset| offset + offset_in_table);
            if let Some(disk_offset) = disk_offset {
                self.count_beyond(disk_offset);
            }
            let target = image.target(value);
            if let Some(kind) = image.fault_of_l2(value, subclusters, disk_offset) {
                self.damage(Place::L2(at, index), value, kind);
                let is_there = match target {
                    Target::Cluster(at) => image.fault_of_offset(at).is_none(),
                    _ => false,
                };
                if !is_there {
                    return;
                }
            }
            match target {
                // A data file's clusters are not counted.
                _ if image.header.has(DATA_FILE) => {}
                Target::Nothing => {}
                Target::Cluster(at) => {
                    self.claim_times(Kind::Data, at, cluster, table);
                }
                Target::Compressed(at, sectors) => {
                    self.report.compressed_clusters += 1;
                    // Others may be in the same host cluster, so `active` says nothing of them.
                    let times = Table { active: 0, ..table };
                    let first = at & !(SECTOR - 1);
                    self.claim_times(Kind::Compressed, first, sectors * SECTOR, times);
                }
            }
        });
    }

    /// Reads what is stored, and compares.
    fn compare(&mut self, blocks: &[(u64, u64)]) {
        let header = &self.image.header;
        let per_block = (header.cluster() * 8) >> header.refcount_order;
        let file_clusters = self.image.file_len.div_ceil(header.cluster());
        for (index, at) in blocks {
            // A table that long has no such cluster: the counts are nobody's.
            let Some(first) = index.checked_mul(per_block) else { continue };
            let (uses, report) = (&mut self.uses, &mut self.report);
            each_count(self.image, *at, |index, stored| {
                let number = first.saturating_add(index);
                let references = uses.get_mut(&number).map_or(0, |used| {
                    used.stored = stored;
                    used.references
                });
                if stored > references && number < file_clusters {
                    report.leaked_clusters += 1;
                } else if stored > references {
                    report.leaked_beyond_file += 1;
                }
            });
        }
        let bits = header.cluster_bits;
        for (number, used) in std::mem::take(&mut self.uses) {
            let Use { stored, references, active, .. } = used;
            let too_few = DamageKind::Undercounted { stored, references };
            let too_few = (stored < references).then_some(too_few);
            if let Some(kind) = used.overlap().or(too_few) {
                self.damage(Place::Cluster, number << bits, kind);
            }
            self.report.doubly_used += u64::from(active > 1);
            self.report.referenced_clusters += 1;
            self.uses.insert(number, used);
        }
    }

    /// COPIED means that the stored count is one, in the active tables only.
    fn copied_flags(&mut self) {
        let image = self.image;
        image.each_l1_entry(image.header.l1_at, image.header.l1_size, |index, value| {
            let at = value & OFFSET;
            let is_followed = at != 0 && image.fault_of_offset(at).is_none();
            if is_followed && value & L1_RESERVED == 0 {
                self.copied_flag(Place::L1(index), value, at);
            }
        });
        let active = self.tables.iter().filter(|(_, table)| table.active > 0);
        for at in active.map(|(at, _)| *at).collect::<Vec<u64>>() {
            image.each_l2_entry(at, |index, value, _| {
                let place = Place::L2(at, index);
                match image.target(value) {
                    Target::Cluster(_) if image.header.has(DATA_FILE) => {
                        let is_clear = value & COPIED == 0;
                        is_clear
                            .then(|| self.damage(place, value, DamageKind::Copied { stored: 1 }));
                    }
                    Target::Cluster(host) if image.fault_of_offset(host).is_none() => {
                        self.copied_flag(place, value, host);
                    }
                    _ => {}
                }
            });
        }
    }

    fn copied_flag(&mut self, place: Place, value: u64, at: u64) {
        let used = self.uses.get(&(at >> self.image.header.cluster_bits)).copied();
        let Use { stored, references, .. } = used.unwrap_or_default();
        let is_set = value & COPIED != 0;
        if is_set != (stored == 1) {
            self.damage(place, value, DamageKind::Copied { stored });
        }
        self.report.copied_shared += u64::from(is_set && references > 1);
    }
}

/// Calls `visit` with index and value of each count in a refcount block that is not 0.
fn each_count<F: ImageFile + ?Sized>(
    image: &Qcow2<'_, F>,
    at: u64,
    mut visit: impl FnMut(u64, u64),
) {
    let bits = 1u64 << image.header.refcount_order;
    image.each_entry(at, image.header.cluster(), 8, |word_index, word, _| {
        let per_word = 64 / bits;
        for index in 0..per_word {
            // Counts of whole bytes are big-endian; of several in a byte, the first has the lowest bits.
            let shift = match bits {
                8.. => 64 - bits * (index + 1),
                _ => 56 - index * bits / 8 * 8 + index * bits % 8,
            };
            let stored = word >> shift & (u64::MAX >> (64 - bits));
            if stored != 0 {
                visit(word_index * per_word + index, stored);
            }
        }
    });
}
