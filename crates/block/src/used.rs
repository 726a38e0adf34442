//! Which clusters of a file are in use: what a reading of all tables gathers, in any format.

use std::collections::BTreeMap;
use std::ops::Range;

const WORDS: usize = 64;
/// Clusters that one word array of the map covers.
const CHUNK: u64 = WORDS as u64 * 64;

/// Which clusters of the file are in use; sparse, so that it is bounded by the references read and not by the length that a file claims.
#[derive(Debug, Default)]
pub(crate) struct UsedMap(BTreeMap<u64, Box<[u64; WORDS]>>);

impl UsedMap {
    /// Marks a cluster; `false` if it was marked before.
    pub fn mark(&mut self, cluster: u64) -> bool {
        let words = self.0.entry(cluster / CHUNK).or_insert_with(|| Box::new([0; WORDS]));
        let bit = cluster % CHUNK;
        let word = &mut words[(bit / 64) as usize];
        let fresh = *word & (1 << (bit % 64)) == 0;
        *word |= 1 << (bit % 64);
        fresh
    }

    /// Bytes of RAM that it takes, about.
    pub fn bytes(&self) -> u64 {
        // An array, and its key and place in the tree.
        (WORDS as u64 * 8 + 32) * self.0.len() as u64
    }

    /// The cluster is not in use any more.
    pub fn clear(&mut self, cluster: u64) {
        let Some(words) = self.0.get_mut(&(cluster / CHUNK)) else { return };
        let bit = cluster % CHUNK;
        words[(bit / 64) as usize] &= !(1 << (bit % 64));
        if words.iter().all(|word| *word == 0) {
            self.0.remove(&(cluster / CHUNK));
        }
    }

    /// Whether a cluster is in use.
    pub fn contains(&self, cluster: u64) -> bool {
        let bit = cluster % CHUNK;
        let words = self.0.get(&(cluster / CHUNK));
        words.is_some_and(|words| words[(bit / 64) as usize] & (1 << (bit % 64)) != 0)
    }

    /// The first cluster from this one on that is not in use.
    pub fn next_unused(&self, from: u64) -> u64 {
        let mut next = from;
        for (chunk, words) in self.0.range(from / CHUNK..) {
            if chunk * CHUNK > next {
                return next;
            }
            for (n, word) in words.iter().enumerate() {
                let first = chunk * CHUNK + n as u64 * 64;
                if first + 64 <= next {
                    continue;
                }
                let taken = u64::from((word >> (next - first)).trailing_ones());
                next += taken;
                if next < first + 64 {
                    return next;
                }
            }
        }
        next
    }

    /// The last cluster in use before this one.
    pub fn last_before(&self, limit: u64) -> Option<u64> {
        self.0.range(..=limit / CHUNK).rev().find_map(|(chunk, words)| {
            words.iter().enumerate().rev().find_map(|(n, word)| {
                let first = chunk * CHUNK + n as u64 * 64;
                let mask = match limit.saturating_sub(first) {
                    64.. => u64::MAX,
                    bits => (1 << bits) - 1,
                };
                let left = word & mask;
                (left != 0).then(|| first + u64::from(63 - left.leading_zeros()))
            })
        })
    }

    /// Whether one of these clusters is in use.
    pub fn any(&self, clusters: Range<u64>) -> bool {
        self.last_before(clusters.end).is_some_and(|last| last >= clusters.start)
    }

    /// The cluster after the last one in use.
    pub fn end(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(chunk, words)| {
            let word = words.iter().rposition(|word| *word != 0).unwrap_or(0);
            let bit = 63 - u64::from(words[word].leading_zeros().min(63));
            chunk * CHUNK + word as u64 * 64 + bit + 1
        })
    }

    /// Calls `f` with each run of unused clusters before the last one in use: first cluster and count.
    pub fn gaps(&self, mut f: impl FnMut(u64, u64)) {
        let mut next = 0;
        for (chunk, words) in &self.0 {
            for (n, word) in words.iter().enumerate() {
                let mut left = *word;
                while left != 0 {
                    let bit = u64::from(left.trailing_zeros());
                    let cluster = chunk * CHUNK + n as u64 * 64 + bit;
                    if cluster > next {
                        f(next, cluster - next);
                    }
                    next = cluster + 1;
                    left &= left - 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_engine::Rng;
    use std::collections::BTreeSet;

    #[test]
    fn a_map_is_a_set() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let (mut map, mut set) = (UsedMap::default(), BTreeSet::new());
            // Some words full, some chunks empty.
            for _ in 0..1 + rng.below(40) {
                let (first, len) = (rng.below(5 * CHUNK), 1 + rng.below(200));
                for cluster in first..first + len {
                    assert_eq!(map.mark(cluster), set.insert(cluster), "seed {seed}: {cluster}");
                }
                for cluster in first + rng.below(len)..first + rng.below(len) {
                    map.clear(cluster);
                    set.remove(&cluster);
                }
            }
            assert_eq!(map.end(), set.last().map_or(0, |last| last + 1), "seed {seed}");
            for _ in 0..200 {
                let at = rng.below(6 * CHUNK);
                assert_eq!(map.contains(at), set.contains(&at), "seed {seed}: {at}");
                let unused = (at..).find(|cluster| !set.contains(cluster)).unwrap();
                assert_eq!(map.next_unused(at), unused, "seed {seed}: {at}");
                let before = set.range(..at).next_back().copied();
                assert_eq!(map.last_before(at), before, "seed {seed}: {at}");
                let end = at + rng.below(CHUNK);
                let any = set.range(at..end).next().is_some();
                assert_eq!(map.any(at..end), any, "seed {seed}: {at} to {end}");
            }
            let mut unused = BTreeSet::from_iter(0..map.end());
            unused.retain(|cluster| !set.contains(cluster));
            let mut gaps = Vec::new();
            map.gaps(|first, clusters| gaps.extend(first..first + clusters));
            assert_eq!(gaps, Vec::from_iter(unused), "seed {seed}");
        }
    }
}
