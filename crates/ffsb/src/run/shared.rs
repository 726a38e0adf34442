//! What the threads of one stage of a run share: when to start, when to stop, and what went wrong first.

use super::error::RunError;
use crate::clock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often who waits looks at the stop flag and tells the progress.
const TICK: Duration = Duration::from_millis(50);

/// What threads are to do. Only ever goes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Course {
    /// Work; it does not count yet.
    WarmUp,
    /// Work.
    Measure,
    /// Finish the operation under way, then stop.
    End,
    /// Stop at the next block; what is done counts.
    Cut,
    /// Stop at the next block; the run has failed.
    Halt,
}

impl Course {
    fn from_u8(value: u8) -> Course {
        match value {
            0 => Course::WarmUp,
            1 => Course::Measure,
            2 => Course::End,
            3 => Course::Cut,
            _ => Course::Halt,
        }
    }
}

/// How waiting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// Every thread has finished, or the run has failed.
    Finished,
    /// The time is up.
    TimeUp,
}

/// One stage.
#[derive(Debug)]
pub(crate) struct Shared<'a> {
    course: AtomicU8,
    stop: &'a AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Threads that were started and have not ended.
    running: usize,
    /// Of these, how many wait for the start.
    ready: usize,
    started: bool,
    failure: Option<RunError>,
}

/// A thread is at work until this is dropped.
#[derive(Debug)]
pub(crate) struct AtWork<'a>(&'a Shared<'a>);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.state().running -= 1;
        self.0.changed.notify_all();
    }
}

impl<'a> Shared<'a> {
    /// Threads that wait for `start`, on `course` first.
    pub fn new(stop: &'a AtomicBool, course: Course) -> Shared<'a> {
        let course = AtomicU8::new(course as u8);
        Shared { course, stop, state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stop(&self) -> &'a AtomicBool {
        self.stop
    }

    #[inline]
    pub fn course(&self) -> Course {
        Course::from_u8(self.course.load(Ordering::Relaxed))
    }

    pub fn halted(&self) -> bool {
        self.course() == Course::Halt
    }

    /// Steers all threads, but not away from a halt.
    pub fn steer(&self, course: Course) {
        self.course.fetch_max(course as u8, Ordering::Relaxed);
        let _state = self.state();
        self.changed.notify_all();
    }

    /// Ends the stage. The first failure is kept: others may follow from it.
    pub fn fail(&self, error: RunError) {
        self.state().failure.get_or_insert(error);
        self.steer(Course::Halt);
    }

    /// A thread is about to be started.
    pub fn enter(&'a self) -> AtWork<'a> {
        self.state().running += 1;
        AtWork(self)
    }

    /// In a thread: waits for the start of all. False: there will be none.
    pub fn wait_for_start(&self) -> bool {
        let mut state = self.state();
        state.ready += 1;
        self.changed.notify_all();
        while !state.started && !self.halted() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !self.halted()
    }

    /// Waits until every thread is ready.
    pub fn wait_until_ready(&self) {
        let mut state = self.state();
        while state.ready < state.running && !self.halted() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets all threads go.
    pub fn start(&self) {
        self.state().started = true;
        self.changed.notify_all();
    }

    /// Waits until all threads have ended or the time is up, and calls `tick` meanwhile.
    pub fn wait(&self, deadline: Option<Instant>, mut tick: impl FnMut()) -> Waited {
        loop {
            if self.stop.load(Ordering::Relaxed) && !self.halted() {
                self.fail(RunError::interrupted());
            }
            let state = self.state();
            if state.running == 0 {
                return Waited::Finished;
            }
            let left = deadline.map(|at| at.saturating_duration_since(clock::now()));
            if left == Some(Duration::ZERO) {
                return Waited::TimeUp;
            }
            let time = left.map_or(TICK, |left| left.min(TICK));
            drop(self.changed.wait_timeout(state, time));
            tick();
        }
    }

    /// What went wrong, if anything did.
    pub fn result(&self) -> Result<(), RunError> {
        self.state().failure.take().map_or(Ok(()), Err)
    }
}
