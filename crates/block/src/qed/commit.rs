//! The commit: everything uncommitted, in the order that [`super`] argues, shared by all who wait for it.

use super::Qed;
use super::tables::SLICE_BYTES;
use crate::filters::Event;
use crate::space::Run;
use crate::{FileOffset, Result};
use io_engine::AlignedBuf;
use std::collections::BTreeMap;

/// Pieces of metadata written side by side.
const PIECES_MAX: usize = 64;

/// Entries of the L1 table that a commit adds: table number to offset.
type NewTables = BTreeMap<usize, u64>;

impl Qed {
    /// Makes every completed write durable. Those who ask while a commit is running share the next one.
    pub(super) async fn commit_shared(&self) -> Result<()> {
        let group = async |number| {
            self.commit_group().await?;
            self.room.space.borrow_mut().committed(number);
            self.tending.committed(self.context.now_ns());
            if self.room.space.borrow().has_released() {
                self.tending.wake(&self.context);
            }
            Ok(())
        };
        self.commits.share(&self.context, &self.exclusive, self.file.path(), group).await
    }

    async fn commit_group(&self) -> Result<()> {
        let (slices, refers) = self.tables.borrow_mut().begin_commit();
        if slices.is_empty() {
            return self.sync().await;
        }
        let mut new_tables = NewTables::new();
        let mut result = self.write_unlinked(&slices, refers, &mut new_tables).await;
        if result.is_ok() {
            result = self.write_links(&slices, &new_tables).await;
        }
        let mut tables = self.tables.borrow_mut();
        tables.slices.end_commit(result.is_ok());
        for (table, at) in new_tables {
            match result.is_ok() {
                true => tables.set_l1(table, at),
                // Perhaps linked, perhaps not: another takes its place, and this one is free once that is durable.
                false => {
                    let run = Run { at, clusters: self.header.borrow().table_clusters() };
                    self.room.space.borrow_mut().release(run, self.commits.begun());
                }
            }
        }
        result
    }

    /// Steps 1 to 3: what nothing refers to yet, and the sync after it.
    async fn write_unlinked(
        &self,
        slices: &[u64],
        refers: bool,
        new_tables: &mut NewTables,
    ) -> Result<()> {
        let mark = !self.header.borrow().needs_check();
        if mark {
            let header = self.header.borrow().marked(true);
            self.write_header(header).await?;
        }
        let mut pieces = Vec::new();
        for &slice in slices {
            if self.tables.borrow().slice_at(slice).is_some() {
                continue;
            }
            let (table, part) = self.tables.borrow().place(slice);
            let at = match new_tables.get(&table) {
                Some(at) => *at,
                None => self.new_table(table, new_tables).await?,
            };
            self.file.event(Event::L2Update);
            self.file.event(Event::L2AllocWrite);
            pieces.push(self.piece(slice, at + part * SLICE_BYTES));
            self.write_if(&mut pieces, PIECES_MAX).await?;
        }
        self.write_if(&mut pieces, 1).await?;
        // Entries that only let go of clusters refer to nothing that must be there first.
        match mark || refers || !new_tables.is_empty() {
            true => self.sync().await,
            false => Ok(()),
        }
    }

    /// Space for an L2 table, reading as zeroes.
    async fn new_table(&self, table: usize, new_tables: &mut NewTables) -> Result<u64> {
        let (clusters, bytes) = {
            let header = self.header.borrow();
            (header.table_clusters(), header.table_bytes())
        };
        let more = async || Ok(false);
        let at = self.room.run(|| self.take_run(clusters), || clusters, more).await?;
        new_tables.insert(table, at);
        if !self.room.is_zeroed() {
            self.file.write_zeroes(FileOffset(at), bytes, false).await?;
        }
        Ok(at)
    }

    /// Steps 4 and 5: the entries, and the sync that makes the commit.
    async fn write_links(&self, slices: &[u64], new_tables: &NewTables) -> Result<()> {
        let mut pieces = Vec::new();
        for &slice in slices {
            let place = self.tables.borrow().slice_at(slice);
            if let Some(at) = place {
                self.file.event(Event::L2Update);
                pieces.push(self.piece(slice, at));
                self.write_if(&mut pieces, PIECES_MAX).await?;
            }
        }
        let l1 = self.l1_pieces(new_tables);
        if self.file.is_filtered() && !l1.is_empty() {
            // Apart, so that a rule for the one does not hit the other.
            self.write_if(&mut pieces, 1).await?;
            self.file.event(Event::L1Update);
        }
        for (at, buf) in l1 {
            pieces.push((at, buf));
            self.write_if(&mut pieces, PIECES_MAX).await?;
        }
        self.write_if(&mut pieces, 1).await?;
        self.sync().await
    }

    /// What is to be written of a slice that lies at `at` in the file.
    fn piece(&self, slice: u64, at: u64) -> (FileOffset, AlignedBuf) {
        let unit = usize::try_from(self.unit()).expect("at most a slice");
        let write = self.tables.borrow().slices.slice_write(slice, unit);
        let mut buf = self.file.buffer(write.bytes.len() as u64);
        buf.as_mut_slice().copy_from_slice(&write.bytes);
        (FileOffset(at + write.from as u64), buf)
    }

    /// The units of the L1 table that get new entries.
    fn l1_pieces(&self, new_tables: &NewTables) -> Vec<(FileOffset, AlignedBuf)> {
        let per_unit = usize::try_from(self.unit() / 8).expect("at most a slice");
        let tables = self.tables.borrow();
        let mut units: Vec<usize> = new_tables.keys().map(|table| table / per_unit).collect();
        units.dedup();
        let piece = |unit: usize| {
            let mut buf = self.file.buffer(self.unit());
            for (n, raw) in buf.as_mut_slice().as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let table = unit * per_unit + n;
                let before = tables.l1().get(table).copied().unwrap_or(0);
                *raw = new_tables.get(&table).copied().unwrap_or(before).to_le_bytes();
            }
            (FileOffset(self.header.borrow().l1_table() + (unit * per_unit * 8) as u64), buf)
        };
        units.into_iter().map(piece).collect()
    }

    /// Writes the pieces gathered, once there are so many.
    async fn write_if(
        &self,
        pieces: &mut Vec<(FileOffset, AlignedBuf)>,
        enough: usize,
    ) -> Result<()> {
        match pieces.len() >= enough {
            true => self.file.write_all_owned(std::mem::take(pieces)).await,
            false => Ok(()),
        }
    }
}
