//! File sets in a directory of this host: each operation is the system call that FFSB makes.

use super::How;
use crate::verify::{self, CELL};
use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Directories of an FFSB location that hold its files.
const TOP: [&str; 2] = ["data", "meta"];
/// Files looked at for content that can be verified; the first one's may be what is damaged.
const PROBED_FILES: usize = 8;

/// An FFSB location.
#[derive(Debug)]
pub(crate) struct Directory {
    root: OwnedFd,
    path: PathBuf,
    /// Files have a position, moved by `lseek`, so that its latency can be recorded; otherwise each call says its offset.
    positioned: bool,
}

/// A file that is open.
#[derive(Debug)]
pub(crate) struct Opened {
    fd: OwnedFd,
    positioned: bool,
}

impl Directory {
    /// A location that exists.
    pub fn new(path: &Path, positioned: bool) -> io::Result<Directory> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Directory { root, path: path.to_path_buf(), positioned })
    }

    pub fn place(&self) -> &Path {
        &self.path
    }

    pub fn path(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    pub fn utilisation(&self) -> io::Result<f64> {
        let facts = rustix::fs::fstatvfs(&self.root)?;
        Ok(facts.f_blocks.saturating_sub(facts.f_bfree) as f64 / facts.f_blocks.max(1) as f64)
    }

    pub fn open(&self, name: &str, how: How, direct: bool) -> io::Result<Opened> {
        let mut flags = OFlags::CLOEXEC
            | match how {
                How::Read => OFlags::RDONLY,
                How::Write => OFlags::WRONLY,
                How::Append => OFlags::WRONLY | OFlags::APPEND,
                How::Create => OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC,
            };
        flags.set(OFlags::DIRECT, direct);
        let open = || rustix::fs::openat(&self.root, name, flags, Mode::RWXU);
        match rustix::io::retry_on_intr(open) {
            Ok(fd) => Ok(Opened { fd, positioned: self.positioned }),
            Err(rustix::io::Errno::INVAL) if direct => {
                Err(io::Error::other("the file system has no O_DIRECT"))
            }
            Err(error) => Err(error.into()),
        }
    }

    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    pub fn unlink(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.root, name, AtFlags::empty())?)
    }

    pub fn stat(&self, name: &str) -> io::Result<()> {
        rustix::fs::statat(&self.root, name, AtFlags::empty())?;
        Ok(())
    }

    pub fn mkdir(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.root, name, Mode::RWXU)?)
    }

    pub fn rmdir(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.root, name, AtFlags::REMOVEDIR)?)
    }

    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.root, from, &self.root, to)?)
    }

    /// Removes file sets of an earlier run, as FFSB does. What does not look like one is somebody's, and refused.
    ///
    /// # Errors
    ///
    /// If there is something else than a file set, or it cannot be removed; the text names it.
    pub fn remove_sets(&self) -> io::Result<()> {
        for top in TOP {
            let path = self.path.join(top);
            match std::fs::symlink_metadata(&path) {
                Ok(facts) if facts.is_dir() => {
                    self.ensure_ours(&path)?;
                    std::fs::remove_dir_all(&path)
                        .map_err(|error| about("removing", &path, &error))?;
                }
                Ok(_) => return Err(not_ours(&path)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(about("looking at", &path, &error)),
            }
        }
        Ok(())
    }

    /// Everything below is named as FFSB names it.
    fn ensure_ours(&self, dir: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(dir).map_err(|error| about("listing", dir, &error))? {
            let entry = entry.map_err(|error| about("listing", dir, &error))?;
            let kind = entry.file_type().map_err(|error| about("listing", dir, &error))?;
            let name = entry.file_name();
            if !name.to_str().is_some_and(is_set_name) || !(kind.is_dir() || kind.is_file()) {
                return Err(not_ours(&entry.path()));
            }
            if kind.is_dir() {
                self.ensure_ours(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Files and directories of the data set that is there, and whether `meta` is empty or missing.
    pub fn found_set(&self) -> io::Result<Found> {
        let mut found = Found { files: Vec::new(), dirs: Vec::new(), clean: true };
        self.collect(&self.path.join(TOP[0]), 0, &mut found)?;
        found.files.sort_unstable_by_key(|file| file.number);
        match std::fs::read_dir(self.path.join(TOP[1])) {
            Ok(mut entries) => found.clean &= entries.next().is_none(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.mkdir(TOP[1])?,
            Err(error) => return Err(error),
        }
        Ok(found)
    }

    /// Which set verified content belongs to. `None`: the files seem to have been made without verification.
    pub fn find_set_id(&self, found: &Found) -> io::Result<Option<u64>> {
        for file in found.files.iter().take(PROBED_FILES) {
            let mut cell = [0; CELL];
            let opened = self.open(&file.name(), How::Read, false)?;
            let len = rustix::io::pread(&opened.fd, &mut cell, 0)?;
            if let Some(id) = verify::set_of(&cell[..len]) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    fn collect(&self, path: &Path, dir: u32, found: &mut Found) -> io::Result<()> {
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let (kind, name) = (entry.file_type()?, entry.file_name());
            let number = |prefix| number_of(name.to_str()?, prefix);
            match (number("datafile"), number("datadir")) {
                (Some(number), _) if kind.is_file() => {
                    found.files.push(FoundFile { number, dir, size: entry.metadata()?.len() });
                }
                (_, Some(number)) if kind.is_dir() && dir == 0 => {
                    found.dirs.push(number);
                    self.collect(&entry.path(), number.saturating_add(1), found)?;
                }
                _ => found.clean = false,
            }
        }
        Ok(())
    }
}

/// What a location holds already.
#[derive(Debug)]
pub(crate) struct Found {
    /// By number.
    pub files: Vec<FoundFile>,
    /// Numbers of sub-directories.
    pub dirs: Vec<u32>,
    /// There is nothing else.
    pub clean: bool,
}

#[derive(Debug)]
pub(crate) struct FoundFile {
    pub number: u32,
    /// 0: the set's own directory, otherwise number of the sub-directory plus one.
    pub dir: u32,
    pub size: u64,
}

impl FoundFile {
    fn name(&self) -> String {
        match self.dir {
            0 => format!("data/datafile{}", self.number),
            dir => format!("data/datadir{}/datafile{}", dir - 1, self.number),
        }
    }
}

fn about(doing: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{doing} {}: {error}", path.display()))
}

fn not_ours(path: &Path) -> io::Error {
    let path = path.display();
    io::Error::other(format!(
        "{path} is in the way: it is no part of a file set, and is not removed"
    ))
}

/// Whether a name could be one of a file set.
fn is_set_name(name: &str) -> bool {
    let trimmed = name.trim_end_matches('a');
    let starts = ["datafile", "datadir", "fillfile", "filldir"];
    starts.iter().any(|start| number_of(name, start).is_some())
        || number_of(trimmed, "metafile").is_some()
}

fn number_of(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

impl Opened {
    #[inline]
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let len = buf.len();
        let read = rustix::io::retry_on_intr(|| match self.positioned {
            false => rustix::io::pread(&self.fd, &mut *buf, offset),
            true => rustix::io::read(&self.fd, &mut *buf),
        })?;
        if read != len {
            return Err(io::Error::other(format!("{read} instead of {len} bytes were read")));
        }
        Ok(())
    }

    #[inline]
    pub fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut rest = buf;
        let mut offset = offset;
        while !rest.is_empty() {
            // With O_APPEND, Linux writes at the end whatever the offset is.
            let written = rustix::io::retry_on_intr(|| match self.positioned {
                false => rustix::io::pwrite(&self.fd, rest, offset),
                true => rustix::io::write(&self.fd, rest),
            })?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            // What is missing is asked for again: so a full file system says that it is full.
            rest = &rest[written..];
            offset += written as u64;
        }
        Ok(())
    }

    pub fn seek(&self, offset: u64, relative: bool) -> io::Result<()> {
        if self.positioned {
            let to = match relative {
                false => SeekFrom::Start(offset),
                true => SeekFrom::Current(i64::try_from(offset).map_err(io::Error::other)?),
            };
            rustix::fs::seek(&self.fd, to)?;
        }
        Ok(())
    }

    pub fn fsync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// Lets go of what the page cache holds of the file, so that the next read asks the disk.
    pub fn forget_cached(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(&self.fd, 0, None, rustix::fs::Advice::DontNeed)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_set_are_known_from_others() {
        for name in ["datafile0", "datadir12", "fillfile7", "metafile3", "metafile3aaa"] {
            assert!(is_set_name(name), "{name}");
        }
        for name in ["datafile", "datafile1b", "data", "datafile1a", "xmetafile1", "datafile-1", ""]
        {
            assert!(!is_set_name(name), "{name}");
        }
        assert_eq!(number_of("datafile99999999999", "datafile"), None);
    }
}
