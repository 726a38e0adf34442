//! A real disk served to a front end and its drivers, all in one process, for the tests of the whole device.
//!
//! ```text
//!   test thread      FrontEnd ---------- socket ---------- Server, on its own thread: Session -> BlkDevice
//!   driver threads   DriverQueue, Model == guest memory == BlkQueue, on I/O threads -> engine -> image
//! ```

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(missing_docs, missing_debug_implementations, clippy::disallowed_methods)]

pub mod load;
pub mod model;

use block::{CacheMode, Image, OpenOptions};
use export::blk::{BlkDevice, BlkOptions, BlkQueue};
use export::server::{Control, Listener, Server};
use export::vhost_user::feature;
use export::vhost_user::frontend::{FrontEnd, Vring};
use export::vhost_user::message::{ProtocolFeatures, RingAddrs, code};
use guest_mem::{GuestAddr, GuestMemory, Region, RegionSpec};
use io_engine::{EngineKind, IoEngine};
use iothread::{IoThread, IoThreadConfig};
use load::{Command, Driver, FIRST_INDEX, Load, QUEUE_SIZE, area};
use model::Model;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use tempfile::TempDir;
use virtqueue::QueueConfig;

/// Sectors of the disk that each driver has.
pub const SECTORS: usize = 2048;
/// Where guest memory lies in the front end's address space, as it says.
const USER_BASE: u64 = 0x7f00_0000_0000;
const DEVICE_NEEDS_RESET: u64 = 0x40;

/// How a disk is served.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub engine: EngineKind,
    pub cache: CacheMode,
    pub io_threads: usize,
    pub queues: u16,
    pub in_ram: bool,
    pub event_idx: bool,
}

/// The setups that tests of the whole device run in.
pub const SETUPS: [Setup; 5] = [
    setup(EngineKind::IoUring, CacheMode::None, 1, 2, false),
    setup(EngineKind::IoUring, CacheMode::Writeback, 2, 4, true),
    setup(EngineKind::Threads, CacheMode::Writeback, 2, 3, false),
    Setup { event_idx: false, ..setup(EngineKind::Threads, CacheMode::Unsafe, 1, 1, true) },
    setup(EngineKind::Native, CacheMode::None, 2, 4, false),
];

const fn setup(
    engine: EngineKind,
    cache: CacheMode,
    io_threads: usize,
    queues: u16,
    in_ram: bool,
) -> Setup {
    Setup { engine, cache, io_threads, queues, in_ram, event_idx: true }
}

/// The setups that this host can run. The others are reported.
pub fn setups() -> impl Iterator<Item = Setup> {
    SETUPS.into_iter().filter(|setup| match IoEngine::new(setup.engine, 8) {
        Ok(_) if setup.in_ram && !Path::new("/dev/shm").is_dir() => {
            println!("SKIPPED: {setup:?}: no /dev/shm");
            false
        }
        Ok(_) => true,
        Err(error) => {
            println!("SKIPPED: {setup:?}: {error}");
            false
        }
    })
}

/// One that every host can run.
pub const PLAIN: Setup = SETUPS[2];

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// A new memory file with a name that no other one has.
pub fn memfd(bytes: u64) -> (OwnedFd, String) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("device-test-{}.", COUNT.fetch_add(1, Ordering::Relaxed));
    let fd = memfd_create(name.as_str(), MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, bytes).unwrap();
    (fd, name)
}

/// Mappings of the memory file `name` in this process.
pub fn mappings(name: &str) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(name)).count()
}

#[derive(Clone, Default)]
pub struct Wishes {
    stop: Arc<AtomicBool>,
    pub changed: Arc<AtomicBool>,
}

impl Control for Wishes {
    fn stop_requested(&mut self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn take_config_change(&mut self) -> bool {
        self.changed.swap(false, Ordering::SeqCst)
    }
}

/// A served disk.
pub struct Host {
    pub setup: Setup,
    pub image: Image,
    pub wishes: Wishes,
    socket: PathBuf,
    wake: OwnedFd,
    thread: JoinHandle<BlkDevice>,
    dirs: Vec<TempDir>,
}

impl Host {
    /// Serves a new image of zeroes; `None` if that cannot be done here, which is reported.
    pub fn start(setup: Setup) -> Option<Host> {
        let bytes = u64::from(setup.queues) * SECTORS as u64 * 512;
        Host::start_with(setup, bytes)
    }

    /// As [`Host::start`], with another size than all models together have.
    pub fn start_with(setup: Setup, bytes: u64) -> Option<Host> {
        let place = if setup.in_ram { "/dev/shm" } else { env!("CARGO_TARGET_TMPDIR") };
        let dir = tempfile::tempdir_in(place).unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        let host = Host::serve(setup, &path)?;
        Some(Host { dirs: [host.dirs, vec![dir]].into_iter().flatten().collect(), ..host })
    }

    /// Serves an image that is there.
    pub fn serve(setup: Setup, path: &Path) -> Option<Host> {
        let options = OpenOptions { cache: setup.cache, ..OpenOptions::default() };
        let image = match Image::open(path, &options) {
            Err(error) if error.kind() == block::ErrorKind::Unsupported => {
                println!("SKIPPED: {setup:?}: {error}");
                return None;
            }
            image => image.unwrap(),
        };
        let start = |index| {
            let config = IoThreadConfig {
                name: format!("iothread-{index}"),
                engine: setup.engine,
                depth: 64,
                tasks: 32,
                poll_max_ns: 20_000,
            };
            Arc::new(IoThread::<BlkQueue>::start(config).unwrap())
        };
        let threads: Vec<_> = (0..setup.io_threads).map(start).collect();
        let options = BlkOptions {
            queues: setup.queues,
            queue_size: 256,
            serial: "device-test".into(),
            // All requests, some, or none.
            trace_one_in: NonZeroU32::new(u32::from(setup.queues) - 1),
        };
        let mut device = BlkDevice::new(image.clone(), &options, &threads).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("disk.sock");
        let (wishes, wake) = (Wishes::default(), event());
        let mut server = Server::new(Listener::bind(&socket).unwrap(), wake.try_clone().unwrap());
        let mut control = wishes.clone();
        let thread = std::thread::spawn(move || {
            server.run(&mut device, &mut control).unwrap();
            device
        });
        Some(Host { setup, image, wishes, socket, wake, thread, dirs: vec![dir] })
    }

    /// Has the server look at its wishes.
    pub fn wake(&self) {
        iothread::ring(&self.wake);
    }

    /// Stops the server, syncs the disk, and returns what it holds.
    pub fn stop(self) -> Vec<u8> {
        self.wishes.stop.store(true, Ordering::SeqCst);
        self.wake();
        let device = self.thread.join().expect("the server does not panic");
        device.sync().unwrap();
        check_trace(&device);
        let content = std::fs::read(self.image.path()).unwrap();
        drop(device);
        content
    }

    /// A new front end and its guest, with memory announced and no ring started.
    pub fn client(&self) -> Client {
        let mut front = FrontEnd::connect(&self.socket).unwrap();
        let without = if self.setup.event_idx { 0 } else { feature::RING_EVENT_IDX };
        front.handshake(!without, ProtocolFeatures::OFFERED).unwrap();
        let mut client = Client::new(front, self.setup);
        client.set_mem_table().unwrap();
        client
    }

    /// What the drivers know of a disk of zeroes.
    pub fn models(&self) -> Vec<Model> {
        let first = |index: u16| u64::from(index) * SECTORS as u64;
        (0..self.setup.queues).map(|index| Model::new(first(index), 1, SECTORS)).collect()
    }
}

/// Whatever became of a disk's sessions and rings: traced requests have passed every stage once, and none is left over.
fn check_trace(device: &BlkDevice) {
    for path in device.meter().trace().iter().flat_map(|trace| &trace.types) {
        assert_eq!(path.total.count(), path.sampled);
        assert!(path.stages.iter().all(|times| times.count() == path.sampled), "{path:?}");
        let stages: u64 = path.stages.iter().map(|times| times.sum_ns()).sum();
        assert_eq!(stages, path.total.sum_ns());
    }
}

/// The eventfds of a queue, as the front end keeps them.
pub struct Events {
    pub kick: OwnedFd,
    pub call: OwnedFd,
    pub err: OwnedFd,
}

/// A front end and the memory of its guest.
pub struct Client {
    pub front: FrontEnd,
    pub memory: Arc<GuestMemory>,
    pub memfd: OwnedFd,
    pub spec: RegionSpec,
    pub events: Vec<Events>,
    pub memory_name: String,
    setup: Setup,
}

impl Client {
    fn new(front: FrontEnd, setup: Setup) -> Client {
        let len = area(setup.queues);
        let (memfd, memory_name) = memfd(len);
        let spec =
            RegionSpec { guest_addr: GuestAddr(0), len, user_addr: USER_BASE, file_offset: 0 };
        let region = Region::map(spec, &memfd).unwrap();
        let memory = Arc::new(GuestMemory::default().with_region(region).unwrap());
        let events = || Events { kick: event(), call: event(), err: event() };
        let events = (0..setup.queues).map(|_| events()).collect();
        Client { front, memory, memfd, spec, events, memory_name, setup }
    }

    pub fn set_mem_table(&mut self) -> Result<(), export::vhost_user::Error> {
        self.front.set_mem_table(&[(self.spec, self.memfd.as_fd())])
    }

    /// What makes the load of queue `index`, on whatever thread.
    pub fn load(&self, index: u16, model: Model) -> impl FnOnce() -> Load + Send + 'static {
        let kick = self.events[usize::from(index)].kick.try_clone().unwrap();
        let (memory, event_idx) = (self.memory.clone(), self.setup.event_idx);
        move || Load::new(&memory, index, model, event_idx, kick)
    }

    /// Starts a ring that a load has set up, at `base`.
    pub fn start_ring(&mut self, index: u16, config: &QueueConfig, base: u16) {
        let Events { kick, call, err } = &self.events[usize::from(index)];
        self.front.vring_fd(code::SET_VRING_ERR, index, Some(err.as_fd())).unwrap();
        let addrs = RingAddrs::of(config, &self.spec);
        let (kick, call) = (kick.as_fd(), Some(call.as_fd()));
        let vring = Vring { size: QUEUE_SIZE, addrs, base, kick, call };
        self.front.start_vring(index, &vring).unwrap();
    }

    /// Starts a driver on queue `index` and the queue itself.
    pub fn drive(&mut self, index: u16, model: Model) -> Driver {
        let call = self.events[usize::from(index)].call.try_clone().unwrap();
        let driver = Driver::start(self.load(index, model), call);
        self.start_ring(index, &driver.config, FIRST_INDEX);
        driver
    }

    /// Starts a driver on each queue.
    pub fn drive_all(&mut self, models: Vec<Model>) -> Vec<Driver> {
        (0..).zip(models).map(|(index, model)| self.drive(index, model)).collect()
    }

    /// Resets the device, and negotiates anew.
    pub fn reset(&mut self) {
        let features = self.front.features();
        self.front.reset_device().unwrap();
        self.front.set_features(features).unwrap();
    }

    /// A 16-bit field of guest memory.
    pub fn read_u16(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        rustix::io::pread(&self.memfd, &mut bytes, at).unwrap();
        u16::from_le_bytes(bytes)
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert_eq!(rustix::io::pwrite(&self.memfd, bytes, at).unwrap(), bytes.len());
    }

    /// The index in the used ring.
    pub fn used_index(&self, config: &QueueConfig) -> u16 {
        self.read_u16(config.used.0 + 2)
    }

    /// All of a queue's guest memory: ring, headers, data, status bytes.
    pub fn snapshot(&self, index: u16) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(load::AREA_BYTES).unwrap()];
        assert_eq!(rustix::io::pread(&self.memfd, &mut bytes, area(index)).unwrap(), bytes.len());
        bytes
    }

    pub fn needs_reset(&mut self) -> bool {
        self.front.status().unwrap() & DEVICE_NEEDS_RESET != 0
    }
}

/// Ends all drivers once everything is answered.
pub fn finish(drivers: Vec<Driver>) -> Vec<Model> {
    drivers.into_iter().map(|driver| driver.end(Command::Finish)).collect()
}

/// Ends all drivers at once.
pub fn abandon(drivers: Vec<Driver>) -> Vec<Model> {
    drivers.into_iter().map(|driver| driver.end(Command::Abandon)).collect()
}

/// Checks the whole disk.
pub fn check_disk(models: Vec<Model>, disk: &[u8]) {
    for mut model in models {
        assert!(model.touched() > 0, "the load wrote something");
        model.check_disk(disk);
    }
}

/// A loop device over a new file of zeroes; detached when dropped.
pub struct LoopDevice {
    pub path: PathBuf,
    pub file: PathBuf,
    _dir: TempDir,
}

impl LoopDevice {
    /// `None` if there is none to be had, which is reported.
    pub fn new(bytes: u64, sector_bytes: u32) -> Option<LoopDevice> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let file = dir.path().join("backing");
        std::fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        let sector_size = format!("--sector-size={sector_bytes}");
        let made = std::process::Command::new("losetup")
            .args([&sector_size, "--direct-io=on", "--find", "--show"])
            .arg(&file)
            .output();
        match made {
            Ok(made) if made.status.success() => {
                let path = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
                Some(LoopDevice { path, file, _dir: dir })
            }
            Ok(made) => {
                let why = String::from_utf8_lossy(&made.stderr).into_owned();
                println!("SKIPPED: no loop device (that takes root): {}", why.trim());
                None
            }
            Err(error) => {
                println!("SKIPPED: losetup: {error}");
                None
            }
        }
    }

    /// Writes that the device has completed since it was made.
    pub fn writes(&self) -> u64 {
        let name = self.path.file_name().unwrap().to_str().unwrap();
        let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        stat.split_whitespace().nth(4).unwrap().parse().unwrap()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

/// Whether an eventfd was signalled; takes the signal.
pub fn take_event(fd: impl AsFd) -> bool {
    rustix::io::read(fd, &mut [0; 8]).is_ok()
}
