//! What a file asks of direct I/O, and where its bytes live: found by asking, and by trying where nobody answers.

use crate::buf::AlignedBuf;
use rustix::fs::fstatfs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Larger alignments than this nobody has; also where our own trial buffer starts.
const ALIGN_MAX: u32 = 64 << 10;
/// What is assumed when neither the kernel nor the file (being empty) tells.
const ALIGN_UNKNOWN: u32 = 4096;

/// `BLKGETSIZE64`, linux/fs.h: `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// Whether the file's content lives in RAM and nowhere else.
pub(crate) fn is_ram_backed(file: impl AsFd) -> io::Result<bool> {
    #[allow(clippy::useless_conversion, reason = "narrower on some targets")]
    let magic = i64::from(fstatfs(file)?.f_type);
    Ok([TMPFS_MAGIC, RAMFS_MAGIC, HUGETLBFS_MAGIC].contains(&magic))
}

/// The block size I/O is best sized in.
pub(crate) fn best_block(file: impl AsFd, is_block_device: bool) -> io::Result<u32> {
    let block = if is_block_device {
        u64::from(rustix::fs::ioctl_blkpbszget(file)?)
    } else {
        u64::try_from(fstatfs(file)?.f_bsize).unwrap_or(0)
    };
    let usable = block.is_power_of_two() && (512..=1 << 20).contains(&block);
    Ok(if usable { u32::try_from(block).unwrap_or(ALIGN_UNKNOWN) } else { ALIGN_UNKNOWN })
}

/// Length of a block device in bytes.
pub(crate) fn device_bytes(device: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: this request writes one u64 through its argument, which points to one.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes) }
}

/// What O_DIRECT asks of memory and of offsets: `(mem_align, offset_align)`.
pub(crate) fn direct_io_align(file: impl AsFd) -> io::Result<(u32, u32)> {
    let file = file.as_fd();
    match statx_align(file)? {
        Some(align) => Ok(align),
        None => tried_align(file),
    }
}

/// `STATX_DIOALIGN` (Linux 6.1); `None` where kernel or file system do not answer.
fn statx_align(file: BorrowedFd<'_>) -> io::Result<Option<(u32, u32)>> {
    // SAFETY: an all-zero `statx` is a valid value of that C structure.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let (fd, path) = (file.as_raw_fd(), c"".as_ptr());
    let mask = libc::STATX_DIOALIGN;
    // SAFETY: `path` is a C string, and `stat` one `statx` to be filled.
    let done = unsafe { libc::statx(fd, path, libc::AT_EMPTY_PATH, mask, &raw mut stat) };
    if done < 0 {
        let error = io::Error::last_os_error();
        // Kernels before 4.11, and sandboxes that never heard of statx.
        let unknown = matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM));
        return if unknown { Ok(None) } else { Err(error) };
    }
    let (mem, offset) = (stat.stx_dio_mem_align, stat.stx_dio_offset_align);
    let sane = |align: u32| align.is_power_of_two() && align <= ALIGN_MAX;
    let told = stat.stx_mask & libc::STATX_DIOALIGN != 0 && sane(mem) && sane(offset);
    Ok(told.then_some((mem, offset)))
}

/// Reads with growing alignment until one is taken: first of the length, then of the memory.
fn tried_align(file: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let steps = || (9..=16).map(|bits| 1u32 << bits);
    let mut offset_align = None;
    for align in steps() {
        if let Some(bytes) = try_read(file, 0, align)? {
            // An empty file takes anything: there is nothing to be read.
            offset_align = Some(if bytes == 0 { ALIGN_UNKNOWN } else { align });
            break;
        }
    }
    let offset_align = offset_align.ok_or_else(|| {
        let what = "the file refuses direct reads at every alignment up to 64 KiB";
        io::Error::new(io::ErrorKind::Unsupported, what)
    })?;
    for align in steps() {
        match try_read(file, align, offset_align)? {
            Some(0) => return Ok((ALIGN_UNKNOWN, offset_align)),
            Some(_) => return Ok((align, offset_align)),
            None => {}
        }
    }
    Ok((ALIGN_MAX, offset_align))
}

/// Reads `len` bytes at offset 0 into memory that is aligned to `mem_align` and no more (0: fully). `None`: EINVAL.
fn try_read(file: BorrowedFd<'_>, mem_align: u32, len: u32) -> io::Result<Option<usize>> {
    let max = ALIGN_MAX as usize;
    let mut buf = AlignedBuf::new(2 * max, max);
    let start = mem_align as usize % max;
    let part = &mut buf.as_mut_slice()[start..start + len as usize];
    match rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *part, 0)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(rustix::io::Errno::INVAL) => Ok(None),
        // Opened for writing only: cannot be tried, but will be the same as for reading.
        Err(rustix::io::Errno::BADF) => Ok(Some(0)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]
    use super::*;
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn statx_and_trial_reads_agree_as_far_as_both_can_tell() {
        let path = std::env::temp_dir().join(format!("ferroblk-probe-{}", std::process::id()));
        std::fs::write(&path, vec![1; 128 << 10]).unwrap();
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
        let emptied = opened.and_then(|file| {
            let told = statx_align(file.as_fd())?;
            let tried = tried_align(file.as_fd())?;
            if let Some((mem, offset)) = told {
                // A trial reads one length at offset 0: it can only be too trusting of the memory, never of the length.
                assert_eq!(tried.1, offset.max(512));
                assert!(tried.0 >= mem);
            }
            OpenOptions::new().write(true).truncate(true).open(&path)?;
            tried_align(file.as_fd())
        });
        std::fs::remove_file(&path).unwrap();
        match emptied {
            Ok(align) => assert_eq!(align, (ALIGN_UNKNOWN, ALIGN_UNKNOWN)),
            Err(error) => println!("SKIPPED: no O_DIRECT in the temporary directory: {error}"),
        }
    }
}
