//! Compressed clusters: read whole, and the one read last is kept, as readers come in sequence; written one behind another, at any byte.
//!
//! ```text
//!   cluster of the file: | stream of disk cluster 7 | stream of 3 | stream of 12 ...    counted once for each stream that touches it
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Compressed Clusters Descriptor", "compression_type". What lies behind the end of a stream in its
//! last sector belongs to others.

use super::Qcow2;
use super::entry::Target;
use super::header::Compression;
use crate::filters::Event;
use crate::mapped::{Lookup, MappedNode, Mapping};
use crate::space::Run;
use crate::{DiskOffset, Error, ErrorKind, FileOffset, Result};
use std::cell::Cell;
use std::io::{Read, Write};
use std::rc::Rc;

/// Where the next stream goes.
#[derive(Debug, Default)]
pub(super) struct Packing {
    /// The byte behind the last stream; on a cluster's start, or 0, if no cluster is begun.
    next: Cell<u64>,
    /// Streams in the cluster of that byte: its count is at most as high.
    streams: Cell<u64>,
    /// One stream at a time: two may share a sector.
    writing: iothread::RangeLocks,
}

/// A cluster's data as a stream; `None` if that is not shorter. `level`: 1 (fast) to 9 for [`Compression::Zlib`], to 19 for [`Compression::Zstd`].
///
/// The same data, method and level give the same stream.
pub fn deflate(compression: Compression, level: u32, data: &[u8]) -> Option<Vec<u8>> {
    let stream = match compression {
        Compression::Zlib => {
            let level = flate2::Compression::new(level.clamp(1, 9));
            let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
            encoder.write_all(data).and_then(|()| encoder.finish())
        }
        Compression::Zstd => {
            let level = i32::try_from(level.clamp(1, 19)).expect("at most 19");
            zstd::bulk::compress(data, level)
        }
    };
    stream.ok().filter(|stream| stream.len() < data.len())
}

impl Qcow2 {
    /// The content of the compressed cluster at `disk`. Its slice is in RAM.
    pub(super) async fn inflate(&self, disk: DiskOffset) -> Result<Rc<[u8]>> {
        let number = disk.0 >> self.layout.cluster_bits;
        let Some((Target::Compressed { at, bytes }, _)) = self.target_of(number) else {
            let what = format!("{}: reading {:#x}: changed meanwhile", self.file.path(), disk.0);
            return Err(Error::new(ErrorKind::Io, what));
        };
        if let Some((place, data)) = &*self.inflated.borrow()
            && *place == at
        {
            return Ok(data.clone());
        }
        let mut raw = vec![0; usize::try_from(bytes).expect("at most two clusters")];
        self.file.event(Event::ReadCompressed);
        self.file.read_to(FileOffset(at), &mut raw).await?;
        let cluster = usize::try_from(self.layout.cluster_bytes()).expect("at most 2 MiB");
        let compression = self.header.borrow().compression;
        let data = inflate(compression, &raw, cluster).ok_or_else(|| {
            let what = format!(
                "{}: the compressed cluster for {:#x}, at {at:#x}, is damaged",
                self.file.path(),
                disk.0
            );
            Error::new(ErrorKind::Corrupt, what)
        })?;
        let data: Rc<[u8]> = data.into();
        *self.inflated.borrow_mut() = Some((at, data.clone()));
        Ok(data)
    }
}

impl Qcow2 {
    /// Maps the whole cluster of the disk at `disk` to a stream, which [`deflate`] made of its data. No other request to that cluster may be under way.
    pub(super) async fn put_compressed(&self, disk: DiskOffset, stream: &[u8]) -> Result<()> {
        let path = self.file.path();
        let refuse = |what: &str| {
            let what = format!("writing {path} compressed: {what}");
            Err(Error::new(ErrorKind::BadRequest, what))
        };
        if self.layout.is_external || self.encryption.is_some() {
            return refuse("not with a data file or encryption");
        }
        let cluster_bytes = self.layout.cluster_bytes();
        if !disk.0.is_multiple_of(cluster_bytes) || stream.len() as u64 >= cluster_bytes {
            return refuse("not one cluster, and shorter than that");
        }
        while self.has_many_changes() {
            self.commit().await?;
        }
        let _allocating = self.room.allocating();
        let guard = self.packing.writing.lock(&self.context, 0..1).await;
        let (at, run) = self.place_stream(stream.len() as u64).await?;
        self.file.event(Event::WriteCompressed);
        let mut placed = self.file.write_from(FileOffset(at), stream, false).await;
        drop(guard);
        if placed.is_ok() {
            placed = self.load_entry(disk).await;
        }
        if let Err(error) = placed {
            self.counts.borrow_mut().release(run, self.commits.begun());
            return Err(error);
        }
        let number = disk.0 >> self.layout.cluster_bits;
        let old = self.target_of(number).map_or(Target::Nothing, |(target, _)| target);
        *self.inflated.borrow_mut() = None;
        let entry = self.layout.compressed_at(at, stream.len() as u64);
        self.tables.borrow_mut().set(number, entry);
        self.release(old);
        self.tending.changed(&self.context);
        Ok(())
    }

    /// These clusters are free: no stream goes on there.
    pub(super) fn end_packing(&self, clusters: &std::ops::Range<u64>) {
        if clusters.contains(&(self.packing.next.get() >> self.layout.cluster_bits)) {
            self.packing.next.set(0);
        }
    }

    /// A place for a stream, and the clusters it touches, counted for it.
    async fn place_stream(&self, len: u64) -> Result<(u64, Run)> {
        let (bits, cluster) = (self.layout.cluster_bits, self.layout.cluster_bytes());
        let packing = &self.packing;
        let left = |next: u64| next.next_multiple_of(cluster) - next;
        let is_full = || packing.streams.get() >= self.counts.borrow().max();
        let mut at = packing.next.get();
        if left(at) < len || is_full() {
            let new = Box::pin(self.new_data_run(1)).await?;
            // Only from one cluster to the one behind it, and if that was not freed meanwhile.
            at = packing.next.get();
            if left(at) == 0 || at + left(at) != new || is_full() {
                at = new;
            } else {
                self.counts.borrow_mut().take(Run { at: new - cluster, clusters: 1 });
            }
            packing.streams.set(1);
        } else {
            self.counts.borrow_mut().take(Run { at: at >> bits << bits, clusters: 1 });
            packing.streams.set(packing.streams.get() + 1);
        }
        self.packing.next.set(at + len);
        let first = at >> bits;
        let clusters = ((at + len - 1) >> bits) + 1 - first;
        Ok((at, Run { at: first << bits, clusters }))
    }

    /// Brings the entry for a place to RAM.
    async fn load_entry(&self, disk: DiskOffset) -> Result<()> {
        loop {
            match self.lookup(disk, 1) {
                Lookup::Found(..) => return Ok(()),
                Lookup::Corrupt(value) => return Err(self.corrupt(disk, value).await),
                Lookup::Absent => self.load(disk).await?,
            }
        }
    }
}

impl MappedNode<Qcow2> {
    /// See [`crate::BlockNode::write_compressed`].
    pub(crate) async fn write_compressed(&self, at: DiskOffset, stream: &[u8]) -> Result<()> {
        let mapping = self.mapping();
        let _guard = self.lock(at, 1).await;
        mapping.written(at, mapping.layout.cluster_bytes());
        mapping.put_compressed(at, stream).await?;
        mapping.tend();
        Ok(())
    }
}

/// The first `len` bytes of what `raw` holds; `None` if it does not hold as many.
fn inflate(compression: Compression, raw: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut data = vec![0; len];
    let read = match compression {
        Compression::Zlib => flate2::read::DeflateDecoder::new(raw).read_exact(&mut data),
        // One frame; further bytes are not its own.
        Compression::Zstd => {
            zstd::Decoder::new(raw).and_then(|decoder| decoder.single_frame().read_exact(&mut data))
        }
    };
    read.ok().map(|()| data)
}
