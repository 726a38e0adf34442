//! Who may open an image beside whom: ferroblk and QEMU, each against each and against itself.
//!
//! Any number of readers, or one writer, whoever they are. What QEMU does is that of version 10: its virtual machines exclude
//! each other as we do; its tools share everything, so that only what they do themselves can be refused them.

use crate::common::{MIB, PATIENCE, Scratch, is_installed, lines_of, output};
use blk_client::server::Server as Daemon;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const LOCKED: &str = "in use by another process (locked)";

/// Refused as locked, at a socket of its own; for reading and writing, or for writing alone.
fn refuses_to_share(scratch: &Scratch, modes: &[&[&str]]) {
    for mode in modes {
        let args = ["serve", "a.raw", "--vhost-user-blk", "other.sock"];
        scratch.refuses(&[&args[..], mode].concat(), 1, &["opening a.raw", LOCKED]);
    }
}

const ANY: &[&[&str]] = &[&[], &["--read-only"], &["--read-only", "--cache", "writeback"]];
const WRITERS: &[&[&str]] = &[&[], &["--cache", "unsafe"], &["--iothreads", "2"]];

/// Runs one command of qemu-io on the image. Returns whether it could open it, and what it said.
fn qemu_io(scratch: &Scratch, options: &[&str], what: &str) -> (bool, String) {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]).args(options).args(["-c", what, "a.raw"]);
    command.current_dir(scratch.dir()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let done = output(command.spawn().unwrap(), "qemu-io");
    let said = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8_lossy(&said).into_owned())
}

fn qemu_io_may(scratch: &Scratch, options: &[&str]) {
    let (opened, said) = qemu_io(scratch, options, "read 0 512");
    assert!(opened, "qemu-io {options:?}: {said}");
}

fn qemu_io_may_not(scratch: &Scratch, options: &[&str]) {
    let before = fs::read(scratch.path("a.raw")).unwrap();
    let what = if options.contains(&"-r") { "read 0 512" } else { "write -P 0xee 0 512" };
    let (opened, said) = qemu_io(scratch, options, what);
    assert!(!opened && said.contains("lock"), "qemu-io {options:?}: {said}");
    assert!(fs::read(scratch.path("a.raw")).unwrap() == before, "qemu-io {options:?} wrote");
}

/// A QEMU process that has the image open until it is dropped.
struct Qemu(Child);

impl Qemu {
    /// The tool. It shares all that it does not do itself, so with `-r` it excludes nobody.
    fn io(scratch: &Scratch, options: &[&str]) -> Qemu {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]).args(options).arg("a.raw");
        Qemu::start(scratch, command, "length\n", "1 MiB").unwrap()
    }

    /// A virtual machine with the image as its disk; `None` if it cannot have it. It shares what a guest can bear.
    fn machine(scratch: &Scratch, read_only: bool) -> Option<Qemu> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-S", "-nodefaults", "-display", "none", "-qmp", "stdio"]);
        let read_only = if read_only { "on" } else { "off" };
        let drive = format!("file=a.raw,format=raw,if=virtio,readonly={read_only}");
        command.args(["-drive", &drive]);
        let ask = r#"{"execute":"qmp_capabilities"} {"execute":"query-status"}"#;
        Qemu::start(scratch, command, ask, "prelaunch")
    }

    /// Starts a command, which must have the image open when it gives the answer; or say that the image is locked.
    fn start(scratch: &Scratch, mut command: Command, ask: &str, answer: &str) -> Option<Qemu> {
        command.current_dir(scratch.dir()).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        // Fails if it has ended already; then there is no answer either.
        let _ = child.stdin.as_mut().unwrap().write_all(ask.as_bytes());
        loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(answer) => return Some(Qemu(child)),
                Ok(_) => {}
                Err(_) => {
                    let said = String::from_utf8(output(child, "QEMU").stderr).unwrap();
                    assert!(said.contains("lock"), "{command:?}: {said}");
                    return None;
                }
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only if the process is gone already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_writer_excludes_every_other_ferroblk() {
    let scratch = Scratch::with_image();
    let mut server = scratch.serve(&["a.raw"]);
    refuses_to_share(&scratch, ANY);
    // By whatever name.
    fs::hard_link(scratch.path("a.raw"), scratch.path("b.raw")).unwrap();
    std::os::unix::fs::symlink("a.raw", scratch.path("c.raw")).unwrap();
    for name in ["b.raw", "c.raw"] {
        scratch.refuses(&["serve", name], 1, &["opening", name, LOCKED]);
    }
    assert!(server.is_running());
    server.stop();
    scratch.serve(&["b.raw", "--vhost-user-blk", "a.raw.sock"]).stop();
}

#[test]
fn readers_share_and_exclude_writers() {
    let scratch = Scratch::with_image();
    let first = scratch.serve(&["a.raw", "--read-only"]);
    let mut second = scratch.serve(&["a.raw", "--read-only", "--vhost-user-blk", "b.sock"]);
    second.socket = scratch.path("b.sock");
    for server in [&first, &second] {
        assert_eq!(crate::images::capacity(&server.socket), MIB as u64);
    }
    refuses_to_share(&scratch, WRITERS);
    first.stop();
    refuses_to_share(&scratch, WRITERS);
    second.stop();
    scratch.serve(&["a.raw"]).stop();
}

#[test]
fn a_killed_server_leaves_no_lock() {
    let scratch = Scratch::with_image();
    drop(scratch.serve(&["a.raw", "--iothreads", "4"]));
    scratch.serve(&["a.raw"]).stop();
}

/// Whether all of QEMU is here.
fn has_qemu() -> bool {
    ["qemu-io", "qemu-storage-daemon", "qemu-system-x86_64"].into_iter().all(is_installed)
}

fn daemon(image: &Path, socket: &Path) -> Result<Daemon, blk_client::Error> {
    Daemon::qemu_storage_daemon(image, socket, "none", 1)
}

#[test]
fn qemu_is_kept_out_of_what_ferroblk_writes() {
    if !has_qemu() {
        return;
    }
    let scratch = Scratch::with_image();
    let mut server = scratch.serve(&["a.raw"]);
    assert!(Qemu::machine(&scratch, false).is_none(), "a machine that writes");
    assert!(Qemu::machine(&scratch, true).is_none(), "a machine that reads");
    assert!(daemon(&scratch.path("a.raw"), &scratch.path("qemu.sock")).is_err());
    qemu_io_may_not(&scratch, &[]);
    // It asks for no more than to read, beside whomever; a machine that writes lets it, and so do we.
    qemu_io_may(&scratch, &["-r"]);
    assert!(server.is_running());
    server.stop();
    qemu_io_may(&scratch, &[]);
}

#[test]
fn qemu_may_read_and_not_write_what_ferroblk_reads() {
    if !has_qemu() {
        return;
    }
    let scratch = Scratch::with_image();
    let server = scratch.serve(&["a.raw", "--read-only"]);
    qemu_io_may(&scratch, &["-r"]);
    qemu_io_may_not(&scratch, &[]);
    assert!(Qemu::machine(&scratch, true).is_some(), "a machine that reads");
    assert!(Qemu::machine(&scratch, false).is_none(), "a machine that writes");
    assert!(daemon(&scratch.path("a.raw"), &scratch.path("qemu.sock")).is_err());
    server.stop();
}

#[test]
fn ferroblk_is_kept_out_of_what_qemu_writes() {
    if !has_qemu() {
        return;
    }
    let scratch = Scratch::with_image();
    let tool = Qemu::io(&scratch, &[]);
    refuses_to_share(&scratch, ANY);
    drop(tool);
    let machine = Qemu::machine(&scratch, false).expect("a machine on a free image");
    refuses_to_share(&scratch, ANY);
    drop(machine);
    let sockets = Scratch::new();
    let daemon = daemon(&scratch.path("a.raw"), &sockets.path("qemu.sock")).unwrap();
    refuses_to_share(&scratch, ANY);
    daemon.stop().unwrap();
    scratch.serve(&["a.raw"]).stop();
}

#[test]
fn ferroblk_may_read_and_not_write_what_qemu_reads() {
    if !has_qemu() {
        return;
    }
    let scratch = Scratch::with_image();
    let machine = Qemu::machine(&scratch, true).expect("a machine on a free image");
    refuses_to_share(&scratch, WRITERS);
    scratch.serve(&["a.raw", "--read-only"]).stop();
    drop(machine);
    let tool = Qemu::io(&scratch, &["-r"]);
    scratch.serve(&["a.raw", "--read-only"]).stop();
    scratch.serve(&["a.raw"]).stop();
    drop(tool);
}
