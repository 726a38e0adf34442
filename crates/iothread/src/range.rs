//! Tracked requests: byte ranges that must not be worked on at the same time.

use crate::context::{IoContext, WaitList};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

#[derive(Debug, Default)]
struct Table {
    held: RefCell<Vec<(u64, Range<u64>)>>,
    next_id: Cell<u64>,
    waiters: WaitList,
}

/// The ranges that are held at the moment, on one I/O thread.
#[derive(Clone, Debug, Default)]
pub struct RangeLocks(Rc<Table>);

/// A held range: others that overlap it wait until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it lets the others in"]
pub struct RangeGuard {
    table: Rc<Table>,
    id: u64,
    context: IoContext,
}

impl RangeLocks {
    /// Whether somebody holds a part of `range`.
    pub fn overlaps(&self, range: &Range<u64>) -> bool {
        let held = self.0.held.borrow();
        held.iter().any(|(_, other)| range.start < other.end && other.start < range.end)
    }

    /// Waits until nobody holds a part of `range`, then holds it.
    pub async fn lock(&self, context: &IoContext, range: Range<u64>) -> RangeGuard {
        while self.overlaps(&range) {
            // Others may have taken it again before this task's turn comes: so look again.
            self.0.waiters.wait(context).await;
        }
        let id = self.0.next_id.get();
        self.0.next_id.set(id + 1);
        self.0.held.borrow_mut().push((id, range));
        RangeGuard { table: self.0.clone(), id, context: context.clone() }
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        self.table.held.borrow_mut().retain(|(id, _)| *id != self.id);
        self.table.waiters.wake_all(&self.context);
    }
}
