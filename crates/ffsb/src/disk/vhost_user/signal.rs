//! Sleeping until a server has something to say.

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

const CALL: u64 = 0;
const SOCKET: u64 = 1;

/// Why a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// The server called: look at the used ring. It may be empty.
    Called,
    /// The server is gone.
    HungUp,
    /// It stayed silent.
    TimedOut,
}

/// One queue's call event, and the connection it dies with.
///
/// Both are watched edge-triggered: each call wakes once, and the event never needs to be read, which saves a system call each time.
#[derive(Debug)]
pub(super) struct Signal {
    epoll: OwnedFd,
    call: OwnedFd,
}

impl Signal {
    /// Watches a new call event, and `socket`.
    pub fn new(socket: BorrowedFd<'_>) -> io::Result<Signal> {
        let call = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &call, EventData::new_u64(CALL), EventFlags::IN | EventFlags::ET)?;
        let hung_up = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        epoll::add(&epoll, socket, EventData::new_u64(SOCKET), hung_up | EventFlags::ET)?;
        Ok(Signal { epoll, call })
    }

    /// What the server is to signal.
    pub fn call(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// Sleeps until a call that no earlier wait has returned, the end of the connection, or `limit`.
    pub fn wait(&self, limit: Duration) -> io::Result<Woken> {
        let limit = Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(CALL) }; 2];
        loop {
            let count = match epoll::wait(&self.epoll, &mut events[..], Some(&limit)) {
                Err(Errno::INTR) => continue,
                count => count?,
            };
            let (woken, _) = events.split_at(count);
            return Ok(match woken {
                [] => Woken::TimedOut,
                woken if woken.iter().any(|event| event.data.u64() == SOCKET) => Woken::HungUp,
                _ => Woken::Called,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    const SOON: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn each_call_wakes_once_and_a_closed_socket_for_good() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let signal = Signal::new(ours.as_fd()).unwrap();
        assert_eq!(signal.wait(SOON).unwrap(), Woken::TimedOut);
        for _ in 0..3 {
            iothread::ring(signal.call());
            assert_eq!(signal.wait(LONG).unwrap(), Woken::Called);
            assert_eq!(signal.wait(SOON).unwrap(), Woken::TimedOut);
        }
        iothread::ring(signal.call());
        drop(theirs);
        assert_eq!(signal.wait(LONG).unwrap(), Woken::HungUp, "not hidden by a call");
    }
}
