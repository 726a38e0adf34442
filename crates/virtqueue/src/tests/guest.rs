//! A guest that writes its ring by hand, and so can write anything.

use crate::layout::{Desc, avail_entry};
use crate::{BadRing, DescChain, QueueConfig, Virtqueue};
use guest_mem::{GuestAddr, GuestMemory, GuestSlice, MemHandle, Region, RegionSpec};
use std::sync::Arc;

pub const R: u16 = 0;
pub const NEXT: u16 = 1;
pub const W: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const DESC_AT: u64 = 0;
/// Free for tables and data up to `MEM_BYTES`.
pub const DATA_AT: u64 = 0x4000;
pub const MEM_BYTES: u64 = 0x1_0000;
/// A second region follows directly, up to here.
pub const MEM_END: u64 = 0x1_4000;

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

/// Two adjacent regions: 64 KiB at 0, 16 KiB behind.
pub fn memory() -> Arc<GuestMemory> {
    let (memory, fd) = GuestMemory::memfd(MEM_END).unwrap();
    let first = *memory.regions()[0].spec();
    let memory = memory.without_region(first.guest_addr, first.user_addr, first.len).unwrap();
    let spec = |at: u64, len| RegionSpec {
        guest_addr: GuestAddr(at),
        len,
        user_addr: 0x10_0000 + at,
        file_offset: at,
    };
    let low = Region::map(spec(0, MEM_BYTES), &fd).unwrap();
    let high = Region::map(spec(MEM_BYTES, MEM_END - MEM_BYTES), &fd).unwrap();
    Arc::new(memory.with_region(low).unwrap().with_region(high).unwrap())
}

pub struct Guest {
    pub mem: MemHandle,
    pub config: QueueConfig,
    desc: GuestSlice,
    avail: GuestSlice,
    next_avail: u16,
}

impl Guest {
    pub fn new(size: u16) -> Guest {
        let mem = MemHandle::new(memory());
        let config = QueueConfig {
            size,
            desc: GuestAddr(DESC_AT),
            avail: GuestAddr(0x2000),
            used: GuestAddr(0x3000),
            event_idx: false,
            indirect: true,
        };
        let desc = mem.slice(config.desc, 16 * u64::from(size)).unwrap();
        let avail = mem.slice(config.avail, 2 * u64::from(size) + 6).unwrap();
        Guest { mem, config, desc, avail, next_avail: 0 }
    }

    pub fn queue(&self) -> Virtqueue {
        Virtqueue::new(&self.mem, &self.config, 0).unwrap()
    }

    pub fn desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) -> &Guest {
        Desc { addr, len, flags, next }.write(&self.desc, usize::from(index));
        self
    }

    /// Writes a descriptor of an indirect table at `table`, at any alignment.
    pub fn table(&self, table: u64, index: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let mut raw = addr.to_le_bytes().to_vec();
        raw.extend(len.to_le_bytes());
        raw.extend(flags.to_le_bytes());
        raw.extend(next.to_le_bytes());
        let mut iov = guest_mem::IoVecs::new(&self.mem);
        iov.push(GuestAddr(table + 16 * index), 16).unwrap();
        iov.copy_from(0, &raw);
    }

    /// Makes `head` available.
    pub fn avail(&mut self, head: u16) {
        self.avail.write_u16(avail_entry(self.next_avail & (self.config.size - 1)), head);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.set_avail_index(self.next_avail);
    }

    pub fn set_avail_index(&self, index: u16) {
        self.avail.store_index(2, index);
    }

    /// Makes `head` available on a new queue and pops it.
    pub fn pop(&mut self, head: u16) -> Result<DescChain, BadRing> {
        self.avail(head);
        self.next_avail = 0;
        let mut queue = self.queue();
        let popped = queue.pop().map(|chain| chain.expect("one is available"));
        if let Err(why) = popped {
            assert_eq!(queue.pop().unwrap_err(), why, "a broken queue stays broken");
            assert_eq!(queue.resubmit(0).unwrap_err(), why);
            assert_eq!((queue.broken(), queue.in_flight()), (Some(why), 0));
            assert!(!queue.has_avail() && !queue.enable_kicks(), "nothing to wake up for");
        }
        popped
    }
}
