//! Opening an image: the one place where paths become files.

use crate::chain::{self, Description};
use crate::filters::{Event, Filters, IoKind};
use crate::mapped::Encryption;
use crate::new_file::NewFile;
use crate::unlock::Secret;
use crate::{CacheMode, DetectZeroes, DiscardMode, Error, ErrorKind, Format, Result, SECTOR};
use crate::{qcow2, qed};
use io_engine::{HostFile, lock_image};
use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
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
    /// A cluster that is discarded keeps its place in the file, so that the file does not end up in pieces: in qcow2, from version 3 on.
    pub discard_no_unref: bool,
    /// Bytes of tables that RAM holds at most, besides what is not committed; `None`: [`TABLE_CACHE_BYTES`](crate::TABLE_CACHE_BYTES).
    pub table_cache_bytes: Option<u64>,
    /// What writes of zeroes do.
    pub detect_zeroes: DetectZeroes,
    /// The image's format. Never guessed: see [`Image::format_by_name`].
    pub format: Format,
    /// Whether files that the image names are opened: backing files, and a data file.
    pub backing_files: BackingFiles,
    /// What opens it, and those under it, if they are encrypted.
    pub secret: Option<Secret>,
    /// What stands between it and its file: not for those under it.
    pub filters: Filters,
}

/// What to do about a backing file that an image names. An image is data from anywhere; a name in it could be that of any file on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BackingFiles {
    /// The image is refused.
    #[default]
    Refuse,
    /// It is opened, read-only, and those under it as well.
    Follow,
}

/// Whether others are kept from writing to what is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Locking {
    /// The image is locked, and refused if somebody else's use excludes ours.
    #[default]
    Locked,
    /// Neither: for a look at an image that may be changing meanwhile. For reading only.
    Shared,
}

/// What a new image is to be.
#[derive(Clone, Debug)]
pub enum CreateOptions {
    /// A sparse file of so many bytes.
    Raw {
        /// Size of the disk.
        bytes: u64,
    },
    /// A QED image.
    Qed(qed::CreateOptions),
    /// A qcow2 image.
    Qcow2(qcow2::CreateOptions),
}

impl CreateOptions {
    /// A disk of `bytes` bytes in this format, all else as usual.
    pub fn new(format: Format, bytes: u64) -> CreateOptions {
        match format {
            Format::Raw => CreateOptions::Raw { bytes },
            Format::Qed => CreateOptions::Qed(qed::CreateOptions::new(bytes)),
            Format::Qcow2 => CreateOptions::Qcow2(qcow2::CreateOptions::new(bytes)),
        }
    }

    /// Its format.
    pub fn format(&self) -> Format {
        match self {
            CreateOptions::Raw { .. } => Format::Raw,
            CreateOptions::Qed(_) => Format::Qed,
            CreateOptions::Qcow2(_) => Format::Qcow2,
        }
    }
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
    backing: Option<Box<Image>>,
    /// The file that the data is in, if not in `file`.
    data_file: Option<Box<Image>>,
    encryption: Option<Arc<Encryption>>,
    /// What stands below was left out.
    is_alone: bool,
}

impl Image {
    /// Opens and locks an image, a regular file or a block device, and the backing files under it.
    ///
    /// # Errors
    ///
    /// `Locked` if somebody else uses it, `Unsupported` if the file system has no O_DIRECT and the cache mode asks for it or the image needs what we do
    /// not have, `Corrupt` if its header contradicts its format, `BadRequest` if it is neither file nor device or names a backing file that the
    /// caller has not allowed, `Io` otherwise.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Image> {
        Image::open_with(path, options, Locking::Locked)
    }

    /// As [`Image::open`], and with a say about locks.
    ///
    /// # Errors
    ///
    /// As [`Image::open`]; `BadRequest` for an image that is to be written without a lock.
    pub fn open_with(path: &Path, options: &OpenOptions, locking: Locking) -> Result<Image> {
        let mut image = Image::open_file(path, options, locking)?;
        chain::open_backing(&mut image, locking)?;
        Ok(image)
    }

    /// As [`Image::open`], for who writes to an image below too: the one at `base`, or else the first one. Tells how deep below it is: 1 is the first.
    ///
    /// # Errors
    ///
    /// As [`Image::open`]; `BadRequest` if there is no such image below.
    pub fn open_over(
        path: &Path,
        options: &OpenOptions,
        base: Option<&Path>,
    ) -> Result<(Image, usize)> {
        let refuse = |why: String| {
            let what = format!("opening {}: {why}", path.display());
            Err(Error::new(ErrorKind::BadRequest, what))
        };
        let wanted = base.map(chain::identity_at).transpose();
        let wanted = match (wanted, base) {
            (Ok(wanted), _) => wanted,
            (Err(error), None) => return Err(error),
            (Err(_), Some(base)) => {
                return refuse(format!("it does not stand on {}", base.display()));
            }
        };
        let mut image = Image::open_file(path, options, Locking::Locked)?;
        let mut found = None;
        chain::open_chain(&mut image, Locking::Locked, &mut |depth, id| {
            let is_base = found.is_none() && wanted.is_none_or(|wanted| wanted == id);
            found = found.or(is_base.then_some(depth));
            is_base
        })?;
        match (found, base) {
            (Some(depth), _) => Ok((image, depth)),
            (None, Some(base)) => refuse(format!("it does not stand on {}", base.display())),
            (None, None) => refuse("it has no backing file".into()),
        }
    }

    /// Opens one file, whatever it stands on: for those who look at the image itself and not at its disk, which is not all there.
    ///
    /// # Errors
    ///
    /// As [`Image::open_with`].
    pub fn open_alone(path: &Path, options: &OpenOptions, locking: Locking) -> Result<Image> {
        let mut image = Image::open_file(path, options, locking)?;
        let described = image.describe()?;
        let is_split = described.qcow2.is_some_and(|header| {
            header.has(qcow2::header::EXTERNAL_DATA)
                || header.crypt_method != qcow2::header::CryptMethod::None
        });
        image.is_alone = described.backing.is_some() || is_split;
        Ok(image)
    }

    /// Opens an image with all that is its own, a data file and its key, and without what it stands on: for a change of its header.
    ///
    /// # Errors
    ///
    /// As [`Image::open`].
    pub fn open_without_backing(path: &Path, options: &OpenOptions) -> Result<Image> {
        let mut image = Image::open_file(path, options, Locking::Locked)?;
        image.is_alone = chain::open_without_backing(&mut image, Locking::Locked)?;
        Ok(image)
    }

    /// What the image's header says. Sets the disk's size to it.
    ///
    /// # Errors
    ///
    /// `Corrupt` or `Unsupported` with the reason, the host's.
    pub fn describe(&self) -> Result<Description> {
        chain::read_header(self)
    }

    /// The format that a file's name stands for, if its content does not contradict it.
    ///
    /// # Errors
    ///
    /// `BadRequest` with a line that says to name the format.
    pub fn format_by_name(path: &Path) -> Result<Format> {
        let refuse = |why: String| {
            let what = format!("opening {}: {why}; say which with -f", path.display());
            Error::new(ErrorKind::BadRequest, what)
        };
        let is_device = path.starts_with("/dev") && !path.starts_with("/dev/shm");
        let named = match Format::of_extension(path) {
            Some(format) => format,
            None if is_device => Format::Raw,
            None => return Err(refuse("the file name does not tell its format".into())),
        };
        check_kind(path, &format!("opening {}", path.display()))?;
        let start = chain::start_of(path)?;
        match Format::name_of_magic(&start).unwrap_or("raw") {
            found if found == named.to_string() => Ok(named),
            found => Err(refuse(format!("its name stands for {named}, but it looks like {found}"))),
        }
    }

    /// The format that an image's content looks like: raw if like none. For those who look only, as what is written to a raw disk may look like
    /// anything.
    ///
    /// # Errors
    ///
    /// `Unsupported` for a format that is not supported, `BadRequest` if it is neither file nor device; the host's.
    pub fn format_by_content(path: &Path) -> Result<Format> {
        let doing = format!("opening {}", path.display());
        check_kind(path, &doing)?;
        match Format::name_of_magic(&chain::start_of(path)?) {
            None => Ok(Format::Raw),
            Some(name) => name.parse().map_err(|_| {
                let what = format!("{doing}: images in the format {name} are not supported");
                Error::new(ErrorKind::Unsupported, what)
            }),
        }
    }

    /// Opens and locks one file, as [`Image::open`] does.
    pub(crate) fn open_file(path: &Path, options: &OpenOptions, locking: Locking) -> Result<Image> {
        let doing = format!("opening {}", path.display());
        if locking == Locking::Shared && !options.read_only {
            let what = format!("{doing}: nothing is written without a lock");
            return Err(Error::new(ErrorKind::BadRequest, what));
        }
        check_format(options, &doing)?;
        if let Some(null) = options.filters.null {
            let file = no_file(null.bytes).map_err(|error| Error::io(&*doing, error.into()))?;
            return Image::from_file(path, file, options, Locking::Shared);
        }
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
        Image::from_file(path, File::from(file), options, locking)
    }

    /// Creates an image and opens it. If anything fails, no file is left behind.
    pub fn create(path: &Path, create: &CreateOptions, options: &OpenOptions) -> Result<Image> {
        let doing = format!("creating {}", path.display());
        let new = NewFile::new(create)
            .map_err(|error| Error::new(error.kind(), format!("{doing}: {error}")))?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let file = rustix::fs::open(path, flags, mode).map_err(|error| match error {
            rustix::io::Errno::EXIST => {
                let what = "it exists already; leave --create out to serve it as it is";
                Error::new(ErrorKind::BadRequest, format!("{doing}: {what}"))
            }
            error => Error::io(&*doing, error.into()),
        })?;
        let failed = |error: rustix::io::Errno| Error::io(&*doing, error.into());
        let file = File::from(file);
        let options = OpenOptions { format: create.format(), ..options.clone() };
        rustix::fs::ftruncate(&file, new.bytes())
            .map_err(failed)
            .and_then(|()| new.write(&file, path, &doing))
            .and_then(|()| rustix::fs::fsync(&file).map_err(failed))
            .and_then(|()| Image::open(path, &options))
            .inspect_err(|_| {
                let _ = rustix::fs::unlink(path);
            })
    }

    /// Makes an image of the file or block device that is there, or else of a new file. What it held is lost, unless this fails before anything is
    /// changed. Tells whether the file is new; if this fails, a new one is removed again.
    ///
    /// # Errors
    ///
    /// `Locked` if somebody uses it, `BadRequest` if the format cannot express what is asked for or the device is too small; the host's.
    pub fn overwrite(path: &Path, create: &CreateOptions) -> Result<bool> {
        let doing = format!("creating {}", path.display());
        let failed = |error: rustix::io::Errno| Error::io(&*doing, error.into());
        let named = |error: Error| Error::new(error.kind(), format!("{doing}: {error}"));
        let new = NewFile::new(create).map_err(named)?;
        let bytes = new.bytes();
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let is_new = match rustix::fs::stat(path) {
            Ok(_) => {
                check_kind(path, &doing)?;
                false
            }
            Err(rustix::io::Errno::NOENT) => true,
            Err(error) => return Err(failed(error)),
        };
        let file = rustix::fs::open(path, flags | OFlags::CREATE, mode).map_err(failed)?;
        let file = File::from(file);
        let made = (|| {
            lock(&file, false, &doing)?;
            let stat = rustix::fs::fstat(&file).map_err(failed)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
                let there = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(failed)?;
                if there < bytes {
                    let what = format!("{doing}: the device has {there} bytes, not {bytes}");
                    return Err(Error::new(ErrorKind::BadRequest, what));
                }
                let metadata = if create.format() == Format::Raw { 0 } else { bytes };
                zero(&file, metadata).map_err(failed)?;
            } else {
                rustix::fs::ftruncate(&file, 0).map_err(failed)?;
                rustix::fs::ftruncate(&file, bytes).map_err(failed)?;
            }
            new.write(&file, path, &doing)
        })();
        made.map(|()| is_new).inspect_err(|_| {
            if is_new {
                let _ = rustix::fs::unlink(path);
            }
        })
    }

    fn from_file(
        path: &Path,
        file: File,
        options: &OpenOptions,
        locking: Locking,
    ) -> Result<Image> {
        let doing = format!("opening {}", path.display());
        if locking == Locking::Locked {
            lock(&file, options.read_only, &doing)?;
        }
        // What has no file is in RAM.
        let direct = options.cache.is_direct() && options.filters.null.is_none();
        let file = HostFile::new(file, direct).map_err(|error| Error::io(&*doing, error))?;
        let image = Image {
            path: path.to_owned(),
            file,
            options: options.clone(),
            health: Arc::default(),
            backing: None,
            data_file: None,
            encryption: None,
            is_alone: false,
        };
        image.update_size()?;
        Ok(image)
    }

    /// Looks how large a raw image's file is now. Returns the disk's new size in bytes, if it changed. In other formats the size is in the image,
    /// which nobody else changes while it is locked.
    pub fn update_size(&self) -> Result<Option<u64>> {
        if self.options.format != Format::Raw {
            return Ok(None);
        }
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
        let filters = &self.options.filters;
        filters.event(Event::FlushToDisk);
        let may = filters.check(IoKind::Flush, 0, 0);
        may.and_then(|()| self.file.file().sync_data()).map_err(|error| {
            self.health.poison();
            Error::io(doing(), error)
        })
    }

    /// As [`Image::sync`]; nothing if its cache mode is that of data that may be lost.
    ///
    /// # Errors
    ///
    /// As [`Image::sync`].
    pub fn sync_unless_unsafe(&self) -> Result<()> {
        if self.options.cache.ignores_flush() { Ok(()) } else { self.sync() }
    }

    /// Its format.
    pub fn format(&self) -> Format {
        self.options.format
    }

    /// The image under it.
    pub fn backing(&self) -> Option<&Image> {
        self.backing.as_deref()
    }

    /// Whether it stands on a file that was left out: see [`Image::open_alone`].
    pub fn is_alone(&self) -> bool {
        self.is_alone
    }

    pub(crate) fn set_backing(&mut self, backing: Image) {
        self.backing = Some(Box::new(backing));
    }

    pub(crate) fn set_data_file(&mut self, data: Image) {
        self.data_file = Some(Box::new(data));
    }

    /// The file that the data is in, if it is not the image's own.
    pub fn data_file(&self) -> Option<&Image> {
        self.data_file.as_deref()
    }

    pub(crate) fn set_encryption(&mut self, encryption: Encryption) {
        self.encryption = Some(Arc::new(encryption));
    }

    pub(crate) fn encryption(&self) -> Option<&Arc<Encryption>> {
        self.encryption.as_ref()
    }

    /// The file once more, for reading pieces of any length anywhere, whatever the image's own mode is.
    pub(crate) fn file_buffered(&self) -> Result<OwnedFd> {
        let by_descriptor = format!("/proc/self/fd/{}", self.file.file().as_raw_fd());
        rustix::fs::open(by_descriptor, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::io(format!("opening {}", self.path.display()), error.into()))
    }

    pub(crate) fn set_disk_bytes(&self, bytes: u64) {
        self.health.disk_bytes.store(bytes, Ordering::Release);
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

    /// Size of the virtual disk in bytes. Of a raw image the file's, rounded up to whole sectors; what lies between reads as zeroes.
    pub fn disk_bytes(&self) -> u64 {
        self.health.disk_bytes()
    }

    /// Whether the disk must be served by one I/O thread only: because its metadata is kept there; or because a write of one sector needs a read and a
    /// wider write, the host's blocks being larger, and the ranges that are worked on are tracked there.
    pub fn needs_home_thread(&self) -> bool {
        self.format() != Format::Raw || u64::from(self.file.facts().offset_align) > SECTOR
    }
}

/// What stands for the file of a disk that has none: of its length, and always empty.
fn no_file(bytes: u64) -> rustix::io::Result<File> {
    let file = rustix::fs::memfd_create("ferroblk-null", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, bytes)?;
    Ok(File::from(file))
}

/// Zeroes the first bytes of a block device: as many as a format's first tables have.
fn zero(device: &File, bytes: u64) -> rustix::io::Result<()> {
    let zeroes = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let piece = usize::try_from(bytes - at).map_or(zeroes.len(), |n| n.min(zeroes.len()));
        at += rustix::io::pwrite(device, &zeroes[..piece], at)? as u64;
    }
    Ok(())
}

/// Locks a file that was just opened.
pub(crate) fn lock(file: &File, read_only: bool, doing: &str) -> Result<()> {
    lock_image(file, read_only).or_else(|error| match error.kind() {
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
    })
}

/// Refuses what the format cannot do.
fn check_format(options: &OpenOptions, doing: &str) -> Result<()> {
    let refuse = |what: &str| {
        let what = format!("{doing}: {what}, and this one is {}", options.format);
        Err(Error::new(ErrorKind::BadRequest, what))
    };
    if options.discard_no_unref && options.format != Format::Qcow2 {
        return refuse("only a qcow2 image can keep the clusters that are discarded");
    }
    if options.table_cache_bytes.is_some() && options.format == Format::Raw {
        return refuse("only an image with tables can have a limit for them");
    }
    Ok(())
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
