//! Threads that make blocking system calls for an engine.
//!
//! ```text
//!   owner                      shared                               workers `ferroblk-pool-N`
//!   push ... push, flush ----> jobs (mutex) -----condvar--------->  run the call
//!   collect <----------------- done (mutex), done_count (atomic) <- push the result
//!   prepare_sleep, epoll <---- eventfd, only if the owner sleeps <- look at `sleeping`
//! ```
//!
//! The op stays in its owner's slab; a worker gets a plain description of one call, and gives back its result. The owner, awake,
//! learns of results from `done_count` alone. Before it sleeps it sets `sleeping` and looks once more; a worker adds to `done_count`
//! and then looks at `sleeping`. Both are sequentially consistent, so at least one of the two sees the other.

use crate::sys::{self, SysOp};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// What adds something to an eventfd: 1, or on a big-endian machine 2^56, which takes as long as forever to overflow too.
const WAKE: [u8; 8] = 1u64.to_le_bytes();

/// One call for a worker.
#[derive(Debug)]
struct Job {
    index: u32,
    fd: RawFd,
    op: SysOp,
}

// SAFETY: the only part that is not `Send` anyway are the segments' pointers. By the contract of `Pool::push` the memory behind them
// stays valid until the job's result was collected, and nobody else uses it until then; system calls may use it from any thread.
unsafe impl Send for Job {}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Workers asleep in the condition variable.
    idle: usize,
    stopping: bool,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    done: Mutex<Vec<(u32, i32)>>,
    done_count: AtomicUsize,
    sleeping: AtomicBool,
    wake: OwnedFd,
}

/// The pool of one engine. Its threads are started as they are needed.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    threads_max: usize,
    /// Pushed, but not yet shown to the workers.
    queued: Vec<Job>,
    /// Kept to swap with `Shared::done`, so that neither side allocates.
    collected: Vec<(u32, i32)>,
}

impl Pool {
    /// A pool of up to `threads_max` threads, one of them started at once: so that it fails here if threads cannot be had.
    pub(crate) fn new(threads_max: usize, depth: u32) -> io::Result<Pool> {
        let depth = depth as usize;
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { jobs: VecDeque::with_capacity(depth), ..Queue::default() }),
            work: Condvar::new(),
            done: Mutex::new(Vec::with_capacity(depth)),
            done_count: AtomicUsize::new(0),
            sleeping: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let mut pool = Pool {
            shared,
            threads: Vec::new(),
            threads_max,
            queued: Vec::with_capacity(depth),
            collected: Vec::with_capacity(depth),
        };
        pool.start_thread()?;
        Ok(pool)
    }

    /// Allows more threads.
    pub(crate) fn widen(&mut self, threads_max: usize) {
        self.threads_max = self.threads_max.max(threads_max);
    }

    /// Queues a call. The workers see it after [`Pool::flush`].
    ///
    /// # Safety
    ///
    /// `fd` stays open, and the memory of the op's segments valid and untouched, until the result was collected or the pool dropped.
    pub(crate) unsafe fn push(&mut self, index: u32, fd: RawFd, op: SysOp) {
        self.queued.push(Job { index, fd, op });
    }

    /// Shows the queued calls to the workers: one lock, and one wake-up per call that a sleeping worker is there for.
    pub(crate) fn flush(&mut self) {
        if self.queued.is_empty() {
            return;
        }
        let (waiting, idle) = {
            let mut queue = lock(&self.shared.queue);
            queue.jobs.extend(self.queued.drain(..));
            (queue.jobs.len(), queue.idle)
        };
        for _ in 0..waiting.min(idle) {
            self.shared.work.notify_one();
        }
        let missing = waiting.saturating_sub(idle);
        for _ in 0..missing.min(self.threads_max - self.threads.len()) {
            // There is at least one already; fewer threads than wished for are slower, no more.
            if self.start_thread().is_err() {
                break;
            }
        }
    }

    /// Moves the results that are there to the end of `done`.
    pub(crate) fn collect(&mut self, done: &mut Vec<(u32, i32)>) {
        if !self.has_done() {
            return;
        }
        {
            let mut shared = lock(&self.shared.done);
            std::mem::swap(&mut *shared, &mut self.collected);
            self.shared.done_count.store(0, Ordering::SeqCst);
        }
        done.append(&mut self.collected);
    }

    /// Whether there are results, from a look at memory.
    #[inline]
    pub(crate) fn has_done(&self) -> bool {
        self.shared.done_count.load(Ordering::SeqCst) > 0
    }

    /// To be called before sleeping; `false` if there are results, so that there is no reason to.
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.shared.sleeping.store(true, Ordering::SeqCst);
        !self.has_done()
    }

    /// To be called after sleeping.
    pub(crate) fn end_sleep(&self) {
        self.shared.sleeping.store(false, Ordering::SeqCst);
    }

    /// Signalled (and never read: watch for edges) when results come while the owner sleeps.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }

    fn start_thread(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let name = format!("ferroblk-pool-{}", self.threads.len());
        let builder = std::thread::Builder::new().name(name).stack_size(256 << 10);
        #[expect(clippy::disallowed_methods, reason = "the pool's threads are started here")]
        let handle = with_signals_blocked(|| builder.spawn(move || work(&shared)))?;
        self.threads.push(handle);
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.queue).stopping = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A worker does nothing that panics; if one did, there is nobody to tell here.
            let _ = thread.join();
        }
    }
}

/// A worker's life. It ends when the pool is dropped; calls still queued then are not made.
fn work(shared: &Shared) {
    loop {
        let job = {
            let mut queue = lock(&shared.queue);
            loop {
                if queue.stopping {
                    return;
                }
                if let Some(job) = queue.jobs.pop_front() {
                    break job;
                }
                queue.idle += 1;
                queue = shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        };
        // SAFETY: by the contract of `Pool::push`; dropping the pool waits for this thread.
        let result = unsafe { sys::run(job.fd, &job.op, 0) };
        {
            let mut done = lock(&shared.done);
            done.push((job.index, result));
            shared.done_count.fetch_add(1, Ordering::SeqCst);
        }
        if shared.sleeping.swap(false, Ordering::SeqCst) {
            // Fails only when the counter is full of wake-ups that nobody has slept through yet.
            let _ = rustix::io::write(&shared.wake, &WAKE);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread started in `f` takes no signals: they are for the control thread.
fn with_signals_blocked<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: an all-zero `sigset_t` is a valid value of that C structure.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: fills the one set it is given.
    unsafe { libc::sigfillset(&raw mut all) };
    let mut before = all;
    // SAFETY: both point to signal sets of ours.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
    let result = f();
    // SAFETY: restores the set saved above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    result
}
