//! Snapshot tables that cannot be: refused for writing, readable without.

use super::{Change, logged, options};
use crate::ErrorKind;
use crate::testing::rig::Rig;
use io_engine::sim::{SimDisk, SimOptions};

/// An image with one snapshot, closed.
fn good() -> Vec<u8> {
    let disk = logged(&options(1 << 20));
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[1; 8192]).unwrap();
    rig.change(Change::Create("one")).unwrap();
    rig.write(0, &[2; 512]).unwrap();
    rig.close().unwrap();
    disk.contents()
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(*bytes[at..].first_chunk().unwrap())
}

#[test]
fn tables_that_cannot_be_are_refused_for_writing() {
    use ErrorKind::Corrupt;
    let good = good();
    let table = be64(&good, 64) as usize;
    let (l1, refcount_table) = (be64(&good, 40), be64(&good, 48));
    let at = |n: usize| table + n;
    let cases: &[(&str, usize, Vec<u8>)] = &[
        ("too many snapshots", 60, 65537u32.to_be_bytes().to_vec()),
        ("table not on a cluster boundary", 64, (table as u64 + 8).to_be_bytes().to_vec()),
        ("table beyond the file", 64, (1u64 << 30).to_be_bytes().to_vec()),
        ("table over the L1 table", 64, l1.to_be_bytes().to_vec()),
        ("more entries than there is file", 60, 60000u32.to_be_bytes().to_vec()),
        ("L1 not on a cluster boundary", at(0), 0x1200u64.to_be_bytes().to_vec()),
        ("L1 beyond the file", at(0), (1u64 << 40).to_be_bytes().to_vec()),
        ("L1 at the end of all", at(0), (u64::MAX - 4095).to_be_bytes().to_vec()),
        ("L1 in the header", at(0), 0u64.to_be_bytes().to_vec()),
        ("L1 is the disk's", at(0), l1.to_be_bytes().to_vec()),
        ("L1 is the refcount table", at(0), refcount_table.to_be_bytes().to_vec()),
        ("L1 is the snapshot table", at(0), (table as u64).to_be_bytes().to_vec()),
        ("L1 too large", at(8), 0x40_0001u32.to_be_bytes().to_vec()),
        ("L1 reaches out of the file", at(8), 0x40_0000u32.to_be_bytes().to_vec()),
        ("more than 1024 extra bytes", at(36), 1025u32.to_be_bytes().to_vec()),
        ("all extra bytes", at(36), u32::MAX.to_be_bytes().to_vec()),
        ("a name that leaves the file", at(14), u16::MAX.to_be_bytes().to_vec()),
    ];
    for (name, place, bytes) in cases {
        let mut image = good.clone();
        image[*place..*place + bytes.len()].copy_from_slice(bytes);
        let disk = SimDisk::with_contents(SimOptions::default(), &image);
        let error = Rig::open(&disk, 1).unwrap_err();
        assert_eq!(error.kind(), Corrupt, "{name}: {error}");
        assert!(disk.contents() == image, "{name}");
        // What does not concern the disk does not keep it from being read.
        let header = *place < 72;
        let read = Rig::open_over(&disk, None, 1, true);
        assert!(header || read.unwrap().read(0, 512).unwrap() == [2; 512], "{name}");
    }
    // Short of nothing, and as QEMU of old wrote it.
    for (extra, says) in [(0u32, None), (8, None), (16, Some(1 << 20))] {
        let mut image = good.clone();
        let (start, end) = (at(40), at(40) + extra as usize);
        let names = image[at(64)..at(64) + 4].to_vec();
        image[at(36)..at(40)].copy_from_slice(&extra.to_be_bytes());
        image[end..end + 4].copy_from_slice(&names);
        let disk = SimDisk::with_contents(SimOptions::default(), &image);
        let rig = Rig::open(&disk, 1).unwrap();
        let one = rig.snapshots().remove(0);
        assert_eq!((&one.name[..], one.disk_bytes), (&b"one"[..], says), "{start}");
        let grown = rig.run(|node| async move { node.resize(2 << 20).await });
        assert_eq!(grown.is_ok(), says.is_some());
        rig.change(Change::Apply("one".into())).unwrap();
        assert_eq!(rig.read(0, 512).unwrap(), [1; 512]);
    }
}

#[test]
fn a_snapshot_whose_tables_contradict_is_not_used() {
    let good = good();
    let table = be64(&good, 64) as usize;
    let l1 = be64(&good, table) as usize;
    let l2 = be64(&good, l1) as usize;
    let refcount_table = be64(&good, 48);
    let cases: &[(&str, usize, u64)] = &[
        ("L1 entry beyond the file", l1, 1 << 40),
        ("L1 entry with reserved bits", l1, l2 as u64 | 1),
        ("L1 entry not on a cluster boundary", l1, l2 as u64 + 512),
        ("entry beyond the file", l2, 1 << 40),
        ("entry with reserved bits", l2, be64(&good, l2) | 2),
        ("entry for metadata", l2 + 8, refcount_table),
        ("compressed beyond the file", l2 + 8, 1 << 62 | 1 << 40),
    ];
    for (name, place, value) in cases {
        let mut image = good.clone();
        image[*place..*place + 8].copy_from_slice(&value.to_be_bytes());
        let disk = SimDisk::with_contents(SimOptions::default(), &image);
        let rig = Rig::open(&disk, 1).unwrap();
        for change in [Change::Apply("one".into()), Change::Delete("1".into())] {
            let before = disk.contents();
            let error = rig.change(change).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
            assert!(disk.contents() == before, "{name}");
        }
        rig.write(4096, &[3; 512]).unwrap();
        rig.close().unwrap();
    }
}

#[test]
fn what_an_entry_holds_that_nobody_knows_is_kept() {
    let good = good();
    let table = be64(&good, 64) as usize;
    let mut image = good.clone();
    // 40 extra bytes, of which the last 16 mean nothing to us.
    let (extra, names) = (good[table + 40..table + 64].to_vec(), b"1one".to_vec());
    let unknown = *b"from the future!";
    image[table + 36..table + 40].copy_from_slice(&40u32.to_be_bytes());
    let entry = [extra, unknown.to_vec(), names].concat();
    image[table + 40..table + 40 + entry.len()].copy_from_slice(&entry);
    let kept = image[table..table + 40 + entry.len()].to_vec();
    let disk = SimDisk::with_contents(SimOptions::default(), &image);
    let rig = Rig::open(&disk, 1).unwrap();
    rig.change(Change::Create("two")).unwrap();
    rig.change(Change::Apply("one".into())).unwrap();
    rig.change(Change::Delete("two".into())).unwrap();
    rig.close().unwrap();
    let now = disk.contents();
    let table = be64(&now, 64) as usize;
    assert!(now[table..table + kept.len()] == kept);
}
