//! Many sequences of valid and invalid messages, with file descriptors of all wrong sorts, from one seed.
//!
//! There must be no panic, no hang, no file descriptor and no mapping left behind. One test only, since it counts the file
//! descriptors of the whole process.

#![allow(missing_docs, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod common;
#[path = "common/script.rs"]
mod script;

use common::FakeDevice;
use std::fs::{read_dir, read_to_string};

/// Sequences, unless `FERROBLK_SEQUENCES` says otherwise.
const SEQUENCES: u64 = 100_000;

/// xorshift64*, good enough to pick messages.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

fn open_fds() -> usize {
    read_dir("/proc/self/fd").unwrap().count()
}

fn mapped_memfds() -> usize {
    read_to_string("/proc/self/maps").unwrap().matches("memfd:test").count()
}

#[test]
fn no_sequence_of_messages_does_harm() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse().unwrap());
    let sequences = number("FERROBLK_SEQUENCES").unwrap_or(SEQUENCES);
    let seed = number("FERROBLK_SEED").unwrap_or(1);
    let menu = script::Menu::new();
    let fds = open_fds();
    let mut started = 0u64;
    for sequence in 0..sequences {
        let mut random = Random(seed.wrapping_mul(1 << 32).wrapping_add(sequence) | 1 << 63);
        let len = random.next() % 600;
        let script: Vec<u8> = (0..len).map(|_| (random.next() >> 56) as u8).collect();
        let mut device = FakeDevice::default();
        started += u64::from(script::run(&script, &menu, &mut device));
        drop(device);
        if sequence % 256 == 0 || sequence + 1 == sequences {
            assert_eq!(open_fds(), fds, "file descriptors after sequence {sequence}");
            assert_eq!(mapped_memfds(), 0, "mappings after sequence {sequence}");
        }
    }
    assert!(started * 10 > sequences, "only {started} of {sequences} sequences started a ring");
}
