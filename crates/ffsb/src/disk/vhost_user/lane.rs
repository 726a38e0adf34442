//! One thread's way to a disk behind a virtqueue.

use super::Shared;
use super::queue::Seat;
use crate::disk::Lane;
use guest_mem::{GuestAddr, SharedSlice};
use rustix::io::Errno;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtqueue::driver::Seg;

/// Bytes in front of a lane's buffer: the request's header, and its status on a cache line of its own.
pub(super) const HEAD_BYTES: u64 = 4096;
const HEADER_BYTES: u32 = 16;
const STATUS_OFFSET: usize = 64;

const SECTOR: u64 = 512;

/// Kind of a request (VIRTIO 1.3, section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read = 0,
    Write = 1,
    Flush = 4,
}

/// `VIRTIO_BLK_S_*`
const STATUS_OK: u8 = 0;
const STATUS_IOERR: u8 = 1;
const STATUS_UNSUPP: u8 = 2;
/// What no server writes.
const STATUS_NONE: u8 = 0xff;

/// A lane of a [`super::VhostUserDisk`]. It can go to another thread between two requests.
#[derive(Debug)]
pub struct VhostUserLane {
    shared: Arc<Shared>,
    index: usize,
    seat: Seat,
    /// Header, status and buffer.
    area: SharedSlice,
    addr: GuestAddr,
    /// Why the queue failed, if it did; then the server may still own `area`.
    failure: Option<(io::ErrorKind, String)>,
}

impl VhostUserLane {
    pub(super) fn new(
        shared: Arc<Shared>,
        index: usize,
        seat: Seat,
        area: SharedSlice,
        addr: GuestAddr,
    ) -> VhostUserLane {
        VhostUserLane { shared, index, seat, area, addr, failure: None }
    }

    /// Checks what the caller asks for, before anything is done.
    fn check(&self, offset: u64, len: usize, writes: bool) -> io::Result<()> {
        if let Some((kind, what)) = &self.failure {
            return Err(io::Error::new(*kind, what.clone()));
        }
        let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let len = len as u64;
        if !offset.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
            return invalid(format!("{len} bytes at {offset:#x} of a disk: not whole sectors"));
        }
        let bytes = self.shared.facts.bytes;
        if offset.checked_add(len).is_none_or(|end| end > bytes) {
            return invalid(format!("{len} bytes at {offset:#x} of a disk of {bytes} bytes"));
        }
        match writes && self.shared.facts.read_only {
            true => Err(Errno::ROFS.into()),
            false => Ok(()),
        }
    }

    /// Has one request answered; data goes between it and the front of the buffer.
    fn request(&mut self, kind: Kind, offset: u64, len: usize) -> io::Result<()> {
        self.area.write_u32(0, kind as u32);
        self.area.write_u32(4, 0);
        self.area.write_u64(8, offset / SECTOR);
        self.area.copy_from(STATUS_OFFSET, &[STATUS_NONE]);
        let at = |bytes: u64| GuestAddr(self.addr.0 + bytes);
        let header = Seg { addr: at(0), len: HEADER_BYTES, device_writes: false };
        let status = Seg { addr: at(STATUS_OFFSET as u64), len: 1, device_writes: true };
        let len = u32::try_from(len).expect("a request fits the lane's buffer");
        let data = Seg { addr: at(HEAD_BYTES), len, device_writes: kind == Kind::Read };
        let queue = self.shared.queue_of(self.index);
        let outcome = match kind {
            Kind::Flush => queue.transfer(&mut self.seat, &[header, status]),
            _ => queue.transfer(&mut self.seat, &[header, data, status]),
        };
        if let Err(error) = outcome {
            self.failure = Some((error.kind(), error.to_string()));
            return Err(error);
        }
        let mut status = [STATUS_NONE];
        self.area.copy_to(STATUS_OFFSET, &mut status);
        match status {
            [STATUS_OK] => Ok(()),
            [STATUS_IOERR] => Err(Errno::IO.into()),
            [STATUS_UNSUPP] => Err(Errno::NOTSUP.into()),
            [status] => {
                let what = format!("{} answered status {status}", self.shared.server);
                Err(io::Error::new(io::ErrorKind::InvalidData, what))
            }
        }
    }

    fn buffer_offset() -> usize {
        usize::try_from(HEAD_BYTES).expect("a page")
    }
}

impl Lane for VhostUserLane {
    fn size(&self) -> u64 {
        self.shared.facts.bytes
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset, buf.len(), false)?;
        let mut at = offset;
        for piece in buf.chunks_mut(self.shared.request_bytes) {
            self.request(Kind::Read, at, piece.len())?;
            self.area.copy_to(VhostUserLane::buffer_offset(), piece);
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.check(offset, buf.len(), true)?;
        let mut at = offset;
        for piece in buf.chunks(self.shared.request_bytes) {
            self.area.copy_from(VhostUserLane::buffer_offset(), piece);
            self.request(Kind::Write, at, piece.len())?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.check(0, 0, false)?;
        match self.shared.facts.can_flush {
            true => self.request(Kind::Flush, 0, 0),
            false => Ok(()),
        }
    }
}

impl Drop for VhostUserLane {
    fn drop(&mut self) {
        self.shared.taken[self.index].store(false, Ordering::Release);
    }
}
