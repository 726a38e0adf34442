//! Commits, counted: one at a time, shared by all who wait for one.

use crate::{Error, ErrorKind, Result};
use iothread::{IoContext, RangeLocks, WaitList};
use std::cell::Cell;

/// The commits of one image.
#[derive(Debug, Default)]
pub(crate) struct Commits {
    begun: Cell<u64>,
    ended: Cell<u64>,
    /// The last one that succeeded.
    succeeded: Cell<u64>,
    /// What kind of error the last one that failed had.
    failure: Cell<Option<ErrorKind>>,
    waiters: WaitList,
}

impl Commits {
    /// The number of the last commit begun.
    pub fn begun(&self) -> u64 {
        self.begun.get()
    }

    /// Waits for a commit that begins from now on. Those who ask while one is running share the next, which one of them does: `group`, told its
    /// number, while it holds `exclusive`. `path` is for messages.
    pub async fn share(
        &self,
        context: &IoContext,
        exclusive: &RangeLocks,
        path: &str,
        group: impl AsyncFn(u64) -> Result<()>,
    ) -> Result<()> {
        // One that is under way began too early to cover us.
        let mine = self.begun.get() + 1;
        loop {
            if self.succeeded.get() >= mine {
                return Ok(());
            }
            if self.ended.get() >= mine {
                let what = format!("committing to {path}: it failed for another");
                return Err(Error::new(self.failure.get().unwrap_or(ErrorKind::Io), what));
            }
            if self.begun.get() > self.ended.get() {
                self.waiters.wait(context).await;
                continue;
            }
            let _exclusive = exclusive.lock(context, 0..1).await;
            if self.begun.get() >= mine {
                continue;
            }
            let number = self.begun.get() + 1;
            self.begun.set(number);
            // Boxed, as what waits for it is part of many a request's future.
            let result = Box::pin(group(number)).await;
            self.ended.set(number);
            match &result {
                Ok(()) => self.succeeded.set(number),
                Err(error) => self.failure.set(Some(error.kind())),
            }
            self.waiters.wake_all(context);
            return result;
        }
    }
}
