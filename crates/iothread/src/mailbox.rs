//! Messages from other threads.

use rustix::event::{EventfdFlags, eventfd};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Work for another thread: it runs there, on a `T` that only lives there.
pub type Message<T> = Box<dyn FnOnce(&mut T) + Send>;

/// A queue of messages to one thread, with an eventfd that wakes it.
pub struct Mailbox<T> {
    messages: Mutex<Vec<Message<T>>>,
    /// Set with each message: a look at memory tells the polling thread that there is mail.
    mail: AtomicBool,
    wake: OwnedFd,
}

impl<T> fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("mail", &self.mail).finish_non_exhaustive()
    }
}

impl<T> Mailbox<T> {
    /// An empty mailbox.
    pub fn new() -> io::Result<Mailbox<T>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Mailbox { messages: Mutex::default(), mail: AtomicBool::new(false), wake })
    }

    /// The eventfd that becomes readable with each message.
    pub fn wake_fd(&self) -> io::Result<OwnedFd> {
        self.wake.try_clone()
    }

    /// Leaves a message, and wakes the owner.
    pub fn send(&self, message: Message<T>) {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        self.mail.store(true, Ordering::Release);
        ring(&self.wake);
    }

    /// Whether there is mail; looks at memory only.
    pub fn has_mail(&self) -> bool {
        self.mail.load(Ordering::Acquire)
    }

    /// Takes all messages, in the order they came.
    pub fn take(&self) -> Vec<Message<T>> {
        // Cleared first: a message that comes in between is taken now and announced again, never the other way round.
        self.mail.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.messages.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Adds one to an eventfd, which makes it readable.
#[expect(clippy::host_endian_bytes, reason = "the kernel reads a native integer")]
pub fn ring(eventfd: impl AsFd) {
    // Fails only when the counter is about to overflow, and then the descriptor is readable anyway.
    let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
}
