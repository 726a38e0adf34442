//! The command lines of servers.
//!
//! | cache          | `cache.direct` | `cache.no-flush` | export's `writethrough` |
//! |----------------|----------------|------------------|-------------------------|
//! | `none`         | on             | off              | off                     |
//! | `writeback`    | off            | off              | off                     |
//! | `writethrough` | off            | off              | on                      |
//! | `directsync`   | on             | off              | on                      |
//! | `unsafe`       | off            | on               | off                     |

use super::{ServerError, ServerSpec};
use block::{CacheMode, Format};
use io_engine::EngineKind;
use serde_json::json;
use std::path::Path;
use std::process::Command;

/// `ferroblk serve` with one I/O thread.
pub(super) fn ferroblk(spec: &ServerSpec, socket: &Path) -> Result<Command, ServerError> {
    let mut command = Command::new(spec.program()?);
    command.arg("serve").arg(&spec.image).arg("--vhost-user-blk").arg(socket);
    command.args(["--format", &spec.format.to_string(), "--cache", &spec.cache.to_string()]);
    command.args(["--aio", &spec.aio.to_string(), "--queues", &spec.queues.to_string()]);
    command.args(spec.read_only.then_some("--read-only"));
    command.args(&spec.extra_args);
    if std::env::var_os("FERROBLK_LOG").is_none() {
        // A client that comes and goes is not why a server failed.
        command.env("FERROBLK_LOG", "warn");
    }
    Ok(command)
}

/// qemu-storage-daemon with one iothread. Makes `pid_file` when it is ready.
pub(super) fn qemu_storage_daemon(
    spec: &ServerSpec,
    socket: &Path,
    pid_file: &Path,
) -> Result<Command, ServerError> {
    let cache = spec.cache;
    let image = ImageNodes {
        image: &spec.image,
        format: spec.format,
        cache,
        aio: spec.aio,
        read_only: spec.read_only,
    };
    let [protocol, disk] = image.blockdevs().map_err(ServerError)?;
    let export = json!({
        "type": "vhost-user-blk",
        "id": "export",
        "node-name": "disk",
        "iothread": "io0",
        "writable": !spec.read_only,
        "writethrough": !cache.has_write_cache(),
        "num-queues": spec.queues,
        "addr": { "type": "unix", "path": text(socket).map_err(ServerError)? },
    });
    let mut command = Command::new(spec.program()?);
    command.args(["--object", "iothread,id=io0"]);
    command.args(["--blockdev", &protocol.to_string(), "--blockdev", &disk.to_string()]);
    command.args(["--export", &export.to_string()]);
    command.arg("--pidfile").arg(pid_file);
    command.args(&spec.extra_args);
    Ok(command)
}

/// An image as QEMU's block layer has it, in qemu-storage-daemon and in QEMU itself.
pub(crate) struct ImageNodes<'a> {
    pub image: &'a Path,
    pub format: Format,
    pub cache: CacheMode,
    pub aio: EngineKind,
    pub read_only: bool,
}

impl ImageNodes<'_> {
    /// Two values of `--blockdev`: the file, and over it the node `disk`.
    pub fn blockdevs(&self) -> Result<[serde_json::Value; 2], String> {
        let cache =
            json!({ "direct": self.cache.is_direct(), "no-flush": self.cache.ignores_flush() });
        let file = json!({
            "driver": driver_of(self.image),
            "node-name": "file",
            "filename": text(self.image)?,
            "aio": self.aio.to_string(),
            "read-only": self.read_only,
            "discard": "unmap",
            "cache": cache,
        });
        let disk = json!({
            "driver": self.format.to_string(),
            "node-name": "disk",
            "file": "file",
            "read-only": self.read_only,
            "discard": "unmap",
            "cache": cache,
        });
        Ok([file, disk])
    }
}

/// QEMU's driver for what is at `image`.
fn driver_of(image: &Path) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::metadata(image) {
        Ok(metadata) if metadata.file_type().is_block_device() => "host_device",
        _ => "file",
    }
}

/// A path for QEMU's JSON.
pub(crate) fn text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{}: QEMU takes UTF-8 names only", path.display()))
}
