//! Random requests of every kind, with every byte read compared against the model.
//!
//! All queues work on the same range of the disk and so meet in neighbouring sectors, also within one host page
//! or cluster. What two requests in flight would do to the same sector is not defined by virtio, so a request that
//! changes data is not started while another one touches the same sectors. Requests are cut into segments at
//! arbitrary bytes, as a guest may do it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::device::{ConnectOptions, Device, Op, Queue};
use crate::load::Limit;
use crate::model::{Model, SECTOR};
use crate::{Error, Rng};

/// Largest gap between two segments of a request in its slot's buffer.
const MAX_GAP: u64 = 64;
/// Most segments a request is cut into.
const MAX_PIECES: u64 = 6;

/// What to verify.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Where and how to connect.
    pub connect: ConnectOptions,
    /// The first so many bytes of the disk are used (and overwritten).
    pub span: u64,
    /// When to stop; counts requests.
    pub limit: Limit,
    /// Seed of everything random.
    pub seed: u64,
    /// What the range contains already, from an earlier run or made by hand; `None`: nobody knows.
    pub known: Option<Model>,
}

/// What was done, all of it with the right outcome.
#[derive(Clone, Debug)]
pub struct VerifyReport {
    /// Completed reads, each compared.
    pub reads: u64,
    /// Completed writes.
    pub writes: u64,
    /// Completed flushes.
    pub flushes: u64,
    /// Completed discards.
    pub discards: u64,
    /// Completed write-zeroes.
    pub write_zeroes: u64,
    /// What the disk must contain now.
    pub model: Model,
}

/// One request in flight.
#[derive(Clone, Debug)]
struct Flight {
    op: Op,
    at: u64,
    len: u64,
    generation: u32,
    pieces: Vec<(usize, usize)>,
}

impl Flight {
    fn changes_data(&self) -> bool {
        !matches!(self.op, Op::Read | Op::Flush)
    }

    fn conflicts_with(&self, other: &Flight) -> bool {
        let apart = self.at + self.len <= other.at || other.at + other.len <= self.at;
        !apart && (self.changes_data() || other.changes_data())
    }
}

/// What the queues' threads share.
struct Shared {
    report: VerifyReport,
    /// Requests in flight, by queue and slot.
    flights: Vec<Vec<Option<Flight>>>,
}

/// Connects, makes random requests until the limit, then reads the whole range once more.
///
/// Any failed request and any wrong byte is an error.
pub fn run_verify(options: &VerifyOptions) -> Result<VerifyReport, Error> {
    let (device, queues) = Device::connect(&options.connect)?;
    let span = options.span.min(device.capacity) / device.block_bytes * device.block_bytes;
    let depth = options.connect.depth;
    let model = options.known.clone().unwrap_or_else(|| Model::new(options.seed, span));
    if model.len() != span {
        return Err(Error(format!("{} of {span:#x} bytes are known", model.len())));
    }
    let report =
        VerifyReport { reads: 0, writes: 0, flushes: 0, discards: 0, write_zeroes: 0, model };
    let shared = Mutex::new(Shared { report, flights: vec![vec![None; depth]; queues.len()] });
    let stop = AtomicBool::new(false);
    let count = queues.len() as u64;
    let start = Instant::now();

    let queues = std::thread::scope(|scope| {
        let threads: Vec<_> = queues
            .into_iter()
            .enumerate()
            .map(|(index, queue)| {
                let rng = Rng::new(options.seed ^ (index as u64) << 32);
                let (shared, device, stop) = (&shared, &device, &stop);
                let mut worker = Worker { index, queue, device, span, shared, rng };
                scope.spawn(move || {
                    let result = worker.run(options.limit, count, start, stop);
                    // One failure ends the run of all: the model is worth nothing any more.
                    stop.store(result.is_err() || stop.load(Ordering::Relaxed), Ordering::Relaxed);
                    result.map(|()| worker.queue)
                })
            })
            .collect();
        let join = |t: std::thread::ScopedJoinHandle<'_, _>| t.join().expect("no panic");
        threads.into_iter().map(join).collect::<Result<Vec<Queue>, Error>>()
    })?;

    let report = shared.into_inner().unwrap_or_else(PoisonError::into_inner).report;
    for mut queue in queues {
        read_back(&mut queue, options.connect.slot_bytes as u64, &report.model)?;
    }
    Ok(report)
}

/// Connects and compares everything the model knows with the disk: after a restart of the server, say.
pub fn verify_disk(connect: &ConnectOptions, model: &Model) -> Result<(), Error> {
    let (_, queues) = Device::connect(connect)?;
    for mut queue in queues {
        read_back(&mut queue, connect.slot_bytes as u64, model)?;
    }
    Ok(())
}

/// Flushes, then reads the whole range in order and compares it.
fn read_back(queue: &mut Queue, slot_bytes: u64, model: &Model) -> Result<(), Error> {
    let mut one = |op, at: u64, data: &mut [u8]| -> Result<(), Error> {
        queue.submit(0, op, at, data.len());
        let ret = queue.wait(1)?[0].ret;
        queue.copy_out(0, 0, data);
        check_status(op, at, ret)
    };
    one(Op::Flush, 0, &mut [])?;
    let step = slot_bytes.min(64 << 10) / 4096 * 4096;
    let mut at = 0;
    while at < model.len() {
        let len = step.min(model.len() - at);
        let mut data = vec![0xA5; usize::try_from(len).expect("at most 64 KiB")];
        one(Op::Read, at, &mut data)?;
        model.check(at, &data)?;
        at += len;
    }
    Ok(())
}

fn check_status(op: Op, at: u64, ret: i32) -> Result<(), Error> {
    if ret == 0 {
        return Ok(());
    }
    Err(Error::new(format_args!("{op:?} at {at:#x}"), std::io::Error::from_raw_os_error(-ret)))
}

struct Worker<'a> {
    index: usize,
    queue: Queue,
    device: &'a Device,
    span: u64,
    shared: &'a Mutex<Shared>,
    rng: Rng,
}

impl Worker<'_> {
    fn run(
        &mut self,
        limit: Limit,
        workers: u64,
        start: Instant,
        stop: &AtomicBool,
    ) -> Result<(), Error> {
        let mut submitted = 0;
        loop {
            let over = stop.load(Ordering::Relaxed)
                || match limit {
                    Limit::Time(time) => start.elapsed() >= time,
                    Limit::Ops(ops) => submitted >= ops.div_ceil(workers),
                };
            if over && self.queue.in_flight() == 0 {
                return Ok(());
            }
            for slot in 0..self.queue.depth() {
                if !over && !self.queue.is_busy(slot) {
                    submitted += u64::from(self.submit(slot));
                }
            }
            let done = self.queue.wait(1)?.to_vec();
            for d in done {
                self.complete(d.slot, d.ret)?;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a random request; false if it would have met another one.
    fn submit(&mut self, slot: usize) -> bool {
        let mut flight = self.choose();
        let mut shared = self.lock();
        if shared.flights.iter().flatten().flatten().any(|other| flight.conflicts_with(other)) {
            return false;
        }
        let mut data = Vec::new();
        if matches!(flight.op, Op::Write | Op::WriteFua) {
            flight.generation = shared.report.model.new_generation();
            data.resize(usize::try_from(flight.len).expect("fits the slot"), 0);
            shared.report.model.stamp(flight.generation, flight.at, &mut data);
        }
        shared.flights[self.index][slot] = Some(flight.clone());
        drop(shared);

        let mut rest = data.as_slice();
        for &(offset, len) in &flight.pieces {
            let piece = rest.split_off(..len.min(rest.len())).expect("within the rest");
            self.queue.fill(slot, offset, piece);
        }
        self.queue.submit_pieces(slot, flight.op, flight.at, &flight.pieces);
        true
    }

    fn complete(&mut self, slot: usize, ret: i32) -> Result<(), Error> {
        let mut shared = self.lock();
        let flight = shared.flights[self.index][slot].take().expect("a completion per request");
        check_status(flight.op, flight.at, ret)?;
        let (at, len, report) = (flight.at, flight.len, &mut shared.report);
        match flight.op {
            Op::Read => {
                report.reads += 1;
                let mut data = vec![0; usize::try_from(len).expect("fits the slot")];
                let mut rest = data.as_mut_slice();
                for &(offset, len) in &flight.pieces {
                    let piece = rest.split_off_mut(..len).expect("pieces make up the request");
                    self.queue.copy_out(slot, offset, piece);
                }
                report.model.check(at, &data)?;
            }
            Op::Write | Op::WriteFua => {
                report.writes += 1;
                report.model.written(flight.generation, at, len);
            }
            Op::Flush => report.flushes += 1,
            Op::Discard { .. } => {
                report.discards += 1;
                report.model.discarded(at, len);
            }
            Op::WriteZeroes { .. } => {
                report.write_zeroes += 1;
                report.model.zeroed(at, len);
            }
        }
        Ok(())
    }

    fn choose(&mut self) -> Flight {
        let none = Flight { op: Op::Flush, at: 0, len: 0, generation: 0, pieces: Vec::new() };
        match self.rng.below(100) {
            0..3 => none,
            3..9 if self.device.max_discard > 0 => {
                let (at, len) = self.choose_range(self.device.max_discard.min(1 << 20));
                Flight { op: Op::Discard { len }, at, len, ..none }
            }
            9..15 if self.device.max_write_zeroes > 0 => {
                let (at, len) = self.choose_range(self.device.max_write_zeroes.min(1 << 20));
                let unmap = self.rng.one_in(2);
                Flight { op: Op::WriteZeroes { len, unmap }, at, len, ..none }
            }
            15..55 => self.choose_data(Op::Read),
            55..60 => self.choose_data(Op::WriteFua),
            _ => self.choose_data(Op::Write),
        }
    }

    fn choose_data(&mut self, op: Op) -> Flight {
        // Each gap and each cut needs a little room in the slot's buffer.
        let room = self.slot_bytes() - MAX_GAP * MAX_PIECES;
        let (at, len) = self.choose_range(room);
        let pieces = self.cut(len);
        Flight { op, at, len, generation: 0, pieces }
    }

    fn slot_bytes(&self) -> u64 {
        self.queue.slot_bytes() as u64
    }

    /// A range of whole blocks, at most `max` bytes: small ones, page-aligned ones, and any.
    fn choose_range(&mut self, max: u64) -> (u64, u64) {
        let block = match self.rng.below(4) {
            0 => self.device.block_bytes.max(4096),
            _ => self.device.block_bytes,
        };
        let most = (max.min(self.span) / block).max(1);
        let blocks = match self.rng.below(4) {
            0 => 1 + self.rng.below(most),
            _ => 1 + self.rng.below(most.min(16)),
        };
        let at = self.rng.below(self.span / block - blocks + 1);
        (at * block, blocks * block)
    }

    /// Cuts `len` bytes into segments with gaps between them in the buffer.
    fn cut(&mut self, len: u64) -> Vec<(usize, usize)> {
        let max = MAX_PIECES.min(self.device.max_segments as u64);
        let count = if self.rng.one_in(2) { 1 } else { 1 + self.rng.below(max) };
        // One half of the requests keeps to sectors, as guests do.
        let unit = if self.rng.one_in(2) { SECTOR as u64 } else { 1 };
        let mut cuts: Vec<u64> =
            (1..count).map(|_| self.rng.below(len / unit) * unit).filter(|&c| c > 0).collect();
        cuts.extend([0, len]);
        cuts.sort_unstable();
        cuts.dedup();
        let mut gaps = 0;
        let mut pieces = Vec::new();
        for pair in cuts.windows(2) {
            gaps += if unit == 1 { self.rng.below(MAX_GAP) } else { 0 };
            let index = |bytes: u64| usize::try_from(bytes).expect("fits the slot");
            pieces.push((index(pair[0] + gaps), index(pair[1] - pair[0])));
        }
        pieces
    }
}
