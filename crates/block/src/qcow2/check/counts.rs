//! How often each cluster of the file is referred to, and with which COPIED flags.
//!
//! ```text
//!   cluster / 4096 --> chunk:   few      cluster -> word       up to 24 clusters of it are in use
//!                               bytes    a byte a cluster      no more than 63 references to any of them
//!                               words    4 bytes a cluster
//!
//!   byte:  | lacks COPIED | has COPIED | references 0 to 63 |        word: the same with 30 bits
//! ```
//!
//! Sparse, so that it is bounded by the references read and not by the length that a file claims; small where a hostile image scatters its
//! references; a byte for each cluster where the file is full: 16 MiB for 1 TiB in clusters of 64 KiB.

use std::collections::BTreeMap;
use std::ops::Range;

/// Clusters of a chunk.
pub(super) const CHUNK_LEN: usize = 4096;
const CHUNK: u64 = CHUNK_LEN as u64;
/// Clusters in use of a chunk that is a list.
const FEW: usize = 24;
/// No more memory than this is taken, in bytes. It is enough for 256 TiB in clusters of 64 KiB.
const BYTES_MAX: u64 = 4 << 30;
/// What an empty chunk and its place in the index take, in bytes, about.
const CHUNK_BYTES: u64 = 96;

/// A count that is not exact any more.
const COUNT_MAX: u32 = (1 << 30) - 1;
const COPIED: u32 = 1 << 30;
const UNCOPIED: u32 = 1 << 31;

const BYTE_COUNT_MAX: u32 = (1 << 6) - 1;
const BYTE_FLAGS_SHIFT: u32 = 24;

/// What a reference from the active tables says of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flag {
    /// It is in a place where the flag does not count.
    None,
    /// COPIED is set: no other reference.
    Copied,
    /// It is not.
    Uncopied,
}

/// What is known of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    /// References.
    pub count: u64,
    /// Some active entry has COPIED set.
    pub copied: bool,
    /// Some active entry has not.
    pub uncopied: bool,
}

impl Cell {
    /// What a word of [`Counts::words`] says.
    pub fn of(word: u32) -> Cell {
        Cell {
            count: u64::from(word & COUNT_MAX),
            copied: word & COPIED != 0,
            uncopied: word & UNCOPIED != 0,
        }
    }

    /// Some flag says otherwise than a refcount of so much.
    pub fn contradicts(self, refcount: u64) -> bool {
        if refcount == 1 { self.uncopied } else { self.copied }
    }
}

#[derive(Debug)]
enum Chunk {
    /// By the cluster's number in the chunk.
    Few(Vec<(u16, u32)>),
    Bytes(Box<[u8; CHUNK_LEN]>),
    Words(Box<[u32; CHUNK_LEN]>),
}

/// References to clusters.
#[derive(Debug, Default)]
pub(super) struct Counts {
    chunks: Vec<Chunk>,
    /// Chunk number to index in `chunks`.
    index: BTreeMap<u64, usize>,
    /// The chunk that was used last: mostly the next as well.
    last: Option<(u64, usize)>,
    /// The cluster after the last one that was ever referred to.
    end: u64,
    bytes: u64,
}

impl Counts {
    /// Adds `n` references to a cluster.
    #[inline]
    pub fn add(&mut self, cluster: u64, n: u64, flag: Flag) {
        self.end = self.end.max(cluster + 1);
        let within = within(cluster);
        let slot = self.slot(cluster / CHUNK);
        let flags = match flag {
            Flag::None => 0,
            Flag::Copied => COPIED,
            Flag::Uncopied => UNCOPIED,
        };
        if let Chunk::Bytes(bytes) = &mut self.chunks[slot] {
            let word = unpack(bytes[within]);
            let count = u64::from(word & COUNT_MAX) + n;
            if count <= u64::from(BYTE_COUNT_MAX) {
                let count = u32::try_from(count).unwrap_or(BYTE_COUNT_MAX);
                bytes[within] = pack(word & !COUNT_MAX | flags | count);
                return;
            }
        }
        self.add_slowly(slot, within, n, flags);
    }

    fn add_slowly(&mut self, slot: usize, within: usize, n: u64, flags: u32) {
        let old = self.chunks[slot].get(within);
        let count = u64::from(old & COUNT_MAX).saturating_add(n).min(u64::from(COUNT_MAX));
        let count = u32::try_from(count).unwrap_or(COUNT_MAX);
        let grown = self.chunks[slot].set(within, old & !COUNT_MAX | flags | count);
        self.bytes += grown;
    }

    /// Takes `n` references away.
    pub fn sub(&mut self, cluster: u64, n: u64) {
        if !self.index.contains_key(&(cluster / CHUNK)) {
            return;
        }
        let slot = self.slot(cluster / CHUNK);
        let old = self.chunks[slot].get(within(cluster));
        let count = u64::from(old & COUNT_MAX).saturating_sub(n);
        let count = u32::try_from(count).unwrap_or(COUNT_MAX);
        self.bytes += self.chunks[slot].set(within(cluster), old & !COUNT_MAX | count);
    }

    #[inline]
    fn slot(&mut self, chunk: u64) -> usize {
        match self.last {
            Some((last, slot)) if last == chunk => slot,
            _ => self.find_slot(chunk),
        }
    }

    fn find_slot(&mut self, chunk: u64) -> usize {
        let slot = *self.index.entry(chunk).or_insert_with(|| {
            self.chunks.push(Chunk::Few(Vec::new()));
            self.bytes += CHUNK_BYTES;
            self.chunks.len() - 1
        });
        self.last = Some((chunk, slot));
        slot
    }

    /// What is known of a cluster.
    pub fn get(&self, cluster: u64) -> Cell {
        let chunk = self.index.get(&(cluster / CHUNK)).map(|slot| &self.chunks[*slot]);
        chunk.map_or(Cell::default(), |chunk| Cell::of(chunk.get(within(cluster))))
    }

    /// Calls `f` with each cluster of a range that is referred to.
    pub fn each(&self, clusters: Range<u64>, mut f: impl FnMut(u64, Cell)) {
        if clusters.is_empty() {
            return;
        }
        let chunks = clusters.start / CHUNK..=(clusters.end - 1) / CHUNK;
        for (chunk, slot) in self.index.range(chunks) {
            let first = chunk * CHUNK;
            let from = within(clusters.start.max(first));
            let to = within((clusters.end - 1).min(first + CHUNK - 1)) + 1;
            let mut one = |within: usize, word: u32| {
                if word & COUNT_MAX > 0 {
                    f(first + within as u64, Cell::of(word));
                }
            };
            match &self.chunks[*slot] {
                Chunk::Few(few) => few
                    .iter()
                    .map(|(n, word)| (usize::from(*n), *word))
                    .filter(|(n, _)| (from..to).contains(n))
                    .for_each(|(n, word)| one(n, word)),
                Chunk::Bytes(bytes) => {
                    (from..to).zip(&bytes[from..to]).for_each(|(n, byte)| one(n, unpack(*byte)));
                }
                Chunk::Words(words) => {
                    (from..to).zip(&words[from..to]).for_each(|(n, word)| one(n, *word));
                }
            }
        }
    }

    /// What is known of some clusters, of which `first` and the number are such that they lie in one chunk; `false` if that is nothing.
    pub fn words(&self, first: u64, into: &mut [u32]) -> bool {
        let Some(slot) = self.index.get(&(first / CHUNK)) else { return false };
        let from = within(first);
        match &self.chunks[*slot] {
            Chunk::Few(few) => {
                into.fill(0);
                for (n, word) in few {
                    let at = usize::from(*n).checked_sub(from);
                    if let Some(place) = at.and_then(|at| into.get_mut(at)) {
                        *place = *word;
                    }
                }
            }
            Chunk::Bytes(bytes) => {
                into.iter_mut().zip(&bytes[from..]).for_each(|(word, byte)| *word = unpack(*byte));
            }
            Chunk::Words(words) => into.copy_from_slice(&words[from..from + into.len()]),
        }
        true
    }

    /// Whether any of these clusters is, or was, referred to.
    pub fn has_any(&self, clusters: Range<u64>) -> bool {
        let chunks = clusters.start / CHUNK..clusters.end.div_ceil(CHUNK);
        !clusters.is_empty() && self.index.range(chunks).next().is_some()
    }

    /// The cluster after the last one that was ever referred to.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Whether there is no memory for more.
    pub fn is_full(&self) -> bool {
        self.bytes > BYTES_MAX
    }
}

impl Chunk {
    fn get(&self, within: usize) -> u32 {
        match self {
            Chunk::Few(few) => {
                let found = few.iter().find(|(n, _)| usize::from(*n) == within);
                found.map_or(0, |(_, word)| *word)
            }
            Chunk::Bytes(bytes) => unpack(bytes[within]),
            Chunk::Words(words) => words[within],
        }
    }

    /// Sets a word, in a larger form if it needs one. Gives the bytes of memory that this took.
    fn set(&mut self, within: usize, word: u32) -> u64 {
        let n = u16::try_from(within).expect("a chunk has 4096 clusters");
        match self {
            Chunk::Few(few) => match few.binary_search_by_key(&n, |(n, _)| *n) {
                Ok(at) => few[at].1 = word,
                Err(at) if few.len() < FEW => {
                    few.insert(at, (n, word));
                    return size_of::<(u16, u32)>() as u64;
                }
                Err(_) => {
                    let mut bytes = Chunk::Bytes(Box::new([0; CHUNK_LEN]));
                    let mut taken = CHUNK;
                    few.iter().for_each(|(n, word)| taken += bytes.set(usize::from(*n), *word));
                    *self = bytes;
                    return taken + self.set(within, word);
                }
            },
            Chunk::Bytes(bytes) if word & COUNT_MAX <= BYTE_COUNT_MAX => bytes[within] = pack(word),
            Chunk::Bytes(bytes) => {
                let mut words = Box::new([0; CHUNK_LEN]);
                words.iter_mut().zip(bytes.iter()).for_each(|(word, byte)| *word = unpack(*byte));
                words[within] = word;
                *self = Chunk::Words(words);
                return CHUNK * 3;
            }
            Chunk::Words(words) => words[within] = word,
        }
        0
    }
}

fn within(cluster: u64) -> usize {
    usize::try_from(cluster % CHUNK).expect("less than 4096")
}

#[inline]
fn pack(word: u32) -> u8 {
    let [flags, _, _, _] = word.to_be_bytes();
    let [.., count] = word.to_be_bytes();
    flags | count
}

#[inline]
fn unpack(byte: u8) -> u32 {
    let byte = u32::from(byte);
    (byte & BYTE_COUNT_MAX) | (byte & !BYTE_COUNT_MAX) << BYTE_FLAGS_SHIFT
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation)]

    use super::*;
    use io_engine::Rng;

    #[test]
    fn any_form_of_a_chunk_says_the_same_as_a_map() {
        let mut rng = Rng::new(3);
        let (mut counts, mut map) = (Counts::default(), BTreeMap::<u64, Cell>::new());
        for step in 0..60_000u64 {
            let spread = [1 << 40, 20_000, 64][(step / 20_000) as usize];
            let cluster = rng.below(spread);
            let n = if rng.chance(10) { 1 + rng.below(100_000) } else { 1 };
            let flag = [Flag::None, Flag::Copied, Flag::Uncopied][rng.below(3) as usize];
            let cell = map.entry(cluster).or_default();
            if rng.chance(100) {
                counts.sub(cluster, n);
                cell.count = cell.count.saturating_sub(n);
                continue;
            }
            counts.add(cluster, n, flag);
            cell.count += n;
            cell.copied |= flag == Flag::Copied;
            cell.uncopied |= flag == Flag::Uncopied;
        }
        for (cluster, cell) in &map {
            assert_eq!(counts.get(*cluster), *cell, "{cluster}");
        }
        let end = *map.last_key_value().unwrap().0 + 1;
        assert!(counts.end() <= end && counts.end() > 1 << 39);
        let mut seen = Vec::new();
        counts.each(3..end - 1, |cluster, cell| seen.push((cluster, cell)));
        let expected: Vec<(u64, Cell)> = map
            .range(3..end - 1)
            .map(|(cluster, cell)| (*cluster, *cell))
            .filter(|(_, cell)| cell.count > 0)
            .collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn memory_is_a_byte_a_cluster_and_little_where_references_are_scattered() {
        let mut dense = Counts::default();
        (0..1 << 20).for_each(|cluster| dense.add(cluster, 2, Flag::None));
        assert!(dense.bytes < (1 << 20) * 11 / 10, "{}", dense.bytes);
        let mut scattered = Counts::default();
        (0..1000).for_each(|n| scattered.add(n << 30, 1, Flag::Copied));
        assert!(scattered.bytes < 1000 * 150, "{}", scattered.bytes);
    }

    #[test]
    fn a_count_beyond_all_measure_stays_there() {
        let mut counts = Counts::default();
        counts.add(5, u64::MAX, Flag::Copied);
        counts.add(5, u64::MAX, Flag::Uncopied);
        let cell = Cell { count: u64::from(COUNT_MAX), copied: true, uncopied: true };
        assert_eq!(counts.get(5), cell);
    }
}
