//! I/O engines: what carries a request's data between memory and the host's files.
//!
//! ```text
//!   submit(Op, Token)            reap(&mut Vec<Completion>, Wait)
//!         |                               ^
//!         v                               |
//!    op slab: owns file and buffer until the kernel is done with both
//!         |                               ^
//!    OpState::next  --SysOp-->  io_uring | Linux AIO | thread pool | simulator
//!    (short transfers, EINTR, EAGAIN, fallocate fall-backs, end of file: once, for all engines)
//! ```
//!
//! An engine belongs to one thread. It is not async: an [`Op`] goes in with a [`Token`], a [`Completion`] with the same token
//! comes out later, in any order. The engine is also where its thread sleeps: file descriptors to be woken by are given to
//! [`IoEngine::watch`].
//!
//! What is no more than a copy from or to the page cache is done inside `submit` (see `inline.rs`); its completion still comes by
//! `reap`.
//!
//! Invariants:
//!
//! - each submitted op completes exactly once, and gives its buffer back with the completion;
//! - file and buffer of an op stay alive until the completion, even if the engine is dropped (it waits);
//! - a completed op is all done or failed: no caller sees a short transfer. A read beyond the end of the file gives zeroes.

mod aio;
mod buf;
mod engine;
mod file;
mod inline;
mod lock;
mod offload;
mod op;
mod pool;
mod probe;
mod rng;
pub mod sim;
mod slab;
mod sleep;
mod state;
mod sys;
mod threads;
mod uring;
mod watch;

pub use buf::AlignedBuf;
pub use engine::{EngineKind, IoEngine};
pub use file::{Facts, FileRef, HostFile};
pub use lock::lock_image;
pub use offload::{copy_range, share_range};
pub use op::{Buf, Completion, Op, OpKind, Reaped, Token, Wait};
pub use rng::Rng;
pub use sim::SimDisk;
pub use sys::{Counters, SysKind};
pub use uring::{UringSupport, uring_support};
pub use watch::WatchId;
