//! The image's chores in the background, and its end.

use super::Qed;
use crate::Result;
use crate::tend::{Chore, State, Tended, Tending};
use iothread::IoContext;

impl Tended for Qed {
    fn tending(&self) -> &Tending {
        &self.tending
    }

    fn context(&self) -> &IoContext {
        &self.context
    }

    fn state(&self) -> State {
        State {
            is_sick: self.options.health.is_poisoned(),
            has_released: self.room.space.borrow().has_released(),
            changes: self.tables.borrow().slices.changes(),
            has_many_changes: self.has_changes(1),
            needs_growth: self.room.needs_growth(),
            needs_search: false,
            is_untidy: self.header.borrow().needs_check(),
        }
    }

    async fn run_chore(&self, chore: Chore) -> Result<()> {
        match chore {
            Chore::Free => self.free_released().await,
            Chore::Grow => self.room.grow_step().await,
            // Who opened the image has read all tables.
            Chore::Find => Ok(()),
            Chore::Commit => self.commit_shared().await,
            Chore::Tidy => self.mark_clean().await,
        }
    }
}

impl Qed {
    pub(super) async fn free_released(&self) -> Result<()> {
        self.room.free_released(&self.pins, || self.tending.is_closing()).await
    }

    /// Zeroes what was freed, and cuts off what is unused at the file's end.
    pub(super) async fn give_space_back(&self) -> Result<()> {
        while self.room.space.borrow().has_released() {
            self.free_released().await?;
        }
        self.room.cut_off().await?;
        let end = self.room.space.borrow().end();
        self.tables.borrow_mut().set_end(end);
        Ok(())
    }

    /// The image needs no check any more.
    pub(super) async fn mark_clean(&self) -> Result<()> {
        let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
        if self.tables.borrow().slices.changes() > 0 || !self.header.borrow().needs_check() {
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
        self.tending.ended(&self.context).await;
        let untouched = self.commits.begun() == 0
            && self.tables.borrow().slices.changes() == 0
            && !self.room.has_grown();
        if self.options.read_only || self.options.health.is_poisoned() {
            return Ok(());
        }
        if untouched {
            return self.sync().await;
        }
        self.commit_shared().await?;
        self.give_space_back().await?;
        self.mark_clean().await
    }
}
