//! QEMU's command line.
//!
//! Its machine is the PC with the PIIX chipset whatever the disk, so that guests differ in the disk alone. The guest's memory is shared
//! for the same reason: a vhost-user server needs that.

use super::{Accel, Disk, GuestError, GuestErrorKind, GuestSpec, ImageSpec, files};
use crate::server::command::{ImageNodes, text};
use serde_json::json;
use std::path::Path;
use std::process::Command;

pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// For a guest whose initramfs is `initrd` and whose console goes to the file `console`. QEMU's standard input and output are the
/// guest's second serial port.
pub(super) fn command(
    spec: &GuestSpec,
    accel: Accel,
    initrd: &Path,
    console: &Path,
) -> Result<Command, GuestError> {
    let mut command = Command::new(PROGRAM);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-name", "guest=ferroblk-bench,debug-threads=on", "-monitor", "none"]);
    command.args(["-machine", "pc,memory-backend=ram", "-accel", &accel.to_string()]);
    command.args(["-cpu", if accel == Accel::Kvm { "host" } else { "max" }]);
    command.args(["-smp", &spec.vcpus.to_string(), "-m", &format!("{}M", spec.memory_mib)]);
    let ram = format!("memory-backend-memfd,id=ram,size={}M,share=on", spec.memory_mib);
    command.args(["-object", &ram]);
    let refused = |why: String| GuestError::new(GuestErrorKind::Refused, why);
    let console = option(text(console).map_err(refused)?);
    command.args(["-chardev", &format!("file,id=console,path={console}")]);
    command.args(["-serial", "chardev:console"]);
    command.args(["-chardev", "stdio,id=line,signal=off", "-serial", "chardev:line"]);
    command.arg("-kernel").arg(&spec.kernel.image).arg("-initrd").arg(initrd);
    // Emulated, defences against the processor's leaks protect nothing and cost much.
    let mitigations = if accel == Accel::Kvm { "" } else { " mitigations=off" };
    command.args(["-append", &format!("console=ttyS0 quiet panic=-1{mitigations}")]);
    disk(&mut command, spec).map_err(refused)?;
    Ok(command)
}

fn disk(command: &mut Command, spec: &GuestSpec) -> Result<(), String> {
    match &spec.disk {
        Disk::Virtio { image, iothread } => {
            blockdevs(command, image)?;
            let mut device = json!({
                "driver": "virtio-blk-pci",
                "drive": "disk",
                "num-queues": spec.vcpus,
                "write-cache": on_off(image),
            });
            if *iothread {
                command.args(["-object", "iothread,id=io0"]);
                device["iothread"] = json!("io0");
            }
            command.args(["-device", &device.to_string()]);
        }
        Disk::Ide { image } => {
            blockdevs(command, image)?;
            let device = json!({
                "driver": "ide-hd",
                "drive": "disk",
                "bus": "ide.0",
                "write-cache": on_off(image),
            });
            command.args(["-device", &device.to_string()]);
        }
        Disk::VhostUser { socket, queues, .. } => {
            let path = option(text(socket)?);
            command.args(["-chardev", &format!("socket,id=disk,path={path}")]);
            let device = json!({
                "driver": "vhost-user-blk-pci",
                "chardev": "disk",
                "num-queues": queues,
            });
            command.args(["-device", &device.to_string()]);
        }
    }
    Ok(())
}

fn blockdevs(command: &mut Command, image: &ImageSpec) -> Result<(), String> {
    let nodes = ImageNodes {
        image: &image.path,
        format: image.format,
        cache: image.cache,
        aio: image.aio,
        read_only: false,
    };
    for node in nodes.blockdevs()? {
        command.args(["-blockdev", &node.to_string()]);
    }
    Ok(())
}

fn on_off(image: &ImageSpec) -> &'static str {
    if image.cache.has_write_cache() { "on" } else { "off" }
}

/// A value in QEMU's `key=value,...`, where a comma is written twice.
fn option(value: &str) -> String {
    value.replace(',', ",,")
}

/// What [`Accel::Auto`] stands for on this host.
pub(super) fn accelerator(asked: Accel) -> Accel {
    match asked {
        Accel::Auto if has_extensions() && files::open(Path::new("/dev/kvm"), true).is_ok() => {
            Accel::Kvm
        }
        Accel::Auto => Accel::Tcg,
        other => other,
    }
}

/// The processor can run guests itself.
fn has_extensions() -> bool {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

/// QEMU is not installed, in words.
pub(super) fn not_installed() -> GuestError {
    GuestError::missing(format!(
        "{PROGRAM} is not installed: package qemu-system-x86 of Debian, Ubuntu and Fedora has it"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::Kernel;
    use super::*;

    fn line(disk: Disk) -> Vec<String> {
        let spec = GuestSpec::new(Kernel { image: "k".into(), modules: "m".into() }, disk);
        let command = command(&spec, Accel::Tcg, Path::new("i"), Path::new("/a,b/console"));
        let command = command.unwrap();
        command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect()
    }

    fn image(cache: block::CacheMode) -> ImageSpec {
        let aio = io_engine::EngineKind::Threads;
        ImageSpec { path: "/x".into(), format: block::Format::Qcow2, cache, aio }
    }

    #[test]
    fn the_cache_mode_reaches_file_and_device() {
        let line = line(Disk::Ide { image: image(block::CacheMode::Writethrough) }).join(" ");
        assert!(line.contains(r#""write-cache":"off""#), "{line}");
        assert!(
            line.contains(r#""direct":false"#) && line.contains(r#""driver":"qcow2""#),
            "{line}"
        );
        assert!(line.contains(r#""aio":"threads""#), "{line}");
        assert!(line.contains("path=/a,,b/console"), "{line}");
    }

    #[test]
    fn an_iothread_is_there_if_asked_for() {
        let line = |iothread| {
            line(Disk::Virtio { image: image(block::CacheMode::None), iothread }).join(" ")
        };
        assert!(line(true).contains(r#""iothread":"io0""#));
        assert!(!line(false).contains("io0"));
        assert!(line(true).contains(r#""write-cache":"on""#));
    }
}
