//! Socket paths that cannot be used, and those that a dead server left behind.

use crate::common::Scratch;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener};

const SERVE: [&str; 3] = ["serve", "a.raw", "--vhost-user-blk"];

fn refuses(scratch: &Scratch, socket: &str, words: &[&str]) {
    scratch.refuses(&[&SERVE[..], &[socket]].concat(), 1, words);
    // Nor is an image made for a socket that cannot be.
    let create = ["serve", "new.raw", "--create", "1M", "--vhost-user-blk", socket];
    scratch.refuses(&create, 1, words);
}

#[test]
fn what_is_not_a_socket_is_left_alone() {
    let scratch = Scratch::with_image();
    fs::write(scratch.path("notes"), "dear to somebody").unwrap();
    fs::create_dir(scratch.path("dir")).unwrap();
    symlink("notes", scratch.path("link")).unwrap();
    symlink("nowhere", scratch.path("dangling")).unwrap();
    for name in ["notes", "dir", "link", "dangling", "a.raw"] {
        refuses(&scratch, name, &[name, "is not a socket"]);
    }
}

#[test]
fn a_default_socket_path_that_is_taken_is_refused_too() {
    let scratch = Scratch::with_image();
    fs::write(scratch.path("a.raw.sock"), "dear to somebody").unwrap();
    scratch.refuses(&["serve", "a.raw"], 1, &["a.raw.sock", "is not a socket"]);
}

#[test]
fn a_socket_that_somebody_listens_at_is_left_alone() {
    let scratch = Scratch::with_image();
    scratch.image("b.raw", 512);
    let _stream = UnixListener::bind(scratch.path("stream")).unwrap();
    refuses(&scratch, "stream", &["stream", "in use by a running server"]);
    let _datagram = UnixDatagram::bind(scratch.path("datagram")).unwrap();
    refuses(&scratch, "datagram", &["datagram", "another kind"]);
    let mut server = scratch.serve(&["b.raw", "--vhost-user-blk", "a.raw.sock"]);
    refuses(&scratch, "a.raw.sock", &["in use by a running server"]);
    assert!(server.is_running());
    server.stop();
}

#[test]
fn a_socket_that_nobody_listens_at_is_replaced() {
    let scratch = Scratch::with_image();
    drop(UnixListener::bind(scratch.path("a.raw.sock")).unwrap());
    let server = scratch.serve(&["a.raw"]);
    assert_eq!(crate::images::capacity(&server.socket), 1 << 20);
    // A server that is killed leaves one, and the next one does not mind.
    server.signal(Signal::KILL);
    drop(server);
    assert!(scratch.path("a.raw.sock").exists());
    let server = scratch.serve(&["a.raw"]);
    assert_eq!(crate::images::capacity(&server.socket), 1 << 20);
    server.stop();
}

#[test]
fn a_path_is_as_long_as_it_may_be_and_not_longer() {
    let scratch = Scratch::with_image();
    let longest = "s".repeat(107);
    let mut server = scratch.serve(&["a.raw", "--vhost-user-blk", &longest]);
    server.socket = scratch.path(&longest);
    assert!(server.socket.exists());
    server.stop();
    refuses(&scratch, &"s".repeat(108), &["108 bytes", "107"]);
    // So is a path that comes from the image's name.
    let image = format!("{}.raw", "i".repeat(110));
    scratch.image(&image, 512);
    scratch.refuses(&["serve", &image], 1, &["119 bytes", "107"]);
}

#[test]
fn a_directory_that_is_missing_is_not_made() {
    let scratch = Scratch::with_image();
    refuses(&scratch, "none/vm.sock", &["none/vm.sock", "No such file or directory"]);
    refuses(&scratch, "a.raw/vm.sock", &["a.raw/vm.sock", "Not a directory"]);
    fs::create_dir(scratch.path("dir")).unwrap();
    refuses(&scratch, "dir/", &["dir/"]);
    refuses(&scratch, "dir/..", &["dir/.."]);
}

#[test]
fn a_socket_that_took_our_place_is_not_removed() {
    let scratch = Scratch::with_image();
    let mut server = scratch.serve(&["a.raw"]);
    let socket = std::mem::replace(&mut server.socket, scratch.path("none"));
    fs::remove_file(&socket).unwrap();
    let _other = UnixListener::bind(&socket).unwrap();
    server.stop();
    assert!(socket.exists());
}
