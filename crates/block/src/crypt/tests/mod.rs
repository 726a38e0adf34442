//! Encryption: published vectors, round trips, hostile headers, and images shared with QEMU.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod headers;
mod interop;
mod round_trips;
mod vectors;

use super::{Cipher, CipherAlg, CipherMode, Hash, Iterations, IvGen, Luks, LuksOptions, create};
use crate::Result;

/// As few as are allowed: the tests are about what is computed, not how long it takes.
const FEW: Iterations = Iterations { slot: 1000, master_key: 1000 };

/// A source of bytes that are the same in every run.
fn numbers(seed: u64) -> impl FnMut(&mut [u8]) -> Result<()> {
    let mut state = seed;
    move |bytes: &mut [u8]| {
        for byte in bytes {
            *byte = next(&mut state) as u8;
        }
        Ok(())
    }
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn random_bytes(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    numbers(seed)(&mut out).unwrap();
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every combination of cipher, mode and IV generator that fits together; with ESSIV the hashes whose digest is a key.
fn suites() -> Vec<LuksOptions> {
    let mut all = Vec::new();
    for &cipher in CipherAlg::ALL {
        for &mode in CipherMode::ALL {
            for &ivgen in IvGen::ALL {
                let hashes: Vec<Option<Hash>> = match ivgen {
                    IvGen::Essiv => Hash::ALL.iter().copied().map(Some).collect(),
                    _ => vec![None],
                };
                for ivgen_hash in hashes {
                    let options =
                        LuksOptions { cipher, mode, ivgen, ivgen_hash, ..LuksOptions::default() };
                    if options.suite().is_ok() {
                        all.push(options);
                    }
                }
            }
        }
    }
    all
}

/// The key material of all active slots, from an area that starts with its header.
fn material(luks: &Luks, area: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let slot = |slot: super::KeySlot| {
        let from = slot.offset as usize;
        (slot.index, area[from..from + slot.bytes].to_vec())
    };
    luks.key_slots().map(slot).collect()
}

fn unlock(area: &[u8], secret: &[u8]) -> Result<Cipher> {
    let luks = Luks::parse(area, area.len() as u64)?;
    luks.unlock(secret, &material(&luks, area))
}

/// A whole area: header, first key, and zeros.
fn new_area(options: &LuksOptions, secret: &[u8], seed: u64) -> (Vec<u8>, Cipher) {
    let (mut area, cipher) = create(options, secret, FEW, &mut numbers(seed)).unwrap();
    area.resize(options.area_bytes().unwrap() as usize, 0);
    (area, cipher)
}
