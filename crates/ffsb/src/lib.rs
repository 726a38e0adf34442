//! FFSB workloads over files and virtual disks: what a disk does, what it costs, and how far it is from bare metal.
//!
//! ```text
//!  Profile (a file, or a scenario by name)
//!     |  run: threads pick operations by weight
//!     v
//!  Files: a directory, or an extent layout on a disk        ->  Outcome (one run)
//!                                                                  |  grid: servers, repetitions, baseline
//!                                                                  v
//!                                                               Report -> table, CSV, JSON, HTML
//! ```

#![forbid(unsafe_code)]

mod clock;
pub mod disk;
mod files;
pub mod grid;
pub mod guest;
pub mod outcome;
pub mod profile;
pub mod report;
pub mod run;
pub mod server;
pub mod text;
mod verify;
