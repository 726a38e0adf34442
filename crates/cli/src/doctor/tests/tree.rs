//! A host made of files in a temporary directory, and of answers that the kernel might give.

use super::super::finding::Finding;
use super::super::host::Host;
use super::super::mount::Mounts;
use super::super::probed::{KvmFacts, Probed, QEMU, Space};
use super::super::spot::{Kind, Spot, Trials};
use super::super::stack::Stack;
use super::super::{Place, examine};
use io_engine::UringSupport;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The disk of the host where all is well.
pub const NVME: &str = "/sys/devices/pci0000:00/0000:00:01.0/nvme/nvme0/nvme0n1";

/// Files that any host has.
const COMMON: &[(&str, &str)] = &[
    ("/proc/self/mountinfo", MOUNTS),
    ("/proc/self/cgroup", "0::/system.slice/vm.service\n"),
    ("/proc/self/status", "Name:\tferroblk\nSeccomp:\t0\nCpus_allowed_list:\t0-7\n"),
    (
        "/proc/cpuinfo",
        "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu x2apic vmx\n\nprocessor\t: 1\n",
    ),
    ("/proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:   8388608 kB\n"),
    ("/proc/stat", "cpu  1000 0 1000 90000 100 0 0 0 0 0\ncpu0 1 2 3\nintr 5\n"),
    ("/proc/sys/kernel/osrelease", "6.12.0-generic\n"),
    ("/proc/sys/kernel/io_uring_disabled", "0\n"),
    ("/proc/sys/fs/aio-max-nr", "1048576\n"),
    ("/proc/sys/fs/aio-nr", "2048\n"),
    ("/proc/sys/vm/dirty_bytes", "0\n"),
    ("/proc/sys/vm/dirty_ratio", "20\n"),
    ("/sys/devices/system/node/online", "0\n"),
    ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
    ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "acpi-cpufreq\n"),
    ("/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance\n"),
    ("/sys/devices/system/cpu/cpu0/cpuidle/state0/name", "POLL\n"),
    ("/sys/devices/system/cpu/cpu0/cpuidle/state0/latency", "0\n"),
    ("/sys/devices/system/cpu/cpu0/cpuidle/state0/disable", "0\n"),
    ("/sys/devices/system/cpu/cpu0/cpuidle/state1/name", "C1\n"),
    ("/sys/devices/system/cpu/cpu0/cpuidle/state1/latency", "2\n"),
    ("/sys/devices/system/cpu/cpu0/cpuidle/state1/disable", "0\n"),
    ("/sys/devices/system/cpu/vulnerabilities/meltdown", "Not affected\n"),
    ("/sys/devices/system/cpu/vulnerabilities/spectre_v2", "Not affected\n"),
    ("/sys/module/kvm/parameters/halt_poll_ns", "200000\n"),
    ("/sys/module/kvm_intel/parameters/ept", "Y\n"),
    ("/sys/module/kvm_intel/parameters/enable_apicv", "Y\n"),
    ("/sys/module/kvm_intel/parameters/nested", "Y\n"),
    ("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "512\n"),
    ("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "512\n"),
    ("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "4\n"),
    ("/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "2\n"),
    ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
    (
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "always within_size [advise] never deny force\n",
    ),
    ("/sys/fs/cgroup/system.slice/vm.service/cpu.max", "max 100000\n"),
    ("/sys/fs/cgroup/system.slice/vm.service/io.max", "\n"),
    ("/sys/fs/cgroup/system.slice/vm.service/io.weight", "default 100\n"),
    ("/sys/fs/cgroup/system.slice/cpu.max", "max 100000\n"),
];

/// The first line is that of the path looked at.
pub const MOUNTS: &str = "\
1 0 259:1 / / rw,noatime shared:1 - xfs /dev/nvme0n1p1 rw,inode64
2 1 0:30 / /sys/fs/cgroup rw,nosuid shared:2 - cgroup2 cgroup2 rw
";

/// A queue's files, as they are for a fast disk.
const QUEUE: &[(&str, &str)] = &[
    ("scheduler", "[none] mq-deadline kyber bfq\n"),
    ("rotational", "0\n"),
    ("nr_requests", "1023\n"),
    ("write_cache", "write through\n"),
    ("fua", "0\n"),
    ("wbt_lat_usec", "0\n"),
    ("rq_affinity", "1\n"),
    ("io_poll", "1\n"),
    ("discard_max_bytes", "2199023255040\n"),
    ("zoned", "none\n"),
];

/// A made-up host with one path on it.
pub struct Made {
    dir: tempfile::TempDir,
    pub probed: Probed,
    pub spot: Spot,
}

impl Made {
    /// A host where all is as it should be: a file system on a partition of an NVMe disk.
    pub fn fine() -> Made {
        let works = || Some(Ok(()));
        let space = Space { total: 1 << 40, free: 1 << 39 };
        let said = |text: &str| Ok(text.to_owned());
        let trials = Trials {
            with: "made up".to_owned(),
            left_out: "made up".to_owned(),
            in_ram: false,
            direct: Some(Ok((512, 512))),
            direct_nowait: works(),
            buffered_read_nowait: works(),
            buffered_write_nowait: works(),
            punch_hole: works(),
            zero_range: works(),
            reflink: works(),
        };
        // Hundreds of trees of a hundred files each: better in RAM.
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        let made = Made {
            dir: dir.unwrap(),
            probed: Probed {
                io_uring: Ok(UringSupport {
                    restricted: true,
                    deferred: true,
                    cooperative: true,
                    ftruncate: true,
                }),
                aio: Ok(()),
                memlock: None,
                nofile: Some(1 << 20),
                memfd: Ok(()),
                memfd_hugetlb: Ok(()),
                shm: Ok(Space { total: 8 << 30, free: 8 << 30 }),
                kvm: Ok(KvmFacts { api_version: 12, ioeventfd: true, irqfd: true }),
                programs: vec![
                    (QEMU, said("QEMU emulator version 10.0.2")),
                    ("qemu-storage-daemon", said("qemu-storage-daemon version 10.0.2")),
                    ("cloud-hypervisor", said("cloud-hypervisor v41.0")),
                ],
            },
            spot: Spot {
                path: PathBuf::from("/images"),
                kind: Kind::Directory,
                device: "259:1".to_owned(),
                mount_id: Some(1),
                space: Ok(space),
                trials,
            },
        };
        for (path, text) in COMMON {
            made.set(path, text);
        }
        made.disk(NVME, "259:0");
        for queue in 0..8 {
            made.set(&format!("{NVME}/mq/{queue}/nr_tags"), "1023\n");
        }
        made.partition(NVME, "nvme0n1p1", "259:1");
        made
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    fn real(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// Writes a file, and what directories it needs.
    pub fn set(&self, path: &str, text: impl AsRef<[u8]>) {
        let real = self.real(path);
        fs::create_dir_all(real.parent().unwrap()).unwrap();
        fs::write(real, text).unwrap();
    }

    /// Removes a file or a directory with all in it.
    pub fn remove(&self, path: &str) {
        let real = self.real(path);
        if real.is_dir() {
            fs::remove_dir_all(real).unwrap()
        } else {
            fs::remove_file(real).unwrap()
        }
    }

    /// Makes a link inside the tree.
    pub fn link(&self, at: &str, to: &str) {
        let real = self.real(at);
        fs::create_dir_all(real.parent().unwrap()).unwrap();
        symlink(self.real(to), real).unwrap();
    }

    /// Makes a disk's directory with a queue of good settings, and the links to it.
    pub fn disk(&self, dir: &str, number: &str) {
        for (name, text) in QUEUE {
            self.set(&format!("{dir}/queue/{name}"), text);
        }
        self.device(dir, number);
        let name = dir.rsplit('/').next().unwrap();
        self.link(&format!("/sys/block/{name}"), dir);
    }

    /// Makes a partition of a disk.
    pub fn partition(&self, disk: &str, name: &str, number: &str) {
        let dir = format!("{disk}/{name}");
        self.set(&format!("{dir}/partition"), "1\n");
        self.device(&dir, number);
    }

    fn device(&self, dir: &str, number: &str) {
        let name = dir.rsplit('/').next().unwrap();
        self.set(&format!("{dir}/dev"), format!("{number}\n"));
        self.link(&format!("/sys/dev/block/{number}"), dir);
        self.link(&format!("/sys/class/block/{name}"), dir);
    }

    /// Makes a device over others: device mapper, md.
    pub fn over(&self, name: &str, number: &str, below: &[&str]) -> String {
        let dir = format!("/sys/devices/virtual/block/{name}");
        self.disk(&dir, number);
        for below in below {
            let other = below.rsplit('/').next().unwrap();
            self.link(&format!("{dir}/slaves/{other}"), below);
        }
        dir
    }

    /// Puts the path looked at onto this mount.
    pub fn mounted(&mut self, fields: &str) {
        let rest = MOUNTS.split_once('\n').unwrap().1;
        self.set("/proc/self/mountinfo", format!("1 0 {fields}\n{rest}"));
        self.spot.device = fields.split(' ').next().unwrap().to_owned();
    }

    /// Sets a file of the disk's queue.
    pub fn queue(&self, file: &str, text: &str) {
        self.set(&format!("{NVME}/queue/{file}"), text);
    }

    /// Puts another disk under the path: its directory and number, with good settings.
    pub fn instead(&mut self, name: &str) -> String {
        let dir = format!("/sys/devices/pci0000:00/0000:00:02.0/other0/block/{name}");
        self.disk(&dir, "8:0");
        self.mounted("8:0 / / rw,noatime - xfs /dev/other rw");
        dir
    }

    pub fn host(&self) -> Host {
        Host::at(self.root())
    }

    pub fn place(&self) -> Place {
        let (host, mounts) = (self.host(), Mounts::read(&self.host()));
        Place { spot: self.spot.clone(), stack: Stack::under(&host, &mounts, &self.spot) }
    }

    pub fn findings(&self) -> Vec<Finding> {
        let mounts = Mounts::read(&self.host());
        examine(&self.host(), &mounts, &[self.place()], &self.probed)
    }

    /// All files of the tree, as paths in it.
    pub fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut dirs = vec![self.root().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    dirs.push(entry.path());
                } else if kind.is_file() {
                    let path = entry.path();
                    let path = path.strip_prefix(self.root()).unwrap().to_str().unwrap();
                    found.push(format!("/{path}"));
                }
            }
        }
        found.sort();
        found
    }
}
