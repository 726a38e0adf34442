//! A guest that sends one request, cut into descriptors as a test likes.

use crate::{BadChain, DiscardInfo, DiskInfo, Features, Limits, Pending, Request, Status};
use crate::{UsedElem, WriteZeroesInfo};
use guest_mem::{GuestAddr, GuestMemory, IoVecs, MemHandle, Region, RegionSpec};
use std::sync::Arc;
use virtqueue::Virtqueue;
use virtqueue::driver::{DriverConfig, DriverQueue, Seg};

/// The end of the first region of memory; a second one follows directly.
pub const MEM_BYTES: u64 = 0x10_0000;
pub const HIGH_BYTES: u64 = 0x1_0000;
/// The end of memory.
pub const MEM_END: u64 = MEM_BYTES + HIGH_BYTES;
/// Where requests are put.
pub const REQUEST_AT: u64 = 0x2_0000;
/// What memory holds where nothing was written.
pub const UNTOUCHED: u8 = 0xEE;

/// A generator of numbers that a seed determines (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

pub fn disk() -> DiskInfo {
    DiskInfo {
        capacity_sectors: 1000,
        blk_size: 512,
        physical_block_exp: 3,
        alignment_offset: 0,
        min_io_size: 8,
        opt_io_size: 128,
        num_queues: 2,
        seg_max: 6,
        size_max: None,
        discard: Some(DiscardInfo { max_sectors: 100, max_seg: 3, sector_alignment: 8 }),
        write_zeroes: Some(WriteZeroesInfo { max_sectors: 50, max_seg: 2, may_unmap: true }),
        wce: true,
        read_only: false,
    }
}

pub fn limits() -> Limits {
    Limits::new(&disk(), Features::all())
}

pub fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut raw = kind.to_le_bytes().to_vec();
    raw.extend(0xdead_beef_u32.to_le_bytes());
    raw.extend(sector.to_le_bytes());
    raw
}

pub struct Guest {
    pub mem: MemHandle,
    driver: DriverQueue,
    queue: Virtqueue,
    /// Where the writable part of the last request is.
    writable_at: GuestAddr,
    writable_len: u64,
}

pub type Parsed = Result<(Request, Pending), BadChain>;

impl Guest {
    pub fn new() -> Guest {
        let (memory, fd) = GuestMemory::memfd(MEM_BYTES).unwrap();
        let high = RegionSpec {
            guest_addr: GuestAddr(MEM_BYTES),
            len: HIGH_BYTES,
            user_addr: 1 << 40,
            file_offset: 0,
        };
        let memory = memory.with_region(Region::map(high, fd).unwrap()).unwrap();
        let mem = MemHandle::new(Arc::new(memory));
        let driver = DriverQueue::new(&mem, GuestAddr(0), DriverConfig::new(64)).unwrap();
        let queue = Virtqueue::new(&mem, &driver.config(), 0).unwrap();
        Guest { mem, driver, queue, writable_at: GuestAddr(0), writable_len: 0 }
    }

    /// Sends `readable`, cut into pieces of these lengths (the rest in a last one), and room for `writable` bytes cut likewise.
    pub fn send_cut(
        &mut self,
        limits: &Limits,
        readable: &[u8],
        readable_cuts: &[u64],
        writable: u64,
        writable_cuts: &[u64],
    ) -> Parsed {
        let mut segs = Vec::new();
        let mut at = REQUEST_AT;
        cut(&mut segs, at, readable.len() as u64, readable_cuts, false);
        self.iov(at, readable.len() as u64).copy_from(0, readable);
        at += readable.len() as u64;
        cut(&mut segs, at, writable, writable_cuts, true);
        (self.writable_at, self.writable_len) = (GuestAddr(at), writable);
        self.iov(at, writable).copy_from(0, &vec![UNTOUCHED; writable as usize]);
        self.send_segs(limits, &segs)
    }

    /// Sends a request in the usual cut: header, data, status.
    pub fn send(&mut self, limits: &Limits, readable: &[u8], writable_data: u64) -> Parsed {
        self.send_cut(limits, readable, &[16], writable_data + 1, &[writable_data])
    }

    pub fn send_segs(&mut self, limits: &Limits, segs: &[Seg]) -> Parsed {
        self.driver.add(segs).expect("room in the queue");
        let _ = self.driver.kick_needed();
        Request::parse(self.queue.pop().unwrap().unwrap(), limits)
    }

    /// Sends a request that must fail at once; returns its status.
    pub fn fails(&mut self, limits: &Limits, readable: &[u8], writable_data: u64) -> Status {
        match self.send(limits, readable, writable_data).unwrap() {
            (Request::Failed(status), pending) => {
                let used = self.finish(pending, status);
                assert_eq!(used.written, 1);
                let answer = self.written();
                let (last, data) = answer.split_last().unwrap();
                assert_eq!(*last, status as u8);
                assert!(data.iter().all(|byte| *byte == UNTOUCHED));
                status
            }
            (request, pending) => {
                std::mem::forget(pending);
                panic!("{request:?} was accepted")
            }
        }
    }

    /// Sends a request that must be accepted and can be dropped; returns it and answers `Ok`.
    pub fn accepted(&mut self, limits: &Limits, readable: &[u8], writable_data: u64) -> Request {
        let (request, pending) = self.send(limits, readable, writable_data).unwrap();
        let _ = self.finish(pending, Status::Ok);
        match request {
            Request::Failed(status) => panic!("failed: {status:?}"),
            request => request,
        }
    }

    pub fn finish(&mut self, mut pending: Pending, status: Status) -> UsedElem {
        self.queue.recycle(pending.take_spare());
        let used = pending.finish(status);
        self.queue.push_used(used.head, used.written);
        let _ = self.queue.publish();
        assert_eq!(self.driver.poll_used(), Some((used.head, used.written)));
        used
    }

    /// The writable part of the last request.
    pub fn written(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.writable_len as usize];
        self.iov(self.writable_at.0, self.writable_len).copy_to(0, &mut bytes);
        bytes
    }

    pub fn iov(&self, at: u64, len: u64) -> IoVecs {
        let mut iov = IoVecs::new(&self.mem);
        iov.push(GuestAddr(at), len).unwrap();
        iov
    }
}

fn cut(segs: &mut Vec<Seg>, mut at: u64, mut len: u64, cuts: &[u64], device_writes: bool) {
    for &piece in cuts.iter().chain([&u64::MAX]) {
        let piece = piece.min(len);
        if piece > 0 {
            segs.push(Seg { addr: GuestAddr(at), len: piece as u32, device_writes });
        }
        at += piece;
        len -= piece;
    }
}
