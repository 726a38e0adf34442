//! One good image; each row spoils one thing and has a name.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use super::*;
use io_engine::sim::SimOptions;
use io_engine::{Rng, SimDisk};

const CLUSTER: u64 = 4096;
const TABLE_AT: u64 = CLUSTER;
const BLOCK_AT: u64 = 2 * CLUSTER;
const L1_AT: u64 = 3 * CLUSTER;
const L2_AT: u64 = 4 * CLUSTER;
const DATA_AT: u64 = 5 * CLUSTER;
const DISK_SIZE: u64 = 64 * CLUSTER;
/// Clusters of the file that are in use; one more is free.
const USED: u64 = 7;

/// Offsets, and what to put there.
type Words<'a> = &'a [(u64, u64)];

fn put(image: &mut [u8], at: u64, bytes: &[u8]) {
    image[at as usize..][..bytes.len()].copy_from_slice(bytes);
}

fn put_long(image: &mut [u8], at: u64, value: u64) {
    put(image, at, &value.to_be_bytes());
}

/// Stores a count, in an image with counts of `1 << order` bits.
fn put_count(image: &mut [u8], order: u32, cluster: u64, count: u64) {
    let bits = 1u64 << order;
    for bit in 0..bits {
        // Bit 0 is the lowest; of counts of several bytes, the last byte has it.
        let within =
            cluster * bits + if bits < 8 { bit } else { (bits / 8 - 1 - bit / 8) * 8 + bit % 8 };
        let byte = &mut image[(BLOCK_AT + within / 8) as usize];
        *byte = *byte & !(1 << (within % 8)) | ((count >> bit & 1) as u8) << (within % 8);
    }
}

/// Header | refcount table | block | L1 | L2 | data 0xd1 | data 0xd2 | free. Disk: data, zero, unallocated, data.
fn good_of(order: u32) -> Vec<u8> {
    let mut image = vec![0; 8 * CLUSTER as usize];
    image[..4].copy_from_slice(b"QFI\xfb");
    put(&mut image, 4, &3u32.to_be_bytes());
    put(&mut image, 20, &12u32.to_be_bytes());
    put_long(&mut image, 24, DISK_SIZE);
    put(&mut image, 36, &1u32.to_be_bytes());
    put_long(&mut image, 40, L1_AT);
    put_long(&mut image, 48, TABLE_AT);
    put(&mut image, 56, &1u32.to_be_bytes());
    put(&mut image, 96, &order.to_be_bytes());
    put(&mut image, 100, &104u32.to_be_bytes());
    put_long(&mut image, TABLE_AT, BLOCK_AT);
    for cluster in 0..USED {
        put_count(&mut image, order, cluster, 1);
    }
    put_long(&mut image, L1_AT, L2_AT | COPIED);
    put_long(&mut image, L2_AT, DATA_AT | COPIED);
    put_long(&mut image, L2_AT + 8, READS_ZERO);
    put_long(&mut image, L2_AT + 24, (DATA_AT + CLUSTER) | COPIED);
    image[DATA_AT as usize..][..4096].fill(0xd1);
    image[(DATA_AT + CLUSTER) as usize..][..4096].fill(0xd2);
    image
}

fn good() -> Vec<u8> {
    good_of(4)
}

/// The good image with these long words changed.
fn with(words: Words<'_>) -> Vec<u8> {
    let mut image = good();
    words.iter().for_each(|(at, value)| put_long(&mut image, *at, *value));
    image
}

fn kinds(image: &[u8]) -> Vec<DamageKind> {
    check(image).damage.iter().map(|damage| damage.kind).collect()
}

#[test]
fn a_good_image_is_sound_with_counts_of_all_widths() {
    for order in 0..=6 {
        let image = good_of(order);
        let report = check(&image[..]);
        assert_eq!(report, Report { referenced_clusters: USED, ..Report::default() }, "{order}");
        assert_eq!(report.judge_crash(), Ok(()));
        let disk = SimDisk::with_contents(SimOptions::default(), &image);
        assert_eq!(check(&disk), report, "read from a disk");
        for cluster in 0..USED {
            let mut image = image.clone();
            put_count(&mut image, order, cluster, 0);
            let report = check(&image[..]);
            let damage = report.damage[0];
            assert_eq!(damage.kind, DamageKind::Undercounted { stored: 0, references: 1 });
            assert_eq!(damage.value, cluster * CLUSTER, "{order}");
            assert!(report.undercounted == 1 && report.judge_crash().is_err());
        }
        let mut image = image.clone();
        let max = u64::MAX >> (64 - (1u32 << order));
        put_count(&mut image, order, USED, max);
        let report = check(&image[..]);
        assert!(report.is_sound() && report.leaked_clusters == 1, "{order}: {report:?}");
        put_count(&mut image, order, USED, 0);
        put_count(&mut image, order, USED + 1, max);
        let report = check(&image[..]);
        assert!(report.leaked_clusters == 0 && report.leaked_beyond_file == 1, "{order}");
    }
}

#[test]
fn each_header_field_out_of_range_is_named() {
    use HeaderFault as H;
    let long = |value: u64| value.to_be_bytes().to_vec();
    let word = |value: u32| value.to_be_bytes().to_vec();
    let bitmaps = [word(0x2385_2875), word(24), word(1), word(0), long(32), long(CLUSTER)].concat();
    let cases: &[(&str, u64, Vec<u8>, HeaderFault)] = &[
        ("magic", 0, word(0), H::Magic),
        ("version 1", 4, word(1), H::Version(1)),
        ("version 4", 4, word(4), H::Version(4)),
        ("clusters of 256", 20, word(8), H::ClusterBits(8)),
        ("clusters of 4 MiB", 20, word(22), H::ClusterBits(22)),
        ("clusters of 2^4096", 20, word(4096), H::ClusterBits(4096)),
        ("clusters too small for extended L2", 72, long(16), H::ClusterBits(12)),
        ("an unknown feature", 72, long(32), H::Features(32)),
        ("all features", 72, long(!EXTENDED_L2), H::Features(!EXTENDED_L2)),
        ("counts of 128 bits", 96, word(7), H::RefcountOrder(7)),
        ("header too short", 100, word(96), H::HeaderLen(96)),
        ("header length odd", 100, word(108), H::HeaderLen(108)),
        ("header longer than a cluster", 100, word(4104), H::HeaderLen(4104)),
        ("compression without its bit", 100, [word(112), vec![1]].concat(), H::CompressionType(1)),
        ("the bit without a compression", 72, long(8), H::CompressionType(0)),
        ("encryption 3", 32, word(3), H::Crypt(3)),
        ("LUKS without its header", 32, word(2), H::Crypt(2)),
        ("L1 unaligned", 40, long(L1_AT + 512), H::L1Table(L1_AT + 512)),
        ("L1 beyond the file", 40, long(8 * CLUSTER), H::L1Table(8 * CLUSTER)),
        ("L1 at the end of time", 40, long(!0xfff), H::L1Table(!0xfff)),
        ("L1 longer than the file", 36, word(u32::MAX), H::L1Table(L1_AT)),
        ("L1 too short", 36, word(0), H::L1Size(0)),
        ("disk too large", 24, long(u64::MAX), H::L1Size(1)),
        ("refcount table unaligned", 48, long(8), H::RefcountTable(8)),
        ("refcount table beyond the file", 48, long(!0xfff), H::RefcountTable(!0xfff)),
        ("refcount table longer than the file", 56, word(u32::MAX), H::RefcountTable(TABLE_AT)),
        ("no refcount table", 56, word(0), H::RefcountTable(TABLE_AT)),
        ("snapshots unaligned", 60, [word(1), long(8)].concat(), H::Snapshots(8)),
        ("backing name too long", 8, [long(1024), word(1024)].concat(), H::BackingName),
        ("backing name beyond the cluster", 8, [long(4000), word(100)].concat(), H::BackingName),
        ("an extension too long", 104, [word(7), word(4096)].concat(), H::Extension(7)),
        ("an extension twice", 104, [word(7), word(0), word(7)].concat(), H::Extension(7)),
        ("a short bitmaps extension", 104, bitmaps[..4].to_vec(), H::Extension(0x2385_2875)),
        ("bitmaps without their extension", 88, long(1), H::Autoclear(1)),
        ("raw data file without a data file", 88, long(2), H::Autoclear(2)),
    ];
    for (name, at, bytes, fault) in cases {
        let mut image = good();
        put(&mut image, *at, bytes);
        assert_eq!(check(&image[..]).header, vec![*fault], "{name}");
        assert!(check(&image[..]).judge_crash().is_err());
    }
    assert_eq!(check(&good()[..100]).header, vec![H::Short]);
    assert_eq!(check(&[][..]).header, vec![H::Short]);
    let mut image = good();
    put(&mut image, 104, &bitmaps);
    assert!(check(&image[..]).is_sound(), "no autoclear bit: nobody looks at the bitmaps");
}

#[test]
fn each_damage_is_named() {
    use DamageKind as D;
    let end = 8 * CLUSTER;
    let free_entry = L2_AT + 16;
    let overlap = |first, second| vec![D::Overlap(first, second)];
    let too_few = |stored, references| D::Undercounted { stored, references };
    let cases: &[(&str, Words<'_>, Vec<DamageKind>)] = &[
        ("L1 reserved, low", &[(L1_AT, L2_AT | COPIED | 1)], vec![D::ReservedBits]),
        ("L1 reserved, high", &[(L1_AT, L2_AT | COPIED | 1 << 62)], vec![D::ReservedBits]),
        ("L1 without an offset", &[(L1_AT, COPIED)], vec![D::ReservedBits]),
        ("L1 unaligned", &[(L1_AT, L2_AT + 512)], vec![D::Unaligned]),
        ("L1 beyond", &[(L1_AT, end)], vec![D::BeyondFile]),
        ("L2 reserved, low", &[(free_entry, 2)], vec![D::ReservedBits]),
        ("L2 reserved, high", &[(free_entry, 1 << 61)], vec![D::ReservedBits]),
        ("L2 with COPIED only", &[(free_entry, COPIED)], vec![D::ReservedBits]),
        ("L2 unaligned", &[(free_entry, DATA_AT + 512)], vec![D::Unaligned]),
        ("L2 beyond", &[(free_entry, end | COPIED)], vec![D::BeyondFile]),
        ("L2 far beyond", &[(free_entry, OFFSET & !0xfff)], vec![D::BeyondFile]),
        ("uncounted", &[(free_entry, 7 * CLUSTER)], vec![too_few(0, 1)]),
        ("L2 shared", &[(free_entry, DATA_AT)], vec![too_few(1, 2), D::Copied { stored: 1 }]),
        ("data in the header", &[(L2_AT, 1 << 62)], overlap(Kind::Header, Kind::Compressed)),
        ("data in L1", &[(free_entry, L1_AT | COPIED)], overlap(Kind::L1Table, Kind::Data)),
        ("data in L2", &[(free_entry, L2_AT | COPIED)], overlap(Kind::L2Table, Kind::Data)),
        (
            "data in the refcount block",
            &[(free_entry, BLOCK_AT | COPIED)],
            overlap(Kind::RefcountBlock, Kind::Data),
        ),
        ("COPIED missing", &[(L2_AT, DATA_AT)], vec![D::Copied { stored: 1 }]),
        ("L1's COPIED missing", &[(L1_AT, L2_AT)], vec![D::Copied { stored: 1 }]),
        ("a block twice", &[(TABLE_AT + 8, BLOCK_AT)], vec![D::Twice(Kind::RefcountBlock)]),
        ("a block unaligned", &[(TABLE_AT + 8, BLOCK_AT + 512)], vec![D::Unaligned]),
        ("a block beyond", &[(TABLE_AT + 8, !0xfff)], vec![D::BeyondFile]),
        ("a block reserved", &[(TABLE_AT + 8, 1)], vec![D::ReservedBits]),
        ("compressed beyond", &[(free_entry, 1 << 62 | end)], vec![D::BeyondFile]),
        (
            "compressed, the last sector beyond",
            &[(free_entry, 1 << 62 | 1 << 58 | (end - 1))],
            vec![D::BeyondFile],
        ),
        ("compressed with COPIED", &[(free_entry, COPIED | 1 << 62 | end)], vec![D::ReservedBits]),
        ("compressed at 2^56", &[(free_entry, 1 << 62 | 1 << 56)], vec![D::ReservedBits]),
    ];
    for (name, words, expected) in cases {
        let found = kinds(&with(words));
        // Some lead to others: the first is what counts.
        assert_eq!(found.get(..expected.len()), Some(&expected[..]), "{name}: {found:?}");
        assert!(check(&with(words)[..]).damage_count > 0, "{name}");
    }
}

#[test]
fn compressed_clusters_share_host_clusters() {
    // Two in cluster 7: one of 2 sectors, one that begins in the last of them. A third goes from 5 over into 6,
    // a fourth is in the last sector of 5.
    let at = |from: u64, more_sectors: u64| 1 << 62 | more_sectors << 58 | from;
    let words = [
        (L2_AT, 0),
        (L2_AT + 24, 0),
        (L2_AT + 32, at(7 * CLUSTER + 100, 1)),
        (L2_AT + 40, at(7 * CLUSTER + 700, 2)),
        (L2_AT + 48, at(6 * CLUSTER - 100, 1)),
        (L2_AT + 56, at(6 * CLUSTER - 100, 0)),
    ];
    let mut image = with(&words);
    put_count(&mut image, 4, 5, 2);
    assert_eq!(kinds(&image), [DamageKind::Undercounted { stored: 0, references: 2 }]);
    put_count(&mut image, 4, 7, 2);
    let report = check(&image[..]);
    let expected = Report { referenced_clusters: 8, compressed_clusters: 4, ..Report::default() };
    assert_eq!(report, expected);
    let read = |offset| Qcow2::open(&image[..]).unwrap().read_disk(offset, &mut [0], |_, _| {});
    assert_eq!(read(4 * CLUSTER), Err(Unreadable::Compressed(4 * CLUSTER)));
    // With its cluster in use by data too, it is in danger.
    put_long(&mut image, L2_AT, 7 * CLUSTER);
    put_count(&mut image, 4, 7, 3);
    assert_eq!(kinds(&image), [DamageKind::Overlap(Kind::Data, Kind::Compressed)]);
}

#[test]
fn what_a_crash_may_leave_is_told_from_what_it_may_not() {
    let dirty = (72, DIRTY);
    let count = |cluster: u64, counts: u64| (BLOCK_AT + 2 * cluster, counts << 48);
    let free_entry = L2_AT + 16;
    let cases: &[(&str, Words<'_>, bool)] = &[
        ("as made", &[], true),
        ("a leak", &[count(7, 1)], true),
        ("an entry lost", &[(L2_AT, 0)], true),
        ("a table lost", &[(L1_AT, 0)], true),
        ("a count lost", &[count(6, 0)], false),
        ("a count lost, dirty", &[count(6, 0), dirty], true),
        ("an entry without a count, dirty", &[(free_entry, (7 * CLUSTER) | COPIED), dirty], true),
        ("an entry beyond the file", &[(free_entry, (8 * CLUSTER) | COPIED)], false),
        ("an entry beyond the file, dirty", &[(free_entry, (8 * CLUSTER) | COPIED), dirty], false),
        ("COPIED lost", &[(L2_AT, DATA_AT)], true),
        ("counted twice with COPIED", &[count(6, 2)], true),
        ("used twice", &[(free_entry, DATA_AT)], false),
        ("used twice, dirty", &[(free_entry, DATA_AT), (L2_AT, DATA_AT), dirty], false),
        (
            "used twice, counted",
            &[(free_entry, DATA_AT + CLUSTER), (L2_AT + 24, DATA_AT + CLUSTER), count(6, 2)],
            false,
        ),
        ("metadata and data, dirty", &[(free_entry, L2_AT), dirty], false),
        ("marked corrupt", &[(72, CORRUPT)], false),
    ];
    for (name, words, is_fine) in cases {
        let report = check(&with(words)[..]);
        assert_eq!(report.judge_crash().is_ok(), *is_fine, "{name}: {report:?}");
    }
    let report = check(&with(cases[13].1)[..]);
    assert!(report.is_sound() && report.doubly_used == 1, "legal, and made by nobody: {report:?}");
}

/// The good image, its free cluster a snapshot table with one snapshot that has the active L1 table's content, in a cluster of its own.
fn with_snapshot() -> Vec<u8> {
    let (table, l1) = (7 * CLUSTER, 8 * CLUSTER);
    let mut image = with(&[(60, 1 << 32), (64, table)]);
    image.resize(9 * CLUSTER as usize, 0);
    put_long(&mut image, table, l1);
    put(&mut image, table + 8, &1u32.to_be_bytes());
    put(&mut image, table + 12, &[0, 1, 0, 5]);
    put(&mut image, table + 36, &16u32.to_be_bytes());
    put(&mut image, table + 56, b"1first");
    put_long(&mut image, l1, L2_AT);
    put_long(&mut image, L1_AT, L2_AT);
    put_long(&mut image, L2_AT, DATA_AT);
    put_long(&mut image, L2_AT + 24, DATA_AT + CLUSTER);
    for (cluster, count) in [(4, 2), (5, 2), (6, 2), (7, 1), (8, 1)] {
        put_count(&mut image, 4, cluster, count);
    }
    image
}

#[test]
fn a_snapshot_counts_what_it_holds() {
    let (table, l1) = (7 * CLUSTER, 8 * CLUSTER);
    let good = with_snapshot();
    let report = check(&good[..]);
    assert_eq!(report, Report { referenced_clusters: 9, ..Report::default() });
    assert_eq!(report.judge_crash(), Ok(()));
    let kinds_with = |at, bytes: &[u8]| {
        let mut image = good.clone();
        put(&mut image, at, bytes);
        kinds(&image)
    };
    use DamageKind as D;
    assert_eq!(kinds_with(table + 36, &[0; 4]), [D::Malformed], "too little extra data");
    assert_eq!(kinds_with(table, &(l1 + 8).to_be_bytes()), [D::Malformed], "L1 unaligned");
    assert_eq!(kinds_with(table, &(1u64 << 60).to_be_bytes()), [D::Malformed], "L1 beyond");
    assert_eq!(kinds_with(table + 8, &[255; 4]), [D::Malformed], "L1 too long");
    assert_eq!(kinds_with(64, &(!0xfffu64).to_be_bytes()), [D::Malformed], "table beyond");
    assert_eq!(kinds_with(l1, &(L2_AT | 1).to_be_bytes()), [D::ReservedBits]);
    assert_eq!(kinds_with(table, &L1_AT.to_be_bytes()).len(), 1, "L1 shared with the active image");
    let in_use = kinds_with(BLOCK_AT + 10, &[0, 1]);
    assert_eq!(in_use[0], D::Undercounted { stored: 1, references: 2 });

    // COPIED on what the snapshot has too: the next write goes into it. If the image is dirty, nothing else is wrong with it.
    let mut image = good.clone();
    put_long(&mut image, 72, DIRTY);
    put_long(&mut image, L2_AT, DATA_AT | COPIED);
    assert!(check(&image[..]).judge_crash().is_err());
    // Many snapshots: an end is found.
    let mut image = good.clone();
    put(&mut image, 60, &[255; 4]);
    assert!(check(&image[..]).damage_count > 0);
}

/// Each says that its L1 table is the rest of the file. To go through that for each of them would take a minute.
#[test]
fn many_tables_in_one_place_are_not_gone_through_one_by_one() {
    let table = 7 * CLUSTER;
    let mut image = with(&[(60, 70_000 << 32), (64, table)]);
    image.resize(4 << 20, 0);
    for number in 0..70_000 {
        let entry = table + 56 * number;
        put_long(&mut image, entry, table);
        put(&mut image, entry + 8, &(500_000u32).to_be_bytes());
        put(&mut image, entry + 36, &16u32.to_be_bytes());
    }
    let report = check(&image[..]);
    assert!(report.damage_count > 70_000, "{report:?}");
}

#[test]
fn bitmaps_are_counted_if_they_are_consistent() {
    let (directory, table, data) = (7 * CLUSTER, 8 * CLUSTER, 9 * CLUSTER);
    let mut good = with(&[(88, 1), (104, 0x2385_2875_0000_0018), (112, 1 << 32), (120, 32)]);
    good.resize(10 * CLUSTER as usize, 0);
    put_long(&mut good, 128, directory);
    put_long(&mut good, directory, table);
    put(&mut good, directory + 8, &[0, 0, 0, 2, 0, 0, 0, 2, 1, 16, 0, 2, 0, 0, 0, 0, b'b', b'0']);
    put_long(&mut good, table, data);
    put_long(&mut good, table + 8, READS_ZERO);
    (7..10).for_each(|cluster| put_count(&mut good, 4, cluster, 1));
    assert_eq!(check(&good[..]), Report { referenced_clusters: 10, ..Report::default() });

    use DamageKind as D;
    let cases: &[(&str, u64, Vec<u8>, DamageKind)] = &[
        ("directory beyond", 128, vec![255; 6], D::Malformed),
        ("directory too long", 120, vec![255; 8], D::Malformed),
        ("directory longer than its entries", 127, vec![40], D::Malformed),
        ("more bitmaps than there are", 112, vec![255; 4], D::Malformed),
        ("a flag", directory + 15, vec![8], D::Malformed),
        ("a type", directory + 16, vec![2], D::Malformed),
        ("a granularity", directory + 17, vec![64], D::Malformed),
        ("no name", directory + 19, vec![0], D::Malformed),
        ("table beyond", directory, vec![1], D::Malformed),
        ("table too long", directory + 8, vec![255], D::Malformed),
        ("a reserved bit", table, vec![1], D::ReservedBits),
        ("a value with an offset", table + 7, vec![1], D::ReservedBits),
        ("data beyond", table + 1, vec![1], D::BeyondFile),
        ("data unaligned", table + 6, vec![0x92], D::Unaligned),
        ("data twice", table + 8, data.to_be_bytes().to_vec(), D::Twice(Kind::BitmapData)),
    ];
    for (name, at, bytes, expected) in cases {
        let mut image = good.clone();
        put(&mut image, *at, bytes);
        let report = check(&image[..]);
        assert_eq!(report.damage.first().map(|damage| damage.kind), Some(*expected), "{name}");
    }
    put_long(&mut good, 88, 0);
    let report = check(&good[..]);
    assert!(report.is_sound() && report.leaked_clusters == 3, "{report:?}");
}

/// Clusters of 16 KiB with 32 subclusters of 512 bytes: the first allocated, the second zero.
#[test]
fn subclusters_are_read_one_by_one() {
    let (cluster, l2, data) = (16384, 4 * 16384, 5 * 16384);
    let small = good();
    let mut image = vec![0; 6 * cluster as usize];
    image[..104].copy_from_slice(&small[..104]);
    put(&mut image, 20, &14u32.to_be_bytes());
    put_long(&mut image, 72, EXTENDED_L2);
    put_long(&mut image, 40, 3 * cluster);
    put_long(&mut image, 48, cluster);
    put_long(&mut image, cluster, 2 * cluster);
    (0..6).for_each(|number| put(&mut image, 2 * cluster + 2 * number, &[0, 1]));
    put_long(&mut image, 3 * cluster, l2 | COPIED);
    put_long(&mut image, l2, data | COPIED);
    put_long(&mut image, l2 + 8, 1 << 33 | 1);
    // Zeroes without a cluster.
    put_long(&mut image, l2 + 24, u64::MAX << 32);
    image[data as usize..].fill(0xd1);
    assert_eq!(check(&image[..]), Report { referenced_clusters: 6, ..Report::default() });

    let qcow2 = Qcow2::open(&image[..]).unwrap();
    let mut disk = vec![0; 4 * 16384];
    qcow2.read_disk(0, &mut disk, |_, into| into.fill(0xbb)).unwrap();
    let mut expected = vec![0xbb; 4 * 16384];
    expected[..512].fill(0xd1);
    expected[512..1024].fill(0);
    expected[16384..2 * 16384].fill(0);
    assert!(disk == expected);

    use DamageKind as D;
    let cases = [
        ("allocated and zero", l2 + 8, 1 << 32 | 1, D::Subclusters),
        ("allocated without a cluster", l2 + 24, 1, D::Subclusters),
        ("the zero bit of other images", l2 + 16, READS_ZERO, D::ReservedBits),
    ];
    for (name, at, value, expected) in cases {
        let mut image = image.clone();
        put_long(&mut image, at, value);
        assert_eq!(kinds(&image), [expected], "{name}");
    }
}

#[test]
fn with_a_data_file_the_place_is_the_disks() {
    let words = [
        (72, DATA_FILE),
        (L2_AT, COPIED),
        (L2_AT + 24, (3 * CLUSTER) | COPIED),
        (BLOCK_AT + 8, 1 << 48),
    ];
    let image = with(&words);
    assert_eq!(check(&image[..]), Report { referenced_clusters: 5, ..Report::default() });
    let qcow2 = Qcow2::open(&image[..]).unwrap();
    assert_eq!(qcow2.lookup(7), Ok(Mapping::DataFile(7)));
    assert_eq!(qcow2.lookup(2 * CLUSTER), Ok(Mapping::Unallocated));
    let result = qcow2.read_disk(3 * CLUSTER, &mut [0], |_, _| {});
    assert_eq!(result, Err(Unreadable::DataFile(3 * CLUSTER)));
    let spoiled = |at, value| kinds(&with(&[&words[..], &[(at, value)]].concat()));
    assert_eq!(spoiled(L2_AT + 24, (4 * CLUSTER) | COPIED), [DamageKind::DataFile]);
    assert_eq!(spoiled(L2_AT + 24, 1 << 62), [DamageKind::DataFile]);
    assert_eq!(spoiled(L2_AT + 24, 3 * CLUSTER), [DamageKind::Copied { stored: 1 }]);
}

#[test]
fn the_reader_goes_by_the_tables() {
    let image = with(&[(L2_AT + 24, (DATA_AT + CLUSTER) | COPIED | READS_ZERO)]);
    let qcow2 = Qcow2::open(&image[..]).unwrap();
    let mut disk = vec![0xee; 5 * 4096];
    qcow2.read_disk(100, &mut disk, |_, into| into.fill(0xbb)).unwrap();
    let byte_at = |offset: u64| disk[(offset - 100) as usize];
    assert_eq!((byte_at(100), byte_at(CLUSTER - 1)), (0xd1, 0xd1));
    assert_eq!((byte_at(CLUSTER), byte_at(2 * CLUSTER)), (0, 0xbb));
    assert_eq!((byte_at(3 * CLUSTER), byte_at(4 * CLUSTER)), (0, 0xbb), "preallocated zeroes");
    assert_eq!(qcow2.lookup(u64::MAX), Ok(Mapping::Unallocated));

    let spoiled = with(&[(L2_AT, 8 * CLUSTER)]);
    let qcow2 = Qcow2::open(&spoiled[..]).unwrap();
    let result = qcow2.read_disk(0, &mut [0], |_, _| {});
    assert!(matches!(result, Err(Unreadable::Damage(_))), "{result:?}");
    let mut encrypted = good();
    put(&mut encrypted, 32, &1u32.to_be_bytes());
    let qcow2 = Qcow2::open(&encrypted[..]).unwrap();
    assert_eq!(qcow2.read_disk(0, &mut [0], |_, _| {}), Err(Unreadable::Encrypted));
}

#[test]
fn metadata_are_all_but_data() {
    let image = good();
    let ranges = Qcow2::open(&image[..]).unwrap().metadata();
    assert_eq!((ranges.len(), &ranges[0]), (1, &(0..5 * CLUSTER)));
    let image = with_snapshot();
    let ranges = Qcow2::open(&image[..]).unwrap().metadata();
    assert_eq!(ranges, [0..5 * CLUSTER, 7 * CLUSTER..9 * CLUSTER]);
}

#[test]
fn entries_beyond_the_disk_are_no_damage() {
    let report = check(&with(&[(24, 3 * CLUSTER)])[..]);
    assert!(report.is_sound());
    assert_eq!(report.beyond_disk, 1);
}

/// No bytes make it panic, or go on for ever.
#[test]
fn any_bytes_may_be_given() {
    let mut rng = Rng::new(7);
    let mut opened = 0;
    for round in 0..3000 {
        let mut image = if round % 2 == 0 { good() } else { with_snapshot() };
        for _ in 0..1 + rng.below(4) {
            let in_table = rng.below(9) * CLUSTER + rng.below(16) * 8;
            let at = if rng.below(2) == 0 { rng.below(136) } else { in_table };
            let at = at.min(image.len() as u64 - 8);
            match rng.below(3) {
                0 => image[at as usize] ^= 1 << rng.below(8),
                1 => put_long(&mut image, at & !7, u64::MAX << rng.below(64)),
                _ => put_long(&mut image, at & !7, (rng.below(10) * CLUSTER) | (rng.bits() << 54)),
            }
        }
        image.truncate((image.len() as u64 - rng.below(2) * rng.below(CLUSTER * 8)) as usize);
        let report = check(&image[..]);
        let _ = report.judge_crash();
        if let Ok(qcow2) = Qcow2::open(&image[..]) {
            opened += 1;
            qcow2.metadata();
            let _ = qcow2.read_disk(0, &mut [0; 5 * 4096], |_, _| {});
        }
    }
    assert!(opened > 500, "{opened}");
}
