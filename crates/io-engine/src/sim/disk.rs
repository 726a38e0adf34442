//! A simulated disk: an in-memory file behind a volatile write cache.

use super::content::Content;
use super::fault::{Fault, FaultAction, Faults, Rates};
use super::image::mix;
use crate::file::Facts;
use crate::rng::Rng;
use crate::state::{KEEP_SIZE, NO_HIDE_STALE, PUNCH_HOLE, ZERO_RANGE};
use crate::sys::{OFFSET_MAX, SysKind};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// What reads find where nothing was ever written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwritten {
    /// Zeroes, as in a file's holes.
    Zero,
    /// This byte: somebody else's data, as on a reused block device. Nobody may ever get to see it.
    Poison(u8),
}

impl Unwritten {
    pub(super) fn byte(self) -> u8 {
        match self {
            Unwritten::Zero => 0,
            Unwritten::Poison(byte) => byte,
        }
    }
}

/// What kind of disk to simulate.
#[derive(Clone, Copy, Debug)]
pub struct SimOptions {
    /// Its length at first, in bytes; durable.
    pub len: u64,
    /// What unwritten space reads as.
    pub unwritten: Unwritten,
    /// A block device: its length never changes, and a discard leaves unwritten space.
    pub is_block_device: bool,
    /// What memory, offsets and lengths must be multiples of (as with O_DIRECT); 1 for a buffered file.
    pub align: u32,
    /// Writes and truncates that would make it longer fail with `ENOSPC`.
    pub len_max: u64,
    /// Whether to keep a log of everything issued and completed.
    pub log: bool,
}

impl Default for SimOptions {
    fn default() -> SimOptions {
        SimOptions {
            len: 0,
            unwritten: Unwritten::Zero,
            is_block_device: false,
            align: 1,
            len_max: OFFSET_MAX,
            log: false,
        }
    }
}

/// One call, as a disk sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Changes nothing.
    Read {
        /// Offset in bytes.
        at: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Writes.
    Write {
        /// Offset in bytes.
        at: u64,
        /// The bytes, as they were when the write was issued.
        data: Rc<[u8]>,
        /// Durable on completion.
        dsync: bool,
    },
    /// `fallocate`
    Fallocate {
        /// `FALLOC_FL_*`
        mode: i32,
        /// Offset in bytes.
        at: u64,
        /// Length in bytes.
        len: u64,
    },
    /// `ftruncate`
    Truncate {
        /// The new length.
        len: u64,
    },
    /// `fdatasync`
    Flush,
}

impl Change {
    /// The kind of call it is.
    pub fn kind(&self) -> SysKind {
        match self {
            Change::Read { .. } => SysKind::Preadv,
            Change::Write { dsync: false, .. } => SysKind::Pwritev,
            Change::Write { dsync: true, .. } => SysKind::PwritevDsync,
            Change::Fallocate { .. } => SysKind::Fallocate,
            Change::Truncate { .. } => SysKind::Ftruncate,
            Change::Flush => SysKind::Fdatasync,
        }
    }

    /// The bytes it touches; `None` for all.
    fn range(&self) -> Option<Range<u64>> {
        match self {
            Change::Read { at, len } | Change::Fallocate { at, len, .. } => Some(*at..at + len),
            Change::Write { at, data, .. } => Some(*at..at + data.len() as u64),
            Change::Truncate { .. } | Change::Flush => None,
        }
    }
}

/// An entry of the write log. Applying a prefix of a log to the disk it began with gives the disk at that moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEvent {
    /// A call reached the disk. From now on a crash may find any part of it done.
    Issue {
        /// Its name, unique on this disk; also the time of its issue, one more than there were events before it.
        op: u64,
        /// What it is.
        change: Change,
    },
    /// A call ended.
    Complete {
        /// As issued.
        op: u64,
        /// A count, or a negated errno.
        result: i32,
        /// Bytes of a write that took effect: of a failed one too, if it was torn.
        applied: u64,
        /// A flush that failed and forgot what it should have covered.
        lost: bool,
    },
}

/// A call between its issue and its completion.
#[derive(Clone, Debug)]
pub(super) struct Issued {
    pub(super) change: Change,
    /// What was there to be covered by a flush: everything that had completed before this time.
    issued_at: u64,
    fault: Option<FaultAction>,
    aligned: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) options: SimOptions,
    pub(super) content: Content,
    pub(super) issued: BTreeMap<u64, Issued>,
    faults: Faults,
    /// Counts issues and completions; names ops.
    pub(super) clock: u64,
    counts: BTreeMap<SysKind, u64>,
    log: Vec<LogEvent>,
}

/// A simulated disk. Clones are the same disk; [`SimDisk::fork`] makes another.
///
/// - A write takes effect for readers when it completes, in any order the seed likes. It is durable when a flush that was *issued*
///   after that has completed, or on completion if it was a FUA write.
/// - Fallocate and truncate are writes like any other. The length is kept, and made durable, apart from the data.
/// - A crash leaves of every sector the durable content or any later version, in-flight writes included, independently of
///   all other sectors and of the length: see [`crate::sim::CrashPick`].
#[derive(Clone, Debug)]
pub struct SimDisk(pub(super) Rc<RefCell<Disk>>);

impl SimDisk {
    /// A new disk.
    pub fn new(options: SimOptions) -> SimDisk {
        SimDisk::of(options, Content::new(options.unwritten, options.len))
    }

    /// A disk that has just been switched on.
    pub(super) fn of(options: SimOptions, content: Content) -> SimDisk {
        SimDisk(Rc::new(RefCell::new(Disk {
            options,
            content,
            issued: BTreeMap::new(),
            faults: Faults::default(),
            clock: 0,
            counts: BTreeMap::new(),
            log: Vec::new(),
        })))
    }

    /// A new disk with this durable content; `options.len` does not count.
    pub fn with_contents(options: SimOptions, bytes: &[u8]) -> SimDisk {
        let disk = SimDisk::new(SimOptions { len: bytes.len() as u64, ..options });
        {
            let content = &mut disk.0.borrow_mut().content;
            content.write(0, 0, 0, bytes);
            content.persist_before(u64::MAX);
        }
        disk
    }

    /// An independent copy: contents, cache, calls in flight, faults and log.
    pub fn fork(&self) -> SimDisk {
        SimDisk(Rc::new(RefCell::new(self.0.borrow().clone())))
    }

    /// Its length now, as a reader sees it.
    #[allow(clippy::len_without_is_empty, reason = "a disk, not a container")]
    pub fn len(&self) -> u64 {
        self.0.borrow().content.len()
    }

    /// All its bytes now, as a reader sees them.
    pub fn contents(&self) -> Vec<u8> {
        let disk = self.0.borrow();
        disk.content.read(0, disk.content.len())
    }

    /// Fills `into` with the bytes at `at` as a reader sees them now, and with zeroes beyond the end.
    pub fn read_at(&self, at: u64, into: &mut [u8]) {
        self.0.borrow().content.read_into(at, into);
    }

    /// A digest of the durable bytes and length: equal for disks that a crash that keeps nothing else leaves alike, else (almost
    /// surely) not. It is for this build of this program only.
    pub fn durable_digest(&self) -> u128 {
        let content = &self.0.borrow().content;
        let bytes = content.durable.digest(content.unwritten.byte());
        mix(bytes ^ u128::from(content.durable_len))
    }

    /// What is surely on stable storage: all its bytes after a crash that keeps nothing else.
    pub fn snapshot(&self) -> Vec<u8> {
        let copy = self.fork();
        copy.crash(&super::CrashPick::Nothing);
        copy.contents()
    }

    pub(crate) fn facts(&self) -> Facts {
        let options = self.0.borrow().options;
        Facts {
            direct: options.align > 1,
            is_block_device: options.is_block_device,
            ram_backed: false,
            mem_align: options.align,
            offset_align: options.align,
            fs_block: 4096,
        }
    }

    /// Has something go wrong.
    pub fn fault(&self, fault: Fault) {
        self.0.borrow_mut().faults.install(fault);
    }

    /// Has small things go wrong at these rates.
    pub fn set_rates(&self, rates: Rates) {
        self.0.borrow_mut().faults.rates = rates;
    }

    /// Nothing goes wrong any more.
    pub fn clear_faults(&self) {
        self.0.borrow_mut().faults.clear();
    }

    /// Calls of a kind issued so far.
    pub fn count(&self, kind: SysKind) -> u64 {
        self.0.borrow().counts.get(&kind).copied().unwrap_or(0)
    }

    /// Everything issued and completed since the disk was made, if [`SimOptions::log`] asked for it.
    pub fn write_log(&self) -> Vec<LogEvent> {
        self.0.borrow().log.clone()
    }

    /// How many events [`SimDisk::write_log`] has.
    pub fn log_len(&self) -> usize {
        self.0.borrow().log.len()
    }

    /// Does to this disk what a log says. It must be in the state in which the log began.
    pub fn replay(&self, events: &[LogEvent]) {
        let mut disk = self.0.borrow_mut();
        for event in events {
            match event {
                LogEvent::Issue { op, change } => disk.insert(*op, change.clone(), None, true),
                LogEvent::Complete { op, applied, lost, result } => {
                    disk.take_effect(*op, *result, *applied, *lost);
                }
            }
        }
    }

    /// Takes a call in. The seed decides here what will go wrong with it.
    pub(crate) fn issue(&self, change: Change, aligned: bool, rng: &mut Rng) -> u64 {
        let mut disk = self.0.borrow_mut();
        let fault = disk.faults.choose(change.kind(), change.range(), rng);
        let op = disk.clock + 1;
        disk.insert(op, change, fault, aligned);
        op
    }

    /// Ends a call: its result, and the bytes if it was a read.
    pub(crate) fn complete(&self, op: u64) -> (i32, Vec<u8>) {
        let mut disk = self.0.borrow_mut();
        let Some(issued) = disk.issued.get(&op) else {
            // The disk crashed under it.
            return (-libc::EIO, Vec::new());
        };
        let (result, applied, lost) = disk.outcome(issued);
        let data = match issued.change {
            Change::Read { at, .. } if result > 0 => disk.content.read(at, applied),
            _ => Vec::new(),
        };
        disk.take_effect(op, result, applied, lost);
        (result, data)
    }
}

impl Disk {
    fn insert(&mut self, op: u64, change: Change, fault: Option<FaultAction>, aligned: bool) {
        self.clock = op;
        *self.counts.entry(change.kind()).or_default() += 1;
        if self.options.log {
            self.log.push(LogEvent::Issue { op, change: change.clone() });
        }
        self.issued.insert(op, Issued { change, issued_at: op, fault, aligned });
    }

    /// How a call ends: its result, how many bytes it moves, whether a flush forgets.
    fn outcome(&self, issued: &Issued) -> (i32, u64, bool) {
        let moved = |bytes: u64| (i32::try_from(bytes).unwrap_or(i32::MAX), bytes, false);
        let failed = |errno: i32| (-errno, 0, false);
        let whole = match self.permitted(issued) {
            Ok(bytes) => bytes,
            Err(errno) => return failed(errno),
        };
        match issued.fault {
            None => moved(whole),
            Some(FaultAction::Errno(errno)) => failed(errno),
            Some(FaultAction::Torn(errno, bytes)) => (-errno, bytes.min(whole), false),
            Some(FaultAction::FlushLost(errno)) => (-errno, 0, issued.change == Change::Flush),
            Some(FaultAction::Short(bytes)) => {
                // Direct I/O moves whole blocks, except at the end of the file.
                let bytes = bytes - bytes % u64::from(self.options.align);
                moved(if bytes == 0 { whole } else { bytes.min(whole) })
            }
        }
    }

    /// What a call would do if nothing went wrong: bytes moved, or an errno.
    pub(super) fn permitted(&self, issued: &Issued) -> Result<u64, i32> {
        let len = self.content.len();
        let device = self.options.is_block_device;
        let len_max = if device { len } else { self.options.len_max };
        match &issued.change {
            Change::Read { .. } | Change::Write { .. } if !issued.aligned => Err(libc::EINVAL),
            Change::Read { at, len: wanted } => Ok((*wanted).min(len.saturating_sub(*at))),
            Change::Write { at, .. } if *at >= len_max => Err(libc::ENOSPC),
            Change::Write { at, data, .. } => Ok((data.len() as u64).min(len_max - at)),
            Change::Fallocate { mode, .. } => match (*mode, device) {
                (mode, _) if mode == PUNCH_HOLE | KEEP_SIZE => Ok(0),
                (mode, _) if mode == ZERO_RANGE | KEEP_SIZE => Ok(0),
                (mode, false) if mode == KEEP_SIZE => Ok(0),
                (mode, true) if mode == PUNCH_HOLE | KEEP_SIZE | NO_HIDE_STALE => Ok(0),
                _ => Err(libc::EOPNOTSUPP),
            },
            Change::Truncate { .. } if device => Err(libc::EINVAL),
            Change::Truncate { len } if *len > len_max => Err(libc::ENOSPC),
            Change::Truncate { .. } | Change::Flush => Ok(0),
        }
    }

    /// A call completes: the cache, and for flush and FUA the durable content, change.
    fn take_effect(&mut self, op: u64, result: i32, applied: u64, lost: bool) {
        let Some(issued) = self.issued.remove(&op) else { return };
        self.clock += 1;
        let done_at = self.clock;
        if self.options.log {
            self.log.push(LogEvent::Complete { op, result, applied, lost });
        }
        apply(&mut self.content, op, done_at, &issued.change, result >= 0, applied);
        match issued.change {
            Change::Flush if lost => self.content.lose_before(issued.issued_at),
            Change::Flush if result >= 0 => self.content.persist_before(issued.issued_at),
            Change::Write { at, dsync: true, .. } if result > 0 => {
                self.content.persist_range(at, applied);
            }
            _ => {}
        }
    }
}

/// What a change does to the cache; of a write its first `applied` bytes.
pub(super) fn apply(
    content: &mut Content,
    op: u64,
    done_at: u64,
    change: &Change,
    succeeded: bool,
    applied: u64,
) {
    match change {
        Change::Write { at, data, .. } => {
            let applied = usize::try_from(applied).unwrap_or(usize::MAX).min(data.len());
            content.write(op, done_at, *at, &data[..applied]);
        }
        Change::Fallocate { mode, at, len }
            if succeeded && mode & (PUNCH_HOLE | ZERO_RANGE) != 0 =>
        {
            content.clear(op, done_at, *at, *len, mode & NO_HIDE_STALE != 0);
        }
        Change::Truncate { len } if succeeded => content.truncate(op, done_at, *len),
        _ => {}
    }
}
