//! Images that say much more than they hold: time and memory stay what the tables in the file are worth.

use super::rig::*;
use crate::qcow2::check::{Level, ProblemKind};
use crate::qcow2::{CreateOptions, new_image};
use crate::qemu_tool::TempFile;
use crate::{ErrorKind, HostNode};
use io_engine::{EngineKind, HostFile, IoEngine, Rng, SysKind};
use iothread::{Clock, IoContext};

/// A new image with clusters of this size, and its length.
fn image(bytes: u64, cluster_bytes: u64) -> Vec<u8> {
    let options = CreateOptions { cluster_bytes, ..CreateOptions::new(bytes) };
    let (mut start, len) = new_image(&options).unwrap();
    start.resize(len as usize, 0);
    start
}

#[test]
fn many_entries_for_one_table_are_one_table() {
    // 2^16 L1 entries, one table, all of whose entries are of one cluster.
    let mut bytes = image((1 << 16) * 512 * 4096, 4096);
    let header = header(&bytes);
    let table = bytes.len() as u64;
    bytes.resize(bytes.len() + 8192, 0);
    for n in 0..1 << 16 {
        set(&mut bytes, header.l1_table + n * 8, table);
    }
    for n in 0..512 {
        set(&mut bytes, table + n * 8, table + 4096);
    }
    let disk = disk_of(&bytes);
    let report = check_of(&disk).unwrap();
    assert_eq!(report.allocated_clusters, 1 << 25);
    // 2^25 references to the one, 2^16 to the other: a refcount has 16 bits.
    assert_eq!((report.count(ProblemKind::TooMany), report.errors()), (2, 2));
    assert!(disk.count(SysKind::Preadv) < 20, "{}", disk.count(SysKind::Preadv));
    assert_eq!(repair_of(&disk, Level::All).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(disk.contents() == bytes);
}

#[test]
fn a_table_of_refcounts_that_is_full_of_one_block_reads_it_once() {
    let mut bytes = image(1 << 30, 4096);
    let header = header(&bytes);
    let block = word(&bytes, header.refcount_table);
    for n in 0..header.refcount_table_bytes() / 8 {
        set(&mut bytes, header.refcount_table + n * 8, block);
    }
    let disk = disk_of(&bytes);
    let report = check_of(&disk).unwrap();
    assert_eq!(report.count(ProblemKind::Overlap), header.refcount_table_bytes() / 8 - 1);
    assert!(disk.count(SysKind::Preadv) < 20);
    assert!(repair_of(&disk, Level::All).unwrap().0.after.is_clean());
}

#[test]
fn what_is_wrong_is_listed_as_far_as_is_bearable_and_mended_all_the_same() {
    // 2^17 entries, all of them beyond the file.
    let mut bytes = image(1 << 30, 4096);
    let header = header(&bytes);
    let table = bytes.len() as u64;
    bytes.resize(bytes.len() + (256 << 12), 0);
    for n in 0..256 {
        set(&mut bytes, header.l1_table + n * 8, (table + n * 4096) | COPIED);
        for entry in 0..512 {
            set(&mut bytes, table + n * 4096 + entry * 8, (1 << 50) + entry * 4096);
        }
    }
    let disk = disk_of(&bytes);
    let report = check_of(&disk).unwrap();
    assert_eq!(report.count(ProblemKind::BeyondFile), 1 << 17);
    assert_eq!(report.problems.len(), crate::qcow2::check::PROBLEMS_MAX);
    let plan = plan_of(&disk, Level::All).unwrap();
    assert!(!plan.is_complete);
    let (outcome, fixes) = repair_of(&disk, Level::All).unwrap();
    assert!(outcome.after.is_clean(), "{:?}", outcome.after.problems.first());
    assert!(fixes.len() > 1 << 17 && plan.fixes[..1000] == fixes[..1000]);
}

/// A file of 4 TiB, all of it a hole but the tables: L1 entries and refcount blocks that lead into it.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test's own file")]
fn holes_are_not_read() {
    let mut bytes = image(1 << 40, 65536);
    let header = header(&bytes);
    let end = 4u64 << 40;
    let mut rng = Rng::new(5);
    for n in 0..u64::from(header.l1_entries) {
        let cluster = 100 + rng.below((end >> 16) - 100);
        set(&mut bytes, header.l1_table + n * 8, cluster << 16 | COPIED);
    }
    for n in 1..header.refcount_table_bytes() / 8 {
        set(&mut bytes, header.refcount_table + n * 8, (end - n * 65536) & !0xFFFF);
    }
    let file = TempFile::with("qcow2", &bytes);
    let open = std::fs::OpenOptions::new().read(true).write(true).open(file.path()).unwrap();
    if open.set_len(end).is_err() {
        assert!(std::env::var_os("CI").is_none(), "no file system with large files");
        eprintln!("SKIPPED: no file of 4 TiB here");
        return;
    }
    // Something behind all that: the holes are no end.
    std::os::unix::fs::FileExt::write_all_at(&open, &[1; 4096], end - 4096).unwrap();
    let host = HostFile::new(open, false).unwrap();
    let context =
        IoContext::new(IoEngine::new(EngineKind::Threads, 32).unwrap(), 16, Clock::monotonic());
    let file = context.open(host).unwrap();
    let host = HostNode::new(&context, file, "sparse.qcow2".into());
    let of_task = async move { crate::qcow2::check::check(&host, |_, _| ()).await };
    let report = context.block_on(of_task).unwrap().unwrap();
    assert_eq!(report.allocated_clusters, 0);
    // Of the 2048 tables and 32768 blocks, those blocks that are told to count some of the tables.
    let reads = context.with_engine(|engine| engine.counters().count(SysKind::Preadv));
    assert!(reads < 2000, "{reads}");
    assert!(report.count(ProblemKind::TooLow) > 2000);
}

#[test]
fn no_image_at_random_is_too_much() {
    let mut bytes = image(1 << 24, 512);
    bytes.resize(bytes.len() + 200 * 512, 0);
    let header = header(&bytes);
    let clusters = bytes.len() as u64 / 512;
    for seed in 0..400 {
        let mut rng = Rng::new(seed);
        let mut bytes = bytes.clone();
        for _ in 0..rng.below(4000) {
            // Anything in any table, mostly within the file.
            let at = 512 + rng.below(bytes.len() as u64 / 8 - 64) * 8;
            let flags = rng.bits() & rng.bits() & rng.bits() & 0xC000_0000_0000_01FF;
            let value = rng.below(clusters + 1) * 512;
            set(&mut bytes, at, value | if rng.chance(300) { flags } else { COPIED });
        }
        for n in 0..rng.below(u64::from(header.l1_entries)) {
            let value = rng.below(clusters + 1) * 512;
            set(&mut bytes, header.l1_table + n * 8, value);
        }
        let disk = disk_of(&bytes);
        let report = check_of(&disk).unwrap();
        match repair_of(&disk, Level::All) {
            Ok((outcome, _)) => assert!(outcome.after.is_clean(), "seed {seed}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "seed {seed}: {error}");
                assert!(report.errors() > 0 && disk.contents() == bytes, "seed {seed}");
            }
        }
    }
}
