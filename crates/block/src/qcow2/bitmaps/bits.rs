//! A bitmap's bits in RAM, in chunks of as many as a cluster of the file holds.
//!
//! ```text
//!   disk:   | granule | granule | granule | ...            one bit each, from a byte's lowest on
//!   chunks: | zeroes | ones | bytes | bytes, the last perhaps in part
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Bitmap data". A chunk whose bits are alike takes no RAM until one of them differs.
//!
//! Invariant: bits beyond the disk's end are 0, so a last chunk that is used in part is never [`Chunk::Ones`].

use std::ops::Range;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Chunk {
    Zeroes,
    Ones,
    Bytes(Box<[u8]>),
}

/// What a chunk's cluster is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    Zeroes,
    Ones,
    Bytes(&'a [u8]),
}

#[derive(Debug)]
pub(super) struct Bits {
    granularity_bits: u32,
    /// Binary logarithm of a chunk's bits.
    chunk_order: u32,
    /// Bits in use.
    len: u64,
    chunks: Vec<Chunk>,
    /// Chunks that the file holds otherwise.
    changed: Vec<bool>,
}

/// Bytes that the bits for a disk take.
pub(super) fn bytes_needed(disk_bytes: u64, granularity_bits: u32) -> u64 {
    disk_bytes.div_ceil(1 << granularity_bits).div_ceil(8)
}

impl Bits {
    /// All zeroes, for a disk of `disk_bytes` bytes in an image with clusters of 2^`cluster_bits`.
    pub fn new(disk_bytes: u64, granularity_bits: u32, cluster_bits: u32) -> Bits {
        let (len, changed) = (0, Vec::new());
        let chunk_order = cluster_bits + 3;
        let mut bits = Bits { granularity_bits, chunk_order, len, chunks: Vec::new(), changed };
        bits.resize(disk_bytes);
        bits
    }

    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The disk has so many bytes now. What is added is zeroes.
    pub fn resize(&mut self, disk_bytes: u64) {
        self.len = disk_bytes.div_ceil(1 << self.granularity_bits);
        let chunks = index(self.len.div_ceil(1 << self.chunk_order));
        self.chunks.resize(chunks, Chunk::Zeroes);
        self.changed.resize(chunks, true);
        let used = self.used_in(chunks.wrapping_sub(1));
        if let Some(last) = self.chunks.last_mut().filter(|_| used < 1 << self.chunk_order) {
            let before = last.clone();
            if let Chunk::Ones = last {
                *last = Chunk::Bytes(vec![0xFF; 1 << (self.chunk_order - 3)].into());
            }
            if let Chunk::Bytes(bytes) = last {
                clear_from(bytes, used);
            }
            let is_other = *last != before;
            self.changed[chunks - 1] |= is_other;
        }
    }

    /// Bits of a chunk that are in use.
    fn used_in(&self, chunk: usize) -> u64 {
        let start = (chunk as u64).saturating_mul(1 << self.chunk_order);
        self.len.saturating_sub(start).min(1 << self.chunk_order)
    }

    /// Takes in what the file holds of a chunk.
    pub fn load(&mut self, chunk: usize, content: Content) {
        let used = self.used_in(chunk);
        self.chunks[chunk] = match content {
            Content::Zeroes => Chunk::Zeroes,
            // Many are, and holes in a file cost nothing there.
            Content::Bytes(bytes) if bytes.iter().all(|byte| *byte == 0) => Chunk::Zeroes,
            Content::Ones if used == 1 << self.chunk_order => Chunk::Ones,
            Content::Ones | Content::Bytes(_) => {
                let mut bytes = match content {
                    Content::Bytes(bytes) => bytes.to_vec(),
                    _ => vec![0xFF; 1 << (self.chunk_order - 3)],
                };
                clear_from(&mut bytes, used);
                Chunk::Bytes(bytes.into())
            }
        };
        self.changed[chunk] = false;
    }

    /// What the file is to hold of a chunk.
    pub fn content(&self, chunk: usize) -> Content<'_> {
        match &self.chunks[chunk] {
            Chunk::Zeroes => Content::Zeroes,
            Chunk::Ones => Content::Ones,
            Chunk::Bytes(bytes) if bytes.iter().all(|byte| *byte == 0) => Content::Zeroes,
            Chunk::Bytes(bytes) if bytes.iter().all(|byte| *byte == 0xFF) => Content::Ones,
            Chunk::Bytes(bytes) => Content::Bytes(bytes),
        }
    }

    pub fn is_changed(&self, chunk: usize) -> bool {
        self.changed[chunk]
    }

    pub fn has_changes(&self) -> bool {
        self.changed.contains(&true)
    }

    /// Whether the file holds something else of a chunk.
    pub fn set_changed(&mut self, chunk: usize, is_changed: bool) {
        if let Some(changed) = self.changed.get_mut(chunk) {
            *changed = is_changed;
        }
    }

    /// Sets the bits of all granules that a range of the disk touches.
    pub fn set(&mut self, disk: Range<u64>) {
        let mut at = disk.start >> self.granularity_bits;
        let end = disk.end.div_ceil(1 << self.granularity_bits).min(self.len);
        while at < end {
            let start = at >> self.chunk_order << self.chunk_order;
            let to = end.min(start + (1 << self.chunk_order));
            self.set_in_chunk(index(at >> self.chunk_order), at - start..to - start);
            at = to;
        }
    }

    fn set_in_chunk(&mut self, number: usize, bits: Range<u64>) {
        let chunk = &mut self.chunks[number];
        if bits == (0..1 << self.chunk_order) {
            self.changed[number] |= *chunk != Chunk::Ones;
            *chunk = Chunk::Ones;
            return;
        }
        if let Chunk::Zeroes = chunk {
            *chunk = Chunk::Bytes(vec![0; 1 << (self.chunk_order - 3)].into());
        }
        if let Chunk::Bytes(bytes) = chunk {
            self.changed[number] |= set_bits(bytes, bits);
        }
    }

    /// Clears all bits.
    pub fn clear(&mut self) {
        for (chunk, changed) in self.chunks.iter_mut().zip(&mut self.changed) {
            *changed |= *chunk != Chunk::Zeroes;
            *chunk = Chunk::Zeroes;
        }
    }

    /// Sets all bits whose granules hold something of what is set in `other`, a bitmap of a disk of the same size.
    pub fn merge(&mut self, other: &Bits) {
        let mut from = 0;
        while let Some(run) = other.next(from) {
            from = run.end;
            self.set(run);
        }
    }

    /// The first run of granules whose bits are set, from byte `from` of the disk on. Its end may lie behind the disk's.
    pub fn next(&self, from: u64) -> Option<Range<u64>> {
        let first = self.find(from >> self.granularity_bits, true)?;
        let end = self.find(first, false).unwrap_or(self.len);
        // Disks end before 2^61.
        Some((first << self.granularity_bits).max(from)..end << self.granularity_bits)
    }

    /// Bits that are set.
    pub fn count(&self) -> u64 {
        let chunks = self.chunks.iter();
        let counts = chunks.map(|chunk| match chunk {
            Chunk::Zeroes => 0,
            Chunk::Ones => 1 << self.chunk_order,
            Chunk::Bytes(bytes) => bytes.iter().map(|byte| u64::from(byte.count_ones())).sum(),
        });
        counts.sum()
    }

    /// The first bit of this value, from bit `from` on.
    fn find(&self, from: u64, value: bool) -> Option<u64> {
        let mut at = from;
        while at < self.len {
            let number = index(at >> self.chunk_order);
            let start = at >> self.chunk_order << self.chunk_order;
            let end = start + self.used_in(number);
            let found = match &self.chunks[number] {
                Chunk::Zeroes => (!value).then_some(at),
                Chunk::Ones => value.then_some(at),
                Chunk::Bytes(bytes) => find_in(bytes, at - start, value).map(|bit| start + bit),
            };
            if let Some(found) = found.filter(|found| *found < end) {
                return Some(found);
            }
            at = end;
        }
        None
    }
}

/// Sets a range of bits; tells whether one of them was not set.
fn set_bits(bytes: &mut [u8], bits: Range<u64>) -> bool {
    let (mut at, mut any) = (bits.start, false);
    while at < bits.end {
        let end = bits.end.min((at / 8 + 1) * 8);
        let mask = mask(at % 8, end - at);
        let byte = &mut bytes[index(at / 8)];
        any |= *byte & mask != mask;
        *byte |= mask;
        at = end;
    }
    any
}

/// Clears all bits from this one on.
fn clear_from(bytes: &mut [u8], from: u64) {
    let at = index(from / 8);
    if let Some(byte) = bytes.get_mut(at) {
        *byte &= mask(0, from % 8);
        bytes[at + 1..].fill(0);
    }
}

fn find_in(bytes: &[u8], from: u64, value: bool) -> Option<u64> {
    let skip = if value { 0 } else { 0xFF };
    let first = index(from / 8);
    // The bits before the first one look as if they were skipped before.
    let before = mask(0, from % 8);
    let head = if value { bytes[first] & !before } else { bytes[first] | before };
    let place = match head != skip {
        true => first,
        false => first + 1 + bytes[first + 1..].iter().position(|byte| *byte != skip)?,
    };
    let byte = if place == first { head } else { bytes[place] };
    let bit = if value { byte.trailing_zeros() } else { byte.trailing_ones() };
    Some(place as u64 * 8 + u64::from(bit))
}

/// `count` ones from bit `at` of a byte on.
fn mask(at: u64, count: u64) -> u8 {
    (((1u16 << count) - 1) << at).to_le_bytes()[0]
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("bitmaps have a largest size")
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_engine::Rng;

    const K: u64 = 1024;

    /// The bits as a plain vector.
    fn plain(bits: &Bits) -> Vec<bool> {
        let mut plain = Vec::new();
        for chunk in 0..bits.chunks() {
            let bytes = match bits.content(chunk) {
                Content::Zeroes => vec![0; 512],
                Content::Ones => vec![0xFF; 512],
                Content::Bytes(bytes) => bytes.to_vec(),
            };
            plain.extend(bytes.iter().flat_map(|byte| (0..8).map(move |n| byte >> n & 1 != 0)));
        }
        let beyond = plain.split_off(usize::try_from(bits.len).unwrap());
        assert!(!beyond.contains(&true), "bits beyond the end");
        plain
    }

    #[test]
    fn any_ranges_set_and_sizes_changed_are_as_in_a_plain_vector() {
        let mut rng = Rng::new(7);
        for _ in 0..60 {
            // Up to three chunks of 4096 bits, of 1 KiB each.
            let mut bytes = 1 + rng.below(12288 * K);
            let mut bits = Bits::new(bytes, 10, 9);
            let mut model = vec![false; usize::try_from(bytes.div_ceil(K)).unwrap()];
            for _ in 0..30 {
                match rng.index(8) {
                    0 => {
                        bytes = 1 + rng.below(12288 * K);
                        bits.resize(bytes);
                        model.resize(usize::try_from(bytes.div_ceil(K)).unwrap(), false);
                    }
                    1 if rng.chance(200) => {
                        bits.clear();
                        model.fill(false);
                    }
                    _ => {
                        let at = rng.below(bytes);
                        let most = if rng.chance(500) { bytes - at } else { 40 * K };
                        let end = (at + 1 + rng.below(most)).min(bytes);
                        bits.set(at..end);
                        for bit in at / K..end.div_ceil(K) {
                            model[usize::try_from(bit).unwrap()] = true;
                        }
                    }
                }
                assert_eq!(plain(&bits), model);
                let set = model.iter().filter(|bit| **bit).count();
                assert_eq!(bits.count(), set as u64);
                let mut copy = Bits::new(bytes, 10, 9);
                copy.merge(&bits);
                assert_eq!(plain(&copy), model, "run by run");
            }
        }
    }

    #[test]
    fn runs_go_over_chunks() {
        let mut bits = Bits::new(10_000 * K, 10, 9);
        assert_eq!(bits.next(0), None);
        bits.set(5 * K + 3..5 * K + 4);
        bits.set(4000 * K..9000 * K);
        bits.set(9999 * K..10_000 * K);
        assert_eq!(bits.next(0), Some(5 * K..6 * K));
        assert_eq!(bits.next(5 * K + 9), Some(5 * K + 9..6 * K), "not before where was asked");
        assert_eq!(bits.next(6 * K), Some(4000 * K..9000 * K));
        assert_eq!(bits.next(9000 * K), Some(9999 * K..10_000 * K));
        assert_eq!(bits.next(10_000 * K), None);
    }

    #[test]
    fn only_what_differs_from_the_file_is_changed() {
        let mut bits = Bits::new(10_000 * K, 10, 9);
        for (chunk, content) in
            [(0, Content::Ones), (1, Content::Bytes(&[1; 512])), (2, Content::Ones)]
        {
            bits.load(chunk, content);
        }
        assert!(!bits.has_changes());
        assert_eq!(bits.count(), 4096 + 512 + 10_000 - 8192, "nothing beyond the end");
        bits.set(0..4096 * K);
        bits.set(4096 * K..4097 * K);
        assert!(!bits.has_changes(), "they were set");
        bits.set(4097 * K..4098 * K);
        assert!(bits.is_changed(1) && !bits.is_changed(0) && !bits.is_changed(2));
    }

    #[test]
    fn bits_take_an_eighth_of_a_byte_for_each_granule_begun() {
        let cases = [(0, 9, 0), (1, 9, 1), (4096, 9, 1), (4097, 9, 2), (1 << 61, 31, 1 << 27)];
        for (disk, granularity_bits, bytes) in cases {
            assert_eq!(bytes_needed(disk, granularity_bits), bytes, "{disk} {granularity_bits}");
        }
    }
}
