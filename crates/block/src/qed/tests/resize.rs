//! Changes of the disk's size: what they show, what they leave in the file, and what a power cut leaves of them.

use super::check::check_of;
use crate::power_cut;
use crate::qed::CreateOptions;
use crate::testing::rig::{Rig, image};
use crate::{BlockNode, DiskOffset, ErrorKind, ExtentKind, Result};
use io_engine::sim::{Fault, FaultAction, SimDisk, SimOptions};
use io_engine::{Rng, SysKind};

const K4: u64 = 4096;

impl Rig {
    fn resize(&self, bytes: u64, backing: Option<u64>) -> Result<()> {
        self.run(move |node| async move {
            let BlockNode::Qed(node) = &*node else { panic!("not QED") };
            node.resize(bytes, backing).await
        })
    }

    fn disk_bytes(&self) -> u64 {
        let BlockNode::Qed(node) = &*self.node else { panic!("not QED") };
        node.mapping().image_bytes()
    }
}

/// Clusters of 4 KiB and tables of one: a table maps 2 MiB.
fn options(bytes: u64) -> CreateOptions {
    CreateOptions { bytes, cluster_bytes: K4, table_clusters: 1, backing: None }
}

fn disk(bytes: u64) -> SimDisk {
    image(&options(bytes), SimOptions { log: true, ..SimOptions::default() })
}

fn kind(rig: &Rig, at: u64) -> ExtentKind {
    rig.run(move |node| async move { Ok(node.map(DiskOffset(at), 1).await?.kind) }).unwrap()
}

fn is_marked(disk: &SimDisk) -> bool {
    disk.contents()[16] & 2 != 0
}

#[test]
fn what_a_shrink_cuts_off_does_not_come_back() {
    let disk = disk(8 << 20);
    let rig = Rig::open(&disk, 1).unwrap();
    for places in [[0, 5 * K4], [3 << 20, (8 << 20) - K4]] {
        for at in places {
            rig.write(at, &[7; K4 as usize]).unwrap();
        }
        rig.flush().unwrap();
    }
    // Within the sixth cluster, in the first table.
    let end = 5 * K4 + 1024;
    rig.resize(end, None).unwrap();
    assert_eq!(rig.disk_bytes(), end);
    // Header, L1 table, two clusters, one L2 table.
    assert_eq!(disk.len(), 5 * K4, "the end of the file is cut off");
    assert!(!is_marked(&disk));
    let ExtentKind::Data(place) = kind(&rig, 5 * K4) else { panic!("not mapped") };
    let rest = disk.contents()[place.0 as usize + 1024..][..3072].to_vec();
    assert!(rest == [0; 3072], "other drivers that grow the disk do not look there");
    rig.resize(8 << 20, None).unwrap();
    assert_eq!(rig.read(0, K4).unwrap(), [7; K4 as usize]);
    assert_eq!(rig.read(5 * K4, K4).unwrap(), [vec![7; 1024], vec![0; 3072]].concat());
    for at in [6 * K4, 3 << 20, (8 << 20) - K4] {
        assert_eq!(kind(&rig, at), ExtentKind::Unallocated, "{at:#x}");
    }
    rig.write((8 << 20) - 512, &[9; 512]).unwrap();
    rig.close().unwrap();
    let rig = Rig::open(&disk, 2).unwrap();
    assert_eq!(rig.read((8 << 20) - 1024, 1024).unwrap(), [[0; 512], [9; 512]].concat());
}

#[test]
fn a_disk_can_shrink_to_nothing_and_grow_again() {
    let disk = disk(4 << 20);
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[7; 8192]).unwrap();
    rig.resize(0, None).unwrap();
    assert_eq!((rig.disk_bytes(), disk.len()), (0, 2 * K4));
    rig.resize(512 << 20, None).unwrap();
    assert_eq!(rig.read(0, 8192).unwrap(), [0; 8192]);
    let end = (512 << 20) - 512;
    rig.write(end, &[5; 512]).unwrap();
    rig.close().unwrap();
    assert_eq!(Rig::open(&disk, 2).unwrap().read(end, 512).unwrap(), [5; 512]);
}

#[test]
fn a_longer_backing_file_does_not_show_where_a_disk_grows() {
    let base = SimDisk::with_contents(SimOptions::default(), &[9; 64 * K4 as usize]);
    let backing = Some((b"base".to_vec(), true));
    let create = CreateOptions { backing, ..options(10 * K4 + 512) };
    let disk = image(&create, SimOptions::default());
    let rig = Rig::open_over(&disk, Some(&base), 1, false).unwrap();
    rig.resize(80 * K4, Some(base.len())).unwrap();
    let start = 10 * K4 + 512;
    assert_eq!(rig.read(0, start).unwrap(), vec![9; start as usize]);
    let rest = 80 * K4 - start;
    assert_eq!(rig.read(start, rest).unwrap(), vec![0; rest as usize]);
    rig.close().unwrap();
    let rig = Rig::open_over(&disk, Some(&base), 2, false).unwrap();
    assert_eq!(rig.read(start, rest).unwrap(), vec![0; rest as usize]);
}

#[test]
fn sizes_that_the_format_or_the_image_cannot_have_are_refused() {
    let disk = disk(1 << 20);
    let before = disk.contents();
    let rig = Rig::open(&disk, 1).unwrap();
    let limit = 512 * 512 * K4;
    for (name, bytes) in [("half a sector", 256), ("one too many", limit + 512), ("all", u64::MAX)]
    {
        let error = rig.resize(bytes, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest, "{name}: {error}");
    }
    assert_eq!((rig.disk_bytes(), disk.contents()), (1 << 20, before.clone()));
    let reader = Rig::open_over(&disk, None, 2, true).unwrap();
    assert_eq!(reader.resize(512, None).unwrap_err().kind(), ErrorKind::BadRequest);
    assert_eq!(disk.contents(), before);
    rig.resize(limit, None).unwrap();
    assert_eq!(rig.disk_bytes(), limit);
}

#[test]
fn a_failed_header_write_leaves_the_old_size() {
    let disk = disk(1 << 20);
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(40 * K4, &[7; 512]).unwrap();
    rig.flush().unwrap();
    let action = FaultAction::Errno(rustix::io::Errno::IO.raw_os_error());
    for bytes in [512, 2 << 20] {
        let kind = Some(SysKind::Pwritev);
        disk.fault(Fault { kind, range: Some(0..512), nth: 1, sticky: false, action });
        rig.resize(bytes, None).unwrap_err();
        disk.clear_faults();
        assert_eq!(rig.disk_bytes(), 1 << 20);
        assert_eq!(rig.read(40 * K4, 512).unwrap(), [7; 512]);
    }
    rig.write(41 * K4, &[8; 512]).unwrap();
    rig.close().unwrap();
    let rig = Rig::open(&disk, 2).unwrap();
    assert_eq!(rig.read(40 * K4, 512).unwrap(), [7; 512]);
    assert_eq!(rig.disk_bytes(), 1 << 20);
}

#[test]
fn sizes_at_random_keep_what_they_should() {
    for seed in 0..12 {
        let mut rng = Rng::new(seed);
        let disk = disk(512 * rng.below(4096));
        let mut model = vec![0u8; Rig::open(&disk, 0).unwrap().disk_bytes() as usize];
        for _ in 0..4 {
            let rig = Rig::open(&disk, rng.bits()).unwrap();
            for _ in 0..6 {
                for _ in 0..rng.index(6) {
                    let sectors = model.len() / 512;
                    if sectors > 0 {
                        let (at, byte) = (512 * rng.index(sectors), rng.bits() as u8);
                        model[at..at + 512].fill(byte);
                        rig.write(at as u64, &[byte; 512]).unwrap();
                    }
                }
                model.resize(512 * rng.index(6000), 0);
                rig.resize(model.len() as u64, None).unwrap();
                let found = rig.read(0, model.len() as u64);
                assert!(model.is_empty() || found.unwrap() == model, "seed {seed}");
            }
            rig.close().unwrap();
        }
    }
}

/// The parts of the disk that the runs below write to; reading all of it would take too long.
fn probe(rig: &Rig, from: u64, to: u64) -> Vec<(u64, Vec<u8>)> {
    let parts = [0..32 * K4, (2 << 20) - K4..(2 << 20) + K4, 5 << 19..(5 << 19) + 2 * K4];
    let within = parts.into_iter().map(|part| part.start.max(from)..part.end.min(to));
    let some = within.filter(|part| !part.is_empty());
    some.map(|part| (part.start, rig.read(part.start, part.end - part.start).unwrap())).collect()
}

/// Old size or new, the data as it was, and nothing that was cut off comes up when the disk grows.
fn judge(state: &SimDisk, sizes: [u64; 2], whole: &[u8], base: Option<&SimDisk>) {
    assert_eq!(check_of(state).unwrap().errors(), 0);
    let rig = Rig::open_over(state, base, 3, false).unwrap();
    let bytes = rig.disk_bytes();
    assert!(sizes.contains(&bytes), "{bytes}");
    for (at, found) in probe(&rig, 0, bytes) {
        let mut expected = whole.get(at as usize..).unwrap_or_default().to_vec();
        expected.resize(found.len(), 0);
        assert!(found == expected, "at {at:#x} of {bytes} bytes");
    }
    let more = sizes[0].max(sizes[1]) + 20 * K4;
    rig.resize(more, base.map(SimDisk::len)).unwrap();
    for (at, found) in probe(&rig, bytes, more) {
        assert!(found == vec![0; found.len()], "what was cut off came back at {at:#x}");
    }
    rig.write(more - 512, &[1; 512]).unwrap();
    rig.close().unwrap();
    let report = check_of(state).unwrap();
    assert_eq!((report.errors(), report.beyond_disk, report.needs_check), (0, 0, false));
}

#[test]
fn a_power_cut_leaves_one_size_or_the_other_and_the_same_data() {
    for (from, to) in [(3 << 20, 8 * K4 + 512), (3 << 20, 0), (9 * K4 + 512, 5 << 20)] {
        let disk = disk(from);
        let rig = Rig::open(&disk, 1).unwrap();
        let places: Vec<u64> = [0, 8 * K4, 9 * K4, 30 * K4, 5 << 19]
            .into_iter()
            .filter(|at| at + K4 <= from)
            .collect();
        for at in &places {
            rig.write(*at, &[7; K4 as usize]).unwrap();
        }
        if from == 9 * K4 + 512 {
            rig.write(9 * K4, &[7; 512]).unwrap();
        }
        rig.flush().unwrap();
        let whole = rig.read(0, from).unwrap();
        let (begin, done) = (disk.fork(), disk.write_log().len());
        rig.resize(to, None).unwrap();
        assert!(disk.snapshot()[..512] == disk.contents()[..512], "when it is done, it is done");
        let states = power_cut::each_state(&begin, &disk.write_log()[done..], |state| {
            judge(&state, [from, to], &whole, None);
        });
        assert!(states > 2, "{states}");
    }
}

#[test]
fn what_a_cut_shrink_left_does_not_show_when_the_disk_grows() {
    let disk = disk(3 << 20);
    let rig = Rig::open(&disk, 1).unwrap();
    for at in [0, 8 * K4, 9 * K4, 30 * K4, 5 << 19] {
        rig.write(at, &[7; K4 as usize]).unwrap();
    }
    rig.close().unwrap();
    // The state right after the commit point of a shrink.
    let small = 8 * K4 + 512;
    let mut bytes = disk.contents();
    bytes[48..56].copy_from_slice(&small.to_le_bytes());
    let options = SimOptions { log: true, ..SimOptions::default() };
    let disk = SimDisk::with_contents(options, &bytes);
    assert_eq!(check_of(&disk).unwrap().beyond_disk, 3);
    let rig = Rig::open(&disk, 1).unwrap();
    let whole = rig.read(0, small).unwrap();
    let (begin, done) = (disk.fork(), disk.write_log().len());
    rig.resize(4 << 20, None).unwrap();
    let log = disk.write_log()[done..].to_vec();
    rig.write(30 * K4, &[1; 512]).unwrap();
    assert_eq!(rig.read(30 * K4, 1024).unwrap(), [[1; 512], [0; 512]].concat());
    rig.close().unwrap();
    let report = check_of(&disk).unwrap();
    assert_eq!((report.errors(), report.beyond_disk), (0, 0));
    let states = power_cut::each_state(&begin, &log, |state| {
        let report = check_of(&state).unwrap();
        assert!(
            report.beyond_disk == 3 || report.needs_check || report.header.image_bytes() > small
        );
        judge(&state, [small, 4 << 20], &whole, None);
    });
    assert!(states > 10, "{states}");
}

#[test]
fn a_power_cut_while_growing_over_a_longer_backing_file_shows_nothing_of_it() {
    let base = SimDisk::with_contents(SimOptions::default(), &[9; 16 * K4 as usize]);
    let backing = Some((b"base".to_vec(), true));
    let create = CreateOptions { backing, ..options(3 * K4 + 512) };
    let disk = image(&create, SimOptions { log: true, ..SimOptions::default() });
    let rig = Rig::open_over(&disk, Some(&base), 1, false).unwrap();
    let (begin, done) = (disk.fork(), disk.write_log().len());
    rig.resize(20 * K4, Some(base.len())).unwrap();
    let content = [9; 3 * K4 as usize + 512];
    let states = power_cut::each_state(&begin, &disk.write_log()[done..], |state| {
        judge(&state, [3 * K4 + 512, 20 * K4], &content, Some(&base));
    });
    assert!(states > 10, "{states}");
}
