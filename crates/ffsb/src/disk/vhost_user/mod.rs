//! A disk behind a vhost-user socket: the driver's side of a virtio block device, without a guest around it.
//!
//! ```text
//!  workload threads   lane 0   lane 1   lane 2   lane 3      each blocks until its request is answered
//!                        |        |        |        |
//!                     queue 0  queue 1  queue 0  queue 1     lane i uses queue i modulo their number
//!                        '---- memory shared by a memfd ---- server: ferroblk, qemu-storage-daemon, another
//!
//!  memory: | ring 0 | ring 1 | ... | head 0 | buffer 0 | head 1 | buffer 1 | ...
//! ```
//!
//! A request costs a copy between the caller's buffer and the lane's, a kick if the server asked for one, and one sleep. Nothing is
//! allocated.
//!
//! The write cache is left as the server has it. A flush is sent wherever the server knows the command, even if it says that its
//! cache is off: qemu-storage-daemon says so in every mode.

mod config;
mod lane;
mod queue;
mod signal;

pub use lane::VhostUserLane;

use config::{CONFIG_BYTES, DiskConfig, blk_feature};
use export::vhost_user::frontend::{FrontEnd, Vring};
use export::vhost_user::message::{ProtocolFeatures, RingAddrs};
use export::vhost_user::{Error, feature};
use guest_mem::{GuestAddr, GuestMemory, MemHandle, Region, RegionSpec};
use lane::HEAD_BYTES;
use queue::{Queue, Waiting};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fmt, io};
use virtqueue::driver::{DriverConfig, DriverQueue};

/// Where memory lies for the server. Not at 0: some servers take that for "not there".
const GUEST_BASE: u64 = 1 << 20;
/// Where memory lies in our own address space, as we say; ring addresses are given in these terms.
const USER_BASE: u64 = 0x7f00_0000_0000;
const PAGE: u64 = 4096;
/// Descriptors of a request: header, data, status.
const REQUEST_DESCS: usize = 3;

/// How to use a disk.
#[derive(Clone, Debug)]
pub struct VhostUserOptions {
    /// Queues to use; the server must offer as many.
    pub queues: u16,
    /// Entries of each queue: a power of two, three for each lane that shares the queue. Servers take at least 128.
    pub queue_size: u16,
    /// Threads that will work side by side.
    pub lanes: usize,
    /// Most bytes in one request, a multiple of 4096; the server may have a limit below. What is longer is split.
    pub request_bytes: u32,
    /// Looks at the used ring all the time instead of sleeping. Takes a processor for each queue in use.
    pub poll: bool,
    /// A server that answers nothing for so long is given up.
    pub patience: Duration,
    /// The workload writes: a read-only disk is refused.
    pub writable: bool,
    /// Bytes that the workload needs: a smaller disk is refused.
    pub min_bytes: u64,
}

impl Default for VhostUserOptions {
    fn default() -> VhostUserOptions {
        VhostUserOptions {
            queues: 1,
            queue_size: 128,
            lanes: 1,
            request_bytes: 1 << 20,
            poll: false,
            patience: Duration::from_secs(60),
            writable: true,
            min_bytes: 0,
        }
    }
}

/// Why a disk cannot be used, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectError(String);

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConnectError {}

/// A connection to a server, and the disk behind it.
#[derive(Debug)]
pub struct VhostUserDisk {
    shared: Arc<Shared>,
}

/// What lanes have in common. The connection ends with the last of them.
#[derive(Debug)]
struct Shared {
    /// Who answers, for messages.
    server: String,
    facts: Facts,
    /// Most bytes in one request: whole blocks.
    request_bytes: usize,
    queues: Vec<Queue>,
    memory: Arc<GuestMemory>,
    layout: Layout,
    /// Lanes that somebody has.
    taken: Vec<AtomicBool>,
    front: FrontEnd,
}

/// What the server said.
#[derive(Clone, Copy, Debug)]
struct Facts {
    bytes: u64,
    block_bytes: u32,
    read_only: bool,
    can_flush: bool,
    event_idx: bool,
    segment_max: Option<u32>,
}

/// What lies where in memory.
#[derive(Clone, Copy, Debug)]
struct Layout {
    ring_bytes: u64,
    lanes_at: u64,
    lane_bytes: u64,
    bytes: u64,
}

impl VhostUserDisk {
    /// Connects to the server at `socket` and starts the queues.
    ///
    /// # Errors
    ///
    /// Nobody answers there, what answers is no block device, or it has not what `options` ask for. Bounded: a server has a minute
    /// for each of its answers.
    pub fn connect(
        socket: &Path,
        options: &VhostUserOptions,
    ) -> Result<VhostUserDisk, ConnectError> {
        let server = format!("the server at {}", socket.display());
        let blame = |what: String| ConnectError(format!("{server}: {what}"));
        options.check().map_err(ConnectError)?;
        let mut front = FrontEnd::connect(socket).map_err(|error| ConnectError(error.line()))?;
        let facts = negotiate(&mut front, options).map_err(blame)?;
        let layout = Layout::new(options, facts.event_idx);
        let (memory, memfd) = shared_memory(layout.bytes)
            .map_err(|error| ConnectError(format!("making memory to share: {error}")))?;
        let queues = start_queues(&mut front, options, &facts, &layout, &memory, &memfd, &server)
            .map_err(blame)?;
        let most = facts.segment_max.unwrap_or(u32::MAX).min(options.request_bytes);
        let whole_blocks = most - most % facts.block_bytes;
        let shared = Shared {
            server,
            facts,
            request_bytes: usize::try_from(whole_blocks).expect("u32 fits usize"),
            queues,
            memory,
            layout,
            taken: (0..options.lanes).map(|_| AtomicBool::new(false)).collect(),
            front,
        };
        Ok(VhostUserDisk { shared: Arc::new(shared) })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.shared.facts.bytes
    }

    /// Logical block size in bytes: a server may refuse requests that are not a multiple of it.
    pub fn block_bytes(&self) -> u32 {
        self.shared.facts.block_bytes
    }

    /// Nothing can be written.
    pub fn is_read_only(&self) -> bool {
        self.shared.facts.read_only
    }

    /// The server knows the flush command. Without it, each write is durable when it is answered, and a lane's flush does nothing.
    pub fn can_flush(&self) -> bool {
        self.shared.facts.can_flush
    }

    /// Bytes up to which a read or write is one request.
    pub fn request_bytes(&self) -> usize {
        self.shared.request_bytes
    }

    /// Lane `index`, below [`VhostUserOptions::lanes`]. It is free again when it is dropped.
    ///
    /// # Errors
    ///
    /// There is no such lane, or somebody has it (`InvalidInput`); or the server failed already.
    pub fn lane(&self, index: usize) -> io::Result<VhostUserLane> {
        let shared = &self.shared;
        let invalid = |what: &str| {
            let what = format!("lane {index} of a disk with {}: {what}", shared.taken.len());
            io::Error::new(io::ErrorKind::InvalidInput, what)
        };
        let taken = shared.taken.get(index).ok_or_else(|| invalid("there is no such lane"))?;
        let seat = shared.queue_of(index).seat(index / shared.queues.len())?;
        let addr = GuestAddr(shared.layout.lane(index));
        let area = shared.memory.shared_slice(addr, shared.layout.lane_bytes);
        let area = area.expect("each lane has its place in memory");
        if taken.swap(true, Ordering::Acquire) {
            return Err(invalid("it is in use"));
        }
        Ok(VhostUserLane::new(Arc::clone(shared), index, seat, area, addr))
    }
}

impl Shared {
    /// The queue that a lane uses.
    fn queue_of(&self, lane: usize) -> &Queue {
        &self.queues[lane % self.queues.len()]
    }
}

impl Drop for Shared {
    /// Takes the queues back, as a guest does at its end. qemu-storage-daemon 10.0 now and then crashes if it is stopped right after a
    /// connection that just broke.
    fn drop(&mut self) {
        if self.queues.iter().any(Queue::has_failed) {
            return;
        }
        for index in (0..).take(self.queues.len()) {
            if self.front.stop_vring(index).is_err() {
                // It is gone, or will not talk; there is nobody to tell.
                return;
            }
        }
    }
}

impl VhostUserOptions {
    /// What can be said without a server. The error is one line.
    fn check(&self) -> Result<(), String> {
        let size = usize::from(self.queue_size);
        if self.queues == 0 || self.lanes == 0 {
            return Err("a disk needs at least one queue and one lane".to_owned());
        }
        if !size.is_power_of_two() || self.queue_size > virtqueue::SIZE_MAX {
            return Err(format!("a queue of {size} entries: expected a power of two"));
        }
        let sharing = self.lanes.div_ceil(usize::from(self.queues));
        if sharing.saturating_mul(REQUEST_DESCS) > size {
            return Err(format!(
                "{sharing} lanes share a queue of {size} entries, which has room for {} requests",
                size / REQUEST_DESCS
            ));
        }
        if self.request_bytes == 0 || !u64::from(self.request_bytes).is_multiple_of(PAGE) {
            return Err(format!("requests of {} bytes: not whole pages", self.request_bytes));
        }
        Ok(())
    }

    /// Seats at queue `index`.
    fn seats(&self, index: u16) -> usize {
        (0..self.lanes).filter(|lane| lane % usize::from(self.queues) == usize::from(index)).count()
    }

    fn driver(&self, event_idx: bool) -> DriverConfig {
        DriverConfig { event_idx, ..DriverConfig::new(self.queue_size) }
    }
}

impl Layout {
    fn new(options: &VhostUserOptions, event_idx: bool) -> Layout {
        let ring_bytes = options.driver(event_idx).bytes().next_multiple_of(PAGE);
        let lanes_at = GUEST_BASE + ring_bytes * u64::from(options.queues);
        let lane_bytes = HEAD_BYTES + u64::from(options.request_bytes);
        let bytes = lanes_at - GUEST_BASE + lane_bytes * options.lanes as u64;
        Layout { ring_bytes, lanes_at, lane_bytes, bytes }
    }

    fn ring(&self, index: u16) -> GuestAddr {
        GuestAddr(GUEST_BASE + self.ring_bytes * u64::from(index))
    }

    fn lane(&self, index: usize) -> u64 {
        self.lanes_at + self.lane_bytes * index as u64
    }
}

/// Agrees with the server on features and hears what its disk is like. The error is a reason.
fn negotiate(front: &mut FrontEnd, options: &VhostUserOptions) -> Result<Facts, String> {
    let wanted = feature::VERSION_1
        | feature::RING_EVENT_IDX
        | feature::PROTOCOL_FEATURES
        | blk_feature::SIZE_MAX
        | blk_feature::RO
        | blk_feature::BLK_SIZE
        | blk_feature::FLUSH
        | blk_feature::CONFIG_WCE
        | blk_feature::MQ;
    let protocol = ProtocolFeatures::MQ | ProtocolFeatures::REPLY_ACK | ProtocolFeatures::CONFIG;
    front.handshake(wanted, protocol).map_err(line)?;
    let (features, protocol) = (front.features(), front.protocol_features());
    let has = |feature| features & feature != 0;
    if !has(feature::VERSION_1) || !protocol.contains(ProtocolFeatures::CONFIG) {
        return Err("it offers no virtio 1 device with a configuration space".to_owned());
    }
    let space = front.read_config(0, CONFIG_BYTES).map_err(line)?;
    let config = DiskConfig::parse(&space, features)?;
    let (asked, offered) = (options.queues, config.queues);
    if asked > offered {
        return Err(format!("{asked} queues are asked for, it offers {offered}"));
    }
    if options.writable && has(blk_feature::RO) {
        return Err("its disk is read-only, and the workload writes".to_owned());
    }
    if config.bytes < options.min_bytes {
        let (bytes, min_bytes) = (config.bytes, options.min_bytes);
        return Err(format!("its disk has {bytes} bytes, the workload needs {min_bytes}"));
    }
    Ok(Facts {
        bytes: config.bytes,
        block_bytes: config.block_bytes,
        read_only: has(blk_feature::RO),
        can_flush: has(blk_feature::FLUSH),
        event_idx: has(feature::RING_EVENT_IDX),
        segment_max: config.segment_max,
    })
}

/// Zeroed memory that can be given to a server, and its file.
fn shared_memory(bytes: u64) -> io::Result<(Arc<GuestMemory>, OwnedFd)> {
    let memfd = memfd_create(c"ferroblk-bench", MemfdFlags::CLOEXEC)?;
    ftruncate(&memfd, bytes)?;
    let spec = RegionSpec {
        guest_addr: GuestAddr(GUEST_BASE),
        len: bytes,
        user_addr: USER_BASE,
        file_offset: 0,
    };
    let memory = GuestMemory::default().with_region(Region::map(spec, &memfd)?)?;
    Ok((Arc::new(memory), memfd))
}

/// Gives memory to the server and starts the queues in it. The error is a reason.
fn start_queues(
    front: &mut FrontEnd,
    options: &VhostUserOptions,
    facts: &Facts,
    layout: &Layout,
    memory: &Arc<GuestMemory>,
    memfd: &OwnedFd,
    server: &str,
) -> Result<Vec<Queue>, String> {
    let [region] = memory.regions() else { unreachable!("memory was made of one region") };
    let spec = *region.spec();
    front.set_mem_table(&[(spec, memfd.as_fd())]).map_err(line)?;
    let handle = MemHandle::new(Arc::clone(memory));
    let waiting = Waiting { poll: options.poll, patience: options.patience };
    let start = |index: u16| {
        let ring = DriverQueue::new(&handle, layout.ring(index), options.driver(facts.event_idx));
        let ring = ring.expect("each ring has its place in memory");
        let config = ring.config();
        let seats = options.seats(index);
        let queue = Queue::new(ring, seats, waiting, front.as_fd(), server.to_owned());
        let queue = queue.map_err(|error| format!("making the events of a queue: {error}"))?;
        let vring = Vring {
            size: config.size,
            addrs: RingAddrs::of(&config, &spec),
            base: 0,
            kick: queue.kick(),
            // Also when polling: qemu-storage-daemon ends the connection if it cannot signal what it must once in 65536.
            call: Some(queue.call()),
        };
        front.start_vring(index, &vring).map_err(line)?;
        Ok(queue)
    };
    (0..options.queues).map(start).collect()
}

fn line(error: Error) -> String {
    error.line()
}
