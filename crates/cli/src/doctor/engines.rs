//! Whether the kernel lets the I/O engines work, and how well.

use super::finding::{Finding, Id, Status};
use super::host::{Host, Unread, human};
use super::probed::Probed;
use rustix::io::Errno;

/// Requests that one I/O thread sets up a Linux AIO context for.
const AIO_PER_THREAD: i64 = 1024;

/// What the kernel's limits and answers mean.
pub fn check(host: &Host, probed: &Probed, out: &mut Vec<Finding>) {
    out.push(disabled(host));
    out.push(uring_setup(host, probed));
    out.extend(uring_features(probed));
    out.push(aio_setup(probed));
    out.push(aio_max_nr(host));
    out.push(memlock(probed));
    out.push(nofile(probed));
}

fn disabled(host: &Host) -> Finding {
    let source = "/proc/sys/kernel/io_uring_disabled";
    let value = match host.number(source) {
        Ok(value) => value,
        // Linux before 6.6 cannot forbid it this way.
        Err(Unread::Missing) => 0,
        Err(why) => {
            return Finding::unknown(Id::IoUringDisabled, "kernel.io_uring_disabled", source, why);
        }
    };
    let what = format!("kernel.io_uring_disabled is {value}");
    let fix = "sysctl kernel.io_uring_disabled=0, and the same in /etc/sysctl.d";
    match value {
        0 => Finding::new(
            Id::IoUringDisabled,
            Status::Ok,
            what,
            source,
            "every process may use io_uring",
        ),
        1 => Finding::new(
            Id::IoUringDisabled,
            Status::Note,
            what,
            source,
            "only root and the group kernel.io_uring_group may use io_uring; for others \
             ferroblk falls back to threads",
        )
        .fix(fix),
        _ => Finding::new(
            Id::IoUringDisabled,
            Status::Warning,
            what,
            source,
            "nobody may use io_uring: ferroblk falls back to threads, with two switches \
             of context per request",
        )
        .fix(fix),
    }
}

fn uring_setup(host: &Host, probed: &Probed) -> Finding {
    let source = "io_uring_setup";
    let why = match &probed.io_uring {
        Ok(_) => {
            let means = "the default engine works: requests go to the kernel in batches, one system \
                call for many";
            return Finding::new(
                Id::IoUringSetup,
                Status::Ok,
                "io_uring can be set up",
                source,
                means,
            );
        }
        Err(why) => why,
    };
    let filtered = host.text("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
    });
    let means = "the default engine is not to be had: ferroblk falls back to threads, which \
        cost two switches of context per request";
    let fix = match () {
        () if why.is(Errno::NOSYS) => {
            "a kernel with io_uring (CONFIG_IO_URING), 5.11 or later; until then --aio native"
        }
        () if filtered => {
            "a seccomp filter is on this process, as container engines set it: allow \
             io_uring_setup, io_uring_enter and io_uring_register in its profile; until \
             then --aio native"
        }
        () if why.is(Errno::PERM) || why.is(Errno::ACCESS) => {
            "see io-uring-disabled, and the security module's policy (SELinux: io_uring \
             class); until then --aio native"
        }
        () if why.is(Errno::NOMEM) => "raise the limit on locked memory (ulimit -l, LimitMEMLOCK=)",
        () => "until it works, --aio native for direct I/O",
    };
    let what = format!("io_uring cannot be set up: {why}");
    Finding::new(Id::IoUringSetup, Status::Warning, what, source, means).fix(fix)
}

/// What the ring that was set up can do; tried, not told from the kernel's version.
fn uring_features(probed: &Probed) -> Option<Finding> {
    let support = probed.io_uring.as_ref().ok()?;
    let wanted = [
        (support.restricted, "restricted to our operations (5.10)"),
        (support.deferred, "completions on the submitting thread only, when it asks (6.1)"),
        (support.cooperative, "no interrupts for completions (5.19)"),
        (support.ftruncate, "truncating files (6.9)"),
    ];
    let lacks: Vec<&str> = wanted.iter().filter(|(has, _)| !has).map(|(_, what)| *what).collect();
    let source = "io_uring_setup, io_uring_register";
    if lacks.is_empty() {
        let means = "completions cost no interrupt of the I/O thread, and the ring can do \
            nothing that a disk does not need";
        return Some(Finding::new(
            Id::IoUringFeatures,
            Status::Ok,
            "io_uring has all that ferroblk uses",
            source,
            means,
        ));
    }
    let means = "ferroblk does without; where completions are concerned, the kernel \
        interrupts the I/O thread to deliver them, some percent of its CPU";
    let what = format!("io_uring lacks: {}", lacks.join("; "));
    Some(Finding::new(Id::IoUringFeatures, Status::Note, what, source, means).fix("a later kernel"))
}

fn aio_setup(probed: &Probed) -> Finding {
    let source = "io_setup";
    match &probed.aio {
        Ok(()) => Finding::new(
            Id::AioSetup,
            Status::Ok,
            "Linux AIO can be set up",
            source,
            "--aio native works, for direct I/O; io_uring does the same and more",
        ),
        Err(why) => {
            let fix = if why.is(Errno::NOSYS) || why.is(Errno::PERM) {
                "a kernel or sandbox that allows io_setup"
            } else {
                "see aio-max-nr"
            };
            let means = "--aio native does not work here, nor does aio=native of QEMU. Nothing is \
                lost where io_uring works";
            let status = if probed.io_uring.is_ok() { Status::Note } else { Status::Warning };
            Finding::new(
                Id::AioSetup,
                status,
                format!("Linux AIO cannot be set up: {why}"),
                source,
                means,
            )
            .fix(fix)
        }
    }
}

fn aio_max_nr(host: &Host) -> Finding {
    let source = "/proc/sys/fs/aio-max-nr";
    let read = || Ok::<_, Unread>((host.number(source)?, host.number("/proc/sys/fs/aio-nr")?));
    let (max, used) = match read() {
        Ok(numbers) => numbers,
        Err(why) => return Finding::unknown(Id::AioMaxNr, "fs.aio-max-nr", source, why),
    };
    let left = max.saturating_sub(used).max(0);
    let threads = left / AIO_PER_THREAD;
    let what = format!("{used} of {max} AIO requests taken");
    let (status, means) = match threads {
        0 => (
            Status::Problem,
            "used up: an I/O thread with --aio native, or a guest of QEMU's with \
             aio=native, cannot start"
                .to_owned(),
        ),
        1..16 => (
            Status::Warning,
            format!(
                "room for {threads} more I/O threads with --aio native, in all disks of this \
                 host together; the next cannot start"
            ),
        ),
        _ => (Status::Ok, format!("room for {threads} I/O threads with --aio native")),
    };
    Finding::new(Id::AioMaxNr, status, what, source, means)
        .fix_unless_ok("sysctl fs.aio-max-nr=1048576, and the same in /etc/sysctl.d")
}

fn memlock(probed: &Probed) -> Finding {
    let source = "RLIMIT_MEMLOCK";
    let fix = "ulimit -l unlimited, or LimitMEMLOCK=infinity in the service";
    match probed.memlock {
        None => Finding::new(
            Id::MemlockLimit,
            Status::Ok,
            "locked memory: no limit",
            source,
            "rings and buffers may be pinned",
        ),
        Some(bytes) => {
            let what = format!("locked memory: {} at most", human(bytes));
            let (status, means) = match bytes {
                0..0x10_0000 => (
                    Status::Warning,
                    "before Linux 5.12 the rings of io_uring count here: they do not fit, and \
                     ferroblk falls back to threads. Guests with pinned memory (VFIO, huge pages \
                     by mlock) do not start",
                ),
                0x10_0000..0x400_0000 => (
                    Status::Note,
                    "enough for our rings (which have not counted since Linux 5.12); guests with \
                     pinned memory (VFIO) need a limit as large as their RAM",
                ),
                _ => (Status::Ok, "rings and buffers may be pinned"),
            };
            Finding::new(Id::MemlockLimit, status, what, source, means).fix_unless_ok(fix)
        }
    }
}

fn nofile(probed: &Probed) -> Finding {
    let source = "RLIMIT_NOFILE";
    let what = match probed.nofile {
        None => "open files: no limit".to_owned(),
        Some(count) => format!("open files: {count} at most"),
    };
    let (status, means) = match probed.nofile.unwrap_or(u64::MAX) {
        0..1024 => (
            Status::Warning,
            "each queue of a disk takes three descriptors, each region of guest memory \
             and each file of a backing chain one more: a guest with many queues may not \
             connect",
        ),
        1024..4096 => (
            Status::Note,
            "enough for one disk with some dozens of queues; a VMM with many disks needs more",
        ),
        _ => (Status::Ok, "enough for disks with many queues and long backing chains"),
    };
    Finding::new(Id::NofileLimit, status, what, source, means)
        .fix_unless_ok("ulimit -n 65536, or LimitNOFILE=65536 in the service")
}
