//! Room for clusters in an image's file: the file grows before it is full, and what was freed is given back to the host.

use crate::pins::Pins;
use crate::space::{Run, Space};
use crate::{Error, ErrorKind, FileOffset, HostNode, Result};
use iothread::RangeLocks;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// The file grows by an eighth, but by so many bytes at least ...
pub(crate) const GROW_MIN: u64 = 16 << 20;
/// ... and at most. What is not used is cut off when the image is closed; it takes no space.
const GROW_MAX: u64 = 1 << 30;
/// Runs that are freed before it is asked again whether the image is being closed.
const RUNS_PER_TURN: usize = 64;

/// The clusters of a file, used and free.
#[derive(Debug)]
pub struct Room {
    pub(crate) space: RefCell<Space>,
    file: Rc<HostNode>,
    cluster_bits: u32,
    /// Largest length that the format can express.
    len_max: u64,
    /// One change of the file's length at a time.
    growing: RangeLocks,
    /// Something may lie behind the last cluster in use.
    has_tail: Cell<bool>,
    /// The file's length was changed.
    grown: Cell<bool>,
    /// It could not be made longer when that was tried last.
    is_limited: Cell<bool>,
    /// What was freed is waited for by one at a time.
    freeing: RangeLocks,
    /// Writes that may have new clusters and are not mapped yet.
    allocating: Cell<u64>,
}

/// A write that may need a table once its data is in the file.
#[derive(Debug)]
#[must_use = "it counts as long as it lives"]
pub struct Allocating<'a>(&'a Cell<u64>);

impl Drop for Allocating<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Room {
    /// Unused space begins at `end`, rounded up to a cluster; the file's length is `file_bytes`.
    pub fn new(
        file: Rc<HostNode>,
        cluster_bits: u32,
        len_max: u64,
        end: u64,
        file_bytes: u64,
    ) -> Room {
        let room = Room {
            space: RefCell::new(Space::new(cluster_bits, end, end)),
            file,
            cluster_bits,
            len_max,
            growing: RangeLocks::default(),
            has_tail: Cell::new(file_bytes != end),
            grown: Cell::new(false),
            is_limited: Cell::new(false),
            freeing: RangeLocks::default(),
            allocating: Cell::new(0),
        };
        if !room.is_zeroed() {
            room.is_limited.set(true);
            room.space.borrow_mut().set_len(file_bytes >> cluster_bits << cluster_bits);
        }
        room
    }

    /// Whether new space reads as zeroes.
    pub fn is_zeroed(&self) -> bool {
        !self.file.file().facts().is_block_device
    }

    /// The file's length was changed.
    pub fn has_grown(&self) -> bool {
        self.grown.get()
    }

    /// A write begins that allocates: to be held until it is mapped.
    pub fn allocating(&self) -> Allocating<'_> {
        self.allocating.set(self.allocating.get() + 1);
        Allocating(&self.allocating)
    }

    /// How many clusters must be available for `clusters` of them to be used for data: others stay for the tables that will map it, and that other
    /// writes need. `kept` tells how many, if there are so many writes. While the file can grow there is no end to them; else what is accepted
    /// must be committed with what is there.
    pub fn needed(&self, clusters: u64, kept: impl FnOnce(u64) -> u64) -> u64 {
        match self.is_limited.get() {
            true => clusters + kept(self.allocating.get().max(1)),
            false => clusters,
        }
    }

    /// The run that `take` finds, the file being made longer until it can: so that `needed` clusters are available. When the file can be no longer, `more`
    /// looks elsewhere for clusters, and tells whether there may be some now.
    ///
    /// `take` must find a run if `needed` clusters lie behind the last one in use. If it did not, this would go on for ever, and never wait.
    pub async fn run(
        &self,
        take: impl Fn() -> Option<u64>,
        needed: impl Fn() -> u64,
        mut more: impl AsyncFnMut() -> Result<bool>,
    ) -> Result<u64> {
        loop {
            if let Some(at) = take() {
                return Ok(at);
            }
            let Err(error) = self.grow(needed()).await else { continue };
            if error.kind() != ErrorKind::NoSpace || !more().await? {
                return Err(error);
            }
        }
    }

    /// Less than half of a step is left of the file's length.
    pub fn needs_growth(&self) -> bool {
        self.is_zeroed() && self.space.borrow().reserve() < GROW_MIN / 2
    }

    /// Makes the file so long that `clusters` more fit.
    pub async fn grow(&self, clusters: u64) -> Result<()> {
        let bytes = clusters << self.cluster_bits;
        let _guard = self.growing.lock(self.file.context(), 0..1).await;
        let (end, len) = (self.space.borrow().end(), self.space.borrow().len());
        if len - end >= bytes {
            return Ok(());
        }
        let full = |what: &str| {
            Error::new(ErrorKind::NoSpace, format!("growing {}: {what}", self.file.path()))
        };
        if !self.is_zeroed() {
            return Err(full("the block device is full"));
        }
        if self.has_tail.get() {
            // Left by a crash, and not zero. Nothing refers to it.
            self.file.truncate(end).await?;
            self.has_tail.set(false);
        }
        self.grown.set(true);
        let cluster = 1 << self.cluster_bits;
        let step = (len / 8).clamp(GROW_MIN, GROW_MAX).max(bytes).next_multiple_of(cluster);
        let longer = len.checked_add(step).filter(|len| *len <= self.len_max);
        let longer = longer.ok_or_else(|| full("a file cannot be longer"))?;
        let longer = match self.file.truncate(longer).await {
            Ok(()) => {
                self.is_limited.set(false);
                longer
            }
            Err(_) => {
                // A limit of the file system or the user: then exactly what is needed.
                self.is_limited.set(true);
                self.file.truncate(end + bytes).await?;
                end + bytes
            }
        };
        self.space.borrow_mut().set_len(longer);
        Ok(())
    }

    /// Makes the file a step longer.
    pub async fn grow_step(&self) -> Result<()> {
        self.grow((GROW_MIN >> self.cluster_bits).max(1)).await
    }

    /// Zeroes what was freed, once nobody reads it any more, and gives it to the allocator. Stops early if `is_closing`.
    pub async fn free_released(&self, pins: &Pins, is_closing: impl Fn() -> bool) -> Result<()> {
        let _guard = self.freeing.lock(self.file.context(), 0..1).await;
        let mut runs = self.space.borrow_mut().take_released();
        pins.fence(self.file.context()).await;
        let mut result = Ok(());
        while let Some(run) = runs.pop() {
            result = self.zero_run(run).await;
            if result.is_err() {
                runs.push(run);
                break;
            }
            self.space.borrow_mut().add_free(run);
            if runs.len().is_multiple_of(RUNS_PER_TURN) && is_closing() {
                break;
            }
        }
        runs.into_iter().for_each(|run| self.space.borrow_mut().put_released(run));
        result
    }

    /// Zeroes what nobody has used since the image was opened, and gives it to the allocator.
    pub(crate) async fn add_unused(&self, run: Run) -> Result<()> {
        self.zero_run(run).await?;
        self.space.borrow_mut().add_free(run);
        Ok(())
    }

    async fn zero_run(&self, run: Run) -> Result<()> {
        let (at, bytes) = (FileOffset(run.at), run.clusters << self.cluster_bits);
        match self.is_zeroed() {
            true => self.file.write_zeroes(at, bytes, true).await,
            false => self.file.discard(at, bytes).await,
        }
    }

    /// Cuts the unused end of the file off. Nothing may be on its way to being free.
    pub async fn cut_off(&self) -> Result<()> {
        if !self.is_zeroed() {
            return Ok(());
        }
        let _guard = self.growing.lock(self.file.context(), 0..1).await;
        let end = self.space.borrow_mut().trim();
        if end < self.file.file_bytes()? {
            self.file.truncate(end).await?;
        }
        self.has_tail.set(false);
        Ok(())
    }
}
