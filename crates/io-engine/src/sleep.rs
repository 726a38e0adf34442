//! Where engines without a ring sleep: epoll over watched descriptors and the engine's own eventfds.
//!
//! Everything is watched for edges. An eventfd is never read: each write to it is one more edge. An edge that came while its
//! owner was awake ends the next sleep at once, with nothing to be found: harmless, and rare.

use crate::op::{Token, Wait};
use crate::sys::Counters;
use crate::watch::{WatchId, Watches};
use rustix::event::{Timespec, epoll};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

/// The key of the engine's own eventfds.
const OWN: u64 = u64::MAX;
/// Events taken by one call; the others wait for the next.
const EVENTS_MAX: usize = 32;

/// The sleeping place of one engine.
#[derive(Debug)]
pub(crate) struct Sleeper {
    epoll: OwnedFd,
    watches: Watches,
    /// Looks at the ring since the watched descriptors were last asked for.
    looks: u32,
}

impl Sleeper {
    pub(crate) fn new() -> io::Result<Sleeper> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Sleeper { epoll, watches: Watches::default(), looks: 0 })
    }

    /// Has the engine's own `fd` end sleeps, and nothing more.
    pub(crate) fn add_own(&mut self, fd: impl AsFd) -> io::Result<()> {
        self.add(fd, OWN)
    }

    fn add(&self, fd: impl AsFd, key: u64) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(key), flags)?)
    }

    pub(crate) fn watch(&mut self, fd: OwnedFd, token: Token) -> io::Result<WatchId> {
        let id = self.watches.add(fd, token);
        let Some((_, fd, _)) = self.watches.get(id.key()) else { return Ok(id) };
        if let Err(error) = self.add(fd, id.key()) {
            self.watches.remove(id);
            return Err(error);
        }
        Ok(id)
    }

    pub(crate) fn unwatch(&mut self, id: WatchId) -> Option<OwnedFd> {
        let fd = self.watches.remove(id)?;
        // Should it fail, the events are nobody's.
        let _ = epoll::delete(&self.epoll, &fd);
        Some(fd)
    }

    pub(crate) fn watches_nothing(&self) -> bool {
        self.watches.is_empty()
    }

    /// Asks for readable descriptors, sleeping up to `wait`.
    pub(crate) fn sleep(
        &mut self,
        wait: Wait,
        woken: &mut Vec<Token>,
        counters: &mut Counters,
    ) -> io::Result<()> {
        self.looks = 0;
        counters.syscalls += 1;
        let mut events = [MaybeUninit::uninit(); EVENTS_MAX];
        let timeout = match wait {
            Wait::Forever => None,
            Wait::No => Some(Timespec { tv_sec: 0, tv_nsec: 0 }),
            Wait::Ns(ns) => Some(Timespec {
                tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
                tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
            }),
        };
        let events = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for event in events {
            if let Some((_, _, token)) = self.watches.get(event.data.u64()) {
                woken.push(token);
            }
        }
        Ok(())
    }

    /// Asks without sleeping, and not each time if the owner has `found_something` else: a busy engine looks at its watched
    /// descriptors now and then, an idle one always.
    pub(crate) fn glance(
        &mut self,
        found_something: bool,
        woken: &mut Vec<Token>,
        counters: &mut Counters,
    ) -> io::Result<()> {
        const LOOKS_MAX: u32 = 32;
        self.looks += 1;
        if self.watches.is_empty() || found_something && self.looks < LOOKS_MAX {
            return Ok(());
        }
        self.sleep(Wait::No, woken, counters)
    }
}
