//! For tests: what a power cut at any moment of a run may leave of a simulated disk.
#![allow(clippy::cast_possible_truncation)]

use io_engine::Rng;
use io_engine::sim::{CrashPick, LogEvent, SimDisk};
use std::collections::BTreeSet;

/// Up to so many choices, all are made.
const ALL_UP_TO: usize = 6;
/// Seeded states at a cut with more, besides nothing, everything, and each choice by itself and left out.
const SEEDS: u64 = 24;
/// With more atoms than this, not each of them is tried by itself.
const EACH_UP_TO: usize = 24;

/// Calls `judge` with every state (or, where there are too many, a choice of them) that a cut during the run leaves. `begin` is the disk before
/// the run, `log` what was done to it. Each state is a disk of its own. Gives how many there were.
pub fn each_state(begin: &SimDisk, log: &[LogEvent], mut judge: impl FnMut(SimDisk)) -> usize {
    let disk = begin.fork();
    let mut seen = BTreeSet::new();
    let mut rng = Rng::new(log.len() as u64);
    for event in std::iter::once(None).chain(log.iter().map(Some)) {
        if let Some(event) = event {
            disk.replay(std::slice::from_ref(event));
        }
        let remains = disk.remains();
        for pick in picks(remains.atoms().len(), remains.lengths().len(), &mut rng) {
            let state = remains.disk(&pick);
            if seen.insert(state.durable_digest()) {
                judge(state);
            }
        }
    }
    seen.len()
}

fn picks(atoms: usize, lengths: usize, rng: &mut Rng) -> Vec<CrashPick> {
    let mut picks = vec![CrashPick::Nothing, CrashPick::Everything];
    let mut add = |mask: Vec<bool>, lengths: &[Option<usize>]| {
        for length in lengths {
            picks.push(CrashPick::Mask { atoms: mask.clone(), length: *length });
        }
    };
    let choices: Vec<Option<usize>> = std::iter::once(None).chain((0..lengths).map(Some)).collect();
    if atoms <= ALL_UP_TO {
        for bits in 0..1u32 << atoms {
            add((0..atoms).map(|n| bits >> n & 1 == 1).collect(), &choices);
        }
        return picks;
    }
    if atoms <= EACH_UP_TO {
        for one in 0..atoms {
            let length = [choices[rng.index(choices.len())]];
            add((0..atoms).map(|n| n == one).collect(), &length);
            add((0..atoms).map(|n| n != one).collect(), &length);
        }
    }
    picks.extend((0..SEEDS).map(|_| CrashPick::Seed(rng.bits())));
    picks
}
