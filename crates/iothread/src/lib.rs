//! The I/O thread: one loop that owns an engine, the queues served on it, and the tasks of requests that have to wait.
//!
//! ```text
//!   IoThread (handle, any thread) --mailbox--> IoLoop (its own thread)
//!                                                |- services: the virtqueues of this thread, or whatever takes requests
//!                                                |- IoContext: engine, op slots, task slots, timers, clock
//!                                                `- Poller: how long to look before sleeping
//!
//!   one turn:  pump services -> run woken tasks -> submit one batch, reap -> run woken tasks -> publish -> mailbox
//!   nothing happened:  look at memory for a while (adaptive, bounded), arm the wake-ups, sleep in the engine
//! ```
//!
//! A request that needs one host operation is submitted straight by its service; one that has to wait in between is a task: an
//! `async` block in a fixed slot, polled when the completion it waits for arrives. There is no work stealing, and no waker
//! for I/O: a completion's token names the op slot, the op slot its task.
//!
//! Invariants:
//!
//! - tasks are drained, never cancelled: a service ends only after everything it started has ended;
//! - nothing here is `Send` but the mailbox, so nothing here needs a lock;
//! - bounded work per turn: no service and no guest can keep the others from their turn.

mod context;
mod mailbox;
mod poller;
mod range;
mod slots;
mod thread;
mod timer;

pub use context::{Clock, IoContext, IoFuture, OpTimes, ServiceToken, WaitList};
pub use mailbox::{Mailbox, Message, ring};
pub use poller::{Poller, WaitFor};
pub use range::{RangeGuard, RangeLocks};
pub use slots::{SLOT_BYTES, TaskId};
pub use thread::{IoLoop, IoThread, IoThreadConfig, Service, ServiceId, Turn};

#[cfg(test)]
mod tests;
