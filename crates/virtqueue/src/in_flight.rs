//! Which chains of a queue are in flight: one bit for each head.

/// A set of heads below a queue's size.
#[derive(Debug)]
pub(crate) struct InFlight {
    words: Vec<u64>,
    count: u16,
}

impl InFlight {
    pub fn new(size: u16) -> InFlight {
        InFlight { words: vec![0; usize::from(size).div_ceil(64)], count: 0 }
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Adds `head`; false if it is in the set already or too large.
    #[inline]
    pub fn insert(&mut self, head: u16) -> bool {
        let bit = 1u64 << (head % 64);
        match self.words.get_mut(usize::from(head / 64)) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                // No overflow: at most `size` bits can be set.
                self.count = self.count.wrapping_add(1);
                true
            }
            _ => false,
        }
    }

    /// Takes `head` out; false if it is not in the set.
    #[inline]
    pub fn remove(&mut self, head: u16) -> bool {
        let bit = 1u64 << (head % 64);
        match self.words.get_mut(usize::from(head / 64)) {
            Some(word) if *word & bit != 0 => {
                *word &= !bit;
                self.count = self.count.wrapping_sub(1);
                true
            }
            _ => false,
        }
    }
}
