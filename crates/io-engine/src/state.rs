//! One op on its way: which system call comes next, and what a call's result means. The same for all engines.
//!
//! ```text
//!                 +--- short: the rest ---+            fua, and the file knows no RWF_DSYNC
//!                 v                       |            v
//!  Read, Write: Transfer ---------------> . --------> Sync ---> done
//!  Flush:       ---------------------------------------^
//!  WriteZeroes, unmap:     Punch ----> ZeroRange --------------------> Zeroes (written, 1 MiB at a time)
//!  WriteZeroes, no unmap:  ZeroRange ----> PunchToAllocate ----> Allocate     ^
//!                              `-- refused ------`-- refused -------'---------'
//!  Discard:                Discard (block devices) ----> Punch ----> done, having done nothing
//! ```
//!
//! - `EINTR` and `EAGAIN` repeat the call, a bounded number of times in a row.
//! - A read that meets the end of the file is filled up with zeroes. With O_DIRECT a count that is no multiple of the file's
//!   alignment is also the end: a second read from there would be refused.
//! - What a file refuses as not supported is remembered in its [`crate::file::Lacks`] and not asked for again. `EINVAL` is not
//!   remembered: it may have been this one range.
//! - Zeroing beyond the end of the file keeps the file's length if `fallocate` did it, and makes it grow if zeroes had to be
//!   written. Either way the range reads as zeroes.

use crate::buf::AlignedBuf;
use crate::file::{Entry, FileRef, Lacks};
use crate::op::{Buf, Op, OpKind};
use crate::sys::{OFFSET_MAX, SEGS_MAX, Segs, SysOp};
use std::io;
use std::sync::OnceLock;

/// `EINTR` and `EAGAIN` in a row before they are taken for the answer.
const RETRIES_MAX: u32 = 1000;
/// Bytes of zeroes written by one call.
pub(crate) const ZEROES_LEN: usize = 1 << 20;

/// `fallocate` modes, linux/falloc.h.
pub(crate) const KEEP_SIZE: i32 = 0x01;
/// Frees the range, which then reads as zeroes.
pub(crate) const PUNCH_HOLE: i32 = 0x02;
/// With `PUNCH_HOLE` on a block device: a discard proper, after which anything may be read.
pub(crate) const NO_HIDE_STALE: i32 = 0x04;
/// Makes the range read as zeroes and stay allocated.
pub(crate) const ZERO_RANGE: i32 = 0x10;

/// Memory that is zero for ever, for writing zeroes from.
fn zeroes() -> &'static AlignedBuf {
    static ZEROES: OnceLock<AlignedBuf> = OnceLock::new();
    // Fresh from the kernel and never written, it is one shared page of zeroes; 4096 satisfies every O_DIRECT known.
    ZEROES.get_or_init(|| AlignedBuf::new(ZEROES_LEN, 4096))
}

/// What an op is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Transfer,
    Sync,
    Fallocate(Way),
    /// Writing zeroes, because nothing cheaper was to be had.
    Zeroes,
    Truncate,
    Done(Result<(), Failure>),
}

/// A way to zero or free a range without writing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Punch,
    ZeroRange,
    PunchToAllocate,
    Allocate,
    Discard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Errno(i32),
    /// The file took no bytes and gave no reason.
    WroteNothing,
}

/// What is to happen now.
#[derive(Debug)]
pub(crate) enum Step {
    Run(SysOp),
    Done(io::Result<()>),
}

/// An op in its slot.
#[derive(Debug)]
pub(crate) struct OpState {
    file: FileRef,
    kind: OpKind,
    buf: Buf,
    /// Where the rest of the op starts in the file, and how long it is.
    at: u64,
    left: u64,
    /// Bytes of an owned buffer that are done; guest segments are trimmed instead.
    owned_done: usize,
    stage: Stage,
    retries: u32,
}

impl OpState {
    pub(crate) fn new(op: Op) -> OpState {
        let Op { file, kind, at, buf } = op;
        let left = match kind {
            OpKind::Read | OpKind::Write { .. } => buf.bytes(),
            OpKind::WriteZeroes { len, .. } | OpKind::Discard { len } => len,
            OpKind::Flush | OpKind::Truncate => 0,
        };
        let in_range = at.checked_add(left).is_some_and(|end| end <= OFFSET_MAX);
        let stage = match kind {
            OpKind::Flush => Stage::Sync,
            _ if !in_range => Stage::Done(Err(Failure::Errno(libc::EINVAL))),
            OpKind::Truncate => Stage::Truncate,
            _ if left == 0 => Stage::Done(Ok(())),
            OpKind::Read | OpKind::Write { .. } => Stage::Transfer,
            OpKind::WriteZeroes { .. } | OpKind::Discard { .. } => first_way(kind, file.entry()),
        };
        OpState { file, kind, buf, at, left, owned_done: 0, stage, retries: 0 }
    }

    pub(crate) fn entry(&self) -> &Entry {
        self.file.entry()
    }

    /// The buffer, once the op is done.
    pub(crate) fn into_buf(self) -> Buf {
        self.buf
    }

    /// What is to happen now. Asking twice without a result in between gives the same call.
    #[inline]
    pub(crate) fn next(&self) -> Step {
        let (at, len) = (self.at, self.left);
        Step::Run(match self.stage {
            Stage::Transfer if self.kind == OpKind::Read => SysOp::Preadv { at, segs: self.segs() },
            Stage::Transfer | Stage::Zeroes => {
                SysOp::Pwritev { at, segs: self.segs(), dsync: self.with_dsync() }
            }
            Stage::Sync => SysOp::Fdatasync,
            Stage::Fallocate(way) => SysOp::Fallocate { mode: way.mode(), at, len },
            Stage::Truncate => SysOp::Ftruncate { len: at },
            Stage::Done(Ok(())) => return Step::Done(Ok(())),
            Stage::Done(Err(Failure::Errno(errno))) => {
                return Step::Done(Err(io::Error::from_raw_os_error(errno)));
            }
            Stage::Done(Err(Failure::WroteNothing)) => {
                return Step::Done(Err(io::ErrorKind::WriteZero.into()));
            }
        })
    }

    /// Takes the result of the call that [`OpState::next`] gave: a count, or a negated errno.
    #[inline]
    pub(crate) fn complete(&mut self, result: i32) {
        if let Ok(count) = u32::try_from(result) {
            self.stage = self.after_success(u64::from(count));
        } else {
            self.stage = self.after_failure(-result);
        }
    }

    fn after_success(&mut self, count: u64) -> Stage {
        self.retries = 0;
        match self.stage {
            Stage::Transfer if self.kind == OpKind::Read => self.after_read(count),
            Stage::Transfer | Stage::Zeroes => self.after_write(count),
            Stage::Fallocate(Way::PunchToAllocate) if !self.lacks().allocate.get() => {
                Stage::Fallocate(Way::Allocate)
            }
            Stage::Fallocate(Way::PunchToAllocate) => Stage::Zeroes,
            Stage::Sync | Stage::Fallocate(_) | Stage::Truncate | Stage::Done(_) => {
                Stage::Done(Ok(()))
            }
        }
    }

    fn after_read(&mut self, count: u64) -> Stage {
        let count = count.min(self.left);
        let facts = self.entry().facts;
        let at_end = count < self.left
            && (count == 0 || facts.direct && !count.is_multiple_of(u64::from(facts.offset_align)));
        if count == self.left {
            return Stage::Done(Ok(()));
        }
        self.advance(count);
        if at_end {
            match &mut self.buf {
                Buf::None => {}
                Buf::Guest(iov) => iov.zero_from(0),
                Buf::Owned(buf) => buf.as_mut_slice()[self.owned_done..].fill(0),
            }
            return Stage::Done(Ok(()));
        }
        Stage::Transfer
    }

    fn after_write(&mut self, count: u64) -> Stage {
        let synced = self.with_dsync();
        let mut count = count.min(self.left);
        let facts = self.entry().facts;
        if facts.direct && count < self.left {
            // What lies beyond the last whole block is written again, as no direct write may start there.
            count -= count % u64::from(facts.offset_align);
        }
        if count == 0 {
            return Stage::Done(Err(Failure::WroteNothing));
        }
        if count < self.left {
            self.advance(count);
            return self.stage;
        }
        match self.kind {
            OpKind::Write { fua: true } if !synced => Stage::Sync,
            _ => Stage::Done(Ok(())),
        }
    }

    /// Leaves `count` bytes behind, fewer than are left.
    fn advance(&mut self, count: u64) {
        self.at += count;
        self.left -= count;
        match &mut self.buf {
            _ if self.stage == Stage::Zeroes => {}
            Buf::None => {}
            Buf::Guest(iov) => iov.trim_front(count),
            Buf::Owned(_) => {
                self.owned_done += usize::try_from(count).expect("less than the buffer's length");
            }
        }
    }

    fn after_failure(&mut self, errno: i32) -> Stage {
        if matches!(errno, libc::EINTR | libc::EAGAIN) && self.retries < RETRIES_MAX {
            self.retries += 1;
            return self.stage;
        }
        let unsupported =
            matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::ENODEV);
        match self.stage {
            Stage::Transfer if errno == libc::EOPNOTSUPP && self.with_dsync() => {
                self.lacks().dsync.set(true);
                Stage::Transfer
            }
            Stage::Fallocate(way) if unsupported || errno == libc::EINVAL => {
                if unsupported {
                    way.lacks(self.lacks()).set(true);
                }
                way_after(self.kind, way, self.entry())
            }
            _ => Stage::Done(Err(Failure::Errno(errno))),
        }
    }

    fn lacks(&self) -> &Lacks {
        &self.entry().lacks
    }

    fn with_dsync(&self) -> bool {
        self.kind == (OpKind::Write { fua: true }) && !self.lacks().dsync.get()
    }

    /// The memory of the next transfer. Valid as long as this state stays in its slot, and until its buffer is touched.
    fn segs(&self) -> Segs {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        if self.stage == Stage::Zeroes {
            let zeroes = zeroes();
            return Segs::one(zeroes.as_ptr(), left.min(zeroes.len()));
        }
        match &self.buf {
            // Its length is 0, and such an op is done before it begins.
            Buf::None => Segs::one(zeroes().as_ptr(), 0),
            Buf::Owned(buf) => Segs::one(buf.as_ptr().wrapping_add(self.owned_done), left),
            Buf::Guest(iov) => match iov.as_raw() {
                [seg] => Segs::one(seg.iov_base.cast(), seg.iov_len),
                segs => {
                    let count = u16::try_from(segs.len().min(SEGS_MAX)).unwrap_or(u16::MAX);
                    Segs::Many { first: segs.as_ptr(), count, bytes: iov.bytes() }
                }
            },
        }
    }

    /// For the simulator: up to `max` bytes that are to be written now.
    pub(crate) fn copy_out(&self, max: usize) -> Vec<u8> {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX).min(max);
        match &self.buf {
            _ if self.stage == Stage::Zeroes => vec![0; left.min(ZEROES_LEN)],
            Buf::None => Vec::new(),
            Buf::Owned(buf) => buf.as_slice()[self.owned_done..][..left].to_vec(),
            Buf::Guest(iov) => {
                let mut bytes = vec![0; left];
                iov.copy_to(0, &mut bytes);
                bytes
            }
        }
    }

    /// For the simulator: the next bytes that were read.
    pub(crate) fn copy_in(&mut self, bytes: &[u8]) {
        match &mut self.buf {
            Buf::None => {}
            Buf::Owned(buf) => {
                buf.as_mut_slice()[self.owned_done..][..bytes.len()].copy_from_slice(bytes);
            }
            Buf::Guest(iov) => {
                iov.copy_from(0, bytes);
            }
        }
    }

    /// For the simulator: bytes that are left of this transfer.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// For the simulator: whether memory and length of the transfer are multiples of `align`.
    pub(crate) fn is_aligned_to(&self, align: u32) -> bool {
        let memory = match &self.buf {
            Buf::Guest(iov) if self.stage == Stage::Transfer => iov.is_aligned_to(align as usize),
            Buf::Owned(buf) => buf.as_ptr().addr().is_multiple_of(align as usize),
            _ => true,
        };
        memory && (self.at | self.left).is_multiple_of(u64::from(align))
    }
}

impl Way {
    fn mode(self) -> i32 {
        match self {
            Way::Punch | Way::PunchToAllocate => PUNCH_HOLE | KEEP_SIZE,
            Way::ZeroRange => ZERO_RANGE | KEEP_SIZE,
            Way::Allocate => KEEP_SIZE,
            Way::Discard => PUNCH_HOLE | KEEP_SIZE | NO_HIDE_STALE,
        }
    }

    /// Where it is remembered that the file lacks it.
    fn lacks(self, lacks: &Lacks) -> &std::cell::Cell<bool> {
        match self {
            Way::Punch | Way::PunchToAllocate => &lacks.punch,
            Way::ZeroRange => &lacks.zero_range,
            Way::Allocate => &lacks.allocate,
            Way::Discard => &lacks.discard,
        }
    }
}

fn first_way(kind: OpKind, entry: &Entry) -> Stage {
    let first = match kind {
        OpKind::WriteZeroes { unmap: false, .. } => Way::ZeroRange,
        OpKind::Discard { .. } if entry.facts.is_block_device => Way::Discard,
        _ => Way::Punch,
    };
    if first.lacks(&entry.lacks).get() {
        return way_after(kind, first, entry);
    }
    Stage::Fallocate(first)
}

/// What to try when `way` is not to be had.
fn way_after(kind: OpKind, way: Way, entry: &Entry) -> Stage {
    let mut way = way;
    // Each turn goes one step down a chain of at most three.
    loop {
        let unmap = matches!(kind, OpKind::WriteZeroes { unmap: true, .. });
        way = match way {
            Way::Discard => Way::Punch,
            // A discard promises nothing, so it may also do nothing.
            Way::Punch if matches!(kind, OpKind::Discard { .. }) => return Stage::Done(Ok(())),
            Way::Punch => Way::ZeroRange,
            Way::ZeroRange if !unmap && !entry.facts.is_block_device => Way::PunchToAllocate,
            Way::ZeroRange | Way::PunchToAllocate | Way::Allocate => return Stage::Zeroes,
        };
        if !way.lacks(&entry.lacks).get() {
            return Stage::Fallocate(way);
        }
    }
}

#[cfg(test)]
mod tests;
