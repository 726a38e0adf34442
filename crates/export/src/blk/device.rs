//! The device as its control thread sees it.

use super::queue::QueueSetup;
use super::{BlkQueue, DiskState, Disks, Meter};
use crate::vhost_user::{Device, QueueStart};
use block::{BlockNode, Format, Image, SECTOR};
use guest_mem::GuestMemory;
use iothread::{IoContext, IoThread, ServiceId};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio_blk::{ConfigSpace, DiscardInfo, DiskInfo, Features, Limits, WriteZeroesInfo};

/// Queues that one device can have.
pub const QUEUES_MAX: u16 = 256;
/// Entries that one queue can have: what QEMU allows.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// Data segments in a request: with header and status it fits the common queue of 128 entries even without indirect descriptors.
const SEG_MAX: u32 = 126;
/// Bytes in a segment.
const SIZE_MAX: u32 = 4 << 20;
/// Sectors in one range of a discard: 2 GiB. Larger trims come in several ranges.
const DISCARD_SECTORS_MAX: u32 = (2 << 30) / 512;
/// Sectors in one range of zeroes: 64 MiB, because a host without the operation has to write them.
const ZEROES_SECTORS_MAX: u32 = (64 << 20) / 512;
const RANGES_MAX: u32 = 16;

/// How a device is offered.
#[derive(Clone, Debug)]
pub struct BlkOptions {
    /// Queues, 1 to [`QUEUES_MAX`].
    pub queues: u16,
    /// Entries of a queue at most: a power of two up to [`QUEUE_SIZE_MAX`].
    pub queue_size: u16,
    /// What the guest reads as the disk's serial number; cut to 20 bytes.
    pub serial: String,
    /// Traces one request in so many on its way: see [`super::trace`]. `None`: traces none.
    pub trace_one_in: Option<NonZeroU32>,
}

/// A disk offered as a virtio block device.
#[derive(Debug)]
pub struct BlkDevice {
    image: Image,
    state: Arc<DiskState>,
    info: DiskInfo,
    config: ConfigSpace,
    queue_size: u16,
    /// The I/O threads that serve this disk's queues, in turn.
    threads: Vec<Arc<IoThread<BlkQueue>>>,
    queues: Vec<Option<ServiceId>>,
    closed: bool,
}

impl BlkDevice {
    /// Offers `image`, served by `threads`. A disk in a format with tables, or whose host needs
    /// read-modify-write, uses the first of them only.
    ///
    /// # Errors
    ///
    /// If a thread's engine cannot take the file: the reason, in one line.
    pub fn new(
        image: Image,
        options: &BlkOptions,
        threads: &[Arc<IoThread<BlkQueue>>],
    ) -> block::Result<BlkDevice> {
        let mut serial = [0; virtio_blk::ID_BYTES];
        let text = options.serial.as_bytes();
        let len = text.len().min(serial.len());
        serial[..len].copy_from_slice(&text[..len]);
        let health = image.health().clone();
        let (queues, trace) = (options.queues, options.trace_one_in);
        let state = Arc::new(DiskState::new(image.options(), health, serial, queues, trace));
        let homes = if image.needs_home_thread() { 1 } else { threads.len() };
        let info = disk_info(&image, options);
        let device = BlkDevice {
            config: ConfigSpace::new(&info),
            info,
            state: state.clone(),
            queue_size: options.queue_size,
            threads: threads[..homes].to_vec(),
            queues: vec![None; usize::from(options.queues)],
            closed: false,
            image,
        };
        for thread in &device.threads {
            let (image, id) = (device.image.clone(), state.id);
            on_thread(thread, move |disks, context| async move {
                let node = BlockNode::attach(&image, &context).await?;
                disks.insert(id, node);
                Ok(())
            })?;
        }
        Ok(device)
    }

    /// The image.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// What reads the disk's statistics. The threads live as long as it does.
    pub fn meter(&self) -> Meter {
        Meter::new(self.state.clone(), self.threads[0].clone())
    }

    /// Makes everything written so far durable. All queues must be idle.
    pub fn sync(&self) -> block::Result<()> {
        let options = self.image.options();
        if options.read_only || options.cache.ignores_flush() {
            return Ok(());
        }
        let id = self.state.id;
        match self.image.format() {
            Format::Raw => self.image.sync(),
            _ => self.on_home(move |disks, _| async move {
                match disks.get(id) {
                    Some(node) => node.flush().await,
                    None => Ok(()),
                }
            }),
        }
    }

    /// Ends the use of the image, which is left durable and clean. To be called before the device is dropped: then errors can still be told.
    ///
    /// # Errors
    ///
    /// The host's: the image is as after a crash then.
    pub fn close(&mut self) -> block::Result<()> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        self.end_session();
        let id = self.state.id;
        let result = match self.image.format() {
            Format::Raw => self.sync(),
            _ => self.on_home(move |disks, _| async move {
                match disks.get(id) {
                    Some(node) => node.close().await,
                    None => Ok(()),
                }
            }),
        };
        for thread in &self.threads {
            thread.call(move |io_loop| drop(io_loop.local.remove(id)));
        }
        result
    }

    fn on_home<F>(
        &self,
        work: impl FnOnce(Disks, IoContext) -> F + Send + 'static,
    ) -> block::Result<()>
    where
        F: Future<Output = block::Result<()>> + 'static,
    {
        on_thread(&self.threads[0], work)
    }

    fn thread(&self, index: u16) -> &Arc<IoThread<BlkQueue>> {
        &self.threads[usize::from(index) % self.threads.len()]
    }

    fn running(&self, index: u16) -> Option<ServiceId> {
        self.queues.get(usize::from(index)).copied().flatten()
    }

    /// Runs `f` on a queue's thread, if the queue is running, and waits for it.
    fn with_queue<T: Send + 'static>(
        &self,
        index: u16,
        f: impl FnOnce(&mut BlkQueue) -> T + Send + 'static,
    ) -> Option<T> {
        let id = self.running(index)?;
        self.thread(index).call(move |io_loop| io_loop.get(id).map(f))
    }

    /// Waits until a queue has nothing in flight, then runs `f` on it.
    fn drained<T: Send + 'static>(
        &self,
        index: u16,
        f: impl FnOnce(&mut BlkQueue) -> T + Send + 'static,
    ) -> Option<T> {
        let id = self.running(index)?;
        self.thread(index).call_later(move |io_loop, reply| {
            io_loop.drain(id, move |io_loop| reply(io_loop.get(id).map(f)));
        })
    }

    /// The write cache goes off: what completed before was promised nothing, what completes from now on is durable.
    fn end_write_cache(&self) {
        for index in 0..self.queues_max() {
            self.drained(index, |_| ());
        }
        if let Err(error) = self.sync() {
            tracing::error!("switching the write cache off: {error}");
            self.state.health.poison();
        }
    }
}

fn disk_info(image: &Image, options: &BlkOptions) -> DiskInfo {
    let opened = image.options();
    let block = u64::from(image.file().facts().fs_block).clamp(SECTOR, 1 << 16);
    let physical_block_exp = u8::try_from((block / SECTOR).ilog2()).expect("at most 7");
    let block_sectors = u32::try_from(block / SECTOR).expect("at most 128");
    let unmap = opened.discard == block::DiscardMode::Unmap;
    let writable = !opened.read_only;
    DiskInfo {
        capacity_sectors: image.disk_bytes() / SECTOR,
        blk_size: 512,
        physical_block_exp,
        alignment_offset: 0,
        min_io_size: u16::try_from(block_sectors).expect("at most 128"),
        opt_io_size: 0,
        num_queues: options.queues,
        seg_max: SEG_MAX,
        size_max: Some(SIZE_MAX),
        discard: (unmap && writable).then_some(DiscardInfo {
            max_sectors: DISCARD_SECTORS_MAX,
            max_seg: RANGES_MAX,
            sector_alignment: block_sectors,
        }),
        write_zeroes: writable.then_some(WriteZeroesInfo {
            max_sectors: ZEROES_SECTORS_MAX,
            max_seg: RANGES_MAX,
            may_unmap: unmap,
        }),
        wce: opened.cache.has_write_cache(),
        read_only: opened.read_only,
    }
}

impl Device for BlkDevice {
    fn features(&self) -> u64 {
        let ring = Features::VERSION_1 | Features::INDIRECT_DESC | Features::EVENT_IDX;
        // Always offered: drivers that use one queue ignore it, and the count is in the configuration space either way.
        (self.info.features() | ring | Features::MQ).bits()
    }

    fn queues_max(&self) -> u16 {
        self.info.num_queues
    }

    fn queue_size_max(&self) -> u16 {
        self.queue_size
    }

    fn read_config(&self, offset: u32, into: &mut [u8]) {
        // The image may have been resized since: see `Image::update_size`.
        let mut config = self.config.clone();
        config.set_capacity(self.image.disk_bytes() / SECTOR);
        config.read(offset, into);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), String> {
        self.config.write(offset, data).map_err(|error| error.to_string())?;
        let on = self.config.writeback();
        let before = self.state.write_cache.swap(on, Ordering::SeqCst);
        if before && !on {
            self.end_write_cache();
        }
        Ok(())
    }

    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), String> {
        if self.running(index).is_some() {
            return Err(format!("queue {index} is running already"));
        }
        let features = Features::from_bits_retain(start.features);
        let setup = QueueSetup {
            disk: self.state.clone(),
            index,
            config: start.config,
            next_avail: start.next_avail,
            memory: start.memory,
            features,
            limits: Limits::new(&self.info, features),
            call: start.call,
            err: start.err,
            enabled: start.enabled,
        };
        let kick = start.kick;
        let id = self.thread(index).call(move |io_loop| -> Result<ServiceId, String> {
            let make = |io_loop: &mut iothread::IoLoop<BlkQueue>, id| {
                BlkQueue::new(setup, id, io_loop.context(), &io_loop.local)
                    .map_err(std::io::Error::other)
            };
            let id = io_loop.add(make).map_err(|error| error.to_string())?;
            match io_loop.set_kick(id, Some(kick)) {
                Ok(()) => Ok(id),
                Err(error) => {
                    io_loop.remove(id);
                    Err(format!("watching the kick descriptor: {error}"))
                }
            }
        })?;
        self.queues[usize::from(index)] = Some(id);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> u16 {
        let Some(id) = self.running(index) else { return 0 };
        self.queues[usize::from(index)] = None;
        self.thread(index).call_later(move |io_loop, reply| {
            io_loop.drain(id, move |io_loop| {
                let queue = io_loop.remove(id);
                reply(queue.map_or(0, |queue| queue.next_avail()));
            });
        })
    }

    fn set_enabled(&mut self, index: u16, enabled: bool) {
        self.with_queue(index, move |queue| queue.set_enabled(enabled));
    }

    fn set_kick(&mut self, index: u16, kick: OwnedFd) {
        let Some(id) = self.running(index) else { return };
        let watched = self.thread(index).call(move |io_loop| io_loop.set_kick(id, Some(kick)));
        if let Err(error) = watched {
            tracing::warn!("queue {index}: watching the new kick descriptor: {error}");
        }
    }

    fn set_call(&mut self, index: u16, call: Option<OwnedFd>) {
        self.with_queue(index, move |queue| queue.set_call(call));
    }

    fn set_err(&mut self, index: u16, err: Option<OwnedFd>) {
        self.with_queue(index, move |queue| queue.set_err(err));
    }

    fn set_memory(&mut self, memory: Arc<GuestMemory>) -> Vec<(u16, String)> {
        let mut broken = Vec::new();
        for index in 0..self.queues_max() {
            let memory = memory.clone();
            if let Some(Err(why)) = self.drained(index, move |queue| queue.set_memory(memory)) {
                broken.push((index, why));
            }
        }
        broken
    }

    fn reset(&mut self) {
        self.end_session();
        let write_cache = self.info.wce;
        self.config.set_writeback(write_cache);
        self.state.write_cache.store(write_cache, Ordering::SeqCst);
    }

    fn end_session(&mut self) {
        for index in 0..self.queues_max() {
            self.stop_queue(index);
        }
        self.state.needs_reset.store(false, Ordering::SeqCst);
    }

    fn needs_reset(&self) -> bool {
        self.state.needs_reset.load(Ordering::SeqCst)
    }
}

impl Drop for BlkDevice {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!("closing the image: {error}");
        }
    }
}

/// Runs a task on an I/O thread and waits for its end.
fn on_thread<F>(
    thread: &IoThread<BlkQueue>,
    work: impl FnOnce(Disks, IoContext) -> F + Send + 'static,
) -> block::Result<()>
where
    F: Future<Output = block::Result<()>> + 'static,
{
    thread.call_later(move |io_loop, reply| {
        let context = io_loop.context().clone();
        let work = work(io_loop.local.clone(), context.clone());
        context.spawn_queued(async move { reply(work.await) });
    })
}
