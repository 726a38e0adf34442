//! Tests of the header: made images, QEMU's images, bad ones, and noise.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod bad;
mod interop;
mod noise;

use super::extensions::write;
use super::*;

const CLUSTER: u64 = 65536;
const FILE: u64 = 16 * CLUSTER;

/// A header with everything in it that version 3 can have, except encryption. Its file has 16 clusters.
fn full() -> Header {
    Header {
        version: 3,
        cluster_bits: 16,
        disk_bytes: 2 << 30,
        l1_entries: 8,
        l1_table: 3 * CLUSTER,
        refcount_table: CLUSTER,
        refcount_table_clusters: 2,
        refcount_order: 5,
        snapshots: 2,
        snapshot_table: 5 * CLUSTER,
        crypt_method: CryptMethod::None,
        incompatible: DIRTY | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2,
        compatible: LAZY_REFCOUNTS | 1 << 63,
        autoclear: BITMAPS_CONSISTENT | 1 << 40,
        header_bytes: 128,
        compression: Compression::Zstd,
        backing: Some(BackingFile { name: b"base.raw".into(), format: Some(b"raw".into()) }),
        data_file: Some(b"\xffdata.img".into()),
        bitmaps: Some(BitmapsExtension { count: 3, directory: 6 * CLUSTER, directory_bytes: 200 }),
        crypto: None,
        feature_names: known_features(),
        unknown_extensions: vec![
            Extension { kind: 0x1234_5678, data: b"twelve bytes".into() },
            Extension { kind: 1, data: Vec::new() },
            Extension { kind: 0x1234_5678, data: b"again".into() },
        ],
        extra: b"\0\0kept".into(),
    }
}

/// A plain header: version 3, one refcount table, one L1 table with a free entry.
fn plain() -> Header {
    Header {
        disk_bytes: 2 << 30,
        l1_entries: 5,
        refcount_table_clusters: 1,
        refcount_order: 4,
        snapshots: 0,
        snapshot_table: 0,
        incompatible: 0,
        compatible: 0,
        autoclear: 0,
        header_bytes: FULL_BYTES,
        compression: Compression::Zlib,
        backing: None,
        data_file: None,
        bitmaps: None,
        feature_names: Vec::new(),
        unknown_extensions: Vec::new(),
        extra: Vec::new(),
        ..full()
    }
}

/// The first cluster that `header` makes.
fn cluster(header: &Header) -> Vec<u8> {
    let mut raw = header.encode().unwrap();
    raw.resize(header.cluster_bytes() as usize, 0);
    raw
}

fn refused(result: Result<Header>, name: &str) -> (ErrorKind, String) {
    let error = result.expect_err(name);
    (error.kind(), error.to_string())
}

#[test]
fn what_is_encoded_is_parsed() {
    let v2 = Header { version: 2, header_bytes: V2_BYTES, ..plain() };
    let luks = Header {
        crypt_method: CryptMethod::Luks,
        crypto: Some(CryptoHeader { at: 7 * CLUSTER, bytes: 3 * CLUSTER - 9 }),
        ..plain()
    };
    let old = Header { header_bytes: V3_BYTES, ..plain() };
    let aes = Header { crypt_method: CryptMethod::Aes, ..v2.clone() };
    let no_format = BackingFile { name: vec![b'n'; 1023], format: None };
    let named = Header { backing: Some(no_format), ..v2.clone() };
    for header in [full(), plain(), v2, luks, old, aes, named] {
        let raw = cluster(&header);
        assert_eq!(Header::parse(&raw, FILE).unwrap(), header);
        // More than the first cluster may be given.
        assert_eq!(Header::parse(&[raw, vec![0xAA; 4096]].concat(), FILE).unwrap(), header);
    }
}

#[test]
fn the_fields_are_where_the_specification_has_them() {
    let raw = cluster(&full());
    let words =
        [(4, 3), (16, 8), (20, 16), (32, 0), (36, 8), (56, 2), (60, 2), (96, 5), (100, 128)];
    for (at, value) in words {
        assert_eq!(be32(&raw, at), value, "{at}");
    }
    let longs = [(24, 2 << 30), (40, 3 * CLUSTER), (48, CLUSTER), (64, 5 * CLUSTER), (72, 0b11101)];
    for (at, value) in longs {
        assert_eq!(be64(&raw, at), value, "{at}");
    }
    assert_eq!((raw[104], &raw[105..111]), (1, &b"\0\0kept"[..]));
    let name_at = be64(&raw, 8) as usize;
    assert_eq!(&raw[name_at..][..9], b"base.raw\0");
}

#[test]
fn geometry() {
    let header = full();
    assert_eq!((header.l2_entry_bytes(), header.l2_entries()), (16, 4096));
    assert_eq!((header.subcluster_bits(), header.has_subclusters()), (11, true));
    assert_eq!((header.refcount_bits(), header.refcounts_per_block()), (32, 16384));
    assert_eq!((header.disk_clusters(), header.l1_entries_needed(2 << 30)), (32768, 8));
    assert_eq!((header.refcount_table_bytes(), header.unknown_autoclear()), (131_072, 1 << 40));
    assert!(header.has(DIRTY | EXTERNAL_DATA) && !header.has(DIRTY | CORRUPT));
    let header = plain();
    assert_eq!((header.l2_entry_bytes(), header.l2_entries()), (8, 8192));
    assert_eq!((header.subcluster_bits(), header.has_subclusters()), (16, false));
    for (bytes, entries) in
        [(0, 0), (1, 1), (512 << 20, 1), ((512 << 20) + 1, 2), (u64::MAX, 1 << 35)]
    {
        assert_eq!(header.l1_entries_needed(bytes), entries);
    }
    let narrow = Header { refcount_order: 0, cluster_bits: 9, ..plain() };
    assert_eq!((narrow.refcount_bits(), narrow.refcounts_per_block()), (1, 4096));
}

#[test]
fn a_patch_changes_fields_and_nothing_else() {
    for header in [full(), Header { version: 2, header_bytes: V2_BYTES, ..plain() }] {
        let is_v3 = header.version == 3;
        let changed = Header {
            disk_bytes: 1 << 30,
            l1_table: 8 * CLUSTER,
            l1_entries: 6,
            refcount_table: 9 * CLUSTER,
            refcount_table_clusters: 1,
            snapshots: 1,
            snapshot_table: 11 * CLUSTER,
            incompatible: if is_v3 { header.incompatible ^ (DIRTY | CORRUPT) } else { 0 },
            autoclear: header.autoclear & BITMAPS_CONSISTENT,
            ..header.clone()
        };
        let mut raw = cluster(&header);
        changed.patch(&mut raw[..512]);
        assert_eq!(Header::parse(&raw, FILE).unwrap(), changed);
        assert_eq!(raw, cluster(&changed));
        header.patch(&mut raw[..512]);
        assert_eq!(raw, cluster(&header));
    }
}

#[test]
fn what_does_not_fit_is_not_encoded() {
    let backing = |bytes| Some(BackingFile { name: vec![b'x'; bytes], format: None });
    let small = Header {
        cluster_bits: 9,
        disk_bytes: 1 << 15,
        l1_table: 1024,
        refcount_table: 512,
        l1_entries: 1,
        ..plain()
    };
    // 112 bytes of fields, 8 of the end.
    let fits = Header { backing: backing(392), ..small.clone() };
    assert_eq!(fits.encode().unwrap().len(), 512);
    let long = FeatureName { kind: 0, bit: 0, name: vec![b'x'; 47] };
    let twice = Extension { kind: 0x6803_F857, data: Vec::new() };
    let cases = [
        ("a name too long", Header { backing: backing(393), ..small }),
        ("a name of 0 bytes", Header { backing: backing(0), ..plain() }),
        ("a name with NUL", Header { data_file: Some(b"a\0b".into()), ..plain() }),
        ("a feature name too long", Header { feature_names: vec![long], ..plain() }),
        ("a known extension", Header { unknown_extensions: vec![twice], ..plain() }),
        (
            "an extension that ends all",
            Header {
                unknown_extensions: vec![Extension { kind: 0, data: b"x".into() }],
                ..plain()
            },
        ),
        (
            "features in version 2",
            Header { version: 2, header_bytes: 72, incompatible: 1, ..plain() },
        ),
        ("an odd header length", Header { header_bytes: 113, ..plain() }),
        ("a header longer than a cluster", Header { header_bytes: !7, ..plain() }),
        ("a huge cluster", Header { cluster_bits: 63, ..plain() }),
        ("unknown fields without room", Header { extra: vec![1; 8], ..plain() }),
        (
            "unknown fields in version 2",
            Header { version: 2, header_bytes: 72, extra: vec![1], ..plain() },
        ),
        ("zstd without its bit", Header { compression: Compression::Zstd, ..plain() }),
        ("an L1 table too small", Header { l1_entries: 3, ..plain() }),
    ];
    for (name, header) in cases {
        let error = header.encode().expect_err(name);
        assert_eq!(error.kind(), ErrorKind::BadRequest, "{name}");
    }
}
