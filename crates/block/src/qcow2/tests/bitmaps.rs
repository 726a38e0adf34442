//! Persistent bitmaps: what they record, what a crash and what a power cut leaves of them, and images that QEMU makes and reads.
#![allow(clippy::single_range_in_vec_init, reason = "a list of parts of the disk that has one")]

mod damaged;
mod interop;
mod power;
mod record;

use crate::qcow2::{BitmapInfo, CreateOptions, NewSnapshot, Qcow2, bitmaps_in};
use crate::testing::rig::{Rig, image};
use crate::{BlockNode, ErrorKind, Result};
use io_engine::SysKind;
use io_engine::sim::{Fault, FaultAction, SimDisk, SimOptions};
use std::ops::Range;
use std::rc::Rc;

const K: u64 = 1024;
const IN_USE: u32 = 1;
const AUTO: u32 = 2;

/// A bitmap as the file has it, read by nothing of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stored {
    name: String,
    flags: u32,
    granularity: u64,
    /// A bit for each granule of the disk; empty if it is in use.
    bits: Vec<bool>,
}

fn be(raw: &[u8], at: u64, len: u64) -> u64 {
    let at = at as usize;
    raw[at..at + len as usize].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The bitmaps extension's place in a header, if it has one.
fn extension(raw: &[u8]) -> Option<u64> {
    let mut at = be(raw, 100, 4);
    loop {
        match (be(raw, at, 4), be(raw, at + 4, 4)) {
            (0, _) => return None,
            (0x2385_2875, 24) => return Some(at + 8),
            (_, len) => at += 8 + len.next_multiple_of(8),
        }
    }
}

/// The bitmaps of an image: those that can be relied on have their bits.
fn stored(disk: &SimDisk) -> Vec<Stored> {
    let mut raw = disk.contents();
    raw.resize(raw.len().next_multiple_of(2 << 20), 0);
    let consistent = be(&raw, 88, 8) & 1 != 0;
    let Some(extension) = extension(&raw).filter(|_| consistent) else { return Vec::new() };
    let (cluster, disk_bytes) = (1 << be(&raw, 20, 4), be(&raw, 24, 8));
    let mut at = be(&raw, extension + 16, 8);
    let end = at + be(&raw, extension + 8, 8);
    let mut list = Vec::new();
    for _ in 0..be(&raw, extension, 4) {
        let (table, entries, flags) = (be(&raw, at, 8), be(&raw, at + 8, 4), be(&raw, at + 12, 4));
        let (granularity, name_len) = (1 << be(&raw, at + 17, 1), be(&raw, at + 18, 2));
        let name_at = at + 24 + be(&raw, at + 20, 4);
        let name = raw[name_at as usize..(name_at + name_len) as usize].to_vec();
        at = (name_at + name_len).next_multiple_of(8);
        let mut bits = Vec::new();
        for entry in (0..entries).map(|n| be(&raw, table + 8 * n, 8)) {
            let bytes = match entry {
                0 => vec![0; cluster],
                1 => vec![0xFF; cluster],
                place => raw[place as usize..][..cluster].to_vec(),
            };
            bits.extend(bytes.iter().flat_map(|byte| (0..8).map(move |n| byte >> n & 1 != 0)));
        }
        let used = disk_bytes.div_ceil(granularity) as usize;
        if flags & 1 == 0 {
            // All ones is said of whole clusters: what lies beyond the disk has no meaning.
            bits.truncate(used);
            assert_eq!(bits.len(), used, "the size of {name:?}");
        } else {
            bits.clear();
        }
        let name = String::from_utf8(name).unwrap();
        list.push(Stored { name, flags: flags as u32, granularity, bits });
    }
    assert_eq!(at, end, "the directory's end");
    list
}

fn one(disk: &SimDisk, name: &str) -> Stored {
    stored(disk).into_iter().find(|bitmap| bitmap.name == name).unwrap()
}

/// Numbers of the granules that are set.
fn set(bitmap: &Stored) -> Vec<usize> {
    assert_eq!(bitmap.flags & IN_USE, 0, "{} is in use", bitmap.name);
    (0..bitmap.bits.len()).filter(|n| bitmap.bits[*n]).collect()
}

/// Does something to the bitmaps of an image that is open.
fn with<T: 'static>(rig: &Rig, work: impl AsyncFn(&Qcow2) -> Result<T> + 'static) -> Result<T> {
    rig.run(move |node| async move {
        Box::pin(async move { work(node.qcow2().expect("qcow2")).await }).await
    })
}

fn add(rig: &Rig, name: &'static str, granularity: u64, is_enabled: bool) -> Result<()> {
    with(rig, async move |image: &Qcow2| {
        image.add_bitmap(name.as_bytes(), granularity, is_enabled).await
    })
}

fn list(rig: &Rig) -> Vec<BitmapInfo> {
    with(rig, async |image: &Qcow2| image.bitmaps().await).unwrap()
}

fn runs(rig: &Rig, name: &'static str) -> Result<Vec<Range<u64>>> {
    with(rig, async move |image: &Qcow2| {
        let (mut runs, mut from) = (Vec::new(), 0);
        while let Some(run) = image.next_dirty(name.as_bytes(), from).await? {
            from = run.end;
            runs.push(run);
        }
        Ok(runs)
    })
}

/// A disk of 1 MiB, in clusters of 4 KiB unless `cluster` says otherwise.
fn disk(cluster_bytes: u64) -> SimDisk {
    image(&CreateOptions { cluster_bytes, ..CreateOptions::new(1024 * K) }, logged())
}

fn logged() -> SimOptions {
    SimOptions { log: true, ..SimOptions::default() }
}

/// The same disk with some bytes changed.
fn spoiled(disk: &SimDisk, at: u64, bytes: &[u8]) -> SimDisk {
    let mut raw = disk.contents();
    raw[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    SimDisk::with_contents(logged(), &raw)
}

/// No error, and no cluster lost.
fn check(disk: &SimDisk) {
    let report = sim::qcow2::check(disk);
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.leaked_clusters, 0, "{report:?}");
}

#[test]
fn a_bitmap_records_while_it_is_enabled() {
    for cluster in [512, 4096, 65536] {
        let disk = disk(cluster);
        let rig = Rig::open(&disk, 1).unwrap();
        rig.write(0, &[1; 512]).unwrap();
        add(&rig, "b0", 64 * K, true).unwrap();
        add(&rig, "b1", 512, false).unwrap();
        rig.write(100 * K, &[1; 512]).unwrap();
        rig.close().unwrap();
        check(&disk);
        assert_eq!((one(&disk, "b0").flags, set(&one(&disk, "b0"))), (AUTO, vec![1]));
        assert_eq!((one(&disk, "b1").flags, set(&one(&disk, "b1"))), (0, vec![]));
        let rig = Rig::open(&disk, 2).unwrap();
        rig.write_zeroes(192 * K - 512, 1024, true).unwrap();
        rig.discard(512 * K, 65536).unwrap();
        with(&rig, async |image: &Qcow2| {
            image.disable_bitmap(b"b0").await?;
            image.enable_bitmap(b"b1").await
        })
        .unwrap();
        rig.write(1023 * K, &[1; 1024]).unwrap();
        assert_eq!(runs(&rig, "b1").unwrap(), vec![1023 * K..1024 * K]);
        rig.close().unwrap();
        check(&disk);
        assert_eq!((one(&disk, "b0").flags, set(&one(&disk, "b0"))), (0, vec![1, 2, 3, 8]));
        assert_eq!((one(&disk, "b1").flags, set(&one(&disk, "b1"))), (AUTO, vec![2046, 2047]));
    }
}

#[test]
fn clear_merge_and_remove() {
    let disk = disk(4096);
    let rig = Rig::open(&disk, 1).unwrap();
    add(&rig, "fine", 512, true).unwrap();
    add(&rig, "rough", 64 * K, true).unwrap();
    add(&rig, "copy", 4096, false).unwrap();
    rig.write(65 * K, &[1; 512]).unwrap();
    with(&rig, async |image: &Qcow2| {
        image.merge_bitmap(b"copy", b"fine").await?;
        image.merge_bitmap(b"copy", b"copy").await?;
        image.clear_bitmap(b"rough").await?;
        image.mark_in_bitmap(b"rough", &[5..6, 1000 * K..1001 * K]).await?;
        image.merge_bitmap(b"fine", b"rough").await?;
        assert_eq!(image.dirty_bytes(b"rough").await?, 128 * K);
        image.remove_bitmap(b"rough").await
    })
    .unwrap();
    assert_eq!(runs(&rig, "copy").unwrap(), vec![64 * K..68 * K]);
    let fine = vec![0..64 * K, 65 * K..65 * K + 512, 960 * K..1024 * K];
    assert_eq!(runs(&rig, "fine").unwrap(), fine);
    rig.close().unwrap();
    check(&disk);
    assert_eq!(set(&one(&disk, "copy")), [16]);
    assert_eq!(set(&one(&disk, "fine")).len(), 257);
    let rig = Rig::open(&disk, 2).unwrap();
    with(&rig, async |image: &Qcow2| image.remove_bitmap(b"fine").await).unwrap();
    rig.close().unwrap();
    // The last one: nothing else is done to the image.
    let rig = Rig::open(&disk, 3).unwrap();
    with(&rig, async |image: &Qcow2| image.remove_bitmap(b"copy").await).unwrap();
    rig.close().unwrap();
    check(&disk);
    let raw = disk.contents();
    assert_eq!((extension(&raw), be(&raw, 88, 8)), (None, 0), "as if there had been none");
}

#[test]
fn what_cannot_be_is_refused() {
    let disk = disk(4096);
    let rig = Rig::open(&disk, 1).unwrap();
    add(&rig, "b0", 64 * K, true).unwrap();
    let before = disk.contents();
    let long: &'static str = "n".repeat(1024).leak();
    let cases = [
        ("no name", "", 512),
        ("a long name", long, 512),
        ("a name twice", "b0", 512),
        ("small granules", "b", 256),
        ("large granules", "b", 4 << 30),
        ("no granules", "b", 0),
        ("odd granules", "b", 513),
    ];
    for (why, name, granularity) in cases {
        let error = add(&rig, name, granularity, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest, "{why}: {error}");
    }
    with(&rig, async |image: &Qcow2| {
        for result in [
            image.remove_bitmap(b"b1").await,
            image.clear_bitmap(b"b1").await,
            image.enable_bitmap(b"b1").await,
            image.merge_bitmap(b"b0", b"b1").await,
            image.merge_bitmap(b"b1", b"b0").await,
            image.next_dirty(b"b1", 0).await.map(drop),
        ] {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::BadRequest);
        }
        Ok(())
    })
    .unwrap();
    assert!(disk.contents() == before);
    let old = image(&CreateOptions { version: 2, ..CreateOptions::new(K) }, logged());
    let old = Rig::open(&old, 1).unwrap();
    assert!(add(&old, "b0", 512, true).unwrap_err().to_string().contains("version 2"));
    let empty = Rig::open(&image(&CreateOptions::new(0), logged()), 1).unwrap();
    assert!(add(&empty, "b0", 512, true).unwrap_err().to_string().contains("empty"));
    let reader = Rig::open_over(&disk, None, 1, true).unwrap();
    assert_eq!(list(&reader).len(), 1);
    let work = async |node: Rc<BlockNode>| bitmaps_in(node.host()).await;
    assert_eq!(reader.run(work).unwrap(), list(&reader));
    assert!(add(&reader, "b1", 512, true).unwrap_err().to_string().contains("read-only"));
    assert!(disk.contents() == before);
}

#[test]
fn after_a_crash_an_enabled_bitmap_is_inconsistent_and_a_disabled_one_is_not() {
    let disk = disk(4096);
    let rig = Rig::open(&disk, 1).unwrap();
    for (name, is_enabled) in [("on", true), ("off", false), ("later", false)] {
        add(&rig, name, 4096, is_enabled).unwrap();
    }
    with(&rig, async |image: &Qcow2| image.mark_in_bitmap(b"off", &[0..4096]).await).unwrap();
    rig.close().unwrap();
    let rig = Rig::open(&disk, 2).unwrap();
    assert_eq!(one(&disk, "on").flags, IN_USE | AUTO, "before the first write");
    with(&rig, async |image: &Qcow2| image.enable_bitmap(b"later").await).unwrap();
    rig.write(8192, &[7; 512]).unwrap();
    rig.flush().unwrap();
    drop(rig);
    for seed in [3, 4] {
        let rig = Rig::open(&disk, seed).unwrap();
        let states: Vec<_> =
            list(&rig).into_iter().map(|info| (info.is_enabled, info.is_inconsistent)).collect();
        assert_eq!(states, [(true, true), (false, false), (true, true)]);
        assert_eq!(runs(&rig, "off").unwrap(), vec![0..4096]);
        with(&rig, async |image: &Qcow2| {
            for result in [
                image.clear_bitmap(b"on").await,
                image.disable_bitmap(b"on").await,
                image.merge_bitmap(b"off", b"on").await,
                image.next_dirty(b"on", 0).await.map(drop),
            ] {
                assert!(result.unwrap_err().to_string().contains("inconsistent"));
            }
            Ok(())
        })
        .unwrap();
        rig.write(16384, &[7; 512]).unwrap();
        rig.close().unwrap();
        check(&disk);
        assert_eq!(one(&disk, "on").flags, IN_USE | AUTO, "kept, and not trusted");
    }
    let rig = Rig::open(&disk, 5).unwrap();
    with(&rig, async |image: &Qcow2| image.remove_bitmap(b"on").await).unwrap();
    rig.close().unwrap();
    check(&disk);
    assert_eq!(stored(&disk).len(), 2);
}

#[test]
fn an_image_whose_bitmaps_do_not_count_has_none() {
    let disk = disk(4096);
    let rig = Rig::open(&disk, 1).unwrap();
    add(&rig, "b0", 4096, true).unwrap();
    rig.close().unwrap();
    // As software leaves it that does not know bitmaps.
    let disk = spoiled(&disk, 95, &[0]);
    let rig = Rig::open(&disk, 2).unwrap();
    assert_eq!(list(&rig), []);
    rig.write(0, &[7; 512]).unwrap();
    assert!(stored(&disk).is_empty());
    add(&rig, "b0", 4096, true).unwrap();
    rig.write(4096, &[7; 512]).unwrap();
    rig.close().unwrap();
    assert!(sim::qcow2::check(&disk).is_sound());
    assert_eq!(set(&one(&disk, "b0")), [1]);
}

#[test]
fn bitmaps_follow_the_size_of_the_disk() {
    let disk = disk(512);
    let rig = Rig::open(&disk, 1).unwrap();
    add(&rig, "on", 512, true).unwrap();
    add(&rig, "off", 512, false).unwrap();
    rig.write(0, &[7; 1024]).unwrap();
    rig.write(1023 * K, &[7; 1024]).unwrap();
    with(&rig, async |image: &Qcow2| image.merge_bitmap(b"off", b"on").await).unwrap();
    // What a change of the size does, as far as bitmaps are concerned: 2048 bits, then 1201, then 1800.
    with(&rig, async |image: &Qcow2| {
        for bytes in [600 * K + 512, 900 * K] {
            image.prepare_resize_bitmaps(bytes).await?;
            let mut header = image.header();
            header.disk_bytes = bytes;
            image.write_header(header).await?;
            image.resize_bitmaps(bytes);
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(one(&disk, "off").flags, IN_USE, "its size in the file is not right");
    rig.write(899 * K, &[7; 512]).unwrap();
    rig.close().unwrap();
    check(&disk);
    assert_eq!(set(&one(&disk, "on")), [0, 1, 1798]);
    assert_eq!(set(&one(&disk, "off")), [0, 1]);
}

/// A write to the file fails, whichever: the bitmaps are as before or as they were to be, and no cluster is lost.
#[test]
fn after_a_failed_write_nothing_is_lost() {
    let action = FaultAction::Errno(rustix::io::Errno::IO.raw_os_error());
    let mut failures = 0;
    for nth in 1..20 {
        let disk = disk(512);
        let rig = Rig::open(&disk, 1).unwrap();
        add(&rig, "b0", 4096, true).unwrap();
        rig.write(0, &[7; 512]).unwrap();
        rig.flush().unwrap();
        rig.pass(6_000_000_000);
        rig.flush().unwrap();
        let kind = Some(SysKind::Pwritev);
        disk.fault(Fault { kind, range: None, nth, sticky: false, action });
        let added = add(&rig, "b1", 512, true);
        let removed = match added {
            Ok(()) => with(&rig, async |image: &Qcow2| image.remove_bitmap(b"b1").await),
            Err(_) => Ok(()),
        };
        disk.clear_faults();
        failures += usize::from(added.is_err() || removed.is_err());
        assert_eq!(list(&rig).len(), 1 + usize::from(removed.is_err()));
        let mut expected = vec![0];
        if nth % 2 == 0 {
            rig.write(8192, &[7; 512]).unwrap();
            expected.push(2);
        }
        rig.close().unwrap();
        check(&disk);
        assert_eq!(set(&one(&disk, "b0")), expected, "{nth}");
    }
    assert!(failures > 5, "{failures}");
}

#[test]
fn a_bitmap_that_could_not_be_removed_is_stored_again() {
    let disk = disk(4096);
    let rig = Rig::open(&disk, 1).unwrap();
    add(&rig, "b0", 4096, true).unwrap();
    rig.write(0, &[7; 512]).unwrap();
    let action = FaultAction::Errno(rustix::io::Errno::IO.raw_os_error());
    // The first write to the header says that bitmaps do not count; the second one takes the extension away.
    let (kind, range) = (Some(SysKind::Pwritev), Some(0..4096));
    disk.fault(Fault { kind, range, nth: 2, sticky: false, action });
    with(&rig, async |image: &Qcow2| image.remove_bitmap(b"b0").await).unwrap_err();
    assert!(stored(&disk).is_empty());
    rig.close().unwrap();
    check(&disk);
    assert_eq!(set(&one(&disk, "b0")), [0]);
}

#[test]
fn after_a_failed_sync_nothing_is_changed() {
    let disk = disk(4096);
    let rig = Rig::open(&disk, 1).unwrap();
    let action = FaultAction::Errno(rustix::io::Errno::IO.raw_os_error());
    let kind = Some(SysKind::Fdatasync);
    disk.fault(Fault { kind, range: None, nth: 1, sticky: false, action });
    assert_eq!(add(&rig, "b0", 4096, true).unwrap_err().kind(), ErrorKind::Io);
    let before = disk.contents();
    assert_eq!(add(&rig, "b0", 4096, true).unwrap_err().kind(), ErrorKind::Poisoned);
    rig.close().unwrap();
    assert!(disk.contents() == before);
}

/// What a table entry of the guest's data leads to is not a bitmap's.
#[test]
fn guest_data_is_not_where_bitmaps_are() {
    let disk = disk(4096);
    let rig = Rig::open(&disk, 1).unwrap();
    add(&rig, "b0", 4096, true).unwrap();
    rig.write(0, &[7; 512]).unwrap();
    rig.close().unwrap();
    let raw = disk.contents();
    let directory = be(&raw, extension(&raw).unwrap() + 16, 8);
    let table = be(&raw, directory, 8);
    let l2 = be(&raw, be(&raw, 40, 8), 8) & 0x00FF_FFFF_FFFF_FE00;
    for place in [directory, table, be(&raw, table, 8)] {
        let disk = spoiled(&disk, l2, &(place | 1 << 63).to_be_bytes());
        let rig = Rig::open(&disk, 1).unwrap();
        assert_eq!(rig.write(0, &[8; 512]).unwrap_err().kind(), ErrorKind::Corrupt, "{place:#x}");
        let kept = place as usize..place as usize + 512;
        assert!(disk.contents()[kept.clone()] == raw[kept] || place == directory);
    }
}

#[test]
fn a_failed_change_of_the_size_leaves_bitmaps_of_the_right_one() {
    let action = FaultAction::Errno(rustix::io::Errno::IO.raw_os_error());
    let mut failures = 0;
    for (bytes, nth) in [256 * K, 8192 * K].into_iter().flat_map(|b| (1..16).map(move |n| (b, n))) {
        let disk = disk(512);
        let rig = Rig::open(&disk, 1).unwrap();
        add(&rig, "on", 512, true).unwrap();
        add(&rig, "off", 512, false).unwrap();
        rig.write(128 * K, &[7; 512]).unwrap();
        let kind = Some(SysKind::Pwritev);
        disk.fault(Fault { kind, range: None, nth, sticky: false, action });
        let resized = rig.run(move |node| async move { node.resize(bytes).await });
        disk.clear_faults();
        failures += usize::from(resized.is_err());
        rig.close().unwrap();
        let end = be(&disk.contents(), 24, 8);
        assert!(end == 1024 * K || end == bytes, "{bytes} {nth}");
        assert_eq!(set(&one(&disk, "on")), [256], "{bytes} {nth}");
        assert_eq!(set(&one(&disk, "off")), [0; 0], "{bytes} {nth}");
        Rig::open(&disk, 2).unwrap();
    }
    assert!(failures > 8, "{failures}");
}

#[test]
fn going_back_to_a_snapshot_is_recorded() {
    let disk = disk(4096);
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[7; 4096]).unwrap();
    with(&rig, async |image: &Qcow2| {
        let new = NewSnapshot { name: b"s", seconds: 0, nanos: 0, vm_clock_ns: 0 };
        image.create_snapshot(&new).await.map(drop)
    })
    .unwrap();
    rig.write(0, &[8; 4096]).unwrap();
    add(&rig, "on", 4096, true).unwrap();
    with(&rig, async |image: &Qcow2| image.apply_snapshot(b"s").await).unwrap();
    rig.close().unwrap();
    assert!(set(&one(&disk, "on")).contains(&0), "the first cluster reads otherwise than before");
}
