//! The qcow2 image header: bytes in, checked values out, and back.
//!
//! ```text
//! byte 0      4         8            16           20             24     32       36        40
//!      +------+---------+------------+------------+--------------+------+--------+---------+----------+
//!      |"QFI" | version | name at    | name bytes | cluster bits | size | crypto | L1 size | L1 table |
//!      | \xfb |         |            |            |              |      | method | entries |          |
//!      +------+---------+------------+------------+--------------+------+--------+---------+----------+
//!     48                 56               60          64          72 (version 3)   80       88
//!      +-----------------+----------------+-----------+-----------+----------------+--------+-----------+
//!      | refcount table  | its clusters   | snapshots | their at  | incompatible   | compat | autoclear |
//!      +-----------------+----------------+-----------+-----------+----------------+--------+-----------+
//!     96               100             104           105          header length
//!      +----------------+---------------+-------------+-----------+--------------------+-----+------+
//!      | refcount order | header length | compression | not known | extensions ... end | ... | name |
//!      +----------------+---------------+-------------+-----------+--------------------+-----+------+
//! ```
//!
//! All fields are big-endian. Specification: QEMU `docs/interop/qcow2.rst`, "Header" to "Full disk encryption header pointer".
//! Name is that of the backing file. Everything lies within the first cluster.
//!
//! A [`Header`] exists only if every check of [`Header::parse`] passed, so the rest of the driver holds these without looking again:
//!
//! - a cluster is 512 bytes to 2 MiB, and 16 KiB at least where L2 entries are extended;
//! - no incompatible feature bit is set that [`INCOMPATIBLE_KNOWN`] does not name;
//! - the L1 table maps the whole disk, so that the disk is no larger than 2^61 bytes;
//! - L1 table, refcount table, snapshot table, bitmap directory and encryption header lie within the file, on cluster boundaries, behind the
//!   first cluster and apart from one another. The file may end within the last cluster of one: what is missing there reads as zeroes;
//! - names have no NUL in them, and the lengths that the specification allows.
//!
//! What is done about an image that is dirty, corrupt, encrypted or has its data elsewhere is not decided here.

mod extensions;
mod places;
#[cfg(test)]
mod tests;

pub(super) use extensions::{BITMAPS_BYTES, BitmapsPlace, HEAD_BYTES, bitmaps_head, find_bitmaps};
pub use extensions::{BitmapsExtension, CryptoHeader, Extension, FeatureName, known_features};

use crate::{Error, ErrorKind, Result};
use extensions::Extensions;

/// Refcounts may be wrong: count anew before the image is used.
pub const DIRTY: u64 = 1 << 0;
/// Anything may be wrong: no writes, except to mend it.
pub const CORRUPT: u64 = 1 << 1;
/// The disk's data is in another file.
pub const EXTERNAL_DATA: u64 = 1 << 2;
/// Compressed clusters are not deflated, but as the header says.
pub const COMPRESSION_TYPE: u64 = 1 << 3;
/// L2 entries have 16 bytes, and clusters 32 subclusters.
pub const EXTENDED_L2: u64 = 1 << 4;
/// Incompatible features this driver knows.
pub const INCOMPATIBLE_KNOWN: u64 =
    DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;
/// Compatible feature: refcounts may be written late, with the dirty bit set.
pub const LAZY_REFCOUNTS: u64 = 1 << 0;
/// Autoclear feature: the bitmaps extension is right.
pub const BITMAPS_CONSISTENT: u64 = 1 << 0;
/// Autoclear feature: the data file is a raw image of the disk by itself.
pub const DATA_FILE_RAW: u64 = 1 << 1;

/// Smallest and largest binary logarithm of a cluster's bytes; the largest is QEMU's, not the specification's.
pub const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Largest L1 table that QEMU opens, in bytes.
pub const L1_BYTES_MAX: u64 = 32 << 20;
/// Largest refcount table that QEMU opens, in bytes.
pub const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// Most snapshots of an image that QEMU opens.
pub const SNAPSHOTS_MAX: u32 = 65536;
/// Longest name of a backing file, in bytes.
pub const BACKING_NAME_MAX: u32 = 1023;
/// Binary logarithm of the fewest bytes of a cluster with subclusters, of which each has a sector then.
pub const SUBCLUSTERS_BITS_MIN: u32 = 14;
/// Binary logarithm of the subclusters of a cluster.
const SUBCLUSTERS_ORDER: u32 = 5;
/// Length of a version 2 header.
pub const V2_BYTES: u32 = 72;
/// Least length of a version 3 header.
pub const V3_BYTES: u32 = 104;
/// Length of a header with all fields that are known, rounded as it must be.
pub const FULL_BYTES: u32 = 112;

const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
/// Where the compression type stands: 1 byte.
const COMPRESSION_AT: usize = 104;
/// Refcounts of version 2 have 16 bits.
const V2_REFCOUNT_ORDER: u32 = 4;

/// How the disk's data is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CryptMethod {
    /// Not at all.
    None,
    /// AES-CBC with the password as key: legacy.
    Aes,
    /// As the LUKS header says that [`Header::crypto`] points to.
    Luks,
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    /// Deflate without a zlib header, whatever its name says.
    #[default]
    Zlib,
    /// Zstandard.
    Zstd,
}

/// What an image says of the file it stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingFile {
    /// Its name: 1 to 1023 bytes without NUL, and otherwise anything.
    pub name: Vec<u8>,
    /// Its format's name, at most 15 bytes, if it is recorded.
    pub format: Option<Vec<u8>>,
}

/// What a qcow2 header says, checked: its existence is the proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version: 2 or 3.
    pub version: u32,
    /// Binary logarithm of a cluster's bytes: 9 to 21.
    pub cluster_bits: u32,
    /// Size of the disk as stored. It need not be whole sectors.
    pub disk_bytes: u64,
    /// Entries of the active L1 table: enough for the disk, perhaps more.
    pub l1_entries: u32,
    /// Where it starts.
    pub l1_table: u64,
    /// Where the refcount table starts.
    pub refcount_table: u64,
    /// Its clusters: 1 at least.
    pub refcount_table_clusters: u32,
    /// Binary logarithm of a refcount's bits: 0 to 6.
    pub refcount_order: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Where their table starts, if there are any.
    pub snapshot_table: u64,
    /// Encryption.
    pub crypt_method: CryptMethod,
    /// Incompatible feature bits, all of them known.
    pub incompatible: u64,
    /// Compatible feature bits: kept as they are.
    pub compatible: u64,
    /// Feature bits to be cleared, before the first write, by who does not know them.
    pub autoclear: u64,
    /// Length of the fields: 72 in version 2; in version 3, 104 at least and a multiple of 8.
    pub header_bytes: u32,
    /// What compressed clusters are compressed with.
    pub compression: Compression,
    /// The backing file.
    pub backing: Option<BackingFile>,
    /// Name of the data file, if one is recorded. Whether there is one is for [`EXTERNAL_DATA`] to say.
    pub data_file: Option<Vec<u8>>,
    /// Bitmaps. Their content is wrong unless [`BITMAPS_CONSISTENT`] is set.
    pub bitmaps: Option<BitmapsExtension>,
    /// Where the encryption header is: there with LUKS, and only then.
    pub crypto: Option<CryptoHeader>,
    /// Names for feature bits, for the eyes of those whose software does not know them.
    pub feature_names: Vec<FeatureName>,
    /// Extensions that are not known: kept, in their order.
    pub unknown_extensions: Vec<Extension>,
    /// What the fields hold behind the compression type, that is from byte 105 on, without the zeroes at the end: fields to be kept.
    pub extra: Vec<u8>,
}

impl Header {
    /// Checks the beginning of a file of `file_bytes` bytes. `start` is its first cluster, or all of it if it is shorter: as the cluster's size is
    /// known only from here, up to 2 MiB, of which what is not needed is not looked at.
    ///
    /// # Errors
    ///
    /// `Corrupt` if something contradicts the specification or reaches out of the file, `Unsupported` if the image needs something that we do not
    /// know: such an image is valid, and must not be touched. `BadRequest` if `start` is too short for the file.
    pub fn parse(start: &[u8], file_bytes: u64) -> Result<Header> {
        let raw = Raw::new(start)?;
        let cluster = 1 << raw.cluster_bits;
        if (raw.first.len() as u64) < file_bytes.min(cluster) {
            let why = "reading a qcow2 header: its first cluster is not all there";
            return Err(Error::new(ErrorKind::BadRequest, why));
        }
        Header::check(&raw, file_bytes)
    }

    fn check(raw: &Raw, file_bytes: u64) -> Result<Header> {
        let mut header = raw.header()?;
        // Names first: they are for the message about features that nobody knows.
        let read = Extensions::read(raw, &header);
        let names = read.as_ref().map_or(&[][..], |extensions| &extensions.feature_names);
        check_incompatible(header.incompatible, names)?;
        let extensions = read?;
        header.compression = raw.compression(header.incompatible)?;
        header.check_geometry()?;
        header.backing = raw
            .backing_name()?
            .map(|name| BackingFile { name: name.to_vec(), format: extensions.backing_format });
        header.data_file = extensions.data_file;
        header.bitmaps = extensions.bitmaps;
        header.crypto = extensions.crypto;
        header.feature_names = extensions.feature_names;
        header.unknown_extensions = extensions.unknown;
        if header.autoclear & BITMAPS_CONSISTENT == 0 && header.check_places(file_bytes).is_err() {
            // Whoever cleared the bit may have changed anything, and says that nobody should look.
            header.bitmaps = None;
        }
        header.check_places(file_bytes)?;
        Ok(header)
    }

    /// The bytes of the whole header: fields, extensions, the backing file's name. What follows in the first cluster is to be zeroes.
    ///
    /// # Errors
    ///
    /// `BadRequest` if it does not fit in a cluster, or if [`Header::parse`] would not give back the same from it.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let refuse =
            |why: &str| Error::new(ErrorKind::BadRequest, format!("making a qcow2 header: {why}"));
        let fields = self.header_bytes as usize;
        // Before a length that somebody set by hand makes us take memory for it.
        if !CLUSTER_BITS.contains(&self.cluster_bits) || fields as u64 > self.cluster_bytes() {
            return Err(refuse("the fields do not fit in a cluster"));
        }
        let mut raw = vec![0; fields.max(V2_BYTES as usize)];
        self.write_fields(&mut raw);
        if let Some(place) = raw.get_mut(COMPRESSION_AT + 1..).filter(|_| !self.extra.is_empty()) {
            let kept = place.get_mut(..self.extra.len());
            kept.ok_or_else(|| refuse("unknown fields are longer than the header"))?
                .copy_from_slice(&self.extra);
        }
        extensions::write(self, &mut raw);
        if let Some(backing) = &self.backing {
            let at = raw.len() as u64;
            let len = u32::try_from(backing.name.len()).unwrap_or(u32::MAX);
            put64(&mut raw, 8, at);
            put32(&mut raw, 16, len);
            raw.extend_from_slice(&backing.name);
        }
        if raw.len() as u64 > self.cluster_bytes() {
            return Err(refuse(&format!(
                "{} bytes with extensions and the backing file's name do not fit in a cluster of {}",
                raw.len(),
                self.cluster_bytes()
            )));
        }
        // The fields are anybody's to set: what contradicts itself is found here, and not by who opens the image next.
        match Raw::new(&raw).and_then(|raw| Header::check(&raw, u64::MAX)) {
            Ok(again) if again == *self => Ok(raw),
            Ok(_) => Err(refuse("the format has no place for some value")),
            Err(error) => Err(refuse(&error.to_string())),
        }
    }

    /// Writes the fields over those of an encoded header of the same version and length, of which `start` holds them all. Nothing moves: where the
    /// backing file's name is, extensions and unknown fields stay as they are. So a bit or a pointer is changed by one write of 512 bytes.
    ///
    /// # Panics
    ///
    /// Panics if `start` is shorter than the known fields are, at most 112 bytes.
    pub fn patch(&self, start: &mut [u8]) {
        let end = self.header_bytes.min(FULL_BYTES) as usize;
        self.write_fields(&mut start[..end]);
    }

    /// All fields that are known, except the place of the backing file's name, into `raw`, which ends where they end or later.
    fn write_fields(&self, raw: &mut [u8]) {
        put32(raw, 0, MAGIC);
        put32(raw, 4, self.version);
        put32(raw, 20, self.cluster_bits);
        put64(raw, 24, self.disk_bytes);
        put32(raw, 32, self.crypt_method.to_raw());
        put32(raw, 36, self.l1_entries);
        put64(raw, 40, self.l1_table);
        put64(raw, 48, self.refcount_table);
        put32(raw, 56, self.refcount_table_clusters);
        put32(raw, 60, self.snapshots);
        put64(raw, 64, self.snapshot_table);
        if raw.len() >= V3_BYTES as usize {
            put64(raw, 72, self.incompatible);
            put64(raw, 80, self.compatible);
            put64(raw, 88, self.autoclear);
            put32(raw, 96, self.refcount_order);
            put32(raw, 100, self.header_bytes);
        }
        if let Some(byte) = raw.get_mut(COMPRESSION_AT) {
            *byte = self.compression.to_raw();
        }
    }

    /// What the fields say of sizes, as far as the file's length does not matter.
    fn check_geometry(&self) -> Result<()> {
        if self.refcount_order > 6 {
            return Err(corrupt("refcounts have more than 64 bits"));
        }
        if self.has_subclusters() && self.cluster_bits < SUBCLUSTERS_BITS_MIN {
            return Err(corrupt("L2 entries are extended, but clusters are smaller than 16 KiB"));
        }
        if u64::from(self.l1_entries) * 8 > L1_BYTES_MAX {
            return Err(corrupt("the L1 table is larger than 32 MiB"));
        }
        let needed = self.l1_entries_needed(self.disk_bytes);
        if needed > u64::from(self.l1_entries) {
            return Err(corrupt(&format!(
                "the L1 table is too small: it has {} of the {needed} entries that a disk of {} bytes needs",
                self.l1_entries, self.disk_bytes
            )));
        }
        if self.refcount_table_clusters == 0 {
            return Err(corrupt("there is no refcount table"));
        }
        if self.refcount_table_bytes() > REFCOUNT_TABLE_BYTES_MAX {
            return Err(corrupt("the refcount table is larger than 8 MiB"));
        }
        if self.snapshots > SNAPSHOTS_MAX {
            return Err(corrupt("there are more than 65536 snapshots"));
        }
        if self.autoclear & DATA_FILE_RAW != 0 && !self.has(EXTERNAL_DATA) {
            return Err(corrupt("the data file is raw, but there is no data file"));
        }
        Ok(())
    }

    /// Bytes of a cluster.
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of an L2 entry: 8, or 16 if it is extended.
    pub fn l2_entry_bytes(&self) -> u64 {
        if self.has_subclusters() { 16 } else { 8 }
    }

    /// Entries of an L2 table, which is a cluster.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_bytes() / self.l2_entry_bytes()
    }

    /// Entries of the L1 table that a disk of this size needs.
    pub fn l1_entries_needed(&self, disk_bytes: u64) -> u64 {
        disk_bytes.div_ceil(self.cluster_bytes()).div_ceil(self.l2_entries())
    }

    /// Clusters of the disk, the last of them perhaps in part.
    pub fn disk_clusters(&self) -> u64 {
        self.disk_bytes.div_ceil(self.cluster_bytes())
    }

    /// Bytes of the refcount table.
    pub fn refcount_table_bytes(&self) -> u64 {
        u64::from(self.refcount_table_clusters) << self.cluster_bits
    }

    /// Bits of a refcount: 1 to 64.
    pub fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }

    /// Refcounts in a refcount block, which is a cluster.
    pub fn refcounts_per_block(&self) -> u64 {
        self.cluster_bytes() * 8 / u64::from(self.refcount_bits())
    }

    /// Whether all these incompatible feature bits are set.
    pub fn has(&self, incompatible: u64) -> bool {
        self.incompatible & incompatible == incompatible
    }

    /// Whether L2 entries are extended.
    pub fn has_subclusters(&self) -> bool {
        self.has(EXTENDED_L2)
    }

    /// Binary logarithm of a subcluster's bytes: without subclusters, of a cluster's.
    pub fn subcluster_bits(&self) -> u32 {
        self.cluster_bits - if self.has_subclusters() { SUBCLUSTERS_ORDER } else { 0 }
    }

    /// Whether an L2 entry can say that a cluster reads as zeroes.
    pub fn is_zero_capable(&self) -> bool {
        self.version >= 3
    }

    /// Autoclear feature bits that we do not know: to be cleared before the first write.
    pub fn unknown_autoclear(&self) -> u64 {
        self.autoclear & !(BITMAPS_CONSISTENT | DATA_FILE_RAW)
    }
}

impl CryptMethod {
    fn from_raw(value: u32) -> Result<CryptMethod> {
        match value {
            0 => Ok(CryptMethod::None),
            1 => Ok(CryptMethod::Aes),
            2 => Ok(CryptMethod::Luks),
            _ => Err(unsupported(&format!("unknown encryption method {value}"))),
        }
    }

    fn to_raw(self) -> u32 {
        match self {
            CryptMethod::None => 0,
            CryptMethod::Aes => 1,
            CryptMethod::Luks => 2,
        }
    }
}

impl Compression {
    fn to_raw(self) -> u8 {
        match self {
            Compression::Zlib => 0,
            Compression::Zstd => 1,
        }
    }
}

/// The bytes of a header, of which version, length of the fields and cluster size are known to be good.
struct Raw<'a> {
    /// The first cluster, as far as the file reaches.
    first: &'a [u8],
    /// The fields that are known; zeroes where the header has none.
    fields: [u8; FULL_BYTES as usize],
    version: u32,
    cluster_bits: u32,
    header_bytes: u32,
}

impl<'a> Raw<'a> {
    fn new(start: &'a [u8]) -> Result<Raw<'a>> {
        if start.len() < 4 || be32(start, 0) != MAGIC {
            return Err(corrupt("it does not begin with the magic number of qcow2"));
        }
        if start.len() < V2_BYTES as usize {
            return Err(corrupt("the file ends within the header"));
        }
        let version = be32(start, 4);
        let header_bytes = match version {
            2 => V2_BYTES,
            3 if start.len() < V3_BYTES as usize => {
                return Err(corrupt("the file ends within the header"));
            }
            3 => be32(start, 100),
            _ => return Err(unsupported(&format!("unknown version {version}"))),
        };
        let cluster_bits = be32(start, 20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(corrupt("clusters are not 512 bytes to 2 MiB"));
        }
        let cluster = 1usize << cluster_bits;
        let least = if version == 2 { V2_BYTES } else { V3_BYTES };
        if header_bytes < least
            || !header_bytes.is_multiple_of(8)
            || header_bytes as usize > cluster
        {
            return Err(corrupt(&format!("an impossible header length of {header_bytes} bytes")));
        }
        let first = &start[..start.len().min(cluster)];
        if header_bytes as usize > first.len() {
            return Err(corrupt("the file ends within the header"));
        }
        let mut fields = [0; FULL_BYTES as usize];
        let known = header_bytes.min(FULL_BYTES) as usize;
        fields[..known].copy_from_slice(&first[..known]);
        Ok(Raw { first, fields, version, cluster_bits, header_bytes })
    }

    /// The fields, not checked against one another, and nothing of extensions and names.
    fn header(&self) -> Result<Header> {
        let (be32, be64) = (|at| be32(&self.fields, at), |at| be64(&self.fields, at));
        let extra = self.first[..self.header_bytes as usize].get(COMPRESSION_AT + 1..);
        let extra = extra.unwrap_or(&[]);
        let extra_len = extra.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Ok(Header {
            version: self.version,
            cluster_bits: self.cluster_bits,
            disk_bytes: be64(24),
            l1_entries: be32(36),
            l1_table: be64(40),
            refcount_table: be64(48),
            refcount_table_clusters: be32(56),
            refcount_order: if self.version == 2 { V2_REFCOUNT_ORDER } else { be32(96) },
            snapshots: be32(60),
            snapshot_table: be64(64),
            crypt_method: CryptMethod::from_raw(be32(32))?,
            incompatible: be64(72),
            compatible: be64(80),
            autoclear: be64(88),
            header_bytes: self.header_bytes,
            compression: Compression::Zlib,
            backing: None,
            data_file: None,
            bitmaps: None,
            crypto: None,
            feature_names: Vec::new(),
            unknown_extensions: Vec::new(),
            extra: extra[..extra_len].to_vec(),
        })
    }

    fn compression(&self, incompatible: u64) -> Result<Compression> {
        let is_other = incompatible & COMPRESSION_TYPE != 0;
        match (self.fields[COMPRESSION_AT], is_other) {
            (0, false) => Ok(Compression::Zlib),
            (1, true) => Ok(Compression::Zstd),
            (0, true) => Err(corrupt("the compression type bit is set, and the type is zlib")),
            (_, false) => Err(corrupt("a compression type without the compression type bit")),
            (other, true) => Err(unsupported(&format!("unknown compression type {other}"))),
        }
    }

    /// Where the area of the extensions ends: at the backing file's name, if there is one.
    fn extensions_end(&self) -> Result<usize> {
        let name_at = be64(&self.fields, 8);
        if name_at == 0 {
            return Ok(self.first.len());
        }
        let cluster = 1u64 << self.cluster_bits;
        if name_at < u64::from(self.header_bytes) || name_at > cluster {
            return Err(corrupt("the backing file's name is not in the first cluster"));
        }
        let name_at = usize::try_from(name_at).expect("within the first cluster");
        Ok(name_at.min(self.first.len()))
    }

    /// A name of no bytes is no name: QEMU takes it so.
    fn backing_name(&self) -> Result<Option<&'a [u8]>> {
        let (at, len) = (be64(&self.fields, 8), be32(&self.fields, 16));
        if at == 0 || len == 0 {
            return Ok(None);
        }
        if len > BACKING_NAME_MAX {
            return Err(corrupt("the backing file's name is longer than 1023 bytes"));
        }
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let name = at.checked_add(len as usize).and_then(|end| self.first.get(at..end));
        let name =
            name.ok_or_else(|| corrupt("the backing file's name leaves the first cluster"))?;
        check_name(name, "the backing file's name")?;
        Ok(Some(name))
    }
}

/// Whoever takes a name as a C string would open another file than who takes it as bytes.
fn check_name(name: &[u8], whose: &str) -> Result<()> {
    match name.contains(&0) {
        true => Err(corrupt(&format!("{whose} has a NUL in it"))),
        false => Ok(()),
    }
}

fn check_incompatible(incompatible: u64, names: &[FeatureName]) -> Result<()> {
    let unknown = incompatible & !INCOMPATIBLE_KNOWN;
    if unknown == 0 {
        return Ok(());
    }
    let bits = (0..64u8).filter(|bit| unknown & (1 << bit) != 0);
    let named: Vec<String> = bits
        .map(|bit| {
            let found = names.iter().find(|name| (name.kind, name.bit) == (0, bit));
            found.map_or(format!("bit {bit}"), |found| format!("{}", found.name.escape_ascii()))
        })
        .collect();
    Err(unsupported(&format!("unknown incompatible features: {}", named.join(", "))))
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("qcow2 header: {what}"))
}

fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("qcow2 header: {what}"))
}

fn be32(raw: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(*raw[at..].first_chunk().expect("who asks has looked at the length"))
}

fn be64(raw: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(*raw[at..].first_chunk().expect("who asks has looked at the length"))
}

fn put32(raw: &mut [u8], at: usize, value: u32) {
    raw[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(raw: &mut [u8], at: usize, value: u64) {
    raw[at..at + 8].copy_from_slice(&value.to_be_bytes());
}
