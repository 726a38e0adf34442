//! Backing files: which file an image stands on, and whether it may.
//!
//! The name of a backing file is bytes from an image. It is a path, absolute or relative to the image's directory, and never anything else: no
//! protocol, no option syntax. It is opened only if the caller allowed that, read-only, and with a format that comes from the image's header.

use crate::filters::IoKind;
use crate::{
    BackingFiles, CacheMode, Error, ErrorKind, Filters, Format, Image, Locking, OpenOptions,
    Result, SECTOR,
};
use crate::{qcow2, qed, unlock};
use rustix::fs::{FileType, Mode, OFlags};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Images in a chain at most.
const CHAIN_MAX: usize = 200;
/// Bytes of an image that are looked at for its format.
const START_BYTES: usize = 64;

/// Bytes of a qcow2 image that its header can be in: the largest cluster.
const QCOW2_START_BYTES: usize = 2 << 20;

/// A backing file as an image names it.
#[derive(Clone, Debug)]
pub struct BackingName {
    /// The bytes of the name.
    pub name: Vec<u8>,
    /// Its format; `None`: not recorded, or not one of ours.
    pub format: Option<Format>,
    /// The format's name as it is recorded.
    pub format_name: Option<Vec<u8>>,
}

impl BackingName {
    /// The file that the name stands for in an image at `image`.
    ///
    /// # Errors
    ///
    /// `Unsupported` if it is not a plain path.
    pub fn path(&self, image: &Path) -> Result<PathBuf> {
        path_in(image, &self.name, "backing file")
    }
}

/// What an image says of itself.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// The header of a QED image.
    pub qed: Option<qed::Header>,
    /// The header of a qcow2 image.
    pub qcow2: Option<qcow2::Header>,
    /// The file that it stands on.
    pub backing: Option<BackingName>,
}

/// What `image` stands on: the file, and its format if that is to be found from its content.
fn below(image: &Image, described: &Description) -> Result<Option<(PathBuf, Option<Format>)>> {
    let Some(named) = &described.backing else { return Ok(None) };
    let doing = |error: Error| {
        Error::new(error.kind(), format!("opening {}: {error}", image.path().display()))
    };
    let format = match (named.format, &named.format_name) {
        (Some(format), _) => Some(format),
        // QED says only whether it is raw.
        (None, None) if image.format() == Format::Qed => None,
        (None, None) => {
            let what = "the format of its backing file is not recorded, and is not guessed: record it with qemu-img rebase -u -F";
            return Err(doing(Error::new(ErrorKind::BadRequest, what)));
        }
        (None, Some(name)) => {
            let name = String::from_utf8_lossy(name);
            let what = format!("its backing file has the format {name:?}, which is not supported");
            return Err(doing(Error::new(ErrorKind::Unsupported, what)));
        }
    };
    Ok(Some((named.path(image.path()).map_err(doing)?, format)))
}

/// Opens the file that an image's data is in, if that is another one.
fn open_data(image: &mut Image, described: &Description, locking: Locking) -> Result<()> {
    let Some(header) = &described.qcow2 else { return Ok(()) };
    if !header.has(qcow2::header::EXTERNAL_DATA) {
        return Ok(());
    }
    let doing = format!("opening {}", image.path().display());
    let refuse = |kind, what: String| Err(Error::new(kind, format!("{doing}: {what}")));
    let Some(name) = &header.data_file else {
        return refuse(
            ErrorKind::Corrupt,
            "its data is in another file, and no name says which".into(),
        );
    };
    if image.options().backing_files == BackingFiles::Refuse {
        let name = OsStr::from_bytes(name);
        let what =
            format!("its data is in the file {name:?}, which is opened only with --allow-backing");
        return refuse(ErrorKind::BadRequest, what);
    }
    let path = path_in(image.path(), name, "data file")
        .map_err(|error| Error::new(error.kind(), format!("{doing}: {error}")))?;
    if look_at(&path)? == identity_of(image)? {
        return refuse(ErrorKind::BadRequest, "it is its own data file".into());
    }
    let options = OpenOptions {
        format: Format::Raw,
        discard_no_unref: false,
        table_cache_bytes: None,
        filters: Filters::default(),
        ..image.options().clone()
    };
    let data = Image::open_file(&path, &options, locking)?;
    image.set_data_file(data);
    Ok(())
}

/// Opens all that an image needs besides its own file, but not what it stands on.
fn open_parts(image: &mut Image, described: &Description, locking: Locking) -> Result<()> {
    open_data(image, described, locking)?;
    unlock::unlock(image, described)
}

/// Reads the header of `image`, and opens what it stands on.
pub(crate) fn open_backing(image: &mut Image, locking: Locking) -> Result<()> {
    open_chain(image, locking, &mut |_, _| false)
}

/// Opens what an image needs for itself, but not what it stands on. Tells whether it stands on something.
pub(crate) fn open_without_backing(image: &mut Image, locking: Locking) -> Result<bool> {
    let described = read_header(image)?;
    open_parts(image, &described, locking)?;
    Ok(described.backing.is_some())
}

/// The file of this path, as one that an image stands on is compared with.
pub(crate) fn identity_at(path: &Path) -> Result<(u64, u64)> {
    look_at(path)
}

/// As [`open_backing`]; an image below for which `is_written` says so is opened for writing. It is asked for the depth, 1 for the first, and the file.
pub(crate) fn open_chain(
    image: &mut Image,
    locking: Locking,
    is_written: &mut dyn FnMut(usize, (u64, u64)) -> bool,
) -> Result<()> {
    let mut chain = Vec::new();
    let described = read_header(image)?;
    if image.options().discard_no_unref
        && described.qcow2.as_ref().is_some_and(|header| header.version < 3)
    {
        let what = "clusters that are discarded are kept from version 3 on, and this is version 2";
        let what = format!("opening {}: {what}", image.path().display());
        return Err(Error::new(ErrorKind::BadRequest, what));
    }
    open_parts(image, &described, locking)?;
    let mut named = below(image, &described)?;
    let allowed = image.options().backing_files;
    let top = image.path().to_owned();
    let mut seen = vec![identity_of(image)?];
    while let Some((path, format)) = named {
        let doing = || format!("opening {}", top.display());
        if allowed == BackingFiles::Refuse {
            let name = path.display();
            let what = format!(
                "it has the backing file {name:?}, which is opened only with --allow-backing"
            );
            return Err(Error::new(ErrorKind::BadRequest, format!("{}: {what}", doing())));
        }
        let id = look_at(&path)?;
        if seen.contains(&id) || seen.len() == CHAIN_MAX {
            let what = match seen.contains(&id) {
                true => "is its own backing file, over others perhaps",
                false => "stands on more than 200 backing files",
            };
            return Err(Error::new(ErrorKind::BadRequest, format!("{}: it {what}", doing())));
        }
        let is_written = is_written(seen.len(), id);
        seen.push(id);
        let format = match format {
            Some(format) => format,
            None => probe(&path)?,
        };
        let cache = image.options().cache;
        let options = OpenOptions {
            read_only: !is_written,
            cache: if is_written { cache } else { below_cache(cache) },
            discard_no_unref: false,
            table_cache_bytes: image.options().table_cache_bytes.filter(|_| format != Format::Raw),
            filters: Filters::default(),
            format,
            ..image.options().clone()
        };
        let mut next = Image::open_file(&path, &options, locking)?;
        let described = read_header(&next)?;
        open_parts(&mut next, &described, locking)?;
        named = below(&next, &described)?;
        chain.push(next);
    }
    let below = chain.into_iter().rev().reduce(|below, mut above| {
        above.set_backing(below);
        above
    });
    if let Some(below) = below {
        image.set_backing(below);
    }
    Ok(())
}

/// Nothing is written below, so what differs is only whether the page cache is used.
fn below_cache(cache: CacheMode) -> CacheMode {
    if cache.is_direct() { CacheMode::None } else { CacheMode::Writeback }
}

/// Device and number of an open image's file.
fn identity_of(image: &Image) -> Result<(u64, u64)> {
    let doing = || format!("opening {}", image.path().display());
    let stat = rustix::fs::fstat(image.file().file());
    let stat = stat.map_err(|error| Error::io(doing(), error.into()))?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Device and number of the file that a path leads to, and that it is one with data. Before it is opened, because an image that is its own backing
/// file is locked by then, by ourselves. Should the path lead elsewhere a moment later, the length of the chain is still bounded.
fn look_at(path: &Path) -> Result<(u64, u64)> {
    let doing = || format!("opening {}", path.display());
    let stat = rustix::fs::stat(path).map_err(|error| Error::io(doing(), error.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => Ok((stat.st_dev, stat.st_ino)),
        _ => {
            let what = "a backing file must be a regular file or a block device";
            Err(Error::new(ErrorKind::BadRequest, format!("{}: {what}", doing())))
        }
    }
}

/// Checks the header of an image, sets the disk's size, and says what is in it.
pub(crate) fn read_header(image: &Image) -> Result<Description> {
    if image.format() == Format::Raw {
        return Ok(Description::default());
    }
    let path = image.path();
    let doing = format!("opening {}", path.display());
    let failed = |error: rustix::io::Errno| Error::io(&*doing, error.into());
    let named = |error: Error| Error::new(error.kind(), format!("{doing}: {error}"));
    // Not through a host node, as no thread has the image yet; but a filter sees it.
    let filters = &image.options().filters;
    filters.check(IoKind::Read, 0, SECTOR).map_err(|error| Error::io(&*doing, error))?;
    let file = image.file_buffered()?;
    let file_bytes = image.file().len().map_err(|error| Error::io(&*doing, error))?;
    match image.format() {
        Format::Raw => Ok(Description::default()),
        Format::Qed => {
            let mut raw = [0; qed::Header::LEN];
            if read_at(file.as_fd(), &mut raw, 0).map_err(failed)? < raw.len() {
                let what = format!("{doing}: QED header: the file is shorter than that");
                return Err(Error::new(ErrorKind::Corrupt, what));
            }
            let header = qed::Header::parse(&raw, file_bytes).map_err(named)?;
            image.set_disk_bytes(header.image_bytes());
            let Some((at, len)) = header.backing_name() else {
                return Ok(Description { qed: Some(header), ..Description::default() });
            };
            let mut name = vec![0; len];
            if read_at(file.as_fd(), &mut name, at).map_err(failed)? < len {
                let what = format!("{doing}: the file ends within the backing file's name");
                return Err(Error::new(ErrorKind::Corrupt, what));
            }
            let format = header.backing_is_raw().then_some(Format::Raw);
            let backing = Some(BackingName { name, format, format_name: None });
            Ok(Description { qed: Some(header), backing, ..Description::default() })
        }
        Format::Qcow2 => {
            let mut start = vec![0; QCOW2_START_BYTES];
            let len = read_at(file.as_fd(), &mut start, 0).map_err(failed)?;
            start.truncate(len);
            let header = qcow2::Header::parse(&start, file_bytes).map_err(named)?;
            image.set_disk_bytes(header.disk_bytes / SECTOR * SECTOR);
            let backing = header.backing.clone().map(|below| BackingName {
                format: below.format.as_deref().and_then(format_named),
                name: below.name,
                format_name: below.format,
            });
            Ok(Description { qcow2: Some(header), backing, ..Description::default() })
        }
    }
}

/// The format of this name.
fn format_named(name: &[u8]) -> Option<Format> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// The file that a name in an image stands for.
pub(crate) fn path_in(image: &Path, name: &[u8], whose: &str) -> Result<PathBuf> {
    let refuse = |why: &str| {
        let what = format!("its {whose}'s name {:?} {why}", OsStr::from_bytes(name));
        Err(Error::new(ErrorKind::Unsupported, what))
    };
    if name.contains(&0) {
        return refuse("has a zero byte in it");
    }
    let protocol = name.iter().position(|byte| *byte == b':');
    let slash = name.iter().position(|byte| *byte == b'/').unwrap_or(name.len());
    if protocol.is_some_and(|at| at < slash) {
        return refuse(
            "is not a plain path (a colon before the first slash): protocols are not followed",
        );
    }
    let directory = image.parent().unwrap_or(Path::new(""));
    Ok(directory.join(OsStr::from_bytes(name)))
}

/// The format of a backing file that its overlay does not call raw: what its first bytes say, and raw if they say nothing.
fn probe(path: &Path) -> Result<Format> {
    match Format::name_of_magic(&start_of(path)?) {
        None => Ok(Format::Raw),
        Some(name) => name.parse().map_err(|_| {
            let what = format!(
                "opening {}: backing files in the format {name} are not supported",
                path.display()
            );
            Error::new(ErrorKind::Unsupported, what)
        }),
    }
}

/// A file's first bytes.
pub(crate) fn start_of(path: &Path) -> Result<Vec<u8>> {
    let failed =
        |error: rustix::io::Errno| Error::io(format!("opening {}", path.display()), error.into());
    // A pipe has no first bytes, and must not be waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    let mut start = vec![0; START_BYTES];
    let len = read_at(file.as_fd(), &mut start, 0).map_err(failed)?;
    start.truncate(len);
    Ok(start)
}

/// Reads as much as there is, up to the length of `into`.
pub(crate) fn read_at(file: impl AsFd, into: &mut [u8], at: u64) -> rustix::io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match rustix::io::pread(file.as_fd(), &mut into[done..], at + done as u64) {
            Ok(0) => break,
            Ok(bytes) => done += bytes,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
