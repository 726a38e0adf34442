//! `convert`: a new image with the content of another, or of several one behind the other.

use crate::bitmap::{carry, with_bitmaps};
use crate::compress::Method;
use crate::copy::{CopyOptions, Offload, copy};
use crate::create::{NewImage, remove};
use crate::open::Disk;
use crate::preallocate::preallocate;
use crate::zeroes::Sparse;
use crate::{
    Code, Failure, ImageArgs, OptionList, Preallocation, Progress, ProgressKind, Secrets, Session,
};
use block::qcow2::BitmapInfo;
use block::{
    BackingFiles, BlockNode, CacheMode, Filters, Format, Image, OpenOptions, SECTOR, Secret,
};
use std::path::PathBuf;
use std::rc::Rc;

/// Largest number for `-S`, in bytes.
const SPARSE_MAX: u64 = 16 << 20;
/// Zeroes are looked for in blocks of so many bytes: what file systems give back at least.
const BLOCK_BYTES: u64 = 4096;
/// Blocks of data under way are no longer than this.
const BLOCK_MAX: u64 = 1 << 20;
/// Pieces under way at most (`-m`).
pub const WORKERS_MAX: u64 = 16;
/// ... and of those that are compressed: one for each thread, and some that are read or written meanwhile.
const COMPRESSING_MAX: u64 = 32;
const COMPRESSING_MORE: u64 = 2;

/// What becomes of the source's persistent bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Bitmaps {
    /// They stay behind.
    #[default]
    None,
    /// They are copied, all of them.
    All,
    /// They are copied, but those that cannot be used.
    Usable,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// The images that are copied.
    pub sources: Vec<ImageArgs>,
    /// Where to.
    pub target: PathBuf,
    /// The format there.
    pub format: Format,
    /// The options of `-o` for the new image.
    pub options: OptionList,
    /// The new image stands on this file, and only what the source's topmost image has is copied.
    pub backing: Option<PathBuf>,
    /// The format of that file.
    pub backing_format: Option<String>,
    /// The target's cache mode; usually what is fastest, and a sync at the end.
    pub cache: Option<CacheMode>,
    /// So many zero bytes at least become a hole; 0: none, all is written.
    pub sparse_bytes: u64,
    /// What `-o encrypt.key-secret` may name.
    pub secrets: Secrets,
    /// What opens a target that is there already, if it is encrypted.
    pub target_secret: Option<Secret>,
    /// Clusters are compressed.
    pub compress: bool,
    /// The target is there already.
    pub no_create: bool,
    /// What stands between it and its file, which must be there.
    pub target_filters: Filters,
    /// And reads as zeroes.
    pub target_is_zero: bool,
    /// What becomes of the source's persistent bitmaps.
    pub bitmaps: Bitmaps,
    /// Writes are started in any order.
    pub out_of_order: bool,
    /// Pieces under way.
    pub workers: u64,
    /// Bytes of data in a second at most.
    pub rate: Option<u64>,
    /// What cannot be read is zeroes, and said.
    pub salvage: bool,
    /// Where the file system can, the target gets the same blocks as the source instead of a copy (not with preallocation).
    pub share: bool,
    /// The host is asked to copy, without a look at the data: zeroes in it are not found.
    pub offload: bool,
    /// How it is shown how far it is.
    pub progress: ProgressKind,
}

/// Converts. What is to be said about it, and is no failure, goes to `warnings`.
pub fn run(options: &ConvertOptions, warnings: &mut dyn FnMut(&str)) -> Result<Code, Failure> {
    options.check()?;
    let session = Session::for_copy()?;
    let mut sources = Vec::new();
    for args in &options.sources {
        sources.push(Disk::open(&session, args)?);
    }
    let bitmaps = options.bitmaps(&session, &sources, warnings)?;
    let bytes = sources.iter().map(|disk| disk.bytes).try_fold(0u64, u64::checked_add);
    let Some(bytes) = bytes.filter(|bytes| *bytes <= i64::MAX.unsigned_abs()) else {
        return Err(Failure::new("the sources together are larger than any disk can be"));
    };
    if options.no_create {
        options.fill(
            &session,
            sources,
            &bitmaps,
            options.target_secret.as_ref(),
            None,
            warnings,
        )?;
        return Ok(0);
    }
    let new = options.new_image(bytes);
    let blueprint = new.plan()?;
    let is_new = blueprint.make()?;
    options
        .fill(
            &session,
            sources,
            &bitmaps,
            blueprint.secret(),
            Some(blueprint.preallocation()),
            warnings,
        )
        .inspect_err(|_| remove(&options.target, is_new))?;
    Ok(0)
}

impl ConvertOptions {
    fn check(&self) -> Result<(), Failure> {
        let refuse = |why: &str| {
            Err(Failure::new(format!("converting to {}: {why}", self.target.display())))
        };
        if self.sparse_bytes > SPARSE_MAX || !self.sparse_bytes.is_multiple_of(SECTOR) {
            return refuse("-S takes a multiple of 512 up to 16 MiB; 0 writes everything");
        }
        if !(1..=WORKERS_MAX).contains(&self.workers) {
            return refuse("-m takes a number from 1 to 16");
        }
        if self.target_is_zero && !self.no_create {
            return refuse("--target-is-zero goes with -n only");
        }
        if self.compress && self.format != Format::Qcow2 {
            return refuse(&format!("nothing is compressed in the format {}", self.format));
        }
        let apart = |name: &str| name.starts_with("encrypt.") || name == "data_file";
        if self.compress && self.options.names().any(apart) {
            return refuse("nothing is compressed that is encrypted, or in a data file");
        }
        if !self.no_create && !self.target_filters.is_empty() {
            return refuse("an image with filters, or without a file, is not created: -n");
        }
        if self.bitmaps != Bitmaps::None && self.sources.len() > 1 {
            return refuse("bitmaps are copied from one source only");
        }
        if self.sources.len() > 1 && self.sources[0].snapshot.is_some() {
            return refuse("a snapshot (-l) is that of one source only");
        }
        if self.no_create && !self.options.is_empty() {
            return refuse("-o has no effect with -n: no image is created");
        }
        Ok(())
    }

    /// The bitmaps of the source that are to be copied.
    fn bitmaps(
        &self,
        session: &Session,
        sources: &[Disk],
        warnings: &mut dyn FnMut(&str),
    ) -> Result<Vec<BitmapInfo>, Failure> {
        if self.bitmaps == Bitmaps::None {
            return Ok(Vec::new());
        }
        let node = sources[0].node.clone();
        let all = session.run(async move { with_bitmaps(&node)?.bitmaps().await })?;
        let mut copied = Vec::new();
        for bitmap in all {
            let name = bitmap.name.escape_ascii();
            match bitmap.is_inconsistent || bitmap.is_unknown {
                false => copied.push(bitmap),
                true if self.bitmaps == Bitmaps::Usable => {
                    warnings(&format!(
                        "warning: the bitmap '{name}' cannot be used: it is left out"
                    ));
                }
                true => {
                    let what = "cannot be used: --skip-broken-bitmaps leaves it out";
                    return Err(Failure::new(format!("copying bitmaps: '{name}' {what}")));
                }
            }
        }
        Ok(copied)
    }

    /// Refuses a target that cannot get these bitmaps, before anything is written.
    fn check_bitmaps(
        &self,
        session: &Session,
        target: &Rc<BlockNode>,
        bitmaps: &[BitmapInfo],
    ) -> Result<(), Failure> {
        let node = target.clone();
        let there = session.run(async move { with_bitmaps(&node)?.bitmaps().await })?;
        let is_there = |bitmap: &&BitmapInfo| there.iter().any(|one| one.name == bitmap.name);
        match bitmaps.iter().find(is_there) {
            None => Ok(()),
            Some(bitmap) => {
                session.close(target)?;
                let (name, path) = (bitmap.name.escape_ascii(), self.target.display());
                Err(Failure::new(format!("copying bitmaps: {path} has one named '{name}' already")))
            }
        }
    }

    fn new_image(&self, bytes: u64) -> NewImage {
        let mut options = self.options.clone();
        // As QEMU: the size is the source's, whatever is said.
        options.set("size", &bytes.to_string());
        NewImage {
            path: self.target.clone(),
            format: self.format,
            options,
            backing: self.backing.clone(),
            backing_format: self.backing_format.clone(),
            backing_unchecked: false,
            bytes: None,
            secrets: self.secrets.clone(),
        }
    }

    /// Copies to the target, which is new if `created` says what was done for its space, and leaves it as one that is whole.
    fn fill(
        &self,
        session: &Session,
        sources: Vec<Disk>,
        bitmaps: &[BitmapInfo],
        secret: Option<&Secret>,
        created: Option<Preallocation>,
        warnings: &mut dyn FnMut(&str),
    ) -> Result<(), Failure> {
        let is_new = created.is_some();
        let bytes = sources.iter().map(|disk| disk.bytes).sum();
        let from = sources[0].node.clone();
        // Of a new image nothing counts before the end, so nothing is synced before the end.
        let usual = if is_new { CacheMode::Unsafe } else { CacheMode::Writeback };
        let open = OpenOptions {
            cache: self.cache.unwrap_or(usual),
            format: self.format,
            backing_files: BackingFiles::Follow,
            secret: secret.cloned(),
            filters: self.target_filters.clone(),
            ..OpenOptions::default()
        };
        let target = Image::open(&self.target, &open)?;
        if target.disk_bytes() < bytes {
            let (path, there) = (self.target.display(), target.disk_bytes());
            let what = format!("converting to {path}: it has {there} bytes, the source {bytes}");
            return Err(Failure::new(what));
        }
        let node = session.attach(&target)?;
        if self.bitmaps != Bitmaps::None {
            self.check_bitmaps(session, &node, bitmaps)?;
        }
        if let Some(how) = created {
            preallocate(session, &target, &node, 0..bytes, how)?;
        }
        let how = self.copy_options(&target, &node, is_new)?;
        let progress = Rc::new(Progress::new(self.progress, bytes));
        let copied = copy(session, sources, node.clone(), how, progress.clone());
        let ended = copied.and_then(|lost| {
            lost.iter().for_each(|line| warnings(line));
            let target = node.clone();
            session.run(async move { target.flush().await })?;
            copy_bitmaps(session, &from, &node, bitmaps)
        });
        // Whatever became of it, a target that was there is left as one that is whole.
        let ended = ended.and(session.close(&node));
        progress.end(ended.is_ok());
        ended?;
        if self.cache != Some(CacheMode::Unsafe) {
            target.sync()?;
        }
        Ok(())
    }

    /// How all is copied to a target that was opened.
    fn copy_options(
        &self,
        target: &Image,
        node: &BlockNode,
        is_new: bool,
    ) -> Result<CopyOptions, Failure> {
        let has_backing = is_new && target.backing().is_some();
        let is_device = target.file().facts().is_block_device && self.format == Format::Raw;
        let compress = self.compress_how(target)?;
        Ok(CopyOptions {
            sparse: self.sparse(node, has_backing),
            target_is_zero: self.target_is_zero || is_new && !is_device,
            target_backing: target.backing().filter(|_| has_backing).map(Image::disk_bytes),
            // Over a backing file every new cluster waits for what it is filled up with: one after the other would be slow.
            target_end: target.disk_bytes(),
            in_order: compress.is_some()
                || !self.out_of_order && self.format != Format::Raw && !has_backing,
            durable: !target.options().cache.has_write_cache(),
            workers: match compress {
                Some((_, threads)) => {
                    self.workers.max(threads as u64 + COMPRESSING_MORE).min(COMPRESSING_MAX)
                }
                None => self.workers,
            },
            rate: self.rate,
            salvage: self.salvage,
            offload: self.offload(),
            compress,
        })
    }

    /// What the host does of it.
    fn offload(&self) -> Offload {
        // Who wants space that is the target's own does not want it shared. With -S 0 each block is to be written.
        let own = matches!(self.options.get("preallocation"), Some("falloc" | "full"));
        match (self.offload, self.share) {
            (true, _) if !own => Offload::Unread,
            (false, true) if !own && self.sparse_bytes > 0 => Offload::Shared,
            _ => Offload::Never,
        }
    }

    /// How clusters are compressed, and by how many threads.
    fn compress_how(&self, target: &Image) -> Result<Option<(Method, usize)>, Failure> {
        let described = if self.compress { target.describe()?.qcow2 } else { None };
        let Some(header) = described else { return Ok(None) };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let method = Method {
            compression: header.compression,
            cluster_bytes: 1 << header.cluster_bits,
            finds_zeroes: self.sparse_bytes > 0,
        };
        let most = usize::try_from(COMPRESSING_MAX - COMPRESSING_MORE).expect("a small number");
        Ok(Some((method, threads.min(most))))
    }

    /// How zeroes are looked for.
    fn sparse(&self, target: &BlockNode, has_backing: bool) -> Option<Sparse> {
        if self.sparse_bytes == 0 {
            return None;
        }
        let small = if self.sparse_bytes < BLOCK_BYTES { SECTOR } else { BLOCK_BYTES };
        // A part of a cluster would have to be filled up from the disk below.
        let block = match has_backing {
            true => target.cluster_bytes().unwrap_or(small).clamp(small, BLOCK_MAX),
            false => small,
        };
        Some(Sparse { block, min: self.sparse_bytes })
    }
}

/// Makes the bitmaps of `from` once more in `to`.
fn copy_bitmaps(
    session: &Session,
    from: &Rc<BlockNode>,
    to: &Rc<BlockNode>,
    bitmaps: &[BitmapInfo],
) -> block::Result<()> {
    for bitmap in bitmaps.iter().cloned() {
        let (from, to) = (from.clone(), to.clone());
        session.run(async move {
            let target = with_bitmaps(&to)?;
            // Nothing of its own is recorded meanwhile.
            target.add_bitmap(&bitmap.name, bitmap.granularity, false).await?;
            carry(&from, &bitmap.name, &to, &bitmap.name).await?;
            match bitmap.is_enabled {
                true => target.enable_bitmap(&bitmap.name).await,
                false => Ok(()),
            }
        })?;
    }
    Ok(())
}
