//! A run in the words of FFSB 6: what scripts that read its output expect, line by line.
//!
//! What FFSB says of the machine at the time (how full a file system is, how long `sync` took) comes from [`Phases`](crate::outcome::Phases).
//! Not printed: the bare numbers that FFSB 6.0-RC1 leaves behind for each `bindfs`. Times of day are UTC.

use crate::outcome::{GroupOutcome, OpOutcome, Outcome, SyscallOutcome};
use crate::profile::{FileSystem, Op, Profile, ThreadGroup};
use std::io::{self, Write};

/// Stands where FFSB has its version.
const VERSION: &str = concat!("6.0-ferroblk-", env!("CARGO_PKG_VERSION"));

/// Writes what FFSB would have written of this run.
///
/// # Errors
///
/// What `out` says.
pub fn write(out: &mut impl Write, profile: &Profile, outcome: &Outcome) -> io::Result<()> {
    writeln!(out, "FFSB version {VERSION} started\n")?;
    match profile.time {
        Some(0) => writeln!(out, "Only creating the fileset, not running benchmark.")?,
        Some(seconds) => writeln!(out, "benchmark time = {seconds}")?,
        None => writeln!(out, "benchmark time = until all iterations are done")?,
    }
    for (index, group) in profile.thread_groups.iter().enumerate() {
        writeln!(out, "ThreadGroup {index}\n================")?;
        thread_group(out, group)?;
    }
    for (index, fs) in profile.filesystems.iter().enumerate() {
        file_system(out, profile, fs, outcome.phases.utilisation.get(index).copied())?;
    }
    set_up(out, profile, outcome)?;
    if profile.time == Some(0) {
        return writeln!(out, "Setup complete, exiting");
    }
    writeln!(out, "Syncing()...{} sec", outcome.phases.sync_before_seconds.trunc())?;
    if let Some(callout) = &profile.callout {
        writeln!(out, "executing callout: \n {callout}")?;
    }
    writeln!(out, "Starting Actual Benchmark At: {}\n", time_of_day(outcome.started_unix))?;
    writeln!(out, "Syncing()...{} sec", outcome.phases.sync_after_seconds.trunc())?;
    writeln!(out, "FFSB benchmark finished   at: {}\n", time_of_day(outcome.finished_unix))?;
    results(out, profile, outcome)
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn thread_group(out: &mut impl Write, group: &ThreadGroup) -> io::Result<()> {
    let size = |bytes: u64| format!("{bytes}\t({})", human(bytes as f64));
    writeln!(out, "\t num_threads      = {}\n\t", group.num_threads)?;
    writeln!(out, "\t read_random      = {}", on_off(group.read_random))?;
    writeln!(out, "\t read_size        = {}", size(group.read_size.unwrap_or(0)))?;
    writeln!(out, "\t read_blocksize   = {}", size(group.read_blocksize.into()))?;
    writeln!(out, "\t read_skip        = {}", on_off(group.read_skip.is_some()))?;
    writeln!(out, "\t read_skipsize    = {}\n\t", size(group.read_skip.unwrap_or(0).into()))?;
    writeln!(out, "\t write_random     = {}", on_off(group.write_random))?;
    writeln!(out, "\t write_size       = {}", size(group.write_size.unwrap_or(0)))?;
    writeln!(out, "\t fsync_file       = 0")?;
    writeln!(out, "\t write_blocksize  = {}", size(group.write_blocksize.into()))?;
    writeln!(out, "\t wait time        = {}", group.op_delay)?;
    if let Some(index) = group.bindfs {
        writeln!(out, "\t\n\t bound to fs {index}")?;
    }
    writeln!(out, "\t\n\t op weights")?;
    let sum: u64 = group.weights.iter().map(|(_, weight)| u64::from(*weight)).sum();
    for op in Op::ALL {
        let weight = group.weights.iter().find(|(other, _)| *other == op).map_or(0, |(_, w)| *w);
        let percent = 100.0 * f64::from(weight) / sum as f64;
        writeln!(out, "\t {:>20} = {weight} ({percent:.2}%)", op.name())?;
    }
    writeln!(out, "\t")
}

fn file_system(
    out: &mut impl Write,
    profile: &Profile,
    fs: &FileSystem,
    utilisation: Option<f64>,
) -> io::Result<()> {
    writeln!(out, "FileSystem {}\n==========", fs.location)?;
    writeln!(out, "\t num_dirs         = {}", fs.num_dirs)?;
    writeln!(out, "\t starting files   = {}\n\t", fs.num_files)?;
    if fs.size_weights.is_empty() {
        for (name, bytes) in [("min", fs.min_filesize), ("max", fs.max_filesize)] {
            writeln!(out, "\t {name} file size    = {bytes}\t({})", human(bytes as f64))?;
        }
    } else {
        writeln!(out, "\t Fileset weight:")?;
        let sum: u64 = fs.size_weights.iter().map(|(_, weight)| u64::from(*weight)).sum();
        // FFSB keeps its lists with the last entry first.
        for (bytes, weight) in fs.size_weights.iter().rev() {
            let percent = 100.0 * f64::from(*weight) / sum as f64;
            let size = human(*bytes as f64);
            writeln!(out, "\t\t {bytes:>12} ({size:>6}) -> {weight} ({percent:.2}%)")?;
        }
    }
    writeln!(out, "\t directio         = {}", on_off(profile.directio))?;
    writeln!(out, "\t alignedio        = {}", on_off(profile.directio || profile.alignio))?;
    writeln!(out, "\t bufferedio       = off\n\t")?;
    writeln!(out, "\t aging is {}", on_off(fs.ageing.is_some()))?;
    if let Some(part) = utilisation {
        writeln!(out, "\t current utilization = {:.2}%", part * 100.0)?;
    }
    if let Some(group) = &fs.ageing {
        let desired = fs.desired_util.unwrap_or(0.0) * 100.0;
        writeln!(out, "\t desired utilization = {desired:.2}%\n\t ")?;
        writeln!(out, "\t Aging ThreadGroup for fs {}\n\t ================", fs.location)?;
        thread_group(out, group)?;
    }
    writeln!(out, "\t")
}

fn set_up(out: &mut impl Write, profile: &Profile, outcome: &Outcome) -> io::Result<()> {
    for fs in &profile.filesystems {
        let doing = if fs.reuse { "checking existing fs:" } else { "creating new fileset" };
        writeln!(out, "{doing} {}", fs.location)?;
    }
    for (index, fs) in profile.filesystems.iter().enumerate() {
        let now = outcome.phases.utilisation.get(index);
        if let (Some(_), Some(from), Some(to)) = (&fs.ageing, now, fs.desired_util) {
            writeln!(out, "aging fs {} from {from:.2} to {to:.2}", fs.location)?;
        }
    }
    writeln!(out, "fs setup took {} secs", outcome.setup_seconds.trunc())
}

fn results(out: &mut impl Write, profile: &Profile, outcome: &Outcome) -> io::Result<()> {
    // A run cannot be shorter; what divides by it stays a number.
    let seconds = outcome.seconds.max(1e-9);
    writeln!(out, "Results:\nBenchmark took {seconds:.2} sec\n")?;
    let several = outcome.groups.len() > 1;
    for (index, group) in outcome.groups.iter().enumerate() {
        if several {
            writeln!(out, "ThreadGroup {index}")?;
        } else {
            writeln!(out, "Total Results")?;
        }
        writeln!(out, "===============")?;
        operations(out, &group.ops, seconds)?;
        let stats = profile.thread_groups.get(index).map(|group| &group.stats);
        if stats.is_some_and(|stats| stats.enabled) {
            system_calls(out, group, stats.is_some_and(|stats| stats.ranges_enabled))?;
        }
        writeln!(out)?;
    }
    if several {
        writeln!(out, "Total Results\n===============")?;
        operations(out, &totals(&outcome.groups), seconds)?;
    }
    let (user, system) = (outcome.cpu_user_seconds, outcome.cpu_system_seconds);
    writeln!(out, "\n\n{:.1}% User   Time", 100.0 * user / seconds)?;
    writeln!(out, "{:.1}% System Time", 100.0 * system / seconds)?;
    writeln!(out, "{:.1}% CPU Utilization", 100.0 * (user + system) / seconds)
}

/// All groups together, one entry for each operation, in FFSB's order.
fn totals(groups: &[GroupOutcome]) -> Vec<OpOutcome> {
    let mut totals = Vec::new();
    for op in Op::ALL {
        let mut of_op = groups.iter().flat_map(|group| &group.ops).filter(|done| done.op == op);
        if let Some(first) = of_op.next() {
            totals.push(of_op.fold(*first, |sum, done| OpOutcome {
                op,
                drawn: sum.drawn + done.drawn,
                transactions: sum.transactions + done.transactions,
                read_bytes: sum.read_bytes + done.read_bytes,
                written_bytes: sum.written_bytes + done.written_bytes,
            }));
        }
    }
    totals
}

/// Whether FFSB gives a throughput for it.
fn moves_data(op: Op) -> bool {
    !matches!(op, Op::Delete | Op::Metaop | Op::Createdir | Op::Stat | Op::OpenClose)
}

fn operations(out: &mut impl Write, ops: &[OpOutcome], seconds: f64) -> io::Result<()> {
    let sum = |of: fn(&OpOutcome) -> u64| ops.iter().map(of).sum::<u64>();
    let (transactions, drawn) = (sum(|op| op.transactions), sum(|op| op.drawn));
    writeln!(
        out,
        "             Op Name   Transactions\t Trans/sec\t% Trans\t    % Op Weight\t   Throughput\n\
         \x20            =======   ============\t =========\t=======\t    ===========\t   =========="
    )?;
    let mut in_order: Vec<&OpOutcome> = ops.iter().filter(|op| op.transactions > 0).collect();
    in_order.sort_by_key(|op| op.op);
    for op in in_order {
        let throughput = if moves_data(op.op) {
            format!("{}/sec", human((op.read_bytes + op.written_bytes) as f64 / seconds))
        } else {
            "NA".into()
        };
        writeln!(
            out,
            "{:>20} : {:>12}\t{:>10.2}\t{:>6.3}%\t\t{:>6.3}%\t  {throughput:>11}",
            op.op.name(),
            op.transactions,
            op.transactions as f64 / seconds,
            100.0 * op.transactions as f64 / transactions as f64,
            100.0 * op.drawn as f64 / drawn as f64,
        )?;
    }
    writeln!(out, "-\n{:.2} Transactions per Second\n", transactions as f64 / seconds)?;
    let (read, written) = (sum(|op| op.read_bytes), sum(|op| op.written_bytes));
    if read > 0 || written > 0 {
        writeln!(out, "Throughput Results\n===================")?;
    }
    for (name, bytes) in [("Read", read), ("Write", written)] {
        if bytes > 0 {
            writeln!(out, "{name} Throughput: {}/sec", human(bytes as f64 / seconds))?;
        }
    }
    Ok(())
}

fn system_calls(out: &mut impl Write, group: &GroupOutcome, ranges: bool) -> io::Result<()> {
    writeln!(out, "\nSystem Call Latency statistics in millisecs\n=====")?;
    writeln!(out, "\t\tMin\t\tAvg\t\tMax\t\tTotal Calls")?;
    writeln!(out, "\t\t========\t========\t========\t============")?;
    let mut calls: Vec<&SyscallOutcome> = group.syscalls.iter().filter(|it| it.calls > 0).collect();
    calls.sort_by_key(|call| call.syscall);
    for call in calls {
        writeln!(
            out,
            "[{:>7}]\t{:.6}\t{:.6}\t{:.6}\t{:>12}",
            call.syscall.name(),
            call.min_ms,
            call.mean_ms,
            call.max_ms,
            call.calls
        )?;
        if !ranges || call.ranges.is_empty() {
            writeln!(out, "   -")?;
            continue;
        }
        for (index, (low, high, count)) in call.ranges.iter().rev().enumerate() {
            writeln!(out, "\t\t msec_range[{index}]\t{low:.6} - {high:.6} : {count:>8}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Bytes in FFSB's units, with three digits that count.
fn human(bytes: f64) -> String {
    let units = [(30, "GB"), (20, "MB"), (10, "KB"), (0, "B")];
    let in_unit = |shift: u32| bytes / f64::from(1u32 << shift);
    let fits = units.into_iter().find(|(shift, _)| in_unit(*shift) >= 1.0);
    let (shift, unit) = fits.unwrap_or((0, "B"));
    format!("{}{unit}", three_digits(in_unit(shift)))
}

/// What C's `%.3g` gives for a number that is not negative.
fn three_digits(number: f64) -> String {
    // Rounded to three digits first: 9.999 has the exponent of 10.
    let scientific = format!("{number:.2e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let plain = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if (-4..3).contains(&exponent) {
        let decimals = usize::try_from(2 - exponent).unwrap_or(0);
        return plain(&format!("{number:.decimals$}"));
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", plain(digits), exponent.abs())
}

/// As C's `ctime` writes it, in UTC: `Thu Jan  1 00:00:00 1970`.
fn time_of_day(unix: u64) -> String {
    let (days, second) = (unix / 86_400, unix % 86_400);
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{weekday} {month} {day:>2} {hour:02}:{minute:02}:{second:02} {year}")
}

/// Year, month and day of a number of days since 1970. Counted in eras of 400 years that begin in March, so that a leap day comes last.
fn date(days: u64) -> (u64, &'static str, u64) {
    const MONTHS: [&str; 12] =
        ["Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb"];
    // From 0000-03-01.
    let days = days.saturating_add(719_468);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year + u64::from(month >= 10);
    (year, MONTHS[usize::try_from(month).unwrap_or(0).min(11)], day)
}
