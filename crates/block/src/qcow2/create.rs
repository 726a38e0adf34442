//! New images.
//!
//! ```text
//!   +--------+----------------+-----------------+----------+ - - - - - - +- - - - - - -+
//!   | header | refcount table | refcount blocks | L1 table |  L2 tables  |    data     |      preallocated: L2 tables for the whole
//!   +--------+----------------+-----------------+----------+ - - - - - - +- - - - - - -+      disk, and data unless it is in another file
//!     1 cluster                 as many as it takes to count all of it
//! ```
//!
//! Every cluster up to the file's end is used once, and counted so. As everything stands in a row, each table's entries follow from their number:
//! so an image of any size is made piece by piece ([`Layout::pieces`]), and what is zeroes is not mentioned.
//!
//! Specification: QEMU `docs/interop/qcow2.rst`. What is refused is what QEMU's `qemu-img create` refuses, and disks that are not whole sectors.

#[cfg(test)]
mod tests;

use super::header::{
    BACKING_NAME_MAX, BackingFile, CLUSTER_BITS, COMPRESSION_TYPE, Compression, CryptMethod,
    CryptoHeader, DATA_FILE_RAW, EXTENDED_L2, EXTERNAL_DATA, FULL_BYTES, Header, L1_BYTES_MAX,
    LAZY_REFCOUNTS, REFCOUNT_TABLE_BYTES_MAX, SUBCLUSTERS_BITS_MIN, V2_BYTES, known_features,
};
use crate::{Error, ErrorKind, Result, SECTOR};
use std::ops::Range;

/// An L1 or L2 entry whose cluster is counted once.
const COPIED: u64 = 1 << 63;
/// An entry has 56 bits for where its cluster is.
const OFFSET_MAX: u64 = 1 << 56;
/// All subclusters are allocated: the second half of an extended L2 entry.
const SUBCLUSTERS_ALLOCATED: u64 = 0xFFFF_FFFF;
/// Most bytes of a piece that are not the header.
const PIECE_BYTES: usize = 1 << 20;
/// A piece is a multiple of this, so that it can go past the host's page cache; or of a cluster, if that is less.
const PIECE_UNIT: u64 = 4096;

/// How much of a new image's disk is allocated at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// Tables map the whole disk; the host's file has holes.
    Metadata,
    /// ... and the host has taken the space.
    Falloc,
    /// ... and zeroes are written to it.
    Full,
}

/// What a new image is to be.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Size of the disk in bytes: a multiple of 512.
    pub bytes: u64,
    /// Version: 2 or 3.
    pub version: u32,
    /// Bytes of a cluster: a power of two from 512 bytes to 2 MiB.
    pub cluster_bytes: u64,
    /// Bits of a refcount: a power of two up to 64.
    pub refcount_bits: u32,
    /// Whether clusters have subclusters.
    pub extended_l2: bool,
    /// Whether refcounts may be written late.
    pub lazy_refcounts: bool,
    /// What compressed clusters will be compressed with.
    pub compression: Compression,
    /// The backing file, with its format.
    pub backing: Option<BackingFile>,
    /// Name of the file that the data is to be in.
    pub data_file: Option<Vec<u8>>,
    /// Whether the data file stays a raw image of the disk by itself. It means preallocated metadata.
    pub data_file_raw: bool,
    /// How much is allocated.
    pub preallocation: Preallocation,
    /// The LUKS header that the disk is encrypted by.
    pub encryption: Option<NewLuks>,
}

/// A LUKS header for a new image: what [`crate::crypt::create`] gives.
#[derive(Clone)]
pub struct NewLuks {
    /// Its bytes, with the key material.
    pub header: Vec<u8>,
    /// Bytes of its area, at least as many.
    pub area_bytes: u64,
}

impl std::fmt::Debug for NewLuks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewLuks of {} bytes", self.area_bytes)
    }
}

impl CreateOptions {
    /// A disk of `bytes` bytes as QEMU makes it if told nothing else: version 3, clusters of 64 KiB, refcounts of 16 bits.
    pub fn new(bytes: u64) -> CreateOptions {
        CreateOptions {
            bytes,
            version: 3,
            cluster_bytes: 65536,
            refcount_bits: 16,
            extended_l2: false,
            lazy_refcounts: false,
            compression: Compression::Zlib,
            backing: None,
            data_file: None,
            data_file_raw: false,
            preallocation: Preallocation::Off,
            encryption: None,
        }
    }

    /// Whether the tables are to map the whole disk. With a raw data file they have to: it may be written to by others.
    fn is_preallocated(&self) -> bool {
        self.preallocation != Preallocation::Off || self.data_file_raw
    }

    fn check(&self) -> Result<()> {
        let is_v2 = self.version == 2;
        let pow2 =
            |value: u64, range: Range<u64>| value.is_power_of_two() && range.contains(&value);
        let (least, most) = (1u64 << CLUSTER_BITS.start(), 1u64 << CLUSTER_BITS.end());
        let rules = [
            (!self.bytes.is_multiple_of(SECTOR), "the disk's size is not a multiple of 512 bytes"),
            (!matches!(self.version, 2 | 3), "the version is not 2 or 3"),
            (
                !pow2(self.cluster_bytes, least..most + 1),
                "the cluster size is not a power of two from 512 bytes to 2 MiB",
            ),
            (
                !pow2(u64::from(self.refcount_bits), 1..65),
                "the refcount width is not 1, 2, 4, 8, 16, 32 or 64 bits",
            ),
            (is_v2 && self.refcount_bits != 16, "version 2 has refcounts of 16 bits only"),
            (is_v2 && self.extended_l2, "extended L2 entries need version 3"),
            (is_v2 && self.lazy_refcounts, "lazy refcounts need version 3"),
            (is_v2 && self.compression != Compression::Zlib, "zstd needs version 3"),
            (is_v2 && self.data_file.is_some(), "a data file needs version 3"),
            (
                self.extended_l2 && self.cluster_bytes < 1 << SUBCLUSTERS_BITS_MIN,
                "extended L2 entries need clusters of 16 KiB at least",
            ),
            (self.data_file_raw && self.data_file.is_none(), "no data file that could be raw"),
            (
                self.encryption.is_some()
                    && (self.data_file_raw || self.preallocation != Preallocation::Off),
                "what is allocated in advance holds zeroes, which are not zeroes when they are decrypted",
            ),
            (
                self.data_file_raw && self.backing.is_some(),
                "a raw data file cannot stand on a backing file",
            ),
            (
                self.preallocation != Preallocation::Off
                    && self.backing.is_some()
                    && !self.extended_l2,
                "preallocation would hide the backing file; only extended L2 entries can say otherwise",
            ),
        ];
        match rules.iter().find(|(is_broken, _)| *is_broken) {
            Some((_, why)) => Err(refuse(why)),
            None => self.check_names(),
        }
    }

    fn check_names(&self) -> Result<()> {
        if let Some(backing) = &self.backing {
            let name_max = BACKING_NAME_MAX as usize;
            if backing.name.is_empty() || backing.name.len() > name_max {
                return Err(refuse("the backing file's name has 0 bytes, or more than 1023"));
            }
            // Nobody may guess it later from what the guest wrote.
            if backing.format.as_ref().is_none_or(Vec::is_empty) {
                return Err(refuse("the backing file's format is not given"));
            }
        }
        match &self.data_file {
            Some(name) if name.is_empty() => Err(refuse("the data file's name is empty")),
            _ => Ok(()),
        }
    }

    /// The header, with nothing in it of where things are.
    fn header(&self) -> Header {
        let bit = |is_set: bool, bit: u64| if is_set { bit } else { 0 };
        let is_v3 = self.version == 3;
        Header {
            version: self.version,
            cluster_bits: self.cluster_bytes.ilog2(),
            disk_bytes: self.bytes,
            l1_entries: 0,
            l1_table: 0,
            refcount_table: 0,
            refcount_table_clusters: 0,
            refcount_order: self.refcount_bits.ilog2(),
            snapshots: 0,
            snapshot_table: 0,
            crypt_method: match self.encryption {
                Some(_) => CryptMethod::Luks,
                None => CryptMethod::None,
            },
            incompatible: bit(self.data_file.is_some(), EXTERNAL_DATA)
                | bit(self.compression != Compression::Zlib, COMPRESSION_TYPE)
                | bit(self.extended_l2, EXTENDED_L2),
            compatible: bit(self.lazy_refcounts, LAZY_REFCOUNTS),
            autoclear: bit(self.data_file_raw, DATA_FILE_RAW),
            header_bytes: if is_v3 { FULL_BYTES } else { V2_BYTES },
            compression: self.compression,
            backing: self.backing.clone(),
            data_file: self.data_file.clone(),
            bitmaps: None,
            crypto: None,
            feature_names: if is_v3 { known_features() } else { Vec::new() },
            unknown_extensions: Vec::new(),
            extra: Vec::new(),
        }
    }
}

/// A new image: the bytes it begins with, and the length of its file. What lies between is zeroes.
///
/// # Errors
///
/// `BadRequest` with the reason if the format cannot express it, or if it is to be preallocated: the tables may be large then, see [`Layout`].
pub fn new_image(options: &CreateOptions) -> Result<(Vec<u8>, u64)> {
    let layout = Layout::new(options)?;
    if options.is_preallocated() {
        return Err(refuse("a preallocated image is made in pieces"));
    }
    let mut bytes = Vec::new();
    for piece in layout.pieces() {
        let at = usize::try_from(piece.at).map_err(|_| refuse("too large for this machine"))?;
        let end = at + piece.bytes.len();
        bytes.resize(bytes.len().max(end), 0);
        bytes[at..end].copy_from_slice(&piece.bytes);
    }
    Ok((bytes, layout.file_bytes()))
}

/// Bytes of a new image's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where they belong: on a boundary of 4096 bytes, or of a cluster if that is less.
    pub at: u64,
    /// As many of them as a multiple of the same.
    pub bytes: Vec<u8>,
}

/// Where everything is in a new image.
#[derive(Clone, Debug)]
pub struct Layout {
    header: Header,
    /// The header, encoded.
    first: Vec<u8>,
    /// Refcount blocks in a row, from `blocks_at` on.
    blocks: u64,
    blocks_at: u64,
    /// L2 tables in a row, from `l2_at` on.
    l2_tables: u64,
    l2_at: u64,
    /// Where the disk's first cluster is: in the file, or, if that has no data, in the data file.
    data_at: u64,
    /// The second half of an extended L2 entry.
    subclusters: u64,
    /// Clusters of the file.
    clusters: u64,
    /// The LUKS header.
    luks: Vec<u8>,
}

/// Tables, of which each entry follows from its number.
#[derive(Clone, Copy, Debug)]
enum Tables {
    RefcountTable,
    RefcountBlocks,
    L1,
    L2,
}

impl Layout {
    /// Where everything will be in the image that `options` describe.
    ///
    /// # Errors
    ///
    /// `BadRequest` with the reason if the format cannot express it.
    pub fn new(options: &CreateOptions) -> Result<Layout> {
        options.check()?;
        let mut header = options.header();
        let cluster = header.cluster_bytes();
        // An empty disk has a table too: it may grow.
        let l1_entries = header.l1_entries_needed(options.bytes).max(1);
        if l1_entries * 8 > L1_BYTES_MAX {
            let why = format!(
                "a disk of {} bytes is too large for clusters of {cluster}: take larger ones",
                options.bytes
            );
            return Err(refuse(&why));
        }
        let l1_clusters = (l1_entries * 8).div_ceil(cluster);
        let is_preallocated = options.is_preallocated();
        let l2_tables = if is_preallocated { header.l1_entries_needed(options.bytes) } else { 0 };
        let has_data = is_preallocated && options.data_file.is_none();
        let data_clusters = if has_data { header.disk_clusters() } else { 0 };
        let luks_bytes = options.encryption.as_ref().map_or(0, |luks| luks.area_bytes);
        let luks_clusters = luks_bytes.div_ceil(cluster);
        let counted = 1 + l1_clusters + luks_clusters + l2_tables + data_clusters;
        let (table_clusters, blocks) = refcounts(&header, counted)?;
        let clusters = counted + table_clusters + blocks;
        // Entries for a data file say where the data is on the disk.
        if clusters > OFFSET_MAX / cluster || (is_preallocated && options.bytes > OFFSET_MAX) {
            return Err(refuse("preallocated clusters would be beyond 64 PiB"));
        }
        let blocks_at = (1 + table_clusters) * cluster;
        let luks_at = blocks_at + (blocks + l1_clusters) * cluster;
        let l2_at = luks_at + luks_clusters * cluster;
        if luks_bytes > 0 {
            header.crypto = Some(CryptoHeader { at: luks_at, bytes: luks_bytes });
        }
        header.refcount_table = cluster;
        header.refcount_table_clusters =
            u32::try_from(table_clusters).expect("at most 8 MiB of clusters");
        header.l1_table = blocks_at + blocks * cluster;
        header.l1_entries = u32::try_from(l1_entries).expect("at most 32 MiB of entries");
        let first = encode(&mut header)?;
        Ok(Layout {
            header,
            first,
            blocks,
            blocks_at,
            l2_tables,
            l2_at,
            data_at: if has_data { l2_at + l2_tables * cluster } else { 0 },
            // What stands in the backing file stays to be seen.
            subclusters: if options.backing.is_some() { 0 } else { SUBCLUSTERS_ALLOCATED },
            clusters,
            luks: options.encryption.as_ref().map_or(Vec::new(), |luks| luks.header.clone()),
        })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Length of the file.
    pub fn file_bytes(&self) -> u64 {
        self.clusters << self.header.cluster_bits
    }

    /// Where preallocated data is in the file: up to its end, and empty if there is none. It has to read as zeroes. A new file does; on anything else
    /// zeroes are to be written there, or the guest sees what was there before.
    pub fn data(&self) -> Range<u64> {
        let end = self.file_bytes();
        if self.data_at == 0 { end..end } else { self.data_at..end }
    }

    /// Everything in the file that is not zeroes, and the header last: until it is there, the file is no image.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let tables = [Tables::RefcountTable, Tables::RefcountBlocks, Tables::L1, Tables::L2];
        let pieces = tables.into_iter().flat_map(move |tables| {
            let (at, len) = self.place(tables);
            (0..len).step_by(PIECE_BYTES).map(move |from| {
                let to = len.min(from + PIECE_BYTES as u64);
                self.piece(at + from, self.fill(tables, from..to))
            })
        });
        let luks = self.header.crypto.map(|area| (area.at, self.luks.clone()));
        let rest = luks.into_iter().chain(std::iter::once((0, self.first.clone())));
        pieces.chain(rest.map(|(at, bytes)| self.piece(at, bytes)))
    }

    fn piece(&self, at: u64, mut bytes: Vec<u8>) -> Piece {
        let unit = PIECE_UNIT.min(self.header.cluster_bytes());
        let unit = usize::try_from(unit).expect("at most 4096");
        bytes.resize(bytes.len().next_multiple_of(unit), 0);
        Piece { at, bytes }
    }

    /// Where tables start, and how many bytes of entries they have that are not zero.
    fn place(&self, tables: Tables) -> (u64, u64) {
        let header = &self.header;
        match tables {
            Tables::RefcountTable => (header.refcount_table, self.blocks * 8),
            Tables::RefcountBlocks => {
                let bits = self.clusters * u64::from(header.refcount_bits());
                (self.blocks_at, bits.div_ceil(8))
            }
            Tables::L1 => (header.l1_table, self.l2_tables * 8),
            Tables::L2 if self.l2_tables == 0 => (self.l2_at, 0),
            Tables::L2 => (self.l2_at, header.disk_clusters() * header.l2_entry_bytes()),
        }
    }

    /// Bytes of tables: whole entries, or bytes of refcounts.
    fn fill(&self, tables: Tables, range: Range<u64>) -> Vec<u8> {
        let bits = self.header.cluster_bits;
        let entries = |first: u64, flags: u64| {
            let entry = move |n: u64| ((first + (n << bits)) | flags).to_be_bytes();
            (range.start / 8..range.end / 8).flat_map(entry).collect()
        };
        match tables {
            Tables::RefcountTable => entries(self.blocks_at, 0),
            Tables::RefcountBlocks => range.map(|at| self.refcount_byte(at)).collect(),
            Tables::L1 => entries(self.l2_at, COPIED),
            Tables::L2 if !self.header.has_subclusters() => entries(self.data_at, COPIED),
            Tables::L2 => {
                let second = self.subclusters.to_be_bytes();
                let entry = |n: u64| {
                    let first = ((self.data_at + (n << bits)) | COPIED).to_be_bytes();
                    first.into_iter().chain(second)
                };
                (range.start / 16..range.end / 16).flat_map(entry).collect()
            }
        }
    }

    /// One byte of the refcounts, which are 1 for each cluster of the file.
    fn refcount_byte(&self, at: u64) -> u8 {
        match self.header.refcount_bits() {
            // The last byte of a number, as these are big-endian.
            bits @ 8.. => u8::from(at % u64::from(bits / 8) == u64::from(bits / 8) - 1),
            // Several in a byte, the first in its low bits.
            bits => {
                let in_byte = u64::from(8 / bits);
                let counts = in_byte.min(self.clusters - at * in_byte);
                (0..counts).fold(0, |byte, n| byte | 1 << (n * u64::from(bits)))
            }
        }
    }
}

/// Clusters of a refcount table, and refcount blocks, that count themselves and `counted` clusters more.
fn refcounts(header: &Header, counted: u64) -> Result<(u64, u64)> {
    let (mut table_clusters, mut blocks) = (1, 1);
    // More blocks are more to count. A block counts 64 clusters at least, so this ends after a few turns.
    loop {
        let needed = (counted + table_clusters + blocks).div_ceil(header.refcounts_per_block());
        let table_needed = (needed * 8).div_ceil(header.cluster_bytes());
        if table_needed << header.cluster_bits > REFCOUNT_TABLE_BYTES_MAX {
            return Err(refuse("a refcount table of 8 MiB cannot count all clusters of the file"));
        }
        if (table_needed, needed) == (table_clusters, blocks) {
            return Ok((table_clusters, blocks));
        }
        (table_clusters, blocks) = (table_needed, needed);
    }
}

/// The header's bytes. Feature names are a courtesy: without them it may fit.
fn encode(header: &mut Header) -> Result<Vec<u8>> {
    header.encode().or_else(|_| {
        header.feature_names.clear();
        header.encode()
    })
}

fn refuse(why: &str) -> Error {
    Error::new(ErrorKind::BadRequest, format!("making a qcow2 image: {why}"))
}
