//! Histograms of durations: fixed memory, one writer, read by anybody at any time.
//!
//! ```text
//!   ns     0 1 2 ... 31 | 32 33 ... 63 | 64 66 ... 126 | 128 132 ...      32 buckets to each power of two
//!   width       1       |      1       |       2       |      4
//! ```
//!
//! A bucket is at most 1/32 of its values wide, so a percentile is at most 3.2 % too large. Not the `hdrhistogram` crate: its histograms need an exclusive
//! borrow to record and to read, and those that can be shared go through a channel; here a store of the writer and a load of the reader suffice.

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets to a power of two, as a power of two.
const SUB_BITS: u32 = 5;
const SUB: u64 = 1 << SUB_BITS;
/// What is this long or longer shares the last bucket: 2^36 ns, more than a minute.
const LIMIT_NS: u64 = 1 << 36;
const BUCKETS: usize = 1024;

fn bucket_of(ns: u64) -> usize {
    let ns = ns.min(LIMIT_NS - 1);
    let shift = ns.max(SUB).ilog2() - SUB_BITS;
    // Of values below 32 there is no leading bit to leave out.
    let row = if ns < SUB { 0 } else { u64::from(shift) * SUB };
    usize::try_from(row + (ns >> shift)).expect("below 1024")
}

/// The longest duration that belongs into a bucket.
fn upper_ns(bucket: usize) -> u64 {
    let (row, place) = (bucket as u64 / SUB, bucket as u64 % SUB);
    match row {
        0 => place,
        _ => ((SUB + place + 1) << (row - 1)) - 1,
    }
}

/// A histogram that one thread writes.
#[derive(Debug)]
pub struct Histogram {
    counts: Box<[AtomicU64]>,
    sum_ns: AtomicU64,
    min_ns: AtomicU64,
    max_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            sum_ns: AtomicU64::new(0),
            min_ns: AtomicU64::new(u64::MAX),
            max_ns: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Counts a duration. Allocates nothing. If several threads call it, counts get lost.
    pub fn record(&self, ns: u64) {
        // Not `fetch_add`: nobody else writes.
        let add = |to: &AtomicU64, by| {
            to.store(to.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        };
        add(&self.counts[bucket_of(ns)], 1);
        add(&self.sum_ns, ns);
        if ns < self.min_ns.load(Ordering::Relaxed) {
            self.min_ns.store(ns, Ordering::Relaxed);
        }
        if ns > self.max_ns.load(Ordering::Relaxed) {
            self.max_ns.store(ns, Ordering::Relaxed);
        }
    }

    /// What was recorded so far. Does not stop the writer: what it records meanwhile may be there by half.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            counts: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
            min_ns: self.min_ns.load(Ordering::Relaxed),
            max_ns: self.max_ns.load(Ordering::Relaxed),
        }
    }
}

/// A histogram as it was at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    counts: Box<[u64]>,
    sum_ns: u64,
    min_ns: u64,
    max_ns: u64,
}

impl Default for Snapshot {
    fn default() -> Snapshot {
        let counts = vec![0; BUCKETS].into_boxed_slice();
        Snapshot { counts, sum_ns: 0, min_ns: u64::MAX, max_ns: 0 }
    }
}

impl Snapshot {
    /// Adds what another histogram has counted.
    pub fn merge(&mut self, other: &Snapshot) {
        for (to, from) in self.counts.iter_mut().zip(&other.counts) {
            *to += from;
        }
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
        self.min_ns = self.min_ns.min(other.min_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// Durations recorded.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All durations together, in nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// The shortest, exactly; 0 if there is none.
    pub fn min_ns(&self) -> u64 {
        if self.min_ns == u64::MAX { 0 } else { self.min_ns }
    }

    /// The longest, exactly; 0 if there is none.
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// The mean in nanoseconds; 0 if there is none.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are plenty for a mean")]
    pub fn mean_ns(&self) -> f64 {
        match self.count() {
            0 => 0.0,
            count => self.sum_ns as f64 / count as f64,
        }
    }

    /// What `per_mille` of 1000 durations did not exceed, in nanoseconds: the upper end of its bucket. 0 if there is none.
    pub fn percentile_ns(&self, per_mille: u32) -> u64 {
        let rank = u128::from(self.count()) * u128::from(per_mille);
        let rank = rank.div_ceil(1000).max(1);
        let mut below = 0;
        for (upper, count) in self.buckets() {
            below += u128::from(count);
            if below >= rank {
                return upper;
            }
        }
        self.max_ns
    }

    /// The buckets that are not empty: the longest duration that belongs into each, in nanoseconds and ascending, and how many fell in it. No bound is above the longest
    /// duration there was.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let bound = |bucket| match bucket {
            _ if bucket + 1 == BUCKETS => self.max_ns,
            _ => upper_ns(bucket).min(self.max_ns),
        };
        let counts = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        counts.map(move |(bucket, count)| (bound(bucket), *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_has_a_bucket_that_is_narrow_and_the_next_begins_where_it_ends() {
        let mut lower = 0;
        for bucket in 0..BUCKETS {
            let upper = upper_ns(bucket);
            assert_eq!((bucket_of(lower), bucket_of(upper)), (bucket, bucket));
            assert!(upper - lower <= lower / 32, "{lower} to {upper}");
            lower = upper + 1;
        }
        assert_eq!(lower, LIMIT_NS);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn figures_are_those_of_what_was_recorded() {
        let histogram = Histogram::default();
        for ns in 1..=1000 {
            histogram.record(ns * 100);
        }
        let seen = histogram.snapshot();
        assert_eq!((seen.count(), seen.sum_ns()), (1000, 50_050_000));
        assert_eq!((seen.min_ns(), seen.max_ns()), (100, 100_000));
        assert!((seen.mean_ns() - 50_050.0).abs() < 1e-6);
        for (per_mille, exact) in [(1, 100), (500, 50_000), (990, 99_000), (1000, 100_000)] {
            let found = seen.percentile_ns(per_mille);
            assert!((exact..=exact + exact / 31).contains(&found), "{per_mille}: {found}");
        }
        assert_eq!(seen.buckets().map(|(_, count)| count).sum::<u64>(), 1000);
        assert!(seen.buckets().is_sorted());
    }

    #[test]
    fn what_is_longer_than_all_buckets_keeps_its_length_as_the_maximum() {
        let histogram = Histogram::default();
        histogram.record(3);
        histogram.record(LIMIT_NS * 5);
        let seen = histogram.snapshot();
        assert_eq!((seen.max_ns(), seen.percentile_ns(999)), (LIMIT_NS * 5, LIMIT_NS * 5));
        assert_eq!(seen.buckets().collect::<Vec<_>>(), [(3, 1), (LIMIT_NS * 5, 1)]);
    }

    #[test]
    fn nothing_recorded_gives_zeroes_and_merging_adds_up() {
        let mut all = Snapshot::default();
        let empty = (all.count(), all.min_ns(), all.max_ns(), all.percentile_ns(500));
        assert_eq!(empty, (0, 0, 0, 0));
        assert_eq!((all.mean_ns(), all.buckets().count()), (0.0, 0));
        let (one, other) = (Histogram::default(), Histogram::default());
        one.record(10);
        other.record(10);
        other.record(2000);
        all.merge(&one.snapshot());
        all.merge(&other.snapshot());
        assert_eq!((all.count(), all.sum_ns()), (3, 2020));
        assert_eq!((all.min_ns(), all.max_ns()), (10, 2000));
        assert_eq!(all.buckets().next(), Some((10, 2)));
    }
}
