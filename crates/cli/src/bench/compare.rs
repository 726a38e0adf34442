//! `ferroblk bench compare`: two reports, and what changed beyond noise.

use super::{Failure, print, width};
use clap::Args;
use ffsb::report::{compare, json};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  ferroblk bench compare before/report.json after/report.json
      says what is worse, what is better, and how small a change could have been seen
  ferroblk bench compare main.json branch.json --fail-on-worse --json > changes.json
      for a script: exit code 1 if something is worse beyond noise, or fails that did not

Exit code: 0 whatever was found; with --fail-on-worse 1 if something is worse; 1 if a report cannot be read; 2 for a wrong command line.";

/// Says what changed between two reports, beyond noise.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CompareArgs {
    /// The report before, JSON
    #[arg(value_name = "A.json")]
    a: PathBuf,
    /// The report after, JSON
    #[arg(value_name = "B.json")]
    b: PathBuf,
    /// Prints one JSON document
    #[arg(long)]
    json: bool,
    /// Ends with exit code 1 if something is worse beyond noise, or fails that did not
    #[arg(long)]
    fail_on_worse: bool,
}

/// Compares.
pub fn run(args: &CompareArgs) -> Result<(), Failure> {
    let read = |path| json::read(path).map_err(|error| error.to_string());
    let (a, b) = (read(&args.a)?, read(&args.b)?);
    let comparison = compare::compare(&a, &b);
    print(|out| match args.json {
        true => comparison.write_json(out),
        false => comparison.write_text(out, width()),
    })?;
    match args.fail_on_worse && comparison.is_worse() {
        true => Err(Failure::Said),
        false => Ok(()),
    }
}
