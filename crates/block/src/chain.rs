//! Backing files: which file an image stands on, and whether it may.
//!
//! The name of a backing file is bytes from an image. It is a path, absolute or relative to the image's directory, and never anything else: no
//! protocol, no option syntax. It is opened only if the caller allowed that, read-only, and with a format that comes from the image's header.

use crate::qed::Header;
use crate::{BackingFiles, CacheMode, Error, ErrorKind, Format, Image, OpenOptions, Result};
use rustix::fs::{Mode, OFlags};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Images in a chain at most.
const CHAIN_MAX: usize = 200;
/// Bytes of an image that are looked at for its format.
const START_BYTES: usize = 64;

/// A backing file as an image names it.
#[derive(Debug)]
struct Named {
    path: PathBuf,
    /// `None`: to be found from its content.
    format: Option<Format>,
}

/// Reads the header of `image`, and opens what it stands on.
pub(crate) fn open_backing(image: &mut Image) -> Result<()> {
    let mut chain = Vec::new();
    let mut named = read_header(image)?;
    let allowed = image.options().backing_files;
    let top = image.path().to_owned();
    let mut seen = vec![identity(image)?];
    while let Some(below) = named {
        let doing = || format!("opening {}", top.display());
        if allowed == BackingFiles::Refuse {
            let name = below.path.display();
            let what = format!(
                "it has the backing file {name:?}, which is not opened unless that is allowed"
            );
            return Err(Error::new(ErrorKind::BadRequest, format!("{}: {what}", doing())));
        }
        let options = OpenOptions {
            read_only: true,
            cache: below_cache(image.options().cache),
            format: match below.format {
                Some(format) => format,
                None => probe(&below.path)?,
            },
            ..image.options().clone()
        };
        let next = Image::open_file(&below.path, &options)?;
        let id = identity(&next)?;
        if seen.contains(&id) || seen.len() == CHAIN_MAX {
            let what = match seen.contains(&id) {
                true => "is its own backing file, over others perhaps",
                false => "stands on more than 200 backing files",
            };
            return Err(Error::new(ErrorKind::BadRequest, format!("{}: it {what}", doing())));
        }
        seen.push(id);
        named = read_header(&next)?;
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

fn identity(image: &Image) -> Result<(u64, u64)> {
    let doing = || format!("opening {}", image.path().display());
    let stat = rustix::fs::fstat(image.file().file());
    let stat = stat.map_err(|error| Error::io(doing(), error.into()))?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Checks the header of an image, sets the disk's size, and gives its backing file.
fn read_header(image: &Image) -> Result<Option<Named>> {
    if image.format() == Format::Raw {
        return Ok(None);
    }
    let path = image.path();
    let doing = format!("opening {}", path.display());
    let failed = |error: rustix::io::Errno| Error::io(&*doing, error.into());
    let named = |error: Error| Error::new(error.kind(), format!("{doing}: {error}"));
    // Buffered, whatever the image's own mode is: the pieces are small and lie anywhere.
    let by_descriptor = format!("/proc/self/fd/{}", image.file().file().as_raw_fd());
    let file = rustix::fs::open(by_descriptor, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed)?;
    let mut raw = [0; Header::LEN];
    if read_at(&file, &mut raw, 0).map_err(failed)? < raw.len() {
        let what = format!("{doing}: QED header: the file is shorter than that");
        return Err(Error::new(ErrorKind::Corrupt, what));
    }
    let file_bytes = image.file().len().map_err(|error| Error::io(&*doing, error))?;
    let header = Header::parse(&raw, file_bytes).map_err(named)?;
    image.set_disk_bytes(header.image_bytes());
    let Some((at, len)) = header.backing_name() else { return Ok(None) };
    let mut name = vec![0; len];
    if read_at(&file, &mut name, at).map_err(failed)? < len {
        let what = format!("{doing}: the file ends within the backing file's name");
        return Err(Error::new(ErrorKind::Corrupt, what));
    }
    let format = header.backing_is_raw().then_some(Format::Raw);
    let path = backing_path(path, &name).map_err(named)?;
    Ok(Some(Named { path, format }))
}

/// The file that a name in an image stands for.
fn backing_path(image: &Path, name: &[u8]) -> Result<PathBuf> {
    let refuse = |why: &str| {
        let what = format!("its backing file's name {:?} {why}", OsStr::from_bytes(name));
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
    let len = read_at(&file, &mut start, 0).map_err(failed)?;
    start.truncate(len);
    Ok(start)
}

/// Reads as much as there is, up to the length of `into`.
fn read_at(file: &OwnedFd, into: &mut [u8], at: u64) -> rustix::io::Result<usize> {
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
