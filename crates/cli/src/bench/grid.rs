//! `ferroblk bench [PROFILE...]`: workloads on every combination of disks.

use super::guest::GuestArgs;
use super::outputs::{Outputs, default_dir};
use super::progress::Meter;
use super::stop::Stop;
use super::{
    Failure, print, read_profile, scale, scenario, seconds, some_seconds, unix_seconds, width,
};
use crate::size;
use clap::Args;
use ffsb::grid::{Choices, GridError, Options, Plan, Timing, Workload};
use ffsb::guest::{self, Compare, GuestErrorKind, Setup};
use ffsb::profile::scenario::{Scale, Scenario};
use ffsb::report::{Report, table};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Seconds that `--quick` takes; the promise is three minutes.
const QUICK_SECONDS: u64 = 160;
/// Seconds of a run in it at most.
const QUICK_RUN_SECONDS: f64 = 0.6;
/// Data sets in it: those that are made before a run, and those that a run makes itself.
const QUICK_SCALES: (u32, u32) = (256, 32);
const REPETITIONS: u32 = 3;
const SCALE: u32 = 16;
const SECONDS: f64 = 5.0;

/// What to measure on what.
#[derive(Args, Debug)]
pub struct GridArgs {
    /// Profiles of FFSB; their locations mean nothing here
    #[arg(value_name = "PROFILE")]
    profiles: Vec<PathBuf>,
    /// Scenarios by name, with a comma between, besides the profiles [default: all eight if there is no profile]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = scenario)]
    scenario: Vec<Scenario>,
    /// Everything in less than three minutes: one short run of each, on small files
    #[arg(long, conflicts_with_all = ["seconds", "repetitions", "scale"])]
    quick: bool,
    /// What to go through, each as KEY=VALUE,VALUE: device, server, format, cache, aio, threads
    #[arg(long, value_name = "KEY=LIST", num_args = 1..)]
    matrix: Vec<String>,
    /// Seconds of each run [default: 5 for scenarios, a profile's own for profiles]
    #[arg(long, value_name = "S", value_parser = seconds)]
    seconds: Option<f64>,
    /// Seconds of work before each run that do not count
    #[arg(long, value_name = "S", default_value = "0", value_parser = some_seconds)]
    warm_up: f64,
    /// Runs of each, round robin over what is compared [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: Option<u32>,
    /// What the others are compared with: a name in the report, or its beginning [default: bare metal]
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// By what the scenarios' data sets are divided; 1: full size, 16 GiB [default: 16]
    #[arg(long, value_name = "N", value_parser = scale)]
    scale: Option<Scale>,
    /// Size of each disk (bytes, or with k, M, G, T) [default: what the workloads need]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    size: Option<u64>,
    /// Seed of what is drawn
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Each block carries what it is, and is checked when it is read, and in the end
    #[arg(long)]
    verify: bool,
    /// Request queues of each disk
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    queues: u16,
    /// I/O threads of ferroblk
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    iothreads: u16,
    /// Measures the stages of requests in ferroblk too, and what that costs
    #[arg(long)]
    trace: bool,
    #[command(flatten)]
    guest: GuestArgs,
    /// Where the disks are made, in a directory that is removed in the end [default: the current directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Directory for the report [default: ferroblk-bench-YYYYMMDD-HHMMSS (UTC), unless a file is named below]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Writes the report as one HTML page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Writes the report as JSON, which `bench compare` reads
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the report as CSV, a line for each run
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// No progress, no tables
    #[arg(short, long)]
    quiet: bool,
}

/// Measures, and writes the report.
pub fn run(args: &GridArgs) -> Result<(), Failure> {
    if args.guest.wanted {
        let asked = in_guests(args)?;
        return report(
            args,
            asked.measurements().map_err(|error| error.to_string())?,
            |stop, meter| {
                guest::compare(&asked, stop, &|status| meter.tell(status)).map_err(|error| {
                    match error.kind() {
                        GuestErrorKind::Interrupted => GridError::Interrupted,
                        _ => GridError::Refused(error.to_string()),
                    }
                })
            },
        );
    }
    let plan = Plan::new(options(args)?).map_err(|error| error.to_string())?;
    report(args, plan.measurements(), |stop, meter| {
        if !args.quiet {
            for remark in plan.left_out() {
                note(remark);
            }
        }
        plan.execute(stop, &|status| meter.tell(status))
    })
}

/// Measures, once it is known that the report can be written.
fn report(
    args: &GridArgs,
    measurements: usize,
    measure: impl FnOnce(&AtomicBool, &Meter) -> Result<Report, GridError>,
) -> Result<(), Failure> {
    let files = [&args.html, &args.json, &args.csv].map(Option::as_deref);
    let own = || files.iter().all(Option::is_none).then(|| default_dir(unix_seconds()));
    let dir = args.output.clone().or_else(own);
    let outputs = Outputs::prepare(dir.as_deref(), files)?;
    let stop = Stop::catch()?;
    let meter = Meter::new(measurements, args.quiet);
    let report = measure(stop.flag(), &meter);
    meter.finish();
    let report = report.map_err(|error| match error {
        GridError::Interrupted => Failure::Signal(stop.signal()),
        GridError::Refused(why) => Failure::Line(why),
    })?;
    let written = outputs.write(&report)?;
    if !args.quiet {
        let width = width();
        print(|out| {
            table::write(out, &report, width)?;
            writeln!(out, "\nreport: {}", written.join(", "))
        })?;
    }
    failures(&report)
}

/// The comparison in guests.
fn in_guests(args: &GridArgs) -> Result<Compare, Failure> {
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from("."));
    let quick = args.guest.compare(dir).map_err(|error| error.to_string())?;
    let (setups, threads) = Setup::parse(&args.matrix).map_err(|error| error.to_string())?;
    let chosen = !(args.scenario.is_empty() && args.profiles.is_empty());
    Ok(Compare {
        setups,
        threads,
        workloads: if chosen || !args.quick { workloads(args)? } else { quick.workloads },
        seconds: if args.quick { quick.seconds } else { args.seconds },
        warm_up_seconds: args.warm_up,
        repetitions: args.repetitions.unwrap_or(if args.quick { 1 } else { REPETITIONS }),
        seed: args.seed.unwrap_or(quick.seed),
        verify: args.verify,
        ..quick
    })
}

/// A remark before the measurement, for people.
fn note(remark: &str) {
    let _ = writeln!(std::io::stderr(), "note: {}", crate::text::escape(remark));
}

fn options(args: &GridArgs) -> Result<Options, Failure> {
    let refused = |error: GridError| error.to_string();
    Ok(Options {
        dir: args.dir.clone().unwrap_or_else(|| PathBuf::from(".")),
        program: None,
        choices: Choices::parse(&args.matrix).map_err(refused)?,
        workloads: workloads(args)?,
        timing: match args.quick {
            true => Timing::Budget {
                total: Duration::from_secs(QUICK_SECONDS),
                most: QUICK_RUN_SECONDS,
            },
            false => Timing::Each { seconds: args.seconds, otherwise: SECONDS },
        },
        warm_up_seconds: args.warm_up,
        repetitions: args.repetitions.unwrap_or(if args.quick { 1 } else { REPETITIONS }),
        seed: args.seed,
        verify: args.verify,
        disk_bytes: args.size,
        queues: args.queues,
        iothreads: args.iothreads,
        baseline: args.baseline.clone(),
        trace: args.trace,
    })
}

fn workloads(args: &GridArgs) -> Result<Vec<Workload>, Failure> {
    let all = args.scenario.is_empty() && args.profiles.is_empty();
    let scenarios = if all { &Scenario::ALL[..] } else { &args.scenario };
    let scale = |scenario: &Scenario| {
        let creates = scenario.name().starts_with("large-file-create");
        let quick = if creates { QUICK_SCALES.1 } else { QUICK_SCALES.0 };
        let divisor = if args.quick { quick } else { SCALE };
        args.scale.or(Scale::new(divisor)).unwrap_or(Scale::FULL)
    };
    let mut workloads: Vec<Workload> =
        scenarios.iter().map(|one| Workload::scenario(*one, scale(one))).collect();
    for path in &args.profiles {
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
        let profile = read_profile(path)?;
        let workload = Workload::profile(&name, profile);
        workloads.push(workload.map_err(|error| format!("{}: {error}", path.display()))?);
    }
    Ok(workloads)
}

/// Says so if something could not be measured.
fn failures(report: &Report) -> Result<(), Failure> {
    let failed = || report.cells.iter().filter(|cell| cell.failure.is_some());
    let Some(first) = failed().next() else { return Ok(()) };
    Err(Failure::Line(format!(
        "{} of {} figures could not be measured; {} on {}: {}",
        failed().count(),
        report.cells.len(),
        report.scenarios[first.scenario],
        report.subjects[first.subject].name,
        first.failure.as_deref().unwrap_or_default()
    )))
}
