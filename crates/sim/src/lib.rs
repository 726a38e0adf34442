//! Crash testing: every state that a power cut may leave of an image file, judged by somebody who did not write the driver.
//!
//! ```text
//!   a run of a driver on a SimDisk ---.                     .--> qed::check, qcow2::check   tables: sound? marked? leaks?
//!                                      >-- log --> enumerate
//!   a run of QEMU over blklogwrites --'     crash states    `--> model::Promise             data: kept? foreign? misplaced?
//!        (log_writes reads its file)
//! ```
//!
//! The disk model, what a crash may leave of it, is `io_engine::sim`. Nothing here knows a driver's code: the checkers are written
//! from the formats' specifications, and read an image through [`ImageFile`].

#![forbid(unsafe_code)]

mod damage;
pub mod enumerate;
mod file;
pub mod log_writes;
pub mod model;
pub mod qcow2;
pub mod qed;

pub use damage::Damage;
pub use file::ImageFile;
