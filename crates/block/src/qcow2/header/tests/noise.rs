//! Headers with random changes: no panic, no more memory than the header has, and what is accepted holds what `Header` promises.

use super::*;

/// A xorshift generator: any numbers will do.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Values at which something turns.
const EDGES: [u64; 16] =
    [0, 1, 2, 7, 8, 9, 21, 104, 112, 1023, 4096, 65535, 1 << 31, 0xFFFF_FFFF, 1 << 63, u64::MAX];

fn mutate(random: &mut Random, raw: &mut [u8], used: usize) {
    for _ in 0..=random.below(4) {
        let at = random.below(used);
        match random.below(4) {
            0 => raw[at] = random.next() as u8,
            1 => raw[at] ^= 1 << random.below(8),
            kind => {
                let value = match random.below(3) {
                    0 => random.next(),
                    1 => random.next() % 64 * 4096,
                    _ => EDGES[random.below(EDGES.len())],
                };
                let width = if kind == 2 { 4 } else { 8 };
                let at = at & !(width - 1);
                raw[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
            }
        }
    }
}

fn owned_bytes(header: &Header) -> usize {
    let backing = header.backing.as_ref();
    let name = backing.map_or(0, |backing| backing.name.len());
    let format = backing.and_then(|backing| backing.format.as_ref()).map_or(0, Vec::len);
    let features = header.feature_names.iter().map(|name| name.name.len() + 2);
    let unknown = header.unknown_extensions.iter().map(|extension| extension.data.len() + 8);
    let data_file = header.data_file.as_ref().map_or(0, Vec::len);
    name + format
        + data_file
        + header.extra.len()
        + features.sum::<usize>()
        + unknown.sum::<usize>()
}

/// What `Header` promises, asked anew.
fn assert_holds(header: &Header, file_bytes: u64, len: usize) {
    assert!(owned_bytes(header) <= len);
    assert!((9..=21).contains(&header.cluster_bits) && header.refcount_order <= 6);
    assert!(!header.has_subclusters() || header.cluster_bits >= 14);
    let reach = u64::from(header.l1_entries) * header.l2_entries();
    assert!(header.disk_clusters() <= reach && header.disk_bytes <= 1 << 61);
    let cluster = header.cluster_bytes();
    let clusters = file_bytes.div_ceil(cluster);
    for (at, bytes) in [
        (header.l1_table, u64::from(header.l1_entries) * 8),
        (header.refcount_table, header.refcount_table_bytes()),
        (header.snapshot_table, u64::from(header.snapshots) * 40),
        header.bitmaps.map_or((0, 0), |bitmaps| (bitmaps.directory, bitmaps.directory_bytes)),
        header.crypto.map_or((0, 0), |crypto| (crypto.at, crypto.bytes)),
    ] {
        let is_inside = at % cluster == 0 && (at + bytes).div_ceil(cluster) <= clusters && at > 0;
        assert!(bytes == 0 || is_inside, "{header:?}");
    }
}

#[test]
fn two_hundred_thousand_changed_headers() {
    let to_small = |header: Header| Header {
        cluster_bits: 12,
        disk_bytes: 5 << 20,
        refcount_table: 4096,
        refcount_table_clusters: 1,
        l1_table: 3 * 4096,
        snapshot_table: 5 * 4096,
        bitmaps: header.bitmaps.map(|bitmaps| BitmapsExtension { directory: 6 * 4096, ..bitmaps }),
        incompatible: header.incompatible & !EXTENDED_L2,
        ..header
    };
    let luks = Header {
        crypt_method: CryptMethod::Luks,
        crypto: Some(CryptoHeader { at: 7 * 4096, bytes: 9000 }),
        ..plain()
    };
    let backing = BackingFile { name: b"base".into(), format: Some(b"qcow2".into()) };
    let v2 = Header { version: 2, header_bytes: V2_BYTES, backing: Some(backing), ..plain() };
    let bases = [full(), plain(), luks, v2].map(to_small).map(|header| {
        let used = header.encode().unwrap().len() + 16;
        (cluster(&header), used)
    });
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let (mut accepted, mut encoded) = (0, 0);
    for _ in 0..200_000 {
        let (base, used) = &bases[random.below(bases.len())];
        let mut raw = base.clone();
        mutate(&mut random, &mut raw, *used);
        let file_bytes = match random.below(8) {
            0 => random.next(),
            1 => random.next() % 65536,
            _ => 64 * 4096,
        };
        let len = usize::try_from(file_bytes).unwrap_or(usize::MAX).min(raw.len());
        let Ok(header) = Header::parse(&raw[..len], file_bytes) else { continue };
        accepted += 1;
        assert_holds(&header, file_bytes, len);
        let mut again = raw.clone();
        header.patch(&mut again);
        assert_eq!(Header::parse(&again[..len], file_bytes).unwrap(), header);
        // It may be too long with an end that it did not have.
        if header.encode().is_ok() {
            encoded += 1;
        }
    }
    // Neither is everything refused by the first check, nor everything let through.
    assert!((20_000..180_000).contains(&accepted), "{accepted}");
    assert!(encoded > accepted * 9 / 10, "{encoded} of {accepted}");
}
