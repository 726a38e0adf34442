//! `rebase`: an image is made to stand on another file, or on none.
//!
//! ```text
//!   image       |  A |    |    |    |          |  A |  b |    |    |
//!   old backing |  a | b  | c  | 0  |   --->
//!   new backing |  x | y  | c  | 0  |          |  x |  y | c  | 0  |
//! ```
//!
//! What the image has not itself is compared, cluster by cluster; where the two backing files differ, the image gets what the old one has. Unsafe (-u),
//! nothing is compared and no backing file opened: the name alone is changed.
//!
//! What a power cut or a failure leaves: the clusters come first, over the old backing file, of which they are a copy: the image reads the same with
//! any part of them. They are flushed. Then the header changes, by one sector ([`block::qcow2::Qcow2::set_backing`], and of QED likewise), from the
//! old file's name to the new one's, and from then on the image reads the same over the new one. No backing file is written.

use crate::compress::{Method, Packed, pack};
use crate::pool::Pool;
use crate::status::{Depth, Kind, status};
use crate::{Code, Failure, ImageArgs, Progress, ProgressKind, Session};
use block::qcow2::BackingFile;
use block::{BackingFiles, BlockNode, CacheMode, DiskOffset, Format, Image, SECTOR};
use iothread::IoContext;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Bytes that are compared at once, unless a cluster is larger.
const PIECE_BYTES: u64 = 1 << 20;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct RebaseOptions {
    /// Of which image.
    pub image: ImageArgs,
    /// The file that it is to stand on, as the image will name it; `None`: none.
    pub backing: Option<PathBuf>,
    /// The format of that file.
    pub backing_format: Option<String>,
    /// Cache mode of that file.
    pub backing_cache: CacheMode,
    /// The name alone is changed.
    pub is_unsafe: bool,
    /// What is written is compressed.
    pub compress: bool,
    /// How it is shown how far it is.
    pub progress: ProgressKind,
}

/// Does it.
pub fn run(options: &RebaseOptions) -> Result<Code, Failure> {
    let format = options.image.format()?;
    let new = options.new_backing(format)?;
    let session = Session::new()?;
    let image = match options.is_unsafe {
        true => {
            Image::open_without_backing(&options.image.path, &options.image.options(format, false))?
        }
        false => options.image.open_to_write()?,
    };
    let node =
        if options.is_unsafe { attach_alone(&session, &image)? } else { session.attach(&image)? };
    let done = match options.is_unsafe {
        true => Ok(()),
        false => options.copy(&session, &image, &node),
    };
    let done = done.and_then(|()| {
        let node = node.clone();
        Ok(session.run(async move { node.set_backing(new.as_ref()).await })?)
    });
    // Whatever became of it, the image is left as one that is whole.
    let closed = session.close(&node);
    done?;
    closed?;
    image.sync_unless_unsafe()?;
    Ok(0)
}

/// Makes an image usable without what it stands on: for a change of its header.
fn attach_alone(session: &Session, image: &Image) -> block::Result<Rc<BlockNode>> {
    let (image, context) = (image.clone(), session.context().clone());
    session.run(async move { Ok(Rc::new(BlockNode::attach_alone(&image, &context).await?)) })
}

impl RebaseOptions {
    /// What the header is to say.
    fn new_backing(&self, format: Format) -> Result<Option<BackingFile>, Failure> {
        let path = self.image.path.display();
        let refuse = |why: &str| Err(Failure::new(format!("rebasing {path}: {why}")));
        if format == Format::Raw {
            return refuse("a raw image has no backing file");
        }
        if self.compress && format != Format::Qcow2 {
            return refuse("nothing is compressed in this format");
        }
        let known = self.backing_format.as_deref().map(str::parse::<Format>).transpose();
        if known.is_err() {
            return refuse("the format of the new backing file is none of raw, qcow2 and qed");
        }
        let Some(backing) = &self.backing else { return Ok(None) };
        if self.backing_format.is_none() {
            return refuse("the format of the new backing file must be said (-F)");
        }
        Ok(Some(BackingFile {
            name: backing.as_os_str().as_bytes().to_vec(),
            format: self.backing_format.as_ref().map(|name| name.clone().into_bytes()),
        }))
    }

    /// Opens the new backing file, as the image will name it.
    fn open_backing(&self) -> Result<Option<Image>, Failure> {
        let Some(name) = &self.backing else { return Ok(None) };
        let directory = self.image.path.parent().unwrap_or(Path::new(""));
        let args = ImageArgs {
            path: directory.join(name),
            format: self.backing_format.as_deref().and_then(|name| name.parse().ok()),
            cache: self.backing_cache,
            force_share: self.image.force_share,
            backing_files: BackingFiles::Follow,
            // These are between the image and its own file.
            filters: block::Filters::default(),
            ..self.image.clone()
        };
        Ok(Some(args.open()?))
    }

    /// Gives the image what the two backing files differ in.
    fn copy(&self, session: &Session, image: &Image, node: &Rc<BlockNode>) -> Result<(), Failure> {
        let new = self.open_backing()?;
        let new_node = new.as_ref().map(|image| session.attach(image)).transpose()?;
        let described = if self.compress { image.describe()?.qcow2 } else { None };
        let cluster = node.cluster_bytes().unwrap_or(SECTOR);
        let progress = Rc::new(Progress::new(self.progress, image.disk_bytes()));
        let work = Work {
            context: session.context().clone(),
            node: node.clone(),
            bytes: image.disk_bytes(),
            cluster,
            new: new_node.zip(new.as_ref().map(Image::disk_bytes)),
            files: [identities(image.backing())?, identities(new.as_ref())?],
            method: described.map(|header| Method {
                compression: header.compression,
                cluster_bytes: 1 << header.cluster_bits,
                finds_zeroes: false,
            }),
            pools: [
                Pool::new(1, PIECE_BYTES.max(cluster))?,
                Pool::new(1, PIECE_BYTES.max(cluster))?,
            ],
            progress: progress.clone(),
        };
        let done = session.run(async move {
            work.copy().await?;
            work.node.flush().await
        });
        progress.end(done.is_ok());
        Ok(done?)
    }
}

/// Which file an image is, and as what it is read.
type Identity = (u64, u64, Format);

/// Those of an image and all that it stands on, the topmost first.
fn identities(image: Option<&Image>) -> Result<Vec<Identity>, Failure> {
    let chain = std::iter::successors(image, |image| image.backing());
    chain
        .map(|image| {
            let stat = rustix::fs::fstat(image.file().file()).map_err(std::io::Error::from)?;
            Ok((stat.st_dev, stat.st_ino, image.format()))
        })
        .collect()
}

/// What a run of a disk below is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Zero,
    /// What this image has there.
    Data(Option<Identity>),
}

impl Origin {
    /// Whether two disks read the same there, without reading. (Nobody writes to an image below: it is locked.)
    fn is_same(self, other: Origin) -> bool {
        self == other && self != Origin::Data(None)
    }
}

/// A disk below.
struct Below<'a> {
    disk: Option<(&'a BlockNode, u64)>,
    files: &'a [Identity],
}

impl Below<'_> {
    /// What the disk is made of at `at`, and for how many bytes at most.
    async fn origin(&self, at: u64, len: u64) -> block::Result<(Origin, u64)> {
        match self.disk {
            Some((node, bytes)) if at < bytes => {
                let len = len.min(bytes - at);
                let found = status(node, at, len, Depth::All).await?.in_sectors(at, len);
                let origin = match found.kind {
                    Kind::Data => Origin::Data(self.files.get(found.depth as usize).copied()),
                    _ => Origin::Zero,
                };
                Ok((origin, found.len))
            }
            _ => Ok((Origin::Zero, len)),
        }
    }

    /// Reads; beyond the end of the disk there are zeroes.
    async fn read(&self, at: u64, into: &guest_mem::IoVecs) -> block::Result<()> {
        let len = into.bytes();
        let there = self.disk.map_or(0, |(_, bytes)| bytes.saturating_sub(at).min(len));
        if let Some((node, _)) = self.disk.filter(|_| there > 0) {
            node.read(DiskOffset(at), into.part(0, there)).await?;
        }
        into.zero_from(there);
        Ok(())
    }
}

struct Work {
    context: IoContext,
    node: Rc<BlockNode>,
    bytes: u64,
    cluster: u64,
    /// The new backing file, and its size.
    new: Option<(Rc<BlockNode>, u64)>,
    /// The files of both chains below.
    files: [Vec<Identity>; 2],
    method: Option<Method>,
    /// Of the old one, and of the new one.
    pools: [Pool; 2],
    progress: Rc<Progress>,
}

impl Work {
    async fn copy(&self) -> block::Result<()> {
        let [old_files, new_files] = &self.files;
        let old = Below { disk: self.node.backing(), files: old_files };
        let new = self.new.as_ref().map(|(node, bytes)| (&**node, *bytes));
        let new = Below { disk: new, files: new_files };
        let mut at = 0;
        while at < self.bytes {
            let rest = self.bytes - at;
            let found = status(&self.node, at, rest, Depth::Top).await?;
            // Without an old backing file nothing is below what it has not: zeroes.
            let is_below = found.kind == Kind::Unallocated || !found.present;
            let end = at + found.len;
            let next = match is_below {
                true => self.merge(at..end, &old, &new).await?,
                false => end,
            };
            self.progress.add(next - at, self.context.now_ns());
            at = next;
        }
        Ok(())
    }

    /// Looks at the start of a run that is below; gives up to where that is done. In whole clusters, unless a part of one is the image's own.
    async fn merge(&self, run: Range<u64>, old: &Below<'_>, new: &Below<'_>) -> block::Result<u64> {
        let (at, len) = (run.start, run.end - run.start);
        let (was, old_len) = old.origin(at, len).await?;
        let (will_be, new_len) = new.origin(at, len).await?;
        let alike = at + old_len.min(new_len);
        let whole = if alike == run.end { alike } else { alike / self.cluster * self.cluster };
        if was.is_same(will_be) && whole > at {
            return Ok(whole);
        }
        let most = at / self.cluster * self.cluster + PIECE_BYTES.max(self.cluster);
        let end = alike.next_multiple_of(self.cluster).min(most).min(run.end);
        self.compare(at..end, old, new).await?;
        Ok(end)
    }

    /// Compares a part, and copies each cluster of it that differs.
    async fn compare(
        &self,
        part: Range<u64>,
        old: &Below<'_>,
        new: &Below<'_>,
    ) -> block::Result<()> {
        let len = part.end - part.start;
        let [ours, theirs] = [0, 1].map(|n: usize| self.pools[n].buffer(0, len));
        old.read(part.start, &ours).await?;
        new.read(part.start, &theirs).await?;
        let [mut left, mut right] = [0, 1].map(|_| vec![0; index(self.cluster)]);
        let mut run: Option<(Range<u64>, bool)> = None;
        let mut at = 0;
        while at < len {
            let piece = (self.cluster - (part.start + at) % self.cluster).min(len - at);
            let (left, right) = (&mut left[..index(piece)], &mut right[..index(piece)]);
            ours.copy_to(at, left);
            theirs.copy_to(at, right);
            let differs = left != right;
            let is_zero = left.iter().all(|byte| *byte == 0);
            let joins = |run: &(Range<u64>, bool)| differs && run.0.end == at && run.1 == is_zero;
            match &mut run {
                Some(last) if joins(last) => last.0.end += piece,
                last => {
                    if let Some((range, is_zero)) = last.take() {
                        self.put(part.start, range, is_zero, &ours).await?;
                    }
                    *last = differs.then_some((at..at + piece, is_zero));
                }
            }
            at += piece;
        }
        match run {
            Some((range, is_zero)) => self.put(part.start, range, is_zero, &ours).await,
            None => Ok(()),
        }
    }

    /// Writes clusters: `range` of `data`, which is from `start` on.
    async fn put(
        &self,
        start: u64,
        range: Range<u64>,
        is_zero: bool,
        data: &guest_mem::IoVecs,
    ) -> block::Result<()> {
        let (at, len) = (DiskOffset(start + range.start), range.end - range.start);
        let data = data.part(range.start, len);
        if is_zero {
            return self.node.write_zeroes(at, len, true).await;
        }
        let Some(method) = self.method else {
            return self.node.write(at, data, false).await;
        };
        let mut from = 0;
        while from < len {
            let at = DiskOffset(at.0 + from);
            let piece = (self.cluster - at.0 % self.cluster).min(len - from);
            let is_last = at.0 + piece == self.bytes && at.0.is_multiple_of(self.cluster);
            // What is beyond the end of the disk reads as zeroes.
            let mut cluster = vec![0; index(self.cluster)];
            data.copy_to(from, &mut cluster[..index(piece)]);
            let packed = (piece == self.cluster || is_last).then(|| pack(method, &cluster));
            match packed {
                Some(Packed::Stream(stream)) => self.node.write_compressed(at, &stream).await?,
                _ => self.node.write(at, data.part(from, piece), false).await?,
            }
            from += piece;
        }
        Ok(())
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("at most a cluster")
}
