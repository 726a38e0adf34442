//! One good image; each row spoils one thing and has a name.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use super::*;
use io_engine::SimDisk;
use io_engine::sim::SimOptions;

const CLUSTER: u64 = 4096;
const L1_AT: u64 = CLUSTER;
const L2_AT: u64 = 3 * CLUSTER;
const DATA_AT: u64 = 5 * CLUSTER;

fn put(image: &mut [u8], at: u64, value: u64) {
    let at = at as usize;
    image[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Header | L1 (2 clusters) | L2 (2 clusters) | data 0xd1 | data 0xd2 | leaked. Disk: data, zero, unallocated, data.
fn good() -> Vec<u8> {
    let mut image = vec![0; 8 * CLUSTER as usize];
    image[..4].copy_from_slice(b"QED\0");
    put(&mut image, 4, CLUSTER | 2 << 32);
    put(&mut image, 12, 1);
    put(&mut image, 40, L1_AT);
    put(&mut image, 48, 64 * CLUSTER);
    put(&mut image, L1_AT, L2_AT);
    put(&mut image, L2_AT, DATA_AT);
    put(&mut image, L2_AT + 8, 1);
    put(&mut image, L2_AT + 24, DATA_AT + CLUSTER);
    let data = DATA_AT as usize;
    image[data..data + 4096].fill(0xd1);
    image[data + 4096..data + 8192].fill(0xd2);
    image
}

#[test]
fn a_good_image_is_sound_and_its_leak_is_counted() {
    let report = check(&good()[..]);
    let expected = Report { leaked_clusters: 1, referenced_clusters: 4, ..Report::default() };
    assert_eq!(report, expected);
    assert_eq!(report.judge_crash(), Ok(()));
    let disk = SimDisk::with_contents(SimOptions::default(), &good());
    assert_eq!(check(&disk), report, "read from a disk");
}

#[test]
fn each_header_field_out_of_range_is_named() {
    use HeaderFault as H;
    let long = |value: u64| value.to_le_bytes().to_vec();
    let word = |value: u32| value.to_le_bytes().to_vec();
    let cases: &[(&str, usize, Vec<u8>, HeaderFault)] = &[
        ("magic", 0, b"QED1".to_vec(), H::Magic),
        ("cluster not a power of two", 4, word(4095), H::ClusterSize(4095)),
        ("cluster of nothing", 4, word(0), H::ClusterSize(0)),
        ("cluster too small", 4, word(2048), H::ClusterSize(2048)),
        ("cluster too large", 4, word(1 << 27), H::ClusterSize(1 << 27)),
        ("table of nothing", 8, word(0), H::TableSize(0)),
        ("table of three", 8, word(3), H::TableSize(3)),
        ("table too large", 8, word(32), H::TableSize(32)),
        ("no header", 12, word(0), H::HeaderSize(0)),
        ("unknown feature", 16, long(8), H::Features(8)),
        ("L1 unaligned", 40, long(L1_AT + 512), H::L1Table(L1_AT + 512)),
        ("L1 in the header", 40, long(0), H::L1Table(0)),
        ("L1 partly beyond the file", 40, long(7 * CLUSTER), H::L1Table(7 * CLUSTER)),
        ("L1 wraps", 40, long(0u64.wrapping_sub(CLUSTER)), H::L1Table(0u64.wrapping_sub(CLUSTER))),
        ("half a sector", 48, long(256), H::ImageSize(256)),
        ("more than tables reach", 48, long((1 << 32) + 512), H::ImageSize((1 << 32) + 512)),
    ];
    for (name, at, bytes, fault) in cases {
        let mut image = good();
        image[*at..*at + bytes.len()].copy_from_slice(bytes);
        let report = check(&image[..]);
        assert_eq!(report.header, [*fault], "{name}");
        assert!(!report.is_sound() && report.judge_crash().is_err(), "{name}");
    }
    for len in [0, 3, 63] {
        assert_eq!(check(&good()[..len]).header, [H::Short], "{len}");
    }
}

#[test]
fn what_only_looks_wrong_in_a_header_is_accepted() {
    let cases: &[(&str, u64, u64)] = &[
        ("as large as tables reach", 48, 1 << 32),
        ("an empty disk", 48, 0),
        ("compat bits", 24, u64::MAX),
        ("autoclear bits", 32, u64::MAX),
        ("a backing name without the feature", 56, u64::MAX),
    ];
    for (name, at, value) in cases {
        let mut image = good();
        put(&mut image, *at, *value);
        assert!(check(&image[..]).is_sound(), "{name}");
    }
}

#[test]
fn a_backing_name_lies_within_the_header() {
    let with_name = |at: u32, len: u32| {
        let mut image = good();
        put(&mut image, 16, BACKING_FILE);
        put(&mut image, 56, u64::from(at) | u64::from(len) << 32);
        check(&image[..]).header
    };
    assert_eq!(with_name(64, 4032), []);
    assert_eq!(with_name(64, 4033), [HeaderFault::BackingName]);
    assert_eq!(with_name(u32::MAX, u32::MAX), [HeaderFault::BackingName]);
}

#[test]
fn several_header_faults_are_all_named() {
    let mut image = good();
    put(&mut image, 12, 9);
    put(&mut image, 40, 1);
    put(&mut image, 48, 1);
    let faults = [HeaderFault::HeaderSize(9), HeaderFault::L1Table(1), HeaderFault::ImageSize(1)];
    assert_eq!(check(&image[..]).header, faults);
}

#[test]
fn each_kind_of_damage_is_named() {
    use DamageKind as D;
    let end = 8 * CLUSTER;
    let (l1, l2) = (Entry::L1(1), Entry::L2(0, 4));
    let cases: &[(&str, Entry, u64, DamageKind)] = &[
        ("data cluster referenced twice", l2, DATA_AT, D::Shared),
        ("data in an L2 table", l2, L2_AT, D::Shared),
        ("data in an L2 table's second cluster", l2, L2_AT + CLUSTER, D::Shared),
        ("data in the L1 table", l2, L1_AT, D::InL1Table),
        ("data in the L1 table's second cluster", l2, L1_AT + CLUSTER, D::InL1Table),
        ("data at the end of the file", l2, end, D::BeyondFile),
        ("data far beyond the file", l2, !0xfff, D::BeyondFile),
        ("data unaligned", l2, DATA_AT | 0x800, D::ReservedBits),
        ("data with a reserved bit", l2, (DATA_AT + 2 * CLUSTER) | 2, D::ReservedBits),
        ("data at a small odd number", l2, 3, D::ReservedBits),
        ("table in the L1 table", l1, L1_AT, D::InL1Table),
        ("table beginning in the L1 table", l1, L1_AT + CLUSTER, D::InL1Table),
        ("table in use already", l1, L2_AT, D::Shared),
        ("table overlapping a table", l1, L2_AT + CLUSTER, D::Shared),
        ("table over data", l1, DATA_AT, D::Shared),
        ("table partly beyond the file", l1, end - CLUSTER, D::TablePastEnd),
        ("table beyond the file", l1, end, D::BeyondFile),
        ("table at the end of the world", l1, !0xfff, D::BeyondFile),
        ("table marked as zeroes", l1, 1, D::ReservedBits),
    ];
    for (name, entry, value, kind) in cases {
        let mut image = good();
        match entry {
            Entry::L1(index) => put(&mut image, L1_AT + 8 * index, *value),
            Entry::L2(_, index) => put(&mut image, L2_AT + 8 * index, *value),
        }
        let report = check(&image[..]);
        assert_eq!((report.damage_count, report.damage.len()), (1, 1), "{name}: {report:?}");
        assert_eq!(
            report.damage[0],
            Damage { place: *entry, value: *value, kind: *kind },
            "{name}"
        );
        assert!(report.judge_crash().unwrap_err().starts_with("I3"), "{name}");

        put(&mut image, 16, NEED_CHECK);
        let report = check(&image[..]);
        assert!(report.need_check, "{name}");
        let is_dangling = matches!(kind, D::BeyondFile | D::TablePastEnd);
        assert_eq!(report.judge_crash().is_ok(), is_dangling, "{name}");
    }
}

#[test]
fn bits_below_a_larger_cluster_size_are_zero_too_and_a_header_has_several_clusters() {
    let (cluster, len) = (16384_u64, 6 * 16384_u64);
    let mut image = vec![0; len as usize];
    image[..4].copy_from_slice(b"QED\0");
    put(&mut image, 4, cluster | 1 << 32);
    put(&mut image, 12, 2);
    put(&mut image, 40, 2 * cluster);
    put(&mut image, 48, 64 * cluster);
    put(&mut image, 2 * cluster, 3 * cluster);
    let with_entry = |value| {
        let mut image = image.clone();
        put(&mut image, 3 * cluster, value);
        let damage = check(&image[..]).damage;
        damage.first().map(|damage| damage.kind)
    };
    assert_eq!(with_entry(4 * cluster), None);
    assert_eq!(with_entry(4 * cluster + 4096), Some(DamageKind::Unaligned));
    assert_eq!(with_entry(cluster), Some(DamageKind::InHeader));
    assert_eq!(with_entry(3 * cluster), Some(DamageKind::Shared));
    assert_eq!(with_entry(5 * cluster), None);
    assert_eq!(with_entry(6 * cluster), Some(DamageKind::BeyondFile));
}

#[test]
fn the_list_of_damage_ends_and_the_count_does_not() {
    let mut image = good();
    for index in 100..600 {
        put(&mut image, L2_AT + 8 * index, DATA_AT);
    }
    let report = check(&image[..]);
    assert_eq!((report.damage.len(), report.damage_count, report.harmful_count), (64, 500, 500));
}

#[test]
fn entries_beyond_the_disk_are_counted_and_no_damage() {
    let mut image = good();
    put(&mut image, 48, 3 * CLUSTER + 512);
    assert_eq!(
        check(&image[..]).beyond_image_size,
        0,
        "the last cluster is in part within the disk"
    );
    put(&mut image, 48, 3 * CLUSTER);
    let report = check(&image[..]);
    assert_eq!((report.beyond_image_size, report.is_sound()), (1, true));
    put(&mut image, 48, 0);
    assert_eq!(check(&image[..]).beyond_image_size, 4, "an L1 entry and three L2 entries");
}

#[test]
fn a_tail_that_is_no_whole_cluster_is_neither_leaked_nor_damage() {
    let mut image = good();
    image.truncate(7 * CLUSTER as usize + 1);
    assert_eq!(check(&image[..]).leaked_clusters, 0);
    put(&mut image, L2_AT + 32, 7 * CLUSTER);
    let report = check(&image[..]);
    assert_eq!((report.partial_clusters, report.leaked_clusters), (1, 0));
    assert!(report.is_sound());
    image.truncate(7 * CLUSTER as usize);
    assert_eq!(check(&image[..]).damage[0].kind, DamageKind::BeyondFile);
}

#[test]
fn the_disk_reads_through_the_tables() {
    let image = good();
    let qed = Qed::open(&image[..]).unwrap();
    assert_eq!(qed.image_size(), 64 * CLUSTER);
    assert!(!qed.needs_check() && !qed.has_backing());
    assert_eq!(qed.metadata(), [0..CLUSTER, L1_AT..L1_AT + 8192, L2_AT..L2_AT + 8192]);
    assert_eq!(qed.lookup(5), Ok(Mapping::Data(DATA_AT + 5)));
    assert_eq!(qed.lookup(CLUSTER), Ok(Mapping::Zero));
    assert_eq!(qed.lookup(u64::MAX), Ok(Mapping::Unallocated));

    let mut bytes = vec![0xaa; 10 + 3 * CLUSTER as usize];
    let backing = |at: u64, into: &mut [u8]| {
        assert_eq!((at, into.len()), (2 * CLUSTER, 4096));
        into.fill(0xbb);
    };
    qed.read_disk(CLUSTER - 10, &mut bytes, OnDamage::Fail, backing).unwrap();
    let runs: Vec<_> = bytes.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect();
    assert_eq!(runs, [(0xd1, 10), (0, 4096), (0xbb, 4096), (0xd2, 4096)]);
}

#[test]
fn reading_through_damage_fails_or_takes_it_for_unallocated() {
    let mut image = good();
    put(&mut image, L2_AT, 9 * CLUSTER);
    put(&mut image, L1_AT + 8, 1);
    let qed = Qed::open(&image[..]).unwrap();
    let second_l1 = CLUSTER * 1024;
    for at in [0, second_l1] {
        let mut bytes = [0xaa; 16];
        let backing = |_, into: &mut [u8]| into.fill(0xbb);
        assert!(qed.read_disk(at, &mut bytes, OnDamage::Fail, backing).is_err(), "{at}");
        qed.read_disk(at, &mut bytes, OnDamage::Unallocated, backing).unwrap();
        assert_eq!(bytes, [0xbb; 16]);
    }
}

/// Random bytes over header and tables, and a random end: nothing panics, and what is sound can be read.
#[test]
fn no_image_makes_it_panic() {
    let mut rng = io_engine::Rng::new(11);
    let mut sound = 0;
    for _ in 0..20_000 {
        let mut image = good();
        for _ in 0..1 + rng.index(4) {
            let at = [0, 0, L1_AT, L2_AT][rng.index(4)] + 8 * rng.below(9);
            let value = match rng.below(4) {
                0 => rng.bits(),
                1 => rng.below(10) * CLUSTER,
                2 => rng.below(8),
                _ => 1 << rng.below(64),
            };
            put(&mut image, at, value);
        }
        if rng.chance(300) {
            image.truncate(rng.index(image.len()));
        }
        let report = check(&image[..]);
        if let Ok(qed) = Qed::open(&image[..]) {
            let mut bytes = [0; 9000];
            let at = rng.below(qed.image_size().max(1));
            let result = qed.read_disk(at, &mut bytes, OnDamage::Fail, |_, into| into.fill(0));
            assert!(result.is_ok() || !report.is_sound(), "{report:?}");
        }
        sound += u32::from(report.is_sound());
    }
    assert!((1000..19_000).contains(&sound), "{sound} sound images of 20,000");
}
