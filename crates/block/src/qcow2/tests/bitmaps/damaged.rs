//! Directories and tables that contradict the specification, and those that say more than we know.

use super::{AUTO, IN_USE, K, Stored, add, be, check, extension, list, one, spoiled, with};
use crate::qcow2::{CreateOptions, Qcow2};
use crate::testing::rig::{Rig, image};
use crate::{ErrorKind, Result};
use io_engine::sim::SimDisk;

/// Where things are in [`good`].
struct Places {
    directory: u64,
    /// Tables of the two bitmaps, and a cluster of bits of each.
    tables: [u64; 2],
    bits: [u64; 2],
    extension: u64,
}

/// Two bitmaps, b0 and b1, not enabled, in clusters of 512 bytes: their entries have 32 bytes. Both have tables of two entries, of which the first
/// leads to a cluster.
fn good() -> (SimDisk, Places) {
    let disk = image(
        &CreateOptions { cluster_bytes: 512, ..CreateOptions::new(4096 * K) },
        super::logged(),
    );
    let rig = Rig::open(&disk, 1).unwrap();
    for name in ["b0", "b1"] {
        add(&rig, name, 512, false).unwrap();
        with(&rig, async move |image: &Qcow2| {
            image.mark_in_bitmap(name.as_bytes(), &[K..2 * K]).await
        })
        .unwrap();
    }
    rig.write(0, &[7; 512]).unwrap();
    rig.close().unwrap();
    let raw = disk.contents();
    let extension = extension(&raw).unwrap();
    let directory = be(&raw, extension + 16, 8);
    let tables = [be(&raw, directory, 8), be(&raw, directory + 32, 8)];
    let bits = tables.map(|table| be(&raw, table, 8));
    (disk, Places { directory, tables, bits, extension })
}

fn bitmaps(rig: &Rig) -> Result<usize> {
    with(rig, async |image: &Qcow2| Ok(image.bitmaps().await?.len()))
}

#[test]
fn an_image_with_damaged_bitmaps_is_not_written() {
    let (disk, at) = good();
    let raw = disk.contents();
    let l1 = be(&raw, 40, 8);
    let long = |value: u64| value.to_be_bytes().to_vec();
    let cases: Vec<(&str, u64, Vec<u8>)> = vec![
        ("a table at 0", at.directory, long(0)),
        ("a table not on a cluster boundary", at.directory, long(at.tables[0] + 8)),
        ("a table beyond the end", at.directory, long(disk.len())),
        ("a table beyond all ends", at.directory, long(u64::MAX - 511)),
        ("a table that is the L1 table", at.directory, long(l1)),
        ("a table that is the directory", at.directory, long(at.directory)),
        ("a table that is another's", at.directory, long(at.tables[1])),
        ("a table that is bits", at.directory, long(at.bits[1])),
        ("a table of no entries", at.directory + 8, vec![0; 4]),
        ("a table of too few entries", at.directory + 32 + 8, vec![0, 0, 0, 1]),
        ("a table of too many entries", at.directory + 32 + 8, vec![0, 0, 0, 3]),
        ("a table beyond the end of the file", at.directory + 8, vec![0, 0xFF, 0, 0]),
        ("the largest table", at.directory + 8, vec![0xFF; 4]),
        ("granules for which there are not as many bits", at.directory + 17, vec![10]),
        ("granules of 2^200 bytes", at.directory + 17, vec![200]),
        ("no name", at.directory + 18, vec![0, 0]),
        ("a name beyond the directory", at.directory + 32 + 18, vec![3, 0xFF]),
        ("extra data beyond the directory", at.directory + 20, vec![0xFF; 4]),
        ("one name twice", at.directory + 32 + 24, b"b0".to_vec()),
        ("fewer bitmaps than entries", at.extension, vec![0, 0, 0, 1]),
        ("bits not on a cluster boundary", at.tables[0], long(at.bits[0] | 1 << 8)),
        ("bits beyond the end", at.tables[0], long(disk.len())),
        ("bits that are the L1 table", at.tables[0], long(l1)),
        ("bits that are the table", at.tables[0], long(at.tables[0])),
        ("bits that are another's", at.tables[0], long(at.bits[1])),
        ("bits twice", at.tables[0] + 8, long(at.bits[0])),
        ("all ones, and a cluster", at.tables[0], long(at.bits[0] | 1)),
        ("reserved bits below", at.tables[0], long(2)),
        ("reserved bits above", at.tables[0], long(at.bits[0] | 1 << 56)),
    ];
    for (name, place, bytes) in cases {
        let disk = spoiled(&disk, place, &bytes);
        let before = disk.contents();
        let error = Rig::open(&disk, 1).map(drop).unwrap_err();
        let known = [ErrorKind::Corrupt, ErrorKind::Unsupported];
        assert!(known.contains(&error.kind()), "{name}: {error}");
        let reader = Rig::open_over(&disk, None, 1, true).unwrap();
        assert_eq!(reader.read(0, 512).unwrap(), [7; 512], "{name}");
        // Who only reads does not look at what else is where.
        match bitmaps(&reader) {
            Ok(count) => assert!(name.contains("L1") && count == 2, "{name}"),
            Err(error) => assert!(known.contains(&error.kind()), "{name}: {error}"),
        }
        assert!(disk.contents() == before, "{name}: nothing is written");
    }
}

/// What a bitmap is that we do not know stays as it is, bit for bit.
#[test]
fn what_is_not_known_is_kept_and_not_used() {
    let (disk, at) = good();
    let cases: &[(&str, u64, &[u8])] = &[
        ("a flag", 12, &[0, 0, 0, 0x10]),
        ("a type", 16, &[2]),
        ("small granules", 17, &[8]),
        ("large granules", 17, &[40]),
    ];
    for (name, place, bytes) in cases {
        let disk = spoiled(&disk, at.directory + place, bytes);
        let before = disk.contents();
        let rig = Rig::open(&disk, 1).unwrap();
        let unknown: Vec<bool> = list(&rig).iter().map(|bitmap| bitmap.is_unknown).collect();
        assert_eq!(unknown, [true, false], "{name}");
        with(&rig, async |image: &Qcow2| {
            for result in [
                image.enable_bitmap(b"b0").await,
                image.clear_bitmap(b"b0").await,
                image.merge_bitmap(b"b1", b"b0").await,
                image.prepare_resize_bitmaps(K).await,
            ] {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::BadRequest);
            }
            image.clear_bitmap(b"b1").await
        })
        .unwrap();
        rig.write(K, &[8; 512]).unwrap();
        rig.close().unwrap();
        let raw = disk.contents();
        let directory = be(&raw, extension(&raw).unwrap() + 16, 8) as usize;
        assert_ne!(directory as u64, at.directory);
        let old = at.directory as usize;
        assert!(raw[directory..directory + 32] == before[old..old + 32], "{name}: its entry");
        for kept in [at.tables[0], at.bits[0]] {
            let kept = kept as usize..kept as usize + 512;
            assert!(raw[kept.clone()] == before[kept], "{name}: what it leads to");
        }
        let rig = Rig::open(&disk, 1).unwrap();
        with(&rig, async |image: &Qcow2| image.remove_bitmap(b"b0").await).unwrap();
        rig.close().unwrap();
        check(&disk);
    }
    // It would have to know of writes, and cannot.
    for (name, place, bytes) in cases {
        let disk = spoiled(&disk, at.directory + place, bytes);
        let flags = disk.contents()[at.directory as usize + 15] | AUTO as u8;
        let disk = spoiled(&disk, at.directory + 15, &[flags]);
        let before = disk.contents();
        let error = Rig::open(&disk, 1).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
        assert!(error.to_string().contains("must record writes"), "{name}: {error}");
        assert!(disk.contents() == before, "{name}");
        assert_eq!(bitmaps(&Rig::open_over(&disk, None, 1, true).unwrap()).unwrap(), 2, "{name}");
        let disk = spoiled(&disk, at.directory + 15, &[flags | 1]);
        assert!(Rig::open(&disk, 1).is_ok(), "{name}: in use, so that nobody relies on it");
    }
}

/// The name's padding becomes extra data: "b0" of 2 bytes behind 4 bytes of it.
#[test]
fn extra_data_is_kept_and_stops_us_if_it_says_so() {
    let (disk, at) = good();
    let mut entry = disk.contents()[at.directory as usize..][..32].to_vec();
    entry[20..24].copy_from_slice(&4u32.to_be_bytes());
    entry[24..32].copy_from_slice(b"\x01\x02\x03\x04b0\0\0");
    for (flags, is_unknown) in [(0, true), (4, false)] {
        entry[15] = flags;
        let disk = spoiled(&disk, at.directory, &entry);
        let rig = Rig::open(&disk, 1).unwrap();
        assert_eq!(list(&rig)[0].is_unknown, is_unknown);
        let enabled = with(&rig, async |image: &Qcow2| {
            image.clear_bitmap(b"b1").await?;
            image.enable_bitmap(b"b0").await
        });
        assert_eq!(enabled.is_err(), is_unknown);
        rig.write(10 * K, &[8; 512]).unwrap();
        rig.close().unwrap();
        check(&disk);
        let raw = disk.contents();
        let directory = be(&raw, extension(&raw).unwrap() + 16, 8) as usize;
        assert_eq!(raw[directory + 20..directory + 32], entry[20..32]);
        if !is_unknown {
            let Stored { flags, bits, .. } = one(&disk, "b0");
            assert_eq!((flags, bits[2], bits[20], bits[30]), (4 | AUTO, true, true, false));
        }
    }
}

#[test]
fn one_that_was_not_stored_may_have_any_size() {
    let (disk, at) = good();
    let mut entry = disk.contents()[at.directory as usize..][..32].to_vec();
    entry[15] = IN_USE as u8;
    entry[17] = 12;
    let disk = spoiled(&disk, at.directory, &entry);
    let rig = Rig::open(&disk, 1).unwrap();
    let states: Vec<_> = list(&rig).iter().map(|bitmap| bitmap.is_inconsistent).collect();
    assert_eq!(states, [true, false]);
    with(&rig, async |image: &Qcow2| image.remove_bitmap(b"b0").await).unwrap();
    rig.close().unwrap();
    check(&disk);
}
