//! Disks without a file system: what a workload runs on when there is no guest.

pub mod file;
pub mod vhost_user;

use std::io;

/// One thread's way to a disk. Calls block until the disk has answered; lanes of one disk work side by side.
pub trait Lane: Send {
    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// Reads `buf.len()` bytes at `offset`. Both are multiples of 512.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes `buf` at `offset`. Length and offset are multiples of 512.
    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// What was written before is on stable storage when this returns.
    fn flush(&mut self) -> io::Result<()>;
}
