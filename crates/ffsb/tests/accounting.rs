//! What each of the fifteen operations counts, done alone a known number of times: in a directory and on a disk.
//! `docs/ffsb.md` says the same in a table.

mod common;

use common::{MemoryLane, file_system, group, op, profile};
use ffsb::outcome::Outcome;
use ffsb::profile::{Op, Profile, Syscall, ThreadGroup};
use ffsb::run::{Control, Place, lanes_needed, run};

const TIMES: u64 = 7;
/// 10 whole blocks and a rest.
const SIZE: u64 = 10 * 4096 + 512;

/// Of one operation: transactions, bytes read, bytes written; and calls of open, read, write, lseek, unlink, close, stat.
struct Expected {
    transactions: u64,
    read: u64,
    written: u64,
    calls: [u64; 7],
}

const CALLS: [Syscall; 7] = [
    Syscall::Open,
    Syscall::Read,
    Syscall::Write,
    Syscall::Lseek,
    Syscall::Unlink,
    Syscall::Close,
    Syscall::Stat,
];

/// Runs it in a directory and on a disk, and compares both with what is expected.
#[track_caller]
fn check(the_op: Op, group: ThreadGroup, expected: &Expected) {
    let dir = tempfile::tempdir().unwrap();
    let profile = profile(file_system(dir.path(), 20, SIZE), group);
    let in_directory = run(&profile, Place::Directories, &Control::default()).unwrap();
    check_outcome("directory", the_op, &in_directory, expected);
    check_outcome("disk", the_op, &on_disk(&profile), expected);
}

fn on_disk(profile: &Profile) -> Outcome {
    let mut lanes = MemoryLane::new(16 << 20).lanes(lanes_needed(profile));
    let place = Place::Disk { name: "memory", lanes: &mut lanes };
    run(profile, place, &Control::default()).unwrap()
}

#[track_caller]
fn check_outcome(place: &str, the_op: Op, outcome: &Outcome, expected: &Expected) {
    let found = op(outcome, the_op);
    assert_eq!(outcome.groups[0].ops.len(), 1, "{place}");
    assert_eq!(found.drawn, TIMES, "{place}");
    assert_eq!(found.transactions, TIMES * expected.transactions, "{place}: transactions");
    assert_eq!(found.read_bytes, TIMES * expected.read, "{place}: bytes read");
    assert_eq!(found.written_bytes, TIMES * expected.written, "{place}: bytes written");
    for (syscall, calls) in CALLS.into_iter().zip(expected.calls) {
        let syscalls = &outcome.groups[0].syscalls;
        let found = syscalls.iter().find(|one| one.syscall == syscall).map_or(0, |one| one.calls);
        assert_eq!(found, TIMES * calls, "{place}: {syscall:?}");
    }
    let blocks = expected.calls[1] + expected.calls[2];
    assert_eq!(outcome.latency.count, TIMES * blocks, "{place}: latencies");
}

fn alone(op: Op) -> ThreadGroup {
    group(&[(op, 1)], TIMES)
}

#[test]
fn read_counts_whole_blocks() {
    let two = Expected { transactions: 2, read: 8192, written: 0, calls: [1, 2, 0, 1, 0, 1, 0] };
    check(Op::Read, alone(Op::Read), &two);
    // The rest is read, and is bytes, but no transaction.
    let rest = ThreadGroup { read_size: Some(8192 + 512), ..alone(Op::Read) };
    let expected = Expected { read: 8704, calls: [1, 3, 0, 1, 0, 1, 0], ..two };
    check(Op::Read, rest, &expected);
    // All of a file leaves no choice of where to start.
    let all = ThreadGroup { read_size: None, ..alone(Op::Read) };
    let calls = [1, 11, 0, 0, 0, 1, 0];
    check(Op::Read, all, &Expected { transactions: 10, read: SIZE, written: 0, calls });
}

#[test]
fn random_reads_are_whole_blocks_only() {
    let random = ThreadGroup { read_random: true, read_size: Some(8192 + 512), ..alone(Op::Read) };
    let calls = [1, 2, 0, 2, 0, 1, 0];
    check(Op::Read, random, &Expected { transactions: 2, read: 8192, written: 0, calls });
}

#[test]
fn reads_with_gaps_count_the_rest() {
    let gaps = |read_size| ThreadGroup { read_skip: Some(4096), read_size, ..alone(Op::Read) };
    let calls = [1, 3, 0, 2, 0, 1, 0];
    let expected = Expected { transactions: 3, read: 8704, written: 0, calls };
    check(Op::Read, gaps(Some(8192 + 512)), &expected);
    let calls = [1, 5, 0, 5, 0, 1, 0];
    let expected = Expected { transactions: 5, read: 5 * 4096, written: 0, calls };
    check(Op::Read, gaps(None), &expected);
}

#[test]
fn readall_counts_whole_blocks() {
    let calls = [1, 11, 0, 0, 0, 1, 0];
    let expected = Expected { transactions: 10, read: SIZE, written: 0, calls };
    check(Op::Readall, alone(Op::Readall), &expected);
}

#[test]
fn writes_count_every_block() {
    for the_op in [Op::Write, Op::WriteFsync] {
        let calls = [1, 0, 2, 1, 0, 1, 0];
        let expected = Expected { transactions: 2, read: 0, written: 8192, calls };
        check(the_op, alone(the_op), &expected);
        let rest = ThreadGroup { write_size: Some(8192 + 512), ..alone(the_op) };
        let calls = [1, 0, 3, 1, 0, 1, 0];
        let expected = Expected { transactions: 3, read: 0, written: 8704, calls };
        check(the_op, rest, &expected);
        let random = ThreadGroup { write_random: true, ..alone(the_op) };
        let calls = [1, 0, 2, 2, 0, 1, 0];
        let expected = Expected { transactions: 2, read: 0, written: 8192, calls };
        check(the_op, random, &expected);
    }
}

#[test]
fn writeall_counts_every_block_of_the_file() {
    for the_op in [Op::Writeall, Op::WriteallFsync] {
        let calls = [1, 0, 11, 0, 0, 1, 0];
        check(the_op, alone(the_op), &Expected { transactions: 11, read: 0, written: SIZE, calls });
    }
}

#[test]
fn create_counts_every_block_and_opens_once() {
    for the_op in [Op::Create, Op::CreateFsync] {
        let calls = [1, 0, 11, 0, 0, 1, 0];
        check(the_op, alone(the_op), &Expected { transactions: 11, read: 0, written: SIZE, calls });
    }
}

#[test]
fn append_counts_every_block() {
    for the_op in [Op::Append, Op::AppendFsync] {
        let rest = ThreadGroup { write_size: Some(4096 + 100), ..alone(the_op) };
        let calls = [1, 0, 2, 0, 0, 1, 0];
        check(the_op, rest, &Expected { transactions: 2, read: 0, written: 4196, calls });
        let one = ThreadGroup { write_size: None, ..alone(the_op) };
        let calls = [1, 0, 1, 0, 0, 1, 0];
        check(the_op, one, &Expected { transactions: 1, read: 0, written: 4096, calls });
    }
}

#[test]
fn operations_without_data_count_one() {
    let one = |calls| Expected { transactions: 1, read: 0, written: 0, calls };
    check(Op::Delete, alone(Op::Delete), &one([0, 0, 0, 0, 1, 0, 0]));
    check(Op::Stat, alone(Op::Stat), &one([0, 0, 0, 0, 0, 0, 1]));
    check(Op::OpenClose, alone(Op::OpenClose), &one([1, 0, 0, 0, 0, 1, 0]));
    check(Op::Metaop, alone(Op::Metaop), &one([0; 7]));
    check(Op::Createdir, alone(Op::Createdir), &one([0; 7]));
}

/// What is on the disk afterwards: files and their bytes below `data`, directories below `data`, directories below `meta`.
fn left(dir: &std::path::Path) -> (u64, u64, u64, u64) {
    let (mut files, mut bytes, mut dirs) = (0, 0, 0);
    let mut todo = vec![dir.join("data")];
    while let Some(path) = todo.pop() {
        for entry in std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_type().unwrap().is_dir() {
                dirs += 1;
                todo.push(entry.path());
            } else {
                files += 1;
                bytes += entry.metadata().unwrap().len();
            }
        }
    }
    let meta = std::fs::read_dir(dir.join("meta")).unwrap().count() as u64;
    (files, bytes, dirs, meta)
}

#[test]
fn the_directory_holds_what_was_counted() {
    for (the_op, files, bytes, dirs, meta) in [
        (Op::Read, 20, 20 * SIZE, 2, 0),
        (Op::Writeall, 20, 20 * SIZE, 2, 0),
        (Op::Create, 27, 27 * SIZE, 2, 0),
        (Op::Append, 20, 20 * SIZE + 7 * 8192, 2, 0),
        (Op::Delete, 13, 13 * SIZE, 2, 0),
        (Op::Createdir, 20, 20 * SIZE, 9, 0),
        // Two made, one removed, each time.
        (Op::Metaop, 20, 20 * SIZE, 2, 7),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let profile = profile(file_system(dir.path(), 20, SIZE), alone(the_op));
        run(&profile, Place::Directories, &Control::default()).unwrap();
        assert_eq!(left(dir.path()), (files, bytes, dirs, meta), "{the_op:?}");
    }
}

#[test]
fn fsync_and_metadata_cost_the_disk_what_they_say() {
    // Writes beyond the data's: one block of metadata for each change of a file; flushes beyond the two syncs: one each.
    for (the_op, writes, flushes) in [
        (Op::Write, 2, 0),
        (Op::WriteFsync, 2, 1),
        (Op::Writeall, 10, 0),
        (Op::WriteallFsync, 10, 1),
        (Op::Append, 2 + 1, 0),
        (Op::AppendFsync, 2 + 1, 1),
        (Op::Create, 10 + 1, 0),
        (Op::CreateFsync, 10 + 1, 1),
        (Op::Delete, 1, 0),
        (Op::Createdir, 1, 0),
        (Op::Metaop, 4, 0),
        (Op::Stat, 0, 0),
        (Op::OpenClose, 0, 0),
        (Op::Read, 0, 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut profile = profile(file_system(dir.path(), 20, 10 * 4096), alone(the_op));
        profile.alignio = true;
        let count = |profile: &Profile| {
            let disk = MemoryLane::new(16 << 20);
            let mut lanes = disk.lanes(1);
            let place = Place::Disk { name: "memory", lanes: &mut lanes };
            run(profile, place, &Control::default()).unwrap();
            disk.with(|memory| (memory.writes, memory.flushes))
        };
        let with = count(&profile);
        profile.time = Some(0);
        let set_up_only = count(&profile);
        let found = (with.0 - set_up_only.0, with.1 - set_up_only.1);
        assert_eq!(found, (TIMES * writes, 2 + TIMES * flushes), "{the_op:?}");
    }
}
