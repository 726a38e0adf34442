//! Space in the file: where new clusters come from, and when freed ones may be used again.
//!
//! ```text
//!   0                                                end          len
//!   | header | clusters in use, and `free` runs ...   | reserve    |
//!                 ^  |                                  length that the file has already, and nothing in it:
//!      take ------'  | release                         a write into it makes nothing longer
//!                    v
//!   freed -> quarantine --commit that unlinked it--> released --fence, punched--> free
//! ```
//!
//! Which clusters are free when an image is opened is for the format to find: in all tables, or in the refcounts. Freed clusters wait in
//! quarantine until no durable table refers to them (design.md section 4, rule 2), then for the requests that still use them, and come back
//! zeroed, on a block device with anything in them. qcow2, which counts references, has a quarantine of its own, and begins with `released`.
//!
//! Everything here is RAM. Invariants: no cluster is handed out twice; `end <= len`; `free` lies below `end`.

use std::collections::BTreeMap;

/// How many runs of free clusters an allocation looks at before it goes to the end.
const RUNS_TRIED: usize = 8;

/// A run of clusters that is on its way from use to being free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Offset of the first byte.
    pub at: u64,
    pub clusters: u64,
}

#[derive(Debug)]
pub(crate) struct Space {
    cluster_bits: u32,
    /// Next cluster never used.
    end: u64,
    /// Length that the file is known to have.
    len: u64,
    /// Runs that may be handed out: offset to clusters.
    free: BTreeMap<u64, u64>,
    /// Clusters of them together.
    free_clusters: u64,
    /// Freed runs, with the number of the last commit begun before that.
    quarantine: Vec<(Run, u64)>,
    /// Runs that no durable table refers to any more.
    released: Vec<Run>,
}

impl Space {
    /// `end` is where unused space begins, rounded up to a cluster; `len` what the file's length is.
    pub fn new(cluster_bits: u32, end: u64, len: u64) -> Space {
        Space {
            cluster_bits,
            end,
            len,
            free: BTreeMap::new(),
            free_clusters: 0,
            quarantine: Vec::new(),
            released: Vec::new(),
        }
    }

    /// Next cluster never used.
    pub fn end(&self) -> u64 {
        self.end
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// The file has been made longer.
    pub fn set_len(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// Bytes that can be taken at the end before the file must grow.
    pub fn reserve(&self) -> u64 {
        self.len.saturating_sub(self.end)
    }

    /// A run of `clusters` adjacent clusters; `None` if the file must grow first.
    pub fn take(&mut self, clusters: u64) -> Option<u64> {
        let bytes = clusters << self.cluster_bits;
        // All of them if there is nothing else.
        let tried = if bytes > self.reserve() { usize::MAX } else { RUNS_TRIED };
        let found = self.free.iter().take(tried).find(|(_, run)| **run >= clusters);
        if let Some((&at, &run)) = found {
            self.free.remove(&at);
            self.free_clusters -= clusters;
            if run > clusters {
                self.free.insert(at + (clusters << self.cluster_bits), run - clusters);
            }
            return Some(at);
        }
        if bytes > self.reserve() {
            return None;
        }
        self.end += bytes;
        Some(self.end - bytes)
    }

    /// Clusters that a table referred to, or may have: `commits` is the number of the last commit begun.
    pub fn release(&mut self, run: Run, commits: u64) {
        if let Some((last, number)) = self.quarantine.last_mut() {
            let adjacent = last.at + (last.clusters << self.cluster_bits) == run.at;
            if adjacent && *number == commits {
                last.clusters += run.clusters;
                return;
            }
        }
        self.quarantine.push((run, commits));
    }

    /// Commit `number` is durable: what was freed before it began has no durable reference any more.
    pub fn committed(&mut self, number: u64) {
        let released = &mut self.released;
        self.quarantine.retain(|(run, freed)| {
            let wait = *freed >= number;
            if !wait {
                released.push(*run);
            }
            wait
        });
    }

    /// Whether a cluster may be handed out.
    pub fn is_free(&self, at: u64) -> bool {
        let run = self.free.range(..=at).next_back();
        run.is_some_and(|(start, clusters)| at < start + (clusters << self.cluster_bits))
            || at >= self.end
    }

    /// Clusters that can be had without the file growing, though perhaps not adjacent ones.
    pub fn available(&self) -> u64 {
        self.free_clusters + (self.reserve() >> self.cluster_bits)
    }

    /// Runs that may be handed out.
    pub fn free_runs(&self) -> usize {
        self.free.len()
    }

    pub fn has_released(&self) -> bool {
        !self.released.is_empty()
    }

    /// The released runs, which wait for a fence and to be zeroed.
    pub fn take_released(&mut self) -> Vec<Run> {
        std::mem::take(&mut self.released)
    }

    /// A run that no durable table refers to, or one that could not be zeroed, to be tried again.
    pub fn put_released(&mut self, run: Run) {
        self.released.push(run);
    }

    /// A zeroed run may be used again.
    pub fn add_free(&mut self, run: Run) {
        let (mut at, mut clusters) = (run.at, run.clusters);
        self.free_clusters += clusters;
        let bytes = |clusters: u64| clusters << self.cluster_bits;
        if let Some((&before, &count)) = self.free.range(..at).next_back()
            && before + bytes(count) == at
        {
            self.free.remove(&before);
            (at, clusters) = (before, count + clusters);
        }
        if let Some(count) = self.free.remove(&(at + bytes(clusters))) {
            clusters += count;
        }
        self.free.insert(at, clusters);
    }

    /// Takes free runs at the end off, and gives the length that the file needs. Nothing may be in quarantine or in use beyond it.
    pub fn trim(&mut self) -> u64 {
        while let Some((&at, &clusters)) = self.free.last_key_value()
            && at + (clusters << self.cluster_bits) == self.end
        {
            self.free.remove(&at);
            self.free_clusters -= clusters;
            self.end = at;
        }
        self.len = self.end;
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K4: u32 = 12;

    #[test]
    fn clusters_come_from_the_reserve_until_the_file_must_grow() {
        let mut space = Space::new(K4, 0x3000, 0x5000);
        assert_eq!(
            (space.take(1), space.take(1), space.take(1)),
            (Some(0x3000), Some(0x4000), None)
        );
        space.set_len(0x6000);
        assert_eq!((space.take(2), space.take(1)), (None, Some(0x5000)));
    }

    #[test]
    fn a_freed_cluster_waits_for_a_commit_that_began_later() {
        let mut space = Space::new(K4, 0x8000, 0x8000);
        space.release(Run { at: 0x4000, clusters: 1 }, 3);
        space.committed(3);
        assert!(!space.has_released(), "commit 3 had begun before");
        space.committed(4);
        assert_eq!(space.take_released(), [Run { at: 0x4000, clusters: 1 }]);
        assert_eq!(space.take(1), None, "not before it is zeroed");
    }

    #[test]
    fn free_runs_merge_and_are_split_and_trimmed() {
        let mut space = Space::new(K4, 0x8000, 0x9000);
        for at in [0x4000, 0x6000, 0x7000, 0x5000, 0x1000] {
            space.add_free(Run { at, clusters: 1 });
        }
        assert_eq!(space.free, BTreeMap::from([(0x1000, 1), (0x4000, 4)]));
        assert_eq!((space.take(3), space.take(1)), (Some(0x4000), Some(0x1000)));
        assert_eq!(space.available(), 1 + 1, "one in a run, one in the reserve");
        assert_eq!((space.trim(), space.reserve(), space.available()), (0x7000, 0, 0));
    }
}
