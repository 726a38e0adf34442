//! `compare`: whether two disks have the same content.
//!
//! As in a copy, several workers have a piece each under way, taken in the order of the disk; of the differences that are found, the first on the disk counts.

use crate::open::Disk;
use crate::pool::Pool;
use crate::status::{Depth, Kind, Status, status};
use crate::zeroes::{self, Sparse};
use crate::{Code, Failure, ImageArgs, Progress, ProgressKind, Session};
use block::{DiskOffset, Error, SECTOR};
use guest_mem::IoVecs;
use iothread::{IoContext, RangeLocks, WaitList};
use std::cell::{Cell, RefCell};
use std::io::Write;
use std::rc::Rc;

/// The disks differ.
const DIFFERENT: Code = 1;
/// An image could not be opened.
const NOT_OPENED: Code = 2;
/// Where an image's data is could not be found out.
const NO_STATUS: Code = 3;
/// An image could not be read.
const NOT_READ: Code = 4;

/// Bytes that a worker holds of each disk at most.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces under way.
const WORKERS: u64 = 8;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// The images.
    pub images: [ImageArgs; 2],
    /// Sizes and what is allocated must be the same too.
    pub strict: bool,
    /// Prints nothing.
    pub is_quiet: bool,
    /// How it is shown how far it is.
    pub progress: ProgressKind,
}

/// How the disks differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Difference {
    Content,
    /// One is allocated where the other is not, or zeroes where the other has data.
    Status,
}

/// A part of the disks.
#[derive(Clone, Copy, Debug)]
struct Piece {
    at: u64,
    len: u64,
    /// What it is on each; past its end, zeroes.
    kinds: [Kind; 2],
}

struct Comparison {
    context: IoContext,
    disks: [Disk; 2],
    strict: bool,
    pool: Pool,
    progress: Rc<Progress>,
    choosing: RangeLocks,
    next: Cell<u64>,
    /// Bytes of the shorter disk, which both have, or of the longer one.
    end: Cell<u64>,
    found: Cell<Option<(u64, Difference)>>,
    running: Cell<u64>,
    ended: WaitList,
    failure: RefCell<Option<(Code, Error)>>,
}

/// Compares.
pub fn run(options: &CompareOptions, out: &mut dyn Write) -> Result<Code, Failure> {
    let not_opened = |failure: Failure| failure.with_code(NOT_OPENED);
    let session = Session::new().map_err(|error| not_opened(error.into()))?;
    let open = |args: &ImageArgs| {
        let image = args.open_to_look().map_err(|error| not_opened(error.into()))?;
        Disk::attach(&session, image).map_err(not_opened)
    };
    let disks = [open(&options.images[0])?, open(&options.images[1])?];
    let mut say = |line: &str| match options.is_quiet {
        true => Ok(()),
        false => writeln!(out, "{line}"),
    };
    let (both, longer) = (disks[0].bytes.min(disks[1].bytes), disks[0].bytes.max(disks[1].bytes));
    if options.strict && both != longer {
        say("Strict mode: Image size mismatch!")?;
        return Ok(DIFFERENT);
    }
    let progress = Rc::new(Progress::new(options.progress, longer));
    let mut found = compare(&session, &disks, options.strict, 0..both, &progress);
    if let (Ok(None), true) = (&found, both != longer) {
        say("Warning: Image size mismatch!")?;
        found = compare(&session, &disks, false, both..longer, &progress);
    }
    progress.clear_bar();
    let (code, line) = match found? {
        None => (0, "Images are identical.".to_owned()),
        Some((at, Difference::Content)) => (DIFFERENT, format!("Content mismatch at offset {at}!")),
        Some((at, Difference::Status)) => {
            (DIFFERENT, format!("Strict mode: Offset {at} block status mismatch!"))
        }
    };
    say(&line)?;
    progress.end(false);
    Ok(code)
}

/// The first difference in a range.
fn compare(
    session: &Session,
    disks: &[Disk; 2],
    strict: bool,
    range: std::ops::Range<u64>,
    progress: &Rc<Progress>,
) -> Result<Option<(u64, Difference)>, Failure> {
    let comparison = Rc::new(Comparison {
        context: session.context().clone(),
        disks: disks.clone(),
        strict,
        pool: Pool::new(2 * WORKERS, PIECE_BYTES)?,
        progress: progress.clone(),
        choosing: RangeLocks::default(),
        next: Cell::new(range.start),
        end: Cell::new(range.end),
        found: Cell::new(None),
        running: Cell::new(WORKERS),
        ended: WaitList::default(),
        failure: RefCell::new(None),
    });
    let of_task = comparison.clone();
    session.run(async move {
        for worker in 0..WORKERS {
            let of_worker = of_task.clone();
            of_task.context.spawn_queued(async move { of_worker.work(worker).await });
        }
        while of_task.running.get() > 0 {
            of_task.ended.wait(&of_task.context).await;
        }
        Ok(())
    })?;
    match comparison.failure.take() {
        Some((code, error)) => Err(Failure::from(error).with_code(code)),
        None => Ok(comparison.found.get()),
    }
}

impl Comparison {
    async fn work(&self, worker: u64) {
        // Boxed, as a task's slot is small.
        if let Err(failure) = Box::pin(self.compare_pieces(worker)).await {
            self.failure.borrow_mut().get_or_insert(failure);
        }
        self.running.set(self.running.get() - 1);
        self.ended.wake_all(&self.context);
    }

    async fn compare_pieces(&self, worker: u64) -> Result<(), (Code, Error)> {
        while let Some(piece) = self.choose().await? {
            let mismatch = match piece.kinds {
                [Kind::Data, Kind::Data] => {
                    let first = self.read(0, worker, piece).await?;
                    let second = self.read(1, worker, piece).await?;
                    first_difference(&first, &second)
                }
                [Kind::Data, _] => first_data(&self.read(0, worker, piece).await?),
                [_, Kind::Data] => first_data(&self.read(1, worker, piece).await?),
                _ => None,
            };
            if let Some(offset) = mismatch {
                self.note(piece.at + offset, Difference::Content);
            }
            self.progress.add(piece.len, self.context.now_ns());
        }
        Ok(())
    }

    async fn read(&self, disk: usize, worker: u64, piece: Piece) -> Result<IoVecs, (Code, Error)> {
        let index = worker * 2 + u64::from(disk == 1);
        let into = self.pool.buffer(index, piece.len);
        let data = into.part(0, piece.len);
        let read = self.disks[disk].node.read(DiskOffset(piece.at), into).await;
        read.map(|()| data).map_err(|error| (NOT_READ, error))
    }

    fn note(&self, at: u64, what: Difference) {
        if self.found.get().is_none_or(|(before, _)| at < before) {
            self.found.set(Some((at, what)));
        }
    }

    /// The next piece that has to be read; `None` if there is none, or it could only differ behind a difference that is known.
    async fn choose(&self) -> Result<Option<Piece>, (Code, Error)> {
        let _guard = self.choosing.lock(&self.context, 0..1).await;
        loop {
            let (at, end) = (self.next.get(), self.end.get());
            let is_known = self.found.get().is_some_and(|(found, _)| found <= at);
            if at == end || is_known || self.failure.borrow().is_some() {
                return Ok(None);
            }
            let first = self.look(0, at, end - at).await?;
            let second = self.look(1, at, first.len).await?;
            let (kinds, mut len) = ([first.kind, second.kind], second.len.min(first.len));
            if self.strict && (first.kind, first.present) != (second.kind, second.present) {
                self.note(at, Difference::Status);
                return Ok(None);
            }
            let has_data = kinds.contains(&Kind::Data);
            if has_data {
                len = len.min(PIECE_BYTES - at % PIECE_BYTES);
            }
            self.next.set(at + len);
            if has_data {
                return Ok(Some(Piece { at, len, kinds }));
            }
            self.progress.add(len, self.context.now_ns());
        }
    }

    async fn look(&self, disk: usize, at: u64, len: u64) -> Result<Status, (Code, Error)> {
        let Disk { node, bytes, .. } = &self.disks[disk];
        if at >= *bytes {
            let kind = Kind::Zero;
            return Ok(Status {
                kind,
                len,
                depth: 0,
                present: false,
                offset: None,
                is_compressed: false,
            });
        }
        let rest = len.min(bytes - at);
        let found = status(node, at, rest, Depth::All).await;
        found.map(|found| found.in_sectors(at, rest)).map_err(|error| (NO_STATUS, error))
    }
}

/// Where the first sector begins that is not zeroes.
fn first_data(data: &IoVecs) -> Option<u64> {
    let sparse = Sparse { block: SECTOR, min: SECTOR };
    zeroes::runs(data, 0, sparse).into_iter().find(|run| !run.is_zero).map(|run| run.range.start)
}

/// Where the first sector begins that is not the same.
fn first_difference(first: &IoVecs, second: &IoVecs) -> Option<u64> {
    // Small enough to stay in the fastest cache.
    let mut buffers = [[0; 8192]; 2];
    let mut at = 0;
    while at < first.bytes() {
        let len = first.copy_to(at, &mut buffers[0]);
        second.copy_to(at, &mut buffers[1]);
        let [first, second] = [&buffers[0][..len], &buffers[1][..len]];
        if first != second {
            let byte = first.iter().zip(second).position(|(a, b)| a != b);
            return byte.map(|byte| at + byte as u64 / SECTOR * SECTOR);
        }
        at += len as u64;
    }
    None
}
