//! Tables that are spread over a file of holes: what is kept of where they are is bounded, however many there are.

use super::*;
use std::fs::{File, OpenOptions as FileOptions};
use std::os::unix::fs::FileExt;

const SMALL: Shape = Shape { cluster_bits: 9, snapshot: true, ..PLAIN };
/// The map of what is in use has an array for so many clusters.
const STRIDE: u64 = 4096 * 512;
/// More arrays than it may have, and fewer.
const TOO_MANY: u64 = 600_000;
const FEW: u64 = 1000;
/// Where a table is put: behind all else, and not where it leads to.
const TABLE: u64 = 1 << 20;

/// An image in a file of holes, with a table of words that each lead somewhere else.
struct Sparse {
    _dir: Dir,
    path: std::path::PathBuf,
    file: File,
}

impl Sparse {
    fn new(image: &Craft, words: u64, flags: u64) -> Sparse {
        let dir = Dir::new();
        let path = make(&dir, image);
        let file = FileOptions::new().read(true).write(true).open(&path).unwrap();
        file.set_len((words + 8) * STRIDE).unwrap();
        let table: Vec<u8> =
            (0..words).flat_map(|n| (((n + 4) * STRIDE) | flags).to_be_bytes()).collect();
        file.write_all_at(&table, TABLE).unwrap();
        Sparse { _dir: dir, path, file }
    }

    fn set(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    fn word(&self, at: u64) -> u64 {
        let mut raw = [0; 8];
        self.file.read_exact_at(&mut raw, at).unwrap();
        u64::from_be_bytes(raw)
    }

    #[track_caller]
    fn is_refused(&self, read_only: bool) {
        let error = Disk::open(&self.path, WAY, read_only).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("spread over"), "{error}");
    }
}

#[test]
fn l2_tables_all_over_the_file() {
    for (words, fits) in [(FEW, true), (TOO_MANY, false)] {
        let sparse = Sparse::new(&Craft::new(SMALL), words, COPIED);
        sparse.set(36, &(words as u32).to_be_bytes());
        sparse.set(40, &TABLE.to_be_bytes());
        for read_only in [true, false] {
            match fits {
                true => drop(Disk::open(&sparse.path, WAY, read_only).unwrap()),
                false => sparse.is_refused(read_only),
            }
        }
    }
}

#[test]
fn refcount_blocks_all_over_the_file() {
    for (words, fits) in [(FEW, true), (TOO_MANY, false)] {
        let sparse = Sparse::new(&Craft::new(SMALL), words, 0);
        sparse.set(48, &TABLE.to_be_bytes());
        sparse.set(56, &(words.div_ceil(64) as u32).to_be_bytes());
        drop(Disk::open(&sparse.path, WAY, true).unwrap());
        match fits {
            true => drop(Disk::open(&sparse.path, WAY, false).unwrap()),
            false => sparse.is_refused(false),
        }
    }
}

#[test]
fn a_snapshots_l2_tables_all_over_the_file() {
    for (words, fits) in [(FEW, true), (TOO_MANY, false)] {
        let sparse = Sparse::new(&Craft::new(SMALL), words, 0);
        let entry = SMALL.at(SNAPSHOT_TABLE);
        sparse.set(entry, &TABLE.to_be_bytes());
        sparse.set(entry + 8, &(words as u32).to_be_bytes());
        drop(Disk::open(&sparse.path, WAY, true).unwrap());
        match fits {
            true => drop(Disk::open(&sparse.path, WAY, false).unwrap()),
            false => sparse.is_refused(false),
        }
    }
}

#[test]
fn a_bitmaps_clusters_all_over_the_file() {
    for (words, fits) in [(FEW, true), (TOO_MANY, false)] {
        let sparse = Sparse::new(&Craft::new(SMALL), words, 0);
        let disk = Disk::open(&sparse.path, WAY, false).unwrap();
        let node = disk.node.clone();
        let added = disk
            .context
            .block_on(async move { node.qcow2().unwrap().add_bitmap(b"one", 65536, true).await });
        added.unwrap().unwrap();
        disk.close().unwrap();
        // The table where nothing is; its bits were not stored, so that nothing is said of how many there are.
        let file_bytes = (words + 8) * STRIDE;
        sparse.file.set_len(file_bytes).unwrap();
        let table: Vec<u8> = (0..words).flat_map(|n| ((n + 4) * STRIDE).to_be_bytes()).collect();
        sparse.set(TABLE, &table);
        // Behind the header, whose length ends at byte 104.
        let mut at = sparse.word(96) & 0xFFFF_FFFF;
        while sparse.word(at) >> 32 != 0x2385_2875 {
            at += 8 + (sparse.word(at) & 0xFFFF_FFFF).next_multiple_of(8);
        }
        let directory = sparse.word(at + 8 + 16);
        sparse.set(directory, &TABLE.to_be_bytes());
        sparse.set(directory + 8, &(words as u32).to_be_bytes());
        sparse.set(directory + 12, &1u32.to_be_bytes());
        match fits {
            true => drop(Disk::open(&sparse.path, WAY, false).unwrap()),
            false => sparse.is_refused(false),
        }
    }
}
