//! Slices of tables that are being read: one reader each, for whom others wait.

use iothread::{IoContext, WaitList};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// The slices of one image that are being read.
#[derive(Debug, Default)]
pub(crate) struct Loads {
    under_way: RefCell<BTreeSet<u64>>,
    ended: WaitList,
}

impl Loads {
    /// Gives what `read` does; `None` if somebody else is reading this slice, once that has ended. A second reader could bring back what was there
    /// before the first, when changes since came and went. What is read must be put where it belongs before the next wait.
    pub async fn alone<T>(
        &self,
        context: &IoContext,
        slice: u64,
        read: impl AsyncFnOnce() -> T,
    ) -> Option<T> {
        if !self.under_way.borrow_mut().insert(slice) {
            self.ended.wait(context).await;
            return None;
        }
        // Boxed, as this is part of every request's future, and most find what they need in RAM.
        let result = Box::pin(read()).await;
        self.under_way.borrow_mut().remove(&slice);
        self.ended.wake_all(context);
        Some(result)
    }
}
