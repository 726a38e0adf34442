//! Crash states of our drivers: every state that a power cut may leave, at every moment of many runs, is opened, checked and read.
//!
//! ```text
//!   setup (format, geometry, disk) --start--> image --workload--> log, history --judge--> each state: checker, driver, second life
//! ```
//!
//! `cargo xtask crash` is a full run, of a million states for each format; without `STATES=n` in the environment it is 50,000. `SEED=n` is
//! another run.
#![allow(clippy::disallowed_methods, clippy::cast_possible_truncation)]

mod barriers;
mod driver;
mod full;
mod judge;
mod setup;
mod snapshot;
mod workload;

use driver::Machine;
use io_engine::Rng;
use judge::judge_all;
use setup::{Geometry, Kind, Setup};
use workload::{Ask, LETTERS, alphabet, random, record};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// How many states a test judges that has `percent` of those of its format.
fn states(percent: u64) -> u64 {
    number("STATES", 50_000) * percent / 100
}

/// Judges runs until there were enough states, or no workload is left; each comes from `next`.
fn judge_many(
    name: &str,
    states: u64,
    mut next: impl FnMut(&mut Rng) -> Option<(Setup, Vec<Ask>)>,
) {
    let mut rng = Rng::new(number("SEED", 1));
    let (mut total, mut deeper, mut workloads, mut sampled) = (0, 0, 0, 0);
    let mut is_all = false;
    while total < states {
        let Some((setup, asks)) = next(&mut rng) else {
            is_all = true;
            break;
        };
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
    let all = if is_all { " (all there are)" } else { "" };
    println!(
        "{name}: {workloads} workloads{all}, {total} states, {deeper} more within second lives, {sampled} cuts sampled: no violation"
    );
}

/// Up to three letters of the alphabet.
fn short(setup: Setup, rng: &mut Rng) -> (Setup, Vec<Ask>) {
    let letters = alphabet(&setup);
    let count = 1 + rng.index(3);
    (setup, (0..count).map(|_| letters[rng.index(letters.len())].clone()).collect())
}

fn long(setup: Setup, rng: &mut Rng) -> (Setup, Vec<Ask>) {
    let asks = random(&setup, rng);
    (setup, asks)
}

#[test]
fn no_power_cut_breaks_a_short_workload_on_qed() {
    judge_many("QED, short", states(50), |rng| Some(short(Setup::any_qed(rng), rng)));
}

#[test]
fn no_power_cut_breaks_a_long_workload_on_qed() {
    judge_many("QED, long", states(50), |rng| Some(long(Setup::any_qed(rng), rng)));
}

#[test]
fn no_power_cut_breaks_a_short_workload_on_qcow2() {
    judge_many("qcow2, short", states(45), |rng| Some(short(Setup::any_qcow2(rng), rng)));
}

#[test]
fn no_power_cut_breaks_a_long_workload_on_qcow2() {
    judge_many("qcow2, long", states(45), |rng| Some(long(Setup::any_qcow2(rng), rng)));
}

/// All workloads of up to three of the first letters, on each of some images, in an order that the seed chooses.
#[test]
fn no_power_cut_breaks_any_workload_of_three_requests_on_qcow2() {
    let setups = some_geometries();
    let per_setup = LETTERS + LETTERS.pow(2) + LETTERS.pow(3);
    let mut left: Vec<usize> = (0..setups.len() * per_setup).collect();
    judge_many("qcow2, all workloads of three", states(30), |rng| {
        if left.is_empty() {
            return None;
        }
        let number = left.swap_remove(rng.index(left.len()));
        let (setup, mut number) = (setups[number / per_setup], number % per_setup);
        let mut len = 1;
        while number >= LETTERS.pow(len) {
            number -= LETTERS.pow(len);
            len += 1;
        }
        let letters = alphabet(&setup);
        let asks = (0..len).map(|place| letters[number / LETTERS.pow(place) % LETTERS].clone());
        Some((setup, asks.collect()))
    });
}

/// Small clusters with a snapshot; tables, blocks and refcount table that are made; version 2 over a backing file; a device with subclusters.
fn some_geometries() -> [Setup; 4] {
    let base = barriers::QCOW2;
    let of = |change: fn(&mut Geometry)| {
        let mut geometry = barriers::GEOMETRY;
        change(&mut geometry);
        Kind::Qcow2(geometry)
    };
    let small = |kind| Setup { kind, bytes: 67 * 512, ..base };
    [
        small(of(|g| (g.cluster, g.snapshot) = (512, true))),
        Setup {
            prepared: false,
            ..small(of(|g| (g.cluster, g.refcount_bits, g.at_table_end) = (512, 64, true)))
        },
        Setup { kind: of(|g| g.version = 2), with_backing: true, ..base },
        Setup {
            kind: of(|g| (g.cluster, g.extended_l2) = (16384, true)),
            bytes: 14 * 16384,
            on_device: true,
            ..base
        },
    ]
}
