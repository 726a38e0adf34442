//! `cargo xtask crash`: the crash states of all formats, many more than a test run has time for.

use crate::{Result, sh};

/// States of each format, if the caller says nothing else.
const STATES: &str = "1000000";

/// Judges `args`' number of states of each format. `SEED=n` in the environment is another run.
pub fn run(args: &[&str]) -> Result<()> {
    let states = match args {
        [] => STATES,
        ["--states", states] if states.parse::<u64>().is_ok() => states,
        _ => return Err(format!("crash takes --states N or nothing, not {}", args.join(" "))),
    };
    let test = ["test", "--release", "--package", "sim", "--test", "crash", "--", "--nocapture"];
    sh::run(sh::cargo().args(test).env("STATES", states))
}
