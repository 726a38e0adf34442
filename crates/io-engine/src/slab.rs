//! The op slab: owns file and buffer of each op until the kernel is done with both.
//!
//! Allocated once, for `depth` ops. A slot's index is what travels through the kernel and back.

use crate::file::Entry;
use crate::op::{Completion, Op, Token};
use crate::state::{OpState, Step};
use crate::sys::SysOp;

#[derive(Debug)]
struct Slot {
    token: Token,
    state: OpState,
}

/// All ops of one engine: in flight, and done but not yet reaped.
#[derive(Debug)]
pub(crate) struct Slab {
    /// Never grows: what points to a slot's state keeps pointing to it.
    slots: Box<[Option<Slot>]>,
    free: Vec<u32>,
    /// Done, in the order they ended; the next reap takes them.
    pub(crate) ready: Vec<Completion>,
}

impl Slab {
    pub(crate) fn new(depth: u32) -> Slab {
        Slab {
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            ready: Vec::with_capacity(depth as usize),
        }
    }

    /// Ops that may be inserted before something is reaped.
    pub(crate) fn room(&self) -> usize {
        self.free.len().saturating_sub(self.ready.len())
    }

    /// Ops that are not done.
    pub(crate) fn busy(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Ops that were not reaped: not done, or done since the last reap.
    pub(crate) fn in_flight(&self) -> usize {
        self.busy() + self.ready.len()
    }

    /// Takes an op in; there must be room.
    #[inline]
    pub(crate) fn insert(&mut self, op: Op, token: Token) -> u32 {
        let index = self.free.pop().expect("the caller looked for room");
        self.slots[index as usize] = Some(Slot { token, state: OpState::new(op) });
        index
    }

    /// The op's next call; or, when it is done, moves it to `ready` and gives `None`.
    #[inline]
    pub(crate) fn next(&mut self, index: u32) -> Option<SysOp> {
        match self.state(index).next() {
            Step::Run(sys) => Some(sys),
            Step::Done(result) => {
                let slot = self.slots[index as usize].take().expect("looked at above");
                self.free.push(index);
                let Slot { token, state } = slot;
                self.ready.push(Completion { token, result, buf: state.into_buf() });
                None
            }
        }
    }

    /// The op in a slot. Only engines call this, with indices they were given.
    #[inline]
    pub(crate) fn state(&mut self, index: u32) -> &mut OpState {
        let slot = self.slots[index as usize].as_mut();
        &mut slot.expect("an index is in use until its op is done").state
    }

    #[inline]
    pub(crate) fn entry(&self, index: u32) -> &Entry {
        let slot = self.slots[index as usize].as_ref();
        slot.expect("an index is in use until its op is done").state.entry()
    }

    /// Gives up on ops that the kernel may still be working on: their memory is never freed.
    pub(crate) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.slots));
        self.free.clear();
    }
}
