//! What an image needs done when no request asks for it: one task per image, there only while there is something to do.
//!
//! - uncommitted mappings are committed after [`COMMIT_AFTER_NS`], or when there are many: a bound on what a power cut can take from a guest
//!   that never flushes;
//! - freed clusters whose unlinking is durable wait for their last readers (a fence), are zeroed, and may be used again;
//! - the file grows before writers run out of it;
//! - NEED_CHECK goes after [`CLEAN_AFTER_NS`] without a commit.
//!
//! Nothing that holds a pin waits for this task: its fence waits for pins.

use super::Qed;
use super::space::Run;
use crate::mapped::Mapping;
use crate::{FileOffset, Result};
use iothread::{IoContext, WaitList};
use std::cell::Cell;
use std::rc::Rc;

/// How long a mapping may stay uncommitted, in nanoseconds: 5 s.
const COMMIT_AFTER_NS: u64 = 5_000_000_000;
/// How long after the last commit the image is marked clean, in nanoseconds: 5 s.
const CLEAN_AFTER_NS: u64 = 5_000_000_000;
/// Clusters that are freed in one turn, so that the task looks up in between.
const RUNS_PER_TURN: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Tending {
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

    /// There is something to do that was not there before.
    pub fn wake(&self, context: &IoContext) {
        self.wake.wake_all(context);
    }

    pub fn committed(&self, now_ns: u64) {
        self.changed_ns.set(None);
        self.committed_ns.set(now_ns);
    }
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
enum Chore {
    Free,
    Grow,
    Commit,
    Clean,
    Sleep(u64),
    Nothing,
}

impl Qed {
    /// Starts the task, if there is something to do and it is not running; wakes it if there is much to do.
    pub(super) fn start_tending(self: &Rc<Self>) {
        let tending = &self.tending;
        if !tending.running.get() && !tending.closing.get() {
            let qed = self.clone();
            tending.running.set(self.context.spawn_background(async move { qed.run().await }));
        } else if self.is_urgent() {
            tending.wake.wake_all(&self.context);
        }
    }

    fn is_urgent(&self) -> bool {
        (self.has_changes(1) || self.needs_growth())
            && self.context.now_ns() >= self.tending.not_before_ns.get()
    }

    /// Less than half of a step is left of the file's length.
    fn needs_growth(&self) -> bool {
        self.is_zeroed() && self.space.borrow().reserve() < super::GROW_MIN / 2
    }

    async fn run(self: Rc<Self>) {
        while !self.tending.closing.get() {
            let result = match self.next_chore() {
                Chore::Nothing => break,
                Chore::Sleep(until_ns) => {
                    self.tending.wake.wait_until(&self.context, until_ns).await;
                    Ok(())
                }
                Chore::Free => self.free_released().await,
                Chore::Grow => self.grow((super::GROW_MIN >> self.cluster_bits()).max(1)).await,
                Chore::Commit => self.commit_shared().await,
                Chore::Clean => self.mark_clean().await,
            };
            if let Err(error) = result {
                let cause = std::error::Error::source(&error);
                let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
                tracing::warn!("{error}{cause}");
                self.tending.not_before_ns.set(self.context.now_ns() + COMMIT_AFTER_NS);
            }
        }
        self.tending.running.set(false);
        self.tending.ended.wake_all(&self.context);
    }

    fn next_chore(&self) -> Chore {
        let now = self.context.now_ns();
        let tending = &self.tending;
        let sick = self.options.health.is_poisoned();
        if now < tending.not_before_ns.get() && !sick {
            return Chore::Sleep(tending.not_before_ns.get());
        }
        let changes = self.tables.borrow().changes();
        let marked = self.header.borrow().needs_check();
        let due = |since: u64, after: u64, chore: Chore| match since + after {
            at if at <= now => chore,
            at => Chore::Sleep(at),
        };
        match (changes, tending.changed_ns.get()) {
            _ if sick => Chore::Nothing,
            _ if self.space.borrow().has_released() => Chore::Free,
            _ if self.has_changes(1) => Chore::Commit,
            (1.., _) if self.needs_growth() => Chore::Grow,
            (1.., since) => due(since.unwrap_or(now), COMMIT_AFTER_NS, Chore::Commit),
            (0, _) if marked => due(tending.committed_ns.get(), CLEAN_AFTER_NS, Chore::Clean),
            (0, _) => Chore::Nothing,
        }
    }

    /// Zeroes what was freed, and gives it to the allocator.
    pub(super) async fn free_released(&self) -> Result<()> {
        let mut runs = self.space.borrow_mut().take_released();
        self.pins.fence(&self.context).await;
        while let Some(run) = runs.pop() {
            if let Err(error) = self.zero_run(run).await {
                self.space.borrow_mut().put_released(run);
                runs.into_iter().for_each(|run| self.space.borrow_mut().put_released(run));
                return Err(error);
            }
            self.space.borrow_mut().add_free(run);
            if runs.len().is_multiple_of(RUNS_PER_TURN) && self.tending.closing.get() {
                break;
            }
        }
        runs.into_iter().for_each(|run| self.space.borrow_mut().put_released(run));
        Ok(())
    }

    async fn zero_run(&self, run: Run) -> Result<()> {
        let (at, bytes) = (FileOffset(run.at), run.clusters << self.cluster_bits());
        match self.is_zeroed() {
            true => self.file.write_zeroes(at, bytes, true).await,
            false => self.file.discard(at, bytes).await,
        }
    }

    /// The image needs no check any more.
    pub(super) async fn mark_clean(&self) -> Result<()> {
        let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
        if self.tables.borrow().changes() > 0 || !self.header.borrow().needs_check() {
            return Ok(());
        }
        self.sync().await?;
        let header = self.header.borrow().marked(false);
        self.write_header(header).await?;
        self.sync().await
    }

    /// Ends the use of the image: everything is committed, unused length is cut off, and the image is marked clean. No request may be under way.
    ///
    /// # Errors
    ///
    /// The host's. The image is as consistent as after a crash then.
    pub async fn close(&self) -> Result<()> {
        self.tending.end(&self.context);
        while self.tending.running.get() {
            self.tending.ended.wait(&self.context).await;
        }
        let untouched =
            self.commits.begun() == 0 && self.tables.borrow().changes() == 0 && !self.grown.get();
        if self.options.read_only || self.options.health.is_poisoned() {
            return Ok(());
        }
        if untouched {
            return self.sync().await;
        }
        self.commit_shared().await?;
        while self.space.borrow().has_released() {
            self.free_released().await?;
        }
        if self.is_zeroed() && !self.has_tail.get() {
            let before = self.space.borrow().len();
            let end = self.space.borrow_mut().trim();
            if end < before {
                self.file.truncate(end).await?;
            }
        }
        self.mark_clean().await
    }
}
