//! The thread-pool engine: plain blocking calls, each made by one of a few threads. Works on any file, on any kernel.

use crate::engine::Found;
use crate::file::Entry;
use crate::op::{Token, Wait};
use crate::pool::Pool;
use crate::sleep::Sleeper;
use crate::sys::{Counters, SysOp};
use crate::watch::WatchId;
use std::io;
use std::os::fd::OwnedFd;

/// Enough to keep a disk's queue busy, few enough not to fight over the CPUs.
const THREADS_MAX: usize = 16;

#[derive(Debug)]
pub(crate) struct Threads {
    pool: Pool,
    sleeper: Sleeper,
}

impl Threads {
    pub(crate) fn new(depth: u32) -> io::Result<Threads> {
        let pool = Pool::new(THREADS_MAX.min(depth as usize).max(1), depth)?;
        let mut sleeper = Sleeper::new()?;
        sleeper.add_own(pool.wake_fd())?;
        Ok(Threads { pool, sleeper })
    }

    /// Queues an op's next call.
    ///
    /// # Safety
    ///
    /// The memory of the op's segments and the file behind `entry` stay as they are until the result of `index` has been found,
    /// or this is dropped.
    pub(crate) unsafe fn start(&mut self, index: u32, entry: &Entry, op: &SysOp) {
        // SAFETY: passed on from the caller.
        unsafe { self.pool.push(index, entry.raw_fd(), *op) };
    }

    pub(crate) fn submit(&mut self) {
        self.pool.flush();
    }

    pub(crate) fn poll(
        &mut self,
        wait: Wait,
        found: &mut Found,
        counters: &mut Counters,
    ) -> io::Result<()> {
        self.pool.flush();
        self.pool.collect(&mut found.done);
        if wait == Wait::No || !found.done.is_empty() {
            return self.sleeper.glance(!found.done.is_empty(), &mut found.woken, counters);
        }
        let wait = if self.pool.prepare_sleep() { wait } else { Wait::No };
        let slept = self.sleeper.sleep(wait, &mut found.woken, counters);
        self.pool.end_sleep();
        self.pool.collect(&mut found.done);
        slept
    }

    pub(crate) fn has_completions(&self) -> bool {
        self.pool.has_done()
    }

    pub(crate) fn watch(&mut self, fd: OwnedFd, token: Token) -> io::Result<WatchId> {
        self.sleeper.watch(fd, token)
    }

    pub(crate) fn unwatch(&mut self, id: WatchId) -> Option<OwnedFd> {
        self.sleeper.unwatch(id)
    }
}
