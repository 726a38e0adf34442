//! Bitmaps of ours in QEMU's hands, and QEMU's in ours.

use super::{AUTO, IN_USE, K, Stored, add, list, logged, one, runs, set, stored, with};
use crate::qcow2::header::Compression;
use crate::qcow2::{CreateOptions, Qcow2, deflate};
use crate::qemu_tool::{self, TempFile, Verdict};
use crate::testing::rig::{Others, Rig, image};
use crate::{DiskOffset, ErrorKind, Result};
use io_engine::Rng;
use io_engine::sim::SimDisk;
use std::process::Command;

const DISK_BYTES: u64 = 3 << 20;

fn qemu(words: &[&str]) -> String {
    let output = qemu_tool::run(words);
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {why}");
    String::from_utf8(output.stdout).unwrap()
}

fn qemu_io(path: &str, commands: &[String]) {
    let mut command = Command::new("qemu-io");
    commands.iter().for_each(|one| {
        command.args(["-c", one]);
    });
    let output = command.args(["-f", "qcow2", path]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!said.contains("fail"), "{said}");
}

fn path(file: &TempFile) -> &str {
    file.path().to_str().unwrap()
}

fn file_of(disk: &SimDisk) -> TempFile {
    TempFile::with("qcow2", &disk.contents())
}

fn disk_of(file: &TempFile) -> SimDisk {
    SimDisk::with_contents(logged(), &file.bytes())
}

fn is_clean(file: &TempFile) {
    let Verdict { errors, leaks, .. } = qemu_tool::check("qcow2", file.path());
    assert_eq!((errors, leaks), (0, 0));
}

/// The granules of 512 bytes that QEMU finds set in a bitmap.
fn read_by_qemu(file: &TempFile, name: &str) -> Vec<usize> {
    let copy = TempFile::new("qcow2");
    qemu(&["create", "-q", "-f", "qcow2", path(&copy), &DISK_BYTES.to_string()]);
    qemu(&["bitmap", "--add", "-g", "512", "--disable", path(&copy), "copy"]);
    qemu(&["bitmap", "--merge", name, "-b", path(file), "-F", "qcow2", path(&copy), "copy"]);
    set(&one(&disk_of(&copy), "copy"))
}

#[test]
fn qemu_reads_what_we_store() {
    if !qemu_tool::is_there() {
        return;
    }
    for (cluster_bytes, extended_l2) in
        [(512, false), (4096, false), (65536, false), (65536, true), (2 << 20, false)]
    {
        let create = CreateOptions { cluster_bytes, extended_l2, ..CreateOptions::new(DISK_BYTES) };
        let disk = image(&create, logged());
        let rig = Rig::open(&disk, 1).unwrap();
        add(&rig, "rough", 64 * K, true).unwrap();
        add(&rig, "fine", 512, true).unwrap();
        rig.write(70 * K, &[7; 4096]).unwrap();
        // All bits of a cluster, if it is a small one.
        rig.write_zeroes(1 << 20, 2 << 20, false).unwrap();
        with(&rig, async |image: &Qcow2| image.disable_bitmap(b"fine").await).unwrap();
        rig.close().unwrap();
        let file = file_of(&disk);
        is_clean(&file);
        let fine: Vec<usize> = (140..148).chain(2048..6144).collect();
        assert_eq!(read_by_qemu(&file, "fine"), fine, "{cluster_bytes}");
        let rough: Vec<usize> = (128..256).chain(2048..6144).collect();
        assert_eq!(read_by_qemu(&file, "rough"), rough, "{cluster_bytes}");
        let info = qemu(&["info", "--output=json", path(&file)]);
        assert_eq!((info.matches("\"auto\"").count(), info.matches("in-use").count()), (1, 0));
        // QEMU goes on with them.
        qemu_io(path(&file), &["write 0 1k".into()]);
        is_clean(&file);
        let disk = disk_of(&file);
        assert_eq!(set(&one(&disk, "rough"))[..2], [0, 1]);
        assert_eq!(set(&one(&disk, "fine")), fine);
    }
}

#[test]
fn we_go_on_with_what_qemu_stored() {
    if !qemu_tool::is_there() {
        return;
    }
    for cluster in ["512", "4096", "65536"] {
        let file = TempFile::new("qcow2");
        let options = format!("cluster_size={cluster}");
        let size = DISK_BYTES.to_string();
        qemu(&["create", "-q", "-f", "qcow2", "-o", &options, path(&file), &size]);
        qemu(&["bitmap", "--add", "-g", "512", path(&file), "on"]);
        qemu(&["bitmap", "--add", "-g", "64k", "--disable", path(&file), "off"]);
        qemu_io(path(&file), &["write 3k 1k".into(), "write 2M 1M".into()]);
        let disk = disk_of(&file);
        let rig = Rig::open(&disk, 1).unwrap();
        assert_eq!(runs(&rig, "on").unwrap(), vec![3 * K..4 * K, 2 << 20..3 << 20]);
        assert_eq!(runs(&rig, "off").unwrap(), vec![]);
        assert_eq!(one(&disk, "on").flags, IN_USE | AUTO);
        rig.write(64 * K, &[7; 512]).unwrap();
        rig.close().unwrap();
        super::check(&disk);
        let file = file_of(&disk);
        is_clean(&file);
        let expected: Vec<usize> = [6, 7, 128].into_iter().chain(4096..6144).collect();
        assert_eq!(read_by_qemu(&file, "on"), expected);
        assert_eq!(read_by_qemu(&file, "off"), [0; 0]);
    }
}

#[test]
fn both_know_what_the_other_left_after_a_crash() {
    if !qemu_tool::is_there() {
        return;
    }
    let disk = image(&CreateOptions::new(DISK_BYTES), logged());
    let rig = Rig::open(&disk, 1).unwrap();
    add(&rig, "on", 64 * K, true).unwrap();
    add(&rig, "off", 64 * K, false).unwrap();
    rig.write(0, &[7; 512]).unwrap();
    rig.flush().unwrap();
    drop(rig);
    let file = file_of(&disk);
    let info = qemu(&["info", "--output=json", path(&file)]);
    assert_eq!((info.matches("\"auto\"").count(), info.matches("in-use").count()), (1, 1));
    assert_eq!(qemu_tool::check("qcow2", file.path()).errors, 0);
    let refused = qemu_tool::run(&["bitmap", "--clear", path(&file), "on"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("inconsistent"));
    qemu(&["bitmap", "--remove", path(&file), "on"]);
    assert_eq!(stored(&disk_of(&file)).len(), 1);
    // And QEMU's.
    qemu(&["bitmap", "--add", path(&file), "again"]);
    qemu_io(path(&file), &["write 0 1k".into(), "abort".into()]);
    let disk = disk_of(&file);
    let rig = Rig::open(&disk, 1).unwrap();
    let states: Vec<bool> = list(&rig).iter().map(|bitmap| bitmap.is_inconsistent).collect();
    // QEMU says of disabled ones too that they are in use.
    assert_eq!(states, [true, true]);
    with(&rig, async |image: &Qcow2| {
        let error = image.clear_bitmap(b"again").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest);
        image.remove_bitmap(b"again").await
    })
    .unwrap();
    rig.close().unwrap();
    let file = file_of(&disk);
    assert_eq!(qemu_tool::check("qcow2", file.path()).errors, 0);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Add(&'static str, u32, bool),
    Remove(&'static str),
    Clear(&'static str),
    Enable(&'static str),
    Disable(&'static str),
    Merge(&'static str, &'static str),
    Write(u64, u64),
}

impl Step {
    fn random(rng: &mut Rng) -> Step {
        const NAMES: [&str; 3] = ["a", "b", "c"];
        let (name, other) = (NAMES[rng.index(3)], NAMES[rng.index(3)]);
        match rng.index(9) {
            0 | 1 => Step::Add(name, [9, 12, 16, 20][rng.index(4)], rng.chance(600)),
            2 => Step::Remove(name),
            3 => Step::Clear(name),
            4 => Step::Enable(name),
            5 => Step::Disable(name),
            6 => Step::Merge(name, other),
            _ => {
                let (at, len) = crate::testing::rig::range(rng, DISK_BYTES, 300);
                Step::Write(at, len)
            }
        }
    }

    /// Tells whether QEMU did it.
    fn by_qemu(self, path: &str) -> bool {
        let words = match self {
            Step::Add(name, order, is_enabled) => {
                let granularity = (1u64 << order).to_string();
                let state = if is_enabled { "--enable" } else { "--disable" };
                let words = ["bitmap", "--add", state, "-g", &granularity, path, name];
                return qemu_tool::run(&words).status.success();
            }
            Step::Merge(name, from) => {
                let words = ["bitmap", "--merge", from, path, name];
                return qemu_tool::run(&words).status.success();
            }
            Step::Write(at, len) => {
                qemu_io(path, &[format!("write {at} {len}")]);
                return true;
            }
            Step::Remove(name) => ["--remove", name],
            Step::Clear(name) => ["--clear", name],
            Step::Enable(name) => ["--enable", name],
            Step::Disable(name) => ["--disable", name],
        };
        qemu_tool::run(&["bitmap", words[0], path, words[1]]).status.success()
    }

    fn by_us(self, rig: &Rig) -> Result<()> {
        if let Step::Write(at, len) = self {
            return rig.write(at, &vec![7; len as usize]);
        }
        with(rig, async move |image: &Qcow2| match self {
            Step::Add(name, order, is_enabled) => {
                image.add_bitmap(name.as_bytes(), 1 << order, is_enabled).await
            }
            Step::Remove(name) => image.remove_bitmap(name.as_bytes()).await,
            Step::Clear(name) => image.clear_bitmap(name.as_bytes()).await,
            Step::Enable(name) => image.enable_bitmap(name.as_bytes()).await,
            Step::Disable(name) => image.disable_bitmap(name.as_bytes()).await,
            Step::Merge(name, from) => image.merge_bitmap(name.as_bytes(), from.as_bytes()).await,
            Step::Write(..) => Ok(()),
        })
    }
}

/// Without the order, which has no meaning: QEMU and we both append.
fn sorted(disk: &SimDisk) -> Vec<Stored> {
    let mut list = stored(disk);
    list.sort_by(|a, b| a.name.cmp(&b.name));
    list
}

#[test]
fn the_same_steps_lead_to_the_same_bitmaps() {
    if !qemu_tool::is_there() {
        return;
    }
    for seed in 0..3 {
        let mut rng = Rng::new(seed);
        let create = CreateOptions {
            cluster_bytes: [4096, 65536][rng.index(2)],
            ..CreateOptions::new(DISK_BYTES)
        };
        let disk = image(&create, logged());
        let theirs = file_of(&disk);
        let mut rig = Rig::open(&disk, 1).unwrap();
        for n in 0..25 {
            let step = Step::random(&mut rng);
            let (done, ours) = (step.by_qemu(path(&theirs)), step.by_us(&rig));
            assert_eq!(done, ours.is_ok(), "seed {seed}, step {n}: {step:?}: {ours:?}");
            if rng.chance(300) {
                rig.close().unwrap();
                assert_eq!(sorted(&disk), sorted(&disk_of(&theirs)), "seed {seed}, step {n}");
                rig = Rig::open(&disk, rng.bits()).unwrap();
            }
        }
        rig.close().unwrap();
        assert_eq!(sorted(&disk), sorted(&disk_of(&theirs)), "seed {seed}");
        is_clean(&file_of(&disk));
    }
}

/// An image whose data is in another file, and one that is compressed with zstd.
#[test]
fn bitmaps_go_with_data_files_and_zstd() {
    if !qemu_tool::is_there() {
        return;
    }
    let steps = |rig: &Rig, packs: bool| {
        add(rig, "on", 512, true).unwrap();
        rig.write(70 * K, &[7; 4096]).unwrap();
        rig.write_zeroes(1 << 20, 1 << 20, true).unwrap();
        if packs {
            let stream = deflate(Compression::Zstd, 1, &[9; 65536]).unwrap();
            let at = DiskOffset(128 * K);
            rig.run(move |node| async move { node.write_compressed(at, &stream).await }).unwrap();
        }
    };
    let bits: Vec<usize> = (140..148).chain(2048..4096).collect();
    let packed: Vec<usize> = (140..148).chain(256..384).chain(2048..4096).collect();
    for (data_file, expected) in [(true, bits), (false, packed)] {
        let data = TempFile::with("raw", &[0; DISK_BYTES as usize]);
        let name = path(&data).as_bytes().to_vec();
        let create = CreateOptions {
            compression: Compression::Zstd,
            data_file: data_file.then_some(name),
            ..CreateOptions::new(DISK_BYTES)
        };
        let disk = image(&create, logged());
        let data_disk = SimDisk::with_contents(logged(), &data.bytes());
        let others = Others { data_file: data_file.then_some(&data_disk), ..Others::default() };
        let rig = Rig::open_with(&disk, &others, 1, false).unwrap();
        // Compressed data cannot be in a data file.
        steps(&rig, !data_file);
        rig.close().unwrap();
        let data = match data_file {
            true => replace(data, &data_disk.contents()),
            false => data,
        };
        let file = file_of(&disk);
        is_clean(&file);
        assert!(read_by_qemu(&file, "on") == expected);
        // QEMU goes on with it, and we with that.
        qemu_io(path(&file), &["write 0 1k".into()]);
        is_clean(&file);
        let disk = disk_of(&file);
        let data_disk = SimDisk::with_contents(logged(), &data.bytes());
        let others = Others { data_file: data_file.then_some(&data_disk), ..Others::default() };
        let rig = Rig::open_with(&disk, &others, 1, false).unwrap();
        rig.write(512 * 4, &[7; 512]).unwrap();
        rig.close().unwrap();
        let all: Vec<usize> = [0, 1, 4].into_iter().chain(expected).collect();
        assert!(set(&one(&disk, "on")) == all);
    }
}

/// The same file with other bytes.
fn replace(file: TempFile, bytes: &[u8]) -> TempFile {
    #[expect(clippy::disallowed_methods, reason = "a test's own file")]
    std::fs::write(file.path(), bytes).unwrap();
    file
}
