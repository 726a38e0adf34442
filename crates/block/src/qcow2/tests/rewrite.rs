//! The header written anew and the image emptied: what a power cut leaves of that.

use super::snapshots::Change;
use crate::power_cut;
use crate::qcow2::{Amendment, BackingFile, CreateOptions, Header};
use crate::testing::rig::{Rig, image};
use crate::{DiskOffset, ExtentKind};
use io_engine::sim::{SimDisk, SimOptions};
use sim::qcow2::check;

const MIB: u64 = 1 << 20;

fn backing(name: &str, format: &str) -> BackingFile {
    BackingFile { name: name.into(), format: Some(format.into()) }
}

fn logged(create: &CreateOptions) -> SimDisk {
    image(create, SimOptions { log: true, ..SimOptions::default() })
}

fn header_of(disk: &SimDisk) -> Header {
    let bytes = disk.contents();
    Header::parse(&bytes, bytes.len() as u64).unwrap()
}

/// Calls `judge` with what a cut during `change` may leave.
fn cut(disk: &SimDisk, rig: &Rig, change: impl FnOnce(&Rig), mut judge: impl FnMut(&SimDisk)) {
    rig.flush().unwrap();
    let (begin, done) = (disk.fork(), disk.write_log().len());
    change(rig);
    assert!(disk.snapshot()[..512] == disk.contents()[..512], "when done, it is done");
    let states = power_cut::each_state(&begin, &disk.write_log()[done..], |state| {
        let report = check(&state);
        report.judge_crash().unwrap();
        assert!(report.is_sound(), "{report:?}");
        judge(&state);
    });
    assert!(states > 2, "{states}");
}

/// Over a base that has the same data, as `commit` leaves them: the disk reads the same all the time.
#[test]
fn emptying_shows_the_same_all_the_time() {
    let base = SimDisk::with_contents(SimOptions::default(), &[9; 3 * MIB as usize]);
    // The L1 table has two sectors.
    for (version, snapshot) in [(2, false), (3, false), (3, true)] {
        let create = CreateOptions {
            version,
            cluster_bytes: 512,
            backing: Some(backing("base", "raw")),
            ..CreateOptions::new(3 * MIB)
        };
        let disk = logged(&create);
        let rig = Rig::open_over(&disk, Some(&base), 1, false).unwrap();
        let places = [0, 512, 40 << 10, 200 << 10, 5 * MIB / 2, 3 * MIB - 512];
        for at in places {
            rig.write(at, &[9; 512]).unwrap();
        }
        if snapshot {
            rig.change(Change::Create("one")).unwrap();
            rig.write(1024, &[9; 512]).unwrap();
        }
        let empty = |rig: &Rig| {
            let emptied = rig.run(|node| async move { node.qcow2().unwrap().make_empty().await });
            emptied.unwrap();
        };
        cut(&disk, &rig, empty, |state| {
            let rig = Rig::open_over(state, Some(&base), 2, false).unwrap();
            assert!(rig.all().iter().all(|byte| *byte == 9));
        });
        for at in places {
            let kind =
                rig.run(move |node| async move { Ok(node.map(DiskOffset(at), 1).await?.kind) });
            assert_eq!(kind.unwrap(), ExtentKind::Unallocated);
        }
        // It can be used on.
        rig.write(40 << 10, &[8; 512]).unwrap();
        rig.close().unwrap();
        assert!(check(&disk).is_sound());
        let rig = Rig::open_over(&disk, Some(&base), 3, false).unwrap();
        assert_eq!(rig.read(40 << 10, 1024).unwrap(), [[8; 512], [9; 512]].concat());
    }
}

#[test]
fn a_power_cut_leaves_one_backing_file_or_the_other() {
    let base = SimDisk::with_contents(SimOptions::default(), &[9; MIB as usize]);
    for (version, new) in [
        (2, Some(backing("a-new-name-that-is-longer", "qcow2"))),
        (3, Some(backing("n", "qcow2"))),
        (3, Some(backing(&"long/".repeat(200), "raw"))),
        (3, None),
    ] {
        let old = Some(backing("base", "raw"));
        let create = CreateOptions {
            version,
            cluster_bytes: 4096,
            backing: old.clone(),
            ..CreateOptions::new(MIB)
        };
        let disk = logged(&create);
        let rig = Rig::open_over(&disk, Some(&base), 1, false).unwrap();
        rig.write(8192, &[7; 512]).unwrap();
        let mut seen = [false; 2];
        let change = |rig: &Rig| {
            let new = new.clone();
            let set = rig.run(|node| async move { node.qcow2().unwrap().set_backing(new).await });
            set.unwrap();
        };
        cut(&disk, &rig, change, |state| {
            let found = header_of(state).backing;
            assert!(found == old || found == new, "{found:?}");
            seen[usize::from(found == new)] = true;
            let rig = Rig::open_over(state, Some(&base), 2, false).unwrap();
            assert_eq!(rig.read(8192, 1024).unwrap(), [[7; 512], [9; 512]].concat());
        });
        assert_eq!(seen, [true; 2]);
        rig.close().unwrap();
        assert_eq!(header_of(&disk).backing, new);
        assert_eq!(header_of(&disk).feature_names.is_empty(), version == 2);
    }
}

#[test]
fn a_power_cut_leaves_one_version_or_the_other() {
    for [from, to] in [[2, 3], [3, 2]] {
        let create =
            CreateOptions { version: from, cluster_bytes: 4096, ..CreateOptions::new(MIB) };
        let disk = logged(&create);
        let rig = Rig::open(&disk, 1).unwrap();
        rig.write(0, &[7; 20_480]).unwrap();
        rig.write_zeroes(8192, 4096, false).unwrap();
        rig.write_zeroes(65536, 8192, false).unwrap();
        let whole = rig.all();
        let change = |rig: &Rig| {
            let amended = rig.run(move |node| async move {
                let qcow2 = node.qcow2().unwrap();
                for zeroes in [8192..12_288, 65_536..73_728] {
                    qcow2.give_up_zeroes(zeroes).await?;
                }
                let change = Amendment {
                    version: to,
                    lazy_refcounts: false,
                    data_file: None,
                    data_file_is_not_raw: false,
                };
                qcow2.amend(&change).await
            });
            amended.unwrap();
        };
        cut(&disk, &rig, change, |state| {
            assert!([from, to].contains(&header_of(state).version));
            let rig = Rig::open(state, 2).unwrap();
            assert!(rig.all() == whole);
        });
        rig.close().unwrap();
        assert_eq!(header_of(&disk).version, to);
        assert!(check(&disk).is_sound());
    }
}
