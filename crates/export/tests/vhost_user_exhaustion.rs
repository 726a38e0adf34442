//! What happens when the process has no file descriptors left. One test, since the limit is the whole process's.

#![allow(missing_docs, clippy::disallowed_methods)]

mod common;

use common::*;
use export::server::{Control, Listener, Server};
use export::vhost_user::frontend::FrontEnd;
use export::vhost_user::message::{Payload, code};
use export::vhost_user::{Connection, ErrorKind, Session};
use rustix::io::write;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::read_dir;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// Whether to stop, and how often that was asked: once before each attempt to accept a client.
#[derive(Clone, Default)]
struct Stop(Arc<AtomicBool>, Arc<AtomicU32>);

impl Control for Stop {
    fn stop_requested(&mut self) -> bool {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.load(Ordering::SeqCst)
    }

    fn take_config_change(&mut self) -> bool {
        false
    }
}

/// Lets the process have as many file descriptors as it has now, and `more`.
fn allow(more: u64) {
    // The lowest number that is free is where a new descriptor would go; all below are taken in this process.
    let free = u64::try_from(event().as_raw_fd()).unwrap();
    let limit = Rlimit { current: Some(free + more), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
}

fn open_fds() -> usize {
    read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn running_out_of_file_descriptors_costs_clients_not_the_server() {
    let before = getrlimit(Resource::Nofile);
    file_descriptors_that_do_not_fit_end_the_session();
    setrlimit(Resource::Nofile, before).unwrap();
    clients_wait_until_there_is_room(before);
}

fn file_descriptors_that_do_not_fit_end_the_session() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut device = FakeDevice::default();
    let mut session = Session::new(Connection::new(theirs), &mut device);
    let mut front = FrontEnd::new(ours);
    let (spec, memory) = region();
    let table = (0..20).fold(Payload::new().u32(20).u32(0), |p, _| p.region(&spec)).done();
    front.send(code::SET_MEM_TABLE, false, &table, &[memory.as_fd(); 20]).unwrap();
    let fds = open_fds();
    allow(5);
    assert_eq!(session.turn().unwrap_err().kind(), ErrorKind::Protocol);
    drop(session);
    setrlimit(Resource::Nofile, Rlimit { current: Some(1000), ..getrlimit(Resource::Nofile) })
        .unwrap();
    assert!(open_fds() < fds, "the session's socket is closed, and what it received");
}

fn clients_wait_until_there_is_room(roomy: Rlimit) {
    let path = std::env::temp_dir().join(format!("ferroblk-full-{}.sock", std::process::id()));
    let wake = event();
    let mut server = Server::new(Listener::bind(&path).unwrap(), wake.try_clone().unwrap());
    let Stop(stop, asked) = Stop::default();
    let mut control = Stop(Arc::clone(&stop), Arc::clone(&asked));
    let thread = std::thread::spawn(move || server.run(&mut FakeDevice::default(), &mut control));

    allow(1);
    // This takes the last descriptor; the server has none left to accept it with.
    let mut front = FrontEnd::connect(&path).unwrap();
    front.send(code::GET_FEATURES, false, &[], &[]).unwrap();
    let before = asked.load(Ordering::SeqCst);
    while asked.load(Ordering::SeqCst) < before + 2 && !thread.is_finished() {
        std::thread::sleep(Duration::from_millis(1));
    }
    setrlimit(Resource::Nofile, roomy).unwrap();
    front.receive(code::GET_FEATURES).unwrap();

    stop.store(true, Ordering::SeqCst);
    write(&wake, &[1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    thread.join().unwrap().unwrap();
    assert!(!path.exists());
}
