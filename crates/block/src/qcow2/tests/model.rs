//! Any sequence of requests against a plain vector of bytes; and the image checked, by the independent checker, each time it was closed.

use crate::Encryption;
use crate::crypt::{Cipher, CipherAlg, CipherMode, IvGen, Suite};
use crate::qcow2::header::Compression;
use crate::qcow2::{BackingFile, CreateOptions};
use crate::testing::model::{Subject, model_tests};
use io_engine::Rng;
use io_engine::sim::SimDisk;
use std::sync::Arc;

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
            compression: [Compression::Zlib, Compression::Zstd]
                [usize::from(version == 3 && rng.chance(300))],
            data_file: (version == 3 && rng.chance(150)).then(|| b"data".to_vec()),
            backing: with_backing
                .then(|| BackingFile { name: b"base".to_vec(), format: Some(b"raw".to_vec()) }),
            ..CreateOptions::new(bytes)
        }
    }

    fn has_data_file(&self) -> bool {
        self.data_file.is_some()
    }

    fn encryption(&self, rng: &mut Rng) -> Option<Arc<Encryption>> {
        let key: [u8; 64] = std::array::from_fn(|n| n as u8);
        rng.chance(150).then(|| {
            let suite = Suite::new(CipherAlg::Aes256, CipherMode::Xts, IvGen::Plain64, None);
            let cipher = Cipher::new(suite.unwrap(), &key).unwrap();
            Arc::new(Encryption { cipher, by_place: rng.chance(500) })
        })
    }

    fn discard_no_unref(&self, rng: &mut Rng) -> bool {
        self.version >= 3 && rng.chance(300)
    }

    fn deflate(&self, data: &[u8]) -> Option<Vec<u8>> {
        crate::qcow2::deflate(self.compression, 1, data)
    }

    fn check_closed(disk: &SimDisk, seed: u64) {
        let report = sim::qcow2::check(disk);
        assert!(report.is_sound(), "seed {seed}: {report:?}");
        assert_eq!(report.leaked_clusters, 0, "seed {seed}: {report:?}");
    }
}

model_tests!(CreateOptions);
