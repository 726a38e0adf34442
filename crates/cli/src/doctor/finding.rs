//! A finding: one fact about the host, what it means for a disk, and what to do about it.

use serde_json::{Value, json};

/// How a fact bears on a disk. The order is that of the report: the worst comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Data is at risk, or something that a disk needs does not work.
    Problem,
    /// It costs speed, and can be changed.
    Warning,
    /// It could not be found out; the meaning says why.
    Unknown,
    /// Worth knowing when figures are read; often by choice.
    Note,
    /// As it should be.
    Ok,
}

impl Status {
    /// All, in the order of the report.
    pub const ALL: [Status; 5] =
        [Status::Problem, Status::Warning, Status::Unknown, Status::Note, Status::Ok];

    /// Its word in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Problem => "problem",
            Status::Warning => "warning",
            Status::Unknown => "unknown",
            Status::Note => "note",
            Status::Ok => "ok",
        }
    }
}

/// What findings are listed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Disk,
    FileSystem,
    FileIo,
    Engines,
    Memory,
    Kvm,
    Cpu,
    Limits,
    Programs,
}

impl Group {
    /// All, in the order of the report.
    pub const ALL: [Group; 9] = [
        Group::Disk,
        Group::FileSystem,
        Group::FileIo,
        Group::Engines,
        Group::Memory,
        Group::Kvm,
        Group::Cpu,
        Group::Limits,
        Group::Programs,
    ];

    /// Its name for machines.
    pub fn as_str(self) -> &'static str {
        match self {
            Group::Disk => "disk",
            Group::FileSystem => "file-system",
            Group::FileIo => "file-io",
            Group::Engines => "engines",
            Group::Memory => "memory",
            Group::Kvm => "kvm",
            Group::Cpu => "cpu",
            Group::Limits => "limits",
            Group::Programs => "programs",
        }
    }

    /// Its heading for people.
    pub fn heading(self) -> &'static str {
        match self {
            Group::Disk => "Block devices",
            Group::FileSystem => "File system",
            Group::FileIo => "I/O on files there",
            Group::Engines => "I/O engines",
            Group::Memory => "Memory",
            Group::Kvm => "KVM",
            Group::Cpu => "CPUs",
            Group::Limits => "Limits of this control group",
            Group::Programs => "Kernel and programs",
        }
    }
}

macro_rules! ids {
    ($($group:ident { $($id:ident = $text:literal,)* })*) => {
        /// Names of findings. They are an interface: scripts look for them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Id { $($($id,)*)* }

        impl Id {
            /// All, in the order of the report.
            #[cfg(test)]
            pub const ALL: &'static [Id] = &[$($(Id::$id,)*)*];

            /// The name in reports.
            pub fn as_str(self) -> &'static str {
                match self { $($(Id::$id => $text,)*)* }
            }

            /// What it is listed under.
            pub fn group(self) -> Group {
                match self { $($(Id::$id => Group::$group,)*)* }
            }
        }
    };
}

ids! {
    Disk {
        DeviceStack = "device-stack",
        DeviceEncryption = "device-encryption",
        DeviceLoop = "device-loop",
        RaidParity = "raid-parity",
        RaidState = "raid-state",
        Scheduler = "disk-scheduler",
        Rotational = "disk-rotational",
        QueueDepth = "disk-queue-depth",
        HardwareQueues = "disk-hardware-queues",
        WriteCache = "disk-write-cache",
        Wbt = "disk-wbt",
        RqAffinity = "disk-rq-affinity",
        Polling = "disk-polling",
        Discard = "disk-discard",
        NumaNode = "disk-numa-node",
    }
    FileSystem {
        FsType = "fs-type",
        FsBarrier = "fs-barrier",
        FsJournal = "fs-journal",
        FsSync = "fs-sync",
        FsReadOnly = "fs-read-only",
        FsAtime = "fs-atime",
        FsDiscard = "fs-discard",
        FsSpace = "fs-space",
    }
    FileIo {
        DirectIo = "direct-io",
        DirectIoAlignment = "direct-io-alignment",
        DirectIoAsync = "direct-io-async",
        BufferedIoAsync = "buffered-io-async",
        PunchHole = "punch-hole",
        ZeroRange = "zero-range",
        Reflink = "reflink",
    }
    Engines {
        IoUringDisabled = "io-uring-disabled",
        IoUringSetup = "io-uring-setup",
        IoUringFeatures = "io-uring-features",
        AioSetup = "aio-setup",
        AioMaxNr = "aio-max-nr",
        MemlockLimit = "memlock-limit",
        NofileLimit = "nofile-limit",
    }
    Memory {
        Memfd = "memfd",
        MemfdHugetlb = "memfd-hugetlb",
        ShmSize = "shm-size",
        Hugepages2m = "hugepages-2m",
        Hugepages1g = "hugepages-1g",
        Thp = "thp",
        ThpShmem = "thp-shmem",
        DirtyLimits = "dirty-limits",
    }
    Kvm {
        KvmDevice = "kvm-device",
        KvmEventfd = "kvm-eventfd",
        KvmPaging = "kvm-nested-paging",
        KvmApicv = "kvm-apic-virtualisation",
        KvmHaltPoll = "kvm-halt-poll",
        KvmNested = "kvm-nested",
        X2apic = "x2apic",
        VirtualMachine = "virtual-machine",
        GuestHaltPoll = "guest-halt-poll",
    }
    Cpu {
        CpuCount = "cpu-count",
        CpuGovernor = "cpu-governor",
        CpuIdle = "cpu-idle",
        CpuMitigations = "cpu-mitigations",
        CpuSteal = "cpu-steal",
    }
    Limits {
        CgroupCpu = "cgroup-cpu",
        CgroupIo = "cgroup-io",
        CgroupIoWeight = "cgroup-io-weight",
    }
    Programs {
        KernelVersion = "kernel-version",
        Qemu = "qemu",
        QemuStorageDaemon = "qemu-storage-daemon",
        CloudHypervisor = "cloud-hypervisor",
    }
}

/// One fact, judged.
#[derive(Clone, Debug)]
pub struct Finding {
    pub id: Id,
    /// The device or path it is about; `None`: the host.
    pub subject: Option<String>,
    pub status: Status,
    /// The fact, with its value.
    pub what: String,
    /// Where it was read or how it was tried.
    pub source: String,
    /// What it does to a disk's speed or safety; of an unknown one, why it is unknown.
    pub means: String,
    /// The command or setting that changes it, if there is something to do.
    pub fix: Option<String>,
}

impl Finding {
    /// A finding about the host.
    pub fn new(
        id: Id,
        status: Status,
        what: impl Into<String>,
        source: impl Into<String>,
        means: impl Into<String>,
    ) -> Finding {
        let (what, source, means) = (what.into(), source.into(), means.into());
        Finding { id, subject: None, status, what, source, means, fix: None }
    }

    /// Something that could not be found out. `what` was looked for at `source`, and `why` tells what was in the way.
    pub fn unknown(
        id: Id,
        what: &str,
        source: impl Into<String>,
        why: impl std::fmt::Display,
    ) -> Finding {
        let means = format!("could not be found out: {why}");
        Finding::new(id, Status::Unknown, format!("{what}: unknown"), source, means)
    }

    /// The same about a device or path.
    pub fn about(mut self, subject: &str) -> Finding {
        self.subject = Some(subject.to_owned());
        self
    }

    /// The same with something to do.
    pub fn fix(mut self, what_to_do: impl Into<String>) -> Finding {
        self.fix = Some(what_to_do.into());
        self
    }

    /// The same with something to do if it is not as it should be.
    pub fn fix_unless_ok(self, what_to_do: impl Into<String>) -> Finding {
        if self.status == Status::Ok { self } else { self.fix(what_to_do) }
    }

    /// As in the JSON report.
    pub fn json(&self) -> Value {
        json!({
            "id": self.id.as_str(),
            "group": self.id.group().as_str(),
            "subject": self.subject,
            "status": self.status.as_str(),
            "what": self.what,
            "source": self.source,
            "means": self.means,
            "do": self.fix,
        })
    }
}
