//! Traced requests: each passes every stage once, and what its stages took adds up to what it took.

use super::super::trace::{Path, RequestType, Stage, Trace, Tracer};
use super::rig::{DEPTH, Rig, T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT, T_WRITE_ZEROES, range};
use block::{CacheMode, OpenOptions};
use io_engine::sim::{Rates, SimDisk, SimOptions};
use io_engine::{EngineKind, HostFile, IoEngine, Rng};
use iothread::{Clock, IoContext};
use rustix::fs::{MemfdFlags, memfd_create};
use std::num::NonZeroU32;
use std::rc::Rc;
use virtio_blk::Features;

const BYTES: u64 = 1 << 20;
/// What the clock of a simulated rig advances by in each turn.
const TURN_NS: u64 = 1000;

fn sim_rig(seed: u64, align: u32, one_in: u32) -> Rig {
    let disk = SimDisk::new(SimOptions { len: BYTES, align, ..SimOptions::default() });
    disk.set_rates(Rates { eintr: 30, eagain: 30, short: 100 });
    let engine = IoEngine::sim(seed, 32).unwrap();
    let options = OpenOptions::default();
    Rig::traced(engine, BYTES, &options, NonZeroU32::new(one_in), |context| {
        context.with_engine(|engine| engine.open_sim(&disk)).unwrap()
    })
}

/// A file in RAM, where the engine does everything at once.
fn file_rig(kind: EngineKind, cache: CacheMode) -> Rig {
    let file = std::fs::File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(BYTES).unwrap();
    let engine = IoEngine::new(kind, 32).unwrap();
    let options = OpenOptions { cache, ..OpenOptions::default() };
    Rig::traced(engine, BYTES, &options, NonZeroU32::new(1), |context| {
        context.open(HostFile::new(file, false).unwrap()).unwrap()
    })
}

fn turn(rig: &mut Rig) -> usize {
    rig.now.set(rig.now.get() + TURN_NS);
    rig.turn().len()
}

/// Sends so many requests, up to 16 in flight, and waits for their answers. Gives how many were of each type.
fn load(rig: &mut Rig, rng: &mut Rng, requests: u64) -> [u64; 4] {
    let mut sent = [0; 4];
    let mut owed = 0;
    while owed > 0 || sent.iter().sum::<u64>() < requests {
        for _ in 0..rng.below(DEPTH + 1) {
            if sent.iter().sum::<u64>() == requests {
                break;
            }
            let sector = rng.below(BYTES / 512 - 8);
            let (kind, data, read_bytes, of) = match rng.below(8) {
                0..=2 => (T_IN, vec![], 4096, RequestType::Read),
                3..=4 => (T_OUT, vec![7; 4096], 0, RequestType::Write),
                5 => (T_FLUSH, vec![], 0, RequestType::Flush),
                6 if rng.chance(500) => (T_GET_ID, vec![], 20, RequestType::Other),
                6 => (99, vec![], 512, RequestType::Other),
                _ if rng.chance(500) => (T_DISCARD, range(sector, 3, false), 0, RequestType::Other),
                _ => (T_WRITE_ZEROES, range(sector, 5, false), 0, RequestType::Other),
            };
            if rig.submit(kind, sector, &data, read_bytes).is_none() {
                break;
            }
            owed += 1;
            sent[of as usize] += 1;
        }
        owed -= turn(rig);
    }
    sent
}

fn trace(rig: &Rig) -> Trace {
    rig.state.trace.as_ref().unwrap().read()
}

fn sum(path: &Path, stage: Stage) -> u64 {
    path.stages[stage as usize].sum_ns()
}

/// Every sample is in every stage, and the stages add up.
fn check(path: &Path) {
    assert_eq!(path.total.count(), path.sampled);
    for (stage, times) in Stage::ALL.iter().zip(&path.stages) {
        assert_eq!(times.count(), path.sampled, "{stage:?}");
    }
    let stages: u64 = path.stages.iter().map(|times| times.sum_ns()).sum();
    assert_eq!(stages, path.total.sum_ns());
}

#[test]
fn every_request_is_in_every_stage_once_and_the_stages_add_up() {
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        // Of blocks of 4 KiB most requests are a part, and become tasks.
        let align = if seed % 2 == 0 { 512 } else { 4096 };
        let mut rig = sim_rig(seed, align, 1);
        let sent = load(&mut rig, &mut rng, 400);
        let trace = trace(&rig);
        for (path, sent) in trace.types.iter().zip(sent) {
            assert_eq!(path.sampled, sent, "seed {seed}");
            check(path);
        }
        let [read, write, flush, _] = &trace.types;
        assert_eq!(flush.tasks, flush.sampled, "seed {seed}");
        let tasks = read.tasks + write.tasks;
        match align {
            512 => assert_eq!(tasks, 0, "seed {seed}"),
            _ => assert!(tasks > 100, "seed {seed}: {tasks}"),
        }
        check(&trace.all());
    }
}

#[test]
fn the_time_of_the_host_is_in_its_stage() {
    // The simulated host answers in a later turn than the one that submits; of all the rest, each is done within one.
    for align in [512, 4096] {
        let mut rig = sim_rig(1, align, 1);
        for request in 0..50 {
            rig.submit(T_OUT, 1 + 9 * request, &[7; 512], 0).unwrap();
            while turn(&mut rig) == 0 {}
        }
        let Trace { types: [_, write, ..], .. } = trace(&rig);
        check(&write);
        assert_eq!(write.sampled, 50);
        assert_eq!(write.tasks, if align == 512 { 0 } else { 50 });
        assert_eq!(sum(&write, Stage::Completed), write.total.sum_ns(), "align {align}");
        assert!(write.total.sum_ns() > 0);
    }
}

#[test]
fn what_the_host_has_in_ram_is_done_at_once_and_its_submission_takes_no_time() {
    for kind in [EngineKind::IoUring, EngineKind::Threads] {
        if let Err(error) = IoEngine::new(kind, 8) {
            println!("SKIPPED: {kind}: {error}");
            assert!(std::env::var_os("CI").is_none(), "no test may be skipped here");
            continue;
        }
        let mut rig = file_rig(kind, CacheMode::Writeback);
        for request in 0..20 {
            assert_eq!(rig.request(T_OUT, request * 8, &[9; 4096], 0).status, 0);
            assert_eq!(rig.read(request * 8, 4096), [9; 4096]);
        }
        let Trace { types: [read, write, flush, other], .. } = trace(&rig);
        for path in [&read, &write] {
            check(path);
            assert_eq!((path.sampled, path.at_once, path.tasks), (20, 20, 0), "{kind}");
            assert_eq!(sum(path, Stage::Submitted), 0);
            assert!(sum(path, Stage::Completed) > 0);
            // Nobody is to be notified here.
            assert_eq!(sum(path, Stage::Notified), 0);
        }
        assert_eq!((flush.sampled, other.sampled), (0, 0));
    }
}

#[test]
fn one_in_so_many_is_traced_at_every_place_of_a_batch() {
    let mut rig = sim_rig(3, 512, 8);
    let sent: u64 = load(&mut rig, &mut Rng::new(3), 8000).iter().sum();
    let sampled = trace(&rig).all().sampled;
    assert!((sent / 10..sent / 6).contains(&sampled), "{sampled} of {sent}");

    let recorders = rig.state.trace.as_ref().unwrap();
    let engine = IoEngine::sim(1, 8).unwrap();
    let context = IoContext::new(engine, 8, Clock::Simulated(Rc::default()));
    let mut tracer = Tracer::new(recorders, 0, 64, 16, &context).unwrap();
    let mut at = [0; 16];
    for request in 0..16_000 {
        if tracer.picks(0) {
            at[request % 16] += 1;
        }
    }
    assert!(at.iter().all(|picked| (60..250).contains(picked)), "{at:?}");
}

#[test]
fn without_a_trace_nothing_is_kept() {
    let disk = SimDisk::new(SimOptions { len: BYTES, ..SimOptions::default() });
    let engine = IoEngine::sim(1, 32).unwrap();
    let options = OpenOptions::default();
    let mut rig = Rig::new(engine, BYTES, &options, Features::empty(), |context| {
        context.with_engine(|engine| engine.open_sim(&disk)).unwrap()
    });
    load(&mut rig, &mut Rng::new(1), 100);
    assert!(rig.state.trace.is_none());
}
