//! What an image holds, read from its bytes by code that shares nothing with the drivers.

use std::collections::BTreeMap;

/// An image: what is mapped, and the backing file's name and whether it is raw for certain.
#[derive(Debug, PartialEq, Eq)]
pub struct Image {
    pub bytes: u64,
    /// Cluster of the disk to its content; `None` reads as zeroes.
    pub clusters: BTreeMap<u64, Option<Vec<u8>>>,
    pub backing: Option<(Vec<u8>, bool)>,
}

/// Reads either format. Panics if the image is not sound; a QED image may have leaks, a qcow2 image not.
pub fn read(raw: &[u8]) -> Image {
    match &raw[..4] {
        b"QED\0" => read_qed(raw),
        b"QFI\xfb" => read_qcow2(raw),
        other => panic!("no image begins with {other:?}"),
    }
}

pub fn is_qcow2(raw: &[u8]) -> bool {
    raw.starts_with(b"QFI\xfb")
}

/// `len` bytes at `at`, as a file has them: zeroes beyond its end.
fn part(raw: &[u8], at: u64, len: u64) -> Vec<u8> {
    let mut part: Vec<u8> = raw.iter().skip(at as usize).take(len as usize).copied().collect();
    part.resize(len as usize, 0);
    part
}

fn le(raw: &[u8], at: u64) -> u64 {
    u64::from_le_bytes(part(raw, at, 8).try_into().unwrap())
}

fn le32(raw: &[u8], at: u64) -> u64 {
    le(raw, at) & 0xFFFF_FFFF
}

fn be(raw: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(part(raw, at, 8).try_into().unwrap())
}

fn be32(raw: &[u8], at: u64) -> u64 {
    be(raw, at) >> 32
}

fn read_qed(raw: &[u8]) -> Image {
    let (cluster, table, bytes) = (le32(raw, 4), le32(raw, 8), le(raw, 48));
    let features = le(raw, 16);
    assert_eq!(features & !5, 0, "unknown features, or a check is needed");
    let mut used = BTreeMap::new();
    let mut take = |at: u64, clusters: u64| {
        assert!(at.is_multiple_of(cluster) && at >= le32(raw, 12) * cluster, "{at:#x}");
        assert!(at + clusters * cluster <= raw.len() as u64, "{at:#x} is beyond the file");
        for n in 0..clusters {
            assert_eq!(used.insert(at / cluster + n, ()), None, "{at:#x} is in use twice");
        }
    };
    let (l1, entries) = (le(raw, 40), table * cluster / 8);
    take(l1, table);
    let mut clusters = BTreeMap::new();
    for (n, l2) in (0..entries).map(|n| (n, le(raw, l1 + n * 8))).filter(|(_, l2)| *l2 != 0) {
        take(l2, table);
        for entry in 0..entries {
            let at = le(raw, l2 + entry * 8);
            let content = match at {
                0 => continue,
                1 => None,
                at => {
                    take(at, 1);
                    Some(part(raw, at, cluster))
                }
            };
            clusters.insert(n * entries + entry, content);
        }
    }
    let backing = (features & 1 != 0).then(|| {
        let (at, len) = (le32(raw, 56), le32(raw, 60));
        assert!(at >= 64 && at + len <= le32(raw, 12) * cluster);
        (part(raw, at, len), features & 4 != 0)
    });
    Image { bytes, clusters, backing }
}

fn read_qcow2(raw: &[u8]) -> Image {
    if be32(raw, 4) == 3 {
        assert_eq!(be(raw, 72), 0, "incompatible features");
    }
    let (cluster, bytes) = (1 << be32(raw, 20), be(raw, 24));
    let mut references: BTreeMap<u64, u64> = BTreeMap::new();
    let mut refer = |at: u64, clusters: u64| {
        assert!(at.is_multiple_of(cluster), "{at:#x}");
        (0..clusters).for_each(|n| *references.entry(at / cluster + n).or_default() += 1);
    };
    refer(0, 1);
    let (l1, l1_entries) = (be(raw, 40), be32(raw, 36));
    refer(l1, (l1_entries * 8).div_ceil(cluster));
    let offset = |entry: u64| entry & 0x00FF_FFFF_FFFF_FE00;
    let mut clusters = BTreeMap::new();
    for n in 0..l1_entries {
        let l2 = offset(be(raw, l1 + n * 8));
        if l2 == 0 {
            continue;
        }
        refer(l2, 1);
        for entry in 0..cluster / 8 {
            let value = be(raw, l2 + entry * 8);
            assert_eq!(value >> 62 & 1, 0, "compressed");
            let at = offset(value);
            if at != 0 {
                refer(at, 1);
            }
            let content = match (value & 1, at) {
                (0, 0) => continue,
                (0, at) => Some(part(raw, at, cluster)),
                _ => None,
            };
            let number = n * (cluster / 8) + entry;
            if number < bytes.div_ceil(cluster) {
                clusters.insert(number, content);
            }
        }
    }
    let (table, table_clusters) = (be(raw, 48), be32(raw, 56));
    refer(table, table_clusters);
    let blocks: Vec<u64> =
        (0..table_clusters * cluster / 8).map(|n| be(raw, table + n * 8)).collect();
    blocks.iter().filter(|at| **at != 0).for_each(|at| refer(*at, 1));
    check_counts(raw, &references, &blocks, cluster);
    let name = (be(raw, 8) != 0).then(|| part(raw, be(raw, 8), be32(raw, 16)));
    let backing = name.map(|name| (name, raw[104..115] == *b"\xe2\x79\x2a\xca\0\0\0\x03raw"));
    Image { bytes, clusters, backing }
}

/// Every cluster is counted as often as it is referred to. (Refcounts of 16 bits.)
fn check_counts(raw: &[u8], references: &BTreeMap<u64, u64>, blocks: &[u64], cluster: u64) {
    let order = if be32(raw, 4) == 3 { be32(raw, 96) } else { 4 };
    if order != 4 {
        return;
    }
    let per_block = cluster / 2;
    let mut left = references.clone();
    for (n, at) in (0..).zip(blocks).filter(|(_, at)| **at != 0) {
        for entry in 0..per_block {
            let count = be(raw, at + entry * 2) >> 48;
            let found = left.remove(&(n * per_block + entry)).unwrap_or(0);
            assert_eq!(count, found, "the refcount of cluster {:#x}", n * per_block + entry);
        }
    }
    assert!(left.is_empty(), "not counted: {left:?}");
}
