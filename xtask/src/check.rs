//! `cargo xtask check`: everything a change must pass. Continuous integration runs this and nothing else.

use std::process::Command;
use std::time::Instant;

use crate::{Result, sh, tidy};

/// One step: what to say, and what to do.
type Step = (&'static str, fn(guest: bool) -> Result<()>);

const STEPS: &[Step] = &[
    ("format", |_| sh::run(sh::cargo().args(["fmt", "--all", "--check"]))),
    ("tidy", |_| tidy::run()),
    ("lints", |_| {
        let lints = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
        sh::run(sh::cargo().args(lints))
    }),
    ("tests", tests),
    ("tests of memory ordering", |_| {
        // Only optimised code is fast enough to run into a missing fence.
        let tests = ["test", "--release", "--package", "virtqueue", "--lib", "fences"];
        sh::run(sh::cargo().args(tests))
    }),
    ("fuzz targets compile", |_| {
        sh::run(sh::cargo().args(["check", "--quiet", "--manifest-path", "fuzz/Cargo.toml"]))
    }),
    ("documentation tests", |_| {
        sh::run(sh::cargo().args(["test", "--workspace", "--doc", "--quiet"]))
    }),
    ("documentation", |_| {
        let mut command = sh::cargo();
        command.args(["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"]);
        sh::run(command.env("RUSTDOCFLAGS", "-D warnings"))
    }),
];

/// Runs all steps and says which failed; later steps run after a failure too, so that one run shows everything.
pub fn run(args: &[&str]) -> Result<()> {
    let guest = match args {
        [] => true,
        ["--no-guest"] => false,
        _ => return Err(format!("check takes --no-guest or nothing, not {}", args.join(" "))),
    };
    let mut lines = Vec::new();
    let mut failed = 0;
    for (name, step) in STEPS {
        println!("==> {name}");
        let start = Instant::now();
        let result = step(guest);
        let seconds = start.elapsed().as_secs();
        match result {
            Ok(()) => lines.push(format!("  ok      {name} ({seconds} s)")),
            Err(error) => {
                failed += 1;
                lines.push(format!("  FAILED  {name} ({seconds} s): {error}"));
            }
        }
    }
    println!("==> check\n{}", lines.join("\n"));
    match failed {
        0 => Ok(()),
        n => Err(format!("{n} of {} steps failed", STEPS.len())),
    }
}

/// All tests but those in documentation; by cargo-nextest if it is there, because it stops a test that hangs.
fn tests(guest: bool) -> Result<()> {
    let nextest = sh::output(sh::cargo().args(["nextest", "--version"])).is_ok();
    let mut command = sh::cargo();
    if nextest {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        command.args(["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"]);
    }
    if !guest {
        command.args(["--exclude", "guest-tests"]);
    }
    run_with_binary(&mut command)
}

/// The tests from outside start the binary: it is built before, in the same profile, so that none of them waits.
fn run_with_binary(command: &mut Command) -> Result<()> {
    sh::run(sh::cargo().args(["build", "--quiet", "--package", "ferroblk"]))?;
    sh::run(command)
}
