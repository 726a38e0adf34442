//! Data files, encryption, hosts that want large blocks, block devices, failing hosts.

use super::rig::*;
use crate::qcow2::check::{Level, ProblemKind};
use crate::qed::tests::check::LOGGED;
use crate::qemu_tool::{self, TempFile};
use io_engine::SysKind;
use io_engine::sim::{Fault, FaultAction, SimDisk, SimOptions};
use std::process::Command;

#[expect(clippy::disallowed_methods, reason = "a test's own file")]
fn write(path: &std::path::Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn images_with_a_data_file() {
    if !qemu_tool::is_there() {
        return;
    }
    for options in ["", ",data_file_raw=on", ",extended_l2=on"] {
        let (image, data) = (TempFile::new("qcow2"), TempFile::new("data"));
        let path = image.path().to_str().unwrap();
        let options = format!("cluster_size=16k,data_file={}{options}", data.path().display());
        let out = qemu_tool::run(&["create", "-q", "-f", "qcow2", "-o", &options, path, "2M"]);
        assert!(out.status.success(), "{options}");
        for command in ["write -P 1 0 64k", "write -P 2 600k 100k", "write -z 32k 16k"] {
            let args = ["-f", "qcow2", "-c", command, path];
            assert!(Command::new("qemu-io").args(args).output().unwrap().status.success());
        }
        let sound = image.bytes();
        let disk = disk_of(&sound);
        let report = check_of(&disk).unwrap();
        assert!(report.is_clean(), "{options}: {:?}", report.problems);
        assert_eq!(verdict(&report), qemu_at(path), "{options}");
        assert!(report.allocated_clusters > 8);

        let mut bytes = sound.clone();
        let parts = Parts::of(&bytes);
        let value = word(&bytes, parts.data[0]);
        set(&mut bytes, parts.data[0], value + 5 * 16384);
        let value = word(&bytes, parts.data[2]);
        set(&mut bytes, parts.data[2], value & !COPIED);
        set(&mut bytes, parts.data[4], COMPRESSED | 16384);
        let disk = disk_of(&bytes);
        let report = check_of(&disk).unwrap();
        assert_eq!(report.count(ProblemKind::DataOffset), 1, "{options}");
        assert_eq!(report.count(ProblemKind::Copied), 1, "{options}");
        assert_eq!(report.count(ProblemKind::Compressed), 1, "{options}");
        assert!(repair_of(&disk, Level::All).unwrap().0.after.is_clean(), "{options}");
        let mended = disk.contents();
        // Each is where it was, as there is only one place where it can be.
        assert!(
            parts.data.iter().all(|at| word(&mended, *at) & OFFSET == word(&sound, *at) & OFFSET)
        );
        write(image.path(), &mended);
        assert_eq!(qemu_at(path).code, 0, "{options}");
    }
}

#[test]
fn encrypted_images() {
    if !qemu_tool::is_there() {
        return;
    }
    let image = TempFile::new("qcow2");
    let path = image.path().to_str().unwrap();
    let out = qemu_tool::run(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "--object",
        "secret,id=key,data=secret",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10,cluster_size=4096",
        path,
        "2M",
    ]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let mut bytes = image.bytes();
    let report = check_of(&disk_of(&bytes)).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
    let options = format!("driver=qcow2,file.filename={path},encrypt.key-secret=key");
    let says = qemu_check(&["--object", "secret,id=key,data=secret", "--image-opts", &options]);
    assert_eq!(verdict(&report), says);
    // Its key material is counted: without the reference, it would be free for anybody.
    let crypto = report.header.crypto.unwrap();
    let parts = Parts::of(&bytes);
    let block = word(&bytes, parts.blocks[0]);
    bytes[(block + (crypto.at + crypto.bytes - 1) / 4096 * 2 + 1) as usize] = 0;
    let disk = disk_of(&bytes);
    assert_eq!(check_of(&disk).unwrap().count(ProblemKind::TooLow), 1);
    assert!(repair_of(&disk, Level::All).unwrap().0.after.is_clean());
}

/// An image of small clusters in which much is wrong, in one case so that its refcounts are built anew.
fn damaged(name: &str, anew: bool) -> Vec<u8> {
    let mut bytes = Recipe::of(name).make();
    let parts = Parts::of(&bytes);
    for n in [3, 9, 15] {
        let value = word(&bytes, parts.data[n]);
        set(&mut bytes, parts.data[n], value | 4);
        let value = word(&bytes, parts.data[n + 1]);
        set(&mut bytes, parts.data[n + 1], value & !COPIED);
    }
    set(&mut bytes, parts.data[6], 0);
    set(&mut bytes, parts.data[11], 1 << 52);
    let twice = word(&bytes, parts.data[1]);
    set(&mut bytes, parts.data[2], twice);
    if anew {
        set(&mut bytes, parts.blocks[0], 512 + 128);
    }
    bytes
}

#[test]
fn a_host_with_blocks_larger_than_clusters() {
    if !qemu_tool::is_there() {
        return;
    }
    for anew in [false, true] {
        let mut bytes = damaged("8 bits", anew);
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        let plain = disk_of(&bytes);
        repair_of(&plain, Level::All).unwrap();
        let direct = SimDisk::with_contents(SimOptions { align: 4096, ..LOGGED }, &bytes);
        let (outcome, _) = repair_of(&direct, Level::All).unwrap();
        assert!(outcome.after.is_clean(), "{:?}", outcome.after.problems);
        let (mut one, mut other) = (plain.contents(), direct.contents());
        let len = one.len().max(other.len());
        one.resize(len, 0);
        other.resize(len, 0);
        assert!(one == other, "{anew}");
        assert_eq!(qemu(&direct.contents()).code, 0);
    }
}

#[test]
fn a_block_device_takes_new_refcounts_where_it_is_free() {
    if !qemu_tool::is_there() {
        return;
    }
    let mut bytes = damaged("4 KiB", true);
    let end = bytes.len();
    bytes.resize(2 << 20, 0xA5);
    let options = SimOptions { is_block_device: true, ..LOGGED };
    let device = SimDisk::with_contents(options, &bytes);
    let (outcome, _) = repair_of(&device, Level::All).unwrap();
    assert!(outcome.after.is_clean(), "{:?}", outcome.after.problems);
    assert!(outcome.after.image_end <= end as u64 + 4 * 4096);
    assert_eq!(qemu(&device.contents()).code, 0);
}

#[test]
fn a_host_that_fails_leaves_an_image_that_can_be_mended_later() {
    if !qemu_tool::is_there() {
        return;
    }
    for anew in [false, true] {
        let bytes = damaged("4 KiB", anew);
        let wanted = disk_of(&bytes);
        repair_of(&wanted, Level::All).unwrap();
        let kinds = [SysKind::Pwritev, SysKind::Fdatasync, SysKind::Preadv];
        for (nth, kind) in (1..60).flat_map(|nth| kinds.map(|kind| (nth, kind))) {
            let disk = disk_of(&bytes);
            let action = FaultAction::Errno(rustix::io::Errno::IO.raw_os_error());
            disk.fault(Fault { kind: Some(kind), range: None, nth, sticky: false, action });
            let result = repair_of(&disk, Level::All);
            disk.clear_faults();
            if result.is_err() {
                let errors = check_of(&disk).unwrap().count(ProblemKind::TooLow);
                assert!(errors <= check_of(&disk_of(&bytes)).unwrap().count(ProblemKind::TooLow));
                repair_of(&disk, Level::All).unwrap();
            }
            assert!(check_of(&disk).unwrap().is_clean(), "{anew}: {kind:?} {nth}");
        }
    }
}
