//! The system calls an op is made of, described as plain values, and made on the calling thread.
//!
//! A [`SysOp`] is what [`crate::state::OpState`] asks for next. io_uring and AIO translate it; the thread pool and the inline
//! path hand it to [`run`]. Results are the kernel's: a count, or a negated errno.

use std::os::fd::RawFd;

/// Offsets and lengths up to `i64::MAX`: an `off_t` that was checked.
pub(crate) const OFFSET_MAX: u64 = i64::MAX.unsigned_abs();

/// Bytes in one call at most. (Linux moves no more than 2 GiB - 4 KiB; this keeps the rest of a split op aligned.)
pub(crate) const TRANSFER_MAX: usize = 1 << 30;

/// Segments in one call at most: `UIO_MAXIOV`.
pub(crate) const SEGS_MAX: usize = 1024;

/// The memory of a transfer, in an op's slot: it stays valid until the op's completion.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Segs {
    /// One segment, by value.
    One(libc::iovec),
    /// `count` segments, between 2 and [`SEGS_MAX`].
    Many { first: *const libc::iovec, count: u16, bytes: u64 },
}

impl Segs {
    pub(crate) fn one(base: *mut u8, len: usize) -> Segs {
        Segs::One(libc::iovec { iov_base: base.cast(), iov_len: len.min(TRANSFER_MAX) })
    }

    /// Bytes of all segments. (Of all the op's segments, should there be more than fit one call.)
    pub(crate) fn bytes(&self) -> u64 {
        match *self {
            Segs::One(seg) => seg.iov_len as u64,
            Segs::Many { bytes, .. } => bytes,
        }
    }
}

/// One system call on an op's file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SysOp {
    Preadv { at: u64, segs: Segs },
    Pwritev { at: u64, segs: Segs, dsync: bool },
    Fdatasync,
    Fallocate { mode: i32, at: u64, len: u64 },
    Ftruncate { len: u64 },
}

/// The kinds of system calls that ops are made of: to count them by, and to choose faults by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SysKind {
    /// `preadv`
    Preadv,
    /// `pwritev`
    Pwritev,
    /// `pwritev2` with `RWF_DSYNC`
    PwritevDsync,
    /// `fdatasync`
    Fdatasync,
    /// `fallocate`, in any of its modes
    Fallocate,
    /// `ftruncate`
    Ftruncate,
}

impl SysKind {
    /// All kinds, in the order of [`Counters`].
    pub const ALL: [SysKind; 6] = [
        SysKind::Preadv,
        SysKind::Pwritev,
        SysKind::PwritevDsync,
        SysKind::Fdatasync,
        SysKind::Fallocate,
        SysKind::Ftruncate,
    ];
}

impl SysOp {
    pub(crate) fn kind(&self) -> SysKind {
        match self {
            SysOp::Preadv { .. } => SysKind::Preadv,
            SysOp::Pwritev { dsync: false, .. } => SysKind::Pwritev,
            SysOp::Pwritev { dsync: true, .. } => SysKind::PwritevDsync,
            SysOp::Fdatasync => SysKind::Fdatasync,
            SysOp::Fallocate { .. } => SysKind::Fallocate,
            SysOp::Ftruncate { .. } => SysKind::Ftruncate,
        }
    }
}

/// What an engine has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    ops: [u64; 6],
    /// System calls made by the engine's own thread: submissions, sleeps, and operations done at once on it.
    pub syscalls: u64,
    /// Operations done at once on the engine's own thread.
    pub inline: u64,
}

impl Counters {
    /// Operations of one kind that were begun, by whatever way they reached the kernel.
    pub fn count(&self, kind: SysKind) -> u64 {
        self.ops[kind as usize]
    }

    pub(crate) fn add(&mut self, kind: SysKind) {
        self.ops[kind as usize] += 1;
    }
}

/// An offset or length as the kernel takes it; `OpState` lets none beyond [`OFFSET_MAX`] through.
pub(crate) fn off_t(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Makes the call on this thread, with more `RWF_*` flags for a transfer.
///
/// # Safety
///
/// `fd` is open, and the memory of `op`'s segments is valid for the transfer (mapped; writable for a read) and borrowed by nobody
/// until this returns.
pub(crate) unsafe fn run(fd: RawFd, op: &SysOp, rwf: i32) -> i32 {
    let result = match *op {
        SysOp::Preadv { at, ref segs } => {
            // SAFETY: by contract the segments are valid to be filled; a bad `fd` or offset is an error, not a fault.
            unsafe { transfer(libc::SYS_pread64, libc::SYS_preadv2, fd, segs, at, rwf) }
        }
        SysOp::Pwritev { at, ref segs, dsync } => {
            let rwf = if dsync { rwf | libc::RWF_DSYNC } else { rwf };
            // SAFETY: by contract the segments are valid to be read.
            unsafe { transfer(libc::SYS_pwrite64, libc::SYS_pwritev2, fd, segs, at, rwf) }
        }
        SysOp::Fdatasync => {
            // SAFETY: touches no memory of ours.
            (unsafe { libc::fdatasync(fd) }) as isize
        }
        SysOp::Fallocate { mode, at, len } => {
            // SAFETY: touches no memory of ours.
            (unsafe { libc::fallocate(fd, mode, off_t(at), off_t(len)) }) as isize
        }
        SysOp::Ftruncate { len } => {
            // SAFETY: touches no memory of ours.
            (unsafe { libc::ftruncate(fd, off_t(len)) }) as isize
        }
    };
    if result < 0 {
        return -last_errno();
    }
    i32::try_from(result).unwrap_or(i32::MAX)
}

/// Moves data with the plainest call that will do: the vectored ones make the kernel copy and check the list. Not by way of the C library, whose
/// wrappers are cancellation points and pay for that.
///
/// # Safety
///
/// As for [`run`]; `single` and `vectored` are a pair of `pread64` and `preadv2`, or of `pwrite64` and `pwritev2`.
unsafe fn transfer(single: i64, vectored: i64, fd: RawFd, segs: &Segs, at: u64, rwf: i32) -> isize {
    let at = off_t(at);
    let done = match *segs {
        Segs::One(seg) if rwf == 0 => {
            // SAFETY: the arguments of this call, for a segment that the caller vouches for.
            unsafe { libc::syscall(single, fd, seg.iov_base, seg.iov_len, at) }
        }
        Segs::One(ref seg) => {
            let seg = std::ptr::from_ref(seg);
            // SAFETY: as above, for a list of one. The offset is split in two on 32-bit machines only; there the high half is 0 here.
            unsafe { libc::syscall(vectored, fd, seg, 1, at, 0, rwf) }
        }
        Segs::Many { first, count, .. } => {
            // SAFETY: as above, for the caller's list.
            unsafe { libc::syscall(vectored, fd, first, i32::from(count), at, 0, rwf) }
        }
    };
    isize::try_from(done).unwrap_or(-1)
}

/// The calling thread's `errno`.
pub(crate) fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
