//! Any sequence of requests against a plain vector of bytes; and the image checked, by the independent checker, each time it was closed.

use crate::qcow2::header::Compression;
use crate::qcow2::{BackingFile, CreateOptions};
use crate::testing::model::{Subject, many};
use io_engine::Rng;
use io_engine::sim::SimDisk;

impl Subject for CreateOptions {
    fn random(rng: &mut Rng, bytes: u64, with_backing: bool) -> CreateOptions {
        let version = if rng.chance(200) { 2 } else { 3 };
        let extended_l2 = version == 3 && rng.chance(300);
        let cluster_bytes = match extended_l2 {
            true => [16384, 65536][rng.index(2)],
            false => [512, 1024, 4096, 4096, 8192, 65536][rng.index(6)],
        };
        let width = if version == 3 { [1, 2, 4, 8, 16, 16, 32, 64][rng.index(8)] } else { 16 };
        CreateOptions {
            version,
            cluster_bytes,
            refcount_bits: width,
            extended_l2,
            compression: Compression::Zlib,
            backing: with_backing
                .then(|| BackingFile { name: b"base".to_vec(), format: Some(b"raw".to_vec()) }),
            ..CreateOptions::new(bytes)
        }
    }

    fn check_closed(disk: &SimDisk, seed: u64) {
        let report = sim::qcow2::check(disk);
        assert!(report.is_sound(), "seed {seed}: {report:?}");
        assert_eq!(report.leaked_clusters, 0, "seed {seed}: {report:?}");
    }
}

// Four tests, so that they run side by side.

#[test]
fn the_disk_is_what_was_written_to_it_1() {
    many::<CreateOptions>(0);
}

#[test]
fn the_disk_is_what_was_written_to_it_2() {
    many::<CreateOptions>(1);
}

#[test]
fn the_disk_is_what_was_written_to_it_3() {
    many::<CreateOptions>(2);
}

#[test]
fn the_disk_is_what_was_written_to_it_4() {
    many::<CreateOptions>(3);
}
