//! Another size for the disk: one sector of the header, and what must be true before and after it is written.
//!
//! ```text
//!   grow                                                     shrink
//!   1  what is mapped beyond the old end: unlinked,          1  the new size: the commit point
//!      its counts down once that is durable                  ---- sync ----
//!   2  the L1 table: longer, or a longer one elsewhere       2  what is mapped beyond the new end: unlinked
//!   ---- sync ----                                           ---- sync ----
//!   3  what of the last cluster lies beyond the old end,     3  its counts down
//!      and where the backing file would show: zeroes         4  the rest of the last cluster: zeroes
//!   ---- sync ----                                           ---- sync ----
//!   4  the new size: the commit point                        5  the file's end cut off
//!   ---- sync ----
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Header": disk size, L1 entries and L1 offset are in the first 48 bytes, in one sector, so a power cut
//! leaves the old or the new ones.
//!
//! - Cut before the commit point of a growth: what was unlinked could not be seen at the old size, and what was mapped to zeroes cannot be seen yet.
//! - Cut after the commit point of a shrink: what is mapped beyond the end cannot be seen; it stays in use until a later change of the size unlinks
//!   it.
//! - Counts go down after the unlinking is durable, and go up before the linking, as always: a cut leaves leaks.
//!
//! Snapshots keep their size: what the disk loses, they may still have. An image that cannot say their size (version 2, for QEMU) is not resized.

use super::entry::{Entry, Target};
use super::header::{Header, L1_BYTES_MAX};
use super::snapshots::Step;
use super::{Qcow2, commit};
use crate::mapped::{Lookup, MappedNode, Mapping};
use crate::{DiskOffset, Error, ErrorKind, ExtentKind, FileOffset, Result, SECTOR};
use std::ops::Range;

const DOING: &str = "resizing";

impl Qcow2 {
    /// Changes the disk's size; `hide` is called for a range of the disk of which nothing may show, neither what is mapped nor what lies below.
    async fn resize_hiding(
        &self,
        bytes: u64,
        hide: impl AsyncFn(Range<u64>) -> Result<()>,
    ) -> Result<()> {
        self.check_resize(bytes).await?;
        // From here on the file says all that RAM says; if that cannot be, nothing has changed yet.
        self.settle().await?;
        let (before, cluster) = (self.disk_bytes(), self.layout.cluster_bytes());
        if bytes == before {
            return Ok(());
        }
        self.prepare_resize_bitmaps(bytes).await?;
        match bytes.cmp(&before) {
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Less => {
                let end = bytes.next_multiple_of(cluster);
                self.check_beyond(end / cluster).await?;
                self.set_disk_bytes(bytes).await?;
                self.resize_bitmaps(bytes);
                self.drop_beyond(end / cluster).await?;
                // Not for us, who do it again when the disk grows, but for drivers that do not.
                hide(bytes..end).await?;
                self.set_data_bytes(bytes, bytes).await?;
            }
            std::cmp::Ordering::Greater => {
                let first = before.div_ceil(cluster);
                self.resize_bitmaps(bytes);
                self.check_beyond(first).await?;
                self.drop_beyond(first).await?;
                self.extend_l1(self.header().l1_entries_needed(bytes)).await?;
                self.set_data_bytes(before, bytes).await?;
                hide(before..bytes).await?;
                if self.is_raw_external() {
                    self.map_raw(first..bytes.div_ceil(cluster)).await?;
                }
                // What hides is committed by now, and this what was mapped: others may write there as soon as the size says so.
                self.commit_shared().await?;
                self.set_disk_bytes(bytes).await?;
            }
        }
        self.settle().await
    }

    /// Refuses what cannot be.
    async fn check_resize(&self, bytes: u64) -> Result<()> {
        let refuse = |kind, why: &str| {
            let what = format!("{DOING} {} to {bytes} bytes: {why}", self.file.path());
            Err(Error::new(kind, what))
        };
        let header = self.header();
        if self.options.read_only {
            return refuse(ErrorKind::BadRequest, "it is open for reading only");
        }
        if self.options.health.is_poisoned() {
            return refuse(ErrorKind::Poisoned, "an earlier flush failed");
        }
        if !bytes.is_multiple_of(SECTOR) {
            return refuse(ErrorKind::BadRequest, "not whole sectors of 512 bytes");
        }
        if header.l1_entries_needed(bytes) * 8 > L1_BYTES_MAX {
            return refuse(ErrorKind::BadRequest, "its L1 table would be larger than 32 MiB");
        }
        self.good_l1(DOING)?;
        if header.snapshots > 0 && header.version < 3 {
            return refuse(ErrorKind::BadRequest, "version 2, and it has snapshots");
        }
        let snapshots = self.snapshots().await?;
        match snapshots.iter().all(|one| one.disk_bytes.is_some()) {
            true => Ok(()),
            false => refuse(ErrorKind::BadRequest, "a snapshot does not say how large it is"),
        }
    }

    async fn set_disk_bytes(&self, bytes: u64) -> Result<()> {
        let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
        self.switch_header(|header| header.disk_bytes = bytes).await
    }

    /// Clusters of the disk that an L2 table is for.
    fn table_clusters(&self) -> u64 {
        self.header.borrow().l2_entries()
    }

    /// Of the L1 table, the entries of tables that are for nothing before this cluster of the disk; the others are 0.
    fn l1_beyond(&self, from: u64) -> Vec<u64> {
        let first = usize::try_from(from.div_ceil(self.table_clusters())).unwrap_or(usize::MAX);
        let mut l1: Vec<u64> = self.tables.borrow().l1().collect();
        l1.iter_mut().take(first).for_each(|entry| *entry = 0);
        l1
    }

    /// Finds out whether what is mapped from cluster number `from` of the disk on can be let go.
    async fn check_beyond(&self, from: u64) -> Result<()> {
        let l1 = self.l1_beyond(from);
        // Boxed, here and below, as the future of a request is made of these.
        Box::pin(self.check_reach(&l1, Step::Down)).await
    }

    /// Unlinks what is mapped from cluster number `from` of the disk on.
    pub(super) async fn drop_beyond(&self, from: u64) -> Result<()> {
        let whole = from.next_multiple_of(self.table_clusters());
        self.drop_entries(from..whole).await?;
        self.commit_shared().await?;
        let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
        let gone = self.l1_beyond(from);
        if gone.iter().all(|entry| *entry == 0) {
            return Ok(());
        }
        let before: Vec<u64> = self.tables.borrow().l1().collect();
        let after: Vec<u64> = before.iter().zip(&gone).map(|(entry, gone)| entry ^ gone).collect();
        self.rewrite(self.header().l1_table, &before, &after).await?;
        self.sync().await?;
        self.adopt_l1(after, |_, _| false);
        Box::pin(self.count_reach(&gone, Step::Down, false)).await
    }

    /// Empties the entries of these clusters, which are of one L2 table, in RAM.
    async fn drop_entries(&self, clusters: Range<u64>) -> Result<()> {
        let bits = self.layout.cluster_bits;
        let table = usize::try_from(clusters.start / self.table_clusters()).unwrap_or(usize::MAX);
        if clusters.is_empty() || self.tables.borrow().l1_entry(table) == 0 {
            return Ok(());
        }
        for cluster in clusters {
            let disk = cluster << bits;
            while self.lookup(DiskOffset(disk), 1) == Lookup::Absent {
                self.load(DiskOffset(disk)).await?;
            }
            let entry = self.tables.borrow_mut().entry(cluster);
            if entry == Entry::default() {
                continue;
            }
            // What leads to where nothing can be was nobody's to let go.
            let target = self.layout.target(entry, disk).unwrap_or(Target::Nothing);
            self.tables.borrow_mut().set(cluster, Entry::default());
            self.release(target);
        }
        Ok(())
    }

    /// Makes the L1 table so many entries long, if it is not.
    async fn extend_l1(&self, entries: u64) -> Result<()> {
        let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
        let header = self.header();
        let (old_at, old_bytes) = (header.l1_table, u64::from(header.l1_entries) * 8);
        if entries * 8 <= old_bytes {
            return Ok(());
        }
        let fits = entries * 8 <= old_bytes.next_multiple_of(header.cluster_bytes());
        let mut at = old_at;
        if fits {
            // What is behind a table, in its last cluster, may be anything.
            let behind = FileOffset(at + old_bytes);
            self.file.write_zeroes(behind, entries * 8 - old_bytes, false).await?;
        } else {
            at = self.new_room(entries * 8).await?;
            self.put_counts().await.inspect_err(|_| self.release_bytes(at, entries * 8))?;
            let words: Vec<u64> = self.tables.borrow().l1().collect();
            self.file.write_pieces(vec![(FileOffset(at), commit::big_endian(&words))]).await?;
        }
        self.sync().await?;
        let change = |header: &mut Header| {
            header.l1_table = at;
            header.l1_entries = u32::try_from(entries).expect("at most 32 MiB");
        };
        self.switch_header(change).await?;
        let entries = usize::try_from(entries).expect("at most 32 MiB");
        self.tables.borrow_mut().set_l1_entries(entries);
        if !fits {
            self.release_bytes(old_at, old_bytes);
        }
        Ok(())
    }

    /// Makes the data file so long, with nothing in it beyond `before`.
    async fn set_data_bytes(&self, before: u64, bytes: u64) -> Result<()> {
        let Some(data) = &self.data_file else { return Ok(()) };
        if data.file().facts().is_block_device {
            return Ok(());
        }
        if data.file_bytes()? > before {
            data.truncate(before).await?;
        }
        data.truncate(bytes).await
    }

    /// Maps clusters to where they are in a data file that is an image of the disk by itself: others may write to it.
    async fn map_raw(&self, clusters: Range<u64>) -> Result<()> {
        let bits = self.layout.cluster_bits;
        for cluster in clusters {
            if self.has_many_changes() {
                self.commit_shared().await?;
            }
            let disk = cluster << bits;
            while self.lookup(DiskOffset(disk), 1) == Lookup::Absent {
                self.load(DiskOffset(disk)).await?;
            }
            self.map(disk..disk + (1 << bits), FileOffset(disk));
        }
        Ok(())
    }
}

impl MappedNode<Qcow2> {
    /// Changes the disk's size. What is added reads as zeroes, also where the backing file, a disk of `backing_bytes` bytes, has data. No request may
    /// be under way, and none may come before this has ended.
    ///
    /// # Errors
    ///
    /// `BadRequest` with the reason, `Corrupt` if the disk's tables are, and nothing changed. The host's; then [`Qcow2::disk_bytes`] says which size
    /// the disk has, and the space of a part that was cut off may be lost until the next check.
    pub async fn resize(&self, bytes: u64, backing_bytes: Option<u64>) -> Result<()> {
        let mapping = self.mapping();
        let grows = bytes > mapping.disk_bytes();
        let below = backing_bytes.filter(|_| grows).unwrap_or(0);
        let hide = async |range: Range<u64>| {
            let cluster_bytes = 1u64 << mapping.cluster_bits();
            // Whole clusters of zeroes, and not one with data for the part of it that the disk has.
            let shown = range.end.min(below).max(range.start).next_multiple_of(cluster_bytes);
            let mut here = range.start;
            while here < shown {
                let extent = self.map(DiskOffset(here), shown - here).await?;
                let shows = match extent.kind {
                    ExtentKind::Data(_) | ExtentKind::Compressed => true,
                    ExtentKind::Unallocated => here < below,
                    ExtentKind::Zero => false,
                };
                if shows {
                    self.write_zeroes(DiskOffset(here), extent.len, true).await?;
                }
                here += extent.len;
            }
            self.flush().await
        };
        Box::pin(mapping.resize_hiding(bytes, hide)).await
    }
}
