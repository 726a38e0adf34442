//! What a session drives: a virtio device whose queues live on other threads.

use guest_mem::GuestMemory;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use virtqueue::QueueConfig;

/// All that starting a queue takes.
#[derive(Debug)]
pub struct QueueStart {
    /// The queue, checked: each area is aligned, lies within one region of `memory`, and overlaps no other.
    pub config: QueueConfig,
    /// Avail index of the first chain to take.
    pub next_avail: u16,
    /// The memory `config` was checked against.
    pub memory: Arc<GuestMemory>,
    /// The negotiated virtio feature bits.
    pub features: u64,
    /// Readable when the driver made chains available. An eventfd or a pipe, opened for reading, `O_NONBLOCK`; what else the
    /// front end does with it is its own affair, so a read may fail at any time.
    pub kick: OwnedFd,
    /// Written when chains were used; `None` if the driver polls. As `kick`, opened for writing.
    pub call: Option<OwnedFd>,
    /// Written when the queue broke. As `call`.
    pub err: Option<OwnedFd>,
    /// Chains may be taken at once; otherwise only after [`Device::set_enabled`].
    pub enabled: bool,
}

/// A virtio device as a session sees it.
///
/// All calls come from one control thread. Those that drain wait for the I/O in flight; meanwhile the session answers nobody.
/// `index` is always below [`Device::queues_max`].
pub trait Device {
    /// All virtio feature bits the device offers. The session adds and removes the bits of vhost-user itself.
    fn features(&self) -> u64;

    /// Number of queues. Does not change while a session lasts.
    fn queues_max(&self) -> u16;

    /// Largest queue size.
    fn queue_size_max(&self) -> u16;

    /// Fills `into` with the bytes of the configuration space from `offset` on; with zeros where the space has ended.
    fn read_config(&self, offset: u32, into: &mut [u8]);

    /// Writes to the configuration space.
    ///
    /// # Errors
    ///
    /// Why not: the range is not all writable, or a value is not valid. Then nothing is changed.
    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), String>;

    /// Starts a stopped queue.
    ///
    /// # Errors
    ///
    /// Why not. The queue is then still stopped.
    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), String>;

    /// Stops a started queue and drains it: afterwards nothing of it touches guest memory or signals anybody. Returns the
    /// avail index of the first chain not taken. Also called for a queue that [`Device::set_memory`] reported as broken.
    fn stop_queue(&mut self, index: u16) -> u16;

    /// Lets a started queue take chains, or not.
    fn set_enabled(&mut self, index: u16, enabled: bool);

    /// Replaces the kick fd of a started queue.
    fn set_kick(&mut self, index: u16, kick: OwnedFd);

    /// Replaces the call fd of a started queue.
    fn set_call(&mut self, index: u16, call: Option<OwnedFd>);

    /// Replaces the error fd of a started queue.
    fn set_err(&mut self, index: u16, err: Option<OwnedFd>);

    /// Drains all started queues, moves them to `memory`, and lets them go on. Afterwards nothing uses the old memory.
    /// Returns the queues that cannot go on, with the reason; the session then stops each of them.
    fn set_memory(&mut self, memory: Arc<GuestMemory>) -> Vec<(u16, String)>;

    /// Stops and drains all queues, and forgets everything a driver chose. Called when the driver resets the device, also when
    /// no queue is started.
    fn reset(&mut self);

    /// Stops and drains all queues, and is whole again if it broke. What the driver chose and still relies on, above all a write
    /// cache switched off, stays: the guest may live on and come back with a front end that reconnects. Called when a session
    /// ends, also when no queue is started.
    fn end_session(&mut self);

    /// The device broke and serves no more requests until it is reset (`DEVICE_NEEDS_RESET`).
    fn needs_reset(&self) -> bool;
}
