//! One suite for all engines, on every sort of file they take.
#![allow(clippy::disallowed_methods, clippy::cast_possible_truncation)]

mod common;

use common::*;
use guest_mem::MemHandle;
use io_engine::{
    Buf, EngineKind, HostFile, IoEngine, Op, OpKind, Reaped, Rng, SysKind, Token, Wait,
};
use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

const WRITE: OpKind = OpKind::Write { fua: false };
const FUA: OpKind = OpKind::Write { fua: true };

#[test]
fn what_was_written_is_read_back_and_zeroes_follow_the_end() {
    for mut case in cases(0) {
        let name = case.name.clone();
        let data: Vec<u8> = (0..8192u32).map(|i| (i % 251) as u8 + 1).collect();
        for (kind, at) in [(WRITE, 0), (FUA, 16384)] {
            let done = case.run(kind, at, owned(&data));
            done.result.unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        case.run(OpKind::Flush, 0, Buf::None).result.unwrap();
        assert_eq!(case.file.len().unwrap(), 24576, "{name}");
        assert_eq!(case.contents()[16384..], data, "{name}");
        // 4 KiB of the second write, then 28 KiB beyond the end; and a read that lies all beyond.
        let done = case.run(OpKind::Read, 20480, room_for(32768));
        let bytes = bytes_of(&done.buf);
        assert_eq!(bytes[..4096], data[4096..], "{name}");
        assert!(bytes[4096..].iter().all(|b| *b == 0), "{name}: not zero beyond the end");
        let done = case.run(OpKind::Read, 1 << 40, room_for(4096));
        assert!(bytes_of(&done.buf).iter().all(|b| *b == 0), "{name}");
        // The hole between the two.
        let done = case.run(OpKind::Read, 8192, room_for(8192));
        assert!(bytes_of(&done.buf).iter().all(|b| *b == 0), "{name}");
    }
}

#[test]
fn an_odd_end_of_file_is_filled_up_with_zeroes() {
    for mut case in cases(5000) {
        let name = case.name.clone();
        let mem = memory(1 << 20);
        let fill = segments(&mem, &[(0, 65536)]);
        fill.copy_from(0, &[0xEE; 65536]);
        let iov = segments(&mem, &[(8192, 4096), (0, 4096), (32768, 8192)]);
        let done = case.run(OpKind::Read, 0, Buf::Guest(iov));
        done.result.unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut seen = vec![0; 65536];
        fill.copy_to(0, &mut seen);
        for (at, len) in [(8192, 4096), (0, 4096), (32768, 8192)] {
            assert!(seen[at..at + len].iter().all(|b| *b == 0), "{name}: segment at {at}");
        }
        assert!(seen[4096..8192].iter().all(|b| *b == 0xEE), "{name}: wrote beside a segment");
    }
}

/// What one op in flight must turn out to be.
struct Expected {
    range: Range<usize>,
    /// The bytes a read must find.
    read: Option<Vec<u8>>,
}

#[test]
fn random_ops_at_depth_agree_with_a_plain_vector() {
    const LEN: usize = 1 << 20;
    for mut case in cases(LEN as u64) {
        let name = case.name.clone();
        let mut rng = Rng::new(1);
        let mem = memory(u64::from(DEPTH) << 18);
        let mut model = vec![0u8; LEN];
        let mut flying: Vec<Option<Expected>> = (0..DEPTH).map(|_| None).collect();
        let mut reaped = Reaped::default();
        let (mut submitted, mut ended) = (0, 0);
        while ended < 600 {
            let slot = rng.index(flying.len());
            if submitted < 600 && flying[slot].is_none() {
                let range = pick_range(&mut rng, LEN, case.align());
                let overlaps =
                    |e: &Expected| e.range.start < range.end && range.start < e.range.end;
                if flying.iter().flatten().any(overlaps) {
                    continue;
                }
                let (op, read) = random_op(&mut rng, &case, &mem, slot, &range, &mut model);
                flying[slot] = Some(Expected { range, read });
                case.engine.submit(op, Token(slot as u64)).unwrap();
                submitted += 1;
                if rng.chance(700) {
                    continue;
                }
            }
            let wait = [Wait::No, Wait::Forever, Wait::Ns(1_000_000)][rng.index(3)];
            if case.engine.in_flight() > 0 {
                case.engine.reap(&mut reaped, wait).unwrap();
            }
            for done in reaped.completions.drain(..) {
                done.result.unwrap_or_else(|e| panic!("{name}: {e}"));
                let slot = done.token.0 as usize;
                let expected = flying[slot].take().expect("each op completes once");
                if let Some(wanted) = expected.read {
                    let seen = match &done.buf {
                        Buf::Owned(buf) => buf.as_slice().to_vec(),
                        _ => {
                            let iov = segments(&mem, &[((slot as u64) << 18, wanted.len() as u64)]);
                            bytes_of(&Buf::Guest(iov))
                        }
                    };
                    assert!(seen == wanted, "{name}: wrong bytes at {:?}", expected.range);
                }
                ended += 1;
            }
        }
        assert!(case.contents() == model, "{name}: the file is not what the model is");
    }
}

fn pick_range(rng: &mut Rng, len: usize, align: usize) -> Range<usize> {
    let bound = if rng.chance(200) { 100_000 } else { 12_000 };
    let start = rng.index(len) / align * align;
    let bytes = (1 + rng.index(bound)).next_multiple_of(align).min(len - start);
    start..start + bytes
}

fn random_op(
    rng: &mut Rng,
    case: &Case,
    mem: &MemHandle,
    slot: usize,
    range: &Range<usize>,
    model: &mut [u8],
) -> (Op, Option<Vec<u8>>) {
    let len = range.len() as u64;
    let op = |kind, buf| Op { file: case.file.clone(), kind, at: range.start as u64, buf };
    let guest = |rng: &mut Rng| {
        // Adjacent pieces of the slot's own area, cut at aligned places.
        let mut cuts = vec![0, range.len()];
        cuts.extend(
            (0..rng.index(40)).map(|_| rng.index(range.len()) / case.align() * case.align()),
        );
        cuts.sort_unstable();
        cuts.dedup();
        let base = (slot as u64) << 18;
        let part = |w: &[usize]| (base + w[0] as u64, (w[1] - w[0]) as u64);
        segments(mem, &cuts.windows(2).map(part).collect::<Vec<_>>())
    };
    let as_guest = rng.chance(500);
    match rng.index(10) {
        0..3 => {
            let buf = if as_guest { Buf::Guest(guest(rng)) } else { room_for(range.len()) };
            (op(OpKind::Read, buf), Some(model[range.clone()].to_vec()))
        }
        3..7 => {
            rng.fill(&mut model[range.clone()]);
            let data = &model[range.clone()];
            let buf = if as_guest {
                let iov = guest(rng);
                iov.copy_from(0, data);
                Buf::Guest(iov)
            } else {
                owned(data)
            };
            (op(OpKind::Write { fua: rng.chance(100) }, buf), None)
        }
        7 => {
            model[range.clone()].fill(0);
            (op(OpKind::WriteZeroes { len, unmap: rng.chance(500) }, Buf::None), None)
        }
        8 => {
            model[range.clone()].fill(0);
            (op(OpKind::Discard { len }, Buf::None), None)
        }
        _ => (op(OpKind::Flush, Buf::None), None),
    }
}

#[test]
fn more_segments_than_one_call_takes() {
    for mut case in cases(0) {
        let name = case.name.clone();
        let mem = memory(4 << 20);
        // 2500 segments of 512 bytes, none adjacent to the next.
        let align = case.align().max(512) as u64;
        let (count, step) = (2500.min((4 << 20) / (2 * align)), 2 * align);
        let parts: Vec<_> = (0..count).map(|i| (i * step, align)).collect();
        let data: Vec<u8> = (0..count * align).map(|i| (i / 7) as u8).collect();
        let iov = segments(&mem, &parts);
        iov.copy_from(0, &data);
        case.run(WRITE, 4096, Buf::Guest(iov)).result.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(case.contents()[4096..] == data, "{name}");
        segments(&mem, &parts).zero_from(0);
        let done = case.run(OpKind::Read, 4096, Buf::Guest(segments(&mem, &parts)));
        done.result.unwrap();
        assert!(bytes_of(&Buf::Guest(segments(&mem, &parts))) == data, "{name}");
    }
}

#[test]
fn zeroes_and_discards_leave_their_neighbours_alone() {
    for mut case in cases(65536) {
        let name = case.name.clone();
        let step = case.align().max(512) as u64;
        for kind in [
            OpKind::WriteZeroes { len: 5 * step, unmap: true },
            OpKind::WriteZeroes { len: 5 * step, unmap: false },
            OpKind::Discard { len: 5 * step },
        ] {
            case.run(WRITE, 0, owned(&[0xAA; 65536])).result.unwrap();
            case.run(kind, step, Buf::None).result.unwrap_or_else(|e| panic!("{name}: {e}"));
            let (seen, step) = (case.contents(), step as usize);
            assert!(seen[step..6 * step].iter().all(|b| *b == 0), "{name} {kind:?}");
            assert!(seen[..step].iter().chain(&seen[6 * step..]).all(|b| *b == 0xAA), "{name}");
        }
        // Beyond the end: the range reads as zeroes, whatever becomes of the length.
        for unmap in [true, false] {
            let kind = OpKind::WriteZeroes { len: 131_072, unmap };
            case.run(kind, 32768, Buf::None).result.unwrap_or_else(|e| panic!("{name}: {e}"));
            let seen = case.contents();
            assert!(seen.len() >= 65536 && seen[32768..].iter().all(|b| *b == 0), "{name}");
        }
        case.run(OpKind::Truncate, 1 << 20, Buf::None).result.unwrap();
        assert!(case.contents()[32768..].iter().all(|b| *b == 0), "{name}");
    }
}

#[test]
fn unmapped_zeroes_free_space_and_others_keep_it() {
    use std::os::unix::fs::MetadataExt;
    for mut case in cases(0) {
        let Some(path) = case.temp.as_ref().map(|temp| temp.0.clone()) else { continue };
        let name = case.name.clone();
        case.run(FUA, 0, owned(&vec![1; 1 << 20])).result.unwrap();
        let blocks = || std::fs::metadata(&path).unwrap().blocks();
        let full = blocks();
        let keep = OpKind::WriteZeroes { len: 1 << 20, unmap: false };
        case.run(keep, 0, Buf::None).result.unwrap();
        assert!(blocks() >= full, "{name}: {} < {full}", blocks());
        let free = OpKind::WriteZeroes { len: 1 << 20, unmap: true };
        case.run(free, 0, Buf::None).result.unwrap();
        assert!(blocks() < full / 2, "{name}: {} of {full}", blocks());
    }
}

#[test]
fn truncate_cuts_and_grows() {
    for mut case in cases(0) {
        let name = case.name.clone();
        case.run(WRITE, 0, owned(&[9; 8192])).result.unwrap();
        for len in [4096, 12288] {
            case.run(OpKind::Truncate, len, Buf::None)
                .result
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(case.file.len().unwrap(), len, "{name}");
        }
        let seen = case.contents();
        assert!(seen[..4096].iter().all(|b| *b == 9), "{name}");
        assert!(seen[4096..].iter().all(|b| *b == 0), "{name}");
    }
}

#[test]
fn offsets_beyond_the_largest_file_are_refused_without_a_system_call() {
    for mut case in cases(4096) {
        let before = case.engine.counters();
        for (kind, at) in [
            (OpKind::Read, u64::MAX),
            (OpKind::Read, i64::MAX as u64 - 100),
            (WRITE, (1 << 63) - 4095),
            (OpKind::WriteZeroes { len: u64::MAX, unmap: true }, 1),
            (OpKind::Discard { len: 1 << 63 }, 0),
            (OpKind::Truncate, 1 << 63),
        ] {
            let buf = if matches!(kind, OpKind::Read | OpKind::Write { .. }) {
                room_for(4096)
            } else {
                Buf::None
            };
            let done = case.run(kind, at, buf);
            assert_eq!(errno(&done), Some(libc::EINVAL), "{}: {kind:?} at {at:#x}", case.name);
        }
        let after = case.engine.counters();
        for kind in SysKind::ALL {
            assert_eq!(before.count(kind), after.count(kind), "{}: {kind:?}", case.name);
        }
        // Nothing to do is done at once.
        case.run(OpKind::Read, 0, Buf::None).result.unwrap();
        case.run(OpKind::Discard { len: 0 }, 0, Buf::None).result.unwrap();
    }
}

#[test]
fn a_misaligned_direct_transfer_is_an_error_and_not_a_hang() {
    for mut case in cases(65536) {
        if case.align() == 1 {
            continue;
        }
        for (at, len) in [(1, 4096), (0, 4095), (100, 100)] {
            let done = case.run(WRITE, at, room_for(len));
            assert_eq!(errno(&done), Some(libc::EINVAL), "{}: {len} at {at}", case.name);
        }
        case.run(OpKind::Read, 0, room_for(4096)).result.unwrap();
    }
}

#[test]
fn a_read_only_file_refuses_writes_with_ebadf() {
    for kind in kinds() {
        for dir in [disk_dir(), std::path::Path::new("/dev/shm")] {
            let direct = kind == EngineKind::Native;
            let flags = if direct { libc::O_DIRECT } else { 0 };
            let temp = TempFile::new(dir, 4096);
            let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(&temp.0) else {
                println!("SKIPPED: {kind}: no O_DIRECT in {}", dir.display());
                continue;
            };
            let mut engine = IoEngine::new(kind, 4).unwrap();
            let file = engine.open(HostFile::new(file, direct).unwrap()).unwrap();
            let op = |kind, buf| Op { file: file.clone(), kind, at: 0, buf };
            for op in [
                op(WRITE, room_for(4096)),
                op(OpKind::WriteZeroes { len: 4096, unmap: true }, Buf::None),
                op(OpKind::Discard { len: 4096 }, Buf::None),
            ] {
                let what = op.kind;
                let done = run(&mut engine, op);
                assert_eq!(errno(&done), Some(libc::EBADF), "{kind} {what:?}");
            }
            // ftruncate says EINVAL of a descriptor that is not open for writing.
            let op = op(OpKind::Truncate, Buf::None);
            assert!(run(&mut engine, op).result.is_err(), "{kind}");
        }
    }
}

#[test]
fn a_full_engine_gives_the_op_back() {
    for mut case in cases(1 << 20) {
        let mut accepted = 0u64;
        let refused = loop {
            let buf = room_for(4096);
            let op = Op { file: case.file.clone(), kind: OpKind::Read, at: accepted * 4096, buf };
            if let Err(op) = case.engine.submit(op, Token(accepted)) {
                break op;
            }
            accepted += 1;
            assert_eq!(case.engine.in_flight() as u64, accepted);
        };
        assert_eq!((accepted, case.engine.room()), (u64::from(DEPTH), 0), "{}", case.name);
        assert_eq!(refused.buf.bytes(), 4096);
        let mut reaped = Reaped::default();
        while reaped.completions.len() < DEPTH as usize {
            case.engine.reap(&mut reaped, Wait::Forever).unwrap();
        }
        let mut tokens: Vec<u64> = reaped.completions.iter().map(|c| c.token.0).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..u64::from(DEPTH)).collect::<Vec<_>>(), "{}", case.name);
        assert_eq!((case.engine.in_flight(), case.engine.room()), (0, DEPTH as usize));
        case.engine.submit(refused, Token(0)).unwrap();
    }
}

#[test]
fn dropping_an_engine_waits_for_what_is_in_flight() {
    for mut case in cases(0) {
        let name = case.name.clone();
        for i in 0..u64::from(DEPTH) {
            let buf = owned(&vec![i as u8 + 1; 1 << 18]);
            let op = Op { file: case.file.clone(), kind: WRITE, at: i << 18, buf };
            case.engine.submit(op, Token(i)).unwrap();
        }
        let Case { engine, file, temp, sim, .. } = case;
        drop(engine);
        let (path, sim) = (temp.as_ref().map(|t| t.0.clone()), sim);
        let seen = match (&path, &sim) {
            (Some(path), _) => std::fs::read(path).unwrap(),
            (_, Some(sim)) => sim.contents(),
            _ => unreachable!(),
        };
        assert_eq!(seen.len(), (DEPTH as usize) << 18, "{name}");
        assert!(seen.chunks(1 << 18).enumerate().all(|(i, c)| c.iter().all(|b| *b == i as u8 + 1)));
        // A file outlives its engine.
        drop(file);
    }
}

#[test]
fn completions_can_be_seen_without_a_system_call() {
    for mut case in cases(65536) {
        let name = case.name.clone();
        assert!(!case.engine.has_completions(), "{name}");
        // Half of it lies beyond the end, so it takes two calls: the second must go to the kernel although nobody submits any more.
        let (at, buf) = (65536 - 4096, room_for(8192));
        let op = Op { file: case.file.clone(), kind: OpKind::Read, at, buf };
        case.engine.submit(op, Token(1)).unwrap();
        case.engine.flush_submissions().unwrap();
        let mut reaped = Reaped::default();
        while reaped.completions.is_empty() {
            if case.sim.is_none() {
                let before = case.engine.counters().syscalls;
                while !case.engine.has_completions() {
                    std::thread::yield_now();
                }
                assert_eq!(case.engine.counters().syscalls, before, "{name}");
            }
            case.engine.reap(&mut reaped, Wait::No).unwrap();
        }
        assert!(!case.engine.has_completions(), "{name}");
    }
}

/// Pages of the file's cache that are dirty or on their way to the disk: cachestat(2), Linux 6.5.
fn unsynced_pages(case: &Case) -> Option<u64> {
    let fd = case.file.host()?.file().as_raw_fd();
    let range = [0u64, 0];
    // nr_cache, nr_dirty, nr_writeback, nr_evicted, nr_recently_evicted
    let mut stat = [0u64; 5];
    // SAFETY: the kernel reads the two numbers of `range` and writes the five of `stat`.
    let done = unsafe { libc::syscall(451, fd, range.as_ptr(), stat.as_mut_ptr(), 0) };
    (done == 0).then(|| stat[1] + stat[2])
}

#[test]
fn fua_and_flush_leave_nothing_unsynced_in_the_page_cache() {
    // Long enough: a write that extends the file also zeroes the tail of its old last page, which its sync does not cover.
    for mut case in cases(1 << 20) {
        let facts = case.file.facts();
        if case.sim.is_some() || facts.direct || facts.ram_backed {
            continue;
        }
        let name = case.name.clone();
        let mem = memory(1 << 20);
        let Some(0) = unsynced_pages(&case) else {
            println!("SKIPPED: no cachestat");
            return;
        };
        case.run(FUA, 0, owned(&[1; 20000])).result.unwrap();
        assert_eq!(unsynced_pages(&case), Some(0), "{name}");
        let many = segments(&mem, &[(0, 5000), (20000, 5000)]);
        case.run(FUA, 40000, Buf::Guest(many)).result.unwrap();
        assert_eq!(unsynced_pages(&case), Some(0), "{name}");
        case.run(WRITE, 80000, owned(&[1; 20000])).result.unwrap();
        case.run(OpKind::Flush, 0, Buf::None).result.unwrap();
        assert_eq!(unsynced_pages(&case), Some(0), "{name}");
    }
}

#[test]
fn in_ram_large_writes_are_done_at_once_and_large_reads_beside_them() {
    const BYTES: usize = 1 << 20;
    let written = vec![5; BYTES];
    for mut case in cases(BYTES as u64) {
        if case.sim.is_some() || !case.file.facts().ram_backed || case.name.contains("native") {
            continue;
        }
        let name = case.name.clone();
        let inline = |case: &mut Case, op: Op| {
            let before = case.engine.counters().inline;
            // Something else is in flight, or would be: it is not waited for.
            case.engine.submit(op, Token(1)).unwrap();
            case.engine.counters().inline - before
        };
        let read = |case: &Case| Op {
            file: case.file.clone(),
            kind: OpKind::Read,
            at: 0,
            buf: room_for(BYTES),
        };
        let write = |case: &Case| Op { buf: owned(&written), kind: WRITE, ..read(case) };
        let (first, second, third) = (read(&case), read(&case), read(&case));
        let (before, after) = (write(&case), write(&case));
        assert_eq!(inline(&mut case, before), 1, "{name}");
        assert_eq!(inline(&mut case, first), 0, "{name}: the second in flight");
        assert_eq!(inline(&mut case, after), 1, "{name}: writes go one after the other anyway");
        let mut reaped = Reaped::default();
        let mut reap = |case: &mut Case, count: usize| {
            reaped.completions.clear();
            while reaped.completions.len() < count {
                case.engine.reap(&mut reaped, Wait::Forever).unwrap();
            }
            reaped.completions.iter().all(|done| done.result.is_ok())
        };
        assert!(reap(&mut case, 3), "{name}");
        assert_eq!(inline(&mut case, second), 1, "{name}: it is alone");
        assert!(reap(&mut case, 1), "{name}");
        case.engine.read_aside();
        assert_eq!(inline(&mut case, third), 0, "{name}: its owner has something else to do");
        assert!(reap(&mut case, 1), "{name}");
    }
}

#[test]
fn cached_reads_are_done_at_once_and_cold_ones_are_not() {
    for mut case in cases(0) {
        let facts = case.file.facts();
        let Some(file) = case.file.host().map(|host| host.file().as_raw_fd()) else { continue };
        if facts.direct || facts.ram_backed {
            continue;
        }
        let name = case.name.clone();
        case.run(FUA, 0, owned(&[5; 8192])).result.unwrap();
        let inline = |case: &mut Case| {
            let before = case.engine.counters().inline;
            let done = case.run(OpKind::Read, 0, room_for(4096));
            assert_eq!(bytes_of(&done.buf), [5; 4096], "{name}");
            case.engine.counters().inline - before
        };
        assert_eq!(inline(&mut case), 1, "{name}: it is in the page cache");
        // SAFETY: an advice on our own descriptor; touches no memory.
        let advised = unsafe { libc::posix_fadvise(file, 0, 0, libc::POSIX_FADV_DONTNEED) };
        assert_eq!(advised, 0);
        assert_eq!(inline(&mut case), 0, "{name}: it is not");
        // The next try is left out, the one after it finds what the read before has cached.
        let tries: u64 = (0..3).map(|_| inline(&mut case)).sum();
        assert_eq!(tries, 2, "{name}");
    }
}

#[test]
fn one_batch_is_one_system_call() {
    for kind in [EngineKind::IoUring, EngineKind::Native] {
        let temp = TempFile::new(disk_dir(), 1 << 20);
        let (Ok(mut engine), Ok(file)) = (IoEngine::new(kind, DEPTH), temp.open(true)) else {
            println!("SKIPPED: {kind}: no such engine, or no O_DIRECT");
            continue;
        };
        let file = engine.open(file).unwrap();
        let before = engine.counters();
        for i in 0..u64::from(DEPTH) {
            let op =
                Op { file: file.clone(), kind: OpKind::Read, at: i * 4096, buf: room_for(4096) };
            engine.submit(op, Token(i)).unwrap();
        }
        assert_eq!(engine.counters().syscalls, before.syscalls, "{kind}: submit made a call");
        engine.flush_submissions().unwrap();
        assert_eq!(engine.counters().syscalls, before.syscalls + 1, "{kind}");
        assert_eq!(engine.counters().count(SysKind::Preadv), u64::from(DEPTH));
    }
}

#[test]
fn aio_refuses_buffered_files_and_sim_refuses_real_ones() {
    let temp = TempFile::new(disk_dir(), 4096);
    let mut engines = vec![IoEngine::sim(0, 1).unwrap()];
    engines.extend(IoEngine::new(EngineKind::Native, 1));
    for mut engine in engines {
        let error = engine.open(temp.open(false).unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
    }
    assert!(temp.open(false).is_ok());
    let file = std::fs::File::open(&temp.0).unwrap();
    assert_eq!(HostFile::new(file, true).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    for (depth, name) in [(0, "io_uring"), (32769, "threads")] {
        let error = IoEngine::new(name.parse().unwrap(), depth).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    assert!("aio".parse::<EngineKind>().is_err());
}

#[test]
fn a_closed_file_leaves_the_ring_at_once() {
    let Ok(mut engine) = IoEngine::new(EngineKind::IoUring, 4) else {
        println!("SKIPPED: no io_uring");
        return;
    };
    let temp = TempFile::new(disk_dir(), 4096);
    let lock = |file: &HostFile| io_engine::lock_image(file.file(), false);
    // More files than the ring's table has places for, one after the other; each one's lock ends with it.
    for round in 0..600 {
        let host = temp.open(false).unwrap();
        lock(&host).unwrap_or_else(|e| panic!("round {round}: {e}"));
        let file = engine.open(host).unwrap();
        let op = Op { file, kind: OpKind::Read, at: 0, buf: room_for(512) };
        run(&mut engine, op).result.unwrap();
    }
    // And more at the same time.
    let files: Vec<_> = (0..300).map(|_| engine.open(temp.open(false).unwrap()).unwrap()).collect();
    for file in &files {
        let op = Op { file: file.clone(), kind: FUA, at: 0, buf: room_for(512) };
        run(&mut engine, op).result.unwrap();
    }
}

/// A tmpfs of 1 MiB, if this machine lets us mount one.
struct SmallDir(std::path::PathBuf);

impl SmallDir {
    fn new() -> Option<SmallDir> {
        let dir = disk_dir().join(format!("full-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut mount = std::process::Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&dir).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(SmallDir(dir))
    }
}

impl Drop for SmallDir {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_full_file_system_says_enospc_and_the_engine_goes_on() {
    let Some(dir) = SmallDir::new() else {
        println!("SKIPPED: a small tmpfs cannot be mounted here");
        return;
    };
    for kind in [EngineKind::IoUring, EngineKind::Threads] {
        let Ok(mut engine) = IoEngine::new(kind, 4) else { continue };
        let temp = TempFile::new(&dir.0, 0);
        let file = engine.open(temp.open(false).unwrap()).unwrap();
        let op = |kind, buf| Op { file: file.clone(), kind, at: 0, buf };
        for _ in 0..2 {
            let done = run(&mut engine, op(WRITE, room_for(2 << 20)));
            assert_eq!(errno(&done), Some(libc::ENOSPC), "{kind}");
        }
        run(&mut engine, op(OpKind::Truncate, Buf::None)).result.unwrap();
        let keep = OpKind::WriteZeroes { len: 2 << 20, unmap: false };
        assert_eq!(errno(&run(&mut engine, op(keep, Buf::None))), Some(libc::ENOSPC), "{kind}");
        run(&mut engine, op(WRITE, room_for(4096))).result.unwrap();
    }
}

/// A loop device over a file, if this machine lets us have one.
struct Loop {
    path: String,
    _file: TempFile,
}

impl Loop {
    fn new(len: u64) -> Option<Loop> {
        let file = TempFile::new(disk_dir(), len);
        let made =
            std::process::Command::new("losetup").args(["-f", "--show"]).arg(&file.0).output();
        let made = made.ok().filter(|output| output.status.success())?;
        let path = String::from_utf8(made.stdout).ok()?.trim().to_owned();
        Some(Loop { path, _file: file })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["-d", &self.path]).status();
    }
}

#[test]
fn a_block_device_is_read_written_zeroed_and_discarded() {
    for kind in kinds() {
        let Some(device) = Loop::new(8 << 20) else {
            println!("SKIPPED: no loop device");
            return;
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_DIRECT);
        let host = HostFile::new(options.open(&device.path).unwrap(), true).unwrap();
        let facts = host.facts();
        assert!(facts.is_block_device && !facts.ram_backed, "{facts:?}");
        assert!((1..=4096).contains(&facts.offset_align), "{facts:?}");
        assert_eq!(host.len().unwrap(), 8 << 20);
        let mut engine = IoEngine::new(kind, DEPTH).unwrap();
        let file = engine.open(host).unwrap();
        let op = |kind, at, buf| Op { file: file.clone(), kind, at, buf };
        run(&mut engine, op(FUA, 0, owned(&[3; 65536]))).result.unwrap();
        for kind in [
            OpKind::WriteZeroes { len: 8192, unmap: false },
            OpKind::WriteZeroes { len: 8192, unmap: true },
            OpKind::Discard { len: 8192 },
        ] {
            run(&mut engine, op(WRITE, 4096, owned(&[3; 16384]))).result.unwrap();
            run(&mut engine, op(kind, 8192, Buf::None)).result.unwrap();
            let seen = bytes_of(&run(&mut engine, op(OpKind::Read, 0, room_for(65536))).buf);
            assert!(seen[..8192].iter().chain(&seen[16384..]).all(|b| *b == 3), "{kind:?}");
            if kind != (OpKind::Discard { len: 8192 }) {
                assert!(seen[8192..16384].iter().all(|b| *b == 0), "{kind:?}");
            }
        }
        run(&mut engine, op(OpKind::Flush, 0, Buf::None)).result.unwrap();
        // The end of the device: zeroes to a reader, no space to a writer.
        let done = run(&mut engine, op(OpKind::Read, (8 << 20) - 4096, room_for(8192)));
        done.result.unwrap();
        let done = run(&mut engine, op(WRITE, 8 << 20, room_for(4096)));
        assert_eq!(errno(&done), Some(libc::ENOSPC));
        assert!(run(&mut engine, op(OpKind::Truncate, 4096, Buf::None)).result.is_err());
    }
}
