//! The block graph: images, the host files under them, and the requests that pass through.
//!
//! ```text
//!   Image         an opened, locked file and what it is: made once, on the control thread; Send
//!     | attach    per I/O thread
//!     v
//!   BlockNode     a format: raw, or one with tables (`qed`), over which `mapped` moves the data
//!     v
//!   HostNode      the protocol: moves data between memory and one host file, at the alignment the host asks for
//! ```
//!
//! A request for one contiguous, aligned piece does not come here beyond [`BlockNode::map_cached`]: its export submits it to the engine at
//! once. Everything else is an `async fn` of [`BlockNode`], run as a task of the I/O thread.
//!
//! Invariants:
//!
//! - a disk's size is whole sectors; a request beyond it never reaches the engine;
//! - after a failed sync the image takes no more writes and promises nothing ([`Health`]);
//! - a format with tables lives on one I/O thread, so its metadata has one writer;
//! - an image open for writing is locked against every other user, QEMU included.

#![forbid(unsafe_code)]

mod cache;
mod chain;
mod check;
mod commits;
pub mod crypt;
mod error;
pub mod filters;
mod format;
mod host;
mod image;
pub mod in_place;
mod loads;
mod mapped;
mod new_file;
mod node;
mod offset;
mod pins;
#[cfg(test)]
mod power_cut;
pub mod qcow2;
pub mod qed;
#[cfg(test)]
mod qemu_tool;
mod room;
mod slices;
mod space;
mod tend;
#[cfg(test)]
mod testing;
mod unlock;
mod used;

pub use cache::{CacheMode, DetectZeroes, DiscardMode, ParseModeError};
pub use chain::{BackingName, Description};
pub use error::{Error, ErrorKind, Result};
pub use filters::Filters;
pub use format::Format;
pub use host::HostNode;
pub use image::{BackingFiles, CreateOptions, Health, Image, Locking, OpenOptions};
pub use mapped::Encryption;
pub use node::{BlockNode, Extent, ExtentKind, NodeOptions, NodeParts, TABLE_CACHE_BYTES};
pub use offset::{DiskOffset, FileOffset, SECTOR};
pub use pins::Pin;
pub use unlock::Secret;

#[cfg(test)]
mod tests;
