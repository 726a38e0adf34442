//! Files as engines see them.
//!
//! ```text
//!  HostFile    an open file and the facts about it, found once; goes from thread to thread
//!     |  IoEngine::open
//!     v
//!  FileRef     the file as one engine knows it: its slot in the ring's file table, what the file has turned out
//!              not to be able to do. Each op holds one; the last one to go gives the slot back.
//! ```

use crate::probe;
use crate::sim::SimDisk;
use crate::uring::Registered;
use rustix::fs::{FileType, SeekFrom};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

/// What is known of a file before any I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Opened with `O_DIRECT`.
    pub direct: bool,
    /// A block device: fixed length, no holes to speak of.
    pub is_block_device: bool,
    /// Its content lives in RAM (tmpfs, ramfs, hugetlbfs): I/O is a copy, and a flush does nothing.
    pub ram_backed: bool,
    /// What the address and length of each segment must be a multiple of. 1 without `O_DIRECT`.
    pub mem_align: u32,
    /// What offsets and lengths of transfers must be a multiple of. 1 without `O_DIRECT`.
    pub offset_align: u32,
    /// The file system's block size, or the device's physical one: what I/O is best sized in.
    pub fs_block: u32,
}

/// An open file and what was found out about it.
#[derive(Clone, Debug)]
pub struct HostFile {
    file: Arc<File>,
    facts: Facts,
}

impl HostFile {
    /// Takes a file that was opened with `O_DIRECT` exactly if `direct`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `direct` contradicts the file's flags, or it is neither a regular file nor a block device. `Unsupported` if
    /// the file refuses direct reads at any alignment. Otherwise what the system calls say.
    pub fn new(file: File, direct: bool) -> io::Result<HostFile> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        let flags = rustix::fs::fcntl_getfl(&file)?;
        if flags.contains(rustix::fs::OFlags::DIRECT) != direct {
            return Err(invalid("the file's O_DIRECT flag is not what the caller says"));
        }
        let stat = rustix::fs::fstat(&file)?;
        let is_block_device = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => false,
            FileType::BlockDevice => true,
            _ => return Err(invalid("neither a regular file nor a block device")),
        };
        let (mem_align, offset_align) =
            if direct { probe::direct_io_align(&file)? } else { (1, 1) };
        let facts = Facts {
            direct,
            is_block_device,
            ram_backed: !is_block_device && probe::is_ram_backed(&file)?,
            mem_align,
            offset_align,
            fs_block: probe::best_block(&file, is_block_device)?,
        };
        Ok(HostFile { file: Arc::new(file), facts })
    }

    /// What was found out about it.
    pub fn facts(&self) -> Facts {
        self.facts
    }

    /// Opened with `O_DIRECT`.
    pub fn direct(&self) -> bool {
        self.facts.direct
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its length in bytes, asked for anew each time.
    #[allow(clippy::len_without_is_empty, reason = "a question to the host, not a container")]
    pub fn len(&self) -> io::Result<u64> {
        if self.facts.is_block_device {
            return probe::device_bytes(self.file.as_fd());
        }
        Ok(u64::try_from(rustix::fs::fstat(&*self.file)?.st_size).unwrap_or(0))
    }
}

/// A file as known to one engine. Cloning it is cheap and not atomic.
#[derive(Clone, Debug)]
pub struct FileRef(Rc<Entry>);

impl FileRef {
    pub(crate) fn new(entry: Entry) -> FileRef {
        FileRef(Rc::new(entry))
    }

    pub(crate) fn entry(&self) -> &Entry {
        &self.0
    }

    /// What is known of the file.
    pub fn facts(&self) -> Facts {
        self.0.facts
    }

    /// Its length in bytes, asked for anew each time.
    #[allow(clippy::len_without_is_empty, reason = "a question to the host, not a container")]
    pub fn len(&self) -> io::Result<u64> {
        match &self.0.backing {
            Backing::Host(file) => file.len(),
            Backing::Sim(disk) => Ok(disk.len()),
        }
    }

    /// Where the next data at or after `at` begins, as far as the file can tell; `None` if only a hole follows. For readers of sparse
    /// metadata: a hole reads as zeroes and can be skipped. What becomes a hole later may still count as data.
    pub fn next_data(&self, at: u64) -> Option<u64> {
        match &self.0.backing {
            Backing::Host(_) if self.0.data_run.borrow().contains(&at) => Some(at),
            Backing::Host(file) => match rustix::fs::seek(&*file.file, SeekFrom::Data(at)) {
                Ok(data) => Some(data),
                Err(rustix::io::Errno::NXIO) => None,
                Err(_) => Some(at),
            },
            Backing::Sim(disk) => (at < disk.len()).then_some(at),
        }
    }

    /// Where the next hole at or after `at` begins, as far as the file can tell: the end of the data there. The file's end counts as one.
    ///
    /// The kernel may look at every page on the way to the hole: so who asks piece by piece is told what was found for the first one. Data that
    /// has become a hole since then is said to be data, which is what it reads as.
    pub fn next_hole(&self, at: u64) -> u64 {
        let known = self.0.data_run.borrow().clone();
        if known.contains(&at) {
            return known.end;
        }
        let end = || self.len().unwrap_or(u64::MAX).max(at);
        match &self.0.backing {
            Backing::Host(file) => {
                let found = rustix::fs::seek(&*file.file, SeekFrom::Hole(at));
                if let Ok(hole) = found {
                    *self.0.data_run.borrow_mut() = at..hole;
                }
                found.unwrap_or_else(|_| end())
            }
            Backing::Sim(_) => end(),
        }
    }

    /// The host's file; `None` for a simulated one.
    pub fn host(&self) -> Option<&HostFile> {
        match &self.0.backing {
            Backing::Host(file) => Some(file),
            Backing::Sim(_) => None,
        }
    }
}

/// Where an engine's file really is.
#[derive(Debug)]
pub(crate) enum Backing {
    Host(HostFile),
    Sim(SimDisk),
}

/// What a [`FileRef`] points to.
#[derive(Debug)]
pub(crate) struct Entry {
    // Before `backing`: the ring's reference goes first, so that closing the file is the end of it (and of its locks).
    registered: Option<Registered>,
    pub(crate) backing: Backing,
    pub(crate) facts: Facts,
    /// The engine it was opened with.
    pub(crate) engine: u64,
    pub(crate) lacks: Lacks,
    /// How inline reads and writes have fared.
    pub(crate) misses: MissHistory,
    /// Data without a hole, where it was found last: see [`FileRef::next_hole`].
    data_run: RefCell<Range<u64>>,
}

/// What a file was asked once, and said it cannot do.
#[derive(Debug, Default)]
pub(crate) struct Lacks {
    pub(crate) punch: Cell<bool>,
    pub(crate) zero_range: Cell<bool>,
    pub(crate) allocate: Cell<bool>,
    pub(crate) discard: Cell<bool>,
    pub(crate) dsync: Cell<bool>,
    pub(crate) nowait_read: Cell<bool>,
    pub(crate) nowait_write: Cell<bool>,
}

/// Inline tries that found nothing in the page cache make the next ones rarer; see [`crate::inline`].
#[derive(Debug, Default)]
pub(crate) struct MissHistory {
    /// Tries to be left out from now on.
    pub(crate) skip: Cell<u32>,
    /// Tries that were left out after the last miss.
    pub(crate) backoff: Cell<u32>,
}

impl Entry {
    pub(crate) fn host(file: HostFile, engine: u64, registered: Option<Registered>) -> Entry {
        let facts = file.facts();
        let backing = Backing::Host(file);
        Entry {
            registered,
            backing,
            facts,
            engine,
            lacks: Lacks::default(),
            misses: MissHistory::default(),
            data_run: RefCell::default(),
        }
    }

    pub(crate) fn sim(disk: SimDisk, engine: u64) -> Entry {
        let facts = disk.facts();
        let backing = Backing::Sim(disk);
        Entry {
            registered: None,
            backing,
            facts,
            engine,
            lacks: Lacks::default(),
            misses: MissHistory::default(),
            data_run: RefCell::default(),
        }
    }

    /// The host's descriptor; -1 for a simulated file, on which every system call fails.
    pub(crate) fn raw_fd(&self) -> RawFd {
        match &self.backing {
            Backing::Host(file) => file.file.as_raw_fd(),
            Backing::Sim(_) => -1,
        }
    }

    /// Its slot in the ring's file table, if it has one.
    pub(crate) fn table_index(&self) -> Option<u32> {
        self.registered.as_ref().map(Registered::index)
    }

    /// Whether transfers are copies from and to the page cache, now or soon.
    pub(crate) fn page_cached(&self) -> bool {
        !self.facts.direct || self.facts.ram_backed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::FallocateFlags;
    use std::os::unix::fs::FileExt;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test's own file")]
    fn data_that_was_found_once_is_not_looked_for_again_and_what_follows_is() {
        const M: u64 = 1 << 20;
        let path = std::env::temp_dir().join(format!("ferroblk-file-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(4 * M).unwrap();
        for at in [0, 2 * M] {
            file.write_all_at(&vec![7; 1 << 20], at).unwrap();
        }
        let host = HostFile::new(file.try_clone().unwrap(), false).unwrap();
        let shown = FileRef::new(Entry::host(host, 0, None));
        if shown.next_hole(0) == 4 * M {
            println!("SKIPPED: {} is on a file system that does not tell holes", path.display());
            return;
        }
        for at in [0, 4096, M - 1] {
            assert_eq!((shown.next_data(at), shown.next_hole(at)), (Some(at), M));
        }
        assert_eq!((shown.next_data(M), shown.next_hole(M)), (Some(2 * M), M));
        assert_eq!((shown.next_data(2 * M), shown.next_hole(2 * M)), (Some(2 * M), 3 * M));
        // Beside the run that is remembered nothing is.
        file.write_all_at(&[7; 4096], 3 * M).unwrap();
        assert_eq!((shown.next_data(3 * M), shown.next_hole(3 * M)), (Some(3 * M), 3 * M + 4096));
        assert_eq!((shown.next_data(4096), shown.next_hole(4096)), (Some(4096), M));
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 8192, 4096).unwrap();
        assert_eq!((shown.next_data(8192), shown.next_hole(4096)), (Some(8192), M));
    }
}
