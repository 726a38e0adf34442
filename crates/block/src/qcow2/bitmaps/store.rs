//! Storing bitmaps: bits, tables and the directory in new clusters, or flags in place, in the order that [`super`] argues.

use super::bits::Content;
use super::directory::{self, AUTO, IN_USE};
use super::read::ALL_ONES;
use super::{Bitmap, Bits};
use crate::qcow2::Qcow2;
use crate::qcow2::commit::big_endian;
use crate::qcow2::entry::OFFSET;
use crate::qcow2::header::BitmapsExtension;
use crate::space::Run;
use crate::{FileOffset, Result};

/// Bytes that are written at once.
const PIECES_BYTES: usize = 1 << 20;

/// What is being stored.
#[derive(Debug, Default)]
struct Storing {
    /// Clusters taken for it.
    taken: Vec<Run>,
    /// Not written yet.
    pieces: Vec<(FileOffset, Vec<u8>)>,
    piece_bytes: usize,
    tables: Vec<NewTable>,
}

/// A bitmap's new table.
#[derive(Debug)]
struct NewTable {
    /// Of the bitmap in the list.
    number: usize,
    at: u64,
    words: Vec<u64>,
    /// Chunks whose bits were taken.
    chunks: Vec<usize>,
}

impl Bitmap {
    /// Whether the file has not all of its bits.
    fn is_changed(&self) -> bool {
        let is_other = |bits: &Bits| bits.has_changes() || bits.chunks() != self.table.len();
        self.is_usable() && (self.entry.table == 0 || self.bits.as_ref().is_some_and(is_other))
    }

    /// The flags that its entry is to have. `recording`: bits change in RAM.
    fn flags(&self, recording: bool) -> u32 {
        if !self.is_usable() {
            return self.entry.flags;
        }
        let rest = self.entry.flags & !(IN_USE | AUTO);
        match (self.is_enabled, recording) {
            (false, _) => rest,
            (true, false) => rest | AUTO,
            (true, true) => rest | AUTO | IN_USE,
        }
    }
}

impl Qcow2 {
    /// Says in the file of enabled bitmaps, or of all, that they are in use. Only flags differ.
    pub(super) async fn mark_in_use(&self, all: bool) -> Result<()> {
        if self.bitmaps.is_unsure.get() {
            Box::pin(self.store_locked(false, Vec::new())).await?;
        }
        let flags = {
            let list = self.bitmaps.list.borrow();
            let in_use = |bitmap: &Bitmap| match all && bitmap.is_usable() {
                true => bitmap.entry.flags | IN_USE,
                false => bitmap.flags(true),
            };
            list.iter().map(in_use).collect()
        };
        self.store_flags(flags).await
    }

    /// Stores all bitmaps. Those that are enabled stay in use, unless the image is being closed. `dropped` are clusters of one that is gone.
    ///
    /// On an error nothing is lost that was in the file before, and the next call stores everything.
    pub(super) async fn store_locked(&self, closing: bool, dropped: Vec<Run>) -> Result<()> {
        // A change of the size that failed may have left another one in RAM.
        self.resize_bitmaps(self.header.borrow().disk_bytes);
        let (flags, is_changed) = {
            let list = self.bitmaps.list.borrow();
            let flags: Vec<u32> = list.iter().map(|bitmap| bitmap.flags(!closing)).collect();
            (flags, list.iter().any(Bitmap::is_changed))
        };
        if dropped.is_empty() && !is_changed && !self.bitmaps.is_unsure.get() {
            return self.store_flags(flags).await;
        }
        self.bitmaps.is_unsure.set(true);
        let mut storing = Storing::default();
        let mut result = self.write_new(&mut storing, &flags).await;
        if let Ok(new) = result {
            result = self.link_directory(new).await.map(|()| new);
        }
        let mut list = self.bitmaps.list.borrow_mut();
        let new = match result {
            Ok(new) => new,
            Err(error) => {
                // Perhaps this directory is the one that the file has: what it leads to stays.
                self.bitmaps.doubtful.borrow_mut().extend(storing.taken);
                for NewTable { number, chunks, .. } in storing.tables {
                    let Some(bits) = &mut list[number].bits else { continue };
                    chunks.into_iter().for_each(|chunk| bits.set_changed(chunk, true));
                }
                return Err(error);
            }
        };
        self.bitmaps.is_unsure.set(false);
        let mut left = dropped;
        left.append(&mut self.bitmaps.doubtful.borrow_mut());
        let old = self.bitmaps.directory.replace(new);
        left.extend(old.map(|old| self.run(old.directory, old.directory_bytes)));
        for new in storing.tables {
            let bitmap = &mut list[new.number];
            left.extend(self.runs_replaced(bitmap, &new.words));
            bitmap.entry.table = new.at;
            bitmap.entry.table_entries = table_entries(&new.words);
            bitmap.table = new.words;
        }
        list.iter_mut().zip(flags).for_each(|(bitmap, flags)| bitmap.entry.flags = flags);
        self.release_runs(left);
        Ok(())
    }

    /// Flags in place: each entry is true with its old ones and with its new ones.
    async fn store_flags(&self, flags: Vec<u32>) -> Result<()> {
        let bytes = {
            let list = self.bitmaps.list.borrow();
            if list.iter().zip(&flags).all(|(bitmap, flags)| bitmap.entry.flags == *flags) {
                return Ok(());
            }
            let mut entries: Vec<_> = list.iter().map(|bitmap| bitmap.entry.clone()).collect();
            entries.iter_mut().zip(&flags).for_each(|(entry, flags)| entry.flags = *flags);
            directory::encode(entries.iter())
        };
        let place = self.bitmaps.directory.get();
        let place = place.filter(|place| place.directory_bytes == bytes.len() as u64);
        let place = place.ok_or_else(|| directory::corrupt("it has changed under us"))?;
        self.file.write_from(FileOffset(place.directory), &bytes, false).await?;
        self.sync().await?;
        let mut list = self.bitmaps.list.borrow_mut();
        list.iter_mut().zip(flags).for_each(|(bitmap, flags)| bitmap.entry.flags = flags);
        Ok(())
    }

    /// Step 1: everything that the new directory leads to, and itself. Gives what the header's extension is to say.
    async fn write_new(
        &self,
        storing: &mut Storing,
        flags: &[u32],
    ) -> Result<Option<BitmapsExtension>> {
        for number in 0..flags.len() {
            if self.bitmaps.list.borrow()[number].is_changed() {
                self.write_bitmap(storing, number).await?;
            }
        }
        let bytes = {
            let list = self.bitmaps.list.borrow();
            let mut entries: Vec<_> = list.iter().map(|bitmap| bitmap.entry.clone()).collect();
            for NewTable { number, at, words, .. } in &storing.tables {
                entries[*number].table = *at;
                entries[*number].table_entries = table_entries(words);
            }
            entries.iter_mut().zip(flags).for_each(|(entry, flags)| entry.flags = *flags);
            directory::encode(entries.iter())
        };
        if bytes.is_empty() {
            return Ok(None);
        }
        let directory_bytes = bytes.len() as u64;
        let directory = self.put_cluster(storing, bytes).await?;
        self.flush_pieces(storing).await?;
        // Syncs, with the counts, what they count.
        self.write_counts().await?;
        let count = u32::try_from(flags.len()).expect("at most 65535");
        Ok(Some(BitmapsExtension { count, directory, directory_bytes }))
    }

    /// The clusters of bits that the file does not have, and the table. Other clusters stay.
    async fn write_bitmap(&self, storing: &mut Storing, number: usize) -> Result<()> {
        let chunks = match &self.bitmaps.list.borrow()[number].bits {
            Some(bits) => bits.chunks(),
            None => return Ok(()),
        };
        let mut words = vec![0; chunks];
        storing.tables.push(NewTable { number, at: 0, words: Vec::new(), chunks: Vec::new() });
        for (chunk, word) in words.iter_mut().enumerate() {
            let bytes = {
                let mut list = self.bitmaps.list.borrow_mut();
                let Bitmap { bits: Some(bits), table, .. } = &mut list[number] else { continue };
                if !bits.is_changed(chunk) {
                    *word = table.get(chunk).copied().unwrap_or(0);
                    continue;
                }
                let bytes = match bits.content(chunk) {
                    Content::Zeroes => None,
                    Content::Ones => {
                        *word = ALL_ONES;
                        None
                    }
                    Content::Bytes(bytes) => Some(bytes.to_vec()),
                };
                // What is set from now on is not in it.
                bits.set_changed(chunk, false);
                bytes
            };
            if let Some(new) = storing.tables.last_mut() {
                new.chunks.push(chunk);
            }
            if let Some(bytes) = bytes {
                *word = self.put_cluster(storing, bytes).await?;
            }
        }
        let at = self.put_cluster(storing, big_endian(&words)).await?;
        if let Some(new) = storing.tables.last_mut() {
            (new.at, new.words) = (at, words);
        }
        Ok(())
    }

    /// Gives bytes a place of their own, and writes them sooner or later.
    async fn put_cluster(&self, storing: &mut Storing, mut bytes: Vec<u8>) -> Result<u64> {
        let run = self.run(0, bytes.len() as u64);
        let at = self.new_table(run.clusters).await?;
        storing.taken.push(Run { at, ..run });
        bytes.resize(bytes.len().next_multiple_of(self.unit()), 0);
        storing.piece_bytes += bytes.len();
        storing.pieces.push((FileOffset(at), bytes));
        if storing.piece_bytes >= PIECES_BYTES {
            self.flush_pieces(storing).await?;
        }
        Ok(at)
    }

    async fn flush_pieces(&self, storing: &mut Storing) -> Result<()> {
        storing.piece_bytes = 0;
        self.file.write_pieces(std::mem::take(&mut storing.pieces)).await
    }

    /// The clusters that these bytes take.
    fn run(&self, at: u64, bytes: u64) -> Run {
        Run { at, clusters: bytes.div_ceil(self.layout.cluster_bytes()) }
    }

    /// All clusters that a bitmap takes in the file.
    pub(super) fn runs_of(&self, bitmap: &Bitmap) -> Vec<Run> {
        self.runs_replaced(bitmap, &[])
    }

    /// The clusters of a bitmap that it does not need with a new table.
    fn runs_replaced(&self, bitmap: &Bitmap, new: &[u64]) -> Vec<Run> {
        let mut runs = Vec::new();
        if bitmap.entry.table != 0 {
            runs.push(self.run(bitmap.entry.table, bitmap.table.len() as u64 * 8));
        }
        for (chunk, word) in bitmap.table.iter().enumerate() {
            if word & OFFSET != 0 && new.get(chunk) != Some(word) {
                runs.push(Run { at: word & OFFSET, clusters: 1 });
            }
        }
        runs
    }

    fn release_runs(&self, runs: Vec<Run>) {
        let (mut counts, commits) = (self.counts.borrow_mut(), self.commits.begun());
        runs.into_iter().for_each(|run| counts.release(run, commits));
    }
}

fn table_entries(words: &[u64]) -> u32 {
    u32::try_from(words.len()).expect("at most 512 MiB of bits")
}
