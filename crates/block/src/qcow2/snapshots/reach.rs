//! All that an L1 table leads to: looked over before anything is changed, counted up or down, and its COPIED flags.
//!
//! ```text
//!   L1 table --> L2 table --> cluster, compressed data     each of them is counted once for each L1 table that leads to it, so that
//!                                                          an L2 table in two L1 tables has a count of 2, and so has all that is in it
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Reference counts", "L2 table entry" (bit 63).
//!
//! One L2 table at a time is in RAM, and counts are written as they become many: memory does not depend on the image's size. Who calls holds the
//! image for itself, and all that was committed is in the file.

use crate::qcow2::entry::{COMPRESSED, COPIED, Entry, OFFSET, Target, table_of};
use crate::qcow2::open::read_words;
use crate::qcow2::{Qcow2, commit, counts};
use crate::space::Run;
use crate::{Error, ErrorKind, FileOffset, Result};
use std::collections::BTreeMap;

/// Changes of counts that are written together.
const CHANGES_MAX: usize = 65536;
/// Bytes of L2 tables that are written together.
const PIECES_BYTES_MAX: usize = 4 << 20;
/// Clusters with compressed data whose counts are near their limit: more of them are not looked at.
const CROWDED_MAX: usize = 1 << 20;

/// Which way to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::qcow2) enum Step {
    Up,
    Down,
}

/// Parts of tables to be written.
#[derive(Debug, Default)]
pub(super) struct Writes {
    pieces: Vec<(FileOffset, Vec<u8>)>,
    bytes: usize,
}

/// What an entry, or several in sequence, refer to.
#[derive(Clone, Copy, Debug)]
struct Reference {
    run: Run,
    is_compressed: bool,
}

impl Qcow2 {
    /// Where the L2 table of an L1 entry is, which is not 0.
    pub(super) fn l2_place(&self, entry: u64) -> Result<u64> {
        let at = table_of(entry, self.layout.cluster_bits);
        at.filter(|at| *at != 0 && !self.room.space.borrow().is_free(*at))
            .ok_or_else(|| self.contradiction(entry))
    }

    fn contradiction(&self, entry: u64) -> Error {
        let what = format!(
            "{}: the table entry {entry:#x} leads to where nothing can be: the image has to be repaired",
            self.file.path()
        );
        Error::new(ErrorKind::Corrupt, what)
    }

    /// The entries of an L2 table, and of each the place on the disk that it is for.
    fn entries<'a>(
        &self,
        table: usize,
        words: &'a [u64],
    ) -> impl Iterator<Item = (Entry, u64)> + use<'a> {
        let layout = self.layout;
        let step = layout.entry_words();
        let first = table as u64 * (words.len() / step) as u64;
        words.chunks_exact(step).enumerate().map(move |(number, words)| {
            let bits = words.get(1).copied().unwrap_or(0);
            (Entry { word: words[0], bits }, (first + number as u64) << layout.cluster_bits)
        })
    }

    /// What the entries of an L2 table refer to.
    fn references(&self, table: usize, words: &[u64]) -> Result<Vec<Reference>> {
        let bits = self.layout.cluster_bits;
        let (metadata, space) = (self.metadata.borrow(), self.room.space.borrow());
        let mut found: Vec<Reference> = Vec::new();
        for (entry, disk) in self.entries(table, words) {
            let clusters = match self.layout.target(entry, disk) {
                None => return Err(self.contradiction(entry.word)),
                Some(Target::Nothing) => continue,
                Some(Target::Cluster { .. }) if self.layout.is_external => continue,
                Some(Target::Cluster { at, .. }) => at >> bits..(at >> bits) + 1,
                Some(Target::Compressed { at, bytes }) => {
                    at >> bits..((at + bytes - 1) >> bits) + 1
                }
            };
            let mut all = clusters.clone();
            if all.any(|cluster| metadata.contains(cluster) || space.is_free(cluster << bits)) {
                return Err(self.contradiction(entry.word));
            }
            let at = clusters.start << bits;
            let run = Run { at, clusters: clusters.end - clusters.start };
            let is_compressed = entry.word & COMPRESSED != 0;
            match found.last_mut() {
                Some(last)
                    if last.run.at + (last.run.clusters << bits) == at
                        && last.is_compressed == is_compressed =>
                {
                    last.run.clusters += run.clusters;
                }
                _ => found.push(Reference { run, is_compressed }),
            }
        }
        Ok(found)
    }

    /// The L2 table of an L1 entry, and what it refers to, itself included.
    async fn reached(&self, table: usize, entry: u64) -> Result<(Vec<u64>, Vec<Reference>)> {
        let at = self.l2_place(entry)?;
        let words = read_words(&self.file, at, self.layout.cluster_bytes() / 8).await?;
        let mut found = self.references(table, &words)?;
        found.push(Reference { run: Run { at, clusters: 1 }, is_compressed: false });
        Ok((words, found))
    }

    /// How often a cluster is used, by the stored count.
    async fn count(&self, cluster: u64) -> Result<u64> {
        counts::count(&self.counts, &self.file, cluster).await
    }

    /// Finds out whether all that an L1 table leads to can be counted that way. Nothing is changed.
    pub(in crate::qcow2) async fn check_reach(&self, l1: &[u64], step: Step) -> Result<()> {
        let (bits, max) = (self.layout.cluster_bits, self.counts.borrow().max());
        // A cluster has a reference of its own for each compressed stream that touches it, and no table has them all. In an image without errors
        // they are no more than its count says: so only those of which the double would not fit are added up.
        let mut crowded = BTreeMap::<u64, u64>::new();
        for (table, entry) in l1.iter().enumerate().filter(|(_, entry)| **entry != 0) {
            for Reference { run, is_compressed } in self.reached(table, *entry).await?.1 {
                let first = run.at >> bits;
                for cluster in first..first + run.clusters {
                    let count = self.count(cluster).await?;
                    if count == 0 {
                        return Err(self.contradiction(cluster << bits));
                    }
                    if step == Step::Down || count <= max / 2 {
                        continue;
                    }
                    let more = match is_compressed {
                        true => crowded.entry(cluster).or_default(),
                        false => &mut 0,
                    };
                    *more += 1;
                    if count.checked_add(*more).is_none_or(|sum| sum > max)
                        || crowded.len() > CROWDED_MAX
                    {
                        let what = format!(
                            "{}: its reference counts have {} bits: too few for one more snapshot",
                            self.file.path(),
                            self.header.borrow().refcount_bits()
                        );
                        return Err(Error::new(ErrorKind::BadRequest, what));
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts all that an L1 table leads to, and writes the counts; `unshares`: clears COPIED in its L2 tables. What is counted down must have
    /// durably lost that reference. To be on stable storage, all of it needs a sync.
    pub(in crate::qcow2) async fn count_reach(
        &self,
        l1: &[u64],
        step: Step,
        unshares: bool,
    ) -> Result<()> {
        let mut writes = Writes::default();
        for (table, entry) in l1.iter().enumerate().filter(|(_, entry)| **entry != 0) {
            let (words, found) = self.reached(table, *entry).await?;
            for Reference { run, .. } in found {
                match step {
                    Step::Up => self.counts.borrow_mut().take(run),
                    Step::Down => self.counts.borrow_mut().release(run, self.commits.begun()),
                }
            }
            if self.counts.borrow().waiting() >= CHANGES_MAX {
                self.put_counts().await?;
            }
            if unshares {
                let mut shared = words.clone();
                for entry in shared.chunks_exact_mut(self.layout.entry_words()) {
                    entry[0] &= !COPIED;
                }
                self.replace(&mut writes, entry & OFFSET, &words, &shared);
                self.put(&mut writes, PIECES_BYTES_MAX).await?;
            }
        }
        self.put_counts().await?;
        self.put(&mut writes, 0).await
    }

    /// Makes COPIED in the disk's L2 tables what the counts say. Gives the L1 table with the right flags, which is not written.
    pub(super) async fn mend_copied(&self) -> Result<Vec<u64>> {
        let mut l1: Vec<u64> = self.tables.borrow().l1().collect();
        let bits = self.layout.cluster_bits;
        let mut writes = Writes::default();
        for (table, l1_entry) in l1.iter_mut().enumerate() {
            let at = *l1_entry & OFFSET;
            if at == 0 || self.tables.borrow().is_bad_table(table) {
                continue;
            }
            if self.count(at >> bits).await? != 1 {
                // Whoever shares the table shares what is in it: no flag is set there.
                *l1_entry = at;
                continue;
            }
            *l1_entry = at | COPIED;
            let words = read_words(&self.file, at, self.layout.cluster_bytes() / 8).await?;
            let mut mended = words.clone();
            let step = self.layout.entry_words();
            for (number, (entry, disk)) in self.entries(table, &words).enumerate() {
                if let Some(Target::Cluster { at, .. }) = self.layout.target(entry, disk) {
                    let is_own = self.count(at >> bits).await? == 1;
                    let flag = if is_own { COPIED } else { 0 };
                    mended[number * step] = entry.word & !COPIED | flag;
                }
            }
            self.replace(&mut writes, at, &words, &mended);
            self.put(&mut writes, PIECES_BYTES_MAX).await?;
        }
        self.put(&mut writes, 0).await?;
        Ok(l1)
    }

    /// What has to be written for a table at this place to become another.
    pub(super) fn replace(&self, writes: &mut Writes, at: u64, before: &[u64], after: &[u64]) {
        let mut differing = (0..after.len()).filter(|n| before.get(*n) != Some(&after[*n]));
        let Some(first) = differing.next() else { return };
        let last = differing.next_back().unwrap_or(first);
        let per_unit = self.unit() / 8;
        let from = first / per_unit * per_unit;
        let to = (last + 1).next_multiple_of(per_unit).min(after.len());
        let bytes = commit::big_endian(&after[from..to]);
        writes.bytes += bytes.len();
        writes.pieces.push((FileOffset(at + (from * 8) as u64), bytes));
    }

    /// Writes what there is, if it is so many bytes.
    pub(super) async fn put(&self, writes: &mut Writes, least: usize) -> Result<()> {
        if writes.bytes < least {
            return Ok(());
        }
        let Writes { pieces, .. } = std::mem::take(writes);
        self.file.write_pieces(pieces).await
    }

    /// Makes all changes of counts durable. What was let go must durably be gone.
    pub(in crate::qcow2) async fn put_counts(&self) -> Result<()> {
        self.counts.borrow_mut().committed(self.commits.begun() + 1);
        self.write_counts_alone().await
    }
}
