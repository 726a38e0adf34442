//! `cargo xtask`: the project's chores, as one program instead of a pile of scripts.
//!
//! | command   | does                                                                    |
//! |-----------|-------------------------------------------------------------------------|
//! | `setup`   | installs what the tests and comparisons need and the machine lacks      |
//! | `check`   | everything a change must pass; continuous integration runs exactly this |
//! | `tidy`    | the house rules that no compiler checks                                 |
//! | `crash`   | judges a million crash states of each image format                      |
//! | `compare` | measures ferroblk beside qemu-storage-daemon and fio                    |
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a tool outside the stack: files and clocks are its work"
)]

mod check;
mod compare;
mod crash;
mod setup;
mod sh;
mod tidy;

use std::process::ExitCode;

const HELP: &str = "\
usage: cargo xtask COMMAND
  setup                 install what tests and comparisons need (apt; root only if something is missing)
  check [--no-guest]    format, lints, tests, documentation, tidy: what CI runs
  tidy                  house rules only
  crash [--states N]    judge crash states of each image format: a million, or N
  compare [options]     measure beside qemu-storage-daemon and fio; see `compare --help`
";

/// An error is a sentence for the person at the terminal.
type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["setup"] => setup::run(),
        ["check", rest @ ..] => check::run(rest),
        ["tidy"] => tidy::run(),
        ["crash", rest @ ..] => crash::run(rest),
        ["compare", rest @ ..] => compare::run(rest),
        ["--help" | "-h" | "help"] => {
            print!("{HELP}");
            Ok(())
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
