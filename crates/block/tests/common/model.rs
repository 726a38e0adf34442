//! What a disk must hold: a plain vector of bytes, and random requests that change it, through our driver or through qemu-io. Of disks too large
//! for that, a few places.

use super::{Disk, PLAIN, first_difference};
use io_engine::Rng;
use std::path::Path;

/// A request that changes a disk.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    Write {
        at: u64,
        len: u64,
        pattern: u8,
    },
    Zeroes {
        at: u64,
        len: u64,
        unmap: bool,
    },
    /// What it leaves is not said, so zeroes follow it.
    Discard {
        at: u64,
        len: u64,
    },
    Flush,
}

/// Which requests to draw.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    pub disk_bytes: u64,
    pub cluster_bytes: u64,
    /// Largest request in bytes.
    pub len_max: u64,
    pub zeroes: bool,
    pub discards: bool,
    /// Whole clusters only; the disk's last one may be a part of one.
    pub aligned: bool,
}

impl Draw {
    pub fn request(&self, rng: &mut Rng) -> Request {
        let (at, len) = self.range(rng);
        match rng.index(10) {
            0..=5 => Request::Write { at, len, pattern: 1 + rng.below(255) as u8 },
            6 | 7 if self.zeroes => {
                Request::Zeroes { at, len, unmap: self.discards && rng.chance(500) }
            }
            8 if self.discards => Request::Discard { at, len },
            _ => Request::Flush,
        }
    }

    /// Whole sectors; often at a cluster's boundary, and rarely across the whole disk.
    fn range(&self, rng: &mut Rng) -> (u64, u64) {
        let max = self.len_max.min(self.disk_bytes) / 512;
        let max = [8.min(max), (self.cluster_bytes / 256).min(max), max][rng.index(3)];
        let len = 512 * (1 + rng.below(max));
        let mut at = 512 * rng.below((self.disk_bytes - len) / 512 + 1);
        if self.aligned || rng.chance(300) {
            at -= at % self.cluster_bytes;
        }
        match self.aligned {
            true => (at, len.next_multiple_of(self.cluster_bytes).min(self.disk_bytes - at)),
            false => (at, len),
        }
    }
}

/// The bytes of a disk.
#[derive(Clone, Debug)]
pub struct Model(pub Vec<u8>);

impl Model {
    /// A disk of `bytes` bytes over a backing disk.
    pub fn over(bytes: u64, backing: &[u8]) -> Model {
        let mut model = vec![0; bytes as usize];
        let len = model.len().min(backing.len());
        model[..len].copy_from_slice(&backing[..len]);
        Model(model)
    }

    pub fn apply(&mut self, request: Request) {
        let (at, len, byte) = match request {
            Request::Write { at, len, pattern } => (at, len, pattern),
            Request::Zeroes { at, len, .. } | Request::Discard { at, len } => (at, len, 0),
            Request::Flush => return,
        };
        self.0[at as usize..(at + len) as usize].fill(byte);
    }

    /// Applies the request to the disk and to the model.
    pub fn send(&mut self, disk: &Disk, request: Request) {
        let done = match request {
            Request::Write { at, len, pattern } => disk.write(at, &vec![pattern; len as usize]),
            Request::Zeroes { at, len, unmap } => disk.write_zeroes(at, len, unmap),
            Request::Discard { at, len } => {
                disk.discard(at, len).and_then(|()| disk.write_zeroes(at, len, true))
            }
            Request::Flush => disk.flush(),
        };
        done.unwrap_or_else(|error| panic!("{request:?}: {error}"));
        self.apply(request);
    }

    /// The disk, as our driver reads it, is this.
    pub fn check(&self, disk: &Disk, name: &str) {
        assert_eq!(disk.bytes, self.0.len() as u64, "{name}");
        self.check_bytes(&disk.contents(), name);
    }

    pub fn check_bytes(&self, found: &[u8], name: &str) {
        assert_eq!(found.len(), self.0.len(), "{name}");
        if let Some(at) = first_difference(found, &self.0) {
            let (found, expected) = (found[at], self.0[at]);
            panic!("{name}: byte {at:#x} is {found:#x}, not {expected:#x}");
        }
    }
}

/// Writes to the start, the middle and the end of an empty disk of `bytes` bytes, with zeroes `before` bytes before each place, and reads it back.
/// Gives the same reads for `qemu-io`.
pub fn write_ends(path: &Path, bytes: u64, before: u64) -> Vec<String> {
    let places = [(0, 512), (bytes / 2, 4096), (bytes - 1536, 1024), (bytes - 512, 512)];
    let disk = Disk::open(path, PLAIN, false).unwrap();
    for (pattern, (at, len)) in (21..).zip(places) {
        disk.write(at, &vec![pattern; len]).unwrap();
        disk.write_zeroes(at.saturating_sub(before), 512, true).unwrap();
    }
    disk.close().unwrap();
    // The zeroes of the first place are on it.
    let written = || (21..).zip(places).skip(1);
    let disk = Disk::open(path, PLAIN, true).unwrap();
    for (pattern, (at, len)) in written() {
        assert_eq!(disk.read(at, len as u64).unwrap(), vec![pattern; len]);
    }
    disk.close().unwrap();
    written().map(|(pattern, (at, len))| format!("read -P {pattern} {at} {len}")).collect()
}
