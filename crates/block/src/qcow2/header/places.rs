//! What a header points to: within the file, on cluster boundaries, and nothing in two places.
//!
//! ```text
//!   | first cluster | refcount table | ... | L1 table | ... | snapshot table | ... the file's end |···|
//!                                                                                 up to here: zeroes
//! ```

use super::{Header, corrupt};
use crate::Result;

/// Least bytes of an entry of the snapshot table.
const SNAPSHOT_BYTES_MIN: u64 = 40;

/// Something that a header points to.
#[derive(Clone, Copy, Debug)]
struct Place {
    what: &'static str,
    at: u64,
    bytes: u64,
}

impl Header {
    /// What the header points to, as far as it tells the length. What is empty is nowhere, wherever its pointer goes.
    fn places(&self) -> Vec<Place> {
        let bitmaps = self.bitmaps.unwrap_or_default();
        let crypto = self.crypto.unwrap_or_default();
        let places = [
            ("refcount table", self.refcount_table, self.refcount_table_bytes()),
            ("L1 table", self.l1_table, u64::from(self.l1_entries) * 8),
            ("snapshot table", self.snapshot_table, u64::from(self.snapshots) * SNAPSHOT_BYTES_MIN),
            ("bitmap directory", bitmaps.directory, bitmaps.directory_bytes),
            ("encryption header", crypto.at, crypto.bytes),
        ];
        let places = places.map(|(what, at, bytes)| Place { what, at, bytes });
        places.into_iter().filter(|place| place.bytes > 0).collect()
    }

    pub(super) fn check_places(&self, file_bytes: u64) -> Result<()> {
        let cluster = self.cluster_bytes();
        // QEMU lets a file end where its last table ends, within a cluster.
        let file_end = file_bytes.checked_next_multiple_of(cluster).unwrap_or(u64::MAX);
        let mut places = self.places();
        for Place { what, at, bytes } in &places {
            if !at.is_multiple_of(cluster) {
                return Err(corrupt(&format!(
                    "the {what} at {at:#x} is not on a cluster boundary"
                )));
            }
            if *at == 0 {
                return Err(corrupt(&format!("the {what} is in the header's cluster")));
            }
            if at.checked_add(*bytes).is_none_or(|end| end > file_end) {
                return Err(corrupt(&format!(
                    "the {what} at {at:#x} reaches beyond the end of the file"
                )));
            }
        }
        places.sort_by_key(|place| place.at);
        for pair in places.windows(2) {
            // In bytes, as starts are on cluster boundaries: what begins behind the last byte of another begins in another cluster.
            if pair[0].at + pair[0].bytes > pair[1].at {
                let (one, other) = (pair[0].what, pair[1].what);
                return Err(corrupt(&format!("the {one} and the {other} overlap")));
            }
        }
        Ok(())
    }
}
