//! qcow2, QEMU's copy-on-write format: two levels of tables, a reference count for each cluster, snapshots.
//!
//! ```text
//!   header --> L1 table ------------> L2 tables --> clusters          L2 entry: a cluster, zeroes, compressed data, or nothing
//!      `-----> refcount table ------> refcount blocks                 how often each cluster of the file is used
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`. Nothing here leaves it: QEMU opens and checks every image that this driver writes.
//!
//! # What a crash may leave
//!
//! New mappings stay in RAM (`tables`), and so do the counts of what they use (`counts`), until a commit writes them. A commit is a group, for
//! however many clusters, in this order:
//!
//! ```text
//!   1  data: written before, by the requests themselves      2  new L2 tables, whole, where nothing refers to them
//!   3  counts: up for what is taken, down for what was let go by an earlier commit; new refcount blocks, whole
//!   ---- sync ----                                              what follows may only refer to what is on stable storage
//!   4  entries of the refcount table for new blocks             seldom: a block of 64 KiB counts 2 GiB
//!   ---- sync ----                                              only after step 4
//!   5  entries of L2 tables that were linked before             6  L1 entries of the new tables
//!   ---- sync ----                                              the guest's flush is answered; what it let go is counted down by the next commit
//! ```
//!
//! At every instant the durable count of a cluster is at least the number of durable references to it, and each durable reference leads to what is
//! durable itself. So a power cut leaves counts that are too high, which are leaks, and nothing else:
//!
//! - before the first sync: some counts are higher than they need be;
//! - between the syncs: each entry (8 or 16 bytes within one sector, so old or new) has its old value or its new one, and both are good;
//! - a cluster that was let go keeps its count, its content and its place until the commit that unlinked it is durable; then its count goes
//!   down, and when that is 0 and every request that had found it is over, it is punched out of the file and may be used again;
//! - with `discard_no_unref` a discarded cluster keeps its place: the entry with "reads as zeroes" is a change like any other, and the hole that is
//!   punched at once reads as zeroes by the old entry as well.
//!
//! In the words of `reliability.md` 2.3: counts are durable before what refers to the cluster (Q1), new tables and blocks before their link (Q2),
//! data before its entry (Q3), counts go down after the unlinking is durable (Q4), and only then is a cluster used again (Q5). No count is ever
//! late, so the dirty bit is not needed (Q6): lazy refcounts would save nothing here, as a group's counts cost one write. An image
//! that somebody else left dirty is counted anew before it is written (Q7). COPIED is set where a cluster is used once (Q8).
//!
//! # Writes that need no waiting
//!
//! As in [`crate::qed`], "Writes that need no waiting": without a backing file a mapping may appear in RAM before its data is there.
//!
//! One I/O thread owns the image: nothing here needs a lock.

mod bitmaps;
pub mod check;
mod chores;
mod commit;
mod compress;
mod counts;
pub mod create;
pub(crate) mod entry;
pub mod header;
mod open;
pub(crate) mod refcount;
mod resize;
mod rewrite;
mod snapshots;
mod tables;

pub use bitmaps::{BitmapInfo, bitmaps_in};
pub use compress::deflate;
pub use create::{CreateOptions, new_image};
pub use header::{BackingFile, Header};
pub(crate) use open::{Parts, read_header};
pub use rewrite::Amendment;
pub use snapshots::{NewSnapshot, Snapshot, snapshots_in};

use crate::commits::Commits;
use crate::filters::Event;
use crate::loads::Loads;
use crate::mapped::{Encryption, Lookup, Mapping};
use crate::pins::Pins;
use crate::room::Room;
use crate::space::Run;
use crate::tend::{self, Tending};
use crate::used::UsedMap;
use crate::{DiskOffset, Error, ErrorKind, FileOffset, HostNode, NodeOptions, Result};
use counts::Counts;
use entry::{Layout, Reads, Target};
use iothread::{IoContext, RangeLocks};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use tables::Tables;

/// Uncommitted words that start a commit: at random over a disk they come many to a table, and one write takes them all.
const CHANGES_DUE: usize = 65536;
/// Slices with uncommitted words that start a commit. Each is held twice, and three times while it is written.
const CHANGED_SLICES_DUE: usize = 4096;
/// Writers wait for the commit at so many times these.
const WAIT_AT: usize = 2;

/// An open qcow2 image, on its home thread.
#[derive(Debug)]
pub struct Qcow2 {
    context: IoContext,
    file: Rc<HostNode>,
    /// Where the data is, if not in `file`.
    data_file: Option<Rc<HostNode>>,
    options: NodeOptions,
    header: RefCell<Header>,
    /// The file's first bytes: one write unit.
    start: RefCell<Vec<u8>>,
    layout: Layout,
    encryption: Option<Arc<Encryption>>,
    tables: RefCell<Tables>,
    counts: RefCell<Counts>,
    room: Room,
    /// Clusters of the file that hold tables: no data may be there.
    metadata: RefCell<UsedMap>,
    search: chores::Search,
    pins: Rc<Pins>,
    loads: Loads,
    commits: Commits,
    /// One commit or change of the header at a time.
    exclusive: RangeLocks,
    tending: Tending,
    /// The compressed cluster that was read last, and where it is.
    inflated: RefCell<Option<(u64, Rc<[u8]>)>>,
    packing: compress::Packing,
    bitmaps: bitmaps::Bitmaps,
    /// Something contradicts the specification: noted in the header.
    is_corrupt: Cell<bool>,
}

impl Qcow2 {
    /// Size of the virtual disk in bytes: whole sectors.
    pub fn disk_bytes(&self) -> u64 {
        self.header.borrow().disk_bytes / crate::SECTOR * crate::SECTOR
    }

    /// The header, as it is in the file.
    pub fn header(&self) -> Header {
        self.header.borrow().clone()
    }

    /// Bytes of RAM that tables and counts take.
    pub fn table_bytes(&self) -> u64 {
        let (tables, counts) = (self.tables.borrow(), self.counts.borrow());
        let first_levels = (tables.l1_entries() + counts.table().len()) as u64 * 8;
        tables.slices.bytes() + counts.bytes() + first_levels
    }

    /// Bytes that metadata is written in: a sector, or what the host asks for, if tables are as large.
    fn unit(&self) -> usize {
        let unit = self.file.align().max(crate::SECTOR).min(self.tables.borrow().slice_bytes());
        usize::try_from(unit).expect("at most a slice")
    }

    async fn sync(&self) -> Result<()> {
        if self.options.unsafe_sync {
            return Ok(());
        }
        let poison = |_: &Error| {
            // A sync that failed has lost something that nobody can name: see `Health`.
            self.options.health.poison();
        };
        if let Some(data) = &self.data_file {
            data.flush().await.inspect_err(poison)?;
        }
        self.file.flush().await.inspect_err(poison)
    }

    /// Writes the fields of a changed header, of which all that differs is in one sector.
    async fn write_header(&self, header: Header) -> Result<()> {
        let mut start = self.start.borrow().clone();
        header.patch(&mut start);
        self.file.write_from(FileOffset(0), &start, false).await?;
        *self.start.borrow_mut() = start;
        *self.header.borrow_mut() = header;
        Ok(())
    }

    /// Whether so many times as much is uncommitted as starts a commit.
    fn has_changes(&self, times: usize) -> bool {
        let tables = self.tables.borrow();
        tables.slices.changes() >= times * CHANGES_DUE
            || tables.slices.changed_slices() >= times * CHANGED_SLICES_DUE
    }

    /// Adjacent clusters that nothing uses, if there are some without the file growing.
    fn take_run(&self, clusters: u64) -> Option<u64> {
        let mut space = self.room.space.borrow_mut();
        let at = space.take(clusters)?;
        self.counts.borrow_mut().take(Run { at, clusters });
        Some(at)
    }

    /// Clusters that must be available for `clusters` of them to be used for data: what is uncommitted needs tables.
    fn needed(&self, clusters: u64) -> u64 {
        self.room.needed(clusters, |writes| {
            let (tables, counts) = (self.tables.borrow(), self.counts.borrow());
            tables.slices.changed_slices() as u64 + writes + counts.tables_needed(clusters)
        })
    }

    /// As [`Qcow2::take_run`], leaving enough for the tables that what is uncommitted needs.
    fn take_data_run(&self, clusters: u64) -> Option<u64> {
        let available = self.room.space.borrow().available();
        (available >= self.needed(clusters)).then(|| self.take_run(clusters))?
    }

    /// Adjacent clusters that nothing uses, for data.
    async fn new_data_run(&self, clusters: u64) -> Result<u64> {
        let mut committed = false;
        // What was let go may be used when that is durable.
        let more = async || {
            if self.find_more().await? {
                return Ok(true);
            }
            if std::mem::replace(&mut committed, true) {
                return Ok(false);
            }
            self.commit_shared().await?;
            self.free_unused().await.map(|()| true)
        };
        self.room.run(|| self.take_data_run(clusters), || self.needed(clusters), more).await
    }

    /// Adjacent clusters that nothing uses, for tables. The caller holds `exclusive`.
    async fn new_run(&self, clusters: u64) -> Result<u64> {
        let more = async || self.find_more_exclusively().await;
        self.room.run(|| self.take_run(clusters), || clusters, more).await
    }

    /// Adjacent clusters for tables, reading as zeroes.
    async fn new_table(&self, clusters: u64) -> Result<u64> {
        let at = self.new_run(clusters).await?;
        let bits = self.layout.cluster_bits;
        for cluster in at >> bits..(at >> bits) + clusters {
            self.metadata.borrow_mut().mark(cluster);
        }
        // An entry that leads here, and was good while this was free, must not be written through.
        self.tables.borrow_mut().slices.forget_marks();
        if !self.room.is_zeroed() {
            self.file.write_zeroes(FileOffset(at), clusters << bits, false).await?;
        }
        Ok(at)
    }

    /// What a table entry referred to is on its way to being free.
    fn release(&self, target: Target) {
        let bits = self.layout.cluster_bits;
        let clusters = match target {
            Target::Nothing => return,
            Target::Cluster { .. } if self.layout.is_external => return,
            Target::Cluster { at, .. } => at >> bits..(at >> bits) + 1,
            Target::Compressed { at, bytes } => at >> bits..((at + bytes - 1) >> bits) + 1,
        };
        let run = Run { at: clusters.start << bits, clusters: clusters.end - clusters.start };
        self.counts.borrow_mut().release(run, self.commits.begun());
    }

    /// Gives `result`; an image of which it says that it is corrupt is marked so.
    async fn or_mark_corrupt(&self, result: Result<()>) -> Result<()> {
        if let Err(error) = &result
            && error.kind() == ErrorKind::Corrupt
        {
            self.mark_corrupt(&error.to_string()).await;
        }
        result
    }

    fn refuse_corrupt(&self) -> Result<()> {
        match self.is_corrupt.get() {
            false => Ok(()),
            true => {
                let what = format!("writing {}: it was found corrupt", self.file.path());
                Err(Error::new(ErrorKind::Corrupt, what))
            }
        }
    }

    /// Notes in the header that the image contradicts its specification; nothing is written any more.
    async fn mark_corrupt(&self, why: &str) {
        if self.options.read_only || self.is_corrupt.replace(true) {
            return;
        }
        tracing::error!("{why}: the image is marked corrupt, and nothing more is written to it");
        let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
        let mut header = self.header.borrow().clone();
        if header.version >= 3 {
            header.incompatible |= header::CORRUPT;
            let written = async {
                self.write_header(header).await?;
                self.sync().await
            };
            if let Err(error) = written.await {
                tracing::error!("{error}");
            }
        }
        self.options.health.poison();
    }
}

impl Mapping for Qcow2 {
    fn cluster_bits(&self) -> u32 {
        self.layout.cluster_bits
    }

    fn grain_bits(&self) -> u32 {
        self.layout.grain_bits()
    }

    fn pins(&self) -> &Rc<Pins> {
        &self.pins
    }

    #[inline]
    fn lookup(&self, at: DiskOffset, len: u64) -> Lookup {
        let may_be_data = |at: u64| {
            let cluster = at >> self.layout.cluster_bits;
            !self.metadata.borrow().contains(cluster) && !self.room.space.borrow().is_free(at)
        };
        self.tables.borrow_mut().lookup(at, len, may_be_data)
    }

    async fn corrupt(&self, at: DiskOffset, value: u64) -> Error {
        let path = self.file.path();
        let what = format!(
            "{path}: the table entry for {:#x} is {value:#x}: it leads to where no data can be",
            at.0
        );
        Box::pin(self.mark_corrupt(&what)).await;
        Error::new(ErrorKind::Corrupt, what)
    }

    async fn load(&self, at: DiskOffset) -> Result<()> {
        let slice = self.tables.borrow().slice_of(at);
        let read = async || self.read_slice(slice).await;
        let Some(read) = self.loads.alone(&self.context, slice, read).await else { return Ok(()) };
        if let Some(bytes) = read? {
            self.tables.borrow_mut().slices.insert(slice, &bytes);
        }
        Ok(())
    }

    fn room(&self) -> &Room {
        &self.room
    }

    fn is_zeroed(&self) -> bool {
        self.room.is_zeroed() && self.encryption.is_none() && !self.layout.is_external
    }

    fn encryption(&self) -> Option<&Encryption> {
        self.encryption.as_deref()
    }

    async fn read_compressed(&self, cluster: DiskOffset) -> Result<Rc<[u8]>> {
        Box::pin(self.inflate(cluster)).await
    }

    fn take(&self, clusters: u64) -> Option<FileOffset> {
        if self.has_many_changes() || self.is_corrupt.get() {
            return None;
        }
        self.take_data_run(clusters).map(FileOffset)
    }

    async fn allocate(&self, clusters: u64) -> Result<FileOffset> {
        self.refuse_corrupt()?;
        // Fewer than the limit again, before more are added.
        while self.has_many_changes() {
            self.commit().await?;
        }
        if let Some(at) = self.take_data_run(clusters) {
            return Ok(FileOffset(at));
        }
        Box::pin(self.new_data_run(clusters)).await.map(FileOffset)
    }

    fn give_back(&self, at: FileOffset, clusters: u64) {
        let run = Run { at: at.0, clusters };
        self.counts.borrow_mut().release(run, self.commits.begun());
    }

    fn map(&self, disk: Range<u64>, at: FileOffset) {
        let cluster_bytes = self.layout.cluster_bytes();
        let mut here = disk.start;
        while here < disk.end {
            let start = here / cluster_bytes * cluster_bytes;
            let end = disk.end.min(start + cluster_bytes);
            let place = at.0 + (here - disk.start) - (here - start);
            self.map_in_cluster(start, self.layout.mask(here - start, end - start), place);
            here = end;
        }
        self.tending.changed(&self.context);
    }

    fn zero(&self, disk: Range<u64>, unmap: bool) -> bool {
        let layout = self.layout;
        let start = disk.start / layout.cluster_bytes() * layout.cluster_bytes();
        let mask = layout.mask(disk.start - start, disk.end - start);
        let mut tables = self.tables.borrow_mut();
        let cluster = start >> layout.cluster_bits;
        let (before, hides) = (tables.entry(cluster), tables.hides());
        let Some(target) = layout.target(before, start) else { return false };
        let keeps = !unmap || self.keeps_discarded();
        let says_zero = layout.has_zero || layout.is_extended;
        match target {
            // In a file of its own the data has its place for good: what is there is overwritten.
            Target::Cluster { .. } if layout.is_external => return false,
            Target::Nothing if layout.is_external && self.is_raw_external() => return false,
            // The other grains have no cluster to stay in.
            Target::Compressed { .. } if mask != layout.mask(0, layout.cluster_bytes()) => {
                return false;
            }
            _ if !says_zero && (hides || keeps && target != Target::Nothing) => return false,
            _ => {}
        }
        // A cluster that others use as well is not kept: it is not ours.
        let keeps = keeps && matches!(target, Target::Cluster { is_own: true, .. });
        let after = layout.zeroed(before, mask, hides, keeps);
        if after == before {
            return true;
        }
        let stays = layout.target(after, start) == Some(target);
        tables.set(cluster, after);
        drop(tables);
        if !stays {
            self.release(target);
        }
        self.tending.changed(&self.context);
        true
    }

    fn keeps_discarded(&self) -> bool {
        self.options.discard_no_unref
    }

    fn is_changed(&self, first: u64, last: u64) -> bool {
        self.tables.borrow().is_changed(first, last)
    }

    fn has_many_changes(&self) -> bool {
        self.has_changes(WAIT_AT)
    }

    async fn commit(&self) -> Result<()> {
        // Boxed, here and below, what a request seldom does: its future would make every task's larger.
        Box::pin(async { self.or_mark_corrupt(self.commit_shared().await).await }).await
    }

    #[inline]
    fn written(&self, at: DiskOffset, len: u64) {
        if self.bitmaps.is_recording() {
            self.record(at, len);
        }
    }

    fn tend(self: &Rc<Self>) {
        tend::start(self);
    }

    fn abandon(&self) {
        self.tending.end(&self.context);
    }
}

impl Qcow2 {
    /// Maps grains of the cluster of the disk at `disk` to the cluster of the file at `place`.
    fn map_in_cluster(&self, disk: u64, mask: u64, place: u64) {
        let layout = self.layout;
        let mut tables = self.tables.borrow_mut();
        let cluster = disk >> layout.cluster_bits;
        let before = tables.entry(cluster);
        let target = layout.target(before, disk).unwrap_or(Target::Nothing);
        tables.set(cluster, layout.mapped(before, place, mask));
        drop(tables);
        let stays = matches!(target, Target::Cluster { at, is_own: true } if at == place);
        if !stays {
            self.release(target);
        }
    }

    /// A slice as it is in the file; `None` if its table is not.
    async fn read_slice(&self, slice: u64) -> Result<Option<Vec<u8>>> {
        // A table that snapshots share is left behind by a commit, and may be used for something else once nobody reads it.
        let _pin = self.pins.guard(&self.context);
        let Some(at) = self.tables.borrow().slice_at(slice) else { return Ok(None) };
        let len = self.tables.borrow().slice_bytes();
        let mut bytes = vec![0; usize::try_from(len).expect("at most 4 KiB")];
        self.file.event(Event::L2Load);
        self.file.read_to(FileOffset(at), &mut bytes).await?;
        Ok(Some(bytes))
    }

    /// The data file alone is to be an image of the disk.
    fn is_raw_external(&self) -> bool {
        self.header.borrow().autoclear & header::DATA_FILE_RAW != 0
    }

    /// What the entry of a cluster refers to.
    fn target_of(&self, cluster: u64) -> Option<(Target, Reads)> {
        let entry = self.tables.borrow_mut().entry(cluster);
        let target = self.layout.target(entry, cluster << self.layout.cluster_bits)?;
        Some((target, self.layout.reads(entry, target, 0)))
    }
}

#[cfg(test)]
mod tests;
