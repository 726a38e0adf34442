//! Crash states of our QED driver: every state that a power cut may leave, at every moment of many runs, is opened, checked and read.
//!
//! `STATES=1000000 cargo test --release -p sim --test qed_crash -- --nocapture` is a full run; without the variable it is 50,000 states.
//! `SEED=n` is another run.
#![allow(clippy::disallowed_methods, clippy::cast_possible_truncation)]

mod driver;
mod judge;
mod workload;

use driver::Machine;
use io_engine::Rng;
use io_engine::sim::{Change, LogEvent};
use judge::judge_all;
use workload::{Ask, Run, Setup, alphabet, random, record};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Judges runs until there were enough states; each workload comes from `next`.
fn judge_many(name: &str, states: u64, mut next: impl FnMut(&mut Rng) -> (Setup, Vec<Ask>)) {
    let mut rng = Rng::new(number("SEED", 1));
    let (mut total, mut deeper, mut workloads, mut sampled) = (0, 0, 0, 0);
    while total < states {
        let (setup, asks) = next(&mut rng);
        let seed = rng.bits();
        let run = record(setup, &asks, seed);
        // Files that a machine has opened stay with it: a new one for each workload.
        let machine = Machine::new(seed);
        let (result, within) = judge_all(&run, &run.log, &machine, 4096, seed);
        let stats = result.unwrap_or_else(|failure| {
            panic!("{setup:?}\n{asks:?}\nseed {seed}: {failure:?}");
        });
        (total, deeper) = (total + stats.states, deeper + within);
        workloads += 1;
        sampled += stats.sampled_cuts;
    }
    println!(
        "{name}: {workloads} workloads, {total} states, {deeper} more within recoveries, {sampled} cuts sampled: no violation"
    );
}

#[test]
fn no_power_cut_breaks_a_short_workload() {
    judge_many("short workloads", number("STATES", 50_000) / 2, |rng| {
        let setup = Setup::any(rng);
        let letters = alphabet(&setup);
        let count = 1 + rng.index(3);
        (setup, (0..count).map(|_| letters[rng.index(letters.len())].clone()).collect())
    });
}

#[test]
fn no_power_cut_breaks_a_long_workload() {
    judge_many("long workloads", number("STATES", 50_000) / 2, |rng| {
        let setup = Setup::any(rng);
        let asks = random(&setup, rng);
        (setup, asks)
    });
}

/// The log as it would be if the `nth` sync between two places had done nothing.
fn without_sync(run: &Run, (from, to): (usize, usize), nth: usize) -> Vec<LogEvent> {
    let mut log = run.log.clone();
    let syncs = log[from..to].iter().enumerate().filter_map(|(at, event)| match event {
        LogEvent::Issue { change: Change::Flush, .. } => Some(from + at),
        _ => None,
    });
    let at = syncs.collect::<Vec<_>>()[nth];
    if let LogEvent::Issue { change, .. } = &mut log[at] {
        *change = Change::Read { at: 0, len: 0 };
    }
    log
}

/// Each sync of a commit is needed: without it, some power cut breaks something.
#[test]
fn each_sync_that_is_left_out_is_caught() {
    let base = Setup {
        bytes: 24 * workload::CLUSTER,
        with_backing: false,
        on_device: false,
        write_through: false,
        prepared: true,
        closed: false,
    };
    let c = |n: u64| n * workload::CLUSTER;
    let (write, reuse) = (Ask::Write(c(6), 512), Ask::Discard(c(0), c(2)));
    let backed = Setup { with_backing: true, ..base };
    let device = Setup { on_device: true, ..base };
    let cases: [(&str, Setup, Vec<Ask>); 4] = [
        ("over a backing file", backed, vec![write.clone(), Ask::Flush]),
        ("on a block device", device, vec![write.clone(), Ask::Flush]),
        ("the first table", Setup { prepared: false, ..base }, vec![write.clone(), Ask::Flush]),
        (
            "space used again",
            base,
            vec![reuse, Ask::Flush, Ask::Rest, Ask::Write(c(8), c(2)), Ask::Flush],
        ),
    ];
    for (name, setup, asks) in cases {
        let run = record(setup, &asks, 7);
        let flush = *run.flushes.last().unwrap();
        let machine = Machine::new(7);
        let (sound, _) = judge_all(&run, &run.log, &machine, u64::MAX, 7);
        sound.unwrap_or_else(|failure| panic!("{name}: {failure:?}"));
        for nth in 0..2 {
            let log = without_sync(&run, flush, nth);
            let (result, _) = judge_all(&run, &log, &machine, u64::MAX, 7);
            let failure = result.expect_err(&format!("{name}: sync {nth} is not needed"));
            println!("{name}, without sync {nth}: {}", failure.message);
        }
    }
}
