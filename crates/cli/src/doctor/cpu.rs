//! CPUs: how many, how fast they wake, and who else uses them.

use super::finding::{Finding, Id, Status};
use super::host::Host;

const CPUS: &str = "/sys/devices/system/cpu";

/// What the CPUs' settings mean.
pub fn check(host: &Host, out: &mut Vec<Finding>) {
    out.push(count(host));
    out.push(governor(host));
    out.push(idle(host));
    out.extend(mitigations(host));
    out.push(steal(host));
}

fn count(host: &Host) -> Finding {
    let source = "/proc/self/status";
    let Some(cpus) = host.cpus() else {
        return Finding::unknown(
            Id::CpuCount,
            "CPUs that we may run on",
            source,
            "the kernel does not say",
        );
    };
    let what = format!("{cpus} CPUs to run on");
    match cpus {
        1 => Finding::new(
            Id::CpuCount,
            Status::Warning,
            what,
            source,
            "guest, I/O thread and kernel take turns on one CPU: each request is two \
             switches of context, and polling holds up what it waits for",
        )
        .fix("more CPUs (taskset, cpuset, the VM's configuration); here: --poll-max-us 0"),
        2..4 => Finding::new(
            Id::CpuCount,
            Status::Note,
            what,
            source,
            "a guest with two vCPUs, its I/O thread and the load itself do not fit side \
             by side: figures with many threads measure the CPUs, not the disk",
        ),
        _ => Finding::new(
            Id::CpuCount,
            Status::Ok,
            what,
            source,
            "room for vCPUs and I/O threads side by side",
        ),
    }
}

/// CPUs in /sys that are numbered.
fn numbered(host: &Host) -> impl Iterator<Item = String> {
    let names = host.names(CPUS).into_iter();
    names
        .filter(|name| name.strip_prefix("cpu").is_some_and(|number| number.parse::<u32>().is_ok()))
}

fn governor(host: &Host) -> Finding {
    let source = format!("{CPUS}/cpu*/cpufreq/scaling_governor");
    let mut governors: Vec<String> = numbered(host)
        .filter_map(|cpu| host.text(&format!("{CPUS}/{cpu}/cpufreq/scaling_governor")).ok())
        .collect();
    governors.sort();
    governors.dedup();
    if governors.is_empty() {
        let means =
            "the clock is not ours to choose: a virtual machine's host or the firmware does";
        return Finding::new(Id::CpuGovernor, Status::Ok, "no control of the clock", source, means);
    }
    let driver = host.text(&format!("{CPUS}/cpu0/cpufreq/scaling_driver")).unwrap_or_default();
    // These choose the clock in hardware; their powersave is no fixed low clock.
    let by_hardware = driver == "intel_pstate"
        || driver.starts_with("amd-pstate-epp")
        || driver == "amd_pstate_epp";
    let worst = |names: &[&str]| governors.iter().any(|own| names.contains(&own.as_str()));
    let what = format!("clock governor {}", governors.join(", "));
    let fix = "cpupower frequency-set -g performance, or tuned-adm profile virtual-host";
    if worst(&["powersave"]) && !by_hardware {
        return Finding::new(
            Id::CpuGovernor,
            Status::Warning,
            what,
            source,
            "CPUs stay at their lowest clock: all software on a request's way takes two \
             to three times as long",
        )
        .fix(fix);
    }
    if worst(&["powersave", "ondemand", "conservative", "schedutil", "userspace"]) {
        return Finding::new(
            Id::CpuGovernor,
            Status::Note,
            what,
            source,
            "the clock follows the load. An I/O thread that sleeps much looks like \
             little load: with few requests in flight, latency is that of a low clock, \
             and figures vary",
        )
        .fix(fix);
    }
    Finding::new(
        Id::CpuGovernor,
        Status::Ok,
        what,
        source,
        "the clock is at its highest when a request comes",
    )
}

/// Microseconds to wake up that a request of an NVMe disk feels.
const WAKE_US: i64 = 50;

fn idle(host: &Host) -> Finding {
    let dir = format!("{CPUS}/cpu0/cpuidle");
    let states = host.names(&dir);
    let mut deepest: Option<(i64, String)> = None;
    for state in states.iter().filter(|name| name.starts_with("state")) {
        let file = |name: &str| format!("{dir}/{state}/{name}");
        if host.number(&file("disable")) == Ok(1) {
            continue;
        }
        let Ok(latency) = host.number(&file("latency")) else { continue };
        if deepest.as_ref().is_none_or(|(most, _)| latency > *most) {
            deepest = Some((latency, host.text(&file("name")).unwrap_or_else(|_| state.clone())));
        }
    }
    match deepest {
        Some((latency, name)) if latency > WAKE_US => Finding::new(
            Id::CpuIdle,
            Status::Note,
            format!("an idle CPU sleeps as deep as {name}, {latency} µs to wake"),
            dir,
            "with few requests in flight, a CPU that waits for a fast disk may take \
             longer to wake than the disk to answer",
        )
        .fix(format!(
            "cpupower idle-set -D {WAKE_US}, or tuned-adm profile latency-performance \
             (costs power)"
        )),
        Some((latency, name)) => Finding::new(
            Id::CpuIdle,
            Status::Ok,
            format!("an idle CPU sleeps no deeper than {name}, {latency} µs to wake"),
            dir,
            "waking takes less than a fast disk's answer",
        ),
        None => Finding::new(
            Id::CpuIdle,
            Status::Ok,
            "no idle states to choose from",
            dir,
            "idle CPUs just halt; in a virtual machine its host decides what that costs",
        ),
    }
}

/// All mitigations in one line.
fn mitigations(host: &Host) -> Option<Finding> {
    let dir = format!("{CPUS}/vulnerabilities");
    let mut mitigated = Vec::new();
    let mut open = Vec::new();
    let names = host.names(&dir);
    for name in &names {
        let text = host.text(&format!("{dir}/{name}")).unwrap_or_default();
        let state = text.to_lowercase();
        if state.contains("not affected") && !state.contains("mitigation") {
            continue;
        }
        if state.contains("vulnerable") {
            open.push(name.as_str())
        } else {
            mitigated.push(name.as_str())
        }
    }
    if names.is_empty() {
        return None;
    }
    let listed =
        |names: &[&str]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let what = format!("mitigated: {}; open: {}", listed(&mitigated), listed(&open));
    Some(if mitigated.is_empty() && open.is_empty() {
        let what = "the CPU has none of the known leaks";
        Finding::new(
            Id::CpuMitigations,
            Status::Ok,
            what,
            dir,
            "system calls and exits cost what the CPU makes them cost",
        )
    } else if !open.is_empty() {
        Finding::new(
            Id::CpuMitigations,
            Status::Note,
            what,
            dir,
            "what is open makes system calls and exits no slower, but a guest may read \
             memory that is not its own; what is mitigated costs on each system call, \
             exit and switch. Compare figures only with the same list",
        )
        .fix(
            "later microcode and kernel; no mitigations=off on the kernel's command line \
             where guests are not trusted",
        )
    } else {
        Finding::new(
            Id::CpuMitigations,
            Status::Note,
            what,
            dir,
            "each system call, exit and switch of context costs up to some hundred \
             nanoseconds more: batches and polling make up for it. Compare figures only \
             with the same list",
        )
    })
}

fn steal(host: &Host) -> Finding {
    let source = "/proc/stat";
    let text = match host.text(source) {
        Ok(text) => text,
        Err(why) => return Finding::unknown(Id::CpuSteal, "stolen CPU time", source, why),
    };
    // cpu user nice system idle iowait irq softirq steal guest guest_nice; guest times are counted in user and nice too.
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "));
    let times: Vec<u64> = line
        .unwrap_or("")
        .split_whitespace()
        .take(8)
        .filter_map(|time| time.parse().ok())
        .collect();
    let &[user, nice, system, _, _, irq, softirq, steal] = &times[..] else {
        return Finding::unknown(
            Id::CpuSteal,
            "stolen CPU time",
            source,
            "the first line is not as it should be",
        );
    };
    let wanted = [user, nice, system, irq, softirq, steal].into_iter().fold(0, u64::saturating_add);
    let permille = u128::from(steal) * 1000 / u128::from(wanted.max(1));
    let what = format!(
        "{}.{} % of the CPU time wanted since boot was stolen",
        permille / 10,
        permille % 10
    );
    let means = "the hypervisor below ran others while this machine had work: requests wait \
        for a CPU that is not there, and figures vary";
    match permille {
        0..10 => {
            Finding::new(Id::CpuSteal, Status::Ok, what, source, "CPUs run when there is work")
        }
        10..50 => Finding::new(Id::CpuSteal, Status::Note, what, source, means)
            .fix("measure several times, interleaved, and compare medians"),
        _ => Finding::new(Id::CpuSteal, Status::Warning, what, source, means).fix(
            "a host with CPUs to spare, or CPUs of your own; until then only interleaved \
             comparisons mean anything",
        ),
    }
}
