//! A snapshot in a qcow2 image, made and read by hand.
//!
//! ```text
//!   active L1 ----.                          counts of table and cluster: 2, and COPIED in neither L1 nor L2 entries
//!                  >--> L2 table --> cluster
//!   snapshot's L1 '
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Snapshots".

use io_engine::sim::SimDisk;
use sim::ImageFile;
use sim::qcow2::Qcow2;

const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Fields of the header.
const L1_ENTRIES: usize = 36;
const L1_AT: usize = 40;
const REFCOUNT_TABLE_AT: usize = 48;
const REFCOUNT_TABLE_CLUSTERS: usize = 56;
const SNAPSHOTS: usize = 60;
const SNAPSHOTS_AT: usize = 64;
const INCOMPATIBLE: usize = 72;
const REFCOUNT_ORDER: usize = 96;
const EXTENDED_L2: u64 = 1 << 4;

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

struct Image<'a> {
    bytes: &'a mut Vec<u8>,
    cluster: usize,
    /// Bytes of a count: these images have no smaller ones.
    count_len: usize,
}

impl Image<'_> {
    fn put(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    /// Where the count of a cluster is; `None` if there is no block for it.
    fn count_at(&self, cluster: usize) -> Option<usize> {
        let per_block = self.cluster / self.count_len;
        let table = long(self.bytes, REFCOUNT_TABLE_AT) as usize;
        let block = long(self.bytes, table + cluster / per_block * 8) as usize;
        (block != 0).then(|| block + cluster % per_block * self.count_len)
    }

    fn count(&self, cluster: usize) -> u64 {
        let Some(at) = self.count_at(cluster) else { return 0 };
        self.bytes[at..at + self.count_len].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    fn set_count(&mut self, cluster: usize, count: u64) {
        if self.count_at(cluster).is_none() {
            let per_block = self.cluster / self.count_len;
            let table = long(self.bytes, REFCOUNT_TABLE_AT) as usize;
            // A block may count itself: nothing else that it counts is in use yet.
            let block = if cluster.is_multiple_of(per_block) { cluster + 1 } else { cluster - 1 };
            let at = self.clear(block);
            self.put(table + cluster / per_block * 8, at as u64);
            self.set_count(block, 1);
        }
        let (at, len) = (self.count_at(cluster).unwrap(), self.count_len);
        self.bytes[at..at + len].copy_from_slice(&count.to_be_bytes()[8 - len..]);
    }

    /// Zeroes a cluster, and gives its offset.
    fn clear(&mut self, cluster: usize) -> usize {
        let end = (cluster + 1) * self.cluster;
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[end - self.cluster..end].fill(0);
        end - self.cluster
    }

    /// A cluster that nothing uses, counted once from now on.
    fn take(&mut self) -> usize {
        let cluster = (1..).find(|cluster| self.count(*cluster) == 0).unwrap();
        self.set_count(cluster, 1);
        self.clear(cluster)
    }
}

/// Adds a snapshot of what the disk holds. Data must not be compressed, and refcounts not be less than a byte.
pub fn add(bytes: &mut Vec<u8>) {
    let is_v3 = word(bytes, 4) >= 3;
    let order = if is_v3 { word(bytes, REFCOUNT_ORDER) } else { 4 };
    let is_extended = is_v3 && long(bytes, INCOMPATIBLE) & EXTENDED_L2 != 0;
    let (entries, l1) = (word(bytes, L1_ENTRIES) as usize, long(bytes, L1_AT) as usize);
    let cluster = 1 << word(bytes, 20);
    let mut image = Image { bytes, cluster, count_len: (1 << order) / 8 };
    assert!(entries * 8 <= cluster, "one cluster is enough for these L1 tables");
    let (copy, table) = (image.take(), image.take());
    for entry in 0..entries {
        let l2 = (long(image.bytes, l1 + entry * 8) & OFFSET) as usize;
        image.put(l1 + entry * 8, l2 as u64);
        image.put(copy + entry * 8, l2 as u64);
        if l2 == 0 {
            continue;
        }
        image.set_count(l2 / cluster, 2);
        for at in (l2..l2 + cluster).step_by(if is_extended { 16 } else { 8 }) {
            let value = long(image.bytes, at);
            if value & OFFSET != 0 {
                image.put(at, value & !COPIED);
                image.set_count((value & OFFSET) as usize / cluster, 2);
            }
        }
    }
    // An L1 table, its entries; an id and a name of one byte each; 16 bytes more: no VM state, and the disk's size.
    image.put(table, copy as u64);
    image.put(table + 8, (entries as u64) << 32 | 1 << 16 | 1);
    image.put(table + 32, 16);
    let disk_bytes = long(image.bytes, 24);
    image.put(table + 48, disk_bytes);
    image.bytes[table + 56..table + 58].copy_from_slice(b"1s");
    image.bytes[SNAPSHOTS..SNAPSHOTS + 4].copy_from_slice(&1u32.to_be_bytes());
    image.put(SNAPSHOTS_AT, table as u64);
}

/// Counts a cluster that nothing uses, a few before the end of what the refcount table counts; the file is as long as that.
pub fn count_at_table_end(bytes: &mut Vec<u8>) {
    let cluster = 1 << word(bytes, 20);
    let count_len = (1 << word(bytes, REFCOUNT_ORDER)) / 8;
    let table_bytes = word(bytes, REFCOUNT_TABLE_CLUSTERS) as usize * cluster;
    let counted = table_bytes / 8 * (cluster / count_len);
    let mut image = Image { bytes, cluster, count_len };
    image.set_count(counted - 7, 1);
    image.clear(counted - 7);
}

/// The image as it would be if its first snapshot's L1 table were the active one.
struct Snapshot<'a> {
    disk: &'a SimDisk,
    /// Entries and place of the table, as in the header.
    l1: [u8; 12],
}

impl ImageFile for Snapshot<'_> {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_at(&self, at: u64, into: &mut [u8]) {
        self.disk.read_at(at, into);
        for (byte, place) in self.l1.iter().zip(L1_ENTRIES as u64..) {
            if let Some(index) = place.checked_sub(at)
                && let Some(into) = into.get_mut(index as usize)
            {
                *into = *byte;
            }
        }
    }
}

/// Reads what the first snapshot holds.
pub fn read(disk: &SimDisk, backing: Option<&SimDisk>, into: &mut [u8]) -> Result<(), String> {
    let mut at = [0; 8];
    disk.read_at(SNAPSHOTS_AT as u64, &mut at);
    let mut entry = [0; 12];
    disk.read_at(u64::from_be_bytes(at), &mut entry);
    let mut l1 = [0; 12];
    l1[..4].copy_from_slice(&entry[8..]);
    l1[4..].copy_from_slice(&entry[..8]);
    let view = Snapshot { disk, l1 };
    let image = Qcow2::open(&view).map_err(|faults| format!("{faults:?}"))?;
    let below = |at: u64, into: &mut [u8]| match backing {
        Some(backing) => backing.read_at(at, into),
        None => into.fill(0),
    };
    image.read_disk(0, into, below).map_err(|why| why.to_string())
}
