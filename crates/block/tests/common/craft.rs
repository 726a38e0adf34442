//! A small valid QED image, made byte by byte from the specification and not by our driver, for tests that spoil it.
//!
//! ```text
//!   cluster   0 1       2 3       4 5        6 7         8           9
//!           | header  | L1      | L2 of    | L2 of     | data of   | data of   |
//!           |         |         | table 0  | table 1   | cluster 0 | cluster 1 |
//! ```
//!
//! Clusters of 4 KiB, tables of 2 of them: 1024 entries. A disk of 6 MiB has 1536 clusters, so two tables are in use. Cluster 2 of the disk
//! is a zero cluster.

use std::ops::Range;

pub const CLUSTER: u64 = 4096;
pub const TABLE: u64 = 2 * CLUSTER;
pub const ENTRIES: u64 = TABLE / 8;
pub const DISK: u64 = 6 << 20;
pub const L1: u64 = 2 * CLUSTER;
pub const L2: [u64; 2] = [4 * CLUSTER, 6 * CLUSTER];
pub const DATA: [u64; 2] = [8 * CLUSTER, 9 * CLUSTER];
pub const FILE: u64 = 10 * CLUSTER;
/// What the two data clusters hold.
pub const BYTES: [u8; 2] = [0xA1, 0xB2];

pub const AT_FEATURES: usize = 16;
pub const AT_COMPAT: usize = 24;
pub const AT_AUTOCLEAR: usize = 32;
pub const NEED_CHECK: u64 = 2;

/// An image file's bytes.
#[derive(Clone, Debug)]
pub struct Craft(pub Vec<u8>);

impl Craft {
    pub fn good() -> Craft {
        let mut craft = Craft(vec![0; FILE as usize]);
        craft.0[..4].copy_from_slice(b"QED\0");
        for (at, value) in [(4, CLUSTER), (8, 2), (12, 2)] {
            craft.set32(at, value as u32);
        }
        craft.set64(40, L1);
        craft.set64(48, DISK);
        for (n, at) in L2.into_iter().enumerate() {
            craft.set_l1(n as u64, at);
        }
        for (n, at) in DATA.into_iter().enumerate() {
            craft.set_l2(n as u64, at);
            craft.fill(at..at + CLUSTER, BYTES[n]);
        }
        craft.set_l2(2, 1);
        craft
    }

    /// With the name of a backing file.
    pub fn over(name: &[u8], raw: bool) -> Craft {
        let mut craft = Craft::good();
        craft.set64(AT_FEATURES, if raw { 5 } else { 1 });
        craft.set32(56, 100);
        craft.set32(60, name.len() as u32);
        craft.0[100..100 + name.len()].copy_from_slice(name);
        craft
    }

    pub fn set32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub fn set64(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    pub fn get64(&self, at: usize) -> u64 {
        u64::from_le_bytes(*self.0[at..].first_chunk().unwrap())
    }

    pub fn set_l1(&mut self, table: u64, value: u64) {
        self.set64((L1 + table * 8) as usize, value);
    }

    /// Sets the entry of a cluster of the disk.
    pub fn set_l2(&mut self, cluster: u64, value: u64) {
        let table = L2[(cluster / ENTRIES) as usize];
        self.set64((table + cluster % ENTRIES * 8) as usize, value);
    }

    pub fn fill(&mut self, range: Range<u64>, byte: u8) {
        self.0[range.start as usize..range.end as usize].fill(byte);
    }
}
