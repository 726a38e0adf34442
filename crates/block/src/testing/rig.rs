//! A disk over simulated files, on the test's own thread.

use crate::{
    BlockNode, DiskOffset, Encryption, Error, Format, Health, HostNode, NodeOptions, NodeParts,
    Result, TABLE_CACHE_BYTES, qcow2, qed,
};
use guest_mem::{GuestAddr, GuestMemory, IoVecs, MemHandle};
use io_engine::sim::{SimDisk, SimOptions};
use io_engine::{IoEngine, Rng};
use iothread::{Clock, IoContext};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

const MEMORY: u64 = 64 << 20;

/// Guest memory of which each request takes a part of its own.
#[derive(Debug)]
pub struct Memory {
    handle: MemHandle,
    next: Cell<u64>,
}

impl Memory {
    pub fn new() -> Memory {
        let (memory, _) = GuestMemory::memfd(MEMORY).unwrap();
        Memory { handle: MemHandle::new(Arc::new(memory)), next: Cell::new(0) }
    }

    /// `len` bytes that no other request uses at the moment.
    pub fn take(&self, len: u64) -> IoVecs {
        let at = self.next.get();
        let at = if at + len > MEMORY { 0 } else { at };
        self.next.set((at + len).next_multiple_of(4096));
        let mut iov = IoVecs::new(&self.handle);
        iov.push(GuestAddr(at), len).unwrap();
        iov
    }
}

/// What belongs to an image besides its file.
#[derive(Debug, Default)]
pub struct Others<'a> {
    pub backing: Option<&'a SimDisk>,
    pub data_file: Option<&'a SimDisk>,
    pub encryption: Option<Arc<Encryption>>,
    /// What is discarded keeps its place.
    pub discard_no_unref: bool,
}

/// A disk that is open.
#[derive(Clone, Debug)]
pub struct Rig {
    pub context: IoContext,
    pub node: Rc<BlockNode>,
    pub memory: Rc<Memory>,
    pub health: Arc<Health>,
    clock: Rc<Cell<u64>>,
}

/// What a new image is to be, in some format.
pub trait NewImage {
    /// The bytes it begins with, and its length.
    fn new_image(&self) -> (Vec<u8>, u64);
}

impl NewImage for qed::CreateOptions {
    fn new_image(&self) -> (Vec<u8>, u64) {
        qed::new_image(self).unwrap()
    }
}

impl NewImage for qcow2::CreateOptions {
    fn new_image(&self) -> (Vec<u8>, u64) {
        let layout = qcow2::create::Layout::new(self).unwrap();
        let mut bytes = Vec::new();
        for piece in layout.pieces() {
            let end = piece.at as usize + piece.bytes.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[piece.at as usize..end].copy_from_slice(&piece.bytes);
        }
        (bytes, layout.file_bytes())
    }
}

/// A new image on a simulated disk. A block device has `room` bytes more, and holds anything there.
pub fn image_with_room(options: &impl NewImage, sim: SimOptions, room: u64) -> SimDisk {
    let (start, len) = options.new_image();
    let whole = if sim.is_block_device { len + room } else { len };
    let mut bytes = vec![0xA5; whole as usize];
    bytes[..len as usize].fill(0);
    bytes[..start.len()].copy_from_slice(&start);
    SimDisk::with_contents(sim, &bytes)
}

/// A new image on a simulated disk.
pub fn image(options: &impl NewImage, sim: SimOptions) -> SimDisk {
    image_with_room(options, sim, 0)
}

impl Rig {
    pub fn open(disk: &SimDisk, seed: u64) -> Result<Rig> {
        Rig::open_over(disk, None, seed, false)
    }

    /// Opens `disk`, with a raw backing file if there is one.
    pub fn open_over(
        disk: &SimDisk,
        backing: Option<&SimDisk>,
        seed: u64,
        read_only: bool,
    ) -> Result<Rig> {
        Rig::open_with(disk, &Others { backing, ..Others::default() }, seed, read_only)
    }

    /// Opens `disk`, with whatever belongs to it.
    pub fn open_with(
        disk: &SimDisk,
        others: &Others<'_>,
        seed: u64,
        read_only: bool,
    ) -> Result<Rig> {
        let engine = IoEngine::sim(seed, 128).unwrap();
        let clock = Rc::new(Cell::new(0));
        let context = IoContext::new(engine, 64, Clock::Simulated(clock.clone()));
        let host = |disk: &SimDisk, name: &str| {
            let file = context.with_engine(|engine| engine.open_sim(disk)).unwrap();
            HostNode::new(&context, file, name.into())
        };
        let health = Arc::new(Health::new(0));
        // A small cache for some: tables leave RAM and come back.
        let table_cache_bytes = [TABLE_CACHE_BYTES, 4096, 8192][(seed % 3) as usize];
        let health_too = health.clone();
        let options = NodeOptions {
            read_only,
            unsafe_sync: false,
            health: health_too,
            table_cache_bytes,
            discard_no_unref: others.discard_no_unref,
        };
        let parts = NodeParts {
            backing: others.backing.map(|disk| (BlockNode::Raw(host(disk, "base")), disk.len())),
            data_file: others.data_file.map(|disk| host(disk, "data")),
            encryption: others.encryption.clone(),
        };
        let top = host(disk, "image");
        let mut magic = [0; 4];
        disk.read_at(0, &mut magic);
        let format = Format::name_of_magic(&magic).map_or(Format::Qcow2, |n| n.parse().unwrap());
        let opening =
            Box::pin(
                async move { Box::pin(BlockNode::open_with(top, format, &options, parts)).await },
            );
        let node = Rc::new(context.block_on(opening).unwrap()?);
        Ok(Rig { context, node, memory: Rc::new(Memory::new()), health, clock })
    }

    /// Lets time pass: timers that are due go off with the next request.
    pub fn pass(&self, ns: u64) {
        self.clock.set(self.clock.get() + ns);
    }

    /// Runs one request to its end.
    pub fn run<T: 'static, F>(&self, work: impl FnOnce(Rc<BlockNode>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + 'static,
    {
        let work = work(self.node.clone());
        self.context.block_on(work).map_err(|error| Error::io("running", error))?
    }

    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let iov = self.memory.take(bytes.len() as u64);
        iov.copy_from(0, bytes);
        self.run(|node| async move { node.write(DiskOffset(at), iov, false).await })
    }

    pub fn read(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let (iov, copy) = self.memory_twice(len);
        self.run(|node| async move { node.read(DiskOffset(at), iov).await })?;
        let mut bytes = vec![0; len as usize];
        copy.copy_to(0, &mut bytes);
        Ok(bytes)
    }

    /// The same memory for the request and for who looks at it afterwards.
    pub fn memory_twice(&self, len: u64) -> (IoVecs, IoVecs) {
        let iov = self.memory.take(len);
        let copy = iov.part(0, len);
        (iov, copy)
    }

    pub fn flush(&self) -> Result<()> {
        self.run(|node| async move { node.flush().await })
    }

    pub fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.run(move |node| async move { node.discard(DiskOffset(at), len).await })
    }

    pub fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> Result<()> {
        self.run(move |node| async move { node.write_zeroes(DiskOffset(at), len, unmap).await })
    }

    pub fn close(self) -> Result<()> {
        self.run(|node| async move { node.close().await })
    }
}

/// A request at random: offset and length in whole sectors.
pub fn range(rng: &mut Rng, disk_bytes: u64, sectors_max: u64) -> (u64, u64) {
    let sectors = disk_bytes / 512;
    let len = 1 + rng.below(sectors_max.min(sectors));
    let at = rng.below(sectors - len + 1);
    (at * 512, len * 512)
}
