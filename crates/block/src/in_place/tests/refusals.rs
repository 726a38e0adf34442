//! What cannot be converted is refused with the reason, and left alone.

use super::interop::{img, io};
use super::power::{qed, to_qcow2, to_qed};
use crate::ErrorKind::{self, Corrupt, Unsupported};
use crate::Result;
use crate::in_place::Converted;
use crate::qcow2;
use crate::qed::tests::check::LOGGED;
use crate::qed::{CreateOptions, new_image};
use crate::qemu_tool::{self, TempFile};
use crate::testing::rig::image;
use io_engine::sim::{SimDisk, SimOptions};
use std::path::Path;

/// The conversion fails with this kind and these words, and the file is as before.
fn refused(
    raw: &[u8],
    convert: fn(&SimDisk) -> Result<Converted>,
    expected: (ErrorKind, &str),
    name: &str,
) {
    let disk = SimDisk::with_contents(SimOptions { log: false, ..LOGGED }, raw);
    let error = convert(&disk).expect_err(name);
    assert_eq!(error.kind(), expected.0, "{name}: {error}");
    assert!(error.to_string().contains(expected.1), "{name}: {error}");
    assert!(disk.contents() == raw, "{name}: the file has changed");
}

type Row = (&'static str, fn(&mut Vec<u8>), ErrorKind, &'static str);

fn word(raw: &[u8], at: usize) -> usize {
    u64::from_le_bytes(*raw[at..].first_chunk().unwrap()) as usize
}

fn big(raw: &[u8], at: usize) -> usize {
    (u64::from_be_bytes(*raw[at..].first_chunk().unwrap()) & 0x00FF_FFFF_FFFF_FE00) as usize
}

fn put(raw: &mut [u8], at: usize, bytes: &[u8]) {
    raw[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The first entries of the first QED table that refer to data.
fn data_of(raw: &[u8]) -> (usize, usize) {
    let l1 = word(raw, 40);
    let used = |from: usize| (from..from + 4096).step_by(8).filter(|at| word(raw, *at) > 1);
    let table = used(l1).find(|at| used(word(raw, *at)).count() > 1).unwrap();
    let mut data = used(word(raw, table));
    (data.next().unwrap(), data.next().unwrap())
}

#[test]
fn qed_images_that_qcow2_cannot_express() {
    let good = qed(4, 1, None);
    to_qcow2(&SimDisk::with_contents(LOGGED, &good)).unwrap();
    let rows: &[Row] = &[
        ("not closed", |b| b[16] |= 2, Unsupported, "NEED_CHECK"),
        (
            "a cluster in use twice",
            |b| {
                let (one, two) = data_of(b);
                b.copy_within(one..one + 8, two);
            },
            Corrupt,
            "in use already",
        ),
        (
            "beyond the file",
            |b| {
                let (one, _) = data_of(b);
                put(b, one, &(1u64 << 40).to_le_bytes());
            },
            Corrupt,
            "beyond the end",
        ),
        (
            "not a cluster",
            |b| {
                let (one, _) = data_of(b);
                put(b, one, &4100u64.to_le_bytes());
            },
            Corrupt,
            "not a cluster",
        ),
        ("unknown compatible features", |b| b[24] = 1, Unsupported, "would be lost"),
        ("unknown features", |b| b[16] |= 8, Unsupported, "unknown feature"),
        ("not QED", |b| b[0] = b'q', Corrupt, "magic"),
    ];
    for (name, spoil, kind, words) in rows {
        let mut raw = good.clone();
        spoil(&mut raw);
        refused(&raw, to_qcow2, (*kind, words), name);
    }
    for (name, bytes, cluster_bytes, table_clusters, words) in [
        ("clusters of 4 MiB", 1 << 30, 4 << 20, 1, "larger than 2 MiB"),
        ("too large a disk", 1 << 60, 1 << 20, 8, "32 MiB"),
    ] {
        let create = CreateOptions { bytes, cluster_bytes, table_clusters, backing: None };
        let (mut raw, len) = new_image(&create).unwrap();
        raw.resize(len as usize, 0);
        refused(&raw, to_qcow2, (Unsupported, words), name);
    }
}

/// A qcow2 image that can be converted: made from QED, so of clusters of 4 KiB.
fn good_qcow2() -> Vec<u8> {
    let disk = SimDisk::with_contents(LOGGED, &qed(4, 1, Some((b"base".to_vec(), true))));
    to_qcow2(&disk).unwrap();
    disk.contents()
}

/// The places of the first L1 entry in use and of the first two L2 entries with data.
fn places(raw: &[u8]) -> (usize, usize, usize) {
    let l1 = big(raw, 40);
    let used = |from: usize| (from..from + 4096).step_by(8).filter(|at| big(raw, *at) > 1);
    let table = used(l1).find(|at| used(big(raw, *at)).count() > 1).unwrap();
    let mut data = used(big(raw, table));
    (table, data.next().unwrap(), data.next().unwrap())
}

/// The place of the refcount of the cluster that an entry refers to.
fn count_of(raw: &[u8], entry: usize) -> usize {
    let cluster = big(raw, entry) / 4096;
    big(raw, big(raw, 48) + cluster / 2048 * 8) + cluster % 2048 * 2
}

#[test]
fn qcow2_images_that_qed_cannot_express() {
    let good = good_qcow2();
    to_qed(&SimDisk::with_contents(LOGGED, &good)).unwrap();
    let rows: &[Row] = &[
        ("not qcow2", |b| b[0] = b'q', Corrupt, "magic"),
        ("version 4", |b| b[7] = 4, Unsupported, "version"),
        ("clusters of 4 MiB", |b| b[23] = 22, Corrupt, "2 MiB"),
        ("encrypted", |b| b[35] = 1, Unsupported, "encrypted"),
        (
            "snapshots",
            |b| {
                b[63] = 1;
                let end = b.len() as u64;
                b.resize(b.len() + 4096, 0);
                put(b, 64, &end.to_be_bytes());
            },
            Unsupported,
            "snapshots",
        ),
        ("dirty", |b| b[79] |= 1, Unsupported, "not closed"),
        ("corrupt", |b| b[79] |= 2, Unsupported, "corrupt"),
        ("an external data file", |b| b[79] |= 4, Unsupported, "another file"),
        ("unknown incompatible", |b| b[79] |= 32, Unsupported, "unknown incompatible"),
        ("unknown compatible", |b| b[87] |= 2, Unsupported, "unknown compatible"),
        (
            "unknown fields",
            |b| {
                b[103] = 112;
                put(b, 104, &[0, 1, 0, 0, 0, 0, 0, 0]);
                put(b, 112, &[0; 8]);
            },
            Unsupported,
            "unknown header fields",
        ),
        ("bitmaps", |b| b[95] |= 1, Unsupported, "bitmaps"),
        ("half a sector", |b| b[31] = 7, Unsupported, "512"),
        ("no L1 table", |b| put(b, 36, &[0; 4]), Corrupt, "L1 table"),
        ("a huge L1 table", |b| b[36] = 0x7F, Corrupt, "L1 table"),
        ("an L1 table in the world's end", |b| b[40] = 0xFF, Corrupt, "beyond the end"),
        ("a huge refcount table", |b| b[56] = 0xFF, Corrupt, "refcount table"),
        (
            "refcounts at the world's end",
            |b| put(b, 48, &[255, 255, 255, 255, 255, 255, 240, 0]),
            Corrupt,
            "beyond the end",
        ),
        ("refcounts of 128 bits", |b| b[99] = 7, Corrupt, "refcounts"),
        ("a header of no length", |b| b[103] = 0, Corrupt, "length"),
        ("an endless extension", |b| b[108] = 0xFF, Corrupt, "extension"),
        ("an unknown extension", |b| b[104] = 1, Unsupported, "would be lost"),
        ("a name beyond the cluster", |b| b[14] = 0x10, Corrupt, "name"),
        (
            "a compressed cluster",
            |b| {
                let (_, one, _) = places(b);
                b[one] |= 0x40;
            },
            Unsupported,
            "compressed",
        ),
        (
            "a reserved bit in L2",
            |b| {
                let (_, one, _) = places(b);
                b[one + 7] |= 2;
            },
            Corrupt,
            "L2 entry",
        ),
        (
            "a reserved bit in L1",
            |b| {
                let (table, ..) = places(b);
                b[table + 7] |= 1;
            },
            Corrupt,
            "L1 entry",
        ),
        (
            "a cluster in use twice",
            |b| {
                let (_, one, two) = places(b);
                b.copy_within(one..one + 8, two);
            },
            Corrupt,
            "in use twice",
        ),
        (
            "a cluster beyond the file",
            |b| {
                let (_, one, _) = places(b);
                b[one + 3] = 1;
            },
            Corrupt,
            "beyond the end",
        ),
        (
            "a refcount of 2",
            |b| {
                let (_, one, _) = places(b);
                let at = count_of(b, one);
                b[at + 1] = 2;
            },
            Unsupported,
            "refcounts above 1",
        ),
        (
            "a refcount of 0",
            |b| {
                let (_, one, _) = places(b);
                let at = count_of(b, one);
                b[at + 1] = 0;
            },
            Corrupt,
            "refcount 0",
        ),
        (
            "a refcount block twice",
            |b| {
                let table = big(b, 48);
                b.copy_within(table..table + 8, table + 8);
            },
            Corrupt,
            "in use twice",
        ),
        (
            "version 2 with zero clusters",
            |b| {
                let (_, one, _) = places(b);
                b[one + 7] |= 1;
                b[7] = 2;
                // Extensions begin at byte 72 there.
                put(b, 72, &[0; 8]);
            },
            Corrupt,
            "L2 entry",
        ),
    ];
    for (name, spoil, kind, words) in rows {
        let mut raw = good.clone();
        spoil(&mut raw);
        refused(&raw, to_qed, (*kind, words), name);
    }
    let short = &good[..50];
    refused(short, to_qed, (Corrupt, "ends within the header"), "a file of 50 bytes");
    let new = |cluster_bytes, extended_l2| {
        let options = qcow2::CreateOptions {
            cluster_bytes,
            extended_l2,
            ..qcow2::CreateOptions::new(1 << 20)
        };
        image(&options, SimOptions::default()).contents()
    };
    for (name, raw, words) in [
        ("clusters of 512 bytes", new(512, false), "smaller than 4 KiB"),
        ("extended L2 entries", new(16384, true), "extended L2"),
    ] {
        refused(&raw, to_qed, (Unsupported, words), name);
    }
}

#[test]
fn what_qemu_makes_and_qed_cannot_express() {
    if !qemu_tool::is_there() {
        return;
    }
    let create = |options: &str| {
        let file = TempFile::new("qcow2");
        img(&["create", "-q", "-f", "qcow2", "-o", options, file.path().to_str().unwrap(), "8M"]);
        io("qcow2", file.path(), &["write -P 1 0 100k"]);
        file
    };
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let bitmaps = create("compat=1.1");
    img(&["bitmap", "--add", &text(bitmaps.path()), "b0"]);
    let snapshots = create("compat=1.1");
    img(&["snapshot", "-c", "one", &text(snapshots.path())]);
    let data = TempFile::new("data");
    let external = create(&format!("compat=1.1,data_file={}", text(data.path())));
    let compressed = TempFile::new("qcow2");
    let from = create("compat=1.1");
    img(&["convert", "-c", "-O", "qcow2", &text(from.path()), &text(compressed.path())]);
    let rows = [
        ("bitmaps", &bitmaps, "bitmaps"),
        ("snapshots", &snapshots, "snapshots"),
        ("an external data file", &external, "another file"),
        ("compressed clusters", &compressed, "compressed"),
        ("extended L2 entries", &create("compat=1.1,extended_l2=on"), "extended L2"),
        ("clusters of 512 bytes", &create("compat=1.1,cluster_size=512"), "smaller than 4 KiB"),
    ];
    for (name, file, words) in rows {
        refused(&file.bytes(), to_qed, (Unsupported, words), name);
    }
}
