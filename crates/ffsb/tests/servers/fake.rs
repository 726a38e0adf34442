//! A server in this process that behaves as it is told: also as no good server does.

use super::Rng;
use export::vhost_user::{Connection, Device, QueueStart, Session, feature};
use guest_mem::{GuestMemory, MemHandle};
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tempfile::TempDir;
use virtio_blk::{ConfigSpace, DiskInfo, Features};
use virtqueue::{DescChain, Notify, Virtqueue};

/// What the server does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Answers them, in any order.
    Good,
    /// Answers all with this status.
    Status(u8),
    /// Answers nothing after so many requests.
    Silent(u64),
    /// Answers so many, and uses a descriptor that is not in flight then.
    Mad(u64),
    /// Answers so many, and goes on without notifications.
    Mute(u64),
}

/// A disk to be served.
#[derive(Clone, Copy, Debug)]
pub struct FakeDisk {
    pub manner: Manner,
    pub info: DiskInfo,
    pub without: Features,
    pub event_idx: bool,
}

pub const BYTES: u64 = 4 << 20;

impl FakeDisk {
    pub fn new(manner: Manner) -> FakeDisk {
        let info = DiskInfo {
            capacity_sectors: BYTES / 512,
            blk_size: 512,
            physical_block_exp: 0,
            alignment_offset: 0,
            min_io_size: 0,
            opt_io_size: 0,
            num_queues: 4,
            seg_max: 126,
            size_max: None,
            discard: None,
            write_zeroes: None,
            wce: true,
            read_only: false,
        };
        FakeDisk { manner, info, without: Features::empty(), event_idx: true }
    }

    /// Serves one client.
    pub fn serve(self) -> FakeServer {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("disk.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let shared = Arc::new(Shared {
            disk: self,
            data: Mutex::new(vec![0; usize::try_from(BYTES).unwrap()]),
            requests: AtomicU64::new(0),
            largest: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            returned: AtomicU64::new(0),
            notifications: AtomicU64::new(0),
        });
        let served = shared.clone();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let config = ConfigSpace::new(&served.disk.info);
            let mut device = FakeDevice { shared: served, config, queues: BTreeMap::new() };
            Session::new(Connection::new(stream), &mut device).serve()
        });
        FakeServer { socket, shared, _dir: dir }
    }
}

pub struct FakeServer {
    pub socket: PathBuf,
    shared: Arc<Shared>,
    _dir: TempDir,
}

impl FakeServer {
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    pub fn flushes(&self) -> u64 {
        self.shared.flushes.load(Ordering::SeqCst)
    }

    pub fn notifications(&self) -> u64 {
        self.shared.notifications.load(Ordering::SeqCst)
    }

    /// Queues that the client has stopped.
    pub fn returned(&self) -> u64 {
        self.shared.returned.load(Ordering::SeqCst)
    }

    /// Data bytes of the largest request.
    pub fn largest(&self) -> u64 {
        self.shared.largest.load(Ordering::SeqCst)
    }
}

struct Shared {
    disk: FakeDisk,
    data: Mutex<Vec<u8>>,
    requests: AtomicU64,
    largest: AtomicU64,
    flushes: AtomicU64,
    returned: AtomicU64,
    notifications: AtomicU64,
}

struct Worker {
    stop: Arc<AtomicBool>,
    kick: OwnedFd,
    thread: JoinHandle<u16>,
}

struct FakeDevice {
    shared: Arc<Shared>,
    config: ConfigSpace,
    queues: BTreeMap<u16, Worker>,
}

impl FakeDevice {
    fn end_worker(&mut self, index: u16) -> u16 {
        let worker = self.queues.remove(&index).unwrap();
        worker.stop.store(true, Ordering::SeqCst);
        iothread::ring(&worker.kick);
        worker.thread.join().unwrap()
    }
}

impl Device for FakeDevice {
    fn features(&self) -> u64 {
        let disk = &self.shared.disk;
        let features = disk.info.features().difference(disk.without) | Features::MQ;
        features.bits() | if disk.event_idx { feature::RING_EVENT_IDX } else { 0 }
    }

    fn queues_max(&self) -> u16 {
        self.shared.disk.info.num_queues
    }

    fn queue_size_max(&self) -> u16 {
        128
    }

    fn read_config(&self, offset: u32, into: &mut [u8]) {
        self.config.read(offset, into);
    }

    fn write_config(&mut self, _: u32, _: &[u8]) -> Result<(), String> {
        Err("not here".into())
    }

    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), String> {
        let (stop, kick) = (Arc::new(AtomicBool::new(false)), start.kick.try_clone().unwrap());
        let (shared, stopped) = (self.shared.clone(), stop.clone());
        let thread = std::thread::spawn(move || shared.serve_queue(index, &start, &stopped));
        self.queues.insert(index, Worker { stop, kick, thread });
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> u16 {
        self.shared.returned.fetch_add(1, Ordering::SeqCst);
        self.end_worker(index)
    }

    fn set_enabled(&mut self, _: u16, _: bool) {}
    fn set_kick(&mut self, _: u16, _: OwnedFd) {}
    fn set_call(&mut self, _: u16, _: Option<OwnedFd>) {}
    fn set_err(&mut self, _: u16, _: Option<OwnedFd>) {}

    fn set_memory(&mut self, _: Arc<GuestMemory>) -> Vec<(u16, String)> {
        Vec::new()
    }

    fn reset(&mut self) {
        self.end_session();
    }

    fn end_session(&mut self) {
        while let Some(index) = self.queues.keys().next().copied() {
            self.end_worker(index);
        }
    }

    fn needs_reset(&self) -> bool {
        false
    }
}

impl Shared {
    fn serve_queue(&self, index: u16, start: &QueueStart, stop: &AtomicBool) -> u16 {
        let mem = MemHandle::new(start.memory.clone());
        let mut queue = Virtqueue::new(&mem, &start.config, start.next_avail).unwrap();
        let mut rng = Rng(u64::from(index));
        let mut taken = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            queue.disable_kicks();
            while let Some(chain) = queue.pop().unwrap() {
                taken.push(chain);
            }
            if taken.is_empty() {
                if !queue.enable_kicks() {
                    let _ = poll(&mut [PollFd::new(&start.kick, PollFlags::IN)], None);
                    let _ = rustix::io::read(&start.kick, &mut [0; 8]);
                }
                continue;
            }
            // Some of what is there, in any order, now and then after the client has had time to go to sleep.
            if rng.below(4) == 0 {
                std::thread::yield_now();
            }
            for _ in 0..=rng.below(taken.len()) {
                let chain = taken.swap_remove(rng.below(taken.len()));
                let nth = self.requests.fetch_add(1, Ordering::SeqCst);
                if self.disk.manner == Manner::Mad(nth) {
                    // As no device of ours can be made to: by hand.
                    let used = mem.slice(start.config.used, 4 + 8).unwrap();
                    let at = used.load_index(2);
                    let entry = start.config.used.0 + 4 + 8 * u64::from(at % start.config.size);
                    mem.slice(guest_mem::GuestAddr(entry), 8).unwrap().write_u32(0, 77);
                    used.store_index(2, at.wrapping_add(1));
                    self.notify(start);
                    return queue.next_avail();
                }
                self.answer(&mut queue, chain, nth);
            }
            let mute = matches!(self.disk.manner, Manner::Mute(n) if self.requests.load(Ordering::SeqCst) > n);
            if queue.publish() == Notify::Needed && !mute {
                self.notify(start);
            }
        }
        queue.next_avail()
    }

    fn notify(&self, start: &QueueStart) {
        if let Some(call) = &start.call {
            self.notifications.fetch_add(1, Ordering::SeqCst);
            iothread::ring(call);
        }
    }

    fn answer(&self, queue: &mut Virtqueue, mut chain: DescChain, nth: u64) {
        let status = chain.writable.pop_last_byte().expect("a status");
        let mut header = [0; 16];
        assert_eq!(chain.readable.copy_to(0, &mut header), 16);
        chain.readable.trim_front(16);
        let kind = u32::from_le_bytes(*header.first_chunk().unwrap());
        let sector = u64::from_le_bytes(*header.last_chunk().unwrap());
        let at = usize::try_from(sector * 512).unwrap();
        let bytes = chain.readable.bytes() + chain.writable.bytes();
        self.largest.fetch_max(bytes, Ordering::SeqCst);
        let len = usize::try_from(bytes).unwrap();
        let mut data = self.data.lock().unwrap();
        let code = match self.disk.manner {
            Manner::Silent(n) if nth >= n => return,
            Manner::Status(code) => code,
            _ => {
                match kind {
                    0 => assert_eq!(chain.writable.copy_from(0, &data[at..at + len]), len),
                    1 => assert_eq!(chain.readable.copy_to(0, &mut data[at..at + len]), len),
                    4 => drop(self.flushes.fetch_add(1, Ordering::SeqCst)),
                    _ => panic!("request of kind {kind}"),
                }
                0
            }
        };
        status.write(code);
        let written = u32::try_from(chain.writable.bytes() + 1).unwrap();
        queue.push_used(chain.head, written);
    }
}
