//! vhost-user: how a VMM (the front end) hands a virtual disk's queues and memory to us (the back end).
//!
//! ```text
//!  unix socket                                                       our side of it
//!  -----------                                                       --------------
//!  bytes + fds --Connection--> Message --Request::parse--> Request --Session--> Device
//!       ^                                                     |         |
//!       `------------ reply, or acknowledgement --------------+---------'
//!  back-end channel <--Channel-- "the configuration changed"
//! ```
//!
//! Specification: QEMU `docs/interop/vhost-user.rst`.
//!
//! The message layer is our own. The `vhost` crate (0.18) dispatches neither the device status nor the messages that
//! in-flight tracking needs, and a server for untrusted front ends wants three things that a general library leaves to its
//! user: exact sizes and file descriptor counts, a deadline on everything a peer can delay, and one rule about which
//! mistakes end a connection.
//!
//! That rule, see [`ErrorKind`]: a message that was received whole but asks for something impossible is *refused*. If the
//! front end asked for an acknowledgement it gets a negative one and the session goes on; otherwise it could not learn of the
//! refusal, so the session ends. What cannot be answered in step (bad header, fds cut off, a message that stops half-way)
//! always ends it.
//!
//! Invariants:
//!
//! - every file descriptor received is owned from the moment it arrives, so no error path leaks one;
//! - the front end is hostile: no panic, no allocation beyond [`message::PAYLOAD_MAX`] and [`message::FDS_MAX`] per message;
//! - a ring is started only with a configuration that was checked against the memory it is started with;
//! - a session's end, however it comes, stops all rings ([`Device::end_session`]).

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

mod channel;
mod connection;
mod device;
mod error;
mod eventfd;
pub mod frontend;
pub mod message;
mod ring;
mod session;

pub use channel::{Channel, Sent};
pub use connection::{Connection, Message, TIME_LIMIT};
pub(crate) use connection::{now, wait_for};
pub use device::{Device, QueueStart};
pub use error::{Error, ErrorKind};
pub use message::ProtocolFeatures;
pub use session::{MEM_SLOTS_MAX, Session};

/// Virtio and vhost feature bits that this layer itself looks at.
pub mod feature {
    /// `VHOST_F_LOG_ALL`: dirty logging. Not offered as long as `LOG_SHMFD` is not.
    pub const LOG_ALL: u64 = 1 << 26;
    /// `VIRTIO_RING_F_INDIRECT_DESC`
    pub const RING_INDIRECT: u64 = 1 << 28;
    /// `VIRTIO_RING_F_EVENT_IDX`
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// `VHOST_USER_F_PROTOCOL_FEATURES`: a bit that no virtio device uses, borrowed by vhost-user for itself.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// `VIRTIO_F_VERSION_1`
    pub const VERSION_1: u64 = 1 << 32;
    /// `VIRTIO_F_IOMMU_PLATFORM`: ring addresses would need an IOTLB, which we do not have.
    pub const IOMMU_PLATFORM: u64 = 1 << 33;
}
