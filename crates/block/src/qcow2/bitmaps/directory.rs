//! The bitmap directory: what the image says of its bitmaps.
//!
//! ```text
//! byte 0       8               12      16     17            18           20            24
//!      +-------+---------------+-------+------+-------------+------------+-------------+-------+------+-----------+
//!      | table | table entries | flags | type | granularity | name bytes | extra bytes | extra | name | pad to 8  |   next ...
//!      +-------+---------------+-------+------+-------------+------------+-------------+-------+------+-----------+
//! ```
//!
//! All fields are big-endian. Specification: QEMU `docs/interop/qcow2.rst`, "Bitmap directory". What is not known of an entry is kept.

use crate::{Error, ErrorKind, Result};
use std::collections::BTreeSet;

/// Not stored after the last writes to the disk.
pub(super) const IN_USE: u32 = 1 << 0;
/// It records all writes.
pub(super) const AUTO: u32 = 1 << 1;
/// Who does not know the extra data may use it all the same.
pub(super) const EXTRA_COMPATIBLE: u32 = 1 << 2;
/// The only type there is.
const DIRTY_TRACKING: u8 = 1;
/// Bytes of an entry without what is of variable length.
const FIXED_BYTES: usize = 24;

/// Most bitmaps, largest directory, longest name, and smallest and largest granules that QEMU takes.
pub(super) const BITMAPS_MAX: usize = 65535;
pub(super) const DIRECTORY_BYTES_MAX: usize = BITMAPS_MAX * 1024;
pub(super) const NAME_BYTES_MAX: usize = 1023;
pub(super) const GRANULARITY_BITS: std::ops::RangeInclusive<u32> = 9..=31;

/// An entry: its existence proves that it lay within the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where the bitmap table is; 0 if it has none yet.
    pub table: u64,
    pub table_entries: u32,
    pub flags: u32,
    kind: u8,
    /// Binary logarithm of a granule's bytes: at most 63.
    pub granularity_bits: u32,
    extra: Vec<u8>,
    /// At least 1 byte.
    pub name: Vec<u8>,
}

impl Entry {
    /// A dirty tracking bitmap that is not in the file yet.
    pub fn new(name: &[u8], granularity_bits: u32) -> Entry {
        Entry {
            table: 0,
            table_entries: 0,
            flags: 0,
            kind: DIRTY_TRACKING,
            granularity_bits,
            extra: Vec::new(),
            name: name.to_vec(),
        }
    }

    /// Bytes that it takes in the directory.
    fn bytes(&self) -> usize {
        (FIXED_BYTES + self.extra.len() + self.name.len()).next_multiple_of(8)
    }

    /// Whether it is one that we know how to use.
    pub fn is_known(&self) -> bool {
        let known = IN_USE | AUTO | EXTRA_COMPATIBLE;
        let extra_is_good = self.extra.is_empty() || self.flags & EXTRA_COMPATIBLE != 0;
        self.kind == DIRTY_TRACKING
            && self.flags & !known == 0
            && extra_is_good
            && GRANULARITY_BITS.contains(&self.granularity_bits)
            && self.name.len() <= NAME_BYTES_MAX
    }
}

/// Reads a directory of `count` entries.
///
/// # Errors
///
/// `Corrupt` unless it is exactly these, with names that all differ.
pub(super) fn parse(bytes: &[u8], count: u32) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut rest = bytes;
    for number in 0..count {
        let bad = |why: &str| corrupt(&format!("entry {number} {why}"));
        let fixed = rest.first_chunk::<FIXED_BYTES>().ok_or_else(|| bad("is not all there"))?;
        let name_bytes = usize::from(u16::from_be_bytes([fixed[18], fixed[19]]));
        let extra_bytes = be32(fixed, 20) as usize;
        // Both come from fields of 32 bits at most.
        let end = FIXED_BYTES + extra_bytes + name_bytes;
        let variable =
            rest.get(FIXED_BYTES..end).ok_or_else(|| bad("is longer than the directory"))?;
        let (extra, name) = variable.split_at(extra_bytes);
        if name.is_empty() {
            return Err(bad("has no name"));
        }
        let granularity_bits = u32::from(fixed[17]);
        if granularity_bits > 63 {
            return Err(bad("has granules of more than 2^63 bytes"));
        }
        let entry = Entry {
            table: u64::from_be_bytes(*fixed.first_chunk().expect("it has 24 bytes")),
            table_entries: be32(fixed, 8),
            flags: be32(fixed, 12),
            kind: fixed[16],
            granularity_bits,
            extra: extra.to_vec(),
            name: name.to_vec(),
        };
        rest = rest.get(entry.bytes()..).ok_or_else(|| bad("is longer than the directory"))?;
        entries.push(entry);
    }
    if !rest.is_empty() {
        return Err(corrupt("it has more bytes than entries"));
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = entries.iter().find(|entry| !names.insert(&entry.name)) {
        return Err(corrupt(&format!("two are named {}", twice.name.escape_ascii())));
    }
    Ok(entries)
}

/// The bytes of a directory.
pub(super) fn encode<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let end = bytes.len() + entry.bytes();
        let short = "as in the image, or checked when it was made";
        let granularity_bits = u8::try_from(entry.granularity_bits).expect(short);
        bytes.extend_from_slice(&entry.table.to_be_bytes());
        bytes.extend_from_slice(&entry.table_entries.to_be_bytes());
        bytes.extend_from_slice(&entry.flags.to_be_bytes());
        bytes.extend_from_slice(&[entry.kind, granularity_bits]);
        bytes.extend_from_slice(&u16::try_from(entry.name.len()).expect(short).to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(entry.extra.len()).expect(short).to_be_bytes());
        bytes.extend_from_slice(&entry.extra);
        bytes.extend_from_slice(&entry.name);
        bytes.resize(end, 0);
    }
    bytes
}

pub(super) fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("its bitmap directory is corrupt: {what}"))
}

fn be32(raw: &[u8; FIXED_BYTES], at: usize) -> u32 {
    u32::from_be_bytes(*raw[at..].first_chunk().expect("field lies inside the entry"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two bitmaps: 24 bytes and a name of 2, padded to 32; 24 bytes, extra data of 4, a name of 4.
    fn good() -> Vec<u8> {
        let one = Entry { table: 0x50000, table_entries: 1, ..Entry::new(b"b0", 16) };
        let two = Entry {
            table: 0x70000,
            table_entries: 3,
            flags: AUTO | EXTRA_COMPATIBLE,
            extra: vec![1, 2, 3, 4],
            ..Entry::new(b"name", 9)
        };
        encode([one, two].iter())
    }

    #[test]
    fn entries_come_back_as_they_were_written() {
        let bytes = good();
        let entries = parse(&bytes, 2).unwrap();
        assert_eq!(encode(entries.iter()), bytes);
        assert_eq!((bytes.len(), &bytes[24..32]), (64, &b"b0\0\0\0\0\0\0"[..]));
        assert_eq!((entries[1].table, entries[1].table_entries), (0x70000, 3));
        assert_eq!(
            (&entries[1].extra[..], &entries[1].name[..]),
            (&[1, 2, 3, 4][..], &b"name"[..])
        );
        assert!(entries[0].is_known() && entries[1].is_known());
    }

    #[test]
    fn a_directory_that_contradicts_itself_is_refused() {
        let cases: &[(&str, usize, &[u8], u32)] = &[
            ("more bytes than entries", 0, &[], 1),
            ("more entries than bytes", 0, &[], 3),
            ("a name beyond the end", 50, &[0xFF, 0xFF], 2),
            ("extra data beyond the end", 52, &[0xFF; 4], 2),
            ("extra data that leaves no name's end", 52, &[0, 0, 0, 40], 2),
            ("no name", 18, &[0, 0], 2),
            ("granules of 2^64 bytes", 17, &[64], 2),
            ("an entry that ends within the next", 18, &[0, 9], 2),
        ];
        for (name, at, bytes, count) in cases {
            let mut raw = good();
            raw[*at..*at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(parse(&raw, *count).unwrap_err().kind(), ErrorKind::Corrupt, "{name}");
        }
        let twice = encode([Entry::new(b"b0", 16), Entry::new(b"b0", 12)].iter());
        assert!(parse(&twice, 2).unwrap_err().to_string().contains("two are named b0"));
        assert!(parse(&good()[..60], 2).is_err());
    }

    #[test]
    fn what_nobody_knows_is_told_from_what_can_be_used() {
        let cases: &[(&str, usize, &[u8])] = &[
            ("an unknown flag", 12, &[0, 0, 0, 8]),
            ("an unknown type", 16, &[2]),
            ("small granules", 17, &[8]),
            ("large granules", 17, &[32]),
        ];
        for (name, at, bytes) in cases {
            let mut raw = good();
            raw[*at..*at + bytes.len()].copy_from_slice(bytes);
            let entries = parse(&raw, 2).unwrap();
            assert!(!entries[0].is_known(), "{name}");
            assert_eq!(encode(entries.iter()), raw, "{name}: kept");
        }
        let mut raw = good();
        raw[32 + 15] = 2;
        assert!(!parse(&raw, 2).unwrap()[1].is_known(), "extra data that must be understood");
        assert!(!Entry::new(&[b'n'; 1024], 16).is_known());
    }
}
