//! Data that goes from one file to another without passing through us.
//!
//! [`share_range`] copies nothing: on file systems with copy on write (XFS, Btrfs, bcachefs, OCFS2, NFS 4.2) both files have the same blocks from
//! then on, until one of them is written. [`copy_range`] shares where it can, and otherwise has the kernel copy, or a file server.
//!
//! Both are calls that return when it is done, not ops: for tools, whose own thread may wait. Neither changes what is beside the range.

use crate::file::HostFile;
use rustix::fd::AsRawFd;
use std::io;

/// Makes `len` bytes of `to` at `to_at` the same blocks as those of `from` at `at`: `FICLONERANGE`, ioctl_ficlonerange(2).
///
/// # Errors
///
/// The host's: among others `EOPNOTSUPP` and `EXDEV` where the two cannot share, `EINVAL` if the range is not in whole blocks of the file system or is beyond
/// the end of `from`. Nothing has been changed then.
pub fn share_range(
    from: &HostFile,
    at: u64,
    to: &HostFile,
    to_at: u64,
    len: u64,
) -> io::Result<()> {
    if len == 0 {
        // To the kernel it means: all that follows.
        return Ok(());
    }
    let range = libc::file_clone_range {
        src_fd: i64::from(from.file().as_raw_fd()),
        src_offset: at,
        src_length: len,
        dest_offset: to_at,
    };
    let fd = to.file().as_raw_fd();
    // SAFETY: both files are open as long as they are borrowed; the kernel reads the structure, which is the one of this request, and writes no memory of ours.
    let done = unsafe { libc::ioctl(fd, libc::FICLONERANGE, &raw const range) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Copies `len` bytes of `from` at `at` to `to` at `to_at` by copy_file_range(2).
///
/// # Errors
///
/// The host's: among others `EXDEV` between file systems, `EINVAL` for devices; `UnexpectedEof` if `from` ends before. A part may have been copied then.
pub fn copy_range(from: &HostFile, at: u64, to: &HostFile, to_at: u64, len: u64) -> io::Result<()> {
    let (mut at, mut to_at, end) = (at, to_at, at.saturating_add(len));
    while at < end {
        let step = usize::try_from(end - at).unwrap_or(usize::MAX);
        let copied = rustix::fs::copy_file_range(
            from.file(),
            Some(&mut at),
            to.file(),
            Some(&mut to_at),
            step,
        );
        match copied {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[expect(clippy::disallowed_methods, reason = "the test's own file")]
    fn file(content: &[u8]) -> HostFile {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("ferroblk-offload-{}-{n}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all_at(content, 0).unwrap();
        HostFile::new(file, false).unwrap()
    }

    fn content(file: &HostFile) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
        file.file().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn a_range_is_copied_and_nothing_else() {
        let from = file(&[[1; 4096], [2; 4096], [3; 4096]].concat());
        let to = file(&[9; 5 * 4096]);
        copy_range(&from, 4096, &to, 8192, 8192).unwrap();
        let wanted = [[9; 4096], [9; 4096], [2; 4096], [3; 4096], [9; 4096]].concat();
        assert_eq!(content(&to), wanted);
        copy_range(&from, 5, &to, 1, 2).unwrap();
        assert_eq!(content(&to)[..4], [9, 1, 1, 9]);
    }

    #[test]
    fn the_end_of_the_source_is_no_success() {
        let (from, to) = (file(&[1; 4096]), file(&[]));
        let error = copy_range(&from, 0, &to, 0, 8192).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        copy_range(&from, 0, &to, 0, 0).unwrap();
    }

    #[test]
    fn what_cannot_be_shared_is_refused_and_nothing_changed() {
        // No file system has blocks of one byte.
        let (from, to) = (file(&[1; 8192]), file(&[9; 8192]));
        assert!(share_range(&from, 1, &to, 1, 1).is_err());
        share_range(&from, 0, &to, 0, 0).unwrap();
        assert_eq!(content(&to), [9; 8192]);
    }
}
