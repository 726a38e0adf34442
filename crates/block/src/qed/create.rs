//! New images.

use super::header::Header;
use crate::Result;

/// What a new image is to be.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Size of the disk in bytes: a multiple of 512.
    pub bytes: u64,
    /// Bytes of a cluster: a power of two from 4 KiB to 64 MiB.
    pub cluster_bytes: u64,
    /// Clusters of a table: 1, 2, 4, 8 or 16.
    pub table_clusters: u64,
    /// Name of the backing file, and whether it is raw.
    pub backing: Option<(Vec<u8>, bool)>,
}

impl CreateOptions {
    /// A disk of `bytes` bytes with the usual clusters of 64 KiB and tables of 4 clusters, which can grow to 64 TiB.
    pub fn new(bytes: u64) -> CreateOptions {
        CreateOptions { bytes, cluster_bytes: 65536, table_clusters: 4, backing: None }
    }
}

/// A new image: the bytes it begins with, and the length of its file. What lies between is zeroes.
///
/// # Errors
///
/// `BadRequest` with the reason if the format cannot express it.
pub fn new_image(options: &CreateOptions) -> Result<(Vec<u8>, u64)> {
    let backing = options.backing.as_ref().map(|(name, raw)| (name.as_slice(), *raw));
    let header =
        Header::create(options.bytes, options.cluster_bytes, options.table_clusters, backing)?;
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(backing.map_or(&[], |(name, _)| name));
    Ok((bytes, header.l1_table() + header.table_bytes()))
}
