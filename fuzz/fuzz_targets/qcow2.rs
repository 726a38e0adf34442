//! A hostile qcow2 image: a good one with fields spoiled, or arbitrary bytes, in a file of any length; opened, used and closed as the input says.
//!
//! ```text
//! input: | set-up, 5 bytes | edits of the image, 4 bytes each | requests, 4 bytes each |
//!        | set-up, 5 bytes | requests, 16 bytes for each edit | the image              |     as `seeds/qcow2.sh` writes them
//! ```
//!
//! What must hold:
//!
//! - nothing panics, and everything ends;
//! - an image that is refused, or opened for reading only, is not written to;
//! - an image that the independent checker (`sim::qcow2`) finds sound, and whose disk can be read, stays so ([`image::Trust::Sound`]), and nothing
//!   leaks;
//! - one that is damaged has not more errors afterwards than before; unless its counts say that something in use is free, for then that is used, and
//!   nobody can know it who has not read all tables.

#![no_main]

#[path = "../../crates/block/tests/common/craft_qcow2.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod craft;
mod image;

use block::Format;
use craft::{
    AT_AUTOCLEAR, AT_COMPATIBLE, AT_INCOMPATIBLE, COPIED, Craft, IS_COMPRESSED, READS_ZERO, Shape,
};
use image::{Session, Trust};
use libfuzzer_sys::fuzz_target;
use sim::qcow2::{Report, check};

const EDITS_MAX: usize = 8;
/// The simulated disk knows no holes, and reading a gigabyte of them takes its time.
const TABLE_BYTES_MAX: u64 = 256 << 10;
/// Where header extensions begin.
const EXTENSIONS: u64 = 112;

fuzz_target!(|input: &[u8]| {
    let Some((&[flags, seed, len_bits, shape, edits], rest)) = input.split_first_chunk() else {
        return;
    };
    let edits = usize::from(edits) % (EDITS_MAX + 1);
    let (image, script) = match flags & 1 {
        0 => {
            let (edits, script) = rest.split_at(rest.len().min(edits * 4));
            let mut image = Craft::new(shape_of(shape));
            let (edits, _) = edits.as_chunks::<4>();
            // A file is cut last, as there must be something to edit.
            let (cuts, edits): (Vec<[u8; 4]>, Vec<_>) =
                edits.iter().copied().partition(|edit| edit[0] % 12 == 11);
            edits.into_iter().chain(cuts).for_each(|edit| spoil(&mut image, edit));
            (image.bytes, script)
        }
        _ => {
            let (script, image) = rest.split_at(rest.len().min(edits * 16));
            (image.to_vec(), script)
        }
    };
    if !is_quick(&image) {
        return;
    }
    let disk = image::disk(&image, flags >> 6, (flags & 2 != 0).then_some(len_bits));
    let mut session = Session::new(disk.clone(), Format::Qcow2, seed);
    session.with_backing = flags & 4 != 0;
    let (bits, extended) = (word(&image, 20), long(&image, AT_INCOMPATIBLE) & craft::EXTENDED_L2);
    session.bytes = long(&image, 24) / 512 * 512;
    session.first_table_end = 1 << (2 * bits.clamp(9, 16) - if extended == 0 { 3 } else { 4 });
    let is_readable = session.read_only();
    let original = disk.fork();
    let before = check(&disk);
    let is_good = before.is_sound() && !before.is_dirty && is_readable;
    session.run(if is_good { Trust::Sound } else { Trust::Damaged }, script);
    // Bitmaps that are not believed any more leak; and what was taken for a commit that failed, in a file longer than can be counted.
    let may_leak = long(&image, AT_AUTOCLEAR) & 1 != 0 || flags & 2 != 0;
    // What leads out of the file does not once it has grown.
    if disk.len() > original.len() {
        image::set_len(&original, disk.len());
    }
    judge(is_good, may_leak, &check(&original), &check(&disk));
});

fn judge(was_good: bool, may_leak: bool, before: &Report, after: &Report) {
    let leaks = |report: &Report| report.leaked_clusters + report.leaked_beyond_file;
    if was_good {
        assert!(after.is_sound() && !after.is_corrupt, "spoiled: {after:?}");
        assert!(may_leak || leaks(after) <= leaks(before), "leaks: {before:?}, then {after:?}");
    } else if before.header.is_empty() && before.undercounted + before.doubly_used == 0 {
        let (errors, then) = (before.damage_count, after.damage_count);
        assert!(then <= errors && after.header.is_empty(), "worse: {before:?}, then {after:?}");
    }
}

/// Versions, cluster sizes, widths of counts, subclusters, a snapshot.
fn shape_of(byte: u8) -> Shape {
    let version = if byte & 1 == 0 { 3 } else { 2 };
    let bits = [9, 9, 12, 14][usize::from(byte >> 1 & 3)];
    let order = [4, 0, 6, 3][usize::from(byte >> 3 & 3)];
    Shape {
        version,
        cluster_bits: bits,
        order: if version == 3 { order } else { 4 },
        extended: version == 3 && bits == 14 && byte & 0x20 != 0,
        snapshot: byte & 0x40 != 0,
    }
}

fn word(image: &[u8], at: usize) -> u32 {
    image.get(at..at + 4).map_or(0, |raw| u32::from_be_bytes(*raw.first_chunk().unwrap()))
}

fn long(image: &[u8], at: usize) -> u64 {
    image.get(at..at + 8).map_or(0, |raw| u64::from_be_bytes(*raw.first_chunk().unwrap()))
}

/// Whether what the image says can be gone through in a moment.
fn is_quick(image: &[u8]) -> bool {
    let (bits, l1_entries, table_clusters) =
        (word(image, 20), u64::from(word(image, 36)), u64::from(word(image, 56)));
    let is_small = bits > 16 || table_clusters << bits <= TABLE_BYTES_MAX;
    bits <= 21 && l1_entries * 8 <= TABLE_BYTES_MAX && is_small
}

/// One edit of a good image.
fn spoil(image: &mut Craft, [what, index, kind, value]: [u8; 4]) {
    let shape = image.shape;
    let (index, value) = (u64::from(index), u64::from(value));
    // Mostly a place in the file that is something already, or not far behind it.
    let place = shape.at(value % 16);
    let end = shape.file_bytes();
    let value = match kind % 16 {
        0 => value,
        1 => value * 512,
        2 => end + shape.at(value),
        3 => 1 << (value % 64),
        4 => (1u64 << (value % 64)).wrapping_sub(shape.cluster()),
        5 => u64::MAX - value,
        6 => place + 512,
        7 => shape.disk_bytes() + value * 512,
        8 => shape.compressed_entry(place + value, 300) | (value & 0x80) << 56,
        9 => IS_COMPRESSED | (end + value * 64),
        10 => place | READS_ZERO | COPIED,
        11 => place,
        12 => READS_ZERO,
        _ => place | COPIED,
    };
    match what % 12 {
        0 => {
            let at = [4, 16, 20, 32, 36, 56, 60, 96, 100, 104][(index % 10) as usize];
            image.set32(at, value as u32);
        }
        1 => {
            let flags = [AT_INCOMPATIBLE, AT_COMPATIBLE, AT_AUTOCLEAR];
            let at = [8, 24, 40, 48, 64, flags[0], flags[1], flags[2]][(index % 8) as usize];
            image.set64(at, value);
        }
        2 => image.set_l1(index % 3, value),
        // In both tables, and at their ends.
        3 => image.set_l2(index % 8, value),
        4 => image.set_l2(shape.entries() - 1 - index % 4, value),
        5 => image.set_l2(shape.entries() + index % 8, value),
        6 => image.set_bits(index % 8, value << (index / 8 % 64)),
        7 => image.set_block(index % 4, value),
        8 => image.set_count(index % 16, value & ((1 << shape.order.min(3)) - 1)),
        9 => {
            let cluster = [0, craft::REFCOUNT_BLOCK, craft::SNAPSHOT_TABLE, craft::SNAPSHOT_L1];
            let from = if index % 4 == 0 { EXTENSIONS } else { 0 };
            let at = shape.at(cluster[(index % 4) as usize]) + from + index / 4;
            if let Some(byte) = image.bytes.get_mut(at as usize) {
                *byte = value as u8;
            }
        }
        10 => {
            image.set32(EXTENSIONS as usize + index as usize / 16 * 8, value as u32);
            let types = [0x2385_2875, 0xE279_2ACA, 0x0537_BE77, 0x6803_F857, 0x4441_5441];
            image.set32(EXTENSIONS as usize, types[(index % 5) as usize]);
        }
        _ => {
            let len = value.clamp(shape.at(3), shape.at(24));
            image.bytes.resize(len as usize, 0x77);
        }
    }
}
