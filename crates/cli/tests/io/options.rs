//! The command line itself.

use crate::rows::{Expect, SAME, images, ours, run_all};
use crate::sandbox::{Sandbox, Tool, has_qemu};
use std::fs;

const QEMU_GUESSES: &str = "QEMU guesses a format from the content, with a warning";

#[test]
fn command_lines() {
    if !has_qemu() {
        return;
    }
    let encrypted = "driver=qcow2,file.filename=luks.qcow2,encrypt.key-secret=s";
    let secret = "secret,id=s,data=hello";
    let rows: &[(&[&str], Expect)] = &[
        (&["-c", "length"], SAME),
        (&["-c", "help", "-c", "sleep 1", "-c", "foo"], SAME),
        (&["-c", "aio_flush"], SAME),
        (&["none.raw"], SAME),
        (&["-f", "raw", "none.raw", "-c", "length"], SAME),
        (&["-f", "vmdk", "a.raw", "-c", "length"], SAME),
        (&["-f", "qcow2", "a.raw", "-c", "length"], SAME),
        (&["-f", "qed", "a.qcow2", "-c", "length"], SAME),
        (&["-f", "raw", "-c", "length", "a.qcow2", "-c", "alloc 0"], SAME),
        (&["--cmd", "length", "--format", "raw", "a.raw"], SAME),
        (&["--cmd=length", "--read-only", "a.qed"], SAME),
        (&["--cm=length", "--form=raw", "a.raw"], SAME),
        (&["-c", "length", "a.qcow2"], SAME),
        (&["-c", "length", "a.raw"], ours(0, "1 MiB", QEMU_GUESSES)),
        (&["-t", "x", "a.raw"], SAME),
        (&["-d", "x", "a.raw"], SAME),
        (&["-i", "x", "a.raw"], SAME),
        (&["-t", "off", "-f", "raw", "-c", "write 1 2", "a.raw"], SAME),
        (&["-n", "-f", "raw", "-c", "write 1 2", "-c", "read -v 0 16", "a.raw"], SAME),
        (&["-n", "-m", "-f", "raw", "-c", "write 0 64k", "a.raw"], SAME),
        (&["-n", "-f", "qcow2", "-c", "write 1 2", "-c", "read -v 0 16", "a.qcow2"], SAME),
        (&["-n", "-f", "qed", "-c", "writev 1 2 99k", "-c", "read -v 0 16", "over.qed"], SAME),
        (&["-t", "writethrough", "-f", "qcow2", "-c", "write -c 0 64k", "a.qcow2"], SAME),
        (&["-t", "directsync", "-f", "qed", "-c", "write -z 5 64k", "a.qed"], SAME),
        (&["-t", "unsafe", "-f", "qcow2", "-c", "write 0 64k", "-c", "flush", "a.qcow2"], SAME),
        (&["-m", "-f", "qed", "-c", "write 0 512", "-c", "read -v 0 16", "a.qed"], SAME),
        (&["-k", "-n", "-f", "raw", "-c", "write 5 5k", "a.raw"], SAME),
        (&["-k", "-f", "raw", "-c", "length", "a.raw"], SAME),
        (&["-i", "io_uring", "-f", "raw", "-c", "write 5 5k", "a.raw"], SAME),
        (&["-i", "threads", "-f", "qcow2", "-c", "write 5 5k", "a.qcow2"], SAME),
        (&["--aio=native", "--nocache", "-f", "qcow2", "-c", "write 5 5k", "a.qcow2"], SAME),
        (
            &[
                "-d",
                "ignore",
                "-f",
                "raw",
                "-c",
                "discard 0 64k",
                "-c",
                "read -P 1 0 64k",
                "base.raw",
            ],
            SAME,
        ),
        (
            &[
                "-d",
                "unmap",
                "-f",
                "raw",
                "-c",
                "discard 0 64k",
                "-c",
                "read -P 0 0 64k",
                "base.raw",
            ],
            SAME,
        ),
        (&["-U", "-r", "-f", "raw", "-c", "length", "a.raw"], SAME),
        (&["-U", "-f", "raw", "-c", "length", "a.raw"], SAME),
        (&["-r", "-f", "raw", "-c", "write 0 512", "-c", "read 0 512", "a.raw"], SAME),
        (&["-s", "-f", "raw", "-c", "write 0 64k", "-c", "read -P 0xcd 0 64k", "base.raw"], SAME),
        (&["-s", "-f", "qcow2", "-c", "write 9 9", "-c", "map", "over.qcow2"], SAME),
        (&["-s", "-f", "qed", "-c", "info", "over.qed"], SAME),
        (&["--image-opts", "-c", "length", "driver=qcow2,file.filename=over.qcow2"], SAME),
        (&["--image-opts", "-c", "length", "driver=qcow2,file.filename=none"], SAME),
        (&["--image-opts", "-c", "length", "a.qcow2"], SAME),
        (&["--image-opts", "-f", "raw", "-c", "length", "driver=raw,file.filename=a.raw"], SAME),
        (&["--object", secret, "-f", "raw", "-c", "length", "a.raw"], SAME),
        (&["--object", "foo", "-f", "raw", "-c", "length", "a.raw"], SAME),
        (&["--object", secret, "--image-opts", "-c", "map", encrypted], SAME),
        (&["--image-opts", "-c", "map", encrypted], SAME),
        (&["-f", "qcow2", "-c", "map", "luks.qcow2"], SAME),
        (&["-c", "open -o driver=qcow2 a.qcow2", "-c", "length"], SAME),
        (&["-c", "open a.qcow2", "-c", "length", "-c", "open a.qcow2"], SAME),
        (
            &[
                "-f",
                "raw",
                "-c",
                "write 0 512",
                "-c",
                "close",
                "-c",
                "open -r a.qed",
                "-c",
                "info",
                "a.raw",
            ],
            SAME,
        ),
        (&["-C", "-f", "qcow2", "-c", "read 0 1", "over.qcow2"], ours(1, "-C", "no copy on read")),
        (&["-T", "x", "-f", "raw", "-c", "length", "a.raw"], ours(1, "-T", "no trace events")),
        (&["-x"], ours(1, "--help", "QEMU prints all of its help")),
        (&["a", "b"], ours(1, "--help", "QEMU prints all of its help")),
    ];
    run_all(&images(), rows.iter().map(|(args, expect)| (args.to_vec(), *expect)).collect());
}

#[test]
fn under_its_own_name_files_that_images_name_are_opened_if_that_is_allowed() {
    let files = Sandbox::new();
    fs::write(files.path("base.raw"), vec![1; 1 << 20]).unwrap();
    let created = std::process::Command::new(env!("CARGO_BIN_EXE_ferroblk"))
        .args(["img", "create", "-q", "-f", "qed", "-b", "base.raw", "-F", "raw", "over.qed"])
        .current_dir(files.dir())
        .status();
    assert!(created.unwrap().success());
    let read = ["-f", "qed", "-c", "read -P 1 0 1M", "over.qed"];
    for (more, code) in [(&[][..], 1), (&["-s"], 1), (&["--allow-backing"], 0)] {
        let args = [more, &read].concat();
        let ended = files.run(Tool::Ferroblk, &args);
        assert_eq!(ended.code, code, "{args:?}: {ended:?}");
        if code == 1 {
            assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
            assert!(ended.stderr.starts_with("ferroblk: "), "{ended:?}");
            assert!(ended.stderr.contains("--allow-backing"), "{ended:?}");
        }
    }
    assert_eq!(files.names(), ["base.raw", "over.qed"]);
}

#[test]
fn version_and_help() {
    let files = Sandbox::new();
    let version = files.run(Tool::Ours, &["-V"]);
    assert!(version.stdout.starts_with("qemu-io version 10.0.2 (ferroblk "), "{version:?}");
    for tool in [Tool::Ours, Tool::Ferroblk] {
        let help = files.run(tool, &["--help"]);
        assert_eq!((help.code, help.stderr.as_str()), (0, ""));
        for word in ["--read-only", "--image-opts", "--cmd", "Examples:"] {
            assert!(help.stdout.contains(word), "{word}: {help:?}");
        }
        let wrong = files.run(tool, &["--none"]);
        assert_eq!((wrong.code, wrong.stderr.lines().count()), (1, 1), "{wrong:?}");
    }
}

#[test]
fn an_image_in_use_is_refused() {
    let files = Sandbox::new();
    fs::write(files.path("a.raw"), vec![0; 1 << 20]).unwrap();
    let mut command = files.command(Tool::Ours);
    command.args(["-f", "raw", "a.raw"]).stdin(std::process::Stdio::piped());
    let mut user = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    // The prompt: it is open.
    let mut prompt = [0; 9];
    std::io::Read::read_exact(user.stdout.as_mut().unwrap(), &mut prompt).unwrap();
    assert_eq!(&prompt, b"qemu-io> ");
    let refused = files.run(Tool::Ours, &["-f", "raw", "-c", "length", "a.raw"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("in use"), "{refused:?}");
    let shared = files.run(Tool::Ours, &["-rU", "-f", "raw", "-c", "length", "a.raw"]);
    assert_eq!((shared.code, shared.stdout.as_str()), (0, "1 MiB\n"), "{shared:?}");
    drop(user.stdin.take());
    assert!(user.wait().unwrap().success());
}
