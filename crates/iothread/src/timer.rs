//! Deadlines of sleeping tasks.

use crate::slots::TaskId;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Tasks to be woken at a time, earliest first.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(u64, TaskId)>>,
}

impl Timers {
    pub(crate) fn add(&mut self, at_ns: u64, task: TaskId) {
        self.heap.push(Reverse((at_ns, task)));
    }

    /// Tasks that sleep.
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// When the earliest task is to be woken.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// The next task whose time has come.
    pub(crate) fn pop_due(&mut self, now_ns: u64) -> Option<TaskId> {
        if self.next_ns()? > now_ns {
            return None;
        }
        self.heap.pop().map(|Reverse((_, task))| task)
    }
}
