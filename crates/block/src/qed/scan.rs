//! Reading all tables: what an image uses, and what is wrong with it.
//!
//! Done whenever an image is opened for writing, because the format keeps no list of free clusters, and the next free one must lie behind every
//! reference, not just behind the end of the file. It reads the allocated part of the tables: 128 MiB for 1 TiB of data in clusters of 64 KiB, and
//! holes in the file cost nothing. Memory: one bit for each cluster in use, and the slices that the cache has room for.
//!
//! Specification: QEMU `docs/interop/qed_spec.rst`, "Consistency checking".

use super::header::Header;
use super::tables::{SLICE_BYTES, SLICE_ENTRIES, Tables, UNALLOCATED, ZERO};
use crate::space::Run;
use crate::{Error, ErrorKind, FileOffset, HostNode, Result};
use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of a table read at a time.
const PIECE_BYTES: u64 = 256 << 10;
const WORDS: usize = 64;
/// Clusters that one word array of the map covers.
const CHUNK: u64 = WORDS as u64 * 64;

/// What the tables of an image say.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// The L1 entries that the disk needs.
    pub l1: Vec<u64>,
    /// Data clusters in use.
    pub data_clusters: u64,
    /// References that begin beyond the end of the file: what a crash of a driver without our order of writes leaves.
    pub beyond_file: u64,
    /// References that cannot be: not on a cluster boundary, into the header, tables that the file's end cuts.
    pub invalid: u64,
    /// References to a cluster that something else refers to, or is.
    pub doubled: u64,
    /// Mapped clusters that the disk is too small for.
    pub beyond_disk: u64,
    /// The first thing that is wrong, in words.
    pub first_problem: Option<String>,
    used: UsedMap,
}

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

impl Scan {
    /// End of the last cluster in use, in bytes.
    pub fn end(&self, header: &Header) -> u64 {
        self.used.end() << header.cluster_bits()
    }

    /// Runs of clusters that nothing refers to, before the last one in use.
    pub fn leaks(&self, header: &Header) -> Vec<Run> {
        let mut runs = Vec::new();
        self.used.gaps(|first, clusters| {
            runs.push(Run { at: first << header.cluster_bits(), clusters });
        });
        runs
    }

    /// `Corrupt` if there is something that dropping references beyond the file does not mend.
    pub fn refuse_corrupt(&self, path: &str) -> Result<()> {
        if self.invalid == 0 && self.doubled == 0 {
            return Ok(());
        }
        let first = self.first_problem.as_deref().unwrap_or_default();
        let what = format!(
            "opening {path} for writing: its tables are corrupt ({} references to clusters that are used already, {} invalid; first: {first}); it can be opened read-only",
            self.doubled, self.invalid
        );
        Err(Error::new(ErrorKind::Corrupt, what))
    }

    fn problem(&mut self, what: impl FnOnce() -> String) {
        if self.first_problem.is_none() {
            self.first_problem = Some(what());
        }
    }
}

/// Who scans, and what.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    pub file: &'a HostNode,
    pub header: &'a Header,
    pub file_bytes: u64,
    /// Sets references beyond the file's end to 0, in the file.
    pub drop_beyond: bool,
}

/// What an entry is found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    BeyondFile,
    Invalid,
}

impl Scanner<'_> {
    /// Reads all tables. Slices go to `cache` as long as it has room; `progress` is told how many tables of how many are done.
    pub async fn scan(
        &self,
        mut cache: Option<&mut Tables>,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Scan> {
        let mut scan = Scan::default();
        let bits = self.header.cluster_bits();
        let l1_table = self.header.l1_table();
        let fixed = (0..self.header.first_cluster() >> bits)
            .chain(l1_table >> bits..(l1_table + self.header.table_bytes()) >> bits);
        for cluster in fixed {
            scan.used.mark(cluster);
        }
        let tables = self.l1(&mut scan).await?;
        for (done, (table, at)) in tables.iter().enumerate() {
            progress(done, tables.len());
            self.table(&mut scan, *table, *at, &mut cache).await?;
        }
        progress(tables.len(), tables.len());
        Ok(scan)
    }

    /// Reads the L1 table; gives the numbers and places of the L2 tables.
    async fn l1(&self, scan: &mut Scan) -> Result<Vec<(u64, u64)>> {
        let needed = self.header.l1_entries();
        scan.l1 = vec![UNALLOCATED; index(needed)];
        let mut tables = Vec::new();
        let clusters = self.header.table_clusters();
        let mut at = 0;
        while let Some((from, mut bytes)) = self.piece(self.header.l1_table(), at).await? {
            at = from + bytes.len() as u64;
            let mut dropped = false;
            for (n, raw) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let table = from / 8 + n as u64;
                let value = u64::from_le_bytes(*raw);
                if value == UNALLOCATED {
                    continue;
                }
                match self.judge(value, self.header.table_bytes()) {
                    Verdict::Good => {
                        if !self.mark(scan, value, clusters, || format!("L1 entry {table}")) {
                            continue;
                        }
                        tables.push((table, value));
                        if let Some(entry) = scan.l1.get_mut(index(table)) {
                            *entry = value;
                        }
                    }
                    verdict => {
                        dropped |=
                            self.count(scan, verdict, || format!("L1 entry {table} is {value:#x}"));
                        if verdict == Verdict::BeyondFile {
                            *raw = [0; 8];
                        }
                    }
                }
            }
            self.write_back(dropped, self.header.l1_table() + from, &bytes).await?;
        }
        Ok(tables)
    }

    /// Reads one L2 table.
    async fn table(
        &self,
        scan: &mut Scan,
        table: u64,
        at: u64,
        cache: &mut Option<&mut Tables>,
    ) -> Result<()> {
        let entries = self.header.table_entries();
        let mut next = 0;
        while let Some((from, mut bytes)) = self.piece(at, next).await? {
            next = from + bytes.len() as u64;
            let mut dropped = false;
            for (n, raw) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let value = u64::from_le_bytes(*raw);
                if value == UNALLOCATED || value == ZERO {
                    continue;
                }
                let cluster = table * entries + from / 8 + n as u64;
                scan.beyond_disk += u64::from(cluster >= self.header.image_clusters());
                let what = || format!("L2 entry of cluster {cluster} is {value:#x}");
                match self.judge(value, 1) {
                    Verdict::Good => {
                        self.mark(scan, value, 1, what);
                        scan.data_clusters += 1;
                    }
                    verdict => {
                        dropped |= self.count(scan, verdict, what);
                        if verdict == Verdict::BeyondFile {
                            *raw = [0; 8];
                        }
                    }
                }
            }
            self.write_back(dropped, at + from, &bytes).await?;
            if let Some(cache) = cache.as_mut().filter(|_| table < self.header.l1_entries()) {
                for (n, slice) in bytes.chunks_exact(index(SLICE_BYTES)).enumerate() {
                    if cache.slices.has_room() {
                        let id = (table * entries + from / 8) / SLICE_ENTRIES + n as u64;
                        cache.slices.insert(id, slice);
                    }
                }
            }
        }
        Ok(())
    }

    /// Bytes of a table from offset `from` in it on: where they begin and what they are; `None` after the last that is not a hole.
    pub(super) async fn piece(&self, table: u64, from: u64) -> Result<Option<(u64, Vec<u8>)>> {
        let len = self.header.table_bytes();
        if from >= len {
            return Ok(None);
        }
        let data = self.file.file().next_data(table + from);
        let Some(data) = data.filter(|data| *data < table + len) else { return Ok(None) };
        let from = (data.max(table + from) - table) / SLICE_BYTES * SLICE_BYTES;
        let bytes = PIECE_BYTES.min(len - from);
        let buf = self.file.read_owned(FileOffset(table + from), bytes).await?;
        Ok(Some((from, buf.as_slice().to_vec())))
    }

    /// A reference to something of at least `bytes` bytes.
    pub(super) fn judge(&self, value: u64, bytes: u64) -> Verdict {
        if !value.is_multiple_of(self.header.cluster_bytes()) || value < self.header.first_cluster()
        {
            return Verdict::Invalid;
        }
        match value {
            value if value >= self.file_bytes => Verdict::BeyondFile,
            value if value + bytes > self.file_bytes => Verdict::Invalid,
            _ => Verdict::Good,
        }
    }

    /// Counts what is wrong; whether the entry is to be dropped.
    fn count(&self, scan: &mut Scan, verdict: Verdict, what: impl FnOnce() -> String) -> bool {
        let beyond = verdict == Verdict::BeyondFile;
        *if beyond { &mut scan.beyond_file } else { &mut scan.invalid } += 1;
        scan.problem(what);
        beyond && self.drop_beyond
    }

    /// Marks clusters as used; `false` (and counted) if one of them was already.
    fn mark(&self, scan: &mut Scan, at: u64, clusters: u64, what: impl FnOnce() -> String) -> bool {
        let first = at >> self.header.cluster_bits();
        let again = (first..first + clusters).filter(|n| !scan.used.mark(*n)).count();
        let fresh = again == 0;
        if !fresh {
            scan.doubled += 1;
            scan.problem(|| format!("{}, which is in use already", what()));
        }
        fresh
    }

    async fn write_back(&self, dropped: bool, at: u64, bytes: &[u8]) -> Result<()> {
        if !dropped {
            return Ok(());
        }
        let mut buf = self.file.buffer(bytes.len() as u64);
        buf.as_mut_slice().copy_from_slice(bytes);
        self.file.write_owned(FileOffset(at), buf).await
    }
}

/// An index that is known to be small: entries of the L1 table in use are at most 2^21.
fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
