//! Exports: a disk offered to somebody outside this process.
//!
//! ```text
//!  blk          a virtio block device over an image: queues on I/O threads
//!  histogram    durations, counted by one thread and read by others
//!  server       one listening socket, one client at a time
//!  vhost_user   the protocol between a VMM and its disk: messages, session, back-end channel
//! ```

#![forbid(unsafe_code)]

pub mod blk;
pub mod histogram;
pub mod server;
pub mod vhost_user;
