//! `ferroblk doctor`: looks at the host and says what it means for the speed and safety of disks.
//!
//! ```text
//!  PATH --spot--> what it is, what files there can do (tried)
//!    |
//!  mount --> file system and options        host: /proc, /sys (read), system calls (tried)
//!    |                                        |
//!  stack --> disk: the lowest devices       engines, memory, kvm, cpu, limits, programs
//!    |                                        |
//!    +--------------> findings <--------------+
//!                        |
//!                     report: for people, or one JSON document
//! ```
//!
//! Nothing on the host is changed, and nothing is waited for without limit. What is read goes through [`host::Host`], what is tried
//! is in [`probed::Probed`] and [`spot::Trials`]: so every judgement is tested on made-up hosts.

mod cpu;
mod disk;
mod engines;
mod finding;
mod host;
mod kvm;
mod limits;
mod memory;
mod mount;
mod probed;
mod programs;
mod report;
mod spot;
mod stack;
#[cfg(test)]
mod tests;

use crate::text::escape;
use clap::Args;
use finding::Finding;
use host::Host;
use mount::Mounts;
use probed::{Probed, in_time};
use spot::Spot;
use stack::{Device, Stack};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a file system may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  ferroblk doctor
      looks at this host and the disk under the current directory
  ferroblk doctor /var/lib/images /dev/vg0/vm1
      looks at a directory and a block device where disks live
  ferroblk doctor --json | jq -r '.findings[] | select(.status == \"warning\").id'
      names what costs speed and can be changed
  ferroblk doctor vm.qcow2 --verbose
      also says what each thing means that is as it should be

Of each finding it says whether it is ok, a note (worth knowing when figures are read), a warning (costs speed), a problem (data is at risk, or \
something does not work) or unknown (and why). Nothing is changed on the host: what files can do is tried on an unnamed temporary file in the \
directory.

Exit code: 0 whatever was found; 1 if a PATH could not be looked at (it does not exist, may not be entered, or its file system does not answer \
within ten seconds); 2 for a wrong command line.";

/// Looks at this host and says what slows disks down, and what to do about it.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct DoctorArgs {
    /// Where disks live: directories, images or block devices [default: the current directory]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Prints one JSON document
    #[arg(long)]
    json: bool,
    /// Says also of what is as it should be what it means and where it was read
    #[arg(short, long, conflicts_with = "json")]
    verbose: bool,
}

/// A path with what is under it.
#[derive(Debug)]
struct Place {
    spot: Spot,
    stack: Stack,
}

/// Looks and reports. The error is one line for the user.
pub fn run(args: &DoctorArgs) -> Result<(), String> {
    let host = Host::at(Path::new("/"));
    let mounts = Mounts::read(&host);
    let here = [PathBuf::from(".")];
    let paths = if args.paths.is_empty() { &here[..] } else { &args.paths };
    let mut places: Vec<Place> = Vec::new();
    for path in paths {
        let spot = look(&mounts, path)?;
        if places.iter().all(|place| place.spot.path != spot.path) {
            let stack = Stack::under(&host, &mounts, &spot);
            places.push(Place { spot, stack });
        }
    }
    let probed = Probed::live();
    let findings = examine(&host, &mounts, &places, &probed);
    let text = if args.json {
        report::json(&host, &mounts, &places, &findings)
    } else {
        report::text(&host, &places, &findings, &report::Style::of_stdout(args.verbose))
    };
    report::print(&text)
}

/// Looks at a path, for a limited time.
fn look(mounts: &Mounts, path: &Path) -> Result<Spot, String> {
    let shown = escape(&path.to_string_lossy());
    let of_thread = path.to_owned();
    match in_time(PATIENCE, move || Spot::examine(&of_thread)) {
        Some(spot) => spot.map_err(|why| format!("looking at {shown}: {why}")),
        None => Err(format!("looking at {shown}: {}", no_answer(mounts, path))),
    }
}

/// Which file system it is that does not answer.
fn no_answer(mounts: &Mounts, path: &Path) -> String {
    // As written, without asking anybody: whoever could resolve it does not answer.
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mount = mounts.holding(None, &absolute.to_string_lossy());
    let on = mount.map_or(String::new(), |mount| {
        format!(" ({} from {} on {})", mount.kind, mount.source, mount.point)
    });
    format!("its file system{on} does not answer within {} seconds", PATIENCE.as_secs())
}

/// All findings, in the order of the report.
fn examine(host: &Host, mounts: &Mounts, places: &[Place], probed: &Probed) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut devices: Vec<Device> = Vec::new();
    for place in places {
        stack::check(host, &place.stack, &place.spot, &mut found);
        for device in &place.stack.lowest {
            disk::check(host, device, &mut found);
        }
        mount::check(mounts, &place.spot, &mut found);
        spot::check(&place.spot, &mut found);
        devices.extend(place.stack.all().cloned());
    }
    engines::check(host, probed, &mut found);
    memory::check(host, probed, &mut found);
    kvm::check(host, probed, &mut found);
    cpu::check(host, &mut found);
    limits::check(host, mounts, &devices, &mut found);
    programs::check(host, probed, &mut found);
    // Paths on one file system or disk share its findings.
    let mut known = std::collections::BTreeSet::new();
    found.retain(|finding| known.insert((finding.id, finding.subject.clone())));
    let group = |finding: &Finding| {
        finding::Group::ALL.iter().position(|group| *group == finding.id.group())
    };
    found.sort_by_key(|finding| (group(finding), finding.status));
    found
}
