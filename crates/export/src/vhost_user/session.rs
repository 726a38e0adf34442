//! One front end's session, from its connection to its end.
//!
//! ```text
//!   features, protocol features        what both sides can do
//!   memory table, regions              where guest memory is
//!   ring size, addresses, base         where the rings are         per ring, see `ring`
//!   kick                               start ----> I/O ----> GET_VRING_BASE: stop, drain
//! ```
//!
//! Specification: QEMU `docs/interop/vhost-user.rst`. What it leaves open, and what we do:
//!
//! - `SET_OWNER` is not demanded before other messages, but a second one is refused. `RESET_OWNER` does nothing else.
//! - A ring starts with `SET_VRING_KICK`, not with the first event on it, so its configuration must be complete by then. A
//!   kick without a file descriptor (polling only) is refused.
//! - While a ring is started, its size, base and addresses can only be set to what they are; virtio features of the device too.
//! - Device status 0 stops all rings. It resets the device only if that needs it: front ends also send it to pause a guest, and
//!   what that guest's driver chose (a write-through cache, above all) must still hold when it goes on.
//! - A change of the configuration is announced while a ring is started, and otherwise when the first one starts: a
//!   suspended device has to be silent, and front ends ignore the message then.

use super::channel::{Channel, Sent};
use super::connection::{Connection, Message, wait_for};
use super::device::{Device, QueueStart};
use super::error::{Error, ErrorKind};
use super::eventfd::{Use, check_event_fd};
use super::feature;
use super::message::{
    Payload, ProtocolFeatures, Request, RingAddrs, RingFd, code, encode_reply, has_reply, name,
};
use super::ring::{Ring, locate};
use guest_mem::{GuestMemory, Region, RegionSpec};
use rustix::event::{PollFd, PollFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Memory regions one front end may map: what KVM offers a VMM, less those QEMU keeps to itself.
pub const MEM_SLOTS_MAX: usize = 509;

/// Refusals that one session writes to the log; then it falls silent, so that a front end cannot fill the disk with them.
const REFUSALS_LOGGED_MAX: u32 = 16;

/// Device status bit `DEVICE_NEEDS_RESET`, virtio 1.3 section 2.1. Ours to set; the driver only reads it.
const STATUS_NEEDS_RESET: u8 = 0x40;

/// A session with one front end, driving `device`. Dropping it stops all rings.
#[derive(Debug)]
pub struct Session<'a, D: Device> {
    device: &'a mut D,
    connection: Connection,
    protocol: ProtocolFeatures,
    /// All feature bits of `SET_FEATURES`; `None` before it.
    features: Option<u64>,
    owned: bool,
    status: u8,
    memory: Arc<GuestMemory>,
    rings: Vec<Ring>,
    channel: Option<Channel>,
    /// The front end has to be told that the configuration changed.
    config_changed: bool,
    refusals: u32,
}

/// What executing a request leaves to be sent.
enum Answer {
    /// Nothing, or an acknowledgement if one is wanted.
    Done,
    /// The request's own reply, with this payload.
    Reply(Vec<u8>),
}

impl<'a, D: Device> Session<'a, D> {
    /// A session at its beginning. The device has no queue started.
    pub fn new(connection: Connection, device: &'a mut D) -> Session<'a, D> {
        let rings = (0..device.queues_max()).map(|_| Ring::default()).collect();
        Session {
            device,
            connection,
            protocol: ProtocolFeatures::empty(),
            features: None,
            owned: false,
            status: 0,
            memory: Arc::default(),
            rings,
            channel: None,
            config_changed: false,
            refusals: 0,
        }
    }

    /// Serves until the session ends, and says why it did.
    pub fn serve(mut self) -> Error {
        loop {
            let timeout = self.time_left();
            let mut fds = [PollFd::new(&self, PollFlags::IN)];
            if let Err(e) = wait_for(&mut fds, timeout).and_then(|()| self.turn()) {
                return e;
            }
        }
    }

    /// Takes what has arrived and, if a message is complete, does what it asks for. Does not wait for the front end's next
    /// message; may wait for the device to drain, and up to the connection's time limit for room for the reply.
    ///
    /// # Errors
    ///
    /// Why the session is over.
    pub fn turn(&mut self) -> Result<(), Error> {
        if let Some(message) = self.connection.try_receive()? {
            self.handle(message)?;
        }
        self.announce_config_change();
        Ok(())
    }

    /// When to call [`Session::turn`] even if nothing arrives; `None` for never.
    pub fn time_left(&self) -> Option<Duration> {
        self.connection.time_left()
    }

    /// The device's configuration changed; the front end is told when it may be.
    pub fn config_changed(&mut self) {
        self.config_changed = true;
        self.announce_config_change();
    }

    fn handle(&mut self, message: Message) -> Result<(), Error> {
        let Message { header, payload, fds } = message;
        let request = header.request;
        if header.reply {
            return Err(Error::protocol(format!("{}: a reply to nothing", name(request))));
        }
        let outcome = Request::parse(request, &payload, fds).and_then(|r| self.execute(r));
        // Asked after the execution: a request for acknowledgements may be the one that negotiates them.
        let acknowledge = header.need_reply && self.protocol.contains(ProtocolFeatures::REPLY_ACK);
        let reply = match outcome {
            Ok(Answer::Reply(payload)) => payload,
            Ok(Answer::Done) if acknowledge => Payload::new().u64(0).done(),
            Ok(Answer::Done) => return Ok(()),
            Err(e) => {
                let e = e.in_message(&name(request));
                match request {
                    _ if e.kind() != ErrorKind::Refused => return Err(e),
                    // An empty reply is this request's own way of saying no.
                    code::GET_CONFIG => self.log_refusal(&e, Vec::new()),
                    _ if acknowledge && !has_reply(request) => {
                        self.log_refusal(&e, Payload::new().u64(1).done())
                    }
                    _ => return Err(e),
                }
            }
        };
        self.connection.send(&encode_reply(request, &reply), &[])
    }

    fn log_refusal(&mut self, refusal: &Error, reply: Vec<u8>) -> Vec<u8> {
        self.refusals = self.refusals.saturating_add(1);
        match self.refusals {
            ..REFUSALS_LOGGED_MAX => tracing::warn!("vhost-user: refused: {}", refusal.line()),
            REFUSALS_LOGGED_MAX => tracing::warn!(
                "vhost-user: refused: {}; further refusals are not logged",
                refusal.line()
            ),
            _ => {}
        }
        reply
    }

    fn execute(&mut self, request: Request) -> Result<Answer, Error> {
        let number = |value: u64| Ok(Answer::Reply(Payload::new().u64(value).done()));
        match request {
            Request::GetFeatures => return number(self.features_offered()),
            Request::SetFeatures(features) => self.set_features(features)?,
            Request::GetProtocolFeatures => return number(ProtocolFeatures::OFFERED.bits()),
            Request::SetProtocolFeatures(bits) => self.set_protocol_features(bits)?,
            Request::SetOwner => self.set_owner()?,
            Request::ResetOwner => self.owned = false,
            Request::GetQueueNum => return number(u64::from(self.device.queues_max())),
            Request::SetMemTable(table) => self.set_mem_table(table)?,
            Request::GetMaxMemSlots => {
                self.negotiated(ProtocolFeatures::CONFIGURE_MEM_SLOTS)?;
                return number(MEM_SLOTS_MAX as u64);
            }
            Request::AddMemReg(spec, fd) => self.add_region(spec, &fd)?,
            Request::RemMemReg(spec) => self.remove_region(&spec)?,
            Request::SetVringNum { index, size } => self.set_vring_num(index, size)?,
            Request::SetVringAddr { index, log, addrs } => {
                self.set_vring_addr(index, log, addrs)?
            }
            Request::SetVringBase { index, base } => self.set_vring_base(index, base)?,
            Request::GetVringBase { index } => return self.get_vring_base(index),
            Request::SetVringKick(ring_fd) => self.set_vring_kick(ring_fd)?,
            Request::SetVringCall(ring_fd) => self.set_vring_call(ring_fd)?,
            Request::SetVringErr(ring_fd) => self.set_vring_err(ring_fd)?,
            Request::SetVringEnable { index, enabled } => self.set_vring_enable(index, enabled)?,
            Request::GetConfig { offset, size, flags: _ } => return self.get_config(offset, size),
            Request::SetConfig { offset, data } => {
                self.negotiated(ProtocolFeatures::CONFIG)?;
                self.device.write_config(offset, &data).map_err(Error::refused)?;
            }
            Request::SetBackendReqFd(socket) => {
                self.negotiated(ProtocolFeatures::BACKEND_REQ)?;
                self.channel = Some(Channel::new(socket)?);
            }
            Request::ResetDevice => self.reset_device()?,
            Request::GetStatus => return self.get_status(),
            Request::SetStatus(status) => self.set_status(status)?,
        }
        Ok(Answer::Done)
    }

    // ---- Features, owner, status, configuration ----

    /// The device's features, plus the bit that is ours, less those that would need what is not offered.
    fn features_offered(&self) -> u64 {
        let unsupported = feature::LOG_ALL | feature::IOMMU_PLATFORM;
        (self.device.features() & !unsupported) | feature::PROTOCOL_FEATURES
    }

    fn set_features(&mut self, features: u64) -> Result<(), Error> {
        let unknown = features & !self.features_offered();
        if unknown != 0 {
            return Err(Error::refused(format!("feature bits {unknown:#x} were not offered")));
        }
        if self.any_started() && self.features != Some(features) {
            return Err(Error::refused("features cannot change while a ring is started"));
        }
        self.features = Some(features);
        if features & feature::PROTOCOL_FEATURES == 0 {
            // Such a front end has no message to enable rings with.
            self.rings.iter_mut().for_each(|ring| ring.enabled = true);
        }
        Ok(())
    }

    fn set_protocol_features(&mut self, bits: u64) -> Result<(), Error> {
        let unknown = bits & !ProtocolFeatures::OFFERED.bits();
        if unknown != 0 {
            return Err(Error::refused(format!("protocol features {unknown:#x} were not offered")));
        }
        self.protocol = ProtocolFeatures::from_bits_truncate(bits);
        Ok(())
    }

    fn negotiated(&self, feature: ProtocolFeatures) -> Result<(), Error> {
        match self.protocol.contains(feature) {
            true => Ok(()),
            false => Err(Error::refused(format!("{feature:?} was not negotiated"))),
        }
    }

    fn set_owner(&mut self) -> Result<(), Error> {
        match std::mem::replace(&mut self.owned, true) {
            false => Ok(()),
            true => Err(Error::refused("the session has its owner already")),
        }
    }

    fn get_status(&self) -> Result<Answer, Error> {
        self.negotiated(ProtocolFeatures::STATUS)?;
        let needs_reset = if self.device.needs_reset() { STATUS_NEEDS_RESET } else { 0 };
        let status = u64::from(self.status | needs_reset);
        Ok(Answer::Reply(Payload::new().u64(status).done()))
    }

    fn set_status(&mut self, status: u8) -> Result<(), Error> {
        self.negotiated(ProtocolFeatures::STATUS)?;
        self.status = status & !STATUS_NEEDS_RESET;
        if status == 0 {
            self.stop_all();
            if self.device.needs_reset() {
                self.device.reset();
            }
        }
        Ok(())
    }

    /// Everything as at the session's beginning but for what the connection itself is made of: the owner, the protocol
    /// features, the back-end channel, and the memory, which front ends do not announce again after this.
    fn reset_device(&mut self) -> Result<(), Error> {
        self.negotiated(ProtocolFeatures::RESET_DEVICE)?;
        self.stop_all();
        self.device.reset();
        self.rings.fill_with(Ring::default);
        self.features = None;
        self.status = 0;
        Ok(())
    }

    fn get_config(&self, offset: u32, size: u32) -> Result<Answer, Error> {
        self.negotiated(ProtocolFeatures::CONFIG)?;
        // `Request::parse` made sure that these are at most 256 bytes.
        let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
        self.device.read_config(offset, &mut data);
        Ok(Answer::Reply(Payload::new().u32(offset).u32(size).u32(0).bytes(&data).done()))
    }

    fn announce_config_change(&mut self) {
        if !self.config_changed || !self.any_started() {
            return;
        }
        let Some(channel) = &mut self.channel else { return };
        match channel.send_config_change() {
            Sent::Yes => self.config_changed = false,
            Sent::NotNow => {}
            Sent::Gone => {
                tracing::warn!("vhost-user: the back-end channel is gone, changes go unheard");
                self.channel = None;
            }
        }
    }

    // ---- Memory ----

    fn set_mem_table(&mut self, table: Vec<(RegionSpec, OwnedFd)>) -> Result<(), Error> {
        let mut memory = GuestMemory::default();
        for (spec, fd) in table {
            memory = with_region(&memory, spec, &fd)?;
        }
        self.replace_memory(memory);
        Ok(())
    }

    fn add_region(&mut self, spec: RegionSpec, fd: &OwnedFd) -> Result<(), Error> {
        self.negotiated(ProtocolFeatures::CONFIGURE_MEM_SLOTS)?;
        if self.memory.regions().len() >= MEM_SLOTS_MAX {
            return Err(Error::refused(format!("all {MEM_SLOTS_MAX} memory slots are in use")));
        }
        self.replace_memory(with_region(&self.memory, spec, fd)?);
        Ok(())
    }

    fn remove_region(&mut self, spec: &RegionSpec) -> Result<(), Error> {
        self.negotiated(ProtocolFeatures::CONFIGURE_MEM_SLOTS)?;
        let memory = self
            .memory
            .without_region(spec.guest_addr, spec.user_addr, spec.len)
            .ok_or_else(|| Error::refused("there is no such memory region"))?;
        self.replace_memory(memory);
        Ok(())
    }

    /// Moves the device to other memory. Rings that are not in it any more, or lie elsewhere in it, are stopped: before the
    /// move those found here, after it those the device finds.
    fn replace_memory(&mut self, memory: GuestMemory) {
        let memory = Arc::new(memory);
        let features = self.features.unwrap_or(0);
        for index in self.started_rings() {
            let Some(ring) = self.rings.get(usize::from(index)) else { continue };
            match ring.place(&memory, features) {
                Ok(config) if ring.started == Some(config) => {}
                Ok(_) => self.stop_broken(index, "its memory moved to other guest addresses"),
                Err(e) => self.stop_broken(index, &e.to_string()),
            }
        }
        for (index, why) in self.device.set_memory(Arc::clone(&memory)) {
            self.stop_broken(index, &why);
        }
        self.memory = memory;
    }

    fn stop_broken(&mut self, index: u16, why: &str) {
        tracing::warn!("vhost-user: ring {index} stopped, it lost its memory: {why}");
        self.stop_ring(index);
    }

    // ---- Rings ----

    fn ring(&mut self, index: u16) -> Result<&mut Ring, Error> {
        self.rings
            .get_mut(usize::from(index))
            .ok_or_else(|| Error::refused(format!("there is no ring {index}")))
    }

    fn started_rings(&self) -> Vec<u16> {
        let started = |(index, ring): (u16, &Ring)| ring.started.is_some().then_some(index);
        (0..).zip(&self.rings).filter_map(started).collect()
    }

    fn any_started(&self) -> bool {
        self.rings.iter().any(|ring| ring.started.is_some())
    }

    /// Stops a ring if it is started, and remembers where to go on.
    fn stop_ring(&mut self, index: u16) {
        let Some(ring) = self.rings.get_mut(usize::from(index)) else { return };
        if ring.started.take().is_some() {
            ring.next_avail = self.device.stop_queue(index);
        }
    }

    fn stop_all(&mut self) {
        for index in self.started_rings() {
            self.stop_ring(index);
        }
        self.rings.iter_mut().for_each(|ring| ring.enabled = false);
    }

    fn set_vring_num(&mut self, index: u16, size: u32) -> Result<(), Error> {
        let size_max = self.device.queue_size_max();
        let ring = self.ring(index)?;
        match u16::try_from(size) {
            Ok(size) if ring.started.is_some() && size != ring.size => {
                Err(Error::refused(format!("ring {index} is started, its size is fixed")))
            }
            Ok(size) if size.is_power_of_two() && size <= size_max => {
                ring.size = size;
                Ok(())
            }
            _ => Err(Error::refused(format!(
                "ring size {size} is not a power of two up to {size_max}"
            ))),
        }
    }

    fn set_vring_addr(&mut self, index: u16, log: bool, addrs: RingAddrs) -> Result<(), Error> {
        if log {
            return Err(Error::refused("logging was not negotiated"));
        }
        let memory = Arc::clone(&self.memory);
        let ring = self.ring(index)?;
        if ring.started.is_some() && ring.addrs != Some(addrs) {
            return Err(Error::refused(format!(
                "ring {index} is started, its addresses are fixed"
            )));
        }
        // Whether the whole areas fit can be told only with the size, when the ring starts. An address that is nowhere is
        // refused here, where the front end can still tell which message was wrong.
        locate(ring.size, &addrs, &memory)?;
        ring.addrs = Some(addrs);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u16, base: u32) -> Result<(), Error> {
        let ring = self.ring(index)?;
        if ring.started.is_some() {
            return Err(Error::refused(format!(
                "ring {index} is started, its base is the device's"
            )));
        }
        ring.next_avail = u16::try_from(base)
            .map_err(|_| Error::refused(format!("base {base:#x} is not a 16-bit index")))?;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u16) -> Result<Answer, Error> {
        self.ring(index)?;
        self.stop_ring(index);
        let base = self.ring(index)?.next_avail;
        Ok(Answer::Reply(Payload::new().u32(u32::from(index)).u32(u32::from(base)).done()))
    }

    fn set_vring_kick(&mut self, ring_fd: RingFd) -> Result<(), Error> {
        let index = ring_fd.index;
        let started = self.ring(index)?.started.is_some();
        let kick = ring_fd.fd.ok_or_else(|| {
            Error::refused("a ring without a kick file descriptor (polled only) is not supported")
        })?;
        check_event_fd(&kick, Use::Read)?;
        if started {
            self.device.set_kick(index, kick);
            return Ok(());
        }
        self.start_ring(index, kick)
    }

    fn start_ring(&mut self, index: u16, kick: OwnedFd) -> Result<(), Error> {
        let features =
            self.features.ok_or_else(|| Error::refused("features were not negotiated yet"))?;
        let memory = Arc::clone(&self.memory);
        let ring = self.ring(index)?;
        let config = ring.place(&memory, features)?;
        let start = QueueStart {
            config,
            next_avail: ring.next_avail,
            memory,
            features: features & !feature::PROTOCOL_FEATURES,
            kick,
            call: duplicate(&ring.call)?,
            err: duplicate(&ring.err)?,
            enabled: ring.enabled,
        };
        self.device.start_queue(index, start).map_err(Error::refused)?;
        self.ring(index)?.started = Some(config);
        Ok(())
    }

    fn set_vring_call(&mut self, ring_fd: RingFd) -> Result<(), Error> {
        let RingFd { index, fd } = ring_fd;
        self.ring(index)?;
        fd.as_ref().map_or(Ok(()), |fd| check_event_fd(fd, Use::Write))?;
        let ring = self.ring(index)?;
        let copy = duplicate(&fd)?;
        ring.call = fd;
        if ring.started.is_some() {
            self.device.set_call(index, copy);
        }
        Ok(())
    }

    fn set_vring_err(&mut self, ring_fd: RingFd) -> Result<(), Error> {
        let RingFd { index, fd } = ring_fd;
        self.ring(index)?;
        fd.as_ref().map_or(Ok(()), |fd| check_event_fd(fd, Use::Write))?;
        let ring = self.ring(index)?;
        let copy = duplicate(&fd)?;
        ring.err = fd;
        if ring.started.is_some() {
            self.device.set_err(index, copy);
        }
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u16, enabled: bool) -> Result<(), Error> {
        if self.features.unwrap_or(0) & feature::PROTOCOL_FEATURES == 0 {
            return Err(Error::refused("VHOST_USER_F_PROTOCOL_FEATURES was not negotiated"));
        }
        let ring = self.ring(index)?;
        let changed = std::mem::replace(&mut ring.enabled, enabled) != enabled;
        if changed && ring.started.is_some() {
            self.device.set_enabled(index, enabled);
        }
        Ok(())
    }
}

impl<D: Device> AsFd for Session<'_, D> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl<D: Device> Drop for Session<'_, D> {
    fn drop(&mut self) {
        // However the session ended, nobody may touch the guest's memory after it.
        self.device.end_session();
    }
}

fn with_region(memory: &GuestMemory, spec: RegionSpec, fd: &OwnedFd) -> Result<GuestMemory, Error> {
    Region::map(spec, fd).and_then(|region| memory.with_region(region)).map_err(|e| {
        let doing = format!("memory region at guest address {:#x}", spec.guest_addr.0);
        Error::caused(ErrorKind::Refused, doing, e)
    })
}

fn duplicate(fd: &Option<OwnedFd>) -> Result<Option<OwnedFd>, Error> {
    let copy = fd.as_ref().map(OwnedFd::try_clone).transpose();
    copy.map_err(|e| Error::caused(ErrorKind::Refused, "duplicating a file descriptor", e))
}
