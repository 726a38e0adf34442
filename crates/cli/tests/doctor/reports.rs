//! Both reports of the real host.

use crate::sandbox::{NOBODY, copy_of_binary, doctor, document, finding, scratch, skip, succeeds};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use seccompiler::{SeccompAction, SeccompFilter};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn names(dir: &std::path::Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn this_host_is_reported_both_ways_and_left_as_it_was() {
    let dir = scratch();
    fs::write(dir.path().join("a.raw"), vec![1; 1 << 20]).unwrap();
    let at = dir.path().to_str().unwrap();
    let changed = |path: &std::path::Path| fs::metadata(path).unwrap().modified().unwrap();
    let before = changed(dir.path());
    let told = document(doctor(&[at, "--json"]));
    let text = succeeds(doctor(&[at]));
    // Anything but the time of access: an unnamed file leaves no mark on the directory.
    assert_eq!((names(dir.path()), changed(dir.path())), (vec!["a.raw".to_owned()], before));
    assert!(!text.contains('\x1b'), "no colour but on a terminal");
    for found in told["findings"].as_array().unwrap() {
        assert!(text.contains(&format!(" {} ", found["id"].as_str().unwrap())), "{found}");
    }
    let last = text.lines().last().unwrap();
    let ok = told["summary"]["ok"].as_u64().unwrap();
    // Figures of the two runs may differ where the host is not at rest (steal, huge pages): not where nothing moves.
    assert!(ok > 0 && last.ends_with(" ok"), "{last}");
    assert_eq!(
        told["paths"][0]["path"].as_str().unwrap(),
        dir.path().canonicalize().unwrap().to_str().unwrap()
    );
    // What was tried is what the file system does.
    let holes = finding(&told, "punch-hole");
    assert_ne!(holes["status"], "unknown", "a directory of ours can be tried: {holes}");
}

#[test]
fn without_a_path_it_is_the_current_directory() {
    let dir = scratch();
    let mut command = doctor(&["--json"]);
    command.current_dir(dir.path());
    let told = document(command);
    assert_eq!(
        told["paths"][0]["path"].as_str().unwrap(),
        dir.path().canonicalize().unwrap().to_str().unwrap()
    );
    assert_eq!(told["paths"][0]["kind"], "directory");
}

#[test]
fn images_are_looked_at_where_they_are_and_never_touched() {
    let dir = scratch();
    let image = dir.path().join("a.raw");
    fs::write(&image, vec![7; 1 << 20]).unwrap();
    let before = fs::metadata(&image).unwrap().modified().unwrap();
    let path = image.to_str().unwrap();
    let told = document(doctor(&[path, dir.path().to_str().unwrap(), path, "--json"]));
    assert_eq!(told["paths"].as_array().unwrap().len(), 2, "the same twice is one");
    assert_eq!(told["paths"][0]["kind"], "image");
    assert!(fs::read(&image).unwrap().iter().all(|byte| *byte == 7));
    assert_eq!(fs::metadata(&image).unwrap().modified().unwrap(), before);
}

#[test]
fn block_devices_are_looked_at_as_far_as_we_may() {
    let blocks =
        fs::read_dir("/sys/block").map(|dir| dir.filter_map(Result::ok).collect::<Vec<_>>());
    let names = blocks
        .unwrap_or_default()
        .into_iter()
        .map(|entry| entry.file_name().into_string().unwrap());
    let devices =
        names.map(|name| format!("/dev/{name}")).filter(|path| fs::exists(path).unwrap_or(false));
    let Some(device) = devices.max() else {
        skip("this host shows no block device");
        return;
    };
    let told = document(doctor(&[&device, "--json"]));
    assert_eq!(told["paths"][0]["kind"], "block-device", "{device}");
    assert_eq!(told["paths"][0]["mount"], serde_json::Value::Null);
    assert!(
        told["findings"].as_array().unwrap().iter().all(|found| found["group"] != "file-system")
    );
}

#[test]
fn a_user_without_rights_gets_a_report_too() {
    let dir = scratch();
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::write(closed.join("a.raw"), vec![1; 1 << 20]).unwrap();
    fs::set_permissions(closed.join("a.raw"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    if !is_root() {
        // We are such a user already.
        document(doctor(&[dir.path().to_str().unwrap(), "--json"]));
        return;
    }
    let binary = copy_of_binary(dir.path());
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new(&binary);
        command.arg("doctor").args(args).uid(NOBODY).gid(NOBODY).current_dir("/");
        command
    };
    let told = document(as_nobody(&["--json", closed.to_str().unwrap()]));
    let direct = finding(&told, "direct-io");
    assert_eq!(direct["status"], "unknown", "{direct}");
    assert!(direct["means"].as_str().unwrap().contains("Permission denied"), "{direct}");
    let image = closed.join("a.raw");
    let told = document(as_nobody(&["--json", image.to_str().unwrap()]));
    assert!(finding(&told, "direct-io")["means"].as_str().unwrap().contains("may not be read"));
    let text = succeeds(as_nobody(&[closed.to_str().unwrap()]));
    assert!(text.contains("  unknown  direct-io"), "{text}");
}

#[test]
fn a_seccomp_filter_on_io_uring_is_noticed() {
    const IO_URING_SETUP: i64 = 425;
    let rules = [(IO_URING_SETUP, vec![])].into_iter().collect();
    let refuse = SeccompAction::Errno(rustix::io::Errno::PERM.raw_os_error().unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    // On a thread of its own: the child inherits it, and nobody else notices.
    let told = std::thread::spawn(move || {
        seccompiler::apply_filter(&program).unwrap();
        document(doctor(&["--json", "/"]))
    });
    let told = told.join().unwrap();
    let setup = finding(&told, "io-uring-setup");
    assert_eq!(setup["status"], "warning");
    assert!(setup["what"].as_str().unwrap().contains("Operation not permitted"), "{setup}");
    assert!(setup["do"].as_str().unwrap().contains("seccomp"), "{setup}");
    let findings = told["findings"].as_array().unwrap();
    assert!(
        findings.iter().all(|found| found["id"] != "io-uring-features"),
        "nothing to say of no ring"
    );
}

#[test]
fn limits_of_the_process_are_its_own() {
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        r#"ulimit -n 100; exec "$0" doctor --json /"#,
        env!("CARGO_BIN_EXE_ferroblk"),
    ]);
    let told = document(shell);
    let limit = finding(&told, "nofile-limit");
    assert_eq!(
        (&limit["status"], &limit["what"]),
        (&"warning".into(), &"open files: 100 at most".into())
    );
}

/// What it prints on a terminal of this many columns.
fn on_terminal(columns: u16, no_color: Option<&str>) -> String {
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let name = ptsname(&user, Vec::new()).unwrap().into_string().unwrap();
    let terminal = OpenOptions::new().read(true).write(true).open(name).unwrap();
    tcsetwinsize(&terminal, Winsize { ws_row: 50, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
        .unwrap();
    let mut command = doctor(&["/"]);
    command.env("TERM", "xterm").env_remove("NO_COLOR").stdout(terminal);
    if let Some(value) = no_color {
        command.env("NO_COLOR", value);
    }
    let mut child = command.spawn().unwrap();
    // The command holds the last descriptor of the terminal's side but for this one: without it, reading ends with the child.
    drop(command);
    let mut text = Vec::new();
    let mut part = [0; 4096];
    let mut user = File::from(user);
    // A terminal that nobody has open any more says EIO.
    while let Ok(n @ 1..) = user.read(&mut part) {
        text.extend_from_slice(&part[..n]);
    }
    assert!(child.wait().unwrap().success());
    String::from_utf8(text).unwrap().replace("\r\n", "\n")
}

#[test]
fn on_a_terminal_it_is_coloured_and_as_wide_as_that() {
    let coloured = on_terminal(60, None);
    assert!(coloured.contains("\x1b[32mok      \x1b[0m"), "{coloured}");
    let plain = on_terminal(60, Some("1"));
    assert!(!plain.contains('\x1b'), "{plain}");
    // Meanings are plain words: they keep to the width.
    let of_meaning = |line: &&str| line.starts_with("           ") && !line.contains('/');
    let widest = |text: &str| {
        text.lines().filter(of_meaning).map(|line| line.chars().count()).max().unwrap()
    };
    assert!((50..=60).contains(&widest(&plain)), "{plain}");
    assert!((70..=80).contains(&widest(&on_terminal(80, Some("1")))));
    assert!(on_terminal(60, Some("")).contains('\x1b'), "an empty NO_COLOR is none");
}
