//! The kernel's age, and the programs that attach our disks.

use super::finding::{Finding, Id, Status};
use super::host::Host;
use super::probed::{Probed, QEMU};

/// What versions mean.
pub fn check(host: &Host, probed: &Probed, out: &mut Vec<Finding>) {
    out.push(kernel(host));
    out.push(qemu(probed));
    out.push(storage_daemon(probed));
    out.push(cloud_hypervisor(probed));
}

/// The first two numbers of a version in a text: `QEMU emulator version 10.0.2 (Debian ...)`.
fn version(text: &str) -> Option<(u32, u32)> {
    let numbers = |word: &str| {
        let mut parts = word.trim_start_matches('v').split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    text.split_whitespace().find_map(numbers)
}

fn kernel(host: &Host) -> Finding {
    let source = "/proc/sys/kernel/osrelease";
    let release = match host.text(source) {
        Ok(release) => release,
        Err(why) => {
            return Finding::unknown(Id::KernelVersion, "version of the kernel", source, why);
        }
    };
    let Some(version) = version(&release) else {
        return Finding::unknown(
            Id::KernelVersion,
            "version of the kernel",
            source,
            "it does not begin with numbers",
        );
    };
    let what = format!("Linux {release}");
    let fix = "a kernel of 6.1 or later";
    match version {
        (..5, _) | (5, ..11) => Finding::new(
            Id::KernelVersion,
            Status::Warning,
            what,
            source,
            "too old for our io_uring engine (5.11): ferroblk falls back to threads, or \
             use --aio native. (Distributions add features to old numbers: \
             io-uring-setup says what was tried)",
        )
        .fix(fix),
        (5, _) | (6, 0) => Finding::new(
            Id::KernelVersion,
            Status::Note,
            what,
            source,
            "before 6.1 completions of io_uring interrupt the I/O thread, and files do \
             not say what direct I/O asks of alignment; ferroblk tries. \
             io-uring-features says what was found",
        )
        .fix(fix),
        _ => Finding::new(
            Id::KernelVersion,
            Status::Ok,
            what,
            source,
            "has all that ferroblk looks for; what was found is said under \
             io-uring-features",
        ),
    }
}

fn said<'a>(probed: &'a Probed, program: &str) -> Option<&'a Result<String, String>> {
    probed.programs.iter().find(|(name, _)| *name == program).map(|(_, said)| said)
}

fn qemu(probed: &Probed) -> Finding {
    let source = format!("{QEMU} --version");
    let text = match said(probed, QEMU) {
        None => {
            return Finding::new(
                Id::Qemu,
                Status::Note,
                format!("{QEMU} is not installed"),
                source,
                "no guest of QEMU's can be started here",
            )
            .fix("install it, if you run guests with it");
        }
        Some(Err(why)) => return Finding::unknown(Id::Qemu, QEMU, source, why),
        Some(Ok(text)) => text,
    };
    match version(text) {
        None => Finding::unknown(Id::Qemu, QEMU, source, "it does not say its version"),
        Some((..2, _) | (2, ..12)) => Finding::new(
            Id::Qemu,
            Status::Warning,
            text.as_str(),
            source,
            "too old for vhost-user-blk (2.12)",
        )
        .fix("QEMU 5.2 or later"),
        Some((..5, _) | (5, ..2)) => Finding::new(
            Id::Qemu,
            Status::Note,
            text.as_str(),
            source,
            "before 5.2 a disk has one queue unless told otherwise: its vCPUs share it",
        )
        .fix("num-queues=N on the vhost-user-blk-pci device"),
        Some(_) => Finding::new(
            Id::Qemu,
            Status::Ok,
            text.as_str(),
            source,
            "attaches our disks (vhost-user-blk-pci). It asks for a queue per vCPU: \
             serve --queues must offer as many, or num-queues=N ask for fewer",
        ),
    }
}

fn storage_daemon(probed: &Probed) -> Finding {
    let (name, id) = ("qemu-storage-daemon", Id::QemuStorageDaemon);
    let source = format!("{name} --version");
    match said(probed, name) {
        None => Finding::new(
            id,
            Status::Note,
            format!("{name} is not installed"),
            source,
            "comparisons with QEMU's own server cannot be made here",
        )
        .fix("install it (qemu-utils or qemu-system), if you want to compare"),
        Some(Err(why)) => Finding::unknown(id, name, source, why),
        Some(Ok(text)) => Finding::new(
            id,
            Status::Ok,
            text.as_str(),
            source,
            "QEMU's own server can be measured beside ours",
        ),
    }
}

fn cloud_hypervisor(probed: &Probed) -> Finding {
    let (name, id) = ("cloud-hypervisor", Id::CloudHypervisor);
    let source = format!("{name} --version");
    match said(probed, name) {
        None => Finding::new(
            id,
            Status::Note,
            format!("{name} is not installed"),
            source,
            "no guest of Cloud Hypervisor's can be started here",
        )
        .fix("install it, if you run guests with it"),
        Some(Err(why)) => Finding::unknown(id, name, source, why),
        Some(Ok(text)) => Finding::new(
            id,
            Status::Ok,
            text.as_str(),
            source,
            "attaches our disks (--disk vhost_user=on)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (text, numbers) in [
            ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds)", Some((10, 0))),
            ("qemu-storage-daemon version 5.2.0", Some((5, 2))),
            ("cloud-hypervisor v41.0", Some((41, 0))),
            ("6.18.44-fc-v657", Some((6, 18))),
            ("5.10-rc1", Some((5, 10))),
            ("nothing", None),
            ("99999999999.1", None),
            ("", None),
        ] {
            assert_eq!(version(text), numbers, "{text}");
        }
    }
}
