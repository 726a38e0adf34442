//! The block graph: images, the host files under them, and the requests that pass through.
//!
//! ```text
//!   Image         an opened, locked file and what it is: made once, on the control thread; Send
//!     | attach    per I/O thread
//!     v
//!   BlockNode     a format (raw; qcow2 and QED later): says where data is
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
//! - an image open for writing is locked against every other user, QEMU included.

#![forbid(unsafe_code)]

mod cache;
mod error;
mod host;
mod image;
mod node;
mod offset;

pub use cache::{CacheMode, DetectZeroes, DiscardMode, ParseModeError};
pub use error::{Error, ErrorKind, Result};
pub use host::HostNode;
pub use image::{Health, Image, OpenOptions};
pub use node::{BlockNode, Extent, ExtentKind};
pub use offset::{DiskOffset, FileOffset, SECTOR};

#[cfg(test)]
mod tests;
