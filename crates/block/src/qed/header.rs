//! The QED image header: bytes in, checked values out.
//!
//! ```text
//! byte 0      4              8            12            16         24        32
//!      +------+--------------+------------+-------------+----------+---------+------------+
//!      |"QED" | cluster_size | table_size | header_size | features | compat  | autoclear  |
//!      | \0   | bytes        | clusters   | clusters    | bits     | bits    | bits       |
//!      +------+--------------+------------+-------------+----------+---------+------------+
//!     40                 48            56                 60               64
//!      +-----------------+-------------+------------------+----------------+
//!      | l1_table_offset | image_size  | backing name at  | backing name   |
//!      | bytes           | bytes       | bytes            | length, bytes  |
//!      +-----------------+-------------+------------------+----------------+
//! ```
//!
//! All fields are little-endian. Specification: QEMU `docs/interop/qed_spec.rst`, "Header".
//!
//! A [`Header`] exists only if every check of [`Header::parse`] passed, so the rest of the driver holds these without looking again:
//!
//! - the cluster size is a power of two from 4 KiB to 64 MiB, a table 1 to 16 clusters;
//! - no incompatible feature bit is set that [`FEATURES_KNOWN`] does not name;
//! - header and L1 table lie in the file, on cluster boundaries, one after the other;
//! - the disk is whole sectors, and no larger than the tables can map.

use crate::{Error, ErrorKind, Result, SECTOR};

/// The image has a backing file.
pub const FEATURE_BACKING_FILE: u64 = 1;
/// The image must be checked before it is used.
pub const FEATURE_NEED_CHECK: u64 = 2;
/// The backing file is raw, whatever its first bytes look like.
pub const FEATURE_BACKING_NO_PROBE: u64 = 4;
/// Incompatible features this driver implements.
pub const FEATURES_KNOWN: u64 =
    FEATURE_BACKING_FILE | FEATURE_NEED_CHECK | FEATURE_BACKING_NO_PROBE;

/// Largest name of a backing file, in bytes.
pub const BACKING_NAME_MAX: u32 = 1023;
/// Largest offset in a file, and so the largest disk: a file's length is a signed number.
pub const OFFSET_MAX: u64 = i64::MAX as u64;

const HEADER_BYTES: u32 = 64;
const MAGIC: u32 = u32::from_le_bytes(*b"QED\0");

/// A checked QED header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    cluster_bits: u32,
    table_clusters: u32,
    header_clusters: u32,
    /// Incompatible feature bits.
    pub features: u64,
    /// Compatible feature bits: kept as they are.
    pub compat: u64,
    /// Feature bits to be cleared by who does not know them.
    pub autoclear: u64,
    l1_table: u64,
    image_bytes: u64,
    backing_at: u32,
    backing_bytes: u32,
}

impl Header {
    /// Bytes of header that [`Header::parse`] reads.
    pub const LEN: usize = HEADER_BYTES as usize;

    /// Checks the first [`Header::LEN`] bytes of a file of `file_bytes` bytes.
    ///
    /// # Errors
    ///
    /// `Corrupt` if a field is out of range, `Unsupported` if the image needs a feature bit that we do not know: such an image is valid, and must
    /// not be touched.
    pub fn parse(raw: &[u8; Header::LEN], file_bytes: u64) -> Result<Header> {
        if le32(raw, 0) != MAGIC {
            return Err(corrupt("it does not begin with the magic number of QED"));
        }
        let features = le64(raw, 16);
        let unknown = features & !FEATURES_KNOWN;
        if unknown != 0 {
            let what = format!("QED header: unknown feature bits {unknown:#x}");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let header = Header {
            cluster_bits: cluster_bits(u64::from(le32(raw, 4)))?,
            table_clusters: table_clusters(u64::from(le32(raw, 8)))?,
            header_clusters: le32(raw, 12),
            features,
            compat: le64(raw, 24),
            autoclear: le64(raw, 32),
            l1_table: le64(raw, 40),
            image_bytes: le64(raw, 48),
            backing_at: le32(raw, 56),
            backing_bytes: le32(raw, 60),
        };
        header.check_places(file_bytes)?;
        check_size(header.image_bytes, header.cluster_bits, header.table_clusters)?;
        header.check_backing()?;
        Ok(header)
    }

    fn check_places(&self, file_bytes: u64) -> Result<()> {
        let header_bytes = self.first_cluster();
        // More than 4 GiB of header is nobody's, and would have to be gone through cluster by cluster.
        if header_bytes > u64::from(u32::MAX) {
            return Err(corrupt("the header is longer than 4 GiB"));
        }
        if self.header_clusters == 0 || header_bytes > file_bytes {
            return Err(corrupt("the header is 0 clusters long, or longer than the file"));
        }
        if !self.l1_table.is_multiple_of(self.cluster_bytes()) || self.l1_table < header_bytes {
            return Err(corrupt(
                "the L1 table overlaps the header or is not on a cluster boundary",
            ));
        }
        match self.l1_table.checked_add(self.table_bytes()) {
            Some(end) if end <= file_bytes => Ok(()),
            _ => Err(corrupt("the L1 table reaches beyond the end of the file")),
        }
    }

    fn check_backing(&self) -> Result<()> {
        if !self.has_backing() {
            return Ok(());
        }
        if self.backing_bytes == 0 || self.backing_bytes > BACKING_NAME_MAX {
            return Err(corrupt("the backing file's name has 0 bytes, or more than 1023"));
        }
        let end = u64::from(self.backing_at) + u64::from(self.backing_bytes);
        if self.backing_at < HEADER_BYTES || end > self.first_cluster() {
            return Err(corrupt("the backing file's name does not lie within the header"));
        }
        Ok(())
    }

    /// The header of a new image: one cluster, the L1 table after it. `backing` is the name, and whether the file is raw.
    ///
    /// # Errors
    ///
    /// `BadRequest` with the reason if a value is outside what the format can express.
    pub fn create(
        image_bytes: u64,
        cluster_bytes: u64,
        table: u64,
        backing: Option<(&[u8], bool)>,
    ) -> Result<Header> {
        let refuse = |error: Error| {
            Error::new(ErrorKind::BadRequest, error.to_string().replace("QED header: ", ""))
        };
        let cluster_bits = cluster_bits(cluster_bytes).map_err(refuse)?;
        let table_clusters = table_clusters(table).map_err(refuse)?;
        check_size(image_bytes, cluster_bits, table_clusters).map_err(refuse)?;
        let mut features = 0;
        let mut backing_bytes = 0;
        if let Some((name, raw)) = backing {
            features = FEATURE_BACKING_FILE | if raw { FEATURE_BACKING_NO_PROBE } else { 0 };
            backing_bytes = u32::try_from(name.len()).unwrap_or(u32::MAX);
        }
        let header = Header {
            cluster_bits,
            table_clusters,
            header_clusters: 1,
            features,
            compat: 0,
            autoclear: 0,
            l1_table: cluster_bytes,
            image_bytes,
            backing_at: if backing.is_some() { HEADER_BYTES } else { 0 },
            backing_bytes,
        };
        header.check_backing().map_err(refuse)?;
        Ok(header)
    }

    /// The same header for a disk of another size.
    pub fn with_image_bytes(&self, image_bytes: u64) -> Result<Header> {
        check_size(image_bytes, self.cluster_bits, self.table_clusters)?;
        Ok(Header { image_bytes, ..self.clone() })
    }

    /// The same header with NEED_CHECK set or not. Feature bits that an unknown writer may spoil are cleared: specification, "Header".
    pub fn marked(&self, needs_check: bool) -> Header {
        let features = self.features & !FEATURE_NEED_CHECK;
        let mark = if needs_check { FEATURE_NEED_CHECK } else { 0 };
        Header { features: features | mark, autoclear: 0, ..self.clone() }
    }

    /// The same header with the L1 table elsewhere: on a cluster boundary after the header.
    pub(crate) fn with_l1_table(&self, l1_table: u64) -> Header {
        Header { l1_table, ..self.clone() }
    }

    /// The same header with a backing file, whose name is `len` bytes at `at`.
    pub(crate) fn with_backing(&self, at: u64, len: u32, is_raw: bool) -> Header {
        let no_probe = if is_raw { FEATURE_BACKING_NO_PROBE } else { 0 };
        Header {
            features: self.features | FEATURE_BACKING_FILE | no_probe,
            backing_at: u32::try_from(at).expect("within the first cluster"),
            backing_bytes: len,
            ..self.clone()
        }
    }

    /// The same header without a backing file.
    pub(crate) fn without_backing(&self) -> Header {
        let features = self.features & !(FEATURE_BACKING_FILE | FEATURE_BACKING_NO_PROBE);
        Header { features, backing_at: 0, backing_bytes: 0, ..self.clone() }
    }

    /// The first [`Header::LEN`] bytes of the file.
    pub fn encode(&self) -> [u8; Header::LEN] {
        let mut raw = [0; Header::LEN];
        let words = [
            (0, MAGIC),
            (4, 1 << self.cluster_bits),
            (8, self.table_clusters),
            (12, self.header_clusters),
            (56, self.backing_at),
            (60, self.backing_bytes),
        ];
        for (at, value) in words {
            raw[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let longs = [
            (16, self.features),
            (24, self.compat),
            (32, self.autoclear),
            (40, self.l1_table),
            (48, self.image_bytes),
        ];
        for (at, value) in longs {
            raw[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        raw
    }

    /// Bytes of a cluster: a power of two from 4 KiB to 64 MiB.
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Its binary logarithm.
    pub fn cluster_bits(&self) -> u32 {
        self.cluster_bits
    }

    /// Clusters of a table: 1, 2, 4, 8 or 16.
    pub fn table_clusters(&self) -> u64 {
        u64::from(self.table_clusters)
    }

    /// Bytes of a table.
    pub fn table_bytes(&self) -> u64 {
        self.table_clusters() << self.cluster_bits
    }

    /// Entries of a table; one entry is 8 bytes.
    pub fn table_entries(&self) -> u64 {
        self.table_bytes() / 8
    }

    /// Where the header ends and regular clusters may begin, in bytes.
    pub fn first_cluster(&self) -> u64 {
        u64::from(self.header_clusters) << self.cluster_bits
    }

    /// Where the L1 table starts, in bytes.
    pub fn l1_table(&self) -> u64 {
        self.l1_table
    }

    /// Size of the virtual disk in bytes.
    pub fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    /// Clusters of the virtual disk, the last of them perhaps in part.
    pub fn image_clusters(&self) -> u64 {
        self.image_bytes.div_ceil(self.cluster_bytes())
    }

    /// Entries of the L1 table that the disk needs.
    pub fn l1_entries(&self) -> u64 {
        self.image_clusters().div_ceil(self.table_entries())
    }

    /// Whether a check is due before the image may be used.
    pub fn needs_check(&self) -> bool {
        self.features & FEATURE_NEED_CHECK != 0
    }

    /// Whether there is a backing file.
    pub fn has_backing(&self) -> bool {
        self.features & FEATURE_BACKING_FILE != 0
    }

    /// Whether the backing file is raw for certain, and its content must not be asked.
    pub fn backing_is_raw(&self) -> bool {
        self.features & FEATURE_BACKING_NO_PROBE != 0
    }

    /// Offset and length in bytes of the backing file's name in the file.
    pub fn backing_name(&self) -> Option<(u64, usize)> {
        let place = (u64::from(self.backing_at), self.backing_bytes as usize);
        self.has_backing().then_some(place)
    }
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("QED header: {what}"))
}

fn cluster_bits(bytes: u64) -> Result<u32> {
    match bytes.is_power_of_two() && (1 << 12..=1 << 26).contains(&bytes) {
        true => Ok(bytes.ilog2()),
        false => Err(corrupt("the cluster size is not a power of two from 4 KiB to 64 MiB")),
    }
}

fn table_clusters(clusters: u64) -> Result<u32> {
    match clusters {
        1 | 2 | 4 | 8 | 16 => Ok(u32::try_from(clusters).expect("at most 16")),
        _ => Err(corrupt("the table size is not 1, 2, 4, 8 or 16 clusters")),
    }
}

/// What two levels of tables can map may exceed 64 bits (clusters of 64 MiB, tables of 16): so it is computed in 128.
fn check_size(image_bytes: u64, cluster_bits: u32, table_clusters: u32) -> Result<()> {
    let entries = u128::from(table_clusters) << cluster_bits >> 3;
    let max = (entries * entries) << cluster_bits;
    if !image_bytes.is_multiple_of(SECTOR) {
        return Err(corrupt("the disk's size is not a multiple of 512 bytes"));
    }
    if u128::from(image_bytes) > max.min(u128::from(OFFSET_MAX)) {
        return Err(corrupt("the disk is larger than tables and clusters of these sizes can map"));
    }
    Ok(())
}

fn le32(raw: &[u8; Header::LEN], at: usize) -> u32 {
    u32::from_le_bytes(*raw[at..].first_chunk().expect("the field lies inside the header"))
}

fn le64(raw: &[u8; Header::LEN], at: usize) -> u64 {
    u64::from_le_bytes(*raw[at..].first_chunk().expect("the field lies inside the header"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u64 = 1 << 30;

    fn good() -> [u8; Header::LEN] {
        Header::create(1 << 30, 65536, 4, Some((b"base", true))).unwrap().encode()
    }

    #[test]
    fn what_is_encoded_is_parsed() {
        for (size, cluster, table) in
            [(0, 4096, 1), (1 << 40, 65536, 4), (1 << 62, 64 << 20, 16), (512, 8192, 2)]
        {
            let header = Header::create(size, cluster, table, None).unwrap();
            assert_eq!(Header::parse(&header.encode(), u64::MAX).unwrap(), header);
        }
        let header = Header::parse(&good(), FILE).unwrap();
        assert_eq!((header.backing_name(), header.backing_is_raw()), (Some((64, 4)), true));
        assert_eq!((header.table_entries(), header.l1_entries()), (32768, 1));
    }

    #[test]
    fn parse_rejects_each_field_out_of_range() {
        use ErrorKind::{Corrupt, Unsupported};
        let cases: &[(&str, usize, &[u8], ErrorKind)] = &[
            ("magic", 0, b"QED1", Corrupt),
            ("cluster of 0", 4, &0u32.to_le_bytes(), Corrupt),
            ("cluster not a power of two", 4, &4095u32.to_le_bytes(), Corrupt),
            ("cluster too small", 4, &2048u32.to_le_bytes(), Corrupt),
            ("cluster too large", 4, &(128u32 << 20).to_le_bytes(), Corrupt),
            ("cluster of 2 GiB", 4, &(1u32 << 31).to_le_bytes(), Corrupt),
            ("table of 0 clusters", 8, &0u32.to_le_bytes(), Corrupt),
            ("table of 3 clusters", 8, &3u32.to_le_bytes(), Corrupt),
            ("table of 17 clusters", 8, &17u32.to_le_bytes(), Corrupt),
            ("table of 32 clusters", 8, &32u32.to_le_bytes(), Corrupt),
            ("header of 0 clusters", 12, &0u32.to_le_bytes(), Corrupt),
            ("header longer than 32 bits of bytes", 12, &(1u32 << 16).to_le_bytes(), Corrupt),
            ("unknown feature", 16, &8u64.to_le_bytes(), Unsupported),
            ("L1 inside header", 40, &0u64.to_le_bytes(), Corrupt),
            ("L1 unaligned", 40, &65537u64.to_le_bytes(), Corrupt),
            ("L1 ends beyond the file", 40, &(FILE - 65536).to_le_bytes(), Corrupt),
            ("L1's end wraps", 40, &0xffff_ffff_ffff_0000u64.to_le_bytes(), Corrupt),
            ("half a sector", 48, &256u64.to_le_bytes(), Corrupt),
            ("past the tables", 48, &(1u64 << 62).to_le_bytes(), Corrupt),
            ("name in the header's fields", 56, &60u32.to_le_bytes(), Corrupt),
            ("name past the header", 56, &65534u32.to_le_bytes(), Corrupt),
            ("name's end wraps", 56, &u32::MAX.to_le_bytes(), Corrupt),
            ("name too long", 60, &1024u32.to_le_bytes(), Corrupt),
            ("name of 0 bytes", 60, &0u32.to_le_bytes(), Corrupt),
        ];
        for (name, at, bytes, kind) in cases {
            let mut raw = good();
            raw[*at..*at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(Header::parse(&raw, FILE).unwrap_err().kind(), *kind, "{name}");
        }
    }

    #[test]
    fn parse_takes_what_the_specification_allows() {
        let cases: &[(&str, usize, &[u8])] = &[
            ("table of 1 cluster", 8, &1u32.to_le_bytes()),
            ("long header", 12, &2u32.to_le_bytes()),
            ("unknown compatible feature", 24, &(1u64 << 63).to_le_bytes()),
            ("unknown autoclear feature", 32, &(1u64 << 40).to_le_bytes()),
            ("empty disk", 48, &0u64.to_le_bytes()),
            ("name at the header's end", 56, &65532u32.to_le_bytes()),
        ];
        for (name, at, bytes) in cases {
            let mut raw = good();
            raw[40..48].copy_from_slice(&(2 * 65536u64).to_le_bytes());
            raw[*at..*at + bytes.len()].copy_from_slice(bytes);
            assert!(Header::parse(&raw, FILE).is_ok(), "{name}");
        }
    }

    #[test]
    fn creation_limits_do_not_overflow() {
        let max = |cluster: u64, table: u64| {
            let entries = u128::from(table * cluster / 8);
            (entries * entries * u128::from(cluster)).min(u128::from(OFFSET_MAX / 512 * 512))
        };
        for cluster in (12..=26).map(|bits| 1u64 << bits) {
            for table in [1, 2, 4, 8, 16] {
                let max = u64::try_from(max(cluster, table)).unwrap();
                Header::create(max, cluster, table, None).unwrap();
                let error = Header::create(max + 512, cluster, table, None).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::BadRequest, "{cluster} {table}");
            }
        }
    }
}
