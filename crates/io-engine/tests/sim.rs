//! The simulator itself: it must lose what may be lost, and nothing else.
#![allow(clippy::disallowed_methods, clippy::cast_possible_truncation)]

mod common;

use common::*;
use io_engine::sim::{CrashPick, Fault, FaultAction, LogEvent, Rates, SimOptions, Unwritten};
use io_engine::{
    Buf, Completion, FileRef, IoEngine, Op, OpKind, Reaped, Rng, SimDisk, SysKind, Token, Wait,
};
use std::collections::BTreeSet;

const WRITE: OpKind = OpKind::Write { fua: false };
const FUA: OpKind = OpKind::Write { fua: true };

fn new_disk(options: SimOptions) -> (SimDisk, IoEngine, FileRef) {
    let disk = SimDisk::new(options);
    let mut engine = IoEngine::sim(3, 64).unwrap();
    let file = engine.open_sim(&disk).unwrap();
    (disk, engine, file)
}

fn of_len(len: u64) -> SimOptions {
    SimOptions { len, log: true, ..SimOptions::default() }
}

fn do_op(engine: &mut IoEngine, file: &FileRef, kind: OpKind, at: u64, buf: Buf) -> Completion {
    run(engine, Op { file: file.clone(), kind, at, buf })
}

fn write(engine: &mut IoEngine, file: &FileRef, at: u64, bytes: &[u8]) {
    do_op(engine, file, WRITE, at, owned(bytes)).result.unwrap();
}

fn flush(engine: &mut IoEngine, file: &FileRef) -> Completion {
    do_op(engine, file, OpKind::Flush, 0, Buf::None)
}

fn after(disk: &SimDisk, pick: &CrashPick) -> Vec<u8> {
    let copy = disk.fork();
    copy.crash(pick);
    copy.contents()
}

/// Every state that a crash now could leave.
fn all_states(disk: &SimDisk) -> BTreeSet<Vec<u8>> {
    let (atoms, lengths) = (disk.pending_atoms().len(), disk.pending_lengths().len());
    assert!(atoms <= 12, "{atoms} atoms");
    let mut states = BTreeSet::new();
    for mask in 0..1u32 << atoms {
        for length in 0..=lengths {
            let atoms = (0..atoms).map(|i| mask >> i & 1 == 1).collect();
            let length = length.checked_sub(1);
            states.insert(after(disk, &CrashPick::Mask { atoms, length }));
        }
    }
    states
}

#[test]
fn a_completed_write_is_not_durable_before_a_flush() {
    let (disk, mut engine, file) = new_disk(of_len(1024));
    write(&mut engine, &file, 0, &[1; 512]);
    assert_eq!(disk.contents()[..512], [1; 512]);
    assert_eq!(disk.snapshot(), [0; 1024]);
    flush(&mut engine, &file).result.unwrap();
    assert_eq!(disk.snapshot()[..512], [1; 512]);
    assert!(disk.pending_atoms().is_empty());
    assert_eq!(all_states(&disk).len(), 1);
}

#[test]
fn fua_makes_its_own_sectors_durable_and_no_others() {
    let (disk, mut engine, file) = new_disk(of_len(2048));
    write(&mut engine, &file, 0, &[1; 1024]);
    do_op(&mut engine, &file, FUA, 512, owned(&[2; 512])).result.unwrap();
    let durable = disk.snapshot();
    assert_eq!((&durable[..512], &durable[512..1024]), (&[0; 512][..], &[2; 512][..]));
    assert_eq!(disk.pending_atoms().len(), 1);
}

#[test]
fn a_write_tears_at_sectors_and_nowhere_else() {
    let (disk, mut engine, file) = new_disk(of_len(1536));
    write(&mut engine, &file, 0, &[7; 1536]);
    let states = all_states(&disk);
    assert_eq!(states.len(), 8);
    for state in states {
        for sector in state.chunks(512) {
            assert!(sector.iter().all(|b| *b == sector[0]));
        }
    }
}

#[test]
fn a_sector_keeps_the_flushed_version_or_any_later_one() {
    let (disk, mut engine, file) = new_disk(of_len(512));
    for value in 1..=4 {
        write(&mut engine, &file, 0, &[value; 512]);
        if value == 2 {
            flush(&mut engine, &file).result.unwrap();
        }
    }
    let states: Vec<u8> = all_states(&disk).iter().map(|state| state[0]).collect();
    assert_eq!(states, [2, 3, 4]);
}

#[test]
fn a_flush_covers_only_what_had_completed_before_it_was_issued() {
    // Whatever order the seed picks: the write was in flight when the flush was issued, so no flush may be its guarantee.
    for seed in 0..40 {
        let disk = SimDisk::new(of_len(512));
        let mut engine = IoEngine::sim(seed, 4).unwrap();
        let file = engine.open_sim(&disk).unwrap();
        for (kind, buf) in [(WRITE, owned(&[1; 512])), (OpKind::Flush, Buf::None)] {
            engine.submit(Op { file: file.clone(), kind, at: 0, buf }, Token(0)).unwrap();
        }
        let mut reaped = Reaped::default();
        while reaped.completions.len() < 2 {
            engine.reap(&mut reaped, Wait::Forever).unwrap();
        }
        assert_eq!(disk.snapshot(), [0; 512], "seed {seed}");
        assert_eq!(disk.contents(), [1; 512]);
    }
}

#[test]
fn length_and_data_become_durable_apart() {
    let (disk, mut engine, file) = new_disk(of_len(512));
    write(&mut engine, &file, 512, &[5; 512]);
    let states = all_states(&disk);
    let expected: BTreeSet<Vec<u8>> =
        [vec![0; 512], vec![0; 1024], [[0; 512], [5; 512]].concat()].into();
    assert_eq!(states, expected, "neither, the length alone, or both");
    // Cut off with the length, the data does not come back when the file grows again.
    disk.crash(&CrashPick::Mask { atoms: vec![true], length: None });
    do_op(&mut engine, &file, OpKind::Truncate, 1024, Buf::None).result.unwrap();
    assert_eq!(disk.contents(), [0; 1024]);
}

#[test]
fn truncation_and_zeroes_can_be_lost_too() {
    let (disk, mut engine, file) = new_disk(of_len(0));
    write(&mut engine, &file, 0, &[5; 1024]);
    flush(&mut engine, &file).result.unwrap();
    let punch = OpKind::WriteZeroes { len: 512, unmap: true };
    do_op(&mut engine, &file, punch, 0, Buf::None).result.unwrap();
    assert_eq!(disk.contents()[..512], [0; 512]);
    assert_eq!(disk.snapshot(), [5; 1024]);
    do_op(&mut engine, &file, OpKind::Truncate, 700, Buf::None).result.unwrap();
    assert_eq!(disk.contents().len(), 700);
    assert_eq!(disk.snapshot(), [5; 1024]);
    assert_eq!(disk.pending_lengths(), [700]);
    flush(&mut engine, &file).result.unwrap();
    assert_eq!(disk.snapshot(), [vec![0; 512], vec![5; 188]].concat());
}

#[test]
fn unwritten_space_shows_the_poison_until_it_is_written() {
    let options =
        SimOptions { unwritten: Unwritten::Poison(0xDB), is_block_device: true, ..of_len(4096) };
    let (disk, mut engine, file) = new_disk(options);
    assert_eq!(disk.contents(), [0xDB; 4096]);
    write(&mut engine, &file, 100, &[1; 100]);
    assert_eq!(disk.contents()[99..201], [vec![0xDB], vec![1; 100], vec![0xDB]].concat());
    let zeroes = OpKind::WriteZeroes { len: 1024, unmap: true };
    do_op(&mut engine, &file, zeroes, 0, Buf::None).result.unwrap();
    assert_eq!(disk.contents()[..1024], [0; 1024]);
    do_op(&mut engine, &file, OpKind::Discard { len: 512 }, 0, Buf::None).result.unwrap();
    assert_eq!(disk.contents()[..512], [0xDB; 512]);
    // A device has its length for ever.
    assert_eq!(errno(&do_op(&mut engine, &file, WRITE, 4096, room_for(512))), Some(libc::ENOSPC));
    let grow = do_op(&mut engine, &file, OpKind::Truncate, 8192, Buf::None);
    assert_eq!(errno(&grow), Some(libc::EINVAL));
    assert_eq!(disk.len(), 4096);
}

#[test]
fn what_is_in_flight_at_a_crash_may_be_there_or_not_and_fails() {
    let (disk, mut engine, file) = new_disk(of_len(512));
    let op = Op { file: file.clone(), kind: WRITE, at: 0, buf: owned(&[3; 512]) };
    engine.submit(op, Token(1)).unwrap();
    assert_eq!(all_states(&disk), [vec![0; 512], vec![3; 512]].into());
    assert!(!disk.pending_atoms()[0].completed);
    disk.crash(&CrashPick::Everything);
    let mut reaped = Reaped::default();
    engine.reap(&mut reaped, Wait::Forever).unwrap();
    assert_eq!(errno(&reaped.completions[0]), Some(libc::EIO));
    assert_eq!(disk.snapshot(), [3; 512]);
}

#[test]
fn a_failed_flush_loses_its_writes_for_good_and_says_so_once() {
    let (disk, mut engine, file) = new_disk(of_len(1024));
    write(&mut engine, &file, 0, &[1; 512]);
    disk.fault(Fault {
        kind: Some(SysKind::Fdatasync),
        range: None,
        nth: 1,
        sticky: false,
        action: FaultAction::FlushLost(libc::EIO),
    });
    assert_eq!(errno(&flush(&mut engine, &file)), Some(libc::EIO));
    write(&mut engine, &file, 512, &[2; 512]);
    flush(&mut engine, &file).result.unwrap();
    assert_eq!(
        disk.snapshot(),
        [[0; 512], [2; 512]].concat(),
        "the second flush promised less than it seems"
    );
    assert_eq!(disk.contents(), [[1; 512], [2; 512]].concat(), "the cache still has it");
    // Written again, it is flushed again.
    write(&mut engine, &file, 0, &[1; 512]);
    flush(&mut engine, &file).result.unwrap();
    assert_eq!(disk.snapshot()[..512], [1; 512]);
}

#[test]
fn faults_hit_the_chosen_call_range_and_kind() {
    let (disk, mut engine, file) = new_disk(of_len(8192));
    let fault = |kind, range, nth, sticky, action| Fault { kind, range, nth, sticky, action };
    let eio = FaultAction::Errno(libc::EIO);
    disk.fault(fault(Some(SysKind::Pwritev), Some(4096..4608), 2, false, eio));
    for (at, wanted) in [(0, None), (4096, None), (0, None), (4000, Some(libc::EIO)), (4096, None)]
    {
        let done = do_op(&mut engine, &file, WRITE, at, room_for(512));
        assert_eq!(errno(&done), wanted, "at {at}");
    }
    disk.fault(fault(Some(SysKind::Preadv), None, 1, true, eio));
    for _ in 0..3 {
        let done = do_op(&mut engine, &file, OpKind::Read, 0, room_for(512));
        assert_eq!(errno(&done), Some(libc::EIO));
    }
    disk.clear_faults();
    do_op(&mut engine, &file, OpKind::Read, 0, room_for(512)).result.unwrap();
    disk.fault(fault(Some(SysKind::Pwritev), None, 1, false, FaultAction::Torn(libc::EIO, 600)));
    do_op(&mut engine, &file, WRITE, 0, owned(&[9; 1024])).result.unwrap_err();
    assert_eq!(disk.contents()[598..602], [9, 9, 0xEE - 0xEE, 0]);
}

#[test]
fn space_runs_out_where_it_was_said_to() {
    let (disk, mut engine, file) = new_disk(SimOptions { len_max: 1000, ..of_len(0) });
    assert_eq!(errno(&do_op(&mut engine, &file, WRITE, 0, room_for(2000))), Some(libc::ENOSPC));
    assert_eq!(disk.len(), 1000);
    write(&mut engine, &file, 0, &[1; 1000]);
}

/// A little workload with everything in flight at once; returns all that can be seen of it.
fn workload(seed: u64) -> (Vec<u64>, Vec<LogEvent>, Vec<u8>, u64) {
    let disk = SimDisk::new(of_len(16384));
    disk.set_rates(Rates { eintr: 100, eagain: 100, short: 200 });
    let mut engine = IoEngine::sim(seed, 32).unwrap();
    let file = engine.open_sim(&disk).unwrap();
    let mut rng = Rng::new(99);
    let mut order = Vec::new();
    let mut reaped = Reaped::default();
    for token in 0..200 {
        let (at, value) = (rng.below(30) * 500, rng.below(256) as u8);
        let (kind, buf) = match rng.index(5) {
            0 => (OpKind::Flush, Buf::None),
            1 => (OpKind::Read, room_for(700)),
            2 => (OpKind::WriteZeroes { len: 600, unmap: true }, Buf::None),
            3 => (FUA, owned(&[value; 700])),
            _ => (WRITE, owned(&[value; 1300])),
        };
        engine.submit(Op { file: file.clone(), kind, at, buf }, Token(token)).unwrap();
        while engine.room() == 0 || rng.chance(300) && engine.in_flight() > 0 {
            engine.reap(&mut reaped, Wait::Forever).unwrap();
        }
        order.extend(reaped.completions.drain(..).map(|done| done.token.0));
    }
    let now = engine.virtual_ns().unwrap();
    drop(engine);
    (order, disk.write_log(), disk.contents(), now)
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_one_another() {
    assert!(workload(5) == workload(5));
    assert_ne!(workload(5).0, workload(6).0);
    let order = workload(5).0;
    assert!(order.windows(2).any(|w| w[0] > w[1]), "completions never overtake: {order:?}");
}

#[test]
fn a_log_replays_to_the_same_disk_at_every_point() {
    let disk = SimDisk::new(of_len(16384));
    let start = disk.fork();
    let mut engine = IoEngine::sim(8, 32).unwrap();
    let file = engine.open_sim(&disk).unwrap();
    let mut rng = Rng::new(4);
    let mut states = Vec::new();
    let mut reaped = Reaped::default();
    for token in 0..60 {
        let at = rng.below(20) * 300;
        let (kind, buf) = match rng.index(6) {
            0 => (OpKind::Flush, Buf::None),
            1 => (OpKind::Truncate, Buf::None),
            2 => (FUA, owned(&[token as u8 + 1; 300])),
            _ => (WRITE, owned(&[token as u8 + 1; 900])),
        };
        engine.submit(Op { file: file.clone(), kind, at, buf }, Token(token)).unwrap();
        if rng.chance(600) {
            engine.reap(&mut reaped, Wait::Forever).unwrap();
        }
        states.push((disk.write_log().len(), disk.fork()));
    }
    let log = disk.write_log();
    for (events, then) in states {
        let replayed = start.fork();
        replayed.replay(&log[..events]);
        assert_eq!(replayed.pending_atoms(), then.pending_atoms(), "after {events} events");
        assert_eq!(replayed.pending_lengths(), then.pending_lengths());
        for pick in [CrashPick::Nothing, CrashPick::Everything, CrashPick::Seed(events as u64)] {
            assert!(after(&replayed, &pick) == after(&then, &pick), "after {events} events");
        }
    }
}

#[test]
fn seeded_crashes_are_among_the_possible_states_and_reach_most() {
    let (disk, mut engine, file) = new_disk(of_len(512));
    write(&mut engine, &file, 0, &[1; 1536]);
    write(&mut engine, &file, 512, &[2; 512]);
    let possible = all_states(&disk);
    let seeded: BTreeSet<Vec<u8>> =
        (0..300).map(|seed| after(&disk, &CrashPick::Seed(seed))).collect();
    assert!(seeded.is_subset(&possible));
    assert!(seeded.len() * 3 > possible.len() * 2, "{} of {}", seeded.len(), possible.len());
    assert!(possible.contains(&after(&disk, &CrashPick::Nothing)));
    assert_eq!(after(&disk, &CrashPick::Everything), disk.contents());
}

/// Two records, each meant to be durable before a header points at it: with `barrier` a flush stands between.
fn commit_protocol(barrier: bool) -> bool {
    let (disk, mut engine, file) = new_disk(of_len(1024));
    let mut holds = true;
    let mut check = |disk: &SimDisk| {
        holds &= all_states(disk).iter().all(|s| s[0] == 0 || s[512..1024] == [s[0]; 512]);
    };
    for value in 1..=2 {
        // The record is only rewritten while no durable header points at it.
        write(&mut engine, &file, 0, &[0; 512]);
        flush(&mut engine, &file).result.unwrap();
        write(&mut engine, &file, 512, &[value; 512]);
        check(&disk);
        if barrier {
            flush(&mut engine, &file).result.unwrap();
        }
        write(&mut engine, &file, 0, &[value; 512]);
        check(&disk);
        flush(&mut engine, &file).result.unwrap();
        check(&disk);
    }
    holds
}

#[test]
fn a_missing_flush_is_caught() {
    assert!(commit_protocol(true));
    assert!(!commit_protocol(false));
}

#[test]
fn several_disks_share_an_engine_and_have_their_own_faults() {
    let mut engine = IoEngine::sim(0, 8).unwrap();
    let disks = [SimDisk::with_contents(of_len(0), &[1; 512]), SimDisk::new(of_len(512))];
    let files: Vec<FileRef> = disks.iter().map(|disk| engine.open_sim(disk).unwrap()).collect();
    disks[1].fault(Fault {
        kind: None,
        range: None,
        nth: 1,
        sticky: true,
        action: FaultAction::Errno(libc::EIO),
    });
    let done = do_op(&mut engine, &files[0], OpKind::Read, 0, room_for(512));
    assert_eq!(bytes_of(&done.buf), [1; 512]);
    assert!(do_op(&mut engine, &files[1], OpKind::Read, 0, room_for(512)).result.is_err());
    assert_eq!((disks[0].count(SysKind::Preadv), disks[1].count(SysKind::Preadv)), (1, 1));
}
