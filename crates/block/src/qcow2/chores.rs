//! The image's chores in the background, and its end.

use super::Qcow2;
use crate::filters::Event;
use crate::space::Run;
use crate::tend::{Chore, State, Tended, Tending};
use crate::used::UsedMap;
use crate::{Error, ErrorKind, FileOffset, Result};
use iothread::IoContext;
use std::cell::{Cell, RefCell};
use std::ops::Range;

/// Slices of counts that one turn of the search reads.
const SLICES_PER_TURN: usize = 64;
/// So many runs of free clusters are enough.
const FREE_RUNS: usize = 64;

/// The search for clusters that were free when the image was opened. It reads the counts from the file's start on, as far as there is need for
/// space.
#[derive(Debug)]
pub(super) struct Search {
    /// The first cluster not looked at, and where to stop.
    next: Cell<u64>,
    end: u64,
    /// Clusters beyond `next` that became free meanwhile: known without a search.
    known: RefCell<UsedMap>,
}

impl Search {
    /// Looks at the clusters before `end`.
    pub fn new(end: u64) -> Search {
        Search { next: Cell::new(0), end, known: RefCell::default() }
    }

    fn note(&self, clusters: Range<u64>) {
        for cluster in clusters.start.max(self.next.get())..clusters.end.min(self.end) {
            self.known.borrow_mut().mark(cluster);
        }
    }
}

impl Tended for Qcow2 {
    fn tending(&self) -> &Tending {
        &self.tending
    }

    fn context(&self) -> &IoContext {
        &self.context
    }

    fn state(&self) -> State {
        let (space, counts) = (self.room.space.borrow(), self.counts.borrow());
        State {
            is_sick: self.options.health.is_poisoned(),
            has_released: space.has_released() || counts.has_freed(),
            changes: self.tables.borrow().slices.changes(),
            has_many_changes: self.has_changes(1),
            needs_growth: self.room.needs_growth(),
            needs_search: self.search.next.get() < self.search.end && space.free_runs() < FREE_RUNS,
            is_untidy: counts.has_changes(),
        }
    }

    async fn run_chore(&self, chore: Chore) -> Result<()> {
        let result = match chore {
            Chore::Free => self.free_unused().await,
            Chore::Find => self.find_free().await,
            Chore::Grow => self.room.grow_step().await,
            Chore::Commit => self.commit_shared().await,
            Chore::Tidy => self.write_counts().await,
        };
        self.or_mark_corrupt(result).await
    }
}

impl Qcow2 {
    /// Clusters of which no durable reference is left: to be punched once nobody reads them.
    pub(super) fn freed(&self, run: Run) {
        let bits = self.layout.cluster_bits;
        let clusters = run.at >> bits..(run.at >> bits) + run.clusters;
        self.search.note(clusters.clone());
        self.end_packing(&clusters);
        for cluster in clusters {
            self.metadata.borrow_mut().clear(cluster);
        }
        self.room.space.borrow_mut().put_released(run);
    }

    /// Counts down what was let go, and makes what is free usable.
    pub(super) async fn free_unused(&self) -> Result<()> {
        {
            let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
            self.apply_counts().await?;
        }
        self.room.free_released(&self.pins, || self.tending.is_closing()).await
    }

    /// Looks at some more counts for free clusters.
    async fn find_free(&self) -> Result<()> {
        // Counts change only with this lock held.
        let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
        let found = self.search_on().await?;
        self.add_found(found).await
    }

    /// Looks for free clusters until there are some; `false` if there are no more.
    pub(super) async fn find_more(&self) -> Result<bool> {
        let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
        self.find_more_exclusively().await
    }

    /// As [`Qcow2::find_more`], for who holds `exclusive`.
    pub(super) async fn find_more_exclusively(&self) -> Result<bool> {
        while self.search.next.get() < self.search.end {
            let found = self.search_on().await?;
            if !found.is_empty() {
                self.add_found(found).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes free clusters usable. Nobody reads them: they were free when the image was opened.
    async fn add_found(&self, found: Vec<Run>) -> Result<()> {
        let bits = self.layout.cluster_bits;
        for run in found {
            let clusters = run.at >> bits..(run.at >> bits) + run.clusters;
            if self.metadata.borrow().any(clusters) {
                let path = self.file.path();
                let what =
                    format!("{path}: clusters at {:#x} are in use, and counted as free", run.at);
                return Err(Error::new(ErrorKind::Corrupt, what));
            }
            self.room.add_unused(run).await?;
        }
        Ok(())
    }

    async fn search_on(&self) -> Result<Vec<Run>> {
        let bits = self.layout.cluster_bits;
        let mut runs: Vec<Run> = Vec::new();
        for _ in 0..SLICES_PER_TURN {
            let first = self.search.next.get();
            if first >= self.search.end {
                break;
            }
            let (at, clusters) = self.counts.borrow().slice_around(first);
            let in_ram = self.counts.borrow().slice_in_ram(first);
            let bytes = match (in_ram, at) {
                (Some(bytes), _) => Some(bytes),
                (None, None) => None,
                (None, Some(at)) => {
                    let mut bytes = vec![0; self.counts.borrow().slice_len()];
                    self.file.read_to(FileOffset(at), &mut bytes).await?;
                    Some(bytes)
                }
            };
            let known = self.search.known.borrow();
            for cluster in first..clusters.end.min(self.search.end) {
                let count = bytes.as_ref().map_or(0, |bytes| {
                    self.counts.borrow().count_in(bytes, cluster - clusters.start)
                });
                if count != 0 || known.contains(cluster) {
                    continue;
                }
                match runs.last_mut() {
                    Some(run) if (run.at >> bits) + run.clusters == cluster => run.clusters += 1,
                    _ => runs.push(Run { at: cluster << bits, clusters: 1 }),
                }
            }
            self.search.next.set(clusters.end);
        }
        Ok(runs)
    }

    /// Writes the counts that no commit had to write.
    pub(super) async fn write_counts(&self) -> Result<()> {
        let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
        self.write_counts_alone().await
    }

    /// As [`Qcow2::write_counts`], for who has the image alone.
    pub(super) async fn write_counts_alone(&self) -> Result<()> {
        let mut pieces = Vec::new();
        let links_blocks = self.count_pieces(&mut pieces).await?;
        self.file.event(Event::RefblockUpdate);
        self.file.write_pieces(pieces).await?;
        self.counts.borrow_mut().written();
        if links_blocks { self.link_blocks().await } else { self.sync().await }
    }

    fn is_unsettled(&self) -> bool {
        let counts = self.counts.borrow();
        counts.has_changes() || counts.has_freed() || self.room.space.borrow().has_released()
    }

    /// Everything is committed, and what was let go is durably counted down, punched and cut off. No request may be under way.
    pub(super) async fn settle(&self) -> Result<()> {
        self.commit_shared().await?;
        loop {
            // What the last commit let go is gone: it has ended, and nothing came after it.
            self.counts.borrow_mut().committed(self.commits.begun() + 1);
            if !self.is_unsettled() {
                break;
            }
            self.free_unused().await?;
            if self.counts.borrow().has_changes() {
                self.write_counts().await?;
            }
        }
        self.room.cut_off().await
    }

    /// Ends the use of the image: everything is committed, and unused length is cut off. No request may be under way.
    ///
    /// # Errors
    ///
    /// The host's. The image is as consistent as after a crash then.
    pub async fn close(&self) -> Result<()> {
        self.tending.ended(&self.context).await;
        if self.options.read_only || self.options.health.is_poisoned() {
            return Ok(());
        }
        Box::pin(self.end_bitmaps()).await?;
        let untouched = self.commits.begun() == 0
            && self.tables.borrow().slices.changes() == 0
            && !self.counts.borrow().has_changes()
            && !self.counts.borrow().has_quarantine()
            && !self.room.has_grown();
        if untouched {
            return self.sync().await;
        }
        self.settle().await
    }
}
