//! The enumerator against brute force: a crash at every position of a log, with every mask and every length.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use super::*;
use io_engine::sim::SimOptions;
use std::rc::Rc;

type States = BTreeSet<Vec<u8>>;

fn write(at: u64, bytes: &[u8]) -> Change {
    Change::Write { at, data: Rc::from(bytes), dsync: false }
}

fn issue(op: u64, change: Change) -> LogEvent {
    LogEvent::Issue { op, change }
}

fn complete(op: u64, change: &Change) -> LogEvent {
    let applied = match change {
        Change::Write { data, .. } => data.len() as u64,
        _ => 0,
    };
    LogEvent::Complete { op, result: applied as i32, applied, lost: false }
}

/// A log in which each change completes before the next is issued.
fn one_by_one(changes: &[Change]) -> Vec<LogEvent> {
    let ops = (1..).step_by(2).zip(changes);
    ops.flat_map(|(op, change)| [issue(op, change.clone()), complete(op, change)]).collect()
}

fn disk(len: u64) -> SimDisk {
    SimDisk::new(SimOptions { len, ..SimOptions::default() })
}

fn visited(start: &SimDisk, log: &[LogEvent], options: &Options<'_>) -> (States, Stats) {
    let mut states = States::new();
    let stats = enumerate(start, log, options, |state| {
        states.insert(state.disk.contents());
        let again = start.fork();
        again.replay(&log[..state.position]);
        again.crash(state.pick);
        assert_eq!(again.contents(), state.disk.contents(), "the pick leads to the state");
        Ok(())
    });
    (states, stats.unwrap())
}

/// Every state at every position.
fn brute_force(start: &SimDisk, log: &[LogEvent]) -> States {
    let mut states = States::new();
    for position in 0..=log.len() {
        let disk = start.fork();
        disk.replay(&log[..position]);
        let remains = disk.remains();
        let atoms = remains.atoms().len();
        for mask in 0..1u32 << atoms {
            let atoms: Vec<bool> = (0..atoms).map(|atom| mask >> atom & 1 == 1).collect();
            for length in (0..remains.lengths().len()).map(Some).chain([None]) {
                let pick = CrashPick::Mask { atoms: atoms.clone(), length };
                states.insert(remains.disk(&pick).contents());
            }
        }
    }
    states
}

/// A few overlapping changes of a few sectors, in flight together, completing in any order, some failing or coming short.
fn random_log(rng: &mut Rng) -> Vec<LogEvent> {
    let (mut log, mut in_flight) = (Vec::new(), Vec::new());
    let mut to_issue = 3 + rng.below(5);
    while to_issue > 0 || !in_flight.is_empty() {
        if to_issue > 0 && (in_flight.is_empty() || rng.chance(600)) {
            to_issue -= 1;
            let op = log.len() as u64 + 1;
            let at = 256 * rng.below(6);
            let len = 256 * (1 + rng.below(3));
            let change = match rng.below(10) {
                0 => Change::Truncate { len: at },
                1 => Change::Fallocate { mode: 3, at, len },
                2 | 3 => Change::Flush,
                4 => Change::Read { at, len },
                _ => {
                    let data = (0..len).map(|byte| (op * 8 + byte / 256) as u8).collect();
                    Change::Write { at, data, dsync: rng.chance(200) }
                }
            };
            log.push(issue(op, change.clone()));
            in_flight.push((op, change));
        } else {
            let (op, change) = in_flight.swap_remove(rng.index(in_flight.len()));
            let mut event = complete(op, &change);
            if let LogEvent::Complete { result, applied, lost, .. } = &mut event
                && rng.chance(150)
            {
                *applied = rng.below(*applied + 1);
                *result = if rng.chance(500) { -5 } else { *applied as i32 };
                *lost = *result < 0 && change == Change::Flush;
            }
            log.push(event);
        }
    }
    log
}

#[test]
fn the_chosen_cuts_give_every_state_of_every_position_and_no_other() {
    let mut rng = Rng::new(2);
    let options = Options { promise: &|_| 0, ..Options::default() };
    let (mut judged, mut positions, mut cuts) = (0, 0, 0);
    for run in 0..400 {
        let start = SimDisk::with_contents(SimOptions::default(), &[1; 700]);
        let log = random_log(&mut rng);
        let most = (0..=log.len()).map(|position| {
            let disk = start.fork();
            disk.replay(&log[..position]);
            disk.pending_atoms().len()
        });
        if most.max() > Some(9) {
            continue;
        }
        let (states, stats) = visited(&start, &log, &options);
        assert_eq!(states, brute_force(&start, &log), "run {run}: {log:#?}");
        assert_eq!(stats.states, states.len() as u64, "run {run}: each once");
        assert_eq!((stats.exhaustive_cuts, stats.ran_out), (stats.cuts, false));
        judged += 1;
        positions += log.len() as u64 + 1;
        cuts += stats.cuts;
    }
    assert!(judged > 200, "{judged} logs were small enough");
    assert!(cuts * 2 < positions, "{cuts} of {positions} positions");
}

#[test]
fn a_state_is_judged_again_when_more_is_promised() {
    let log = one_by_one(&[write(0, &[1; 512]), Change::Flush, Change::Flush]);
    let promise = |position: usize| u64::from(position >= 5);
    let count = |promise: &dyn Fn(usize) -> u64| {
        let options = Options { promise, ..Options::default() };
        visited(&disk(512), &log, &options).1
    };
    let stats = count(&|_| 0);
    assert_eq!((stats.cuts, stats.states, stats.duplicates), (3, 2, 2));
    assert_eq!(count(&promise).states, 3);
    assert_eq!(count(&|position| position as u64).states, 4);
}

#[test]
fn data_of_an_op_is_old_new_or_torn_and_metadata_is_free() {
    let log = one_by_one(&[write(0, &[1; 512]), write(512, &[2; 4096]), write(4608, &[3; 512])]);
    let of_data = |at: u64| at < 512;
    let options = Options { is_metadata: &of_data, ..Options::default() };
    let (states, stats) = visited(&disk(5120), &log, &options);
    assert_eq!((states.len(), stats.exhaustive_cuts), (2 * 4 * 2, 1));
    let middles: BTreeSet<&[u8]> = states.iter().map(|bytes| &bytes[512..4608]).collect();
    let torn = |first: u8, last: u8| [[first; 2048], [last; 2048]].concat();
    let expected = [torn(0, 0), torn(2, 2), torn(2, 0), torn(0, 2)];
    assert_eq!(middles, expected.iter().map(|bytes| &bytes[..]).collect());
}

#[test]
fn too_much_data_does_not_keep_metadata_from_being_exhaustive() {
    let mut changes: Vec<Change> = (0..4).map(|at| write(at * 512, &[1; 512])).collect();
    changes.extend((0..6).map(|op| write(2048 + op * 1024, &[2; 1024])));
    let options =
        Options { exhaustive_bits: 6, is_metadata: &|at| at < 2048, ..Options::default() };
    let (states, stats) = visited(&disk(8192), &one_by_one(&changes), &options);
    assert_eq!((stats.metadata_cuts, stats.cuts), (1, 1));
    let heads: BTreeSet<&[u8]> = states.iter().map(|bytes| &bytes[..2048]).collect();
    assert_eq!(heads.len(), 16);
    assert!(states.len() > 32, "each with old, new and mostly some other data: {}", states.len());
}

#[test]
fn what_is_too_much_is_sampled_with_the_extremes_first() {
    let changes: Vec<Change> = (0..40).map(|at| write(at * 512, &[at as u8 + 1; 512])).collect();
    let log = one_by_one(&changes);
    let options = Options { samples: 100, seed: 5, ..Options::default() };
    let (states, stats) = visited(&disk(40 * 512), &log, &options);
    assert_eq!((stats.sampled_cuts, stats.atoms_max), (1, 40));
    assert_eq!(visited(&disk(40 * 512), &log, &options).0, states, "the seed decides");
    let kept = |bytes: &Vec<u8>| bytes.chunks(512).filter(|sector| sector[0] != 0).count();
    let of = |count: usize| states.iter().filter(|bytes| kept(bytes) == count).count();
    assert_eq!([of(0), of(1), of(2), of(39), of(40)], [1, 40, 780, 40, 1]);
    assert!(of(38) >= 780);
    assert!(stats.states > 2 + 80 + 2 * 780 + 60, "{stats:?}");
}

#[test]
fn the_budget_is_shared_by_the_cuts_and_kept() {
    let epoch = |byte: u8| {
        let writes = (0..10).map(move |at| write(at * 512, &[byte; 512]));
        writes.chain([Change::Flush])
    };
    let changes: Vec<Change> = (1..5).flat_map(epoch).collect();
    let options = Options { states_max: 500, ..Options::default() };
    let mut positions = BTreeMap::new();
    let stats = enumerate(&disk(5120), &one_by_one(&changes), &options, |state| {
        *positions.entry(state.position).or_insert(0) += 1;
        Ok(())
    })
    .unwrap();
    // Four flushes, at which there are ten atoms, and the end, at which there are none.
    assert_eq!((stats.states, stats.ran_out, stats.sampled_cuts), (401, true, 4));
    assert_eq!(positions.len(), 5);
    let counts: Vec<u32> = positions.into_values().collect();
    assert_eq!(counts, [100, 100, 100, 100, 1]);
}

#[test]
fn a_refused_state_is_reduced_and_can_be_made_again() {
    let changes: Vec<Change> = (0..6).map(|at| write(at * 512, &[1; 512])).collect();
    let log = one_by_one(&changes);
    let start = disk(3072);
    let judge = |disk: &SimDisk| {
        let bytes = disk.contents();
        match (bytes[512], bytes[1024], bytes[2560]) {
            (0, 1, 1) => Err("3 and 6 without 2".to_owned()),
            _ => Ok(()),
        }
    };
    let failure =
        enumerate(&start, &log, &Options::default(), |state| judge(&state.disk)).unwrap_err();
    assert_eq!(failure.message, "3 and 6 without 2");
    assert_eq!(failure.position, log.len());
    let atoms = vec![false, false, true, false, false, true];
    assert_eq!(failure.pick, CrashPick::Mask { atoms, length: None });
    start.replay(&log[..failure.position]);
    start.crash(&failure.pick);
    assert!(judge(&start).is_err());
}
