//! Which files of a set exist, and who may use one now.
//!
//! A file is a slot with a number; the slots' array only grows, in chunks, so that a file is drawn and locked without a lock on the
//! whole. Numbers of deleted files are used again, the oldest first, with the name they had. All as FFSB does it, but that a
//! thread which finds every file it draws taken waits for one instead of trying for ever.

use super::extents::Location;
use crate::verify::Cells;
use io_engine::Rng;
use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{
    Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    TryLockError,
};

/// Slots in the first chunk; each further one doubles the array.
const FIRST_CHUNK: u32 = 1024;
const CHUNKS: usize = 22;
/// Files found taken, after which a thread waits for the last.
const PATIENCE: u32 = 8;
/// A renamed directory's name grows by a letter, as in FFSB; here it starts again before the file system's limit.
const MAX_RENAMES: u32 = 200;

/// A kind of set. The names are FFSB's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetKind {
    /// The files of the benchmark.
    Data,
    /// Files that age the file system.
    Fill,
    /// Directories of the operation `metaop`.
    Meta,
}

impl SetKind {
    fn dir(self) -> &'static str {
        match self {
            SetKind::Data | SetKind::Fill => "data",
            SetKind::Meta => "meta",
        }
    }

    fn base(self) -> &'static str {
        match self {
            SetKind::Data => "data",
            SetKind::Fill => "fill",
            SetKind::Meta => "meta",
        }
    }
}

/// A file, or in the set `Meta` a directory. Shared: its content may be read and written; alone: anything.
#[derive(Debug, Default)]
pub(crate) struct File {
    exists: bool,
    /// 0: the set's directory, otherwise number of the sub-directory plus one.
    dir: u32,
    renames: u32,
    /// Bytes. At least this many are there: appending threads add what they have written.
    pub size: AtomicU64,
    pub place: Location,
    pub cells: Cells,
}

impl File {
    pub fn len(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// The next name of a directory.
    pub fn rename(&mut self) {
        self.renames = if self.renames < MAX_RENAMES { self.renames + 1 } else { 0 };
    }
}

/// A set of files.
#[derive(Debug)]
pub(crate) struct FileSet {
    kind: SetKind,
    chunks: [OnceLock<Box<[RwLock<File>]>>; CHUNKS],
    /// Slots, those of deleted files included.
    slots: AtomicU32,
    /// Files that exist or are being made.
    live: AtomicU64,
    /// Sub-directories that exist.
    dirs: AtomicU32,
    growth: Mutex<Growth>,
}

#[derive(Debug, Default)]
struct Growth {
    /// Numbers of deleted files, oldest first.
    holes: VecDeque<u32>,
    /// Number of the next sub-directory.
    next_dir: u32,
    /// Sub-directories made before one with a lower number was.
    early_dirs: BTreeSet<u32>,
}

/// Why no file could be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoFile {
    /// All are deleted.
    Empty,
    /// The run is over.
    Halted,
}

impl FileSet {
    /// An empty set.
    pub fn new(kind: SetKind) -> FileSet {
        FileSet {
            kind,
            chunks: [const { OnceLock::new() }; CHUNKS],
            slots: AtomicU32::new(0),
            live: AtomicU64::new(0),
            dirs: AtomicU32::new(0),
            growth: Mutex::default(),
        }
    }

    pub fn kind(&self) -> SetKind {
        self.kind
    }

    /// Slots so far: numbers are below.
    pub fn slots(&self) -> u32 {
        self.slots.load(Ordering::Acquire)
    }

    /// Files that exist or are being made.
    pub fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    fn growth(&self) -> MutexGuard<'_, Growth> {
        self.growth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, number: u32) -> &RwLock<File> {
        let (chunk, index) = chunk_of(number);
        let slots = self.chunks[chunk].get().expect("made before its number was told");
        &slots[index]
    }

    /// The file of a number, alone, whether it exists or not.
    pub fn alone(&self, number: u32) -> RwLockWriteGuard<'_, File> {
        self.slot(number).write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of a number, shared, if it exists.
    pub fn shared(&self, number: u32) -> Option<RwLockReadGuard<'_, File>> {
        let file = self.slot(number).read().unwrap_or_else(PoisonError::into_inner);
        file.exists.then_some(file)
    }

    /// Draws a file that exists, shared with others.
    pub fn draw_shared(
        &self,
        rng: &mut Rng,
        halted: impl Fn() -> bool,
    ) -> Result<(u32, RwLockReadGuard<'_, File>), NoFile> {
        let mut taken = 0;
        loop {
            let number = self.draw(rng, &halted)?;
            let slot = self.slot(number);
            let file = match slot.try_read() {
                Ok(file) => file,
                Err(TryLockError::Poisoned(file)) => file.into_inner(),
                Err(TryLockError::WouldBlock) if taken < PATIENCE => {
                    taken += 1;
                    continue;
                }
                Err(TryLockError::WouldBlock) => {
                    slot.read().unwrap_or_else(PoisonError::into_inner)
                }
            };
            if file.exists {
                return Ok((number, file));
            }
        }
    }

    /// Draws a file that exists, alone.
    pub fn draw_alone(
        &self,
        rng: &mut Rng,
        halted: impl Fn() -> bool,
    ) -> Result<(u32, RwLockWriteGuard<'_, File>), NoFile> {
        let mut taken = 0;
        loop {
            let number = self.draw(rng, &halted)?;
            let slot = self.slot(number);
            let file = match slot.try_write() {
                Ok(file) => file,
                Err(TryLockError::Poisoned(file)) => file.into_inner(),
                Err(TryLockError::WouldBlock) if taken < PATIENCE => {
                    taken += 1;
                    continue;
                }
                Err(TryLockError::WouldBlock) => {
                    slot.write().unwrap_or_else(PoisonError::into_inner)
                }
            };
            if file.exists {
                return Ok((number, file));
            }
        }
    }

    fn draw(&self, rng: &mut Rng, halted: &impl Fn() -> bool) -> Result<u32, NoFile> {
        if halted() {
            return Err(NoFile::Halted);
        }
        let slots = self.slots();
        if self.live.load(Ordering::Relaxed) == 0 || slots == 0 {
            return Err(NoFile::Empty);
        }
        Ok(below(rng, slots))
    }

    /// A new file of size 0, which the caller has alone until it is on the disk.
    pub fn add(&self, rng: &mut Rng) -> (u32, RwLockWriteGuard<'_, File>) {
        self.live.fetch_add(1, Ordering::Relaxed);
        let hole = self.growth().holes.pop_front();
        if let Some(number) = hole {
            let mut file = self.alone(number);
            file.exists = true;
            return (number, file);
        }
        let dir = below(rng, self.dirs.load(Ordering::Acquire) + 1);
        // Held until the slot is locked: nobody draws it before.
        let growth = self.growth();
        let number = self.slots.load(Ordering::Relaxed);
        self.ensure_slot(number);
        let mut file = self.alone(number);
        self.slots.store(number + 1, Ordering::Release);
        drop(growth);
        (file.exists, file.dir) = (true, dir);
        (number, file)
    }

    /// A file that is there already. Numbers left out are deleted files.
    pub fn adopt(&self, number: u32, dir: u32, size: u64) -> RwLockWriteGuard<'_, File> {
        let mut growth = self.growth();
        for new in self.slots.load(Ordering::Relaxed)..=number {
            self.ensure_slot(new);
            if new < number {
                growth.holes.push_back(new);
            }
        }
        self.slots.fetch_max(number + 1, Ordering::Release);
        self.live.fetch_add(1, Ordering::Relaxed);
        let mut file = self.alone(number);
        (file.exists, file.dir) = (true, dir);
        file.size.store(size, Ordering::Relaxed);
        file
    }

    fn ensure_slot(&self, number: u32) {
        let (chunk, _) = chunk_of(number);
        let len = if chunk == 0 { FIRST_CHUNK } else { FIRST_CHUNK << (chunk - 1) };
        self.chunks[chunk].get_or_init(|| (0..len).map(|_| RwLock::default()).collect());
    }

    /// The file of this number is to be deleted: it counts no more. [`FileSet::removed`] follows.
    pub fn remove(&self, file: &mut File) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        file.exists = false;
        file.size.store(0, Ordering::Relaxed);
    }

    /// The file is gone, and its lock released: its number may be used again.
    pub fn removed(&self, number: u32) {
        self.growth().holes.push_back(number);
    }

    /// Number of a sub-directory to be made.
    pub fn new_dir(&self) -> u32 {
        let mut growth = self.growth();
        growth.next_dir += 1;
        growth.next_dir - 1
    }

    /// A sub-directory is there: new files may go to it.
    pub fn dir_made(&self, number: u32) {
        let mut growth = self.growth();
        growth.early_dirs.insert(number);
        let mut dirs = self.dirs.load(Ordering::Relaxed);
        while growth.early_dirs.remove(&dirs) {
            dirs += 1;
        }
        self.dirs.store(dirs, Ordering::Release);
    }

    /// Puts the name of a file into `name`, relative to the location.
    pub fn name(&self, number: u32, file: &File, name: &mut String) {
        let (top, base) = (self.kind.dir(), self.kind.base());
        name.clear();
        // Writing to a string cannot fail.
        let _ = match file.dir {
            0 => write!(name, "{top}/{base}file{number}"),
            dir => write!(name, "{top}/{base}dir{}/{base}file{number}", dir - 1),
        };
        name.extend((0..file.renames).map(|_| 'a'));
    }

    /// Puts the name of a sub-directory into `name`.
    pub fn dir_name(&self, number: u32, name: &mut String) {
        name.clear();
        let _ = write!(name, "{}/{}dir{number}", self.kind.dir(), self.kind.base());
    }
}

/// Chunk and index in it.
fn chunk_of(number: u32) -> (usize, usize) {
    let chunk = (number / FIRST_CHUNK + 1).next_power_of_two().trailing_zeros();
    let first = if chunk == 0 { 0 } else { FIRST_CHUNK << (chunk - 1) };
    (chunk as usize, (number - first) as usize)
}

/// A number below `bound`.
fn below(rng: &mut Rng, bound: u32) -> u32 {
    u32::try_from(rng.below(bound.into())).expect("below a u32")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_counted_through_without_gap() {
        let mut expected = (0, 0);
        for number in 0..100_000 {
            assert_eq!(chunk_of(number), expected, "{number}");
            let (chunk, index) = expected;
            let len = if chunk == 0 { 1024 } else { 1024 << (chunk - 1) };
            expected = if index + 1 == len { (chunk + 1, 0) } else { (chunk, index + 1) };
        }
    }

    fn name(set: &FileSet, number: u32) -> String {
        let mut name = String::new();
        set.name(number, &set.alone(number), &mut name);
        name
    }

    #[test]
    fn deleted_names_come_back_and_the_rest_is_drawn() {
        let (set, mut rng) = (FileSet::new(SetKind::Data), Rng::new(1));
        for dir in 0..3 {
            assert_eq!(set.new_dir(), dir);
            set.dir_made(dir);
        }
        for number in 0..5 {
            assert_eq!(set.add(&mut rng).0, number);
        }
        let names: Vec<String> = (0..5).map(|number| name(&set, number)).collect();
        for _ in 0..2 {
            let (number, mut file) = set.draw_alone(&mut rng, || false).unwrap();
            set.remove(&mut file);
            drop(file);
            set.removed(number);
            for _ in 0..50 {
                assert_ne!(set.draw_shared(&mut rng, || false).unwrap().0, number);
            }
            assert_eq!(set.add(&mut rng).0, number);
            assert_eq!(name(&set, number), names[number as usize]);
        }
    }

    #[test]
    fn an_empty_set_and_the_end_of_a_run_give_no_file() {
        let (set, mut rng) = (FileSet::new(SetKind::Data), Rng::new(1));
        assert_eq!(set.draw_shared(&mut rng, || false).unwrap_err(), NoFile::Empty);
        drop(set.add(&mut rng));
        assert_eq!(set.draw_alone(&mut rng, || true).unwrap_err(), NoFile::Halted);
        let (_, mut file) = set.draw_alone(&mut rng, || false).unwrap();
        set.remove(&mut file);
        drop(file);
        assert_eq!(set.draw_shared(&mut rng, || false).unwrap_err(), NoFile::Empty);
    }

    #[test]
    fn a_directory_takes_files_when_all_before_it_are_there() {
        let (set, mut rng) = (FileSet::new(SetKind::Data), Rng::new(1));
        let (first, second) = (set.new_dir(), set.new_dir());
        set.dir_made(second);
        for _ in 0..20 {
            assert_eq!(set.add(&mut rng).1.dir, 0);
        }
        set.dir_made(first);
        let dirs: BTreeSet<u32> = (0..100).map(|_| set.add(&mut rng).1.dir).collect();
        assert_eq!(dirs, BTreeSet::from([0, 1, 2]));
    }

    #[test]
    fn a_renamed_directory_keeps_within_the_name_limit() {
        let (set, mut rng) = (FileSet::new(SetKind::Meta), Rng::new(1));
        drop(set.add(&mut rng));
        for _ in 0..1000 {
            set.alone(0).rename();
            assert!(name(&set, 0).len() < 255);
        }
    }
}
