//! Signals: how a server ends, and how it learns that its image has grown.

use crate::common::{MIB, Scratch, Server, wait_until};
use crate::images::capacity;
use blk_client::{ConnectOptions, Device, Notify, Op};
use export::vhost_user::frontend::{FrontEnd, Vring};
use export::vhost_user::message::RingAddrs;
use guest_mem::{GuestAddr, GuestMemory, RegionSpec};
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Signal;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const BLOCK: usize = 4096;
const DEPTH: usize = 16;

/// What the write with this number writes: its number, all over the block.
fn pattern(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK / 8)
}

#[test]
fn an_idle_server_ends_when_told_to() {
    for signal in [Signal::TERM, Signal::INT] {
        let scratch = Scratch::with_image();
        let before = scratch.look();
        let server = scratch.serve(&["a.raw", "--iothreads", "2", "--queues", "2"]);
        server.signal(signal);
        server.ends_well();
        assert!(scratch.look() == before, "{:?}", scratch.names());
    }
}

#[test]
fn a_signal_right_after_another_changes_nothing() {
    let scratch = Scratch::with_image();
    let server = scratch.serve(&["a.raw"]);
    for signal in [Signal::HUP, Signal::TERM, Signal::INT, Signal::HUP, Signal::TERM] {
        server.signal(signal);
    }
    server.ends_well();
}

#[test]
fn a_server_with_an_idle_client_ends_when_told_to() {
    for signal in [Signal::TERM, Signal::INT] {
        let scratch = Scratch::with_image();
        let server = scratch.serve(&["a.raw"]);
        let mut client = FrontEnd::connect(&server.socket).unwrap();
        client.handshake_all().unwrap();
        server.signal(signal);
        server.ends_well();
        assert!(client.is_dropped());
    }
}

#[test]
fn a_server_with_a_client_in_the_middle_of_a_message_ends_when_told_to() {
    let scratch = Scratch::with_image();
    let server = scratch.serve(&["a.raw"]);
    let mut client = FrontEnd::connect(&server.socket).unwrap();
    client.handshake_all().unwrap();
    client.send_bytes(&[1, 0, 0], &[]).unwrap();
    server.stop();
}

/// Writes blocks one after the other until the server is gone. Returns the numbers of those that were completed.
fn write_until(gone: &AtomicBool, completed: &AtomicU64, socket: &str) -> Vec<u64> {
    let options = ConnectOptions {
        socket: socket.to_owned(),
        queues: 1,
        notify: Notify::Poll,
        queue_size: 64,
        depth: DEPTH,
        slot_bytes: BLOCK,
        read_only: false,
    };
    let (device, mut queues) = Device::connect(&options).unwrap();
    let blocks = device.capacity / BLOCK as u64;
    let queue = &mut queues[0];
    let mut in_slot = [0; DEPTH];
    let mut done = Vec::new();
    let mut next = 0;
    loop {
        // Asked before the completions are collected: after its end there are no more.
        let last = gone.load(Ordering::Acquire);
        for (slot, number) in in_slot.iter_mut().enumerate() {
            if !last && !queue.is_busy(slot) && next < blocks {
                queue.fill(slot, 0, &pattern(next + 1));
                queue.submit(slot, Op::Write, next * BLOCK as u64, BLOCK);
                *number = next;
                next += 1;
            }
        }
        for completion in queue.wait(0).unwrap() {
            assert_eq!(completion.ret, 0);
            done.push(in_slot[completion.slot]);
        }
        completed.store(done.len() as u64, Ordering::Release);
        if last {
            return done;
        }
        std::thread::yield_now();
    }
}

/// Tells a server to end while a client writes. All that was completed must be in the file.
fn end_under_load(signal: Signal, args: &[&str]) {
    let scratch = Scratch::new();
    let image = scratch.path("a.raw");
    let server = scratch.serve(&[&["a.raw", "--create", "1G"], args].concat());
    let socket = server.socket.to_str().unwrap().to_owned();
    let (gone, completed) = (AtomicBool::new(false), AtomicU64::new(0));
    let done = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&gone, &completed, &socket));
        wait_until("a few hundred writes are completed", || {
            assert!(!writer.is_finished(), "the client ended early");
            completed.load(Ordering::Acquire) > 300
        });
        server.signal(signal);
        server.ends_well();
        gone.store(true, Ordering::Release);
        writer.join().unwrap()
    });
    assert_eq!(scratch.names(), ["a.raw"]);
    let file = File::open(image).unwrap();
    for number in done {
        let mut block = vec![0; BLOCK];
        let at = number * BLOCK as u64;
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut block, at).unwrap();
        assert!(block == pattern(number + 1), "write {number} was completed and is not there");
    }
}

#[test]
fn a_server_under_load_ends_when_told_to_and_keeps_what_it_completed() {
    end_under_load(Signal::TERM, &[]);
    end_under_load(Signal::INT, &["--cache", "writeback"]);
    end_under_load(Signal::TERM, &["--aio", "native", "--poll-max-us", "0"]);
    end_under_load(Signal::INT, &["--aio", "threads", "--cache", "writeback"]);
}

#[test]
fn a_client_that_goes_makes_room_for_the_next() {
    let scratch = Scratch::with_image();
    let server = scratch.serve(&["a.raw"]);
    for _ in 0..3 {
        assert_eq!(capacity(&server.socket), MIB as u64);
    }
    server.stop();
}

fn resize(scratch: &Scratch, len: u64) {
    File::options().write(true).open(scratch.path("a.raw")).unwrap().set_len(len).unwrap();
}

/// A client whose driver is at work: one ring is started. Others are told nothing: they have read nothing yet.
fn working_client(server: &Server) -> FrontEnd {
    let mut client = FrontEnd::connect(&server.socket).unwrap();
    client.handshake_all().unwrap();
    let len = 0x3000;
    let (_, fd) = GuestMemory::memfd(len).unwrap();
    let guest_addr = GuestAddr(0);
    let region = RegionSpec { guest_addr, len, user_addr: 0, file_offset: 0 };
    client.set_mem_table(&[(region, fd.as_fd())]).unwrap();
    let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let addrs = RingAddrs { desc: 0, avail: 0x1000, used: 0x2000 };
    let vring = Vring { size: 16, addrs, base: 0, kick: kick.as_fd(), call: None };
    client.start_vring(0, &vring).unwrap();
    client
}

fn sectors(client: &mut FrontEnd) -> u64 {
    u64::from_le_bytes(client.read_config(0, 8).unwrap().try_into().unwrap())
}

#[test]
fn a_connected_client_is_told_that_the_image_has_grown() {
    let scratch = Scratch::with_image();
    let server = scratch.serve(&["a.raw"]);
    let mut client = working_client(&server);
    let mut channel = client.open_channel().unwrap();
    assert_eq!(sectors(&mut client), 2048);
    for (len, expected) in [(2 << 20, 4096), ((4 << 20) + 100, 8193)] {
        resize(&scratch, len);
        assert!(!channel.has_message(), "nobody looks at the file by himself");
        server.signal(Signal::HUP);
        channel.wait_config_change().unwrap();
        assert_eq!(sectors(&mut client), expected);
    }
    let log = server.stop();
    assert!(log.contains("the disk has 2097152 bytes now"), "{log}");
}

#[test]
fn a_signal_without_a_new_size_tells_nobody_anything() {
    let scratch = Scratch::with_image();
    let server = scratch.serve(&["a.raw"]);
    let mut client = working_client(&server);
    let mut channel = client.open_channel().unwrap();
    server.signal(Signal::HUP);
    // Two of them, the second with something to tell: only one message comes.
    resize(&scratch, 2 << 20);
    server.signal(Signal::HUP);
    channel.wait_config_change().unwrap();
    assert_eq!(sectors(&mut client), 4096);
    server.signal(Signal::HUP);
    assert_eq!(sectors(&mut client), 4096);
    assert!(!channel.has_message());
    server.stop();
}

#[test]
fn a_size_that_changed_while_nobody_was_connected_is_what_the_next_client_sees() {
    let scratch = Scratch::with_image();
    let server = scratch.serve(&["a.raw"]);
    assert_eq!(capacity(&server.socket), MIB as u64);
    resize(&scratch, 3 << 20);
    server.signal(Signal::HUP);
    wait_until("the server has looked", || server.log().contains("3145728 bytes now"));
    assert_eq!(capacity(&server.socket), 3 << 20);
    server.stop();
}

#[test]
fn sighup_reaches_the_data_behind_the_old_end() {
    let scratch = Scratch::with_image();
    let server = scratch.serve(&["a.raw"]);
    resize(&scratch, 2 << 20);
    server.signal(Signal::HUP);
    wait_until("the server has looked", || server.log().contains("2097152 bytes now"));
    let completed = write_all(&server, 512);
    assert_eq!(completed, 512);
    server.stop();
    let bytes = fs::read(scratch.path("a.raw")).unwrap();
    assert!(bytes[(2 << 20) - BLOCK..] == pattern(512));
}

/// Writes so many blocks, which must be the whole disk, and returns how many were completed.
fn write_all(server: &Server, blocks: u64) -> u64 {
    let (gone, completed) = (AtomicBool::new(false), AtomicU64::new(0));
    let socket = server.socket.to_str().unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&gone, &completed, socket));
        wait_until("the disk is written", || {
            assert!(!writer.is_finished(), "the client ended early");
            completed.load(Ordering::Acquire) >= blocks
        });
        gone.store(true, Ordering::Release);
        writer.join().unwrap().len() as u64
    })
}
