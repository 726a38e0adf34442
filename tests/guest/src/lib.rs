//! Boots a real Linux guest on a vhost-user-blk socket and runs a shell script in it.
//!
//! ```text
//!  test ---- script ----> initramfs (busybox, fio, mkfs.ext4, ... copied from the host)
//!    |                        |
//!    |                    QEMU, Debian cloud kernel, RAM in a shared memfd
//!    |                        |  vhost-user-blk-pci
//!    `--- starts ---------> server under test ---- image file ---- looked at afterwards by the test
//! ```
//!
//! The guest has no root disk and no network: all it is made of is in the initramfs, so the disk under test is the
//! only thing it can lose. What it needs from the host is installed by `cargo xtask setup`.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a test harness: files, clocks and processes are its work"
)]

mod guest;
mod scratch;
mod suites;

pub use guest::{Drive, Guest, Output, Running};
pub use scratch::Scratch;
pub use suites::{ServerKind, missing_for_guest, missing_programs, skip};

use std::path::{Path, PathBuf};

/// The workspace's root directory.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two levels below the root")
}

/// Where `cargo xtask setup` unpacks the guest's kernel, whatever directory the build uses.
pub fn guest_dir() -> PathBuf {
    workspace_root().join("target/guest")
}
