//! Paths that cannot be looked at, and reports that cannot be printed.

use crate::sandbox::{NOBODY, copy_of_binary, doctor, scratch, skip, succeeds};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// A command must fail with this code, one line that has all these words, and no report.
fn refused(mut command: Command, code: i32, words: &[&str]) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{command:?}");
    let line = stderr.strip_suffix('\n').unwrap();
    assert!(line.starts_with("ferroblk: ") && !line.chars().any(char::is_control), "{line:?}");
    for word in words {
        assert!(line.contains(word), "'{word}' is not in: {line}");
    }
}

#[test]
fn what_cannot_be_looked_at_is_one_line() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("file"), "x").unwrap();
    mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let _listener = UnixListener::bind(path("socket")).unwrap();
    symlink("nowhere", path("dangling")).unwrap();
    symlink("loop", path("loop")).unwrap();
    for (name, why) in [
        ("none", "No such file"),
        ("none/deeper", "No such file"),
        ("file/deeper", "Not a directory"),
        ("dangling", "No such file"),
        ("loop", "symbolic links"),
        ("fifo", "neither a directory nor an image nor a block device"),
        ("socket", "neither a directory nor an image nor a block device"),
        ("a\nb", r"a\nb"),
    ] {
        refused(doctor(&[&path(name)]), 1, &["looking at ", why]);
        // And a good path before it does not save it.
        refused(doctor(&["--json", "/", &path(name)]), 1, &["looking at ", why]);
    }
    refused(doctor(&["/dev/null"]), 1, &["/dev/null", "neither"]);
    refused(doctor(&[""]), 2, &["PATH"]);
    refused(doctor(&["--jsn"]), 2, &["--jsn"]);
    refused(doctor(&["--json", "--verbose"]), 2, &["--verbose"]);
}

#[test]
fn where_one_may_not_enter_is_one_line() {
    if !rustix::process::geteuid().is_root() {
        skip("only root can become somebody who may not enter");
        return;
    }
    let dir = scratch();
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::write(closed.join("a.raw"), "x").unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = Command::new(copy_of_binary(dir.path()));
    command.arg("doctor").arg(closed.join("a.raw")).uid(NOBODY).gid(NOBODY).current_dir("/");
    refused(command, 1, &["a.raw", "Permission denied"]);
}

#[test]
fn a_file_system_that_never_answers_is_given_up() {
    if !rustix::process::geteuid().is_root() || !fs::exists("/dev/fuse").unwrap_or(false) {
        skip("only root can mount a file system (/dev/fuse) whose server never answers");
        return;
    }
    let dir = scratch();
    let point = dir.path().to_str().unwrap();
    // Descriptor 9 is the server, which reads nothing. The mount is gone with the shell's own name space.
    let script = r#"exec 9<>/dev/fuse
        mount -i -t fuse.dead -o fd=9,rootmode=40000,user_id=0,group_id=0 deadfuse "$1" || exit 77
        "$0" doctor "$1/vm.raw""#;
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_ferroblk"), point]);
    let output = command.output().unwrap();
    if output.status.code() == Some(77) {
        skip(&format!("no such mount: {}", String::from_utf8_lossy(&output.stderr)));
        return;
    }
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    for word in ["/vm.raw: its file system", "fuse.dead", "does not answer within 10 seconds\n"] {
        assert!(line.contains(word), "'{word}' is not in: {line}");
    }
}

#[test]
fn a_full_disk_under_the_report_is_an_error() {
    for args in [&["/"][..], &["--json", "/"]] {
        let mut command = doctor(args);
        command.stdout(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
        command.stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8(output.stderr).unwrap().contains("printing: No space left"));
    }
}

#[test]
fn help_has_examples_and_the_exit_codes() {
    let help = succeeds(doctor(&["--help"]));
    for word in ["Examples:", "--json", "--verbose", "Exit code:", "[PATH]..."] {
        assert!(help.contains(word), "{word}: {help}");
    }
}
