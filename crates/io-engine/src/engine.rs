//! The face of all engines.

use crate::aio::Aio;
use crate::file::{Entry, FileRef, HostFile};
use crate::inline;
use crate::op::{Op, Reaped, Token, Wait};
use crate::sim::{Sim, SimDisk};
use crate::slab::Slab;
use crate::sys::{Counters, SysOp};
use crate::threads::Threads;
use crate::uring::Uring;
use crate::watch::WatchId;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Ops that an engine may be made for.
const DEPTH_MAX: u32 = 32768;

/// The engines on offer; their names are those of `--aio`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring.
    IoUring,
    /// Linux AIO. For files opened with O_DIRECT only.
    Native,
    /// A pool of threads that block.
    Threads,
}

impl EngineKind {
    /// All kinds, the best first.
    pub const ALL: [EngineKind; 3] = [EngineKind::IoUring, EngineKind::Native, EngineKind::Threads];
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineKind::IoUring => "io_uring",
            EngineKind::Native => "native",
            EngineKind::Threads => "threads",
        })
    }
}

impl FromStr for EngineKind {
    type Err = io::Error;

    fn from_str(name: &str) -> io::Result<EngineKind> {
        EngineKind::ALL.into_iter().find(|kind| kind.to_string() == name).ok_or_else(|| {
            let what = format!("'{name}' is not an I/O engine: io_uring, native or threads");
            io::Error::new(io::ErrorKind::InvalidInput, what)
        })
    }
}

/// What a look at a backend brought to light.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Ended calls: the op's slot, and a count or negated errno.
    pub(crate) done: Vec<(u32, i32)>,
    /// Tokens of readable descriptors.
    pub(crate) woken: Vec<Token>,
}

#[derive(Debug)]
enum Backend {
    Uring(Uring),
    Aio(Aio),
    Threads(Threads),
    Sim(Sim),
}

/// An I/O engine of one thread. See the crate's documentation.
///
/// Dropping it waits for everything in flight.
#[derive(Debug)]
pub struct IoEngine {
    // Before the slab: nothing may be freed that a backend still works on.
    backend: Backend,
    slab: Slab,
    counters: Counters,
    /// Tells this engine's files from those of others.
    id: u64,
    found: Found,
    started: Instant,
    /// See [`IoEngine::read_aside`].
    reads_aside: bool,
}

impl IoEngine {
    /// An engine for up to `depth` ops at a time.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a depth of 0 or over 32768. Otherwise the kernel's: it does not know this engine, forbids it, or is out of
    /// resources. Which engine to fall back to is for the caller to choose.
    pub fn new(kind: EngineKind, depth: u32) -> io::Result<IoEngine> {
        check_depth(depth)?;
        Ok(IoEngine::with_backend(
            match kind {
                EngineKind::IoUring => Backend::Uring(Uring::new(depth)?),
                EngineKind::Native => Backend::Aio(Aio::new(depth)?),
                EngineKind::Threads => Backend::Threads(Threads::new(depth)?),
            },
            depth,
        ))
    }

    /// From now on no large read is copied from the page cache at once, even if nothing else is in flight: for an owner that has something to do meanwhile,
    /// as a copy has, whose writes can go on.
    pub fn read_aside(&mut self) {
        self.reads_aside = true;
    }

    /// A simulated engine, whose every choice comes from `seed`. It serves [`SimDisk`]s only.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a depth of 0 or over 32768.
    pub fn sim(seed: u64, depth: u32) -> io::Result<IoEngine> {
        check_depth(depth)?;
        Ok(IoEngine::with_backend(Backend::Sim(Sim::new(seed)), depth))
    }

    fn with_backend(backend: Backend, depth: u32) -> IoEngine {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        #[expect(clippy::disallowed_methods, reason = "deadlines of `Wait::Ns`, in real engines")]
        let started = Instant::now();
        IoEngine {
            backend,
            slab: Slab::new(depth),
            counters: Counters::default(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            found: Found::default(),
            started,
            reads_aside: false,
        }
    }

    /// What kind of engine it is: a name of [`EngineKind`], or `sim`.
    pub fn kind_name(&self) -> &'static str {
        match self.backend {
            Backend::Uring(_) => "io_uring",
            Backend::Aio(_) => "native",
            Backend::Threads(_) => "threads",
            Backend::Sim(_) => "sim",
        }
    }

    /// Makes a file known to this engine.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the engine cannot do I/O on such a file without blocking: Linux AIO on a file without O_DIRECT, the
    /// simulator on a real one.
    pub fn open(&mut self, file: HostFile) -> io::Result<FileRef> {
        let unsupported = |what: &str| Err(io::Error::new(io::ErrorKind::Unsupported, what));
        let registered = match &mut self.backend {
            Backend::Uring(uring) => uring.register(file.file().as_raw_fd()),
            Backend::Aio(_) if !file.direct() => {
                return unsupported(
                    "Linux AIO (the native engine) blocks on files that are not opened with O_DIRECT",
                );
            }
            Backend::Sim(_) => return unsupported("the simulated engine opens no real files"),
            Backend::Aio(_) | Backend::Threads(_) => None,
        };
        Ok(FileRef::new(Entry::host(file, self.id, registered)))
    }

    /// Makes a simulated disk known to this engine.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the engine is a real one.
    pub fn open_sim(&mut self, disk: &SimDisk) -> io::Result<FileRef> {
        if !matches!(self.backend, Backend::Sim(_)) {
            let what = "only the simulated engine opens simulated disks";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        Ok(FileRef::new(Entry::sim(disk.clone(), self.id)))
    }

    /// Takes an op in. It may be done at once, but its completion always comes by [`IoEngine::reap`].
    ///
    /// # Errors
    ///
    /// Gives the op back when there is no [`IoEngine::room`]. Everything else is told by the completion.
    ///
    /// # Panics
    ///
    /// If the op's file was opened with another engine.
    // The op is given back by value: a box would cost an allocation on a path that is taken under load.
    #[allow(clippy::result_large_err)]
    #[inline]
    pub fn submit(&mut self, op: Op, token: Token) -> Result<(), Op> {
        if self.slab.room() == 0 {
            return Err(op);
        }
        assert_eq!(op.file.entry().engine, self.id, "an op for a file of another engine");
        let index = self.slab.insert(op, token);
        self.run(index);
        Ok(())
    }

    /// Takes an op's calls as far as they can be made at once, and hands the first that cannot to the backend.
    #[inline]
    fn run(&mut self, index: u32) {
        while let Some(sys) = self.slab.next(index) {
            self.counters.add(sys.kind());
            let alone = self.slab.in_flight() == 1 && !self.reads_aside;
            let entry = self.slab.entry(index);
            let at_once = match &mut self.backend {
                Backend::Uring(_) | Backend::Threads(_) => {
                    // SAFETY: the op's memory is valid while it is in the slab, and nobody else's.
                    let result = unsafe { inline::attempt(entry, &sys, alone) };
                    self.counters.inline += u64::from(result.is_some());
                    self.counters.syscalls += u64::from(result.is_some());
                    result
                }
                Backend::Aio(_) | Backend::Sim(_) => None,
            };
            let result = at_once.or_else(|| self.start(index, &sys));
            let Some(result) = result else { return };
            self.slab.state(index).complete(result);
        }
    }

    /// Hands a call to the backend; gives its result if that cannot take it.
    #[inline]
    fn start(&mut self, index: u32, sys: &SysOp) -> Option<i32> {
        let entry = self.slab.entry(index);
        match &mut self.backend {
            Backend::Uring(uring) => {
                // SAFETY: the slab keeps the op's file and memory until its result was found. It outlives the backend, and is leaked
                // if the backend fails with ops in flight.
                let started = unsafe { uring.start(index, entry, sys, &mut self.counters) };
                // No errno that would mean "try again": it was tried.
                return started.err().map(|_| -libc::EIO);
            }
            // SAFETY: as above.
            Backend::Aio(aio) => unsafe { aio.start(index, entry, sys) },
            // SAFETY: as above.
            Backend::Threads(threads) => unsafe { threads.start(index, entry, sys) },
            Backend::Sim(sim) => sim.start(index, sys, &mut self.slab),
        }
        None
    }

    /// Ops that may be submitted before something must be reaped.
    #[inline]
    pub fn room(&self) -> usize {
        self.slab.room()
    }

    /// Ops that were submitted and not yet reaped.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.slab.in_flight()
    }

    /// Ops that have ended and were not yet reaped. Those that are done inside of [`IoEngine::submit`] count at once.
    #[inline]
    pub fn ended(&self) -> usize {
        self.slab.ready.len()
    }

    /// Hands what was submitted to the kernel, without looking for completions.
    pub fn flush_submissions(&mut self) -> io::Result<()> {
        match &mut self.backend {
            Backend::Uring(uring) => uring.submit(&mut self.counters)?,
            Backend::Aio(aio) => aio.submit(&mut self.counters),
            Backend::Threads(threads) => threads.submit(),
            Backend::Sim(_) => {}
        }
        Ok(())
    }

    /// Hands what was submitted to the kernel, and appends to `out` what has completed and what has woken us. Sleeps up to `wait` if
    /// that is nothing.
    ///
    /// # Errors
    ///
    /// The engine itself failed, not an op: there is no way on but to drop it. `Deadlock` from the simulator means that it was asked
    /// to wait for ever with nothing to wait for.
    pub fn reap(&mut self, out: &mut Reaped, wait: Wait) -> io::Result<()> {
        let before = (out.completions.len(), out.woken.len());
        let started_ns = if matches!(wait, Wait::Ns(_)) { self.now_ns() } else { 0 };
        let mut left = wait;
        loop {
            let sleep = if self.slab.ready.is_empty() { left } else { Wait::No };
            self.look(sleep)?;
            out.completions.append(&mut self.slab.ready);
            out.woken.append(&mut self.found.woken);
            if before != (out.completions.len(), out.woken.len()) {
                return Ok(());
            }
            match wait {
                Wait::No => return Ok(()),
                Wait::Forever => {}
                Wait::Ns(ns) => {
                    let passed_ns = self.now_ns().saturating_sub(started_ns);
                    if passed_ns >= ns {
                        return Ok(());
                    }
                    left = Wait::Ns(ns - passed_ns);
                }
            }
        }
    }

    /// One look at the backend, and on with the ops whose calls have ended.
    fn look(&mut self, wait: Wait) -> io::Result<()> {
        let (found, counters) = (&mut self.found, &mut self.counters);
        match &mut self.backend {
            Backend::Uring(uring) => uring.poll(wait, found, counters),
            Backend::Aio(aio) => aio.poll(wait, found, counters),
            Backend::Threads(threads) => threads.poll(wait, found, counters),
            Backend::Sim(sim) => sim.poll(wait, found, &mut self.slab, counters),
        }?;
        let busy = self.slab.busy();
        let ended = self.found.done.len();
        let mut done = std::mem::take(&mut self.found.done);
        for (index, result) in done.drain(..) {
            self.slab.state(index).complete(result);
            self.run(index);
        }
        self.found.done = done;
        if self.slab.busy() + ended > busy {
            // Some ops go on (a short transfer, a fallback): their callers may poll memory from now on and never come here.
            self.flush_submissions()?;
        }
        Ok(())
    }

    /// Whether [`IoEngine::reap`] would find something, from a look at memory: no system call. Of watched descriptors only the
    /// io_uring engine knows without one.
    #[inline]
    pub fn has_completions(&self) -> bool {
        !self.slab.ready.is_empty()
            || match &self.backend {
                Backend::Uring(uring) => uring.has_completions(),
                Backend::Aio(aio) => aio.has_completions(),
                Backend::Threads(threads) => threads.has_completions(),
                Backend::Sim(sim) => sim.has_completions(),
            }
    }

    /// Has `fd` end sleeps: its token is reaped when it becomes readable. For an eventfd each write counts, and it need not be read;
    /// other descriptors must be read to their end before they report again. A descriptor that is readable now reports at once.
    /// There may be a report too many.
    pub fn watch(&mut self, fd: OwnedFd, token: Token) -> io::Result<WatchId> {
        match &mut self.backend {
            Backend::Uring(uring) => uring.watch(fd, token, &mut self.counters),
            Backend::Aio(aio) => aio.watch(fd, token),
            Backend::Threads(threads) => threads.watch(fd, token),
            Backend::Sim(sim) => sim.watch(fd, token),
        }
    }

    /// Ends a watch and gives the descriptor back; `None` if it was ended before. After this its token is not reaped any more.
    pub fn unwatch(&mut self, id: WatchId) -> Option<OwnedFd> {
        match &mut self.backend {
            Backend::Uring(uring) => uring.unwatch(id, &mut self.counters),
            Backend::Aio(aio) => aio.unwatch(id),
            Backend::Threads(threads) => threads.unwatch(id),
            Backend::Sim(sim) => sim.unwatch(id),
        }
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The simulator's time; `None` for a real engine.
    pub fn virtual_ns(&self) -> Option<u64> {
        match &self.backend {
            Backend::Sim(sim) => Some(sim.now_ns()),
            _ => None,
        }
    }

    fn now_ns(&self) -> u64 {
        let real_ns = || u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.virtual_ns().unwrap_or_else(real_ns)
    }
}

impl Drop for IoEngine {
    fn drop(&mut self) {
        let mut dropped = Reaped::default();
        while self.slab.busy() > 0 {
            if self.reap(&mut dropped, Wait::Forever).is_err() {
                // The kernel may still be at work on these ops: rather lose their memory than have it written to later.
                self.slab.leak();
                return;
            }
            dropped.completions.clear();
            dropped.woken.clear();
        }
    }
}

pub(crate) fn check_depth(depth: u32) -> io::Result<()> {
    if (1..=DEPTH_MAX).contains(&depth) {
        return Ok(());
    }
    let what = format!("an I/O engine of depth {depth}: 1 to {DEPTH_MAX} are possible");
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}
