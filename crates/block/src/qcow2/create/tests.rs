//! Tests of new images: counted by hand, and judged by QEMU.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod interop;

use super::*;
use std::collections::BTreeMap;

/// A new image, of which only what is not zeroes is there.
struct Sparse {
    pieces: BTreeMap<u64, Vec<u8>>,
    header: Header,
    file_bytes: u64,
}

impl Sparse {
    fn new(layout: &Layout) -> Sparse {
        let file_bytes = layout.file_bytes();
        let mut pieces = BTreeMap::new();
        let (mut end, mut last) = (0, u64::MAX);
        for Piece { at, bytes } in layout.pieces() {
            let unit = layout.header().cluster_bytes().min(4096);
            assert!(at.is_multiple_of(unit) && (bytes.len() as u64).is_multiple_of(unit));
            assert!(bytes.len() <= 1 << 20 && at + bytes.len() as u64 <= file_bytes);
            assert!(at >= end || at == 0, "pieces overlap");
            end = at + bytes.len() as u64;
            last = at;
            pieces.insert(at, bytes);
        }
        assert_eq!(last, 0, "the header is not last");
        let header = Header::parse(&padded(&pieces[&0], layout), file_bytes).unwrap();
        assert_eq!(&header, layout.header());
        Sparse { pieces, header, file_bytes }
    }

    /// So many bytes, which lie in one piece or in none.
    fn bytes(&self, at: u64, len: usize) -> Option<&[u8]> {
        assert!(at + len as u64 <= self.file_bytes);
        let (start, bytes) = self.pieces.range(..=at).next_back()?;
        bytes.get((at - start) as usize..)?.get(..len)
    }

    fn entry(&self, at: u64) -> u64 {
        self.bytes(at, 8).map_or(0, |bytes| u64::from_be_bytes(*bytes.first_chunk().unwrap()))
    }

    fn refcount(&self, cluster: u64) -> u64 {
        let header = &self.header;
        let (block, n) =
            (cluster / header.refcounts_per_block(), cluster % header.refcounts_per_block());
        assert!(block * 8 < header.refcount_table_bytes());
        let at = self.entry(header.refcount_table + block * 8);
        match header.refcount_bits() {
            _ if at == 0 => 0,
            bits @ ..8 => {
                let byte = self.bytes(at + n * u64::from(bits) / 8, 1).map_or(0, |byte| byte[0]);
                let shift = n * u64::from(bits) % 8;
                u64::from(byte) >> shift & ((1 << bits) - 1)
            }
            bits => {
                let width = bits as usize / 8;
                let bytes = self.bytes(at + n * width as u64, width).unwrap_or(&[]);
                bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
            }
        }
    }

    /// All clusters that something refers to, once for each time.
    fn used(&self) -> Vec<u64> {
        let header = &self.header;
        let bits = header.cluster_bits;
        let run = |at: u64, bytes: u64| (at >> bits)..(at + bytes).div_ceil(1 << bits);
        let mut used = vec![0];
        used.extend(run(header.refcount_table, header.refcount_table_bytes()));
        for n in 0..header.refcount_table_bytes() / 8 {
            let block = self.entry(header.refcount_table + n * 8);
            used.extend((block != 0).then_some(block >> bits));
        }
        used.extend(run(header.l1_table, u64::from(header.l1_entries) * 8));
        for (_, l2_table) in self.l2_tables() {
            used.push(l2_table >> bits);
        }
        if !header.has(EXTERNAL_DATA) {
            used.extend(self.mapped().into_iter().map(|(_, at, _)| at >> bits));
        }
        used
    }

    /// L2 tables, with their numbers.
    fn l2_tables(&self) -> Vec<(u64, u64)> {
        let entries = (0..u64::from(self.header.l1_entries))
            .map(|n| (n, self.entry(self.header.l1_table + n * 8)));
        let there: Vec<_> = entries.filter(|(_, entry)| *entry != 0).collect();
        assert!(there.iter().all(|(_, entry)| entry >> 63 == 1), "COPIED is missing");
        there.into_iter().map(|(n, entry)| (n, entry & !COPIED)).collect()
    }

    /// Clusters of the disk that are mapped: number, place, subclusters.
    fn mapped(&self) -> Vec<(u64, u64, u64)> {
        let header = &self.header;
        let mut mapped = Vec::new();
        for (n, table) in self.l2_tables() {
            for m in 0..header.l2_entries() {
                let at = table + m * header.l2_entry_bytes();
                let entry = self.entry(at);
                if entry == 0 {
                    continue;
                }
                assert_eq!(entry >> 56, 0x80, "COPIED is missing");
                let second = if header.has_subclusters() { self.entry(at + 8) } else { 0 };
                mapped.push((n * header.l2_entries() + m, entry & !COPIED, second));
            }
        }
        mapped
    }
}

/// The first cluster: what is not in the header's piece is zeroes.
fn padded(first: &[u8], layout: &Layout) -> Vec<u8> {
    let mut cluster = first.to_vec();
    cluster.resize(layout.header().cluster_bytes() as usize, 0);
    cluster
}

/// Every cluster of the file is used once and counted once, and nothing behind its end is counted.
fn assert_counted(options: &CreateOptions) -> Layout {
    let layout = Layout::new(options).unwrap_or_else(|error| panic!("{error}: {options:?}"));
    let image = Sparse::new(&layout);
    let clusters = image.file_bytes >> image.header.cluster_bits;
    assert_eq!(clusters << image.header.cluster_bits, image.file_bytes);
    let mut used = image.used();
    used.sort_unstable();
    assert!(used.iter().copied().eq(0..clusters), "{options:?}");
    let counted = clusters.div_ceil(image.header.refcounts_per_block());
    let covered = counted * image.header.refcounts_per_block();
    // Behind the end a few are looked at: what is behind them is not in any piece, by their lengths.
    for cluster in 0..covered.min(clusters + 4096 * 8) {
        let expected = u64::from(cluster < clusters);
        assert_eq!(image.refcount(cluster), expected, "{cluster} of {clusters}: {options:?}");
    }
    layout
}

#[test]
fn every_cluster_is_counted_for_every_geometry() {
    for cluster_bits in 9..=21 {
        for order in 0..=6 {
            let options = CreateOptions {
                cluster_bytes: 1 << cluster_bits,
                refcount_bits: 1 << order,
                ..CreateOptions::new(0)
            };
            // 2 GiB have an L1 table of half a MiB with the smallest clusters.
            for bytes in [0, 512, 1 << 20, 2 << 30] {
                let layout = assert_counted(&CreateOptions { bytes, ..options.clone() });
                assert!(layout.data().is_empty());
            }
            let is_extended = cluster_bits >= 14 && order % 2 == 0;
            let bytes = (3 << cluster_bits) + 512 + (1 << 18);
            let layout = assert_counted(&CreateOptions {
                bytes,
                extended_l2: is_extended,
                preallocation: Preallocation::Metadata,
                ..options
            });
            let data = layout.data();
            assert_eq!(data.end - data.start, bytes.next_multiple_of(1 << cluster_bits));
        }
    }
}

#[test]
fn refcounts_count_their_own_blocks() {
    // A block counts 64 clusters, a cluster of the table 64 blocks: among so many sizes each is full once, and once too short by one.
    for clusters in (0..200).chain(3870..4100) {
        assert_counted(&CreateOptions {
            cluster_bytes: 512,
            refcount_bits: 64,
            preallocation: Preallocation::Metadata,
            ..CreateOptions::new(clusters * 512)
        });
    }
}

#[test]
fn a_preallocated_disk_is_mapped_in_order() {
    let base = BackingFile { name: b"base".into(), format: Some(b"raw".into()) };
    let data_file = Some(b"data".to_vec());
    let disk = CreateOptions {
        cluster_bytes: 16384,
        preallocation: Preallocation::Metadata,
        ..CreateOptions::new((80 << 20) + 512)
    };
    let extended = CreateOptions { extended_l2: true, ..disk.clone() };
    let over_base = CreateOptions { backing: Some(base), ..extended.clone() };
    let elsewhere = CreateOptions { data_file: data_file.clone(), ..extended.clone() };
    let raw = CreateOptions {
        data_file,
        data_file_raw: true,
        preallocation: Preallocation::Off,
        ..disk.clone()
    };
    // Tables of several pieces.
    let small = CreateOptions { cluster_bytes: 512, refcount_bits: 64, ..disk.clone() };
    let cases = [
        (small, 0, true),
        (disk, 0, true),
        (extended, 0xFFFF_FFFF, true),
        (over_base, 0, true),
        (elsewhere, 0xFFFF_FFFF, false),
        (raw, 0, false),
    ];
    for (options, subclusters, is_here) in cases {
        let layout = assert_counted(&options);
        let image = Sparse::new(&layout);
        let start = if is_here { layout.data().start } else { 0 };
        let mapped = image.mapped();
        assert_eq!(mapped.len() as u64, options.bytes.div_ceil(options.cluster_bytes));
        for (n, found) in mapped.into_iter().enumerate() {
            let n = n as u64;
            assert_eq!(found, (n, start + n * options.cluster_bytes, subclusters), "{options:?}");
        }
        assert_eq!(layout.data().is_empty(), !is_here);
    }
}

#[test]
fn a_new_image_is_small() {
    let empty = Layout::new(&CreateOptions::new(0)).unwrap();
    assert_eq!((empty.header().l1_entries, empty.file_bytes()), (1, 4 * 65536));
    let (bytes, len) = new_image(&CreateOptions::new(64 << 30)).unwrap();
    assert!(bytes.len() <= 3 * 65536 && len == 4 * 65536);
    // The L1 table of 1 MiB is in the file's length alone.
    let (bytes, len) = new_image(&CreateOptions::new(64 << 40)).unwrap();
    assert!(bytes.len() <= 3 * 65536 && len == 19 * 65536);
    let layout = Layout::new(&CreateOptions::new(64 << 40)).unwrap();
    let mut pieces: Vec<Piece> = layout.pieces().collect();
    pieces.sort_by_key(|piece| piece.at);
    for Piece { at, bytes: piece } in pieces {
        assert_eq!(bytes[at as usize..][..piece.len()], piece);
    }
}

#[test]
fn large_disks() {
    // The largest disk for each cluster size is as large as the L1 table lets it be.
    for cluster_bits in 9..=21u32 {
        let max = 1u64 << (22 + 2 * cluster_bits - 3);
        let options = CreateOptions { cluster_bytes: 1 << cluster_bits, ..CreateOptions::new(max) };
        let layout = Layout::new(&options).unwrap();
        assert_eq!(u64::from(layout.header().l1_entries) * 8, L1_BYTES_MAX);
        let error = Layout::new(&CreateOptions { bytes: max + 512, ..options }).unwrap_err();
        assert!(error.to_string().contains("too large for clusters"), "{error}");
    }
    // A preallocated one is made piece by piece, so that its beginning costs nothing.
    let options = CreateOptions {
        preallocation: Preallocation::Metadata,
        cluster_bytes: 2 << 20,
        ..CreateOptions::new(1 << 50)
    };
    let layout = Layout::new(&options).unwrap();
    assert!(layout.file_bytes() > 1 << 50);
    assert!(layout.pieces().take(3).all(|piece| piece.bytes.len() <= 1 << 20));
    // 8 MiB of refcount table with refcounts of 64 bits and clusters of 512 bytes count 32 GiB.
    let narrow = CreateOptions { cluster_bytes: 512, refcount_bits: 64, ..options.clone() };
    Layout::new(&CreateOptions { bytes: 24 << 30, ..narrow.clone() }).unwrap();
    for (bytes, options, word) in [
        (32 << 30, narrow, "refcount table"),
        (1 << 56, options.clone(), "64 PiB"),
        (1 << 57, CreateOptions { data_file: Some(b"d".into()), ..options }, "64 PiB"),
    ] {
        let error = Layout::new(&CreateOptions { bytes, ..options }).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn what_qemu_refuses_is_refused() {
    let new = || CreateOptions::new(1 << 20);
    let v2 = || CreateOptions { version: 2, ..new() };
    let name = |len: usize| Some(vec![b'x'; len]);
    let backing = |name: &[u8], format: Option<&[u8]>| {
        Some(BackingFile { name: name.into(), format: format.map(<[u8]>::to_vec) })
    };
    let base = || backing(b"base", Some(b"raw"));
    let metadata = Preallocation::Metadata;
    let cases = [
        ("512 bytes", CreateOptions::new(513)),
        ("512 bytes", CreateOptions::new(u64::MAX)),
        ("too large", CreateOptions::new(u64::MAX - 511)),
        ("version", CreateOptions { version: 1, ..new() }),
        ("version", CreateOptions { version: 4, ..new() }),
        ("cluster size", CreateOptions { cluster_bytes: 0, ..new() }),
        ("cluster size", CreateOptions { cluster_bytes: 256, ..new() }),
        ("cluster size", CreateOptions { cluster_bytes: 65537, ..new() }),
        ("cluster size", CreateOptions { cluster_bytes: 4 << 20, ..new() }),
        ("cluster size", CreateOptions { cluster_bytes: 1 << 63, ..new() }),
        ("refcount width", CreateOptions { refcount_bits: 0, ..new() }),
        ("refcount width", CreateOptions { refcount_bits: 3, ..new() }),
        ("refcount width", CreateOptions { refcount_bits: 128, ..new() }),
        ("16 bits", CreateOptions { refcount_bits: 8, ..v2() }),
        ("extended", CreateOptions { extended_l2: true, ..v2() }),
        ("lazy", CreateOptions { lazy_refcounts: true, ..v2() }),
        ("zstd", CreateOptions { compression: Compression::Zstd, ..v2() }),
        ("data file", CreateOptions { data_file: name(3), ..v2() }),
        ("16 KiB", CreateOptions { extended_l2: true, cluster_bytes: 8192, ..new() }),
        ("no data file", CreateOptions { data_file_raw: true, ..new() }),
        ("name is empty", CreateOptions { data_file: name(0), ..new() }),
        ("NUL", CreateOptions { data_file: Some(b"a\0".into()), ..new() }),
        (
            "raw data file",
            CreateOptions { data_file: name(3), data_file_raw: true, backing: base(), ..new() },
        ),
        ("hide", CreateOptions { preallocation: metadata, backing: base(), ..new() }),
        ("hide", CreateOptions { preallocation: Preallocation::Full, backing: base(), ..new() }),
        ("format is not given", CreateOptions { backing: backing(b"base", None), ..new() }),
        ("format is not given", CreateOptions { backing: backing(b"base", Some(b"")), ..new() }),
        ("0 bytes", CreateOptions { backing: backing(b"", Some(b"raw")), ..new() }),
        ("1023", CreateOptions { backing: backing(&[b'x'; 1024], Some(b"raw")), ..new() }),
        ("15 bytes", CreateOptions { backing: backing(b"b", Some(&[b'x'; 16])), ..new() }),
        (
            "do not fit",
            CreateOptions {
                backing: backing(&[b'x'; 400], Some(b"raw")),
                cluster_bytes: 512,
                ..new()
            },
        ),
    ];
    for (word, options) in cases {
        for result in [Layout::new(&options).map(|_| ()), new_image(&options).map(|_| ())] {
            let error = result.expect_err(word);
            let message = error.to_string();
            assert!(error.kind() == ErrorKind::BadRequest && message.contains(word), "{message}");
        }
    }
    let error = new_image(&CreateOptions { preallocation: metadata, ..new() }).unwrap_err();
    assert!(error.to_string().contains("in pieces"));
}

#[test]
fn a_header_without_room_has_no_feature_names() {
    let backing = BackingFile { name: vec![b'x'; 300], format: Some(b"raw".into()) };
    let small =
        CreateOptions { cluster_bytes: 512, backing: Some(backing), ..CreateOptions::new(512) };
    assert!(Layout::new(&small).unwrap().header().feature_names.is_empty());
    let large = CreateOptions { cluster_bytes: 1024, ..small };
    assert_eq!(Layout::new(&large).unwrap().header().feature_names, known_features());
}
