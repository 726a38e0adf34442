//! A foreign virtio-blk driver on a vhost-user socket: makes load, measures it, and checks the data.
//!
//! The driver is libblkio's (`blkio`), which shares no code with ferroblk: what it measures and verifies here is
//! what a stranger's guest would see. Used by `cargo xtask compare` (through the binary `blk-client`) and by tests.
//!
//! ```text
//!  Device    one connection: feature negotiation, queues, one shared memory region
//!    `- Queue      one virtqueue with `depth` slots; a slot is a buffer and at most one request
//!         |- load    keeps all slots busy, counts and times          (nothing looks at the data)
//!         `- verify  stamps what it writes, compares what it reads   (nothing is timed)
//! ```
//!
//! A queue is used in one of two ways: [`Notify::Interrupt`] sleeps on the completion eventfd as a guest's
//! interrupt handler would, [`Notify::Poll`] looks at the used ring until something is there.
#![allow(
    clippy::disallowed_methods,
    reason = "a client outside the stack: it has its own clock and threads"
)]

mod cpu;
mod device;
mod load;
mod model;
mod rng;
pub mod server;
mod verify;

pub use cpu::process_cpu_ns;
pub use device::{ConnectOptions, Device, Done, Notify, Op, Queue};
pub use load::{Limit, LoadOptions, LoadReport, Rw, run_load};
pub use model::Model;
pub use rng::Rng;
pub use verify::{VerifyOptions, VerifyReport, run_verify, verify_disk};

/// What went wrong, in words for the person who runs the client.
#[derive(Debug)]
pub struct Error(pub String);

impl Error {
    /// An error from what was being done and why it failed.
    pub fn new(doing: impl std::fmt::Display, why: impl std::fmt::Display) -> Error {
        Error(format!("{doing}: {why}"))
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}
