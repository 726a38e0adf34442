//! The parts of qcow2 that a conversion reads and writes: header, extensions, entries.
//!
//! ```text
//! byte 0      4         8            16           20             24     32       36        40
//!      +------+---------+------------+------------+--------------+------+--------+---------+----------+
//!      |"QFI" | version | name at    | name bytes | cluster bits | size | crypto | L1 size | L1 table |
//!      +------+---------+------------+------------+--------------+------+--------+---------+----------+
//!     48                 56               60          64          72 (version 3)   80       88
//!      +-----------------+----------------+-----------+-----------+----------------+--------+-----------+
//!      | refcount table  | its clusters   | snapshots | their at  | incompatible   | compat | autoclear |
//!      +-----------------+----------------+-----------+-----------+----------------+--------+-----------+
//!     96               100             104
//!      +----------------+---------------+------------------------------+
//!      | refcount order | header length | extensions: type, length ... |
//!      +----------------+---------------+------------------------------+
//! ```
//!
//! All fields are big-endian. Specification: QEMU `docs/interop/qcow2.rst`.
//!
//! A [`Header`] exists only for an image that QED can express: everything else is refused with the reason.

use crate::{Error, ErrorKind, Result, SECTOR};

/// An L1 or L2 entry whose cluster is counted once.
pub(super) const COPIED: u64 = 1 << 63;
/// An L2 entry whose cluster reads as zeroes.
pub(super) const ZERO: u64 = 1;
/// Bits 9 to 55: an offset.
pub(super) const OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;
/// Largest L1 table and refcount table that QEMU opens, in bytes.
pub(super) const L1_BYTES_MAX: u64 = 32 << 20;
pub(super) const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;

const COMPRESSED: u64 = 1 << 62;
const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
const V2_BYTES: u32 = 72;
const V3_BYTES: u32 = 104;
const BACKING_FORMAT: u32 = 0xE279_2ACA;
const FEATURE_NAMES: u32 = 0x6803_F857;
const BITMAPS: u32 = 0x2385_2875;
const ENCRYPTION: u32 = 0x0537_BE77;

/// What a conversion needs of a checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    /// Size of the disk.
    pub bytes: u64,
    pub l1_table: u64,
    pub l1_entries: u32,
    pub refcount_table: u64,
    pub refcount_table_clusters: u32,
    /// Binary logarithm of a refcount's bits.
    pub refcount_order: u32,
    /// Offset and length of the backing file's name.
    pub backing: Option<(u64, usize)>,
    /// The backing file is raw for certain.
    pub backing_is_raw: bool,
}

impl Header {
    /// Bytes that [`Header::cluster_bits_of`] needs.
    pub const START: u64 = 4096;

    /// The cluster size, so that the first cluster can be read for [`Header::parse`].
    pub fn cluster_bits_of(start: &[u8]) -> Result<u32> {
        if be32(start, 0) != MAGIC {
            return Err(corrupt("it does not begin with the magic number of qcow2"));
        }
        match be32(start, 20) {
            bits @ 12..=21 => Ok(bits),
            9..=11 => Err(unsupported("its clusters are smaller than 4 KiB, which QED has not")),
            _ => Err(corrupt("its clusters are not 512 bytes to 2 MiB")),
        }
    }

    /// Checks the header and its extensions; `first` is the first cluster.
    pub fn parse(first: &[u8]) -> Result<Header> {
        let cluster_bits = Header::cluster_bits_of(first)?;
        let version = be32(first, 4);
        let header_bytes = match version {
            2 => V2_BYTES,
            3 => be32(first, 100),
            _ => return Err(unsupported("it is of an unknown version")),
        };
        let good = header_bytes.is_multiple_of(8) && u64::from(header_bytes) <= 1 << cluster_bits;
        if !good || (version == 3 && header_bytes < V3_BYTES) {
            return Err(corrupt("its header has an impossible length"));
        }
        if version == 3 {
            check_features(first)?;
        }
        let mut header = Header {
            version,
            cluster_bits,
            bytes: be64(first, 24),
            l1_table: be64(first, 40),
            l1_entries: be32(first, 36),
            refcount_table: be64(first, 48),
            refcount_table_clusters: be32(first, 56),
            refcount_order: if version == 3 { be32(first, 96) } else { 4 },
            backing: None,
            backing_is_raw: false,
        };
        header.check_fields(first)?;
        header.read_backing(first, header_bytes)?;
        Ok(header)
    }

    fn check_fields(&self, first: &[u8]) -> Result<()> {
        if be32(first, 32) != 0 {
            return Err(unsupported("it is encrypted"));
        }
        if be32(first, 60) != 0 {
            return Err(unsupported("it has internal snapshots"));
        }
        if !self.bytes.is_multiple_of(SECTOR) {
            return Err(unsupported("its disk is not a multiple of 512 bytes"));
        }
        if self.refcount_order > 6 {
            return Err(corrupt("its refcounts have more than 64 bits"));
        }
        let cluster = self.cluster_bytes();
        let aligned =
            self.l1_table.is_multiple_of(cluster) && self.refcount_table.is_multiple_of(cluster);
        let table_bytes = u64::from(self.refcount_table_clusters) << self.cluster_bits;
        let needed = self.bytes.div_ceil(cluster).div_ceil(cluster / 8);
        let l1_entries = u64::from(self.l1_entries);
        if !aligned
            || table_bytes > REFCOUNT_TABLE_BYTES_MAX
            || l1_entries * 8 > L1_BYTES_MAX
            || l1_entries < needed
        {
            return Err(corrupt("its tables are not where they should be, or not as long"));
        }
        Ok(())
    }

    /// Reads the extensions, which end where the backing file's name begins.
    fn read_backing(&mut self, first: &[u8], header_bytes: u32) -> Result<()> {
        let (at, len) = (be64(first, 8), be32(first, 16));
        let mut end = first.len() as u64;
        if at != 0 {
            let fits = at.checked_add(u64::from(len)).is_some_and(|name_end| name_end <= end);
            if !fits || at < u64::from(header_bytes) || len == 0 || len > 1023 {
                return Err(corrupt("its backing file's name is not in the first cluster"));
            }
            self.backing = Some((at, len as usize));
            end = at;
        }
        let mut next = u64::from(header_bytes);
        while end.saturating_sub(next) >= 8 {
            let (kind, len) = (be32(first, index(next)), be32(first, index(next + 4)));
            let data = next + 8;
            if kind == 0 {
                break;
            }
            if u64::from(len) > end - data {
                return Err(corrupt("a header extension is longer than the header"));
            }
            match kind {
                BACKING_FORMAT => {
                    self.backing_is_raw = &first[index(data)..][..len as usize] == b"raw";
                }
                FEATURE_NAMES => {}
                BITMAPS => {
                    return Err(unsupported("it has persistent bitmaps, which would be lost"));
                }
                ENCRYPTION => return Err(unsupported("it is encrypted")),
                _ => {
                    let what = format!("it has a header extension ({kind:#x}) that would be lost");
                    return Err(unsupported(&what));
                }
            }
            next = data + u64::from(len).next_multiple_of(8);
        }
        Ok(())
    }

    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// What an L1 entry refers to: 0 if nothing.
    pub fn l1_offset(&self, entry: u64) -> Result<u64> {
        let at = entry & OFFSET;
        if entry & !(OFFSET | COPIED) != 0 || !at.is_multiple_of(self.cluster_bytes()) {
            return Err(corrupt(&format!("an L1 entry is {entry:#x}")));
        }
        Ok(at)
    }

    /// What an L2 entry says of a cluster.
    pub fn l2_cluster(&self, entry: u64) -> Result<Cluster> {
        if entry & COMPRESSED != 0 {
            return Err(unsupported("it has compressed clusters"));
        }
        let at = entry & OFFSET;
        let has_zero = self.version == 3;
        let known = OFFSET | COPIED | if has_zero { ZERO } else { 0 };
        if entry & !known != 0 || !at.is_multiple_of(self.cluster_bytes()) {
            return Err(corrupt(&format!("an L2 entry is {entry:#x}")));
        }
        Ok(Cluster { at, is_zero: entry & ZERO != 0 })
    }
}

/// What an L2 entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cluster {
    /// The cluster of the file that is taken; 0 if there is none.
    pub at: u64,
    /// It reads as zeroes, taken or not.
    pub is_zero: bool,
}

fn check_features(first: &[u8]) -> Result<()> {
    let names = [
        (0, "it was not closed (its dirty bit is set): check it first"),
        (1, "it is marked as corrupt: check it first"),
        (2, "its data is in another file"),
        (4, "it has extended L2 entries"),
    ];
    let incompatible = be64(first, 72);
    for (bit, why) in names {
        if incompatible & (1 << bit) != 0 {
            return Err(unsupported(why));
        }
    }
    // Bit 3, another kind of compression, says nothing of an image without compressed clusters.
    let unknown = incompatible & !(1 << 3);
    if unknown != 0 {
        return Err(unsupported(&format!("it has unknown incompatible features {unknown:#x}")));
    }
    // Lazy refcounts are a way to write; of others nobody knows what would be lost.
    let unknown = be64(first, 80) & !1;
    if unknown != 0 {
        return Err(unsupported(&format!("it has unknown compatible features {unknown:#x}")));
    }
    if be64(first, 88) & 1 != 0 {
        return Err(unsupported("it has persistent bitmaps, which would be lost"));
    }
    Ok(())
}

/// A new header, and where the name begins if it is to be in the same sector.
#[derive(Debug)]
pub(super) struct NewHeader {
    pub cluster_bits: u32,
    pub bytes: u64,
    pub l1_table: u64,
    pub l1_entries: u32,
    pub refcount_table: u64,
    pub refcount_table_clusters: u32,
    pub backing_is_raw: bool,
    /// Offset and length of the backing file's name, or zeroes.
    pub backing: (u64, u32),
}

impl NewHeader {
    /// Binary logarithm of the bits of a refcount: 16.
    pub const REFCOUNT_ORDER: u32 = 4;

    /// Where a header ends that says whether the backing file is raw, extensions included.
    pub fn end(backing_is_raw: bool) -> u64 {
        u64::from(V3_BYTES) + if backing_is_raw { 24 } else { 8 }
    }

    /// The first sector; `name` follows the extensions.
    pub fn encode(&self, name: &[u8]) -> [u8; 512] {
        let mut raw = [0; 512];
        let words = [
            (0, MAGIC),
            (4, 3),
            (16, self.backing.1),
            (20, self.cluster_bits),
            (36, self.l1_entries),
            (56, self.refcount_table_clusters),
            (96, NewHeader::REFCOUNT_ORDER),
            (100, V3_BYTES),
        ];
        for (at, value) in words {
            raw[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        let longs =
            [(8, self.backing.0), (24, self.bytes), (40, self.l1_table), (48, self.refcount_table)];
        for (at, value) in longs {
            raw[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        if self.backing_is_raw {
            raw[104..108].copy_from_slice(&BACKING_FORMAT.to_be_bytes());
            raw[108..112].copy_from_slice(&3u32.to_be_bytes());
            raw[112..115].copy_from_slice(b"raw");
        }
        let end = index(NewHeader::end(self.backing_is_raw));
        raw[end..end + name.len()].copy_from_slice(name);
        raw
    }
}

pub(super) fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("qcow2: {what}"))
}

pub(super) fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("qcow2: {what}"))
}

fn be32(raw: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(*raw[at..].first_chunk().expect("the field lies in the first cluster"))
}

fn be64(raw: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(*raw[at..].first_chunk().expect("the field lies in the first cluster"))
}

fn index(at: u64) -> usize {
    usize::try_from(at).expect("within the first cluster")
}
