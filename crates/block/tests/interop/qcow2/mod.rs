//! qcow2 images between QEMU's tools and ours: made by the one, written by the other, read by both, against a plain vector of bytes.

mod bitmaps;
mod discard;
mod kind;
mod locks;
mod matrix;
mod turns;
mod zeroes;

use crate::common::qemu::Found;

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;
const CLEAN: Found = Found { corruptions: 0, leaks: 0 };
