//! Header extensions: what follows the fields, up to an extension of kind 0, the backing file's name or the end of the cluster.
//!
//! ```text
//!   +------+-------+--------------------+------+-------+------ ...  +---+-----------+
//!   | kind | bytes | data, padded to 8  | kind | bytes |            | 0 | any bytes |
//!   +------+-------+--------------------+------+-------+------ ...  +---+-----------+
//!     4      4
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Header extensions". A known kind comes once at most: with two data file names, two readers
//! could see two disks. Kinds that are not known are kept, in their order and however often.

use super::{
    BITMAPS_CONSISTENT, COMPRESSION_TYPE, CORRUPT, CryptMethod, DATA_FILE_RAW, DIRTY, EXTENDED_L2,
    EXTERNAL_DATA, Header, LAZY_REFCOUNTS, Raw, be32, be64, check_name, corrupt, put32,
};
use crate::Result;

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xE279_2ACA;
const FEATURE_NAMES: u32 = 0x6803_F857;
const BITMAPS: u32 = 0x2385_2875;
const CRYPTO: u32 = 0x0537_BE77;
const DATA_FILE: u32 = 0x4441_5441;

/// Bytes of an extension's kind and length.
pub(in crate::qcow2) const HEAD_BYTES: usize = 8;
/// Bytes of an entry of the feature name table, and of the name in it.
const FEATURE_BYTES: usize = 48;
/// Longest name of a backing file's format that QEMU takes.
const FORMAT_BYTES_MAX: usize = 15;
pub(in crate::qcow2) const BITMAPS_BYTES: usize = 24;
const CRYPTO_BYTES: usize = 16;
/// Most bitmaps that QEMU takes, and the largest directory, in which a bitmap has at most 1 KiB ...
const BITMAPS_MAX: u32 = 65535;
const DIRECTORY_BYTES_MAX: u64 = BITMAPS_MAX as u64 * 1024;
/// ... and at least this.
const DIRECTORY_ENTRY_BYTES_MIN: u64 = 24;

/// Where the persistent bitmaps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BitmapsExtension {
    /// Bitmaps: 1 to 65535.
    pub count: u32,
    /// Where their directory starts.
    pub directory: u64,
    /// Its bytes, at most 64 MiB.
    pub directory_bytes: u64,
}

/// Where the encryption header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CryptoHeader {
    /// Where it starts.
    pub at: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// A name for a feature bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureName {
    /// 0: incompatible, 1: compatible, 2: autoclear.
    pub kind: u8,
    /// Number of the bit.
    pub bit: u8,
    /// The name: at most 46 bytes without NUL, and otherwise anything.
    pub name: Vec<u8>,
}

/// An extension of a kind that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its kind.
    pub kind: u32,
    /// Its data, without padding.
    pub data: Vec<u8>,
}

/// What a header's extensions say.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub backing_format: Option<Vec<u8>>,
    pub data_file: Option<Vec<u8>>,
    pub bitmaps: Option<BitmapsExtension>,
    pub crypto: Option<CryptoHeader>,
    pub feature_names: Vec<FeatureName>,
    pub unknown: Vec<Extension>,
}

impl Extensions {
    /// Reads what follows the fields `header`.
    pub fn read(raw: &Raw, header: &Header) -> Result<Extensions> {
        let end = raw.extensions_end()?;
        let mut rest = raw.first.get(raw.header_bytes as usize..end).unwrap_or(&[]);
        let mut extensions = Extensions::default();
        let mut seen = Vec::new();
        // Fewer bytes than kind and length have: images of old have a name right behind the fields, and nothing that says END.
        while rest.len() >= HEAD_BYTES {
            let (kind, len) = (be32(rest, 0), be32(rest, 4) as usize);
            if kind == END {
                break;
            }
            rest = &rest[HEAD_BYTES..];
            let Some(data) = rest.get(..len) else {
                return Err(corrupt(&format!(
                    "extension {kind:#x} of {len} bytes is longer than the header's cluster has room"
                )));
            };
            // At most this one's padding may be missing.
            rest = rest.get(len.next_multiple_of(8)..).unwrap_or(&[]);
            if is_known(kind) {
                if seen.contains(&kind) {
                    return Err(corrupt(&format!("extension {kind:#x} comes twice")));
                }
                seen.push(kind);
            }
            extensions.take(kind, data, header.autoclear)?;
        }
        match (header.crypt_method == CryptMethod::Luks, extensions.crypto.is_some()) {
            (true, false) => Err(corrupt("encrypted with LUKS, but without encryption header")),
            (false, true) => Err(corrupt("an encryption header, but not encrypted with LUKS")),
            _ => Ok(extensions),
        }
    }

    fn take(&mut self, kind: u32, data: &[u8], autoclear: u64) -> Result<()> {
        match kind {
            BACKING_FORMAT => {
                if data.len() > FORMAT_BYTES_MAX {
                    return Err(corrupt("the backing file's format has more than 15 bytes"));
                }
                check_name(data, "the backing file's format")?;
                self.backing_format = Some(data.to_vec());
            }
            DATA_FILE => {
                check_name(data, "the data file's name")?;
                self.data_file = Some(data.to_vec());
            }
            FEATURE_NAMES => self.feature_names = feature_names(data),
            BITMAPS => match bitmaps(data) {
                Ok(bitmaps) => self.bitmaps = Some(bitmaps),
                // Whoever cleared the bit may have changed anything, and says that nobody should look.
                Err(_) if autoclear & BITMAPS_CONSISTENT == 0 => {}
                Err(error) => return Err(error),
            },
            CRYPTO => self.crypto = Some(crypto(data)?),
            _ => self.unknown.push(Extension { kind, data: data.to_vec() }),
        }
        Ok(())
    }
}

fn is_known(kind: u32) -> bool {
    [BACKING_FORMAT, FEATURE_NAMES, BITMAPS, CRYPTO, DATA_FILE].contains(&kind)
}

/// Names for all features that we know, in QEMU's words.
pub fn known_features() -> Vec<FeatureName> {
    let names = [
        (0, DIRTY, "dirty bit"),
        (0, CORRUPT, "corrupt bit"),
        (0, EXTERNAL_DATA, "external data file"),
        (0, COMPRESSION_TYPE, "compression type"),
        (0, EXTENDED_L2, "extended L2 entries"),
        (1, LAZY_REFCOUNTS, "lazy refcounts"),
        (2, BITMAPS_CONSISTENT, "bitmaps"),
        (2, DATA_FILE_RAW, "raw external data"),
    ];
    let names = names.map(|(kind, mask, name)| {
        let bit = u8::try_from(mask.trailing_zeros()).expect("at most 64");
        FeatureName { kind, bit, name: name.into() }
    });
    names.into()
}

/// What is too short for an entry at the end is nothing.
fn feature_names(data: &[u8]) -> Vec<FeatureName> {
    let entries = data.chunks_exact(FEATURE_BYTES);
    let names = entries.map(|entry| {
        let name = entry[2..].split(|byte| *byte == 0).next().unwrap_or(&[]);
        FeatureName { kind: entry[0], bit: entry[1], name: name.to_vec() }
    });
    names.collect()
}

fn bitmaps(data: &[u8]) -> Result<BitmapsExtension> {
    let bad = |why: &str| Err(corrupt(&format!("bitmaps: {why}")));
    if data.len() != BITMAPS_BYTES {
        return bad("the extension has not 24 bytes");
    }
    let count = be32(data, 0);
    let (directory_bytes, directory) = (be64(data, 8), be64(data, 16));
    if count == 0 || count > BITMAPS_MAX {
        return bad("there are none, or more than 65535");
    }
    if be32(data, 4) != 0 {
        return bad("a reserved field is not zero");
    }
    let least = u64::from(count) * DIRECTORY_ENTRY_BYTES_MIN;
    if directory_bytes < least || directory_bytes > DIRECTORY_BYTES_MAX {
        return bad("the directory has an impossible size");
    }
    Ok(BitmapsExtension { count, directory, directory_bytes })
}

fn crypto(data: &[u8]) -> Result<CryptoHeader> {
    if data.len() != CRYPTO_BYTES {
        return Err(corrupt("the pointer to the encryption header has not 16 bytes"));
    }
    let (at, bytes) = (be64(data, 0), be64(data, 8));
    if bytes == 0 {
        return Err(corrupt("the encryption header has no bytes"));
    }
    Ok(CryptoHeader { at, bytes })
}

/// Where the bitmaps extension is in a first cluster, or could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::qcow2) enum BitmapsPlace {
    /// Its data begins here. `is_last`: no other extension follows.
    There { at: usize, is_last: bool },
    /// The extensions end here, with one of kind 0, and what follows is free.
    End(usize),
    /// Nothing says where the extensions end.
    None,
}

/// Looks for the bitmaps extension in `area`, which ends where extensions must; they begin at `start`. They have been read before.
pub(in crate::qcow2) fn find_bitmaps(area: &[u8], start: usize) -> BitmapsPlace {
    let mut at = start;
    while area.len().saturating_sub(at) >= HEAD_BYTES {
        let (kind, len) = (be32(area, at), be32(area, at + 4) as usize);
        let data = at + HEAD_BYTES;
        at = data.saturating_add(len.next_multiple_of(8));
        match kind {
            END => return BitmapsPlace::End(data - HEAD_BYTES),
            BITMAPS => {
                let next = area.get(at..).and_then(|rest| rest.first_chunk());
                let is_last = next.is_none_or(|kind| *kind == END.to_be_bytes());
                return BitmapsPlace::There { at: data, is_last };
            }
            _ => {}
        }
    }
    BitmapsPlace::None
}

/// The kind and length that stand before a bitmaps extension's data.
pub(in crate::qcow2) fn bitmaps_head() -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&BITMAPS.to_be_bytes());
    head[7] = 24;
    head
}

impl BitmapsExtension {
    /// The extension's data.
    pub(in crate::qcow2) fn encode(self) -> [u8; BITMAPS_BYTES] {
        let mut data = [0; BITMAPS_BYTES];
        put32(&mut data, 0, self.count);
        data[8..16].copy_from_slice(&self.directory_bytes.to_be_bytes());
        data[16..24].copy_from_slice(&self.directory.to_be_bytes());
        data
    }
}

/// Appends the extensions of `header` to its fields.
pub(super) fn write(header: &Header, raw: &mut Vec<u8>) {
    if let Some(format) = header.backing.as_ref().and_then(|backing| backing.format.as_ref()) {
        append(raw, BACKING_FORMAT, format);
    }
    if let Some(name) = &header.data_file {
        append(raw, DATA_FILE, name);
    }
    if let Some(crypto) = &header.crypto {
        append(raw, CRYPTO, &[crypto.at.to_be_bytes(), crypto.bytes.to_be_bytes()].concat());
    }
    if !header.feature_names.is_empty() {
        let mut data = Vec::with_capacity(header.feature_names.len() * FEATURE_BYTES);
        for feature in &header.feature_names {
            let end = data.len() + FEATURE_BYTES;
            data.extend_from_slice(&[feature.kind, feature.bit]);
            data.extend_from_slice(&feature.name);
            // What is too long for its entry is cut, which `Header::encode` sees.
            data.resize(end, 0);
        }
        append(raw, FEATURE_NAMES, &data);
    }
    if let Some(bitmaps) = &header.bitmaps {
        append(raw, BITMAPS, &bitmaps.encode());
    }
    for Extension { kind, data } in &header.unknown_extensions {
        append(raw, *kind, data);
    }
    append(raw, END, &[]);
}

fn append(raw: &mut Vec<u8>, kind: u32, data: &[u8]) {
    raw.extend_from_slice(&kind.to_be_bytes());
    raw.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    raw.extend_from_slice(data);
    raw.resize(raw.len().next_multiple_of(8), 0);
}
