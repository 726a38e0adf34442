//! A connected socket: whole messages with their file descriptors in, replies out.
//!
//! ```text
//! nothing --first byte, fds--> header --12 bytes--> payload --last byte--> Message
//!    ^                           |                     |
//!    |                           `---- clock runs -----'  too slow: TimedOut
//!    `-- end of stream here: Disconnected; anywhere else: Protocol
//! ```
//!
//! - Receiving never waits; the caller polls the socket and comes back, so a stop request is seen while a peer dawdles.
//! - Never a byte more than the current message is read, so file descriptors that arrive belong to it. They must come with
//!   its first byte; later ones are a breach of the protocol.
//! - Sending waits for a peer that does not read, but not for ever. It costs that peer its connection.

use super::error::{Error, ErrorKind};
use super::message::{FDS_MAX, Header, PAYLOAD_MAX, name};
use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a message may take from its first byte to its last, and how long a peer may leave a reply unread.
pub const TIME_LIMIT: Duration = Duration::from_secs(5);

/// A message as it came, whole.
#[derive(Debug)]
pub struct Message {
    /// Its checked header.
    pub header: Header,
    /// Its payload, `header.size` bytes.
    pub payload: Vec<u8>,
    /// The file descriptors that came with it, all close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// One end of a vhost-user socket.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    time_limit: Duration,
    partial: Partial,
}

/// The message that is being received.
#[derive(Debug, Default)]
struct Partial {
    header: Option<Header>,
    /// Bytes of the header; once that is known, of the payload.
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// When the first byte arrived.
    since: Option<Instant>,
}

impl Connection {
    /// Takes over a connected socket.
    pub fn new(socket: UnixStream) -> Connection {
        Connection { socket, time_limit: TIME_LIMIT, partial: Partial::default() }
    }

    /// The same with another limit than [`TIME_LIMIT`].
    pub fn with_time_limit(self, time_limit: Duration) -> Connection {
        Connection { time_limit, ..self }
    }

    /// Takes what has arrived; `None` if the message is not complete yet. Does not wait.
    ///
    /// # Errors
    ///
    /// `Disconnected` if the peer closed the connection between two messages. All others mean that this connection is of no
    /// use any more, too.
    pub fn try_receive(&mut self) -> Result<Option<Message>, Error> {
        loop {
            if let Some(message) = self.partial.take_if_complete()? {
                return Ok(Some(message));
            }
            if !self.receive_some()? {
                return self.check_time().map(|()| None);
            }
        }
    }

    /// Waits for a whole message, at most `limit` for its first byte; see [`Connection::try_receive`].
    ///
    /// # Errors
    ///
    /// `TimedOut` as well.
    pub fn receive(&mut self, limit: Duration) -> Result<Message, Error> {
        let since = now();
        loop {
            if let Some(message) = self.try_receive()? {
                return Ok(message);
            }
            let left = limit.saturating_sub(now().duration_since(since));
            if left.is_zero() && self.partial.since.is_none() {
                return Err(Error::new(ErrorKind::TimedOut, "waiting for a message"));
            }
            self.wait(PollFlags::IN, Some(self.time_left().unwrap_or(left)))?;
        }
    }

    /// How long the current message may still take; `None` if none has begun.
    pub fn time_left(&self) -> Option<Duration> {
        Some(self.time_limit.saturating_sub(now().duration_since(self.partial.since?)))
    }

    /// Sends all of `bytes`, and `fds` with the first of them.
    ///
    /// # Errors
    ///
    /// `TimedOut` if the peer does not make room for them in time.
    pub fn send(&mut self, mut bytes: &[u8], mut fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let since = now();
        while !bytes.is_empty() {
            match send_some(&self.socket, bytes, fds) {
                Ok(sent) => {
                    bytes = bytes.get(sent..).unwrap_or_default();
                    fds = &[];
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let left = self.time_limit.saturating_sub(now().duration_since(since));
                    if left.is_zero() {
                        let doing = "the peer does not read what it is sent";
                        return Err(Error::new(ErrorKind::TimedOut, doing));
                    }
                    self.wait(PollFlags::OUT, Some(left))?;
                }
                Err(e @ (Errno::PIPE | Errno::CONNRESET)) => {
                    return Err(Error::caused(ErrorKind::Disconnected, "sending a message", e));
                }
                Err(e) => return Err(Error::io("sending a message", e)),
            }
        }
        Ok(())
    }

    /// One `recvmsg` of at most what the current message still lacks. False if nothing is there.
    fn receive_some(&mut self) -> Result<bool, Error> {
        let mut bytes = [0u8; PAYLOAD_MAX];
        let wanted = bytes.get_mut(..self.partial.missing()).unwrap_or_default();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received =
            match recvmsg(&self.socket, &mut [IoSliceMut::new(wanted)], &mut control, flags) {
                Ok(received) => received,
                Err(Errno::INTR) => return Ok(true),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::CONNRESET) => return Err(self.partial.closed()),
                Err(e) => return Err(Error::io("receiving a message", e)),
            };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Error::protocol("file descriptors were lost on the way"));
        }
        if received.bytes == 0 {
            return Err(self.partial.closed());
        }
        self.partial.push(bytes.get(..received.bytes).unwrap_or_default(), fds)?;
        Ok(true)
    }

    fn check_time(&self) -> Result<(), Error> {
        match self.time_left() {
            Some(left) if left.is_zero() => {
                Err(Error::new(ErrorKind::TimedOut, "a message stopped half-way"))
            }
            _ => Ok(()),
        }
    }

    fn wait(&self, events: PollFlags, timeout: Option<Duration>) -> Result<(), Error> {
        let mut fds = [PollFd::new(&self.socket, events)];
        wait_for(&mut fds, timeout)
    }
}

impl Partial {
    /// Bytes to wait for: of the header first, then of the payload it announces.
    fn missing(&self) -> usize {
        let whole = self.header.map_or(Header::LEN, |header| header.size);
        whole.saturating_sub(self.bytes.len())
    }

    fn push(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<(), Error> {
        if self.since.is_some() && !fds.is_empty() {
            return Err(Error::protocol("file descriptors came in the middle of a message"));
        }
        self.since.get_or_insert_with(now);
        self.bytes.extend_from_slice(bytes);
        self.fds.extend(fds);
        Ok(())
    }

    fn take_if_complete(&mut self) -> Result<Option<Message>, Error> {
        if self.header.is_none()
            && let Ok(raw) = <&[u8; Header::LEN]>::try_from(self.bytes.as_slice())
        {
            self.header = Some(Header::parse(raw)?);
            self.bytes.clear();
        }
        match self.header {
            Some(header) if self.bytes.len() == header.size => {
                let Partial { bytes: payload, fds, .. } = std::mem::take(self);
                Ok(Some(Message { header, payload, fds }))
            }
            _ => Ok(None),
        }
    }

    /// What it means that the stream ends here.
    fn closed(&self) -> Error {
        match (self.since, self.header) {
            (None, _) => Error::new(ErrorKind::Disconnected, "the peer closed the connection"),
            (_, None) => Error::protocol("the connection was closed in the middle of a header"),
            (_, Some(header)) => Error::protocol(format!(
                "{}: the connection was closed in the middle of the payload",
                name(header.request)
            )),
        }
    }
}

fn send_some(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The clock of this layer: it only measures how long a peer takes.
#[expect(clippy::disallowed_methods, reason = "the transport is one of the five seams")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// `poll`, where an interruption by a signal is a wake-up without an event.
pub(crate) fn wait_for(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> Result<(), Error> {
    let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(Error::io("waiting for events", e)),
    }
}
