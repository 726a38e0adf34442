//! A hostile guest's ring: arbitrary bytes are its memory, what the device does, and what the guest changes behind its back.
//!
//! ```text
//! input: | set-up, 4 bytes | length of the script, 1 byte | script | guest memory, from address 0 on |
//! ```
//!
//! The script gives the device's steps. With the set-up's lowest bit, the guest also changes a byte before each of its reads.

#![no_main]

use guest_mem::{GuestAddr, GuestMemory, IoVecs, MemHandle, clear_read_hook, set_read_hook};
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use virtio_blk::{
    DiscardInfo, DiskInfo, Features, Limits, Pending, Request, Status, WriteZeroesInfo,
};
use virtqueue::{QueueConfig, Virtqueue};

const MEMORY_BYTES: u64 = 0x8000;

thread_local! {
    static MEM: MemHandle = {
        let (memory, _fd) = GuestMemory::memfd(MEMORY_BYTES).unwrap();
        MemHandle::new(Arc::new(memory))
    };
}

fuzz_target!(|input: &[u8]| {
    let Some((&[flags, size_bits, first, races], rest)) = input.split_first_chunk() else { return };
    let Some((&script_len, rest)) = rest.split_first() else { return };
    let (script, image) = rest.split_at(rest.len().min(usize::from(script_len)));
    MEM.with(|mem| {
        let mut all = IoVecs::new(mem);
        all.push(GuestAddr(0), MEMORY_BYTES).unwrap();
        all.zero_from(0);
        all.copy_from(0, image);
        if flags & 1 != 0 {
            race(all, races);
        }
        let size = 1u16 << (size_bits % 11);
        let avail = u64::from(size) * 16;
        let used = (avail + u64::from(size) * 2 + 6).next_multiple_of(4);
        let config = QueueConfig {
            size,
            desc: GuestAddr(0),
            avail: GuestAddr(avail),
            used: GuestAddr(used),
            event_idx: flags & 2 != 0,
            indirect: flags & 4 != 0,
        };
        let limits = limits(flags & 8 != 0, flags & 16 != 0);
        let mut queue = Virtqueue::new(mem, &config, u16::from(first)).unwrap();
        serve(&mut queue, &limits, script);
        clear_read_hook();
    });
});

/// Has the guest change a byte before each read, at places that follow from `seed`.
fn race(all: IoVecs, seed: u8) {
    let mut state = u64::from(seed) | 1 << 32;
    set_read_hook(Box::new(move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let [value, .., low, high] = state.to_le_bytes();
        // Mostly the start of memory, where the rings are.
        let at = u64::from(u16::from_le_bytes([low, high]))
            % if value & 1 == 0 { 256 } else { MEMORY_BYTES };
        all.copy_from(at, &[value]);
    }));
}

fn limits(read_only: bool, with_ranges: bool) -> Limits {
    let disk = DiskInfo {
        capacity_sectors: 0x1_0000,
        blk_size: 512,
        physical_block_exp: 0,
        alignment_offset: 0,
        min_io_size: 1,
        opt_io_size: 0,
        num_queues: 1,
        seg_max: 126,
        size_max: None,
        discard: with_ranges.then_some(DiscardInfo {
            max_sectors: 0x1000,
            max_seg: 16,
            sector_alignment: 1,
        }),
        write_zeroes: with_ranges.then_some(WriteZeroesInfo {
            max_sectors: 0x1000,
            max_seg: 16,
            may_unmap: true,
        }),
        wce: true,
        read_only,
    };
    Limits::new(&disk, Features::all())
}

fn serve(queue: &mut Virtqueue, limits: &Limits, script: &[u8]) {
    let mut owed: Vec<(Request, Pending)> = Vec::new();
    for step in script {
        match step % 8 {
            0..=2 => match queue.pop() {
                Ok(Some(chain)) => {
                    let writable = chain.writable.bytes();
                    let head = chain.head;
                    match Request::parse(chain, limits) {
                        Ok(request) => owed.push(request),
                        // The device would be reset here. Going on reaches more.
                        Err(_) => queue.push_used(head, 0),
                    }
                    assert!(writable <= 1 << 32);
                }
                Ok(None) => {}
                Err(why) => assert_eq!(queue.broken(), Some(why)),
            },
            3 | 4 if !owed.is_empty() => {
                let (request, pending) = owed.swap_remove(usize::from(step / 8) % owed.len());
                answer(queue, request, pending, limits);
            }
            5 => drop(queue.publish()),
            6 => queue.disable_kicks(),
            _ => {
                let more = queue.enable_kicks();
                assert!(!more || queue.broken().is_none());
            }
        }
        assert_eq!(usize::from(queue.in_flight()), owed.len());
    }
    for (request, pending) in owed {
        answer(queue, request, pending, limits);
    }
}

fn answer(queue: &mut Virtqueue, request: Request, mut pending: Pending, limits: &Limits) {
    queue.recycle(pending.take_spare());
    let on_disk = |sector: u64, bytes: u64| {
        bytes > 0 && bytes % 512 == 0 && sector + bytes / 512 <= limits.capacity_sectors
    };
    let mut data_in = 0;
    let status = match request {
        Request::In { sector, data } => {
            assert!(on_disk(sector, data.bytes()));
            data.zero_from(0);
            data_in = data.bytes();
            queue.recycle(data.into_storage());
            Status::Ok
        }
        Request::Out { sector, data } => {
            assert!(on_disk(sector, data.bytes()) && !limits.read_only);
            data.is_zero();
            Status::Ok
        }
        Request::GetId { data } => {
            data_in = data.bytes();
            assert!(data_in <= 20);
            Status::Ok
        }
        Request::Discard { ranges } | Request::WriteZeroes { ranges } => {
            assert!(ranges.len() <= 16 && !limits.read_only);
            assert!(ranges.iter().all(|r| on_disk(r.sector, u64::from(r.sectors) * 512)));
            Status::Ok
        }
        Request::Flush => Status::Ok,
        Request::Failed(status) => status,
    };
    let used = pending.finish(status);
    assert_eq!(u64::from(used.written), data_in + 1);
    queue.push_used(used.head, used.written);
}
