//! Fixed slots for tasks: where a request's future lives while it waits.
//!
//! A slot is [`SLOT_BYTES`] of memory that never moves, so a future may be pinned in it, and is used again for the next request:
//! starting a task allocates nothing. The future's type is forgotten; two function pointers remember how to poll and drop it.
//! That a future fits is checked when the program is compiled.

use std::cell::UnsafeCell;
use std::fmt;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Largest future a slot takes, in bytes. One that is larger has to box its rare branch.
pub const SLOT_BYTES: usize = 2048;

/// A slot's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(pub(crate) u32);

#[repr(align(16))]
struct Storage(UnsafeCell<[MaybeUninit<u8>; SLOT_BYTES]>);

#[derive(Clone, Copy)]
struct FutureKind {
    /// # Safety
    ///
    /// The pointer is to a future of the kind's type, which was written there by `spawn`, has neither been dropped nor returned
    /// `Ready`, and is not being polled now.
    poll: unsafe fn(*mut u8, &mut Context<'_>) -> Poll<()>,
    /// # Safety
    ///
    /// As for `poll`; the future is gone afterwards.
    drop: unsafe fn(*mut u8),
}

#[derive(Clone, Copy)]
enum State {
    Free,
    Waiting(FutureKind),
    /// Being polled: nobody else may touch the storage.
    Polling,
}

/// All task slots of one I/O thread.
pub(crate) struct TaskSlots {
    storage: Box<[Storage]>,
    states: Vec<State>,
    free: Vec<u32>,
}

impl fmt::Debug for TaskSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskSlots {{ {} of {} free }}", self.free.len(), self.states.len())
    }
}

/// A future taken out of its waiting state to be polled. Goes back with [`TaskSlots::polled`].
pub(crate) struct Turn {
    kind: FutureKind,
    at: *mut u8,
}

unsafe fn poll_as<F: Future<Output = ()>>(at: *mut u8, cx: &mut Context<'_>) -> Poll<()> {
    // SAFETY: by `FutureKind::poll`'s contract there is an `F` at `at` that nobody else uses now.
    let future = unsafe { &mut *at.cast::<F>() };
    // SAFETY: slots never move, and the future stays in its slot until it is dropped in place.
    unsafe { Pin::new_unchecked(future) }.poll(cx)
}

unsafe fn drop_as<F>(at: *mut u8) {
    // SAFETY: by `FutureKind::drop`'s contract there is a live `F` at `at`.
    unsafe { at.cast::<F>().drop_in_place() };
}

impl TaskSlots {
    pub(crate) fn new(slots: u32) -> TaskSlots {
        let empty = |_| Storage(UnsafeCell::new([MaybeUninit::uninit(); SLOT_BYTES]));
        TaskSlots {
            storage: (0..slots).map(empty).collect(),
            states: vec![State::Free; slots as usize],
            free: (0..slots).rev().collect(),
        }
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn busy(&self) -> usize {
        self.states.len() - self.free.len()
    }

    /// Puts `future` into a free slot; `None` (and the future dropped) if there is none.
    pub(crate) fn spawn<F: Future<Output = ()> + 'static>(&mut self, future: F) -> Option<TaskId> {
        const {
            assert!(size_of::<F>() <= SLOT_BYTES, "the future is too large for a task slot");
            assert!(align_of::<F>() <= align_of::<Storage>());
        }
        let index = self.free.pop()?;
        let at = self.storage[index as usize].0.get().cast::<F>();
        // SAFETY: the slot was free, so nothing lives in it; size and alignment were checked above.
        unsafe { at.write(future) };
        self.states[index as usize] =
            State::Waiting(FutureKind { poll: poll_as::<F>, drop: drop_as::<F> });
        Some(TaskId(index))
    }

    /// Takes a waiting task for polling; `None` if there is none in that slot (it was woken twice, and has ended since).
    pub(crate) fn take(&mut self, task: TaskId) -> Option<Turn> {
        let state = &mut self.states[task.0 as usize];
        let State::Waiting(kind) = *state else { return None };
        *state = State::Polling;
        Some(Turn { kind, at: self.storage[task.0 as usize].0.get().cast() })
    }

    /// Ends what `take` began.
    pub(crate) fn polled(&mut self, task: TaskId, turn: Turn, outcome: Poll<()>) {
        self.states[task.0 as usize] = match outcome {
            Poll::Pending => State::Waiting(turn.kind),
            Poll::Ready(()) => {
                // SAFETY: `turn` came from `take`: the future is in its slot, and no longer polled.
                unsafe { (turn.kind.drop)(turn.at) };
                self.free.push(task.0);
                State::Free
            }
        };
    }
}

impl Turn {
    /// Polls the future once. The slots may be borrowed meanwhile: by the future, to start other tasks.
    pub(crate) fn poll(&self) -> Poll<()> {
        let mut cx = Context::from_waker(Waker::noop());
        // SAFETY: `take` found the future waiting and marked it, so it is alive and nobody else polls it.
        unsafe { (self.kind.poll)(self.at, &mut cx) }
    }
}

impl Drop for TaskSlots {
    fn drop(&mut self) {
        for (storage, state) in self.storage.iter().zip(&self.states) {
            if let State::Waiting(kind) = state {
                // SAFETY: a waiting slot holds a live future that is not being polled.
                unsafe { (kind.drop)(storage.0.get().cast()) };
            }
        }
    }
}
