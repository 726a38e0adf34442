//! One virtqueue of a disk, on its I/O thread.
//!
//! ```text
//!   pump: pop -> parse -> one aligned extent?  --yes--> engine ------------.
//!                                              --no---> task (block node) --+-> complete -> used ring
//!                              needs no I/O at all? -----------------------'     publish: index, one notification
//! ```
//!
//! A request's slot is its head: a head is in flight at most once, so there are as many slots as ring entries.
//!
//! When a write is done depends on the write cache the guest sees (`block::CacheMode`): with it, a write is done when the host took it; without
//! it, or for a driver that cannot flush, when it is on stable storage.

use super::trace::Tracer;
use super::{DiskState, Disks};
use block::{BlockNode, DetectZeroes, DiskOffset, Pin, SECTOR};
use guest_mem::{GuestMemory, IoVecs, MemHandle};
use io_engine::{Buf, FileRef, Op, OpKind};
use iothread::{IoContext, Service, ServiceId, ServiceToken};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio_blk::{Features, Limits, Pending, Range, Request, Status};
use virtqueue::{Notify, QueueConfig, Virtqueue};

/// Requests taken from one queue in one turn. Small enough that the guest gets its first answers while the rest is worked on, and that no queue
/// waits long for another; large enough that a turn's fixed cost does not count.
const PUMP_MAX: usize = 16;
/// Requests that keep the host's disk busy while a larger batch is prepared.
const HOST_BUSY: usize = 8;
const MEMORY_GONE: &str = "guest memory was taken away under us";
/// I/O errors logged one by one; after that only powers of two.
const ERRORS_LOGGED: u64 = 10;

/// What a request in flight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write {
        fua: bool,
    },
    Flush,
    /// With `durable`, a flush follows.
    Zeroes {
        durable: bool,
    },
    Discard,
}

impl Kind {
    /// Whether its failure means that something acknowledged earlier may be lost.
    fn is_sync(self) -> bool {
        matches!(self, Kind::Flush | Kind::Write { fua: true } | Kind::Zeroes { durable: true })
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write { .. } => "write",
            Kind::Flush => "flush",
            Kind::Zeroes { .. } => "write zeroes",
            Kind::Discard => "discard",
        }
    }
}

#[derive(Debug)]
struct InFlight {
    pending: Pending,
    kind: Kind,
    sector: u64,
    /// Of direct I/O: keeps its place in the file from being used for something else.
    pin: Option<Pin>,
    /// Its way is traced.
    sampled: bool,
}

/// What a queue needs to start.
#[derive(Debug)]
pub(crate) struct QueueSetup {
    pub disk: Arc<DiskState>,
    pub index: u16,
    pub config: QueueConfig,
    pub next_avail: u16,
    pub memory: Arc<GuestMemory>,
    pub features: Features,
    pub limits: Limits,
    pub call: Option<OwnedFd>,
    pub err: Option<OwnedFd>,
    pub enabled: bool,
}

/// A running virtqueue.
#[derive(Debug)]
pub struct BlkQueue {
    queue: Virtqueue,
    memory: MemHandle,
    node: Rc<BlockNode>,
    disk: Arc<DiskState>,
    config: QueueConfig,
    index: u16,
    service: ServiceId,
    limits: Limits,
    /// The driver cannot flush, so every write must be durable when it completes.
    cannot_flush: bool,
    in_flight: Box<[Option<InFlight>]>,
    count: usize,
    /// Answers pushed and not yet published.
    unpublished: bool,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    enabled: bool,
    /// Nothing that the front end does to the ring, short of a new start, lets it take chains again.
    broken: bool,
    /// If requests are traced.
    tracer: Option<Box<Tracer>>,
    /// The request that is being started is a sample.
    sampling: bool,
}

impl BlkQueue {
    pub(crate) fn new(
        setup: QueueSetup,
        service: ServiceId,
        context: &IoContext,
        disks: &Disks,
    ) -> Result<BlkQueue, String> {
        let node = disks.get(setup.disk.id).ok_or("the disk is not on this I/O thread")?;
        let memory = MemHandle::new(setup.memory);
        if memory.is_broken() {
            return Err(MEMORY_GONE.into());
        }
        let queue = Virtqueue::new(&memory, &setup.config, setup.next_avail)
            .map_err(|error| error.to_string())?;
        let recorders = setup.disk.trace.as_ref();
        let tracer = recorders.and_then(|recorders| {
            Tracer::new(recorders, setup.index, setup.config.size, PUMP_MAX, context)
        });
        Ok(BlkQueue {
            queue,
            memory,
            node,
            disk: setup.disk,
            config: setup.config,
            index: setup.index,
            service,
            limits: setup.limits,
            cannot_flush: !setup.features.contains(Features::FLUSH),
            in_flight: (0..setup.config.size).map(|_| None).collect(),
            count: 0,
            unpublished: false,
            call: setup.call,
            err: setup.err,
            enabled: setup.enabled,
            broken: false,
            tracer,
            sampling: false,
        })
    }

    /// The avail index to go on from when the queue starts again.
    pub fn next_avail(&self) -> u16 {
        self.queue.next_avail()
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled && !self.broken;
    }

    /// Replaces the notification descriptor. The guest is notified once: it may have missed an answer in between.
    pub(crate) fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call;
        self.notify();
    }

    pub(crate) fn set_err(&mut self, err: Option<OwnedFd>) {
        self.err = err;
    }

    /// Moves to another memory map. Nothing may be in flight.
    pub(crate) fn set_memory(&mut self, memory: Arc<GuestMemory>) -> Result<(), String> {
        debug_assert_eq!(self.count, 0, "drain first");
        let memory = MemHandle::new(memory);
        match Virtqueue::new(&memory, &self.config, self.queue.next_avail()) {
            Ok(queue) => {
                (self.queue, self.memory) = (queue, memory);
                Ok(())
            }
            Err(error) => {
                // The old rings may be gone: nothing may touch them any more.
                (self.enabled, self.broken) = (false, true);
                Err(error.to_string())
            }
        }
    }

    /// Whether writes must be durable when they complete.
    fn write_through(&self) -> bool {
        !self.disk.cache.ignores_flush()
            && (self.cannot_flush || !self.disk.write_cache.load(Ordering::Relaxed))
    }

    fn start(&mut self, context: &IoContext, request: Request, pending: Pending) {
        let poisoned = self.disk.health.is_poisoned();
        match request {
            Request::In { sector, data } => self.read(context, sector, data, pending),
            Request::Flush if self.disk.cache.ignores_flush() => self.answer(pending, Status::Ok),
            Request::GetId { data } => {
                data.copy_from(0, &self.disk.serial);
                self.answer(pending, Status::Ok);
            }
            Request::Failed(status) => self.answer(pending, status),
            _ if poisoned => self.answer(pending, Status::IoErr),
            Request::Out { sector, data } => self.write(context, sector, data, pending),
            Request::Flush => self.flush(context, pending),
            Request::Discard { ranges } => {
                let sector = ranges.first().map_or(0, |range| range.sector);
                let head = self.begin(pending, Kind::Discard, sector, total(&ranges));
                self.spawn(context, head, move |node| async move {
                    for range in ranges {
                        node.discard(offset(range.sector), bytes(&range)).await?;
                    }
                    Ok(())
                });
            }
            Request::WriteZeroes { ranges } => {
                let sector = ranges.first().map_or(0, |range| range.sector);
                self.zero(context, pending, sector, ranges);
            }
        }
    }

    fn read(&mut self, context: &IoContext, sector: u64, data: IoVecs, pending: Pending) {
        let head = self.begin(pending, Kind::Read, sector, data.bytes());
        let direct = self.node.read_direct(offset(sector), &data);
        match direct.map(|(file, at)| (file.clone(), at.0)) {
            Some((file, at)) => self.submit(context, head, file, OpKind::Read, at, data),
            None => self.spawn(context, head, move |node| async move {
                node.read(offset(sector), data).await
            }),
        }
    }

    fn write(&mut self, context: &IoContext, sector: u64, data: IoVecs, pending: Pending) {
        let fua = self.write_through();
        if self.disk.detect_zeroes != DetectZeroes::Off && data.is_zero() {
            let unmap = self.disk.detect_zeroes == DetectZeroes::Unmap && self.disk.may_unmap;
            let sectors = data.bytes() / SECTOR;
            self.queue.recycle(data.into_storage());
            let sectors = u32::try_from(sectors).expect("a chain has at most 4 GiB");
            return self.zero(context, pending, sector, vec![Range { sector, sectors, unmap }]);
        }
        let head = self.begin(pending, Kind::Write { fua }, sector, data.bytes());
        let direct = self.node.write_direct(offset(sector), &data, fua);
        match direct.map(|(file, at)| (file.clone(), at.0)) {
            Some((file, at)) => {
                self.submit(context, head, file, OpKind::Write { fua }, at, data);
            }
            None => self.spawn(context, head, move |node| async move {
                node.write(offset(sector), data, fua).await
            }),
        }
    }

    fn zero(&mut self, context: &IoContext, pending: Pending, sector: u64, ranges: Vec<Range>) {
        let may_unmap = self.disk.may_unmap;
        let durable = self.write_through();
        let head = self.begin(pending, Kind::Zeroes { durable }, sector, total(&ranges));
        self.spawn(context, head, move |node| async move {
            for range in ranges {
                let unmap = range.unmap && may_unmap;
                node.write_zeroes(offset(range.sector), bytes(&range), unmap).await?;
            }
            match durable {
                true => node.flush().await,
                false => Ok(()),
            }
        });
    }

    fn flush(&mut self, context: &IoContext, pending: Pending) {
        let head = self.begin(pending, Kind::Flush, 0, 0);
        self.spawn(context, head, |node| async move { node.flush().await });
    }

    fn begin(&mut self, mut pending: Pending, kind: Kind, sector: u64, bytes: u64) -> u16 {
        if let Some(counters) = self.disk.served.get(usize::from(self.index)) {
            counters.count(kind, bytes);
        }
        let head = pending.head();
        self.queue.recycle(pending.take_spare());
        self.in_flight[usize::from(head)] =
            Some(InFlight { pending, kind, sector, pin: None, sampled: false });
        self.count += 1;
        head
    }

    fn submit(
        &mut self,
        context: &IoContext,
        head: u16,
        file: FileRef,
        kind: OpKind,
        at: u64,
        data: IoVecs,
    ) {
        self.submit_op(context, head, Op { file, kind, at, buf: Buf::Guest(data) });
    }

    fn submit_op(&mut self, context: &IoContext, head: u16, op: Op) {
        let token = self.token(head);
        if let Some(in_flight) = &mut self.in_flight[usize::from(head)] {
            in_flight.pin = self.node.pin();
        }
        if self.sampling {
            self.trace(|tracer| tracer.mapped());
        }
        if let Err(op) = context.submit(op, token) {
            self.submit_later(context, token, op);
        }
    }

    /// `pump` saw room, but a task took it: then this is a task as well, and waits for its turn.
    #[cold]
    fn submit_later(&mut self, context: &IoContext, token: ServiceToken, op: Op) {
        let of_task = context.clone();
        self.spawn_task(context, async move {
            let (result, _) = of_task.io(op).await;
            of_task.finish(token, result);
        });
    }

    fn spawn<F>(&mut self, context: &IoContext, head: u16, work: impl FnOnce(Rc<BlockNode>) -> F)
    where
        F: Future<Output = block::Result<()>> + 'static,
    {
        let token = self.token(head);
        let work = work(self.node.clone());
        let of_task = context.clone();
        self.spawn_task(context, async move {
            let result = work.await;
            of_task.finish(token, result.map_err(block::Error::into_io));
        });
    }

    fn spawn_task(&mut self, context: &IoContext, task: impl Future<Output = ()> + 'static) {
        let started = match &mut self.tracer {
            Some(tracer) if self.sampling => {
                context.spawn(context.time_ops(tracer.of_task(), task))
            }
            _ => context.spawn(task),
        };
        assert!(started, "`pump` takes a request only if a task slot is free");
    }

    fn token(&self, head: u16) -> ServiceToken {
        ServiceToken { service: self.service.0, slot: u32::from(head) }
    }

    fn answer(&mut self, mut pending: Pending, status: Status) {
        self.queue.recycle(pending.take_spare());
        let used = pending.finish(status);
        self.queue.push_used(used.head, used.written);
        self.unpublished = true;
    }

    /// The status of a failed request; says so in the log, and draws the consequence of a failed sync.
    fn failed(&self, kind: Kind, sector: u64, error: &io::Error) -> Status {
        let count = self.disk.errors.fetch_add(1, Ordering::Relaxed) + 1;
        if count <= ERRORS_LOGGED || count.is_power_of_two() {
            let cause = std::error::Error::source(error);
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            tracing::warn!(
                "{} at sector {sector} failed: {error}{cause} (error {count})",
                kind.name()
            );
        }
        let out_of_space =
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        if kind.is_sync() && !out_of_space && self.disk.health.poison() {
            tracing::error!(
                "a sync failed: what the guest was told is safe may not be; the disk is read-only from now on, until it is served anew"
            );
        }
        match error.kind() {
            io::ErrorKind::Unsupported => Status::Unsupp,
            _ => Status::IoErr,
        }
    }

    /// Serves the ring no more, and tells the other side as far as it can be told.
    fn break_ring(&mut self, why: &dyn std::fmt::Display) {
        let index = self.index;
        tracing::warn!("queue {index}: {why}; it is stopped until the driver resets the device");
        (self.enabled, self.broken, self.sampling) = (false, true, false);
        self.disk.needs_reset.store(true, Ordering::Relaxed);
        if let Some(err) = &self.err {
            iothread::ring(err);
        }
    }

    /// The request that is being started is in flight now, or answered: so much for its sample.
    #[cold]
    fn sample_started(&mut self) {
        self.sampling = false;
        let Some(tracer) = &mut self.tracer else { return };
        let head = tracer.starting_head();
        let in_flight = head.and_then(|head| self.in_flight[usize::from(head)].as_mut());
        tracer.started(in_flight.map(|in_flight| {
            in_flight.sampled = true;
            in_flight.kind
        }));
    }

    #[inline]
    fn trace(&mut self, mark: impl FnOnce(&mut Tracer)) {
        if let Some(tracer) = &mut self.tracer {
            mark(tracer);
        }
    }

    fn notify(&self) {
        if let Some(call) = &self.call {
            iothread::ring(call);
        }
    }
}

fn offset(sector: u64) -> DiskOffset {
    DiskOffset(sector * SECTOR)
}

fn bytes(range: &Range) -> u64 {
    u64::from(range.sectors) * SECTOR
}

fn total(ranges: &[Range]) -> u64 {
    ranges.iter().map(bytes).sum()
}

impl Service for BlkQueue {
    type Local = Disks;

    fn pump(&mut self, context: &IoContext) -> bool {
        let mut taken = 0;
        // The image may have been resized since.
        self.limits.capacity_sectors = self.disk.health.disk_bytes() / SECTOR;
        self.trace(|tracer| tracer.turn_begins(PUMP_MAX));
        while self.enabled && taken < PUMP_MAX && context.has_room() {
            let chain = match self.queue.pop() {
                Ok(Some(chain)) => chain,
                Ok(None) => break,
                Err(error) => {
                    self.break_ring(&error);
                    break;
                }
            };
            taken += 1;
            if let Some(tracer) = &mut self.tracer {
                self.sampling = tracer.picks(chain.head);
            }
            match Request::parse(chain, &self.limits) {
                Ok((request, pending)) => {
                    if self.sampling {
                        self.trace(|tracer| tracer.parsed());
                    }
                    self.start(context, request, pending);
                    if self.sampling {
                        self.sample_started();
                    }
                }
                Err(error) => self.break_ring(&error),
            }
            // A host disk that has run dry starts with the first while the others are prepared; then batches, twice as large each time.
            if taken.is_power_of_two() && context.in_flight() <= HOST_BUSY {
                context.flush_submissions();
                self.trace(|tracer| tracer.handed_over());
            }
        }
        self.trace(|tracer| tracer.handed_over());
        if taken > 0 && self.memory.is_broken() {
            self.break_ring(&MEMORY_GONE);
        }
        taken > 0
    }

    fn complete(&mut self, _: &IoContext, slot: u32, result: io::Result<()>, buf: Buf) {
        let Some(done) = self.in_flight[slot as usize].take() else { return };
        self.count -= 1;
        if done.sampled {
            self.trace(|tracer| tracer.completed(slot));
        }
        if let Some(pin) = done.pin {
            self.node.unpin(pin);
        }
        if let Buf::Guest(data) = buf {
            self.queue.recycle(data.into_storage());
        }
        let status = match &result {
            // Another sync failed meanwhile, perhaps with this one's data: the kernel says so to one of them only.
            Ok(()) if done.kind.is_sync() && self.disk.health.is_poisoned() => Status::IoErr,
            Ok(()) => Status::Ok,
            Err(error) => self.failed(done.kind, done.sector, error),
        };
        self.answer(done.pending, status);
    }

    fn publish(&mut self) {
        if !std::mem::take(&mut self.unpublished) {
            return;
        }
        let notify = self.queue.publish() == Notify::Needed;
        let published_ns = self.tracer.as_ref().and_then(|tracer| tracer.published());
        if notify {
            self.notify();
        }
        if let Some(published_ns) = published_ns {
            let notified = notify && self.call.is_some();
            self.trace(|tracer| tracer.record(published_ns, notified));
        }
    }

    #[inline]
    fn has_work(&self) -> bool {
        self.enabled && self.queue.has_avail()
    }

    fn arm(&mut self) -> bool {
        self.enabled && self.queue.enable_kicks()
    }

    fn disarm(&mut self) {
        self.queue.disable_kicks();
    }

    fn in_flight(&self) -> usize {
        self.count
    }
}
