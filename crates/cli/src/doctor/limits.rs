//! Limits of the control group that we run in, and so of a server started from here.

use super::finding::{Finding, Id, Status};
use super::host::Host;
use super::mount::Mounts;
use super::stack::Device;

const CGROUP: &str = "/proc/self/cgroup";
/// Groups from ours to the root at most.
const DEPTH_MAX: usize = 64;

/// Directories of our group and those above it, for one controller; the nearest first. Empty where it is not mounted.
struct Groups {
    dirs: Vec<String>,
    /// Version 2.
    unified: bool,
}

impl Groups {
    fn of(host: &Host, mounts: &Mounts, controller: &str) -> Option<Groups> {
        let own = host.text(CGROUP).ok()?;
        let all = mounts.all().ok()?;
        let path_of = |wanted: &str| {
            own.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let (controllers, path) = (parts.next()?, parts.next()?);
                controllers.split(',').any(|own| own == wanted).then(|| path.to_owned())
            })
        };
        // A controller is in one hierarchy only: in an old one if that has it, else in the unified one.
        let old = all.iter().find(|mount| mount.kind == "cgroup" && mount.has(controller));
        let new = all.iter().find(|mount| mount.kind == "cgroup2");
        let (mount, path, unified) = match (old, path_of(controller), new, path_of("")) {
            (Some(mount), Some(path), _, _) => (mount, path, false),
            (_, _, Some(mount), Some(path)) => (mount, path, true),
            _ => return None,
        };
        let mut path = path.trim_end_matches('/').to_owned();
        let mut dirs = Vec::new();
        while dirs.len() < DEPTH_MAX {
            dirs.push(format!("{}{path}", mount.point));
            match path.rfind('/') {
                Some(at) => path.truncate(at),
                None => break,
            }
        }
        Some(Groups { dirs, unified })
    }

    /// A file's content in each of the groups that has it, with its path.
    fn texts(&self, host: &Host, name: &str) -> Vec<(String, String)> {
        let files = self.dirs.iter().map(|dir| format!("{dir}/{name}"));
        files.filter_map(|file| Some((host.text(&file).ok()?, file))).collect()
    }
}

/// What the limits mean for these devices.
pub fn check(host: &Host, mounts: &Mounts, devices: &[Device], out: &mut Vec<Finding>) {
    let why = "control groups are not mounted, or not shown to us";
    match Groups::of(host, mounts, "cpu") {
        Some(groups) => out.push(cpu(host, &groups)),
        None => out.push(Finding::unknown(Id::CgroupCpu, "limit on CPU time", CGROUP, why)),
    }
    match Groups::of(host, mounts, "blkio") {
        Some(groups) => {
            out.push(io(host, &groups, devices));
            out.push(weight(host, &groups));
        }
        None => out.push(Finding::unknown(Id::CgroupIo, "limit on I/O", CGROUP, why)),
    }
}

/// Quota and period in microseconds, the tightest of all groups, with its file.
fn quota(host: &Host, groups: &Groups) -> Option<(u64, u64, String)> {
    let limits: Vec<(u64, u64, String)> = if groups.unified {
        let parse = |(text, file): (String, String)| {
            let (quota, period) = text.split_once(' ')?;
            Some((quota.parse().ok()?, period.parse().ok()?, file))
        };
        groups.texts(host, "cpu.max").into_iter().filter_map(parse).collect()
    } else {
        let parse = |(text, file): (String, String)| {
            let period = host.text(&file.replace("cfs_quota_us", "cfs_period_us")).ok()?;
            // Without a limit it is -1, which is no u64.
            Some((text.parse().ok()?, period.parse().ok()?, file))
        };
        groups.texts(host, "cpu.cfs_quota_us").into_iter().filter_map(parse).collect()
    };
    let real = limits.into_iter().filter(|(_, period, _)| *period > 0);
    real.min_by(|a, b| {
        (u128::from(a.0) * u128::from(b.1)).cmp(&(u128::from(b.0) * u128::from(a.1)))
    })
}

fn cpu(host: &Host, groups: &Groups) -> Finding {
    let Some((quota, period, source)) = quota(host, groups) else {
        let source = groups.dirs.first().cloned().unwrap_or_default();
        return Finding::new(
            Id::CgroupCpu,
            Status::Ok,
            "no limit on CPU time",
            source,
            "a server started from here runs when it has work",
        );
    };
    let hundredths = u128::from(quota) * 100 / u128::from(period);
    let what = format!("at most {}.{:02} CPUs' worth of time", hundredths / 100, hundredths % 100);
    Finding::new(
        Id::CgroupCpu,
        Status::Warning,
        what,
        source,
        "when the share of a period is used up, I/O threads and vCPUs stand still \
         until the next: requests then take up to 100 ms. Polling uses the share up \
         while it waits",
    )
    .fix(
        "systemctl set-property UNIT CPUQuota=, or run the container without a CPU \
         limit; else --poll-max-us 0",
    )
}

fn io(host: &Host, groups: &Groups, devices: &[Device]) -> Finding {
    let files: &[&str] = if groups.unified {
        &["io.max"]
    } else {
        &[
            "blkio.throttle.read_bps_device",
            "blkio.throttle.write_bps_device",
            "blkio.throttle.read_iops_device",
            "blkio.throttle.write_iops_device",
        ]
    };
    let mut ours = Vec::new();
    let mut others = Vec::new();
    for (text, file) in files.iter().flat_map(|name| groups.texts(host, name)) {
        for line in text.lines() {
            let Some((number, limit)) = line.split_once(' ') else { continue };
            if groups.unified && limit.split(' ').all(|part| part.ends_with("=max")) {
                continue;
            }
            let kind = file.rsplit('/').next().unwrap_or("").trim_start_matches("blkio.throttle.");
            match devices.iter().find(|device| device.number == number) {
                Some(device) => {
                    ours.push((format!("{}: {kind} {limit}", device.name), file.clone()))
                }
                None => others.push((format!("{number}: {kind} {limit}"), file.clone())),
            }
        }
    }
    let listed = |limits: &[(String, String)]| {
        limits.iter().map(|(limit, _)| limit.as_str()).collect::<Vec<_>>().join("; ")
    };
    if let Some((_, source)) = ours.first() {
        let means = "requests beyond this wait in the kernel: the disk is as slow as the limit, \
            whatever else you change";
        return Finding::new(
            Id::CgroupIo,
            Status::Warning,
            format!("I/O is limited: {}", listed(&ours)),
            source.clone(),
            means,
        )
        .fix(
            "systemctl set-property UNIT IOReadBandwidthMax= IOWriteBandwidthMax= \
             IOReadIOPSMax= IOWriteIOPSMax=, or echo 'MAJ:MIN rbps=max wbps=max \
             riops=max wiops=max' into io.max",
        );
    }
    if let Some((_, source)) = others.first() {
        let means =
            "limits on devices that are not under the given paths: nothing for the disks there";
        return Finding::new(
            Id::CgroupIo,
            Status::Note,
            format!("I/O of other devices is limited: {}", listed(&others)),
            source.clone(),
            means,
        );
    }
    let source = groups.dirs.first().cloned().unwrap_or_default();
    Finding::new(
        Id::CgroupIo,
        Status::Ok,
        "no limit on I/O",
        source,
        "requests are not held back on purpose",
    )
}

fn weight(host: &Host, groups: &Groups) -> Finding {
    let names: &[&str] = if groups.unified {
        &["io.weight", "io.bfq.weight"]
    } else {
        &["blkio.bfq.weight", "blkio.weight"]
    };
    let all = names.iter().flat_map(|name| groups.texts(host, name));
    // 100 is everybody's, 500 the old one of cfq.
    let usual = ["100", "default 100", "500"];
    let odd = all
        .into_iter()
        .find(|(text, _)| text.lines().next().is_some_and(|line| !usual.contains(&line.trim())));
    match odd {
        Some((text, source)) => Finding::new(
            Id::CgroupIoWeight,
            Status::Note,
            format!("I/O weight {}", text.lines().next().unwrap_or("")),
            source,
            "where the scheduler is bfq or io.cost is on, this group gets another share \
             of a busy disk than others: figures depend on who else is at work",
        )
        .fix("systemctl set-property UNIT IOWeight=100"),
        None => Finding::new(
            Id::CgroupIoWeight,
            Status::Ok,
            "the usual I/O weight",
            groups.dirs.first().cloned().unwrap_or_default(),
            "a busy disk is shared evenly",
        ),
    }
}
