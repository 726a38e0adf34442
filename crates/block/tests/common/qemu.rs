//! The tools of QEMU, as they are installed.

use super::model::Request;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Stands for a format: qcow2, opened with [`SECRET`].
pub const ENCRYPTED: &str = "qcow2, encrypted";
/// What opens an encrypted image.
pub const SECRET: &str = "open sesame";

/// Held while a process runs. As it starts, it has for a moment a copy of every file that is open here, of other tests too, and so holds locks that
/// have been given up.
static RUNNING: Mutex<()> = Mutex::new(());

fn running() -> MutexGuard<'static, ()> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a process that is starting: then a lock that was given up is gone.
pub fn wait_for_starts() {
    drop(running());
}

/// Runs a program to its end.
fn output(command: &mut Command) -> Output {
    let _running = running();
    command.stdin(Stdio::null()).output().unwrap()
}

/// Whether there are qemu-img and qemu-io. Without them a test says that it is SKIPPED; under CI it fails.
pub fn is_there() -> bool {
    let missing = ["qemu-img", "qemu-io"].into_iter().find(|tool| {
        let _running = running();
        let found = Command::new(tool).arg("--version").output();
        !found.is_ok_and(|output| output.status.success())
    });
    let Some(tool) = missing else { return true };
    assert!(std::env::var_os("CI").is_none(), "{tool} is not installed");
    println!("SKIPPED: {tool} is not installed");
    false
}

fn run(command: &mut Command) -> Output {
    let output = output(command);
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "{command:?}: {text}");
    // A read of another pattern than was asked for is told, and is no error in all versions.
    assert!(!text.contains("verification failed"), "{command:?}: {text}");
    output
}

/// Runs qemu-img.
pub fn img(args: &[&str]) -> String {
    let output = run(Command::new("qemu-img").args(args));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs qemu-io with these commands on an image.
pub fn io(format: &str, path: &Path, commands: &[String]) {
    // Nothing here outlives the machine, so nothing is synced.
    run(io_command(format, path, commands).args(["-t", "unsafe"]));
}

/// Runs qemu-io up to a command that kills it.
pub fn io_killed(format: &str, path: &Path, commands: &[String]) {
    let mut command = io_command(format, path, commands);
    let output = output(command.arg("-c").arg("abort"));
    assert!(!output.status.success(), "it was to be killed");
}

/// What qemu-io says if it fails.
pub fn io_fails(format: &str, path: &Path, commands: &[String]) -> String {
    let output = output(&mut io_command(format, path, commands));
    assert!(!output.status.success(), "it was to fail");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn io_command(format: &str, path: &Path, commands: &[String]) -> Command {
    let mut command = Command::new("qemu-io");
    for text in commands {
        command.args(["-c", text]);
    }
    with_image(&mut command, format, path);
    command
}

/// Adds the image to the arguments of a tool.
fn with_image<'a>(command: &'a mut Command, format: &str, path: &Path) -> &'a mut Command {
    // Where it looks for a data file that is named without a directory.
    command.current_dir(path.parent().unwrap());
    let name = path.to_str().unwrap();
    match format {
        ENCRYPTED => {
            let secret = format!("secret,id=key,data={SECRET}");
            let node = format!("driver=qcow2,encrypt.key-secret=key,file.filename={name}");
            command.args(["--object", &secret, "--image-opts", &node])
        }
        _ => command.args(["-f", format, name]),
    }
}

/// A request in qemu-io's words. A discard there may leave what was there before, so it is zeroes as well.
pub fn words(request: Request) -> String {
    match request {
        Request::Write { at, len, pattern } => format!("write -P {pattern} {at} {len}"),
        Request::Zeroes { at, len, unmap: true } => format!("write -z -u {at} {len}"),
        Request::Zeroes { at, len, .. } | Request::Discard { at, len } => {
            format!("write -z {at} {len}")
        }
        Request::Flush => "flush".to_owned(),
    }
}

/// What `qemu-img check` finds wrong with an image.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    pub corruptions: u64,
    pub leaks: u64,
}

/// Checks an image. A QED image's file must have fewer clusters than a cluster has bytes: beyond, QEMU counts leaks that are not there.
pub fn check(format: &str, path: &Path) -> Found {
    check_with(format, path, &[])
}

/// Has QEMU mend an image. What it says is what was left to be found after that: in QED leaks, for which that format has no cure.
pub fn repair(format: &str, path: &Path) -> Found {
    check_with(format, path, &["-r", "all"])
}

fn check_with(format: &str, path: &Path, more: &[&str]) -> Found {
    let mut command = Command::new("qemu-img");
    with_image(command.args(["check", "--output", "json"]).args(more), format, path);
    let output = output(&mut command);
    // 2: corruptions, 3: leaks. Anything else is no check.
    let code = output.status.code();
    let text = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(code, Some(0 | 2 | 3)), "{command:?}: {text}{said}");
    let number = |key: &str| {
        let line = text.lines().find(|line| line.contains(&format!("\"{key}\":")));
        let value = line.and_then(|line| line.split(':').nth(1));
        value.map_or(0, |value| value.trim().trim_end_matches(',').parse().unwrap())
    };
    assert_eq!(number("check-errors"), 0, "{text}");
    let found = Found { corruptions: number("corruptions"), leaks: number("leaks") };
    assert_eq!(code != Some(0), found.corruptions + found.leaks > 0, "{text}");
    found
}

/// The disk's bytes as QEMU reads them.
pub fn contents(format: &str, path: &Path) -> Vec<u8> {
    let raw = path.with_extension("converted");
    let mut command = Command::new("qemu-img");
    run(with_image(command.args(["convert", "-O", "raw"]), format, path).arg(&raw));
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    bytes
}

/// A qemu-io that has an image open until it is dropped.
#[derive(Debug)]
pub struct Holder {
    child: Child,
    // Its end would be the tool's end.
    _output: BufReader<ChildStdout>,
}

impl Holder {
    pub fn new(format: &str, path: &Path, read_only: bool) -> Holder {
        let mut command = Command::new("qemu-io");
        if read_only {
            command.arg("-r");
        }
        let _running = running();
        let command =
            with_image(&mut command, format, path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        writeln!(child.stdin.as_mut().unwrap(), "read 0 512").unwrap();
        // It has the image open when it answers.
        let mut line = String::new();
        while !line.contains("512/512") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "qemu-io did not open {path:?}");
        }
        Holder { child, _output: output }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
