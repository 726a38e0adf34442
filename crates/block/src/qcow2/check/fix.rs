//! What a repair changes, one thing at a time and in words.

use super::{Place, ProblemKind};
use std::fmt;

/// A change that a repair makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fix {
    /// Feature bits are cleared that nobody may leave set who writes and does not know them.
    Autoclear {
        /// The bits.
        bits: u64,
    },
    /// The bitmaps are declared to be wrong: they are of no use any more.
    DropBitmaps,
    /// An entry of a table.
    Entry {
        /// Which.
        place: Place,
        /// What it is.
        from: u64,
        /// What it will be.
        to: u64,
        /// With subclusters, the second half too: what it is and will be.
        subclusters: Option<(u64, u64)>,
        /// Why.
        kind: ProblemKind,
        /// What it refers to is given up.
        is_lost: bool,
    },
    /// All refcounts are written anew, to where nothing is.
    Rebuild {
        /// Where the new refcount table will be.
        at: u64,
        /// Clusters of the table and its blocks.
        clusters: u64,
    },
    /// Refcounts are set to the number of references.
    Refcounts {
        /// Of this cluster of the file,
        first: u64,
        /// and of those after it: how many in all.
        clusters: u64,
        /// What they are.
        from: u64,
        /// What they will be.
        to: u64,
    },
    /// The COPIED flag of an entry is set or cleared.
    Copied {
        /// Which.
        place: Place,
        /// What it is.
        from: u64,
        /// What it will be.
        to: u64,
    },
    /// The image is not marked dirty or corrupt any more.
    MarkClean,
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Fix::Autoclear { bits } => {
                write!(f, "header: autoclear features {bits:#x} are cleared (not known)")
            }
            Fix::DropBitmaps => {
                f.write_str("header: bitmaps are marked as wrong (all bitmaps are lost)")
            }
            Fix::Entry { place, from, to, subclusters, kind, is_lost } => {
                write!(f, "{place}: {from:#x} -> {to:#x}")?;
                if let Some((from, to)) = subclusters {
                    write!(f, ", subclusters {from:#x} -> {to:#x}")?;
                }
                let lost = match (is_lost, place) {
                    (false, _) => "",
                    (true, Place::L1 { .. }) => "; all data of this table is lost",
                    (true, _) => "; the data of this cluster is lost",
                };
                write!(f, " ({}{lost})", kind.describe())
            }
            Fix::Rebuild { at, clusters } => {
                write!(f, "refcounts: {clusters} clusters of new ones at {at:#x}")
            }
            Fix::Refcounts { first, clusters, from, to } => {
                let place = Place::Refcounts { first, clusters, references: to };
                write!(f, "{place}: {from} -> {to}")
            }
            Fix::Copied { place, from, to } => write!(f, "{place}: {from:#x} -> {to:#x} (COPIED)"),
            Fix::MarkClean => f.write_str("header: neither dirty nor corrupt"),
        }
    }
}

/// What a repair would do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In this order.
    pub fixes: Vec<Fix>,
    /// That is all. If not, there is more of the same kind: a plan is of bounded length.
    pub is_complete: bool,
}
