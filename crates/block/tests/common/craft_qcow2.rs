//! A small valid qcow2 image, made byte by byte from the specification and not by our driver, for tests that spoil it.
//!
//! ```text
//!   cluster  0        1          2          3    4      5      6      7      8            9          10         11         12
//!            header | refcount | refcount | L1 | L2 0 | L2 1 | data | data | compressed | snapshot | its L1   | its L2   | its
//!                   | table    | block    |    |      |      | of 0 | of 1 | data of 3  | table    |          |          | data
//! ```
//!
//! From 9 on there is only something in an image with a snapshot. Cluster 2 of the disk is a zero cluster, or unallocated in version 2. The disk
//! needs one L2 table and a half.

use std::ops::Range;

pub const REFCOUNT_TABLE: u64 = 1;
pub const REFCOUNT_BLOCK: u64 = 2;
pub const L1: u64 = 3;
pub const L2: [u64; 2] = [4, 5];
pub const DATA: [u64; 2] = [6, 7];
pub const COMPRESSED: u64 = 8;
pub const SNAPSHOT_TABLE: u64 = 9;
pub const SNAPSHOT_L1: u64 = 10;
pub const SNAPSHOT_L2: u64 = 11;
pub const SNAPSHOT_DATA: u64 = 12;
/// What the disk's clusters 0 and 1, the compressed one and the snapshot's hold.
pub const BYTES: [u8; 2] = [0xA1, 0xB2];
pub const COMPRESSED_BYTE: u8 = 0xC3;
pub const SNAPSHOT_BYTE: u8 = 0x5A;
/// Where in its cluster the compressed data begins.
pub const COMPRESSED_FROM: u64 = 100;

pub const AT_INCOMPATIBLE: usize = 72;
pub const AT_COMPATIBLE: usize = 80;
pub const AT_AUTOCLEAR: usize = 88;
pub const DIRTY: u64 = 1;
pub const CORRUPT: u64 = 2;
pub const EXTENDED_L2: u64 = 16;
pub const COPIED: u64 = 1 << 63;
pub const IS_COMPRESSED: u64 = 1 << 62;
pub const READS_ZERO: u64 = 1;

/// What an image is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub version: u32,
    pub cluster_bits: u32,
    /// Binary logarithm of a refcount's bits.
    pub order: u32,
    /// With subclusters.
    pub extended: bool,
    pub snapshot: bool,
}

/// Version 3 with clusters of 4 KiB.
pub const PLAIN: Shape =
    Shape { version: 3, cluster_bits: 12, order: 4, extended: false, snapshot: false };

/// An image file's bytes.
#[derive(Clone, Debug)]
pub struct Craft {
    pub bytes: Vec<u8>,
    pub shape: Shape,
}

impl Shape {
    pub fn cluster(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Where a cluster of the file is.
    pub fn at(self, cluster: u64) -> u64 {
        cluster << self.cluster_bits
    }

    fn entry_bytes(self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Entries of an L2 table.
    pub fn entries(self) -> u64 {
        self.cluster() / self.entry_bytes()
    }

    pub fn disk_bytes(self) -> u64 {
        self.entries() * 3 / 2 * self.cluster()
    }

    pub fn file_clusters(self) -> u64 {
        if self.snapshot { SNAPSHOT_DATA + 1 } else { COMPRESSED + 1 }
    }

    pub fn file_bytes(self) -> u64 {
        self.at(self.file_clusters())
    }

    /// The parts of the file in which a guest's data never is.
    pub fn metadata(self) -> Vec<Range<u64>> {
        let clusters = (0..self.file_clusters()).filter(|n| !DATA.contains(n));
        clusters.map(|n| self.at(n)..self.at(n + 1)).collect()
    }

    /// Of a cluster of the disk, where its entry stands.
    pub fn entry_at(self, cluster: u64) -> u64 {
        let table = L2[(cluster / self.entries()) as usize];
        self.at(table) + cluster % self.entries() * self.entry_bytes()
    }

    /// The entry of a compressed cluster.
    pub fn compressed_entry(self, at: u64, bytes: u64) -> u64 {
        let further = (at + bytes - 1) / 512 - at / 512;
        IS_COMPRESSED | further << (62 - (self.cluster_bits - 8)) | at
    }
}

impl Craft {
    pub fn good() -> Craft {
        Craft::new(PLAIN)
    }

    pub fn new(shape: Shape) -> Craft {
        let mut craft = Craft { bytes: vec![0; shape.file_bytes() as usize], shape };
        craft.header();
        craft.set64(shape.at(REFCOUNT_TABLE) as usize, shape.at(REFCOUNT_BLOCK));
        (0..shape.file_clusters()).for_each(|cluster| craft.set_count(cluster, 1));
        for (n, table) in L2.into_iter().enumerate() {
            craft.set_l1(n as u64, shape.at(table) | COPIED);
        }
        for (n, cluster) in DATA.into_iter().enumerate() {
            craft.set_l2(n as u64, shape.at(cluster) | COPIED);
            craft.set_bits(n as u64, 0xFFFF_FFFF);
            craft.fill(cluster, BYTES[n]);
        }
        match shape {
            Shape { extended: true, .. } => craft.set_bits(2, 0xFFFF_FFFF << 32),
            Shape { version: 3, .. } => craft.set_l2(2, READS_ZERO),
            _ => {}
        }
        let stream = deflated(COMPRESSED_BYTE, shape.cluster());
        let at = shape.at(COMPRESSED) + COMPRESSED_FROM;
        craft.bytes[at as usize..at as usize + stream.len()].copy_from_slice(&stream);
        craft.set_l2(3, shape.compressed_entry(at, stream.len() as u64));
        if shape.snapshot {
            craft.snapshot();
        }
        craft
    }

    /// With a backing file of this name and format.
    pub fn over(name: &[u8], format: Option<&[u8]>) -> Craft {
        let mut craft = Craft::good();
        let mut at = 112;
        if let Some(format) = format {
            craft.set32(at, 0xE279_2ACA);
            craft.set32(at + 4, format.len() as u32);
            craft.bytes[at + 8..at + 8 + format.len()].copy_from_slice(format);
            at += 8 + format.len().next_multiple_of(8);
        }
        at += 8;
        craft.set64(8, at as u64);
        craft.set32(16, name.len() as u32);
        craft.bytes[at..at + name.len()].copy_from_slice(name);
        craft
    }

    fn header(&mut self) {
        let shape = self.shape;
        self.bytes[..4].copy_from_slice(b"QFI\xfb");
        for (at, value) in [(4, shape.version), (20, shape.cluster_bits), (36, 2), (56, 1)] {
            self.set32(at, value);
        }
        let places = [(24, shape.disk_bytes()), (40, shape.at(L1)), (48, shape.at(REFCOUNT_TABLE))];
        places.into_iter().for_each(|(at, value)| self.set64(at, value));
        if shape.version >= 3 {
            self.set64(AT_INCOMPATIBLE, if shape.extended { EXTENDED_L2 } else { 0 });
            self.set32(96, shape.order);
            self.set32(100, 112);
        }
    }

    fn snapshot(&mut self) {
        let shape = self.shape;
        self.set32(60, 1);
        self.set64(64, shape.at(SNAPSHOT_TABLE));
        let at = shape.at(SNAPSHOT_TABLE) as usize;
        self.set64(at, shape.at(SNAPSHOT_L1));
        // Entries of the L1 table; bytes of ID and name; bytes of further fields, which are: VM state, disk.
        self.set32(at + 8, 2);
        self.set32(at + 12, 1 << 16 | 1);
        self.set32(at + 36, 16);
        self.set64(at + 48, shape.disk_bytes());
        self.bytes[at + 56..at + 58].copy_from_slice(b"1s");
        self.set64(shape.at(SNAPSHOT_L1) as usize, shape.at(SNAPSHOT_L2) | COPIED);
        self.set64(shape.at(SNAPSHOT_L2) as usize, shape.at(SNAPSHOT_DATA) | COPIED);
        if shape.extended {
            self.set64(shape.at(SNAPSHOT_L2) as usize + 8, 0xFFFF_FFFF);
        }
        self.fill(SNAPSHOT_DATA, SNAPSHOT_BYTE);
    }

    pub fn set32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    pub fn set64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    pub fn get64(&self, at: usize) -> u64 {
        u64::from_be_bytes(*self.bytes[at..].first_chunk().unwrap())
    }

    pub fn set_l1(&mut self, table: u64, value: u64) {
        self.set64((self.shape.at(L1) + table * 8) as usize, value);
    }

    /// Sets the entry of a cluster of the disk.
    pub fn set_l2(&mut self, cluster: u64, value: u64) {
        self.set64(self.shape.entry_at(cluster) as usize, value);
    }

    /// Sets what an extended entry says of subclusters; without these, nothing.
    pub fn set_bits(&mut self, cluster: u64, value: u64) {
        if self.shape.extended {
            self.set64(self.shape.entry_at(cluster) as usize + 8, value);
        }
    }

    /// Sets an entry of the refcount table.
    pub fn set_block(&mut self, number: u64, value: u64) {
        self.set64((self.shape.at(REFCOUNT_TABLE) + number * 8) as usize, value);
    }

    /// Sets the count of a cluster of the file.
    pub fn set_count(&mut self, cluster: u64, value: u64) {
        let (block, bits) = (self.shape.at(REFCOUNT_BLOCK), 1u64 << self.shape.order);
        if bits < 8 {
            let (at, shift) = ((block + cluster * bits / 8) as usize, cluster * bits % 8);
            let mask = ((1u64 << bits) - 1) << shift;
            self.bytes[at] = (u64::from(self.bytes[at]) & !mask | value << shift) as u8;
            return;
        }
        let len = (bits / 8) as usize;
        let at = block as usize + cluster as usize * len;
        self.bytes[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
    }

    /// Fills a cluster of the file.
    pub fn fill(&mut self, cluster: u64, byte: u8) {
        let range = self.shape.at(cluster) as usize..self.shape.at(cluster + 1) as usize;
        self.bytes[range].fill(byte);
    }

    /// Clusters more at the end of the file, filled with a byte and not counted; gives the number of the first.
    pub fn add(&mut self, clusters: u64, byte: u8) -> u64 {
        let first = (self.bytes.len() as u64).div_ceil(self.shape.cluster());
        self.bytes.resize(self.shape.at(first + clusters) as usize, byte);
        first
    }
}

/// `len` times a byte from 144 up, deflated (RFC 1951, fixed codes): the byte, copies of it by 258, and once more each for the rest.
pub fn deflated(byte: u8, len: u64) -> Vec<u8> {
    let (mut bytes, mut used) = (Vec::new(), 0);
    // Codes begin with their highest bit, all else with its lowest: so each is given as it stands in the stream.
    let mut put = |bits: u32, count: u32| {
        for n in (0..count).rev() {
            if used % 8 == 0 {
                bytes.push(0);
            }
            *bytes.last_mut().unwrap() |= ((bits >> n & 1) as u8) << (used % 8);
            used += 1;
        }
    };
    let literal = 0b1_1001_0000 + u32::from(byte) - 144;
    // The last block, with fixed codes.
    put(0b110, 3);
    put(literal, 9);
    for _ in 0..(len - 1) / 258 {
        // A length of 258, a distance of 1.
        put(0b1100_0101, 8);
        put(0, 5);
    }
    for _ in 0..(len - 1) % 258 {
        put(literal, 9);
    }
    put(0, 7);
    bytes
}
