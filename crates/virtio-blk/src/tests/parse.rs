//! Reads, writes, flushes, identities, and chains that cannot be answered.

use super::guest::*;
use crate::{BadChain, Features, Limits, Request, Status};
use guest_mem::{GuestAddr, IoVecs, clear_read_hook, set_read_hook};
use std::cell::Cell;
use std::rc::Rc;
use virtqueue::driver::Seg;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

fn out(sector: u64, data: &[u8]) -> Vec<u8> {
    let mut raw = header(OUT, sector);
    raw.extend(data);
    raw
}

fn contents(iov: &IoVecs) -> Vec<u8> {
    let mut data = vec![0; iov.bytes() as usize];
    iov.copy_to(0, &mut data);
    data
}

#[test]
fn a_read_fills_its_data_and_reports_it() {
    let mut guest = Guest::new();
    let (request, pending) = guest.send(&limits(), &header(IN, 7), 1024).unwrap();
    let Request::In { sector: 7, data } = request else { panic!("{request:?}") };
    data.copy_from(0, &[5; 1024]);
    assert_eq!(guest.finish(pending, Status::Ok).written, 1025);
    let mut expected = vec![5; 1024];
    expected.push(0);
    assert_eq!(guest.written(), expected);
}

#[test]
fn a_failed_read_reports_only_its_status() {
    let mut guest = Guest::new();
    for status in [Status::IoErr, Status::Unsupp] {
        let (_request, pending) = guest.send(&limits(), &header(IN, 7), 1024).unwrap();
        assert_eq!(guest.finish(pending, status).written, 1);
        assert_eq!(guest.written()[1024], status as u8);
    }
}

#[test]
fn a_write_has_its_data_and_reports_only_its_status() {
    let mut guest = Guest::new();
    let data: Vec<u8> = (0..512).map(|i| i as u8).collect();
    let (request, pending) = guest.send(&limits(), &out(9, &data), 0).unwrap();
    let Request::Out { sector: 9, data: sent } = request else { panic!("{request:?}") };
    assert_eq!(contents(&sent), data);
    assert_eq!(guest.finish(pending, Status::Ok).written, 1);
    assert_eq!(guest.written(), [0]);
}

#[test]
fn descriptors_may_be_cut_anywhere() {
    let mut guest = Guest::new();
    let data: Vec<u8> = (0..1024).map(|i| (i / 3) as u8).collect();
    let bytewise = [1; 16];
    let cuts: [&[u64]; 6] = [&[], &[16], &[1], &[15, 2], &[16 + 512], &bytewise];
    for cut in cuts {
        let (request, pending) = guest.send_cut(&limits(), &out(3, &data), cut, 1, &[]).unwrap();
        let Request::Out { sector: 3, data: sent } = request else { panic!("{cut:?} {request:?}") };
        assert_eq!(contents(&sent), data, "{cut:?}");
        let _ = guest.finish(pending, Status::Ok);

        for status_cut in [&[][..], &[1024], &[1023], &[1], &[512, 256]] {
            let (request, pending) =
                guest.send_cut(&limits(), &header(IN, 3), cut, 1025, status_cut).unwrap();
            let Request::In { sector: 3, data: room } = request else { panic!("{request:?}") };
            assert_eq!(room.copy_from(0, &data), 1024);
            assert_eq!(guest.finish(pending, Status::Ok).written, 1025);
            assert_eq!(guest.written(), [&data[..], &[0]].concat());
        }
    }
}

#[test]
fn a_header_of_fewer_than_16_bytes_cannot_be_answered() {
    let mut guest = Guest::new();
    for len in [1, 8, 15] {
        let parsed = guest.send(&limits(), &header(IN, 0)[..len], 512);
        assert!(matches!(parsed, Err(BadChain::NoHeader { .. })), "{len}");
    }
    let parsed = guest.send_cut(&limits(), &[], &[], 513, &[512]);
    assert!(matches!(parsed, Err(BadChain::NoHeader { .. })), "no readable descriptor");
}

#[test]
fn a_chain_without_a_place_for_the_status_cannot_be_answered() {
    let mut guest = Guest::new();
    let parsed = guest.send_cut(&limits(), &header(FLUSH, 0), &[16], 0, &[]);
    assert!(matches!(parsed, Err(BadChain::NoStatus { .. })), "no writable descriptor");
    let head = Seg { addr: GuestAddr(REQUEST_AT), len: 16, device_writes: false };
    let data = Seg { addr: GuestAddr(REQUEST_AT + 512), len: 512, device_writes: true };
    let status = Seg { addr: GuestAddr(MEM_END), len: 1, device_writes: true };
    let parsed = guest.send_segs(&limits(), &[head, data, status]);
    let error = parsed.unwrap_err();
    assert!(matches!(error, BadChain::NoStatus { .. }), "data must not be mistaken for it");
    assert!(error.to_string().ends_with("has no writable byte for the status"));
    let empty = Seg { len: 0, ..status };
    let parsed = guest.send_segs(&limits(), &[head, empty]);
    assert!(matches!(parsed, Err(BadChain::NoStatus { .. })), "an empty one is none");
}

#[test]
fn data_outside_memory_or_of_no_length_fails_the_request() {
    let mut guest = Guest::new();
    guest.iov(REQUEST_AT, 16).copy_from(0, &header(IN, 0));
    let seg = |addr, len, device_writes| Seg { addr: GuestAddr(addr), len, device_writes };
    let head = seg(REQUEST_AT, 16, false);
    let status = seg(REQUEST_AT + 4096, 1, true);
    for bad in [seg(MEM_END, 512, true), seg(u64::MAX, 512, true), seg(REQUEST_AT, 0, true)] {
        let good = seg(REQUEST_AT + 512, 512, true);
        for segs in [vec![head, bad, status], vec![head, bad, good, status]] {
            let (request, pending) = guest.send_segs(&limits(), &segs).unwrap();
            assert!(matches!(request, Request::Failed(Status::IoErr)), "{request:?}");
            assert_eq!(guest.finish(pending, Status::IoErr).written, 1);
        }
    }
    let (request, pending) =
        guest.send_segs(&limits(), &[seg(MEM_END, 16, false), status]).unwrap();
    assert!(matches!(request, Request::Failed(Status::IoErr)), "a header outside memory");
    let _ = guest.finish(pending, Status::IoErr);
}

#[test]
fn requests_must_lie_on_the_disk_with_all_their_data() {
    let mut guest = Guest::new();
    guest.accepted(&limits(), &header(IN, 999), 512);
    guest.accepted(&limits(), &header(IN, 0), 4096);
    guest.accepted(&limits(), &header(IN, 992), 4096);
    for sector in [993, 999, 1000, 1001, 1 << 55, u64::MAX - 7, u64::MAX] {
        assert_eq!(guest.fails(&limits(), &header(IN, sector), 4096), Status::IoErr, "{sector}");
        assert_eq!(guest.fails(&limits(), &out(sector, &[0; 4096]), 0), Status::IoErr, "{sector}");
    }
    // Each descriptor alone would fit.
    let parsed = guest.send_cut(&limits(), &header(IN, 999), &[16], 1025, &[512, 512]).unwrap();
    let (Request::Failed(Status::IoErr), pending) = parsed else { panic!("the sum counts") };
    let _ = guest.finish(pending, Status::IoErr);
    let empty = Limits { capacity_sectors: 0, ..limits() };
    assert_eq!(guest.fails(&empty, &header(IN, 0), 512), Status::IoErr);
}

#[test]
fn data_is_whole_blocks() {
    let mut guest = Guest::new();
    for len in [0, 1, 511, 513, 1023] {
        assert_eq!(guest.fails(&limits(), &header(IN, 0), len), Status::IoErr, "{len}");
        let request = out(0, &vec![0; len as usize]);
        assert_eq!(guest.fails(&limits(), &request, 0), Status::IoErr, "{len}");
    }
    let big_blocks = Limits { blk_size: 4096, ..limits() };
    guest.accepted(&big_blocks, &header(IN, 8), 4096);
    for (sector, len) in [(8, 512), (1, 4096), (7, 4096), (8, 4096 + 512)] {
        assert_eq!(guest.fails(&big_blocks, &header(IN, sector), len), Status::IoErr);
        let request = out(sector, &vec![0; len as usize]);
        assert_eq!(guest.fails(&big_blocks, &request, 0), Status::IoErr);
    }
}

#[test]
fn data_of_the_wrong_direction_fails_the_request() {
    let mut guest = Guest::new();
    let mut read_with_data = header(IN, 0);
    read_with_data.push(0);
    assert_eq!(guest.fails(&limits(), &read_with_data, 512), Status::IoErr);
    assert_eq!(guest.fails(&limits(), &out(0, &[0; 512]), 1), Status::IoErr);
    let mut id_with_data = header(GET_ID, 0);
    id_with_data.push(0);
    assert_eq!(guest.fails(&limits(), &id_with_data, 20), Status::IoErr);
}

#[test]
fn segments_are_limited_in_number_and_length() {
    let mut guest = Guest::new();
    let rules = limits();
    for (pieces, fits) in [(6, true), (7, false)] {
        let cuts = vec![512; pieces];
        let bytes = 512 * pieces as u64;
        for parsed in [
            guest.send_cut(&rules, &header(IN, 0), &[16], bytes + 1, &cuts).unwrap(),
            guest.send_cut(&rules, &header(IN, 0), &[3, 4], bytes + 1, &cuts).unwrap(),
            {
                let readable = out(0, &vec![0; bytes as usize]);
                guest.send_cut(&rules, &readable, &[&[16], &cuts[..]].concat(), 1, &[]).unwrap()
            },
        ] {
            let (request, pending) = parsed;
            assert_eq!(!matches!(request, Request::Failed(_)), fits, "{pieces}");
            std::mem::forget(pending);
        }
    }
    let mut guest = Guest::new();
    let small = Limits { size_max: 1024, ..limits() };
    guest.accepted(&small, &header(IN, 0), 1024);
    assert_eq!(guest.fails(&small, &header(IN, 0), 1536), Status::IoErr);
    assert_eq!(guest.fails(&small, &out(0, &[0; 1536]), 0), Status::IoErr);
    let (request, pending) = guest.send_cut(&small, &header(IN, 0), &[16], 1025, &[]).unwrap();
    assert!(matches!(request, Request::In { .. }), "the status byte is not data: {request:?}");
    let _ = guest.finish(pending, Status::Ok);
}

#[test]
fn a_segment_over_two_regions_of_memory_counts_once() {
    let mut guest = Guest::new();
    let rules = Limits { seg_max: 1, ..limits() };
    let seg = |addr, len, device_writes| Seg { addr: GuestAddr(addr), len, device_writes };
    guest.iov(REQUEST_AT, 16).copy_from(0, &header(IN, 0));
    let (head, status) = (seg(REQUEST_AT, 16, false), seg(REQUEST_AT + 16, 1, true));
    let across = seg(MEM_BYTES - 256, 512, true);
    let (request, pending) = guest.send_segs(&rules, &[head, across, status]).unwrap();
    let Request::In { data, .. } = request else { panic!("{request:?}") };
    assert_eq!((data.bytes(), data.as_raw().len()), (512, 2));
    let _ = guest.finish(pending, Status::Ok);
    let two = [seg(MEM_BYTES - 256, 256, true), seg(MEM_BYTES, 256, true)];
    let (request, pending) = guest.send_segs(&rules, &[head, two[0], two[1], status]).unwrap();
    assert!(matches!(request, Request::Failed(Status::IoErr)), "{request:?}");
    let _ = guest.finish(pending, Status::IoErr);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut guest = Guest::new();
    let rules = Limits { read_only: true, ..limits() };
    guest.accepted(&rules, &header(IN, 0), 512);
    guest.accepted(&rules, &header(FLUSH, 0), 0);
    assert_eq!(guest.fails(&rules, &out(0, &[0; 512]), 0), Status::IoErr);
}

#[test]
fn a_flush_takes_no_notice_of_sector_and_data() {
    let mut guest = Guest::new();
    let mut with_data = header(FLUSH, 12345);
    with_data.extend([1; 100]);
    for writable in [0, 1, 512] {
        let (request, pending) = guest.send(&limits(), &with_data, writable).unwrap();
        assert!(matches!(request, Request::Flush));
        assert_eq!(guest.finish(pending, Status::Ok).written, 1);
        assert_eq!(guest.written()[writable as usize], 0);
    }
    let rules = Limits::new(&disk(), Features::VERSION_1);
    assert!(matches!(guest.accepted(&rules, &header(FLUSH, 0), 0), Request::Flush));
}

#[test]
fn an_identity_fills_up_to_20_bytes() {
    let mut guest = Guest::new();
    let id: [u8; 20] = *b"serial 42\0\0\0\0\0\0\0\0\0\0\0";
    for room in [0, 1, 19, 20, 21, 512] {
        let (request, pending) = guest.send(&limits(), &header(GET_ID, 77), room).unwrap();
        let Request::GetId { data } = request else { panic!("{request:?}") };
        let there = data.copy_from(0, &id) as u64;
        assert_eq!(there, room.min(20));
        assert_eq!(u64::from(guest.finish(pending, Status::Ok).written), there + 1);
        let written = guest.written();
        let (data, rest) = written.split_at(there as usize);
        assert_eq!(data, &id[..there as usize]);
        assert!(rest[..rest.len() - 1].iter().all(|byte| *byte == UNTOUCHED));
        assert_eq!(rest.last(), Some(&0));
    }
}

#[test]
fn unknown_types_are_unsupported() {
    let mut guest = Guest::new();
    // SCSI, lifetime, secure erase, zones, and numbers nobody uses.
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 16, 17, 18, 20, 22, 24, 26, 0x100, 1 << 31] {
        assert_eq!(guest.fails(&limits(), &header(kind, 0), 512), Status::Unsupp, "{kind}");
    }
    assert_eq!(guest.fails(&limits(), &header(u32::MAX, 0), 0), Status::Unsupp);
}

#[test]
#[should_panic(expected = "dropped without an answer")]
fn forgetting_a_request_panics() {
    let mut guest = Guest::new();
    let (_request, pending) = guest.send(&limits(), &header(FLUSH, 0), 0).unwrap();
    drop(pending);
}

#[test]
fn a_panic_elsewhere_is_not_made_worse() {
    let panicked = std::panic::catch_unwind(|| {
        let mut guest = Guest::new();
        let _parsed = guest.send(&limits(), &header(FLUSH, 0), 0).unwrap();
        panic!("another one");
    });
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"another one"));
}

#[test]
fn the_header_is_read_once_and_the_data_not_at_all() {
    let mut guest = Guest::new();
    let reads = Rc::new(Cell::new(0));
    let counter = reads.clone();
    let request = out(0, &[0; 512]);
    set_read_hook(Box::new(move || counter.set(counter.get() + 1)));
    let parsed = guest.send(&limits(), &request, 0).unwrap();
    clear_read_hook();
    // The driver looks at the event index; `pop` reads the index, the entry and three descriptors of two words.
    assert_eq!(reads.get(), 1 + 1 + 1 + 6 + 1);
    let _ = guest.finish(parsed.1, Status::Ok);
}

#[test]
fn the_storage_that_is_not_needed_can_be_used_again() {
    let mut guest = Guest::new();
    for request in [header(IN, 0), header(FLUSH, 0), header(99, 0)] {
        let (_request, mut pending) = guest.send(&limits(), &request, 512).unwrap();
        let spare = IoVecs::with_storage(&guest.mem, pending.take_spare());
        assert_ne!(spare.as_raw().as_ptr().addr(), align_of::<usize>(), "an allocation");
        let _ = guest.finish(pending, Status::Ok);
    }
}
