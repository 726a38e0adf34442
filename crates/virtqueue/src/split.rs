//! The device side of a split virtqueue.
//!
//! ```text
//!  avail ring, indices mod 2^16:      popped | available | free
//!                                  ----------^-----------^------
//!                                   next_avail    avail_seen: the driver's idx, read again once used up
//!
//!  used ring:                      published | pushed    |
//!                                  ----------^-----------^------
//!                               published_used   next_used
//! ```
//!
//! Two places need a full fence, because each side stores one word and then loads the other's (a store may pass a later load
//! otherwise, and both would go to sleep): [`SplitQueue::publish`] between the used index and the driver's wish for notifications,
//! [`SplitQueue::enable_kicks`] between our wish for kicks and the avail index.

use crate::chain::{self, DescChain, Rules};
use crate::in_flight::InFlight;
use crate::layout::{
    AVAIL_ALIGN, DESC_ALIGN, RING_F_NO_CALL, RING_FLAGS, RING_IDX, SIZE_MAX, USED_ALIGN,
    avail_entry, avail_len, desc_len, passes_event, used_entry, used_len,
};
use crate::{Area, BadRing, Notify, QueueConfig};
use guest_mem::{GuestAddr, GuestSlice, IoVecs, MemHandle, SegStorage};
use std::sync::atomic::{Ordering, fence};

/// Storages kept for coming chains. A guest can make each of them large, so there must be a bound.
const POOL_MAX: usize = 512;

/// See [`crate::Virtqueue`], whose methods these are.
#[derive(Debug)]
pub struct SplitQueue {
    desc: GuestSlice,
    avail: GuestSlice,
    used: GuestSlice,
    rules: Rules,
    /// `size - 1`: turns an index into a slot.
    mask: u16,
    event_idx: bool,
    next_avail: u16,
    avail_seen: u16,
    next_used: u16,
    published_used: u16,
    /// Nothing was published yet. A server before us may have published and died before it notified, and with event indices the
    /// driver's wish then lies behind `published_used`; so the first publication always notifies.
    first_publish: bool,
    in_flight: InFlight,
    pool: Vec<SegStorage>,
    broken: Option<BadRing>,
}

impl SplitQueue {
    pub(crate) fn new(
        mem: &MemHandle,
        config: &QueueConfig,
        next_avail: u16,
    ) -> Result<SplitQueue, BadRing> {
        let size = config.size;
        if !size.is_power_of_two() || size > SIZE_MAX {
            return Err(BadRing::Size(size));
        }
        let desc = (Area::Desc, config.desc, desc_len(size));
        let avail = (Area::Avail, config.avail, avail_len(size));
        let used = (Area::Used, config.used, used_len(size));
        let slices = (
            map_area(mem, desc, DESC_ALIGN)?,
            map_area(mem, avail, AVAIL_ALIGN)?,
            map_area(mem, used, USED_ALIGN)?,
        );
        for (a, b) in [(desc, avail), (desc, used), (avail, used)] {
            if overlap(a, b) {
                return Err(BadRing::Overlap(a.0, b.0));
            }
        }
        let (desc, avail, used) = slices;
        let next_used = used.load_index(RING_IDX);
        Ok(SplitQueue {
            desc,
            avail,
            used,
            rules: Rules { size, indirect: config.indirect },
            mask: size.wrapping_sub(1),
            event_idx: config.event_idx,
            next_avail,
            avail_seen: next_avail,
            next_used,
            published_used: next_used,
            first_publish: true,
            in_flight: InFlight::new(size),
            pool: Vec::new(),
            broken: None,
        })
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Result<Option<DescChain>, BadRing> {
        if let Some(why) = self.broken {
            return Err(why);
        }
        if self.next_avail == self.avail_seen && !self.look_for_avail()? {
            return Ok(None);
        }
        let head = self.avail.read_u16(avail_entry(self.next_avail & self.mask));
        let chain = self.take(head)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(chain))
    }

    pub(crate) fn resubmit(&mut self, head: u16) -> Result<DescChain, BadRing> {
        match self.broken {
            Some(why) => Err(why),
            None => self.take(head),
        }
    }

    #[inline]
    pub(crate) fn has_avail(&self) -> bool {
        self.broken.is_none()
            && (self.next_avail != self.avail_seen
                || self.avail.load_index(RING_IDX) != self.next_avail)
    }

    #[inline]
    pub(crate) fn push_used(&mut self, head: u16, written: u32) {
        assert!(self.in_flight.remove(head), "chain {head} is used but was not in flight");
        let at = used_entry(self.next_used & self.mask);
        self.used.write_u32(at, u32::from(head));
        self.used.write_u32(at.wrapping_add(4), written);
        self.next_used = self.next_used.wrapping_add(1);
    }

    #[inline]
    pub(crate) fn publish(&mut self) -> Notify {
        let (old, new) = (self.published_used, self.next_used);
        if old == new {
            return Notify::Suppressed;
        }
        self.used.store_index(RING_IDX, new);
        self.published_used = new;
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.avail.load_index(avail_entry(self.rules.size));
            passes_event(event, new, old) || self.first_publish
        } else {
            self.avail.load_index(RING_FLAGS) & RING_F_NO_CALL == 0
        };
        self.first_publish = false;
        if wanted { Notify::Needed } else { Notify::Suppressed }
    }

    #[inline]
    pub(crate) fn disable_kicks(&mut self) {
        if self.event_idx {
            // Just behind what the driver will add next: as far away as an index can be.
            self.used.store_index(used_entry(self.rules.size), self.next_avail.wrapping_sub(1));
        } else {
            self.used.store_index(RING_FLAGS, RING_F_NO_CALL);
        }
    }

    #[inline]
    pub(crate) fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            self.used.store_index(used_entry(self.rules.size), self.next_avail);
        } else {
            self.used.store_index(RING_FLAGS, 0);
        }
        fence(Ordering::SeqCst);
        self.has_avail()
    }

    pub(crate) fn next_avail(&self) -> u16 {
        self.next_avail
    }

    pub(crate) fn next_used(&self) -> u16 {
        self.next_used
    }

    pub(crate) fn in_flight(&self) -> u16 {
        self.in_flight.count()
    }

    pub(crate) fn broken(&self) -> Option<BadRing> {
        self.broken
    }

    #[inline]
    pub(crate) fn recycle(&mut self, storage: SegStorage) {
        // Empty ones would fill the pool, and the others would have nowhere to go.
        if storage.has_room() && self.pool.len() < POOL_MAX {
            self.pool.push(storage);
        }
    }

    /// Reads the avail index; true if it moved.
    fn look_for_avail(&mut self) -> Result<bool, BadRing> {
        let index = self.avail.load_index(RING_IDX);
        if index.wrapping_sub(self.next_avail) > self.rules.size {
            let next_avail = self.next_avail;
            return Err(self.breaks(BadRing::AvailIndex { index, next_avail }));
        }
        self.avail_seen = index;
        Ok(index != self.next_avail)
    }

    /// Puts the chain at `head` in flight.
    #[inline]
    fn take(&mut self, head: u16) -> Result<DescChain, BadRing> {
        if head >= self.rules.size {
            return Err(self.breaks(BadRing::Head(head)));
        }
        if !self.in_flight.insert(head) {
            return Err(self.breaks(BadRing::HeadInFlight(head)));
        }
        let mut chain = DescChain {
            head,
            readable: self.empty_list(),
            writable: self.empty_list(),
            flaw: None,
            splits: 0,
        };
        match chain::walk(&self.desc, self.rules, &mut chain) {
            Ok(()) => Ok(chain),
            Err(why) => {
                // Nobody holds this chain, so nobody will push it.
                self.in_flight.remove(head);
                Err(self.breaks(why))
            }
        }
    }

    #[inline]
    fn empty_list(&mut self) -> IoVecs {
        IoVecs::with_storage(self.desc.memory(), self.pool.pop().unwrap_or_default())
    }

    #[cold]
    fn breaks(&mut self, why: BadRing) -> BadRing {
        self.broken = Some(why);
        why
    }
}

type Placed = (Area, GuestAddr, u64);

fn map_area(mem: &MemHandle, area: Placed, align: usize) -> Result<GuestSlice, BadRing> {
    let (name, addr, len) = area;
    let slice = mem.slice(addr, len).map_err(|_| BadRing::Unmapped(name, addr))?;
    // The host's address can be misaligned where the guest's is not: a VMM may map a region at any offset of its file.
    if !addr.0.is_multiple_of(align as u64) || !slice.is_aligned_to(align) {
        return Err(BadRing::Misaligned(name, addr));
    }
    Ok(slice)
}

/// Neither range wraps: both are mapped.
fn overlap(a: Placed, b: Placed) -> bool {
    a.1.0 < b.1.0.saturating_add(b.2) && b.1.0 < a.1.0.saturating_add(a.2)
}
