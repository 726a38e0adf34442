//! The files of a new image: their first bytes, their lengths, their space.

use crate::chain::path_in;
use crate::qcow2::create::{Layout, Preallocation};
use crate::{CreateOptions, Error, ErrorKind, Result, qcow2, qed};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

/// Bytes of zeroes written at a time.
const ZEROES_BYTES: u64 = 1 << 20;

/// What a new image's file is to be, checked: nothing of it is on the disk yet.
#[derive(Debug)]
pub(crate) struct NewFile {
    start: Start,
    bytes: u64,
    preallocation: Preallocation,
    /// The file that the data is to be in, and its length.
    data_file: Option<(Vec<u8>, u64)>,
}

#[derive(Debug)]
enum Start {
    Bytes(Vec<u8>),
    Qcow2(Box<Layout>),
}

impl NewFile {
    /// # Errors
    ///
    /// `BadRequest` with the reason if the format cannot express it.
    pub fn new(create: &CreateOptions) -> Result<NewFile> {
        let plain = |(start, bytes): (Vec<u8>, u64)| NewFile {
            start: Start::Bytes(start),
            bytes,
            preallocation: Preallocation::Off,
            data_file: None,
        };
        match create {
            CreateOptions::Raw { bytes } => Ok(plain((Vec::new(), *bytes))),
            CreateOptions::Qed(create) => qed::new_image(create).map(plain),
            CreateOptions::Qcow2(create) => NewFile::qcow2(create),
        }
    }

    fn qcow2(create: &qcow2::CreateOptions) -> Result<NewFile> {
        let layout = Layout::new(create)?;
        Ok(NewFile {
            bytes: layout.file_bytes(),
            start: Start::Qcow2(Box::new(layout)),
            preallocation: create.preallocation,
            data_file: create.data_file.clone().map(|name| (name, create.bytes)),
        })
    }

    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes all that is in the file, which has its length, reads as zeroes, and is at `path`; and makes the data file.
    pub fn write(&self, file: &File, path: &Path, doing: &str) -> Result<()> {
        let failed = |error: Errno| Error::io(doing, error.into());
        self.write_data_file(path, doing)?;
        match &self.start {
            Start::Bytes(start) => write_at(file, start, 0).map_err(failed),
            Start::Qcow2(layout) => {
                allocate(file, layout.data(), self.preallocation).map_err(failed)?;
                let mut pieces = layout.pieces();
                pieces.try_for_each(|piece| write_at(file, &piece.bytes, piece.at)).map_err(failed)
            }
        }
    }

    fn write_data_file(&self, image: &Path, doing: &str) -> Result<()> {
        let Some((name, bytes)) = &self.data_file else { return Ok(()) };
        let named = |error: Error| Error::new(error.kind(), format!("{doing}: {error}"));
        let path = path_in(image, name, "data file").map_err(named)?;
        if same_file(image, &path) {
            let what = format!("{doing}: it would be its own data file");
            return Err(Error::new(ErrorKind::BadRequest, what));
        }
        let failed = |error: Errno| Error::io(format!("{doing}: {}", path.display()), error.into());
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let file = File::from(rustix::fs::open(&path, flags, mode).map_err(failed)?);
        crate::image::lock(&file, false, doing)?;
        rustix::fs::ftruncate(&file, 0).map_err(failed)?;
        rustix::fs::ftruncate(&file, *bytes).map_err(failed)?;
        allocate(&file, 0..*bytes, self.preallocation).map_err(failed)
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    let id = |path| rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
    id(a).is_some_and(|a| id(b) == Some(a))
}

/// Sees to it that a range, which reads as zeroes, has its space.
fn allocate(file: &File, range: Range<u64>, how: Preallocation) -> rustix::io::Result<()> {
    let len = range.end - range.start;
    match how {
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        _ if len == 0 => Ok(()),
        Preallocation::Falloc => {
            rustix::fs::fallocate(file, FallocateFlags::empty(), range.start, len)
        }
        Preallocation::Full => {
            let zeroes = vec![0; usize::try_from(ZEROES_BYTES.min(len)).expect("at most 1 MiB")];
            let mut at = range.start;
            while at < range.end {
                let piece =
                    usize::try_from(range.end - at).map_or(zeroes.len(), |n| n.min(zeroes.len()));
                write_at(file, &zeroes[..piece], at)?;
                at += piece as u64;
            }
            Ok(())
        }
    }
}

/// Writes all of `bytes`.
fn write_at(file: &File, bytes: &[u8], at: u64) -> rustix::io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pwrite(file, &bytes[done..], at + done as u64) {
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
