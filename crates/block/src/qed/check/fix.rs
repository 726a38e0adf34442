//! What a repair changes, one thing at a time and in words.

use super::{Entry, Problem, ProblemKind};
use std::fmt;

/// Something that can be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// The L1 table.
    L1,
    /// The L2 table with this number.
    Table(u64),
    /// The data of this cluster of the disk.
    Data(u64),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::L1 => f.write_str("L1 table"),
            Object::Table(table) => write!(f, "L2 table {table}"),
            Object::Data(cluster) => write!(f, "data of cluster {cluster}"),
        }
    }
}

/// One change of an image. Offsets and lengths are bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fix {
    /// The file is made longer, to hold the whole of what it cuts now.
    Lengthen {
        /// Its length.
        from: u64,
        /// Its length then.
        to: u64,
    },
    /// An entry becomes 0.
    Drop(Problem),
    /// What an entry refers to is copied, and the entry refers to the copy.
    Copy {
        /// Which.
        entry: Entry,
        /// What it refers to.
        from: u64,
        /// Where the copy will be.
        to: u64,
    },
    /// Something is moved towards the start of the file, or out of the way of what will be.
    Move {
        /// What.
        what: Object,
        /// Its place.
        from: u64,
        /// Its place then.
        to: u64,
    },
    /// The unused end of the file is cut off.
    Truncate {
        /// Its length.
        from: u64,
        /// Its length then.
        to: u64,
    },
    /// The image is marked as one that needs no check.
    MarkClean,
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fix::Lengthen { from, to } => write!(f, "file length: {from:#x} -> {to:#x}"),
            Fix::Drop(Problem { entry, value, kind }) => {
                let lost = match (kind, entry) {
                    (ProblemKind::BeyondDisk, _) => "nothing is lost",
                    (_, Entry::L1(_)) => "all data of this table is lost",
                    (_, Entry::L2(_)) => "the data of this cluster is lost",
                };
                write!(f, "{entry}: {value:#x} -> 0x0 ({}; {lost})", kind.describe())
            }
            Fix::Copy { entry, from, to } => {
                write!(f, "{entry}: {from:#x} -> {to:#x} (in use already; a copy of its own)")
            }
            Fix::Move { what, from, to } => write!(f, "{what}: {from:#x} -> {to:#x} (moved)"),
            Fix::Truncate { from, to } => {
                write!(f, "file length: {from:#x} -> {to:#x} (nothing is there)")
            }
            Fix::MarkClean => f.write_str("header: needs no check"),
        }
    }
}

/// What a repair would do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In this order.
    pub fixes: Vec<Fix>,
    /// That is all. If not, what comes next depends on what is found when this is done: leaked clusters can be reclaimed only in an image without
    /// errors, a table copied refers to clusters that need copies too, and a plan is of bounded length.
    pub is_complete: bool,
}
