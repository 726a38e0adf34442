//! QEMU's tools, and a directory for them to work in.
#![allow(dead_code, reason = "each test uses its part")]

pub mod faults;
pub mod verdict;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Whether QEMU's tools are installed. If not, the test that asks is skipped; where all tests must run, it fails.
pub fn has_qemu() -> bool {
    let runs = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    let found = ["qemu-img", "qemu-io"].iter().all(|tool| runs(tool));
    if !found {
        println!("SKIPPED: qemu-img and qemu-io are not installed");
        assert!(std::env::var_os("CI").is_none(), "no test may be skipped here");
    }
    found
}

/// A directory of a test's own.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("ferroblk-sim-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn get(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs `qemu-img`; its exit status and all it said.
pub fn qemu_img(args: &[&str]) -> (i32, String) {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
}

/// Makes a QED image of one MiB with clusters of 4 KiB.
pub fn create_qed(image: &Path, backing: Option<&Path>) {
    let image = image.to_str().unwrap();
    let mut args = vec!["create", "-q", "-f", "qed", "-o", "cluster_size=4096"];
    match backing {
        Some(backing) => {
            args.extend(["-b", backing.to_str().unwrap(), "-F", "raw", image]);
        }
        None => args.extend([image, "1M"]),
    }
    let (status, said) = qemu_img(&args);
    assert_eq!(status, 0, "{said}");
}

/// A `qemu-io` that waits for commands.
pub struct QemuIo {
    child: Child,
    commands: Option<ChildStdin>,
    answers: ChildStdout,
}

impl QemuIo {
    pub fn open(args: &[&str]) -> QemuIo {
        let mut command = Command::new("qemu-io");
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (commands, answers) = (child.stdin.take(), child.stdout.take().unwrap());
        let mut qemu = QemuIo { child, commands, answers };
        qemu.answer();
        qemu
    }

    /// Does one command, and waits for its end.
    pub fn run(&mut self, command: &str) -> String {
        writeln!(self.commands.as_ref().unwrap(), "{command}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        const PROMPT: &[u8] = b"qemu-io> ";
        let mut said = Vec::new();
        while !said.ends_with(PROMPT) {
            let mut byte = [0];
            let count = self.answers.read(&mut byte).unwrap();
            assert_eq!(count, 1, "qemu-io ended: {}", String::from_utf8_lossy(&said));
            said.push(byte[0]);
        }
        said.truncate(said.len() - PROMPT.len());
        String::from_utf8(said).unwrap()
    }

    /// Closes the image.
    pub fn close(mut self) {
        drop(self.commands.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        // Only if the test has failed: what was closed has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
