//! Copying disks: several workers, each with a piece of the source on its way.
//!
//! ```text
//!   worker:  next piece --> read --> which parts are zeroes? --> its turn: places in the target --> write data, write zeroes --+
//!              ^ status of the source, one worker at a time                                                                   |
//!              +------------------------------------------------------------------------------------------------------------- +
//! ```
//!
//! Places in the target are taken in the order of the disk, so that a format that allocates gives adjacent clusters adjacent places; what is written
//! there ends in any order. Where the format must wait for a place (the file has to grow, a table has to be read), the turn is kept until it is written.
//! With [`CopyOptions::in_order`] unset nobody waits for a turn.
//!
//! Where the host can do it, data need not be written ([`Offload`]): the target's file gets the same blocks as the source's.
//!
//! To be compressed, pieces are whole clusters of the target, and pass through [`Compressor`] between reading and writing.
//!
//! The first failure ends the copy: each worker ends what it has begun and takes no more.

use crate::compress::{Compressor, Method, Packed};
use crate::open::Disk;
use crate::pool::Pool;
use crate::rate::Pace;
use crate::status::{Depth, Kind, Status, status};
use crate::stop;
use crate::zeroes::{self, Run, Sparse};
use crate::{Progress, Session};
use block::{BlockNode, DiskOffset, Error, FileOffset, Pin, Result, SECTOR};
use guest_mem::IoVecs;
use io_engine::{Buf, FileRef, Op, OpKind, copy_range, share_range};
use iothread::{IoContext, RangeLocks, WaitList};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

/// Bytes that a worker holds at most.
const PIECE_BYTES: u64 = 1 << 20;
/// Zeroes that are written with one request at most: a step of the progress.
const ZERO_BYTES: u64 = 1 << 30;
/// How often a worker looks whether its piece is compressed, in nanoseconds: some thousandths of what that takes.
const COMPRESSED_NS: u64 = 100_000;
/// After so many compressed pieces the target commits its tables. Otherwise it does so after some seconds, and then it is a matter of chance which
/// places the tables get: the same disk is to become the same file.
const COMMIT_PIECES: u64 = 32;

/// Bytes that are tried where block status fails.
const UNKNOWN_BYTES: u64 = 64 << 10;
/// Sectors of which it is said that they cannot be read.
const LOST_MAX: usize = 1000;
const SECTOR_STEP: usize = 512;

/// What the host does of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offload {
    /// Nothing: everything is read and written.
    Never,
    /// Data is read, to find zeroes in it; what is to be written is shared with the source where the file system can.
    Shared,
    /// Data is not read; the host shares or copies it where it can.
    Unread,
}

/// How a copy is made.
#[derive(Clone, Debug)]
pub(crate) struct CopyOptions {
    /// Zeroes in the data are found; `None`: everything is written as it is.
    pub sparse: Option<Sparse>,
    /// What is not written on the target reads as zeroes.
    pub target_is_zero: bool,
    /// The target stands on a disk of so many bytes, of which the sources' unallocated parts are a copy.
    pub target_backing: Option<u64>,
    /// Where the target ends, in bytes.
    pub target_end: u64,
    /// What is written gets its place in the target in order.
    pub in_order: bool,
    /// Each write is durable when it ends.
    pub durable: bool,
    /// Pieces under way.
    pub workers: u64,
    /// Bytes of data in a second at most.
    pub rate: Option<u64>,
    /// What cannot be read is zeroes.
    pub salvage: bool,
    /// What the host does of it.
    pub offload: Offload,
    /// Clusters are compressed like this, by so many threads. It goes with `in_order` only.
    pub compress: Option<(Method, usize)>,
}

/// What is to be done with a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Copy,
    Zero,
    /// The target is right as it is.
    Skip,
}

/// A part of the disk.
#[derive(Clone, Copy, Debug)]
struct Piece {
    task: Task,
    /// Which source, and where on it.
    source: usize,
    from: u64,
    /// Where on the target.
    at: u64,
    len: u64,
    /// Pieces that are before this one.
    number: u64,
}

/// A copy under way.
#[derive(Debug)]
struct Copy {
    context: IoContext,
    sources: Vec<Disk>,
    target: Rc<BlockNode>,
    options: CopyOptions,
    pool: Pool,
    /// Bytes of a piece of data at most.
    piece_bytes: u64,
    compressor: Option<Compressor>,
    pace: Pace,
    /// What was not read, in words: the first of it.
    lost: RefCell<Vec<String>>,
    /// What the host does of it, as far as it can.
    offload: Cell<Offload>,
    /// Compressed pieces that were written.
    packed: Cell<u64>,
    progress: Rc<Progress>,
    /// The worker that looks for the next piece.
    choosing: RangeLocks,
    /// Where the next piece begins: source, offset on it, offset on the target, number.
    next: Cell<(usize, u64, u64, u64)>,
    /// The piece whose write may start.
    turn: Cell<u64>,
    waiting: WaitList,
    running: Cell<u64>,
    ended: WaitList,
    failure: RefCell<Option<Error>>,
}

/// Copies the sources, one behind the other, to the target. Nothing is flushed. Gives what could not be read, in words, if that is left out.
///
/// # Errors
///
/// The first that a source or the target has met.
pub(crate) fn copy(
    session: &Session,
    sources: Vec<Disk>,
    target: Rc<BlockNode>,
    options: CopyOptions,
    progress: Rc<Progress>,
) -> Result<Vec<String>> {
    let compressor = match options.compress {
        Some((method, threads)) => Some(Compressor::new(method, threads)?),
        None => None,
    };
    let cluster = options.compress.map_or(0, |(method, _)| method.cluster_bytes as u64);
    let piece_bytes = PIECE_BYTES.max(cluster);
    let copy = Rc::new(Copy {
        context: session.context().clone(),
        sources,
        target,
        pool: Pool::new(options.workers, piece_bytes)?,
        piece_bytes,
        compressor,
        pace: Pace::new(options.rate),
        lost: RefCell::new(Vec::new()),
        offload: Cell::new(options.offload),
        packed: Cell::new(0),
        progress,
        choosing: RangeLocks::default(),
        next: Cell::new((0, 0, 0, 0)),
        turn: Cell::new(0),
        waiting: WaitList::default(),
        running: Cell::new(options.workers),
        ended: WaitList::default(),
        failure: RefCell::new(None),
        options,
    });
    session.run(async move {
        for worker in 0..copy.options.workers {
            let of_worker = copy.clone();
            copy.context.spawn_queued(async move { of_worker.work(worker).await });
        }
        while copy.running.get() > 0 {
            copy.ended.wait(&copy.context).await;
        }
        copy.failure.take().map_or(Ok(copy.lost.take()), Err)
    })
}

impl Copy {
    async fn work(&self, worker: u64) {
        // Boxed, as a task's slot is small.
        if let Err(error) = Box::pin(self.copy_pieces(worker)).await {
            self.failure.borrow_mut().get_or_insert(error);
        }
        self.running.set(self.running.get() - 1);
        // Who waits for the turn of a piece that never comes must look at the failure.
        self.waiting.wake_all(&self.context);
        self.ended.wake_all(&self.context);
    }

    async fn copy_pieces(&self, worker: u64) -> Result<()> {
        while let Some(piece) = self.choose().await? {
            let data = self.pool.buffer(worker, piece.len.min(self.piece_bytes));
            let data = data.part(0, piece.len);
            if piece.task == Task::Copy {
                let tell = || self.progress.tell_if_asked();
                self.pace.wait(&self.context, piece.len, tell).await;
            }
            // Not with `Unread`: then only what the host will not copy is read.
            let is_read = piece.task == Task::Copy && self.offload.get() != Offload::Unread;
            if is_read {
                self.read(&piece, &data).await?;
            }
            let packed = self.pack(&piece, &data).await;
            if !self.has_turn(piece.number).await {
                return Ok(());
            }
            match packed {
                Some(packed) => self.write_packed(piece, &data, &packed).await?,
                None => self.write(piece, &data, is_read).await?,
            }
            self.progress.add(piece.len, self.context.now_ns());
        }
        Ok(())
    }

    /// Reads a piece; sector by sector, if that is to get what there is to be had.
    async fn read(&self, piece: &Piece, data: &IoVecs) -> Result<()> {
        let node = &self.sources[piece.source].node;
        let read = node.read(DiskOffset(piece.from), data.part(0, piece.len)).await;
        if read.is_ok() || !self.options.salvage {
            return read;
        }
        for from in (0..piece.len).step_by(SECTOR_STEP) {
            let sector = data.part(from, SECTOR.min(piece.len - from));
            let at = piece.from + from;
            if let Err(error) = node.read(DiskOffset(at), sector.part(0, sector.bytes())).await {
                sector.zero_from(0);
                self.lose(at, &error);
            }
        }
        Ok(())
    }

    fn lose(&self, at: u64, error: &Error) {
        let mut lost = self.lost.borrow_mut();
        if lost.len() < LOST_MAX {
            lost.push(format!(
                "warning: what is at {at:#x} cannot be read, and is left out: {error}"
            ));
        } else if lost.len() == LOST_MAX {
            lost.push("warning: and more".to_owned());
        }
    }

    /// The next piece that needs something done; `None` if there is none, or the copy has failed.
    async fn choose(&self) -> Result<Option<Piece>> {
        let _guard = self.choosing.lock(&self.context, 0..1).await;
        loop {
            let (source, from, at, number) = self.next.get();
            stop::check()?;
            if self.failure.borrow().is_some() || source == self.sources.len() {
                return Ok(None);
            }
            let rest = self.sources[source].bytes - from;
            if rest == 0 {
                self.next.set((source + 1, 0, at, number));
                continue;
            }
            let (task, len) = self.look(source, from, at, rest).await?;
            let is_skipped = task == Task::Skip;
            self.next.set((source, from + len, at + len, number + u64::from(!is_skipped)));
            if !is_skipped {
                return Ok(Some(Piece { task, source, from, at, len, number }));
            }
            self.progress.add(len, self.context.now_ns());
        }
    }

    /// What is to be done at a place, and for how many bytes.
    async fn look(&self, source: usize, from: u64, at: u64, rest: u64) -> Result<(Task, u64)> {
        let backing = self.options.target_backing;
        let mut rest = rest;
        // Beyond the disk below, the target reads as zeroes where nothing is written.
        let is_beyond = backing.is_some_and(|bytes| at >= bytes);
        if let Some(bytes) = backing.filter(|_| !is_beyond) {
            rest = rest.min(bytes - at);
        }
        let depth = if backing.is_some() { Depth::Top } else { Depth::All };
        let found = match status(&self.sources[source].node, from, rest, depth).await {
            // Not even where it is is known: what can be read of it is found out by reading.
            Err(_) if self.options.salvage => Status::unknown(rest.min(UNKNOWN_BYTES)),
            found => found?,
        };
        let found = found.in_sectors(from, rest);
        let reads_zero = self.options.target_is_zero && (backing.is_none() || is_beyond);
        let task = match found.kind {
            Kind::Unallocated => Task::Skip,
            Kind::Zero if self.options.sparse.is_none() => Task::Copy,
            Kind::Zero if reads_zero => Task::Skip,
            Kind::Zero => Task::Zero,
            Kind::Data => Task::Copy,
        };
        let most = match task {
            // To whole pieces of the target.
            Task::Copy => self.piece_bytes - at % self.piece_bytes,
            Task::Zero => ZERO_BYTES,
            Task::Skip => u64::MAX,
        };
        let len = found.len.min(most);
        Ok(match self.options.compress {
            Some((method, _)) => {
                let left = self.sources[source].bytes - from;
                self.whole_clusters(method.cluster_bytes as u64, task, at, len, left)
            }
            None => (task, len),
        })
    }

    /// A piece in whole clusters of the target, because only these are compressed. `left` bytes of the source are left.
    fn whole_clusters(
        &self,
        cluster: u64,
        task: Task,
        at: u64,
        len: u64,
        left: u64,
    ) -> (Task, u64) {
        let (inside, is_last) = (at % cluster, at + left == self.options.target_end);
        if inside != 0 {
            // The cluster began with another source, and goes on with this one.
            return (task, len.min(cluster - inside));
        }
        let in_clusters = |len: u64| len / cluster * cluster;
        match task {
            // What follows is another source's, or the target's own.
            _ if left < cluster && !is_last => (task, len),
            Task::Copy if is_last => (task, len.next_multiple_of(cluster).min(left)),
            Task::Copy => (task, len.next_multiple_of(cluster).min(in_clusters(left))),
            Task::Zero | Task::Skip if is_last && len == left => (task, len),
            Task::Zero | Task::Skip if len >= cluster => (task, in_clusters(len)),
            // Data begins within the cluster.
            Task::Zero | Task::Skip => (Task::Copy, cluster.min(left)),
        }
    }

    /// Compresses a piece that is whole clusters; `None` if it is written as it is.
    async fn pack(&self, piece: &Piece, data: &IoVecs) -> Option<Vec<Packed>> {
        let (Some(compressor), Some((method, _))) = (&self.compressor, self.options.compress)
        else {
            return None;
        };
        let cluster = method.cluster_bytes as u64;
        let is_whole =
            piece.len.is_multiple_of(cluster) || piece.at + piece.len == self.options.target_end;
        if piece.task != Task::Copy || !piece.at.is_multiple_of(cluster) || !is_whole {
            return None;
        }
        // What is beyond the end of the disk reads as zeroes.
        let bytes = usize::try_from(piece.len.next_multiple_of(cluster)).expect("a buffer's");
        let mut copied = vec![0; bytes];
        data.copy_to(0, &mut copied);
        let done = compressor.start(copied);
        while done.get().is_none() {
            self.context.sleep_until(self.context.now_ns() + COMPRESSED_NS).await;
        }
        done.get().cloned()
    }

    /// As [`Copy::write`], cluster by cluster.
    async fn write_packed(&self, piece: Piece, data: &IoVecs, packed: &[Packed]) -> Result<()> {
        let cluster =
            self.options.compress.map_or(SECTOR, |(method, _)| method.cluster_bytes as u64);
        let is_zero = self.is_zero_already(piece.at);
        for (n, packed) in (0u64..).zip(packed) {
            let from = n * cluster;
            let len = cluster.min(piece.len - from);
            let at = DiskOffset(piece.at + from);
            match packed {
                Packed::Stream(stream) => self.target.write_compressed(at, stream).await?,
                Packed::Plain => {
                    self.target.write(at, data.part(from, len), self.options.durable).await?;
                }
                Packed::Zero if is_zero => {}
                Packed::Zero => self.target.write_zeroes(at, len, false).await?,
            }
        }
        self.packed.set(self.packed.get() + 1);
        if self.packed.get().is_multiple_of(COMMIT_PIECES) {
            self.target.flush().await?;
        }
        self.pass_turn();
        Ok(())
    }

    /// Whether the target reads as zeroes where nothing was written, from here on.
    fn is_zero_already(&self, at: u64) -> bool {
        let backing = self.options.target_backing;
        self.options.target_is_zero && backing.is_none_or(|bytes| at >= bytes)
    }

    /// Waits for the turn of a piece; `false` if it does not come, because the copy has failed.
    async fn has_turn(&self, number: u64) -> bool {
        while self.options.in_order && self.turn.get() != number {
            if self.failure.borrow().is_some() {
                return false;
            }
            self.waiting.wait(&self.context).await;
        }
        true
    }

    fn pass_turn(&self) {
        self.turn.set(self.turn.get() + 1);
        self.waiting.wake_all(&self.context);
    }

    /// Writes a piece whose turn it is, and passes the turn on as soon as all of it has its place in the target. Without `is_read` its data has yet to be
    /// read, if it is needed.
    async fn write(&self, piece: Piece, data: &IoVecs, is_read: bool) -> Result<()> {
        let all = Run { range: 0..piece.len, is_zero: piece.task == Task::Zero };
        let runs = match self.options.sparse {
            Some(sparse) if is_read => zeroes::runs(data, piece.at, sparse),
            _ => vec![all],
        };
        let mut placed = Placed::default();
        for range in runs.iter().filter(|run| !run.is_zero).flat_map(|run| self.parts(piece, run)) {
            let at = DiskOffset(piece.at + range.start);
            let part = data.part(range.start, range.end - range.start);
            if placed.pin.is_none() {
                placed.pin = self.target.pin();
            }
            match self.target.write_direct(at, &part, self.options.durable) {
                Some((file, place)) if self.is_offloaded(&piece, &range, &part, file, place) => {}
                Some((file, place)) => {
                    let file = file.clone();
                    if !is_read {
                        self.read_part(&piece, &range, data).await?;
                    }
                    let kind = OpKind::Write { fua: self.options.durable };
                    placed.ops.push(Op { file, kind, at: place.0, buf: Buf::Guest(part) });
                }
                None => {
                    // It may have to wait for space, which may have to wait for pins.
                    self.finish(std::mem::take(&mut placed)).await?;
                    if !is_read {
                        self.read_part(&piece, &range, data).await?;
                    }
                    self.target.write(at, part, self.options.durable).await?;
                }
            }
        }
        self.pass_turn();
        self.finish(placed).await?;
        let is_done = self.is_zero_already(piece.at);
        // A format's file would keep the place as a leak.
        let unmap = matches!(*self.target, BlockNode::Raw(_));
        for Run { range, .. } in runs.iter().filter(|run| run.is_zero && !is_done) {
            let at = DiskOffset(piece.at + range.start);
            self.target.write_zeroes(at, range.end - range.start, unmap).await?;
        }
        Ok(())
    }

    /// Reads the part `range` of a piece of data.
    async fn read_part(&self, piece: &Piece, range: &Range<u64>, data: &IoVecs) -> Result<()> {
        let len = range.end - range.start;
        let part =
            Piece { from: piece.from + range.start, at: piece.at + range.start, len, ..*piece };
        self.read(&part, &data.part(range.start, len)).await
    }

    /// Has the host bring the part `range` of a piece of data to its place in the target's file; `false` if it does not, and the data is to be written.
    fn is_offloaded(
        &self,
        piece: &Piece,
        range: &Range<u64>,
        part: &IoVecs,
        file: &FileRef,
        place: FileOffset,
    ) -> bool {
        let offload = self.offload.get();
        if offload == Offload::Never || piece.task != Task::Copy || self.options.durable {
            return false;
        }
        let source = &self.sources[piece.source].node;
        let Some((from, at)) = source.read_direct(DiskOffset(piece.from + range.start), part)
        else {
            // Compressed, encrypted, in several places, or not known without waiting.
            return false;
        };
        let (Some(from), Some(to)) = (from.host(), file.host()) else { return false };
        let how = if offload == Offload::Unread { copy_range } else { share_range };
        let done = how(from, at.0, to, place.0, range.end - range.start);
        if done.is_err() {
            // Whatever it is: what is read and written says it better, if it is met there too.
            self.offload.set(Offload::Never);
        }
        done.is_ok()
    }

    /// Data in two parts: what lies in a cluster that something before it may have allocated, and the rest.
    fn parts(&self, piece: Piece, run: &Run) -> impl Iterator<Item = Range<u64>> + use<> {
        let cluster = self.target.cluster_bytes().unwrap_or(SECTOR);
        let (start, end) = (run.range.start, run.range.end);
        let middle = ((piece.at + start).next_multiple_of(cluster) - piece.at).min(end);
        [start..middle, middle..end].into_iter().filter(|range| !range.is_empty())
    }

    /// Writes what has its place.
    async fn finish(&self, placed: Placed) -> Result<()> {
        let mut failed = None;
        for op in placed.ops {
            let at = op.at;
            if let (Err(error), _) = self.context.io(op).await {
                let path = self.target.host().path();
                failed.get_or_insert(Error::io(format!("writing {path} at {at:#x}"), error));
            }
        }
        placed.pin.into_iter().for_each(|pin| self.target.unpin(pin));
        failed.map_or(Ok(()), Err)
    }
}

/// Writes that have their place in the target's file, and the claim on it.
#[derive(Debug, Default)]
struct Placed {
    ops: Vec<Op>,
    pin: Option<Pin>,
}
