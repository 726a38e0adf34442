//! Discard and write zeroes.

use super::guest::*;
use crate::{Features, Limits, RANGES_MAX, Range, Request, Status};

const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const UNMAP: u32 = 1;

fn request(kind: u32, ranges: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut raw = header(kind, 123_456);
    for (sector, sectors, flags) in ranges {
        raw.extend(sector.to_le_bytes());
        raw.extend(sectors.to_le_bytes());
        raw.extend(flags.to_le_bytes());
    }
    raw
}

fn range(sector: u64, sectors: u32, unmap: bool) -> Range {
    Range { sector, sectors, unmap }
}

#[test]
fn ranges_are_taken_in_order() {
    let mut guest = Guest::new();
    let sent = [(5, 1, 0), (900, 100, 0), (0, 3, 0)];
    let Request::Discard { ranges } = guest.accepted(&limits(), &request(DISCARD, &sent), 0) else {
        panic!("not a discard")
    };
    assert_eq!(ranges, [range(5, 1, false), range(900, 100, false), range(0, 3, false)]);
    let sent = [(5, 50, UNMAP), (5, 2, 0)];
    let accepted = guest.accepted(&limits(), &request(WRITE_ZEROES, &sent), 0);
    let Request::WriteZeroes { ranges } = accepted else { panic!("{accepted:?}") };
    assert_eq!(ranges, [range(5, 50, true), range(5, 2, false)], "overlap is the guest's business");
}

#[test]
fn ranges_may_be_cut_anywhere() {
    let mut guest = Guest::new();
    let sent = request(DISCARD, &[(5, 1, 0), (900, 100, 0)]);
    for cuts in [&[][..], &[16], &[20], &[16, 16], &[16, 8, 4, 4, 1]] {
        let (request, pending) = guest.send_cut(&limits(), &sent, cuts, 1, &[]).unwrap();
        let Request::Discard { ranges } = request else { panic!("{cuts:?}") };
        assert_eq!(ranges, [range(5, 1, false), range(900, 100, false)], "{cuts:?}");
        assert_eq!(guest.finish(pending, Status::Ok).written, 1);
    }
}

#[test]
fn empty_ranges_ask_for_nothing() {
    let mut guest = Guest::new();
    for kind in [DISCARD, WRITE_ZEROES] {
        let accepted = guest.accepted(&limits(), &request(kind, &[(1000, 0, 0), (3, 1, 0)]), 0);
        let (Request::Discard { ranges } | Request::WriteZeroes { ranges }) = accepted else {
            panic!("{accepted:?}")
        };
        assert_eq!(ranges, [range(3, 1, false)]);
        assert_eq!(guest.fails(&limits(), &request(kind, &[(1001, 0, 0)]), 0), Status::IoErr);
        assert_eq!(guest.fails(&limits(), &request(kind, &[(0, 0, 2)]), 0), Status::Unsupp);
    }
    assert_eq!(guest.fails(&limits(), &request(DISCARD, &[(0, 0, 1)]), 0), Status::Unsupp);
}

#[test]
fn ranges_outside_the_disk_fail() {
    let mut guest = Guest::new();
    for kind in [DISCARD, WRITE_ZEROES] {
        guest.accepted(&limits(), &request(kind, &[(999, 1, 0)]), 0);
        for (sector, sectors) in [(1000, 1), (999, 2), (u64::MAX, 1), (u64::MAX - 9, 10), (951, 50)]
        {
            // Also behind a good one.
            for sent in [vec![(sector, sectors, 0)], vec![(0, 1, 0), (sector, sectors, 0)]] {
                assert_eq!(guest.fails(&limits(), &request(kind, &sent), 0), Status::IoErr);
            }
        }
    }
}

#[test]
fn the_announced_limits_hold() {
    let mut guest = Guest::new();
    for (kind, sectors, segs) in [(DISCARD, 100, 3), (WRITE_ZEROES, 50, 2)] {
        guest.accepted(&limits(), &request(kind, &vec![(0, sectors, 0); segs]), 0);
        let long = request(kind, &[(0, sectors + 1, 0)]);
        assert_eq!(guest.fails(&limits(), &long, 0), Status::IoErr);
        let huge = Limits { capacity_sectors: u64::MAX, ..limits() };
        let longest = request(kind, &[(0, u32::MAX, 0)]);
        assert_eq!(guest.fails(&huge, &longest, 0), Status::IoErr);
        let many = request(kind, &vec![(0, 1, 0); segs + 1]);
        assert_eq!(guest.fails(&limits(), &many, 0), Status::IoErr);
    }
    let mut generous = disk();
    generous.discard.as_mut().unwrap().max_seg = 1000;
    let rules = Limits::new(&generous, Features::all());
    let most = RANGES_MAX as usize;
    guest.accepted(&rules, &request(DISCARD, &vec![(0, 1, 0); most]), 0);
    let many = request(DISCARD, &vec![(0, 1, 0); most + 1]);
    assert_eq!(guest.fails(&rules, &many, 0), Status::IoErr);
}

#[test]
fn no_range_or_a_part_of_one_fails() {
    let mut guest = Guest::new();
    for kind in [DISCARD, WRITE_ZEROES] {
        let whole = request(kind, &[(0, 1, 0), (0, 1, 0)]);
        for len in [16, 17, 31, 33, 47] {
            assert_eq!(guest.fails(&limits(), &whole[..len], 0), Status::IoErr, "{len}");
        }
        assert_eq!(guest.fails(&limits(), &whole, 1), Status::IoErr, "writable data");
    }
}

#[test]
fn unknown_flags_and_unmap_in_a_discard_are_unsupported() {
    let mut guest = Guest::new();
    for flags in [2, 3, 4, 1 << 31, u32::MAX] {
        for kind in [DISCARD, WRITE_ZEROES] {
            let sent = request(kind, &[(0, 1, 0), (0, 1, flags)]);
            assert_eq!(guest.fails(&limits(), &sent, 0), Status::Unsupp, "{flags}");
        }
    }
    assert_eq!(guest.fails(&limits(), &request(DISCARD, &[(0, 1, UNMAP)]), 0), Status::Unsupp);
}

#[test]
fn commands_that_were_not_negotiated_are_unsupported() {
    let mut guest = Guest::new();
    for (kind, feature) in [(DISCARD, Features::DISCARD), (WRITE_ZEROES, Features::WRITE_ZEROES)] {
        let sent = request(kind, &[(0, 1, 0)]);
        let rules = Limits::new(&disk(), Features::all() - feature);
        assert_eq!(guest.fails(&rules, &sent, 0), Status::Unsupp);
        guest.accepted(&Limits::new(&disk(), feature), &sent, 0);
        let mut without = disk();
        (without.discard, without.write_zeroes) = (None, None);
        let rules = Limits::new(&without, Features::all());
        assert_eq!(guest.fails(&rules, &sent, 0), Status::Unsupp, "the disk cannot");
    }
}

#[test]
fn zeroes_are_whole_blocks_and_discards_need_not_be() {
    let mut guest = Guest::new();
    let rules = Limits { blk_size: 4096, ..limits() };
    guest.accepted(&rules, &request(WRITE_ZEROES, &[(8, 16, 0)]), 0);
    for (sector, sectors) in [(1, 8), (8, 1), (8, 9)] {
        let sent = request(WRITE_ZEROES, &[(sector, sectors, 0)]);
        assert_eq!(guest.fails(&rules, &sent, 0), Status::IoErr);
        guest.accepted(&rules, &request(DISCARD, &[(sector, sectors, 0)]), 0);
    }
}

#[test]
fn a_read_only_disk_keeps_its_content() {
    let mut guest = Guest::new();
    let rules = Limits { read_only: true, ..limits() };
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(guest.fails(&rules, &request(kind, &[(0, 1, 0)]), 0), Status::IoErr);
    }
}
