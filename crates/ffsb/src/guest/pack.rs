//! What the guest boots from: everything it is made of, in one archive.

use super::cpio::{Initramfs, find_program};
use super::wire::Config;
use super::{Disk, Fs, GuestError, GuestSpec, init, modules};
use std::path::PathBuf;

/// Where modules are in the guest.
pub(super) const MODULES: &str = "modules";

/// The guest's initramfs.
pub(super) fn initramfs(spec: &GuestSpec) -> Result<Vec<u8>, GuestError> {
    let mut archive = Initramfs::new();
    for dir in ["proc", "sys", "tmp", init::MOUNT_POINT.trim_start_matches('/')] {
        archive.add_dir(dir);
    }
    archive.add_binary("init", &binary(spec)?)?;
    let mkfs = mkfs(spec.fs);
    if find_program(mkfs).is_none() {
        let package = match spec.fs {
            Fs::Ext4 => "e2fsprogs",
            Fs::Xfs => "xfsprogs",
        };
        return Err(GuestError::missing(format!(
            "{mkfs} is not installed, by which the guest makes its file system: package {package} has it"
        )));
    }
    archive.add_program(mkfs)?;
    let modules = modules::needed(spec)?;
    for module in &modules {
        archive.add_data(&format!("{MODULES}/{}", module.name), &module.data);
    }
    let config = Config {
        modules: modules.into_iter().map(|module| module.name).collect(),
        disk: match &spec.disk {
            Disk::Ide { .. } => "sda".to_owned(),
            Disk::Virtio { .. } | Disk::VhostUser { .. } => "vda".to_owned(),
        },
        fs: spec.fs,
        barriers: spec.barriers,
        scheduler: spec.scheduler,
    };
    let config = serde_json::to_vec(&config).expect("a configuration has string keys only");
    archive.add_data(init::CONFIG.trim_start_matches('/'), &config);
    Ok(archive.finish())
}

/// The program that makes the file system.
pub(super) fn mkfs(fs: Fs) -> &'static str {
    match fs {
        Fs::Ext4 => "mkfs.ext4",
        Fs::Xfs => "mkfs.xfs",
    }
}

fn binary(spec: &GuestSpec) -> Result<PathBuf, GuestError> {
    match &spec.binary {
        Some(binary) => Ok(binary.clone()),
        None => std::env::current_exe()
            .map_err(|error| GuestError::missing(format!("finding the running binary: {error}"))),
    }
}
