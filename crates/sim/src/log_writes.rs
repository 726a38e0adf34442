//! Reads the write logs of the kernel's dm-log-writes target and of QEMU's `blklogwrites` driver.
//!
//! ```text
//!   sector 0:   magic u64 | version u64 | entries u64 | sector size u32
//!   then each:  sector u64 | sectors u64 | flags u64 | data_len u64     in a log sector of its own
//!               the data, `sectors` log sectors; a discard has none, a mark's text follows it in its own sector
//! ```
//!
//! All little-endian, offsets and counts in log sectors. Format: the kernel's `drivers/md/dm-log-writes.c` and
//! `Documentation/admin-guide/device-mapper/log-writes.rst`. What such a log does not say:
//!
//! - How long the file was, or became. A write beyond the end is taken as making it longer; a truncate leaves no trace.
//! - What was in flight. Entries stand in the order of their completion, so each is taken to have been issued when it completed. A
//!   flush thus covers all that stands before it. (The kernel's target orders its log so that this is true; QEMU's driver is sound here
//!   only if nothing else was in flight when a flush was issued.)
//! - Write zeroes: it stands there as a write of zeroes.
//! - Failed requests: QEMU's driver logs them like others.
//!
//! Any bytes may be given: a log that ends early or has an unknown flag is an error.

use io_engine::sim::{Change, LogEvent};
use std::fmt;
use std::rc::Rc;

#[cfg(test)]
mod tests;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
/// Set by file systems on their metadata; only a hint.
const METADATA: u64 = 1 << 4;
const ENTRY_LEN: usize = 32;
/// `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE` of `linux/falloc.h`: what a discard does to a file.
const PUNCH_HOLE: i32 = 0x02 | 0x01;

/// Why a log cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLog {
    /// The byte of the log at which it was noticed.
    pub at: u64,
    /// What.
    pub what: &'static str,
}

impl fmt::Display for BadLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "write log, at {:#x}: {}", self.at, self.what)
    }
}

impl std::error::Error for BadLog {}

/// A write log, ready to be replayed on a [`io_engine::SimDisk`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteLog {
    /// What happened, each issue followed by its completion.
    pub events: Vec<LogEvent>,
    /// Messages that were put into the log: how many events stand before each.
    pub marks: Vec<(usize, String)>,
    /// Where in the log's bytes each entry ends, and how many events stand before that. Whoever noted the log's length while it was
    /// being written finds out here what had happened by then.
    pub ends: Vec<(u64, usize)>,
}

impl WriteLog {
    /// Reads a log.
    pub fn parse(bytes: &[u8]) -> Result<WriteLog, BadLog> {
        let start = Cursor { bytes, at: 0 };
        let long = |at| start.long(at).ok_or(BadLog { at: 0, what: "no superblock" });
        if long(0)? != MAGIC {
            return Err(BadLog { at: 0, what: "not a write log" });
        }
        if long(8)? != VERSION {
            return Err(BadLog { at: 8, what: "unknown version" });
        }
        // A u32 with nothing behind it, so the upper half of what is read here may be anything.
        let sector = usize::try_from(long(24)? & u64::from(u32::MAX)).unwrap_or(0);
        if !sector.is_power_of_two() || !(ENTRY_LEN..1 << 24).contains(&sector) {
            return Err(BadLog { at: 24, what: "no sector size" });
        }
        let mut cursor = Cursor { bytes, at: sector };
        let mut log = WriteLog::default();
        for _ in 0..long(16)? {
            log.take_entry(&mut cursor, sector)?;
            log.ends.push((cursor.at as u64, log.events.len()));
        }
        Ok(log)
    }

    /// How many events had happened when the log's file was this long.
    pub fn events_before(&self, log_len: u64) -> usize {
        let entries = self.ends.partition_point(|(end, _)| *end <= log_len);
        entries.checked_sub(1).map_or(0, |last| self.ends[last].1)
    }

    fn take_entry(&mut self, cursor: &mut Cursor<'_>, sector: usize) -> Result<(), BadLog> {
        let at = cursor.at as u64;
        let bad = |what| BadLog { at, what };
        let entry = cursor.take(sector).ok_or(bad("an entry is cut off"))?;
        let fields = Cursor { bytes: entry, at: 0 };
        let long = |at| fields.long(at).expect("a log sector holds an entry");
        let (first, count, flags, data_len) = (long(0), long(8), long(16), long(24));
        if flags & !(FLUSH | FUA | DISCARD | MARK | METADATA) != 0 {
            return Err(bad("unknown flags"));
        }
        let in_bytes = |sectors: u64| sectors.checked_mul(sector as u64);
        let (Some(offset), Some(len)) = (in_bytes(first), in_bytes(count)) else {
            return Err(bad("an offset that no file has"));
        };
        if offset.checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
            return Err(bad("an offset that no file has"));
        }
        if flags & MARK != 0 {
            let text = usize::try_from(data_len).ok().and_then(|len| entry[ENTRY_LEN..].get(..len));
            let text = String::from_utf8_lossy(text.ok_or(bad("a mark is cut off"))?);
            self.marks.push((self.events.len(), text.trim_end_matches('\0').to_owned()));
        }
        // A write that asks for a flush gets it before it is done itself.
        if flags & FLUSH != 0 {
            self.push(Change::Flush, 0);
        }
        if len == 0 {
            return Ok(());
        }
        if flags & DISCARD != 0 {
            self.push(Change::Fallocate { mode: PUNCH_HOLE, at: offset, len }, 0);
            return Ok(());
        }
        let data = usize::try_from(len).ok().and_then(|len| cursor.take(len));
        let data: Rc<[u8]> = data.ok_or(bad("data are cut off"))?.into();
        self.push(Change::Write { at: offset, data, dsync: flags & FUA != 0 }, len);
        Ok(())
    }

    fn push(&mut self, change: Change, applied: u64) {
        let op = self.events.len() as u64 + 1;
        let result = i32::try_from(applied).unwrap_or(i32::MAX);
        self.events.push(LogEvent::Issue { op, change });
        self.events.push(LogEvent::Complete { op, result, applied, lost: false });
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn long(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(*self.bytes.get(at..)?.first_chunk()?))
    }
}
