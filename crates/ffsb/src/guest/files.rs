//! Files and threads of guests: the one place that asks the host for them.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::thread::JoinHandle;

#[expect(clippy::disallowed_methods, reason = "a guest is packed from whole files")]
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path)
}

#[expect(clippy::disallowed_methods, reason = "QEMU reads what it boots from a file")]
pub(super) fn write(path: &Path, data: &[u8]) -> io::Result<()> {
    std::fs::write(path, data)
}

#[expect(clippy::disallowed_methods, reason = "kernel modules, a serial port, /dev/kvm")]
pub(super) fn open(path: &Path, writable: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(writable).open(path)
}

#[expect(clippy::disallowed_methods, reason = "a guest's pipe is read by a thread of its own")]
pub(super) fn spawn(body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(body)
}

/// A file is there and may be read.
pub(super) fn is_readable(path: &Path) -> bool {
    path.is_file() && open(path, false).is_ok()
}
