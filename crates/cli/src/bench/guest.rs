//! `ferroblk bench --guest`: what the guests are.

use clap::{Args, ValueEnum};
use ffsb::guest::{Accel, Compare, Fs, GuestError, Kernel, Scheduler};
use std::path::PathBuf;

/// A real Linux guest, under QEMU.
#[derive(Args, Debug)]
pub struct GuestArgs {
    /// Measures inside a Linux guest: virtio and IDE by QEMU, vhost-user by ferroblk
    #[arg(long = "guest", conflicts_with_all = ["trace", "baseline", "size", "queues", "iothreads"])]
    pub wanted: bool,
    /// The guest's kernel [default: the newest in $FERROBLK_GUEST/boot, the source tree's target/guest/boot, /boot]
    #[arg(long, value_name = "FILE", requires = "wanted")]
    guest_kernel: Option<PathBuf>,
    /// The kernel's modules [default: lib/modules/VERSION beside the kernel's boot directory]
    #[arg(long, value_name = "DIR", requires = "wanted")]
    guest_modules: Option<PathBuf>,
    /// The guest's file system: ext4 or xfs
    #[arg(long, value_name = "FS", default_value_t, requires = "wanted")]
    guest_fs: Fs,
    /// Whether the guest's file system flushes the disk's write cache
    #[arg(long, value_name = "ON", default_value = "on", requires = "wanted")]
    guest_barriers: Switch,
    /// The guest's I/O scheduler: none, mq-deadline or bfq
    #[arg(long, value_name = "NAME", default_value_t, requires = "wanted")]
    guest_scheduler: Scheduler,
    /// How the guest's CPUs are run: kvm, tcg (emulation), or auto for what this host can
    #[arg(long, value_name = "HOW", default_value_t, requires = "wanted")]
    guest_accel: Accel,
}

#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
enum Switch {
    On,
    Off,
}

impl GuestArgs {
    /// The quick comparison in such guests.
    pub fn compare(&self, dir: PathBuf) -> Result<Compare, GuestError> {
        let kernel = Kernel::find(self.guest_kernel.as_deref(), self.guest_modules.as_deref())?;
        Ok(Compare {
            accel: self.guest_accel,
            fs: self.guest_fs,
            barriers: self.guest_barriers == Switch::On,
            scheduler: self.guest_scheduler,
            ..Compare::quick(kernel, dir)
        })
    }
}
