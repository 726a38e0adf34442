//! Any sequence of requests against a plain vector of bytes; and the image checked, by the independent checker, each time it was closed.

use crate::qed::CreateOptions;
use crate::testing::model::{Subject, model_tests};
use io_engine::Rng;
use io_engine::sim::SimDisk;

impl Subject for CreateOptions {
    fn random(rng: &mut Rng, bytes: u64, with_backing: bool) -> CreateOptions {
        CreateOptions {
            bytes,
            cluster_bytes: [4096, 4096, 8192, 65536][rng.index(4)],
            table_clusters: [1, 2, 4][rng.index(3)],
            backing: with_backing.then(|| (b"base".to_vec(), true)),
        }
    }

    fn check_closed(disk: &SimDisk, seed: u64) {
        let report = sim::qed::check(disk);
        assert!(report.is_sound() && !report.need_check, "seed {seed}: {report:?}");
    }
}

model_tests!(CreateOptions);
