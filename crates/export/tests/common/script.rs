//! Bytes in, a front end's messages out: valid, nearly valid and nonsense, in any order, with file descriptors of all sorts.
//!
//! One script is one connection. The session is driven from the same thread, message by message, so a run depends on nothing
//! but its bytes.

use crate::common::{FakeDevice, QUEUES, REGION_LEN, USER_BASE, event, memfd, region, ring_addrs};
use export::vhost_user::frontend::FrontEnd;
use export::vhost_user::message::{Payload, ProtocolFeatures, code};
use export::vhost_user::{Connection, ErrorKind, Session};
use guest_mem::{GuestAddr, RegionSpec};
use rustix::fs::{Mode, OFlags, open};
use rustix::pipe::pipe;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The file descriptors that scripts send.
pub struct Menu(Vec<OwnedFd>);

impl Menu {
    pub fn new() -> Menu {
        let path = |path: &str, flags| open(path, flags, Mode::empty()).unwrap();
        let (reader, writer) = pipe().unwrap();
        let (socket, _) = UnixStream::pair().unwrap();
        Menu(vec![
            event(),
            region().1,
            memfd(4096),
            reader,
            writer,
            socket.into(),
            path("/", OFlags::RDONLY),
            path("/dev/null", OFlags::RDWR),
            path("/dev/null", OFlags::PATH),
        ])
    }

    fn pick(&self, script: &mut Script<'_>) -> BorrowedFd<'_> {
        self.0[usize::from(script.u8()) % self.0.len()].as_fd()
    }
}

/// What is left of a script; zeros once it has ended.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        let len = N.min(self.0.len());
        field[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        field
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    /// True once in `n` times.
    fn once_in(&mut self, n: u8) -> bool {
        self.u8().is_multiple_of(n)
    }

    /// A number that may mean something, or anything.
    fn number(&mut self) -> u64 {
        let page = |byte: u8| u64::from(byte) << 12;
        match self.u8() % 10 {
            0 => 0,
            1 => 1,
            2 => 128,
            3 => USER_BASE + page(self.u8()),
            4 => page(self.u8()),
            5 => REGION_LEN,
            6 => u64::MAX - u64::from(self.u8()),
            7 => 1 << (self.u8() % 64),
            8 => u64::from(self.u8()),
            _ => u64::from_le_bytes(self.take()),
        }
    }

    fn number32(&mut self) -> u32 {
        let [a, b, c, d, ..] = self.number().to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Mostly a ring that exists.
    fn index(&mut self) -> u32 {
        match self.u8() % 8 {
            7 => self.number32(),
            other => u32::from(other) % u32::from(QUEUES),
        }
    }

    fn spec(&mut self) -> RegionSpec {
        match self.u8() % 3 {
            0 => region().0,
            1 => RegionSpec { guest_addr: GuestAddr(0), user_addr: 0, ..region().0 },
            _ => RegionSpec {
                guest_addr: GuestAddr(self.number()),
                len: self.number(),
                user_addr: self.number(),
                file_offset: self.number(),
            },
        }
    }

    /// A payload of the right form for `request`, and the number of file descriptors that go with it.
    fn payload(&mut self, request: u32) -> (Payload, usize) {
        let empty = Payload::new();
        match request {
            code::SET_FEATURES | code::SET_PROTOCOL_FEATURES | code::SET_STATUS => {
                (empty.u64(self.number()), 0)
            }
            code::SET_MEM_TABLE => {
                let count = u32::from(self.u8() % 4);
                let table = (0..count).fold(empty.u32(count).u32(0), |p, _| p.region(&self.spec()));
                (table, count as usize)
            }
            code::ADD_MEM_REG => (empty.u64(0).region(&self.spec()), 1),
            code::REM_MEM_REG => (empty.u64(0).region(&self.spec()), 0),
            code::SET_VRING_ADDR => {
                let head = empty.u32(self.index()).u32(u32::from(self.once_in(8)));
                if self.once_in(3) {
                    return (
                        head.u64(self.number()).u64(self.number()).u64(self.number()).u64(0),
                        0,
                    );
                }
                let addrs = ring_addrs(u16::from(self.u8() % 3));
                (head.u64(addrs.desc).u64(addrs.used).u64(addrs.avail).u64(0), 0)
            }
            code::SET_VRING_NUM
            | code::SET_VRING_BASE
            | code::GET_VRING_BASE
            | code::SET_VRING_ENABLE => (empty.u32(self.index()).u32(self.number32()), 0),
            code::SET_VRING_KICK | code::SET_VRING_CALL | code::SET_VRING_ERR => {
                let no_fd = self.once_in(6);
                let value = u64::from(self.index()) | u64::from(no_fd) << 8;
                (empty.u64(value), usize::from(!no_fd))
            }
            code::SET_BACKEND_REQ_FD => (empty, 1),
            code::GET_CONFIG | code::SET_CONFIG => {
                let len = usize::from(self.u8() % 64);
                let head = empty.u32(self.number32()).u32(len as u32).u32(self.number32() % 3);
                (head.bytes(&vec![1; len]), 0)
            }
            _ => (empty, 0),
        }
    }

    /// One message's bytes, more or less well-formed, and the number of its file descriptors.
    fn message(&mut self) -> (Vec<u8>, usize) {
        let request = if self.once_in(16) { self.number32() } else { u32::from(self.u8() % 42) };
        let (payload, mut fds) = self.payload(request);
        let mut payload = payload.done();
        if self.once_in(12) {
            payload.resize(usize::from(self.u8()), self.u8());
        }
        if self.once_in(12) {
            fds = usize::from(self.u8() % 12);
        }
        let flags = match self.u8() {
            0 => self.number32(),
            odd if odd % 4 == 1 => 1,
            _ => 1 | 8,
        };
        let size = if self.once_in(64) { self.number32() } else { payload.len() as u32 };
        let mut bytes = Payload::new().u32(request).u32(flags).u32(size).bytes(&payload).done();
        if self.once_in(64) {
            bytes.truncate(usize::from(self.u8()));
        }
        (bytes, fds)
    }
}

/// What a front end says that wants to use ring `index`, without a mistake.
fn set_up(index: u16, menu: &Menu) -> Vec<(Vec<u8>, Vec<BorrowedFd<'_>>)> {
    let message = |request: u32, payload: Payload, fds| {
        let payload = payload.done();
        let head = Payload::new().u32(request).u32(1).u32(payload.len() as u32);
        (head.bytes(&payload).done(), fds)
    };
    let number = |value| Payload::new().u64(value);
    let state = |value| Payload::new().u32(u32::from(index)).u32(value);
    let addrs = ring_addrs(index);
    let addrs = state(0).u64(addrs.desc).u64(addrs.used).u64(addrs.avail).u64(0);
    let table = Payload::new().u32(1).u32(0).region(&region().0);
    let protocol = ProtocolFeatures::OFFERED.bits();
    let (event, memory) = (menu.0[0].as_fd(), menu.0[1].as_fd());
    vec![
        message(code::SET_PROTOCOL_FEATURES, number(protocol), vec![]),
        message(code::SET_FEATURES, number(1 << 32 | 1 << 30), vec![]),
        message(code::SET_MEM_TABLE, table, vec![memory]),
        message(code::SET_VRING_NUM, state(128), vec![]),
        message(code::SET_VRING_ADDR, addrs, vec![]),
        message(code::SET_VRING_KICK, number(u64::from(index)), vec![event]),
    ]
}

/// Runs a script against a new session until it ends or the session does. Returns whether a ring was ever started.
pub fn run(script: &[u8], menu: &Menu, device: &mut FakeDevice) -> bool {
    let mut script = Script(script);
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut replies = ours.try_clone().unwrap();
    let mut front = FrontEnd::new(ours);
    let mut session = Session::new(Connection::new(theirs), device);
    'session: while !script.0.is_empty() {
        let messages = if script.once_in(10) {
            set_up(u16::from(script.u8()) % QUEUES, menu)
        } else {
            let (bytes, fds) = script.message();
            vec![(bytes, (0..fds).map(|_| menu.pick(&mut script)).collect())]
        };
        for (bytes, fds) in messages {
            if front.send_bytes(&bytes, &fds).is_err() {
                break 'session;
            }
            // Twice: what was sent may be more than one message.
            for _ in 0..2 {
                if let Err(e) = session.turn() {
                    assert_ne!(e.kind(), ErrorKind::TimedOut, "{e}");
                    break 'session;
                }
            }
            // Replies are of no interest here, but must not fill the socket.
            let _ = replies.read(&mut [0; 8192]);
            if script.once_in(16) {
                session.config_changed();
            }
        }
    }
    drop(session);
    assert!(device.started().is_empty(), "a ring outlived its session");
    device.calls().iter().any(|call| call.starts_with("start"))
}
