//! A disk with one queue, its I/O loop and its driver, all on the test's own thread.

use super::super::queue::QueueSetup;
use super::super::{BlkQueue, DiskState};
use block::{BlockNode, Health, HostNode, OpenOptions, SECTOR};
use guest_mem::{GuestAddr, GuestMemory, IoVecs, MemHandle};
use io_engine::{FileRef, IoEngine, Wait};
use iothread::{Clock, IoContext, IoLoop, Mailbox, Service, ServiceId, Turn};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio_blk::{DiscardInfo, DiskInfo, Features, Limits, WriteZeroesInfo};
use virtqueue::driver::{DriverConfig, DriverQueue, Seg};

pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_GET_ID: u32 = 8;
pub const T_DISCARD: u32 = 11;
pub const T_WRITE_ZEROES: u32 = 13;

/// Requests in flight at most.
pub const DEPTH: u64 = 16;
const SLOT_BYTES: u64 = 256 << 10;
const SLOTS_AT: u64 = 1 << 20;
/// Where a slot's data begins; a test may move it to make it unaligned.
const DATA_AT: u64 = 4096;

/// An answered request.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub slot: u64,
    pub status: u8,
    pub written: u32,
}

pub struct Rig {
    pub io_loop: IoLoop<BlkQueue>,
    pub state: Arc<DiskState>,
    pub id: ServiceId,
    /// A simulated rig's clock.
    pub now: Rc<Cell<u64>>,
    mem: MemHandle,
    driver: DriverQueue,
    busy: BTreeMap<u16, u64>,
    free: Vec<u64>,
    /// Added to the place of each slot's data.
    pub skew: u64,
}

fn info(bytes: u64, options: &OpenOptions) -> DiskInfo {
    DiskInfo {
        capacity_sectors: bytes / SECTOR,
        blk_size: 512,
        physical_block_exp: 0,
        alignment_offset: 0,
        min_io_size: 1,
        opt_io_size: 0,
        num_queues: 1,
        seg_max: 126,
        size_max: None,
        discard: Some(DiscardInfo { max_sectors: 1 << 20, max_seg: 16, sector_alignment: 1 }),
        write_zeroes: Some(WriteZeroesInfo { max_sectors: 1 << 20, max_seg: 16, may_unmap: true }),
        wce: options.cache.has_write_cache(),
        read_only: options.read_only,
    }
}

impl Rig {
    /// `open` makes the disk's file known to the engine; the disk has `bytes` bytes.
    pub fn new(
        engine: IoEngine,
        bytes: u64,
        options: &OpenOptions,
        without: Features,
        open: impl FnOnce(&IoContext) -> FileRef,
    ) -> Rig {
        Rig::make(engine, bytes, options, without, None, open)
    }

    /// As [`Rig::new`], and one request in so many is traced.
    pub fn traced(
        engine: IoEngine,
        bytes: u64,
        options: &OpenOptions,
        one_in: Option<NonZeroU32>,
        open: impl FnOnce(&IoContext) -> FileRef,
    ) -> Rig {
        Rig::make(engine, bytes, options, Features::empty(), one_in, open)
    }

    fn make(
        engine: IoEngine,
        bytes: u64,
        options: &OpenOptions,
        without: Features,
        trace: Option<NonZeroU32>,
        open: impl FnOnce(&IoContext) -> FileRef,
    ) -> Rig {
        let now = Rc::<Cell<u64>>::default();
        let clock = match engine.virtual_ns() {
            Some(_) => Clock::Simulated(now.clone()),
            None => Clock::monotonic(),
        };
        let context = IoContext::new(engine, 64, clock);
        let node = HostNode::new(&context, open(&context), "test disk".into());
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let mut io_loop = IoLoop::<BlkQueue>::new(context, mailbox, 0).unwrap();
        let health = Arc::new(Health::new(bytes));
        let state = Arc::new(DiskState::new(options, health, *b"serial-of-this-disk\0", 1, trace));
        io_loop.local.insert(state.id, BlockNode::Raw(node));

        let (memory, _) = GuestMemory::memfd(SLOTS_AT + DEPTH * SLOT_BYTES).unwrap();
        let memory = Arc::new(memory);
        let mem = MemHandle::new(memory.clone());
        let driver = DriverQueue::new(&mem, GuestAddr(0), DriverConfig::new(64)).unwrap();
        let features = Features::from_bits_retain(!without.bits());
        let setup = QueueSetup {
            disk: state.clone(),
            index: 0,
            config: driver.config(),
            next_avail: 0,
            memory,
            features,
            limits: Limits::new(&info(bytes, options), features),
            call: None,
            err: None,
            enabled: true,
        };
        let id = io_loop
            .add(|io_loop, id| {
                BlkQueue::new(setup, id, io_loop.context(), &io_loop.local)
                    .map_err(std::io::Error::other)
            })
            .unwrap();
        let free = (0..DEPTH).rev().collect();
        Rig { io_loop, state, id, now, mem, driver, busy: BTreeMap::new(), free, skew: 0 }
    }

    fn at(&self, slot: u64, offset: u64) -> GuestAddr {
        GuestAddr(SLOTS_AT + slot * SLOT_BYTES + offset)
    }

    fn bytes_at(&self, at: GuestAddr, len: u64) -> IoVecs {
        let mut iov = IoVecs::new(&self.mem);
        iov.push(at, len).unwrap();
        iov
    }

    /// Submits a request; `None` if all slots are taken. Data to be written is `data`, data to be read `read_bytes` long.
    pub fn submit(&mut self, kind: u32, sector: u64, data: &[u8], read_bytes: u64) -> Option<u64> {
        let slot = self.free.pop()?;
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.bytes_at(self.at(slot, 0), 16).copy_from(0, &header);
        self.bytes_at(self.at(slot, 64), 1).copy_from(0, &[0xFF]);
        let mut segs = vec![Seg { addr: self.at(slot, 0), len: 16, device_writes: false }];
        let addr = self.at(slot, DATA_AT + self.skew);
        if !data.is_empty() {
            self.bytes_at(addr, data.len() as u64).copy_from(0, data);
            segs.push(Seg { addr, len: data.len() as u32, device_writes: false });
        }
        if read_bytes > 0 {
            segs.push(Seg { addr, len: read_bytes as u32, device_writes: true });
        }
        segs.push(Seg { addr: self.at(slot, 64), len: 1, device_writes: true });
        let head = self.driver.add(&segs).unwrap();
        let _ = self.driver.kick_needed();
        self.busy.insert(head, slot);
        Some(slot)
    }

    /// The data that a read has left in its slot.
    pub fn data(&self, slot: u64, len: u64) -> Vec<u8> {
        let mut data = vec![0; len as usize];
        self.bytes_at(self.at(slot, DATA_AT + self.skew), len).copy_to(0, &mut data);
        data
    }

    /// One turn of the loop, sleeping if there is nothing else to do; returns what was answered.
    pub fn turn(&mut self) -> Vec<Answer> {
        let wait = if self.io_loop.context().is_idle() { Wait::No } else { Wait::Forever };
        assert_ne!(self.io_loop.turn(wait).unwrap(), Turn::Stopped);
        let mut answers = Vec::new();
        while let Some((head, written)) = self.driver.poll_used() {
            let slot = self.busy.remove(&head).unwrap();
            let mut status = [0];
            self.bytes_at(self.at(slot, 64), 1).copy_to(0, &mut status);
            self.free.push(slot);
            answers.push(Answer { slot, status: status[0], written });
        }
        answers
    }

    /// Does one request alone.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[u8], read_bytes: u64) -> Answer {
        let slot = self.submit(kind, sector, data, read_bytes).unwrap();
        for _ in 0..1_000_000 {
            if let Some(answer) = self.turn().pop() {
                assert_eq!(answer.slot, slot);
                return answer;
            }
        }
        panic!("the request was never answered");
    }

    /// Reads, alone.
    pub fn read(&mut self, sector: u64, len: u64) -> Vec<u8> {
        let answer = self.request(T_IN, sector, &[], len);
        assert_eq!((answer.status, answer.written), (0, len as u32 + 1));
        self.data(answer.slot, len)
    }

    pub fn set_write_cache(&self, on: bool) {
        self.state.write_cache.store(on, Ordering::SeqCst);
    }

    pub fn in_flight(&mut self) -> usize {
        self.io_loop.get(self.id).unwrap().in_flight()
    }
}

/// A range of a discard or write zeroes request.
pub fn range(sector: u64, sectors: u32, unmap: bool) -> Vec<u8> {
    let flags = u32::from(unmap);
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}
