//! One virtqueue that several blocking threads share.
//!
//! ```text
//!  lane 0 ---add, kick---.                     .--> sleeps on the queue's signal (the leader)
//!  lane 1 ---add, kick---+--> DriverQueue <----+    reaps for everybody, wakes the owners
//!  lane 2 ---add, kick---'    under a mutex    '--> parked (followers)
//! ```
//!
//! The first lane that waits leads: it alone reaps. When its own request is answered, it hands the lead to one that still waits.
//!
//! Invariants:
//!
//! - while a request is in flight there is a leader: it is asleep on the signal, at work, or was handed the lead and unparked.
//!   So nobody else needs to watch the signal, and no wake-up is lost;
//! - a lane in flight that does not lead has left its thread to be unparked, in the critical section in which it submitted;
//! - a notification is asked for before the leader sleeps, and the used ring looked at after that was asked for
//!   ([`DriverQueue::enable_notify`]);
//! - a queue that failed once stays failed: the server may still own the buffers of what was in flight.

use super::signal::{Signal, Woken};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};
use virtqueue::driver::{DriverQueue, Seg};

/// What a parked lane is to do, told by the leader.
#[derive(Debug, Default)]
struct Turn(AtomicU8);

impl Turn {
    const WAIT: u8 = 0;
    const DONE: u8 = 1;
    const LEAD: u8 = 2;
    const FAILED: u8 = 3;

    fn set(&self, turn: u8) {
        self.0.store(turn, Ordering::Release);
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }
}

/// A lane's place at a queue. Whoever holds it has at most one request in flight.
#[derive(Debug)]
pub(super) struct Seat {
    index: usize,
    turn: Arc<Turn>,
    /// Threads to unpark once the lock is free; kept so that waiting does not allocate.
    wakes: Vec<Thread>,
}

/// What the queue knows of a seat.
#[derive(Debug)]
struct Place {
    turn: Arc<Turn>,
    in_flight: bool,
    /// Of a follower.
    parked: Option<Thread>,
}

#[derive(Debug)]
struct State {
    ring: DriverQueue,
    places: Vec<Place>,
    /// The place of each head in flight.
    owners: Vec<usize>,
    led: bool,
    failure: Option<(io::ErrorKind, String)>,
}

/// How a lane learns of completions, and for how long it waits for one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    /// Look at the used ring all the time instead of sleeping.
    pub poll: bool,
    /// A server that answers nothing for so long is given up.
    pub patience: Duration,
}

/// A virtqueue and those who wait at it.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    kick: OwnedFd,
    signal: Signal,
    waiting: Waiting,
    event_idx: bool,
    /// Who answers, for messages.
    server: String,
}

enum Role {
    /// To lead; whether the used ring was empty after a notification was asked for.
    Leader {
        quiet: bool,
    },
    Follower,
}

impl Queue {
    /// Takes over a ring that nothing was added to. The connection is `socket`.
    pub fn new(
        mut ring: DriverQueue,
        seats: usize,
        waiting: Waiting,
        socket: BorrowedFd<'_>,
        server: String,
    ) -> io::Result<Queue> {
        let config = ring.config();
        if waiting.poll {
            ring.disable_notify();
        }
        let place = || Place { turn: Arc::default(), in_flight: false, parked: None };
        let state = State {
            ring,
            places: std::iter::repeat_with(place).take(seats).collect(),
            owners: vec![0; usize::from(config.size)],
            led: false,
            failure: None,
        };
        Ok(Queue {
            state: Mutex::new(state),
            kick: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            signal: Signal::new(socket)?,
            waiting,
            event_idx: config.event_idx,
            server,
        })
    }

    /// What we signal when something was added.
    pub fn kick(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// What the server signals.
    pub fn call(&self) -> BorrowedFd<'_> {
        self.signal.call()
    }

    /// The seat `index`. The caller sees to it that nobody else has it.
    ///
    /// # Errors
    ///
    /// Why the queue failed, if it did.
    pub fn seat(&self, index: usize) -> io::Result<Seat> {
        let state = self.lock();
        state.check()?;
        let turn = Arc::clone(&state.places[index].turn);
        Ok(Seat { index, turn, wakes: Vec::with_capacity(state.places.len()) })
    }

    /// Whether nothing can be submitted any more.
    pub fn has_failed(&self) -> bool {
        self.lock().failure.is_some()
    }

    /// Hands a chain to the server and blocks until it is used.
    ///
    /// # Errors
    ///
    /// The server is gone, silent or wrong. What the chain points to may still be in use then, for ever.
    pub fn transfer(&self, seat: &mut Seat, segs: &[Seg]) -> io::Result<()> {
        match self.submit(seat, segs)? {
            Role::Leader { quiet } => self.lead(seat, quiet),
            Role::Follower => self.follow(seat),
        }
    }

    fn submit(&self, seat: &Seat, segs: &[Seg]) -> io::Result<Role> {
        let mut state = self.lock();
        state.check()?;
        let head = state.ring.add(segs).expect("the ring has room for a request of each lane");
        state.owners[usize::from(head)] = seat.index;
        let kick = state.ring.kick_needed();
        seat.turn.set(Turn::WAIT);
        let leads = !std::mem::replace(&mut state.led, true);
        let place = &mut state.places[seat.index];
        place.in_flight = true;
        place.parked = (!leads).then(thread::current);
        let role = match leads {
            true => Role::Leader { quiet: !self.look_again(&mut state) },
            false => Role::Follower,
        };
        drop(state);
        if kick {
            iothread::ring(&self.kick);
        }
        Ok(role)
    }

    /// Waits to be told.
    fn follow(&self, seat: &mut Seat) -> io::Result<()> {
        loop {
            match seat.turn.get() {
                Turn::DONE => return Ok(()),
                Turn::LEAD => return self.lead(seat, false),
                Turn::FAILED => return self.lock().check(),
                // A wake-up may be an old one.
                _ => thread::park(),
            }
        }
    }

    /// Reaps until the own request is answered. `quiet`: there is nothing to reap, and a notification will come.
    fn lead(&self, seat: &mut Seat, mut quiet: bool) -> io::Result<()> {
        let mut watch = Watch::default();
        loop {
            let woken = match quiet {
                true => self.wait(&mut watch),
                false => Ok(Woken::Called),
            };
            let mut state = self.lock();
            let reaped = match state.reap(&mut seat.wakes) {
                Ok(reaped) => reaped,
                Err(bad) => {
                    let what = format!("{} broke the rules of the ring: {bad}", self.server);
                    state.fail(io::ErrorKind::InvalidData, what, seat);
                    0
                }
            };
            if reaped > 0 && (self.waiting.poll || !self.event_idx) {
                state.ring.disable_notify();
            }
            self.judge(&mut state, woken, reaped, seat);
            let answered = !state.places[seat.index].in_flight;
            let outcome = match answered {
                true => Some(Ok(())),
                false => state.check().err().map(Err),
            };
            match outcome {
                Some(_) => state.hand_over(&mut seat.wakes),
                None => quiet = !self.look_again(&mut state),
            }
            drop(state);
            seat.wakes.drain(..).for_each(|thread| thread.unpark());
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }

    /// Fails the queue if that is what ended the sleep.
    fn judge(&self, state: &mut State, woken: io::Result<Woken>, reaped: usize, seat: &mut Seat) {
        let server = &self.server;
        match woken {
            Ok(Woken::Called) => {}
            Err(error) => {
                let what = format!("waiting for {server}: {error}");
                state.fail(error.kind(), what, seat);
            }
            Ok(Woken::HungUp) => {
                let what = format!("{server} closed the connection");
                state.fail(io::ErrorKind::ConnectionAborted, what, seat);
            }
            Ok(Woken::TimedOut) => {
                let how = match reaped {
                    0 => "has not answered",
                    _ => "has answered without a notification that was asked for,",
                };
                let what = format!("{server} {how} for {:?}", self.waiting.patience);
                state.fail(io::ErrorKind::TimedOut, what, seat);
            }
        }
    }

    /// Asks for a notification; true if there is something to reap without one.
    fn look_again(&self, state: &mut State) -> bool {
        !self.waiting.poll && state.ring.enable_notify()
    }

    /// Sleeps until there may be something to reap. When polling, passes a moment.
    fn wait(&self, watch: &mut Watch) -> io::Result<Woken> {
        if !self.waiting.poll {
            return self.signal.wait(self.waiting.patience);
        }
        for _ in 0..Watch::SPINS {
            std::hint::spin_loop();
        }
        if !watch.is_due() {
            return Ok(Woken::Called);
        }
        // There may be fewer processors than lanes.
        thread::yield_now();
        match self.signal.wait(Duration::ZERO)? {
            Woken::TimedOut if watch.silence() < self.waiting.patience => Ok(Woken::Called),
            woken => Ok(woken),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no lane panics while it holds the lock")
    }
}

impl State {
    /// The failure, as an error.
    fn check(&self) -> io::Result<()> {
        match &self.failure {
            Some((kind, what)) => Err(io::Error::new(*kind, what.clone())),
            None => Ok(()),
        }
    }

    /// Takes everything the server has used; the owners' threads join `wakes`. Returns how much that was.
    fn reap(&mut self, wakes: &mut Vec<Thread>) -> Result<usize, virtqueue::driver::BadUsed> {
        let mut reaped = 0;
        while let Some((head, _)) = self.ring.try_poll_used()? {
            let place = &mut self.places[self.owners[usize::from(head)]];
            place.in_flight = false;
            place.turn.set(Turn::DONE);
            wakes.extend(place.parked.take());
            reaped += 1;
        }
        Ok(reaped)
    }

    /// Ends the queue: everybody who waits is told, and nothing is submitted any more.
    fn fail(&mut self, kind: io::ErrorKind, what: String, seat: &mut Seat) {
        self.failure.get_or_insert((kind, what));
        for place in self.places.iter_mut().filter(|place| place.in_flight) {
            place.turn.set(Turn::FAILED);
            seat.wakes.extend(place.parked.take());
        }
    }

    /// The leader is done: one that waits leads on.
    fn hand_over(&mut self, wakes: &mut Vec<Thread>) {
        let waits = |place: &&mut Place| place.in_flight && place.parked.is_some();
        match self.places.iter_mut().find(waits) {
            Some(next) => {
                next.turn.set(Turn::LEAD);
                wakes.extend(next.parked.take());
            }
            None => self.led = false,
        }
    }
}

/// How long a polling leader has seen nothing.
#[derive(Debug, Default)]
struct Watch {
    looks: u32,
    since: Option<Instant>,
}

impl Watch {
    /// Pauses between two looks at the used ring.
    const SPINS: u32 = 16;
    /// Looks between two looks at the connection and the clock.
    const LOOKS: u32 = 256;

    /// Whether it is time to look at more than the ring.
    fn is_due(&mut self) -> bool {
        self.looks = self.looks.wrapping_add(1);
        self.looks.is_multiple_of(Watch::LOOKS)
    }

    /// Since when the leader has waited for its own answer.
    fn silence(&mut self) -> Duration {
        self.since.get_or_insert_with(crate::clock::now).elapsed()
    }
}
