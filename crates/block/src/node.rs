//! A block node: what a disk's requests are given to.

use crate::filters::Event;
use crate::mapped::{Backing, Encryption, MappedNode, Mapping};
use crate::pins::Pin;
use crate::qcow2::{self, Parts, Qcow2};
use crate::qed::Qed;
use crate::{DiskOffset, Error, ErrorKind, FileOffset, Format, Health, HostNode, Image, Result};
use guest_mem::IoVecs;
use io_engine::FileRef;
use iothread::IoContext;
use std::pin::Pin as PinnedBox;
use std::rc::Rc;
use std::sync::Arc;

/// What a run of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Data, at this place in the file.
    Data(FileOffset),
    /// Data, compressed in the file: one cluster, or a part of one.
    Compressed,
    /// Zeroes, whatever a backing file holds.
    Zero,
    /// Not in this image: the backing file's data, or zeroes.
    Unallocated,
}

/// A contiguous run of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// What it is.
    pub kind: ExtentKind,
    /// Its length in bytes, from where was asked.
    pub len: u64,
}

/// How a node is used.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// No writes.
    pub read_only: bool,
    /// Nothing is ever synced: for data that may be lost.
    pub unsafe_sync: bool,
    /// Where a failed sync is noted.
    pub health: Arc<Health>,
    /// Bytes of tables that a format keeps in RAM at most, besides what is not committed: [`TABLE_CACHE_BYTES`] unless there is a reason.
    pub table_cache_bytes: u64,
    /// See [`OpenOptions::discard_no_unref`](crate::OpenOptions::discard_no_unref).
    pub discard_no_unref: bool,
}

/// What a disk is made of besides its image's file.
#[derive(Debug, Default)]
pub struct NodeParts {
    /// The disk below it and its size in bytes.
    pub backing: Option<(BlockNode, u64)>,
    /// The file that its data is in.
    pub data_file: Option<HostNode>,
    /// What its data is encrypted with.
    pub encryption: Option<Arc<Encryption>>,
}

/// Bytes of tables in RAM: 64 MiB. With clusters of 64 KiB they map 512 GiB.
pub const TABLE_CACHE_BYTES: u64 = 64 << 20;

/// A disk as one I/O thread sees it. The set of formats is closed: each is a variant, and a format's child is again a `BlockNode`.
#[derive(Debug)]
pub enum BlockNode {
    /// The file is the disk.
    Raw(HostNode),
    /// A QED image.
    Qed(Box<MappedNode<Qed>>),
    /// A qcow2 image.
    Qcow2(Box<MappedNode<Qcow2>>),
}

impl BlockNode {
    /// Makes the image, and the backing files under it, usable on an I/O thread. It lives there until it is closed and dropped.
    pub fn attach<'a>(
        image: &'a Image,
        context: &'a IoContext,
    ) -> PinnedBox<Box<dyn Future<Output = Result<BlockNode>> + 'a>> {
        Box::pin(async move {
            if image.is_alone() {
                let path = image.path().display();
                let what =
                    format!("{path}: its disk is used, and was opened without what is below");
                return Err(Error::new(ErrorKind::BadRequest, what));
            }
            let backing = match image.backing() {
                Some(below) => Some((BlockNode::attach(below, context).await?, below.disk_bytes())),
                None => None,
            };
            BlockNode::attach_over(image, context, backing).await
        })
    }

    /// Makes an image usable without what it stands on: what is below reads as zeroes, so this is for a change of the header only.
    ///
    /// # Errors
    ///
    /// As [`BlockNode::attach`].
    pub async fn attach_alone(image: &Image, context: &IoContext) -> Result<BlockNode> {
        Box::pin(BlockNode::attach_over(image, context, None)).await
    }

    async fn attach_over(
        image: &Image,
        context: &IoContext,
        backing: Option<(BlockNode, u64)>,
    ) -> Result<BlockNode> {
        let host = HostNode::attach(image, context)?;
        let options = NodeOptions {
            read_only: image.options().read_only,
            unsafe_sync: image.options().cache.ignores_flush(),
            health: image.health().clone(),
            table_cache_bytes: image.options().table_cache_bytes.unwrap_or(TABLE_CACHE_BYTES),
            discard_no_unref: image.options().discard_no_unref,
        };
        let data_file = image.data_file().map(|data| HostNode::attach(data, context));
        let parts = NodeParts {
            backing,
            data_file: data_file.transpose()?,
            encryption: image.encryption().cloned(),
        };
        BlockNode::open_with(host, image.format(), &options, parts).await
    }

    /// Opens what `host` holds as an image of this format; `backing` is the disk below it and its size in bytes.
    pub async fn open(
        host: HostNode,
        format: Format,
        options: &NodeOptions,
        backing: Option<(BlockNode, u64)>,
    ) -> Result<BlockNode> {
        let parts = NodeParts { backing, ..NodeParts::default() };
        // Boxed, as who opens an image is a task like any other.
        Box::pin(BlockNode::open_with(host, format, options, parts)).await
    }

    /// As [`BlockNode::open`], for images that need more than their own file and what they stand on.
    pub async fn open_with(
        host: HostNode,
        format: Format,
        options: &NodeOptions,
        parts: NodeParts,
    ) -> Result<BlockNode> {
        let NodeParts { backing, data_file, encryption } = parts;
        match format {
            Format::Raw => Ok(BlockNode::Raw(host)),
            Format::Qed => {
                let host = Rc::new(host);
                let qed = Box::pin(Qed::open(host.clone(), options.clone())).await?;
                let backing = backing.map(|(node, bytes)| Box::new(Backing { node, bytes }));
                Ok(BlockNode::Qed(Box::new(MappedNode::new(host, qed, backing))))
            }
            Format::Qcow2 => {
                let host = Rc::new(host);
                let data_file = data_file.map(Rc::new);
                let data = data_file.clone().unwrap_or_else(|| host.clone());
                let parts = Parts { has_backing: backing.is_some(), data_file, encryption };
                let qcow2 = Box::pin(Qcow2::open(host, parts, options.clone())).await?;
                let backing = backing.map(|(node, bytes)| Box::new(Backing { node, bytes }));
                Ok(BlockNode::Qcow2(Box::new(MappedNode::new(data, qcow2, backing))))
            }
        }
    }

    /// Ends the use of an image with tables: what is not durable becomes so, and it is left as one that needs no check. No request may be under way.
    /// A raw disk has nothing to be ended; what it holds becomes durable by [`BlockNode::flush`].
    ///
    /// # Errors
    ///
    /// The host's.
    pub async fn close(&self) -> Result<()> {
        match self {
            BlockNode::Raw(_) => Ok(()),
            BlockNode::Qed(node) => node.mapping().close().await,
            BlockNode::Qcow2(node) => node.mapping().close().await,
        }
    }

    /// The image's file.
    pub fn host(&self) -> &HostNode {
        match self {
            BlockNode::Raw(host) => host,
            BlockNode::Qed(node) => node.file(),
            BlockNode::Qcow2(node) => node.file(),
        }
    }

    /// The qcow2 image, if it is one: for what this format alone has.
    pub fn qcow2(&self) -> Option<&Qcow2> {
        match self {
            BlockNode::Qcow2(node) => Some(node.mapping()),
            BlockNode::Raw(_) | BlockNode::Qed(_) => None,
        }
    }

    /// Makes the image name another backing file, or none: see [`Qcow2::set_backing`]. A format that only says whether that file is raw says just that.
    ///
    /// # Errors
    ///
    /// `BadRequest` if the format has no backing files or no place for this one; the host's.
    pub async fn set_backing(&self, backing: Option<&qcow2::BackingFile>) -> Result<()> {
        match self {
            BlockNode::Raw(host) => {
                let what = format!("{}: a raw image has no backing file", host.path());
                Err(Error::new(ErrorKind::BadRequest, what))
            }
            BlockNode::Qed(node) => {
                let named = backing.map(|below| {
                    (&below.name[..], below.format.as_deref() == Some(b"raw".as_slice()))
                });
                node.mapping().set_backing(named).await
            }
            BlockNode::Qcow2(node) => Box::pin(node.mapping().set_backing(backing.cloned())).await,
        }
    }

    /// Bytes of a cluster, in a format that has some.
    pub fn cluster_bytes(&self) -> Option<u64> {
        match self {
            BlockNode::Raw(_) => None,
            BlockNode::Qed(node) => Some(1 << node.mapping().cluster_bits()),
            BlockNode::Qcow2(node) => Some(1 << node.mapping().cluster_bits()),
        }
    }

    /// Bytes of RAM that the tables of a format take, of this disk and of those below; `None` if none of them has any.
    pub fn table_bytes(&self) -> Option<u64> {
        let own = match self {
            BlockNode::Raw(_) => None,
            BlockNode::Qed(node) => Some(node.mapping().table_bytes()),
            BlockNode::Qcow2(node) => Some(node.mapping().table_bytes()),
        };
        let below = self.backing().and_then(|(node, _)| node.table_bytes());
        own.map(|own| own + below.unwrap_or(0)).or(below)
    }

    /// Whether the disk's data is encrypted in the file.
    pub fn is_encrypted(&self) -> bool {
        match self {
            BlockNode::Raw(_) | BlockNode::Qed(_) => false,
            BlockNode::Qcow2(node) => node.mapping().encryption().is_some(),
        }
    }

    /// The disk that shows through where this one has nothing, and its size in bytes.
    pub fn backing(&self) -> Option<(&BlockNode, u64)> {
        match self {
            BlockNode::Raw(_) => None,
            BlockNode::Qed(node) => node.backing(),
            BlockNode::Qcow2(node) => node.backing(),
        }
    }

    /// Changes the disk's size to `bytes`. What is added reads as zeroes. No request may be under way.
    ///
    /// # Errors
    ///
    /// `BadRequest` with the reason if the format cannot express it; the host's.
    pub async fn resize(&self, bytes: u64) -> Result<()> {
        match self {
            BlockNode::Raw(host) => host.truncate(bytes).await,
            BlockNode::Qed(node) => node.resize(bytes, node.backing().map(|below| below.1)).await,
            BlockNode::Qcow2(node) => node.resize(bytes, node.backing().map(|below| below.1)).await,
        }
    }

    /// Where the disk's data at `at` is, if that can be told without waiting.
    #[inline]
    pub fn map_cached(&self, at: DiskOffset, len: u64) -> Option<Extent> {
        match self {
            BlockNode::Raw(_) => Some(raw_extent(at, len)),
            BlockNode::Qed(node) => node.map_cached(at, len),
            BlockNode::Qcow2(node) => node.map_cached(at, len),
        }
    }

    /// Where the disk's data at `at` is, and for how much of `len` bytes that holds.
    pub async fn map(&self, at: DiskOffset, len: u64) -> Result<Extent> {
        match self {
            BlockNode::Raw(_) => Ok(raw_extent(at, len)),
            BlockNode::Qed(node) => node.map(at, len).await,
            BlockNode::Qcow2(node) => node.map(at, len).await,
        }
    }

    /// The fast path: the file and the offset to read at, if the whole request is one extent that the engine can take as it is. Until the read has
    /// ended, hold a [`BlockNode::pin`].
    #[inline]
    pub fn read_direct(&self, at: DiskOffset, data: &IoVecs) -> Option<(&FileRef, FileOffset)> {
        match self {
            BlockNode::Raw(host) => {
                let offset = FileOffset(at.0);
                host.is_aligned(offset, data).then(|| (host.file(), offset))
            }
            BlockNode::Qed(node) => node.read_direct(at, data),
            BlockNode::Qcow2(node) => node.read_direct(at, data),
        }
    }

    /// As [`BlockNode::read_direct`], for a write (`durable`: its completion means stable storage): it must also overlap nothing that is being
    /// worked on. What it gives must be written to: a new cluster may have been mapped there.
    #[inline]
    pub fn write_direct(
        &self,
        at: DiskOffset,
        data: &IoVecs,
        durable: bool,
    ) -> Option<(&FileRef, FileOffset)> {
        match self {
            BlockNode::Raw(host) if host.tracks_writes() => None,
            BlockNode::Raw(_) => self.read_direct(at, data),
            BlockNode::Qed(node) => node.write_direct(at, data, durable),
            BlockNode::Qcow2(node) => node.write_direct(at, data, durable),
        }
    }

    /// Keeps the places that direct I/O was given from being used for something else, until [`BlockNode::unpin`]; `None` if there is no need.
    #[inline]
    pub fn pin(&self) -> Option<Pin> {
        match self {
            BlockNode::Raw(_) => None,
            BlockNode::Qed(node) => Some(node.pin()),
            BlockNode::Qcow2(node) => Some(node.pin()),
        }
    }

    /// The I/O that the pin was for has ended.
    #[inline]
    pub fn unpin(&self, pin: Pin) {
        match self {
            BlockNode::Raw(_) => {}
            BlockNode::Qed(node) => node.unpin(pin),
            BlockNode::Qcow2(node) => node.unpin(pin),
        }
    }

    /// Reads.
    pub async fn read(&self, at: DiskOffset, into: IoVecs) -> Result<()> {
        match self {
            BlockNode::Raw(host) => host.read(FileOffset(at.0), into).await,
            BlockNode::Qed(node) => node.read(at, into).await,
            BlockNode::Qcow2(node) => node.read(at, into).await,
        }
    }

    /// Reads into memory of our own.
    pub async fn read_to(&self, at: DiskOffset, into: &mut [u8]) -> Result<()> {
        match self {
            BlockNode::Raw(host) => {
                host.event(Event::ReadAio);
                host.read_to(FileOffset(at.0), into).await
            }
            BlockNode::Qed(node) => node.read_to(at, into).await,
            BlockNode::Qcow2(node) => node.read_to(at, into).await,
        }
    }

    /// Writes; with `fua`, durably.
    pub async fn write(&self, at: DiskOffset, from: IoVecs, fua: bool) -> Result<()> {
        match self {
            BlockNode::Raw(host) => host.write(FileOffset(at.0), from, fua).await,
            BlockNode::Qed(node) => node.write(at, from, fua).await,
            BlockNode::Qcow2(node) => node.write(at, from, fua).await,
        }
    }

    /// Writes one whole cluster, compressed: `stream` is what [`qcow2::deflate`] made of its data.
    ///
    /// # Errors
    ///
    /// `BadRequest` if the image or the stream is not for that; the host's.
    pub async fn write_compressed(&self, at: DiskOffset, stream: &[u8]) -> Result<()> {
        let BlockNode::Qcow2(node) = self else {
            let what = format!("writing {} compressed: not in this format", self.host().path());
            return Err(Error::new(ErrorKind::BadRequest, what));
        };
        node.write_compressed(at, stream).await
    }

    /// Makes a range read as zeroes; with `unmap`, its space may be given back.
    pub async fn write_zeroes(&self, at: DiskOffset, len: u64, unmap: bool) -> Result<()> {
        match self {
            BlockNode::Raw(host) => host.write_zeroes(FileOffset(at.0), len, unmap).await,
            BlockNode::Qed(node) => node.write_zeroes(at, len, unmap).await,
            BlockNode::Qcow2(node) => node.write_zeroes(at, len, unmap).await,
        }
    }

    /// Tells that a range's content is not needed any more.
    pub async fn discard(&self, at: DiskOffset, len: u64) -> Result<()> {
        match self {
            BlockNode::Raw(host) => host.discard(FileOffset(at.0), len).await,
            BlockNode::Qed(node) => node.discard(at, len).await,
            BlockNode::Qcow2(node) => node.discard(at, len).await,
        }
    }

    /// Makes every completed write durable.
    pub async fn flush(&self) -> Result<()> {
        match self {
            BlockNode::Raw(host) => host.flush().await,
            BlockNode::Qed(node) => node.flush().await,
            BlockNode::Qcow2(node) => node.flush().await,
        }
    }
}

fn raw_extent(at: DiskOffset, len: u64) -> Extent {
    Extent { kind: ExtentKind::Data(FileOffset(at.0)), len }
}
