//! What a power cut leaves of the bitmaps: they are in use, or right.

use super::{IN_USE, K, Stored, add, be, extension, logged, stored, with};
use crate::power_cut;
use crate::qcow2::header::{Extension, Header};
use crate::qcow2::tests::snapshots::Change;
use crate::qcow2::{BackingFile, CreateOptions, Qcow2};
use crate::testing::rig::{Rig, image};
use io_engine::sim::SimDisk;

const DISK_BYTES: u64 = 64 * K;

/// A disk of 64 KiB, perhaps over a backing file with no bytes.
fn small(cluster_bytes: u64, with_backing: bool) -> SimDisk {
    let name = BackingFile { name: b"base".to_vec(), format: Some(b"raw".to_vec()) };
    let backing = with_backing.then_some(name);
    let create = CreateOptions { cluster_bytes, backing, ..CreateOptions::new(DISK_BYTES) };
    image(&create, logged())
}

fn open(disk: &SimDisk, seed: u64, read_only: bool) -> Rig {
    let raw = disk.contents();
    let base = SimDisk::with_contents(logged(), &[]);
    let base = Some(&base).filter(|_| be(&raw, 8, 8) != 0);
    Rig::open_over(disk, base, seed, read_only).unwrap()
}

fn content(disk: &SimDisk) -> Vec<u8> {
    open(disk, 1, true).read(0, DISK_BYTES).unwrap()
}

/// All that differs from `before` must be in the bitmap, if it says that it is right.
fn judge_bits(bitmap: &Stored, before: &[u8], now: &[u8]) {
    if bitmap.flags & IN_USE != 0 {
        return;
    }
    let size = bitmap.granularity as usize;
    for (number, (old, new)) in before.chunks(size).zip(now.chunks(size)).enumerate() {
        assert!(old == new || bitmap.bits[number], "{}: granule {number}", bitmap.name);
    }
}

/// Whatever the state is, the image is sound, and stays so when it is used.
fn judge_image(state: &SimDisk) {
    let report = sim::qcow2::check(state);
    assert!(report.is_sound(), "{report:?}");
    let rig = open(state, 2, false);
    rig.write(60 * K, &[9; 512]).unwrap();
    rig.close().unwrap();
    assert!(sim::qcow2::check(state).is_sound());
    for bitmap in stored(state).iter().filter(|bitmap| bitmap.flags == super::AUTO) {
        assert!(bitmap.bits[(60 * K / bitmap.granularity) as usize]);
    }
}

#[test]
fn a_bitmap_that_says_it_is_right_has_all_that_was_written() {
    let disk = small(4096, false);
    let rig = Rig::open(&disk, 1).unwrap();
    add(&rig, "on", 512, true).unwrap();
    // The directory has two sectors.
    let off: &'static str = "o".repeat(500).leak();
    add(&rig, off, 512, false).unwrap();
    with(&rig, async move |image: &Qcow2| image.mark_in_bitmap(off.as_bytes(), &[0..512]).await)
        .unwrap();
    rig.close().unwrap();
    let before = content(&disk);
    let kept = super::one(&disk, off);
    let (begin, done) = (disk.fork(), disk.write_log().len());
    let rig = Rig::open(&disk, 2).unwrap();
    rig.write(8 * K, &[5; 512]).unwrap();
    rig.flush().unwrap();
    rig.write(20 * K, &[6; 1024]).unwrap();
    rig.close().unwrap();
    let (mut in_use, mut old, mut new) = (0, 0, 0);
    let states = power_cut::each_state(&begin, &disk.write_log()[done..], |state| {
        let now = content(&state);
        let on = super::one(&state, "on");
        judge_bits(&on, &before, &now);
        match on.bits.iter().filter(|bit| **bit).count() {
            _ if on.flags & IN_USE != 0 => in_use += 1,
            0 => old += 1,
            count => {
                assert_eq!(count, 3);
                new += 1;
            }
        }
        assert_eq!(super::one(&state, off), kept, "not touched by anything");
        judge_image(&state);
    });
    assert!(in_use > 10 && old > 0 && new > 0, "{in_use} {old} {new} of {states}");
}

#[test]
fn a_cut_while_a_bitmap_is_changed_leaves_the_old_ones_or_the_new_ones() {
    let disk = small(4096, false);
    let rig = Rig::open(&disk, 1).unwrap();
    add(&rig, "a", 512, false).unwrap();
    rig.write(8 * K, &[5; 512]).unwrap();
    type Change = (&'static str, fn(&Rig));
    let changes: [Change; 6] = [
        ("a second one", |rig| add(rig, "b", 512, true).unwrap()),
        ("bits", |rig| {
            with(rig, async |image: &Qcow2| image.mark_in_bitmap(b"a", &[0..4096]).await).unwrap();
        }),
        ("enabled", |rig| {
            with(rig, async |image: &Qcow2| image.enable_bitmap(b"a").await).unwrap();
        }),
        ("disabled", |rig| {
            with(rig, async |image: &Qcow2| image.disable_bitmap(b"b").await).unwrap();
        }),
        ("the first removed", |rig| {
            with(rig, async |image: &Qcow2| image.remove_bitmap(b"a").await).unwrap();
        }),
        ("the last removed", |rig| {
            with(rig, async |image: &Qcow2| image.remove_bitmap(b"b").await).unwrap();
        }),
    ];
    for (name, change) in changes {
        let (begin, done, old) = (disk.fork(), disk.write_log().len(), stored(&disk));
        change(&rig);
        let new = stored(&disk);
        assert_ne!(old, new, "{name}");
        let mut seen = [0; 2];
        power_cut::each_state(&begin, &disk.write_log()[done..], |state| {
            let found = stored(&state);
            assert!(found == old || found == new, "{name}: {found:?}");
            seen[usize::from(found == new)] += 1;
            judge_image(&state);
        });
        assert!(seen[0] > 0 && seen[1] > 0, "{name}: {seen:?}");
        let states = power_cut::each_state(&disk.fork(), &[], |state| {
            assert_eq!(stored(&state), new, "{name}: durable when it is done");
        });
        assert!(states > 0);
    }
}

#[test]
fn a_cut_while_the_first_bitmap_is_made_moves_nothing_else_in_the_header() {
    for (cluster_bytes, with_backing) in [(512, false), (4096, false), (4096, true)] {
        let disk = small(cluster_bytes, with_backing);
        let header = |disk: &SimDisk| {
            let header = Header::parse(&disk.contents()[..cluster_bytes as usize], disk.len());
            // Where there is no room for all, names of features go.
            Header { bitmaps: None, autoclear: 0, feature_names: Vec::new(), ..header.unwrap() }
        };
        let expected = header(&disk);
        let rig = open(&disk, 1, false);
        let (begin, done) = (disk.fork(), disk.write_log().len());
        add(&rig, "first", 512, true).unwrap();
        let new = stored(&disk);
        let states = power_cut::each_state(&begin, &disk.write_log()[done..], |state| {
            assert_eq!(header(&state), expected, "{cluster_bytes} {with_backing}");
            let list = stored(&state);
            assert!(list.is_empty() || list == new, "{list:?}");
            judge_image(&state);
        });
        assert!(states > 4, "{states}");
        power_cut::each_state(&disk.fork(), &[], |state| {
            assert_eq!(stored(&state), new, "{cluster_bytes}: durable when it is done");
        });
        rig.close().unwrap();
        assert_eq!(header(&disk), expected);
        super::check(&disk);
    }
}

/// Where the extension's data crosses a sector's end, a change of its first and second half at once cannot be one write: the bitmaps may be lost, and
/// nothing else is.
#[test]
fn a_cut_while_an_extension_in_two_sectors_is_changed_loses_the_bitmaps_at_most() {
    for (filler, data_at) in [(488, 1008), (496, 1016)] {
        let plain = small(4096, false);
        let mut raw = plain.contents();
        let mut header = Header::parse(&raw, raw.len() as u64).unwrap();
        header.unknown_extensions = vec![Extension { kind: 0x1234_5678, data: vec![3; filler] }];
        let bytes = header.encode().unwrap();
        raw[..bytes.len()].copy_from_slice(&bytes);
        let disk = SimDisk::with_contents(logged(), &raw);
        let rig = Rig::open(&disk, 1).unwrap();
        add(&rig, "a", 512, false).unwrap();
        assert_eq!(extension(&disk.contents()), Some(data_at));
        let (begin, done, old) = (disk.fork(), disk.write_log().len(), stored(&disk));
        add(&rig, "b", 512, false).unwrap();
        let new = stored(&disk);
        let mut lost = 0;
        power_cut::each_state(&begin, &disk.write_log()[done..], |state| {
            let found = stored(&state);
            assert!(found.is_empty() || found == old || found == new, "{found:?}");
            lost += usize::from(found.is_empty());
            judge_image(&state);
        });
        assert!(lost > 0);
        // Only the directory's place changes: that is in one sector, or not, but never torn.
        let (begin, done) = (disk.fork(), disk.write_log().len());
        with(&rig, async |image: &Qcow2| image.mark_in_bitmap(b"a", &[0..512]).await).unwrap();
        let last = stored(&disk);
        power_cut::each_state(&begin, &disk.write_log()[done..], |state| {
            let found = stored(&state);
            assert!(found == new || found == last, "{found:?}");
        });
        rig.close().unwrap();
        super::check(&disk);
    }
}

/// Going back to a snapshot changes what the disk reads as without a write to it.
#[test]
fn a_bitmap_that_says_it_is_right_has_what_going_back_to_a_snapshot_changed() {
    let disk = small(4096, false);
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[1; 16 << 10]).unwrap();
    rig.change(Change::Create("one")).unwrap();
    rig.write(8 * K, &[2; 40 << 10]).unwrap();
    add(&rig, "on", 512, true).unwrap();
    rig.close().unwrap();
    let before = content(&disk);
    let (begin, done) = (disk.fork(), disk.write_log().len());
    let rig = Rig::open(&disk, 2).unwrap();
    rig.change(Change::Apply("one".into())).unwrap();
    rig.close().unwrap();
    assert_ne!(content(&disk), before);
    let (mut in_use, mut right) = (0, 0);
    power_cut::each_state(&begin, &disk.write_log()[done..], |state| {
        let bitmaps = stored(&state);
        assert_eq!(bitmaps.len(), 1, "it is not lost");
        if bitmaps[0].flags & IN_USE != 0 {
            in_use += 1;
        } else {
            let now = content(&state);
            judge_bits(&bitmaps[0], &before, &now);
            right += u32::from(now != before);
        }
        if in_use % 32 == 1 {
            judge_image(&state);
        }
    });
    assert!(in_use > 10 && right > 0, "{in_use}, {right}");
}
