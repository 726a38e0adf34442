//! The durable sectors of a disk: a sparse map whose copies share what they have in common.
//!
//! ```text
//!   Image --Rc--> { 0: chunk, 3: chunk }          a copy of an image costs a reference count,
//!                      |         |                the first change of one costs the map and a chunk
//!                      Rc        Rc
//!                 [ 64 sectors ][ 64 sectors ]    a sector: None (unwritten) | Rc'd 512 bytes
//! ```
//!
//! A crash enumerator makes a million disks that differ in a few sectors, so copies must be cheap, and telling whether two are equal
//! too: digests of sectors and chunks are worked out once, when first asked for, and are shared with the copies.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::{Deref, Range};
use std::rc::Rc;

#[cfg(test)]
mod tests;

/// Bytes that a disk writes all or none of.
pub(super) const SECTOR: u64 = 512;
pub(super) const SECTOR_LEN: usize = 512;
/// Few enough that copying one for a single sector is cheap, many enough that small images are a handful.
const CHUNK_LEN: usize = 64;
const CHUNK_SECTORS: u64 = CHUNK_LEN as u64;

/// A sector's bytes, which never change.
#[derive(Clone, Debug)]
pub(super) struct SectorBytes {
    bytes: [u8; SECTOR_LEN],
    digest: OnceCell<u128>,
}

pub(super) type Sector = Rc<SectorBytes>;

impl SectorBytes {
    pub(super) fn new(bytes: [u8; SECTOR_LEN]) -> Sector {
        Rc::new(SectorBytes { bytes, digest: OnceCell::new() })
    }

    fn digest(&self) -> u128 {
        *self.digest.get_or_init(|| {
            let words = self.bytes.chunks_exact(8);
            words.fold(1, |sum, word| {
                mix(sum ^ u128::from(u64::from_le_bytes(*word.first_chunk().expect("8 bytes"))))
            })
        })
    }
}

impl Deref for SectorBytes {
    type Target = [u8; SECTOR_LEN];

    fn deref(&self) -> &[u8; SECTOR_LEN] {
        &self.bytes
    }
}

#[derive(Clone, Debug)]
struct Chunk {
    sectors: [Option<Sector>; CHUNK_LEN],
    /// Of what is in it; forgotten when that changes.
    digest: OnceCell<u128>,
}

/// A sparse map from sector number to bytes. Clones share everything until one changes.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    chunks: Rc<BTreeMap<u64, Rc<Chunk>>>,
}

impl Image {
    pub(super) fn get(&self, sector: u64) -> Option<&Sector> {
        self.chunks.get(&(sector / CHUNK_SECTORS))?.sectors[slot(sector)].as_ref()
    }

    /// For looking at many sectors near each other.
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader { image: self, number: u64::MAX, chunk: None }
    }

    pub(super) fn set(&mut self, sector: u64, value: Option<Sector>) {
        let number = sector / CHUNK_SECTORS;
        if value.is_none() && !self.chunks.contains_key(&number) {
            return;
        }
        let chunk = Rc::make_mut(&mut self.chunks).entry(number).or_insert_with(|| {
            Rc::new(Chunk { sectors: [const { None }; _], digest: OnceCell::new() })
        });
        let chunk = Rc::make_mut(chunk);
        chunk.sectors[slot(sector)] = value;
        chunk.digest = OnceCell::new();
    }

    /// The written sectors of a range, in order.
    pub(super) fn written(&self, range: Range<u64>) -> impl Iterator<Item = u64> {
        let chunks = range.start / CHUNK_SECTORS..range.end.div_ceil(CHUNK_SECTORS);
        let sectors = self.chunks.range(chunks).flat_map(|(number, chunk)| {
            let start = number * CHUNK_SECTORS;
            let sectors = (start..).zip(&chunk.sectors);
            sectors.filter(|(_, value)| value.is_some()).map(|(sector, _)| sector)
        });
        sectors.filter(move |sector| range.contains(sector))
    }

    /// Forgets the sectors from this one on.
    pub(super) fn cut(&mut self, from: u64) {
        let number = from / CHUNK_SECTORS;
        if self.chunks.range(number..).next().is_none() {
            return;
        }
        let chunks = Rc::make_mut(&mut self.chunks);
        chunks.split_off(&(number + 1));
        if let Some(chunk) = chunks.get_mut(&number) {
            let chunk = Rc::make_mut(chunk);
            chunk.sectors[slot(from)..].fill(const { None });
            chunk.digest = OnceCell::new();
        }
    }

    /// The same for images that read the same, where an unwritten byte reads as `unwritten` (always the
    /// same for one image, as the answer is remembered); else almost surely different.
    pub(super) fn digest(&self, unwritten: u8) -> u128 {
        let chunks = self.chunks.iter();
        chunks.fold(0, |sum, (number, chunk)| {
            sum.wrapping_add(*chunk.digest.get_or_init(|| chunk_digest(*number, chunk, unwritten)))
        })
    }
}

/// Remembers the chunk that was looked at last.
pub(super) struct Reader<'a> {
    image: &'a Image,
    /// No chunk has the highest number there is.
    number: u64,
    chunk: Option<&'a Chunk>,
}

impl<'a> Reader<'a> {
    pub(super) fn get(&mut self, sector: u64) -> Option<&'a Sector> {
        let number = sector / CHUNK_SECTORS;
        if number != self.number {
            self.number = number;
            self.chunk = self.image.chunks.get(&number).map(|chunk| &**chunk);
        }
        self.chunk?.sectors[slot(sector)].as_ref()
    }
}

/// A sum over the sectors, so that an unwritten one counts nothing.
fn chunk_digest(number: u64, chunk: &Chunk, unwritten: u8) -> u128 {
    let sectors = (number * CHUNK_SECTORS..).zip(&chunk.sectors);
    let written = sectors.filter_map(|(sector, value)| Some((sector, value.as_ref()?)));
    let visible = written.filter(|(_, value)| value.bytes != [unwritten; SECTOR_LEN]);
    visible.fold(0, |sum, (sector, value)| {
        sum.wrapping_add(mix(mix(value.digest() ^ u128::from(sector))))
    })
}

/// Spreads a change of any bit over all of them: multiply, and fold the upper half, which depends on every bit, into the lower.
pub(super) fn mix(value: u128) -> u128 {
    // An odd number, so that nothing is lost: the golden ratio's and the square root of 2's first bits.
    let product = value.wrapping_mul(0x9e37_79b9_7f4a_7c15_6a09_e667_f3bc_c909);
    product ^ product >> 67
}

fn slot(sector: u64) -> usize {
    usize::try_from(sector % CHUNK_SECTORS).expect("below 64")
}
