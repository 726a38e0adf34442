//! Making a QED image a qcow2 image and back, in the same file: the data stays where it is, and one sector is the change.
//!
//! ```text
//!   before   | header | old tables, data ...                      |
//!   1        | header | old tables, data ...                      | new tables, written behind the end |
//!            ---- sync ----
//!   2        | HEADER | free space, data ...                      | new tables                         |
//!            ---- sync ----
//! ```
//!
//! Both formats map clusters of the disk to clusters of the file, with entries of 8 bytes, and an L2 table of qcow2 is a cluster, one of QED 1 to 16:
//! so a QED table is as many qcow2 tables in a row. What differs are the values, and that qcow2 counts references.
//!
//! Specifications: QEMU `docs/interop/qed_spec.rst` and `docs/interop/qcow2.rst`.
//!
//! # Why one sector is enough
//!
//! Both formats begin with a magic number at byte 0 and keep all that they must have in their first 512 bytes: QED 64, qcow2 version 3 104, and 24 for
//! the backing file's format and the end of the extensions. A power cut leaves of a sector the old content or the new one, so the file is the
//! one format or the other, whole. What the new format needs beyond that sector is durable before it is written, and lies where the old
//! format does not look:
//!
//! - tables, in clusters behind the last one in use. QED takes them for leaks; to qcow2 they are beyond the last counted cluster;
//! - a backing file's name that begins behind the first sector stays where it is: both formats find it by its offset, and both want it in the
//!   first cluster (QED: in its header's clusters, of which that is one);
//! - a name that fits goes into the new sector;
//! - else (a name of several hundred bytes that begins in the first sector) a copy of it is written at byte 2048 of the first cluster first.
//!   QED leaves what the header's clusters hold besides header and name alone. qcow2 has extensions there, but they end where the name begins,
//!   that is, within the first sector; behind the name nothing may be.
//!
//! Before the commit point the file is the old image, with leaks at most; after it the new one. A qcow2 image made so has no leaks: the old tables
//! are counted zero times. A QED image made so leaks the old tables and refcounts; opened for writing, its driver uses that space.

mod qcow2;
mod survey;
mod to_qcow2;
mod to_qed;

pub use to_qcow2::qed_to_qcow2;
pub use to_qed::qcow2_to_qed;

use crate::{Error, ErrorKind, FileOffset, HostNode, Result, SECTOR};

/// Where a backing file's name is copied to if it can be nowhere else. Names have at most 1023 bytes and clusters at least 4096.
const NAME_COPY: u64 = 2048;

/// What a conversion did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Converted {
    /// Bytes of metadata written.
    pub metadata_bytes: u64,
    /// Length of the file before, in bytes.
    pub file_bytes_before: u64,
    /// Length of the file now.
    pub file_bytes: u64,
}

/// The backing file's name, and where the new header finds it: in the first sector, with which it is written, or behind that, where it is already.
#[derive(Debug)]
struct NamePlace {
    at: u64,
    name: Vec<u8>,
}

/// Finds a place for a name that is `len` bytes at `at` now: see the module's description. In the new sector there is room from byte `room` on.
async fn place_name(
    host: &HostNode,
    name: Option<(u64, usize)>,
    cluster: u64,
    room: u64,
) -> Result<Option<NamePlace>> {
    let Some((at, len)) = name else { return Ok(None) };
    let mut name = vec![0; len];
    host.read_to(FileOffset(at), &mut name).await?;
    let len = len as u64;
    if at >= SECTOR && at + len <= cluster {
        return Ok(Some(NamePlace { at, name }));
    }
    if room + len <= SECTOR {
        return Ok(Some(NamePlace { at: room, name }));
    }
    let unit = host.align().max(SECTOR);
    let from = NAME_COPY / unit * unit;
    let to = (NAME_COPY + len).next_multiple_of(unit);
    let mut buf = host.read_owned(FileOffset(from), to - from).await?;
    let within = usize::try_from(NAME_COPY - from).expect("less than a unit");
    buf.as_mut_slice()[within..within + name.len()].copy_from_slice(&name);
    host.write_owned(FileOffset(from), buf).await?;
    Ok(Some(NamePlace { at: NAME_COPY, name }))
}

/// The commit point: everything before it is made durable, then the first sector is replaced, and that is made durable.
async fn commit(host: &HostNode, sector: [u8; 512]) -> Result<()> {
    host.flush().await?;
    // Where blocks are larger, what follows in the block is written as it is.
    let mut buf = host.read_owned(FileOffset(0), host.align().max(SECTOR)).await?;
    buf.as_mut_slice()[..sector.len()].copy_from_slice(&sector);
    host.write_owned(FileOffset(0), buf).await?;
    host.flush().await
}

/// Writes table entries, encoded, as whole clusters from `at` on; what is not given is zero. Gives the bytes.
async fn write_clusters(host: &HostNode, at: u64, bytes: &[u8], cluster: u64) -> Result<u64> {
    let total = (bytes.len() as u64).next_multiple_of(cluster);
    let step = usize::try_from(cluster).expect("at most 2 MiB");
    for (n, chunk) in (0..).zip(bytes.chunks(step)) {
        let mut buf = host.buffer(cluster);
        let slice = buf.as_mut_slice();
        slice[..chunk.len()].copy_from_slice(chunk);
        slice[chunk.len()..].fill(0);
        host.write_owned(FileOffset(at + n * cluster), buf).await?;
    }
    Ok(total)
}

/// Fails if new metadata that ends at `end` has no room: on a block device, or at all.
fn check_room(host: &HostNode, end: Option<u64>, file_bytes: u64) -> Result<u64> {
    let limit = match host.file().facts().is_block_device {
        true => file_bytes,
        false => i64::MAX.unsigned_abs(),
    };
    end.filter(|end| *end <= limit).ok_or_else(|| {
        let what = format!("converting {}: there is no room behind its end", host.path());
        Error::new(ErrorKind::NoSpace, what)
    })
}

/// Gives `result`, the end of what comes before the commit point; if it failed, cuts off what was written behind the file's old end.
async fn or_cut_back<T>(host: &HostNode, file_bytes: u64, result: Result<T>) -> Result<T> {
    if result.is_err()
        && !host.file().facts().is_block_device
        && let Err(error) = host.truncate(file_bytes).await
    {
        tracing::warn!("{error}");
    }
    result
}

#[cfg(test)]
mod tests;
