//! File descriptors a front end sends: accepted only if they can be what they are meant to be.
//!
//! An I/O thread will read the kick and write the call and error descriptors without looking. So a regular file (whose reads
//! wait for a disk), a socket or a directory must not get that far.

use super::error::Error;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use std::os::fd::{AsFd, OwnedFd};

/// What we will do with the descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Kick: wait for it, and read.
    Read,
    /// Call, error: write.
    Write,
}

/// Checks that `fd` is an eventfd (or another anonymous inode, which are not told apart) or a pipe, opened for `usage`.
///
/// Makes it non-blocking, too: an eventfd whose counter is full, or a full pipe, must not hold up an I/O thread. The front end
/// shares that flag and can clear it again, so this helps against accidents only.
pub(crate) fn check_event_fd(fd: &OwnedFd, usage: Use) -> Result<(), Error> {
    let stat = fstat(fd).map_err(|e| Error::io("looking at an event's file descriptor", e))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    // `fstat` gives an anonymous inode no file type at all.
    let anonymous = stat.st_mode & 0o170_000 == 0;
    if !anonymous && kind != FileType::Fifo {
        return Err(Error::refused(format!(
            "the file descriptor is neither an eventfd nor a pipe but a {kind:?}"
        )));
    }
    let flags = fcntl_getfl(fd).map_err(|e| Error::io("looking at an event's flags", e))?;
    let mode = flags & OFlags::RWMODE;
    let usable = match usage {
        Use::Read => mode == OFlags::RDONLY || mode == OFlags::RDWR,
        Use::Write => mode == OFlags::WRONLY || mode == OFlags::RDWR,
    };
    if !usable || flags.contains(OFlags::PATH) {
        return Err(Error::refused("the event's file descriptor is not open for its use"));
    }
    fcntl_setfl(fd, flags | OFlags::NONBLOCK)
        .map_err(|e| Error::io("making an event's file descriptor non-blocking", e))
}

/// Checks that `fd` is a connected kind of Unix socket, as the back-end channel is.
pub(crate) fn check_stream_socket(fd: impl AsFd) -> Result<(), Error> {
    let is_stream =
        socket_domain(&fd) == Ok(AddressFamily::UNIX) && socket_type(&fd) == Ok(SocketType::STREAM);
    match is_stream {
        true => Ok(()),
        false => Err(Error::refused("the file descriptor is not a Unix stream socket")),
    }
}
