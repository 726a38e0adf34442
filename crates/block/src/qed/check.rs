//! Checking an image as a tool does: everything that its tables say, what is wrong with it, and what it wastes. Nothing is written.
//!
//! ```text
//!   L1 table --> L2 tables --> clusters        each reference is judged, each cluster it names is marked
//!                                |
//!      marked twice: doubled     `- never marked, before the file's end: leaked
//! ```
//!
//! Specification: QEMU `docs/interop/qed_spec.rst`, "Consistency checking". What counts as an error, a leak, allocated and fragmented is what
//! `qemu-img check` counts, with one difference: where the file ends within a cluster, we say so, and mend it by making the file longer; QEMU
//! does not see that cluster, and would drop the reference to it.
//!
//! Memory: a bit for each cluster in use, 24 bytes for each L2 table, and [`PROBLEMS_MAX`] problems with their places; the rest is counted.
//!
//! [`plan`] says what [`repair()`] would do, line by line.

mod compact;
mod fix;
mod repair;

pub use crate::check::Level;
pub use fix::{Fix, Plan};
pub use repair::{plan, repair};

use super::header::Header;
use super::resize::each_entry;
use super::scan::{Scanner, Verdict};
use super::tables::ZERO;
use crate::used::UsedMap;
use crate::{Error, ErrorKind, FileOffset, HostNode, Result};
use std::collections::BTreeMap;
use std::fmt;

/// Problems of which the place is kept. A repair goes over the image again when it has mended so many.
pub const PROBLEMS_MAX: usize = 65536;

/// Bytes read for the header.
const START_BYTES: u64 = 4096;

/// An entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// Of the L1 table, by its number: refers to an L2 table.
    L1(u64),
    /// Of an L2 table: for the cluster of the disk with this number.
    L2(u64),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::L1(table) => write!(f, "L1 entry {table}"),
            Entry::L2(cluster) => write!(f, "L2 entry of cluster {cluster}"),
        }
    }
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// It refers to where the file does not reach.
    BeyondFile,
    /// The file ends within what it refers to.
    CutOff,
    /// It refers to no cluster boundary, or into the header.
    Invalid,
    /// What it refers to is in use already, by an entry that was read before or by the L1 table.
    Doubled,
    /// As `Doubled`, and it should be a table and is not.
    NotATable,
    /// The disk does not reach this entry. Harmless, and a waste.
    BeyondDisk,
}

impl ProblemKind {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            ProblemKind::BeyondFile => "beyond the end of the file",
            ProblemKind::CutOff => "the file ends within it",
            ProblemKind::Invalid => "not a cluster",
            ProblemKind::Doubled => "in use already",
            ProblemKind::NotATable => "in use already, and not a table",
            ProblemKind::BeyondDisk => "of a cluster beyond the end of the disk",
        }
    }
}

/// An entry that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which.
    pub entry: Entry,
    /// What it holds.
    pub value: u64,
    /// What is wrong with it.
    pub kind: ProblemKind,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {:#x}: {}", self.entry, self.value, self.kind.describe())
    }
}

/// What a check has found.
#[derive(Debug)]
pub struct CheckReport {
    /// The image's header.
    pub header: Header,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// End of the last cluster in use, in bytes.
    pub image_end: u64,
    /// Clusters of the disk.
    pub total_clusters: u64,
    /// Entries that refer to a cluster, rightly or not.
    pub allocated_clusters: u64,
    /// Of these, those that do not follow the one before in the same table.
    pub fragmented_clusters: u64,
    /// References to clusters in use already.
    pub doubled: u64,
    /// References that cannot be.
    pub invalid: u64,
    /// References beyond the end of the file.
    pub beyond_file: u64,
    /// References to clusters and tables that the end of the file cuts.
    pub cut_off: u64,
    /// Good references that the disk does not reach: not an error.
    pub beyond_disk: u64,
    /// Clusters of the file that nothing refers to.
    pub leaked_clusters: u64,
    /// The same in bytes.
    pub leaked_bytes: u64,
    /// The image is marked NEED_CHECK: it was not closed.
    pub needs_check: bool,
    /// The first [`PROBLEMS_MAX`] problems. Of the tables first.
    pub problems: Vec<Problem>,
    /// Which clusters of the file are in use.
    pub(crate) used: UsedMap,
    /// The L2 tables in use, by their place in the file: first cluster, and number.
    pub(crate) tables: BTreeMap<u64, u64>,
}

impl CheckReport {
    /// References that contradict the specification.
    pub fn errors(&self) -> u64 {
        self.doubled + self.invalid + self.beyond_file + self.cut_off
    }

    /// Nothing is wrong, nothing wasted, nothing to be done.
    pub fn is_clean(&self) -> bool {
        let header = &self.header;
        self.errors() + self.leaked_clusters + self.beyond_disk == 0
            && !self.needs_check
            && header.autoclear == 0
    }
}

/// Reads the header of the image in `host`.
pub(crate) async fn read_header(host: &HostNode) -> Result<Header> {
    let named =
        |error: Error| Error::new(error.kind(), format!("checking {}: {error}", host.path()));
    if host.align() > START_BYTES {
        let what = "direct I/O here needs blocks larger than 4 KiB: use --cache writeback";
        return Err(named(Error::new(ErrorKind::Unsupported, what)));
    }
    let file_bytes = host.file_bytes()?;
    let start = host.read_owned(FileOffset(0), START_BYTES).await?;
    if file_bytes < Header::LEN as u64 {
        let what = "QED header: the file is shorter than that";
        return Err(named(Error::new(ErrorKind::Corrupt, what)));
    }
    let raw = start.as_slice().first_chunk().expect("as long as a header");
    Header::parse(raw, file_bytes).map_err(named)
}

/// Checks the image in `host`, which nobody may be writing to. `progress` is told how many L2 tables of how many are done.
///
/// # Errors
///
/// `Corrupt` or `Unsupported` if it has no header that could be trusted, the host's. What is wrong with tables is in the report.
pub async fn check(host: &HostNode, progress: impl FnMut(u64, u64)) -> Result<CheckReport> {
    let header = Box::pin(read_header(host)).await?;
    let file_bytes = host.file_bytes()?;
    let scanner = Scanner { file: host, header: &header, file_bytes, drop_beyond: false };
    let mut walk = Walk::new(&header, file_bytes);
    // Boxed, here and in a repair, so that a task can hold it.
    Box::pin(walk.tables(&scanner, progress)).await?;
    Ok(walk.end())
}

/// A check under way.
#[derive(Debug)]
struct Walk {
    report: CheckReport,
    /// Clusters in use that lie wholly in the file.
    inside: u64,
    file_clusters: u64,
}

impl Walk {
    fn new(header: &Header, file_bytes: u64) -> Walk {
        let report = CheckReport {
            header: header.clone(),
            file_bytes,
            image_end: 0,
            total_clusters: header.image_clusters(),
            allocated_clusters: 0,
            fragmented_clusters: 0,
            doubled: 0,
            invalid: 0,
            beyond_file: 0,
            cut_off: 0,
            beyond_disk: 0,
            leaked_clusters: 0,
            leaked_bytes: 0,
            needs_check: header.needs_check(),
            problems: Vec::new(),
            used: UsedMap::default(),
            tables: BTreeMap::new(),
        };
        let file_clusters = file_bytes >> header.cluster_bits();
        // No reference into the header is taken for good, so its clusters, which may be very many, need no marks.
        let header_clusters = header.first_cluster() >> header.cluster_bits();
        let mut walk = Walk { report, inside: header_clusters, file_clusters };
        walk.mark(header.l1_table() >> header.cluster_bits(), header.table_clusters());
        walk
    }

    /// Marks clusters; whether all were free.
    fn mark(&mut self, first: u64, clusters: u64) -> bool {
        let mut fresh = true;
        for cluster in first..first + clusters {
            match self.report.used.mark(cluster) {
                true => self.inside += u64::from(cluster < self.file_clusters),
                false => fresh = false,
            }
        }
        fresh
    }

    fn problem(&mut self, entry: Entry, value: u64, kind: ProblemKind) {
        let report = &mut self.report;
        *match kind {
            ProblemKind::BeyondFile => &mut report.beyond_file,
            ProblemKind::CutOff => &mut report.cut_off,
            ProblemKind::Invalid => &mut report.invalid,
            ProblemKind::Doubled | ProblemKind::NotATable => &mut report.doubled,
            ProblemKind::BeyondDisk => &mut report.beyond_disk,
        } += 1;
        if report.problems.len() < PROBLEMS_MAX {
            report.problems.push(Problem { entry, value, kind });
        }
    }

    async fn tables(
        &mut self,
        scanner: &Scanner<'_>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<()> {
        let header = scanner.header;
        each_entry(scanner, header.l1_table(), 0, |table, value| {
            self.l1_entry(scanner, table, value);
        })
        .await?;
        let mut tables: Vec<(u64, u64)> =
            self.report.tables.iter().map(|(cluster, table)| (*table, *cluster)).collect();
        tables.sort_unstable();
        let of = tables.len() as u64;
        for (done, (table, cluster)) in (0..).zip(tables) {
            progress(done, of);
            let mut last = None;
            each_entry(scanner, cluster << header.cluster_bits(), 0, |entry, value| {
                if value != ZERO {
                    let expected = last.map(|last: u64| last.wrapping_add(header.cluster_bytes()));
                    self.report.allocated_clusters += 1;
                    self.report.fragmented_clusters +=
                        u64::from(expected.is_some_and(|expected| expected != value));
                    last = Some(value);
                    self.l2_entry(scanner, table * header.table_entries() + entry, value);
                }
            })
            .await?;
        }
        progress(of, of);
        Ok(())
    }

    fn l1_entry(&mut self, scanner: &Scanner<'_>, table: u64, value: u64) {
        let header = scanner.header;
        let entry = Entry::L1(table);
        let mut kind = match judge(scanner, value, header.table_bytes()) {
            Some(ProblemKind::CutOff) | None => None,
            found => found,
        };
        if kind.is_none() {
            let cluster = value >> header.cluster_bits();
            if self.report.tables.contains_key(&cluster) {
                kind = Some(ProblemKind::Doubled);
            } else if !self.mark(cluster, header.table_clusters()) {
                kind = Some(ProblemKind::NotATable);
            } else {
                self.report.tables.insert(cluster, table);
                // Cut off tables are read: beyond the end of the file there are zeroes.
                kind = judge(scanner, value, header.table_bytes());
                if kind.is_none() && table >= header.l1_entries() {
                    kind = Some(ProblemKind::BeyondDisk);
                }
            }
        }
        kind.into_iter().for_each(|kind| self.problem(entry, value, kind));
    }

    fn l2_entry(&mut self, scanner: &Scanner<'_>, cluster: u64, value: u64) {
        let header = scanner.header;
        let mut kind = judge(scanner, value, header.cluster_bytes());
        if matches!(kind, None | Some(ProblemKind::CutOff))
            && !self.mark(value >> header.cluster_bits(), 1)
        {
            kind = Some(ProblemKind::Doubled);
        }
        // Of a table that is beyond the disk as a whole, its L1 entry is the problem.
        let within = cluster / header.table_entries() < header.l1_entries();
        if kind.is_none() && within && cluster >= header.image_clusters() {
            kind = Some(ProblemKind::BeyondDisk);
        }
        kind.into_iter().for_each(|kind| self.problem(Entry::L2(cluster), value, kind));
    }

    fn end(mut self) -> CheckReport {
        let bits = self.report.header.cluster_bits();
        self.report.image_end =
            (self.report.used.end() << bits).max(self.report.header.first_cluster());
        self.report.leaked_clusters = self.file_clusters - self.inside;
        self.report.leaked_bytes = self.report.leaked_clusters << bits;
        self.report
    }
}

/// What is wrong with a reference to `bytes` bytes, as far as it can be seen from itself.
fn judge(scanner: &Scanner<'_>, value: u64, bytes: u64) -> Option<ProblemKind> {
    match scanner.judge(value, 1) {
        Verdict::Invalid => Some(ProblemKind::Invalid),
        Verdict::BeyondFile => Some(ProblemKind::BeyondFile),
        Verdict::Good if bytes > scanner.file_bytes - value => Some(ProblemKind::CutOff),
        Verdict::Good => None,
    }
}
