//! Image locks that exclude, and are excluded by, QEMU's.
//!
//! QEMU guards an image with open-file-description locks on single bytes of the file (its `block/file-posix.c`): byte `100 + p` is
//! read-locked by whoever *uses* permission `p`, byte `200 + p` by whoever does *not share* it with others. All locks are shared
//! ones, and nobody waits: a conflict is found by asking whether the opposite byte could be locked exclusively.
//!
//! | permission      | `p` |  used by a writer | shared by a writer | used by a reader | shared by a reader |
//! |-----------------|-----|-------------------|--------------------|------------------|--------------------|
//! | consistent read | 0   |  yes              | yes                | yes              | yes                |
//! | write           | 1   |  yes              | no                 | no               | no                 |
//! | write unchanged | 2   |  no               | yes                | no               | yes                |
//! | resize          | 3   |  yes              | no                 | no               | no                 |
//!
//! So any number of readers, or one writer. The locks end when the file's last descriptor is closed.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const USED_AT: i64 = 100;
const NOT_SHARED_AT: i64 = 200;

const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const WRITE_UNCHANGED: i64 = 2;
const RESIZE: i64 = 3;
const PERMISSIONS: [i64; 4] = [CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE];

/// Locks an image for one writer, or with `read_only` for readers.
///
/// # Errors
///
/// `WouldBlock` if somebody else's use excludes ours. Otherwise what the kernel says; a file system that knows no locks (some
/// network ones) gives `ENOLCK` or `EINVAL`, and the caller decides.
pub fn lock_image(file: &File, read_only: bool) -> io::Result<()> {
    let (used, not_shared): (&[i64], &[i64]) = match read_only {
        false => (&[CONSISTENT_READ, WRITE, RESIZE], &[WRITE, RESIZE]),
        true => (&[CONSISTENT_READ], &[WRITE, RESIZE]),
    };
    for permission in used {
        read_lock(file, USED_AT + permission)?;
    }
    for permission in not_shared {
        read_lock(file, NOT_SHARED_AT + permission)?;
    }
    // Looked at only after our own are in place: of two that come at once, one at least sees the other.
    for permission in PERMISSIONS {
        if used.contains(&permission) && is_locked(file, NOT_SHARED_AT + permission)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if not_shared.contains(&permission) && is_locked(file, USED_AT + permission)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
    }
    Ok(())
}

fn lock_of(kind: i32, byte: i64) -> libc::flock {
    // SAFETY: an all-zero `flock` is a valid value of that C structure.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(kind).expect("lock kinds are small numbers");
    lock.l_whence = i16::try_from(libc::SEEK_SET).expect("a small number");
    lock.l_start = byte;
    lock.l_len = 1;
    lock
}

fn read_lock(file: &File, byte: i64) -> io::Result<()> {
    fcntl(file, libc::F_OFD_SETLK, &mut lock_of(libc::F_RDLCK, byte))
}

/// Whether somebody else holds a lock on the byte.
fn is_locked(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = lock_of(libc::F_WRLCK, byte);
    fcntl(file, libc::F_OFD_GETLK, &mut lock)?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

fn fcntl(file: &File, command: i32, lock: &mut libc::flock) -> io::Result<()> {
    loop {
        // SAFETY: both commands take a pointer to a `flock`, which lives during the call.
        let done = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
        if done == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => continue,
            // EACCES and EAGAIN both mean that somebody holds an excluding lock.
            io::ErrorKind::PermissionDenied => return Err(io::ErrorKind::WouldBlock.into()),
            _ => return Err(error),
        }
    }
}
