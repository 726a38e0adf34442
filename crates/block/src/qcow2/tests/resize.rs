//! Changes of the disk's size: what they show, what they leave in the file, and what a power cut leaves of them.

mod apart;

use super::snapshots::{Change, content_of, is_clean, logged};
use crate::power_cut;
use crate::qcow2::header::Compression;
use crate::qcow2::{BackingFile, CreateOptions, deflate};
use crate::qemu_tool::{self, TempFile};
use crate::testing::rig::{Rig, image};
use crate::{DiskOffset, ErrorKind, ExtentKind, Result};
use io_engine::SysKind;
use io_engine::sim::{Fault, FaultAction, LogEvent, SimDisk, SimOptions};
use sim::qcow2::check;

const K4: u64 = 4096;

impl Rig {
    pub fn resize_disk(&self, bytes: u64) -> Result<()> {
        self.run(move |node| async move { node.resize(bytes).await })
    }
}

fn options(bytes: u64) -> CreateOptions {
    CreateOptions { cluster_bytes: K4, ..CreateOptions::new(bytes) }
}

/// One table maps 32 KiB, and the L1 table has 64 entries in each cluster.
fn small(bytes: u64) -> CreateOptions {
    CreateOptions { cluster_bytes: 512, ..options(bytes) }
}

fn kind(rig: &Rig, at: u64) -> ExtentKind {
    rig.run(move |node| async move { Ok(node.map(DiskOffset(at), 1).await?.kind) }).unwrap()
}

#[test]
fn what_a_shrink_cuts_off_does_not_come_back() {
    let disk = logged(&options(8 << 20));
    let rig = Rig::open(&disk, 1).unwrap();
    for at in [0, 5 * K4, 3 << 20, (8 << 20) - K4] {
        rig.write(at, &[7; K4 as usize]).unwrap();
    }
    // Within the sixth cluster, in the first table.
    let end = 5 * K4 + 1024;
    rig.resize_disk(end).unwrap();
    is_clean(&disk);
    assert_eq!((rig.disk_size(), check(&disk).beyond_disk), (end, 0));
    // Header, refcount table and block, L1 table, two clusters, one L2 table.
    assert_eq!(check(&disk).referenced_clusters, 7);
    let ExtentKind::Data(place) = kind(&rig, 5 * K4) else { panic!("not mapped") };
    let rest = disk.contents()[place.0 as usize + 1024..][..3072].to_vec();
    assert!(rest == [0; 3072], "other drivers that grow the disk do not look there");
    rig.resize_disk(8 << 20).unwrap();
    assert_eq!(rig.read(0, K4).unwrap(), [7; K4 as usize]);
    assert_eq!(rig.read(5 * K4, K4).unwrap(), [vec![7; 1024], vec![0; 3072]].concat());
    for at in [6 * K4, 3 << 20, (8 << 20) - K4] {
        assert_eq!(kind(&rig, at), ExtentKind::Unallocated, "{at:#x}");
    }
    rig.write((8 << 20) - 512, &[9; 512]).unwrap();
    rig.close().unwrap();
    is_clean(&disk);
    let rig = Rig::open(&disk, 2).unwrap();
    assert_eq!(rig.read((8 << 20) - 1024, 1024).unwrap(), [[0; 512], [9; 512]].concat());
}

#[test]
fn a_disk_can_shrink_to_nothing_and_grow_again() {
    for create in [options(4 << 20), small(4 << 20)] {
        let disk = logged(&create);
        let rig = Rig::open(&disk, 1).unwrap();
        rig.write(0, &[7; 8192]).unwrap();
        rig.resize_disk(0).unwrap();
        assert_eq!(rig.disk_size(), 0);
        is_clean(&disk);
        rig.resize_disk(100 << 20).unwrap();
        assert_eq!(rig.read(0, 8192).unwrap(), [0; 8192]);
        let end = (100 << 20) - 512;
        rig.write(end, &[5; 512]).unwrap();
        rig.close().unwrap();
        is_clean(&disk);
        assert_eq!(Rig::open(&disk, 2).unwrap().read(end, 512).unwrap(), [5; 512]);
    }
}

#[test]
fn what_lies_behind_the_l1_table_in_its_cluster_is_not_taken_for_entries() {
    let disk = logged(&options(2 << 20));
    let mut bytes = disk.contents();
    let l1 = u64::from_be_bytes(*bytes[40..].first_chunk().unwrap()) as usize;
    bytes[l1 + 8..l1 + 4096].fill(0x5A);
    let disk = SimDisk::with_contents(SimOptions::default(), &bytes);
    let rig = Rig::open(&disk, 1).unwrap();
    rig.resize_disk(20 << 20).unwrap();
    assert_eq!(rig.read(3 << 20, 512).unwrap(), [0; 512]);
    rig.close().unwrap();
    is_clean(&disk);
    assert_eq!(Rig::open(&disk, 1).unwrap().read(0, 20 << 20).unwrap(), [0; 20 << 20]);
}

#[test]
fn a_compressed_cluster_is_cut_where_the_disk_ends() {
    let disk = logged(&options(1 << 20));
    let rig = Rig::open(&disk, 1).unwrap();
    for cluster in [3, 4, 5, 200] {
        let stream = deflate(Compression::Zlib, 6, &[7; K4 as usize]).unwrap();
        let at = DiskOffset(cluster * K4);
        rig.run(move |node| async move { node.write_compressed(at, &stream).await }).unwrap();
    }
    rig.resize_disk(4 * K4 + 512).unwrap();
    is_clean(&disk);
    rig.resize_disk(1 << 20).unwrap();
    let found = rig.read(3 * K4, 3 * K4).unwrap();
    assert!(found == [vec![7; 4608], vec![0; 7680]].concat());
    rig.close().unwrap();
    is_clean(&disk);
    assert_eq!(check(&disk).compressed_clusters, 1);
}

/// A backing file that is longer than the disk, and where the disk has grown.
fn over(base: &SimDisk, version: u32, extended_l2: bool) -> CreateOptions {
    assert!(base.len() > 0);
    let cluster_bytes = if extended_l2 { 16384 } else { K4 };
    let backing = Some(BackingFile { name: b"base".to_vec(), format: Some(b"raw".to_vec()) });
    CreateOptions { version, cluster_bytes, extended_l2, backing, ..options(10 * K4 + 512) }
}

#[test]
fn a_longer_backing_file_does_not_show_where_a_disk_grows() {
    let base = SimDisk::with_contents(SimOptions::default(), &[9; 64 * K4 as usize]);
    for (version, extended_l2) in [(3, false), (3, true), (2, false)] {
        let disk = image(&over(&base, version, extended_l2), SimOptions::default());
        let rig = Rig::open_over(&disk, Some(&base), 1, false).unwrap();
        rig.resize_disk(80 * K4).unwrap();
        let start = 10 * K4 + 512;
        assert_eq!(rig.read(0, start).unwrap(), vec![9; start as usize]);
        let rest = 80 * K4 - start;
        assert_eq!(rig.read(start, rest).unwrap(), vec![0; rest as usize]);
        assert_eq!(kind(&rig, 70 * K4), ExtentKind::Unallocated, "nothing shows there");
        rig.close().unwrap();
        is_clean(&disk);
        let rig = Rig::open_over(&disk, Some(&base), 2, false).unwrap();
        assert_eq!(rig.read(start, rest).unwrap(), vec![0; rest as usize]);
    }
}

#[test]
fn snapshots_keep_their_size_and_what_the_disk_loses() {
    let disk = logged(&small(1 << 20));
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[7; 1 << 20]).unwrap();
    let whole = rig.all();
    rig.change(Change::Create("whole")).unwrap();
    rig.resize_disk(100 * 512).unwrap();
    is_clean(&disk);
    rig.resize_disk(8 << 20).unwrap();
    is_clean(&disk);
    assert!(rig.all()[100 * 512..].iter().all(|byte| *byte == 0));
    assert!(content_of(&disk, &rig.snapshots()[0], None) == whole);
    rig.change(Change::Apply("whole".into())).unwrap();
    assert!(rig.all() == whole);
    rig.close().unwrap();
    is_clean(&disk);
}

#[test]
fn sizes_that_the_format_or_the_image_cannot_have_are_refused() {
    let disk = logged(&CreateOptions { version: 2, ..small(1 << 20) });
    let rig = Rig::open(&disk, 1).unwrap();
    let before = disk.contents();
    // 2^22 tables of 64 clusters of 512 bytes.
    let limit = 1u64 << 37;
    for (name, bytes) in [("half a sector", 256), ("one too many", limit + 512), ("all", !511)] {
        let error = rig.resize_disk(bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest, "{name}: {error}");
    }
    assert!((rig.disk_size(), disk.contents()) == (1 << 20, before.clone()));
    let reader = Rig::open_over(&disk, None, 2, true).unwrap();
    assert_eq!(reader.resize_disk(512).unwrap_err().kind(), ErrorKind::BadRequest);
    rig.change(Change::Create("one")).unwrap();
    for bytes in [512, 2 << 20] {
        let error = rig.resize_disk(bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest, "as QEMU: version 2, and snapshots");
    }
    rig.change(Change::Delete("one".into())).unwrap();
    rig.resize_disk(2 << 20).unwrap();
    rig.close().unwrap();
    is_clean(&disk);
}

/// An image whose tables cannot be let go keeps them, and its size.
#[test]
fn a_disk_with_a_bad_entry_beyond_its_new_end_is_not_resized() {
    let word = |bytes: &[u8], at: usize| u64::from_be_bytes(*bytes[at..].first_chunk().unwrap());
    for (stored, asked) in [(4u64 << 20, 1 << 20), (1 << 20, 8 << 20)] {
        let disk = logged(&options(4 << 20));
        let rig = Rig::open(&disk, 1).unwrap();
        rig.write(0, &[7; K4 as usize]).unwrap();
        rig.write(3 << 20, &[7; K4 as usize]).unwrap();
        rig.close().unwrap();
        let mut bytes = disk.contents();
        // The second table's entry for that place leads to the refcount table. The smaller size is what a shrink leaves that was cut.
        let l1 = word(&bytes, 40) as usize;
        let l2 = (word(&bytes, l1 + 8) & !(1 << 63)) as usize;
        let bad = word(&bytes, 48) | 1 << 63;
        bytes[l2 + 256 * 8..][..8].copy_from_slice(&bad.to_be_bytes());
        bytes[24..32].copy_from_slice(&stored.to_be_bytes());
        let disk = SimDisk::with_contents(SimOptions::default(), &bytes);
        let rig = Rig::open(&disk, 1).unwrap();
        let error = rig.resize_disk(asked).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert_eq!(rig.disk_size(), stored);
        let after = disk.contents();
        assert_eq!((word(&after, 24), word(&after, l1 + 8)), (stored, word(&bytes, l1 + 8)));
    }
}

/// What was written before is committed first: if that fails, nothing of the resize has begun.
#[test]
fn a_disk_that_cannot_commit_what_it_has_keeps_its_size() {
    for bytes in [512, 3 << 20] {
        let disk = logged(&small(1 << 20));
        let rig = Rig::open(&disk, 1).unwrap();
        rig.write(0, &[7; 512]).unwrap();
        rig.write(600 << 10, &[7; 512]).unwrap();
        // The second write of the commit: a shrink's first own one is the header.
        let action = FaultAction::Errno(rustix::io::Errno::IO.raw_os_error());
        let kind = Some(SysKind::Pwritev);
        disk.fault(Fault { kind, range: None, nth: 2, sticky: false, action });
        rig.resize_disk(bytes).unwrap_err();
        disk.clear_faults();
        assert_eq!(
            (rig.disk_size(), disk.contents()[24..32].to_vec()),
            (1 << 20, (1u64 << 20).to_be_bytes().to_vec())
        );
        assert_eq!(rig.read(600 << 10, 512).unwrap(), [7; 512]);
        rig.resize_disk(bytes).unwrap();
        rig.close().unwrap();
        is_clean(&disk);
    }
}

#[test]
fn a_failed_write_leaves_one_size_or_the_other() {
    for bytes in [512, 3 << 20] {
        for nth in 1.. {
            let disk = logged(&small(1 << 20));
            let rig = Rig::open(&disk, 1).unwrap();
            rig.write(0, &[7; 40 * 512]).unwrap();
            rig.write(600 << 10, &[7; 512]).unwrap();
            rig.flush().unwrap();
            let action = FaultAction::Errno(rustix::io::Errno::IO.raw_os_error());
            let kind = Some(SysKind::Pwritev);
            disk.fault(Fault { kind, range: None, nth, sticky: false, action });
            let result = rig.resize_disk(bytes);
            disk.clear_faults();
            assert!([1 << 20, bytes].contains(&rig.disk_size()));
            assert_eq!(rig.read(0, 512).unwrap(), [7; 512]);
            rig.write(0, &[8; 512]).ok();
            let closed = rig.close();
            check(&disk).judge_crash().unwrap();
            let rig = Rig::open(&disk, 2).unwrap();
            let size = rig.disk_size();
            assert!([1 << 20, bytes].contains(&size));
            if closed.is_ok() {
                assert_eq!(rig.read(0, 512).unwrap(), [8; 512]);
            }
            if size > 600 << 10 {
                assert_eq!(rig.read(600 << 10, 512).unwrap(), [7; 512]);
            }
            if result.is_ok() {
                assert!(nth > 2);
                break;
            }
        }
    }
}

/// All states, one in so many of which is used on.
fn each_state(begin: &SimDisk, log: &[LogEvent], mut judge: impl FnMut(SimDisk, bool)) -> u64 {
    let mut number = 0;
    power_cut::each_state(begin, log, |state| {
        number += 1;
        judge(state, number % 5 == 1);
    })
}

/// Old size or new, the data as it was, and nothing that was cut off comes up when the disk grows.
fn judge(state: &SimDisk, sizes: [u64; 2], whole: &[u8], base: Option<&SimDisk>, goes_on: bool) {
    let report = check(state);
    report.judge_crash().unwrap();
    assert!(report.is_sound(), "{report:?}");
    let rig = Rig::open_over(state, base, 3, false).unwrap();
    let bytes = rig.disk_size();
    assert!(sizes.contains(&bytes), "{bytes}");
    let mut expected = whole.to_vec();
    expected.resize(bytes as usize, 0);
    assert!(rig.all() == expected, "at {bytes} bytes");
    if !goes_on {
        return;
    }
    let more = sizes[0].max(sizes[1]) + 20 * K4;
    rig.resize_disk(more).unwrap();
    expected.resize(more as usize, 0);
    assert!(rig.all() == expected, "what was cut off came back");
    rig.write(more - 512, &[1; 512]).unwrap();
    rig.close().unwrap();
    let report = check(state);
    assert!(report.is_sound() && report.beyond_disk == 0, "{report:?}");
}

#[test]
fn a_power_cut_leaves_one_size_or_the_other_and_the_same_data() {
    let large = 300 << 10;
    for (snapshot, from, to) in [
        (false, large, 8 * K4 + 512),
        (true, large, 8 * K4 + 512),
        (false, large, 0),
        (false, 9 * K4 + 512, large),
        (true, 9 * K4 + 512, 2100 << 10),
    ] {
        // A longer L1 table needs a new place with small clusters only.
        for create in [small(from), options(from)] {
            let disk = logged(&create);
            let rig = Rig::open(&disk, 1).unwrap();
            for at in [0, 8 * K4, 9 * K4, 30 * K4, 70 * K4] {
                if at + 512 <= from {
                    let len = (from - at).min(K4) as usize;
                    rig.write(at, &vec![7; len]).unwrap();
                }
            }
            if snapshot {
                rig.change(Change::Create("one")).unwrap();
                rig.write(K4, &[6; 512]).unwrap();
            }
            rig.flush().unwrap();
            let whole = rig.all();
            let (begin, done) = (disk.fork(), disk.write_log().len());
            rig.resize_disk(to).unwrap();
            assert!(disk.snapshot()[..512] == disk.contents()[..512], "when done, it is done");
            let log = disk.write_log()[done..].to_vec();
            let states = each_state(&begin, &log, |state, goes_on| {
                judge(&state, [from, to], &whole, None, goes_on);
            });
            assert!(states > 2, "{states}");
        }
    }
}

#[test]
fn a_power_cut_while_growing_over_a_longer_backing_file_shows_nothing_of_it() {
    let base = SimDisk::with_contents(SimOptions::default(), &[9; 16 * K4 as usize]);
    for version in [2, 3] {
        let create = over(&base, version, false);
        let disk = image(&create, SimOptions { log: true, ..SimOptions::default() });
        let rig = Rig::open_over(&disk, Some(&base), 1, false).unwrap();
        let (begin, done) = (disk.fork(), disk.write_log().len());
        rig.resize_disk(20 * K4).unwrap();
        let content = [9; 10 * K4 as usize + 512];
        let states = each_state(&begin, &disk.write_log()[done..], |state, goes_on| {
            judge(&state, [10 * K4 + 512, 20 * K4], &content, Some(&base), goes_on);
        });
        assert!(states > 10, "{states}");
    }
}

#[test]
fn what_a_cut_shrink_left_does_not_show_when_the_disk_grows() {
    let disk = logged(&small(1 << 20));
    let rig = Rig::open(&disk, 1).unwrap();
    for at in [0, 8 * K4, 9 * K4, 30 * K4, 200 * K4] {
        rig.write(at, &[7; K4 as usize]).unwrap();
    }
    rig.close().unwrap();
    // The state right after the commit point of a shrink.
    let size = 8 * K4 + 512;
    let mut bytes = disk.contents();
    bytes[24..32].copy_from_slice(&size.to_be_bytes());
    let options = SimOptions { log: true, ..SimOptions::default() };
    let disk = SimDisk::with_contents(options, &bytes);
    let rig = Rig::open(&disk, 1).unwrap();
    let whole = rig.all();
    let (begin, done) = (disk.fork(), disk.write_log().len());
    rig.resize_disk(1200 << 10).unwrap();
    let log = disk.write_log()[done..].to_vec();
    is_clean(&disk);
    assert_eq!(check(&disk).beyond_disk, 0);
    let states = each_state(&begin, &log, |state, goes_on| {
        judge(&state, [size, 1200 << 10], &whole, None, goes_on);
    });
    assert!(states > 10, "{states}");
}

#[test]
fn qemu_and_we_resize_one_after_the_other() {
    if !qemu_tool::is_there() {
        return;
    }
    for create in [small(1 << 20), CreateOptions::new(1 << 20)] {
        let disk = logged(&create);
        let rig = Rig::open(&disk, 1).unwrap();
        rig.write(0, &[7; 1 << 20]).unwrap();
        rig.resize_disk(300 << 10).unwrap();
        rig.close().unwrap();
        let file = TempFile::with("qcow2", &disk.contents());
        let path = file.path().to_str().unwrap();
        assert_eq!(qemu_tool::check("qcow2", file.path()).errors, 0);
        assert!(qemu_tool::run(&["resize", path, "3M"]).status.success());
        let mut expected = vec![7; 300 << 10];
        expected.resize(3 << 20, 0);
        assert!(qemu_tool::content("qcow2", file.path()) == expected);
        let disk = SimDisk::with_contents(SimOptions::default(), &file.bytes());
        let rig = Rig::open(&disk, 1).unwrap();
        rig.resize_disk(200 << 10).unwrap();
        rig.resize_disk(40 << 20).unwrap();
        rig.write((40 << 20) - 512, &[5; 512]).unwrap();
        rig.close().unwrap();
        is_clean(&disk);
        let file = TempFile::with("qcow2", &disk.contents());
        let verdict = qemu_tool::check("qcow2", file.path());
        assert_eq!((verdict.errors, verdict.leaks), (0, 0));
        expected.truncate(200 << 10);
        expected.resize((40 << 20) - 512, 0);
        expected.extend([5; 512]);
        assert!(qemu_tool::content("qcow2", file.path()) == expected);
    }
}
