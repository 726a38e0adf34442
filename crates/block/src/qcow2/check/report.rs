//! What a check finds, in words and numbers.

use crate::qcow2::header::{CORRUPT, DIRTY, Header};
use std::fmt;

/// Problems of which the place is kept. A repair goes over the image again when it has mended so many.
pub const PROBLEMS_MAX: usize = 65536;

/// Whose an L1 table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The disk's, as it is now.
    Active,
    /// That of the snapshot with this number, counted from 0.
    Snapshot(u32),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Active => Ok(()),
            Owner::Snapshot(number) => write!(f, " of snapshot {number}"),
        }
    }
}

/// Where something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// What the header refers to.
    Area(Area),
    /// An entry of the refcount table, by its number.
    Block(u64),
    /// An entry of an L1 table, by its number.
    L1 {
        /// Of which.
        owner: Owner,
        /// Number of the entry.
        entry: u64,
    },
    /// An entry of an L2 table.
    L2 {
        /// To whom the table belongs; to others too, perhaps.
        owner: Owner,
        /// The cluster of the disk that it is for.
        cluster: u64,
        /// Where the entry is in the file.
        at: u64,
    },
    /// The refcounts of clusters of the file.
    Refcounts {
        /// The first.
        first: u64,
        /// How many.
        clusters: u64,
        /// References to each of them.
        references: u64,
    },
}

/// Something that is in the file by the header's word, or by that of a snapshot or bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The header's cluster.
    Header,
    /// The L1 table.
    L1,
    /// The refcount table.
    RefcountTable,
    /// The refcount block with this number.
    RefcountBlock(u64),
    /// The table of the snapshots.
    SnapshotTable,
    /// What is said of a snapshot, and its L1 table.
    Snapshot(u32),
    /// The directory of the bitmaps.
    BitmapDirectory,
    /// A bitmap: its table and data.
    Bitmap(u32),
    /// The encryption header.
    Encryption,
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Area::Header => f.write_str("header"),
            Area::L1 => f.write_str("L1 table"),
            Area::RefcountTable => f.write_str("refcount table"),
            Area::RefcountBlock(number) => write!(f, "refcount block {number}"),
            Area::SnapshotTable => f.write_str("snapshot table"),
            Area::Snapshot(number) => write!(f, "L1 table of snapshot {number}"),
            Area::BitmapDirectory => f.write_str("bitmap directory"),
            Area::Bitmap(number) => write!(f, "bitmap {number}"),
            Area::Encryption => f.write_str("encryption header"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Area(area) => area.fmt(f),
            Place::Block(number) => write!(f, "refcount table entry {number}"),
            Place::L1 { owner, entry } => write!(f, "L1 entry {entry}{owner}"),
            Place::L2 { owner, cluster, at } => {
                write!(f, "L2 entry of cluster {cluster}{owner} (at {at:#x})")
            }
            Place::Refcounts { first, clusters: 1, .. } => write!(f, "refcount of cluster {first}"),
            Place::Refcounts { first, clusters, .. } => {
                write!(f, "refcounts of clusters {first} to {}", first + clusters - 1)
            }
        }
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ProblemKind {
    /// Bits are set that must not be.
    Reserved,
    /// It refers to no cluster boundary.
    Unaligned,
    /// It refers to where the file does not reach.
    BeyondFile,
    /// What it refers to, or where it is, is something else too, and one of the two is metadata.
    Overlap,
    /// COPIED is set for compressed data.
    CopiedCompressed,
    /// Compressed data, and the disk's data is in another file.
    Compressed,
    /// Subclusters that are allocated and zeroes at once, or allocated nowhere.
    Subclusters,
    /// In the data file, it is not where it is on the disk.
    DataOffset,
    /// A snapshot that cannot be: its entry in the table, or its L1 table's place; or any, if the disk's data is in another file.
    Snapshot,
    /// A bitmap that cannot be.
    Bitmap,
    /// COPIED is not as the refcount is.
    Copied,
    /// The refcount is less than there are references.
    TooLow,
    /// There are more references than a refcount of this image can say.
    TooMany,
    /// The refcount is more than there are references: space is wasted.
    Leak,
    /// There is a refcount for what lies beyond the end of the file. Harmless.
    Stray,
}

/// Number of kinds.
const KINDS: usize = ProblemKind::Stray as usize + 1;

impl ProblemKind {
    /// All, in order.
    pub const ALL: [ProblemKind; KINDS] = [
        ProblemKind::Reserved,
        ProblemKind::Unaligned,
        ProblemKind::BeyondFile,
        ProblemKind::Overlap,
        ProblemKind::CopiedCompressed,
        ProblemKind::Compressed,
        ProblemKind::Subclusters,
        ProblemKind::DataOffset,
        ProblemKind::Snapshot,
        ProblemKind::Bitmap,
        ProblemKind::Copied,
        ProblemKind::TooLow,
        ProblemKind::TooMany,
        ProblemKind::Leak,
        ProblemKind::Stray,
    ];

    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            ProblemKind::Reserved => "reserved bits are set",
            ProblemKind::Unaligned => "not on a cluster boundary",
            ProblemKind::BeyondFile => "beyond the end of the file",
            ProblemKind::Overlap => "in use for something else",
            ProblemKind::CopiedCompressed => "COPIED is set for compressed data",
            ProblemKind::Compressed => "compressed, in an image with a data file",
            ProblemKind::Subclusters => "contradictory subclusters",
            ProblemKind::DataOffset => "not where the data file has it",
            ProblemKind::Snapshot => "not a snapshot that can be",
            ProblemKind::Bitmap => "not a bitmap that can be",
            ProblemKind::Copied => "COPIED does not agree with the refcount",
            ProblemKind::TooLow => "too low",
            ProblemKind::TooMany => "more references than a refcount can say",
            ProblemKind::Leak => "leaked",
            ProblemKind::Stray => "beyond the end of the file",
        }
    }

    /// Whether data may be lost of it, sooner or later.
    pub fn is_error(self) -> bool {
        !matches!(self, ProblemKind::Leak | ProblemKind::Stray)
    }
}

/// Something that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What is there: an entry, a refcount.
    pub value: u64,
    /// What is wrong with it.
    pub kind: ProblemKind,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { place, value, kind } = self;
        match place {
            Place::Area(_) if *value == 0 => write!(f, "{place}: {}", kind.describe()),
            Place::Refcounts { references, .. } => {
                write!(f, "{place}: {value}, and {references} references: {}", kind.describe())
            }
            _ => write!(f, "{place} is {value:#x}: {}", kind.describe()),
        }
    }
}

/// What a check has found.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// The image's header.
    pub header: Header,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// End of the last cluster in use, or with a refcount, in bytes.
    pub image_end: u64,
    /// Clusters of the disk.
    pub total_clusters: u64,
    /// Entries of the active tables that refer to data, rightly or not.
    pub allocated_clusters: u64,
    /// Of these, those that do not follow the one before in the same table, and all that are compressed.
    pub fragmented_clusters: u64,
    /// Of these, those that are compressed.
    pub compressed_clusters: u64,
    /// Clusters with a refcount that is too high.
    pub leaked_clusters: u64,
    /// The same in bytes.
    pub leaked_bytes: u64,
    /// The first [`PROBLEMS_MAX`] problems.
    pub problems: Vec<Problem>,
    /// How many there are of each kind.
    counts: [u64; KINDS],
}

impl CheckReport {
    pub(super) fn new(header: Header, file_bytes: u64) -> CheckReport {
        CheckReport {
            total_clusters: header.disk_clusters(),
            header,
            file_bytes,
            image_end: 0,
            allocated_clusters: 0,
            fragmented_clusters: 0,
            compressed_clusters: 0,
            leaked_clusters: 0,
            leaked_bytes: 0,
            problems: Vec::new(),
            counts: [0; KINDS],
        }
    }

    /// Takes note of a problem that is there `times` times, as of the same value in as many places.
    pub(super) fn add(&mut self, times: u64, problem: Problem) {
        let count = &mut self.counts[problem.kind as usize];
        *count = count.saturating_add(times);
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    /// Problems of one kind.
    pub fn count(&self, kind: ProblemKind) -> u64 {
        self.counts[kind as usize]
    }

    /// What contradicts the specification, and may cost data.
    pub fn errors(&self) -> u64 {
        let errors = ProblemKind::ALL.into_iter().filter(|kind| kind.is_error());
        errors.fold(0, |sum, kind| sum.saturating_add(self.count(kind)))
    }

    /// The image was not closed.
    pub fn is_dirty(&self) -> bool {
        self.header.has(DIRTY)
    }

    /// Somebody found the image corrupt, and marked it so.
    pub fn is_marked_corrupt(&self) -> bool {
        self.header.has(CORRUPT)
    }

    /// Nothing is wrong, nothing wasted, nothing to be done.
    pub fn is_clean(&self) -> bool {
        self.counts.iter().all(|count| *count == 0) && !self.is_dirty() && !self.is_marked_corrupt()
    }
}
