//! Another size for a disk whose data is in a file of its own.

use super::{K4, kind};
use crate::qcow2::CreateOptions;
use crate::qcow2::tests::snapshots::is_clean;
use crate::qemu_tool::{self, TempFile};
use crate::testing::rig::{Others, Rig, image, range};
use crate::{ExtentKind, power_cut};
use io_engine::Rng;
use io_engine::sim::{SimDisk, SimOptions};

const SIZE: u64 = 300 << 10;

/// The image, and the file that its data is in.
struct Apart {
    disk: SimDisk,
    data: SimDisk,
}

impl Apart {
    /// `name` is that of the data file, which holds something already unless it is to be the disk by itself.
    fn new(name: &str, raw: bool, cluster_bytes: u64) -> Apart {
        let options = CreateOptions {
            cluster_bytes,
            data_file: Some(name.as_bytes().to_vec()),
            data_file_raw: raw,
            ..CreateOptions::new(SIZE)
        };
        let logged = || SimOptions { log: true, ..SimOptions::default() };
        let noise = if raw { 0 } else { 0xEE };
        Apart {
            disk: image(&options, logged()),
            data: SimDisk::with_contents(logged(), &[noise; SIZE as usize]),
        }
    }

    fn open(&self, seed: u64) -> Rig {
        let others = Others { data_file: Some(&self.data), ..Others::default() };
        Rig::open_with(&self.disk, &others, seed, false).unwrap()
    }
}

#[test]
fn what_is_cut_off_does_not_come_back_from_the_data_file() {
    for raw in [false, true] {
        let apart = Apart::new("data", raw, K4);
        let rig = apart.open(1);
        rig.write(0, &[7; SIZE as usize]).unwrap();
        let end = 5 * K4 + 1024;
        rig.resize_disk(end).unwrap();
        is_clean(&apart.disk);
        assert_eq!((rig.disk_size(), apart.data.len()), (end, end));
        rig.resize_disk(4 << 20).unwrap();
        assert_eq!(apart.data.len(), 4 << 20);
        let found = rig.read(0, 4 << 20).unwrap();
        assert!(found[..end as usize].iter().all(|byte| *byte == 7));
        assert!(found[end as usize..].iter().all(|byte| *byte == 0));
        let beyond = kind(&rig, 1 << 20);
        match raw {
            // Who reads the file alone must find the same, and may write there.
            true => assert!(matches!(beyond, ExtentKind::Data(at) if at.0 == 1 << 20)),
            false => assert_eq!(beyond, ExtentKind::Unallocated),
        }
        rig.write((4 << 20) - 512, &[5; 512]).unwrap();
        rig.close().unwrap();
        is_clean(&apart.disk);
        let found = apart.open(2).read(0, 4 << 20).unwrap();
        assert!(!raw || found == apart.data.contents());
        assert_eq!(found[(4 << 20) - 512..], [5; 512]);
    }
}

#[test]
fn what_a_data_file_has_beyond_the_disk_does_not_show_when_it_grows() {
    for raw in [false, true] {
        let Apart { disk, data } = Apart::new("data", raw, K4);
        let bytes = [data.contents(), vec![0xEE; 64 << 10]].concat();
        let apart = Apart { disk, data: SimDisk::with_contents(SimOptions::default(), &bytes) };
        let rig = apart.open(1);
        rig.resize_disk(1 << 20).unwrap();
        let grown = rig.read(SIZE, (1 << 20) - SIZE).unwrap();
        assert!(grown.iter().all(|byte| *byte == 0), "raw: {raw}");
        rig.close().unwrap();
        is_clean(&apart.disk);
    }
}

#[test]
fn any_sizes_and_writes_are_what_the_disk_shows() {
    for seed in 0..12 {
        let mut rng = Rng::new(seed);
        let raw = rng.chance(500);
        let apart = Apart::new("data", raw, [512, K4, 65536][rng.index(3)]);
        let mut model = vec![0; SIZE as usize];
        for _ in 0..3 {
            let rig = apart.open(rng.bits());
            for _ in 0..12 {
                if rng.chance(300) {
                    let bytes = 512 * (1 + rng.below(1200));
                    rig.resize_disk(bytes).unwrap();
                    model.resize(bytes as usize, 0);
                }
                let (at, len) = range(&mut rng, model.len() as u64, 200);
                let place = at as usize..(at + len) as usize;
                if rng.chance(300) {
                    rig.write_zeroes(at, len, rng.chance(500)).unwrap();
                    model[place].fill(0);
                } else {
                    let byte = rng.bits() as u8;
                    rig.write(at, &vec![byte; len as usize]).unwrap();
                    model[place].fill(byte);
                }
                assert!(rig.all() == model, "seed {seed}");
            }
            rig.close().unwrap();
            is_clean(&apart.disk);
            assert!(apart.open(1).all() == model, "seed {seed}");
            assert!(!raw || apart.data.contents() == model, "seed {seed}: by itself");
        }
    }
}

/// The image's file is cut anywhere; the data file holds all that it was given.
#[test]
fn a_power_cut_leaves_one_size_or_the_other() {
    for (raw, to) in
        [(false, 5 * K4 + 512), (true, 5 * K4 + 512), (false, 2 << 20), (true, 1 << 20)]
    {
        let apart = Apart::new("data", raw, K4);
        let rig = apart.open(1);
        rig.write(0, &[7; SIZE as usize]).unwrap();
        rig.flush().unwrap();
        let (begin, done) = (apart.disk.fork(), apart.disk.write_log().len());
        rig.resize_disk(to).unwrap();
        let log = apart.disk.write_log()[done..].to_vec();
        let states = power_cut::each_state(&begin, &log, |disk| {
            let state = Apart { disk, data: apart.data.fork() };
            let report = sim::qcow2::check(&state.disk);
            assert!(report.is_sound(), "{report:?}");
            let rig = state.open(2);
            assert!([SIZE, to].contains(&rig.disk_size()));
            if raw && rig.disk_size() > SIZE {
                // Others may write to the file from now on: what they write shows.
                for at in (SIZE..to).step_by(4096) {
                    assert!(matches!(kind(&rig, at), ExtentKind::Data(_)), "{at:#x}");
                }
            }
            let kept = rig.disk_size().min(SIZE).min(to);
            assert!(rig.read(0, kept).unwrap().iter().all(|byte| *byte == 7));
            rig.resize_disk(3 << 20).unwrap();
            let rest = rig.read(SIZE.max(to), (3 << 20) - SIZE.max(to)).unwrap();
            assert!(rest.iter().all(|byte| *byte == 0), "what was cut off came back");
            rig.close().unwrap();
            is_clean(&state.disk);
        });
        assert!(states > 2, "{states}");
    }
}

#[test]
fn qemu_and_we_resize_a_disk_in_two_files_one_after_the_other() {
    if !qemu_tool::is_there() {
        return;
    }
    for (raw, cluster_bytes) in [(false, K4), (true, K4), (false, 65536), (true, 65536)] {
        let (top, below) = (TempFile::new("qcow2"), TempFile::new("raw"));
        let (path, name) = (top.path().to_str().unwrap(), below.path().to_str().unwrap());
        let apart = Apart::new(name, raw, cluster_bytes);
        let store = |apart: &Apart| {
            write(&top, &apart.disk.contents());
            write(&below, &apart.data.contents());
            let verdict = qemu_tool::check("qcow2", top.path());
            assert_eq!((verdict.errors, verdict.leaks), (0, 0), "{raw} {cluster_bytes}");
        };
        let rig = apart.open(1);
        rig.write(0, &[7; SIZE as usize]).unwrap();
        rig.resize_disk(200 << 10).unwrap();
        rig.close().unwrap();
        store(&apart);
        assert!(qemu_tool::run(&["resize", path, "3M"]).status.success());
        let mut expected = vec![7; 200 << 10];
        expected.resize(3 << 20, 0);
        assert!(qemu_tool::content("qcow2", top.path()) == expected);
        let reopened = |bytes: Vec<u8>| SimDisk::with_contents(SimOptions::default(), &bytes);
        let apart = Apart { disk: reopened(top.bytes()), data: reopened(below.bytes()) };
        let rig = apart.open(1);
        assert!(rig.all() == expected);
        rig.resize_disk(100 << 10).unwrap();
        rig.resize_disk(5 << 20).unwrap();
        rig.write((5 << 20) - 512, &[5; 512]).unwrap();
        rig.close().unwrap();
        store(&apart);
        expected.truncate(100 << 10);
        expected.resize((5 << 20) - 512, 0);
        expected.extend([5; 512]);
        assert!(qemu_tool::content("qcow2", top.path()) == expected);
        assert!(!raw || below.bytes() == expected, "by itself");
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's own file")]
fn write(file: &TempFile, bytes: &[u8]) {
    std::fs::write(file.path(), bytes).unwrap();
}
