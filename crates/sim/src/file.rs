//! How a checker gets at an image's bytes.

use io_engine::SimDisk;

/// The bytes of an image file.
#[allow(clippy::len_without_is_empty, reason = "a file, not a container")]
pub trait ImageFile {
    /// Its length in bytes.
    fn len(&self) -> u64;
    /// Fills `into` with the bytes at `at`; what lies beyond the end are zeroes.
    fn read_at(&self, at: u64, into: &mut [u8]);
}

impl ImageFile for SimDisk {
    fn len(&self) -> u64 {
        SimDisk::len(self)
    }

    fn read_at(&self, at: u64, into: &mut [u8]) {
        SimDisk::read_at(self, at, into);
    }
}

impl ImageFile for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, at: u64, into: &mut [u8]) {
        let tail = usize::try_from(at).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let take = tail.len().min(into.len());
        into[..take].copy_from_slice(&tail[..take]);
        into[take..].fill(0);
    }
}
