//! A small front end, for tests, the simulation and benchmarks: what a VMM would say, and what it should not.
//!
//! Every request waits for its reply or its acknowledgement, so a refusal is seen where it happened. [`FrontEnd::send`] sends
//! anything to anybody who must not be impressed by it.

use super::connection::{Connection, Message};
use super::error::{Error, ErrorKind};
use super::feature;
use super::message::{
    BACKEND_CONFIG_CHANGE, Header, Payload, ProtocolFeatures, RingAddrs, code, name,
};
use guest_mem::RegionSpec;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use virtqueue::QueueConfig;

/// How long a back end may take to answer: it may have to drain a slow disk first.
const REPLY_LIMIT: Duration = Duration::from_secs(60);

/// A front end's side of a connection.
#[derive(Debug)]
pub struct FrontEnd {
    connection: Connection,
    /// Virtio and vhost features, as acknowledged.
    features: u64,
    protocol: ProtocolFeatures,
}

/// What a ring is set up with.
#[derive(Clone, Copy, Debug)]
pub struct Vring<'a> {
    /// Entries.
    pub size: u16,
    /// Where its areas are, in our own address space.
    pub addrs: RingAddrs,
    /// Avail index to start at.
    pub base: u16,
    /// We signal it when chains are available.
    pub kick: BorrowedFd<'a>,
    /// The back end signals it when chains were used; `None` if we poll.
    pub call: Option<BorrowedFd<'a>>,
}

impl RingAddrs {
    /// The front end's addresses of a queue that lies in `region`.
    pub fn of(config: &QueueConfig, region: &RegionSpec) -> RingAddrs {
        let user =
            |guest: u64| guest.wrapping_sub(region.guest_addr.0).wrapping_add(region.user_addr);
        RingAddrs {
            desc: user(config.desc.0),
            used: user(config.used.0),
            avail: user(config.avail.0),
        }
    }
}

impl FrontEnd {
    /// Connects to the server at `path`.
    pub fn connect(path: &Path) -> Result<FrontEnd, Error> {
        let socket = UnixStream::connect(path)
            .map_err(|e| Error::io(format!("connecting to {}", path.display()), e))?;
        Ok(FrontEnd::new(socket))
    }

    /// Takes over a connected socket.
    pub fn new(socket: UnixStream) -> FrontEnd {
        let protocol = ProtocolFeatures::empty();
        FrontEnd { connection: Connection::new(socket), features: 0, protocol }
    }

    /// Negotiates, in the order QEMU does: of what is offered, the features `wanted` and the protocol features
    /// `wanted_protocol`.
    pub fn handshake(
        &mut self,
        wanted: u64,
        wanted_protocol: ProtocolFeatures,
    ) -> Result<(), Error> {
        let offered = self.get_features()?;
        if offered & feature::PROTOCOL_FEATURES != 0 && !wanted_protocol.is_empty() {
            let protocol = self.get_u64(code::GET_PROTOCOL_FEATURES)? & wanted_protocol.bits();
            self.set_protocol_features(ProtocolFeatures::from_bits_truncate(protocol))?;
        }
        self.request(code::SET_OWNER, &[], &[])?;
        self.set_features(offered & wanted)
    }

    /// Everything the back end offers, and all protocol features this front end knows.
    pub fn handshake_all(&mut self) -> Result<(), Error> {
        self.handshake(u64::MAX, ProtocolFeatures::OFFERED)
    }

    /// The feature bits acknowledged so far.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The protocol features acknowledged so far.
    pub fn protocol_features(&self) -> ProtocolFeatures {
        self.protocol
    }

    /// `GET_FEATURES`
    pub fn get_features(&mut self) -> Result<u64, Error> {
        self.get_u64(code::GET_FEATURES)
    }

    /// `SET_FEATURES`
    pub fn set_features(&mut self, features: u64) -> Result<(), Error> {
        self.request(code::SET_FEATURES, &Payload::new().u64(features).done(), &[])?;
        self.features = features;
        Ok(())
    }

    /// `SET_PROTOCOL_FEATURES`
    pub fn set_protocol_features(&mut self, features: ProtocolFeatures) -> Result<(), Error> {
        let payload = Payload::new().u64(features.bits()).done();
        self.request(code::SET_PROTOCOL_FEATURES, &payload, &[])?;
        self.protocol = features;
        Ok(())
    }

    /// `GET_QUEUE_NUM`
    pub fn queue_num(&mut self) -> Result<u64, Error> {
        self.get_u64(code::GET_QUEUE_NUM)
    }

    /// `SET_MEM_TABLE`
    pub fn set_mem_table(&mut self, regions: &[(RegionSpec, BorrowedFd<'_>)]) -> Result<(), Error> {
        let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
        let head = Payload::new().u32(count).u32(0);
        let payload = regions.iter().fold(head, |payload, (spec, _)| payload.region(spec)).done();
        let fds: Vec<_> = regions.iter().map(|(_, fd)| *fd).collect();
        self.request(code::SET_MEM_TABLE, &payload, &fds)
    }

    /// `ADD_MEM_REG`
    pub fn add_region(&mut self, spec: &RegionSpec, fd: BorrowedFd<'_>) -> Result<(), Error> {
        self.request(code::ADD_MEM_REG, &Payload::new().u64(0).region(spec).done(), &[fd])
    }

    /// `REM_MEM_REG`
    pub fn remove_region(&mut self, spec: &RegionSpec) -> Result<(), Error> {
        self.request(code::REM_MEM_REG, &Payload::new().u64(0).region(spec).done(), &[])
    }

    /// Sets up a ring, starts it, and enables it if that takes a message.
    pub fn start_vring(&mut self, index: u16, vring: &Vring<'_>) -> Result<(), Error> {
        self.vring_state(code::SET_VRING_NUM, index, u32::from(vring.size))?;
        self.vring_state(code::SET_VRING_BASE, index, u32::from(vring.base))?;
        self.set_vring_addr(index, &vring.addrs)?;
        self.vring_fd(code::SET_VRING_CALL, index, vring.call)?;
        self.vring_fd(code::SET_VRING_KICK, index, Some(vring.kick))?;
        match self.features & feature::PROTOCOL_FEATURES {
            0 => Ok(()),
            _ => self.enable_vring(index, true),
        }
    }

    /// `SET_VRING_ENABLE`
    pub fn enable_vring(&mut self, index: u16, enabled: bool) -> Result<(), Error> {
        self.vring_state(code::SET_VRING_ENABLE, index, u32::from(enabled))
    }

    /// `GET_VRING_BASE`: stops the ring, and returns the avail index to go on from.
    pub fn stop_vring(&mut self, index: u16) -> Result<u16, Error> {
        let payload = Payload::new().u32(u32::from(index)).u32(0).done();
        let reply = self.call(code::GET_VRING_BASE, &payload, &[])?;
        match *reply.as_slice() {
            [a, b, 0, 0, c, d, 0, 0] if [a, b] == index.to_le_bytes() => {
                Ok(u16::from_le_bytes([c, d]))
            }
            _ => Err(odd_reply()),
        }
    }

    /// `SET_VRING_ADDR`, without logging.
    pub fn set_vring_addr(&mut self, index: u16, addrs: &RingAddrs) -> Result<(), Error> {
        let payload = Payload::new().u32(u32::from(index)).u32(0);
        let payload = payload.u64(addrs.desc).u64(addrs.used).u64(addrs.avail).u64(0).done();
        self.request(code::SET_VRING_ADDR, &payload, &[])
    }

    /// A request with a vring state: `SET_VRING_NUM`, `SET_VRING_BASE`, `SET_VRING_ENABLE`.
    pub fn vring_state(&mut self, request: u32, index: u16, value: u32) -> Result<(), Error> {
        self.request(request, &Payload::new().u32(u32::from(index)).u32(value).done(), &[])
    }

    /// `SET_VRING_KICK`, `SET_VRING_CALL`, `SET_VRING_ERR`.
    pub fn vring_fd(
        &mut self,
        request: u32,
        index: u16,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let no_fd = if fd.is_some() { 0 } else { 1 << 8 };
        let payload = Payload::new().u64(u64::from(index) | no_fd).done();
        self.request(request, &payload, fd.as_slice())
    }

    /// `GET_CONFIG`. `Refused` if the back end says no.
    pub fn read_config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>, Error> {
        let data = vec![0; usize::try_from(len).unwrap_or(0)];
        let payload = Payload::new().u32(offset).u32(len).u32(0).bytes(&data).done();
        let mut reply = self.call(code::GET_CONFIG, &payload, &[])?;
        match reply.len() {
            0 => Err(Error::refused("GET_CONFIG: the back end said no")),
            len if len == payload.len() => Ok(reply.split_off(12)),
            _ => Err(odd_reply()),
        }
    }

    /// `SET_CONFIG`, as for a field the driver may write.
    pub fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), Error> {
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let payload = Payload::new().u32(offset).u32(len).u32(0).bytes(data).done();
        self.request(code::SET_CONFIG, &payload, &[])
    }

    /// `GET_STATUS`
    pub fn status(&mut self) -> Result<u64, Error> {
        self.get_u64(code::GET_STATUS)
    }

    /// `SET_STATUS`
    pub fn set_status(&mut self, status: u64) -> Result<(), Error> {
        self.request(code::SET_STATUS, &Payload::new().u64(status).done(), &[])
    }

    /// `RESET_DEVICE`
    pub fn reset_device(&mut self) -> Result<(), Error> {
        self.request(code::RESET_DEVICE, &[], &[])
    }

    /// `SET_BACKEND_REQ_FD`: opens a back-end channel and keeps our end of it.
    pub fn open_channel(&mut self) -> Result<FrontEndChannel, Error> {
        let (ours, theirs) =
            UnixStream::pair().map_err(|e| Error::io("making a pair of sockets", e))?;
        self.request(code::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
        Ok(FrontEndChannel { connection: Connection::new(ours) })
    }

    /// A request without arguments whose reply is a number.
    pub fn get_u64(&mut self, request: u32) -> Result<u64, Error> {
        let reply = self.call(request, &[], &[])?;
        reply.try_into().map(u64::from_le_bytes).map_err(|_| odd_reply())
    }

    /// A request that changes something. Waits for its acknowledgement, if those were negotiated.
    ///
    /// # Errors
    ///
    /// `Refused` if the acknowledgement is negative.
    pub fn request(
        &mut self,
        request: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let need_reply = self.protocol.contains(ProtocolFeatures::REPLY_ACK);
        self.send(request, need_reply, payload, fds)?;
        if !need_reply {
            return Ok(());
        }
        match self.receive(request)?.as_slice() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Ok(()),
            [_, _, _, _, _, _, _, _] => {
                Err(Error::refused(format!("{}: the back end refused it", name(request))))
            }
            _ => Err(odd_reply()),
        }
    }

    /// A request with a reply of its own.
    pub fn call(
        &mut self,
        request: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, Error> {
        self.send(request, false, payload, fds)?;
        self.receive(request)
    }

    /// Sends a message and does not wait for anything.
    pub fn send(
        &mut self,
        request: u32,
        need_reply: bool,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let header = Header { request, reply: false, need_reply, size: payload.len() };
        self.send_bytes(&[&header.encode()[..], payload].concat(), fds)
    }

    /// Sends bytes that need not be a message.
    pub fn send_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.connection.send(bytes, fds)
    }

    /// Waits for the reply to `request`, and returns its payload.
    pub fn receive(&mut self, request: u32) -> Result<Vec<u8>, Error> {
        let Message { header, payload, .. } = self.connection.receive(REPLY_LIMIT)?;
        match header.reply && header.request == request {
            true => Ok(payload),
            false => Err(odd_reply()),
        }
    }

    /// Waits for the back end to close the connection; false if it sends something instead.
    pub fn is_dropped(&mut self) -> bool {
        match self.connection.receive(REPLY_LIMIT) {
            Err(e) => e.kind() == ErrorKind::Disconnected,
            Ok(_) => false,
        }
    }
}

/// The front end's end of a back-end channel.
#[derive(Debug)]
pub struct FrontEndChannel {
    connection: Connection,
}

impl FrontEndChannel {
    /// Waits for the next message, which must say that the configuration changed.
    pub fn wait_config_change(&mut self) -> Result<(), Error> {
        let Message { header, payload, fds } = self.connection.receive(REPLY_LIMIT)?;
        let expected = header.request == BACKEND_CONFIG_CHANGE && !header.reply;
        match expected && payload.is_empty() && fds.is_empty() {
            true => Ok(()),
            false => Err(odd_reply()),
        }
    }

    /// Something has arrived.
    pub fn has_message(&mut self) -> bool {
        !matches!(self.connection.try_receive(), Ok(None))
    }
}

impl AsFd for FrontEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

fn odd_reply() -> Error {
    Error::protocol("the back end's answer does not fit the request")
}
