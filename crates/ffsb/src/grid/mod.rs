//! The grid: workloads on every combination of device, server, format, cache mode and engine, in one report.
//!
//! ```text
//!  words of --matrix --matrix--> Choices
//!                                   |  plan: subjects, room, baseline; what cannot be is left out, with a remark
//!                                 Plan
//!                                   |  execute: workload by workload, round robin over subjects, back and forth
//!                                sitting: new image, server, file set; one measurement for each number of threads
//!                                   |
//!                                Report
//! ```
//!
//! Everything lives in scratch directories that are removed on every way out, and servers end with their sitting.

mod execute;
pub(crate) mod machine;
mod matrix;
mod plan;
mod sitting;
mod trace;
mod workload;

pub use matrix::Choices;
pub use plan::{Options, Plan, Subject, Timing};
pub use workload::Workload;

use std::fmt;

/// How a disk reaches the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// A raw file of the host, read and written by system calls with the same layout as on every other disk: bare metal.
    Bare,
    /// Files in a directory of the host: bare metal with its file system.
    Directory,
    /// An image behind a vhost-user socket, without a guest.
    VhostUser,
}

impl Device {
    /// Every one.
    pub const ALL: [Device; 3] = [Device::Bare, Device::Directory, Device::VhostUser];

    /// Whether there is an image, and somebody who serves it.
    pub fn has_server(self) -> bool {
        self == Device::VhostUser
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Device::Bare => "bare",
            Device::Directory => "directory",
            Device::VhostUser => "vhost-user",
        })
    }
}

/// Why there is no report, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GridError {
    /// What was asked for cannot be done.
    Refused(String),
    /// The stop flag was set.
    Interrupted,
}

impl fmt::Display for GridError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GridError::Refused(why) => f.write_str(why),
            GridError::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for GridError {}

/// How far a grid is.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Workload, subject, threads and repetition under way, for people.
    pub doing: String,
    /// Measurements that are done, and all of them.
    pub done: usize,
    /// See `done`.
    pub total: usize,
    /// Seconds that are left, as far as can be told from what is done.
    pub seconds_left: Option<f64>,
}
