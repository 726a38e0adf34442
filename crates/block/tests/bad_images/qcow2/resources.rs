//! Small files that claim to be large: nothing is read, kept or gone through because a header says so.

use super::*;
use block::CacheMode;
use std::fs::OpenOptions as FileOptions;

/// Makes the file so long, with a hole behind what it has.
fn stretch(path: &Path, len: u64) {
    FileOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[test]
fn a_sparse_file_of_some_terabytes_opens_at_once_and_is_written_behind_its_end() {
    // As long as ext4 lets a file be, and so there is no room behind it.
    for (shape, len) in
        shapes().into_iter().zip([15u64 << 40, 8 << 40, 1 << 40].into_iter().cycle())
    {
        let image = Craft::new(shape);
        let name = format!("{shape:?}, {len} bytes");
        let dir = Dir::new();
        let path = make(&dir, &image);
        stretch(&path, len);
        for read_only in [true, false] {
            let disk = Disk::open(&path, WAY, read_only).unwrap();
            check_good(&name, &disk, shape);
            disk.close().unwrap();
        }
        let disk = Disk::open(&path, WAY, false).unwrap();
        // No room for what counts it, perhaps; but no damage either.
        let written = disk.write(7 * shape.cluster(), &[GUEST; 512]).and_then(|()| disk.flush());
        if let Err(error) = &written {
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{name}: {error}");
        }
        check_good(&name, &disk, shape);
        let _ = disk.close();
        let disk = Disk::open(&path, WAY, true).unwrap();
        check_good(&name, &disk, shape);
        disk.close().unwrap();
    }
}

#[test]
fn the_largest_tables_in_a_sparse_file() {
    // An L1 table of 32 MiB and a refcount table of 8 MiB, of holes.
    let mut image = Craft::good();
    image.set32(36, 4 << 20);
    image.set64(40, 1 << 30);
    image.set32(56, 2048);
    image.set64(48, 2 << 30);
    image.set64(24, (4 << 20) * 512 * 4096);
    let dir = Dir::new();
    let path = make(&dir, &image);
    stretch(&path, 4 << 30);
    let disk = Disk::open(&path, WAY, true).unwrap();
    assert_eq!(disk.read((4 << 20) * 512 * 4096 - 512, 512).unwrap(), [0; 512]);
    disk.close().unwrap();
    // Nothing is counted, the tables included.
    let disk = Disk::open(&path, WAY, false).unwrap();
    let _ = disk.write(0, &[GUEST; 512]);
    let _ = disk.flush();
    let _ = disk.close();
}

#[test]
fn a_refcount_table_full_of_blocks_that_look_valid() {
    // A file of a MiB that says its refcount table has 8: it reaches beyond the file.
    let image = edited(|image| {
        image.bytes.resize(1 << 20, 0);
        image.set32(56, 2048);
        image.set64(48, PLAIN.at(9));
    });
    refused("a table of 8 MiB in a file of one", &image, ErrorKind::Corrupt);
    // As large as fits, each entry a block of its own, as far as there are clusters.
    let image = edited(|image| {
        image.bytes.resize(1 << 20, 0);
        image.set32(56, 200);
        image.set64(48, PLAIN.at(30));
        for n in 0..200 * 512 {
            image.set64((PLAIN.at(30) + n * 8) as usize, PLAIN.at(9 + n % 20));
        }
    });
    reads_good("blocks twice", &image);
    refused_as("blocks twice", &image, ErrorKind::Corrupt, false);
    let image = edited(|image| {
        image.bytes.resize(1 << 20, 0xFF);
        image.set32(56, 1);
        image.set64(48, PLAIN.at(9));
        image.fill(9, 0);
        for n in 0..240 {
            image.set64((PLAIN.at(9) + n * 8) as usize, PLAIN.at(10 + n));
        }
    });
    reads_good("counts far beyond the file", &image);
    let dir = Dir::new();
    let path = make(&dir, &image);
    match Disk::open(&path, WAY, false) {
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}"),
        Ok(disk) => {
            let _ = disk.write(7 * 4096, &[GUEST; 512]);
            let _ = disk.close();
        }
    }
}

#[test]
fn as_many_snapshots_as_can_be_and_their_tables_nowhere() {
    let mut image = Craft::good();
    image.set32(60, 65536);
    let first = image.add(640, 0);
    image.set64(64, PLAIN.at(first));
    reads_good("65536 snapshots of zeroes", &image);
}

#[test]
fn a_file_that_is_cut_while_it_is_open_fails_requests_or_reads_as_zeroes() {
    let at = |cluster| PLAIN.at(cluster);
    for len in [0, 100, at(L1), at(L2[0]) + 8, at(DATA[0]) + 512, at(9) - 1] {
        for read_only in [true, false] {
            let dir = Dir::new();
            let path = make(&dir, &Craft::good());
            let disk = Disk::open(&path, WAY, read_only).unwrap();
            stretch(&path, len);
            for cluster in [0, 1, 2, 3, 512] {
                let Ok(found) = disk.read(cluster * 4096, 4096) else { continue };
                let own = [BYTES[0], BYTES[1], 0, COMPRESSED_BYTE].get(cluster as usize).copied();
                assert!(found.iter().all(|byte| [0, own.unwrap_or(0)].contains(byte)), "{len}");
            }
            if !read_only {
                // Whatever they say; nothing may panic or hang.
                let _ = disk.write(5 * 4096, &[GUEST; 512]);
                let _ = disk.write(0, &[GUEST; 512]);
                let _ = disk.flush();
            }
            let _ = disk.close();
        }
    }
}

#[test]
fn a_file_that_grows_while_it_is_open_changes_nothing() {
    let dir = Dir::new();
    let path = make(&dir, &Craft::good());
    let disk = Disk::open(&path, WAY, true).unwrap();
    stretch(&path, 1 << 20);
    check_good("grown", &disk, PLAIN);
    disk.close().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
}

#[test]
fn a_file_that_ends_within_its_last_cluster() {
    for cut in [1, 511, 512, 2000] {
        let mut image = Craft::good();
        // Data last.
        let last = image.add(1, 0x77);
        image.set_count(last, 1);
        image.set_l2(6, PLAIN.at(last) | COPIED);
        image.bytes.truncate(image.bytes.len() - cut);
        let name = format!("{cut} bytes short");
        reads_good(&name, &image);
        let dir = Dir::new();
        let path = make(&dir, &image);
        let expected = [vec![0x77; 4096 - cut], vec![0; cut]].concat();
        for read_only in [true, false, true] {
            let disk = Disk::open(&path, WAY, read_only).unwrap();
            assert_eq!(disk.read(6 * 4096, 4096).unwrap(), expected, "{name}");
            if !read_only {
                disk.write(9 * 4096, &[GUEST; 512]).unwrap();
            }
            assert_eq!(disk.read(6 * 4096, 4096).unwrap(), expected, "{name}");
            disk.close().unwrap();
        }
        // What lies there and is not counted never shows.
        image.set_l2(6, 0);
        image.set_count(last, 0);
        write_one(&name, &image);
    }
}

#[test]
fn direct_io_refuses_the_same_images() {
    let way = crate::common::Way { cache: CacheMode::None, ..WAY };
    let dir = Dir::new();
    let mut image = Craft::good();
    image.set_l2(5, PLAIN.at(L1) | COPIED);
    let path = make(&dir, &image);
    let disk = Disk::open(&path, way, false).unwrap();
    let error = disk.write(5 * 4096, &[GUEST; 512]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let _ = disk.close();
    image.set64(AT_INCOMPATIBLE, CORRUPT);
    unchanged("direct", &path, &image);
    let mut image = Craft::good();
    image.set_block(1, 512);
    let path = make(&dir, &image);
    assert_eq!(Disk::open(&path, way, false).unwrap_err().kind(), ErrorKind::Corrupt);
    // Metadata of 512 bytes where the host wants 4096.
    let image = Craft::new(Shape { cluster_bits: 9, ..PLAIN });
    let path = make(&dir, &image);
    let disk = Disk::open(&path, way, false).unwrap();
    check_good("direct", &disk, image.shape);
    disk.write(5 * 512, &[GUEST; 512]).unwrap();
    disk.close().unwrap();
    let disk = Disk::open(&path, way, true).unwrap();
    check_good("direct", &disk, image.shape);
    assert_eq!(disk.read(5 * 512, 512).unwrap(), [GUEST; 512]);
    disk.close().unwrap();
}
