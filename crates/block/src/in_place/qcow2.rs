//! Which qcow2 images QED can express, and what their entries say to it. The format itself is [`crate::qcow2`].

use crate::qcow2::Header;
use crate::qcow2::entry::{COMPRESSED, Entry, Layout, Reads, Target, table_of};
use crate::qcow2::header::{
    BITMAPS_CONSISTENT, CORRUPT, CryptMethod, DIRTY, EXTENDED_L2, EXTERNAL_DATA, LAZY_REFCOUNTS,
};
use crate::{Error, ErrorKind, Result, SECTOR};

/// Smallest binary logarithm of a cluster's bytes in QED.
const CLUSTER_BITS_MIN: u32 = 12;

/// Refuses what QED cannot express, as far as the header says so.
pub(super) fn refuse(header: &Header) -> Result<()> {
    let unknown = header.compatible & !LAZY_REFCOUNTS;
    let rows = [
        (
            header.cluster_bits < CLUSTER_BITS_MIN,
            "its clusters are smaller than 4 KiB, which QED has not",
        ),
        (header.has(DIRTY), "it was not closed (its dirty bit is set): check it first"),
        (header.has(CORRUPT), "it is marked as corrupt: check it first"),
        (header.has(EXTERNAL_DATA), "its data is in another file"),
        (header.has(EXTENDED_L2), "it has extended L2 entries"),
        (header.crypt_method != CryptMethod::None, "it is encrypted"),
        (header.snapshots != 0, "it has internal snapshots"),
        (!header.disk_bytes.is_multiple_of(SECTOR), "its disk is not a multiple of 512 bytes"),
        (
            header.bitmaps.is_some() || header.autoclear & BITMAPS_CONSISTENT != 0,
            "it has persistent bitmaps, which would be lost",
        ),
        (header.data_file.is_some(), "it names a data file, and that would be lost"),
        (!header.extra.is_empty(), "it has unknown header fields, which would be lost"),
    ];
    if let Some((_, why)) = rows.iter().find(|(refused, _)| *refused) {
        return Err(unsupported(why));
    }
    // Lazy refcounts are a way to write; of others nobody knows what would be lost.
    if unknown != 0 {
        return Err(unsupported(&format!("it has unknown compatible features {unknown:#x}")));
    }
    match header.unknown_extensions.first() {
        None => Ok(()),
        Some(extension) => {
            let kind = extension.kind;
            Err(unsupported(&format!("it has a header extension ({kind:#x}) that would be lost")))
        }
    }
}

/// What an L1 entry refers to: 0 if nothing.
pub(super) fn l1_offset(header: &Header, entry: u64) -> Result<u64> {
    table_of(entry, header.cluster_bits)
        .ok_or_else(|| corrupt(&format!("an L1 entry is {entry:#x}")))
}

/// What an L2 entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cluster {
    /// The cluster of the file that is taken; 0 if there is none.
    pub at: u64,
    /// It reads as zeroes, taken or not.
    pub is_zero: bool,
}

/// What an L2 entry says of a cluster.
pub(super) fn l2_cluster(layout: Layout, word: u64) -> Result<Cluster> {
    if word & COMPRESSED != 0 {
        return Err(unsupported("it has compressed clusters"));
    }
    let entry = Entry { word, bits: 0 };
    // Only with a data file does it matter which cluster of the disk it is.
    let Some(target) = layout.target(entry, 0) else {
        return Err(corrupt(&format!("an L2 entry is {word:#x}")));
    };
    let at = match target {
        Target::Cluster { at, .. } => at,
        Target::Nothing | Target::Compressed { .. } => 0,
    };
    Ok(Cluster { at, is_zero: layout.reads(entry, target, 0) == Reads::Zero })
}

pub(super) fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("qcow2: {what}"))
}

pub(super) fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("qcow2: {what}"))
}
