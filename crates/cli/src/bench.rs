//! `ferroblk bench`: FFSB workloads over any combination of disks, and what came of it.
//!
//! ```text
//!  bench [PROFILE...] --matrix ...   grid.rs      ffsb::grid -> Report -> table, and outputs.rs: HTML, JSON, CSV
//!  bench --guest ...                 guest.rs     the same workloads in Linux guests
//!  bench run                         single.rs    one workload on one target -> Outcome -> text, FFSB's text, JSON
//!  bench compare                     compare.rs   two reports
//!  bench scenarios, bench profile    builtin.rs   what there is by name
//! ```

mod builtin;
mod compare;
mod grid;
mod guest;
mod outputs;
mod progress;
mod single;
mod stop;

use clap::{Args, Subcommand};
use ffsb::profile::Profile;
use ffsb::profile::scenario::{Scale, Scenario};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

const EXAMPLES: &str = "\
Examples:
  ferroblk bench --quick
      all eight scenarios at 1, 8 and 16 threads on raw, qcow2 and QED, served by ferroblk and by qemu-storage-daemon, against bare
      metal: in less than three minutes
  ferroblk bench --scenario random-read-8k,mixed-8k --matrix format=raw,qcow2 cache=none,writethrough aio=io_uring,native threads=1,16
      two scenarios on every combination of these
  ferroblk bench mail.ffsb --matrix format=qcow2 device=vhost-user --baseline qemu-storage-daemon --repetitions 5
      a profile, with another baseline
  ferroblk bench --scenario random-read-8k --trace
      and how long each stage of a request takes in ferroblk
  ferroblk bench --guest --quick
      virtio and IDE by QEMU and vhost-user by ferroblk side by side, from inside a real Linux guest
  ferroblk bench run random-write-8k --dir /mnt/test --threads 8
      one workload in a directory, on any file system
  ferroblk bench compare before/report.json after/report.json
      what changed beyond noise

Keys of --matrix: device=bare,directory,vhost-user server=ferroblk,qemu-storage-daemon format=raw,qcow2,qed
cache=none,writeback,writethrough,directsync,unsafe aio=io_uring,native,threads threads=1,8,16; with --guest:
device=virtio,ide,vhost-user and no server

Exit code: 0 if everything was measured; 1 if something could not be, whatever the reason; 2 for a wrong command line; 130 or 143 after
SIGINT or SIGTERM, which leave nothing behind.";

/// Measures disks with FFSB workloads: against bare metal, and against each other.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, arg_required_else_help = true, args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    #[command(flatten)]
    grid: grid::GridArgs,
}

#[derive(Subcommand, Debug)]
enum BenchCommand {
    Run(single::RunArgs),
    Compare(compare::CompareArgs),
    Scenarios(builtin::ScenariosArgs),
    Profile(builtin::ProfileArgs),
}

/// Why a command ends with another code than 0.
#[derive(Debug)]
enum Failure {
    /// One line for the user.
    Line(String),
    /// A signal of this number.
    Signal(u8),
    /// What there is to say is said.
    Said,
}

impl From<String> for Failure {
    fn from(line: String) -> Failure {
        Failure::Line(line)
    }
}

/// Does it, and says why it failed.
pub fn run(args: &BenchArgs) -> ExitCode {
    let done = match &args.command {
        Some(BenchCommand::Run(args)) => single::run(args),
        Some(BenchCommand::Compare(args)) => compare::run(args),
        Some(BenchCommand::Scenarios(args)) => builtin::scenarios(args),
        Some(BenchCommand::Profile(args)) => builtin::profile(args),
        None => grid::run(&args.grid),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Said) => ExitCode::FAILURE,
        Err(Failure::Line(line)) => {
            crate::complain(crate::NAME, &line);
            ExitCode::FAILURE
        }
        Err(Failure::Signal(number)) => {
            crate::complain(crate::NAME, "interrupted");
            ExitCode::from(128 + number)
        }
    }
}

fn scale(text: &str) -> Result<Scale, String> {
    let scale = text.parse().ok().and_then(Scale::new);
    scale.ok_or_else(|| "expected a number from 1 (full size) on".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.01..=1e6).contains(seconds));
    seconds.ok_or_else(|| "expected seconds from 0.01 to 1000000".to_owned())
}

/// As [`seconds`], or none at all.
fn some_seconds(text: &str) -> Result<f64, String> {
    if text == "0" { Ok(0.0) } else { seconds(text) }
}

fn scenario(name: &str) -> Result<Scenario, String> {
    Scenario::by_name(name).ok_or_else(|| {
        let names: Vec<&str> = Scenario::ALL.into_iter().map(Scenario::name).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Reads a profile; its warnings go to stderr.
fn read_profile(path: &Path) -> Result<Profile, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?;
    let parsed = Profile::parse(&text).map_err(|error| format!("{shown}:{error}"))?;
    for warning in parsed.warnings {
        crate::complain(crate::NAME, &format!("warning: {shown}:{warning}"));
    }
    Ok(parsed.profile)
}

/// Columns of the terminal that stdout is; in a file, enough for whole tables.
fn width() -> usize {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col >= 40 => usize::from(size.ws_col),
        Ok(_) => 80,
        Err(_) => 160,
    }
}

/// Prints to stdout what `write` writes.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    let printed = write(&mut out).and_then(|()| out.flush());
    printed.map_err(|error| format!("printing: {error}"))
}

/// Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a report's directory is named after the time")]
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
