//! What is changed on a host where all is well, and how the finding is judged then.

use super::super::finding::Id;
use super::super::finding::Status::{self, Note, Ok as Fine, Problem, Unknown, Warning};
use super::super::probed::{KvmFacts, QEMU, Refusal, Space};
use super::super::spot::Kind;
use super::tree::{Made, NVME};
use rustix::io::Errno;

/// A name, the finding, how it must be judged, and what is changed for it.
pub type Row = (&'static str, Id, Status, fn(&mut Made));

fn no<T>(errno: Errno) -> Result<T, Refusal> {
    Err(errno.into())
}

/// An ext4 file system with these options on the usual partition.
fn ext4(made: &mut Made, of_mount: &str, of_fs: &str) {
    made.mounted(&format!("259:1 / / {of_mount} - ext4 /dev/nvme0n1p1 {of_fs}"));
}

/// A file system without a block device.
fn without_device(made: &mut Made, kind: &str, source: &str) {
    made.mounted(&format!("0:50 / / rw,noatime - {kind} {source} rw"));
}

fn raid(made: &mut Made, level: &str) -> String {
    let dir = made.over("md0", "9:0", &[NVME]);
    made.set(&format!("{dir}/md/level"), level);
    made.mounted("9:0 / / rw,noatime - xfs /dev/md0 rw");
    dir
}

fn raid_state(made: &mut Made, degraded: &str, action: &str) {
    let dir = raid(made, "raid1\n");
    made.set(&format!("{dir}/md/degraded"), degraded);
    made.set(&format!("{dir}/md/sync_action"), action);
}

fn crypt(made: &mut Made) {
    let dir = made.over("dm-0", "252:0", &[NVME]);
    made.set(&format!("{dir}/dm/uuid"), "CRYPT-LUKS2-0123-vault\n");
    made.set(&format!("{dir}/dm/name"), "vault\n");
    made.mounted("252:0 / / rw,noatime - xfs /dev/mapper/vault rw");
}

fn loop_over_file(made: &mut Made, dio: &str) {
    let dir = made.over("loop0", "7:0", &[]);
    made.set(&format!("{dir}/loop/backing_file"), "/images/disk.raw\n");
    made.set(&format!("{dir}/loop/dio"), dio);
    made.spot.kind = Kind::Device;
    made.spot.device = "7:0".to_owned();
}

fn queue_of(made: &mut Made, name: &str, file: &str, text: &str) -> String {
    let dir = made.instead(name);
    made.set(&format!("{dir}/queue/{file}"), text);
    dir
}

fn spinning(made: &mut Made, scheduler: &str) {
    let dir = queue_of(made, "sda", "rotational", "1\n");
    made.set(&format!("{dir}/queue/scheduler"), scheduler);
}

fn cgroup(made: &mut Made, file: &str, text: &str) {
    made.set(&format!("/sys/fs/cgroup/system.slice/vm.service/{file}"), text);
}

/// The old hierarchies: one mount per controller.
fn cgroup_v1(made: &mut Made, controller: &str, file: &str, text: &str) {
    let mounts = super::tree::MOUNTS.lines().next().unwrap();
    made.set(
        "/proc/self/mountinfo",
        format!("{mounts}\n7 1 0:31 / /cg/{controller} rw - cgroup cgroup rw,{controller}\n"),
    );
    made.set("/proc/self/cgroup", format!("3:{controller}:/vm\n0::/\n"));
    made.set(&format!("/cg/{controller}/vm/{file}"), text);
}

fn param(made: &mut Made, file: &str, text: &str) {
    made.set(&format!("/sys/module/{file}"), text);
}

fn amd(made: &mut Made, name: &str, text: &str) {
    made.remove("/sys/module/kvm_intel");
    param(made, &format!("kvm_amd/parameters/{name}"), text);
}

fn guest(made: &mut Made) {
    made.set("/proc/cpuinfo", "processor : 0\nflags : fpu hypervisor x2apic\n");
}

fn cpu(made: &mut Made, file: &str, text: &str) {
    made.set(&format!("/sys/devices/system/cpu/{file}"), text);
}

fn huge(made: &mut Made, kib: u32, text: &str) {
    made.set(&format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/free_hugepages"), text);
}

fn thp(made: &mut Made, file: &str, text: &str) {
    made.set(&format!("/sys/kernel/mm/transparent_hugepage/{file}"), text);
}

fn sysctl(made: &mut Made, file: &str, text: &str) {
    made.set(&format!("/proc/sys/{file}"), text);
}

fn said(made: &mut Made, program: &str, text: Result<&str, &str>) {
    let text = text.map(str::to_owned).map_err(str::to_owned);
    let found = made.probed.programs.iter_mut().find(|(name, _)| *name == program).unwrap();
    found.1 = text;
}

fn not_installed(made: &mut Made, program: &str) {
    made.probed.programs.retain(|(name, _)| *name != program);
}

/// All of them.
pub const ROWS: &[Row] = &[
    // Block devices
    ("a layer", Id::DeviceStack, Note, crypt),
    ("no device", Id::DeviceStack, Unknown, |m| without_device(m, "tmpfs", "tmpfs")),
    ("not in /sys", Id::DeviceStack, Unknown, |m| m.remove("/sys/dev/block")),
    ("dm-crypt", Id::DeviceEncryption, Note, crypt),
    ("loop, cached twice", Id::DeviceLoop, Warning, |m| loop_over_file(m, "0\n")),
    ("loop, direct", Id::DeviceLoop, Note, |m| loop_over_file(m, "1\n")),
    ("raid1", Id::RaidParity, Fine, |m| {
        raid(m, "raid1\n");
    }),
    ("raid5", Id::RaidParity, Warning, |m| {
        raid(m, "raid5\n");
    }),
    ("raid6", Id::RaidParity, Warning, |m| {
        raid(m, "raid6\n");
    }),
    ("complete", Id::RaidState, Fine, |m| raid_state(m, "0\n", "idle\n")),
    ("resync", Id::RaidState, Warning, |m| raid_state(m, "0\n", "resync\n")),
    ("degraded", Id::RaidState, Problem, |m| raid_state(m, "1\n", "idle\n")),
    ("bfq on NVMe", Id::Scheduler, Warning, |m| {
        m.queue("scheduler", "none mq-deadline kyber [bfq]\n")
    }),
    ("mq-deadline on NVMe", Id::Scheduler, Warning, |m| {
        m.queue("scheduler", "none [mq-deadline]\n")
    }),
    ("kyber on NVMe", Id::Scheduler, Warning, |m| m.queue("scheduler", "none [kyber]\n")),
    ("an old kernel's noop", Id::Scheduler, Fine, |m| {
        m.queue("scheduler", "[noop] deadline cfq\n")
    }),
    ("an old kernel's cfq", Id::Scheduler, Warning, |m| {
        m.queue("scheduler", "noop deadline [cfq]\n")
    }),
    ("no scheduler at all", Id::Scheduler, Fine, |m| m.remove(&format!("{NVME}/queue/scheduler"))),
    ("no choice", Id::Scheduler, Unknown, |m| m.queue("scheduler", "none mq-deadline\n")),
    ("zoned needs mq-deadline", Id::Scheduler, Fine, |m| {
        m.queue("zoned", "host-managed\n");
        m.queue("scheduler", "none [mq-deadline]\n");
    }),
    ("mq-deadline on virtio", Id::Scheduler, Note, |m| {
        queue_of(m, "vda", "scheduler", "none [mq-deadline]\n");
    }),
    ("bfq on virtio", Id::Scheduler, Warning, |m| {
        queue_of(m, "vda", "scheduler", "none [bfq]\n");
    }),
    ("none on virtio that seems to spin", Id::Scheduler, Fine, |m| {
        queue_of(m, "vda", "rotational", "1\n");
    }),
    ("none on a spinning disk", Id::Scheduler, Warning, |m| {
        spinning(m, "[none] mq-deadline bfq\n")
    }),
    ("none on a device of software", Id::Scheduler, Fine, |m| {
        let dir = m.over("zram0", "253:0", &[]);
        m.set(&format!("{dir}/queue/rotational"), "1\n");
        m.mounted("253:0 / / rw,noatime - xfs /dev/zram0 rw");
    }),
    ("mq-deadline on a spinning disk", Id::Scheduler, Fine, |m| {
        spinning(m, "none [mq-deadline] bfq\n")
    }),
    ("bfq on a spinning disk", Id::Scheduler, Fine, |m| spinning(m, "none mq-deadline [bfq]\n")),
    ("mq-deadline on a SATA SSD", Id::Scheduler, Fine, |m| {
        queue_of(m, "sda", "scheduler", "none [mq-deadline] bfq\n");
    }),
    ("bfq on a SATA SSD", Id::Scheduler, Note, |m| {
        queue_of(m, "sda", "scheduler", "none mq-deadline [bfq]\n");
    }),
    ("spinning", Id::Rotational, Note, |m| spinning(m, "[mq-deadline]\n")),
    ("virtio", Id::Rotational, Note, |m| {
        queue_of(m, "vda", "rotational", "1\n");
    }),
    ("no word of it", Id::Rotational, Unknown, |m| m.remove(&format!("{NVME}/queue/rotational"))),
    ("short queue", Id::QueueDepth, Warning, |m| m.queue("nr_requests", "32\n")),
    ("short enough for SATA", Id::QueueDepth, Fine, |m| {
        queue_of(m, "sda", "nr_requests", "32\n");
    }),
    ("one queue for eight CPUs", Id::HardwareQueues, Warning, |m| {
        (1..8).for_each(|n| m.remove(&format!("{NVME}/mq/{n}")))
    }),
    ("four queues for eight CPUs", Id::HardwareQueues, Note, |m| {
        (4..8).for_each(|n| m.remove(&format!("{NVME}/mq/{n}")))
    }),
    ("one queue, SATA", Id::HardwareQueues, Fine, |m| {
        let dir = m.instead("sda");
        m.set(&format!("{dir}/mq/0/nr_tags"), "32\n");
    }),
    ("volatile cache", Id::WriteCache, Note, |m| m.queue("write_cache", "write back\n")),
    ("no word of a cache", Id::WriteCache, Unknown, |m| {
        m.remove(&format!("{NVME}/queue/write_cache"))
    }),
    ("throttled write-back", Id::Wbt, Note, |m| m.queue("wbt_lat_usec", "2000\n")),
    ("completions anywhere", Id::RqAffinity, Note, |m| m.queue("rq_affinity", "0\n")),
    ("completions on the very CPU", Id::RqAffinity, Fine, |m| m.queue("rq_affinity", "2\n")),
    ("NVMe without poll queues", Id::Polling, Note, |m| m.queue("io_poll", "0\n")),
    ("virtio does not poll", Id::Polling, Fine, |m| {
        queue_of(m, "vda", "io_poll", "0\n");
    }),
    ("no discard", Id::Discard, Note, |m| m.queue("discard_max_bytes", "0\n")),
    ("no discard on a spinning disk", Id::Discard, Fine, |m| {
        spinning(m, "[mq-deadline]\n");
        m.set("/sys/block/sda/queue/discard_max_bytes", "0\n");
    }),
    ("two nodes", Id::NumaNode, Note, |m| {
        m.set("/sys/devices/system/node/online", "0-1\n");
        m.set(&format!("{NVME}/../numa_node"), "1\n");
    }),
    ("two nodes, on neither", Id::NumaNode, Unknown, |m| {
        m.set("/sys/devices/system/node/online", "0-1\n")
    }),
    // File system
    ("btrfs", Id::FsType, Warning, |m| without_device(m, "btrfs", "/dev/nvme0n1p1")),
    ("zfs", Id::FsType, Warning, |m| without_device(m, "zfs", "tank/images")),
    ("tmpfs", Id::FsType, Note, |m| without_device(m, "tmpfs", "tmpfs")),
    ("overlay", Id::FsType, Warning, |m| without_device(m, "overlay", "overlay")),
    ("nfs", Id::FsType, Warning, |m| without_device(m, "nfs4", "server:/export")),
    ("fuse", Id::FsType, Warning, |m| without_device(m, "fuse.sshfs", "server:")),
    ("vfat", Id::FsType, Warning, |m| m.mounted("259:1 / / rw,noatime - vfat /dev/x rw")),
    ("ext4", Id::FsType, Fine, |m| ext4(m, "rw,noatime", "rw")),
    ("nobody knows it", Id::FsType, Note, |m| without_device(m, "newfs", "none")),
    ("no mounts", Id::FsType, Unknown, |m| m.remove("/proc/self/mountinfo")),
    ("nobarrier", Id::FsBarrier, Problem, |m| ext4(m, "rw,noatime", "rw,nobarrier")),
    ("barrier=0", Id::FsBarrier, Problem, |m| {
        ext4(m, "rw,noatime", "rw,errors=remount-ro,barrier=0")
    }),
    ("barrier=1", Id::FsBarrier, Fine, |m| ext4(m, "rw,noatime", "rw,barrier=1")),
    ("ordered", Id::FsJournal, Fine, |m| ext4(m, "rw,noatime", "rw")),
    ("data=journal", Id::FsJournal, Warning, |m| ext4(m, "rw,noatime", "rw,data=journal")),
    ("data=writeback", Id::FsJournal, Note, |m| ext4(m, "rw,noatime", "rw,data=writeback")),
    ("sync", Id::FsSync, Warning, |m| ext4(m, "rw,noatime,sync", "rw")),
    ("read-only", Id::FsReadOnly, Warning, |m| ext4(m, "ro,noatime", "ro")),
    ("strictatime", Id::FsAtime, Note, |m| ext4(m, "rw", "rw")),
    ("relatime", Id::FsAtime, Fine, |m| ext4(m, "rw,relatime", "rw")),
    ("read-only keeps no times", Id::FsAtime, Fine, |m| ext4(m, "ro", "ro")),
    ("discard", Id::FsDiscard, Note, |m| ext4(m, "rw,noatime", "rw,discard")),
    ("discard in the background", Id::FsDiscard, Fine, |m| {
        m.mounted("259:1 / / rw,noatime - btrfs /dev/x rw,discard=async")
    }),
    ("nearly full", Id::FsSpace, Warning, |m| m.spot.space = Ok(Space { total: 1000, free: 49 })),
    ("full enough", Id::FsSpace, Fine, |m| m.spot.space = Ok(Space { total: 1000, free: 50 })),
    ("no word of space", Id::FsSpace, Unknown, |m| m.spot.space = Err("no".to_owned())),
    // I/O on files there
    ("no O_DIRECT", Id::DirectIo, Problem, |m| m.spot.trials.direct = Some(no(Errno::INVAL))),
    ("not tried", Id::DirectIo, Unknown, |m| m.spot.trials.direct = None),
    ("blocks of 4096", Id::DirectIoAlignment, Note, |m| {
        m.spot.trials.direct = Some(Ok((512, 4096)))
    }),
    ("blocks of 64 KiB", Id::DirectIoAlignment, Warning, |m| {
        m.spot.trials.direct = Some(Ok((512, 65536)))
    }),
    ("direct I/O waits", Id::DirectIoAsync, Warning, |m| {
        m.spot.trials.direct_nowait = Some(no(Errno::OPNOTSUPP))
    }),
    ("direct I/O in RAM", Id::DirectIoAsync, Fine, |m| {
        m.spot.trials.in_ram = true;
        m.spot.trials.direct_nowait = Some(no(Errno::OPNOTSUPP));
    }),
    ("direct I/O not tried", Id::DirectIoAsync, Unknown, |m| m.spot.trials.direct_nowait = None),
    ("buffered reads wait", Id::BufferedIoAsync, Note, |m| {
        m.spot.trials.buffered_read_nowait = Some(no(Errno::OPNOTSUPP))
    }),
    ("buffered writes wait", Id::BufferedIoAsync, Note, |m| {
        m.spot.trials.buffered_write_nowait = Some(no(Errno::OPNOTSUPP))
    }),
    ("buffered writes not tried", Id::BufferedIoAsync, Unknown, |m| {
        m.spot.trials.buffered_write_nowait = None
    }),
    ("no holes", Id::PunchHole, Warning, |m| m.spot.trials.punch_hole = Some(no(Errno::OPNOTSUPP))),
    ("no zeroing", Id::ZeroRange, Note, |m| m.spot.trials.zero_range = Some(no(Errno::OPNOTSUPP))),
    ("no reflink", Id::Reflink, Note, |m| m.spot.trials.reflink = Some(no(Errno::OPNOTSUPP))),
    ("reflink not tried", Id::Reflink, Unknown, |m| m.spot.trials.reflink = None),
    // Engines
    ("forbidden to all", Id::IoUringDisabled, Warning, |m| {
        sysctl(m, "kernel/io_uring_disabled", "2\n")
    }),
    ("forbidden to most", Id::IoUringDisabled, Note, |m| {
        sysctl(m, "kernel/io_uring_disabled", "1\n")
    }),
    ("before it could be forbidden", Id::IoUringDisabled, Fine, |m| {
        m.remove("/proc/sys/kernel/io_uring_disabled")
    }),
    ("refused", Id::IoUringSetup, Warning, |m| m.probed.io_uring = no(Errno::PERM)),
    ("not there", Id::IoUringSetup, Warning, |m| m.probed.io_uring = no(Errno::NOSYS)),
    ("Linux 5.15", Id::IoUringFeatures, Note, |m| {
        m.probed.io_uring.as_mut().unwrap().deferred = false
    }),
    ("no AIO", Id::AioSetup, Note, |m| m.probed.aio = no(Errno::AGAIN)),
    ("no engine but threads", Id::AioSetup, Warning, |m| {
        m.probed.aio = no(Errno::NOSYS);
        m.probed.io_uring = no(Errno::NOSYS);
    }),
    ("AIO used up", Id::AioMaxNr, Problem, |m| sysctl(m, "fs/aio-nr", "1048576\n")),
    ("AIO nearly used up", Id::AioMaxNr, Warning, |m| sysctl(m, "fs/aio-nr", "1040000\n")),
    ("AIO used beyond its limit", Id::AioMaxNr, Problem, |m| sysctl(m, "fs/aio-max-nr", "1024\n")),
    ("no word of AIO", Id::AioMaxNr, Unknown, |m| m.remove("/proc/sys/fs/aio-nr")),
    ("64 KiB locked", Id::MemlockLimit, Warning, |m| m.probed.memlock = Some(65536)),
    ("8 MiB locked", Id::MemlockLimit, Note, |m| m.probed.memlock = Some(8 << 20)),
    ("64 MiB locked", Id::MemlockLimit, Fine, |m| m.probed.memlock = Some(64 << 20)),
    ("256 files", Id::NofileLimit, Warning, |m| m.probed.nofile = Some(256)),
    ("1024 files", Id::NofileLimit, Note, |m| m.probed.nofile = Some(1024)),
    ("any number of files", Id::NofileLimit, Fine, |m| m.probed.nofile = None),
    // Memory
    ("no memfd", Id::Memfd, Problem, |m| m.probed.memfd = no(Errno::NOSYS)),
    ("no huge memfd", Id::MemfdHugetlb, Note, |m| m.probed.memfd_hugetlb = no(Errno::NOSYS)),
    ("a container's /dev/shm", Id::ShmSize, Warning, |m| {
        m.probed.shm = Ok(Space { total: 64 << 20, free: 64 << 20 })
    }),
    ("no /dev/shm", Id::ShmSize, Unknown, |m| m.probed.shm = no(Errno::NOENT)),
    ("no 2 MiB pages", Id::Hugepages2m, Note, |m| huge(m, 2048, "0\n")),
    ("no 1 GiB pages", Id::Hugepages1g, Note, |m| {
        m.remove("/sys/kernel/mm/hugepages/hugepages-1048576kB")
    }),
    ("thp never", Id::Thp, Note, |m| thp(m, "enabled", "always madvise [never]\n")),
    ("thp always", Id::Thp, Fine, |m| thp(m, "enabled", "[always] madvise never\n")),
    ("thp unmarked", Id::Thp, Unknown, |m| thp(m, "enabled", "always madvise\n")),
    ("no shared thp", Id::ThpShmem, Note, |m| {
        thp(m, "shmem_enabled", "always within_size advise [never] deny force\n")
    }),
    ("no burst", Id::DirtyLimits, Warning, |m| sysctl(m, "vm/dirty_bytes", "1048576\n")),
    ("a huge burst", Id::DirtyLimits, Note, |m| sysctl(m, "vm/dirty_ratio", "80\n")),
    ("a bounded burst", Id::DirtyLimits, Fine, |m| {
        sysctl(m, "vm/dirty_bytes", "1073741824\n");
        sysctl(m, "vm/dirty_ratio", "0\n");
    }),
    // KVM
    ("no KVM", Id::KvmDevice, Problem, |m| m.probed.kvm = no(Errno::NOENT)),
    ("not for us", Id::KvmDevice, Problem, |m| m.probed.kvm = no(Errno::ACCESS)),
    ("another KVM", Id::KvmDevice, Problem, |m| m.probed.kvm.as_mut().unwrap().api_version = 11),
    ("no ioeventfd", Id::KvmEventfd, Problem, |m| {
        m.probed.kvm = Ok(KvmFacts { api_version: 12, ioeventfd: false, irqfd: true })
    }),
    ("no EPT", Id::KvmPaging, Problem, |m| param(m, "kvm_intel/parameters/ept", "N\n")),
    ("no NPT", Id::KvmPaging, Problem, |m| amd(m, "npt", "0\n")),
    ("NPT", Id::KvmPaging, Fine, |m| amd(m, "npt", "1\n")),
    ("no APICv", Id::KvmApicv, Note, |m| param(m, "kvm_intel/parameters/enable_apicv", "N\n")),
    ("no AVIC", Id::KvmApicv, Note, |m| amd(m, "avic", "0\n")),
    ("AVIC, perhaps", Id::KvmApicv, Unknown, |m| amd(m, "avic", "maybe\n")),
    ("no halt polling", Id::KvmHaltPoll, Warning, |m| {
        param(m, "kvm/parameters/halt_poll_ns", "0\n")
    }),
    ("not nested", Id::KvmNested, Note, |m| param(m, "kvm_intel/parameters/nested", "0\n")),
    ("no x2APIC", Id::X2apic, Warning, |m| {
        m.set("/proc/cpuinfo", "processor : 0\nflags : fpu xx2apic x2apicc\n")
    }),
    ("a guest by its CPU", Id::VirtualMachine, Note, guest),
    ("a guest of Xen", Id::VirtualMachine, Note, |m| m.set("/sys/hypervisor/type", "xen\n")),
    ("a guest that halts", Id::GuestHaltPoll, Note, guest),
    ("a guest that polls", Id::GuestHaltPoll, Fine, |m| {
        guest(m);
        cpu(m, "cpuidle/current_driver", "haltpoll\n");
    }),
    // CPUs
    ("one CPU", Id::CpuCount, Warning, |m| m.set("/proc/self/status", "Cpus_allowed_list:\t3\n")),
    ("two CPUs", Id::CpuCount, Note, |m| m.set("/proc/self/status", "Cpus_allowed_list:\t1,3\n")),
    ("no word of CPUs", Id::CpuCount, Unknown, |m| m.set("/proc/self/status", "Name:\tx\n")),
    ("slow", Id::CpuGovernor, Warning, |m| cpu(m, "cpu1/cpufreq/scaling_governor", "powersave\n")),
    ("powersave by hardware", Id::CpuGovernor, Note, |m| {
        cpu(m, "cpu0/cpufreq/scaling_governor", "powersave\n");
        cpu(m, "cpu0/cpufreq/scaling_driver", "intel_pstate\n");
    }),
    ("by load", Id::CpuGovernor, Note, |m| cpu(m, "cpu0/cpufreq/scaling_governor", "schedutil\n")),
    ("no clock of ours", Id::CpuGovernor, Fine, |m| {
        m.remove("/sys/devices/system/cpu/cpu0/cpufreq");
        m.remove("/sys/devices/system/cpu/cpu1");
    }),
    ("deep sleep", Id::CpuIdle, Note, |m| cpu(m, "cpu0/cpuidle/state1/latency", "133\n")),
    ("deep sleep, forbidden", Id::CpuIdle, Fine, |m| {
        cpu(m, "cpu0/cpuidle/state1/latency", "133\n");
        cpu(m, "cpu0/cpuidle/state1/disable", "1\n");
    }),
    ("no idle states", Id::CpuIdle, Fine, |m| m.remove("/sys/devices/system/cpu/cpu0/cpuidle")),
    ("mitigated", Id::CpuMitigations, Note, |m| {
        cpu(m, "vulnerabilities/meltdown", "Mitigation: PTI\n")
    }),
    ("open", Id::CpuMitigations, Note, |m| cpu(m, "vulnerabilities/meltdown", "Vulnerable\n")),
    ("stolen", Id::CpuSteal, Warning, |m| {
        m.set("/proc/stat", "cpu  900 0 0 90000 0 0 0 100 0 0\n")
    }),
    ("a little stolen", Id::CpuSteal, Note, |m| {
        m.set("/proc/stat", "cpu  980 0 0 90000 0 0 0 20 0 0\n")
    }),
    ("an odd /proc/stat", Id::CpuSteal, Unknown, |m| m.set("/proc/stat", "cpu  980 x\n")),
    // Limits
    ("half a CPU", Id::CgroupCpu, Warning, |m| cgroup(m, "cpu.max", "50000 100000\n")),
    ("half a CPU further up", Id::CgroupCpu, Warning, |m| {
        m.set("/sys/fs/cgroup/system.slice/cpu.max", "50000 100000\n")
    }),
    ("half a CPU, v1", Id::CgroupCpu, Warning, |m| {
        cgroup_v1(m, "cpu", "cpu.cfs_quota_us", "50000\n");
        m.set("/cg/cpu/vm/cpu.cfs_period_us", "100000\n");
    }),
    ("no quota, v1", Id::CgroupCpu, Fine, |m| {
        cgroup_v1(m, "cpu", "cpu.cfs_quota_us", "-1\n");
        m.set("/cg/cpu/vm/cpu.cfs_period_us", "100000\n");
    }),
    ("no control groups", Id::CgroupCpu, Unknown, |m| m.remove("/proc/self/cgroup")),
    ("io.max on our disk", Id::CgroupIo, Warning, |m| {
        cgroup(m, "io.max", "259:0 rbps=1048576 wbps=max riops=max wiops=max\n")
    }),
    ("io.max on another disk", Id::CgroupIo, Note, |m| {
        cgroup(m, "io.max", "8:16 rbps=1048576 wbps=max riops=max wiops=max\n")
    }),
    ("io.max that is none", Id::CgroupIo, Fine, |m| {
        cgroup(m, "io.max", "259:0 rbps=max wbps=max riops=max wiops=max\n")
    }),
    ("throttled, v1", Id::CgroupIo, Warning, |m| {
        cgroup_v1(m, "blkio", "blkio.throttle.write_iops_device", "259:0 100\n")
    }),
    ("no throttle, v1", Id::CgroupIo, Fine, |m| {
        cgroup_v1(m, "blkio", "blkio.throttle.write_iops_device", "\n")
    }),
    ("little weight", Id::CgroupIoWeight, Note, |m| cgroup(m, "io.weight", "default 10\n")),
    // Kernel and programs
    ("an old kernel", Id::KernelVersion, Warning, |m| {
        sysctl(m, "kernel/osrelease", "5.10.0-30-amd64\n")
    }),
    ("an older kernel", Id::KernelVersion, Warning, |m| {
        sysctl(m, "kernel/osrelease", "4.18.0-553.el8\n")
    }),
    ("a kernel of some age", Id::KernelVersion, Note, |m| {
        sysctl(m, "kernel/osrelease", "5.15.0\n")
    }),
    ("the oldest that has all", Id::KernelVersion, Fine, |m| {
        sysctl(m, "kernel/osrelease", "6.1.0\n")
    }),
    ("no kernel", Id::KernelVersion, Unknown, |m| sysctl(m, "kernel/osrelease", "none\n")),
    ("no QEMU", Id::Qemu, Note, |m| not_installed(m, QEMU)),
    ("an old QEMU", Id::Qemu, Note, |m| said(m, QEMU, Ok("QEMU emulator version 4.2.1"))),
    ("an ancient QEMU", Id::Qemu, Warning, |m| said(m, QEMU, Ok("QEMU emulator version 2.5.0"))),
    ("a QEMU that hangs", Id::Qemu, Unknown, |m| said(m, QEMU, Err("it does not answer"))),
    ("no storage daemon", Id::QemuStorageDaemon, Note, |m| not_installed(m, "qemu-storage-daemon")),
    ("no Cloud Hypervisor", Id::CloudHypervisor, Note, |m| not_installed(m, "cloud-hypervisor")),
];
