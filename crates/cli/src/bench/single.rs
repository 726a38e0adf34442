//! `ferroblk bench run`: one workload on one target.

use super::stop::Stop;
use super::{Failure, print, read_profile, scale, seconds, some_seconds};
use crate::text::escape;
use block::CacheMode;
use clap::Args;
use ffsb::disk::Lane;
use ffsb::disk::file::FileLane;
use ffsb::disk::vhost_user::{VhostUserDisk, VhostUserOptions};
use ffsb::outcome::Outcome;
use ffsb::profile::Profile;
use ffsb::profile::scenario::{Scale, Scenario};
use ffsb::report::{Run, figures::Measure, number};
use ffsb::run::{Cleanup, Control, EXTENT_LAYOUT_REMARK, Place, RunErrorKind, lanes_needed};
use rustix::fs::{FileType, Mode, OFlags};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  ferroblk bench run random-read-8k --dir /mnt/test --scale 16 --threads 8 --seconds 30
      a scenario in a directory; the files are removed afterwards
  ferroblk bench run mail.ffsb --ffsb
      a profile where it says, with FFSB's own output; the files are removed, unless --keep says otherwise
  ferroblk bench run mixed-8k --scale 64 --vhost-user /run/vm1.sock --destroy
      a disk that any vhost-user-blk server offers
  ferroblk bench run random-write-8k --file /dev/nvme1n1 --destroy
      a block device";

/// Runs one workload on one target: a directory, a served disk, a file or a block device.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    /// A profile, or the name of a scenario
    #[arg(value_name = "PROFILE|SCENARIO")]
    workload: PathBuf,
    /// The directory, instead of the profile's location
    #[arg(long, value_name = "DIR", conflicts_with_all = ["vhost_user", "file"])]
    dir: Option<PathBuf>,
    /// Socket of a vhost-user-blk server, whose disk is overwritten
    #[arg(long, value_name = "SOCKET", conflicts_with = "file")]
    vhost_user: Option<PathBuf>,
    /// A file or block device, which is overwritten
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// What the disk, block device or file holds may be destroyed
    #[arg(long, conflicts_with = "dir")]
    destroy: bool,
    /// Cache mode of a file or block device: none, writeback, writethrough, directsync, unsafe
    #[arg(long, value_name = "MODE", default_value_t, requires = "file")]
    cache: CacheMode,
    /// Request queues of a served disk
    #[arg(long, value_name = "N", default_value_t = 1, requires = "vhost_user", value_parser = clap::value_parser!(u16).range(1..=64))]
    queues: u16,
    /// Threads in each thread group [default: the profile's; 1 for a scenario]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Seconds of the run [default: the profile's; 10 for a scenario]
    #[arg(long, value_name = "S", value_parser = seconds)]
    seconds: Option<f64>,
    /// Seconds of work before, which do not count
    #[arg(long, value_name = "S", default_value = "0", value_parser = some_seconds)]
    warm_up: f64,
    /// By what a scenario's data set is divided [default: 16]
    #[arg(long, value_name = "N", value_parser = scale)]
    scale: Option<Scale>,
    /// Seed of what is drawn
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// O_DIRECT in a directory
    #[arg(long)]
    direct: bool,
    /// Each block carries what it is, and is checked when it is read, and in the end
    #[arg(long)]
    verify: bool,
    /// Leaves the files in the directory
    #[arg(long)]
    keep: bool,
    /// Prints what FFSB would print
    #[arg(long, conflicts_with = "json")]
    ffsb: bool,
    /// Prints the outcome as one JSON document
    #[arg(long)]
    json: bool,
}

/// Runs it and prints what came of it.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let (name, mut profile) = workload(args)?;
    if let Some(threads) = args.threads {
        profile.thread_groups.iter_mut().for_each(|group| group.num_threads = threads);
    }
    profile.seed = args.seed.or(profile.seed);
    profile.verify |= args.verify;
    profile.directio |= args.direct;
    let mut lanes = lanes(args, &profile)?;
    let target = target(args);
    let place = match target {
        Some(_) => Place::Disk { name: "the disk", lanes: &mut lanes },
        None => Place::Directories,
    };
    let stop = Stop::catch()?;
    let outcome = measure(args, &profile, place, &stop).map_err(|failure| match failure {
        Failure::Line(line) => Failure::Line(format!("{name}: {line}")),
        other => other,
    })?;
    print(|mut out| match (args.ffsb, args.json) {
        (true, _) => ffsb::text::write(&mut out, &profile, &outcome),
        (_, true) => writeln!(out, "{}", serde_json::to_string(&outcome)?),
        _ => summary(out, &name, target, &outcome),
    })?;
    Ok(())
}

fn measure(
    args: &RunArgs,
    profile: &Profile,
    place: Place<'_>,
    stop: &Stop,
) -> Result<Outcome, Failure> {
    let control = Control {
        stop: stop.flag(),
        warm_up_seconds: args.warm_up,
        cleanup: if args.keep { Cleanup::Keep } else { Cleanup::Remove },
        seconds: args.seconds,
        ..Control::default()
    };
    ffsb::run::run(profile, place, &control).map_err(|error| match error.kind() {
        RunErrorKind::Interrupted => Failure::Signal(stop.signal()),
        _ => Failure::Line(error.to_string()),
    })
}

/// The workload's name, and its profile in its place.
fn workload(args: &RunArgs) -> Result<(String, Profile), String> {
    let name = args.workload.display().to_string();
    let dir = args.dir.as_ref().map(|dir| dir.to_string_lossy().into_owned());
    let scenario = args.workload.to_str().and_then(Scenario::by_name);
    if let Some(scenario) = scenario {
        if dir.is_none() && target(args).is_none() {
            return Err(format!("{name}: say where: --dir, --vhost-user or --file"));
        }
        let scale = args.scale.or(Scale::new(16)).unwrap_or(Scale::FULL);
        let place = dir.as_deref().unwrap_or("/");
        return Ok((name, scenario.profile(1, place, 10, scale)));
    }
    if args.scale.is_some() {
        return Err(format!("{name}: --scale is for scenarios; a profile says its sizes itself"));
    }
    if !args.workload.exists() {
        let known: Vec<&str> = Scenario::ALL.into_iter().map(Scenario::name).collect();
        return Err(format!(
            "{name}: there is no such profile, and no such scenario: {}",
            known.join(", ")
        ));
    }
    let mut profile = read_profile(&args.workload)?;
    match (dir, profile.filesystems.as_mut_slice()) {
        (None, _) => {}
        (Some(dir), [one]) => one.location = dir,
        (Some(_), all) => {
            return Err(format!(
                "{name}: --dir takes the place of one location, and the profile has {}",
                all.len()
            ));
        }
    }
    Ok((name, profile))
}

/// The disk without a file system that is measured, if it is one.
fn target(args: &RunArgs) -> Option<&Path> {
    args.vhost_user.as_deref().or(args.file.as_deref())
}

/// A lane for each thread; none in a directory.
fn lanes(args: &RunArgs, profile: &Profile) -> Result<Vec<Box<dyn Lane>>, String> {
    let count = lanes_needed(profile);
    if let Some(socket) = &args.vhost_user {
        let shown = escape(&socket.to_string_lossy());
        if !args.destroy {
            return Err(format!(
                "{shown}: the run overwrites what the disk holds: only with --destroy"
            ));
        }
        let share = count.div_ceil(usize::from(args.queues)) * 3;
        let queue_size = u16::try_from(share.next_power_of_two()).unwrap_or(1024).clamp(128, 1024);
        let options = VhostUserOptions {
            queues: args.queues,
            queue_size,
            lanes: count,
            ..VhostUserOptions::default()
        };
        let disk = VhostUserDisk::connect(socket, &options).map_err(|error| error.to_string())?;
        let lane = |index| disk.lane(index).map(|lane| Box::new(lane) as Box<dyn Lane>);
        return (0..count).map(lane).collect::<io::Result<_>>().map_err(|error| error.to_string());
    }
    let Some(path) = &args.file else { return Ok(Vec::new()) };
    let refuse =
        |why: &dyn std::fmt::Display| format!("{}: {why}", escape(&path.to_string_lossy()));
    if !args.destroy {
        may_overwrite(path).map_err(|why| refuse(&why))?;
    }
    let lanes = FileLane::open(path, args.cache, count).map_err(|error| refuse(&error))?;
    Ok(lanes.into_iter().map(|lane| Box::new(lane) as Box<dyn Lane>).collect())
}

/// Whether nothing is lost if a file is overwritten: it holds no data, only a size.
fn may_overwrite(path: &Path) -> Result<(), String> {
    let text = |error: rustix::io::Errno| error.to_string();
    let kind = FileType::from_raw_mode(rustix::fs::stat(path).map_err(text)?.st_mode);
    if kind == FileType::BlockDevice {
        return Err("the run overwrites what the device holds: only with --destroy".to_owned());
    }
    let file =
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(text)?;
    match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)) {
        // No data from here to the end.
        Err(rustix::io::Errno::NXIO) => Ok(()),
        Err(error) => Err(text(error)),
        Ok(_) => {
            Err("it is not empty, and the run overwrites what it holds: only with --destroy"
                .to_owned())
        }
    }
}

/// The outcome for people.
fn summary(
    out: &mut dyn Write,
    name: &str,
    target: Option<&Path>,
    outcome: &Outcome,
) -> io::Result<()> {
    let run = Run::of(outcome, 0.0, 0.0);
    writeln!(
        out,
        "{}: {:.2} s, set-up {:.2} s",
        escape(name),
        outcome.seconds,
        outcome.setup_seconds
    )?;
    let of = |measure: Measure| measure.of(&run).map_or("-".to_owned(), number::figure);
    writeln!(out, "  {} transactions/s, {} MB/s", of(Measure::Iops), of(Measure::MbPerSecond))?;
    if outcome.latency.count > 0 {
        let us = |us: f64| number::micros(us);
        let latency = &outcome.latency;
        writeln!(
            out,
            "  a block takes: p50 {}, p95 {}, p99 {}, p99.9 {}, at most {}",
            us(latency.p50_us),
            us(latency.p95_us),
            us(latency.p99_us),
            us(latency.p999_us),
            us(latency.max_us)
        )?;
    }
    let percent = |seconds: f64| number::percent(seconds / run.seconds);
    let (user, system) = (percent(outcome.cpu_user_seconds), percent(outcome.cpu_system_seconds));
    writeln!(out, "  CPU of this process: {user} user, {system} system")?;
    for (index, group) in outcome.groups.iter().enumerate() {
        for op in &group.ops {
            let group =
                if outcome.groups.len() > 1 { format!("group {index} ") } else { String::new() };
            let mb = (op.read_bytes as f64 + op.written_bytes as f64) / 1e6;
            writeln!(
                out,
                "  {group}{}: {} times, {} transactions, {mb:.1} MB",
                op.op.name(),
                op.drawn,
                op.transactions
            )?;
        }
    }
    match target {
        Some(_) => writeln!(out, "note: {EXTENT_LAYOUT_REMARK}"),
        None => Ok(()),
    }
}
