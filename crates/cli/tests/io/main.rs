//! The disk exerciser from outside: the real binary, under its own name and as `qemu-io`, beside the `qemu-io` that is installed.
//!
//! A row is an image and commands for it. They are given to both tools, each in a directory of its own with the same files ([`rows`]); then exit code,
//! what was printed, whether there was a complaint, and every file must be alike. Where ours is meant to differ, the row says why, and what is expected.
#![allow(
    clippy::disallowed_methods,
    reason = "a test outside the stack: it has its own clock, files and threads"
)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod commands;
mod faults;
mod input;
mod options;
mod rows;
mod sandbox;
mod sequences;
