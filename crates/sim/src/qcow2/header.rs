//! The qcow2 header and its extensions: bytes in, checked values out.
//!
//! ```text
//!   byte 0     4         8               20             24     32      36        40    48         56         60     64
//!   "QFI\xfb" | version | backing at,len | cluster_bits | size | crypt | l1_size | l1  | reftable | clusters | nb   | snapshots
//!   72 (v3)        80           88          96               100          104
//!   incompatible | compatible | autoclear | refcount_order | header_len | compression_type     then extensions, then 0
//! ```
//!
//! Big-endian. Specification: QEMU `docs/interop/qcow2.rst`, "Header", "Additional fields", "Header extensions".

use crate::ImageFile;
use std::collections::BTreeSet;

const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
const V2_LEN: u64 = 72;
const V3_LEN: u64 = 104;
/// Cluster sizes from 512 bytes to 2 MiB: QEMU opens no larger ones, and the specification says so.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// The least `cluster_bits` with extended L2 entries.
const EXTENDED_L2_BITS: u32 = 14;
const BACKING_NAME_MAX: u64 = 1023;

pub(super) const DIRTY: u64 = 1;
pub(super) const CORRUPT: u64 = 1 << 1;
pub(super) const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
pub(super) const EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_KNOWN: u64 = 0x1f;
const AUTOCLEAR_BITMAPS: u64 = 1;
const AUTOCLEAR_RAW_DATA_FILE: u64 = 1 << 1;

const EXTENSION_END: u32 = 0;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const EXTENSION_CRYPT: u32 = 0x0537_be77;
const CRYPT_LUKS: u32 = 2;

/// What makes a header unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// The file ends within it.
    Short,
    /// Not a qcow2 image.
    Magic,
    /// Neither 2 nor 3.
    Version(u32),
    /// Below 9 (14 with extended L2 entries), or above 21.
    ClusterBits(u32),
    /// Incompatible features that the specification does not know.
    Features(u64),
    /// Above 6.
    RefcountOrder(u32),
    /// Below 104, not a multiple of 8, or longer than a cluster.
    HeaderLen(u32),
    /// Unknown, or set without its feature bit, or the bit without it.
    CompressionType(u8),
    /// An unknown encryption method, or LUKS without its header, or its header without LUKS.
    Crypt(u32),
    /// Unaligned, or not within the file.
    L1Table(u64),
    /// Fewer L1 entries than the disk needs.
    L1Size(u32),
    /// Unaligned, empty, or not within the file.
    RefcountTable(u64),
    /// Unaligned, or snapshots in an image with an external data file.
    Snapshots(u64),
    /// The backing file's name is too long or not in the first cluster.
    BackingName,
    /// A header extension is longer than the rest of the cluster, appears twice, or has a wrong length.
    Extension(u32),
    /// Autoclear bits that contradict what else the header has.
    Autoclear(u64),
}

/// What the bitmaps extension says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bitmaps {
    pub count: u32,
    pub directory_len: u64,
    pub directory_at: u64,
}

/// A header in which every value is legal by itself.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub version: u32,
    pub has_backing: bool,
    pub cluster_bits: u32,
    pub disk_size: u64,
    pub crypt: u32,
    pub l1_size: u32,
    pub l1_at: u64,
    pub refcount_table_at: u64,
    pub refcount_table_clusters: u32,
    pub snapshots: u32,
    pub snapshots_at: u64,
    pub incompatible: u64,
    pub refcount_order: u32,
    /// Only if they are to be considered consistent.
    pub bitmaps: Option<Bitmaps>,
    /// Where the LUKS header is, and its length.
    pub crypt_header: Option<(u64, u64)>,
}

#[derive(Default)]
struct Extensions {
    bitmaps: Option<Bitmaps>,
    crypt_header: Option<(u64, u64)>,
}

/// Big-endian fields of a file.
pub(super) struct Fields<'a, F: ?Sized>(pub &'a F);

impl<F: ImageFile + ?Sized> Fields<'_, F> {
    pub fn array<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut raw = [0; N];
        self.0.read_at(at, &mut raw);
        raw
    }

    pub fn half(&self, at: u64) -> u16 {
        u16::from_be_bytes(self.array(at))
    }

    pub fn word(&self, at: u64) -> u32 {
        u32::from_be_bytes(self.array(at))
    }

    pub fn long(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.array(at))
    }
}

impl Header {
    /// Reads the header. Gives all that is wrong with it, as far as one fault does not hide another.
    pub fn parse<F: ImageFile + ?Sized>(file: &F) -> Result<Header, Vec<HeaderFault>> {
        let fields = Fields(file);
        let version = fields.word(4);
        if file.len() < 8 {
            return Err(vec![HeaderFault::Short]);
        }
        if fields.word(0) != MAGIC {
            return Err(vec![HeaderFault::Magic]);
        }
        if !(2..=3).contains(&version) {
            return Err(vec![HeaderFault::Version(version)]);
        }
        if file.len() < if version == 2 { V2_LEN } else { V3_LEN } {
            return Err(vec![HeaderFault::Short]);
        }
        let if_v3 = |value: u64| if version == 2 { 0 } else { value };
        let header = Header {
            version,
            has_backing: fields.long(8) != 0,
            cluster_bits: fields.word(20),
            disk_size: fields.long(24),
            crypt: fields.word(32),
            l1_size: fields.word(36),
            l1_at: fields.long(40),
            refcount_table_at: fields.long(48),
            refcount_table_clusters: fields.word(56),
            snapshots: fields.word(60),
            snapshots_at: fields.long(64),
            incompatible: if_v3(fields.long(72)),
            refcount_order: if version == 2 { 4 } else { fields.word(96) },
            bitmaps: None,
            crypt_header: None,
        };
        let faults = header.faults_of_shape();
        if faults.is_empty() { header.parse_rest(&fields) } else { Err(faults) }
    }

    /// What makes the rest unreadable.
    fn faults_of_shape(&self) -> Vec<HeaderFault> {
        let mut faults = Vec::new();
        if self.incompatible & !INCOMPATIBLE_KNOWN != 0 {
            faults.push(HeaderFault::Features(self.incompatible));
        }
        let fits_extended = !self.has(EXTENDED_L2) || self.cluster_bits >= EXTENDED_L2_BITS;
        if !CLUSTER_BITS.contains(&self.cluster_bits) || !fits_extended {
            faults.push(HeaderFault::ClusterBits(self.cluster_bits));
        }
        if self.refcount_order > 6 {
            faults.push(HeaderFault::RefcountOrder(self.refcount_order));
        }
        faults
    }

    fn parse_rest<F: ImageFile + ?Sized>(
        mut self,
        fields: &Fields<'_, F>,
    ) -> Result<Header, Vec<HeaderFault>> {
        let header_len = match self.version {
            2 => V2_LEN,
            _ => u64::from(fields.word(100)),
        };
        let mut faults = Vec::new();
        let len_fits = self.version == 2 || header_len >= V3_LEN && header_len.is_multiple_of(8);
        if !len_fits || header_len > self.cluster() {
            return Err(vec![HeaderFault::HeaderLen(fields.word(100))]);
        }
        let has_field = self.version > 2 && header_len > V3_LEN;
        let [compression] = if has_field { fields.array(V3_LEN) } else { [0] };
        let is_other = self.has(COMPRESSION_TYPE);
        if compression > 1 || is_other != (compression != 0) {
            faults.push(HeaderFault::CompressionType(compression));
        }

        let (name_at, name_len) = (fields.long(8), u64::from(fields.word(16)));
        let mut extensions_end = self.cluster();
        if self.has_backing {
            let end = name_at.checked_add(name_len);
            if name_len > BACKING_NAME_MAX || end.is_none_or(|end| end > self.cluster()) {
                faults.push(HeaderFault::BackingName);
            } else {
                extensions_end = name_at;
            }
        }
        let extensions = match extensions(fields, header_len..extensions_end) {
            Ok(extensions) => extensions,
            Err(fault) => {
                faults.push(fault);
                Extensions::default()
            }
        };
        let wants_luks = self.crypt == CRYPT_LUKS;
        if self.crypt > CRYPT_LUKS || wants_luks != extensions.crypt_header.is_some() {
            faults.push(HeaderFault::Crypt(self.crypt));
        }
        let autoclear = if self.version == 2 { 0 } else { fields.long(88) };
        let has_bitmaps = autoclear & AUTOCLEAR_BITMAPS != 0;
        let is_raw = autoclear & AUTOCLEAR_RAW_DATA_FILE != 0;
        let raw_fits = !is_raw || self.has(DATA_FILE) && !self.has_backing;
        if has_bitmaps && extensions.bitmaps.is_none() || !raw_fits {
            faults.push(HeaderFault::Autoclear(autoclear));
        }
        self.faults_of_tables(fields.0.len(), &mut faults);
        self.bitmaps = extensions.bitmaps.filter(|_| has_bitmaps);
        self.crypt_header = extensions.crypt_header;
        if faults.is_empty() { Ok(self) } else { Err(faults) }
    }

    fn faults_of_tables(&self, file_len: u64, faults: &mut Vec<HeaderFault>) {
        let fits = |at: u64, len: u64| {
            let end = at.checked_add(len);
            at.is_multiple_of(self.cluster()) && end.is_some_and(|end| end <= file_len)
        };
        if self.l1_size > 0 && !fits(self.l1_at, 8 * u64::from(self.l1_size)) {
            faults.push(HeaderFault::L1Table(self.l1_at));
        }
        let needed = u128::from(self.disk_size).div_ceil(self.l1_span());
        if needed > u128::from(self.l1_size) {
            faults.push(HeaderFault::L1Size(self.l1_size));
        }
        // Its last cluster may be cut off by the end of the file.
        let table_len = u64::from(self.refcount_table_clusters) << self.cluster_bits;
        let is_empty = self.refcount_table_clusters == 0;
        if is_empty || !fits(self.refcount_table_at, table_len - self.cluster() + 8) {
            faults.push(HeaderFault::RefcountTable(self.refcount_table_at));
        }
        let is_aligned = self.snapshots_at.is_multiple_of(self.cluster());
        if self.snapshots > 0 && (!is_aligned || self.has(DATA_FILE)) {
            faults.push(HeaderFault::Snapshots(self.snapshots_at));
        }
    }

    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub fn has(&self, feature: u64) -> bool {
        self.incompatible & feature != 0
    }

    /// Bytes of an L2 entry.
    pub fn l2_entry_len(&self) -> u64 {
        if self.has(EXTENDED_L2) { 16 } else { 8 }
    }

    pub fn l2_entries(&self) -> u64 {
        self.cluster() / self.l2_entry_len()
    }

    /// Bytes of the disk that an L1 entry maps.
    pub fn l1_span(&self) -> u128 {
        u128::from(self.l2_entries()) * u128::from(self.cluster())
    }
}

fn extensions<F: ImageFile + ?Sized>(
    fields: &Fields<'_, F>,
    area: std::ops::Range<u64>,
) -> Result<Extensions, HeaderFault> {
    let mut found = Extensions::default();
    let mut seen = BTreeSet::new();
    let mut at = area.start;
    while at + 8 <= area.end {
        let (kind, len) = (fields.word(at), u64::from(fields.word(at + 4)));
        if kind == EXTENSION_END {
            break;
        }
        at += 8;
        if len > area.end - at || !seen.insert(kind) {
            return Err(HeaderFault::Extension(kind));
        }
        match (kind, len) {
            (EXTENSION_BITMAPS, 24) => {
                let count = fields.word(at);
                if count == 0 || fields.word(at + 4) != 0 {
                    return Err(HeaderFault::Extension(kind));
                }
                let (directory_len, directory_at) = (fields.long(at + 8), fields.long(at + 16));
                found.bitmaps = Some(Bitmaps { count, directory_len, directory_at });
            }
            (EXTENSION_CRYPT, 16) => {
                found.crypt_header = Some((fields.long(at), fields.long(at + 8)));
            }
            (EXTENSION_BITMAPS | EXTENSION_CRYPT, _) => return Err(HeaderFault::Extension(kind)),
            _ => {}
        }
        at += len.next_multiple_of(8);
    }
    Ok(found)
}
