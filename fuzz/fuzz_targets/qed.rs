//! A hostile QED image: a good one with fields spoiled, or arbitrary bytes, in a file of any length; opened, used and closed as the input says.
//!
//! ```text
//! input: | set-up, 4 bytes | edits of the image, 4 bytes each | requests, 4 bytes each |
//! ```
//!
//! What must hold, whatever the image is:
//!
//! - nothing panics, and everything ends;
//! - an image that is refused, or opened for reading only, is not written to;
//! - an image that was opened for writing is sound ([`image::Trust::Sound`]), as it was checked: no two places on the disk share a cluster, and none is
//!   a table.

#![no_main]

#[path = "../../crates/block/tests/common/craft.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod craft;
mod image;

use block::Format;
use craft::{CLUSTER, Craft, DISK, ENTRIES, FILE, L1, L2};
use image::{Session, Trust};
use libfuzzer_sys::fuzz_target;

const EDITS_MAX: usize = 6;
/// The simulated disk knows no holes, and reading a gigabyte of them takes its time.
const TABLE_BYTES_MAX: u64 = 256 << 10;

fuzz_target!(|input: &[u8]| {
    let Some((&[flags, seed, len_bits, edits], rest)) = input.split_first_chunk() else { return };
    let edits = usize::from(edits) % (EDITS_MAX + 1);
    let (image, script) = match flags & 1 {
        0 => {
            let (edits, script) = rest.split_at(rest.len().min(edits * 4));
            let mut image = Craft::good();
            edits.as_chunks().0.iter().for_each(|edit| spoil(&mut image, *edit));
            (image, script)
        }
        _ => {
            let (script, image) = rest.split_at(rest.len().min(edits * 16));
            (Craft(image.to_vec()), script)
        }
    };
    if !is_quick(&image) {
        return;
    }
    let disk = image::disk(&image.0, flags >> 6, (flags & 2 != 0).then_some(len_bits));
    let mut session = Session::new(disk, Format::Qed, seed);
    session.with_backing = flags & 4 != 0;
    session.bytes = image_bytes(&image);
    session.first_table_end = ENTRIES * CLUSTER;
    session.read_only();
    session.run(Trust::Sound, script);
});

/// Whether what the image says can be gone through in a moment.
fn is_quick(image: &Craft) -> bool {
    let Some(start) = image.0.first_chunk::<64>() else { return true };
    let word = |at: usize| u64::from(u32::from_le_bytes(*start[at..].first_chunk().unwrap()));
    let table_bytes = word(4) * word(8);
    table_bytes <= TABLE_BYTES_MAX && word(4) * word(12) <= 1 << 32
}

fn image_bytes(image: &Craft) -> u64 {
    image.0.get(48..56).map_or(0, |raw| u64::from_le_bytes(*raw.first_chunk().unwrap()))
}

/// One edit of a good image.
fn spoil(image: &mut Craft, [what, index, kind, value]: [u8; 4]) {
    let (index, value) = (u64::from(index), u64::from(value));
    let value = match kind % 16 {
        0 => value,
        1 => value * 512,
        2 => FILE + value * CLUSTER,
        3 => 1 << (value % 64),
        4 => (1u64 << (value % 64)).wrapping_sub(CLUSTER),
        5 => u64::MAX - value,
        6 => (value * CLUSTER).wrapping_neg(),
        7 => DISK + value * 512,
        8 => (image.0.len() as u64).wrapping_sub(value * 16),
        // Mostly a place in the file that is something already.
        _ => value % 12 * CLUSTER,
    };
    match what % 8 {
        0 => image.set32([0, 4, 8, 12, 56, 60][(index % 6) as usize], value as u32),
        1 => image.set64([16, 24, 32, 40, 48][(index % 5) as usize], value),
        2 => image.set_l1(index % 4, value),
        // In both tables, and at their ends.
        3 => image.set_l2(index % 8, value),
        4 => image.set_l2(ENTRIES - 1 - index % 4, value),
        5 => image.set_l2(ENTRIES + index % 8, value),
        6 => {
            let at = [0, L1, L2[0], L2[1]][(index % 4) as usize] as usize + (index / 4) as usize;
            image.0[at] = value as u8;
        }
        _ => image.0.resize((value as usize).clamp(L1 as usize * 4, 2 * FILE as usize), 0x77),
    }
}
