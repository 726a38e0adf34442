//! The server: its socket, its clients one after the other, and what it can be told.

#![allow(missing_docs, clippy::disallowed_methods)]

mod common;

use common::*;
use export::server::{Control, Listener, PATH_MAX, Server};
use export::vhost_user::frontend::{FrontEnd, Vring};
use export::vhost_user::message::code;
use export::vhost_user::{Channel, Connection, Error, ErrorKind, Sent, Session};
use rustix::io::write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

/// A directory of its own for one test, removed at its end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = COUNT.fetch_add(1, Ordering::SeqCst);
        let name = format!("ferroblk-server-{}-{unique}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        Dir(dir)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[derive(Clone, Default)]
struct Wishes {
    stop: Arc<AtomicBool>,
    changed: Arc<AtomicBool>,
}

impl Control for Wishes {
    fn stop_requested(&mut self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn take_config_change(&mut self) -> bool {
        self.changed.swap(false, Ordering::SeqCst)
    }
}

/// Announces memory, and starts ring 0 in it.
fn start_ring_0(front: &mut FrontEnd) {
    let (spec, memory) = region();
    front.set_mem_table(&[(spec, memory.as_fd())]).unwrap();
    let kick = event();
    let addrs = ring_addrs(0);
    let vring = Vring { size: 128, addrs, base: 0, kick: kick.as_fd(), call: None };
    front.start_vring(0, &vring).unwrap();
}

/// A server on a thread of its own.
struct Running {
    path: PathBuf,
    device: FakeDevice,
    wishes: Wishes,
    wake: OwnedFd,
    thread: JoinHandle<Result<(), Error>>,
    _dir: Dir,
}

impl Running {
    fn new() -> Running {
        let dir = Dir::new();
        let path = dir.join("disk.sock");
        let (device, wishes, wake) = (FakeDevice::default(), Wishes::default(), event());
        let mut server = Server::new(Listener::bind(&path).unwrap(), wake.try_clone().unwrap());
        let (mut served, mut control) = (device.clone(), wishes.clone());
        let thread = std::thread::spawn(move || server.run(&mut served, &mut control));
        Running { path, device, wishes, wake, thread, _dir: dir }
    }

    fn wake(&self) {
        write(&self.wake, &[1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    }

    fn client(&self) -> FrontEnd {
        let mut front = FrontEnd::connect(&self.path).unwrap();
        front.handshake_all().unwrap();
        front
    }

    /// A client with ring 0 started.
    fn running_client(&self) -> FrontEnd {
        let mut front = self.client();
        start_ring_0(&mut front);
        front
    }

    fn stop(self) -> FakeDevice {
        self.wishes.stop.store(true, Ordering::SeqCst);
        self.wake();
        self.thread.join().unwrap().unwrap();
        assert!(!self.path.exists(), "the socket's file is removed");
        assert_eq!(self.device.started(), Vec::<u16>::new());
        self.device
    }
}

#[test]
fn one_client_after_the_other_is_served_whatever_they_do() {
    let server = Running::new();
    for end in ["close", "nonsense", "half a message", "refusal", "reply unread"] {
        let mut front = server.running_client();
        match end {
            "nonsense" => front.send_bytes(&[0xff; 64], &[]).unwrap(),
            "half a message" => front.send_bytes(&[1, 0], &[]).unwrap(),
            "refusal" => front.send(999, false, &[], &[]).unwrap(),
            "reply unread" => front.send(code::GET_FEATURES, false, &[], &[]).unwrap(),
            _ => {}
        }
        if matches!(end, "nonsense" | "refusal") {
            assert!(front.is_dropped(), "{end}");
        }
    }
    let mut last = server.client();
    assert_eq!(last.queue_num().unwrap(), u64::from(QUEUES));
    assert_eq!(server.device.started(), Vec::<u16>::new(), "their rings are stopped");
    assert_eq!(server.device.state().sessions_ended, 5);
    server.stop();
}

#[test]
fn a_client_that_reconnects_at_once_is_not_taken_for_a_second_one() {
    let server = Running::new();
    for _ in 0..200 {
        let mut front = server.client();
        // Enough to be still at it when the next client is there.
        for _ in 0..20 {
            let no_call = (1u64 << 8).to_le_bytes();
            front.send(code::SET_VRING_CALL, false, &no_call, &[]).unwrap();
        }
    }
    server.stop();
}

#[test]
fn a_second_client_is_closed_at_once_and_the_first_goes_on() {
    let server = Running::new();
    let mut first = server.running_client();
    for _ in 0..40 {
        let mut second = FrontEnd::connect(&server.path).unwrap();
        assert!(second.is_dropped());
        first.get_features().unwrap();
    }
    assert_eq!(server.device.started(), [0]);
    drop(first);
    server.client();
    server.stop();
}

#[test]
fn a_stop_ends_the_session_and_stops_its_rings() {
    let server = Running::new();
    let mut front = server.running_client();
    let device = server.stop();
    assert_eq!(device.state().sessions_ended, 1);
    assert!(front.is_dropped());
}

#[test]
fn a_stop_without_a_client_ends_the_server() {
    let device = Running::new().stop();
    assert_eq!(device.state().sessions_ended, 0);
}

#[test]
fn a_stop_asked_for_before_the_start_is_seen() {
    let dir = Dir::new();
    let mut server = Server::new(Listener::bind(&dir.join("s")).unwrap(), event());
    let mut control = Wishes::default();
    control.stop.store(true, Ordering::SeqCst);
    server.run(&mut FakeDevice::default(), &mut control).unwrap();
}

#[test]
fn a_change_of_the_configuration_reaches_a_running_front_end() {
    let server = Running::new();
    let mut front = server.running_client();
    let mut channel = front.open_channel().unwrap();
    for value in [3, 4] {
        server.device.state().config[0] = value;
        server.wishes.changed.store(true, Ordering::SeqCst);
        server.wake();
        channel.wait_config_change().unwrap();
        assert_eq!(front.read_config(0, 1).unwrap(), [value]);
    }
    server.stop();
}

/// A session driven by hand, and its front end on a thread that does `say`.
fn with_session(say: impl FnOnce(&mut FrontEnd) + Send + 'static) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut device = FakeDevice::default();
    let mut session = Session::new(Connection::new(theirs), &mut device);
    session.config_changed();
    let front = std::thread::spawn(move || {
        let mut front = FrontEnd::new(ours);
        front.handshake_all().unwrap();
        say(&mut front);
    });
    session.serve();
    front.join().unwrap();
}

#[test]
fn a_suspended_device_is_silent_until_a_ring_starts() {
    with_session(|front| {
        let mut channel = front.open_channel().unwrap();
        front.get_features().unwrap();
        assert!(!channel.has_message(), "no ring is started");
        start_ring_0(front);
        channel.wait_config_change().unwrap();
        front.get_features().unwrap();
        assert!(!channel.has_message(), "one change, one message");
    });
}

#[test]
fn a_channel_that_its_front_end_closed_does_not_end_the_session() {
    with_session(|front| {
        drop(front.open_channel().unwrap());
        start_ring_0(front);
        front.get_features().unwrap();
        // Another channel can be opened instead.
        front.open_channel().unwrap();
    });
}

#[test]
fn a_channel_nobody_reads_never_blocks() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut channel = Channel::new(theirs.into()).unwrap();
    while channel.send_config_change() == Sent::Yes {}
    assert_eq!(channel.send_config_change(), Sent::NotNow);
    drop(ours);
    assert_eq!(channel.send_config_change(), Sent::Gone);
}

// ---- The socket ----

#[track_caller]
fn assert_bad_path(path: &Path, says: &str) {
    let e = Listener::bind(path).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::BadPath, "{e}");
    assert!(e.to_string().contains(says), "{e}");
}

#[test]
fn a_path_that_does_not_fit_is_refused_by_its_length() {
    let dir = Dir::new();
    let name = |len: usize| dir.join(&"x".repeat(len - dir.0.as_os_str().len() - 1));
    Listener::bind(&name(PATH_MAX)).unwrap();
    assert_bad_path(&name(PATH_MAX + 1), "108 bytes");
    assert_bad_path(Path::new(""), "0 bytes");
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = Dir::new();
    let path = dir.join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left behind");
    let live = Listener::bind(&path).unwrap();
    assert_bad_path(&path, "in use by a running server");
    assert!(path.exists());
    FrontEnd::connect(&path).unwrap();
    assert_eq!(live.path(), Some(path.as_path()));
}

#[test]
fn a_server_with_a_full_backlog_is_a_live_one() {
    let dir = Dir::new();
    let path = dir.join("s");
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let _waiting = UnixStream::connect(&path).unwrap();
    assert_bad_path(&path, "in use by a running server");
}

#[test]
fn what_is_not_our_kind_of_socket_is_left_alone() {
    let dir = Dir::new();
    let (file, dgram, link) = (dir.join("file"), dir.join("dgram"), dir.join("link"));
    std::fs::create_dir(&file).unwrap();
    let _dgram = UnixDatagram::bind(&dgram).unwrap();
    std::os::unix::fs::symlink(&dgram, &link).unwrap();
    assert_bad_path(&file, "not a socket");
    assert_bad_path(&dgram, "socket of another kind");
    assert_bad_path(&link, "not a socket");
    assert!(file.exists() && dgram.exists() && link.exists());
}

#[test]
fn only_our_own_file_is_removed() {
    let dir = Dir::new();
    let path = dir.join("s");
    let ours = Listener::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let theirs = UnixListener::bind(&path).unwrap();
    drop(ours);
    assert!(path.exists());
    drop(theirs);
}

#[test]
fn a_listening_socket_can_be_handed_down() {
    let dir = Dir::new();
    let path = dir.join("s");
    let listening = UnixListener::bind(&path).unwrap();
    drop(Listener::from_fd(listening.into()).unwrap());
    assert!(path.exists(), "whoever made the file removes it");
    let not_listening: OwnedFd = UnixStream::pair().unwrap().0.into();
    for fd in [not_listening, event(), UnixDatagram::unbound().unwrap().into()] {
        assert_eq!(Listener::from_fd(fd).unwrap_err().kind(), ErrorKind::BadPath);
    }
}
