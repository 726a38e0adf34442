//! A real Linux guest as the place where a workload runs.
//!
//! ```text
//!  host: Guest --boot--> QEMU: kernel, initramfs, disk (virtio | IDE by QEMU, vhost-user by a server)
//!          |               |  console  -> a log; its last line says why a guest did not boot
//!          |  orders       |  ttyS1    <-> QEMU's stdin and stdout
//!          '---- frames ---'
//!  guest: init = this same binary: modules, file system, mount, then run::run as often as it is told to
//! ```
//!
//! The guest's first process is the binary that runs on the host: no second build is needed, and host and guest cannot be of
//! different versions. A static binary is packed alone. A dynamic one is packed with its loader and libraries (a few MB), which is
//! what `cargo build` makes by default; so `ferroblk bench --guest` works from any build. What only a debugger reads is left out. A
//! static one is made by
//!
//! ```text
//!  RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --target x86_64-unknown-linux-gnu
//! ```
//!
//! Nothing else is taken from the host but `mkfs.ext4` or `mkfs.xfs`. The guest has no network and no other disk: what it can damage
//! is the disk that is measured.

mod compare;
mod cpio;
mod cpu;
mod elf;
mod error;
mod files;
mod host;
mod init;
mod kernel;
mod modules;
mod pack;
mod qemu;
mod wire;

pub use compare::{Compare, Device, Setup, compare};
pub use cpio::{Initramfs, find_program};
pub use error::{GuestError, GuestErrorKind};
pub use host::{Facts, Guest, GuestRun};
pub use init::{init, is_init};
pub use kernel::Kernel;

use block::{CacheMode, Format};
use io_engine::EngineKind;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What a report says of figures from an emulated guest.
pub const EMULATED_REMARK: &str = "the guest is emulated, not virtualised: its CPU is slower by far, so its figures compare devices \
     with each other roughly and say nothing about KVM";

/// How the guest's CPUs are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accel {
    /// KVM if this host's processor has the extensions for it and /dev/kvm may be used, else emulation. A /dev/kvm on a processor
    /// without them is emulated itself, and far slower than QEMU's emulation.
    #[default]
    Auto,
    /// KVM
    Kvm,
    /// Emulation by QEMU.
    Tcg,
}

/// The guest's file system on the disk that is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fs {
    /// ext4
    #[default]
    Ext4,
    /// XFS. The disk has at least 300 MiB then.
    Xfs,
}

/// The guest's I/O scheduler for the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduler {
    /// None: requests go to the device as they come.
    #[default]
    None,
    /// mq-deadline
    MqDeadline,
    /// BFQ
    Bfq,
}

/// An image that QEMU serves itself.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSpec {
    /// A file or a block device.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Cache mode, with the meaning it has everywhere.
    pub cache: CacheMode,
    /// How QEMU does I/O.
    pub aio: EngineKind,
}

/// The disk that is measured.
#[derive(Clone, Debug, PartialEq)]
pub enum Disk {
    /// QEMU's virtio-blk-pci, with one queue for each vCPU.
    Virtio {
        /// The image.
        image: ImageSpec,
        /// Requests are served by an I/O thread; otherwise by QEMU's main loop.
        iothread: bool,
    },
    /// QEMU's disk on the PIIX controller of its PC.
    Ide {
        /// The image.
        image: ImageSpec,
    },
    /// A vhost-user-blk server that runs.
    VhostUser {
        /// Its socket.
        socket: PathBuf,
        /// Queues it offers; the guest uses at most one for each vCPU.
        queues: u16,
        /// The server's process, for its CPU time.
        server: u32,
    },
}

impl Disk {
    /// The device, as a report's [`crate::report::Subject`] has it.
    pub fn device(&self) -> &'static str {
        match self {
            Disk::Virtio { .. } => "guest virtio",
            Disk::Ide { .. } => "guest ide",
            Disk::VhostUser { .. } => "guest vhost-user",
        }
    }
}

/// A guest to be booted.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// What it boots.
    pub kernel: Kernel,
    /// What becomes its first process: a binary whose `main` calls [`init()`] if [`is_init`]. `None`: the one that is running.
    pub binary: Option<PathBuf>,
    /// MiB of memory, at least 256.
    pub memory_mib: u32,
    /// CPUs, at least one.
    pub vcpus: u32,
    /// How they are run.
    pub accel: Accel,
    /// The disk. It is overwritten by a new file system.
    pub disk: Disk,
    /// The file system that is made on it.
    pub fs: Fs,
    /// Whether the file system flushes the disk's write cache. Only ext4 can leave that out.
    pub barriers: bool,
    /// The scheduler.
    pub scheduler: Scheduler,
    /// How long it may take until it is ready.
    pub patience: Duration,
}

impl GuestSpec {
    /// Two CPUs, 512 MiB, ext4 with barriers, no scheduler.
    pub fn new(kernel: Kernel, disk: Disk) -> GuestSpec {
        GuestSpec {
            kernel,
            binary: None,
            memory_mib: 512,
            vcpus: 2,
            accel: Accel::Auto,
            disk,
            fs: Fs::Ext4,
            barriers: true,
            scheduler: Scheduler::None,
            patience: Duration::from_secs(120),
        }
    }

    /// Whether there can be such a guest, before anything is started.
    ///
    /// # Errors
    ///
    /// A combination that no guest has.
    pub fn check(&self) -> Result<(), GuestError> {
        let refuse = |why: &str| {
            let device = self.disk.device();
            Err(GuestError::new(GuestErrorKind::Refused, format!("{device}: {why}")))
        };
        match &self.disk {
            Disk::Virtio { image, .. } | Disk::Ide { image }
                if image.aio == EngineKind::Native && !image.cache.is_direct() =>
            {
                return refuse(
                    "aio=native waits for the page cache, so it is for cache none and directsync only",
                );
            }
            _ => {}
        }
        match () {
            () if self.fs == Fs::Xfs && !self.barriers => {
                refuse("XFS cannot be mounted without barriers since Linux 4.19; ext4 can")
            }
            () if self.vcpus == 0 => refuse("a guest needs a CPU"),
            () if self.memory_mib < 256 => refuse("a guest needs 256 MiB of memory"),
            () => Ok(()),
        }
    }
}

impl fmt::Display for Fs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fs::Ext4 => "ext4",
            Fs::Xfs => "xfs",
        })
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scheduler::None => "none",
            Scheduler::MqDeadline => "mq-deadline",
            Scheduler::Bfq => "bfq",
        })
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accel::Auto => "auto",
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        })
    }
}

impl FromStr for Fs {
    type Err = String;

    fn from_str(name: &str) -> Result<Fs, String> {
        one_of([Fs::Ext4, Fs::Xfs], name)
    }
}

impl FromStr for Scheduler {
    type Err = String;

    fn from_str(name: &str) -> Result<Scheduler, String> {
        one_of([Scheduler::None, Scheduler::MqDeadline, Scheduler::Bfq], name)
    }
}

impl FromStr for Accel {
    type Err = String;

    fn from_str(name: &str) -> Result<Accel, String> {
        one_of([Accel::Auto, Accel::Kvm, Accel::Tcg], name)
    }
}

fn one_of<T: fmt::Display + Copy, const N: usize>(all: [T; N], name: &str) -> Result<T, String> {
    all.into_iter()
        .find(|one| one.to_string() == name)
        .ok_or_else(|| format!("expected one of {}", all.map(|one| one.to_string()).join(", ")))
}
