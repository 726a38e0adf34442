//! Which kernel modules the guest loads, and in what order.
//!
//! A kernel that was only unpacked has no `modules.dep` (depmod makes it when it is installed). So what a module needs is read from the
//! module itself. What is built into the kernel has no file, and needs none.

use super::{Disk, Fs, GuestError, GuestSpec, Scheduler, elf, files};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules that others ask for by what they do, not by name, while they load.
const BY_PURPOSE: [&str; 2] = ["crc32c_generic", "crc32c_intel"];
const VIRTIO: [&str; 2] = ["virtio_pci", "virtio_blk"];
const IDE: [&str; 2] = ["ata_piix", "sd_mod"];

/// A module as the guest gets it.
pub(super) struct Module {
    pub name: String,
    pub data: Vec<u8>,
}

/// The modules that this guest needs, those that others need first.
pub(super) fn needed(spec: &GuestSpec) -> Result<Vec<Module>, GuestError> {
    let mut wanted: Vec<&str> = match &spec.disk {
        Disk::Ide { .. } => IDE.to_vec(),
        Disk::Virtio { .. } | Disk::VhostUser { .. } => VIRTIO.to_vec(),
    };
    wanted.extend(BY_PURPOSE);
    wanted.push(match spec.fs {
        Fs::Ext4 => "ext4",
        Fs::Xfs => "xfs",
    });
    wanted.extend(match spec.scheduler {
        Scheduler::None => None,
        Scheduler::MqDeadline => Some("mq_deadline"),
        Scheduler::Bfq => Some("bfq"),
    });
    let mut loader = Loader { files: module_files(&spec.kernel.modules), order: Vec::new() };
    for name in wanted {
        loader.add(name)?;
    }
    Ok(loader.order)
}

struct Loader {
    files: BTreeMap<String, PathBuf>,
    order: Vec<Module>,
}

impl Loader {
    fn add(&mut self, name: &str) -> Result<(), GuestError> {
        // Removed: so that modules that need each other end, as the kernel would have it too.
        let Some(path) = self.files.remove(name) else { return Ok(()) };
        let data = unpacked(&path)?;
        for needed in elf::module_needs(&data) {
            self.add(&needed.replace('-', "_"))?;
        }
        self.order.push(Module { name: name.to_owned(), data });
        Ok(())
    }
}

/// Every module file by the module's name.
fn module_files(modules: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![modules.join("kernel")];
    while let Some(dir) = dirs.pop() {
        // What cannot be read has no module that could be loaded.
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(path);
            } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
                found.insert(name.replace('-', "_"), path);
            }
        }
    }
    found
}

/// A module file, decompressed: not every kernel does that itself.
fn unpacked(path: &Path) -> Result<Vec<u8>, GuestError> {
    let program = match path.extension().and_then(|ending| ending.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => {
            return files::read(path)
                .map_err(|e| GuestError::missing(format!("{}: {e}", path.display())));
        }
    };
    let failed = |why: String| {
        let path = path.display();
        GuestError::missing(format!("decompressing the module {path} with {program}: {why}"))
    };
    let output = Command::new(program).arg("-dc").arg(path).output();
    let output = output.map_err(|e| failed(e.to_string()))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ImageSpec, Kernel};
    use super::*;

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, needs: &str| {
            let path = root.path().join("kernel").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            files::write(&path, format!("\0depends={needs}\0").as_bytes()).unwrap();
        };
        put("virtio/virtio_pci.ko", "virtio,virtio-ring");
        put("virtio/virtio.ko", "");
        put("virtio/virtio_ring.ko", "virtio");
        put("block/virtio_blk.ko", "virtio,virtio_ring");
        put("block/mq-deadline.ko", "");
        put("fs/xfs.ko", "");
        let image = ImageSpec {
            path: "x".into(),
            format: block::Format::Raw,
            cache: block::CacheMode::None,
            aio: io_engine::EngineKind::IoUring,
        };
        let kernel = Kernel { image: "k".into(), modules: root.path().into() };
        let disk = Disk::Virtio { image, iothread: false };
        let mut spec = GuestSpec::new(kernel, disk);
        spec.scheduler = Scheduler::MqDeadline;
        let names: Vec<String> =
            needed(&spec).unwrap().into_iter().map(|module| module.name).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_pci", "virtio_blk", "mq_deadline"]);
    }

    #[test]
    fn compressed_modules_are_decompressed() {
        let root = tempfile::tempdir().unwrap();
        let plain = root.path().join("a.ko");
        files::write(&plain, b"\0depends=b\0").unwrap();
        let packed = Command::new("gzip").arg(&plain).status().unwrap();
        assert!(packed.success());
        let data = unpacked(&root.path().join("a.ko.gz")).unwrap();
        assert_eq!(data, b"\0depends=b\0");
        let bad = root.path().join("b.ko.gz");
        files::write(&bad, b"nothing").unwrap();
        assert!(unpacked(&bad).err().unwrap().to_string().contains("b.ko.gz"));
    }
}
