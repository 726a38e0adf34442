//! Checking a qcow2 image as a tool does: all references counted, what is wrong, and what it wastes; and mending it.
//!
//! ```text
//!   header --> L1 table, snapshots' L1 tables --> L2 tables --> clusters, compressed sectors     counted, each time that it is referred to
//!          --> refcount table --> refcount blocks                                                counted too, and compared with all counts
//!          --> snapshot table, bitmaps, encryption header
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`. What counts as an error, a leak, allocated and fragmented is what `qemu-img check` counts. We
//! find more: metadata that is in use as something else, a zero flag where there is none, a place in the data file that is not that of the disk,
//! contradictory snapshots. And less often: a table that several L1 entries refer to is read once, and an error in it is one error.
//!
//! Bounded for any image: time and memory by what tables there are in the file, not by what they say; holes in the file are not read.
//! Memory is a byte for each cluster in use, and 24 for each L2 table.
//!
//! | part | what |
//! |---|---|
//! | `entries` | what one entry says, and what it is mended to |
//! | `counts` | references to each cluster |
//! | `survey`, `side` | going over the image |
//! | `refcounts` | stored refcounts |
//! | `read` | reading ahead |
//! | `repair` | mending, and its plan |

mod counts;
mod entries;
mod fix;
mod read;
mod refcounts;
mod repair;
mod report;
mod side;
mod survey;
#[cfg(test)]
mod tests;

pub use crate::check::Level;
pub use fix::{Fix, Plan};
pub use repair::{Outcome, mend_dirty, plan, repair};
pub use report::{Area, CheckReport, Owner, PROBLEMS_MAX, Place, Problem, ProblemKind};

use crate::{HostNode, Result};

/// Checks the image in `host`, which nobody may be writing to. `progress` is told how many L2 tables of how many are done.
///
/// # Errors
///
/// `Corrupt` or `Unsupported` if it has no header that could be trusted, the host's. What is wrong with tables is in the report.
pub async fn check(host: &HostNode, progress: impl FnMut(u64, u64)) -> Result<CheckReport> {
    // Boxed, here and in a repair, so that a task can hold it.
    Ok(Box::pin(survey::survey(host, progress)).await?.report)
}
