//! Any sequence of requests against a plain vector of bytes.

use crate::qed::CreateOptions;
use crate::testing::model::{Subject, many};
use io_engine::Rng;

impl Subject for CreateOptions {
    fn random(rng: &mut Rng, bytes: u64, with_backing: bool) -> CreateOptions {
        CreateOptions {
            bytes,
            cluster_bytes: [4096, 4096, 8192, 65536][rng.index(4)],
            table_clusters: [1, 2, 4][rng.index(3)],
            backing: with_backing.then(|| (b"base".to_vec(), true)),
        }
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
