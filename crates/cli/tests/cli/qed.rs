//! QED images on the command line: how one is named, made, refused, locked and closed.

use crate::common::{MIB, PATIENCE, Scratch, Server, is_installed, lines_of, output, wait_until};
use crate::images::capacity;
use blk_client::{ConnectOptions, Device, Notify, Op, Queue};
use rustix::process::Signal;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const CLUSTER: u64 = 65536;
pub const BLOCK: usize = 4096;
/// Where the header keeps its feature bits, and the bit of an image that was not closed.
const FEATURES_AT: u64 = 16;
const NEED_CHECK: u64 = 2;

pub fn serve(scratch: &Scratch, args: &[&str]) -> Server {
    let mut command = scratch.ferroblk(&["serve"]);
    command.args(args).args(["--vhost-user-blk", "vm.sock"]);
    Server::start(command, scratch.path("vm.sock"))
}

/// Makes an image with our own `--create`.
fn create(scratch: &Scratch, name: &str, size: &str) {
    serve(scratch, &[name, "-f", "qed", "--create", size]).stop();
}

/// One of QEMU's tools, which must succeed. Returns what it printed.
pub fn qemu(scratch: &Scratch, program: &str, args: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(args).current_dir(scratch.dir()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let done = output(command.spawn().unwrap(), program);
    let said = String::from_utf8(done.stdout).unwrap();
    let why = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {args:?}: {said}{why}");
    said
}

fn field(image: &Path, at: u64) -> u64 {
    let mut bytes = [0; 8];
    File::open(image).unwrap().read_exact_at(&mut bytes, at).unwrap();
    u64::from_le_bytes(bytes)
}

pub fn set(image: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(image).unwrap().write_all_at(bytes, at).unwrap();
}

/// A driver at work. One for each server: while a child of this process is being started, it holds what is closed here, and a second client is
/// turned away.
pub struct Driver {
    pub device: Device,
    queue: Queue,
}

impl Driver {
    pub fn connect(server: &Server) -> Driver {
        Driver::connect_to(server, false)
    }

    pub fn connect_to(server: &Server, read_only: bool) -> Driver {
        let options = ConnectOptions {
            socket: server.socket.to_str().unwrap().to_owned(),
            queues: 1,
            notify: Notify::Interrupt,
            queue_size: 64,
            depth: 1,
            slot_bytes: BLOCK,
            read_only,
        };
        let (device, mut queues) = Device::connect(&options).unwrap();
        Driver { device, queue: queues.remove(0) }
    }

    fn run(&mut self, op: Op, at: u64, len: usize) {
        self.queue.submit(0, op, at, len);
        assert_eq!(self.queue.wait(1).unwrap()[0].ret, 0, "{op:?}");
    }

    /// Writes a block, and flushes.
    pub fn write(&mut self, at: u64, byte: u8) {
        self.queue.fill(0, 0, &[byte; BLOCK]);
        self.run(Op::Write, at, BLOCK);
        self.run(Op::Flush, 0, 0);
    }

    pub fn read(&mut self, at: u64) -> Vec<u8> {
        self.run(Op::Read, at, BLOCK);
        let mut data = vec![0; BLOCK];
        self.queue.copy_out(0, 0, &mut data);
        data
    }
}

#[test]
fn create_makes_an_image_that_qemu_knows() {
    if !is_installed("qemu-img") {
        return;
    }
    let scratch = Scratch::new();
    // By its name, or because it is said.
    for (name, args) in [("a.qed", &[][..]), ("b", &["-f", "qed"]), ("c.raw", &["-f", "qed"])] {
        let server = serve(&scratch, &[&[name, "--create", "10G"], args].concat());
        let mut driver = Driver::connect(&server);
        assert_eq!(driver.device.capacity, 10 << 30);
        driver.write(5 << 30, 0x5A);
        server.stop();
        let info = qemu(&scratch, "qemu-img", &["info", "-f", "qed", name]);
        assert!(info.contains("10 GiB (10737418240 bytes)"), "{info}");
        qemu(&scratch, "qemu-img", &["check", "-f", "qed", name]);
        let asked = ["-f", "qed", "-r", "-c", "read -P 0x5a 5G 4k", "-c", "read -P 0 0 1M", name];
        let said = qemu(&scratch, "qemu-io", &asked);
        assert!(!said.contains("failed"), "{said}");
        // A disk of 10 GiB, and nothing on it but one cluster and a table for it.
        assert!(fs::metadata(scratch.path(name)).unwrap().len() < MIB as u64);
    }
}

#[test]
fn create_never_replaces_a_file_and_leaves_none_behind_where_it_fails() {
    let scratch = Scratch::new();
    create(&scratch, "a.qed", "1M");
    for args in [&[][..], &["-f", "qed"], &["-f", "raw"]] {
        let create = ["serve", "a.qed", "--create", "1M"];
        scratch.refuses(&[&create[..], args].concat(), 1, &["a.qed", "exists already"]);
    }
    // More than two levels of tables can map.
    let create = ["serve", "b.qed", "--create", "65T"];
    scratch.refuses(&create, 1, &["creating b.qed", "larger than"]);
    let native = ["--aio", "native", "--cache", "writeback"];
    let create = ["serve", "b.qed", "--create", "1M"];
    scratch.refuses(&[&create[..], &native].concat(), 1, &["native"]);
}

#[test]
fn the_format_is_the_one_that_is_said_or_that_name_and_content_agree_on() {
    let scratch = Scratch::new();
    create(&scratch, "a.qed", "8M");
    fs::copy(scratch.path("a.qed"), scratch.path("qed")).unwrap();
    fs::copy(scratch.path("a.qed"), scratch.path("qed.raw")).unwrap();
    fs::copy(scratch.path("a.qed"), scratch.path("qed.QED")).unwrap();
    scratch.image("raw.qed", MIB);
    for (name, why) in [
        ("qed", "does not tell its format"),
        ("qed.QED", "does not tell its format"),
        ("qed.raw", "looks like qed"),
        ("raw.qed", "looks like raw"),
    ] {
        scratch.refuses(&["serve", name], 1, &["opening", name, why, "-f"]);
    }
    for format in ["vmdk", "QED", ""] {
        scratch.refuses(&["serve", "a.qed", "-f", format], 2, &["-f", "raw, qcow2, qed"]);
    }
    scratch.refuses(&["serve", "raw.qed", "-f", "qed"], 1, &["raw.qed", "magic"]);
    for (args, bytes) in [
        (&["a.qed"][..], 8 * MIB as u64),
        (&["qed", "-f", "qed"], 8 * MIB as u64),
        (&["qed.raw", "-f", "qed"], 8 * MIB as u64),
        // Who says so may look at the bytes of the image itself.
        (&["a.qed", "-f", "raw"], fs::metadata(scratch.path("a.qed")).unwrap().len()),
    ] {
        let server = serve(&scratch, args);
        assert_eq!(capacity(&server.socket), bytes, "{args:?}");
        assert_eq!(server.log_lines("WARN"), [""; 0]);
        server.stop();
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("dir.qed")).unwrap();
    fs::write(scratch.path("empty.qed"), "").unwrap();
    std::os::unix::fs::symlink("/dev/null", scratch.path("null.qed")).unwrap();
    for (name, why) in [
        ("dir.qed", "is a directory"),
        ("none.qed", "No such file"),
        ("null.qed", "neither a regular file nor a block device"),
        ("empty.qed", "shorter than that"),
    ] {
        for more in [&[][..], &["--read-only"]] {
            scratch.refuses(&[&["serve", "-f", "qed", name], more].concat(), 1, &[name, why]);
        }
    }
}

/// Each row spoils one thing in an image that is good otherwise.
#[test]
fn a_header_that_cannot_be_right_is_refused_and_left_alone() {
    let scratch = Scratch::new();
    create(&scratch, "good.qed", "64M");
    let refused = |name: &str, at: u64, bytes: &[u8], words: &[&str]| {
        let image = scratch.path("bad.qed");
        fs::copy(scratch.path("good.qed"), &image).unwrap();
        set(&image, at, bytes);
        for more in [&[][..], &["--read-only"], &["--cache", "writeback"]] {
            println!("{name}");
            let args = ["serve", "bad.qed", "-f", "qed"];
            scratch.refuses(
                &[&args[..], more].concat(),
                1,
                &[&["opening bad.qed"], words].concat(),
            );
        }
    };
    refused("magic", 0, b"QEX\0", &["magic"]);
    refused("cluster size", 4, &5000u32.to_le_bytes(), &["cluster"]);
    refused("table size", 8, &3u32.to_le_bytes(), &["table"]);
    refused("header size", 12, &0u32.to_le_bytes(), &["header"]);
    refused("unknown feature", FEATURES_AT, &(1u64 << 40).to_le_bytes(), &["0x10000000000"]);
    refused("L1 table in the header", 40, &0u64.to_le_bytes(), &["L1 table"]);
    refused("L1 table beyond the end", 40, &(1u64 << 40).to_le_bytes(), &["L1 table"]);
    refused("half a sector", 48, &1000u64.to_le_bytes(), &["not a multiple of 512"]);
    refused("larger than the tables", 48, &(1u64 << 62).to_le_bytes(), &["tables"]);
    refused("backing file without a name", FEATURES_AT, &1u64.to_le_bytes(), &["backing"]);
}

#[test]
fn an_image_that_uses_a_cluster_twice_is_not_written() {
    let scratch = Scratch::new();
    let server = serve(&scratch, &["a.qed", "--create", "64M"]);
    let mut driver = Driver::connect(&server);
    driver.write(0, 1);
    driver.write(CLUSTER, 2);
    server.stop();
    let image = scratch.path("a.qed");
    let l2_at = field(&image, field(&image, 40));
    let first = field(&image, l2_at);
    assert_ne!(first, field(&image, l2_at + 8));
    set(&image, l2_at + 8, &first.to_le_bytes());
    scratch.refuses(&["serve", "a.qed"], 1, &["opening a.qed"]);
    // Its good parts may be looked at.
    let server = serve(&scratch, &["a.qed", "--read-only"]);
    assert_eq!(Driver::connect_to(&server, true).read(0), [1; BLOCK]);
    server.stop();
}

#[test]
fn a_backing_file_is_opened_only_if_that_is_allowed() {
    if !is_installed("qemu-img") {
        return;
    }
    let scratch = Scratch::new();
    let base = fs::read(scratch.image("base.raw", MIB)).unwrap();
    let create = ["create", "-q", "-f", "qed", "-b", "base.raw", "-F", "raw", "over.qed"];
    qemu(&scratch, "qemu-img", &create);
    for more in [&[][..], &["--read-only"]] {
        let args = [&["serve", "over.qed"], more].concat();
        scratch.refuses(&args, 1, &["opening over.qed", "backing file", "\"base.raw\""]);
    }
    let server = serve(&scratch, &["over.qed", "--allow-backing"]);
    let mut driver = Driver::connect(&server);
    assert_eq!(driver.read(4096), base[4096..8192]);
    driver.write(4096, 0xEE);
    assert_eq!(driver.read(4096), [0xEE; BLOCK]);
    assert_eq!(driver.read(8192), base[8192..12288], "copied on write");
    server.stop();
    assert!(fs::read(scratch.path("base.raw")).unwrap() == base);
    let said = qemu(&scratch, "qemu-io", &["-r", "-c", "read -P 0xee 4k 4k", "over.qed"]);
    assert!(!said.contains("failed"), "{said}");

    fs::remove_file(scratch.path("base.raw")).unwrap();
    scratch.refuses(&["serve", "over.qed", "--allow-backing"], 1, &["base.raw", "No such file"]);
}

#[test]
fn an_image_over_itself_is_refused() {
    if !is_installed("qemu-img") {
        return;
    }
    let scratch = Scratch::new();
    for (name, under) in [("a.qed", "b.qed"), ("b.qed", "a.qed")] {
        let create = ["create", "-q", "-u", "-f", "qed", "-b", under, "-F", "qed", name, "1M"];
        qemu(&scratch, "qemu-img", &create);
    }
    for more in [&[][..], &["--read-only"]] {
        let args = [&["serve", "a.qed", "--allow-backing"], more].concat();
        scratch.refuses(&args, 1, &["opening a.qed", "its own backing file"]);
    }
}

#[test]
fn a_read_only_image_is_read_and_not_touched() {
    let scratch = Scratch::new();
    let server = serve(&scratch, &["a.qed", "--create", "8M"]);
    Driver::connect(&server).write(4096, 7);
    server.stop();
    let image = scratch.path("a.qed");
    // Even one that was not closed.
    set(&image, FEATURES_AT, &NEED_CHECK.to_le_bytes());
    let before = scratch.look();
    let server = serve(&scratch, &["a.qed", "--read-only"]);
    let mut driver = Driver::connect_to(&server, true);
    assert_eq!(driver.read(4096), [7; BLOCK]);
    assert_eq!(driver.read(0), [0; BLOCK]);
    server.stop();
    assert!(scratch.look() == before);
}

#[test]
fn an_image_that_was_not_closed_is_mended_and_said_so() {
    let scratch = Scratch::new();
    let server = serve(&scratch, &["a.qed", "--create", "8M"]);
    Driver::connect(&server).write(4096, 7);
    drop(server);
    let image = scratch.path("a.qed");
    assert_ne!(field(&image, FEATURES_AT) & NEED_CHECK, 0, "a killed server closes nothing");
    fs::remove_file(scratch.path("vm.sock")).unwrap();
    let server = serve(&scratch, &["a.qed"]);
    assert_eq!(field(&image, FEATURES_AT) & NEED_CHECK, 0);
    assert_eq!(Driver::connect(&server).read(4096), [7; BLOCK]);
    let log = server.stop();
    assert!(log.contains("was not closed"), "{log}");
    assert_eq!(field(&image, FEATURES_AT) & NEED_CHECK, 0);
}

#[test]
fn a_server_that_only_reads_leaves_the_image_as_it_was() {
    let scratch = Scratch::new();
    create(&scratch, "a.qed", "8M");
    let before = scratch.look();
    let server = serve(&scratch, &["a.qed"]);
    assert_eq!(Driver::connect(&server).read(0), [0; BLOCK]);
    server.stop();
    assert!(scratch.look() == before);
}

#[test]
fn sighup_finds_nothing_new_and_says_nothing() {
    let scratch = Scratch::new();
    let mut server = serve(&scratch, &["a.qed", "--create", "8M"]);
    let mut driver = Driver::connect(&server);
    for round in 0..3 {
        // The file grows, the disk does not.
        driver.write(u64::from(round) << 20, round);
        server.signal(Signal::HUP);
    }
    drop(driver);
    assert!(server.is_running());
    let log = server.stop();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    assert!(!log.contains("bytes now"), "{log}");
}

/// qemu-io with the image open until it is dropped.
struct QemuIo(Child);

impl QemuIo {
    fn open(scratch: &Scratch, image: &str) -> QemuIo {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "qed", image]).current_dir(scratch.dir());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"length\n").unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        while !lines.recv_timeout(PATIENCE).expect("qemu-io opens the image").contains("8 MiB") {}
        QemuIo(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        // Both fail only if the process is gone already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn ferroblk_and_qemu_keep_each_other_out() {
    if !is_installed("qemu-io") {
        return;
    }
    const LOCKED: &str = "in use by another process (locked)";
    let scratch = Scratch::new();
    create(&scratch, "a.qed", "8M");
    let tool = QemuIo::open(&scratch, "a.qed");
    for more in [&[][..], &["--read-only"], &["-f", "raw"]] {
        let args = [&["serve", "a.qed"], more].concat();
        scratch.refuses(&args, 1, &["opening a.qed", LOCKED]);
    }
    drop(tool);

    let mut server = serve(&scratch, &["a.qed"]);
    for more in [&[][..], &["--read-only"]] {
        let args = [&["serve", "a.qed", "--vhost-user-blk", "other.sock"], more].concat();
        scratch.refuses(&args, 1, &["opening a.qed", LOCKED]);
    }
    let before = fs::read(scratch.path("a.qed")).unwrap();
    let mut command = Command::new("qemu-io");
    command.args(["-f", "qed", "-c", "write -P 0xee 0 4k", "a.qed"]).current_dir(scratch.dir());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let done = output(command.spawn().unwrap(), "qemu-io");
    assert!(!done.status.success() && String::from_utf8_lossy(&done.stderr).contains("lock"));
    assert!(fs::read(scratch.path("a.qed")).unwrap() == before);
    assert!(server.is_running());
    server.stop();
}

#[test]
fn an_idle_image_is_marked_clean_while_it_is_served() {
    let scratch = Scratch::new();
    let server = serve(&scratch, &["a.qed", "--create", "8M"]);
    Driver::connect(&server).write(0, 1);
    let image = scratch.path("a.qed");
    wait_until("the image is marked clean", || field(&image, FEATURES_AT) & NEED_CHECK == 0);
    server.stop();
}
