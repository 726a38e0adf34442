//! Images that are not what they should be: each is refused, accepted or mended, as the row says, and never written to before that is decided.
//!
//! The images are made by hand ([`crate::common::craft`]). Of each: a read-only open changes no byte of the file, and neither does a refusal.

use crate::common::craft::*;
use crate::common::{Dir, Disk, PLAIN, Way, options, qemu};
use block::{BackingFiles, CacheMode, ErrorKind, Format, Image, OpenOptions};
use std::path::Path;

const SECTOR: u64 = 512;

/// Opens for reading and for writing; both are refused in this way, and the file stays as it is.
fn refused(name: &str, image: &Craft, kind: ErrorKind) {
    let dir = Dir::new();
    let path = dir.file("bad.qed", &image.0);
    for read_only in [true, false] {
        match Disk::open(&path, PLAIN, read_only) {
            Ok(_) => panic!("{name} (read_only {read_only}): it was opened"),
            Err(error) => assert_eq!(error.kind(), kind, "{name}: {error}"),
        }
        assert!(std::fs::read(&path).unwrap() == image.0, "{name}: the file was written to");
    }
}

/// Opens for reading and reads what is there; the file stays as it is.
fn reads_good(name: &str, image: &Craft) {
    let dir = Dir::new();
    let path = dir.file("good.qed", &image.0);
    let disk = Disk::open(&path, PLAIN, true).unwrap_or_else(|error| panic!("{name}: {error}"));
    for (n, byte) in BYTES.into_iter().enumerate() {
        assert_eq!(disk.read(n as u64 * CLUSTER, CLUSTER).unwrap(), [byte; 4096], "{name}");
    }
    assert_eq!(disk.read(2 * CLUSTER, CLUSTER).unwrap(), [0; 4096], "{name}");
    disk.close().unwrap();
    assert!(std::fs::read(&path).unwrap() == image.0, "{name}: the file was written to");
}

/// Opens for writing, writes a sector of a cluster that is not allocated, closes; gives the file.
fn write_one(name: &str, image: &Craft) -> Craft {
    let dir = Dir::new();
    let path = dir.file("good.qed", &image.0);
    let disk = Disk::open(&path, PLAIN, false).unwrap_or_else(|error| panic!("{name}: {error}"));
    disk.write(7 * CLUSTER + SECTOR, &[0xC3; 512]).unwrap();
    disk.close().unwrap();
    let disk = Disk::open(&path, PLAIN, true).unwrap();
    let expected = [vec![0; 512], vec![0xC3; 512], vec![0; 3072]].concat();
    assert_eq!(disk.read(7 * CLUSTER, CLUSTER).unwrap(), expected, "{name}: foreign bytes");
    for (n, byte) in BYTES.into_iter().enumerate() {
        assert_eq!(disk.read(n as u64 * CLUSTER, CLUSTER).unwrap(), [byte; 4096], "{name}");
    }
    Craft(std::fs::read(&path).unwrap())
}

#[test]
fn the_image_that_the_rows_spoil_is_good() {
    reads_good("good", &Craft::good());
    write_one("good", &Craft::good());
    if qemu::is_there() {
        let dir = Dir::new();
        let path = dir.file("good.qed", &Craft::good().0);
        let clean = qemu::Found { corruptions: 0, leaks: 0 };
        assert_eq!(qemu::check("qed", &path), clean);
    }
}

#[test]
fn a_header_with_a_field_out_of_range_is_refused() {
    use ErrorKind::{Corrupt, Unsupported};
    let word = |value: u32| value.to_le_bytes().to_vec();
    let long = |value: u64| value.to_le_bytes().to_vec();
    let rows: Vec<(&str, usize, Vec<u8>, ErrorKind)> = vec![
        ("magic", 0, b"QEDX".to_vec(), Corrupt),
        ("magic of qcow2", 0, b"QFI\xfb".to_vec(), Corrupt),
        ("cluster size 0", 4, word(0), Corrupt),
        ("cluster size 4095", 4, word(4095), Corrupt),
        ("cluster size 2 KiB", 4, word(2048), Corrupt),
        ("cluster size 12 KiB", 4, word(12288), Corrupt),
        ("cluster size 128 MiB", 4, word(128 << 20), Corrupt),
        ("cluster size 2^31", 4, word(1 << 31), Corrupt),
        ("cluster size larger than the file", 4, word(64 << 20), Corrupt),
        ("table size 0", 8, word(0), Corrupt),
        ("table size 3", 8, word(3), Corrupt),
        ("table size 17", 8, word(17), Corrupt),
        ("table size 32", 8, word(32), Corrupt),
        ("table size 2^31", 8, word(1 << 31), Corrupt),
        ("header size 0", 12, word(0), Corrupt),
        ("header size larger than the file", 12, word(11), Corrupt),
        ("header size over 32 bits of bytes", 12, word(1 << 20), Corrupt),
        ("header size at its largest", 12, word(u32::MAX), Corrupt),
        ("unknown feature 3", AT_FEATURES, long(8), Unsupported),
        ("unknown feature 63", AT_FEATURES, long(1 << 63), Unsupported),
        ("L1 table at 0", 40, long(0), Corrupt),
        ("L1 table not on a cluster boundary", 40, long(L1 + 512), Corrupt),
        ("L1 table in the header", 40, long(CLUSTER), Corrupt),
        ("L1 table's end beyond the file", 40, long(FILE - CLUSTER), Corrupt),
        ("L1 table beyond the file", 40, long(1 << 40), Corrupt),
        ("L1 table's end wraps", 40, long(CLUSTER.wrapping_neg()), Corrupt),
        ("image size of half a sector", 48, long(DISK + 256), Corrupt),
        ("image size of one byte more", 48, long(DISK + 1), Corrupt),
        ("image size beyond the tables", 48, long(ENTRIES * ENTRIES * CLUSTER + 512), Corrupt),
        ("image size 2^63", 48, long(1 << 63), Corrupt),
        ("image size at its largest", 48, long(u64::MAX - 511), Corrupt),
    ];
    for (name, at, bytes, kind) in rows {
        let mut image = Craft::good();
        image.0[at..at + bytes.len()].copy_from_slice(&bytes);
        refused(name, &image, kind);
    }
}

#[test]
fn a_file_without_a_whole_header_is_refused() {
    for len in [0, 4, 63, 64, 4096, 8191, 16383] {
        let image = Craft(Craft::good().0[..len].to_vec());
        refused(&format!("{len} bytes"), &image, ErrorKind::Corrupt);
    }
}

#[test]
fn values_at_the_edge_of_what_is_allowed_are_accepted() {
    let edit = |f: &dyn Fn(&mut Craft)| {
        let mut image = Craft::good();
        f(&mut image);
        image
    };
    let rows = [
        ("unknown compatible feature", edit(&|image| image.set64(AT_COMPAT, 1 << 62))),
        ("unknown autoclear feature", edit(&|image| image.set64(AT_AUTOCLEAR, 1 << 62))),
        ("largest disk", edit(&|image| image.set64(48, ENTRIES * ENTRIES * CLUSTER))),
        ("fields of an absent backing file", edit(&|image| image.set64(56, u64::MAX))),
        ("no-probe without a backing file", edit(&|image| image.set64(AT_FEATURES, 4))),
        ("bytes behind the header's fields", edit(&|image| image.fill(64..8192, 0xFF))),
    ];
    for (name, image) in rows {
        reads_good(name, &image);
        write_one(name, &image);
    }
}

#[test]
fn a_table_of_one_cluster_is_accepted() {
    // QEMU refuses it; the specification allows it.
    let mut image = Craft::good();
    image.set32(8, 1);
    // The L2 tables are half as long now, and L1 entry 1 is for clusters 512 on: 768 clusters of them exist.
    image.set64(48, 3 << 20);
    reads_good("table size 1", &image);
    write_one("table size 1", &image);
}

#[test]
fn a_disk_of_no_bytes_is_accepted() {
    let mut image = Craft::good();
    image.set64(48, 0);
    let dir = Dir::new();
    let path = dir.file("empty.qed", &image.0);
    for read_only in [true, false] {
        let disk = Disk::open(&path, PLAIN, read_only).unwrap();
        assert_eq!(disk.bytes, 0);
        disk.flush().unwrap();
        disk.close().unwrap();
    }
}

#[test]
fn unknown_autoclear_bits_go_when_the_image_is_opened_for_writing_and_only_then() {
    let mut image = Craft::good();
    image.set64(AT_AUTOCLEAR, 0xF0F0);
    image.set64(AT_COMPAT, 0x0F0F);
    reads_good("autoclear", &image);
    let after = write_one("autoclear", &image);
    assert_eq!((after.get64(AT_AUTOCLEAR), after.get64(AT_COMPAT)), (0, 0x0F0F));
    // Before the first write, as whatever they vouch for may be wrong from then on.
    let dir = Dir::new();
    let path = dir.file("auto.qed", &image.0);
    let disk = Disk::open(&path, PLAIN, false).unwrap();
    assert_eq!(Craft(std::fs::read(&path).unwrap()).get64(AT_AUTOCLEAR), 0);
    disk.close().unwrap();
}

#[test]
fn an_image_that_needs_a_check_is_checked_when_it_is_opened_for_writing_and_only_then() {
    let mut image = Craft::good();
    image.set64(AT_FEATURES, NEED_CHECK);
    reads_good("need check", &image);
    let after = write_one("need check", &image);
    assert_eq!(after.get64(AT_FEATURES), 0);
    // With something to mend.
    image.set_l2(5, FILE + 3 * CLUSTER);
    let after = write_one("need check, reference beyond the file", &image);
    assert_eq!((after.get64(AT_FEATURES), after.get64((L2[0] + 40) as usize)), (0, 0));
    // With something that cannot be mended.
    image.set_l2(5, DATA[0]);
    let dir = Dir::new();
    let path = dir.file("bad.qed", &image.0);
    assert_eq!(Disk::open(&path, PLAIN, false).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(std::fs::read(&path).unwrap() == image.0);
    reads_good("need check, doubled", &image);
}

/// What a bad table entry does to a read-only disk, and what to an open for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bad {
    /// Requests that need it fail; opening for writing is refused.
    Refused,
    /// Requests that need it fail; opening for writing drops it, as a crash may have left it.
    Dropped,
    /// Reads find what it refers to: only all tables together show what is wrong. Opening for writing is refused.
    Doubled,
}

/// Tries an image whose entry for the disk's bytes at `at` is bad.
fn try_bad(name: &str, image: &Craft, at: u64, bad: Bad) {
    let dir = Dir::new();
    let path = dir.file("bad.qed", &image.0);
    let disk = Disk::open(&path, PLAIN, true).unwrap_or_else(|error| panic!("{name}: {error}"));
    match (disk.read(at, CLUSTER), bad) {
        (Ok(_), Bad::Doubled) => {}
        (Err(error), Bad::Refused | Bad::Dropped) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
        }
        (other, _) => panic!("{name}: {other:?}"),
    }
    // Other requests are not harmed, and one that needs more fails as a whole.
    assert_eq!(disk.read(0, CLUSTER).unwrap(), [BYTES[0]; 4096], "{name}");
    assert_eq!(disk.read(0, DISK).is_err(), bad != Bad::Doubled, "{name}");
    disk.close().unwrap();
    assert!(std::fs::read(&path).unwrap() == image.0, "{name}: the file was written to");
    match (Disk::open(&path, PLAIN, false), bad) {
        (Err(error), Bad::Refused | Bad::Doubled) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
            assert!(std::fs::read(&path).unwrap() == image.0, "{name}: the file was written to");
        }
        (Ok(disk), Bad::Dropped) => {
            assert_eq!(disk.read(at, CLUSTER).unwrap(), [0; 4096], "{name}");
            disk.write(at, &[0xD4; 512]).unwrap();
            assert_eq!(disk.read(0, CLUSTER).unwrap(), [BYTES[0]; 4096], "{name}");
            disk.close().unwrap();
            if qemu::is_there() {
                assert_eq!(qemu::check("qed", &path).corruptions, 0, "{name}");
            }
        }
        (other, _) => panic!("{name}: {:?}", other.map(|_| "opened for writing")),
    }
}

#[test]
fn bad_l1_entries() {
    let rows = [
        ("low bits", L2[1] + 1, Bad::Refused),
        ("not on a cluster boundary", L2[1] + 512, Bad::Refused),
        ("1 is no zero table", 1, Bad::Refused),
        ("in the header", CLUSTER, Bad::Refused),
        ("the L1 table", L1, Bad::Doubled),
        ("the second half of the L1 table", L1 + CLUSTER, Bad::Doubled),
        ("another table", L2[0], Bad::Doubled),
        ("half another table", L2[0] + CLUSTER, Bad::Doubled),
        ("data", DATA[0], Bad::Doubled),
        ("a table cut by the file's end", FILE - CLUSTER, Bad::Refused),
        ("at the file's end", FILE, Bad::Dropped),
        ("beyond the file's end", 1 << 40, Bad::Dropped),
        ("its end wraps", CLUSTER.wrapping_neg(), Bad::Dropped),
        ("all ones", u64::MAX, Bad::Refused),
    ];
    for (name, value, bad) in rows {
        let mut image = Craft::good();
        image.set_l1(1, value);
        // What the table holds there is no valid entry, for whoever looks into the wrong place: so `Doubled` says it was followed.
        let at = ENTRIES * CLUSTER + 100 * CLUSTER;
        if name == "data" {
            image.fill(DATA[0]..DATA[0] + CLUSTER, BYTES[0]);
            let dir = Dir::new();
            let path = dir.file("bad.qed", &image.0);
            let disk = Disk::open(&path, PLAIN, true).unwrap();
            assert_eq!(disk.read(at, CLUSTER).unwrap_err().kind(), ErrorKind::Corrupt);
            drop(disk);
            let error = Disk::open(&path, PLAIN, false).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            continue;
        }
        try_bad(&format!("L1 entry: {name}"), &image, at, bad);
    }
}

#[test]
fn bad_l2_entries() {
    let rows = [
        ("reserved value 2", 2, Bad::Refused),
        ("reserved value 4095", 4095, Bad::Refused),
        ("a cluster with low bits", FILE + 1, Bad::Refused),
        ("not on a cluster boundary", DATA[0] + 512, Bad::Refused),
        ("in the header", CLUSTER, Bad::Refused),
        ("the L1 table", L1, Bad::Doubled),
        ("the second half of the L1 table", L1 + CLUSTER, Bad::Doubled),
        ("the table it stands in", L2[0], Bad::Doubled),
        ("the second half of another table", L2[1] + CLUSTER, Bad::Doubled),
        ("another entry's cluster", DATA[1], Bad::Doubled),
        ("at the file's end", FILE, Bad::Dropped),
        ("beyond the file's end", 1 << 62, Bad::Dropped),
        ("its end wraps", CLUSTER.wrapping_neg(), Bad::Dropped),
        ("all ones", u64::MAX, Bad::Refused),
    ];
    for (name, value, bad) in rows {
        for cluster in [3, 1023, 1024, 1535] {
            let mut image = Craft::good();
            image.set_l2(cluster, value);
            try_bad(&format!("L2 entry {cluster}: {name}"), &image, cluster * CLUSTER, bad);
        }
    }
}

#[test]
fn entries_that_the_disk_does_not_need_count_as_well() {
    // The disk has 1536 clusters: entry 1536 and L1 entry 2 are beyond it.
    let mut image = Craft::good();
    image.set_l2(1536, DATA[1] + 512);
    reads_good("L2 entry beyond the disk", &image);
    let dir = Dir::new();
    let path = dir.file("bad.qed", &image.0);
    assert_eq!(Disk::open(&path, PLAIN, false).unwrap_err().kind(), ErrorKind::Corrupt);
    let mut image = Craft::good();
    image.set_l1(2, L2[0]);
    reads_good("L1 entry beyond the disk", &image);
    let path = dir.file("bad2.qed", &image.0);
    assert_eq!(Disk::open(&path, PLAIN, false).unwrap_err().kind(), ErrorKind::Corrupt);
    // Good ones keep what they refer to from being used again.
    let mut image = Craft::good();
    image.0.extend([0x77; 4096]);
    image.set_l2(1536, FILE);
    let after = write_one("a good entry beyond the disk", &image);
    assert!(after.0[FILE as usize..][..4096] == [0x77; 4096]);
}

#[test]
fn what_follows_the_last_cluster_is_kept_until_space_is_needed_and_never_shows() {
    for extra in [1, 511, 512, 4095, 4096, 4097, 20000] {
        let mut image = Craft::good();
        image.0.extend(vec![0x77; extra]);
        let name = format!("{extra} bytes behind the last cluster");
        reads_good(&name, &image);
        let dir = Dir::new();
        let path = dir.file("tail.qed", &image.0);
        let disk = Disk::open(&path, PLAIN, false).unwrap();
        assert_eq!(disk.read(0, CLUSTER).unwrap(), [BYTES[0]; 4096]);
        // In place, so nothing is allocated.
        disk.write(CLUSTER, &[BYTES[1]; 512]).unwrap();
        disk.close().unwrap();
        assert!(std::fs::read(&path).unwrap()[FILE as usize..].starts_with(&[0x77]), "{name}");
        write_one(&name, &image);
    }
}

#[test]
fn leaked_clusters_are_used_again_and_what_they_held_never_shows() {
    let mut image = Craft::good();
    // Cluster 1 of the disk lets go of its cluster; another one lies behind.
    image.0.extend([BYTES[1]; 4096]);
    image.set_l2(1, FILE);
    let name = "a leaked cluster in the middle";
    write_one(name, &image);
    let dir = Dir::new();
    let path = dir.file("leak.qed", &image.0);
    let disk = Disk::open(&path, PLAIN, false).unwrap();
    for cluster in 100..110 {
        disk.write(cluster * CLUSTER + 1024, &[0xC3; 512]).unwrap();
        disk.flush().unwrap();
    }
    for cluster in 100..110 {
        let expected = [vec![0; 1024], vec![0xC3; 512], vec![0; 2560]].concat();
        assert_eq!(disk.read(cluster * CLUSTER, CLUSTER).unwrap(), expected);
    }
    disk.close().unwrap();
}

#[test]
fn a_last_cluster_cut_by_the_files_end_reads_as_zeroes_there() {
    let mut image = Craft::good();
    image.0.truncate((FILE - 1024) as usize);
    let dir = Dir::new();
    let path = dir.file("cut.qed", &image.0);
    let expected = [vec![BYTES[1]; 3072], vec![0; 1024]].concat();
    for read_only in [true, false, true] {
        let disk = Disk::open(&path, PLAIN, read_only).unwrap();
        assert_eq!(disk.read(CLUSTER, CLUSTER).unwrap(), expected, "read_only {read_only}");
        if !read_only {
            disk.write(9 * CLUSTER, &[1; 512]).unwrap();
        }
        assert_eq!(disk.read(CLUSTER, CLUSTER).unwrap(), expected, "read_only {read_only}");
        disk.close().unwrap();
    }
}

#[test]
fn a_file_that_is_cut_while_it_is_open_fails_requests_or_reads_as_zeroes() {
    for len in [0, 100, L1, L2[0] + 8, DATA[0] + 512, FILE - 1] {
        for read_only in [true, false] {
            let dir = Dir::new();
            let path = dir.file("cut.qed", &Craft::good().0);
            let disk = Disk::open(&path, PLAIN, read_only).unwrap();
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
            for cluster in [0, 1, 2, 3, 1024] {
                let Ok(found) = disk.read(cluster * CLUSTER, CLUSTER) else { continue };
                let own = BYTES.get(cluster as usize).copied().unwrap_or(0);
                assert!(found.iter().all(|byte| [0, own].contains(byte)), "{len} {cluster}");
            }
            if !read_only {
                // Whatever they say; nothing may panic or hang.
                let _ = disk.write(5 * CLUSTER, &[1; 512]);
                let _ = disk.write(0, &[1; 512]);
                let _ = disk.flush();
            }
            let _ = disk.close();
        }
    }
}

#[test]
fn a_file_that_grows_while_it_is_open_changes_nothing() {
    let dir = Dir::new();
    let path = dir.file("grown.qed", &Craft::good().0);
    let disk = Disk::open(&path, PLAIN, true).unwrap();
    let mut bytes = Craft::good().0;
    bytes.extend([0x77; 10000]);
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(disk.read(CLUSTER, CLUSTER).unwrap(), [BYTES[1]; 4096]);
    disk.close().unwrap();
    assert!(std::fs::read(&path).unwrap() == bytes);
}

/// Makes a sparse file of `len` bytes that begins with these.
fn sparse(dir: &Dir, start: &[u8], len: u64) -> std::path::PathBuf {
    let path = dir.file("sparse.qed", start);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
    path
}

#[test]
fn a_sparse_file_of_some_terabytes_opens_at_once() {
    // As long as ext4 lets a file be.
    let dir = Dir::new();
    let path = sparse(&dir, &Craft::good().0, 15 << 40);
    for read_only in [true, false] {
        let disk = Disk::open(&path, PLAIN, read_only).unwrap();
        assert_eq!(disk.read(0, CLUSTER).unwrap(), [BYTES[0]; 4096]);
        disk.close().unwrap();
    }
    let disk = Disk::open(&path, PLAIN, false).unwrap();
    disk.write(5 * CLUSTER, &[5; 512]).unwrap();
    disk.close().unwrap();
    let disk = Disk::open(&path, PLAIN, true).unwrap();
    assert_eq!(disk.read(5 * CLUSTER, 512).unwrap(), [5; 512]);
}

#[test]
fn tables_of_a_gigabyte_in_a_sparse_file_are_not_read_where_they_are_holes() {
    let dir = Dir::new();
    let mut image = Craft::good();
    image.0.truncate(64);
    for (at, value) in [(4, 64 << 20), (8, 16), (12, 1)] {
        image.set32(at, value);
    }
    image.set64(40, 64 << 20);
    image.set64(48, (1 << 63) - 512);
    let path = sparse(&dir, &image.0, 15 << 40);
    for read_only in [true, false] {
        let disk = Disk::open(&path, PLAIN, read_only).unwrap();
        assert_eq!(disk.read((1 << 63) - 1024, 512).unwrap(), [0; 512]);
        disk.close().unwrap();
    }
}

#[test]
fn a_header_of_terabytes_is_refused() {
    // It would fit into the file; counted in bytes, it does not fit into 32 bits, and QEMU refuses it for that.
    let dir = Dir::new();
    let mut image = Craft::good();
    image.set32(12, 1 << 31);
    image.set64(40, 1 << 43);
    let path = sparse(&dir, &image.0, 15 << 40);
    for read_only in [true, false] {
        let error = Disk::open(&path, PLAIN, read_only).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}

#[test]
fn bad_backing_fields_are_refused() {
    let edit = |at: usize, value: u32| {
        let mut image = Craft::over(b"base", true);
        image.set32(at, value);
        image
    };
    let rows = [
        ("name in the header's fields", edit(56, 60)),
        ("name at 0", edit(56, 0)),
        ("name reaches beyond the header", edit(56, 8192 - 3)),
        ("name beyond the header", edit(56, 8192)),
        ("name's end beyond 32 bits", edit(56, u32::MAX)),
        ("name of 0 bytes", edit(60, 0)),
        ("name of 1024 bytes", edit(60, 1024)),
        ("name's length at its largest", edit(60, u32::MAX)),
    ];
    for (name, image) in rows {
        refused(name, &image, ErrorKind::Corrupt);
    }
}

#[test]
fn a_backing_name_is_a_plain_path_or_refused() {
    let mut rows = crate::bad_backing_names("bad.qed");
    for name in [&b"ba\0se"[..], b"base\0", b"\0"] {
        rows.push((name.to_vec(), ErrorKind::Unsupported));
    }
    for (name, kind) in rows {
        for raw in [true, false] {
            let shown = String::from_utf8_lossy(&name);
            refused(&format!("backing name {shown:?}, raw {raw}"), &Craft::over(&name, raw), kind);
        }
    }
}

#[test]
fn a_backing_file_is_opened_with_consent_only() {
    let dir = Dir::new();
    dir.file("base", &[0x99; 8192]);
    let path = dir.file("over.qed", &Craft::over(b"base", true).0);
    for read_only in [true, false] {
        let consent = options(Format::Qed, PLAIN, read_only);
        let refuse = OpenOptions { backing_files: BackingFiles::Refuse, ..consent.clone() };
        let error = Image::open(&path, &refuse).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest, "{error}");
        let image = Image::open(&path, &consent).unwrap();
        let base = image.backing().unwrap();
        assert!(base.options().read_only && base.format() == Format::Raw);
    }
    assert!(std::fs::read(&path).unwrap() == Craft::over(b"base", true).0);
}

#[test]
fn a_raw_backing_file_is_never_taken_for_an_image() {
    // A guest may write any bytes to its disk, a QED header that names another file included.
    let dir = Dir::new();
    dir.file("secret", b"secret");
    let inner = Craft::over(b"secret", true);
    dir.file("base", &inner.0);
    let path = dir.file("over.qed", &Craft::over(b"base", true).0);
    let disk = Disk::open(&path, PLAIN, true).unwrap();
    assert!(disk.read(12 * CLUSTER, CLUSTER).unwrap() == [0; 4096]);
    assert_eq!(disk.read(4 * CLUSTER, CLUSTER).unwrap(), inner.0[16384..20480]);
    // A format that is known and not supported is not raw.
    dir.file("base", b"KDMV\x01\0\0\0");
    let path = dir.file("probe.qed", &Craft::over(b"base", false).0);
    let error = Image::open(&path, &options(Format::Qed, PLAIN, true)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn what_a_backing_image_maps_beyond_its_disk_does_not_show() {
    let dir = Dir::new();
    let mut base = Craft::good();
    base.0.extend([0x77; 4096]);
    base.set_l2(DISK / CLUSTER, FILE);
    dir.file("base", &base.0);
    let mut over = Craft::over(b"base", false);
    over.set64(48, DISK + (1 << 20));
    over.set_l2(1, 0);
    let path = dir.file("over.qed", &over.0);
    let disk = Disk::open(&path, PLAIN, false).unwrap();
    assert_eq!(disk.read(CLUSTER, CLUSTER).unwrap(), [BYTES[1]; 4096]);
    assert_eq!(disk.read(DISK - CLUSTER, 2 * CLUSTER).unwrap(), [0; 8192]);
    // Copied on write.
    disk.write(DISK + 512, &[3; 512]).unwrap();
    assert_eq!(disk.read(DISK, 512).unwrap(), [0; 512]);
    assert_eq!(disk.read(DISK + 1024, 3072).unwrap(), [0; 3072]);
    disk.close().unwrap();
}

#[test]
fn a_chain_that_bites_its_tail_is_refused() {
    let dir = Dir::new();
    let files = ["a.qed", "b.qed", "c.qed"];
    for (n, name) in files.into_iter().enumerate() {
        let below = files[(n + 1) % 3];
        dir.file(name, &Craft::over(below.as_bytes(), false).0);
    }
    std::os::unix::fs::symlink("b.qed", dir.path("link")).unwrap();
    dir.file("a2.qed", &Craft::over(b"link", false).0);
    dir.file("b2.qed", &Craft::over(b"b2link", false).0);
    std::os::unix::fs::symlink("b2.qed", dir.path("b2link")).unwrap();
    for name in ["a.qed", "a2.qed", "b2.qed"] {
        for read_only in [true, false] {
            let error =
                Image::open(&dir.path(name), &options(Format::Qed, PLAIN, read_only)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadRequest, "{name} {read_only}: {error}");
        }
    }
    for name in files {
        let bytes = std::fs::read(dir.path(name)).unwrap();
        assert_eq!(bytes.len() as u64, FILE, "{name}");
    }
}

#[test]
fn a_chain_has_at_most_200_images() {
    let dir = Dir::new();
    dir.file("0", &[0x99; 65536]);
    for n in 1..=200 {
        let below = format!("{}", n - 1);
        let mut image = Craft::over(below.as_bytes(), n == 1);
        // Nothing of its own.
        image.set_l1(0, 0);
        image.0.truncate(16384);
        image.set_l1(1, 0);
        dir.file(&format!("{n}"), &image.0);
    }
    let top = |n: u32| Image::open(&dir.path(&format!("{n}")), &options(Format::Qed, PLAIN, false));
    assert_eq!(top(200).unwrap_err().kind(), ErrorKind::BadRequest);
    let disk = Disk::attach(top(199).unwrap(), PLAIN.engine).unwrap();
    assert_eq!(disk.read(0, CLUSTER).unwrap(), [0x99; 4096]);
    disk.close().unwrap();
}

#[test]
fn direct_io_refuses_the_same_images() {
    let dir = Dir::new();
    let way = Way { cache: CacheMode::None, ..PLAIN };
    let open = |name: &str, image: &Craft| Disk::open(&dir.file(name, &image.0), way, false);
    let mut image = Craft::good();
    image.set_l2(3, DATA[0]);
    assert_eq!(open("doubled", &image).unwrap_err().kind(), ErrorKind::Corrupt);
    let mut image = Craft::good();
    image.0.extend([0x77; 1000]);
    let disk = open("tail", &image).unwrap();
    disk.write(9 * CLUSTER + 1024, &[3; 512]).unwrap();
    assert_eq!(disk.read(9 * CLUSTER, 1024).unwrap(), [0; 1024]);
    disk.close().unwrap();
    let short = Craft(Craft::good().0[..40].to_vec());
    assert_eq!(open("short", &short).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(read_len(&dir.path("short")), 40);
}

fn read_len(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}
