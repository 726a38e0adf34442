//! The checker against `qemu-img check`, on images that QEMU made and somebody spoiled.
//!
//! Only where QEMU is right: small images (it counts phantom leaks in large ones), tables of more than one cluster, whole clusters in
//! the file. It gives up where it cannot open, so header faults compare as "does not open".
#![allow(clippy::disallowed_methods)]

mod common;

use common::verdict::{Verdict, put, verdict_of_qemu, word};
use common::*;
use sim::qed::{self, Mapping, Qed};

const CLUSTER: u64 = 4096;
const L1_AT: u64 = CLUSTER;

fn verdict_of_ours(image: &[u8]) -> Verdict {
    let report = qed::check(image);
    report.header.is_empty().then_some((report.damage_count, report.leaked_clusters))
}

fn long(image: &[u8], at: u64) -> u64 {
    u64::from_le_bytes(word(image, at))
}

fn with(image: &[u8], at: u64, value: u64) -> Vec<u8> {
    put(image, at, &value.to_le_bytes())
}

/// Four data clusters, one of zeroes, one L2 table.
fn made_by_qemu(scratch: &Scratch) -> Vec<u8> {
    let path = scratch.path("image.qed");
    create_qed(&path, None);
    let mut qemu = QemuIo::open(&["-f", "qed", path.to_str().unwrap()]);
    for command in
        ["write -P 1 0 8k", "write -P 2 64k 4k", "write -P 3 1020k 4k", "write -z 32k 4k"]
    {
        let said = qemu.run(command);
        assert!(said.starts_with("wrote"), "{said}");
    }
    qemu.close();
    scratch.get("image.qed")
}

#[test]
fn both_checkers_say_the_same_of_spoiled_images() {
    if !has_qemu() {
        return;
    }
    let scratch = Scratch::new("check");
    let image = made_by_qemu(&scratch);
    let len = image.len() as u64;
    let l2 = long(&image, L1_AT);
    let (first, second) = (long(&image, l2), long(&image, l2 + 8));
    let free = l2 + 8 * 100;
    let longer = [&image[..], &[0; 4096]].concat();
    let cases: &[(&str, Vec<u8>, Verdict)] = &[
        ("as made", image.clone(), Some((0, 0))),
        ("a cluster more", longer.clone(), Some((0, 1))),
        ("an entry dropped", with(&image, l2, 0), Some((0, 1))),
        ("an entry made zero", with(&image, l2, 1), Some((0, 1))),
        ("the L2 table dropped", with(&image, L1_AT, 0), Some((0, 8))),
        ("two entries for one cluster", with(&image, free, first), Some((1, 0))),
        ("an entry moved onto another", with(&image, l2, second), Some((1, 1))),
        ("data in the L2 table", with(&image, free, l2), Some((1, 0))),
        ("data in the L2 table's last cluster", with(&image, free, l2 + 3 * CLUSTER), Some((1, 0))),
        ("data in the L1 table", with(&image, free, L1_AT), Some((1, 0))),
        ("data at the end of the file", with(&image, free, len), Some((1, 0))),
        ("data far beyond the file", with(&image, free, 1 << 50), Some((1, 0))),
        ("unaligned data", with(&image, free, first + 512), Some((1, 0))),
        ("an entry of 2", with(&image, free, 2), Some((1, 0))),
        ("a table beyond the file", with(&image, L1_AT + 8, len), Some((1, 0))),
        ("a table partly beyond the file", with(&longer, L1_AT + 8, len), Some((1, 1))),
        ("an unaligned table", with(&image, L1_AT + 8, l2 + 8), Some((1, 0))),
        ("a table of zeroes", with(&image, L1_AT + 8, 1), Some((1, 0))),
        ("magic", with(&image, 0, 0), None),
        ("cluster size", with(&image, 4, 4 << 32 | 4097), None),
        ("an unknown feature", with(&image, 16, 1 << 20), None),
        ("an L1 table beyond the file", with(&image, 40, len), None),
        ("half a sector", with(&image, 48, 256), None),
    ];
    for (name, image, verdict) in cases {
        assert_eq!(verdict_of_ours(image), *verdict, "ours: {name}");
        assert_eq!(verdict_of_qemu(&scratch, "qed", image), *verdict, "QEMU's: {name}");
    }
}

#[test]
fn the_reader_finds_what_qemu_wrote() {
    if !has_qemu() {
        return;
    }
    let scratch = Scratch::new("read");
    let image = made_by_qemu(&scratch);
    let path = scratch.path("image.qed");
    let raw = scratch.path("disk.raw");
    let args = ["convert", "-f", "qed", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()];
    let (status, said) = qemu_img(&args);
    assert_eq!(status, 0, "{said}");

    let qed = Qed::open(&image[..]).unwrap();
    let mut disk = vec![0xee; usize::try_from(qed.image_size()).unwrap()];
    qed.read_disk(0, &mut disk, qed::OnDamage::Fail, |_, into| into.fill(0)).unwrap();
    assert!(disk == scratch.get("disk.raw"));
    assert_eq!(qed.lookup(32 << 10), Ok(Mapping::Zero));
}
