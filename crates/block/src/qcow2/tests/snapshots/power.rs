//! What a power cut at any moment of a change of snapshots leaves.

use super::{Change, content_at, logged};
use crate::power_cut;
use crate::qcow2::CreateOptions;
use crate::testing::rig::Rig;
use io_engine::SysKind;
use io_engine::sim::{Fault, FaultAction, SimDisk, SimOptions};
use sim::qcow2::check;

const DISK_BYTES: u64 = 40 << 10;

/// Of so many states one is used on.
const LIVES: u64 = 23;

/// Identifier and content.
type Kept = Vec<(Vec<u8>, Vec<u8>)>;

/// An image with two snapshots, and data that is in one of them, in both, in none.
fn subject(options: &CreateOptions) -> SimDisk {
    let disk = logged(options);
    let rig = Rig::open(&disk, 1).unwrap();
    let at = |n: u64| n * DISK_BYTES / 8 / 512 * 512;
    rig.write(0, &[1; 9000]).unwrap();
    rig.write(at(5), &[2; 512]).unwrap();
    rig.change(Change::Create("one")).unwrap();
    rig.write(1024, &[3; 1024]).unwrap();
    rig.write(at(2), &[4; 512]).unwrap();
    rig.change(Change::Create("two")).unwrap();
    rig.write(at(5) + 512, &[5; 512]).unwrap();
    rig.write(512, &[6; 512]).unwrap();
    rig.write(at(7), &[7; 1024]).unwrap();
    rig.close().unwrap();
    disk
}

fn be(disk: &SimDisk, at: u64, len: usize) -> u64 {
    let mut bytes = vec![0; len];
    disk.read_at(at, &mut bytes);
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The snapshots in an image, with what they hold, found without the driver.
fn kept(disk: &SimDisk) -> Kept {
    let mut at = be(disk, 64, 8);
    let mut kept = Kept::new();
    for _ in 0..be(disk, 60, 4) {
        let (id_bytes, name_bytes, extra) =
            (be(disk, at + 12, 2), be(disk, at + 14, 2), be(disk, at + 36, 4));
        let mut id = vec![0; id_bytes as usize];
        disk.read_at(at + 40 + extra, &mut id);
        let l1 = (be(disk, at, 8), be(disk, at + 8, 4) as u32);
        kept.push((id, content_at(disk, l1, be(disk, at + 48, 8), None)));
        at = (at + 40 + extra + id_bytes + name_bytes).next_multiple_of(8);
    }
    kept
}

/// These, and the disk.
fn all_of(disk: &SimDisk) -> (Kept, Vec<u8>) {
    let l1 = (be(disk, 40, 8), be(disk, 36, 4) as u32);
    (kept(disk), content_at(disk, l1, be(disk, 24, 8), None))
}

/// One state or the other, and no errors, unless it says so.
fn judge(state: &SimDisk, states: &[(Kept, Vec<u8>)], is_v2: bool) {
    let report = check(state);
    report.judge_crash().unwrap();
    if !report.is_dirty && !is_v2 {
        assert!(report.is_sound(), "{report:?}");
    }
    let found = all_of(state);
    assert!(states.contains(&found), "{} snapshots", found.0.len());
}

/// A second life, in which everything is written to, keeps what the snapshots have.
fn live_on(state: &SimDisk, is_v2: bool) {
    let found = all_of(state);
    // A dirty image is mended first. In version 2 flags and counts stay as they are, and must do no harm.
    let rig = Rig::open(state, 2).unwrap();
    assert!(rig.all() == found.1);
    let model: Vec<u8> = (0..found.1.len()).map(|n| (n / 512) as u8 ^ 0x5A).collect();
    for at in (0..model.len()).step_by(4096) {
        let piece = &model[at..model.len().min(at + 512 * 5)];
        rig.write(at as u64, piece).unwrap();
    }
    rig.flush().unwrap();
    let active = rig.all();
    assert!(kept(state) == found.0, "written over");
    rig.change(Change::Create("three")).unwrap();
    rig.write(0, &[9; 512]).unwrap();
    rig.close().unwrap();
    let report = check(state);
    report.judge_crash().unwrap();
    assert!(is_v2 || report.is_sound(), "{report:?}");
    let (snapshots, _) = all_of(state);
    assert!(snapshots[..found.0.len()] == found.0 && snapshots.last().unwrap().1 == active);
}

/// Small clusters, and ones that have several sectors; an L1 table of several sectors; the version without a dirty bit; narrow counts.
fn variants() -> Vec<CreateOptions> {
    let create = |cluster_bytes| CreateOptions { cluster_bytes, ..CreateOptions::new(DISK_BYTES) };
    vec![
        create(512),
        CreateOptions { refcount_bits: 64, ..create(512) },
        create(4096),
        CreateOptions { version: 2, ..create(512) },
        CreateOptions { version: 2, ..create(4096) },
        CreateOptions { extended_l2: true, ..create(16384) },
    ]
}

#[test]
fn a_power_cut_leaves_the_snapshots_as_before_or_as_asked_for() {
    let changes = [
        Change::Create("three"),
        Change::Apply("one".into()),
        Change::Apply("two".into()),
        Change::Delete("one".into()),
        Change::Delete("two".into()),
    ];
    for options in variants() {
        let start = subject(&options).contents();
        for change in &changes {
            let disk =
                SimDisk::with_contents(SimOptions { log: true, ..SimOptions::default() }, &start);
            let before = all_of(&disk);
            let rig = Rig::open(&disk, 1).unwrap();
            let (begin, done) = (disk.fork(), disk.write_log().len());
            rig.change(change.clone()).unwrap();
            let log = disk.write_log()[done..].to_vec();
            super::is_clean(&disk);
            let after = all_of(&disk);
            assert!(before != after);
            let states = [before, after];
            let is_v2 = options.version == 2;
            let mut number = 0;
            let count = power_cut::each_state(&begin, &log, |state| {
                judge(&state, &states, is_v2);
                // They differ in a few flags or counts: some are enough.
                number += 1;
                if number % LIVES == 1 {
                    live_on(&state, is_v2);
                }
            });
            assert!(count > 8, "{change:?}: {count}");
        }
    }
}

#[test]
fn a_failed_write_leaves_the_snapshots_as_before_or_as_asked_for() {
    let changes =
        [Change::Create("three"), Change::Apply("one".into()), Change::Delete("two".into())];
    let start = subject(&variants()[0]).contents();
    for change in &changes {
        let mut failed = 0;
        for nth in 1.. {
            let disk = SimDisk::with_contents(SimOptions::default(), &start);
            let before = all_of(&disk);
            let rig = Rig::open(&disk, 1).unwrap();
            let action = FaultAction::Errno(rustix::io::Errno::IO.raw_os_error());
            let kind = Some(SysKind::Pwritev);
            disk.fault(Fault { kind, range: None, nth, sticky: false, action });
            let result = rig.change(change.clone());
            disk.clear_faults();
            let active = rig.all();
            // It goes on being used, if that is possible.
            let written = rig.write(0, &[0xEE; 512]).and_then(|()| rig.close());
            check(&disk).judge_crash().unwrap();
            let (snapshots, now) = all_of(&disk);
            assert!(written.is_err() || now == [&[0xEE; 512], &active[512..]].concat());
            for (id, content) in before.0.iter().filter(|(id, _)| id != b"2") {
                let found = snapshots.iter().find(|(found, _)| found == id).unwrap();
                assert!(found.1 == *content);
            }
            if result.is_ok() {
                break;
            }
            failed += 1;
        }
        assert!(failed > 3, "{failed}");
    }
}
