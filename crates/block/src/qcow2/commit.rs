//! The commit: everything uncommitted, in the order that [`super`] argues, shared by all who wait for it.

use super::entry::{COPIED, OFFSET};
use super::header::REFCOUNT_TABLE_BYTES_MAX;
use super::tables::l1_entry;
use super::{Qcow2, counts};
use crate::filters::Event;
use crate::space::Run;
use crate::{Error, ErrorKind, FileOffset, Result};
use std::collections::BTreeMap;

/// L2 tables that a commit makes: by number, where they are. Those that stand for one that snapshots use as well say where that is.
type NewTables = BTreeMap<usize, NewTable>;

#[derive(Clone, Copy, Debug)]
struct NewTable {
    at: u64,
    shared: Option<u64>,
}

/// Bytes of metadata, and where they go.
type Pieces = Vec<(FileOffset, Vec<u8>)>;

impl Qcow2 {
    /// Makes every completed write durable. Those who ask while a commit is running share the next one.
    pub(super) async fn commit_shared(&self) -> Result<()> {
        let group = async |number| {
            self.commit_group().await?;
            self.counts.borrow_mut().committed(number);
            self.tending.committed(self.context.now_ns());
            if self.counts.borrow().has_freed() {
                self.tending.wake(&self.context);
            }
            Ok(())
        };
        self.commits.share(&self.context, &self.exclusive, self.file.path(), group).await
    }

    async fn commit_group(&self) -> Result<()> {
        self.refuse_corrupt()?;
        let (slices, refers) = self.tables.borrow_mut().begin_commit();
        if slices.is_empty() {
            return self.sync().await;
        }
        let mut new_tables = NewTables::new();
        let mut result = self.write_unlinked(&slices, refers, &mut new_tables).await;
        if result.is_ok() {
            result = self.write_links(&slices, &new_tables).await;
        }
        self.tables.borrow_mut().slices.end_commit(result.is_ok());
        for (table, new) in new_tables {
            let left = match result.is_ok() {
                true => {
                    self.tables.borrow_mut().link(table, l1_entry(new.at));
                    new.shared
                }
                // Perhaps linked, perhaps not: another takes its place, and this one is free once that is durable.
                false => Some(new.at),
            };
            if let Some(at) = left {
                let run = Run { at, clusters: 1 };
                self.counts.borrow_mut().release(run, self.commits.begun());
            }
        }
        result
    }

    /// Steps 2 to 4: what nothing refers to yet, and the syncs after it.
    async fn write_unlinked(
        &self,
        slices: &[u64],
        refers: bool,
        new_tables: &mut NewTables,
    ) -> Result<()> {
        let mut pieces = Pieces::new();
        for &slice in slices {
            let (table, _) = self.tables.borrow().place(slice);
            let entry = self.tables.borrow().l1_entry(table);
            if entry & COPIED != 0 || new_tables.contains_key(&table) {
                continue;
            }
            let at = Box::pin(self.new_table(1)).await?;
            let shared = Some(entry & OFFSET).filter(|at| *at != 0);
            new_tables.insert(table, NewTable { at, shared });
            self.table_pieces(table, at, &mut pieces).await?;
        }
        let mut counts = Pieces::new();
        let links_blocks = self.count_pieces(&mut counts).await?;
        if !pieces.is_empty() {
            // A new table comes with its entries.
            self.file.event(Event::L2Update);
        }
        let kinds = [(Event::L2AllocWrite, pieces), (Event::RefblockUpdate, counts)];
        self.file.write_kinds(kinds).await?;
        self.counts.borrow_mut().written();
        match links_blocks {
            true => self.link_blocks().await,
            false if refers || !new_tables.is_empty() => self.sync().await,
            // Entries that only let go of clusters refer to nothing that must be there first.
            false => Ok(()),
        }
    }

    /// All of an L2 table, for its new place: what the commit changes, and what it finds in the file.
    async fn table_pieces(&self, table: usize, at: u64, pieces: &mut Pieces) -> Result<()> {
        let slices = self.tables.borrow().slices_of(table);
        for (part, slice) in slices.enumerate() {
            let in_ram = self.tables.borrow().slices.committed_bytes(slice);
            let bytes = match in_ram {
                Some(bytes) => Some(bytes),
                None => self.read_slice(slice).await?,
            };
            if let Some(bytes) = bytes {
                let part = part as u64 * self.tables.borrow().slice_bytes();
                pieces.push((FileOffset(at + part), bytes));
            }
        }
        Ok(())
    }

    /// Applies the changes of counts; what is to be written of them. Tells whether there are blocks to be linked.
    pub(super) async fn count_pieces(&self, pieces: &mut Pieces) -> Result<bool> {
        self.apply_counts().await?;
        let counts = self.counts.borrow();
        pieces.extend(counts.to_write());
        Ok(counts.new_blocks().next().is_some())
    }

    /// Applies the changes of counts in RAM, and takes note of what became free.
    pub(super) async fn apply_counts(&self) -> Result<()> {
        let allocate = async || Box::pin(self.new_table(1)).await;
        let free = counts::apply(&self.counts, &self.file, allocate).await?;
        for run in free {
            self.freed(run);
        }
        Ok(())
    }

    /// Makes what was written durable, then the entries of new blocks, which it writes to the refcount table or to a larger one.
    pub(super) async fn link_blocks(&self) -> Result<()> {
        let needed = self.counts.borrow().table_entries_needed();
        if needed > self.counts.borrow().table().len() {
            return Box::pin(self.replace_refcount_table(needed)).await;
        }
        self.sync().await?;
        let per_unit = self.unit() / 8;
        let table = self.header.borrow().refcount_table;
        let mut pieces = Pieces::new();
        let mut units: Vec<usize> =
            self.counts.borrow().new_blocks().map(|n| n / per_unit).collect();
        units.dedup();
        let entries = self.counts.borrow().new_table(0);
        for unit in units {
            let words = &entries[unit * per_unit..entries.len().min((unit + 1) * per_unit)];
            pieces.push((FileOffset(table + (unit * per_unit * 8) as u64), big_endian(words)));
        }
        self.file.event(Event::RefblockAllocHookup);
        self.file.write_pieces(pieces).await?;
        self.sync().await?;
        self.counts.borrow_mut().linked();
        Ok(())
    }

    /// A refcount table with room for `needed` entries and half as many again: written, then the header led to it, in one sector.
    async fn replace_refcount_table(&self, needed: usize) -> Result<()> {
        let bits = self.layout.cluster_bits;
        let per_cluster = 1u64 << (bits - 3);
        let full = || {
            let what = format!(
                "growing {}: its refcount table would be larger than 8 MiB",
                self.file.path()
            );
            Error::new(ErrorKind::NoSpace, what)
        };
        let clusters_max = REFCOUNT_TABLE_BYTES_MAX >> bits;
        if (needed as u64).div_ceil(per_cluster) > clusters_max {
            return Err(full());
        }
        let clusters = (needed as u64 * 3 / 2).div_ceil(per_cluster).min(clusters_max);
        let at = self.new_table(clusters).await?;
        // Its own clusters are counted, perhaps in further blocks.
        let mut pieces = Pieces::new();
        self.count_pieces(&mut pieces).await?;
        let entries = usize::try_from(clusters * per_cluster).unwrap_or(usize::MAX);
        if self.counts.borrow().table_entries_needed() > entries {
            return Err(full());
        }
        pieces.push((FileOffset(at), big_endian(&self.counts.borrow().new_table(entries))));
        self.file.event(Event::RefblockAllocWriteTable);
        self.file.write_pieces(pieces).await?;
        self.counts.borrow_mut().written();
        self.sync().await?;
        let mut header = self.header.borrow().clone();
        let old =
            Run { at: header.refcount_table, clusters: u64::from(header.refcount_table_clusters) };
        header.refcount_table = at;
        header.refcount_table_clusters = u32::try_from(clusters).expect("at most 8 MiB");
        self.file.event(Event::RefblockAllocSwitchTable);
        self.write_header(header).await?;
        self.sync().await?;
        let mut counts = self.counts.borrow_mut();
        counts.set_table_entries(entries);
        counts.linked();
        counts.release(old, self.commits.begun());
        Ok(())
    }

    /// Steps 5 and 6: the entries, and the sync that makes the commit.
    async fn write_links(&self, slices: &[u64], new_tables: &NewTables) -> Result<()> {
        let unit = self.unit();
        let mut pieces = Pieces::new();
        for &slice in slices {
            let (table, _) = self.tables.borrow().place(slice);
            let place = self.tables.borrow().slice_at(slice);
            if let Some(at) = place.filter(|_| !new_tables.contains_key(&table)) {
                let write = self.tables.borrow().slices.slice_write(slice, unit);
                pieces.push((FileOffset(at + write.from as u64), write.bytes));
            }
        }
        let new: Vec<(usize, u64)> =
            new_tables.iter().map(|(table, new)| (*table, l1_entry(new.at))).collect();
        let mut l1 = Pieces::new();
        self.l1_pieces(&new, &mut l1);
        self.file.write_kinds([(Event::L2Update, pieces), (Event::L1Update, l1)]).await?;
        self.sync().await
    }

    /// The units of the L1 table that get new entries.
    fn l1_pieces(&self, new: &[(usize, u64)], pieces: &mut Pieces) {
        let per_unit = self.unit() / 8;
        let mut units: Vec<usize> = new.iter().map(|(table, _)| table / per_unit).collect();
        units.dedup();
        let (tables, at) = (self.tables.borrow(), self.header.borrow().l1_table);
        for unit in units {
            let first = unit * per_unit;
            let mut words: Vec<u64> = tables.l1().skip(first).take(per_unit).collect();
            for (table, entry) in new.iter().filter(|(table, _)| table / per_unit == unit) {
                words[table - first] = *entry;
            }
            pieces.push((FileOffset(at + (first * 8) as u64), big_endian(&words)));
        }
    }
}

pub(super) fn big_endian(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}
