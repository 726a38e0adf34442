//! Each rule of the ring by itself: what is legal, and what breaks the queue.

use super::guest::*;
use crate::{Area, BadRing, DescChain, Flaw, QueueConfig, Virtqueue};
use guest_mem::{GuestAddr, IoVecs, clear_read_hook, set_read_hook};
use std::cell::Cell;
use std::rc::Rc;

fn lens(chain: &DescChain) -> (u64, u64) {
    (chain.readable.bytes(), chain.writable.bytes())
}

fn refused(guest: &Guest, change: impl FnOnce(&mut QueueConfig)) -> BadRing {
    let mut config = guest.config;
    change(&mut config);
    Virtqueue::new(&guest.mem, &config, 0).unwrap_err()
}

#[test]
fn a_queue_of_an_impossible_size_is_refused() {
    let guest = Guest::new(256);
    for size in [0, 3, 255, 257, 32769, 65535] {
        assert_eq!(refused(&guest, |c| c.size = size), BadRing::Size(size));
    }
    for size in [1, 2, 256] {
        let config = QueueConfig { size, ..guest.config };
        assert!(Virtqueue::new(&guest.mem, &config, 0).is_ok(), "{size}");
    }
}

#[test]
fn the_largest_size_works() {
    let (memory, _fd) = guest_mem::GuestMemory::memfd(1 << 20).unwrap();
    let mem = guest_mem::MemHandle::new(std::sync::Arc::new(memory));
    let config = QueueConfig {
        size: crate::SIZE_MAX,
        desc: GuestAddr(0),
        avail: GuestAddr(0x8_0000),
        used: GuestAddr(0xa_0000),
        event_idx: true,
        indirect: false,
    };
    let mut queue = Virtqueue::new(&mem, &config, 0).unwrap();
    mem.slice(GuestAddr(0x8_0000), 4).unwrap().store_index(2, crate::SIZE_MAX);
    mem.slice(GuestAddr(0x8_0004), 2).unwrap().write_u16(0, crate::SIZE_MAX - 1);
    assert_eq!(queue.pop().unwrap().unwrap().head, crate::SIZE_MAX - 1);
}

#[test]
fn misaligned_areas_are_refused() {
    let guest = Guest::new(4);
    let at = |addr| GuestAddr(addr);
    for low in 1..16 {
        let bad = BadRing::Misaligned(Area::Desc, at(0x5000 + low));
        assert_eq!(refused(&guest, |c| c.desc = at(0x5000 + low)), bad);
    }
    assert_eq!(
        refused(&guest, |c| c.avail = at(0x5001)),
        BadRing::Misaligned(Area::Avail, at(0x5001))
    );
    for low in 1..4 {
        let bad = BadRing::Misaligned(Area::Used, at(0x5000 + low));
        assert_eq!(refused(&guest, |c| c.used = at(0x5000 + low)), bad);
    }
}

#[test]
fn an_area_that_only_the_guest_sees_aligned_is_refused() {
    let (memory, fd) = guest_mem::GuestMemory::memfd(0x4000).unwrap();
    let odd = guest_mem::RegionSpec {
        guest_addr: GuestAddr(0x1_0000),
        len: 0x1000,
        user_addr: 1 << 30,
        file_offset: 0x1004,
    };
    let memory = memory.with_region(guest_mem::Region::map(odd, &fd).unwrap()).unwrap();
    let mem = guest_mem::MemHandle::new(std::sync::Arc::new(memory));
    let config = QueueConfig {
        size: 4,
        desc: GuestAddr(0x1_0000),
        avail: GuestAddr(0x100),
        used: GuestAddr(0x200),
        event_idx: false,
        indirect: false,
    };
    let bad = Virtqueue::new(&mem, &config, 0).unwrap_err();
    assert_eq!(bad, BadRing::Misaligned(Area::Desc, GuestAddr(0x1_0000)));
}

#[test]
fn areas_outside_memory_or_over_two_regions_are_refused() {
    let guest = Guest::new(16);
    for addr in [MEM_END, MEM_END - 16, MEM_BYTES - 16, 1 << 63, u64::MAX - 15] {
        let addr = GuestAddr(addr);
        assert_eq!(refused(&guest, |c| c.desc = addr), BadRing::Unmapped(Area::Desc, addr));
        assert_eq!(refused(&guest, |c| c.avail = addr), BadRing::Unmapped(Area::Avail, addr));
        assert_eq!(refused(&guest, |c| c.used = addr), BadRing::Unmapped(Area::Used, addr));
    }
    let config = QueueConfig { desc: GuestAddr(MEM_BYTES - 256), ..guest.config };
    assert!(Virtqueue::new(&guest.mem, &config, 0).is_ok(), "up to the end of a region");
}

#[test]
fn overlapping_areas_are_refused() {
    let guest = Guest::new(4);
    let bad = refused(&guest, |c| c.avail = GuestAddr(DESC_AT + 62));
    assert_eq!(bad, BadRing::Overlap(Area::Desc, Area::Avail));
    let bad = refused(&guest, |c| c.used = GuestAddr(DESC_AT));
    assert_eq!(bad, BadRing::Overlap(Area::Desc, Area::Used));
    let bad = refused(&guest, |c| c.used = GuestAddr(c.avail.0 + 12));
    assert_eq!(bad, BadRing::Overlap(Area::Avail, Area::Used));
    let bad = refused(&guest, |c| c.avail = GuestAddr(c.used.0 + 36));
    assert_eq!(bad, BadRing::Overlap(Area::Avail, Area::Used));
    let touching = QueueConfig { avail: GuestAddr(DESC_AT + 64), ..guest.config };
    assert!(Virtqueue::new(&guest.mem, &touching, 0).is_ok());
}

#[test]
fn legal_chains_are_taken_as_they_are() {
    let mut guest = Guest::new(4);
    guest.desc(0, DATA_AT, 16, NEXT, 3).desc(3, DATA_AT + 16, 512, NEXT | W, 1);
    guest.desc(1, DATA_AT + 1024, 1, W, 9999);
    let chain = guest.pop(0).unwrap();
    assert_eq!((chain.head, lens(&chain), chain.flaw, chain.splits), (0, (16, 513), None, 0));

    guest.desc(2, DATA_AT, 1, R, 0);
    assert_eq!(lens(&guest.pop(2).unwrap()), (1, 0), "read only");
    guest.desc(2, DATA_AT, 1, W, 0);
    assert_eq!(lens(&guest.pop(2).unwrap()), (0, 1), "write only");
    guest.desc(2, DATA_AT, 7, W | 0xfff8, 0);
    assert_eq!(lens(&guest.pop(2).unwrap()), (0, 7), "unknown flags mean nothing");
    guest.desc(2, DESC_AT, 64, W, 0);
    assert_eq!(lens(&guest.pop(2).unwrap()), (0, 64), "data over the descriptor table itself");
    guest.desc(2, MEM_END - 1, 1, W, 0);
    assert_eq!(lens(&guest.pop(2).unwrap()), (0, 1), "the last byte of memory");
}

#[test]
fn a_chain_may_be_exactly_as_long_as_the_table() {
    let mut guest = Guest::new(4);
    for i in 0..4 {
        guest.desc(i, DATA_AT, 1, if i < 3 { NEXT } else { W }, i + 1);
    }
    assert_eq!(lens(&guest.pop(0).unwrap()), (3, 1));
    guest.desc(3, DATA_AT, 1, NEXT, 0);
    assert_eq!(guest.pop(0).unwrap_err(), BadRing::Loop { head: 0 });
}

#[test]
fn loops_end_the_queue() {
    let mut guest = Guest::new(256);
    guest.desc(7, DATA_AT, 1, NEXT, 7);
    assert_eq!(guest.pop(7).unwrap_err(), BadRing::Loop { head: 7 }, "itself");
    guest.desc(7, DATA_AT, 0, NEXT | W, 8).desc(8, DATA_AT, 0, NEXT | W, 7);
    assert_eq!(guest.pop(7).unwrap_err(), BadRing::Loop { head: 7 }, "two empty ones");
}

#[test]
fn indices_beyond_the_table_end_the_queue() {
    let mut guest = Guest::new(4);
    for head in [4, 5, 0x8000, 65535] {
        assert_eq!(guest.pop(head).unwrap_err(), BadRing::Head(head));
    }
    for next in [4, 65535] {
        guest.desc(1, DATA_AT, 1, NEXT, next);
        assert_eq!(guest.pop(1).unwrap_err(), BadRing::Next { head: 1, next });
    }
}

#[test]
fn a_readable_descriptor_after_a_writable_one_ends_the_queue() {
    let mut guest = Guest::new(4);
    guest.desc(0, DATA_AT, 1, NEXT | W, 1).desc(1, DATA_AT, 1, R, 0);
    assert_eq!(guest.pop(0).unwrap_err(), BadRing::Order { head: 0, index: 1 });
    guest.desc(0, 1 << 60, 0, NEXT | W, 1);
    assert_eq!(guest.pop(0).unwrap_err(), BadRing::Order { head: 0, index: 1 }, "empty counts");
    // Also from the descriptor table into an indirect one.
    guest.table(DATA_AT, 0, 0x8000, 4, R, 0);
    guest.desc(0, 0x8000, 1, NEXT | W, 1).desc(1, DATA_AT, 16, INDIRECT, 0);
    assert_eq!(guest.pop(0).unwrap_err(), BadRing::Order { head: 0, index: 0 });
}

#[test]
fn an_avail_index_may_be_the_size_ahead_and_no_more() {
    for first in [0u16, 5, 65533, 65535] {
        let guest = Guest::new(4);
        for i in 0..4 {
            guest.desc(i, DATA_AT, 1, W, 0);
        }
        guest.set_avail_index(first.wrapping_add(5));
        let mut queue = Virtqueue::new(&guest.mem, &guest.config, first).unwrap();
        let bad = BadRing::AvailIndex { index: first.wrapping_add(5), next_avail: first };
        assert_eq!(queue.pop().unwrap_err(), bad);
        guest.set_avail_index(first.wrapping_sub(1));
        let mut queue = Virtqueue::new(&guest.mem, &guest.config, first).unwrap();
        assert!(queue.pop().is_err(), "going backwards is far ahead");

        guest.set_avail_index(first.wrapping_add(4));
        let ring = guest.mem.slice(guest.config.avail, 14).unwrap();
        for slot in 0..4 {
            ring.write_u16(4 + 2 * slot, slot as u16);
        }
        let mut queue = Virtqueue::new(&guest.mem, &guest.config, first).unwrap();
        for _ in 0..4 {
            assert!(queue.pop().unwrap().is_some());
        }
        assert!(queue.pop().unwrap().is_none());
        assert_eq!((queue.in_flight(), queue.next_avail()), (4, first.wrapping_add(4)));
    }
}

#[test]
fn a_head_in_flight_may_not_come_again_but_may_after_it_was_used() {
    let mut guest = Guest::new(4);
    guest.desc(2, DATA_AT, 1, W, 0);
    let mut queue = guest.queue();
    guest.avail(2);
    queue.pop().unwrap().unwrap();
    queue.push_used(2, 1);
    guest.avail(2);
    queue.pop().unwrap().unwrap();
    guest.avail(2);
    assert_eq!(queue.pop().unwrap_err(), BadRing::HeadInFlight(2));
    // What was in flight can still be answered.
    assert_eq!(queue.in_flight(), 1);
    queue.push_used(2, 1);
    let _ = queue.publish();
    assert_eq!(guest.mem.slice(guest.config.used, 4).unwrap().read_u16(2), 2);
    assert!(queue.pop().is_err(), "but the queue stays broken");
}

#[test]
#[should_panic(expected = "was not in flight")]
fn using_a_chain_twice_is_our_own_bug() {
    let mut guest = Guest::new(4);
    guest.desc(2, DATA_AT, 1, W, 0);
    let mut queue = guest.queue();
    guest.avail(2);
    queue.pop().unwrap().unwrap();
    queue.push_used(2, 1);
    queue.push_used(2, 1);
}

#[test]
fn chains_of_an_earlier_server_are_taken_again_by_head() {
    let mut guest = Guest::new(4);
    guest.desc(2, DATA_AT, 5, W, 0).desc(3, DATA_AT, 6, W, 0);
    guest.avail(2);
    let mut queue = Virtqueue::new(&guest.mem, &guest.config, 1).unwrap();
    assert_eq!(lens(&queue.resubmit(2).unwrap()), (0, 5));
    assert!(queue.pop().unwrap().is_none(), "it does not come through the ring again");
    guest.avail(3);
    assert_eq!(queue.pop().unwrap().unwrap().head, 3);
    assert_eq!(queue.resubmit(3).unwrap_err(), BadRing::HeadInFlight(3));
}

#[test]
fn the_sum_of_lengths_is_limited_to_4_gib() {
    let mut guest = Guest::new(4);
    guest.desc(0, DATA_AT, u32::MAX, NEXT, 1).desc(1, DATA_AT, 1, W, 0);
    let chain = guest.pop(0).unwrap();
    assert_eq!(chain.flaw, Some(Flaw::Unmapped), "exactly 4 GiB is only too long for this memory");
    guest.desc(1, DATA_AT, 2, W, 0);
    assert_eq!(guest.pop(0).unwrap_err(), BadRing::TooManyBytes { head: 0 });
}

#[test]
fn descriptors_outside_memory_spoil_the_chain_and_not_the_ring() {
    let mut guest = Guest::new(4);
    for (addr, len) in
        [(MEM_END, 1), (MEM_END - 1, 2), (u64::MAX, 1), (u64::MAX, 2), (1 << 63, 1 << 31)]
    {
        guest.desc(0, addr, len, NEXT, 1).desc(1, DATA_AT, 8, NEXT | W, 2).desc(2, 9, 1, W, 0);
        let chain = guest.pop(0).unwrap();
        assert_eq!((lens(&chain), chain.flaw), ((0, 9), Some(Flaw::Unmapped)), "{addr:#x}");
        guest.desc(0, DATA_AT, 1, NEXT, 1).desc(1, addr, len, NEXT | W, 2);
        let chain = guest.pop(0).unwrap();
        assert_eq!((lens(&chain), chain.flaw), ((1, 1), Some(Flaw::Unmapped)));
        guest.desc(1, DATA_AT, 8, NEXT | W, 2).desc(2, addr, len, W, 0);
        let chain = guest.pop(0).unwrap();
        assert_eq!((lens(&chain), chain.flaw), ((1, 8), Some(Flaw::UnmappedEnd)));
        guest.desc(2, addr, len, NEXT | W, 3).desc(3, DATA_AT, 0, W, 0);
        assert_eq!(guest.pop(0).unwrap().flaw, Some(Flaw::UnmappedEnd), "then an empty one");
    }
}

#[test]
fn empty_descriptors_contribute_nothing_and_are_told() {
    let mut guest = Guest::new(4);
    guest.desc(0, DATA_AT, 0, NEXT, 1).desc(1, DATA_AT, 3, NEXT | W, 2).desc(2, 1 << 60, 0, W, 0);
    let chain = guest.pop(0).unwrap();
    assert_eq!((lens(&chain), chain.flaw, chain.splits), ((0, 3), Some(Flaw::Empty), 0));
}

#[test]
fn a_descriptor_over_two_regions_is_split() {
    let mut guest = Guest::new(4);
    guest.desc(0, MEM_BYTES - 8, 16, NEXT, 1).desc(1, MEM_BYTES - 4, 8, W, 0);
    let chain = guest.pop(0).unwrap();
    assert_eq!((lens(&chain), chain.flaw, chain.splits), ((16, 8), None, 2));
    assert_eq!(chain.readable.as_raw().len(), 2);
}

/// A table of `entries` descriptors of one byte, all but the last one readable, in order.
fn table(guest: &Guest, at: u64, entries: u64) -> u32 {
    for i in 0..entries {
        let last = i + 1 == entries;
        guest.table(at, i, DATA_AT, 1, if last { W } else { NEXT }, i as u16 + 1);
    }
    16 * entries as u32
}

#[test]
fn indirect_tables_work_at_any_place_and_of_any_allowed_length() {
    let mut guest = Guest::new(4);
    let places =
        [0x8000, 0x8001, 0x8004, 0x8008, MEM_BYTES - 16, MEM_BYTES - 8, MEM_BYTES - 5, MEM_BYTES];
    for at in places {
        for entries in [1, 2, 3, 4, 5, 255, 1024] {
            let at = if entries > 5 && at > 0xa000 { at - 0x10 } else { at };
            let len = table(&guest, at, entries);
            guest.desc(1, at, len, INDIRECT | W, 77);
            let chain = guest.pop(1).unwrap();
            assert_eq!(lens(&chain), (entries - 1, 1), "{entries} at {at:#x}");
            assert_eq!((chain.head, chain.flaw, chain.splits), (1, None, 0));
        }
    }
    let len = table(&guest, 0x8000, 5);
    guest.desc(0, DATA_AT, 100, NEXT, 1).desc(1, 0x8000, len, INDIRECT, 0);
    assert_eq!(lens(&guest.pop(0).unwrap()), (104, 1), "the end of a direct chain");
    guest.desc(1, 0x8000, len + 32, INDIRECT, 0);
    assert_eq!(lens(&guest.pop(0).unwrap()), (104, 1), "a table longer than its chain");
}

#[test]
fn an_indirect_table_may_be_as_long_as_a_large_queue() {
    let mut guest = Guest::new(4);
    guest.desc(0, 0x8000, 16 * 1025, INDIRECT, 0);
    let bad = BadRing::IndirectLen { head: 0, len: 16 * 1025 };
    assert_eq!(guest.pop(0).unwrap_err(), bad);

    let (memory, _fd) = guest_mem::GuestMemory::memfd(1 << 20).unwrap();
    let mem = guest_mem::MemHandle::new(std::sync::Arc::new(memory));
    let config = QueueConfig {
        size: 2048,
        desc: GuestAddr(0),
        avail: GuestAddr(0x8000),
        used: GuestAddr(0xa000),
        event_idx: false,
        indirect: true,
    };
    for (entries, fits) in [(2048u32, true), (2049, false)] {
        let table = mem.slice(GuestAddr(0x2_0000), 16 * u64::from(entries)).unwrap();
        for i in 0..2047 {
            crate::layout::Desc { addr: 0, len: 1, flags: NEXT, next: i + 1 }
                .write(&table, usize::from(i));
        }
        crate::layout::Desc { addr: 0, len: 1, flags: W, next: 0 }.write(&table, 2047);
        let desc = mem.slice(GuestAddr(0), 16).unwrap();
        crate::layout::Desc { addr: 0x2_0000, len: 16 * entries, flags: INDIRECT, next: 0 }
            .write(&desc, 0);
        mem.slice(config.avail, 8).unwrap().store_index(2, 1);
        let popped = Virtqueue::new(&mem, &config, 0).unwrap().pop();
        assert_eq!(popped.is_ok(), fits, "{entries}");
    }
}

#[test]
fn bad_indirect_descriptors_end_the_queue() {
    let mut guest = Guest::new(4);
    let len = table(&guest, 0x8000, 3);
    guest.desc(1, 0x8000, len, INDIRECT | NEXT, 2).desc(2, DATA_AT, 1, W, 0);
    assert_eq!(guest.pop(1).unwrap_err(), BadRing::IndirectNext { head: 1 });
    for len in [0, 1, 15, 17, 47, 16 * 1025, 0xffff_fff0, u32::MAX] {
        guest.desc(1, 0x8000, len, INDIRECT, 0);
        assert_eq!(guest.pop(1).unwrap_err(), BadRing::IndirectLen { head: 1, len });
    }
    for addr in [MEM_END, MEM_END - 47, u64::MAX, u64::MAX - 47, 1 << 40] {
        guest.desc(1, addr, 48, INDIRECT, 0);
        let bad = BadRing::IndirectUnmapped { head: 1, addr: GuestAddr(addr) };
        assert_eq!(guest.pop(1).unwrap_err(), bad);
    }
    guest.desc(1, 0x8000, 48, INDIRECT, 0);
    guest.table(0x8000, 1, 0x8000, 48, INDIRECT, 0);
    assert_eq!(guest.pop(1).unwrap_err(), BadRing::IndirectNested { head: 1 });
    guest.table(0x8000, 1, DATA_AT, 1, NEXT, 3);
    assert_eq!(guest.pop(1).unwrap_err(), BadRing::Next { head: 1, next: 3 });
    guest.table(0x8000, 1, DATA_AT, 1, NEXT, 0);
    assert_eq!(guest.pop(1).unwrap_err(), BadRing::Loop { head: 1 });
    guest.config.indirect = false;
    assert_eq!(guest.pop(1).unwrap_err(), BadRing::IndirectRefused { head: 1 });
}

/// Counts the reads of guest memory that `f` makes.
fn reads<T>(f: impl FnOnce() -> T) -> (T, u32) {
    let count = Rc::new(Cell::new(0));
    let counter = count.clone();
    set_read_hook(Box::new(move || counter.set(counter.get() + 1)));
    let result = f();
    clear_read_hook();
    (result, count.get())
}

#[test]
fn every_field_is_read_once_and_the_avail_index_once_per_batch() {
    let mut guest = Guest::new(8);
    for first in [0, 3] {
        guest.desc(first, DATA_AT, 16, NEXT, first + 1);
        guest.desc(first + 1, DATA_AT, 512, NEXT | W, first + 2);
        guest.desc(first + 2, DATA_AT, 1, W, 0);
    }
    let mut queue = guest.queue();
    guest.avail(0);
    guest.avail(3);
    let (_, count) = reads(|| queue.pop().unwrap().unwrap());
    assert_eq!(count, 1 + 1 + 3 * 2, "the index, the entry, two words of each descriptor");
    let (more, count) = reads(|| queue.has_avail());
    assert_eq!((more, count), (true, 0), "one is known already");
    let (_, count) = reads(|| queue.pop().unwrap().unwrap());
    assert_eq!(count, 1 + 3 * 2, "the index is still known");
    let (_, count) = reads(|| queue.pop().unwrap().is_none());
    assert_eq!(count, 1);
}

#[test]
fn storage_is_used_again() {
    let mut guest = Guest::new(4);
    guest.desc(0, DATA_AT, 1, NEXT, 1).desc(1, DATA_AT, 1, W, 0);
    let mut queue = guest.queue();
    guest.avail(0);
    let chain = queue.pop().unwrap().unwrap();
    let place = |iov: &IoVecs| iov.as_raw().as_ptr().addr();
    let places = [place(&chain.readable), place(&chain.writable)];
    queue.recycle(chain.readable.into_storage());
    queue.recycle(chain.writable.into_storage());
    queue.push_used(0, 0);
    guest.avail(0);
    let chain = queue.pop().unwrap().unwrap();
    assert!(places.contains(&place(&chain.readable)) && places.contains(&place(&chain.writable)));
}

#[test]
fn messages_name_what_and_where() {
    let text = BadRing::Next { head: 3, next: 9 }.to_string();
    assert_eq!(text, "chain 3: next descriptor 9 is out of range");
    let text = BadRing::Unmapped(Area::Used, GuestAddr(0x1000)).to_string();
    assert_eq!(text, "used ring at 0x1000 is not within one region of guest memory");
}
