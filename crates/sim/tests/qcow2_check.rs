//! The qcow2 checker and reader against `qemu-img`, on images that QEMU made, and that somebody spoiled.
//!
//! Errors and leaks are compared as numbers where QEMU counts what the specification defines. Where one fault leads QEMU to others (it
//! follows an unaligned entry, or gives up), only that there are errors; where it cannot open the image, that neither can we.
#![allow(clippy::disallowed_methods)]

mod common;

use common::verdict::{Verdict, put, verdict_of_qemu, word};
use common::*;
use io_engine::Rng;
use sim::qcow2::{self, Mapping, Qcow2};

fn verdict_of_ours(image: &[u8]) -> Verdict {
    let report = qcow2::check(image);
    report.header.is_empty().then_some((report.damage_count, report.leaked_clusters))
}

/// An image of 4 MiB, made with these options, and with these commands to `qemu-io`.
fn made(scratch: &Scratch, options: &str, commands: &[&str]) -> Vec<u8> {
    let path = scratch.path("image.qcow2");
    let name = path.to_str().unwrap();
    let (status, said) = qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, name, "4M"]);
    assert_eq!(status, 0, "{options}: {said}");
    qemu_io(scratch, commands);
    scratch.get("image.qcow2")
}

fn qemu_io(scratch: &Scratch, commands: &[&str]) {
    let path = scratch.path("image.qcow2");
    let mut qemu =
        QemuIo::open(&["-f", "qcow2", "-t", "unsafe", "-d", "unmap", path.to_str().unwrap()]);
    for command in commands {
        let said = qemu.run(command);
        assert!(said.starts_with("wrote") || said.starts_with("discard"), "{command}: {said}");
    }
    qemu.close();
}

/// Does a verb of `qemu-img` to the image.
fn img(scratch: &Scratch, args: &[&str]) -> Vec<u8> {
    let path = scratch.path("image.qcow2");
    let args: Vec<&str> =
        args.iter().map(|arg| if *arg == "IMAGE" { path.to_str().unwrap() } else { arg }).collect();
    let (status, said) = qemu_img(&args);
    assert_eq!(status, 0, "{args:?}: {said}");
    scratch.get("image.qcow2")
}

const WRITES: &[&str] = &[
    "write -P 1 0 8k",
    "write -P 2 1M 100k",
    "write -P 3 3000k 5k",
    "write -z 2M 64k",
    "write -P 4 4095k 1k",
];
const MORE: &[&str] = &["write -P 9 1040k 9k", "discard 0 4k", "write -z -u 2600k 600k"];

/// Both checkers find nothing, and the reader reads what QEMU reads.
fn compare(scratch: &Scratch, name: &str, image: &[u8]) {
    assert_eq!(verdict_of_ours(image), Some((0, 0)), "ours: {name}: {:?}", qcow2::check(image));
    assert_eq!(verdict_of_qemu(scratch, "qcow2", image), Some((0, 0)), "QEMU's: {name}");
    let report = qcow2::check(image);
    assert_eq!(report.judge_crash(), Ok(()), "{name}");
    let raw = scratch.path("disk.raw");
    img(scratch, &["convert", "-f", "qcow2", "-O", "raw", "IMAGE", raw.to_str().unwrap()]);
    let qcow2 = Qcow2::open(image).unwrap();
    let mut disk = vec![0xee; usize::try_from(qcow2.disk_size()).unwrap()];
    let result = qcow2.read_disk(0, &mut disk, |_, into| into.fill(0));
    if report.compressed_clusters > 0 {
        assert!(matches!(result, Err(qcow2::Unreadable::Compressed(_))), "{name}: {result:?}");
    } else {
        assert_eq!(result, Ok(()), "{name}");
        assert!(disk == scratch.get("disk.raw"), "{name}");
    }
}

#[test]
fn images_that_qemu_made_are_sound_and_read_alike() {
    if !has_qemu() {
        return;
    }
    let scratch = Scratch::new("qcow2-made");
    let options = [
        "compat=0.10",
        "compat=0.10,cluster_size=512",
        "cluster_size=512",
        "cluster_size=4096,refcount_bits=1",
        "cluster_size=4096,refcount_bits=2",
        "cluster_size=1024,refcount_bits=4",
        "cluster_size=2048,refcount_bits=8",
        "cluster_size=512,refcount_bits=32",
        "cluster_size=512,refcount_bits=64",
        "cluster_size=2M",
        "lazy_refcounts=on",
        "preallocation=metadata,cluster_size=4096",
        "preallocation=falloc",
        "preallocation=full,extended_l2=on",
        "extended_l2=on,cluster_size=16384",
        "extended_l2=on,cluster_size=128k",
        "compression_type=zstd",
    ];
    for options in options {
        let image = made(&scratch, options, WRITES);
        compare(&scratch, options, &image);
        // A count of one bit cannot count a snapshot.
        if options.contains("refcount_bits=1") {
            continue;
        }
        img(&scratch, &["snapshot", "-c", "first", "IMAGE"]);
        qemu_io(&scratch, MORE);
        if !options.contains("0.10") {
            img(&scratch, &["bitmap", "--add", "-g", "64k", "IMAGE", "b0"]);
            img(&scratch, &["bitmap", "--add", "--disable", "IMAGE", "b1"]);
            qemu_io(&scratch, &["write -P 7 900k 300k"]);
        }
        let image = img(&scratch, &["snapshot", "-c", "second", "IMAGE"]);
        compare(&scratch, &format!("{options}, snapshots and bitmaps"), &image);
        let image = img(&scratch, &["snapshot", "-d", "first", "IMAGE"]);
        compare(&scratch, &format!("{options}, a snapshot deleted"), &image);
    }
}

#[test]
fn compressed_clusters_are_counted_by_the_sector() {
    if !has_qemu() {
        return;
    }
    let scratch = Scratch::new("qcow2-compressed");
    for options in [
        "compat=0.10",
        "cluster_size=4096",
        "cluster_size=512",
        "cluster_size=2M",
        "compression_type=zstd,extended_l2=on",
    ] {
        made(&scratch, options, &["write -c -P 5 0 2M"]);
        let image = img(&scratch, &["snapshot", "-c", "first", "IMAGE"]);
        assert!(qcow2::check(&image[..]).compressed_clusters > 0, "{options}");
        compare(&scratch, options, &image);
        qemu_io(&scratch, &["write -P 6 0 4k", "write -c -P 7 2M 2M"]);
        compare(&scratch, options, &scratch.get("image.qcow2"));
    }
}

fn long(image: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(word(image, at))
}

fn with(image: &[u8], at: u64, value: u64) -> Vec<u8> {
    put(image, at, &value.to_be_bytes())
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
/// Images spoiled at random.
const ROUNDS: u64 = 80;

#[test]
fn both_checkers_say_the_same_of_spoiled_images() {
    if !has_qemu() {
        return;
    }
    let scratch = Scratch::new("qcow2-spoiled");
    let image = made(&scratch, "cluster_size=4096", &["write -P 1 0 16k", "write -z 64k 4k"]);
    let len = image.len() as u64;
    let (l1, reftable) = (long(&image, 40), long(&image, 48));
    let (l2, block) = (long(&image, l1) & OFFSET, long(&image, reftable));
    let first = long(&image, l2) & OFFSET;
    let count_of = |at: u64| block + at / 4096 * 2;
    let free = l2 + 8 * 100;
    let longer = [&image[..], &[0; 4096]].concat();
    let at_end = |count: u16| put(&longer, count_of(len), &count.to_be_bytes());
    let cases: &[(&str, Vec<u8>, Verdict)] = &[
        ("as made", image.clone(), Some((0, 0))),
        ("a free cluster more", longer.clone(), Some((0, 0))),
        ("a leaked cluster", at_end(1), Some((0, 1))),
        ("a cluster leaked three times", at_end(3), Some((0, 1))),
        ("an entry dropped", with(&image, l2, 0), Some((0, 1))),
        ("the L2 table dropped", with(&image, l1, 0), Some((0, 5))),
        ("a count dropped", put(&image, count_of(first), &[0, 0]), Some((2, 0))),
        ("a count of two", put(&image, count_of(first), &[0, 2]), Some((1, 1))),
        ("the header's count dropped", put(&image, count_of(0), &[0, 0]), Some((1, 0))),
        ("the L2 table's count dropped", put(&image, count_of(l2), &[0, 0]), Some((2, 0))),
        ("COPIED dropped", with(&image, l2, first), Some((1, 0))),
        ("the L2 table's COPIED dropped", with(&image, l1, l2), Some((1, 0))),
        ("two entries for one cluster", with(&image, free, first | COPIED), Some((1, 0))),
        (
            "two entries for one cluster, counted",
            put(&with(&with(&image, free, first), l2, first), count_of(first), &[0, 2]),
            Some((0, 0)),
        ),
        ("data in the L2 table", with(&image, free, l2 | COPIED), Some((1, 0))),
        ("data in the L1 table", with(&image, free, l1 | COPIED), Some((1, 0))),
        ("data in the refcount table", with(&image, free, reftable | COPIED), Some((1, 0))),
        ("reserved bits of L2", with(&image, l2 + 8 * 64, 1 << 56), Some((1, 0))),
        ("reserved bits of L2, in use", with(&image, l2, first | COPIED | 1 << 56), Some((1, 0))),
        ("reserved bits of L1", with(&image, l1, l2 | COPIED | 1 << 3), Some((1, 0))),
        ("a zero cluster with an offset", with(&image, l2, first | COPIED | 1), Some((0, 0))),
        ("an incompatible feature", with(&image, 72, 1 << 20), None),
        ("magic", put(&image, 0, b"QFI "), None),
        ("version 1", put(&image, 4, &[0, 0, 0, 1]), None),
        ("clusters of 256", put(&image, 20, &[0, 0, 0, 8]), None),
        ("clusters of 4 MiB", put(&image, 20, &[0, 0, 0, 22]), None),
        ("an unaligned L1 table", with(&image, 40, l1 + 512), None),
        ("an unaligned refcount table", with(&image, 48, reftable + 512), None),
        ("counts of 128 bits", put(&image, 96, &[0, 0, 0, 7]), None),
        ("a header of 96", put(&image, 100, &[0, 0, 0, 96]), None),
        ("a compression type", put(&image, 104, &[1]), None),
        ("too few L1 entries", put(&image, 36, &[0, 0, 0, 1]), None),
        ("encryption 3", put(&image, 32, &[0, 0, 0, 3]), None),
        (
            "an unaligned snapshot table",
            put(&image, 60, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0]),
            None,
        ),
    ];
    for (name, image, verdict) in cases {
        assert_eq!(verdict_of_ours(image), *verdict, "ours: {name} {:?}", qcow2::check(&image[..]));
        assert_eq!(verdict_of_qemu(&scratch, "qcow2", image), *verdict, "QEMU's: {name}");
    }
    // What QEMU makes of the rest of such an image is its own affair.
    let cases: &[(&str, Vec<u8>)] = &[
        ("data at the end of the file", with(&image, free, len | COPIED)),
        ("unaligned data", with(&image, free, (first + 512) | COPIED)),
        ("an unaligned L2 table", with(&image, l1 + 8, (l2 + 512) | COPIED)),
        ("an L2 table beyond the file", with(&image, l1 + 8, (len + 8192) | COPIED)),
        ("data far beyond the file", with(&image, free, 1 << 50 | COPIED)),
        ("an unaligned refcount block", with(&image, reftable, block + 512)),
        ("a refcount block beyond the file", with(&image, reftable, len + 4096)),
        ("a refcount block twice", with(&image, reftable + 8, block)),
        ("reserved bits of a refcount block", with(&image, reftable, block | 1)),
        ("no refcount block", with(&image, reftable, 0)),
        ("the refcount block's count dropped", put(&image, count_of(block), &[0, 0])),
        ("a compressed cluster beyond the file", with(&image, free, 1 << 62 | (len + 4096))),
        ("a compressed cluster with COPIED", with(&image, l2, COPIED | 1 << 62 | first)),
    ];
    for (name, image) in cases {
        let ours = verdict_of_ours(image);
        assert!(ours.is_some_and(|(errors, _)| errors > 0), "ours: {name}");
        let qemus = verdict_of_qemu(&scratch, "qcow2", image);
        assert!(qemus.is_none_or(|(errors, _)| errors > 0), "QEMU's: {name}: {qemus:?}");
        println!("{name}: ours {ours:?}, QEMU's {qemus:?}");
    }
}

#[test]
fn what_snapshots_and_bitmaps_hold_is_counted() {
    if !has_qemu() {
        return;
    }
    let scratch = Scratch::new("qcow2-snapshots");
    made(&scratch, "cluster_size=4096", &["write -P 1 0 16k"]);
    img(&scratch, &["snapshot", "-c", "first", "IMAGE"]);
    qemu_io(&scratch, &["write -P 2 0 8k"]);
    img(&scratch, &["bitmap", "--add", "-g", "512", "IMAGE", "b0"]);
    qemu_io(&scratch, &["write -P 3 1M 4k"]);
    let image = scratch.get("image.qcow2");
    assert_eq!(verdict_of_ours(&image), Some((0, 0)));
    let snapshots_at = long(&image, 64);
    let snapshot_l1 = long(&image, snapshots_at);
    // Behind the header of 112 bytes: the extension's type and length, count, reserved, length of the directory, its offset.
    assert_eq!(&image[112..116], &[0x23, 0x85, 0x28, 0x75]);
    let directory = long(&image, 112 + 8 + 16);
    let bitmap_table = long(&image, directory);
    let cases: &[(&str, Vec<u8>)] = &[
        ("no snapshot", put(&image, 60, &[0, 0, 0, 0])),
        ("a snapshot's table dropped", with(&image, snapshot_l1, 0)),
        ("a snapshot's reserved bits", with(&image, snapshot_l1, long(&image, snapshot_l1) | 2)),
        ("bitmaps inconsistent", with(&image, 88, 0)),
        ("a bitmap's cluster dropped", with(&image, bitmap_table, 0)),
        ("a bitmap's cluster in the header", with(&image, bitmap_table, 4096 * 3)),
    ];
    for (name, image) in cases {
        let ours = verdict_of_ours(image);
        assert_ne!(ours, Some((0, 0)), "{name}");
        assert_eq!(
            ours,
            verdict_of_qemu(&scratch, "qcow2", image),
            "{name}: {:?}",
            qcow2::check(&image[..])
        );
        println!("{name}: {ours:?}");
    }
}

#[test]
fn data_files_and_encrypted_images_are_counted() {
    if !has_qemu() {
        return;
    }
    let scratch = Scratch::new("qcow2-data-file");
    let data_file = scratch.path("disk.data");
    let options = format!("data_file={},cluster_size=4096", data_file.display());
    let image = made(&scratch, &options, &["write -P 1 0 16k", "write -z 64k 4k"]);
    assert_eq!(verdict_of_ours(&image), Some((0, 0)), "{:?}", qcow2::check(&image[..]));
    assert_eq!(verdict_of_qemu(&scratch, "qcow2", &image), Some((0, 0)));
    let qcow2 = Qcow2::open(&image[..]).unwrap();
    assert_eq!(qcow2.lookup(5000), Ok(Mapping::DataFile(5000)));
    assert_eq!(qcow2.lookup(64 << 10), Ok(Mapping::Zero));

    let name = scratch.path("image.qcow2");
    let options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";
    let args = ["create", "-q", "--object", "secret,id=key,data=open", "-f", "qcow2", "-o"];
    let (status, said) = qemu_img(&[&args[..], &[options, name.to_str().unwrap(), "4M"]].concat());
    assert_eq!(status, 0, "{said}");
    let report = qcow2::check(&scratch.get("image.qcow2")[..]);
    assert!(report.is_sound() && report.leaked_clusters == 0, "{report:?}");
}

/// Whatever is done to the tables, both see an error, or both see none and as many leaks.
#[test]
fn both_checkers_agree_on_images_spoiled_at_random() {
    if !has_qemu() {
        return;
    }
    let scratch = Scratch::new("qcow2-random");
    made(&scratch, "cluster_size=512,refcount_bits=16", &["write -P 1 0 4k", "write -z 64k 4k"]);
    let image = img(&scratch, &["snapshot", "-c", "first", "IMAGE"]);
    qemu_io(&scratch, &["write -P 2 1k 1k", "write -P 3 1M 2k"]);
    let (l1, reftable) = (long(&image, 40), long(&image, 48));
    let (l2, block) = (long(&image, l1) & OFFSET, long(&image, reftable));
    let snapshot_l1 = long(&image, long(&image, 64));
    let mut rng = Rng::new(12);
    let mut spoiled = 0;
    for round in 0..ROUNDS {
        let table = [l1, l2, snapshot_l1, reftable, block][rng.index(5)];
        let at = table + 8 * rng.below(if table == block { 16 } else { 4 });
        let flags = [0, COPIED, COPIED, 1, 1 << 56, 1 << 62][rng.index(6)];
        let value = match rng.below(3) {
            0 => long(&image, at) ^ 1 << rng.below(64),
            1 => (rng.below(64) * 512) | flags,
            _ => long(&image, table + 8 * rng.below(8)),
        };
        let image = with(&image, at, value);
        let what = format!("round {round}: {at:#x} (of {table:#x}) is {value:#x}");
        match (verdict_of_ours(&image), verdict_of_qemu(&scratch, "qcow2", &image)) {
            (Some((1.., _)) | None, Some((1.., _)) | None) => spoiled += 1,
            (ours, qemus) => assert_eq!(ours, qemus, "{what}: {:?}", qcow2::check(&image[..])),
        }
    }
    assert!(spoiled > ROUNDS / 3, "{spoiled} of {ROUNDS} spoiled");
}

#[test]
fn zeroes_in_all_their_forms_are_read() {
    if !has_qemu() {
        return;
    }
    let scratch = Scratch::new("qcow2-zeroes");
    let image = made(
        &scratch,
        "extended_l2=on,cluster_size=16384",
        &["write -P 1 0 1k", "write -z 2k 1k", "write -z 1M 16k"],
    );
    let qcow2 = Qcow2::open(&image[..]).unwrap();
    assert!(matches!(qcow2.lookup(512), Ok(Mapping::Data(_))));
    assert_eq!(qcow2.lookup(1024), Ok(Mapping::Unallocated));
    assert_eq!(qcow2.lookup(2048), Ok(Mapping::Zero));
    assert_eq!(qcow2.lookup(1 << 20), Ok(Mapping::Zero));
    assert_eq!(qcow2.lookup(2 << 20), Ok(Mapping::Unallocated));
}
