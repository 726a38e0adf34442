//! The bytes of a vhost-user message, and what they ask for.
//!
//! ```text
//! byte 0         4          8         12
//!      +---------+----------+---------+------------------+
//!      | request | flags    | size    | payload          |     + file descriptors, beside the bytes
//!      | u32     | u32      | u32     | `size` bytes     |
//!      +---------+----------+---------+------------------+
//!                  bits 0-1: version, 1
//!                  bit 2:    this is a reply
//!                  bit 3:    an acknowledgement is wanted (`NEED_REPLY`)
//! ```
//!
//! Specification: QEMU `docs/interop/vhost-user.rst`, "Message Specification" and "Front-end message types". It speaks of the
//! machine's byte order; all machines we run on are little-endian, and the code says so.
//!
//! A [`Request`] exists only if its payload had exactly the size its kind has, and came with exactly the file descriptors
//! that belong to it. Whether its values make sense together with what was said before is the session's question.

use super::error::Error;
use guest_mem::{GuestAddr, RegionSpec};
use std::os::fd::OwnedFd;

/// Longest payload that is received, in bytes. The longest one with a meaning is a memory table: 8 + 32 * 32.
pub const PAYLOAD_MAX: usize = 4096;

/// File descriptors that the kernel passes with one message at most (`SCM_MAX_FD`).
pub const FDS_MAX: usize = 253;

/// Regions in one memory table. The specification draws 8, front ends built on the `vhost` crate send up to 32.
pub const TABLE_REGIONS_MAX: u32 = 32;

/// End of the configuration space that messages can reach (`VHOST_USER_MAX_CONFIG_SIZE` of QEMU).
pub const CONFIG_SPACE_MAX: u32 = 256;

/// Numbers of the requests a front end sends.
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod code {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
}

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`, a request of ours to the front end.
pub const BACKEND_CONFIG_CHANGE: u32 = 2;

/// All requests that are implemented. Logging, in-flight tracking and device state will join here.
const NAMES: [(u32, &str); 25] = [
    (code::GET_FEATURES, "GET_FEATURES"),
    (code::SET_FEATURES, "SET_FEATURES"),
    (code::SET_OWNER, "SET_OWNER"),
    (code::RESET_OWNER, "RESET_OWNER"),
    (code::SET_MEM_TABLE, "SET_MEM_TABLE"),
    (code::SET_VRING_NUM, "SET_VRING_NUM"),
    (code::SET_VRING_ADDR, "SET_VRING_ADDR"),
    (code::SET_VRING_BASE, "SET_VRING_BASE"),
    (code::GET_VRING_BASE, "GET_VRING_BASE"),
    (code::SET_VRING_KICK, "SET_VRING_KICK"),
    (code::SET_VRING_CALL, "SET_VRING_CALL"),
    (code::SET_VRING_ERR, "SET_VRING_ERR"),
    (code::GET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES"),
    (code::SET_PROTOCOL_FEATURES, "SET_PROTOCOL_FEATURES"),
    (code::GET_QUEUE_NUM, "GET_QUEUE_NUM"),
    (code::SET_VRING_ENABLE, "SET_VRING_ENABLE"),
    (code::SET_BACKEND_REQ_FD, "SET_BACKEND_REQ_FD"),
    (code::GET_CONFIG, "GET_CONFIG"),
    (code::SET_CONFIG, "SET_CONFIG"),
    (code::RESET_DEVICE, "RESET_DEVICE"),
    (code::GET_MAX_MEM_SLOTS, "GET_MAX_MEM_SLOTS"),
    (code::ADD_MEM_REG, "ADD_MEM_REG"),
    (code::REM_MEM_REG, "REM_MEM_REG"),
    (code::SET_STATUS, "SET_STATUS"),
    (code::GET_STATUS, "GET_STATUS"),
];

/// A request's name, for people.
pub fn name(code: u32) -> String {
    match NAMES.iter().find(|(known, _)| *known == code) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("request {code}"),
    }
}

/// The reply to this request is its own; it cannot carry an acknowledgement.
pub fn has_reply(code: u32) -> bool {
    matches!(
        code,
        code::GET_FEATURES
            | code::GET_PROTOCOL_FEATURES
            | code::GET_VRING_BASE
            | code::GET_QUEUE_NUM
            | code::GET_CONFIG
            | code::GET_MAX_MEM_SLOTS
            | code::GET_STATUS
    )
}

bitflags::bitflags! {
    /// Extensions of the protocol (`VHOST_USER_PROTOCOL_F_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ProtocolFeatures: u64 {
        /// Number of queues can be asked for.
        const MQ = 1 << 0;
        /// Dirty log in shared memory. Not offered yet.
        const LOG_SHMFD = 1 << 1;
        /// Acknowledgements.
        const REPLY_ACK = 1 << 3;
        /// We may send requests to the front end.
        const BACKEND_REQ = 1 << 5;
        /// The configuration space is ours.
        const CONFIG = 1 << 9;
        /// In-flight tracking in shared memory. Not offered yet.
        const INFLIGHT_SHMFD = 1 << 12;
        /// The device can be reset by a message.
        const RESET_DEVICE = 1 << 13;
        /// Memory regions come and go one by one.
        const CONFIGURE_MEM_SLOTS = 1 << 15;
        /// The virtio device status.
        const STATUS = 1 << 16;
        /// State of the device for migration. Not offered yet.
        const DEVICE_STATE = 1 << 19;
    }
}

impl ProtocolFeatures {
    /// What this back end implements.
    pub const OFFERED: ProtocolFeatures = ProtocolFeatures::MQ
        .union(ProtocolFeatures::REPLY_ACK)
        .union(ProtocolFeatures::BACKEND_REQ)
        .union(ProtocolFeatures::CONFIG)
        .union(ProtocolFeatures::RESET_DEVICE)
        .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
        .union(ProtocolFeatures::STATUS);
}

const VERSION: u32 = 1;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// A checked message header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is asked for, one of [`code`] or not.
    pub request: u32,
    /// The message is a reply.
    pub reply: bool,
    /// An acknowledgement is wanted.
    pub need_reply: bool,
    /// Length of the payload in bytes, at most [`PAYLOAD_MAX`].
    pub size: usize,
}

impl Header {
    /// Bytes of a header.
    pub const LEN: usize = 12;

    /// Checks a header. `Protocol` if it is none: then it is unknown where the next message starts.
    pub fn parse(raw: &[u8; Header::LEN]) -> Result<Header, Error> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *raw;
        let request = u32::from_le_bytes([a, b, c, d]);
        let flags = u32::from_le_bytes([e, f, g, h]);
        let size = u32::from_le_bytes([i, j, k, l]);
        let expected = VERSION | (flags & (FLAG_REPLY | FLAG_NEED_REPLY));
        if flags != expected {
            return Err(Error::protocol(format!(
                "header of {}: flags {flags:#x} are not those of version 1",
                name(request)
            )));
        }
        let (reply, need_reply) = (flags & FLAG_REPLY != 0, flags & FLAG_NEED_REPLY != 0);
        match usize::try_from(size) {
            Ok(size) if size <= PAYLOAD_MAX => Ok(Header { request, reply, need_reply, size }),
            _ => Err(Error::protocol(format!(
                "header of {}: payload of {size} bytes is longer than {PAYLOAD_MAX}",
                name(request)
            ))),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; Header::LEN] {
        let reply = if self.reply { FLAG_REPLY } else { 0 };
        let need_reply = if self.need_reply { FLAG_NEED_REPLY } else { 0 };
        let size = u32::try_from(self.size).expect("payloads are at most PAYLOAD_MAX bytes");
        let [a, b, c, d] = self.request.to_le_bytes();
        let [e, f, g, h] = (VERSION | reply | need_reply).to_le_bytes();
        let [i, j, k, l] = size.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }
}

/// The bytes of a reply to `request`.
pub fn encode_reply(request: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header { request, reply: true, need_reply: false, size: payload.len() };
    [&header.encode()[..], payload].concat()
}

/// The fields of a message, little-endian, one after the other.
#[derive(Debug, Default)]
pub struct Payload(Vec<u8>);

impl Payload {
    /// No fields yet.
    pub fn new() -> Payload {
        Payload::default()
    }

    /// Appends a 32-bit field.
    pub fn u32(mut self, value: u32) -> Payload {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends a 64-bit field.
    pub fn u64(mut self, value: u64) -> Payload {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends bytes as they are.
    pub fn bytes(mut self, bytes: &[u8]) -> Payload {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends a memory region description.
    pub fn region(self, spec: &RegionSpec) -> Payload {
        self.u64(spec.guest_addr.0).u64(spec.len).u64(spec.user_addr).u64(spec.file_offset)
    }

    /// The bytes.
    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Addresses of a ring's areas in the front end's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddrs {
    /// The descriptor table.
    pub desc: u64,
    /// The used ring.
    pub used: u64,
    /// The avail ring.
    pub avail: u64,
}

/// An event's file descriptor for a ring; `None` stands for "poll instead".
#[derive(Debug)]
pub struct RingFd {
    /// The ring.
    pub index: u16,
    /// The descriptor, of any kind so far.
    pub fd: Option<OwnedFd>,
}

/// What a front end asks for: bytes in, proof out.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<(RegionSpec, OwnedFd)>),
    SetVringNum { index: u16, size: u32 },
    SetVringAddr { index: u16, log: bool, addrs: RingAddrs },
    SetVringBase { index: u16, base: u32 },
    GetVringBase { index: u16 },
    SetVringKick(RingFd),
    SetVringCall(RingFd),
    SetVringErr(RingFd),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable { index: u16, enabled: bool },
    SetBackendReqFd(OwnedFd),
    GetConfig { offset: u32, size: u32, flags: u32 },
    SetConfig { offset: u32, data: Vec<u8> },
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(RegionSpec, OwnedFd),
    RemMemReg(RegionSpec),
    SetStatus(u8),
    GetStatus,
}

impl Request {
    /// Checks a whole message. `Refused` if it is not a request we know, in exactly the form it has.
    pub fn parse(code: u32, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Request, Error> {
        let mut fields = Fields(payload);
        let mut fds = Fds(fds.into_iter());
        let request = match code {
            code::GET_FEATURES => Request::GetFeatures,
            code::SET_FEATURES => Request::SetFeatures(fields.u64()?),
            code::SET_OWNER => Request::SetOwner,
            code::RESET_OWNER => Request::ResetOwner,
            code::SET_MEM_TABLE => Request::SetMemTable(fields.mem_table(&mut fds)?),
            code::SET_VRING_NUM => {
                Request::SetVringNum { index: fields.index()?, size: fields.u32()? }
            }
            code::SET_VRING_ADDR => fields.vring_addr()?,
            code::SET_VRING_BASE => {
                Request::SetVringBase { index: fields.index()?, base: fields.u32()? }
            }
            code::GET_VRING_BASE => {
                let index = fields.index()?;
                let _unused = fields.u32()?;
                Request::GetVringBase { index }
            }
            code::SET_VRING_KICK => Request::SetVringKick(fields.ring_fd(&mut fds)?),
            code::SET_VRING_CALL => Request::SetVringCall(fields.ring_fd(&mut fds)?),
            code::SET_VRING_ERR => Request::SetVringErr(fields.ring_fd(&mut fds)?),
            code::GET_PROTOCOL_FEATURES => Request::GetProtocolFeatures,
            code::SET_PROTOCOL_FEATURES => Request::SetProtocolFeatures(fields.u64()?),
            code::GET_QUEUE_NUM => Request::GetQueueNum,
            code::SET_VRING_ENABLE => fields.vring_enable()?,
            code::SET_BACKEND_REQ_FD => Request::SetBackendReqFd(fds.one()?),
            code::GET_CONFIG => {
                let (offset, size, flags, _) = fields.config()?;
                Request::GetConfig { offset, size, flags }
            }
            code::SET_CONFIG => {
                let (offset, _, _, data) = fields.config()?;
                Request::SetConfig { offset, data }
            }
            code::RESET_DEVICE => Request::ResetDevice,
            code::GET_MAX_MEM_SLOTS => Request::GetMaxMemSlots,
            code::ADD_MEM_REG => Request::AddMemReg(fields.single_region()?, fds.one()?),
            code::REM_MEM_REG => {
                // Some front ends send the region's file along; it is closed unused, as the specification allows.
                drop(fds.0.next());
                Request::RemMemReg(fields.single_region()?)
            }
            code::SET_STATUS => Request::SetStatus(fields.status()?),
            code::GET_STATUS => Request::GetStatus,
            _ => return Err(Error::refused("the request is not known here")),
        };
        fields.end()?;
        fds.end()?;
        Ok(request)
    }
}

/// The file descriptors that came with a message. What is left over is closed on every path.
struct Fds(std::vec::IntoIter<OwnedFd>);

impl Fds {
    fn one(&mut self) -> Result<OwnedFd, Error> {
        self.0.next().ok_or_else(|| Error::refused("a file descriptor is missing"))
    }

    fn end(self) -> Result<(), Error> {
        match self.0.len() {
            0 => Ok(()),
            surplus => {
                Err(Error::refused(format!("{surplus} file descriptors more than expected")))
            }
        }
    }
}

/// The fields of a payload not yet read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (field, rest) =
            self.0.split_first_chunk().ok_or_else(|| Error::refused("the payload is too short"))?;
        self.0 = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Error> {
        self.take().map(u64::from_le_bytes)
    }

    fn end(&self) -> Result<(), Error> {
        match self.0.len() {
            0 => Ok(()),
            surplus => Err(Error::refused(format!("the payload is {surplus} bytes too long"))),
        }
    }

    /// A ring's index. That it fits 16 bits is checked here, once, so that it is never cut off later.
    fn index(&mut self) -> Result<u16, Error> {
        let index = self.u32()?;
        u16::try_from(index).map_err(|_| Error::refused(format!("there is no ring {index}")))
    }

    fn region(&mut self) -> Result<RegionSpec, Error> {
        let guest_addr = GuestAddr(self.u64()?);
        let len = self.u64()?;
        let user_addr = self.u64()?;
        Ok(RegionSpec { guest_addr, len, user_addr, file_offset: self.u64()? })
    }

    fn single_region(&mut self) -> Result<RegionSpec, Error> {
        let _padding = self.u64()?;
        self.region()
    }

    fn mem_table(&mut self, fds: &mut Fds) -> Result<Vec<(RegionSpec, OwnedFd)>, Error> {
        let count = self.u32()?;
        let _padding = self.u32()?;
        if !(1..=TABLE_REGIONS_MAX).contains(&count) {
            return Err(Error::refused(format!(
                "a table of {count} regions is not one of 1 to {TABLE_REGIONS_MAX}"
            )));
        }
        (0..count).map(|_| Ok((self.region()?, fds.one()?))).collect()
    }

    fn vring_addr(&mut self) -> Result<Request, Error> {
        let index = self.index()?;
        let flags = self.u32()?;
        if flags > 1 {
            return Err(Error::refused(format!("unknown vring flags {flags:#x}")));
        }
        let (desc, used, avail) = (self.u64()?, self.u64()?, self.u64()?);
        let _log_addr = self.u64()?;
        let addrs = RingAddrs { desc, used, avail };
        Ok(Request::SetVringAddr { index, log: flags == 1, addrs })
    }

    fn vring_enable(&mut self) -> Result<Request, Error> {
        let index = self.index()?;
        match self.u32()? {
            0 => Ok(Request::SetVringEnable { index, enabled: false }),
            1 => Ok(Request::SetVringEnable { index, enabled: true }),
            other => Err(Error::refused(format!("neither 0 nor 1: {other}"))),
        }
    }

    /// Bits 0 to 7: the ring. Bit 8: no file descriptor comes with this message.
    fn ring_fd(&mut self, fds: &mut Fds) -> Result<RingFd, Error> {
        let value = self.u64()?;
        let [index, upper @ ..] = value.to_le_bytes();
        let no_fd = match upper {
            [0, 0, 0, 0, 0, 0, 0] => false,
            [1, 0, 0, 0, 0, 0, 0] => true,
            _ => return Err(Error::refused(format!("unknown bits in {value:#x}"))),
        };
        let fd = if no_fd { None } else { Some(fds.one()?) };
        Ok(RingFd { index: u16::from(index), fd })
    }

    fn config(&mut self) -> Result<(u32, u32, u32, Vec<u8>), Error> {
        let (offset, size, flags) = (self.u32()?, self.u32()?, self.u32()?);
        let end = offset.checked_add(size).filter(|end| *end <= CONFIG_SPACE_MAX);
        if size == 0 || end.is_none() {
            return Err(Error::refused(format!(
                "{size} bytes at offset {offset:#x} are not in the configuration space"
            )));
        }
        // 0: a field the driver may write. 1: the destination of a migration. The device judges both alike.
        if flags > 1 {
            return Err(Error::refused(format!("unknown configuration flags {flags:#x}")));
        }
        let data = std::mem::take(&mut self.0);
        if usize::try_from(size) != Ok(data.len()) {
            return Err(Error::refused(format!("{} bytes of data instead of {size}", data.len())));
        }
        Ok((offset, size, flags, data.to_vec()))
    }

    fn status(&mut self) -> Result<u8, Error> {
        let status = self.u64()?;
        u8::try_from(status)
            .map_err(|_| Error::refused(format!("device status {status:#x} is not a byte")))
    }
}
