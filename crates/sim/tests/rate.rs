//! How many crash states a second are built, checked and read back: `cargo test --release -p sim --test rate -- --ignored --nocapture`.
#![allow(clippy::disallowed_methods)]

use io_engine::SimDisk;
use io_engine::sim::{Change, LogEvent, SimOptions};
use sim::enumerate::{Options, enumerate};
use sim::model::History;
use sim::qed::{self, OnDamage, Qed};
use std::time::Instant;

const CLUSTER: u64 = 4096;
const L1_AT: u64 = CLUSTER;
const L2_AT: u64 = 5 * CLUSTER;
const DATA_AT: u64 = 9 * CLUSTER;

fn put(image: &mut [u8], at: u64, value: u64) {
    let at = usize::try_from(at).unwrap();
    image[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// An image of one MiB, all allocated, like those that QEMU makes.
fn image() -> Vec<u8> {
    let mut image = vec![0; usize::try_from(DATA_AT + 256 * CLUSTER).unwrap()];
    image[..4].copy_from_slice(b"QED\0");
    put(&mut image, 4, CLUSTER | 4 << 32);
    put(&mut image, 12, 1);
    put(&mut image, 40, L1_AT);
    put(&mut image, 48, 256 * CLUSTER);
    put(&mut image, L1_AT, L2_AT);
    for index in 0..256 {
        put(&mut image, L2_AT + 8 * index, DATA_AT + index * CLUSTER);
    }
    image
}

#[test]
#[ignore = "a measurement"]
fn states_per_second() {
    let image = image();
    let start = SimDisk::with_contents(SimOptions::default(), &image);
    let mut history = History::new(vec![0; 256 * 4096], false);
    let mut log = Vec::new();
    // 16 sectors undecided before each flush: one op each, four of them data.
    for epoch in 0..16_u64 {
        for sector in 0..16 {
            let op = log.len() as u64 + 1;
            let change = match sector {
                12..16 => {
                    let (request, data) =
                        history.write(log.len(), (epoch * 4 + sector - 12) * 512, 512);
                    history.ended(log.len(), request, true);
                    let at = DATA_AT + (epoch * 4 + sector - 12) * 512;
                    Change::Write { at, data: data.into(), dsync: false }
                }
                // Entries beyond the end of the disk, for clusters of zeroes.
                _ => {
                    let mut data = [0; 512];
                    put(&mut data, 8 * epoch, 1);
                    let at = L2_AT + 2048 + sector * 512;
                    Change::Write { at, data: data.to_vec().into(), dsync: false }
                }
            };
            let applied = 512;
            log.push(LogEvent::Issue { op, change });
            log.push(LogEvent::Complete { op, result: 512, applied, lost: false });
        }
        let (op, flush) = (log.len() as u64 + 1, history.flush(log.len()));
        log.push(LogEvent::Issue { op, change: Change::Flush });
        log.push(LogEvent::Complete { op, result: 0, applied: 0, lost: false });
        history.ended(log.len(), flush, true);
    }
    let promises = |position: usize| history.promises_by(position);
    let options = Options { promise: &promises, ..Options::default() };
    let rate = |name: &str, level: u32| {
        let began = Instant::now();
        let mut promise = (0, history.promise_at(0));
        let stats = enumerate(&start, &log, &options, |state| {
            if promise.0 != state.position {
                promise = (state.position, history.promise_at(state.position));
            }
            if level > 0 {
                qed::check(&state.disk).judge_crash()?;
            }
            if level > 1 {
                let qed = Qed::open(&state.disk).unwrap();
                promise.1.judge(|at, into| {
                    qed.read_disk(at, into, OnDamage::Fail, |_, into| into.fill(0))
                        .map_err(|damage| damage.to_string())
                })?;
            }
            Ok(())
        });
        let (stats, took) = (stats.unwrap(), began.elapsed());
        println!("{name}: {} states in {took:?}, {:?} each", stats.states, took / 1_048_576);
    };
    rate("built", 0);
    rate("built and checked", 1);
    rate("built, checked and read back", 2);
}
