//! Bad headers, each named and refused with a reason; and odd ones that are good.

use super::*;
use ErrorKind::{Corrupt, Unsupported};

/// Kinds and data of extensions.
type Data<'a> = &'a [(u32, &'a [u8])];

/// The first cluster with a header that has these extensions.
fn with(header: &Header, extensions: Data) -> Vec<u8> {
    let mut header = header.clone();
    let extensions = extensions.iter();
    header.unknown_extensions =
        extensions.map(|(kind, data)| Extension { kind: *kind, data: data.to_vec() }).collect();
    let mut raw = vec![0; header.header_bytes as usize];
    header.write_fields(&mut raw);
    write(&header, &mut raw);
    raw.resize(CLUSTER as usize, 0);
    raw
}

fn bitmaps(count: u32, reserved: u32, bytes: u64, at: u64) -> Vec<u8> {
    let longs = [bytes.to_be_bytes(), at.to_be_bytes()].concat();
    [&count.to_be_bytes()[..], &reserved.to_be_bytes(), &longs].concat()
}

fn pair(at: u64, bytes: u64) -> Vec<u8> {
    [at.to_be_bytes(), bytes.to_be_bytes()].concat()
}

const fn be4(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

const fn be8(value: u64) -> [u8; 8] {
    value.to_be_bytes()
}

#[test]
fn each_bad_field_is_refused() {
    let cases: &[(&str, usize, &[u8], ErrorKind, &str)] = &[
        ("magic", 0, b"QFI\xfa", Corrupt, "magic"),
        ("version 0", 4, &be4(0), Unsupported, "version 0"),
        ("version 1", 4, &be4(1), Unsupported, "version 1"),
        ("version 4", 4, &be4(4), Unsupported, "version 4"),
        ("clusters of 1 byte", 20, &be4(0), Corrupt, "clusters"),
        ("clusters of 256 bytes", 20, &be4(8), Corrupt, "clusters"),
        ("clusters of 4 MiB", 20, &be4(22), Corrupt, "clusters"),
        ("clusters of 2^31", 20, &be4(31), Corrupt, "clusters"),
        ("clusters of 2^63", 20, &be4(63), Corrupt, "clusters"),
        ("clusters of 2^255", 20, &be4(255), Corrupt, "clusters"),
        ("clusters of 2^(2^32-1)", 20, &be4(u32::MAX), Corrupt, "clusters"),
        ("header of 0 bytes", 100, &be4(0), Corrupt, "header length"),
        ("header of 96 bytes", 100, &be4(96), Corrupt, "header length"),
        ("header of 108 bytes", 100, &be4(108), Corrupt, "header length"),
        ("header longer than a cluster", 100, &be4(65544), Corrupt, "header length"),
        ("header of 4 GiB", 100, &be4(u32::MAX - 7), Corrupt, "header length"),
        ("disk beyond the L1 table", 24, &be8((5 << 29) + 1), Corrupt, "too small"),
        ("disk of 2^63 bytes", 24, &be8(1 << 63), Corrupt, "too small"),
        ("disk of 2^64-1 bytes", 24, &be8(u64::MAX), Corrupt, "too small"),
        ("L1 table too small", 36, &be4(3), Corrupt, "too small"),
        ("L1 table of 0 entries", 36, &be4(0), Corrupt, "too small"),
        ("L1 table over 32 MiB", 36, &be4((4 << 20) + 1), Corrupt, "32 MiB"),
        ("L1 table of 2^32-1 entries", 36, &be4(u32::MAX), Corrupt, "32 MiB"),
        ("L1 table unaligned", 40, &be8(3 * CLUSTER + 512), Corrupt, "boundary"),
        ("L1 table nowhere", 40, &be8(0), Corrupt, "header's cluster"),
        ("L1 table beyond the file", 40, &be8(FILE), Corrupt, "end of the file"),
        ("L1 table ends beyond the file", 36, &be4(200_000), Corrupt, "end of the file"),
        ("L1 table's end wraps", 40, &be8(0u64.wrapping_sub(CLUSTER)), Corrupt, "end of the file"),
        ("L1 and refcount table at one place", 40, &be8(CLUSTER), Corrupt, "overlap"),
        ("L1 table runs into another", 36, &be4(16385), Corrupt, "overlap"),
        ("refcount table unaligned", 48, &be8(CLUSTER + 8), Corrupt, "boundary"),
        ("refcount table nowhere", 48, &be8(0), Corrupt, "header's cluster"),
        ("refcount table beyond the file", 48, &be8(FILE), Corrupt, "end of the file"),
        ("refcount table's end wraps", 48, &be8(!65535), Corrupt, "end of the file"),
        ("refcount table of 0 clusters", 56, &be4(0), Corrupt, "no refcount table"),
        ("refcount table ends beyond the file", 56, &be4(120), Corrupt, "end of the file"),
        ("refcount table over 8 MiB", 56, &be4(129), Corrupt, "8 MiB"),
        ("refcount table of 2^48 bytes", 56, &be4(u32::MAX), Corrupt, "8 MiB"),
        ("refcounts of 128 bits", 96, &be4(7), Corrupt, "64 bits"),
        ("refcounts of 2^32 bits", 96, &be4(32), Corrupt, "64 bits"),
        ("refcounts of 2^(2^32-1) bits", 96, &be4(u32::MAX), Corrupt, "64 bits"),
        ("65537 snapshots", 60, &be4(65537), Corrupt, "65536 snapshots"),
        ("snapshots beyond the file", 60, &be4(65536), Corrupt, "end of the file"),
        ("snapshot table unaligned", 64, &be8(5 * CLUSTER + 8), Corrupt, "boundary"),
        ("snapshot table nowhere", 64, &be8(0), Corrupt, "header's cluster"),
        ("snapshot table in the L1 table", 64, &be8(3 * CLUSTER), Corrupt, "overlap"),
        ("snapshot table in the refcount table", 64, &be8(2 * CLUSTER), Corrupt, "overlap"),
        ("encryption method 3", 32, &be4(3), Unsupported, "encryption method 3"),
        ("encryption method 2^32-1", 32, &be4(u32::MAX), Unsupported, "encryption method"),
        ("LUKS without header", 32, &be4(2), Corrupt, "encryption header"),
        ("unknown feature", 72, &be8(1 << 5), Unsupported, "bit 5"),
        ("all features", 72, &be8(u64::MAX), Unsupported, "bit 63"),
        ("compression bit without type", 72, &be8(COMPRESSION_TYPE), Corrupt, "type is zlib"),
        ("compression type without bit", 104, &[1], Corrupt, "without the compression type bit"),
        ("raw data file without data file", 88, &be8(DATA_FILE_RAW), Corrupt, "no data file"),
        ("name in the fields", 8, &be8(104), Corrupt, "first cluster"),
        ("name beyond the cluster", 8, &be8(CLUSTER + 1), Corrupt, "first cluster"),
        ("name's offset wraps", 8, &be8(u64::MAX), Corrupt, "first cluster"),
        ("name ends beyond the cluster", 8, &be8(CLUSTER - 4), Corrupt, "leaves"),
        ("name of 1024 bytes", 16, &be4(1024), Corrupt, "1023"),
        ("name of 2^32-1 bytes", 16, &be4(u32::MAX), Corrupt, "1023"),
        ("name with NUL", 16, &be4(9), Corrupt, "NUL"),
    ];
    let backing = BackingFile { name: b"base.raw".into(), format: None };
    let good =
        Header { backing: Some(backing), refcount_table_clusters: 2, snapshots: 1, ..plain() };
    let good = cluster(&Header { snapshot_table: 5 * CLUSTER, ..good });
    Header::parse(&good, FILE).unwrap();
    for (name, at, bytes, kind, word) in cases {
        let mut raw = good.clone();
        raw[*at..*at + bytes.len()].copy_from_slice(bytes);
        let (found, message) = refused(Header::parse(&raw, FILE), name);
        assert!(found == *kind && message.contains(word), "{name}: {found:?}: {message}");
    }
}

#[test]
fn bad_combinations_are_refused() {
    let zstd = Header { incompatible: COMPRESSION_TYPE, compression: Compression::Zstd, ..plain() };
    let mut other_type = cluster(&zstd);
    other_type[104] = 2;
    let mut no_room_for_type = cluster(&zstd);
    put32(&mut no_room_for_type, 100, V3_BYTES);
    let mut small_subclusters =
        cluster(&Header { cluster_bits: 13, l1_entries: 512, refcount_table: 8192, ..plain() });
    put64(&mut small_subclusters, 72, EXTENDED_L2);
    let cases: [(&str, &[u8], ErrorKind, &str); 4] = [
        ("unknown compression", &other_type, Unsupported, "compression type 2"),
        ("compression type beyond the fields", &no_room_for_type, Corrupt, "type is zlib"),
        ("subclusters of 256 bytes", &small_subclusters, Corrupt, "16 KiB"),
        ("no bytes", &[], Corrupt, "magic"),
    ];
    for (name, raw, kind, word) in cases {
        let (found, message) = refused(Header::parse(raw, FILE), name);
        assert!(found == kind && message.contains(word), "{name}: {found:?}: {message}");
    }
}

#[test]
fn short_files_are_refused() {
    let v2 = cluster(&Header { version: 2, header_bytes: V2_BYTES, ..plain() });
    let v3 = cluster(&full());
    for (name, raw, len) in [
        ("v2", &v2, 3),
        ("v2", &v2, 23),
        ("v2", &v2, 71),
        ("v3", &v3, 72),
        ("v3", &v3, 103),
        ("v3, within its length", &v3, 127),
        // Extensions, then tables that are not there.
        ("v2, all fields", &v2, 72),
        ("v3, all fields", &v3, 128),
        ("v3, within an extension", &v3, 140),
        ("v3, its first cluster", &v3, 65536),
    ] {
        let (kind, _) = refused(Header::parse(&raw[..len], len as u64), name);
        assert_eq!(kind, Corrupt, "{name} {len}");
        // The same bytes of a longer file: a caller who did not read on.
        if len < 65536 && Raw::new(&raw[..len]).is_ok() {
            let (kind, _) = refused(Header::parse(&raw[..len], FILE), name);
            assert_eq!(kind, ErrorKind::BadRequest, "{name} {len}");
        }
    }
}

#[test]
fn bad_extensions_are_refused() {
    const BACKING_FORMAT: u32 = 0xE279_2ACA;
    const DATA_FILE: u32 = 0x4441_5441;
    const FEATURES: u32 = 0x6803_F857;
    const BITMAPS: u32 = 0x2385_2875;
    const CRYPTO: u32 = 0x0537_BE77;
    let at = 6 * CLUSTER;
    let none = plain();
    let bits = Header { autoclear: BITMAPS_CONSISTENT, ..plain() };
    let luks = Header { crypt_method: CryptMethod::Luks, ..plain() };
    let cases: &[(&str, &Header, Data, &str)] = &[
        ("format of 16 bytes", &none, &[(BACKING_FORMAT, &[b'x'; 16])], "15"),
        ("format with NUL", &none, &[(BACKING_FORMAT, b"raw\0")], "NUL"),
        ("data file with NUL", &none, &[(DATA_FILE, b"\0")], "NUL"),
        ("format twice", &none, &[(BACKING_FORMAT, b"raw"), (BACKING_FORMAT, b"raw")], "twice"),
        ("data file twice", &none, &[(DATA_FILE, b"a"), (1, b""), (DATA_FILE, b"b")], "twice"),
        ("names twice", &none, &[(FEATURES, b""), (FEATURES, b"")], "twice"),
        ("bitmaps of 23 bytes", &bits, &[(BITMAPS, &bitmaps(1, 0, 24, at)[..23])], "24 bytes"),
        ("bitmaps of 0 bytes", &bits, &[(BITMAPS, b"")], "24 bytes"),
        ("0 bitmaps", &bits, &[(BITMAPS, &bitmaps(0, 0, 24, at))], "none"),
        ("65536 bitmaps", &bits, &[(BITMAPS, &bitmaps(65536, 0, 2 << 20, at))], "65535"),
        ("bitmaps' reserved field", &bits, &[(BITMAPS, &bitmaps(1, 1, 24, at))], "reserved"),
        ("directory too small", &bits, &[(BITMAPS, &bitmaps(2, 0, 47, at))], "size"),
        ("directory over 64 MiB", &bits, &[(BITMAPS, &bitmaps(1, 0, 67_107_841, at))], "size"),
        ("directory of 2^64-1", &bits, &[(BITMAPS, &bitmaps(1, 0, u64::MAX, at))], "size"),
        ("directory unaligned", &bits, &[(BITMAPS, &bitmaps(1, 0, 24, at + 8))], "boundary"),
        ("directory nowhere", &bits, &[(BITMAPS, &bitmaps(1, 0, 24, 0))], "header's cluster"),
        ("directory beyond", &bits, &[(BITMAPS, &bitmaps(1, 0, 24, FILE))], "end of the file"),
        ("directory in L1", &bits, &[(BITMAPS, &bitmaps(1, 0, 24, 3 * CLUSTER))], "overlap"),
        ("bitmaps twice", &none, &[(BITMAPS, b""), (BITMAPS, b"")], "twice"),
        ("encryption header, no LUKS", &none, &[(CRYPTO, &pair(at, 4096))], "not encrypted"),
        ("LUKS without header", &luks, &[(1, b"x")], "without encryption header"),
        ("encryption pointer short", &luks, &[(CRYPTO, &pair(at, 4096)[..15])], "16 bytes"),
        ("encryption header empty", &luks, &[(CRYPTO, &pair(at, 0))], "no bytes"),
        ("encryption header unaligned", &luks, &[(CRYPTO, &pair(at + 512, 4096))], "boundary"),
        ("encryption header beyond", &luks, &[(CRYPTO, &pair(at, FILE))], "end of the file"),
        ("encryption header wraps", &luks, &[(CRYPTO, &pair(at, u64::MAX))], "end of the file"),
        ("encryption header in L1", &luks, &[(CRYPTO, &pair(3 * CLUSTER, 1))], "overlap"),
        ("encryption header nowhere", &luks, &[(CRYPTO, &pair(0, 1))], "header's cluster"),
    ];
    for (name, header, extensions, word) in cases {
        let (kind, message) = refused(Header::parse(&with(header, extensions), FILE), name);
        assert!(kind == Corrupt && message.contains(word), "{name}: {kind:?}: {message}");
    }
    for (name, len, ok) in [
        ("ends with the area", 65536 - 120, true),
        ("a byte longer", 65536 - 119, false),
        ("2^32-1 bytes", u32::MAX, false),
    ] {
        let mut raw = with(&plain(), &[(1, b"x")]);
        put32(&mut raw, 116, len);
        let result = Header::parse(&raw, FILE);
        assert_eq!(result.is_ok(), ok, "{name}");
        assert!(ok || refused(result, name).1.contains("longer than"), "{name}");
    }
}

#[test]
fn an_unknown_feature_is_named_and_its_name_escaped() {
    let name = |kind, bit, name: &[u8]| FeatureName { kind, bit, name: name.into() };
    let names = vec![name(1, 7, b"no"), name(0, 7, b"a\x1b[31m\"b"), name(0, 255, b"no")];
    let header = Header { feature_names: names, ..plain() };
    let mut raw = cluster(&header);
    put64(&mut raw, 72, 1 << 7 | 1 << 9);
    let (kind, message) = refused(Header::parse(&raw, FILE), "unknown");
    assert_eq!(kind, Unsupported);
    assert!(message.ends_with("features: a\\x1b[31m\\\"b, bit 9"), "{message}");
    // With extensions that nobody can read it is still said what is wrong first.
    put32(&mut raw, 116, u32::MAX);
    let (kind, message) = refused(Header::parse(&raw, FILE), "unknown");
    assert!(kind == Unsupported && message.ends_with("bit 7, bit 9"), "{message}");
}

#[test]
fn odd_headers_that_are_good() {
    let patched = |header: &Header, at: usize, bytes: &[u8]| {
        let mut raw = cluster(header);
        raw[at..at + bytes.len()].copy_from_slice(bytes);
        raw
    };
    let v2 = Header { version: 2, header_bytes: V2_BYTES, ..plain() };
    let empty = Header { disk_bytes: 0, l1_entries: 0, l1_table: 0, ..plain() };
    let mut endless = with(&plain(), &[]);
    // A name at the very end, and before it an extension that leaves 4 bytes.
    put32(&mut endless, 112, 1);
    put32(&mut endless, 116, 65536 - 128);
    put64(&mut endless, 8, 65532);
    put32(&mut endless, 16, 4);
    endless[65532..].copy_from_slice(b"base");
    let cases: &[(&str, Vec<u8>)] = &[
        ("empty disk, no L1 table", cluster(&empty)),
        ("half a sector", patched(&plain(), 24, &be8(1000))),
        ("L1 table up to the file's end", patched(&plain(), 40, &be8(15 * CLUSTER))),
        ("L1 table longer than needed", patched(&plain(), 36, &be4(104 * 1024))),
        ("refcounts of 1 bit", patched(&plain(), 96, &be4(0))),
        ("refcounts of 64 bits", patched(&plain(), 96, &be4(6))),
        ("no snapshots, wherever", patched(&plain(), 64, &be8(77))),
        ("unknown compatible feature", patched(&plain(), 80, &be8(u64::MAX))),
        ("unknown autoclear feature", patched(&plain(), 88, &be8(!3))),
        ("bitmaps bit without bitmaps", patched(&plain(), 88, &be8(1))),
        ("padding not zero", patched(&plain(), 105, b"padding")),
        ("name of 0 bytes", patched(&plain(), 8, &be8(CLUSTER))),
        ("v2 takes no notice of later fields", patched(&v2, 72, &[0; 40])),
        ("v2 with a name behind the fields", {
            let mut raw = patched(&v2, 72, b"base");
            put64(&mut raw, 8, 72);
            put32(&mut raw, 16, 4);
            raw
        }),
        ("feature names of odd length", with(&plain(), &[(0x6803_F857, &[b'x'; 47])])),
        ("unknown extensions, twice", with(&plain(), &[(9, b"x"), (9, b"y")])),
        ("no end", endless),
    ];
    for (name, raw) in cases {
        Header::parse(raw, FILE).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for bits in CLUSTER_BITS {
        let cluster = 1 << bits;
        let header = Header {
            cluster_bits: bits,
            disk_bytes: 512,
            refcount_table: cluster,
            l1_table: 2 * cluster,
            l1_entries: 1,
            ..plain()
        };
        let raw = header.encode().unwrap();
        let raw = [raw.clone(), vec![0; cluster as usize - raw.len()]].concat();
        assert_eq!(Header::parse(&raw, 3 * cluster).unwrap(), header);
    }
}

#[test]
fn a_file_may_end_within_the_last_cluster_of_a_table() {
    let raw = cluster(&plain());
    let l1_end = 3 * CLUSTER + 5 * 8;
    for (file, ok) in
        [(l1_end, true), (l1_end - 39, true), (3 * CLUSTER + 1, true), (3 * CLUSTER, false)]
    {
        assert_eq!(Header::parse(&raw, file).is_ok(), ok, "{file}");
    }
    // Nothing of the second cluster of a table may be missing.
    let raw = cluster(&Header { l1_entries: 8193, ..plain() });
    assert!(Header::parse(&raw, 4 * CLUSTER).is_err());
    assert!(Header::parse(&raw, 4 * CLUSTER + 1).is_ok());
}

#[test]
fn bitmaps_that_somebody_wrote_past_are_dropped_if_bad() {
    let at = 6 * CLUSTER;
    let none = plain();
    let good = with(&none, &[(0x2385_2875, &bitmaps(1, 0, 24, at))]);
    let good = Header::parse(&good, FILE).unwrap();
    assert_eq!(
        good.bitmaps,
        Some(BitmapsExtension { count: 1, directory: at, directory_bytes: 24 })
    );
    for bad in [bitmaps(0, 0, 24, at), bitmaps(1, 0, 24, FILE), bitmaps(1, 0, 24, 3 * CLUSTER)] {
        let header = Header::parse(&with(&none, &[(0x2385_2875, &bad)]), FILE).unwrap();
        assert_eq!(header.bitmaps, None);
    }
    // What the bitmaps' directory is not to blame for is refused as ever.
    let raw =
        with(&Header { l1_table: FILE, ..plain() }, &[(0x2385_2875, &bitmaps(1, 0, 24, FILE))]);
    assert!(Header::parse(&raw, FILE).is_err());
}
