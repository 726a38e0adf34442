//! What the tests of whole images share: a directory that goes away, and an image that is open on an I/O thread's context.
#![allow(
    dead_code,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

pub mod craft;
pub mod craft_qcow2;
pub mod model;
pub mod qemu;

use block::{
    BackingFiles, BlockNode, CacheMode, DiskOffset, Error, Format, Image, OpenOptions, Result,
};
use guest_mem::{GuestAddr, GuestMemory, IoVecs, MemHandle};
use io_engine::{EngineKind, IoEngine};
use iothread::{Clock, IoContext};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of guest memory, and so of the largest request.
const MEMORY_BYTES: u64 = 32 << 20;

/// A directory on a real disk, for files that may be opened with O_DIRECT. It goes away with the test.
#[derive(Debug)]
pub struct Dir(PathBuf);

impl Dir {
    pub fn new() -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ferroblk-block-{}-{count}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir(&path).unwrap();
        Dir(path)
    }

    /// The path of the file `name` in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes a file.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How a disk is used: engine and cache mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub engine: EngineKind,
    pub cache: CacheMode,
}

/// The way of tests that are about something else.
pub const PLAIN: Way = Way { engine: EngineKind::Threads, cache: CacheMode::Writeback };

/// Both engines with and without the page cache; without io_uring where the kernel forbids it.
pub fn ways() -> Vec<Way> {
    let mut engines = vec![EngineKind::Threads];
    match IoEngine::new(EngineKind::IoUring, 8) {
        Ok(_) => engines.push(EngineKind::IoUring),
        Err(error) => println!("SKIPPED io_uring: {error}"),
    }
    let with = |engine| [CacheMode::Writeback, CacheMode::None].map(|cache| Way { engine, cache });
    engines.into_iter().flat_map(with).collect()
}

/// Options to open an image with, backing files included.
pub fn options(format: Format, way: Way, read_only: bool) -> OpenOptions {
    OpenOptions {
        read_only,
        cache: way.cache,
        format,
        backing_files: BackingFiles::Follow,
        ..OpenOptions::default()
    }
}

/// A context with an engine of its own.
pub fn context(engine: EngineKind) -> IoContext {
    IoContext::new(IoEngine::new(engine, 64).unwrap(), 64, Clock::monotonic())
}

/// A disk in use.
#[derive(Debug)]
pub struct Disk {
    pub context: IoContext,
    pub node: Rc<BlockNode>,
    pub bytes: u64,
    memory: MemHandle,
    /// Locks the file.
    image: Option<Image>,
}

impl Disk {
    /// Opens an image: a QED one unless its name says something else.
    pub fn open(path: &Path, way: Way, read_only: bool) -> Result<Disk> {
        let format = Format::of_extension(path).unwrap_or(Format::Qed);
        Disk::open_with(path, way.engine, &options(format, way, read_only))
    }

    pub fn open_with(path: &Path, engine: EngineKind, options: &OpenOptions) -> Result<Disk> {
        qemu::wait_for_starts();
        Disk::attach(Image::open(path, options)?, engine)
    }

    pub fn attach(image: Image, engine: EngineKind) -> Result<Disk> {
        let context = context(engine);
        let (shared, on) = (image.clone(), context.clone());
        let node = context.block_on(async move { BlockNode::attach(&shared, &on).await });
        let bytes = image.disk_bytes();
        Ok(Disk { image: Some(image), ..Disk::over(context, node.unwrap()?, bytes) })
    }

    /// A disk over a node that is open already.
    pub fn over(context: IoContext, node: BlockNode, bytes: u64) -> Disk {
        let (memory, _) = GuestMemory::memfd(MEMORY_BYTES).unwrap();
        let memory = MemHandle::new(Arc::new(memory));
        Disk { context, node: Rc::new(node), bytes, memory, image: None }
    }

    /// Runs one request to its end.
    pub fn run<T: 'static, F>(&self, work: impl FnOnce(Rc<BlockNode>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + 'static,
    {
        let work = work(self.node.clone());
        self.context.block_on(work).map_err(|error| Error::io("running", error))?
    }

    fn memory(&self, len: u64) -> IoVecs {
        let mut iov = IoVecs::new(&self.memory);
        iov.push(GuestAddr(0), len).unwrap();
        iov
    }

    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.write_with(at, bytes, false)
    }

    pub fn write_with(&self, at: u64, bytes: &[u8], fua: bool) -> Result<()> {
        let iov = self.memory(bytes.len() as u64);
        iov.copy_from(0, bytes);
        self.run(|node| async move { node.write(DiskOffset(at), iov, fua).await })
    }

    pub fn read(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let iov = self.memory(len);
        // So that what is not written to is seen.
        iov.copy_from(0, &vec![0xEE; len as usize]);
        let copy = iov.part(0, len);
        self.run(|node| async move { node.read(DiskOffset(at), iov).await })?;
        let mut bytes = vec![0; len as usize];
        copy.copy_to(0, &mut bytes);
        Ok(bytes)
    }

    /// The whole disk.
    pub fn contents(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < self.bytes {
            let at = bytes.len() as u64;
            bytes.extend(self.read(at, MEMORY_BYTES.min(self.bytes - at)).unwrap());
        }
        bytes
    }

    /// No more writes are taken: whoever serves the disk asks this before each.
    pub fn is_poisoned(&self) -> bool {
        self.image.as_ref().is_some_and(|image| image.health().is_poisoned())
    }

    pub fn flush(&self) -> Result<()> {
        self.run(|node| async move { node.flush().await })
    }

    pub fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.run(move |node| async move { node.discard(DiskOffset(at), len).await })
    }

    pub fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> Result<()> {
        self.run(move |node| async move { node.write_zeroes(DiskOffset(at), len, unmap).await })
    }

    pub fn close(self) -> Result<()> {
        self.run(|node| async move { node.close().await })
    }
}

/// Where two runs of bytes first differ.
pub fn first_difference(found: &[u8], expected: &[u8]) -> Option<usize> {
    if found == expected {
        return None;
    }
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    Some(differs.unwrap_or(found.len().min(expected.len())))
}
