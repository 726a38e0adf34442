//! What is drawn by lot: operations, sizes, offsets. All from seeded generators, so that a seed gives the same again.

use crate::profile::{FileSystem, Op, ThreadGroup};
use io_engine::Rng;

/// What a generator is for. Each use has its own, so that waiting for a file that is taken does not change which operations come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    SetUp = 1,
    Operations = 2,
    Places = 3,
    Ageing = 4,
    AgeingPlaces = 5,
    Content = 6,
}

/// The generator for one use in one thread.
pub(crate) fn generator(seed: u64, purpose: Purpose, group: usize, thread: usize) -> Rng {
    // Odd constants far apart: neighbours get seeds that have nothing to do with each other.
    let mut mixed = seed;
    for part in [purpose as u64, group as u64, thread as u64] {
        mixed = (mixed ^ part).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(31);
        mixed = mixed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
    Rng::new(mixed)
}

/// Operations by weight.
#[derive(Clone, Debug)]
pub(crate) struct OpTable {
    weights: Vec<(Op, u32)>,
    sum: u64,
}

impl OpTable {
    pub fn new(group: &ThreadGroup) -> OpTable {
        let weights = group.weights.clone();
        let sum = weights.iter().map(|(_, weight)| u64::from(*weight)).sum();
        OpTable { weights, sum }
    }

    pub fn is_empty(&self) -> bool {
        self.sum == 0
    }

    pub fn draw(&self, rng: &mut Rng) -> Op {
        by_weight(&self.weights, self.sum, rng)
    }
}

fn by_weight<T: Copy>(weights: &[(T, u32)], sum: u64, rng: &mut Rng) -> T {
    let mut drawn = rng.below(sum);
    for (value, weight) in weights {
        match drawn.checked_sub(u64::from(*weight)) {
            Some(rest) => drawn = rest,
            None => return *value,
        }
    }
    unreachable!("less than the sum of all weights was drawn")
}

/// Sizes of the files that are made.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    weights: Vec<(u64, u32)>,
    sum: u64,
    min: u64,
    max: u64,
    /// Sizes are rounded up to a multiple.
    unit: u64,
}

impl Sizes {
    pub fn new(spec: &FileSystem, unit: u64) -> Sizes {
        let weights = spec.size_weights.clone();
        let sum = weights.iter().map(|(_, weight)| u64::from(*weight)).sum();
        Sizes { weights, sum, min: spec.min_filesize, max: spec.max_filesize, unit }
    }

    /// Whether every file would be empty.
    pub fn are_zero(&self) -> bool {
        match self.sum {
            0 => self.max == 0,
            _ => self.weights.iter().all(|(size, weight)| *size == 0 || *weight == 0),
        }
    }

    /// The size of a new file: by weight, or from `min_filesize` to below `max_filesize`.
    pub fn draw(&self, rng: &mut Rng) -> u64 {
        let size = match self.sum {
            0 => self.min + rng.below(self.max.saturating_sub(self.min)),
            sum => by_weight(&self.weights, sum, rng),
        };
        size.next_multiple_of(self.unit)
    }

    /// Smallest and largest size that a file set may have.
    pub fn bounds(&self) -> (u64, u64) {
        let round = |size: u64| size.next_multiple_of(self.unit);
        let drawn = || self.weights.iter().filter(|(_, weight)| *weight > 0).map(|(size, _)| *size);
        match (drawn().min(), drawn().max()) {
            (Some(min), Some(max)) => (round(min), round(max)),
            _ => (round(self.min), round(self.max)),
        }
    }
}

/// Where a block or a row of blocks starts, `range` bytes being left behind it: as in FFSB, the last possible place is not
/// drawn unless it is the only one.
pub(crate) fn offset(rng: &mut Rng, range: u64, align: u64) -> u64 {
    rng.below(range / align) * align
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_kept_to() {
        let table = [('a', 70), ('b', 0), ('c', 30)];
        let mut rng = Rng::new(3);
        let drawn: Vec<char> = (0..10_000).map(|_| by_weight(&table, 100, &mut rng)).collect();
        let a = drawn.iter().filter(|c| **c == 'a').count();
        assert!((6_800..7_200).contains(&a), "{a}");
        assert!(!drawn.contains(&'b'));
    }

    #[test]
    fn offsets_stay_in_range_and_on_their_multiple() {
        let mut rng = Rng::new(3);
        let drawn: Vec<u64> = (0..1000).map(|_| offset(&mut rng, 5 * 4096 + 1000, 4096)).collect();
        assert!(drawn.iter().all(|at| at % 4096 == 0));
        assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&0), Some(&(4 * 4096))));
        assert_eq!(offset(&mut rng, 4095, 4096), 0);
        assert_eq!(offset(&mut rng, 0, 1), 0);
    }

    #[test]
    fn every_thread_and_use_has_numbers_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for (group, thread) in (0..8).flat_map(|g| (0..64).map(move |t| (g, t))) {
            for purpose in [Purpose::SetUp, Purpose::Operations, Purpose::Places] {
                assert!(seen.insert(generator(0, purpose, group, thread).bits()));
            }
        }
        let again = generator(7, Purpose::Places, 1, 2).bits();
        assert_eq!(generator(7, Purpose::Places, 1, 2).bits(), again);
    }
}
