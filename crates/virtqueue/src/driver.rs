//! The driver side of a split virtqueue, in the memory of a guest that is not there: for tests, the simulation and benchmarks.
//!
//! ```text
//!  at: | descriptor table | avail ring | used ring | one indirect table for each head |
//! ```
//!
//! A device that uses a head which is not in flight is a failed test for most, so [`DriverQueue::poll_used`] panics then;
//! [`DriverQueue::try_poll_used`] is for devices that are not ours.

use crate::QueueConfig;
use crate::layout::{
    DESC_BYTES, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Desc, RING_F_NO_CALL, RING_FLAGS,
    RING_IDX, avail_entry, avail_len, desc_len, passes_event, used_entry, used_len,
};
use guest_mem::{BadAddr, GuestAddr, MemHandle, SharedSlice};
use std::fmt;
use std::sync::atomic::{Ordering, fence};

/// One buffer of a chain to be added. Those that the device writes come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seg {
    /// Where it lies.
    pub addr: GuestAddr,
    /// Its length in bytes.
    pub len: u32,
    /// The device writes it; otherwise it reads it.
    pub device_writes: bool,
}

/// The device used a descriptor that no chain in flight begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadUsed {
    /// What the device put into the used ring.
    pub id: u32,
}

impl fmt::Display for BadUsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the device used descriptor {}, which begins no chain in flight", self.id)
    }
}

impl std::error::Error for BadUsed {}

/// What kind of queue to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverConfig {
    /// Entries of the ring, a power of two.
    pub size: u16,
    /// Use event indices.
    pub event_idx: bool,
    /// Entries of each indirect table, 0 for none. Chains of two and more segments go into a table if they fit.
    pub indirect_entries: u16,
    /// What the indices start from; tests begin just below 65536.
    pub first_index: u16,
}

impl DriverConfig {
    /// A queue of `size` entries with event indices, without indirect tables.
    pub fn new(size: u16) -> DriverConfig {
        DriverConfig { size, event_idx: true, indirect_entries: 0, first_index: 0 }
    }

    /// Bytes of guest memory the queue takes.
    pub fn bytes(&self) -> u64 {
        let tables = u64::from(self.size).wrapping_mul(desc_len(self.indirect_entries));
        self.tables_offset().wrapping_add(tables)
    }

    fn avail_offset(&self) -> u64 {
        desc_len(self.size)
    }

    fn used_offset(&self) -> u64 {
        self.avail_offset().wrapping_add(avail_len(self.size)).next_multiple_of(4)
    }

    fn tables_offset(&self) -> u64 {
        self.used_offset().wrapping_add(used_len(self.size)).next_multiple_of(DESC_BYTES)
    }
}

/// What the driver remembers of a descriptor; the device can write to the table, so the table cannot be asked.
#[derive(Clone, Copy, Debug, Default)]
struct Shadow {
    /// The next descriptor of the chain, or of the free list.
    next: u16,
    /// Of a head in flight: descriptors of its chain. Otherwise 0.
    chain_len: u16,
}

/// The driver side of a queue.
#[derive(Debug)]
pub struct DriverQueue {
    config: DriverConfig,
    addr: GuestAddr,
    desc: SharedSlice,
    avail: SharedSlice,
    used: SharedSlice,
    tables: Option<SharedSlice>,
    shadow: Vec<Shadow>,
    free_head: u16,
    free_count: u16,
    next_avail: u16,
    published_avail: u16,
    next_used: u16,
    used_seen: u16,
}

impl DriverQueue {
    /// Sets a queue up in [`DriverConfig::bytes`] bytes of guest memory at `addr`, a multiple of 16.
    ///
    /// # Errors
    ///
    /// [`BadAddr`] if they are not within one region.
    ///
    /// # Panics
    ///
    /// If the size is not a power of two up to [`crate::SIZE_MAX`].
    pub fn new(
        mem: &MemHandle,
        addr: GuestAddr,
        config: DriverConfig,
    ) -> Result<DriverQueue, BadAddr> {
        let size = config.size;
        assert!(size.is_power_of_two() && size <= crate::SIZE_MAX, "virtqueue size {size}");
        let memory = mem.to_shared();
        let area = |offset: u64, len: u64| {
            let at = addr.checked_add(offset).ok_or(BadAddr { addr, len: offset })?;
            memory.shared_slice(at, len)
        };
        let tables_len = u64::from(size).wrapping_mul(desc_len(config.indirect_entries));
        let tables = match tables_len {
            0 => None,
            len => Some(area(config.tables_offset(), len)?),
        };
        let first = config.first_index;
        let mut queue = DriverQueue {
            config,
            addr,
            desc: area(0, desc_len(size))?,
            avail: area(config.avail_offset(), avail_len(size))?,
            used: area(config.used_offset(), used_len(size))?,
            tables,
            shadow: (0..size).map(|i| Shadow { next: i.wrapping_add(1), chain_len: 0 }).collect(),
            free_head: 0,
            free_count: size,
            next_avail: first,
            published_avail: first,
            next_used: first,
            used_seen: first,
        };
        for ring in [&queue.avail, &queue.used] {
            ring.store_index(RING_FLAGS, 0);
            ring.store_index(RING_IDX, first);
        }
        queue.used.store_index(used_entry(size), first);
        let _ = queue.enable_notify();
        Ok(queue)
    }

    /// What the device is told of the queue.
    pub fn config(&self) -> QueueConfig {
        let at = |offset: u64| GuestAddr(self.addr.0.wrapping_add(offset));
        QueueConfig {
            size: self.config.size,
            desc: self.addr,
            avail: at(self.config.avail_offset()),
            used: at(self.config.used_offset()),
            event_idx: self.config.event_idx,
            indirect: self.tables.is_some(),
        }
    }

    /// Adds a chain; returns its head. `None` if too few descriptors are free, or there are no segments. The device sees it after
    /// [`DriverQueue::kick_needed`].
    #[inline]
    pub fn add(&mut self, segs: &[Seg]) -> Option<u16> {
        let head = self.free_head;
        let indirect = segs.len() > 1 && segs.len() <= usize::from(self.config.indirect_entries);
        let descs = if indirect { 1 } else { u16::try_from(segs.len()).ok()? };
        if descs == 0 || descs > self.free_count {
            return None;
        }
        let last = if indirect { self.add_indirect(head, segs) } else { self.add_direct(segs) };
        let after = self.shadow_mut(last).next;
        self.free_head = after;
        self.free_count = self.free_count.wrapping_sub(descs);
        self.shadow_mut(head).chain_len = descs;

        let slot = self.next_avail & self.config.size.wrapping_sub(1);
        self.avail.write_u16(avail_entry(slot), head);
        self.next_avail = self.next_avail.wrapping_add(1);
        Some(head)
    }

    /// Shows the device everything added, and says whether to kick it.
    #[inline]
    #[must_use = "a device that is owed a kick waits for it for ever"]
    pub fn kick_needed(&mut self) -> bool {
        let (old, new) = (self.published_avail, self.next_avail);
        if old == new {
            return false;
        }
        self.avail.store_index(RING_IDX, new);
        self.published_avail = new;
        // The index must be visible before we look whether the device wants a kick.
        fence(Ordering::SeqCst);
        if self.config.event_idx {
            passes_event(self.used.load_index(used_entry(self.config.size)), new, old)
        } else {
            self.used.load_index(RING_FLAGS) & RING_F_NO_CALL == 0
        }
    }

    /// Takes the next chain that the device has used: its head, and the bytes written.
    ///
    /// # Panics
    ///
    /// If the device used a head that is not in flight.
    #[inline]
    pub fn poll_used(&mut self) -> Option<(u16, u32)> {
        self.try_poll_used().unwrap_or_else(|bad| panic!("{bad}"))
    }

    /// As [`DriverQueue::poll_used`], of a device that may be wrong.
    ///
    /// # Errors
    ///
    /// [`BadUsed`] if the device used a head that is not in flight. The queue is of no use then.
    #[inline]
    pub fn try_poll_used(&mut self) -> Result<Option<(u16, u32)>, BadUsed> {
        if self.next_used == self.used_seen {
            self.used_seen = self.used.load_index(RING_IDX);
            if self.next_used == self.used_seen {
                return Ok(None);
            }
        }
        let at = used_entry(self.next_used & self.config.size.wrapping_sub(1));
        let id = self.used.read_u32(at);
        let written = self.used.read_u32(at.wrapping_add(4));
        let head = u16::try_from(id).map_err(|_| BadUsed { id })?;
        self.free(head).ok_or(BadUsed { id })?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some((head, written)))
    }

    /// Asks the device for no notifications: the driver polls.
    #[inline]
    pub fn disable_notify(&mut self) {
        if self.config.event_idx {
            // Behind all that the device may be publishing at this moment.
            let behind = self.next_used.wrapping_sub(self.config.size).wrapping_sub(1);
            self.avail.store_index(avail_entry(self.config.size), behind);
        } else {
            self.avail.store_index(RING_FLAGS, RING_F_NO_CALL);
        }
    }

    /// Asks for a notification with the next used chain. True if there are some already: poll them before sleeping.
    #[inline]
    #[must_use = "chains that are there already come without a notification"]
    pub fn enable_notify(&mut self) -> bool {
        self.notify_after(0)
    }

    /// With event indices: asks for a notification only once `more` chains after the next one are used.
    #[inline]
    #[must_use = "chains that are there already come without a notification"]
    pub fn notify_after(&mut self, more: u16) -> bool {
        if self.config.event_idx {
            let event = self.next_used.wrapping_add(more);
            self.avail.store_index(avail_entry(self.config.size), event);
        } else {
            self.avail.store_index(RING_FLAGS, 0);
        }
        fence(Ordering::SeqCst);
        self.used.load_index(RING_IDX).wrapping_sub(self.next_used) > more
    }

    /// Chains added and not yet polled as used.
    pub fn in_flight(&self) -> u16 {
        self.next_avail.wrapping_sub(self.next_used)
    }

    /// Descriptors not in use.
    pub fn free_descs(&self) -> u16 {
        self.free_count
    }

    fn shadow_mut(&mut self, index: u16) -> &mut Shadow {
        self.shadow.get_mut(usize::from(index)).expect("lists link descriptors of the table only")
    }

    /// Writes the chain into descriptors from the front of the free list; returns the last one.
    fn add_direct(&mut self, segs: &[Seg]) -> u16 {
        let (mut index, mut last) = (self.free_head, self.free_head);
        for (i, seg) in segs.iter().enumerate() {
            let next = self.shadow_mut(index).next;
            let more = i.wrapping_add(1) < segs.len();
            seg_desc(seg, more.then_some(next)).write(&self.desc, usize::from(index));
            last = index;
            index = next;
        }
        last
    }

    /// Writes the chain into the table of `head` and points `head` to it; returns `head`.
    fn add_indirect(&mut self, head: u16, segs: &[Seg]) -> u16 {
        let tables = self.tables.as_ref().expect("a queue with indirect entries has tables");
        let first = usize::from(head).wrapping_mul(usize::from(self.config.indirect_entries));
        let mut next = 0u16;
        for (i, seg) in segs.iter().enumerate() {
            next = next.wrapping_add(1);
            let more = usize::from(next) < segs.len();
            seg_desc(seg, more.then_some(next)).write(tables, first.wrapping_add(i));
        }
        let table =
            self.config.tables_offset().wrapping_add((first as u64).wrapping_mul(DESC_BYTES));
        let addr = self.addr.0.wrapping_add(table);
        let len = u32::from(next).wrapping_mul(16);
        Desc { addr, len, flags: DESC_F_INDIRECT, next: 0 }.write(&self.desc, usize::from(head));
        head
    }

    /// Puts the chain at `head` in front of the free list; `None` if no chain in flight begins there.
    fn free(&mut self, head: u16) -> Option<()> {
        let count = std::mem::take(&mut self.shadow.get_mut(usize::from(head))?.chain_len);
        if count == 0 {
            return None;
        }
        let mut last = head;
        for _ in 1..count {
            last = self.shadow_mut(last).next;
        }
        self.shadow_mut(last).next = self.free_head;
        self.free_head = head;
        self.free_count = self.free_count.wrapping_add(count);
        Some(())
    }
}

fn seg_desc(seg: &Seg, next: Option<u16>) -> Desc {
    let write = if seg.device_writes { DESC_F_WRITE } else { 0 };
    let chained = if next.is_some() { DESC_F_NEXT } else { 0 };
    Desc { addr: seg.addr.0, len: seg.len, flags: write | chained, next: next.unwrap_or(0) }
}
