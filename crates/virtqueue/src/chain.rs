//! From a head to a checked descriptor chain: the only code that follows what a guest wrote.
//!
//! ```text
//! descriptor table                    indirect table
//! head: |R next|--> |R next|--> |INDIRECT|--> |R next|--> |W next|--> |W|   end
//!        `--------- readable ------------------'           `-- writable -'
//! ```
//!
//! Specification: VIRTIO 1.3, sections 2.7.4 and 2.7.5. Every descriptor is copied once and then judged; the number of steps is
//! bounded by the number of entries of the table walked.

use crate::BadRing;
use crate::layout::{DESC_BYTES, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Desc};
use guest_mem::{GuestAddr, GuestSlice, IoVecs, MemHandle};

/// Entries an indirect table may have whatever the size of the queue. The specification asks drivers to keep to the size of the
/// queue, but Linux builds longer chains on small queues when the device's own segment limit allows them.
pub const INDIRECT_ENTRIES_MAX: u16 = 1024;

/// The longest chain the specification allows, in bytes.
const CHAIN_BYTES_MAX: u64 = 1 << 32;

/// What is wrong with the data of a chain, worst last. It spoils that chain, not the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flaw {
    /// A descriptor has length 0. It contributes nothing.
    Empty,
    /// A descriptor is not all in guest memory. It contributes nothing.
    Unmapped,
    /// The last writable descriptor is not all in guest memory: the last byte of `writable` is not the chain's last one.
    UnmappedEnd,
}

/// A chain the driver made available: the device's until it is pushed to the used ring.
#[derive(Debug)]
pub struct DescChain {
    /// Index of its first descriptor, its name in the used ring.
    pub head: u16,
    /// What the device may read, in order.
    pub readable: IoVecs,
    /// What the device may write, in order.
    pub writable: IoVecs,
    /// Set if descriptors are missing from `readable` or `writable`.
    pub flaw: Option<Flaw>,
    /// Segments more than there were descriptors, because a descriptor covers several regions of memory.
    pub splits: usize,
}

/// What is allowed on the queue that a chain comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub size: u16,
    pub indirect: bool,
}

/// Follows the chain at `chain.head` in the descriptor table `table` and fills in `chain`, whose lists are empty.
#[inline]
pub(crate) fn walk(table: &GuestSlice, rules: Rules, chain: &mut DescChain) -> Result<(), BadRing> {
    let head = chain.head;
    let mut walk = Walk { chain, bytes: 0, mapped: 0, any_writable: false, end_unmapped: false };
    let last = walk.follow(head, rules.size, |index| Desc::read(table, index))?;
    if let Some(desc) = last {
        walk.indirect(table.memory(), rules, desc)?;
    }
    walk.finish();
    Ok(())
}

struct Walk<'a> {
    chain: &'a mut DescChain,
    /// Length of all descriptors so far, mapped or not.
    bytes: u64,
    /// Descriptors that became segments.
    mapped: usize,
    any_writable: bool,
    /// The last writable descriptor with a length is not in memory.
    end_unmapped: bool,
}

impl Walk<'_> {
    /// Adds the descriptors from `first` on. Ends at the last one, or at an indirect one, which it returns.
    #[inline]
    fn follow(
        &mut self,
        first: u16,
        entries: u16,
        read: impl Fn(u16) -> Desc,
    ) -> Result<Option<Desc>, BadRing> {
        let head = self.chain.head;
        let mut index = first;
        for _ in 0..entries {
            let desc = read(index);
            if desc.has(DESC_F_INDIRECT) {
                return Ok(Some(desc));
            }
            self.add(desc, index)?;
            if !desc.has(DESC_F_NEXT) {
                return Ok(None);
            }
            if desc.next >= entries {
                return Err(BadRing::Next { head, next: desc.next });
            }
            index = desc.next;
        }
        Err(BadRing::Loop { head })
    }

    #[inline]
    fn add(&mut self, desc: Desc, index: u16) -> Result<(), BadRing> {
        let head = self.chain.head;
        let writable = desc.has(DESC_F_WRITE);
        if self.any_writable && !writable {
            return Err(BadRing::Order { head, index });
        }
        self.any_writable = writable;
        self.bytes = self.bytes.saturating_add(u64::from(desc.len));
        if self.bytes > CHAIN_BYTES_MAX {
            return Err(BadRing::TooManyBytes { head });
        }
        if desc.len == 0 {
            self.flaw(Flaw::Empty);
            return Ok(());
        }
        let list = if writable { &mut self.chain.writable } else { &mut self.chain.readable };
        let mapped = list.push(GuestAddr(desc.addr), u64::from(desc.len)).is_ok();
        if mapped {
            self.mapped = self.mapped.wrapping_add(1);
        } else {
            self.flaw(Flaw::Unmapped);
        }
        self.end_unmapped = writable && !mapped;
        Ok(())
    }

    /// Goes on in the table that `desc` points to. Its WRITE flag means nothing (section 2.7.5.3.2).
    fn indirect(&mut self, mem: &MemHandle, rules: Rules, desc: Desc) -> Result<(), BadRing> {
        let head = self.chain.head;
        if !rules.indirect {
            return Err(BadRing::IndirectRefused { head });
        }
        if desc.has(DESC_F_NEXT) {
            return Err(BadRing::IndirectNext { head });
        }
        let (addr, len) = (GuestAddr(desc.addr), u64::from(desc.len));
        let entries = u16::try_from(len / DESC_BYTES)
            .ok()
            .filter(|n| *n > 0 && *n <= rules.size.max(INDIRECT_ENTRIES_MAX))
            .filter(|_| len.is_multiple_of(DESC_BYTES))
            .ok_or(BadRing::IndirectLen { head, len: desc.len })?;

        let last = match mem.slice(addr, len) {
            Ok(table) if table.is_aligned_to(8) => {
                self.follow(0, entries, |index| Desc::read(&table, index))?
            }
            // Nothing asks the driver to align a table, or to keep it within one region.
            _ => {
                let mut table = IoVecs::new(mem);
                table.push(addr, len).map_err(|_| BadRing::IndirectUnmapped { head, addr })?;
                self.follow(0, entries, |index| read_anywhere(&table, index))?
            }
        };
        match last {
            Some(_) => Err(BadRing::IndirectNested { head }),
            None => Ok(()),
        }
    }

    #[inline]
    fn flaw(&mut self, flaw: Flaw) {
        self.chain.flaw = self.chain.flaw.max(Some(flaw));
    }

    #[inline]
    fn finish(mut self) {
        if self.end_unmapped {
            self.flaw(Flaw::UnmappedEnd);
        }
        let chain = self.chain;
        let segs = chain.readable.as_raw().len().wrapping_add(chain.writable.as_raw().len());
        chain.splits = segs.saturating_sub(self.mapped);
    }
}

/// Copies a descriptor that may lie at any address, over any regions.
fn read_anywhere(table: &IoVecs, index: u16) -> Desc {
    let mut raw = [0; 16];
    table.copy_to(u64::from(index).wrapping_mul(DESC_BYTES), &mut raw);
    let word = |half: u128| u64::try_from(half & u128::from(u64::MAX)).unwrap_or(0);
    let raw = u128::from_le_bytes(raw);
    Desc::from_words(word(raw), word(raw >> 64))
}
