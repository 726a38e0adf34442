//! The simulated engine: virtual files on virtual time, all from one seed.
//!
//! ```text
//!   start(op) -> SimDisk: issued ... the RNG chooses when ... completed -> result
//!                  |                                             |
//!                  `- faults, short transfers decided            `- takes effect in the volatile cache
//!   a flush makes durable what had completed before it was issued; FUA what it wrote; a crash picks from the rest
//! ```
//!
//! Time is a number of nanoseconds that moves when somebody waits, and a little with each look. The order of completions is the
//! RNG's. Nothing here reads a clock or starts a thread; real descriptors may still be watched, so that code above that waits for
//! an eventfd runs unchanged. The same seed and the same calls give the same run.
//!
//! What the disk may do, and what a crash may leave: [`SimDisk`].

mod content;
mod crash;
mod disk;
mod fault;
mod image;

pub use crash::{Atom, CrashPick, Remains};
pub use disk::{Change, LogEvent, SimDisk, SimOptions, Unwritten};
pub use fault::{Fault, FaultAction, Rates};

use crate::engine::Found;
use crate::file::Backing;
use crate::op::{Token, Wait};
use crate::rng::Rng;
use crate::slab::Slab;
use crate::sleep::Sleeper;
use crate::sys::{Counters, SysOp, TRANSFER_MAX};
use crate::watch::WatchId;
use std::io;
use std::os::fd::OwnedFd;

/// How far one look without waiting moves the time.
const LOOK_NS: u64 = 1000;

/// A call that was issued and has not completed.
#[derive(Debug)]
struct Flying {
    due_ns: u64,
    index: u32,
    disk: SimDisk,
    id: u64,
}

#[derive(Debug)]
pub(crate) struct Sim {
    rng: Rng,
    now_ns: u64,
    flying: Vec<Flying>,
    /// Only once something is watched: a simulation without descriptors makes no system call.
    sleeper: Option<Sleeper>,
}

impl Sim {
    pub(crate) fn new(seed: u64) -> Sim {
        Sim { rng: Rng::new(seed), now_ns: 0, flying: Vec::new(), sleeper: None }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Issues an op's next call.
    pub(crate) fn start(&mut self, index: u32, op: &SysOp, slab: &mut Slab) {
        let Backing::Sim(disk) = &slab.entry(index).backing else {
            unreachable!("a simulated engine opens simulated disks only");
        };
        let disk = disk.clone();
        let state = slab.state(index);
        let aligned = disk.facts().mem_align <= 1 || state.is_aligned_to(disk.facts().mem_align);
        let change = match *op {
            SysOp::Preadv { at, .. } => {
                Change::Read { at, len: state.left().min(TRANSFER_MAX as u64) }
            }
            SysOp::Pwritev { at, dsync, .. } => {
                Change::Write { at, data: state.copy_out(TRANSFER_MAX).into(), dsync }
            }
            SysOp::Fdatasync => Change::Flush,
            SysOp::Fallocate { mode, at, len } => Change::Fallocate { mode, at, len },
            SysOp::Ftruncate { len } => Change::Truncate { len },
        };
        let id = disk.issue(change, aligned, &mut self.rng);
        let due_ns = self.now_ns + self.delay_ns();
        self.flying.push(Flying { due_ns, index, disk, id });
    }

    /// From 1 us to 16 ms, short ones being likelier; now and then one that everything else overtakes.
    fn delay_ns(&mut self) -> u64 {
        let bits = self.rng.below(15);
        let delay_us = 1 + self.rng.below(1 << bits);
        let late = if self.rng.below(64) == 0 { 100 } else { 1 };
        delay_us * late * 1000
    }

    pub(crate) fn poll(
        &mut self,
        wait: Wait,
        found: &mut Found,
        slab: &mut Slab,
        counters: &mut Counters,
    ) -> io::Result<()> {
        let watching = self.sleeper.as_ref().is_some_and(|s| !s.watches_nothing());
        if let Some(sleeper) = self.sleeper.as_mut().filter(|_| watching) {
            // With nothing in flight, only a descriptor can end the wait: then it is a real one.
            let wait = match wait {
                Wait::Forever if self.flying.is_empty() => Wait::Forever,
                _ => Wait::No,
            };
            sleeper.sleep(wait, &mut found.woken, counters)?;
        }
        let next_ns = self.flying.iter().map(|f| f.due_ns).min();
        match wait {
            _ if !found.woken.is_empty() => {}
            Wait::No => self.now_ns += LOOK_NS,
            Wait::Ns(ns) => {
                let until_ns = self.now_ns.saturating_add(ns);
                self.now_ns = next_ns.unwrap_or(until_ns).clamp(self.now_ns, until_ns);
            }
            Wait::Forever => match next_ns {
                Some(next_ns) => self.now_ns = self.now_ns.max(next_ns),
                None if watching => {}
                None => {
                    let what =
                        "simulation: waits for ever, with nothing in flight and nothing watched";
                    return Err(io::Error::new(io::ErrorKind::Deadlock, what));
                }
            },
        }
        self.land(found, slab);
        Ok(())
    }

    /// Completes what is due, in the order of its time.
    fn land(&mut self, found: &mut Found, slab: &mut Slab) {
        loop {
            let due = self.flying.iter().enumerate().filter(|(_, f)| f.due_ns <= self.now_ns);
            let Some((at, _)) = due.min_by_key(|(_, f)| f.due_ns) else { return };
            let Flying { index, disk, id, .. } = self.flying.remove(at);
            let (result, data) = disk.complete(id);
            slab.state(index).copy_in(&data);
            found.done.push((index, result));
        }
    }

    pub(crate) fn has_completions(&self) -> bool {
        self.flying.iter().any(|f| f.due_ns <= self.now_ns)
    }

    pub(crate) fn watch(&mut self, fd: OwnedFd, token: Token) -> io::Result<WatchId> {
        if self.sleeper.is_none() {
            self.sleeper = Some(Sleeper::new()?);
        }
        self.sleeper.as_mut().expect("made above").watch(fd, token)
    }

    pub(crate) fn unwatch(&mut self, id: WatchId) -> Option<OwnedFd> {
        self.sleeper.as_mut()?.unwatch(id)
    }
}
