//! The virtio block device without its I/O: what a request says, what it may say, and how it is answered.
//!
//! ```text
//! DescChain --Request::parse--> Request  what is to be done: all validation is behind us
//!                       |   `-> Pending  the answer that is owed --finish(Status)--> UsedElem
//!                       `-----> BadChain no place for an answer: the device needs a reset
//!
//! DiskInfo --ConfigSpace::new--> what the driver reads of the disk
//!        `--Limits::new--------> the same numbers, as rules that requests must keep
//! ```
//!
//! Specification: VIRTIO 1.3, section 5.2. Every limit that the configuration space announces is enforced, so that what comes out
//! of [`Request::parse`] lies on the disk and fits what the layers below were promised.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)
)]

mod config;
mod features;
mod limits;
mod pending;
mod request;

pub use config::{BadConfigWrite, ConfigSpace, DiscardInfo, DiskInfo, WriteZeroesInfo};
pub use features::Features;
pub use limits::{Limits, RANGES_MAX, RangeLimits};
pub use pending::{Pending, Status, UsedElem};
pub use request::{BadChain, ID_BYTES, Range, Request};

/// The unit of sector numbers, whatever the disk's block size.
pub const SECTOR_BYTES: u64 = 512;

#[cfg(test)]
mod tests;
