//! The image tool from outside: the real binary, under its own name and as `qemu-img`, beside the `qemu-img` that is installed.
//!
//! A row is a command line. It is given to both tools, each in a directory of its own with the same files ([`rows`]); then exit code, what was printed,
//! whether there was a complaint, and every file of the directories must be alike. Where ours is meant to differ, the row says why, and what is expected.
#![allow(
    clippy::disallowed_methods,
    reason = "a test outside the stack: it has its own clock, files and threads"
)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod amend;
mod bad_input;
mod bitmaps;
mod chains;
mod content;
mod copies;
mod faults;
mod full;
mod in_place;
mod measure;
mod ours;
mod qcow2;
mod rows;
mod sandbox;
mod verbs;
