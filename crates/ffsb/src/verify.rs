//! Content that says what it is, so that a wrong answer of a disk is caught and named.
//!
//! Every 512-byte cell of a file starts with a header, so that a write that was torn between two sectors shows, and one that went
//! to another place:
//!
//! ```text
//!  0       magic "ffsbcell"
//!  8       set: a number that no other file set has, so that what an earlier run left behind is not taken for ours
//! 16       file: file system, kind of file set, number in it
//! 24       offset in the file
//! 32       generation: how many blocks were written to this file before, plus one
//! 40       reserved, zero
//! 60       CRC-32C of all other bytes of the cell
//! 64       filling, different in each cell and generation
//! ```
//!
//! What generation each cell must have is kept in memory ([`Cells`], 4 bytes a cell), with a bit that says whether it was read
//! since. The bit tells a write that never arrived from an answer that is older than one given before.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a cell: a sector.
pub(crate) const CELL: usize = 512;
/// The same, for offsets.
pub(crate) const CELL_BYTES: u64 = CELL as u64;

const MAGIC: u64 = u64::from_le_bytes(*b"ffsbcell");
const HEADER: usize = 64;
const CRC_AT: usize = 60;

/// Set in an entry of [`Cells`] when the cell was read with its generation.
const SEEN: u32 = 1 << 31;

/// Whose content it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub set: u64,
    pub file: u64,
}

/// What the cells of a file must hold.
#[derive(Debug, Default)]
pub(crate) struct Cells {
    /// Generation of each cell; 0: never written.
    expected: Vec<AtomicU32>,
    /// Generation of the last block written. Goes on when a file is deleted and made again under its name, so that content of
    /// the former is known to be old.
    last: AtomicU32,
}

/// A cell that is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Offset of the cell in the file.
    pub offset: u64,
    /// Generation that was written last.
    pub expected: u32,
    pub kind: FaultKind,
}

/// What is wrong with a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// All zeroes.
    Zeroes,
    /// No header.
    Foreign,
    /// The checksum does not match: bits changed.
    Corrupt,
    /// A whole cell of another place.
    Misplaced { owner: Owner, offset: u64 },
    /// A cell of an earlier file set.
    Leftover,
    /// An older generation, and the newer was never read: its write did not arrive.
    Lost { found: u32 },
    /// As `Lost`, but other cells of the same write did arrive.
    Torn { found: u32 },
    /// An older generation, though the newer was read before.
    Stale { found: u32 },
    /// A generation that was never written.
    Unwritten { found: u32 },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = self.expected;
        match self.kind {
            FaultKind::Zeroes => {
                write!(f, "lost write: zeroes found, generation {expected} expected")
            }
            FaultKind::Foreign => {
                write!(f, "foreign content: no block header found, generation {expected} expected")
            }
            FaultKind::Corrupt => {
                write!(f, "corrupt block: checksum does not match, generation {expected} expected")
            }
            FaultKind::Misplaced { owner, offset } => write!(
                f,
                "misplaced block: content of {} at offset {offset:#x} found, generation {expected} expected",
                FileId(owner.file)
            ),
            FaultKind::Leftover => write!(
                f,
                "lost write: content of an earlier file set found, generation {expected} expected"
            ),
            FaultKind::Lost { found } => {
                write!(f, "lost write: generation {found} found, {expected} expected")
            }
            FaultKind::Torn { found } => {
                write!(f, "torn write: generation {found} found, {expected} expected as beside it")
            }
            FaultKind::Stale { found } => write!(
                f,
                "stale read: generation {found} found, {expected} expected and read before"
            ),
            FaultKind::Unwritten { found } => {
                write!(f, "generation {found} found, which was never written; {expected} expected")
            }
        }
    }
}

/// A file's identity as the header holds it: 16 bits file system, 8 bits kind of set, 32 bits number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId(pub u64);

impl FileId {
    pub fn new(file_system: usize, kind: u8, number: u32) -> FileId {
        FileId((file_system as u64) << 40 | u64::from(kind) << 32 | u64::from(number))
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.0 >> 32 & 0xff == 0 { "datafile" } else { "fillfile" };
        write!(f, "{name}{} of file system {}", self.0 & 0xffff_ffff, self.0 >> 40)
    }
}

impl Cells {
    /// Forgets what the cells hold: the file is empty.
    pub fn truncate(&mut self) {
        self.expected.clear();
    }

    /// Makes room for a file of `size` bytes, a multiple of [`CELL`].
    pub fn grow(&mut self, size: u64) {
        let count = usize::try_from(size / CELL_BYTES).expect("a file's cells fit in memory");
        self.expected.resize_with(count, AtomicU32::default);
    }

    /// Generation for the next block. `None` after two thousand million.
    pub fn next_generation(&self) -> Option<u32> {
        let last = self.last.fetch_add(1, Ordering::Relaxed);
        (last < SEEN - 1).then_some(last + 1)
    }

    /// A block of `generation` was written at `offset`.
    pub fn wrote(&self, offset: u64, len: usize, generation: u32) {
        for cell in self.range(offset, len) {
            cell.store(generation, Ordering::Relaxed);
        }
    }

    /// Takes over what a file of an earlier run holds: each cell must be whole and in its place, its generation is believed.
    /// `owner` names the file; the set is that of the cell.
    pub fn adopt(&self, buf: &[u8], offset: u64, owner: Owner) -> Result<(), Fault> {
        for (cell, at) in buf.chunks_exact(CELL).zip((offset..).step_by(CELL)) {
            let found =
                inspect(cell, owner, at).map_err(|kind| Fault { offset: at, expected: 0, kind })?;
            self.last.fetch_max(found, Ordering::Relaxed);
            self.wrote(at, CELL, found);
        }
        Ok(())
    }

    /// Checks a block that was read.
    pub fn check(&self, buf: &[u8], offset: u64, owner: Owner) -> Result<(), Fault> {
        let cells = self.range(offset, buf.len());
        for (index, (cell, expected)) in buf.chunks_exact(CELL).zip(cells).enumerate() {
            let entry = expected.load(Ordering::Relaxed);
            let generation = entry & !SEEN;
            let at = offset + (index * CELL) as u64;
            let kind = match inspect(cell, owner, at) {
                Ok(found) if found == generation => {
                    if entry & SEEN == 0 {
                        expected.fetch_or(SEEN, Ordering::Relaxed);
                    }
                    continue;
                }
                Ok(found) if found > generation => FaultKind::Unwritten { found },
                Ok(found) if entry & SEEN != 0 => FaultKind::Stale { found },
                Ok(found) if self.has_neighbour(buf, offset, owner, generation) => {
                    FaultKind::Torn { found }
                }
                Ok(found) => FaultKind::Lost { found },
                Err(kind) => kind,
            };
            return Err(Fault { offset: at, expected: generation, kind });
        }
        Ok(())
    }

    /// Whether another cell of the block has come from the same write.
    fn has_neighbour(&self, buf: &[u8], offset: u64, owner: Owner, generation: u32) -> bool {
        let mut cells = buf.chunks_exact(CELL).zip((offset..).step_by(CELL));
        cells.any(|(cell, at)| inspect(cell, owner, at) == Ok(generation))
    }

    fn range(&self, offset: u64, len: usize) -> &[AtomicU32] {
        let first = usize::try_from(offset / CELL_BYTES).expect("within the file");
        &self.expected[first..first + len / CELL]
    }
}

/// Whether there is a header at all: the file was made with verification.
pub(crate) fn set_of(cell: &[u8]) -> Option<u64> {
    (cell.len() >= HEADER && word(cell, 0) == MAGIC).then(|| word(cell, 8))
}

/// Fills a block of whole cells.
pub(crate) fn fill(buf: &mut [u8], offset: u64, owner: Owner, generation: u32) {
    for (cell, at) in buf.chunks_exact_mut(CELL).zip((offset..).step_by(CELL)) {
        put(cell, 0, MAGIC);
        put(cell, 8, owner.set);
        put(cell, 16, owner.file);
        put(cell, 24, at);
        put(cell, 32, u64::from(generation));
        cell[40..HEADER].fill(0);
        // A multiplicative sequence: no two cells or generations look alike, and nothing compresses.
        let mut filling = owner.file.rotate_left(24) ^ at ^ u64::from(generation) << 40 ^ owner.set;
        for word in cell[HEADER..].chunks_exact_mut(8) {
            filling =
                filling.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(0x9e37_79b9_7f4a_7c15);
            word.copy_from_slice(&(filling ^ filling >> 29).to_le_bytes());
        }
        let crc = checksum(cell);
        cell[CRC_AT..HEADER].copy_from_slice(&crc.to_le_bytes());
    }
}

/// The generation of a cell that is whole and in its place.
fn inspect(cell: &[u8], owner: Owner, offset: u64) -> Result<u32, FaultKind> {
    if word(cell, 0) != MAGIC {
        let zeroes = cell.iter().all(|byte| *byte == 0);
        return Err(if zeroes { FaultKind::Zeroes } else { FaultKind::Foreign });
    }
    if checksum(cell).to_le_bytes() != cell[CRC_AT..HEADER] {
        return Err(FaultKind::Corrupt);
    }
    let found = Owner { set: word(cell, 8), file: word(cell, 16) };
    if found.set != owner.set {
        return Err(FaultKind::Leftover);
    }
    if found != owner || word(cell, 24) != offset {
        return Err(FaultKind::Misplaced { owner: found, offset: word(cell, 24) });
    }
    u32::try_from(word(cell, 32)).map_err(|_| FaultKind::Corrupt)
}

fn checksum(cell: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&cell[..CRC_AT]), &cell[HEADER..])
}

fn word(cell: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*cell[at..].first_chunk().expect("within the header"))
}

fn put(cell: &mut [u8], at: usize, value: u64) {
    cell[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner { set: 7, file: 3 };
    const AT: u64 = 8192;
    const BLOCK: usize = 4096;

    /// A file whose block at [`AT`] was written twice, and both contents.
    fn written_twice() -> (Cells, Vec<u8>, Vec<u8>) {
        let mut cells = Cells::default();
        cells.grow(AT + BLOCK as u64);
        let block = || {
            let generation = cells.next_generation().unwrap();
            let mut buf = vec![0; BLOCK];
            fill(&mut buf, AT, OWNER, generation);
            cells.wrote(AT, BLOCK, generation);
            buf
        };
        let (old, new) = (block(), block());
        (cells, old, new)
    }

    fn kind_of(cells: &Cells, buf: &[u8]) -> FaultKind {
        cells.check(buf, AT, OWNER).unwrap_err().kind
    }

    #[test]
    fn what_was_written_last_passes() {
        let (cells, _, new) = written_twice();
        assert_eq!(cells.check(&new, AT, OWNER), Ok(()));
        // Any part of the block, too: reads need not be those of the writer.
        assert_eq!(cells.check(&new[1024..2048], AT + 1024, OWNER), Ok(()));
    }

    #[test]
    fn every_single_bit_is_covered() {
        let (cells, _, new) = written_twice();
        for bit in 0..CELL * 8 {
            let mut buf = new.clone();
            buf[CELL + bit / 8] ^= 1 << (bit % 8);
            let fault = cells.check(&buf, AT, OWNER).unwrap_err();
            let expected = if bit < 64 { FaultKind::Foreign } else { FaultKind::Corrupt };
            assert_eq!((fault.kind, fault.offset), (expected, AT + 512), "bit {bit}");
        }
    }

    #[test]
    fn old_content_is_lost_torn_or_stale() {
        let (cells, old, new) = written_twice();
        assert_eq!(kind_of(&cells, &old), FaultKind::Lost { found: 1 });
        let torn = [&new[..512], &old[512..]].concat();
        assert_eq!(kind_of(&cells, &torn), FaultKind::Torn { found: 1 });
        // The cell of the torn block that was right has been read now.
        assert_eq!(kind_of(&cells, &old), FaultKind::Stale { found: 1 });
        assert_eq!(kind_of(&cells, &[0; BLOCK]), FaultKind::Zeroes);
    }

    #[test]
    fn content_of_elsewhere_is_named() {
        let (cells, _, new) = written_twice();
        let mut buf = new.clone();
        fill(&mut buf, AT + 4096, OWNER, 2);
        let offset = AT + 4096;
        assert_eq!(kind_of(&cells, &buf), FaultKind::Misplaced { owner: OWNER, offset });
        let owner = Owner { file: 4, ..OWNER };
        fill(&mut buf, AT, owner, 2);
        assert_eq!(kind_of(&cells, &buf), FaultKind::Misplaced { owner, offset: AT });
        fill(&mut buf, AT, Owner { set: 6, ..OWNER }, 2);
        assert_eq!(kind_of(&cells, &buf), FaultKind::Leftover);
        fill(&mut buf, AT, OWNER, 9);
        assert_eq!(kind_of(&cells, &buf), FaultKind::Unwritten { found: 9 });
        let text = cells.check(&buf, AT, OWNER).unwrap_err().to_string();
        assert_eq!(text, "generation 9 found, which was never written; 2 expected");
    }

    #[test]
    fn adopted_content_goes_on_from_its_generation() {
        let (_, _, new) = written_twice();
        let mut cells = Cells::default();
        cells.grow(AT + BLOCK as u64);
        assert_eq!(set_of(&new), Some(OWNER.set));
        cells.adopt(&new, AT, OWNER).unwrap();
        assert_eq!(cells.check(&new, AT, OWNER), Ok(()));
        assert_eq!(cells.next_generation(), Some(3));
        let fault = cells.adopt(&[1; CELL], AT, OWNER).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Foreign);
    }
}
