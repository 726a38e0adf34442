//! What an image needs done when no request asks for it: one task per image, there only while there is something to do.
//!
//! Nothing that holds a pin waits for this task: its fence waits for pins.

use crate::Result;
use iothread::{IoContext, WaitList};
use std::cell::Cell;
use std::rc::Rc;

/// How long a mapping may stay uncommitted, in nanoseconds: 5 s. A bound on what a power cut can take from a guest that never flushes.
const COMMIT_AFTER_NS: u64 = 5_000_000_000;
/// How long after the last commit an image is tidied up, in nanoseconds: 5 s.
const TIDY_AFTER_NS: u64 = 5_000_000_000;

/// When an image's task has what to do.
#[derive(Debug, Default)]
pub(crate) struct Tending {
    running: Cell<bool>,
    closing: Cell<bool>,
    /// When the oldest uncommitted mapping was made.
    changed_ns: Cell<Option<u64>>,
    /// When the last commit ended.
    committed_ns: Cell<u64>,
    /// After a failure: not again before this time.
    not_before_ns: Cell<u64>,
    wake: WaitList,
    ended: WaitList,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chore {
    /// Freed clusters whose unlinking is durable: they wait for their last readers, are zeroed, and may be used again.
    Free,
    /// The file grows before writers run out of it.
    Grow,
    /// Free clusters are looked for, in formats that list them.
    Find,
    /// Uncommitted mappings are committed.
    Commit,
    /// After the last commit: what can wait is done, and the image is as one that was closed.
    Tidy,
}

/// What an image has to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Nothing is promised any more.
    pub is_sick: bool,
    /// Freed clusters wait.
    pub has_released: bool,
    /// Entries that are not committed.
    pub changes: usize,
    /// They are so many that they should be.
    pub has_many_changes: bool,
    pub needs_growth: bool,
    /// Few free clusters are known, and there may be more.
    pub needs_search: bool,
    pub is_untidy: bool,
}

/// An image with a task in the background.
pub(crate) trait Tended: Sized + 'static {
    fn tending(&self) -> &Tending;
    fn context(&self) -> &IoContext;
    fn state(&self) -> State;
    async fn run_chore(&self, chore: Chore) -> Result<()>;
}

enum Next {
    Do(Chore),
    Sleep(u64),
    Nothing,
}

impl Tending {
    #[inline]
    pub fn changed(&self, context: &IoContext) {
        if self.changed_ns.get().is_none() {
            self.changed_ns.set(Some(context.now_ns()));
        }
    }

    /// The task is to end.
    pub fn end(&self, context: &IoContext) {
        self.closing.set(true);
        self.wake.wake_all(context);
    }

    /// As [`Tending::end`], and waits until it has.
    pub async fn ended(&self, context: &IoContext) {
        self.end(context);
        while self.running.get() {
            self.ended.wait(context).await;
        }
    }

    /// Whether the task is to end.
    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// There is something to do that was not there before.
    pub fn wake(&self, context: &IoContext) {
        self.wake.wake_all(context);
    }

    pub fn committed(&self, now_ns: u64) {
        self.changed_ns.set(None);
        self.committed_ns.set(now_ns);
    }

    fn next(&self, now: u64, state: State) -> Next {
        if now < self.not_before_ns.get() && !state.is_sick {
            return Next::Sleep(self.not_before_ns.get());
        }
        let due = |since: u64, after: u64, chore: Chore| match since + after {
            at if at <= now => Next::Do(chore),
            at => Next::Sleep(at),
        };
        match (state.changes, self.changed_ns.get()) {
            _ if state.is_sick => Next::Nothing,
            _ if state.has_released => Next::Do(Chore::Free),
            _ if state.has_many_changes => Next::Do(Chore::Commit),
            (1.., _) if state.needs_search => Next::Do(Chore::Find),
            (1.., _) if state.needs_growth => Next::Do(Chore::Grow),
            (1.., since) => due(since.unwrap_or(now), COMMIT_AFTER_NS, Chore::Commit),
            (0, _) if state.is_untidy => due(self.committed_ns.get(), TIDY_AFTER_NS, Chore::Tidy),
            (0, _) => Next::Nothing,
        }
    }
}

/// Starts the task, if there is something to do and it is not running; wakes it if there is much to do.
pub(crate) fn start<T: Tended>(image: &Rc<T>) {
    let (tending, context) = (image.tending(), image.context());
    if !tending.running.get() && !tending.closing.get() {
        let image = image.clone();
        tending.running.set(context.spawn_background(async move { run(&*image).await }));
    } else {
        let state = image.state();
        let urgent = state.has_many_changes || state.needs_growth;
        if urgent && context.now_ns() >= tending.not_before_ns.get() {
            tending.wake.wake_all(context);
        }
    }
}

async fn run<T: Tended>(image: &T) {
    let (tending, context) = (image.tending(), image.context());
    while !tending.closing.get() {
        let result = match tending.next(context.now_ns(), image.state()) {
            Next::Nothing => break,
            Next::Sleep(until_ns) => {
                tending.wake.wait_until(context, until_ns).await;
                Ok(())
            }
            Next::Do(chore) => image.run_chore(chore).await,
        };
        if let Err(error) = result {
            let cause = std::error::Error::source(&error);
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            tracing::warn!("{error}{cause}");
            tending.not_before_ns.set(context.now_ns() + COMMIT_AFTER_NS);
        }
    }
    tending.running.set(false);
    tending.ended.wake_all(context);
}
