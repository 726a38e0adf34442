//! qcow2 images that are not what they should be: each is refused, accepted, or noticed when what is wrong is needed, as the row says.
//!
//! The images are made by hand ([`crate::common::craft_qcow2`]). What a header may say is tested beside its parser. Of each image: a read-only open
//! changes no byte of the file, and neither does a refusal; and what a guest writes is never in the tables.

mod backing;
mod resources;
mod shared;
mod spread;
mod tables;
mod use_of_it;

use crate::common::craft_qcow2::*;
use crate::common::{Dir, Disk, Way};
use block::{CacheMode, ErrorKind};
use io_engine::EngineKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// No crash comes here, so nothing is synced.
const WAY: Way = Way { engine: EngineKind::Threads, cache: CacheMode::Unsafe };

/// What the guest writes: no table has such words.
const GUEST: u8 = 0xD4;

/// Shapes that have everything.
fn shapes() -> Vec<Shape> {
    let shape = |(version, cluster_bits, order, extended, snapshot)| Shape {
        version,
        cluster_bits,
        order,
        extended,
        snapshot,
    };
    let shapes = [
        (3, 12, 4, false, false),
        (3, 12, 4, false, true),
        (2, 12, 4, false, true),
        (3, 9, 0, false, false),
        (2, 9, 4, false, false),
        (3, 9, 6, false, true),
        (3, 14, 3, true, false),
        (3, 16, 1, true, true),
        (3, 16, 4, false, false),
    ];
    shapes.map(shape).into()
}

fn make(dir: &Dir, image: &Craft) -> PathBuf {
    dir.file("image.qcow2", &image.bytes)
}

fn edited(f: impl Fn(&mut Craft)) -> Craft {
    let mut image = Craft::good();
    f(&mut image);
    image
}

/// The file is still what it was.
fn unchanged(name: &str, path: &Path, image: &Craft) {
    assert!(std::fs::read(path).unwrap() == image.bytes, "{name}: the file was written to");
}

/// Opens in this way; it is refused, and the file stays as it is.
fn refused_as(name: &str, image: &Craft, kind: ErrorKind, read_only: bool) {
    let dir = Dir::new();
    let path = make(&dir, image);
    match Disk::open(&path, WAY, read_only) {
        Ok(_) => panic!("{name} (read_only {read_only}): it was opened"),
        Err(error) => assert_eq!(error.kind(), kind, "{name}: {error}"),
    }
    unchanged(name, &path, image);
}

fn refused(name: &str, image: &Craft, kind: ErrorKind) {
    [true, false].into_iter().for_each(|read_only| refused_as(name, image, kind, read_only));
}

/// What the first clusters of the disk hold: two with data, zeroes, a compressed one.
fn check_good(name: &str, disk: &Disk, shape: Shape) {
    let bytes = [BYTES[0], BYTES[1], 0, COMPRESSED_BYTE];
    for (cluster, byte) in (0..).zip(bytes) {
        let found = disk.read(cluster * shape.cluster(), shape.cluster());
        let found = found.unwrap_or_else(|error| panic!("{name}, cluster {cluster}: {error}"));
        assert!(found.iter().all(|found| *found == byte), "{name}: cluster {cluster}");
    }
}

/// Opens for reading and reads what is there; the file stays as it is.
fn reads_good(name: &str, image: &Craft) {
    let dir = Dir::new();
    let path = make(&dir, image);
    let disk = Disk::open(&path, WAY, true).unwrap_or_else(|error| panic!("{name}: {error}"));
    check_good(name, &disk, image.shape);
    disk.close().unwrap();
    unchanged(name, &path, image);
}

/// Opens for writing, writes a sector of a cluster that is not allocated, closes; what was there and what was written is there then. Gives the file.
fn write_one(name: &str, image: &Craft) -> Craft {
    let dir = Dir::new();
    let path = make(&dir, image);
    let cluster = image.shape.cluster();
    let disk = Disk::open(&path, WAY, false).unwrap_or_else(|error| panic!("{name}: {error}"));
    disk.write(8 * cluster - 512, &[GUEST; 512]).unwrap();
    disk.close().unwrap();
    let disk = Disk::open(&path, WAY, true).unwrap();
    check_good(name, &disk, image.shape);
    let found = disk.read(7 * cluster, cluster).unwrap();
    let (before, written) = found.split_at(found.len() - 512);
    assert!(before.iter().all(|byte| *byte == 0), "{name}: foreign bytes");
    assert_eq!(written, [GUEST; 512], "{name}");
    disk.close().unwrap();
    assert_eq!(guest_bytes_in_tables(&path, image.shape), None, "{name}");
    Craft { bytes: std::fs::read(&path).unwrap(), shape: image.shape }
}

/// Where in the file a guest's bytes are in the header, in a table, or in a refcount block, as far as these can be found.
fn guest_bytes_in_tables(path: &Path, shape: Shape) -> Option<u64> {
    let file = std::fs::File::open(path).unwrap();
    let cluster = |at: u64| {
        let mut bytes = vec![0; shape.cluster() as usize];
        // Less than a cluster at the file's end, and nothing beyond it.
        let _ = file.read_at(&mut bytes, at).unwrap_or(0);
        bytes
    };
    let words = |at: u64, count: u64| -> Vec<u64> {
        let clusters = (count * 8).div_ceil(shape.cluster());
        let bytes: Vec<u8> = (0..clusters).flat_map(|n| cluster(at + shape.at(n))).collect();
        let words = bytes.as_chunks().0.iter().map(|raw| u64::from_be_bytes(*raw));
        words.take(count as usize).collect()
    };
    let header = words(0, 9);
    let (l1, refcounts) = (header[5], header[6]);
    let (l1_entries, clusters) = (header[4] & 0xFFFF_FFFF, header[7] >> 32);
    let mut tables = vec![0];
    tables.extend((0..(l1_entries * 8).div_ceil(shape.cluster())).map(|n| l1 + shape.at(n)));
    tables.extend((0..clusters).map(|n| refcounts + shape.at(n)));
    let places = words(l1, l1_entries).into_iter().map(|entry| entry & 0x00FF_FFFF_FFFF_FE00);
    tables.extend(places.chain(words(refcounts, shape.at(clusters) / 8)).filter(|at| *at != 0));
    if shape.snapshot {
        tables.extend([SNAPSHOT_TABLE, SNAPSHOT_L1].map(|n| shape.at(n)));
    }
    let has_guest = |at: &u64| cluster(*at).as_chunks().0.contains(&[GUEST; 8]);
    tables.into_iter().find(has_guest)
}

#[test]
fn the_images_that_the_rows_spoil_are_good() {
    for shape in shapes() {
        let image = Craft::new(shape);
        let name = format!("{shape:?}");
        reads_good(&name, &image);
        let after = write_one(&name, &image);
        if crate::common::qemu::is_there() {
            let dir = Dir::new();
            for image in [&image, &after] {
                let path = make(&dir, image);
                let clean = crate::common::qemu::Found { corruptions: 0, leaks: 0 };
                assert_eq!(crate::common::qemu::check("qcow2", &path), clean, "{name}");
            }
        }
    }
}
