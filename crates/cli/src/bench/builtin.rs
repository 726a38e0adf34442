//! `ferroblk bench scenarios` and `ferroblk bench profile`: what there is by name.

use super::{Failure, print, scale, scenario};
use clap::Args;
use ffsb::profile::scenario::{Scale, Scenario};

/// Lists the scenarios.
#[derive(Args, Debug)]
pub struct ScenariosArgs {
    /// Says what each data set is when it is divided by so much
    #[arg(long, value_name = "N", default_value = "1", value_parser = scale)]
    scale: Scale,
}

const EXAMPLES: &str = "\
Examples:
  ferroblk bench profile mail-server-8k --dir /mnt/test --threads 8 > mail.ffsb
      a profile to edit, for `ferroblk bench run mail.ffsb`, or for FFSB itself";

/// Writes a scenario as a profile of FFSB, to stdout.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ProfileArgs {
    /// Which
    #[arg(value_parser = scenario)]
    name: Scenario,
    /// Its `location`
    #[arg(long, value_name = "DIR", default_value = "/mnt/test")]
    dir: String,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    threads: u32,
    /// Seconds of the benchmark
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// By what the data set is divided
    #[arg(long, value_name = "N", default_value = "1", value_parser = scale)]
    scale: Scale,
}

/// Prints the list.
pub fn scenarios(args: &ScenariosArgs) -> Result<(), Failure> {
    Ok(print(|out| {
        for one in Scenario::ALL {
            writeln!(
                out,
                "{}\n    {}\n    {}",
                one.name(),
                one.what(),
                one.scale_note(args.scale)
            )?;
        }
        Ok(())
    })?)
}

/// Prints a profile.
pub fn profile(args: &ProfileArgs) -> Result<(), Failure> {
    let profile = args.name.profile(args.threads, &args.dir, args.seconds, args.scale);
    Ok(print(|out| {
        writeln!(out, "# {}: {}", args.name.name(), args.name.what())?;
        writeln!(out, "# {}", args.name.scale_note(args.scale))?;
        write!(out, "{profile}")
    })?)
}
