//! The image that commands work on: any range of its disk, as QEMU takes one.
//!
//! Formats take whole sectors. So a request that is not made of them is: what stands before and behind it in its sectors is read and written back,
//! and such sectors are held meanwhile, so that two requests do not undo each other.

use super::buffer::Buffer;
use crate::compress::stream_of;
use crate::status::{Depth, Kind, status};
use crate::{ImageArgs, Session};
use block::{
    BlockNode, DiscardMode, DiskOffset, Error, Extent, ExtentKind, Format, Image, Locking,
    OpenOptions, Result, SECTOR,
};
use io_engine::EngineKind;
use iothread::{IoContext, RangeLocks};
use rustix::io::Errno;
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

/// How an image is opened for commands.
#[derive(Clone, Debug)]
pub struct OpenArgs {
    /// Which image.
    pub image: ImageArgs,
    /// No writes.
    pub read_only: bool,
    /// What is written is kept aside, and gone in the end.
    pub snapshot: bool,
    /// What does the I/O; without it, what a [`Session`] takes.
    pub engine: Option<EngineKind>,
    /// What discards do.
    pub discard: DiscardMode,
}

impl OpenArgs {
    /// An image as it is opened if nothing else is said.
    pub fn new(image: ImageArgs) -> OpenArgs {
        OpenArgs {
            image,
            read_only: false,
            snapshot: false,
            engine: None,
            discard: DiscardMode::Unmap,
        }
    }

    /// Checks that all that was said goes together.
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        if self.image.force_share && !self.read_only {
            return Err(
                "only an image that is not written can be shared by force (-U needs -r)".into()
            );
        }
        if self.engine == Some(EngineKind::Native) && !self.image.cache.is_direct() {
            return Err("native AIO needs a cache mode that goes past the page cache (-n)".into());
        }
        if self.snapshot && !self.image.filters.is_empty() {
            let what = "what is written is kept aside (-s) over a file only, not over filters";
            return Err(what.into());
        }
        Ok(())
    }

    fn options(&self, format: Format) -> OpenOptions {
        OpenOptions { discard: self.discard, ..self.image.options(format, self.read_only) }
    }
}

/// A write of zeroes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Zeroes {
    /// Its space may be given back.
    pub unmap: bool,
    /// Not if data has to be written for it.
    pub no_fallback: bool,
    /// Durably.
    pub fua: bool,
}

/// An open image.
#[derive(Debug)]
pub(super) struct Disk {
    pub node: Rc<BlockNode>,
    pub image: Image,
    pub args: OpenArgs,
    context: IoContext,
    bytes: Cell<u64>,
    /// Each write is durable.
    is_write_through: bool,
    writing: RangeLocks,
}

impl Disk {
    /// Opens an image.
    pub fn open(session: &Session, args: OpenArgs) -> Result<Disk> {
        let format = args.image.format()?;
        let locking = if args.image.force_share { Locking::Shared } else { Locking::Locked };
        let image = Image::open_with(&args.image.path, &args.options(format), locking)?;
        Disk::attach(session, image, args)
    }

    /// Makes an opened image usable here.
    pub fn attach(session: &Session, image: Image, args: OpenArgs) -> Result<Disk> {
        let node = session.attach(&image)?;
        Ok(Disk {
            node,
            bytes: Cell::new(image.disk_bytes()),
            is_write_through: !image.options().cache.has_write_cache(),
            image,
            args,
            context: session.context().clone(),
            writing: RangeLocks::default(),
        })
    }

    /// Size of the disk in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Whether its requests are made of whole sectors.
    pub fn takes_sectors(&self) -> bool {
        !matches!(*self.node, BlockNode::Raw(_))
    }

    /// Refuses a range that is not all on the disk: with the error number that QEMU has for it.
    pub fn check_range(&self, at: u64, len: u64) -> Result<()> {
        match at.checked_add(len) {
            Some(end) if end <= self.bytes() => Ok(()),
            _ => Err(errno("a range beyond the end of the disk", Errno::IO)),
        }
    }

    /// Reads into the buffer of a request at `at`.
    pub async fn read(&self, at: u64, buffer: &Buffer) -> Result<()> {
        self.check_range(at, buffer.len())?;
        if buffer.len() == 0 {
            return Ok(());
        }
        self.node.read(DiskOffset(at - buffer.padding().0), buffer.padded()).await
    }

    /// Writes what is in the buffer of a request at `at`.
    pub async fn write(&self, at: u64, buffer: &Buffer, fua: bool) -> Result<()> {
        self.check_range(at, buffer.len())?;
        if buffer.len() == 0 {
            return Ok(());
        }
        let (head, tail) = buffer.padding();
        let (whole, from) = (buffer.padded(), at - head);
        let sectors = from..at + buffer.len() + tail;
        // Aligned ones too: they must not come between the reading of a sector and its writing back.
        let _guard = match self.takes_sectors() {
            true => Some(self.writing.lock(&self.context, sectors.clone()).await),
            false => None,
        };
        let mut sector = vec![0; within(SECTOR)];
        if head > 0 {
            self.node.read_to(DiskOffset(from), &mut sector).await?;
            whole.copy_from(0, &sector[..within(head)]);
        }
        if tail > 0 {
            self.node.read_to(DiskOffset(sectors.end - SECTOR), &mut sector).await?;
            whole.copy_from(sectors.end - from - tail, &sector[within(SECTOR - tail)..]);
        }
        self.node.write(DiskOffset(from), whole, fua || self.is_write_through).await
    }

    /// Makes a range read as zeroes.
    pub async fn write_zeroes(&self, at: u64, len: u64, how: Zeroes) -> Result<()> {
        self.check_range(at, len)?;
        if how.no_fallback && !self.zeroes_without_data(at..at + len).await? {
            return Err(errno("writing zeroes without data", Errno::NOTSUP));
        }
        let unmap = how.unmap && self.args.discard == DiscardMode::Unmap;
        let (from, to) = match self.takes_sectors() {
            true => (at.next_multiple_of(SECTOR), (at + len) / SECTOR * SECTOR),
            false => (at, at + len),
        };
        let edges = match from < to {
            true => [(at, from - at), (to, at + len - to)],
            false => [(at, len), (at, 0)],
        };
        // Where no data is to be written, all that surrounds an edge is zeroes, and so the edge is.
        for (at, len) in edges.into_iter().filter(|(_, len)| *len > 0 && !how.no_fallback) {
            self.write(at, &Buffer::new(at, &[len], self.takes_sectors(), 0)?, false).await?;
        }
        if from < to {
            let _guard = match self.takes_sectors() {
                true => Some(self.writing.lock(&self.context, from..to).await),
                false => None,
            };
            self.node.write_zeroes(DiskOffset(from), to - from, unmap).await?;
        }
        self.flush_if(how.fua).await
    }

    /// Whether zeroes need no data written, as QEMU's drivers see it: those of qcow2 do it by clusters that have nothing else in them; that of QED
    /// never does.
    async fn zeroes_without_data(&self, range: Range<u64>) -> Result<bool> {
        let (qcow2, cluster) = match (&*self.node, self.node.cluster_bytes()) {
            (BlockNode::Raw(_), _) => return Ok(true),
            (_, Some(cluster)) => (self.node.qcow2(), cluster),
            _ => return Ok(false),
        };
        if !qcow2.is_some_and(|qcow2| qcow2.header().is_zero_capable()) {
            return Ok(false);
        }
        for edge in [range.start, range.end] {
            if edge % cluster != 0 && edge < self.bytes() {
                let whole = edge / cluster * cluster;
                let len = cluster.min(self.bytes() - whole);
                let found = status(&self.node, whole, len, Depth::Top).await?;
                if found.kind != Kind::Zero || found.len < len {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Tells that a range is not needed any more; of an image with clusters, whole ones.
    pub async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.check_range(at, len)?;
        if self.args.discard == DiscardMode::Ignore {
            return Ok(());
        }
        let (mut from, mut to) = (at, at + len);
        if let Some(cluster) = self.node.cluster_bytes() {
            from = from.next_multiple_of(cluster);
            // The last one may be shorter.
            to = if to == self.bytes() { to } else { to / cluster * cluster };
        }
        if from >= to {
            return Ok(());
        }
        let _guard = match self.takes_sectors() {
            true => Some(self.writing.lock(&self.context, from..to).await),
            false => None,
        };
        self.node.discard(DiskOffset(from), to - from).await?;
        self.flush_if(false).await
    }

    /// Writes whole clusters, compressed; the last one of the disk may be shorter.
    pub async fn write_compressed(&self, at: u64, buffer: &Buffer) -> Result<()> {
        self.check_range(at, buffer.len())?;
        let (Some(qcow2), Some(cluster)) = (self.node.qcow2(), self.node.cluster_bytes()) else {
            return Err(errno("writing compressed data", Errno::NOTSUP));
        };
        let (header, end) = (qcow2.header(), at + buffer.len());
        let is_whole = end.is_multiple_of(cluster) || end == self.bytes();
        if !at.is_multiple_of(cluster) || !is_whole {
            return Err(errno("writing a part of a compressed cluster", Errno::INVAL));
        }
        let mut here = at;
        while here < end {
            let len = cluster.min(end - here);
            let _guard = self.writing.lock(&self.context, here..here + len).await;
            // As in QEMU: what is there stays there.
            if has_data(self.node.map(DiskOffset(here), len).await?) {
                return Err(errno("compressing a cluster that has data", Errno::IO));
            }
            let mut data = vec![0; within(cluster)];
            buffer.data().copy_to(here - at, &mut data[..within(len)]);
            match stream_of(header.compression, &data) {
                Some(stream) => self.node.write_compressed(DiskOffset(here), &stream).await?,
                None => {
                    let part = buffer.data().part(here - at, len);
                    self.node.write(DiskOffset(here), part, false).await?;
                }
            }
            here += len;
        }
        self.flush_if(false).await
    }

    /// What at `at` is like in this image itself: whether it has a say there, and how far.
    pub async fn is_allocated(&self, at: u64, len: u64) -> Result<(bool, u64)> {
        let extent = self.node.map(DiskOffset(at), len).await?;
        Ok((extent.kind != ExtentKind::Unallocated, extent.len.clamp(1, len)))
    }

    /// Makes all that was written durable.
    pub async fn flush(&self) -> Result<()> {
        let is_raw = !self.takes_sectors();
        if self.args.read_only || is_raw && self.args.image.cache.ignores_flush() {
            return Ok(());
        }
        self.node.flush().await
    }

    async fn flush_if(&self, fua: bool) -> Result<()> {
        match fua || self.is_write_through {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    /// Gives the disk another size; no request may be under way.
    pub async fn resize(&self, bytes: u64) -> Result<()> {
        self.node.resize(bytes).await?;
        self.bytes.set(bytes.next_multiple_of(SECTOR));
        self.image.update_size()?;
        Ok(())
    }

    /// Ends the use of the image; no request may be under way.
    pub async fn close(&self) -> Result<()> {
        self.flush().await?;
        self.node.close().await
    }
}

fn has_data(extent: Extent) -> bool {
    matches!(extent.kind, ExtentKind::Data(_) | ExtentKind::Compressed)
}

/// An error that has a number, as QEMU's would.
fn errno(doing: &str, errno: Errno) -> Error {
    Error::io(doing, errno.into())
}

/// A length within a cluster.
fn within(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a cluster has at most 64 MiB")
}
