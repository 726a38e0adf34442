//! Another size for the disk: one sector of the header, and what must be true before and after it is written.
//!
//! ```text
//!   grow                                                     shrink
//!   1  NEED_CHECK, sync          (if step 2 has work)        1  the new size, with NEED_CHECK: the commit point
//!   2  what is mapped beyond the old end: unlinked           ---- sync ----
//!   3  the last cluster: zeroes beyond the old end           2  what is mapped beyond the new end: unlinked
//!   ---- sync ----                                           3  the last cluster: zeroes beyond the new end
//!   4  zero clusters where the backing file would show       ---- sync ----
//!   5  the new size: the commit point                        4  the freed clusters: zeroed, free; the file's end cut
//!   ---- sync ----                                           5  NEED_CHECK off
//! ```
//!
//! Specification: QEMU `docs/interop/qed_spec.rst`, "Header": the size is 8 bytes within one sector, so a power cut leaves the old or the new one.
//!
//! - Cut before the commit point of a growth: what was unlinked could not be seen at the old size; it is leaked, and so free when the image
//!   is opened next. Cut after it: nothing is left to do but to clear NEED_CHECK.
//! - Cut after the commit point of a shrink: what is mapped beyond the end cannot be seen; it stays in use until a check drops it, or a later
//!   growth, which must not show it again, and does steps 2 and 3 for that.
//!
//! What is unlinked may be used again, or cut off, only when the unlinking is durable (design.md section 4, rule 2).

use super::Qed;
use super::header::Header;
use super::scan::{Scanner, Verdict};
use super::tables::{SLICE_ENTRIES, UNALLOCATED, ZERO};
use crate::mapped::{Lookup, MappedNode, Mapping};
use crate::space::Run;
use crate::{DiskOffset, Error, ErrorKind, ExtentKind, FileOffset, Result};
use std::ops::Range;

/// What is mapped from some cluster of the disk on.
#[derive(Debug, Default)]
struct Beyond {
    /// Ranges of entries of the file's tables, as bytes of the file.
    entries: Vec<Range<u64>>,
    /// Clusters that they refer to, tables included.
    clusters: Vec<u64>,
}

impl Qed {
    /// Changes the disk's size. No request may be under way, and none may come before this has ended.
    ///
    /// What is added reads as zeroes, unless a backing file is longer than the disk was: see `BlockNode::resize`.
    ///
    /// # Errors
    ///
    /// `BadRequest` with the reason, and nothing changed, if the image is read-only or cannot have that size. The host's; then
    /// [`Qed::image_bytes`] says which size the disk has, and the space of a part that was cut off may be lost until the next check.
    pub async fn resize(&self, bytes: u64) -> Result<()> {
        self.resize_hiding(bytes, async |_| Ok(())).await
    }

    /// As [`Qed::resize`]; `hide` is called for the range that a growth adds, to map it to zeroes where it must be, before it can be seen.
    async fn resize_hiding(
        &self,
        bytes: u64,
        hide: impl AsyncFn(Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let refuse = |kind, why: &str| {
            let what = format!("resizing {} to {bytes} bytes: {why}", self.file.path());
            Err(Error::new(kind, what))
        };
        if self.options.read_only {
            return refuse(ErrorKind::BadRequest, "it is open for reading only");
        }
        if self.options.health.is_poisoned() {
            return refuse(ErrorKind::Poisoned, "an earlier flush failed");
        }
        let before = self.image_bytes();
        if let Err(error) = self.header.borrow().with_image_bytes(bytes) {
            let why = error.to_string();
            return refuse(ErrorKind::BadRequest, why.trim_start_matches("QED header: "));
        }
        // From here on the file says all that RAM says.
        self.commit_shared().await?;
        match bytes.cmp(&before) {
            std::cmp::Ordering::Less => Box::pin(self.shrink(bytes)).await?,
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Greater => {
                Box::pin(self.prepare_growth(bytes)).await?;
                hide(before..bytes).await?;
                self.finish_growth(bytes).await?;
            }
        }
        self.give_space_back().await?;
        self.mark_clean().await
    }

    async fn prepare_growth(&self, bytes: u64) -> Result<()> {
        let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
        let before = self.header.borrow().clone();
        let beyond = self.find_beyond(before.image_clusters()).await?;
        if !beyond.entries.is_empty() {
            self.write_header(before.marked(true)).await?;
            self.sync().await?;
        }
        self.unlink(&beyond).await?;
        let zeroed = self.zero_last_cluster(before.image_bytes()).await?;
        if zeroed || !beyond.entries.is_empty() {
            self.sync().await?;
        }
        self.free(beyond.clusters);
        // More L1 entries in RAM than the disk needs do no harm, should the growth fail from here on.
        self.fit_tables(&before.with_image_bytes(bytes)?);
        Ok(())
    }

    async fn finish_growth(&self, bytes: u64) -> Result<()> {
        let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
        let header = self.header.borrow().with_image_bytes(bytes)?;
        self.write_header(header).await?;
        self.sync().await
    }

    async fn shrink(&self, bytes: u64) -> Result<()> {
        let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
        let header = self.header.borrow().with_image_bytes(bytes)?.marked(true);
        self.write_header(header.clone()).await?;
        self.sync().await?;
        self.fit_tables(&header);
        let beyond = self.find_beyond(header.image_clusters()).await?;
        self.unlink(&beyond).await?;
        // Not for us, who do it again when the disk grows, but for drivers that do not.
        self.zero_last_cluster(bytes).await?;
        self.sync().await?;
        self.free(beyond.clusters);
        Ok(())
    }

    /// Makes the tables in RAM those of a disk with this header.
    fn fit_tables(&self, header: &Header) {
        let entries = usize::try_from(header.l1_entries()).expect("at most 2^21 entries");
        self.tables.borrow_mut().resize(entries);
    }

    /// Finds what the file's tables map from cluster number `from` of the disk on.
    async fn find_beyond(&self, from: u64) -> Result<Beyond> {
        let header = self.header.borrow().clone();
        let file_bytes = self.file.file_bytes()?;
        let scanner = Scanner { file: &self.file, header: &header, file_bytes, drop_beyond: false };
        let entries = header.table_entries();
        let mut beyond = Beyond::default();
        let mut tables = Vec::new();
        let (l1, first) = (header.l1_table(), from / entries);
        each_entry(&scanner, l1, first, |table, value| tables.push((table, value))).await?;
        let mut unlinked: Option<Range<u64>> = None;
        for (table, at) in tables {
            if scanner.judge(at, header.table_bytes()) != Verdict::Good {
                // Opened for writing, it was dropped or refused. So it is not ours to free.
                continue;
            }
            let begin = from.saturating_sub(table * entries);
            let mut last = None;
            each_entry(&scanner, at, begin, |entry, value| {
                last = Some(entry);
                if value != ZERO && scanner.judge(value, 1) == Verdict::Good {
                    beyond.clusters.push(value >> header.cluster_bits());
                }
            })
            .await?;
            match (begin, last) {
                (0, _) => {
                    let cluster = at >> header.cluster_bits();
                    beyond.clusters.extend(cluster..cluster + header.table_clusters());
                    let first = unlinked.map_or(table, |tables| tables.start);
                    unlinked = Some(first..table + 1);
                }
                (_, Some(last)) => beyond.entries.push(at + begin * 8..at + last * 8 + 8),
                (_, None) => {}
            }
        }
        if let Some(tables) = unlinked {
            beyond.entries.push(l1 + tables.start * 8..l1 + tables.end * 8);
        }
        Ok(beyond)
    }

    /// Sets the entries found to 0, in the file.
    async fn unlink(&self, beyond: &Beyond) -> Result<()> {
        for entries in &beyond.entries {
            let len = entries.end - entries.start;
            self.file.write_zeroes(FileOffset(entries.start), len, false).await?;
        }
        Ok(())
    }

    /// Zeroes what of its last cluster lies beyond a disk of `bytes` bytes; whether there was anything.
    async fn zero_last_cluster(&self, bytes: u64) -> Result<bool> {
        let cluster = self.header.borrow().cluster_bytes();
        let rest = bytes.next_multiple_of(cluster) - bytes;
        if rest == 0 {
            return Ok(false);
        }
        let at = DiskOffset(bytes);
        let extent = loop {
            match self.lookup(at, rest) {
                Lookup::Found(extent, _) => break extent,
                Lookup::Corrupt(value) => return Err(self.corrupt(at, value).await),
                Lookup::Absent => self.load(at).await?,
            }
        };
        let ExtentKind::Data(place) = extent.kind else { return Ok(false) };
        self.file.write_zeroes(place, rest, false).await?;
        Ok(true)
    }

    /// Clusters that no durable table refers to any more.
    fn free(&self, mut clusters: Vec<u64>) {
        let bits = self.cluster_bits();
        clusters.sort_unstable();
        let mut space = self.room.space.borrow_mut();
        for run in clusters.chunk_by(|a, b| a + 1 == *b) {
            space.put_released(Run { at: run[0] << bits, clusters: run.len() as u64 });
        }
    }
}

impl MappedNode<Qed> {
    /// Changes the disk's size, as [`Qed::resize`] does. What is added reads as zeroes, also where the backing file, a disk of `backing_bytes`
    /// bytes, has data.
    ///
    /// # Errors
    ///
    /// As [`Qed::resize`].
    pub async fn resize(&self, bytes: u64, backing_bytes: Option<u64>) -> Result<()> {
        let hide = async |added: Range<u64>| {
            let end = added.end.min(backing_bytes.unwrap_or(0));
            if end <= added.start {
                return Ok(());
            }
            // A zero cluster to the end, and not one with data for the part of it that the disk has.
            let len = end.next_multiple_of(self.mapping().header().cluster_bytes()) - added.start;
            self.write_zeroes(DiskOffset(added.start), len, true).await?;
            self.flush().await
        };
        Box::pin(self.mapping().resize_hiding(bytes, hide)).await
    }
}

/// Calls `f` with number and value of each entry of a table from number `first` on, unless it is 0.
pub(super) async fn each_entry(
    scanner: &Scanner<'_>,
    table: u64,
    first: u64,
    mut f: impl FnMut(u64, u64),
) -> Result<()> {
    // Read in whole slices.
    let mut next = first / SLICE_ENTRIES * SLICE_ENTRIES * 8;
    while let Some((from, bytes)) = scanner.piece(table, next).await? {
        next = from + bytes.len() as u64;
        for (n, raw) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let (entry, value) = (from / 8 + n as u64, u64::from_le_bytes(*raw));
            if entry >= first && value != UNALLOCATED {
                f(entry, value);
            }
        }
    }
    Ok(())
}
