//! The one piece of code that moves data for every format: reads, writes, copies on write, zeroes.
//!
//! ```text
//!   request --> Mapping::lookup: where is it?
//!                 Data         -> the host file, at once
//!                 Zero         -> zeroes
//!                 Unallocated  -> read: the backing file, or zeroes
//!                                 write: a new cluster; what the write leaves of it comes from the backing file,
//!                                        merged with the data into one write; then the mapping appears
//! ```
//!
//! A format ([`Mapping`]) says where data is and where new data goes, and moves none itself.
//!
//! Who changes what is mapped holds the range of the clusters ([`RangeLocks`]); requests to other clusters go on beside it. Who has looked a place up
//! holds a pin until the I/O there is over, so that a freed place is not used again under it.

use crate::pins::{Pin, PinGuard, Pins};
use crate::{BlockNode, DiskOffset, Error, Extent, ExtentKind, FileOffset, HostNode, Result};
use guest_mem::IoVecs;
use io_engine::FileRef;
use iothread::{IoContext, RangeLocks};
use std::rc::Rc;

/// What RAM knows about a place on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Where it is.
    Extent(Extent),
    /// A part of the tables has to be read first.
    Absent,
    /// Its table entry, whose value this is, contradicts the specification.
    Corrupt(u64),
}

/// A format: where a disk's data is in its file.
#[allow(async_fn_in_trait, reason = "used on one thread, by one caller")]
pub trait Mapping {
    /// Binary logarithm of a cluster's bytes.
    fn cluster_bits(&self) -> u32;
    /// The pins of this disk.
    fn pins(&self) -> &Rc<Pins>;
    /// What `len` bytes at `at` are, as far as they are alike.
    fn lookup(&self, at: DiskOffset, len: u64) -> Lookup;
    /// The error for a corrupt entry.
    fn corrupt(&self, at: DiskOffset, value: u64) -> Error;
    /// Reads what a lookup at `at` needs. Look again afterwards.
    async fn load(&self, at: DiskOffset) -> Result<()>;
    /// Whether new space reads as zeroes.
    fn is_zeroed(&self) -> bool;
    /// Adjacent new clusters, if they can be had without waiting.
    fn take(&self, clusters: u64) -> Option<FileOffset>;
    /// Adjacent new clusters.
    async fn allocate(&self, clusters: u64) -> Result<FileOffset>;
    /// Clusters that were allocated and not mapped.
    fn give_back(&self, at: FileOffset, clusters: u64);
    /// Maps clusters of the disk, from number `cluster` on, to adjacent clusters of the file. What they were before is freed.
    fn map(&self, cluster: u64, clusters: u64, at: FileOffset);
    /// Makes a cluster of the disk read as zeroes. What it was before is freed.
    fn map_zero(&self, cluster: u64);
    /// Whether one of these clusters of the disk has a mapping that is not durable.
    fn is_changed(&self, first: u64, last: u64) -> bool;
    /// More changes must wait for a commit.
    fn has_many_changes(&self) -> bool;
    /// Makes data and mappings durable.
    async fn commit(&self) -> Result<()>;
    /// Called after changes: time for work in the background.
    fn tend(self: &Rc<Self>);
    /// The disk is not used any more: ends the work in the background. What is not committed is lost, as after a crash.
    fn abandon(&self);
}

/// Largest buffer for a copy on write, in bytes.
const COPY_BYTES: u64 = 1 << 20;

/// What is written.
#[derive(Debug)]
enum Source {
    Guest(IoVecs),
    Zeroes,
}

/// A disk in a format with tables, on its home thread.
#[derive(Debug)]
pub struct MappedNode<M: Mapping> {
    context: IoContext,
    file: Rc<HostNode>,
    mapping: Rc<M>,
    backing: Option<Box<Backing>>,
    /// Ranges of the disk, in whole clusters, whose mapping is being changed.
    locks: RangeLocks,
}

/// What shows through where nothing is allocated.
#[derive(Debug)]
pub(crate) struct Backing {
    pub node: BlockNode,
    /// Size of its disk in bytes. Beyond it there are zeroes.
    pub bytes: u64,
}

impl<M: Mapping> Drop for MappedNode<M> {
    fn drop(&mut self) {
        self.mapping.abandon();
    }
}

impl<M: Mapping> MappedNode<M> {
    pub(crate) fn new(file: Rc<HostNode>, mapping: Rc<M>, backing: Option<Box<Backing>>) -> Self {
        let context = file.context().clone();
        MappedNode { context, file, mapping, backing, locks: RangeLocks::default() }
    }

    /// The format.
    pub(crate) fn mapping(&self) -> &Rc<M> {
        &self.mapping
    }

    /// The file.
    pub(crate) fn file(&self) -> &Rc<HostNode> {
        &self.file
    }

    /// The disk below, and its size in bytes.
    pub(crate) fn backing(&self) -> Option<(&BlockNode, u64)> {
        self.backing.as_ref().map(|below| (&below.node, below.bytes))
    }

    /// See [`BlockNode::pin`].
    #[inline]
    pub(crate) fn pin(&self) -> Pin {
        self.mapping.pins().pin()
    }

    /// See [`BlockNode::unpin`].
    #[inline]
    pub(crate) fn unpin(&self, pin: Pin) {
        self.mapping.pins().unpin(pin, &self.context);
    }

    fn pinned(&self) -> PinGuard {
        self.mapping.pins().guard(&self.context)
    }

    /// Where the data at `at` is, if that can be told without waiting.
    #[inline]
    pub(crate) fn map_cached(&self, at: DiskOffset, len: u64) -> Option<Extent> {
        match self.mapping.lookup(at, len) {
            Lookup::Extent(extent) => Some(extent),
            Lookup::Absent | Lookup::Corrupt(_) => None,
        }
    }

    /// Where the data at `at` is.
    pub(crate) async fn map(&self, at: DiskOffset, len: u64) -> Result<Extent> {
        loop {
            match self.mapping.lookup(at, len) {
                Lookup::Extent(extent) => return Ok(extent),
                Lookup::Corrupt(value) => return Err(self.mapping.corrupt(at, value)),
                Lookup::Absent => self.mapping.load(at).await?,
            }
        }
    }

    /// See [`BlockNode::read_direct`].
    #[inline]
    pub(crate) fn read_direct(
        &self,
        at: DiskOffset,
        data: &IoVecs,
    ) -> Option<(&FileRef, FileOffset)> {
        let extent = self.map_cached(at, data.bytes())?;
        match extent.kind {
            ExtentKind::Data(offset) => {
                let whole = extent.len >= data.bytes() && self.file.is_aligned(offset, data);
                whole.then(|| (self.file.file(), offset))
            }
            _ => None,
        }
    }

    /// See [`BlockNode::write_direct`].
    #[inline]
    pub(crate) fn write_direct(
        &self,
        at: DiskOffset,
        data: &IoVecs,
        durable: bool,
    ) -> Option<(&FileRef, FileOffset)> {
        if self.file.tracks_writes() {
            return None;
        }
        let extent = self.map_cached(at, data.bytes())?;
        if extent.len < data.bytes() {
            return None;
        }
        let offset = match extent.kind {
            // A durable write to a cluster whose mapping is not durable needs a commit.
            ExtentKind::Data(_) if durable && self.is_changed(at, data.bytes()) => return None,
            ExtentKind::Data(offset) => offset,
            _ if durable => return None,
            ExtentKind::Unallocated if self.backing.is_some() => return None,
            _ => return self.allocate_direct(at, data),
        };
        self.file.is_aligned(offset, data).then(|| (self.file.file(), offset))
    }

    /// A new cluster at once: see "Writes that need no waiting" in [`crate::qed`].
    fn allocate_direct(&self, at: DiskOffset, data: &IoVecs) -> Option<(&FileRef, FileOffset)> {
        let (first, last) = self.clusters(at, data.bytes());
        let whole = self.bytes_of(first, last);
        let within = at.0 - whole.start;
        // Whole clusters keep the alignment of the place on the disk.
        let fits = self.mapping.is_zeroed() && self.file.is_aligned(FileOffset(within), data);
        if !fits || self.locks.overlaps(&whole) {
            return None;
        }
        let place = self.mapping.take(last - first + 1)?;
        self.mapping.map(first, last - first + 1, place);
        self.mapping.tend();
        Some((self.file.file(), FileOffset(place.0 + within)))
    }

    fn is_changed(&self, at: DiskOffset, len: u64) -> bool {
        let (first, last) = self.clusters(at, len);
        self.mapping.is_changed(first, last)
    }

    /// The first and last cluster that a range touches; `len` is not 0.
    fn clusters(&self, at: DiskOffset, len: u64) -> (u64, u64) {
        let bits = self.mapping.cluster_bits();
        (at.0 >> bits, (at.0 + len - 1) >> bits)
    }

    /// The bytes of the disk that these clusters are.
    fn bytes_of(&self, first: u64, last: u64) -> std::ops::Range<u64> {
        let bits = self.mapping.cluster_bits();
        first << bits..(last + 1) << bits
    }

    /// Reads.
    pub(crate) async fn read(&self, at: DiskOffset, into: IoVecs) -> Result<()> {
        let _pin = self.pinned();
        let mut ops = Vec::new();
        let mut done = 0;
        while done < into.bytes() {
            let here = DiskOffset(at.0 + done);
            let extent = self.map(here, into.bytes() - done).await?;
            let part = into.part(done, extent.len);
            match (extent.kind, &self.backing) {
                (ExtentKind::Data(from), _) if self.file.is_aligned(from, &part) => {
                    ops.push(self.file.read_op(from, part));
                }
                (ExtentKind::Data(from), _) => self.file.read(from, part).await?,
                (ExtentKind::Unallocated, Some(backing)) => {
                    Box::pin(backing.read(here, part)).await?;
                }
                (ExtentKind::Zero | ExtentKind::Unallocated, _) => part.zero_from(0),
            }
            done += extent.len;
        }
        self.file.all(ops, "reading").await
    }

    /// Reads into memory of our own.
    pub(crate) async fn read_to(&self, at: DiskOffset, into: &mut [u8]) -> Result<()> {
        let _pin = self.pinned();
        let mut done = 0;
        while done < into.len() {
            let here = DiskOffset(at.0 + done as u64);
            let extent = self.map(here, (into.len() - done) as u64).await?;
            let end = done + usize::try_from(extent.len).expect("no more than was asked for");
            let part = &mut into[done..end];
            match (extent.kind, &self.backing) {
                (ExtentKind::Data(from), _) => self.file.read_to(from, part).await?,
                (ExtentKind::Unallocated, Some(backing)) => {
                    Box::pin(backing.read_to(here, part)).await?;
                }
                (ExtentKind::Zero | ExtentKind::Unallocated, _) => part.fill(0),
            }
            done = end;
        }
        Ok(())
    }

    /// Writes; with `fua`, durably.
    pub(crate) async fn write(&self, at: DiskOffset, from: IoVecs, fua: bool) -> Result<()> {
        let total = from.bytes();
        let mut done = 0;
        while done < total {
            let here = DiskOffset(at.0 + done);
            let extent = self.map(here, total - done).await?;
            done += match extent.kind {
                ExtentKind::Data(place) => {
                    let _pin = self.pinned();
                    let durable = fua && !self.is_changed(here, extent.len);
                    self.file.write(place, from.part(done, extent.len), durable).await?;
                    if durable && extent.len == total {
                        return Ok(());
                    }
                    extent.len
                }
                _ => {
                    let part = from.part(done, extent.len);
                    Box::pin(self.write_new(here, extent.len, Source::Guest(part))).await?
                }
            };
        }
        if fua { self.mapping.commit().await } else { Ok(()) }
    }

    /// Writes to clusters that are not allocated, as far as they are alike; gives the bytes written: 0 if that has changed meanwhile.
    async fn write_new(&self, at: DiskOffset, len: u64, source: Source) -> Result<u64> {
        let bits = self.mapping.cluster_bits();
        let most = (COPY_BYTES >> bits).max(1);
        let first = at.0 >> bits;
        let len = len.min(((first + most) << bits) - at.0);
        let (_, last) = self.clusters(at, len);
        let _guard = self.locks.lock(&self.context, self.bytes_of(first, last)).await;
        let extent = self.map(at, len).await?;
        if let ExtentKind::Data(_) = extent.kind {
            return Ok(0);
        }
        let len = extent.len.min(len);
        let (_, last) = self.clusters(at, len);
        let count = last - first + 1;
        let shows_backing = extent.kind == ExtentKind::Unallocated && self.backing.is_some();
        let place = self.mapping.allocate(count).await?;
        let mut filled = self.fill(at, len, place, source, shows_backing).await;
        if filled.is_ok() {
            // The tables may have left RAM while we waited.
            filled = self.map(at, 1).await.map(drop);
        }
        match filled {
            Ok(()) => {
                self.mapping.map(first, count, place);
                self.mapping.tend();
                Ok(len)
            }
            Err(error) => {
                self.mapping.give_back(place, count);
                Err(error)
            }
        }
    }

    /// Writes the data of new clusters at `place`, and around it what they held before.
    async fn fill(
        &self,
        at: DiskOffset,
        len: u64,
        place: FileOffset,
        source: Source,
        shows_backing: bool,
    ) -> Result<()> {
        let (first, last) = self.clusters(at, len);
        let whole = self.bytes_of(first, last);
        let covers = len == whole.end - whole.start;
        let needs_fill = !covers && (shows_backing || !self.mapping.is_zeroed());
        if let (Source::Guest(data), false) = (&source, needs_fill) {
            let to = FileOffset(place.0 + (at.0 - whole.start));
            return self.file.write(to, data.part(0, len), false).await;
        }
        // One write, unless the cluster is larger than a buffer should be.
        for from in whole.clone().step_by(index(COPY_BYTES)) {
            let to = whole.end.min(from + COPY_BYTES);
            let mut buf = self.file.buffer(to - from);
            let (start, end) = (at.0.clamp(from, to), (at.0 + len).clamp(from, to));
            let (before, rest) = buf.as_mut_slice().split_at_mut(index(start - from));
            let (inside, after) = rest.split_at_mut(index(end - start));
            if let (true, Some(backing)) = (shows_backing, &self.backing) {
                Box::pin(backing.read_to(DiskOffset(from), before)).await?;
                Box::pin(backing.read_to(DiskOffset(end), after)).await?;
            }
            if let Source::Guest(data) = &source {
                data.copy_to(start - at.0.min(start), inside);
            }
            self.file.write_owned(FileOffset(place.0 + (from - whole.start)), buf).await?;
        }
        Ok(())
    }

    /// Makes a range read as zeroes; with `unmap`, its space is given back.
    pub(crate) async fn write_zeroes(&self, at: DiskOffset, len: u64, unmap: bool) -> Result<()> {
        self.each_piece(at, len, async |here, piece, is_whole| {
            let extent = self.map(here, piece).await?;
            match extent.kind {
                ExtentKind::Data(_) if unmap && is_whole => self.unmap(here, extent.len).await?,
                ExtentKind::Data(place) => {
                    let _pin = self.pinned();
                    self.file.write_zeroes(place, extent.len, unmap).await?;
                }
                ExtentKind::Unallocated if self.backing.is_some() => match is_whole {
                    true => self.unmap(here, extent.len).await?,
                    false => {
                        let zeroes = self.write_new(here, extent.len, Source::Zeroes);
                        return Box::pin(zeroes).await;
                    }
                },
                ExtentKind::Zero | ExtentKind::Unallocated => {}
            }
            Ok(extent.len)
        })
        .await
    }

    /// Tells that a range's content is not needed any more: its space is given back, and it reads as zeroes where it had some.
    pub(crate) async fn discard(&self, at: DiskOffset, len: u64) -> Result<()> {
        self.each_piece(at, len, async |here, piece, is_whole| {
            let extent = self.map(here, piece).await?;
            match extent.kind {
                ExtentKind::Data(_) if is_whole => self.unmap(here, extent.len).await?,
                ExtentKind::Data(place) => {
                    let _pin = self.pinned();
                    self.file.discard(place, extent.len).await?;
                }
                ExtentKind::Zero | ExtentKind::Unallocated => {}
            }
            Ok(extent.len)
        })
        .await
    }

    /// Calls `f` for parts of the range, each either a part of one cluster or whole clusters (then it is told `true`). It says how far it came.
    async fn each_piece(
        &self,
        at: DiskOffset,
        len: u64,
        f: impl AsyncFn(DiskOffset, u64, bool) -> Result<u64>,
    ) -> Result<()> {
        let cluster = 1u64 << self.mapping.cluster_bits();
        let end = at.0 + len;
        let mut here = at.0;
        while here < end {
            let rest = end - here;
            let to_boundary = cluster - here % cluster;
            let is_whole = here.is_multiple_of(cluster) && rest >= cluster;
            let piece = match is_whole {
                true => rest / cluster * cluster,
                false => to_boundary.min(rest),
            };
            here += f(DiskOffset(here), piece, is_whole).await?;
        }
        Ok(())
    }

    /// Turns whole clusters into zero clusters.
    async fn unmap(&self, at: DiskOffset, len: u64) -> Result<()> {
        let (first, last) = self.clusters(at, len);
        let _guard = self.locks.lock(&self.context, self.bytes_of(first, last)).await;
        for cluster in first..=last {
            while self.mapping.has_many_changes() {
                self.mapping.commit().await?;
            }
            // It may have left RAM, or have become something else, while we waited.
            let place = DiskOffset(cluster << self.mapping.cluster_bits());
            let extent = self.map(place, 1).await?;
            if extent.kind != ExtentKind::Zero {
                self.mapping.map_zero(cluster);
            }
        }
        self.mapping.tend();
        Ok(())
    }

    /// Makes every completed write durable.
    pub(crate) async fn flush(&self) -> Result<()> {
        self.mapping.commit().await
    }
}

impl Backing {
    async fn read(&self, at: DiskOffset, into: IoVecs) -> Result<()> {
        let there = self.bytes.saturating_sub(at.0).min(into.bytes());
        into.zero_from(there);
        match there {
            0 => Ok(()),
            there => self.node.read(at, into.part(0, there)).await,
        }
    }

    async fn read_to(&self, at: DiskOffset, into: &mut [u8]) -> Result<()> {
        let there = index(self.bytes.saturating_sub(at.0).min(into.len() as u64));
        into[there..].fill(0);
        self.node.read_to(at, &mut into[..there]).await
    }
}

/// A length within a buffer.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("buffers are small")
}
