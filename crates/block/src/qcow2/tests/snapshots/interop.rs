//! Snapshots of ours in QEMU's hands, and QEMU's in ours.

use super::{Change, content_of, is_clean};
use crate::qcow2::{BackingFile, CreateOptions, Snapshot};
use crate::qemu_tool::{self, TempFile};
use crate::testing::rig::{Rig, image};
use io_engine::sim::{SimDisk, SimOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const DISK_BYTES: u64 = 1 << 20;

/// Runs a tool of QEMU's that has to succeed; gives what it says.
fn qemu(tool: &str, words: &[&str]) -> String {
    let output = Command::new(tool).args(words).output().unwrap();
    let (out, err) = (output.stdout, output.stderr);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&err));
    String::from_utf8(out).unwrap()
}

fn path(file: &TempFile) -> &str {
    file.path().to_str().unwrap()
}

fn export(disk: &SimDisk) -> TempFile {
    TempFile::with("qcow2", &disk.contents())
}

fn import(file: &TempFile) -> SimDisk {
    SimDisk::with_contents(SimOptions::default(), &file.bytes())
}

#[track_caller]
fn checks(file: &Path) {
    let verdict = qemu_tool::check("qcow2", file);
    assert_eq!((verdict.errors, verdict.leaks), (0, 0));
}

/// A snapshot's disk, as QEMU reads it.
fn content_by_qemu(file: &TempFile, id: &str) -> Vec<u8> {
    let raw = TempFile::new("raw");
    let which = format!("snapshot.id={id}");
    let words = ["convert", "-l", &which, "-f", "qcow2", "-O", "raw", path(file), path(&raw)];
    qemu("qemu-img", &words);
    raw.bytes()
}

fn names(snapshots: &[Snapshot]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    snapshots.iter().map(|one| (text(&one.id), text(&one.name))).collect()
}

/// Identifiers and names, as QEMU lists them.
fn names_by_qemu(file: &TempFile) -> Vec<(String, String)> {
    let text = qemu("qemu-img", &["snapshot", "-l", path(file)]);
    let rows = text.lines().skip(2).map(|line| line.split_whitespace());
    let two = rows.map(|mut words| (words.next().unwrap().into(), words.next().unwrap().into()));
    two.collect()
}

struct Geometry {
    name: &'static str,
    create: CreateOptions,
    backing: Option<TempFile>,
}

fn geometries() -> Vec<Geometry> {
    let plain = || CreateOptions::new(DISK_BYTES);
    let base: Vec<u8> = (0..DISK_BYTES / 2 + 512).map(|n| (n / 512 % 251) as u8 | 1).collect();
    let base = TempFile::with("raw", &base);
    let over = BackingFile { name: path(&base).as_bytes().to_vec(), format: Some(b"raw".to_vec()) };
    let all = [
        ("64 KiB", plain()),
        ("512 bytes", CreateOptions { cluster_bytes: 512, ..plain() }),
        ("2 MiB", CreateOptions { cluster_bytes: 2 << 20, ..plain() }),
        ("extended", CreateOptions { cluster_bytes: 16384, extended_l2: true, ..plain() }),
        ("version 2", CreateOptions { cluster_bytes: 4096, version: 2, ..plain() }),
        ("2 bits", CreateOptions { cluster_bytes: 4096, refcount_bits: 2, ..plain() }),
        ("64 bits", CreateOptions { cluster_bytes: 1024, refcount_bits: 64, ..plain() }),
    ];
    let mut all: Vec<Geometry> =
        all.map(|(name, create)| Geometry { name, create, backing: None }).into();
    let create = CreateOptions { cluster_bytes: 4096, backing: Some(over), ..plain() };
    all.push(Geometry { name: "backing", create, backing: Some(base) });
    all
}

impl Geometry {
    fn base(&self) -> Option<SimDisk> {
        self.backing.as_ref().map(import)
    }
}

#[test]
fn qemu_takes_our_snapshots() {
    if !qemu_tool::is_there() {
        return;
    }
    for geometry in geometries() {
        let (name, base) = (geometry.name, geometry.base());
        let disk = image(&geometry.create, SimOptions::default());
        let rig = Rig::open_over(&disk, base.as_ref(), 1, false).unwrap();
        rig.write(4096, &[1; 70000]).unwrap();
        rig.change(Change::Create("one")).unwrap();
        let one = rig.all();
        rig.write(512, &[2; 512]).unwrap();
        rig.write_zeroes(65536, 4096, true).unwrap();
        rig.change(Change::Create("two")).unwrap();
        let two = rig.all();
        rig.write(66048, &[3; 1024]).unwrap();
        rig.write(DISK_BYTES - 512, &[4; 512]).unwrap();
        let now = rig.all();
        rig.close().unwrap();
        is_clean(&disk);

        let file = export(&disk);
        checks(file.path());
        let listed = [("1".into(), "one".into()), ("2".into(), "two".into())];
        assert_eq!(names_by_qemu(&file), listed);
        assert!(content_by_qemu(&file, "1") == one && content_by_qemu(&file, "2") == two, "{name}");
        assert!(qemu_tool::content("qcow2", file.path()) == now, "{name}");
        // With 2 bits nothing has room for a fourth.
        let is_narrow = geometry.create.refcount_bits == 2;
        if is_narrow {
            qemu("qemu-img", &["snapshot", "-d", "two", path(&file)]);
        }
        qemu("qemu-img", &["snapshot", "-a", "one", path(&file)]);
        qemu("qemu-img", &["snapshot", "-d", "one", path(&file)]);
        checks(file.path());
        assert!(qemu_tool::content("qcow2", file.path()) == one, "{name}");

        // And ours goes on from there.
        let disk = import(&file);
        let rig = Rig::open_over(&disk, base.as_ref(), 2, false).unwrap();
        assert!(rig.all() == one, "{name}");
        if is_narrow {
            rig.change(Change::Create("two")).unwrap();
            rig.write(512, &[2; 512]).unwrap();
            rig.write_zeroes(65536, 4096, true).unwrap();
            rig.change(Change::Create("two")).unwrap();
            rig.change(Change::Delete("1".into())).unwrap();
        }
        rig.write(0, &[5; 512]).unwrap();
        rig.change(Change::Apply("two".into())).unwrap();
        assert!(rig.all() == two, "{name}");
        rig.change(Change::Delete("two".into())).unwrap();
        rig.close().unwrap();
        is_clean(&disk);
        let file = export(&disk);
        checks(file.path());
        assert!(qemu_tool::content("qcow2", file.path()) == two, "{name}");
        assert_eq!(names_by_qemu(&file), []);
    }
}

#[test]
fn we_take_the_snapshots_of_qemu() {
    if !qemu_tool::is_there() {
        return;
    }
    let variants: [(&str, &[&str]); 6] = [
        ("cluster_size=64k", &[]),
        ("cluster_size=512", &[]),
        ("cluster_size=4k,compat=0.10", &["-c"]),
        ("cluster_size=16k,extended_l2=on", &[]),
        ("cluster_size=4k,refcount_bits=2", &[]),
        ("cluster_size=4k,compression_type=zstd", &["-c"]),
    ];
    for (options, flags) in variants {
        let bytes: Vec<u8> = (0..DISK_BYTES).map(|n| (n / 700 % 256) as u8).collect();
        let (raw, file) = (TempFile::with("raw", &bytes), TempFile::new("qcow2"));
        let convert = [&["convert", "-f", "raw", "-O", "qcow2", "-o", options], flags].concat();
        qemu("qemu-img", &[&convert[..], &[path(&raw), path(&file)]].concat());
        let write = |what: &str| qemu("qemu-io", &["-f", "qcow2", "-c", what, path(&file)]);
        write("write -P 1 4k 20k");
        qemu("qemu-img", &["snapshot", "-c", "one", path(&file)]);
        let one = qemu_tool::content("qcow2", file.path());
        write("write -P 2 8k 512");
        write("write -z -u 64k 64k");
        qemu("qemu-img", &["snapshot", "-c", "two", path(&file)]);
        let two = qemu_tool::content("qcow2", file.path());
        write("write -P 3 4k 30k");

        let disk = import(&file);
        let rig = Rig::open(&disk, 1).unwrap();
        let names = names(&rig.snapshots());
        assert_eq!(names, names_by_qemu(&file));
        // All of the disk is written over.
        for at in (0..DISK_BYTES).step_by(1 << 17) {
            rig.write(at, &[9; 1 << 17]).unwrap();
        }
        rig.close().unwrap();
        is_clean(&disk);
        let ours = export(&disk);
        checks(ours.path());
        assert!(content_by_qemu(&ours, "1") == one && content_by_qemu(&ours, "2") == two);
        assert!(Rig::shown(&disk, None, b"one") == one && Rig::shown(&disk, None, b"two") == two);
        assert!(qemu_tool::content("qcow2", ours.path()) == vec![9; DISK_BYTES as usize]);

        let rig = Rig::open(&disk, 2).unwrap();
        rig.change(Change::Apply("one".into())).unwrap();
        assert!(rig.all() == one, "{options}");
        rig.change(Change::Delete("one".into())).unwrap();
        rig.close().unwrap();
        is_clean(&disk);
        let ours = export(&disk);
        checks(ours.path());
        assert!(qemu_tool::content("qcow2", ours.path()) == one, "{options}");
        assert!(content_by_qemu(&ours, "2") == two, "{options}");
    }
}

#[test]
fn sizes_differ_between_snapshots() {
    if !qemu_tool::is_there() {
        return;
    }
    let file = TempFile::new("qcow2");
    qemu("qemu-img", &["create", "-f", "qcow2", "-o", "cluster_size=512", path(&file), "1M"]);
    let write = |what: &str| qemu("qemu-io", &["-f", "qcow2", "-c", what, path(&file)]);
    write("write -P 1 900k 8k");
    qemu("qemu-img", &["snapshot", "-c", "large", path(&file)]);
    qemu("qemu-img", &["resize", "--shrink", path(&file), "300k"]);
    write("write -P 2 290k 8k");
    qemu("qemu-img", &["snapshot", "-c", "small", path(&file)]);
    qemu("qemu-img", &["resize", path(&file), "3M"]);
    let disk = import(&file);
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(2 << 20, &[3; 4096]).unwrap();
    for (name, kib, place) in [("large", 1024, 900), ("small", 300, 290), ("large", 1024, 900)] {
        rig.change(Change::Apply(name.into())).unwrap();
        assert_eq!(rig.disk_size(), kib << 10);
        assert_ne!(rig.read(place << 10, 512).unwrap(), [0; 512]);
        is_clean(&disk);
    }
    let size = 1500 << 10;
    rig.run(move |node| async move { node.resize(size).await }).unwrap();
    rig.change(Change::Create("larger")).unwrap();
    rig.close().unwrap();
    let file = export(&disk);
    checks(file.path());
    for (name, kib) in [("small", 300), ("larger", 1500), ("large", 1024)] {
        qemu("qemu-img", &["snapshot", "-a", name, path(&file)]);
        checks(file.path());
        assert_eq!(qemu_tool::content("qcow2", file.path()).len(), kib << 10);
    }
}

#[test]
fn the_state_of_a_guest_is_kept() {
    if !qemu_tool::is_there()
        || Command::new("qemu-system-x86_64").arg("--version").output().is_err()
    {
        eprintln!("SKIPPED: there is no qemu-system-x86_64");
        return;
    }
    let file = TempFile::new("qcow2");
    qemu("qemu-img", &["create", "-f", "qcow2", "-o", "cluster_size=4k", path(&file), "1M"]);
    // A machine of nothing, so that it is there at once: its state is about a kilobyte.
    let guest = |what: &str| {
        let drive = format!("if=none,format=qcow2,file={}", path(&file));
        let words = ["-machine", "none", "-nodefaults", "-display", "none", "-monitor", "stdio"];
        let mut child = Command::new("qemu-system-x86_64")
            .args(words)
            .args(["-drive", &drive])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let typed = format!("{what}\nquit\n");
        child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && !said.contains("Error"), "{said}");
    };
    guest("savevm state");
    let disk = import(&file);
    let rig = Rig::open(&disk, 1).unwrap();
    let state = rig.snapshots().remove(0);
    assert!(state.vm_state_bytes > 512 && u64::from(state.l1_entries) > 1, "{state:?}");
    rig.write(0, &[1; 4096]).unwrap();
    rig.change(Change::Create("disk only")).unwrap();
    rig.change(Change::Apply("state".into())).unwrap();
    is_clean(&disk);
    rig.write(8192, &[2; 4096]).unwrap();
    rig.change(Change::Create("both")).unwrap();
    rig.change(Change::Delete("disk only".into())).unwrap();
    assert_eq!(rig.snapshots()[0], state, "as it was");
    // What is beyond the end of the disk does not become a part of it.
    rig.run(|node| async move { node.resize(8 << 20).await }).unwrap();
    assert!(rig.read(1 << 20, 7 << 20).unwrap() == [0; 7 << 20]);
    assert!(content_of(&disk, &state, None) == [0; 1 << 20]);
    rig.close().unwrap();
    is_clean(&disk);
    let ours = export(&disk);
    checks(ours.path());
    std::fs::copy(ours.path(), file.path()).unwrap();
    guest("loadvm state");
    checks(file.path());
    assert!(qemu_tool::content("qcow2", file.path()) == [0; 1 << 20]);
}
