//! What a server says when clients may connect, and what becomes of it if nobody can be told.

use crate::common::{MIB, PATIENCE, Scratch, Server, is_installed, lines_of, output};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};

#[test]
fn the_ready_line_names_the_socket() {
    let scratch = Scratch::with_image();
    let server = scratch.serve(&["a.raw", "--vhost-user-blk", "a.raw.sock"]);
    assert_eq!(server.printed, ["ready: vhost-user-blk a.raw.sock"]);
    server.stop();
}

#[test]
fn without_a_socket_it_is_beside_the_image_and_how_to_attach_it_is_said() {
    let scratch = Scratch::with_image();
    let server = scratch.serve(&["a.raw", "--queues", "3"]);
    let text = server.printed.join("\n");
    assert_eq!(server.printed.last().unwrap(), "ready: vhost-user-blk a.raw.sock");
    assert!(text.contains("-chardev socket,id=disk0,path=a.raw.sock "), "{text}");
    assert!(text.contains("num-queues=3"), "{text}");
    assert!(text.contains("--disk vhost_user=on,socket=a.raw.sock,num_queues=3"), "{text}");
    assert!(scratch.path("a.raw.sock").exists());
    server.stop();
}

#[test]
fn with_json_the_ready_line_is_one_object_and_all_that_is_printed() {
    let scratch = Scratch::new();
    for image in ["a.raw", "a\n\"b\\ \u{1b}\u{e9}.raw"] {
        scratch.image(image, MIB + 1);
        for more in [&[][..], &["--vhost-user-blk", "x \"\n.sock"]] {
            let server = scratch.serve(&[&[image, "--json", "--queues", "2"], more].concat());
            assert_eq!(server.printed.len(), 1);
            let ready: Value = serde_json::from_str(&server.printed[0]).unwrap();
            let beside = format!("{image}.sock");
            let expected = json!({
                "ready": "vhost-user-blk",
                "socket": more.last().copied().unwrap_or(&beside),
                "image": image,
                "bytes": MIB + 512,
                "queues": 2,
            });
            assert_eq!(ready, expected);
            server.stop();
        }
    }
}

#[test]
fn a_name_with_a_newline_does_not_make_a_ready_line() {
    let scratch = Scratch::new();
    let image = "a\nready: vhost-user-blk b\u{1b}[2J.raw";
    scratch.image(image, 1000);
    let server = scratch.serve(&[image]);
    let ready: Vec<_> = server.printed.iter().filter(|l| l.starts_with("ready:")).collect();
    assert_eq!(ready, [r"ready: vhost-user-blk a\nready: vhost-user-blk b\u{1b}[2J.raw.sock"]);
    let text = server.printed.join("") + &server.log().replace('\n', "");
    assert!(!text.chars().any(char::is_control), "{text:?}");
    // Nor does it make a line in the log: this one about the odd length.
    let warnings = server.log_lines("WARN");
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains(r"a\nready:") && warnings[0].contains("1000 bytes"));
    server.stop();
}

#[test]
fn who_cannot_be_told_is_not_served() {
    let scratch = Scratch::with_image();
    for json in [&[][..], &["--json"]] {
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        let full = File::options().write(true).open("/dev/full").unwrap();
        for (stdout, why) in
            [(Stdio::from(closed), "Broken pipe"), (Stdio::from(full), "No space left on device")]
        {
            let before = scratch.look();
            let mut command = scratch.ferroblk(&[&["serve", "a.raw"], json].concat());
            command.stdout(stdout).stderr(Stdio::piped());
            let done = output(command.spawn().unwrap(), "ferroblk");
            let stderr = String::from_utf8(done.stderr).unwrap();
            assert_eq!(done.status.code(), Some(1), "{stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            assert!(stderr.starts_with("ferroblk: ") && stderr.contains(why), "{stderr}");
            assert!(scratch.look() == before, "{:?}", scratch.names());
        }
    }
}

#[test]
fn a_log_that_cannot_be_written_costs_nothing_but_the_log() {
    let scratch = Scratch::new();
    scratch.image("a.raw", 1000);
    let full = || File::options().write(true).open("/dev/full").unwrap();
    // Served in spite of a warning that nobody sees.
    let mut command = scratch.ferroblk(&["serve", "a.raw"]);
    command.stdout(Stdio::piped()).stderr(full());
    let mut child = command.spawn().unwrap();
    let lines = lines_of(child.stdout.take().unwrap());
    while !lines.recv_timeout(PATIENCE).expect("it is ready").starts_with("ready: ") {}
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(output(child, "ferroblk").status.code(), Some(0));
    // And a complaint that nobody sees has its exit code.
    for (args, code) in [(&["serve", "none.raw"][..], 1), (&["serve", "--nonsense"], 2)] {
        let mut command = scratch.ferroblk(args);
        let done = output(command.stderr(full()).spawn().unwrap(), "ferroblk");
        assert_eq!(done.status.code(), Some(code));
    }
}

/// The command that a server prints for QEMU, with an emulated CPU that never starts and a monitor on its input.
fn qemu_line(server: &Server) -> String {
    let from = server.printed.iter().position(|line| line == "attach with QEMU:").unwrap();
    let mut line = String::new();
    for part in &server.printed[from + 1..] {
        match part.strip_suffix('\\') {
            Some(part) => line.push_str(part),
            None => {
                line.push_str(part);
                break;
            }
        }
    }
    assert!(line.contains("-accel kvm"), "{line}");
    let line = line.replace("-accel kvm", "-accel tcg");
    format!("exec {line} -S -nodefaults -display none -qmp stdio")
}

#[test]
fn the_printed_qemu_line_attaches_the_disk() {
    if !is_installed("qemu-system-x86_64") {
        return;
    }
    for (image, queues) in [("a.raw", "1"), ("it's a, b; $(c) & \"d\".raw", "4")] {
        let scratch = Scratch::new();
        scratch.image(image, MIB);
        let mut server = scratch.serve(&[image, "--queues", queues]);
        server.socket = scratch.path(&format!("{image}.sock"));
        let line = qemu_line(&server);
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]).current_dir(scratch.dir());
        let mut qemu = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut monitor = qemu.stdin.take().unwrap();
        // Answered in its main loop, which begins when all devices are there.
        let ask = br#"{"execute":"qmp_capabilities"} {"execute":"query-status"} {"execute":"qom-list","arguments":{"path":"/machine/peripheral-anon"}} {"execute":"quit"}"#;
        monitor.write_all(ask).unwrap();
        let answers: Vec<String> = lines_of(qemu.stdout.take().unwrap()).into_iter().collect();
        let status = output(qemu, &line).status;
        let answers = answers.join("\n");
        assert!(status.success(), "{line}: {status}: {answers}");
        assert!(answers.contains("child<vhost-user-blk-pci>"), "{answers}");
        let log = server.stop();
        assert!(log.contains("client connected"), "{log}");
        assert!(!log.contains("WARN"), "{log}");
    }
}
