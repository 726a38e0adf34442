//! The engine on native Linux AIO: `io_setup(2)`, `io_submit(2)`, `io_getevents(2)`, linux/aio_abi.h.
//!
//! ```text
//!   start(op) -> queue of iocbs --io_submit, one call per batch--> kernel
//!   harvest() <- completion ring, mapped by the kernel into our memory: no call to look, none to take
//!   sleep     <- epoll over an eventfd that each iocb names, the helper pool's eventfd, and what is watched
//! ```
//!
//! AIO is asynchronous for O_DIRECT only, on anything else `io_submit` does the I/O itself. So other files are refused. It
//! knows reads, writes and (since Linux 4.18) `fdatasync`; the rest goes to a small helper pool.
//!
//! The context id is the address of the ring, whose layout (`struct aio_ring`, fs/aio.c) has been the same since Linux 2.6. If the
//! ring's magic and features are not as known, `io_getevents` is used instead.

use crate::engine::Found;
use crate::file::Entry;
use crate::op::{Token, Wait};
use crate::pool::Pool;
use crate::sleep::Sleeper;
use crate::sys::{self, Counters, Segs, SysOp};
use crate::watch::WatchId;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

const CMD_PREAD: u16 = 0;
const CMD_PWRITE: u16 = 1;
const CMD_FDSYNC: u16 = 3;
const CMD_PREADV: u16 = 7;
const CMD_PWRITEV: u16 = 8;
/// The iocb names an eventfd.
const FLAG_RESFD: u32 = 1;

const RING_MAGIC: u32 = 0xa10a_10a1;
/// Events taken by one `io_getevents`.
const EVENTS_MAX: usize = 64;
/// Threads for what AIO does not know.
const HELPERS_MAX: usize = 4;
/// Times in a row that `io_submit` may say EAGAIN with nothing in flight before an op gets to hear it.
const REFUSALS_MAX: u32 = 1000;

/// `struct iocb`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Iocb {
    data: u64,
    #[cfg(target_endian = "little")]
    key: u32,
    rw_flags: i32,
    #[cfg(target_endian = "big")]
    key: u32,
    opcode: u16,
    reqprio: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// `struct io_event`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

impl Event {
    /// The slot index that the iocb carried, and the result.
    fn result(&self) -> (u32, i32) {
        let index = u32::try_from(self.data).expect("made from a slot's index");
        (index, i32::try_from(self.res).unwrap_or(i32::MAX))
    }
}

/// The head of `struct aio_ring`; `nr` events follow.
#[derive(Debug)]
#[repr(C)]
struct RingHead {
    id: u32,
    nr: u32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: u32,
    compat_features: u32,
    incompat_features: u32,
    header_length: u32,
}

const _: () = assert!(size_of::<Iocb>() == 64 && size_of::<Event>() == 32);
const _: () = assert!(size_of::<RingHead>() == 32);

/// A kernel AIO context. Destroying it waits for everything in flight.
#[derive(Debug)]
struct Context {
    id: u64,
    /// The ring, if its layout is the one we know.
    ring: Option<NonNull<RingHead>>,
}

impl Context {
    fn new(depth: u32) -> io::Result<Context> {
        let mut id = 0u64;
        // SAFETY: io_setup writes one context id (a `long`) through its second argument, which points to one.
        let done = unsafe { libc::syscall(libc::SYS_io_setup, depth.max(1), &raw mut id) };
        if done < 0 {
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::EAGAIN) => {
                    io::Error::new(error.kind(), "Linux AIO: /proc/sys/fs/aio-max-nr is used up")
                }
                _ => error,
            });
        }
        let address = usize::try_from(id).expect("a context id is an address");
        let ring = NonNull::new(std::ptr::with_exposed_provenance_mut::<RingHead>(address));
        let known = |ring: &NonNull<RingHead>| {
            // SAFETY: the context id is the address of the ring, mapped until io_destroy; the head's plain fields never change.
            let head = unsafe { ring.as_ref() };
            head.magic == RING_MAGIC
                && head.incompat_features == 0
                && head.header_length as usize == size_of::<RingHead>()
                && head.nr > 0
        };
        Ok(Context { id, ring: ring.filter(known) })
    }

    /// Moves what has completed to `done`; returns how many there were.
    fn take(&mut self, done: &mut Vec<(u32, i32)>, counters: &mut Counters) -> usize {
        let Some(ring) = self.ring else { return self.take_by_call(done, counters) };
        // SAFETY: mapped while the context lives; the kernel writes `tail`, we alone write `head`, both atomically.
        let shared = unsafe { ring.as_ref() };
        // SAFETY: the events start right behind the head, in the same mapping.
        let first = unsafe { ring.add(1) }.cast::<Event>();
        let nr = shared.nr;
        let mut head = shared.head.load(Ordering::Relaxed);
        // Acquire: who sees the new tail also sees the events before it.
        let tail = shared.tail.load(Ordering::Acquire);
        let mut count = 0;
        while head != tail && head < nr {
            // SAFETY: `head < nr`, the number of events in the ring.
            let at = unsafe { first.add(head as usize) };
            // SAFETY: inside the ring and aligned; the kernel does not write it again before `head` has passed it.
            done.push(unsafe { at.read_volatile() }.result());
            count += 1;
            head = (head + 1) % nr;
        }
        if count > 0 {
            // Release: the kernel may reuse the events only after they were copied.
            shared.head.store(head, Ordering::Release);
        }
        count
    }

    fn take_by_call(&self, done: &mut Vec<(u32, i32)>, counters: &mut Counters) -> usize {
        counters.syscalls += 1;
        let mut events = [Event::default(); EVENTS_MAX];
        let mut timeout = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let (min, max): (libc::c_long, libc::c_long) = (0, EVENTS_MAX as libc::c_long);
        let (into, timeout) = (events.as_mut_ptr(), &raw mut timeout);
        // SAFETY: the kernel fills at most `EVENTS_MAX` events, which `events` has room for.
        let got =
            unsafe { libc::syscall(libc::SYS_io_getevents, self.id, min, max, into, timeout) };
        let got = usize::try_from(got).unwrap_or(0);
        done.extend(events[..got].iter().map(Event::result));
        got
    }

    fn is_empty(&self) -> bool {
        let Some(ring) = self.ring else { return false };
        // SAFETY: as in `take`.
        let shared = unsafe { ring.as_ref() };
        shared.head.load(Ordering::Relaxed) == shared.tail.load(Ordering::Acquire)
    }

    /// Submits; returns how many were taken, or the errno of the first.
    ///
    /// # Safety
    ///
    /// Each pointer is to a valid iocb whose memory stays valid until its event.
    unsafe fn submit(&mut self, iocbs: &[*const Iocb]) -> Result<usize, i32> {
        let (count, first) = (iocbs.len(), iocbs.as_ptr());
        // SAFETY: `first` points to `count` pointers to iocbs that the caller vouches for.
        let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.id, count, first) };
        usize::try_from(taken).map_err(|_| sys::last_errno())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: our own context; the ring is not looked at any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

#[derive(Debug)]
pub(crate) struct Aio {
    context: Context,
    /// One per op slot. The kernel copies an iocb when it takes it.
    iocbs: Box<[Iocb]>,
    /// Op slots whose iocbs are to be submitted, in this order.
    queued: Vec<u32>,
    pointers: Vec<*const Iocb>,
    in_kernel: usize,
    refusals: u32,
    /// Results that came without the kernel: it refused the iocb.
    at_once: Vec<(u32, i32)>,
    /// The kernel takes `CMD_FDSYNC`; until it has refused one.
    has_fdsync: bool,
    done_fd: OwnedFd,
    pool: Pool,
    sleeper: Sleeper,
}

impl Aio {
    pub(crate) fn new(depth: u32) -> io::Result<Aio> {
        let context = Context::new(depth)?;
        let done_fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let pool = Pool::new(HELPERS_MAX, depth)?;
        let mut sleeper = Sleeper::new()?;
        sleeper.add_own(&done_fd)?;
        sleeper.add_own(pool.wake_fd())?;
        Ok(Aio {
            context,
            iocbs: vec![Iocb::default(); depth as usize].into(),
            queued: Vec::with_capacity(depth as usize),
            pointers: Vec::with_capacity(depth as usize),
            in_kernel: 0,
            refusals: 0,
            at_once: Vec::new(),
            has_fdsync: true,
            done_fd,
            pool,
            sleeper,
        })
    }

    /// Queues an op's next call.
    ///
    /// # Safety
    ///
    /// The memory of the op's segments and the file behind `entry` stay as they are until the result of `index` has been found,
    /// or this is dropped.
    pub(crate) unsafe fn start(&mut self, index: u32, entry: &Entry, op: &SysOp) {
        let fd = entry.raw_fd();
        let mut iocb = match *op {
            SysOp::Preadv { at, segs } => transfer(CMD_PREAD, CMD_PREADV, at, &segs),
            SysOp::Pwritev { at, segs, dsync } => {
                let rw_flags = if dsync { libc::RWF_DSYNC } else { 0 };
                Iocb { rw_flags, ..transfer(CMD_PWRITE, CMD_PWRITEV, at, &segs) }
            }
            SysOp::Fdatasync if self.has_fdsync => Iocb { opcode: CMD_FDSYNC, ..Iocb::default() },
            SysOp::Fdatasync | SysOp::Fallocate { .. } | SysOp::Ftruncate { .. } => {
                // SAFETY: passed on from the caller.
                unsafe { self.pool.push(index, fd, *op) };
                return;
            }
        };
        iocb.data = u64::from(index);
        iocb.fd = fd.unsigned_abs();
        iocb.flags = FLAG_RESFD;
        iocb.resfd = self.done_fd.as_raw_fd().unsigned_abs();
        self.iocbs[index as usize] = iocb;
        self.queued.push(index);
    }

    /// Hands everything queued to the kernel. What it will not take now stays queued.
    pub(crate) fn submit(&mut self, counters: &mut Counters) {
        self.pool.flush();
        let mut start = 0;
        // Each turn submits or fails at least one iocb, or ends the loop.
        while start < self.queued.len() {
            self.pointers.clear();
            let rest = &self.queued[start..];
            self.pointers.extend(rest.iter().map(|i| &raw const self.iocbs[*i as usize]));
            counters.syscalls += 1;
            // SAFETY: the pointers are to our own iocbs, filled in `start`, by whose contract their memory stays valid.
            match unsafe { self.context.submit(&self.pointers) } {
                Ok(0) => break,
                Ok(taken) => {
                    self.in_kernel += taken;
                    self.refusals = 0;
                    start += taken;
                }
                // The ring is full of completions, or the kernel out of memory: passes when some were reaped.
                Err(libc::EAGAIN) if self.in_kernel > 0 => break,
                Err(libc::EAGAIN | libc::EINTR) if self.refusals < REFUSALS_MAX => {
                    self.refusals += 1;
                    std::thread::yield_now();
                }
                Err(errno) => {
                    self.refuse(self.queued[start], errno);
                    start += 1;
                }
            }
        }
        self.queued.drain(..start);
        // Refused fdsyncs may have moved on to the helpers.
        self.pool.flush();
    }

    /// The kernel will not take this iocb: that is its result, unless the helpers can do it.
    fn refuse(&mut self, index: u32, errno: i32) {
        let iocb = self.iocbs[index as usize];
        if iocb.opcode == CMD_FDSYNC && matches!(errno, libc::EINVAL | libc::EOPNOTSUPP) {
            self.has_fdsync = false;
            let fd = i32::try_from(iocb.fd).expect("made from a descriptor");
            // SAFETY: no segments; the file stays open by the contract of `start`.
            unsafe { self.pool.push(index, fd, SysOp::Fdatasync) };
            return;
        }
        // EAGAIN here has been tried often enough, and must not be taken for "try again".
        let errno = if errno == libc::EAGAIN { libc::ENOMEM } else { errno };
        self.at_once.push((index, -errno));
    }

    pub(crate) fn poll(
        &mut self,
        wait: Wait,
        found: &mut Found,
        counters: &mut Counters,
    ) -> io::Result<()> {
        self.submit(counters);
        self.harvest(found, counters);
        if !self.queued.is_empty() && !found.done.is_empty() {
            self.submit(counters);
        }
        if wait == Wait::No || !found.done.is_empty() {
            return self.sleeper.glance(!found.done.is_empty(), &mut found.woken, counters);
        }
        let wait = if self.pool.prepare_sleep() { wait } else { Wait::No };
        let slept = self.sleeper.sleep(wait, &mut found.woken, counters);
        self.pool.end_sleep();
        self.harvest(found, counters);
        slept
    }

    fn harvest(&mut self, found: &mut Found, counters: &mut Counters) {
        found.done.append(&mut self.at_once);
        self.pool.collect(&mut found.done);
        if self.in_kernel > 0 {
            self.in_kernel -= self.context.take(&mut found.done, counters);
        }
    }

    pub(crate) fn has_completions(&self) -> bool {
        !self.at_once.is_empty()
            || self.pool.has_done()
            || (self.in_kernel > 0 && !self.context.is_empty())
    }

    pub(crate) fn watch(&mut self, fd: OwnedFd, token: Token) -> io::Result<WatchId> {
        self.sleeper.watch(fd, token)
    }

    pub(crate) fn unwatch(&mut self, id: WatchId) -> Option<OwnedFd> {
        self.sleeper.unwatch(id)
    }
}

fn transfer(one: u16, many: u16, at: u64, segs: &Segs) -> Iocb {
    let (opcode, buf, nbytes) = match *segs {
        Segs::One(seg) => (one, seg.iov_base.expose_provenance(), seg.iov_len as u64),
        Segs::Many { first, count, .. } => (many, first.expose_provenance(), u64::from(count)),
    };
    Iocb { opcode, buf: buf as u64, nbytes, offset: sys::off_t(at), ..Iocb::default() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]
    use super::*;
    use crate::file::HostFile;

    #[test]
    fn a_kernel_without_our_ring_or_fdsync_is_served_as_well() {
        let Ok(mut aio) = Aio::new(4) else {
            println!("SKIPPED: no Linux AIO");
            return;
        };
        aio.context.ring = None;
        let path = std::env::temp_dir().join(format!("ferroblk-aio-{}", std::process::id()));
        std::fs::write(&path, [9; 100]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let entry = Entry::host(HostFile::new(file, false).unwrap(), 0, None);
        let counters = &mut Counters::default();
        let mut into = [0u8; 64];
        let read = SysOp::Preadv { at: 0, segs: Segs::one(into.as_mut_ptr(), into.len()) };
        // SAFETY: `into` and the file live until all results were found, below.
        unsafe { aio.start(0, &entry, &read) };
        // As the kernel would refuse it: by hand, since this one does not.
        aio.iocbs[1] = Iocb {
            opcode: CMD_FDSYNC,
            data: 1,
            fd: entry.raw_fd().unsigned_abs(),
            ..Iocb::default()
        };
        aio.refuse(1, libc::EINVAL);
        assert!(!aio.has_fdsync);
        // SAFETY: no segments; the file stays open.
        unsafe { aio.start(2, &entry, &SysOp::Fdatasync) };
        let mut found = Found::default();
        while found.done.len() < 3 {
            // An empty `done` is what lets it sleep.
            let mut some = Found::default();
            aio.poll(Wait::Forever, &mut some, counters).unwrap();
            found.done.append(&mut some.done);
        }
        found.done.sort_unstable();
        assert_eq!(found.done, [(0, 64), (1, 0), (2, 0)]);
        assert_eq!(into, [9; 64]);
        aio.refuse(1, libc::EAGAIN);
        assert_ne!(aio.at_once, [(1, -libc::EAGAIN)], "would be tried again for ever");
    }
}
