//! A guest's driver of one queue, which keeps requests in flight and checks every answer against the [`Model`].
//!
//! ```text
//!   a queue's area of guest memory, AREA_BYTES long
//!   0          RINGS_BYTES                                  each slot: 0 header | 64 status | 4096 data
//!   | the ring | slot 0 | slot 1 | ... | slot DEPTH - 1 |
//! ```
//!
//! A [`Load`] can be driven step by step, or run on a thread of its own: a [`Driver`], which takes [`Command`]s.

use super::model::{Model, ZEROES, sector_bytes};
use guest_mem::{GuestAddr, GuestMemory, IoVecs, MemHandle};
use io_engine::Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use virtqueue::QueueConfig;
use virtqueue::driver::{DriverConfig, DriverQueue, Seg};

pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_WRITE_ZEROES: u32 = 13;

pub const QUEUE_SIZE: u16 = 64;
/// Requests in flight at most.
pub const DEPTH: usize = 16;
/// Sectors of a request at most.
const SECTORS_MAX: u64 = 16;
const RINGS_BYTES: u64 = 64 << 10;
const SLOT_BYTES: u64 = 32 << 10;
pub const AREA_BYTES: u64 = RINGS_BYTES + DEPTH as u64 * SLOT_BYTES;
/// What one slot has of the region that comes and goes.
const EXTRA_SLOT_BYTES: u64 = SECTORS_MAX * 512;
/// What all slots of one queue have of it.
pub const EXTRA_AREA_BYTES: u64 = DEPTH as u64 * EXTRA_SLOT_BYTES;
/// Where the region that comes and goes lies in guest memory.
pub const EXTRA_ADDR: u64 = 1 << 32;
/// Just below where the index wraps.
pub const FIRST_INDEX: u16 = 65500;

/// How long anybody waits before the test has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where a guest's queue `index` lies.
pub fn area(index: u16) -> u64 {
    u64::from(index) * AREA_BYTES
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write { stamp: u64 },
    Flush,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    slot: usize,
    kind: Kind,
    /// First sector, as an index into the model.
    first: usize,
    sectors: usize,
    /// Sectors of the data, from its end, that lie in the extra region.
    in_extra: usize,
}

/// A driver of one queue.
pub struct Load {
    queue: DriverQueue,
    mem: MemHandle,
    index: u16,
    model: Model,
    rng: Rng,
    kick: OwnedFd,
    busy: BTreeMap<u16, InFlight>,
    free: Vec<usize>,
    taken: Vec<bool>,
    /// The region that comes and goes, by its file: the driver must not map it, so that all mappings are the server's.
    extra: Option<Arc<OwnedFd>>,
    /// New requests use it.
    use_extra: bool,
    /// It may go while requests use it: they may fail.
    extra_may_fail: bool,
    added: u16,
    answered: u64,
    answered_extra: u64,
}

impl Load {
    /// Sets up the ring of queue `index`, empty.
    pub fn new(
        memory: &Arc<GuestMemory>,
        index: u16,
        model: Model,
        event_idx: bool,
        kick: OwnedFd,
    ) -> Load {
        let mem = MemHandle::new(memory.clone());
        let indirect_entries = if index % 2 == 1 { 8 } else { 0 };
        let config = DriverConfig {
            size: QUEUE_SIZE,
            event_idx,
            indirect_entries,
            first_index: FIRST_INDEX,
        };
        assert!(config.bytes() <= RINGS_BYTES);
        let queue = DriverQueue::new(&mem, GuestAddr(area(index)), config).unwrap();
        Load {
            queue,
            mem,
            index,
            rng: Rng::new(u64::from(index) + 1),
            kick,
            busy: BTreeMap::new(),
            free: (0..DEPTH).collect(),
            taken: vec![false; model.len()],
            model,
            extra: None,
            use_extra: false,
            extra_may_fail: false,
            added: 0,
            answered: 0,
            answered_extra: 0,
        }
    }

    pub fn config(&self) -> QueueConfig {
        self.queue.config()
    }

    pub fn in_flight(&self) -> usize {
        self.busy.len()
    }

    /// The index of the next chain to be added.
    pub fn next_avail(&self) -> u16 {
        FIRST_INDEX.wrapping_add(self.added)
    }

    fn slot_addr(&self, slot: usize, offset: u64) -> GuestAddr {
        GuestAddr(area(self.index) + RINGS_BYTES + slot as u64 * SLOT_BYTES + offset)
    }

    fn extra_offset(&self, slot: usize) -> u64 {
        u64::from(self.index) * EXTRA_AREA_BYTES + slot as u64 * EXTRA_SLOT_BYTES
    }

    fn bytes_at(&self, at: GuestAddr, len: usize) -> IoVecs {
        let mut iov = IoVecs::new(&self.mem);
        iov.push(at, len as u64).unwrap();
        iov
    }

    /// Adds requests until [`DEPTH`] are in flight, and shows them to the device.
    pub fn fill(&mut self) {
        while self.add() {}
        self.show();
    }

    fn show(&mut self) {
        if self.queue.kick_needed() {
            iothread::ring(&self.kick);
        }
    }

    /// Adds one request, if there is room for it.
    pub fn add(&mut self) -> bool {
        let Some(slot) = self.free.pop() else { return false };
        let most = if self.model.single() { 1 } else { SECTORS_MAX };
        let sectors = 1 + self.rng.index(usize::try_from(most).unwrap());
        let first = self.rng.index(self.model.len() - sectors + 1);
        let dice = self.rng.below(200);
        let (code, kind) = match dice {
            0 => (T_FLUSH, Kind::Flush),
            // What two requests at once would leave in a sector is not defined.
            _ if self.taken[first..first + sectors].contains(&true) => {
                self.free.push(slot);
                return self.busy.is_empty();
            }
            1..100 => (T_IN, Kind::Read),
            100..190 => (T_OUT, Kind::Write { stamp: self.model.new_stamp() }),
            _ => (T_WRITE_ZEROES, Kind::Write { stamp: ZEROES }),
        };
        let has_data = matches!(code, T_IN | T_OUT);
        let in_extra = if self.use_extra && has_data { self.rng.index(sectors + 1) } else { 0 };
        let request = InFlight { slot, kind, first, sectors, in_extra };
        if code != T_FLUSH {
            self.taken[first..first + sectors].fill(true);
        }
        let head = self.queue.add(&self.segs(code, &request));
        self.busy.insert(head.expect("a ring has room for all slots"), request);
        self.added = self.added.wrapping_add(1);
        true
    }

    /// Writes the request to memory.
    fn segs(&self, code: u32, request: &InFlight) -> Vec<Seg> {
        let InFlight { slot, kind, first, sectors, in_extra } = *request;
        let sector = if matches!(code, T_IN | T_OUT) { self.model.sector(first) } else { 0 };
        let header = [&code.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        let (head_at, status_at) = (self.slot_addr(slot, 0), self.slot_addr(slot, 64));
        self.bytes_at(head_at, 16).copy_from(0, &header);
        self.bytes_at(status_at, 1).copy_from(0, &[0xEE]);
        let mut segs = vec![Seg { addr: head_at, len: 16, device_writes: false }];
        let data_at = self.slot_addr(slot, 4096);
        let mut seg = |addr: GuestAddr, bytes: usize, device_writes: bool| {
            if bytes > 0 {
                segs.push(Seg { addr, len: u32::try_from(bytes).unwrap(), device_writes });
            }
        };
        let near = (sectors - in_extra) * 512;
        let far = GuestAddr(EXTRA_ADDR + self.extra_offset(slot));
        match (code, kind) {
            (T_IN, _) => {
                seg(data_at, near, true);
                seg(far, in_extra * 512, true);
            }
            (T_OUT, Kind::Write { stamp }) => {
                let bytes: Vec<u8> = (first..first + sectors)
                    .flat_map(|index| sector_bytes(self.model.sector(index), stamp))
                    .collect();
                if near > 0 {
                    self.bytes_at(data_at, near).copy_from(0, &bytes[..near]);
                }
                if let (Some(extra), true) = (&self.extra, in_extra > 0) {
                    rustix::io::pwrite(extra, &bytes[near..], self.extra_offset(slot)).unwrap();
                }
                seg(data_at, near, false);
                seg(far, in_extra * 512, false);
            }
            (T_WRITE_ZEROES, _) => {
                let count = u64::try_from(sectors).unwrap();
                let range = [self.model.sector(first).to_le_bytes(), count.to_le_bytes()].concat();
                self.bytes_at(data_at, 16).copy_from(0, &range);
                seg(data_at, 16, false);
            }
            _ => {}
        }
        segs.push(Seg { addr: status_at, len: 1, device_writes: true });
        segs
    }

    /// Takes and checks all answers that are there; returns how many.
    pub fn reap(&mut self) -> usize {
        let mut count = 0;
        while let Some((head, written)) = self.queue.poll_used() {
            let request = self.busy.remove(&head).expect("poll_used knows what is in flight");
            self.answer(&request, written);
            count += 1;
        }
        self.answered += count as u64;
        count
    }

    fn answer(&mut self, request: &InFlight, written: u32) {
        let InFlight { slot, kind, first, sectors, in_extra } = *request;
        let mut status = [0];
        self.bytes_at(self.slot_addr(slot, 64), 1).copy_to(0, &mut status);
        let failed = status[0] == 1 && in_extra > 0 && self.extra_may_fail;
        assert!(failed || status[0] == 0, "queue {}: {request:?}: status {status:?}", self.index);
        match kind {
            Kind::Read if !failed => {
                assert_eq!(written as usize, sectors * 512 + 1, "{request:?}");
                let data = self.data(request);
                for (index, bytes) in (first..).zip(data.chunks(512)) {
                    self.model.check(index, bytes);
                }
            }
            _ => assert_eq!(written, 1, "{request:?}"),
        }
        for index in first..first + sectors {
            match kind {
                Kind::Write { stamp } if failed => self.model.unanswered(index, stamp),
                Kind::Write { stamp } => self.model.written(index, stamp),
                Kind::Read | Kind::Flush => {}
            }
        }
        self.answered_extra += u64::from(in_extra > 0 && !failed);
        self.release(request);
    }

    fn release(&mut self, request: &InFlight) {
        if !matches!(request.kind, Kind::Flush) {
            self.taken[request.first..request.first + request.sectors].fill(false);
        }
        self.free.push(request.slot);
    }

    /// What a read has left in memory.
    fn data(&self, request: &InFlight) -> Vec<u8> {
        let near = (request.sectors - request.in_extra) * 512;
        let mut data = vec![0; request.sectors * 512];
        if near > 0 {
            self.bytes_at(self.slot_addr(request.slot, 4096), near).copy_to(0, &mut data[..near]);
        }
        if let (Some(extra), true) = (&self.extra, request.in_extra > 0) {
            rustix::io::pread(extra, &mut data[near..], self.extra_offset(request.slot)).unwrap();
        }
        data
    }

    /// Does one request that the model knows nothing of, alone: its status, and the data that was read.
    pub fn request(
        &mut self,
        call: &OwnedFd,
        code: u32,
        sector: u64,
        data: &[u8],
        read_bytes: usize,
    ) -> (u8, Vec<u8>) {
        assert_eq!(self.in_flight(), 0);
        let header = [&code.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        let at = |offset| self.slot_addr(0, offset);
        self.bytes_at(at(0), 16).copy_from(0, &header);
        self.bytes_at(at(64), 1).copy_from(0, &[0xEE]);
        let len = data.len() + read_bytes;
        if !data.is_empty() {
            self.bytes_at(at(4096), len).copy_from(0, data);
        }
        let mut segs = vec![Seg { addr: at(0), len: 16, device_writes: false }];
        if len > 0 {
            let len = u32::try_from(len).unwrap();
            segs.push(Seg { addr: at(4096), len, device_writes: read_bytes > 0 });
        }
        segs.push(Seg { addr: at(64), len: 1, device_writes: true });
        self.queue.add(&segs).unwrap();
        self.added = self.added.wrapping_add(1);
        self.show();
        while self.queue.poll_used().is_none() {
            self.sleep(&[call]);
        }
        let (mut status, mut read) = ([0], vec![0; read_bytes]);
        self.bytes_at(self.slot_addr(0, 64), 1).copy_to(0, &mut status);
        if read_bytes > 0 {
            self.bytes_at(self.slot_addr(0, 4096), read_bytes).copy_to(0, &mut read);
        }
        (status[0], read)
    }

    /// Waits for answers until nothing is in flight.
    pub fn drain(&mut self, call: &OwnedFd) {
        while !self.busy.is_empty() {
            if self.reap() == 0 {
                self.sleep(&[call]);
            }
        }
    }

    /// Sleeps until the device notifies us, or anybody else does.
    fn sleep(&mut self, wakers: &[&OwnedFd]) {
        if self.queue.enable_notify() {
            return;
        }
        wait_readable(wakers, "the device owes an answer or a notification");
        self.queue.disable_notify();
    }

    /// The device will answer nothing of this ring any more. What was not answered may have been done, or not.
    pub fn abandon(mut self) -> Model {
        self.reap();
        self.forget(|model, index, stamp| model.unanswered(index, stamp))
    }

    fn forget(mut self, write: impl Fn(&mut Model, usize, u64)) -> Model {
        for request in self.busy.values() {
            if let Kind::Write { stamp } = request.kind {
                for index in request.first..request.first + request.sectors {
                    write(&mut self.model, index, stamp);
                }
            }
        }
        self.model
    }
}

/// Waits for one of some eventfds, and takes what they say.
pub fn wait_readable(fds: &[&OwnedFd], what: &str) {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::IN)).collect();
    let limit = Timespec { tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap(), tv_nsec: 0 };
    assert!(poll(&mut polled, Some(&limit)).unwrap() > 0, "{what}");
    for fd in fds {
        let _ = rustix::io::read(fd, &mut [0; 8]);
    }
}

/// What a running driver is told.
pub enum Command {
    /// Touch nothing until told to go; says so when it is so.
    Pause(Sender<()>),
    Go,
    /// The extra region is there; or may not be used any more, and it says when nothing in flight uses it.
    Extra(Arc<OwnedFd>, bool),
    NoExtra(Sender<()>),
    /// Go on until everything is answered, then end.
    Finish,
    /// End at once, leaving in flight what is.
    Abandon,
    /// Take the memory away under a full ring, and end.
    Truncate(OwnedFd),
}

/// A [`Load`] on a thread of its own.
pub struct Driver {
    commands: Sender<Command>,
    bell: Arc<OwnedFd>,
    counts: Arc<[AtomicU64; 2]>,
    thread: JoinHandle<Model>,
    pub config: QueueConfig,
}

impl Driver {
    /// Starts the thread that `make` makes its load on. `call` is what the device notifies.
    pub fn start(make: impl FnOnce() -> Load + Send + 'static, call: OwnedFd) -> Driver {
        let (commands, inbox) = channel();
        let (made, config) = channel();
        let bell = Arc::new(super::event());
        let counts = Arc::new([const { AtomicU64::new(0) }; 2]);
        let (of_thread, counted) = (bell.clone(), counts.clone());
        let thread = std::thread::spawn(move || {
            let load = make();
            made.send(load.config()).unwrap();
            Running { load, inbox, bell: of_thread, call, counts: counted }.run()
        });
        Driver { commands, bell, counts, thread, config: config.recv().unwrap() }
    }

    pub fn tell(&self, command: Command) {
        // A driver that has failed is found out when it is joined.
        let _ = self.commands.send(command);
        iothread::ring(&*self.bell);
    }

    /// Tells, and waits until it is so.
    pub fn ask(&self, command: impl FnOnce(Sender<()>) -> Command) {
        let (done, wait) = channel();
        self.tell(command(done));
        wait.recv_timeout(PATIENCE).expect("the driver answers");
    }

    /// Waits until `more` further requests were answered.
    pub fn wait_answers(&self, more: u64) {
        self.wait_count(0, more);
    }

    /// Waits until `more` further requests were answered that used the extra region.
    pub fn wait_extra_answers(&self, more: u64) {
        self.wait_count(1, more);
    }

    fn wait_count(&self, which: usize, more: u64) {
        let count = &self.counts[which];
        let goal = count.load(Ordering::Relaxed) + more;
        let limit = Instant::now() + PATIENCE;
        while count.load(Ordering::Relaxed) < goal {
            assert!(Instant::now() < limit && !self.thread.is_finished(), "the device hangs");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Ends it with `command`; returns what it knows of the disk.
    pub fn end(self, command: Command) -> Model {
        self.tell(command);
        self.thread.join().expect("the driver found nothing wrong")
    }
}

struct Running {
    load: Load,
    inbox: Receiver<Command>,
    bell: Arc<OwnedFd>,
    call: OwnedFd,
    counts: Arc<[AtomicU64; 2]>,
}

impl Running {
    fn run(mut self) -> Model {
        let mut paused = false;
        loop {
            let command = match paused {
                true => self.inbox.recv().map_err(|_| TryRecvError::Disconnected),
                false => self.inbox.try_recv(),
            };
            match command {
                Ok(Command::Pause(done)) => {
                    paused = true;
                    done.send(()).unwrap();
                }
                Ok(Command::Go) => paused = false,
                Ok(Command::Extra(fd, may_fail)) => {
                    (self.load.extra, self.load.extra_may_fail) = (Some(fd), may_fail);
                    self.load.use_extra = true;
                }
                Ok(Command::NoExtra(done)) => self.end_extra(done),
                Ok(Command::Finish) => {
                    self.load.drain(&self.call);
                    return self.load.model;
                }
                Ok(Command::Abandon) | Err(TryRecvError::Disconnected) => {
                    return self.load.abandon();
                }
                Ok(Command::Truncate(fd)) => {
                    self.load.fill();
                    rustix::fs::ftruncate(&fd, 0).unwrap();
                    return self.load.forget(|model, index, _| model.spoiled(index));
                }
                Err(TryRecvError::Empty) => self.work(),
            }
        }
    }

    fn work(&mut self) {
        self.load.fill();
        if self.load.reap() == 0 {
            self.load.sleep(&[&self.call, &self.bell]);
        }
        self.counts[0].store(self.load.answered, Ordering::Relaxed);
        self.counts[1].store(self.load.answered_extra, Ordering::Relaxed);
    }

    /// No new request uses the extra region; those that do are waited for.
    fn end_extra(&mut self, done: Sender<()>) {
        self.load.use_extra = false;
        while self.load.busy.values().any(|request| request.in_extra > 0) {
            if self.load.reap() == 0 {
                self.load.sleep(&[&self.call]);
            }
        }
        done.send(()).unwrap();
    }
}

/// Serialises tests of one binary that look at what belongs to the whole process.
pub static WHOLE_PROCESS: Mutex<()> = Mutex::new(());
