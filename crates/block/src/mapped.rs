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

use crate::crypt::Cipher;
use crate::filters::Event;
use crate::pins::{Pin, PinGuard, Pins};
use crate::room::Room;
use crate::{
    BlockNode, DiskOffset, Error, Extent, ExtentKind, FileOffset, HostNode, Result, SECTOR,
};
use guest_mem::IoVecs;
use io_engine::FileRef;
use iothread::{IoContext, RangeGuard, RangeLocks};
use std::ops::Range;
use std::rc::Rc;

/// What RAM knows about a place on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Where it is, and where data that is written there goes.
    Found(Extent, WriteTo),
    /// A part of the tables has to be read first.
    Absent,
    /// Its table entry, whose value this is, contradicts the specification.
    Corrupt(u64),
}

/// Where data goes that is written to an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteTo {
    /// To where its data is.
    Place,
    /// Into clusters that are its own already and hold nothing: the place of its first byte.
    Reserved(FileOffset),
    /// Into new clusters.
    New,
    /// Into new clusters that first get all that the old ones hold: these are used by others as well, or compressed.
    Copy,
}

/// A format: where a disk's data is in its file.
///
/// A cluster is what space is allocated in. A grain is what can be mapped for itself: a cluster, or a subcluster in formats that have some.
#[allow(async_fn_in_trait, reason = "used on one thread, by one caller")]
pub trait Mapping {
    /// Binary logarithm of a cluster's bytes.
    fn cluster_bits(&self) -> u32;
    /// Binary logarithm of a grain's bytes.
    fn grain_bits(&self) -> u32 {
        self.cluster_bits()
    }
    /// The pins of this disk.
    fn pins(&self) -> &Rc<Pins>;
    /// What `len` bytes at `at` are, as far as they are alike.
    fn lookup(&self, at: DiskOffset, len: u64) -> Lookup;
    /// The error for a corrupt entry; takes note of it, if the format has a way to.
    async fn corrupt(&self, at: DiskOffset, value: u64) -> Error;
    /// Reads what a lookup at `at` needs. Look again afterwards.
    async fn load(&self, at: DiskOffset) -> Result<()>;
    /// Where new clusters come from.
    fn room(&self) -> &Room;
    /// Whether new space reads as zeroes.
    fn is_zeroed(&self) -> bool {
        self.room().is_zeroed()
    }
    /// What the data is encrypted with.
    fn encryption(&self) -> Option<&Encryption> {
        None
    }
    /// The content of the compressed cluster that begins at `cluster`.
    async fn read_compressed(&self, cluster: DiskOffset) -> Result<Rc<[u8]>> {
        Err(self.corrupt(cluster, 0).await)
    }
    /// Adjacent new clusters, if they can be had without waiting.
    fn take(&self, clusters: u64) -> Option<FileOffset>;
    /// Adjacent new clusters.
    async fn allocate(&self, clusters: u64) -> Result<FileOffset>;
    /// Clusters that were allocated and not mapped.
    fn give_back(&self, at: FileOffset, clusters: u64);
    /// Maps whole grains of the disk to adjacent bytes of the file, `at` being the place of the first. Clusters that they were in before are freed.
    fn map(&self, disk: Range<u64>, at: FileOffset);
    /// Makes whole grains of one cluster of the disk read as zeroes, and frees their space if `unmap` and it is a whole cluster. `false`, and nothing
    /// changed, if the format has no way to say so.
    fn zero(&self, disk: Range<u64>, unmap: bool) -> bool;
    /// Whether what was zeroed with `unmap` keeps its cluster nevertheless.
    fn keeps_discarded(&self) -> bool {
        false
    }
    /// Whether one of these clusters of the disk has a mapping that is not durable.
    fn is_changed(&self, first: u64, last: u64) -> bool;
    /// More changes must wait for a commit.
    fn has_many_changes(&self) -> bool;
    /// Makes data and mappings durable.
    async fn commit(&self) -> Result<()>;
    /// A write to this range begins.
    #[inline]
    fn written(&self, _at: DiskOffset, _len: u64) {}
    /// Called after changes: time for work in the background.
    fn tend(self: &Rc<Self>);
    /// The disk is not used any more: ends the work in the background. What is not committed is lost, as after a crash.
    fn abandon(&self);
}

/// How an image's data is encrypted.
#[derive(Debug)]
pub struct Encryption {
    /// The cipher and its key.
    pub cipher: Cipher,
    /// Sectors are counted from the start of the file, not of the disk.
    pub by_place: bool,
}

impl Encryption {
    /// Number of the sector that data for `at` at this place begins with.
    fn sector(&self, at: DiskOffset, place: FileOffset) -> u64 {
        if self.by_place { place.0 / SECTOR } else { at.0 / SECTOR }
    }
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
    /// `file` is where the data is.
    pub(crate) fn new(file: Rc<HostNode>, mapping: Rc<M>, backing: Option<Box<Backing>>) -> Self {
        let context = file.context().clone();
        MappedNode { context, file, mapping, backing, locks: RangeLocks::default() }
    }

    /// The format.
    pub(crate) fn mapping(&self) -> &Rc<M> {
        &self.mapping
    }

    /// The file that the data is in.
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
            Lookup::Found(extent, _) => Some(extent),
            Lookup::Absent | Lookup::Corrupt(_) => None,
        }
    }

    /// Where the data at `at` is.
    pub(crate) async fn map(&self, at: DiskOffset, len: u64) -> Result<Extent> {
        self.find(at, len).await.map(|(extent, _)| extent)
    }

    async fn find(&self, at: DiskOffset, len: u64) -> Result<(Extent, WriteTo)> {
        loop {
            match self.mapping.lookup(at, len) {
                Lookup::Found(extent, write) => return Ok((extent, write)),
                Lookup::Corrupt(value) => return Err(self.mapping.corrupt(at, value).await),
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
            ExtentKind::Data(offset) if self.mapping.encryption().is_none() => {
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
        if self.file.tracks_writes() || self.mapping.encryption().is_some() {
            return None;
        }
        let Lookup::Found(extent, write) = self.mapping.lookup(at, data.bytes()) else {
            return None;
        };
        if extent.len < data.bytes() {
            return None;
        }
        let offset = match (extent.kind, write) {
            // A durable write to a cluster whose mapping is not durable needs a commit.
            _ if durable && self.is_changed(at, data.bytes()) => return None,
            (ExtentKind::Data(offset), WriteTo::Place) => offset,
            _ if durable => return None,
            (ExtentKind::Unallocated, _) if self.backing.is_some() => return None,
            (ExtentKind::Unallocated | ExtentKind::Zero, WriteTo::New) => {
                return self.allocate_direct(at, data);
            }
            _ => return None,
        };
        if !self.file.is_aligned(offset, data) {
            return None;
        }
        self.mapping.written(at, data.bytes());
        Some((self.file.file(), offset))
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
        let grains = self.grains(at, data.bytes());
        self.mapping.map(grains.clone(), FileOffset(place.0 + (grains.start - whole.start)));
        self.mapping.written(at, data.bytes());
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
    fn bytes_of(&self, first: u64, last: u64) -> Range<u64> {
        let bits = self.mapping.cluster_bits();
        first << bits..(last + 1) << bits
    }

    /// The whole grains that a range touches.
    fn grains(&self, at: DiskOffset, len: u64) -> Range<u64> {
        let grain = 1u64 << self.mapping.grain_bits();
        at.0 / grain * grain..(at.0 + len).next_multiple_of(grain)
    }

    /// Reads.
    pub(crate) async fn read(&self, at: DiskOffset, into: IoVecs) -> Result<()> {
        let _pin = self.pinned();
        let plain = self.mapping.encryption().is_none();
        let mut ops = Vec::new();
        let mut done = 0;
        while done < into.bytes() {
            let here = DiskOffset(at.0 + done);
            let extent = self.map(here, into.bytes() - done).await?;
            let part = into.part(done, extent.len);
            match (extent.kind, &self.backing) {
                (ExtentKind::Data(from), _) if plain && self.file.is_aligned(from, &part) => {
                    ops.push(self.file.read_op(from, part));
                }
                (ExtentKind::Data(from), _) if plain => self.file.read(from, part).await?,
                (ExtentKind::Data(_) | ExtentKind::Compressed, _) => {
                    Box::pin(self.read_by_pieces(here, part)).await?;
                }
                (ExtentKind::Unallocated, Some(backing)) => {
                    Box::pin(backing.read(here, part)).await?;
                }
                (ExtentKind::Zero | ExtentKind::Unallocated, _) => part.zero_from(0),
            }
            done += extent.len;
        }
        self.file.all(ops, "reading").await
    }

    /// Reads what must pass through memory of our own.
    async fn read_by_pieces(&self, at: DiskOffset, into: IoVecs) -> Result<()> {
        let mut done = 0;
        while done < into.bytes() {
            let mut piece = vec![0; index((into.bytes() - done).min(COPY_BYTES))];
            self.read_to(DiskOffset(at.0 + done), &mut piece).await?;
            done += into.copy_from(done, &piece) as u64;
        }
        Ok(())
    }

    /// Reads into memory of our own.
    pub(crate) async fn read_to(&self, at: DiskOffset, into: &mut [u8]) -> Result<()> {
        let _pin = self.pinned();
        let mut done = 0;
        while done < into.len() {
            let here = DiskOffset(at.0 + done as u64);
            let extent = self.map(here, (into.len() - done) as u64).await?;
            let end = done + index(extent.len);
            let part = &mut into[done..end];
            match (extent.kind, &self.backing) {
                (ExtentKind::Data(from), _) => self.read_data(here, from, part).await?,
                (ExtentKind::Compressed, _) => {
                    let cluster = here.0 >> self.mapping.cluster_bits();
                    let start = cluster << self.mapping.cluster_bits();
                    let data = self.mapping.read_compressed(DiskOffset(start)).await?;
                    let skip = index(here.0 - start);
                    part.copy_from_slice(&data[skip..skip + part.len()]);
                }
                (ExtentKind::Unallocated, Some(backing)) => {
                    Box::pin(backing.read_to(here, part)).await?;
                }
                (ExtentKind::Zero | ExtentKind::Unallocated, _) => part.fill(0),
            }
            done = end;
        }
        Ok(())
    }

    /// Reads data, and decrypts it.
    async fn read_data(&self, at: DiskOffset, from: FileOffset, into: &mut [u8]) -> Result<()> {
        self.file.event(Event::ReadAio);
        self.file.read_to(from, into).await?;
        if let Some(encryption) = self.mapping.encryption() {
            encryption.cipher.decrypt(encryption.sector(at, from), into);
        }
        Ok(())
    }

    /// Writes data, encrypted if the image is, to a place of its own.
    async fn write_data(
        &self,
        at: DiskOffset,
        to: FileOffset,
        data: &IoVecs,
        durable: bool,
    ) -> Result<()> {
        let Some(encryption) = self.mapping.encryption() else {
            return self.file.write(to, data.part(0, data.bytes()), durable).await;
        };
        let mut done = 0;
        while done < data.bytes() {
            let mut piece = vec![0; index((data.bytes() - done).min(COPY_BYTES))];
            data.copy_to(done, &mut piece);
            let (at, to) = (DiskOffset(at.0 + done), FileOffset(to.0 + done));
            encryption.cipher.encrypt(encryption.sector(at, to), &mut piece);
            self.file.event(Event::WriteAio);
            self.file.write_from(to, &piece, durable).await?;
            done += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes; with `fua`, durably.
    pub(crate) async fn write(&self, at: DiskOffset, from: IoVecs, fua: bool) -> Result<()> {
        let total = from.bytes();
        self.mapping.written(at, total);
        let mut done = 0;
        while done < total {
            let here = DiskOffset(at.0 + done);
            let (extent, write) = self.find(here, total - done).await?;
            done += match (extent.kind, write) {
                (ExtentKind::Data(place), WriteTo::Place) => {
                    let _pin = self.pinned();
                    let durable = fua && !self.is_changed(here, extent.len);
                    self.write_data(here, place, &from.part(done, extent.len), durable).await?;
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

    /// Writes to where no data can be overwritten, as far as that is alike; gives the bytes written: 0 if that has changed meanwhile.
    async fn write_new(&self, at: DiskOffset, len: u64, source: Source) -> Result<u64> {
        let bits = self.mapping.cluster_bits();
        let most = (COPY_BYTES >> bits).max(1);
        let first = at.0 >> bits;
        let len = len.min(((first + most) << bits) - at.0);
        let (_, last) = self.clusters(at, len);
        let _guard = self.locks.lock(&self.context, self.bytes_of(first, last)).await;
        let _allocating = self.mapping.room().allocating();
        let (extent, write) = self.find(at, len).await?;
        let len = extent.len.min(len);
        let (_, last) = self.clusters(at, len);
        let clusters = self.bytes_of(first, last);
        let mut new = New {
            data: at.0..at.0 + len,
            filled: self.grains(at, len),
            place: FileOffset(0),
            shows: Shows::Zeroes,
        };
        if extent.kind == ExtentKind::Unallocated && self.backing.is_some() {
            new.shows = Shows::Old;
        }
        let allocated = match write {
            WriteTo::Place => return Ok(0),
            WriteTo::Reserved(place) => {
                new.place = FileOffset(place.0 - (at.0 - new.filled.start));
                if new.shows == Shows::Zeroes {
                    new.shows = Shows::Unknown;
                }
                None
            }
            WriteTo::New | WriteTo::Copy => {
                let count = last - first + 1;
                self.file.event(Event::ClusterAlloc);
                let start = self.mapping.allocate(count).await?;
                if write == WriteTo::Copy {
                    (new.filled, new.shows) = (clusters.clone(), Shows::Old);
                } else if new.shows == Shows::Zeroes && !self.mapping.is_zeroed() {
                    new.shows = Shows::Unknown;
                }
                new.place = FileOffset(start.0 + (new.filled.start - clusters.start));
                Some((start, count))
            }
        };
        let mut filled = self.fill(&new, source).await;
        if filled.is_ok() {
            // The tables may have left RAM while we waited.
            filled = self.find(at, 1).await.map(drop);
        }
        match filled {
            Ok(()) => {
                self.mapping.map(new.filled, new.place);
                self.mapping.tend();
                Ok(len)
            }
            Err(error) => {
                if let Some((start, count)) = allocated {
                    self.mapping.give_back(start, count);
                }
                Err(error)
            }
        }
    }

    /// Writes the data of grains that are to be mapped, and around it what they held before.
    async fn fill(&self, new: &New, source: Source) -> Result<()> {
        let (whole, data) = (&new.filled, &new.data);
        if let Source::Guest(from) = &source
            && (new.shows == Shows::Zeroes || whole == data)
        {
            let to = FileOffset(new.place.0 + (data.start - whole.start));
            let from = from.part(0, data.end - data.start);
            return self.write_data(DiskOffset(data.start), to, &from, false).await;
        }
        // One write, unless the cluster is larger than a buffer should be.
        for from in whole.clone().step_by(index(COPY_BYTES)) {
            let to = whole.end.min(from + COPY_BYTES);
            let mut buf = self.file.buffer(to - from);
            let (start, end) = (data.start.clamp(from, to), data.end.clamp(from, to));
            let (before, rest) = buf.as_mut_slice().split_at_mut(index(start - from));
            let (inside, after) = rest.split_at_mut(index(end - start));
            if new.shows == Shows::Old {
                self.file.event(Event::CowRead);
                Box::pin(self.read_to(DiskOffset(from), before)).await?;
                Box::pin(self.read_to(DiskOffset(end), after)).await?;
            }
            if let Source::Guest(guest) = &source {
                guest.copy_to(start.saturating_sub(data.start), inside);
            }
            let place = FileOffset(new.place.0 + (from - whole.start));
            if let Some(encryption) = self.mapping.encryption() {
                let sector = encryption.sector(DiskOffset(from), place);
                encryption.cipher.encrypt(sector, buf.as_mut_slice());
            }
            self.file.event(Event::CowWrite);
            self.file.write_buffer(place, buf).await?;
        }
        Ok(())
    }

    /// Makes a range read as zeroes; with `unmap`, its space is given back.
    pub(crate) async fn write_zeroes(&self, at: DiskOffset, len: u64, unmap: bool) -> Result<()> {
        self.mapping.written(at, len);
        self.each_piece(at, len, async |here, piece, is_whole| {
            let (extent, write) = self.find(here, piece).await?;
            let has_backing = self.backing.is_some();
            match extent.kind {
                ExtentKind::Zero => return Ok(extent.len),
                ExtentKind::Unallocated if !has_backing => return Ok(extent.len),
                _ if is_whole && self.zero(here, extent.len, unmap).await? => {
                    return Ok(extent.len);
                }
                _ => {}
            }
            match (extent.kind, write) {
                (ExtentKind::Data(place), WriteTo::Place)
                    if self.mapping.encryption().is_none() =>
                {
                    let _pin = self.pinned();
                    self.file.write_zeroes(place, extent.len, unmap).await?;
                    Ok(extent.len)
                }
                (ExtentKind::Data(place), WriteTo::Place) => {
                    let len = extent.len.min(COPY_BYTES);
                    let _pin = self.pinned();
                    self.write_zeroes_encrypted(here, place, len).await?;
                    Ok(len)
                }
                _ => Box::pin(self.write_new(here, extent.len, Source::Zeroes)).await,
            }
        })
        .await
    }

    async fn write_zeroes_encrypted(
        &self,
        at: DiskOffset,
        place: FileOffset,
        len: u64,
    ) -> Result<()> {
        let mut zeroes = vec![0; index(len)];
        if let Some(encryption) = self.mapping.encryption() {
            encryption.cipher.encrypt(encryption.sector(at, place), &mut zeroes);
        }
        self.file.write_from(place, &zeroes, false).await
    }

    /// Tells that a range's content is not needed any more: its space is given back, and it reads as zeroes where it had some.
    pub(crate) async fn discard(&self, at: DiskOffset, len: u64) -> Result<()> {
        self.mapping.written(at, len);
        self.each_piece(at, len, async |here, piece, is_whole| {
            let (extent, write) = self.find(here, piece).await?;
            match (extent.kind, write) {
                (ExtentKind::Zero | ExtentKind::Unallocated, WriteTo::New) => {}
                _ if is_whole => drop(self.zero(here, extent.len, true).await?),
                (ExtentKind::Data(place), WriteTo::Place)
                    if self.mapping.encryption().is_none() =>
                {
                    let _pin = self.pinned();
                    self.file.discard(place, extent.len).await?;
                }
                _ => {}
            }
            Ok(extent.len)
        })
        .await
    }

    /// Calls `f` for parts of the range, each either a part of one grain or whole grains (then it is told `true`). It says how far it came.
    async fn each_piece(
        &self,
        at: DiskOffset,
        len: u64,
        f: impl AsyncFn(DiskOffset, u64, bool) -> Result<u64>,
    ) -> Result<()> {
        let grain = 1u64 << self.mapping.grain_bits();
        let end = at.0 + len;
        let mut here = at.0;
        while here < end {
            let rest = end - here;
            let to_boundary = grain - here % grain;
            let is_whole = here.is_multiple_of(grain) && rest >= grain;
            let piece = match is_whole {
                true => rest / grain * grain,
                false => to_boundary.min(rest),
            };
            here += f(DiskOffset(here), piece, is_whole).await?;
        }
        Ok(())
    }

    /// Keeps others from changing what these bytes are mapped to.
    pub(crate) async fn lock(&self, at: DiskOffset, len: u64) -> RangeGuard {
        let (first, last) = self.clusters(at, len);
        self.locks.lock(&self.context, self.bytes_of(first, last)).await
    }

    /// Makes whole grains read as zeroes without writing any, if the format has a way to say so.
    async fn zero(&self, at: DiskOffset, len: u64, unmap: bool) -> Result<bool> {
        // Boxed, as its future would make every task's larger.
        Box::pin(self.zero_locked(at, len, unmap)).await
    }

    async fn zero_locked(&self, at: DiskOffset, len: u64, unmap: bool) -> Result<bool> {
        let (first, last) = self.clusters(at, len);
        let _guard = self.locks.lock(&self.context, self.bytes_of(first, last)).await;
        let mut kept = Vec::new();
        for cluster in first..=last {
            while self.mapping.has_many_changes() {
                self.mapping.commit().await?;
            }
            let whole = self.bytes_of(cluster, cluster);
            let here = whole.start.max(at.0)..whole.end.min(at.0 + len);
            // It may have left RAM while we waited.
            let before = self.find(DiskOffset(here.start), here.end - here.start).await?;
            if !self.mapping.zero(here, unmap) {
                return Ok(false);
            }
            if unmap && self.mapping.keeps_discarded() {
                note_kept(before, &mut kept);
            }
        }
        self.mapping.tend();
        self.punch_kept(&kept).await?;
        Ok(true)
    }

    /// Gives the host's space of clusters back that stay where they are. Their range is locked: what is written there next, goes there afterwards.
    async fn punch_kept(&self, kept: &[(FileOffset, u64)]) -> Result<()> {
        // The entries that say "zeroes" are not durable yet: after a power cut the old ones show what is there. A hole in a file is zeroes, too; what
        // a block device has discarded may be anything, and zeroes that were never encrypted decrypt to anything.
        if kept.is_empty() || !self.mapping.is_zeroed() {
            return Ok(());
        }
        let _pin = self.pinned();
        for (place, len) in kept {
            self.file.write_zeroes(*place, *len, true).await?;
        }
        Ok(())
    }

    /// Makes every completed write durable.
    pub(crate) async fn flush(&self) -> Result<()> {
        self.mapping.commit().await
    }
}

/// Takes note of where data was that is gone now, if that is where it would be written again.
fn note_kept((extent, write): (Extent, WriteTo), kept: &mut Vec<(FileOffset, u64)>) {
    let (ExtentKind::Data(place), WriteTo::Place) = (extent.kind, write) else { return };
    match kept.last_mut() {
        Some((at, len)) if at.0 + *len == place.0 => *len += extent.len,
        _ => kept.push((place, extent.len)),
    }
}

/// Grains that are to be mapped.
#[derive(Debug)]
struct New {
    /// What of the disk is written.
    data: Range<u64>,
    /// The whole grains around it.
    filled: Range<u64>,
    /// Where they will be.
    place: FileOffset,
    /// What stands at that place, or must, around the data.
    shows: Shows,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    /// Zeroes, and the place holds them already.
    Zeroes,
    /// Zeroes, and the place holds anything.
    Unknown,
    /// What the disk shows there now.
    Old,
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
