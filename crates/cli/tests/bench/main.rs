//! `ferroblk bench`, on small files: what it measures is not judged, but that it is all there, how it refuses, and that nothing is left.
#![allow(
    clippy::disallowed_methods,
    reason = "a test outside the stack: it has its own clock, files and threads"
)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

#[allow(
    dead_code,
    clippy::cast_possible_truncation,
    reason = "the tests of other commands use the rest; lengths of small files"
)]
#[path = "../cli/common.rs"]
mod common;
mod compared;
mod grid;
mod refusals;
mod single;

use common::Scratch;
use std::process::{Command, Output};

/// Runs `ferroblk bench` to its end.
fn bench(scratch: &Scratch, args: &[&str]) -> Output {
    let mut command: Command = scratch.ferroblk(&["bench"]);
    command.args(args).output().unwrap()
}

/// As [`bench`], which must succeed; what it printed.
#[track_caller]
fn done(scratch: &Scratch, args: &[&str]) -> String {
    let output = bench(scratch, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
