//! Opening an image: the one place where paths become files.

use crate::{CacheMode, DetectZeroes, DiscardMode, Error, ErrorKind, Result, SECTOR};
use io_engine::{HostFile, lock_image};
use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How to open an image.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// No writes.
    pub read_only: bool,
    /// Cache mode.
    pub cache: CacheMode,
    /// What discards do.
    pub discard: DiscardMode,
    /// What writes of zeroes do.
    pub detect_zeroes: DetectZeroes,
}

/// What all users of an image share about its state, over all threads.
#[derive(Debug, Default)]
pub struct Health {
    /// A sync failed. What it was to make durable may be lost, and the kernel will not say so a second time.
    poisoned: AtomicBool,
    disk_bytes: AtomicU64,
}

impl Health {
    /// A disk of this many bytes, in good health.
    pub fn new(disk_bytes: u64) -> Health {
        Health { poisoned: AtomicBool::new(false), disk_bytes: AtomicU64::new(disk_bytes) }
    }

    /// After a failed sync: no further write or flush may succeed.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Records a failed sync. Returns whether it was the first.
    pub fn poison(&self) -> bool {
        !self.poisoned.swap(true, Ordering::AcqRel)
    }

    /// Size of the virtual disk in bytes: whole sectors.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Ordering::Acquire)
    }
}

/// An opened and locked image file.
#[derive(Clone, Debug)]
pub struct Image {
    path: PathBuf,
    file: HostFile,
    options: OpenOptions,
    health: Arc<Health>,
}

impl Image {
    /// Opens and locks a raw image: a regular file or a block device.
    ///
    /// # Errors
    ///
    /// `Locked` if somebody else uses it, `Unsupported` if the file system has no O_DIRECT and the cache mode asks for it, `BadRequest` if it
    /// is neither file nor device, `Io` otherwise.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Image> {
        let doing = format!("opening {}", path.display());
        check_kind(path, &doing)?;
        let access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let direct = if options.cache.is_direct() { OFlags::DIRECT } else { OFlags::empty() };
        let file = rustix::fs::open(path, access | direct | OFlags::CLOEXEC, Mode::empty());
        let file = file.map_err(|error| match error {
            rustix::io::Errno::INVAL if options.cache.is_direct() => {
                let what = "the file system has no O_DIRECT, which --cache none and directsync need: use --cache writeback";
                Error::new(ErrorKind::Unsupported, format!("{doing}: {what}"))
            }
            error => Error::io(&*doing, error.into()),
        })?;
        Image::from_file(path, File::from(file), options)
    }

    /// Creates a sparse raw image of `bytes` bytes and opens it. If anything fails, no file is left behind.
    pub fn create(path: &Path, bytes: u64, options: &OpenOptions) -> Result<Image> {
        let doing = format!("creating {}", path.display());
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let file = rustix::fs::open(path, flags, mode).map_err(|error| match error {
            rustix::io::Errno::EXIST => {
                let what = "it exists already; leave --create out to serve it as it is";
                Error::new(ErrorKind::BadRequest, format!("{doing}: {what}"))
            }
            error => Error::io(&*doing, error.into()),
        })?;
        let sized = rustix::fs::ftruncate(&file, bytes);
        sized
            .map_err(|error| Error::io(&*doing, error.into()))
            .and_then(|()| Image::open(path, options))
            .inspect_err(|_| {
                let _ = rustix::fs::unlink(path);
            })
    }

    fn from_file(path: &Path, file: File, options: &OpenOptions) -> Result<Image> {
        let doing = format!("opening {}", path.display());
        lock_image(&file, options.read_only).or_else(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                let what = "it is in use by another process (locked)";
                Err(Error::new(ErrorKind::Locked, format!("{doing}: {what}")))
            }
            _ => {
                tracing::warn!(
                    "{doing}: this file system has no locks ({error}): nothing keeps others out"
                );
                Ok(())
            }
        })?;
        let file = HostFile::new(file, options.cache.is_direct())
            .map_err(|error| Error::io(&*doing, error))?;
        let image =
            Image { path: path.to_owned(), file, options: options.clone(), health: Arc::default() };
        image.update_size()?;
        Ok(image)
    }

    /// Looks how large the file is now. Returns the disk's new size in bytes, if it changed.
    pub fn update_size(&self) -> Result<Option<u64>> {
        let doing = || format!("finding the size of {}", self.path.display());
        let file_bytes = self.file.len().map_err(|error| Error::io(doing(), error))?;
        let disk_bytes = file_bytes
            .checked_next_multiple_of(SECTOR)
            .ok_or_else(|| Error::new(ErrorKind::BadRequest, doing()))?;
        let before = self.health.disk_bytes.swap(disk_bytes, Ordering::AcqRel);
        Ok((before != disk_bytes).then_some(disk_bytes))
    }

    /// Makes every completed write durable, waiting for it: for the control thread, when nothing is in flight.
    ///
    /// # Errors
    ///
    /// The host's. The image is poisoned then; and it fails if it is so already.
    pub fn sync(&self) -> Result<()> {
        let doing = || format!("flushing {}", self.path.display());
        if self.health.is_poisoned() {
            return Err(Error::new(
                ErrorKind::Poisoned,
                format!("{}: an earlier flush failed", doing()),
            ));
        }
        self.file.file().sync_data().map_err(|error| {
            self.health.poison();
            Error::io(doing(), error)
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file.
    pub fn file(&self) -> &HostFile {
        &self.file
    }

    /// The file once more, with a description of its own: see [`crate::HostNode`]. The lock stays with the first one.
    pub fn file_of_thread(&self) -> Result<HostFile> {
        let doing = || format!("opening {} for an I/O thread", self.path.display());
        let direct = self.file.facts().direct;
        let mut flags = OFlags::CLOEXEC;
        flags |= if self.options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        flags.set(OFlags::DIRECT, direct);
        // Not by its path, which may lead to another file by now.
        let by_descriptor = format!("/proc/self/fd/{}", self.file.file().as_raw_fd());
        let file = rustix::fs::open(by_descriptor, flags, Mode::empty())
            .map_err(|error| Error::io(doing(), error.into()))?;
        HostFile::new(File::from(file), direct).map_err(|error| Error::io(doing(), error))
    }

    /// How it was opened.
    pub fn options(&self) -> &OpenOptions {
        &self.options
    }

    /// Its shared state.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Size of the virtual disk in bytes: the file's, rounded up to whole sectors. What lies between reads as zeroes.
    pub fn disk_bytes(&self) -> u64 {
        self.health.disk_bytes()
    }

    /// Whether a write of one sector needs a read and a wider write, because the host's blocks are larger. Such a disk must be served by one I/O
    /// thread only: the ranges it works on are tracked there.
    pub fn needs_read_modify_write(&self) -> bool {
        u64::from(self.file.facts().offset_align) > SECTOR
    }
}

/// Refuses what is not a file with data, before opening it: opening a pipe would wait for its other end.
fn check_kind(path: &Path, doing: &str) -> Result<()> {
    let stat = rustix::fs::stat(path).map_err(|error| Error::io(doing, error.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => Ok(()),
        FileType::Directory => {
            Err(Error::new(ErrorKind::BadRequest, format!("{doing}: it is a directory")))
        }
        _ => {
            let what = "it is neither a regular file nor a block device";
            Err(Error::new(ErrorKind::BadRequest, format!("{doing}: {what}")))
        }
    }
}
