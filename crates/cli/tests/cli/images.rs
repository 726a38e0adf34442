//! Images that cannot be served, and what becomes of those that were just made.

use crate::common::{MIB, Scratch, Server, is_installed, output, skip};
use export::vhost_user::frontend::FrontEnd;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The user and group `nobody`.
const NOBODY: u32 = 65534;

/// The size of the disk that is served at `socket`, in bytes, as a driver reads it.
pub fn capacity(socket: &Path) -> u64 {
    let mut front_end = FrontEnd::connect(socket).unwrap();
    front_end.handshake_all().unwrap();
    let sectors = front_end.read_config(0, 8).unwrap();
    u64::from_le_bytes(sectors.try_into().unwrap()) * 512
}

#[test]
fn what_is_no_file_with_data_is_refused() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("dir.raw")).unwrap();
    mknodat(CWD, scratch.path("fifo.raw"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let _listener = UnixListener::bind(scratch.path("socket.raw")).unwrap();
    symlink("nowhere", scratch.path("dangling.raw")).unwrap();
    symlink("loop.raw", scratch.path("loop.raw")).unwrap();
    symlink("/dev/null", scratch.path("null.raw")).unwrap();
    fs::write(scratch.path("file"), "no directory").unwrap();
    for (name, why) in [
        ("none.raw", "No such file"),
        ("dir.raw", "is a directory"),
        ("fifo.raw", "neither a regular file nor a block device"),
        ("socket.raw", "neither a regular file nor a block device"),
        ("null.raw", "neither a regular file nor a block device"),
        ("dangling.raw", "No such file"),
        ("loop.raw", "symbolic links"),
        ("none/a.raw", "No such file"),
    ] {
        for more in [&[][..], &["--read-only"], &["--cache", "writeback"]] {
            // A socket of its own, so that it is the image that is refused.
            let args = ["serve", name, "--vhost-user-blk", "vm.sock"];
            scratch.refuses(&[&args[..], more].concat(), 1, &["opening ", name, why]);
        }
    }
    let args = ["serve", "file/a.raw", "--vhost-user-blk", "vm.sock"];
    scratch.refuses(&args, 1, &["Not a directory"]);
}

#[test]
fn a_format_is_told_by_the_user_or_the_extension_and_never_guessed() {
    let scratch = Scratch::new();
    for name in ["disk", "disk.qcow2", "disk.RAW", "disk.raw.bak", ".raw"] {
        scratch.image(name, MIB);
        scratch.refuses(&["serve", name], 1, &[name, "which with -f"]);
    }
    scratch.serve(&["disk", "-f", "raw", "--vhost-user-blk", "a.raw.sock"]).stop();
    fs::rename(scratch.path("disk"), scratch.path("disk.img")).unwrap();
    scratch.serve(&["disk.img", "--vhost-user-blk", "a.raw.sock"]).stop();
}

#[test]
fn an_image_that_one_may_not_open_is_refused() {
    let scratch = Scratch::with_image();
    // Where nobody can write a socket into, the image is not even looked at.
    let sockets = Scratch::new();
    fs::set_permissions(sockets.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    // Who builds as root may have the binary where nobody can reach it.
    fs::copy(env!("CARGO_BIN_EXE_ferroblk"), sockets.path("ferroblk")).unwrap();
    let socket = sockets.path("vm.sock");
    // Root may open anything, so it becomes somebody else; others take the right from themselves.
    let is_root = rustix::process::geteuid().is_root();
    let command = |mode: &[&str]| {
        let mut command = Command::new(sockets.path("ferroblk"));
        command.args(["serve", "a.raw", "--vhost-user-blk"]).arg(&socket).args(mode);
        command.current_dir(scratch.dir());
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    };
    let secret = fs::Permissions::from_mode(if is_root { 0o600 } else { 0o000 });
    fs::set_permissions(scratch.path("a.raw"), secret).unwrap();
    for mode in [&[][..], &["--read-only"]] {
        let line = scratch.refused(command(mode), 1);
        assert!(line.contains("opening a.raw") && line.contains("Permission denied"), "{line}");
        assert!(!socket.exists());
    }
    // A file that one may read can be served read-only, and no other way.
    let readable = fs::Permissions::from_mode(if is_root { 0o644 } else { 0o400 });
    fs::set_permissions(scratch.path("a.raw"), readable).unwrap();
    scratch.refused(command(&[]), 1);
    Server::start(command(&["--read-only"]), socket.clone()).stop();
}

#[test]
fn a_directory_that_one_may_not_write_stays_as_it_is() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can become somebody else");
    }
    let (scratch, sockets) = (Scratch::with_image(), Scratch::new());
    fs::set_permissions(scratch.path("a.raw"), fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(sockets.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_ferroblk"), sockets.path("ferroblk")).unwrap();
    let socket = sockets.path("vm.sock").to_string_lossy().into_owned();
    for (args, why) in [
        (&["serve", "a.raw"][..], "listening at a.raw.sock"),
        (&["serve", "b.raw", "--create", "1M", "--vhost-user-blk", &socket], "creating b.raw"),
    ] {
        let mut command = Command::new(sockets.path("ferroblk"));
        command.args(args).current_dir(scratch.dir()).uid(NOBODY).gid(NOBODY);
        let line = scratch.refused(command, 1);
        assert!(line.contains(why) && line.contains("Permission denied"), "{line}");
    }
    assert_eq!(sockets.names(), ["ferroblk"]);
}

#[test]
fn create_makes_a_sparse_disk_and_never_replaces_one() {
    let scratch = Scratch::new();
    let server = scratch.serve(&["a.raw", "--create", "10G"]);
    assert_eq!(capacity(&server.socket), 10 << 30);
    server.stop();
    let made = fs::metadata(scratch.path("a.raw")).unwrap();
    assert_eq!(made.len(), 10 << 30);
    assert_eq!(std::os::unix::fs::MetadataExt::blocks(&made), 0);
    fs::File::options().write(true).open(scratch.path("a.raw")).unwrap().set_len(5000).unwrap();
    for size in ["1M", "0", "10G"] {
        scratch.refuses(&["serve", "a.raw", "--create", size], 1, &["a.raw", "exists already"]);
    }
    fs::create_dir(scratch.path("dir.raw")).unwrap();
    symlink("nowhere.raw", scratch.path("link.raw")).unwrap();
    for name in ["dir.raw", "link.raw"] {
        scratch.refuses(&["serve", name, "--create", "1M"], 1, &[name, "exists already"]);
    }
}

#[test]
fn a_size_to_create_is_rounded_up_to_whole_sectors() {
    let scratch = Scratch::new();
    let server = scratch.serve(&["a.raw", "--create", "1000"]);
    assert_eq!(capacity(&server.socket), 1024);
    assert_eq!(server.log_lines("WARN"), [""; 0]);
    server.stop();
    assert_eq!(fs::metadata(scratch.path("a.raw")).unwrap().len(), 1024);
}

#[test]
fn a_failure_after_the_image_was_made_takes_it_away_again() {
    let scratch = Scratch::new();
    let create = ["serve", "a.raw", "--create", "1M"];
    let native = ["--aio", "native", "--cache", "writeback"];
    scratch.refuses(&[&create[..], &native].concat(), 1, &["native"]);
    // No socket where the directory is missing, and then no image either.
    let nowhere = ["--vhost-user-blk", "none/vm.sock"];
    scratch.refuses(&[&create[..], &nowhere].concat(), 1, &["none/vm.sock"]);
    // The last thing that can fail: saying that it is ready.
    let mut command = scratch.ferroblk(&create);
    command.stdout(fs::File::options().write(true).open("/dev/full").unwrap());
    command.stderr(Stdio::piped());
    let done = output(command.spawn().unwrap(), "ferroblk");
    assert_eq!(done.status.code(), Some(1));
    assert_eq!(scratch.names(), [""; 0]);
}

#[test]
fn an_odd_length_is_served_rounded_up_and_said_so_once() {
    for (len, sectors) in [(1, 1), (511, 1), (513, 2), (1000, 2), (MIB + 1, 2049)] {
        for cache in ["none", "writeback"] {
            let scratch = Scratch::new();
            let image = scratch.image("a.raw", len);
            let before = fs::read(&image).unwrap();
            let server = scratch.serve(&["a.raw", "--cache", cache]);
            assert_eq!(capacity(&server.socket), sectors * 512, "{len} bytes, {cache}");
            let warnings = server.log_lines("WARN");
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            let told = format!("a.raw has {len} bytes, not a multiple of 512");
            assert!(warnings[0].contains(&told), "{warnings:?}");
            server.stop();
            assert!(fs::read(&image).unwrap() == before, "serving alone changes nothing");
        }
    }
}

#[test]
fn whole_sectors_and_no_sectors_are_served_without_a_word() {
    for len in [0, 512, MIB] {
        let scratch = Scratch::new();
        scratch.image("a.raw", len);
        let server = scratch.serve(&["a.raw"]);
        assert_eq!(capacity(&server.socket), len as u64);
        assert_eq!(server.log_lines("WARN"), [""; 0]);
        server.stop();
    }
}

#[test]
fn a_link_to_an_image_is_followed() {
    let scratch = Scratch::new();
    scratch.image("real", MIB);
    symlink("real", scratch.path("a.raw")).unwrap();
    let server = scratch.serve(&["a.raw"]);
    assert_eq!(capacity(&server.socket), MIB as u64);
    server.stop();
    assert_eq!(scratch.names(), ["a.raw", "real"]);
}

/// In a mount namespace of its own, which ends with the shell: nobody else sees the file system.
const ON_RAMFS: &str = r#"
    mount -t ramfs none "$1" && cd "$1" || exit 99
    truncate -s 1M a.raw
    "$2" serve a.raw && exit 98
    "$2" serve a.raw --cache directsync --read-only && exit 98
    "$2" serve new.raw --create 1M && exit 98
    # What there is now: the image, no socket, no new image.
    [ "$(ls)" = a.raw ] || exit 97
    : >ready
    "$2" serve a.raw --cache writeback >>ready &
    until grep -q '^ready: ' ready; do kill -0 $! || exit 96; sleep 0.01; done
    kill $! && wait $!
"#;

#[test]
fn a_file_system_without_o_direct_is_refused_unless_the_page_cache_is_asked_for() {
    let scratch = Scratch::new();
    if !is_installed("unshare") {
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", ON_RAMFS, "sh"]);
    command.arg(scratch.dir()).arg(env!("CARGO_BIN_EXE_ferroblk"));
    command.env("FERROBLK_LOG", "warn").stdout(Stdio::piped()).stderr(Stdio::piped());
    let done = output(command.spawn().unwrap(), "unshare");
    let stderr = String::from_utf8(done.stderr).unwrap();
    if matches!(done.status.code(), Some(1 | 99)) {
        return skip(&format!("no ramfs can be mounted here: {stderr}"));
    }
    let lines: Vec<_> = stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{:?}: {stderr}", done.status);
    for line in lines {
        assert!(line.starts_with("ferroblk: opening "), "{line}");
        assert!(line.contains("O_DIRECT") && line.contains("--cache writeback"), "{line}");
    }
    assert_eq!(done.status.code(), Some(0), "{stderr}");
}
