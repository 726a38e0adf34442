//! Headers that are accepted, and what becomes of them in use.

use super::*;

#[test]
fn values_at_the_edge_of_what_is_allowed_are_accepted() {
    let rows = [
        ("unknown compatible feature", edited(|image| image.set64(AT_COMPATIBLE, 1 << 62))),
        ("unknown autoclear feature", edited(|image| image.set64(AT_AUTOCLEAR, 1 << 62))),
        ("lazy refcounts", edited(|image| image.set64(AT_COMPATIBLE, 1))),
        ("a longer L1 table", edited(|image| image.set32(36, 512))),
        ("a longer refcount table", {
            let mut image = Craft::good();
            let first = image.add(3, 0);
            image.set32(56, 3);
            image.set64(48, PLAIN.at(first));
            (first..first + 3).for_each(|cluster| image.set_count(cluster, 1));
            image.set64(PLAIN.at(first) as usize, PLAIN.at(REFCOUNT_BLOCK));
            image
        }),
        ("a short header", edited(|image| image.set32(100, 104))),
        ("a long header", edited(|image| image.set32(100, 512))),
        ("an unknown extension", {
            edited(|image| {
                image.set32(112, 0x1234_5678);
                image.set32(116, 100);
                image.bytes[120..220].fill(0xFF);
            })
        }),
        ("half a sector more", edited(|image| image.set64(24, PLAIN.disk_bytes() - 256))),
    ];
    for (name, image) in rows {
        reads_good(name, &image);
        let after = write_one(name, &image);
        assert_eq!(after.get64(AT_COMPATIBLE), image.get64(AT_COMPATIBLE), "{name}");
        assert_eq!(after.bytes[112..512], image.bytes[112..512], "{name}: extensions are kept");
    }
}

#[test]
fn unknown_autoclear_bits_go_when_the_image_is_opened_for_writing_and_only_then() {
    let image = edited(|image| image.set64(AT_AUTOCLEAR, 0xF0F0));
    reads_good("autoclear", &image);
    let after = write_one("autoclear", &image);
    assert_eq!(after.get64(AT_AUTOCLEAR), 0);
    // Before the first write, as whatever they vouch for may be wrong from then on.
    let dir = Dir::new();
    let path = make(&dir, &image);
    let disk = Disk::open(&path, WAY, false).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(Craft { bytes, shape: PLAIN }.get64(AT_AUTOCLEAR), 0);
    disk.close().unwrap();
}

#[test]
fn an_image_that_is_marked_corrupt_is_read_and_not_written_to() {
    let image = edited(|image| image.set64(AT_INCOMPATIBLE, CORRUPT));
    reads_good("corrupt", &image);
    refused_as("corrupt", &image, ErrorKind::Corrupt, false);
}

#[test]
fn a_disk_of_no_bytes_is_accepted() {
    for l1_entries in [0, 2] {
        let mut image = Craft::good();
        image.set64(24, 0);
        image.set32(36, l1_entries);
        let dir = Dir::new();
        let path = make(&dir, &image);
        for read_only in [true, false] {
            let disk = Disk::open(&path, WAY, read_only).unwrap();
            assert_eq!(disk.bytes, 0);
            disk.flush().unwrap();
            disk.close().unwrap();
        }
        unchanged("no bytes", &path, &image);
    }
}

#[test]
fn entries_beyond_the_disk_are_not_needed_and_keep_their_clusters() {
    for shape in shapes() {
        let mut image = Craft::new(shape);
        let clusters = shape.disk_bytes() / shape.cluster();
        let extra = image.add(1, 0x77);
        image.set_count(extra, 1);
        image.set_l2(clusters, shape.at(extra) | COPIED);
        image.set_bits(clusters, 0xFFFF_FFFF);
        let name = format!("{shape:?}: an entry beyond the disk");
        reads_good(&name, &image);
        let after = write_one(&name, &image);
        let range = shape.at(extra) as usize..shape.at(extra + 1) as usize;
        assert!(after.bytes[range].iter().all(|byte| *byte == 0x77), "{name}");
        // One that is bad harms nobody either.
        image.set_l2(clusters, shape.at(L1) | COPIED);
        reads_good(&name, &image);
        write_one(&name, &image);
    }
}

#[test]
fn what_a_snapshot_holds_is_not_touched() {
    for shape in shapes().into_iter().filter(|shape| shape.snapshot) {
        let image = Craft::new(shape);
        let dir = Dir::new();
        let path = make(&dir, &image);
        let disk = Disk::open(&path, WAY, false).unwrap();
        let cluster = shape.cluster();
        for n in 0..40 {
            disk.write(n * cluster, &vec![GUEST; cluster as usize]).unwrap();
        }
        disk.discard(0, 20 * cluster).unwrap();
        disk.flush().unwrap();
        disk.close().unwrap();
        let after = std::fs::read(&path).unwrap();
        let range = shape.at(SNAPSHOT_TABLE) as usize..shape.at(SNAPSHOT_DATA + 1) as usize;
        assert!(after[range.clone()] == image.bytes[range], "{shape:?}: the snapshot was changed");
    }
}

#[test]
fn leaked_clusters_are_kept_and_free_ones_never_show_what_they_held() {
    for shape in shapes() {
        for count in [0, 1] {
            let mut image = Craft::new(shape);
            let extra = image.add(3, 0x77);
            (extra..extra + 3).for_each(|cluster| image.set_count(cluster, count));
            image.set_count(extra + 2, 1);
            let dir = Dir::new();
            let path = make(&dir, &image);
            let disk = Disk::open(&path, WAY, false).unwrap();
            let (cluster, half) = (shape.cluster(), shape.cluster() / 2 / 512 * 512);
            let len = (cluster - half).min(512);
            for n in 16..40 {
                disk.write(n * cluster + half, &vec![GUEST; len as usize]).unwrap();
                disk.flush().unwrap();
            }
            for n in 16..40 {
                let found = disk.read(n * cluster, cluster).unwrap();
                let is_own = found.iter().enumerate().all(|(at, byte)| {
                    let written = (half..half + len).contains(&(at as u64));
                    *byte == if written { GUEST } else { 0 }
                });
                assert!(is_own, "{shape:?}, counted {count}: foreign bytes in cluster {n}");
            }
            disk.close().unwrap();
            let after = std::fs::read(&path).unwrap();
            let kept = if count == 1 { extra..extra + 3 } else { extra + 2..extra + 3 };
            let range = shape.at(kept.start) as usize..shape.at(kept.end) as usize;
            assert!(after[range].iter().all(|byte| *byte == 0x77), "{shape:?}: leaks were used");
        }
    }
}
