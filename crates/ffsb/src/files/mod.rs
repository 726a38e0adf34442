//! Where files live: a directory of this host, or an extent layout on a disk without a file system.
//!
//! ```text
//!  set.rs        which files there are, who may use one now, how one is drawn   (no I/O)
//!     |
//!  Files         open, read, write, remove, ...
//!     +-- directory.rs   system calls
//!     +-- extents.rs     a lane of a disk, extents.rs's own metadata in memory
//! ```

pub(crate) mod directory;
pub(crate) mod extents;
pub(crate) mod set;

use crate::disk::Lane;
use directory::{Directory, Opened};
use extents::{Extents, Scratch};
use set::File;
use std::io;
use std::sync::Arc;

/// A place for file sets. Names are relative to it.
#[derive(Debug)]
pub(crate) enum Files {
    Directory(Directory),
    /// One disk, which all file systems of a profile share.
    Extents(Arc<Extents>),
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Read,
    Write,
    Append,
    /// Made, or emptied.
    Create,
}

/// A file that is open.
#[derive(Debug)]
pub(crate) enum Open {
    Directory(Opened),
    Extents,
}

/// A thread's own way to a place.
pub(crate) struct Access<'a> {
    /// There is one if the place is a disk.
    lane: Option<&'a mut Box<dyn Lane>>,
    scratch: Scratch,
}

impl std::fmt::Debug for Access<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("lane", &self.lane.is_some()).finish()
    }
}

impl<'a> Access<'a> {
    pub fn new(lane: Option<&'a mut Box<dyn Lane>>) -> Access<'a> {
        Access { lane, scratch: Scratch::default() }
    }

    fn disk(&mut self) -> (&mut dyn Lane, &mut Scratch) {
        let lane = self.lane.as_mut().expect("every thread of a run on a disk has a lane");
        (lane.as_mut(), &mut self.scratch)
    }
}

impl Files {
    /// Whether appending needs the file alone: its extents change.
    pub fn append_is_exclusive(&self) -> bool {
        matches!(self, Files::Extents(_))
    }

    /// How full the place is, 0.0 to 1.0.
    pub fn utilisation(&self) -> io::Result<f64> {
        match self {
            Files::Directory(directory) => directory.utilisation(),
            Files::Extents(extents) => Ok(extents.utilisation()),
        }
    }

    /// Opens the file called `name`.
    pub fn open(&self, name: &str, how: How, direct: bool) -> io::Result<Open> {
        match self {
            Files::Directory(directory) => directory.open(name, how, direct).map(Open::Directory),
            Files::Extents(_) => Ok(Open::Extents),
        }
    }

    /// Makes room in a file that the caller has alone, for `len` bytes behind its end; an empty one is new.
    pub fn make_room(&self, file: &mut File, len: u64) -> io::Result<()> {
        match self {
            Files::Directory(_) => Ok(()),
            Files::Extents(extents) => extents.make_room(file, len),
        }
    }

    /// Reads a whole block.
    #[inline]
    pub fn read(
        &self,
        access: &mut Access<'_>,
        open: &Open,
        file: &File,
        offset: u64,
        buf: &mut [u8],
    ) -> io::Result<()> {
        match (self, open) {
            (Files::Directory(_), Open::Directory(opened)) => opened.read(offset, buf),
            (Files::Extents(extents), _) => {
                let (lane, scratch) = access.disk();
                extents.read(lane, scratch, file, offset, buf)
            }
            (Files::Directory(_), Open::Extents) => unreachable!("opened by this place"),
        }
    }

    /// Writes a whole block; on files opened for appending, at the end.
    #[inline]
    pub fn write(
        &self,
        access: &mut Access<'_>,
        open: &Open,
        file: &File,
        offset: u64,
        buf: &[u8],
    ) -> io::Result<()> {
        match (self, open) {
            (Files::Directory(_), Open::Directory(opened)) => opened.write(offset, buf),
            (Files::Extents(extents), _) => {
                let (lane, scratch) = access.disk();
                extents.write(lane, scratch, file, offset, buf)
            }
            (Files::Directory(_), Open::Extents) => unreachable!("opened by this place"),
        }
    }

    /// Sets the position from which a file opened for system calls that have one goes on. `relative`: so far from where it is.
    pub fn seek(&self, open: &Open, offset: u64, relative: bool) -> io::Result<()> {
        match open {
            Open::Directory(opened) => opened.seek(offset, relative),
            Open::Extents => Ok(()),
        }
    }

    /// Says that a file was made, grew, was renamed or is going: a file system would write its metadata.
    pub fn note_change(&self, access: &mut Access<'_>, file: &File) -> io::Result<()> {
        match self {
            Files::Directory(_) => Ok(()),
            Files::Extents(extents) => {
                let (lane, scratch) = access.disk();
                extents.write_metadata(lane, scratch, file.place.inode)
            }
        }
    }

    /// What was written to the file is on stable storage when this returns.
    pub fn fsync(&self, access: &mut Access<'_>, open: &Open) -> io::Result<()> {
        match open {
            Open::Directory(opened) => opened.fsync(),
            Open::Extents => access.disk().0.flush(),
        }
    }

    /// The next read of the file asks the disk, not the host's cache, as far as the cache can be dropped.
    pub fn forget_cached(&self, open: &Open) -> io::Result<()> {
        match open {
            Open::Directory(opened) => opened.forget_cached(),
            Open::Extents => Ok(()),
        }
    }

    /// Everything written to the place is on stable storage when this returns.
    pub fn sync(&self, access: &mut Access<'_>) -> io::Result<()> {
        match self {
            Files::Directory(directory) => directory.sync(),
            Files::Extents(_) => access.disk().0.flush(),
        }
    }

    /// Removes a file that the caller has alone.
    pub fn unlink(&self, access: &mut Access<'_>, name: &str, file: &mut File) -> io::Result<()> {
        match self {
            Files::Directory(directory) => directory.unlink(name),
            Files::Extents(extents) => {
                let (lane, scratch) = access.disk();
                extents.write_metadata(lane, scratch, file.place.inode)?;
                extents.release(file);
                Ok(())
            }
        }
    }

    /// Asks for a file's attributes.
    pub fn stat(&self, name: &str) -> io::Result<()> {
        match self {
            Files::Directory(directory) => directory.stat(name),
            Files::Extents(_) => Ok(()),
        }
    }

    /// Makes a directory; `file` is its place if it has one.
    pub fn mkdir(
        &self,
        access: &mut Access<'_>,
        name: &str,
        file: Option<&mut File>,
    ) -> io::Result<()> {
        match self {
            Files::Directory(directory) => directory.mkdir(name),
            Files::Extents(extents) => {
                let inode = match file {
                    Some(file) => extents.inode_of(file)?,
                    None => extents.new_inode()?,
                };
                let (lane, scratch) = access.disk();
                extents.write_metadata(lane, scratch, inode)
            }
        }
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, access: &mut Access<'_>, name: &str, file: &File) -> io::Result<()> {
        match self {
            Files::Directory(directory) => directory.rmdir(name),
            Files::Extents(_) => self.note_change(access, file),
        }
    }

    /// Renames a directory.
    pub fn rename(
        &self,
        access: &mut Access<'_>,
        from: &str,
        to: &str,
        file: &File,
    ) -> io::Result<()> {
        match self {
            Files::Directory(directory) => directory.rename(from, to),
            Files::Extents(_) => self.note_change(access, file),
        }
    }

    /// What a person calls the place.
    pub fn place(&self) -> String {
        match self {
            Files::Directory(directory) => directory.place().display().to_string(),
            Files::Extents(extents) => extents.name().to_owned(),
        }
    }

    /// The name a person knows a file by.
    pub fn path(&self, name: &str) -> String {
        match self {
            Files::Directory(directory) => directory.path(name),
            Files::Extents(extents) => format!("{name} on {}", extents.name()),
        }
    }
}
