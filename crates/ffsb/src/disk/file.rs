//! A lane over a plain file or a block device of this host: a disk in-process, without a server.

use super::Lane;
use block::CacheMode;
use io_engine::AlignedBuf;
use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// Memory and offsets that O_DIRECT takes everywhere.
const ALIGN: usize = 4096;

/// One thread's way to a file. Lanes of one disk share the descriptor and nothing else.
#[derive(Debug)]
pub struct FileLane {
    file: Arc<OwnedFd>,
    size: u64,
    /// For callers' memory that O_DIRECT would refuse; `None` if the page cache is used.
    bounce: Option<AlignedBuf>,
    /// False: nothing is made durable.
    flushes: bool,
}

impl FileLane {
    /// Opens a file or block device that exists for `count` threads. `cache` means the same as for an image that is served: whether
    /// the page cache is used, and whether each write is durable when it returns.
    ///
    /// # Errors
    ///
    /// If it cannot be opened for reading and writing, with O_DIRECT if the cache mode asks for it, or is neither file nor block
    /// device; `ResourceBusy` if it is a block device that is mounted or otherwise in use.
    pub fn open(path: &Path, cache: CacheMode, count: usize) -> io::Result<Vec<FileLane>> {
        let direct = cache.is_direct();
        let mut flags = OFlags::RDWR | OFlags::CLOEXEC;
        flags.set(OFlags::DIRECT, direct);
        flags.set(OFlags::DSYNC, !cache.has_write_cache());
        let kind = FileType::from_raw_mode(rustix::fs::stat(path)?.st_mode);
        // Of a block device alone this means that nobody else may have it.
        flags.set(OFlags::EXCL, kind == FileType::BlockDevice);
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
            return Err(io::Error::other("neither a file nor a block device"));
        }
        // A block device says its size by where its end is, not by stat.
        let size = rustix::fs::seek(&file, SeekFrom::End(0))? & !511;
        let file = Arc::new(file);
        let bounce = || direct.then(|| AlignedBuf::new(0, ALIGN));
        let lane = || FileLane {
            file: file.clone(),
            size,
            bounce: bounce(),
            flushes: !cache.ignores_flush(),
        };
        Ok((0..count).map(|_| lane()).collect())
    }
}

impl Lane for FileLane {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match &mut self.bounce {
            Some(bounce) if !is_aligned(buf) => {
                let room = room(bounce, buf.len());
                read_exact(&self.file, offset, room)?;
                buf.copy_from_slice(room);
                Ok(())
            }
            _ => read_exact(&self.file, offset, buf),
        }
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        match &mut self.bounce {
            Some(bounce) if !is_aligned(buf) => {
                let room = room(bounce, buf.len());
                room.copy_from_slice(buf);
                write_all(&self.file, offset, room)
            }
            _ => write_all(&self.file, offset, buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.flushes {
            rustix::fs::fdatasync(&*self.file)?;
        }
        Ok(())
    }
}

fn is_aligned(buf: &[u8]) -> bool {
    buf.as_ptr().addr().is_multiple_of(ALIGN)
}

fn room(bounce: &mut AlignedBuf, len: usize) -> &mut [u8] {
    if bounce.len() < len {
        *bounce = AlignedBuf::new(len, ALIGN);
    }
    &mut bounce.as_mut_slice()[..len]
}

fn read_exact(file: &OwnedFd, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *buf, offset))?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf = &mut buf[read..];
        offset += read as u64;
    }
    Ok(())
}

fn write_all(file: &OwnedFd, mut offset: u64, mut buf: &[u8]) -> io::Result<()> {
    while !buf.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, buf, offset))?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        buf = &buf[written..];
        offset += written as u64;
    }
    Ok(())
}
