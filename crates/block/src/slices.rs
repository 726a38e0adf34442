//! Tables in RAM, a slice at a time: what the guest must see, and what no commit has written yet. What the words mean is the format's business.
//!
//! ```text
//!   slice (as many words as 4 KiB have, or a smaller table) --> word
//!     |
//!     `- changed: what the file holds instead, and what a commit is writing
//! ```
//!
//! A slice shows what the guest must see. Where the file holds something else, the slice has a copy of that beside it, and stays in RAM until a
//! commit has written the difference: the uncommitted set is the changed slices.
//!
//! Everything here is RAM: no I/O, no waiting.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// How a format stores its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByteOrder {
    Little,
    Big,
}

impl ByteOrder {
    pub fn decode(self, raw: [u8; 8]) -> u64 {
        match self {
            ByteOrder::Little => u64::from_le_bytes(raw),
            ByteOrder::Big => u64::from_be_bytes(raw),
        }
    }

    pub fn encode(self, word: u64) -> [u8; 8] {
        match self {
            ByteOrder::Little => word.to_le_bytes(),
            ByteOrder::Big => word.to_be_bytes(),
        }
    }
}

/// Most words of a slice.
const WORDS_MAX: usize = 512;

type Words = Box<[u64]>;
/// One bit for each word of a slice.
pub(crate) type Marks = [u64; WORDS_MAX / 64];

#[derive(Debug)]
struct Slice {
    id: u64,
    words: Words,
    marks: Marks,
    /// The marks are those set since the slices' marks were forgotten so many times.
    marked: u64,
    changed: Option<Box<Changed>>,
    /// Looked at since the hand passed.
    recent: bool,
}

impl Slice {
    fn new(id: u64, words: Words) -> Slice {
        Slice { id, words, marks: [0; WORDS_MAX / 64], marked: 0, changed: None, recent: true }
    }
}

/// What the file holds of a slice that differs from it.
#[derive(Debug)]
struct Changed {
    file: Words,
    /// One bit for each word of which nobody knows what the file holds: a write of it failed.
    unsure: Box<[u64]>,
    /// What the commit under way writes.
    committing: Option<Words>,
}

impl Changed {
    fn of(words: &Words) -> Box<Changed> {
        let unsure = vec![0; words.len().div_ceil(64)].into();
        Box::new(Changed { file: words.clone(), unsure, committing: None })
    }

    /// Whether the file has to be written for it to hold `value` here.
    fn differs(&self, at: usize, value: u64) -> bool {
        self.file[at] != value || self.unsure[at / 64] >> (at % 64) & 1 == 1
    }

    fn count(&self, words: &Words) -> usize {
        (0..words.len()).filter(|at| self.differs(*at, words[*at])).count()
    }
}

/// Slice numbers are small and dense: one multiplication spreads them.
#[derive(Debug, Default)]
struct SliceHasher(u64);

impl Hasher for SliceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32);
    }
}

/// The slices of one image's tables.
#[derive(Debug)]
pub(crate) struct Slices {
    order: ByteOrder,
    /// Words of a slice.
    len: usize,
    slices: Vec<Slice>,
    index: HashMap<u64, usize, BuildHasherDefault<SliceHasher>>,
    hand: usize,
    capacity: usize,
    /// Slices that differ from the file.
    changed: BTreeSet<u64>,
    /// Words that do.
    changes: usize,
    marks_forgotten: u64,
}

/// A run of words that a commit writes: place of the first byte within the slice, and the bytes.
#[derive(Debug)]
pub(crate) struct SliceWrite {
    pub from: usize,
    pub bytes: Vec<u8>,
}

impl Slices {
    /// At most `capacity` slices of `len` words stay in RAM, unless more than that have changes.
    pub fn new(order: ByteOrder, len: usize, capacity: usize) -> Slices {
        Slices {
            order,
            len,
            slices: Vec::new(),
            index: HashMap::default(),
            hand: 0,
            capacity: capacity.max(1),
            changed: BTreeSet::new(),
            changes: 0,
            marks_forgotten: 0,
        }
    }

    /// Drops all slices; nothing may have changed.
    pub fn forget(&mut self) {
        debug_assert!(self.changes == 0, "changes would be lost");
        self.slices.clear();
        self.index.clear();
        self.hand = 0;
    }

    /// Room for slices is left.
    pub fn has_room(&self) -> bool {
        self.slices.len() < self.capacity
    }

    /// Bytes of RAM that the words take, without what is kept of changed ones.
    pub fn bytes(&self) -> u64 {
        (self.slices.len() * self.len * 8) as u64
    }

    /// Words that the file does not hold yet.
    pub fn changes(&self) -> usize {
        self.changes
    }

    /// Slices that have such words, or had.
    pub fn changed_slices(&self) -> usize {
        self.changed.len()
    }

    /// The words of a slice, if it is in RAM.
    #[inline]
    pub fn get(&mut self, id: u64) -> Option<&[u64]> {
        let index = *self.index.get(&id)?;
        let slice = &mut self.slices[index];
        slice.recent = true;
        Some(&slice.words)
    }

    /// As [`Slices::get`], with a bit for each word: unset when the slice comes to RAM, and the caller's to use after that.
    #[inline]
    pub fn get_with_marks(&mut self, id: u64) -> Option<(&[u64], &mut Marks)> {
        let index = *self.index.get(&id)?;
        let slice = &mut self.slices[index];
        slice.recent = true;
        if slice.marked != self.marks_forgotten {
            slice.marks = [0; WORDS_MAX / 64];
            slice.marked = self.marks_forgotten;
        }
        Some((&slice.words, &mut slice.marks))
    }

    /// Unsets all marks.
    pub fn forget_marks(&mut self) {
        self.marks_forgotten += 1;
    }

    /// Whether one of the words from `first` to `last` of a slice has changes that no commit has written.
    pub fn is_changed(&self, id: u64, first: usize, last: usize) -> bool {
        if self.changed.is_empty() || !self.changed.contains(&id) {
            return false;
        }
        let slice = &self.slices[self.index[&id]];
        let Some(changed) = &slice.changed else { return false };
        (first..=last.min(self.len - 1)).any(|at| changed.differs(at, slice.words[at]))
    }

    /// Takes a slice in that was read from the file, unless it is there already.
    pub fn insert(&mut self, id: u64, bytes: &[u8]) {
        if self.index.contains_key(&id) {
            return;
        }
        let mut words: Words = vec![0; self.len].into();
        for (word, raw) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = self.order.decode(*raw);
        }
        self.put(Slice::new(id, words));
    }

    /// Makes a slice of zeroes, of a table that is not in the file, unless it is there already.
    pub fn insert_new(&mut self, id: u64) {
        if !self.index.contains_key(&id) {
            let words = vec![0; self.len].into();
            self.put(Slice::new(id, words));
        }
    }

    fn put(&mut self, slice: Slice) {
        let id = slice.id;
        let index = match self.victim() {
            Some(index) => {
                self.index.remove(&self.slices[index].id);
                self.slices[index] = slice;
                index
            }
            None => {
                self.slices.push(slice);
                self.slices.len() - 1
            }
        };
        self.index.insert(id, index);
    }

    /// A slice to be replaced, if there is no room: one that the file has all of, and that was not looked at lately.
    fn victim(&mut self) -> Option<usize> {
        if self.has_room() {
            return None;
        }
        for _ in 0..2 * self.slices.len() {
            self.hand = (self.hand + 1) % self.slices.len();
            let slice = &mut self.slices[self.hand];
            if slice.changed.is_none() && !std::mem::take(&mut slice.recent) {
                return Some(self.hand);
            }
        }
        None
    }

    /// Sets a word of a slice that is in RAM. Gives the value before.
    pub fn set(&mut self, id: u64, at: usize, value: u64) -> u64 {
        // Guessing what is in the file would lose it.
        let slice = self.index.get(&id).expect("changed without having been looked up");
        let slice = &mut self.slices[*slice];
        let before = slice.words[at];
        let changed = slice.changed.get_or_insert_with(|| {
            self.changed.insert(id);
            Changed::of(&slice.words)
        });
        self.changes -= usize::from(changed.differs(at, before));
        self.changes += usize::from(changed.differs(at, value));
        slice.words[at] = value;
        before
    }

    /// Begins a commit: everything that differs from the file now. Gives the slices to be written, and whether a word that does refers (as `refers`
    /// says) to something.
    pub fn begin_commit(&mut self, refers: impl Fn(u64) -> bool) -> (Vec<u64>, bool) {
        let mut any = false;
        let (slices, index) = (&mut self.slices, &self.index);
        self.changed.retain(|id| {
            let Slice { words, changed, .. } = &mut slices[index[id]];
            let Some(change) = changed else { return false };
            let mut differs = (0..words.len()).filter(|at| change.differs(*at, words[*at]));
            let Some(first) = differs.next() else {
                *changed = None;
                return false;
            };
            any |= refers(words[first]) || differs.any(|at| refers(words[at]));
            change.committing = Some(words.clone());
            true
        });
        (self.changed.iter().copied().collect(), any)
    }

    /// What the commit under way has to write of a slice: whole units of `unit` bytes, from the first change to the last. What changed after the commit
    /// began is as it was then: its data may not be durable.
    pub fn slice_write(&self, id: u64, unit: usize) -> SliceWrite {
        let none = SliceWrite { from: 0, bytes: Vec::new() };
        let slice = &self.slices[self.index[&id]];
        let Some(changed) = &slice.changed else { return none };
        let Some(committing) = &changed.committing else { return none };
        let differs = |at: &usize| changed.differs(*at, committing[*at]);
        let Some(first) = (0..self.len).find(differs) else { return none };
        let last = (0..self.len).rfind(differs).unwrap_or(first);
        let from = (first * 8) / unit * unit;
        let to = (last * 8 + 8).next_multiple_of(unit);
        SliceWrite { from, bytes: self.encode(&committing[from / 8..to / 8]) }
    }

    /// All of a slice as the commit under way leaves it, if it is in RAM.
    pub fn committed_bytes(&self, id: u64) -> Option<Vec<u8>> {
        let slice = &self.slices[*self.index.get(&id)?];
        let committing = slice.changed.as_ref().and_then(|changed| {
            // What no commit has taken up is not to be written.
            changed.committing.as_ref().or(Some(&changed.file))
        });
        Some(self.encode(committing.unwrap_or(&slice.words)))
    }

    fn encode(&self, words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| self.order.encode(*word)).collect()
    }

    /// Ends a commit. If it failed, nobody knows what the file holds of it.
    pub fn end_commit(&mut self, done: bool) {
        let (slices, index, changes) = (&mut self.slices, &self.index, &mut self.changes);
        self.changed.retain(|id| {
            let Slice { words, changed, .. } = &mut slices[index[id]];
            let Some(change) = changed else { return false };
            let Some(written) = change.committing.take() else { return true };
            *changes -= change.count(words);
            if done {
                change.file = written;
                change.unsure.fill(0);
            } else {
                let tried = (0..written.len()).filter(|at| change.file[*at] != written[*at]);
                for at in tried.collect::<Vec<_>>() {
                    change.unsure[at / 64] |= 1 << (at % 64);
                }
            }
            let left = change.count(words);
            *changes += left;
            if left == 0 {
                *changed = None;
            }
            left > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 512;

    fn slices(capacity: usize) -> Slices {
        Slices::new(ByteOrder::Little, LEN, capacity)
    }

    fn bytes(values: &[(usize, u64)]) -> Vec<u8> {
        let mut words = [0; LEN];
        values.iter().for_each(|(at, value)| words[*at] = *value);
        words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect()
    }

    fn refers(word: u64) -> bool {
        word > 1
    }

    #[test]
    fn a_commit_writes_what_was_there_when_it_began() {
        let mut slices = slices(4);
        slices.insert(0, &bytes(&[(7, 0x20)]));
        assert_eq!(slices.set(0, 3, 0x30), 0);
        assert_eq!(slices.begin_commit(refers), (vec![0], true));
        assert_eq!(slices.set(0, 5, 0x31), 0);
        assert_eq!(slices.set(0, 3, 1), 0x30);
        let write = slices.slice_write(0, 512);
        assert_eq!((write.from, &write.bytes[..]), (0, &bytes(&[(3, 0x30), (7, 0x20)])[..512]));
        assert_eq!(slices.committed_bytes(0).unwrap(), bytes(&[(3, 0x30), (7, 0x20)]));
        slices.end_commit(true);
        let changed = |first, last| slices.is_changed(0, first, last);
        assert!(changed(3, 3) && changed(4, 5) && !changed(6, 9));
        assert_eq!(slices.committed_bytes(0).unwrap(), bytes(&[(3, 0x30), (7, 0x20)]));
        assert_eq!(slices.begin_commit(refers), (vec![0], true));
        let write = slices.slice_write(0, 512);
        assert_eq!(write.bytes, bytes(&[(3, 1), (5, 0x31), (7, 0x20)])[..512]);
        slices.end_commit(true);
        assert_eq!(slices.changes(), 0);
    }

    #[test]
    fn what_a_failed_commit_may_have_written_is_written_again() {
        let mut slices = slices(4);
        slices.insert(0, &bytes(&[]));
        slices.set(0, 3, 0x30);
        slices.begin_commit(refers);
        slices.end_commit(false);
        slices.set(0, 3, 0);
        assert_eq!(slices.begin_commit(refers), (vec![0], false), "the file may hold it");
        slices.end_commit(true);
        assert_eq!(slices.changes(), 0);
    }

    #[test]
    fn slices_with_changes_stay_and_others_make_room() {
        let mut slices = slices(2);
        slices.insert(0, &bytes(&[]));
        slices.set(0, 0, 0x30);
        for id in 1..4 {
            slices.insert(id, &bytes(&[]));
        }
        assert_eq!(slices.slices.len(), 2);
        assert!(slices.get(0).is_some() && slices.get(1).is_none());
    }

    #[test]
    fn a_small_slice_in_the_other_byte_order_is_written_whole() {
        let mut slices = Slices::new(ByteOrder::Big, 64, 1);
        slices.insert_new(9);
        slices.set(9, 1, 0x0102);
        slices.begin_commit(refers);
        let write = slices.slice_write(9, 512);
        assert_eq!((write.from, write.bytes.len(), &write.bytes[14..17]), (0, 512, &[1, 2, 0][..]));
    }
}
