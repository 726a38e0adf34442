//! The host file as a protocol node: any request, at any alignment.
//!
//! O_DIRECT asks that offset, length and memory lie on certain boundaries; a guest's need not. What does not fit goes through a bounce buffer, in
//! pieces of at most [`BOUNCE_BYTES`], so that no request makes us allocate more. A write that does not cover whole host blocks reads them first
//! and holds their range, so that two such writes to one block do not undo each other.
//!
//! Flushes run one at a time, and those that come while one is running share the next. It saves syncs, and it is needed: the kernel reports a
//! failed writeback to one of the callers that wait for it, so of two syncs at once the other could claim success for data that is lost. For the
//! same reason each I/O thread has a file description of its own: each is told of the failure.

use crate::filters::{Event, Filters, NEVER_ALIGNED, Passed};
use crate::{Error, ErrorKind, FileOffset, Image, Result};
use guest_mem::IoVecs;
use io_engine::{AlignedBuf, Buf, FileRef, Op, OpKind};
use iothread::{IoContext, RangeLocks, WaitList};
use std::cell::Cell;
use std::pin::Pin;
use std::task::Poll;

/// Largest bounce buffer, in bytes. A multiple of every alignment.
const BOUNCE_BYTES: u64 = 256 << 10;

/// Ops of one request in the engine at a time.
const SIDE_BY_SIDE: usize = 32;

/// Pieces of metadata copied to aligned memory at a time.
const PIECES_MAX: usize = 256;

/// One host file, as one I/O thread sees it.
#[derive(Debug)]
pub struct HostNode {
    context: IoContext,
    file: FileRef,
    /// What offsets and lengths in the file must be multiples of, in bytes; 1 with the page cache.
    align: u64,
    /// What addresses of memory must be multiples of, in bytes. With a filter none is.
    mem_align: usize,
    /// The same, for memory of our own.
    buffer_align: usize,
    /// What all I/O passes through.
    filters: Option<Box<Filters>>,
    ranges: RangeLocks,
    flushes: Flushes,
    path: String,
}

/// Flushes, counted. Numbers grow; at most one is under way.
#[derive(Debug, Default)]
struct Flushes {
    started: Cell<u64>,
    ended: Cell<u64>,
    /// One failed; so does every later one.
    failed: Cell<bool>,
    waiters: WaitList,
}

impl HostNode {
    /// Makes the image's file known to the thread's engine.
    pub fn attach(image: &Image, context: &IoContext) -> Result<HostNode> {
        let path = image.path().display().to_string();
        let host = image.file_of_thread()?;
        let file = context
            .open(host)
            .map_err(|error| Error::io(format!("opening {path} with the engine"), error))?;
        let host = HostNode::new(context, file, path);
        match image.options().filters.is_empty() {
            true => Ok(host),
            false => Ok(host.filtered(image.options().filters.clone())),
        }
    }

    /// A node over a file that the thread's engine knows already; `path` is its name in messages.
    pub fn new(context: &IoContext, file: FileRef, path: String) -> HostNode {
        let facts = file.facts();
        HostNode {
            context: context.clone(),
            align: u64::from(facts.offset_align),
            mem_align: facts.mem_align as usize,
            buffer_align: facts.mem_align.max(4096) as usize,
            filters: None,
            file,
            ranges: RangeLocks::default(),
            flushes: Flushes::default(),
            path,
        }
    }

    /// The same with filters, which all I/O then passes through: none is done directly.
    pub fn filtered(self, filters: Filters) -> HostNode {
        HostNode {
            align: self.align.max(filters.align),
            mem_align: NEVER_ALIGNED,
            filters: Some(Box::new(filters)),
            ..self
        }
    }

    /// Whether I/O passes through filters.
    pub(crate) fn is_filtered(&self) -> bool {
        self.filters.is_some()
    }

    /// The driver above has come to this point.
    pub(crate) fn event(&self, event: Event) {
        if let Some(filters) = &self.filters {
            filters.event(event);
        }
    }

    /// The file, for the fast path.
    #[inline]
    pub fn file(&self) -> &FileRef {
        &self.file
    }

    /// Whether `data` at `at` can be given to the engine as it is.
    #[inline]
    pub fn is_aligned(&self, at: FileOffset, data: &IoVecs) -> bool {
        (at.0 | data.bytes()) & (self.align - 1) == 0 && data.is_aligned_to(self.mem_align)
    }

    /// Whether every change of data must be tracked, because some touch more than was asked for.
    #[inline]
    pub fn tracks_writes(&self) -> bool {
        self.align > crate::SECTOR
    }

    /// What offsets and lengths in the file must be multiples of, in bytes.
    pub(crate) fn align(&self) -> u64 {
        self.align
    }

    /// The name in messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The thread's context.
    pub(crate) fn context(&self) -> &IoContext {
        &self.context
    }

    /// Reads into memory of our own. `at` and `len` are multiples of the alignment; beyond the file's end there are zeroes.
    pub(crate) async fn read_owned(&self, at: FileOffset, len: u64) -> Result<AlignedBuf> {
        self.read_blocks(at.0, at.0 + len).await
    }

    /// Reads any range into memory of our own, through a buffer; beyond the file's end there are zeroes.
    pub(crate) async fn read_to(&self, at: FileOffset, into: &mut [u8]) -> Result<()> {
        let end = at.0 + into.len() as u64;
        let mut done = 0;
        while done < into.len() {
            let start = at.0 + done as u64;
            let (from, to) = self.bounce_range(start, end);
            let buf = self.read_blocks(from, to).await?;
            let got = &buf.as_slice()[index(start - from)..index(to.min(end) - from)];
            into[done..done + got.len()].copy_from_slice(got);
            done += got.len();
        }
        Ok(())
    }

    /// Writes memory of our own; `at` and its length are multiples of the alignment.
    pub(crate) async fn write_owned(&self, at: FileOffset, buf: AlignedBuf) -> Result<()> {
        let (result, _) = self.io(OpKind::Write { fua: false }, at.0, Buf::Owned(buf)).await;
        result.map_err(|error| self.error("writing", at, error))
    }

    /// Writes memory of our own, anywhere.
    pub(crate) async fn write_buffer(&self, at: FileOffset, buf: AlignedBuf) -> Result<()> {
        match (at.0 | buf.as_slice().len() as u64) & (self.align - 1) {
            0 => self.write_owned(at, buf).await,
            _ => self.write_from(at, buf.as_slice(), false).await,
        }
    }

    /// Writes several pieces at once, and waits for all of them.
    pub(crate) async fn write_all_owned(
        &self,
        pieces: Vec<(FileOffset, AlignedBuf)>,
    ) -> Result<()> {
        let write = OpKind::Write { fua: false };
        if self.filters.is_some() {
            // One by one, so that it is certain what is in the file when one fails.
            for (at, buf) in pieces {
                self.write_owned(at, buf).await?;
            }
            return Ok(());
        }
        let ops = pieces.into_iter().map(|(at, buf)| self.io_op(write, at.0, Buf::Owned(buf)));
        self.all(ops.collect(), "writing").await
    }

    /// Writes several pieces side by side, at any alignment, and waits for all of them.
    pub(crate) async fn write_pieces(&self, pieces: Vec<(FileOffset, Vec<u8>)>) -> Result<()> {
        let mut ops = Vec::new();
        for (at, bytes) in pieces {
            let is_whole = (at.0 | bytes.len() as u64) & (self.align - 1) == 0;
            if !is_whole || self.filters.is_some() {
                self.write_from(at, &bytes, false).await?;
                continue;
            }
            let mut buf = self.buffer(bytes.len() as u64);
            buf.as_mut_slice().copy_from_slice(&bytes);
            ops.push(self.io_op(OpKind::Write { fua: false }, at.0, Buf::Owned(buf)));
            if ops.len() == PIECES_MAX {
                self.all(std::mem::take(&mut ops), "writing").await?;
            }
        }
        self.all(ops, "writing").await
    }

    /// Writes pieces of several kinds, each kind with an event that tells of it: all together, unless somebody wants to know.
    pub(crate) async fn write_kinds(
        &self,
        kinds: impl IntoIterator<Item = (Event, Vec<(FileOffset, Vec<u8>)>)>,
    ) -> Result<()> {
        if self.filters.is_none() {
            return self.write_pieces(kinds.into_iter().flat_map(|kind| kind.1).collect()).await;
        }
        for (event, pieces) in kinds.into_iter().filter(|kind| !kind.1.is_empty()) {
            self.event(event);
            self.write_pieces(pieces).await?;
        }
        Ok(())
    }

    /// The op that fills `data` from the file, which must be aligned.
    pub(crate) fn read_op(&self, at: FileOffset, data: IoVecs) -> Op {
        self.io_op(OpKind::Read, at.0, Buf::Guest(data))
    }

    /// Does all of `ops`, up to [`SIDE_BY_SIDE`] at a time; the first error found, once all have ended.
    pub(crate) async fn all(&self, ops: Vec<Op>, doing: &str) -> Result<()> {
        let mut waiting = ops.into_iter();
        let mut running = Vec::with_capacity(waiting.len().min(SIDE_BY_SIDE));
        let mut failed = None;
        std::future::poll_fn(|cx| {
            loop {
                // More than the engine has room for would be asked again each time that one of them ends.
                let room = SIDE_BY_SIDE - running.len();
                running.extend(waiting.by_ref().take(room).map(|op| (op.at, self.context.io(op))));
                running.retain_mut(|(at, io)| match Pin::new(io).poll(cx) {
                    Poll::Pending => true,
                    Poll::Ready((Ok(()), _)) => false,
                    Poll::Ready((Err(error), _)) => {
                        failed.get_or_insert(self.error(doing, FileOffset(*at), error));
                        false
                    }
                });
                match waiting.len() {
                    0 if running.is_empty() => return Poll::Ready(()),
                    0 => return Poll::Pending,
                    _ if running.len() == SIDE_BY_SIDE => return Poll::Pending,
                    _ => {}
                }
            }
        })
        .await;
        failed.map_or(Ok(()), Err)
    }

    /// Sets the file's length.
    pub(crate) async fn truncate(&self, len: u64) -> Result<()> {
        let (result, _) = self.io(OpKind::Truncate, len, Buf::None).await;
        result.map_err(|error| self.error("setting the length of", FileOffset(len), error))
    }

    /// The file's length.
    pub(crate) fn file_bytes(&self) -> Result<u64> {
        let doing = || format!("finding the size of {}", self.path);
        self.file.len().map_err(|error| Error::io(doing(), error))
    }

    /// Fills `data` from the file.
    pub async fn read(&self, at: FileOffset, data: IoVecs) -> Result<()> {
        if self.is_aligned(at, &data) {
            // Not `io`: with a filter nothing is aligned.
            let op = self.io_op(OpKind::Read, at.0, Buf::Guest(data));
            let (result, _) = self.context.io(op).await;
            return result.map_err(|error| self.error("reading", at, error));
        }
        self.event(Event::ReadAio);
        let mut done = 0;
        while done < data.bytes() {
            let start = at.0 + done;
            let (from, to) = self.bounce_range(start, at.0 + data.bytes());
            let buf = self.read_blocks(from, to).await?;
            let skip = index(start - from);
            let copied = data.copy_from(done, &buf.as_slice()[skip..]);
            done += copied as u64;
        }
        Ok(())
    }

    /// Writes `data` to the file; with `fua`, durably.
    pub async fn write(&self, at: FileOffset, data: IoVecs, fua: bool) -> Result<()> {
        let end = at.0 + data.bytes();
        let whole = at.0 / self.align * self.align..end.next_multiple_of(self.align);
        // Held to the end: an overlapping write that reads and writes back must not see the state in between.
        let _guard = match self.tracks_writes() {
            true => Some(self.ranges.lock(&self.context, whole).await),
            false => None,
        };
        if self.is_aligned(at, &data) {
            let op = self.io_op(OpKind::Write { fua }, at.0, Buf::Guest(data));
            let (result, _) = self.context.io(op).await;
            return result.map_err(|error| self.error("writing", at, error));
        }
        self.event(Event::WriteAio);
        self.write_bounced(at, end, fua, |done, into| data.copy_to(done, into)).await
    }

    /// As [`HostNode::write`], from memory of our own.
    pub(crate) async fn write_from(&self, at: FileOffset, data: &[u8], fua: bool) -> Result<()> {
        let end = at.0 + data.len() as u64;
        let whole = at.0 / self.align * self.align..end.next_multiple_of(self.align);
        let _guard = match self.tracks_writes() {
            true => Some(self.ranges.lock(&self.context, whole).await),
            false => None,
        };
        let copy = |done: u64, into: &mut [u8]| {
            let from = &data[index(done)..];
            let len = into.len().min(from.len());
            into[..len].copy_from_slice(&from[..len]);
            len
        };
        self.write_bounced(at, end, fua, copy).await
    }

    /// Writes what `copy` gives (told how much was done before) to `at` up to `end`. The caller holds the blocks' range.
    async fn write_bounced(
        &self,
        at: FileOffset,
        end: u64,
        fua: bool,
        copy: impl Fn(u64, &mut [u8]) -> usize,
    ) -> Result<()> {
        let mut done = 0;
        while at.0 + done < end {
            let start = at.0 + done;
            let (from, to) = self.bounce_range(start, end);
            let partial = from < start || to > end;
            let mut buf = match partial {
                true => self.read_blocks(from, to).await?,
                false => self.buffer(to - from),
            };
            let skip = index(start - from);
            let take = index(to.min(end) - start);
            let copied = copy(done, &mut buf.as_mut_slice()[skip..skip + take]);
            let (result, _) = self.io(OpKind::Write { fua }, from, Buf::Owned(buf)).await;
            result.map_err(|error| self.error("writing", at, error))?;
            done += copied as u64;
        }
        Ok(())
    }

    /// Makes a range read as zeroes. With `unmap`, its space may be given back.
    pub async fn write_zeroes(&self, at: FileOffset, len: u64, unmap: bool) -> Result<()> {
        let end = at.0 + len;
        let (from, to) = (at.0.next_multiple_of(self.align), end / self.align * self.align);
        let whole = at.0 / self.align * self.align..end.next_multiple_of(self.align);
        let _guard = match self.tracks_writes() {
            true => Some(self.ranges.lock(&self.context, whole).await),
            false => None,
        };
        if from >= to {
            return self.zero_part(at.0, end).await;
        }
        self.zero_part(at.0, from).await?;
        let kind = OpKind::WriteZeroes { len: to - from, unmap };
        let (result, _) = self.io(kind, from, Buf::None).await;
        result.map_err(|error| self.error("writing zeroes", at, error))?;
        self.zero_part(to, end).await
    }

    /// Gives the space of a range back, as far as whole blocks of the host lie in it.
    pub async fn discard(&self, at: FileOffset, len: u64) -> Result<()> {
        let from = at.0.next_multiple_of(self.align);
        let to = (at.0 + len) / self.align * self.align;
        if from >= to {
            return Ok(());
        }
        let _guard = match self.tracks_writes() {
            true => Some(self.ranges.lock(&self.context, from..to).await),
            false => None,
        };
        let (result, _) = self.io(OpKind::Discard { len: to - from }, from, Buf::None).await;
        result.map_err(|error| self.error("discarding", at, error))
    }

    /// Makes every completed write durable.
    pub async fn flush(&self) -> Result<()> {
        let flushes = &self.flushes;
        // One that is under way began too early to cover us.
        let mine = flushes.started.get() + 1;
        while flushes.ended.get() < mine {
            if flushes.started.get() > flushes.ended.get() {
                flushes.waiters.wait(&self.context).await;
                continue;
            }
            flushes.started.set(flushes.started.get() + 1);
            self.event(Event::FlushToOs);
            self.event(Event::FlushToDisk);
            let (result, _) = self.io(OpKind::Flush, 0, Buf::None).await;
            flushes.ended.set(flushes.started.get());
            flushes.waiters.wake_all(&self.context);
            if let Err(error) = result {
                flushes.failed.set(true);
                return Err(Error::io(format!("flushing {}", self.path), error));
            }
        }
        match flushes.failed.get() {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::Poisoned,
                format!("flushing {}: an earlier flush failed", self.path),
            )),
        }
    }

    /// Zeroes a range within host blocks. The caller holds their range.
    async fn zero_part(&self, start: u64, end: u64) -> Result<()> {
        let mut start = start;
        while start < end {
            let (from, to) = self.bounce_range(start, end);
            let mut buf = self.read_blocks(from, to).await?;
            let stop = to.min(end);
            buf.as_mut_slice()[index(start - from)..index(stop - from)].fill(0);
            let (result, _) = self.io(OpKind::Write { fua: false }, from, Buf::Owned(buf)).await;
            result.map_err(|error| self.error("writing zeroes", FileOffset(start), error))?;
            start = stop;
        }
        Ok(())
    }

    /// The aligned range around `start..end`, cut to one bounce buffer.
    fn bounce_range(&self, start: u64, end: u64) -> (u64, u64) {
        let from = start / self.align * self.align;
        let to = end.next_multiple_of(self.align).min(from + BOUNCE_BYTES.max(self.align));
        (from, to)
    }

    async fn read_blocks(&self, from: u64, to: u64) -> Result<AlignedBuf> {
        let buf = self.buffer(to - from);
        let (result, buf) = self.io(OpKind::Read, from, Buf::Owned(buf)).await;
        result.map_err(|error| self.error("reading", FileOffset(from), error))?;
        match buf {
            Buf::Owned(buf) => Ok(buf),
            _ => Err(Error::new(ErrorKind::Io, "an engine lost an op's buffer")),
        }
    }

    pub(crate) fn buffer(&self, bytes: u64) -> AlignedBuf {
        AlignedBuf::new(index(bytes), self.buffer_align)
    }

    async fn io(&self, kind: OpKind, at: u64, buf: Buf) -> (std::io::Result<()>, Buf) {
        match &self.filters {
            None => self.context.io(self.io_op(kind, at, buf)).await,
            // Boxed, as those who never have filters need not have the room for it in their tasks.
            Some(filters) => Box::pin(self.filtered_io(filters, kind, at, buf)).await,
        }
    }

    async fn filtered_io(
        &self,
        filters: &Filters,
        kind: OpKind,
        at: u64,
        buf: Buf,
    ) -> (std::io::Result<()>, Buf) {
        match filters.pass(&self.context, kind, at, buf).await {
            Passed::Ended(result, buf) => (result, buf),
            Passed::On(buf) => {
                let done = self.context.io(self.io_op(kind, at, buf)).await;
                if matches!(kind, OpKind::Write { .. } | OpKind::WriteZeroes { .. }) {
                    filters.event(Event::PwritevDone);
                }
                done
            }
        }
    }

    fn io_op(&self, kind: OpKind, at: u64, buf: Buf) -> Op {
        Op { file: self.file.clone(), kind, at, buf }
    }

    fn error(&self, doing: &str, at: FileOffset, error: std::io::Error) -> Error {
        Error::io(format!("{doing} {} at {:#x}", self.path, at.0), error)
    }
}

/// A length within a buffer.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("bounce buffers are small")
}
