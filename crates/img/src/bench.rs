//! `bench`: many requests of one kind to an image, and how long they took.
//!
//! ```text
//!   offset      offset + step      offset + 2 steps  ...   round to the start behind the end of the disk
//!   |== buffer ==|   |== buffer ==|
//!   `depth` of them under way; after every `flush_interval` a flush, before which (unless told not to) all that were started have ended
//! ```
//!
//! Requests need not be whole sectors. Of one that is not, the sectors around are read; and written, one such request at a time in each place.

use crate::pool::Pool;
use crate::{Code, Failure, ImageArgs, Session};
use block::{BlockNode, DiskOffset, Error, ErrorKind, Result, SECTOR};
use guest_mem::IoVecs;
use io_engine::EngineKind;
use iothread::{IoContext, RangeLocks, WaitList};
use std::cell::{Cell, RefCell};
use std::io::Write;
use std::rc::Rc;

/// Requests under way at most, whatever is asked for: each is a task and has a buffer.
const DEPTH_MAX: u64 = 4096;
/// Bytes of all buffers at most.
const BUFFER_BYTES_MAX: u64 = 4 << 30;
/// Buffers begin at whole pages.
const PAGE: u64 = 4096;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Of which image.
    pub image: ImageArgs,
    /// The engine; `None`: what there is.
    pub engine: Option<EngineKind>,
    /// How many requests.
    pub count: u64,
    /// How many at the same time.
    pub depth: u64,
    /// Where the first is, in bytes.
    pub offset: u64,
    /// Bytes of a request.
    pub buffer_bytes: u64,
    /// From one to the next; `None`: as long as a request.
    pub step: Option<u64>,
    /// They write.
    pub is_write: bool,
    /// This byte.
    pub pattern: u8,
    /// A flush after so many; 0: none.
    pub flush_interval: u64,
    /// A flush waits for nothing.
    pub no_drain: bool,
}

/// A benchmark under way.
struct Bench {
    context: IoContext,
    node: Rc<BlockNode>,
    pool: Pool,
    options: BenchOptions,
    step: u64,
    disk_bytes: u64,
    /// All are whole sectors: what a buffer is filled with stays there.
    are_all_even: bool,
    /// Where the next request goes, and how many were started.
    next: Cell<u64>,
    started: Cell<u64>,
    in_flight: Cell<u64>,
    /// Somebody flushes, or waits to.
    is_flushing: Cell<bool>,
    changed: WaitList,
    /// Requests that write a part of a sector.
    uneven: RangeLocks,
    running: Cell<u64>,
    failure: RefCell<Option<Error>>,
}

/// Runs it.
pub fn run(options: &BenchOptions, out: &mut dyn Write) -> std::result::Result<Code, Failure> {
    options.check()?;
    let depth = options.depth.min(options.count).min(DEPTH_MAX);
    // Room for the sectors around, wherever it begins.
    let buffer = options.buffer_bytes.next_multiple_of(SECTOR) + SECTOR;
    let buffer = buffer.next_multiple_of(PAGE);
    if buffer * depth > BUFFER_BYTES_MAX {
        return Err(Failure::new("bench: the buffers would need more than 4 GiB"));
    }
    let image = match options.is_write {
        true => options.image.open_to_write()?,
        false => options.image.open()?,
    };
    let session = Session::with(options.engine, u32::try_from(depth).expect("at most 4096"))?;
    let node = session.attach(&image)?;
    let step = options.step.unwrap_or(options.buffer_bytes);
    options.announce(step, out)?;
    let bench = Rc::new(Bench {
        context: session.context().clone(),
        node: node.clone(),
        pool: Pool::new(depth, buffer)?,
        options: options.clone(),
        step,
        disk_bytes: image.disk_bytes(),
        are_all_even: [options.offset, options.buffer_bytes, step]
            .iter()
            .all(|bytes| bytes.is_multiple_of(SECTOR)),
        next: Cell::new(options.offset),
        started: Cell::new(0),
        in_flight: Cell::new(0),
        is_flushing: Cell::new(false),
        changed: WaitList::default(),
        uneven: RangeLocks::default(),
        running: Cell::new(depth),
        failure: RefCell::new(None),
    });
    let ended = session.run(async move { bench.run_all(depth).await });
    let closed = session.close(&node);
    let elapsed_ns = ended?;
    closed?;
    if options.is_write {
        image.sync()?;
    }
    let (seconds, milliseconds) = (elapsed_ns / 1_000_000_000, elapsed_ns / 1_000_000 % 1000);
    writeln!(out, "Run completed in {seconds}.{milliseconds:03} seconds.")?;
    Ok(0)
}

impl BenchOptions {
    fn check(&self) -> std::result::Result<(), Failure> {
        let refuse = |why: &str| Err(Failure::new(format!("bench: {why}")));
        if !self.is_write && self.flush_interval > 0 {
            return refuse("--flush-interval goes with -w only");
        }
        if self.flush_interval > 0 && self.flush_interval < self.depth {
            return refuse("--flush-interval is not smaller than the depth (-d)");
        }
        if self.engine == Some(EngineKind::Native) && !self.image.cache.is_direct() {
            return refuse(
                "the engine native needs a cache mode without the host's page cache: -t none",
            );
        }
        Ok(())
    }

    fn announce(&self, step: u64, out: &mut dyn Write) -> std::result::Result<(), Failure> {
        let BenchOptions { count, buffer_bytes, depth, offset, .. } = self;
        let kind = if self.is_write { "write" } else { "read" };
        writeln!(
            out,
            "Sending {count} {kind} requests, {buffer_bytes} bytes each, {depth} in parallel \
             (starting at offset {offset}, step size {step})"
        )?;
        if self.flush_interval > 0 {
            writeln!(out, "Sending flush every {} requests", self.flush_interval)?;
        }
        Ok(out.flush()?)
    }
}

impl Bench {
    /// All requests; how long they took, in nanoseconds.
    async fn run_all(self: Rc<Bench>, depth: u64) -> Result<u64> {
        let started_ns = self.context.now_ns();
        for worker in 0..depth {
            let of_worker = self.clone();
            self.context.spawn_queued(async move { of_worker.work(worker).await });
        }
        while self.running.get() > 0 {
            self.changed.wait(&self.context).await;
        }
        let elapsed_ns = self.context.now_ns() - started_ns;
        self.failure.take().map_or(Ok(elapsed_ns), Err)
    }

    async fn work(&self, worker: u64) {
        // Boxed, as a task's slot is small.
        if let Err(error) = Box::pin(self.send(worker)).await {
            self.failure.borrow_mut().get_or_insert(error);
        }
        self.running.set(self.running.get() - 1);
        self.changed.wake_all(&self.context);
    }

    async fn send(&self, worker: u64) -> Result<()> {
        if self.are_all_even {
            fill(&self.pool.buffer(worker, self.options.buffer_bytes), self.options.pattern);
        }
        while self.started.get() < self.options.count && self.failure.borrow().is_none() {
            if self.is_flushing.get() {
                self.changed.wait(&self.context).await;
                continue;
            }
            let at = self.next.get();
            self.next.set((at + self.step).checked_rem(self.disk_bytes).unwrap_or(0));
            self.started.set(self.started.get() + 1);
            self.in_flight.set(self.in_flight.get() + 1);
            let interval = self.options.flush_interval;
            let flushes = interval > 0 && self.started.get().is_multiple_of(interval);
            // The others start nothing before the flush.
            self.is_flushing.set(flushes && !self.options.no_drain);
            let done = self.request(worker, at).await;
            self.in_flight.set(self.in_flight.get() - 1);
            self.changed.wake_all(&self.context);
            if flushes {
                let flushed = self.flush().await;
                self.is_flushing.set(false);
                self.changed.wake_all(&self.context);
                done.and(flushed)?;
            } else {
                done?;
            }
        }
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        while !self.options.no_drain && self.in_flight.get() > 0 {
            self.changed.wait(&self.context).await;
        }
        self.node.flush().await
    }

    async fn request(&self, worker: u64, at: u64) -> Result<()> {
        let len = self.options.buffer_bytes;
        let end = at.checked_add(len).filter(|end| *end <= self.disk_bytes).ok_or_else(|| {
            let what = format!("a request at {at:#x} reaches beyond the end of the disk");
            Error::new(ErrorKind::BadRequest, what)
        })?;
        let first = at / SECTOR * SECTOR;
        let data = self.pool.buffer(worker, end.next_multiple_of(SECTOR) - first);
        if !self.options.is_write {
            return self.node.read(DiskOffset(first), data).await;
        }
        if data.bytes() == len {
            if !self.are_all_even {
                fill(&data, self.options.pattern);
            }
            return self.node.write(DiskOffset(first), data, false).await;
        }
        let _alone = self.uneven.lock(&self.context, first..first + data.bytes()).await;
        self.node.read(DiskOffset(first), data.part(0, data.bytes())).await?;
        fill(&data.part(at - first, len), self.options.pattern);
        self.node.write(DiskOffset(first), data, false).await
    }
}

fn fill(data: &IoVecs, pattern: u8) {
    let piece = [pattern; 4096];
    let mut at = 0;
    while at < data.bytes() {
        at += data.copy_from(at, &piece) as u64;
    }
}
