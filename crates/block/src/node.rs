//! A block node: what a disk's requests are given to.

use crate::{DiskOffset, FileOffset, HostNode, Image, Result};
use guest_mem::IoVecs;
use io_engine::FileRef;
use iothread::IoContext;

/// What a run of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Data, at this place in the file.
    Data(FileOffset),
}

/// A contiguous run of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// What it is.
    pub kind: ExtentKind,
    /// Its length in bytes, from where was asked.
    pub len: u64,
}

/// A disk as one I/O thread sees it. The set of formats is closed: each is a variant, and a format's child is again a `BlockNode`.
#[derive(Debug)]
pub enum BlockNode {
    /// The file is the disk.
    Raw(HostNode),
}

impl BlockNode {
    /// Makes the image usable on an I/O thread. It lives there until it is dropped.
    pub fn attach(image: &Image, context: &IoContext) -> Result<BlockNode> {
        Ok(BlockNode::Raw(HostNode::attach(image, context)?))
    }

    /// Where the disk's data at `at` is, if that can be told without waiting.
    #[inline]
    pub fn map_cached(&self, at: DiskOffset, len: u64) -> Option<Extent> {
        match self {
            BlockNode::Raw(_) => Some(Extent { kind: ExtentKind::Data(FileOffset(at.0)), len }),
        }
    }

    /// The fast path: the file and the offset to read at, if the whole request is one extent that the engine can take as it is.
    #[inline]
    pub fn read_direct(&self, at: DiskOffset, data: &IoVecs) -> Option<(&FileRef, FileOffset)> {
        let extent = self.map_cached(at, data.bytes())?;
        match (self, extent.kind) {
            (BlockNode::Raw(host), ExtentKind::Data(offset)) => {
                let whole = extent.len >= data.bytes() && host.is_aligned(offset, data);
                whole.then(|| (host.file(), offset))
            }
        }
    }

    /// As [`BlockNode::read_direct`], for a write: it must also overlap nothing that is being worked on.
    #[inline]
    pub fn write_direct(&self, at: DiskOffset, data: &IoVecs) -> Option<(&FileRef, FileOffset)> {
        match self {
            BlockNode::Raw(host) if host.tracks_writes() => None,
            BlockNode::Raw(_) => self.read_direct(at, data),
        }
    }

    /// Reads.
    pub async fn read(&self, at: DiskOffset, into: IoVecs) -> Result<()> {
        match self {
            BlockNode::Raw(host) => host.read(FileOffset(at.0), into).await,
        }
    }

    /// Writes; with `fua`, durably.
    pub async fn write(&self, at: DiskOffset, from: IoVecs, fua: bool) -> Result<()> {
        match self {
            BlockNode::Raw(host) => host.write(FileOffset(at.0), from, fua).await,
        }
    }

    /// Makes a range read as zeroes; with `unmap`, its space may be given back.
    pub async fn write_zeroes(&self, at: DiskOffset, len: u64, unmap: bool) -> Result<()> {
        match self {
            BlockNode::Raw(host) => host.write_zeroes(FileOffset(at.0), len, unmap).await,
        }
    }

    /// Tells that a range's content is not needed any more.
    pub async fn discard(&self, at: DiskOffset, len: u64) -> Result<()> {
        match self {
            BlockNode::Raw(host) => host.discard(FileOffset(at.0), len).await,
        }
    }

    /// Makes every completed write durable.
    pub async fn flush(&self) -> Result<()> {
        match self {
            BlockNode::Raw(host) => host.flush().await,
        }
    }
}
