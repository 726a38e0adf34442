//! What tasks and services of one I/O thread share: its engine, its slots, its timers and its clock.

use crate::slots::{TaskId, TaskSlots};
use crate::timer::Timers;
use io_engine::{Buf, Completion, FileRef, HostFile, IoEngine, Op, Reaped, Token, Wait, WatchId};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

/// Where the time comes from.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The host's monotonic clock.
    Monotonic(Instant),
    /// A simulation's: nanoseconds, set by whoever runs it.
    Simulated(Rc<Cell<u64>>),
}

impl Clock {
    /// The host's clock, starting at 0.
    #[expect(clippy::disallowed_methods, reason = "this is the clock seam")]
    pub fn monotonic() -> Clock {
        Clock::Monotonic(Instant::now())
    }

    /// Nanoseconds since the clock was made.
    pub fn now_ns(&self) -> u64 {
        match self {
            Clock::Monotonic(start) => {
                u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
            }
            Clock::Simulated(now) => now.get(),
        }
    }
}

/// Names a service's request in the completions of its ops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceToken {
    /// The service: its number in the loop.
    pub service: u16,
    /// The request: the service's own number for it.
    pub slot: u32,
}

/// When the ops of a task began and ended, in nanoseconds of the thread's clock: see [`IoContext::time_ops`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpTimes {
    /// The task had its first op ready for the engine.
    pub first_ns: Option<u64>,
    /// The engine had taken it. If it was done at once, no time passed.
    pub submitted_ns: Option<u64>,
    /// The task got its last op's result; or that op was done at once.
    pub ended_ns: Option<u64>,
}

/// What a token stands for; packed into 64 bits for the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    OpSlot(u32),
    Service(ServiceToken),
    Kick { service: u16 },
    Mail,
}

impl Target {
    pub(crate) fn pack(self) -> Token {
        let (kind, high, low) = match self {
            Target::OpSlot(slot) => (0u64, 0, slot),
            Target::Service(token) => (1, token.service, token.slot),
            Target::Kick { service } => (2, service, 0),
            Target::Mail => (3, 0, 0),
        };
        Token(kind << 56 | u64::from(high) << 32 | u64::from(low))
    }

    pub(crate) fn unpack(token: Token) -> Target {
        let [l0, l1, l2, l3, h0, h1, _, kind] = token.0.to_le_bytes();
        let service = u16::from_le_bytes([h0, h1]);
        let slot = u32::from_le_bytes([l0, l1, l2, l3]);
        match kind {
            0 => Target::OpSlot(slot),
            1 => Target::Service(ServiceToken { service, slot }),
            2 => Target::Kick { service },
            _ => Target::Mail,
        }
    }
}

/// The life of an op that a task waits for.
#[derive(Debug)]
enum OpSlot {
    Free,
    /// In the engine; `task` is to be woken.
    Waiting(TaskId),
    /// In the engine, and the future that wanted it is gone: the slot lives to the completion.
    Orphan,
    Done(io::Result<()>, Buf),
}

#[derive(Debug, Default)]
struct OpSlots {
    slots: Vec<OpSlot>,
    free: Vec<u32>,
}

struct Inner {
    engine: RefCell<IoEngine>,
    tasks: RefCell<TaskSlots>,
    ops: RefCell<OpSlots>,
    timers: RefCell<Timers>,
    clock: Clock,
    /// Tasks to be polled in this turn.
    ready: RefCell<VecDeque<TaskId>>,
    /// The task that is being polled.
    current: Cell<Option<TaskId>>,
    /// Where the ops of the task that is being polled note their times; `is_timed` if there is such a place.
    times: RefCell<Option<Rc<Cell<OpTimes>>>>,
    is_timed: Cell<bool>,
    /// Requests that tasks ended, on their way to their services.
    finished: RefCell<Vec<(ServiceToken, io::Result<()>)>>,
    /// Tasks that wait for room in the engine.
    room: WaitList,
    /// Tasks that wait for a slot.
    queued: RefCell<VecDeque<Pin<Box<dyn Future<Output = ()>>>>>,
}

/// A reference to what one I/O thread's tasks and services share. Cheap to clone; never leaves the thread.
#[derive(Clone)]
pub struct IoContext(Rc<Inner>);

impl fmt::Debug for IoContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoContext").field("tasks", &self.0.tasks).finish_non_exhaustive()
    }
}

impl IoContext {
    /// A context with `task_slots` task slots around `engine`.
    pub fn new(engine: IoEngine, task_slots: u32, clock: Clock) -> IoContext {
        IoContext(Rc::new(Inner {
            engine: RefCell::new(engine),
            tasks: RefCell::new(TaskSlots::new(task_slots)),
            ops: RefCell::default(),
            timers: RefCell::default(),
            clock,
            ready: RefCell::default(),
            current: Cell::new(None),
            times: RefCell::default(),
            is_timed: Cell::new(false),
            finished: RefCell::default(),
            room: WaitList::default(),
            queued: RefCell::default(),
        }))
    }

    /// The thread's time.
    pub fn now_ns(&self) -> u64 {
        self.0.clock.now_ns()
    }

    /// Makes a file known to the engine.
    pub fn open(&self, file: HostFile) -> io::Result<FileRef> {
        self.0.engine.borrow_mut().open(file)
    }

    /// Runs `f` on the engine: for what has no method here.
    pub fn with_engine<T>(&self, f: impl FnOnce(&mut IoEngine) -> T) -> T {
        f(&mut self.0.engine.borrow_mut())
    }

    /// Whether one more request can be started: there is room for its op, and a slot for its task.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.0.engine.borrow().room() > 0 && self.0.tasks.borrow().free() > 0
    }

    /// The fast path: submits an op whose completion goes straight to the service. Gives the op back if the engine is full.
    #[inline]
    pub fn submit(&self, op: Op, token: ServiceToken) -> Result<(), Op> {
        self.0.engine.borrow_mut().submit(op, Target::Service(token).pack())
    }

    /// Ops in the engine, submitted and not yet reaped.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.0.engine.borrow().in_flight()
    }

    /// Ops that have ended and were not yet reaped.
    #[inline]
    pub fn ended(&self) -> usize {
        self.0.engine.borrow().ended()
    }

    /// Hands what was submitted so far to the kernel, instead of with the turn's batch.
    #[inline]
    pub fn flush_submissions(&self) {
        // An engine that fails says so again when it is reaped, and there it can be told to somebody.
        let _ = self.0.engine.borrow_mut().flush_submissions();
    }

    /// Does one op, for a task.
    pub fn io(&self, op: Op) -> IoFuture {
        IoFuture { context: self.clone(), state: IoState::New(Some(op)) }
    }

    /// `future`, whose ops note in `times` when they began and ended. Allocates: for the few tasks that are traced.
    pub fn time_ops<F: Future + 'static>(
        &self,
        times: Rc<Cell<OpTimes>>,
        future: F,
    ) -> impl Future<Output = F::Output> + 'static {
        let (context, mut future) = (self.clone(), Box::pin(future));
        std::future::poll_fn(move |cx| {
            let before = context.0.times.replace(Some(times.clone()));
            let was_timed = context.0.is_timed.replace(true);
            let polled = future.as_mut().poll(cx);
            context.0.times.replace(before);
            context.0.is_timed.set(was_timed);
            polled
        })
    }

    #[cold]
    fn note(&self, change: impl FnOnce(&mut OpTimes, u64)) {
        if let Some(cell) = &*self.0.times.borrow() {
            let mut times = cell.get();
            change(&mut times, self.now_ns());
            cell.set(times);
        }
    }

    /// A timed task's op is with the engine, which had so many ended ops before. Returns whether it was done at once.
    fn note_submitted(&self, ended_before: usize) -> bool {
        let at_once = self.ended() > ended_before;
        self.note(|times, now| {
            if at_once {
                times.submitted_ns = times.submitted_ns.or(times.first_ns);
                times.ended_ns = Some(now);
            } else {
                times.submitted_ns.get_or_insert(now);
            }
        });
        at_once
    }

    /// Starts a task; it first runs in this turn. Returns `false` (and drops it) if no task slot is free: ask [`IoContext::has_room`] first.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) -> bool {
        let task = self.0.tasks.borrow_mut().spawn(future);
        if let Some(task) = task {
            self.wake(task);
        }
        task.is_some()
    }

    /// As [`IoContext::spawn`], for work that no request waits for: it leaves the last task slot to requests.
    pub fn spawn_background(&self, future: impl Future<Output = ()> + 'static) -> bool {
        let spare = self.0.tasks.borrow().free() > 1;
        spare && self.spawn(future)
    }

    /// As [`IoContext::spawn`], but waits for a free slot if there is none: for what a control thread asks for.
    pub fn spawn_queued(&self, future: impl Future<Output = ()> + 'static) {
        self.0.queued.borrow_mut().push_back(Box::pin(future));
        self.start_queued();
    }

    fn start_queued(&self) {
        while self.0.tasks.borrow().free() > 0 {
            let Some(next) = self.0.queued.borrow_mut().pop_front() else { return };
            self.spawn(next);
        }
    }

    /// Ends a service's request from a task: [`crate::Service::complete`] gets the result in this turn.
    pub fn finish(&self, token: ServiceToken, result: io::Result<()>) {
        self.0.finished.borrow_mut().push((token, result));
    }

    /// Sleeps until the clock shows `at_ns`.
    pub async fn sleep_until(&self, at_ns: u64) {
        let mut asked = false;
        std::future::poll_fn(|_| {
            if self.now_ns() >= at_ns {
                return Poll::Ready(());
            }
            if !asked {
                asked = true;
                self.0.timers.borrow_mut().add(at_ns, self.current());
            }
            Poll::Pending
        })
        .await;
    }

    /// Runs `future` to its end on this thread, with nothing else going on: for tools and tests.
    pub fn block_on<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> io::Result<T> {
        let result = Rc::new(Cell::new(None));
        let into = result.clone();
        let started = self.spawn(async move { into.set(Some(future.await)) });
        if !started {
            return Err(io::Error::other("no task slot is free"));
        }
        let mut reaped = Reaped::default();
        loop {
            self.run_ready();
            if let Some(value) = result.take() {
                return Ok(value);
            }
            let wait = self.wait_at_most();
            self.reap(&mut reaped, wait)?;
            for done in reaped.completions.drain(..) {
                self.complete(done);
            }
            reaped.woken.clear();
            self.wake_due();
        }
    }

    /// The task that is being polled.
    fn current(&self) -> TaskId {
        self.0.current.get().expect("futures of an I/O thread are polled by its tasks only")
    }

    pub(crate) fn wake(&self, task: TaskId) {
        self.0.ready.borrow_mut().push_back(task);
    }

    /// Polls every task that is ready, and those they wake. Bounded: a task becomes ready by an event, and events end.
    pub(crate) fn run_ready(&self) -> bool {
        let mut any = false;
        loop {
            let Some(task) = self.0.ready.borrow_mut().pop_front() else { return any };
            let Some(turn) = self.0.tasks.borrow_mut().take(task) else { continue };
            any = true;
            self.0.current.set(Some(task));
            let outcome = turn.poll();
            self.0.current.set(None);
            self.0.tasks.borrow_mut().polled(task, turn, outcome);
            self.start_queued();
        }
    }

    /// Wakes the tasks whose time has come.
    pub(crate) fn wake_due(&self) {
        if self.0.timers.borrow().next_ns().is_none() {
            return;
        }
        let now = self.now_ns();
        while let Some(task) = self.0.timers.borrow_mut().pop_due(now) {
            self.wake(task);
        }
    }

    /// How long the thread may sleep without missing a timer.
    pub(crate) fn wait_at_most(&self) -> Wait {
        match self.0.timers.borrow().next_ns() {
            Some(at) => Wait::Ns(at.saturating_sub(self.now_ns())),
            None => Wait::Forever,
        }
    }

    pub(crate) fn reap(&self, into: &mut Reaped, wait: Wait) -> io::Result<()> {
        self.0.engine.borrow_mut().reap(into, wait)
    }

    pub(crate) fn watch(&self, fd: OwnedFd, target: Target) -> io::Result<WatchId> {
        self.0.engine.borrow_mut().watch(fd, target.pack())
    }

    pub(crate) fn unwatch(&self, id: WatchId) {
        self.0.engine.borrow_mut().unwatch(id);
    }

    #[inline]
    pub(crate) fn has_completions(&self) -> bool {
        self.0.engine.borrow().has_completions()
    }

    /// Whether anything is on its way: ops in the engine or tasks in their slots.
    pub fn is_idle(&self) -> bool {
        // A task that waits for its time is not under way.
        let sleeping = self.0.timers.borrow().len();
        self.0.engine.borrow().in_flight() == 0 && self.0.tasks.borrow().busy() <= sleeping
    }

    pub(crate) fn take_finished(&self, into: &mut Vec<(ServiceToken, io::Result<()>)>) {
        into.append(&mut self.0.finished.borrow_mut());
    }

    /// Takes the completion of a task's op, and wakes the task.
    pub(crate) fn complete(&self, done: Completion) {
        let Target::OpSlot(index) = Target::unpack(done.token) else { return };
        let mut ops = self.0.ops.borrow_mut();
        match std::mem::replace(&mut ops.slots[index as usize], OpSlot::Free) {
            OpSlot::Waiting(task) => {
                ops.slots[index as usize] = OpSlot::Done(done.result, done.buf);
                self.wake(task);
            }
            _ => ops.free.push(index),
        }
        drop(ops);
        self.0.room.wake_all(self);
    }

    /// Wakes tasks that wait for room in the engine; called whenever ops have ended.
    pub(crate) fn wake_room(&self) {
        self.0.room.wake_all(self);
    }
}

/// Tasks waiting for something that another task does. Waking is a hint: who waits looks again.
#[derive(Debug, Default)]
pub struct WaitList(RefCell<Vec<TaskId>>);

impl WaitList {
    /// Waits for the next [`WaitList::wake_all`]. May also return early.
    pub async fn wait(&self, context: &IoContext) {
        let mut registered = false;
        std::future::poll_fn(|_| {
            if registered {
                return Poll::Ready(());
            }
            registered = true;
            self.0.borrow_mut().push(context.current());
            Poll::Pending
        })
        .await;
    }

    /// As [`WaitList::wait`], but no longer than until the clock shows `at_ns`.
    pub async fn wait_until(&self, context: &IoContext, at_ns: u64) {
        let mut registered = false;
        std::future::poll_fn(|_| {
            if registered {
                return Poll::Ready(());
            }
            registered = true;
            let task = context.current();
            self.0.borrow_mut().push(task);
            context.0.timers.borrow_mut().add(at_ns, task);
            Poll::Pending
        })
        .await;
    }

    /// Lets everybody look again.
    #[inline]
    pub fn wake_all(&self, context: &IoContext) {
        if self.0.borrow().is_empty() {
            return;
        }
        for task in self.0.borrow_mut().drain(..) {
            context.wake(task);
        }
    }
}

#[derive(Debug)]
enum IoState {
    New(Option<Op>),
    /// In the slot; `at_once`: known to be done.
    Waiting {
        slot: u32,
        at_once: bool,
    },
    Over,
}

/// One op on its way. Gives the result and the op's buffer. If it is dropped, the op goes on and its result is forgotten.
#[derive(Debug)]
#[must_use = "the op is submitted when this is awaited"]
pub struct IoFuture {
    context: IoContext,
    state: IoState,
}

impl Future for IoFuture {
    type Output = (io::Result<()>, Buf);

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        let context = self.context.clone();
        match &mut self.state {
            IoState::New(op) => {
                let op = op.take().expect("put back when the engine was full");
                let task = context.current();
                let mut ops = context.0.ops.borrow_mut();
                let slot = match ops.free.pop() {
                    Some(slot) => slot,
                    None => {
                        ops.slots.push(OpSlot::Free);
                        u32::try_from(ops.slots.len() - 1)
                            .expect("no more ops than the engine takes")
                    }
                };
                let token = Target::OpSlot(slot).pack();
                let ended_before = context.0.is_timed.get().then(|| {
                    context.note(|times, now| _ = times.first_ns.get_or_insert(now));
                    context.ended()
                });
                if let Err(op) = context.0.engine.borrow_mut().submit(op, token) {
                    ops.free.push(slot);
                    self.state = IoState::New(Some(op));
                    // Once, however many ops of the task wait: each entry wakes it, and awake it asks for all of them again.
                    let mut waiting = context.0.room.0.borrow_mut();
                    if !waiting.contains(&task) {
                        waiting.push(task);
                    }
                    return Poll::Pending;
                }
                ops.slots[slot as usize] = OpSlot::Waiting(task);
                let at_once = ended_before.is_some_and(|before| context.note_submitted(before));
                self.state = IoState::Waiting { slot, at_once };
                Poll::Pending
            }
            IoState::Waiting { slot, at_once } => {
                let (slot, at_once) = (*slot, *at_once);
                let mut ops = context.0.ops.borrow_mut();
                match std::mem::replace(&mut ops.slots[slot as usize], OpSlot::Free) {
                    OpSlot::Done(result, buf) => {
                        ops.free.push(slot);
                        if context.0.is_timed.get() && !at_once {
                            context.note(|times, now| times.ended_ns = Some(now));
                        }
                        self.state = IoState::Over;
                        Poll::Ready((result, buf))
                    }
                    other => {
                        ops.slots[slot as usize] = other;
                        Poll::Pending
                    }
                }
            }
            IoState::Over => panic!("polled after the result was taken"),
        }
    }
}

impl Drop for IoFuture {
    fn drop(&mut self) {
        let IoState::Waiting { slot, .. } = self.state else { return };
        let mut ops = self.context.0.ops.borrow_mut();
        match &ops.slots[slot as usize] {
            OpSlot::Done(..) => {
                ops.slots[slot as usize] = OpSlot::Free;
                ops.free.push(slot);
            }
            _ => ops.slots[slot as usize] = OpSlot::Orphan,
        }
    }
}
