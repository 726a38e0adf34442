//! Commands from standard input: a pipe, and a terminal.

use crate::rows::{assert_alike, assert_same_files, images};
use crate::sandbox::{Sandbox, Tool, has_qemu};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Stdio};

#[test]
fn a_pipe() {
    if !has_qemu() {
        return;
    }
    let files = images();
    for (args, input) in [
        (&["-f", "raw", "a.raw"][..], "length\nfoo\n\n  \nread 0 512\nquit\nlength\n"),
        (&["-f", "raw", "a.raw"], "length"),
        (&["-f", "raw", "a.raw"], ""),
        (&["-f", "raw", "a.raw"], "write -q 0 512\nread -P 1 0 512\n"),
        (&["-f", "qcow2", "a.qcow2"], "aio_write -q 0 64k\naio_flush\nmap\nclose\nlength\n"),
        (&["-f", "qed", "a.qed"], "write -P 7 5 1M\nwrite -P 7 5 1k\nsigraise 18\nq\n"),
        (&[], "length\nopen -o driver=qcow2 a.qcow2\nlength\nopen x\nclose\n"),
        (&["-f", "raw", "none.raw"], "length\n"),
    ] {
        let (theirs, our) = (files.copy(), files.copy());
        let their_end = theirs.run_with(Tool::Qemu, args, input);
        let our_end = our.run_with(Tool::Ours, args, input);
        let shown = format!("{args:?} {input:?}\n  QEMU: {their_end:?}\n  ours: {our_end:?}\n");
        assert_alike(&their_end, &our_end, false, &shown);
        assert_same_files(&theirs, &our, &shown);
    }
}

#[test]
fn what_is_no_text_and_lines_without_end_are_taken() {
    let files = Sandbox::new();
    File::create(files.path("a.raw")).unwrap().set_len(1 << 20).unwrap();
    let long = format!("{}\nlength\n", "x".repeat(3 << 20));
    let ended = files.run_with(Tool::Ours, &["-f", "raw", "a.raw"], &long);
    assert!(ended.code < 2 && !ended.stderr.contains("panicked"), "{}", ended.stdout);
    let ended = files.run_with(Tool::Ours, &["-f", "raw", "a.raw"], "\u{1b}[1m\u{0}\nlength\n");
    assert_eq!(ended.code, 1);
    assert!(ended.stdout.contains("1 MiB"), "{ended:?}");
    assert!(!ended.stderr.contains('\u{1b}'), "{ended:?}");
}

/// A terminal, as its user sees it.
struct Terminal {
    user: File,
    seen: String,
    child: Child,
}

impl Terminal {
    fn start(files: &Sandbox, args: &[&str]) -> Terminal {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap().into_string().unwrap();
        let open = || {
            let file = File::options().read(true).write(true).open(&name).unwrap();
            Stdio::from(file)
        };
        let mut command = files.command(Tool::Ours);
        command.args(args).stdin(open()).stdout(open()).stderr(open()).env("TERM", "xterm");
        let child = command.spawn().unwrap();
        Terminal { user: File::from(user), seen: String::new(), child }
    }

    fn types(&mut self, text: &str) {
        self.user.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until `text` is shown, and forgets what came up to it.
    fn sees(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let mut bytes = [0; 1024];
            let got = self.user.read(&mut bytes).unwrap_or(0);
            assert!(got > 0, "{text:?} was not shown, but {:?}", self.seen);
            self.seen += &String::from_utf8_lossy(&bytes[..got]);
        }
        let end = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..end);
    }
}

#[test]
fn a_terminal_has_history_and_completes_names() {
    let files = Sandbox::new();
    File::create(files.path("a.raw")).unwrap().set_len(1 << 20).unwrap();
    let mut terminal = Terminal::start(&files, &["-f", "raw", "a.raw"]);
    terminal.sees("qemu-io> ");
    terminal.types("len\t\r");
    terminal.sees("1 MiB");
    terminal.sees("qemu-io> ");
    terminal.types("truncate 2M\r");
    terminal.sees("qemu-io> ");
    // Up twice: the first command once more.
    terminal.types("\u{1b}[A\u{1b}[A\r");
    terminal.sees("2 MiB");
    terminal.sees("qemu-io> ");
    // A mistake, mended.
    terminal.types("lengtx\u{7f}h\r");
    terminal.sees("2 MiB");
    terminal.sees("qemu-io> ");
    terminal.types("quit\r");
    assert!(terminal.child.wait().unwrap().success());
}

#[test]
fn requests_go_on_while_nobody_types() {
    let files = Sandbox::new();
    File::create(files.path("a.raw")).unwrap().set_len(64 << 20).unwrap();
    let mut command = files.command(Tool::Ours);
    command.args(["-f", "raw", "a.raw"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    input.write_all(b"aio_write 0 32M\n").unwrap();
    let mut seen = String::new();
    // Its end is told before the next command comes.
    while !seen.contains("wrote 33554432/33554432 bytes") {
        let mut bytes = [0; 256];
        let got = output.read(&mut bytes).unwrap();
        assert!(got > 0, "{seen}");
        seen += &String::from_utf8_lossy(&bytes[..got]);
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}
