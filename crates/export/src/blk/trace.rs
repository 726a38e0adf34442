//! Where the time of a request goes: one request in so many is followed on its whole way, and the time of each stage counted in a histogram.
//!
//! ```text
//!  the turn begins   popped   parsed   place known   handed over   host is done   used index   notified
//!        |-- seen ----|-parsed-|-mapped-|- submitted -|- completed -|- published -|- notified -|
//!        |----------------------------------------- total -------------------------------------|
//! ```
//!
//! | Stage | from | to |
//! |---|---|---|
//! | `seen` | the turn begins in which the queue is found to have requests: its kick was seen, or the ring looked at | the request is taken from the ring. The wait behind those before it |
//! | `parsed` | | its chain is a checked request |
//! | `mapped` | | its place in the host's file is known. Of a task: it hands its first operation over, after waiting for whom it has to wait for; or ends without any |
//! | `submitted` | | the engine has handed it over, with the batch that it is in. Of a task: its first operation is with the engine |
//! | `completed` | | the host is done. Of a task: with its last operation |
//! | `published` | | the used index that tells the guest is written. The rest of a task, and of the turn |
//! | `notified` | | the guest's eventfd is written; nothing if the guest asked for no notification |
//!
//! The stages follow each other without a gap, so they add up to the total, request by request; what a request has no use for takes 0. Of data that
//! is in the host's page cache the engine is done at once, inside of the call that submits: then `submitted` is 0, and the copy is in `completed`.
//!
//! What is not in here is the time before the server looked at the ring: the guest's kick, the wake-up of the I/O thread, the turn before.
//!
//! When nothing is traced, a request costs a few tests of an `Option` that is `None`. When something is, each request counts down to the next sample; how
//! many are passed over is drawn at random, so that samples keep no step with batches. Clocks are read for samples only.

use super::queue::Kind;
use crate::histogram::{Histogram, Snapshot};
use io_engine::Rng;
use iothread::{IoContext, OpTimes};
use std::cell::Cell;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// A part of a request's way; see the module's documentation in the source, or `docs/trace.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Seen, to be taken from the ring in its turn.
    Seen,
    /// Taken, to be parsed.
    Parsed,
    /// Parsed, until its place is known.
    Mapped,
    /// Mapped, until it is handed to the host.
    Submitted,
    /// Submitted, until the host is done.
    Completed,
    /// Completed, until the guest can see it.
    Published,
    /// Published, until the guest is notified.
    Notified,
}

impl Stage {
    /// All, in the order in which a request passes them.
    pub const ALL: [Stage; 7] = [
        Stage::Seen,
        Stage::Parsed,
        Stage::Mapped,
        Stage::Submitted,
        Stage::Completed,
        Stage::Published,
        Stage::Notified,
    ];

    /// Its name in a trace.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Seen => "seen",
            Stage::Parsed => "parsed",
            Stage::Mapped => "mapped",
            Stage::Submitted => "submitted",
            Stage::Completed => "completed",
            Stage::Published => "published",
            Stage::Notified => "notified",
        }
    }
}

/// What a guest asks for, as traces tell requests apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestType {
    /// Reads.
    Read,
    /// Writes of data.
    Write,
    /// Flushes.
    Flush,
    /// Discards, writes of zeroes (asked for or found in data), and what is answered without a look at the disk.
    Other,
}

impl RequestType {
    /// All.
    pub const ALL: [RequestType; 4] =
        [RequestType::Read, RequestType::Write, RequestType::Flush, RequestType::Other];

    /// Its name in a trace.
    pub fn name(self) -> &'static str {
        match self {
            RequestType::Read => "read",
            RequestType::Write => "write",
            RequestType::Flush => "flush",
            RequestType::Other => "other",
        }
    }

    fn of(kind: Kind) -> RequestType {
        match kind {
            Kind::Read => RequestType::Read,
            Kind::Write { .. } => RequestType::Write,
            Kind::Flush => RequestType::Flush,
            Kind::Zeroes { .. } | Kind::Discard => RequestType::Other,
        }
    }
}

/// The traced requests of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// Requests traced.
    pub sampled: u64,
    /// Those whose data was in the host's page cache, or that the host did at once for another reason.
    pub at_once: u64,
    /// Those that needed a task: more than one host operation, or none.
    pub tasks: u64,
    /// From the first stage's begin to the last one's end.
    pub total: Snapshot,
    /// In the order of [`Stage::ALL`].
    pub stages: [Snapshot; Stage::ALL.len()],
}

impl Path {
    /// Adds what another path has counted.
    pub fn merge(&mut self, other: &Path) {
        self.sampled += other.sampled;
        self.at_once += other.at_once;
        self.tasks += other.tasks;
        self.total.merge(&other.total);
        for (to, from) in self.stages.iter_mut().zip(&other.stages) {
            to.merge(from);
        }
    }
}

/// What was traced of a disk's requests since it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// One request in so many was traced, on average.
    pub one_in: NonZeroU32,
    /// In the order of [`RequestType::ALL`].
    pub types: [Path; RequestType::ALL.len()],
}

impl Trace {
    /// All types together.
    pub fn all(&self) -> Path {
        let mut all = Path::default();
        self.types.iter().for_each(|path| all.merge(path));
        all
    }
}

/// The histograms of one type of request, on one queue.
#[derive(Debug, Default)]
struct PathRecorder {
    at_once: AtomicU64,
    tasks: AtomicU64,
    total: Histogram,
    stages: [Histogram; Stage::ALL.len()],
}

/// The histograms of one queue; written by the I/O thread that serves it.
#[derive(Debug, Default)]
struct Recorder {
    types: [PathRecorder; RequestType::ALL.len()],
}

/// The histograms of a disk that is traced. Those of a queue are made when it first starts.
#[derive(Debug)]
pub(crate) struct Recorders {
    one_in: NonZeroU32,
    queues: Box<[OnceLock<Arc<Recorder>>]>,
}

impl Recorders {
    pub fn new(one_in: NonZeroU32, queues: u16) -> Recorders {
        Recorders { one_in, queues: (0..queues).map(|_| OnceLock::new()).collect() }
    }

    /// What was recorded so far.
    pub fn read(&self) -> Trace {
        let mut types: [Path; RequestType::ALL.len()] = Default::default();
        for recorder in self.queues.iter().filter_map(OnceLock::get) {
            for (path, from) in types.iter_mut().zip(&recorder.types) {
                let total = from.total.snapshot();
                path.merge(&Path {
                    sampled: total.count(),
                    at_once: from.at_once.load(Ordering::Relaxed),
                    tasks: from.tasks.load(Ordering::Relaxed),
                    total,
                    stages: std::array::from_fn(|stage| from.stages[stage].snapshot()),
                });
            }
        }
        Trace { one_in: self.one_in, types }
    }
}

/// The moments of one request, in nanoseconds of the thread's clock.
#[derive(Clone, Debug)]
struct Sample {
    head: u16,
    kind: RequestType,
    turn: u64,
    popped: u64,
    parsed: u64,
    mapped: Option<u64>,
    submitted: Option<u64>,
    completed: Option<u64>,
    at_once: bool,
    /// Of a task: what its operations did.
    ops: Option<Rc<Cell<OpTimes>>>,
}

impl Sample {
    /// The request is done, which is seen now: what it passed without a mark of its own took no time.
    fn complete(&mut self, now: u64) {
        if let Some(ops) = self.ops.as_ref().map(|ops| ops.get()) {
            self.mapped = self.mapped.or(ops.first_ns);
            self.submitted = self.submitted.or(ops.submitted_ns);
            self.completed = ops.ended_ns;
        }
        let mapped = *self.mapped.get_or_insert(now);
        match self.submitted {
            Some(_) => self.completed = self.completed.or(Some(now)),
            None => (self.submitted, self.completed) = (Some(mapped), Some(mapped)),
        }
    }

    fn record(&self, to: &Recorder, published: u64, notified: u64) {
        let path = &to.types[self.kind as usize];
        let marks = [Some(self.popped), Some(self.parsed), self.mapped, self.submitted];
        let mut from = self.turn;
        let ends = marks.into_iter().chain([self.completed, Some(published), Some(notified)]);
        for (stage, end) in path.stages.iter().zip(ends) {
            // Never backwards, whatever the clock does: the stages have to add up.
            let end = end.unwrap_or(from).max(from);
            stage.record(end - from);
            from = end;
        }
        path.total.record(from - self.turn);
        let count = |to: &AtomicU64, so: bool| {
            to.store(to.load(Ordering::Relaxed) + u64::from(so), Ordering::Relaxed);
        };
        count(&path.at_once, self.at_once);
        count(&path.tasks, self.ops.is_some());
    }
}

/// Picks the samples of one queue and keeps their marks.
#[derive(Debug)]
pub(super) struct Tracer {
    context: IoContext,
    recorder: Arc<Recorder>,
    one_in: u64,
    rng: Rng,
    /// Requests up to and with the next sample.
    left: u64,
    /// When this turn began, if there may be a sample in it.
    turn_ns: u64,
    /// The sample that is being started.
    starting: Option<Sample>,
    /// Ended operations that had not been reaped when it was handed to the engine.
    ended_before: usize,
    /// Samples in flight, by their heads.
    in_flight: Box<[Option<Sample>]>,
    /// Heads of those that the engine has and the host perhaps not.
    prepared: Vec<u16>,
    /// Samples whose answers are not published.
    answered: Vec<Sample>,
}

impl Tracer {
    /// For a queue of `size` entries, of which at most `turn_max` are taken in one turn.
    pub fn new(
        recorders: &Recorders,
        index: u16,
        size: u16,
        turn_max: usize,
        context: &IoContext,
    ) -> Option<Box<Tracer>> {
        let recorder = recorders.queues.get(usize::from(index))?.get_or_init(Arc::default).clone();
        let mut tracer = Tracer {
            context: context.clone(),
            recorder,
            one_in: u64::from(recorders.one_in.get()),
            rng: Rng::new(u64::from(index)),
            left: 0,
            turn_ns: 0,
            starting: None,
            ended_before: 0,
            in_flight: (0..size).map(|_| None).collect(),
            prepared: Vec::with_capacity(turn_max),
            answered: Vec::with_capacity(usize::from(size) + turn_max),
        };
        tracer.left = tracer.draw();
        Some(Box::new(tracer))
    }

    /// From 1 to twice the rate, less 1: the rate on average.
    fn draw(&mut self) -> u64 {
        1 + self.rng.below(2 * self.one_in - 1)
    }

    /// A turn begins that takes up to `turn_max` requests.
    #[inline]
    pub fn turn_begins(&mut self, turn_max: usize) {
        if self.left <= turn_max as u64 {
            self.turn_ns = self.context.now_ns();
        }
    }

    /// A request was taken from the ring. Whether it is a sample.
    #[inline]
    pub fn picks(&mut self, head: u16) -> bool {
        self.left -= 1;
        if self.left == 0 {
            self.popped(head);
            return true;
        }
        false
    }

    #[cold]
    fn popped(&mut self, head: u16) {
        self.left = self.draw();
        let now = self.context.now_ns();
        self.starting = Some(Sample {
            head,
            kind: RequestType::Other,
            turn: self.turn_ns,
            popped: now,
            parsed: now,
            mapped: None,
            submitted: None,
            completed: None,
            at_once: false,
            ops: None,
        });
    }

    /// Its chain is a request.
    #[cold]
    pub fn parsed(&mut self) {
        let now = self.context.now_ns();
        if let Some(sample) = &mut self.starting {
            sample.parsed = now;
        }
    }

    /// Its place is known; it is handed to the engine next.
    #[cold]
    pub fn mapped(&mut self) {
        self.ended_before = self.context.ended();
        let now = self.context.now_ns();
        if let Some(sample) = &mut self.starting {
            sample.mapped = Some(now);
        }
    }

    /// It becomes a task: where to note what its operations do.
    #[cold]
    pub fn of_task(&mut self) -> Rc<Cell<OpTimes>> {
        let ops = Rc::<Cell<OpTimes>>::default();
        if let Some(sample) = &mut self.starting {
            sample.ops = Some(ops.clone());
        }
        ops
    }

    /// The head of the sample that is being started.
    pub fn starting_head(&self) -> Option<u16> {
        self.starting.as_ref().map(|sample| sample.head)
    }

    /// It is in flight, as such a request; or it was answered already.
    pub fn started(&mut self, in_flight: Option<Kind>) {
        let Some(mut sample) = self.starting.take() else { return };
        if sample.mapped.is_some() && sample.ops.is_none() {
            // The engine has taken it, and done it at once or not.
            if self.context.ended() > self.ended_before {
                (sample.submitted, sample.completed) = (sample.mapped, Some(self.context.now_ns()));
                sample.at_once = true;
            } else {
                self.prepared.push(sample.head);
            }
        }
        match (in_flight, self.in_flight.get_mut(usize::from(sample.head))) {
            (Some(kind), Some(place)) => {
                sample.kind = RequestType::of(kind);
                *place = Some(sample);
            }
            _ => {
                sample.complete(self.context.now_ns());
                self.answered.push(sample);
            }
        }
    }

    /// Everything the engine has been given is with the host now.
    #[inline]
    pub fn handed_over(&mut self) {
        if !self.prepared.is_empty() {
            self.mark_handed_over();
        }
    }

    #[cold]
    fn mark_handed_over(&mut self) {
        let now = self.context.now_ns();
        for head in self.prepared.drain(..) {
            if let Some(Some(sample)) = self.in_flight.get_mut(usize::from(head)) {
                sample.submitted = Some(now);
            }
        }
    }

    /// A sample has ended at the host, or its task has.
    #[cold]
    pub fn completed(&mut self, head: u32) {
        let Some(mut sample) = self.in_flight.get_mut(head as usize).and_then(Option::take) else {
            return;
        };
        sample.complete(self.context.now_ns());
        self.answered.push(sample);
    }

    /// Answers have become visible. The time, if a sample is among them.
    #[inline]
    pub fn published(&self) -> Option<u64> {
        (!self.answered.is_empty()).then(|| self.context.now_ns())
    }

    /// The turn is over; `notified`: the guest was notified.
    #[cold]
    pub fn record(&mut self, published_ns: u64, notified: bool) {
        let notified_ns = if notified { self.context.now_ns() } else { published_ns };
        for sample in self.answered.drain(..) {
            sample.record(&self.recorder, published_ns, notified_ns);
        }
    }
}
