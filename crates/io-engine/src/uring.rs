//! The io_uring engine. Interface: `io_uring_setup(2)`, `io_uring_enter(2)`, `io_uring_register(2)`.
//!
//! ```text
//!   start(op) --SQE--> submission ring                       completion ring --> harvest()
//!                            |                                      ^
//!                            `------ io_uring_enter: submit and ----'      one call does both
//!                                    wait for one, or run what is due
//! ```
//!
//! - One thread submits and reaps, which the kernel is told (`SINGLE_ISSUER`); completions are then handed over inside our own
//!   enter calls (`DEFER_TASKRUN`) instead of by interrupting us. The ring's flags say when there is something (`TASKRUN_FLAG`).
//! - Files are registered, which saves the kernel a lookup and a reference count per op. A full table means plain descriptors.
//! - Where the kernel can, the ring is restricted to the handful of operations used here before it is switched on: io_uring is
//!   not seen by seccomp.
//! - Watched descriptors are multishot polls: edge-triggered, so that an eventfd never has to be read.
//!
//! - Large transfers from and to the page cache are copies, which the ring would make one after the other on this thread, or (tmpfs) hand
//!   to kernel threads at a higher price than ours: they go to a [`Pool`], made when the first one comes.
//!
//! A user_data is an op's slot index, a watch's key with [`WATCH`], [`POOL`], or [`IGNORE`].

use crate::engine::{Found, check_depth};
use crate::file::Entry;
use crate::inline;
use crate::op::{Token, Wait};
use crate::pool::Pool;
use crate::sys::{self, Counters, Segs, SysOp};
use crate::watch::{WatchId, Watches};
use io_uring::{IoUring, Probe, opcode, register::Restriction, squeue, types};
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

const WATCH: u64 = 1 << 63;
const IGNORE: u64 = u64::MAX;
/// The pool has results.
const POOL: u64 = u64::MAX - 1;

/// Threads of the pool at most, once a file is used that is not in RAM: some copies may find their data not cached, and wait. Until then there are
/// as many as CPUs, because copies alone gain nothing from more.
const POOL_THREADS_MAX: usize = 16;

/// Files that may be registered at once; more are used unregistered.
const FILES_MAX: u32 = 256;

/// `IORING_ENTER_GETEVENTS`, linux/io_uring.h.
const ENTER_GETEVENTS: u32 = 1;
/// `IORING_REGISTER_FILES_UPDATE`.
const REGISTER_FILES_UPDATE: u8 = 6;

/// Times in a row that the kernel may refuse to take anything (out of memory, overflow) before that is an error.
const REFUSALS_MAX: u32 = 10_000;

/// The ring and its file table; also held by each registered file, so that the last one can give its slot back.
///
/// Only [`Uring`], of which there is one per ring, touches the submission and completion queues.
pub(crate) struct Ring {
    io: IoUring,
    files_free: RefCell<Vec<u32>>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring(fd {})", self.io.as_raw_fd())
    }
}

/// A file's slot in the ring's table. Dropping it ends the ring's reference to the file.
#[derive(Debug)]
pub(crate) struct Registered {
    ring: Rc<Ring>,
    index: u32,
}

impl Registered {
    pub(crate) fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let emptied = self.ring.io.submitter().register_files_update(self.index, &[-1]);
        // A slot that could not be emptied still refers to the old file, and must not be used for another.
        if emptied.is_ok() {
            self.ring.files_free.borrow_mut().push(self.index);
        }
    }
}

/// One ring's driver.
#[derive(Debug)]
pub(crate) struct Uring {
    ring: Rc<Ring>,
    watches: Watches,
    has_ftruncate: bool,
    /// Results of calls that were made by ourselves because the ring has no operation for them.
    at_once: Vec<(u32, i32)>,
    pool: Option<Pool>,
    depth: u32,
    refusals: u32,
}

impl Uring {
    pub(crate) fn new(depth: u32) -> io::Result<Uring> {
        let (io, has_ftruncate) = set_up(depth)?;
        Ok(Uring::on(io, has_ftruncate, depth))
    }

    fn on(io: IoUring, has_ftruncate: bool, depth: u32) -> Uring {
        let ring = Rc::new(Ring { io, files_free: RefCell::new((0..FILES_MAX).rev().collect()) });
        let watches = Watches::default();
        let at_once = Vec::new();
        Uring { ring, watches, has_ftruncate, at_once, pool: None, depth, refusals: 0 }
    }

    /// Puts a file into the table; `None` if there is no place for it.
    pub(crate) fn register(&mut self, fd: RawFd) -> Option<Registered> {
        let index = self.ring.files_free.borrow_mut().pop()?;
        match self.ring.io.submitter().register_files_update(index, &[fd]) {
            Ok(_) => Some(Registered { ring: self.ring.clone(), index }),
            Err(_) => {
                self.ring.files_free.borrow_mut().push(index);
                None
            }
        }
    }

    fn sq(&mut self) -> squeue::SubmissionQueue<'_> {
        // SAFETY: the only queue object at this time: all of them are made in this struct, and borrow it exclusively.
        unsafe { self.ring.io.submission_shared() }
    }

    /// Queues an op's next call.
    ///
    /// # Safety
    ///
    /// The memory of the op's segments and the file behind `entry` stay as they are until the result of `index` has been found,
    /// even if this `Uring` is dropped.
    #[inline]
    pub(crate) unsafe fn start(
        &mut self,
        index: u32,
        entry: &Entry,
        op: &SysOp,
        counters: &mut Counters,
    ) -> io::Result<()> {
        if matches!(op, SysOp::Ftruncate { .. }) && !self.has_ftruncate {
            counters.syscalls += 1;
            // SAFETY: no segments; the entry's file is open.
            self.at_once.push((index, unsafe { sys::run(entry.raw_fd(), op, 0) }));
            return Ok(());
        }
        if inline::is_copy(entry, op) {
            let pool = self.pool(counters)?;
            if !entry.facts.ram_backed {
                pool.widen(POOL_THREADS_MAX);
            }
            // SAFETY: passed on from the caller: an `IoEngine` drops its ring, and with it the pool, before the slab.
            unsafe { pool.push(index, entry.raw_fd(), *op) };
            return Ok(());
        }
        let sqe = match entry.table_index().and_then(|slot| i32::try_from(slot).ok()) {
            Some(slot) => sqe_of(types::Fd(slot), op).flags(squeue::Flags::FIXED_FILE),
            None => sqe_of(types::Fd(entry.raw_fd()), op),
        };
        // SAFETY: passed on from the caller.
        unsafe { self.push(&sqe.user_data(u64::from(index)), counters) }
    }

    /// The pool, made if need be, with its eventfd under watch.
    fn pool(&mut self, counters: &mut Counters) -> io::Result<&mut Pool> {
        if self.pool.is_none() {
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            let pool = Pool::new(cpus.min(POOL_THREADS_MAX), self.depth)?;
            self.arm_pool(&pool, counters)?;
            self.pool = Some(pool);
        }
        Ok(self.pool.as_mut().expect("made above"))
    }

    fn arm_pool(&mut self, pool: &Pool, counters: &mut Counters) -> io::Result<()> {
        self.poll_always(pool.wake_fd().as_raw_fd(), POOL, counters)
    }

    /// Has each time that `fd` becomes readable reported under `user_data`.
    fn poll_always(
        &mut self,
        fd: RawFd,
        user_data: u64,
        counters: &mut Counters,
    ) -> io::Result<()> {
        let events = u32::from(libc::POLLIN.unsigned_abs());
        let poll = opcode::PollAdd::new(types::Fd(fd), events).multi(true);
        // SAFETY: the entry points to no memory, and the kernel takes its own reference to the file.
        unsafe { self.push(&poll.build().user_data(user_data), counters) }?;
        // At once: before the caller may close or reuse the descriptor.
        self.submit_ring(counters)
    }

    /// # Safety
    ///
    /// What the entry points to stays valid until its completion.
    #[inline]
    unsafe fn push(&mut self, sqe: &squeue::Entry, counters: &mut Counters) -> io::Result<()> {
        // SAFETY: passed on from the caller.
        while unsafe { self.sq().push(sqe) }.is_err() {
            self.submit_ring(counters)?;
        }
        Ok(())
    }

    /// Hands everything queued to the kernel and the pool, without waiting.
    pub(crate) fn submit(&mut self, counters: &mut Counters) -> io::Result<()> {
        if let Some(pool) = &mut self.pool {
            pool.flush();
        }
        self.submit_ring(counters)
    }

    fn submit_ring(&mut self, counters: &mut Counters) -> io::Result<()> {
        if self.sq().is_empty() {
            return Ok(());
        }
        counters.syscalls += 1;
        let submitted = self.ring.io.submitter().submit().map(drop);
        self.judge(submitted)
    }

    /// Tells the errors of an enter call from its ways to say "not now".
    fn judge(&mut self, entered: io::Result<()>) -> io::Result<()> {
        let Err(error) = entered else {
            self.refusals = 0;
            return Ok(());
        };
        match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME) => Ok(()),
            // Out of memory for requests, or more completions than fit the ring: both pass when some have been reaped.
            Some(libc::EAGAIN | libc::EBUSY) if self.refusals < REFUSALS_MAX => {
                self.refusals += 1;
                std::thread::yield_now();
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Submits, sleeps if there is nothing yet and `wait` allows it, and collects what is there.
    #[inline]
    pub(crate) fn poll(
        &mut self,
        wait: Wait,
        found: &mut Found,
        counters: &mut Counters,
    ) -> io::Result<()> {
        found.done.append(&mut self.at_once);
        if let Some(pool) = &mut self.pool {
            pool.flush();
            pool.collect(&mut found.done);
        }
        let (queued, due) = {
            let sq = self.sq();
            (sq.len(), sq.taskrun() || sq.cq_overflow())
        };
        // Work that the kernel has deferred need not end an op (a cold buffered read is retried many times): it is done on the way to sleep.
        let sleep = wait != Wait::No && found.done.is_empty() && !self.has_results();
        if queued > 0 || due || sleep {
            counters.syscalls += 1;
            let has_results = |pool: &Pool| !pool.prepare_sleep();
            let awake = !sleep || self.pool.as_ref().is_some_and(has_results);
            let wait = if awake { Wait::No } else { wait };
            let entered = self.enter(u32::try_from(queued).unwrap_or(u32::MAX), wait);
            if let Some(pool) = &mut self.pool {
                pool.end_sleep();
                pool.collect(&mut found.done);
            }
            self.judge(entered)?;
        }
        self.harvest(found, counters)
    }

    fn enter(&mut self, queued: u32, wait: Wait) -> io::Result<()> {
        let submitter = self.ring.io.submitter();
        if let Wait::Ns(ns) = wait {
            let nsec = u32::try_from(ns % 1_000_000_000).expect("a remainder of 10^9");
            let timeout = types::Timespec::new().sec(ns / 1_000_000_000).nsec(nsec);
            let args = types::SubmitArgs::new().timespec(&timeout);
            return submitter.submit_with_args(1, &args).map(drop);
        }
        let want = u32::from(wait == Wait::Forever);
        // Completions are delivered inside a call with this flag only, so it is set even when nothing is waited for.
        // SAFETY: `queued` is the queue's length, there is no argument, and the entries are valid by `start`'s contract.
        unsafe { submitter.enter::<libc::sigset_t>(queued, want, ENTER_GETEVENTS, None) }.map(drop)
    }

    fn harvest(&mut self, found: &mut Found, counters: &mut Counters) -> io::Result<()> {
        let mut ended = None;
        let mut pool_ended = false;
        {
            // SAFETY: the only completion queue object: this method borrows `self` exclusively.
            let cq = unsafe { self.ring.io.completion_shared() };
            for cqe in cq {
                let (data, result) = (cqe.user_data(), cqe.result());
                if data & WATCH == 0 {
                    let index = u32::try_from(data).expect("made from a slot's index");
                    found.done.push((index, result));
                } else if data == POOL {
                    pool_ended |= !io_uring::cqueue::more(cqe.flags());
                } else if data != IGNORE
                    && let Some((id, _, token)) = self.watches.get(data & !WATCH)
                {
                    found.woken.push(token);
                    if !io_uring::cqueue::more(cqe.flags()) && result >= 0 {
                        ended.get_or_insert_with(Vec::new).push(id);
                    }
                }
            }
        }
        // The kernel ends a multishot poll when it runs out of room; a new one reports at once if the descriptor is readable.
        for id in ended.into_iter().flatten() {
            self.arm(id, counters)?;
        }
        if pool_ended && let Some(pool) = self.pool.take() {
            let armed = self.arm_pool(&pool, counters);
            self.pool = Some(pool);
            armed?;
        }
        Ok(())
    }

    /// Whether a look at memory shows something to be reaped.
    #[inline]
    pub(crate) fn has_completions(&self) -> bool {
        if self.has_results() {
            return true;
        }
        // SAFETY: as in `has_results`. Dropping it publishes a tail that is already published.
        let sq = unsafe { self.ring.io.submission_shared() };
        sq.taskrun() || sq.cq_overflow()
    }

    /// Whether an op has ended for certain.
    #[inline]
    fn has_results(&self) -> bool {
        // SAFETY: reads the ring's indices only, and is gone before another queue object can be made: nothing in between calls out.
        let cq_empty = unsafe { self.ring.io.completion_shared() }.is_empty();
        !cq_empty || !self.at_once.is_empty() || self.pool.as_ref().is_some_and(Pool::has_done)
    }

    pub(crate) fn watch(
        &mut self,
        fd: OwnedFd,
        token: Token,
        counters: &mut Counters,
    ) -> io::Result<WatchId> {
        let id = self.watches.add(fd, token);
        self.arm(id, counters).inspect_err(|_| {
            self.watches.remove(id);
        })?;
        Ok(id)
    }

    fn arm(&mut self, id: WatchId, counters: &mut Counters) -> io::Result<()> {
        let Some((_, fd, _)) = self.watches.get(id.key()) else { return Ok(()) };
        self.poll_always(fd.as_raw_fd(), WATCH | id.key(), counters)
    }

    pub(crate) fn unwatch(&mut self, id: WatchId, counters: &mut Counters) -> Option<OwnedFd> {
        let fd = self.watches.remove(id)?;
        let cancel = opcode::PollRemove::new(WATCH | id.key()).build().user_data(IGNORE);
        // SAFETY: the entry points to no memory.
        let pushed = unsafe { self.push(&cancel, counters) };
        // Should the kernel not take it: the poll stays, and its events are nobody's.
        let _ = pushed.and_then(|()| self.submit(counters));
        Some(fd)
    }
}

fn sqe_of(fd: types::Fd, op: &SysOp) -> squeue::Entry {
    let length = |len: usize| u32::try_from(len).expect("bounded by TRANSFER_MAX");
    let rwf = |dsync: bool| if dsync { libc::RWF_DSYNC } else { 0 };
    match *op {
        SysOp::Preadv { at, segs: Segs::One(seg) } => {
            opcode::Read::new(fd, seg.iov_base.cast(), length(seg.iov_len)).offset(at).build()
        }
        SysOp::Preadv { at, segs: Segs::Many { first, count, .. } } => {
            opcode::Readv::new(fd, first, u32::from(count)).offset(at).build()
        }
        SysOp::Pwritev { at, segs: Segs::One(seg), dsync } => {
            let base = seg.iov_base.cast_const().cast();
            let write = opcode::Write::new(fd, base, length(seg.iov_len));
            write.offset(at).rw_flags(rwf(dsync)).build()
        }
        SysOp::Pwritev { at, segs: Segs::Many { first, count, .. }, dsync } => {
            let write = opcode::Writev::new(fd, first, u32::from(count));
            write.offset(at).rw_flags(rwf(dsync)).build()
        }
        SysOp::Fdatasync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        SysOp::Fallocate { mode, at, len } => {
            opcode::Fallocate::new(fd, len).offset(at).mode(mode).build()
        }
        SysOp::Ftruncate { len } => opcode::Ftruncate::new(fd, len).build(),
    }
}

/// How much of what we want a kernel must have, from all of it down to the least that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Level {
    /// Linux 5.11.
    Plain,
    /// Linux 5.19: completions do not interrupt us.
    Cooperative,
    /// Linux 6.1: completions are handed over in our own calls.
    Deferred,
    /// And the ring lets no other operation through.
    Restricted,
}

/// What of io_uring the kernel gives us, found by setting up a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringSupport {
    /// The ring can be restricted to the operations we use.
    pub restricted: bool,
    /// Completions are delivered on the submitting thread only, when it asks for them.
    pub deferred: bool,
    /// The kernel does not interrupt a running thread to deliver completions.
    pub cooperative: bool,
    /// Files can be truncated by the ring.
    pub ftruncate: bool,
}

/// Tries what a ring for `depth` ops can do. The ring is gone afterwards.
///
/// # Errors
///
/// Those of [`crate::IoEngine::new`] with [`crate::EngineKind::IoUring`].
pub fn uring_support(depth: u32) -> io::Result<UringSupport> {
    check_depth(depth)?;
    let (level, (_, ftruncate)) = set_up_best(depth)?;
    Ok(UringSupport {
        restricted: level >= Level::Restricted,
        deferred: level >= Level::Deferred,
        cooperative: level >= Level::Cooperative,
        ftruncate,
    })
}

/// Makes a ring with as much of what we want as the kernel has; also tells whether it can truncate files.
fn set_up(depth: u32) -> io::Result<(IoUring, bool)> {
    set_up_best(depth).map(|(_, made)| made)
}

fn set_up_best(depth: u32) -> io::Result<(Level, (IoUring, bool))> {
    let mut first_error = None;
    for level in [Level::Restricted, Level::Deferred, Level::Cooperative, Level::Plain] {
        match set_up_at(level, depth) {
            Ok(made) => return Ok((level, made)),
            // The first says why the kernel has no io_uring for us at all, if none works.
            Err(error) => first_error.get_or_insert(error),
        };
    }
    Err(first_error.expect("there was at least one attempt"))
}

fn set_up_at(level: Level, depth: u32) -> io::Result<(IoUring, bool)> {
    let mut builder = IoUring::builder();
    builder.setup_clamp().setup_cqsize((2 * depth).max(256)).dontfork();
    if level >= Level::Cooperative {
        builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
    }
    if level >= Level::Deferred {
        builder.setup_single_issuer().setup_defer_taskrun();
    }
    if level == Level::Restricted {
        builder.setup_r_disabled();
    }
    builder.build(depth.max(8)).and_then(|io| prepare(io, level == Level::Restricted))
}

fn prepare(io: IoUring, restricted: bool) -> io::Result<(IoUring, bool)> {
    if !io.params().is_feature_nodrop() || !io.params().is_feature_ext_arg() {
        let what = "the kernel's io_uring is too old (Linux 5.11 is needed)";
        return Err(io::Error::new(io::ErrorKind::Unsupported, what));
    }
    let submitter = io.submitter();
    let mut probe = Probe::new();
    let has_ftruncate =
        submitter.register_probe(&mut probe).is_ok() && probe.is_supported(opcode::Ftruncate::CODE);
    if submitter.register_files_sparse(FILES_MAX).is_err() {
        submitter.register_files(&vec![-1; FILES_MAX as usize])?;
    }
    if restricted {
        let mut ops = vec![
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
            opcode::PollAdd::CODE,
            opcode::PollRemove::CODE,
        ];
        ops.extend(has_ftruncate.then_some(opcode::Ftruncate::CODE));
        let mut allowed: Vec<_> = ops.into_iter().map(Restriction::sqe_op).collect();
        allowed.push(Restriction::sqe_flags_allowed(squeue::Flags::FIXED_FILE.bits()));
        allowed.push(Restriction::register_op(REGISTER_FILES_UPDATE));
        submitter.register_restrictions(&mut allowed)?;
        submitter.register_enable_rings()?;
    }
    Ok((io, has_ftruncate))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn poll_one(uring: &mut Uring) -> Found {
        let mut found = Found::default();
        while found.done.is_empty() && found.woken.is_empty() {
            uring.poll(Wait::Forever, &mut found, &mut Counters::default()).unwrap();
        }
        found
    }

    #[test]
    fn support_is_what_an_engine_can_be_made_with() {
        match (uring_support(64), Uring::new(64)) {
            (Ok(support), Ok(uring)) => {
                assert_eq!(support.ftruncate, uring.has_ftruncate);
                assert_eq!(support.restricted, set_up_at(Level::Restricted, 64).is_ok());
                assert_eq!(support.cooperative, set_up_at(Level::Cooperative, 64).is_ok());
            }
            (support, uring) => assert!(support.is_err() && uring.is_err()),
        }
        for depth in [0, u32::MAX] {
            let error = uring_support(depth).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn every_level_of_kernel_support_works_on_its_own() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        for level in [Level::Plain, Level::Cooperative, Level::Deferred, Level::Restricted] {
            let (io, has_ftruncate) = match set_up_at(level, 4) {
                Ok(made) => made,
                Err(error) => {
                    println!("SKIPPED: {level:?}: {error}");
                    continue;
                }
            };
            let mut uring = Uring::on(io, has_ftruncate, 64);
            let counters = &mut Counters::default();
            // A kick, more ops than the queue has room for, and a bounded sleep that nothing ends.
            uring.watch(read.try_clone().unwrap(), Token(3), counters).unwrap();
            rustix::io::write(&write, &[1]).unwrap();
            assert_eq!(poll_one(&mut uring).woken, [Token(3)], "{level:?}");
            let file = uring.register(write.as_raw_fd()).expect("a place in the table");
            let byte = [7u8];
            for index in 0..100 {
                let mut to = byte;
                let seg = Segs::one(to.as_mut_ptr(), 1);
                let op = SysOp::Preadv { at: 0, segs: seg };
                let sqe = sqe_of(types::Fd(-1), &op).user_data(index);
                // SAFETY: the descriptor is bad, so the memory is never touched.
                unsafe { uring.push(&sqe, counters) }.unwrap();
            }
            let mut left: VecDeque<u32> = (0..100).collect();
            while !left.is_empty() {
                for (index, result) in poll_one(&mut uring).done {
                    assert_eq!(result, -libc::EBADF);
                    left.retain(|i| *i != index);
                }
            }
            let mut found = Found::default();
            uring.poll(Wait::Ns(1000), &mut found, counters).unwrap();
            assert!(found.done.is_empty() && found.woken.is_empty(), "{level:?}");
            drop(file);
            rustix::io::read(&read, &mut [0u8; 8][..]).unwrap();
        }
    }

    #[test]
    fn a_restricted_ring_lets_no_other_operation_through() {
        let Ok((io, has_ftruncate)) = set_up_at(Level::Restricted, 4) else {
            println!("SKIPPED: no restricted ring to be had");
            return;
        };
        let mut uring = Uring::on(io, has_ftruncate, 64);
        let nop = opcode::Nop::new().build().user_data(1);
        // SAFETY: points to no memory.
        unsafe { uring.push(&nop, &mut Counters::default()) }.unwrap();
        assert_eq!(poll_one(&mut uring).done, [(1, -libc::EACCES)]);
        assert!(uring.ring.io.submitter().register_personality().is_err());
    }
}
