//! A fake device and a session to talk to, shared by the tests of the vhost-user layer.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(missing_docs, clippy::disallowed_methods)]

use export::vhost_user::frontend::{FrontEnd, Vring};
use export::vhost_user::message::{ProtocolFeatures, RingAddrs};
use export::vhost_user::{Connection, Device, Error, ErrorKind, QueueStart, Session, feature};
use guest_mem::{GuestAddr, GuestMemory, RegionSpec};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the fake device offers.
pub const FEATURES: u64 = feature::VERSION_1
    | feature::RING_EVENT_IDX
    | feature::RING_INDIRECT
    | feature::LOG_ALL
    | feature::IOMMU_PLATFORM
    | 1 << 9;

pub const QUEUES: u16 = 3;
pub const QUEUE_SIZE_MAX: u16 = 256;

/// Bytes of the fake configuration space. Byte 32 is writable, with 0 or 1.
pub const CONFIG_LEN: usize = 60;

#[derive(Debug, Default)]
pub struct State {
    pub started: BTreeMap<u16, QueueStart>,
    /// What was called, in order.
    pub calls: Vec<String>,
    pub config: Vec<u8>,
    pub memory: Option<Arc<GuestMemory>>,
    pub resets: u32,
    pub sessions_ended: u32,
    pub needs_reset: bool,
    /// Chains a queue takes from its start to its stop.
    pub taken: u16,
    /// Queues that break at the next change of memory.
    pub breaks: Vec<u16>,
    /// The next start fails.
    pub fail_start: bool,
}

#[derive(Clone, Debug)]
pub struct FakeDevice(Arc<Mutex<State>>);

impl Default for FakeDevice {
    fn default() -> FakeDevice {
        let config = (0..CONFIG_LEN).map(|i| u8::try_from(i).unwrap()).collect();
        FakeDevice(Arc::new(Mutex::new(State { config, taken: 7, ..State::default() })))
    }
}

impl FakeDevice {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    pub fn started(&self) -> Vec<u16> {
        self.state().started.keys().copied().collect()
    }
}

impl Device for FakeDevice {
    fn features(&self) -> u64 {
        FEATURES
    }

    fn queues_max(&self) -> u16 {
        QUEUES
    }

    fn queue_size_max(&self) -> u16 {
        QUEUE_SIZE_MAX
    }

    fn read_config(&self, offset: u32, into: &mut [u8]) {
        let state = self.state();
        let at = usize::try_from(offset).unwrap().min(state.config.len());
        into.fill(0);
        for (to, from) in into.iter_mut().zip(&state.config[at..]) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), String> {
        match (offset, data) {
            (32, [value @ 0..=1]) => {
                self.state().config[32] = *value;
                Ok(())
            }
            _ => Err("only byte 32 can be written, with 0 or 1".into()),
        }
    }

    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), String> {
        let mut state = self.state();
        if std::mem::take(&mut state.fail_start) {
            return Err("the device was told to fail".into());
        }
        state.calls.push(format!("start {index}"));
        assert!(state.started.insert(index, start).is_none(), "queue {index} started twice");
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> u16 {
        let mut state = self.state();
        state.calls.push(format!("stop {index}"));
        let start = state.started.remove(&index).expect("only a started queue is stopped");
        start.next_avail.wrapping_add(state.taken)
    }

    fn set_enabled(&mut self, index: u16, enabled: bool) {
        let mut state = self.state();
        state.calls.push(format!("enable {index} {enabled}"));
        state.started.get_mut(&index).expect("started").enabled = enabled;
    }

    fn set_kick(&mut self, index: u16, kick: OwnedFd) {
        let mut state = self.state();
        state.calls.push(format!("kick {index}"));
        state.started.get_mut(&index).expect("started").kick = kick;
    }

    fn set_call(&mut self, index: u16, call: Option<OwnedFd>) {
        let mut state = self.state();
        state.calls.push(format!("call {index}"));
        state.started.get_mut(&index).expect("started").call = call;
    }

    fn set_err(&mut self, index: u16, err: Option<OwnedFd>) {
        let mut state = self.state();
        state.calls.push(format!("err {index}"));
        state.started.get_mut(&index).expect("started").err = err;
    }

    fn set_memory(&mut self, memory: Arc<GuestMemory>) -> Vec<(u16, String)> {
        let mut state = self.state();
        state.calls.push(format!("memory {}", memory.regions().len()));
        for start in state.started.values_mut() {
            start.memory = Arc::clone(&memory);
        }
        state.memory = Some(memory);
        let breaks = std::mem::take(&mut state.breaks);
        breaks.into_iter().map(|index| (index, "told to break".into())).collect()
    }

    fn reset(&mut self) {
        let mut state = self.state();
        state.calls.push("reset".into());
        state.started.clear();
        state.memory = None;
        state.needs_reset = false;
        state.resets += 1;
    }

    fn end_session(&mut self) {
        let mut state = self.state();
        state.calls.push("end session".into());
        state.started.clear();
        state.memory = None;
        state.needs_reset = false;
        state.sessions_ended += 1;
    }

    fn needs_reset(&self) -> bool {
        self.state().needs_reset
    }
}

/// A front end talking to a session on a thread of its own.
pub struct Rig {
    pub front: FrontEnd,
    pub device: FakeDevice,
    session: JoinHandle<Error>,
}

impl Rig {
    pub fn new() -> Rig {
        Rig::with_time_limit(Duration::from_secs(30))
    }

    pub fn with_time_limit(limit: Duration) -> Rig {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let device = FakeDevice::default();
        let mut served = device.clone();
        let session = std::thread::spawn(move || {
            let connection = Connection::new(theirs).with_time_limit(limit);
            Session::new(connection, &mut served).serve()
        });
        Rig { front: FrontEnd::new(ours), device, session }
    }

    /// With everything negotiated.
    pub fn negotiated() -> Rig {
        let mut rig = Rig::new();
        rig.front.handshake_all().unwrap();
        rig
    }

    /// With everything but acknowledgements negotiated: a refusal ends the session.
    pub fn without_ack() -> Rig {
        let mut rig = Rig::new();
        let protocol = ProtocolFeatures::OFFERED.difference(ProtocolFeatures::REPLY_ACK);
        rig.front.handshake(u64::MAX, protocol).unwrap();
        rig
    }

    /// The session is still there and in step.
    pub fn assert_alive(&mut self, what: &str) {
        let features = self.front.get_features();
        assert!(features.is_ok(), "{what}: the session ended: {features:?}");
    }

    /// Waits for the session to end by itself, and says why. The device must have been told then.
    #[track_caller]
    pub fn ended(self) -> Error {
        let Rig { front, device, session } = self;
        // A test that fails should say so, and not hang.
        let patience = Instant::now() + Duration::from_secs(30);
        while !session.is_finished() {
            assert!(Instant::now() < patience, "the session goes on");
            std::thread::sleep(Duration::from_millis(1));
        }
        let end = session.join().expect("the session does not panic");
        assert_eq!(device.state().sessions_ended, 1, "the device is told of a session's end");
        assert_eq!(device.started(), Vec::<u16>::new());
        drop(front);
        end
    }

    /// Closes the connection and waits for the session's normal end.
    pub fn close(self) {
        let Rig { front, device, session } = self;
        drop(front);
        let end = session.join().expect("the session does not panic");
        assert_eq!(end.kind(), ErrorKind::Disconnected, "{end}");
        assert_eq!(device.state().sessions_ended, 1, "the device is told of a session's end");
        assert_eq!(device.started(), Vec::<u16>::new());
    }
}

pub const GUEST_BASE: u64 = 0x10_0000;
pub const USER_BASE: u64 = 0x7f00_0000_0000;
pub const REGION_LEN: u64 = 0x10_0000;

/// A memory file and the region that covers it.
pub fn region() -> (RegionSpec, OwnedFd) {
    let spec = RegionSpec {
        guest_addr: GuestAddr(GUEST_BASE),
        len: REGION_LEN,
        user_addr: USER_BASE,
        file_offset: 0,
    };
    (spec, memfd(REGION_LEN))
}

pub fn memfd(bytes: u64) -> OwnedFd {
    let fd = memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, bytes).unwrap();
    fd
}

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// Where ring `index` lies in [`region`]; rings of 256 entries fit side by side.
pub fn ring_addrs(index: u16) -> RingAddrs {
    let base = USER_BASE + u64::from(index) * 0x4000;
    RingAddrs { desc: base, avail: base + 0x1000, used: base + 0x2000 }
}

/// Negotiated, with [`region`] announced and `rings` started and enabled.
pub fn running(rings: u16) -> (Rig, RegionSpec, OwnedFd) {
    let mut rig = Rig::negotiated();
    let (spec, memory) = region();
    rig.front.set_mem_table(&[(spec, memory.as_fd())]).unwrap();
    for index in 0..rings {
        start(&mut rig, index, 0);
    }
    (rig, spec, memory)
}

/// Starts ring `index` of [`running`] at `base`.
pub fn start(rig: &mut Rig, index: u16, base: u16) {
    let (kick, call) = (event(), event());
    let vring = Vring {
        size: 128,
        addrs: ring_addrs(index),
        base,
        kick: kick.as_fd(),
        call: Some(call.as_fd()),
    };
    rig.front.start_vring(index, &vring).unwrap();
}

/// The call was refused, by a negative acknowledgement.
#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(outcome: Result<T, Error>, what: &str) {
    match outcome {
        Err(e) if e.kind() == ErrorKind::Refused => {}
        other => panic!("{what}: {other:?} instead of a refusal"),
    }
}
