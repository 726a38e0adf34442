//! The loop, and the thread it runs on.

use crate::context::{Clock, IoContext, ServiceToken, Target};
use crate::mailbox::Mailbox;
use crate::poller::{Poller, WaitFor};
use io_engine::{Buf, Completion, EngineKind, IoEngine, Reaped, Wait, WatchId};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

/// What an I/O thread serves: something that takes requests, such as a virtqueue with its disk.
pub trait Service: 'static {
    /// What the services of one loop share among themselves and keep while none of them is there, such as the disks they serve.
    type Local: Default;

    /// Takes new requests and starts them, at most as many as are fair in one turn. Returns whether there was any.
    fn pump(&mut self, context: &IoContext) -> bool;
    /// An op submitted for `slot` has ended, or a task has called [`IoContext::finish`] for it (then `buf` is `None`).
    fn complete(&mut self, context: &IoContext, slot: u32, result: io::Result<()>, buf: Buf);
    /// The turn is over: answers become visible now, with one notification at most.
    fn publish(&mut self);
    /// Whether [`Service::pump`] would find something. Looks at memory only: it is called while polling.
    fn has_work(&self) -> bool;
    /// The thread is about to sleep: asks to be kicked. Returns `true` if work came in the meantime.
    fn arm(&mut self) -> bool;
    /// The thread is awake: kicks are not needed.
    fn disarm(&mut self);
    /// Requests that were taken and not yet answered.
    fn in_flight(&self) -> usize;
}

/// A service's number in its loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceId(pub u16);

/// What a turn has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Something: there may be more.
    Worked,
    /// Nothing.
    Idle,
    /// The loop was told to stop.
    Stopped,
}

type Drained<S> = Box<dyn FnOnce(&mut IoLoop<S>)>;

struct Entry<S: Service> {
    service: S,
    kick: Option<WatchId>,
    /// Set while the service drains: it takes nothing new, and this runs when it owes nothing any more.
    drained: Option<Drained<S>>,
}

/// One I/O thread's loop.
pub struct IoLoop<S: Service> {
    context: IoContext,
    /// What the services share.
    pub local: S::Local,
    services: Vec<Option<Entry<S>>>,
    poller: Poller,
    mailbox: Arc<Mailbox<IoLoop<S>>>,
    reaped: Reaped,
    finished: Vec<(ServiceToken, io::Result<()>)>,
    stopping: bool,
}

impl<S: Service> std::fmt::Debug for IoLoop<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoLoop").field("context", &self.context).finish_non_exhaustive()
    }
}

impl<S: Service> IoLoop<S> {
    /// A loop with no services. `poll_max_ns` bounds the time spent looking before sleeping.
    pub fn new(
        context: IoContext,
        mailbox: Arc<Mailbox<IoLoop<S>>>,
        poll_max_ns: u64,
    ) -> io::Result<IoLoop<S>> {
        context.watch(mailbox.wake_fd()?, Target::Mail)?;
        Ok(IoLoop {
            context,
            local: S::Local::default(),
            services: Vec::new(),
            poller: Poller::new(poll_max_ns),
            mailbox,
            reaped: Reaped::default(),
            finished: Vec::new(),
            stopping: false,
        })
    }

    /// What the services and tasks of this loop share.
    pub fn context(&self) -> &IoContext {
        &self.context
    }

    /// Adds the service that `make` builds for its number.
    pub fn add<E: From<io::Error>>(
        &mut self,
        make: impl FnOnce(&mut IoLoop<S>, ServiceId) -> Result<S, E>,
    ) -> Result<ServiceId, E> {
        let index = self.services.iter().position(Option::is_none).unwrap_or_else(|| {
            self.services.push(None);
            self.services.len() - 1
        });
        let id = ServiceId(u16::try_from(index).map_err(|_| io::Error::other("too many queues"))?);
        let service = make(self, id)?;
        self.services[index] = Some(Entry { service, kick: None, drained: None });
        Ok(id)
    }

    /// The service with that number, if it is still there.
    pub fn get(&mut self, id: ServiceId) -> Option<&mut S> {
        Some(&mut self.services.get_mut(usize::from(id.0))?.as_mut()?.service)
    }

    /// Has `fd` wake the loop for the service; replaces the one before.
    pub fn set_kick(&mut self, id: ServiceId, fd: Option<OwnedFd>) -> io::Result<()> {
        let watch = match fd {
            Some(fd) => Some(self.context.watch(fd, Target::Kick { service: id.0 })?),
            None => None,
        };
        let entry = self.services.get_mut(usize::from(id.0)).and_then(Option::as_mut);
        let before = match entry {
            Some(entry) => std::mem::replace(&mut entry.kick, watch),
            None => watch,
        };
        if let Some(before) = before {
            self.context.unwatch(before);
        }
        Ok(())
    }

    /// Stops taking requests from the service; when it owes no answer any more, runs `then`, after which it goes on.
    pub fn drain(&mut self, id: ServiceId, then: impl FnOnce(&mut IoLoop<S>) + 'static) {
        let entry = self.services.get_mut(usize::from(id.0)).and_then(Option::as_mut);
        match entry {
            Some(entry) => match entry.drained.take() {
                None => entry.drained = Some(Box::new(then)),
                Some(first) => {
                    entry.drained = Some(Box::new(move |io| {
                        first(io);
                        then(io);
                    }));
                }
            },
            None => then(self),
        }
    }

    /// Removes a service, which must have been drained.
    pub fn remove(&mut self, id: ServiceId) -> Option<S> {
        let entry = self.services.get_mut(usize::from(id.0))?.take()?;
        debug_assert_eq!(entry.service.in_flight(), 0, "drain first");
        if let Some(watch) = entry.kick {
            self.context.unwatch(watch);
        }
        Some(entry.service)
    }

    /// Ends the loop after this turn.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// One turn. Sleeps only in the engine, and only if `wait` allows it and there was nothing to do.
    pub fn turn(&mut self, wait: Wait) -> io::Result<Turn> {
        let mut worked = false;
        for entry in self.services.iter_mut().flatten() {
            if entry.drained.is_none() {
                worked |= entry.service.pump(&self.context);
            }
        }
        worked |= self.context.run_ready();
        let wait = if worked { Wait::No } else { wait };
        self.context.reap(&mut self.reaped, wait)?;
        worked |= self.dispatch();
        for entry in self.services.iter_mut().flatten() {
            entry.service.publish();
        }
        worked |= self.run_drained();
        if self.mailbox.has_mail() {
            worked = true;
            for message in self.mailbox.take() {
                message(self);
            }
            // A message may have stopped a service that was idle already: it need not wait for another event.
            self.run_drained();
        }
        match (self.stopping, worked) {
            (true, _) => Ok(Turn::Stopped),
            (false, true) => Ok(Turn::Worked),
            (false, false) => Ok(Turn::Idle),
        }
    }

    /// Hands completions to whom they belong, and runs the tasks they wake.
    fn dispatch(&mut self) -> bool {
        let mut worked = !self.reaped.completions.is_empty() || !self.reaped.woken.is_empty();
        for done in self.reaped.completions.drain(..) {
            let Completion { token, result, buf } = done;
            match Target::unpack(token) {
                Target::Service(token) => {
                    if let Some(entry) = self.services[usize::from(token.service)].as_mut() {
                        entry.service.complete(&self.context, token.slot, result, buf);
                    }
                }
                _ => self.context.complete(Completion { token, result, buf }),
            }
        }
        self.reaped.woken.clear();
        self.context.wake_due();
        self.context.wake_room();
        worked |= self.context.run_ready();
        self.context.take_finished(&mut self.finished);
        for (token, result) in self.finished.drain(..) {
            worked = true;
            if let Some(entry) = self.services[usize::from(token.service)].as_mut() {
                entry.service.complete(&self.context, token.slot, result, Buf::None);
            }
        }
        worked
    }

    /// Runs what was waiting for a service to have nothing in flight.
    fn run_drained(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.services.len() {
            let Some(entry) = self.services[index].as_mut() else { continue };
            if entry.drained.is_some() && entry.service.in_flight() == 0 {
                let then = entry.drained.take();
                any = true;
                if let Some(then) = then {
                    then(self);
                }
            }
        }
        any
    }

    /// Runs until told to stop.
    ///
    /// # Errors
    ///
    /// Only what the engine itself fails with, which nobody can go on after.
    pub fn run(&mut self) -> io::Result<()> {
        self.disarm();
        loop {
            match self.turn(Wait::No)? {
                Turn::Worked => continue,
                Turn::Stopped => return Ok(()),
                Turn::Idle => {}
            }
            let wait_for = if self.context.is_idle() { WaitFor::Guest } else { WaitFor::Host };
            let idle_since = self.context.now_ns();
            if !self.poll(idle_since, self.poller.window_ns(wait_for)) && !self.arm() {
                let wait = self.context.wait_at_most();
                let turn = self.turn(wait)?;
                self.disarm();
                if turn == Turn::Stopped {
                    return Ok(());
                }
            } else {
                self.disarm();
            }
            self.poller.learn(wait_for, self.context.now_ns() - idle_since);
        }
    }

    /// Looks at memory until there is something to do, or `window_ns` have passed since `since_ns`.
    fn poll(&self, since_ns: u64, window_ns: u64) -> bool {
        /// Looks between two readings of the clock, which cost more than a look.
        const LOOKS: u32 = 16;
        if window_ns == 0 {
            return false;
        }
        loop {
            for _ in 0..LOOKS {
                if self.has_work() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if self.context.now_ns() - since_ns >= window_ns {
                return false;
            }
        }
    }

    fn has_work(&self) -> bool {
        let queued = |e: &Entry<S>| e.drained.is_none() && e.service.has_work();
        // What cannot be taken is no work: it would keep us from sleeping until something completes and makes room.
        (self.context.has_room() && self.services.iter().flatten().any(queued))
            || self.context.has_completions()
            || self.mailbox.has_mail()
    }

    /// Asks every service for kicks. Returns whether there is work already, so that there is no reason to sleep.
    fn arm(&mut self) -> bool {
        let mut work = false;
        let room = self.context.has_room();
        for entry in self.services.iter_mut().flatten() {
            if entry.drained.is_none() && room {
                work |= entry.service.arm();
            }
        }
        work || self.mailbox.has_mail()
    }

    fn disarm(&mut self) {
        for entry in self.services.iter_mut().flatten() {
            entry.service.disarm();
        }
    }
}

/// How to make an I/O thread.
#[derive(Clone, Debug)]
pub struct IoThreadConfig {
    /// The thread's name, at most 15 bytes of it shown by the system.
    pub name: String,
    /// Its engine.
    pub engine: EngineKind,
    /// Ops in flight at most.
    pub depth: u32,
    /// Tasks at most: requests that need more than one host operation.
    pub tasks: u32,
    /// Bound of the time spent polling before sleeping, in nanoseconds; 0: never poll.
    pub poll_max_ns: u64,
}

/// A running I/O thread. Dropping it stops the thread, after everything in flight has ended.
#[derive(Debug)]
pub struct IoThread<S: Service> {
    mailbox: Arc<Mailbox<IoLoop<S>>>,
    join: Option<JoinHandle<()>>,
}

impl<S: Service> IoThread<S> {
    /// Starts a thread.
    ///
    /// # Errors
    ///
    /// If the thread or its engine cannot be made: the kernel's reason.
    #[expect(clippy::disallowed_methods, reason = "I/O threads are started here and nowhere else")]
    pub fn start(config: IoThreadConfig) -> io::Result<IoThread<S>> {
        let mailbox = Arc::new(Mailbox::new()?);
        let (started, ready) = mpsc::channel();
        let inbox = mailbox.clone();
        let body = move || {
            let made = IoEngine::new(config.engine, config.depth).and_then(|engine| {
                let context = IoContext::new(engine, config.tasks, Clock::monotonic());
                IoLoop::new(context, inbox, config.poll_max_ns)
            });
            let mut io_loop = match made {
                Ok(io_loop) => io_loop,
                Err(error) => return drop(started.send(Err(error))),
            };
            let _ = started.send(Ok(()));
            drop(started);
            if let Err(error) = io_loop.run() {
                // Its disks cannot be served any more, and going on would leave their guests hanging for ever.
                tracing::error!("I/O thread: the engine failed: {error}");
                std::process::abort();
            }
        };
        let join = std::thread::Builder::new().name(config.name).spawn(body)?;
        ready.recv().map_err(|_| io::Error::other("the I/O thread ended at once"))??;
        Ok(IoThread { mailbox, join: Some(join) })
    }

    /// Runs `message` on the thread, in its next turn.
    pub fn send(&self, message: impl FnOnce(&mut IoLoop<S>) + Send + 'static) {
        self.mailbox.send(Box::new(message));
    }

    /// Runs `f` on the thread and waits for its result.
    pub fn call<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut IoLoop<S>) -> T + Send + 'static,
    ) -> T {
        self.call_later(move |io_loop, reply| reply(f(io_loop)))
    }

    /// As [`IoThread::call`], for a result that comes later: `f` passes `reply` on to whatever will know it.
    pub fn call_later<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut IoLoop<S>, Box<dyn FnOnce(T)>) + Send + 'static,
    ) -> T {
        let (sender, receiver) = mpsc::channel();
        self.send(move |io_loop| f(io_loop, Box::new(move |value| drop(sender.send(value)))));
        receiver.recv().expect("an I/O thread answers before it ends")
    }
}

impl<S: Service> Drop for IoThread<S> {
    fn drop(&mut self) {
        self.send(IoLoop::stop);
        if let Some(join) = self.join.take() {
            let _ = join.join();
        }
    }
}
