//! Reference counts: how often each cluster of the file is used.
//!
//! ```text
//!   cluster of the file --> refcount table entry --> slice (4 KiB of a refcount block) --> count, 1 to 64 bits
//!
//!   changes: clusters and +1 or -1, gathered while requests run --apply--> slices in RAM --write--> file        both within a commit
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Reference counts".
//!
//! No request waits for a count: who takes or frees clusters leaves a change here. A change may be written as soon as it is here, since
//!
//! - a count goes up when a cluster is taken, long before anything refers to it;
//! - it goes down only when what referred to the cluster is durably gone ([`Counts::committed`]).
//!
//! So at every instant the durable count of a cluster is at least the number of its durable references. A slice with changes stays in RAM until
//! it is written; if a write fails, it is written again.

use super::refcount;
use crate::filters::Event;
use crate::space::Run;
use crate::{Error, ErrorKind, FileOffset, HostNode, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Most bytes of a slice.
const SLICE_BYTES_MAX: u64 = 4096;
/// Slices without changes that stay in RAM: 4 MiB.
const CLEAN_SLICES_MAX: usize = 1024;

#[derive(Debug)]
struct Slice {
    bytes: Box<[u8]>,
    /// The file holds something else.
    is_changed: bool,
}

/// Clusters whose counts change alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    first: u64,
    clusters: u64,
    by: i64,
}

impl Change {
    fn is_followed_by(self, next: Change) -> bool {
        self.by == next.by && self.first + self.clusters == next.first
    }
}

#[derive(Debug)]
pub(super) struct Counts {
    cluster_bits: u32,
    /// Binary logarithm of a count's bits.
    order: u32,
    slice_bytes: u64,
    /// Offsets of the refcount blocks; 0 where there is none.
    table: Vec<u64>,
    /// Blocks that the table in the file does not have yet.
    new_blocks: BTreeMap<usize, u64>,
    slices: HashMap<u64, Slice>,
    changed: BTreeSet<u64>,
    changes: Vec<Change>,
    /// Clusters that changes take.
    taken: u64,
    /// Entries of `table` up to the last that is not 0.
    used: usize,
    /// References that the tables in RAM do not have any more, gone from the file with the first commit after the one of this number.
    quarantine: Vec<(Change, u64)>,
    /// Clusters that lost a reference: those whose count becomes 0 are free.
    maybe_free: Vec<Change>,
}

impl Counts {
    pub fn new(cluster_bits: u32, order: u32, table: Vec<u64>) -> Counts {
        Counts {
            cluster_bits,
            order,
            slice_bytes: (1u64 << cluster_bits).min(SLICE_BYTES_MAX),
            used: table.iter().rposition(|at| *at != 0).map_or(0, |last| last + 1),
            table,
            new_blocks: BTreeMap::new(),
            slices: HashMap::new(),
            changed: BTreeSet::new(),
            changes: Vec::new(),
            taken: 0,
            quarantine: Vec::new(),
            maybe_free: Vec::new(),
        }
    }

    /// Offsets of the blocks; 0 where there is none.
    pub fn table(&self) -> &[u64] {
        &self.table
    }

    /// The refcount table has so many entries now.
    pub fn set_table_entries(&mut self, entries: usize) {
        self.table.resize(entries, 0);
    }

    /// Largest count.
    pub fn max(&self) -> u64 {
        refcount::max(self.order)
    }

    /// Binary logarithm of the counts in a block.
    pub fn block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.order
    }

    fn slice_bits(&self) -> u32 {
        self.slice_bytes.ilog2() + 3 - self.order
    }

    /// Bytes of RAM that the slices take.
    pub fn bytes(&self) -> u64 {
        self.slices.len() as u64 * self.slice_bytes
    }

    /// Something waits to be applied or written.
    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty() || !self.changed.is_empty() || !self.new_blocks.is_empty()
    }

    /// Clusters lost their last durable reference, and it is not yet known which of them are free.
    pub fn has_freed(&self) -> bool {
        !self.maybe_free.is_empty()
    }

    /// Clusters that blocks and a larger table may need for what is taken, and `clusters` more.
    pub fn tables_needed(&self, clusters: u64) -> u64 {
        let blocks = ((self.taken + clusters) >> self.block_bits()) + 2;
        let table = self.table.len() as u64;
        match self.used as u64 + blocks <= table {
            true => blocks,
            // Half as large again, in clusters, and the blocks that count it.
            false => blocks + 2 + ((table * 2) >> (self.cluster_bits - 3)),
        }
    }

    /// Changes that were not applied, one for clusters in a row.
    pub fn waiting(&self) -> usize {
        self.changes.len() + self.quarantine.len()
    }

    /// References wait for the commit that makes them gone.
    pub fn has_quarantine(&self) -> bool {
        !self.quarantine.is_empty()
    }

    /// Clusters of the file are taken: a reference to each will be there.
    pub fn take(&mut self, run: Run) {
        let change = Change { first: run.at >> self.cluster_bits, clusters: run.clusters, by: 1 };
        self.taken += run.clusters;
        match self.changes.last_mut() {
            Some(last) if last.is_followed_by(change) => last.clusters += run.clusters,
            _ => self.changes.push(change),
        }
    }

    /// A reference to each of these clusters is gone from the tables in RAM: `commits` is the number of the last commit begun.
    pub fn release(&mut self, run: Run, commits: u64) {
        let change = Change { first: run.at >> self.cluster_bits, clusters: run.clusters, by: -1 };
        match self.quarantine.last_mut() {
            Some((last, number)) if *number == commits && last.is_followed_by(change) => {
                last.clusters += run.clusters;
            }
            _ => self.quarantine.push((change, commits)),
        }
    }

    /// Commit `number` is durable: what was let go before it began is gone.
    pub fn committed(&mut self, number: u64) {
        let (changes, maybe_free) = (&mut self.changes, &mut self.maybe_free);
        self.quarantine.retain(|(change, commits)| {
            let waits = *commits >= number;
            if !waits {
                changes.push(*change);
                maybe_free.push(*change);
            }
            waits
        });
    }

    /// Takes the changes, in parts that lie in one slice each.
    fn take_changes(&mut self) -> BTreeMap<u64, Vec<Change>> {
        let mut slices: BTreeMap<u64, Vec<Change>> = BTreeMap::new();
        let bits = self.slice_bits();
        self.taken = 0;
        for mut change in std::mem::take(&mut self.changes) {
            while change.clusters > 0 {
                let slice = change.first >> bits;
                let clusters = change.clusters.min(((slice + 1) << bits) - change.first);
                slices.entry(slice).or_default().push(Change { clusters, ..change });
                change.first += clusters;
                change.clusters -= clusters;
            }
        }
        slices
    }

    /// Takes the runs of clusters that became free. What was let go must have been applied.
    fn take_free(&mut self) -> Vec<Run> {
        let mut free: Vec<Run> = Vec::new();
        let mut freed = std::mem::take(&mut self.maybe_free);
        freed.sort_unstable_by_key(|change| change.first);
        let mut next = 0;
        for change in freed {
            let end = change.first + change.clusters;
            // Several references to one cluster may be gone.
            for cluster in change.first.max(next)..end {
                if self.get(cluster) != Some(0) {
                    continue;
                }
                let at = cluster << self.cluster_bits;
                match free.last_mut() {
                    Some(run) if run.at + (run.clusters << self.cluster_bits) == at => {
                        run.clusters += 1;
                    }
                    _ => free.push(Run { at, clusters: 1 }),
                }
            }
            next = next.max(end);
        }
        free
    }

    /// The block that a slice belongs to.
    fn block_of(&self, slice: u64) -> usize {
        index(slice >> (self.block_bits() - self.slice_bits()))
    }

    /// Where a slice is, or will be.
    fn slice_at(&self, slice: u64) -> Option<u64> {
        let block = self.block_of(slice);
        let linked = self.table.get(block).copied().filter(|at| *at != 0);
        let at = linked.or_else(|| self.new_blocks.get(&block).copied())?;
        let part = slice & ((1 << (self.block_bits() - self.slice_bits())) - 1);
        Some(at + part * self.slice_bytes)
    }

    /// Bytes of a slice.
    pub fn slice_len(&self) -> usize {
        index(self.slice_bytes)
    }

    /// Of the slice that counts this cluster: where it is, and which clusters it counts.
    pub fn slice_around(&self, cluster: u64) -> (Option<u64>, std::ops::Range<u64>) {
        let (slice, bits) = (cluster >> self.slice_bits(), self.slice_bits());
        (self.slice_at(slice), slice << bits..(slice + 1) << bits)
    }

    /// The bytes of the slice that counts this cluster, if it is in RAM.
    pub fn slice_in_ram(&self, cluster: u64) -> Option<Vec<u8>> {
        self.slices.get(&(cluster >> self.slice_bits())).map(|slice| slice.bytes.to_vec())
    }

    /// Count number `number` of a slice's bytes.
    pub fn count_in(&self, bytes: &[u8], number: u64) -> u64 {
        refcount::get(bytes, index(number), self.order)
    }

    fn get(&self, cluster: u64) -> Option<u64> {
        let slice = self.slices.get(&(cluster >> self.slice_bits()))?;
        Some(self.count_in(&slice.bytes, cluster & ((1 << self.slice_bits()) - 1)))
    }

    /// Drops slices that the file has all of, if there are many.
    fn evict(&mut self) {
        if self.slices.len() > CLEAN_SLICES_MAX + self.changed.len() {
            self.slices.retain(|_, slice| slice.is_changed);
        }
    }
}

/// Applies the changes to slices in RAM. `allocate` gives a cluster for a new block, and leaves a change itself. Gives the clusters that became
/// free by that.
pub(super) async fn apply(
    counts: &std::cell::RefCell<Counts>,
    file: &HostNode,
    allocate: impl AsyncFn() -> Result<u64>,
) -> Result<Vec<Run>> {
    loop {
        let mut slices = counts.borrow_mut().take_changes();
        if slices.is_empty() {
            break;
        }
        while let Some((slice, changes)) = slices.pop_first() {
            let applied = match prepare(counts, file, slice, &allocate).await {
                Ok(()) => counts.borrow_mut().add(slice, &changes, file.path()),
                Err(error) => Err(error),
            };
            if let Err(error) = applied {
                // What was not applied is kept.
                slices.insert(slice, changes);
                let mut counts = counts.borrow_mut();
                counts.changes.extend(slices.into_values().flatten());
                return Err(error);
            }
        }
    }
    Ok(counts.borrow_mut().take_free())
}

/// Brings a slice to RAM; makes the block that it is in, if there is none.
async fn prepare(
    counts: &std::cell::RefCell<Counts>,
    file: &HostNode,
    slice: u64,
    allocate: &impl AsyncFn() -> Result<u64>,
) -> Result<()> {
    if counts.borrow().slices.contains_key(&slice) {
        return Ok(());
    }
    let place = counts.borrow().slice_at(slice);
    let mut bytes = vec![0; index(counts.borrow().slice_bytes)];
    let block = counts.borrow().block_of(slice);
    match place {
        Some(at) if !counts.borrow().new_blocks.contains_key(&block) => {
            file.event(Event::RefblockLoad);
            file.read_to(FileOffset(at), &mut bytes).await?;
        }
        Some(_) => {}
        None => {
            file.event(Event::RefblockAlloc);
            let at = allocate().await?;
            counts.borrow_mut().new_blocks.insert(block, at);
        }
    }
    let slice_of = Slice { bytes: bytes.into(), is_changed: false };
    let mut counts = counts.borrow_mut();
    counts.evict();
    counts.slices.insert(slice, slice_of);
    Ok(())
}

/// The count of a cluster.
pub(super) async fn count(
    counts: &std::cell::RefCell<Counts>,
    file: &HostNode,
    cluster: u64,
) -> Result<u64> {
    if let Some(count) = counts.borrow().get(cluster) {
        return Ok(count);
    }
    let slice = cluster >> counts.borrow().slice_bits();
    if counts.borrow().slice_at(slice).is_none() {
        return Ok(0);
    }
    let nowhere = async || Err(Error::new(ErrorKind::Corrupt, "a refcount block is gone"));
    prepare(counts, file, slice, &nowhere).await?;
    Ok(counts.borrow().get(cluster).unwrap_or(0))
}

impl Counts {
    /// Adds to counts of a slice that is in RAM: all of `changes`, or none.
    fn add(&mut self, slice: u64, changes: &[Change], path: &str) -> Result<()> {
        let first = slice << self.slice_bits();
        let mut sums = BTreeMap::<u64, i64>::new();
        for change in changes {
            for cluster in change.first..change.first + change.clusters {
                *sums.entry(cluster).or_default() += change.by;
            }
        }
        let max = self.max();
        let mut new = Vec::with_capacity(sums.len());
        for (cluster, by) in sums {
            let before = self.get(cluster).unwrap_or(0);
            let Some(sum) = before.checked_add_signed(by).filter(|sum| *sum <= max) else {
                let at = cluster << self.cluster_bits;
                let what = format!(
                    "{path}: the reference count of the cluster at {at:#x} is {before}, and cannot be changed by {by}"
                );
                return Err(Error::new(ErrorKind::Corrupt, what));
            };
            if sum != before {
                new.push((cluster - first, sum));
            }
        }
        let order = self.order;
        if let Some(slice_of) = self.slices.get_mut(&slice).filter(|_| !new.is_empty()) {
            for (number, sum) in new {
                refcount::set(&mut slice_of.bytes, index(number), order, sum);
            }
            slice_of.is_changed = true;
            self.changed.insert(slice);
        }
        Ok(())
    }

    /// The slices that have to be written, and where. New blocks are written whole.
    pub fn to_write(&self) -> Vec<(FileOffset, Vec<u8>)> {
        let mut pieces = Vec::new();
        for (block, at) in &self.new_blocks {
            let per_block = 1u64 << (self.block_bits() - self.slice_bits());
            for slice in *block as u64 * per_block..(*block as u64 + 1) * per_block {
                let part = slice % per_block * self.slice_bytes;
                let bytes = match self.slices.get(&slice) {
                    Some(slice) => slice.bytes.to_vec(),
                    None => vec![0; index(self.slice_bytes)],
                };
                pieces.push((FileOffset(at + part), bytes));
            }
        }
        for slice in &self.changed {
            if self.new_blocks.contains_key(&self.block_of(*slice)) {
                continue;
            }
            if let (Some(at), Some(slice)) = (self.slice_at(*slice), self.slices.get(slice)) {
                pieces.push((FileOffset(at), slice.bytes.to_vec()));
            }
        }
        pieces
    }

    /// Numbers of the blocks that the table in the file does not have yet.
    pub fn new_blocks(&self) -> impl Iterator<Item = usize> {
        self.new_blocks.keys().copied()
    }

    /// All of that is in the file.
    pub fn written(&mut self) {
        for slice in std::mem::take(&mut self.changed) {
            if let Some(slice) = self.slices.get_mut(&slice) {
                slice.is_changed = false;
            }
        }
    }

    /// The new blocks are linked durably.
    pub fn linked(&mut self) {
        for (block, at) in std::mem::take(&mut self.new_blocks) {
            self.table[block] = at;
            self.used = self.used.max(block + 1);
        }
    }

    /// The refcount table with its new entries, and `entries` long at least.
    pub fn new_table(&self, entries: usize) -> Vec<u64> {
        let mut table = self.table.clone();
        table.resize(entries.max(table.len()), 0);
        for (block, at) in &self.new_blocks {
            if let Some(entry) = table.get_mut(*block) {
                *entry = *at;
            }
        }
        table
    }

    /// Entries that the refcount table needs at least.
    pub fn table_entries_needed(&self) -> usize {
        self.new_blocks.last_key_value().map_or(0, |(block, _)| block + 1)
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("bounded by the file's metadata")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_neighbours_are_one_and_a_reference_that_is_gone_waits_for_a_commit() {
        let mut counts = Counts::new(16, 4, vec![0]);
        counts.take(Run { at: 0x50000, clusters: 2 });
        counts.take(Run { at: 0x70000, clusters: 1 });
        assert_eq!(counts.changes, [Change { first: 5, clusters: 3, by: 1 }]);
        counts.take_changes();
        counts.release(Run { at: 0x60000, clusters: 1 }, 3);
        counts.committed(3);
        assert!(!counts.has_changes(), "commit 3 had begun before");
        counts.committed(4);
        assert_eq!(counts.changes, [Change { first: 6, clusters: 1, by: -1 }]);
    }
}
