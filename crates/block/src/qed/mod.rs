//! QED, QEMU's enhanced disk format: two levels of tables, no refcounts, and an order of writes that makes a journal needless.
//!
//! ```text
//!   +--------+----------+----------+----------+-----+
//!   | header | L1 table | cluster  | cluster  | ... |      L1 entry -> L2 table -> cluster
//!   +--------+----------+----------+----------+-----+      a table is 1 to 16 clusters
//! ```
//!
//! Specification: QEMU `docs/interop/qed_spec.rst`. Nothing here leaves it: QEMU opens and checks every image that this driver writes.
//!
//! # What a crash may leave
//!
//! New mappings stay in RAM (`tables`) until a commit writes them. A commit is a group, for however many clusters, in this order:
//!
//! ```text
//!   1  NEED_CHECK in the header, if it is not set     2  data: written before, by the requests themselves
//!   3  new L2 tables, whole, where nothing refers to them
//!   ---- sync ----                                       what follows may only refer to what is on stable storage
//!   4  entries of L2 tables that were linked before   5  L1 entries of the new tables
//!   ---- sync ----                                       the guest's flush is answered; only now may freed clusters be used again
//! ```
//!
//! At every instant each durable table entry refers to a cluster whose content is durable, that lies within the durable length of the file, and
//! that no other entry refers to. So whatever subset of the unsynced writes a power cut leaves:
//!
//! - cut before the first sync: clusters and tables that nothing refers to: leaks. The length is made to cover a cluster before the cluster is used;
//! - cut between the syncs: each entry (8 bytes within one sector, so old or new) has its old value or its new one, and both are good;
//! - a freed cluster keeps its content until the commit that unlinked it is durable and every request that had found it is over (`space`).
//!
//! In the words of `reliability.md` 2.2: NEED_CHECK is durable before the first table update of a dirty epoch (R1), as it is part of the first
//! sync, which costs nothing; data and new tables are durable before what refers to them, with and without backing file (R2, R3); NEED_CHECK is
//! cleared after a sync, and synced (R4); an image opened for writing is read whole, so the next free cluster lies behind every reference and
//! not just behind the end of the file (R5, `scan`); with NEED_CHECK set, references out of the file are dropped, and an image that
//! uses a cluster twice is refused (R6).
//!
//! NEED_CHECK is not needed for consistency by this driver's order. It is set all the same, so that a crash is seen, and its leaks are
//! found, by QEMU too. Five seconds after the last commit it is cleared again.
//!
//! # Writes that need no waiting
//!
//! Without a backing file, unwritten space of the host's file reads as zeroes, and so does an unallocated cluster. So the mapping may be made in RAM
//! at once, before the data is there, and the write goes straight to the engine: a read that overtakes it finds zeroes, as before. Writes to one and
//! the same new cluster need not wait for each other either. With a backing file the cluster appears only when it is complete.
//!
//! One I/O thread owns the image: nothing here needs a lock.

pub mod check;
mod chores;
mod commit;
mod create;
mod header;
mod open;
mod resize;
mod scan;
mod tables;

pub use create::{CreateOptions, new_image};
pub use header::Header;

use crate::commits::Commits;
use crate::filters::Event;
use crate::loads::Loads;
use crate::mapped::{Lookup, Mapping};
use crate::pins::Pins;
use crate::room::Room;
use crate::space::Run;
use crate::tend::{self, Tending};
use crate::{
    DiskOffset, Error, ErrorKind, Extent, ExtentKind, FileOffset, HostNode, NodeOptions, Result,
};
use iothread::{IoContext, RangeLocks};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use tables::{SLICE_BYTES, Tables, UNALLOCATED, ZERO};

/// Uncommitted entries that start a commit: at random over a disk they come many to a table, and one write takes them all.
const CHANGES_DUE: usize = 65536;
/// Slices with uncommitted entries that start a commit. Each is held twice, and three times while it is written.
const CHANGED_SLICES_DUE: usize = 4096;
/// Writers wait for the commit at so many times these.
const WAIT_AT: usize = 2;

/// An open QED image, on its home thread.
#[derive(Debug)]
pub struct Qed {
    context: IoContext,
    file: Rc<HostNode>,
    options: NodeOptions,
    header: RefCell<Header>,
    /// The file's first bytes, of which the header is a part: one write unit.
    start: RefCell<Vec<u8>>,
    tables: RefCell<Tables>,
    room: Room,
    pins: Rc<Pins>,
    loads: Loads,
    commits: Commits,
    /// One commit or change of the header at a time.
    exclusive: RangeLocks,
    tending: Tending,
}

impl Qed {
    /// Size of the virtual disk in bytes.
    pub fn image_bytes(&self) -> u64 {
        self.header.borrow().image_bytes()
    }

    /// The header, as it is in the file.
    pub fn header(&self) -> Header {
        self.header.borrow().clone()
    }

    /// Bytes of RAM that tables take.
    pub fn table_bytes(&self) -> u64 {
        let tables = self.tables.borrow();
        tables.slices.bytes() + tables.l1().len() as u64 * 8
    }

    /// Makes the image stand on another file, whose name this is and which may be raw, or on none. What the disk reads as is for the caller to keep the
    /// same, and to have flushed. No request may be under way; as long as the image is open, the disk below is the one it was opened with.
    ///
    /// The name is written where the old one is not, and synced; then the header, in one sector, leads to it: a power cut leaves the old one or the new.
    ///
    /// # Errors
    ///
    /// `BadRequest` if the name cannot be; the host's.
    pub async fn set_backing(&self, backing: Option<(&[u8], bool)>) -> Result<()> {
        let refuse = |why: &str| {
            let what = format!("changing the backing file of {}: {why}", self.file.path());
            Err(Error::new(ErrorKind::BadRequest, what))
        };
        if self.options.read_only || self.options.health.is_poisoned() {
            return refuse("it is open for reading only, or an earlier flush failed");
        }
        Box::pin(self.commit()).await?;
        let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
        let old = self.header().without_backing();
        let new = match backing {
            None => old,
            Some((name, is_raw)) => {
                let bytes = u32::try_from(name.len()).unwrap_or(u32::MAX);
                if !(1..=header::BACKING_NAME_MAX).contains(&bytes) {
                    return refuse("the name has 1 to 1023 bytes");
                }
                let before = self.header().backing_name();
                let (from, len) = before.unwrap_or((self.header().first_cluster(), 0));
                let least = Header::LEN as u64;
                let is_free = least + u64::from(bytes) <= from;
                let at = if is_free { least } else { from + len as u64 };
                if at + u64::from(bytes) > self.header().first_cluster() {
                    return refuse("the header has no room for the name");
                }
                self.file.write_from(FileOffset(at), name, false).await?;
                // The first unit is written again with every change of the header.
                let skipped = usize::try_from(at).unwrap_or(usize::MAX);
                for (byte, new) in self.start.borrow_mut().iter_mut().skip(skipped).zip(name) {
                    *byte = *new;
                }
                self.sync().await?;
                old.with_backing(at, bytes, is_raw)
            }
        };
        let written = self.write_header(new).await;
        let done = match written {
            Ok(()) => self.sync().await,
            Err(error) => Err(error),
        };
        done.inspect_err(|_| {
            self.options.health.poison();
        })
    }

    /// Bytes that metadata is written in: a sector, or what the host asks for.
    fn unit(&self) -> u64 {
        self.file.align().max(crate::SECTOR)
    }

    async fn sync(&self) -> Result<()> {
        if self.options.unsafe_sync {
            return Ok(());
        }
        // A sync that failed has lost something that nobody can name: see `Health`.
        self.file.flush().await.inspect_err(|_| {
            self.options.health.poison();
        })
    }

    /// Writes the header with these features, and nothing else of it changed.
    async fn write_header(&self, header: Header) -> Result<()> {
        let mut buf = self.file.buffer(self.unit());
        let bytes = buf.as_mut_slice();
        bytes.copy_from_slice(&self.start.borrow()[..bytes.len()]);
        bytes[..Header::LEN].copy_from_slice(&header.encode());
        self.file.write_owned(FileOffset(0), buf).await?;
        *self.header.borrow_mut() = header;
        Ok(())
    }

    /// Whether so many times as much is uncommitted as starts a commit.
    fn has_changes(&self, times: usize) -> bool {
        let tables = self.tables.borrow();
        tables.slices.changes() >= times * CHANGES_DUE
            || tables.slices.changed_slices() >= times * CHANGED_SLICES_DUE
    }

    fn take_run(&self, clusters: u64) -> Option<u64> {
        let mut space = self.room.space.borrow_mut();
        let at = space.take(clusters)?;
        self.tables.borrow_mut().set_end(space.end());
        Some(at)
    }

    /// Clusters that must be available for `clusters` of them to be used for data: what is uncommitted may need tables.
    fn needed(&self, clusters: u64) -> u64 {
        self.room.needed(clusters, |writes| {
            let tables = self.tables.borrow().slices.changed_slices() as u64 + writes;
            tables * self.header.borrow().table_clusters()
        })
    }

    /// As [`Qed::take_run`], leaving enough for the tables that what is uncommitted may need.
    fn take_data_run(&self, clusters: u64) -> Option<u64> {
        let available = self.room.space.borrow().available();
        (available >= self.needed(clusters)).then(|| self.take_run(clusters))?
    }

    /// Adjacent clusters that nothing uses, for data.
    async fn new_data_run(&self, clusters: u64) -> Result<u64> {
        let mut committed = false;
        // What was let go may be used when that is durable, and what is committed needs no more tables.
        let more = async || {
            if self.room.space.borrow().has_released() {
                self.free_released().await?;
                return Ok(true);
            }
            if std::mem::replace(&mut committed, true) {
                return Ok(false);
            }
            self.commit_shared().await.map(|()| true)
        };
        self.room.run(|| self.take_data_run(clusters), || self.needed(clusters), more).await
    }
}

impl Mapping for Qed {
    fn cluster_bits(&self) -> u32 {
        self.header.borrow().cluster_bits()
    }

    fn pins(&self) -> &Rc<Pins> {
        &self.pins
    }

    #[inline]
    fn lookup(&self, at: DiskOffset, len: u64) -> Lookup {
        self.tables.borrow_mut().lookup(at, len)
    }

    async fn corrupt(&self, at: DiskOffset, value: u64) -> Error {
        let path = self.file.path();
        let what = format!("{path}: the table entry for {:#x} is {value:#x}: not a cluster", at.0);
        Error::new(ErrorKind::Corrupt, what)
    }

    async fn load(&self, at: DiskOffset) -> Result<()> {
        let slice = self.tables.borrow().slice_of(at);
        let Some(place) = self.tables.borrow().slice_at(slice) else { return Ok(()) };
        self.file.event(Event::L2Load);
        let read = async || self.file.read_owned(FileOffset(place), SLICE_BYTES).await;
        let Some(read) = self.loads.alone(&self.context, slice, read).await else { return Ok(()) };
        self.tables.borrow_mut().slices.insert(slice, read?.as_slice());
        Ok(())
    }

    fn room(&self) -> &Room {
        &self.room
    }

    fn take(&self, clusters: u64) -> Option<FileOffset> {
        if self.has_many_changes() {
            return None;
        }
        self.take_data_run(clusters).map(FileOffset)
    }

    async fn allocate(&self, clusters: u64) -> Result<FileOffset> {
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
        self.room.space.borrow_mut().release(run, self.commits.begun());
    }

    fn map(&self, disk: Range<u64>, at: FileOffset) {
        let bits = self.cluster_bits();
        let first = disk.start >> bits;
        for cluster in first..disk.end >> bits {
            let place = at.0 + ((cluster - first) << bits);
            let before = self.tables.borrow_mut().set(cluster, place);
            self.release(before);
        }
        self.tending.changed(&self.context);
    }

    fn zero(&self, disk: Range<u64>, unmap: bool) -> bool {
        let found = self.lookup(DiskOffset(disk.start), 1);
        match found {
            Lookup::Found(Extent { kind: ExtentKind::Zero, .. }, _) => return true,
            // A zero cluster has no space: what is to keep it is written.
            Lookup::Found(Extent { kind: ExtentKind::Data(_), .. }, _) if !unmap => return false,
            _ => {}
        }
        let before = self.tables.borrow_mut().set(disk.start >> self.cluster_bits(), ZERO);
        self.release(before);
        self.tending.changed(&self.context);
        true
    }

    fn is_changed(&self, first: u64, last: u64) -> bool {
        self.tables.borrow().is_changed(first, last)
    }

    fn has_many_changes(&self) -> bool {
        self.has_changes(WAIT_AT)
    }

    async fn commit(&self) -> Result<()> {
        // Boxed, here and below, what a request seldom does: its future would make every task's larger.
        Box::pin(self.commit_shared()).await
    }

    fn tend(self: &Rc<Self>) {
        tend::start(self);
    }

    fn abandon(&self) {
        self.tending.end(&self.context);
    }
}

impl Qed {
    /// The cluster that an entry referred to is on its way to being free.
    fn release(&self, before: u64) {
        if before != UNALLOCATED && before != ZERO {
            self.give_back(FileOffset(before), 1);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
