//! A simple extent layout: files on a disk that has no file system.
//!
//! Which files there are, their sizes and extents are kept in memory only; nothing can be read back by another run. Data takes
//! whole 4 KiB blocks from a first-fit allocator. Each file has a 4 KiB block for its inode at a place of its own; a change of the
//! file (made, grown, renamed, removed) writes that block once: the least that a file system would do.
//!
//! Blocks that are not whole 512-byte sectors: a read takes the sectors around, a write reads the sectors at its edges first, as
//! the page cache of a file system would. Behind the end of a file nothing needs to be kept, and nothing is read.

use super::set::File;
use crate::disk::Lane;
use io_engine::AlignedBuf;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

/// Unit of allocation.
const BLOCK: u64 = 4096;
const SECTOR: usize = 512;
/// Free runs looked at for one that is long enough, before a file is put together from pieces.
const FIRST_FIT_RUNS: usize = 128;
/// Inodes lie together, this many in a piece.
const INODES_TOGETHER: u64 = 256;

/// The layout on one disk.
#[derive(Debug)]
pub(crate) struct Extents {
    name: String,
    size: u64,
    space: Mutex<Space>,
}

/// Where a file is on the disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Location {
    /// In order of the file's bytes.
    extents: Vec<Extent>,
    /// Offset of the inode's block; 0: none yet.
    pub inode: u64,
}

/// Bytes in a row, in whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    start: u64,
    len: u64,
}

/// What is free.
#[derive(Debug)]
struct Space {
    /// Free runs: offset and length.
    free: BTreeMap<u64, u64>,
    free_bytes: u64,
    /// The piece that inodes are taken from now.
    inodes: Extent,
}

/// Memory of a thread for blocks that are not whole sectors, and for metadata.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    edges: Option<AlignedBuf>,
    metadata: Option<AlignedBuf>,
}

impl Extents {
    /// An empty layout on a disk of `size` bytes.
    pub fn new(name: &str, size: u64) -> Extents {
        // Offset 0 stays free of files: it stands for "no place".
        let end = size & !(BLOCK - 1);
        let free_bytes = end.saturating_sub(BLOCK);
        let free = BTreeMap::from_iter((free_bytes > 0).then_some((BLOCK, free_bytes)));
        let inodes = Extent { start: 0, len: 0 };
        let space = Mutex::new(Space { free, free_bytes, inodes });
        Extents { name: name.to_owned(), size: end, space }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn utilisation(&self) -> f64 {
        let used = self.size.saturating_sub(self.space().free_bytes);
        used as f64 / self.size.max(1) as f64
    }

    fn space(&self) -> std::sync::MutexGuard<'_, Space> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for `len` bytes behind the end of a file, and for its inode.
    pub fn make_room(&self, file: &mut File, len: u64) -> io::Result<()> {
        self.inode_of(file)?;
        let needed = file.size.load(Ordering::Relaxed) + len;
        let there: u64 = file.place.extents.iter().map(|extent| extent.len).sum();
        let missing = needed.saturating_sub(there).next_multiple_of(BLOCK);
        if missing > 0 {
            let mut space = self.space();
            if missing > space.free_bytes {
                return Err(space.full(missing));
            }
            let grown = file.place.extents.last_mut().map_or(0, |last| space.extend(last, missing));
            space.take(missing - grown, &mut file.place.extents)?;
        }
        Ok(())
    }

    /// Gives a file's data blocks back. The inode's place stays with the name.
    pub fn release(&self, file: &mut File) {
        let mut space = self.space();
        for extent in file.place.extents.drain(..) {
            space.give(extent);
        }
    }

    /// The file's inode block, made if it has none.
    pub fn inode_of(&self, file: &mut File) -> io::Result<u64> {
        if file.place.inode == 0 {
            file.place.inode = self.new_inode()?;
        }
        Ok(file.place.inode)
    }

    /// A place for an inode.
    pub fn new_inode(&self) -> io::Result<u64> {
        let mut space = self.space();
        if space.inodes.len == 0 {
            let mut piece = Vec::new();
            if space.take(BLOCK * INODES_TOGETHER, &mut piece).is_err() || piece.len() > 1 {
                for extent in piece.drain(..) {
                    space.give(extent);
                }
                space.take(BLOCK, &mut piece)?;
            }
            space.inodes = piece[0];
        }
        let inode = space.inodes.start;
        space.inodes.start += BLOCK;
        space.inodes.len -= BLOCK;
        Ok(inode)
    }

    pub fn write_metadata(
        &self,
        lane: &mut dyn Lane,
        scratch: &mut Scratch,
        inode: u64,
    ) -> io::Result<()> {
        let block = scratch.metadata.get_or_insert_with(|| {
            let mut block = AlignedBuf::new(4096, 4096);
            block.as_mut_slice().fill(0x49);
            block
        });
        lane.write_at(inode, block.as_slice())
    }

    pub fn read(
        &self,
        lane: &mut dyn Lane,
        scratch: &mut Scratch,
        file: &File,
        offset: u64,
        buf: &mut [u8],
    ) -> io::Result<()> {
        file.place.pieces(offset, buf.len(), |at, range| {
            let buf = &mut buf[range];
            let head = in_sector(at);
            if head == 0 && buf.len().is_multiple_of(SECTOR) {
                return lane.read_at(at, buf);
            }
            let around = scratch.edges((head + buf.len()).next_multiple_of(SECTOR));
            lane.read_at(at - head as u64, around)?;
            buf.copy_from_slice(&around[head..head + buf.len()]);
            Ok(())
        })
    }

    pub fn write(
        &self,
        lane: &mut dyn Lane,
        scratch: &mut Scratch,
        file: &File,
        offset: u64,
        buf: &[u8],
    ) -> io::Result<()> {
        let is_end = offset + buf.len() as u64 >= file.size.load(Ordering::Relaxed);
        file.place.pieces(offset, buf.len(), |at, range| {
            let to_end = is_end && range.end == buf.len();
            let buf = &buf[range];
            let head = in_sector(at);
            if head == 0 && buf.len().is_multiple_of(SECTOR) {
                return lane.write_at(at, buf);
            }
            let end = head + buf.len();
            let around = scratch.edges(end.next_multiple_of(SECTOR));
            let start = at - head as u64;
            let last = around.len() - SECTOR;
            if head > 0 {
                lane.read_at(start, &mut around[..SECTOR])?;
            }
            if to_end {
                around[end..].fill(0);
            } else if !end.is_multiple_of(SECTOR) && (last > 0 || head == 0) {
                lane.read_at(start + last as u64, &mut around[last..])?;
            }
            around[head..end].copy_from_slice(buf);
            lane.write_at(start, around)
        })
    }
}

fn in_sector(at: u64) -> usize {
    usize::try_from(at % SECTOR as u64).expect("less than a sector")
}

impl Scratch {
    fn edges(&mut self, len: usize) -> &mut [u8] {
        let buf = self.edges.get_or_insert_with(|| AlignedBuf::new(len, 4096));
        if buf.len() < len {
            *buf = AlignedBuf::new(len, 4096);
        }
        &mut buf.as_mut_slice()[..len]
    }
}

impl Location {
    /// Gives `each` the disk offset of each part of a block, and the range of the block it covers.
    fn pieces(
        &self,
        offset: u64,
        len: usize,
        mut each: impl FnMut(u64, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut skip, mut done) = (offset, 0);
        for extent in &self.extents {
            if skip >= extent.len {
                skip -= extent.len;
                continue;
            }
            let here = usize::try_from(extent.len - skip).unwrap_or(usize::MAX).min(len - done);
            each(extent.start + skip, done..done + here)?;
            (skip, done) = (0, done + here);
            if done == len {
                return Ok(());
            }
        }
        Err(io::Error::other(format!("no place on the disk for offset {offset:#x}")))
    }
}

impl Space {
    /// Appends extents of `len` bytes together; none if there is not enough.
    fn take(&mut self, len: u64, into: &mut Vec<Extent>) -> io::Result<()> {
        if len > self.free_bytes {
            return Err(self.full(len));
        }
        if len == 0 {
            return Ok(());
        }
        let fits = |(_, free): &(&u64, &u64)| **free >= len;
        let whole = self.free.iter().take(FIRST_FIT_RUNS).find(fits);
        let whole = whole.or_else(|| self.free.last_key_value().filter(fits));
        if let Some(start) = whole.map(|(start, _)| *start) {
            into.push(self.cut(start, len));
            return Ok(());
        }
        let mut missing = len;
        while missing > 0 {
            let (start, free) = self.free.first_key_value().expect("enough is free");
            let (start, piece) = (*start, missing.min(*free));
            into.push(self.cut(start, piece));
            missing -= piece;
        }
        Ok(())
    }

    fn full(&self, len: u64) -> io::Error {
        let why = format!("the disk is full: {len} bytes needed, {} free", self.free_bytes);
        io::Error::new(io::ErrorKind::StorageFull, why)
    }

    /// Lets an extent grow in place by at most `len`, and says by how much: a file that is appended to stays in one piece while it
    /// can.
    fn extend(&mut self, extent: &mut Extent, len: u64) -> u64 {
        let end = extent.start + extent.len;
        let Some(free) = self.free.get(&end) else { return 0 };
        let grown = len.min(*free);
        self.cut(end, grown);
        extent.len += grown;
        grown
    }

    /// The first `len` bytes of the free run at `start`.
    fn cut(&mut self, start: u64, len: u64) -> Extent {
        let free = self.free.remove(&start).expect("a free run");
        if free > len {
            self.free.insert(start + len, free - len);
        }
        self.free_bytes -= len;
        Extent { start, len }
    }

    fn give(&mut self, extent: Extent) {
        let Extent { mut start, mut len } = extent;
        self.free_bytes += len;
        if let Some((before, free)) = self.free.range(..start).next_back().map(|(b, f)| (*b, *f))
            && before + free == start
        {
            self.free.remove(&before);
            (start, len) = (before, len + free);
        }
        if let Some(free) = self.free.remove(&(start + len)) {
            len += free;
        }
        self.free.insert(start, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_engine::Rng;

    /// A disk in memory, which counts what it is asked for.
    struct Memory {
        bytes: Vec<u8>,
        reads: usize,
    }

    impl Lane for Memory {
        fn size(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            self.reads += 1;
            let at = usize::try_from(offset).unwrap();
            assert!(at.is_multiple_of(512) && buf.len().is_multiple_of(512));
            buf.copy_from_slice(&self.bytes[at..at + buf.len()]);
            Ok(())
        }

        fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
            let at = usize::try_from(offset).unwrap();
            assert!(at.is_multiple_of(512) && buf.len().is_multiple_of(512));
            self.bytes[at..at + buf.len()].copy_from_slice(buf);
            Ok(())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn space_is_first_fit_and_comes_back_in_one_piece() {
        let extents = Extents::new("disk", 64 * BLOCK);
        let mut space = extents.space();
        let take = |space: &mut Space, blocks: u64| {
            let mut into = Vec::new();
            space.take(blocks * BLOCK, &mut into).map(|()| into)
        };
        let a = take(&mut space, 10).unwrap();
        let b = take(&mut space, 10).unwrap();
        let c = take(&mut space, 10).unwrap();
        assert_eq!((a[0].start, b[0].start, c[0].start), (BLOCK, 11 * BLOCK, 21 * BLOCK));
        space.give(a[0]);
        let d = take(&mut space, 11).unwrap();
        assert_eq!(d[0].start, 31 * BLOCK, "does not fit in the hole");
        assert_eq!(take(&mut space, 4).unwrap()[0].start, BLOCK, "the hole is first");
        // 6 blocks in the hole, 22 at the end: 28 are there, in two pieces.
        assert_eq!(take(&mut space, 28).unwrap().len(), 2);
        let error = take(&mut space, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(error.to_string(), "the disk is full: 4096 bytes needed, 0 free");
        // One alone, one before it, one behind.
        for extent in [c[0], b[0], d[0]] {
            space.give(extent);
        }
        assert_eq!(space.free, BTreeMap::from([(11 * BLOCK, 31 * BLOCK)]));
        assert_eq!(space.free_bytes, 31 * BLOCK);
    }

    #[test]
    fn blocks_of_any_size_at_any_offset_keep_their_neighbours() {
        let mut lane = Memory { bytes: vec![0; 64 * 4096], reads: 0 };
        let extents = Extents::new("disk", lane.size());
        let (mut file, mut scratch) = (File::default(), Scratch::default());
        // Two extents, so that blocks lie across.
        extents.make_room(&mut file, 3 * BLOCK).unwrap();
        file.size.store(3 * BLOCK, Ordering::Relaxed);
        extents.make_room(&mut File::default(), BLOCK).unwrap();
        extents.make_room(&mut file, 2 * BLOCK).unwrap();
        assert_eq!(file.place.extents.len(), 2);
        file.size.store(5 * BLOCK - 100, Ordering::Relaxed);

        let mut model = vec![0; 5 * 4096 - 100];
        let mut rng = Rng::new(1);
        for round in 0..500 {
            let offset = rng.index(model.len());
            let len = 1 + rng.index((model.len() - offset).min(6000));
            let mut buf = vec![0; len];
            rng.fill(&mut buf);
            extents.write(&mut lane, &mut scratch, &file, offset as u64, &buf).unwrap();
            model[offset..offset + len].copy_from_slice(&buf);
            let offset = rng.index(model.len());
            let len = 1 + rng.index((model.len() - offset).min(6000));
            let mut buf = vec![0; len];
            extents.read(&mut lane, &mut scratch, &file, offset as u64, &mut buf).unwrap();
            assert_eq!(buf, model[offset..offset + len], "round {round}");
        }
    }

    #[test]
    fn a_file_grows_in_place_while_it_can() {
        let extents = Extents::new("disk", 1024 * BLOCK);
        let mut file = File::default();
        for blocks in 1..4 {
            extents.make_room(&mut file, BLOCK).unwrap();
            file.size.store(blocks * BLOCK, Ordering::Relaxed);
        }
        assert_eq!(file.place.extents.len(), 1);
        extents.make_room(&mut File::default(), BLOCK).unwrap();
        extents.make_room(&mut file, BLOCK).unwrap();
        assert_eq!(file.place.extents.len(), 2);
        let before = extents.utilisation();
        extents.release(&mut file);
        assert!(extents.utilisation() < before && file.place.extents.is_empty());
    }

    #[test]
    fn the_end_of_a_file_is_written_without_reading() {
        let mut lane = Memory { bytes: vec![0; 64 * 4096], reads: 0 };
        let extents = Extents::new("disk", lane.size());
        let (mut file, mut scratch) = (File::default(), Scratch::default());
        extents.make_room(&mut file, 1000).unwrap();
        extents.write(&mut lane, &mut scratch, &file, 0, &[1; 1000]).unwrap();
        assert_eq!(lane.reads, 0);
        file.size.store(1000, Ordering::Relaxed);
        extents.write(&mut lane, &mut scratch, &file, 0, &[2; 100]).unwrap();
        assert_eq!(lane.reads, 1);
    }
}
