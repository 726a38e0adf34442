//! Requests of garbage, in rings of garbage, in memory that changes before each read.

use super::guest::*;
use crate::{Limits, Pending, Request, SECTOR_BYTES, Status};
use guest_mem::{GuestAddr, GuestMemory, GuestSlice, MemHandle, clear_read_hook, set_read_hook};
use std::collections::BTreeMap;
use std::sync::Arc;
use virtqueue::{QueueConfig, Virtqueue};

const SIZE: u16 = 8;
const MEM: u64 = 0x1_0000;
const DESC_AT: u64 = 0;
const AVAIL_AT: u64 = 0x100;
const HEADERS_AT: u64 = 0x400;

/// Two requests that are nearly always legal: there must be something to spoil.
fn set_up(words: &GuestSlice, rng: &mut Rng) {
    for (head, slot) in [(0u64, 0u64), (3, 1)] {
        let header = HEADERS_AT + 64 * slot;
        let kind = [0, 1, 4, 8, 11, 13][rng.below(6) as usize];
        let (flags, len) = match kind {
            0 => (3, 512 * (1 + rng.below(8))),
            8 => (3, rng.below(30) + 1),
            11 | 13 => (1, 16 * (1 + rng.below(2))),
            _ => (1, 512),
        };
        let ranges = [rng.below(900), 1 + rng.below(50), rng.below(900), 1 + rng.below(50)];
        let data = if kind > 8 { header + 16 } else { 0x8000 };
        let fields = [kind, rng.below(990)].into_iter().chain(ranges);
        let descs = [
            [header, 16 | 1 << 32 | (head + 1) << 48],
            [data, len | flags << 32 | (head + 2) << 48],
            [0x7000 + slot, 1 | 2 << 32],
        ];
        for (i, word) in fields.enumerate() {
            words.write_u64(header as usize + 8 * i, word);
        }
        for (i, word) in descs.iter().flatten().enumerate() {
            words.write_u64((DESC_AT + 16 * head) as usize + 8 * i, *word);
        }
        words.write_u16((AVAIL_AT + 4 + 2 * slot) as usize, head as u16);
    }
}

/// Overwrites something with a value that is often nearly right.
fn spoil(words: &GuestSlice, rng: &mut Rng) {
    let put = |at: u64, value| words.write_u64(at as usize, value);
    match rng.below(6) {
        // A descriptor.
        0 | 1 => {
            let at = DESC_AT + 16 * rng.below(u64::from(SIZE));
            let len = [0, 1, 8, 16, 17, 32, 512, 513, 4096, 1 << 20][rng.below(10) as usize];
            let flags = [0, 1, 1, 1, 2, 2, 3, 3, 4][rng.below(9) as usize];
            let addr = [HEADERS_AT + 16 * rng.below(16), rng.below(MEM), rng.next()];
            put(at, addr[(rng.below(16) as usize).saturating_sub(13).min(2)]);
            put(at + 8, len | flags << 32 | rng.below(u64::from(SIZE)) << 48);
        }
        // The avail ring.
        2 => {
            let slot = rng.below(u64::from(SIZE));
            let head = rng.below(u64::from(SIZE)) as u16;
            words.write_u16((AVAIL_AT + 4 + 2 * slot) as usize, head);
        }
        // A header, or ranges.
        3 | 4 => {
            let at = HEADERS_AT + 16 * rng.below(16);
            let kind = [0, 1, 4, 8, 11, 13, 99][rng.below(7) as usize];
            let sector = [rng.below(1010), rng.next()][usize::from(rng.below(8) == 0)];
            match rng.below(2) {
                0 => [kind, sector],
                _ => [sector, rng.below(110) | rng.below(3) << 32],
            }
            .into_iter()
            .zip([at, at + 8])
            .for_each(|(value, at)| put(at, value));
        }
        _ => put(rng.below(MEM / 8) * 8, rng.next()),
    }
}

/// Checks what a request promises, carries it out as a device would, and answers.
fn answer(queue: &mut Virtqueue, parsed: (Request, Pending), rules: &Limits) -> &'static str {
    let (request, mut pending) = parsed;
    let on_disk = |sector: u64, bytes: u64| {
        let end = sector.checked_add(bytes / SECTOR_BYTES).unwrap();
        bytes > 0 && bytes.is_multiple_of(SECTOR_BYTES) && end <= rules.capacity_sectors
    };
    queue.recycle(pending.take_spare());
    let (name, status, data_in) = match request {
        Request::In { sector, data } => {
            assert!(on_disk(sector, data.bytes()));
            data.zero_from(0);
            ("in", Status::Ok, data.bytes())
        }
        Request::Out { sector, data } => {
            assert!(on_disk(sector, data.bytes()) && !rules.read_only);
            ("out", Status::Ok, 0)
        }
        Request::Flush => ("flush", Status::Ok, 0),
        Request::GetId { data } => ("get id", Status::Ok, data.copy_from(0, &[1; 20]) as u64),
        Request::Discard { ranges } => {
            assert!(ranges.iter().all(|r| on_disk(r.sector, 512 * u64::from(r.sectors))));
            assert!(ranges.iter().all(|r| r.sectors <= 100 && !r.unmap) && ranges.len() <= 3);
            ("discard", Status::Ok, 0)
        }
        Request::WriteZeroes { ranges } => {
            assert!(ranges.iter().all(|r| on_disk(r.sector, 512 * u64::from(r.sectors))));
            assert!(ranges.iter().all(|r| r.sectors <= 50) && ranges.len() <= 2);
            ("write zeroes", Status::Ok, 0)
        }
        Request::Failed(Status::Unsupp) => ("unsupported", Status::Unsupp, 0),
        Request::Failed(status) => ("failed", status, 0),
    };
    let used = pending.finish(status);
    assert_eq!(u64::from(used.written), data_in + 1);
    queue.push_used(used.head, used.written);
    name
}

#[test]
fn garbage_is_answered_or_refused() {
    let (memory, _fd) = GuestMemory::memfd(MEM).unwrap();
    let mem = MemHandle::new(Arc::new(memory));
    let words = mem.slice(GuestAddr(0), MEM).unwrap();
    let config = QueueConfig {
        size: SIZE,
        desc: GuestAddr(DESC_AT),
        avail: GuestAddr(AVAIL_AT),
        used: GuestAddr(0x200),
        event_idx: true,
        indirect: true,
    };
    let rules = limits();
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in 0..10_000 {
        let mut rng = Rng(seed);
        set_up(&words, &mut rng);
        for _ in 0..rng.below(30) {
            spoil(&words, &mut rng);
        }
        words.store_index(AVAIL_AT as usize + 2, 2 + rng.below(7) as u16);
        let mut queue = Virtqueue::new(&mem, &config, 0).unwrap();
        let (target, mut hook_rng, often) = (words.clone(), Rng(!seed), 2 + seed % 128);
        set_read_hook(Box::new(move || {
            if hook_rng.below(often) == 0 {
                spoil(&target, &mut hook_rng);
            }
        }));
        let mut owed = Vec::new();
        loop {
            match queue.pop() {
                Ok(Some(chain)) => match Request::parse(chain, &rules) {
                    Ok(parsed) => owed.push(parsed),
                    // The device would go to NEEDS_RESET: no more from this queue.
                    Err(_) => {
                        *seen.entry("bad chain").or_default() += 1;
                        break;
                    }
                },
                Ok(None) => break,
                Err(_) => {
                    *seen.entry("bad ring").or_default() += 1;
                    break;
                }
            }
        }
        while !owed.is_empty() {
            let parsed = owed.swap_remove(rng.below(owed.len() as u64) as usize);
            *seen.entry(answer(&mut queue, parsed, &rules)).or_default() += 1;
        }
        clear_read_hook();
    }
    assert!(seen.len() == 10 && seen.values().all(|n| *n > 300), "not all ways out: {seen:?}");
}
