//! What single requests do to the image.

use crate::qed::CreateOptions;
use crate::testing::rig::{Rig, image};
use crate::{DiskOffset, ErrorKind, ExtentKind};
use io_engine::sim::{CrashPick, Fault, FaultAction, SimDisk, SimOptions};
use io_engine::{AlignedBuf, Buf, Op, OpKind, SysKind};
use std::cell::Cell;
use std::rc::Rc;

const K64: u64 = 65536;
const SECOND_NS: u64 = 1_000_000_000;

fn options() -> CreateOptions {
    CreateOptions::new(1 << 30)
}

fn disk() -> SimDisk {
    image(&options(), SimOptions::default())
}

fn kind(rig: &Rig, at: u64) -> ExtentKind {
    rig.run(move |node| async move { Ok(node.map(DiskOffset(at), 1).await?.kind) }).unwrap()
}

/// Bytes 16 to 24: the features.
fn needs_check(disk: &SimDisk) -> bool {
    disk.contents()[16] & 2 != 0
}

#[test]
fn a_cluster_lies_where_it_was_put_and_the_rest_of_it_is_zero() {
    let disk = disk();
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(3 * K64 + 512, &[7; 1024]).unwrap();
    assert_eq!(kind(&rig, 0), ExtentKind::Unallocated);
    assert!(matches!(kind(&rig, 3 * K64), ExtentKind::Data(_)));
    let expected = [vec![0; 512], vec![7; 1024], vec![0; 512]].concat();
    assert_eq!(rig.read(3 * K64, 2048).unwrap(), expected);
    rig.close().unwrap();
    // Header, L1 table, the cluster, L2 table.
    assert_eq!(disk.len(), (1 + 4 + 1 + 4) * K64);
    let rig = Rig::open(&disk, 2).unwrap();
    assert_eq!(rig.read(3 * K64, 2048).unwrap(), expected);
}

#[test]
fn what_is_not_flushed_leaves_the_tables_alone() {
    let disk = disk();
    let before = disk.contents();
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[7; 4096]).unwrap();
    let len = before.len();
    assert_eq!(disk.contents()[..len], before);
    rig.flush().unwrap();
    assert!(needs_check(&disk));
    disk.crash(&CrashPick::Nothing);
    let again = Rig::open(&disk, 2).unwrap();
    assert_eq!(again.read(0, 4096).unwrap(), [7; 4096]);
    assert!(!needs_check(&disk), "opened for writing, it was checked");
}

#[test]
fn a_flush_costs_two_syncs_however_many_clusters_are_new_and_one_if_none_is() {
    let disk = disk();
    let rig = Rig::open(&disk, 1).unwrap();
    let syncs = || disk.count(SysKind::Fdatasync);
    for cluster in 0..100 {
        rig.write(cluster * 3 * K64, &[1; 512]).unwrap();
    }
    let before = syncs();
    rig.flush().unwrap();
    assert_eq!(syncs() - before, 2);
    rig.write(0, &[2; 512]).unwrap();
    rig.flush().unwrap();
    assert_eq!(syncs() - before, 3);
}

#[test]
fn a_discarded_cluster_becomes_zero_and_its_space_is_used_again_after_the_commit() {
    let disk = disk();
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[1; K64 as usize]).unwrap();
    rig.write(K64, &[2; K64 as usize]).unwrap();
    rig.flush().unwrap();
    let ExtentKind::Data(place) = kind(&rig, 0) else { panic!("not allocated") };
    rig.discard(0, K64).unwrap();
    assert_eq!(kind(&rig, 0), ExtentKind::Zero);
    rig.write(2 * K64, &[3; 512]).unwrap();
    assert_ne!(kind(&rig, 2 * K64), ExtentKind::Data(place), "before the commit");
    let there = |len: usize| disk.contents()[place.0 as usize..place.0 as usize + len].to_vec();
    assert_eq!(there(512), [1; 512], "the cluster keeps its content until then");
    rig.flush().unwrap();
    rig.pass(SECOND_NS);
    // Reads take turns with the task that frees.
    for _ in 0..20 {
        rig.read(K64, 512).unwrap();
    }
    assert_eq!(there(512), [0; 512], "punched");
    rig.write(3 * K64 + 512, &[4; 512]).unwrap();
    assert_eq!(kind(&rig, 3 * K64), ExtentKind::Data(place));
    assert_eq!(rig.read(3 * K64, 512).unwrap(), [0; 512]);
    assert_eq!(rig.read(0, 512).unwrap(), [0; 512]);
}

#[test]
fn freed_space_waits_for_who_still_uses_it() {
    let disk = disk();
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[1; K64 as usize]).unwrap();
    rig.write(K64, &[2; 512]).unwrap();
    rig.flush().unwrap();
    let ExtentKind::Data(place) = kind(&rig, 0) else { panic!("not allocated") };
    let there = || disk.contents()[place.0 as usize];
    // As a read does that has looked its place up and is on its way.
    let pin = rig.node.pin().unwrap();
    rig.discard(0, K64).unwrap();
    rig.flush().unwrap();
    for _ in 0..50 {
        rig.read(K64, 512).unwrap();
    }
    assert_eq!(there(), 1);
    rig.node.unpin(pin);
    for _ in 0..50 {
        rig.read(K64, 512).unwrap();
    }
    assert_eq!(there(), 0);
}

#[test]
fn zeroes_over_a_backing_file_hide_it() {
    let base = SimDisk::with_contents(SimOptions::default(), &[9; 3 * K64 as usize]);
    let create = CreateOptions { backing: Some((b"base".to_vec(), true)), ..options() };
    let disk = image(&create, SimOptions::default());
    let rig = Rig::open_over(&disk, Some(&base), 1, false).unwrap();
    rig.write_zeroes(0, K64 + 512, true).unwrap();
    assert_eq!(kind(&rig, 0), ExtentKind::Zero);
    assert!(matches!(kind(&rig, K64), ExtentKind::Data(_)), "a part of a cluster is copied");
    assert_eq!(rig.read(0, K64 + 512).unwrap(), vec![0; K64 as usize + 512]);
    assert_eq!(rig.read(K64 + 512, 512).unwrap(), [9; 512]);
    rig.write(2 * K64 + 1024, &[5; 512]).unwrap();
    let expected = [[9; 1024].to_vec(), [5; 512].to_vec(), [9; 512].to_vec()].concat();
    assert_eq!(rig.read(2 * K64, 2048).unwrap(), expected);
    assert_eq!(rig.read(3 * K64, 512).unwrap(), [0; 512], "beyond the backing file");
    assert_eq!(base.contents(), [9; 3 * K64 as usize]);
}

#[test]
fn a_copy_on_write_is_one_write() {
    let base = SimDisk::with_contents(SimOptions::default(), &[9; 3 * K64 as usize]);
    let create = CreateOptions { backing: Some((b"base".to_vec(), true)), ..options() };
    let disk = image(&create, SimOptions::default());
    let rig = Rig::open_over(&disk, Some(&base), 1, false).unwrap();
    let writes = disk.count(SysKind::Pwritev);
    rig.write(1024, &[5; 512]).unwrap();
    assert_eq!(disk.count(SysKind::Pwritev) - writes, 1);
}

#[test]
fn a_durable_write_to_a_cluster_that_is_not_committed_commits_it() {
    let disk = disk();
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[1; 512]).unwrap();
    let (data, _) = rig.memory_twice(512);
    data.copy_from(0, &[2; 512]);
    let direct = rig.node.write_direct(DiskOffset(1024), &data, true);
    assert!(direct.is_none(), "its mapping could be lost");
    rig.run(|node| async move { node.write(DiskOffset(1024), data, true).await }).unwrap();
    disk.crash(&CrashPick::Nothing);
    let again = Rig::open(&disk, 2).unwrap();
    assert_eq!(again.read(1024, 512).unwrap(), [2; 512]);
}

/// A write that has to wait (here: for the file to grow) allocates a cluster; one that comes meanwhile must not allocate it as well.
#[test]
fn two_writes_to_one_new_cluster_share_it() {
    for seed in 0..100 {
        let disk = disk();
        let rig = Rig::open(&disk, seed).unwrap();
        let (node, slow) = (rig.node.clone(), rig.memory.take(512));
        slow.copy_from(0, &[1; 512]);
        let ended = Rc::new(Cell::new(false));
        let end = ended.clone();
        rig.context.spawn(Box::pin(async move {
            node.write(DiskOffset(0), slow, false).await.unwrap();
            end.set(true);
        }));
        loop {
            tick(&rig, &disk);
            let fast = rig.memory.take(512);
            fast.copy_from(0, &[2; 512]);
            let direct = rig.node.write_direct(DiskOffset(1024), &fast, false);
            let Some((file, at)) = direct.map(|(file, at)| (file.clone(), at.0)) else { continue };
            let (kind, buf) = (OpKind::Write { fua: false }, Buf::Guest(fast));
            let io = rig.context.io(Op { file, kind, at, buf });
            rig.run(|_| async move { Ok(io.await.0) }).unwrap().unwrap();
            break;
        }
        while !ended.get() {
            tick(&rig, &disk);
        }
        assert_eq!(rig.read(0, 512).unwrap(), [1; 512], "seed {seed}");
        assert_eq!(rig.read(1024, 512).unwrap(), [2; 512], "seed {seed}");
    }
}

/// A read of the file itself: others come to their turn.
fn tick(rig: &Rig, disk: &SimDisk) {
    let file = rig.context.with_engine(|engine| engine.open_sim(disk)).unwrap();
    let buf = Buf::Owned(AlignedBuf::new(512, 512));
    let read = rig.context.io(Op { file, kind: OpKind::Read, at: 0, buf });
    rig.run(|_| async move { Ok(read.await.0) }).unwrap().unwrap();
}

#[test]
fn an_idle_image_is_marked_clean() {
    let disk = disk();
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[7; 512]).unwrap();
    rig.flush().unwrap();
    assert!(needs_check(&disk));
    for _ in 0..20 {
        rig.pass(SECOND_NS);
        rig.read(0, 512).unwrap();
    }
    assert!(!needs_check(&disk));
}

#[test]
fn a_mapping_is_committed_after_a_while_without_a_flush() {
    let disk = disk();
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[7; 512]).unwrap();
    for _ in 0..20 {
        rig.pass(SECOND_NS);
        rig.read(0, 512).unwrap();
    }
    disk.crash(&CrashPick::Nothing);
    let again = Rig::open(&disk, 2).unwrap();
    assert_eq!(again.read(0, 512).unwrap(), [7; 512]);
}

#[test]
fn a_failed_metadata_write_fails_the_flush_and_the_next_one_mends_it() {
    // The header, two new tables' slices, the L1 table; then the slices of tables that are there.
    for (before, nth) in [(false, 1), (false, 2), (false, 3), (true, 1), (true, 2)] {
        let disk = disk();
        let rig = Rig::open(&disk, 1).unwrap();
        if before {
            rig.write(K64, &[9; 512]).unwrap();
            rig.write(600 * K64, &[9; 512]).unwrap();
            rig.flush().unwrap();
        }
        rig.write(2 * K64, &[1; 512]).unwrap();
        rig.write(601 * K64, &[2; 512]).unwrap();
        let action = FaultAction::Errno(rustix::io::Errno::IO.raw_os_error());
        disk.fault(Fault { kind: Some(SysKind::Pwritev), range: None, nth, sticky: false, action });
        assert_eq!(rig.flush().unwrap_err().kind(), ErrorKind::Io, "{before} {nth}");
        disk.clear_faults();
        rig.flush().unwrap();
        disk.crash(&CrashPick::Nothing);
        let again = Rig::open(&disk, 2).unwrap();
        assert_eq!(again.read(2 * K64, 512).unwrap(), [1; 512], "{before} {nth}");
        assert_eq!(again.read(601 * K64, 512).unwrap(), [2; 512], "{before} {nth}");
    }
}

#[test]
fn after_a_failed_sync_nothing_is_promised() {
    let disk = disk();
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[7; 512]).unwrap();
    let action = FaultAction::FlushLost(rustix::io::Errno::IO.raw_os_error());
    let kind = Some(SysKind::Fdatasync);
    disk.fault(Fault { kind, range: None, nth: 1, sticky: false, action });
    rig.flush().unwrap_err();
    assert!(rig.health.is_poisoned());
    assert!(rig.flush().is_err());
}

#[test]
fn a_full_host_fails_the_write_and_goes_on_when_there_is_room() {
    // Header and L1 table, two clusters of data, an L2 table and what is kept for another.
    let sim = SimOptions { len_max: (5 + 2 + 4 + 4) * K64, ..SimOptions::default() };
    let disk = image(&options(), sim);
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[1; 512]).unwrap();
    rig.write(K64, &[2; 512]).unwrap();
    assert_eq!(rig.write(2 * K64, &[3; 512]).unwrap_err().kind(), ErrorKind::NoSpace);
    // What was accepted has room for its L2 table.
    rig.flush().unwrap();
    assert_eq!(rig.read(0, 512).unwrap(), [1; 512]);
    assert!(!rig.health.is_poisoned());
    rig.discard(0, K64).unwrap();
    rig.write(2 * K64, &[3; 512]).unwrap();
    assert_eq!(rig.read(2 * K64, 512).unwrap(), [3; 512]);
    rig.close().unwrap();
}

#[test]
fn references_beyond_the_file_are_dropped_when_it_is_opened_for_writing() {
    let disk = disk();
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[1; 512]).unwrap();
    rig.write(K64, &[2; 512]).unwrap();
    rig.close().unwrap();
    let mut bytes = disk.contents();
    let l1 = K64 as usize;
    let l2 = u64::from_le_bytes(*bytes[l1..].first_chunk().unwrap()) as usize;
    let beyond = bytes.len() as u64 + 8 * K64;
    bytes[l2 + 16..l2 + 24].copy_from_slice(&beyond.to_le_bytes());
    let damaged = SimDisk::with_contents(SimOptions::default(), &bytes);
    let read_only = Rig::open_over(&damaged, None, 1, true).unwrap();
    assert_eq!(read_only.read(2 * K64, 512).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(read_only.read(K64, 512).unwrap(), [2; 512]);
    let rig = Rig::open(&damaged, 1).unwrap();
    assert_eq!(rig.read(2 * K64, 512).unwrap(), [0; 512]);
    assert_eq!(rig.read(K64, 512).unwrap(), [2; 512]);
    rig.write(3 * K64, &[4; 512]).unwrap();
    assert_eq!(rig.read(2 * K64, 512).unwrap(), [0; 512]);
}

#[test]
fn a_cluster_that_two_entries_refer_to_is_refused_for_writing() {
    let disk = disk();
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[1; 512]).unwrap();
    rig.close().unwrap();
    let mut bytes = disk.contents();
    let l2 = u64::from_le_bytes(*bytes[K64 as usize..].first_chunk().unwrap()) as usize;
    bytes.copy_within(l2..l2 + 8, l2 + 8);
    let damaged = SimDisk::with_contents(SimOptions::default(), &bytes);
    let error = Rig::open(&damaged, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(damaged.contents(), bytes);
}
